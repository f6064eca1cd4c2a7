//! A cluster's certificates: its authority, its server's certificate, and those of clients; and the kubeconfig that
//! carries them.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ipnet::Ipv4Net;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::identity::Identity;

/// The authority of one cluster and what it has issued to the cluster's own server.
pub(crate) struct Pki {
    issuer: Issuer<'static, KeyPair>,
    pub ca_pem: String,
    pub server: Arc<rustls::ServerConfig>,
}

/// Making keys and certificates from constants can only fail in the crypto library itself.
#[derive(Debug, thiserror::Error)]
#[error("making the cluster's certificates")]
pub(crate) enum PkiError {
    Certificate(#[from] rcgen::Error),
    Tls(#[from] rustls::Error),
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

impl Pki {
    /// `names` and `addresses` are where clients reach the server.
    pub(crate) fn new(names: &[String], addresses: &[IpAddr]) -> Result<Self, PkiError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = subject("kubernetes-ca", &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?;
        let ca_pem = certificate.pem();
        let issuer = Issuer::new(params, key);

        let (server_certificate, server_key) = server(&issuer, names, addresses)?;
        let chain = vec![server_certificate.der().clone()];

        let mut roots = RootCertStore::empty();
        roots.add(certificate.der().clone())?;
        let provider = provider();
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .allow_unauthenticated()
            .build()?;
        let mut server = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, PrivatePkcs8KeyDer::from(server_key.serialize_der()).into())?;
        server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self {
            issuer,
            ca_pem,
            server: Arc::new(server),
        })
    }

    /// Another certificate for a server, as PEM of certificate and key.
    pub(crate) fn server_pem(
        &self,
        names: &[String],
        addresses: &[IpAddr],
    ) -> Result<(String, String), PkiError> {
        let (certificate, key) = server(&self.issuer, names, addresses)?;
        Ok((certificate.pem(), key.serialize_pem()))
    }

    /// A client certificate for a user, as PEM of certificate and key.
    pub(crate) fn client(&self, identity: &Identity) -> Result<(String, String), PkiError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = subject(&identity.user, &identity.groups);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok((certificate.pem(), key.serialize_pem()))
    }

    /// For a controller that signs in the authority's name.
    pub(crate) fn ca_key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    pub(crate) fn kubeconfig(
        &self,
        cluster: &str,
        server: &str,
        identity: &Identity,
    ) -> Result<String, PkiError> {
        let (certificate, key) = self.client(identity)?;
        let user = format!("{}@{cluster}", identity.user);
        let (ca, certificate, key) = (
            STANDARD.encode(&self.ca_pem),
            STANDARD.encode(certificate),
            STANDARD.encode(key),
        );
        Ok(format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: {cluster}\nclusters:\n- name: {cluster}\n  cluster:\n    \
             server: {server}\n    certificate-authority-data: {ca}\ncontexts:\n- name: {cluster}\n  context:\n    \
             cluster: {cluster}\n    user: {user}\nusers:\n- name: {user}\n  user:\n    client-certificate-data: \
             {certificate}\n    client-key-data: {key}\n"
        ))
    }
}

/// A key that signs ServiceAccount tokens and the public key that they are verified by, as PEM.
pub(crate) fn signing_key() -> Result<(String, String), PkiError> {
    let key = KeyPair::generate()?;
    Ok((key.serialize_pem(), key.public_key_pem()))
}

/// Names by which pods know their API server, followed by others.
pub(crate) fn server_names(others: &[String]) -> Vec<String> {
    const NAMES: [&str; 5] = [
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
    ];
    let names = NAMES.into_iter().map(str::to_owned);
    names.chain(others.iter().cloned()).collect()
}

/// Loopback addresses, these, and that of the `kubernetes` Service, which is the first of the service network.
pub(crate) fn server_addresses(others: &[IpAddr], services: Option<Ipv4Net>) -> Vec<IpAddr> {
    let service = services.and_then(|range| range.hosts().next()).map(IpAddr::from);
    let loopback = [IpAddr::from([127, 0, 0, 1]), IpAddr::from(Ipv6Addr::LOCALHOST)];
    loopback
        .into_iter()
        .chain(others.iter().copied())
        .chain(service)
        .collect()
}

fn server(
    issuer: &Issuer<'_, KeyPair>,
    names: &[String],
    addresses: &[IpAddr],
) -> Result<(Certificate, KeyPair), PkiError> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = subject("kube-apiserver", &[]);
    for name in names {
        params
            .subject_alt_names
            .push(SanType::DnsName(name.as_str().try_into()?));
    }
    params
        .subject_alt_names
        .extend(addresses.iter().map(|address| SanType::IpAddress(*address)));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    Ok((params.signed_by(&key, issuer)?, key))
}

pub(crate) fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn subject(name: &str, groups: &[String]) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    // rcgen keeps one value per attribute type, so a certificate carries the most significant group only.
    let group = groups
        .iter()
        .find(|group| *group == "system:masters")
        .or_else(|| groups.first());
    if let Some(group) = group {
        subject.push(DnType::OrganizationName, group.as_str());
    }
    subject.push(DnType::CommonName, name);
    subject
}

/// The user that a verified client certificate names: CN is the user, each O a group.
pub(crate) fn identity(certificate: &CertificateDer<'_>) -> Option<Identity> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let subject = certificate.subject();
    let user = subject.iter_common_name().next()?.as_str().ok()?;
    let groups: Vec<&str> = subject
        .iter_organization()
        .filter_map(|group| group.as_str().ok())
        .collect();
    (!user.is_empty()).then(|| Identity::new(user, &groups))
}
