//! The failover extension's objects, with the values of Linkerd's chart.
//!
//! Pure: settings in, objects out, in the order in which they should be applied. Source: `spec/multicluster.md` 8.4.

use hawser_control::values::{self, VERSION, Values, ValuesError};
use hawser_crd::keys;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::multicluster::manifests::{self as multicluster, Workload, workload};

/// Values of the chart. Those of its hook, which labels the namespace, have no use here: the namespace comes labelled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Settings {
    linkerd_namespace: String,
    log_level: String,
    log_format: String,
    /// Of images and annotations.
    linkerd_version: String,
    image: Image,
    image_pull_secrets: Vec<Value>,
    /// TrafficSplits to look after.
    selector: String,
    replicas: u32,
    /// Replicas on different nodes, and not all of them taken away at once.
    enable_pod_anti_affinity: bool,
}

/// `registry` may be left empty when the name has it, `tag` where the extension's version will do.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Image {
    registry: String,
    name: String,
    tag: String,
    pull_policy: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            linkerd_namespace: keys::CONTROL_PLANE_NAMESPACE.into(),
            log_level: "info".into(),
            log_format: "plain".into(),
            linkerd_version: VERSION.into(),
            image: Image::default(),
            image_pull_secrets: Vec::new(),
            selector: String::new(),
            replicas: 1,
            enable_pod_anti_affinity: false,
        }
    }
}

impl Settings {
    /// The settings that fit a mesh, with `overrides` laid over them.
    pub(super) fn of(mesh: &Values, overrides: Value) -> Result<Self, ValuesError> {
        let invalid = |error: serde_json::Error| ValuesError::Invalid(error.to_string());
        // The controller is the control plane's program.
        let image = Image {
            registry: String::new(),
            name: mesh.controller_image.clone(),
            tag: mesh.controller_image_version.clone(),
            pull_policy: mesh.image_pull_policy.clone(),
        };
        let defaults = Self {
            image,
            linkerd_version: mesh.linkerd_version.clone(),
            ..Self::default()
        };
        let mut tree = serde_json::to_value(defaults).map_err(invalid)?;
        values::merge(&mut tree, overrides);
        serde_json::from_value(tree).map_err(invalid)
    }

    fn selector(&self) -> String {
        match self.selector.as_str() {
            "" => format!("{}={}", keys::FAILOVER_CONTROLLED_BY, keys::FAILOVER_NAMESPACE),
            given => given.to_owned(),
        }
    }
}

impl Image {
    /// Without the tag.
    fn path(&self) -> String {
        match self.registry.trim_end_matches('/') {
            "" => self.name.clone(),
            registry => format!("{registry}/{}", self.name),
        }
    }
}

pub(super) fn render(settings: &Settings) -> Vec<Value> {
    let common = multicluster::Settings {
        namespace: keys::FAILOVER_NAMESPACE.into(),
        linkerd_namespace: settings.linkerd_namespace.clone(),
        linkerd_version: settings.linkerd_version.clone(),
        controller_image: settings.image.path(),
        controller_image_version: settings.image.tag.clone(),
        image_pull_policy: settings.image.pull_policy.clone(),
        image_pull_secrets: settings.image_pull_secrets.clone(),
        enable_pod_anti_affinity: settings.enable_pod_anti_affinity,
        ..multicluster::Settings::default()
    };
    let name = keys::FAILOVER_NAMESPACE;
    let extension = json!({keys::EXTENSION: keys::EXTENSION_FAILOVER});
    let cluster_wide = json!({
        "name": name, "labels": extension, "annotations": {keys::CREATED_BY: common.created_by()},
    });
    let mut namespaced = cluster_wide.clone();
    namespaced["namespace"] = name.into();
    let watch = json!(["list", "get", "watch"]);
    let binding = |kind: &str, role: &str, metadata: &Value| {
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": metadata,
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": role, "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": name}],
        })
    };
    let workload = workload(&Workload {
        settings: &common,
        name,
        metadata: namespaced.clone(),
        selector: json!({"app.kubernetes.io/name": name}),
        container: name,
        args: vec![
            "failover".into(),
            format!("--selector={}", settings.selector()),
            format!("--namespace={name}"),
            format!("--log-level={}", settings.log_level),
            format!("--log-format={}", settings.log_format),
            "--metrics-addr=0.0.0.0:8080".into(),
        ],
        admin_port: (8080, "admin-http"),
        replicas: settings.replicas,
    });
    let mut objects = vec![
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": cluster_wide}),
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": namespaced}),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": cluster_wide,
            "rules": [
                {"apiGroups": ["split.smi-spec.io"], "resources": ["trafficsplits"], "verbs": ["list", "get", "watch", "patch"]},
                {"apiGroups": [""], "resources": ["endpoints"], "verbs": watch},
                {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": watch},
                // Only read while a split has a threshold: whose proxies to ask for what they measured.
                {"apiGroups": [""], "resources": ["pods"], "verbs": watch},
                {"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create"]},
            ],
        }),
        binding("ClusterRoleBinding", "ClusterRole", &cluster_wide),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": namespaced,
            "rules": [
                {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["create", "get", "update", "patch"]},
            ],
        }),
        binding("RoleBinding", "Role", &namespaced),
    ];
    objects.extend(workload);
    objects
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment(overrides: Value) -> Value {
        let settings = Settings::of(&Values::default(), overrides).unwrap();
        let objects = render(&settings);
        for object in &objects {
            assert_eq!(object["metadata"]["labels"][keys::EXTENSION], "failover");
        }
        objects
            .into_iter()
            .find(|object| object["kind"] == "Deployment")
            .unwrap()
    }

    #[test]
    fn it_runs_meshed_in_its_own_namespace_and_selects_its_own_splits() {
        let deployment = deployment(json!({}));
        assert_eq!(deployment["metadata"]["namespace"], "linkerd-failover");
        let template = &deployment["spec"]["template"];
        assert_eq!(template["metadata"]["annotations"][keys::INJECT], "enabled");
        let container = &template["spec"]["containers"][0];
        assert_eq!(container["image"], Values::default().controller_image());
        let args: Vec<&str> = container["args"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(Value::as_str)
            .collect();
        assert!(
            args.contains(&"--selector=failover.linkerd.io/controlled-by=linkerd-failover"),
            "{args:?}"
        );
        let given = args.iter().map(std::ffi::OsString::from);
        assert_eq!(hawser_control::check_arguments(given), Ok(()));
    }

    #[test]
    fn the_charts_values_are_heard() {
        let deployment = deployment(json!({
            "selector": "team=a", "logLevel": "debug", "logFormat": "json", "replicas": 2,
            "image": {"registry": "registry.example/x/", "name": "controller", "tag": "7"},
            "imagePullSecrets": [{"name": "pull"}],
            "namespaceMetadata": {"image": {"name": "anything"}},
        }));
        let spec = &deployment["spec"]["template"]["spec"];
        assert_eq!(spec["imagePullSecrets"], json!([{"name": "pull"}]));
        let container = &spec["containers"][0];
        assert_eq!(container["image"], "registry.example/x/controller:7");
        let args = container["args"].to_string();
        for arg in ["--selector=team=a", "--log-level=debug", "--log-format=json"] {
            assert!(args.contains(arg), "{arg} in {args}");
        }
        assert_eq!(deployment["spec"]["replicas"], 2);
        let wrong = json!({"replicas": "many"});
        assert!(Settings::of(&Values::default(), wrong).is_err());
    }
}
