//! `hawser viz`: the metrics extension, and what it knows about traffic.
//!
//! Questions go to the collector in the cluster, through the API server; where none is installed, `stat`, `edges` and
//! `gateways` read the proxies themselves (see [`source`]). What is printed is decided in [`show`], purely.

mod check;
pub(crate) mod dashboard;
mod manifests;
mod show;
mod source;
mod tap;

pub(crate) use check::check;

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use hawser_control::values::Values;
use hawser_crd::keys;
use hawser_viz::Kind;
use hawser_viz::api::{Objects, Question, Towards};
use hawser_viz::wire;
use k8s_openapi::api::core::v1::Service;
use kube::api::ListParams;
use kube::{Api, Client};
use serde_json::json;

use crate::check::Format;
use crate::kube::{ClusterArgs, problem};
use crate::multicluster::{extension, mesh_values, settings};
use crate::output::{OutputArgs, ValueArgs, overrides, print, write_out};
use crate::problem::Problem;
pub(crate) use source::Source;

/// Between two pictures of `--watch`.
const REPAINT: Duration = Duration::from_secs(2);

/// See traffic: hawser viz stat deploy -n emojivoto
#[derive(Debug, clap::Args)]
pub(crate) struct VizArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Print the extension: hawser viz install | kubectl apply -f -
    Install(InstallArgs),
    /// Print the extension's objects: hawser viz uninstall | kubectl delete -f -
    Uninstall(OutputArgs),
    /// Look for problems: hawser viz check
    Check(check::CheckArgs),
    /// Show requests per second, success and latency: hawser viz stat deploy -n emojivoto
    #[command(
        after_help = "Examples:\n  hawser viz stat deploy -n emojivoto              what comes in at each Deployment\n  hawser viz stat deploy/web -n emojivoto --watch  one, again and again\n  hawser viz stat deploy --to svc/web-svc -n emojivoto   who calls web-svc\n  hawser viz stat svc -A                           every Service, as its callers see it"
    )]
    Stat(StatArgs),
    /// Show who speaks to whom, and whether it is secured: hawser viz edges deploy -n emojivoto
    Edges(EdgesArgs),
    /// Show what each route of policy (HTTPRoute, or default) let in: hawser viz routes deploy/web -n emojivoto
    Routes(RoutesArgs),
    /// Show where the time of requests goes, leg by leg: hawser viz path deploy/vote-bot -n emojivoto
    #[command(
        after_help = "Examples:\n  hawser viz path deploy/vote-bot --to svc/web-svc -n emojivoto   also when another cluster answers\n  hawser viz path deploy -n emojivoto --watch                     everything that anybody asks\n\nLatencies are means, and add up to what the first proxy measures. Where a gateway has several clients, its\npart is the mean of all."
    )]
    Path(PathArgs),
    /// Show requests as they happen: hawser viz tap deploy/web -n emojivoto
    #[command(
        after_help = "Examples:\n  hawser viz tap deploy/web -n emojivoto                   what it is asked and asks\n  hawser viz tap deploy/web -n emojivoto --to svc/voting-svc --method POST\n  hawser viz tap ns/emojivoto --path /api --max-rps 10 -o json   one event to a line\n\nWho may: whoever may make tokens for an account (linkerd-viz/tap-viewer, or --account) that may watch\npods/tap of tap.linkerd.io. Queries, headers and bodies are never shown. Pods with the annotation\nviz.linkerd.io/disable-tap are not watched."
    )]
    Tap(tap::TapArgs),
    /// Show which requests are the most: hawser viz top deploy/web -n emojivoto
    #[command(
        after_help = "Examples:\n  hawser viz top deploy/web -n emojivoto             by path, until Ctrl-C\n  hawser viz top deploy -n emojivoto --routes        by route\n  hawser viz top deploy/web -n emojivoto --for 10s -o json"
    )]
    Top(tap::TopArgs),
    /// Open the dashboard: hawser viz dashboard
    #[command(
        after_help = "Examples:\n  hawser viz dashboard              print the URL, until Ctrl-C\n  hawser viz dashboard --port 8080  on this port\n  hawser viz dashboard --show url   only the URL, for scripts"
    )]
    Dashboard(dashboard::DashboardArgs),
    /// Show the gateways of linked clusters and how fast they answer: hawser viz gateways
    Gateways(GatewaysArgs),
}

#[derive(Debug, clap::Args)]
struct InstallArgs {
    /// Don't look at the cluster: take the defaults of a mesh
    #[arg(long)]
    ignore_cluster: bool,
    #[arg(long, default_value = keys::VIZ_NAMESPACE)]
    namespace: String,
    /// What the dashboard calls this cluster; clusters that link to it call it as their Link does
    #[arg(long, default_value = "")]
    cluster_name: String,
    /// How often proxies are read
    #[arg(long, default_value = "10s")]
    every: String,
    #[command(flatten)]
    values: ValueArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    #[default]
    Table,
    /// More columns
    Wide,
    Json,
}

/// What all questions have in common.
#[derive(Clone, Debug, clap::Args)]
struct ViewArgs {
    /// How far to look back
    #[arg(short = 't', long = "time-window", default_value = "1m")]
    window: String,
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
    /// Show it again and again, until Ctrl-C
    #[arg(short = 'w', long)]
    watch: bool,
    /// Ask this Prometheus instead of the collector: http://localhost:9090
    #[arg(long, value_name = "URL")]
    prometheus_url: Option<http::Uri>,
    /// Namespace of the extension
    #[arg(long, default_value = keys::VIZ_NAMESPACE)]
    viz_namespace: String,
}

#[derive(Clone, Debug, clap::Args)]
struct ObjectsArgs {
    /// Kind, or kind/name, or kind and name: deploy, deploy/web, deploy web; also sts, ds, rs, job, po, svc, ns,
    /// authority, route
    #[arg(required = true, num_args = 1..=2, value_name = "KIND [NAME]")]
    objects: Vec<String>,
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// All namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
}

#[derive(Clone, Debug, clap::Args)]
struct StatArgs {
    #[command(flatten)]
    objects: ObjectsArgs,
    /// Only requests to this, as the objects send them: svc/web-svc
    #[arg(long, conflicts_with = "from")]
    to: Option<String>,
    /// Namespace of --to, if it is another
    #[arg(long, requires = "to")]
    to_namespace: Option<String>,
    /// Only requests from this: deploy/vote-bot
    #[arg(long)]
    from: Option<String>,
    /// Namespace of --from, if it is another
    #[arg(long, requires = "from")]
    from_namespace: Option<String>,
    #[command(flatten)]
    view: ViewArgs,
}

#[derive(Clone, Debug, clap::Args)]
struct RoutesArgs {
    #[command(flatten)]
    objects: ObjectsArgs,
    #[command(flatten)]
    view: ViewArgs,
}

#[derive(Clone, Debug, clap::Args)]
struct PathArgs {
    #[command(flatten)]
    objects: ObjectsArgs,
    /// Only requests to this Service: svc/web-svc
    #[arg(long)]
    to: Option<String>,
    /// Namespace of --to, if it is another
    #[arg(long, requires = "to")]
    to_namespace: Option<String>,
    #[command(flatten)]
    view: ViewArgs,
}

#[derive(Clone, Debug, clap::Args)]
struct EdgesArgs {
    #[command(flatten)]
    objects: ObjectsArgs,
    #[command(flatten)]
    view: ViewArgs,
}

#[derive(Clone, Debug, clap::Args)]
struct GatewaysArgs {
    /// Only this cluster's gateway
    #[arg(long)]
    cluster_name: Option<String>,
    #[command(flatten)]
    view: ViewArgs,
}

pub(crate) async fn run(cluster: &ClusterArgs, args: VizArgs) -> Result<ExitCode, Problem> {
    match args.command {
        Command::Install(args) => install(cluster, args).await,
        Command::Uninstall(args) => uninstall(cluster, &args).await,
        Command::Check(args) => check::run(cluster, args).await,
        Command::Stat(args) => stat(cluster, &args).await,
        Command::Edges(args) => edges(cluster, &args).await,
        Command::Routes(args) => routes(cluster, &args).await,
        Command::Path(args) => path(cluster, &args).await,
        Command::Tap(args) => tap::tap(cluster, &args).await,
        Command::Top(args) => tap::top(cluster, &args).await,
        Command::Dashboard(args) => dashboard::run(cluster, &args).await,
        Command::Gateways(args) => gateways(cluster, &args).await,
    }
}

async fn install(cluster: &ClusterArgs, args: InstallArgs) -> Result<ExitCode, Problem> {
    let mesh = if args.ignore_cluster {
        Values::default()
    } else {
        let connection = cluster.connect().await?;
        mesh_values(&connection.client, &cluster.linkerd_namespace).await?
    };
    let flags = json!({
        "namespace": args.namespace, "linkerdNamespace": cluster.linkerd_namespace,
        "clusterName": args.cluster_name, "every": args.every,
    });
    let given = overrides(flags, &args.values)?;
    let about: manifests::Collector = serde_json::from_value(given.clone()).map_err(|error| {
        Problem::new(
            "cannot use the given values",
            error,
            "--set clusterName=west,every=10s",
        )
    })?;
    let settings = settings(&mesh, given, &ValueArgs::default())?;
    let told = [format!("--every={}", about.every)];
    if let Err(why) = hawser_viz::check_arguments(told.iter().map(Into::into)) {
        return Err(Problem::new(
            "cannot install the viz extension",
            why,
            "--every 10s",
        ));
    }
    print(&manifests::render(&settings, &about), args.output.output)
}

/// The extension as objects, for a mesh with these values. For callers in this process.
pub(crate) fn manifests(
    mesh: &Values,
    cluster_name: &str,
    every: &str,
) -> Result<Vec<serde_json::Value>, Problem> {
    let overrides = json!({"namespace": keys::VIZ_NAMESPACE});
    let settings = settings(mesh, overrides, &ValueArgs::default())?;
    let about = manifests::Collector {
        cluster_name: cluster_name.to_owned(),
        every: every.to_owned(),
    };
    Ok(manifests::render(&settings, &about))
}

async fn uninstall(cluster: &ClusterArgs, args: &OutputArgs) -> Result<ExitCode, Problem> {
    let client = cluster.connect().await?.client;
    let objects = extension(&client, keys::EXTENSION_VIZ, keys::VIZ_NAMESPACE).await?;
    if objects.is_empty() {
        return Err(Problem::new(
            "cannot uninstall the viz extension",
            "the cluster has no objects of it",
            "check --context, or be glad: it is gone already",
        ));
    }
    print(&objects, args.output)
}

async fn stat(cluster: &ClusterArgs, args: &StatArgs) -> Result<ExitCode, Problem> {
    let objects = args.objects.read()?;
    let other = |text: &Option<String>, namespace: &Option<String>| {
        let namespace = namespace.clone().or_else(|| objects.namespace.clone());
        text.as_ref()
            .map(|text| read_objects(std::slice::from_ref(text), namespace))
            .transpose()
    };
    let to = other(&args.to, &args.to_namespace)?.map(Towards::To);
    let from = other(&args.from, &args.from_namespace)?.map(Towards::From);
    let question = Question {
        objects: objects.clone(),
        towards: to.or(from),
        window: args.view.window()?,
    };
    let client = cluster.connect().await?.client;
    let mut source = Source::find(&client, &args.view).await?;
    let with_namespace = objects.namespace.is_none() && objects.kind != Kind::Namespace;
    args.view
        .show(async || {
            let rows = source.stat(&question).await?;
            match args.view.output {
                Output::Json => Ok(show::json_text(&rows)),
                _ if rows.is_empty() && !args.view.watch => Err(nothing()),
                output => Ok(show::stat(&rows, with_namespace, output == Output::Wide)),
            }
        })
        .await
}

async fn routes(cluster: &ClusterArgs, args: &RoutesArgs) -> Result<ExitCode, Problem> {
    let objects = args.objects.read()?;
    if matches!(objects.kind, Kind::Service | Kind::Authority | Kind::Route) {
        let why = format!("routes let requests in at pods, and a {} has none", objects.kind);
        return Err(Problem::new(
            "cannot show routes",
            why,
            "hawser viz routes deploy/web",
        ));
    }
    let window = args.view.window()?;
    let client = cluster.connect().await?.client;
    let mut source = Source::find(&client, &args.view).await?;
    let with_namespace = objects.namespace.is_none() && objects.kind != Kind::Namespace;
    args.view
        .show(async || {
            let rows = source.routes(&objects, window).await?;
            match args.view.output {
                Output::Json => Ok(show::json_text(&rows)),
                _ if rows.is_empty() && !args.view.watch => Err(nothing()),
                output => Ok(show::routes(&rows, with_namespace, output == Output::Wide)),
            }
        })
        .await
}

fn nothing() -> Problem {
    Problem::new(
        "nothing to show",
        "no such object has pods or traffic",
        "another kind, name or -n NAMESPACE; or -A for all namespaces",
    )
}

async fn path(cluster: &ClusterArgs, args: &PathArgs) -> Result<ExitCode, Problem> {
    let from = args.objects.read()?;
    let to_namespace = args.to_namespace.clone().or_else(|| from.namespace.clone());
    let to = match &args.to {
        None => None,
        Some(to) => match read_objects(std::slice::from_ref(to), to_namespace)? {
            Objects {
                kind: Kind::Service,
                name: Some(name),
                namespace: Some(namespace),
            } => Some((namespace, name)),
            _ => {
                let why = format!("{to:?} is not one Service");
                return Err(Problem::new(
                    "cannot follow requests there",
                    why,
                    "--to svc/web-svc -n NAMESPACE",
                ));
            }
        },
    };
    let window = args.view.window()?;
    let client = cluster.connect().await?.client;
    let source = Source::find(&client, &args.view).await?;
    args.view
        .show(async || {
            let paths = source.paths(&from, to.as_ref(), window).await?;
            match args.view.output {
                Output::Json => Ok(show::json_text(&paths)),
                _ if paths.is_empty() && !args.view.watch => Err(nothing()),
                output => Ok(show::paths(&paths, output == Output::Wide)),
            }
        })
        .await
}

async fn edges(cluster: &ClusterArgs, args: &EdgesArgs) -> Result<ExitCode, Problem> {
    let objects = args.objects.read()?;
    let client = cluster.connect().await?.client;
    let mut source = Source::find(&client, &args.view).await?;
    let window = args.view.window()?;
    args.view
        .show(async || {
            let edges = source.edges(&objects, window).await?;
            Ok(match args.view.output {
                Output::Json => show::json_text(&edges),
                output => show::edges(&edges, output == Output::Wide),
            })
        })
        .await
}

async fn gateways(cluster: &ClusterArgs, args: &GatewaysArgs) -> Result<ExitCode, Problem> {
    let client = cluster.connect().await?.client;
    let mut source = Source::find(&client, &args.view).await?;
    let window = args.view.window()?;
    args.view
        .show(async || {
            let mut rows = Vec::new();
            for gateway in source.gateways(window).await? {
                let is_wanted = |name: &String| *name == gateway.cluster_name;
                if args.cluster_name.as_ref().is_none_or(is_wanted) {
                    let services = mirrors(&client, &gateway.cluster_name).await?;
                    rows.push(show::GatewayRow { gateway, services });
                }
            }
            Ok(match args.view.output {
                Output::Json => show::json_text(&rows),
                output => show::gateways(&rows, output == Output::Wide),
            })
        })
        .await
}

/// How many Services are imported from a cluster.
async fn mirrors(client: &Client, cluster: &str) -> Result<usize, Problem> {
    let query = format!("{}=true,{}={cluster}", keys::MIRRORED_SERVICE, keys::CLUSTER_NAME);
    let services: Api<Service> = Api::all(client.clone());
    let list = services
        .list_metadata(&ListParams::default().labels(&query))
        .await;
    let list = list.map_err(|error| problem("cannot count the mirrors", error))?;
    Ok(list.items.len())
}

impl ViewArgs {
    /// Prints what is asked for: once, or again and again.
    async fn show(&self, mut ask: impl AsyncFnMut() -> Result<String, Problem>) -> Result<ExitCode, Problem> {
        if !self.watch {
            write_out(&ask().await?)?;
            return Ok(ExitCode::SUCCESS);
        }
        let mut screen = show::Screen::default();
        loop {
            screen.paint(&ask().await?)?;
            tokio::time::sleep(REPAINT).await;
        }
    }

    fn window(&self) -> Result<Duration, Problem> {
        let window = hawser_crd::link::parse_duration(&self.window).filter(|window| window.as_secs() > 0);
        window.ok_or_else(|| {
            let why = format!("{:?} is not a duration of a second or more", self.window);
            Problem::new("cannot look back", why, "--time-window 1m")
        })
    }
}

impl ObjectsArgs {
    fn read(&self) -> Result<Objects, Problem> {
        let namespace = (!self.all_namespaces).then(|| self.namespace.clone());
        read_objects(&self.objects, namespace)
    }
}

fn say(text: &str) {
    // If stderr is closed, nobody wants to know.
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// `deploy`, `deploy/web` or `deploy web`.
fn read_objects(words: &[String], namespace: Option<String>) -> Result<Objects, Problem> {
    let wrong = |error: Box<dyn std::error::Error>| {
        Problem::new(
            format!("cannot look at {:?}", words.join(" ")),
            error,
            "deploy, deploy/web, svc, po, ns",
        )
    };
    let (kind, name) = match words {
        [both] => match both.split_once('/') {
            Some((kind, name)) => (kind, Some(name)),
            None => (both.as_str(), None),
        },
        [kind, name] => (kind.as_str(), Some(name.as_str())),
        _ => return Err(wrong("a kind and perhaps a name are expected".into())),
    };
    let legal = |name: &str| wire::name(name).map_err(|error| wrong(error.into()));
    Ok(Objects {
        kind: kind
            .parse()
            .map_err(|error: hawser_viz::UnknownKind| wrong(error.into()))?,
        name: name.map(legal).transpose()?,
        namespace: namespace.as_deref().map(legal).transpose()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(words: &[&str]) -> Option<(Kind, Option<String>)> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let objects = read_objects(&words, None).ok()?;
        Some((objects.kind, objects.name))
    }

    #[test]
    fn objects_are_named_as_kubectl_names_them() {
        assert_eq!(read(&["deploy"]), Some((Kind::Deployment, None)));
        assert_eq!(
            read(&["deploy/web"]),
            Some((Kind::Deployment, Some("web".into())))
        );
        assert_eq!(read(&["po", "web-1"]), Some((Kind::Pod, Some("web-1".into()))));
        assert_eq!(
            read(&["au", "web-svc:80"]),
            Some((Kind::Authority, Some("web-svc:80".into())))
        );
        assert_eq!(read(&["secret"]), None);
        assert_eq!(read(&["deploy/"]), None);
        assert_eq!(read(&["deploy/a b"]), None);
    }
}
