//! Whom we believe: the trust anchors of a bundle.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage};

use crate::Error;
use crate::credentials::provider;

/// A parsed bundle. Cheap to clone; equal when it holds the same certificates in the same order.
#[derive(Clone, Debug)]
pub struct TrustAnchors {
    pub(crate) roots: Arc<RootCertStore>,
    certificates: Arc<[CertificateDer<'static>]>,
}

impl PartialEq for TrustAnchors {
    fn eq(&self, other: &Self) -> bool {
        self.certificates == other.certificates
    }
}

impl Eq for TrustAnchors {}

impl TrustAnchors {
    /// Every certificate of a PEM bundle; other sections are an error, an empty bundle too.
    pub fn from_pem(pem: &str) -> Result<Self, Error> {
        let what = "the trust bundle";
        let certificates: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(pem.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|_| Error::Pem { what })?;
        if certificates.is_empty() {
            return Err(Error::NoCertificate { what });
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

    /// Same set of certificates, whatever the order.
    pub fn same_set(&self, other: &Self) -> bool {
        let sorted = |anchors: &Self| {
            let mut all: Vec<&[u8]> = anchors.certificates.iter().map(AsRef::as_ref).collect();
            all.sort_unstable();
            all.dedup();
            all.into_iter().map(<[u8]>::to_vec).collect::<Vec<_>>()
        };
        sorted(self) == sorted(other)
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
            .map_err(|error| Error::Untrusted(error.to_string()))
    }
}

pub(crate) fn unix(time: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(time.duration_since(UNIX_EPOCH).unwrap_or_default())
}
