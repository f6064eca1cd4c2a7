//! Structural schemas of CRDs: reading them, and defaulting and validating custom resources by them.
//!
//! Pruning, merging and apply work on the tree that is built here, like for built-in kinds. Validation interprets the
//! `openAPIV3Schema` itself, because `anyOf` and friends say things about values that are no structure. Rules in CEL
//! (`x-kubernetes-validations`) are [`super::cel`]'s, and are asked about objects that are otherwise right.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};

use regex::Regex;
use serde_json::{Map, Value, json};

use super::Schema;
use super::cause::{Cause, Path, Reason};
use super::cel::Rules;
use super::tree::{At, Field, ListKind, Node, NodeId, Rest, Scalar, Shape, Tree, table};

/// Deeper schemas are refused: walkers recurse as deep as the schema is.
const DEPTH_MAX: usize = 64;

#[derive(Debug)]
pub(super) struct Custom {
    pub schema: Value,
    patterns: BTreeMap<String, Regex>,
    rules: Option<Rules>,
}

impl Schema {
    /// Reads an `openAPIV3Schema`. The causes' fields begin with `openAPIV3Schema`.
    pub fn from_crd(schema: &Value) -> Result<Self, Vec<Cause>> {
        Self::from_crd_at(schema, &Path::new("openAPIV3Schema"))
    }

    /// The causes' fields begin with where the schema is.
    pub(super) fn from_crd_at(schema: &Value, at: &Path) -> Result<Self, Vec<Cause>> {
        let mut reader = Reader {
            tree: Tree::new(),
            patterns: BTreeMap::new(),
            causes: Vec::new(),
        };
        match schema.get("type").and_then(Value::as_str) {
            Some("object") => {}
            Some(other) => reader.causes.push(Cause::invalid(
                &at.field("type"),
                &Value::from(other),
                "must be object",
            )),
            None => reader.causes.push(Cause::required(
                &at.field("type"),
                "must not be empty at the root",
            )),
        }
        reader.junctors(schema, at, 0);
        let root = reader.node(schema, at, 0);
        reader.resource_fields(root);
        if !reader.causes.is_empty() {
            return Err(reader.causes);
        }
        let custom = Custom {
            schema: schema.clone(),
            patterns: reader.patterns,
            rules: Rules::compile(schema, at)?,
        };
        let mut causes = Vec::new();
        custom.check_defaults(schema, at, &mut causes);
        if !causes.is_empty() {
            return Err(causes);
        }
        Ok(Self::of_crd(reader.tree, root, custom))
    }
}

struct Reader {
    tree: Tree,
    patterns: BTreeMap<String, Regex>,
    causes: Vec<Cause>,
}

const TYPES: &[&str] = &["array", "boolean", "integer", "number", "object", "string"];

impl Reader {
    fn node(&mut self, schema: &Value, at: &Path, depth: usize) -> NodeId {
        let flag = |name: &str| schema.get(name).and_then(Value::as_bool).unwrap_or(false);
        let preserves = flag("x-kubernetes-preserve-unknown-fields");
        if depth > DEPTH_MAX {
            self.causes.push(Cause::forbidden(
                at,
                &format!("schemas nest at most {DEPTH_MAX} levels deep"),
            ));
            return self.tree.add(Node::of(Shape::Deduced));
        }
        self.forbidden_parts(schema, at);
        let shape = match schema.get("type").and_then(Value::as_str) {
            _ if flag("x-kubernetes-int-or-string") => Shape::Scalar(Scalar::IntOrString),
            Some("object") => self.object(schema, at, depth, preserves),
            Some("array") => self.list(schema, at, depth),
            Some("string") => Shape::Scalar(Scalar::String),
            Some("integer") => Shape::Scalar(Scalar::Int64),
            Some("number") => Shape::Scalar(Scalar::Number),
            Some("boolean") => Shape::Scalar(Scalar::Bool),
            Some(other) => {
                self.causes
                    .push(Cause::unsupported(&at.field("type"), &Value::from(other), TYPES));
                Shape::Deduced
            }
            None if preserves => Shape::Deduced,
            None => {
                let place = if at.to_string().ends_with(".items") {
                    "array items"
                } else {
                    "object fields"
                };
                if depth > 0 {
                    let detail = format!("must not be empty for specified {place}");
                    self.causes.push(Cause::required(&at.field("type"), &detail));
                }
                Shape::Deduced
            }
        };
        let node = Node {
            shape,
            atomic: schema.get("x-kubernetes-map-type").and_then(Value::as_str) == Some("atomic"),
            nullable: flag("nullable"),
            default: schema
                .get("default")
                .filter(|default| !default.is_null())
                .cloned(),
            custom: true,
        };
        let id = self.tree.add(node);
        if flag("x-kubernetes-embedded-resource") {
            self.resource_fields(id);
        }
        id
    }

    fn object(&mut self, schema: &Value, at: &Path, depth: usize, preserves: bool) -> Shape {
        let mut fields = BTreeMap::new();
        let properties = schema.get("properties").and_then(Value::as_object);
        for (name, property) in properties.into_iter().flatten() {
            let at = at.field("properties").key(name);
            fields.insert(name.clone(), Field::of(self.node(property, &at, depth + 1)));
        }
        let rest = match schema.get("additionalProperties") {
            Some(Value::Bool(true)) => Rest::Anything,
            Some(values @ Value::Object(_)) => {
                if !fields.is_empty() {
                    let at = at.field("additionalProperties");
                    self.causes.push(Cause::forbidden(
                        &at,
                        "additionalProperties and properties are mutual exclusive",
                    ));
                }
                Rest::Values(self.node(values, &at.field("additionalProperties"), depth + 1))
            }
            _ if preserves => Rest::Anything,
            _ => Rest::Nothing,
        };
        Shape::Object { fields, rest }
    }

    fn list(&mut self, schema: &Value, at: &Path, depth: usize) -> Shape {
        let items = match schema.get("items") {
            Some(items @ Value::Object(_)) => self.node(items, &at.field("items"), depth + 1),
            Some(_) => {
                self.causes.push(Cause::forbidden(
                    &at.field("items"),
                    "items must be a schema object and not an array",
                ));
                self.tree.add(Node::of(Shape::Deduced))
            }
            None => {
                self.causes
                    .push(Cause::required(&at.field("items"), "must be specified"));
                self.tree.add(Node::of(Shape::Deduced))
            }
        };
        let kind = match schema.get("x-kubernetes-list-type").and_then(Value::as_str) {
            Some("set") => ListKind::Set,
            Some("map") => ListKind::Map(self.list_keys(schema, at)),
            None | Some("atomic") => ListKind::Atomic,
            Some(other) => {
                let at = at.field("x-kubernetes-list-type");
                self.causes.push(Cause::unsupported(
                    &at,
                    &Value::from(other),
                    &["atomic", "map", "set"],
                ));
                ListKind::Atomic
            }
        };
        Shape::List { items, kind }
    }

    fn list_keys(&mut self, schema: &Value, at: &Path) -> Vec<String> {
        let keys: Vec<String> = strings(schema.get("x-kubernetes-list-map-keys"))
            .map(str::to_owned)
            .collect();
        let at_keys = at.field("x-kubernetes-list-map-keys");
        if keys.is_empty() {
            self.causes.push(Cause::required(
                &at_keys,
                "must not be empty if x-kubernetes-list-type is map",
            ));
        }
        let items = schema.get("items").unwrap_or(&Value::Null);
        for (index, key) in keys.iter().enumerate() {
            match items.get("properties").and_then(|properties| properties.get(key)) {
                None => self.causes.push(Cause::invalid(
                    &at_keys.index(index),
                    &Value::from(key.as_str()),
                    "entries must all be names of item properties",
                )),
                Some(property) => {
                    if property.get("default").is_none()
                        && !strings(items.get("required")).any(|name| name == key)
                    {
                        let at = at.field("items").field("properties").key(key).field("default");
                        self.causes.push(Cause::required(
                            &at,
                            "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property",
                        ));
                    }
                }
            }
        }
        keys
    }

    fn forbidden_parts(&mut self, schema: &Value, at: &Path) {
        for part in [
            "$ref",
            "definitions",
            "dependencies",
            "patternProperties",
            "id",
            "additionalItems",
        ] {
            if schema.get(part).is_some_and(|part| !part.is_null()) {
                self.causes.push(Cause::forbidden(
                    &at.field(part),
                    &format!("{part} is not supported"),
                ));
            }
        }
        if schema.get("uniqueItems").and_then(Value::as_bool) == Some(true) {
            let detail = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
            self.causes
                .push(Cause::forbidden(&at.field("uniqueItems"), detail));
        }
    }

    /// Compiles the patterns, also those inside junctors, which have no nodes.
    fn junctors(&mut self, schema: &Value, at: &Path, depth: usize) {
        if depth > DEPTH_MAX {
            return;
        }
        if let Some(pattern) = schema
            .get("pattern")
            .and_then(Value::as_str)
            .filter(|pattern| !pattern.is_empty())
        {
            match Regex::new(pattern) {
                Ok(regex) => {
                    self.patterns.insert(pattern.to_owned(), regex);
                }
                Err(error) => {
                    let detail = format!("must be a valid regular expression, but isn't: {error}");
                    self.causes.push(Cause::invalid(
                        &at.field("pattern"),
                        &Value::from(pattern),
                        &detail,
                    ));
                }
            }
        }
        for (name, property) in schema
            .get("properties")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
        {
            self.junctors(property, &at.field("properties").key(name), depth + 1);
        }
        for name in ["items", "additionalProperties", "not"] {
            if let Some(inner @ Value::Object(_)) = schema.get(name) {
                self.junctors(inner, &at.field(name), depth + 1);
            }
        }
        for name in ["allOf", "anyOf", "oneOf"] {
            for (index, inner) in schema
                .get(name)
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .enumerate()
            {
                self.junctors(inner, &at.field(name).index(index), depth + 1);
            }
        }
    }

    /// Every whole object has these, whether its schema says so or not.
    fn resource_fields(&mut self, id: NodeId) {
        let builtin = table();
        let metadata = self
            .tree
            .import(&builtin.tree, builtin.names["meta.v1.ObjectMeta"]);
        let string = self.tree.add(Node {
            custom: true,
            ..Node::of(Shape::Scalar(Scalar::String))
        });
        if let Shape::Object { fields, .. } = &mut self.tree.node_mut(id).shape {
            fields.insert("apiVersion".to_owned(), Field::of(string));
            fields.insert("kind".to_owned(), Field::of(string));
            fields.insert("metadata".to_owned(), Field::of(metadata));
        }
    }
}

fn strings(value: Option<&Value>) -> impl Iterator<Item = &str> {
    value
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
}

/// Sets what is absent (or null where null isn't allowed) to its default, from the outside in.
pub(super) fn default(at: At<'_>, value: &mut Value) {
    match (at.shape(), value) {
        (Shape::Object { fields, .. }, Value::Object(object)) => {
            for (name, field) in fields {
                let node = at.go(field.node).node;
                let Some(default) = &node.default else { continue };
                let absent = object
                    .get(name)
                    .is_none_or(|value| value.is_null() && !node.nullable);
                if absent {
                    object.insert(name.clone(), default.clone());
                }
            }
            for (name, value) in object {
                if let Some(child) = at.child(name) {
                    default(child, value);
                }
            }
        }
        (Shape::List { .. }, Value::Array(items)) => {
            if let Some(child) = at.items() {
                items.iter_mut().for_each(|item| default(child, item));
            }
        }
        _ => {}
    }
}

impl Custom {
    /// What `object` has unchanged from `old` may stay, whatever the definition says today.
    pub(super) fn validate(&self, object: &Value, old: Option<&Value>) -> Vec<Cause> {
        let mut causes = Vec::new();
        let root = Path::root();
        for name in ["apiVersion", "kind"] {
            if object.get(name).and_then(Value::as_str).is_none_or(str::is_empty) {
                causes.push(Cause::required(&root.field(name), "must not be empty"));
            }
        }
        self.check(&self.schema, object, old, &root, Place::Resource, &mut causes);
        let blocks = |cause: &Cause| {
            let Cause { reason, .. } = cause;
            use Reason::{NotSupported, Required, TooLong, TooMany, TypeInvalid};
            matches!(reason, NotSupported | Required | TooLong | TooMany | TypeInvalid)
        };
        if let Some(rules) = &self.rules {
            if causes.iter().any(blocks) {
                let detail = "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation";
                causes.push(Cause::invalid(&root, &Value::Null, detail));
            } else {
                causes.extend(rules.check(object, old));
            }
        }
        causes
    }

    /// A default must be a value that the schema accepts.
    fn check_defaults(&self, schema: &Value, at: &Path, causes: &mut Vec<Cause>) {
        if let Some(default) = schema.get("default").filter(|default| !default.is_null()) {
            self.check(
                schema,
                default,
                None,
                &at.field("default"),
                Place::Structure,
                causes,
            );
        }
        for (name, property) in schema
            .get("properties")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
        {
            self.check_defaults(property, &at.field("properties").key(name), causes);
        }
        for name in ["items", "additionalProperties"] {
            if let Some(inner) = schema.get(name) {
                self.check_defaults(inner, &at.field(name), causes);
            }
        }
    }

    fn check(
        &self,
        schema: &Value,
        value: &Value,
        old: Option<&Value>,
        at: &Path,
        place: Place,
        causes: &mut Vec<Cause>,
    ) {
        if old == Some(value) {
            return;
        }
        let flag = |name: &str| schema.get(name).and_then(Value::as_bool).unwrap_or(false);
        if value.is_null() && flag("nullable") {
            return;
        }
        let int_or_string = flag("x-kubernetes-int-or-string");
        if let Some(wanted) = schema.get("type").and_then(Value::as_str)
            && !has_type(value, wanted)
        {
            mistyped(value, wanted, at, causes);
            return;
        }
        if int_or_string && !has_type(value, "integer") && !value.is_string() {
            mistyped(value, "integer,string", at, causes);
            return;
        }
        if value.is_null() && schema.get("type").is_none() && place == Place::Structure && !int_or_string {
            return;
        }
        if let Some(choices) = schema.get("enum").and_then(Value::as_array)
            && !choices.contains(value)
        {
            let shown: Vec<String> = choices
                .iter()
                .map(|choice| choice.as_str().map_or_else(|| choice.to_string(), str::to_owned))
                .collect();
            let shown: Vec<&str> = shown.iter().map(String::as_str).collect();
            causes.push(Cause::unsupported(at, value, &shown));
        }
        match value {
            Value::Number(_) => numbers(schema, value, at, causes),
            Value::String(text) => self.text(schema, text, at, causes),
            Value::Array(items) => self.items(schema, items, at, place, causes),
            Value::Object(object) => self.fields(schema, object, old, at, place, causes),
            Value::Null | Value::Bool(_) => {}
        }
        self.check_junctors(schema, value, at, causes);
    }

    fn text(&self, schema: &Value, text: &str, at: &Path, causes: &mut Vec<Cause>) {
        let length = text.chars().count() as u64;
        let value = Value::from(text);
        if let Some(max) = schema
            .get("maxLength")
            .and_then(Value::as_u64)
            .filter(|max| length > *max)
        {
            causes.push(Cause::too_long(at, usize::try_from(max).unwrap_or(usize::MAX)));
        }
        if let Some(min) = schema
            .get("minLength")
            .and_then(Value::as_u64)
            .filter(|min| length < *min)
        {
            causes.push(Cause::invalid(
                at,
                &value,
                &format!("{at} in body should be at least {min} chars long"),
            ));
        }
        if let Some(pattern) = schema.get("pattern").and_then(Value::as_str)
            && self
                .patterns
                .get(pattern)
                .is_some_and(|regex| !regex.is_match(text))
        {
            causes.push(Cause::invalid(
                at,
                &value,
                &format!("{at} in body should match '{pattern}'"),
            ));
        }
        if let Some(format) = schema.get("format").and_then(Value::as_str)
            && !has_format(text, format)
        {
            causes.push(Cause::invalid(
                at,
                &value,
                &format!("{at} in body must be of type {format}: {value}"),
            ));
        }
    }

    fn items(&self, schema: &Value, items: &[Value], at: &Path, place: Place, causes: &mut Vec<Cause>) {
        let count = items.len() as u64;
        if let Some(max) = schema
            .get("maxItems")
            .and_then(Value::as_u64)
            .filter(|max| count > *max)
        {
            causes.push(Cause::too_many(
                at,
                items.len(),
                usize::try_from(max).unwrap_or(usize::MAX),
            ));
            return;
        }
        if let Some(min) = schema
            .get("minItems")
            .and_then(Value::as_u64)
            .filter(|min| count < *min)
        {
            let detail = format!("{at} in body should have at least {min} items");
            causes.push(Cause::invalid(at, &Value::from(count), &detail));
        }
        if let Some(inner) = schema.get("items") {
            for (index, item) in items.iter().enumerate() {
                // An item has no old value of its own: the list is new as a whole.
                self.check(inner, item, None, &at.index(index), place.inner(), causes);
            }
        }
        let keys: Vec<&str> = strings(schema.get("x-kubernetes-list-map-keys")).collect();
        let mut seen = BTreeSet::new();
        for (index, item) in items.iter().enumerate() {
            let identity = match schema.get("x-kubernetes-list-type").and_then(Value::as_str) {
                Some("set") => item.clone(),
                Some("map") => keys
                    .iter()
                    .map(|key| ((*key).to_owned(), item.get(*key).cloned().unwrap_or_default()))
                    .collect(),
                _ => return,
            };
            if !seen.insert(identity.to_string()) {
                causes.push(Cause::duplicate(&at.index(index), &identity));
            }
        }
    }

    fn fields(
        &self,
        schema: &Value,
        object: &Map<String, Value>,
        old: Option<&Value>,
        at: &Path,
        place: Place,
        causes: &mut Vec<Cause>,
    ) {
        let count = object.len() as u64;
        if let Some(max) = schema
            .get("maxProperties")
            .and_then(Value::as_u64)
            .filter(|max| count > *max)
        {
            causes.push(Cause::too_many(
                at,
                object.len(),
                usize::try_from(max).unwrap_or(usize::MAX),
            ));
        }
        if let Some(min) = schema
            .get("minProperties")
            .and_then(Value::as_u64)
            .filter(|min| count < *min)
        {
            let detail = format!("{at} in body should have at least {min} properties");
            causes.push(Cause::invalid(at, &Value::from(count), &detail));
        }
        for name in strings(schema.get("required")) {
            if !object.contains_key(name) {
                causes.push(Cause::required(&at.field(name), ""));
            }
        }
        let embedded = schema
            .get("x-kubernetes-embedded-resource")
            .and_then(Value::as_bool)
            == Some(true);
        for name in ["apiVersion", "kind"] {
            if embedded && object.get(name).and_then(Value::as_str).is_none_or(str::is_empty) {
                causes.push(Cause::required(&at.field(name), "must not be empty"));
            }
        }
        let properties = schema.get("properties");
        let values = schema
            .get("additionalProperties")
            .filter(|values| values.is_object());
        for (name, value) in object {
            // The metadata of whole objects follows rules of its own.
            if name == "metadata" && (place == Place::Resource || embedded) {
                continue;
            }
            let old = old.and_then(|old| old.get(name));
            match (properties.and_then(|properties| properties.get(name)), values) {
                (Some(property), _) => {
                    self.check(property, value, old, &at.field(name), place.inner(), causes)
                }
                (None, Some(values)) => {
                    self.check(values, value, old, &at.field(name), place.inner(), causes)
                }
                (None, None) => {}
            }
        }
    }

    fn check_junctors(&self, schema: &Value, value: &Value, at: &Path, causes: &mut Vec<Cause>) {
        let faults = |inner: &Value| {
            let mut causes = Vec::new();
            self.check(inner, value, None, at, Place::Junctor, &mut causes);
            causes
        };
        let list = |name: &str| {
            schema
                .get(name)
                .and_then(Value::as_array)
                .filter(|list| !list.is_empty())
        };
        let complaint = |detail: String| Cause::invalid(at, &json!(""), &detail);
        let here = if at == &Path::root() {
            "<nil>".to_owned()
        } else {
            at.to_string()
        };
        if let Some(all) = list("allOf") {
            let found: Vec<Cause> = all.iter().flat_map(faults).collect();
            if !found.is_empty() {
                causes.extend(found);
                causes.push(complaint(format!(
                    "\"{here}\" must validate all the schemas (allOf)"
                )));
            }
        }
        if let Some(any) = list("anyOf")
            && any.iter().all(|inner| !faults(inner).is_empty())
        {
            causes.push(complaint(format!(
                "\"{here}\" must validate at least one schema (anyOf)"
            )));
        }
        if let Some(one) = list("oneOf") {
            match one.iter().filter(|inner| faults(inner).is_empty()).count() {
                1 => {}
                0 => causes.push(complaint(format!(
                    "\"{here}\" must validate one and only one schema (oneOf). Found none valid"
                ))),
                valid => causes.push(complaint(format!(
                    "\"{here}\" must validate one and only one schema (oneOf). Found {valid} valid alternatives"
                ))),
            }
        }
        if let Some(not) = schema.get("not").filter(|not| not.is_object())
            && faults(not).is_empty()
        {
            causes.push(complaint(format!(
                "\"{here}\" must not validate the schema (not)"
            )));
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// A whole object.
    Resource,
    Structure,
    /// Inside `anyOf` and friends, where a schema constrains without declaring.
    Junctor,
}

impl Place {
    fn inner(self) -> Self {
        if self == Self::Junctor {
            Self::Junctor
        } else {
            Self::Structure
        }
    }
}

fn numbers(schema: &Value, value: &Value, at: &Path, causes: &mut Vec<Cause>) {
    let bound = |name: &str| schema.get(name).and_then(Value::as_f64);
    let exclusive = |name: &str| schema.get(name).and_then(Value::as_bool) == Some(true);
    let Some(number) = value.as_f64() else { return };
    let mut complain = |detail: String| {
        causes.push(Cause::invalid(
            at,
            value,
            &format!("{at} in body should be {detail}"),
        ))
    };
    let shown = |name: &str| schema.get(name).map(Value::to_string).unwrap_or_default();
    if let Some(max) = bound("maximum") {
        if exclusive("exclusiveMaximum") && number >= max {
            complain(format!("less than {}", shown("maximum")));
        } else if number > max {
            complain(format!("less than or equal to {}", shown("maximum")));
        }
    }
    if let Some(min) = bound("minimum") {
        if exclusive("exclusiveMinimum") && number <= min {
            complain(format!("greater than {}", shown("minimum")));
        } else if number < min {
            complain(format!("greater than or equal to {}", shown("minimum")));
        }
    }
    if let Some(factor) = bound("multipleOf").filter(|factor| *factor > 0.0) {
        let quotient = number / factor;
        if (quotient - quotient.round()).abs() > 1e-9 {
            complain(format!("a multiple of {}", shown("multipleOf")));
        }
    }
    let format = schema.get("format").and_then(Value::as_str);
    if format == Some("int32") && (number < f64::from(i32::MIN) || number > f64::from(i32::MAX)) {
        causes.push(Cause::invalid(
            at,
            value,
            &format!("{at} in body must be of type int32: \"{value}\""),
        ));
    }
}

fn mistyped(value: &Value, wanted: &str, at: &Path, causes: &mut Vec<Cause>) {
    let found = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    causes.push(Cause::mistyped(
        at,
        &format!("\"{found}\""),
        &format!("{at} in body must be of type {wanted}: \"{found}\""),
    ));
}

fn has_type(value: &Value, wanted: &str) -> bool {
    match wanted {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "number" => value.is_number(),
        "integer" => {
            value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|number| number.fract() == 0.0)
        }
        _ => true,
    }
}

/// Formats that nobody knows hold for everything.
fn has_format(text: &str, format: &str) -> bool {
    match format {
        "date-time" | "datetime" => text.parse::<jiff::Timestamp>().is_ok(),
        "date" => text.parse::<jiff::civil::Date>().is_ok() && text.len() == 10,
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<Ipv6Addr>().is_ok(),
        "cidr" => text.split_once('/').is_some_and(|(address, bits)| {
            let max = if address.parse::<Ipv4Addr>().is_ok() {
                32
            } else if address.parse::<Ipv6Addr>().is_ok() {
                128
            } else {
                return false;
            };
            bits.parse::<u8>().is_ok_and(|bits| bits <= max)
        }),
        "uuid" => {
            let parts: Vec<usize> = text.split('-').map(str::len).collect();
            parts == [8, 4, 4, 4, 12] && text.chars().all(|c| c == '-' || c.is_ascii_hexdigit())
        }
        "hostname" => super::names::is_subdomain(&text.to_ascii_lowercase()),
        "byte" => {
            use base64::Engine as _;
            base64::engine::general_purpose::STANDARD.decode(text).is_ok()
        }
        "email" => text
            .split_once('@')
            .is_some_and(|(user, host)| !user.is_empty() && !host.is_empty()),
        "uri" => text.starts_with('/') || text.split_once(':').is_some_and(|(scheme, _)| !scheme.is_empty()),
        "duration" => is_duration(text),
        _ => true,
    }
}

/// Go's durations: `1h30m`, `-1.5s`, `0`.
fn is_duration(text: &str) -> bool {
    let mut rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    if rest == "0" {
        return true;
    }
    let mut some = false;
    while !rest.is_empty() {
        let after = rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
        let number = &rest[..rest.len() - after.len()];
        let unit = ["ns", "us", "µs", "ms", "s", "m", "h"]
            .iter()
            .filter(|unit| after.starts_with(**unit));
        let Some(unit) = unit.max_by_key(|unit| unit.len()) else {
            return false;
        };
        if number.parse::<f64>().is_err() {
            return false;
        }
        rest = after.strip_prefix(unit).unwrap_or_default();
        some = true;
    }
    some
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn schema(spec: Value) -> Schema {
        let whole = json!({"type": "object", "properties": {"spec": spec}});
        Schema::from_crd(&whole).expect("the schema is structural")
    }

    fn object(spec: Value) -> Value {
        json!({"apiVersion": "x/v1", "kind": "X", "metadata": {"name": "x"}, "spec": spec})
    }

    fn faults(spec_schema: Value, spec: Value) -> Vec<String> {
        schema(spec_schema)
            .validate(&object(spec), None)
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn unknown_fields_are_pruned_unless_preserved() {
        let schema = schema(json!({
            "type": "object",
            "properties": {
                "known": {"type": "string"},
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                "template": {"type": "object", "x-kubernetes-embedded-resource": true, "properties": {}},
            },
        }));
        let mut value = object(json!({
            "known": "a", "unknown": 1, "free": {"x": {"y": 1}},
            "template": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "nope": 1}, "spec": {}},
        }));
        assert_eq!(
            schema.prune(&mut value),
            [
                "spec.template.metadata.nope",
                "spec.template.spec",
                "spec.unknown"
            ]
        );
        assert_eq!(value["spec"]["free"], json!({"x": {"y": 1}}));
        assert_eq!(value["metadata"]["name"], "x");
    }

    #[test]
    fn defaults_fill_what_is_absent_from_the_outside_in() {
        let schema = schema(json!({
            "type": "object",
            "default": {},
            "properties": {
                "mode": {"type": "string", "default": "auto"},
                "maybe": {"type": "string", "nullable": true, "default": "x"},
                "ports": {"type": "array", "items": {"type": "object", "properties": {"protocol": {"type": "string", "default": "TCP"}}}},
            },
        }));
        let mut value = json!({"apiVersion": "x/v1", "kind": "X"});
        schema.default_(&mut value);
        assert_eq!(value["spec"], json!({"mode": "auto", "maybe": "x"}));
        let mut value = object(json!({"mode": null, "maybe": null, "ports": [{}]}));
        schema.default_(&mut value);
        assert_eq!(
            value["spec"],
            json!({"mode": "auto", "maybe": null, "ports": [{"protocol": "TCP"}]})
        );
    }

    #[test]
    fn faults_are_worded_as_kubernetes_words_them() {
        let schema = json!({
            "type": "object",
            "required": ["size"],
            "properties": {
                "size": {"type": "integer", "minimum": 1, "maximum": 10},
                "mode": {"type": "string", "enum": ["auto", "off"]},
                "name": {"type": "string", "pattern": "^[a-z]+$", "maxLength": 3},
                "set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
                "port": {"x-kubernetes-int-or-string": true},
            },
        });
        assert_eq!(
            faults(schema.clone(), json!({"size": 3, "mode": "auto", "port": "http"})),
            Vec::<String>::new()
        );
        assert_eq!(
            faults(
                schema.clone(),
                json!({"mode": "on", "name": "ABCD", "set": ["a", "a"], "port": true})
            ),
            [
                "spec.size: Required value",
                "spec.mode: Unsupported value: \"on\": supported values: \"auto\", \"off\"",
                "spec.name: Too long: may not be more than 3 bytes",
                "spec.name: Invalid value: \"ABCD\": spec.name in body should match '^[a-z]+$'",
                "spec.port: Invalid value: \"boolean\": spec.port in body must be of type integer,string: \"boolean\"",
                "spec.set[1]: Duplicate value: \"a\"",
            ]
        );
        assert_eq!(
            faults(schema.clone(), json!({"size": 11})),
            ["spec.size: Invalid value: 11: spec.size in body should be less than or equal to 10"]
        );
        assert_eq!(
            faults(schema, json!({"size": "big"})),
            ["spec.size: Invalid value: \"string\": spec.size in body must be of type integer: \"string\""]
        );
    }

    #[test]
    fn junctors_choose_among_alternatives() {
        let schema = json!({
            "type": "object",
            "properties": {"a": {"type": "string"}, "b": {"type": "string"}},
            "oneOf": [{"required": ["a"]}, {"required": ["b"]}],
        });
        assert_eq!(faults(schema.clone(), json!({"a": "x"})), Vec::<String>::new());
        assert_eq!(
            faults(schema.clone(), json!({})),
            [
                "spec: Invalid value: \"\": \"spec\" must validate one and only one schema (oneOf). Found none valid"
            ]
        );
        assert_eq!(faults(schema, json!({"a": "x", "b": "y"})).len(), 1);
    }

    #[test]
    fn schemas_that_are_not_structural_are_refused() {
        let refused = Schema::from_crd(&json!({
            "type": "object",
            "properties": {
                "spec": {"type": "object", "properties": {"a": {}, "b": {"type": "array"}, "c": {"type": "text"}}},
            },
        }));
        let causes: Vec<String> = refused
            .expect_err("three faults")
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            causes,
            [
                "openAPIV3Schema.properties[spec].properties[a].type: Required value: must not be empty for specified object fields",
                "openAPIV3Schema.properties[spec].properties[b].items: Required value: must be specified",
                "openAPIV3Schema.properties[spec].properties[c].type: Unsupported value: \"text\": supported values: \"array\", \"boolean\", \"integer\", \"number\", \"object\", \"string\"",
            ]
        );
    }

    #[test]
    fn a_default_must_satisfy_its_own_schema() {
        let refused = Schema::from_crd(&json!({
            "type": "object",
            "properties": {"size": {"type": "integer", "minimum": 1, "default": 0}},
        }));
        let causes: Vec<String> = refused
            .expect_err("zero is too small")
            .iter()
            .map(ToString::to_string)
            .collect();
        let field = "openAPIV3Schema.properties[size].default";
        assert_eq!(
            causes,
            [format!(
                "{field}: Invalid value: 0: {field} in body should be greater than or equal to 1"
            )]
        );
    }

    fn any_schema() -> impl Strategy<Value = Value> {
        let scalar = prop_oneof![
            Just(json!({"type": "string", "default": "x", "pattern": "^x"})),
            Just(json!({"type": "integer", "minimum": 1})),
            Just(json!({"x-kubernetes-int-or-string": true})),
            Just(json!({"type": "boolean", "nullable": true})),
            Just(json!({"x-kubernetes-preserve-unknown-fields": true})),
        ];
        scalar.prop_recursive(3, 16, 3, |inner| {
            prop_oneof![
                prop::collection::btree_map("[a-c]", inner.clone(), 0..3)
                    .prop_map(|properties| json!({"type": "object", "properties": properties})),
                inner
                    .clone()
                    .prop_map(|values| json!({"type": "object", "additionalProperties": values})),
                inner
                    .clone()
                    .prop_map(|items| json!({"type": "array", "items": items})),
                (inner.clone(), inner).prop_map(
                    |(one, other)| json!({"type": "object", "properties": {"a": one}, "anyOf": [other]})
                ),
            ]
        })
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (0..3).prop_map(Value::from),
            Just(json!("x"))
        ];
        leaf.prop_recursive(4, 24, 3, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::Array),
                prop::collection::btree_map("[a-d]", inner, 0..3)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn pruning_and_defaulting_settle_at_once(spec in any_schema(), value in any_value()) {
            let schema = schema(spec);
            let mut once = object(value);
            schema.prune(&mut once);
            schema.default_(&mut once);
            let mut twice = once.clone();
            prop_assert_eq!(schema.prune(&mut twice), Vec::<String>::new());
            schema.default_(&mut twice);
            prop_assert_eq!(once, twice);
        }

        #[test]
        fn arbitrary_schemas_and_values_never_panic(schema in any_value(), value in any_value()) {
            let whole = json!({"type": "object", "properties": {"spec": schema}, "anyOf": schema, "not": value});
            if let Ok(schema) = Schema::from_crd(&whole) {
                let mut object = object(value);
                schema.prune(&mut object);
                schema.default_(&mut object);
                schema.validate(&object, None);
            }
        }
    }
}
