//! The three patches that name what to change: JSON Patch, JSON merge patch and strategic merge patch.
//!
//! A strategic merge patch is a merge patch that knows lists: by the schema's merge keys, and by directives in the
//! patch (`$patch`, `$retainKeys`, `$setElementOrder/...`, `$deleteFromPrimitiveList/...`). The rules, including the
//! order of merged lists, are those of `k8s.io/apimachinery/pkg/util/strategicpatch`.

use serde_json::{Map, Value};

use super::Schema;
use super::tree::{At, Field, untyped};

#[derive(Debug, thiserror::Error)]
pub enum PatchError {
    /// The patch itself makes no sense: 400.
    #[error("{0}")]
    Malformed(String),
    /// The patch doesn't fit the object (a failed `test`, a path that isn't there): 422.
    #[error("{0}")]
    Unprocessable(String),
}

/// More operations than any honest client sends.
const OPERATIONS_MAX: usize = 10_000;
/// `copy` can double an object with each operation; this bounds what all of them handle.
const MOVED_BYTES_MAX: usize = 3 << 20;
/// As deep as a body may nest.
const DEPTH_MAX: usize = 128;

/// RFC 6902.
pub fn json_patch(current: &Value, patch: &Value) -> Result<Value, PatchError> {
    let patch: json_patch::Patch =
        serde_json::from_value(patch.clone()).map_err(|error| PatchError::Malformed(error.to_string()))?;
    if patch.0.len() > OPERATIONS_MAX {
        let count = patch.0.len();
        return Err(PatchError::Malformed(format!(
            "The allowed maximum operations in a JSON patch is {OPERATIONS_MAX}, got {count}"
        )));
    }
    let mut object = current.clone();
    let mut budget = MOVED_BYTES_MAX;
    for operation in patch.0 {
        bound(&object, &operation, &mut budget)?;
        json_patch::patch_unsafe(&mut object, std::slice::from_ref(&operation))
            .map_err(|error| PatchError::Unprocessable(error.kind.to_string()))?;
    }
    Ok(object)
}

/// A patch can make an object bigger and deeper than its own text. Everything that walks objects recurses, so depth
/// is bounded like that of a parsed body.
fn bound(
    object: &Value,
    operation: &json_patch::PatchOperation,
    budget: &mut usize,
) -> Result<(), PatchError> {
    use json_patch::PatchOperation::{Add, Copy, Move, Remove, Replace, Test};
    let (path, value, moves) = match operation {
        Add(add) => (&add.path, Some(&add.value), false),
        Replace(replace) => (&replace.path, Some(&replace.value), false),
        Copy(copy) => (&copy.path, object.pointer(copy.from.as_str()), true),
        Move(moved) => (&moved.path, object.pointer(moved.from.as_str()), true),
        Remove(_) | Test(_) => return Ok(()),
    };
    let Some(value) = value else { return Ok(()) };
    if moves {
        *budget = budget
            .checked_sub(value.to_string().len())
            .ok_or_else(|| PatchError::Malformed("the JSON patch copies or moves too much".to_owned()))?;
    }
    if path.tokens().count() + depth(value) > DEPTH_MAX {
        return Err(PatchError::Malformed(format!(
            "the JSON patch nests objects more than {DEPTH_MAX} levels deep"
        )));
    }
    Ok(())
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Object(object) => 1 + object.values().map(depth).max().unwrap_or(0),
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

/// RFC 7386.
pub fn merge(current: &Value, patch: &Value) -> Value {
    let Value::Object(changes) = patch else {
        return patch.clone();
    };
    let mut merged = current.as_object().cloned().unwrap_or_default();
    for (key, change) in changes {
        if change.is_null() {
            merged.remove(key);
        } else {
            let before = merged.get(key).unwrap_or(&Value::Null);
            let after = merge(before, change);
            merged.insert(key.clone(), after);
        }
    }
    Value::Object(merged)
}

/// The merge patch that turns `from` into `to`, if one can: it can't set anything to null.
pub fn merge_difference(from: &Value, to: &Value) -> Value {
    let (Value::Object(before), Value::Object(after)) = (from, to) else {
        return to.clone();
    };
    let mut patch = Map::new();
    for key in before.keys().filter(|key| !after.contains_key(*key)) {
        patch.insert(key.clone(), Value::Null);
    }
    for (key, value) in after {
        match before.get(key) {
            Some(same) if same == value => {}
            Some(other) if other.is_object() && value.is_object() => {
                patch.insert(key.clone(), merge_difference(other, value));
            }
            _ => {
                patch.insert(key.clone(), value.clone());
            }
        }
    }
    Value::Object(patch)
}

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const ELEMENT_ORDER: &str = "$setElementOrder/";
const DELETE_FROM_LIST: &str = "$deleteFromPrimitiveList/";

/// Strategic merge patch of a built-in object.
pub fn strategic(schema: &Schema, current: &Value, patch: &Value) -> Result<Value, PatchError> {
    let (Value::Object(current), Value::Object(patch)) = (current, patch) else {
        return Err(PatchError::Malformed(
            "a strategic merge patch must be an object".to_owned(),
        ));
    };
    merge_objects(schema.root(), current.clone(), patch).map(Value::Object)
}

fn merge_objects(
    at: At<'_>,
    mut object: Map<String, Value>,
    patch: &Map<String, Value>,
) -> Result<Map<String, Value>, PatchError> {
    match patch
        .get(DIRECTIVE)
        .map(|directive| directive.as_str().unwrap_or_default())
    {
        Some("replace") => return Ok(without_directives(patch)),
        Some("delete") => return Ok(Map::new()),
        None | Some("merge") => {}
        Some(other) => {
            return Err(PatchError::Malformed(format!(
                "Unknown patch type found: {other}"
            )));
        }
    }
    if let Some(keys) = patch.get(RETAIN_KEYS) {
        let keys = list(RETAIN_KEYS, keys)?;
        let retained = |key: &String| {
            keys.iter()
                .any(|retained| retained.as_str() == Some(key.as_str()))
        };
        if let Some(key) = patch
            .keys()
            .find(|key| !key.starts_with('$') && !retained(key) && !patch[*key].is_null())
        {
            return Err(PatchError::Malformed(format!(
                "{RETAIN_KEYS} list doesn't contain all fields of the patch: {key}"
            )));
        }
        object.retain(|key, _| retained(key));
    }
    for (key, change) in patch {
        let Some(name) = key.strip_prefix(DELETE_FROM_LIST) else {
            continue;
        };
        let gone = list(key, change)?;
        if let Some(Value::Array(items)) = object.get_mut(name) {
            items.retain(|item| !gone.contains(item));
        }
    }
    for (key, change) in patch.iter().filter(|(key, _)| !key.starts_with('$')) {
        if change.is_null() {
            object.remove(key);
            continue;
        }
        let merged = merge_field(at, key, object.get(key), change)?;
        object.insert(key.clone(), merged);
    }
    for (key, order) in patch {
        let Some(name) = key.strip_prefix(ELEMENT_ORDER) else {
            continue;
        };
        let order = list(key, order)?;
        let merge_key = at.field(name).and_then(|field| field.merge_key.as_deref());
        if let Some(Value::Array(items)) = object.get_mut(name) {
            let server = std::mem::take(items);
            *items = ordered(server.clone(), order, &server, merge_key);
        }
    }
    Ok(object)
}

fn merge_field(at: At<'_>, key: &str, before: Option<&Value>, change: &Value) -> Result<Value, PatchError> {
    let inner = at.child(key).unwrap_or_else(untyped);
    match (before, change) {
        (Some(Value::Object(before)), Value::Object(change)) => {
            merge_objects(inner, before.clone(), change).map(Value::Object)
        }
        (None | Some(Value::Null), Value::Object(change)) => {
            merge_objects(inner, Map::new(), change).map(Value::Object)
        }
        (before, Value::Array(changes)) => match at.field(key) {
            Some(field) if field.merge => {
                let before = before.and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
                merge_lists(inner, field, before, changes).map(Value::Array)
            }
            _ => Ok(Value::Array(
                changes
                    .iter()
                    .map(|item| clean(item.clone()))
                    .filter(|item| !item.is_null())
                    .collect(),
            )),
        },
        (_, change) => Ok(change.clone()),
    }
}

fn merge_lists(
    at: At<'_>,
    field: &Field,
    before: &[Value],
    changes: &[Value],
) -> Result<Vec<Value>, PatchError> {
    let Some(merge_key) = field.merge_key.as_deref() else {
        let mut merged = before.to_vec();
        for item in changes {
            if !merged.contains(item) {
                merged.push(item.clone());
            }
        }
        return Ok(ordered(merged, changes, before, None));
    };
    let directive = |item: &Value| item.get(DIRECTIVE).and_then(Value::as_str).map(str::to_owned);
    if changes
        .iter()
        .any(|item| directive(item).as_deref() == Some("replace"))
    {
        return Ok(changes
            .iter()
            .filter(|item| directive(item).is_none())
            .map(|item| clean(item.clone()))
            .collect());
    }
    let item_schema = at.items().unwrap_or_else(untyped);
    let mut merged = before.to_vec();
    let mut kept = Vec::new();
    for change in changes {
        let Value::Object(fields) = change else {
            return Err(PatchError::Malformed(
                "a list that merges by key must hold objects".to_owned(),
            ));
        };
        let Some(key) = fields.get(merge_key) else {
            return Err(PatchError::Malformed(format!(
                "map: {change} does not contain declared merge key: {merge_key}"
            )));
        };
        let same = |item: &Value| item.get(merge_key) == Some(key);
        match directive(change).as_deref() {
            Some("delete") => merged.retain(|item| !same(item)),
            Some(other) if other != "merge" => {
                return Err(PatchError::Malformed(format!(
                    "Unknown patch type found: {other}"
                )));
            }
            _ => {
                kept.push(change.clone());
                match merged.iter_mut().find(|item| same(item)) {
                    Some(Value::Object(item)) => {
                        *item = merge_objects(item_schema, std::mem::take(item), fields)?
                    }
                    _ => merged.push(Value::Object(merge_objects(item_schema, Map::new(), fields)?)),
                }
            }
        }
    }
    Ok(ordered(merged, &kept, before, Some(merge_key)))
}

/// Items that the patch names come in the patch's order, the others keep the server's; where both lists know both
/// items the server's order decides how the two interleave.
fn ordered(items: Vec<Value>, patch: &[Value], server: &[Value], merge_key: Option<&str>) -> Vec<Value> {
    let position = |list: &[Value], item: &Value| {
        list.iter().position(|other| match merge_key {
            Some(key) => other.get(key).is_some() && other.get(key) == item.get(key),
            None => other == item,
        })
    };
    let (mut named, rest): (Vec<Value>, Vec<Value>) = items
        .into_iter()
        .partition(|item| position(patch, item).is_some());
    named.sort_by_key(|item| position(patch, item));
    let mut named = named.into_iter().peekable();
    let mut rest = rest.into_iter().peekable();
    let mut merged = Vec::new();
    loop {
        let take_named = match (named.peek(), rest.peek()) {
            (None, None) => return merged,
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (Some(left), Some(right)) => {
                matches!((position(server, left), position(server, right)), (Some(left), Some(right)) if left < right)
            }
        };
        merged.extend(if take_named { named.next() } else { rest.next() });
    }
}

fn list<'a>(name: &str, value: &'a Value) -> Result<&'a [Value], PatchError> {
    value
        .as_array()
        .map(Vec::as_slice)
        .ok_or_else(|| PatchError::Malformed(format!("{name} must be a list")))
}

fn without_directives(patch: &Map<String, Value>) -> Map<String, Value> {
    patch
        .iter()
        .filter(|(key, value)| !key.starts_with('$') && !value.is_null())
        .map(|(key, value)| (key.clone(), clean(value.clone())))
        .collect()
}

fn clean(value: Value) -> Value {
    match value {
        Value::Object(object) => Value::Object(without_directives(&object)),
        Value::Array(items) => Value::Array(items.into_iter().map(clean).collect()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn check(kind: (&str, &str, &str), current: Value, patch: Value, expected: Value) {
        let schema = Schema::for_kind(kind.0, kind.1, kind.2).expect("the kind is built in");
        assert_eq!(
            strategic(&schema, &current, &patch).expect("the patch applies"),
            expected
        );
    }

    const POD: (&str, &str, &str) = ("", "v1", "Pod");
    const DEPLOYMENT: (&str, &str, &str) = ("apps", "v1", "Deployment");

    #[test]
    fn containers_merge_by_name() {
        check(
            POD,
            json!({"spec": {"containers": [{"name": "a", "image": "a:1"}, {"name": "b", "image": "b:1"}]}}),
            json!({"spec": {"containers": [{"name": "b", "image": "b:2"}, {"name": "c"}]}}),
            json!({"spec": {"containers": [{"name": "a", "image": "a:1"}, {"name": "b", "image": "b:2"}, {"name": "c"}]}}),
        );
    }

    #[test]
    fn patch_delete_removes_an_element() {
        check(
            POD,
            json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}}),
            json!({"spec": {"containers": [{"name": "a", "$patch": "delete"}]}}),
            json!({"spec": {"containers": [{"name": "b"}]}}),
        );
    }

    #[test]
    fn patch_replace_takes_the_list_as_it_is() {
        check(
            POD,
            json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}}),
            json!({"spec": {"containers": [{"name": "c"}, {"$patch": "replace"}]}}),
            json!({"spec": {"containers": [{"name": "c"}]}}),
        );
    }

    #[test]
    fn set_element_order_reorders() {
        check(
            POD,
            json!({"spec": {"containers": [{"name": "a"}, {"name": "server"}, {"name": "b"}]}}),
            json!({"spec": {
                "$setElementOrder/containers": [{"name": "b"}, {"name": "a"}],
                "containers": [{"name": "b", "image": "x"}],
            }}),
            json!({"spec": {"containers": [{"name": "server"}, {"name": "b", "image": "x"}, {"name": "a"}]}}),
        );
    }

    #[test]
    fn retain_keys_clears_the_rest() {
        check(
            DEPLOYMENT,
            json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}}),
            json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}}),
            json!({"spec": {"strategy": {"type": "Recreate"}}}),
        );
    }

    #[test]
    fn primitive_lists_merge_and_lose_elements() {
        check(
            POD,
            json!({"metadata": {"finalizers": ["a", "b"]}}),
            json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["c"]}}),
            json!({"metadata": {"finalizers": ["b", "c"]}}),
        );
    }

    #[test]
    fn null_deletes_and_is_not_kept_in_new_objects() {
        check(
            POD,
            json!({"metadata": {"labels": {"a": "1", "b": "2"}}}),
            json!({"metadata": {"labels": {"a": null}, "annotations": {"x": null, "y": "1"}}}),
            json!({"metadata": {"labels": {"b": "2"}, "annotations": {"y": "1"}}}),
        );
    }

    #[test]
    fn an_element_without_its_key_is_refused() {
        let schema = Schema::for_kind("", "v1", "Pod").expect("Pod is built in");
        let patch = json!({"spec": {"containers": [{"image": "x"}]}});
        let error = strategic(&schema, &json!({}), &patch).expect_err("the container has no name");
        assert!(
            error
                .to_string()
                .contains("does not contain declared merge key: name"),
            "{error}"
        );
    }

    #[test]
    fn a_failed_test_operation_changes_nothing_and_is_unprocessable() {
        let patch = json!([{"op": "test", "path": "/a", "value": 2}, {"op": "remove", "path": "/a"}]);
        assert!(matches!(
            json_patch(&json!({"a": 1}), &patch),
            Err(PatchError::Unprocessable(_))
        ));
    }

    #[test]
    fn copies_do_not_grow_without_bound() {
        let operation = json!({"op": "copy", "from": "", "path": "/a/-"});
        let patch = Value::Array(vec![operation; 64]);
        assert!(matches!(
            json_patch(&json!({"a": ["x"]}), &patch),
            Err(PatchError::Malformed(_))
        ));
    }

    #[test]
    fn patches_do_not_nest_without_bound() {
        let operation = json!({"op": "copy", "from": "/a", "path": "/a/b"});
        let patch = Value::Array(vec![operation; 200]);
        let error = json_patch(&json!({"a": {}}), &patch).expect_err("each copy adds a level");
        assert_eq!(
            error.to_string(),
            "the JSON patch nests objects more than 128 levels deep"
        );
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<bool>().prop_map(Value::from),
            (0..4).prop_map(Value::from),
            "[ab]".prop_map(Value::from)
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::Array),
                prop::collection::btree_map("[a-d]", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    fn any_containers() -> impl Strategy<Value = Vec<Value>> {
        prop::collection::btree_map("[a-e]", ("[xy]", any::<bool>()), 0..5).prop_map(|map| {
            map.into_iter()
                .map(|(name, (image, tty))| json!({"name": name, "image": image, "tty": tty}))
                .collect()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn difference_leads_from_one_to_the_other(from in any_json(), to in any_json()) {
            prop_assert_eq!(merge(&from, &merge_difference(&from, &to)), to);
        }

        #[test]
        fn merging_twice_changes_nothing_more(current in any_json(), patch in any_json()) {
            let once = merge(&current, &patch);
            prop_assert_eq!(merge(&once, &patch), once);
        }

        #[test]
        fn strategic_merge_is_idempotent(current in any_containers(), patch in any_containers()) {
            let schema = Schema::for_kind("", "v1", "Pod").expect("Pod is built in");
            let patch = json!({"spec": {"containers": patch}});
            let once = strategic(&schema, &json!({"spec": {"containers": current}}), &patch).expect("keys are given");
            prop_assert_eq!(strategic(&schema, &once, &patch).expect("keys are given"), once);
        }
    }
}
