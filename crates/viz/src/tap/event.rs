//! What is told of a request, as JSON. Pure.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use linkerd2_proxy_api::tap::eos::End;
use linkerd2_proxy_api::tap::tap_event::{self, ProxyDirection, http};
use linkerd2_proxy_api::tap::{TapEvent, tap_event::EndpointMeta};
use serde::{Deserialize, Serialize};

use crate::pods::PodName;

/// One event of one request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tapped {
    /// Whose proxy tells: `namespace/name`, and what it belongs to: `deployment/web`.
    pub pod: String,
    pub workload: String,
    /// What the events of one request have in common.
    pub id: String,
    /// `inbound` or `outbound`, as that proxy sees it.
    pub direction: String,
    pub source: String,
    pub destination: String,
    pub source_labels: BTreeMap<String, String>,
    pub destination_labels: BTreeMap<String, String>,
    pub route_labels: BTreeMap<String, String>,
    #[serde(flatten)]
    pub happening: Happening,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Happening {
    Request {
        method: String,
        authority: String,
        path: String,
    },
    Response {
        status: u32,
        /// Since the request's head.
        after_us: u64,
    },
    End {
        /// Since the request's head.
        after_us: u64,
        bytes: u64,
        grpc_status: Option<u32>,
        /// HTTP/2's code, if it didn't end by itself.
        reset: Option<u32>,
    },
}

impl Tapped {
    /// Nothing if the event makes no sense.
    pub(super) fn of(pod: &PodName, workload: &str, event: TapEvent) -> Option<Self> {
        let direction = match event.proxy_direction() {
            ProxyDirection::Inbound => "inbound",
            ProxyDirection::Outbound => "outbound",
            ProxyDirection::Unknown => return None,
        };
        let address = |address: Option<linkerd2_proxy_api::net::TcpAddress>| {
            let address: SocketAddr = address?.try_into().ok()?;
            Some(address.to_string())
        };
        let labels = |meta: Option<EndpointMeta>| meta.unwrap_or_default().labels.into_iter().collect();
        let tap_event::Event::Http(http) = event.event?;
        let (id, happening) = happening(http.event?)?;
        Some(Self {
            pod: pod.to_string(),
            workload: workload.to_owned(),
            id: format!("{}:{}", id.base, id.stream),
            direction: direction.to_owned(),
            source: address(event.source).unwrap_or_default(),
            destination: address(event.destination).unwrap_or_default(),
            source_labels: labels(event.source_meta),
            destination_labels: labels(event.destination_meta),
            route_labels: event.route_meta.unwrap_or_default().labels.into_iter().collect(),
            happening,
        })
    }
}

fn happening(event: http::Event) -> Option<(http::StreamId, Happening)> {
    let micros = |duration: Option<prost_types::Duration>| {
        let duration = std::time::Duration::try_from(duration?).ok()?;
        u64::try_from(duration.as_micros()).ok()
    };
    Some(match event {
        http::Event::RequestInit(head) => {
            let method = ::http::Method::try_from(head.method?).ok()?;
            let happening = Happening::Request {
                method: method.to_string(),
                authority: head.authority,
                path: head.path,
            };
            (head.id?, happening)
        }
        http::Event::ResponseInit(answer) => {
            let happening = Happening::Response {
                status: answer.http_status,
                after_us: micros(answer.since_request_init)?,
            };
            (answer.id?, happening)
        }
        http::Event::ResponseEnd(end) => {
            let how = end.eos.and_then(|eos| eos.end);
            let happening = Happening::End {
                after_us: micros(end.since_request_init)?,
                bytes: end.response_bytes,
                grpc_status: match how {
                    Some(End::GrpcStatusCode(code)) => Some(code),
                    _ => None,
                },
                reset: match how {
                    Some(End::ResetErrorCode(code)) => Some(code),
                    _ => None,
                },
            };
            (end.id?, happening)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_read_and_written() {
        let pod = PodName {
            namespace: "x".into(),
            name: "web-1".into(),
        };
        let event = TapEvent {
            proxy_direction: ProxyDirection::Inbound.into(),
            source: Some(SocketAddr::from(([10, 0, 0, 1], 80)).into()),
            event: Some(tap_event::Event::Http(tap_event::Http {
                event: Some(http::Event::ResponseInit(http::ResponseInit {
                    id: Some(http::StreamId { base: 1, stream: 2 }),
                    since_request_init: Some(prost_types::Duration {
                        seconds: 0,
                        nanos: 1_500_000,
                    }),
                    http_status: 200,
                    headers: None,
                })),
            })),
            ..TapEvent::default()
        };
        let told = Tapped::of(&pod, "deployment/web", event).expect("it makes sense");
        assert_eq!((&*told.id, &*told.source), ("1:2", "10.0.0.1:80"));
        let expected = Happening::Response {
            status: 200,
            after_us: 1_500,
        };
        assert_eq!(told.happening, expected);
        let text = serde_json::to_string(&told).expect("JSON");
        assert!(text.contains(r#""event":"response""#), "{text}");
        assert_eq!(serde_json::from_str::<Tapped>(&text).expect("an event"), told);
        assert_eq!(Tapped::of(&pod, "", TapEvent::default()), None);
    }
}
