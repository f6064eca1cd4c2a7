//! Our own certificate: asked for, verified, renewed, published (`spec/proxy.md` 3).
//!
//! Runs on the control thread. Publishing replaces the credentials for new connections; old connections keep theirs.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hawser_tls::{Credentials, PrivateKey};
use linkerd2_proxy_api::identity::CertifyRequest;
use linkerd2_proxy_api::identity::identity_client::IdentityClient;
use rustls_pki_types::CertificateDer;

use crate::config::IdentityConfig;
use crate::control_client::Channel;
use crate::live::Live;
use crate::metrics::{Counter, Labels, Shard};

/// Current credentials; empty before the first certificate.
pub(crate) type Identity = Arc<Live<Credentials>>;

/// A Certify call that takes longer has failed.
const CERTIFY_TIMEOUT: Duration = Duration::from_secs(10);

/// The key and the request, made here or found where a helper left them.
pub(crate) struct KeyAndRequest {
    key: PrivateKey,
    request: Vec<u8>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("reading {path}")]
    Read { path: String, source: std::io::Error },
    #[error(transparent)]
    Tls(#[from] hawser_tls::Error),
    #[error("asking for a certificate: {0}")]
    Certify(#[from] Box<tonic::Status>),
    #[error("the identity service did not answer in time")]
    Timeout,
    #[error("the certificate's validity is missing or in the past")]
    Expired,
}

impl KeyAndRequest {
    pub(crate) fn load(config: &IdentityConfig) -> Result<Self, Error> {
        if let Some(dir) = &config.dir {
            let (key, request) = (dir.join("key.p8"), dir.join("csr.der"));
            if key.exists() && request.exists() {
                let read = |path: std::path::PathBuf| {
                    std::fs::read(&path).map_err(|source| Error::Read {
                        path: path.display().to_string(),
                        source,
                    })
                };
                return Ok(Self {
                    key: PrivateKey::from_pkcs8(&read(key)?)?,
                    request: read(request)?,
                });
            }
        }
        let key = PrivateKey::generate()?;
        let request = hawser_tls::csr(&key, &config.name)?.as_ref().to_vec();
        Ok(Self { key, request })
    }
}

/// What is counted. An expired certificate shows as an expiration in the past.
pub(crate) struct Renewals {
    succeeded: Arc<Counter>,
    failed: Arc<Counter>,
    /// Unix time in seconds.
    expiry: Arc<Counter>,
}

impl Renewals {
    pub(crate) fn new(shard: &Shard) -> Self {
        let none = Labels::new;
        Self {
            succeeded: shard.counter("control_identity_cert_refreshes_total", none()),
            failed: shard.counter("control_identity_cert_refresh_failures_total", none()),
            expiry: shard.gauge("control_identity_cert_expiration_timestamp_seconds", none()),
        }
    }
}

/// Renews for ever.
pub(crate) async fn run(
    config: IdentityConfig,
    key: KeyAndRequest,
    channel: Channel,
    published: Identity,
    renewals: Renewals,
) {
    let mut expiry_told = false;
    loop {
        match certify(&config, &key, &channel).await {
            Ok(credentials) => {
                let seconds = credentials
                    .expires_at()
                    .duration_since(SystemTime::UNIX_EPOCH)
                    .unwrap_or_default()
                    .as_secs();
                renewals.expiry.add(seconds.wrapping_sub(renewals.expiry.get()));
                renewals.succeeded.inc();
                expiry_told = false;
                if published.get().is_none() {
                    tracing::info!(identity = %config.name, "Certified identity");
                }
                published.set(credentials);
            }
            Err(error) => {
                renewals.failed.inc();
                tracing::warn!(error = chain(&error), "Failed to obtain identity");
            }
        }
        let expires_at = published.get().map(|credentials| credentials.expires_at());
        let now = SystemTime::now();
        if !expiry_told && expires_at.is_some_and(|at| at <= now) {
            expiry_told = true;
            tracing::error!(identity = %config.name, "Our certificate has expired: peers refuse new connections");
        }
        tokio::time::sleep(refresh_in(
            (config.refresh_min, config.refresh_max),
            expires_at,
            now,
        ))
        .await;
    }
}

pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// At 70 % of what remains, within bounds.
fn refresh_in((min, max): (Duration, Duration), expires_at: Option<SystemTime>, now: SystemTime) -> Duration {
    match expires_at {
        None => min.min(Duration::from_secs(1)),
        Some(at) => {
            let left = at.duration_since(now).unwrap_or_default();
            left.mul_f64(0.7).clamp(min, max.max(min))
        }
    }
}

async fn certify(
    config: &IdentityConfig,
    key: &KeyAndRequest,
    channel: &Channel,
) -> Result<Credentials, Error> {
    // Read every time: the kubelet rotates the token.
    let token = tokio::fs::read(&config.token_file)
        .await
        .map_err(|source| Error::Read {
            path: config.token_file.display().to_string(),
            source,
        })?;
    let request = CertifyRequest {
        identity: config.name.as_str().to_owned(),
        token,
        certificate_signing_request: key.request.clone(),
    };
    let mut client = IdentityClient::new(channel.clone());
    let response = tokio::time::timeout(CERTIFY_TIMEOUT, client.certify(request))
        .await
        .map_err(|_| Error::Timeout)?
        .map_err(Box::new)?
        .into_inner();
    let now = SystemTime::now();
    let valid_until = response.valid_until.and_then(|t| SystemTime::try_from(t).ok());
    if valid_until.is_none_or(|until| until <= now) {
        return Err(Error::Expired);
    }
    let credentials = Credentials::new(
        config.name.clone(),
        &key.key,
        CertificateDer::from(response.leaf_certificate),
        response
            .intermediate_certificates
            .into_iter()
            .map(CertificateDer::from)
            .collect(),
        config.anchors.clone(),
        now,
    )?;
    Ok(credentials)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_comes_at_seventy_percent_of_what_remains() {
        let (min, max) = (Duration::from_secs(10), Duration::from_secs(24 * 3600));
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        for (left, expected) in [(1_000, 700), (4, 10), (0, 10), (10 * 86_400, 24 * 3600)] {
            let at = now + Duration::from_secs(left);
            let wait = refresh_in((min, max), Some(at), now);
            assert_eq!(wait.as_secs_f64().round() as u64, expected, "{left}");
        }
        assert_eq!(refresh_in((min, max), Some(now - min), now), min, "expired");
        assert!(
            refresh_in((min, max), None, now) <= Duration::from_secs(1),
            "none yet"
        );
    }
}
