//! The types of CEL, what a schema's values are in them, and the names that fields have there.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde_json::{Value, json};

use super::parse::{KEYWORDS, RESERVED};

#[derive(Clone, Debug)]
pub(super) enum Type {
    /// Anything; what it is shows when it is evaluated.
    Dyn,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    String,
    Bytes,
    Duration,
    Timestamp,
    /// Of types themselves, which are values too.
    Kind,
    List(Arc<Self>),
    Map(Arc<(Self, Self)>),
    Object(Arc<Object>),
    Optional(Arc<Self>),
    /// Of Kubernetes' libraries.
    Opaque(&'static str),
    /// In signatures: whatever it is, the same everywhere.
    Any(char),
}

/// The declared properties of a schema, which are all that can be seen.
#[derive(Debug)]
pub(super) struct Object {
    /// By their name in CEL.
    pub fields: BTreeMap<String, Field>,
}

#[derive(Debug)]
pub(super) struct Field {
    /// In JSON.
    pub name: String,
    pub ty: Type,
}

pub(super) const QUANTITY: Type = Type::Opaque("kubernetes.Quantity");
pub(super) const URL: Type = Type::Opaque("kubernetes.URL");
pub(super) const IP: Type = Type::Opaque("net.IP");
pub(super) const CIDR: Type = Type::Opaque("net.CIDR");

impl Type {
    pub(super) fn list(items: Self) -> Self {
        Self::List(Arc::new(items))
    }

    pub(super) fn map(keys: Self, values: Self) -> Self {
        Self::Map(Arc::new((keys, values)))
    }

    pub(super) fn optional(inner: Self) -> Self {
        Self::Optional(Arc::new(inner))
    }

    /// What the values of a schema are, if rules can see them. Schemas nest no deeper than their reader allows.
    pub(super) fn of_schema(schema: &Value, place: Place) -> Option<Self> {
        let flag = |name: &str| schema.get(name).and_then(Value::as_bool) == Some(true);
        if flag("x-kubernetes-int-or-string") {
            return Some(Self::Dyn);
        }
        let text = |name: &str| schema.get(name).and_then(Value::as_str);
        Some(match text("type")? {
            "boolean" => Self::Bool,
            "integer" => Self::Int,
            "number" => Self::Double,
            "string" => match text("format") {
                Some("byte") => Self::Bytes,
                Some("duration") => Self::Duration,
                Some("date" | "date-time") => Self::Timestamp,
                _ => Self::String,
            },
            "array" => Self::list(Self::of_schema(schema.get("items")?, Place::Inside)?),
            "object" => match schema.get("additionalProperties") {
                Some(values @ Value::Object(_)) => {
                    Self::map(Self::String, Self::of_schema(values, Place::Inside)?)
                }
                _ => {
                    let root = place == Place::Root || flag("x-kubernetes-embedded-resource");
                    Self::Object(Arc::new(Object::of_schema(schema, root)))
                }
            },
            _ => return None,
        })
    }

    /// Whether a value of type `from` can stand where one of this type is wanted.
    pub(super) fn takes(&self, from: &Self) -> bool {
        match (self, from) {
            (Self::Dyn, _) | (_, Self::Dyn) => true,
            (Self::List(one), Self::List(other)) | (Self::Optional(one), Self::Optional(other)) => {
                one.takes(other)
            }
            (Self::Map(one), Self::Map(other)) => one.0.takes(&other.0) && one.1.takes(&other.1),
            (Self::Object(one), Self::Object(other)) => Arc::ptr_eq(one, other),
            (Self::Opaque(one), Self::Opaque(other)) => one == other,
            (Self::Any(one), Self::Any(other)) => one == other,
            (
                Self::Object(_) | Self::Duration | Self::Timestamp | Self::Optional(_) | Self::Opaque(_),
                Self::Null,
            ) => true,
            (one, other) => std::mem::discriminant(one) == std::mem::discriminant(other),
        }
    }

    /// Whether `actual` fits this part of a signature, together with what the letters already stand for.
    pub(super) fn unify(&self, actual: &Self, bound: &mut BTreeMap<char, Self>) -> bool {
        match (self, actual) {
            (Self::Any(letter), _) => match bound.get(letter) {
                Some(known) if known.takes(actual) => true,
                Some(known) if !actual.takes(known) => false,
                _ => {
                    bound.insert(*letter, actual.clone());
                    true
                }
            },
            (Self::List(one), Self::List(other)) | (Self::Optional(one), Self::Optional(other)) => {
                one.unify(other, bound)
            }
            (Self::Map(one), Self::Map(other)) => {
                one.0.unify(&other.0, bound) && one.1.unify(&other.1, bound)
            }
            _ => self.takes(actual),
        }
    }

    /// With letters replaced by what they stand for.
    pub(super) fn resolve(&self, bound: &BTreeMap<char, Self>) -> Self {
        match self {
            Self::Any(letter) => bound.get(letter).cloned().unwrap_or(Self::Dyn),
            Self::List(items) => Self::list(items.resolve(bound)),
            Self::Optional(inner) => Self::optional(inner.resolve(bound)),
            Self::Map(inner) => Self::map(inner.0.resolve(bound), inner.1.resolve(bound)),
            other => other.clone(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Root,
    Inside,
}

impl Object {
    fn of_schema(schema: &Value, root: bool) -> Self {
        let properties = schema.get("properties").and_then(Value::as_object);
        let mut fields = BTreeMap::new();
        let mut add = |name: &str, schema: &Value| {
            if let (Some(escaped), Some(ty)) = (escape(name), Type::of_schema(schema, Place::Inside)) {
                let name = name.to_owned();
                fields.insert(escaped, Field { name, ty });
            }
        };
        for (name, schema) in properties.into_iter().flatten() {
            add(name, schema);
        }
        if root {
            let text = || json!({"type": "string"});
            let metadata = json!({"name": text(), "generateName": text()});
            add("apiVersion", &text());
            add("kind", &text());
            add("metadata", &json!({"type": "object", "properties": metadata}));
        }
        Self { fields }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::List(items) => write!(f, "list({items})"),
            Self::Map(inner) => write!(f, "map({}, {})", inner.0, inner.1),
            Self::Optional(inner) => write!(f, "optional_type({inner})"),
            Self::Opaque(name) => f.write_str(name),
            Self::Any(letter) => write!(f, "{letter}"),
            Self::Dyn => f.write_str("dyn"),
            Self::Null => f.write_str("null"),
            Self::Bool => f.write_str("bool"),
            Self::Int => f.write_str("int"),
            Self::Uint => f.write_str("uint"),
            Self::Double => f.write_str("double"),
            Self::String => f.write_str("string"),
            Self::Bytes => f.write_str("bytes"),
            Self::Duration => f.write_str("google.protobuf.Duration"),
            Self::Timestamp => f.write_str("google.protobuf.Timestamp"),
            Self::Kind => f.write_str("type"),
            Self::Object(_) => f.write_str("object"),
        }
    }
}

/// The name of a property in CEL, if it can have one.
pub(super) fn escape(name: &str) -> Option<String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_.-/".contains(c);
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) || !name.chars().all(allowed) {
        return None;
    }
    // What CEL has other uses for is written `__name__`.
    if KEYWORDS.contains(&name) || RESERVED.contains(&name) {
        return Some(format!("__{name}__"));
    }
    let underscores = name.replace("__", "__underscores__");
    let dots = underscores.replace('.', "__dot__");
    Some(dots.replace('-', "__dash__").replace('/', "__slash__"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_are_escaped_as_kubernetes_escapes_them() {
        for (name, expected) in [
            ("plain", Some("plain")),
            ("namespace", Some("__namespace__")),
            ("a.b-c/d", Some("a__dot__b__dash__c__slash__d")),
            ("a__b", Some("a__underscores__b")),
            ("9lives", None),
            ("a b", None),
        ] {
            assert_eq!(super::escape(name).as_deref(), expected, "{name}");
        }
    }
}
