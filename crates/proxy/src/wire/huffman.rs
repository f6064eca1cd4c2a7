//! The string code of HTTP/2's header compression (RFC 7541, appendix B), in one direction: we read it.
//!
//! What we send is not coded: on a link most headers are indices, and the rest costs less as it is.

use std::sync::LazyLock;

/// Code lengths of all bytes and of the end mark. The code is canonical, so they are all that has to be known.
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28,
    28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6,
    6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7,
    8, 13, 19, 13, 14, 6, 15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7,
    15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24,
    23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23,
    23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26,
    26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20,
    21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27,
    27, 27, 26, 30,
];
const END: u16 = 256;
const SHORTEST: usize = 5;
const LONGEST: usize = 30;

struct Code {
    /// Symbols by code.
    symbols: Vec<u16>,
    /// For each length: the first code beyond it, as the first bits of 32; and what to add to a code's number to find
    /// its symbol.
    lengths: [(u64, i64); LONGEST + 1],
    /// What begins with these eight bits: a byte and its length, if that is no more. Nearly all of text is.
    short: [Option<(u8, u8)>; 256],
}

static CODE: LazyLock<Code> = LazyLock::new(|| {
    let mut symbols: Vec<u16> = (0..=END).collect();
    symbols.sort_by_key(|symbol| (LENGTHS[usize::from(*symbol)], *symbol));
    let mut lengths = [(0, 0); LONGEST + 1];
    let (mut next, mut before) = (0_u64, 0_usize);
    for (length, entry) in lengths.iter_mut().enumerate().skip(SHORTEST) {
        let count = LENGTHS.iter().filter(|l| usize::from(**l) == length).count();
        let offset = before as i64 - next as i64;
        next += count as u64;
        before += count;
        *entry = (next << (32 - length), offset);
        next <<= 1;
    }
    let mut code = Code {
        symbols,
        lengths,
        short: [None; 256],
    };
    for first in 0..256 {
        let found = code.find((first as u64) << 24 | 0xff_ffff);
        code.short[first] = found
            .and_then(|(symbol, length)| Some((u8::try_from(symbol).ok()?, length as u8)))
            .filter(|(_, length)| *length <= 8);
    }
    code
});

impl Code {
    /// The symbol that 32 bits begin with, and its length.
    fn find(&self, next: u64) -> Option<(u16, usize)> {
        let length = (SHORTEST..=LONGEST).find(|length| next < self.lengths[*length].0)?;
        let number = (next >> (32 - length)) as i64 + self.lengths[length].1;
        let symbol = self.symbols.get(usize::try_from(number).ok()?)?;
        Some((*symbol, length))
    }
}

/// Appends what the code says; `None` if it isn't one.
pub(super) fn decode(coded: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let code = &*CODE;
    // The first `held` of the low bits have not been read yet.
    let (mut bits, mut held) = (0_u64, 0_usize);
    let mut coded = coded.iter();
    loop {
        while held <= 32 {
            let Some(byte) = coded.next() else { break };
            bits = bits << 8 | u64::from(*byte);
            held += 8;
        }
        if held < SHORTEST {
            break;
        }
        let rest = bits & ((1 << held) - 1);
        // As if followed by ones, which is how it must end.
        let next = if held >= 32 {
            rest >> (held - 32)
        } else {
            (rest << (32 - held)) | ((1 << (32 - held)) - 1)
        };
        let short = code.short[(next >> 24) as usize & 0xff];
        let (symbol, length) = match short {
            Some((symbol, length)) => (u16::from(symbol), usize::from(length)),
            None => code.find(next)?,
        };
        if length > held {
            break;
        }
        out.push(u8::try_from(symbol).ok()?);
        held -= length;
    }
    // At most seven ones may be left.
    let rest = bits & ((1 << held) - 1);
    (held < 8 && rest == (1 << held) - 1).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::damage::damaged;
    use proptest::prelude::*;

    fn decoded(coded: &[u8]) -> Option<String> {
        let mut out = Vec::new();
        decode(coded, &mut out)?;
        String::from_utf8(out).ok()
    }

    #[test]
    fn the_examples_of_the_rfc_are_read() {
        for (coded, text) in [
            (
                &[
                    0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff,
                ][..],
                "www.example.com",
            ),
            (&[0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf], "no-cache"),
            (
                &[0x25, 0xa8, 0x49, 0xe9, 0x5b, 0xb8, 0xe8, 0xb4, 0xbf],
                "custom-value",
            ),
            (
                &[
                    0xd0, 0x7a, 0xbe, 0x94, 0x10, 0x54, 0xd4, 0x44, 0xa8, 0x20, 0x05, 0x95, 0x04, 0x0b, 0x81,
                    0x66, 0xe0, 0x82, 0xa6, 0x2d, 0x1b, 0xff,
                ],
                "Mon, 21 Oct 2013 20:13:21 GMT",
            ),
            (&[0x64, 0x02], "302"),
            (&[], ""),
        ] {
            assert_eq!(decoded(coded).as_deref(), Some(text));
        }
    }

    #[test]
    fn wrong_endings_are_refused() {
        // The end mark itself, a whole byte of padding, and padding that isn't ones.
        for coded in [&[0xff, 0xff, 0xff, 0xff][..], &[0x64, 0x02, 0xff], &[0x60]] {
            assert_eq!(decoded(coded), None, "{coded:x?}");
        }
    }

    /// The other direction: the codes of a length follow one another, and shorter ones come first.
    fn coded(text: &[u8]) -> Vec<u8> {
        let mut codes = [(0_u64, 0); 257];
        let (mut next, mut length) = (0, 0);
        for symbol in CODE.symbols.iter().map(|symbol| usize::from(*symbol)) {
            next <<= LENGTHS[symbol] - length;
            length = LENGTHS[symbol];
            codes[symbol] = (next, length);
            next += 1;
        }
        let (mut bits, mut held, mut out) = (0, 0, Vec::new());
        for byte in text {
            let (code, length) = codes[usize::from(*byte)];
            bits = bits << length | code;
            held += length;
            while held >= 8 {
                held -= 8;
                out.push((bits >> held) as u8);
            }
        }
        if held > 0 {
            out.push((bits << (8 - held)) as u8 | 0xff >> held);
        }
        out
    }

    fn text() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            "[ -~]{0,60}".prop_map(String::into_bytes),
            proptest::collection::vec(any::<u8>(), 0..60)
        ]
    }

    proptest! {
        #[test]
        fn every_text_is_read_back(text in text()) {
            let mut out = Vec::new();
            prop_assert_eq!(decode(&coded(&text), &mut out), Some(()));
            prop_assert_eq!(out, text);
        }

        #[test]
        fn a_text_has_one_code(code in damaged(text().prop_map(|text| coded(&text)))) {
            let mut out = Vec::new();
            if decode(&code, &mut out).is_some() {
                prop_assert_eq!(coded(&out), code);
            }
        }
    }
}
