//! Sets of fields, as `managedFields` writes them (`FieldsV1`).
//!
//! An element of a path is kept in its wire form: `f:name`, `k:{"name":"a"}`, `v:"x"` or `i:0`. That makes a set a
//! plain trie over strings, and its JSON form almost the trie itself.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Map, Value};

/// FieldsV1 nests as deep as the object does; what nests deeper than any object may is refused.
const DEPTH_MAX: usize = 128;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Set(pub BTreeMap<String, Branch>);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Branch {
    /// The path that ends here belongs to the set, whatever is below.
    pub member: bool,
    pub below: Set,
}

impl Branch {
    pub(super) fn leaf() -> Self {
        Self {
            member: true,
            below: Set::default(),
        }
    }

    fn is_empty(&self) -> bool {
        !self.member && self.below.is_empty()
    }
}

impl Set {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn insert_branch(&mut self, element: String, branch: Branch) {
        if branch.is_empty() {
            return;
        }
        let known = self.0.entry(element).or_default();
        known.member |= branch.member;
        known.below.add(&branch.below);
    }

    pub(super) fn insert(&mut self, path: &[String]) {
        if let [first, rest @ ..] = path {
            let branch = self.0.entry(first.clone()).or_default();
            if rest.is_empty() {
                branch.member = true;
            } else {
                branch.below.insert(rest);
            }
        }
    }

    pub(super) fn remove(&mut self, path: &[&str]) {
        let [first, rest @ ..] = path else { return };
        if let Some(branch) = self.0.get_mut(*first) {
            if rest.is_empty() {
                branch.member = false;
            } else {
                branch.below.remove(rest);
            }
            if branch.is_empty() {
                self.0.remove(*first);
            }
        }
    }

    pub(super) fn add(&mut self, other: &Self) {
        for (element, branch) in &other.0 {
            self.insert_branch(element.clone(), branch.clone());
        }
    }

    #[must_use]
    pub(super) fn union(&self, other: &Self) -> Self {
        let mut union = self.clone();
        union.add(other);
        union
    }

    #[must_use]
    pub(super) fn intersection(&self, other: &Self) -> Self {
        self.zip(other, &|mine, theirs| mine && theirs)
    }

    #[must_use]
    pub(super) fn difference(&self, other: &Self) -> Self {
        self.zip(other, &|mine, theirs| mine && !theirs)
    }

    /// Also takes away everything below what `other` has.
    #[must_use]
    pub(super) fn without_subtrees(&self, other: &Self) -> Self {
        let mut rest = Self::default();
        for (element, branch) in &self.0 {
            let kept = match other.0.get(element) {
                None => branch.clone(),
                Some(gone) if gone.member => continue,
                Some(gone) => Branch {
                    member: branch.member,
                    below: branch.below.without_subtrees(&gone.below),
                },
            };
            rest.insert_branch(element.clone(), kept);
        }
        rest
    }

    fn zip(&self, other: &Self, keep: &dyn Fn(bool, bool) -> bool) -> Self {
        let nothing = Branch::default();
        let mut zipped = Self::default();
        for (element, branch) in &self.0 {
            let theirs = other.0.get(element).unwrap_or(&nothing);
            let member = keep(branch.member, theirs.member);
            zipped.insert_branch(
                element.clone(),
                Branch {
                    member,
                    below: branch.below.zip(&theirs.below, keep),
                },
            );
        }
        zipped
    }

    /// Every member, as people write it: `.spec.containers[name="a"].image`.
    pub(super) fn paths(&self) -> Vec<String> {
        let mut paths = Vec::new();
        self.collect_paths("", &mut paths);
        paths
    }

    fn collect_paths(&self, prefix: &str, paths: &mut Vec<String>) {
        for (element, branch) in &self.0 {
            let path = format!("{prefix}{}", shown(element));
            if branch.member {
                paths.push(path.clone());
            }
            branch.below.collect_paths(&path, paths);
        }
    }

    pub(super) fn to_json(&self) -> Value {
        let mut object = Map::new();
        for (element, branch) in &self.0 {
            let mut below = match branch.below.to_json() {
                Value::Object(below) => below,
                _ => Map::new(),
            };
            if branch.member && !below.is_empty() {
                below.insert(".".to_owned(), Value::Object(Map::new()));
            }
            object.insert(element.clone(), Value::Object(below));
        }
        Value::Object(object)
    }

    pub(super) fn from_json(value: &Value) -> Option<Self> {
        Self::read(value, DEPTH_MAX)
    }

    fn read(value: &Value, depth: usize) -> Option<Self> {
        let depth = depth.checked_sub(1)?;
        let mut set = Self::default();
        for (element, below) in value.as_object()? {
            if element == "." {
                continue;
            }
            let object = below.as_object()?;
            let member = object.is_empty() || object.contains_key(".");
            set.insert_branch(
                canonical(element)?,
                Branch {
                    member,
                    below: Self::read(below, depth)?,
                },
            );
        }
        Some(set)
    }
}

pub(super) fn field(name: &str) -> String {
    format!("f:{name}")
}

pub(super) fn index(index: usize) -> String {
    format!("i:{index}")
}

pub(super) fn value(value: &Value) -> String {
    format!("v:{value}")
}

/// The keys must be in order, whatever order the object gave them in.
pub(super) fn key(keys: &BTreeMap<&str, &Value>) -> String {
    let mut text = "k:{".to_owned();
    for (position, (name, value)) in keys.iter().enumerate() {
        let comma = if position == 0 { "" } else { "," };
        let _ = write!(text, "{comma}{}:{value}", Value::from(*name));
    }
    text.push('}');
    text
}

fn canonical(element: &str) -> Option<String> {
    let (kind, rest) = element.split_once(':')?;
    match kind {
        "f" => Some(element.to_owned()),
        "i" => rest.parse::<usize>().ok().map(index),
        "v" => serde_json::from_str(rest).ok().map(|it| value(&it)),
        "k" => {
            let keys: BTreeMap<String, Value> = serde_json::from_str(rest).ok()?;
            Some(key(&keys
                .iter()
                .map(|(name, value)| (name.as_str(), value))
                .collect()))
        }
        _ => None,
    }
}

fn shown(element: &str) -> String {
    match element.split_once(':') {
        Some(("f", name)) => format!(".{name}"),
        Some(("v", value)) => format!("[={value}]"),
        Some(("k", keys)) => {
            let keys: BTreeMap<String, Value> = serde_json::from_str(keys).unwrap_or_default();
            let keys: Vec<String> = keys
                .iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect();
            format!("[{}]", keys.join(","))
        }
        _ => format!("[{}]", element.trim_start_matches("i:")),
    }
}
