//! What an object of a resource should look like: the schema's functions, by resource.
//!
//! The schemas themselves, and everything that walks them, are `crate::schema`'s.

use serde_json::Value;

use super::error::{ApiError, Cause, Result};
use super::registry::Resource;
use crate::schema;
use crate::schema::apply::{ApplyError, Conflicts, Manager};

/// Fills in defaults.
pub(crate) fn default(resource: &Resource, object: &mut Value) {
    if let Some(schema) = &resource.schema {
        schema.default_(object);
    }
}

/// Removes unknown fields and names them.
pub(crate) fn prune(resource: &Resource, object: &mut Value) -> Vec<String> {
    let Some(schema) = &resource.schema else {
        return Vec::new();
    };
    schema
        .prune(object)
        .into_iter()
        .map(|path| format!("unknown field {path:?}"))
        .collect()
}

/// Refuses what could not be decoded into the type at all.
pub(crate) fn check_types(resource: &Resource, object: &Value) -> Result<()> {
    match resource
        .schema
        .as_ref()
        .and_then(|schema| schema.mistyped(object))
    {
        Some(problem) => Err(ApiError::bad_request(problem)),
        None => Ok(()),
    }
}

/// Names what is wrong with an object.
pub(crate) fn validate(resource: &Resource, object: &Value, old: Option<&Value>) -> Vec<Cause> {
    let causes = resource
        .schema
        .iter()
        .flat_map(|schema| schema.validate(object, old));
    causes.map(Cause::from).collect()
}

/// Applies a patch in one of the formats of `Content-Type`.
pub(crate) fn patch(resource: &Resource, media: &str, current: &Value, body: &Value) -> Result<Value> {
    let patched = match media {
        "application/json-patch+json" => schema::patch::json_patch(current, body),
        "application/merge-patch+json" => Ok(schema::patch::merge(current, body)),
        "application/strategic-merge-patch+json" if resource.custom.is_none() => match &resource.schema {
            Some(schema) => schema::patch::strategic(schema, current, body),
            None => Ok(schema::patch::merge(current, body)),
        },
        other => return Err(ApiError::unsupported_media(other, PATCHES)),
    };
    patched.map_err(|error| match error {
        schema::patch::PatchError::Malformed(message) => ApiError::bad_request(message),
        schema::patch::PatchError::Unprocessable(message) => ApiError::unprocessable(format!(
            "the server rejected our request due to an error in our request: {message}"
        )),
    })
}

/// Patches something that has no schema of its own, such as a Scale.
pub(crate) fn patch_plain(media: &str, current: &Value, body: &Value) -> Result<Value> {
    match media {
        "application/json-patch+json" => schema::patch::json_patch(current, body)
            .map_err(|error| ApiError::unprocessable(error.to_string())),
        _ => Ok(schema::patch::merge(current, body)),
    }
}

/// Server-side apply of a configuration to an object, or to nothing.
pub(crate) fn apply(
    resource: &Resource,
    current: Option<&Value>,
    configuration: &Value,
    manager: Manager<'_>,
    conflicts: Conflicts,
) -> Result<Value> {
    schema::apply::apply(
        resource.schema.as_ref(),
        current,
        configuration,
        manager,
        conflicts,
    )
    .map_err(|error| match error {
        ApplyError::Malformed(message) => ApiError::bad_request(message),
        ApplyError::Conflict { message, causes } => {
            ApiError::apply_conflict(message, causes.into_iter().map(Cause::from).collect())
        }
    })
}

/// Records in `managedFields` what an update changed.
pub(crate) fn own(resource: &Resource, current: Option<&Value>, object: &mut Value, manager: Manager<'_>) {
    schema::apply::update_managed_fields(resource.schema.as_ref(), current, object, manager);
}

const PATCHES: &str = "application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml, \
     application/strategic-merge-patch+json";
