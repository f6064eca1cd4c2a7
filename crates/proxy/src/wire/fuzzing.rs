//! The part of [`crate::fuzzing`] that needs to see our own HTTP. Property tests share some of it.

use std::fmt::Write as _;
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use h2::Reason;
use http::{HeaderMap, Method, StatusCode, Version, header};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt as _;

use super::frame::{self, Header};
use super::h1::{self, Chunk, Framing, Lack, Next, Odd};
use super::hpack::model::{Model, Told, read_alike};
use super::hpack::{Decoder, Encoder, Kind};
use super::link::{Link, Piece, Side};
use super::{Fault, Options};
use crate::fuzzing::arrival;
use crate::message::Request;

/// A request that can be compared.
pub(super) type Plain = (Method, Version, String, Vec<(Vec<u8>, Vec<u8>)>, Bytes);

pub(super) fn plain<B>(request: &Request<B>, content: Bytes) -> Plain {
    let fields = request.head.iter();
    let fields = fields.map(|field| (field.name.to_vec(), field.value.as_bytes().to_vec()));
    let mut fields: Vec<_> = fields.collect();
    // Only the order of those with one name means something; the library's map keeps no other.
    fields.sort_by(|one, other| one.0.cmp(&other.0));
    (
        request.method.clone(),
        request.version,
        format!("{:?}", (request.head.authority(), request.head.path_and_query())),
        fields,
        content,
    )
}

pub(super) fn read_request(read: &mut BytesMut) -> Result<Plain, Lack> {
    let before = read.clone();
    let found = h1::request(read).map(|(request, content)| plain(&request, content));
    assert!(found.is_ok() || *read == before, "untouched");
    found
}

/// A request is read alike in any pieces, as the library reads it, and written as it was meant.
pub fn request(input: &[u8]) {
    let (bytes, length) = arrival(input);
    let mut rest = BytesMut::from(bytes);
    let whole = read_request(&mut rest);
    let (mut read, mut found) = (BytesMut::new(), Err(Lack::Head));
    for piece in bytes.chunks(length) {
        read.extend_from_slice(piece);
        if let Err(Lack::Head | Lack::Content) = found {
            found = read_request(&mut read);
        }
    }
    assert_eq!(found, whole);
    assert_eq!(read, rest);
    let Ok(ours) = whole else { return };
    assert_eq!(Some(&ours), read_by_library(bytes).as_ref());
    let taken = &bytes[..bytes.len() - rest.len() - ours.4.len()];
    assert_eq!(crate::head::fault_of(taken), None);
    written_as_meant(bytes);
}

/// What was taken for a request is one again when we have written it, with nothing behind it.
pub(super) fn written_as_meant(bytes: &[u8]) {
    let Ok((request, content)) = h1::request(&mut BytesMut::from(bytes)) else {
        return;
    };
    let mut out = BytesMut::new();
    h1::put_request(&request, &content, &mut out);
    let ours = plain(&request, content);
    let mut again = match read_request(&mut out) {
        // With the header that we add there are more than the short way takes.
        Err(Lack::Odd) if ours.3.len() == h1::HEADERS => return,
        again => again.expect("we wrote it"),
    };
    assert!(
        out.is_empty(),
        "nothing is left that could be taken for another request"
    );
    // The only thing that we say on our own.
    if !request.head.contains(header::CONTENT_LENGTH) {
        again.3.retain(|(name, _)| name != b"content-length");
    }
    assert_eq!(again, ours);
}

/// The first request that the library sees in the same bytes.
pub(super) fn read_by_library(bytes: &[u8]) -> Option<Plain> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().ok()?;
    let first = std::cell::RefCell::new(None);
    runtime.block_on(async {
        let (mut client, server) = tokio::io::duplex(64 << 10);
        client.write_all(bytes).await.ok()?;
        client.shutdown().await.ok()?;
        let service = hyper::service::service_fn(async |asked: http::Request<hyper::body::Incoming>| {
            let (head, body) = asked.into_parts();
            let content = body.collect().await?.to_bytes();
            let mut seen = plain(&http::Request::from_parts(head, ()).into(), content);
            // What we leave out.
            seen.3
                .retain(|(name, value)| name != b"connection" || !value.eq_ignore_ascii_case(b"keep-alive"));
            *first.borrow_mut() = Some(seen);
            Ok::<_, hyper::Error>(http::Response::new(Empty::<Bytes>::new()))
        });
        hyper::server::conn::http1::Builder::new()
            .keep_alive(false)
            .half_close(true)
            .serve_connection(TokioIo::new(server), service)
            .await
            .ok()
    });
    first.into_inner()
}

/// Data, trailers, how it ended (`false` wants more), and what is left.
pub(super) type Body = (Vec<u8>, Option<HeaderMap>, Result<bool, Odd>, BytesMut);

pub(super) fn read_body<'a>(mut framing: Framing, pieces: impl Iterator<Item = &'a [u8]>) -> Body {
    let (mut all, mut trailers, mut ended, mut read) = (Vec::new(), None, Ok(false), BytesMut::new());
    // Some bodies end before anything has come.
    for piece in std::iter::once(&[][..]).chain(pieces) {
        read.extend_from_slice(piece);
        while ended == Ok(false) {
            match framing.next(&mut read) {
                Ok(Next::Data(data)) => all.extend_from_slice(&data),
                Ok(Next::Trailers(found)) => trailers = Some(found),
                Ok(Next::End) => ended = Ok(true),
                Ok(Next::More) => break,
                Err(Odd) => ended = Err(Odd),
            }
        }
        assert!(
            ended != Ok(false) || read.len() < h1::LINE_MAX,
            "never more than a line"
        );
    }
    (all, trailers, ended, read)
}

/// A body is the same in any pieces; what follows it is left.
fn same_body(framing: Framing, bytes: &[u8], length: usize) -> Body {
    let whole = read_body(framing, std::iter::once(bytes));
    let pieces = read_body(framing, bytes.chunks(length));
    assert_eq!((&pieces.0, &pieces.1, pieces.2), (&whole.0, &whole.1, whole.2),);
    assert!(whole.2 != Ok(true) || pieces.3 == whole.3, "what follows is left");
    whole
}

/// An answer's head and its body are read alike in any pieces.
pub fn answer(input: &[u8]) {
    let (bytes, length) = arrival(input);
    for to_head in [false, true] {
        let told = |head: h1::Head| (head.status, head.version, head.head, head.framing, head.keep);
        let mut rest = BytesMut::from(bytes);
        let whole = h1::answer(&mut rest, to_head).map(|head| head.map(told));
        let (mut read, mut found) = (BytesMut::new(), Ok(None));
        for piece in bytes.chunks(length) {
            read.extend_from_slice(piece);
            if found == Ok(None) {
                found = h1::answer(&mut read, to_head).map(|head| head.map(told));
            }
        }
        assert_eq!(found, whole);
        let Ok(Some((.., framing, keep))) = whole else {
            continue;
        };
        assert_eq!(read, rest);
        assert!(!keep || framing != Framing::UntilClosed);
        let _ = same_body(framing, &rest, length);
    }
}

/// A chunked body is read alike in any pieces, and written as it was meant.
pub fn chunked(input: &[u8]) {
    let (bytes, length) = arrival(input);
    let framing = Framing::Chunked(Chunk::Size);
    let (data, _, ended, _) = same_body(framing, bytes, length);
    if ended == Ok(true) {
        let mut out = BytesMut::new();
        for data in data.chunks(length) {
            h1::put_chunk(data, &mut out);
        }
        out.extend_from_slice(b"0\r\n\r\n");
        let again = read_body(framing, std::iter::once(&out[..]));
        assert_eq!((again.0, again.1, again.2), (data, None, Ok(true)));
    }
}

/// Blocks are read as the RFC says, and what was read can be written so that the other side reads the same. Each is as
/// long as the byte before it says.
pub fn hpack(input: &[u8]) {
    let (mut decoder, mut model) = (Decoder::new(), Model::new());
    let (mut encoder, mut other) = (Encoder::new(), Decoder::new());
    let mut rest = input;
    while let Some((length, after)) = rest.split_first() {
        let (block, after) = after.split_at(after.len().min(usize::from(*length)));
        rest = after;
        let Some(mut fields) = read_alike(&mut decoder, &mut model, block) else {
            return;
        };
        if block.len() % 16 == 7 {
            encoder.resize(block.len() * 7);
        }
        let mut out = BytesMut::new();
        encoder.begin(&mut out);
        fields.retain(|field| {
            match field {
                Told::Header(name, value) => encoder.header(name, value, false, &mut out),
                Told::Pseudo(kind, text) => match kind {
                    Kind::Method => encoder.method(&text.parse().expect("a method"), &mut out),
                    Kind::Scheme => encoder.scheme(text, &mut out),
                    Kind::Authority => encoder.authority(text, &mut out),
                    Kind::Path => encoder.path(text, &mut out),
                    Kind::Status => encoder.status(text.parse().expect("a status"), &mut out),
                    Kind::Header | Kind::Wrong => return false,
                },
                Told::Malformed => return false,
            }
            true
        });
        let mut again = Vec::new();
        let read = other.decode(&out, |field, _| again.push(field.into()));
        assert_eq!((read, again), (Ok(()), fields));
    }
}

pub(super) const OPTIONS: Options = Options {
    stream_window: 1_000,
    connection_window: 1 << 20,
    frame_max: None,
    streams_max: 4,
    header_list_max: 4_000,
    pending_resets_max: 3,
    send_buffer_max: 1_000,
    keepalive: None,
};

/// Frames are read alike in any pieces, by a server and by a client, and what is written back is frames.
pub fn frames(input: &[u8]) {
    let (bytes, length) = arrival(input);
    for side in [Side::Server, Side::Client] {
        assert_eq!(
            outcome(side, bytes.chunks(length)),
            outcome(side, std::iter::once(bytes)),
        );
    }
    serve(bytes.chunks(length));
}

/// A link on which something is under way, if it is a client's.
fn link(side: Side) -> (Link, Vec<u32>) {
    let mut link = Link::new(side, OPTIONS);
    link.out.clear();
    let mut open = Vec::new();
    if side == Side::Client {
        for (method, end) in [(Method::GET, true), (Method::HEAD, true), (Method::POST, false)] {
            let request = Request {
                method,
                ..Request::<()>::default()
            };
            open.push(link.open(&request, end));
        }
        link.out.clear();
    }
    (link, open)
}

/// How the connection ended, what has come, and what is written back.
fn outcome<'a>(side: Side, pieces: impl Iterator<Item = &'a [u8]>) -> String {
    let (mut link, mut open) = link(side);
    let ended = receive(&mut link, pieces);
    let written = check_frames(&link);
    let mut told = format!("{ended:?} {written:?}");
    let cx = Context::from_waker(Waker::noop());
    while let Some((id, request)) = link.next_accepted() {
        write!(told, " {id} {request:?}").expect("a string");
        open.push(id);
    }
    for id in open {
        if side == Side::Client {
            write!(told, " {id} {:?}", link.poll_answer(id, &cx)).expect("a string");
        }
        let (body, trailers, fault) = read_stream(&mut link, id, &cx);
        write!(told, " {body:?} {trailers:?} {fault:?}").expect("a string");
        assert!(body.len() <= OPTIONS.stream_window as usize, "its window");
    }
    told
}

/// Takes in the pieces, until the connection ends if it does.
pub(super) fn receive<'a>(link: &mut Link, pieces: impl Iterator<Item = &'a [u8]>) -> Option<Reason> {
    let mut read = BytesMut::new();
    for piece in pieces {
        read.extend_from_slice(piece);
        if let Err(reason) = link.received(&mut read) {
            return Some(reason);
        }
        assert!(read.len() < frame::HEADER + frame::SIZE_MIN, "less than a frame");
    }
    None
}

fn read_stream(link: &mut Link, id: u32, cx: &Context<'_>) -> (Vec<u8>, Option<HeaderMap>, Option<Fault>) {
    let (mut body, mut trailers) = (Vec::new(), None);
    loop {
        match link.poll_data(id, cx) {
            Poll::Ready(Some(Ok(Piece::Data(data)))) => body.extend_from_slice(&data),
            Poll::Ready(Some(Ok(Piece::Trailers(found)))) => trailers = Some(found),
            Poll::Ready(Some(Err(fault))) => return (body, trailers, Some(fault)),
            Poll::Ready(None) | Poll::Pending => return (body, trailers, None),
        }
    }
}

/// The kinds of frames that wait to be written, which are whole.
fn check_frames(link: &Link) -> Vec<(u8, u32, usize)> {
    let (mut rest, mut all) = (&link.out[..], Vec::new());
    while let Some(header) = Header::read(rest) {
        let length = frame::HEADER + header.length;
        assert!(header.length <= frame::SIZE_MAX && length <= rest.len());
        all.push((header.kind, header.stream, header.length));
        rest = &rest[length..];
    }
    assert!(rest.is_empty(), "half a frame");
    all
}

/// A server that reads what comes and answers meanwhile: some at once, some only when everything was heard, some never.
fn serve<'a>(pieces: impl Iterator<Item = &'a [u8]>) {
    let cx = Context::from_waker(Waker::noop());
    let ((mut link, _), mut read) = (link(Side::Server), BytesMut::new());
    let mut served: Vec<(u32, usize)> = Vec::new();
    for piece in pieces {
        read.extend_from_slice(piece);
        link.begin_turn(&cx);
        let ended = link.received(&mut read);
        while let Some((id, request)) = link.next_accepted() {
            let head = &request.head;
            match id % 8 {
                1 => link.respond(id, StatusCode::OK, head, true),
                3 => link.unread(id),
                _ => link.respond(id, StatusCode::NOT_FOUND, head, false),
            }
            served.push((id, 3_000));
        }
        while let Some(id) = link.next_cancelled() {
            served.retain(|(served, _)| *served != id);
        }
        for (id, left) in &mut served {
            read_stream(&mut link, *id, &cx);
            while let Poll::Ready(Ok(room)) = link.poll_room(*id, *left, &cx) {
                *left -= room;
                if *left == 0 {
                    link.send_trailers(*id, &HeaderMap::new());
                    link.finish(*id);
                } else {
                    link.send_data(*id, &vec![0; room], false);
                }
            }
        }
        link.end_turn();
        check_frames(&link);
        if let Err(reason) = ended {
            link.abort(reason);
            assert!(link.is_over() && reason != Reason::NO_ERROR);
            check_frames(&link);
            return;
        }
        link.out.clear();
        link.written();
    }
}
