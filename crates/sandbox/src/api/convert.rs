//! Between a resource's versions: the one that is stored and the one that was asked for.
//!
//! CRDs have the `None` conversion, which changes `apiVersion` only. Events exist in two groups with different words
//! for the same things; they are stored in the core group's.

use std::borrow::Cow;

use serde_json::Value;

use super::registry::{Resource, api_version};
use super::shape;

/// `core/v1` and `events.k8s.io/v1` names of the same field.
const EVENT_FIELDS: [(&str, &str); 7] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("reportingComponent", "reportingController"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
];

pub(crate) fn from_stored<'a>(resource: &Resource, stored: &'a Value) -> Cow<'a, Value> {
    let wanted = resource.api_version();
    let same_version = stored.get("apiVersion").and_then(Value::as_str) == Some(wanted.as_str());
    if same_version && resource.custom.is_none() {
        return Cow::Borrowed(stored);
    }
    let mut object = stored.clone();
    if resource.custom.is_some() {
        // Written under an older definition, it may lack what the present one fills in.
        object["apiVersion"] = wanted.into();
        shape::default(resource, &mut object);
        return match same_version && object == *stored {
            true => Cow::Borrowed(stored),
            false => Cow::Owned(object),
        };
    }
    if resource.group == "events.k8s.io" {
        rename(&mut object, EVENT_FIELDS.map(|(core, new)| (core, new)));
    }
    object["apiVersion"] = wanted.into();
    Cow::Owned(object)
}

pub(crate) fn to_stored(resource: &Resource, mut object: Value) -> Value {
    if resource.group == "events.k8s.io" {
        rename(&mut object, EVENT_FIELDS.map(|(core, new)| (new, core)));
        object["apiVersion"] = "v1".into();
    }
    if let Some(custom) = &resource.custom
        && custom.storage_version != resource.version
        && !custom.storage_version.is_empty()
    {
        object["apiVersion"] = api_version(&resource.group, &custom.storage_version).into();
    }
    object
}

fn rename<const N: usize>(object: &mut Value, names: [(&str, &str); N]) {
    let Some(fields) = object.as_object_mut() else {
        return;
    };
    for (from, to) in names {
        if let Some(value) = fields.remove(from) {
            fields.insert(to.to_owned(), value);
        }
    }
}
