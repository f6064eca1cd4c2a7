//! What one look at a proxy's metrics tells: its flows, and what each has counted since the proxy started.
//!
//! Pure: text in, numbers out. The text is another process's, so everything in it is bounded, and a line that makes
//! no sense is counted and left out. The series and labels are those of `spec/proxy.md` 8.2, and for the controllers
//! of links those of `spec/multicluster.md` 6.11.

use std::collections::BTreeMap;

use hawser_runtime::exposition::{Labels, Sample, samples};

use crate::kinds::Kind;
use crate::tape::{BOUNDS, Counts};

/// More flows than this of one proxy are left out.
pub(crate) const FLOWS_MAX: usize = 512;
/// A flow with a longer name in it is left out; Kubernetes' are at most 253 bytes.
const NAME_BYTES_MAX: usize = 320;
/// Where the scrapes themselves arrive.
const ADMIN_PORT: &str = "4191";

/// Requests or connections that a proxy counts together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Flow {
    Inbound(Inbound),
    Outbound(Box<Outbound>),
    /// Probes of the gateway of a linked cluster.
    Probes(String),
}

/// From a client to the pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Inbound {
    pub(crate) client: Peer,
    /// `server/route` of the policy that let a request in; absent for connections.
    pub(crate) route: Option<String>,
    /// Answered 403: how long that took says nothing of how long answers take.
    pub(crate) is_refused: bool,
}

/// From the pod to an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Outbound {
    pub(crate) server: Peer,
    pub(crate) authority: String,
    pub(crate) namespace: String,
    pub(crate) service: String,
    pub(crate) pod: String,
    pub(crate) owner: Option<(Kind, String)>,
    /// The linked cluster whose gateway this goes to.
    pub(crate) cluster: Option<String>,
    /// As of what comes in; also what gRPC calls permission denied, whose times are counted with the others'.
    pub(crate) is_refused: bool,
}

/// Who is at the other end of a connection, as far as the proxy knows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Peer {
    /// Mutual TLS; the identity is empty if the peer showed none.
    Identity(String),
    /// The application's own TLS, passed through.
    Opaque,
    /// Plain, with the reason.
    Plain(String),
}

impl Default for Peer {
    fn default() -> Self {
        Self::Plain(String::new())
    }
}

/// A flow's counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) counts: Counts,
    /// Open connections; for probes, whether the gateway is alive.
    pub(crate) open: u64,
}

/// Certificates that a process tells about.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Expiry {
    /// When its own expires; Unix time in seconds.
    pub(crate) own_at: Option<f64>,
    /// Of the mesh's issuer: how long it has left, in seconds.
    pub(crate) issuer_in: Option<f64>,
}

/// One look.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reading {
    /// When the process started, as it says itself.
    pub(crate) started_at: Option<f64>,
    pub(crate) expiry: Expiry,
    pub(crate) flows: BTreeMap<Flow, Totals>,
    /// Lines that are no samples, and samples beyond the bounds.
    pub(crate) left_out: usize,
}

impl Reading {
    pub fn of(exposition: &str) -> Self {
        let mut reading = Self::default();
        let mut probed = BTreeMap::new();
        for sample in samples(exposition) {
            match sample {
                Ok(sample) => reading.add(sample, &mut probed),
                Err(_) => reading.left_out += 1,
            }
        }
        // A controller that doesn't lead, or whose link has no gateway, knows nothing about it.
        reading
            .flows
            .retain(|flow, _| !matches!(flow, Flow::Probes(cluster) if probed.get(cluster) != Some(&true)));
        for totals in reading.flows.values_mut() {
            apart(&mut totals.counts.latency);
        }
        reading
    }

    fn add(&mut self, sample: Sample<'_>, probed: &mut BTreeMap<String, bool>) {
        let labels = &sample.labels;
        let is = |name: &str, value: &str| labels.get(name).is_some_and(|given| given == value);
        // Checked from the name on, because most samples are none of ours.
        let field: fn(&mut Totals, u64) = match sample.name {
            "process_start_time_seconds" => {
                self.started_at = Some(sample.value).filter(|at| at.is_finite());
                return;
            }
            "control_identity_cert_expiration_timestamp_seconds"
            | "identity_cert_expiration_timestamp_seconds" => {
                self.expiry.own_at = Some(sample.value).filter(|at| at.is_finite() && *at > 0.0);
                return;
            }
            "issuer_cert_ttl_seconds" => {
                self.expiry.issuer_in = Some(sample.value).filter(|left| left.is_finite());
                return;
            }
            "gateway_enabled" => {
                if let Some(cluster) = name(labels, "target_cluster_name") {
                    probed.insert(cluster, sample.value == 1.0);
                }
                return;
            }
            "response_total" if is("classification", "success") => {
                |totals, n| add(&mut totals.counts.success, n)
            }
            "response_total" => |totals, n| add(&mut totals.counts.failure, n),
            "tcp_open_connections" => |totals, n| add(&mut totals.open, n),
            "tcp_read_bytes_total" => |totals, n| add(&mut totals.counts.read, n),
            "tcp_write_bytes_total" => |totals, n| add(&mut totals.counts.written, n),
            "gateway_alive" => |totals, n| totals.open = n,
            "gateway_probes" if is("probe_successful", "true") => {
                |totals, n| add(&mut totals.counts.success, n)
            }
            "gateway_probes" => |totals, n| add(&mut totals.counts.failure, n),
            "response_latency_ms_sum" => {
                if let Some(totals) = self.totals(&sample)
                    && let Some(us) = count(sample.value * 1e3)
                {
                    add(&mut totals.counts.latency_us, us);
                }
                return;
            }
            "response_latency_ms_bucket" | "gateway_probe_latency_ms_bucket" => {
                let bound = labels.get("le").and_then(|le| le.parse::<f64>().ok());
                // Counts are cumulative, so a bound that we don't keep can be left out without harm.
                if let Some(at) = bound.and_then(|bound| BOUNDS.iter().position(|known| *known == bound))
                    && let Some(totals) = self.totals(&sample)
                    && let Some(count) = count(sample.value)
                {
                    add(&mut totals.counts.latency[at], count);
                }
                return;
            }
            _ => return,
        };
        if let Some(totals) = self.totals(&sample)
            && let Some(count) = count(sample.value)
        {
            field(totals, count);
        }
    }

    /// The counters of a sample's flow, if it is one that we keep.
    fn totals(&mut self, sample: &Sample<'_>) -> Option<&mut Totals> {
        let flow = match flow(sample) {
            Ok(flow) => flow?,
            Err(TooLong) => {
                self.left_out += 1;
                return None;
            }
        };
        if self.flows.len() >= FLOWS_MAX && !self.flows.contains_key(&flow) {
            self.left_out += 1;
            return None;
        }
        Some(self.flows.entry(flow).or_default())
    }
}

/// What a request is answered that policy doesn't let in: as HTTP, and as gRPC says it.
const FORBIDDEN: &str = "403";
const PERMISSION_DENIED: &str = "7";

struct TooLong;

fn flow(sample: &Sample<'_>) -> Result<Option<Flow>, TooLong> {
    let labels = &sample.labels;
    if labels.iter().any(|(_, value)| value.len() > NAME_BYTES_MAX) {
        return Err(TooLong);
    }
    if sample.name.starts_with("gateway_") {
        return Ok(name(labels, "target_cluster_name").map(Flow::Probes));
    }
    let text = |label: &str| name(labels, label).unwrap_or_default();
    let is_connection = sample.name.starts_with("tcp_");
    let says = |label: &str, value: &str| labels.get(label).is_some_and(|said| said == value);
    let is_refused = says("status_code", FORBIDDEN) || says("grpc_status", PERMISSION_DENIED);
    let peer = |identity: &str| match &*text("tls") {
        "true" => Peer::Identity(text(identity)),
        "opaque" => Peer::Opaque,
        _ => Peer::Plain(text("no_tls_reason")),
    };
    // The other side of a connection is the application, which is nobody else's business.
    let foreign_side = |side: &str| !is_connection || text("peer") == side;
    Ok(match &*text("direction") {
        "inbound" if foreign_side("src") && text("target_port") != ADMIN_PORT => {
            Some(Flow::Inbound(Inbound {
                client: peer("client_id"),
                route: (!is_connection).then(|| format!("{}/{}", text("srv_name"), text("route_name"))),
                is_refused,
            }))
        }
        "outbound" if foreign_side("dst") => {
            let owner = Kind::WORKLOADS
                .into_iter()
                .find_map(|kind| Some((kind, name(labels, &format!("dst_{}", kind.singular()))?)));
            Some(Flow::Outbound(Box::new(Outbound {
                server: peer("server_id"),
                authority: text("authority"),
                namespace: text("dst_namespace"),
                service: text("dst_service"),
                pod: text("dst_pod"),
                owner,
                cluster: name(labels, "dst_target_cluster"),
                is_refused,
            })))
        }
        _ => None,
    })
}

/// A label that is given and not empty.
fn name(labels: &Labels<'_>, label: &str) -> Option<String> {
    labels
        .get(label)
        .filter(|value| !value.is_empty())
        .map(|value| value.into_owned())
}

fn count(value: f64) -> Option<u64> {
    // Larger numbers have no fractions to lose, so the conversion only cuts.
    (value.is_finite() && value >= 0.0).then_some(value as u64)
}

fn add(to: &mut u64, n: u64) {
    *to = to.saturating_add(n);
}

/// Takes cumulative counts apart. Uneven ones are evened out from below, as Prometheus does.
fn apart(latency: &mut [u64]) {
    let mut below = 0;
    for count in latency {
        let total = below.max(*count);
        *count = total - below;
        below = total;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn inbound_requests_are_counted_by_client_and_route_and_admin_traffic_is_not() {
        let reading = Reading::of(
            r#"
process_start_time_seconds 5.5
response_total{direction="inbound",target_port="8080",tls="true",client_id="bot.x.serviceaccount",srv_name="web",route_name="all",status_code="200",classification="success"} 7
response_total{direction="inbound",target_port="8080",tls="true",client_id="bot.x.serviceaccount",srv_name="web",route_name="all",status_code="500",classification="failure"} 2
response_latency_ms_bucket{direction="inbound",target_port="8080",tls="true",client_id="bot.x.serviceaccount",srv_name="web",route_name="all",status_code="200",le="2"} 3
response_latency_ms_bucket{direction="inbound",target_port="8080",tls="true",client_id="bot.x.serviceaccount",srv_name="web",route_name="all",status_code="200",le="2.5"} 4
response_latency_ms_bucket{direction="inbound",target_port="8080",tls="true",client_id="bot.x.serviceaccount",srv_name="web",route_name="all",status_code="200",le="+Inf"} 7
tcp_open_connections{direction="inbound",target_port="8080",peer="src",tls="true",client_id="bot.x.serviceaccount"} 3
tcp_open_connections{direction="inbound",target_port="8080",peer="dst",tls="no_identity",no_tls_reason="loopback"} 9
tcp_open_connections{direction="inbound",target_port="4191",peer="src",tls="no_identity",no_tls_reason="no_tls_from_remote"} 9
"#,
        );
        let client = Peer::Identity("bot.x.serviceaccount".into());
        let flow = |route: Option<&str>| {
            let route = route.map(str::to_owned);
            Flow::Inbound(Inbound {
                client: client.clone(),
                route,
                is_refused: false,
            })
        };
        let mut requests = Totals::default();
        (requests.counts.success, requests.counts.failure) = (7, 2);
        requests.counts.latency[1] = 3;
        requests.counts.latency[25] = 4;
        let connections = Totals {
            open: 3,
            ..Totals::default()
        };
        assert_eq!(reading.started_at, Some(5.5));
        assert_eq!(
            reading.flows,
            BTreeMap::from([(flow(Some("web/all")), requests), (flow(None), connections)])
        );
    }

    #[test]
    fn outbound_requests_are_counted_by_endpoint() {
        let reading = Reading::of(
            r#"
response_total{direction="outbound",authority="web-svc-east:80",tls="true",server_id="gw",dst_service="web-svc-east",dst_namespace="emojivoto",dst_target_cluster="east",classification="success"} 5
response_total{direction="outbound",authority="emoji:80",tls="no_identity",no_tls_reason="disabled",dst_service="emoji",dst_namespace="emojivoto",dst_deployment="emoji",dst_pod="emoji-1",classification="success"} 1
"#,
        );
        let flows: Vec<_> = reading.flows.into_keys().collect();
        let common = |service: &str| Outbound {
            namespace: "emojivoto".into(),
            service: service.into(),
            authority: format!("{service}:80"),
            ..Outbound::default()
        };
        assert_eq!(
            flows,
            [
                Flow::Outbound(Box::new(Outbound {
                    server: Peer::Identity("gw".into()),
                    cluster: Some("east".into()),
                    ..common("web-svc-east")
                })),
                Flow::Outbound(Box::new(Outbound {
                    server: Peer::Plain("disabled".into()),
                    owner: Some((Kind::Deployment, "emoji".into())),
                    pod: "emoji-1".into(),
                    ..common("emoji")
                })),
            ]
        );
    }

    #[test]
    fn only_the_controller_that_probes_knows_about_a_gateway() {
        let text = |enabled| {
            format!(
                "gateway_alive{{target_cluster_name=\"east\"}} 1\ngateway_enabled{{target_cluster_name=\"east\"}} {enabled}\n"
            )
        };
        assert_eq!(Reading::of(&text(0)).flows, BTreeMap::new());
        let flows: Vec<_> = Reading::of(&text(1)).flows.into_iter().collect();
        let alive = Totals {
            open: 1,
            ..Totals::default()
        };
        assert_eq!(flows, [(Flow::Probes("east".into()), alive)]);
    }

    #[test]
    fn garbage_is_left_out_and_counted() {
        let reading = Reading::of(
            "response_total{direction=\"outbound\"} NaN\nresponse_total{direction=\"outbound\"} -5\n\u{1}\nx{\n",
        );
        assert_eq!(reading.left_out, 2);
        assert!(reading.flows.values().all(|totals| *totals == Totals::default()));
    }

    #[test]
    fn a_proxy_with_endless_flows_is_cut() {
        let many: String = (0..2 * FLOWS_MAX)
            .map(|i| format!("response_total{{direction=\"outbound\",authority=\"a{i}\"}} 1\n"))
            .collect();
        let reading = Reading::of(&many);
        assert_eq!((reading.flows.len(), reading.left_out), (FLOWS_MAX, FLOWS_MAX));
    }

    proptest! {
        #[test]
        fn anything_is_read_without_panic(text in "(?s).{0,300}") {
            Reading::of(&text);
        }

        #[test]
        fn any_numbers_are_read_without_panic(
            lines in proptest::collection::vec(("(response_total|response_latency_ms_bucket|tcp_open_connections|gateway_alive)", "[0-9.]{1,3}|\\+Inf", any::<f64>()), 0..20)
        ) {
            let text: String = lines
                .iter()
                .map(|(name, le, value)| format!("{name}{{direction=\"outbound\",peer=\"dst\",le=\"{le}\"}} {value}\n"))
                .collect();
            Reading::of(&text);
        }
    }
}
