//! Where the time of requests goes: from the proxy of who asks, through a gateway perhaps, to the application. Pure.
//!
//! No request is traced. Each proxy measures how long answers take, with everything behind it; the difference between
//! two proxies on the way is what lies between them. So the legs of a path add up to what the one who asks measures.
//! What is refused takes no time worth telling, so it is left out of the means and counted by itself.
//! These are means, because only sums and counts can be taken apart; and a proxy in the middle doesn't know for whom
//! it asks, so where a gateway is shared its part is the mean of all who come through it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::api::{Leg, Measured, Objects as Wanted, Onward, Over, Path};
use crate::objects::{Key, Objects};
use crate::pods::Pod;
use crate::portrait::{destination, id_of_pod};
use crate::query::{Known, account, of_pod};
use crate::reading::{Flow, Peer};
use crate::window::Rates;

/// Paths in one answer.
const PATHS_MAX: usize = 64;

/// A path as far as the cluster that it begins in knows it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Departing {
    from: String,
    /// `namespace/name`.
    service: String,
    /// The linked cluster that answers; empty for this one.
    cluster: String,
    /// What the Service is called there.
    remote: Option<Key>,
    sent: Measured,
    /// Sent and refused, a second; not counted in what was sent.
    refused_rps: f64,
    /// Whether their time is counted in what was sent, because nobody told them apart.
    is_refusal_timed: bool,
    /// As the proxies of those who answer measured it, in this cluster.
    arrived: Option<Measured>,
}

impl Departing {
    /// The cluster to ask for the rest, and for which of its Services.
    pub(crate) fn remote(&self) -> Option<(String, Key)> {
        Some((self.cluster.clone(), self.remote.clone()?))
    }
}

/// What was sent on a way.
#[derive(Default)]
struct Sent {
    taken: Rates,
    refused: Rates,
    /// Who took it.
    to: BTreeSet<String>,
}

/// What tells paths apart.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Way {
    from: String,
    account: String,
    service: Key,
    cluster: String,
}

impl Known<'_> {
    /// Paths from some workloads, or all, to a Service, or all; the busiest first.
    pub(crate) fn departing(
        &self,
        objects: &Objects,
        from: Option<&Wanted>,
        to: Option<&Key>,
        length: Duration,
    ) -> Vec<Departing> {
        // Who asks for a Service whose traffic is split is answered by its backends.
        let split = to.and_then(|(namespace, name)| {
            let mut splits = objects.splits.values();
            splits.find(|split| split.namespace == *namespace && split.service == *name)
        });
        let backends: BTreeSet<&str> = split
            .into_iter()
            .flat_map(|split| split.backends.iter().map(|backend| &*backend.service))
            .collect();
        let is_asked = |namespace: &str, name: &str| {
            to.is_none_or(|to| to.0 == namespace && (to.1 == name || backends.contains(name)))
        };
        let mut ways: BTreeMap<Way, Sent> = BTreeMap::new();
        for (pod, flow, rates) in self.window.rates(self.now, length) {
            let Flow::Outbound(flow) = flow else { continue };
            let is_wanted =
                from.is_none_or(|from| of_pod(pod, from.kind).is_some_and(|place| from.include(&place)));
            if pod.is_gateway
                || !is_wanted
                || flow.service.is_empty()
                || !is_asked(&flow.namespace, &flow.service)
            {
                continue;
            }
            let way = Way {
                from: id_of_pod(pod),
                account: own_account(pod),
                service: (flow.namespace.clone(), flow.service.clone()),
                cluster: flow.cluster.clone().unwrap_or_default(),
            };
            let sent = ways.entry(way).or_default();
            if flow.is_refused {
                sent.refused += &rates;
            } else {
                sent.taken += &rates;
                sent.to.insert(destination(flow));
            }
        }
        let mut paths: Vec<Departing> = ways
            .into_iter()
            .filter_map(|(way, Sent { taken, refused, to })| {
                let refused_rps = refused.requests();
                let is_refusal_timed = refused_rps > 0.0 && refused.mean_ms().is_none();
                let sent = match Measured::of(&way.from, &taken).filter(|sent| sent.rps > 0.0) {
                    Some(sent) => sent,
                    None if refused_rps > 0.0 => Measured {
                        at: way.from.clone(),
                        ..Measured::default()
                    },
                    None => return None,
                };
                let arrived = match &*way.cluster {
                    "" => self.arrived(&to, &way.account, length),
                    _ => None,
                };
                let mirrored = objects
                    .services
                    .get(&way.service)
                    .and_then(|facts| facts.mirrors.clone());
                Some(Departing {
                    from: way.from,
                    service: format!("{}/{}", way.service.0, way.service.1),
                    remote: mirrored
                        .map(|(_, remote)| remote)
                        .filter(|_| !way.cluster.is_empty()),
                    cluster: way.cluster,
                    sent,
                    refused_rps,
                    is_refusal_timed,
                    arrived,
                })
            })
            .collect();
        let tried = |path: &Departing| path.sent.rps + path.refused_rps;
        paths.sort_by(|one, other| tried(other).total_cmp(&tried(one)));
        paths.truncate(PATHS_MAX);
        paths
    }

    /// How a Service's requests that came through the gateway went on.
    pub(crate) fn onward(&self, (namespace, name): &Key, length: Duration) -> Onward {
        let (mut sum, mut to, mut gateway) = (Rates::default(), BTreeSet::new(), None);
        for (pod, flow, rates) in self.window.rates(self.now, length) {
            if let Flow::Outbound(flow) = flow
                && pod.is_gateway
                && flow.namespace == *namespace
                && flow.service == *name
                && !flow.is_refused
            {
                sum += &rates;
                to.insert(destination(flow));
                gateway = Some(pod);
            }
        }
        Onward {
            gateway: gateway.and_then(|pod| Measured::of(&id_of_pod(pod), &sum)),
            target: gateway.and_then(|pod| self.arrived(&to, &own_account(pod), length)),
        }
    }

    /// What came to some workloads from an account, as they measured it.
    fn arrived(&self, workloads: &BTreeSet<String>, from: &str, length: Duration) -> Option<Measured> {
        let (mut sum, mut at) = (Rates::default(), BTreeSet::new());
        for (pod, flow, rates) in self.window.rates(self.now, length) {
            let Flow::Inbound(flow) = flow else { continue };
            let Peer::Identity(client) = &flow.client else {
                continue;
            };
            let is_from =
                account(client).is_some_and(|(name, namespace)| format!("{name}.{namespace}") == from);
            let workload = id_of_pod(pod);
            if is_from && !flow.is_refused && workloads.contains(&workload) && rates.requests() > 0.0 {
                sum += &rates;
                at.insert(workload);
            }
        }
        let names: Vec<String> = at.into_iter().collect();
        Measured::of(&names.join(", "), &sum)
    }
}

fn own_account(pod: &Pod) -> String {
    format!("{}.{}", pod.service_account, pod.name.namespace)
}

impl Measured {
    fn of(at: &str, rates: &Rates) -> Option<Self> {
        Some(Self {
            at: at.to_owned(),
            rps: rates.requests(),
            mean_ms: rates.mean_ms()?,
        })
    }
}

/// A path, with what the cluster that answers says of the rest, or why it says nothing.
pub(crate) fn join(path: Departing, onward: Option<Result<Onward, String>>) -> Path {
    if path.sent.rps == 0.0 {
        return Path {
            from: path.from,
            service: path.service,
            cluster: path.cluster,
            refused_rps: path.refused_rps,
            unknown: "every request was refused".into(),
            ..Path::default()
        };
    }
    let mut stations = vec![(path.sent.clone(), String::new())];
    let mut unknown = String::new();
    match onward {
        _ if path.is_refusal_timed => {
            unknown = "gRPC calls were refused, and their time is counted with the others'".into();
        }
        None => match path.arrived {
            Some(arrived) => stations.push((arrived, String::new())),
            None if !path.cluster.is_empty() => {
                unknown = format!("no mirror says what the Service is called in {}", path.cluster);
            }
            None => unknown = "who answers has no proxy, or was not read yet".to_owned(),
        },
        Some(Ok(Onward { gateway, target })) => {
            let is_reached = target.is_some();
            let rest = gateway.into_iter().chain(target);
            stations.extend(rest.map(|measured| (measured, path.cluster.clone())));
            if !is_reached {
                unknown = format!("cluster {} does not know who answers", path.cluster);
            }
        }
        Some(Err(why)) => unknown = format!("the collector of {} does not say: {why}", path.cluster),
    }
    let mut legs = Vec::new();
    let mut rest = path.sent.mean_ms;
    for pair in stations.windows(2) {
        let [(here, cluster), (there, next)] = pair else {
            continue;
        };
        // Measured on requests that differ a little, a part can seem longer than the whole.
        let behind = there.mean_ms.min(rest);
        legs.push(Leg {
            from: here.at.clone(),
            to: there.at.clone(),
            cluster: next.clone(),
            over: if cluster == next { Over::Network } else { Over::Wan },
            mean_ms: rest - behind,
            rps: there.rps,
        });
        rest = behind;
    }
    if let Some((last, cluster)) = stations.last() {
        legs.push(Leg {
            from: last.at.clone(),
            to: String::new(),
            cluster: cluster.clone(),
            over: if unknown.is_empty() {
                Over::Application
            } else {
                Over::Unknown
            },
            mean_ms: rest,
            rps: last.rps,
        });
    }
    Path {
        from: path.from,
        service: path.service,
        cluster: path.cluster,
        rps: path.sent.rps,
        refused_rps: path.refused_rps,
        mean_ms: path.sent.mean_ms,
        legs,
        unknown,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::kinds::Kind;
    use crate::objects::ServiceFacts;
    use crate::pods::{PodName, Pods};
    use crate::reading::Reading;
    use crate::window::Window;

    const GATEWAY: &str = "linkerd-gateway.linkerd-multicluster.serviceaccount.identity.linkerd.x";

    fn pod(namespace: &str, name: &str) -> Arc<Pod> {
        Arc::new(Pod {
            name: PodName {
                namespace: namespace.into(),
                name: format!("{name}-1"),
            },
            owner: Some((Kind::Deployment, name.into())),
            service_account: name.into(),
            is_running: true,
            is_gateway: name == "linkerd-gateway",
            proxy: Some(4191),
            ..Pod::default()
        })
    }

    /// Labels, so many answers, and how many milliseconds they took in all.
    type Counted<'a> = (&'a str, u64, f64);

    /// What each pod counts in ten seconds.
    fn window(pods: &[(&Arc<Pod>, &[Counted<'_>])]) -> Window {
        let mut window = Window::new(Duration::from_secs(60));
        for (pod, flows) in pods {
            for part in [0.0, 1.0] {
                let lines = flows.iter().map(|(labels, n, ms)| {
                    let (n, ms) = (*n as f64 * part, ms * part);
                    format!(
                        "response_total{{{labels},classification=\"success\"}} {n}\n\
                         response_latency_ms_bucket{{{labels},le=\"+Inf\"}} {n}\n\
                         response_latency_ms_sum{{{labels}}} {ms}\n"
                    )
                });
                let text = format!("process_start_time_seconds 1\n{}", lines.collect::<String>());
                window.record(
                    pod,
                    4191,
                    Duration::from_secs((10.0 * part) as u64),
                    Reading::of(&text),
                );
            }
        }
        window
    }

    fn known<'a>(window: &'a Window, pods: &'a Pods) -> Known<'a> {
        Known {
            window,
            pods,
            now: Duration::from_secs(10),
        }
    }

    /// `from -> to over mean` of each leg.
    fn legs(path: &Path) -> Vec<String> {
        let name = |id: &str| id.rsplit('/').next().unwrap_or_default().to_owned();
        path.legs
            .iter()
            .map(|leg| {
                format!(
                    "{} -> {} {:?} {:.2}",
                    name(&leg.from),
                    name(&leg.to),
                    leg.over,
                    leg.mean_ms
                )
            })
            .collect()
    }

    fn sum(path: &Path) -> f64 {
        path.legs.iter().map(|leg| leg.mean_ms).sum()
    }

    fn bot() -> Departing {
        let labels = format!(
            "direction=\"outbound\",tls=\"true\",server_id=\"{GATEWAY}\",dst_namespace=\"emojivoto\",\
             dst_service=\"web-svc-east\",dst_target_cluster=\"east\""
        );
        let bot = pod("emojivoto", "vote-bot");
        let window = window(&[(&bot, &[(&labels, 100, 2_500.0)])]);
        let mut objects = Objects::default();
        let facts = ServiceFacts {
            mirrors: Some(("east".into(), ("emojivoto".into(), "web-svc".into()))),
            ..ServiceFacts::default()
        };
        objects
            .services
            .insert(("emojivoto".into(), "web-svc-east".into()), facts);
        let pods = Pods::new();
        let to = ("emojivoto".to_owned(), "web-svc-east".to_owned());
        let known = known(&window, &pods);
        assert_eq!(
            known.departing(
                &objects,
                None,
                Some(&("x".into(), "other".into())),
                Duration::from_secs(10)
            ),
            []
        );
        let mut paths = known.departing(&objects, None, Some(&to), Duration::from_secs(10));
        assert_eq!(paths.len(), 1);
        paths.remove(0)
    }

    /// What east knows: the gateway needed 15 ms, web 12 of them; others than the gateway ask web too, for longer.
    fn east() -> Onward {
        let (gateway, web) = (
            pod("linkerd-multicluster", "linkerd-gateway"),
            pod("emojivoto", "web"),
        );
        let out = "direction=\"outbound\",tls=\"true\",server_id=\"web.emojivoto.serviceaccount.identity.linkerd.x\",\
                   dst_namespace=\"emojivoto\",dst_service=\"web-svc\",dst_deployment=\"web\"";
        let of = |client: &str| {
            format!("direction=\"inbound\",tls=\"true\",client_id=\"{client}\",target_port=\"80\"")
        };
        let window = window(&[
            (&gateway, &[(out, 100, 1_500.0)]),
            (
                &web,
                &[
                    (&of(GATEWAY), 100, 1_200.0),
                    (&of("other.x.serviceaccount.identity.linkerd.x"), 100, 90_000.0),
                ],
            ),
        ]);
        let pods = Pods::new();
        known(&window, &pods).onward(&("emojivoto".into(), "web-svc".into()), Duration::from_secs(10))
    }

    #[test]
    fn the_legs_of_a_path_between_clusters_add_up_to_what_the_client_measured() {
        let path = join(bot(), Some(Ok(east())));
        assert_eq!(
            legs(&path),
            [
                "vote-bot -> linkerd-gateway Wan 10.00",
                "linkerd-gateway -> web Network 3.00",
                "web ->  Application 12.00",
            ]
        );
        assert!((sum(&path) - 25.0).abs() < 1e-9 && (path.mean_ms - 25.0).abs() < 1e-9);
        assert_eq!(
            (&*path.service, &*path.cluster, &*path.unknown),
            ("emojivoto/web-svc-east", "east", "")
        );
    }

    #[test]
    fn what_another_cluster_does_not_say_is_said_to_be_unknown() {
        let path = join(bot(), Some(Err("it is cut off".into())));
        assert_eq!(legs(&path), ["vote-bot ->  Unknown 25.00"]);
        assert_eq!(path.unknown, "the collector of east does not say: it is cut off");
    }

    #[test]
    fn a_part_is_never_longer_than_the_whole() {
        let mut onward = east();
        if let Some(gateway) = &mut onward.gateway {
            gateway.mean_ms = 40.0;
        }
        let path = join(bot(), Some(Ok(onward)));
        assert!(path.legs.iter().all(|leg| leg.mean_ms >= 0.0), "{path:?}");
        assert!((sum(&path) - path.mean_ms).abs() < 1e-9);
    }

    /// What vote-bot sends to web and is refused, as its proxy and web's tell it, with labels of the refusal.
    fn refused(refusal: &str, refused: Counted<'_>, taken: Option<Counted<'_>>) -> Path {
        let (bot, web) = (pod("emojivoto", "vote-bot"), pod("emojivoto", "web"));
        let out = "direction=\"outbound\",tls=\"true\",server_id=\"w\",dst_namespace=\"emojivoto\",\
                   dst_service=\"web-svc\",dst_deployment=\"web\"";
        let within = "direction=\"inbound\",tls=\"true\",target_port=\"80\",\
                      client_id=\"vote-bot.emojivoto.serviceaccount.identity.linkerd.x\"";
        let turned_away = format!("{out},{refusal}");
        let mut sent = vec![(&*turned_away, refused.1, refused.2)];
        sent.extend(taken.map(|(_, n, ms)| (out, n, ms)));
        let arrived: Vec<Counted<'_>> = taken
            .map(|(_, n, ms)| (within, n, ms * 0.8))
            .into_iter()
            .collect();
        let window = window(&[(&bot, &*sent), (&web, &*arrived)]);
        let pods = Pods::new();
        let paths = known(&window, &pods).departing(&Objects::default(), None, None, Duration::from_secs(10));
        assert_eq!(paths.len(), 1, "{paths:?}");
        join(paths[0].clone(), None)
    }

    #[test]
    fn what_is_refused_is_counted_and_takes_no_time() {
        let path = refused("status_code=\"403\"", ("", 990, 495.0), Some(("", 10, 200.0)));
        assert_eq!(
            legs(&path),
            ["vote-bot -> web Network 4.00", "web ->  Application 16.00"]
        );
        assert_eq!((path.rps, path.refused_rps, &*path.unknown), (1.0, 99.0, ""));
        let path = refused("status_code=\"403\"", ("", 100, 50.0), None);
        assert_eq!((path.rps, path.refused_rps, path.mean_ms), (0.0, 10.0, 0.0));
        assert_eq!(
            (path.legs.len(), &*path.unknown),
            (0, "every request was refused")
        );
    }

    #[test]
    fn within_a_cluster_only_what_the_client_itself_asked_counts() {
        let (bot, web) = (pod("emojivoto", "vote-bot"), pod("emojivoto", "web"));
        let out = "direction=\"outbound\",tls=\"true\",server_id=\"w\",dst_namespace=\"emojivoto\",\
                   dst_service=\"web-svc\",dst_deployment=\"web\"";
        let of = |account: &str| {
            format!(
                "direction=\"inbound\",tls=\"true\",client_id=\"{account}.serviceaccount.identity.linkerd.x\",target_port=\"80\""
            )
        };
        let window = window(&[
            (&bot, &[(out, 50, 100.0)]),
            (
                &web,
                &[
                    (&of("vote-bot.emojivoto"), 50, 75.0),
                    (&of("other.emojivoto"), 50, 5_000.0),
                ],
            ),
        ]);
        let pods = Pods::new();
        let paths = known(&window, &pods).departing(&Objects::default(), None, None, Duration::from_secs(10));
        let path = join(paths[0].clone(), None);
        assert_eq!(
            legs(&path),
            ["vote-bot -> web Network 0.50", "web ->  Application 1.50"]
        );
    }
}
