//! Requests that can be sent again: a head that is kept, and a body that remembers its beginning.
//!
//! Nothing is copied: what is kept of a body is the same memory that was sent. A body that grows beyond its limit, or
//! whose answer has begun, is let go and can't be sent again. When to send again is [`super::retry`]'s business.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Extensions, HeaderMap, Version};
use http_body::{Body, Frame, SizeHint};

use crate::http_rules::ORIG_PROTO;
use crate::late::Progress;
use crate::message::{Request, Target};
use crate::wire::{Incoming, ReadError};

/// A request's body on its way to a server; `None` if it has no content.
#[derive(Debug, Default)]
pub(crate) struct RequestBody(Option<Reader>);

impl RequestBody {
    /// The body, to be sent; what is left has none.
    pub(crate) fn take(&mut self) -> Self {
        Self(self.0.take())
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = ReadError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ReadError>>> {
        match &mut self.0 {
            None => Poll::Ready(None),
            Some(reader) => reader.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(Reader::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.0
            .as_ref()
            .map_or_else(|| SizeHint::with_exact(0), |reader| reader.size)
    }
}

#[derive(Clone, Debug)]
enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
}

impl Piece {
    fn frame(self) -> Frame<Bytes> {
        match self {
            Self::Data(data) => Frame::data(data),
            Self::Trailers(trailers) => Frame::trailers(trailers),
        }
    }
}

/// A body and what was read of it.
#[derive(Debug)]
struct Recording {
    rest: Incoming,
    /// In order; `None` once it is no longer kept.
    pieces: Option<Vec<Piece>>,
    /// Bytes that may still be kept.
    room: usize,
    /// It won't be sent again: pieces are kept only for a reader that has not come to them yet.
    over: bool,
    /// How many readers there were. Only the last one reads.
    readers: u32,
    /// It ended before its end.
    broken: bool,
    progress: Option<Rc<Progress>>,
}

impl Recording {
    fn keep(&mut self, frame: &Frame<Bytes>) {
        let Some(pieces) = &mut self.pieces else { return };
        let room = self.room.checked_sub(frame.data_ref().map_or(0, Bytes::len));
        match (room, frame.data_ref(), frame.trailers_ref()) {
            (Some(room), Some(data), _) if !self.over => {
                self.room = room;
                pieces.push(Piece::Data(data.clone()));
            }
            (Some(_), _, Some(trailers)) if !self.over => pieces.push(Piece::Trailers(trailers.clone())),
            _ => self.pieces = None,
        }
    }
}

/// One sending of a recorded body.
#[derive(Debug)]
struct Reader {
    recording: Rc<RefCell<Recording>>,
    number: u32,
    /// Pieces that were read already.
    at: usize,
    size: SizeHint,
}

impl Reader {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ReadError>>> {
        let recording = &mut *self.recording.borrow_mut();
        if recording.readers != self.number {
            // Its stream has failed and is about to be dropped; what follows belongs to another.
            return Poll::Pending;
        }
        self.size = SizeHint::default();
        if let Some(piece) = recording.pieces.as_ref().and_then(|pieces| pieces.get(self.at)) {
            self.at += 1;
            return Poll::Ready(Some(Ok(piece.clone().frame())));
        }
        let polled = Pin::new(&mut recording.rest).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                recording.keep(frame);
                self.at += 1;
            }
            Poll::Ready(Some(Err(_))) => recording.broken = true,
            Poll::Ready(None) | Poll::Pending => {}
        }
        if let (Some(progress), Poll::Ready(frame)) = (&recording.progress, &polled) {
            progress.moved();
            if !matches!(frame, Some(Ok(_))) || recording.rest.is_end_stream() {
                progress.asked();
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        let recording = self.recording.borrow();
        let kept = recording.pieces.as_ref().map_or(0, Vec::len);
        self.at >= kept && recording.rest.is_end_stream()
    }
}

/// A request until its answer begins.
#[derive(Debug)]
pub(crate) struct Replay {
    request: Request<()>,
    target: Target,
    /// `None` if it has no content.
    body: Option<(Rc<RefCell<Recording>>, SizeHint)>,
}

impl Replay {
    /// At most `bytes_max` bytes of its body are kept. `progress` is told what passes.
    pub(crate) fn new(request: Request<Incoming>, bytes_max: usize, progress: Option<Rc<Progress>>) -> Self {
        let mut body = None;
        let request = request.map(|whole| {
            if !whole.is_end_stream() {
                body = Some(whole);
            }
        });
        if let (Some(progress), None) = (&progress, &body) {
            progress.asked();
        }
        let record = |rest: Incoming| {
            let size = rest.size_hint();
            // What is known to be too large isn't kept at all.
            let room = if size.lower() > bytes_max as u64 {
                0
            } else {
                bytes_max
            };
            let recording = Recording {
                rest,
                pieces: Some(Vec::new()),
                room,
                over: false,
                readers: 0,
                broken: false,
                progress,
            };
            (Rc::new(RefCell::new(recording)), size)
        };
        Self {
            target: request.head.target(),
            request,
            body: body.map(record),
        }
    }

    /// Without the head while that is lent.
    pub(crate) fn request(&self) -> &Request<()> {
        &self.request
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.body.is_none()
    }

    /// Did its body break off or turn out to be none? That is the client's fault, whatever the server makes of it.
    pub(crate) fn is_broken(&self) -> bool {
        let body = self.body.as_ref();
        body.is_some_and(|(recording, _)| recording.borrow().broken)
    }

    /// Can it be sent from its beginning?
    pub(crate) fn whole(&self) -> bool {
        match &self.body {
            None => true,
            Some((recording, _)) => recording.borrow().pieces.is_some(),
        }
    }

    /// The request from its beginning, unless that is gone. Whoever was sent it before gets no more of its body.
    ///
    /// `last`: it won't be asked for again. Extensions go with HTTP/1 only, to which they matter.
    pub(crate) fn take(&mut self, last: bool, with_extensions: bool) -> Option<Request<RequestBody>> {
        let body = self.body(last)?;
        Some(Request {
            method: self.request.method.clone(),
            version: self.request.version,
            head: match last {
                true => std::mem::take(&mut self.request.head),
                false => self.request.head.clone(),
            },
            extensions: match with_extensions {
                true => self.request.extensions.clone(),
                false => Extensions::new(),
            },
            body,
        })
    }

    /// The same with the head itself: it must be [given back](Self::give_back) if it is to be sent again.
    pub(crate) fn lend(&mut self) -> Option<Request<RequestBody>> {
        Some(Request {
            method: self.request.method.clone(),
            version: self.request.version,
            head: std::mem::take(&mut self.request.head),
            extensions: Extensions::new(),
            body: self.body(false)?,
        })
    }

    /// What a request that was lent still has.
    pub(crate) fn give_back(&mut self, sent: &mut Request<RequestBody>) {
        let mut head = std::mem::take(&mut sent.head);
        head.restore(self.target);
        if self.request.version < Version::HTTP_2 {
            head.remove(ORIG_PROTO);
        }
        self.request.head = head;
    }

    fn body(&mut self, last: bool) -> Option<RequestBody> {
        let reader = match &self.body {
            None => None,
            Some((recording, size)) => {
                let mut recorded = recording.borrow_mut();
                recorded.pieces.as_ref()?;
                recorded.readers += 1;
                recorded.over = last;
                Some(Reader {
                    recording: recording.clone(),
                    number: recorded.readers,
                    at: 0,
                    size: *size,
                })
            }
        };
        Some(RequestBody(reader))
    }
}

impl Drop for Replay {
    /// Its answer has begun, or it has failed for good: what follows of the body need not be kept.
    fn drop(&mut self) {
        if let Some((recording, _)) = &self.body {
            recording.borrow_mut().over = true;
        }
    }
}
