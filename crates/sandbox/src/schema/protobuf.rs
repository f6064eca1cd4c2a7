//! Kubernetes protobuf to JSON: what kubectl and Go controllers send for built-in kinds.
//!
//! One interpreter over the table, no code per kind. A body is four magic bytes and an envelope with kind and raw
//! message. Go writes plain values even when they are zero, so a zero means absence unless the table says that the
//! field is a pointer or required. Unknown fields are skipped, as protobuf wants; unknown kinds are refused by name,
//! because half-decoded objects fail far away from the cause.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::Timestamp;
use serde_json::{Map, Value};

use super::convert::{micro_time_text, time_text};
use super::tree::{At, Field, NodeId, Raw, Rest, Scalar, Shape, Tag, table};

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DecodeError {
    #[error("the body is not Kubernetes protobuf: it does not begin with \"k8s\\0\"")]
    Magic,
    /// Answer 415, so that the client can try JSON.
    #[error("no protobuf form is known for kind {kind:?} in version {api_version:?}")]
    UnknownKind { api_version: String, kind: String },
    #[error("the protobuf body is malformed: {0}")]
    Malformed(&'static str),
}

use DecodeError::Malformed;

const MAGIC: &[u8] = b"k8s\0";
/// Schemas in CRDs nest; anything deeper than this is an attack.
const DEPTH_MAX: usize = 100;

/// Decodes a whole body, envelope and all.
pub fn decode(body: &[u8]) -> Result<Value, DecodeError> {
    decode_envelope(body, DEPTH_MAX)
}

fn decode_envelope(body: &[u8], depth: usize) -> Result<Value, DecodeError> {
    let depth = deeper(depth)?;
    let envelope = body.strip_prefix(MAGIC).ok_or(DecodeError::Magic)?;
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    for part in Parts(envelope) {
        match part? {
            (1, Wire::Bytes(meta)) => {
                for part in Parts(meta) {
                    match part? {
                        (1, Wire::Bytes(bytes)) => api_version = utf8(bytes)?,
                        (2, Wire::Bytes(bytes)) => kind = utf8(bytes)?,
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(bytes)) => raw = bytes,
            (3, Wire::Bytes(encoding)) if !encoding.is_empty() => {
                return Err(Malformed("its content is encoded"));
            }
            _ => {}
        }
    }
    let table = table();
    let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
    // Options take the version of what they act on.
    let (group, version) = if kind == "DeleteOptions" {
        ("", "v1")
    } else {
        (group, version)
    };
    let Some(name) = table
        .kinds
        .get(&(group.to_owned(), version.to_owned(), kind.clone()))
    else {
        return Err(DecodeError::UnknownKind { api_version, kind });
    };
    let mut object = Map::new();
    object.insert("apiVersion".to_owned(), Value::String(api_version));
    object.insert("kind".to_owned(), Value::String(kind));
    message(table.tree.at(table.names[name]), raw, None, depth, &mut object)?;
    Ok(Value::Object(object))
}

fn deeper(depth: usize) -> Result<usize, DecodeError> {
    depth.checked_sub(1).ok_or(Malformed("it nests too deeply"))
}

/// Protobuf knows fields by number.
struct Index {
    fields: BTreeMap<(NodeId, Tag), (&'static str, &'static Field)>,
    /// Messages whose fields JSON puts into the parent.
    inlined: BTreeSet<(NodeId, u32)>,
}

fn index() -> &'static Index {
    static INDEX: LazyLock<Index> = LazyLock::new(|| {
        let table = table();
        let mut index = Index {
            fields: BTreeMap::new(),
            inlined: BTreeSet::new(),
        };
        for id in table.names.values() {
            let Shape::Object { fields, .. } = table.tree.at(*id).shape() else {
                continue;
            };
            for (name, field) in fields {
                let Some(tag) = field.tag else { continue };
                index.inlined.extend(tag.inside.map(|inside| (*id, inside)));
                index.fields.insert((*id, tag), (name, field));
            }
        }
        index
    });
    &INDEX
}

fn message(
    at: At<'static>,
    bytes: &[u8],
    inside: Option<u32>,
    depth: usize,
    object: &mut Map<String, Value>,
) -> Result<(), DecodeError> {
    let depth = deeper(depth)?;
    let index = index();
    for part in Parts(bytes) {
        let (number, wire) = part?;
        if inside.is_none() && index.inlined.contains(&(at.id, number)) {
            message(at, wire.bytes()?, Some(number), depth, object)?;
            continue;
        }
        let Some((name, field)) = index.fields.get(&(at.id, Tag { inside, number })) else {
            continue;
        };
        let schema = at.go(field.node);
        match schema.shape() {
            Shape::List { .. } => {
                let items = schema.items().ok_or(Malformed("a list has no items"))?;
                let list = object.entry(*name).or_insert_with(|| Value::Array(Vec::new()));
                let Value::Array(list) = list else { continue };
                if let (Shape::Scalar(Scalar::Int32 | Scalar::Int64), Wire::Bytes(packed)) =
                    (items.shape(), &wire)
                {
                    let mut packed = *packed;
                    while !packed.is_empty() {
                        list.push(Value::from(varint(&mut packed)?.cast_signed()));
                    }
                } else {
                    list.push(value(items, &wire, depth)?.unwrap_or_default());
                }
            }
            Shape::Object {
                rest: Rest::Values(values),
                ..
            } => {
                let (key, entry) = map_entry(at.go(*values), wire.bytes()?, depth)?;
                let map = object.entry(*name).or_insert_with(|| Value::Object(Map::new()));
                if let Value::Object(map) = map {
                    map.insert(key, entry);
                }
            }
            _ => {
                let Some(value) = value(schema, &wire, depth)? else {
                    continue;
                };
                if field.required || field.pointer || !is_zero(schema, &value) {
                    object.insert((*name).to_owned(), value);
                }
            }
        }
    }
    Ok(())
}

fn map_entry(values: At<'static>, bytes: &[u8], depth: usize) -> Result<(String, Value), DecodeError> {
    let (mut key, mut entry) = (String::new(), None);
    for part in Parts(bytes) {
        match part? {
            (1, wire) => key = utf8(wire.bytes()?)?,
            (2, wire) => entry = value(values, &wire, depth)?,
            _ => {}
        }
    }
    let entry = match (entry, values.shape()) {
        (Some(entry), _) => entry,
        (None, Shape::Scalar(Scalar::Quantity)) => Value::from("0"),
        (None, Shape::Scalar(Scalar::Time | Scalar::MicroTime)) => Value::Null,
        (None, Shape::Scalar(_)) => Value::from(""),
        (None, Shape::List { .. }) => Value::Array(Vec::new()),
        (None, _) => Value::Object(Map::new()),
    };
    Ok((key, entry))
}

/// `None` for what stands for nothing, such as the zero time.
fn value(at: At<'static>, wire: &Wire<'_>, depth: usize) -> Result<Option<Value>, DecodeError> {
    let depth = deeper(depth)?;
    let found = match at.shape() {
        Shape::Object { .. } => {
            let mut object = Map::new();
            message(at, wire.bytes()?, None, depth, &mut object)?;
            Value::Object(object)
        }
        // Lists appear here as the values of maps, wrapped in a message (`ExtraValue`).
        Shape::List { .. } => {
            let items = at.items().ok_or(Malformed("a list has no items"))?;
            let mut list = Vec::new();
            for part in Parts(wire.bytes()?) {
                if let (1, wire) = part? {
                    list.extend(value(items, &wire, depth)?);
                }
            }
            Value::Array(list)
        }
        Shape::Raw(raw) => return raw_value(*raw, wire.bytes()?, depth),
        Shape::Deduced => return raw_value(Raw::Json, wire.bytes()?, depth),
        Shape::Scalar(scalar) => return scalar_value(*scalar, wire),
    };
    Ok(Some(found))
}

fn scalar_value(scalar: Scalar, wire: &Wire<'_>) -> Result<Option<Value>, DecodeError> {
    Ok(Some(match scalar {
        Scalar::String => Value::String(utf8(wire.bytes()?)?),
        Scalar::Bytes => Value::String(BASE64.encode(wire.bytes()?)),
        Scalar::Int32 | Scalar::Int64 => Value::from(wire.integer()?.cast_signed()),
        Scalar::Bool => Value::from(wire.integer()? != 0),
        Scalar::Number => {
            let Wire::Fixed64(bits) = wire else {
                return Err(Malformed("a number is not a double"));
            };
            number(f64::from_bits(*bits)).ok_or(Malformed("a number is not finite"))?
        }
        Scalar::Quantity => {
            let mut text = "0".to_owned();
            for part in Parts(wire.bytes()?) {
                if let (1, Wire::Bytes(bytes)) = part? {
                    text = utf8(bytes)?;
                }
            }
            Value::String(text)
        }
        Scalar::IntOrString => {
            let (mut is_text, mut number, mut text) = (false, 0, String::new());
            for part in Parts(wire.bytes()?) {
                match part? {
                    (1, wire) => is_text = wire.integer()? != 0,
                    (2, wire) => number = wire.integer()?.cast_signed(),
                    (3, wire) => text = utf8(wire.bytes()?)?,
                    _ => {}
                }
            }
            if is_text {
                Value::String(text)
            } else {
                Value::from(number)
            }
        }
        Scalar::Time | Scalar::MicroTime => {
            let (mut seconds, mut nanos) = (None, 0);
            for part in Parts(wire.bytes()?) {
                match part? {
                    (1, wire) => seconds = Some(wire.integer()?.cast_signed()),
                    (2, wire) => nanos = wire.integer()?.cast_signed(),
                    _ => {}
                }
            }
            let Some(seconds) = seconds else { return Ok(None) };
            let nanos = i32::try_from(nanos).map_err(|_| Malformed("a time is out of range"))?;
            let time = Timestamp::new(seconds, nanos).map_err(|_| Malformed("a time is out of range"))?;
            Value::String(if scalar == Scalar::Time {
                time_text(time)
            } else {
                micro_time_text(time)
            })
        }
    }))
}

/// Whole numbers appear in JSON without a fraction, as Go writes them.
fn number(double: f64) -> Option<Value> {
    const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
    if double.fract() == 0.0 && double.abs() < EXACT_MAX {
        #[expect(clippy::cast_possible_truncation, reason = "it is whole and in range")]
        return Some(Value::from(double as i64));
    }
    serde_json::Number::from_f64(double).map(Value::Number)
}

fn raw_value(raw: Raw, bytes: &[u8], depth: usize) -> Result<Option<Value>, DecodeError> {
    let table = table();
    let schema = |wire: &Wire<'_>| {
        let mut object = Map::new();
        let at = table.tree.at(table.names["apiextensions.v1.JSONSchemaProps"]);
        message(at, wire.bytes()?, None, depth, &mut object)?;
        Ok(Value::Object(object))
    };
    let mut found = None;
    let mut list = Vec::new();
    for part in Parts(bytes) {
        match (raw, part?) {
            (Raw::Json, (1, wire)) => {
                let bytes = wire.bytes()?;
                if bytes.starts_with(MAGIC) {
                    found = Some(decode_envelope(bytes, depth)?);
                } else if !bytes.is_empty() {
                    found = Some(
                        serde_json::from_slice(bytes).map_err(|_| Malformed("a raw value is not JSON"))?,
                    );
                }
            }
            (Raw::Schemas | Raw::SchemaOrStrings, (1, wire)) | (Raw::SchemaOrBool, (2, wire)) => {
                found = Some(schema(&wire)?)
            }
            (Raw::SchemaOrBool, (1, wire)) if found.is_none() => {
                found = Some(Value::from(wire.integer()? != 0))
            }
            (Raw::Schemas, (2, wire)) => list.push(schema(&wire)?),
            (Raw::SchemaOrStrings, (2, wire)) => list.push(Value::String(utf8(wire.bytes()?)?)),
            _ => {}
        }
    }
    Ok(if list.is_empty() {
        found
    } else {
        Some(Value::Array(list))
    })
}

fn is_zero(at: At<'_>, value: &Value) -> bool {
    // A port or a divisor of zero is written out in JSON too.
    if matches!(at.shape(), Shape::Scalar(Scalar::IntOrString | Scalar::Quantity)) {
        return false;
    }
    match value {
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

fn utf8(bytes: &[u8]) -> Result<String, DecodeError> {
    std::str::from_utf8(bytes)
        .map(str::to_owned)
        .map_err(|_| Malformed("a string is not UTF-8"))
}

enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    Fixed32,
}

impl<'a> Wire<'a> {
    fn bytes(&self) -> Result<&'a [u8], DecodeError> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            _ => Err(Malformed("a field has the wrong wire type")),
        }
    }

    fn integer(&self) -> Result<u64, DecodeError> {
        match self {
            Self::Varint(number) => Ok(*number),
            _ => Err(Malformed("a field has the wrong wire type")),
        }
    }
}

/// The fields of one message, in the order of the wire. Ends after the first fault.
struct Parts<'a>(&'a [u8]);

impl<'a> Iterator for Parts<'a> {
    type Item = Result<(u32, Wire<'a>), DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let part = read_part(&mut self.0);
        if part.is_err() {
            self.0 = &[];
        }
        Some(part)
    }
}

fn read_part<'a>(rest: &mut &'a [u8]) -> Result<(u32, Wire<'a>), DecodeError> {
    let key = varint(rest)?;
    let number = u32::try_from(key >> 3).map_err(|_| Malformed("a field number is out of range"))?;
    let wire = match key & 7 {
        0 => Wire::Varint(varint(rest)?),
        1 => {
            let bytes: [u8; 8] = take(rest, 8)?
                .try_into()
                .map_err(|_| Malformed("it ends early"))?;
            Wire::Fixed64(u64::from_le_bytes(bytes))
        }
        2 => {
            let length = usize::try_from(varint(rest)?).map_err(|_| Malformed("a length is out of range"))?;
            Wire::Bytes(take(rest, length)?)
        }
        5 => {
            take(rest, 4)?;
            Wire::Fixed32
        }
        _ => return Err(Malformed("a field has a wire type that Kubernetes doesn't use")),
    };
    Ok((number, wire))
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8], DecodeError> {
    let (taken, left) = rest.split_at_checked(length).ok_or(Malformed("it ends early"))?;
    *rest = left;
    Ok(taken)
}

fn varint(rest: &mut &[u8]) -> Result<u64, DecodeError> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let [byte] = take(rest, 1)? else {
            return Err(Malformed("it ends early"));
        };
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(Malformed("a varint is too long"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn varint_bytes(mut number: usize) -> Vec<u8> {
        let mut out = Vec::new();
        while number >= 0x80 {
            out.push((number & 0x7f) as u8 | 0x80);
            number >>= 7;
        }
        out.push((number & 0x7f) as u8);
        out
    }

    fn bytes_field(number: usize, bytes: &[u8]) -> Vec<u8> {
        [
            varint_bytes(number << 3 | 2),
            varint_bytes(bytes.len()),
            bytes.to_vec(),
        ]
        .concat()
    }

    fn envelope(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
        let meta = [
            bytes_field(1, api_version.as_bytes()),
            bytes_field(2, kind.as_bytes()),
        ]
        .concat();
        [MAGIC.to_vec(), bytes_field(1, &meta), bytes_field(2, raw)].concat()
    }

    /// What kubectl 1.33 sends for `create deployment web --image=nginx --replicas=0 --port=80`.
    const KUBECTL_CREATE_DEPLOYMENT: &[u8] =
        b"k8s\x00\x0a\x15\x0a\x07apps/v1\x12\x0aDeployment\x12\xb8\x01\x0a\x1f\x0a\x03web\x12\x00\x1a\x00\
        \"\x00*\x002\x008\x00B\x00Z\x0a\x0a\x03app\x12\x03web\x12\x86\x01\x08\x00\x12\x0c\x0a\x0a\x0a\
        \x03app\x12\x03web\x1al\x0a\x1c\x0a\x00\x12\x00\x1a\x00\"\x00*\x002\x008\x00B\x00Z\x0a\x0a\x03ap\
        p\x12\x03web\x12L\x12.\x0a\x05nginx\x12\x05nginx*\x002\x0a\x0a\x00\x10\x00\x18P\"\x00*\x00B\x00j\
        \x00r\x00\x80\x01\x00\x88\x01\x00\x90\x01\x00\xa2\x01\x00\x1a\x002\x00B\x00J\x00R\x00X\x00`\x00h\
        \x00\x82\x01\x00\x8a\x01\x00\x9a\x01\x00\xc2\x01\x00\"\x02\x0a\x00(\x008\x00\x1a\x0c\x08\x00\x10\
        \x00\x18\x00 \x00(\x008\x00\x1a\x00\"\x00";

    #[test]
    fn kubectl_creates_a_deployment() {
        let container =
            json!({"image": "nginx", "name": "nginx", "ports": [{"containerPort": 80}], "resources": {}});
        assert_eq!(
            decode(KUBECTL_CREATE_DEPLOYMENT),
            Ok(json!({
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "metadata": {"labels": {"app": "web"}, "name": "web"},
                "spec": {
                    "replicas": 0,
                    "selector": {"matchLabels": {"app": "web"}},
                    "strategy": {},
                    "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [container]}},
                },
                "status": {},
            }))
        );
    }

    #[test]
    fn zero_is_absence_except_in_pointers() {
        // spec { replicas: 0, minReadySeconds: 0 }, metadata { uid: "", creationTimestamp {} }
        let spec = [vec![1 << 3, 0], vec![5 << 3, 0]].concat();
        let metadata = [bytes_field(5, b""), bytes_field(8, b"")].concat();
        let raw = [bytes_field(1, &metadata), bytes_field(2, &spec)].concat();
        assert_eq!(
            decode(&envelope("apps/v1", "Deployment", &raw)),
            Ok(
                json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {}, "spec": {"replicas": 0}})
            )
        );
    }

    #[test]
    fn schemas_in_schemas_are_decoded() {
        let string = bytes_field(5, b"string");
        let schema = [
            bytes_field(5, b"object"),
            [vec![9 << 3 | 1], 10_f64.to_le_bytes().to_vec()].concat(),
            bytes_field(24, &bytes_field(1, &string)),
            bytes_field(30, &[1 << 3, 1]),
            bytes_field(20, &bytes_field(1, b"\"x\"")),
        ];
        let version = [
            bytes_field(1, b"v1"),
            bytes_field(4, &bytes_field(1, &schema.concat())),
        ]
        .concat();
        let raw = bytes_field(2, &bytes_field(7, &version));
        let decoded = decode(&envelope(
            "apiextensions.k8s.io/v1",
            "CustomResourceDefinition",
            &raw,
        ))
        .expect("it is sound");
        assert_eq!(
            decoded["spec"]["versions"][0]["schema"]["openAPIV3Schema"],
            json!({"type": "object", "maximum": 10, "items": {"type": "string"}, "additionalProperties": true, "enum": ["x"]})
        );
    }

    #[test]
    fn unknown_kinds_are_named() {
        assert_eq!(
            decode(&envelope("example.com/v1", "Thing", b"")),
            Err(DecodeError::UnknownKind {
                api_version: "example.com/v1".to_owned(),
                kind: "Thing".to_owned()
            })
        );
        assert_eq!(decode(b"{}"), Err(DecodeError::Magic));
    }

    #[test]
    fn delete_options_come_in_any_version() {
        let raw = bytes_field(4, b"Background");
        assert_eq!(
            decode(&envelope("apps/v1", "DeleteOptions", &raw)),
            Ok(json!({"apiVersion": "apps/v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}))
        );
    }

    #[test]
    fn endless_nesting_is_refused() {
        // A schema whose `not` holds a schema whose `not`...
        let mut schema = Vec::new();
        for _ in 0..200 {
            schema = bytes_field(28, &schema);
        }
        let version = bytes_field(4, &bytes_field(1, &schema));
        let raw = bytes_field(2, &bytes_field(7, &version));
        let result = decode(&envelope(
            "apiextensions.k8s.io/v1",
            "CustomResourceDefinition",
            &raw,
        ));
        assert_eq!(result, Err(Malformed("it nests too deeply")));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn arbitrary_bytes_never_panic(raw in prop::collection::vec(any::<u8>(), 0..200), kind in 0..4_usize) {
            let kinds = [("v1", "Pod"), ("apps/v1", "Deployment"), ("apiextensions.k8s.io/v1", "CustomResourceDefinition"), ("v1", "Secret")];
            let (version, kind) = kinds[kind];
            let _ = decode(&raw);
            let _ = decode(&envelope(version, kind, &raw));
        }
    }
}
