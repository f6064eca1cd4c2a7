//! HTTP hygiene: what may pass, which headers belong to the mesh, and HTTP/1 carried in HTTP/2.
//!
//! Pure functions over heads (`spec/proxy.md` 4.8 to 4.10). Bodies and connections are somebody else's.

use http::uri::Authority;
use http::{HeaderName, HeaderValue, Method, Version, header};

use crate::message::{Head, Request, Response, Value};

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

/// Takes out these words of the mesh, and returns the first one's value.
pub(crate) fn take_words<const N: usize>(head: &mut Head, words: [HeaderName; N]) -> Option<HeaderValue> {
    let first = words.first().and_then(|word| head.get(word)?.to_owned());
    for word in words {
        head.remove(word);
    }
    first
}

/// What is wrong with a request so that nothing may be forwarded; two readers could understand it differently.
pub(crate) fn check<B>(request: &Request<B>) -> Result<(), &'static str> {
    let head = &request.head;
    if head.get_all("host").count() > 1 {
        return Err("more than one host header");
    }
    check_framing(request)?;
    if request.version >= Version::HTTP_2 {
        if request.method != Method::CONNECT && head.path_and_query().is_none() {
            return Err("no path");
        }
        return Ok(());
    }
    let authority_form = head.scheme().is_none() && head.authority().is_some();
    if request.method == Method::CONNECT {
        if !authority_form || request.version != Version::HTTP_11 {
            return Err("CONNECT not in authority-form");
        }
    } else if authority_form {
        return Err("authority-form without CONNECT");
    }
    Ok(())
}

fn check_framing<B>(request: &Request<B>) -> Result<(), &'static str> {
    let mut lengths = request.head.get_all("content-length");
    let length = lengths.next();
    if lengths.any(|other| Some(other) != length) {
        return Err("conflicting content-length headers");
    }
    if request.version >= Version::HTTP_2 {
        return Ok(());
    }
    let mut codings = request.head.get_all("transfer-encoding");
    let Some(coding) = codings.next() else {
        return Ok(());
    };
    if codings.next().is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
        return Err("transfer-encoding is not a single chunked");
    }
    if length.is_some() || request.version == Version::HTTP_10 {
        return Err("transfer-encoding with content-length or HTTP/1.0");
    }
    Ok(())
}

/// Whether a client that asks how far its requests get wants to hear from us: `OPTIONS` with `Max-Forwards: 0`
/// (RFC 9110, 7.6.2). Counts down for those behind us otherwise.
pub(crate) fn ends_here<B>(request: &mut Request<B>) -> bool {
    if request.method != Method::OPTIONS {
        return false;
    }
    let left = request.head.get(header::MAX_FORWARDS);
    let left: Option<u32> = left.and_then(|left| left.to_str()?.parse().ok());
    match left.map(|left| left.checked_sub(1)) {
        Some(None) => true,
        Some(Some(left)) => {
            request.head.insert(header::MAX_FORWARDS, &left.into());
            false
        }
        None => false,
    }
}

/// Does the client want another protocol on this connection? `h2c` doesn't count: it is stripped.
pub(crate) fn wants_upgrade<B>(request: &Request<B>) -> bool {
    if request.version != Version::HTTP_11 {
        return false;
    }
    if request.method == Method::CONNECT {
        return true;
    }
    let Some(upgrade) = request.head.get(header::UPGRADE) else {
        return false;
    };
    let asked = request
        .head
        .get_all("connection")
        .any(|value| names(value).any(|n| n.eq_ignore_ascii_case("upgrade")));
    asked && !upgrade.as_bytes().eq_ignore_ascii_case(b"h2c")
}

fn names(value: Value<'_>) -> impl Iterator<Item = &str> {
    value
        .to_str()
        .unwrap_or_default()
        .split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty())
}

/// Removes what concerns one connection only.
pub(crate) fn strip_hop_by_hop(head: &mut Head) {
    if head.contains("connection") {
        strip_named(head);
    }
    for name in HOP_BY_HOP {
        head.remove(name);
    }
}

/// Removes what the connection header names.
fn strip_named(head: &mut Head) {
    let named: Vec<HeaderName> = head
        .get_all("connection")
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
        head.remove(name);
    }
}

/// The host that a request is for, with its port if it is said.
pub(crate) fn authority_of<B>(request: &Request<B>) -> &str {
    let head = &request.head;
    head.authority()
        .or_else(|| head.get(header::HOST)?.to_str())
        .unwrap_or_default()
}

/// The same as routes compare it: without port.
pub(crate) fn host_of<B>(request: &Request<B>) -> &str {
    let host = authority_of(request);
    let end = host.rfind(':').filter(|colon| !host[*colon..].contains(']'));
    end.map_or(host, |end| &host[..end])
}

/// Turns HTTP/1 into HTTP/2 between proxies, remembering what it was. `authority` reads a host.
pub(crate) fn to_http2<B>(request: &mut Request<B>, authority: impl FnOnce(Value<'_>) -> Option<Authority>) {
    let head = &mut request.head;
    if request.version < Version::HTTP_2 {
        let absolute = head.scheme().is_some();
        let was = match (request.version, absolute) {
            (Version::HTTP_10, false) => "HTTP/1.0",
            (Version::HTTP_10, true) => "HTTP/1.0; absolute-form",
            (_, false) => "HTTP/1.1",
            (_, true) => "HTTP/1.1; absolute-form",
        };
        head.insert(ORIG_PROTO, &HeaderValue::from_static(was));
        head.remove(header::TRANSFER_ENCODING);
        if !absolute {
            let host = head.get(header::HOST).and_then(authority);
            head.set_authority(host.as_ref().map(Authority::as_str));
        }
    }
    request.version = Version::HTTP_2;
}

/// The version a carried request had, if it is one; the header goes.
pub(crate) fn from_http2<B>(request: &mut Request<B>) -> bool {
    if request.version != Version::HTTP_2 {
        return false;
    }
    let Some(was) = request.head.remove(ORIG_PROTO) else {
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
    request.version = version;
    to_http1(request, absolute);
    true
}

/// Rewrites an HTTP/2 head as HTTP/1 writes it: Host header, and only the path in the target.
pub(crate) fn to_http1<B>(request: &mut Request<B>, absolute: bool) {
    let head = &mut request.head;
    if !head.contains(header::HOST)
        && let Some(authority) = head.authority()
        && let Ok(host) = HeaderValue::from_str(authority)
    {
        head.insert(header::HOST, &host);
    }
    if !absolute && head.scheme().is_some() {
        head.set_authority(None);
    }
    // HTTP/2 may split cookies (RFC 9113, 8.2.3); HTTP/1 has one.
    let cookies: Vec<&[u8]> = head.get_all("cookie").map(Value::as_bytes).collect();
    if cookies.len() > 1
        && let Ok(joined) = HeaderValue::from_bytes(&cookies.join(&b"; "[..]))
    {
        head.insert(header::COOKIE, &joined);
    }
}

/// Says that content follows where the library would leave it out: it takes these methods for ones without, unless a
/// header says so, and a carried request has lost the header that did.
pub(crate) fn announce_content<B: http_body::Body>(request: &mut Request<B>) {
    let unlikely = matches!(request.method, Method::GET | Method::HEAD);
    if unlikely
        && request.version == Version::HTTP_11
        && !request.body.is_end_stream()
        && request.body.size_hint().exact().is_none()
        && !request.head.contains(header::CONTENT_LENGTH)
    {
        let chunked = HeaderValue::from_static("chunked");
        request.head.insert(header::TRANSFER_ENCODING, &chunked);
    }
}

/// The answer to a carried request, on its way back in HTTP/2.
pub(crate) fn answer_to_http2<B>(response: &mut Response<B>) {
    let was = if response.version == Version::HTTP_10 {
        "HTTP/1.0"
    } else {
        "HTTP/1.1"
    };
    response.head.insert(ORIG_PROTO, &HeaderValue::from_static(was));
    response.head.remove(header::TRANSFER_ENCODING);
    response.version = Version::HTTP_2;
}

/// The answer to a request that was carried in HTTP/2, in the version that it had.
pub(crate) fn answer_from_http2<B>(response: &mut Response<B>, original: Version) {
    let was = response.head.remove(ORIG_PROTO);
    let was = was.and_then(Value::to_str).unwrap_or_default();
    response.version = match was {
        was if was.starts_with("HTTP/1.1") => Version::HTTP_11,
        was if was.starts_with("HTTP/1.0") => Version::HTTP_10,
        _ => original,
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(version: Version, uri: &str, headers: &[(&str, &str)]) -> Request<()> {
        let mut request = http::Request::builder().version(version).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into()
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
            assert_eq!(carried.version, Version::HTTP_2);
            assert!(carried.head.authority().is_some());
            assert!(from_http2(&mut carried));
            assert_eq!((carried.version, carried.head), (sent.version, sent.head));
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
            request.method = method.clone();
            assert_eq!(ends_here(&mut request), ends, "{method} {forwards}");
            let now = request.head.get("max-forwards").and_then(Value::to_str);
            assert_eq!(now, Some(left), "{method} {forwards}");
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
        let mut head = request(
            Version::HTTP_11,
            "/",
            &[
                ("connection", "close, X-Mine, content-length"),
                ("x-mine", "1"),
                ("content-length", "0"),
                ("keep-alive", "5"),
            ],
        )
        .head;
        strip_hop_by_hop(&mut head);
        let left: Vec<&[u8]> = head.iter().map(|field| field.name).collect();
        assert_eq!(left, [b"content-length"]);
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
