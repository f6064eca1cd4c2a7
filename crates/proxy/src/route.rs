//! Which route does a request take? Matching by host, path, headers, query and method, best match first.
//!
//! Pure. Routes are compiled when a policy arrives; a request only compares (`spec/proxy.md` 5.4).

use std::net::IpAddr;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method};
use linkerd2_proxy_api::http_route as proto;
use linkerd2_proxy_api::{grpc_route, outbound};
use regex::Regex;

use crate::snapshot::{Backend, Distribution, backend, span};

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
#[derive(Clone, Debug, PartialEq, Eq)]
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

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PathChange {
    Full(String),
    /// The matched prefix becomes this.
    Prefix(String, String),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HeaderChange {
    set: Vec<(HeaderName, HeaderValue)>,
    add: Vec<(HeaderName, HeaderValue)>,
    remove: Vec<HeaderName>,
}

impl HeaderChange {
    pub(crate) fn apply(&self, headers: &mut http::HeaderMap) {
        for (name, value) in &self.set {
            headers.insert(name, value.clone());
        }
        for (name, value) in &self.add {
            headers.append(name, value.clone());
        }
        for name in &self.remove {
            headers.remove(name);
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
    pub(crate) request_timeout: Option<Duration>,
}

impl HttpRoute {
    /// Takes everything.
    pub(crate) fn to(backends: Distribution) -> Self {
        Self {
            matches: Matches::everything(),
            filters: Vec::new(),
            backends,
            request_timeout: None,
        }
    }

    pub(crate) fn from_proto<'a>(
        route: &'a outbound::HttpRoute,
        local: &'a dyn Fn(IpAddr) -> bool,
    ) -> impl Iterator<Item = Self> + 'a {
        use outbound::http_route::distribution::Kind;
        route.rules.iter().map(move |rule| {
            let one = |b: &outbound::http_route::RouteBackend| {
                let filter = b.filters.iter().find_map(|f| http_filter(f.kind.as_ref()?, None));
                filtered(filter, !b.filters.is_empty(), || {
                    backend(b.backend.as_ref(), local)
                })
            };
            let backends = match rule.backends.as_ref().and_then(|d| d.kind.as_ref()) {
                Some(Kind::FirstAvailable(all)) => {
                    Distribution::FirstAvailable(all.backends.iter().map(one).collect())
                }
                Some(Kind::RandomAvailable(all)) => Distribution::RandomAvailable(
                    all.backends
                        .iter()
                        .map(|w| (w.backend.as_ref().map_or(Backend::Unusable, one), w.weight))
                        .collect(),
                ),
                Some(Kind::Empty(_)) | None => Distribution::one(Backend::Unusable),
            };
            let matches = Matches::from_proto(&route.hosts, rule.matches.iter());
            let prefix = matches.any_of.iter().find_map(|m| match &m.path {
                Path::Prefix(prefix) => Some(prefix.clone()),
                _ => None,
            });
            let filters = rule
                .filters
                .iter()
                .filter_map(|f| http_filter(f.kind.as_ref()?, prefix.as_deref()))
                .collect();
            Self {
                filters,
                matches,
                backends,
                request_timeout: rule
                    .timeouts
                    .as_ref()
                    .and_then(|t| span(t.request).or_else(|| span(t.response))),
            }
        })
    }

    pub(crate) fn from_grpc<'a>(
        route: &'a outbound::GrpcRoute,
        local: &'a dyn Fn(IpAddr) -> bool,
    ) -> impl Iterator<Item = Self> + 'a {
        use outbound::grpc_route::distribution::Kind;
        route.rules.iter().map(move |rule| {
            let one = |b: &outbound::grpc_route::RouteBackend| {
                let filter = b.filters.iter().find_map(grpc_filter);
                filtered(filter, !b.filters.is_empty(), || {
                    backend(b.backend.as_ref(), local)
                })
            };
            let backends = match rule.backends.as_ref().and_then(|d| d.kind.as_ref()) {
                Some(Kind::FirstAvailable(all)) => {
                    Distribution::FirstAvailable(all.backends.iter().map(one).collect())
                }
                Some(Kind::RandomAvailable(all)) => Distribution::RandomAvailable(
                    all.backends
                        .iter()
                        .map(|w| (w.backend.as_ref().map_or(Backend::Unusable, one), w.weight))
                        .collect(),
                ),
                Some(Kind::Empty(_)) | None => Distribution::one(Backend::Unusable),
            };
            Self {
                matches: Matches::from_grpc(&route.hosts, rule.matches.iter()),
                filters: rule.filters.iter().filter_map(grpc_filter).collect(),
                backends,
                request_timeout: rule
                    .timeouts
                    .as_ref()
                    .and_then(|t| span(t.request).or_else(|| span(t.response))),
            }
        })
    }
}

fn ratio(proto: Option<&proto::Ratio>) -> (u32, u32) {
    proto
        .filter(|r| r.denominator > 0)
        .map_or((1, 1), |r| (r.numerator, r.denominator))
}

fn grpc_filter(filter: &outbound::grpc_route::Filter) -> Option<Filter> {
    use outbound::grpc_route::filter::Kind;
    Some(match filter.kind.as_ref()? {
        Kind::FailureInjector(fail) => {
            let (numerator, denominator) = ratio(fail.ratio.as_ref());
            Filter::Fail {
                status: 200,
                grpc: Some(fail.code),
                message: fail.message.clone(),
                numerator,
                denominator,
            }
        }
        Kind::RequestHeaderModifier(m) => {
            Filter::RequestHeaders(HeaderChange::new(m.set.as_ref(), m.add.as_ref(), &m.remove))
        }
    })
}

/// A backend's own filter exists to fail the requests to a backend that isn't there; others aren't understood.
fn filtered(filter: Option<Filter>, any: bool, backend: impl FnOnce() -> Backend) -> Backend {
    match filter {
        Some(Filter::Fail {
            status,
            grpc,
            message,
            ..
        }) => Backend::Failing {
            status,
            grpc,
            message: message.into(),
        },
        _ if any => Backend::Unusable,
        _ => backend(),
    }
}

fn http_filter(kind: &outbound::http_route::filter::Kind, prefix: Option<&str>) -> Option<Filter> {
    use linkerd2_proxy_api::http_route::path_modifier::Replace;
    use outbound::http_route::filter::Kind;
    Some(match kind {
        Kind::FailureInjector(fail) => {
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
        Kind::RequestHeaderModifier(m) => {
            Filter::RequestHeaders(HeaderChange::new(m.set.as_ref(), m.add.as_ref(), &m.remove))
        }
        Kind::ResponseHeaderModifier(m) => {
            Filter::ResponseHeaders(HeaderChange::new(m.set.as_ref(), m.add.as_ref(), &m.remove))
        }
        Kind::Redirect(r) => Filter::Redirect {
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
                .and_then(|replace| match replace {
                    Replace::Full(path) => Some(PathChange::Full(path.clone())),
                    Replace::Prefix(path) => {
                        prefix.map(|prefix| PathChange::Prefix(prefix.to_owned(), path.clone()))
                    }
                }),
            port: u16::try_from(r.port).ok().filter(|p| *p > 0),
            status: u16::try_from(r.status)
                .ok()
                .filter(|s| (300..=399).contains(s))
                .unwrap_or(301),
        },
    })
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

    /// How well this request fits, if it does.
    pub(crate) fn quality(
        &self,
        host: &str,
        method: &Method,
        uri: &http::Uri,
        headers: &http::HeaderMap,
    ) -> Option<Quality> {
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
            .filter_map(|m| m.quality(by_host, method, uri, headers))
            .max()
    }
}

/// The best match of several; the first among equals.
pub(crate) fn best<'a, T>(
    routes: &'a [T],
    matches: impl Fn(&T) -> &Matches,
    host: &str,
    method: &Method,
    uri: &http::Uri,
    headers: &http::HeaderMap,
) -> Option<&'a T> {
    let mut best: Option<(Quality, &T)> = None;
    for route in routes {
        if let Some(quality) = matches(route).quality(host, method, uri, headers)
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
    fn quality(
        &self,
        base: Quality,
        method: &Method,
        uri: &http::Uri,
        headers: &http::HeaderMap,
    ) -> Option<Quality> {
        if self.method.as_ref().is_some_and(|wanted| wanted != method) {
            return None;
        }
        let path = self.path.length(uri.path())?;
        let header = |(name, text): &(HeaderName, Text)| {
            headers.get_all(name).iter().any(|v| text.matches(v.as_bytes()))
        };
        if !self.headers.iter().all(header) {
            return None;
        }
        let query = |(name, text): &(String, Text)| {
            uri.query()
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

impl Path {
    fn length(&self, path: &str) -> Option<usize> {
        match self {
            Self::Any => Some(0),
            Self::Exact(wanted) => (wanted == path).then_some(wanted.len()),
            Self::Prefix(prefix) => {
                let prefix = prefix.trim_end_matches('/');
                let rest = path.strip_prefix(prefix)?;
                (rest.is_empty() || rest.starts_with('/')).then_some(prefix.len().max(1))
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
        let uri = uri.parse().unwrap();
        let best = best(routes, |r| r, host, &Method::GET, &uri, &http::HeaderMap::new())?;
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
