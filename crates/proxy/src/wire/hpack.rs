//! Header compression for HTTP/2 (RFC 7541): fields to bytes and back, each side with its table.
//!
//! Between two proxies the same headers come again and again, so a request's block is a few bytes. The decoder's table
//! holds fields ready to be used: what was parsed once is only referred to. What might be a secret never enters a
//! table: requests of different clients share it. Knows no frames and not what fields mean.

use std::collections::VecDeque;
use std::hash::Hasher as _;
use std::rc::Rc;

use bytes::{BufMut as _, BytesMut};
use http::uri::{Authority, Scheme};
use http::{Method, StatusCode};

use super::huffman;
use crate::message::{self, Written};
use crate::quick::Hash;

/// Of either table, whatever the peer would allow.
pub(super) const TABLE_MAX: usize = 4_096;
/// What an entry costs beside its text, by definition.
const ENTRY: usize = 32;
/// Larger values are not worth a place in the table.
const INDEXED_MAX: usize = 512;
/// No string may be longer, whatever the list's limit.
const STRING_MAX: usize = 1 << 20;
/// What is kept of the memory that strings are read into.
const SCRATCH_MAX: usize = 1 << 10;

/// The block breaks the rules; the tables no longer agree, and the connection can't go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a header block cannot be read")]
pub(super) struct Unreadable;

/// What a field is, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Method,
    Scheme,
    Authority,
    Path,
    Status,
    Header,
    /// Not one that we know, or not one at all.
    Wrong,
}

impl Kind {
    fn of(name: &[u8]) -> Self {
        match name {
            b":method" => Self::Method,
            b":scheme" => Self::Scheme,
            b":authority" => Self::Authority,
            b":path" => Self::Path,
            b":status" => Self::Status,
            name if message::is_name(name) => Self::Header,
            _ => Self::Wrong,
        }
    }

    /// The value as it is passed on, if it may be one.
    fn checked(self, value: &[u8]) -> Option<&[u8]> {
        let good = match self {
            Self::Method => Method::from_bytes(value).is_ok(),
            Self::Scheme => Scheme::try_from(value).is_ok(),
            Self::Authority => Authority::try_from(value).is_ok(),
            Self::Path if value.starts_with(b"/") || value == b"*" => {
                return message::path(value).map(str::as_bytes);
            }
            Self::Status => StatusCode::from_bytes(value).is_ok(),
            Self::Path | Self::Header | Self::Wrong => false,
        };
        good.then_some(value)
    }
}

/// One field.
#[derive(Clone, Copy, Debug)]
pub(super) enum Field<'a> {
    Header(&'a Written),
    /// A pseudo-header with its value, as text.
    Pseudo(Kind, &'a str),
    /// A message with it is malformed. It has its place in the table all the same.
    Malformed,
}

/// What concerns one HTTP/1 connection only (RFC 9113, 8.2.2).
pub(super) const CONNECTION_SPECIFIC: [&str; 6] = [
    "connection",
    "transfer-encoding",
    "upgrade",
    "te",
    "keep-alive",
    "proxy-connection",
];

/// A message with such a field is malformed, but that trailers may be asked for.
pub(super) fn connection_specific(name: &[u8], value: &[u8]) -> bool {
    match name {
        b"te" => !value.eq_ignore_ascii_case(b"trailers"),
        name => CONNECTION_SPECIFIC.iter().any(|known| known.as_bytes() == name),
    }
}

/// A field as it is kept.
#[derive(Debug)]
enum Owned {
    Header(Written),
    Pseudo(Kind, Box<str>),
    Malformed(Box<[u8]>),
}

impl Owned {
    fn new(name: &[u8], value: &[u8]) -> Self {
        let kind = Kind::of(name);
        let parsed = match (kind, kind.checked(value)) {
            (Kind::Header, _) if connection_specific(name, value) => None,
            (Kind::Header, _) => Written::new(name, value).map(Self::Header),
            (_, Some(value)) => std::str::from_utf8(value)
                .ok()
                .map(|value| Self::Pseudo(kind, value.into())),
            (_, None) => None,
        };
        parsed.unwrap_or_else(|| Self::Malformed(name.into()))
    }

    fn field(&self) -> Field<'_> {
        match self {
            Self::Header(written) => Field::Header(written),
            Self::Pseudo(kind, value) => Field::Pseudo(*kind, value),
            Self::Malformed(_) => Field::Malformed,
        }
    }

    /// As it was written.
    fn name(&self) -> &[u8] {
        match self {
            Self::Header(written) => written.name(),
            Self::Pseudo(kind, _) => match kind {
                Kind::Method => b":method",
                Kind::Scheme => b":scheme",
                Kind::Authority => b":authority",
                Kind::Path => b":path",
                Kind::Status => b":status",
                Kind::Header | Kind::Wrong => b"",
            },
            Self::Malformed(name) => name,
        }
    }
}

#[derive(Debug)]
struct Known {
    field: Owned,
    /// Of what was written: both sides must count alike, even what is malformed, or their tables no longer agree.
    size: usize,
}

thread_local! {
    /// [`STATIC`], ready to be used.
    static FIXED: Rc<[Known]> = STATIC
        .iter()
        .map(|(name, value)| Known {
            field: Owned::new(name.as_bytes(), value.as_bytes()),
            size: name.len() + value.len() + ENTRY,
        })
        .collect();
}

/// Reads blocks.
#[derive(Debug)]
pub(super) struct Decoder {
    /// The newest first.
    table: VecDeque<Rc<Known>>,
    size: usize,
    max: usize,
    fixed: Rc<[Known]>,
    /// Literals as they came, and what they were: some servers write the same ones again and again, whether or not the
    /// table holds them already, and to decode and check them cost a third of what such an answer cost us.
    again: Vec<Again>,
    /// The place that is looked at next when one is needed.
    hand: usize,
    /// Where literals are put together.
    name: Vec<u8>,
    value: Vec<u8>,
}

impl Decoder {
    pub(super) fn new() -> Self {
        Self {
            table: VecDeque::new(),
            size: 0,
            max: TABLE_MAX,
            fixed: FIXED.with(Rc::clone),
            again: Vec::new(),
            hand: 0,
            name: Vec::new(),
            value: Vec::new(),
        }
    }

    /// Hands over each field with its size.
    pub(super) fn decode(
        &mut self,
        mut block: &[u8],
        mut each: impl FnMut(Field<'_>, usize),
    ) -> Result<(), Unreadable> {
        let mut first = true;
        while let Some(byte) = block.first().copied() {
            if byte & 0x80 != 0 {
                let known = self.at(int(&mut block, 7)?)?;
                each(known.field.field(), known.size);
            } else if byte & 0xe0 == 0x20 {
                let max = int(&mut block, 5)?;
                if !first || max > TABLE_MAX {
                    return Err(Unreadable);
                }
                self.max = max;
                self.shrink(0);
                continue;
            } else {
                let indexed = byte & 0xc0 == 0x40;
                let literal = repeatable(block, indexed);
                if let Some(known) = literal.and_then(|literal| self.seen_before(literal)) {
                    each(known.field.field(), known.size);
                    block = block.get(literal.map_or(0, <[u8]>::len)..).unwrap_or_default();
                    first = false;
                    if indexed {
                        self.enter(known);
                    }
                    continue;
                }
                let index = int(&mut block, if indexed { 6 } else { 4 })?;
                let (mut name, mut value) = (std::mem::take(&mut self.name), std::mem::take(&mut self.value));
                match index {
                    0 => string(&mut block, &mut name)?,
                    index => {
                        name.clear();
                        name.extend_from_slice(self.at(index)?.field.name());
                    }
                }
                string(&mut block, &mut value)?;
                let size = name.len() + value.len() + ENTRY;
                let field = Owned::new(&name, &value);
                if name.capacity().max(value.capacity()) <= SCRATCH_MAX {
                    (self.name, self.value) = (name, value);
                }
                each(field.field(), size);
                let known = Rc::new(Known { field, size });
                if let Some(literal) = literal {
                    self.remember(literal, known.clone());
                }
                if indexed {
                    self.enter(known);
                }
            }
            first = false;
        }
        Ok(())
    }

    fn enter(&mut self, known: Rc<Known>) {
        self.shrink(known.size);
        if known.size <= self.max {
            self.size += known.size;
            self.table.push_front(known);
        }
    }

    /// What these bytes meant when they last came.
    fn seen_before(&mut self, literal: &[u8]) -> Option<Rc<Known>> {
        let hash = hash(literal, &[]);
        let is = |again: &&mut Again| again.hash == hash && again.bytes == literal;
        let again = self.again.iter_mut().find(is)?;
        again.used = true;
        Some(again.known.clone())
    }

    /// Takes the place of one that didn't come again meanwhile.
    fn remember(&mut self, literal: &[u8], known: Rc<Known>) {
        let new = |mut bytes: Vec<u8>| {
            bytes.clear();
            bytes.extend_from_slice(literal);
            Again {
                hash: hash(literal, &[]),
                bytes,
                known,
                used: false,
            }
        };
        if self.again.len() < AGAIN {
            return self.again.push(new(Vec::new()));
        }
        while let Some(again) = self.again.get_mut(self.hand % AGAIN) {
            self.hand += 1;
            if !std::mem::take(&mut again.used) {
                *again = new(std::mem::take(&mut again.bytes));
                return;
            }
        }
    }

    /// Makes room for so much.
    fn shrink(&mut self, room: usize) {
        while self.size + room > self.max {
            let Some(known) = self.table.pop_back() else {
                break;
            };
            self.size -= known.size;
        }
    }

    fn at(&self, index: usize) -> Result<&Known, Unreadable> {
        let known = match index.checked_sub(STATIC.len() + 1) {
            Some(dynamic) => self.table.get(dynamic).map(|known| &**known),
            None => index.checked_sub(1).and_then(|at| self.fixed.get(at)),
        };
        known.ok_or(Unreadable)
    }
}

/// Places for literals that may come again, and how long they may be.
const AGAIN: usize = 16;
const AGAIN_MAX: usize = 128;

/// A literal that came, as its bytes and as what it is.
#[derive(Debug)]
struct Again {
    hash: u64,
    bytes: Vec<u8>,
    known: Rc<Known>,
    /// Since the hand was here.
    used: bool,
}

/// A literal at the beginning of a block, if its bytes alone say what it is, and it is none that must not be kept.
fn repeatable(block: &[u8], indexed: bool) -> Option<&[u8]> {
    if block.first()? & 0x10 != 0 && !indexed {
        return None;
    }
    let mut rest = block;
    let index = int(&mut rest, if indexed { 6 } else { 4 }).ok()?;
    let strings = match index {
        0 => 2,
        index if index <= STATIC.len() => 1,
        _ => return None,
    };
    for _ in 0..strings {
        let length = int(&mut rest, 7).ok()?;
        rest = rest.get(length..)?;
    }
    let length = block.len() - rest.len();
    block.get(..length).filter(|_| length <= AGAIN_MAX)
}

fn string(block: &mut &[u8], out: &mut Vec<u8>) -> Result<(), Unreadable> {
    let coded = block.first().is_some_and(|byte| byte & 0x80 != 0);
    let length = int(block, 7)?;
    if length > STRING_MAX {
        return Err(Unreadable);
    }
    let (text, rest) = block.split_at_checked(length).ok_or(Unreadable)?;
    *block = rest;
    out.clear();
    match coded {
        true => huffman::decode(text, out).ok_or(Unreadable)?,
        false => out.extend_from_slice(text),
    }
    Ok(())
}

fn int(block: &mut &[u8], prefix: u8) -> Result<usize, Unreadable> {
    let (first, mut rest) = block.split_first().ok_or(Unreadable)?;
    let mask = (1_u8 << prefix) - 1;
    let mut value = usize::from(first & mask);
    if first & mask == mask {
        let mut shift = 0;
        loop {
            let (byte, after) = rest.split_first().ok_or(Unreadable)?;
            rest = after;
            // Four bytes hold more than anything that we accept.
            if shift > 21 {
                return Err(Unreadable);
            }
            value += usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
    }
    *block = rest;
    Ok(value)
}

fn put_int(out: &mut BytesMut, prefix: u8, flags: u8, value: usize) {
    let mask = (1_usize << prefix) - 1;
    if value < mask {
        return out.put_u8(flags | value as u8);
    }
    out.put_u8(flags | mask as u8);
    let mut rest = value - mask;
    while rest >= 0x80 {
        out.put_u8((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    out.put_u8(rest as u8);
}

fn put_string(out: &mut BytesMut, text: &[u8]) {
    put_int(out, 7, 0, text.len());
    out.put_slice(text);
}

#[derive(Debug)]
struct Sent {
    hash: u64,
    name_len: usize,
    /// Name and value.
    text: Box<[u8]>,
}

impl Sent {
    fn is(&self, name: &[u8], value: &[u8]) -> bool {
        self.name_len == name.len()
            && self.text.len() == name.len() + value.len()
            && self.text.starts_with(name)
            && self.text.ends_with(value)
    }
}

/// How many fields are remembered as having been sent once.
const SEEN: usize = 64;
/// A table has at most 128 fields, and mostly a dozen.
const LATEST: usize = 64;
const LAST: usize = 24;

/// Writes blocks.
#[derive(Debug)]
pub(super) struct Encoder {
    /// The newest first.
    table: VecDeque<Sent>,
    size: usize,
    max: usize,
    /// The peer wants a smaller table, which the next block has to say.
    resized: bool,
    /// How many have ever entered the table, and for what hashes begin with which one was the latest of them.
    entered: usize,
    latest: [usize; LATEST],
    /// Which ones the fields of the last block were, in order, and the place of the next field: what a message says at a
    /// place is mostly what the one before said there, and isn't hashed then.
    last: [usize; LAST],
    at: usize,
    /// A field enters the table when it comes a second time: what never repeats would push out what does.
    seen: [u64; SEEN],
    seen_at: usize,
}

impl Encoder {
    pub(super) fn new() -> Self {
        Self {
            table: VecDeque::new(),
            size: 0,
            max: TABLE_MAX,
            resized: false,
            entered: 0,
            latest: [0; LATEST],
            last: [0; LAST],
            at: 0,
            seen: [0; SEEN],
            seen_at: 0,
        }
    }

    /// What the peer allows.
    pub(super) fn resize(&mut self, max: usize) {
        let max = max.min(TABLE_MAX);
        if max != self.max {
            self.max = max;
            self.resized = true;
            self.shrink(0);
        }
    }

    fn shrink(&mut self, room: usize) {
        while self.size + room > self.max {
            let Some(sent) = self.table.pop_back() else { break };
            self.size -= sent.text.len() + ENTRY;
        }
    }

    /// Before the first field of a block.
    pub(super) fn begin(&mut self, out: &mut BytesMut) {
        self.at = 0;
        if std::mem::take(&mut self.resized) {
            put_int(out, 5, 0x20, self.max);
        }
    }

    pub(super) fn method(&mut self, method: &Method, out: &mut BytesMut) {
        match *method {
            Method::GET => out.put_u8(0x82),
            Method::POST => out.put_u8(0x83),
            _ => self.field(b":method", Some(2), method.as_str().as_bytes(), out),
        }
    }

    pub(super) fn scheme(&mut self, scheme: &str, out: &mut BytesMut) {
        match scheme {
            "http" => out.put_u8(0x86),
            "https" => out.put_u8(0x87),
            other => self.field(b":scheme", Some(6), other.as_bytes(), out),
        }
    }

    pub(super) fn authority(&mut self, authority: &str, out: &mut BytesMut) {
        self.field(b":authority", Some(1), authority.as_bytes(), out);
    }

    pub(super) fn path(&mut self, path: &str, out: &mut BytesMut) {
        match path {
            "/" => out.put_u8(0x84),
            path => self.field(b":path", Some(4), path.as_bytes(), out),
        }
    }

    pub(super) fn status(&mut self, status: StatusCode, out: &mut BytesMut) {
        match status.as_u16() {
            200 => out.put_u8(0x88),
            204 => out.put_u8(0x89),
            _ => self.field(b":status", Some(8), status.as_str().as_bytes(), out),
        }
    }

    /// `secret`: nobody else on the connection may be able to guess the value.
    pub(super) fn header(&mut self, name: &[u8], value: &[u8], secret: bool, out: &mut BytesMut) {
        let secret = secret || message::is_secret(name);
        if !secret && value.len() <= INDEXED_MAX {
            return self.field(name, None, value, out);
        }
        let flags = if secret { 0x10 } else { 0 };
        match static_name(name) {
            Some(index) => put_int(out, 4, flags, index),
            None => {
                out.put_u8(flags);
                put_string(out, name);
            }
        }
        put_string(out, value);
    }

    /// Where in the table a field is. Nearly always it is the latest one with such a hash.
    fn position(&self, hash: u64, name: &[u8], value: &[u8]) -> Option<usize> {
        let is = |sent: &Sent| sent.hash == hash && sent.is(name, value);
        let latest = self.entered - self.latest[hash as usize % LATEST];
        match self.table.get(latest).is_some_and(is) {
            true => Some(latest),
            false => self.table.iter().position(is),
        }
    }

    fn field(&mut self, name: &[u8], index: Option<usize>, value: &[u8], out: &mut BytesMut) {
        let place = self.at % LAST;
        self.at += 1;
        let last = self.entered - self.last[place];
        if self.table.get(last).is_some_and(|sent| sent.is(name, value)) {
            return put_int(out, 7, 0x80, STATIC.len() + 1 + last);
        }
        let hash = hash(name, value);
        if let Some(known) = self.position(hash, name, value) {
            self.last[place] = self.entered - known;
            return put_int(out, 7, 0x80, STATIC.len() + 1 + known);
        }
        let size = name.len() + value.len() + ENTRY;
        let again = self.seen.contains(&hash) && size <= self.max;
        let (prefix, flags) = if again { (6, 0x40) } else { (4, 0) };
        match index.or_else(|| static_name(name)) {
            Some(index) => put_int(out, prefix, flags, index),
            None => {
                out.put_u8(flags);
                put_string(out, name);
            }
        }
        put_string(out, value);
        if again {
            self.shrink(size);
            self.size += size;
            self.entered += 1;
            self.latest[hash as usize % LATEST] = self.entered;
            self.last[place] = self.entered;
            self.table.push_front(Sent {
                hash,
                name_len: name.len(),
                text: [name, value].concat().into(),
            });
        } else {
            self.seen[self.seen_at % SEEN] = hash;
            self.seen_at = self.seen_at.wrapping_add(1);
        }
    }
}

/// Whoever finds two fields with the same one gains nothing: fields are compared.
fn hash(name: &[u8], value: &[u8]) -> u64 {
    let mut hash = Hash::default();
    hash.write_usize(name.len() << 32 ^ value.len());
    hash.write(name);
    hash.write(value);
    hash.finish()
}

fn static_name(name: &[u8]) -> Option<usize> {
    // Headers are ordered by name, after the pseudo-headers.
    let headers = STATIC.get(14..)?;
    let found = headers.binary_search_by(|(known, _)| known.as_bytes().cmp(name));
    found.ok().map(|at| at + 15)
}

/// RFC 7541, appendix A; the first is number 1.
const STATIC: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

/// The decoder of the RFC, beside which ours is held.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) mod model {
    use http::uri::PathAndQuery;
    use http::{HeaderName, HeaderValue};

    use super::*;

    type Pair = (Vec<u8>, Vec<u8>);

    /// The decoder of the RFC, with text for fields and no haste.
    pub(in crate::wire) struct Model {
        table: VecDeque<Pair>,
        max: usize,
    }

    impl Model {
        pub(in crate::wire) fn new() -> Self {
            Self {
                table: VecDeque::new(),
                max: TABLE_MAX,
            }
        }

        fn decode(&mut self, mut block: &[u8]) -> Result<Vec<Pair>, Unreadable> {
            let mut all = Vec::new();
            while let Some(byte) = block.first().copied() {
                if byte & 0xe0 == 0x20 {
                    self.max = int(&mut block, 5)?;
                    if !all.is_empty() || self.max > TABLE_MAX {
                        return Err(Unreadable);
                    }
                } else if byte & 0x80 != 0 {
                    all.push(self.at(int(&mut block, 7)?)?);
                } else {
                    let indexed = byte & 0x40 != 0;
                    let name = match int(&mut block, if indexed { 6 } else { 4 })? {
                        0 => text(&mut block)?,
                        index => self.at(index)?.0,
                    };
                    let pair = (name, text(&mut block)?);
                    if indexed {
                        self.table.push_front(pair.clone());
                    }
                    all.push(pair);
                }
                while self.table.iter().map(size_of).sum::<usize>() > self.max {
                    self.table.pop_back();
                }
            }
            Ok(all)
        }

        fn at(&self, index: usize) -> Result<Pair, Unreadable> {
            let fixed = STATIC
                .iter()
                .map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec()));
            let mut all = fixed.chain(self.table.iter().cloned());
            let at = index.checked_sub(1).ok_or(Unreadable)?;
            all.nth(at).ok_or(Unreadable)
        }
    }

    fn size_of((name, value): &Pair) -> usize {
        name.len() + value.len() + 32
    }

    fn text(block: &mut &[u8]) -> Result<Vec<u8>, Unreadable> {
        let coded = block.first().is_some_and(|byte| byte & 0x80 != 0);
        let length = int(block, 7)?;
        let (text, rest) = block.split_at_checked(length).ok_or(Unreadable)?;
        *block = rest;
        let mut out = Vec::new();
        match coded {
            true => huffman::decode(text, &mut out).ok_or(Unreadable)?,
            false => out.extend_from_slice(text),
        }
        Ok(out)
    }

    /// A field that is kept.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(in crate::wire) enum Told {
        Header(Vec<u8>, Vec<u8>),
        Pseudo(Kind, String),
        Malformed,
    }

    impl From<Field<'_>> for Told {
        fn from(field: Field<'_>) -> Self {
            match field {
                Field::Header(written) => Self::Header(written.name().to_vec(), written.value().to_vec()),
                Field::Pseudo(kind, value) => Self::Pseudo(kind, value.to_owned()),
                Field::Malformed => Self::Malformed,
            }
        }
    }

    /// Does a field say what was written, as the library understands it?
    fn is(field: &Told, (name, value): &Pair) -> bool {
        let pseudo = |kind: &Kind| match kind {
            Kind::Method => name == b":method",
            Kind::Scheme => name == b":scheme",
            Kind::Authority => name == b":authority",
            Kind::Path => name == b":path",
            Kind::Status => name == b":status",
            Kind::Header => HeaderName::from_lowercase(name).is_ok(),
            Kind::Wrong => HeaderName::from_lowercase(name).is_err(),
        };
        let said = |kind: Kind| match kind {
            Kind::Method => Some(Method::from_bytes(value).ok()?.as_str().to_owned()),
            Kind::Scheme => Some(Scheme::try_from(&value[..]).ok()?.as_str().to_owned()),
            Kind::Authority => Some(Authority::try_from(&value[..]).ok()?.as_str().to_owned()),
            Kind::Path if value.starts_with(b"/") || value == b"*" => {
                Some(PathAndQuery::try_from(&value[..]).ok()?.as_str().to_owned())
            }
            Kind::Status => Some(StatusCode::from_bytes(value).ok()?.as_str().to_owned()),
            Kind::Header if connection_specific(name, value) => None,
            Kind::Header if HeaderValue::from_bytes(value).is_ok() => Some(String::new()),
            Kind::Header | Kind::Path | Kind::Wrong => None,
        };
        match field {
            Told::Header(read, text) => {
                (read, text) == (name, value) && pseudo(&Kind::Header) && said(Kind::Header).is_some()
            }
            Told::Pseudo(kind, text) => pseudo(kind) && said(*kind).as_ref() == Some(text),
            Told::Malformed => said(Kind::of(name)).is_none(),
        }
    }

    /// Reads a block with both, which must see the same and keep the same.
    pub(in crate::wire) fn read_alike(
        decoder: &mut Decoder,
        model: &mut Model,
        block: &[u8],
    ) -> Option<Vec<Told>> {
        let mut read = Vec::new();
        let ended = decoder.decode(block, |field, size| read.push((Told::from(field), size)));
        let expected = model.decode(block);
        assert_eq!(ended.is_ok(), expected.is_ok());
        let expected = expected.ok()?;
        assert_eq!(read.len(), expected.len());
        for ((field, size), pair) in read.iter().zip(&expected) {
            assert!(is(field, pair), "{field:?} {pair:?}");
            assert_eq!(*size, size_of(pair));
        }
        // Where they count differently, one would drop what the other still refers to.
        assert_eq!(decoder.size, model.table.iter().map(size_of).sum::<usize>());
        assert_eq!(decoder.table.len(), model.table.len());
        assert!(decoder.size <= TABLE_MAX);
        Some(read.into_iter().map(|(field, _)| field).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::model::{Model, Told, read_alike};
    use super::*;
    use crate::damage::damaged;
    use proptest::prelude::*;
    use proptest::sample::select;

    fn fields(decoder: &mut Decoder, block: &[u8]) -> Result<Vec<Told>, Unreadable> {
        let mut all = Vec::new();
        decoder.decode(block, |field, _| all.push(field.into()))?;
        Ok(all)
    }

    fn header(name: &str, value: &str) -> Told {
        Told::Header(name.into(), value.into())
    }

    fn request(authority: &str, more: &[Told]) -> Vec<Told> {
        let mut all = vec![
            Told::Pseudo(Kind::Method, "GET".into()),
            Told::Pseudo(Kind::Scheme, "http".into()),
            Told::Pseudo(Kind::Path, "/".into()),
            Told::Pseudo(Kind::Authority, authority.into()),
        ];
        all.extend_from_slice(more);
        all
    }

    #[test]
    fn the_requests_of_the_rfc_are_read() {
        // RFC 7541, C.4: three requests of one connection, Huffman coded.
        let mut decoder = Decoder::new();
        let first = b"\x82\x86\x84\x41\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff";
        let second = b"\x82\x86\x84\xbe\x58\x86\xa8\xeb\x10\x64\x9c\xbf";
        assert_eq!(fields(&mut decoder, first), Ok(request("www.example.com", &[])));
        assert_eq!(
            fields(&mut decoder, second),
            Ok(request("www.example.com", &[header("cache-control", "no-cache")]))
        );
        let third = b"\x82\x87\x85\xbf\x40\x88\x25\xa8\x49\xe9\x5b\xa9\x7d\x7f\x89\x25\xa8\x49\xe9\x5b\xb8\xe8\xb4\xbf";
        let third = fields(&mut decoder, third).unwrap();
        assert_eq!(third.last(), Some(&header("custom-key", "custom-value")));
        assert_eq!(decoder.size, 164);
    }

    #[test]
    fn what_breaks_the_rules_is_refused() {
        for block in [
            &b"\x80"[..],
            b"\xc0",
            b"\x41\x05abc",
            b"\x82\x3f\xe1\x1f",
            b"\x3f\xff\xff\xff\xff\x0f",
            b"\xff\xff\xff\xff\xff\xff",
        ] {
            assert_eq!(fields(&mut Decoder::new(), block), Err(Unreadable), "{block:x?}");
        }
    }

    #[test]
    fn a_malformed_field_is_told_and_keeps_its_place() {
        let mut decoder = Decoder::new();
        let block = b"\x40\x03X-Y\x01z\x44\x03foo\xbf";
        assert_eq!(
            fields(&mut decoder, block),
            Ok(vec![Told::Malformed, Told::Malformed, Told::Malformed])
        );
    }

    #[test]
    fn literals_that_come_again_are_known_until_others_take_their_places() {
        let mut decoder = Decoder::new();
        let literal = |flags: u8, value: &str| {
            let mut out = BytesMut::new();
            out.put_u8(flags);
            put_string(&mut out, b"x-name");
            put_string(&mut out, value.as_bytes());
            out
        };
        for value in ["same"; 3] {
            for flags in [0, 0x40, 0x10] {
                let read = fields(&mut decoder, &literal(flags, value));
                assert_eq!(read, Ok(vec![header("x-name", value)]));
            }
        }
        // One for each form, but for what must not be kept.
        assert_eq!(decoder.again.len(), 2);
        assert_eq!((decoder.table.len(), decoder.size), (3, 3 * (6 + 4 + ENTRY)));
        for at in 0..100 {
            let other = at.to_string();
            for value in [&*other, "same"] {
                let read = fields(&mut decoder, &literal(0, value));
                assert_eq!(read, Ok(vec![header("x-name", value)]));
            }
        }
        assert_eq!(decoder.again.len(), AGAIN);
        let kept = decoder
            .again
            .iter()
            .filter(|again| again.bytes.ends_with(b"same"));
        assert_eq!(kept.filter(|again| again.bytes[0] == 0).count(), 1);
    }

    #[test]
    fn repeated_requests_become_a_few_bytes_and_secrets_stay_out_of_the_table() {
        let mut encoder = Encoder::new();
        let mut lengths = Vec::new();
        for _ in 0..3 {
            let mut out = BytesMut::new();
            encoder.method(&Method::GET, &mut out);
            encoder.path("/hello", &mut out);
            encoder.header(b"accept", b"*/*", false, &mut out);
            encoder.header(b"authorization", b"Bearer of a secret", false, &mut out);
            lengths.push(out.len());
        }
        assert_eq!(lengths, [42, 42, 1 + 1 + 1 + 21]);
        assert!(encoder.table.iter().all(|sent| !sent.text.ends_with(b"secret")));
    }

    #[test]
    fn static_names_are_found() {
        for (index, (name, _)) in STATIC.iter().enumerate().skip(14) {
            // `accept` comes after `accept-ranges` in the RFC, and isn't found: it costs its name once.
            let found = static_name(name.as_bytes());
            assert!(found.is_none() || found == Some(index + 1), "{name}");
        }
        assert_eq!(static_name(b"user-agent"), Some(58));
    }

    const NAMES: [&str; 9] = [
        "a",
        "x-long-name",
        "content-type",
        ":path",
        ":method",
        ":status",
        ":protocol",
        "X-Upper",
        "",
    ];

    /// Fields in every form, some in tables, and changes of the table's size in front.
    fn block() -> impl Strategy<Value = Vec<u8>> {
        let name = select(&NAMES[..]);
        let value = prop_oneof![
            "[ -~]{0,40}",
            "/[a-z#?]{0,9}",
            "[1-5][0-9]{2}",
            "b{200,700}",
            // What comes again is recognised.
            "(again|more|200)",
        ];
        // A name of its own, one of the RFC's, or one that came shortly before.
        let index = prop_oneof![3 => Just(0_usize), 1 => 1..62_usize, 3 => 62..65_usize];
        let resize = proptest::option::weighted(0.2, 0..TABLE_MAX + 2);
        let fields = proptest::collection::vec((0..4_usize, index, name, value), 0..12);
        (resize, fields).prop_map(|(resize, fields)| {
            let mut out = BytesMut::new();
            if let Some(max) = resize {
                put_int(&mut out, 5, 0x20, max);
            }
            for (form, index, name, value) in fields {
                let (prefix, flags) = [(7, 0x80), (6, 0x40), (4, 0), (4, 0x10)][form];
                let index = if form == 0 { index.max(1) } else { index };
                put_int(&mut out, prefix, flags, index);
                if form > 0 {
                    if index == 0 {
                        put_string(&mut out, name.as_bytes());
                    }
                    put_string(&mut out, value.as_bytes());
                }
            }
            out.to_vec()
        })
    }

    proptest! {
        #[test]
        fn what_one_side_writes_the_other_reads(
            values in proptest::collection::vec((0usize..12, "[ -~]{0,40}"), 1..400), resize in proptest::option::of(0usize..5_000),
        ) {
            let names = ["a", "content-type", "user-agent", "cookie", "x-request-id", "grpc-timeout"];
            let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new());
            for (at, block) in values.chunks(5).enumerate() {
                if let (3, Some(max)) = (at, resize) {
                    encoder.resize(max);
                }
                let mut out = BytesMut::new();
                encoder.begin(&mut out);
                let mut sent = Vec::new();
                for (name, value) in block {
                    // Half of them repeat.
                    let value = if *name % 2 == 0 { "again" } else { value.trim() };
                    let name = names[name / 2];
                    encoder.header(name.as_bytes(), value.as_bytes(), false, &mut out);
                    sent.push(header(name, value));
                }
                prop_assert_eq!(fields(&mut decoder, &out), Ok(sent));
            }
        }

        #[test]
        fn any_blocks_are_read_as_the_rfc_says(blocks in proptest::collection::vec(damaged(block()), 1..5)) {
            let (mut decoder, mut model) = (Decoder::new(), Model::new());
            for block in &blocks {
                if read_alike(&mut decoder, &mut model, block).is_none() {
                    break;
                }
            }
        }
    }
}
