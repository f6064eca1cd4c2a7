//! Whether an expression can be evaluated at all: names, fields, and the types that functions take.
//!
//! Says what Kubernetes says, all faults at once. Types that can't be known are `dyn` and are met again in evaluation.

use std::collections::BTreeMap;

use regex::Regex;

use super::parse::{Expr, Fault, Form, Kind, Loop, Select};
use super::signatures;
use super::types::Type;
use super::value::Val;

/// What a checked expression was found to be.
#[derive(Debug)]
pub(super) struct Checked {
    pub ty: Type,
    pub uses_old: bool,
}

/// Names of types, which are values too.
pub(super) const TYPES: &[&str] = &[
    "bool",
    "bytes",
    "double",
    "int",
    "list",
    "map",
    "null_type",
    "string",
    "type",
    "uint",
];

pub(super) const SELF: &str = "self";
pub(super) const OLD: &str = "oldSelf";

/// `regexes` gets the patterns that are written as literals.
pub(super) fn check(
    expr: &Expr,
    this: &Type,
    old: &Type,
    regexes: &mut BTreeMap<String, Regex>,
) -> Result<Checked, Vec<Fault>> {
    let mut checker = Checker {
        variables: vec![(OLD, old.clone()), (SELF, this.clone())],
        faults: Vec::new(),
        late: Vec::new(),
        may_mix: false,
        uses_old: false,
        regexes,
    };
    let ty = checker.check(expr);
    let Checker {
        mut faults,
        late,
        uses_old,
        ..
    } = checker;
    if faults.is_empty() {
        faults = late;
    }
    if faults.is_empty() {
        return Ok(Checked { ty, uses_old });
    }
    faults.sort_by_key(|fault| fault.at);
    Err(faults)
}

struct Checker<'a> {
    /// The innermost is last.
    variables: Vec<(&'a str, Type)>,
    faults: Vec<Fault>,
    /// Of literals, told only if all types are right.
    late: Vec<Fault>,
    /// Whether literals of lists and maps may hold what they like.
    may_mix: bool,
    uses_old: bool,
    regexes: &'a mut BTreeMap<String, Regex>,
}

impl<'a> Checker<'a> {
    /// What is wrong has any type, so that it is told once.
    fn fault(&mut self, at: usize, message: String) -> Type {
        self.faults.push(Fault { at, message });
        Type::Dyn
    }

    fn expect(&mut self, wanted: &Type, found: &Type, at: usize) {
        if !wanted.takes(found) {
            self.fault(at, format!("expected type '{wanted}' but found '{found}'"));
        }
    }

    fn check(&mut self, expr: &'a Expr) -> Type {
        match &expr.kind {
            Kind::Literal(value) => match value {
                Val::Bool(_) => Type::Bool,
                Val::Int(_) => Type::Int,
                Val::Uint(_) => Type::Uint,
                Val::Double(_) => Type::Double,
                Val::String(_) => Type::String,
                Val::Bytes(_) => Type::Bytes,
                _ => Type::Null,
            },
            Kind::Name(name) => self.name(expr.at, name),
            Kind::Select { of, field, form } => self.select(expr.at, of, field, *form),
            Kind::Call {
                function,
                method,
                args,
            } => {
                let outside = self.may_mix;
                self.may_mix |= function == "format";
                let types = args.iter().map(|arg| self.check(arg)).collect::<Vec<_>>();
                self.may_mix = outside;
                self.literals(function, args);
                self.call(expr.at, function, *method, &types)
            }
            Kind::List(items) => {
                let mut ty = None;
                for (item, optional) in items {
                    let found = self.check(item);
                    let found = self.unwrap(found, *optional, item.at);
                    self.join(&mut ty, found, item.at);
                }
                Type::list(ty.unwrap_or(Type::Dyn))
            }
            Kind::Map(entries) => {
                let (mut keys, mut values) = (None, None);
                for (key, value, optional) in entries {
                    let found = self.check(key);
                    self.join(&mut keys, found, key.at);
                    let found = self.check(value);
                    let found = self.unwrap(found, *optional, value.at);
                    self.join(&mut values, found, value.at);
                }
                Type::map(keys.unwrap_or(Type::Dyn), values.unwrap_or(Type::Dyn))
            }
            Kind::And(operands) | Kind::Or(operands) => {
                for operand in operands {
                    let found = self.check(operand);
                    self.expect(&Type::Bool, &found, operand.at);
                }
                Type::Bool
            }
            Kind::If(parts) => {
                let [condition, yes, no] = parts.each_ref().map(|part| self.check(part));
                if Type::Bool.takes(&condition) && (yes.takes(&no) || no.takes(&yes)) {
                    return if matches!(yes, Type::Null) { no } else { yes };
                }
                self.no_overload(expr.at, "_?_:_", false, &[condition, yes, no])
            }
            Kind::Loop(inner) => self.each(expr.at, inner),
        }
    }

    fn name(&mut self, at: usize, name: &str) -> Type {
        let variable = self.variables.iter().enumerate().rev();
        if let Some((index, (_, ty))) = variable.into_iter().find(|(_, (known, _))| *known == name) {
            self.uses_old |= index == 0;
            return ty.clone();
        }
        if TYPES.contains(&name) {
            return Type::Kind;
        }
        self.fault(at, format!("undeclared reference to '{name}' (in container '')"))
    }

    fn select(&mut self, at: usize, of: &'a Expr, field: &str, form: Select) -> Type {
        let of = self.check(of);
        let (target, was_optional) = match &of {
            Type::Optional(inner) => ((**inner).clone(), true),
            other => (other.clone(), false),
        };
        let found = match &target {
            Type::Map(inner) => inner.1.clone(),
            Type::Dyn => Type::Dyn,
            Type::Object(object) => match object.fields.get(field) {
                Some(field) => field.ty.clone(),
                None => self.fault(at, format!("undefined field '{field}'")),
            },
            other => self.fault(at, format!("type '{other}' does not support field selection")),
        };
        match form {
            Select::Test => Type::Bool,
            Select::Value if !was_optional => found,
            Select::Value | Select::Optional => Type::optional(found),
        }
    }

    fn call(&mut self, at: usize, function: &str, method: bool, args: &[Type]) -> Type {
        let Some(signatures) = signatures::of(function) else {
            return self.fault(
                at,
                format!("undeclared reference to '{function}' (in container '')"),
            );
        };
        let mut result: Option<Type> = None;
        for signature in signatures {
            let mut bound = BTreeMap::new();
            let fits = signature.method == method
                && signature.args.len() == args.len()
                && signature
                    .args
                    .iter()
                    .zip(args)
                    .all(|(wanted, found)| wanted.unify(found, &mut bound));
            if !fits {
                continue;
            }
            let found = signature.result.resolve(&bound);
            result = match result {
                // Several may fit what is dynamic.
                Some(before) if before.to_string() != found.to_string() => Some(Type::Dyn),
                _ => Some(found),
            };
        }
        result.unwrap_or_else(|| self.no_overload(at, function, method, args))
    }

    fn no_overload(&mut self, at: usize, function: &str, method: bool, args: &[Type]) -> Type {
        let list = |types: &[Type]| types.iter().map(Type::to_string).collect::<Vec<_>>().join(", ");
        let applied = match args {
            [target, args @ ..] if method => format!("{target}.({})", list(args)),
            args => format!("({})", list(args)),
        };
        self.fault(
            at,
            format!("found no matching overload for '{function}' applied to '{applied}'"),
        )
    }

    /// Literals that could never be read.
    fn literals(&mut self, function: &str, args: &[Expr]) {
        let literal = |index: usize| match args.get(index).map(|arg| (arg.at, &arg.kind)) {
            Some((at, Kind::Literal(Val::String(text)))) => Some((at, &**text)),
            _ => None,
        };
        let bad = match (function, literal(0), literal(1)) {
            ("matches" | "find" | "findAll", _, Some((at, pattern))) => match super::regex(pattern) {
                Ok(regex) => {
                    self.regexes.insert(pattern.to_owned(), regex);
                    None
                }
                Err(_) => Some((at, "matches")),
            },
            ("duration", Some((at, text)), _) if super::value::duration(text).is_none() => {
                Some((at, "duration"))
            }
            ("timestamp", Some((at, text)), _) if text.parse::<jiff::Timestamp>().is_err() => {
                Some((at, "timestamp"))
            }
            _ => None,
        };
        if let Some((at, what)) = bad {
            let message = format!("invalid {what} argument");
            self.late.push(Fault { at, message });
        }
    }

    fn unwrap(&mut self, found: Type, optional: bool, at: usize) -> Type {
        match found {
            found if !optional => found,
            Type::Optional(inner) => (*inner).clone(),
            Type::Dyn => Type::Dyn,
            other => self.fault(
                at,
                format!("expected type 'optional_type(dyn)' but found '{other}'"),
            ),
        }
    }

    /// Literals of lists and maps are of one type, or of something that is known later.
    fn join(&mut self, all: &mut Option<Type>, found: Type, at: usize) {
        match all {
            None => *all = Some(found),
            Some(known) if known.takes(&found) => {}
            Some(known) => {
                if !self.may_mix {
                    let message = format!("expected type '{known}' but found '{found}'");
                    self.late.push(Fault { at, message });
                }
                *all = Some(Type::Dyn);
            }
        }
    }

    fn each(&mut self, at: usize, inner: &'a Loop) -> Type {
        let over = self.check(&inner.over);
        let optional = matches!(inner.form, Form::Optional | Form::FlatOptional);
        let (keys, values) = match &over {
            Type::Dyn => (Type::Dyn, Type::Dyn),
            Type::Optional(value) if optional => ((**value).clone(), Type::Dyn),
            Type::List(items) if !optional && inner.second.is_some() => (Type::Int, (**items).clone()),
            Type::List(items) if !optional => ((**items).clone(), Type::Dyn),
            Type::Map(inner) if !optional => (inner.0.clone(), inner.1.clone()),
            other if optional => {
                let function = if inner.form == Form::Optional {
                    "optMap"
                } else {
                    "optFlatMap"
                };
                return self.no_overload(at, function, true, std::slice::from_ref(other));
            }
            other => {
                let message = format!(
                    "expression of type '{other}' cannot be range of a comprehension (must be list, map, or dynamic)"
                );
                return self.fault(inner.over.at, message);
            }
        };
        let outside = self.variables.len();
        self.variables.push((&inner.variable, keys.clone()));
        if let Some(second) = &inner.second {
            self.variables.push((second, values));
        }
        if let Some(filter) = &inner.filter {
            let found = self.check(filter);
            self.expect(&Type::Bool, &found, filter.at);
        }
        let body = self.check(&inner.body);
        self.variables.truncate(outside);
        match inner.form {
            Form::All | Form::Exists | Form::ExistsOne | Form::Filter => {
                self.expect(&Type::Bool, &body, inner.body.at);
                if inner.form == Form::Filter {
                    Type::list(keys)
                } else {
                    Type::Bool
                }
            }
            Form::List => Type::list(body),
            Form::Map => Type::map(keys, body),
            Form::Optional => Type::optional(body),
            Form::FlatOptional => body,
        }
    }
}
