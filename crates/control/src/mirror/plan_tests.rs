//! Scenarios for the mirror's plan, as texts.
//!
//! What exists is told line by line; the expectation is the list of writes and verdicts. `settled` scenarios check
//! that a plan, carried out, leaves nothing to do.

use std::sync::Arc;

use hawser_crd::Link;
use hawser_crd::link::LinkSpec;
use hawser_crd::selector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::super::snapshot::{Instances, RemoteEndpoints};
use super::*;

/// Reads a scenario:
///
/// - `link CLUSTER gateway=HOST:PORT` with `dead`, `unresolved`; `no-remote`
/// - `namespace NAME`
/// - `remote NS/NAME ports=NAME:PORT,... ready|empty [label=K:V] [annotation=K:V] [unexported] [version=N]`
/// - `local service|endpoints NS/NAME [ours|probing] [filled]`
/// - `probe NAME`, `slices`
fn snapshot(scenario: &str) -> Snapshot {
    let mut snapshot = Snapshot {
        namespace: "linkerd-multicluster".into(),
        link_name: "east".into(),
        remote: Some(Remote::default()),
        ..Default::default()
    };
    for line in scenario.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let has = |word: &str| words.contains(&word);
        let value = |key: &str| {
            words
                .iter()
                .find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
        };
        match words[0] {
            "link" => {
                let mut spec = LinkSpec {
                    target_cluster_name: words[1].into(),
                    target_cluster_domain: "cluster.local".into(),
                    selector: Some(selector::from_query("mirror.linkerd.io/exported=true").unwrap()),
                    remote_discovery_selector: Some(
                        selector::from_query("mirror.linkerd.io/exported=remote-discovery").unwrap(),
                    ),
                    ..Default::default()
                };
                if let Some((host, port)) = value("gateway").and_then(|gateway| gateway.split_once(':')) {
                    spec.gateway_address = host.into();
                    spec.gateway_port = port.into();
                    spec.gateway_identity = "gateway.identity".into();
                    spec.probe_spec.path = "/ready".into();
                    spec.probe_spec.port = "4191".into();
                    let addresses = host.split(',').map(|ip| ip.parse().unwrap()).collect();
                    snapshot.addresses = Addresses::Resolved(addresses);
                }
                if has("unresolved") {
                    snapshot.addresses = Addresses::Failed("no such host".into());
                }
                if let Some(excluded) = value("exclude") {
                    spec.excluded_labels = vec![excluded.into()];
                    spec.excluded_annotations = vec![excluded.into()];
                }
                snapshot.gateway_is_dead = has("dead");
                snapshot.link_name = words[1].into();
                let link = Link::new("linkerd-multicluster", words[1], spec);
                snapshot.link = Some(LinkView::read(&link).unwrap());
            }
            "headless" => snapshot.mirrors_headless = true,
            "makes-namespaces" => snapshot.makes_namespaces = true,
            "no-remote" => snapshot.remote = None,
            "slices" => snapshot.write_slices = true,
            "probe" => {
                snapshot.probe_service = Some(words[1].into());
                snapshot.makes_probe_service = has("made");
            }
            "namespace" => {
                snapshot.namespaces.insert(Key::new("", words[1]), Arc::new(()));
            }
            "remote" => {
                let key = key(words[1]);
                let mut service = RemoteService {
                    resource_version: value("version").unwrap_or("7").into(),
                    uid: "uid".into(),
                    has_selector: !has("hand-made"),
                    ports: value("ports")
                        .unwrap_or_default()
                        .split(',')
                        .filter_map(port)
                        .collect(),
                    ..Default::default()
                };
                if !has("unexported") {
                    service.labels.insert(keys::EXPORTED.into(), "true".into());
                }
                for (name, map) in [
                    ("label", &mut service.labels),
                    ("annotation", &mut service.annotations),
                ] {
                    let pairs = words
                        .iter()
                        .filter_map(|word| word.strip_prefix(name)?.strip_prefix('='));
                    map.extend(
                        pairs
                            .filter_map(|pair| pair.split_once(':'))
                            .map(|(k, v)| (k.into(), v.into())),
                    );
                }
                let remote = snapshot.remote.get_or_insert_default();
                let instances = |name: &str| -> Vec<String> {
                    let list = value(name).unwrap_or_default().split(',');
                    list.filter(|name| !name.is_empty()).map(str::to_owned).collect()
                };
                let subset = Instances {
                    ready: instances("pods"),
                    not_ready: instances("unready-pods"),
                    ports: vec![endpoint_port("http", "TCP", 8080)],
                };
                let has_instances = value("pods").or_else(|| value("unready-pods")).is_some();
                let endpoints = RemoteEndpoints {
                    is_ready: has("ready") || !subset.ready.is_empty(),
                    has_addresses: has("ready") || has_instances,
                    instances: has_instances.then_some(subset).into_iter().collect(),
                    resource_version: "70".into(),
                };
                service.headless = has("headless");
                remote.endpoints.insert(key.clone(), Arc::new(endpoints));
                remote.services.insert(key, Arc::new(service));
            }
            "local" => {
                let mut labels = Map::new();
                if has("probing") {
                    labels.insert(keys::CLUSTER_NAME.into(), snapshot.link_name.clone());
                    labels.insert(keys::MIRRORED_GATEWAY.into(), "true".into());
                }
                if has("ours") {
                    labels.insert(keys::MIRRORED_SERVICE.into(), "true".into());
                    labels.insert(keys::CLUSTER_NAME.into(), snapshot.link_name.clone());
                }
                let version = version();
                match words[1] {
                    "service" => {
                        let ports = value("ports")
                            .unwrap_or_default()
                            .split(',')
                            .filter_map(port)
                            .collect();
                        let service = LocalService {
                            version,
                            labels,
                            ports,
                            ..Default::default()
                        };
                        snapshot.services.insert(key(words[2]), Arc::new(service));
                    }
                    _ => {
                        let subsets = if has("filled") {
                            vec![EndpointSubset {
                                addresses: Some(vec![address(&"192.0.2.1".parse().unwrap())]),
                                ports: Some(vec![endpoint_port("http", "TCP", 4143)]),
                                not_ready_addresses: None,
                            }]
                        } else {
                            vec![]
                        };
                        let endpoints = LocalEndpoints {
                            version,
                            labels,
                            subsets,
                            ..Default::default()
                        };
                        snapshot.endpoints.insert(key(words[2]), Arc::new(endpoints));
                    }
                }
            }
            other => panic!("unknown line {other}"),
        }
    }
    snapshot
}

fn version() -> Version {
    Version {
        uid: "u1".into(),
        resource_version: "3".into(),
    }
}

fn key(text: &str) -> Key {
    let (namespace, name) = text.split_once('/').unwrap();
    Key::new(namespace, name)
}

fn port(text: &str) -> Option<Port> {
    let (name, port) = text.split_once(':')?;
    let port = port.parse().unwrap();
    Some(Port {
        name: name.into(),
        protocol: "TCP".into(),
        port,
        target: IntOrString::Int(port),
    })
}

fn describe(plan: &Plan) -> String {
    let mut lines = Vec::new();
    for write in plan.writes.values().flatten() {
        lines.push(match write {
            Write::Create { kind, key, object } => {
                format!("create {kind:?} {key} {}", content(*kind, object))
            }
            Write::Patch {
                kind,
                key,
                patch,
                version,
            } => {
                format!(
                    "patch {kind:?} {key} at {} {}",
                    version.resource_version,
                    content(*kind, patch)
                )
            }
            Write::Delete { kind, key, version } | Write::DeleteUnchanged { kind, key, version } => {
                format!("delete {kind:?} {key} at {}", version.resource_version)
            }
        });
    }
    for (key, verdict) in &plan.verdicts {
        lines.push(match verdict {
            Verdict::Mirrored { .. } => format!("{key} is mirrored"),
            other @ (Verdict::Joined { .. } | Verdict::Invalid(_) | Verdict::Outrun) => {
                format!("{key} {other:?}")
            }
            Verdict::MissingNamespace => format!("{key} has no namespace"),
            Verdict::NameConflict { local } => format!("{key} conflicts with {local}"),
            Verdict::Unfit(why) => format!("{key} can't have a mirror: {why}"),
            Verdict::Failed(message) => format!("{key} failed: {message}"),
            Verdict::Waiting(what) => format!("{key} waits: {what}"),
        });
    }
    lines.extend(
        plan.skipped
            .iter()
            .map(|skipped| format!("event on {}: {}", skipped.service, skipped.message)),
    );
    lines.join("\n")
}

fn content(kind: Kind, object: &Value) -> String {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let list = |value: &Value, show: &dyn Fn(&Value) -> String| {
        value
            .as_array()
            .map(|items| items.iter().map(show).collect::<Vec<_>>().join(","))
            .unwrap_or_default()
    };
    let port = |port: &Value| format!("{}:{}", text(&port["name"]), port["port"]);
    match kind {
        Kind::Namespace => format!(
            "labels of {}",
            text(&object["metadata"]["labels"][keys::CLUSTER_NAME])
        ),
        Kind::Service | Kind::Federated | Kind::Probe => {
            let ports = list(&object["spec"]["ports"], &port);
            match &object["metadata"]["labels"] {
                labels if labels[keys::REMOTE_SERVICE].is_string() => format!(
                    "ports {ports} discovers {} in {}",
                    text(&labels[keys::REMOTE_SERVICE]),
                    text(&labels[keys::REMOTE_DISCOVERY])
                ),
                _ => format!("ports {ports}"),
            }
        }
        Kind::Endpoints => {
            let subset = |subset: &Value| {
                let ips = |key: &str| list(&subset[key], &|address| text(&address["ip"]));
                format!(
                    "ready [{}] not ready [{}] ports {}",
                    ips("addresses"),
                    ips("notReadyAddresses"),
                    list(&subset["ports"], &port)
                )
            };
            match list(&object["subsets"], &subset) {
                empty if empty.is_empty() => "empty".into(),
                subsets => subsets,
            }
        }
        Kind::EndpointSlice => list(&object["endpoints"], &|endpoint| {
            format!(
                "{} ready={}",
                text(&endpoint["addresses"][0]),
                endpoint["conditions"]["ready"]
            )
        }),
    }
}

#[track_caller]
fn check(scenario: &str, expected: &str) {
    let trimmed: Vec<&str> = expected
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    assert_eq!(describe(&plan(&snapshot(scenario))), trimmed.join("\n"));
}

/// Carries a plan out as an API server would, so that it can be planned again.
fn carry_out(snapshot: &mut Snapshot, plan: &Plan) {
    let map = |value: &Value| -> Map { serde_json::from_value(value.clone()).unwrap_or_default() };
    for write in plan.writes.values().flatten() {
        match write {
            Write::Create {
                kind: Kind::Service,
                key,
                object,
            } => {
                let object: k8s_openapi::api::core::v1::Service =
                    serde_json::from_value(object.clone()).unwrap();
                let service = super::super::snapshot::local_service(object, "east").unwrap();
                snapshot.services.insert(key.clone(), Arc::new(service));
            }
            Write::Create {
                kind: Kind::Endpoints,
                key,
                object,
            } => {
                let object = serde_json::from_value(object.clone()).unwrap();
                let endpoints = super::super::snapshot::local_endpoints(object).unwrap();
                snapshot.endpoints.insert(key.clone(), Arc::new(endpoints));
            }
            Write::Create {
                kind: Kind::EndpointSlice,
                key,
                object,
            } => {
                let object = serde_json::from_value(object.clone()).unwrap();
                let slice = super::super::snapshot::local_slice(object).unwrap();
                snapshot.slices.insert(key.clone(), Arc::new(slice));
            }
            Write::Patch {
                kind: Kind::Endpoints,
                key,
                patch,
                ..
            } => {
                let mut endpoints = snapshot.endpoints[key].as_ref().clone();
                endpoints.subsets = serde_json::from_value(patch["subsets"].clone()).unwrap();
                let mut set = map(&patch["metadata"]["annotations"]);
                endpoints.annotations.append(&mut set);
                snapshot.endpoints.insert(key.clone(), Arc::new(endpoints));
            }
            Write::Delete {
                kind: Kind::Service,
                key,
                ..
            } => drop(snapshot.services.remove(key)),
            Write::Delete {
                kind: Kind::Endpoints,
                key,
                ..
            } => drop(snapshot.endpoints.remove(key)),
            other => panic!("not needed by any scenario yet: {other:?}"),
        }
    }
}

#[test]
fn a_service_for_remote_discovery_gets_a_mirror_without_endpoints_also_without_a_gateway() {
    let remote = "remote test/web ports=http:80 ready label=mirror.linkerd.io/exported:remote-discovery";
    let expected = "create Service test/web-east ports http:80 discovers web in east
         test/web is mirrored";
    check(
        &format!("link east gateway=203.0.113.7:4143\n namespace test\n {remote}"),
        expected,
    );
    check(&format!("link east\n namespace test\n {remote}"), expected);
}

#[test]
fn a_mirror_that_no_longer_needs_the_gateway_loses_its_endpoints() {
    check(
        "link east gateway=203.0.113.7:4143
         namespace test
         remote test/web ports=http:80 ready label=mirror.linkerd.io/exported:remote-discovery
         local service test/web-east ours ports=http:80
         local endpoints test/web-east ours filled",
        "patch Service test/web-east at 3 ports http:80 discovers web in east
         delete Endpoints test/web-east at 3
         test/web is mirrored",
    );
}

#[test]
fn a_target_cannot_choose_where_its_mirrors_endpoints_are_discovered() {
    let snapshot = snapshot(
        "link east gateway=203.0.113.7:4143
         namespace test
         remote test/web ports=http:80 ready label=multicluster.linkerd.io/remote-discovery:north annotation=multicluster.linkerd.io/local-discovery:bank",
    );
    let made = format!("{:?}", plan(&snapshot).writes);
    assert!(!made.contains("north") && !made.contains("bank"), "{made}");
}

#[test]
fn an_exported_service_gets_a_mirror_behind_the_gateway() {
    check(
        "link east gateway=203.0.113.7:4143
         namespace test
         remote test/podinfo ports=http:9898,grpc:9999 ready
         remote test/private ports=http:80 ready unexported",
        "create Service test/podinfo-east ports http:9898,grpc:9999
         create Endpoints test/podinfo-east ready [203.0.113.7] not ready [] ports http:4143,grpc:4143
         test/podinfo is mirrored",
    );
}

#[test]
fn a_plan_carried_out_leaves_nothing_to_do() {
    for extra in ["", "slices"] {
        let mut snapshot = snapshot(&format!(
            "link east gateway=203.0.113.7:4143
             probe probe-gateway-east
             namespace test
             {extra}
             remote test/podinfo ports=http:9898 ready label=app:podinfo annotation=config.linkerd.io/opaque-ports:25
             remote test/idle ports=:80 empty"
        ));
        let first = plan(&snapshot);
        assert!(!first.writes.is_empty());
        carry_out(&mut snapshot, &first);
        assert_eq!(plan(&snapshot).writes, BTreeMap::new());
    }
}

#[test]
fn mirrors_are_labelled_and_annotated_as_documented() {
    let snapshot = snapshot(
        "link east gateway=203.0.113.7:4143 exclude=evil/*
         namespace test
         remote test/podinfo ports=http:9898 ready version=4711 label=app:podinfo label=evil/x:1 label=evil2/x:1 \
         annotation=config.linkerd.io/opaque-ports:25 annotation=mirror.linkerd.io/x:y annotation=evil/x:1",
    );
    let plan = plan(&snapshot);
    let writes = &plan.writes[&Key::new("test", "podinfo-east")];
    let [
        Write::Create { object: service, .. },
        Write::Create {
            object: endpoints, ..
        },
    ] = writes.as_slice()
    else {
        panic!("{writes:?}")
    };
    let labels = json!({
        "mirror.linkerd.io/mirrored-service": "true", "mirror.linkerd.io/cluster-name": "east",
        "app": "podinfo", "evil2/x": "1",
    });
    assert_eq!(service["metadata"]["labels"], labels);
    assert_eq!(endpoints["metadata"]["labels"], labels);
    assert_eq!(
        service["metadata"]["annotations"],
        json!({
            "config.linkerd.io/opaque-ports": "25",
            "mirror.linkerd.io/remote-resource-version": "4711",
            "mirror.linkerd.io/remote-svc-fq-name": "podinfo.test.svc.cluster.local",
        })
    );
    assert_eq!(
        endpoints["metadata"]["annotations"],
        json!({
            "mirror.linkerd.io/remote-svc-fq-name": "podinfo.test.svc.cluster.local",
            "mirror.linkerd.io/remote-gateway-identity": "gateway.identity",
        })
    );
}

#[test]
fn an_unexported_or_deleted_service_loses_its_mirror() {
    check(
        "link east gateway=203.0.113.7:4143
         namespace test
         remote test/private ports=http:80 ready unexported
         local service test/private-east ours
         local service test/gone-east ours
         local endpoints test/gone-east ours",
        "delete Service test/gone-east at 3
         delete Endpoints test/gone-east at 3
         delete Service test/private-east at 3",
    );
}

#[test]
fn a_service_without_ready_pods_has_a_mirror_without_endpoints() {
    check(
        "link east gateway=203.0.113.7:4143
         namespace test
         remote test/podinfo ports=http:9898 empty",
        "create Service test/podinfo-east ports http:9898
         create Endpoints test/podinfo-east empty
         test/podinfo is mirrored",
    );
}

#[test]
fn hand_made_endpoints_cannot_be_seen_so_they_count_as_ready() {
    check(
        "link east gateway=203.0.113.7:4143
         namespace test
         remote test/external ports=http:80 empty hand-made",
        "create Service test/external-east ports http:80
         create Endpoints test/external-east ready [203.0.113.7] not ready [] ports http:4143
         test/external is mirrored",
    );
}

#[test]
fn a_dead_gateway_makes_mirrors_not_ready_but_not_the_probe() {
    check(
        "link east gateway=203.0.113.7:4143 dead
         probe probe-gateway-east
         namespace test
         remote test/podinfo ports=http:9898 ready
         local service test/podinfo-east ours ports=http:9898
         local endpoints test/podinfo-east ours filled",
        "create Endpoints linkerd-multicluster/probe-gateway-east ready [203.0.113.7] not ready [] ports mc-probe:4191
         patch Service test/podinfo-east at 3 ports http:9898
         patch Endpoints test/podinfo-east at 3 ready [] not ready [203.0.113.7] ports http:4143
         test/podinfo is mirrored",
    );
}

#[test]
fn a_foreign_service_with_the_mirrors_name_is_left_alone() {
    check(
        "link east gateway=203.0.113.7:4143
         namespace test
         remote test/podinfo ports=http:9898 ready
         local service test/podinfo-east ports=http:80",
        "test/podinfo conflicts with test/podinfo-east
         event on test/podinfo: a service test/podinfo-east that belongs to somebody else has the mirror's name",
    );
}

#[test]
fn a_missing_namespace_is_told_on_the_target() {
    check(
        "link east gateway=203.0.113.7:4143
         remote test/podinfo ports=http:9898 ready",
        "test/podinfo has no namespace
         event on test/podinfo: namespace does not exist",
    );
}

#[test]
fn names_that_get_too_long_and_services_without_ports_fail_alone() {
    let long = "a".repeat(60);
    check(
        &format!(
            "link east gateway=203.0.113.7:4143
             namespace test
             remote test/{long} ports=http:80 ready
             remote test/nothing ready"
        ),
        &format!(
            "test/{long} can't have a mirror: \"{long}-east\" is 65 characters long; the limit is 63
             test/nothing can't have a mirror: the service exposes no ports
             event on test/{long}: \"{long}-east\" is 65 characters long; the limit is 63
             event on test/nothing: the service exposes no ports"
        ),
    );
}

#[test]
fn endpoints_keep_their_content_while_the_gateways_name_does_not_resolve() {
    check(
        "link east gateway=203.0.113.7:4143 unresolved
         namespace test
         remote test/podinfo ports=http:9898 ready
         local service test/podinfo-east ours ports=http:9898
         local endpoints test/podinfo-east ours filled",
        "patch Service test/podinfo-east at 3 ports http:9898
         test/podinfo failed: Failed to get gateway address: no such host",
    );
}

#[test]
fn while_the_target_is_silent_mirrors_stay_and_the_gateway_is_still_followed() {
    check(
        "link east gateway=203.0.113.9:4143 dead
         no-remote
         namespace test
         local service test/podinfo-east ours ports=http:9898
         local endpoints test/podinfo-east ours filled
         local service test/idle-east ours ports=http:80
         local endpoints test/idle-east ours",
        "patch Endpoints test/idle-east at 3 empty
         patch Endpoints test/podinfo-east at 3 ready [] not ready [203.0.113.9] ports http:4143",
    );
}

#[test]
fn without_its_link_everything_of_it_goes_and_nothing_else() {
    let scenario = "
         probe probe-gateway-east
         namespace test
         local service test/podinfo-east ours
         local endpoints test/podinfo-east ours
         local service test/other-east
         local endpoints linkerd-multicluster/probe-gateway-east probing";
    check(
        scenario,
        "delete Endpoints linkerd-multicluster/probe-gateway-east at 3
         delete Service test/podinfo-east at 3
         delete Endpoints test/podinfo-east at 3",
    );
}

#[test]
fn slices_are_written_where_nothing_copies_endpoints() {
    check(
        "link east gateway=203.0.113.7:4143
         slices
         namespace test
         remote test/podinfo ports=http:9898 ready",
        "create Service test/podinfo-east ports http:9898
         create Endpoints test/podinfo-east ready [203.0.113.7] not ready [] ports http:4143
         create EndpointSlice test/podinfo-east-ipv4 203.0.113.7 ready=true
         test/podinfo is mirrored",
    );
}

const STATEFUL: &str = "
    link east gateway=203.0.113.7:4143
    headless
    namespace test
    remote test/db ports=sql:5432 headless pods=db-0,db-1 unready-pods=db-2 annotation=config.linkerd.io/opaque-ports:5432";

#[test]
fn each_pod_of_a_headless_service_gets_a_mirror_behind_the_gateway() {
    check(
        STATEFUL,
        "create Service test/db-0-east ports sql:5432
         create Endpoints test/db-0-east ready [203.0.113.7] not ready [] ports sql:4143
         create Service test/db-1-east ports sql:5432
         create Endpoints test/db-1-east ready [203.0.113.7] not ready [] ports sql:4143
         create Service test/db-2-east ports sql:5432
         create Endpoints test/db-2-east empty
         create Service test/db-east ports sql:5432
         create Endpoints test/db-east empty
         test/db is mirrored",
    );
}

/// What a headless mirror is after its pods' mirrors have cluster IPs.
fn settled_stateful() -> Snapshot {
    let mut snapshot = snapshot(STATEFUL);
    let first = plan(&snapshot);
    carry_out(&mut snapshot, &first);
    for (at, service) in snapshot.services.values_mut().enumerate() {
        let service = Arc::make_mut(service);
        if !service.is_headless() {
            service.cluster_ip = format!("10.43.0.{at}");
        }
    }
    let second = plan(&snapshot);
    assert_eq!(
        describe(&second),
        "patch Endpoints test/db-east at  ready [10.43.0.0,10.43.0.1] not ready [10.43.0.2] ports http:8080\n\
         test/db is mirrored"
    );
    let Write::Patch { patch, .. } = &second.writes[&Key::new("test", "db-east")][0] else {
        panic!("{second:?}")
    };
    assert_eq!(
        patch["subsets"][0]["addresses"],
        json!([{"hostname": "db-0", "ip": "10.43.0.0"}, {"hostname": "db-1", "ip": "10.43.0.1"}])
    );
    carry_out(&mut snapshot, &second);
    assert_eq!(plan(&snapshot).writes, BTreeMap::new());
    snapshot
}

#[test]
fn a_headless_mirror_lists_its_pods_mirrors_by_name() {
    let snapshot = settled_stateful();
    assert!(snapshot.services[&Key::new("test", "db-east")].is_headless());
    let pod = &snapshot.services[&Key::new("test", "db-1-east")];
    assert_eq!(pod.labels[keys::HEADLESS_MIRROR_SERVICE], "db-east");
    assert_eq!(
        pod.annotations[keys::REMOTE_SERVICE_FQ_NAME],
        "db-1.db.test.svc.cluster.local"
    );
    assert_eq!(pod.annotations[keys::OPAQUE_PORTS], "5432");
}

#[test]
fn a_pod_that_goes_takes_its_mirror_along_and_no_other() {
    let mut snapshot = settled_stateful();
    let remote = snapshot.remote.as_mut().unwrap();
    let endpoints = Arc::make_mut(remote.endpoints.get_mut(&Key::new("test", "db")).unwrap());
    endpoints.instances[0].ready.retain(|pod| pod != "db-1");
    endpoints.resource_version = "71".into();
    assert_eq!(
        describe(&plan(&snapshot)),
        "delete Service test/db-1-east at \n\
         delete Endpoints test/db-1-east at \n\
         patch Endpoints test/db-east at  ready [10.43.0.0] not ready [10.43.0.2] ports http:8080\n\
         test/db is mirrored"
    );
}

#[test]
fn a_dead_gateway_leaves_the_names_of_pods_and_mutes_their_mirrors() {
    let mut snapshot = settled_stateful();
    snapshot.gateway_is_dead = true;
    for _ in 0..2 {
        assert_eq!(
            plan(&snapshot)
                .writes
                .keys()
                .map(|key| key.name.as_str())
                .collect::<Vec<_>>(),
            ["db-0-east", "db-1-east"]
        );
        snapshot.remote = None;
    }
}

#[test]
fn a_headless_service_without_named_pods_is_mirrored_as_a_whole() {
    let scenario = |endpoints: &str| {
        format!(
            "link east gateway=203.0.113.7:4143
             headless
             namespace test
             remote test/db ports=sql:5432 headless {endpoints}"
        )
    };
    check(
        &scenario("ready"),
        "create Service test/db-east ports sql:5432
         create Endpoints test/db-east ready [203.0.113.7] not ready [] ports sql:4143
         test/db is mirrored",
    );
    check(
        &scenario("empty"),
        "test/db waits: The headless service has no endpoints yet",
    );
}

#[test]
fn a_cluster_ip_cannot_come_or_go_so_the_mirror_is_made_anew() {
    check(
        "link east gateway=203.0.113.7:4143
         headless
         namespace test
         remote test/db ports=sql:5432 headless pods=db-0
         local service test/db-east ours ports=sql:5432",
        "delete Service test/db-east at 3
         test/db waits: Its mirror is made anew: a cluster IP can't come or go",
    );
}

#[test]
fn a_pods_mirror_never_takes_the_place_of_another_service() {
    check(
        "link east gateway=203.0.113.7:4143
         headless
         namespace test
         remote test/db ports=sql:5432 headless pods=db-0
         local service test/db-0-east ours ports=http:80",
        "delete Service test/db-0-east at 3
         create Service test/db-east ports sql:5432
         create Endpoints test/db-east empty
         test/db failed: Failed to create mirror endpoints: test/db-0-east exists and does not belong to this \
         service; it is left alone",
    );
}

#[test]
fn a_probe_service_is_made_where_nobody_else_makes_it_and_goes_with_its_link() {
    check(
        "link east gateway=203.0.113.7:4143
         probe probe-gateway-east made",
        "create Probe linkerd-multicluster/probe-gateway-east ports mc-probe:4191
         create Endpoints linkerd-multicluster/probe-gateway-east ready [203.0.113.7] not ready [] ports mc-probe:4191",
    );
    check(
        "probe probe-gateway-east made
         local service linkerd-multicluster/probe-gateway-east probing
         local endpoints linkerd-multicluster/probe-gateway-east probing",
        "delete Probe linkerd-multicluster/probe-gateway-east at 3
         delete Endpoints linkerd-multicluster/probe-gateway-east at 3",
    );
}

#[test]
fn a_missing_namespace_is_made_if_that_is_wanted() {
    check(
        "link east gateway=203.0.113.7:4143
         makes-namespaces
         remote test/podinfo ports=http:9898 ready
         remote test/web ports=http:80 ready",
        "create Namespace /test labels of east
         test/podinfo waits: Its namespace is being created
         test/web waits: Its namespace is being created",
    );
}
