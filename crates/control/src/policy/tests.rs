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

/// What a route does to requests, for people: per rule its matches, filters, backends and the rest.
fn show_http(route: &linkerd2_proxy_api::outbound::HttpRoute) -> Vec<String> {
    use linkerd2_proxy_api::outbound::http_route::distribution::Kind;
    use linkerd2_proxy_api::outbound::http_route::{RouteBackend, filter};
    let name = match route.metadata.as_ref().and_then(|meta| meta.kind.as_ref()) {
        Some(metadata::Kind::Resource(resource)) => format!("{} {}", resource.kind, resource.name),
        Some(metadata::Kind::Default(name)) => name.clone(),
        None => panic!("proxies want metadata"),
    };
    let filters = |filters: &[linkerd2_proxy_api::outbound::http_route::Filter]| -> String {
        let show = |filter: &linkerd2_proxy_api::outbound::http_route::Filter| match &filter.kind {
            Some(filter::Kind::FailureInjector(failure)) => {
                assert!(failure.ratio.is_some(), "or it never strikes");
                format!(" fails {} {:?}", failure.status, failure.message)
            }
            Some(filter::Kind::RequestHeaderModifier(change)) => format!(" removes {:?}", change.remove),
            Some(filter::Kind::Redirect(redirect)) => format!(" redirects {}", redirect.status),
            other => format!(" {other:?}"),
        };
        filters.iter().map(show).collect()
    };
    let backend = |backend: Option<&RouteBackend>| {
        let found = backend.unwrap();
        let inner = found.backend.as_ref().unwrap();
        assert!(
            inner.metadata.is_some() && inner.queue.is_some(),
            "proxies insist on both"
        );
        let path = match &inner.kind {
            Some(linkerd2_proxy_api::outbound::backend::Kind::Balancer(balancer)) => {
                match &balancer.discovery.as_ref().unwrap().kind {
                    Some(linkerd2_proxy_api::outbound::backend::endpoint_discovery::Kind::Dst(dst)) => {
                        dst.path.replace(".test.svc.cluster.local", "")
                    }
                    None => String::new(),
                }
            }
            _ => "nowhere".to_owned(),
        };
        format!("{path}{}", filters(&found.filters))
    };
    let mut lines = vec![format!("{name} {:?}", route.hosts.len())];
    for rule in &route.rules {
        let backends = match rule.backends.as_ref().unwrap().kind.as_ref().unwrap() {
            Kind::FirstAvailable(first) => backend(first.backends.first()),
            Kind::RandomAvailable(random) => random
                .backends
                .iter()
                .map(|weighted| format!("{}:{}", backend(weighted.backend.as_ref()), weighted.weight))
                .collect::<Vec<_>>()
                .join(" "),
            Kind::Empty(_) => "nothing".into(),
        };
        let matches = rule.matches.iter().map(|found| {
            let path = found.path.as_ref().and_then(|path| path.kind.clone());
            format!("{path:?} {} {}", found.headers.len(), found.query_params.len())
        });
        let timeout = rule.timeouts.and_then(|timeouts| timeouts.request);
        let timeout = timeout.map_or_else(String::new, |timeout| format!(" within {} s", timeout.seconds));
        let retry = rule.retry.as_ref().map_or_else(String::new, |retry| {
            let ranges = &retry.conditions.as_ref().unwrap().status_ranges;
            let ranges: Vec<String> = ranges
                .iter()
                .map(|range| format!("{}-{}", range.start, range.end))
                .collect();
            format!(" retries {} on {}", retry.max_retries, ranges.join(","))
        });
        lines.push(format!(
            "{}{} -> {backends}{timeout}{retry}",
            matches.collect::<Vec<_>>().join(" or "),
            filters(&rule.filters)
        ));
    }
    lines
}

fn http_routes(policy: &OutboundPolicy) -> Vec<String> {
    match policy.protocol.as_ref().unwrap().kind.as_ref().unwrap() {
        outbound_protocol::Kind::Detect(detect) => {
            let (http1, http2) = (detect.http1.as_ref().unwrap(), detect.http2.as_ref().unwrap());
            assert_eq!(http1.routes, http2.routes);
            http1.routes.iter().flat_map(show_http).collect()
        }
        other => panic!("{other:?}"),
    }
}

const SHOP: &str = "
apiVersion: v1
kind: Service
metadata: {name: shop, namespace: test, annotations: {retry.linkerd.io/http: '5xx'}}
spec: {clusterIP: 10.96.0.40, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: shop-v2, namespace: test}
spec: {clusterIP: 10.96.0.41, ports: [{name: http, port: 80}]}
";

const SHOP_ROUTE: &str = "
apiVersion: GROUP
kind: HTTPRoute
metadata:
  name: shop
  namespace: test
  annotations: {retry.linkerd.io/http: 'gateway-error,429', retry.linkerd.io/limit: '3', timeout.linkerd.io/request: 5s}
spec:
  parentRefs: [{group: core, kind: Service, name: shop, port: 80}]
  hostnames: ['*.example.com']
  rules:
  - matches:
    - {path: {type: Exact, value: /buy}, headers: [{name: x-beta, value: 'yes'}]}
    - {path: {type: RegularExpression, value: '/v[12]/.*'}, queryParams: [{name: q, value: a}]}
    filters: [{type: RequestHeaderModifier, requestHeaderModifier: {remove: [x-debug]}}]
    backendRefs: [{name: shop, port: 80, weight: 9}, {name: shop-v2, port: 80}, {name: gone, port: 80, weight: 2}]
    timeouts: {request: 2s}
  - filters: [{type: URLRewrite, urlRewrite: {hostname: a}}]
  - backendRefs: [{name: shop, port: 80, weight: 0}]
";

#[test]
fn routes_of_both_groups_become_matches_filters_and_weighted_backends() {
    for group in ["policy.linkerd.io/v1beta3", "gateway.networking.k8s.io/v1"] {
        let yaml = format!("{SHOP}---{}", SHOP_ROUTE.replace("GROUP", group));
        let policy = outbound_policy(&yaml, "10.96.0.40:80", "").unwrap();
        assert_eq!(
            http_routes(&policy),
            [
                "HTTPRoute shop 1",
                "Some(Exact(\"/buy\")) 1 0 or Some(Regex(\"/v[12]/.*\")) 0 1 removes [\"x-debug\"] -> \
                 shop:80:9 shop-v2:80:1 nowhere fails 500 \"Service not found gone\":2 within 2 s \
                 retries 3 on 502-504,429-429",
                "Some(Prefix(\"/\")) 0 0 fails 500 \"Filter not supported URLRewrite\" -> shop:80 within 5 s \
                 retries 3 on 502-504,429-429",
                "Some(Prefix(\"/\")) 0 0 -> nowhere fails 500 \"No backend has any weight\":1 within 5 s \
                 retries 3 on 502-504,429-429",
            ],
            "{group}"
        );
    }
}

#[test]
fn without_routes_a_services_annotations_still_hold() {
    let policy = outbound_policy(SHOP, "10.96.0.40:80", "").unwrap();
    assert_eq!(
        http_routes(&policy),
        [
            "http 0",
            "Some(Prefix(\"/\")) 0 0 -> shop:80 retries 1 on 500-599"
        ]
    );
    let wrong = SHOP.replace("'5xx'", "'5xx,soon'");
    let policy = outbound_policy(&wrong, "10.96.0.40:80", "").unwrap();
    assert_eq!(
        http_routes(&policy),
        ["http 0", "Some(Prefix(\"/\")) 0 0 -> shop:80"]
    );
}

#[test]
fn a_clients_own_routes_replace_those_of_the_service_for_it_alone() {
    let producer = SHOP_ROUTE.replace("GROUP", "policy.linkerd.io/v1beta3");
    let consumer = producer
        .replace("name: shop\n  namespace: test", "name: mine\n  namespace: other")
        .replace(
            "kind: Service, name: shop,",
            "kind: Service, name: shop, namespace: test,",
        );
    let yaml = format!("{SHOP}---{producer}---{consumer}");
    let first = |asker: &str| {
        let policy = outbound_policy(&yaml, "10.96.0.40:80", asker).unwrap();
        http_routes(&policy).remove(0)
    };
    assert_eq!(first(r#"{"ns":"other","pod":"p"}"#), "HTTPRoute mine 1");
    assert_eq!(first(r#"{"ns":"third","pod":"p"}"#), "HTTPRoute shop 1");
}

#[test]
fn a_route_for_another_port_or_kind_of_parent_changes_nothing() {
    let route = SHOP_ROUTE.replace("GROUP", "gateway.networking.k8s.io/v1");
    for elsewhere in [
        route.replace(
            "name: shop, port: 80}]\n  hostnames",
            "name: shop, port: 81}]\n  hostnames",
        ),
        route.replace(
            "group: core, kind: Service",
            "group: gateway.networking.k8s.io, kind: Gateway",
        ),
    ] {
        assert_ne!(elsewhere, route);
        let policy = outbound_policy(&format!("{SHOP}---{elsewhere}"), "10.96.0.40:80", "").unwrap();
        assert_eq!(http_routes(&policy)[0], "http 0");
    }
}

#[test]
fn a_service_with_grpc_routes_speaks_grpc() {
    let route = "
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: votes, namespace: test, annotations: {retry.linkerd.io/grpc: 'unavailable,internal'}}
spec:
  parentRefs: [{group: core, kind: Service, name: shop}]
  rules:
  - matches: [{method: {service: votes.Votes, method: Cast}}]
    backendRefs: [{name: shop-v2, port: 80}]
";
    let policy = outbound_policy(&format!("{SHOP}---{route}"), "10.96.0.40:80", "").unwrap();
    let Some(outbound_protocol::Kind::Grpc(grpc)) = policy.protocol.unwrap().kind else {
        panic!("not gRPC")
    };
    let rule = &grpc.routes[0].rules[0];
    let rpc = rule.matches[0].rpc.as_ref().unwrap();
    assert_eq!(
        (rpc.service.as_str(), rpc.method.as_str()),
        ("votes.Votes", "Cast")
    );
    let conditions = rule.retry.as_ref().unwrap().conditions.unwrap();
    assert!(conditions.unavailable && conditions.internal && !conditions.cancelled);
}

#[test]
fn a_breaker_by_success_rate_has_the_documented_defaults() {
    let annotated = SHOP.replace(
        "retry.linkerd.io/http: '5xx'",
        "balancer.linkerd.io/failure-accrual: unified, balancer.linkerd.io/failure-accrual-success-rate-threshold: '0.5'",
    );
    let policy = outbound_policy(&annotated, "10.96.0.40:80", "").unwrap();
    let Some(outbound_protocol::Kind::Detect(detect)) = policy.protocol.unwrap().kind else {
        panic!("not detected")
    };
    let accrual = detect.http1.unwrap().failure_accrual.unwrap().kind;
    let Some(linkerd2_proxy_api::outbound::failure_accrual::Kind::Unified(unified)) = accrual else {
        panic!("not unified: {accrual:?}")
    };
    assert_eq!(
        (
            unified.success_rate_threshold,
            unified.min_requests,
            unified.max_consecutive_failures
        ),
        (0.5, 5, 7)
    );
}

const BUY: &str = "
apiVersion: policy.linkerd.io/v1beta3
kind: HTTPRoute
metadata: {name: buy, namespace: test}
spec:
  parentRefs: [{group: policy.linkerd.io, kind: Server, name: web}]
  rules: [{matches: [{path: {value: /buy}, method: POST}]}]
---
apiVersion: policy.linkerd.io/v1alpha1
kind: AuthorizationPolicy
metadata: {name: buyers, namespace: test}
spec:
  targetRef: {group: policy.linkerd.io, kind: HTTPRoute, name: buy}
  requiredAuthenticationRefs: [{kind: ServiceAccount, name: buyer}]
";

fn inbound_routes(yaml: &str) -> Vec<String> {
    let server = inbound_policy(yaml, 8080);
    assert!(
        server.authorizations.is_empty(),
        "nothing is granted on the whole port"
    );
    let Some(proxy_protocol::Kind::Http1(http)) = server.protocol.unwrap().kind else {
        panic!("not HTTP/1")
    };
    let show = |route: &linkerd2_proxy_api::inbound::HttpRoute| {
        let name = match route.metadata.as_ref().and_then(|meta| meta.kind.as_ref()) {
            Some(metadata::Kind::Resource(resource)) => resource.name.clone(),
            Some(metadata::Kind::Default(name)) => format!("default {name}"),
            None => panic!("proxies want metadata"),
        };
        let granted: Vec<String> = route.authorizations.iter().map(show_authz).collect();
        format!("{name} {} [{}]", route.rules.len(), granted.join("; "))
    };
    http.routes.iter().map(show).collect()
}

#[test]
fn what_is_granted_to_a_route_holds_on_that_route_only() {
    assert_eq!(
        inbound_routes(&with(&[SERVER, BUY])),
        ["buy 1 [buyers: buyer.test.serviceaccount.identity.linkerd.cluster.local from 0.0.0.0/0 ::/0]"]
    );
    let of_another_group = BUY.replace("kind: HTTPRoute, name: buy", "kind: GRPCRoute, name: buy");
    assert_eq!(inbound_routes(&with(&[SERVER, &of_another_group])), ["buy 1 []"]);
}

#[test]
fn a_server_takes_no_routes_from_another_namespace() {
    let stranger = BUY
        .replace("name: buy, namespace: test", "name: buy, namespace: other")
        .replace(
            "kind: Server, name: web}",
            "kind: Server, name: web, namespace: test}",
        );
    assert!(inbound_routes(&with(&[SERVER, &stranger]))[0].starts_with("default default"));
}
