//! What was seen, judged: which of it is as it must be, and what becomes of requests.
//!
//! Pure. Decisions are not made here: where a request goes and who lets it in is what the proxy's own functions say of
//! the control plane's answers ([`hawser_proxy::decision`]); here they are put into words, with a reason and advice.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use hawser_control::failover::Status;
use hawser_control::view::Key;
use hawser_core::authz::{Client, Denial, Source};
use hawser_crd::keys;
use hawser_proxy::decision::{self, Backend, NoWay, Peer, Refused, Speech, Tls, Way};
use http::Request;
use k8s_openapi::api::core::v1::Service;
use kube::ResourceExt;
use linkerd2_proxy_api::inbound::Server;

use super::finding::{About, Explanation, Finding, Share, Verdict};
use super::look::plain;
use super::seen::{Behind, Caller, CallingPod, Elsewhere, Found, Mode, Seen, Target, There};
use crate::diagnostics::policy;

/// Stands for a client of whom nobody knows more than that it is in the mesh.
const ANYBODY: &str = "anybody.invalid";

pub(super) fn judge(seen: &Seen, request: &Request<()>) -> Explanation {
    let mut judge = Judge {
        request,
        findings: Vec::new(),
        decision: Vec::new(),
    };
    judge.caller(seen);
    judge.hop(seen, 1.0, &[]);
    let succeeds = !judge.decision.is_empty() && judge.decision.iter().all(|share| share.succeeds);
    let worst = judge.findings.iter().map(|finding| finding.verdict).max();
    Explanation {
        from: match &seen.caller {
            Caller::Anybody => "a meshed pod".to_owned(),
            Caller::Pod(pod) | Caller::Gateway(pod) => format!("pod {}", key_of(pod)),
        },
        to: match &seen.service {
            Found::Here(_) => format!("service {}:{}", seen.target, seen.port),
            Found::Missing { .. } => format!("service {}", seen.target),
        },
        request: format!("{} {}", request.method(), request.uri()),
        verdict: match worst.unwrap_or(Verdict::Ok) {
            // What fails beside the way of requests is a warning.
            Verdict::Fails if succeeds => Verdict::Warning,
            _ if !succeeds => Verdict::Fails,
            other => other,
        },
        succeeds,
        decision: judge.decision,
        findings: judge.findings,
    }
}

fn key_of(pod: &CallingPod) -> String {
    pod.key.as_ref().map_or_else(|| "?".to_owned(), Key::to_string)
}

struct Judge<'a> {
    request: &'a Request<()>,
    findings: Vec<Finding>,
    decision: Vec<Share>,
}

/// How far some of the requests have come.
#[derive(Clone, Copy)]
struct Part<'a> {
    share: f64,
    way: &'a [String],
}

impl Part<'_> {
    fn then(&self, hop: impl Into<String>) -> Vec<String> {
        let mut way = self.way.to_vec();
        way.push(hop.into());
        way
    }
}

impl Judge<'_> {
    fn say(
        &mut self,
        cluster: &str,
        about: About,
        subject: impl Into<String>,
        verdict: Verdict,
        seen: impl Into<String>,
    ) -> &mut Finding {
        self.findings.push(Finding {
            about,
            cluster: cluster.to_owned(),
            subject: subject.into(),
            verdict,
            seen: seen.into(),
            why: None,
            attempt: None,
            standing_by: false,
        });
        let last = self.findings.len() - 1;
        &mut self.findings[last]
    }

    fn end(&mut self, part: &Part<'_>, end: impl Into<String>, succeeds: bool) {
        let (end, way) = (end.into(), part.way.to_vec());
        let same = self
            .decision
            .iter_mut()
            .find(|share| share.end == end && share.way == way);
        match same {
            Some(same) => same.share += part.share,
            None => self.decision.push(Share {
                share: part.share,
                way,
                end,
                succeeds,
            }),
        }
    }

    fn caller(&mut self, seen: &Seen) {
        let cluster = &seen.cluster;
        match &seen.caller {
            Caller::Pod(pod) => {
                let subject = format!("pod {}", key_of(pod));
                match &pod.identity {
                    Some(identity) => {
                        self.say(
                            cluster,
                            About::Client,
                            subject,
                            Verdict::Ok,
                            format!("meshed, as {identity}"),
                        );
                    }
                    None => {
                        let seen = "has no proxy: it speaks plain text, splits and routes don't hold for it";
                        self.say(cluster, About::Client, subject, Verdict::Warning, seen)
                            .attempt(
                                "kubectl get deploy NAME -o yaml | hawser inject - | kubectl apply -f -",
                            );
                    }
                }
            }
            Caller::Anybody => {
                self.say(
                    cluster,
                    About::Client,
                    "a meshed pod",
                    Verdict::Ok,
                    "nobody in particular; --to asks for one that exists",
                );
            }
            Caller::Gateway(_) => {}
        }
    }

    /// From a caller to a Service of the same cluster.
    fn hop(&mut self, seen: &Seen, share: f64, way: &[String]) {
        let part = Part { share, way };
        let Some(service) = self.name(seen, &part) else {
            return;
        };
        let taken = match &seen.way {
            Ok(taken) => taken,
            Err(no) => return self.no_way(seen, service, *no, &part),
        };
        let unmeshed = is_unmeshed(&seen.caller);
        if !unmeshed {
            self.protocol(seen, service, taken);
        }
        self.weights(seen, taken, unmeshed);
        let total: f64 = taken.backends.iter().map(|(_, weight)| f64::from(*weight)).sum();
        let mut used = Vec::new();
        for (at, (backend, weight)) in taken.backends.iter().enumerate() {
            let of_all = match total {
                0.0 => f64::from(u32::from(at == 0)),
                total => f64::from(*weight) / total,
            };
            let share = share * of_all;
            if of_all == 0.0 {
                continue;
            }
            match backend {
                Backend::Service(path) => {
                    used.push(plain(path));
                    let way = part.then(short(path));
                    let part = Part { share, way: &way };
                    if let Some(behind) = seen.behind.get(path) {
                        self.behind(seen, behind, taken.speech, &part);
                    }
                }
                Backend::Address(peer) => {
                    self.end(&Part { share, ..part }, format!("{}", peer.dialled), true);
                }
                Backend::Fails { status, message } => {
                    self.say(
                        &seen.cluster,
                        About::Weights,
                        route_of(taken),
                        Verdict::Fails,
                        message.clone(),
                    )
                    .why(format!("the caller's proxy answers {status} by itself"))
                    .attempt("correct the route's backendRefs");
                    self.end(
                        &Part { share, ..part },
                        format!("answered {status}: {message}"),
                        false,
                    );
                }
                Backend::Unusable => {
                    let seen_as = "the control plane names a backend that can't be used";
                    self.say(
                        &seen.cluster,
                        About::Weights,
                        route_of(taken),
                        Verdict::Fails,
                        seen_as,
                    )
                    .attempt("hawser check");
                    self.end(&Part { share, ..part }, seen_as, false);
                }
            }
        }
        self.standing_by(seen, taken.speech, &used);
    }

    /// Those who have no traffic now: what fails there is no failure yet.
    fn standing_by(&mut self, seen: &Seen, speech: Speech, used: &[String]) {
        for (path, behind) in &seen.behind {
            if used.contains(&plain(path)) {
                continue;
            }
            let (findings, decisions) = (self.findings.len(), self.decision.len());
            let way = [short(path)];
            self.behind(
                seen,
                behind,
                speech,
                &Part {
                    share: 0.0,
                    way: &way,
                },
            );
            self.decision.truncate(decisions);
            for finding in &mut self.findings[findings..] {
                finding.verdict = finding.verdict.min(Verdict::Warning);
                finding.standing_by = true;
            }
        }
    }

    fn name<'s>(&mut self, seen: &'s Seen, part: &Part<'_>) -> Option<&'s Service> {
        let cluster = &seen.cluster;
        let subject = format!("service {}", seen.target);
        let service = match &seen.service {
            Found::Here(service) => service.as_ref(),
            Found::Missing { near, elsewhere } => {
                let finding = self.say(cluster, About::Name, subject, Verdict::Fails, "it does not exist");
                missing(finding, &seen.target, near, elsewhere);
                if let Some(other) = &seen.unmirrored {
                    self.unmirrored(seen, other);
                }
                self.end(part, format!("there is no service {}", seen.target), false);
                return None;
            }
        };
        let spec = service.spec.clone().unwrap_or_default();
        if spec.type_.as_deref() == Some("ExternalName") {
            let name = spec.external_name.unwrap_or_default();
            self.say(
                cluster,
                About::Name,
                subject,
                Verdict::Warning,
                format!("only a name for {name}"),
            )
            .why("requests go there without the mesh's help; it was not looked at");
            self.end(part, format!("{name}, outside of the mesh"), true);
            return None;
        }
        let ports: Vec<String> = spec
            .ports
            .iter()
            .flatten()
            .map(|port| match &port.name {
                Some(name) => format!("{} ({name})", port.port),
                None => port.port.to_string(),
            })
            .collect();
        let is_there = spec
            .ports
            .iter()
            .flatten()
            .any(|port| port.port == i32::from(seen.port));
        let headless = spec.cluster_ip.as_deref() == Some("None");
        if !is_there && !headless {
            let seen_as = format!("it has no port {}", seen.port);
            self.say(cluster, About::Name, subject, Verdict::Fails, seen_as)
                .why(format!("its ports are {}", ports.join(", ")))
                .attempt("--port with one of them");
            self.end(part, format!("{} has no port {}", seen.target, seen.port), false);
            return None;
        }
        let kind = if headless { "headless" } else { "exists" };
        let seen_as = format!("{kind}, with port {}", ports.join(", "));
        self.say(cluster, About::Name, subject, Verdict::Ok, seen_as);
        Some(service)
    }

    /// A missing Service whose name is that of a mirror.
    fn unmirrored(&mut self, seen: &Seen, other: &Elsewhere) {
        self.link(&seen.cluster, other);
        let Ok(there) = &other.there else { return };
        if self.export(other, there) {
            let subject = format!("link {}", other.cluster);
            let message = of_status(other).unwrap_or_else(|| "its controller has not made it yet".into());
            let seen_as = format!(
                "service {} is exported, and not mirrored as {}",
                other.remote, seen.target
            );
            self.say(&seen.cluster, About::Link, subject, Verdict::Fails, seen_as)
                .why(message)
                .attempt("hawser mc check");
        }
    }

    fn no_way(&mut self, seen: &Seen, service: &Service, no: NoWay, part: &Part<'_>) {
        let cluster = &seen.cluster;
        let subject = format!("service {}", seen.target);
        let request = format!("{} {}", self.request.method(), self.request.uri());
        let end = match no {
            NoWay::NotExported => {
                let seen_as = "its gateway refuses it to clients of other clusters: it is not exported";
                let label = service.labels().get(keys::EXPORTED);
                self.say(cluster, About::Export, subject, Verdict::Fails, seen_as)
                    .why(match label {
                        Some(value) => format!("its label {} is {value}", keys::EXPORTED),
                        None => format!("it has no label {}", keys::EXPORTED),
                    })
                    .attempt(label_it(cluster, &seen.target));
                "refused by the gateway: not exported"
            }
            NoWay::NoRoute => {
                let seen_as = format!("no route takes {request}");
                self.say(cluster, About::Protocol, subject, Verdict::Fails, seen_as)
                    .why("of a service with routes, what none of them matches is answered 404")
                    .attempt("--method and --path as the application sends them; kubectl get httproutes");
                "answered 404: no route"
            }
            NoWay::Forbidden => {
                let seen_as = format!("port {} may not be connected to", seen.port);
                self.say(cluster, About::Protocol, subject, Verdict::Fails, seen_as)
                    .attempt("--port with one that the service has");
                "refused: no such port"
            }
            NoWay::Refused | NoWay::Unknown => {
                let seen_as = "the control plane does not answer for it";
                self.say(cluster, About::Name, subject, Verdict::Fails, seen_as)
                    .why("destination or policy refuses it, or is silent")
                    .attempt("hawser check");
                "refused: the control plane does not answer for it"
            }
        };
        self.end(part, end, false);
    }

    fn protocol(&mut self, seen: &Seen, service: &Service, taken: &Way) {
        let subject = format!("service {}:{}", seen.target, seen.port);
        let ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
        let port = ports.into_iter().find(|port| port.port == i32::from(seen.port));
        let name = port.and_then(|port| port.name.as_deref()).unwrap_or_default();
        let app = port.and_then(|port| port.app_protocol.as_deref());
        let named = |names: &[&str]| names.iter().any(|prefix| name.starts_with(prefix));
        let is_http = named(&["http", "grpc", "h2"]) || app.is_some_and(|app| app.contains("h"));
        let annotated = service.annotations().get(keys::OPAQUE_PORTS);
        match taken.speech {
            Speech::Opaque => {
                let why = match (annotated, app) {
                    (Some(list), _) => format!("annotation {}: {list:?}", keys::OPAQUE_PORTS),
                    (None, Some(app)) => format!("its appProtocol is {app}"),
                    (None, None) => "the port is one of the mesh's default list".to_owned(),
                };
                let seen_as = "opaque: carried as bytes, without looking for HTTP";
                let finding = self.say(&seen.cluster, About::Protocol, subject, Verdict::Ok, seen_as);
                finding.why(why);
                if is_http {
                    finding.verdict = Verdict::Warning;
                    finding.seen = format!("opaque, though port {name:?} says HTTP");
                    finding.attempt(format!(
                        "without {} its requests are balanced, measured, retried and routed one by one",
                        keys::OPAQUE_PORTS
                    ));
                }
            }
            Speech::Detected => {
                let finding = self.say(
                    &seen.cluster,
                    About::Protocol,
                    subject,
                    Verdict::Ok,
                    "HTTP if it is, bytes otherwise: the proxy looks",
                );
                if named(&["mysql", "postgres", "pg", "smtp", "redis", "mongo", "amqp"]) {
                    finding.verdict = Verdict::Warning;
                    finding
                        .why(format!(
                            "where the server speaks first, as port {name:?} suggests, looking takes 10 s"
                        ))
                        .attempt(format!(
                            "annotate the service and its pods with {}: \"{}\"",
                            keys::OPAQUE_PORTS,
                            seen.port
                        ));
                }
            }
            Speech::Http1 => {
                self.say(&seen.cluster, About::Protocol, subject, Verdict::Ok, "HTTP/1");
            }
            Speech::Http2 => {
                self.say(&seen.cluster, About::Protocol, subject, Verdict::Ok, "HTTP/2");
            }
        }
    }

    fn weights(&mut self, seen: &Seen, taken: &Way, unmeshed: bool) {
        let cluster = &seen.cluster;
        let split = seen.splits.first();
        if unmeshed {
            if let Some(split) = split {
                let subject = format!("trafficsplit {}", Key::of(split));
                let seen_as = "does not hold for a client without a proxy";
                self.say(cluster, About::Weights, subject, Verdict::Warning, seen_as)
                    .attempt("mesh the client");
            }
            return;
        }
        let own = format!("{}.{}.", seen.target.name, seen.target.namespace);
        let itself = matches!(&taken.backends[..], [(Backend::Service(path), _)] if path.starts_with(&own));
        let Some(split) = split else {
            let subject = route_of(taken);
            if itself {
                let seen_as = "all requests go to the service itself";
                self.say(
                    cluster,
                    About::Weights,
                    format!("service {}", seen.target),
                    Verdict::Ok,
                    seen_as,
                );
            } else {
                self.say(
                    cluster,
                    About::Weights,
                    subject,
                    Verdict::Ok,
                    shares(&taken.backends),
                );
            }
            return;
        };
        let subject = format!("trafficsplit {}", Key::of(split));
        let backends = &split.spec.backends;
        if backends.iter().all(|backend| backend.weight.0.is_zero()) {
            let seen_as = "all its weights are 0: it counts as none";
            self.say(cluster, About::Weights, subject, Verdict::Warning, seen_as)
                .attempt(format!(
                    "kubectl -n {} edit trafficsplit {}",
                    seen.target.namespace,
                    split.name_any()
                ));
            return;
        }
        let list: Vec<String> = backends
            .iter()
            .map(|backend| format!("{} {}", backend.service, backend.weight.0))
            .collect();
        let primary = split.annotations().get(keys::FAILOVER_PRIMARY);
        let decided = split.annotations().get(keys::FAILOVER_STATUS);
        let decided = decided.and_then(|text| Status::parse(text));
        let finding = self.say(cluster, About::Weights, subject, Verdict::Ok, list.join(", "));
        match &decided {
            Some(status) => {
                let since = status.since.strftime("%Y-%m-%dT%H:%M:%SZ");
                finding.why(format!("{} since {since}: {}", status.phase, status.message));
                if status.phase != "Primary" {
                    finding.verdict = Verdict::Warning;
                    finding.attempt("hawser failover status; kubectl describe trafficsplit");
                }
            }
            None if split.labels().contains_key("failover.linkerd.io/controlled-by") => {
                let primary = primary.map_or("the first backend", String::as_str);
                finding.why(format!("nothing has failed over: {primary} is the primary"));
            }
            None => {
                finding.why("as somebody wrote them: no controller looks after it");
            }
        }
        if seen.splits.len() > 1 {
            let others: Vec<String> = seen.splits.iter().skip(1).map(ResourceExt::name_any).collect();
            finding.verdict = Verdict::Warning;
            finding.attempt(format!("delete those that don't count: {}", others.join(", ")));
        }
    }

    /// The endpoints of one backend.
    fn behind(&mut self, seen: &Seen, behind: &Behind, speech: Speech, part: &Part<'_>) {
        let cluster = &seen.cluster;
        let subject = format!("service {}", behind.key);
        if behind.service.is_none() {
            self.say(
                cluster,
                About::Endpoints,
                subject,
                Verdict::Fails,
                "it does not exist",
            )
            .why(format!(
                "{} is a backend of service {}",
                behind.key.name, seen.target
            ))
            .attempt("make it, or take it out of the split or route");
            return self.end(part, format!("there is no service {}", behind.key), false);
        }
        for other in &behind.elsewhere {
            self.link(cluster, other);
            if other.mode == Mode::Gateway {
                self.probes(cluster, other);
            }
        }
        let peers = match &behind.peers {
            Ok(peers) if !peers.is_empty() => peers,
            Ok(_) => {
                self.nobody(seen, behind);
                self.beyond(behind);
                self.reasons_beyond(behind);
                return self.end(part, format!("{} has no endpoints", behind.key.name), false);
            }
            Err(why) => {
                self.say(
                    cluster,
                    About::Endpoints,
                    subject,
                    Verdict::Fails,
                    "nobody says where they are",
                )
                .why(why.clone())
                .attempt("hawser check");
                return self.end(part, format!("no endpoints of {}: {why}", behind.key.name), false);
            }
        };
        self.endpoints(cluster, behind, peers);
        self.beyond(behind);
        let mut each: BTreeMap<SocketAddr, (Part<'_>, &Peer)> = BTreeMap::new();
        // A pod beyond those that were looked at is like the others.
        let known = peers.iter().filter(|peer| outlook(behind, peer).is_some());
        let known: Vec<&Peer> = known.collect();
        let shown: Vec<&Peer> = if known.is_empty() {
            peers.iter().collect()
        } else {
            known
        };
        let share = part.share / count(shown.len());
        for peer in &shown {
            each.insert(peer.address, (Part { share, ..*part }, peer));
        }
        let gateways: Vec<&Elsewhere> = behind
            .elsewhere
            .iter()
            .filter(|other| other.mode == Mode::Gateway)
            .collect();
        if let [gateway] = gateways[..] {
            // All its addresses lead to the same place.
            if let Some(peer) = shown.first() {
                self.through(seen, gateway, peer, speech, part);
            }
            return;
        }
        let mut said = Said::default();
        for (part, peer) in each.values() {
            self.pod(seen, behind, peer, speech, part, &mut said);
        }
    }

    fn endpoints(&mut self, cluster: &str, behind: &Behind, peers: &[Peer]) {
        let mut shown: Vec<String> = peers
            .iter()
            .take(3)
            .map(|peer| {
                let there = peer.labels.get("target_cluster");
                match (peer.labels.get("pod"), there) {
                    (Some(pod), Some(there)) => format!("{} (pod {pod} of {there})", peer.address),
                    (Some(pod), None) => format!("{} (pod {pod})", peer.address),
                    (None, Some(there)) => format!("{} (gateway of {there})", peer.address),
                    (None, None) => peer.address.to_string(),
                }
            })
            .collect();
        if peers.len() > shown.len() {
            shown.push(format!("{} more", peers.len() - shown.len()));
        }
        let subject = format!("service {}", behind.key);
        let seen_as = format!("{} ready: {}", peers.len(), shown.join(", "));
        self.say(cluster, About::Endpoints, subject, Verdict::Ok, seen_as);
    }

    /// Why a Service has no endpoints.
    fn nobody(&mut self, seen: &Seen, behind: &Behind) {
        let subject = format!("service {}", behind.key);
        let (namespace, listed) = (&behind.key.namespace, &behind.listed);
        let finding = self.say(
            &seen.cluster,
            About::Endpoints,
            subject,
            Verdict::Fails,
            "none is ready",
        );
        if let Some(other) = behind.elsewhere.first() {
            let there = &other.cluster;
            let remote = &other.remote;
            match other.mode {
                Mode::Gateway => finding.why(format!(
                    "a mirror has none while the gateway of {there} is dead or service {remote} has no ready pod there"
                )),
                Mode::Direct => finding.why(format!("no meshed pod of service {remote} is ready in {there}")),
            };
            finding.attempt("hawser mc check");
            return;
        }
        if listed.selector.is_empty() {
            finding
                .why("it selects no pods, and nobody wrote endpoints for it")
                .attempt(format!(
                    "kubectl -n {namespace} set selector service {} app=NAME",
                    behind.key.name
                ));
            return;
        }
        if listed.selected.is_empty() {
            finding
                .why(format!("no pod has the labels {}", listed.selector))
                .attempt(format!(
                    "kubectl -n {namespace} get pods --show-labels; scale up what should answer"
                ));
            return;
        }
        if listed.ready > 0 {
            finding
                .why(
                    "the endpoints are listed, and destination does not offer them: their pods are not known",
                )
                .attempt("hawser check");
            return;
        }
        let pods: Vec<String> = listed
            .selected
            .iter()
            .map(|(pod, why)| match why {
                Some(why) => format!("{pod} is not ready ({why})"),
                None => format!("{pod} is ready, but not listed"),
            })
            .collect();
        finding.why(pods.join("; "));
        if let Some((pod, _)) = listed.selected.first() {
            finding.attempt(format!("kubectl -n {namespace} describe pod {pod}"));
        }
    }

    fn link(&mut self, cluster: &str, other: &Elsewhere) {
        let subject = format!("link {}", other.cluster);
        let again = format!(
            "hawser mc link --context {0} --cluster-name {0} | kubectl --context {cluster} apply -f -",
            other.cluster
        );
        let Some(link) = &other.link else {
            self.say(cluster, About::Link, subject, Verdict::Fails, "it does not exist")
                .why("nobody looks after the mirrors of that cluster any more")
                .attempt(again);
            return;
        };
        let conditions = link.status.iter().flat_map(|status| &status.conditions);
        let ready = conditions
            .into_iter()
            .find(|condition| condition.type_ == "Ready");
        let (verdict, seen) = match ready {
            None => (Verdict::Warning, "no controller has said how it fares".to_owned()),
            Some(ready) => match (ready.status.as_str(), ready.reason.as_str()) {
                // Of the gateway there is a finding of its own.
                ("True", _) | (_, "GatewayDead") => {
                    (Verdict::Ok, "its controller follows the cluster".to_owned())
                }
                (_, "InvalidSpec") => (Verdict::Fails, format!("it can't be used: {}", ready.message)),
                (_, reason) => (Verdict::Warning, format!("{reason}: {}", ready.message)),
            },
        };
        let finding = self.say(cluster, About::Link, &subject, verdict, seen);
        if verdict != Verdict::Ok {
            finding.attempt("hawser mc check");
        }
        if let Err(why) = &other.there {
            let seen_as = format!("the side of {} was not looked at", other.cluster);
            self.say(cluster, About::Link, subject, Verdict::Warning, seen_as)
                .why(why.clone())
                .attempt("a kubeconfig with a context for that cluster");
        }
    }

    /// What the prober of a gateway says.
    fn probes(&mut self, cluster: &str, other: &Elsewhere) {
        let subject = format!("gateway of {}", other.cluster);
        let (verdict, seen) = match &other.probed {
            Some(Ok(())) => (Verdict::Ok, "it answers probes from here"),
            Some(Err(_)) => (Verdict::Fails, "it can't be reached from here"),
            None if other.link.is_none() => return,
            None => (Verdict::Warning, "nobody could be asked whether it answers"),
        };
        let finding = self.say(cluster, About::Gateway, subject, verdict, seen);
        if let Some(Err(why)) = &other.probed {
            finding.why(why.clone());
        }
        if verdict != Verdict::Ok {
            finding.attempt(format!("hawser mc gateways --context {cluster}"));
        }
    }

    /// What stands in other clusters for a Service of this one.
    fn beyond(&mut self, behind: &Behind) {
        for other in &behind.elsewhere {
            let Ok(there) = &other.there else { continue };
            if other.mode == Mode::Gateway && there.blind.is_none() {
                let subject = format!("gateway of {}", other.cluster);
                let ready = there.gateways.iter().filter(|gateway| gateway.ready).count();
                let seen = format!("{ready} of {} pods ready", there.gateways.len());
                let finding = self.say(&there.context, About::Gateway, subject, Verdict::Ok, seen);
                if ready == 0 {
                    finding.verdict = Verdict::Fails;
                    finding.attempt(format!(
                        "kubectl --context {} get pods -A -l app={}",
                        there.context,
                        keys::GATEWAY_NAME
                    ));
                }
            }
            self.export(other, there);
            if let Some(why) = &there.blind {
                let subject = format!("link {}", other.cluster);
                let seen = "beyond its services nothing was looked at";
                self.say(&there.context, About::Link, subject, Verdict::Warning, seen)
                    .why(why.clone())
                    .attempt("a kubeconfig with a context for that cluster");
            }
        }
    }

    /// What a gateway would find is why a mirror has no endpoints; no request gets there now.
    fn reasons_beyond(&mut self, behind: &Behind) {
        let decisions = self.decision.len();
        for other in &behind.elsewhere {
            if let Ok(There {
                through: Some(through),
                ..
            }) = &other.there
            {
                self.hop(through, 0.0, &[]);
            }
        }
        self.decision.truncate(decisions);
    }

    /// Whether a Service of another cluster is there and may be used from here.
    fn export(&mut self, other: &Elsewhere, there: &There) -> bool {
        let subject = format!("service {}", other.remote);
        let service = match &there.service {
            Found::Here(service) => service,
            Found::Missing { near, elsewhere } => {
                let seen_as = "it does not exist";
                let finding = self.say(&there.context, About::Export, subject, Verdict::Fails, seen_as);
                missing(finding, &other.remote, near, elsewhere);
                return false;
            }
        };
        let Some(link) = &other.link else { return true };
        let labels = service.labels();
        let selectors = match other.mode {
            Mode::Gateway => [link.spec.exported(), Ok(Default::default())],
            Mode::Direct => [link.spec.remote_discovery(), link.spec.federated()],
        };
        if selectors
            .iter()
            .flatten()
            .any(|selector| selector.matches(labels))
        {
            let label = [keys::EXPORTED, keys::FEDERATED]
                .into_iter()
                .find_map(|key| Some(format!("{key}={}", labels.get(key)?)));
            let seen_as = format!(
                "exported: {}",
                label.unwrap_or_else(|| "the link selects it".into())
            );
            self.say(&there.context, About::Export, subject, Verdict::Ok, seen_as);
            return true;
        }
        let why = match labels.get(keys::EXPORTED) {
            Some(value) => format!(
                "its label {}={value} is not what link {} selects",
                keys::EXPORTED,
                other.cluster
            ),
            None => format!("it has no label {}", keys::EXPORTED),
        };
        self.say(
            &there.context,
            About::Export,
            subject,
            Verdict::Fails,
            "not exported",
        )
        .why(why)
        .attempt(label_it(&there.context, &other.remote));
        false
    }

    /// Through another cluster's gateway.
    fn through(&mut self, seen: &Seen, other: &Elsewhere, peer: &Peer, speech: Speech, part: &Part<'_>) {
        let name = format!("gateway of {}", other.cluster);
        let way = part.then(&name);
        let next = Part { way: &way, ..*part };
        if matches!(other.probed, Some(Err(_))) {
            return self.end(part, format!("the {name} can't be reached"), false);
        }
        let expected = match (&peer.tls, is_unmeshed(&seen.caller)) {
            (_, true) => {
                let why = "a client without a proxy can't prove who it is";
                self.say(
                    &seen.cluster,
                    About::Identity,
                    &name,
                    Verdict::Fails,
                    "takes nobody in plain text",
                )
                .why(why)
                .attempt("mesh the client: hawser inject");
                return self.end(part, format!("refused by the {name}: {why}"), false);
            }
            (Tls::Mutual(id), _) => id.as_str(),
            (Tls::Plain(_) | Tls::Unusable, _) => {
                self.say(
                    &seen.cluster,
                    About::Identity,
                    &name,
                    Verdict::Fails,
                    "the link expects no identity of it",
                )
                .why("without one nothing is sent encrypted, and no gateway takes plain text")
                .attempt(format!("link {} again", other.cluster));
                return self.end(part, format!("refused by the {name}: plain text"), false);
            }
        };
        let Ok(there) = &other.there else {
            return self.end(&next, "nobody looked further", true);
        };
        if there.blind.is_some() {
            return self.end(&next, "nobody looked further", true);
        }
        let Some(gateway) = there.gateways.iter().find(|gateway| gateway.ready) else {
            return self.end(part, format!("the {name} has no ready pod"), false);
        };
        if !self.identity(&there.context, &name, expected, &gateway.pod) {
            return self.end(part, format!("the {name} is not who it should be"), false);
        }
        let request = (speech != Speech::Opaque).then_some(self.request);
        let (client, addresses) = client_of(&seen.caller, true);
        let subject = format!("{name} (pod {})", gateway.pod.key);
        match self.authorization(
            &there.context,
            subject,
            &gateway.pod,
            &client,
            &addresses,
            request,
        ) {
            Outcome::Enters => {}
            Outcome::Refused(why) => return self.end(part, format!("refused by the {name}: {why}"), false),
        }
        match (&there.through, &there.service) {
            (Some(through), _) => self.hop(through, part.share, &way),
            (None, Found::Missing { .. }) => {
                self.end(
                    &next,
                    format!("there is no service {} there", other.remote),
                    false,
                );
            }
            (None, Found::Here(_)) => self.end(&next, "nobody looked further", true),
        }
    }

    /// To one pod.
    fn pod(
        &mut self,
        seen: &Seen,
        behind: &Behind,
        peer: &Peer,
        speech: Speech,
        part: &Part<'_>,
        said: &mut Said,
    ) {
        let unmeshed = is_unmeshed(&seen.caller);
        let Some((cluster, target)) = outlook(behind, peer) else {
            return self.end(part, peer.address.to_string(), true);
        };
        let cluster = cluster.unwrap_or(&seen.cluster).to_owned();
        let subject = format!("pod {}", target.key);
        let begin = self.findings.len();
        let arrives = match (&peer.tls, target.meshed) {
            _ if unmeshed => true,
            (Tls::Mutual(id), _) => self.identity(&cluster, &subject, id.as_str(), target),
            (Tls::Unusable, _) => {
                let seen_as = "its identity can't be verified, and so nothing is sent";
                self.say(&cluster, About::Identity, &subject, Verdict::Fails, seen_as);
                false
            }
            (Tls::Plain(_), false) => {
                self.say(
                    &cluster,
                    About::Identity,
                    &subject,
                    Verdict::Warning,
                    "has no proxy: reached in plain text",
                )
                .why("nothing on the way to it is encrypted, and it lets in everybody")
                .attempt(format!(
                    "mesh it: kubectl -n {0} get deploy -o yaml | hawser inject - | kubectl apply -f -",
                    target.key.namespace
                ));
                true
            }
            (Tls::Plain(_), true) => {
                self.say(
                    &cluster,
                    About::Identity,
                    &subject,
                    Verdict::Warning,
                    "has a proxy, and is reached in plain text",
                )
                .why("its port skips the proxy, or it belongs to another control plane")
                .attempt(format!(
                    "kubectl -n {} get pod {} -o yaml",
                    target.key.namespace, target.key.name
                ));
                true
            }
        };
        let outcome = if !arrives {
            Outcome::Refused("it is not who it should be".into())
        } else if target.meshed {
            let (mut client, addresses) = client_of(&seen.caller, false);
            if !matches!(peer.tls, Tls::Mutual(_)) {
                client = Client::Plain;
            }
            let request = (speech != Speech::Opaque).then_some(self.request);
            self.authorization(&cluster, subject, target, &client, &addresses, request)
        } else {
            Outcome::Enters
        };
        said.once(&mut self.findings, begin);
        let secured = match &peer.tls {
            Tls::Mutual(_) if !unmeshed => "mutual TLS",
            _ => "plain text",
        };
        let end = format!("pod {} at {}, {secured}", target.key.name, peer.address);
        match outcome {
            Outcome::Enters => self.end(part, end, true),
            Outcome::Refused(why) => {
                self.end(part, format!("refused by pod {}: {why}", target.key.name), false)
            }
        }
    }

    /// Whether who answers can be who is expected.
    fn identity(&mut self, cluster: &str, subject: &str, expected: &str, target: &Target) -> bool {
        match &target.identity {
            Some(own) if own == expected => {
                self.say(
                    cluster,
                    About::Identity,
                    subject,
                    Verdict::Ok,
                    format!("proves to be {own}"),
                );
                true
            }
            Some(own) => {
                self.say(cluster, About::Identity, subject, Verdict::Fails, format!("proves to be {own}"))
                    .why(format!("{expected} is expected, and no other is spoken to"))
                    .attempt(format!(
                        "kubectl --context {cluster} -n {} delete pod {}, so that it is injected anew; or link again",
                        target.key.namespace, target.key.name
                    ));
                false
            }
            None => {
                self.say(
                    cluster,
                    About::Identity,
                    subject,
                    Verdict::Fails,
                    "has no identity",
                )
                .why(format!("{expected} is expected, and its pod has no proxy"))
                .attempt(format!(
                    "mesh it: hawser inject, in namespace {}",
                    target.key.namespace
                ));
                false
            }
        }
    }

    /// Whether a proxy lets the client in.
    fn authorization(
        &mut self,
        cluster: &str,
        subject: String,
        target: &Target,
        client: &Client,
        addresses: &[IpAddr],
        request: Option<&Request<()>>,
    ) -> Outcome {
        let policy = match &target.policy {
            Ok(policy) => policy,
            Err(why) => {
                let seen_as = "the control plane does not say who may come in";
                self.say(cluster, About::Authorization, subject, Verdict::Warning, seen_as)
                    .why(why.clone())
                    .attempt("hawser check");
                return Outcome::Enters;
            }
        };
        let answers: Vec<decision::Admission> = addresses
            .iter()
            .map(|address| decision::admit(policy.clone(), request, *address, client))
            .collect();
        let Some(answer) = answers
            .iter()
            .find(|answer| answer.answer.is_err())
            .or_else(|| answers.first())
        else {
            return Outcome::Enters;
        };
        let server = source(&answer.server);
        let who = who(policy);
        let identity = match client {
            Client::Authenticated(identity) => identity.to_string(),
            Client::Anonymous | Client::Plain => "a client without identity".to_owned(),
        };
        let authz = format!(
            "hawser authz --context {cluster} -n {} po/{}",
            target.key.namespace, target.key.name
        );
        match &answer.answer {
            Ok(by) => {
                let seen_as = format!("lets in {}", known_as(&identity));
                self.say(cluster, About::Authorization, subject, Verdict::Ok, seen_as)
                    .why(match source(by) {
                        by if by == server => by,
                        by => format!("{server}: {by}"),
                    });
                Outcome::Enters
            }
            Err(Refused::Invalid) => {
                let seen_as = "its policy can't be understood, and lets in nobody";
                self.say(cluster, About::Authorization, subject, Verdict::Fails, seen_as)
                    .why(server)
                    .attempt("hawser check");
                Outcome::Refused("its policy can't be understood".into())
            }
            Err(Refused::NoRoute) => {
                let seen_as = format!(
                    "no route of {server} takes {} {}",
                    self.request.method(),
                    self.request.uri()
                );
                self.say(cluster, About::Authorization, subject, Verdict::Fails, &seen_as)
                    .attempt(format!(
                        "--method and --path as the application sends them; {authz}"
                    ));
                Outcome::Refused(seen_as)
            }
            Err(Refused::Denied { route, why }) => {
                // A pod's own loopback is always let in; who has nothing else lets in nobody.
                let own_route = route.as_ref().is_some_and(|route| !is_default(route));
                let why = match who.as_str() {
                    "" if !own_route => Denial::NoAuthorizations,
                    _ => *why,
                };
                let place = match route {
                    Some(route) if !is_default(route) => format!("{server}, {}", source(route)),
                    _ => server,
                };
                let reason = match who.as_str() {
                    "" => format!("{place} lets in nobody"),
                    who => format!("{place} lets in only: {who}"),
                };
                let uncertain = identity == ANYBODY && why != Denial::NoAuthorizations
                    || why == Denial::NetworkNotAllowed && answers.iter().any(|answer| answer.answer.is_ok());
                if uncertain {
                    let seen_as = "it depends on who asks";
                    self.say(cluster, About::Authorization, subject, Verdict::Warning, seen_as)
                        .why(reason)
                        .attempt("hawser explain deploy/NAME --to svc/NAME");
                    return Outcome::Enters;
                }
                let seen_as = format!("refuses {}: {}", known_as(&identity), why.as_str());
                self.say(cluster, About::Authorization, subject, Verdict::Fails, seen_as)
                    .why(reason)
                    .attempt(match why {
                        Denial::NoAuthorizations => format!("an AuthorizationPolicy for it; {authz}"),
                        Denial::NetworkNotAllowed => format!("add the client's network; {authz}"),
                        Denial::NotAuthenticated => "mesh the client: hawser inject".to_owned(),
                        Denial::IdentityNotAllowed => format!("add {identity} there; {authz}"),
                    });
                Outcome::Refused(why.as_str().to_owned())
            }
        }
    }
}

/// What a proxy says to the client.
enum Outcome {
    Enters,
    Refused(String),
}

/// Ten pods of which the same is to be said are one finding.
#[derive(Default)]
struct Said(Vec<(String, String)>);

impl Said {
    fn once(&mut self, findings: &mut Vec<Finding>, begin: usize) {
        let mut at = begin;
        while let Some(finding) = findings.get(at) {
            let said = (
                format!("{:?} {:?} {}", finding.about, finding.verdict, finding.seen),
                finding.why.clone().unwrap_or_default(),
            );
            if self.0.contains(&said) {
                findings.remove(at);
            } else {
                self.0.push(said);
                at += 1;
            }
        }
    }
}

/// The pod behind an endpoint, and the cluster if it is another.
fn outlook<'a>(behind: &'a Behind, peer: &Peer) -> Option<(Option<&'a str>, &'a Target)> {
    if let Some(target) = behind.pods.get(&peer.address) {
        return Some((None, target));
    }
    let there = peer.labels.get("target_cluster")?;
    let other = behind.elsewhere.iter().find(|other| other.cluster == *there)?;
    let there = other.there.as_ref().ok()?;
    Some((Some(there.context.as_str()), there.pods.get(&peer.address)?))
}

fn is_unmeshed(caller: &Caller) -> bool {
    matches!(caller, Caller::Pod(CallingPod { identity: None, .. }))
}

/// Who a server's proxy takes the caller for, and the addresses that it may see.
fn client_of(caller: &Caller, far: bool) -> (Client, Vec<IpAddr>) {
    let nowhere = vec![IpAddr::V4(Ipv4Addr::UNSPECIFIED)];
    match caller {
        Caller::Anybody => {
            let anybody = ANYBODY.parse().map_or(Client::Anonymous, Client::Authenticated);
            (anybody, nowhere)
        }
        Caller::Pod(pod) | Caller::Gateway(pod) => {
            let client = pod.identity.clone().map_or(Client::Plain, Client::Authenticated);
            let mut addresses = pod.addresses.clone();
            if !far {
                addresses.truncate(1);
            }
            if addresses.is_empty() {
                addresses = nowhere;
            }
            (client, addresses)
        }
    }
}

fn known_as(identity: &str) -> &str {
    if identity == ANYBODY {
        "every meshed client"
    } else {
        identity
    }
}

fn who(policy: &Server) -> String {
    policy::permitted(&policy.authorizations).join("; ")
}

fn is_default(source: &Source) -> bool {
    &*source.kind == "default"
}

/// `server web-http`, or the name of a default.
fn source(source: &Source) -> String {
    if is_default(source) {
        format!("default policy {}", source.name)
    } else {
        format!("{} {}", source.kind.to_ascii_lowercase(), source.name)
    }
}

fn route_of(taken: &Way) -> String {
    match &taken.route {
        Some(route) if !is_default(route) => source(route),
        _ => "the control plane's answer".to_owned(),
    }
}

/// `web-svc.emojivoto:80`, without what all have in common.
fn short(path: &str) -> String {
    let path = plain(path);
    let (host, port) = path.rsplit_once(':').unwrap_or((&path, ""));
    let mut labels = host.split('.');
    let (name, namespace) = (
        labels.next().unwrap_or_default(),
        labels.next().unwrap_or_default(),
    );
    format!("{name}.{namespace}:{port}")
}

fn shares(backends: &[(Backend, u32)]) -> String {
    let one = |(backend, weight): &(Backend, u32)| match backend {
        Backend::Service(path) => format!("{} {weight}", short(path)),
        Backend::Address(peer) => format!("{} {weight}", peer.address),
        Backend::Fails { .. } | Backend::Unusable => format!("an error {weight}"),
    };
    backends.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn missing(finding: &mut Finding, target: &Key, near: &[String], elsewhere: &[String]) {
    if let Some(name) = near.first() {
        finding.why(format!("namespace {} has {}", target.namespace, near.join(", ")));
        finding.attempt(format!("svc/{name}"));
    } else if let Some(namespace) = elsewhere.first() {
        finding.why(format!("there is one in {}", elsewhere.join(", ")));
        finding.attempt(format!("-n {namespace}"));
    } else {
        finding.attempt(format!("kubectl -n {} get services", target.namespace));
    }
}

fn label_it(context: &str, service: &Key) -> String {
    format!(
        "kubectl --context {context} -n {} label service {} {}=true",
        service.namespace,
        service.name,
        keys::EXPORTED
    )
}

/// What the Link's controller says of a Service.
fn of_status(other: &Elsewhere) -> Option<String> {
    let status = other.link.as_ref()?.status.as_ref()?;
    let services = status.mirror_services.iter();
    let mut services = services.filter(|service| {
        service.remote_ref.name == other.remote.name && service.remote_ref.namespace == other.remote.namespace
    });
    let condition = services.next()?.conditions.first()?;
    Some(format!("{}: {}", condition.reason, condition.message))
}

/// For shares; there are never many.
fn count(number: usize) -> f64 {
    f64::from(u32::try_from(number.max(1)).unwrap_or(u32::MAX))
}
