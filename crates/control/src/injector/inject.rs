//! Whether a pod gets a proxy, and the pod that it becomes.
//!
//! Pure: the webhook, `hawser inject --manual` and the rendering of the control plane all come through here, so a proxy
//! looks the same however it got into its pod. Pods are trees, because a patch must leave alone what it doesn't know.
//! Source: `spec/proxy.md` 9.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::proxy;
use crate::keys;
use crate::ports::Ports;
use crate::values::{VERSION, Values};

/// The namespace of a pod.
#[derive(Clone, Debug, Default)]
pub struct Namespace {
    pub name: String,
    pub annotations: BTreeMap<String, String>,
}

/// The workload that a pod belongs to: lower-case kind and name.
#[derive(Clone, Debug)]
pub struct Owner {
    pub kind: String,
    pub name: String,
}

/// Which part of the control plane a pod is, if any. Its own services are reached over loopback, without TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Component {
    #[default]
    None,
    Identity,
    Destination,
    Other,
}

/// How a pod wants its proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Enabled,
    /// For ingress controllers: the proxy routes by header instead of by address.
    Ingress,
}

/// Why a pod gets no proxy. The texts are shown to users.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Skip {
    HostNetwork,
    SidecarExists,
    UnsupportedKind,
    /// The annotation asks for nothing, neither on the pod nor on its namespace.
    NotAsked,
    DisabledOnPod,
    DisabledOnNamespace,
    InvalidAnnotation {
        value: String,
    },
    /// The pod refuses the token that its proxy would need.
    NoToken,
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::HostNetwork => "hostNetwork is enabled",
            Self::SidecarExists => "pod has a sidecar injected already",
            Self::UnsupportedKind => "this resource kind is unsupported",
            Self::NotAsked => {
                return write!(
                    f,
                    "neither the namespace nor the pod have the annotation \"{}:enabled\"",
                    keys::INJECT
                );
            }
            Self::DisabledOnPod => {
                return write!(f, "pod has the annotation \"{}:disabled\"", keys::INJECT);
            }
            Self::DisabledOnNamespace => {
                return write!(f, "namespace has the annotation \"{}:disabled\"", keys::INJECT);
            }
            Self::InvalidAnnotation { value } => {
                return write!(f, "invalid value {value:?} for annotation \"{}\"", keys::INJECT);
            }
            Self::NoToken => "automountServiceAccountToken set to \"false\", with no token projection",
        };
        f.write_str(text)
    }
}

/// Everything that decides what a proxy looks like, besides the pod itself.
#[derive(Clone, Copy, Debug)]
pub struct Injection<'a> {
    pub values: &'a Values,
    pub control_plane_namespace: &'a str,
    pub namespace: &'a Namespace,
    pub owner: Option<&'a Owner>,
    pub component: Component,
}

impl Injection<'_> {
    /// The pod (`metadata` and `spec`) with its proxy, or why it gets none.
    pub fn apply(&self, pod: &Value) -> Result<Value, Skip> {
        let mode = decide(pod, self.namespace)?;
        if !self.values.identity.service_account_token_projection
            && pod["spec"]["automountServiceAccountToken"] == Value::Bool(false)
        {
            return Err(Skip::NoToken);
        }
        Ok(self.inject(pod, mode))
    }

    /// The pod with its proxy, whatever it or its namespace ask for.
    pub fn inject(&self, pod: &Value, mode: Mode) -> Value {
        let mut pod = pod.clone();
        // What the namespace configures holds for the pod, and is written down there so that everyone sees it.
        let mut annotations = strings(&pod["metadata"]["annotations"]);
        for (name, value) in &self.namespace.annotations {
            let configures = [
                keys::CONFIG_PREFIX,
                keys::CONFIG_ALPHA_PREFIX,
                keys::CONFIG_BETA_PREFIX,
            ]
            .iter()
            .any(|prefix| name.starts_with(prefix));
            if configures || name == keys::DISABLE_TAP {
                annotations.entry(name.clone()).or_insert_with(|| value.clone());
            }
        }
        let ports = container_ports(&pod);
        let mut values = self.values.clone();
        proxy::configure(&mut values, &annotations, &ports);
        if mode == Mode::Ingress {
            values.proxy.is_ingress = true;
        }
        if !annotations.contains_key(keys::OPAQUE_PORTS) {
            let exposed = exposed_opaque(&values.proxy.opaque_ports, ports.values().copied());
            values.proxy.opaque_ports = exposed.clone();
            if !exposed.is_empty() {
                annotations.insert(keys::OPAQUE_PORTS.into(), exposed);
            }
        }
        annotations.insert(keys::CREATED_BY.into(), created_by());
        annotations.insert(keys::PROXY_VERSION.into(), values.proxy_version().to_owned());
        // Who watches looks at what the pod says, so that forbidding it later is enough.
        if proxy::may_be_watched(self.component, &annotations) {
            annotations.insert(keys::TAP_ENABLED.into(), "true".into());
        } else {
            annotations.remove(keys::TAP_ENABLED);
        }
        // The control plane reads its anchors from the ConfigMap: naming them here would restart it for each change.
        if self.component == Component::None {
            annotations.insert(
                keys::TRUST_ROOT_SHA256.into(),
                sha256(&values.identity_trust_anchors_pem),
            );
        }

        let mut labels = strings(&pod["metadata"]["labels"]);
        labels.insert(
            keys::CONTROL_PLANE_NS.into(),
            self.control_plane_namespace.to_owned(),
        );
        labels.insert(keys::WORKLOAD_NS.into(), self.namespace.name.clone());
        if let Some(owner) = self.owner {
            labels.insert(format!("linkerd.io/proxy-{}", owner.kind), owner.name.clone());
        }
        let sidecar = proxy::Sidecar {
            values: &values,
            injection: self,
            annotations: &annotations,
            pod: &pod,
        };
        let containers = sidecar.render();
        let metadata = object(object(&mut pod).entry("metadata").or_insert(Value::Null));
        metadata.insert("annotations".into(), json!(annotations));
        metadata.insert("labels".into(), json!(labels));
        containers.put_into(object(object(&mut pod).entry("spec").or_insert(Value::Null)));
        pod
    }

    /// The JSON patch that does the same as [`Injection::apply`]. A pod that is skipped may still inherit the
    /// namespace's opaque ports, as other proxies must know them.
    pub fn patch(&self, pod: &Value) -> (json_patch::Patch, Result<(), Skip>) {
        match self.apply(pod) {
            Ok(injected) => (json_patch::diff(pod, &injected), Ok(())),
            Err(skip) => (
                self.opaque_ports_patch(pod, container_ports(pod).values().copied()),
                Err(skip),
            ),
        }
    }

    /// Annotates a Service with the opaque ports that its namespace or the mesh's defaults give it.
    pub fn patch_service(&self, service: &Value) -> json_patch::Patch {
        let ports = service["spec"]["ports"].as_array().into_iter().flatten();
        self.opaque_ports_patch(
            service,
            ports.filter_map(|port| u16::try_from(port["port"].as_u64()?).ok()),
        )
    }

    fn opaque_ports_patch(&self, original: &Value, ports: impl Iterator<Item = u16>) -> json_patch::Patch {
        let mut annotations = strings(&original["metadata"]["annotations"]);
        if annotations.contains_key(keys::OPAQUE_PORTS) {
            return json_patch::Patch::default();
        }
        let opaque = match self.namespace.annotations.get(keys::OPAQUE_PORTS) {
            Some(ports) => ports.clone(),
            None => exposed_opaque(&self.values.proxy.opaque_ports, ports),
        };
        if opaque.is_empty() {
            return json_patch::Patch::default();
        }
        annotations.insert(keys::OPAQUE_PORTS.into(), opaque);
        let mut annotated = original.clone();
        let metadata = object(object(&mut annotated).entry("metadata").or_insert(Value::Null));
        metadata.insert("annotations".into(), json!(annotations));
        json_patch::diff(original, &annotated)
    }
}

/// Whether a pod wants a proxy, by its own annotation or else by its namespace's, and can have one.
pub fn decide(pod: &Value, namespace: &Namespace) -> Result<Mode, Skip> {
    if pod["spec"]["hostNetwork"] == Value::Bool(true) {
        return Err(Skip::HostNetwork);
    }
    if has_sidecar(pod) {
        return Err(Skip::SidecarExists);
    }
    let asks = |text: Option<&str>| match text {
        None => Ok(None),
        Some("enabled") => Ok(Some(Some(Mode::Enabled))),
        Some("ingress") => Ok(Some(Some(Mode::Ingress))),
        Some("disabled") => Ok(Some(None)),
        Some(value) => Err(Skip::InvalidAnnotation { value: value.into() }),
    };
    let on_pod = asks(pod["metadata"]["annotations"][keys::INJECT].as_str())?;
    let on_namespace = asks(namespace.annotations.get(keys::INJECT).map(String::as_str))?;
    match (on_pod, on_namespace) {
        (Some(Some(mode)), _) | (None, Some(Some(mode))) => Ok(mode),
        (Some(None), _) => Err(Skip::DisabledOnPod),
        (None, Some(None)) => Err(Skip::DisabledOnNamespace),
        (None, None) => Err(Skip::NotAsked),
    }
}

fn has_sidecar(pod: &Value) -> bool {
    let known = |container: &Value| {
        matches!(
            container["name"].as_str(),
            Some(
                "linkerd-proxy" | "linkerd-init" | "linkerd-network-validator" | "istio-proxy" | "istio-init"
            )
        )
    };
    ["containers", "initContainers"]
        .iter()
        .any(|list| pod["spec"][list].as_array().into_iter().flatten().any(known))
}

/// Ports of all containers by name; unnamed ones under their number.
fn container_ports(pod: &Value) -> BTreeMap<String, u16> {
    ["initContainers", "containers"]
        .iter()
        .flat_map(|list| pod["spec"][list].as_array().into_iter().flatten())
        .flat_map(|container| container["ports"].as_array().into_iter().flatten())
        .filter(|port| port["protocol"].as_str().is_none_or(|protocol| protocol == "TCP"))
        .filter_map(|port| {
            let number = u16::try_from(port["containerPort"].as_u64()?).ok()?;
            Some((
                port["name"]
                    .as_str()
                    .map_or_else(|| number.to_string(), str::to_owned),
                number,
            ))
        })
        .collect()
}

/// Those of the default opaque ports that are exposed.
fn exposed_opaque(defaults: &str, exposed: impl Iterator<Item = u16>) -> String {
    let defaults = Ports::parse(defaults);
    exposed
        .filter(|port| defaults.contains(*port))
        .collect::<Ports>()
        .to_string()
}

/// A string map; entries of other types can't be in a valid object.
pub(super) fn strings(value: &Value) -> BTreeMap<String, String> {
    let entries = value.as_object().into_iter().flatten();
    entries
        .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
        .collect()
}

/// The map in a place; whatever else stood there makes room.
pub(super) fn object(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) => map,
        _ => unreachable!("just made an object"),
    }
}

pub(super) fn created_by() -> String {
    format!("linkerd/proxy-injector {VERSION}")
}

fn sha256(text: &str) -> String {
    Sha256::digest(text.as_bytes())
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
