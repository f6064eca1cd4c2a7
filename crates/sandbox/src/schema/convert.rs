//! What decoding into Go structs does to JSON: unknown fields go, nulls go, quantities and times get one spelling.
//!
//! For built-in kinds this is exactly the step between the wire and the object. For CRDs only unknown fields are
//! removed (and metadata is treated as built in); types are checked by validation, which can name every fault at once.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::Timestamp;
use serde_json::Value;

use super::Schema;
use super::cause::Path;
use super::quantity;
use super::tree::{At, Rest, Scalar, Shape};

impl Schema {
    /// Removes what the schema does not know and answers the paths of it (`spec.replica`, `spec.ports[0].prot`).
    pub fn prune(&self, object: &mut Value) -> Vec<String> {
        let mut unknown = Vec::new();
        prune(self.root(), object, &Path::root(), &mut unknown);
        unknown.sort_unstable();
        unknown
    }

    /// Why a built-in object can't be decoded at all, as Go's JSON decoder says it; such a request is a 400.
    pub fn mistyped(&self, object: &Value) -> Option<String> {
        self.builtin_name()?;
        let kind = object.get("kind").and_then(Value::as_str).unwrap_or_default();
        mistyped(self.root(), object, &Path::root())
            .err()
            .map(|fault| fault.message(kind))
    }
}

fn prune(at: At<'_>, value: &mut Value, path: &Path, unknown: &mut Vec<String>) {
    match (at.shape(), value) {
        (Shape::Object { fields, rest }, Value::Object(object)) => {
            let keeps_nulls = at.node.custom;
            object.retain(|key, value| {
                let known = fields.get(key);
                match (known, rest) {
                    (None, Rest::Nothing) => {
                        unknown.push(path.field(key).to_string());
                        false
                    }
                    (Some(_), _) => keeps_nulls || !value.is_null(),
                    (None, _) => true,
                }
            });
            for (key, value) in object {
                if let Some(child) = at.child(key) {
                    let path = if fields.contains_key(key) {
                        path.field(key)
                    } else {
                        path.key(key)
                    };
                    prune(child, value, &path, unknown);
                }
            }
        }
        (Shape::List { .. }, Value::Array(items)) => {
            if let Some(schema) = at.items() {
                for (index, item) in items.iter_mut().enumerate() {
                    prune(schema, item, &path.index(index), unknown);
                }
            }
        }
        (Shape::Scalar(scalar), value) if !at.node.custom => normalise(*scalar, value),
        _ => {}
    }
}

/// What is not of the right type is left for [`mistyped`] to complain about.
fn normalise(scalar: Scalar, value: &mut Value) {
    let spelled = match (scalar, &*value) {
        (Scalar::String, Value::Null) => Some(String::new()),
        (Scalar::Quantity, Value::String(text)) => quantity::canonical(text),
        (Scalar::Quantity, Value::Number(number)) => quantity::canonical(&number.to_string()),
        (Scalar::Time, Value::String(text)) => text.parse::<Timestamp>().ok().map(time_text),
        (Scalar::MicroTime, Value::String(text)) => text.parse::<Timestamp>().ok().map(micro_time_text),
        _ => None,
    };
    if let Some(text) = spelled {
        *value = Value::String(text);
    }
}

/// `metav1.Time`: whole seconds, UTC.
pub(super) fn time_text(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// `metav1.MicroTime`: always six digits.
pub(super) fn micro_time_text(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

enum Fault {
    Type {
        found: &'static str,
        path: Path,
        wanted: &'static str,
    },
    Content(String),
}

impl Fault {
    fn message(&self, kind: &str) -> String {
        match self {
            Self::Type { found, path, wanted } => {
                format!("json: cannot unmarshal {found} into Go struct field {kind}.{path} of type {wanted}")
            }
            Self::Content(text) => text.clone(),
        }
    }
}

fn mistyped(at: At<'_>, value: &Value, path: &Path) -> Result<(), Fault> {
    let wrong = |wanted| {
        Err(Fault::Type {
            found: json_type(value),
            path: path.clone(),
            wanted,
        })
    };
    match (at.shape(), value) {
        (_, Value::Null) | (Shape::Raw(_) | Shape::Deduced, _) => Ok(()),
        (Shape::Object { .. }, Value::Object(object)) => {
            for (key, value) in object {
                if let Some(child) = at.child(key) {
                    mistyped(child, value, &path.field(key))?;
                }
            }
            Ok(())
        }
        (Shape::Object { rest: Rest::Values(_), .. }, _) => wrong("map"),
        (Shape::Object { .. }, _) => wrong("object"),
        (Shape::List { .. }, Value::Array(items)) => match at.items() {
            Some(schema) => items.iter().try_for_each(|item| mistyped(schema, item, path)),
            None => Ok(()),
        },
        (Shape::List { .. }, _) => wrong("array"),
        (Shape::Scalar(scalar), value) => match (scalar, value) {
            (Scalar::String, Value::String(_)) | (Scalar::Bool, Value::Bool(_)) | (Scalar::Number, Value::Number(_)) => Ok(()),
            (Scalar::Int32, Value::Number(number)) if number.as_i64().is_some_and(|n| i32::try_from(n).is_ok()) => Ok(()),
            (Scalar::Int64, Value::Number(number)) if number.as_i64().is_some() => Ok(()),
            (Scalar::IntOrString, Value::String(_)) => Ok(()),
            (Scalar::IntOrString, Value::Number(number)) if number.as_i64().is_some_and(|n| i32::try_from(n).is_ok()) => {
                Ok(())
            }
            (Scalar::Quantity, Value::String(text)) if quantity::canonical(text).is_none() => {
                Err(Fault::Content(
                    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'".to_owned(),
                ))
            }
            (Scalar::Quantity, Value::String(_) | Value::Number(_)) => Ok(()),
            (Scalar::Bytes, Value::String(text)) => match BASE64.decode(text) {
                Ok(_) => Ok(()),
                Err(_) => Err(Fault::Content(format!("illegal base64 data in {path}"))),
            },
            (Scalar::Time | Scalar::MicroTime, Value::String(text)) => match text.parse::<Timestamp>() {
                Ok(_) => Ok(()),
                Err(_) => Err(Fault::Content(format!(
                    "parsing time \"{text}\" as \"2006-01-02T15:04:05Z07:00\": cannot parse \"{text}\" as \"2006\""
                ))),
            },
            (Scalar::Int32 | Scalar::Int64, Value::Number(number)) => Err(Fault::Content(format!(
                "json: cannot unmarshal number {number} into Go struct field {path} of type {}",
                go_type(*scalar)
            ))),
            (scalar, _) => wrong(go_type(*scalar)),
        },
    }
}

fn go_type(scalar: Scalar) -> &'static str {
    match scalar {
        Scalar::String => "string",
        Scalar::Int32 => "int32",
        Scalar::Int64 => "int64",
        Scalar::Number => "float64",
        Scalar::Bool => "bool",
        Scalar::Bytes => "[]uint8",
        Scalar::Time => "v1.Time",
        Scalar::MicroTime => "v1.MicroTime",
        Scalar::Quantity => "resource.Quantity",
        Scalar::IntOrString => "intstr.IntOrString",
    }
}

fn json_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::Schema;

    fn deployment() -> Schema {
        Schema::for_kind("apps", "v1", "Deployment").expect("Deployment is built in")
    }

    #[test]
    fn unknown_fields_go_and_are_named() {
        let mut object = json!({
            "metadata": {"name": "web", "creationTimestamp": null, "labels": {"app": "web"}},
            "spec": {"replica": 1, "template": {"spec": {"containers": [{"name": "a", "imagge": "b"}]}}},
            "status": {},
        });
        let unknown = deployment().prune(&mut object);
        assert_eq!(
            unknown,
            ["spec.replica", "spec.template.spec.containers[0].imagge"]
        );
        assert_eq!(
            object,
            json!({
                "metadata": {"name": "web", "labels": {"app": "web"}},
                "spec": {"template": {"spec": {"containers": [{"name": "a"}]}}},
                "status": {},
            })
        );
    }

    #[test]
    fn quantities_and_times_get_one_spelling() {
        let schema = Schema::for_kind("", "v1", "Pod").expect("Pod is built in");
        let mut object = json!({
            "metadata": {"creationTimestamp": "2026-01-02T03:04:05.678+01:00"},
            "spec": {"containers": [{"resources": {"limits": {"cpu": 0.5, "memory": "1024Mi"}}}]},
        });
        assert_eq!(schema.prune(&mut object), Vec::<String>::new());
        assert_eq!(object["metadata"]["creationTimestamp"], "2026-01-02T02:04:05Z");
        assert_eq!(
            object["spec"]["containers"][0]["resources"]["limits"],
            json!({"cpu": "500m", "memory": "1Gi"})
        );
    }

    #[test]
    fn a_string_is_no_number() {
        let object = json!({"kind": "Deployment", "spec": {"replicas": "three"}});
        assert_eq!(
            deployment().mistyped(&object).as_deref(),
            Some("json: cannot unmarshal string into Go struct field Deployment.spec.replicas of type int32")
        );
    }
}
