//! Label selectors as Links use them: absent or empty matches nothing.
//!
//! That is the opposite of the Kubernetes convention, and the safe one here: a Link whose selector got lost must not
//! export every Service of a cluster. An invalid selector matches nothing either; [`parse`] says why.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use std::collections::BTreeMap;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the selector's requirement on label {key} has operator {operator} with {values} values")]
pub struct InvalidSelector {
    pub key: String,
    pub operator: String,
    pub values: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Requirement {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    Absent,
}

/// A selector that was checked. `None` of [`Selector::query`] means that nothing can match.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selector(Vec<(String, Requirement)>);

/// Checks a selector of a Link.
pub fn parse(selector: Option<&LabelSelector>) -> Result<Selector, InvalidSelector> {
    let Some(selector) = selector else {
        return Ok(Selector::default());
    };
    let mut all = Vec::new();
    for (key, value) in selector.match_labels.iter().flatten() {
        all.push((key.clone(), Requirement::In(vec![value.clone()])));
    }
    for expression in selector.match_expressions.iter().flatten() {
        let values = expression.values.clone().unwrap_or_default();
        let requirement = match (expression.operator.as_str(), values.len()) {
            ("In", 1..) => Requirement::In(values),
            ("NotIn", 1..) => Requirement::NotIn(values),
            ("Exists", 0) => Requirement::Exists,
            ("DoesNotExist", 0) => Requirement::Absent,
            (operator, count) => {
                return Err(InvalidSelector {
                    key: expression.key.clone(),
                    operator: operator.to_owned(),
                    values: count,
                });
            }
        };
        all.push((expression.key.clone(), requirement));
    }
    Ok(Selector(all))
}

impl Selector {
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        !self.0.is_empty()
            && self
                .0
                .iter()
                .all(|(key, requirement)| match (requirement, labels.get(key)) {
                    (Requirement::In(values), Some(value)) => values.contains(value),
                    (Requirement::NotIn(values), Some(value)) => !values.contains(value),
                    (Requirement::Exists, found) => found.is_some(),
                    (Requirement::Absent, found) => found.is_none(),
                    (Requirement::In(_), None) => false,
                    (Requirement::NotIn(_), None) => true,
                })
    }

    /// The same as a `labelSelector` query of the Kubernetes API; `None` when nothing can match.
    pub fn query(&self) -> Option<String> {
        let parts: Vec<String> = self
            .0
            .iter()
            .map(|(key, requirement)| match requirement {
                Requirement::In(values) => format!("{key} in ({})", values.join(",")),
                Requirement::NotIn(values) => format!("{key} notin ({})", values.join(",")),
                Requirement::Exists => key.clone(),
                Requirement::Absent => format!("!{key}"),
            })
            .collect();
        (!parts.is_empty()).then(|| parts.join(","))
    }
}

/// What to ask the Kubernetes API for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Query {
    Nothing,
    Labels(String),
    /// No query of the API says it; whoever asks must look at the objects.
    Everything,
}

/// A query for the objects of any of these selectors. It may find more.
///
/// One query rather than several: an object whose labels change from one selector to the other is then never seen to
/// vanish in between.
pub fn any_of(selectors: &[&Selector]) -> Query {
    let mut selectors: Vec<&Selector> = selectors
        .iter()
        .copied()
        .filter(|selector| !selector.0.is_empty())
        .collect();
    selectors.dedup();
    match selectors.as_slice() {
        [] => Query::Nothing,
        [selector] => selector.query().map_or(Query::Nothing, Query::Labels),
        [first, ..] => {
            let key = first.0.first().map(|(key, _)| key);
            let values: Option<Vec<String>> = selectors
                .iter()
                .map(|selector| match selector.0.as_slice() {
                    [(other, Requirement::In(values))] if Some(other) == key => Some(values.join(",")),
                    _ => None,
                })
                .collect();
            match (key, values) {
                (Some(key), Some(values)) => Query::Labels(format!("{key} in ({})", values.join(","))),
                _ => Query::Everything,
            }
        }
    }
}

/// Reads `a=b,c!=d,e,!f`, the form that command lines use.
pub fn from_query(query: &str) -> Result<LabelSelector, InvalidSelector> {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement;
    let mut labels = BTreeMap::new();
    let mut expressions = Vec::new();
    for part in query.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let mut require = |key: &str, operator: &str, values: Option<Vec<String>>| {
            expressions.push(LabelSelectorRequirement {
                key: key.trim().into(),
                operator: operator.into(),
                values,
            });
        };
        if let Some((key, value)) = part.split_once("!=") {
            require(key, "NotIn", Some(vec![value.trim().to_owned()]));
        } else if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
            labels.insert(key.trim().to_owned(), value.trim().to_owned());
        } else if let Some(key) = part.strip_prefix('!') {
            require(key, "DoesNotExist", None);
        } else if part.contains([' ', '(', ')']) {
            return Err(InvalidSelector {
                key: part.to_owned(),
                operator: "unknown".into(),
                values: 0,
            });
        } else {
            require(part, "Exists", None);
        }
    }
    Ok(LabelSelector {
        match_labels: (!labels.is_empty()).then_some(labels),
        match_expressions: (!expressions.is_empty()).then_some(expressions),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(text: &str) -> BTreeMap<String, String> {
        text.split_whitespace()
            .filter_map(|pair| pair.split_once('='))
            .map(|(k, v)| (k.into(), v.into()))
            .collect()
    }

    fn matches(selector: &str, with: &str) -> bool {
        parse(Some(&from_query(selector).unwrap()))
            .unwrap()
            .matches(&labels(with))
    }

    #[test]
    fn nothing_is_selected_by_no_selector_at_all() {
        assert!(!parse(None).unwrap().matches(&labels("a=b")));
        assert!(
            !parse(Some(&LabelSelector::default()))
                .unwrap()
                .matches(&labels("a=b"))
        );
        assert_eq!(parse(None).unwrap().query(), None);
    }

    #[test]
    fn requirements_are_joined_by_and() {
        assert!(matches("a=1,b!=2,c,!d", "a=1 c=x"));
        assert!(!matches("a=1,b!=2", "a=1 b=2"));
        assert!(!matches("a=1,!d", "a=1 d="));
        assert!(!matches("a=1", "a=2"));
    }

    #[test]
    fn a_query_says_what_the_selector_says() {
        let selector = parse(Some(&from_query("a=1,b!=2,c,!d").unwrap())).unwrap();
        assert_eq!(selector.query().unwrap(), "a in (1),b notin (2),c,!d");
    }

    #[test]
    fn several_selectors_become_one_query_where_the_api_has_one() {
        let any = |texts: &[&str]| {
            let all: Vec<Selector> = texts
                .iter()
                .map(|text| parse(Some(&from_query(text).unwrap())).unwrap())
                .collect();
            any_of(&all.iter().collect::<Vec<_>>())
        };
        assert_eq!(any(&["", ""]), Query::Nothing);
        assert_eq!(any(&["a=1", ""]), Query::Labels("a in (1)".into()));
        assert_eq!(any(&["a=1", "a=2"]), Query::Labels("a in (1,2)".into()));
        assert_eq!(any(&["a=1", "b=2"]), Query::Everything);
        assert_eq!(any(&["a=1", "a!=2"]), Query::Everything);
        assert_eq!(
            any(&["a=1,b=2", "a=1,b=2"]),
            Query::Labels("a in (1),b in (2)".into())
        );
    }

    #[test]
    fn an_operator_without_its_values_is_refused() {
        let mut selector = from_query("a!=1").unwrap();
        selector.match_expressions.as_mut().unwrap()[0].values = None;
        assert!(parse(Some(&selector)).is_err());
    }
}
