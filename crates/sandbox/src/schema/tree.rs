//! The structure of one or more kinds: objects, lists and scalars with the marks that merging and pruning need.
//!
//! Built-in kinds come from the generated `table.txt` and share one tree (it is recursive: a CRD holds schemas of
//! schemas). A CRD gets a small tree of its own. [`At`] is a place in a tree; all walkers take one.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use serde_json::Value;

use super::crd::Custom;

pub(super) type NodeId = usize;

#[derive(Debug)]
pub(super) struct Tree {
    nodes: Vec<Node>,
}

#[derive(Clone, Debug)]
pub(super) struct Node {
    pub shape: Shape,
    /// A whole object or map that has one owner and is replaced, never merged.
    pub atomic: bool,
    pub nullable: bool,
    pub default: Option<Value>,
    /// Part of a CRD's schema, where nulls and types are the validation's business.
    pub custom: bool,
}

#[derive(Clone, Debug)]
pub(super) enum Shape {
    Object {
        fields: BTreeMap<String, Field>,
        rest: Rest,
    },
    List {
        items: NodeId,
        kind: ListKind,
    },
    Scalar(Scalar),
    /// Anything at all, taken as one value.
    Raw(Raw),
    /// Anything at all, where objects still merge by key (`x-kubernetes-preserve-unknown-fields`).
    Deduced,
}

/// What an object may hold besides its named fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rest {
    Nothing,
    Values(NodeId),
    Anything,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ListKind {
    Atomic,
    Set,
    Map(Vec<String>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scalar {
    String,
    Int32,
    Int64,
    Number,
    Bool,
    Bytes,
    Time,
    MicroTime,
    Quantity,
    IntOrString,
}

/// Raw values differ only in their protobuf form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Raw {
    Json,
    Schemas,
    SchemaOrBool,
    SchemaOrStrings,
}

#[derive(Clone, Debug)]
pub(super) struct Field {
    pub node: NodeId,
    pub tag: Option<Tag>,
    pub required: bool,
    /// A pointer in Go: zero is a value and not absence.
    pub pointer: bool,
    pub merge_key: Option<String>,
    pub merge: bool,
    pub retain_keys: bool,
}

impl Field {
    pub(super) fn of(node: NodeId) -> Self {
        Self {
            node,
            tag: None,
            required: false,
            pointer: false,
            merge_key: None,
            merge: false,
            retain_keys: false,
        }
    }
}

/// `inside` is the message that JSON inlines, if any.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Tag {
    pub inside: Option<u32>,
    pub number: u32,
}

impl Node {
    pub(super) fn of(shape: Shape) -> Self {
        Self {
            shape,
            atomic: false,
            nullable: false,
            default: None,
            custom: false,
        }
    }
}

impl Tree {
    pub(super) fn new() -> Self {
        Self { nodes: Vec::new() }
    }

    pub(super) fn add(&mut self, node: Node) -> NodeId {
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    pub(super) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id]
    }

    pub(super) fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id]
    }

    pub(super) fn at(&self, id: NodeId) -> At<'_> {
        At {
            tree: self,
            node: self.node(id),
            id,
        }
    }

    /// Copies a part of another tree into this one.
    pub(super) fn import(&mut self, other: &Self, id: NodeId) -> NodeId {
        self.import_once(other, id, &mut BTreeMap::new())
    }

    fn import_once(&mut self, other: &Self, id: NodeId, done: &mut BTreeMap<NodeId, NodeId>) -> NodeId {
        if let Some(known) = done.get(&id) {
            return *known;
        }
        let mut node = other.node(id).clone();
        let target = self.add(Node::of(Shape::Deduced));
        done.insert(id, target);
        match &mut node.shape {
            Shape::Object { fields, rest } => {
                for field in fields.values_mut() {
                    field.node = self.import_once(other, field.node, done);
                }
                if let Rest::Values(values) = rest {
                    *values = self.import_once(other, *values, done);
                }
            }
            Shape::List { items, .. } => *items = self.import_once(other, *items, done),
            Shape::Scalar(_) | Shape::Raw(_) | Shape::Deduced => {}
        }
        self.nodes[target] = node;
        target
    }
}

/// A place in a schema.
#[derive(Clone, Copy, Debug)]
pub(super) struct At<'a> {
    tree: &'a Tree,
    pub node: &'a Node,
    pub id: NodeId,
}

impl<'a> At<'a> {
    pub(super) fn go(self, id: NodeId) -> Self {
        self.tree.at(id)
    }

    pub(super) fn shape(self) -> &'a Shape {
        &self.node.shape
    }

    pub(super) fn field(self, name: &str) -> Option<&'a Field> {
        match &self.node.shape {
            Shape::Object { fields, .. } => fields.get(name),
            _ => None,
        }
    }

    /// The schema of the value under `key`, be it a named field, a map's value or something that is kept unseen.
    pub(super) fn child(self, key: &str) -> Option<Self> {
        match &self.node.shape {
            Shape::Object { fields, rest } => match (fields.get(key), rest) {
                (Some(field), _) => Some(self.go(field.node)),
                (None, Rest::Values(values)) => Some(self.go(*values)),
                (None, Rest::Anything) => Some(untyped()),
                (None, Rest::Nothing) => None,
            },
            Shape::Deduced => Some(untyped()),
            _ => None,
        }
    }

    pub(super) fn items(self) -> Option<Self> {
        match &self.node.shape {
            Shape::List { items, .. } => Some(self.go(*items)),
            _ => None,
        }
    }
}

/// Where nothing is known.
pub(super) fn untyped<'a>() -> At<'a> {
    static UNTYPED: LazyLock<Tree> = LazyLock::new(|| Tree {
        nodes: vec![Node::of(Shape::Deduced)],
    });
    UNTYPED.at(0)
}

/// All built-in kinds.
pub(super) struct Builtin {
    pub tree: Arc<Tree>,
    /// `core.v1.Pod` -> node
    pub names: BTreeMap<String, NodeId>,
    /// (group, version, kind) -> name
    pub kinds: BTreeMap<(String, String, String), String>,
}

pub(super) fn table() -> &'static Builtin {
    static TABLE: LazyLock<Builtin> = LazyLock::new(|| read_table(include_str!("table.txt")));
    &TABLE
}

/// Reads our own generated table, so a line that makes no sense is a broken build and not an input error.
fn read_table(text: &str) -> Builtin {
    let mut tree = Tree::new();
    let mut names = BTreeMap::new();
    let mut kinds = BTreeMap::new();
    let lines = || {
        text.lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
    };
    for line in lines().filter(|line| !line.starts_with(' ')) {
        let mut words = line.split(' ');
        let name = words.next().unwrap_or_default();
        let mut node = Node::of(Shape::Object {
            fields: BTreeMap::new(),
            rest: Rest::Nothing,
        });
        for word in words {
            match word.split('/').collect::<Vec<_>>().as_slice() {
                [group, version, kind] => {
                    let key = ((*group).to_owned(), (*version).to_owned(), (*kind).to_owned());
                    kinds.insert(key, name.to_owned());
                }
                _ => node.atomic = word == "atomic",
            }
        }
        let id = tree.add(node);
        names.insert(name.to_owned(), id);
    }
    let mut scalars = BTreeMap::new();
    let mut current = None;
    for line in lines() {
        let Some(line) = line.strip_prefix("  ") else {
            current = names.get(line.split(' ').next().unwrap_or_default()).copied();
            continue;
        };
        let mut words = line.split(' ');
        let (name, tag) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let mut node = read_type(words.next().unwrap_or_default(), &mut tree, &names, &mut scalars);
        let mut field = Field {
            tag: read_tag(tag),
            ..Field::of(node)
        };
        for flag in words {
            match flag.split_once('=') {
                None => {
                    field.required |= flag == "!";
                    field.pointer |= flag == "?";
                }
                Some(("list", list)) => {
                    if let Shape::List { kind, .. } = &mut tree.node_mut(node).shape {
                        *kind = match list.strip_prefix("map:") {
                            Some(keys) => ListKind::Map(keys.split(',').map(str::to_owned).collect()),
                            None if list == "set" => ListKind::Set,
                            None => ListKind::Atomic,
                        };
                    }
                }
                Some(("map", "atomic")) => {
                    let copy = Node {
                        atomic: true,
                        ..tree.node(node).clone()
                    };
                    node = tree.add(copy);
                }
                Some(("merge", key)) => field.merge_key = Some(key.to_owned()),
                Some(("strategy", strategies)) => {
                    for strategy in strategies.split(',') {
                        field.merge |= strategy == "merge";
                        field.retain_keys |= strategy == "retainKeys";
                    }
                }
                Some(("default", value)) => {
                    let copy = Node {
                        default: Some(Value::from(value)),
                        ..tree.node(node).clone()
                    };
                    node = tree.add(copy);
                }
                Some((flag, _)) => panic!("the table knows no flag {flag}"),
            }
        }
        field.node = node;
        let id = current.expect("the table's fields follow their type");
        if let Shape::Object { fields, .. } = &mut tree.node_mut(id).shape {
            fields.insert(name.to_owned(), field);
        }
    }
    Builtin {
        tree: Arc::new(tree),
        names,
        kinds,
    }
}

fn read_tag(text: &str) -> Option<Tag> {
    match text.split_once('.') {
        Some((inside, number)) => Some(Tag {
            inside: inside.parse().ok(),
            number: number.parse().ok()?,
        }),
        None => Some(Tag {
            inside: None,
            number: text.parse().ok()?,
        }),
    }
}

fn read_type(
    text: &str,
    tree: &mut Tree,
    names: &BTreeMap<String, NodeId>,
    scalars: &mut BTreeMap<String, NodeId>,
) -> NodeId {
    if let Some(inner) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        let items = read_type(inner, tree, names, scalars);
        return tree.add(Node::of(Shape::List {
            items,
            kind: ListKind::Atomic,
        }));
    }
    if let Some(inner) = text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
        let values = read_type(inner, tree, names, scalars);
        return tree.add(Node::of(Shape::Object {
            fields: BTreeMap::new(),
            rest: Rest::Values(values),
        }));
    }
    if let Some(known) = names.get(text).or_else(|| scalars.get(text)) {
        return *known;
    }
    let shape = match text {
        "string" => Shape::Scalar(Scalar::String),
        "int32" => Shape::Scalar(Scalar::Int32),
        "int64" => Shape::Scalar(Scalar::Int64),
        "double" => Shape::Scalar(Scalar::Number),
        "bool" => Shape::Scalar(Scalar::Bool),
        "bytes" => Shape::Scalar(Scalar::Bytes),
        "time" => Shape::Scalar(Scalar::Time),
        "microtime" => Shape::Scalar(Scalar::MicroTime),
        "quantity" => Shape::Scalar(Scalar::Quantity),
        "intorstring" => Shape::Scalar(Scalar::IntOrString),
        "raw" => Shape::Raw(Raw::Json),
        "schemas" => Shape::Raw(Raw::Schemas),
        "schemaorbool" => Shape::Raw(Raw::SchemaOrBool),
        "schemaorstrings" => Shape::Raw(Raw::SchemaOrStrings),
        other => panic!("the table refers to {other}, which it lacks"),
    };
    let id = tree.add(Node::of(shape));
    scalars.insert(text.to_owned(), id);
    id
}

/// What one kind looks like. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Schema {
    tree: Arc<Tree>,
    root: NodeId,
    form: Form,
}

#[derive(Clone, Debug)]
enum Form {
    /// The name of the definition: `core.v1.Pod`.
    Builtin(&'static str),
    Custom(Arc<Custom>),
}

impl Schema {
    /// A built-in kind; `group` is empty for the core group.
    pub fn for_kind(group: &str, version: &str, kind: &str) -> Option<Self> {
        let table = table();
        let name = table
            .kinds
            .get(&(group.to_owned(), version.to_owned(), kind.to_owned()))?;
        Some(Self {
            tree: Arc::clone(&table.tree),
            root: table.names[name],
            form: Form::Builtin(name),
        })
    }

    pub(super) fn of_crd(tree: Tree, root: NodeId, custom: Custom) -> Self {
        Self {
            tree: Arc::new(tree),
            root,
            form: Form::Custom(Arc::new(custom)),
        }
    }

    pub(super) fn root(&self) -> At<'_> {
        self.tree.at(self.root)
    }

    /// The name of the definition (`core.v1.Pod`), if this is a built-in kind.
    pub(super) fn builtin_name(&self) -> Option<&'static str> {
        match self.form {
            Form::Builtin(name) => Some(name),
            Form::Custom(_) => None,
        }
    }

    pub(super) fn as_custom(&self) -> Option<&Custom> {
        match &self.form {
            Form::Builtin(_) => None,
            Form::Custom(custom) => Some(custom),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_resolves_every_reference_and_tag() {
        let table = table();
        assert!(table.names.len() > 250);
        for (name, id) in &table.names {
            let Shape::Object { fields, .. } = &table.tree.node(*id).shape else {
                panic!("{name} is no object")
            };
            for (field, facts) in fields {
                let envelope = ["apiVersion", "kind"].contains(&field.as_str());
                assert!(
                    facts.tag.is_some() || envelope,
                    "{name}.{field} has no protobuf tag"
                );
            }
        }
    }

    #[test]
    fn service_ports_are_found_by_port_and_protocol() {
        let schema = Schema::for_kind("", "v1", "Service").expect("Service is built in");
        let ports = schema
            .root()
            .child("spec")
            .and_then(|spec| spec.child("ports"))
            .expect("services have ports");
        let Shape::List { kind, .. } = ports.shape() else {
            panic!("ports is a list")
        };
        assert_eq!(
            kind,
            &ListKind::Map(vec!["port".to_owned(), "protocol".to_owned()])
        );
        let protocol = ports
            .items()
            .and_then(|port| port.child("protocol"))
            .expect("ports have a protocol");
        assert_eq!(protocol.node.default, Some(Value::from("TCP")));
    }
}
