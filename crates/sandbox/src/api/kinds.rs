//! What single kinds do differently: the hooks of the generic handler.
//!
//! Each hook is one `match` on the resource; a kind that is not named does the ordinary thing.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;

use serde_json::{Value, json};

use super::error::{ApiError, Cause, Result};
use super::objects::copy;
use super::registry::{Resource, meta};
use super::{Cluster, crd};
use crate::controllers::addresses::{AllocationError, allocate_cluster_ip, allocate_node_port};

/// Completes a new object before defaults and admission.
pub(crate) fn prepare_create(cluster: &Arc<Cluster>, resource: &Resource, object: &mut Value) -> Result<()> {
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
            allocate(cluster, object)?;
        }
        _ => {}
    }
    Ok(())
}

/// Gives a Service its ClusterIP and node ports, where it needs them and has none.
fn allocate(cluster: &Cluster, service: &mut Value) -> Result<()> {
    let Some(range) = cluster.options.services else {
        return Ok(());
    };
    let name = meta::name(service).to_owned();
    let seed = meta::uid(service)
        .bytes()
        .fold(0_u64, |seed, byte| seed.wrapping_mul(31) + u64::from(byte));
    let others = cluster
        .store
        .list(&crate::store::ResourceId::from("services"))
        .objects;
    let key = crate::store::Key::new(meta::namespace(service), name.as_str());
    let others = || {
        others
            .iter()
            .filter(|(other, _)| **other != key)
            .map(|(_, stored)| &stored.value)
    };
    let refuse = |field: &str, value: &Value, error: AllocationError| {
        ApiError::invalid(
            "",
            "Service",
            &name,
            vec![Cause {
                reason: "FieldValueInvalid".to_owned(),
                message: format!("Invalid value: {value}: failed to allocate: {error}"),
                field: field.to_owned(),
            }],
        )
    };
    let spec = meta::child(service, "spec");
    let kind = spec
        .get("type")
        .and_then(Value::as_str)
        .unwrap_or("ClusterIP")
        .to_owned();
    let given = spec
        .get("clusterIP")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    if kind != "ExternalName" && given != "None" {
        let taken: BTreeSet<Ipv4Addr> = others()
            .filter_map(|other| other.pointer("/spec/clusterIP")?.as_str()?.parse().ok())
            .collect();
        // An address of another family is left to validation.
        let wanted: Option<Ipv4Addr> = given.parse().ok();
        if wanted.is_some() || given.is_empty() {
            let address = allocate_cluster_ip(range, wanted, &taken, seed)
                .map_err(|error| refuse("spec.clusterIPs[0]", &given.as_str().into(), error))?;
            spec.insert("clusterIP".to_owned(), address.to_string().into());
            spec.insert("clusterIPs".to_owned(), json!([address.to_string()]));
        }
    }
    if !matches!(kind.as_str(), "NodePort" | "LoadBalancer")
        || spec.get("allocateLoadBalancerNodePorts") == Some(&Value::Bool(false))
    {
        return Ok(());
    }
    let mut taken: BTreeSet<u16> = others()
        .flat_map(|other| {
            other
                .pointer("/spec/ports")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
        })
        .filter_map(|port| u16::try_from(port.get("nodePort")?.as_u64()?).ok())
        .collect();
    for port in spec
        .get_mut("ports")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        let wanted = port
            .get("nodePort")
            .and_then(Value::as_u64)
            .filter(|port| *port > 0);
        let wanted = wanted.map(|port| u16::try_from(port).unwrap_or(0));
        let chosen = allocate_node_port(wanted, &taken, seed)
            .map_err(|error| refuse("spec.ports.nodePort", &port["nodePort"], error))?;
        taken.insert(chosen);
        port["nodePort"] = chosen.into();
    }
    Ok(())
}

/// Restores what an update of a kind can't touch and folds its write-only fields.
pub(crate) fn prepare_update(
    cluster: &Arc<Cluster>,
    resource: &Resource,
    current: &Value,
    object: &mut Value,
) -> Result<()> {
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
            // Clients that send back less than they read keep their addresses.
            let same_type = object.pointer("/spec/type") == current.pointer("/spec/type");
            let headless = current.pointer("/spec/clusterIP").and_then(Value::as_str) == Some("None");
            for field in ["clusterIP", "clusterIPs"] {
                let given = object
                    .pointer(&format!("/spec/{field}"))
                    .is_some_and(|value| !value.is_null() && value != "");
                if !given
                    && (same_type || !headless)
                    && object.pointer("/spec/type").and_then(Value::as_str) != Some("ExternalName")
                    && let Some(value) = current.pointer(&format!("/spec/{field}"))
                {
                    meta::child(object, "spec").insert(field.to_owned(), value.clone());
                }
            }
            allocate(cluster, object)?;
        }
        ("", "pods") => copy(current, object, "status"),
        _ => {}
    }
    Ok(())
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
