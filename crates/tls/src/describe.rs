//! What a certificate says, for people and for checks that look at it from outside.
//!
//! Nothing here decides whom to trust: a description of a forged certificate is as good as of any other.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme, version};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::public_key::PublicKey;
use x509_parser::time::ASN1Time;

use crate::Error;
use crate::credentials::provider;
use crate::inspect::is_authority;

/// The parts of a certificate that people ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    pub subject: String,
    pub issuer: String,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
    /// DNS names and URIs that it is for.
    pub names: Vec<String>,
    pub is_authority: bool,
    /// Such as `ECDSA P-256` or `RSA 2048`.
    pub key: String,
    /// Such as `ECDSA-SHA256`.
    pub signature: String,
    /// All of it, as `openssl x509 -text` lays it out.
    pub text: String,
}

impl Description {
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, Error> {
        let (_, certificate) = X509Certificate::from_der(certificate)
            .map_err(|_| Error::Certificate("not an X.509 certificate"))?;
        Ok(Self {
            subject: certificate.subject().to_string(),
            issuer: certificate.issuer().to_string(),
            not_before: system_time(certificate.validity().not_before),
            not_after: system_time(certificate.validity().not_after),
            names: names(&certificate).into_iter().map(|(_, name)| name).collect(),
            is_authority: is_authority(&certificate),
            key: key(&certificate),
            signature: signature(&certificate),
            text: text(&certificate),
        })
    }
}

/// A configuration that accepts every certificate whose key the peer holds, to look at it. Nothing may be sent over
/// such a connection.
pub fn inspecting_client() -> Arc<ClientConfig> {
    let config = ClientConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&version::TLS13])
        .unwrap_or_else(|_| unreachable!("the mesh's suites are TLS 1.3 suites"))
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth();
    Arc::new(config)
}

#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
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

pub(crate) fn system_time(time: ASN1Time) -> SystemTime {
    let seconds = time.timestamp();
    let distance = Duration::from_secs(seconds.unsigned_abs());
    let time = if seconds < 0 {
        UNIX_EPOCH.checked_sub(distance)
    } else {
        UNIX_EPOCH.checked_add(distance)
    };
    time.unwrap_or(UNIX_EPOCH)
}

/// Kind and value of every subject alternative name that a mesh can use.
fn names(certificate: &X509Certificate<'_>) -> Vec<(&'static str, String)> {
    let extensions = certificate.extensions().iter();
    let found = extensions.filter_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
        _ => None,
    });
    found
        .flatten()
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(("DNS", (*name).to_owned())),
            GeneralName::URI(uri) => Some(("URI", (*uri).to_owned())),
            _ => None,
        })
        .collect()
}

fn key(certificate: &X509Certificate<'_>) -> String {
    let info = certificate.public_key();
    match info.parsed() {
        Ok(PublicKey::EC(point)) => format!("ECDSA P-{}", curve_bits(point.data())),
        Ok(PublicKey::RSA(key)) => format!("RSA {}", key.key_size()),
        _ => info.algorithm.algorithm.to_id_string(),
    }
}

/// An uncompressed point is a tag and two coordinates; that of P-521 isn't a whole number of bytes.
fn curve_bits(point: &[u8]) -> usize {
    match point.len().saturating_sub(1) / 2 * 8 {
        528 => 521,
        bits => bits,
    }
}

fn signature(certificate: &X509Certificate<'_>) -> String {
    let id = certificate.signature_algorithm.algorithm.to_id_string();
    match id.as_str() {
        "1.2.840.10045.4.3.2" => "ECDSA-SHA256",
        "1.2.840.10045.4.3.3" => "ECDSA-SHA384",
        "1.2.840.10045.4.3.4" => "ECDSA-SHA512",
        "1.2.840.113549.1.1.11" => "SHA256-RSA",
        "1.2.840.113549.1.1.12" => "SHA384-RSA",
        "1.2.840.113549.1.1.13" => "SHA512-RSA",
        "1.3.101.112" => "Ed25519",
        _ => return id,
    }
    .to_owned()
}

fn text(certificate: &X509Certificate<'_>) -> String {
    let mut text = String::new();
    let mut line = |indent: usize, content: &str| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{:indent$}{content}", "");
    };
    let version = certificate.version().0;
    let algorithm = signature(certificate);
    line(0, "Certificate:");
    line(4, "Data:");
    line(
        8,
        &format!("Version: {} ({version:#x})", version.saturating_add(1)),
    );
    line(8, &format!("Serial Number: {}", serial(certificate.raw_serial())));
    line(4, &format!("Signature Algorithm: {algorithm}"));
    line(8, &format!("Issuer: {}", certificate.issuer()));
    line(8, "Validity");
    line(
        12,
        &format!("Not Before: {}", date(certificate.validity().not_before)),
    );
    line(
        12,
        &format!("Not After : {}", date(certificate.validity().not_after)),
    );
    line(8, &format!("Subject: {}", certificate.subject()));
    line(8, "Subject Public Key Info:");
    match certificate.public_key().parsed() {
        Ok(PublicKey::EC(point)) => {
            let bits = curve_bits(point.data());
            let coordinates = point.data().get(1..).unwrap_or_default();
            let (x, y) = coordinates.split_at(coordinates.len() / 2);
            line(12, "Public Key Algorithm: ECDSA");
            line(16, &format!("Public-Key: ({bits} bit)"));
            for (name, coordinate) in [("X:", x), ("Y:", y)] {
                line(16, name);
                dump(coordinate, |bytes| line(20, bytes));
            }
            line(16, &format!("Curve: P-{bits}"));
        }
        _ => line(12, &format!("Public Key Algorithm: {}", key(certificate))),
    }
    line(8, "X509v3 extensions:");
    for extension in certificate.extensions() {
        let critical = if extension.critical { " critical" } else { "" };
        let (title, content) = match extension.parsed_extension() {
            ParsedExtension::BasicConstraints(constraints) => {
                let ca = if constraints.ca { "TRUE" } else { "FALSE" };
                ("Basic Constraints", format!("CA:{ca}"))
            }
            ParsedExtension::KeyUsage(usage) => ("Key Usage", usage.to_string()),
            ParsedExtension::ExtendedKeyUsage(usage) => {
                let purposes = [
                    (usage.server_auth, "TLS Web Server Authentication"),
                    (usage.client_auth, "TLS Web Client Authentication"),
                ];
                let given = purposes.iter().filter(|(given, _)| *given).map(|(_, name)| *name);
                ("Extended Key Usage", given.collect::<Vec<_>>().join(", "))
            }
            ParsedExtension::SubjectKeyIdentifier(id) => ("Subject Key Identifier", hex(id.0)),
            ParsedExtension::AuthorityKeyIdentifier(id) => {
                let id = id.key_identifier.as_ref().map(|id| hex(id.0)).unwrap_or_default();
                ("Authority Key Identifier", format!("keyid:{id}"))
            }
            ParsedExtension::SubjectAlternativeName(_) => {
                let names = names(certificate)
                    .into_iter()
                    .map(|(kind, name)| format!("{kind}:{name}"));
                ("Subject Alternative Name", names.collect::<Vec<_>>().join(", "))
            }
            _ => continue,
        };
        line(12, &format!("X509v3 {title}:{critical}"));
        line(16, &content);
    }
    line(0, "");
    line(4, &format!("Signature Algorithm: {algorithm}"));
    dump(&certificate.signature_value.data, |bytes| line(9, bytes));
    text
}

/// Short serial numbers are numbers, long ones bytes.
fn serial(bytes: &[u8]) -> String {
    let number = bytes
        .iter()
        .skip_while(|byte| **byte == 0)
        .try_fold(0_u64, |number, byte| {
            number.checked_mul(256).map(|number| number | u64::from(*byte))
        });
    match number {
        Some(number) => format!("{number} ({number:#x})"),
        None => hex(bytes),
    }
}

fn date(time: ASN1Time) -> String {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let time = time.to_datetime();
    let month = MONTHS[usize::from(u8::from(time.month()) - 1)];
    format!(
        "{month} {} {:02}:{:02}:{:02} {} UTC",
        time.day(),
        time.hour(),
        time.minute(),
        time.second(),
        time.year()
    )
}

fn hex(bytes: &[u8]) -> String {
    let pairs: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    pairs.join(":")
}

/// Lines of at most fifteen bytes, as OpenSSL breaks them.
fn dump(bytes: &[u8], mut line: impl FnMut(&str)) {
    let mut rows = bytes.chunks(15).peekable();
    while let Some(row) = rows.next() {
        let more = if rows.peek().is_some() { ":" } else { "" };
        line(&format!("{}{more}", hex(row)));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;
    use proptest::sample::Index;
    use rustls_pki_types::pem::PemObject;

    use super::*;
    use crate::{Issuer, PrivateKey, Validity, create_issuer, create_root, csr, peer_identity};

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_description_says_who_when_and_with_what_key() {
        let validity = Validity {
            not_before: at(1_800_000_000),
            not_after: at(1_800_086_400),
        };
        let root = create_root("root.linkerd.cluster.local", validity).unwrap();
        let root_issuer = Issuer::from_pem(&root.certificate_pem, &root.key.to_pem()).unwrap();
        let issuer = create_issuer("identity.linkerd.cluster.local", &root_issuer, validity).unwrap();
        let der = CertificateDer::from_pem_slice(issuer.certificate_pem.as_bytes()).unwrap();
        let description = Description::of(&der).unwrap();
        assert_eq!(description.subject, "CN=identity.linkerd.cluster.local");
        assert_eq!(description.issuer, "CN=root.linkerd.cluster.local");
        assert_eq!(description.not_before, at(1_800_000_000));
        assert_eq!(description.not_after, at(1_800_086_400));
        assert_eq!(description.key, "ECDSA P-256");
        assert_eq!(description.signature, "ECDSA-SHA256");
        assert!(description.is_authority);
        for line in [
            "        Version: 3 (0x2)\n",
            "    Signature Algorithm: ECDSA-SHA256\n",
            "            Not Before: Jan 15 08:00:00 2027 UTC\n",
            "            Not After : Jan 16 08:00:00 2027 UTC\n",
            "                Public-Key: (256 bit)\n",
            "            X509v3 Basic Constraints: critical\n                CA:TRUE\n",
        ] {
            assert!(
                description.text.contains(line),
                "{line:?} in\n{}",
                description.text
            );
        }
    }

    #[test]
    fn serial_numbers_are_numbers_while_they_fit() {
        assert_eq!(serial(&[0, 13]), "13 (0xd)");
        assert_eq!(serial(&[1; 9]), "01:01:01:01:01:01:01:01:01");
    }

    #[test]
    fn what_is_not_a_certificate_is_not_described() {
        assert!(Description::of(&CertificateDer::from(b"nonsense".as_slice())).is_err());
    }
    proptest! {
        #[test]
        fn no_damage_to_a_certificate_makes_its_readers_panic(
            changes in proptest::collection::vec((any::<Index>(), any::<u8>()), 0..6), cut in proptest::option::weighted(0.1, any::<Index>()),
        ) {
            static VALID: LazyLock<Vec<u8>> = LazyLock::new(|| {
                let validity = Validity { not_before: at(1_800_000_000), not_after: at(1_800_086_400) };
                let root = create_root("root.linkerd.cluster.local", validity).unwrap();
                let root = Issuer::from_pem(&root.certificate_pem, &root.key.to_pem()).unwrap();
                let key = PrivateKey::generate().unwrap();
                let name = "web.ns.serviceaccount.identity.linkerd.cluster.local".parse().unwrap();
                let request = csr(&key, &name).unwrap();
                let hour = Duration::from_secs(3_600);
                root.issue(&request, &name, hour, hour, at(1_800_003_600)).unwrap().leaf.to_vec()
            });
            let mut bytes = VALID.clone();
            for (at, byte) in &changes {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            let certificate = CertificateDer::from(bytes);
            let _ = Description::of(&certificate);
            let identity = peer_identity(&certificate);
            prop_assert!(!changes.is_empty() || cut.is_some() || identity.is_some());
        }
    }
}
