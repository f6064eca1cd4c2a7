//! Routes as their authors wrote them, in the words of the proxy API: hosts, matches and filters.
//!
//! Pure, and the same for requests that go out and that come in; what differs is in `outbound` and `inbound`. What the
//! proxy API can't say is an [`Unspeakable`] rule: its requests must fail, not pass as if the rule said less.

use linkerd2_proxy_api::grpc_route::{GrpcRouteMatch, GrpcRpcMatch};
use linkerd2_proxy_api::http_route::{
    HeaderMatch, HostMatch, HttpRouteMatch, PathMatch, PathModifier, QueryParamMatch, RequestHeaderModifier,
    RequestRedirect, ResponseHeaderModifier, header_match, host_match, path_match, path_modifier,
    query_param_match,
};
use linkerd2_proxy_api::http_types;
use linkerd2_proxy_api::meta::{Metadata, Resource, metadata};

use crate::view::routes::{Headers, Match, Method, Named, Redirect, RedirectPath, Route, RouteId};

/// Something of a rule that proxies can't do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not supported")]
pub(super) struct Unspeakable(pub(super) String);

pub(super) fn metadata(id: &RouteId) -> Metadata {
    Metadata {
        kind: Some(metadata::Kind::Resource(Resource {
            group: id.group.into(),
            kind: id.kind.to_string(),
            name: id.key.name.clone(),
            namespace: id.key.namespace.clone(),
            ..Resource::default()
        })),
    }
}

/// `*.example.com` is any name below, everything else that very name.
pub(super) fn hosts(route: &Route) -> Vec<HostMatch> {
    let host = |name: &String| {
        let host = match name.strip_prefix("*.") {
            Some(suffix) => host_match::Match::Suffix(host_match::Suffix {
                reverse_labels: suffix.split('.').rev().map(str::to_owned).collect(),
            }),
            None => host_match::Match::Exact(name.clone()),
        };
        HostMatch { r#match: Some(host) }
    };
    route.hostnames.iter().map(host).collect()
}

/// The matches of an HTTP rule; none means every request.
pub(super) fn http_matches(matches: &[Match]) -> Result<Vec<HttpRouteMatch>, Unspeakable> {
    if matches.is_empty() {
        return Ok(vec![http_match(&Match::default())?]);
    }
    matches.iter().map(http_match).collect()
}

fn http_match(found: &Match) -> Result<HttpRouteMatch, Unspeakable> {
    let path = found.path.clone().unwrap_or_default();
    let value = path.value.unwrap_or_else(|| "/".into());
    let path = match path.kind.as_deref() {
        None | Some("PathPrefix") => path_match::Kind::Prefix(value),
        Some("Exact") => path_match::Kind::Exact(value),
        Some("RegularExpression") => path_match::Kind::Regex(value),
        Some(other) => return Err(Unspeakable(format!("path match {other}"))),
    };
    let query = |named: &Named| {
        Ok(QueryParamMatch {
            name: named.name.clone(),
            value: Some(if is_regex(named)? {
                query_param_match::Value::Regex(named.value.clone())
            } else {
                query_param_match::Value::Exact(named.value.clone())
            }),
        })
    };
    let method = match &found.method {
        None => None,
        Some(Method::Http(name)) => {
            let method: http::Method = name
                .parse()
                .map_err(|_| Unspeakable(format!("method {name:?}")))?;
            Some(method.into())
        }
        Some(Method::Grpc { .. }) => return Err(Unspeakable("a gRPC method in an HTTPRoute".into())),
    };
    Ok(HttpRouteMatch {
        path: Some(PathMatch { kind: Some(path) }),
        headers: headers(&found.headers)?,
        query_params: found.query_params.iter().map(query).collect::<Result<_, _>>()?,
        method,
    })
}

/// The matches of a gRPC rule; none means every call.
pub(super) fn grpc_matches(matches: &[Match]) -> Result<Vec<GrpcRouteMatch>, Unspeakable> {
    if matches.is_empty() {
        return Ok(vec![GrpcRouteMatch::default()]);
    }
    let grpc_match = |found: &Match| {
        let rpc = match &found.method {
            None => None,
            Some(Method::Grpc {
                kind,
                service,
                method,
            }) => match kind.as_deref() {
                None | Some("Exact") => Some(GrpcRpcMatch {
                    service: service.clone(),
                    method: method.clone(),
                }),
                Some(other) => return Err(Unspeakable(format!("method match {other}"))),
            },
            Some(Method::Http(name)) => return Err(Unspeakable(format!("method {name:?} in a GRPCRoute"))),
        };
        Ok(GrpcRouteMatch {
            rpc,
            headers: headers(&found.headers)?,
        })
    };
    matches.iter().map(grpc_match).collect()
}

fn headers(named: &[Named]) -> Result<Vec<HeaderMatch>, Unspeakable> {
    let header = |named: &Named| {
        Ok(HeaderMatch {
            name: named.name.clone(),
            value: Some(if is_regex(named)? {
                header_match::Value::Regex(named.value.clone())
            } else {
                header_match::Value::Exact(named.value.clone().into_bytes())
            }),
        })
    };
    named.iter().map(header).collect()
}

fn is_regex(named: &Named) -> Result<bool, Unspeakable> {
    match named.kind.as_deref() {
        None | Some("Exact") => Ok(false),
        Some("RegularExpression") => Ok(true),
        Some(other) => Err(Unspeakable(format!("match {other} of {}", named.name))),
    }
}

pub(super) fn request_headers(change: &Headers) -> RequestHeaderModifier {
    let [set, add] = lists(change);
    RequestHeaderModifier {
        set,
        add,
        remove: change.remove.clone(),
    }
}

pub(super) fn response_headers(change: &Headers) -> ResponseHeaderModifier {
    let [set, add] = lists(change);
    ResponseHeaderModifier {
        set,
        add,
        remove: change.remove.clone(),
    }
}

fn lists(change: &Headers) -> [Option<http_types::Headers>; 2] {
    [&change.set, &change.add].map(|list| {
        let headers = list.iter().map(|header| http_types::headers::Header {
            name: header.name.clone(),
            value: header.value.clone().into_bytes(),
        });
        (!list.is_empty()).then(|| http_types::Headers {
            headers: headers.collect(),
        })
    })
}

pub(super) fn redirect(redirect: &Redirect) -> RequestRedirect {
    let path = redirect.path.as_ref().map(|path| PathModifier {
        replace: Some(match path {
            RedirectPath::ReplaceFullPath { replace_full_path } => {
                path_modifier::Replace::Full(replace_full_path.clone())
            }
            RedirectPath::ReplacePrefixMatch { replace_prefix_match } => {
                path_modifier::Replace::Prefix(replace_prefix_match.clone())
            }
        }),
    });
    RequestRedirect {
        scheme: redirect.scheme.as_deref().map(Into::into),
        host: redirect.hostname.clone().unwrap_or_default(),
        path,
        port: redirect.port.unwrap_or_default().into(),
        status: redirect.status_code.unwrap_or(302).into(),
    }
}
