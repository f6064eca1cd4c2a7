//! What several controllers ask about a pod, and how they make one from a template.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

use super::plan::{Manner, Note, Plan, Write, controlled_by, short_hash};
use super::snapshot::{Resource, Target};

pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status
        .as_ref()
        .and_then(|status| status.phase.as_deref())
        .unwrap_or("Pending")
}

/// Whether all containers have ended for good.
pub(crate) fn is_finished(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

pub(crate) fn is_terminating(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// Neither finished nor on its way out.
pub(crate) fn is_active(pod: &Pod) -> bool {
    !is_finished(pod) && !is_terminating(pod)
}

/// Since when the pod has been ready.
pub(crate) fn ready_since(pod: &Pod) -> Option<Timestamp> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let ready = conditions
        .iter()
        .find(|condition| condition.type_ == "Ready" && condition.status == "True")?;
    Some(
        ready
            .last_transition_time
            .as_ref()
            .map_or(Timestamp::UNIX_EPOCH, |time| time.0),
    )
}

pub(crate) fn is_ready(pod: &Pod) -> bool {
    ready_since(pod).is_some()
}

/// Whether the pod has been ready for long enough.
pub(crate) fn is_available(pod: &Pod, min_ready_seconds: Option<i32>, plan: &mut Plan) -> bool {
    ready_since(pod).is_some_and(|since| plan.has_come(after(since, min_ready_seconds.unwrap_or(0).into())))
}

/// A time some seconds later; the last representable time if there is no such time.
pub(crate) fn after(time: Timestamp, seconds: i64) -> Timestamp {
    time.checked_add(SignedDuration::from_secs(seconds))
        .unwrap_or(Timestamp::MAX)
}

pub(crate) fn created(metadata: &ObjectMeta) -> Timestamp {
    metadata
        .creation_timestamp
        .as_ref()
        .map_or(Timestamp::UNIX_EPOCH, |time| time.0)
}

/// Sorts first the pod that is missed least: without a node, not running, not ready, restarting, young.
pub(crate) fn dispensable(pod: &Pod) -> impl Ord + use<> {
    let assigned = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
    let restarts: i32 = pod
        .status
        .iter()
        .flat_map(|status| status.container_statuses.iter().flatten())
        .map(|container| container.restart_count)
        .sum();
    let age = std::cmp::Reverse(created(&pod.metadata));
    (
        assigned,
        phase(pod) == "Running",
        is_ready(pod),
        std::cmp::Reverse(restarts),
        age,
        pod.metadata.name.clone(),
    )
}

/// A manifest for a pod of the template, owned by `owner` and named by the API server.
pub(crate) fn from_template(
    template: &PodTemplateSpec,
    owner: &Target,
    owner_metadata: &ObjectMeta,
) -> Value {
    let metadata = template.metadata.clone().unwrap_or_default();
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": format!("{}-", owner.key.name),
            "namespace": owner.key.namespace,
            "labels": metadata.labels.unwrap_or_default(),
            "annotations": metadata.annotations.unwrap_or_default(),
            "finalizers": metadata.finalizers.unwrap_or_default(),
            "ownerReferences": [controlled_by(owner, owner_metadata)],
        },
        "spec": template.spec,
    })
}

/// The name of a template's revision.
pub(crate) fn template_hash(template: &PodTemplateSpec) -> String {
    short_hash(&json!(template))
}

pub(crate) fn create(
    plan: &mut Plan,
    owner: &Target,
    metadata: &ObjectMeta,
    component: &'static str,
    pod: Value,
) {
    let note = note(
        metadata,
        component,
        "SuccessfulCreate",
        "Created pod: {name}".to_owned(),
    );
    plan.act_and_note(
        owner,
        Write::Create {
            resource: Resource::of::<Pod>(),
            object: pod,
        },
        Note {
            refusal: Some("FailedCreate"),
            ..note
        },
    );
}

pub(crate) fn delete(
    plan: &mut Plan,
    owner: &Target,
    metadata: &ObjectMeta,
    component: &'static str,
    pod: &Pod,
) {
    let target = Target::of(pod);
    let note = note(
        metadata,
        component,
        "SuccessfulDelete",
        format!("Deleted pod: {}", target.key.name),
    );
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    plan.act_and_note(
        owner,
        Write::Delete {
            target,
            uid,
            unless: Vec::new(),
            manner: Manner::Background,
        },
        note,
    );
}

pub(crate) fn note(
    metadata: &ObjectMeta,
    component: &'static str,
    reason: &'static str,
    message: String,
) -> Note {
    let regarding_uid = metadata.uid.clone().unwrap_or_default();
    Note {
        warning: false,
        component,
        reason,
        message,
        regarding_uid,
        refusal: None,
    }
}
