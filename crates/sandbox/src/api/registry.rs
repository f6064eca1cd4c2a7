//! Every resource that the cluster serves, built in or defined by a CRD, in one shape.
//!
//! The generic handlers know resources only through [`Resource`]. A CRD registers here at run time; nothing else in
//! the API server distinguishes its resources from built-in ones except where Kubernetes itself does.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use serde_json::Value;

use super::error::{ApiError, Result};
use super::request::Target;
use crate::schema::{self, Schema};
use crate::store::ResourceId;

/// One resource in one version.
#[derive(Debug)]
pub(crate) struct Resource {
    pub group: String,
    pub version: String,
    pub kind: String,
    pub list_kind: String,
    pub plural: String,
    pub singular: String,
    pub short_names: Vec<String>,
    pub categories: Vec<String>,
    pub namespaced: bool,
    pub verbs: Vec<String>,
    pub subresources: Vec<Subresource>,
    /// Shared by all versions, and by groups that are two views of one resource.
    pub store: ResourceId,
    /// Fields that may be selected beside `metadata.name` and `metadata.namespace`.
    pub selectable: Vec<String>,
    /// Absent only for CRDs that keep unknown fields everywhere.
    pub schema: Option<Schema>,
    /// What a CRD's version adds; absent for built-in resources.
    pub custom: Option<Custom>,
}

/// What can be done to a part of an object, or to the thing that it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Subresource {
    pub name: String,
    /// The type that it takes and gives, which may be another than its resource's.
    pub group: String,
    pub version: String,
    pub kind: String,
    pub verbs: Vec<String>,
}

/// The parts of a CRD's version that the handlers need beside its names and its schema.
#[derive(Clone, Debug, Default)]
pub(crate) struct Custom {
    /// Uid and generation of the CustomResourceDefinition.
    pub definition: (String, u64),
    pub storage_version: String,
    pub columns: Vec<Value>,
    /// `specReplicasPath`, `statusReplicasPath`, `labelSelectorPath`.
    pub scale: Option<Value>,
}

impl Resource {
    pub(crate) fn key(&self) -> (String, String, String) {
        (self.group.clone(), self.version.clone(), self.plural.clone())
    }

    pub(crate) fn api_version(&self) -> String {
        api_version(&self.group, &self.version)
    }

    /// `deployments.apps`.
    pub(crate) fn qualified(&self) -> String {
        if self.group.is_empty() {
            self.plural.clone()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }

    /// Tells one definition of a custom resource from the next.
    pub(crate) fn definition(&self) -> Option<&(String, u64)> {
        self.custom.as_ref().map(|custom| &custom.definition)
    }

    pub(crate) fn allows(&self, verb: &str) -> bool {
        self.verbs.iter().any(|known| known == verb)
    }

    pub(crate) fn has(&self, subresource: &str) -> bool {
        self.subresource(subresource).is_some()
    }

    pub(crate) fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources
            .iter()
            .find(|subresource| subresource.name == name)
    }

    pub(crate) fn is(&self, group: &str, plural: &str) -> bool {
        self.group == group && self.plural == plural
    }

    /// Kinds whose `metadata.generation` counts changes of the desired state.
    pub(crate) fn has_generation(&self) -> bool {
        match self.group.as_str() {
            "" => matches!(self.plural.as_str(), "replicationcontrollers" | "pods"),
            "apps"
            | "batch"
            | "networking.k8s.io"
            | "policy"
            | "admissionregistration.k8s.io"
            | "discovery.k8s.io"
            | "apiextensions.k8s.io" => true,
            _ => self.custom.is_some(),
        }
    }
}

pub(crate) fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    }
}

/// Resources by (group, version, plural).
pub(crate) type Table = BTreeMap<(String, String, String), Arc<Resource>>;

/// The present table; replaced as a whole when a CRD changes.
#[derive(Debug)]
pub(crate) struct Registry {
    table: ArcSwap<Table>,
}

impl Registry {
    pub(crate) fn builtin() -> Self {
        Self {
            table: ArcSwap::from_pointee(builtin()),
        }
    }

    pub(crate) fn table(&self) -> Arc<Table> {
        self.table.load_full()
    }

    /// Replaces all resources that CRDs define.
    pub(crate) fn set_custom(&self, custom: Vec<Resource>) {
        let mut table = builtin();
        for resource in custom {
            table.entry(resource.key()).or_insert_with(|| Arc::new(resource));
        }
        self.table.store(Arc::new(table));
    }

    pub(crate) fn find(&self, target: &Target) -> Result<Arc<Resource>> {
        self.lookup(&target.group, &target.version, &target.plural)
            .ok_or_else(ApiError::path_not_found)
    }

    pub(crate) fn lookup(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Resource>> {
        self.table
            .load()
            .get(&(group.to_owned(), version.to_owned(), plural.to_owned()))
            .cloned()
    }
}

fn builtin() -> Table {
    let owned = |texts: &[&str]| {
        texts
            .iter()
            .map(|text| (*text).to_owned())
            .collect::<Vec<String>>()
    };
    schema::builtin()
        .resources()
        .map(|facts| {
            let subresources = facts.subresources.iter().map(|sub| Subresource {
                name: sub.name.to_owned(),
                group: sub.group.to_owned(),
                version: sub.version.to_owned(),
                kind: sub.kind.to_owned(),
                verbs: owned(sub.verbs),
            });
            let resource = Resource {
                group: facts.group.to_owned(),
                version: facts.version.to_owned(),
                kind: facts.kind.to_owned(),
                list_kind: facts.list_kind.to_owned(),
                plural: facts.plural.to_owned(),
                singular: facts.singular.to_owned(),
                short_names: owned(facts.short_names),
                categories: owned(facts.categories),
                namespaced: facts.namespaced,
                verbs: owned(facts.verbs),
                subresources: subresources.collect(),
                store: store_id(facts.group, facts.plural),
                selectable: owned(selectable(facts.group, facts.plural)),
                schema: Schema::for_kind(facts.group, facts.version, facts.kind),
                custom: None,
            };
            (resource.key(), Arc::new(resource))
        })
        .collect()
}

/// Where a resource is stored. Both groups of Events are views of the same objects.
pub(crate) fn store_id(group: &str, plural: &str) -> ResourceId {
    match group {
        "" | "events.k8s.io" => Arc::from(plural),
        _ => Arc::from(format!("{group}/{plural}")),
    }
}

fn selectable(group: &str, plural: &str) -> &'static [&'static str] {
    match (group, plural) {
        ("", "pods") => &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.podIPs",
            "status.nominatedNodeName",
        ],
        ("", "events") => &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ],
        ("events.k8s.io", "events") => &[
            "regarding.kind",
            "regarding.namespace",
            "regarding.name",
            "regarding.uid",
            "regarding.apiVersion",
            "regarding.resourceVersion",
            "regarding.fieldPath",
            "reason",
            "reportingController",
            "type",
        ],
        ("", "secrets") => &["type"],
        ("", "namespaces") => &["status.phase"],
        ("", "nodes") => &["spec.unschedulable"],
        ("", "services") => &["spec.clusterIP", "spec.type"],
        ("", "replicationcontrollers") | ("apps", "replicasets") => &["status.replicas"],
        ("batch", "jobs") => &["status.successful"],
        _ => &[],
    }
}

/// The parts of an object that every kind has.
pub(crate) mod meta {
    use serde_json::Map;

    use super::Value;

    pub(crate) fn text<'a>(object: &'a Value, field: &str) -> &'a str {
        object
            .get("metadata")
            .and_then(|meta| meta.get(field))
            .and_then(Value::as_str)
            .unwrap_or_default()
    }

    pub(crate) fn name(object: &Value) -> &str {
        text(object, "name")
    }

    pub(crate) fn namespace(object: &Value) -> &str {
        text(object, "namespace")
    }

    pub(crate) fn uid(object: &Value) -> &str {
        text(object, "uid")
    }

    pub(crate) fn is_deleting(object: &Value) -> bool {
        !text(object, "deletionTimestamp").is_empty()
    }

    /// `metadata`, made if absent. A non-object is replaced: decoding has refused those before.
    pub(crate) fn of(object: &mut Value) -> &mut Map<String, Value> {
        child(object, "metadata")
    }

    /// A map inside an object, made if absent.
    pub(crate) fn child<'a>(object: &'a mut Value, field: &str) -> &'a mut Map<String, Value> {
        if !object.is_object() {
            *object = Value::Object(Map::new());
        }
        let Value::Object(fields) = object else {
            unreachable!("it was just made an object")
        };
        let child = fields.entry(field).or_insert_with(|| Value::Object(Map::new()));
        if !child.is_object() {
            *child = Value::Object(Map::new());
        }
        let Value::Object(child) = child else {
            unreachable!("it was just made an object")
        };
        child
    }

    /// Sets or, with `None` or null, removes a field.
    pub(crate) fn set(object: &mut Map<String, Value>, field: &str, value: Option<Value>) {
        match value {
            None | Some(Value::Null) => drop(object.remove(field)),
            Some(value) => drop(object.insert(field.to_owned(), value)),
        }
    }

    pub(crate) fn finalizers(object: &Value) -> impl Iterator<Item = &str> {
        object
            .pointer("/metadata/finalizers")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
    }
}
