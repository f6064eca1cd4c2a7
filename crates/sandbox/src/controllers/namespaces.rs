//! The end of a namespace: everything in it is deleted, then its finalizer goes.

use k8s_openapi::api::core::v1::Namespace;
use serde_json::json;

use super::plan::{Manner, Plan, View, Write};
use super::snapshot::{Key, Resource, Target};

pub(crate) fn plan(view: &View<'_>, plan: &mut Plan) {
    let ending = |namespace: &&Namespace| namespace.metadata.deletion_timestamp.is_some();
    let ending: Vec<_> = view
        .snapshot
        .namespaces
        .values()
        .map(|namespace| &**namespace)
        .filter(ending)
        .collect();
    if ending.is_empty() {
        return;
    }
    let objects = view.snapshot.objects();
    for namespace in ending {
        let scope = Target::of(namespace);
        let name = &scope.key.name;
        if namespace
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref())
            != Some("Terminating")
        {
            let patch = json!({ "status": { "phase": "Terminating" } });
            plan.patch_status(&scope, scope.clone(), patch);
        }
        let mut content = objects
            .iter()
            .filter(|(_, key, _)| key.namespace == *name)
            .peekable();
        let held = namespace
            .spec
            .iter()
            .flat_map(|spec| spec.finalizers.iter().flatten());
        if content.peek().is_none() && held.into_iter().any(|finalizer| finalizer == "kubernetes") {
            plan.act(
                &scope,
                Write::Finalize {
                    namespace: name.clone(),
                },
            );
        }
        for (resource, key, metadata) in
            content.filter(|(_, _, metadata)| metadata.deletion_timestamp.is_none())
        {
            let target = Target {
                resource: Resource::clone(resource),
                key: Key::clone(key),
            };
            plan.delete(&target, target.clone(), metadata, Manner::Background);
        }
    }
}
