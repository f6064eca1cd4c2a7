//! Answers as proxies get them: from texts, and through a real watch.

use std::net::SocketAddr;
use std::time::Duration;

use linkerd2_proxy_api::destination::destination_client::DestinationClient;
use linkerd2_proxy_api::destination::{
    DestinationProfile, GetDestination, Update, WeightedAddr, protocol_hint, tls_identity, update,
};
use serde_json::json;
use tokio::time::timeout;
use tonic::{Code, Status};

use super::*;
use crate::testing::{Watched, mesh, view, view_with_clusters};
use crate::view::Change;
use crate::view::watch::Feed;

const WEB: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: test}
spec: {clusterIP: 10.96.0.10, ports: [{name: http, port: 80, targetPort: 8080}, {name: db, port: 3306}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: test, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080, protocol: TCP}, {name: db, port: 3306, protocol: TCP}]
endpoints:
- {addresses: [10.42.0.5], conditions: {ready: true}, targetRef: {kind: Pod, name: web-abc-1, namespace: test}}
- {addresses: [10.42.0.6], conditions: {ready: false}, targetRef: {kind: Pod, name: web-abc-2, namespace: test}}
- {addresses: [10.42.0.7], conditions: {ready: true}, targetRef: {kind: Pod, name: unknown, namespace: test}}
---
apiVersion: v1
kind: Pod
metadata:
  name: web-abc-1
  namespace: test
  labels: {linkerd.io/control-plane-ns: linkerd, pod-template-hash: abc}
  annotations: {config.linkerd.io/skip-inbound-ports: '9000'}
  ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: web-abc, uid: u, controller: true}]
spec:
  serviceAccountName: web
  containers: [{name: app, image: app, ports: [{name: http, containerPort: 8080}]}]
status: {phase: Running, podIP: 10.42.0.5, podIPs: [{ip: 10.42.0.5}]}
---
apiVersion: v1
kind: Pod
metadata: {name: plain, namespace: test}
spec: {containers: [{name: app, image: app}]}
status: {phase: Running, podIP: 10.42.0.9, podIPs: [{ip: 10.42.0.9}]}
";

/// What the API server wants to see before it takes the pods.
const ACCOUNT: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: test}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: web, namespace: test}
";

const MIRROR: &str = "
apiVersion: v1
kind: Service
metadata:
  name: web-east
  namespace: test
  annotations: {mirror.linkerd.io/remote-svc-fq-name: web.test.svc.east.example}
spec: {clusterIP: 10.96.0.20, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Endpoints
metadata:
  name: web-east
  namespace: test
  labels: {mirror.linkerd.io/cluster-name: east}
  annotations:
    mirror.linkerd.io/remote-svc-fq-name: web.test.svc.east.example
    mirror.linkerd.io/remote-gateway-identity: gateway.example
subsets: [{addresses: [{ip: 203.0.113.7}], ports: [{name: http, port: 4143, protocol: TCP}]}]
";

fn socket(address: Option<&linkerd2_proxy_api::net::TcpAddress>) -> String {
    address
        .cloned()
        .and_then(|address| SocketAddr::try_from(address).ok())
        .map(|a| a.to_string())
        .unwrap_or_default()
}

fn show_address(address: &WeightedAddr) -> String {
    let mut line = socket(address.addr.as_ref());
    if let Some(identity) = &address.tls_identity {
        if let Some(tls_identity::Strategy::DnsLikeIdentity(name)) = &identity.strategy {
            line += &format!(" id={}", name.name);
        }
        if let Some(name) = &identity.server_name {
            line += &format!(" sni={}", name.name);
        }
    }
    if let Some(hint) = &address.protocol_hint {
        line += match hint.protocol {
            Some(protocol_hint::Protocol::H2(_)) => " h2",
            Some(protocol_hint::Protocol::Opaque(_)) => " opaque",
            None => "",
        };
        if let Some(transport) = &hint.opaque_transport {
            line += &format!(" transport={}", transport.inbound_port);
        }
    }
    if let Some(authority) = &address.authority_override {
        line += &format!(" authority={}", authority.authority_override);
    }
    let labels: std::collections::BTreeMap<_, _> = address.metric_labels.iter().collect();
    for (name, value) in labels {
        line += &format!(" {name}={value}");
    }
    line
}

fn show(update: &Update) -> String {
    match update.update.as_ref().expect("updates aren't empty") {
        update::Update::Add(set) => {
            let labels: std::collections::BTreeMap<_, _> = set.metric_labels.iter().collect();
            let addresses: Vec<String> = set.addrs.iter().map(show_address).collect();
            format!("add {labels:?} {}", addresses.join("; "))
        }
        update::Update::Remove(set) => {
            let addresses: Vec<String> = set.addrs.iter().map(|address| socket(Some(address))).collect();
            format!("remove {}", addresses.join("; "))
        }
        update::Update::NoEndpoints(none) => format!("no endpoints, exists={}", none.exists),
    }
}

fn get(yaml: &str, path: &str) -> Vec<String> {
    get_from(&view(yaml), path).expect("the question is fine")
}

fn get_from(view: &View, path: &str) -> Result<Vec<String>, Status> {
    let Ok(Target::Service {
        service,
        instance,
        port,
    }) = Target::parse(path, "cluster.local")
    else {
        panic!("{path} is not a service")
    };
    let mesh = mesh();
    let found = view.read(|state| {
        endpoints::resolve(
            &mesh,
            state,
            &service,
            instance.as_deref(),
            port,
            &Asker::default(),
            &mut Default::default(),
        )
    });
    found.map(|found| endpoints::updates(None, &found).iter().map(show).collect())
}

fn profile_for(yaml: &str, path: &str, asker: &str) -> Result<DestinationProfile, Status> {
    let target = Target::parse(path, "cluster.local").expect("a valid path");
    let mesh = mesh();
    view(yaml).read(|state| {
        profile::profile(
            &mesh,
            state,
            &target,
            &Asker::parse(asker),
            &mut Default::default(),
        )
    })
}

#[test]
fn a_meshed_pod_is_dialled_at_its_proxy_with_its_identity() {
    assert_eq!(
        get(WEB, "web.test.svc.cluster.local:80"),
        [
            "add {\"namespace\": \"test\", \"service\": \"web\"} 10.42.0.5:8080 \
         id=web.test.serviceaccount.identity.linkerd.cluster.local \
         sni=web.test.serviceaccount.identity.linkerd.cluster.local h2 transport=4143 control_plane_ns=linkerd \
         deployment=web pod=web-abc-1 pod_template_hash=abc serviceaccount=web"
        ]
    );
}

#[test]
fn a_port_where_the_server_speaks_first_is_opaque() {
    let found = get(WEB, "web.test.svc.cluster.local:3306").join("");
    assert!(
        found.contains("10.42.0.5:3306") && found.contains(" opaque transport=4143"),
        "{found}"
    );
}

#[test]
fn a_skipped_port_has_no_identity_and_the_admin_port_no_transport_header() {
    let found = get(WEB, "web.test.svc.cluster.local:9000").join("");
    assert!(
        found.contains("10.42.0.5:9000") && !found.contains("id="),
        "{found}"
    );
    let found = get(WEB, "web.test.svc.cluster.local:4191").join("");
    assert!(found.contains("id=") && !found.contains("transport="), "{found}");
}

#[test]
fn a_server_can_make_a_port_opaque() {
    let server = "
apiVersion: policy.linkerd.io/v1beta3
kind: Server
metadata: {name: web, namespace: test}
spec: {podSelector: {matchLabels: {pod-template-hash: abc}}, port: http, proxyProtocol: opaque}
";
    let found = get(&format!("{WEB}---{server}"), "web.test.svc.cluster.local:80").join("");
    assert!(found.contains(" opaque transport=4143"), "{found}");
}

#[test]
fn a_mirrored_service_is_reached_through_its_gateway() {
    assert_eq!(
        get(MIRROR, "web-east.test.svc.cluster.local:80"),
        [
            "add {\"namespace\": \"test\", \"service\": \"web-east\", \"target_cluster\": \"east\", \
         \"target_service\": \"web\", \"target_service_namespace\": \"test\"} 203.0.113.7:4143 \
         id=gateway.example h2 authority=web.test.svc.east.example:80"
        ]
    );
}

/// A mirror without a gateway, and what it mirrors.
const FLAT: &str = "
apiVersion: v1
kind: Service
metadata:
  name: web-east
  namespace: test
  labels: {multicluster.linkerd.io/remote-discovery: east, multicluster.linkerd.io/remote-service: web}
spec: {clusterIP: 10.96.0.20, ports: [{name: http, port: 80}]}
";

const FEDERATED: &str = "
apiVersion: v1
kind: Service
metadata:
  name: web-federated
  namespace: test
  labels: {mirror.linkerd.io/mirrored-service: 'true'}
  annotations:
    multicluster.linkerd.io/local-discovery: web
    multicluster.linkerd.io/remote-discovery: 'web@east,nonsense,web@unknown,web@north'
spec: {clusterIP: 10.96.0.30, ports: [{name: http, port: 80}]}
";

/// [`WEB`] with pods of other addresses.
fn web_at(network: &str) -> String {
    WEB.replace("10.42.0.", network)
}

fn addresses(updates: &[String]) -> Vec<String> {
    let text = updates.join("");
    let mut found: Vec<String> = text
        .split_whitespace()
        .filter(|word| word.starts_with("10.") && word.contains(':'))
        .map(str::to_owned)
        .collect();
    found.sort();
    found
}

#[test]
fn a_service_of_another_cluster_is_its_pods_with_that_clusters_identities() {
    let east = web_at("10.42.32.");
    let view = view_with_clusters(FLAT, &[("east", "east.example", &east)]);
    assert_eq!(
        get_from(&view, "web-east.test.svc.cluster.local:80").unwrap(),
        [
            "add {\"namespace\": \"test\", \"service\": \"web-east\"} 10.42.32.5:8080 \
         id=web.test.serviceaccount.identity.linkerd.east.example \
         sni=web.test.serviceaccount.identity.linkerd.east.example h2 transport=4143 control_plane_ns=linkerd \
         deployment=web pod=web-abc-1 pod_template_hash=abc serviceaccount=web target_cluster=east \
         target_service=web target_service_namespace=test"
        ]
    );
    let lost = view_with_clusters(FLAT, &[]);
    assert_eq!(
        get_from(&lost, "web-east.test.svc.cluster.local:80").unwrap(),
        ["no endpoints, exists=true"],
        "until the cluster is known"
    );
    let nameless = FLAT.replace(", multicluster.linkerd.io/remote-service: web", "");
    let refused = get_from(
        &view_with_clusters(&nameless, &[]),
        "web-east.test.svc.cluster.local:80",
    );
    assert_eq!(refused.unwrap_err().code(), Code::FailedPrecondition);
}

#[test]
fn a_federated_service_is_the_union_of_its_members_and_one_that_is_missing_takes_none_away() {
    let (east, north) = (web_at("10.42.32."), web_at("10.42.64."));
    let here = format!("{WEB}---{FEDERATED}");
    let path = "web-federated.test.svc.cluster.local:80";
    let all = [
        ("east", "example", east.as_str()),
        ("north", "example", north.as_str()),
    ];
    let view = view_with_clusters(&here, &all);
    assert_eq!(
        addresses(&get_from(&view, path).unwrap()),
        ["10.42.0.5:8080", "10.42.32.5:8080", "10.42.64.5:8080"]
    );
    view.apply(Change::Cluster("east".into(), None));
    assert_eq!(
        addresses(&get_from(&view, path).unwrap()),
        ["10.42.0.5:8080", "10.42.64.5:8080"]
    );
}

#[test]
fn no_plain_text_crosses_to_another_cluster() {
    let east = web_at("10.42.32.").replace("labels: {linkerd.io/control-plane-ns: linkerd, ", "labels: {");
    let view = view_with_clusters(FLAT, &[("east", "east.example", &east)]);
    assert_eq!(
        get_from(&view, "web-east.test.svc.cluster.local:80").unwrap(),
        ["no endpoints, exists=true"]
    );
}

#[test]
fn a_pod_of_another_cluster_is_known_by_its_address() {
    let east = web_at("10.42.32.");
    let view = view_with_clusters(FLAT, &[("east", "east.example", &east)]);
    let profile = |address: &str| {
        let target = Target::parse(address, "cluster.local").unwrap();
        let mesh = mesh();
        view.read(|state| profile::profile(&mesh, state, &target, &Asker::default(), &mut Default::default()))
            .unwrap()
    };
    let endpoint = show_address(&profile("10.42.32.5:8080").endpoint.unwrap());
    assert!(
        endpoint.starts_with("10.42.32.5:8080 id=web.test.serviceaccount.identity.linkerd.east.example"),
        "{endpoint}"
    );
    assert_eq!(profile("10.42.32.9:80").endpoint, None, "not in the mesh");
}

#[test]
fn what_does_not_exist_is_said_at_once() {
    assert_eq!(
        get(WEB, "nothing.test.svc.cluster.local:80"),
        ["no endpoints, exists=false"]
    );
    assert_eq!(
        get(WEB, "web-0.web.test.svc.cluster.local:80"),
        ["no endpoints, exists=true"]
    );
}

#[test]
fn a_service_has_a_name_and_a_pod_has_itself() {
    let service = profile_for(WEB, "10.96.0.10:80", "").unwrap();
    assert_eq!(service.fully_qualified_name, "web.test.svc.cluster.local");
    assert!(!service.opaque_protocol && service.endpoint.is_none() && service.dst_overrides.is_empty());
    assert!(profile_for(WEB, "10.96.0.10:3306", "").unwrap().opaque_protocol);
    assert_eq!(
        profile_for(WEB, "10.96.0.10:81", "")
            .unwrap()
            .fully_qualified_name,
        "",
        "not a port of the service"
    );

    let pod = profile_for(WEB, "10.42.0.5:8080", "").unwrap();
    assert_eq!(pod.fully_qualified_name, "");
    assert!(show_address(&pod.endpoint.unwrap()).starts_with("10.42.0.5:8080 id=web.test."));
    let plain = profile_for(WEB, "10.42.0.9:80", "").unwrap();
    assert_eq!(
        show_address(&plain.endpoint.unwrap()),
        "10.42.0.9:80 pod=plain serviceaccount=default"
    );

    assert!(
        profile_for(WEB, "10.42.0.77:80", "").unwrap().endpoint.is_none(),
        "nothing of the cluster has it"
    );
    assert!(
        profile_for(WEB, "192.0.2.1:80", "").unwrap().endpoint.is_some(),
        "outside of the cluster"
    );
}

fn overrides(weights: &str) -> Vec<(String, u32)> {
    let split = format!(
        "{WEB}---
apiVersion: split.smi-spec.io/v1alpha2
kind: TrafficSplit
metadata: {{name: web, namespace: test}}
spec: {{service: web, backends: [{weights}]}}
"
    );
    let profile = profile_for(&split, "10.96.0.10:80", "").unwrap();
    profile
        .dst_overrides
        .into_iter()
        .map(|dst| (dst.authority, dst.weight))
        .collect()
}

#[test]
fn a_split_overrides_the_destination_unless_all_weights_are_zero() {
    let authority = |service: &str| format!("{service}.test.svc.cluster.local.:80");
    assert_eq!(
        overrides("{service: web, weight: 1}, {service: web-east, weight: 500m}"),
        [(authority("web"), 10_000), (authority("web-east"), 5_000)]
    );
    assert_eq!(
        overrides("{service: web, weight: 0}, {service: web-east, weight: '0'}"),
        []
    );
}

const GATEWAY: &str = "
apiVersion: v1
kind: Pod
metadata:
  name: gateway
  namespace: mc
  annotations: {config.linkerd.io/enable-gateway: 'true'}
spec: {containers: [{name: pause, image: pause}]}
status: {phase: Running, podIP: 10.42.0.50, podIPs: [{ip: 10.42.0.50}]}
";

#[test]
fn a_gateway_is_told_only_of_exported_services() {
    let exported = WEB.replace(
        "{name: web, namespace: test}",
        "{name: web, namespace: test, labels: {mirror.linkerd.io/exported: 'true'}}",
    );
    let gateway = r#"{"ns":"mc", "nodeName":"n", "pod":"gateway"}"#;
    let path = "web.test.svc.cluster.local:80";
    let ask = |yaml: &str, path: &str, asker: &str| {
        profile_for(&format!("{yaml}---{GATEWAY}"), path, asker).map(|profile| profile.fully_qualified_name)
    };
    let refused = ask(WEB, path, gateway).unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (
            Code::FailedPrecondition,
            "service test/web is not exported to other clusters"
        )
    );
    assert_eq!(
        ask(&exported, path, gateway).unwrap(),
        "web.test.svc.cluster.local"
    );
    assert_eq!(
        ask(WEB, path, r#"{"ns":"test","pod":"plain"}"#).unwrap(),
        "web.test.svc.cluster.local"
    );
}

#[tokio::test]
async fn proxies_follow_the_cluster_through_its_watches() {
    let cluster = Watched::start(&FEEDS[..4], &format!("{ACCOUNT}---{WEB}")).await;
    let server = server(cluster.view.clone(), Arc::new(mesh()), cluster.drain.clone());
    let mut client = DestinationClient::new(server);
    let request = GetDestination {
        path: "web.test.svc.cluster.local:80".into(),
        ..GetDestination::default()
    };
    let mut updates = client.get(request).await.unwrap().into_inner();
    let mut next = async || {
        let update = timeout(Duration::from_secs(5), updates.message())
            .await
            .expect("changes come promptly");
        show(&update.unwrap().expect("the stream goes on"))
            .split_whitespace()
            .take(6)
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(
        next().await,
        "add {\"namespace\": \"test\", \"service\": \"web\"} 10.42.0.5:8080"
    );

    let slice = "/apis/discovery.k8s.io/v1/namespaces/test/endpointslices/web-1";
    let endpoint = |pod: &str, ip: &str| json!({"addresses": [ip], "conditions": {"ready": true}, "targetRef": {"kind": "Pod", "name": pod, "namespace": "test"}});
    cluster
        .patch(slice, json!({"endpoints": [endpoint("plain", "10.42.0.9")]}))
        .await;
    assert_eq!(
        next().await,
        "add {\"namespace\": \"test\", \"service\": \"web\"} 10.42.0.9:8080"
    );
    assert_eq!(next().await, "remove 10.42.0.5:8080");
    cluster.patch(slice, json!({"endpoints": []})).await;
    assert_eq!(next().await, "no endpoints, exists=true");
    cluster.delete("/api/v1/namespaces/test/services/web").await;
    assert_eq!(next().await, "no endpoints, exists=false");
}

#[tokio::test]
async fn a_split_takes_effect_as_soon_as_its_kind_is_defined() {
    let cluster = Watched::start(
        &[Feed::Services, Feed::TrafficSplits],
        "
apiVersion: v1
kind: Namespace
metadata: {name: test}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: test}
spec: {ports: [{name: http, port: 80}]}
",
    )
    .await;
    let server = server(cluster.view.clone(), Arc::new(mesh()), cluster.drain.clone());
    let mut client = DestinationClient::new(server);
    let request = GetDestination {
        path: "web.test.svc.cluster.local:80".into(),
        ..GetDestination::default()
    };
    let mut profiles = client.get_profile(request).await.unwrap().into_inner();
    let mut next = async || {
        let profile = timeout(Duration::from_secs(10), profiles.message())
            .await
            .expect("changes come promptly");
        profile
            .unwrap()
            .expect("the stream goes on")
            .dst_overrides
            .iter()
            .map(|dst| dst.weight)
            .collect::<Vec<_>>()
    };
    assert_eq!(next().await, [0; 0]);
    let definition = hawser_crd::manifests::traffic_splits();
    cluster.create(&definition.to_string()).await;
    cluster
        .create(
            "
apiVersion: split.smi-spec.io/v1alpha2
kind: TrafficSplit
metadata: {name: web, namespace: test}
spec: {service: web, backends: [{service: web, weight: 1}, {service: other, weight: 3}]}
",
        )
        .await;
    assert_eq!(next().await, [10_000, 30_000]);
    cluster
        .delete("/apis/split.smi-spec.io/v1alpha2/namespaces/test/trafficsplits/web")
        .await;
    assert_eq!(next().await, [0; 0]);
}
