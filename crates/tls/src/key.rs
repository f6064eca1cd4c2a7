//! Private keys and certificate signing requests. A key never leaves its process except through [`PrivateKey::to_pem`].

use std::fmt;

use hawser_core::Identity;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::Error;

/// A signing key. `Debug` shows only that it is one.
pub struct PrivateKey {
    pair: KeyPair,
    /// As it was read or generated: PKCS#8, or SEC1 as openssl and step write EC keys.
    der: PrivateKeyDer<'static>,
}

impl PrivateKey {
    /// A new ECDSA P-256 key.
    pub fn generate() -> Result<Self, Error> {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|_| Error::Key)?;
        let der = PrivatePkcs8KeyDer::from(pair.serialize_der()).into();
        Ok(Self { pair, der })
    }

    /// The first private key of a PEM text, PKCS#8 or SEC1.
    pub fn from_pem(pem: &str) -> Result<Self, Error> {
        let der = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| Error::Pem {
            what: "the private key",
        })?;
        Self::from_der(der)
    }

    /// A PKCS#8 key as the proxy's helper writes it (`key.p8`).
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, Error> {
        Self::from_der(PrivatePkcs8KeyDer::from(der.to_vec()).into())
    }

    fn from_der(der: PrivateKeyDer<'static>) -> Result<Self, Error> {
        let pair = KeyPair::try_from(&der).map_err(|_| Error::Key)?;
        Ok(Self { pair, der })
    }

    /// PKCS#8 PEM (SEC1 keys keep their form).
    pub fn to_pem(&self) -> String {
        self.pair.serialize_pem()
    }

    pub fn is_ecdsa_p256(&self) -> bool {
        self.pair.algorithm() == &PKCS_ECDSA_P256_SHA256
    }

    pub(crate) fn pair(&self) -> &KeyPair {
        &self.pair
    }

    pub(crate) fn der(&self) -> PrivateKeyDer<'static> {
        self.der.clone_key()
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(..)")
    }
}

/// A request for a certificate in our name: common name and exactly one DNS name, both the identity (DER).
pub fn csr(key: &PrivateKey, identity: &Identity) -> Result<CertificateSigningRequestDer<'static>, Error> {
    let name = identity
        .dns_name()
        .ok_or(Error::Csr("only DNS identities are requested by name"))?;
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name(name);
    params.subject_alt_names = vec![dns_san(name)?];
    let request = params.serialize_request(&key.pair).map_err(|_| Error::Signing)?;
    Ok(request.der().clone())
}

/// A common name, left out where it would exceed X.509's 64 characters (RFC 5280, ub-common-name).
pub(crate) fn common_name(name: &str) -> DistinguishedName {
    let mut dn = DistinguishedName::new();
    if name.len() <= 64 {
        dn.push(DnType::CommonName, name);
    }
    dn
}

pub(crate) fn dns_san(name: &str) -> Result<SanType, Error> {
    name.try_into()
        .map(SanType::DnsName)
        .map_err(|_| Error::Certificate("a name is not ASCII"))
}
