//! `hawser multicluster` (`mc`): the extension's manifests, links, and what became of them.
//!
//! Commands that make or remove objects print them and change nothing; `kubectl apply` or `delete` does the rest, so
//! everything can be read first. What is rendered is decided in [`manifests`], purely. Source: `spec/multicluster.md` 4.

mod check;
mod gateways;
mod link;
pub(crate) mod manifests;
mod path;
mod removal;

pub(crate) use removal::extension;

use std::process::ExitCode;

use hawser_control::values::{self, Values};
use hawser_crd::keys;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, ServiceAccount};
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::check::{Outcome, until};
use crate::kube::{ClusterArgs, is_missing, problem};
use crate::output::{OutputArgs, ValueArgs, overrides, print, yaml};
use crate::problem::Problem;
pub(crate) use check::check;
pub(crate) use gateways::probed;
use manifests::Settings;

/// Link clusters: hawser multicluster link --context east --cluster-name east | kubectl apply --context west -f -
#[derive(Debug, clap::Args)]
#[command(visible_alias = "mc")]
pub(crate) struct MulticlusterArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Print the extension: hawser mc install | kubectl apply -f -
    Install(InstallArgs),
    /// Print what another cluster needs to import from this one: hawser mc link --cluster-name east
    Link(link::LinkArgs),
    /// Like link, without the controller: hawser mc link-gen --cluster-name east
    LinkGen(link::LinkArgs),
    /// Print a further account for other clusters: hawser mc allow --service-account-name west
    Allow(AllowArgs),
    Revoke(removal::RevokeArgs),
    /// Print what belongs to a link: hawser mc unlink --cluster-name east | kubectl delete -f -
    Unlink(removal::UnlinkArgs),
    /// Show the gateways of linked clusters: hawser mc gateways
    Gateways(gateways::GatewaysArgs),
    /// Look for problems: hawser mc check
    Check(check::CheckArgs),
    /// Print the extension's objects: hawser mc uninstall | kubectl delete -f -
    Uninstall(OutputArgs),
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Values, as in Linkerd's chart: charts/hawser-multicluster/values.yaml describes each.\n\n\
    Examples:\n  hawser multicluster install | kubectl apply -f -\n  \
    hawser multicluster install --set controllers[0].link.ref.name=east | kubectl apply -f -   with a controller for \
    what link-gen printed\n  \
    hawser multicluster install --ha -f values.yaml | kubectl apply -f -"
)]
struct InstallArgs {
    /// Install a gateway; without one, services of this cluster can't be reached through a link
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    gateway: bool,
    #[arg(long, default_value_t = keys::GATEWAY_PORT)]
    gateway_port: u16,
    /// Seconds between other clusters' probes of the gateway
    #[arg(long, default_value_t = 3)]
    gateway_probe_seconds: u32,
    #[arg(long, default_value_t = keys::PROBE_PORT)]
    gateway_probe_port: u16,
    /// LoadBalancer, NodePort or ClusterIP
    #[arg(long, default_value = "LoadBalancer")]
    gateway_service_type: String,
    /// Port on which nodes say whether they have a gateway (with externalTrafficPolicy Local)
    #[arg(long)]
    gateway_healthcheck_nodeport: Option<u16>,
    /// Make the account that other clusters' mirrors use by default
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    service_mirror_credentials: bool,
    /// Three replicas of everything, on different nodes
    #[arg(long)]
    ha: bool,
    /// How long to wait for the control plane, in seconds (300s) or as a duration
    #[arg(long, default_value = "300s")]
    wait: String,
    /// Don't look at the cluster: take the defaults of a mesh
    #[arg(long)]
    ignore_cluster: bool,
    #[arg(long, default_value = keys::MULTICLUSTER_NAMESPACE)]
    namespace: String,
    #[command(flatten)]
    values: ValueArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, clap::Args)]
struct AllowArgs {
    /// Name of the new account, for example the other cluster's
    #[arg(long)]
    service_account_name: String,
    #[arg(long, default_value = keys::MULTICLUSTER_NAMESPACE)]
    namespace: String,
    /// Print the account even if it exists
    #[arg(long)]
    ignore_cluster: bool,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) async fn run(cluster: &ClusterArgs, args: MulticlusterArgs) -> Result<ExitCode, Problem> {
    match args.command {
        Command::Install(args) => install(cluster, args).await,
        Command::Link(args) => link::run(cluster, args, link::Controller::Included).await,
        Command::LinkGen(args) => link::run(cluster, args, link::Controller::Left).await,
        Command::Allow(args) => allow(cluster, args).await,
        Command::Revoke(args) => removal::revoke(cluster, args).await,
        Command::Unlink(args) => removal::unlink(cluster, args).await,
        Command::Gateways(args) => gateways::run(cluster, args).await,
        Command::Check(args) => check::run(cluster, args).await,
        Command::Uninstall(args) => removal::uninstall(cluster, args).await,
    }
}

async fn install(cluster: &ClusterArgs, args: InstallArgs) -> Result<ExitCode, Problem> {
    if args.namespace == cluster.linkerd_namespace {
        return Err(Problem::new(
            "cannot render the multicluster extension",
            format!("its namespace {:?} is the control plane's", args.namespace),
            "another --namespace",
        ));
    }
    let mesh = if args.ignore_cluster {
        Values::default()
    } else {
        let connection = cluster.connect().await?;
        let mesh = mesh_values(&connection.client, &cluster.linkerd_namespace).await?;
        control_plane_runs(&connection.client, &cluster.linkerd_namespace, &args.wait).await?;
        mesh
    };
    let mut overrides = json!({
        "namespace": args.namespace,
        "linkerdNamespace": cluster.linkerd_namespace,
        "remoteMirrorServiceAccount": args.service_mirror_credentials,
        "gateway": {
            "enabled": args.gateway, "port": args.gateway_port, "serviceType": args.gateway_service_type,
            "healthCheckNodePort": args.gateway_healthcheck_nodeport,
            "probe": {"port": args.gateway_probe_port, "seconds": args.gateway_probe_seconds},
        },
    });
    if args.ha {
        let replicas = json!({
            "gateway": {"replicas": 3}, "replicas": 3, "localServiceMirror": {"replicas": 3},
            "enablePodAntiAffinity": true,
        });
        values::merge(&mut overrides, replicas);
    }
    let settings = settings(&mesh, overrides, &args.values)?;
    print(&rendered(&settings)?, args.output.output)
}

fn rendered(settings: &Settings) -> Result<Vec<Value>, Problem> {
    manifests::render(settings).map_err(|error| {
        Problem::new(
            "cannot render the multicluster extension",
            error,
            "--set controllers[0].link.ref.name=east, or --gateway-service-type NodePort, for example",
        )
    })
}

/// Service of the webhook that gives pods their proxy.
const INJECTOR: &str = "linkerd-proxy-injector";

fn has_ready_address(endpoints: &Endpoints) -> bool {
    let mut subsets = endpoints.subsets.iter().flatten();
    subsets.any(|subset| {
        subset
            .addresses
            .as_ref()
            .is_some_and(|addresses| !addresses.is_empty())
    })
}

/// Pods of the extension need the control plane to become part of the mesh, so it has to run first.
async fn control_plane_runs(client: &Client, namespace: &str, wait: &str) -> Result<(), Problem> {
    let what = "the control plane does not run";
    let wait = hawser_crd::link::parse_duration(wait)
        .ok_or_else(|| Problem::new(what, format!("--wait {wait:?} is not a duration"), "--wait 300s"))?;
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    let endpoints: Api<Endpoints> = Api::namespaced(client.clone(), namespace);
    let ours = ListParams::default().labels(hawser_control::keys::CONTROL_PLANE_COMPONENT);
    let outcome = until(Instant::now() + wait, "the control plane", async || {
        let found = match deployments.list(&ours).await {
            Ok(found) => found.items,
            Err(error) => return Outcome::Error(error.to_string()),
        };
        if found.is_empty() {
            return Outcome::Error(format!("namespace {namespace} has no deployments of it"));
        }
        let is_down = |deployment: &&Deployment| {
            let status = deployment.status.as_ref();
            status.and_then(|status| status.available_replicas).unwrap_or(0) == 0
        };
        let down = Outcome::none(
            "not available",
            found.iter().filter(is_down).map(ResourceExt::name_any),
        );
        if down.is_error() {
            return down;
        }
        // A pod that is made before the webhook answers stays without a proxy for good.
        match endpoints.get_opt(INJECTOR).await {
            Ok(Some(found)) if has_ready_address(&found) => Outcome::fine(),
            Ok(_) => Outcome::Error(format!("nothing ready stands behind service {INJECTOR}")),
            Err(error) => Outcome::Error(error.to_string()),
        }
    });
    match outcome.await {
        Outcome::Error(why) => {
            let attempt = format!("kubectl -n {namespace} get pods, or --ignore-cluster");
            Err(Problem::new(what, why, attempt))
        }
        _ => Ok(()),
    }
}

async fn allow(cluster: &ClusterArgs, args: AllowArgs) -> Result<ExitCode, Problem> {
    let name = &args.service_account_name;
    let what = format!("cannot allow another cluster as {name:?}");
    name.parse::<hawser_core::ServiceName>()
        .map_err(|error| Problem::new(&what, error, "--service-account-name with a DNS label"))?;
    if !args.ignore_cluster {
        let connection = cluster.connect().await?;
        let accounts: Api<ServiceAccount> = Api::namespaced(connection.client, &args.namespace);
        if accounts
            .get_opt(name)
            .await
            .map_err(|error| problem(&what, error))?
            .is_some()
        {
            let why = format!("the service account {}/{name} exists already", args.namespace);
            return Err(Problem::new(
                what,
                why,
                "another --service-account-name, or --ignore-cluster",
            ));
        }
    }
    let settings = Settings {
        namespace: args.namespace,
        ..Settings::default()
    };
    let mut objects = vec![manifests::namespace(&settings)];
    objects.extend(manifests::remote_access(&settings, name));
    print(&objects, args.output.output)
}

/// The extension as YAML, for a mesh with these values. For callers in this process.
pub(crate) fn manifests(mesh: &Values) -> Result<String, Problem> {
    let settings = settings(mesh, json!({}), &ValueArgs::default())?;
    yaml(&rendered(&settings)?)
}

/// A link to the cluster behind `target`, as YAML for the importing cluster. For callers in this process.
pub(crate) async fn link_manifests(
    target: &Client,
    cluster_name: &str,
    api_url: &str,
    source_mesh: &Values,
) -> Result<String, Problem> {
    let settings = settings(source_mesh, json!({}), &ValueArgs::default())?;
    yaml(&link::objects(target, cluster_name, api_url, &settings).await?)
}

/// The mesh's settings, as its installation stored them.
pub(crate) async fn mesh_values(client: &Client, namespace: &str) -> Result<Values, Problem> {
    let what = format!(
        "cannot read the mesh's settings (configmap {namespace}/{})",
        keys::CONFIG_MAP
    );
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let map = match maps.get(keys::CONFIG_MAP).await {
        Ok(map) => map,
        Err(error) if is_missing(&error) => {
            let attempt = "install the control plane first: hawser install | kubectl apply -f -";
            return Err(Problem::new(what, error, attempt));
        }
        Err(error) => return Err(problem(what, error)),
    };
    let text = map.data.unwrap_or_default().remove("values").unwrap_or_default();
    Values::from_yaml(&text).map_err(|error| Problem::new(what, error, "hawser upgrade | kubectl apply -f -"))
}

pub(crate) fn settings(mesh: &Values, given: Value, args: &ValueArgs) -> Result<Settings, Problem> {
    // An absent optional value must not erase the default's field.
    Settings::of(mesh, overrides(given, args)?).map_err(|error| {
        let attempt = "compare the names and types with: hawser mc install --help";
        Problem::new("cannot use the given values", error, attempt)
    })
}
