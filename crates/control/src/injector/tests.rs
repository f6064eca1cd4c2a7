//! Who gets a proxy, and what it looks like.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::cli::{self, Manual, Options, Outcome};
use super::*;
use crate::testing::Watched;
use crate::values::Values;

fn values() -> Values {
    Values {
        identity_trust_anchors_pem: "ANCHORS".into(),
        ..Values::default()
    }
}

fn namespace(annotations: &[(&str, &str)]) -> Namespace {
    let annotations = annotations
        .iter()
        .map(|(name, value)| ((*name).into(), (*value).into()))
        .collect();
    Namespace {
        name: "emojivoto".into(),
        annotations,
    }
}

fn pod(annotations: Value) -> Value {
    json!({
        "metadata": {"generateName": "web-", "labels": {"app": "web"}, "annotations": annotations},
        "spec": {
            "containers": [{"name": "app", "image": "app", "ports": [
                {"name": "http", "containerPort": 8080}, {"name": "db", "containerPort": 3306},
                {"name": "dns", "containerPort": 53, "protocol": "UDP"},
            ]}],
            "initContainers": [{"name": "migrate", "image": "app"}],
            "volumes": [{"name": "own"}],
        },
    })
}

fn inject_with(values: &Values, pod: &Value, annotations: &[(&str, &str)]) -> Result<Value, Skip> {
    let namespace = namespace(annotations);
    let owner = Owner {
        kind: "deployment".into(),
        name: "web".into(),
    };
    let injection = Injection {
        values,
        control_plane_namespace: "linkerd",
        namespace: &namespace,
        owner: Some(&owner),
        component: Component::None,
    };
    let injected = injection.apply(pod);
    // The webhook's patch must lead to the same.
    let mut patched = pod.clone();
    let (patch, outcome) = injection.patch(pod);
    if outcome.is_ok() {
        json_patch::patch(&mut patched, &patch).expect("the patch applies");
        assert_eq!(Ok(&patched), injected.as_ref());
    }
    injected
}

fn injected(pod_annotations: Value) -> Value {
    inject_with(
        &values(),
        &pod(pod_annotations),
        &[(crate::keys::INJECT, "enabled")],
    )
    .expect("a proxy")
}

fn env(pod: &Value) -> BTreeMap<String, String> {
    let proxy = pod["spec"]["initContainers"]
        .as_array()
        .unwrap()
        .iter()
        .find(|c| c["name"] == "linkerd-proxy");
    let entries = proxy.unwrap()["env"].as_array().unwrap().iter();
    entries
        .map(|entry| {
            let value = entry["value"]
                .as_str()
                .map_or_else(|| entry["valueFrom"].to_string(), str::to_owned);
            (
                entry["name"].as_str().unwrap().replace("LINKERD2_PROXY_", ""),
                value,
            )
        })
        .collect()
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array()
        .into_iter()
        .flatten()
        .filter_map(|item| item["name"].as_str())
        .collect()
}

#[test]
fn the_pods_own_annotation_comes_before_its_namespaces() {
    let decide = |on_pod: Option<&str>, on_namespace: Option<&str>| {
        let pod = pod(on_pod.map_or_else(|| json!({}), |value| json!({"linkerd.io/inject": value})));
        let on_namespace: Vec<_> = on_namespace
            .map(|value| (crate::keys::INJECT, value))
            .into_iter()
            .collect();
        inject::decide(&pod, &namespace(&on_namespace))
    };
    let invalid = |value: &str| Err(Skip::InvalidAnnotation { value: value.into() });
    for (on_pod, on_namespace, expected) in [
        (None, None, Err(Skip::NotAsked)),
        (None, Some("enabled"), Ok(Mode::Enabled)),
        (None, Some("ingress"), Ok(Mode::Ingress)),
        (None, Some("disabled"), Err(Skip::DisabledOnNamespace)),
        (Some("enabled"), None, Ok(Mode::Enabled)),
        (Some("enabled"), Some("disabled"), Ok(Mode::Enabled)),
        (Some("ingress"), Some("enabled"), Ok(Mode::Ingress)),
        (Some("disabled"), Some("enabled"), Err(Skip::DisabledOnPod)),
        (Some("yes"), Some("enabled"), invalid("yes")),
        (None, Some("true"), invalid("true")),
        (Some("enabled"), Some("true"), invalid("true")),
    ] {
        assert_eq!(
            decide(on_pod, on_namespace),
            expected,
            "{on_pod:?} {on_namespace:?}"
        );
    }
}

#[test]
fn requests_are_watched_by_tap_only_and_not_where_it_is_forbidden() {
    let watcher = "tap.linkerd-viz.serviceaccount.identity.linkerd.cluster.local";
    for (on_pod, on_namespace, is_watched) in [
        (None, None, true),
        (Some("true"), None, false),
        (None, Some("true"), false),
        (Some("false"), Some("true"), true),
        (Some("yes"), None, false),
    ] {
        let pod = pod(on_pod.map_or_else(|| json!({}), |value| json!({crate::keys::DISABLE_TAP: value})));
        let mut annotations = vec![(crate::keys::INJECT, "enabled")];
        annotations.extend(on_namespace.map(|value| (crate::keys::DISABLE_TAP, value)));
        let injected = inject_with(&values(), &pod, &annotations).expect("a proxy");
        let case = format!("{on_pod:?} {on_namespace:?}");
        let name = env(&injected).get("TAP_SVC_NAME").cloned();
        assert_eq!(name, is_watched.then(|| watcher.to_owned()), "{case}");
        let says = injected["metadata"]["annotations"][crate::keys::TAP_ENABLED].as_str();
        assert_eq!(says, is_watched.then_some("true"), "{case}");
    }
}

#[test]
fn proxies_are_told_where_spans_go_if_anywhere() {
    let mut values = values();
    let told = |values: &Values| {
        let injected = inject_with(values, &pod(json!({"linkerd.io/inject": "enabled"})), &[]);
        env(&injected.expect("a proxy"))
    };
    assert_eq!(told(&values).get("TRACE_COLLECTOR_SVC_ADDR"), None);
    let tracing = &mut values.proxy.tracing;
    tracing.enabled = true;
    tracing.labels = BTreeMap::from([
        ("a".into(), "b".into()),
        ("k8s.pod.name".into(), "$(_pod_name)".into()),
    ]);
    tracing.collector.endpoint = "collector.traces:4317".into();
    let account = &mut tracing.collector.mesh_identity;
    (account.service_account_name, account.namespace) = ("jaeger".into(), "traces".into());
    let told = told(&values);
    for (name, value) in [
        ("TRACE_COLLECTOR_SVC_ADDR", "collector.traces:4317"),
        (
            "TRACE_COLLECTOR_SVC_NAME",
            "jaeger.traces.serviceaccount.identity.linkerd.cluster.local",
        ),
        ("TRACE_PROTOCOL", "opentelemetry"),
        ("TRACE_SERVICE_NAME", "linkerd-proxy"),
        ("OTEL_RESOURCE_ATTRIBUTES", "a=b,k8s.pod.name=$(_pod_name)"),
    ] {
        assert_eq!(told.get(name).map(String::as_str), Some(value), "{name}");
    }
}

#[test]
fn pods_that_cannot_have_a_proxy_are_left_alone() {
    let refused = |change: fn(&mut Value)| {
        let mut pod = pod(json!({"linkerd.io/inject": "enabled"}));
        change(&mut pod);
        inject_with(&values(), &pod, &[]).unwrap_err()
    };
    assert_eq!(
        refused(|pod| pod["spec"]["hostNetwork"] = json!(true)),
        Skip::HostNetwork
    );
    assert_eq!(
        refused(|pod| pod["spec"]["containers"][0]["name"] = json!("istio-proxy")),
        Skip::SidecarExists
    );
    let again = inject_with(
        &values(),
        &injected(json!({})),
        &[(crate::keys::INJECT, "enabled")],
    );
    assert_eq!(again, Err(Skip::SidecarExists));
}

#[test]
fn the_proxy_starts_after_the_redirect_and_before_everything_else() {
    let pod = injected(json!({}));
    assert_eq!(
        names(&pod["spec"]["initContainers"]),
        ["linkerd-init", "linkerd-proxy", "migrate"]
    );
    assert_eq!(names(&pod["spec"]["containers"]), ["app"]);
    assert_eq!(
        names(&pod["spec"]["volumes"]),
        [
            "own",
            "linkerd-proxy-init-xtables-lock",
            "linkerd-identity-token",
            "linkerd-identity-end-entity"
        ]
    );
    let proxy = &pod["spec"]["initContainers"][1];
    assert_eq!(proxy["restartPolicy"], "Always");
    assert_eq!(
        proxy["startupProbe"]["httpGet"],
        json!({"path": "/ready", "port": 4191})
    );
    assert_eq!(names(&proxy["ports"]), ["linkerd-proxy", "linkerd-admin"]);
    assert_eq!(
        proxy["securityContext"],
        json!({
            "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": true,
            "runAsNonRoot": true, "runAsUser": 2102, "seccompProfile": {"type": "RuntimeDefault"},
        })
    );
    let args: Vec<&str> = pod["spec"]["initContainers"][0]["args"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .collect();
    assert_eq!(
        args.join(" "),
        "--incoming-proxy-port 4143 --outgoing-proxy-port 4140 --proxy-uid 2102 \
        --inbound-ports-to-ignore 4190,4191,4567,4568 --outbound-ports-to-ignore 4567,4568 --ipv6=false"
    );
}

#[test]
fn the_pod_says_whose_it_is() {
    let pod = injected(json!({}));
    assert_eq!(
        pod["metadata"]["labels"],
        json!({
            "app": "web", "linkerd.io/control-plane-ns": "linkerd", "linkerd.io/workload-ns": "emojivoto",
            "linkerd.io/proxy-deployment": "web",
        })
    );
    let annotations = &pod["metadata"]["annotations"];
    assert_eq!(
        annotations["config.linkerd.io/opaque-ports"], "3306",
        "the default list, as far as it is exposed"
    );
    assert_eq!(annotations["linkerd.io/proxy-version"], crate::values::VERSION);
    assert_eq!(
        annotations["linkerd.io/trust-root-sha256"],
        "d2d87757fbdcea5f1c866509546bb41c6ed6a8294e77232eb25ab9fb0d5acc86"
    );
}

#[test]
fn the_environment_is_what_a_proxy_expects() {
    let env = env(&injected(json!({})));
    for (name, expected) in [
        ("IDENTITY_TRUST_ANCHORS", "ANCHORS"),
        (
            "IDENTITY_LOCAL_NAME",
            "$(_pod_sa).$(_pod_ns).serviceaccount.identity.linkerd.cluster.local",
        ),
        (
            "IDENTITY_SVC_ADDR",
            "linkerd-identity-headless.linkerd.svc.cluster.local.:8080",
        ),
        (
            "IDENTITY_SVC_NAME",
            "linkerd-identity.linkerd.serviceaccount.identity.linkerd.cluster.local",
        ),
        (
            "DESTINATION_SVC_ADDR",
            "linkerd-dst-headless.linkerd.svc.cluster.local.:8086",
        ),
        (
            "DESTINATION_SVC_NAME",
            "linkerd-destination.linkerd.serviceaccount.identity.linkerd.cluster.local",
        ),
        (
            "POLICY_SVC_ADDR",
            "linkerd-policy.linkerd.svc.cluster.local.:8090",
        ),
        (
            "POLICY_SVC_NAME",
            "linkerd-destination.linkerd.serviceaccount.identity.linkerd.cluster.local",
        ),
        ("POLICY_WORKLOAD", r#"{"ns":"$(_pod_ns)", "pod":"$(_pod_name)"}"#),
        ("INBOUND_LISTEN_ADDR", "0.0.0.0:4143"),
        ("OUTBOUND_LISTEN_ADDRS", "127.0.0.1:4140"),
        ("INBOUND_PORTS", "3306,8080"),
        ("INBOUND_PORTS_DISABLE_PROTOCOL_DETECTION", "3306"),
        ("INBOUND_DEFAULT_POLICY", "all-unauthenticated"),
        ("INBOUND_IPS", r#"{"fieldRef":{"fieldPath":"status.podIPs"}}"#),
        ("DESTINATION_PROFILE_SUFFIXES", "svc.cluster.local."),
    ] {
        assert_eq!(env.get(name).map(String::as_str), Some(expected), "{name}");
    }
    for absent in [
        "INBOUND_GATEWAY_SUFFIXES",
        "INGRESS_MODE",
        "HAWSER_PROXY_MARK",
        "CORES_MAX",
    ] {
        assert_eq!(env.get(absent), None, "{absent}");
    }
}

#[test]
fn annotations_configure_the_proxy_and_bad_ones_change_nothing() {
    let mut values = values();
    values.proxy.mark = 7;
    let annotations = json!({
        "config.linkerd.io/enable-gateway": "true",
        "config.linkerd.io/proxy-require-identity-inbound-ports": "4143",
        "config.linkerd.io/default-inbound-policy": "all-authenticated",
        "config.linkerd.io/opaque-ports": "http,9000-9002",
        "config.linkerd.io/skip-outbound-ports": "25",
        "config.linkerd.io/proxy-cpu-limit": "1500m",
        "config.linkerd.io/inbound-port": "nonsense",
    });
    let pod = inject_with(
        &values,
        &pod(annotations),
        &[
            (crate::keys::INJECT, "ingress"),
            ("config.linkerd.io/proxy-log-level", "debug"),
        ],
    )
    .unwrap();
    let env = env(&pod);
    for (name, expected) in [
        ("INBOUND_GATEWAY_SUFFIXES", "svc.cluster.local."),
        ("INBOUND_PORTS", "3306,4143,8080"),
        ("INBOUND_DEFAULT_POLICY", "all-authenticated"),
        ("INBOUND_PORTS_DISABLE_PROTOCOL_DETECTION", "8080,9000-9002"),
        ("INBOUND_LISTEN_ADDR", "0.0.0.0:4143"),
        ("INGRESS_MODE", "true"),
        ("CORES_MAX", "2"),
        ("HAWSER_PROXY_MARK", "7"),
        ("LOG", "debug,[{headers}]=off,[{request}]=off"),
    ] {
        assert_eq!(env.get(name).map(String::as_str), Some(expected), "{name}");
    }
    assert_eq!(
        pod["metadata"]["annotations"]["config.linkerd.io/proxy-log-level"], "debug",
        "copied down"
    );
    let args = pod["spec"]["initContainers"][0]["args"].to_string();
    assert!(
        args.contains(r#""--proxy-mark","7""#) && args.contains(r#""--outbound-ports-to-ignore","25""#),
        "{args}"
    );
}

#[test]
fn without_native_sidecars_the_proxy_is_the_first_container() {
    let pod = injected(json!({"config.linkerd.io/proxy-enable-native-sidecar": "false"}));
    assert_eq!(names(&pod["spec"]["initContainers"]), ["linkerd-init", "migrate"]);
    assert_eq!(names(&pod["spec"]["containers"]), ["linkerd-proxy", "app"]);
    assert_eq!(pod["spec"]["containers"][0].get("restartPolicy"), None);
}

#[test]
fn services_and_skipped_pods_inherit_opaque_ports() {
    let values = values();
    let with = |annotations: &[(&str, &str)], object: &Value, service: bool| {
        let namespace = namespace(annotations);
        let injection = Injection {
            values: &values,
            control_plane_namespace: "linkerd",
            namespace: &namespace,
            owner: None,
            component: Component::None,
        };
        let patch = if service {
            injection.patch_service(object)
        } else {
            injection.patch(object).0
        };
        let mut patched = object.clone();
        json_patch::patch(&mut patched, &patch).expect("the patch applies");
        patched["metadata"]["annotations"][crate::keys::OPAQUE_PORTS]
            .as_str()
            .map(str::to_owned)
    };
    let service = json!({"metadata": {"name": "db"}, "spec": {"ports": [{"port": 3306}, {"port": 80}]}});
    let from_namespace = [(crate::keys::OPAQUE_PORTS, "1234")];
    assert_eq!(with(&[], &service, true).as_deref(), Some("3306"));
    assert_eq!(with(&from_namespace, &service, true).as_deref(), Some("1234"));
    assert_eq!(
        with(
            &[],
            &json!({"metadata": {}, "spec": {"ports": [{"port": 80}]}}),
            true
        ),
        None
    );
    assert_eq!(
        with(&from_namespace, &pod(json!({})), false).as_deref(),
        Some("1234")
    );
}

fn deployment() -> Value {
    let mut template = pod(Value::Null);
    template["metadata"]
        .as_object_mut()
        .unwrap()
        .retain(|name, _| name == "labels");
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "emojivoto"},
        "spec": {"template": template}})
}

#[test]
fn inject_only_annotates_and_does_so_once() {
    let (once, reports) = cli::inject(deployment(), &Options::default());
    assert_eq!(
        once["spec"]["template"]["metadata"]["annotations"],
        json!({"linkerd.io/inject": "enabled"})
    );
    assert_eq!(
        reports[0].to_string(),
        "deployment \"web\" injected (UDP ports are not carried by the mesh)"
    );
    assert_eq!(cli::inject(once.clone(), &Options::default()).0, once);
    assert_eq!(cli::uninject(once).0, deployment());
}

#[test]
fn manual_injection_renders_and_uninject_takes_it_away() {
    let manual = Manual {
        values: values(),
        control_plane_namespace: "linkerd".into(),
    };
    let options = Options {
        manual: Some(manual),
        ..Options::default()
    };
    let (rendered, reports) = cli::inject(deployment(), &options);
    assert_eq!(reports[0].outcome, Outcome::Injected);
    assert_eq!(
        names(&rendered["spec"]["template"]["spec"]["initContainers"])[..2],
        ["linkerd-init", "linkerd-proxy"]
    );
    assert_eq!(
        cli::inject(rendered.clone(), &options).0,
        rendered,
        "twice is once"
    );
    let mut cleaned = cli::uninject(rendered).0;
    // The opaque ports that injection found out are the user's from then on.
    cleaned["spec"]["template"]["metadata"]
        .as_object_mut()
        .unwrap()
        .remove("annotations");
    assert_eq!(cleaned, deployment());
}

#[test]
fn lists_are_done_item_by_item_and_unknown_kinds_left_alone() {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": [
        deployment(), {"kind": "ConfigMap", "metadata": {"name": "c"}}, {"kind": "Namespace", "metadata": {"name": "n"}},
    ]});
    let (list, reports) = cli::inject(
        list,
        &Options {
            ingress: true,
            ..Options::default()
        },
    );
    let outcomes: Vec<_> = reports.into_iter().map(|report| report.outcome).collect();
    assert_eq!(
        outcomes,
        [
            Outcome::Injected,
            Outcome::Skipped(Skip::UnsupportedKind),
            Outcome::Injected
        ]
    );
    assert_eq!(
        list["items"][1],
        json!({"kind": "ConfigMap", "metadata": {"name": "c"}})
    );
    assert_eq!(
        list["items"][2]["metadata"]["annotations"]["linkerd.io/inject"],
        "ingress"
    );
}

/// The API server's side of a webhook call.
async fn call(address: std::net::SocketAddr, ca_bundle: &str, body: &Value) -> Value {
    use http_body_util::{BodyExt, Full};
    use rustls::pki_types::pem::PemObject;

    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(rustls::pki_types::CertificateDer::from_pem_slice(ca_bundle.as_bytes()).unwrap())
        .unwrap();
    let config = rustls::ClientConfig::builder_with_provider(hawser_tls::provider().clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let socket = tokio::net::TcpStream::connect(address).await.unwrap();
    let name = "linkerd-proxy-injector.linkerd.svc".try_into().unwrap();
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config))
        .connect(name, socket)
        .await
        .unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    let body = Full::new(bytes::Bytes::from(body.to_string()));
    let response = sender
        .send_request(http::Request::post("/").body(body).unwrap())
        .await
        .unwrap();
    serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap()
}

fn review(kind: &str, object: &Value) -> Value {
    json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
        "uid": "u-1", "kind": {"group": "", "version": "v1", "kind": kind}, "namespace": "emojivoto",
        "operation": "CREATE", "object": object,
    }})
}

fn patched(object: &Value, review: &Value) -> Value {
    use base64::Engine;
    assert_eq!(
        (&review["response"]["uid"], &review["response"]["allowed"]),
        (&json!("u-1"), &json!(true))
    );
    let mut patched = object.clone();
    if let Some(patch) = review["response"]["patch"].as_str() {
        assert_eq!(review["response"]["patchType"], "JSONPatch");
        let patch = base64::engine::general_purpose::STANDARD.decode(patch).unwrap();
        let patch: json_patch::Patch = serde_json::from_slice(&patch).unwrap();
        json_patch::patch(&mut patched, &patch).unwrap();
    }
    patched
}

#[tokio::test]
async fn the_webhook_patches_with_the_values_of_the_cluster_and_never_refuses() {
    let config = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "linkerd-config", "namespace": "linkerd"},
        "data": {"values": values().to_yaml().unwrap()},
    });
    let cluster = Watched::start(
        &[],
        &format!(
            "
apiVersion: v1
kind: Namespace
metadata: {{name: emojivoto, annotations: {{linkerd.io/inject: enabled}}}}
---
apiVersion: v1
kind: Namespace
metadata: {{name: linkerd}}
---
{config}
"
        ),
    )
    .await;
    let directory = tempfile::tempdir().unwrap();
    let now = std::time::SystemTime::now();
    let validity = hawser_tls::Validity {
        not_before: now,
        not_after: now + Duration::from_secs(3600),
    };
    let created =
        hawser_tls::create_server(&["linkerd-proxy-injector.linkerd.svc".to_owned()], validity).unwrap();
    std::fs::write(directory.path().join("tls.crt"), &created.certificate_pem).unwrap();
    std::fs::write(directory.path().join("tls.key"), created.key.to_pem()).unwrap();
    let tls = Arc::new(arc_swap::ArcSwap::new(
        webhook::server_config(directory.path()).unwrap(),
    ));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let metrics = hawser_runtime::Metrics::default();
    let injector = Arc::new(webhook::Injector::new(
        cluster.client.clone(),
        "linkerd".into(),
        metrics,
    ));
    let mut tasks = tokio::task::JoinSet::new();
    let drain = hawser_runtime::Shutdown::new();
    tasks.spawn(webhook::serve(listener, tls, injector.clone(), drain.clone()));

    let plain = pod(json!({}));
    let answer = call(address, &created.certificate_pem, &review("Pod", &plain)).await;
    assert_eq!(
        patched(&plain, &answer),
        plain,
        "without values yet, pods start without a proxy"
    );

    let readiness = hawser_runtime::Readiness::default();
    let loaded = readiness.guard("configuration");
    tasks.spawn(async move { injector.follow_configuration(loaded).await });
    tokio::time::timeout(Duration::from_secs(10), readiness.ready())
        .await
        .expect("the values are loaded");
    let answer = call(address, &created.certificate_pem, &review("Pod", &plain)).await;
    let injected = patched(&plain, &answer);
    assert_eq!(env(&injected)["IDENTITY_TRUST_ANCHORS"], "ANCHORS");
    let service = json!({"metadata": {"name": "db"}, "spec": {"ports": [{"port": 3306}]}});
    let answer = call(address, &created.certificate_pem, &review("Service", &service)).await;
    assert_eq!(
        patched(&service, &answer)["metadata"]["annotations"][crate::keys::OPAQUE_PORTS],
        "3306"
    );
    let nothing = json!("not a pod");
    let answer = call(address, &created.certificate_pem, &review("Pod", &nothing)).await;
    assert_eq!(answer["response"]["allowed"], true);
    // It is told to end; API servers learn of that later.
    drain.cancel();
    let answer = call(address, &created.certificate_pem, &review("Pod", &plain)).await;
    assert_eq!(patched(&plain, &answer), injected);
}
