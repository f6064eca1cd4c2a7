//! The transport header: what a client proxy says before the first byte of a direct connection.
//!
//! Preface, length, and a small protobuf message (`spec/proxy.md` 4.5). Pure; the ALPN that announces it is
//! `hawser_tls::ALPN_TRANSPORT`.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;

const PREFACE: &[u8] = b"transport.l5d.io/v1\r\n\r\n";
/// Longer headers are refused.
const LENGTH_MAX: usize = 64 * 1024;

/// How the bytes after the header are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Session {
    Opaque,
    Http1,
    Http2,
}

impl Session {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Opaque => "",
            Self::Http1 => "http/1",
            Self::Http2 => "http/2",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) port: u16,
    /// A name makes the receiver a gateway.
    pub(crate) name: Option<String>,
    pub(crate) session: Session,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HeaderError {
    #[error("the connection does not begin with a transport header")]
    Preface,
    #[error("the transport header is longer than 64 KiB")]
    TooLong,
    #[error("the transport header cannot be read")]
    Malformed,
    #[error("the transport header's port is not a port")]
    Port,
    #[error("the transport header's name is not a DNS name")]
    Name,
}

#[derive(Clone, PartialEq, Message)]
struct Wire {
    #[prost(int32, tag = "1")]
    port: i32,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(message, optional, tag = "3")]
    session: Option<WireSession>,
}

#[derive(Clone, PartialEq, Message)]
struct WireSession {
    #[prost(oneof = "Kind", tags = "1, 2")]
    kind: Option<Kind>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Kind {
    #[prost(message, tag = "1")]
    Http1(Nothing),
    #[prost(message, tag = "2")]
    Http2(Nothing),
}

#[derive(Clone, PartialEq, Message)]
struct Nothing {}

impl Header {
    pub(crate) fn encode(&self) -> Bytes {
        let kind = match self.session {
            Session::Opaque => None,
            Session::Http1 => Some(Kind::Http1(Nothing {})),
            Session::Http2 => Some(Kind::Http2(Nothing {})),
        };
        let wire = Wire {
            port: i32::from(self.port),
            name: self.name.clone().unwrap_or_default(),
            session: kind.map(|kind| WireSession { kind: Some(kind) }),
        };
        let length = wire.encoded_len();
        let mut out = BytesMut::with_capacity(PREFACE.len() + 4 + length);
        out.put_slice(PREFACE);
        out.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
        wire.encode_raw(&mut out);
        out.freeze()
    }

    /// Takes a header off the front. `Ok(None)` asks for more bytes and leaves them untouched.
    pub(crate) fn decode(bytes: &mut BytesMut) -> Result<Option<Self>, HeaderError> {
        let known = bytes.len().min(PREFACE.len());
        if bytes[..known] != PREFACE[..known] {
            return Err(HeaderError::Preface);
        }
        let Some(mut length) = bytes.get(PREFACE.len()..PREFACE.len() + 4) else {
            return Ok(None);
        };
        let length = length.get_u32() as usize;
        if length > LENGTH_MAX {
            return Err(HeaderError::TooLong);
        }
        if bytes.len() < PREFACE.len() + 4 + length {
            return Ok(None);
        }
        bytes.advance(PREFACE.len() + 4);
        let wire = Wire::decode(bytes.split_to(length)).map_err(|_| HeaderError::Malformed)?;
        let port = u16::try_from(wire.port)
            .ok()
            .filter(|port| *port > 0)
            .ok_or(HeaderError::Port)?;
        let name = wire.name.trim_end_matches('.').to_ascii_lowercase();
        if !name.is_empty() && !dns_name(&name) {
            return Err(HeaderError::Name);
        }
        let session = match wire.session.and_then(|session| session.kind) {
            None => Session::Opaque,
            Some(Kind::Http1(_)) => Session::Http1,
            Some(Kind::Http2(_)) => Session::Http2,
        };
        Ok(Some(Self {
            port,
            name: Some(name).filter(|name| !name.is_empty()),
            session,
        }))
    }
}

fn dns_name(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    name.len() <= 253 && name.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::damage::{cuts, damaged, pieces};
    use proptest::prelude::*;

    #[test]
    fn the_wire_form_is_linkerds() {
        let header = Header {
            port: 80,
            name: Some("web.svc".into()),
            session: Session::Http2,
        };
        let expected = b"transport.l5d.io/v1\r\n\r\n\0\0\0\x0f\x08\x50\x12\x07web.svc\x1a\x02\x12\0";
        assert_eq!(&header.encode()[..], expected);
    }

    #[test]
    fn a_name_that_is_no_dns_name_is_refused() {
        let header = Header {
            port: 80,
            name: Some("web svc/..".into()),
            session: Session::Opaque,
        };
        assert_eq!(
            Header::decode(&mut BytesMut::from(&header.encode()[..])),
            Err(HeaderError::Name)
        );
    }

    #[test]
    fn port_zero_is_refused() {
        let header = Header {
            port: 0,
            name: None,
            session: Session::Opaque,
        };
        assert_eq!(
            Header::decode(&mut BytesMut::from(&header.encode()[..])),
            Err(HeaderError::Port)
        );
    }

    proptest! {
        #[test]
        fn headers_survive_the_wire_in_any_pieces(
            port in 1u16.., name in proptest::option::of("[a-z][a-z0-9-]{0,20}(\\.[a-z]{1,9}){0,3}"),
            session in prop_oneof![Just(Session::Opaque), Just(Session::Http1), Just(Session::Http2)],
            cut in any::<proptest::sample::Index>(), rest in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let header = Header { port, name, session };
            let bytes = header.encode();
            let cut = cut.index(bytes.len());
            let mut buffer = BytesMut::from(&bytes[..cut]);
            prop_assert_eq!(Header::decode(&mut buffer), Ok(None));
            buffer.extend_from_slice(&bytes[cut..]);
            buffer.extend_from_slice(&rest);
            prop_assert_eq!(Header::decode(&mut buffer), Ok(Some(header)));
            prop_assert_eq!(&buffer[..], &rest[..]);
        }

        #[test]
        fn a_damaged_header_is_read_alike_in_any_pieces_and_means_what_it_says(
            bytes in damaged(prop_oneof![
                (1u16.., "[a-z.]{0,30}", 0..3_usize).prop_map(|(port, name, session)| {
                    let session = [Session::Opaque, Session::Http1, Session::Http2][session];
                    Header { port, name: Some(name), session }.encode().to_vec()
                }),
                proptest::collection::vec(any::<u8>(), 0..200).prop_map(|message| {
                    [PREFACE, &(message.len() as u32).to_be_bytes(), &message].concat()
                }),
            ]),
            cuts in cuts(),
        ) {
            let whole = Header::decode(&mut BytesMut::from(&bytes[..]));
            let (mut read, mut found) = (BytesMut::new(), Ok(None));
            for piece in pieces(&bytes, &cuts) {
                read.extend_from_slice(piece);
                if found == Ok(None) {
                    let before = read.clone();
                    found = Header::decode(&mut read);
                    if found == Ok(None) {
                        prop_assert_eq!(&read, &before, "untouched");
                        prop_assert!(read.len() < PREFACE.len() + 4 + LENGTH_MAX);
                    }
                }
            }
            prop_assert_eq!(&found, &whole);
            if let Ok(Some(header)) = whole {
                prop_assert!(header.port > 0 && header.name.as_deref().is_none_or(dns_name));
                prop_assert_eq!(Header::decode(&mut BytesMut::from(&header.encode()[..])), Ok(Some(header)));
            }
        }
    }
}
