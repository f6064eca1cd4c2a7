//! HTTP/1 heads on their way in: a deadline from their first byte, and never two framings.
//!
//! A connection may stay idle between requests for as long as it likes, but a head that has begun must end. The HTTP
//! library drops `content-length` where `transfer-encoding` is given too, so the conflict has to be seen before it.
//! Knows lines and header names; what a request means is somebody else's business.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::transport::Conn;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Phase {
    /// Nothing was ever said.
    Fresh,
    /// Between two requests.
    Idle,
    /// A head has begun.
    Head,
    /// A request is being served.
    Busy,
    /// No longer HTTP.
    Upgraded,
}

/// What the connection's reader and its requests tell each other, on one thread. Atomics only because upgraded
/// connections must be able to change threads; they never do.
#[derive(Debug, Default)]
pub(crate) struct Heads {
    phase: AtomicU8,
    conflict: AtomicBool,
}

impl Heads {
    fn is(&self, phase: Phase) -> bool {
        self.phase.load(Relaxed) == phase as u8
    }

    fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Relaxed);
    }

    /// A whole head was read. Ends the deadline until the returned guard goes with the end of the response.
    pub(crate) fn begin(self: &Arc<Self>) -> Serving {
        self.enter(Phase::Busy);
        Serving(self.clone())
    }

    /// Did a head say its length twice, in two ways?
    pub(crate) fn conflict(&self) -> bool {
        self.conflict.load(Relaxed)
    }

    pub(crate) fn fresh(&self) -> bool {
        self.is(Phase::Fresh)
    }
}

/// One request of the connection, until its response has ended.
#[derive(Debug)]
pub(crate) struct Serving(Arc<Heads>);

impl Serving {
    /// What follows is another protocol.
    pub(crate) fn upgraded(&self) {
        self.0.enter(Phase::Upgraded);
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        if self.0.is(Phase::Busy) {
            self.0.enter(Phase::Idle);
        }
    }
}

/// A connection whose heads are watched.
#[derive(Debug)]
pub(crate) struct Watched {
    io: Conn,
    heads: Arc<Heads>,
    scanner: Scanner,
    limit: Duration,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Watched {
    pub(crate) fn new(io: Conn, heads: Arc<Heads>, limit: Duration) -> Self {
        Self {
            io,
            heads,
            scanner: Scanner::default(),
            limit,
            deadline: None,
        }
    }

    fn saw(&mut self, bytes: &[u8]) {
        if self.heads.is(Phase::Upgraded) {
            return;
        }
        if self.heads.is(Phase::Fresh) || self.heads.is(Phase::Idle) {
            self.heads.enter(Phase::Head);
            let by = Instant::now() + self.limit;
            match &mut self.deadline {
                Some(deadline) => deadline.as_mut().reset(by),
                None => self.deadline = Some(Box::pin(tokio::time::sleep_until(by))),
            }
            self.scanner.again();
        }
        if self.scanner.conflict(bytes) {
            self.heads.conflict.store(true, Relaxed);
        }
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        if let Poll::Ready(read) = Pin::new(&mut this.io).poll_read(cx, buf) {
            read?;
            if let Some(bytes @ [_, ..]) = buf.filled().get(before..) {
                this.saw(bytes);
            }
            return Poll::Ready(Ok(()));
        }
        match &mut this.deadline {
            Some(deadline) if this.heads.is(Phase::Head) => {
                ready!(deadline.as_mut().poll(cx));
                Poll::Ready(Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the head took too long",
                )))
            }
            _ => Poll::Pending,
        }
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

use std::future::Future as _;

const LENGTH: &[u8] = b"content-length";
const CODING: &[u8] = b"transfer-encoding";
/// The longer of both names, and its colon.
const PREFIX: usize = CODING.len() + 1;

/// Follows heads through whatever pieces they arrive in.
#[derive(Debug, Default)]
struct Scanner {
    /// The start of the current line, in lower case.
    prefix: [u8; PREFIX],
    line: usize,
    length: bool,
    coding: bool,
    body: bool,
}

impl Scanner {
    /// The next byte begins a head, unless the current one hasn't ended.
    fn again(&mut self) {
        if self.body {
            *self = Self::default();
        }
    }

    /// Whether one head has both. A body hides what follows it in the same piece: there the library's rule holds,
    /// which forwards one framing only and closes the connection.
    fn conflict(&mut self, bytes: &[u8]) -> bool {
        let mut found = false;
        for byte in bytes {
            if self.body {
                break;
            }
            match byte {
                b'\n' => {
                    // A head without either has no body: the next one follows.
                    self.body = self.line == 0 && (self.length || self.coding);
                    found |= self.length && self.coding;
                    self.line = 0;
                }
                b'\r' => {}
                byte => {
                    if let Some(slot) = self.prefix.get_mut(self.line) {
                        *slot = byte.to_ascii_lowercase();
                        self.line += 1;
                        if *byte == b':' {
                            let name = &self.prefix[..self.line - 1];
                            self.length |= name == LENGTH;
                            self.coding |= name == CODING;
                            self.line = PREFIX;
                        }
                    }
                }
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn conflict(text: &str, pieces: usize) -> bool {
        let mut scanner = Scanner::default();
        text.as_bytes()
            .chunks(pieces)
            .fold(false, |found, piece| scanner.conflict(piece) | found)
    }

    proptest! {
        #[test]
        fn two_framings_are_seen_however_the_head_arrives(pieces in 1usize..80) {
            for (text, expected) in [
                ("POST / HTTP/1.1\r\nContent-Length: 3\r\nx: y\r\nTransfer-Encoding: chunked\r\n\r\n", true),
                ("POST / HTTP/1.1\ntransfer-encoding:chunked\ncontent-length:3\n\n", true),
                ("GET / HTTP/1.1\r\n\r\nPOST / HTTP/1.1\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n", true),
                ("POST / HTTP/1.1\r\ncontent-length: 40\r\n\r\ntransfer-encoding: chunked\r\n", false),
                ("POST / HTTP/1.1\r\nx: content-length: 1\r\ntransfer-encoding: chunked\r\n\r\n", false),
                ("POST / HTTP/1.1\r\nx-content-length: 1\r\ntransfer-encoding: chunked\r\n\r\n", false),
            ] {
                prop_assert_eq!(conflict(text, pieces), expected, "{}", text);
            }
        }
    }
}
