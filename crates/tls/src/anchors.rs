//! Whom we believe: the trust anchors of a bundle.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage};

use crate::credentials::provider;
use crate::inspect::Fingerprint;
use crate::{Error, Role};

/// A parsed bundle. Cheap to clone; equal when it holds the same certificates in the same order.
#[derive(Clone, Debug)]
pub struct TrustAnchors {
    pub(crate) roots: Arc<RootCertStore>,
    certificates: Arc<[CertificateDer<'static>]>,
}

impl PartialEq for TrustAnchors {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.certificates, &other.certificates) || self.certificates == other.certificates
    }
}

impl Eq for TrustAnchors {}

impl TrustAnchors {
    /// Every certificate of a PEM bundle; other sections are an error, an empty bundle too.
    pub fn from_pem(pem: &str) -> Result<Self, Error> {
        let certificates = crate::certificates(pem, "the trust bundle")?;
        Self::from_certificates(certificates)
    }

    fn from_certificates(certificates: Vec<CertificateDer<'static>>) -> Result<Self, Error> {
        if certificates.is_empty() {
            return Err(Error::NoCertificate {
                what: "the trust bundle",
            });
        }
        let mut roots = RootCertStore::empty();
        for certificate in &certificates {
            roots
                .add(certificate.clone())
                .map_err(|_| Error::Certificate("a trust anchor is not an X.509 certificate"))?;
        }
        Ok(Self {
            roots: Arc::new(roots),
            certificates: certificates.into(),
        })
    }

    /// The certificates, DER, in the bundle's order.
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.certificates
    }

    /// The SHA-256 of every certificate, sorted: what two bundles are compared by.
    pub fn fingerprints(&self) -> BTreeSet<Fingerprint> {
        self.certificates.iter().map(Fingerprint::of).collect()
    }

    /// Same set of certificates, whatever the order.
    pub fn same_set(&self, other: &Self) -> bool {
        self.fingerprints() == other.fingerprints()
    }

    /// Is every anchor of `other` one of these as well?
    pub fn includes(&self, other: &Self) -> bool {
        self == other || self.fingerprints().is_superset(&other.fingerprints())
    }

    /// The anchors of a larger bundle that are known by their fingerprints only; nothing if there are none.
    pub fn only(&self, wanted: &BTreeSet<Fingerprint>) -> Option<Self> {
        let mut kept = self.certificates.to_vec();
        kept.retain(|certificate| wanted.contains(&Fingerprint::of(certificate)));
        Self::from_certificates(kept).ok()
    }

    /// Would the holder of this chain be believed, as it was at `then`? Later expiry doesn't matter: this is asked of
    /// open connections, which may outlive a certificate but not the trust in who issued it.
    pub fn believe(&self, chain: &[CertificateDer<'_>], peer: Role, then: SystemTime) -> bool {
        let usage = match peer {
            Role::Client => KeyUsage::client_auth(),
            Role::Server => KeyUsage::server_auth(),
        };
        chain
            .split_first()
            .is_some_and(|(leaf, rest)| self.verify_for(leaf, rest, then, usage).is_ok())
    }

    /// Does this leaf chain to an anchor, is everything on the way valid at `now`, and may it be used by clients and
    /// servers alike?
    pub fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: SystemTime,
    ) -> Result<(), Error> {
        self.verify_for(leaf, intermediates, now, KeyUsage::server_auth())?;
        self.verify_for(leaf, intermediates, now, KeyUsage::client_auth())
    }

    /// The same for a certificate that only servers show, such as a webhook's.
    pub fn verify_server(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: SystemTime,
    ) -> Result<(), Error> {
        self.verify_for(leaf, intermediates, now, KeyUsage::server_auth())
    }

    pub(crate) fn verify_for(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: SystemTime,
        usage: KeyUsage,
    ) -> Result<(), Error> {
        let certificate =
            EndEntityCert::try_from(leaf).map_err(|_| Error::Certificate("not an X.509 leaf"))?;
        let algorithms = provider().signature_verification_algorithms.all;
        certificate
            .verify_for_usage(
                algorithms,
                &self.roots.roots,
                intermediates,
                unix(now),
                usage,
                None,
                None,
            )
            .map(|_| ())
            .map_err(|error| Error::Untrusted(in_words(&error)))
    }
}

/// What people get wrong most often, in words.
fn in_words(error: &webpki::Error) -> String {
    match error {
        webpki::Error::UnknownIssuer => "no anchor of the bundle signed it".into(),
        webpki::Error::InvalidSignatureForPublicKey => {
            "the anchor of that name has another key than the one that signed it".into()
        }
        other => other.to_string(),
    }
}

pub(crate) fn unix(time: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(time.duration_since(UNIX_EPOCH).unwrap_or_default())
}
