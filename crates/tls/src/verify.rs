//! Verification by identity: a chain to an anchor, and the expected name among the leaf's names. No host names.
//!
//! Source: `spec/proxy.md` 4.2.

use std::sync::Arc;

use hawser_core::Identity;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, OtherError, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::anchors::TrustAnchors;
use crate::credentials::provider;

/// Why a handshake was refused, as logs and metrics name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Refusal {
    Expired,
    NotYetValid,
    UnknownIssuer,
    WrongName,
    /// Some other fault of the peer's certificate.
    BadCertificate,
    /// Not TLS 1.3, or not TLS at all.
    Protocol,
}

impl Refusal {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Expired => "certificate has expired",
            Self::NotYetValid => "certificate is not valid yet",
            Self::UnknownIssuer => "certificate does not chain to a trust anchor",
            Self::WrongName => "certificate does not match TLS identity",
            Self::BadCertificate => "certificate is not acceptable",
            Self::Protocol => "TLS handshake failed",
        }
    }
}

/// The reason inside a rustls error.
pub fn refusal(error: &rustls::Error) -> Refusal {
    let rustls::Error::InvalidCertificate(error) = error else {
        return Refusal::Protocol;
    };
    match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => Refusal::Expired,
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => Refusal::NotYetValid,
        CertificateError::UnknownIssuer | CertificateError::BadSignature => Refusal::UnknownIssuer,
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            Refusal::WrongName
        }
        CertificateError::Other(OtherError(source)) if source.is::<WrongIdentity>() => Refusal::WrongName,
        _ => Refusal::BadCertificate,
    }
}

#[derive(Debug, thiserror::Error)]
#[error("certificate does not match TLS identity {expected}: it is for {found:?}")]
struct WrongIdentity {
    expected: Identity,
    found: Option<Identity>,
}

/// The identity that a certificate gives its holder: its first name that is a DNS or URI identity.
pub fn peer_identity(leaf: &CertificateDer<'_>) -> Option<Identity> {
    identities(leaf).into_iter().next()
}

/// Every identity among the subject alternative names, in order. Unreadable certificates have none.
pub(crate) fn identities(leaf: &CertificateDer<'_>) -> Vec<Identity> {
    let Ok((_, certificate)) = X509Certificate::from_der(leaf) else {
        return Vec::new();
    };
    let names = certificate
        .extensions()
        .iter()
        .find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
            _ => None,
        });
    names
        .into_iter()
        .flatten()
        .filter_map(|name| match name {
            // A URI in a DNS name would let an issuer of DNS names hand out SPIFFE ids.
            GeneralName::DNSName(name) => name.parse().ok().filter(|id| matches!(id, Identity::Dns(_))),
            GeneralName::URI(uri) => uri.parse().ok().filter(|id| matches!(id, Identity::Uri(_))),
            _ => None,
        })
        .collect()
}

/// Verifies a server by its identity.
#[derive(Debug)]
pub(crate) struct ServerIdentity {
    pub(crate) anchors: TrustAnchors,
    pub(crate) expected: Identity,
}

impl ServerCertVerifier for ServerIdentity {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let certificate = EndEntityCert::try_from(leaf).map_err(webpki_error)?;
        certificate
            .verify_for_usage(
                provider().signature_verification_algorithms.all,
                &self.anchors.roots.roots,
                intermediates,
                now,
                KeyUsage::server_auth(),
                None,
                None,
            )
            .map_err(webpki_error)?;
        let found = identities(leaf);
        if found.contains(&self.expected) {
            return Ok(ServerCertVerified::assertion());
        }
        let wrong = WrongIdentity {
            expected: self.expected.clone(),
            found: found.into_iter().next(),
        };
        Err(CertificateError::Other(OtherError(Arc::new(wrong))).into())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::PeerIncompatible::Tls13RequiredForQuic.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, leaf, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

fn webpki_error(error: webpki::Error) -> rustls::Error {
    use webpki::Error as E;
    match error {
        E::CertExpired { .. } => CertificateError::Expired,
        E::CertNotValidYet { .. } => CertificateError::NotValidYet,
        E::UnknownIssuer => CertificateError::UnknownIssuer,
        // Of an issuer with the name that we know and another key.
        E::InvalidSignatureForPublicKey => CertificateError::BadSignature,
        E::BadDer | E::BadDerTime => CertificateError::BadEncoding,
        other => CertificateError::Other(OtherError(Arc::new(other))),
    }
    .into()
}
