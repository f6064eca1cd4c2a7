//! What one flow grew by, look after look, packed into bytes.
//!
//! An hour of looks is mostly zeros and small numbers: a look at which nothing grew takes no room, and a busy one a
//! byte or two for each counter that moved. Old looks go by the chunk. Knows nothing of time; looks are numbered.

use std::collections::VecDeque;
use std::ops::RangeInclusive;

/// Upper bounds of latencies in milliseconds: those of `response_latency_ms` and of `gateway_probe_latency_ms`. Of a
/// histogram with others only the common ones are kept, which makes its quantiles coarser.
pub(crate) const BOUNDS: [f64; 26] = [
    1.0,
    2.0,
    3.0,
    4.0,
    5.0,
    10.0,
    20.0,
    30.0,
    40.0,
    50.0,
    100.0,
    200.0,
    300.0,
    400.0,
    500.0,
    1_000.0,
    2_000.0,
    3_000.0,
    4_000.0,
    5_000.0,
    10_000.0,
    20_000.0,
    30_000.0,
    40_000.0,
    50_000.0,
    f64::INFINITY,
];

/// Counts by bound, not cumulative.
pub(crate) type Latency = [u64; BOUNDS.len()];

/// What happened between two looks, or the counters' state at one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) success: u64,
    pub(crate) failure: u64,
    pub(crate) read: u64,
    pub(crate) written: u64,
    /// How long all answers took together.
    pub(crate) latency_us: u64,
    pub(crate) latency: Latency,
}

/// Numbers in one record: counters, then the buckets.
const COUNTERS: usize = 5;
const FIELDS: usize = COUNTERS + BOUNDS.len();

impl Counts {
    fn fields(&self) -> [u64; FIELDS] {
        let mut fields = [0; FIELDS];
        let (counters, buckets) = fields.split_at_mut(COUNTERS);
        counters.copy_from_slice(&[
            self.success,
            self.failure,
            self.read,
            self.written,
            self.latency_us,
        ]);
        buckets.copy_from_slice(&self.latency);
        fields
    }

    fn of(fields: [u64; FIELDS]) -> Self {
        let [success, failure, read, written, latency_us, latency @ ..] = fields;
        Self {
            success,
            failure,
            read,
            written,
            latency_us,
            latency,
        }
    }

    /// Combines two field by field.
    pub(crate) fn zip(&self, other: &Self, with: impl Fn(u64, u64) -> u64) -> Self {
        let mut fields = self.fields();
        for (field, other) in fields.iter_mut().zip(other.fields()) {
            *field = with(*field, other);
        }
        Self::of(fields)
    }

    /// Whether any counter is below what it was.
    pub(crate) fn is_below(&self, before: &Self) -> bool {
        self.fields()
            .iter()
            .zip(before.fields())
            .any(|(now, was)| *now < was)
    }
}

/// Chunks are forgotten whole, so a tape keeps up to this many looks longer than it must.
const CHUNK_LOOKS: u64 = 36;

#[derive(Clone, Debug, Default)]
pub(crate) struct Tape {
    chunks: VecDeque<Chunk>,
}

#[derive(Clone, Debug)]
struct Chunk {
    first: u64,
    last: u64,
    /// Records: looks since the last one, which fields are not zero, those fields.
    bytes: Vec<u8>,
}

impl Tape {
    /// Looks come in ascending order.
    pub(crate) fn push(&mut self, look: u64, grown: &Counts) {
        if *grown == Counts::default() {
            return;
        }
        let is_full = |chunk: &Chunk| look >= chunk.first + CHUNK_LOOKS;
        if self.chunks.back().is_none_or(is_full) {
            if let Some(full) = self.chunks.back_mut() {
                full.bytes.shrink_to_fit();
            }
            self.chunks.push_back(Chunk {
                first: look,
                last: look,
                bytes: Vec::new(),
            });
        }
        let Some(chunk) = self.chunks.back_mut() else {
            return;
        };
        write(&mut chunk.bytes, look - chunk.last);
        chunk.last = look;
        let fields = grown.fields();
        let moved = fields.iter().enumerate().filter(|(_, field)| **field > 0);
        write(&mut chunk.bytes, moved.map(|(at, _)| 1 << at).sum());
        for field in fields.iter().filter(|field| **field > 0) {
            write(&mut chunk.bytes, *field);
        }
    }

    /// The sum over some looks.
    pub(crate) fn sum(&self, looks: &RangeInclusive<u64>) -> Counts {
        let mut fields = [0_u64; FIELDS];
        let within = |chunk: &&Chunk| chunk.first <= *looks.end() && chunk.last >= *looks.start();
        for chunk in self.chunks.iter().filter(within) {
            let mut look = chunk.first;
            let mut bytes = chunk.bytes.as_slice();
            while let Some(passed) = read(&mut bytes) {
                look += passed;
                let moved = read(&mut bytes).unwrap_or_default();
                for (at, field) in fields.iter_mut().enumerate() {
                    if moved & (1 << at) != 0 {
                        let grown = read(&mut bytes).unwrap_or_default();
                        if looks.contains(&look) {
                            *field = field.saturating_add(grown);
                        }
                    }
                }
            }
        }
        Counts::of(fields)
    }

    pub(crate) fn forget_before(&mut self, look: u64) {
        while self.chunks.front().is_some_and(|chunk| chunk.last < look) {
            self.chunks.pop_front();
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// What it takes in memory besides itself.
    pub(crate) fn bytes(&self) -> usize {
        let records: usize = self.chunks.iter().map(|chunk| chunk.bytes.capacity()).sum();
        records + self.chunks.capacity() * size_of::<Chunk>()
    }
}

/// Seven bits to a byte, the lowest first.
fn write(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn read(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn counts() -> impl Strategy<Value = Counts> {
        let small = prop_oneof![4 => Just(0_u64), 4 => 0..300_u64, 1 => 0..=u64::MAX >> 8];
        proptest::collection::vec(small, FIELDS)
            .prop_map(|fields| Counts::of(fields.try_into().unwrap_or([0; FIELDS])))
    }

    proptest! {
        #[test]
        fn a_tape_sums_what_was_pushed_in_the_looks_asked_for(
            pushed in proptest::collection::vec((1..40_u64, counts()), 0..60),
            from in 0..400_u64, to in 0..2_000_u64, forgotten in 0..400_u64,
        ) {
            let (mut tape, mut look) = (Tape::default(), 0);
            let mut expected = Counts::default();
            let from = from.max(forgotten);
            for (passed, grown) in &pushed {
                look += passed;
                tape.push(look, grown);
                if (from..=to).contains(&look) {
                    expected = expected.zip(grown, u64::saturating_add);
                }
            }
            tape.forget_before(forgotten);
            prop_assert_eq!(tape.sum(&(from..=to)), expected);
            tape.forget_before(look + 1);
            prop_assert!(tape.is_empty());
        }
    }

    #[test]
    fn a_look_at_which_nothing_grew_takes_no_room() {
        let mut tape = Tape::default();
        (0..1_000).for_each(|look| tape.push(look, &Counts::default()));
        assert!(tape.is_empty());
    }
}
