//! What single kinds do differently: the hooks of the generic handler.
//!
//! Each hook is one `match` on the resource; a kind that is not named does the ordinary thing.

use std::sync::Arc;

use serde_json::{Value, json};

use super::allocation::{self, Reservation};
use super::error::Result;
use super::objects::copy;
use super::registry::{Resource, meta};
use super::{Cluster, crd};

/// Completes a new object before defaults and admission. What that reserves must be held until the object is stored.
pub(crate) fn prepare_create(
    cluster: &Arc<Cluster>,
    resource: &Resource,
    object: &mut Value,
) -> Result<Option<Reservation>> {
    if let Some(schema) = &resource.schema {
        schema.prepare_for_create(object);
    }
    match (resource.group.as_str(), resource.plural.as_str()) {
        ("", "secrets") => {
            fold_string_data(object);
            cluster.fill_token_secret(object)?;
        }
        (crd::GROUP, crd::PLURAL) => {
            crd::default(object);
            object["status"] = crd::status(cluster, object);
        }
        ("", "services") => {
            object["status"] = json!({ "loadBalancer": {} });
            return allocation::allocate(cluster, object);
        }
        _ => {}
    }
    Ok(None)
}

/// Restores what an update of a kind can't touch and folds its write-only fields.
pub(crate) fn prepare_update(
    cluster: &Arc<Cluster>,
    resource: &Resource,
    current: &Value,
    object: &mut Value,
) -> Result<Option<Reservation>> {
    match (resource.group.as_str(), resource.plural.as_str()) {
        ("", "namespaces") => {
            // Only the `finalize` subresource changes these.
            copy(current, object, "spec");
            let name = meta::name(object).to_owned();
            let labels = meta::child(&mut object["metadata"], "labels");
            labels.insert("kubernetes.io/metadata.name".to_owned(), name.into());
        }
        ("", "secrets") => {
            fold_string_data(object);
            cluster.fill_token_secret(object)?;
        }
        (crd::GROUP, crd::PLURAL) => {
            crd::default(object);
            object["status"] = crd::status(cluster, object);
        }
        ("", "services") => {
            allocation::keep(current, object);
            return allocation::allocate(cluster, object);
        }
        ("", "pods") => copy(current, object, "status"),
        _ => {}
    }
    Ok(None)
}

/// What has to be out of the way before an object can go.
pub(crate) fn prepare_delete(cluster: &Arc<Cluster>, resource: &Resource, object: &mut Value) {
    if resource.is(crd::GROUP, crd::PLURAL) && !cluster.drain_definition(object) {
        let mut finalizers: Vec<String> = meta::finalizers(object).map(str::to_owned).collect();
        if !finalizers.iter().any(|name| name == crd::CLEANUP) {
            finalizers.push(crd::CLEANUP.to_owned());
        }
        meta::of(object).insert("finalizers".to_owned(), finalizers.into());
    }
}

/// The effect of writing one subresource: everything else stays as it is.
pub(crate) fn only(subresource: &str, current: &Value, object: Value) -> Value {
    let mut next = current.clone();
    match subresource {
        "finalize" => {
            let finalizers = object.pointer("/spec/finalizers").cloned();
            meta::set(meta::child(&mut next, "spec"), "finalizers", finalizers);
        }
        "ephemeralcontainers" => {
            let containers = object.pointer("/spec/ephemeralContainers").cloned();
            meta::set(meta::child(&mut next, "spec"), "ephemeralContainers", containers);
        }
        field => copy(&object, &mut next, field),
    }
    if let Some(fields) = object.pointer("/metadata/managedFields") {
        meta::of(&mut next).insert("managedFields".to_owned(), fields.clone());
    }
    next
}

fn fold_string_data(object: &mut Value) {
    use base64::Engine as _;
    let Some(Value::Object(texts)) = object
        .as_object_mut()
        .and_then(|fields| fields.remove("stringData"))
    else {
        return;
    };
    let data = meta::child(object, "data");
    for (key, text) in texts {
        let encoded = base64::engine::general_purpose::STANDARD.encode(text.as_str().unwrap_or_default());
        data.insert(key, encoded.into());
    }
}

/// The few kinds that a PUT may create.
pub(crate) fn creates_on_update(resource: &Resource) -> bool {
    resource.is("coordination.k8s.io", "leases")
        || resource.is("", "events")
        || resource.is("events.k8s.io", "events")
        || resource.is("", "endpoints")
        || resource.is("", "services")
        || resource.is("", "limitranges")
        || (resource.group == "rbac.authorization.k8s.io")
}

/// How long a deletion waits for the object's owner to shut down: only pods that a node runs.
pub(crate) fn grace_period(resource: &Resource, object: &Value, asked: Option<u64>) -> u64 {
    if !resource.is("", "pods") {
        return 0;
    }
    let phase = object
        .pointer("/status/phase")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let assigned = object
        .pointer("/spec/nodeName")
        .and_then(Value::as_str)
        .is_some_and(|node| !node.is_empty());
    if !assigned || matches!(phase, "Succeeded" | "Failed") {
        return 0;
    }
    let configured = object
        .pointer("/spec/terminationGracePeriodSeconds")
        .and_then(Value::as_u64);
    asked.or(configured).unwrap_or(30)
}

/// Whether nobody has anything left to do before a deleted object goes.
pub(crate) fn is_finalized(resource: &Resource, object: &Value) -> bool {
    let finalized = meta::finalizers(object).next().is_none();
    if resource.is("", "namespaces") {
        let kubernetes = object.pointer("/spec/finalizers").and_then(Value::as_array);
        return finalized && kubernetes.is_none_or(Vec::is_empty);
    }
    finalized
}

/// What else shows that an object is going away.
pub(crate) fn mark_deleted(resource: &Resource, object: &mut Value) {
    if resource.is("", "namespaces") {
        meta::child(object, "status").insert("phase".to_owned(), "Terminating".into());
    }
}

/// Kinds whose deletion answers with the object rather than with a Status.
pub(crate) fn returns_deleted(resource: &Resource) -> bool {
    resource.group.is_empty()
        && matches!(
            resource.plural.as_str(),
            "pods"
                | "services"
                | "serviceaccounts"
                | "podtemplates"
                | "persistentvolumeclaims"
                | "resourcequotas"
        )
}
