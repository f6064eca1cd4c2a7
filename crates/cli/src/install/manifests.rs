//! The objects of the control plane.
//!
//! Pure: values in, objects out, in the order in which they can be applied. Names are Linkerd's, because dashboards,
//! scripts and the multicluster extension look for them. Source: `spec/proxy.md` 3.4, 9.1; least privilege is ours.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use hawser_control::injector::{Component, Injection, Mode, Namespace, Owner};
use hawser_control::values::{TLS_SCHEME, VERSION, Values};
use serde_json::{Map, Value, json};

use crate::replicas;

/// A mesh about to be rendered.
#[derive(Clone, Debug)]
pub(crate) struct Mesh {
    pub(crate) values: Values,
    pub(crate) namespace: String,
    /// What the user set, to start from at the next upgrade.
    pub(crate) overrides: Value,
}

impl Mesh {
    pub(crate) fn new(values: Values, namespace: &str) -> Self {
        Self {
            values,
            namespace: namespace.to_owned(),
            overrides: Value::Object(Map::new()),
        }
    }
}

/// Everything, ready for `kubectl apply`.
pub(crate) fn render(mesh: &Mesh) -> Vec<Value> {
    let mut objects = vec![namespace(mesh)];
    objects.extend(definitions());
    objects.extend(accounts(mesh));
    objects.extend(configuration(mesh));
    objects.extend(services(mesh));
    objects.extend(deployments(mesh));
    objects.push(webhook(mesh));
    objects
}

/// The resource types of the mesh.
pub(crate) fn definitions() -> Vec<Value> {
    let mut definitions = hawser_crd::manifests::policy();
    definitions.extend([
        hawser_crd::manifests::traffic_splits(),
        service_profiles(),
        hawser_crd::manifests::http_routes(),
    ]);
    definitions
}

fn service_profiles() -> Value {
    free_form(
        "linkerd.io",
        &["v1alpha2"],
        "ServiceProfile",
        "serviceprofiles",
        "serviceprofile",
        &["sp"],
    )
}

/// A kind that is accepted and kept, but not read yet; so nothing of it may be pruned.
fn free_form(
    group: &str,
    versions: &[&str],
    kind: &str,
    plural: &str,
    singular: &str,
    short: &[&str],
) -> Value {
    let last = versions.len().saturating_sub(1);
    let anything = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let version = |(at, name): (usize, &&str)| {
        json!({
            "name": name, "served": true, "storage": at == last,
            "schema": {"openAPIV3Schema": {
                "type": "object",
                "properties": {"spec": anything.clone(), "status": anything.clone()},
            }},
            "subresources": {"status": {}},
        })
    };
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.{group}"), "annotations": {"linkerd.io/created-by": created_by()}},
        "spec": {
            "group": group,
            "names": {"kind": kind, "plural": plural, "singular": singular, "shortNames": short},
            "scope": "Namespaced",
            "versions": versions.iter().enumerate().map(version).collect::<Vec<_>>(),
        },
    })
}

fn created_by() -> String {
    format!("linkerd/cli {VERSION}")
}

fn namespace(mesh: &Mesh) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {
            "name": mesh.namespace,
            "annotations": {"linkerd.io/inject": "disabled"},
            "labels": {
                "linkerd.io/is-control-plane": "true",
                "config.linkerd.io/admission-webhooks": "disabled",
                "linkerd.io/control-plane-ns": mesh.namespace,
            },
        },
    })
}

/// Metadata of an object of one component.
fn metadata(mesh: &Mesh, name: &str, component: &str) -> Value {
    json!({
        "name": name,
        "namespace": mesh.namespace,
        "labels": {
            "linkerd.io/control-plane-component": component,
            "linkerd.io/control-plane-ns": mesh.namespace,
        },
        "annotations": {"linkerd.io/created-by": created_by()},
    })
}

/// The same for what belongs to no namespace.
fn cluster_metadata(mesh: &Mesh, name: &str, component: &str) -> Value {
    let mut metadata = metadata(mesh, name, component);
    if let Some(fields) = metadata.as_object_mut() {
        fields.remove("namespace");
    }
    metadata
}

fn accounts(mesh: &Mesh) -> Vec<Value> {
    let read = json!(["get", "list", "watch"]);
    let rule = |group: &str, resources: &[&str], verbs: &Value| json!({"apiGroups": [group], "resources": resources, "verbs": verbs});
    let notes = rule("events.k8s.io", &["events"], &json!(["create", "patch"]));
    let identity = vec![
        rule("authentication.k8s.io", &["tokenreviews"], &json!(["create"])),
        // Recording what was issued.
        notes.clone(),
    ];
    let destination = vec![
        rule("", &["services", "endpoints", "pods"], &read),
        rule("discovery.k8s.io", &["endpointslices"], &read),
        rule("split.smi-spec.io", &["trafficsplits"], &read),
        rule("gateway.networking.k8s.io", &["httproutes", "grpcroutes"], &read),
        rule(
            "policy.linkerd.io",
            &[
                "servers",
                "serverauthorizations",
                "authorizationpolicies",
                "meshtlsauthentications",
                "networkauthentications",
                "httproutes",
            ],
            &read,
        ),
    ];
    let injector = vec![rule("", &["namespaces"], &json!(["get"])), notes];
    let mut objects = Vec::new();
    for (component, rules) in [
        ("identity", identity),
        ("destination", destination),
        ("proxy-injector", injector),
    ] {
        let name = format!("linkerd-{component}");
        let role = format!("linkerd-{}-{component}", mesh.namespace);
        let mut account = json!({"apiVersion": "v1", "kind": "ServiceAccount"});
        account["metadata"] = metadata(mesh, &name, component);
        objects.push(account);
        let rbac = "rbac.authorization.k8s.io";
        objects.push(json!({
            "apiVersion": format!("{rbac}/v1"), "kind": "ClusterRole",
            "metadata": cluster_metadata(mesh, &role, component), "rules": rules,
        }));
        let subjects = json!([{"kind": "ServiceAccount", "name": name, "namespace": mesh.namespace}]);
        objects.push(json!({
            "apiVersion": format!("{rbac}/v1"), "kind": "ClusterRoleBinding",
            "metadata": cluster_metadata(mesh, &role, component),
            "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": role}, "subjects": subjects,
        }));
        if component == "proxy-injector" {
            // Only its own configuration; watching one object by name needs list as well.
            let maps = json!({
                "apiGroups": [""], "resources": ["configmaps"],
                "resourceNames": ["linkerd-config", "linkerd-identity-trust-roots"], "verbs": read,
            });
            objects.push(json!({
                "apiVersion": format!("{rbac}/v1"), "kind": "Role",
                "metadata": metadata(mesh, &name, component), "rules": [maps],
            }));
            objects.push(json!({
                "apiVersion": format!("{rbac}/v1"), "kind": "RoleBinding",
                "metadata": metadata(mesh, &name, component),
                "roleRef": {"apiGroup": rbac, "kind": "Role", "name": name}, "subjects": subjects,
            }));
        }
    }
    objects
}

fn configuration(mesh: &Mesh) -> Vec<Value> {
    let values = &mesh.values;
    // Everybody who may read a ConfigMap reads this one, so no key may be in it.
    let mut public = values.clone();
    public.identity.issuer.tls.key_pem.clear();
    public.proxy_injector.key_pem.clear();
    let public = serde_saphyr::to_string(&public).unwrap_or_default();
    let mut overrides = mesh.overrides.clone();
    if !values.identity.external_ca {
        hawser_control::values::merge(
            &mut overrides,
            json!({
                "identityTrustAnchorsPEM": values.identity_trust_anchors_pem,
            }),
        );
    }
    let overrides = serde_saphyr::to_string(&overrides).unwrap_or_default();
    let mut objects = vec![
        json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": metadata(mesh, "linkerd-config", "controller"), "data": {"values": public},
        }),
        json!({
            "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
            "metadata": metadata(mesh, "linkerd-config-overrides", "controller"),
            "data": {"linkerd-config-overrides": BASE64.encode(overrides)},
        }),
    ];
    if !values.identity.external_ca {
        objects.push(json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": metadata(mesh, "linkerd-identity-trust-roots", "identity"),
            "data": {"ca-bundle.crt": values.identity_trust_anchors_pem},
        }));
    }
    let issuer = &values.identity.issuer;
    let kept_by_others = values.issuer_is_external() && issuer.tls.key_pem.is_empty();
    if !values.identity.external_ca && !kept_by_others {
        let (kind, certificate, key) = match issuer.scheme.as_str() {
            TLS_SCHEME => (TLS_SCHEME, "tls.crt", "tls.key"),
            _ => ("Opaque", "crt.pem", "key.pem"),
        };
        objects.push(secret(
            mesh,
            "linkerd-identity-issuer",
            "identity",
            kind,
            &[(certificate, &issuer.tls.crt_pem), (key, &issuer.tls.key_pem)],
        ));
    }
    if !values.proxy_injector.external_secret {
        let injector = &values.proxy_injector;
        let name = "linkerd-proxy-injector-k8s-tls";
        objects.push(secret(
            mesh,
            name,
            "proxy-injector",
            "kubernetes.io/tls",
            &[("tls.crt", &injector.crt_pem), ("tls.key", &injector.key_pem)],
        ));
    }
    objects
}

fn secret(mesh: &Mesh, name: &str, component: &str, kind: &str, data: &[(&str, &str)]) -> Value {
    let data: Map<String, Value> = data
        .iter()
        .map(|(key, text)| ((*key).to_owned(), json!(BASE64.encode(text))))
        .collect();
    json!({"apiVersion": "v1", "kind": "Secret", "type": kind, "metadata": metadata(mesh, name, component), "data": data})
}

fn services(mesh: &Mesh) -> Vec<Value> {
    let service = |name: &str, component: &str, port_name: &str, port: u16, target: u16, headless: bool| {
        let mut spec = json!({
            "selector": {"linkerd.io/control-plane-component": component},
            "ports": [{"name": port_name, "port": port, "targetPort": target, "protocol": "TCP"}],
        });
        if headless {
            spec["clusterIP"] = json!("None");
        } else {
            spec["type"] = json!("ClusterIP");
        }
        json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata(mesh, name, component), "spec": spec})
    };
    vec![
        service("linkerd-identity", "identity", "grpc", 8080, 8080, false),
        service("linkerd-identity-headless", "identity", "grpc", 8080, 8080, true),
        service("linkerd-dst", "destination", "grpc", 8086, 8086, false),
        service("linkerd-dst-headless", "destination", "grpc", 8086, 8086, true),
        service("linkerd-policy", "destination", "grpc", 8090, 8090, true),
        service(
            "linkerd-proxy-injector",
            "proxy-injector",
            "proxy-injector",
            443,
            8443,
            false,
        ),
    ]
}

/// One program of a pod.
struct Program {
    name: &'static str,
    args: Vec<String>,
    /// Name and number of the port that it serves on.
    serves: (&'static str, u16),
    admin: u16,
    mounts: Vec<Value>,
}

fn deployments(mesh: &Mesh) -> Vec<Value> {
    let values = &mesh.values;
    let settings = [
        format!("--controller-namespace={}", mesh.namespace),
        format!("--log-level={}", values.controller_log_level),
        format!("--log-format={}", values.controller_log_format),
    ];
    let program = |subcommand: &str, more: &[String]| {
        [subcommand.to_owned()]
            .into_iter()
            .chain(settings.iter().cloned())
            .chain(more.iter().cloned())
            .collect()
    };
    let issuer = &values.identity.issuer;
    let identity = Program {
        name: "identity",
        args: program(
            "identity",
            &[
                format!("--identity-trust-domain={}", values.trust_domain()),
                format!("--identity-issuance-lifetime={}", issuer.issuance_lifetime),
                format!("--identity-clock-skew-allowance={}", issuer.clock_skew_allowance),
            ],
        ),
        serves: ("ident-grpc", 8080),
        admin: 9990,
        mounts: vec![
            json!({"name": "identity-issuer", "mountPath": "/var/run/linkerd/identity/issuer"}),
            json!({"name": "trust-roots", "mountPath": "/var/run/linkerd/identity/trust-roots"}),
        ],
    };
    let exports = &values.gateway_exports;
    let mut about_mesh = vec![
        format!("--cluster-domain={}", values.cluster_domain),
        format!("--identity-trust-domain={}", values.trust_domain()),
        format!("--cluster-networks={}", values.cluster_networks),
        format!("--default-opaque-ports={}", values.proxy.opaque_ports),
        format!("--default-policy={}", values.proxy.default_inbound_policy),
        format!(
            "--probe-networks={}",
            values.policy_controller.probe_networks.join(",")
        ),
        format!("--enable-h2-upgrade={}", values.enable_h2_upgrade),
        format!(
            "--outbound-transport-mode={}",
            values.proxy.outbound_transport_mode
        ),
        format!("--gateway-export-label={}", exports.label),
        format!("--gateway-export-values={}", exports.values.join(",")),
    ];
    if exports.unrestricted {
        about_mesh.push("--gateway-exports-unrestricted".into());
    }
    let destination = Program {
        name: "destination",
        args: program("destination", &about_mesh),
        serves: ("dest-grpc", 8086),
        admin: 9996,
        mounts: vec![],
    };
    let mut args: Vec<String> = program("policy", &about_mesh);
    args.push("--metrics-addr=0.0.0.0:9990".into());
    let policy = Program {
        name: "policy",
        args,
        serves: ("policy-grpc", 8090),
        admin: 9990,
        mounts: vec![],
    };
    let injector = Program {
        name: "proxy-injector",
        args: program("injector", &[]),
        serves: ("proxy-injector", 8443),
        admin: 9995,
        mounts: vec![json!({"name": "tls", "mountPath": "/var/run/linkerd/tls", "readOnly": true})],
    };
    let issuer_volumes = vec![
        json!({"name": "identity-issuer", "secret": {"secretName": "linkerd-identity-issuer"}}),
        json!({"name": "trust-roots", "configMap": {"name": "linkerd-identity-trust-roots"}}),
    ];
    let tls = vec![json!({"name": "tls", "secret": {"secretName": "linkerd-proxy-injector-k8s-tls"}})];
    let parts = [
        deployment(mesh, Component::Identity, "identity", &[identity], issuer_volumes),
        deployment(
            mesh,
            Component::Destination,
            "destination",
            &[destination, policy],
            vec![],
        ),
        deployment(mesh, Component::Other, "proxy-injector", &[injector], tls),
    ];
    parts.into_iter().flatten().collect()
}

/// A part of the control plane, and what keeps its replicas from being evicted together.
fn deployment(
    mesh: &Mesh,
    part: Component,
    component: &str,
    programs: &[Program],
    volumes: Vec<Value>,
) -> Vec<Value> {
    let values = &mesh.values;
    let name = format!("linkerd-{component}");
    let mut labels = BTreeMap::from([
        (
            "linkerd.io/control-plane-component".to_owned(),
            component.to_owned(),
        ),
        ("linkerd.io/control-plane-ns".to_owned(), mesh.namespace.clone()),
    ]);
    let selector = labels.clone();
    labels.extend(values.pod_labels.clone());
    let mut annotations = BTreeMap::from([
        ("linkerd.io/created-by".to_owned(), created_by()),
        // Proxies without a certificate yet must reach identity, and the API server has none at all.
        (
            "config.linkerd.io/default-inbound-policy".to_owned(),
            "all-unauthenticated".to_owned(),
        ),
    ]);
    if component == "proxy-injector" {
        // The API server comes with TLS of its own; a proxy in between could only be late.
        annotations.insert("config.linkerd.io/skip-inbound-ports".into(), "8443".into());
    }
    annotations.extend(values.pod_annotations.clone());
    let mut spec = json!({
        "serviceAccountName": name,
        "nodeSelector": values.node_selector,
        "tolerations": values.tolerations,
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
        "containers": programs.iter().map(|program| container(values, program)).collect::<Vec<_>>(),
        "volumes": volumes,
    });
    if !values.priority_class_name.is_empty() {
        spec["priorityClassName"] = json!(values.priority_class_name);
    }
    if !values.image_pull_secrets.is_empty() {
        spec["imagePullSecrets"] = json!(values.image_pull_secrets);
    }
    let pod = json!({"metadata": {"labels": labels, "annotations": annotations}, "spec": spec});
    let injection = Injection {
        values,
        control_plane_namespace: &mesh.namespace,
        namespace: &Namespace {
            name: mesh.namespace.clone(),
            ..Namespace::default()
        },
        owner: Some(&Owner {
            kind: "deployment".into(),
            name: name.clone(),
        }),
        component: part,
    };
    let mut deployment = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(mesh, &name, component),
        "spec": {
            "replicas": values.controller_replicas,
            "selector": {"matchLabels": selector},
            "template": injection.inject(&pod, Mode::Enabled),
        },
    });
    let selector = json!(selector);
    if values.enable_pod_anti_affinity {
        replicas::keep_apart(&mut deployment, &selector);
    }
    let budget = values
        .enable_pod_disruption_budget
        .then(|| replicas::budget(&deployment, &selector));
    [deployment].into_iter().chain(budget).collect()
}

fn container(values: &Values, program: &Program) -> Value {
    let probe = |path: &str, more: Value| {
        let mut probe = json!({"httpGet": {"path": path, "port": program.admin}, "timeoutSeconds": 1});
        if let (Some(probe), Value::Object(more)) = (probe.as_object_mut(), more) {
            probe.extend(more);
        }
        probe
    };
    let mut context = json!({
        "allowPrivilegeEscalation": false,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": true,
        "runAsNonRoot": true,
        "runAsUser": values.controller_uid,
        "seccompProfile": {"type": "RuntimeDefault"},
    });
    if values.controller_gid >= 0 {
        context["runAsGroup"] = json!(values.controller_gid);
    }
    let own = match program.name {
        "identity" => &values.identity_resources,
        "destination" => &values.destination_resources,
        "policy" => &values.policy_controller.resources,
        _ => &values.proxy_injector_resources,
    };
    let resources = own
        .of_container()
        .or_else(|| values.controller_resources.of_container());
    let mut container = json!({
        "name": program.name,
        "image": values.controller_image(),
        "imagePullPolicy": values.image_pull_policy,
        "args": program.args,
        "ports": [
            {"name": program.serves.0, "containerPort": program.serves.1, "protocol": "TCP"},
            {"name": format!("{}-admin", program.serves.0.split('-').next().unwrap_or_default()),
             "containerPort": program.admin, "protocol": "TCP"},
        ],
        "livenessProbe": probe("/live", json!({"initialDelaySeconds": 10})),
        // Every second: all other pods of the mesh wait for these.
        "readinessProbe": probe("/ready", json!({"periodSeconds": 1, "failureThreshold": 7})),
        "securityContext": context,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": program.mounts,
    });
    if let Some(resources) = resources {
        container["resources"] = resources;
    }
    container
}

fn webhook(mesh: &Mesh) -> Value {
    let values = &mesh.values;
    let name = "linkerd-proxy-injector";
    let not_in = |key: &str, values: &[&str]| json!({"key": key, "operator": "NotIn", "values": values});
    let absent = |key: &str| json!({"key": key, "operator": "DoesNotExist"});
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": cluster_metadata(mesh, &format!("{name}-webhook-config"), "proxy-injector"),
        "webhooks": [{
            "name": format!("{name}.linkerd.io"),
            "namespaceSelector": {"matchExpressions": [
                not_in("config.linkerd.io/admission-webhooks", &["disabled"]),
                not_in("kubernetes.io/metadata.name", &["kube-system", "cert-manager"]),
            ]},
            "objectSelector": {"matchExpressions": [
                absent("linkerd.io/control-plane-component"),
                absent("linkerd.io/cni-resource"),
            ]},
            "clientConfig": {
                "service": {"name": name, "namespace": mesh.namespace, "path": "/", "port": 443},
                "caBundle": BASE64.encode(&values.proxy_injector.ca_bundle),
            },
            "failurePolicy": values.webhook_failure_policy,
            "admissionReviewVersions": ["v1", "v1beta1"],
            "rules": [{
                "operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"],
                "resources": ["pods", "services"], "scope": "Namespaced",
            }],
            "sideEffects": "None",
            "timeoutSeconds": values.proxy_injector.timeout_seconds,
        }],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mesh() -> Mesh {
        let mut values = Values {
            identity_trust_anchors_pem: "ANCHORS".into(),
            ..Values::default()
        };
        values.identity.issuer.tls.crt_pem = "ISSUER".into();
        values.identity.issuer.tls.key_pem = "ISSUER KEY".into();
        values.proxy_injector.key_pem = "WEBHOOK KEY".into();
        Mesh::new(values, "linkerd")
    }

    fn highly_available() -> Mesh {
        let (values, unknown) = Values::with_overrides(super::super::highly_available()).unwrap();
        assert!(unknown.is_empty(), "{unknown:?}");
        Mesh::new(values, "linkerd")
    }

    fn name(object: &Value) -> String {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (kind, name) = (text(&object["kind"]), text(&object["metadata"]["name"]));
        match object["metadata"]["namespace"].as_str() {
            Some(namespace) => format!("{kind} {namespace}/{name}"),
            None => format!("{kind} {name}"),
        }
    }

    fn find<'a>(objects: &'a [Value], wanted: &str) -> &'a Value {
        objects
            .iter()
            .find(|object| name(object) == wanted)
            .expect("the object is rendered")
    }

    #[test]
    fn the_objects_are_those_that_others_look_for() {
        let names: Vec<String> = render(&mesh()).iter().map(name).collect();
        assert_eq!(
            names,
            [
                "Namespace linkerd",
                "CustomResourceDefinition servers.policy.linkerd.io",
                "CustomResourceDefinition serverauthorizations.policy.linkerd.io",
                "CustomResourceDefinition authorizationpolicies.policy.linkerd.io",
                "CustomResourceDefinition meshtlsauthentications.policy.linkerd.io",
                "CustomResourceDefinition networkauthentications.policy.linkerd.io",
                "CustomResourceDefinition trafficsplits.split.smi-spec.io",
                "CustomResourceDefinition serviceprofiles.linkerd.io",
                "CustomResourceDefinition httproutes.policy.linkerd.io",
                "ServiceAccount linkerd/linkerd-identity",
                "ClusterRole linkerd-linkerd-identity",
                "ClusterRoleBinding linkerd-linkerd-identity",
                "ServiceAccount linkerd/linkerd-destination",
                "ClusterRole linkerd-linkerd-destination",
                "ClusterRoleBinding linkerd-linkerd-destination",
                "ServiceAccount linkerd/linkerd-proxy-injector",
                "ClusterRole linkerd-linkerd-proxy-injector",
                "ClusterRoleBinding linkerd-linkerd-proxy-injector",
                "Role linkerd/linkerd-proxy-injector",
                "RoleBinding linkerd/linkerd-proxy-injector",
                "ConfigMap linkerd/linkerd-config",
                "Secret linkerd/linkerd-config-overrides",
                "ConfigMap linkerd/linkerd-identity-trust-roots",
                "Secret linkerd/linkerd-identity-issuer",
                "Secret linkerd/linkerd-proxy-injector-k8s-tls",
                "Service linkerd/linkerd-identity",
                "Service linkerd/linkerd-identity-headless",
                "Service linkerd/linkerd-dst",
                "Service linkerd/linkerd-dst-headless",
                "Service linkerd/linkerd-policy",
                "Service linkerd/linkerd-proxy-injector",
                "Deployment linkerd/linkerd-identity",
                "Deployment linkerd/linkerd-destination",
                "Deployment linkerd/linkerd-proxy-injector",
                "MutatingWebhookConfiguration linkerd-proxy-injector-webhook-config",
            ]
        );
    }

    #[test]
    fn an_issuer_that_others_keep_is_not_written() {
        let mut mesh = mesh();
        mesh.values.identity.issuer.scheme = TLS_SCHEME.into();
        mesh.values.identity.issuer.tls = Default::default();
        let names: Vec<String> = render(&mesh).iter().map(name).collect();
        assert!(!names.contains(&"Secret linkerd/linkerd-identity-issuer".to_owned()));
        assert!(names.contains(&"ConfigMap linkerd/linkerd-identity-trust-roots".to_owned()));
    }

    #[test]
    fn no_key_is_in_a_configmap() {
        let objects = render(&mesh());
        for object in objects.iter().filter(|object| object["kind"] != "Secret") {
            assert!(!object.to_string().contains("KEY"), "{}", name(object));
        }
        let values = find(&objects, "ConfigMap linkerd/linkerd-config")["data"]["values"]
            .as_str()
            .unwrap();
        assert_eq!(
            Values::from_yaml(values).unwrap().identity_trust_anchors_pem,
            "ANCHORS"
        );
    }

    #[test]
    fn each_part_reaches_its_own_services_over_loopback_and_the_others_by_name() {
        let objects = render(&mesh());
        let address = |deployment: &str, variable: &str| {
            let deployment = find(&objects, &format!("Deployment linkerd/linkerd-{deployment}"));
            let containers = deployment["spec"]["template"]["spec"]["containers"]
                .as_array()
                .unwrap();
            assert_eq!(containers[0]["name"], "linkerd-proxy");
            let env = containers[0]["env"].as_array().unwrap();
            let entry = env
                .iter()
                .find(|env| env["name"] == format!("LINKERD2_PROXY_{variable}_SVC_ADDR"))
                .unwrap();
            entry["value"].as_str().unwrap().to_owned()
        };
        for (deployment, variable, expected) in [
            ("identity", "IDENTITY", "127.0.0.1:8080"),
            (
                "identity",
                "POLICY",
                "linkerd-policy.linkerd.svc.cluster.local.:8090",
            ),
            ("destination", "DESTINATION", "127.0.0.1:8086"),
            ("destination", "POLICY", "127.0.0.1:8090"),
            (
                "destination",
                "IDENTITY",
                "linkerd-identity-headless.linkerd.svc.cluster.local.:8080",
            ),
            (
                "proxy-injector",
                "DESTINATION",
                "linkerd-dst-headless.linkerd.svc.cluster.local.:8086",
            ),
        ] {
            assert_eq!(address(deployment, variable), expected, "{deployment} {variable}");
        }
    }

    #[test]
    fn high_availability_spreads_replicas_and_lets_one_go_at_a_time() {
        let objects = render(&highly_available());
        for part in ["identity", "destination", "proxy-injector"] {
            let deployment = find(&objects, &format!("Deployment linkerd/linkerd-{part}"));
            let budget = find(&objects, &format!("PodDisruptionBudget linkerd/linkerd-{part}"));
            let selector = &deployment["spec"]["selector"];
            assert_eq!(budget["spec"], json!({"maxUnavailable": 1, "selector": selector}));
            assert_eq!(deployment["spec"]["replicas"], 3);
            let pod = &deployment["spec"]["template"]["spec"];
            assert_eq!(
                pod["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"],
                json!([{"labelSelector": selector, "topologyKey": "kubernetes.io/hostname"}])
            );
            for container in pod["containers"].as_array().unwrap() {
                assert_eq!(
                    container["resources"]["limits"],
                    json!({"memory": "250Mi"}),
                    "{container}"
                );
            }
        }
        let webhook = find(
            &objects,
            "MutatingWebhookConfiguration linkerd-proxy-injector-webhook-config",
        );
        assert_eq!(webhook["webhooks"][0]["failurePolicy"], "Fail");
    }

    #[test]
    fn kubernetes_knows_every_field_and_accepts_every_value() {
        use hawser_sandbox::schema::Schema;
        for mut object in render(&mesh()).into_iter().chain(render(&highly_available())) {
            let api_version = object["apiVersion"].as_str().unwrap_or_default().to_owned();
            let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
            let kind = object["kind"].as_str().unwrap_or_default().to_owned();
            let schema = Schema::for_kind(group, version, &kind).expect("only built-in kinds are rendered");
            schema.default_(&mut object);
            assert_eq!(schema.prune(&mut object), [""; 0], "{}", name(&object));
            let causes = schema.validate(&object, None);
            assert!(causes.is_empty(), "{}: {causes:?}", name(&object));
        }
    }

    #[test]
    fn every_program_accepts_the_arguments_that_it_is_given() {
        for object in render(&mesh())
            .iter()
            .filter(|object| object["kind"] == "Deployment")
        {
            let containers = object["spec"]["template"]["spec"]["containers"]
                .as_array()
                .unwrap();
            for container in containers
                .iter()
                .filter(|container| container["name"] != "linkerd-proxy")
            {
                let args = container["args"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .filter_map(Value::as_str);
                let checked = hawser_control::check_arguments(args.map(Into::into));
                assert_eq!(checked, Ok(()), "{}", container["name"]);
            }
        }
    }
}
