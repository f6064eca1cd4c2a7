//! CustomResourceDefinitions: how one becomes resources, and what its status says.
//!
//! A definition takes effect in the request that writes it, so it is established before its author hears the answer.

use std::sync::Arc;

use serde_json::{Value, json};

use super::Cluster;
use super::discovery::version_priority;
use super::registry::{Custom, Resource, Subresource, meta, store_id};
use crate::schema::Schema;
use crate::store::{Expect, ResourceId, Stored};

/// Keeps a deleted definition until its last object is gone.
pub(crate) const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";

pub(crate) const GROUP: &str = "apiextensions.k8s.io";
pub(crate) const PLURAL: &str = "customresourcedefinitions";

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn texts(value: &Value, pointer: &str) -> Vec<String> {
    let items = value
        .pointer(pointer)
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    items.filter_map(Value::as_str).map(str::to_owned).collect()
}

fn versions(definition: &Value) -> impl Iterator<Item = &Value> {
    definition
        .pointer("/spec/versions")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}

/// The resources that a definition makes the server serve.
pub(crate) fn resources(definition: &Value) -> Vec<Resource> {
    let group = text(definition, "/spec/group");
    let plural = text(definition, "/spec/names/plural");
    let kind = text(definition, "/spec/names/kind");
    let storage_version = versions(definition)
        .find(|version| version.get("storage") == Some(&Value::Bool(true)))
        .map(|version| text(version, "/name"))
        .unwrap_or_default();
    let or = |pointer: &str, otherwise: String| match text(definition, pointer) {
        "" => otherwise,
        given => given.to_owned(),
    };
    let served = versions(definition).filter(|version| version.get("served") == Some(&Value::Bool(true)));
    served
        .map(|version| {
            let name = text(version, "/name");
            let mut subresources = Vec::new();
            let verbs = || ["get", "patch", "update"].map(str::to_owned).to_vec();
            if version
                .pointer("/subresources/scale")
                .is_some_and(Value::is_object)
            {
                subresources.push(Subresource {
                    name: "scale".to_owned(),
                    group: "autoscaling".to_owned(),
                    version: "v1".to_owned(),
                    kind: "Scale".to_owned(),
                    verbs: verbs(),
                });
            }
            if version
                .pointer("/subresources/status")
                .is_some_and(Value::is_object)
            {
                subresources.push(Subresource {
                    name: "status".to_owned(),
                    group: group.to_owned(),
                    version: name.to_owned(),
                    kind: kind.to_owned(),
                    verbs: verbs(),
                });
            }
            let fields = version
                .get("selectableFields")
                .and_then(Value::as_array)
                .into_iter()
                .flatten();
            Resource {
                group: group.to_owned(),
                version: name.to_owned(),
                kind: kind.to_owned(),
                list_kind: or("/spec/names/listKind", format!("{kind}List")),
                plural: plural.to_owned(),
                singular: or("/spec/names/singular", kind.to_lowercase()),
                short_names: texts(definition, "/spec/names/shortNames"),
                categories: texts(definition, "/spec/names/categories"),
                namespaced: text(definition, "/spec/scope") == "Namespaced",
                verbs: [
                    "create",
                    "delete",
                    "deletecollection",
                    "get",
                    "list",
                    "patch",
                    "update",
                    "watch",
                ]
                .map(str::to_owned)
                .to_vec(),
                subresources,
                store: store_id(group, plural),
                selectable: fields
                    .map(|field| text(field, "/jsonPath").trim_start_matches('.').to_owned())
                    .collect(),
                schema: schema(version),
                custom: Some(Custom {
                    definition: (
                        meta::uid(definition).to_owned(),
                        definition
                            .pointer("/metadata/generation")
                            .and_then(Value::as_u64)
                            .unwrap_or(0),
                    ),
                    storage_version: storage_version.to_owned(),
                    columns: version
                        .get("additionalPrinterColumns")
                        .and_then(Value::as_array)
                        .cloned()
                        .unwrap_or_default(),
                    scale: version.pointer("/subresources/scale").cloned(),
                }),
            }
        })
        .collect()
}

/// Definitions were validated when they were written, so their schemas can be read.
fn schema(version: &Value) -> Option<Schema> {
    Schema::from_crd(version.pointer("/schema/openAPIV3Schema")?).ok()
}

/// Fills in what a definition may leave out.
pub(crate) fn default(definition: &mut Value) {
    let kind = text(definition, "/spec/names/kind").to_owned();
    let spec = meta::child(definition, "spec");
    spec.entry("conversion")
        .or_insert_with(|| json!({ "strategy": "None" }));
    let mut names = spec.get("names").cloned().unwrap_or_default();
    let names = match &mut names {
        Value::Object(names) => {
            names
                .entry("singular")
                .or_insert_with(|| kind.to_lowercase().into());
            names
                .entry("listKind")
                .or_insert_with(|| format!("{kind}List").into());
            names.clone()
        }
        _ => return,
    };
    spec.insert("names".to_owned(), names.into());
}

/// The status of a definition: accepted and established at once unless its names are somebody else's.
pub(crate) fn status(cluster: &Cluster, definition: &Value) -> Value {
    let names = definition.pointer("/spec/names").cloned().unwrap_or_default();
    let name = meta::name(definition);
    let (group, kind) = (
        text(definition, "/spec/group"),
        text(definition, "/spec/names/kind"),
    );
    let clash = cluster.registry.table().values().find_map(|known| {
        let other = known.group == group && known.qualified() != name && known.kind == kind;
        other.then(|| format!("\"{kind}\" is already in use"))
    });
    let mut stored_versions = texts(definition, "/status/storedVersions");
    for version in versions(definition).filter(|version| version.get("storage") == Some(&Value::Bool(true))) {
        let version = text(version, "/name").to_owned();
        if !stored_versions.contains(&version) {
            stored_versions.push(version);
        }
    }
    stored_versions.sort_by_key(|version| version_priority(version));
    let now = cluster.now();
    let condition = |kind: &str, good: bool, reason: &str, message: &str| {
        let status = if good { "True" } else { "False" };
        let conditions = definition
            .pointer("/status/conditions")
            .and_then(Value::as_array)
            .into_iter()
            .flatten();
        let since = conditions
            .filter(|known| text(known, "/type") == kind && text(known, "/status") == status)
            .map(|known| text(known, "/lastTransitionTime").to_owned())
            .next()
            .unwrap_or_else(|| now.clone());
        json!({
            "type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": since,
        })
    };
    let conditions = match clash {
        None => [
            condition("NamesAccepted", true, "NoConflicts", "no conflicts found"),
            condition(
                "Established",
                true,
                "InitialNamesAccepted",
                "the initial names have been accepted",
            ),
        ],
        Some(why) => [
            condition("NamesAccepted", false, "KindConflict", &why),
            condition("Established", false, "NotAccepted", "not all names are accepted"),
        ],
    };
    json!({ "conditions": conditions, "acceptedNames": names, "storedVersions": stored_versions })
}

fn is_established(definition: &Value) -> bool {
    let conditions = definition
        .pointer("/status/conditions")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    conditions
        .into_iter()
        .any(|one| text(one, "/type") == "Established" && text(one, "/status") == "True")
}

impl Cluster {
    fn definitions(&self) -> ResourceId {
        store_id(GROUP, PLURAL)
    }

    /// Serves what the present definitions say.
    pub(crate) fn refresh_definitions(&self) {
        let _one_at_a_time = self
            .definitions_lock
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let snapshot = self.store.list(&self.definitions());
        let established = snapshot
            .objects
            .values()
            .filter(|stored| is_established(&stored.value));
        self.registry
            .set_custom(established.flat_map(|stored| resources(&stored.value)).collect());
        // Watches of resources that are no longer served end.
        self.grants.send_modify(|generation| *generation += 1);
    }

    /// Deletes the objects of a definition that is being deleted; true if none are left.
    pub(crate) fn drain_definition(&self, definition: &Value) -> bool {
        let Some(resource) = resources(definition).into_iter().next() else {
            return true;
        };
        let mut empty = true;
        for stored in self.store.list(&resource.store).objects.values() {
            if meta::finalizers(&stored.value).next().is_none() {
                // Losing a race leaves the object for the next attempt, which its own deletion triggers.
                empty &= self
                    .store
                    .delete(
                        &resource.store,
                        &stored.key,
                        stored.value.clone(),
                        stored.revision,
                    )
                    .is_ok();
            } else {
                empty = false;
                if !meta::is_deleting(&stored.value) {
                    let mut object = stored.value.clone();
                    meta::of(&mut object).insert("deletionTimestamp".to_owned(), self.now().into());
                    meta::of(&mut object).insert("deletionGracePeriodSeconds".to_owned(), 0.into());
                    let _ = self.store.put(
                        &resource.store,
                        stored.key.clone(),
                        object,
                        Expect::Revision(stored.revision),
                    );
                }
            }
        }
        empty
    }

    /// After an object went: a definition that was only waiting for it goes too.
    pub(crate) fn finish_definition(&self, resource: &Resource) {
        let id = self.definitions();
        let key = crate::store::Key::new("", resource.qualified());
        let Some(stored) = self.store.get(&id, &key) else {
            return;
        };
        if !meta::is_deleting(&stored.value) || !self.drain_definition(&stored.value) {
            return;
        }
        let removed = self
            .store
            .delete(&id, &key, without_cleanup(&stored), stored.revision);
        if removed.is_ok() {
            self.refresh_definitions();
        }
    }
}

fn without_cleanup(stored: &Arc<Stored>) -> Value {
    let mut last = stored.value.clone();
    let left: Vec<String> = meta::finalizers(&last)
        .filter(|name| *name != CLEANUP)
        .map(str::to_owned)
        .collect();
    meta::set(
        meta::of(&mut last),
        "finalizers",
        (!left.is_empty()).then(|| left.into()),
    );
    last
}
