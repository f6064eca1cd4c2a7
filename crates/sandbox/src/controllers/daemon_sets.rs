//! One pod of a DaemonSet on every node that it fits.
//!
//! The scheduler binds the pods; each carries an affinity for its node, as in Kubernetes.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetSpec};
use k8s_openapi::api::core::v1::{Node, Pod, PodSpec, Toleration};
use serde_json::{Value, json};

use super::deployments::{Round, resolve};
use super::plan::{Plan, View};
use super::pods::{self, is_active, is_available, is_finished, is_ready, is_terminating, template_hash};
use super::replica_sets::count;
use super::scheduler::{matches_selector, refusal};
use super::snapshot::Target;

const COMPONENT: &str = "daemonset-controller";
const HASH: &str = "controller-revision-hash";
/// What a daemon puts up with, and the effect if not all.
const TOLERATED: [(&str, &str); 6] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];

pub(crate) fn plan(view: &View<'_>, plan: &mut Plan) {
    for set in view.snapshot.daemon_sets.values() {
        if let Some(spec) = &set.spec {
            plan_set(view, plan, set, spec);
        }
    }
}

fn plan_set(view: &View<'_>, plan: &mut Plan, set: &DaemonSet, spec: &DaemonSetSpec) {
    let scope = Target::of(set);
    let hash = template_hash(&spec.template);
    let daemon = daemon_spec(spec);
    let mut on_node: BTreeMap<&str, Vec<&Pod>> = BTreeMap::new();
    for pod in view.pods_of(&set.metadata) {
        on_node
            .entry(node_of(pod).unwrap_or_default())
            .or_default()
            .push(pod);
    }
    let (mut desired, mut current, mut misplaced) = (0, 0, 0);
    let (mut ready, mut available, mut updated) = (0, 0, 0);
    let mut stale = Vec::new();
    let deleting = set.metadata.deletion_timestamp.is_some();
    for node in view.snapshot.nodes.values() {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let pods = on_node.remove(name).unwrap_or_default();
        let wanted = should_run(&daemon, node);
        let mut running = pods.iter().copied().filter(|pod| is_active(pod));
        let chosen = running.next();
        if !deleting {
            let surplus = running.chain(chosen.filter(|_| !wanted));
            let ended = pods
                .iter()
                .copied()
                .filter(|pod| is_finished(pod) && !is_terminating(pod));
            for pod in surplus.chain(ended) {
                pods::delete(plan, &scope, &set.metadata, COMPONENT, pod);
            }
            // The successor waits until its predecessor has left the node.
            if wanted && pods.is_empty() {
                pods::create(
                    plan,
                    &scope,
                    &set.metadata,
                    COMPONENT,
                    daemon_pod(spec, &scope, set, &hash, name),
                );
            }
        }
        if !wanted {
            misplaced += usize::from(chosen.is_some());
            continue;
        }
        desired += 1;
        let Some(pod) = chosen else { continue };
        current += 1;
        ready += usize::from(is_ready(pod));
        available += usize::from(is_available(pod, spec.min_ready_seconds, plan));
        if pod.metadata.labels.as_ref().and_then(|labels| labels.get(HASH)) == Some(&hash) {
            updated += 1;
        } else {
            stale.push(pod);
        }
    }
    let strategy = spec.update_strategy.as_ref();
    if !deleting && strategy.and_then(|strategy| strategy.type_.as_deref()) != Some("OnDelete") {
        let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
        let max = rolling.and_then(|rolling| rolling.max_unavailable.as_ref());
        let max = max.map_or(1, |max| {
            resolve(Some(max), i64::try_from(desired).unwrap_or(0), Round::Up).max(1)
        });
        let mut room = usize::try_from(max)
            .unwrap_or(1)
            .saturating_sub(desired - available);
        for pod in stale {
            // One that does not work is not missed.
            if is_ready(pod) && room == 0 {
                continue;
            }
            room -= usize::from(is_ready(pod));
            pods::delete(plan, &scope, &set.metadata, COMPONENT, pod);
        }
    }
    let wanted = json!({
        "currentNumberScheduled": current,
        "desiredNumberScheduled": desired,
        "numberMisscheduled": misplaced,
        "numberReady": ready,
        "numberAvailable": count(available),
        "numberUnavailable": count(desired - available),
        "updatedNumberScheduled": count(updated),
        "observedGeneration": set.metadata.generation,
    });
    plan.status(&scope, &set.status, wanted);
}

fn daemon_spec(spec: &DaemonSetSpec) -> PodSpec {
    let mut daemon = spec.template.spec.clone().unwrap_or_default();
    let tolerations = daemon.tolerations.get_or_insert_default();
    tolerations.extend(TOLERATED.iter().map(|(key, effect)| Toleration {
        key: Some((*key).to_owned()),
        operator: Some("Exists".to_owned()),
        effect: Some((*effect).to_owned()),
        ..Toleration::default()
    }));
    daemon
}

/// A daemon stays on a node that is not ready, and goes to one that will be.
fn should_run(daemon: &PodSpec, node: &Node) -> bool {
    let mut node = node.clone();
    if let Some(taints) = node.spec.as_mut().and_then(|spec| spec.taints.as_mut()) {
        taints.retain(|taint| {
            !matches!(
                taint.key.as_str(),
                "node.kubernetes.io/not-ready" | "node.kubernetes.io/unreachable"
            )
        });
    }
    matches_selector(daemon, &node) && refusal(daemon, &node).is_none()
}

/// Where the pod runs, or where its affinity will bring it.
fn node_of(pod: &Pod) -> Option<&str> {
    let spec = pod.spec.as_ref()?;
    if let Some(name) = spec.node_name.as_deref().filter(|name| !name.is_empty()) {
        return Some(name);
    }
    let affinity = spec.affinity.as_ref()?.node_affinity.as_ref()?;
    let terms = &affinity
        .required_during_scheduling_ignored_during_execution
        .as_ref()?
        .node_selector_terms;
    let field = terms.first()?.match_fields.as_ref()?.first()?;
    field.values.as_ref()?.first().map(String::as_str)
}

fn daemon_pod(spec: &DaemonSetSpec, scope: &Target, set: &DaemonSet, hash: &str, node: &str) -> Value {
    let mut pod = pods::from_template(&spec.template, scope, &set.metadata);
    pod["metadata"]["labels"][HASH] = hash.into();
    pod["spec"] = json!(daemon_spec(spec));
    let field = json!({ "key": "metadata.name", "operator": "In", "values": [node] });
    // Kubernetes replaces required affinity too: the node was chosen by it already.
    pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] =
        json!({ "nodeSelectorTerms": [{ "matchFields": [field] }] });
    pod
}
