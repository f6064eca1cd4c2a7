//! Objects seen through a schema: which fields they have, how two of them differ, merge, and lose fields.
//!
//! The rules are those of `structured-merge-diff`. Where no schema is known, objects merge by key and lists are one
//! value.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::super::cause::Path;
use super::super::tree::{At, ListKind, Rest, Shape, untyped};
use super::fields::{self, Branch, Set};

/// How a value takes part in merging.
enum View<'v> {
    Leaf,
    Object(&'v Map<String, Value>),
    List(&'v [Value]),
}

fn view<'v>(at: At<'_>, value: &'v Value) -> View<'v> {
    match (at.shape(), value) {
        (Shape::Object { .. } | Shape::Deduced, Value::Object(object)) if !at.node.atomic => {
            View::Object(object)
        }
        (
            Shape::List {
                kind: ListKind::Set | ListKind::Map(_),
                ..
            },
            Value::Array(items),
        ) => View::List(items),
        _ => View::Leaf,
    }
}

/// What identifies an item of a list; its position where it lacks its keys.
fn element(at: At<'_>, item: &Value, position: usize) -> String {
    match at.shape() {
        Shape::List {
            kind: ListKind::Set, ..
        } => fields::value(item),
        Shape::List {
            kind: ListKind::Map(keys),
            ..
        } => {
            let schema = at.items().unwrap_or_else(untyped);
            let found: BTreeMap<&str, &Value> = keys
                .iter()
                .filter_map(|key| {
                    let default = || schema.child(key).and_then(|child| child.node.default.as_ref());
                    let value = item.get(key).filter(|value| !value.is_null()).or_else(default)?;
                    Some((key.as_str(), value))
                })
                .collect();
            if found.is_empty() {
                fields::index(position)
            } else {
                fields::key(&found)
            }
        }
        _ => fields::index(position),
    }
}

fn elements<'v>(at: At<'_>, items: &'v [Value]) -> Vec<(String, &'v Value)> {
    items
        .iter()
        .enumerate()
        .map(|(position, item)| (element(at, item, position), item))
        .collect()
}

/// A field of a struct, as opposed to an entry of a map.
fn is_named(at: At<'_>, key: &str) -> bool {
    at.field(key).is_some()
}

/// Faults that make an object impossible to merge: list items without their keys, or twice the same.
pub(super) fn check(at: At<'_>, value: &Value) -> Result<(), String> {
    check_at(at, value, &Path::root())
}

fn check_at(at: At<'_>, value: &Value, path: &Path) -> Result<(), String> {
    match view(at, value) {
        View::Leaf => Ok(()),
        View::Object(object) => object.iter().try_for_each(|(key, value)| {
            check_at(at.child(key).unwrap_or_else(untyped), value, &path.field(key))
        }),
        View::List(items) => {
            let mut seen = BTreeSet::new();
            let schema = at.items().unwrap_or_else(untyped);
            for (position, (element, item)) in elements(at, items).into_iter().enumerate() {
                if let Shape::List {
                    kind: ListKind::Map(keys),
                    ..
                } = at.shape()
                {
                    if !item.is_object() {
                        return Err(format!(
                            ".{path}: element {position}: associative list with keys may not have non-map elements"
                        ));
                    }
                    let lacks = |key: &&String| {
                        item.get(*key).is_none()
                            && schema.child(key).is_none_or(|child| child.node.default.is_none())
                    };
                    if let Some(key) = keys.iter().find(lacks) {
                        return Err(format!(
                            ".{path}: element {position}: associative list with keys has an element that omits key field \"{key}\" (and doesn't have default value)"
                        ));
                    }
                }
                let shown = Set([(element.clone(), Branch::leaf())].into()).paths().concat();
                if !seen.insert(element) {
                    return Err(format!(".{path}: duplicate entries for key {shown}"));
                }
                check_at(schema, item, &path.index(position))?;
            }
            Ok(())
        }
    }
}

/// Everything that an applied object claims.
pub(super) fn field_set(at: At<'_>, value: &Value) -> Set {
    branch(at, value).below
}

fn branch(at: At<'_>, value: &Value) -> Branch {
    let mut below = Set::default();
    match view(at, value) {
        View::Leaf => return Branch::leaf(),
        View::Object(object) => {
            for (key, value) in object {
                let Some(schema) = at.child(key) else { continue };
                let mut found = branch(schema, value);
                let empty = value.is_null() || value.as_object().is_some_and(Map::is_empty);
                found.member |= empty || !is_named(at, key);
                below.insert_branch(fields::field(key), found);
            }
        }
        View::List(items) => {
            let schema = at.items().unwrap_or_else(untyped);
            for (element, item) in elements(at, items) {
                below.insert_branch(
                    element,
                    Branch {
                        member: true,
                        ..branch(schema, item)
                    },
                );
            }
        }
    }
    Branch { member: false, below }
}

#[derive(Debug, Default)]
pub(super) struct Changes {
    pub added: Set,
    pub modified: Set,
    pub removed: Set,
}

impl Changes {
    pub(super) fn between(at: At<'_>, old: &Value, new: &Value) -> Self {
        let mut changes = Self::default();
        changes.compare(at, Some(old), Some(new), &mut Vec::new(), false);
        changes
    }

    /// `own`: a container that comes or goes is itself a change, besides what it holds. Structs are not: they are
    /// always there.
    fn compare(
        &mut self,
        at: At<'_>,
        old: Option<&Value>,
        new: Option<&Value>,
        path: &mut Vec<String>,
        own: bool,
    ) {
        let views = (old.map(|old| view(at, old)), new.map(|new| view(at, new)));
        let both_empty = old.is_none_or(is_empty) && new.is_none_or(is_empty);
        match views {
            (Some(View::Object(_)) | None, Some(View::Object(_)) | None) if !both_empty => {
                let fields =
                    |value: Option<&Value>| value.and_then(Value::as_object).cloned().unwrap_or_default();
                let (before, after) = (fields(old), fields(new));
                let keys: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
                for key in keys {
                    let Some(schema) = at.child(key) else { continue };
                    let map = !matches!(
                        schema.shape(),
                        Shape::Object {
                            rest: Rest::Nothing,
                            ..
                        }
                    );
                    path.push(fields::field(key));
                    self.compare(
                        schema,
                        before.get(key),
                        after.get(key),
                        path,
                        map || !is_named(at, key),
                    );
                    path.pop();
                }
                self.note_container(old, new, path, own);
            }
            (Some(View::List(_)) | None, Some(View::List(_)) | None) if !both_empty => {
                let list =
                    |value: Option<&Value>| value.and_then(Value::as_array).cloned().unwrap_or_default();
                let (before, after) = (list(old), list(new));
                let before: BTreeMap<String, &Value> = elements(at, &before).into_iter().collect();
                let after: BTreeMap<String, &Value> = elements(at, &after).into_iter().collect();
                let schema = at.items().unwrap_or_else(untyped);
                let all: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
                for element in all {
                    path.push(element.clone());
                    self.compare(
                        schema,
                        before.get(element).copied(),
                        after.get(element).copied(),
                        path,
                        true,
                    );
                    path.pop();
                }
                self.note_container(old, new, path, own);
            }
            _ => match (old, new) {
                (None, Some(_)) => self.added.insert(path),
                (Some(_), None) => self.removed.insert(path),
                (old, new) if old != new => self.modified.insert(path),
                _ => {}
            },
        }
    }

    fn note_container(&mut self, old: Option<&Value>, new: Option<&Value>, path: &[String], own: bool) {
        match (old, new) {
            (None, Some(_)) if own => self.added.insert(path),
            (Some(_), None) if own => self.removed.insert(path),
            _ => {}
        }
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(object) => object.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

/// The live object with everything that `config` says.
pub(super) fn merge(at: At<'_>, live: Option<&Value>, config: &Value) -> Value {
    let Some(live) = live else { return config.clone() };
    match (view(at, live), view(at, config)) {
        (View::Object(before), View::Object(after)) => {
            let mut merged = before.clone();
            for (key, value) in after {
                let schema = at.child(key).unwrap_or_else(untyped);
                merged.insert(key.clone(), merge(schema, before.get(key), value));
            }
            Value::Object(merged)
        }
        (View::List(before), View::List(after)) => Value::Array(merge_lists(at, before, after)),
        _ => config.clone(),
    }
}

/// Items of the config in its order; items that only the live object has stay where they stood among them.
fn merge_lists(at: At<'_>, live: &[Value], config: &[Value]) -> Vec<Value> {
    let schema = at.items().unwrap_or_else(untyped);
    let (live, config) = (elements(at, live), elements(at, config));
    let in_config: BTreeSet<&String> = config.iter().map(|(element, _)| element).collect();
    let in_live: BTreeMap<&String, &Value> = live.iter().map(|(element, item)| (element, *item)).collect();
    let shared: Vec<&String> = config
        .iter()
        .map(|(element, _)| element)
        .filter(|it| in_live.contains_key(it))
        .collect();
    let mut next_shared = shared.iter().peekable();
    let mut done = BTreeSet::new();
    let mut merged = Vec::new();
    let (mut left, mut right) = (live.iter().peekable(), config.iter().peekable());
    loop {
        if let Some((element, item)) = left.peek() {
            if !in_config.contains(element) {
                merged.push((*item).clone());
                left.next();
                continue;
            }
            let expected = next_shared.peek().is_some_and(|next| **next == element);
            if done.contains(element) || (right.peek().is_some() && !expected) {
                left.next();
                continue;
            }
        }
        let Some((element, item)) = right.next() else {
            return merged;
        };
        merged.push(merge(schema, in_live.get(element).copied(), item));
        done.insert(element);
        if next_shared.peek().is_some_and(|next| **next == element) {
            next_shared.next();
        }
    }
}

/// The value without the members of `gone`; containers that this empties go too.
pub(super) fn without(at: At<'_>, value: &Value, gone: &Set) -> Value {
    match view(at, value) {
        View::Leaf => value.clone(),
        View::Object(object) => {
            let mut kept = Map::new();
            for (key, value) in object {
                let schema = at.child(key).unwrap_or_else(untyped);
                kept.extend(
                    survivor(schema, value, gone.0.get(&fields::field(key)))
                        .map(|value| (key.clone(), value)),
                );
            }
            Value::Object(kept)
        }
        View::List(items) => {
            let schema = at.items().unwrap_or_else(untyped);
            let survivors = elements(at, items).into_iter();
            Value::Array(
                survivors
                    .filter_map(|(element, item)| survivor(schema, item, gone.0.get(&element)))
                    .collect(),
            )
        }
    }
}

fn survivor(at: At<'_>, value: &Value, gone: Option<&Branch>) -> Option<Value> {
    match gone {
        None => Some(value.clone()),
        Some(branch) if branch.member => None,
        Some(branch) => {
            let rest = without(at, value, &branch.below);
            (is_empty(value) || !is_empty(&rest)).then_some(rest)
        }
    }
}

/// The set and also the structs on the way to its members, which sets usually leave out.
pub(super) fn with_structs(at: At<'_>, set: &Set) -> Set {
    let mut full = Set::default();
    for (element, branch) in &set.0 {
        let (schema, named) = match element.strip_prefix("f:") {
            Some(name) => (at.child(name), is_named(at, name)),
            None => (at.items(), false),
        };
        let below = with_structs(schema.unwrap_or_else(untyped), &branch.below);
        full.insert_branch(
            element.clone(),
            Branch {
                member: branch.member || named,
                below,
            },
        );
    }
    full
}
