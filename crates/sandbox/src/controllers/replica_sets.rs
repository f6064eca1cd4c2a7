//! Keeps as many pods of one template as a ReplicaSet asks for.

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use super::plan::{Plan, View};
use super::pods::{self, dispensable, is_active, is_available, is_ready};
use super::snapshot::Target;

const COMPONENT: &str = "replicaset-controller";

pub(crate) fn plan(view: &View<'_>, plan: &mut Plan) {
    for set in view.snapshot.replica_sets.values() {
        let Some(spec) = &set.spec else { continue };
        let scope = Target::of(&**set);
        let mut active: Vec<&Pod> = view
            .pods_of(&set.metadata)
            .iter()
            .copied()
            .filter(|pod| is_active(pod))
            .collect();
        let wanted = usize::try_from(spec.replicas.unwrap_or(1)).unwrap_or(0);
        if set.metadata.deletion_timestamp.is_none() {
            if let Some(template) = &spec.template {
                for _ in active.len()..wanted {
                    let pod = pods::from_template(template, &scope, &set.metadata);
                    pods::create(plan, &scope, &set.metadata, COMPONENT, pod);
                }
            }
            active.sort_by_cached_key(|pod| dispensable(pod));
            for pod in active.iter().take(active.len().saturating_sub(wanted)) {
                pods::delete(plan, &scope, &set.metadata, COMPONENT, pod);
            }
        }
        plan_status(plan, &scope, set, &active);
    }
}

fn plan_status(plan: &mut Plan, scope: &Target, set: &ReplicaSet, active: &[&Pod]) {
    let spec = set.spec.as_ref();
    let labels = spec.and_then(|spec| spec.template.as_ref()?.metadata.as_ref()?.labels.as_ref());
    let labelled = |pod: &&&Pod| {
        let carried = pod.metadata.labels.as_ref();
        labels.is_none_or(|labels| {
            labels
                .iter()
                .all(|(key, value)| carried.and_then(|carried| carried.get(key)) == Some(value))
        })
    };
    let min_ready = spec.and_then(|spec| spec.min_ready_seconds);
    let available = active
        .iter()
        .filter(|pod| is_available(pod, min_ready, plan))
        .count();
    let conditions = set.status.as_ref().and_then(|status| status.conditions.as_ref());
    let wanted = json!({
        "replicas": active.len(),
        "fullyLabeledReplicas": count(active.iter().filter(labelled).count()),
        "readyReplicas": count(active.iter().filter(|pod| is_ready(pod)).count()),
        "availableReplicas": count(available),
        "observedGeneration": set.metadata.generation,
        "conditions": conditions,
    });
    plan.status(scope, &set.status, wanted);
}

/// Zero is left out of a status, as Kubernetes does.
pub(crate) fn count(number: usize) -> Option<usize> {
    Some(number).filter(|number| *number > 0)
}
