//! The entries of `metadata.managedFields`.
//!
//! An entry is known by manager, operation and subresource, and for updates also by version. Entries that can't be
//! read are dropped, as any API server does: they are books, not data.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::convert::time_text;
use super::fields::Set;

/// More writers than this are folded into one entry, oldest first.
const UPDATE_MANAGERS_MAX: usize = 10;
const FOLDED: &str = "ancient-changes";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Operation {
    Apply,
    Update,
}

pub(super) type Id<'a> = (&'a str, Operation, &'a str);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    operation: Operation,
    manager: String,
    subresource: String,
    /// Empty for applies: their entry moves along with the version.
    version: String,
}

impl Key {
    fn of((manager, operation, subresource): Id<'_>, version: &str) -> Self {
        Self {
            operation,
            manager: manager.to_owned(),
            subresource: subresource.to_owned(),
            version: if operation == Operation::Update {
                version.to_owned()
            } else {
                String::new()
            },
        }
    }

    /// As conflicts name it.
    fn shown(&self) -> String {
        let mut text = format!("{:?}", self.manager);
        if !self.subresource.is_empty() {
            text = format!("{text} with subresource {:?}", self.subresource);
        }
        if self.operation == Operation::Update {
            text = format!("{text} using {}", self.version);
        }
        text
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    api_version: String,
    fields: Set,
    time: Option<String>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Managers(BTreeMap<Key, Entry>);

impl Managers {
    pub(super) fn of(object: &Value) -> Self {
        let entries = object
            .pointer("/metadata/managedFields")
            .and_then(Value::as_array);
        Self(entries.into_iter().flatten().filter_map(read).collect())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the same managers own the same fields, whenever they did.
    pub(super) fn same_as(&self, other: &Self) -> bool {
        self.0.len() == other.0.len()
            && self
                .0
                .iter()
                .zip(&other.0)
                .all(|((key, entry), (other_key, other))| {
                    key == other_key && entry.fields == other.fields && entry.api_version == other.api_version
                })
    }

    pub(super) fn fields(&self, id: Id<'_>, version: &str) -> Option<&Set> {
        self.0.get(&Key::of(id, version)).map(|entry| &entry.fields)
    }

    pub(super) fn record(&mut self, id: Id<'_>, version: &str, fields: Set, now: Timestamp) {
        let entry = Entry {
            api_version: version.to_owned(),
            fields,
            time: Some(time_text(now)),
        };
        self.0.insert(Key::of(id, version), entry);
    }

    pub(super) fn union(&self) -> Set {
        let mut union = Set::default();
        for entry in self.0.values() {
            union.add(&entry.fields);
        }
        union
    }

    /// What `part` leaves of everybody else's fields, by the name that conflicts use.
    pub(super) fn others(&self, id: Id<'_>, version: &str, part: impl Fn(&Set) -> Set) -> Vec<(String, Set)> {
        let own = Key::of(id, version);
        let others = self.0.iter().filter(|(key, _)| **key != own);
        let parts = others.map(|(key, entry)| (key.shown(), part(&entry.fields)));
        parts.filter(|(_, part)| !part.is_empty()).collect()
    }

    /// Everybody else loses what was taken from them, and what is no longer there.
    pub(super) fn yield_to(&mut self, id: Id<'_>, version: &str, taken: &Set, removed: &Set) {
        let own = Key::of(id, version);
        for (key, entry) in &mut self.0 {
            if *key != own {
                entry.fields = entry.fields.difference(taken);
            }
            entry.fields = entry.fields.without_subtrees(removed);
        }
    }

    pub(super) fn drop_empty(&mut self) {
        self.0.retain(|_, entry| !entry.fields.is_empty());
    }

    pub(super) fn cap(&mut self) {
        let mut updates: Vec<(Option<String>, Key)> = self
            .0
            .iter()
            .filter(|(key, _)| key.operation == Operation::Update)
            .map(|(key, entry)| (entry.time.clone(), key.clone()))
            .collect();
        updates.sort();
        let mut excess = updates.len().saturating_sub(UPDATE_MANAGERS_MAX);
        let mut first_of_version: BTreeMap<String, Key> = BTreeMap::new();
        for (_, key) in updates {
            if excess == 0 {
                return;
            }
            let Some(first) = first_of_version.get(&key.version) else {
                first_of_version.insert(key.version.clone(), key);
                continue;
            };
            let folded = Key::of((FOLDED, Operation::Update, ""), &key.version);
            if *first != folded
                && let Some(entry) = self.0.remove(first)
            {
                self.0.insert(folded.clone(), entry);
                first_of_version.insert(key.version.clone(), folded.clone());
            }
            if let Some(entry) = self.0.remove(&key)
                && let Some(bucket) = self.0.get_mut(&folded)
            {
                bucket.fields.add(&entry.fields);
                bucket.time = entry.time;
            }
            excess -= 1;
        }
    }

    pub(super) fn write(&self, object: &mut Value) {
        let mut entries: Vec<(&Key, &Entry)> = self.0.iter().collect();
        entries.sort_by(|(key, entry), (other_key, other)| {
            key.operation
                .cmp(&other_key.operation)
                .then_with(|| entry.time.cmp(&other.time))
                .then_with(|| key.cmp(other_key))
        });
        let entries: Vec<Value> = entries
            .into_iter()
            .map(|(key, entry)| written(key, entry))
            .collect();
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            if entries.is_empty() {
                metadata.remove("managedFields");
            } else {
                metadata.insert("managedFields".to_owned(), Value::Array(entries));
            }
        }
    }
}

fn read(entry: &Value) -> Option<(Key, Entry)> {
    let text = |name: &str| entry.get(name).and_then(Value::as_str).unwrap_or_default();
    let operation = match text("operation") {
        "Apply" => Operation::Apply,
        "Update" => Operation::Update,
        _ => return None,
    };
    if text("fieldsType") != "FieldsV1" {
        return None;
    }
    let key = Key::of(
        (text("manager"), operation, text("subresource")),
        text("apiVersion"),
    );
    let fields = entry.get("fieldsV1").and_then(Set::from_json).unwrap_or_default();
    let time = entry.get("time").and_then(Value::as_str).map(str::to_owned);
    Some((
        key,
        Entry {
            api_version: text("apiVersion").to_owned(),
            fields,
            time,
        },
    ))
}

fn written(key: &Key, entry: &Entry) -> Value {
    let operation = match key.operation {
        Operation::Apply => "Apply",
        Operation::Update => "Update",
    };
    let mut value = json!({
        "manager": key.manager,
        "operation": operation,
        "apiVersion": entry.api_version,
        "fieldsType": "FieldsV1",
        "fieldsV1": entry.fields.to_json(),
    });
    if let Some(time) = &entry.time {
        value["time"] = Value::from(time.as_str());
    }
    if !key.subresource.is_empty() {
        value["subresource"] = Value::from(key.subresource.as_str());
    }
    value
}
