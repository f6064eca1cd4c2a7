//! Issuing: trust anchors and issuers made by the command line, leaves signed by the identity service.
//!
//! Whether a requester may have a name is decided by the caller (TokenReview); this module makes sure that a request
//! asks for exactly that name and that a leaf never outlives its issuer. Source: `spec/proxy.md` 3.2 to 3.4.

use std::fmt;
use std::time::{Duration, SystemTime};

use hawser_core::Identity;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, ExtendedKeyUsagePurpose, IsCa,
    KeyUsagePurpose, SerialNumber,
};
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer};
use time::OffsetDateTime;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::anchors::TrustAnchors;
use crate::credentials::expiry;
use crate::inspect::{Fingerprint, is_authority};
use crate::key::{PrivateKey, common_name, dns_san};
use crate::{Error, anchors};

/// When a certificate is valid. Seconds are X.509's resolution.
#[derive(Clone, Copy, Debug)]
pub struct Validity {
    pub not_before: SystemTime,
    pub not_after: SystemTime,
}

/// A new certificate with its key.
#[derive(Debug)]
pub struct Created {
    pub certificate_pem: String,
    pub key: PrivateKey,
}

/// A leaf, as the identity service returns it.
#[derive(Clone, Debug)]
pub struct Issued {
    pub leaf: CertificateDer<'static>,
    /// The leaf's issuer first; the trust anchor is left out by convention unless it is the issuer itself.
    pub intermediates: Vec<CertificateDer<'static>>,
    pub not_after: SystemTime,
}

/// A certificate authority below a trust anchor.
pub struct Issuer {
    signer: rcgen::Issuer<'static, SigningKey>,
    chain: Vec<CertificateDer<'static>>,
    expires_at: SystemTime,
}

/// Lets rcgen sign with a key that stays inside [`PrivateKey`].
struct SigningKey(PrivateKey);

impl rcgen::PublicKeyData for SigningKey {
    fn der_bytes(&self) -> &[u8] {
        self.0.pair().der_bytes()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        rcgen::PublicKeyData::algorithm(self.0.pair())
    }
}

impl rcgen::SigningKey for SigningKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        rcgen::SigningKey::sign(self.0.pair(), message)
    }
}

impl fmt::Debug for Issuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issuer")
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

impl Issuer {
    /// Reads an issuer's chain (its own certificate first) and key; refuses what could never issue.
    pub fn from_pem(certificates: &str, key: &str) -> Result<Self, Error> {
        let what = "the issuer certificate";
        let chain = crate::certificates(certificates, what)?;
        let own = chain.first().ok_or(Error::NoCertificate { what })?;
        let key = PrivateKey::from_pem(key)?;
        let (_, parsed) = X509Certificate::from_der(own)
            .map_err(|_| Error::Certificate("the issuer is not an X.509 certificate"))?;
        if !is_authority(&parsed) {
            return Err(Error::NotAnAuthority);
        }
        if !key.is_ecdsa_p256() {
            return Err(Error::Key);
        }
        if parsed.public_key().subject_public_key.data.as_ref() != key.pair().public_key_raw() {
            return Err(Error::KeyMismatch);
        }
        let mut expires_at = expiry(own)?;
        for certificate in &chain {
            expires_at = expires_at.min(expiry(certificate)?);
        }
        let signer = rcgen::Issuer::from_ca_cert_der(own, SigningKey(key))
            .map_err(|_| Error::Certificate("the issuer's subject or key usage cannot be read"))?;
        Ok(Self {
            signer,
            chain,
            expires_at,
        })
    }

    /// The SHA-256 of its own certificate.
    pub fn fingerprint(&self) -> Option<Fingerprint> {
        self.chain.first().map(Fingerprint::of)
    }

    /// When the first certificate of the issuer's chain expires.
    pub fn expires_at(&self) -> SystemTime {
        self.expires_at
    }

    /// Would leaves of this issuer be believed by somebody who trusts `anchors`?
    ///
    /// Issues a throw-away leaf and verifies it, which covers chain, validity, path length and name constraints.
    pub fn verify(&self, anchors: &TrustAnchors, now: SystemTime) -> Result<(), Error> {
        let key = PrivateKey::generate()?;
        let identity = "probe.hawser.invalid"
            .parse()
            .map_err(|_| Error::Certificate("probe name"))?;
        let request = crate::csr(&key, &identity)?;
        let probe = self.issue(&request, &identity, Duration::from_secs(60), Duration::ZERO, now)?;
        anchors.verify(&probe.leaf, &probe.intermediates, now)
    }

    /// Signs a request, if it asks for `identity` and nothing else. The leaf is valid from `now - skew` to
    /// `now + lifetime + skew`, but never longer than the issuer's chain.
    pub fn issue(
        &self,
        request: &CertificateSigningRequestDer<'_>,
        identity: &Identity,
        lifetime: Duration,
        skew: Duration,
        now: SystemTime,
    ) -> Result<Issued, Error> {
        let name = identity
            .dns_name()
            .ok_or(Error::Csr("only DNS identities are issued"))?;
        check_request(request, name)?;
        let request = CertificateSigningRequestParams::from_der(request)
            .map_err(|_| Error::Csr("its signature is not valid"))?;
        let not_after = (now + lifetime + skew).min(self.expires_at);
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(name);
        params.subject_alt_names = vec![dns_san(name)?];
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
        ];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        valid(
            &mut params,
            Validity {
                not_before: now - skew,
                not_after,
            },
        )?;
        let leaf = params
            .signed_by(&request.public_key, &self.signer)
            .map_err(|_| Error::Signing)?;
        Ok(Issued {
            leaf: leaf.der().clone(),
            intermediates: self.chain.clone(),
            not_after: expiry(leaf.der())?,
        })
    }
}

/// Whether these bytes are a PKCS#10 request and nothing else.
pub fn is_csr(der: &[u8]) -> bool {
    X509CertificationRequest::from_der(der).is_ok_and(|(rest, _)| rest.is_empty())
}

/// Whether a request asks for exactly this identity, so that a caller can refuse before it asks who the requester is.
pub fn check_csr(request: &CertificateSigningRequestDer<'_>, identity: &Identity) -> Result<(), Error> {
    let name = identity
        .dns_name()
        .ok_or(Error::Csr("only DNS identities are issued"))?;
    check_request(request, name)
}

/// The identity service's rules for a request (`spec/proxy.md` 3.3).
fn check_request(request: &CertificateSigningRequestDer<'_>, name: &str) -> Result<(), Error> {
    let (rest, parsed) =
        X509CertificationRequest::from_der(request).map_err(|_| Error::Csr("it is not a PKCS#10 request"))?;
    if !rest.is_empty() {
        return Err(Error::Csr("it is followed by other bytes"));
    }
    let info = &parsed.certification_request_info;
    for common_name in info.subject.iter_common_name() {
        if common_name.as_str().is_ok_and(|cn| !cn.is_empty() && cn != name) {
            return Err(Error::Csr("its common name is not the requested identity"));
        }
    }
    let mut names = 0;
    for extension in parsed.requested_extensions().into_iter().flatten() {
        let ParsedExtension::SubjectAlternativeName(alternative) = extension else {
            continue;
        };
        for general in &alternative.general_names {
            match general {
                GeneralName::DNSName(dns) if *dns == name => names += 1,
                _ => return Err(Error::Csr("it asks for another name than the requested identity")),
            }
        }
    }
    if names != 1 {
        return Err(Error::Csr("it must ask for exactly one DNS name"));
    }
    Ok(())
}

/// A self-signed trust anchor (ECDSA P-256).
pub fn create_root(name: &str, validity: Validity) -> Result<Created, Error> {
    let key = PrivateKey::generate()?;
    let params = authority(name, validity, BasicConstraints::Unconstrained)?;
    let certificate = params.self_signed(key.pair()).map_err(|_| Error::Signing)?;
    Ok(Created {
        certificate_pem: certificate.pem(),
        key,
    })
}

/// An issuer signed by `parent`, which may issue leaves only. Its life is cut to its parent's.
pub fn create_issuer(name: &str, parent: &Issuer, validity: Validity) -> Result<Created, Error> {
    let key = PrivateKey::generate()?;
    let not_after = validity.not_after.min(parent.expires_at);
    let mut params = authority(
        name,
        Validity {
            not_after,
            ..validity
        },
        BasicConstraints::Constrained(0),
    )?;
    params.use_authority_key_identifier_extension = true;
    let certificate = params
        .signed_by(key.pair(), &parent.signer)
        .map_err(|_| Error::Signing)?;
    Ok(Created {
        certificate_pem: certificate.pem(),
        key,
    })
}

/// A self-signed server certificate for a webhook; its PEM is also the `caBundle` that trusts it.
pub fn create_server(names: &[String], validity: Validity) -> Result<Created, Error> {
    let key = PrivateKey::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name(names.first().map_or("", String::as_str));
    params.subject_alt_names = names.iter().map(|name| dns_san(name)).collect::<Result<_, _>>()?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    valid(&mut params, validity)?;
    let certificate = params.self_signed(key.pair()).map_err(|_| Error::Signing)?;
    Ok(Created {
        certificate_pem: certificate.pem(),
        key,
    })
}

fn authority(
    name: &str,
    validity: Validity,
    constraint: BasicConstraints,
) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name(name);
    params.is_ca = IsCa::Ca(constraint);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    valid(&mut params, validity)?;
    Ok(params)
}

fn valid(params: &mut CertificateParams, validity: Validity) -> Result<(), Error> {
    let at = |time| {
        let seconds = i64::try_from(anchors::unix(time).as_secs()).ok();
        seconds
            .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
            .ok_or(Error::Certificate("a date is out of range"))
    };
    params.not_before = at(validity.not_before)?;
    params.not_after = at(validity.not_after)?;
    let mut serial = [0; 16];
    ::aws_lc_rs::rand::fill(&mut serial).map_err(|_| Error::Signing)?;
    // Positive and of constant length.
    serial[0] = (serial[0] & 0x7f) | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(())
}
