//! What an executable says about itself: whether it needs anything else, and how hard it is to misuse.
//!
//! Reads the few fields of 64-bit little-endian ELF that it takes; anything else is refused.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

/// Each of them is as one wants it if true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hardening {
    /// No interpreter and no libraries: it runs where there is nothing else.
    pub(super) is_static: bool,
    /// Loaded at a random address.
    pub(super) pie: bool,
    /// The tables that calls go through are read-only once the program runs.
    pub(super) relro: bool,
    /// No memory is writable and executable, the stack included.
    pub(super) nx: bool,
    pub(super) stripped: bool,
}

impl Hardening {
    pub(super) const BEST: Self = Self {
        is_static: true,
        pie: true,
        relro: true,
        nx: true,
        stripped: true,
    };

    /// What holds for both of two programs.
    pub(super) fn and(self, other: Self) -> Self {
        Self {
            is_static: self.is_static && other.is_static,
            pie: self.pie && other.pie,
            relro: self.relro && other.relro,
            nx: self.nx && other.nx,
            stripped: self.stripped && other.stripped,
        }
    }

    pub(super) fn json(self) -> Value {
        json!({
            "static": self.is_static, "pie": self.pie, "relro": self.relro, "nx": self.nx, "stripped": self.stripped,
        })
    }

    /// Those that are as they should be, in words.
    pub(super) fn words(self) -> String {
        let all = [
            (self.is_static, "static"),
            (self.pie, "pie"),
            (self.relro, "relro"),
            (self.nx, "nx"),
            (self.stripped, "stripped"),
        ];
        let held: Vec<&str> = all
            .iter()
            .filter(|(holds, _)| *holds)
            .map(|(_, word)| *word)
            .collect();
        held.join(" ")
    }
}

const SHARED_OBJECT: u16 = 3;
const LOAD: u32 = 1;
const DYNAMIC: u32 = 2;
const INTERPRETER: u32 = 3;
const STACK: u32 = 0x6474_e551;
const RELRO: u32 = 0x6474_e552;
const EXECUTABLE: u32 = 1;
const WRITABLE: u32 = 2;
const SYMBOLS: u32 = 2;
const NEEDED: u64 = 1;
const BIND_NOW: u64 = 24;
const FLAGS: u64 = 30;
const FLAG_BIND_NOW: u64 = 8;
const FLAGS_1: u64 = 0x6fff_fffb;
const FLAG_1_NOW: u64 = 1;

pub(super) fn hardening(file: &[u8]) -> Result<Hardening> {
    ensure!(
        file.starts_with(b"\x7fELF\x02\x01"),
        "not a 64-bit little-endian ELF file"
    );
    let segments = table(
        file,
        number(file, 32, 8)?,
        number(file, 54, 2)?,
        number(file, 56, 2)?,
    )?;
    let sections = table(
        file,
        number(file, 40, 8)?,
        number(file, 58, 2)?,
        number(file, 60, 2)?,
    )?;
    let (mut interpreted, mut needs, mut relro, mut now, mut writable_code, mut stack) =
        (false, false, false, false, false, None);
    for segment in segments {
        let (kind, flags) = (short(segment, 0)?, short(segment, 4)?);
        match kind {
            INTERPRETER => interpreted = true,
            RELRO => relro = true,
            STACK => stack = Some(flags),
            LOAD => writable_code |= flags & (WRITABLE | EXECUTABLE) == WRITABLE | EXECUTABLE,
            DYNAMIC => {
                let from = usize::try_from(number(segment, 8, 8)?)?;
                let size = usize::try_from(number(segment, 32, 8)?)?;
                let end = from.checked_add(size).context("a segment without an end")?;
                for entry in file
                    .get(from..end)
                    .context("a segment beyond the end")?
                    .chunks_exact(16)
                {
                    let value = number(entry, 8, 8)?;
                    match number(entry, 0, 8)? {
                        NEEDED => needs = true,
                        BIND_NOW => now = true,
                        FLAGS => now |= value & FLAG_BIND_NOW != 0,
                        FLAGS_1 => now |= value & FLAG_1_NOW != 0,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let mut stripped = true;
    for section in sections {
        stripped &= short(section, 4)? != SYMBOLS;
    }
    Ok(Hardening {
        is_static: !interpreted && !needs,
        pie: number(file, 16, 2)? == u64::from(SHARED_OBJECT),
        relro: relro && now,
        nx: !writable_code && stack.is_some_and(|flags| flags & EXECUTABLE == 0),
        stripped,
    })
}

/// So many rows of this size from an offset on.
fn table(file: &[u8], from: u64, row: u64, rows: u64) -> Result<impl Iterator<Item = &[u8]>> {
    let (from, row) = (usize::try_from(from)?, usize::try_from(row)?.max(1));
    let size = row
        .checked_mul(usize::try_from(rows)?)
        .context("a table without an end")?;
    let end = from.checked_add(size).context("a table without an end")?;
    Ok(file
        .get(from..end)
        .context("a table beyond the end")?
        .chunks_exact(row))
}

fn number(bytes: &[u8], at: usize, width: usize) -> Result<u64> {
    let field = bytes.get(at..at + width).context("the file is cut off")?;
    Ok(field
        .iter()
        .rev()
        .fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
}

fn short(bytes: &[u8], at: usize) -> Result<u32> {
    Ok(u32::try_from(number(bytes, at, 4)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with these segments (kind, flags) and dynamic entries, and one section of this kind.
    fn made(segments: &[(u32, u32)], dynamic: &[(u64, u64)], section: u32) -> Vec<u8> {
        let mut file = vec![0; 64];
        let put =
            |file: &mut Vec<u8>, at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
        put(&mut file, 0, b"\x7fELF\x02\x01");
        put(&mut file, 16, &SHARED_OBJECT.to_le_bytes());
        put(&mut file, 32, &64_u64.to_le_bytes());
        put(&mut file, 54, &56_u16.to_le_bytes());
        put(
            &mut file,
            56,
            &u16::try_from(segments.len()).unwrap().to_le_bytes(),
        );
        let entries_at = 64 + 56 * segments.len();
        for (kind, flags) in segments {
            let mut segment = vec![0; 56];
            put(&mut segment, 0, &kind.to_le_bytes());
            put(&mut segment, 4, &flags.to_le_bytes());
            put(&mut segment, 8, &(entries_at as u64).to_le_bytes());
            put(&mut segment, 32, &(16 * dynamic.len() as u64).to_le_bytes());
            file.extend(segment);
        }
        for (name, value) in dynamic {
            file.extend([name.to_le_bytes(), value.to_le_bytes()].concat());
        }
        let sections_at = file.len() as u64;
        put(&mut file, 40, &sections_at.to_le_bytes());
        put(&mut file, 58, &64_u16.to_le_bytes());
        put(&mut file, 60, &1_u16.to_le_bytes());
        let mut row = vec![0; 64];
        put(&mut row, 4, &section.to_le_bytes());
        file.extend(row);
        file
    }

    #[test]
    fn a_static_program_without_symbols_has_it_all() {
        let file = made(
            &[(LOAD, 5), (LOAD, 6), (DYNAMIC, 6), (STACK, 6), (RELRO, 4)],
            &[(FLAGS, FLAG_BIND_NOW)],
            1,
        );
        let hardening = hardening(&file).unwrap();
        assert_eq!(hardening, Hardening::BEST);
        assert_eq!(hardening.words(), "static pie relro nx stripped");
    }

    #[test]
    fn each_weakness_is_seen() {
        let good = [(LOAD, 5), (DYNAMIC, 6), (STACK, 6), (RELRO, 4)];
        let now = [(FLAGS_1, FLAG_1_NOW)];
        let with = |more: (u32, u32)| [&good[..], &[more]].concat();
        let words = |segments: &[(u32, u32)], dynamic: &[(u64, u64)], section| {
            hardening(&made(segments, dynamic, section)).unwrap().words()
        };
        assert_eq!(words(&with((INTERPRETER, 4)), &now, 1), "pie relro nx stripped");
        assert_eq!(words(&good, &[now[0], (NEEDED, 1)], 1), "pie relro nx stripped");
        assert_eq!(words(&good, &[], 1), "static pie nx stripped");
        assert_eq!(words(&with((LOAD, 7)), &now, 1), "static pie relro stripped");
        assert_eq!(words(&with((STACK, 7)), &now, 1), "static pie relro stripped");
        assert_eq!(words(&good, &now, SYMBOLS), "static pie relro nx");
    }

    #[test]
    fn this_test_itself_can_be_read_and_half_of_it_is_refused() {
        let file = std::fs::read("/proc/self/exe").unwrap();
        assert!(hardening(&file).unwrap().pie);
        assert!(hardening(&file[..file.len() / 2]).is_err());
        assert!(hardening(&file[..60]).is_err());
        assert!(hardening(b"#!/bin/sh").is_err());
    }
}
