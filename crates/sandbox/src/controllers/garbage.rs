//! Objects whose owners are gone, and owners that wait for their objects.
//!
//! An owner that the snapshot does not have may merely be newer than what its watch has told so far. So an absent
//! owner is asked for once more, live, before anything is deleted on its account.

use std::collections::HashMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde_json::{Value, json};

use super::plan::{Manner, Plan, Reference, View};
use super::snapshot::{Key, Resource, Target};

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";

pub(crate) fn plan(view: &View<'_>, plan: &mut Plan) {
    let objects = view.snapshot.objects();
    let mut by_uid: HashMap<&str, (&Key, &ObjectMeta)> = HashMap::with_capacity(objects.len());
    let mut dependents: HashMap<&str, Vec<usize>> = HashMap::new();
    for (index, (_, key, metadata)) in objects.iter().enumerate() {
        if let Some(uid) = metadata.uid.as_deref() {
            by_uid.insert(uid, (key, metadata));
        }
        for owner in metadata.owner_references.iter().flatten() {
            dependents.entry(&owner.uid).or_default().push(index);
        }
    }
    for (resource, key, metadata) in &objects {
        let target = Target {
            resource: Resource::clone(resource),
            key: Key::clone(key),
        };
        let uid = metadata.uid.as_deref().unwrap_or_default();
        if metadata.deletion_timestamp.is_none() {
            plan_dependent(view, plan, &by_uid, &target, metadata);
        } else if has_finalizer(metadata, ORPHAN) {
            let owned = dependents.get(uid).map_or(&[][..], Vec::as_slice);
            for (resource, key, metadata) in owned.iter().map(|index| &objects[*index]) {
                let target = Target {
                    resource: Resource::clone(resource),
                    key: Key::clone(key),
                };
                disown(plan, &target, metadata, uid);
            }
            if owned.is_empty() {
                drop_finalizer(plan, &target, metadata, ORPHAN);
            }
        } else if has_finalizer(metadata, FOREGROUND) {
            let owned = dependents
                .get(uid)
                .into_iter()
                .flatten()
                .map(|index| &objects[*index]);
            let blocks =
                |owner: &OwnerReference| owner.uid == uid && owner.block_owner_deletion == Some(true);
            let mut blocking =
                owned.filter(|(_, _, metadata)| metadata.owner_references.iter().flatten().any(blocks));
            if blocking.next().is_none() {
                drop_finalizer(plan, &target, metadata, FOREGROUND);
            }
        }
    }
}

/// What becomes of an object whose owners may be gone or going.
fn plan_dependent(
    view: &View<'_>,
    plan: &mut Plan,
    by_uid: &HashMap<&str, (&Key, &ObjectMeta)>,
    target: &Target,
    metadata: &ObjectMeta,
) {
    let (mut absent, mut leaving, mut solid) = (Vec::new(), Vec::new(), 0);
    for owner in metadata.owner_references.iter().flatten() {
        match by_uid.get(owner.uid.as_str()) {
            Some((key, found)) if key.namespace.is_empty() || key.namespace == target.key.namespace => {
                if found.deletion_timestamp.is_some() && has_finalizer(found, FOREGROUND) {
                    leaving.push(owner);
                } else {
                    solid += 1;
                }
            }
            _ => match owner_target(view, owner, &target.key.namespace) {
                Some(owner_target) => absent.push(Reference {
                    target: owner_target,
                    uid: owner.uid.clone(),
                }),
                // An owner of a kind that nobody serves can't be shown to be absent.
                None => solid += 1,
            },
        }
    }
    if absent.is_empty() && leaving.is_empty() {
        return;
    }
    if solid > 0 {
        if let Some(owner) = leaving.first() {
            disown(plan, target, metadata, &owner.uid);
        }
        return;
    }
    let manner = if leaving.is_empty() {
        Manner::Background
    } else {
        Manner::Foreground
    };
    plan.delete_unless(target, target.clone(), metadata, manner, absent);
}

fn owner_target(view: &View<'_>, owner: &OwnerReference, namespace: &str) -> Option<Target> {
    let resource: Resource = view.snapshot.serves(&owner.api_version, &owner.kind)?;
    // A cluster-scoped object can't be owned from within a namespace; such a reference is left alone.
    if resource.namespaced && namespace.is_empty() {
        return None;
    }
    let key = Key::new(if resource.namespaced { namespace } else { "" }, &owner.name);
    Some(Target { resource, key })
}

fn has_finalizer(metadata: &ObjectMeta, name: &str) -> bool {
    metadata
        .finalizers
        .iter()
        .flatten()
        .any(|finalizer| finalizer == name)
}

fn drop_finalizer(plan: &mut Plan, target: &Target, metadata: &ObjectMeta, name: &str) {
    let kept: Vec<_> = metadata
        .finalizers
        .iter()
        .flatten()
        .filter(|finalizer| *finalizer != name)
        .collect();
    let patch = json!({ "metadata": { "finalizers": kept, "resourceVersion": metadata.resource_version } });
    plan.patch(target, target.clone(), patch);
}

fn disown(plan: &mut Plan, target: &Target, metadata: &ObjectMeta, uid: &str) {
    let owners = metadata
        .owner_references
        .iter()
        .flatten()
        .filter(|owner| owner.uid != uid);
    let kept: Vec<Value> = owners.map(|owner| json!(owner)).collect();
    let patch =
        json!({ "metadata": { "ownerReferences": kept, "resourceVersion": metadata.resource_version } });
    plan.patch(target, target.clone(), patch);
}
