//! Bodies that pass through: forwarded frame by frame, and told when they end.
//!
//! One concrete type for both directions, so nothing on the path of a request is boxed.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};

use crate::head::Serving;
use crate::http_rules::GRPC_STATUS;
use crate::late::Late;
use crate::message::Head;
use crate::wire::{Incoming, ReadError};

/// What is told when a body has ended; dropping it without [`OnEnd::end`] means that the body was cut short.
pub(crate) trait OnEnd {
    /// So much content has passed.
    fn passed(&mut self, _bytes: usize) {}
    /// `grpc_status` is what the trailers said.
    fn end(self, grpc_status: Option<u32>);
    /// It ended with its head.
    fn end_at_once(self);
    /// The stream broke.
    fn fail(self);
}

/// Why a body did not come to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    #[error("reading a body")]
    Read(#[source] ReadError),
    #[error("a body took too long")]
    Late(#[source] h2::Error),
}

/// Bodies up to this length are passed on in one piece if they are here.
const WHOLE_MAX: usize = 16 << 10;

/// A frame that was looked at before the rest; `None` is the end.
pub(crate) type First = Option<Result<Frame<Bytes>, ReadError>>;

/// How long a body may take, and whether to say so in gRPC's trailers.
#[derive(Debug)]
struct Limit {
    late: Late,
    grpc: bool,
}

#[derive(Debug)]
pub(crate) struct Body<E: OnEnd> {
    inner: Option<Incoming>,
    first: Option<Box<First>>,
    limit: Option<Box<Limit>>,
    /// Boxed, since most bodies are short and have none: answers are moved several times.
    on_end: Option<Box<E>>,
    /// The HTTP/1 connection is busy with it.
    serving: Option<Serving>,
}

impl<E: OnEnd> Body<E> {
    pub(crate) fn empty() -> Self {
        Self {
            inner: None,
            first: None,
            limit: None,
            on_end: None,
            serving: None,
        }
    }

    /// Observed to its end. A short body that is here ends now, and so does one without content.
    pub(crate) fn observed(mut inner: Incoming, first: Option<First>, mut on_end: E) -> Self {
        let whole = match first {
            None if inner.is_end_stream() => Some(Bytes::new()),
            None => inner.take_short(WHOLE_MAX),
            Some(_) => None,
        };
        let on_end = match whole {
            Some(content) => {
                if !content.is_empty() {
                    on_end.passed(content.len());
                    inner = Incoming::whole(content);
                }
                on_end.end_at_once();
                None
            }
            None => Some(Box::new(on_end)),
        };
        Self {
            inner: Some(inner),
            first: first.map(Box::new),
            on_end,
            ..Self::empty()
        }
    }

    /// Cut when it takes too long.
    pub(crate) fn limited(mut self, late: Late, grpc: bool) -> Self {
        if self.on_end.is_some() {
            late.progress().moved();
            self.limit = Some(Box::new(Limit { late, grpc }));
        }
        self
    }

    /// All of the content, if it is here and nobody waits to be told of it.
    pub(crate) fn take_whole(&mut self) -> Option<Bytes> {
        match &mut self.inner {
            None => Some(Bytes::new()),
            Some(inner) if self.on_end.is_none() && self.first.is_none() => inner.take_short(WHOLE_MAX),
            Some(_) => None,
        }
    }

    pub(crate) fn serving(mut self, serving: Serving) -> Self {
        self.serving = Some(serving);
        self
    }
}

impl<E: OnEnd + Unpin> http_body::Body for Body<E> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        if let Some(limit) = &mut this.limit
            && limit.late.poll(cx).is_ready()
        {
            return Poll::Ready(Some(this.cut()));
        }
        let Some(inner) = &mut this.inner else {
            return Poll::Ready(None);
        };
        let polled = match this.first.take() {
            Some(first) => Poll::Ready(*first),
            None => Pin::new(&mut *inner).poll_frame(cx),
        };
        if let (Some(limit), true) = (&this.limit, polled.is_ready()) {
            limit.late.progress().moved();
        }
        let over = match &polled {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Some(Ok(frame))) => {
                if let (Some(on_end), Some(data)) = (&mut this.on_end, frame.data_ref()) {
                    on_end.passed(data.len());
                }
                let status = frame.trailers_ref().and_then(grpc_status);
                (frame.is_trailers() || inner.is_end_stream()).then_some(Ok(status))
            }
            Poll::Ready(None) => Some(Ok(None)),
            Poll::Ready(Some(Err(_))) => Some(Err(())),
        };
        if let (Some(over), Some(on_end)) = (over, if over.is_some() { this.on_end.take() } else { None }) {
            this.limit = None;
            match over {
                Ok(status) => on_end.end(status),
                Err(()) => on_end.fail(),
            }
        }
        polled.map(|frame| frame.map(|frame| frame.map_err(BodyError::Read)))
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.inner.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = self
            .inner
            .as_ref()
            .map_or_else(|| SizeHint::with_exact(0), http_body::Body::size_hint);
        if let Some(Some(Ok(frame))) = self.first.as_deref()
            && let Some(data) = frame.data_ref()
        {
            let (ahead, upper) = (data.len() as u64, hint.upper());
            let lower = hint.lower() + ahead;
            hint = SizeHint::new();
            hint.set_lower(lower);
            if let Some(upper) = upper {
                hint.set_upper(upper + ahead);
            }
        }
        hint
    }
}

impl<E: OnEnd> Body<E> {
    /// The last frame of a body that took too long.
    fn cut(&mut self) -> Result<Frame<Bytes>, BodyError> {
        self.inner = None;
        self.first = None;
        if let Some(on_end) = self.on_end.take() {
            on_end.fail();
        }
        match self.limit.take() {
            Some(limit) if limit.grpc => {
                let mut trailers = http::HeaderMap::new();
                trailers.insert(GRPC_STATUS, http::HeaderValue::from_static("4"));
                trailers.insert(
                    "grpc-message",
                    http::HeaderValue::from_static("request timed out"),
                );
                Ok(Frame::trailers(trailers))
            }
            _ => Err(BodyError::Late(h2::Reason::CANCEL.into())),
        }
    }
}

/// What an answer's head says of a call that has no trailers.
pub(crate) fn grpc_status_of(head: &Head) -> Option<u32> {
    head.get(GRPC_STATUS)?.to_str()?.parse().ok()
}

/// What trailers say of a call.
pub(crate) fn grpc_status(headers: &http::HeaderMap) -> Option<u32> {
    // Most messages have none: comparing the few names there are costs less than hashing this one.
    let (_, status) = headers.iter().find(|(name, _)| *name == GRPC_STATUS)?;
    status.to_str().ok()?.parse().ok()
}
