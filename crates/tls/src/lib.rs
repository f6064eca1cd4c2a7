//! Keys, certificates and mutual TLS by identity.
//!
//! The only crate that names rustls or X.509 types in its logic: [`PrivateKey`] and [`csr`] make what a proxy sends
//! to the identity service, [`Issuer`] signs it, [`TrustAnchors`] say whom we believe, and [`Credentials`] turn all
//! that into rustls configurations. TLS 1.3 only (`spec/proxy.md` 4.1). No I/O: callers read files and sockets, and
//! pass the time where a decision depends on it (rustls reads the clock itself during handshakes).

mod anchors;
mod authority;
mod credentials;
mod describe;
mod inspect;
mod key;
mod verify;

pub use anchors::TrustAnchors;
pub use authority::{
    Created, Issued, Issuer, Validity, check_csr, create_issuer, create_root, create_server, is_csr,
};
pub use credentials::{Credentials, anonymous_client, provider};
pub use describe::{Description, inspecting_client};
pub use inspect::{Fault, Fingerprint, certificates};
pub use key::{PrivateKey, csr};
pub use verify::{Refusal, peer_identity, refusal};

/// ALPN of connections that begin with a transport header (`spec/proxy.md` 4.5).
pub const ALPN_TRANSPORT: &[u8] = b"transport.l5d.io/v1";

/// On which side of a connection somebody is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Client,
    Server,
}

/// What was wrong with a key, a certificate or a chain. Never carries secrets.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{what} is not valid PEM")]
    Pem { what: &'static str },
    #[error("{what} holds no certificate")]
    NoCertificate { what: &'static str },
    #[error("the private key is not usable: PKCS#8 or SEC1, ECDSA P-256 expected")]
    Key,
    #[error("the certificate cannot be read: {0}")]
    Certificate(&'static str),
    #[error("the private key does not belong to the certificate")]
    KeyMismatch,
    #[error("the certificate is not an authority (basicConstraints CA, keyCertSign)")]
    NotAnAuthority,
    #[error("the certificate does not chain to a trust anchor: {0}")]
    Untrusted(String),
    #[error("the certificate is for {found}, not for {expected}")]
    WrongName { expected: String, found: String },
    #[error("the certificate signing request is not acceptable: {0}")]
    Csr(&'static str),
    #[error("signing failed")]
    Signing,
}
