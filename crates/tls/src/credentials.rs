//! A certificate in use: rustls configurations made from a key, its chain and the anchors.
//!
//! [`Credentials`] are immutable. Renewal and changed anchors make new ones and the owner swaps them, so sessions and
//! tickets of old credentials cannot be resumed with new trust, and open connections are left alone.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::SystemTime;

use hawser_core::Identity;
use rustls::client::ResolvesClientCert;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ServerConfig, SignatureScheme, version};
use rustls_pki_types::CertificateDer;
use webpki::KeyUsage;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::anchors::TrustAnchors;
use crate::describe::system_time;
use crate::inspect::Fingerprint;
use crate::key::PrivateKey;
use crate::verify::{ServerIdentity, identities};
use crate::{ALPN_TRANSPORT, Error, Role};

/// Upper bound on remembered client configurations; beyond it they are made anew each time.
const CLIENT_CONFIGS_MAX: usize = 4_096;

/// Suites and groups of the mesh, in order of preference (`spec/proxy.md` 4.1).
pub fn provider() -> &'static Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        use aws_lc_rs::{cipher_suite as suite, kx_group as group};
        Arc::new(CryptoProvider {
            cipher_suites: vec![
                suite::TLS13_AES_128_GCM_SHA256,
                suite::TLS13_AES_256_GCM_SHA384,
                suite::TLS13_CHACHA20_POLY1305_SHA256,
            ],
            kx_groups: vec![
                group::X25519MLKEM768,
                group::X25519,
                group::SECP256R1,
                group::SECP384R1,
            ],
            ..aws_lc_rs::default_provider()
        })
    });
    &PROVIDER
}

/// A verified certificate with its key, ready to speak mutual TLS.
#[derive(Debug)]
pub struct Credentials {
    identity: Identity,
    anchors: TrustAnchors,
    expires_at: SystemTime,
    issuer: Option<Fingerprint>,
    certified: Arc<CertifiedKey>,
    direct: Arc<ServerConfig>,
    transparent: Arc<ServerConfig>,
    clients: Mutex<HashMap<(Identity, bool), Arc<ClientConfig>>>,
}

impl Credentials {
    /// Checks our own certificate by the same rules as a peer's, then builds the configurations.
    ///
    /// `intermediates` are ordered from the leaf's issuer upwards, without the anchor.
    pub fn new(
        identity: Identity,
        key: &PrivateKey,
        leaf: CertificateDer<'static>,
        intermediates: Vec<CertificateDer<'static>>,
        anchors: TrustAnchors,
        now: SystemTime,
    ) -> Result<Self, Error> {
        anchors.verify_for(&leaf, &intermediates, now, KeyUsage::server_auth())?;
        let names = identities(&leaf);
        if !names.contains(&identity) {
            let found = names.iter().map(Identity::as_str).collect::<Vec<_>>().join(", ");
            return Err(Error::WrongName {
                expected: identity.to_string(),
                found,
            });
        }
        let expires_at = expiry(&leaf)?;
        let issuer = intermediates.first().map(Fingerprint::of);
        let signing = provider()
            .key_provider
            .load_private_key(key.der())
            .map_err(|_| Error::Key)?;
        let chain = std::iter::once(leaf).chain(intermediates).collect();
        let certified = CertifiedKey::new(chain, signing);
        certified.keys_match().map_err(|_| Error::KeyMismatch)?;
        Self::assemble(identity, Arc::new(certified), anchors, expires_at, issuer)
    }

    /// The same certificate, with others to believe. Nothing that was agreed on under the old anchors can be resumed.
    ///
    /// Our own certificate needn't chain to them: see [`Self::believed_at`].
    pub fn with_anchors(&self, anchors: TrustAnchors) -> Result<Self, Error> {
        let (identity, certified) = (self.identity.clone(), self.certified.clone());
        Self::assemble(identity, certified, anchors, self.expires_at, self.issuer)
    }

    fn assemble(
        identity: Identity,
        certified: Arc<CertifiedKey>,
        anchors: TrustAnchors,
        expires_at: SystemTime,
        issuer: Option<Fingerprint>,
    ) -> Result<Self, Error> {
        let direct = server_config(&certified, &anchors, true)?;
        let transparent = server_config(&certified, &anchors, false)?;
        Ok(Self {
            identity,
            anchors,
            expires_at,
            issuer,
            certified,
            direct,
            transparent,
            clients: Mutex::default(),
        })
    }

    /// Would somebody with our anchors believe our own certificate now?
    pub fn believed_at(&self, now: SystemTime) -> bool {
        self.anchors.believe(&self.certified.cert, Role::Server, now)
    }

    /// The SHA-256 of the certificate that signed ours, if it came with it.
    pub fn issuer(&self) -> Option<Fingerprint> {
        self.issuer
    }

    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    pub fn anchors(&self) -> &TrustAnchors {
        &self.anchors
    }

    /// The leaf's `notAfter`.
    pub fn expires_at(&self) -> SystemTime {
        self.expires_at
    }

    /// For connections to our own inbound port: offers the transport header's protocol. A client certificate is
    /// asked for and verified if given; whether one is needed is the caller's policy.
    pub fn direct_server(&self) -> &Arc<ServerConfig> {
        &self.direct
    }

    /// For redirected connections: no ALPN.
    pub fn transparent_server(&self) -> &Arc<ServerConfig> {
        &self.transparent
    }

    /// A configuration that accepts only `expected`. `transport_header` offers its ALPN. Sessions are resumed within
    /// these credentials only.
    pub fn client(&self, expected: &Identity, transport_header: bool) -> Arc<ClientConfig> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(config) = clients.get(&(expected.clone(), transport_header)) {
            return config.clone();
        }
        let config = Arc::new(self.make_client(expected, transport_header));
        if clients.len() < CLIENT_CONFIGS_MAX {
            clients.insert((expected.clone(), transport_header), config.clone());
        }
        config
    }

    fn make_client(&self, expected: &Identity, transport_header: bool) -> ClientConfig {
        let verifier = ServerIdentity {
            anchors: self.anchors.clone(),
            expected: expected.clone(),
        };
        let mut config = ClientConfig::builder_with_provider(provider().clone())
            .with_protocol_versions(&[&version::TLS13])
            .unwrap_or_else(|_| unreachable!("the mesh's suites are TLS 1.3 suites"))
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(OneCertificate(self.certified.clone())));
        if transport_header {
            config.alpn_protocols = vec![ALPN_TRANSPORT.to_vec()];
        }
        config
    }
}

/// A configuration without a certificate of our own that accepts only `expected`: how a process reaches the identity
/// service for its first certificate.
pub fn anonymous_client(anchors: &TrustAnchors, expected: &Identity) -> Arc<ClientConfig> {
    let verifier = ServerIdentity {
        anchors: anchors.clone(),
        expected: expected.clone(),
    };
    let config = ClientConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&version::TLS13])
        .unwrap_or_else(|_| unreachable!("the mesh's suites are TLS 1.3 suites"))
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    Arc::new(config)
}

fn server_config(
    certified: &Arc<CertifiedKey>,
    anchors: &TrustAnchors,
    direct: bool,
) -> Result<Arc<ServerConfig>, Error> {
    let verifier = WebPkiClientVerifier::builder_with_provider(anchors.roots.clone(), provider().clone())
        .allow_unauthenticated()
        .build()
        .map_err(|error| Error::Untrusted(error.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&version::TLS13])
        .unwrap_or_else(|_| unreachable!("the mesh's suites are TLS 1.3 suites"))
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(certified.clone())));
    if direct {
        config.alpn_protocols = vec![ALPN_TRANSPORT.to_vec()];
    }
    Ok(Arc::new(config))
}

/// Presents our certificate to peers that accept ECDSA P-256 (`spec/proxy.md` 4.1).
#[derive(Debug)]
struct OneCertificate(Arc<CertifiedKey>);

impl ResolvesClientCert for OneCertificate {
    fn resolve(&self, _: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.key.choose_scheme(schemes).map(|_| self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

pub(crate) fn expiry(certificate: &CertificateDer<'_>) -> Result<SystemTime, Error> {
    let (_, parsed) =
        X509Certificate::from_der(certificate).map_err(|_| Error::Certificate("not an X.509 certificate"))?;
    Ok(system_time(parsed.validity().not_after))
}
