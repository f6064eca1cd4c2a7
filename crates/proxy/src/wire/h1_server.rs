//! A client's HTTP/1.1 connection, while what it asks is plain.
//!
//! The first request that isn't (an upgrade, a body that is long or late, an odd head) hands the connection over to the
//! library, with every byte of it. One request at a time, handled inside the connection's task: read, handle,
//! write, each with one system call where the kernel has it all.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http::{Method, StatusCode, Version, header};
use http_body::Body as _;
use tokio::io::AsyncWrite as _;
use tokio::time::Instant;

use crate::body::{Body, OnEnd};
use crate::message::{Request, Response};
use crate::transport::Conn;
use crate::worker::DRAIN_IDLE;

use super::Incoming;
use super::h1::{self, Lack};

/// Enough for most heads; what stays with an idle connection.
const READ: usize = 2 << 10;
/// Short content that doesn't come with its head has so long to follow, until the library passes it on as it comes.
const SOON: Duration = Duration::from_millis(100);
/// Answers are written at the latest when so much of them is here.
const WRITE: usize = 64 << 10;

pub(crate) enum Served {
    Over,
    /// The library's, from the next byte on.
    Odd(Conn),
}

struct Connection {
    conn: Conn,
    read: BytesMut,
    out: BytesMut,
}

/// Why there is no next request for us.
enum Ended {
    Odd,
    Over,
}

/// Serves requests while they are plain and `ours` says so.
pub(crate) async fn serve<H, F, E>(
    mut conn: Conn,
    head_timeout: Duration,
    drain: &hawser_runtime::Shutdown,
    ours: impl Fn() -> bool,
    handle: H,
) -> Served
where
    H: Fn(Request<Incoming>) -> F,
    F: Future<Output = Result<Response<Body<E>>, h2::Error>>,
    E: OnEnd + Unpin,
{
    let read = std::mem::take(conn.ahead());
    let mut connection = Connection {
        conn,
        read,
        out: BytesMut::new(),
    };
    let mut drained = pin!(async {
        drain.cancelled().await;
        // A request may be on its way already.
        tokio::time::sleep(DRAIN_IDLE).await;
    });
    loop {
        let head = {
            let mut head = pin!(connection.head(head_timeout, &ours));
            let next = poll_fn(|cx| match head.as_mut().poll(cx) {
                Poll::Ready(head) => Poll::Ready(Some(head)),
                Poll::Pending => drained.as_mut().poll(cx).map(|()| None),
            });
            next.await
        };
        let (request, content) = match head {
            Some(Ok(plain)) => plain,
            Some(Err(Ended::Odd)) => return Served::Odd(connection.give_up()),
            // The library knows how to end a connection on which a head has begun.
            None if !connection.read.is_empty() => return Served::Odd(connection.give_up()),
            Some(Err(Ended::Over)) | None => return Served::Over,
        };
        let to_head = request.method == Method::HEAD;
        let request = request.map(|()| Incoming::whole(content));
        let Ok(response) = handle(request).await else {
            return Served::Over;
        };
        match connection.answer(response, to_head, drain.is_cancelled()).await {
            Ok(After::Next) => {}
            Ok(After::Close) => {
                connection.end().await;
                return Served::Over;
            }
            Err(error) => {
                tracing::debug!(%error, "Connection closed");
                return Served::Over;
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    Next,
    Close,
}

/// How the body of an answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Coding {
    None,
    Length(u64),
    Chunked,
    UntilClosed,
}

impl Connection {
    /// The next request's. Nothing hurries an idle connection, but what has begun must end.
    async fn head(
        &mut self,
        limit: Duration,
        ours: &impl Fn() -> bool,
    ) -> Result<(Request<()>, Bytes), Ended> {
        let (mut deadline, mut soon) = (None, None);
        loop {
            if !self.read.is_empty() {
                if !ours() {
                    return Err(Ended::Odd);
                }
                match h1::request(&mut self.read) {
                    Ok(plain) => return Ok(plain),
                    Err(Lack::Content) => _ = soon.get_or_insert_with(|| Instant::now() + SOON),
                    Err(Lack::Head) => {}
                    Err(Lack::Odd) => return Err(Ended::Odd),
                }
                deadline.get_or_insert_with(|| Instant::now() + limit);
            }
            if let Some(soon) = soon {
                // However it ends, the head is here and the request is under way.
                match tokio::time::timeout_at(soon, self.more()).await {
                    Ok(Ok(1..)) => continue,
                    _ => return Err(Ended::Odd),
                }
            }
            let read = match deadline {
                None => self.more().await,
                Some(deadline) => match tokio::time::timeout_at(deadline, self.more()).await {
                    Ok(read) => read,
                    Err(_) => return Err(Ended::Over),
                },
            };
            if !matches!(read, Ok(1..)) {
                return Err(Ended::Over);
            }
        }
    }

    async fn more(&mut self) -> io::Result<usize> {
        self.read.reserve(READ);
        poll_fn(|cx| tokio_util::io::poll_read_buf(Pin::new(&mut self.conn), cx, &mut self.read)).await
    }

    fn give_up(mut self) -> Conn {
        *self.conn.ahead() = self.read;
        self.conn
    }

    /// Writes an answer; its head and what of its body is here leave together.
    async fn answer<E: OnEnd + Unpin>(
        &mut self,
        response: Response<Body<E>>,
        to_head: bool,
        leaving: bool,
    ) -> io::Result<After> {
        let Response {
            status,
            version,
            mut head,
            mut body,
            ..
        } = response;
        let named = head.remove(header::CONNECTION);
        let closes = named.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"close"));
        head.remove(header::TRANSFER_ENCODING);
        let length = match head.get(header::CONTENT_LENGTH) {
            Some(length) => Some(h1::number(length.as_bytes()).ok_or(io::ErrorKind::InvalidData)?),
            None => None,
        };
        let whole = body.take_whole();
        let empty = whole
            .as_ref()
            .map_or_else(|| body.is_end_stream(), Bytes::is_empty);
        let bodiless = to_head || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let coding = match length {
            _ if bodiless => Coding::None,
            Some(length) => Coding::Length(length),
            None if empty => Coding::Length(0),
            None if version == Version::HTTP_10 => Coding::UntilClosed,
            None => Coding::Chunked,
        };
        let close = leaving || closes || version == Version::HTTP_10;
        let out = &mut self.out;
        h1::put_status(version, status, out);
        head.put_fields(out);
        match coding {
            Coding::Length(0) if length.is_none() => h1::put_field(b"content-length", b"0", out),
            Coding::Chunked => h1::put_field(b"transfer-encoding", b"chunked", out),
            _ => {}
        }
        if close {
            h1::put_field(b"connection", b"close", out);
        }
        out.put_slice(b"\r\n");
        if let Coding::Length(length) = coding {
            out.reserve(usize::try_from(length).unwrap_or(WRITE).min(WRITE));
        }
        drop(head);

        let mut written = 0;
        if let Some(content) = whole {
            written = self.put(coding, 0, &content)?;
        }
        let mut body = pin!(body);
        while !body.is_end_stream() {
            let frame = poll_fn(|cx| match body.as_mut().poll_frame(cx) {
                Poll::Ready(frame) => Poll::Ready(Some(frame)),
                // What is here doesn't wait for what isn't.
                Poll::Pending if !self.out.is_empty() => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            });
            let Some(frame) = frame.await else {
                self.write().await?;
                continue;
            };
            let Some(frame) = frame else { break };
            // Trailers are for those who asked for them, and they are the library's.
            let Ok(data) = frame.map_err(io::Error::other)?.into_data() else {
                break;
            };
            written = self.put(coding, written, &data)?;
            if self.out.len() >= WRITE {
                self.write().await?;
            }
        }
        match coding {
            Coding::Chunked => self.out.put_slice(b"0\r\n\r\n"),
            Coding::Length(length) if written < length => return Err(io::ErrorKind::UnexpectedEof.into()),
            _ => {}
        }
        self.write().await?;
        self.rest();
        Ok(if close { After::Close } else { After::Next })
    }

    /// Writes a piece of a body of which so much was written; returns how much it is now.
    fn put(&mut self, coding: Coding, written: u64, data: &[u8]) -> io::Result<u64> {
        let written = written + data.len() as u64;
        match coding {
            Coding::None => {}
            Coding::Length(length) if written > length => return Err(io::ErrorKind::InvalidData.into()),
            Coding::Length(_) | Coding::UntilClosed => self.out.put_slice(data),
            Coding::Chunked if data.is_empty() => {}
            Coding::Chunked => h1::put_chunk(data, &mut self.out),
        }
        Ok(written)
    }

    async fn write(&mut self) -> io::Result<()> {
        poll_fn(|cx| {
            while !self.out.is_empty() {
                let written = ready!(Pin::new(&mut self.conn).poll_write(cx, &self.out))?;
                if written == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.out.advance(written);
            }
            Pin::new(&mut self.conn).poll_flush(cx)
        })
        .await
    }

    /// Between two requests, large buffers are given back.
    fn rest(&mut self) {
        if self.out.capacity() > 2 * READ {
            self.out = BytesMut::new();
        }
        if self.read.is_empty() && self.read.capacity() > 2 * READ {
            self.read = BytesMut::new();
        }
    }

    async fn end(&mut self) {
        let _ = poll_fn(|cx| Pin::new(&mut self.conn).poll_shutdown(cx)).await;
    }
}
