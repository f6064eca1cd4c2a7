//! Our own HTTP on the hot path: what crosses the mesh is written and read here, the rest by `hyper` and `h2`.
//!
//! A request that only passes costs what its bytes cost: no task, no channel and no timer of its own, and all that is
//! ready in one turn of the loop leaves in one write. [`link`] is one HTTP/2 connection, moved by [`client`] and
//! [`server`]; [`Incoming`] is a body, whoever reads it. What requests mean is not known here.

pub(crate) mod client;
mod frame;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod h1;
pub(crate) mod h1_client;
pub(crate) mod h1_server;
mod hpack;
mod huffman;
mod link;
mod mover;
pub(crate) mod server;
mod slots;

use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use http_body::{Body as _, Frame, SizeHint};

use crate::config::HttpServer;
use crate::worker::HEAD_MAX;
use link::{Piece, Shared};

/// How we want an HTTP/2 connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    pub(crate) stream_window: u32,
    pub(crate) connection_window: u32,
    pub(crate) frame_max: Option<u32>,
    /// Of the peer's.
    pub(crate) streams_max: u32,
    pub(crate) header_list_max: u32,
    /// Requests that are taken back before anybody has looked at them, in one turn.
    pub(crate) pending_resets_max: usize,
    /// Bodies wait when so much waits to be written.
    pub(crate) send_buffer_max: usize,
    /// How often to ask a silent peer for a sign of life, and how long it may take.
    pub(crate) keepalive: Option<(Duration, Duration)>,
}

impl Options {
    /// As the settings for servers of this side say.
    pub(crate) fn of_server(settings: &HttpServer) -> Self {
        Self {
            stream_window: settings.stream_window,
            connection_window: settings.connection_window,
            frame_max: settings.frame_max,
            streams_max: settings.streams_max.unwrap_or(STREAMS_MAX),
            header_list_max: settings.header_list_max.unwrap_or(HEAD_MAX as u32),
            pending_resets_max: settings.pending_resets_max.unwrap_or(PENDING_RESETS_MAX),
            send_buffer_max: settings.send_buffer_max.unwrap_or(SEND_BUFFER_MAX),
            keepalive: settings.keepalive,
        }
    }

    /// Endpoints get the windows that our clients get.
    pub(crate) fn of_client(settings: &HttpServer) -> Self {
        Self {
            frame_max: None,
            header_list_max: HEAD_MAX as u32,
            send_buffer_max: SEND_BUFFER_MAX,
            keepalive: None,
            ..Self::of_server(settings)
        }
    }
}

const STREAMS_MAX: u32 = 1_024;
const PENDING_RESETS_MAX: usize = 20;
const SEND_BUFFER_MAX: usize = 64 << 10;

/// What went wrong with a stream or its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fault {
    #[error("the request was not sent: its connection is going away")]
    Unsent,
    #[error("the peer goes away and has not looked at the request")]
    GoneAway,
    #[error("the peer reset the stream: {0}")]
    Reset(Reason),
    #[error("the stream was reset by us: {0}")]
    Ours(Reason),
    #[error("the connection broke")]
    Broken,
    #[error("the answer cannot be read")]
    Malformed,
}

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    #[error(transparent)]
    Link(#[from] Fault),
    #[error("{error}")]
    Library {
        /// It was given back before it was begun to be sent.
        unsent: bool,
        #[source]
        error: hyper::Error,
    },
}

impl<T> From<hyper::client::conn::TrySendError<T>> for SendError {
    fn from(error: hyper::client::conn::TrySendError<T>) -> Self {
        Self::Library {
            unsent: error.message().is_some(),
            error: error.into_error(),
        }
    }
}

/// Why a body ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    #[error(transparent)]
    Library(#[from] hyper::Error),
    /// The source is what tells the other side's connection how to pass it on.
    #[error("{fault}")]
    Link { fault: Fault, source: h2::Error },
}

impl From<Fault> for ReadError {
    fn from(fault: Fault) -> Self {
        let reason = match fault {
            Fault::Reset(reason) | Fault::Ours(reason) => reason,
            Fault::Unsent | Fault::GoneAway | Fault::Broken | Fault::Malformed => Reason::INTERNAL_ERROR,
        };
        Self::Link {
            fault,
            source: reason.into(),
        }
    }
}

/// The reason that an error gives for resetting a stream.
fn reason_of(error: &(dyn Error + 'static)) -> Reason {
    let mut source = Some(error);
    while let Some(error) = source {
        if let Some(reason) = error.downcast_ref::<h2::Error>().and_then(h2::Error::reason) {
            return reason;
        }
        source = error.source();
    }
    Reason::INTERNAL_ERROR
}

/// A body on its way in.
#[derive(Debug)]
pub(crate) enum Incoming {
    Empty,
    /// It came with its head.
    Whole(Bytes),
    Library(hyper::body::Incoming),
    Link(Receiving),
    Plain(Box<h1_client::Answer>),
}

impl Incoming {
    pub(crate) fn whole(content: Bytes) -> Self {
        match content.is_empty() {
            true => Self::Empty,
            false => Self::Whole(content),
        }
    }
}

impl Incoming {
    /// All of the content, if it is here and so short; then none is left.
    pub(crate) fn take_short(&mut self, max: usize) -> Option<Bytes> {
        let content = match self {
            Self::Empty => return Some(Bytes::new()),
            Self::Whole(content) if content.len() <= max => std::mem::take(content),
            Self::Link(body) => body.link.borrow_mut().take_short(body.id, max)?,
            Self::Whole(_) | Self::Library(_) | Self::Plain(_) => return None,
        };
        *self = Self::Empty;
        Some(content)
    }
}

impl http_body::Body for Incoming {
    type Data = Bytes;
    type Error = ReadError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ReadError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            whole @ Self::Whole(_) => match std::mem::replace(whole, Self::Empty) {
                Self::Whole(content) => Poll::Ready(Some(Ok(Frame::data(content)))),
                _ => Poll::Ready(None),
            },
            Self::Plain(body) => body.poll_frame(cx),
            Self::Library(body) => Pin::new(body)
                .poll_frame(cx)
                .map(|frame| frame.map(|frame| frame.map_err(Into::into))),
            Self::Link(body) => body.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Whole(_) => false,
            Self::Plain(body) => body.is_over(),
            Self::Library(body) => body.is_end_stream(),
            Self::Link(body) => body.link.borrow().at_end(body.id),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Whole(content) => SizeHint::with_exact(content.len() as u64),
            Self::Plain(body) => body.left().map_or_else(SizeHint::new, SizeHint::with_exact),
            Self::Library(body) => body.size_hint(),
            Self::Link(body) => {
                let left = body.link.borrow().left(body.id);
                left.map_or_else(SizeHint::new, SizeHint::with_exact)
            }
        }
    }
}

/// The reading half of a stream. Dropping it says that nobody will read on.
#[derive(Debug)]
pub(crate) struct Receiving {
    link: Shared,
    id: u32,
}

impl Receiving {
    fn poll_frame(&self, cx: &Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ReadError>>> {
        let polled = self.link.borrow_mut().poll_data(self.id, cx);
        polled.map(|piece| {
            Some(match piece? {
                Ok(Piece::Data(data)) => Ok(Frame::data(data)),
                Ok(Piece::Trailers(trailers)) => Ok(Frame::trailers(trailers)),
                Err(fault) => Err(fault.into()),
            })
        })
    }

    /// A body with content, or none if it is known that none comes.
    fn body(self) -> Incoming {
        let empty = self.link.borrow().at_end(self.id);
        if empty {
            Incoming::Empty
        } else {
            Incoming::Link(self)
        }
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        self.link.borrow_mut().unread(self.id);
    }
}

/// Writes a body to its stream, as fast as the peer reads it.
async fn send_body<B>(link: &Shared, id: u32, body: B)
where
    B: http_body::Body<Data = Bytes>,
    B::Error: Error + 'static,
{
    let mut body = std::pin::pin!(body);
    loop {
        let frame = std::future::poll_fn(|cx| {
            if link.borrow_mut().poll_unwanted(id, cx).is_ready() {
                return Poll::Ready(Err(()));
            }
            body.as_mut().poll_frame(cx).map(Ok)
        });
        let Ok(frame) = frame.await else { return };
        match frame {
            None => return link.borrow_mut().send_data(id, &[], true),
            Some(Err(error)) => {
                let reason = reason_of(&error);
                _ = link.borrow_mut().reset(id, reason);
                return;
            }
            Some(Ok(frame)) => match frame.into_data() {
                Ok(mut data) => {
                    let end = body.is_end_stream();
                    loop {
                        let room = std::future::poll_fn(|cx| link.borrow_mut().poll_room(id, data.len(), cx));
                        let Ok(room) = room.await else { return };
                        let piece = data.split_to(room);
                        let last = end && data.is_empty();
                        // Frames of nothing are only worth their while at the end.
                        if last || !piece.is_empty() {
                            link.borrow_mut().send_data(id, &piece, last);
                        }
                        if last {
                            return;
                        }
                        if data.is_empty() {
                            break;
                        }
                    }
                }
                Err(frame) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        return link.borrow_mut().send_trailers(id, &trailers);
                    }
                }
            },
        }
    }
}
