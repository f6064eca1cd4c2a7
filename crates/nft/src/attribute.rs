//! Netlink messages as bytes: headers, attributes, nesting, padding.
//!
//! Knows no nf_tables. Lengths are filled in when a message or a nest is closed, so callers write front to back.

const HEADER: usize = 16;
const ALIGN: usize = 4;
const NESTED: u16 = 0x8000;

/// A growing buffer of netlink messages.
#[derive(Debug, Default)]
pub(crate) struct Messages {
    bytes: Vec<u8>,
    /// Where the last message begins.
    last: usize,
}

impl Messages {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Sets a flag in the header of the last message.
    pub(crate) fn flag_last(&mut self, flag: u16) {
        if let Some(flags) = self.bytes.get_mut(self.last + 6..self.last + 8) {
            let value = u16::from_ne_bytes([flags[0], flags[1]]) | flag;
            flags.copy_from_slice(&value.to_ne_bytes());
        }
    }

    /// Appends one message: netlink header, `nfgenmsg`, then what `body` writes.
    pub(crate) fn message(
        &mut self,
        kind: u16,
        flags: u16,
        sequence: u32,
        family: u8,
        resource: u16,
        body: impl FnOnce(&mut Attributes<'_>),
    ) {
        let start = self.bytes.len();
        self.last = start;
        self.bytes.extend(0u32.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(flags.to_ne_bytes());
        self.bytes.extend(sequence.to_ne_bytes());
        self.bytes.extend(0u32.to_ne_bytes());
        debug_assert_eq!(self.bytes.len() - start, HEADER);
        self.bytes.extend([family, 0]);
        self.bytes.extend(resource.to_be_bytes());
        body(&mut Attributes {
            bytes: &mut self.bytes,
        });
        let length = u32::try_from(self.bytes.len() - start).expect("a message is far below 4 GiB");
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    }
}

/// The attributes of one message or one nest.
pub(crate) struct Attributes<'a> {
    bytes: &'a mut Vec<u8>,
}

impl<'a> Attributes<'a> {
    /// Attributes that become a part of some message later.
    pub(crate) fn into(bytes: &'a mut Vec<u8>) -> Self {
        Self { bytes }
    }

    pub(crate) fn put(&mut self, kind: u16, value: &[u8]) {
        let start = self.open(kind);
        self.bytes.extend_from_slice(value);
        self.close(start);
    }

    /// Numbers travel in network order in nf_tables.
    pub(crate) fn number(&mut self, kind: u16, value: u32) {
        self.put(kind, &value.to_be_bytes());
    }

    pub(crate) fn string(&mut self, kind: u16, value: &str) {
        let start = self.open(kind);
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(0);
        self.close(start);
    }

    pub(crate) fn nest(&mut self, kind: u16, body: impl FnOnce(&mut Attributes<'_>)) {
        let start = self.open(kind | NESTED);
        body(&mut Attributes { bytes: self.bytes });
        self.close(start);
    }

    fn open(&mut self, kind: u16) -> usize {
        let start = self.bytes.len();
        self.bytes.extend(0u16.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        start
    }

    fn close(&mut self, start: usize) {
        let length =
            u16::try_from(self.bytes.len() - start).expect("the encoder splits what could exceed 64 KiB");
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGN), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_carry_their_length_and_are_padded_to_four_bytes() {
        let mut messages = Messages::default();
        messages.message(0x0a00, 5, 7, 2, 0, |attributes| {
            attributes.string(1, "ab");
            attributes.nest(2, |inner| inner.number(3, 0x0102_0304));
        });
        let mut expected = Vec::new();
        expected.extend(40u32.to_ne_bytes());
        expected.extend(0x0a00u16.to_ne_bytes());
        expected.extend(5u16.to_ne_bytes());
        expected.extend(7u32.to_ne_bytes());
        expected.extend([0; 4]);
        expected.extend([2, 0, 0, 0]);
        expected.extend(7u16.to_ne_bytes());
        expected.extend(1u16.to_ne_bytes());
        expected.extend([b'a', b'b', 0, 0]);
        expected.extend(12u16.to_ne_bytes());
        expected.extend(0x8002u16.to_ne_bytes());
        expected.extend(8u16.to_ne_bytes());
        expected.extend(3u16.to_ne_bytes());
        expected.extend([1, 2, 3, 4]);
        assert_eq!(messages.bytes(), expected);
    }
}
