//! `hawser check`: looks for what commonly goes wrong, and says it in the words of Linkerd's checks.
//!
//! Categories are looked at in the order in which they build on each other; after a fatal one the rest says nothing.
//! [`report`] shows what was found. The rows are in [`cluster`], [`control_plane`] and [`data_plane`]; extensions
//! bring their own.

mod cluster;
mod control_plane;
mod data_plane;
mod report;
#[cfg(test)]
mod tests;

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use kube::Client;
use tokio::time::Instant;

pub(crate) use self::report::{Category, Format, Outcome, Paint, Report, until};
use crate::failover;
use crate::kube::{ClusterArgs, is_missing};
use crate::multicluster;
use crate::output::write_out;
use crate::problem::Problem;
use crate::viz;

/// One request's patience with a cluster.
const DEADLINE: Duration = Duration::from_secs(10);

/// Look for problems of the cluster, the control plane and the proxies
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  hawser check --pre            can this cluster have a mesh?
  hawser check                  is the mesh well, with its extensions?
  hawser check --proxy -o short only what is wrong, proxies included")]
pub(crate) struct CheckArgs {
    /// Look at a cluster before the control plane is installed
    #[arg(long, conflicts_with = "proxy")]
    pre: bool,
    /// Look at the proxies of workloads as well
    #[arg(long)]
    proxy: bool,
    /// Namespace of the workloads; all if absent
    #[arg(short, long)]
    namespace: Option<String>,
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    /// How long to wait for what is starting
    #[arg(long, value_name = "DURATION", default_value = "5m0s", value_parser = duration)]
    wait: Duration,
    /// Accepted for compatibility
    #[arg(long, hide = true, conflicts_with = "pre")]
    crds: bool,
}

fn duration(text: &str) -> Result<Duration, String> {
    hawser_crd::link::parse_duration(text).ok_or_else(|| "not a duration, such as 30s or 5m".to_owned())
}

pub(crate) async fn run(cluster: &ClusterArgs, args: CheckArgs) -> Result<ExitCode, Problem> {
    let mut report = Report::default();
    let mut api = Category::new("kubernetes-api");
    let connected = cluster.connect().await;
    let reason = connected.as_ref().map(drop).map_err(ToString::to_string);
    api.row(
        "can initialize the client",
        "k8s-api",
        "give --kubeconfig or --context, or set KUBECONFIG",
        reason.into(),
    );
    match connected {
        Err(_) => report.push(api),
        Ok(connection) => {
            let checks = Checks {
                client: connection.client,
                linkerd: cluster.linkerd_namespace.clone(),
                namespace: args.namespace.clone(),
                deadline: Instant::now() + args.wait,
                now: SystemTime::now(),
            };
            let scope = match (args.pre, args.proxy) {
                (true, _) => Scope::BeforeInstall,
                (_, true) => Scope::Proxies,
                _ => Scope::ControlPlane,
            };
            if checks.all(&mut report, api, scope).await && scope != Scope::BeforeInstall {
                extensions(cluster, &checks, &mut report).await;
            }
        }
    }
    write_out(&report.text(args.output))?;
    Ok(report.code())
}

async fn extensions(cluster: &ClusterArgs, checks: &Checks, report: &mut Report) {
    if let Some(category) = multicluster::check(cluster, &checks.client, checks.deadline).await {
        report.push(category);
    }
    if let Some(category) = failover::check(&checks.client).await {
        report.push(category);
    }
    if let Some(category) = viz::check(&checks.client, checks.deadline).await {
        report.push(category);
    }
}

/// How far to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    BeforeInstall,
    ControlPlane,
    Proxies,
}

/// What checks have in common.
struct Checks {
    client: Client,
    /// Namespace of the control plane.
    linkerd: String,
    /// Namespace of the workloads, if only one matters.
    namespace: Option<String>,
    /// Until when something may still start.
    deadline: Instant,
    now: SystemTime,
}

impl Checks {
    /// Says whether everything that others build on is there.
    async fn all(&self, report: &mut Report, mut api: Category, scope: Scope) -> bool {
        let passed = self.kubernetes_api(&mut api).await;
        report.push(api);
        if !passed || !self.kubernetes_version(report).await {
            return false;
        }
        if scope == Scope::BeforeInstall {
            return self.before_install(report).await;
        }
        if !self.existence(report).await {
            return false;
        }
        self.configuration(report).await;
        let anchors = self.identity(report).await;
        self.webhooks(report).await;
        self.control_plane_version(report).await;
        self.control_plane_answers(report).await;
        self.control_plane_proxies(report, anchors.as_ref()).await;
        if scope == Scope::Proxies {
            self.data_plane(report, anchors).await;
        }
        true
    }
}

/// Waits for a request for so long and not longer, and says in one line what was wrong with it.
async fn bounded<T>(request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, String> {
    match tokio::time::timeout(DEADLINE, request).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) if is_missing(&error) => Err("it does not exist".to_owned()),
        Ok(Err(kube::Error::Api(status))) => Err(status.message.clone()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {DEADLINE:?}")),
    }
}
