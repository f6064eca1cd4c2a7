//! The objects of the viz extension. Pure; names are Linkerd's where it has the same thing.

use hawser_control::values::VERSION;
use hawser_crd::keys;
use hawser_viz::{ADMIN_PORT, PEER_PORT};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::multicluster::manifests::{Settings, Workload, workload};

pub(super) const COLLECTOR: &str = "metrics-api";
/// Who scrapes: the account that the multicluster extension's policies let read the admin ports of its controllers.
const SCRAPER: &str = "prometheus";

/// A scrape configuration with the names of namespaces left open.
const PROMETHEUS: &str = include_str!("../../../../charts/hawser-viz/prometheus.yml");

/// What only the collector is told.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Collector {
    /// What this cluster is called; may be empty.
    pub(crate) cluster_name: String,
    /// How often proxies are read.
    pub(crate) every: String,
}

impl Default for Collector {
    fn default() -> Self {
        Self {
            cluster_name: String::new(),
            every: "10s".into(),
        }
    }
}

/// Everything, ready for `kubectl apply`. Of the settings only namespaces, image and replicas matter here.
pub(crate) fn render(settings: &Settings, about: &Collector) -> Vec<Value> {
    let namespace = &settings.namespace;
    let labels = json!({keys::EXTENSION: keys::EXTENSION_VIZ});
    let annotations = json!({keys::CREATED_BY: format!("linkerd/cli {VERSION}")});
    let metadata = |name: &str| json!({"name": name, "namespace": namespace, "labels": labels, "annotations": annotations});
    let [role, ..] = roles(namespace);
    let cluster_metadata = json!({"name": role, "labels": labels, "annotations": annotations});
    let rbac = "rbac.authorization.k8s.io";
    let of_collector = Settings {
        controller_image: image(&settings.controller_image),
        ..settings.clone()
    };
    let mut deployment_metadata = metadata(COLLECTOR);
    deployment_metadata["labels"][keys::COMPONENT] = COLLECTOR.into();
    let mut objects = vec![
        json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": namespace, "labels": labels, "annotations": annotations},
        }),
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata(SCRAPER)}),
        json!({
            "apiVersion": format!("{rbac}/v1"), "kind": "ClusterRole", "metadata": cluster_metadata,
            "rules": rules(),
        }),
        json!({
            "apiVersion": format!("{rbac}/v1"), "kind": "ClusterRoleBinding", "metadata": cluster_metadata,
            "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "ServiceAccount", "name": SCRAPER, "namespace": namespace}],
        }),
        json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata("prometheus-config"),
            "data": {"prometheus.yml": prometheus(&settings.linkerd_namespace, namespace)},
        }),
    ];
    let collector = workload(&Workload {
        settings: &of_collector,
        name: COLLECTOR,
        metadata: deployment_metadata,
        selector: json!({keys::COMPONENT: COLLECTOR, keys::EXTENSION: keys::EXTENSION_VIZ}),
        container: COLLECTOR,
        args: vec![
            format!("--log-level={}", settings.log_level),
            format!("--metrics-addr=0.0.0.0:{ADMIN_PORT}"),
            format!("--peer-addr=0.0.0.0:{PEER_PORT}"),
            format!("--cluster-name={}", about.cluster_name),
            format!("--linkerd-namespace={}", settings.linkerd_namespace),
            format!("--every={}", about.every),
        ],
        admin_port: (ADMIN_PORT, "admin-http"),
        replicas: 1,
    });
    for mut object in collector {
        if object["kind"] == "Deployment" {
            let pod = &mut object["spec"]["template"]["spec"];
            pod["serviceAccountName"] = SCRAPER.into();
            if let Some(ports) = pod["containers"][0]["ports"].as_array_mut() {
                ports.push(json!({"name": PEERS, "containerPort": PEER_PORT}));
            }
        }
        objects.push(object);
    }
    objects.extend(anchors_access(settings, &labels, &annotations));
    objects.extend(export(settings, &labels, &annotations));
    objects.extend(tap(&of_collector, &labels, &annotations));
    objects
}

/// Who passes on live requests, under an account that proxies tell of them; and the account whose tokens open it.
fn tap(settings: &Settings, labels: &Value, annotations: &Value) -> Vec<Value> {
    let rbac = "rbac.authorization.k8s.io";
    let namespace = &settings.namespace;
    let metadata = |name: &str| json!({"name": name, "namespace": namespace, "labels": labels, "annotations": annotations});
    let account =
        |name: &str| json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata(name)});
    let role = |name: &str, rules: Value| {
        json!({
            "apiVersion": format!("{rbac}/v1"), "kind": "ClusterRole",
            "metadata": {"name": name, "labels": labels, "annotations": annotations},
            "rules": rules,
        })
    };
    let binding = |name: &str, account: &str| {
        json!({
            "apiVersion": format!("{rbac}/v1"), "kind": "ClusterRoleBinding",
            "metadata": {"name": name, "labels": labels, "annotations": annotations},
            "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": namespace}],
        })
    };
    let reviews = |group: &str, resource: &str| json!({"apiGroups": [group], "resources": [resource], "verbs": ["create"]});
    let [_, asks, sees] = roles(namespace);
    let mut deployment_metadata = metadata(keys::TAP);
    deployment_metadata["labels"][keys::COMPONENT] = keys::TAP.into();
    let mut workload = workload(&Workload {
        settings,
        name: keys::TAP,
        metadata: deployment_metadata,
        selector: json!({keys::COMPONENT: keys::TAP, keys::EXTENSION: keys::EXTENSION_VIZ}),
        container: keys::TAP,
        args: vec![
            "tap".into(),
            format!("--log-level={}", settings.log_level),
            format!("--metrics-addr=0.0.0.0:{ADMIN_PORT}"),
        ],
        admin_port: (ADMIN_PORT, "admin-http"),
        replicas: 1,
    });
    // It would watch itself watching.
    workload[0]["spec"]["template"]["metadata"]["annotations"][keys::DISABLE_TAP] = "true".into();
    let mut objects = vec![
        account(keys::TAP),
        role(
            &asks,
            json!([
                {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]},
                reviews("authentication.k8s.io", "tokenreviews"),
                reviews("authorization.k8s.io", "subjectaccessreviews"),
            ]),
        ),
        binding(&asks, keys::TAP),
        account(TAP_VIEWER),
        role(
            &sees,
            json!([{"apiGroups": ["tap.linkerd.io"], "resources": ["*"], "verbs": ["watch"]}]),
        ),
        binding(&sees, TAP_VIEWER),
    ];
    objects.append(&mut workload);
    objects
}

/// The account that may see requests of all namespaces: whoever may make tokens for it may.
pub(super) const TAP_VIEWER: &str = "tap-viewer";

/// The port where collectors of linked clusters ask.
const PEERS: &str = "peers";

/// What the collector may see: never a Secret, and nothing to write.
fn rules() -> Value {
    let see = |group: &str, resources: &[&str]| json!({"apiGroups": [group], "resources": resources, "verbs": ["list", "watch"]});
    json!([
        see("", &["pods", "services"]),
        see("events.k8s.io", &["events"]),
        see("multicluster.linkerd.io", &["links"]),
        see("split.smi-spec.io", &["trafficsplits"]),
    ])
}

/// The collector shows when trust anchors expire.
fn anchors_access(settings: &Settings, labels: &Value, annotations: &Value) -> [Value; 2] {
    let rbac = "rbac.authorization.k8s.io";
    let [name, ..] = roles(&settings.namespace);
    let metadata = json!({
        "name": name, "namespace": settings.linkerd_namespace, "labels": labels, "annotations": annotations,
    });
    [
        json!({
            "apiVersion": format!("{rbac}/v1"), "kind": "Role", "metadata": metadata,
            "rules": [{
                "apiGroups": [""], "resources": ["configmaps"],
                "resourceNames": ["linkerd-identity-trust-roots"], "verbs": ["list", "watch"],
            }],
        }),
        json!({
            "apiVersion": format!("{rbac}/v1"), "kind": "RoleBinding", "metadata": metadata,
            "roleRef": {"apiGroup": rbac, "kind": "Role", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": SCRAPER, "namespace": settings.namespace}],
        }),
    ]
}

/// Collectors of linked clusters reach this one through the gateway, and nobody reaches it otherwise. That those who
/// come through the gateway are collectors is for ours to see: only the gateway knows who they are.
fn export(settings: &Settings, labels: &Value, annotations: &Value) -> [Value; 3] {
    let metadata = json!({
        "name": COLLECTOR, "namespace": settings.namespace, "labels": labels, "annotations": annotations,
    });
    let mut exported = metadata.clone();
    exported["labels"][keys::EXPORTED] = "true".into();
    let server = json!({"group": "policy.linkerd.io", "kind": "Server", "name": COLLECTOR});
    let gateway = json!({
        "kind": "ServiceAccount", "name": keys::GATEWAY_NAME, "namespace": keys::MULTICLUSTER_NAMESPACE,
    });
    [
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": exported,
            "spec": {
                "selector": {keys::COMPONENT: COLLECTOR, keys::EXTENSION: keys::EXTENSION_VIZ},
                "ports": [{"name": PEERS, "port": PEER_PORT, "targetPort": PEERS, "protocol": "TCP"}],
            },
        }),
        json!({
            "apiVersion": "policy.linkerd.io/v1beta3", "kind": "Server", "metadata": metadata,
            "spec": {
                "podSelector": {"matchLabels": {keys::COMPONENT: COLLECTOR, keys::EXTENSION: keys::EXTENSION_VIZ}},
                "port": PEERS, "proxyProtocol": "HTTP/1",
            },
        }),
        json!({
            "apiVersion": "policy.linkerd.io/v1alpha1", "kind": "AuthorizationPolicy", "metadata": metadata,
            "spec": {"targetRef": server, "requiredAuthenticationRefs": [gateway]},
        }),
    ]
}

/// The collector's, tap's, and that of those who may see all requests; bindings are called as their roles.
pub(super) fn roles(namespace: &str) -> [String; 3] {
    [COLLECTOR, "tap", "tap-admin"].map(|name| format!("linkerd-{namespace}-{name}"))
}

pub(super) const ACCOUNTS: [&str; 3] = [SCRAPER, keys::TAP, TAP_VIEWER];

fn prometheus(linkerd_namespace: &str, viz_namespace: &str) -> String {
    PROMETHEUS
        .replace("LINKERD_NAMESPACE", linkerd_namespace)
        .replace("VIZ_NAMESPACE", viz_namespace)
}

/// The image beside the controllers' own.
fn image(controllers: &str) -> String {
    match controllers.strip_suffix("/controller") {
        Some(registry) => format!("{registry}/viz"),
        None => controllers.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            namespace: "linkerd-viz".into(),
            ..Settings::default()
        }
    }

    #[test]
    fn the_extension_reads_and_never_writes() {
        let objects = render(&settings(), &Collector::default());
        let titles: Vec<String> = objects
            .iter()
            .map(|object| {
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                format!("{} {}", text(&object["kind"]), text(&object["metadata"]["name"]))
            })
            .collect();
        assert_eq!(
            titles,
            [
                "Namespace linkerd-viz",
                "ServiceAccount prometheus",
                "ClusterRole linkerd-linkerd-viz-metrics-api",
                "ClusterRoleBinding linkerd-linkerd-viz-metrics-api",
                "ConfigMap prometheus-config",
                "Deployment metrics-api",
                "Role linkerd-linkerd-viz-metrics-api",
                "RoleBinding linkerd-linkerd-viz-metrics-api",
                "Service metrics-api",
                "Server metrics-api",
                "AuthorizationPolicy metrics-api",
                "ServiceAccount tap",
                "ClusterRole linkerd-linkerd-viz-tap",
                "ClusterRoleBinding linkerd-linkerd-viz-tap",
                "ServiceAccount tap-viewer",
                "ClusterRole linkerd-linkerd-viz-tap-admin",
                "ClusterRoleBinding linkerd-linkerd-viz-tap-admin",
                "Deployment tap",
            ]
        );
        let roles = objects
            .iter()
            .filter(|object| object["kind"].as_str().is_some_and(|kind| kind.ends_with("Role")));
        for rule in roles.flat_map(|role| role["rules"].as_array().into_iter().flatten()) {
            // A review is a question.
            let asks = rule["resources"].to_string().contains("reviews");
            let verbs = rule["verbs"].as_array().into_iter().flatten();
            for verb in verbs.filter_map(Value::as_str) {
                assert!(
                    matches!((verb, asks), ("list" | "watch", false) | ("create", true)),
                    "{rule}"
                );
            }
            assert!(!rule["resources"].to_string().contains("secrets"), "{rule}");
        }
        for object in &objects {
            assert_eq!(
                object["metadata"]["labels"][keys::EXTENSION],
                "viz",
                "{}",
                object["kind"]
            );
        }
    }

    #[test]
    fn the_collector_is_found_and_started_as_it_was_rendered() {
        let objects = render(&settings(), &Collector::default());
        let pod = &objects[5]["spec"]["template"];
        let labels = [keys::EXTENSION, keys::COMPONENT].map(|key| {
            format!(
                "{key}={}",
                pod["metadata"]["labels"][key].as_str().unwrap_or_default()
            )
        });
        assert_eq!(labels.join(","), super::super::source::COLLECTOR);
        assert_eq!(
            pod["spec"]["serviceAccountName"],
            Settings::default().prometheus.name
        );
        let tap = &objects[17]["spec"]["template"];
        assert_eq!(tap["metadata"]["labels"][keys::COMPONENT], "tap");
        assert_eq!(tap["spec"]["serviceAccountName"], keys::TAP);
        let container = &pod["spec"]["containers"][0];
        for container in [container, &tap["spec"]["containers"][0]] {
            let args = container["args"].as_array().into_iter().flatten();
            let args = args.filter_map(Value::as_str).map(Into::into);
            assert_eq!(hawser_viz::check_arguments(args), Ok(()));
        }
        assert!(
            container["image"]
                .as_str()
                .is_some_and(|image| image.starts_with("cr.hawser.dev/hawser/viz:"))
        );
    }

    #[test]
    fn kubernetes_knows_every_field_and_accepts_every_value() {
        use hawser_sandbox::schema::Schema;
        for mut object in render(&settings(), &Collector::default()) {
            let api_version = object["apiVersion"].as_str().unwrap_or_default().to_owned();
            let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
            let kind = object["kind"].as_str().unwrap_or_default().to_owned();
            if group == "policy.linkerd.io" {
                continue;
            }
            let schema = Schema::for_kind(group, version, &kind).expect("a built-in kind");
            schema.default_(&mut object);
            assert_eq!(schema.prune(&mut object), [""; 0], "{kind}");
            let causes = schema.validate(&object, None);
            assert!(causes.is_empty(), "{kind}: {causes:?}");
        }
    }

    #[test]
    fn the_scrape_configuration_is_yaml_and_names_the_mesh() {
        let text = prometheus("mesh", "metrics");
        let config: Value = serde_saphyr::from_str(&text).expect("YAML");
        let jobs: Vec<&str> = config["scrape_configs"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|job| job["job_name"].as_str())
            .collect();
        assert_eq!(
            jobs,
            ["linkerd-controller", "linkerd-service-mirror", "linkerd-proxy"]
        );
        assert!(
            text.contains("^linkerd-proxy;linkerd-admin;mesh$")
                && text.contains("[mesh, linkerd-failover, metrics]")
        );
        assert!(!text.contains("_NAMESPACE"));
    }

    #[test]
    fn who_is_let_in_comes_through_the_gateway_and_says_it_is_a_collector() {
        let objects = render(&settings(), &Collector::default());
        let policy = &objects[10];
        assert_eq!(
            policy["spec"]["requiredAuthenticationRefs"],
            json!([{"kind": "ServiceAccount", "name": "linkerd-gateway", "namespace": "linkerd-multicluster"}])
        );
        let service = &objects[8];
        assert_eq!(service["metadata"]["name"], hawser_viz::peers::SERVICE);
        assert_eq!(service["metadata"]["labels"][keys::EXPORTED], "true");
        let ports = &objects[5]["spec"]["template"]["spec"]["containers"][0]["ports"];
        assert!(ports.to_string().contains(&PEER_PORT.to_string()), "{ports}");
    }

    #[test]
    fn the_image_lies_beside_the_controllers() {
        assert_eq!(
            image("cr.hawser.dev/hawser/controller"),
            "cr.hawser.dev/hawser/viz"
        );
        assert_eq!(image("localhost:5000/own"), "localhost:5000/own");
    }
}
