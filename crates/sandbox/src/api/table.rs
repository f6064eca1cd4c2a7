//! The columns that `kubectl get` prints.
//!
//! Pure functions from an object (and the present time) to cells.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::registry::{Resource, meta};

/// One column: its definition and how to fill it.
pub(crate) struct Column {
    name: &'static str,
    cell: fn(&Value) -> Value,
}

impl Column {
    pub(crate) fn cell(&self, object: &Value) -> Value {
        (self.cell)(object)
    }

    pub(crate) fn definition(&self) -> Value {
        let format = if self.name == "Name" { "name" } else { "" };
        json!({ "name": self.name, "type": "string", "format": format, "description": "", "priority": 0 })
    }
}

pub(crate) fn columns(_resource: &Resource) -> Vec<Column> {
    vec![
        Column {
            name: "Name",
            cell: |object| meta::name(object).into(),
        },
        Column {
            name: "Age",
            cell: |object| age(meta::text(object, "creationTimestamp")).into(),
        },
    ]
}

fn age(created: &str) -> String {
    match created.parse::<Timestamp>() {
        Ok(created) => format!("{}s", Timestamp::now().duration_since(created).as_secs().max(0)),
        Err(_) => "<unknown>".to_owned(),
    }
}
