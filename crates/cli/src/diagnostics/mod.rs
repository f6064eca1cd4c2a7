//! `hawser diagnostics`: what the control plane would answer a proxy, and what its programs and proxies measure.
//!
//! Answers are fetched from the control plane's own ports through the API server, so they are what proxies get and not
//! a second opinion.

pub(crate) mod endpoints;
mod metrics;
pub(crate) mod policy;

use std::process::ExitCode;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use tonic::transport::Channel;

use crate::forward;
use crate::kube::{ClusterArgs, problem};
use crate::meshed;
use crate::problem::Problem;

/// Look into the mesh: what proxies are told, and what is measured
#[derive(Debug, clap::Args)]
#[command(visible_alias = "dg")]
#[command(after_help = "Examples:
  hawser diagnostics endpoints web-svc.emojivoto.svc.cluster.local:80
  hawser diagnostics policy -n emojivoto svc/web-svc 80
  hawser diagnostics proxy-metrics -n emojivoto deploy/web")]
pub(crate) struct DiagnosticsArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Endpoints(endpoints::EndpointsArgs),
    Policy(policy::PolicyArgs),
    ProxyMetrics(metrics::ProxyMetricsArgs),
    ControllerMetrics(metrics::ControllerMetricsArgs),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    #[default]
    Table,
    Json,
}

pub(crate) async fn run(cluster: &ClusterArgs, args: DiagnosticsArgs) -> Result<ExitCode, Problem> {
    let client = cluster.connect().await?.client;
    let linkerd = &cluster.linkerd_namespace;
    match args.command {
        Command::Endpoints(args) => endpoints::run(&client, linkerd, args).await,
        Command::Policy(args) => policy::run(&client, linkerd, args).await,
        Command::ProxyMetrics(args) => metrics::proxies(&client, args).await,
        Command::ControllerMetrics(_) => metrics::controllers(&client, linkerd).await,
    }
}

/// Where `destination` answers.
pub(crate) const DESTINATION_PORT: u16 = 8086;
/// Where `policy` answers.
pub(crate) const POLICY_PORT: u16 = 8090;
/// An answer takes milliseconds; a policy may be waited for up to three seconds.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);

/// A connection to one of the ready pods of the control plane's `destination`.
pub(crate) async fn destination(client: &Client, linkerd: &str, port: u16) -> Result<Channel, Problem> {
    let what = "cannot ask the control plane";
    let attempt = format!(
        "kubectl -n {linkerd} get pods -l {}=destination",
        meshed::COMPONENT
    );
    let pods: Api<Pod> = Api::namespaced(client.clone(), linkerd);
    let query = format!("{}=destination", meshed::COMPONENT);
    let found = pods.list(&ListParams::default().labels(&query)).await;
    let found = found.map_err(|error| problem(what, error))?.items;
    let Some(pod) = found.iter().find(|pod| meshed::is_ready(pod)) else {
        let why = format!("namespace {linkerd} has no ready destination pod");
        return Err(Problem::new(what, why, attempt));
    };
    forward::channel(&pods, &pod.name_any(), port)
        .await
        .map_err(|error| Problem::new(what, error, attempt))
}
