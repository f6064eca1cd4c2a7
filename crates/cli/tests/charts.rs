//! The Helm charts render what `hawser install`, and the `install` of each extension, renders for the same values.
//!
//! Compared as objects, whatever their order, without what says by whom they were rendered. Needs the program `helm`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use serde_json::{Value, json};

const HAWSER: &str = env!("CARGO_BIN_EXE_hawser");
/// What charts believe that they are installed on.
const KUBERNETES: &str = "1.33.0";

fn main() -> ExitCode {
    hawser_testing::with_program(
        "helm",
        &[
            (
                "helm_finds_nothing_to_complain_of",
                helm_finds_nothing_to_complain_of,
            ),
            (
                "the_chart_of_resource_types_is_current",
                the_chart_of_resource_types_is_current,
            ),
            (
                "the_charts_defaults_are_the_meshs",
                the_charts_defaults_are_the_meshs,
            ),
            (
                "a_plain_control_plane_is_the_same",
                a_plain_control_plane_is_the_same,
            ),
            (
                "every_text_and_number_has_the_same_effect",
                every_text_and_number_has_the_same_effect,
            ),
            (
                "every_switch_has_the_same_effect",
                every_switch_has_the_same_effect,
            ),
            (
                "lists_and_maps_have_the_same_effect",
                lists_and_maps_have_the_same_effect,
            ),
            ("high_availability_is_the_same", high_availability_is_the_same),
            (
                "an_issuer_that_others_keep_is_the_same",
                an_issuer_that_others_keep_is_the_same,
            ),
            (
                "a_missing_root_is_asked_for_by_name",
                a_missing_root_is_asked_for_by_name,
            ),
            (
                "a_webhook_certificate_is_made_if_none_is_given",
                a_webhook_certificate_is_made_if_none_is_given,
            ),
            (
                "the_extensions_charts_share_their_helpers",
                the_extensions_charts_share_their_helpers,
            ),
            ("plain_extensions_are_the_same", plain_extensions_are_the_same),
            (
                "every_value_of_an_extension_has_the_same_effect",
                every_value_of_an_extension_has_the_same_effect,
            ),
            (
                "highly_available_extensions_are_the_same",
                highly_available_extensions_are_the_same,
            ),
            (
                "a_gateway_on_node_ports_is_the_same",
                a_gateway_on_node_ports_is_the_same,
            ),
            ("a_balanced_gateway_is_the_same", a_balanced_gateway_is_the_same),
            (
                "an_extension_without_gateway_or_account_is_the_same",
                an_extension_without_gateway_or_account_is_the_same,
            ),
            (
                "a_controller_for_each_link_is_the_same",
                a_controller_for_each_link_is_the_same,
            ),
            (
                "values_that_one_refuses_the_other_refuses",
                values_that_one_refuses_the_other_refuses,
            ),
        ],
    )
}

fn chart(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../charts")
        .join(name)
}

/// Standard output of a program that is expected to succeed, given this input.
fn run(program: &str, args: &[&str], input: &str) -> Result<String, String> {
    let mut child = Command::new(program)
        .args(args)
        .env("HELM_CACHE_HOME", "/nonexistent")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let written = child.stdin.take().expect("piped").write_all(input.as_bytes());
    written.expect("it reads its input");
    let output = child.wait_with_output().expect("it ends");
    let [out, err] = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    if output.status.success() {
        Ok(out)
    } else {
        Err(err)
    }
}

fn yaml(text: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(text).expect("YAML")
}

/// Objects by name, as both renderers would write them if they knew nothing of each other.
fn objects(text: &str) -> BTreeMap<String, Value> {
    let named = yaml(text)
        .into_iter()
        .filter(|object| !object.is_null())
        .map(|mut object| {
            normalize(&mut object);
            let name = format!("{} {}", object["kind"], object["metadata"]["name"]).replace('"', "");
            (name, object)
        });
    named.collect()
}

/// Makes equal what means the same: absent and empty fields, a name of the renderer, an order that doesn't matter.
fn normalize(object: &mut Value) {
    match object {
        Value::Object(fields) => {
            fields.remove("linkerd.io/created-by");
            for value in fields.values_mut() {
                normalize(value);
            }
            let values = fields.get("values").and_then(Value::as_str);
            if let Some(values) = values.map(|text| yaml(text).remove(0)) {
                fields.insert("values".into(), values);
            }
            if let Some(Value::Array(env)) = fields.get_mut("env") {
                env.sort_by_key(|entry| entry["name"].to_string());
            }
            let is_empty = |value: &Value| match value {
                Value::Null => true,
                Value::Array(items) => items.is_empty(),
                Value::Object(fields) => fields.is_empty(),
                Value::String(text) => text.is_empty(),
                _ => false,
            };
            fields.retain(|name, value| !is_empty(value) || name == "emptyDir");
        }
        Value::Array(items) => items.iter_mut().for_each(normalize),
        _ => {}
    }
}

/// Made once for all tests of this process; `install` refuses what doesn't chain.
fn credentials() -> Value {
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name).display().to_string();
    let [root, root_key, issuer, key] = ["root.crt", "root.key", "issuer.crt", "issuer.key"].map(path);
    run(HAWSER, &["certs", "create", "root", &root, &root_key], "").expect("a root");
    let signed = [
        "certs", "create", "issuer", &issuer, &key, "--ca", &root, "--ca-key", &root_key,
    ];
    run(HAWSER, &signed, "").expect("an issuer");
    let [root, issuer, key] = [root, issuer, key].map(|path| std::fs::read_to_string(path).expect("written"));
    json!({
        "identityTrustAnchorsPEM": root,
        "identity": {"issuer": {"tls": {"crtPEM": issuer, "keyPEM": key}}},
        // Each renderer would make a certificate of its own.
        "proxyInjector": {"crtPEM": issuer, "keyPEM": key, "caBundle": root},
    })
}

fn merge(below: &mut Value, above: &Value) {
    match (below, above) {
        (Value::Object(below), Value::Object(above)) => {
            for (name, value) in above {
                merge(below.entry(name.clone()).or_insert(Value::Null), value);
            }
        }
        (below, above) => *below = above.clone(),
    }
}

fn template(values: &Value) -> Result<String, String> {
    template_of("hawser-control-plane", "linkerd", values)
}

fn template_of(name: &str, namespace: &str, values: &Value) -> Result<String, String> {
    let chart = chart(name).display().to_string();
    let words = [
        "template",
        name,
        &chart,
        "--namespace",
        namespace,
        "--values",
        "-",
        "--kube-version",
        KUBERNETES,
    ];
    run("helm", &words, &values.to_string())
}

/// A file of values, for `hawser`.
fn file_of(values: &Value) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), values.to_string()).expect("written");
    file
}

/// Both renderers, with these values over credentials.
fn check_with(flags: &[&str], values: &Value) {
    let mut all = credentials();
    merge(&mut all, values);
    let file = file_of(&all);
    let path = file.path().display().to_string();
    let install = [&["install", "--ignore-cluster", "--values", path.as_str()], flags].concat();
    let mut expected = objects(&run(HAWSER, &install, "").expect("install renders"));
    let mut seen = objects(&template(&all).expect("the chart renders"));
    // Namespaces come from `helm install --create-namespace`, resource types from a chart of their own, and what was
    // set is remembered by Helm itself.
    expected.retain(|name, object| {
        !matches!(
            object["kind"].as_str(),
            Some("Namespace" | "CustomResourceDefinition")
        ) && name != "Secret linkerd-config-overrides"
    });
    for object in [&mut expected, &mut seen]
        .into_iter()
        .flat_map(BTreeMap::values_mut)
    {
        if object["kind"] == "ConfigMap" {
            // A switch that nobody has set may be absent.
            object["data"]["values"]["linkerdVersion"] = Value::Null;
        }
    }
    compare_all(&expected, &seen);
}

fn compare_all(expected: &BTreeMap<String, Value>, seen: &BTreeMap<String, Value>) {
    let names = |objects: &BTreeMap<String, Value>| objects.keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(names(seen), names(expected));
    for (name, expected) in expected {
        compare(name, "", expected, &seen[name]);
    }
}

const EXTENSIONS: [&str; 3] = ["multicluster", "failover", "viz"];

/// What `hawser NAME install` prints with these flags and values.
fn installed(extension: &str, flags: &[&str], values: &Value) -> Result<String, String> {
    let file = file_of(values);
    let path = file.path().display().to_string();
    let install = [
        extension,
        "install",
        "--ignore-cluster",
        "--values",
        path.as_str(),
    ];
    run(HAWSER, &[&install[..], flags].concat(), "")
}

/// Both renderers of an extension with these values; where there are flags, `install` has them instead.
fn check_extension(extension: &str, flags: &[&str], values: &Value) {
    let nothing = json!({});
    let file = if flags.is_empty() { values } else { &nothing };
    let mut expected = objects(&installed(extension, flags, file).expect("install renders"));
    // It comes from `helm install --create-namespace`.
    expected.retain(|_, object| object["kind"] != "Namespace");
    let chart = format!("hawser-{extension}");
    let seen = template_of(&chart, &format!("linkerd-{extension}"), values).expect("the chart renders");
    compare_all(&expected, &objects(&seen));
}

fn check(values: &Value) {
    check_with(&[], values);
}

/// Fails at the first place where two values differ.
fn compare(object: &str, path: &str, expected: &Value, seen: &Value) {
    match (expected, seen) {
        (Value::Object(expected), Value::Object(seen)) => {
            let names: BTreeSet<&String> = expected.keys().chain(seen.keys()).collect();
            for name in names {
                let [expected, seen] =
                    [expected, seen].map(|fields| fields.get(name).unwrap_or(&Value::Null));
                compare(object, &format!("{path}.{name}"), expected, seen);
            }
        }
        (Value::Array(expected), Value::Array(seen)) if expected.len() == seen.len() => {
            for (at, (expected, seen)) in expected.iter().zip(seen).enumerate() {
                compare(object, &format!("{path}[{at}]"), expected, seen);
            }
        }
        _ => assert_eq!(
            seen, expected,
            "{object}, {path}: seen in the chart, expected from install"
        ),
    }
}

fn defaults() -> Value {
    values_of("hawser-control-plane/values.yaml")
}

fn values_of(path: &str) -> Value {
    let text = std::fs::read_to_string(chart(path)).expect("a file of values");
    yaml(&text).remove(0)
}

/// The chart's values with each leaf changed by a function of its path; leaves that it leaves alone are left out.
fn changed(tree: &Value, path: &str, change: &impl Fn(&str, &Value) -> Option<Value>) -> Option<Value> {
    match tree {
        Value::Object(fields) if !fields.is_empty() => {
            let fields: serde_json::Map<String, Value> = fields
                .iter()
                .filter_map(|(name, value)| {
                    let path = if path.is_empty() {
                        name.clone()
                    } else {
                        format!("{path}.{name}")
                    };
                    Some((name.clone(), changed(value, &path, change)?))
                })
                .collect();
            (!fields.is_empty()).then_some(Value::Object(fields))
        }
        leaf => change(path, leaf),
    }
}

fn helm_finds_nothing_to_complain_of() {
    let credentials = credentials().to_string();
    for (name, namespace, values) in [
        ("hawser-crds", "linkerd", "{}"),
        ("hawser-control-plane", "linkerd", &credentials),
        ("hawser-multicluster", "linkerd-multicluster", "{}"),
        ("hawser-failover", "linkerd-failover", "{}"),
        ("hawser-viz", "linkerd-viz", "{}"),
    ] {
        let chart = chart(name).display().to_string();
        let lint = [
            "lint",
            "--strict",
            "--quiet",
            &chart,
            "--namespace",
            namespace,
            "--values",
            "-",
        ];
        let linted = run("helm", &lint, values);
        assert_eq!(linted.as_deref().map(str::trim), Ok(""), "{name}");
    }
}

fn the_chart_of_resource_types_is_current() {
    let chart = chart("hawser-crds").display().to_string();
    let seen = objects(
        &run(
            "helm",
            &["template", "hawser-crds", &chart, "--kube-version", KUBERNETES],
            "",
        )
        .expect("the chart renders"),
    );
    let expected = objects(&run(HAWSER, &["install", "--crds"], "").expect("install renders"));
    assert_eq!(
        seen, expected,
        "render it again: hawser install --crds > charts/hawser-crds/templates/crds.yaml"
    );
}

fn the_charts_defaults_are_the_meshs() {
    let rendered = objects(&run(HAWSER, &["install", "--ignore-cluster"], "").expect("install renders"));
    let mut expected = rendered["ConfigMap linkerd-config"]["data"]["values"].clone();
    let mut defaults = defaults();
    for values in [&mut expected, &mut defaults] {
        normalize(values);
        for path in [
            "/linkerdVersion",
            "/identityTrustAnchorsPEM",
            "/identity/issuer/tls",
            "/proxyInjector/caBundle",
            "/proxyInjector/crtPEM",
            "/proxyInjector/keyPEM",
        ] {
            if let Some(value) = values.pointer_mut(path) {
                *value = Value::Null;
            }
        }
        normalize(values);
    }
    compare("values.yaml", "", &expected, &defaults);
}

fn a_plain_control_plane_is_the_same() {
    check(&json!({}));
}

fn every_text_and_number_has_the_same_effect() {
    let values = changed(&defaults(), "", &|path, value| {
        Some(match (path, value) {
            // Together with credentials, or only with a value of a certain kind.
            (path, _) if path.ends_with("PEM") || path.ends_with("caBundle") => return None,
            ("identity.issuer.scheme", _) => json!("kubernetes.io/tls"),
            ("webhookFailurePolicy", _) => json!("Fail"),
            ("imagePullPolicy", _) => json!("Always"),
            ("clusterDomain" | "identityTrustDomain", _) => json!("example.org"),
            ("clusterNetworks", _) => json!("10.0.0.0/8"),
            ("proxy.defaultInboundPolicy", _) => json!("all-authenticated"),
            ("proxy.opaquePorts", _) => json!("25,26"),
            ("proxy.podInboundPorts", _) => json!("1-2"),
            ("proxy.outboundTransportMode", _) => json!("transparent"),
            ("controllerLogFormat" | "proxy.logFormat" | "proxyInit.logFormat", _) => json!("json"),
            (path, _) if path.ends_with("pullPolicy") => json!("Never"),
            (path, Value::String(_)) if path.contains("esources.") => json!("1500m"),
            (path, Value::String(_)) if path.ends_with("Timeout") => json!("7s"),
            (path, Value::String(_)) if path.ends_with("Ports") => json!("7,8"),
            (_, Value::String(text)) => json!(format!("{text}x")),
            ("controllerReplicas", Value::Number(_)) => json!(2),
            (_, Value::Number(number)) => json!(number.as_i64().expect("whole") + 3),
            _ => return None,
        })
    });
    check(&values.expect("values"));
}

fn every_switch_has_the_same_effect() {
    let values = changed(&defaults(), "", &|path, value| match (path, value) {
        ("identity.externalCA" | "proxyInjector.externalSecret", _) => None,
        (_, Value::Bool(is_on)) => Some(json!(!is_on)),
        _ => None,
    });
    let mut values = values.expect("values");
    merge(
        &mut values,
        &json!({"proxy": {"tracing": {"collector": collector()}}}),
    );
    check(&values);
    // What makes another of them meaningless.
    values["cniEnabled"] = json!(false);
    check(&values);
}

/// One that takes spans.
fn collector() -> Value {
    json!({
        "endpoint": "collector.traces:4317",
        "meshIdentity": {"serviceAccountName": "collector", "namespace": "traces"},
    })
}

fn lists_and_maps_have_the_same_effect() {
    check(&json!({
        "imagePullSecrets": [{"name": "registry"}],
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [{"key": "dedicated", "operator": "Exists"}],
        "podAnnotations": {"team": "a"},
        "podLabels": {"team": "a"},
        "policyController": {"probeNetworks": ["10.1.0.0/16", "10.2.0.0/16"]},
        "gatewayExports": {"values": ["true"]},
        "proxy": {
            "additionalEnv": [{"name": "A", "value": "b"}],
            "resources": {"cpu": {"limit": "2"}},
            "tracing": {
                "enabled": true, "collector": collector(), "traceServiceName": "proxy",
                "labels": {"team": "a", "k8s.pod.uid": null},
            },
        },
    }));
}

fn high_availability_is_the_same() {
    check_with(&["--ha"], &values_of("hawser-control-plane/values-ha.yaml"));
}

fn an_issuer_that_others_keep_is_the_same() {
    let mut values =
        json!({"identity": {"issuer": {"scheme": "kubernetes.io/tls", "tls": {"crtPEM": "", "keyPEM": ""}}}});
    check(&values);
    values["identity"]["externalCA"] = json!(true);
    values["proxyInjector"] = json!({"externalSecret": true, "crtPEM": "", "keyPEM": ""});
    check(&values);
}

fn a_missing_root_is_asked_for_by_name() {
    let complaint = template(&json!({})).expect_err("no root, no mesh");
    assert!(
        complaint.contains("identityTrustAnchorsPEM: the roots that all proxies believe"),
        "{complaint}"
    );
}

fn a_webhook_certificate_is_made_if_none_is_given() {
    let mut values = credentials();
    values["proxyInjector"] = json!({});
    let objects = objects(&template(&values).expect("the chart renders"));
    let certificate = &objects["Secret linkerd-proxy-injector-k8s-tls"]["data"]["tls.crt"];
    let webhooks = &objects["MutatingWebhookConfiguration linkerd-proxy-injector-webhook-config"]["webhooks"];
    assert!(
        certificate.as_str().is_some_and(|text| text.len() > 500),
        "{certificate}"
    );
    assert_eq!(&webhooks[0]["clientConfig"]["caBundle"], certificate);
}

fn the_extensions_charts_share_their_helpers() {
    let [of_multicluster, of_failover, of_viz] = EXTENSIONS.map(|extension| {
        let path = chart(&format!("hawser-{extension}/templates/_extension.tpl"));
        std::fs::read_to_string(path).expect("helpers")
    });
    assert_eq!(of_failover, of_multicluster, "copy _extension.tpl");
    assert_eq!(of_viz, of_multicluster, "copy _extension.tpl");
}

fn plain_extensions_are_the_same() {
    for extension in EXTENSIONS {
        check_extension(extension, &[], &json!({}));
    }
}

fn every_value_of_an_extension_has_the_same_effect() {
    for extension in EXTENSIONS {
        let defaults = values_of(&format!("hawser-{extension}/values.yaml"));
        let values = changed(&defaults, "", &|path, value| {
            Some(match (path, value) {
                ("gateway.serviceType", _) => json!("NodePort"),
                ("gateway.enabled" | "remoteMirrorServiceAccount", _) => return None,
                ("gateway.serviceExternalTrafficPolicy", _) => json!("Local"),
                ("imagePullPolicy" | "image.pullPolicy", _) => json!("Always"),
                ("logFormat", _) => json!("json"),
                ("every", _) => json!("7s"),
                ("imagePullSecrets", _) => json!([{"name": "registry"}]),
                ("controllers", _) => json!([{"link": {"ref": {"name": "east"}}}]),
                ("controllerDefaults", _) => json!({"logLevel": "trace", "gateway": {"probe": {"port": 9}}}),
                ("gateway.tolerations", _) => json!([{"key": "dedicated", "operator": "Exists"}]),
                (path, Value::Array(_)) if path.ends_with("Ranges") => json!(["192.0.2.0/24"]),
                (_, Value::Array(_)) => json!(["a", "b"]),
                (_, Value::Object(_)) => json!({"team": "a"}),
                (_, Value::String(text)) => json!(format!("{text}x")),
                (_, Value::Number(number)) => json!(number.as_i64().expect("whole") + 3),
                (_, Value::Bool(is_on)) => json!(!is_on),
                (_, Value::Null) => return None,
            })
        });
        check_extension(extension, &[], &values.expect("values"));
    }
}

fn highly_available_extensions_are_the_same() {
    for extension in ["multicluster", "failover"] {
        check_extension(
            extension,
            &["--ha"],
            &values_of(&format!("hawser-{extension}/values-ha.yaml")),
        );
    }
}

fn a_gateway_on_node_ports_is_the_same() {
    let mut gateway = json!({
        "serviceType": "NodePort", "nodePort": 31_000, "healthCheckNodePort": 31_002,
        "probe": {"nodePort": 31_001}, "terminationGracePeriodSeconds": 7,
    });
    check_extension("multicluster", &[], &json!({"gateway": gateway}));
    gateway["serviceType"] = "ClusterIP".into();
    check_extension("multicluster", &[], &json!({"gateway": gateway}));
    check_extension(
        "multicluster",
        &[
            "--gateway-service-type",
            "NodePort",
            "--gateway-probe-seconds",
            "5",
        ],
        &json!({"gateway": {"serviceType": "NodePort", "probe": {"seconds": 5}}}),
    );
}

fn a_balanced_gateway_is_the_same() {
    check_extension(
        "multicluster",
        &[],
        &json!({"gateway": {
            "loadBalancerIP": "192.0.2.1", "loadBalancerClass": "example.com/internal",
            "loadBalancerSourceRanges": ["192.0.2.0/24"], "serviceExternalTrafficPolicy": "Local",
            "serviceAnnotations": {"example.com/scheme": "internet-facing", "mirror.linkerd.io/probe-path": "/other"},
            "podLabels": {"app.kubernetes.io/team": "a"}, "deploymentAnnotations": {"linkerd.io/inject": "ingress"},
        }}),
    );
}

fn an_extension_without_gateway_or_account_is_the_same() {
    check_extension(
        "multicluster",
        &[],
        &json!({"gateway": {"enabled": false}, "remoteMirrorServiceAccount": false}),
    );
    for names in [json!("one, two"), json!(["one", "two"])] {
        check_extension(
            "multicluster",
            &[],
            &json!({"remoteMirrorServiceAccountName": names}),
        );
    }
}

fn a_controller_for_each_link_is_the_same() {
    check_extension(
        "multicluster",
        &[],
        &json!({
            "controllerDefaults": {"logLevel": "debug", "enableHeadlessServices": true},
            "localServiceMirror": {"links": ["east", "north"]},
            "writeEndpointSlices": true,
            "controllers": [
                {"link": {"ref": {"name": "east"}}},
                {"link": {"ref": {"name": "north"}}, "gateway": {"enabled": false}, "enableHeadlessServices": false,
                 "logLevel": "warn", "logFormat": "json", "replicas": 2, "enableNamespaceCreation": true},
                {"link": {"ref": {"name": "south"}}, "gateway": {"probe": {"port": 4000}}},
            ],
        }),
    );
    let ha = json!({"replicas": 3, "enablePodAntiAffinity": true, "controllers": [{"link": {"ref": {"name": "east"}}}]});
    check_extension("multicluster", &[], &ha);
}

fn values_that_one_refuses_the_other_refuses() {
    for (values, complaint) in [
        (
            json!({"controllers": [{"logLevel": "debug"}]}),
            "controllers[0].link.ref.name is missing",
        ),
        (
            json!({"controllers": [{"link": {"ref": {"name": "East"}}}]}),
            "controllers[0].link.ref.name: ",
        ),
        (
            json!({"gateway": {"serviceType": "Balancer"}}),
            "gateway.serviceType is \"Balancer\"; it may be LoadBalancer, NodePort or ClusterIP",
        ),
    ] {
        for refused in [
            installed("multicluster", &[], &values),
            template_of("hawser-multicluster", "linkerd-multicluster", &values),
        ] {
            let said = refused.expect_err("it is refused");
            assert!(said.contains(complaint), "{said}");
        }
    }
    for (change, complaint) in [
        (
            json!({"endpoint": ""}),
            "proxy.tracing.collector.endpoint is missing",
        ),
        (
            json!({"endpoint": "collector.traces"}),
            "it must be a name and a port",
        ),
        (
            json!({"meshIdentity": {"namespace": ""}}),
            "proxy.tracing.collector.meshIdentity.namespace is missing",
        ),
    ] {
        let mut values = credentials();
        let tracing = json!({"enabled": true, "collector": collector()});
        merge(&mut values, &json!({"proxy": {"tracing": tracing}}));
        merge(&mut values["proxy"]["tracing"]["collector"], &change);
        let file = file_of(&values);
        let path = file.path().display().to_string();
        for refused in [
            run(HAWSER, &["install", "--ignore-cluster", "--values", &path], ""),
            template(&values),
        ] {
            let said = refused.expect_err("it is refused");
            assert!(said.contains(complaint), "{said}");
        }
    }
    let elsewhere = template_of("hawser-failover", "elsewhere", &json!({})).expect_err("it is refused");
    assert!(elsewhere.contains("--namespace linkerd-failover"), "{elsewhere}");
}
