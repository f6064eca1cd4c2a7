//! Plain requests to an application over HTTP/1.1 connections that nobody else uses meanwhile.
//!
//! A connection has no task: whoever sends the request writes it, waits for the answer and reads it. When the body has
//! ended, the connection goes back to its [`Pool`]. Requests with a body that is long or has still to come and upgrades
//! are the library's.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Buf as _, BytesMut};
use http::{Method, StatusCode, header};
use http_body::Frame;
use tokio::io::AsyncWrite as _;

use crate::message::{Request, Response};
use crate::transport::Conn;

use super::h1::{self, Framing, Next};
use super::{Fault, Incoming, ReadError};

const READ: usize = 4 << 10;
/// Of a body that is known to be long, so much is read at once.
const READ_MAX: usize = 64 << 10;
/// Answers that only say that another one follows.
const INFORMATIONAL_MAX: usize = 16;

/// Idle connections to one application, by the host that they were used for: some servers decide by the first
/// request's host for the whole connection, so hosts don't share one.
#[derive(Debug, Default)]
pub(crate) struct Pool(RefCell<Vec<Idle>>);

#[derive(Debug)]
struct Idle {
    client: Client,
    /// Since it was first looked after: nobody asks the clock for each request.
    since: Option<Instant>,
}

impl Pool {
    /// A connection that was used for this host and is still good.
    pub(crate) fn take(&self, host: &[u8]) -> Option<Client> {
        let mut idle = self.0.borrow_mut();
        loop {
            let found = idle
                .iter()
                .rposition(|idle| idle.client.host.as_deref() == Some(host))?;
            let mut client = idle.swap_remove(found).client;
            if client.is_quiet() {
                return Some(client);
            }
        }
    }

    fn keep(&self, mut client: Client, max: usize) {
        let mut idle = self.0.borrow_mut();
        if idle.len() < max && client.read.is_empty() {
            client.rest();
            idle.push(Idle { client, since: None });
        }
    }

    pub(crate) fn evict(&self, now: Instant, after: Duration) {
        self.0.borrow_mut().retain_mut(|idle| {
            let since = *idle.since.get_or_insert(now);
            now.duration_since(since) < after && idle.client.is_quiet()
        });
    }
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Client {
    conn: Conn,
    /// What it was first used for, and is only used for.
    host: Option<Box<[u8]>>,
    read: BytesMut,
    out: BytesMut,
}

impl Client {
    pub(crate) fn new(conn: Conn) -> Self {
        Self {
            conn,
            host: None,
            read: BytesMut::new(),
            out: BytesMut::new(),
        }
    }

    /// Has the server said nothing unasked, not even goodbye? Costs no system call unless the kernel has news.
    fn is_quiet(&mut self) -> bool {
        self.read.is_empty() && self.conn.is_quiet()
    }

    fn rest(&mut self) {
        for buffer in [&mut self.read, &mut self.out] {
            if buffer.capacity() > READ {
                *buffer = BytesMut::new();
            }
        }
    }

    /// Reads more, of which so much is expected; nothing at the end.
    fn poll_more(&mut self, expected: Option<u64>, cx: &mut Context<'_>) -> Poll<Result<usize, Fault>> {
        let expected = usize::try_from(expected.unwrap_or(0)).unwrap_or(READ_MAX);
        self.read.reserve(expected.clamp(READ / 2, READ_MAX));
        let read = ready!(tokio_util::io::poll_read_buf(
            Pin::new(&mut self.conn),
            cx,
            &mut self.read
        ));
        Poll::Ready(read.map_err(|_| Fault::Broken))
    }

    /// Sends a request with its whole content and waits for its answer's head.
    pub(crate) async fn send<B>(
        mut self,
        request: &Request<B>,
        content: &[u8],
        pool: &Rc<Pool>,
        idle_max: usize,
    ) -> Result<Response<Incoming>, Fault> {
        h1::put_request(request, content, &mut self.out);
        poll_fn(|cx| self.poll_write(cx))
            .await
            .map_err(|_| Fault::Broken)?;
        let to_head = request.method == Method::HEAD;
        let mut informational = 0;
        let head = loop {
            match h1::answer(&mut self.read, to_head) {
                Ok(Some(head)) if head.status == StatusCode::SWITCHING_PROTOCOLS => {
                    return Err(Fault::Malformed);
                }
                Ok(Some(head)) if head.status.is_informational() => {
                    informational += 1;
                    if informational > INFORMATIONAL_MAX {
                        return Err(Fault::Malformed);
                    }
                }
                Ok(Some(head)) => break head,
                Ok(None) => {
                    if poll_fn(|cx| self.poll_more(None, cx)).await? == 0 {
                        return Err(Fault::Broken);
                    }
                }
                Err(h1::Odd) => return Err(Fault::Malformed),
            }
        };
        if self.host.is_none() {
            self.host = request.head.get(header::HOST).map(|host| host.as_bytes().into());
        }
        let home = head.keep && self.host.is_some();
        let mut body = Answer {
            client: Some(self),
            framing: head.framing,
            home: home.then(|| (pool.clone(), idle_max)),
        };
        Ok(Response {
            status: head.status,
            head: head.head,
            ..Response::new(
                head.version,
                body.short().unwrap_or_else(|| Incoming::Plain(Box::new(body))),
            )
        })
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        while !self.out.is_empty() {
            let written = ready!(Pin::new(&mut self.conn).poll_write(cx, &self.out))?;
            if written == 0 {
                return Poll::Ready(Err(std::io::ErrorKind::WriteZero.into()));
            }
            self.out.advance(written);
        }
        Pin::new(&mut self.conn).poll_flush(cx)
    }
}

/// The body of an answer, and the connection that it comes from.
#[derive(Debug)]
pub(crate) struct Answer {
    client: Option<Client>,
    framing: Framing,
    /// Where the connection goes afterwards, if it may be used again.
    home: Option<(Rc<Pool>, usize)>,
}

impl Answer {
    /// The whole body, if it is short and has come with its head: the connection is free already.
    fn short(&mut self) -> Option<Incoming> {
        let client = self.client.as_mut()?;
        let body = match self.framing {
            Framing::Length(0) => Incoming::Empty,
            Framing::Length(length) if length <= client.read.len() as u64 => {
                let length = usize::try_from(length).ok()?;
                Incoming::whole(h1::take_off(&mut client.read, length))
            }
            _ => return None,
        };
        self.over();
        Some(body)
    }

    fn over(&mut self) {
        if let (Some(client), Some((pool, max))) = (self.client.take(), self.home.take()) {
            pool.keep(client, max);
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.client.is_none()
    }

    /// What is still to come, if it is known.
    pub(super) fn left(&self) -> Option<u64> {
        self.framing.left()
    }

    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<bytes::Bytes>, ReadError>>> {
        let Some(client) = &mut self.client else {
            return Poll::Ready(None);
        };
        loop {
            let next = match self.framing.next(&mut client.read) {
                Ok(next) => next,
                Err(h1::Odd) => {
                    self.client = None;
                    return Poll::Ready(Some(Err(Fault::Malformed.into())));
                }
            };
            let frame = match next {
                Next::Data(data) => Some(Frame::data(data)),
                Next::Trailers(trailers) => Some(Frame::trailers(trailers)),
                Next::End => None,
                Next::More => match ready!(client.poll_more(self.framing.ahead(), cx)) {
                    Ok(1..) => continue,
                    Ok(0) if self.framing == Framing::UntilClosed => {
                        self.client = None;
                        return Poll::Ready(None);
                    }
                    Ok(0) | Err(_) => {
                        self.client = None;
                        return Poll::Ready(Some(Err(Fault::Broken.into())));
                    }
                },
            };
            if self.framing.is_over() {
                self.over();
            }
            return Poll::Ready(frame.map(Ok));
        }
    }
}
