//! CEL: the rules that definitions state in `x-kubernetes-validations`, compiled and evaluated.
//!
//! [`Rules`] is what the rest of the schema uses. Beneath it an expression is parsed, checked against the types of its
//! schema and evaluated within a budget, as Kubernetes does all three. Expressions come from whoever may write a
//! definition, so their size, their depth and their work are bounded, and nothing here waits or looks outside.
//!
//! Deliberately missing: the estimate of what a rule may cost at most, by which Kubernetes refuses definitions; rules
//! inside `allOf`; and of the libraries those of authorization, formats and semantic versions.

mod check;
mod eval;
mod functions;
mod parse;
mod rules;
mod signatures;
mod types;
mod url;
mod value;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use regex::{Regex, RegexBuilder};

use self::eval::{Evaluator, Stop};
use self::parse::{Expr, Fault};
use self::types::Type;
use self::value::Val;

pub(super) use self::rules::Rules;

/// Of one evaluation, as in Kubernetes: about a tenth of a second.
const CALL_BUDGET: u64 = 1_000_000;
/// Of a compiled pattern, in bytes.
const PATTERN_SIZE_MAX: usize = 1 << 20;

#[derive(Debug)]
struct Program {
    expr: Expr,
    regexes: BTreeMap<String, Regex>,
    ty: Type,
    uses_old: bool,
}

impl Program {
    /// Says what is wrong as Kubernetes does, with the line and a mark beneath the place.
    fn compile(text: &str, this: &Type, old: &Type) -> Result<Self, String> {
        let told = |faults: Vec<Fault>| {
            let told: Vec<String> = faults.iter().map(|fault| tell(text, fault)).collect();
            told.join("\n")
        };
        let expr = parse::parse(text).map_err(|fault| told(vec![fault]))?;
        let mut regexes = BTreeMap::new();
        let checked = check::check(&expr, this, old, &mut regexes).map_err(told)?;
        let (ty, uses_old) = (checked.ty, checked.uses_old);
        Ok(Self {
            expr,
            regexes,
            ty,
            uses_old,
        })
    }

    /// The value, and what it cost to find.
    fn evaluate<'a>(&self, this: Val<'a>, old: Option<Val<'a>>) -> (Result<Val<'a>, Stop>, u64) {
        let mut variables = vec![(check::SELF, this)];
        variables.extend(old.map(|old| (check::OLD, old)));
        let mut evaluator = Evaluator::new(variables, CALL_BUDGET, &self.regexes);
        let result = evaluator.eval(&self.expr);
        (result, CALL_BUDGET - evaluator.left)
    }
}

fn regex(pattern: &str) -> Result<Regex, regex::Error> {
    RegexBuilder::new(pattern).size_limit(PATTERN_SIZE_MAX).build()
}

fn tell(text: &str, fault: &Fault) -> String {
    let before: String = text.chars().take(fault.at).collect();
    let line = before.matches('\n').count();
    let column = before.chars().rev().take_while(|c| *c != '\n').count();
    let shown = text.lines().nth(line).unwrap_or_default().replace('\t', " ");
    let dots: String = shown
        .chars()
        .take(column)
        .map(|c| if c.is_ascii() { '.' } else { '\u{ff0e}' })
        .collect();
    let mark = match shown.chars().nth(column) {
        Some(c) if !c.is_ascii() => '\u{ff3e}',
        _ => '^',
    };
    format!(
        "ERROR: <input>:{}:{}: {}\n | {shown}\n | {dots}{mark}",
        line + 1,
        column + 1,
        fault.message
    )
}
