//! Moves a link's bytes: from the connection into frames, and what was gathered to the connection in one go.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use h2::Reason;
use tokio::io::AsyncWrite as _;
use tokio::time::{Instant, Sleep};

use crate::transport::Conn;

use super::link::{Shared, Side};
use super::{Fault, frame};

/// Read at once, at least.
const READ: usize = 16 << 10;
/// Reads until others on the thread get a turn.
const READS: usize = 8;

pub(super) struct Mover {
    conn: Conn,
    link: Shared,
    read: BytesMut,
    /// A client introduces itself first.
    introduced: bool,
    unflushed: bool,
    keepalive: Option<KeepAlive>,
}

/// How a turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// There may be more to read.
    More,
    /// The next event wakes us.
    Wait,
    Over,
}

impl Mover {
    pub(super) fn new(conn: Conn, link: Shared, side: Side, keepalive: Option<(Duration, Duration)>) -> Self {
        Self {
            conn,
            link,
            read: BytesMut::new(),
            introduced: side == Side::Client,
            unflushed: true,
            keepalive: keepalive.map(KeepAlive::new),
        }
    }

    /// Takes in what has come; says whether there may be more.
    pub(super) fn take_in(&mut self, cx: &mut Context<'_>) -> bool {
        for _ in 0..READS {
            self.read.reserve(READ);
            let polled = tokio_util::io::poll_read_buf(Pin::new(&mut self.conn), cx, &mut self.read);
            let mut link = self.link.borrow_mut();
            match polled {
                Poll::Ready(Ok(1..)) => {
                    if !self.introduced {
                        match self.read.get(..frame::PREFACE.len()) {
                            Some(frame::PREFACE) => self.read.advance(frame::PREFACE.len()),
                            None if frame::PREFACE.starts_with(&self.read) => continue,
                            _ => {
                                link.abort(Reason::PROTOCOL_ERROR);
                                return false;
                            }
                        }
                        self.introduced = true;
                    }
                    if let Err(reason) = link.received(&mut self.read) {
                        link.abort(reason);
                        return false;
                    }
                }
                Poll::Ready(_) => {
                    link.close(Fault::Broken);
                    return false;
                }
                Poll::Pending => {
                    if link.idle() && self.read.is_empty() {
                        // An idle connection holds no buffers.
                        self.read = BytesMut::new();
                    }
                    return false;
                }
            }
        }
        true
    }

    fn poll_write_out(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        let mut link = self.link.borrow_mut();
        while !link.out.is_empty() {
            let written = ready!(Pin::new(&mut self.conn).poll_write(cx, &link.out))?;
            if written == 0 {
                return Poll::Ready(Err(std::io::ErrorKind::WriteZero.into()));
            }
            link.out.advance(written);
            self.unflushed = true;
        }
        if link.idle() {
            link.out = BytesMut::new();
        }
        link.written();
        drop(link);
        if self.unflushed {
            ready!(Pin::new(&mut self.conn).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Writes what has been gathered, and says how to go on.
    pub(super) fn give_out(&mut self, more: bool, cx: &mut Context<'_>) -> Turn {
        let silent = self
            .keepalive
            .as_mut()
            .is_some_and(|keepalive| keepalive.poll_silent(&self.link, cx).is_ready());
        if silent {
            self.link.borrow_mut().close(Fault::Broken);
        }
        let written = match self.poll_write_out(cx) {
            Poll::Ready(Ok(())) => true,
            Poll::Ready(Err(_)) => {
                self.link.borrow_mut().close(Fault::Broken);
                return Turn::Over;
            }
            Poll::Pending => false,
        };
        let link = self.link.borrow();
        match (link.is_over(), written) {
            (true, true) => Turn::Over,
            // Who doesn't read our last words will miss them.
            (true, false) if link.is_broken() => Turn::Over,
            _ if more => Turn::More,
            _ => Turn::Wait,
        }
    }

    /// Says goodbye below HTTP/2 as well, as far as that goes without waiting.
    pub(super) fn shut_down(&mut self, cx: &mut Context<'_>) {
        let _ = Pin::new(&mut self.conn).poll_shutdown(cx);
    }
}

/// Notices peers that have vanished.
struct KeepAlive {
    every: Duration,
    within: Duration,
    asked: bool,
    timer: Pin<Box<Sleep>>,
}

impl KeepAlive {
    fn new((every, within): (Duration, Duration)) -> Self {
        Self {
            every,
            within,
            asked: false,
            timer: Box::pin(tokio::time::sleep(every)),
        }
    }

    /// Ready when the peer has not answered.
    fn poll_silent(&mut self, link: &Shared, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.timer.as_mut().poll(cx));
            let mut link = link.borrow_mut();
            let wait = if link.lively() {
                self.asked = false;
                self.every
            } else if self.asked {
                return Poll::Ready(());
            } else {
                link.ping();
                self.asked = true;
                self.within
            };
            self.timer.as_mut().reset(Instant::now() + wait);
        }
    }
}

use std::future::Future as _;
