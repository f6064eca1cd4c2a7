//! What only the schemas of CRDs can demand of a value.

use serde_json::Value;

/// Filled from `openAPIV3Schema`.
#[derive(Clone, Debug, Default)]
pub(super) struct Constraints {
    pub required: Vec<String>,
    pub choices: Vec<Value>,
}
