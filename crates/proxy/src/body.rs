//! Bodies that pass through: forwarded frame by frame, and told when they end.
//!
//! One concrete type for both directions, so nothing on the path of a request is boxed.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;

use crate::head::Serving;

/// What is told when a body has ended; dropping it without [`OnEnd::end`] means that the body was cut short.
pub(crate) trait OnEnd {
    /// `grpc_status` is what the trailers said.
    fn end(self, grpc_status: Option<u32>);
    /// The stream broke.
    fn fail(self);
}

#[derive(Debug)]
pub(crate) struct Body<E: OnEnd> {
    inner: Option<Incoming>,
    on_end: Option<E>,
    /// The HTTP/1 connection is busy with it.
    serving: Option<Serving>,
}

impl<E: OnEnd> Body<E> {
    pub(crate) fn empty() -> Self {
        Self {
            inner: None,
            on_end: None,
            serving: None,
        }
    }

    pub(crate) fn incoming(inner: Incoming) -> Self {
        Self {
            inner: Some(inner),
            on_end: None,
            serving: None,
        }
    }

    /// Observed to its end; a body without content ends now.
    pub(crate) fn observed(inner: Incoming, on_end: E) -> Self {
        if inner.is_end_stream() {
            on_end.end(None);
            return Self::incoming(inner);
        }
        Self {
            inner: Some(inner),
            on_end: Some(on_end),
            serving: None,
        }
    }

    pub(crate) fn serving(mut self, serving: Serving) -> Self {
        self.serving = Some(serving);
        self
    }
}

impl<E: OnEnd + Unpin> http_body::Body for Body<E> {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(inner) = &mut self.inner else {
            return Poll::Ready(None);
        };
        let polled = Pin::new(&mut *inner).poll_frame(cx);
        let over = match &polled {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Some(Ok(frame))) => {
                let status = frame.trailers_ref().and_then(grpc_status);
                (frame.is_trailers() || inner.is_end_stream()).then_some(Ok(status))
            }
            Poll::Ready(None) => Some(Ok(None)),
            Poll::Ready(Some(Err(_))) => Some(Err(())),
        };
        if let (Some(over), Some(on_end)) = (over, if over.is_some() { self.on_end.take() } else { None }) {
            match over {
                Ok(status) => on_end.end(status),
                Err(()) => on_end.fail(),
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner
            .as_ref()
            .map_or_else(|| SizeHint::with_exact(0), http_body::Body::size_hint)
    }
}

pub(crate) fn grpc_status(headers: &http::HeaderMap) -> Option<u32> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}
