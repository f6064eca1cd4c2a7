//! Server-side apply, and the bookkeeping of who set which field (`metadata.managedFields`).
//!
//! [`apply`] merges what a manager wants into the live object, removes what it no longer wants and nobody else owns,
//! and refuses to change what others own unless forced. [`update_managed_fields`] does the books for every other
//! write. Both are functions of live object, request and time; they don't know endpoints, so fields that an endpoint
//! ignores (`status` on the main resource) must be taken out of a configuration before it comes here.

mod fields;
mod managers;
mod typed;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use self::fields::Set;
use self::managers::{Managers, Operation};
use self::typed::Changes;
use super::Schema;
use super::cause::Cause;
use super::tree::{At, untyped};

/// Who writes, and through what.
#[derive(Clone, Copy, Debug)]
pub struct Manager<'a> {
    pub name: &'a str,
    /// Empty for the main resource, `status`, `scale`...
    pub subresource: &'a str,
    pub now: Timestamp,
}

/// What to do where somebody else owns a field that the configuration changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conflicts {
    Refuse,
    Force,
}

#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The configuration can't be merged: 400.
    #[error("{0}")]
    Malformed(String),
    /// Others own fields that would change: 409, with one cause per field.
    #[error("{message}")]
    Conflict { message: String, causes: Vec<Cause> },
}

const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Applies `config` to the live object, or creates it. The answer is the object with its new `managedFields`; it
/// equals `live` if nothing changed.
pub fn apply(
    schema: Option<&Schema>,
    live: Option<&Value>,
    config: &Value,
    manager: Manager<'_>,
    conflicts: Conflicts,
) -> Result<Value, ApplyError> {
    if config
        .pointer("/metadata/managedFields")
        .is_some_and(|fields| !fields.is_null())
    {
        return Err(ApplyError::Malformed(
            "metadata.managedFields must be nil".to_owned(),
        ));
    }
    // Compared with the live object, so in the same spelling; who must name unknown fields asks `prune` before.
    let mut config = config.clone();
    if let Some(schema) = schema {
        schema.prune(&mut config);
    }
    let config = &config;
    let at = schema.map_or_else(untyped, Schema::root);
    typed::check(at, config)
        .map_err(|fault| ApplyError::Malformed(format!("failed to create typed patch object: {fault}")))?;
    let start = live.map_or_else(|| skeleton(config), without_managed_fields);
    let mut managers = live.map(Managers::of).unwrap_or_default();
    if live.is_some() && managers.is_empty() {
        // What was there before anybody applied must not be taken away silently.
        let owned = stripped(Changes::between(at, &skeleton(&start), &start).added);
        managers.record(
            ("before-first-apply", Operation::Update, ""),
            api_version(&start),
            owned,
            manager.now,
        );
    }
    let first = attempt(at, &start, config, managers.clone(), manager, conflicts);
    let (mut object, mut managers) = match first {
        // An object of client-side apply: what its annotation says was kubectl's own all along.
        Err(Refused { owned_by_others, .. })
            if manager.name == "kubectl"
                && owned_by_others
                    .difference(&last_applied_set(at, &start))
                    .is_empty() =>
        {
            attempt(at, &start, config, managers, manager, Conflicts::Force).map_err(ApplyError::from)?
        }
        other => other.map_err(ApplyError::from)?,
    };
    if manager.name == "kubectl" && last_applied(&start).is_some() {
        set_last_applied(&mut object, config);
    }
    if live.is_some_and(|live| object == start && managers.same_as(&Managers::of(live))) {
        return Ok(live.cloned().unwrap_or(object));
    }
    managers.drop_empty();
    managers.write(&mut object);
    Ok(object)
}

struct Refused {
    message: String,
    causes: Vec<Cause>,
    owned_by_others: Set,
}

impl From<Refused> for ApplyError {
    fn from(refused: Refused) -> Self {
        Self::Conflict {
            message: refused.message,
            causes: refused.causes,
        }
    }
}

fn attempt(
    at: At<'_>,
    live: &Value,
    config: &Value,
    mut managers: Managers,
    manager: Manager<'_>,
    conflicts: Conflicts,
) -> Result<(Value, Managers), Refused> {
    let id = (manager.name, Operation::Apply, manager.subresource);
    let last = managers
        .fields(id, api_version(config))
        .cloned()
        .unwrap_or_default();
    let wanted = stripped(typed::field_set(at, config));
    managers.record(id, api_version(config), wanted, manager.now);

    let merged = typed::merge(at, Some(live), config);
    let owned = typed::with_structs(at, &managers.union());
    // Whoever gives up the last label of an object doesn't give up its name.
    let gone = stripped(typed::with_structs(at, &last).difference(&owned));
    let object = typed::without(at, &merged, &gone);

    let changes = Changes::between(at, live, &object);
    let taken = changes.modified.union(&changes.added);
    let contested = managers.others(id, api_version(config), |set| set.intersection(&taken));
    if !contested.is_empty() && conflicts == Conflicts::Refuse {
        return Err(refusal(&contested));
    }
    managers.yield_to(id, api_version(config), &taken, &changes.removed);
    Ok((object, managers))
}

fn refusal(contested: &[(String, Set)]) -> Refused {
    let mut causes = Vec::new();
    let mut lines = Vec::new();
    let mut owned_by_others = Set::default();
    for (who, set) in contested {
        owned_by_others.add(set);
        lines.push(format!("conflicts with {who}:"));
        for path in set.paths() {
            lines.push(format!("- {path}"));
            causes.push(Cause::conflict(path, format!("conflict with {who}")));
        }
    }
    let message = match causes.as_slice() {
        [one] => format!("Apply failed with 1 conflict: {}: {}", one.message, one.field),
        many => format!("Apply failed with {} conflicts: {}", many.len(), lines.join("\n")),
    };
    Refused {
        message,
        causes,
        owned_by_others,
    }
}

/// Rewrites `metadata.managedFields` of an object that is about to be created (no `live`) or updated.
pub fn update_managed_fields(
    schema: Option<&Schema>,
    live: Option<&Value>,
    new: &mut Value,
    manager: Manager<'_>,
) {
    let at = schema.map_or_else(untyped, Schema::root);
    let given = new.pointer("/metadata/managedFields").cloned();
    let reset = given
        .as_ref()
        .and_then(Value::as_array)
        .is_some_and(|list| list.as_slice() == [json!({})]);
    let mut managers = match (live, Managers::of(new)) {
        _ if reset => Managers::default(),
        // Through a subresource nobody else's books can be changed, and a broken list changes nothing.
        (Some(live), given) if given.is_empty() || !manager.subresource.is_empty() => Managers::of(live),
        (_, given) => given,
    };
    let after = without_managed_fields(new);
    *new = after.clone();
    if managers.is_empty() && live.is_some() {
        return;
    }
    let before = live.map_or_else(|| skeleton(&after), without_managed_fields);
    let changes = Changes::between(at, &before, &after);
    let taken = stripped(changes.modified.union(&changes.added));
    let id = (manager.name, Operation::Update, manager.subresource);
    managers.yield_to(id, api_version(&after), &taken, &changes.removed);
    if !taken.is_empty() {
        let owned = managers
            .fields(id, api_version(&after))
            .cloned()
            .unwrap_or_default();
        managers.record(id, api_version(&after), owned.union(&taken), manager.now);
    }
    managers.drop_empty();
    managers.cap();
    managers.write(new);
}

/// What nobody owns: identity and what the server writes.
fn stripped(mut set: Set) -> Set {
    for path in [
        &["f:apiVersion"][..],
        &["f:kind"],
        &["f:metadata"],
        &["f:metadata", "f:name"],
        &["f:metadata", "f:namespace"],
        &["f:metadata", "f:creationTimestamp"],
        &["f:metadata", "f:selfLink"],
        &["f:metadata", "f:uid"],
        &["f:metadata", "f:generation"],
        &["f:metadata", "f:managedFields"],
        &["f:metadata", "f:resourceVersion"],
    ] {
        set.remove(path);
    }
    set
}

fn api_version(object: &Value) -> &str {
    object
        .get("apiVersion")
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// The object before anything was said about it.
fn skeleton(object: &Value) -> Value {
    let mut metadata = Map::new();
    for key in ["name", "namespace"] {
        if let Some(value) = object.pointer("/metadata").and_then(|metadata| metadata.get(key)) {
            metadata.insert(key.to_owned(), value.clone());
        }
    }
    let mut skeleton = Map::new();
    for key in ["apiVersion", "kind"] {
        if let Some(value) = object.get(key) {
            skeleton.insert(key.to_owned(), value.clone());
        }
    }
    skeleton.insert("metadata".to_owned(), Value::Object(metadata));
    Value::Object(skeleton)
}

fn without_managed_fields(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
    object
}

fn last_applied(object: &Value) -> Option<&str> {
    object
        .get("metadata")?
        .get("annotations")?
        .get(LAST_APPLIED)?
        .as_str()
}

fn last_applied_set(at: At<'_>, live: &Value) -> Set {
    let applied = last_applied(live).and_then(|text| serde_json::from_str(text).ok());
    applied
        .map(|applied: Value| typed::field_set(at, &applied))
        .unwrap_or_default()
}

/// Keeps the annotation true, so that a later client-side apply still computes the right difference.
fn set_last_applied(object: &mut Value, config: &Value) {
    let mut config = config.clone();
    if let Some(annotations) = config
        .pointer_mut("/metadata/annotations")
        .and_then(Value::as_object_mut)
    {
        annotations.remove(LAST_APPLIED);
    }
    let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else {
        return;
    };
    let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
    if let Some(annotations) = annotations.as_object_mut() {
        annotations.insert(LAST_APPLIED.to_owned(), Value::String(format!("{config}\n")));
    }
}

#[cfg(test)]
mod tests;
