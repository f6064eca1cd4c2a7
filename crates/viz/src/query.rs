//! Answers questions from the window. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::api::{Edge, Gateway, Objects, Question, RouteStat, Stat, Towards};
use crate::kinds::Kind;
use crate::pods::{Pod, Pods};
use crate::reading::{Flow, Outbound, Peer};
use crate::window::{At, Rates, Window};

/// Shown where a client has no proxy, so nobody knows who it is.
const UNMESHED: &str = "(unmeshed)";

/// Everything that is known now.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    pub window: &'a Window,
    pub pods: &'a Pods,
    pub now: At,
}

/// Where an object is: namespace (empty if it has none) and name.
type Place = (String, String);

impl Objects {
    pub(crate) fn include(&self, place: &Place) -> bool {
        let (namespace, name) = place;
        let fits =
            |wanted: &Option<String>, given: &String| wanted.as_ref().is_none_or(|wanted| wanted == given);
        fits(&self.name, name) && (namespace.is_empty() || fits(&self.namespace, namespace))
    }
}

/// The object of a kind that a pod belongs to.
pub(crate) fn of_pod(pod: &Pod, kind: Kind) -> Option<Place> {
    let namespace = &pod.name.namespace;
    let name = match kind {
        Kind::Namespace => return Some((String::new(), namespace.clone())),
        Kind::Pod => &pod.name.name,
        Kind::Service | Kind::Authority | Kind::Route => return None,
        workload => match &pod.owner {
            Some((owner, name)) if *owner == workload => name,
            _ => return None,
        },
    };
    Some((namespace.clone(), name.clone()))
}

/// The object of a kind that a pod's traffic went to. What lies behind another cluster's gateway isn't known here.
fn of_destination(flow: &Outbound, kind: Kind) -> Option<Place> {
    let name = match kind {
        Kind::Namespace => {
            return Some((String::new(), flow.namespace.clone())).filter(|_| !flow.namespace.is_empty());
        }
        Kind::Pod => &flow.pod,
        Kind::Service => &flow.service,
        Kind::Authority => &flow.authority,
        Kind::Route => return None,
        workload => match &flow.owner {
            Some((owner, name)) if *owner == workload => name,
            _ => return None,
        },
    };
    Some((flow.namespace.clone(), name.clone())).filter(|_| !name.is_empty())
}

impl Known<'_> {
    /// One row for each object that has pods or traffic.
    pub fn stat(&self, question: &Question) -> Vec<Stat> {
        let Objects { kind, .. } = question.objects;
        let mut rows: BTreeMap<Place, Rates> = BTreeMap::new();
        if question.towards.is_none() {
            let pods = self.pods.values().filter(|pod| pod.is_running);
            rows.extend(pods.filter_map(|pod| Some((of_pod(pod, kind)?, Rates::default()))));
        }
        for (pod, flow, rates) in self.window.rates(self.now, question.window) {
            let place = match (&question.towards, flow) {
                (Some(Towards::To(to)), Flow::Outbound(flow)) => {
                    let reached = of_destination(flow, to.kind).is_some_and(|place| to.include(&place));
                    of_pod(pod, kind).filter(|_| reached)
                }
                (Some(Towards::From(from)), Flow::Outbound(flow)) => {
                    let came = of_pod(pod, from.kind).is_some_and(|place| from.include(&place));
                    of_destination(flow, kind).filter(|_| came)
                }
                // Services are known to those who call them.
                (None, Flow::Outbound(flow)) if matches!(kind, Kind::Service | Kind::Authority) => {
                    of_destination(flow, kind)
                }
                (None, Flow::Inbound(flow)) if kind == Kind::Route => flow
                    .route
                    .clone()
                    .map(|route| (pod.name.namespace.clone(), route)),
                (None, Flow::Inbound(_)) => of_pod(pod, kind),
                _ => None,
            };
            if let Some(place) = place {
                *rows.entry(place).or_default() += &rates;
            }
        }
        rows.retain(|place, _| question.objects.include(place));
        if question.towards.is_some() {
            rows.retain(|_, rates| !rates.is_idle());
        }
        let row = |(place, rates): (Place, Rates)| self.row(kind, place, &rates);
        rows.into_iter().map(row).collect()
    }

    fn row(&self, kind: Kind, place: Place, rates: &Rates) -> Stat {
        let mut pods = (0, 0);
        for pod in self.pods.values().filter(|pod| pod.is_running) {
            if of_pod(pod, kind).as_ref() == Some(&place) {
                pods = (pods.0 + usize::from(pod.proxy.is_some()), pods.1 + 1);
            }
        }
        let has_pods = !matches!(kind, Kind::Service | Kind::Authority | Kind::Route);
        let success = rates.success_rate();
        let (namespace, name) = place;
        Stat {
            namespace,
            kind: kind.singular().to_owned(),
            name,
            meshed: has_pods.then(|| format!("{}/{}", pods.0, pods.1)),
            success,
            rps: success.map(|_| rates.requests()),
            latency_ms_p50: rates.latency_ms(0.5),
            latency_ms_p95: rates.latency_ms(0.95),
            latency_ms_p99: rates.latency_ms(0.99),
            tcp_open_connections: rates.open,
            tcp_read_bytes_rate: rates.read,
            tcp_write_bytes_rate: rates.written,
        }
    }

    /// What each route of policy let in at some objects.
    pub fn routes(&self, objects: &Objects, length: Duration) -> Vec<RouteStat> {
        let mut rows: BTreeMap<(Place, String), Rates> = BTreeMap::new();
        for (pod, flow, rates) in self.window.rates(self.now, length) {
            if let Flow::Inbound(flow) = flow
                && let Some(route) = &flow.route
                && let Some(place) = of_pod(pod, objects.kind).filter(|place| objects.include(place))
            {
                *rows.entry((place, route.clone())).or_default() += &rates;
            }
        }
        let row = |(((namespace, name), route), rates): ((Place, String), Rates)| {
            let (server, route) = route.split_once('/').unwrap_or(("", &route));
            RouteStat {
                namespace,
                name,
                route: route.to_owned(),
                server: server.to_owned(),
                golden: rates.golden(),
            }
        };
        rows.into_iter().map(row).collect()
    }

    /// Who spoke to whom in the last `length`, or still could. Objects are on either side.
    pub fn edges(&self, objects: &Objects, length: Duration) -> Vec<Edge> {
        let mut edges: Vec<Edge> = Vec::new();
        for (pod, flow, rates) in self.window.rates(self.now, length) {
            if rates.is_idle() {
                continue;
            }
            let edge = match flow {
                Flow::Outbound(flow) => outward(pod, flow, objects.kind),
                Flow::Inbound(flow) => inward(pod, &flow.client, objects.kind),
                Flow::Probes(_) => None,
            };
            let includes = |edge: &Edge| {
                [(&edge.src_namespace, &edge.src), (&edge.dst_namespace, &edge.dst)]
                    .into_iter()
                    // Only namespaces have none; a side without one is nobody's.
                    .filter(|(namespace, _)| !namespace.is_empty() || objects.kind == Kind::Namespace)
                    .any(|(namespace, name)| objects.include(&(namespace.clone(), name.clone())))
            };
            edges.extend(edge.filter(includes));
        }
        edges.sort();
        edges.dedup();
        edges
    }

    /// Gateways of linked clusters and their probes in the last `length`.
    pub fn gateways(&self, length: Duration) -> Vec<Gateway> {
        let mut clusters: BTreeMap<&str, Rates> = BTreeMap::new();
        for (_, flow, rates) in self.window.rates(self.now, length) {
            if let Flow::Probes(cluster) = flow {
                *clusters.entry(cluster).or_default() += &rates;
            }
        }
        let gateway = |(cluster, rates): (&str, Rates)| Gateway {
            cluster_name: cluster.to_owned(),
            alive: rates.open > 0,
            latency_ms_p50: rates.latency_ms(0.5),
            latency_ms_p95: rates.latency_ms(0.95),
            latency_ms_p99: rates.latency_ms(0.99),
        };
        clusters.into_iter().map(gateway).collect()
    }
}

/// From a pod of ours to whatever its proxy connected to.
fn outward(pod: &Pod, flow: &Outbound, kind: Kind) -> Option<Edge> {
    let (src_namespace, src) = of_pod(pod, kind)?;
    let server_id = match &flow.server {
        Peer::Identity(id) => account(id),
        Peer::Opaque | Peer::Plain(_) => None,
    };
    let (dst_namespace, dst) = match (&flow.cluster, &server_id) {
        // What answers for another cluster is its gateway, known by its identity only.
        (Some(_), Some((name, namespace))) => (namespace.clone(), name.clone()),
        (Some(_), None) => (flow.namespace.clone(), flow.service.clone()),
        (None, _) => of_destination(flow, kind)?,
    };
    let (secured, no_tls_reason) = security(&flow.server);
    Some(Edge {
        src,
        src_namespace,
        dst,
        dst_namespace,
        cluster: flow.cluster.clone().unwrap_or_default(),
        client_id: format!("{}.{}", pod.service_account, pod.name.namespace),
        server_id: server_id.map(dotted).unwrap_or_default(),
        secured,
        no_tls_reason,
    })
}

/// From a client that no proxy of this cluster tells about: one of another cluster at our gateway, or one without a
/// proxy anywhere.
fn inward(pod: &Pod, client: &Peer, kind: Kind) -> Option<Edge> {
    let (dst_namespace, dst) = of_pod(pod, kind)?;
    let client_id = match client {
        Peer::Identity(id) if pod.is_gateway => account(id),
        Peer::Identity(_) => return None,
        Peer::Opaque | Peer::Plain(_) => None,
    };
    let (src, src_namespace) = client_id
        .clone()
        .unwrap_or_else(|| (UNMESHED.to_owned(), String::new()));
    let (secured, no_tls_reason) = security(client);
    Some(Edge {
        src,
        src_namespace,
        dst,
        dst_namespace,
        cluster: String::new(),
        client_id: client_id.map(dotted).unwrap_or_default(),
        server_id: format!("{}.{}", pod.service_account, pod.name.namespace),
        secured,
        no_tls_reason,
    })
}

fn security(peer: &Peer) -> (bool, String) {
    match peer {
        Peer::Identity(id) if id.is_empty() => (false, "no_identity".to_owned()),
        Peer::Identity(_) => (true, String::new()),
        Peer::Opaque => (false, "opaque".to_owned()),
        Peer::Plain(reason) => (false, reason.clone()),
    }
}

/// Service account and namespace of an identity.
pub(crate) fn account(identity: &str) -> Option<(String, String)> {
    let (path, _) = identity.split_once(".serviceaccount.identity.")?;
    let (account, namespace) = path.rsplit_once('.')?;
    Some((account.to_owned(), namespace.to_owned()))
}

fn dotted((account, namespace): (String, String)) -> String {
    format!("{account}.{namespace}")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::pods::PodName;
    use crate::reading::Reading;

    const GATEWAY_ID: &str =
        "linkerd-gateway.linkerd-multicluster.serviceaccount.identity.linkerd.cluster.local";
    const WEB_ID: &str = "web.emojivoto.serviceaccount.identity.linkerd.cluster.local";

    fn pod(namespace: &str, deployment: &str, is_meshed: bool) -> Arc<Pod> {
        Arc::new(Pod {
            name: PodName {
                namespace: namespace.into(),
                name: format!("{deployment}-1"),
            },
            owner: Some((Kind::Deployment, deployment.into())),
            service_account: deployment.into(),
            is_running: true,
            is_gateway: deployment == "linkerd-gateway",
            proxy: is_meshed.then_some(4191),
            ..Pod::default()
        })
    }

    /// A window in which each pod told twice, ten seconds apart, the second time of ten times as much.
    struct Cluster {
        window: Window,
        pods: Pods,
    }

    impl Cluster {
        fn new(pods: &[(Arc<Pod>, &str)]) -> Self {
            let mut window = Window::new(Duration::from_secs(3600));
            for (pod, text) in pods {
                for (at, value) in [(0, "10"), (10, "100")] {
                    let text = text.replace('N', value);
                    window.record(pod, 4191, Duration::from_secs(at), Reading::of(&text));
                }
            }
            let pods = pods
                .iter()
                .map(|(pod, _)| (pod.name.clone(), pod.clone()))
                .collect();
            Self { window, pods }
        }

        fn known(&self) -> Known<'_> {
            Known {
                window: &self.window,
                pods: &self.pods,
                now: Duration::from_secs(10),
            }
        }

        /// `namespace name meshed rps success` of each row.
        fn stat(&self, objects: Objects, towards: Option<Towards>) -> Vec<String> {
            let question = Question {
                objects,
                towards,
                window: Duration::from_secs(10),
            };
            let number =
                |number: Option<f64>| number.map_or_else(|| "-".to_owned(), |number| format!("{number:.2}"));
            let line = |row: &Stat| {
                let meshed = row.meshed.as_deref().unwrap_or("-");
                format!(
                    "{} {} {meshed} {} {}",
                    row.namespace,
                    row.name,
                    number(row.rps),
                    number(row.success)
                )
            };
            self.known().stat(&question).iter().map(line).collect()
        }

        /// `namespace/src -> namespace/dst@cluster secured-or-reason` of each row.
        fn edges(&self, kind: Kind, namespace: Option<&str>) -> Vec<String> {
            let line = |edge: &Edge| {
                let secured = if edge.secured {
                    "secured"
                } else {
                    &edge.no_tls_reason
                };
                format!(
                    "{}/{} -> {}/{}@{} {secured}",
                    edge.src_namespace, edge.src, edge.dst_namespace, edge.dst, edge.cluster
                )
            };
            let edges = self.known().edges(&all(kind, namespace), Duration::from_secs(10));
            edges.iter().map(line).collect()
        }
    }

    fn all(kind: Kind, namespace: Option<&str>) -> Objects {
        Objects {
            kind,
            name: None,
            namespace: namespace.map(str::to_owned),
        }
    }

    fn named(kind: Kind, name: &str) -> Objects {
        Objects {
            name: Some(name.into()),
            ..all(kind, None)
        }
    }

    fn west() -> Cluster {
        let bot = format!(
            r#"
response_total{{direction="outbound",authority="web-svc:80",tls="true",server_id="{WEB_ID}",dst_namespace="emojivoto",dst_service="web-svc",dst_deployment="web",dst_pod="web-1",classification="success"}} N
response_total{{direction="outbound",authority="web-svc-east:80",tls="true",server_id="{GATEWAY_ID}",dst_namespace="emojivoto",dst_service="web-svc-east",dst_target_cluster="east",classification="success"}} N
"#
        );
        let web = r#"
response_total{direction="inbound",target_port="8080",tls="true",client_id="default.emojivoto.serviceaccount.identity.linkerd.cluster.local",srv_name="all",route_name="default",classification="success"} N
response_total{direction="inbound",target_port="8080",tls="true",client_id="default.emojivoto.serviceaccount.identity.linkerd.cluster.local",srv_name="all",route_name="default",classification="failure"} N
response_total{direction="inbound",target_port="8080",tls="no_identity",no_tls_reason="no_tls_from_remote",srv_name="all",route_name="default",classification="success"} N
"#;
        Cluster::new(&[
            (pod("emojivoto", "vote-bot", true), &bot),
            (pod("emojivoto", "web", true), web),
            (pod("default", "plain", false), ""),
        ])
    }

    #[test]
    fn deployments_are_judged_by_what_comes_in() {
        let rows = ["emojivoto vote-bot 1/1 - -", "emojivoto web 1/1 27.00 0.67"];
        assert_eq!(west().stat(all(Kind::Deployment, Some("emojivoto")), None), rows);
        let rows = ["default plain 0/1 - -"];
        assert_eq!(west().stat(named(Kind::Deployment, "plain"), None), rows);
        let rows = [" default 0/1 - -", " emojivoto 2/2 27.00 0.67"];
        assert_eq!(west().stat(all(Kind::Namespace, Some("x")), None), rows);
        let rows = ["emojivoto all/default - 27.00 0.67"];
        assert_eq!(west().stat(all(Kind::Route, None), None), rows);
    }

    #[test]
    fn routes_are_told_apart_by_who_was_asked() {
        let all = all(Kind::Deployment, Some("emojivoto"));
        let rows = west().known().routes(&all, Duration::from_secs(10));
        let rows: Vec<_> = rows
            .iter()
            .map(|row| (&*row.name, &*row.server, &*row.route, row.golden.rps))
            .collect();
        assert_eq!(rows, [("web", "all", "default", Some(27.0))]);
        assert_eq!(
            west()
                .known()
                .routes(&named(Kind::Deployment, "other"), Duration::from_secs(10)),
            []
        );
    }

    #[test]
    fn services_are_judged_by_those_who_call_them() {
        let rows = [
            "emojivoto web-svc - 9.00 1.00",
            "emojivoto web-svc-east - 9.00 1.00",
        ];
        assert_eq!(west().stat(all(Kind::Service, None), None), rows);
    }

    #[test]
    fn traffic_between_two_is_told_by_the_one_who_sends() {
        let to = |kind, name: &str| Some(Towards::To(named(kind, name)));
        let rows = ["emojivoto vote-bot 1/1 9.00 1.00"];
        let bots = || all(Kind::Deployment, None);
        assert_eq!(west().stat(bots(), to(Kind::Deployment, "web")), rows);
        assert_eq!(west().stat(bots(), to(Kind::Service, "web-svc-east")), rows);
        assert_eq!(west().stat(bots(), to(Kind::Service, "other")), [""; 0]);
        let from = Some(Towards::From(named(Kind::Deployment, "vote-bot")));
        let rows = ["emojivoto web 1/1 9.00 1.00"];
        assert_eq!(west().stat(all(Kind::Deployment, None), from), rows);
    }

    #[test]
    fn edges_reach_into_other_clusters_and_name_who_is_not_secured() {
        assert_eq!(
            west().edges(Kind::Deployment, Some("emojivoto")),
            [
                "/(unmeshed) -> emojivoto/web@ no_tls_from_remote",
                "emojivoto/vote-bot -> linkerd-multicluster/linkerd-gateway@east secured",
                "emojivoto/vote-bot -> emojivoto/web@ secured",
            ]
        );
        assert_eq!(west().edges(Kind::Deployment, Some("default")), [""; 0]);
        let gateway = format!(
            r#"
tcp_open_connections{{direction="inbound",peer="src",target_port="4143",tls="true",client_id="default.emojivoto.serviceaccount.identity.linkerd.cluster.local"}} 1
response_total{{direction="outbound",authority="web-svc:80",tls="true",server_id="{WEB_ID}",dst_namespace="emojivoto",dst_service="web-svc",dst_deployment="web",dst_pod="web-1",classification="success"}} N
"#
        );
        let east = Cluster::new(&[(pod("linkerd-multicluster", "linkerd-gateway", true), &gateway)]);
        assert_eq!(
            east.edges(Kind::Deployment, None),
            [
                "emojivoto/default -> linkerd-multicluster/linkerd-gateway@ secured",
                "linkerd-multicluster/linkerd-gateway -> emojivoto/web@ secured",
            ]
        );
        assert_eq!(east.edges(Kind::Deployment, Some("other")), [""; 0]);
    }

    #[test]
    fn gateways_are_known_by_their_probes() {
        let text = r#"
gateway_enabled{target_cluster_name="east"} 1
gateway_alive{target_cluster_name="east"} 1
gateway_probe_latency_ms_bucket{target_cluster_name="east",le="2"} N
gateway_probe_latency_ms_bucket{target_cluster_name="east",le="+Inf"} N
"#;
        let cluster = Cluster::new(&[(pod("linkerd-multicluster", "mirror", true), text)]);
        let gateways = cluster.known().gateways(Duration::from_secs(10));
        let [gateway] = gateways.as_slice() else {
            panic!("{gateways:?}")
        };
        assert_eq!((&*gateway.cluster_name, gateway.alive), ("east", true));
        assert!(gateway.latency_ms_p50.is_some_and(|ms| (1.0..=2.0).contains(&ms)));
    }
}
