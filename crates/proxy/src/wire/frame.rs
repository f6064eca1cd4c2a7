//! The frames of HTTP/2 as bytes (RFC 9113, 4 and 6). Pure; what they do is [`super::link`]'s business.

use bytes::{BufMut as _, BytesMut};

pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub(super) const HEADER: usize = 9;
/// Everybody takes frames of this size.
pub(super) const SIZE_MIN: usize = 1 << 14;
pub(super) const SIZE_MAX: usize = (1 << 24) - 1;
pub(super) const WINDOW_DEFAULT: u32 = 65_535;
pub(super) const WINDOW_MAX: u32 = (1 << 31) - 1;

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const PRIORITY: u8 = 2;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PUSH_PROMISE: u8 = 5;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;

pub(super) const END_STREAM: u8 = 0x1;
pub(super) const ACK: u8 = 0x1;
pub(super) const END_HEADERS: u8 = 0x4;
pub(super) const PADDED: u8 = 0x8;
pub(super) const PRIORITIZED: u8 = 0x20;

pub(super) const HEADER_TABLE_SIZE: u16 = 1;
pub(super) const ENABLE_PUSH: u16 = 2;
pub(super) const MAX_CONCURRENT_STREAMS: u16 = 3;
pub(super) const INITIAL_WINDOW_SIZE: u16 = 4;
pub(super) const MAX_FRAME_SIZE: u16 = 5;
pub(super) const MAX_HEADER_LIST_SIZE: u16 = 6;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) length: usize,
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
}

impl Header {
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let [a, b, c, kind, flags, rest @ ..] = bytes.first_chunk::<HEADER>()?;
        Some(Self {
            length: u32::from_be_bytes([0, *a, *b, *c]) as usize,
            kind: *kind,
            flags: *flags,
            stream: u32::from_be_bytes(*rest) & WINDOW_MAX,
        })
    }

    pub(super) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

pub(super) fn put_header(out: &mut BytesMut, length: usize, kind: u8, flags: u8, stream: u32) {
    let [_, a, b, c] = (length as u32).to_be_bytes();
    let [d, e, f, g] = stream.to_be_bytes();
    out.put_slice(&[a, b, c, kind, flags, d, e, f, g]);
}

/// A frame with one number.
pub(super) fn put_u32(out: &mut BytesMut, kind: u8, stream: u32, value: u32) {
    put_header(out, 4, kind, 0, stream);
    out.put_u32(value);
}

pub(super) fn put_settings(out: &mut BytesMut, settings: &[(u16, u32)]) {
    put_header(out, settings.len() * 6, SETTINGS, 0, 0);
    for (id, value) in settings {
        out.put_u16(*id);
        out.put_u32(*value);
    }
}

pub(super) fn put_ping(out: &mut BytesMut, flags: u8, payload: &[u8]) {
    put_header(out, 8, PING, flags, 0);
    out.put_slice(payload);
}

pub(super) fn put_goaway(out: &mut BytesMut, last: u32, reason: h2::Reason) {
    put_header(out, 8, GOAWAY, 0, 0);
    out.put_u32(last);
    out.put_u32(reason.into());
}

/// Frames around a header block that was written at the end of `out` behind a gap of [`HEADER`] bytes at `start`.
pub(super) fn frame_block(out: &mut BytesMut, start: usize, frame_max: usize, flags: u8, stream: u32) {
    let length = out.len() - start - HEADER;
    if length <= frame_max {
        return overwrite(out, start, length, HEADERS, flags | END_HEADERS, stream);
    }
    let rest = out.split_off(start + HEADER + frame_max);
    overwrite(out, start, frame_max, HEADERS, flags, stream);
    let mut pieces = rest.chunks(frame_max).peekable();
    while let Some(piece) = pieces.next() {
        let last = if pieces.peek().is_none() { END_HEADERS } else { 0 };
        put_header(out, piece.len(), CONTINUATION, last, stream);
        out.put_slice(piece);
    }
}

fn overwrite(out: &mut BytesMut, at: usize, length: usize, kind: u8, flags: u8, stream: u32) {
    if let Some(mut gap) = out.get_mut(at..at + HEADER) {
        let [_, a, b, c] = (length as u32).to_be_bytes();
        let [d, e, f, g] = stream.to_be_bytes();
        gap.put_slice(&[a, b, c, kind, flags, d, e, f, g]);
    }
}

/// Takes off what a padded frame carries beside its content; `None` if it is more than there is.
pub(super) fn unpadded(header: Header, payload: &mut bytes::Bytes) -> Option<()> {
    use bytes::Buf as _;
    if header.has(PADDED) {
        let padding = usize::from(*payload.first()?);
        payload.advance(1);
        payload.truncate(payload.len().checked_sub(padding)?);
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_block_is_continued() {
        let mut out = BytesMut::from(&b"before"[..]);
        out.put_bytes(0, HEADER);
        out.put_slice(&[7; 25]);
        frame_block(&mut out, 6, 10, END_STREAM, 3);
        let mut frames = Vec::new();
        let mut rest = &out[6..];
        while let Some(header) = Header::read(rest) {
            assert_eq!(header.stream, 3);
            frames.push((header.kind, header.flags, header.length));
            rest = &rest[HEADER + header.length..];
        }
        assert_eq!(
            frames,
            [
                (HEADERS, END_STREAM, 10),
                (CONTINUATION, 0, 10),
                (CONTINUATION, END_HEADERS, 5)
            ]
        );
    }
}
