//! HTTP/1.1 as bytes (RFC 9112): heads in and out, and how long a body is. Pure.
//!
//! Only what is plain is read here. Anything unusual is [`Odd`] and left to the library, untouched.

use std::mem::MaybeUninit;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header};

use crate::message::{self, Request};
use crate::worker::HEAD_MAX;

/// Headers of most messages. Places for more are only made for those that have more: they would cost each message the
/// clearing of some KiB.
pub(super) const HEADERS: usize = 24;
const HEADERS_MAX: usize = 128;
/// A chunk's size and extensions, or all trailers. What is longer is refused even if it comes at once: what a message
/// means never depends on how it arrives.
pub(super) const LINE_MAX: usize = 8 << 10;

/// Requests with more content than this are passed on while it comes.
const CONTENT_MAX: usize = 16 << 10;
/// What is taken out of a buffer is a copy up to this length, and shares its memory beyond: then a connection reads into
/// the same buffer again and again, and headers that live longer hold nothing but themselves.
const COPIED_MAX: usize = 4 << 10;

/// Room for most heads, made at once.
const HEAD_USUAL: usize = 512;

/// Not for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Odd;

/// Why no request can be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lack {
    /// Its head is not whole.
    Head,
    /// Its head is, but not its content, which is short.
    Content,
    Odd,
}

impl From<Odd> for Lack {
    fn from(Odd: Odd) -> Self {
        Self::Odd
    }
}

/// Takes a request with its content off the front.
pub(super) fn request(read: &mut BytesMut) -> Result<(Request<()>, Bytes), Lack> {
    request_of::<HEADERS>(read)
}

fn request_of<const N: usize>(read: &mut BytesMut) -> Result<(Request<()>, Bytes), Lack> {
    let mut headers = [const { MaybeUninit::uninit() }; N];
    let mut parsed = httparse::Request::new(&mut []);
    let length = match parsed.parse_with_uninit_headers(read, &mut headers) {
        Ok(httparse::Status::Complete(length)) if length <= HEAD_MAX => length,
        Ok(httparse::Status::Partial) if read.len() < HEAD_MAX => return Err(Lack::Head),
        Ok(_) | Err(_) => return Err(Lack::Odd),
    };
    let (Some(method), Some(path), Some(1)) = (parsed.method, parsed.path, parsed.version) else {
        return Err(Lack::Odd);
    };
    if !path.starts_with('/') || !whole_lines(read, length) {
        return Err(Lack::Odd);
    }
    let method = Method::from_bytes(method.as_bytes()).map_err(|_| Odd)?;
    if method == Method::CONNECT {
        return Err(Lack::Odd);
    }
    // What is kept is a copy: what turns out to be odd only now is still there, whole, for the library.
    let mut head = Copied::of(read, length);
    let mut content = None;
    for field in parsed.headers.iter() {
        match head.put(field)? {
            // It says nothing, and concerns nobody else.
            b"connection" if field.value.eq_ignore_ascii_case(b"keep-alive") => head.head.pop(),
            b"content-length" => {
                let length = number(field.value).and_then(|length| usize::try_from(length).ok());
                if content.replace(length.ok_or(Odd)?).is_some() {
                    return Err(Lack::Odd);
                }
            }
            b"connection" | b"transfer-encoding" | b"upgrade" | b"expect" | b"te" => return Err(Lack::Odd),
            _ => {}
        }
    }
    let content = content.unwrap_or(0);
    if read.len() - length < content {
        return Err(match content {
            0..=CONTENT_MAX => Lack::Content,
            _ => Lack::Odd,
        });
    }
    let path = message::path(path.as_bytes()).ok_or(Odd)?;
    head.head.aim(None, None, Some(path));
    let request = Request {
        method,
        version: Version::HTTP_11,
        head: head.head,
        ..Request::default()
    };
    read.advance(length);
    Ok((request, take_off(read, content)))
}

/// A head, and where the text is that its own was copied from.
struct Copied {
    head: message::Head,
    base: usize,
}

impl Copied {
    fn of(read: &[u8], length: usize) -> Self {
        Self {
            head: message::Head::of_text(read.get(..length).unwrap_or_default()),
            base: read.as_ptr() as usize,
        }
    }

    /// Returns the field's name, in small letters.
    fn put(&mut self, field: &httparse::Header<'_>) -> Result<&[u8], Odd> {
        let place = |part: &[u8]| ((part.as_ptr() as usize).wrapping_sub(self.base), part.len());
        let (name, value) = (place(field.name.as_bytes()), place(field.value));
        self.head.push_part(name, value).ok_or(Odd)
    }
}

/// So many bytes off the front.
pub(super) fn take_off(read: &mut BytesMut, length: usize) -> Bytes {
    if length > COPIED_MAX {
        return read.split_to(length).freeze();
    }
    let taken = Bytes::copy_from_slice(read.get(..length).unwrap_or_default());
    read.advance(taken.len());
    taken
}

/// A length, in digits and nothing else.
pub(super) fn number(text: &[u8]) -> Option<u64> {
    let digit = |value: Option<u64>, byte: &u8| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        value?.checked_mul(10)?.checked_add(digit)
    };
    let first = text.first().map(|_| 0);
    text.iter().fold(first, digit)
}

/// How a message's body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    Length(u64),
    Chunked(Chunk),
    /// With the connection.
    UntilClosed,
}

/// An answer's head.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) status: StatusCode,
    pub(super) version: Version,
    pub(super) head: message::Head,
    pub(super) framing: Framing,
    pub(super) keep: bool,
}

/// Takes the head of an answer off the front; `Ok(None)` wants more.
pub(super) fn answer(read: &mut BytesMut, to_head: bool) -> Result<Option<Head>, Odd> {
    // There is nobody to leave an answer to.
    answer_of::<HEADERS>(read, to_head).or_else(|Odd| answer_of::<HEADERS_MAX>(read, to_head))
}

fn answer_of<const N: usize>(read: &mut BytesMut, to_head: bool) -> Result<Option<Head>, Odd> {
    let mut headers = [const { MaybeUninit::uninit() }; N];
    let mut parsed = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let length = match config.parse_response_with_uninit_headers(&mut parsed, read, &mut headers) {
        Ok(httparse::Status::Complete(length)) if length <= HEAD_MAX => length,
        Ok(httparse::Status::Partial) if read.len() < HEAD_MAX => return Ok(None),
        Ok(_) | Err(_) => return Err(Odd),
    };
    let (Some(code), Some(minor)) = (parsed.code, parsed.version) else {
        return Err(Odd);
    };
    let status = StatusCode::from_u16(code).map_err(|_| Odd)?;
    let (mut content, mut chunked) = (None, false);
    let mut keep = minor == 1;
    let mut head = Copied::of(read, length);
    for field in parsed.headers.iter() {
        match head.put(field)? {
            // It says nothing, and concerns nobody else.
            b"connection" if field.value.eq_ignore_ascii_case(b"keep-alive") => head.head.pop(),
            b"connection" => {
                let mut names = field.value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
                keep &= !names.any(|name| name.eq_ignore_ascii_case(b"close"));
            }
            b"transfer-encoding" => {
                if chunked || !field.value.eq_ignore_ascii_case(b"chunked") {
                    return Err(Odd);
                }
                chunked = true;
            }
            b"content-length" => {
                let length = number(field.value).ok_or(Odd)?;
                if content.replace(length).is_some_and(|other| other != length) {
                    return Err(Odd);
                }
            }
            _ => {}
        }
    }
    if chunked && content.is_some() {
        return Err(Odd);
    }
    read.advance(length);
    let framing = if to_head || status.is_informational() || matches!(code, 204 | 304) {
        Framing::Length(0)
    } else if chunked {
        Framing::Chunked(Chunk::default())
    } else {
        content.map_or(Framing::UntilClosed, Framing::Length)
    };
    Ok(Some(Head {
        status,
        version: if minor == 1 {
            Version::HTTP_11
        } else {
            Version::HTTP_10
        },
        head: head.head,
        keep: keep && framing != Framing::UntilClosed,
        framing,
    }))
}

/// Where in a chunked body we are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Chunk {
    #[default]
    Size,
    Data(u64),
    /// The line end behind a chunk.
    End,
    Trailers,
}

/// What comes next in a body.
#[derive(Debug)]
pub(super) enum Next {
    Data(Bytes),
    Trailers(HeaderMap),
    End,
    More,
}

impl Framing {
    /// How much of the body is still to come, if it is known.
    pub(super) fn left(&self) -> Option<u64> {
        match self {
            Self::Length(left) => Some(*left),
            Self::Chunked(_) | Self::UntilClosed => None,
        }
    }

    /// The same of the body or its current chunk.
    pub(super) fn ahead(&self) -> Option<u64> {
        match self {
            Self::Length(left) | Self::Chunked(Chunk::Data(left)) => Some(*left),
            Self::Chunked(_) | Self::UntilClosed => None,
        }
    }

    pub(super) fn is_over(&self) -> bool {
        *self == Self::Length(0)
    }

    /// Takes what has come of a body. After the end it is [`Framing::is_over`].
    pub(super) fn next(&mut self, read: &mut BytesMut) -> Result<Next, Odd> {
        match self {
            Self::Length(0) => Ok(Next::End),
            Self::Length(left) => Ok(take(left, read)),
            Self::UntilClosed if read.is_empty() => Ok(Next::More),
            Self::UntilClosed => Ok(Next::Data(read.split().freeze())),
            Self::Chunked(chunk) => loop {
                match chunk {
                    Chunk::Size => {
                        let (skip, size) = match chunk_size(read)? {
                            Some(found) if found.0 <= LINE_MAX => found,
                            None if read.len() < LINE_MAX => return Ok(Next::More),
                            _ => return Err(Odd),
                        };
                        read.advance(skip);
                        *chunk = match size {
                            0 => Chunk::Trailers,
                            size => Chunk::Data(size),
                        };
                    }
                    Chunk::Data(0) => *chunk = Chunk::End,
                    Chunk::Data(left) => return Ok(take(left, read)),
                    Chunk::End => match read.get(..2) {
                        Some(b"\r\n") => {
                            read.advance(2);
                            *chunk = Chunk::Size;
                        }
                        Some(_) => return Err(Odd),
                        None => return Ok(Next::More),
                    },
                    Chunk::Trailers => {
                        let mut fields = [httparse::EMPTY_HEADER; HEADERS_MAX];
                        let (skip, trailers) = match httparse::parse_headers(read, &mut fields) {
                            Ok(httparse::Status::Complete((skip, fields)))
                                if skip <= LINE_MAX && whole_lines(read, skip) =>
                            {
                                (skip, owned(fields)?)
                            }
                            Ok(httparse::Status::Partial) if read.len() < LINE_MAX => return Ok(Next::More),
                            _ => return Err(Odd),
                        };
                        read.advance(skip);
                        *self = Self::Length(0);
                        return Ok(match trailers.is_empty() {
                            true => Next::End,
                            false => Next::Trailers(trailers),
                        });
                    }
                }
            },
        }
    }
}

/// The line with a chunk's size, and its length; `None` wants more. Digits and nothing else before an extension: what
/// is forgiven here, another reader may understand differently.
fn chunk_size(read: &[u8]) -> Result<Option<(usize, u64)>, Odd> {
    let digits = read.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    if digits > 16 || (digits == 0 && !read.is_empty()) {
        return Err(Odd);
    }
    let (text, rest) = read.split_at(digits);
    let end = rest.iter().position(|byte| *byte == b'\n');
    let line = &rest[..end.unwrap_or(rest.len())];
    let extension = match (line.strip_suffix(b"\r"), end) {
        (Some(extension), _) => extension,
        (None, None) => line,
        (None, Some(_)) => return Err(Odd),
    };
    let spaces = extension
        .iter()
        .take_while(|byte| matches!(byte, b' ' | b'\t'))
        .count();
    if extension.contains(&b'\r') || extension.get(spaces).is_some_and(|byte| *byte != b';') {
        return Err(Odd);
    }
    let Some(end) = end else { return Ok(None) };
    let size = std::str::from_utf8(text)
        .ok()
        .and_then(|text| u64::from_str_radix(text, 16).ok());
    Ok(Some((digits + end + 1, size.ok_or(Odd)?)))
}

/// Do all lines of a head that was read end as they should? The parser takes a line feed alone, others don't.
fn whole_lines(read: &[u8], head: usize) -> bool {
    let head = read.get(..head).unwrap_or_default();
    // It has no carriage return but at a line's end. Sums of one byte each, so that many bytes are counted at once.
    let more = |sum: i8, byte: &u8| sum + i8::from(*byte == b'\n') - i8::from(*byte == b'\r');
    let sums = head.chunks(64).map(|chunk| i32::from(chunk.iter().fold(0, more)));
    sums.sum::<i32>() == 0
}

fn take(left: &mut u64, read: &mut BytesMut) -> Next {
    let here = usize::try_from(*left).unwrap_or(usize::MAX).min(read.len());
    if here == 0 {
        return Next::More;
    }
    *left -= here as u64;
    Next::Data(take_off(read, here))
}

fn owned(fields: &[httparse::Header<'_>]) -> Result<HeaderMap, Odd> {
    let mut map = HeaderMap::with_capacity(fields.len());
    for field in fields {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| Odd)?;
        map.append(name, HeaderValue::from_bytes(field.value).map_err(|_| Odd)?);
    }
    Ok(map)
}

/// A request with all of its content.
pub(super) fn put_request<B>(request: &Request<B>, content: &[u8], out: &mut BytesMut) {
    out.reserve(HEAD_USUAL + content.len());
    out.put_slice(request.method.as_str().as_bytes());
    out.put_u8(b' ');
    out.put_slice(request.head.path_and_query().unwrap_or("/").as_bytes());
    out.put_slice(b" HTTP/1.1\r\n");
    request.head.put_fields(out);
    // Without a length the server would have to know that these methods may have no content.
    let usual = matches!(request.method, Method::POST | Method::PUT | Method::PATCH);
    if (usual || !content.is_empty()) && !request.head.contains(header::CONTENT_LENGTH) {
        out.put_slice(b"content-length: ");
        put_number(content.len(), 10, out);
        out.put_slice(b"\r\n");
    }
    out.put_slice(b"\r\n");
    out.put_slice(content);
}

pub(super) fn put_status(version: Version, status: StatusCode, out: &mut BytesMut) {
    out.reserve(HEAD_USUAL);
    match (version, status) {
        (Version::HTTP_10, _) => out.put_slice(b"HTTP/1.0 "),
        (_, StatusCode::OK) => return out.put_slice(b"HTTP/1.1 200 OK\r\n"),
        _ => out.put_slice(b"HTTP/1.1 "),
    }
    out.put_slice(status.as_str().as_bytes());
    out.put_u8(b' ');
    out.put_slice(status.canonical_reason().unwrap_or("unknown").as_bytes());
    out.put_slice(b"\r\n");
}

pub(super) fn put_field(name: &[u8], value: &[u8], out: &mut BytesMut) {
    out.reserve(name.len() + value.len() + 4);
    out.put_slice(name);
    out.put_slice(b": ");
    out.put_slice(value);
    out.put_slice(b"\r\n");
}

pub(super) fn put_number(mut number: usize, base: usize, out: &mut BytesMut) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    for slot in digits.iter_mut().rev() {
        *slot = b"0123456789abcdef"[number % base];
        number /= base;
        at -= 1;
        if number == 0 {
            break;
        }
    }
    out.put_slice(&digits[at..]);
}

pub(super) fn put_chunk(data: &[u8], out: &mut BytesMut) {
    put_number(data.len(), 16, out);
    out.put_slice(b"\r\n");
    out.put_slice(data);
    out.put_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::damage::{cuts, damaged, pieces};
    use crate::wire::fuzzing::{read_body, read_by_library, read_request, written_as_meant};
    use proptest::prelude::*;
    use proptest::sample::{Index, select};

    fn told(text: &str) -> Result<String, Lack> {
        let mut read = BytesMut::from(text);
        let found = request(&mut read);
        if found.is_err() {
            assert_eq!(&read[..], text.as_bytes(), "untouched");
        }
        found.map(|(request, body)| {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let fields: Vec<_> = request
                .head
                .iter()
                .map(|field| format!("{}={}", text(field.name), text(field.value.as_bytes())))
                .collect();
            let body = text(&body);
            let (method, path, left) = (&request.method, request.head.path_and_query(), read.len());
            format!("{method} {} {fields:?} {body:?} {left}", path.unwrap())
        })
    }

    #[test]
    fn plain_requests_are_read_and_what_follows_is_left() {
        assert_eq!(
            told("GET /a?b HTTP/1.1\r\nHost: w\r\nAccept:  */* \r\n\r\nGET").unwrap(),
            "GET /a?b [\"host=w\", \"accept=*/*\"] \"\" 3"
        );
        assert_eq!(
            told("POST / HTTP/1.1\r\ncontent-length: 3\r\n\r\nabcd").unwrap(),
            "POST / [\"content-length=3\"] \"abc\" 1"
        );
        assert_eq!(told("GET / HTTP/1.1\r\nHost: w\r\n"), Err(Lack::Head));
        assert_eq!(
            told("POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\na"),
            Err(Lack::Content)
        );
    }

    #[test]
    fn what_is_unusual_is_left_to_the_library() {
        for text in [
            "GET / HTTP/1.0\r\n\r\n",
            "CONNECT a:80 HTTP/1.1\r\n\r\n",
            "GET http://a/ HTTP/1.1\r\n\r\n",
            "OPTIONS * HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nconnection: close\r\n\r\n",
            "GET / HTTP/1.1\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
            "POST / HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 1\r\n\r\na",
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\na",
            "POST / HTTP/1.1\r\ncontent-length: +1\r\n\r\na",
            "POST / HTTP/1.1\r\ncontent-length: 16385\r\n\r\na",
            "GET / HTTP/1.1\r\nx: a\r\n b\r\n\r\n",
            "GET / HTTP/1.1\r\nx : a\r\n\r\n",
            "GET / HTTP/1.1\nx: a\r\n\r\n",
            "GET / HTTP/1.1\r\nx: a\n\r\n",
            "GET / HTTP/1.1\r\nx: a\r\n\n",
            "GET  / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\n x: a\r\n\r\n",
            "GET / HTTP/1.1\r\nx\r\n\r\n",
            "GET / HTTP/1.1\r\n: a\r\n\r\n",
            "GET / HTTP/1.1\r\nx: a\0\r\n\r\n",
            "POST / HTTP/1.1\r\ncontent-length: 1, 1\r\n\r\na",
            "POST / HTTP/1.1\r\ncontent-length: -1\r\n\r\na",
            "POST / HTTP/1.1\r\ncontent-length: 0x1\r\n\r\na",
            "POST / HTTP/1.1\r\ncontent-length: \r\n\r\na",
            "POST / HTTP/1.1\r\ncontent-length: 18446744073709551616\r\n\r\na",
            "POST / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\na",
            "POST / HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\na",
            "GET / HTTP/1.1\r\nx: a\rb\r\n\r\n",
            "GET /<a> HTTP/1.1\r\n\r\n",
            "POST /`?< HTTP/1.1\r\ncontent-length: 18\r\n\r\nGET / HTTP/1.1\r\n\r\n",
            "\0",
        ] {
            assert_eq!(told(text), Err(Lack::Odd), "{text:?}");
        }
    }

    fn content(framing: &mut Framing, mut read: BytesMut) -> Result<(String, bool), Odd> {
        let mut all = Vec::new();
        loop {
            match framing.next(&mut read)? {
                Next::Data(data) => all.extend_from_slice(&data),
                Next::Trailers(trailers) => all.extend_from_slice(format!("{trailers:?}").as_bytes()),
                Next::End | Next::More => break,
            }
        }
        Ok((String::from_utf8(all).unwrap(), framing.is_over()))
    }

    #[test]
    fn answers_end_as_their_heads_say() {
        let framing = |text: &str, to_head| {
            let head = answer(&mut BytesMut::from(text), to_head);
            head.map(|head| head.map(|head| (head.framing, head.keep)))
        };
        let chunked = Framing::Chunked(Chunk::Size);
        for (text, expected) in [
            (
                "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n",
                Ok(Some((Framing::Length(5), true))),
            ),
            ("HTTP/1.1 200 OK\r\n\r\n", Ok(Some((Framing::UntilClosed, false)))),
            (
                "HTTP/1.1 204 OK\r\ncontent-length: 5\r\n\r\n",
                Ok(Some((Framing::Length(0), true))),
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n",
                Ok(Some((chunked, true))),
            ),
            (
                "HTTP/1.1 200 OK\r\nconnection: a, Close\r\ncontent-length: 0\r\n\r\n",
                Ok(Some((Framing::Length(0), false))),
            ),
            (
                "HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n",
                Ok(Some((Framing::Length(0), false))),
            ),
            (
                "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
                Err(Odd),
            ),
            (
                "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
                Err(Odd),
            ),
            (
                "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
                Err(Odd),
            ),
            ("HTTP/1.1 200 OK\r\n", Ok(None)),
            ("nonsense\r\n\r\n", Err(Odd)),
        ] {
            assert_eq!(framing(text, false), expected, "{text:?}");
        }
        let to_head = framing("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n", true);
        assert_eq!(to_head, Ok(Some((Framing::Length(0), true))));
    }

    #[test]
    fn bad_chunks_are_refused() {
        for text in [
            "x\r\n",
            "-1\r\na\r\n",
            "1\r\nab\r\n",
            "1\r\na\n0\r\n\r\n",
            "\r\n\r\n",
            " 1\r\na\r\n",
            "+1\r\na\r\n",
            "0x1\r\na\r\n",
            "1 1\r\na\r\n",
            "1\na\r\n",
            "1\r\r\na\r\n",
            "1;a\nb\r\na\r\n",
            "1;a\rb\r\na\r\n",
            "fffffffffffffffff\r\n",
            "00000000000000001\r\na\r\n",
            "0\r\nx y\r\n\r\n",
            "0\r\nx: y\n\r\n",
            "0\r\n\n",
        ] {
            let mut framing = Framing::Chunked(Chunk::Size);
            assert_eq!(content(&mut framing, BytesMut::from(text)), Err(Odd), "{text:?}");
        }
    }

    #[test]
    fn what_follows_a_chunks_size_is_of_no_interest() {
        for text in ["1\r\na\r\n0\r\n\r\n", "01;a=b\r\na\r\n0 ; c\r\n\r\n"] {
            let mut framing = Framing::Chunked(Chunk::Size);
            let read = content(&mut framing, BytesMut::from(text));
            assert_eq!(read, Ok(("a".into(), true)), "{text:?}");
            for end in 0..text.len() {
                let mut framing = Framing::Chunked(Chunk::Size);
                let read = content(&mut framing, BytesMut::from(&text[..end]));
                assert!(matches!(read, Ok((_, false))), "{:?}", &text[..end]);
            }
        }
    }

    /// Lines of a head, of which some decide what the rest means.
    fn head(first: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
        let usual = "[a-zA-Z-]{1,9}: [ -~]{0,20}".prop_map(|field| field.trim_end().to_owned());
        let special = select(vec![
            "Content-Length: 3",
            "content-length: 0",
            "content-length: 03",
            "Transfer-Encoding: chunked",
            "connection: keep-alive",
            "Connection: close",
            "te: trailers",
            "expect: 100-continue",
            "upgrade: h2c",
            "host: a",
        ]);
        let field = prop_oneof![3 => usual, 1 => special.prop_map(str::to_owned)];
        let content = select(vec![
            "",
            "abc",
            "abcGET / HTTP/1.1\r\n\r\n",
            "3\r\nabc\r\n0\r\n\r\n",
        ]);
        (select(first), proptest::collection::vec(field, 0..30), content).prop_map(
            |(first, fields, content)| {
                format!(
                    "{first}\r\n{}\r\n{content}",
                    fields
                        .iter()
                        .map(|field| format!("{field}\r\n"))
                        .collect::<String>()
                )
                .into_bytes()
            },
        )
    }

    fn chunked() -> impl Strategy<Value = Vec<u8>> {
        let extension = prop_oneof![
            8 => select(vec!["", ";a=b", " ; c", ";d=\"e\""]).prop_map(str::to_owned),
            1 => (LINE_MAX - 9..LINE_MAX + 9).prop_map(|length| format!(";{}", "x".repeat(length))),
        ];
        let chunk = ("[ -~\r\n]{1,40}", extension.clone())
            .prop_map(|(data, extension)| format!("{:x}{extension}\r\n{data}\r\n", data.len()));
        let trailers = prop_oneof![
            8 => select(vec!["", "a: b\r\n", "grpc-status: 0\r\nc: d\r\n"]).prop_map(str::to_owned),
            1 => (LINE_MAX - 9..LINE_MAX + 9).prop_map(|length| format!("a: {}\r\n", "x".repeat(length))),
        ];
        (
            proptest::collection::vec(chunk, 0..5),
            extension,
            trailers,
            select(vec!["", "HTTP/1.1 200 OK\r\n"]),
        )
            .prop_map(|(chunks, extension, trailers, rest)| {
                format!("{}0{extension}\r\n{trailers}\r\n{rest}", chunks.concat()).into_bytes()
            })
    }

    const REQUESTS: &[&str] = &[
        "GET / HTTP/1.1",
        "POST /a?b=c HTTP/1.1",
        "HEAD /%20 HTTP/1.1",
        "M-SEARCH /a HTTP/1.1",
        "DELETE //a/../b HTTP/1.1",
        "GET / HTTP/1.0",
        "GET http://a/b HTTP/1.1",
        "OPTIONS * HTTP/1.1",
        "CONNECT a:1 HTTP/1.1",
        "POST /<`>? HTTP/1.1",
    ];
    const ANSWERS: &[&str] = &[
        "HTTP/1.1 200 OK",
        "HTTP/1.1 204 No Content",
        "HTTP/1.1 304 Not Modified",
        "HTTP/1.0 200 OK",
        "HTTP/1.1 404 ",
        "HTTP/1.1 100 Continue",
        "HTTP/1.1 599 \u{fc}",
    ];

    proptest! {
        #[test]
        fn a_damaged_request_is_read_alike_in_any_pieces(bytes in damaged(head(REQUESTS)), cuts in cuts()) {
            let mut rest = BytesMut::from(&bytes[..]);
            let whole = read_request(&mut rest);
            let (mut read, mut found) = (BytesMut::new(), Err(Lack::Head));
            for piece in pieces(&bytes, &cuts) {
                read.extend_from_slice(piece);
                if let Err(Lack::Head | Lack::Content) = found {
                    found = read_request(&mut read);
                }
            }
            prop_assert_eq!(found, whole);
            prop_assert_eq!(read, rest);
        }

        #[test]
        fn a_request_that_is_taken_is_written_as_it_was_meant(bytes in damaged(head(REQUESTS))) {
            written_as_meant(&bytes);
        }

        #[test]
        fn a_request_that_is_taken_is_the_one_that_the_library_would_have_seen(bytes in damaged(head(REQUESTS))) {
            if let Ok(ours) = read_request(&mut BytesMut::from(&bytes[..])) {
                prop_assert_eq!(Some(ours), read_by_library(&bytes));
            }
        }

        #[test]
        fn a_damaged_answer_is_read_alike_in_any_pieces(
            bytes in damaged(head(ANSWERS)), to_head in any::<bool>(), cuts in cuts(),
        ) {
            let told = |head: Head| (head.status, head.version, head.head, head.framing, head.keep);
            let mut rest = BytesMut::from(&bytes[..]);
            let whole = answer(&mut rest, to_head).map(|head| head.map(told));
            let (mut read, mut found) = (BytesMut::new(), Ok(None));
            for piece in pieces(&bytes, &cuts) {
                read.extend_from_slice(piece);
                if found == Ok(None) {
                    found = answer(&mut read, to_head).map(|head| head.map(told));
                }
            }
            prop_assert_eq!(&found, &whole);
            prop_assert!(found.is_err() || read == rest);
            // A body that ends with its connection leaves nothing for another answer.
            if let Ok(Some((.., Framing::UntilClosed, keep))) = whole {
                prop_assert!(!keep);
            }
        }

        #[test]
        fn a_damaged_body_is_read_alike_in_any_pieces_and_written_as_it_was_meant(
            bytes in damaged(chunked()), length in proptest::option::of(0..60_u64), cuts in cuts(),
        ) {
            let framing = length.map_or(Framing::Chunked(Chunk::Size), Framing::Length);
            let whole = read_body(framing, std::iter::once(&bytes[..]));
            let pieces = pieces(&bytes, &cuts);
            let in_pieces = read_body(framing, pieces.into_iter());
            prop_assert_eq!((&in_pieces.0, &in_pieces.1, in_pieces.2), (&whole.0, &whole.1, whole.2));
            if whole.2 == Ok(true) {
                prop_assert_eq!(&in_pieces.3, &whole.3, "what follows is left");
                let mut out = BytesMut::new();
                for data in whole.0.chunks(7) {
                    put_chunk(data, &mut out);
                }
                out.put_slice(b"0\r\n\r\n");
                let again = read_body(Framing::Chunked(Chunk::Size), std::iter::once(&out[..]));
                prop_assert_eq!((again.0, again.2), (whole.0, Ok(true)));
            }
        }

        #[test]
        fn no_bytes_make_a_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = request(&mut BytesMut::from(&bytes[..]));
            let _ = answer(&mut BytesMut::from(&bytes[..]), false);
            let _ = read_body(Framing::Chunked(Chunk::Size), std::iter::once(&bytes[..]));
        }
    }

    proptest! {
        // Each of them reads 64 KiB.
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn a_head_has_one_limit_however_it_arrives(more in 0..200_usize, cut in any::<Index>()) {
            let text = |from: usize| format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(from + more));
            let bytes = text(HEAD_MAX - 120).into_bytes();
            let whole = read_request(&mut BytesMut::from(&bytes[..]));
            prop_assert_eq!(whole.is_ok(), bytes.len() <= HEAD_MAX);
            let (first, rest) = bytes.split_at(cut.index(bytes.len()));
            let mut read = BytesMut::from(first);
            let mut found = read_request(&mut read);
            if found == Err(Lack::Head) {
                read.extend_from_slice(rest);
                found = read_request(&mut read);
            }
            prop_assert_eq!(found, whole);
        }
    }

    proptest! {
        #[test]
        fn chunks_are_read_however_they_arrive(
            pieces in proptest::collection::vec("[a-z]{1,40}", 0..6), cut in any::<Index>(),
        ) {
            let mut wire = BytesMut::new();
            for piece in &pieces {
                put_chunk(piece.as_bytes(), &mut wire);
            }
            wire.put_slice(b"0\r\n\r\n");
            let mut framing = Framing::Chunked(Chunk::Size);
            let mut all = String::new();
            let mut read = BytesMut::new();
            let rest = wire.split_off(cut.index(wire.len()));
            for part in [wire, rest] {
                read.extend_from_slice(&part);
                while let Next::Data(data) = framing.next(&mut read).unwrap() {
                    all.push_str(std::str::from_utf8(&data).unwrap());
                }
            }
            prop_assert!(framing.is_over() && read.is_empty());
            prop_assert_eq!(all, pieces.concat());
        }
    }
}
