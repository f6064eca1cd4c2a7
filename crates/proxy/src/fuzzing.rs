//! What holds for any bytes that a peer may send: a function for each reader, which `fuzz/` searches for a counterexample.
//!
//! The first byte of an input says in what pieces the rest arrives, so that one that is read differently in pieces is
//! found too. The inputs of `fuzz/corpus` are run with the tests.

use bytes::BytesMut;

use crate::detect::{self, HELLO_MAX, Http, Tls};
use crate::header::{Header, HeaderError};
pub use crate::wire::fuzzing::{answer, chunked, frames, hpack, request};

/// Panics where something doesn't hold.
type Reader = fn(&[u8]);

/// By name, as the files of `fuzz/fuzz_targets` are called.
pub const READERS: [(&str, Reader); 8] = [
    ("answer", answer),
    ("chunked", chunked),
    ("client_hello", client_hello),
    ("detection", detection),
    ("frames", frames),
    ("hpack", hpack),
    ("request", request),
    ("transport_header", transport_header),
];

/// What arrives, and in pieces of what length.
pub(crate) fn arrival(input: &[u8]) -> (&[u8], usize) {
    match input.split_first() {
        None => (input, 1),
        Some((0, bytes)) => (bytes, bytes.len().max(1)),
        Some((length, bytes)) => (bytes, usize::from(*length)),
    }
}

/// How much has come after each piece.
fn arrived(bytes: &[u8], length: usize) -> impl Iterator<Item = &[u8]> {
    let most = &bytes[..bytes.len().min(HELLO_MAX)];
    let pieces = most.chunks(length).scan(0, |end, piece| {
        *end += piece.len();
        Some(*end)
    });
    pieces.map(move |end| &most[..end])
}

/// A verdict that was given stays, and comes in time.
pub fn detection(input: &[u8]) {
    let (bytes, length) = arrival(input);
    let mut verdict = Http::More;
    for bytes in arrived(bytes, length) {
        let now = detect::http(bytes);
        assert!(
            verdict == Http::More || verdict == now,
            "{verdict:?}, then {now:?}"
        );
        assert!(now != Http::More || bytes.len() < HELLO_MAX);
        verdict = now;
    }
}

/// The same, and the server's name is the one that a TLS library sees.
pub fn client_hello(input: &[u8]) {
    let (bytes, length) = arrival(input);
    let mut verdict = Tls::More;
    for bytes in arrived(bytes, length) {
        let now = detect::tls(bytes);
        assert!(
            verdict == Tls::More || verdict == now,
            "{verdict:?}, then {now:?}"
        );
        assert!(now != Tls::More || bytes.len() < HELLO_MAX);
        verdict = now;
    }
    let mut acceptor = rustls::server::Acceptor::default();
    let theirs = acceptor
        .read_tls(&mut &*bytes)
        .ok()
        .and_then(|_| acceptor.accept().ok()?);
    if let (Tls::Sni(ours), Some(theirs)) = (verdict, theirs)
        && let Some(theirs) = theirs.client_hello().server_name()
    {
        assert!(ours.eq_ignore_ascii_case(theirs), "{ours} {theirs}");
    }
}

/// What is read means the same in pieces, takes nothing before it is whole, and can be written again.
pub fn transport_header(input: &[u8]) {
    let (bytes, length) = arrival(input);
    let decode = |read: &mut BytesMut| -> Result<Option<Header>, HeaderError> {
        let before = read.clone();
        let found = Header::decode(read);
        assert!(found != Ok(None) || *read == before, "untouched");
        found
    };
    let whole = decode(&mut BytesMut::from(bytes));
    let (mut read, mut found) = (BytesMut::new(), Ok(None));
    for piece in bytes.chunks(length) {
        read.extend_from_slice(piece);
        if found == Ok(None) {
            found = decode(&mut read);
        }
    }
    assert_eq!(found, whole);
    if let Ok(Some(header)) = whole {
        assert!(header.port > 0);
        let again = Header::decode(&mut BytesMut::from(&header.encode()[..]));
        assert_eq!(again, Ok(Some(header)));
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;

    fn files(dir: &str) -> Vec<PathBuf> {
        let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz");
        let files = std::fs::read_dir(fuzz.join(dir)).unwrap();
        let mut files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
        files.sort();
        files
    }

    #[test]
    fn the_corpus_of_each_reader_holds() {
        for (name, reader) in READERS {
            let inputs = files(&format!("corpus/{name}"));
            assert!(!inputs.is_empty(), "{name}");
            for input in inputs {
                reader(&std::fs::read(input).unwrap());
            }
        }
    }

    #[test]
    fn each_reader_is_a_target() {
        let targets = files("fuzz_targets");
        let targets = targets
            .iter()
            .map(|file| file.file_stem().unwrap().to_str().unwrap());
        assert!(targets.eq(READERS.iter().map(|(name, _)| *name)));
    }
}
