//! The multicluster extension's objects: what every linked cluster needs, and what one link needs.
//!
//! Pure: settings in, objects out, in the order in which they should be applied. Both kinds of gateway policy are
//! rendered, because users of either look for theirs. Source: `spec/multicluster.md` 2, 3.1, 4 and 5.

use std::collections::BTreeMap;

use hawser_control::values::{self, VERSION, Values, ValuesError};
use hawser_crd::keys;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::replicas;

/// Settings of the extension, under Linkerd's names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Settings {
    pub(crate) namespace: String,
    pub(crate) linkerd_namespace: String,
    pub(crate) identity_trust_domain: String,
    /// Of images and annotations.
    pub(crate) linkerd_version: String,
    pub(crate) controller_image: String,
    /// `linkerd_version` if empty.
    pub(crate) controller_image_version: String,
    pub(crate) image_pull_policy: String,
    pub(crate) image_pull_secrets: Vec<Value>,
    pub(crate) gateway: GatewaySettings,
    pub(crate) remote_mirror_service_account: bool,
    /// One name, several with commas between them, or a list.
    #[serde(deserialize_with = "one_or_many")]
    pub(crate) remote_mirror_service_account_name: String,
    pub(crate) enable_headless_services: bool,
    pub(crate) enable_namespace_creation: bool,
    pub(crate) write_endpoint_slices: bool,
    pub(crate) log_level: String,
    pub(crate) log_format: String,
    pub(crate) replicas: u32,
    /// Replicas on different nodes, and not all of them taken away at once.
    pub(crate) enable_pod_anti_affinity: bool,
    pub(crate) local_service_mirror: LocalSettings,
    /// What every entry of `controllers` has that doesn't say otherwise.
    pub(crate) controller_defaults: Value,
    /// Links whose controllers come with the extension.
    pub(crate) controllers: Vec<Value>,
    /// Who reads the metrics of admin ports.
    pub(crate) prometheus: PrometheusSettings,
}

/// The controller that every cluster has: of its own members of federated services, and of Links without a controller.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct LocalSettings {
    pub(crate) replicas: u32,
    pub(crate) federated_service_selector: String,
    pub(crate) excluded_annotations: Vec<String>,
    pub(crate) excluded_labels: Vec<String>,
    /// Links whose credentials it may read; those of all if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) links: Option<Vec<String>>,
}

/// One entry of `controllers`: whatever it leaves out is as in the extension's own settings.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ControllerSettings {
    link: LinkReference,
    gateway: Option<ControllerGateway>,
    log_level: Option<String>,
    log_format: Option<String>,
    replicas: Option<u32>,
    enable_headless_services: Option<bool>,
    enable_namespace_creation: Option<bool>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct LinkReference {
    #[serde(rename = "ref")]
    reference: NamedReference,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct NamedReference {
    name: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct ControllerGateway {
    enabled: Option<bool>,
    probe: ControllerProbe,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct ControllerProbe {
    port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct PrometheusSettings {
    pub(crate) name: String,
    pub(crate) namespace: String,
}

/// Why settings can't be rendered, though each of them can be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SettingsError {
    #[error("controllers[{0}].link.ref.name is missing")]
    NoLink(usize),
    #[error("controllers[{index}].link.ref.name: {source}")]
    Link {
        index: usize,
        source: hawser_core::NameError,
    },
    #[error("controllers[{index}]: {message}")]
    Controller { index: usize, message: String },
    #[error("gateway.serviceType is {0:?}; it may be LoadBalancer, NodePort or ClusterIP")]
    ServiceType(String),
}

/// A name, or a list of them, which is kept with commas.
fn one_or_many<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMany {
        One(String),
        Many(Vec<String>),
    }
    Ok(match OneOrMany::deserialize(deserializer)? {
        OneOrMany::One(name) => name,
        OneOrMany::Many(names) => names.join(","),
    })
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct GatewaySettings {
    pub(crate) enabled: bool,
    pub(crate) name: String,
    pub(crate) replicas: u32,
    pub(crate) port: u16,
    pub(crate) node_port: Option<u16>,
    pub(crate) service_type: String,
    pub(crate) probe: ProbeSettings,
    pub(crate) pause_image: String,
    #[serde(rename = "UID")]
    pub(crate) uid: i64,
    #[serde(rename = "GID")]
    pub(crate) gid: i64,
    #[serde(rename = "loadBalancerIP")]
    pub(crate) load_balancer_ip: String,
    pub(crate) load_balancer_class: String,
    pub(crate) load_balancer_source_ranges: Vec<String>,
    pub(crate) health_check_node_port: Option<u16>,
    pub(crate) service_external_traffic_policy: String,
    pub(crate) service_annotations: BTreeMap<String, String>,
    pub(crate) deployment_annotations: BTreeMap<String, String>,
    pub(crate) pod_labels: BTreeMap<String, String>,
    pub(crate) node_selector: BTreeMap<String, String>,
    pub(crate) tolerations: Vec<Value>,
    pub(crate) termination_grace_period_seconds: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ProbeSettings {
    pub(crate) port: u16,
    pub(crate) node_port: Option<u16>,
    pub(crate) path: String,
    pub(crate) seconds: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            namespace: keys::MULTICLUSTER_NAMESPACE.into(),
            linkerd_namespace: keys::CONTROL_PLANE_NAMESPACE.into(),
            identity_trust_domain: "cluster.local".into(),
            linkerd_version: VERSION.into(),
            controller_image: Values::default().controller_image,
            controller_image_version: String::new(),
            image_pull_policy: "IfNotPresent".into(),
            image_pull_secrets: Vec::new(),
            gateway: GatewaySettings::default(),
            remote_mirror_service_account: true,
            remote_mirror_service_account_name: keys::REMOTE_ACCESS_DEFAULT.into(),
            enable_headless_services: false,
            enable_namespace_creation: false,
            write_endpoint_slices: false,
            log_level: "info".into(),
            log_format: "plain".into(),
            replicas: 1,
            enable_pod_anti_affinity: false,
            local_service_mirror: LocalSettings::default(),
            controller_defaults: json!({}),
            controllers: Vec::new(),
            prometheus: PrometheusSettings::default(),
        }
    }
}

impl Default for LocalSettings {
    fn default() -> Self {
        Self {
            replicas: 1,
            federated_service_selector: format!("{}=member", keys::FEDERATED),
            excluded_annotations: Vec::new(),
            excluded_labels: Vec::new(),
            links: None,
        }
    }
}

impl Default for PrometheusSettings {
    fn default() -> Self {
        Self {
            name: "prometheus".into(),
            namespace: "linkerd-viz".into(),
        }
    }
}

impl Default for GatewaySettings {
    fn default() -> Self {
        Self {
            enabled: true,
            name: keys::GATEWAY_NAME.into(),
            replicas: 1,
            port: keys::GATEWAY_PORT,
            node_port: None,
            service_type: "LoadBalancer".into(),
            probe: ProbeSettings::default(),
            pause_image: "registry.k8s.io/pause:3.2".into(),
            uid: 2103,
            gid: 2103,
            load_balancer_ip: String::new(),
            load_balancer_class: String::new(),
            load_balancer_source_ranges: Vec::new(),
            health_check_node_port: None,
            service_external_traffic_policy: String::new(),
            service_annotations: BTreeMap::new(),
            deployment_annotations: BTreeMap::new(),
            pod_labels: BTreeMap::new(),
            node_selector: BTreeMap::new(),
            tolerations: Vec::new(),
            termination_grace_period_seconds: None,
        }
    }
}

impl Default for ProbeSettings {
    fn default() -> Self {
        Self {
            port: keys::PROBE_PORT,
            node_port: None,
            path: "/ready".into(),
            seconds: 3,
        }
    }
}

impl Settings {
    /// The settings that fit a mesh, with `overrides` laid over them.
    pub(crate) fn of(mesh: &Values, overrides: Value) -> Result<Self, ValuesError> {
        let defaults = Self {
            identity_trust_domain: mesh.trust_domain().to_owned(),
            linkerd_version: mesh.linkerd_version.clone(),
            controller_image: mesh.controller_image.clone(),
            controller_image_version: mesh.controller_image_version.clone(),
            image_pull_secrets: mesh.image_pull_secrets.clone(),
            image_pull_policy: mesh.image_pull_policy.clone(),
            ..Self::default()
        };
        let mut tree =
            serde_json::to_value(defaults).map_err(|error| ValuesError::Invalid(error.to_string()))?;
        values::merge(&mut tree, overrides);
        serde_json::from_value(tree).map_err(|error| ValuesError::Invalid(error.to_string()))
    }

    /// The controllers' image with its tag.
    pub(crate) fn image(&self) -> String {
        let version = match self.controller_image_version.as_str() {
            "" => &self.linkerd_version,
            version => version,
        };
        format!("{}:{version}", self.controller_image)
    }

    pub(crate) fn created_by(&self) -> String {
        format!("linkerd/cli {VERSION}")
    }

    fn metadata(&self, name: &str) -> Value {
        json!({
            "name": name, "namespace": self.namespace,
            "labels": {keys::EXTENSION: keys::EXTENSION_MULTICLUSTER},
            "annotations": {keys::CREATED_BY: self.created_by()},
        })
    }

    fn cluster_metadata(&self, name: &str) -> Value {
        let mut metadata = self.metadata(name);
        if let Value::Object(fields) = &mut metadata {
            fields.remove("namespace");
        }
        metadata
    }
}

/// The extension.
pub(crate) fn render(settings: &Settings) -> Result<Vec<Value>, SettingsError> {
    let controllers = controllers(settings)?;
    let service_type = settings.gateway.service_type.as_str();
    if !matches!(service_type, "LoadBalancer" | "NodePort" | "ClusterIP") {
        return Err(SettingsError::ServiceType(service_type.to_owned()));
    }
    let mut objects = vec![namespace(settings)];
    // Definitions early: some appliers go through the stream once.
    objects.push(hawser_crd::manifests::links());
    if settings.gateway.enabled {
        objects.extend(gateway(settings));
        objects.extend(gateway_policy(settings));
    }
    if settings.remote_mirror_service_account {
        let names = settings
            .remote_mirror_service_account_name
            .split(',')
            .map(str::trim);
        objects.extend(
            names
                .filter(|name| !name.is_empty())
                .flat_map(|name| remote_access(settings, name)),
        );
    }
    objects.extend(admin_policy(settings));
    objects.extend(local_mirror(settings));
    objects.push(local_access(
        settings,
        SHARED_ACCESS,
        &json!({}),
        settings.enable_namespace_creation,
    ));
    objects.extend(controllers);
    Ok(objects)
}

/// What `controllers` asks for.
fn controllers(settings: &Settings) -> Result<Vec<Value>, SettingsError> {
    let mut objects = Vec::new();
    for (index, entry) in settings.controllers.iter().enumerate() {
        let mut merged = settings.controller_defaults.clone();
        values::merge(&mut merged, entry.clone());
        let own: ControllerSettings =
            serde_json::from_value(merged).map_err(|error| SettingsError::Controller {
                index,
                message: error.to_string(),
            })?;
        let link = &own.link.reference.name;
        if link.is_empty() {
            return Err(SettingsError::NoLink(index));
        }
        link.parse::<hawser_core::ClusterName>()
            .map_err(|source| SettingsError::Link { index, source })?;
        let mut settings = settings.clone();
        let gateway = own.gateway.unwrap_or_default();
        settings.log_level = own.log_level.unwrap_or(settings.log_level);
        settings.log_format = own.log_format.unwrap_or(settings.log_format);
        settings.replicas = own.replicas.unwrap_or(settings.replicas);
        settings.enable_headless_services = own
            .enable_headless_services
            .unwrap_or(settings.enable_headless_services);
        settings.enable_namespace_creation = own
            .enable_namespace_creation
            .unwrap_or(settings.enable_namespace_creation);
        settings.gateway.probe.port = gateway.probe.port.unwrap_or(settings.gateway.probe.port);
        let has_gateway = gateway.enabled.unwrap_or(true);
        objects.extend(controller(&settings, &Names::managed(link), has_gateway));
    }
    Ok(objects)
}

pub(crate) fn namespace(settings: &Settings) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {
            "name": settings.namespace,
            "labels": {
                keys::EXTENSION: keys::EXTENSION_MULTICLUSTER,
                "pod-security.kubernetes.io/enforce": "privileged",
            },
            "annotations": {keys::CREATED_BY: settings.created_by()},
        },
    })
}

fn gateway(settings: &Settings) -> Vec<Value> {
    let gateway = &settings.gateway;
    let mut deployment_metadata = settings.metadata(&gateway.name);
    deployment_metadata["labels"] = json!({
        "app": gateway.name, keys::COMPONENT: "gateway", keys::EXTENSION: keys::EXTENSION_MULTICLUSTER,
        "app.kubernetes.io/name": "gateway", "app.kubernetes.io/part-of": "Linkerd", "app.kubernetes.io/version": settings.linkerd_version,
    });
    let mut deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": deployment_metadata,
        "spec": {
            "replicas": gateway.replicas,
            "revisionHistoryLimit": 10,
            "selector": {"matchLabels": {"app": gateway.name}},
            "template": {
                "metadata": {
                    "labels": {"app": gateway.name, keys::EXTENSION: keys::EXTENSION_MULTICLUSTER},
                    "annotations": {
                        keys::CREATED_BY: settings.created_by(),
                        keys::INJECT: "enabled",
                        keys::REQUIRE_IDENTITY_INBOUND_PORTS: gateway.port.to_string(),
                        keys::ENABLE_GATEWAY: "true",
                        keys::DEFAULT_INBOUND_POLICY: "all-authenticated",
                        "cluster-autoscaler.kubernetes.io/safe-to-evict": "true",
                    },
                },
                "spec": {
                    "serviceAccountName": gateway.name,
                    "automountServiceAccountToken": false,
                    "containers": [{
                        "name": "pause",
                        "image": gateway.pause_image,
                        "securityContext": restricted(gateway.uid, gateway.gid),
                    }],
                    "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
                },
            },
        },
    });
    let template = &mut deployment["spec"]["template"];
    values::merge(
        &mut template["metadata"]["annotations"],
        json!(gateway.deployment_annotations),
    );
    values::merge(&mut template["metadata"]["labels"], json!(gateway.pod_labels));
    if let Some(seconds) = gateway.termination_grace_period_seconds {
        template["spec"]["terminationGracePeriodSeconds"] = seconds.into();
    }
    if !gateway.node_selector.is_empty() {
        template["spec"]["nodeSelector"] = json!(gateway.node_selector);
    }
    if !gateway.tolerations.is_empty() {
        template["spec"]["tolerations"] = json!(gateway.tolerations);
    }
    pull_with_secrets(settings, &mut deployment);
    let selector = json!({"app": gateway.name});
    let budget = spread(settings, &mut deployment, &selector);
    let has_node_ports = matches!(gateway.service_type.as_str(), "NodePort" | "LoadBalancer");
    let port = |name: &str, port: u16, node_port: Option<u16>| {
        let mut json = json!({"name": name, "port": port, "protocol": "TCP"});
        if let Some(node_port) = node_port.filter(|_| has_node_ports) {
            json["nodePort"] = node_port.into();
        }
        json
    };
    let mut annotations = json!(gateway.service_annotations);
    values::merge(
        &mut annotations,
        json!({
            keys::GATEWAY_IDENTITY: format!(
                "{}.{}.serviceaccount.identity.{}.{}",
                gateway.name, settings.namespace, settings.linkerd_namespace, settings.identity_trust_domain
            ),
            keys::PROBE_PERIOD: gateway.probe.seconds.to_string(),
            keys::PROBE_PATH: gateway.probe.path,
            keys::MULTICLUSTER_GATEWAY: "true",
            keys::COMPONENT: "gateway",
            keys::CREATED_BY: settings.created_by(),
        }),
    );
    let mut service_metadata = settings.metadata(&gateway.name);
    service_metadata["annotations"] = annotations;
    let mut spec = json!({
        "type": gateway.service_type,
        "selector": {"app": gateway.name},
        "ports": [
            port(keys::GATEWAY_PORT_NAME, gateway.port, gateway.node_port),
            port(keys::PROBE_PORT_NAME, gateway.probe.port, gateway.probe.node_port),
        ],
    });
    for (field, value) in [
        ("loadBalancerIP", &gateway.load_balancer_ip),
        ("loadBalancerClass", &gateway.load_balancer_class),
        ("externalTrafficPolicy", &gateway.service_external_traffic_policy),
    ] {
        if !value.is_empty() {
            spec[field] = value.clone().into();
        }
    }
    if !gateway.load_balancer_source_ranges.is_empty() {
        spec["loadBalancerSourceRanges"] = json!(gateway.load_balancer_source_ranges);
    }
    if let Some(port) = gateway.health_check_node_port.filter(|_| has_node_ports) {
        spec["healthCheckNodePort"] = port.into();
    }
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": service_metadata, "spec": spec});
    let account =
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": settings.metadata(&gateway.name)});
    [account, deployment]
        .into_iter()
        .chain(budget)
        .chain([service])
        .collect()
}

fn pull_with_secrets(settings: &Settings, deployment: &mut Value) {
    if !settings.image_pull_secrets.is_empty() {
        deployment["spec"]["template"]["spec"]["imagePullSecrets"] =
            settings.image_pull_secrets.clone().into();
    }
}

/// Keeps a Deployment's replicas from going down together where that is asked for, and returns the budget for it.
fn spread(settings: &Settings, deployment: &mut Value, selector: &Value) -> Option<Value> {
    settings.enable_pod_anti_affinity.then(|| {
        replicas::keep_apart(deployment, selector);
        replicas::budget(deployment, selector)
    })
}

/// Who may enter through the gateway: every mesh identity, from every network, until the user narrows it.
fn gateway_policy(settings: &Settings) -> Vec<Value> {
    let name = &settings.gateway.name;
    let networks = json!([{"cidr": "0.0.0.0/0"}, {"cidr": "::/0"}]);
    let object =
        |version: &str, kind: &str, name: &str, spec: Value| policy(settings, version, kind, name, spec);
    let reference =
        |kind: &str, name: &str| json!({"group": "policy.linkerd.io", "kind": kind, "name": name});
    vec![
        object(
            "v1beta3",
            "Server",
            name,
            json!({"podSelector": {"matchLabels": {"app": name}}, "port": "linkerd-proxy"}),
        ),
        object(
            "v1alpha1",
            "AuthorizationPolicy",
            name,
            json!({
                "targetRef": reference("Server", name),
                "requiredAuthenticationRefs": [
                    reference("MeshTLSAuthentication", "any-meshed"),
                    reference("NetworkAuthentication", "source-cluster"),
                ],
            }),
        ),
        object(
            "v1alpha1",
            "MeshTLSAuthentication",
            "any-meshed",
            json!({"identities": ["*"]}),
        ),
        object(
            "v1alpha1",
            "NetworkAuthentication",
            "source-cluster",
            json!({"networks": networks}),
        ),
        object(
            "v1beta1",
            "ServerAuthorization",
            name,
            json!({
                "server": {"name": name},
                "client": {"meshTLS": {"identities": ["*"]}, "networks": networks},
            }),
        ),
    ]
}

fn policy(settings: &Settings, version: &str, kind: &str, name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": format!("policy.linkerd.io/{version}"), "kind": kind,
        "metadata": settings.metadata(name), "spec": spec,
    })
}

/// Who may read the metrics of the extension's pods. Probes are let in all the same: the control plane sees to that.
fn admin_policy(settings: &Settings) -> Vec<Value> {
    let component = |component: &str| json!({keys::COMPONENT: component});
    let ports = [
        (
            "linkerd-admin",
            json!({keys::EXTENSION: keys::EXTENSION_MULTICLUSTER}),
            "linkerd-admin",
        ),
        (
            "service-mirror",
            component(keys::COMPONENT_SERVICE_MIRROR_POD),
            "svcmi-admin",
        ),
        ("controller", component(keys::COMPONENT_CONTROLLER), "ctrl-admin"),
        (
            keys::COMPONENT_LOCAL_SERVICE_MIRROR,
            component(keys::COMPONENT_LOCAL_SERVICE_MIRROR),
            "locsm-admin",
        ),
    ];
    let reader = json!([{
        "kind": "ServiceAccount", "name": settings.prometheus.name, "namespace": settings.prometheus.namespace,
    }]);
    ports
        .into_iter()
        .flat_map(|(name, pods, port)| {
            let server =
                json!({"podSelector": {"matchLabels": pods}, "port": port, "proxyProtocol": "HTTP/1"});
            let authorization = json!({
                "targetRef": {"group": "policy.linkerd.io", "kind": "Server", "name": name},
                "requiredAuthenticationRefs": reader,
            });
            [
                policy(settings, "v1beta3", "Server", name, server),
                policy(settings, "v1alpha1", "AuthorizationPolicy", name, authorization),
            ]
        })
        .collect()
}

const LOCAL_MIRROR: &str = "linkerd-local-service-mirror";
const LOCAL_MIRROR_ACCESS: &str = "linkerd-local-service-mirror-access-local-resources";
/// Role of the controllers that come with the extension.
const SHARED_ACCESS: &str = "linkerd-multicluster-controller-access-local-resources";

/// What a controller of mirrors may do in this cluster.
fn local_access(settings: &Settings, name: &str, labels: &Value, creates_namespaces: bool) -> Value {
    let watch = json!(["list", "get", "watch"]);
    let write = json!(["list", "get", "watch", "create", "delete", "update", "patch"]);
    let namespaces = if creates_namespaces {
        json!(["list", "get", "watch", "create"])
    } else {
        watch
    };
    let mut rules = vec![
        json!({"apiGroups": [""], "resources": ["endpoints", "services"], "verbs": write}),
        json!({"apiGroups": [""], "resources": ["namespaces"], "verbs": namespaces}),
    ];
    if settings.write_endpoint_slices {
        rules.push(
            json!({"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": write}),
        );
    }
    let mut metadata = settings.cluster_metadata(name);
    values::merge(&mut metadata["labels"], labels.clone());
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": metadata, "rules": rules,
    })
}

/// What a controller of Links may do in the extension's namespace; `secrets` are the credentials it may read.
fn link_access(
    settings: &Settings,
    name: &str,
    account: &str,
    labels: &Value,
    mut rules: Vec<Value>,
) -> [Value; 2] {
    let watch = json!(["list", "get", "watch"]);
    rules.extend([
        json!({"apiGroups": ["multicluster.linkerd.io"], "resources": ["links"], "verbs": watch}),
        json!({"apiGroups": ["multicluster.linkerd.io"], "resources": ["links/status"], "verbs": ["update", "patch"]}),
        json!({"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["create", "get", "update", "patch"]}),
    ]);
    let mut metadata = settings.metadata(name);
    values::merge(&mut metadata["labels"], labels.clone());
    [
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": metadata, "rules": rules,
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": metadata,
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": settings.namespace}],
        }),
    ]
}

/// The controller of this cluster's own members of federated services, which also looks after every Link that has no
/// controller of its own. For that it may read the Secrets of its namespace: which of them are credentials of Links
/// that don't exist yet, nobody can say, except who installs it.
fn local_mirror(settings: &Settings) -> Vec<Value> {
    let local = &settings.local_service_mirror;
    let labels = json!({keys::COMPONENT: keys::COMPONENT_LOCAL_SERVICE_MIRROR});
    let labelled = |mut metadata: Value| {
        values::merge(&mut metadata["labels"], labels.clone());
        metadata
    };
    let watch = json!(["list", "get", "watch"]);
    let mut args = process_args(settings);
    args.extend([
        "--local-mirror".to_owned(),
        "--all-links".to_owned(),
        format!(
            "--federated-service-selector={}",
            local.federated_service_selector
        ),
    ]);
    for (flag, list) in [
        ("--excluded-annotations", &local.excluded_annotations),
        ("--excluded-labels", &local.excluded_labels),
    ] {
        if !list.is_empty() {
            args.push(format!("{flag}={}", list.join(",")));
        }
    }
    let (role, binding) = (
        local_access(
            settings,
            LOCAL_MIRROR_ACCESS,
            &labels,
            settings.enable_namespace_creation,
        ),
        cluster_role_binding(
            settings,
            LOCAL_MIRROR_ACCESS,
            LOCAL_MIRROR_ACCESS,
            LOCAL_MIRROR,
            &labels,
        ),
    );
    let mut secrets = json!({"apiGroups": [""], "resources": ["secrets"], "verbs": watch});
    if let Some(links) = &local.links {
        secrets["resourceNames"] = json!(Vec::from_iter(
            links.iter().map(|link| keys::credentials_secret(link))
        ));
    }
    let rules = vec![
        secrets,
        json!({"apiGroups": ["apps"], "resources": ["deployments"], "verbs": watch}),
        // Of Links that are gone.
        json!({"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["list", "delete"]}),
    ];
    let mut objects = vec![role, binding];
    objects.extend(link_access(settings, LOCAL_MIRROR, LOCAL_MIRROR, &labels, rules));
    objects.push(json!({
        "apiVersion": "v1", "kind": "ServiceAccount", "metadata": labelled(settings.metadata(LOCAL_MIRROR)),
    }));
    objects.extend(workload(&Workload {
        settings,
        name: LOCAL_MIRROR,
        metadata: labelled(settings.metadata(LOCAL_MIRROR)),
        selector: labels.clone(),
        container: "service-mirror",
        args,
        admin_port: (keys::CONTROLLER_ADMIN_PORT, "locsm-admin"),
        replicas: local.replicas,
    }));
    objects
}

/// Arguments that all controllers of mirrors have.
fn process_args(settings: &Settings) -> Vec<String> {
    let mut args = vec![
        "service-mirror".to_owned(),
        format!("--namespace={}", settings.namespace),
        format!("--log-level={}", settings.log_level),
        format!("--log-format={}", settings.log_format),
        format!("--metrics-addr=0.0.0.0:{}", keys::CONTROLLER_ADMIN_PORT),
    ];
    for (is_set, flag) in [
        (settings.enable_headless_services, "--enable-headless-services"),
        (settings.enable_namespace_creation, "--enable-namespace-creation"),
        (settings.write_endpoint_slices, "--write-endpoint-slices"),
    ] {
        if is_set {
            args.push(flag.into());
        }
    }
    args
}

/// An account that other clusters' mirrors use: it reads what is exported, and nothing else.
pub(crate) fn remote_access(settings: &Settings, account: &str) -> Vec<Value> {
    let watch = json!(["list", "get", "watch"]);
    let mut token_metadata = settings.metadata(&format!("{account}-token"));
    token_metadata["annotations"]["kubernetes.io/service-account.name"] = account.into();
    vec![
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": settings.cluster_metadata(account),
            "rules": [
                {"apiGroups": ["apps"], "resources": ["replicasets"], "verbs": watch},
                {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": watch},
                {"apiGroups": [""], "resources": ["pods", "endpoints", "services"], "verbs": watch},
                {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": watch},
                {"apiGroups": ["policy.linkerd.io"], "resources": ["servers"], "verbs": watch},
                {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"], "resourceNames": [keys::CONFIG_MAP]},
                {"apiGroups": [""], "resources": ["events"], "verbs": ["create", "patch"]},
            ],
        }),
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": settings.metadata(account)}),
        json!({
            "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/service-account-token",
            "metadata": token_metadata,
        }),
        cluster_role_binding(settings, account, account, account, &json!({})),
    ]
}

/// One link, seen from the importing cluster.
pub(crate) struct LinkManifest<'a> {
    pub(crate) cluster: &'a str,
    pub(crate) kubeconfig: &'a str,
    pub(crate) trust_domain: &'a str,
    pub(crate) cluster_domain: &'a str,
    pub(crate) spec: hawser_crd::link::LinkSpec,
}

/// What `link-gen` prints: the credentials, twice, and the Link.
pub(crate) fn link(settings: &Settings, link: &LinkManifest<'_>) -> Vec<Value> {
    use base64::Engine as _;
    let name = keys::credentials_secret(link.cluster);
    let data = json!({
        keys::KUBECONFIG_SECRET_KEY: base64::engine::general_purpose::STANDARD.encode(link.kubeconfig),
    });
    let [role, binding] = discovery_access(settings, link.cluster);
    vec![
        json!({
            "apiVersion": "v1", "kind": "Secret", "type": keys::KUBECONFIG_SECRET_TYPE,
            "metadata": {"name": name, "namespace": settings.namespace},
            "data": data,
        }),
        json!({
            "apiVersion": "v1", "kind": "Secret", "type": keys::KUBECONFIG_SECRET_TYPE,
            "metadata": {
                "name": name, "namespace": settings.linkerd_namespace,
                "labels": {keys::SECRET_CLUSTER_NAME: link.cluster},
                "annotations": {
                    keys::SECRET_TRUST_DOMAIN: link.trust_domain,
                    keys::SECRET_CLUSTER_DOMAIN: link.cluster_domain,
                },
            },
            "data": data,
        }),
        role,
        binding,
        json!({
            "apiVersion": "multicluster.linkerd.io/v1alpha3", "kind": "Link",
            "metadata": {
                "name": link.cluster, "namespace": settings.namespace,
                "annotations": {keys::CREATED_BY: settings.created_by()},
            },
            "spec": link.spec,
        }),
    ]
}

/// What `link` prints: the Link comes last, so that the controller for Links without one of their own finds that this
/// one has, and makes nothing that is about to be applied.
pub(crate) fn link_and_controller(
    settings: &Settings,
    manifest: &LinkManifest<'_>,
    has_gateway: bool,
) -> Vec<Value> {
    let mut objects = link(settings, manifest);
    let last = objects.pop();
    objects.extend(controller(
        settings,
        &Names::linked(manifest.cluster),
        has_gateway,
    ));
    objects.extend(last);
    objects
}

/// Lets the destination controller read this link's credentials, for services whose pods it looks up over there. Only
/// these: the issuer's key is a Secret of the same namespace.
fn discovery_access(settings: &Settings, cluster: &str) -> [Value; 2] {
    let name = format!("linkerd-destination-read-remote-creds-{cluster}");
    let metadata = json!({
        "name": name, "namespace": settings.linkerd_namespace,
        "labels": {keys::SECRET_CLUSTER_NAME: cluster},
    });
    [
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": metadata,
            "rules": [{
                "apiGroups": [""], "resources": ["secrets"], "verbs": ["list", "get", "watch"],
                "resourceNames": [keys::credentials_secret(cluster)],
            }],
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": metadata,
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
            "subjects": [{
                "kind": "ServiceAccount", "name": "linkerd-destination", "namespace": settings.linkerd_namespace,
            }],
        }),
    ]
}

/// What the objects of one link's controller are called.
pub(crate) struct Names {
    pub(crate) cluster: String,
    /// Of the Deployment and its ServiceAccount.
    pub(crate) controller: String,
    /// Of the ClusterRoleBinding.
    pub(crate) local_access: String,
    /// Of the Role and its binding.
    pub(crate) credentials_access: String,
    pub(crate) probe: String,
    component: &'static str,
    pod_component: &'static str,
    container: &'static str,
    port: &'static str,
}

impl Names {
    /// As `link` gives them.
    pub(crate) fn linked(cluster: &str) -> Self {
        Self {
            cluster: cluster.to_owned(),
            controller: format!("linkerd-service-mirror-{cluster}"),
            local_access: format!("linkerd-service-mirror-access-local-resources-{cluster}"),
            credentials_access: format!("linkerd-service-mirror-read-remote-creds-{cluster}"),
            probe: keys::probe_service(cluster),
            component: keys::COMPONENT_SERVICE_MIRROR,
            pod_component: keys::COMPONENT_SERVICE_MIRROR_POD,
            container: "service-mirror",
            port: "svcmi-admin",
        }
    }

    /// As the extension gives them to the controllers in its settings.
    pub(crate) fn managed(link: &str) -> Self {
        Self {
            cluster: link.to_owned(),
            controller: format!("controller-{link}"),
            local_access: format!("{SHARED_ACCESS}-{link}"),
            credentials_access: format!("controller-read-remote-creds-{link}"),
            probe: format!("probe-{link}"),
            component: keys::COMPONENT_CONTROLLER,
            pod_component: keys::COMPONENT_CONTROLLER,
            container: "controller",
            port: "ctrl-admin",
        }
    }

    /// Those of the controller that looks after every Link without one of its own.
    pub(crate) fn shared() -> Self {
        Self {
            controller: LOCAL_MIRROR.into(),
            local_access: LOCAL_MIRROR_ACCESS.into(),
            credentials_access: LOCAL_MIRROR.into(),
            component: keys::COMPONENT_LOCAL_SERVICE_MIRROR,
            pod_component: keys::COMPONENT_LOCAL_SERVICE_MIRROR,
            port: "locsm-admin",
            ..Self::linked("")
        }
    }

    fn is_managed(&self) -> bool {
        self.component == keys::COMPONENT_CONTROLLER
    }
}

/// The controller of one link, with its permissions and its probe.
pub(crate) fn controller(settings: &Settings, names: &Names, has_gateway: bool) -> Vec<Value> {
    let (name, cluster) = (names.controller.as_str(), names.cluster.as_str());
    let labels = json!({keys::COMPONENT: names.component, keys::CLUSTER_NAME: cluster});
    let labelled = |mut metadata: Value| {
        values::merge(&mut metadata["labels"], labels.clone());
        metadata
    };
    let mut objects = Vec::new();
    let role = if names.is_managed() {
        SHARED_ACCESS
    } else {
        objects.push(local_access(
            settings,
            &names.local_access,
            &labels,
            settings.enable_namespace_creation,
        ));
        &names.local_access
    };
    objects.push(cluster_role_binding(
        settings,
        &names.local_access,
        role,
        name,
        &labels,
    ));
    let secret = json!({
        "apiGroups": [""], "resources": ["secrets"], "verbs": ["list", "get", "watch"],
        "resourceNames": [keys::credentials_secret(cluster)],
    });
    objects.extend(link_access(
        settings,
        &names.credentials_access,
        name,
        &labels,
        vec![secret],
    ));
    objects.push(json!({
        "apiVersion": "v1", "kind": "ServiceAccount", "metadata": labelled(settings.metadata(name)),
    }));
    let mut args = process_args(settings);
    if has_gateway {
        args.push(format!("--probe-service={}", names.probe));
    }
    args.push(cluster.to_owned());
    objects.extend(workload(&Workload {
        settings,
        name,
        metadata: labelled(settings.metadata(name)),
        selector: json!({keys::COMPONENT: names.pod_component, keys::CLUSTER_NAME: cluster}),
        container: names.container,
        args,
        admin_port: (keys::CONTROLLER_ADMIN_PORT, names.port),
        replicas: settings.replicas,
    }));
    if has_gateway {
        let mut metadata = settings.metadata(&names.probe);
        values::merge(
            &mut metadata["labels"],
            json!({keys::MIRRORED_GATEWAY: "true", keys::CLUSTER_NAME: cluster}),
        );
        objects.push(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": metadata,
            "spec": {"ports": [{
                "name": keys::PROBE_PORT_NAME, "port": settings.gateway.probe.port, "protocol": "TCP",
            }]},
        }));
    }
    objects
}

/// One of our controllers, as a meshed Deployment.
pub(crate) struct Workload<'a> {
    pub(crate) settings: &'a Settings,
    pub(crate) name: &'a str,
    pub(crate) metadata: Value,
    pub(crate) selector: Value,
    pub(crate) container: &'a str,
    pub(crate) args: Vec<String>,
    pub(crate) admin_port: (u16, &'a str),
    pub(crate) replicas: u32,
}

/// The Deployment, and its disruption budget where replicas are spread.
pub(crate) fn workload(workload: &Workload<'_>) -> Vec<Value> {
    let settings = workload.settings;
    let mut labels = workload.selector.clone();
    values::merge(
        &mut labels,
        json!({keys::EXTENSION: workload.metadata["labels"][keys::EXTENSION]}),
    );
    let (port, port_name) = workload.admin_port;
    let probe = |path: &str, delay: u32| json!({"httpGet": {"path": path, "port": port_name}, "initialDelaySeconds": delay, "failureThreshold": 7});
    let mut deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": workload.metadata,
        "spec": {
            "replicas": workload.replicas,
            "revisionHistoryLimit": 10,
            "selector": {"matchLabels": workload.selector},
            "template": {
                "metadata": {
                    "labels": labels,
                    "annotations": {
                        keys::CREATED_BY: settings.created_by(),
                        keys::INJECT: "enabled",
                        "cluster-autoscaler.kubernetes.io/safe-to-evict": "true",
                        "config.alpha.linkerd.io/proxy-wait-before-exit-seconds": "0",
                    },
                },
                "spec": {
                    "serviceAccountName": workload.name,
                    "automountServiceAccountToken": false,
                    "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
                    "containers": [{
                        "name": workload.container,
                        "image": settings.image(),
                        "imagePullPolicy": settings.image_pull_policy,
                        "args": workload.args,
                        "env": [{"name": "HOSTNAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                        "ports": [{"name": port_name, "containerPort": port}],
                        "livenessProbe": probe("/live", 10),
                        "readinessProbe": probe("/ready", 0),
                        "securityContext": restricted(settings.gateway.uid, settings.gateway.gid),
                        "volumeMounts": [{
                            "name": "kube-api-access", "readOnly": true,
                            "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount",
                        }],
                    }],
                    "volumes": [{
                        "name": "kube-api-access",
                        "projected": {
                            "defaultMode": 420,
                            "sources": [
                                {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                                {"configMap": {
                                    "name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}],
                                }},
                                {"downwardAPI": {"items": [{
                                    "path": "namespace",
                                    "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"},
                                }]}},
                            ],
                        },
                    }],
                },
            },
        },
    });
    pull_with_secrets(settings, &mut deployment);
    let budget = spread(settings, &mut deployment, &workload.selector);
    std::iter::once(deployment).chain(budget).collect()
}

fn restricted(uid: i64, gid: i64) -> Value {
    json!({
        "allowPrivilegeEscalation": false,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": true,
        "runAsNonRoot": true,
        "runAsUser": uid,
        "runAsGroup": gid,
        "seccompProfile": {"type": "RuntimeDefault"},
    })
}

fn cluster_role_binding(settings: &Settings, name: &str, role: &str, account: &str, labels: &Value) -> Value {
    let mut metadata = settings.cluster_metadata(name);
    values::merge(&mut metadata["labels"], labels.clone());
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": metadata,
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": settings.namespace}],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn titles(objects: &[Value]) -> Vec<String> {
        let text = |object: &Value, pointer: &str| {
            object
                .pointer(pointer)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        objects
            .iter()
            .map(|o| format!("{} {}", text(o, "/kind"), text(o, "/metadata/name")))
            .collect()
    }

    fn find<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
        let found = objects
            .iter()
            .find(|o| o["kind"] == kind && o["metadata"]["name"] == name);
        found.unwrap_or_else(|| panic!("no {kind} {name} in {:?}", titles(objects)))
    }

    fn set(settings: &str) -> Settings {
        let mut overrides = json!({});
        values::set(&mut overrides, settings).unwrap();
        Settings::of(&Values::default(), overrides).unwrap()
    }

    #[test]
    fn the_extension_has_what_the_documents_promise() {
        let objects = render(&Settings::default()).unwrap();
        assert_eq!(
            titles(&objects),
            [
                "Namespace linkerd-multicluster",
                "CustomResourceDefinition links.multicluster.linkerd.io",
                "ServiceAccount linkerd-gateway",
                "Deployment linkerd-gateway",
                "Service linkerd-gateway",
                "Server linkerd-gateway",
                "AuthorizationPolicy linkerd-gateway",
                "MeshTLSAuthentication any-meshed",
                "NetworkAuthentication source-cluster",
                "ServerAuthorization linkerd-gateway",
                "ClusterRole linkerd-service-mirror-remote-access-default",
                "ServiceAccount linkerd-service-mirror-remote-access-default",
                "Secret linkerd-service-mirror-remote-access-default-token",
                "ClusterRoleBinding linkerd-service-mirror-remote-access-default",
                "Server linkerd-admin",
                "AuthorizationPolicy linkerd-admin",
                "Server service-mirror",
                "AuthorizationPolicy service-mirror",
                "Server controller",
                "AuthorizationPolicy controller",
                "Server local-service-mirror",
                "AuthorizationPolicy local-service-mirror",
                "ClusterRole linkerd-local-service-mirror-access-local-resources",
                "ClusterRoleBinding linkerd-local-service-mirror-access-local-resources",
                "Role linkerd-local-service-mirror",
                "RoleBinding linkerd-local-service-mirror",
                "ServiceAccount linkerd-local-service-mirror",
                "Deployment linkerd-local-service-mirror",
                "ClusterRole linkerd-multicluster-controller-access-local-resources",
            ]
        );
        let service = find(&objects, "Service", "linkerd-gateway");
        assert_eq!(
            service["metadata"]["annotations"][keys::GATEWAY_IDENTITY],
            "linkerd-gateway.linkerd-multicluster.serviceaccount.identity.linkerd.cluster.local"
        );
        assert_eq!(service["spec"]["type"], "LoadBalancer");
        for object in &objects {
            assert_eq!(
                object["metadata"]["labels"][keys::EXTENSION],
                "multicluster",
                "{}",
                object["metadata"]["name"]
            );
        }
    }

    #[test]
    fn controllers_in_the_settings_come_with_the_extension() {
        let settings = set(
            "controllers[0].link.ref.name=east,controllers[1].link.ref.name=north,\
             controllers[1].gateway.enabled=false,controllers[1].enableHeadlessServices=true",
        );
        let objects = render(&settings).unwrap();
        let base = render(&Settings::default()).unwrap().len();
        assert_eq!(
            titles(&objects[base..]),
            [
                "ClusterRoleBinding linkerd-multicluster-controller-access-local-resources-east",
                "Role controller-read-remote-creds-east",
                "RoleBinding controller-read-remote-creds-east",
                "ServiceAccount controller-east",
                "Deployment controller-east",
                "Service probe-east",
                "ClusterRoleBinding linkerd-multicluster-controller-access-local-resources-north",
                "Role controller-read-remote-creds-north",
                "RoleBinding controller-read-remote-creds-north",
                "ServiceAccount controller-north",
                "Deployment controller-north",
            ]
        );
        let binding = find(
            &objects,
            "ClusterRoleBinding",
            "linkerd-multicluster-controller-access-local-resources-east",
        );
        assert_eq!(binding["roleRef"]["name"], SHARED_ACCESS);
        let args = |name: &str| {
            let pod = &find(&objects, "Deployment", name)["spec"]["template"]["spec"];
            pod["containers"][0]["args"].to_string()
        };
        assert!(args("controller-east").contains("--probe-service=probe-east"));
        assert!(args("controller-north").contains("--enable-headless-services"));
        assert!(!args("controller-north").contains("--probe-service"));
    }

    #[test]
    fn settings_that_name_no_link_or_no_kind_of_service_are_refused() {
        assert_eq!(
            render(&set("controllers[0].logLevel=debug")),
            Err(SettingsError::NoLink(0))
        );
        assert!(matches!(
            render(&set("controllers[0].link.ref.name=East")),
            Err(SettingsError::Link { index: 0, .. })
        ));
        assert_eq!(
            render(&set("gateway.serviceType=Balancer")),
            Err(SettingsError::ServiceType("Balancer".into()))
        );
    }

    #[test]
    fn every_controller_takes_the_arguments_that_it_is_given() {
        let mut settings = set("controllers[0].link.ref.name=east,enableHeadlessServices=true,\
             enableNamespaceCreation=true,writeEndpointSlices=true,localServiceMirror.excludedLabels={a,b}");
        settings.controllers[0]["replicas"] = 2.into();
        let mut objects = render(&settings).unwrap();
        objects.extend(controller(&settings, &Names::linked("east"), true));
        let mut checked = 0;
        for deployment in objects.iter().filter(|object| object["kind"] == "Deployment") {
            let Some(args) = deployment["spec"]["template"]["spec"]["containers"][0]["args"].as_array()
            else {
                continue;
            };
            let args = args.iter().map(|arg| arg.as_str().unwrap().into());
            hawser_control::check_arguments(args).unwrap();
            checked += 1;
        }
        assert_eq!(checked, 3);
    }

    #[test]
    fn high_availability_spreads_replicas_and_lets_one_go_at_a_time() {
        let settings = set("enablePodAntiAffinity=true,controllers[0].link.ref.name=east");
        let objects = render(&settings).unwrap();
        for name in [
            "linkerd-gateway",
            "linkerd-local-service-mirror",
            "controller-east",
        ] {
            let deployment = find(&objects, "Deployment", name);
            let budget = find(&objects, "PodDisruptionBudget", name);
            let selector = &deployment["spec"]["selector"];
            assert_eq!(budget["spec"], json!({"maxUnavailable": 1, "selector": selector}));
            let affinity = &deployment["spec"]["template"]["spec"]["affinity"]["podAntiAffinity"];
            assert_eq!(
                affinity["requiredDuringSchedulingIgnoredDuringExecution"],
                json!([{"labelSelector": selector, "topologyKey": "kubernetes.io/hostname"}])
            );
        }
    }

    #[test]
    fn the_controller_of_all_links_reads_the_credentials_of_those_that_are_named() {
        let names = |settings: Value| {
            let settings = Settings::of(&Values::default(), json!({"localServiceMirror": settings})).unwrap();
            let objects = render(&settings).unwrap();
            let rules = find(&objects, "Role", LOCAL_MIRROR)["rules"].clone();
            let mut rules = rules.as_array().cloned().unwrap_or_default().into_iter();
            let secrets = rules.find(|rule| rule["resources"] == json!(["secrets"]));
            secrets.unwrap()["resourceNames"].clone()
        };
        assert_eq!(names(json!({})), Value::Null, "those of links to come as well");
        let east = json!(["cluster-credentials-east"]);
        assert_eq!(names(json!({"links": ["east"]})), east);
    }

    #[test]
    fn settings_are_helms() {
        let settings = set(
            "gateway.serviceType=NodePort,gateway.nodePort=31000,gateway.probe.nodePort=31001,\
             gateway.terminationGracePeriodSeconds=7,gateway.podLabels.team=a,gateway.deploymentAnnotations.b=c",
        );
        let objects = render(&settings).unwrap();
        let ports = &find(&objects, "Service", "linkerd-gateway")["spec"]["ports"];
        assert_eq!(
            (&ports[0]["nodePort"], &ports[1]["nodePort"]),
            (&json!(31000), &json!(31001))
        );
        let pod = &find(&objects, "Deployment", "linkerd-gateway")["spec"]["template"];
        assert_eq!(pod["spec"]["terminationGracePeriodSeconds"], 7);
        assert_eq!(pod["metadata"]["labels"]["team"], "a");
        assert_eq!(pod["metadata"]["annotations"]["b"], "c");
        let wrong = Settings::of(&Values::default(), json!({"gateway": {"port": "many"}}));
        assert!(wrong.is_err());
    }

    #[test]
    fn without_a_gateway_only_the_accounts_remain() {
        for (names, value) in [("one, two", json!("one, two")), ("a list", json!(["one", "two"]))] {
            let overrides = json!({"gateway": {"enabled": false}, "remoteMirrorServiceAccountName": value});
            let settings = Settings::of(&Values::default(), overrides).unwrap();
            let titles = titles(&render(&settings).unwrap());
            assert!(!titles.iter().any(|title| title.contains("linkerd-gateway")));
            assert!(titles.contains(&"ServiceAccount two".into()), "{names}");
        }
    }

    #[test]
    fn a_links_objects_name_each_other() {
        let settings = Settings::default();
        let spec = hawser_crd::link::LinkSpec {
            target_cluster_name: "east".into(),
            ..Default::default()
        };
        let manifest = LinkManifest {
            cluster: "east",
            kubeconfig: "kubeconfig",
            trust_domain: "cluster.local",
            cluster_domain: "cluster.local",
            spec,
        };
        let objects = link_and_controller(&settings, &manifest, true);
        assert_eq!(
            titles(&objects),
            [
                "Secret cluster-credentials-east",
                "Secret cluster-credentials-east",
                "Role linkerd-destination-read-remote-creds-east",
                "RoleBinding linkerd-destination-read-remote-creds-east",
                "ClusterRole linkerd-service-mirror-access-local-resources-east",
                "ClusterRoleBinding linkerd-service-mirror-access-local-resources-east",
                "Role linkerd-service-mirror-read-remote-creds-east",
                "RoleBinding linkerd-service-mirror-read-remote-creds-east",
                "ServiceAccount linkerd-service-mirror-east",
                "Deployment linkerd-service-mirror-east",
                "Service probe-gateway-east",
                "Link east",
            ]
        );
        let deployment = find(&objects, "Deployment", "linkerd-service-mirror-east");
        let pod = &deployment["spec"]["template"];
        assert_eq!(
            pod["metadata"]["labels"][keys::COMPONENT],
            "linkerd-service-mirror"
        );
        assert_eq!(pod["metadata"]["annotations"][keys::INJECT], "enabled");
        assert_eq!(
            pod["spec"]["containers"][0]["args"]
                .as_array()
                .unwrap()
                .last()
                .unwrap(),
            "east"
        );
        assert_eq!(
            find(&objects, "Service", "probe-gateway-east")["metadata"]["labels"][keys::MIRRORED_GATEWAY],
            "true"
        );
    }
}
