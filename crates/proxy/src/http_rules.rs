//! HTTP hygiene: what may pass, which headers belong to the mesh, and HTTP/1 carried in HTTP/2.
//!
//! Pure functions over heads (`spec/proxy.md` 4.8 to 4.10). Bodies and connections are somebody else's.

use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Version, header};

pub(crate) const ORIG_PROTO: HeaderName = HeaderName::from_static("l5d-orig-proto");
pub(crate) const CLIENT_ID: HeaderName = HeaderName::from_static("l5d-client-id");
pub(crate) const REQUIRE_ID: HeaderName = HeaderName::from_static("l5d-require-id");
pub(crate) const DST_OVERRIDE: HeaderName = HeaderName::from_static("l5d-dst-override");
pub(crate) const DST_CANONICAL: HeaderName = HeaderName::from_static("l5d-dst-canonical");
pub(crate) const PROXY_ERROR: HeaderName = HeaderName::from_static("l5d-proxy-error");
pub(crate) const PROXY_CONNECTION: HeaderName = HeaderName::from_static("l5d-proxy-connection");
/// On the answer to a question that [`ends_here`]: who answered it.
pub(crate) const ANSWERED_BY: HeaderName = HeaderName::from_static("l5d-answered-by");
pub(crate) const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
/// What concerns one connection only.
const HOP_BY_HOP: [&str; 5] = [
    "connection",
    "upgrade",
    "proxy-connection",
    "keep-alive",
    "http2-settings",
];

/// Has a message a header that the mesh's rules are about? Most have none, and one pass over the few names there are costs
/// less than looking each word up.
fn any(headers: &HeaderMap, is: impl Fn(&HeaderName) -> bool) -> bool {
    headers.keys().any(is)
}

/// Takes out these words of the mesh, and returns the first one's value.
pub(crate) fn take_words<const N: usize>(
    headers: &mut HeaderMap,
    words: [HeaderName; N],
) -> Option<HeaderValue> {
    if !any(headers, |name| name.as_str().starts_with("l5d-")) {
        return None;
    }
    let mut values = words.map(|word| headers.remove(word));
    values.first_mut().and_then(Option::take)
}

/// What is wrong with a request so that nothing may be forwarded; two readers could understand it differently.
pub(crate) fn check<B>(request: &Request<B>) -> Result<(), &'static str> {
    let headers = request.headers();
    if headers.get_all(header::HOST).iter().count() > 1 {
        return Err("more than one host header");
    }
    let framed = any(headers, |name| {
        matches!(*name, header::CONTENT_LENGTH | header::TRANSFER_ENCODING)
    });
    if framed {
        check_framing(request)?;
    }
    if request.version() >= Version::HTTP_2 {
        if request.method() != Method::CONNECT && request.uri().path_and_query().is_none() {
            return Err("no path");
        }
        return Ok(());
    }
    let authority_form = request.uri().scheme().is_none() && request.uri().authority().is_some();
    if request.method() == Method::CONNECT {
        if !authority_form || request.version() != Version::HTTP_11 {
            return Err("CONNECT not in authority-form");
        }
    } else if authority_form {
        return Err("authority-form without CONNECT");
    }
    Ok(())
}

fn check_framing<B>(request: &Request<B>) -> Result<(), &'static str> {
    let headers = request.headers();
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    let length = lengths.next();
    if lengths.any(|other| Some(other) != length) {
        return Err("conflicting content-length headers");
    }
    if request.version() >= Version::HTTP_2 {
        return Ok(());
    }
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next()
        && (codings.next().is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked"))
    {
        return Err("transfer-encoding is not a single chunked");
    }
    if headers.contains_key(header::TRANSFER_ENCODING)
        && (length.is_some() || request.version() == Version::HTTP_10)
    {
        return Err("transfer-encoding with content-length or HTTP/1.0");
    }
    Ok(())
}

/// Whether a client that asks how far its requests get wants to hear from us: `OPTIONS` with `Max-Forwards: 0`
/// (RFC 9110, 7.6.2). Counts down for those behind us otherwise.
pub(crate) fn ends_here<B>(request: &mut Request<B>) -> bool {
    if request.method() != Method::OPTIONS {
        return false;
    }
    let left = request.headers().get(header::MAX_FORWARDS);
    let left: Option<u32> = left.and_then(|left| left.to_str().ok()?.parse().ok());
    match left.map(|left| left.checked_sub(1)) {
        Some(None) => true,
        Some(Some(left)) => {
            request.headers_mut().insert(header::MAX_FORWARDS, left.into());
            false
        }
        None => false,
    }
}

/// Does the client want another protocol on this connection? `h2c` doesn't count: it is stripped.
pub(crate) fn wants_upgrade<B>(request: &Request<B>) -> bool {
    if request.version() != Version::HTTP_11 {
        return false;
    }
    if request.method() == Method::CONNECT {
        return true;
    }
    let Some(upgrade) = request.headers().get(header::UPGRADE) else {
        return false;
    };
    let asked = request
        .headers()
        .get_all(header::CONNECTION)
        .iter()
        .any(|value| names(value).any(|n| n.eq_ignore_ascii_case("upgrade")));
    asked && !upgrade.as_bytes().eq_ignore_ascii_case(b"h2c")
}

fn names(value: &HeaderValue) -> impl Iterator<Item = &str> {
    value
        .to_str()
        .unwrap_or_default()
        .split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty())
}

/// Removes what concerns one connection only.
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    // Most messages have none, and one pass over the few names there are costs less than looking each word up.
    let mut here = [false; HOP_BY_HOP.len()];
    for name in headers.keys() {
        let name = name.as_str();
        if let Some(at) = HOP_BY_HOP.iter().position(|hop| *hop == name) {
            here[at] = true;
        }
    }
    if here == [false; HOP_BY_HOP.len()] {
        return;
    }
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(names)
        // They go anyway, and nearly always nothing else is named.
        .filter(|name| !name.eq_ignore_ascii_case("close") && !name.eq_ignore_ascii_case("keep-alive"))
        .filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok())
        // Naming these must not remove them: they frame or route the message.
        .filter(|name| {
            !matches!(
                *name,
                header::CONTENT_LENGTH | header::TRANSFER_ENCODING | header::HOST | header::TE
            )
        })
        .collect();
    for name in named {
        headers.remove(name);
    }
    for (name, here) in HOP_BY_HOP.into_iter().zip(here) {
        if here {
            headers.remove(name);
        }
    }
}

/// What of a request decides who may send it.
pub(crate) fn head_of<B>(request: &Request<B>) -> Request<()> {
    let mut head = Request::new(());
    *head.method_mut() = request.method().clone();
    *head.uri_mut() = request.uri().clone();
    *head.version_mut() = request.version();
    *head.headers_mut() = request.headers().clone();
    head
}

/// The host that a request is for, with its port if it is said.
pub(crate) fn authority_of<B>(request: &Request<B>) -> &str {
    let authority = request.uri().authority().map(Authority::as_str);
    authority
        .or_else(|| request.headers().get(header::HOST)?.to_str().ok())
        .unwrap_or_default()
}

/// The same as routes compare it: without port.
pub(crate) fn host_of<B>(request: &Request<B>) -> &str {
    let host = authority_of(request);
    let end = host.rfind(':').filter(|colon| !host[*colon..].contains(']'));
    end.map_or(host, |end| &host[..end])
}

/// Turns HTTP/1 into HTTP/2 between proxies, remembering what it was. `authority` reads a host.
pub(crate) fn to_http2<B>(
    request: &mut Request<B>,
    authority: impl FnOnce(&HeaderValue) -> Option<Authority>,
) {
    if request.version() < Version::HTTP_2 {
        let absolute = request.uri().scheme().is_some();
        let was = match (request.version(), absolute) {
            (Version::HTTP_10, false) => "HTTP/1.0",
            (Version::HTTP_10, true) => "HTTP/1.0; absolute-form",
            (_, false) => "HTTP/1.1",
            (_, true) => "HTTP/1.1; absolute-form",
        };
        request
            .headers_mut()
            .insert(ORIG_PROTO, HeaderValue::from_static(was));
        request.headers_mut().remove(header::TRANSFER_ENCODING);
        if !absolute {
            let host = request.headers().get(header::HOST).and_then(authority);
            set_authority(request, host);
        }
    }
    *request.version_mut() = Version::HTTP_2;
}

/// Writes an absolute URI; without authority the scheme would be refused, so both or none.
pub(crate) fn set_authority<B>(request: &mut Request<B>, authority: Option<Authority>) {
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    parts.path_and_query = parts
        .path_and_query
        .or_else(|| Some(PathAndQuery::from_static("/")));
    parts.scheme = authority.as_ref().map(|_| parts.scheme.unwrap_or(Scheme::HTTP));
    parts.authority = authority;
    *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
}

/// The version a carried request had, if it is one; the header goes.
pub(crate) fn from_http2<B>(request: &mut Request<B>) -> bool {
    if request.version() != Version::HTTP_2 {
        return false;
    }
    let Some(was) = request.headers_mut().remove(ORIG_PROTO) else {
        return false;
    };
    let was = was.to_str().unwrap_or_default();
    let version = if was.starts_with("HTTP/1.1") {
        Version::HTTP_11
    } else if was.starts_with("HTTP/1.0") {
        Version::HTTP_10
    } else {
        return false;
    };
    let absolute = was.ends_with("absolute-form");
    *request.version_mut() = version;
    to_http1(request, absolute);
    true
}

/// Rewrites an HTTP/2 head as HTTP/1 writes it: Host header, and only the path in the URI.
pub(crate) fn to_http1<B>(request: &mut Request<B>, absolute: bool) {
    if !request.headers().contains_key(header::HOST)
        && let Some(authority) = request.uri().authority()
        && let Ok(host) = HeaderValue::from_str(authority.as_str())
    {
        request.headers_mut().insert(header::HOST, host);
    }
    if !absolute && request.uri().scheme().is_some() {
        let path = request
            .uri()
            .path_and_query()
            .cloned()
            .unwrap_or_else(|| PathAndQuery::from_static("/"));
        *request.uri_mut() = path.into();
    }
    // HTTP/2 may split cookies (RFC 9113, 8.2.3); HTTP/1 has one.
    if !any(request.headers(), |name| *name == header::COOKIE) {
        return;
    }
    let cookies: Vec<&[u8]> = request
        .headers()
        .get_all(header::COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if cookies.len() > 1
        && let Ok(joined) = HeaderValue::from_bytes(&cookies.join(&b"; "[..]))
    {
        request.headers_mut().insert(header::COOKIE, joined);
    }
}

/// Says that content follows where the library would leave it out: it takes these methods for ones without, unless a
/// header says so, and a carried request has lost the header that did.
pub(crate) fn announce_content<B: http_body::Body>(request: &mut Request<B>) {
    let unlikely = matches!(*request.method(), Method::GET | Method::HEAD);
    if unlikely
        && request.version() == Version::HTTP_11
        && !request.body().is_end_stream()
        && request.body().size_hint().exact().is_none()
        && !request.headers().contains_key(header::CONTENT_LENGTH)
    {
        let chunked = HeaderValue::from_static("chunked");
        request.headers_mut().insert(header::TRANSFER_ENCODING, chunked);
    }
}

/// The answer to a carried request, on its way back in HTTP/2.
pub(crate) fn answer_to_http2<B>(response: &mut Response<B>) {
    let was = if response.version() == Version::HTTP_10 {
        "HTTP/1.0"
    } else {
        "HTTP/1.1"
    };
    response
        .headers_mut()
        .insert(ORIG_PROTO, HeaderValue::from_static(was));
    response.headers_mut().remove(header::TRANSFER_ENCODING);
    *response.version_mut() = Version::HTTP_2;
}

/// The answer to a request that was carried in HTTP/2, in the version that it had.
pub(crate) fn answer_from_http2<B>(response: &mut Response<B>, original: Version) {
    let was = response.headers_mut().remove(ORIG_PROTO);
    let was = was.as_ref().and_then(|was| was.to_str().ok()).unwrap_or_default();
    *response.version_mut() = match was {
        was if was.starts_with("HTTP/1.1") => Version::HTTP_11,
        was if was.starts_with("HTTP/1.0") => Version::HTTP_10,
        _ => original,
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(version: Version, uri: &str, headers: &[(&str, &str)]) -> Request<()> {
        let mut request = Request::builder().version(version).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap()
    }

    #[test]
    fn a_carried_request_arrives_as_it_was_sent() {
        for (version, uri) in [
            (Version::HTTP_11, "/a?b"),
            (Version::HTTP_10, "/"),
            (Version::HTTP_11, "http://other/a"),
        ] {
            let sent = request(version, uri, &[("host", "Web.Svc:80"), ("x", "y")]);
            let mut carried = sent.clone();
            to_http2(&mut carried, |host| Authority::try_from(host.as_bytes()).ok());
            assert_eq!(carried.version(), Version::HTTP_2);
            assert!(carried.uri().authority().is_some());
            assert!(from_http2(&mut carried));
            assert_eq!(
                (carried.version(), carried.uri(), carried.headers()),
                (sent.version(), sent.uri(), sent.headers())
            );
        }
    }

    #[test]
    fn only_options_are_counted_down_and_end_at_zero() {
        for (method, forwards, ends, left) in [
            (Method::OPTIONS, "2", false, "1"),
            (Method::OPTIONS, "0", true, "0"),
            (Method::OPTIONS, "soon", false, "soon"),
            (Method::OPTIONS, "-1", false, "-1"),
            (Method::GET, "0", false, "0"),
        ] {
            let mut request = request(Version::HTTP_11, "/", &[("max-forwards", forwards)]);
            *request.method_mut() = method.clone();
            assert_eq!(ends_here(&mut request), ends, "{method} {forwards}");
            assert_eq!(request.headers()["max-forwards"], left, "{method} {forwards}");
        }
    }

    #[test]
    fn what_two_readers_could_read_differently_is_refused() {
        for headers in [
            &[("host", "a"), ("host", "b")][..],
            &[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")],
            &[("transfer-encoding", "chunked, chunked")],
            &[("transfer-encoding", "chunked"), ("content-length", "3")],
            &[("content-length", "3"), ("content-length", "4")],
            &[("transfer-encoding", "xchunked")],
        ] {
            assert!(
                check(&request(Version::HTTP_11, "/", headers)).is_err(),
                "{headers:?}"
            );
        }
        assert!(
            check(&request(
                Version::HTTP_11,
                "/",
                &[("transfer-encoding", "Chunked")]
            ))
            .is_ok()
        );
        assert!(check(&request(Version::HTTP_11, "example.com", &[])).is_err());
    }

    #[test]
    fn connection_headers_go_but_cannot_take_framing_with_them() {
        let mut headers = request(
            Version::HTTP_11,
            "/",
            &[
                ("connection", "close, X-Mine, content-length"),
                ("x-mine", "1"),
                ("content-length", "0"),
                ("keep-alive", "5"),
            ],
        )
        .headers()
        .clone();
        strip_hop_by_hop(&mut headers);
        assert_eq!(
            headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(),
            ["content-length"]
        );
    }

    #[test]
    fn hosts_lose_their_port_only() {
        for (host, expected) in [
            ("web:80", "web"),
            ("web", "web"),
            ("[::1]:80", "[::1]"),
            ("[::1]", "[::1]"),
        ] {
            assert_eq!(
                host_of(&request(Version::HTTP_11, "/", &[("host", host)])),
                expected
            );
        }
    }
}
