//! Nodes that stopped reporting, and pods that no node will ever end.
//!
//! Only what others rely on: taints that keep new pods away, readiness that is withdrawn so that traffic goes
//! elsewhere, and clean-up. Pods of a lost node are not evicted: with the node's address gone they serve nobody, and
//! with a single node there is nowhere to go.

use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

use super::plan::{Manner, Plan, Reference, View, set_condition};
use super::pods::{after, is_ready, is_terminating};
use super::snapshot::{Key, Resource, Target};

/// As in Kubernetes: four missed heartbeats.
const GRACE_SECONDS: i64 = 40;
/// Why a node, or a pod on it, was said not to be ready in its absence.
const LOST: &str = "NodeStatusUnknown";
const POD_LOST: &str = "NodeNotReady";
const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";

pub(crate) fn plan(view: &View<'_>, plan: &mut Plan) {
    for node in view
        .snapshot
        .nodes
        .values()
        .filter(|node| node.metadata.deletion_timestamp.is_none())
    {
        plan_node(view, plan, node);
    }
    for pod in view.snapshot.pods.values() {
        let node_name = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
        let unless = match node_name {
            None if is_terminating(pod) => Vec::new(),
            Some(name) if !view.snapshot.nodes.contains_key(&Key::new("", name)) => {
                let target = Target {
                    resource: Resource::of::<Node>(),
                    key: Key::new("", name),
                };
                vec![Reference::any(target)]
            }
            _ => continue,
        };
        let target = Target::of(&**pod);
        plan.delete_unless(&target, target.clone(), &pod.metadata, Manner::AtOnce, unless);
    }
}

fn plan_node(view: &View<'_>, plan: &mut Plan, node: &Node) {
    let scope = Target::of(node);
    let lease = view
        .snapshot
        .leases
        .get(&Key::new("kube-node-lease", &scope.key.name));
    let renewed = lease
        .and_then(|lease| lease.spec.as_ref()?.renew_time.as_ref())
        .map(|time| time.0);
    // A node without a lease speaks for itself.
    let lost = renewed.is_some_and(|renewed| plan.has_come(after(renewed, GRACE_SECONDS)));
    let status = node
        .status
        .as_ref()
        .map(|status| json!(status))
        .unwrap_or_default();
    let mut conditions = status["conditions"].as_array().cloned().unwrap_or_default();
    // A node says what changed for it, not that it is back: a machine that slept takes up where it was. So whatever was
    // said here in its absence, and that it has not replaced since, is taken back here too.
    let returned = renewed.is_some() && !lost;
    let reason = conditions
        .iter()
        .find(|condition| condition["type"] == "Ready")
        .map(|ready| &ready["reason"]);
    let verdict = match reason {
        _ if lost => Some(("Unknown", (LOST, "Kubelet stopped posting node status."))),
        Some(reason) if returned && reason == LOST => {
            Some(("True", ("KubeletReady", "kubelet is posting ready status")))
        }
        _ => None,
    };
    if let Some((status, told)) = verdict
        && set_condition(&mut conditions, plan.now, "Ready", status, told)
    {
        let version = &node.metadata.resource_version;
        let patch =
            json!({ "metadata": { "resourceVersion": version }, "status": { "conditions": conditions } });
        plan.patch_status(&scope, scope.clone(), patch);
    }
    for pod in view
        .snapshot
        .pods
        .values()
        .filter(|pod| is_on(pod, &scope.key.name))
    {
        let (status, told) = match ready_reason(pod) {
            _ if lost && is_ready(pod) => ("False", (POD_LOST, "The node stopped reporting.")),
            Some(POD_LOST) if returned => ("True", ("", "")),
            _ => continue,
        };
        let target = Target::of(&**pod);
        let mut conditions = json!(pod.status)["conditions"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        set_condition(&mut conditions, plan.now, "Ready", status, told);
        let version = &pod.metadata.resource_version;
        let patch =
            json!({ "metadata": { "resourceVersion": version }, "status": { "conditions": conditions } });
        plan.patch_status(&target, target.clone(), patch);
    }
    let ready = conditions.iter().find(|condition| condition["type"] == "Ready");
    let wanted = match ready.and_then(|ready| ready["status"].as_str()) {
        Some("True") => None,
        Some("Unknown") => Some(UNREACHABLE),
        _ => Some(NOT_READY),
    };
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    let ours = |key: &str| key == NOT_READY || key == UNREACHABLE;
    let (present, mut kept): (Vec<_>, Vec<_>) = taints.partition(|taint| ours(&taint.key));
    if present.iter().map(|taint| taint.key.as_str()).eq(wanted) {
        return;
    }
    let mut taints: Vec<Value> = kept.drain(..).map(|taint| json!(taint)).collect();
    taints.extend(wanted.map(|key| json!({ "key": key, "effect": "NoSchedule" })));
    let version = &node.metadata.resource_version;
    let patch = json!({ "metadata": { "resourceVersion": version }, "spec": { "taints": taints } });
    plan.patch(&scope, scope.clone(), patch);
}

fn ready_reason(pod: &Pod) -> Option<&str> {
    let mut conditions = pod
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    conditions
        .find(|condition| condition.type_ == "Ready")?
        .reason
        .as_deref()
}

fn is_on(pod: &Pod, node: &str) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(node)
}
