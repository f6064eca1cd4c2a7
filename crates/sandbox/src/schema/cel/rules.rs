//! The rules of a schema, where they stand, and what objects they refuse.
//!
//! `self` is the value where the rule stands. A rule that looks at `oldSelf` holds for changes only, and only where it
//! can be told which old value became which new one: not in lists without keys. Another one forgives what was so before.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::eval::Stop;
use super::types::{Place, Type, escape};
use super::value::Val;
use super::{CALL_BUDGET, Program};
use crate::schema::cause::{Cause, Path};

const RULES: &str = "x-kubernetes-validations";
/// Of all rules for one object, as in Kubernetes.
const OBJECT_BUDGET: u64 = 10 * CALL_BUDGET;
const MESSAGE_LENGTH_MAX: usize = 5 * 1024;
const REASONS: &[&str] = &[
    "FieldValueDuplicate",
    "FieldValueForbidden",
    "FieldValueInvalid",
    "FieldValueRequired",
];

/// Those of one place in a schema, and of the places inside it.
#[derive(Debug)]
pub(in crate::schema) struct Rules {
    ty: Type,
    /// As the schema calls it.
    kind: String,
    rules: Vec<Rule>,
    properties: BTreeMap<String, Self>,
    values: Option<Box<Self>>,
    items: Option<Box<Self>>,
    /// By which items of a list are told apart.
    keys: Option<Vec<String>>,
}

#[derive(Debug)]
struct Rule {
    program: Program,
    message_program: Option<Program>,
    /// What to say of it where there is nothing better.
    title: String,
    message: String,
    reason: String,
    field: Option<String>,
    takes_optional: bool,
}

/// Why a definition's rules are refused; rules are compiled only if they all have the right form.
#[derive(Default)]
struct Faults {
    form: Vec<Cause>,
    compilation: Vec<Cause>,
}

impl Rules {
    /// Compiles the rules of a schema that is structural; nothing if there are none.
    pub(in crate::schema) fn compile(schema: &Value, at: &Path) -> Result<Option<Self>, Vec<Cause>> {
        let mut faults = Faults::default();
        let ty = Type::of_schema(schema, Place::Root);
        let rules = Self::read(schema, ty.as_ref(), at, None, &mut faults);
        match (faults.form.is_empty(), faults.compilation.is_empty()) {
            (true, true) => Ok(rules),
            (true, false) => Err(faults.compilation),
            (false, _) => Err(faults.form),
        }
    }

    /// `apart` is the innermost list around whose items can't be told apart.
    fn read(
        schema: &Value,
        ty: Option<&Type>,
        at: &Path,
        apart: Option<&Path>,
        faults: &mut Faults,
    ) -> Option<Self> {
        let mut properties = BTreeMap::new();
        let declared = schema.get("properties").and_then(Value::as_object);
        for (name, property) in declared.into_iter().flatten() {
            let at = at.field("properties").key(name);
            let known = match ty {
                Some(Type::Object(object)) => {
                    escape(name).and_then(|name| object.fields.get(&name).map(|field| field.ty.clone()))
                }
                _ => None,
            };
            let ty = known.or_else(|| Type::of_schema(property, Place::Inside));
            if let Some(rules) = Self::read(property, ty.as_ref(), &at, apart, faults) {
                properties.insert(name.clone(), rules);
            }
        }
        let values = schema
            .get("additionalProperties")
            .filter(|values| values.is_object());
        let values = values.and_then(|values| {
            let ty = match ty {
                Some(Type::Map(inner)) => Some(&inner.1),
                _ => None,
            };
            Self::read(values, ty, &at.field("additionalProperties"), apart, faults)
        });
        let keys = schema
            .get("x-kubernetes-list-map-keys")
            .and_then(Value::as_array)
            .map(|keys| keys.iter().filter_map(Value::as_str).map(str::to_owned).collect());
        let items = schema.get("items").and_then(|items| {
            let ty = match ty {
                Some(Type::List(items)) => Some(&**items),
                _ => None,
            };
            let apart = if keys.is_none() { Some(at) } else { apart };
            Self::read(items, ty, &at.field("items"), apart, faults)
        });
        let mut rules = Vec::new();
        let given = schema.get(RULES).and_then(Value::as_array);
        for (index, rule) in given.into_iter().flatten().enumerate() {
            let at = at.field(RULES).index(index);
            rules.extend(Rule::read(rule, schema, ty, &at, apart, faults));
        }
        let some = !rules.is_empty() || !properties.is_empty() || values.is_some() || items.is_some();
        some.then(|| Self {
            ty: ty.cloned().unwrap_or(Type::Dyn),
            kind: text(schema, "type").to_owned(),
            rules,
            properties,
            values: values.map(Box::new),
            items: items.map(Box::new),
            keys,
        })
    }

    /// Whom the rules refuse. `old` is what the object was.
    pub(in crate::schema) fn check(&self, object: &Value, old: Option<&Value>) -> Vec<Cause> {
        let mut check = Check {
            left: OBJECT_BUDGET,
            causes: Vec::new(),
        };
        // The cause that ends it is among them.
        let _ = check.walk(self, &Path::root(), object, old, false);
        check.causes
    }

    /// The item of an old list that became this one.
    fn former<'a>(&self, old: Option<&'a Value>, item: &Value) -> Option<&'a Value> {
        let keys = self.keys.as_ref()?;
        let same = |other: &&Value| keys.iter().all(|key| other.get(key) == item.get(key));
        old?.as_array()?.iter().find(same)
    }
}

impl Rule {
    fn read(
        rule: &Value,
        schema: &Value,
        ty: Option<&Type>,
        at: &Path,
        apart: Option<&Path>,
        faults: &mut Faults,
    ) -> Option<Self> {
        let field = Self::form(rule, schema, at, &mut faults.form);
        let source = text(rule, "rule");
        let mut refuse = |name: &str, detail: String| {
            faults
                .compilation
                .push(Cause::invalid_shown(&at.field(name), &shown(rule), &detail));
            None
        };
        let Some(ty) = ty else {
            return refuse(
                "rule",
                "failed to convert to declType for CEL validation rules".to_owned(),
            );
        };
        let takes_optional = rule.get("optionalOldSelf").and_then(Value::as_bool) == Some(true);
        let old = if takes_optional {
            Type::optional(ty.clone())
        } else {
            ty.clone()
        };
        let program = match Program::compile(source, ty, &old) {
            Ok(program) if matches!(program.ty, Type::Bool) => program,
            Ok(_) => return refuse("rule", "cel expression must evaluate to a bool".to_owned()),
            Err(why) => return refuse("rule", format!("compilation failed: {why}")),
        };
        let message_source = text(rule, "messageExpression");
        let message_program = match Program::compile(message_source, ty, &old) {
            _ if message_source.is_empty() => None,
            Ok(program) if matches!(program.ty, Type::String) => Some(program),
            Ok(_) => {
                return refuse(
                    "messageExpression",
                    "messageExpression must evaluate to a string".to_owned(),
                );
            }
            Err(why) => {
                return refuse(
                    "messageExpression",
                    format!("messageExpression compilation failed: {why}"),
                );
            }
        };
        if let (true, Some(within)) = (program.uses_old, apart) {
            let detail =
                format!("oldSelf cannot be used on the uncorrelatable portion of the schema within {within}");
            let cause = Cause::invalid(&at.field("rule"), &Value::from(source), &detail);
            faults.compilation.push(cause);
        }
        if let (false, Some(given)) = (program.uses_old, rule.get("optionalOldSelf")) {
            let detail = "may not be set if oldSelf is not used in rule";
            let cause = Cause::invalid(&at.field("optionalOldSelf"), given, detail);
            faults.compilation.push(cause);
        }
        let title = match text(rule, "message").trim() {
            "" => source.trim(),
            message => message,
        };
        let message = match text(rule, "message").trim() {
            "" => format!("failed rule: {title}"),
            message => message.to_owned(),
        };
        Some(Self {
            program,
            message_program,
            title: title.to_owned(),
            message,
            reason: text(rule, "reason").to_owned(),
            field,
            takes_optional,
        })
    }

    /// Whether it is well-formed; gives the field that it is about, as it is written in causes.
    fn form(rule: &Value, schema: &Value, at: &Path, causes: &mut Vec<Cause>) -> Option<String> {
        let source = text(rule, "rule").trim();
        let message = text(rule, "message");
        let has_newline = |text: &str| text.contains(['\n', '\r']);
        let given = Value::from(message);
        if source.is_empty() {
            causes.push(Cause::required(&at.field("rule"), "rule is not specified"));
        } else if !message.is_empty() && message.trim().is_empty() {
            causes.push(Cause::invalid(
                &at.field("message"),
                &given,
                "must be non-empty if specified",
            ));
        } else if has_newline(message.trim()) {
            causes.push(Cause::invalid(
                &at.field("message"),
                &given,
                "must not contain line breaks",
            ));
        } else if has_newline(source) && message.is_empty() {
            let detail = "message must be specified if rule contains line breaks";
            causes.push(Cause::required(&at.field("message"), detail));
        }
        let expression = text(rule, "messageExpression");
        if !expression.is_empty() && expression.trim().is_empty() {
            let detail = "messageExpression must be non-empty if specified";
            causes.push(Cause::required(&at.field("messageExpression"), detail));
        }
        let reason = text(rule, "reason");
        if !reason.is_empty() && !REASONS.contains(&reason) {
            causes.push(Cause::unsupported(
                &at.field("reason"),
                &Value::from(reason),
                REASONS,
            ));
        }
        let path = text(rule, "fieldPath");
        if path.is_empty() {
            return None;
        }
        let field = normalized(path, schema);
        if field.is_none() {
            let detail = "must be a valid path";
            causes.push(Cause::invalid(&at.field("fieldPath"), &Value::from(path), detail));
        }
        field
    }
}

/// A rule as Go writes it.
fn shown(rule: &Value) -> String {
    let fields = [
        ("Rule", json!(text(rule, "rule"))),
        ("Message", json!(text(rule, "message"))),
        ("MessageExpression", json!(text(rule, "messageExpression"))),
        ("Reason", rule.get("reason").cloned().unwrap_or_default()),
        ("FieldPath", json!(text(rule, "fieldPath"))),
        (
            "OptionalOldSelf",
            rule.get("optionalOldSelf").cloned().unwrap_or_default(),
        ),
    ];
    let fields = fields
        .map(|(name, value)| format!("\"{name}\":{value}"))
        .join(",");
    let escaped = fields
        .replace('&', "\\u0026")
        .replace('<', "\\u003c")
        .replace('>', "\\u003e");
    format!("{{{escaped}}}")
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// `.a['b'].c` of fields that a schema has, as `a.b.c`.
fn normalized(path: &str, schema: &Value) -> Option<String> {
    let (mut rest, mut schema) = (path, schema);
    let mut found = Path::root();
    while !rest.is_empty() {
        let name;
        if let Some(after) = rest.strip_prefix("['") {
            let mut escaped = false;
            let end = after.find(|c| {
                let ends = c == '\'' && !escaped;
                escaped = c == '\\' && !escaped;
                ends
            })?;
            name = after.get(..end)?.replace("\\'", "'").replace("\\\\", "\\");
            rest = after.get(end..)?.strip_prefix("']")?;
        } else {
            let after = rest.strip_prefix('.')?;
            let end = after.find(['.', '[']).unwrap_or(after.len());
            name = after.get(..end)?.to_owned();
            rest = after.get(end..)?;
        }
        if let Some(properties) = schema.get("properties") {
            schema = properties.get(&name)?;
            found = found.field(&name);
        } else {
            schema = schema
                .get("additionalProperties")
                .filter(|values| values.is_object())?;
            found = if found == Path::root() {
                Path::new(&format!("[{name}]"))
            } else {
                found.key(&name)
            };
        }
    }
    Some(found.to_string())
}

/// One look at one object. An error means that no more rules can be evaluated, which a cause tells.
struct Check {
    left: u64,
    causes: Vec<Cause>,
}

struct Spent;

impl Check {
    /// `same`: the object was the same around here before, so what it is may stay.
    fn walk(
        &mut self,
        rules: &Rules,
        at: &Path,
        value: &Value,
        old: Option<&Value>,
        same: bool,
    ) -> Result<(), Spent> {
        if value.is_null() {
            return Ok(());
        }
        let old = old.filter(|old| !old.is_null());
        for rule in &rules.rules {
            self.apply(rules, rule, at, value, old, same)?;
        }
        match value {
            Value::Array(items) => {
                let Some(inner) = &rules.items else { return Ok(()) };
                let same = same || old == Some(value);
                for (index, item) in items.iter().enumerate() {
                    self.walk(inner, &at.index(index), item, rules.former(old, item), same)?;
                }
            }
            Value::Object(fields) => {
                for (name, value) in fields {
                    let old = old.and_then(|old| old.get(name));
                    if let Some(inner) = rules.properties.get(name) {
                        self.walk(inner, &at.field(name), value, old, same)?;
                    } else if let Some(inner) = &rules.values {
                        self.walk(inner, &at.key(name), value, old, same)?;
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn apply(
        &mut self,
        rules: &Rules,
        rule: &Rule,
        at: &Path,
        value: &Value,
        old: Option<&Value>,
        same: bool,
    ) -> Result<(), Spent> {
        if rule.program.uses_old && old.is_none() && !rule.takes_optional {
            return Ok(());
        }
        let kind = Value::from(rules.kind.as_str());
        let title = &rule.title;
        let invalid = |detail: String| Cause::invalid(at, &kind, &detail);
        let variables = || -> Result<_, String> {
            let former = old.map(|old| Val::of(old, &rules.ty)).transpose()?;
            let former = match rule.takes_optional {
                true => Some(former.map_or(Val::Optional(None), Val::some)),
                false => former,
            };
            Ok((Val::of(value, &rules.ty)?, former))
        };
        let (this, former) = match variables() {
            Ok(variables) => variables,
            Err(why) => {
                self.causes
                    .push(invalid(format!("{why} evaluating rule: {title}")));
                return Ok(());
            }
        };
        let (result, cost) = rule.program.evaluate(this.clone(), former.clone());
        let Some(left) = self.left.checked_sub(cost) else {
            let detail = "validation failed due to running out of cost budget, no further validation rules will be run";
            self.causes.push(invalid(detail.to_owned()));
            return Err(Spent);
        };
        self.left = left;
        let detail = match result {
            Ok(Val::Bool(true)) => return Ok(()),
            Ok(_) => self.message(rule, this, former, &invalid)?,
            Err(Stop::Budget) => {
                let detail = format!(
                    "'operation cancelled: actual cost limit exceeded': no further validation rules will be run due to call cost exceeds limit for rule: {title}"
                );
                self.causes.push(invalid(detail));
                return Err(Spent);
            }
            Err(Stop::Fault(why)) if why.starts_with("no such overload") => {
                let detail = format!(
                    "'{why}': call arguments did not match a supported operator, function or macro signature for rule: {title}"
                );
                self.causes.push(invalid(detail));
                return Ok(());
            }
            Err(Stop::Fault(why)) => {
                self.causes
                    .push(invalid(format!("{why} evaluating rule: {title}")));
                return Ok(());
            }
        };
        let kept = same || old == Some(value);
        if kept && !rule.program.uses_old {
            return Ok(());
        }
        let at = rule
            .field
            .as_ref()
            .map_or_else(|| at.clone(), |field| at.field(field));
        let value = Some(value).filter(|value| !value.is_object() && !value.is_array());
        self.causes.push(match (rule.reason.as_str(), value) {
            ("FieldValueForbidden", _) => Cause::forbidden(&at, &detail),
            ("FieldValueRequired", _) => Cause::required(&at, &detail),
            ("FieldValueDuplicate", Some(value)) => Cause::duplicate(&at, value),
            ("FieldValueDuplicate", None) => Cause::duplicate_whole(&at),
            (_, Some(value)) => Cause::invalid(&at, value, &detail),
            (_, None) => Cause::invalid_whole(&at, &detail),
        });
        Ok(())
    }

    /// The message that the rule computes, if it can.
    fn message<'a>(
        &mut self,
        rule: &Rule,
        this: Val<'a>,
        old: Option<Val<'a>>,
        invalid: &dyn Fn(String) -> Cause,
    ) -> Result<String, Spent> {
        let Some(program) = &rule.message_program else {
            return Ok(rule.message.clone());
        };
        let (result, cost) = program.evaluate(this, old);
        let spent = self.left.checked_sub(cost).is_none() || matches!(result, Err(Stop::Budget));
        if spent {
            let detail = "messageExpression evaluation failed due to running out of cost budget, no further validation rules will be run";
            self.causes.push(invalid(detail.to_owned()));
            return Err(Spent);
        }
        self.left -= cost;
        let Ok(Val::String(text)) = result else {
            return Ok(rule.message.clone());
        };
        let text = text.trim();
        let fit = !text.is_empty() && text.len() <= MESSAGE_LENGTH_MAX && !text.contains('\n');
        Ok(if fit {
            text.to_owned()
        } else {
            rule.message.clone()
        })
    }
}
