//! HTTP/1 heads on their way in: a deadline from their first byte, never two framings, and no lines that others would
//! end elsewhere.
//!
//! A connection may stay idle between requests for as long as it likes, but a head that has begun must end. The HTTP
//! library drops `content-length` where `transfer-encoding` is given too, and takes a line feed alone for a line's end,
//! so both have to be seen before it.
//! Knows lines and header names; what a request means is somebody else's business.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
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
    fault: OnceLock<&'static str>,
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

    /// What made a head one that two readers could understand differently.
    pub(crate) fn fault(&self) -> Option<&'static str> {
        self.fault.get().copied()
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
        if let Some(fault) = self.scanner.fault(bytes) {
            // The first one counts.
            let _ = self.heads.fault.set(fault);
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
    /// The last byte was a carriage return.
    returned: bool,
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

    /// What is wrong with a head. A body hides what follows it in the same piece: there the library's rule holds, which
    /// forwards one framing only, in lines that end as they should, and closes the connection.
    fn fault(&mut self, bytes: &[u8]) -> Option<&'static str> {
        let mut found = None;
        for byte in bytes {
            if self.body {
                break;
            }
            match byte {
                b'\n' => {
                    // A head without either has no body: the next one follows.
                    self.body = self.line == 0 && (self.length || self.coding);
                    if self.length && self.coding {
                        found = found.or(Some("content-length and transfer-encoding"));
                    }
                    if !self.returned {
                        found = found.or(Some("a line feed without carriage return"));
                    }
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
            self.returned = *byte == b'\r';
        }
        found
    }
}

/// What is wrong with a head that came at once.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn fault_of(head: &[u8]) -> Option<&'static str> {
    Scanner::default().fault(head)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::damage::{cuts, damaged, pieces};
    use proptest::prelude::*;

    fn fault(text: &str, pieces: usize) -> Option<&'static str> {
        let mut scanner = Scanner::default();
        let faults = text.as_bytes().chunks(pieces).map(|piece| scanner.fault(piece));
        faults.fold(None, Option::or)
    }

    /// The lines of the heads that begin a connection, with their ends, up to the first body.
    fn heads(text: &[u8]) -> Vec<&[u8]> {
        let (mut framed, mut lines) = (false, Vec::new());
        for line in text.split_inclusive(|byte| *byte == b'\n') {
            if let Some(colon) = line.iter().position(|byte| *byte == b':') {
                let name = line[..colon].iter().copied().filter(|byte| *byte != b'\r');
                let name = name.collect::<Vec<_>>().to_ascii_lowercase();
                framed |= name == LENGTH || name == CODING;
            }
            lines.push(line);
            if framed && line.trim_ascii().is_empty() {
                break;
            }
        }
        lines
    }

    proptest! {
        #[test]
        fn a_damaged_head_is_judged_alike_in_any_pieces_and_no_bare_line_feed_is_missed(
            text in damaged((
                proptest::collection::vec(proptest::sample::select(vec![
                    "GET / HTTP/1.1\r\n", "x: y\r\n", "Content-Length: 3\r\n", "transfer-encoding: chunked\r\n", "x\n", "\r\n", "abc",
                ]), 0..9)
            ).prop_map(|lines| lines.concat().into_bytes())),
            cuts in cuts(),
        ) {
            let whole = Scanner::default().fault(&text);
            let mut scanner = Scanner::default();
            let faults = pieces(&text, &cuts).into_iter().map(|piece| scanner.fault(piece));
            let faults: Vec<_> = faults.collect();
            prop_assert_eq!(faults.into_iter().fold(None, Option::or), whole);
            let bare = heads(&text).iter().any(|line| line.ends_with(b"\n") && !line.ends_with(b"\r\n"));
            prop_assert!(!bare || whole.is_some(), "{:?}", String::from_utf8_lossy(&text));
        }

        #[test]
        fn what_is_wrong_with_a_head_is_seen_however_it_arrives(pieces in 1usize..80) {
            let (both, bare) = (Some("content-length and transfer-encoding"), Some("a line feed without carriage return"));
            for (text, expected) in [
                ("POST / HTTP/1.1\r\nContent-Length: 3\r\nx: y\r\nTransfer-Encoding: chunked\r\n\r\n", both),
                ("POST / HTTP/1.1\r\ntransfer-encoding:chunked\r\ncontent-length:3\r\n\r\n", both),
                ("GET / HTTP/1.1\nhost: a\r\n\r\n", bare),
                ("GET / HTTP/1.1\r\nhost: a\nx: y\r\n\r\n", bare),
                ("GET / HTTP/1.1\r\nhost: a\r\n\n", bare),
                ("POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\n\n\n", None),
                ("GET / HTTP/1.1\r\n\r\nPOST / HTTP/1.1\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n", both),
                ("POST / HTTP/1.1\r\ncontent-length: 40\r\n\r\ntransfer-encoding: chunked\r\n", None),
                ("POST / HTTP/1.1\r\nx: content-length: 1\r\ntransfer-encoding: chunked\r\n\r\n", None),
                ("POST / HTTP/1.1\r\nx-content-length: 1\r\ntransfer-encoding: chunked\r\n\r\n", None),
            ] {
                prop_assert_eq!(fault(text, pieces), expected, "{}", text);
            }
        }
    }
}
