//! What every namespace has: a ServiceAccount `default` and the cluster's CA.
//!
//! The original of the CA is the ConfigMap in kube-system, written by whoever started the cluster; all others are
//! copies of it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::json;

use super::plan::{Plan, View};
use super::snapshot::{Key, Resource, Target};

pub(crate) const ROOT_CA: &str = "kube-root-ca.crt";
const ORIGINAL: &str = "kube-system";

pub(crate) fn plan(view: &View<'_>, plan: &mut Plan) {
    let snapshot = view.snapshot;
    let accounts: BTreeMap<_, _> = snapshot.core("serviceaccounts").collect();
    let original = snapshot
        .root_cas
        .get(&Key::new(ORIGINAL, ROOT_CA))
        .and_then(|map| map.data.as_ref());
    // Before the first list of accounts is in, none would seem to exist.
    let known = snapshot.serves("v1", "ServiceAccount");
    for namespace in snapshot
        .namespaces
        .values()
        .filter(|namespace| namespace.metadata.deletion_timestamp.is_none())
    {
        let Some(name) = namespace.metadata.name.as_deref() else {
            continue;
        };
        if let Some(resource) = &known
            && !accounts.contains_key(&Key::new(name, "default"))
        {
            let scope = Target {
                resource: resource.clone(),
                key: Key::new(name, "default"),
            };
            let object = json!({
                "apiVersion": "v1",
                "kind": "ServiceAccount",
                "metadata": { "name": "default", "namespace": name },
            });
            plan.create(&scope, resource.clone(), object);
        }
        let key = Key::new(name, ROOT_CA);
        let scope = Target {
            resource: Resource::of::<ConfigMap>(),
            key,
        };
        match (original, snapshot.root_cas.get(&scope.key)) {
            (Some(data), None) => {
                let object = json!({
                    "apiVersion": "v1",
                    "kind": "ConfigMap",
                    "metadata": {
                        "name": ROOT_CA,
                        "namespace": name,
                        "annotations": {
                            "kubernetes.io/description": "Contains a CA bundle that can be used to verify the kube-apiserver.",
                        },
                    },
                    "data": data,
                });
                plan.create(&scope, scope.resource.clone(), object);
            }
            (Some(data), Some(copy)) if copy.data.as_ref() != Some(data) => {
                let patch = json!({ "data": data });
                plan.patch(&scope, scope.clone(), patch);
            }
            _ => {}
        }
    }
}
