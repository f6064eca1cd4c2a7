//! Requests and responses while they pass: what their heads say, as text in one piece.
//!
//! A head that only passes is looked at a few times and written once. A map of headers hashes every name, and every value
//! in it has an owner of its own; here all text of a head lies in one buffer, fields are places in it, and buffers are
//! used again. That took a third off what a request costs us outside the kernel (BENCHMARKS.md). The library's types are
//! made of these, and these of them, where the library has a connection. Knows no bytes on a wire and not what fields
//! mean.

use std::cell::RefCell;
use std::fmt;

use bytes::{BufMut as _, BytesMut};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Extensions, HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version};

/// A request, or its head if there is no body.
#[derive(Clone, Debug, Default)]
pub(crate) struct Request<B> {
    pub(crate) method: Method,
    pub(crate) version: Version,
    pub(crate) head: Head,
    pub(crate) extensions: Extensions,
    pub(crate) body: B,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Response<B> {
    pub(crate) status: StatusCode,
    pub(crate) version: Version,
    pub(crate) head: Head,
    pub(crate) extensions: Extensions,
    pub(crate) body: B,
}

impl<B> Request<B> {
    pub(crate) fn map<T>(self, body: impl FnOnce(B) -> T) -> Request<T> {
        Request {
            method: self.method,
            version: self.version,
            head: self.head,
            extensions: self.extensions,
            body: body(self.body),
        }
    }

    /// What of it decides who may send it.
    pub(crate) fn bare(&self) -> Request<()> {
        Request {
            method: self.method.clone(),
            version: self.version,
            head: self.head.clone(),
            ..Request::default()
        }
    }
}

impl<B> Response<B> {
    pub(crate) fn new(version: Version, body: B) -> Self {
        Self {
            status: StatusCode::OK,
            version,
            head: Head::default(),
            extensions: Extensions::new(),
            body,
        }
    }

    pub(crate) fn map<T>(self, body: impl FnOnce(B) -> T) -> Response<T> {
        Response {
            status: self.status,
            version: self.version,
            head: self.head,
            extensions: self.extensions,
            body: body(self.body),
        }
    }
}

/// A target and fields. Names are in small letters; values are what [`HeaderValue`] may be.
#[derive(Default)]
pub(crate) struct Head(Option<Box<Text>>);

/// All text is appended; what is taken out or replaced leaves its text behind.
struct Text {
    /// Of targets.
    target: String,
    aim: Target,
    /// Of fields.
    fields: Vec<u8>,
    lines: Vec<Line>,
    /// A bit for each name that was ever here: most questions are about names that aren't.
    names: u64,
}

/// What a request is for: places in the text. It stays good as long as its head.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Target {
    scheme: Option<Span>,
    authority: Option<Span>,
    path: Option<Span>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Scheme,
    Authority,
    Path,
}

#[derive(Clone, Copy)]
struct Line {
    name: Span,
    value: Span,
    /// Of its name.
    mark: u8,
    /// Others on the connection mustn't be able to guess it.
    secret: bool,
    /// It stands there as HTTP/1 writes it: name, colon, space, value, line end.
    written: bool,
}

impl Line {
    fn is(&self, name: &[u8], fields: &[u8]) -> bool {
        self.mark == mark(name) && self.name.of(fields) == name
    }
}

/// Heads are bounded where they are read, far below 4 GiB.
#[derive(Clone, Copy, Debug)]
struct Span {
    start: u32,
    end: u32,
}

impl Span {
    fn of(self, text: &[u8]) -> &[u8] {
        text.get(self.start as usize..self.end as usize)
            .unwrap_or_default()
    }

    fn of_str(self, text: &str) -> &str {
        text.get(self.start as usize..self.end as usize)
            .unwrap_or_default()
    }
}

/// Buffers that are kept for the next heads, and their largest size; most have about 1 KiB. As many as requests were under
/// way at once on the thread, so that the allocator has nothing to do with them.
const SPARE_MAX: usize = 256;
const SPARE_SIZE_MAX: usize = 4 << 10;
/// Places for most heads.
const TARGET: usize = 64;
const FIELDS: usize = 512;
const LINES: usize = 16;

thread_local! {
    #[expect(clippy::vec_box, reason = "heads hold them by their boxes")]
    static SPARE: RefCell<Vec<Box<Text>>> = const { RefCell::new(Vec::new()) };
}

static NOTHING: Text = Text::new();

impl Text {
    const fn new() -> Self {
        Self {
            target: String::new(),
            aim: Target {
                scheme: None,
                authority: None,
                path: None,
            },
            fields: Vec::new(),
            lines: Vec::new(),
            names: 0,
        }
    }

    fn spare() -> Box<Self> {
        let spare = SPARE.try_with(|spare| spare.borrow_mut().pop());
        spare.ok().flatten().unwrap_or_else(|| {
            let mut new = Box::new(Self::new());
            new.target.reserve(TARGET);
            new.fields.reserve(FIELDS);
            new.lines.reserve(LINES);
            new
        })
    }

    fn clear(&mut self) {
        self.target.clear();
        self.aim = Target::default();
        self.fields.clear();
        self.lines.clear();
        self.names = 0;
    }

    fn copy(&self) -> Box<Self> {
        let mut copy = Self::spare();
        copy.target.push_str(&self.target);
        copy.aim = self.aim;
        copy.fields.extend_from_slice(&self.fields);
        copy.lines.extend_from_slice(&self.lines);
        copy.names = self.names;
        copy
    }

    fn aim_at(&mut self, text: &str) -> Span {
        let start = self.target.len() as u32;
        self.target.push_str(text);
        let end = self.target.len() as u32;
        Span { start, end }
    }

    fn write(&mut self, text: &[u8]) -> Span {
        let start = self.fields.len() as u32;
        self.fields.extend_from_slice(text);
        let end = self.fields.len() as u32;
        Span { start, end }
    }

    #[inline]
    fn find(&self, name: &[u8]) -> Option<usize> {
        match self.names >> mark(name) & 1 {
            0 => None,
            _ => self.search(name, mark(name)),
        }
    }

    /// Takes out a field, and all others of its name.
    #[inline(never)]
    fn take_out(&mut self, at: usize) -> Value<'_> {
        let Self { fields, lines, .. } = self;
        if at >= lines.len() {
            return Value(&[]);
        }
        let taken = lines.remove(at);
        let name = taken.name.of(fields);
        if lines
            .get(at..)
            .is_some_and(|rest| rest.iter().any(|line| line.is(name, fields)))
        {
            lines.retain(|line| !line.is(name, fields));
        }
        Value(taken.value.of(fields))
    }

    #[inline(never)]
    fn search(&self, name: &[u8], mark: u8) -> Option<usize> {
        let is = |line: &Line| line.mark == mark && line.name.of(&self.fields) == name;
        self.lines.iter().position(is)
    }
}

/// Below 64; names that are much alike have different ones. Of a name that the program says it is known when it is built.
#[inline(always)]
const fn mark(name: &[u8]) -> u8 {
    let sum = match name {
        [] => 0,
        [only] => *only as usize,
        [first, .., last] => name.len() + 5 * *first as usize + 3 * *last as usize,
    };
    sum as u8 % 64
}

impl Drop for Head {
    fn drop(&mut self) {
        let Some(mut text) = self.0.take() else { return };
        if text.fields.capacity() + text.target.capacity() > SPARE_SIZE_MAX || text.lines.capacity() > 128 {
            return;
        }
        text.clear();
        // The thread may be ending.
        let _ = SPARE.try_with(|spare| {
            let mut spare = spare.borrow_mut();
            if spare.len() < SPARE_MAX {
                spare.push(text);
            }
        });
    }
}

impl Clone for Head {
    fn clone(&self) -> Self {
        Self(self.0.as_deref().map(Text::copy))
    }
}

impl fmt::Debug for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} {:?} {:?} ",
            self.scheme(),
            self.authority(),
            self.path_and_query()
        )?;
        let fields = self.iter().map(|field| {
            let shown = match field.secret || is_secret(field.name) {
                true => b"(secret)",
                false => field.value.0,
            };
            let text = String::from_utf8_lossy;
            (text(field.name), text(shown))
        });
        f.debug_map().entries(fields).finish()
    }
}

/// A field's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Value<'a>(&'a [u8]);

impl<'a> Value<'a> {
    pub(crate) fn as_bytes(self) -> &'a [u8] {
        self.0
    }

    /// If it is plain ASCII.
    pub(crate) fn to_str(self) -> Option<&'a str> {
        let text = std::str::from_utf8(self.0).ok()?;
        text.is_ascii().then_some(text)
    }

    pub(crate) fn to_owned(self) -> Option<HeaderValue> {
        HeaderValue::from_bytes(self.0).ok()
    }
}

/// A field.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Field<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) value: Value<'a>,
    pub(crate) secret: bool,
}

/// Fields.
impl Head {
    #[inline]
    fn text(&self) -> &Text {
        self.0.as_deref().unwrap_or(&NOTHING)
    }

    #[inline]
    fn text_mut(&mut self) -> &mut Text {
        self.0.get_or_insert_with(Text::spare)
    }

    /// How many fields.
    pub(crate) fn len(&self) -> usize {
        self.text().lines.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Field<'_>> {
        let text = self.text();
        text.lines.iter().map(|line| Field {
            name: line.name.of(&text.fields),
            value: Value(line.value.of(&text.fields)),
            secret: line.secret,
        })
    }

    /// The first field of this name.
    #[inline]
    pub(crate) fn get(&self, name: impl AsRef<str>) -> Option<Value<'_>> {
        let text = self.text();
        let at = text.find(name.as_ref().as_bytes())?;
        Some(Value(text.lines.get(at)?.value.of(&text.fields)))
    }

    #[inline]
    pub(crate) fn contains(&self, name: impl AsRef<str>) -> bool {
        self.text().find(name.as_ref().as_bytes()).is_some()
    }

    #[inline]
    pub(crate) fn get_all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = Value<'a>> {
        let text = self.text();
        let mark = mark(name.as_bytes());
        let lines = match text.names >> mark & 1 {
            0 => &[],
            _ => &text.lines[..],
        };
        let named = move |line: &&Line| line.mark == mark && line.name.of(&text.fields) == name.as_bytes();
        lines
            .iter()
            .filter(named)
            .map(|line| Value(line.value.of(&text.fields)))
    }

    /// In place of all fields of this name.
    pub(crate) fn insert(&mut self, name: impl AsRef<str>, value: &HeaderValue) {
        let name = name.as_ref();
        let text = self.text_mut();
        let Some(at) = text.find(name.as_bytes()) else {
            return self.append(name, value);
        };
        let span = text.write(value.as_bytes());
        if let Some(line) = text.lines.get_mut(at) {
            line.value = span;
            line.secret = value.is_sensitive();
            line.written = false;
        }
        let Text { fields, lines, .. } = text;
        let mut others = 0..;
        lines.retain(|line| others.next() <= Some(at) || line.name.of(fields) != name.as_bytes());
    }

    /// Beside others of this name.
    pub(crate) fn append(&mut self, name: impl AsRef<str>, value: &HeaderValue) {
        self.push(name.as_ref().as_bytes(), value.as_bytes(), value.is_sensitive());
    }

    /// Takes all fields of this name out; returns the first one's value.
    #[inline]
    pub(crate) fn remove(&mut self, name: impl AsRef<str>) -> Option<Value<'_>> {
        let name = name.as_ref().as_bytes();
        let text = self.0.as_deref_mut()?;
        let at = text.find(name)?;
        Some(text.take_out(at))
    }

    /// Adds a field that is known to be good.
    fn push(&mut self, name: &[u8], value: &[u8], secret: bool) {
        let text = self.text_mut();
        let name_at = text.write(name);
        text.write(b": ");
        let value_at = text.write(value);
        text.write(b"\r\n");
        let mark = mark(name);
        text.names |= 1 << mark;
        text.lines.push(Line {
            name: name_at,
            value: value_at,
            mark,
            secret,
            written: true,
        });
    }

    /// Adds a field that is [`written`] already.
    pub(crate) fn push_written(&mut self, written: &Written) {
        let text = self.text_mut();
        let line = text.write(&written.line);
        let name_end = line.start + written.name_len as u32;
        text.names |= 1 << written.mark;
        text.lines.push(Line {
            name: Span {
                start: line.start,
                end: name_end,
            },
            value: Span {
                start: name_end + 2,
                end: line.end - 2,
            },
            mark: written.mark,
            secret: false,
            written: true,
        });
    }

    /// A head with this text and no fields yet: which parts of it they are is [told](Self::push_part).
    pub(crate) fn of_text(bytes: &[u8]) -> Self {
        let mut head = Self::default();
        head.text_mut().write(bytes);
        head
    }

    /// Adds a field that is in the head's text: its name begins at a place and has a length, and so does its value. Both
    /// are good, but for capital letters in the name, which become small. Returns its name; `None` if it isn't there.
    pub(crate) fn push_part(&mut self, name: (usize, usize), value: (usize, usize)) -> Option<&[u8]> {
        let text = self.text_mut();
        let place = |(start, length): (usize, usize)| Span {
            start: start as u32,
            end: (start + length) as u32,
        };
        let (name, value) = (place(name), place(value));
        let small = text.fields.get_mut(name.start as usize..name.end as usize)?;
        small.make_ascii_lowercase();
        // The parser has looked at each byte of both.
        debug_assert!(is_name(small));
        let mark = mark(small);
        text.names |= 1 << mark;
        debug_assert!(is_value(value.of(&text.fields)));
        let around = |from: u32, to: u32| text.fields.get(from as usize..to as usize);
        text.lines.push(Line {
            name,
            value,
            mark,
            secret: false,
            written: around(name.end, value.start) == Some(b": ")
                && around(value.end, value.end + 2) == Some(b"\r\n"),
        });
        Some(name.of(&text.fields))
    }

    /// Takes the last field out again.
    pub(crate) fn pop(&mut self) {
        self.text_mut().lines.pop();
    }

    /// Writes all fields as HTTP/1 does.
    pub(crate) fn put_fields(&self, out: &mut BytesMut) {
        let text = self.text();
        out.reserve(text.fields.len() + 4 * text.lines.len());
        // Nearly always the lines stand one behind the other, and are written in one piece.
        let mut run = Span { start: 0, end: 0 };
        for line in &text.lines {
            if !line.written {
                for part in [
                    std::mem::replace(&mut run, Span { start: 0, end: 0 }).of(&text.fields),
                    line.name.of(&text.fields),
                    b": ",
                    line.value.of(&text.fields),
                    b"\r\n",
                ] {
                    out.put_slice(part);
                }
                continue;
            }
            if run.end != line.name.start {
                out.put_slice(run.of(&text.fields));
                run.start = line.name.start;
            }
            run.end = line.value.end + 2;
        }
        out.put_slice(run.of(&text.fields));
    }
}

/// A field as HTTP/1 writes it, ready to be copied into heads.
#[derive(Debug)]
pub(crate) struct Written {
    line: Box<[u8]>,
    name_len: usize,
    mark: u8,
}

impl Written {
    /// `None` if it may not be passed on. Names have only small letters in HTTP/2 (RFC 9113, 8.2.1).
    pub(crate) fn new(name: &[u8], value: &[u8]) -> Option<Self> {
        let good = is_name(name) && is_value(value);
        good.then(|| Self {
            line: [name, b": ", value, b"\r\n"].concat().into(),
            name_len: name.len(),
            mark: mark(name),
        })
    }

    pub(crate) fn name(&self) -> &[u8] {
        self.line.get(..self.name_len).unwrap_or_default()
    }

    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn value(&self) -> &[u8] {
        let value = self.line.get(self.name_len + 2..self.line.len() - 2);
        value.unwrap_or_default()
    }
}

/// What may be in a name (RFC 9110, 5.1), in small letters; 0 for what may not.
const SMALL: [u8; 256] = {
    let mut table = [0; 256];
    let mut byte = 0_u8;
    while byte < 128 {
        let good = byte.is_ascii_alphanumeric()
            || matches!(
                byte,
                b'!' | b'#'
                    | b'$'
                    | b'%'
                    | b'&'
                    | b'\''
                    | b'*'
                    | b'+'
                    | b'-'
                    | b'.'
                    | b'^'
                    | b'_'
                    | b'`'
                    | b'|'
                    | b'~'
            );
        if good {
            table[byte as usize] = byte.to_ascii_lowercase();
        }
        byte += 1;
    }
    table
};

/// May it be a field's name, as it is?
pub(crate) fn is_name(name: &[u8]) -> bool {
    !name.is_empty()
        && name
            .iter()
            .all(|byte| SMALL[usize::from(*byte)] == *byte && *byte != 0)
}

/// Is its value worth guessing?
pub(crate) fn is_secret(name: &[u8]) -> bool {
    matches!(
        name,
        b"authorization" | b"proxy-authorization" | b"cookie" | b"set-cookie"
    )
}

/// May it be a field's value? (RFC 9110, 5.5)
pub(crate) fn is_value(value: &[u8]) -> bool {
    // Without a way out, several bytes are looked at at once.
    let bad = |byte: u8| (byte < b' ' && byte != b'\t') || byte == 0x7f;
    !value.iter().fold(false, |any, byte| any | bad(*byte))
}

/// A path as it is sent on, if it is one: a fragment isn't.
pub(crate) fn path(text: &[u8]) -> Option<&str> {
    let plain = |byte: &u8| {
        byte.is_ascii_alphanumeric()
            || matches!(
                byte,
                b'/' | b'-' | b'.' | b'_' | b'~' | b'%' | b'=' | b'&' | b'+' | b',' | b':' | b';' | b'@'
            )
    };
    let mut parts = text.splitn(2, |byte| *byte == b'?');
    if text.first() == Some(&b'/') && parts.all(|part| part.iter().all(plain)) {
        return std::str::from_utf8(text).ok();
    }
    let length = PathAndQuery::try_from(text).ok()?.as_str().len();
    std::str::from_utf8(text.get(..length)?).ok()
}

/// Targets.
impl Head {
    /// Of absolute targets only.
    pub(crate) fn scheme(&self) -> Option<&str> {
        let text = self.text();
        Some(text.aim.scheme?.of_str(&text.target))
    }

    pub(crate) fn authority(&self) -> Option<&str> {
        let text = self.text();
        Some(text.aim.authority?.of_str(&text.target))
    }

    pub(crate) fn path_and_query(&self) -> Option<&str> {
        let text = self.text();
        Some(text.aim.path?.of_str(&text.target))
    }

    pub(crate) fn path(&self) -> &str {
        let Some(whole) = self.path_and_query() else {
            return "";
        };
        match whole.split_once('?') {
            // `http://web?x`
            Some(("", _)) => "/",
            Some((path, _)) => path,
            None => whole,
        }
    }

    pub(crate) fn query(&self) -> Option<&str> {
        Some(self.path_and_query()?.split_once('?')?.1)
    }

    /// Says a part of the target, which is known to be good. Was it said before?
    pub(crate) fn set_part(&mut self, part: Part, text: &str) -> bool {
        let all = self.text_mut();
        let span = all.aim_at(text);
        let part = match part {
            Part::Scheme => &mut all.aim.scheme,
            Part::Authority => &mut all.aim.authority,
            Part::Path => &mut all.aim.path,
        };
        part.replace(span).is_some()
    }

    /// A target that is known to be good; without authority there is no scheme.
    pub(crate) fn aim(&mut self, scheme: Option<&str>, authority: Option<&str>, path: Option<&str>) {
        let text = self.text_mut();
        text.aim = Target {
            scheme: scheme.map(|scheme| text.aim_at(scheme)),
            authority: authority.map(|authority| text.aim_at(authority)),
            path: path.map(|path| text.aim_at(path)),
        };
    }

    /// Makes it absolute, or a path only.
    pub(crate) fn set_authority(&mut self, authority: Option<&str>) {
        let text = self.text_mut();
        let path = text.aim.path.unwrap_or_else(|| text.aim_at("/"));
        let scheme = authority.map(|_| text.aim.scheme.unwrap_or_else(|| text.aim_at("http")));
        text.aim = Target {
            scheme,
            authority: authority.map(|authority| text.aim_at(authority)),
            path: Some(path),
        };
    }

    pub(crate) fn target(&self) -> Target {
        self.text().aim
    }

    /// Back to what it was.
    pub(crate) fn restore(&mut self, target: Target) {
        self.text_mut().aim = target;
    }
}

impl From<&Uri> for Head {
    fn from(uri: &Uri) -> Self {
        let mut head = Self::default();
        head.aim(
            uri.scheme_str(),
            uri.authority().map(Authority::as_str),
            uri.path_and_query().map(PathAndQuery::as_str),
        );
        head
    }
}

impl Head {
    fn with(mut self, headers: &HeaderMap) -> Self {
        for (name, value) in headers {
            self.append(name, value);
        }
        self
    }

    fn uri(&self) -> Uri {
        let mut parts = http::uri::Parts::default();
        parts.scheme = self.scheme().and_then(|scheme| Scheme::try_from(scheme).ok());
        parts.authority = self.authority().and_then(|text| Authority::try_from(text).ok());
        parts.path_and_query = self
            .path_and_query()
            .and_then(|path| PathAndQuery::try_from(path).ok());
        Uri::from_parts(parts).unwrap_or_default()
    }

    pub(crate) fn headers(&self) -> HeaderMap {
        let mut map = HeaderMap::with_capacity(self.len() + 2);
        for field in self.iter() {
            let name = HeaderName::from_bytes(field.name);
            if let (Ok(name), Some(mut value)) = (name, field.value.to_owned()) {
                value.set_sensitive(field.secret);
                map.append(name, value);
            }
        }
        map
    }
}

impl<B> From<http::Request<B>> for Request<B> {
    fn from(request: http::Request<B>) -> Self {
        let (parts, body) = request.into_parts();
        Self {
            method: parts.method,
            version: parts.version,
            head: Head::from(&parts.uri).with(&parts.headers),
            extensions: parts.extensions,
            body,
        }
    }
}

/// What of it decides who may send it.
impl<B> From<&http::Request<B>> for Request<()> {
    fn from(request: &http::Request<B>) -> Self {
        Self {
            method: request.method().clone(),
            version: request.version(),
            head: Head::from(request.uri()).with(request.headers()),
            ..Self::default()
        }
    }
}

impl<B> From<Request<B>> for http::Request<B> {
    fn from(request: Request<B>) -> Self {
        let mut out = Self::new(request.body);
        *out.method_mut() = request.method;
        *out.uri_mut() = request.head.uri();
        *out.version_mut() = request.version;
        *out.headers_mut() = request.head.headers();
        *out.extensions_mut() = request.extensions;
        out
    }
}

impl<B> From<http::Response<B>> for Response<B> {
    fn from(response: http::Response<B>) -> Self {
        let (parts, body) = response.into_parts();
        Self {
            status: parts.status,
            version: parts.version,
            head: Head::default().with(&parts.headers),
            extensions: parts.extensions,
            body,
        }
    }
}

impl<B> From<Response<B>> for http::Response<B> {
    fn from(response: Response<B>) -> Self {
        let mut out = Self::new(response.body);
        *out.status_mut() = response.status;
        *out.version_mut() = response.version;
        *out.headers_mut() = response.head.headers();
        *out.extensions_mut() = response.extensions;
        out
    }
}

/// The same target and the same fields in the same order.
#[cfg(any(test, feature = "fuzzing"))]
impl PartialEq for Head {
    fn eq(&self, other: &Self) -> bool {
        let target = |head: &Self| {
            let all = [head.scheme(), head.authority(), head.path_and_query()];
            all.map(|part| part.map(str::to_owned))
        };
        let fields = |head: &Self| {
            let pairs = head
                .iter()
                .map(|field| (field.name.to_vec(), field.value.0.to_vec()));
            pairs.collect::<Vec<_>>()
        };
        target(self) == target(other) && fields(self) == fields(other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proptest::sample::select;

    fn value(text: &str) -> HeaderValue {
        text.parse().unwrap()
    }

    fn written(head: &Head) -> String {
        let mut out = BytesMut::new();
        head.put_fields(&mut out);
        String::from_utf8(out.to_vec()).unwrap()
    }

    #[test]
    fn a_head_that_was_used_before_says_nothing_of_it() {
        let mut head = Head::default();
        head.append("a", &value("1"));
        head.aim(Some("http"), Some("web"), Some("/a?b"));
        drop(head);
        let mut head = Head::default();
        assert_eq!((head.len(), head.get("a"), head.authority()), (0, None, None));
        head.append("b", &value("2"));
        assert_eq!(
            (head.len(), head.get("a"), head.path_and_query()),
            (1, None, None)
        );
        assert_eq!(written(&head), "b: 2\r\n");
    }

    #[test]
    fn what_was_lent_goes_back_to_its_target() {
        let mut head = Head::default();
        head.aim(None, None, Some("/a?b"));
        let before = head.target();
        head.set_authority(Some("web:80"));
        assert_eq!(
            (head.scheme(), head.authority(), head.path_and_query()),
            (Some("http"), Some("web:80"), Some("/a?b"))
        );
        head.restore(before);
        assert_eq!(
            (head.scheme(), head.authority(), head.path_and_query()),
            (None, None, Some("/a?b"))
        );
    }

    #[test]
    fn targets_are_what_the_library_takes_them_for() {
        for text in [
            "/",
            "/a?b=c?d",
            "*",
            "http://web",
            "http://web?x",
            "https://web:1/a",
            "web:80",
            "/?",
        ] {
            let uri: Uri = text.parse().unwrap();
            let head = Head::from(&uri);
            assert_eq!((head.path(), head.query()), (uri.path(), uri.query()), "{text}");
            assert_eq!(head.uri(), uri, "{text}");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let mut head = Head::default();
        let mut secret = value("swordfish");
        head.append("authorization", &secret);
        secret.set_sensitive(true);
        head.append("x-key", &secret);
        assert!(!format!("{head:?}").contains("swordfish"));
        let map = head.headers();
        assert!(map["x-key"].is_sensitive());
    }

    #[derive(Clone, Debug)]
    enum Change {
        Append(&'static str, String),
        Insert(&'static str, String),
        Remove(&'static str),
        Copy,
        /// As a field of HTTP/2.
        Written(&'static str, String),
        /// Through the library's types and back.
        Library,
    }

    fn change() -> impl Strategy<Value = Change> {
        // Some of them have the same mark.
        let name = || {
            select(vec![
                "a",
                "host",
                "accept",
                "x-long-name",
                "te",
                "content-length",
                "b",
            ])
        };
        let text = || "[ -~&&[^ ]]{0,9}";
        prop_oneof![
            3 => (name(), text()).prop_map(|(name, text)| Change::Append(name, text)),
            2 => (name(), text()).prop_map(|(name, text)| Change::Insert(name, text)),
            2 => name().prop_map(Change::Remove),
            1 => Just(Change::Copy),
            2 => (name(), text()).prop_map(|(name, text)| Change::Written(name, text)),
            1 => Just(Change::Library),
        ]
    }

    proptest! {
        #[test]
        fn fields_are_what_was_said_last(changes in proptest::collection::vec(change(), 0..40)) {
            let (mut head, mut model) = (Head::default(), Vec::<(&str, String)>::new());
            for change in changes {
                match change {
                    Change::Append(name, text) => {
                        head.append(name, &value(&text));
                        model.push((name, text));
                    }
                    Change::Insert(name, text) => {
                        head.insert(name, &value(&text));
                        let first = model.iter().position(|(other, _)| *other == name);
                        let at = first.unwrap_or(model.len());
                        model.retain(|(other, _)| *other != name);
                        model.insert(at, (name, text));
                    }
                    Change::Remove(name) => {
                        let first = model.iter().find(|(other, _)| *other == name);
                        let removed = head.remove(name).map(|value| value.as_bytes().to_vec());
                        prop_assert_eq!(removed, first.map(|(_, text)| text.clone().into_bytes()));
                        model.retain(|(other, _)| *other != name);
                    }
                    Change::Copy => head = head.clone(),
                    Change::Written(name, text) => {
                        head.push_written(&Written::new(name.as_bytes(), text.as_bytes()).unwrap());
                        model.push((name, text));
                    }
                    Change::Library => {
                        head = Head::default().with(&head.headers());
                        // Its map keeps those of one name together.
                        let order: Vec<_> = head.iter().map(|field| field.name.to_vec()).collect();
                        model.sort_by_key(|(name, _)| order.iter().position(|known| known == name.as_bytes()));
                    }
                }
                let expected: String = model.iter().map(|(name, text)| format!("{name}: {text}\r\n")).collect();
                prop_assert_eq!(written(&head), expected);
                prop_assert_eq!(head.len(), model.len());
                for name in ["a", "host", "accept", "x-long-name", "te", "content-length", "b", "never"] {
                    let all: Vec<_> = model.iter().filter(|(other, _)| *other == name).collect();
                    let found: Vec<_> = head.get_all(name).map(Value::as_bytes).collect();
                    prop_assert_eq!(&found, &all.iter().map(|(_, text)| text.as_bytes()).collect::<Vec<_>>());
                    prop_assert_eq!(head.get(name).map(Value::as_bytes), found.first().copied());
                    prop_assert_eq!(head.contains(name), !all.is_empty());
                }
            }
        }

        #[test]
        fn names_values_and_paths_are_what_the_library_takes_for_them(
            bytes in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..12),
                "[a-z!#$%&'*+.^_`|~0-9-]{0,9}".prop_map(String::into_bytes),
                "/[ -~]{0,12}".prop_map(String::into_bytes),
                "/[a-z/?#%=&.]{0,12}".prop_map(String::into_bytes),
            ]
        ) {
            prop_assert_eq!(is_name(&bytes), HeaderName::from_lowercase(&bytes).is_ok());
            prop_assert_eq!(is_value(&bytes), HeaderValue::from_bytes(&bytes).is_ok());
            if bytes.starts_with(b"/") {
                let theirs = PathAndQuery::try_from(&bytes[..]).ok();
                prop_assert_eq!(path(&bytes), theirs.as_ref().map(PathAndQuery::as_str));
            }
        }
    }
}
