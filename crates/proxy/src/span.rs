//! Spans of requests that belong to a sampled trace, for a collector of OpenTelemetry, if one is named.
//!
//! Whoever begins a trace decides whether it is sampled, and says so in the header `traceparent`
//! (https://www.w3.org/TR/trace-context/). That header passes as it is, like any other: a proxy's span is a leaf below
//! the span that sent the request, so a request's head need not be written anew, and applications that trace see the
//! same parents with and without a mesh. A request without the header, or in a trace that is not sampled, has no span.
//! Spans wait in a queue with a bound, and what the collector does not take in time is left out: it slows nobody.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use http::StatusCode;
use linkerd2_proxy_api::tap::{Eos, eos};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};

use crate::config::TraceConfig;
use crate::control_client::Channel;
use crate::message::{Head, Value};
use crate::metrics::{Labels, Shard};
use crate::otlp::{
    self, CLIENT, ERROR, ExportRequest, KeyValue, Resource, ResourceSpans, SERVER, Scope, ScopeSpans,
};
use crate::tap::{Direction, PATH_BYTES_MAX, Seen, cut};

/// Spans that wait: some hundred bytes each, and what a request may make long is cut.
const WAITING_MAX: usize = 4_096;
/// Spans that are sent at once.
const BATCH_MAX: usize = 512;
/// How long the first of a batch waits for others.
const LINGER: Duration = Duration::from_secs(1);
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);
/// The least that the standard wants to be passed on.
const STATE_BYTES_MAX: usize = 512;

/// Which trace a request belongs to, and the span that sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Context {
    trace: [u8; 16],
    parent: [u8; 8],
    flags: u8,
    state: String,
}

const SAMPLED: u8 = 1;

impl Context {
    /// None also for a header that is not as it must be: then the trace is somebody else's to begin anew.
    fn of(headers: &Head) -> Option<Self> {
        let mut all = headers.get_all("traceparent");
        let (Some(only), None) = (all.next(), all.next()) else {
            return None;
        };
        let text = only.as_bytes();
        let (version, trace, parent, flags) = (
            hex::<1>(text.get(..2)?)?,
            hex::<16>(text.get(3..35)?)?,
            hex::<8>(text.get(36..52)?)?,
            hex::<1>(text.get(53..55)?)?,
        );
        let dashes = [2, 35, 52].iter().all(|at| text.get(*at) == Some(&b'-'));
        // Later versions may say more, after another dash.
        let is_whole = match version {
            [0] => text.len() == 55,
            [0xff] => false,
            _ => matches!(text.get(55), None | Some(b'-')),
        };
        if !dashes || !is_whole || trace == [0; 16] || parent == [0; 8] {
            return None;
        }
        let state = headers.get_all("tracestate");
        let state: Vec<&str> = state.filter_map(Value::to_str).collect();
        let state = state.join(",");
        Some(Self {
            trace,
            parent,
            flags: flags[0],
            state: if state.len() <= STATE_BYTES_MAX {
                state
            } else {
                String::new()
            },
        })
    }
}

/// Whether a request with such headers has a span.
pub(crate) fn is_sampled(headers: &Head) -> bool {
    sampled(headers).is_some()
}

fn sampled(headers: &Head) -> Option<Context> {
    Context::of(headers).filter(|context| context.flags & SAMPLED != 0)
}

/// Lower-case digits only, as the standard wants them.
fn hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    let (pairs, rest) = text.as_chunks::<2>();
    if pairs.len() != N || !rest.is_empty() {
        return None;
    }
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(bytes)
}

/// Where spans go.
#[derive(Debug)]
pub(crate) struct Spans {
    queue: mpsc::Sender<otlp::Span>,
    /// For which the queue had no room.
    left_out: AtomicU64,
}

impl Spans {
    pub(crate) fn new() -> (Self, mpsc::Receiver<otlp::Span>) {
        let (queue, waiting) = mpsc::channel(WAITING_MAX);
        let left_out = AtomicU64::new(0);
        (Self { queue, left_out }, waiting)
    }

    pub(crate) fn take(&self, span: otlp::Span) {
        if self.queue.try_send(span).is_err() {
            self.left_out.fetch_add(1, Relaxed);
        }
    }
}

/// A request on its way.
#[derive(Debug)]
pub(crate) struct Open {
    context: Context,
    began: SystemTime,
    direction: Direction,
    name: String,
    attributes: Vec<KeyValue>,
    status: Option<StatusCode>,
}

impl Open {
    /// None if the request's trace is not sampled, or there is none.
    pub(crate) fn of(seen: &Seen<'_>) -> Option<Self> {
        let context = sampled(seen.headers)?;
        let [method, authority, path] =
            [seen.method.as_str(), seen.authority, seen.path].map(|text| cut(text, PATH_BYTES_MAX));
        let (direction, labels) = match seen.direction {
            Direction::Inbound => ("inbound", &seen.source.labels),
            Direction::Outbound => ("outbound", &seen.destination_labels),
        };
        let mut attributes = vec![
            KeyValue::text("direction", direction),
            KeyValue::text("http.request.method", method),
            KeyValue::text("url.scheme", seen.scheme),
            KeyValue::text("url.path", path),
            KeyValue::text("server.address", authority),
            KeyValue::text("client.address", seen.source.addr.ip().to_string()),
            KeyValue::text("network.peer.address", seen.destination.ip().to_string()),
            KeyValue::number("network.peer.port", seen.destination.port()),
        ];
        // Who the other side proved to be.
        let known = ["tls", "client_id", "server_id"].into_iter();
        let known = known.filter_map(|label| Some(KeyValue::text(label, labels.get(label)?)));
        attributes.extend(known);
        Some(Self {
            context,
            began: SystemTime::now(),
            direction: seen.direction,
            name: method.to_owned(),
            attributes,
            status: None,
        })
    }

    pub(crate) fn answered(&mut self, status: StatusCode) {
        self.status = Some(status);
    }

    pub(crate) fn ended(self, after: Duration, end: Option<&Eos>) -> otlp::Span {
        let mut attributes = self.attributes;
        let mut error = None;
        if let Some(status) = self.status {
            attributes.push(KeyValue::number("http.response.status_code", status.as_u16()));
            // What a client did wrong is no fault of who answers.
            let fails = status.is_server_error()
                || (self.direction == Direction::Outbound && status.is_client_error());
            error = fails.then(String::new);
        }
        match end.and_then(|end| end.end.as_ref()) {
            Some(eos::End::GrpcStatusCode(code)) => {
                attributes.push(KeyValue::number("rpc.grpc.status_code", *code));
                if *code != 0 {
                    error = Some(format!("gRPC status {code}"));
                }
            }
            Some(eos::End::ResetErrorCode(code)) => error = Some(format!("reset with {code}")),
            None => {}
        }
        otlp::Span {
            trace_id: self.context.trace.into(),
            span_id: rand::random::<[u8; 8]>().into(),
            trace_state: self.context.state,
            parent_span_id: self.context.parent.into(),
            name: self.name,
            kind: match self.direction {
                Direction::Inbound => SERVER,
                Direction::Outbound => CLIENT,
            },
            start_time_unix_nano: nanos(self.began),
            end_time_unix_nano: nanos(self.began + after),
            attributes,
            status: error.map(|message| otlp::Status { message, code: ERROR }),
            flags: self.context.flags.into(),
        }
    }
}

fn nanos(at: SystemTime) -> u64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Brings spans to the collector, for ever. What it refuses, or does not take in time, is gone.
pub(crate) async fn export(
    spans: Arc<Spans>,
    mut waiting: mpsc::Receiver<otlp::Span>,
    channel: Channel,
    config: Arc<TraceConfig>,
    shard: Shard,
) {
    let counter = |outcome: &str| shard.counter("trace_spans_total", Labels::new().with("outcome", outcome));
    let (exported, failed, left_out) = (counter("exported"), counter("failed"), counter("left_out"));
    let mut is_well = true;
    loop {
        let mut batch = Vec::new();
        if waiting.recv_many(&mut batch, BATCH_MAX).await == 0 {
            return;
        }
        let until = Instant::now() + LINGER;
        while let room @ 1.. = BATCH_MAX - batch.len() {
            match timeout_at(until, waiting.recv_many(&mut batch, room)).await {
                Ok(1..) => {}
                Ok(0) | Err(_) => break,
            }
        }
        left_out.add(spans.left_out.swap(0, Relaxed));
        let count = batch.len() as u64;
        let sending = otlp::export(channel.clone(), request(&config, batch));
        let refused = match timeout(EXPORT_TIMEOUT, sending).await {
            Ok(Ok(answer)) => {
                let partial = answer.partial_success.unwrap_or_default();
                let rejected = u64::try_from(partial.rejected_spans).unwrap_or(0).min(count);
                exported.add(count - rejected);
                failed.add(rejected);
                (rejected > 0).then_some(partial.error_message)
            }
            Ok(Err(status)) => {
                failed.add(count);
                Some(status.message().to_owned())
            }
            Err(_) => {
                failed.add(count);
                Some("no answer in time".to_owned())
            }
        };
        // Once for each time that it stops or begins to work.
        match (&refused, is_well) {
            (Some(why), true) => {
                tracing::warn!(
                    collector = config.service.host,
                    why,
                    "Spans are not taken, and left out"
                );
            }
            (None, false) => tracing::info!(collector = config.service.host, "Spans are taken again"),
            _ => {}
        }
        is_well = refused.is_none();
    }
}

fn request(config: &TraceConfig, spans: Vec<otlp::Span>) -> ExportRequest {
    let named = config
        .attributes
        .iter()
        .map(|(key, value)| KeyValue::text(key, value));
    let scope = Scope {
        name: "hawser-proxy".into(),
        version: env!("CARGO_PKG_VERSION").into(),
    };
    ExportRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(Resource {
                attributes: named.collect(),
            }),
            scope_spans: vec![ScopeSpans {
                scope: Some(scope),
                spans,
            }],
        }],
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::tap::Client;

    fn of(values: &[&str]) -> Option<Context> {
        let mut headers = Head::default();
        for value in values {
            headers.append("traceparent", &value.parse().expect("a header"));
        }
        headers.insert("tracestate", &"a=1".parse().expect("a header"));
        Context::of(&headers)
    }

    #[test]
    fn what_a_request_makes_long_is_cut() {
        let mut headers = Head::default();
        let context = format!("00-{TRACE}-b7ad6b7169203331-01");
        headers.insert("traceparent", &context.parse().expect("a header"));
        let long = "long".repeat(PATH_BYTES_MAX);
        let open = Open::of(&Seen {
            direction: Direction::Inbound,
            source: &Client {
                addr: ([10, 0, 0, 1], 4000).into(),
                labels: BTreeMap::new(),
            },
            destination: ([10, 0, 0, 2], 80).into(),
            destination_labels: BTreeMap::new(),
            route_labels: BTreeMap::new(),
            method: &long.parse().expect("a method"),
            scheme: "http",
            authority: &long,
            path: &long,
            headers: &headers,
        });
        let span = open.expect("it is sampled").ended(Duration::ZERO, None);
        let text = |pair: &KeyValue| match &pair.value.as_ref()?.value {
            Some(otlp::Value::Text(text)) => Some(text.len()),
            _ => None,
        };
        let longest = span.attributes.iter().filter_map(text).max();
        assert_eq!((span.name.len(), longest), (PATH_BYTES_MAX, Some(PATH_BYTES_MAX)));
    }

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

    #[test]
    fn contexts_are_those_of_the_standard() {
        let plain = format!("00-{TRACE}-b7ad6b7169203331-01");
        let found = of(&[&plain]).expect("a context");
        assert_eq!(found.trace[..2], [0x0a, 0xf7]);
        assert_eq!(found.parent[..2], [0xb7, 0xad]);
        assert_eq!((found.flags, &*found.state), (1, "a=1"));
        for (value, is_one) in [
            (format!("00-{TRACE}-b7ad6b7169203331-00"), true),
            (format!("cc-{TRACE}-b7ad6b7169203331-01"), true),
            (format!("cc-{TRACE}-b7ad6b7169203331-01-what"), true),
            (format!("cc-{TRACE}-b7ad6b7169203331-01.what"), false),
            (format!("00-{TRACE}-b7ad6b7169203331-01-what"), false),
            (format!("ff-{TRACE}-b7ad6b7169203331-01"), false),
            (format!("00-{}-b7ad6b7169203331-01", TRACE.to_uppercase()), false),
            (format!("00-{}-b7ad6b7169203331-01", "0".repeat(32)), false),
            (format!("00-{TRACE}-0000000000000000-01"), false),
            (format!("00_{TRACE}-b7ad6b7169203331-01"), false),
            (format!("00-{TRACE}-b7ad6b716920333-01"), false),
            ("00".into(), false),
            (String::new(), false),
        ] {
            assert_eq!(of(&[&value]).is_some(), is_one, "{value}");
        }
        assert_eq!(of(&[&plain, &plain]), None, "which of them?");
        assert_eq!(of(&[]), None);
    }
}
