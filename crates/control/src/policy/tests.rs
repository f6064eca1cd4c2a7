//! Policies as proxies get them: from texts, and through a real watch.

use linkerd2_proxy_api::inbound::inbound_server_policies_client::InboundServerPoliciesClient;
use linkerd2_proxy_api::inbound::{Authz, authn, proxy_protocol};
use linkerd2_proxy_api::meta::metadata;
use linkerd2_proxy_api::outbound::proxy_protocol as outbound_protocol;
use serde_json::json;
use tokio::time::timeout;

use super::*;
use crate::testing::{Watched, mesh, view};

const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: test, labels: {app: web}, annotations: {config.linkerd.io/opaque-ports: '9999'}}
spec:
  containers:
  - {name: app, image: app, ports: [{name: http, containerPort: 8080}], readinessProbe: {httpGet: {path: /healthz, port: http}}}
  initContainers:
  - name: linkerd-proxy
    image: proxy
    restartPolicy: Always
    ports: [{name: linkerd-proxy, containerPort: 4143}, {name: linkerd-admin, containerPort: 4191}]
    livenessProbe: {httpGet: {path: /live, port: 4191}}
    readinessProbe: {httpGet: {path: /ready, port: 4191}}
status: {phase: Running, podIP: 10.42.0.5, podIPs: [{ip: 10.42.0.5}]}
";

const SERVER: &str = "
apiVersion: policy.linkerd.io/v1beta3
kind: Server
metadata: {name: web, namespace: test, labels: {tier: front}}
spec: {podSelector: {matchLabels: {app: web}}, port: http, proxyProtocol: HTTP/1}
";

fn show_authz(authz: &Authz) -> String {
    let name = authz.labels.get("name").cloned().unwrap_or_default();
    let networks: Vec<String> = authz
        .networks
        .iter()
        .map(|network| {
            let net =
                |net: &linkerd2_proxy_api::net::IpNetwork| ipnet::IpNet::try_from(*net).unwrap().to_string();
            let except: Vec<String> = network.except.iter().map(net).collect();
            let except = if except.is_empty() {
                String::new()
            } else {
                format!("-{}", except.join("-"))
            };
            format!("{}{except}", network.net.as_ref().map(net).unwrap_or_default())
        })
        .collect();
    let clients = match authz
        .authentication
        .as_ref()
        .and_then(|authn| authn.permit.as_ref())
        .unwrap()
    {
        authn::Permit::Unauthenticated(_) => "anyone".to_owned(),
        authn::Permit::MeshTls(tls) => match tls.clients.as_ref().unwrap() {
            authn::permit_mesh_tls::Clients::Unauthenticated(_) => "tls".to_owned(),
            authn::permit_mesh_tls::Clients::Identities(permitted) => {
                let exact = permitted.identities.iter().map(|identity| identity.name.clone());
                let suffixes = permitted
                    .suffixes
                    .iter()
                    .map(|suffix| format!("*.{}", suffix.parts.join(".")));
                exact.chain(suffixes).collect::<Vec<_>>().join(" ")
            }
        },
    };
    assert!(authz.metadata.is_some(), "proxies want metadata");
    format!("{name}: {clients} from {}", networks.join(" "))
}

fn show(server: &Server) -> Vec<String> {
    let protocol = match server
        .protocol
        .as_ref()
        .and_then(|protocol| protocol.kind.as_ref())
        .unwrap()
    {
        proxy_protocol::Kind::Detect(detect) => {
            assert!(detect.timeout.is_some(), "proxies want a timeout");
            "detect"
        }
        proxy_protocol::Kind::Http1(_) => "http/1",
        proxy_protocol::Kind::Opaque(_) => "opaque",
        _ => "other",
    };
    let mut lines = vec![format!(
        "{} {} {protocol}",
        server.labels["kind"], server.labels["name"]
    )];
    lines.extend(server.authorizations.iter().map(show_authz));
    lines
}

fn inbound_policy(yaml: &str, port: u16) -> Server {
    let mesh = mesh();
    let pod = Key::new("test", "web-1");
    view(yaml)
        .read(|state| inbound::policy(&mesh, state, &pod, port, &mut Topics::new()))
        .expect("the pod is known")
}

fn with(objects: &[&str]) -> String {
    [&[POD], objects].concat().join("---")
}

#[test]
fn without_a_server_the_default_policy_holds() {
    assert_eq!(
        show(&inbound_policy(POD, 8080)),
        [
            "default all-unauthenticated detect",
            "all-unauthenticated: anyone from 0.0.0.0/0 ::/0"
        ]
    );
    assert_eq!(
        show(&inbound_policy(POD, 9999))[0],
        "default all-unauthenticated opaque"
    );
    let annotated = POD.replace(
        "annotations: {",
        "annotations: {config.linkerd.io/default-inbound-policy: cluster-authenticated, ",
    );
    assert_eq!(
        show(&inbound_policy(&annotated, 8080)),
        [
            "default cluster-authenticated detect",
            "cluster-authenticated: *. from 10.0.0.0/8 100.64.0.0/10 172.16.0.0/12 192.168.0.0/16 fd00::/8"
        ]
    );
    let required = POD.replace(
        "annotations: {",
        "annotations: {config.linkerd.io/proxy-require-identity-inbound-ports: '4143', ",
    );
    assert_eq!(
        show(&inbound_policy(&required, 4143))[1],
        "all-authenticated: *. from 0.0.0.0/0 ::/0"
    );
}

#[test]
fn a_server_lets_in_nobody_until_something_is_granted() {
    assert_eq!(
        show(&inbound_policy(&with(&[SERVER]), 8080)),
        ["server web http/1"]
    );
    let lenient = SERVER.replace("proxyProtocol: HTTP/1", "accessPolicy: all-authenticated");
    assert_eq!(
        show(&inbound_policy(&with(&[&lenient]), 8080))[1],
        "all-authenticated: *. from 0.0.0.0/0 ::/0"
    );
}

#[test]
fn server_authorizations_select_by_name_or_label() {
    let authorization = "
apiVersion: policy.linkerd.io/v1beta1
kind: ServerAuthorization
metadata: {name: callers, namespace: test}
spec:
  server: {selector: {matchLabels: {tier: front}}}
  client:
    networks: [{cidr: 10.0.0.0/8, except: [10.1.0.0/16]}]
    meshTLS: {identities: ['*.ns.serviceaccount.identity.linkerd.cluster.local'], serviceAccounts: [{name: bot}]}
";
    assert_eq!(
        show(&inbound_policy(&with(&[SERVER, authorization]), 8080)),
        [
            "server web http/1",
            "callers: bot.test.serviceaccount.identity.linkerd.cluster.local \
         *.ns.serviceaccount.identity.linkerd.cluster.local from 10.0.0.0/8-10.1.0.0/16"
        ]
    );
    let broken = authorization.replace("10.1.0.0/16", "nonsense");
    assert_eq!(
        show(&inbound_policy(&with(&[SERVER, &broken]), 8080)).len(),
        1,
        "an unreadable exception grants nothing"
    );
}

const POLICY: &str = "
apiVersion: policy.linkerd.io/v1alpha1
kind: AuthorizationPolicy
metadata: {name: policy, namespace: test}
spec:
  targetRef: {group: policy.linkerd.io, kind: Server, name: web}
  requiredAuthenticationRefs:
  - {group: policy.linkerd.io, kind: MeshTLSAuthentication, name: any, namespace: auth}
  - {group: policy.linkerd.io, kind: NetworkAuthentication, name: source}
";
const ANY: &str = "
apiVersion: policy.linkerd.io/v1alpha1
kind: MeshTLSAuthentication
metadata: {name: any, namespace: auth}
spec: {identities: ['*']}
";
const NETWORK: &str = "
apiVersion: policy.linkerd.io/v1alpha1
kind: NetworkAuthentication
metadata: {name: source, namespace: test}
spec: {networks: [{cidr: 0.0.0.0/0}, {cidr: '::/0'}]}
";

#[test]
fn all_that_a_policy_requires_must_exist() {
    assert_eq!(
        show(&inbound_policy(&with(&[SERVER, POLICY, ANY, NETWORK]), 8080)),
        ["server web http/1", "policy: *. from 0.0.0.0/0 ::/0"]
    );
    assert_eq!(
        show(&inbound_policy(&with(&[SERVER, POLICY, NETWORK]), 8080)),
        ["server web http/1"]
    );
    assert_eq!(
        show(&inbound_policy(&with(&[SERVER, POLICY, ANY]), 8080)),
        ["server web http/1"]
    );
}

#[test]
fn probes_are_let_in_whatever_the_policy() {
    let deny = POD.replace(
        "annotations: {",
        "annotations: {config.linkerd.io/default-inbound-policy: deny, ",
    );
    let server = inbound_policy(&deny, 4191);
    assert!(server.authorizations.is_empty());
    let Some(proxy_protocol::Kind::Detect(detect)) = server.protocol.and_then(|protocol| protocol.kind)
    else {
        panic!("the admin port is detected")
    };
    let probe = &detect.http_routes[1];
    assert_eq!(
        probe.metadata.as_ref().and_then(|metadata| metadata.kind.clone()),
        Some(metadata::Kind::Default("probe".into()))
    );
    let shown = format!("{:?}", probe.rules);
    assert!(
        shown.contains("\"/live\"") && shown.contains("\"/ready\""),
        "{shown}"
    );
    assert_eq!(
        show_authz(&probe.authorizations[0]),
        "probe: anyone from 0.0.0.0/0 ::/0"
    );
}

fn outbound_policy(yaml: &str, target: &str, asker: &str) -> Result<OutboundPolicy, Status> {
    let target = Target::parse(target, "cluster.local").expect("a valid target");
    let mesh = mesh();
    view(yaml).read(|state| outbound::policy(&mesh, state, &target, &Asker::parse(asker), &mut Topics::new()))
}

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: test, annotations: {balancer.linkerd.io/failure-accrual: consecutive}}
spec: {clusterIP: 10.96.0.10, ports: [{name: http, port: 80}, {name: db, port: 5432}, {name: h2, port: 81, appProtocol: kubernetes.io/h2c}]}
";

#[test]
fn a_service_has_all_that_a_proxy_insists_on() {
    let policy = outbound_policy(SERVICE, "10.96.0.10:80", "").unwrap();
    let Some(outbound_protocol::Kind::Detect(detect)) = policy.protocol.and_then(|protocol| protocol.kind)
    else {
        panic!("plain ports are detected")
    };
    assert!(detect.timeout.is_some() && detect.opaque.is_some() && detect.http2.is_some());
    let http1 = detect.http1.unwrap();
    assert!(http1.failure_accrual.is_some());
    let shown = format!("{:?}", http1.routes);
    for part in [
        "Default(\"http\")",
        "\"web.test.svc.cluster.local:80\"",
        "capacity: 100",
        "PeakEwma",
        "kind: \"Service\"",
    ] {
        assert!(shown.contains(part), "{part} in {shown}");
    }
    assert!(format!("{:?}", detect.opaque).contains("Default(\"opaq\")"));
}

#[test]
fn protocols_follow_ports_and_what_is_unknown_is_not_found() {
    let kind = |target: &str| {
        let policy = outbound_policy(&format!("{SERVICE}---{POD}"), target, "");
        match policy.map(|policy| policy.protocol.and_then(|protocol| protocol.kind)) {
            Err(status) => format!("{:?}", status.code()),
            Ok(Some(outbound_protocol::Kind::Detect(_))) => "detect".into(),
            Ok(Some(outbound_protocol::Kind::Opaque(opaque))) => {
                if format!("{opaque:?}").contains("Forbidden") {
                    "forbidden".into()
                } else {
                    "opaque".into()
                }
            }
            Ok(Some(outbound_protocol::Kind::Http2(_))) => "http/2".into(),
            Ok(other) => format!("{other:?}"),
        }
    };
    for (target, expected) in [
        ("10.96.0.10:80", "detect"),
        ("web.test.svc.cluster.local:80", "detect"),
        ("10.96.0.10:5432", "opaque"),
        ("10.96.0.10:81", "http/2"),
        ("10.96.0.10:82", "forbidden"),
        ("10.42.0.5:8080", "NotFound"),
        ("10.42.0.99:80", "NotFound"),
        ("192.0.2.1:443", "detect"),
        ("other.test.svc.cluster.local:80", "NotFound"),
    ] {
        assert_eq!(kind(target), expected, "{target}");
    }
}

#[test]
fn a_gateway_gets_no_policy_for_what_is_not_exported() {
    let gateway = POD.replace(
        "annotations: {",
        "annotations: {config.linkerd.io/enable-gateway: 'true', ",
    );
    let yaml = format!("{SERVICE}---{gateway}");
    let asker = r#"{"ns":"test","pod":"web-1"}"#;
    let refused = outbound_policy(&yaml, "web.test.svc.cluster.local:80", asker).unwrap_err();
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
    let exported = yaml.replace(
        "{name: web, namespace: test, ann",
        "{name: web, namespace: test, labels: {mirror.linkerd.io/exported: 'true'}, ann",
    );
    assert!(outbound_policy(&exported, "web.test.svc.cluster.local:80", asker).is_ok());
}

#[test]
fn workloads_are_read_in_both_forms() {
    assert_eq!(workload(r#"{"ns":"a", "pod":"b"}"#).unwrap(), Key::new("a", "b"));
    assert_eq!(workload("a:b").unwrap(), Key::new("a", "b"));
    for wrong in ["", "a", "{}", ":b", "a:"] {
        assert!(workload(wrong).is_err(), "{wrong}");
    }
}

#[tokio::test]
async fn proxies_follow_policies_through_their_watches() {
    let definitions: Vec<String> = hawser_crd::manifests::policy()
        .iter()
        .map(ToString::to_string)
        .collect();
    let namespaces = "apiVersion: v1\nkind: Namespace\nmetadata: {name: test}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: auth}\n";
    let cluster = Watched::start(
        &FEEDS,
        &format!("{namespaces}---{POD}---\n{}", definitions.join("\n---\n")),
    )
    .await;
    let routes = routes(cluster.view.clone(), Arc::new(mesh()), cluster.drain.clone());
    let mut client = InboundServerPoliciesClient::new(routes);
    let spec = PortSpec {
        workload: r#"{"ns":"test","pod":"web-1"}"#.into(),
        port: 8080,
    };
    let mut updates = client.watch_port(spec).await.unwrap().into_inner();
    let mut next = async || {
        let update = timeout(Duration::from_secs(5), updates.message())
            .await
            .expect("changes come promptly");
        show(&update.unwrap().expect("the stream goes on"))
    };
    assert_eq!(next().await[0], "default all-unauthenticated detect");
    cluster.create(SERVER).await;
    assert_eq!(next().await, ["server web http/1"]);
    cluster.create(&[NETWORK, POLICY, ANY].join("---")).await;
    assert_eq!(
        next().await,
        ["server web http/1", "policy: *. from 0.0.0.0/0 ::/0"]
    );
    let network = "/apis/policy.linkerd.io/v1alpha1/namespaces/test/networkauthentications/source";
    cluster
        .patch(network, json!({"spec": {"networks": [{"cidr": "10.0.0.0/8"}]}}))
        .await;
    assert_eq!(next().await[1], "policy: *. from 10.0.0.0/8");
}
