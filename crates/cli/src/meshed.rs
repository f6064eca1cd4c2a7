//! What a pod says of its proxy: whether there is one, whether it is ready, its version and its identity.
//!
//! Looks at pods only, whoever injected them, so Linkerd's proxies are read like ours.

use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod};
use kube::ResourceExt;

/// Label of every pod with a proxy; its value is the namespace of the control plane.
pub(crate) const MESHED: &str = "linkerd.io/control-plane-ns";
pub(crate) const COMPONENT: &str = "linkerd.io/control-plane-component";
const PROXY: &str = "linkerd-proxy";
const ADMIN_PORT: u16 = 4191;

/// The proxy is a container, or a native sidecar among the init containers.
fn proxy(pod: &Pod) -> Option<&Container> {
    let spec = pod.spec.as_ref()?;
    let all = spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten());
    all.into_iter().find(|container| container.name == PROXY)
}

fn statuses(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    let status = pod.status.as_ref();
    let containers = status.and_then(|status| status.container_statuses.as_ref());
    let init = status.and_then(|status| status.init_container_statuses.as_ref());
    containers.into_iter().flatten().chain(init.into_iter().flatten())
}

pub(crate) fn has_proxy(pod: &Pod) -> bool {
    proxy(pod).is_some()
}

pub(crate) fn has_ready_proxy(pod: &Pod) -> bool {
    statuses(pod).any(|container| container.name == PROXY && container.ready)
}

/// Finished pods have proxies that nobody waits for.
pub(crate) fn is_finished(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// All containers that should be ready are.
pub(crate) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions
        .into_iter()
        .flatten()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

pub(crate) fn proxy_version(pod: &Pod) -> Option<String> {
    let proxy = proxy(pod)?;
    let annotated = pod.annotations().get("linkerd.io/proxy-version").cloned();
    // A tag follows the last colon, unless that belongs to a registry's port.
    let tag = || {
        let (_, tag) = proxy.image.as_deref()?.rsplit_once(':')?;
        (!tag.contains('/')).then(|| tag.to_owned())
    };
    annotated.or_else(tag)
}

fn variable<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    let mut env = proxy(pod)?.env.iter().flatten();
    env.find(|variable| variable.name == name)?.value.as_deref()
}

/// The name in the proxy's certificate, which is also what it answers to.
pub(crate) fn identity(pod: &Pod) -> Option<String> {
    let account = pod.spec.as_ref()?.service_account_name.as_deref();
    let name = variable(pod, "LINKERD2_PROXY_IDENTITY_LOCAL_NAME")?;
    Some(
        name.replace("$(_pod_sa)", account.unwrap_or("default"))
            .replace("$(_pod_ns)", &pod.namespace().unwrap_or_default()),
    )
}

/// The bundle that the proxy was started with, where it is written in the pod.
pub(crate) fn trust_anchors(pod: &Pod) -> Option<&str> {
    variable(pod, "LINKERD2_PROXY_IDENTITY_TRUST_ANCHORS")
}

pub(crate) fn admin_port(pod: &Pod) -> u16 {
    let ports = proxy(pod)
        .into_iter()
        .flat_map(|proxy| proxy.ports.iter().flatten());
    ports
        .filter(|port| port.name.as_deref() == Some("linkerd-admin"))
        .find_map(|port| u16::try_from(port.container_port).ok())
        .unwrap_or(ADMIN_PORT)
}

/// `namespace/name`, as people look for it.
pub(crate) fn title(pod: &Pod) -> String {
    format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(list: &str) -> Pod {
        let proxy = json!({
            "name": PROXY, "image": "localhost:5000/proxy:v1",
            "env": [{"name": "LINKERD2_PROXY_IDENTITY_LOCAL_NAME",
                     "value": "$(_pod_sa).$(_pod_ns).serviceaccount.identity.linkerd.cluster.local"}],
            "ports": [{"name": "linkerd-admin", "containerPort": 9191}],
        });
        let mut pod = json!({
            "metadata": {"namespace": "emojivoto", "name": "web-1"},
            "spec": {"serviceAccountName": "web", "containers": [{"name": "web", "image": "web"}], "initContainers": []},
            "status": {"initContainerStatuses": [
                {"name": PROXY, "ready": true, "image": "", "imageID": "", "restartCount": 0}]},
        });
        pod["spec"][list].as_array_mut().unwrap().push(proxy);
        serde_json::from_value(pod).unwrap()
    }

    #[test]
    fn a_proxy_is_found_as_container_and_as_native_sidecar() {
        for list in ["containers", "initContainers"] {
            let pod = pod(list);
            assert!(has_ready_proxy(&pod), "{list}");
            assert_eq!(proxy_version(&pod).as_deref(), Some("v1"), "{list}");
            assert_eq!(admin_port(&pod), 9191, "{list}");
            assert_eq!(
                identity(&pod).as_deref(),
                Some("web.emojivoto.serviceaccount.identity.linkerd.cluster.local"),
                "{list}"
            );
        }
    }

    #[test]
    fn a_pod_without_a_proxy_has_neither_version_nor_identity() {
        let mut pod = pod("containers");
        pod.spec.as_mut().unwrap().containers.truncate(1);
        assert!(!has_proxy(&pod));
        assert_eq!(proxy_version(&pod), None);
        assert_eq!(identity(&pod), None);
    }
}
