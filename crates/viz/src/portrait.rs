//! Paints the cluster's portrait, and a Service's past, from what is known. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::api::{
    Certificate, Closeup, Denied, Golden, Line, PodStat, Portrait, Remote, Series, Service, Traffic, Workload,
};
use crate::kinds::Kind;
use crate::objects::{Key, Objects};
use crate::pods::{Pod, PodName};
use crate::query::{Known, account};
use crate::reading::{Flow, Outbound, Peer};
use crate::window::Rates;

/// Events that a portrait shows.
const EVENTS_MAX: usize = 200;
/// A workload whose pods are all gone is shown without any for this long: it may be the reason of a failover.
const GONE: Duration = Duration::from_secs(15 * 60);
/// Points of a series.
const POINTS_MAX: u32 = 180;

/// Kind, namespace and name, as edges refer to workloads.
fn id(kind: &str, namespace: &str, name: &str) -> String {
    format!("{kind}/{namespace}/{name}")
}

fn of_pod(pod: &Pod) -> (String, String, String) {
    let (kind, name) = match &pod.owner {
        Some((kind, name)) => (kind.singular(), name),
        None => ("pod", &pod.name.name),
    };
    (kind.to_owned(), pod.name.namespace.clone(), name.clone())
}

/// The id of what a pod belongs to.
pub(crate) fn id_of_pod(pod: &Pod) -> String {
    let (kind, namespace, name) = of_pod(pod);
    id(&kind, &namespace, &name)
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Direction {
    Inbound,
    Outbound,
}

/// What makes two flows the same edge.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Ends {
    from: String,
    from_account: String,
    to: String,
    to_account: String,
    cluster: String,
    service: String,
    is_secured: bool,
    no_tls_reason: String,
}

impl Known<'_> {
    /// The cluster over the last `length`; `now` is Unix time in seconds.
    pub(crate) fn portrait(&self, objects: &Objects, length: Duration, now: f64) -> Portrait {
        let mut inbound: BTreeMap<(String, String, String), Rates> = BTreeMap::new();
        let mut called: BTreeMap<Key, Rates> = BTreeMap::new();
        let mut edges: BTreeMap<Ends, Rates> = BTreeMap::new();
        let mut probes: BTreeMap<&str, Rates> = BTreeMap::new();
        let mut crossing: BTreeMap<&str, Rates> = BTreeMap::new();
        for (pod, flow, rates) in self.window.rates(self.now, length) {
            match flow {
                Flow::Inbound(_) => *inbound.entry(of_pod(pod)).or_default() += &rates,
                Flow::Probes(cluster) => *probes.entry(cluster).or_default() += &rates,
                Flow::Outbound(flow) => {
                    if !flow.service.is_empty() {
                        let service = (flow.namespace.clone(), flow.service.clone());
                        *called.entry(service).or_default() += &rates;
                    }
                    // What the mesh asks for itself, such as probes, is told apart.
                    if let Some(cluster) = flow.cluster.as_ref().filter(|_| !pod.is_system) {
                        *crossing.entry(cluster).or_default() += &rates;
                    }
                }
            }
            // Who spoke to whom within the hour is still drawn, faintly, so that the picture doesn't jump.
            let is_drawn = matches!(flow, Flow::Outbound(_)) || !rates.is_idle();
            if let Some(ends) = ends(pod, flow).filter(|_| is_drawn) {
                *edges.entry(ends).or_default() += &rates;
            }
        }
        let workloads = self.workloads(&inbound);
        let links = objects.links.values().map(|link| {
            let (probes, crossing) = (probes.get(&*link.cluster), crossing.get(&*link.cluster));
            let mut link = link.clone();
            link.is_alive = probes.map(|rates| rates.open > 0);
            link.probes = probes.map(Rates::golden).unwrap_or_default();
            link.requests = crossing.map(Rates::golden).unwrap_or_default();
            link.bytes_per_second = crossing.map_or(0.0, |rates| rates.read + rates.written);
            link
        });
        let splits = objects.splits.values().map(|split| {
            let mut split = split.clone();
            for backend in &mut split.backends {
                let key = (split.namespace.clone(), backend.service.clone());
                let mirrors = objects
                    .services
                    .get(&key)
                    .and_then(|facts| facts.mirrors.as_ref());
                backend.cluster = mirrors.map(|(cluster, _)| cluster.clone()).unwrap_or_default();
            }
            split
        });
        let denied = objects.denied.iter().map(|((resource, namespace), why)| Denied {
            resource: (*resource).to_owned(),
            namespace: namespace.clone(),
            why: why.clone(),
        });
        let mut events: Vec<_> = objects.events.values().cloned().collect();
        events.sort_by(|one, other| other.at.total_cmp(&one.at));
        events.truncate(EVENTS_MAX);
        Portrait {
            at: now,
            window_seconds: length.as_secs(),
            denied: denied.collect(),
            workloads,
            services: services(objects, &called),
            edges: edges.into_iter().map(edge).collect(),
            splits: splits.collect(),
            links: links.collect(),
            certificates: self.certificates(objects, now),
            events,
            ..Portrait::default()
        }
    }

    fn workloads(&self, inbound: &BTreeMap<(String, String, String), Rates>) -> Vec<Workload> {
        let mut workloads: BTreeMap<(String, String, String), Workload> = BTreeMap::new();
        let describe = |pod: &Pod| {
            let (kind, namespace, name) = of_pod(pod);
            Workload {
                id: id(&kind, &namespace, &name),
                golden: inbound
                    .get(&(kind.clone(), namespace.clone(), name.clone()))
                    .map(Rates::golden)
                    .unwrap_or_default(),
                account: format!("{}.{namespace}", pod.service_account),
                is_gateway: pod.is_gateway,
                is_system: pod.is_system,
                kind,
                namespace,
                name,
                ..Workload::default()
            }
        };
        // A finished Job isn't missed, nor is a pod of nobody's.
        let missed = |pod: &&Pod| matches!(&pod.owner, Some((kind, _)) if *kind != Kind::Job);
        for pod in self.window.pods(self.now, GONE).filter(missed) {
            workloads.entry(of_pod(pod)).or_insert_with(|| describe(pod));
        }
        for pod in self.pods.values().filter(|pod| pod.is_running) {
            let workload = workloads.entry(of_pod(pod)).or_insert_with(|| describe(pod));
            workload.pods += 1;
            workload.meshed += usize::from(pod.proxy.is_some());
        }
        for (pod, expiry) in self.window.expiries(self.now) {
            if let (Some(workload), Some(at)) = (workloads.get_mut(&of_pod(pod)), expiry.own_at) {
                workload.expires_at = Some(workload.expires_at.map_or(at, |first| first.min(at)));
            }
        }
        workloads.into_values().collect()
    }

    fn certificates(&self, objects: &Objects, now: f64) -> Vec<Certificate> {
        let mut certificates: Vec<Certificate> = objects
            .anchors
            .values()
            .flat_map(|anchors| anchors.0.clone())
            .collect();
        let mut proxies: Vec<(f64, &Pod)> = Vec::new();
        let mut issuer: Option<f64> = None;
        for (pod, expiry) in self.window.expiries(self.now) {
            proxies.extend(expiry.own_at.map(|at| (at, pod)));
            issuer = issuer.into_iter().chain(expiry.issuer_in).reduce(f64::min);
        }
        certificates.extend(issuer.map(|left| Certificate {
            kind: "issuer".into(),
            expires_at: now + left,
            count: 1,
            ..Certificate::default()
        }));
        let first = proxies.iter().min_by(|(one, _), (other, _)| one.total_cmp(other));
        certificates.extend(first.map(|(at, pod)| Certificate {
            kind: "proxies".into(),
            name: pod.name.to_string(),
            expires_at: *at,
            count: proxies.len(),
        }));
        certificates
    }

    /// A Service's last `length` in steps: itself and whatever a split shares its traffic with.
    pub(crate) fn series(
        &self,
        objects: &Objects,
        service: &Key,
        length: Duration,
        every: Duration,
        now: f64,
    ) -> Series {
        let (namespace, name) = service;
        let split = objects
            .splits
            .values()
            .find(|split| split.namespace == *namespace && split.service == *name);
        let backends = split.into_iter().flat_map(|split| &split.backends);
        let names: BTreeSet<&str> = backends
            .map(|backend| &*backend.service)
            .chain([&**name])
            .collect();
        let (step, lines) = self.past(length, every, |_, flow| match flow {
            Flow::Outbound(flow) if flow.namespace == *namespace && names.contains(&*flow.service) => {
                Some((&*flow.service, flow.cluster.as_deref().unwrap_or_default()))
            }
            _ => None,
        });
        let line = |((service, cluster), points): ((&str, &str), Vec<Golden>)| Line {
            service: service.to_owned(),
            cluster: cluster.to_owned(),
            points,
        };
        Series {
            end: now,
            step_seconds: step.as_secs_f64(),
            lines: lines.into_iter().map(line).collect(),
        }
    }

    /// A workload's last `length` in steps, and its pods now, as the last `glance` saw them.
    pub(crate) fn closeup(
        &self,
        (kind, namespace, name): (Kind, &str, &str),
        length: Duration,
        every: Duration,
        glance: Duration,
        now: f64,
    ) -> Closeup {
        let wanted = id(kind.singular(), namespace, name);
        let is_wanted = |pod: &Pod| pod.name.namespace == namespace && id_of_pod(pod) == wanted;
        let (step, mut lines) = self.past(length, every, |pod, flow| match flow {
            Flow::Probes(_) => None,
            _ if !is_wanted(pod) => None,
            Flow::Inbound(_) => Some(Direction::Inbound),
            Flow::Outbound(_) => Some(Direction::Outbound),
        });
        let mut pods: BTreeMap<&PodName, (PodStat, Rates)> = BTreeMap::new();
        for pod in self.pods.values().filter(|pod| pod.is_running && is_wanted(pod)) {
            let stat = PodStat {
                name: pod.name.name.clone(),
                is_meshed: pod.proxy.is_some(),
                version: pod.version.clone(),
                ..PodStat::default()
            };
            pods.insert(&pod.name, (stat, Rates::default()));
        }
        let inbound = self.window.rates_by(self.now, glance, |pod, flow| {
            (matches!(flow, Flow::Inbound(_)) && is_wanted(pod)).then_some(&pod.name)
        });
        for (name, rates) in inbound {
            if let Some((_, sum)) = pods.get_mut(name) {
                *sum += &rates;
            }
        }
        for (pod, expiry) in self.window.expiries(self.now) {
            if let Some((stat, _)) = pods.get_mut(&pod.name) {
                stat.expires_at = stat.expires_at.or(expiry.own_at);
            }
        }
        let pods = pods.into_values().map(|(stat, rates)| PodStat {
            golden: rates.golden(),
            ..stat
        });
        let mut points = |direction| lines.remove(&direction).unwrap_or_default();
        Closeup {
            end: now,
            step_seconds: step.as_secs_f64(),
            inbound: points(Direction::Inbound),
            outbound: points(Direction::Outbound),
            pods: pods.collect(),
        }
    }

    /// The last `length` in steps: one line for each key that a flow is given.
    fn past<'a, K: Ord>(
        &'a self,
        length: Duration,
        every: Duration,
        key: impl Fn(&'a Pod, &'a Flow) -> Option<K> + Copy + 'a,
    ) -> (Duration, BTreeMap<K, Vec<Golden>>) {
        let step = (length / POINTS_MAX).max(every).max(Duration::from_secs(1));
        // Two looks at least, or there is no rate.
        let over = step.max(every * 5 / 2);
        let count = (length.as_secs_f64() / step.as_secs_f64()) as u32;
        let mut lines: BTreeMap<K, Vec<Golden>> = BTreeMap::new();
        for point in 0..count {
            let at = self.now.saturating_sub(step * (count - 1 - point));
            let mut sums: BTreeMap<K, Rates> = BTreeMap::new();
            for (key, rates) in self.window.rates_by(at, over, key) {
                *sums.entry(key).or_default() += &rates;
            }
            for (line, rates) in sums {
                let points = lines.entry(line).or_default();
                points.resize(point as usize, Golden::default());
                // No requests are not the same as no look.
                points.push(Golden {
                    rps: rates.is_seen.then(|| rates.requests()),
                    ..rates.golden()
                });
            }
        }
        for points in lines.values_mut() {
            points.resize(count as usize, Golden::default());
        }
        (step, lines)
    }
}

fn services(objects: &Objects, called: &BTreeMap<Key, Rates>) -> Vec<Service> {
    let keys: BTreeSet<&Key> = objects.services.keys().chain(called.keys()).collect();
    let services = keys.into_iter().filter_map(|key| {
        let facts = objects.services.get(key).cloned().unwrap_or_default();
        if facts.is_probe {
            return None;
        }
        let mirrors = facts.mirrors.map(|(cluster, (namespace, name))| Remote {
            cluster,
            service: format!("{namespace}/{name}"),
        });
        Some(Service {
            namespace: key.0.clone(),
            name: key.1.clone(),
            is_exported: facts.is_exported,
            is_system: facts.is_system,
            mirrors,
            golden: called.get(key).map(Rates::golden).unwrap_or_default(),
        })
    });
    services.collect()
}

fn edge((ends, rates): (Ends, Rates)) -> Traffic {
    Traffic {
        golden: rates.golden(),
        connections: rates.open,
        bytes_per_second: rates.read + rates.written,
        from: ends.from,
        from_account: ends.from_account,
        to: ends.to,
        to_account: ends.to_account,
        cluster: ends.cluster,
        service: ends.service,
        is_secured: ends.is_secured,
        no_tls_reason: ends.no_tls_reason,
    }
}

/// Where a flow begins and ends. What a client in the mesh sends is told by its own proxy, not by the server's.
fn ends(pod: &Pod, flow: &Flow) -> Option<Ends> {
    let here = id_of_pod(pod);
    let (peer, mut ends) = match flow {
        Flow::Probes(_) => return None,
        Flow::Outbound(flow) => {
            let ends = Ends {
                from: here,
                from_account: String::new(),
                to: destination(flow),
                to_account: account_of(&flow.server).unwrap_or_default(),
                cluster: flow.cluster.clone().unwrap_or_default(),
                service: match &*flow.service {
                    "" => String::new(),
                    service => format!("{}/{service}", flow.namespace),
                },
                is_secured: true,
                no_tls_reason: String::new(),
            };
            (&flow.server, ends)
        }
        Flow::Inbound(flow) => {
            let from_account = match &flow.client {
                Peer::Identity(_) if !pod.is_gateway => return None,
                client => account_of(client).unwrap_or_default(),
            };
            let ends = Ends {
                from: String::new(),
                from_account,
                to: here,
                to_account: format!("{}.{}", pod.service_account, pod.name.namespace),
                cluster: String::new(),
                service: String::new(),
                is_secured: true,
                no_tls_reason: String::new(),
            };
            (&flow.client, ends)
        }
    };
    ends.no_tls_reason = match peer {
        Peer::Identity(id) if id.is_empty() => "no_identity".to_owned(),
        Peer::Identity(_) => String::new(),
        Peer::Opaque => "opaque".to_owned(),
        Peer::Plain(reason) if reason.is_empty() => "plain".to_owned(),
        Peer::Plain(reason) => reason.clone(),
    };
    ends.is_secured = ends.no_tls_reason.is_empty();
    Some(ends)
}

/// The workload that a flow went to, if it is one of this cluster's. Of a pod that was called by its address only the
/// identity tells the namespace.
pub(crate) fn destination(flow: &Outbound) -> String {
    let namespace = match (&*flow.namespace, &flow.server) {
        ("", Peer::Identity(identity)) => account(identity).map(|(_, namespace)| namespace),
        (namespace, _) => Some(namespace.to_owned()),
    };
    let namespace = namespace.unwrap_or_default();
    match (&flow.cluster, &flow.owner) {
        (Some(_), _) => String::new(),
        (None, Some((kind, name))) => id(kind.singular(), &namespace, name),
        (None, None) if !flow.pod.is_empty() => id("pod", &namespace, &flow.pod),
        (None, None) => String::new(),
    }
}

fn account_of(peer: &Peer) -> Option<String> {
    let Peer::Identity(identity) = peer else {
        return None;
    };
    let (account, namespace) = account(identity)?;
    Some(format!("{account}.{namespace}"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::pods::{PodName, Pods};
    use crate::reading::Reading;
    use crate::window::Window;

    const GATEWAY: &str =
        "linkerd-gateway.linkerd-multicluster.serviceaccount.identity.linkerd.cluster.local";

    fn pod(deployment: &str) -> Arc<Pod> {
        Arc::new(Pod {
            name: PodName {
                namespace: "emojivoto".into(),
                name: format!("{deployment}-1"),
            },
            owner: Some((Kind::Deployment, deployment.into())),
            service_account: "default".into(),
            is_running: true,
            proxy: Some(4191),
            ..Pod::default()
        })
    }

    /// vote-bot asks ten times a second for `seconds`, the web in its own cluster first, then the one in the other;
    /// web is gone.
    fn west() -> (Window, Pods, Objects) {
        let mut window = Window::new(Duration::from_secs(3600));
        let bot = |at: u64| {
            let (near, far) = (10 * at.min(30), 10 * at.saturating_sub(30));
            format!(
                "process_start_time_seconds 1\ncontrol_identity_cert_expiration_timestamp_seconds 5000\n\
                 response_total{{direction=\"outbound\",tls=\"true\",server_id=\"web.emojivoto.serviceaccount.identity.linkerd.x\",dst_namespace=\"emojivoto\",dst_service=\"web-svc\",dst_deployment=\"web\",classification=\"success\"}} {near}\n\
                 response_total{{direction=\"outbound\",tls=\"true\",server_id=\"{GATEWAY}\",dst_namespace=\"emojivoto\",dst_service=\"web-svc-east\",dst_target_cluster=\"east\",classification=\"success\"}} {far}\n"
            )
        };
        for at in (0..=60).step_by(10) {
            window.record(
                &pod("vote-bot"),
                4191,
                Duration::from_secs(at),
                Reading::of(&bot(at)),
            );
        }
        window.record(
            &pod("web"),
            4191,
            Duration::from_secs(10),
            Reading::of("process_start_time_seconds 1\n"),
        );
        let bot = pod("vote-bot");
        let mut objects = Objects::default();
        objects.splits.insert(
            ("emojivoto".into(), "web-svc".into()),
            crate::api::Split {
                namespace: "emojivoto".into(),
                service: "web-svc".into(),
                backends: ["web-svc", "web-svc-east"]
                    .map(|service| crate::api::Backend {
                        service: service.into(),
                        ..Default::default()
                    })
                    .into(),
                ..Default::default()
            },
        );
        let facts = crate::objects::ServiceFacts {
            mirrors: Some(("east".into(), ("emojivoto".into(), "web-svc".into()))),
            ..Default::default()
        };
        objects
            .services
            .insert(("emojivoto".into(), "web-svc-east".into()), facts);
        (window, Pods::from([(bot.name.clone(), bot)]), objects)
    }

    fn known<'a>(window: &'a Window, pods: &'a Pods) -> Known<'a> {
        Known {
            window,
            pods,
            now: Duration::from_secs(60),
        }
    }

    #[test]
    fn a_workload_has_a_past_in_both_directions_and_pods() {
        let (window, mut pods, _) = west();
        let name = PodName {
            namespace: "emojivoto".into(),
            name: "vote-bot-1".into(),
        };
        let versioned = Pod {
            version: "v1".into(),
            ..(*pods[&name]).clone()
        };
        pods.insert(name, Arc::new(versioned));
        let known = Known {
            window: &window,
            pods: &pods,
            now: Duration::from_secs(60),
        };
        let minute = Duration::from_secs(60);
        let closeup = |name| {
            let workload = (Kind::Deployment, "emojivoto", name);
            known.closeup(
                workload,
                minute,
                Duration::from_secs(10),
                Duration::from_secs(40),
                1_000.0,
            )
        };
        let bot = closeup("vote-bot");
        assert_eq!((bot.end, bot.step_seconds, bot.inbound.len()), (1_000.0, 10.0, 0));
        let last = bot
            .outbound
            .last()
            .and_then(|point| point.rps)
            .unwrap_or_default();
        assert!(bot.outbound.len() == 6 && (last - 10.0).abs() < 0.1, "{bot:?}");
        let pods: Vec<_> = bot
            .pods
            .iter()
            .map(|pod| (&*pod.name, pod.is_meshed, &*pod.version, pod.expires_at))
            .collect();
        assert_eq!(pods, [("vote-bot-1", true, "v1", Some(5_000.0))]);
        assert_eq!(
            closeup("nobody"),
            Closeup {
                end: 1_000.0,
                step_seconds: 10.0,
                ..Closeup::default()
            }
        );
    }

    #[test]
    fn who_is_gone_and_who_was_spoken_to_stays_in_the_picture() {
        let (window, pods, objects) = west();
        let portrait = known(&window, &pods).portrait(&objects, Duration::from_secs(20), 1_000.0);
        let workloads: Vec<_> = portrait
            .workloads
            .iter()
            .map(|one| (&*one.id, one.pods, one.expires_at))
            .collect();
        let expected = [
            ("deployment/emojivoto/vote-bot", 1, Some(5_000.0)),
            ("deployment/emojivoto/web", 0, None),
        ];
        assert_eq!(workloads, expected);
        let edges: Vec<_> = portrait
            .edges
            .iter()
            .map(|one| {
                (
                    &*one.to,
                    &*one.to_account,
                    &*one.cluster,
                    &*one.service,
                    one.golden.rps,
                    one.is_secured,
                )
            })
            .collect();
        let gateway = "linkerd-gateway.linkerd-multicluster";
        let expected = [
            ("", gateway, "east", "emojivoto/web-svc-east", Some(10.0), true),
            (
                "deployment/emojivoto/web",
                "web.emojivoto",
                "",
                "emojivoto/web-svc",
                None,
                true,
            ),
        ];
        assert_eq!(edges, expected);
        assert_eq!(portrait.splits[0].backends[1].cluster, "east");
        assert_eq!(portrait.certificates[0].expires_at, 5_000.0);
    }

    #[test]
    fn a_service_s_past_has_a_line_for_each_backend_of_its_split() {
        let (window, pods, objects) = west();
        let service = ("emojivoto".to_owned(), "web-svc".to_owned());
        let every = Duration::from_secs(10);
        let series =
            known(&window, &pods).series(&objects, &service, Duration::from_secs(60), every, 1_000.0);
        let lines: Vec<_> = series
            .lines
            .iter()
            .map(|line| {
                let rps = line.points.iter().map(|one| one.rps.unwrap_or_default().round());
                (&*line.service, &*line.cluster, rps.collect::<Vec<_>>())
            })
            .collect();
        assert_eq!((series.step_seconds, series.end), (10.0, 1_000.0));
        let [(near, "", before), (far, "east", after)] = lines.as_slice() else {
            panic!("{lines:?}")
        };
        assert_eq!((*near, *far), ("web-svc", "web-svc-east"));
        assert_eq!((before.len(), after.len()), (6, 6));
        assert!(before[1] > 9.0 && before[5] == 0.0, "{before:?}");
        assert!(after[1] == 0.0 && after[5] > 9.0, "{after:?}");
    }

    #[test]
    fn collectors_understand_portraits_of_other_versions() {
        let (window, pods, objects) = west();
        let portrait = known(&window, &pods).portrait(&objects, Duration::from_secs(20), 1_000.0);
        let text = serde_json::to_string(&portrait).expect("JSON");
        assert_eq!(
            serde_json::from_str::<Portrait>(&text).expect("a portrait"),
            portrait
        );
        let older = r#"{"cluster": "east", "workloads": [{"id": "x", "later": 1}], "later": {}}"#;
        let older: Portrait = serde_json::from_str(older).expect("a portrait");
        assert_eq!(older.workloads[0].id, "x");
    }
}
