//! What a checked expression comes to. All work is counted, and stops when the budget is spent.
//!
//! The units are like Kubernetes': one for each step, one for ten bytes of text that are read or made, one for each
//! element. A fault in an operand of `&&`, `||`, `all` or `exists` counts only if the others don't decide.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use regex::Regex;

use super::check::TYPES;
use super::parse::{Expr, Form, Kind, Loop, Select};
use super::value::{Key, List, Map, Text, Val};

/// Compiling a pattern that is no literal; most of what matching costs.
const PATTERN_COST: u64 = 10_000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    Budget,
    Fault(String),
}

pub(super) fn fault<T>(message: impl Into<String>) -> Result<T, Stop> {
    Err(Stop::Fault(message.into()))
}

pub(super) fn no_overload<T>() -> Result<T, Stop> {
    fault("no such overload")
}

pub(super) struct Evaluator<'a, 'p> {
    /// The innermost is last.
    variables: Vec<(&'p str, Val<'a>)>,
    pub left: u64,
    literals: &'p BTreeMap<String, Regex>,
    patterns: BTreeMap<String, Regex>,
}

impl<'a, 'p> Evaluator<'a, 'p> {
    pub(super) fn new(
        variables: Vec<(&'p str, Val<'a>)>,
        budget: u64,
        literals: &'p BTreeMap<String, Regex>,
    ) -> Self {
        Self {
            variables,
            left: budget,
            literals,
            patterns: BTreeMap::new(),
        }
    }

    pub(super) fn charge(&mut self, cost: usize) -> Result<(), Stop> {
        match self.left.checked_sub(cost as u64) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => {
                self.left = 0;
                Err(Stop::Budget)
            }
        }
    }

    pub(super) fn charge_bytes(&mut self, count: usize) -> Result<(), Stop> {
        self.charge(count.div_ceil(10))
    }

    pub(super) fn eval(&mut self, expr: &'p Expr) -> Result<Val<'a>, Stop> {
        self.charge(1)?;
        match &expr.kind {
            Kind::Literal(value) => Ok(value.clone()),
            Kind::Name(name) => self.name(name),
            Kind::Select { of, field, form } => {
                let of = self.eval(of)?;
                select(of, &Key::Text(Text::from(field.clone())), *form)
            }
            Kind::Call { function, args, .. } => {
                let args = args
                    .iter()
                    .map(|arg| self.eval(arg))
                    .collect::<Result<Vec<_>, _>>()?;
                self.call(function, &args)
            }
            Kind::List(items) => self.list_of(items),
            Kind::Map(entries) => self.map_of(entries),
            Kind::And(operands) => self.decide(operands.iter(), false),
            Kind::Or(operands) => self.decide(operands.iter(), true),
            Kind::If(parts) => {
                let [condition, yes, no] = &**parts;
                match self.eval(condition)? {
                    Val::Bool(true) => self.eval(yes),
                    Val::Bool(false) => self.eval(no),
                    _ => no_overload(),
                }
            }
            Kind::Loop(inner) => {
                let outside = self.variables.len();
                let result = self.each(inner);
                self.variables.truncate(outside);
                result
            }
        }
    }

    fn list_of(&mut self, items: &'p [(Expr, bool)]) -> Result<Val<'a>, Stop> {
        self.charge(10)?;
        let mut list = Vec::with_capacity(items.len());
        for (item, optional) in items {
            list.extend(present(self.eval(item)?, *optional)?);
        }
        Ok(Val::list(list))
    }

    fn map_of(&mut self, entries: &'p [(Expr, Expr, bool)]) -> Result<Val<'a>, Stop> {
        self.charge(30)?;
        let mut map = BTreeMap::new();
        for (key, value, optional) in entries {
            let key = self.eval(key)?;
            if let Some(value) = present(self.eval(value)?, *optional)? {
                insert(&mut map, &key, value)?;
            }
        }
        Ok(made(map))
    }

    fn name(&self, name: &str) -> Result<Val<'a>, Stop> {
        let mut variables = self.variables.iter().rev();
        if let Some((_, value)) = variables.find(|(known, _)| *known == name) {
            return Ok(value.clone());
        }
        match TYPES.iter().find(|known| **known == name) {
            Some(name) => Ok(Val::Type(name)),
            None => fault(format!("no such attribute: {name}")),
        }
    }

    /// Whether one operand is `deciding`; a fault matters only if none is.
    fn decide(&mut self, operands: impl Iterator<Item = &'p Expr>, deciding: bool) -> Result<Val<'a>, Stop> {
        let mut first_fault = None;
        for operand in operands {
            match self.eval(operand) {
                Ok(Val::Bool(value)) if value == deciding => return Ok(Val::Bool(deciding)),
                Ok(Val::Bool(_)) => {}
                Ok(_) => first_fault = first_fault.or_else(|| no_overload::<()>().err()),
                Err(Stop::Budget) => return Err(Stop::Budget),
                Err(fault) => first_fault = first_fault.or(Some(fault)),
            }
        }
        first_fault.map_or(Ok(Val::Bool(!deciding)), Err)
    }

    /// The elements of what is looped over, as one or two variables see them.
    fn elements(&mut self, inner: &'p Loop) -> Result<Vec<(Val<'a>, Val<'a>)>, Stop> {
        let two = inner.second.is_some();
        let fit = |value: Result<Val<'a>, String>| value.map_err(Stop::Fault);
        match self.eval(&inner.over)? {
            Val::List(list) => {
                self.charge(list.len())?;
                let numbered = list.iter().zip(0..);
                numbered
                    .map(|(item, index)| match two {
                        true => Ok((Val::Int(index), fit(item)?)),
                        false => Ok((fit(item)?, Val::Null)),
                    })
                    .collect()
            }
            Val::Map(map) => {
                self.charge(map.len())?;
                let entries = map.entries().into_iter();
                entries
                    .map(|(key, value)| Ok((key.into(), fit(value)?)))
                    .collect()
            }
            Val::Optional(inner) => {
                let value = inner.map(|value| (*value).clone());
                Ok(value.into_iter().map(|value| (value, Val::Null)).collect())
            }
            _ => no_overload(),
        }
    }

    /// Leaves its variables for the caller to remove.
    fn each(&mut self, inner: &'p Loop) -> Result<Val<'a>, Stop> {
        let elements = self.elements(inner)?;
        let outside = self.variables.len();
        let (mut list, mut map, mut count) = (Vec::new(), BTreeMap::new(), 0);
        let mut first_fault = None;
        for (first, second) in elements {
            self.charge(1)?;
            self.variables.truncate(outside);
            self.variables.push((&inner.variable, first.clone()));
            if let Some(name) = &inner.second {
                self.variables.push((name, second));
            }
            if let Some(filter) = &inner.filter {
                match self.eval(filter)? {
                    Val::Bool(true) => {}
                    Val::Bool(false) => continue,
                    _ => return no_overload(),
                }
            }
            let found = self.eval(&inner.body);
            let found = match (inner.form, found) {
                (Form::All, Ok(Val::Bool(false))) => return Ok(Val::Bool(false)),
                (Form::Exists, Ok(Val::Bool(true))) => return Ok(Val::Bool(true)),
                (Form::All | Form::Exists, Err(Stop::Fault(why))) => {
                    first_fault = first_fault.or(Some(why));
                    continue;
                }
                (_, found) => found?,
            };
            match (inner.form, found) {
                (Form::All | Form::Exists | Form::ExistsOne | Form::Filter, Val::Bool(true)) => {
                    count += 1;
                    list.push(first);
                }
                (Form::All | Form::Exists | Form::ExistsOne | Form::Filter, Val::Bool(false)) => {}
                (Form::List, found) => {
                    self.charge(10)?;
                    list.push(found);
                }
                (Form::Map, found) => {
                    self.charge(30)?;
                    insert(&mut map, &first, found)?;
                }
                (Form::Optional, found) => return Ok(Val::some(found)),
                (Form::FlatOptional, found) => return Ok(found),
                _ => return no_overload(),
            }
        }
        match (inner.form, first_fault) {
            (_, Some(why)) => fault(why),
            (Form::All, None) => Ok(Val::Bool(true)),
            (Form::Exists, None) => Ok(Val::Bool(false)),
            (Form::ExistsOne, None) => Ok(Val::Bool(count == 1)),
            (Form::Filter | Form::List, None) => Ok(Val::list(list)),
            (Form::Map, None) => Ok(made(map)),
            (Form::Optional | Form::FlatOptional, None) => Ok(Val::Optional(None)),
        }
    }

    pub(super) fn equal(&mut self, one: &Val<'a>, other: &Val<'a>) -> Result<bool, Stop> {
        self.charge(1)?;
        if let Some(order) = numbers(one, other) {
            return Ok(order == Some(Ordering::Equal));
        }
        match (one, other) {
            (Val::String(one), Val::String(other)) => {
                self.charge_bytes(one.len().min(other.len()))?;
                Ok(one == other)
            }
            (Val::Bytes(one), Val::Bytes(other)) => {
                self.charge_bytes(one.len().min(other.len()))?;
                Ok(one == other)
            }
            (Val::List(one), Val::List(other)) => {
                if one.len() != other.len() {
                    return Ok(false);
                }
                for (one, other) in one.iter().zip(other.iter()) {
                    if !self.equal(&one.map_err(Stop::Fault)?, &other.map_err(Stop::Fault)?)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            (Val::Map(one), Val::Map(other)) => {
                self.charge(one.len())?;
                if one.len() != other.len() {
                    return Ok(false);
                }
                for (key, value) in one.entries() {
                    let Some(other) = other.get(&key) else {
                        return Ok(false);
                    };
                    if !self.equal(&value.map_err(Stop::Fault)?, &other.map_err(Stop::Fault)?)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            (Val::Optional(Some(one)), Val::Optional(Some(other))) => self.equal(one, other),
            // What is left is small, or of different types.
            (one, other) if one.type_name() == other.type_name() => Ok(one == other),
            _ => Ok(false),
        }
    }

    /// Nothing if one of them is no number that can be compared.
    pub(super) fn compare(&mut self, one: &Val<'a>, other: &Val<'a>) -> Result<Option<Ordering>, Stop> {
        if let Some(order) = numbers(one, other) {
            return Ok(order);
        }
        Ok(Some(match (one, other) {
            (Val::Bool(one), Val::Bool(other)) => one.cmp(other),
            (Val::String(one), Val::String(other)) => {
                self.charge_bytes(one.len().min(other.len()))?;
                one.cmp(other)
            }
            (Val::Bytes(one), Val::Bytes(other)) => {
                self.charge_bytes(one.len().min(other.len()))?;
                one.cmp(other)
            }
            (Val::Timestamp(one), Val::Timestamp(other)) => one.cmp(other),
            (Val::Duration(one), Val::Duration(other)) => one.cmp(other),
            _ => return no_overload(),
        }))
    }

    /// The place of the first element that is equal, in the order of the iterator.
    pub(super) fn position(
        &mut self,
        list: &List<'a>,
        order: impl Iterator<Item = usize>,
        wanted: &Val<'a>,
    ) -> Result<Option<usize>, Stop> {
        for index in order {
            let Some(item) = list.get(index) else { continue };
            if self.equal(&item.map_err(Stop::Fault)?, wanted)? {
                return Ok(Some(index));
            }
        }
        Ok(None)
    }

    /// The pattern, paid for together with one use of it on this text.
    pub(super) fn regex(&mut self, pattern: &str, text: &str) -> Result<Regex, Stop> {
        self.charge(text.len().div_ceil(10).saturating_mul(pattern.len().div_ceil(4)))?;
        if let Some(known) = self.literals.get(pattern).or_else(|| self.patterns.get(pattern)) {
            return Ok(known.clone());
        }
        self.left = self.left.checked_sub(PATTERN_COST).ok_or(Stop::Budget)?;
        let regex = super::regex(pattern).or_else(|why| fault(format!("error parsing regexp: {why}")))?;
        self.patterns.insert(pattern.to_owned(), regex.clone());
        Ok(regex)
    }
}

/// The field or element of that key.
pub(super) fn select<'a>(of: Val<'a>, key: &Key<'_>, form: Select) -> Result<Val<'a>, Stop> {
    let (of, form) = match (of, form) {
        (Val::Optional(None), Select::Test) => return Ok(Val::Bool(false)),
        (Val::Optional(None), _) => return Ok(Val::Optional(None)),
        (Val::Optional(Some(of)), Select::Test) => ((*of).clone(), Select::Test),
        (Val::Optional(Some(of)), _) => ((*of).clone(), Select::Optional),
        (of, form) => (of, form),
    };
    let found = match (&of, key) {
        (Val::Map(map), key) => map.get(key),
        (Val::List(list), Key::Number(index)) => {
            usize::try_from(*index).ok().and_then(|index| list.get(index))
        }
        _ => return no_overload(),
    };
    match (found, form) {
        (found, Select::Test) => Ok(Val::Bool(found.is_some())),
        (Some(found), Select::Value) => found.map_err(Stop::Fault),
        (Some(found), Select::Optional) => found.map(Val::some).map_err(Stop::Fault),
        (None, Select::Optional) => Ok(Val::Optional(None)),
        (None, Select::Value) => {
            let key = match key {
                Key::Bool(value) => value.to_string(),
                Key::Number(number) => number.to_string(),
                Key::Text(text) => text.to_string(),
            };
            match of {
                Val::List(_) => fault(format!("index out of bounds: {key}")),
                _ => fault(format!("no such key: {key}")),
            }
        }
    }
}

/// What an element with `?` adds, or one without.
fn present(value: Val<'_>, optional: bool) -> Result<Option<Val<'_>>, Stop> {
    match value {
        value if !optional => Ok(Some(value)),
        Val::Optional(inner) => Ok(inner.map(|value| (*value).clone())),
        _ => no_overload(),
    }
}

fn insert<'a>(map: &mut BTreeMap<Key<'a>, Val<'a>>, key: &Val<'a>, value: Val<'a>) -> Result<(), Stop> {
    let Some(key) = key.key() else {
        return fault(format!("unsupported key type: {}", key.type_name()));
    };
    match map.insert(key, value) {
        None => Ok(()),
        Some(_) => fault("insert failed: key already exists"),
    }
}

pub(super) fn made<'a>(map: BTreeMap<Key<'a>, Val<'a>>) -> Val<'a> {
    Val::Map(Map::Made(map.into()))
}

/// How two numbers compare, of whatever types; within, nothing if one is not a number.
fn numbers(one: &Val<'_>, other: &Val<'_>) -> Option<Option<Ordering>> {
    let whole = |value: &Val<'_>| match value {
        Val::Int(number) => Some(i128::from(*number)),
        Val::Uint(number) => Some(i128::from(*number)),
        _ => None,
    };
    Some(match (one, other) {
        (Val::Double(one), Val::Double(other)) => one.partial_cmp(other),
        (Val::Double(one), other) => one.partial_cmp(&(whole(other)? as f64)),
        (one, Val::Double(other)) => (whole(one)? as f64).partial_cmp(other),
        (one, other) => Some(whole(one)?.cmp(&whole(other)?)),
    })
}
