//! What single kinds do differently: the hooks of the generic handler.
//!
//! Each hook is one `match` on the resource; a kind that is not named does the ordinary thing.

use std::sync::Arc;

use serde_json::{Value, json};

use super::Cluster;
use super::error::{Cause, Result};
use super::objects::copy;
use super::registry::{Resource, meta};
use super::selector::{is_dns_label, is_dns_subdomain};

/// Completes a new object before defaults and admission.
pub(crate) fn prepare_create(_cluster: &Arc<Cluster>, resource: &Resource, object: &mut Value) -> Result<()> {
    match (resource.group.as_str(), resource.plural.as_str()) {
        ("", "namespaces") => {
            let name = meta::name(object).to_owned();
            let labels = meta::child(&mut object["metadata"], "labels");
            labels.insert("kubernetes.io/metadata.name".to_owned(), name.into());
            object["spec"] = json!({ "finalizers": ["kubernetes"] });
            object["status"] = json!({ "phase": "Active" });
        }
        ("", "pods") => object["status"] = json!({ "phase": "Pending", "qosClass": qos_class(object) }),
        ("", "secrets") => fold_string_data(object),
        ("", "services") => object["status"] = json!({ "loadBalancer": {} }),
        _ => {}
    }
    Ok(())
}

/// Restores what an update of a kind can't touch and folds its write-only fields.
pub(crate) fn prepare_update(resource: &Resource, current: &Value, object: &mut Value) {
    match (resource.group.as_str(), resource.plural.as_str()) {
        ("", "namespaces") => {
            // Only the `finalize` subresource changes these.
            copy(current, object, "spec");
            let name = meta::name(object).to_owned();
            let labels = meta::child(&mut object["metadata"], "labels");
            labels.insert("kubernetes.io/metadata.name".to_owned(), name.into());
        }
        ("", "secrets") => fold_string_data(object),
        ("", "services") => {
            // Clients that send back less than they read keep their addresses.
            let same_type = object.pointer("/spec/type") == current.pointer("/spec/type");
            let headless = current.pointer("/spec/clusterIP").and_then(Value::as_str) == Some("None");
            let fields: &[&str] = &["clusterIP", "clusterIPs"];
            for field in fields {
                let given = object
                    .pointer(&format!("/spec/{field}"))
                    .is_some_and(|value| !value.is_null() && value != "");
                if !given
                    && (same_type || !headless)
                    && object.pointer("/spec/type").and_then(Value::as_str) != Some("ExternalName")
                    && let Some(value) = current.pointer(&format!("/spec/{field}"))
                {
                    meta::child(object, "spec").insert((*field).to_owned(), value.clone());
                }
            }
        }
        ("", "pods") => copy(current, object, "status"),
        _ => {}
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

fn qos_class(pod: &Value) -> &'static str {
    let containers = || {
        ["containers", "initContainers"].into_iter().flat_map(|list| {
            pod.pointer(&format!("/spec/{list}"))
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
        })
    };
    let amount = |container: &Value, side: &str, what: &str| {
        container
            .pointer(&format!("/resources/{side}/{what}"))
            .and_then(Value::as_str)
            .map(str::to_owned)
    };
    let mut any = false;
    let mut guaranteed = true;
    for container in containers() {
        for what in ["cpu", "memory"] {
            let (limit, request) = (
                amount(container, "limits", what),
                amount(container, "requests", what),
            );
            any |= limit.is_some() || request.is_some();
            guaranteed &= limit.is_some() && (request.is_none() || request == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// Rules between fields or between an object and its former self that schemas can't express.
pub(crate) fn validate(resource: &Resource, object: &Value, current: Option<&Value>) -> Vec<Cause> {
    let mut causes = Vec::new();
    let mut immutable = |field: &str, why: &str| {
        let pointer = format!("/{}", field.replace('.', "/"));
        let Some(current) = current else { return };
        let (before, after) = (current.pointer(&pointer), object.pointer(&pointer));
        if before != after {
            let shown = after.unwrap_or(&Value::Null);
            causes.push(Cause {
                reason: "FieldValueInvalid".to_owned(),
                message: format!("Invalid value: {shown}: {why}"),
                field: field.to_owned(),
            });
        }
    };
    match (resource.group.as_str(), resource.plural.as_str()) {
        ("apps", "deployments" | "replicasets" | "daemonsets" | "statefulsets") => {
            immutable("spec.selector", "field is immutable");
        }
        ("batch", "jobs") => {
            immutable("spec.template", "field is immutable");
            immutable("spec.selector", "field is immutable");
        }
        ("rbac.authorization.k8s.io", "rolebindings" | "clusterrolebindings") => {
            immutable("roleRef", "cannot change roleRef");
        }
        ("", "services") => {
            let set = |value: Option<&Value>| {
                value
                    .and_then(|v| v.pointer("/spec/clusterIP"))
                    .is_some_and(|ip| ip != "")
            };
            let external = object.pointer("/spec/type").and_then(Value::as_str) == Some("ExternalName");
            if set(current) && !external {
                immutable("spec.clusterIP", "field is immutable");
            }
        }
        ("", "secrets") => {
            immutable("type", "field is immutable");
            if current.is_some_and(|current| current.get("immutable") == Some(&Value::Bool(true))) {
                immutable("data", "field is immutable when `immutable` is set");
            }
        }
        ("", "configmaps")
            if current.is_some_and(|current| current.get("immutable") == Some(&Value::Bool(true))) =>
        {
            immutable("data", "field is immutable when `immutable` is set");
            immutable("binaryData", "field is immutable when `immutable` is set");
        }
        _ => {}
    }
    causes
}

/// What is wrong with a name, in Kubernetes' words.
pub(crate) fn name_problem(resource: &Resource, name: &str) -> Option<&'static str> {
    let label = match (resource.group.as_str(), resource.plural.as_str()) {
        ("rbac.authorization.k8s.io", _) => {
            let plain = !name.contains(['/', '%']) && name != "." && name != "..";
            return (!plain).then_some("may not contain '/' or '%', or be '.' or '..'");
        }
        ("", "namespaces" | "services") => true,
        _ => false,
    };
    if label {
        (!is_dns_label(name)).then_some(
            "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and \
             end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
             '[a-z0-9]([-a-z0-9]*[a-z0-9])?')",
        )
    } else {
        (!is_dns_subdomain(name)).then_some(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must \
             start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
             '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')",
        )
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
