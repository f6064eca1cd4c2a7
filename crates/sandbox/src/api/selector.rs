//! Label and field selectors: parsing, matching, and saying what was wrong with them.
//!
//! Pure. Which fields of a kind may be selected is told by the registry.

use serde_json::{Map, Value};

use super::error::{ApiError, Result};

/// `metadata.labels` must satisfy all requirements.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LabelSelector(Vec<(String, Requirement)>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Requirement {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    Absent,
    Greater(i64),
    Less(i64),
}

impl LabelSelector {
    /// Parses the text form, for example `app in (a, b), !canary, tier=web`.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let bad = |why: &str| ApiError::bad_request(format!("unable to parse requirement: {why}: {text:?}"));
        let mut requirements = Vec::new();
        for part in split_outside_parentheses(text) {
            let part = part.trim();
            if part.is_empty() {
                if text.trim().is_empty() {
                    continue;
                }
                return Err(bad("found '', expected: identifier"));
            }
            let (key, requirement) = parse_requirement(part).ok_or_else(|| bad("invalid requirement"))?;
            if !is_label_key(key) {
                return Err(bad("invalid label key"));
            }
            if let Requirement::In(values) | Requirement::NotIn(values) = &requirement
                && !values.iter().all(|value| is_label_value(value))
            {
                return Err(bad("invalid label value"));
            }
            requirements.push((key.to_owned(), requirement));
        }
        Ok(Self(requirements))
    }

    /// Reads the object form with `matchLabels` and `matchExpressions`. An absent selector matches nothing.
    pub(crate) fn from_object(selector: &Value) -> Option<Self> {
        let mut requirements = Vec::new();
        for (key, value) in selector
            .get("matchLabels")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
        {
            requirements.push((key.clone(), Requirement::In(vec![value.as_str()?.to_owned()])));
        }
        for expression in selector
            .get("matchExpressions")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            let values = || -> Vec<String> {
                let values = expression
                    .get("values")
                    .and_then(Value::as_array)
                    .into_iter()
                    .flatten();
                values.filter_map(Value::as_str).map(str::to_owned).collect()
            };
            let requirement = match expression.get("operator").and_then(Value::as_str)? {
                "In" => Requirement::In(values()),
                "NotIn" => Requirement::NotIn(values()),
                "Exists" => Requirement::Exists,
                "DoesNotExist" => Requirement::Absent,
                _ => return None,
            };
            requirements.push((
                expression.get("key").and_then(Value::as_str)?.to_owned(),
                requirement,
            ));
        }
        Some(Self(requirements))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn matches(&self, object: &Value) -> bool {
        if self.0.is_empty() {
            return true;
        }
        let none = Map::new();
        let labels = object
            .pointer("/metadata/labels")
            .and_then(Value::as_object)
            .unwrap_or(&none);
        self.0.iter().all(|(key, requirement)| {
            let label = labels.get(key).and_then(Value::as_str);
            match requirement {
                Requirement::In(values) => {
                    label.is_some_and(|label| values.iter().any(|value| value == label))
                }
                Requirement::NotIn(values) => {
                    !label.is_some_and(|label| values.iter().any(|value| value == label))
                }
                Requirement::Exists => label.is_some(),
                Requirement::Absent => label.is_none(),
                Requirement::Greater(bound) => label
                    .and_then(|l| l.parse::<i64>().ok())
                    .is_some_and(|l| l > *bound),
                Requirement::Less(bound) => label
                    .and_then(|l| l.parse::<i64>().ok())
                    .is_some_and(|l| l < *bound),
            }
        })
    }
}

impl std::fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, (key, requirement)) in self.0.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            match requirement {
                Requirement::In(values) if values.len() == 1 => {
                    write!(f, "{comma}{key}={}", values.concat())?
                }
                Requirement::In(values) => write!(f, "{comma}{key} in ({})", values.join(","))?,
                Requirement::NotIn(values) => write!(f, "{comma}{key} notin ({})", values.join(","))?,
                Requirement::Exists => write!(f, "{comma}{key}")?,
                Requirement::Absent => write!(f, "{comma}!{key}")?,
                Requirement::Greater(bound) => write!(f, "{comma}{key}>{bound}")?,
                Requirement::Less(bound) => write!(f, "{comma}{key}<{bound}")?,
            }
        }
        Ok(())
    }
}

fn split_outside_parentheses(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut depth) = (Vec::new(), 0, 0usize);
    for (at, character) in text.char_indices() {
        match character {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn parse_requirement(part: &str) -> Option<(&str, Requirement)> {
    if let Some(key) = part.strip_prefix('!') {
        return Some((key.trim(), Requirement::Absent));
    }
    let one = |value: &str| vec![value.trim().to_owned()];
    for (operator, negated) in [("!=", true), ("==", false), ("=", false)] {
        if let Some((key, value)) = part.split_once(operator) {
            let values = one(value);
            let requirement = if negated {
                Requirement::NotIn(values)
            } else {
                Requirement::In(values)
            };
            return Some((key.trim(), requirement));
        }
    }
    if let Some((key, value)) = part.split_once('>') {
        return Some((key.trim(), Requirement::Greater(value.trim().parse().ok()?)));
    }
    if let Some((key, value)) = part.split_once('<') {
        return Some((key.trim(), Requirement::Less(value.trim().parse().ok()?)));
    }
    let Some((key, rest)) = part.split_once(char::is_whitespace) else {
        return (!part.contains(['(', ')'])).then_some((part, Requirement::Exists));
    };
    let (operator, values) = rest.trim().split_once('(')?;
    let values = values.trim().strip_suffix(')')?;
    if values.contains(['(', ')']) {
        return None;
    }
    let values = values.split(',').map(|value| value.trim().to_owned()).collect();
    match operator.trim() {
        "in" => Some((key, Requirement::In(values))),
        "notin" => Some((key, Requirement::NotIn(values))),
        _ => None,
    }
}

/// A qualified name: an optional DNS subdomain, a slash, and up to 63 characters.
pub(crate) fn is_label_key(key: &str) -> bool {
    let name = match key.split_once('/') {
        Some((prefix, name)) if is_dns_subdomain(prefix) => name,
        Some(_) => return false,
        None => key,
    };
    !name.is_empty() && is_label_value(name)
}

pub(crate) fn is_label_value(value: &str) -> bool {
    let alphanumeric = |c: Option<char>| c.is_none_or(|c| c.is_ascii_alphanumeric());
    value.len() <= 63
        && value
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        && alphanumeric(value.chars().next())
        && alphanumeric(value.chars().next_back())
}

pub(crate) fn is_dns_subdomain(name: &str) -> bool {
    // Unlike a label, a part of a subdomain may be longer than 63 characters.
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    name.len() <= 253
        && name.split('.').all(|part| {
            !part.is_empty()
                && part.chars().all(|c| inner(c) || c == '-')
                && part.starts_with(inner)
                && part.ends_with(inner)
        })
}

/// Fields that must (or must not) have given values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FieldSelector(Vec<(String, bool, String)>);

impl FieldSelector {
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let mut terms = Vec::new();
        for part in split_unescaped(text) {
            if part.is_empty() {
                continue;
            }
            let (field, equal, value) = if let Some((field, value)) = part.split_once("!=") {
                (field, false, value)
            } else if let Some((field, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
                (field, true, value)
            } else {
                let message = format!("invalid selector: '{text}'; can't understand '{part}'");
                return Err(ApiError::bad_request(message));
            };
            terms.push((field.trim().to_owned(), equal, unescape(value)));
        }
        Ok(Self(terms))
    }

    /// Replaces beginnings of field names.
    pub(crate) fn rename(&mut self, names: &[(&str, &str)]) {
        for (field, _, _) in &mut self.0 {
            if let Some((from, to)) = names.iter().find(|(from, _)| field.starts_with(from)) {
                *field = field.replacen(from, to, 1);
            }
        }
    }

    /// Selects one object.
    pub(crate) fn only_name(name: &str) -> Self {
        Self(vec![("metadata.name".to_owned(), true, name.to_owned())])
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The only value a field may have.
    pub(crate) fn exactly(&self, field: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(name, equal, _)| name == field && *equal)
            .map(|(_, _, value)| value.as_str())
    }

    pub(crate) fn fields(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(field, _, _)| field.as_str())
    }

    pub(crate) fn matches(&self, object: &Value) -> bool {
        self.0
            .iter()
            .all(|(field, equal, value)| (field_text(object, field) == *value) == *equal)
    }
}

/// A field's value as selectors compare it: absent is the empty string.
fn field_text(object: &Value, field: &str) -> String {
    let found = field.split('.').try_fold(object, |value, part| value.get(part));
    match found {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Bool(flag)) => flag.to_string(),
        Some(Value::Number(number)) => number.to_string(),
        // The two booleans that may be selected are omitted when false.
        None if matches!(field, "spec.unschedulable" | "spec.hostNetwork") => "false".to_owned(),
        _ => String::new(),
    }
}

fn split_unescaped(text: &str) -> Vec<String> {
    let (mut parts, mut current, mut escaped) = (Vec::new(), String::new(), false);
    for character in text.chars() {
        match character {
            ',' if !escaped => parts.push(std::mem::take(&mut current)),
            _ => current.push(character),
        }
        escaped = character == '\\' && !escaped;
    }
    parts.push(current);
    parts
}

fn unescape(value: &str) -> String {
    let (mut plain, mut escaped) = (String::new(), false);
    for character in value.trim().chars() {
        if character == '\\' && !escaped {
            escaped = true;
        } else {
            plain.push(character);
            escaped = false;
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn labels_match_by_equality_and_by_set() {
        let object = json!({ "metadata": { "labels": { "app": "web", "tier": "front", "x.io/size": "3" } } });
        for (selector, expected) in [
            ("", true),
            ("app=web", true),
            ("app==web,tier=front", true),
            ("app=web,tier=back", false),
            ("app!=web", false),
            ("missing!=web", true),
            ("app in (api, web)", true),
            ("app notin (api,web)", false),
            ("missing notin (a)", true),
            ("app", true),
            ("!app", false),
            ("!missing, x.io/size", true),
            ("x.io/size>2", true),
            ("x.io/size<3", false),
        ] {
            assert_eq!(
                LabelSelector::parse(selector).unwrap().matches(&object),
                expected,
                "{selector}"
            );
        }
    }

    #[test]
    fn broken_label_selectors_are_refused() {
        for selector in [
            "a in (b", "a b", "=x", ",", "a=b,,c=d", "a=b c", "x/y/z", "a>b", "-a",
        ] {
            assert!(LabelSelector::parse(selector).is_err(), "{selector}");
        }
    }

    #[test]
    fn fields_match_by_equality_and_absent_is_empty() {
        let object = json!({ "metadata": { "name": "a" }, "spec": { "nodeName": "n,1" }, "status": {} });
        for (selector, expected) in [
            ("metadata.name=a", true),
            ("metadata.name!=a", false),
            ("spec.nodeName=n\\,1", true),
            ("status.phase=", true),
            ("status.phase!=Running,metadata.name==a", true),
            ("spec.unschedulable=false", true),
        ] {
            assert_eq!(
                FieldSelector::parse(selector).unwrap().matches(&object),
                expected,
                "{selector}"
            );
        }
        assert!(FieldSelector::parse("metadata.name").is_err());
    }

    #[test]
    fn the_object_form_reads_like_the_text_form() {
        let object = json!({ "matchLabels": { "a": "b" }, "matchExpressions": [
            { "key": "c", "operator": "NotIn", "values": ["d"] }, { "key": "e", "operator": "DoesNotExist" }] });
        assert_eq!(
            LabelSelector::from_object(&object),
            LabelSelector::parse("a=b,c notin (d),!e").ok()
        );
    }
}
