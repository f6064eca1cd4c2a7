//! `hawser failover`: the failover extension's manifests, whether it works, and which splits have failed over and why.

mod check;
mod manifests;
mod status;

use std::process::ExitCode;

use hawser_control::values::{self, Values};
use hawser_crd::TrafficSplit;
use kube::Api;
use kube::api::ListParams;
use serde_json::{Value, json};

use crate::kube::{ClusterArgs, is_missing, problem};
use crate::multicluster::mesh_values;
use crate::output::yaml;
use crate::output::{OutputArgs, ValueArgs, overrides, print};
use crate::problem::Problem;
use manifests::Settings;

pub(crate) use check::check;

/// Fail over between services: hawser failover install | kubectl apply -f -
#[derive(Debug, clap::Args)]
pub(crate) struct FailoverArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Print the extension: hawser failover install | kubectl apply -f -
    Install(InstallArgs),
    /// Look for problems: hawser failover check
    Check(check::CheckArgs),
    /// Show which services receive traffic, and why: hawser failover status
    Status(status::StatusArgs),
    /// Print the extension's objects, to delete them: hawser failover uninstall | kubectl delete -f -
    Uninstall(OutputArgs),
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Values, as in Linkerd's chart: selector, logLevel, logFormat, image.registry, image.name, \
    image.tag, image.pullPolicy, imagePullSecrets, linkerdNamespace, linkerdVersion, replicas and enablePodAntiAffinity \
    (charts/hawser-failover/values.yaml describes each).\n\n\
    Examples:\n  hawser failover install | kubectl apply -f -\n  \
    hawser failover install --set logLevel=debug --set replicas=2 | kubectl apply -f -"
)]
struct InstallArgs {
    /// TrafficSplits to look after [default: those with the label failover.linkerd.io/controlled-by=linkerd-failover]
    #[arg(long, short = 'l')]
    selector: Option<String>,
    /// Three replicas, on different nodes
    #[arg(long)]
    ha: bool,
    /// Don't look at the cluster: take the defaults of a mesh
    #[arg(long)]
    ignore_cluster: bool,
    #[command(flatten)]
    values: ValueArgs,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) async fn run(cluster: &ClusterArgs, args: FailoverArgs) -> Result<ExitCode, Problem> {
    match args.command {
        Command::Install(args) => install(cluster, args).await,
        Command::Check(args) => check::run(cluster, args).await,
        Command::Status(args) => status::run(cluster, args).await,
        Command::Uninstall(output) => {
            let given = json!({"linkerdNamespace": cluster.linkerd_namespace});
            let objects = manifests::render(&settings(&Values::default(), given)?);
            print(&objects, output.output)
        }
    }
}

async fn install(cluster: &ClusterArgs, args: InstallArgs) -> Result<ExitCode, Problem> {
    let mesh = if args.ignore_cluster {
        Values::default()
    } else {
        let client = cluster.connect().await?.client;
        let what = "cannot render the failover extension";
        let splits: Api<TrafficSplit> = Api::all(client.clone());
        match splits.list_metadata(&ListParams::default().limit(1)).await {
            Ok(_) => {}
            Err(error) if is_missing(&error) => {
                let why = "the cluster has no TrafficSplits: their definition comes with the control plane";
                return Err(Problem::new(what, why, "hawser upgrade | kubectl apply -f -"));
            }
            Err(error) => return Err(problem(what, error)),
        }
        mesh_values(&client, &cluster.linkerd_namespace).await?
    };
    let mut given = json!({"linkerdNamespace": cluster.linkerd_namespace});
    if args.ha {
        values::merge(&mut given, json!({"replicas": 3, "enablePodAntiAffinity": true}));
    }
    let mut given = overrides(given, &args.values)?;
    if let Some(selector) = args.selector {
        values::merge(&mut given, json!({"selector": selector}));
    }
    print(&manifests::render(&settings(&mesh, given)?), args.output.output)
}

fn settings(mesh: &Values, given: Value) -> Result<Settings, Problem> {
    Settings::of(mesh, given).map_err(|error| {
        let attempt = "compare the names and types with: hawser failover install --help";
        Problem::new("cannot use the given values", error, attempt)
    })
}

/// The extension as YAML, for a mesh with these values. For callers in this process.
pub(crate) fn manifests(mesh: &Values) -> Result<String, Problem> {
    yaml(&manifests::render(&settings(mesh, json!({}))?))
}
