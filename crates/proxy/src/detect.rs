//! What are these first bytes? TLS by its ClientHello, HTTP by its first line. Pure: bytes in, verdict out.
//!
//! Deliberately knows no sockets, no policy and no timeouts; callers read, ask, and read more on [`Tls::More`].

/// No ClientHello of ours is longer; longer ones are not looked into.
pub(crate) const HELLO_MAX: usize = 8 * 1024;

const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0";

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Tls {
    /// A ClientHello that names this server.
    Sni(String),
    /// Not TLS, or TLS without a server name.
    No,
    /// Undecided: more bytes are needed.
    More,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Http {
    One,
    Two,
    No,
    More,
}

/// Looks for a ClientHello in one TLS record.
pub(crate) fn tls(bytes: &[u8]) -> Tls {
    const RECORD: usize = 5;
    match bytes {
        [] => return Tls::More,
        [22] | [22, 3] | [22, 3, 1 | 3] => return Tls::More,
        [22, 3, 1 | 3, ..] => {}
        _ => return Tls::No,
    }
    let Some(length) = bytes.get(3..RECORD) else {
        return Tls::More;
    };
    let length = usize::from(length[0]) << 8 | usize::from(length[1]);
    if !(4..=HELLO_MAX - RECORD).contains(&length) {
        return Tls::No;
    }
    if bytes.get(RECORD).is_some_and(|kind| *kind != 1) {
        return Tls::No;
    }
    match bytes.get(RECORD..RECORD + length) {
        None => Tls::More,
        Some(record) => sni(record).map_or(Tls::No, Tls::Sni),
    }
}

/// The server name of a whole ClientHello handshake message.
fn sni(record: &[u8]) -> Option<String> {
    let mut hello = Reader(record);
    hello.take(1 + 3 + 2 + 32)?;
    hello.prefixed(1)?;
    hello.prefixed(2)?;
    hello.prefixed(1)?;
    let mut extensions = Reader(hello.prefixed(2)?);
    while !extensions.0.is_empty() {
        let kind = extensions.take(2)?;
        let mut body = Reader(extensions.prefixed(2)?);
        if kind == [0, 0] {
            let mut names = Reader(body.prefixed(2)?);
            let host_name = names.take(1)? == [0];
            let name = names.prefixed(2)?;
            // The root's dot is no part of it, for TLS libraries neither.
            let name = name.strip_suffix(b".").unwrap_or(name);
            return host_name.then(|| String::from_utf8(name.to_vec()).ok()).flatten();
        }
    }
    None
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(n)?;
        self.0 = tail;
        Some(head)
    }

    fn prefixed(&mut self, width: usize) -> Option<&'a [u8]> {
        let length = self
            .take(width)?
            .iter()
            .fold(0, |n, byte| n << 8 | usize::from(*byte));
        self.take(length)
    }
}

/// Tells HTTP/2's preface and HTTP/1's request line from everything else.
///
/// Shorter than the original's fourteen bytes counts too, as long as what is there can still become a request.
pub(crate) fn http(bytes: &[u8]) -> Http {
    if bytes.starts_with(H2_PREFACE) {
        return Http::Two;
    }
    if H2_PREFACE.starts_with(bytes) {
        return Http::More;
    }
    let Some(end) = bytes.iter().position(|b| *b == b'\n') else {
        return match plausible(bytes) {
            true if bytes.len() >= HELLO_MAX => Http::One,
            true => Http::More,
            false => Http::No,
        };
    };
    let line = &bytes[..end];
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let versioned = line.ends_with(b" HTTP/1.1") || line.ends_with(b" HTTP/1.0");
    if versioned && plausible(line) {
        Http::One
    } else {
        Http::No
    }
}

/// Could this be the start of a request line: a method token, then a target of visible bytes?
fn plausible(line: &[u8]) -> bool {
    let token = |b: &u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b);
    let method = line.iter().take_while(|b| token(b)).count();
    if method == 0 || method > 24 {
        return false;
    }
    match line.get(method) {
        None => true,
        Some(b' ') => line[method + 1..]
            .iter()
            .all(|b| *b == b'\r' || *b >= 0x20 && *b != 0x7f),
        Some(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::damage::damaged;
    use proptest::prelude::*;
    use proptest::sample::select;

    fn hello(name: &str) -> Vec<u8> {
        let mut connection = rustls::ClientConnection::new(
            std::sync::Arc::new(
                rustls::ClientConfig::builder_with_provider(hawser_tls::provider().clone())
                    .with_safe_default_protocol_versions()
                    .unwrap()
                    .with_root_certificates(rustls::RootCertStore::empty())
                    .with_no_client_auth(),
            ),
            name.to_owned().try_into().unwrap(),
        )
        .unwrap();
        let mut bytes = Vec::new();
        connection.write_tls(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_real_client_hello_names_its_server() {
        assert_eq!(tls(&hello("web.example")), Tls::Sni("web.example".into()));
    }

    #[test]
    fn a_name_that_ends_in_a_dot_is_the_one_without() {
        let mut bytes = hello("web.example");
        let last = bytes.windows(11).position(|part| part == b"web.example").unwrap() + 10;
        bytes[last] = b'.';
        assert_eq!(tls(&bytes), Tls::Sni("web.exampl".into()));
        assert_eq!(seen_by_rustls(&bytes), Some("web.exampl".into()));
    }

    #[test]
    fn every_prefix_of_a_client_hello_asks_for_more() {
        let bytes = hello("web.example");
        for end in 0..bytes.len() {
            assert_eq!(tls(&bytes[..end]), Tls::More, "{end}");
        }
    }

    #[test]
    fn requests_are_told_from_other_protocols() {
        for (bytes, verdict) in [
            (&b"PRI * HTTP/2.0\r\n\r\nSM"[..], Http::Two),
            (b"PRI ", Http::More),
            (b"", Http::More),
            (b"GET / HTTP/1.1\r\n", Http::One),
            (b"GET / HTTP/1.0\n", Http::One),
            (b"GET /a", Http::More),
            (b"G", Http::More),
            (b"GET / HTTP/3\r\n", Http::No),
            (b"SSH-2.0-OpenSSH\r\n", Http::No),
            (b"\x16\x03\x01", Http::No),
            (b"*1\r\n$4\r\nPING\r\n", Http::No),
            (b"EHLO mail\r\n", Http::No),
        ] {
            assert_eq!(http(bytes), verdict, "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    /// What rustls makes of the same bytes, if it takes them for a ClientHello with a server's name.
    fn seen_by_rustls(mut bytes: &[u8]) -> Option<String> {
        let mut acceptor = rustls::server::Acceptor::default();
        acceptor.read_tls(&mut bytes).ok()?;
        let accepted = acceptor.accept().ok()??;
        accepted.client_hello().server_name().map(str::to_owned)
    }

    proptest! {
        #[test]
        fn no_bytes_make_detection_panic_or_wait_for_ever(bytes in proptest::collection::vec(any::<u8>(), 0..HELLO_MAX + 64)) {
            let _ = tls(&bytes);
            let _ = http(&bytes);
            if bytes.len() >= HELLO_MAX {
                prop_assert_ne!(tls(&bytes), Tls::More);
                prop_assert_ne!(http(&bytes), Http::More);
            }
        }

        #[test]
        fn the_servers_name_is_the_one_that_a_tls_library_sees(
            bytes in damaged("([a-z0-9-]{1,30}\\.){0,4}[a-z]{1,20}".prop_filter("a name", |name| !name.starts_with('-')
                && !name.contains(".-") && !name.contains("-.")).prop_map(|name| hello(&name))),
        ) {
            if let (Tls::Sni(ours), Some(theirs)) = (tls(&bytes), seen_by_rustls(&bytes)) {
                prop_assert!(ours.eq_ignore_ascii_case(&theirs), "{ours} {theirs}");
            }
        }

        #[test]
        fn a_verdict_is_the_same_however_much_has_come(
            bytes in damaged(prop_oneof![
                Just(hello("web.example")),
                select(vec![
                    "GET /a?b HTTP/1.1\r\nhost: a\r\n\r\n", "POST /a HTTP/1.0\n\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0",
                    "SSH-2.0-OpenSSH\r\n", "*1\r\n$4\r\nPING\r\n", "EHLO mail\r\n",
                ]).prop_map(|text| text.as_bytes().to_vec()),
            ]),
        ) {
            let mut verdicts = (Tls::More, Http::More);
            for end in 0..=bytes.len() {
                let now = (tls(&bytes[..end]), http(&bytes[..end]));
                prop_assert!(verdicts.0 == Tls::More || verdicts.0 == now.0, "{verdicts:?} {now:?}");
                prop_assert!(verdicts.1 == Http::More || verdicts.1 == now.1, "{verdicts:?} {now:?}");
                verdicts = now;
            }
        }
    }
}
