//! Which route does a request take? Matching by host, path, headers, query and method, best match first.
//!
//! Pure. Routes are compiled when a policy arrives; a request only compares (`spec/proxy.md` 5.4).

use std::net::IpAddr;
use std::sync::Arc;

use hawser_core::authz::Source;
use http::{HeaderName, HeaderValue, Method};
use linkerd2_proxy_api::http_route as proto;
use linkerd2_proxy_api::{grpc_route, outbound};
use regex::Regex;

use crate::limits::Limits;
use crate::message::Head;
use crate::snapshot::{Backend, Distribution, Filtered, backend, distribution, from_metadata, source};

#[derive(Clone, Debug)]
enum Host {
    Exact(String),
    /// With the leading dot.
    Suffix(String),
}

#[derive(Clone, Debug)]
enum Path {
    Any,
    Exact(String),
    Prefix(String),
    Regex(Regex),
}

#[derive(Clone, Debug)]
enum Text {
    Exact(Vec<u8>),
    Regex(Regex),
}

#[derive(Clone, Debug)]
struct Match {
    path: Path,
    headers: Vec<(HeaderName, Text)>,
    query: Vec<(String, Text)>,
    method: Option<Method>,
}

/// The conditions of a route: any host of some, and any match of some.
#[derive(Clone, Debug)]
pub(crate) struct Matches {
    hosts: Vec<Host>,
    any_of: Vec<Match>,
}

/// How well a route fits; greater is better, field by field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Quality {
    host_exact: bool,
    host: usize,
    path: usize,
    headers: usize,
    query: usize,
    method: bool,
}

/// A filter that changes or answers a request.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Filter {
    RequestHeaders(HeaderChange),
    ResponseHeaders(HeaderChange),
    Fail {
        status: u16,
        grpc: Option<u32>,
        message: String,
        numerator: u32,
        denominator: u32,
    },
    Redirect {
        scheme: Option<String>,
        host: Option<String>,
        path: Option<PathChange>,
        port: Option<u16>,
        status: u16,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum PathChange {
    Full(String),
    /// The matched prefix becomes this.
    Prefix(String),
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct HeaderChange {
    set: Vec<(HeaderName, HeaderValue)>,
    add: Vec<(HeaderName, HeaderValue)>,
    remove: Vec<HeaderName>,
}

impl HeaderChange {
    pub(crate) fn apply(&self, head: &mut Head) {
        for (name, value) in &self.set {
            head.insert(name, value);
        }
        for (name, value) in &self.add {
            head.append(name, value);
        }
        for name in &self.remove {
            head.remove(name);
        }
    }

    fn new(
        set: Option<&linkerd2_proxy_api::http_types::Headers>,
        add: Option<&linkerd2_proxy_api::http_types::Headers>,
        remove: &[String],
    ) -> Self {
        let pairs = |headers: Option<&linkerd2_proxy_api::http_types::Headers>| {
            let pair = |h: &linkerd2_proxy_api::http_types::headers::Header| {
                Some((h.name.parse().ok()?, HeaderValue::from_bytes(&h.value).ok()?))
            };
            headers
                .into_iter()
                .flat_map(|h| &h.headers)
                .filter_map(pair)
                .collect()
        };
        Self {
            set: pairs(set),
            add: pairs(add),
            remove: remove.iter().filter_map(|n| n.parse().ok()).collect(),
        }
    }
}

/// One rule of an outbound route.
#[derive(Clone, Debug)]
pub(crate) struct HttpRoute {
    pub(crate) matches: Matches,
    pub(crate) filters: Vec<Filter>,
    pub(crate) backends: Distribution,
    pub(crate) limits: Limits,
    /// The resource that says so, for metrics.
    pub(crate) source: Source,
}

impl HttpRoute {
    /// Takes everything.
    pub(crate) fn to(backends: Distribution) -> Self {
        Self {
            matches: Matches::everything(),
            filters: Vec::new(),
            backends,
            limits: Limits::default(),
            source: source("", "default", "http"),
        }
    }

    pub(crate) fn from_http<'a>(
        route: &'a outbound::HttpRoute,
        local: &'a dyn Fn(IpAddr) -> bool,
    ) -> impl Iterator<Item = Self> + 'a {
        let filters = |filters: &[outbound::http_route::Filter]| filters.iter().map(http_filter).collect();
        route.rules.iter().map(move |rule| {
            let one = |b: &outbound::http_route::RouteBackend| {
                filtered(filters(&b.filters), backend(b.backend.as_ref(), local))
            };
            Self {
                matches: Matches::from_proto(&route.hosts, rule.matches.iter()),
                filters: filters(&rule.filters),
                backends: distribution!(outbound::http_route, rule.backends, one),
                limits: Limits::of_http(rule),
                source: from_metadata(route.metadata.as_ref()).unwrap_or_else(|| source("", "", "")),
            }
        })
    }

    pub(crate) fn from_grpc<'a>(
        route: &'a outbound::GrpcRoute,
        local: &'a dyn Fn(IpAddr) -> bool,
    ) -> impl Iterator<Item = Self> + 'a {
        let filters = |filters: &[outbound::grpc_route::Filter]| filters.iter().map(grpc_filter).collect();
        route.rules.iter().map(move |rule| {
            let one = |b: &outbound::grpc_route::RouteBackend| {
                filtered(filters(&b.filters), backend(b.backend.as_ref(), local))
            };
            Self {
                matches: Matches::from_grpc(&route.hosts, rule.matches.iter()),
                filters: filters(&rule.filters),
                backends: distribution!(outbound::grpc_route, rule.backends, one),
                limits: Limits::of_grpc(rule),
                source: from_metadata(route.metadata.as_ref()).unwrap_or_else(|| source("", "", "")),
            }
        })
    }
}

fn ratio(proto: Option<&proto::Ratio>) -> (u32, u32) {
    proto
        .filter(|r| r.denominator > 0)
        .map_or((1, 1), |r| (r.numerator, r.denominator))
}

/// What we don't understand might forbid the request.
fn not_understood() -> Filter {
    Filter::Fail {
        status: 500,
        grpc: Some(13),
        message: "route has a filter that is not understood".into(),
        numerator: 1,
        denominator: 1,
    }
}

fn grpc_filter(filter: &outbound::grpc_route::Filter) -> Filter {
    use outbound::grpc_route::filter::Kind;
    match &filter.kind {
        None => not_understood(),
        Some(Kind::FailureInjector(fail)) => {
            let (numerator, denominator) = ratio(fail.ratio.as_ref());
            Filter::Fail {
                status: 200,
                grpc: Some(fail.code),
                message: fail.message.clone(),
                numerator,
                denominator,
            }
        }
        Some(Kind::RequestHeaderModifier(m)) => {
            Filter::RequestHeaders(HeaderChange::new(m.set.as_ref(), m.add.as_ref(), &m.remove))
        }
    }
}

/// A backend whose requests are changed on their way, or fail because it isn't there.
fn filtered(filters: Vec<Filter>, backend: Backend) -> Backend {
    match (filters.first(), backend) {
        (None, backend) => backend,
        (
            Some(Filter::Fail {
                status,
                grpc,
                message,
                numerator,
                denominator,
            }),
            _,
        ) if numerator >= denominator => Backend::Failing {
            status: *status,
            grpc: *grpc,
            message: message.as_str().into(),
        },
        (Some(_), Backend::Unusable) => Backend::Unusable,
        (Some(_), backend) => Backend::Filtered(Arc::new(Filtered { backend, filters })),
    }
}

fn http_filter(filter: &outbound::http_route::Filter) -> Filter {
    use linkerd2_proxy_api::http_route::path_modifier::Replace;
    use outbound::http_route::filter::Kind;
    match &filter.kind {
        None => not_understood(),
        Some(Kind::FailureInjector(fail)) => {
            let (numerator, denominator) = ratio(fail.ratio.as_ref());
            let status = u16::try_from(fail.status)
                .ok()
                .filter(|s| (100..=599).contains(s))
                .unwrap_or(500);
            Filter::Fail {
                status,
                grpc: None,
                message: fail.message.clone(),
                numerator,
                denominator,
            }
        }
        Some(Kind::RequestHeaderModifier(m)) => {
            Filter::RequestHeaders(HeaderChange::new(m.set.as_ref(), m.add.as_ref(), &m.remove))
        }
        Some(Kind::ResponseHeaderModifier(m)) => {
            Filter::ResponseHeaders(HeaderChange::new(m.set.as_ref(), m.add.as_ref(), &m.remove))
        }
        Some(Kind::Redirect(r)) => Filter::Redirect {
            scheme: r
                .scheme
                .clone()
                .and_then(|s| http::uri::Scheme::try_from(s).ok())
                .map(|s| s.as_str().to_owned()),
            host: Some(r.host.clone()).filter(|h| !h.is_empty()),
            path: r
                .path
                .as_ref()
                .and_then(|p| p.replace.as_ref())
                .map(|replace| match replace {
                    Replace::Full(path) => PathChange::Full(path.clone()),
                    Replace::Prefix(path) => PathChange::Prefix(path.clone()),
                }),
            port: u16::try_from(r.port).ok().filter(|p| *p > 0),
            status: u16::try_from(r.status)
                .ok()
                .filter(|s| (300..=399).contains(s))
                .unwrap_or(301),
        },
    }
}

impl Matches {
    pub(crate) fn everything() -> Self {
        Self {
            hosts: Vec::new(),
            any_of: Vec::new(),
        }
    }

    pub(crate) fn from_proto<'a>(
        hosts: &[proto::HostMatch],
        matches: impl Iterator<Item = &'a proto::HttpRouteMatch>,
    ) -> Self {
        Self {
            hosts: hosts.iter().filter_map(host).collect(),
            any_of: matches.filter_map(http_match).collect(),
        }
    }

    pub(crate) fn from_grpc<'a>(
        hosts: &[proto::HostMatch],
        matches: impl Iterator<Item = &'a grpc_route::GrpcRouteMatch>,
    ) -> Self {
        let one = |m: &grpc_route::GrpcRouteMatch| {
            let path = match m
                .rpc
                .as_ref()
                .map(|rpc| (rpc.service.as_str(), rpc.method.as_str()))
            {
                None | Some(("", "")) => Path::Any,
                Some((service, "")) => Path::Prefix(format!("/{service}")),
                Some(("", method)) => Path::Regex(anchored(&format!("/[^/]+/{}", regex::escape(method)))?),
                Some((service, method)) => Path::Exact(format!("/{service}/{method}")),
            };
            Some(Match {
                path,
                headers: headers(&m.headers)?,
                query: Vec::new(),
                method: None,
            })
        };
        Self {
            hosts: hosts.iter().filter_map(host).collect(),
            any_of: matches.filter_map(one).collect(),
        }
    }

    /// What of the path follows the longest prefix that is asked for.
    pub(crate) fn behind_prefix<'a>(&self, path: &'a str) -> Option<&'a str> {
        let behind = |m: &Match| match &m.path {
            Path::Prefix(prefix) => after_prefix(prefix, path),
            Path::Any | Path::Exact(_) | Path::Regex(_) => None,
        };
        self.any_of
            .iter()
            .filter_map(behind)
            .min_by_key(|rest| rest.len())
    }

    /// How well this request fits, if it does.
    pub(crate) fn quality(&self, host: &str, method: &Method, head: &Head) -> Option<Quality> {
        if self.hosts.is_empty() && self.any_of.is_empty() {
            return Some(Quality::default());
        }
        let by_host = match self.hosts.is_empty() {
            true => Some(Quality::default()),
            false => self
                .hosts
                .iter()
                .filter_map(|pattern| pattern.quality(host))
                .max(),
        }?;
        if self.any_of.is_empty() {
            return Some(by_host);
        }
        self.any_of
            .iter()
            .filter_map(|m| m.quality(by_host, method, head))
            .max()
    }
}

/// The best match of several; the first among equals.
pub(crate) fn best<'a, T>(
    routes: &'a [T],
    matches: impl Fn(&T) -> &Matches,
    host: &str,
    method: &Method,
    head: &Head,
) -> Option<&'a T> {
    let mut best: Option<(Quality, &T)> = None;
    for route in routes {
        if let Some(quality) = matches(route).quality(host, method, head)
            && best.is_none_or(|(other, _)| quality > other)
        {
            best = Some((quality, route));
        }
    }
    best.map(|(_, route)| route)
}

impl Host {
    fn quality(&self, host: &str) -> Option<Quality> {
        let host = host.trim_end_matches('.');
        match self {
            Self::Exact(name) => host.eq_ignore_ascii_case(name).then(|| Quality {
                host_exact: true,
                host: name.len(),
                ..Quality::default()
            }),
            Self::Suffix(suffix) => {
                let front = host
                    .len()
                    .checked_sub(suffix.len())
                    .filter(|n| *n > 0 && host.is_char_boundary(*n))?;
                host[front..].eq_ignore_ascii_case(suffix).then(|| Quality {
                    host: suffix.len(),
                    ..Quality::default()
                })
            }
        }
    }
}

impl Match {
    fn quality(&self, base: Quality, method: &Method, head: &Head) -> Option<Quality> {
        if self.method.as_ref().is_some_and(|wanted| wanted != method) {
            return None;
        }
        let path = self.path.length(head.path())?;
        let header = |(name, text): &(HeaderName, Text)| {
            head.get_all(name.as_str()).any(|v| text.matches(v.as_bytes()))
        };
        if !self.headers.iter().all(header) {
            return None;
        }
        let query = |(name, text): &(String, Text)| {
            head.query()
                .is_some_and(|query| form(query).any(|(n, v)| n == *name && text.matches(v.as_bytes())))
        };
        if !self.query.iter().all(query) {
            return None;
        }
        Some(Quality {
            path,
            headers: self.headers.len(),
            query: self.query.len(),
            method: self.method.is_some(),
            ..base
        })
    }
}

/// Prefixes end at a segment's end.
fn after_prefix<'a>(prefix: &str, path: &'a str) -> Option<&'a str> {
    let rest = path.strip_prefix(prefix.trim_end_matches('/'))?;
    (rest.is_empty() || rest.starts_with('/')).then_some(rest)
}

impl Path {
    fn length(&self, path: &str) -> Option<usize> {
        match self {
            Self::Any => Some(0),
            Self::Exact(wanted) => (wanted == path).then_some(wanted.len()),
            Self::Prefix(prefix) => {
                after_prefix(prefix, path)?;
                Some(prefix.trim_end_matches('/').len().max(1))
            }
            Self::Regex(regex) => regex.is_match(path).then_some(path.len()),
        }
    }
}

impl Text {
    fn matches(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(wanted) => wanted == value,
            Self::Regex(regex) => std::str::from_utf8(value).is_ok_and(|value| regex.is_match(value)),
        }
    }
}

/// Matches the whole value or nothing.
fn anchored(pattern: &str) -> Option<Regex> {
    Regex::new(&format!("^(?:{pattern})$")).ok()
}

fn host(proto: &proto::HostMatch) -> Option<Host> {
    use proto::host_match::Match;
    match proto.r#match.as_ref()? {
        Match::Exact(name) => Some(Host::Exact(name.trim_end_matches('.').to_owned())),
        Match::Suffix(suffix) => {
            let labels: Vec<&str> = suffix.reverse_labels.iter().rev().map(String::as_str).collect();
            Some(Host::Suffix(format!(".{}", labels.join("."))))
        }
    }
}

/// `None` for a condition that cannot be read: it then matches nothing, which is safe.
fn http_match(proto: &proto::HttpRouteMatch) -> Option<Match> {
    use proto::path_match::Kind;
    use proto::query_param_match::Value;
    let path = match proto.path.as_ref().and_then(|p| p.kind.as_ref()) {
        None => Path::Any,
        Some(Kind::Exact(path)) => Path::Exact(path.clone()),
        Some(Kind::Prefix(path)) => Path::Prefix(path.clone()),
        Some(Kind::Regex(pattern)) => Path::Regex(anchored(pattern)?),
    };
    let query = |q: &proto::QueryParamMatch| {
        let text = match q.value.as_ref()? {
            Value::Exact(text) => Text::Exact(text.clone().into_bytes()),
            Value::Regex(pattern) => Text::Regex(anchored(pattern)?),
        };
        Some((q.name.clone(), text))
    };
    let method = match proto.method.clone() {
        None => None,
        Some(method) => Some(Method::try_from(method).ok()?),
    };
    Some(Match {
        path,
        headers: headers(&proto.headers)?,
        query: proto.query_params.iter().map(query).collect::<Option<_>>()?,
        method,
    })
}

fn headers(protos: &[proto::HeaderMatch]) -> Option<Vec<(HeaderName, Text)>> {
    use proto::header_match::Value;
    let one = |h: &proto::HeaderMatch| {
        let text = match h.value.as_ref()? {
            Value::Exact(bytes) => Text::Exact(bytes.clone()),
            Value::Regex(pattern) => Text::Regex(anchored(pattern)?),
        };
        Some((h.name.parse().ok()?, text))
    };
    protos.iter().map(one).collect()
}

/// Names and values of a query, decoded as forms are.
fn form(query: &str) -> impl Iterator<Item = (String, String)> + '_ {
    query.split('&').map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decoded(name), decoded(value))
    })
}

fn decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let hex = text
            .get(at + 1..at + 3)
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        let (value, width) = match (byte, hex) {
            (b'%', Some(value)) => (value, 3),
            (b'+', _) => (b' ', 1),
            (other, _) => (*other, 1),
        };
        out.push(value);
        at += width;
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use linkerd2_proxy_api::http_route::path_match::Kind;

    fn by_path(kind: Kind) -> Matches {
        let one = proto::HttpRouteMatch {
            path: Some(proto::PathMatch { kind: Some(kind) }),
            ..Default::default()
        };
        Matches::from_proto(&[], std::iter::once(&one))
    }

    fn chosen(routes: &[Matches], host: &str, uri: &str) -> Option<usize> {
        let head = Head::from(&uri.parse::<http::Uri>().unwrap());
        let best = best(routes, |r| r, host, &Method::GET, &head)?;
        routes.iter().position(|route| std::ptr::eq(route, best))
    }

    #[test]
    fn the_longest_path_wins_whatever_the_order() {
        let routes = [
            by_path(Kind::Prefix("/".into())),
            by_path(Kind::Prefix("/api".into())),
            by_path(Kind::Exact("/api/v1".into())),
        ];
        assert_eq!(chosen(&routes, "", "/"), Some(0));
        assert_eq!(chosen(&routes, "", "/apis"), Some(0));
        assert_eq!(chosen(&routes, "", "/api/v2"), Some(1));
        assert_eq!(chosen(&routes, "", "/api/v1"), Some(2));
    }

    #[test]
    fn expressions_match_whole_values() {
        let routes = [by_path(Kind::Regex("/a|/ab".into()))];
        assert_eq!(chosen(&routes, "", "/ab"), Some(0));
        assert_eq!(chosen(&routes, "", "/abc"), None);
    }

    #[test]
    fn hosts_match_by_suffix_with_a_label_in_front() {
        let suffix = proto::host_match::Suffix {
            reverse_labels: vec!["com".into(), "example".into()],
        };
        let host = proto::HostMatch {
            r#match: Some(proto::host_match::Match::Suffix(suffix)),
        };
        let routes = [Matches::from_proto(&[host], std::iter::empty())];
        assert_eq!(chosen(&routes, "A.Example.com.", "/"), Some(0));
        assert_eq!(chosen(&routes, "example.com", "/"), None);
    }

    #[test]
    fn queries_are_decoded_before_they_are_compared() {
        assert_eq!(decoded("a%20b+c%zz%e"), "a b c%zz%e");
    }
}
