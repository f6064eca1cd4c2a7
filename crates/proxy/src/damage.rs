//! What tests of readers feed them: valid messages with some bytes changed, cut wherever a network may cut them.
//!
//! Arbitrary bytes rarely get past a reader's first line; damaged messages reach what lies behind. Knows no protocol.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

/// One change to a message.
#[derive(Clone, Debug)]
enum Change {
    Set(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    /// Says a part of it again.
    Repeat(Index, usize, Index),
    Cut(Index),
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        let length = bytes.len();
        if length == 0 {
            return;
        }
        let part = |from: &Index, most: usize| {
            let from = from.index(length);
            from..length.min(from + most)
        };
        match self {
            Self::Set(at, byte) => bytes[at.index(length)] = *byte,
            Self::Insert(at, more) => {
                let at = at.index(length + 1);
                bytes.splice(at..at, more.iter().copied());
            }
            Self::Remove(from, most) => drop(bytes.drain(part(from, *most))),
            Self::Repeat(from, most, to) => {
                let (part, to) = (bytes[part(from, *most)].to_vec(), to.index(length + 1));
                bytes.splice(to..to, part);
            }
            Self::Cut(at) => bytes.truncate(at.index(length)),
        }
    }
}

fn change() -> impl Strategy<Value = Change> {
    // Bytes at which readers decide something, more often than others.
    let byte = prop_oneof![select(&b"\r\n\t :;,=/\0\x7f\x80\xff09aAfF"[..]), any::<u8>()];
    prop_oneof![
        (any::<Index>(), byte.clone()).prop_map(|(at, byte)| Change::Set(at, byte)),
        (any::<Index>(), vec(byte, 1..4)).prop_map(|(at, more)| Change::Insert(at, more)),
        (any::<Index>(), 1..8_usize).prop_map(|(from, most)| Change::Remove(from, most)),
        (any::<Index>(), 1..60_usize, any::<Index>())
            .prop_map(|(from, most, to)| Change::Repeat(from, most, to)),
        any::<Index>().prop_map(Change::Cut),
    ]
}

/// A message with a few changes, often none.
pub(crate) fn damaged(valid: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    (valid, vec(change(), 0..4)).prop_map(|(mut bytes, changes)| {
        for change in changes {
            change.apply(&mut bytes);
        }
        bytes
    })
}

/// Where something is cut.
pub(crate) fn cuts() -> impl Strategy<Value = Vec<Index>> {
    vec(any::<Index>(), 0..8)
}

/// The pieces in which it arrives.
pub(crate) fn pieces<'a>(bytes: &'a [u8], cuts: &[Index]) -> Vec<&'a [u8]> {
    let mut ends: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
    ends.push(bytes.len());
    ends.sort_unstable();
    ends.dedup();
    let mut from = 0;
    ends.into_iter()
        .map(|end| &bytes[std::mem::replace(&mut from, end)..end])
        .collect()
}
