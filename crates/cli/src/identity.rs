//! `hawser identity`: the certificates that proxies present, as a client would see them.
//!
//! Each pod's proxy is asked over TLS on its admin port through the API server. Nothing is believed and nothing sent:
//! an expired or foreign certificate is exactly what this command is for.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use hawser_tls::Description;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;

use crate::forward::{self, ForwardError};
use crate::kube::{ClusterArgs, problem};
use crate::meshed;
use crate::output::write_out;
use crate::problem::Problem;

/// A handshake takes milliseconds.
const DEADLINE: Duration = Duration::from_secs(5);

/// Show the certificates of meshed pods
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  hawser identity -n emojivoto web-6f9b87c9d5-x2x7k
  hawser identity -n emojivoto -l app=web-svc")]
pub(crate) struct IdentityArgs {
    /// Names of pods
    #[arg(
        value_name = "POD",
        required_unless_present = "selector",
        conflicts_with = "selector"
    )]
    pods: Vec<String>,
    /// Pods with these labels
    #[arg(short = 'l', long)]
    selector: Option<String>,
    #[arg(short, long, default_value = "default")]
    namespace: String,
}

/// Why a pod's certificate could not be seen.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IdentityError {
    #[error("the pod has no proxy with an identity")]
    NotMeshed,
    #[error("its identity {0:?} is not a name that TLS can ask for")]
    Name(String),
    #[error(transparent)]
    Forward(#[from] ForwardError),
    #[error("the TLS handshake with its proxy")]
    Handshake(#[source] std::io::Error),
    #[error("its proxy did not answer within {} s", DEADLINE.as_secs())]
    Silent,
    #[error("its proxy presented no certificate")]
    NoCertificate,
    #[error(transparent)]
    Certificate(#[from] hawser_tls::Error),
}

pub(crate) async fn run(cluster: &ClusterArgs, args: IdentityArgs) -> Result<ExitCode, Problem> {
    let client = cluster.connect().await?.client;
    let pods = select(&client, &args).await?;
    let all: Api<Pod> = Api::namespaced(client, &args.namespace);
    let mut is_whole = true;
    for (at, pod) in pods.iter().enumerate() {
        let shown = show(&all, pod).await;
        is_whole &= shown.is_ok();
        let shown = shown.unwrap_or_else(|error| {
            let name = pod.name_any();
            let attempt = format!("kubectl -n {} describe pod {name}", args.namespace);
            format!(
                "{}\n",
                Problem::new(format!("cannot see the certificate of {name}"), error, attempt)
            )
        });
        let (at, of) = (at + 1, pods.len());
        write_out(&format!("\nPOD {} ({at} of {of})\n\n{shown}", pod.name_any()))?;
    }
    Ok(if is_whole {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

async fn select(client: &Client, args: &IdentityArgs) -> Result<Vec<Pod>, Problem> {
    let what = "cannot find the pods";
    let api: Api<Pod> = Api::namespaced(client.clone(), &args.namespace);
    let Some(selector) = &args.selector else {
        let mut pods = Vec::new();
        for name in &args.pods {
            // kubectl's way of naming pods is understood.
            let name = name
                .strip_prefix("pod/")
                .or_else(|| name.strip_prefix("po/"))
                .unwrap_or(name);
            let found = api.get(name).await.map_err(|error| problem(what, error))?;
            pods.push(found);
        }
        return Ok(pods);
    };
    let found = api.list(&ListParams::default().labels(selector)).await;
    let pods = found.map_err(|error| problem(what, error))?.items;
    if pods.is_empty() {
        let why = format!("namespace {} has no pods with labels {selector}", args.namespace);
        let attempt = format!("kubectl -n {} get pods --show-labels", args.namespace);
        return Err(Problem::new(what, why, attempt));
    }
    Ok(pods)
}

/// The end-entity certificates of a pod, in full.
async fn show(pods: &Api<Pod>, pod: &Pod) -> Result<String, IdentityError> {
    let chain = chain(pods, pod, hawser_tls::inspecting_client()).await?;
    let mut text = String::new();
    for certificate in &chain {
        let description = Description::of(certificate)?;
        if !description.is_authority {
            text += &description.text;
        }
    }
    Ok(text)
}

/// What the proxy of a pod presents to a client that asks by this configuration.
pub(crate) async fn chain(
    pods: &Api<Pod>,
    pod: &Pod,
    client: Arc<ClientConfig>,
) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let name = meshed::identity(pod).ok_or(IdentityError::NotMeshed)?;
    let server = ServerName::try_from(name.clone()).map_err(|_| IdentityError::Name(name))?;
    let stream = forward::connect(pods, &pod.name_any(), meshed::admin_port(pod)).await?;
    let handshake = TlsConnector::from(client).connect(server, stream);
    let tls = tokio::time::timeout(DEADLINE, handshake)
        .await
        .map_err(|_| IdentityError::Silent)?
        .map_err(IdentityError::Handshake)?;
    let (_, connection) = tls.get_ref();
    let presented = connection
        .peer_certificates()
        .ok_or(IdentityError::NoCertificate)?;
    Ok(presented
        .iter()
        .map(|certificate| certificate.clone().into_owned())
        .collect())
}
