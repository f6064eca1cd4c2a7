//! Header compression for HTTP/2 (RFC 7541): fields to bytes and back, each side with its table.
//!
//! Between two proxies the same headers come again and again, so a request's block is a few bytes. The decoder's table
//! holds fields ready to be used: what was parsed once is only referred to. What might be a secret never enters a
//! table: requests of different clients share it. Knows no frames and not what fields mean.

use std::collections::VecDeque;

use bytes::{BufMut as _, Bytes, BytesMut};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderName, HeaderValue, Method, StatusCode, header};

use super::huffman;

/// Of either table, whatever the peer would allow.
pub(super) const TABLE_MAX: usize = 4_096;
/// What an entry costs beside its text, by definition.
const ENTRY: usize = 32;
/// Larger values are not worth a place in the table.
const INDEXED_MAX: usize = 512;
/// No string may be longer, whatever the list's limit.
const STRING_MAX: usize = 1 << 20;

/// The block breaks the rules; the tables no longer agree, and the connection can't go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a header block cannot be read")]
pub(super) struct Unreadable;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Name {
    Method,
    Scheme,
    Authority,
    Path,
    Status,
    Header(HeaderName),
    /// Not one that we know, or not one at all.
    Wrong,
}

/// One field, parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Field {
    Method(Method),
    Scheme(Scheme),
    Authority(Authority),
    Path(PathAndQuery),
    Status(StatusCode),
    Header(HeaderName, HeaderValue),
    /// A message with it is malformed. It has its place in the table all the same.
    Malformed(Name),
}

impl Field {
    fn new(name: Name, value: Bytes) -> Self {
        let parsed = match &name {
            Name::Method => Method::from_bytes(&value).ok().map(Self::Method),
            Name::Scheme => Scheme::try_from(&*value).ok().map(Self::Scheme),
            Name::Authority => Authority::from_maybe_shared(value).ok().map(Self::Authority),
            Name::Path if value.starts_with(b"/") || *value == *b"*" => {
                PathAndQuery::from_maybe_shared(value).ok().map(Self::Path)
            }
            Name::Status => StatusCode::from_bytes(&value).ok().map(Self::Status),
            Name::Header(header) => HeaderValue::from_maybe_shared(value)
                .ok()
                .map(|value| Self::Header(header.clone(), value)),
            Name::Path | Name::Wrong => None,
        };
        parsed.unwrap_or(Self::Malformed(name))
    }

    fn name(&self) -> Name {
        match self {
            Self::Method(_) => Name::Method,
            Self::Scheme(_) => Name::Scheme,
            Self::Authority(_) => Name::Authority,
            Self::Path(_) => Name::Path,
            Self::Status(_) => Name::Status,
            Self::Header(name, _) => Name::Header(name.clone()),
            Self::Malformed(name) => name.clone(),
        }
    }
}

#[derive(Debug)]
struct Known {
    field: Field,
    /// As it was written: both sides must count alike, even what is malformed, or their tables no longer agree.
    name_len: usize,
    size: usize,
}

/// Reads blocks.
#[derive(Debug)]
pub(super) struct Decoder {
    /// The newest first.
    table: VecDeque<Known>,
    size: usize,
    max: usize,
    scratch: Vec<u8>,
}

impl Decoder {
    pub(super) fn new() -> Self {
        Self {
            table: VecDeque::new(),
            size: 0,
            max: TABLE_MAX,
            scratch: Vec::new(),
        }
    }

    /// Hands over each field with its size.
    pub(super) fn decode(
        &mut self,
        mut block: &[u8],
        mut each: impl FnMut(Field, usize),
    ) -> Result<(), Unreadable> {
        let mut first = true;
        while let Some(byte) = block.first().copied() {
            if byte & 0x80 != 0 {
                let (field, size) = self.at(int(&mut block, 7)?)?;
                each(field, size);
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
                let index = int(&mut block, if indexed { 6 } else { 4 })?;
                let (name, name_len) = match index {
                    0 => {
                        let text = self.string(&mut block)?;
                        let name = name(&text);
                        (name, text.len())
                    }
                    index => self.name_at(index)?,
                };
                let value = self.string(&mut block)?;
                let size = name_len + value.len() + ENTRY;
                let field = Field::new(name, value);
                if indexed {
                    self.shrink(size);
                    if size <= self.max {
                        self.size += size;
                        self.table.push_front(Known {
                            field: field.clone(),
                            name_len,
                            size,
                        });
                    }
                }
                each(field, size);
            }
            first = false;
        }
        Ok(())
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

    fn at(&self, index: usize) -> Result<(Field, usize), Unreadable> {
        match index.checked_sub(STATIC.len() + 1) {
            Some(dynamic) => {
                let known = self.table.get(dynamic).ok_or(Unreadable)?;
                Ok((known.field.clone(), known.size))
            }
            None => {
                let (name, value) = STATIC.get(index.wrapping_sub(1)).ok_or(Unreadable)?;
                let size = name.len() + value.len() + ENTRY;
                Ok((static_field(index, name, value), size))
            }
        }
    }

    fn name_at(&self, index: usize) -> Result<(Name, usize), Unreadable> {
        match index.checked_sub(STATIC.len() + 1) {
            Some(dynamic) => {
                let known = self.table.get(dynamic).ok_or(Unreadable)?;
                Ok((known.field.name(), known.name_len))
            }
            None => {
                let (text, _) = STATIC.get(index.wrapping_sub(1)).ok_or(Unreadable)?;
                Ok((name(text.as_bytes()), text.len()))
            }
        }
    }

    fn string(&mut self, block: &mut &[u8]) -> Result<Bytes, Unreadable> {
        let coded = block.first().is_some_and(|byte| byte & 0x80 != 0);
        let length = int(block, 7)?;
        if length > STRING_MAX {
            return Err(Unreadable);
        }
        let (text, rest) = block.split_at_checked(length).ok_or(Unreadable)?;
        *block = rest;
        if !coded {
            return Ok(Bytes::copy_from_slice(text));
        }
        self.scratch.clear();
        huffman::decode(text, &mut self.scratch).ok_or(Unreadable)?;
        Ok(Bytes::copy_from_slice(&self.scratch))
    }
}

fn name(text: &[u8]) -> Name {
    match text {
        b":method" => Name::Method,
        b":scheme" => Name::Scheme,
        b":authority" => Name::Authority,
        b":path" => Name::Path,
        b":status" => Name::Status,
        text => HeaderName::from_lowercase(text).map_or(Name::Wrong, Name::Header),
    }
}

/// The frequent ones without parsing.
fn static_field(index: usize, name_text: &'static str, value: &'static str) -> Field {
    match index {
        2 => Field::Method(Method::GET),
        3 => Field::Method(Method::POST),
        4 => Field::Path(PathAndQuery::from_static("/")),
        6 => Field::Scheme(Scheme::HTTP),
        7 => Field::Scheme(Scheme::HTTPS),
        8 => Field::Status(StatusCode::OK),
        _ => Field::new(name(name_text.as_bytes()), Bytes::from_static(value.as_bytes())),
    }
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

/// Writes blocks.
#[derive(Debug)]
pub(super) struct Encoder {
    /// The newest first.
    table: VecDeque<Sent>,
    size: usize,
    max: usize,
    /// The peer wants a smaller table, which the next block has to say.
    resized: bool,
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

    pub(super) fn scheme(&mut self, scheme: &Scheme, out: &mut BytesMut) {
        match scheme.as_str() {
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

    pub(super) fn header(&mut self, name: &HeaderName, value: &HeaderValue, out: &mut BytesMut) {
        let secret = value.is_sensitive()
            || matches!(
                *name,
                header::AUTHORIZATION | header::PROXY_AUTHORIZATION | header::COOKIE | header::SET_COOKIE
            );
        let name = name.as_str().as_bytes();
        if !secret && value.len() <= INDEXED_MAX {
            return self.field(name, None, value.as_bytes(), out);
        }
        let flags = if secret { 0x10 } else { 0 };
        match static_name(name) {
            Some(index) => put_int(out, 4, flags, index),
            None => {
                out.put_u8(flags);
                put_string(out, name);
            }
        }
        put_string(out, value.as_bytes());
    }

    fn field(&mut self, name: &[u8], index: Option<usize>, value: &[u8], out: &mut BytesMut) {
        let hash = hash(name, value);
        let known = self
            .table
            .iter()
            .position(|sent| sent.hash == hash && sent.is(name, value));
        if let Some(known) = known {
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
    const FACTOR: u64 = 0x517c_c1b7_2722_0a95;
    let mut hash = (name.len() as u64) << 32 ^ value.len() as u64;
    for text in [name, value] {
        let mut words = text.chunks_exact(8);
        for word in &mut words {
            let word = word.try_into().map_or(0, u64::from_le_bytes);
            hash = (hash.rotate_left(5) ^ word).wrapping_mul(FACTOR);
        }
        let rest = words
            .remainder()
            .iter()
            .fold(0, |rest, byte| rest << 8 | u64::from(*byte));
        hash = (hash.rotate_left(5) ^ rest).wrapping_mul(FACTOR);
    }
    hash
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

    /// Does a field say what was written?
    fn is(field: &Field, (name, value): &Pair) -> bool {
        let known = match field.name() {
            Name::Method => ":method",
            Name::Scheme => ":scheme",
            Name::Authority => ":authority",
            Name::Path => ":path",
            Name::Status => ":status",
            Name::Header(header) => return header.as_str().as_bytes() == name && says(field, value),
            Name::Wrong => return HeaderName::from_lowercase(name).is_err(),
        };
        known.as_bytes() == name && says(field, value)
    }

    fn says(field: &Field, value: &[u8]) -> bool {
        match field {
            Field::Method(method) => method.as_str().as_bytes() == value,
            Field::Scheme(scheme) => scheme.as_str().as_bytes() == value,
            Field::Authority(authority) => authority.as_str().as_bytes() == value,
            // A fragment is never sent on.
            Field::Path(path) => Some(path.as_str().as_bytes()) == value.split(|byte| *byte == b'#').next(),
            Field::Status(status) => status.as_str().as_bytes() == value,
            Field::Header(_, read) => read.as_bytes() == value,
            Field::Malformed(_) => true,
        }
    }

    /// Reads a block with both, which must see the same and keep the same.
    pub(in crate::wire) fn read_alike(
        decoder: &mut Decoder,
        model: &mut Model,
        block: &[u8],
    ) -> Option<Vec<Field>> {
        let mut read = Vec::new();
        let ended = decoder.decode(block, |field, size| read.push((field, size)));
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
    use super::model::{Model, read_alike};
    use super::*;
    use crate::damage::damaged;
    use proptest::prelude::*;
    use proptest::sample::select;

    fn fields(decoder: &mut Decoder, block: &[u8]) -> Result<Vec<Field>, Unreadable> {
        let mut all = Vec::new();
        decoder.decode(block, |field, _| all.push(field))?;
        Ok(all)
    }

    fn header(name: &'static str, value: &str) -> Field {
        Field::Header(HeaderName::from_static(name), value.parse().unwrap())
    }

    fn request(authority: &'static str, more: &[Field]) -> Vec<Field> {
        let mut all = vec![
            Field::Method(Method::GET),
            Field::Scheme(Scheme::HTTP),
            Field::Path(PathAndQuery::from_static("/")),
            Field::Authority(Authority::from_static(authority)),
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
            Ok(vec![
                Field::Malformed(Name::Wrong),
                Field::Malformed(Name::Path),
                Field::Malformed(Name::Wrong)
            ])
        );
    }

    #[test]
    fn repeated_requests_become_a_few_bytes_and_secrets_stay_out_of_the_table() {
        let mut encoder = Encoder::new();
        let mut lengths = Vec::new();
        for _ in 0..3 {
            let mut out = BytesMut::new();
            encoder.method(&Method::GET, &mut out);
            encoder.path("/hello", &mut out);
            encoder.header(&header::ACCEPT, &HeaderValue::from_static("*/*"), &mut out);
            let secret = HeaderValue::from_static("Bearer of a secret");
            encoder.header(&header::AUTHORIZATION, &secret, &mut out);
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
        let value = prop_oneof!["[ -~]{0,40}", "/[a-z#?]{0,9}", "[1-5][0-9]{2}", "b{200,700}"];
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
                    let field = header(names[name / 2], value);
                    let Field::Header(name, value) = &field else { unreachable!() };
                    encoder.header(name, value, &mut out);
                    sent.push(field);
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
