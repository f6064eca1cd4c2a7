//! The values of CEL. Those of an object are looked at where they are, through their schema's type.
//!
//! Copies are cheap (a pointer at most), so that what a variable holds can be large. What costs in proportion to a
//! value's size, like comparing, is the evaluator's, which counts it.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::Arc;

use base64::Engine as _;
use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::types::{Object, Type};
use super::url::Url;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Val<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Text<'a>),
    Bytes(Arc<[u8]>),
    Duration(SignedDuration),
    Timestamp(Timestamp),
    /// By its name.
    Type(&'static str),
    List(List<'a>),
    Map(Map<'a>),
    Optional(Option<Arc<Self>>),
    /// In billionths.
    Quantity(i128),
    Url(Arc<Url>),
    Ip(IpAddr),
    Cidr(IpNet),
}

/// Text of the object, or made by the expression.
#[derive(Clone, Debug)]
pub(super) enum Text<'a> {
    Seen(&'a str),
    Made(Arc<str>),
}

#[derive(Clone, Debug)]
pub(super) enum List<'a> {
    Seen(&'a [Value], Arc<Type>),
    Made(Arc<Vec<Val<'a>>>),
}

#[derive(Clone, Debug)]
pub(super) enum Map<'a> {
    /// With declared properties.
    Object(&'a serde_json::Map<String, Value>, Arc<Object>),
    /// With values of one type.
    Seen(&'a serde_json::Map<String, Value>, Type),
    Made(Arc<BTreeMap<Key<'a>, Val<'a>>>),
}

/// Numbers are the same key whatever their type.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key<'a> {
    Bool(bool),
    Number(i128),
    Text(Text<'a>),
}

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Self::Seen(text) => text,
            Self::Made(text) => text,
        }
    }
}

impl From<String> for Text<'_> {
    fn from(text: String) -> Self {
        Self::Made(text.into())
    }
}

impl PartialEq for Text<'_> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Text<'_> {}

impl PartialOrd for Text<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Text<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        (**self).cmp(&**other)
    }
}

/// Of lists and maps this is for tests: items that don't fit their schema are unlike any other.
impl PartialEq for List<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().eq(other.iter())
    }
}

impl PartialEq for Map<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.entries() == other.entries()
    }
}

/// A value that is not what its schema says.
pub(super) type Misfit = String;

impl<'a> Val<'a> {
    pub(super) fn text(text: impl Into<String>) -> Self {
        Self::String(Text::from(text.into()))
    }

    pub(super) fn list(items: Vec<Self>) -> Self {
        Self::List(List::Made(Arc::new(items)))
    }

    pub(super) fn some(value: Self) -> Self {
        Self::Optional(Some(Arc::new(value)))
    }

    /// A part of an object as its schema's type.
    pub(super) fn of(value: &'a Value, ty: &Type) -> Result<Self, Misfit> {
        let misfit = || format!("invalid data, expected {ty}");
        Ok(match (value, ty) {
            (Value::Null, _) => Self::Null,
            (Value::Bool(value), Type::Bool | Type::Dyn) => Self::Bool(*value),
            (Value::Number(number), Type::Double) => Self::Double(number.as_f64().ok_or_else(misfit)?),
            (Value::Number(number), Type::Int | Type::Dyn) => match (number.as_i64(), number.as_f64()) {
                (Some(number), _) => Self::Int(number),
                // A whole number may be written with a point.
                (None, Some(number)) if number.fract() == 0.0 && number.abs() < 9e18 => {
                    Self::Int(number as i64)
                }
                _ => return Err(misfit()),
            },
            (Value::String(text), Type::String | Type::Dyn) => Self::String(Text::Seen(text)),
            (Value::String(text), Type::Bytes) => {
                let bytes = base64::engine::general_purpose::STANDARD.decode(text);
                Self::Bytes(bytes.map_err(|_| misfit())?.into())
            }
            (Value::String(text), Type::Duration) => Self::Duration(duration(text).ok_or_else(misfit)?),
            (Value::String(text), Type::Timestamp) => {
                let date = || format!("{text}T00:00:00Z").parse();
                Self::Timestamp(text.parse().or_else(|_| date()).map_err(|_| misfit())?)
            }
            (Value::Array(items), Type::List(ty)) => Self::List(List::Seen(items, ty.clone())),
            (Value::Object(fields), Type::Map(inner)) => Self::Map(Map::Seen(fields, inner.1.clone())),
            (Value::Object(fields), Type::Object(object)) => Self::Map(Map::Object(fields, object.clone())),
            _ => return Err(misfit()),
        })
    }

    pub(super) fn type_name(&self) -> &'static str {
        match self {
            Self::Null => "null_type",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Uint(_) => "uint",
            Self::Double(_) => "double",
            Self::String(_) => "string",
            Self::Bytes(_) => "bytes",
            Self::Duration(_) => "google.protobuf.Duration",
            Self::Timestamp(_) => "google.protobuf.Timestamp",
            Self::Type(_) => "type",
            Self::List(_) => "list",
            Self::Map(Map::Object(..)) => "object",
            Self::Map(_) => "map",
            Self::Optional(_) => "optional_type",
            Self::Quantity(_) => "kubernetes.Quantity",
            Self::Url(_) => "kubernetes.URL",
            Self::Ip(_) => "net.IP",
            Self::Cidr(_) => "net.CIDR",
        }
    }

    /// What it is as a key of a map; some types can't be one.
    pub(super) fn key(&self) -> Option<Key<'a>> {
        Some(match self {
            Self::Bool(value) => Key::Bool(*value),
            Self::Int(number) => Key::Number((*number).into()),
            Self::Uint(number) => Key::Number((*number).into()),
            Self::Double(number) if number.fract() == 0.0 => Key::Number(*number as i128),
            Self::String(text) => Key::Text(text.clone()),
            _ => return None,
        })
    }

    pub(super) fn is_zero(&self) -> bool {
        match self {
            Self::Null | Self::Optional(None) => true,
            Self::Bool(value) => !value,
            Self::Int(number) => *number == 0,
            Self::Uint(number) => *number == 0,
            Self::Double(number) => *number == 0.0,
            Self::String(text) => text.is_empty(),
            Self::Bytes(bytes) => bytes.is_empty(),
            Self::Duration(duration) => duration.is_zero(),
            Self::List(list) => list.len() == 0,
            Self::Map(map) => map.len() == 0,
            _ => false,
        }
    }
}

impl From<Key<'_>> for Val<'_> {
    fn from(key: Key<'_>) -> Self {
        match key {
            Key::Bool(value) => Self::Bool(value),
            Key::Number(number) => match i64::try_from(number) {
                Ok(number) => Self::Int(number),
                Err(_) => Self::Uint(u64::try_from(number).unwrap_or_default()),
            },
            Key::Text(text) => Self::text(&*text),
        }
    }
}

impl<'a> List<'a> {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Seen(items, _) => items.len(),
            Self::Made(items) => items.len(),
        }
    }

    pub(super) fn get(&self, index: usize) -> Option<Result<Val<'a>, Misfit>> {
        match self {
            Self::Seen(items, ty) => items.get(index).map(|item| Val::of(item, ty)),
            Self::Made(items) => items.get(index).cloned().map(Ok),
        }
    }

    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = Result<Val<'a>, Misfit>> {
        (0..self.len()).filter_map(|index| self.get(index))
    }
}

impl<'a> Map<'a> {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Object(..) => self.keys().len(),
            Self::Seen(fields, _) => fields.len(),
            Self::Made(entries) => entries.len(),
        }
    }

    pub(super) fn get(&self, key: &Key<'_>) -> Option<Result<Val<'a>, Misfit>> {
        match (self, key) {
            (Self::Object(fields, object), Key::Text(name)) => {
                let field = object.fields.get(&**name)?;
                Some(Val::of(fields.get(&field.name)?, &field.ty))
            }
            (Self::Seen(fields, ty), Key::Text(name)) => Some(Val::of(fields.get(&**name)?, ty)),
            (Self::Made(entries), key) => entries.get(key).cloned().map(Ok),
            _ => None,
        }
    }

    /// Of an object those that are declared.
    pub(super) fn keys(&self) -> Vec<Key<'a>> {
        match self {
            Self::Object(fields, object) => {
                let declared = object
                    .fields
                    .iter()
                    .filter(|(_, field)| fields.contains_key(&field.name));
                declared
                    .map(|(name, _)| Key::Text(Text::from(name.clone())))
                    .collect()
            }
            Self::Seen(fields, _) => fields.keys().map(|name| Key::Text(Text::Seen(name))).collect(),
            Self::Made(entries) => entries.keys().cloned().collect(),
        }
    }

    pub(super) fn entries(&self) -> Vec<(Key<'a>, Result<Val<'a>, Misfit>)> {
        let with_value = |key: Key<'a>| Some((key.clone(), self.get(&key)?));
        self.keys().into_iter().filter_map(with_value).collect()
    }
}

/// Go's durations: `1h30m`, `-1.5s`, `0`.
pub(super) fn duration(text: &str) -> Option<SignedDuration> {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    if unsigned == "0" {
        return Some(SignedDuration::ZERO);
    }
    let mut rest = unsigned;
    let mut nanos = 0_i128;
    while !rest.is_empty() {
        let after = rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
        let number = rest.strip_suffix(after)?;
        let end = after
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(after.len());
        let (unit, next) = after.split_at(end);
        let unit: i128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let whole: i128 = format!("0{whole}").parse().ok()?;
        // More digits say nothing of nanoseconds.
        let fraction = fraction.get(..fraction.len().min(15))?;
        let scale = 10_i128.pow(u32::try_from(fraction.len()).ok()?);
        let fraction: i128 = format!("0{fraction}").parse().ok()?;
        nanos = nanos
            .checked_add(whole.checked_mul(unit)?)?
            .checked_add(fraction * unit / scale)?;
        rest = next;
    }
    let signed = if text.starts_with('-') { -nanos } else { nanos };
    // As far as Go's go.
    let nanos = i64::try_from(signed).ok().filter(|_| !unsigned.is_empty())?;
    Some(SignedDuration::from_nanos(nanos))
}
