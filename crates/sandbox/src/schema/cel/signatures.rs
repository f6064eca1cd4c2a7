//! Which functions there are, and for what types: `signatures.txt`, where letters stand for any type.
//!
//! A name before a point is a target's type if it is one, and a namespace otherwise.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use super::types::{CIDR, IP, QUANTITY, Type, URL};

#[derive(Debug)]
pub(super) struct Signature {
    pub method: bool,
    /// With the target.
    pub args: Vec<Type>,
    pub result: Type,
}

pub(super) fn of(function: &str) -> Option<&'static [Signature]> {
    TABLE.get(function).map(Vec::as_slice)
}

static TABLE: LazyLock<BTreeMap<String, Vec<Signature>>> = LazyLock::new(|| {
    let mut table = BTreeMap::<String, Vec<Signature>>::new();
    for line in include_str!("signatures.txt").lines() {
        let (name, signature) = read(line).unwrap_or_else(|| panic!("{line:?} is a signature"));
        table.entry(name).or_default().push(signature);
    }
    let alike = ["bool", "string", "bytes", "timestamp", "duration"].map(|name| (name, name));
    let numbers = ["int", "uint", "double"];
    let mixed = numbers.map(|one| numbers.map(|other| (one, other)));
    for (one, other) in alike.into_iter().chain(mixed.into_iter().flatten()) {
        for operator in ["_<_", "_<=_", "_>=_", "_>_"] {
            let signature = Signature {
                method: false,
                args: [one, other].iter().filter_map(|name| named(name)).collect(),
                result: Type::Bool,
            };
            table.entry(operator.to_owned()).or_default().push(signature);
        }
    }
    table
});

fn read(line: &str) -> Option<(String, Signature)> {
    let (head, result) = line.rsplit_once(") ")?;
    // The arguments' parenthesis is the one that nothing closes.
    let mut open = 1;
    let begin = head
        .char_indices()
        .rev()
        .find(|(_, c)| {
            open += match c {
                ')' => 1,
                '(' => -1,
                _ => 0,
            };
            open == 0
        })?
        .0;
    let (name, args) = (head.get(..begin)?, head.get(begin + 1..)?);
    let mut args: Vec<Type> = split(args).into_iter().map(named).collect::<Option<_>>()?;
    let target = name
        .rsplit_once('.')
        .and_then(|(target, name)| Some((named(target)?, name)));
    let method = target.is_some() && name != "ip.isCanonical";
    let name = match target {
        Some((target, name)) if method => {
            args.insert(0, target);
            name
        }
        _ => name,
    };
    let result = named(result)?;
    Some((name.to_owned(), Signature { method, args, result }))
}

/// At the commas that are not inside parentheses.
fn split(list: &str) -> Vec<&str> {
    let mut depth = 0;
    let parts = list.split(|c| {
        depth += match c {
            '(' => 1,
            ')' => -1,
            _ => 0,
        };
        c == ',' && depth == 0
    });
    parts.map(str::trim).filter(|part| !part.is_empty()).collect()
}

fn named(name: &str) -> Option<Type> {
    if let Some((outer, inner)) = name.split_once('(') {
        let inner = split(inner.strip_suffix(')')?);
        return match (outer, inner.as_slice()) {
            ("list", [items]) => Some(Type::list(named(items)?)),
            ("optional", [inner]) => Some(Type::optional(named(inner)?)),
            ("map", [keys, values]) => Some(Type::map(named(keys)?, named(values)?)),
            _ => None,
        };
    }
    Some(match name {
        "A" => Type::Any('A'),
        "B" => Type::Any('B'),
        "dyn" => Type::Dyn,
        "bool" => Type::Bool,
        "int" => Type::Int,
        "uint" => Type::Uint,
        "double" => Type::Double,
        "string" => Type::String,
        "bytes" => Type::Bytes,
        "duration" => Type::Duration,
        "timestamp" => Type::Timestamp,
        "type" => Type::Kind,
        "quantity" => QUANTITY,
        "url" => URL,
        "ip" => IP,
        "cidr" => CIDR,
        _ => return None,
    })
}
