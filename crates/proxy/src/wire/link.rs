//! One HTTP/2 connection as its streams see it (RFC 9113): frames in, frames out, windows, and what is open.
//!
//! No socket and no task: [`super::client`] and [`super::server`] move the bytes. Whatever streams write in one turn of
//! the loop is gathered in one buffer, which becomes one TLS record and one system call. Everything is on one thread;
//! borrows end before anything else runs.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use h2::Reason;
use http::{HeaderMap, Method, StatusCode, Version};

use super::frame::{self, Header};
use super::hpack::{CONNECTION_SPECIFIC, Decoder, Encoder, Field, Kind, connection_specific};
use super::{Fault, Options};
use crate::message::{self, Part, Request};
use crate::quick::Quick;

/// Answers to settings and pings that the peer makes us write without reading them.
const REPLIES_MAX: usize = 64 << 10;
/// Streams that may be open before the peer has said how many.
const STREAMS_ASSUMED: usize = 100;
/// Frames of one header block.
const CONTINUATIONS_MAX: u32 = 64;
/// Frames without content between two with some.
const EMPTY_MAX: u32 = 1_000;
/// Identifiers after this one are not used: a new connection takes over.
const ID_MAX: u32 = (1 << 31) - 1_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Server,
}

pub(super) type Shared = Rc<RefCell<Link>>;

/// What a client's request becomes, or its answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) head: message::Head,
}

#[derive(Debug, Default)]
struct Stream {
    answer: Option<Answer>,
    data: VecDeque<Bytes>,
    /// Boxed, since few have any.
    trailers: Option<Box<HeaderMap>>,
    fault: Option<Fault>,
    /// The peer has said everything.
    heard: bool,
    /// Nobody reads it.
    unread: bool,
    /// What `content-length` says is still to come.
    expected: Option<u64>,
    /// Nothing follows the head of its answer, whatever that says.
    headless: bool,
    answered: bool,
    receive_window: i64,
    /// Read, and not yet given back to the peer's window.
    owed: u32,
    reader: Option<Waker>,
    send_window: i64,
    /// We have said everything.
    said: bool,
    writer: Option<Waker>,
}

impl Stream {
    fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()].into_iter().flatten() {
            waker.wake();
        }
    }

    fn fail(&mut self, fault: Fault) {
        if self.fault.is_none() && !(self.heard && self.said) {
            self.fault = Some(fault);
        }
        self.heard = true;
        self.said = true;
        self.wake();
    }
}

/// A header block whose frames have not all come.
#[derive(Debug)]
struct Block {
    stream: u32,
    end: bool,
    bytes: BytesMut,
    frames: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    /// No new streams. On a client, because the peer says so.
    Leaving,
    Closed(Fault),
}

#[derive(Debug)]
pub(super) struct Link {
    side: Side,
    options: Options,
    state: State,
    /// What is to be written, in order.
    pub(super) out: BytesMut,
    encoder: Encoder,
    decoder: Decoder,
    streams: HashMap<u32, Stream, Quick>,
    /// Of ours on a client, of the peer's on a server.
    newest: u32,
    block: Option<Block>,
    receive_window: i64,
    owed: u32,
    send_window: i64,
    peer_stream_window: i64,
    peer_frame_max: usize,
    peer_streams_max: usize,
    greeted: bool,
    /// The peer knows our settings; before, it may have sent more than they allow.
    told: bool,
    /// Streams that wait for what is gathered to be written.
    blocked: Vec<Waker>,
    /// Streams that wait for the connection's window. Woken by nothing else: they would keep the task awake.
    starved: Vec<Waker>,
    /// Requests that wait for a stream.
    queue: Vec<Waker>,
    task: Option<Waker>,
    woken: bool,
    /// Requests that came and that nobody has taken yet.
    accepted: VecDeque<(u32, Request<()>)>,
    /// Streams that the peer has ended early, for whoever serves them.
    cancelled: Vec<u32>,
    /// Of those, the ones in this turn that nobody had begun to serve.
    pending_resets: usize,
    replies: usize,
    empty: u32,
    /// Since the last time that somebody asked.
    lively: bool,
}

impl Link {
    pub(super) fn new(side: Side, options: Options) -> Self {
        let mut out = BytesMut::new();
        let mut settings = vec![
            (frame::INITIAL_WINDOW_SIZE, options.stream_window),
            (frame::MAX_HEADER_LIST_SIZE, options.header_list_max),
        ];
        match side {
            Side::Client => {
                out.put_slice(frame::PREFACE);
                settings.push((frame::ENABLE_PUSH, 0));
            }
            Side::Server => settings.push((frame::MAX_CONCURRENT_STREAMS, options.streams_max)),
        }
        if let Some(max) = options.frame_max {
            settings.push((frame::MAX_FRAME_SIZE, max));
        }
        frame::put_settings(&mut out, &settings);
        let more = options.connection_window.saturating_sub(frame::WINDOW_DEFAULT);
        if more > 0 {
            frame::put_u32(&mut out, frame::WINDOW_UPDATE, 0, more);
        }
        Self {
            side,
            state: State::Open,
            out,
            encoder: Encoder::new(),
            decoder: Decoder::new(),
            streams: HashMap::default(),
            newest: 0,
            block: None,
            receive_window: i64::from(options.connection_window.max(frame::WINDOW_DEFAULT)),
            owed: 0,
            send_window: i64::from(frame::WINDOW_DEFAULT),
            peer_stream_window: i64::from(frame::WINDOW_DEFAULT),
            peer_frame_max: frame::SIZE_MIN,
            peer_streams_max: match side {
                Side::Client => STREAMS_ASSUMED,
                Side::Server => 0,
            },
            greeted: false,
            told: false,
            blocked: Vec::new(),
            starved: Vec::new(),
            queue: Vec::new(),
            task: None,
            woken: false,
            accepted: VecDeque::new(),
            cancelled: Vec::new(),
            pending_resets: 0,
            replies: 0,
            empty: 0,
            lively: false,
            options,
        }
    }

    // The connection's task.

    /// The task runs now; whatever happens needs no waking.
    pub(super) fn begin_turn(&mut self, cx: &Context<'_>) {
        self.woken = true;
        self.pending_resets = 0;
        if !self.task.as_ref().is_some_and(|task| task.will_wake(cx.waker())) {
            self.task = Some(cx.waker().clone());
        }
    }

    pub(super) fn end_turn(&mut self) {
        self.woken = false;
    }

    /// There is something to write or to end.
    fn changed(&mut self) {
        if !self.woken {
            self.woken = true;
            if let Some(task) = &self.task {
                task.wake_by_ref();
            }
        }
    }

    /// Everything has been written.
    pub(super) fn written(&mut self) {
        self.replies = 0;
        for waker in self.blocked.drain(..) {
            waker.wake();
        }
    }

    pub(super) fn idle(&self) -> bool {
        self.streams.is_empty()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.state != State::Open || self.newest > ID_MAX
    }

    /// Nothing is under way and nothing may begin.
    pub(super) fn is_over(&self) -> bool {
        match self.state {
            State::Open => false,
            State::Leaving => self.streams.is_empty(),
            State::Closed(_) => true,
        }
    }

    pub(super) fn is_broken(&self) -> bool {
        matches!(self.state, State::Closed(_))
    }

    pub(super) fn next_accepted(&mut self) -> Option<(u32, Request<()>)> {
        self.accepted.pop_front()
    }

    pub(super) fn next_cancelled(&mut self) -> Option<u32> {
        self.cancelled.pop()
    }

    /// Ends everything that is under way.
    pub(super) fn close(&mut self, fault: Fault) {
        if matches!(self.state, State::Closed(_)) {
            return;
        }
        self.state = State::Closed(fault);
        for (id, stream) in &mut self.streams {
            stream.fail(fault);
            self.cancelled.push(*id);
        }
        self.streams.retain(|_, stream| !stream.unread);
        let waiting = self.blocked.drain(..).chain(self.starved.drain(..));
        for waker in waiting.chain(self.queue.drain(..)) {
            waker.wake();
        }
        self.changed();
    }

    /// Says goodbye, with the reason, and ends everything.
    pub(super) fn abort(&mut self, reason: Reason) {
        let last = match self.side {
            Side::Client => 0,
            Side::Server => self.newest,
        };
        frame::put_goaway(&mut self.out, last, reason);
        self.close(Fault::Ours(reason));
    }

    /// A server that ends in order: first without a limit, so that what is on its way still comes in.
    pub(super) fn leave(&mut self) {
        if self.side == Side::Server && self.state == State::Open {
            frame::put_goaway(&mut self.out, frame::WINDOW_MAX, Reason::NO_ERROR);
            frame::put_ping(&mut self.out, 0, LEAVING);
            self.changed();
        }
    }

    /// Asks for a sign of life.
    pub(super) fn ping(&mut self) {
        frame::put_ping(&mut self.out, 0, ALIVE);
        self.changed();
    }

    /// Has anything come since this was last asked?
    pub(super) fn lively(&mut self) -> bool {
        std::mem::take(&mut self.lively)
    }

    /// Nobody will open streams any more.
    pub(super) fn abandon(&mut self) {
        if self.state == State::Open {
            self.state = State::Leaving;
            self.changed();
        }
    }

    // Reading.

    /// Takes in the frames that are whole. An error ends the connection.
    pub(super) fn received(&mut self, bytes: &mut BytesMut) -> Result<(), Reason> {
        self.lively = true;
        let frame_max = self.options.frame_max.map_or(frame::SIZE_MIN, |max| max as usize);
        while let Some(header) = Header::read(bytes) {
            if header.length > frame_max {
                return Err(Reason::FRAME_SIZE_ERROR);
            }
            if bytes.len() < frame::HEADER + header.length {
                break;
            }
            bytes.advance(frame::HEADER);
            let payload = bytes.split_to(header.length).freeze();
            self.frame(header, payload)?;
        }
        if self.replies > REPLIES_MAX {
            return Err(Reason::ENHANCE_YOUR_CALM);
        }
        Ok(())
    }

    fn frame(&mut self, header: Header, payload: Bytes) -> Result<(), Reason> {
        if let Some(block) = &self.block
            && (header.kind != frame::CONTINUATION || header.stream != block.stream)
        {
            return Err(Reason::PROTOCOL_ERROR);
        }
        if !self.greeted && header.kind != frame::SETTINGS {
            return Err(Reason::PROTOCOL_ERROR);
        }
        match header.kind {
            frame::DATA => self.data(header, payload),
            frame::HEADERS => self.headers(header, payload),
            frame::CONTINUATION => self.continuation(header, &payload),
            frame::PRIORITY => match (header.stream, header.length) {
                (0, _) => Err(Reason::PROTOCOL_ERROR),
                (_, 5) => Ok(()),
                _ => Err(Reason::FRAME_SIZE_ERROR),
            },
            frame::RST_STREAM => self.reset_by_peer(header, &payload),
            frame::SETTINGS => self.settings(header, &payload),
            frame::PUSH_PROMISE => Err(Reason::PROTOCOL_ERROR),
            frame::PING => self.pinged(header, &payload),
            frame::GOAWAY => self.goaway(header, &payload),
            frame::WINDOW_UPDATE => self.window_update(header, &payload),
            _ => Ok(()),
        }
    }

    /// Was this stream ever opened?
    fn known(&self, id: u32) -> bool {
        // Clients have the odd ones, and nobody pushes.
        id % 2 == 1 && id <= self.newest
    }

    fn data(&mut self, header: Header, mut payload: Bytes) -> Result<(), Reason> {
        if header.stream == 0 || !self.known(header.stream) {
            return Err(Reason::PROTOCOL_ERROR);
        }
        let length = header.length as u32;
        self.receive_window -= i64::from(length);
        if self.receive_window < 0 {
            return Err(Reason::FLOW_CONTROL_ERROR);
        }
        frame::unpadded(header, &mut payload).ok_or(Reason::PROTOCOL_ERROR)?;
        let end = header.has(frame::END_STREAM);
        if payload.is_empty() && !end {
            self.empty += 1;
            if self.empty > EMPTY_MAX {
                return Err(Reason::ENHANCE_YOUR_CALM);
            }
        }
        let content = payload.len() as u64;
        let Some(stream) = self.streams.get_mut(&header.stream) else {
            // It ended on our side, while this was on its way.
            self.give_back(length);
            return Ok(());
        };
        if stream.heard {
            let gone = stream.fault.is_some();
            self.give_back(length);
            return match gone {
                true => Ok(()),
                false => self.reset(header.stream, Reason::STREAM_CLOSED),
            };
        }
        stream.receive_window -= i64::from(length);
        let overrun = self.told && stream.receive_window < 0;
        if let Some(expected) = &mut stream.expected {
            match expected.checked_sub(content) {
                Some(rest) if rest == 0 || !end => *expected = rest,
                _ => {
                    self.give_back(length);
                    return self.reset(header.stream, Reason::PROTOCOL_ERROR);
                }
            }
        }
        if overrun {
            self.give_back(length);
            return self.reset(header.stream, Reason::FLOW_CONTROL_ERROR);
        }
        let early = self.side == Side::Client && !stream.answered;
        if early {
            self.give_back(length);
            return self.reset(header.stream, Reason::PROTOCOL_ERROR);
        }
        let overhead = length - content as u32;
        let unread = stream.unread;
        if unread {
            self.give_back(length);
        } else if content > 0 {
            stream.data.push_back(payload);
            stream.owed += overhead;
            self.empty = 0;
        }
        if end {
            self.heard(header.stream);
        } else if let Some(stream) = self.streams.get_mut(&header.stream)
            && let Some(reader) = stream.reader.take()
        {
            reader.wake();
        }
        if overhead > 0 && !unread {
            self.give_back(overhead);
        }
        Ok(())
    }

    /// The peer has said everything on this stream.
    fn heard(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.heard = true;
            if let Some(reader) = stream.reader.take() {
                reader.wake();
            }
        }
        self.tidy(id);
    }

    /// Forgets a stream that is over on both sides and that nobody reads.
    fn tidy(&mut self, id: u32) {
        let over = self
            .streams
            .get(&id)
            .is_some_and(|stream| stream.heard && stream.said && stream.unread);
        if over {
            self.streams.remove(&id);
            // All of them: the first may have given up.
            for waker in self.queue.drain(..) {
                waker.wake();
            }
            if self.state == State::Leaving && self.streams.is_empty() {
                self.changed();
            }
        }
    }

    fn give_back(&mut self, length: u32) {
        self.owed += length;
        if self.owed > 0 && self.owed >= self.options.connection_window / 2 {
            frame::put_u32(&mut self.out, frame::WINDOW_UPDATE, 0, self.owed);
            self.receive_window += i64::from(self.owed);
            self.owed = 0;
            self.changed();
        }
    }

    fn headers(&mut self, header: Header, mut payload: Bytes) -> Result<(), Reason> {
        if header.stream == 0 {
            return Err(Reason::PROTOCOL_ERROR);
        }
        frame::unpadded(header, &mut payload).ok_or(Reason::PROTOCOL_ERROR)?;
        if header.has(frame::PRIORITIZED) {
            if payload.len() < 5 {
                return Err(Reason::PROTOCOL_ERROR);
            }
            payload.advance(5);
        }
        let end = header.has(frame::END_STREAM);
        if header.has(frame::END_HEADERS) {
            return self.block(header.stream, end, &payload);
        }
        self.block = Some(Block {
            stream: header.stream,
            end,
            bytes: BytesMut::from(&*payload),
            frames: 0,
        });
        Ok(())
    }

    fn continuation(&mut self, header: Header, payload: &[u8]) -> Result<(), Reason> {
        let mut block = self.block.take().ok_or(Reason::PROTOCOL_ERROR)?;
        block.bytes.put_slice(payload);
        block.frames += 1;
        // What is compressed well is still small; what isn't, is too long.
        let most = self.options.header_list_max as usize * 2 + frame::SIZE_MIN;
        if block.bytes.len() > most || block.frames > CONTINUATIONS_MAX {
            return Err(Reason::ENHANCE_YOUR_CALM);
        }
        if header.has(frame::END_HEADERS) {
            return self.block(block.stream, block.end, &block.bytes);
        }
        self.block = Some(block);
        Ok(())
    }

    /// A whole header block: a request, an answer, or trailers.
    fn block(&mut self, id: u32, end: bool, block: &[u8]) -> Result<(), Reason> {
        let mut head = Head::default();
        let most = self.options.header_list_max as usize;
        self.decoder
            .decode(block, |field, size| head.field(field, size, most))
            .map_err(|_| Reason::COMPRESSION_ERROR)?;
        if let Some(stream) = self.streams.get_mut(&id) {
            if stream.heard {
                let gone = stream.fault.is_some();
                return match gone {
                    true => Ok(()),
                    false => self.reset(id, Reason::STREAM_CLOSED),
                };
            }
            if self.side == Side::Client && !stream.answered {
                return self.answer(id, end, head);
            }
            let unfit = head.malformed || head.too_long || head.pseudo();
            if !end || unfit || stream.expected.is_some_and(|rest| rest > 0) {
                return self.reset(id, Reason::PROTOCOL_ERROR);
            }
            if !stream.unread {
                stream.trailers = Some(Box::new(head.fields.headers()));
            }
            self.heard(id);
            return Ok(());
        }
        if self.known(id) {
            // It ended on our side while this was on its way, or it was passed over and can't be opened any more.
            // Whoever waits for an answer there is told.
            if self.side == Side::Server {
                frame::put_u32(&mut self.out, frame::RST_STREAM, id, Reason::STREAM_CLOSED.into());
                self.replies += frame::HEADER + 4;
            }
            return Ok(());
        }
        match self.side {
            Side::Client => Err(Reason::PROTOCOL_ERROR),
            Side::Server if id.is_multiple_of(2) => Err(Reason::PROTOCOL_ERROR),
            Side::Server => self.request(id, end, head),
        }
    }

    fn answer(&mut self, id: u32, end: bool, head: Head) -> Result<(), Reason> {
        let malformed = head.malformed || head.too_long || head.request_pseudo();
        let (Some(status), false) = (head.status, malformed) else {
            return self.reset(id, Reason::PROTOCOL_ERROR);
        };
        let Some(stream) = self.streams.get_mut(&id) else {
            return Ok(());
        };
        if status.is_informational() {
            // Nobody waits to be told to continue: that is between a client and its proxy.
            return match end || status == StatusCode::SWITCHING_PROTOCOLS {
                true => self.reset(id, Reason::PROTOCOL_ERROR),
                false => Ok(()),
            };
        }
        let Ok(length) = content_length(&head.fields) else {
            return self.reset(id, Reason::PROTOCOL_ERROR);
        };
        let headless = stream.headless || matches!(status.as_u16(), 204 | 304);
        if headless {
            stream.expected = Some(0);
        } else {
            stream.expected = length;
            if end && length.is_some_and(|length| length > 0) {
                return self.reset(id, Reason::PROTOCOL_ERROR);
            }
        }
        stream.answered = true;
        stream.answer = Some(Answer {
            status,
            head: head.fields,
        });
        if end {
            self.heard(id);
        } else if let Some(reader) = stream.reader.take() {
            reader.wake();
        }
        Ok(())
    }

    fn request(&mut self, id: u32, end: bool, head: Head) -> Result<(), Reason> {
        self.newest = id;
        if self.state != State::Open {
            // It was told so.
            return Ok(());
        }
        if self.streams.len() >= self.options.streams_max as usize {
            frame::put_u32(
                &mut self.out,
                frame::RST_STREAM,
                id,
                Reason::REFUSED_STREAM.into(),
            );
            self.replies += frame::HEADER + 4;
            return Ok(());
        }
        if head.too_long {
            self.put_answer(
                id,
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                &message::Head::default(),
                true,
            );
            if !end {
                frame::put_u32(&mut self.out, frame::RST_STREAM, id, Reason::NO_ERROR.into());
            }
            self.replies += 2 * frame::HEADER;
            return Ok(());
        }
        let length = content_length(&head.fields);
        let expected = length.unwrap_or_default();
        let request = head.request().filter(|_| {
            // A length that nothing follows would be waited for by whoever gets it in HTTP/1.
            length.is_ok() && !(end && expected.is_some_and(|expected| expected > 0))
        });
        let Some(request) = request else {
            frame::put_u32(
                &mut self.out,
                frame::RST_STREAM,
                id,
                Reason::PROTOCOL_ERROR.into(),
            );
            self.replies += frame::HEADER + 4;
            return Ok(());
        };
        let stream = Stream {
            heard: end,
            unread: end,
            answered: true,
            expected,
            receive_window: i64::from(self.options.stream_window),
            send_window: self.peer_stream_window,
            ..Stream::default()
        };
        self.streams.insert(id, stream);
        self.accepted.push_back((id, request));
        Ok(())
    }

    fn reset_by_peer(&mut self, header: Header, payload: &[u8]) -> Result<(), Reason> {
        if header.length != 4 {
            return Err(Reason::FRAME_SIZE_ERROR);
        }
        if header.stream == 0 || !self.known(header.stream) {
            return Err(Reason::PROTOCOL_ERROR);
        }
        let mut payload = payload;
        let reason = Reason::from(payload.get_u32());
        let Some(stream) = self.streams.get_mut(&header.stream) else {
            return Ok(());
        };
        // An answer that is whole stays whole: its server only doesn't want the rest of the question.
        if !(reason == Reason::NO_ERROR && stream.heard) {
            stream.fail(Fault::Reset(reason));
        } else {
            stream.said = true;
            stream.wake();
        }
        if self.side == Side::Server {
            let waiting = self.accepted.len();
            self.accepted.retain(|(id, _)| *id != header.stream);
            if self.accepted.len() < waiting {
                // Opened and reset before anybody could begin: whoever does that a lot wants to make us work.
                if let Some(stream) = self.streams.get_mut(&header.stream) {
                    stream.unread = true;
                }
                self.pending_resets += 1;
                if self.pending_resets > self.options.pending_resets_max {
                    return Err(Reason::ENHANCE_YOUR_CALM);
                }
            } else {
                self.cancelled.push(header.stream);
            }
        }
        self.tidy(header.stream);
        Ok(())
    }

    fn settings(&mut self, header: Header, payload: &[u8]) -> Result<(), Reason> {
        if header.stream != 0 {
            return Err(Reason::PROTOCOL_ERROR);
        }
        if header.has(frame::ACK) {
            self.told = true;
            return match header.length {
                0 => Ok(()),
                _ => Err(Reason::FRAME_SIZE_ERROR),
            };
        }
        if !header.length.is_multiple_of(6) {
            return Err(Reason::FRAME_SIZE_ERROR);
        }
        if !self.greeted && self.side == Side::Client {
            // Whoever doesn't say how many takes any number.
            self.peer_streams_max = usize::MAX;
        }
        self.greeted = true;
        let mut rest = payload;
        while rest.len() >= 6 {
            let (id, value) = (rest.get_u16(), rest.get_u32());
            match id {
                frame::HEADER_TABLE_SIZE => self.encoder.resize(value as usize),
                frame::ENABLE_PUSH if value > 1 => return Err(Reason::PROTOCOL_ERROR),
                frame::MAX_CONCURRENT_STREAMS => self.peer_streams_max = value as usize,
                frame::INITIAL_WINDOW_SIZE if value > frame::WINDOW_MAX => {
                    return Err(Reason::FLOW_CONTROL_ERROR);
                }
                frame::INITIAL_WINDOW_SIZE => {
                    let change = i64::from(value) - self.peer_stream_window;
                    self.peer_stream_window = i64::from(value);
                    for stream in self.streams.values_mut() {
                        stream.send_window += change;
                        if stream.send_window > i64::from(frame::WINDOW_MAX) {
                            return Err(Reason::FLOW_CONTROL_ERROR);
                        }
                        if let Some(writer) = stream.writer.take() {
                            writer.wake();
                        }
                    }
                }
                frame::MAX_FRAME_SIZE => {
                    let size = value as usize;
                    if !(frame::SIZE_MIN..=frame::SIZE_MAX).contains(&size) {
                        return Err(Reason::PROTOCOL_ERROR);
                    }
                    self.peer_frame_max = size;
                }
                _ => {}
            }
        }
        frame::put_header(&mut self.out, 0, frame::SETTINGS, frame::ACK, 0);
        self.replies += frame::HEADER;
        for waker in self.queue.drain(..) {
            waker.wake();
        }
        Ok(())
    }

    fn pinged(&mut self, header: Header, payload: &[u8]) -> Result<(), Reason> {
        if header.length != 8 {
            return Err(Reason::FRAME_SIZE_ERROR);
        }
        if header.stream != 0 {
            return Err(Reason::PROTOCOL_ERROR);
        }
        if header.has(frame::ACK) {
            if payload == LEAVING && self.state == State::Open && self.side == Side::Server {
                // It has seen the first goodbye: what it sent before is here.
                frame::put_goaway(&mut self.out, self.newest, Reason::NO_ERROR);
                self.state = State::Leaving;
            }
        } else {
            frame::put_ping(&mut self.out, frame::ACK, payload);
            self.replies += frame::HEADER + 8;
        }
        Ok(())
    }

    fn goaway(&mut self, header: Header, payload: &[u8]) -> Result<(), Reason> {
        if header.stream != 0 {
            return Err(Reason::PROTOCOL_ERROR);
        }
        let Some(mut known) = payload.get(..8) else {
            return Err(Reason::FRAME_SIZE_ERROR);
        };
        let last = known.get_u32() & frame::WINDOW_MAX;
        if self.side == Side::Client {
            if self.state == State::Open {
                self.state = State::Leaving;
            }
            for (_, stream) in self.streams.iter_mut().filter(|(id, _)| **id > last) {
                stream.fail(Fault::GoneAway);
            }
            self.streams.retain(|_, stream| !(stream.unread && stream.heard));
            for waker in self.queue.drain(..) {
                waker.wake();
            }
        }
        Ok(())
    }

    fn window_update(&mut self, header: Header, payload: &[u8]) -> Result<(), Reason> {
        if header.length != 4 {
            return Err(Reason::FRAME_SIZE_ERROR);
        }
        let mut payload = payload;
        let more = i64::from(payload.get_u32() & frame::WINDOW_MAX);
        if header.stream == 0 {
            self.send_window += more;
            if more == 0 {
                return Err(Reason::PROTOCOL_ERROR);
            }
            if self.send_window > i64::from(frame::WINDOW_MAX) {
                return Err(Reason::FLOW_CONTROL_ERROR);
            }
            for waker in self.starved.drain(..) {
                waker.wake();
            }
            return Ok(());
        }
        if !self.known(header.stream) {
            return Err(Reason::PROTOCOL_ERROR);
        }
        let Some(stream) = self.streams.get_mut(&header.stream) else {
            return Ok(());
        };
        if more == 0 {
            return self.reset(header.stream, Reason::PROTOCOL_ERROR);
        }
        stream.send_window += more;
        if stream.send_window > i64::from(frame::WINDOW_MAX) {
            return self.reset(header.stream, Reason::FLOW_CONTROL_ERROR);
        }
        if let Some(writer) = stream.writer.take() {
            writer.wake();
        }
        Ok(())
    }

    // Streams.

    /// Ends a stream in both directions; whoever waits for it is told.
    pub(super) fn reset(&mut self, id: u32, reason: Reason) -> Result<(), Reason> {
        let Some(stream) = self.streams.get_mut(&id) else {
            return Ok(());
        };
        let over = stream.heard && stream.said;
        stream.fail(Fault::Ours(reason));
        if !over {
            frame::put_u32(&mut self.out, frame::RST_STREAM, id, reason.into());
            if self.side == Side::Server {
                self.cancelled.push(id);
            }
            self.changed();
        }
        self.tidy(id);
        Ok(())
    }

    /// A stream for a request, as soon as there may be one more.
    pub(super) fn poll_open(&mut self, cx: &Context<'_>) -> Poll<Result<(), Fault>> {
        match self.state {
            State::Closed(_) | State::Leaving => return Poll::Ready(Err(Fault::Unsent)),
            State::Open if self.newest > ID_MAX => return Poll::Ready(Err(Fault::Unsent)),
            State::Open => {}
        }
        if self.streams.len() < self.peer_streams_max {
            return Poll::Ready(Ok(()));
        }
        self.queue.push(cx.waker().clone());
        Poll::Pending
    }

    /// Begins a request; `end` if it has no content.
    pub(super) fn open<B>(&mut self, request: &Request<B>, end: bool) -> u32 {
        self.newest = match self.newest {
            0 => 1,
            newest => newest + 2,
        };
        let id = self.newest;
        let stream = Stream {
            said: end,
            headless: request.method == Method::HEAD,
            receive_window: i64::from(self.options.stream_window),
            send_window: self.peer_stream_window,
            ..Stream::default()
        };
        self.streams.insert(id, stream);
        let start = self.gap();
        let Self { out, encoder, .. } = self;
        encoder.method(&request.method, out);
        let head = &request.head;
        if request.method != Method::CONNECT {
            encoder.scheme(head.scheme().unwrap_or("http"), out);
        }
        if let Some(authority) = head.authority() {
            encoder.authority(authority, out);
        }
        if request.method != Method::CONNECT {
            encoder.path(head.path_and_query().unwrap_or("/"), out);
        }
        self.put_fields(head);
        self.put_block(start, id, end);
        id
    }

    fn gap(&mut self) -> usize {
        let start = self.out.len();
        self.out.put_bytes(0, frame::HEADER);
        self.encoder.begin(&mut self.out);
        start
    }

    fn put_fields(&mut self, head: &message::Head) {
        // Nearly always there are none, which is known at once.
        let specific = CONNECTION_SPECIFIC.iter().any(|name| head.contains(name));
        for field in head.iter() {
            let (name, value) = (field.name, field.value.as_bytes());
            if !specific || !connection_specific(name, value) {
                self.encoder.header(name, value, field.secret, &mut self.out);
            }
        }
    }

    fn put_block(&mut self, start: usize, id: u32, end: bool) {
        let flags = if end { frame::END_STREAM } else { 0 };
        frame::frame_block(&mut self.out, start, self.peer_frame_max, flags, id);
        self.changed();
    }

    fn put_answer(&mut self, id: u32, status: StatusCode, head: &message::Head, end: bool) {
        let start = self.gap();
        self.encoder.status(status, &mut self.out);
        self.put_fields(head);
        self.put_block(start, id, end);
    }

    /// The head of an answer.
    pub(super) fn respond(&mut self, id: u32, status: StatusCode, head: &message::Head, end: bool) {
        match self.streams.get_mut(&id) {
            Some(stream) if !stream.said => stream.said = end,
            _ => return,
        }
        self.put_answer(id, status, head, end);
        if end {
            self.tidy(id);
        }
    }

    pub(super) fn send_trailers(&mut self, id: u32, trailers: &HeaderMap) {
        match self.streams.get_mut(&id) {
            Some(stream) if !stream.said => stream.said = true,
            _ => return,
        }
        let start = self.gap();
        for (name, value) in trailers {
            let (name, secret) = (name.as_str().as_bytes(), value.is_sensitive());
            if !connection_specific(name, value.as_bytes()) {
                self.encoder.header(name, value.as_bytes(), secret, &mut self.out);
            }
        }
        self.put_block(start, id, true);
        self.tidy(id);
    }

    /// How much of so much may be written now.
    pub(super) fn poll_room(&mut self, id: u32, want: usize, cx: &Context<'_>) -> Poll<Result<usize, Fault>> {
        let Some(stream) = self.streams.get_mut(&id) else {
            return Poll::Ready(Err(Fault::Ours(Reason::CANCEL)));
        };
        if stream.said {
            return Poll::Ready(Err(stream.fault.unwrap_or(Fault::Reset(Reason::NO_ERROR))));
        }
        if want == 0 {
            return Poll::Ready(Ok(0));
        }
        let window = stream.send_window.min(self.send_window);
        if stream.send_window <= 0 {
            stream.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        if window <= 0 {
            self.starved.push(cx.waker().clone());
            return Poll::Pending;
        }
        if self.out.len() >= self.options.send_buffer_max {
            self.blocked.push(cx.waker().clone());
            return Poll::Pending;
        }
        let room = usize::try_from(window).unwrap_or(usize::MAX);
        Poll::Ready(Ok(want.min(room).min(self.peer_frame_max)))
    }

    /// Writes all of a body in one frame, if there is room for that; says whether there was.
    pub(super) fn send_whole(&mut self, id: u32, content: &[u8]) -> bool {
        let Some(stream) = self.streams.get(&id).filter(|stream| !stream.said) else {
            return true;
        };
        let room = stream.send_window.min(self.send_window).max(0) as usize;
        let fits = content.len() <= room.min(self.peer_frame_max);
        if fits && self.out.len() < self.options.send_buffer_max {
            self.send_data(id, content, true);
            return true;
        }
        false
    }

    /// Writes what there is room for.
    pub(super) fn send_data(&mut self, id: u32, data: &[u8], end: bool) {
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| !stream.said) else {
            return;
        };
        stream.said = end;
        stream.send_window -= data.len() as i64;
        self.send_window -= data.len() as i64;
        let flags = if end { frame::END_STREAM } else { 0 };
        frame::put_header(&mut self.out, data.len(), frame::DATA, flags, id);
        self.out.put_slice(data);
        self.changed();
        if end {
            self.tidy(id);
        }
    }

    /// Wakes when the peer has no more use for what we send.
    pub(super) fn poll_unwanted(&mut self, id: u32, cx: &Context<'_>) -> Poll<Fault> {
        match self.streams.get_mut(&id) {
            Some(stream) if !stream.said => {
                if !stream
                    .writer
                    .as_ref()
                    .is_some_and(|writer| writer.will_wake(cx.waker()))
                {
                    stream.writer = Some(cx.waker().clone());
                }
                Poll::Pending
            }
            Some(stream) => Poll::Ready(stream.fault.unwrap_or(Fault::Reset(Reason::NO_ERROR))),
            None => Poll::Ready(Fault::Ours(Reason::CANCEL)),
        }
    }

    pub(super) fn poll_answer(&mut self, id: u32, cx: &Context<'_>) -> Poll<Result<Answer, Fault>> {
        let Some(stream) = self.streams.get_mut(&id) else {
            return Poll::Ready(Err(Fault::Broken));
        };
        if let Some(answer) = stream.answer.take() {
            return Poll::Ready(Ok(answer));
        }
        if let Some(fault) = stream.fault {
            return Poll::Ready(Err(fault));
        }
        stream.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Is there nothing more to read? Knows it before anybody has tried.
    pub(super) fn at_end(&self, id: u32) -> bool {
        self.streams.get(&id).is_none_or(|stream| {
            stream.heard && stream.fault.is_none() && stream.data.is_empty() && stream.trailers.is_none()
        })
    }

    /// What is left to read, if it is known.
    pub(super) fn left(&self, id: u32) -> Option<u64> {
        let Some(stream) = self.streams.get(&id) else {
            return Some(0);
        };
        let here: usize = stream.data.iter().map(Bytes::len).sum();
        stream.expected.map(|expected| expected + here as u64)
    }

    /// All that there is to read, if it is here, so short, and without trailers.
    pub(super) fn take_short(&mut self, id: u32, max: usize) -> Option<Bytes> {
        let stream = self.streams.get_mut(&id)?;
        let length: usize = stream.data.iter().map(Bytes::len).sum();
        if !stream.heard || stream.fault.is_some() || stream.trailers.is_some() || length > max {
            return None;
        }
        let all = match stream.data.len() {
            1 => stream.data.pop_front()?,
            _ => Bytes::from(stream.data.drain(..).collect::<Vec<_>>().concat()),
        };
        self.give_back(length as u32);
        Some(all)
    }

    pub(super) fn poll_data(&mut self, id: u32, cx: &Context<'_>) -> Poll<Option<Result<Piece, Fault>>> {
        let Some(stream) = self.streams.get_mut(&id) else {
            return Poll::Ready(None);
        };
        if let Some(data) = stream.data.pop_front() {
            let length = data.len() as u32;
            stream.owed += length;
            if !stream.heard && stream.owed >= self.options.stream_window / 2 {
                stream.receive_window += i64::from(stream.owed);
                frame::put_u32(&mut self.out, frame::WINDOW_UPDATE, id, stream.owed);
                stream.owed = 0;
                self.changed();
            }
            self.give_back(length);
            return Poll::Ready(Some(Ok(Piece::Data(data))));
        }
        if let Some(trailers) = stream.trailers.take() {
            return Poll::Ready(Some(Ok(Piece::Trailers(*trailers))));
        }
        if let Some(fault) = stream.fault {
            return Poll::Ready(Some(Err(fault)));
        }
        if stream.heard {
            return Poll::Ready(None);
        }
        stream.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Nobody reads this stream any more.
    pub(super) fn unread(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        stream.unread = true;
        stream.reader = None;
        stream.trailers = None;
        let left: usize = stream.data.drain(..).map(|data| data.len()).sum();
        let (heard, said) = (stream.heard, stream.said);
        if left > 0 {
            self.give_back(left as u32);
        }
        match (self.side, heard, said) {
            (_, true, _) => self.tidy(id),
            (Side::Client, false, _) => _ = self.reset(id, Reason::CANCEL),
            // Its answer may still be under way; the rest of the question is of no use to it.
            (Side::Server, false, true) => _ = self.reset(id, Reason::NO_ERROR),
            (Side::Server, false, false) => {}
        }
    }

    /// The server's last word on a stream: if it isn't over yet, the client is not to send more.
    pub(super) fn finish(&mut self, id: u32) {
        let Some(stream) = self.streams.get(&id) else {
            return;
        };
        if !stream.said {
            let _ = self.reset(id, Reason::INTERNAL_ERROR);
        } else if !stream.heard && stream.unread {
            let _ = self.reset(id, Reason::NO_ERROR);
        }
    }
}

/// The payloads of our own pings.
const LEAVING: &[u8] = b"leaving!";
const ALIVE: &[u8] = b"alive???";

#[derive(Debug)]
pub(super) enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
}

/// What the message says about the size of its content, if it says so once or says the same twice.
fn content_length(head: &message::Head) -> Result<Option<u64>, ()> {
    let mut all = head.get_all("content-length");
    let Some(first) = all.next() else {
        return Ok(None);
    };
    let text = first.as_bytes();
    let digits = !text.is_empty() && text.len() < 20 && text.iter().all(u8::is_ascii_digit);
    if !digits || all.any(|other| other != first) {
        return Err(());
    }
    let digit = |value: u64, digit: &u8| value * 10 + u64::from(digit - b'0');
    Ok(Some(text.iter().fold(0, digit)))
}

/// The fields of a block, gathered.
#[derive(Default)]
struct Head {
    method: Option<Method>,
    status: Option<StatusCode>,
    /// With the target, if it has one.
    fields: message::Head,
    size: usize,
    regular: bool,
    malformed: bool,
    too_long: bool,
}

impl Head {
    fn field(&mut self, field: Field<'_>, size: usize, most: usize) {
        self.size += size;
        if self.size > most {
            self.too_long = true;
            return;
        }
        // Pseudo-headers come first, and each once.
        let duplicate = match field {
            Field::Header(written) => {
                self.regular = true;
                self.fields.push_written(written);
                return;
            }
            Field::Pseudo(Kind::Method, text) => {
                let method = Method::from_bytes(text.as_bytes()).ok();
                method.is_none() || std::mem::replace(&mut self.method, method).is_some()
            }
            Field::Pseudo(Kind::Status, text) => {
                let status = StatusCode::from_bytes(text.as_bytes()).ok();
                status.is_none() || std::mem::replace(&mut self.status, status).is_some()
            }
            Field::Pseudo(Kind::Scheme, text) => self.fields.set_part(Part::Scheme, text),
            Field::Pseudo(Kind::Authority, text) => self.fields.set_part(Part::Authority, text),
            Field::Pseudo(Kind::Path, text) => self.fields.set_part(Part::Path, text),
            Field::Pseudo(Kind::Header | Kind::Wrong, _) | Field::Malformed => true,
        };
        self.malformed |= duplicate || self.regular;
    }

    fn request_pseudo(&self) -> bool {
        let fields = &self.fields;
        self.method.is_some()
            || fields.scheme().is_some()
            || fields.authority().is_some()
            || fields.path_and_query().is_some()
    }

    fn pseudo(&self) -> bool {
        self.status.is_some() || self.request_pseudo()
    }

    /// As a request, if it is one.
    fn request(self) -> Option<Request<()>> {
        let method = self.method?;
        let (mut head, connect) = (self.fields, method == Method::CONNECT);
        let (scheme, path) = (head.scheme().is_some(), head.path_and_query().is_some());
        let complete = match connect {
            true => head.authority().is_some() && !scheme && !path,
            false => scheme && path,
        };
        if self.malformed || self.status.is_some() || !complete {
            return None;
        }
        if head.authority().is_none() {
            // A scheme without an authority says nothing.
            head.set_authority(None);
        }
        Some(Request {
            method,
            version: Version::HTTP_2,
            head,
            ..Request::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use http::{HeaderName, HeaderValue};
    use proptest::prelude::*;
    use proptest::sample::{Index, select};

    use super::*;
    use crate::damage::{cuts, damaged, pieces};
    use crate::wire::fuzzing::{OPTIONS, receive};

    fn server() -> Link {
        let options = Options {
            streams_max: 2,
            ..OPTIONS
        };
        let mut link = Link::new(Side::Server, options);
        link.out.clear();
        link
    }

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut out = BytesMut::new();
        frame::put_header(&mut out, payload.len(), kind, flags, stream);
        out.put_slice(payload);
        out.to_vec()
    }

    fn greeting() -> Vec<u8> {
        let ack = frame(frame::SETTINGS, frame::ACK, 0, &[]);
        [frame(frame::SETTINGS, 0, 0, &[]), ack].concat()
    }

    /// How the connection ended, and how streams were reset.
    fn answer(link: &mut Link, frames: &[Vec<u8>]) -> (Option<Reason>, Vec<(u32, Reason)>) {
        let mut bytes = BytesMut::from(&frames.concat()[..]);
        let ended = link.received(&mut bytes).err();
        let mut resets = Vec::new();
        let mut rest = &link.out[..];
        while let Some(header) = Header::read(rest) {
            let mut payload = &rest[frame::HEADER..frame::HEADER + header.length];
            if header.kind == frame::RST_STREAM {
                resets.push((header.stream, payload.get_u32().into()));
            }
            rest = &rest[frame::HEADER + header.length..];
        }
        (ended, resets)
    }

    /// GET, http, /
    const GET: &[u8] = b"\x82\x86\x84";
    const OPEN: u8 = frame::END_HEADERS;
    const WHOLE: u8 = frame::END_HEADERS | frame::END_STREAM;

    fn literal(name: &str, value: &str) -> Vec<u8> {
        let mut out = BytesMut::new();
        out.put_u8(0);
        for text in [name, value] {
            out.put_u8(text.len() as u8);
            out.put_slice(text.as_bytes());
        }
        out.to_vec()
    }

    fn with(more: &[(&str, &str)]) -> Vec<u8> {
        let more = more.iter().flat_map(|(name, value)| literal(name, value));
        GET.iter().copied().chain(more).collect()
    }

    #[test]
    fn what_breaks_the_connections_rules_ends_it() {
        let headers = |flags, stream, block: &[u8]| frame(frame::HEADERS, flags, stream, block);
        let setting = |id: u16, value: u32| {
            let payload = [&id.to_be_bytes()[..], &value.to_be_bytes()].concat();
            frame(frame::SETTINGS, 0, 0, &payload)
        };
        let update = |stream, by: u32| frame(frame::WINDOW_UPDATE, 0, stream, &by.to_be_bytes());
        for (what, frames, reason) in [
            (
                "data on no stream",
                vec![frame(frame::DATA, 0, 0, b"a")],
                Reason::PROTOCOL_ERROR,
            ),
            (
                "data on an idle stream",
                vec![frame(frame::DATA, 0, 1, b"a")],
                Reason::PROTOCOL_ERROR,
            ),
            (
                "a request on the server's stream",
                vec![headers(WHOLE, 2, GET)],
                Reason::PROTOCOL_ERROR,
            ),
            (
                "a request on no stream",
                vec![headers(WHOLE, 0, GET)],
                Reason::PROTOCOL_ERROR,
            ),
            (
                "a frame too long",
                vec![frame(frame::DATA, 0, 1, &[0; 16_385])],
                Reason::FRAME_SIZE_ERROR,
            ),
            (
                "half a setting",
                vec![frame(frame::SETTINGS, 0, 0, b"abc")],
                Reason::FRAME_SIZE_ERROR,
            ),
            (
                "settings of a stream",
                vec![frame(frame::SETTINGS, 0, 1, &[])],
                Reason::PROTOCOL_ERROR,
            ),
            (
                "settings acknowledged with more",
                vec![frame(frame::SETTINGS, frame::ACK, 0, &[0; 6])],
                Reason::FRAME_SIZE_ERROR,
            ),
            (
                "push of two",
                vec![setting(frame::ENABLE_PUSH, 2)],
                Reason::PROTOCOL_ERROR,
            ),
            (
                "a window too large",
                vec![setting(frame::INITIAL_WINDOW_SIZE, 1 << 31)],
                Reason::FLOW_CONTROL_ERROR,
            ),
            (
                "frames too small",
                vec![setting(frame::MAX_FRAME_SIZE, 16_383)],
                Reason::PROTOCOL_ERROR,
            ),
            (
                "a short ping",
                vec![frame(frame::PING, 0, 0, b"abc")],
                Reason::FRAME_SIZE_ERROR,
            ),
            (
                "a ping of a stream",
                vec![frame(frame::PING, 0, 1, b"12345678")],
                Reason::PROTOCOL_ERROR,
            ),
            (
                "a window that doesn't grow",
                vec![update(0, 0)],
                Reason::PROTOCOL_ERROR,
            ),
            (
                "a window that grows too much",
                vec![update(0, frame::WINDOW_MAX)],
                Reason::FLOW_CONTROL_ERROR,
            ),
            (
                "a window of an idle stream",
                vec![update(1, 1)],
                Reason::PROTOCOL_ERROR,
            ),
            (
                "half a window",
                vec![frame(frame::WINDOW_UPDATE, 0, 0, b"ab")],
                Reason::FRAME_SIZE_ERROR,
            ),
            (
                "an idle stream reset",
                vec![frame(frame::RST_STREAM, 0, 1, &[0; 4])],
                Reason::PROTOCOL_ERROR,
            ),
            (
                "a reset of no stream",
                vec![frame(frame::RST_STREAM, 0, 0, &[0; 4])],
                Reason::PROTOCOL_ERROR,
            ),
            (
                "a priority of no stream",
                vec![frame(frame::PRIORITY, 0, 0, &[0; 5])],
                Reason::PROTOCOL_ERROR,
            ),
            (
                "half a goodbye",
                vec![frame(frame::GOAWAY, 0, 0, &[0; 7])],
                Reason::FRAME_SIZE_ERROR,
            ),
            (
                "frames too large",
                vec![setting(frame::MAX_FRAME_SIZE, 1 << 24)],
                Reason::PROTOCOL_ERROR,
            ),
            (
                "a setting that makes a stream's window too large",
                vec![
                    headers(OPEN, 1, GET),
                    update(1, 1 << 30),
                    setting(frame::INITIAL_WINDOW_SIZE, frame::WINDOW_MAX),
                ],
                Reason::FLOW_CONTROL_ERROR,
            ),
            (
                "data on no stream, of nothing",
                vec![frame(frame::DATA, frame::END_STREAM, 0, &[])],
                Reason::PROTOCOL_ERROR,
            ),
            (
                "more padding than data",
                vec![
                    headers(OPEN, 1, GET),
                    frame(frame::DATA, frame::PADDED, 1, b"\x05abc"),
                ],
                Reason::PROTOCOL_ERROR,
            ),
            (
                "padding without its length",
                vec![headers(OPEN, 1, GET), frame(frame::DATA, frame::PADDED, 1, &[])],
                Reason::PROTOCOL_ERROR,
            ),
            (
                "half a dependency",
                vec![headers(WHOLE | frame::PRIORITIZED, 1, &[0; 4])],
                Reason::PROTOCOL_ERROR,
            ),
            (
                "a block that goes on after its end",
                vec![headers(WHOLE, 1, GET), frame(frame::CONTINUATION, OPEN, 1, &[])],
                Reason::PROTOCOL_ERROR,
            ),
            (
                "a block that goes on on no stream",
                vec![headers(0, 1, GET), frame(frame::CONTINUATION, OPEN, 0, &[])],
                Reason::PROTOCOL_ERROR,
            ),
            (
                "an unknown frame inside a block",
                vec![headers(0, 1, GET), frame(0x16, 0, 0, &[])],
                Reason::PROTOCOL_ERROR,
            ),
            (
                "half a block",
                vec![headers(WHOLE, 1, b"\x82\x86\x84\x00\x01")],
                Reason::COMPRESSION_ERROR,
            ),
            (
                "a table that grows beyond its limit",
                vec![headers(WHOLE, 1, b"\x3f\xe2\x1f\x82\x86\x84")],
                Reason::COMPRESSION_ERROR,
            ),
            (
                "a table that changes inside a block",
                vec![headers(WHOLE, 1, b"\x82\x20\x86\x84")],
                Reason::COMPRESSION_ERROR,
            ),
            (
                "the end mark in a string",
                vec![headers(WHOLE, 1, b"\x82\x86\x84\x41\x84\xff\xff\xff\xff")],
                Reason::COMPRESSION_ERROR,
            ),
            (
                "a string padded with nothing",
                vec![headers(WHOLE, 1, b"\x82\x86\x84\x41\x81\x00")],
                Reason::COMPRESSION_ERROR,
            ),
            (
                "half a reset",
                vec![headers(OPEN, 1, GET), frame(frame::RST_STREAM, 0, 1, b"ab")],
                Reason::FRAME_SIZE_ERROR,
            ),
            (
                "half a priority",
                vec![frame(frame::PRIORITY, 0, 1, b"ab")],
                Reason::FRAME_SIZE_ERROR,
            ),
            (
                "a promise",
                vec![frame(frame::PUSH_PROMISE, OPEN, 1, &[0; 4])],
                Reason::PROTOCOL_ERROR,
            ),
            (
                "a goodbye of a stream",
                vec![frame(frame::GOAWAY, 0, 1, &[0; 8])],
                Reason::PROTOCOL_ERROR,
            ),
            (
                "a block that goes on from nothing",
                vec![frame(frame::CONTINUATION, OPEN, 1, GET)],
                Reason::PROTOCOL_ERROR,
            ),
            (
                "something inside a block",
                vec![headers(0, 1, GET), frame(frame::PING, 0, 0, b"12345678")],
                Reason::PROTOCOL_ERROR,
            ),
            (
                "another stream's block inside",
                vec![headers(0, 1, GET), frame(frame::CONTINUATION, OPEN, 3, &[])],
                Reason::PROTOCOL_ERROR,
            ),
            (
                "a block without end",
                std::iter::once(headers(0, 1, GET))
                    .chain((0..70).map(|_| frame(frame::CONTINUATION, 0, 1, &[])))
                    .collect(),
                Reason::ENHANCE_YOUR_CALM,
            ),
            (
                "more padding than there is",
                vec![headers(WHOLE | frame::PADDED, 1, b"\x09\x82")],
                Reason::PROTOCOL_ERROR,
            ),
            (
                "an index of nothing",
                vec![headers(WHOLE, 1, b"\xff\x7f")],
                Reason::COMPRESSION_ERROR,
            ),
            (
                "pings without end",
                (0..4_000)
                    .map(|_| frame(frame::PING, 0, 0, b"12345678"))
                    .collect(),
                Reason::ENHANCE_YOUR_CALM,
            ),
            (
                "empty frames without end",
                std::iter::once(headers(OPEN, 1, GET))
                    .chain((0..1_001).map(|_| frame(frame::DATA, 0, 1, &[])))
                    .collect(),
                Reason::ENHANCE_YOUR_CALM,
            ),
            (
                "requests that are taken back at once",
                (0..4)
                    .flat_map(|n| {
                        [
                            headers(WHOLE, 2 * n + 1, GET),
                            frame(frame::RST_STREAM, 0, 2 * n + 1, &[0, 0, 0, 8]),
                        ]
                    })
                    .collect(),
                Reason::ENHANCE_YOUR_CALM,
            ),
        ] {
            let frames: Vec<_> = std::iter::once(greeting()).chain(frames).collect();
            assert_eq!(answer(&mut server(), &frames).0, Some(reason), "{what}");
        }
        let first = frame(frame::PING, 0, 0, b"12345678");
        assert_eq!(
            answer(&mut server(), &[first]).0,
            Some(Reason::PROTOCOL_ERROR),
            "no settings first"
        );
    }

    #[test]
    fn what_breaks_a_streams_rules_ends_only_the_stream() {
        let request = |block: &[u8]| frame(frame::HEADERS, WHOLE, 1, block);
        let begun = |more: &[(&str, &str)], data: &[u8], flags| {
            vec![
                frame(frame::HEADERS, OPEN, 1, &with(more)),
                frame(frame::DATA, flags, 1, data),
            ]
        };
        let end = frame::END_STREAM;
        for (what, frames, reason) in [
            ("no path", vec![request(b"\x82\x86")], Reason::PROTOCOL_ERROR),
            ("no method", vec![request(b"\x86\x84")], Reason::PROTOCOL_ERROR),
            (
                "an empty path",
                vec![request(&[&b"\x82\x86"[..], &literal(":path", "")].concat())],
                Reason::PROTOCOL_ERROR,
            ),
            (
                "two paths",
                vec![request(b"\x82\x86\x84\x85")],
                Reason::PROTOCOL_ERROR,
            ),
            (
                "two schemes",
                vec![request(b"\x82\x86\x84\x87")],
                Reason::PROTOCOL_ERROR,
            ),
            (
                "two authorities",
                vec![request(&with(&[(":authority", "a"), (":authority", "a")]))],
                Reason::PROTOCOL_ERROR,
            ),
            (
                "a CONNECT with a path",
                vec![request(
                    &[
                        literal(":method", "CONNECT"),
                        literal(":authority", "a:1"),
                        literal(":path", "/"),
                    ]
                    .concat(),
                )],
                Reason::PROTOCOL_ERROR,
            ),
            (
                "an upgrade",
                vec![request(&with(&[("upgrade", "websocket")]))],
                Reason::PROTOCOL_ERROR,
            ),
            (
                "an empty name",
                vec![request(&with(&[("", "b")]))],
                Reason::PROTOCOL_ERROR,
            ),
            (
                "a name with a space",
                vec![request(&with(&[("a ", "b")]))],
                Reason::PROTOCOL_ERROR,
            ),
            (
                "a name with a colon",
                vec![request(&with(&[("a:b", "c")]))],
                Reason::PROTOCOL_ERROR,
            ),
            (
                "nothing in a value",
                vec![request(&with(&[("a", "b\0c")]))],
                Reason::PROTOCOL_ERROR,
            ),
            (
                "a path with a line end",
                vec![request(
                    &[&b"\x82\x86"[..], &literal(":path", "/ HTTP/1.1\r\na: b")].concat(),
                )],
                Reason::PROTOCOL_ERROR,
            ),
            (
                "a method with a space",
                vec![request(
                    &[&b"\x86\x84"[..], &literal(":method", "GET / ")].concat(),
                )],
                Reason::PROTOCOL_ERROR,
            ),
            (
                "a length and its double",
                vec![request(&with(&[("content-length", "0, 0")]))],
                Reason::PROTOCOL_ERROR,
            ),
            (
                "a window that doesn't grow",
                vec![
                    frame(frame::HEADERS, OPEN, 1, GET),
                    frame(frame::WINDOW_UPDATE, 0, 1, &[0; 4]),
                ],
                Reason::PROTOCOL_ERROR,
            ),
            (
                "a window that grows too much",
                vec![
                    frame(frame::HEADERS, OPEN, 1, GET),
                    frame(frame::WINDOW_UPDATE, 0, 1, &frame::WINDOW_MAX.to_be_bytes()),
                ],
                Reason::FLOW_CONTROL_ERROR,
            ),
            (
                "a head after its end",
                vec![request(GET), request(GET)],
                Reason::STREAM_CLOSED,
            ),
            ("no scheme", vec![request(b"\x82\x84")], Reason::PROTOCOL_ERROR),
            (
                "two methods",
                vec![request(b"\x82\x86\x84\x82")],
                Reason::PROTOCOL_ERROR,
            ),
            (
                "a status",
                vec![request(b"\x82\x86\x84\x88")],
                Reason::PROTOCOL_ERROR,
            ),
            (
                "a pseudo-header too late",
                vec![request(&[&with(&[("a", "b")])[3..], GET].concat())],
                Reason::PROTOCOL_ERROR,
            ),
            (
                "an unknown pseudo-header",
                vec![request(&with(&[(":a", "b")]))],
                Reason::PROTOCOL_ERROR,
            ),
            (
                "an upper-case name",
                vec![request(&with(&[("A", "b")]))],
                Reason::PROTOCOL_ERROR,
            ),
            (
                "a line end in a value",
                vec![request(&with(&[("a", "b\r\nc: d")]))],
                Reason::PROTOCOL_ERROR,
            ),
            (
                "a path that is none",
                vec![request(&[&b"\x82\x86"[..], &literal(":path", "a")].concat())],
                Reason::PROTOCOL_ERROR,
            ),
            (
                "a connection header",
                vec![request(&with(&[("connection", "close")]))],
                Reason::PROTOCOL_ERROR,
            ),
            (
                "chunks",
                vec![request(&with(&[("transfer-encoding", "chunked")]))],
                Reason::PROTOCOL_ERROR,
            ),
            (
                "another coding of trailers",
                vec![request(&with(&[("te", "gzip")]))],
                Reason::PROTOCOL_ERROR,
            ),
            (
                "a length that nothing follows",
                vec![request(&with(&[("content-length", "1")]))],
                Reason::PROTOCOL_ERROR,
            ),
            (
                "a length that is none",
                vec![request(&with(&[("content-length", "+0")]))],
                Reason::PROTOCOL_ERROR,
            ),
            (
                "two lengths",
                begun(&[("content-length", "1"), ("content-length", "2")], b"a", end),
                Reason::PROTOCOL_ERROR,
            ),
            (
                "less than its length",
                begun(&[("content-length", "2")], b"a", end),
                Reason::PROTOCOL_ERROR,
            ),
            (
                "more than its length",
                begun(&[("content-length", "2")], b"abc", 0),
                Reason::PROTOCOL_ERROR,
            ),
            (
                "more than its window",
                begun(&[], &[0; 1_001], 0),
                Reason::FLOW_CONTROL_ERROR,
            ),
            (
                "data after its end",
                vec![request(GET), frame(frame::DATA, 0, 1, b"a")],
                Reason::STREAM_CLOSED,
            ),
            (
                "trailers that don't end it",
                vec![
                    frame(frame::HEADERS, OPEN, 1, GET),
                    frame(frame::HEADERS, OPEN, 1, &literal("a", "b")),
                ],
                Reason::PROTOCOL_ERROR,
            ),
            (
                "a method in trailers",
                vec![frame(frame::HEADERS, OPEN, 1, GET), request(b"\x82")],
                Reason::PROTOCOL_ERROR,
            ),
        ] {
            let mut link = server();
            let mut frames: Vec<_> = std::iter::once(greeting()).chain(frames).collect();
            frames.push(frame(frame::HEADERS, WHOLE, 3, GET));
            assert_eq!(answer(&mut link, &frames), (None, vec![(1, reason)]), "{what}");
            // The next request is served.
            assert!(link.accepted.iter().any(|(id, _)| *id == 3), "{what}");
        }
    }

    #[test]
    fn more_streams_than_allowed_are_refused_and_long_heads_are_answered() {
        let mut link = server();
        let requests = [1, 3, 5].map(|id| frame(frame::HEADERS, WHOLE, id, GET));
        let frames: Vec<_> = std::iter::once(greeting()).chain(requests).collect();
        assert_eq!(
            answer(&mut link, &frames),
            (None, vec![(5, Reason::REFUSED_STREAM)])
        );

        let mut link = server();
        let long = "a".repeat(120);
        let long = long.as_str();
        let block = with(&[("x", long); 40]);
        let frames = [greeting(), frame(frame::HEADERS, WHOLE, 1, &block)];
        assert_eq!(answer(&mut link, &frames), (None, Vec::new()));
        assert!(link.accepted.is_empty() && link.idle());
        assert!(link.out.windows(3).any(|text| text == b"431"));
    }

    #[test]
    fn a_stream_that_was_passed_over_is_not_opened() {
        let mut link = server();
        let requests = [5, 3].map(|id| frame(frame::HEADERS, WHOLE, id, GET));
        let frames: Vec<_> = std::iter::once(greeting()).chain(requests).collect();
        assert_eq!(
            answer(&mut link, &frames),
            (None, vec![(3, Reason::STREAM_CLOSED)])
        );
        assert_eq!(link.accepted.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [5]);
    }

    #[test]
    fn a_server_says_goodbye_twice_and_takes_what_comes_in_between() {
        let mut link = server();
        answer(&mut link, &[greeting()]);
        link.out.clear();
        link.leave();
        let request = frame(frame::HEADERS, WHOLE, 1, GET);
        let late = frame(frame::HEADERS, WHOLE, 3, GET);
        answer(
            &mut link,
            &[request, frame(frame::PING, frame::ACK, 0, LEAVING), late],
        );
        assert_eq!(link.accepted.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1]);
        assert!(!link.is_over());
        link.respond(1, StatusCode::OK, &message::Head::default(), true);
        assert!(link.is_over());
    }

    /// Counts how often it is woken.
    #[derive(Default)]
    struct Woken(std::sync::atomic::AtomicUsize);

    impl std::task::Wake for Woken {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }

    #[test]
    fn a_stream_without_a_window_sleeps_until_it_grows() {
        let mut link = server();
        let window = [
            &frame::INITIAL_WINDOW_SIZE.to_be_bytes()[..],
            &(1_u32 << 20).to_be_bytes(),
        ]
        .concat();
        let request = frame(frame::HEADERS, WHOLE, 1, GET);
        answer(&mut link, &[frame(frame::SETTINGS, 0, 0, &window), request]);
        link.respond(1, StatusCode::OK, &message::Head::default(), false);
        let woken = std::sync::Arc::new(Woken::default());
        let count = || woken.0.load(std::sync::atomic::Ordering::Relaxed);
        let waker = woken.clone().into();
        let cx = Context::from_waker(&waker);
        let mut sent = 0;
        while let Poll::Ready(Ok(room)) = link.poll_room(1, 100_000, &cx) {
            link.send_data(1, &vec![0; room], false);
            sent += room;
            link.out.clear();
        }
        assert_eq!(sent, frame::WINDOW_DEFAULT as usize, "the connection's");
        link.written();
        assert_eq!(count(), 0);
        answer(
            &mut link,
            &[frame(frame::WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes())],
        );
        assert_eq!(count(), 1);
        assert!(matches!(link.poll_room(1, 9, &cx), Poll::Ready(Ok(1))));
    }

    /// What became of everything that a server was sent.
    #[derive(Debug, PartialEq)]
    struct Outcome {
        ended: Option<Reason>,
        requests: Vec<String>,
        streams: BTreeMap<u32, String>,
        answered: Vec<u8>,
    }

    fn outcome(pieces: &[&[u8]]) -> Outcome {
        let mut link = server();
        let ended = receive(&mut link, pieces.iter().copied());
        assert!(link.streams.len() <= link.options.streams_max as usize);
        let held = |stream: &Stream| stream.data.iter().map(Bytes::len).sum::<usize>();
        assert!(
            link.streams.values().all(|stream| held(stream) <= 1_000),
            "its window"
        );
        let block = link.block.as_ref().map_or(0, |block| block.bytes.len());
        assert!(block <= 2 * 4_000 + frame::SIZE_MIN);
        let told = |stream: &Stream| {
            let data = stream.data.iter().flatten().copied().collect::<Vec<_>>();
            let Stream {
                trailers,
                fault,
                heard,
                said,
                expected,
                ..
            } = stream;
            format!("{data:x?} {trailers:?} {fault:?} {heard} {said} {expected:?}")
        };
        Outcome {
            ended,
            requests: link
                .accepted
                .iter()
                .map(|accepted| format!("{accepted:?}"))
                .collect(),
            streams: link
                .streams
                .iter()
                .map(|(id, stream)| (*id, told(stream)))
                .collect(),
            answered: link.out.to_vec(),
        }
    }

    fn any_frame() -> impl Strategy<Value = Vec<u8>> {
        let bytes = |most| proptest::collection::vec(any::<u8>(), 0..most);
        let stream = || select(vec![0_u32, 1, 1, 3, 3, 5, 7, 2]);
        let block = select(vec![
            GET.to_vec(),
            with(&[("content-length", "3"), ("a", "b")]),
            with(&[("content-length", "0")]),
            literal("grpc-status", "0"),
            [
                &b"\x83\x86"[..],
                &literal(":path", "/a?b#c"),
                &literal(":authority", "web"),
            ]
            .concat(),
            vec![0x82, 0x86, 0x84, 0x40, 1, b'x', 1, b'y', 0xbe],
        ]);
        prop_oneof![
            4 => (stream(), select(vec![OPEN, WHOLE, 0]), block.clone()).prop_map(|(stream, flags, block)| frame(frame::HEADERS, flags, stream, &block)),
            2 => (stream(), select(vec![OPEN, 0]), block).prop_map(|(stream, flags, block)| frame(frame::CONTINUATION, flags, stream, &block)),
            4 => (stream(), select(vec![0, frame::END_STREAM, frame::PADDED]), bytes(400)).prop_map(|(stream, flags, data)| frame(frame::DATA, flags, stream, &data)),
            1 => (stream(), 0..70_000_u32).prop_map(|(stream, by)| frame(frame::WINDOW_UPDATE, 0, stream, &by.to_be_bytes())),
            1 => (0..8_u16, select(vec![0_u32, 1, 100, 16_384, 65_536])).prop_map(|(id, value)| frame(frame::SETTINGS, 0, 0, &[&id.to_be_bytes()[..], &value.to_be_bytes()].concat())),
            1 => stream().prop_map(|stream| frame(frame::RST_STREAM, 0, stream, &[0, 0, 0, 8])),
            1 => any::<bool>().prop_map(|ack| frame(frame::PING, u8::from(ack), 0, b"12345678")),
            1 => (0..12_u8, any::<u8>(), stream(), bytes(40)).prop_map(|(kind, flags, stream, payload)| frame(kind, flags, stream, &payload)),
        ]
    }

    /// A message with its body in pieces.
    type Message = (HeaderMap, Vec<Vec<u8>>, Option<HeaderMap>);

    fn fields() -> impl Strategy<Value = HeaderMap> {
        let field = ("[a-z][a-z0-9-]{0,9}", "[!-~]([ -~]{0,30}[!-~])?").prop_filter(
            "for one hop only",
            |(name, _)| {
                !matches!(
                    name.as_str(),
                    "te" | "upgrade" | "connection" | "keep-alive" | "content-length"
                )
            },
        );
        let field = field.prop_map(|(name, value)| {
            (
                name.parse::<HeaderName>().unwrap(),
                value.parse::<HeaderValue>().unwrap(),
            )
        });
        proptest::collection::vec(field, 0..9).prop_map(HeaderMap::from_iter)
    }

    fn message() -> impl Strategy<Value = Message> {
        let data = proptest::collection::vec(any::<u8>(), 1..200);
        let trailers =
            proptest::option::of(fields().prop_filter("there are some", |trailers| !trailers.is_empty()));
        (fields(), proptest::collection::vec(data, 0..5), trailers)
    }

    fn head(headers: &HeaderMap) -> message::Head {
        let mut response = http::Response::new(());
        *response.headers_mut() = headers.clone();
        message::Response::from(response).head
    }

    /// Writes all but the head; what there is room for at once.
    fn put_body(link: &mut Link, id: u32, (_, body, trailers): &Message) {
        let cx = Context::from_waker(Waker::noop());
        for (at, data) in body.iter().enumerate() {
            assert_eq!(link.poll_room(id, data.len(), &cx), Poll::Ready(Ok(data.len())));
            link.send_data(id, data, at + 1 == body.len() && trailers.is_none());
        }
        if let Some(trailers) = trailers {
            link.send_trailers(id, trailers);
        }
    }

    /// The body that has come, and its trailers.
    fn body_of(link: &mut Link, id: u32) -> (Vec<u8>, Option<HeaderMap>) {
        let cx = Context::from_waker(Waker::noop());
        let (mut all, mut trailers) = (Vec::new(), None);
        loop {
            match link.poll_data(id, &cx) {
                Poll::Ready(None) => return (all, trailers),
                Poll::Ready(Some(Ok(Piece::Data(data)))) => all.extend_from_slice(&data),
                Poll::Ready(Some(Ok(Piece::Trailers(found)))) => trailers = Some(found),
                other => panic!("{other:?}"),
            }
        }
    }

    /// What one side has written reaches the other.
    fn pass(from: &mut Link, to: &mut Link, skip: usize, cuts: &[Index]) {
        let (bytes, mut read) = (from.out.split(), BytesMut::new());
        for piece in pieces(&bytes[skip..], cuts) {
            read.extend_from_slice(piece);
            assert_eq!(to.received(&mut read), Ok(()));
        }
        assert!(read.is_empty());
    }

    proptest! {
        #[test]
        fn damaged_frames_are_read_alike_in_any_pieces_and_within_bounds(
            bytes in damaged(proptest::collection::vec(any_frame(), 0..20).prop_map(|frames| [greeting(), frames.concat()].concat())),
            cuts in cuts(),
        ) {
            prop_assert_eq!(outcome(&pieces(&bytes, &cuts)), outcome(&[&bytes]));
        }

        #[test]
        fn messages_cross_a_link_as_they_are_however_they_arrive(
            asked in proptest::collection::vec((select(vec!["GET", "POST", "PURGE"]), "/[a-z]{0,9}(\\?[a-z=&]{0,9})?", message()), 1..3),
            answers in proptest::collection::vec((select(vec![200_u16, 201, 404, 503]), message()), 3),
            cuts in cuts(),
        ) {
            let options = Options { stream_window: 2_000, send_buffer_max: 1 << 16, ..server().options };
            let (mut client, mut server) = (Link::new(Side::Client, options), Link::new(Side::Server, options));
            let mut ids = Vec::new();
            for (method, path, message) in &asked {
                let mut request = http::Request::builder().method(*method).uri(format!("http://web.ns{path}")).version(Version::HTTP_2).body(()).unwrap();
                request.headers_mut().extend(message.0.clone());
                let request = Request::from(request);
                let id = client.open(&request, message.1.is_empty() && message.2.is_none());
                put_body(&mut client, id, message);
                ids.push((id, request));
            }
            pass(&mut client, &mut server, frame::PREFACE.len(), &cuts);
            for ((id, request), (.., message)) in ids.iter().zip(&asked) {
                let (accepted, seen) = server.next_accepted().unwrap();
                prop_assert_eq!((accepted, &seen.method, seen.version), (*id, &request.method, Version::HTTP_2));
                prop_assert_eq!(&seen.head, &request.head);
                prop_assert_eq!(body_of(&mut server, *id), (message.1.concat(), message.2.clone()));
            }
            for ((id, _), (status, message)) in ids.iter().zip(&answers) {
                let status = StatusCode::from_u16(*status).unwrap();
                server.respond(*id, status, &head(&message.0), message.1.is_empty() && message.2.is_none());
                put_body(&mut server, *id, message);
            }
            pass(&mut server, &mut client, 0, &cuts);
            for ((id, _), (status, message)) in ids.iter().zip(&answers) {
                let Poll::Ready(Ok(answer)) = client.poll_answer(*id, &Context::from_waker(Waker::noop())) else {
                    panic!("no answer");
                };
                prop_assert_eq!((answer.status.as_u16(), &answer.head), (*status, &head(&message.0)));
                prop_assert_eq!(body_of(&mut client, *id), (message.1.concat(), message.2.clone()));
            }
        }
    }
}
