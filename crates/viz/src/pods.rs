//! Pods as far as statistics need them: whose they are, whether they are meshed, and where they can be read.
//!
//! A pure reduction of what the API server says.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hawser_crd::keys;
use k8s_openapi::api::core::v1::{Container, Pod as Object};
use kube::ResourceExt;

use crate::kinds::Kind;

/// Where a proxy serves its metrics if its container doesn't say.
const PROXY_ADMIN_PORT: u16 = 4191;
const PROXY_CONTAINER: &str = "linkerd-proxy";
const PROXY_ADMIN_PORT_NAME: &str = "linkerd-admin";
const CONTROL_PLANE_COMPONENT: &str = "linkerd.io/control-plane-component";

#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodName {
    pub namespace: String,
    pub name: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    pub(crate) name: PodName,
    pub(crate) owner: Option<(Kind, String)>,
    pub(crate) service_account: String,
    pub(crate) ip: Option<IpAddr>,
    pub(crate) is_running: bool,
    pub(crate) is_gateway: bool,
    /// Part of the mesh itself.
    pub(crate) is_system: bool,
    /// Where its proxy's metrics are; absent without a proxy.
    pub(crate) proxy: Option<u16>,
    /// Of its proxy; empty if nobody says.
    pub(crate) version: String,
    /// Where a link's controller tells about the gateway that it probes, and identity about its issuer.
    pub(crate) prober: Option<u16>,
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

pub type Pods = BTreeMap<PodName, Arc<Pod>>;

impl Pod {
    pub fn of(object: &Object) -> Self {
        let spec = object.spec.as_ref();
        let containers = || {
            spec.into_iter().flat_map(|spec| {
                // A native sidecar is an init container that stays.
                spec.containers
                    .iter()
                    .chain(spec.init_containers.iter().flatten())
            })
        };
        let port = |container: &Container, wanted: fn(&str) -> bool| {
            let mut ports = container.ports.iter().flatten();
            let port = ports.find(|port| port.name.as_deref().is_some_and(wanted))?;
            u16::try_from(port.container_port).ok()
        };
        let sidecar = containers().find(|container| container.name == PROXY_CONTAINER);
        let proxy = sidecar.map(|container| {
            port(container, |name| name == PROXY_ADMIN_PORT_NAME).unwrap_or(PROXY_ADMIN_PORT)
        });
        let version = sidecar.and_then(|container| tag(container.image.as_deref()?));
        let component = object.labels().get(keys::COMPONENT).map(String::as_str);
        let part = object.labels().get(CONTROL_PLANE_COMPONENT).map(String::as_str);
        let is_prober = part == Some("identity")
            || matches!(
                component,
                Some(keys::COMPONENT_SERVICE_MIRROR_POD | keys::COMPONENT_CONTROLLER)
            );
        let prober = containers()
            .filter(|container| is_prober && container.name != PROXY_CONTAINER)
            .find_map(|container| port(container, |name| name.ends_with("admin") || name == "admin-http"));
        let status = object.status.as_ref();
        let phase = status.and_then(|status| status.phase.as_deref());
        let annotation = |key| object.annotations().get(key).map(String::as_str);
        Self {
            name: PodName {
                namespace: object.namespace().unwrap_or_default(),
                name: object.name_any(),
            },
            owner: owner(object),
            service_account: spec
                .and_then(|spec| spec.service_account_name.clone())
                .unwrap_or_default(),
            ip: status.and_then(|status| status.pod_ip.as_deref()?.parse().ok()),
            is_running: phase == Some("Running") && object.metadata.deletion_timestamp.is_none(),
            is_gateway: annotation(keys::ENABLE_GATEWAY) == Some("true"),
            is_system: part.is_some() || object.labels().contains_key(keys::EXTENSION),
            proxy,
            version: version.unwrap_or_default().to_owned(),
            prober,
        }
    }

    /// Ports whose metrics tell something, in the order in which they are asked.
    pub fn ports(&self) -> impl Iterator<Item = u16> {
        self.proxy.into_iter().chain(self.prober)
    }

    pub(crate) fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        let ip = self.ip;
        self.ports()
            .filter_map(move |port| Some(SocketAddr::new(ip?, port)))
    }

    pub fn name(&self) -> &PodName {
        &self.name
    }

    pub fn is_running(&self) -> bool {
        self.is_running
    }
}

/// What an image's name says of its version.
fn tag(image: &str) -> Option<&str> {
    let named = image.split('@').next()?;
    let (_, last) = named.rsplit_once('/').unwrap_or(("", named));
    last.split_once(':').map(|(_, tag)| tag)
}

/// A ReplicaSet that a Deployment made is named after it and the template's hash, which the pod carries too; so
/// nobody needs to ask for ReplicaSets.
fn owner(pod: &Object) -> Option<(Kind, String)> {
    let owners = pod.metadata.owner_references.as_ref()?;
    let owner = owners.iter().find(|owner| owner.controller == Some(true))?;
    let hash = pod.labels().get("pod-template-hash");
    let deployment = hash
        .filter(|_| owner.kind == "ReplicaSet")
        .and_then(|hash| owner.name.strip_suffix(hash.as_str())?.strip_suffix('-'));
    match deployment {
        Some(name) => Some((Kind::Deployment, name.to_owned())),
        None => Some((owner.kind.parse().ok()?, owner.name.clone())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(object: serde_json::Value) -> Pod {
        Pod::of(&serde_json::from_value(object).expect("a pod"))
    }

    #[test]
    fn a_meshed_pod_of_a_deployment() {
        let pod = pod(json!({
            "metadata": {
                "namespace": "emojivoto", "name": "web-abc-1", "labels": {"pod-template-hash": "abc"},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-abc", "uid": "1", "controller": true}],
            },
            "spec": {
                "serviceAccountName": "web",
                "containers": [
                    {"name": "linkerd-proxy", "image": "registry:5000/hawser/proxy:v0.9@sha256:0", "ports": [{"name": "linkerd-admin", "containerPort": 4192}]},
                    {"name": "web", "ports": [{"name": "http-admin", "containerPort": 80}]},
                ],
            },
            "status": {"phase": "Running", "podIP": "10.0.0.1"},
        }));
        assert_eq!(
            pod,
            Pod {
                name: PodName {
                    namespace: "emojivoto".into(),
                    name: "web-abc-1".into()
                },
                owner: Some((Kind::Deployment, "web".into())),
                service_account: "web".into(),
                ip: Some([10, 0, 0, 1].into()),
                is_running: true,
                proxy: Some(4192),
                version: "v0.9".into(),
                ..Pod::default()
            }
        );
    }

    #[test]
    fn the_controller_of_a_link_tells_about_its_gateway() {
        let pod = pod(json!({
            "metadata": {"name": "mirror", "labels": {"component": "linkerd-service-mirror"}},
            "spec": {
                "containers": [{"name": "service-mirror", "ports": [{"name": "svcmi-admin", "containerPort": 9999}]}],
                "initContainers": [{"name": "linkerd-proxy", "restartPolicy": "Always"}],
            },
        }));
        assert_eq!(pod.ports().collect::<Vec<_>>(), [4191, 9999]);
    }

    #[test]
    fn other_pods_are_not_read() {
        let pod = pod(json!({"metadata": {"name": "x"}, "spec": {"containers": [{"name": "x"}]}}));
        assert_eq!(pod.ports().count(), 0);
    }
}
