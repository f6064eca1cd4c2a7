//! The identity service: turns a ServiceAccount token and a request into a certificate.
//!
//! A name is given out only if the Kubernetes API says that the token is that account's; private keys of proxies never
//! come here. Who vouches for whom is in [`certify`], the mounted credentials in [`credentials`]. Proxies are told when
//! anchors or issuer change, so that neither takes a restart.

pub mod certify;
pub mod credentials;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use hawser_core::identity::TrustDomain;
use hawser_crd::link::parse_duration;
use hawser_proxy_api::TrustServer;
use hawser_runtime::{Metrics, Shutdown};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::api::PostParams;
use kube::runtime::events::EventType;
use kube::{Api, Client};
use linkerd2_proxy_api::identity::identity_server::IdentityServer;

use self::certify::{Certifier, Settings};
use self::credentials::{Changed, Mounted};
use crate::notes::{Notes, about};
use crate::process::{Process, ProcessArgs};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    process: ProcessArgs,
    /// Namespace of the control plane
    #[arg(long, default_value = "linkerd")]
    controller_namespace: String,
    #[arg(long, default_value = "cluster.local")]
    identity_trust_domain: TrustDomain,
    /// How long a proxy's certificate lasts
    #[arg(long, default_value = "24h", value_parser = duration)]
    identity_issuance_lifetime: Duration,
    /// How far clocks may be apart
    #[arg(long, default_value = "20s", value_parser = duration)]
    identity_clock_skew_allowance: Duration,
    /// Directory with crt.pem and key.pem, or tls.crt and tls.key
    #[arg(long, default_value = "/var/run/linkerd/identity/issuer")]
    issuer_dir: PathBuf,
    /// The bundle that proxies trust
    #[arg(long, default_value = "/var/run/linkerd/identity/trust-roots/ca-bundle.crt")]
    trust_anchors_file: PathBuf,
    /// Where proxies ask
    #[arg(long, default_value = "0.0.0.0:8080")]
    addr: SocketAddr,
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| format!("{text:?} is not a duration such as 24h or 20s"))
}

/// How often the mounted files are compared. Kubernetes itself takes longer to bring a change.
const RELOAD_PERIOD: Duration = Duration::from_secs(1);

pub async fn run(args: Args) -> anyhow::Result<()> {
    let process = Process::start(9990, &args.process).await?;
    may_review_tokens(&process.client).await?;
    let notes = Notes::new(process.client.clone(), "linkerd-identity");
    let own = about(
        "apps/v1",
        "Deployment",
        &args.controller_namespace,
        "linkerd-identity",
    );
    let settings = Settings {
        control_plane_namespace: args.controller_namespace,
        trust_domain: args.identity_trust_domain,
        lifetime: args.identity_issuance_lifetime,
        skew: args.identity_clock_skew_allowance,
    };
    let certifier = Arc::new(Certifier::new(process.client.clone(), settings, notes.clone()));
    let mounted = Mounted::new(args.issuer_dir, args.trust_anchors_file);
    let loaded = process.readiness.guard("issuer certificate");
    let (metrics, drain) = (process.metrics.clone(), process.drain.clone());
    let note = move |type_, reason: &str, text| notes.publish(own.clone(), type_, reason, text);
    tokio::spawn(reload(mounted, certifier.clone(), metrics, note, drain, loaded));
    let (watched, drain) = (certifier.clone(), process.drain.clone());
    let trust = TrustServer::new(move || watched.watch_trust(drain.clone()));
    let routes = tonic::service::Routes::new(IdentityServer::from_arc(certifier)).add_service(trust);
    process.serve_grpc(args.addr, routes).await
}

/// Keeps the certifier's credentials those of the mounted files.
async fn reload(
    mut mounted: Mounted,
    certifier: Arc<Certifier>,
    metrics: Metrics,
    note: impl Fn(EventType, &str, String),
    drain: Shutdown,
    loaded: hawser_runtime::Guard,
) {
    let mut loaded = Some(loaded);
    loop {
        let now = SystemTime::now();
        let refused = match mounted.read(now) {
            Changed::No => None,
            Changed::To(credentials) => {
                tracing::info!(expires_at = ?credentials.issuer.expires_at(), "issuer loaded");
                if loaded.take().is_none() {
                    note(
                        EventType::Normal,
                        "IssuerUpdated",
                        "the issuer was replaced".into(),
                    );
                }
                certifier.use_credentials(*credentials);
                None
            }
            Changed::Anchors(credentials, error) => {
                tracing::info!("trust anchors loaded, with the issuer of before");
                certifier.use_credentials(*credentials);
                Some(error)
            }
            Changed::Refused(error) => Some(error),
        };
        if let Some(error) = refused {
            tracing::error!(%error, "issuer not loaded");
            let reason = if loaded.is_some() {
                "IssuerValidationFailed"
            } else {
                "IssuerUpdateSkipped"
            };
            note(EventType::Warning, reason, error.to_string());
        }
        if let Some(expires_at) = certifier.issuer_expires_at() {
            let left = expires_at.duration_since(now).unwrap_or_default();
            let help = "time until the issuer certificate expires";
            metrics.set("issuer_cert_ttl_seconds", help, &[], left.as_secs_f64());
        }
        tokio::select! {
            () = tokio::time::sleep(RELOAD_PERIOD) => {}
            () = drain.cancelled() => return,
        }
    }
}

/// Finds out at the start, where it is seen, and not with the first proxy.
async fn may_review_tokens(client: &Client) -> anyhow::Result<()> {
    let attributes = ResourceAttributes {
        group: Some("authentication.k8s.io".into()),
        version: Some("v1".into()),
        resource: Some("tokenreviews".into()),
        verb: Some("create".into()),
        ..ResourceAttributes::default()
    };
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(attributes),
            ..Default::default()
        },
        ..SelfSubjectAccessReview::default()
    };
    let reviews: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let answer = reviews
        .create(&PostParams::default(), &review)
        .await
        .context("asking what this account may do")?;
    anyhow::ensure!(
        answer.status.is_some_and(|status| status.allowed),
        "this account may not create tokenreviews: bind it to the ClusterRole linkerd-linkerd-identity"
    );
    Ok(())
}
