//! What a request asks for, read from its method, path and query alone.
//!
//! The result is what authorisation and audit talk about (verb, resource, namespace, name), and what the handlers
//! dispatch on. Whether the resource exists is somebody else's question.

use std::borrow::Cow;

use http::Method;

use super::error::{ApiError, Result};
use super::selector::FieldSelector;

/// A request in the vocabulary of RBAC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Get,
    List,
    Watch,
    Create,
    Update,
    Patch,
    Delete,
    DeleteCollection,
}

impl Verb {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
            Self::DeleteCollection => "deletecollection",
        }
    }
}

/// Names one resource, or one object or subresource of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub group: String,
    pub version: String,
    pub plural: String,
    pub namespace: Option<String>,
    pub name: Option<String>,
    pub subresource: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    Resource {
        verb: Verb,
        target: Target,
    },
    /// Discovery, health and the like; authorised by path and lower-case method.
    Path {
        verb: String,
    },
}

impl Route {
    pub(crate) fn parse(method: &Method, path: &str, query: &Query) -> Result<Self> {
        let Some(target) = Target::parse(path)? else {
            return Ok(Self::Path {
                verb: method.as_str().to_lowercase(),
            });
        };
        let watching = query.flag("watch");
        let verb = match (method, &target.name) {
            (&Method::POST, _) => Verb::Create,
            (&Method::PUT, _) => Verb::Update,
            (&Method::PATCH, _) => Verb::Patch,
            (&Method::GET | &Method::HEAD, None) if watching => Verb::Watch,
            (&Method::GET | &Method::HEAD, None) => Verb::List,
            (&Method::GET | &Method::HEAD, Some(_)) if watching && target.subresource.is_none() => {
                Verb::Watch
            }
            (&Method::GET | &Method::HEAD, Some(_)) => Verb::Get,
            (&Method::DELETE, None) => Verb::DeleteCollection,
            (&Method::DELETE, Some(_)) => Verb::Delete,
            _ => return Err(ApiError::method_not_allowed()),
        };
        Ok(Self::Resource { verb, target })
    }
}

impl Target {
    fn parse(path: &str) -> Result<Option<Self>> {
        let mut parts = path.split('/').filter(|part| !part.is_empty());
        let (group, version) = match (parts.next(), parts.next(), parts.next()) {
            (Some("api"), Some(version), Some(first)) => ("", (version, Some(first))),
            (Some("apis"), Some(group), Some(version)) => (group, (version, None)),
            _ => return Ok(None),
        };
        let (version, first) = version;
        let mut rest: Vec<String> = Vec::new();
        for part in first.into_iter().chain(parts) {
            rest.push(decode(part)?.into_owned());
        }
        let rest: Vec<&str> = rest.iter().map(String::as_str).collect();
        let (namespace, plural, name, subresource) = match rest[..] {
            [] => return Ok(None),
            // `namespaces` is itself a resource, with subresources of its own.
            ["namespaces"] => (None, "namespaces", None, None),
            ["namespaces", name] => (Some(name), "namespaces", Some(name), None),
            ["namespaces", name, sub @ ("status" | "finalize")] if group.is_empty() => {
                (Some(name), "namespaces", Some(name), Some(sub))
            }
            ["namespaces", namespace, plural] => (Some(namespace), plural, None, None),
            ["namespaces", namespace, plural, name] => (Some(namespace), plural, Some(name), None),
            ["namespaces", namespace, plural, name, sub, ..] => {
                (Some(namespace), plural, Some(name), Some(sub))
            }
            [plural] => (None, plural, None, None),
            [plural, name] => (None, plural, Some(name), None),
            [plural, name, sub, ..] => (None, plural, Some(name), Some(sub)),
        };
        Ok(Some(Self {
            group: group.to_owned(),
            version: version.to_owned(),
            plural: plural.to_owned(),
            namespace: namespace.map(str::to_owned),
            name: name.map(str::to_owned),
            subresource: subresource.map(str::to_owned),
        }))
    }
}

/// A decoded query string, in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub(crate) fn parse(query: Option<&str>) -> Result<Self> {
        let pairs = query
            .unwrap_or_default()
            .split('&')
            .filter(|pair| !pair.is_empty());
        let decoded: Result<Vec<_>> = pairs
            .map(|pair| {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                let spaced = |text: &str| text.replace('+', " ");
                Ok((
                    decode(&spaced(name))?.into_owned(),
                    decode(&spaced(value))?.into_owned(),
                ))
            })
            .collect();
        Ok(Self(decoded?))
    }

    /// The value of a parameter; an empty one counts as absent, as in Kubernetes.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
            .filter(|v| !v.is_empty())
    }

    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0
            .iter()
            .filter(move |(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    /// A boolean in Go's reading: present and empty is true.
    pub(crate) fn flag(&self, name: &str) -> bool {
        self.0
            .iter()
            .find(|(known, _)| known == name)
            .is_some_and(|(_, value)| {
                !matches!(value.as_str(), "0" | "f" | "F" | "false" | "FALSE" | "False")
            })
    }

    pub(crate) fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>> {
        self.get(name)
            .map(|text| {
                text.parse()
                    .map_err(|_| ApiError::bad_request(format!("invalid value for {name}: {text:?}")))
            })
            .transpose()
    }

    pub(crate) fn dry_run(&self) -> Result<bool> {
        match self
            .all("dryRun")
            .filter(|value| !value.is_empty())
            .collect::<Vec<_>>()[..]
        {
            [] => Ok(false),
            ["All"] => Ok(true),
            ref other => Err(ApiError::bad_request(format!(
                "Invalid value: {other:?}: dryRun: supported values: \"All\""
            ))),
        }
    }
}

/// The name that a list or watch is about when its field selector allows only one.
pub(crate) fn selected_name(query: &Query) -> Option<String> {
    FieldSelector::parse(query.get("fieldSelector")?)
        .ok()?
        .exactly("metadata.name")
        .map(str::to_owned)
}

/// Undoes percent-encoding.
pub(crate) fn decode(text: &str) -> Result<Cow<'_, str>> {
    if !text.contains('%') {
        return Ok(Cow::Borrowed(text));
    }
    let bad = || ApiError::bad_request(format!("invalid URL escape in {text:?}"));
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        if *first == b'%' {
            let digits = tail
                .get(..2)
                .and_then(|hex| std::str::from_utf8(hex).ok())
                .ok_or_else(bad)?;
            bytes.push(u8::from_str_radix(digits, 16).map_err(|_| bad())?);
            rest = tail.get(2..).unwrap_or_default();
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8(bytes).map(Cow::Owned).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(method: &str, uri: &str) -> String {
        let uri: http::Uri = uri.parse().unwrap();
        let query = Query::parse(uri.query()).unwrap();
        match Route::parse(&method.parse().unwrap(), uri.path(), &query).unwrap() {
            Route::Path { verb } => format!("path {verb}"),
            Route::Resource { verb, target } => format!(
                "{} {}/{}/{} ns={} name={} sub={}",
                verb.as_str(),
                target.group,
                target.version,
                target.plural,
                target.namespace.unwrap_or_default(),
                target.name.unwrap_or_default(),
                target.subresource.unwrap_or_default()
            ),
        }
    }

    #[test]
    fn a_path_and_a_method_name_a_verb_and_a_resource() {
        for (method, uri, expected) in [
            ("GET", "/version", "path get"),
            ("GET", "/api/v1", "path get"),
            ("GET", "/apis/apps/v1", "path get"),
            ("GET", "/api/v1/pods", "list /v1/pods ns= name= sub="),
            ("GET", "/api/v1/pods?watch=true", "watch /v1/pods ns= name= sub="),
            ("GET", "/api/v1/pods?watch=0", "list /v1/pods ns= name= sub="),
            ("GET", "/api/v1/namespaces", "list /v1/namespaces ns= name= sub="),
            (
                "PUT",
                "/api/v1/namespaces/a/finalize",
                "update /v1/namespaces ns=a name=a sub=finalize",
            ),
            (
                "DELETE",
                "/api/v1/namespaces/a",
                "delete /v1/namespaces ns=a name=a sub=",
            ),
            (
                "DELETE",
                "/api/v1/namespaces/a/pods",
                "deletecollection /v1/pods ns=a name= sub=",
            ),
            (
                "GET",
                "/api/v1/namespaces/a/pods/b/log?follow",
                "get /v1/pods ns=a name=b sub=log",
            ),
            (
                "PATCH",
                "/apis/apps/v1/namespaces/a/deployments/b",
                "patch apps/v1/deployments ns=a name=b sub=",
            ),
            (
                "POST",
                "/apis/x.io/v1/namespaces/a/status",
                "create x.io/v1/status ns=a name= sub=",
            ),
            (
                "GET",
                "/api/v1/nodes/system%3Anode",
                "get /v1/nodes ns= name=system:node sub=",
            ),
        ] {
            assert_eq!(parse(method, uri), expected, "{method} {uri}");
        }
    }

    #[test]
    fn broken_escapes_are_refused() {
        for text in ["%", "%4", "%zz", "%ff"] {
            assert!(decode(text).is_err(), "{text}");
        }
    }
}
