//! Broken ways, each as it is seen, and what is said of it.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;

use hawser_control::view::Key;
use hawser_core::authz::Source;
use hawser_crd::{Link, TrafficSplit, keys};
use hawser_proxy::decision::{self, Backend, NoWay, Peer, Speech, Tls, Way};
use http::Request;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Service;
use linkerd2_proxy_api::inbound::authn::permit_mesh_tls::{Clients, PermitClientIdentities};
use linkerd2_proxy_api::inbound::authn::{Permit, PermitMeshTls, PermitUnauthenticated};
use linkerd2_proxy_api::inbound::proxy_protocol::{Detect, Kind};
use linkerd2_proxy_api::inbound::{self, Authn, Authz, ProxyProtocol, Server};
use linkerd2_proxy_api::meta::{Metadata, Resource, metadata};
use serde_json::{Value, json};

use super::finding::{Explanation, Verdict};
use super::judge::judge;
use super::seen::{Behind, Caller, CallingPod, Elsewhere, Found, Gateway, Listed, Mode, Seen, Target, There};
use super::{Resource as Named, resource};

const BOT: &str = "bot.emojivoto.serviceaccount.identity.linkerd.cluster.local";
const WEB: &str = "web.emojivoto.serviceaccount.identity.linkerd.cluster.local";
const GATEWAY: &str = "linkerd-gateway.linkerd-multicluster.serviceaccount.identity.linkerd.cluster.local";

fn key(name: &str) -> Key {
    Key::new("emojivoto", name)
}

fn path(name: &str) -> String {
    format!("{name}.emojivoto.svc.cluster.local:80")
}

fn service(name: &str, labels: &Value) -> Service {
    let service = json!({
        "metadata": {"namespace": "emojivoto", "name": name, "labels": labels},
        "spec": {"clusterIP": "10.43.0.7", "ports": [{"name": "http", "port": 80}]},
    });
    serde_json::from_value(service).expect("a service")
}

fn mirror(name: &str) -> Service {
    service(
        name,
        &json!({keys::MIRRORED_SERVICE: "true", keys::CLUSTER_NAME: "east"}),
    )
}

fn exported() -> Service {
    service("web-svc", &json!({keys::EXPORTED: "true"}))
}

fn here(service: Service) -> Found<Service> {
    Found::Here(Box::new(service))
}

fn to(backends: &[(&str, u32)]) -> Way {
    Way {
        speech: Speech::Detected,
        route: Some(Source {
            group: "".into(),
            kind: "default".into(),
            name: "http".into(),
        }),
        backends: backends
            .iter()
            .map(|(name, weight)| (Backend::Service(path(name)), *weight))
            .collect(),
    }
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

fn peer(at: &str, identity: Option<&str>, labels: &[(&str, &str)]) -> Peer {
    Peer {
        address: address(at),
        dialled: address(at),
        tls: identity.map_or(Tls::Plain("not_provided_by_service_discovery"), |identity| {
            Tls::Mutual(identity.parse().expect("an identity"))
        }),
        opaque: false,
        authority: None,
        labels: labels
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect(),
    }
}

/// A Server that lets in these identities; everybody if there are none.
fn server(name: &str, identities: &[&str]) -> Server {
    let permit = match identities {
        [] => Permit::Unauthenticated(PermitUnauthenticated {}),
        _ => Permit::MeshTls(PermitMeshTls {
            clients: Some(Clients::Identities(PermitClientIdentities {
                identities: identities
                    .iter()
                    .map(|name| inbound::Identity {
                        name: (*name).to_owned(),
                    })
                    .collect(),
                suffixes: vec![],
            })),
        }),
    };
    let everywhere: IpNet = "0.0.0.0/0".parse().expect("a network");
    let labels = [("group", "policy.linkerd.io"), ("kind", "server"), ("name", name)];
    Server {
        protocol: Some(ProxyProtocol {
            kind: Some(Kind::Detect(Detect {
                timeout: Some(std::time::Duration::from_secs(10).try_into().expect("short")),
                ..Detect::default()
            })),
        }),
        authorizations: vec![Authz {
            networks: vec![inbound::Network {
                net: Some(everywhere.into()),
                except: vec![],
            }],
            authentication: Some(Authn { permit: Some(permit) }),
            metadata: Some(Metadata {
                kind: Some(metadata::Kind::Resource(Resource {
                    group: "policy.linkerd.io".into(),
                    kind: "authorizationpolicy".into(),
                    name: "web-clients".into(),
                    namespace: "emojivoto".into(),
                    ..Resource::default()
                })),
            }),
            labels: HashMap::new(),
        }],
        labels: labels
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
        ..Server::default()
    }
}

fn target(name: &str, identity: Option<&str>, policy: Server) -> Target {
    Target {
        key: key(name),
        meshed: identity.is_some(),
        identity: identity.map(str::to_owned),
        policy: Ok(policy),
    }
}

/// A Service with one pod of this cluster.
fn local(name: &str) -> Behind {
    let at = "10.42.0.9:8080";
    Behind {
        key: key(name),
        service: Some(service(name, &json!({}))),
        peers: Ok(vec![peer(at, Some(WEB), &[("pod", "web-1")])]),
        listed: Listed {
            ready: 1,
            selector: "app=web".into(),
            ..Listed::default()
        },
        pods: BTreeMap::from([(address(at), target("web-1", Some(WEB), server("web-http", &[])))]),
        elsewhere: Vec::new(),
    }
}

fn bot() -> CallingPod {
    CallingPod {
        key: Some(key("bot-1")),
        node: "west".into(),
        identity: BOT.parse().ok(),
        addresses: vec!["10.42.0.5".parse().expect("an address")],
    }
}

/// vote-bot asks web-svc, and everything is well.
fn well() -> Seen {
    Seen {
        cluster: "west".into(),
        caller: Caller::Pod(bot()),
        target: key("web-svc"),
        port: 80,
        service: here(service("web-svc", &json!({}))),
        way: Ok(to(&[("web-svc", 1)])),
        splits: Vec::new(),
        behind: BTreeMap::from([(path("web-svc"), local("web-svc"))]),
        unmirrored: None,
    }
}

fn link(status: &str, reason: &str, message: &str) -> Link {
    let link = json!({
        "metadata": {"namespace": "linkerd-multicluster", "name": "east"},
        "spec": {
            "targetClusterName": "east", "gatewayIdentity": GATEWAY,
            "selector": {"matchLabels": {keys::EXPORTED: "true"}},
            "remoteDiscoverySelector": {"matchLabels": {keys::EXPORTED: "remote-discovery"}},
        },
        "status": {"conditions": [{"type": "Ready", "status": status, "reason": reason, "message": message}]},
    });
    serde_json::from_value(link).expect("a link")
}

/// The cluster east with a gateway, behind which all is well.
fn east() -> There {
    let gateway = CallingPod {
        key: Some(Key::new("linkerd-multicluster", "gateway-1")),
        node: "east".into(),
        identity: GATEWAY.parse().ok(),
        addresses: vec!["10.42.0.3".parse().expect("an address")],
    };
    There {
        context: "admin@east".into(),
        blind: None,
        service: here(exported()),
        gateways: vec![Gateway {
            pod: target("gateway-1", Some(GATEWAY), server("linkerd-gateway", &[])),
            ready: true,
        }],
        pods: BTreeMap::new(),
        through: Some(Box::new(Seen {
            cluster: "admin@east".into(),
            caller: Caller::Gateway(gateway),
            service: here(exported()),
            ..well()
        })),
    }
}

fn mirrored(there: Result<There, String>) -> Elsewhere {
    Elsewhere {
        cluster: "east".into(),
        remote: key("web-svc"),
        mode: Mode::Gateway,
        link: Some(link("True", "Mirroring", "")),
        probed: Some(Ok(())),
        there,
    }
}

/// The mirror of east's web-svc.
fn behind_gateway(other: Elsewhere) -> Behind {
    Behind {
        key: key("web-svc-east"),
        service: Some(mirror("web-svc-east")),
        peers: Ok(vec![peer(
            "203.0.113.3:4143",
            Some(GATEWAY),
            &[("target_cluster", "east")],
        )]),
        listed: Listed {
            ready: 1,
            ..Listed::default()
        },
        pods: BTreeMap::new(),
        elsewhere: vec![other],
    }
}

/// vote-bot asks the mirror.
fn across(other: Elsewhere) -> Seen {
    Seen {
        target: key("web-svc-east"),
        service: here(mirror("web-svc-east")),
        way: Ok(to(&[("web-svc-east", 1)])),
        behind: BTreeMap::from([(path("web-svc-east"), behind_gateway(other))]),
        ..well()
    }
}

fn explained(seen: &Seen) -> Explanation {
    let request: Request<()> = decision::request(
        http::Method::GET,
        &"/".parse().expect("a path"),
        "web-svc.emojivoto",
    )
    .expect("a request");
    judge(seen, &request)
}

/// What isn't well, in one line each, and where requests end.
#[track_caller]
fn check(seen: &Seen, expected: &[&str]) {
    let explanation = explained(seen);
    let findings = explanation
        .findings
        .iter()
        .filter(|finding| finding.verdict != Verdict::Ok)
        .map(|finding| {
            let mark = if finding.verdict == Verdict::Fails {
                "×"
            } else {
                "‼"
            };
            let why = finding
                .why
                .as_ref()
                .map_or_else(String::new, |why| format!(" ({why})"));
            assert!(finding.attempt.is_some(), "nothing to try: {finding:?}");
            let about = serde_json::to_value(finding.about).expect("a word");
            let about = about.as_str().unwrap_or_default().to_owned();
            format!("{mark} {about} {}: {}{why}", finding.subject, finding.seen)
        });
    let ends = explanation.decision.iter().map(|share| {
        let mark = if share.succeeds { "→" } else { "×" };
        format!("{mark} {} {}", share.share, share.end)
    });
    let told: Vec<String> = findings.chain(ends).collect();
    assert_eq!(told, expected);
    let fails = told.iter().any(|line| line.starts_with("× "));
    assert_eq!(explanation.succeeds, !fails, "{told:?}");
}

const ARRIVES: &str = "→ 1 pod web-1 at 10.42.0.9:8080, mutual TLS";

#[test]
fn a_way_without_a_fault_is_told_to_its_end() {
    check(&well(), &[ARRIVES]);
    let explanation = explained(&well());
    assert_eq!(explanation.verdict, Verdict::Ok);
    assert_eq!(explanation.from, "pod emojivoto/bot-1");
    assert_eq!(explanation.decision[0].way, ["web-svc.emojivoto:80"]);
    let abouts: Vec<String> = explanation
        .findings
        .iter()
        .map(|finding| format!("{:?}", finding.about))
        .collect();
    assert_eq!(
        abouts,
        [
            "Client",
            "Name",
            "Protocol",
            "Weights",
            "Endpoints",
            "Identity",
            "Authorization"
        ]
    );
}

#[test]
fn a_mirror_is_explained_on_both_sides_of_the_gateway() {
    let seen = across(mirrored(Ok(east())));
    check(&seen, &[ARRIVES]);
    assert_eq!(
        explained(&seen).decision[0].way,
        [
            "web-svc-east.emojivoto:80",
            "gateway of east",
            "web-svc.emojivoto:80"
        ]
    );
}

#[test]
fn a_name_that_does_not_exist_is_told_with_those_that_may_have_been_meant() {
    let seen = |near: &[&str], elsewhere: &[&str]| Seen {
        target: key("web-scv"),
        service: Found::Missing {
            near: near.iter().map(|name| (*name).to_owned()).collect(),
            elsewhere: elsewhere.iter().map(|name| (*name).to_owned()).collect(),
        },
        ..well()
    };
    check(
        &seen(&["web-svc"], &[]),
        &[
            "× name service emojivoto/web-scv: it does not exist (namespace emojivoto has web-svc)",
            "× 1 there is no service emojivoto/web-scv",
        ],
    );
    check(
        &seen(&[], &["votes"]),
        &[
            "× name service emojivoto/web-scv: it does not exist (there is one in votes)",
            "× 1 there is no service emojivoto/web-scv",
        ],
    );
}

#[test]
fn a_service_that_is_not_exported_lacks_its_mirror_for_that_reason() {
    let other = |labels: &Value| {
        let there = There {
            service: here(service("web-svc", labels)),
            through: None,
            ..east()
        };
        Seen {
            target: key("web-svc-east"),
            service: Found::Missing {
                near: vec![],
                elsewhere: vec![],
            },
            unmirrored: Some(mirrored(Ok(there))),
            ..well()
        }
    };
    let seen = other(&json!({}));
    check(
        &seen,
        &[
            "× name service emojivoto/web-svc-east: it does not exist",
            "× export service emojivoto/web-svc: not exported (it has no label mirror.linkerd.io/exported)",
            "× 1 there is no service emojivoto/web-svc-east",
        ],
    );
    let findings = explained(&seen).findings;
    let export = findings.last().expect("there are some");
    assert_eq!(
        export.attempt.as_deref(),
        Some(
            "kubectl --context admin@east -n emojivoto label service web-svc mirror.linkerd.io/exported=true"
        )
    );
    check(
        &other(&json!({keys::EXPORTED: "yes"})),
        &[
            "× name service emojivoto/web-svc-east: it does not exist",
            "× export service emojivoto/web-svc: not exported (its label mirror.linkerd.io/exported=yes is not what \
             link east selects)",
            "× 1 there is no service emojivoto/web-svc-east",
        ],
    );
}

#[test]
fn a_gateway_that_refuses_the_name_says_that_it_is_not_exported() {
    let mut there = east();
    there.through = there.through.map(|mut through| {
        through.service = here(service("web-svc", &json!({})));
        through.way = Err(NoWay::NotExported);
        through
    });
    there.service = here(service("web-svc", &json!({})));
    check(
        &across(mirrored(Ok(there))),
        &[
            "× export service emojivoto/web-svc: not exported (it has no label mirror.linkerd.io/exported)",
            "× export service emojivoto/web-svc: its gateway refuses it to clients of other clusters: it is not exported \
             (it has no label mirror.linkerd.io/exported)",
            "× 1 refused by the gateway: not exported",
        ],
    );
}

#[test]
fn a_link_that_is_down_is_a_warning_while_its_mirror_still_leads_somewhere() {
    let down = Elsewhere {
        link: Some(link("False", "TargetUnreachable", "no answer")),
        there: Err("no answer within 10 s".into()),
        ..mirrored(Ok(east()))
    };
    check(
        &across(down),
        &[
            "‼ link link east: TargetUnreachable: no answer",
            "‼ link link east: the side of east was not looked at (no answer within 10 s)",
            "→ 1 nobody looked further",
        ],
    );
    let gone = Elsewhere {
        link: None,
        probed: None,
        there: Err("there is no link to east".into()),
        ..mirrored(Ok(east()))
    };
    let mut seen = across(gone);
    if let Some(behind) = seen.behind.get_mut(&path("web-svc-east")) {
        behind.peers = Ok(vec![]);
    }
    check(
        &seen,
        &[
            "× link link east: it does not exist (nobody looks after the mirrors of that cluster any more)",
            "× endpoints service emojivoto/web-svc-east: none is ready (a mirror has none while the gateway of east is \
             dead or service emojivoto/web-svc has no ready pod there)",
            "× 1 web-svc-east has no endpoints",
        ],
    );
}

#[test]
fn what_could_not_be_looked_at_is_no_failure() {
    let there = There {
        blind: Some("no context leads there".into()),
        gateways: vec![],
        through: None,
        ..east()
    };
    check(
        &across(mirrored(Ok(there))),
        &[
            "‼ link link east: beyond its services nothing was looked at (no context leads there)",
            "→ 1 nobody looked further",
        ],
    );
    let there = There {
        gateways: vec![],
        through: None,
        ..east()
    };
    check(
        &across(mirrored(Ok(there))),
        &[
            "× gateway gateway of east: 0 of 0 pods ready",
            "× 1 the gateway of east has no ready pod",
        ],
    );
}

#[test]
fn a_gateway_that_cannot_be_reached_is_told_with_what_its_probes_fail_of() {
    let dead = Elsewhere {
        link: Some(link("False", "GatewayDead", "The gateway does not answer probes")),
        probed: Some(Err("connect timed out".into())),
        ..mirrored(Ok(east()))
    };
    check(
        &across(dead),
        &[
            "× gateway gateway of east: it can't be reached from here (connect timed out)",
            "× 1 the gateway of east can't be reached",
        ],
    );
}

#[test]
fn a_denial_names_the_server_and_whom_it_lets_in() {
    let mut seen = well();
    if let Some(behind) = seen.behind.get_mut(&path("web-svc")) {
        let target = target("web-1", Some(WEB), server("web-http", &[GATEWAY]));
        behind.pods = BTreeMap::from([(address("10.42.0.9:8080"), target)]);
    }
    let why = format!("server web-http lets in only: authorizationpolicy/emojivoto/web-clients ({GATEWAY})");
    let refused =
        format!("× authorization pod emojivoto/web-1: refuses {BOT}: client identity is not allowed ({why})");
    check(
        &seen,
        &[
            &refused,
            "× 1 refused by pod web-1: client identity is not allowed",
        ],
    );
    // Nobody said who asks.
    seen.caller = Caller::Anybody;
    let depends = format!("‼ authorization pod emojivoto/web-1: it depends on who asks ({why})");
    check(&seen, &[&depends, ARRIVES]);
}

#[test]
fn a_server_without_authorizations_lets_in_nobody_whoever_asks() {
    let mut seen = well();
    if let Some(behind) = seen.behind.get_mut(&path("web-svc")) {
        let mut closed = server("web-http", &[]);
        closed.authorizations.clear();
        let target = target("web-1", Some(WEB), closed);
        behind.pods = BTreeMap::from([(address("10.42.0.9:8080"), target)]);
    }
    let line = |who: &str| {
        format!(
            "× authorization pod emojivoto/web-1: refuses {who}: no authorization applies to this server (server web-http \
             lets in nobody)"
        )
    };
    let end = "× 1 refused by pod web-1: no authorization applies to this server";
    check(&seen, &[&line(BOT), end]);
    seen.caller = Caller::Anybody;
    check(&seen, &[&line("every meshed client"), end]);
}

#[test]
fn a_denial_behind_the_gateway_is_the_gateways() {
    let mut there = east();
    there.gateways[0].pod.policy = Ok(server("linkerd-gateway", &[WEB]));
    let refused = format!(
        "× authorization gateway of east (pod emojivoto/gateway-1): refuses {BOT}: client identity is not allowed \
         (server linkerd-gateway lets in only: authorizationpolicy/emojivoto/web-clients ({WEB}))"
    );
    check(
        &across(mirrored(Ok(there))),
        &[
            &refused,
            "× 1 refused by the gateway of east: client identity is not allowed",
        ],
    );
}

#[test]
fn a_service_without_ready_endpoints_says_why_its_pods_are_not() {
    let seen = |listed: Listed| {
        let mut seen = well();
        if let Some(behind) = seen.behind.get_mut(&path("web-svc")) {
            behind.peers = Ok(vec![]);
            behind.listed = listed;
        }
        seen
    };
    let listed = |selector: &str, selected: &[(&str, Option<&str>)]| Listed {
        selector: selector.into(),
        selected: selected
            .iter()
            .map(|(pod, why)| ((*pod).to_owned(), why.map(str::to_owned)))
            .collect(),
        ..Listed::default()
    };
    for (listed, why) in [
        (
            listed("", &[]),
            "it selects no pods, and nobody wrote endpoints for it",
        ),
        (listed("app=web", &[]), "no pod has the labels app=web"),
        (
            listed(
                "app=web",
                &[("web-1", Some("container web waits: ImagePullBackOff"))],
            ),
            "web-1 is not ready (container web waits: ImagePullBackOff)",
        ),
    ] {
        let line = format!("× endpoints service emojivoto/web-svc: none is ready ({why})");
        check(&seen(listed), &[&line, "× 1 web-svc has no endpoints"]);
    }
}

#[test]
fn a_mirror_without_endpoints_says_why_there_are_none_over_there() {
    let mut there = east();
    if let Some(through) = &mut there.through
        && let Some(behind) = through.behind.get_mut(&path("web-svc"))
    {
        behind.peers = Ok(vec![]);
        behind.listed.ready = 0;
    }
    let mut seen = across(mirrored(Ok(there)));
    if let Some(behind) = seen.behind.get_mut(&path("web-svc-east")) {
        behind.peers = Ok(vec![]);
    }
    check(
        &seen,
        &[
            "× endpoints service emojivoto/web-svc-east: none is ready (a mirror has none while the gateway of east is \
             dead or service emojivoto/web-svc has no ready pod there)",
            "× endpoints service emojivoto/web-svc: none is ready (no pod has the labels app=web)",
            "× 1 web-svc-east has no endpoints",
        ],
    );
}

fn split(weights: &[(&str, u32)], decided: Option<Value>) -> TrafficSplit {
    let backends: Vec<Value> = weights
        .iter()
        .map(|(service, weight)| json!({"service": service, "weight": weight}))
        .collect();
    let mut split = json!({
        "metadata": {
            "namespace": "emojivoto", "name": "web-svc", "annotations": {keys::FAILOVER_PRIMARY: "web-svc"},
        },
        "spec": {"service": "web-svc", "backends": backends},
    });
    if let Some(decided) = decided {
        split["metadata"]["annotations"][keys::FAILOVER_STATUS] = decided.to_string().into();
    }
    serde_json::from_value(split).expect("a split")
}

#[test]
fn a_split_that_sends_requests_elsewhere_is_told_with_weights_and_reason() {
    let mut seen = well();
    let decided = json!({
        "phase": "Fallback", "reason": "NotReady", "message": "web-svc has no ready endpoints",
        "since": "2026-05-12T09:00:00Z", "weights": {"web-svc": 0, "web-svc-east": 1},
    });
    seen.splits = vec![split(&[("web-svc", 0), ("web-svc-east", 1)], Some(decided))];
    seen.way = Ok(to(&[("web-svc-east", 10_000)]));
    let mut down = local("web-svc");
    down.peers = Ok(vec![]);
    seen.behind = BTreeMap::from([
        (path("web-svc"), down),
        (path("web-svc-east"), behind_gateway(mirrored(Ok(east())))),
    ]);
    check(
        &seen,
        &[
            "‼ weights trafficsplit emojivoto/web-svc: web-svc 0, web-svc-east 1 (Fallback since 2026-05-12T09:00:00Z: \
             web-svc has no ready endpoints)",
            // Nobody is sent there, so it stops nobody.
            "‼ endpoints service emojivoto/web-svc: none is ready (no pod has the labels app=web)",
            ARRIVES,
        ],
    );
    assert_eq!(explained(&seen).verdict, Verdict::Warning);
}

#[test]
fn of_shared_traffic_the_part_that_fails_is_told() {
    let mut seen = well();
    seen.splits = vec![split(&[("web-svc", 3), ("web-svc-east", 1)], None)];
    seen.way = Ok(to(&[("web-svc", 3), ("web-svc-east", 1)]));
    let dead = Elsewhere {
        probed: Some(Err("connection refused".into())),
        ..mirrored(Ok(east()))
    };
    seen.behind.insert(path("web-svc-east"), behind_gateway(dead));
    check(
        &seen,
        &[
            "× gateway gateway of east: it can't be reached from here (connection refused)",
            "→ 0.75 pod web-1 at 10.42.0.9:8080, mutual TLS",
            "× 0.25 the gateway of east can't be reached",
        ],
    );
}

#[test]
fn an_opaque_port_that_is_called_http_is_a_warning() {
    let mut seen = well();
    if let Found::Here(service) = &mut seen.service {
        let annotations = BTreeMap::from([(keys::OPAQUE_PORTS.to_owned(), "80".to_owned())]);
        service.metadata.annotations = Some(annotations);
    }
    seen.way = seen.way.map(|way| Way {
        speech: Speech::Opaque,
        ..way
    });
    check(
        &seen,
        &[
            "‼ protocol service emojivoto/web-svc:80: opaque, though port \"http\" says HTTP (annotation \
             config.linkerd.io/opaque-ports: \"80\")",
            ARRIVES,
        ],
    );
}

#[test]
fn who_proves_another_name_than_expected_is_not_spoken_to() {
    let mut seen = well();
    if let Some(behind) = seen.behind.get_mut(&path("web-svc")) {
        let other = "web.emojivoto.serviceaccount.identity.linkerd.old.example";
        let target = target("web-1", Some(other), server("web-http", &[]));
        behind.pods = BTreeMap::from([(address("10.42.0.9:8080"), target)]);
    }
    let line = format!(
        "× identity pod emojivoto/web-1: proves to be web.emojivoto.serviceaccount.identity.linkerd.old.example ({WEB} is \
         expected, and no other is spoken to)"
    );
    check(
        &seen,
        &[&line, "× 1 refused by pod web-1: it is not who it should be"],
    );
    let mut there = east();
    there.gateways[0].pod.identity = Some(WEB.into());
    let line = format!(
        "× identity gateway of east: proves to be {WEB} ({GATEWAY} is expected, and no other is spoken to)"
    );
    check(
        &across(mirrored(Ok(there))),
        &[&line, "× 1 the gateway of east is not who it should be"],
    );
}

#[test]
fn a_pod_without_a_proxy_is_reached_in_plain_text_and_that_is_said() {
    let mut seen = well();
    if let Some(behind) = seen.behind.get_mut(&path("web-svc")) {
        let at = "10.42.0.9:8080";
        behind.peers = Ok(vec![peer(at, None, &[("pod", "web-1")])]);
        behind.pods = BTreeMap::from([(address(at), target("web-1", None, Server::default()))]);
    }
    check(
        &seen,
        &[
            "‼ identity pod emojivoto/web-1: has no proxy: reached in plain text (nothing on the way to it is encrypted, \
             and it lets in everybody)",
            "→ 1 pod web-1 at 10.42.0.9:8080, plain text",
        ],
    );
}

#[test]
fn a_client_without_a_proxy_is_let_into_no_other_cluster() {
    let mut seen = across(mirrored(Ok(east())));
    seen.caller = Caller::Pod(CallingPod {
        identity: None,
        ..bot()
    });
    check(
        &seen,
        &[
            "‼ client pod emojivoto/bot-1: has no proxy: it speaks plain text, splits and routes don't hold for it",
            "× identity gateway of east: takes nobody in plain text (a client without a proxy can't prove who it is)",
            "× 1 refused by the gateway of east: a client without a proxy can't prove who it is",
        ],
    );
}

#[test]
fn the_pods_of_a_federated_service_are_judged_where_they_are() {
    let labels = [("pod", "web-7"), ("target_cluster", "east")];
    let at = "10.52.0.7:8080";
    let mut behind = local("web-svc");
    if let Ok(peers) = &mut behind.peers {
        peers.push(peer(at, Some(WEB), &labels));
    }
    let there = There {
        service: here(service("web-svc", &json!({keys::EXPORTED: "remote-discovery"}))),
        gateways: vec![],
        pods: BTreeMap::from([(
            address(at),
            target("web-7", Some(WEB), server("web-http", &[GATEWAY])),
        )]),
        through: None,
        ..east()
    };
    behind.elsewhere = vec![Elsewhere {
        mode: Mode::Direct,
        probed: None,
        ..mirrored(Ok(there))
    }];
    let mut seen = well();
    seen.behind = BTreeMap::from([(path("web-svc"), behind)]);
    let refused = format!(
        "× authorization pod emojivoto/web-7: refuses {BOT}: client identity is not allowed (server web-http lets in \
         only: authorizationpolicy/emojivoto/web-clients ({GATEWAY}))"
    );
    check(
        &seen,
        &[
            &refused,
            "→ 0.5 pod web-1 at 10.42.0.9:8080, mutual TLS",
            "× 0.5 refused by pod web-7: client identity is not allowed",
        ],
    );
}

#[test]
fn services_and_workloads_are_named_as_for_kubectl() {
    let web = Named::Service("web".parse().expect("a name"));
    for text in ["web", "svc/web", "service/web"] {
        assert_eq!(resource(text), Ok(web.clone()), "{text}");
    }
    assert_eq!(resource("deploy/web"), Ok(Named::Workload("deploy/web".into())));
    for text in ["", "secret/web", "svc/", "svc/Web_1", "deploy/", "svc/a/b"] {
        assert!(resource(text).is_err(), "{text}");
    }
}
