//! Who we are and whom we believe: asked for, verified, renewed, published (`spec/proxy.md` 3).
//!
//! One task on the control thread owns both. It renews the certificate in time, follows the identity service's anchors,
//! and certifies again when the issuer changes or our own certificate would no longer be believed. Publishing replaces
//! the credentials for new connections; what happens to open ones is in [`crate::bond`].

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hawser_proxy_api::Trusted;
use hawser_tls::{Credentials, Fingerprint, PrivateKey, Role, TrustAnchors};
use linkerd2_proxy_api::identity::CertifyRequest;
use linkerd2_proxy_api::identity::identity_client::IdentityClient;
use rand::Rng as _;
use rustls_pki_types::CertificateDer;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::Code;

use crate::bond::{Bond, Bonds};
use crate::config::{Config, IdentityConfig};
use crate::control_client::Channel;
use crate::discover;
use crate::live::Live;
use crate::metrics::{Counter, Labels, Shard};

/// A Certify call that takes longer has failed.
const CERTIFY_TIMEOUT: Duration = Duration::from_secs(10);
/// A new issuer makes every proxy of the cluster ask for a certificate; they shouldn't all do it at once.
const SPREAD: Duration = Duration::from_secs(2);
/// When the service signs with another issuer than it announces, as replicas may for a while: ask again after this.
const OTHER_ISSUER_AGAIN: Duration = Duration::from_secs(60);

/// In the identity's directory, which lives as long as the pod: the bundle that we were told of last. A container that
/// starts again believes it from the beginning.
const REMEMBERED: &str = "trust-anchors.pem";

/// The anchors that were in use when this container ended, if it did.
pub(crate) fn remembered(dir: &Path) -> Option<TrustAnchors> {
    TrustAnchors::from_pem(&std::fs::read_to_string(dir.join(REMEMBERED)).ok()?).ok()
}

/// Whole or not at all: whoever reads it next has nothing else.
fn remember(dir: &Path, bundle: &str) {
    let new = dir.join(format!("{REMEMBERED}.new"));
    let written = std::fs::write(&new, bundle).and_then(|()| std::fs::rename(&new, dir.join(REMEMBERED)));
    if let Err(error) = written {
        tracing::warn!(%error, dir = %dir.display(), "Trust anchors are not remembered for a restart");
    }
}

/// What all threads know of our identity.
#[derive(Clone)]
pub(crate) struct Identity(Arc<State>);

struct State {
    /// Empty before the first certificate.
    credentials: Arc<Live<Credentials>>,
    anchors: Arc<Live<TrustAnchors>>,
    bonds: Bonds,
}

impl Identity {
    /// `anchors` are those of the environment: believed until the identity service, which they vouch for, says more.
    pub(crate) fn new(anchors: TrustAnchors) -> Self {
        Self(Arc::new(State {
            credentials: Live::empty(),
            anchors: Live::new(anchors),
            bonds: Bonds::default(),
        }))
    }

    pub(crate) fn get(&self) -> Option<Arc<Credentials>> {
        self.0.credentials.get()
    }

    /// As soon as we are certified.
    pub(crate) async fn first(&self) -> Arc<Credentials> {
        self.0.credentials.first().await
    }

    /// In use now.
    pub(crate) fn anchors(&self) -> TrustAnchors {
        let anchors = self.0.anchors.get();
        TrustAnchors::clone(&anchors.expect("there are anchors from the beginning"))
    }

    /// The bond of a new connection, if its peer showed a certificate. `used` verified it.
    pub(crate) fn bond(
        &self,
        chain: Option<&[CertificateDer<'_>]>,
        peer: Role,
        used: &TrustAnchors,
    ) -> Option<Arc<Bond>> {
        chain.map(|chain| self.0.bonds.make(chain, peer, used, || self.anchors()))
    }
}

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
    #[error("asking for a certificate: {code:?}: {message}")]
    Certify { code: Code, message: String },
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

/// Renews and follows for ever.
pub(crate) async fn run(
    config: Arc<Config>,
    key: KeyAndRequest,
    channel: Channel,
    identity: Identity,
    renewals: Renewals,
) {
    let (told, mut changes) = watch::channel(None);
    let task = Task {
        grace: config.shutdown_grace,
        config: config.identity.clone(),
        key,
        channel: channel.clone(),
        identity,
        renewals,
        announced: None,
        failures: 0,
        expiry_told: false,
    };
    let renewing = task.run(&mut changes);
    tokio::join!(renewing, follow(&config, channel, &told));
}

/// Hears what the identity service announces. Linkerd's announces nothing: then our anchors stay as they are.
async fn follow(config: &Config, channel: Channel, told: &watch::Sender<Option<Trusted>>) {
    let mut asked_in_vain = false;
    discover::follow(
        config,
        "trust",
        || hawser_proxy_api::watch(channel.clone()),
        |code| code == Code::Unimplemented,
        |update| {
            match update {
                Ok(trusted) => _ = told.send_replace(Some(trusted)),
                Err(_) if !asked_in_vain => {
                    asked_in_vain = true;
                    tracing::info!(
                        "The identity service announces no trust anchors; those of the environment stay"
                    );
                }
                Err(_) => {}
            }
            true
        },
    )
    .await;
}

struct Task {
    config: IdentityConfig,
    /// How long connections of a peer that lost our trust have to end.
    grace: Duration,
    key: KeyAndRequest,
    channel: Channel,
    identity: Identity,
    renewals: Renewals,
    /// The issuer that new certificates should have.
    announced: Option<Fingerprint>,
    /// In a row.
    failures: u32,
    expiry_told: bool,
}

impl Task {
    async fn run(mut self, changes: &mut watch::Receiver<Option<Trusted>>) {
        let mut due = Instant::now();
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(due) => due = Instant::now() + self.renew().await,
                // The sender lives as long as we do.
                _ = changes.changed() => {
                    let trusted = changes.borrow_and_update().clone();
                    if let Some(trusted) = trusted {
                        self.adopt(&trusted).await;
                        if self.wants_another() {
                            let spread = SPREAD.min(self.config.refresh_min).mul_f64(rand::rng().random());
                            due = due.min(Instant::now() + spread);
                        }
                    }
                }
            }
        }
    }

    /// Should our certificate be replaced before its time?
    fn wants_another(&self) -> bool {
        self.identity.get().is_some_and(|credentials| {
            let announced = self.announced;
            (announced.is_some() && announced != credentials.issuer())
                || !credentials.believed_at(SystemTime::now())
        })
    }

    /// Certifies, and says when to do it again.
    async fn renew(&mut self) -> Duration {
        let certified = certify(&self.config, &self.key, &self.channel, self.identity.anchors());
        let State {
            credentials: published,
            ..
        } = &*self.identity.0;
        match certified.await {
            Ok(credentials) => {
                let seconds = credentials
                    .expires_at()
                    .duration_since(SystemTime::UNIX_EPOCH)
                    .unwrap_or_default()
                    .as_secs();
                let renewals = &self.renewals;
                renewals.expiry.add(seconds.wrapping_sub(renewals.expiry.get()));
                renewals.succeeded.inc();
                (self.expiry_told, self.failures) = (false, 0);
                if published.get().is_none() {
                    tracing::info!(identity = %self.config.name, "Certified identity");
                }
                published.set(credentials);
            }
            Err(error) => {
                self.renewals.failed.inc();
                self.failures = self.failures.saturating_add(1);
                tracing::warn!(error = chain(&error), "Failed to obtain identity");
            }
        }
        let expires_at = published.get().map(|credentials| credentials.expires_at());
        let now = SystemTime::now();
        if !self.expiry_told && expires_at.is_some_and(|at| at <= now) {
            self.expiry_told = true;
            tracing::error!(identity = %self.config.name, "Our certificate has expired: peers refuse new connections");
        }
        let bounds = (self.config.refresh_min, self.config.refresh_max);
        let regular = refresh_in(bounds, expires_at, now);
        match (self.wants_another(), self.failures) {
            (false, _) => regular,
            (true, 0) => regular.min(OTHER_ISSUER_AGAIN),
            // Peers may refuse the certificate that we have, so not as late as an ordinary renewal.
            (true, failures) => regular.min(Duration::from_secs(1 << failures.min(4))),
        }
    }

    /// Takes over anchors that differ from ours. A bundle that can't be used changes nothing.
    async fn adopt(&mut self, trusted: &Trusted) {
        let State {
            credentials,
            anchors,
            bonds,
            ..
        } = &*self.identity.0;
        let current = match TrustAnchors::from_pem(&trusted.anchors) {
            Ok(current) => current,
            Err(error) => {
                return tracing::error!(error = chain(&error), "Trust bundle refused: the old one stays");
            }
        };
        self.announced = Fingerprint::from_hex(&trusted.issuer);
        if current.same_set(&self.identity.anchors()) {
            return;
        }
        if let Some(own) = credentials.get() {
            match own.with_anchors(current.clone()) {
                Ok(own) => credentials.set(own),
                Err(error) => {
                    return tracing::error!(error = chain(&error), "Trust bundle refused: the old one stays");
                }
            }
        }
        anchors.set(current.clone());
        if let Some(dir) = &self.config.dir {
            remember(dir, &trusted.anchors);
        }
        let lost = bonds.judge(&current).await;
        tracing::info!(anchors = ?current.fingerprints(), draining = lost.len(), "Trust anchors changed");
        let grace = self.grace;
        tokio::spawn(async move {
            tokio::time::sleep(grace).await;
            lost.cut();
        });
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
    anchors: TrustAnchors,
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
        .map_err(|status| Error::Certify {
            code: status.code(),
            message: status.message().to_owned(),
        })?
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
        anchors,
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
