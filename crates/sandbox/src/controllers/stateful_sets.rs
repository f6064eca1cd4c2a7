//! Numbered pods of a StatefulSet, one after the other or all at once.
//!
//! Without volumes and without stored revisions: a pod that is made again gets the current template, also below an
//! update's partition.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::plan::{Plan, View};
use super::pods::{self, is_available, is_finished, is_ready, is_terminating, template_hash};
use super::replica_sets::count;
use super::snapshot::Target;

const COMPONENT: &str = "statefulset-controller";
const HASH: &str = "controller-revision-hash";

pub(crate) fn plan(view: &View<'_>, plan: &mut Plan) {
    for set in view.snapshot.stateful_sets.values() {
        let Some(spec) = &set.spec else { continue };
        let scope = Target::of(&**set);
        let revision = format!("{}-{}", scope.key.name, template_hash(&spec.template));
        let by_ordinal: BTreeMap<i64, &Pod> = view
            .pods_of(&set.metadata)
            .iter()
            .filter_map(|pod| Some((ordinal(&scope, pod)?, *pod)))
            .collect();
        if set.metadata.deletion_timestamp.is_none() {
            plan_pods(plan, &scope, set, spec, &revision, &by_ordinal);
        }
        plan_status(plan, &scope, set, spec, &revision, &by_ordinal);
    }
}

fn ordinal(scope: &Target, pod: &Pod) -> Option<i64> {
    pod.metadata
        .name
        .as_deref()?
        .strip_prefix(scope.key.name.as_str())?
        .strip_prefix('-')?
        .parse()
        .ok()
}

fn plan_pods(
    plan: &mut Plan,
    scope: &Target,
    set: &StatefulSet,
    spec: &StatefulSetSpec,
    revision: &str,
    pods: &BTreeMap<i64, &Pod>,
) {
    let ordered = spec.pod_management_policy.as_deref() != Some("Parallel");
    let start = i64::from(
        spec.ordinals
            .as_ref()
            .and_then(|ordinals| ordinals.start)
            .unwrap_or(0),
    );
    let wanted = start..start + i64::from(spec.replicas.unwrap_or(1));
    let mut settled = true;
    for ordinal in wanted.clone() {
        settled &= match pods.get(&ordinal) {
            None => {
                pods::create(
                    plan,
                    scope,
                    &set.metadata,
                    COMPONENT,
                    pod(scope, set, spec, revision, ordinal),
                );
                false
            }
            Some(pod) if is_terminating(pod) => false,
            Some(pod) if is_finished(pod) => {
                pods::delete(plan, scope, &set.metadata, COMPONENT, pod);
                false
            }
            Some(pod) => is_available(pod, spec.min_ready_seconds, plan),
        };
        if ordered && !settled {
            return;
        }
    }
    for (_, pod) in pods.iter().rev().filter(|(ordinal, _)| !wanted.contains(ordinal)) {
        if !is_terminating(pod) {
            pods::delete(plan, scope, &set.metadata, COMPONENT, pod);
        }
        if ordered {
            return;
        }
    }
    let strategy = spec.update_strategy.as_ref();
    if strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("OnDelete") {
        return;
    }
    let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
    let partition = rolling.and_then(|rolling| rolling.partition).unwrap_or(0);
    for (ordinal, pod) in pods
        .range(start..)
        .rev()
        .filter(|(ordinal, _)| wanted.contains(ordinal))
    {
        if *ordinal < i64::from(partition) {
            break;
        }
        if !has_revision(pod, revision) {
            if !is_terminating(pod) {
                pods::delete(plan, scope, &set.metadata, COMPONENT, pod);
            }
            return;
        }
        if !is_ready(pod) {
            return;
        }
    }
}

fn has_revision(pod: &Pod, revision: &str) -> bool {
    let label = pod.metadata.labels.as_ref().and_then(|labels| labels.get(HASH));
    label.is_some_and(|label| label == revision)
}

fn pod(scope: &Target, set: &StatefulSet, spec: &StatefulSetSpec, revision: &str, ordinal: i64) -> Value {
    let name = format!("{}-{ordinal}", scope.key.name);
    let mut pod = pods::from_template(&spec.template, scope, &set.metadata);
    if let Some(metadata) = pod["metadata"].as_object_mut() {
        metadata.remove("generateName");
    }
    pod["metadata"]["name"] = name.as_str().into();
    let labels = &mut pod["metadata"]["labels"];
    labels[HASH] = revision.into();
    labels["statefulset.kubernetes.io/pod-name"] = name.as_str().into();
    labels["apps.kubernetes.io/pod-index"] = ordinal.to_string().into();
    pod["spec"]["hostname"] = name.into();
    pod["spec"]["subdomain"] = json!(spec.service_name);
    pod
}

fn plan_status(
    plan: &mut Plan,
    scope: &Target,
    set: &StatefulSet,
    spec: &StatefulSetSpec,
    revision: &str,
    pods: &BTreeMap<i64, &Pod>,
) {
    let present: Vec<&Pod> = pods.values().copied().filter(|pod| !is_finished(pod)).collect();
    let live = || present.iter().filter(|pod| !is_terminating(pod));
    let ready = live().filter(|pod| is_ready(pod)).count();
    let available = live()
        .filter(|pod| is_available(pod, spec.min_ready_seconds, plan))
        .count();
    let updated = live().filter(|pod| has_revision(pod, revision)).count();
    let known = set
        .status
        .as_ref()
        .and_then(|status| status.current_revision.clone());
    let complete = updated == present.len() && ready == present.len();
    let current = known.filter(|_| !complete).unwrap_or_else(|| revision.to_owned());
    let on_current = live().filter(|pod| has_revision(pod, &current)).count();
    let wanted = json!({
        "replicas": present.len(),
        "readyReplicas": count(ready),
        "availableReplicas": available,
        "currentReplicas": count(on_current),
        "updatedReplicas": count(updated),
        "currentRevision": current,
        "updateRevision": revision,
        "observedGeneration": set.metadata.generation,
        "collisionCount": 0,
    });
    plan.status(scope, &set.status, wanted);
}
