//! What identifies a certificate, and whether a mesh can use it as an anchor or an issuer.
//!
//! For checks before anything is rendered; handshakes don't come here. Judges one certificate at a time: whether two fit
//! together is [`crate::Issuer::verify`]. Source of the rules: `spec/proxy.md` 3.4.

use std::fmt;
use std::time::SystemTime;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::prelude::X509Certificate;

use crate::{Description, Error};

/// The SHA-256 of a certificate, as openssl and step show it, without colons.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, certificate);
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest.as_ref());
        Self(bytes)
    }

    /// Reads what [`fmt::Display`] wrote.
    pub fn from_hex(text: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
        }
        Some(Self(bytes))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Every certificate of a PEM text, in order; none is an error. `what` names the text in errors.
pub fn certificates(pem: &str, what: &'static str) -> Result<Vec<CertificateDer<'static>>, Error> {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|_| Error::Pem { what })?;
    if certificates.is_empty() {
        return Err(Error::NoCertificate { what });
    }
    Ok(certificates)
}

/// As [`Description::key`] names it.
const ISSUER_KEY: &str = "ECDSA P-256";

/// Why a certificate can't be an anchor or an issuer of a mesh.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("it has expired")]
    Expired,
    #[error("it is not valid yet")]
    NotYetValid,
    #[error("it is not a certificate authority (basicConstraints CA with keyCertSign)")]
    NotAnAuthority,
    #[error("its key is {0}; ECDSA P-256 is needed")]
    IssuerKey(String),
    #[error("its key is {0}; ECDSA P-256, or RSA of 2048 or 4096 bits, is needed")]
    AnchorKey(String),
}

impl Description {
    /// What keeps it from being a trust anchor.
    pub fn fault_as_anchor(&self, now: SystemTime) -> Option<Fault> {
        let usable = [ISSUER_KEY, "RSA 2048", "RSA 4096"].contains(&self.key.as_str());
        self.fault(now)
            .or_else(|| (!usable).then(|| Fault::AnchorKey(self.key.clone())))
    }

    /// What keeps it from being an issuer.
    pub fn fault_as_issuer(&self, now: SystemTime) -> Option<Fault> {
        self.fault(now)
            .or_else(|| (self.key != ISSUER_KEY).then(|| Fault::IssuerKey(self.key.clone())))
    }

    fn fault(&self, now: SystemTime) -> Option<Fault> {
        if self.not_after <= now {
            Some(Fault::Expired)
        } else if self.not_before > now {
            Some(Fault::NotYetValid)
        } else {
            (!self.is_authority).then_some(Fault::NotAnAuthority)
        }
    }
}

/// May the certificate sign others?
pub(crate) fn is_authority(certificate: &X509Certificate<'_>) -> bool {
    let usage = certificate.key_usage().ok().flatten();
    certificate.is_ca() && usage.is_none_or(|usage| usage.value.key_cert_sign())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{CertificateParams, IsCa, KeyPair, PKCS_ECDSA_P384_SHA384};

    use super::*;
    use crate::{TrustAnchors, Validity, create_root};

    const DAY: Duration = Duration::from_secs(86_400);

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + 20_000 * DAY
    }

    fn root(from: SystemTime, to: SystemTime) -> String {
        let validity = Validity {
            not_before: from,
            not_after: to,
        };
        create_root("root.test", validity).unwrap().certificate_pem
    }

    fn read(pem: &str) -> Description {
        Description::of(&certificates(pem, "it").unwrap()[0]).unwrap()
    }

    #[test]
    fn a_fingerprint_is_read_as_it_is_written() {
        let root = certificates(&root(now() - DAY, now() + DAY), "it").unwrap();
        let fingerprint = Fingerprint::of(&root[0]);
        assert_eq!(Fingerprint::from_hex(&fingerprint.to_string()), Some(fingerprint));
        for wrong in ["", "00", &"x".repeat(64), &"+1".repeat(32), &"é".repeat(32)] {
            assert_eq!(Fingerprint::from_hex(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn certificates_that_a_mesh_cannot_use_are_told_apart() {
        let foreign = |change: fn(&mut CertificateParams)| {
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            change(&mut params);
            let key = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
            read(&params.self_signed(&key).unwrap().pem())
        };
        let p384 = foreign(|_| {});
        assert_eq!(
            p384.fault_as_issuer(now()),
            Some(Fault::IssuerKey("ECDSA P-384".into()))
        );
        assert_eq!(
            p384.fault_as_anchor(now()),
            Some(Fault::AnchorKey("ECDSA P-384".into()))
        );
        let leaf = foreign(|params| params.is_ca = IsCa::NoCa);
        assert_eq!(leaf.fault_as_anchor(now()), Some(Fault::NotAnAuthority));
        let good = read(&root(now() - DAY, now() + DAY));
        assert_eq!(
            (good.fault_as_anchor(now()), good.fault_as_issuer(now())),
            (None, None)
        );
        let past = read(&root(now() - 2 * DAY, now() - DAY));
        assert_eq!(past.fault_as_anchor(now()), Some(Fault::Expired));
        let future = read(&root(now() + DAY, now() + 2 * DAY));
        assert_eq!(future.fault_as_issuer(now()), Some(Fault::NotYetValid));
    }

    #[test]
    fn bundles_are_compared_by_what_they_hold() {
        let (a, b) = (root(now(), now() + DAY), root(now(), now() + DAY));
        let bundle = |texts: &[&str]| TrustAnchors::from_pem(&texts.concat()).unwrap();
        let both = bundle(&[&a, &b]);
        assert!(both.same_set(&bundle(&[&b, &a, &b])));
        assert!(both.includes(&bundle(&[&a])) && !bundle(&[&a]).includes(&both));
        let only = both.only(&bundle(&[&b]).fingerprints()).unwrap();
        assert_eq!(only, bundle(&[&b]));
        assert_eq!(bundle(&[&a]).only(&only.fingerprints()), None);
    }
}
