//! What the mesh is doing: rates, success, latency, and who speaks to whom.
//!
//! `hawser-viz` ([`main`]) reads every proxy's metrics every ten seconds, keeps an hour of them in memory and answers
//! questions as JSON. [`Reading`] (text to numbers), [`Window`] (numbers over time) and [`Known`] (answers) are pure;
//! the command line uses the same three where no collector is installed. It writes nothing to the cluster, stores
//! nothing, and takes no alerts: that is Prometheus' work, for which `hawser viz install` ships a configuration.

pub mod api;
mod collect;
pub mod fetch;
pub mod front;
mod kinds;
mod objects;
mod page;
mod path;
pub mod peers;
mod pods;
mod portrait;
pub mod prometheus;
mod query;
mod reading;
mod serve;
pub mod tap;
mod tape;
mod watch;
mod window;
pub mod wire;

use std::ffi::OsString;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use hawser_crd::link::parse_duration;
use hawser_runtime::{Metrics, Readiness, admin, logging, shutdown};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tokio::net::{TcpListener, TcpStream};

pub use kinds::{Kind, UnknownKind};
pub use pods::{Pod, PodName, Pods};
pub use query::Known;
pub use reading::Reading;
pub use window::{At, Window};

/// Where the API and the page listen: see [`serve`].
pub const API_PORT: u16 = 8085;
/// Where collectors of linked clusters ask.
pub const PEER_PORT: u16 = 8086;
pub const ADMIN_PORT: u16 = 9995;

/// Reads the metrics of all proxies and answers questions about them.
#[derive(Debug, Parser)]
#[command(name = "hawser-viz", version, args_conflicts_with_subcommands = true)]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// Credentials of the cluster; the pod's own if absent
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    /// Where questions are answered; anyone who reaches it may ask
    #[arg(long, default_value_t = SocketAddr::from(([127, 0, 0, 1], API_PORT)))]
    addr: SocketAddr,
    /// Where collectors of linked clusters ask, through the gateway. Whoever reaches it decides what it believes, so
    /// only the gateway may: the extension's policy sees to that
    #[arg(long)]
    peer_addr: Option<SocketAddr>,
    /// What this cluster is called on the page
    #[arg(long, default_value = "")]
    cluster_name: String,
    /// Namespaces to look at; all if absent
    #[arg(long, value_delimiter = ',')]
    namespaces: Vec<String>,
    /// Namespace of the control plane
    #[arg(long, default_value = hawser_crd::keys::CONTROL_PLANE_NAMESPACE)]
    linkerd_namespace: String,
    /// Where /live, /ready and /metrics are answered
    #[arg(long, default_value_t = SocketAddr::from(([0, 0, 0, 0], ADMIN_PORT)))]
    metrics_addr: SocketAddr,
    /// How often proxies are read
    #[arg(long, value_parser = duration, default_value = "10s")]
    every: Duration,
    /// How much is kept
    #[arg(long, value_parser = duration, default_value = "1h")]
    window: Duration,
    #[arg(long, default_value = "info")]
    log_level: String,
    #[arg(long, default_value = "plain")]
    log_format: logging::Format,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Shows live requests to those who may see them, instead of collecting
    Tap(TapArgs),
}

#[derive(Debug, clap::Args)]
struct TapArgs {
    /// Credentials of the cluster; the pod's own if absent
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    /// Where it is asked; whoever asks must bring a token
    #[arg(long, default_value_t = SocketAddr::from(([127, 0, 0, 1], tap::PORT)))]
    addr: SocketAddr,
    /// Where /live, /ready and /metrics are answered
    #[arg(long, default_value_t = SocketAddr::from(([0, 0, 0, 0], ADMIN_PORT)))]
    metrics_addr: SocketAddr,
    #[arg(long, default_value = "info")]
    log_level: String,
    #[arg(long, default_value = "plain")]
    log_format: logging::Format,
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text)
        .filter(|duration| *duration >= Duration::from_secs(1))
        .ok_or_else(|| format!("{text:?} is not a duration of a second or more"))
}

/// Whether the program would accept these arguments (without its own name), so that whoever renders a manifest can
/// test it.
pub fn check_arguments(args: impl Iterator<Item = OsString>) -> Result<(), String> {
    let args = std::iter::once(OsString::from("hawser-viz")).chain(args);
    Args::try_parse_from(args)
        .map(drop)
        .map_err(|error| error.to_string())
}

/// Runs the collector to its end; `args` begins with the program's own name.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let args = match Args::try_parse_from(args) {
        Ok(args) => args,
        Err(error) => {
            // Help goes to stdout, mistakes to stderr; if neither can be written, the code still says it.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let outcome = runtime.context("starting the runtime").and_then(|runtime| {
        let outcome = runtime.block_on(async {
            match args.command {
                Some(Command::Tap(tap)) => run_tap(tap).await,
                None => run(args).await,
            }
        });
        runtime.shutdown_background();
        outcome
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "hawser-viz: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> anyhow::Result<()> {
    logging::start(&args.log_level, args.log_format)?;
    let drain = shutdown::on_signals().context("listening for signals")?;
    let (readiness, metrics) = (Readiness::default(), Metrics::default());
    let first_round = readiness.guard("a first look at every proxy");
    let admin_listener = bind(args.metrics_addr).await?;
    let api_listener = bind(args.addr).await?;
    let peer_listener = match args.peer_addr {
        Some(addr) => Some(bind(addr).await?),
        None => None,
    };
    let client = client(args.kubeconfig.as_deref()).await?;
    let namespace = client.default_namespace().to_owned();
    let (list, pods) = tokio::sync::watch::channel(None);
    let (objects_sender, objects) = tokio::sync::watch::channel(objects::Objects::default());
    let (peers_sender, peers) = tokio::sync::watch::channel(peers::Peers::new());
    let places = watch::Places {
        namespaces: args.namespaces,
        linkerd_namespace: args.linkerd_namespace,
    };
    let cluster = args.cluster_name;
    let (questions, asked) = tokio::sync::mpsc::channel(16);
    let pace = collect::Pace {
        every: args.every,
        span: args.window,
    };
    let read = |addr| async move {
        let socket = TcpStream::connect(addr)
            .await
            .map_err(fetch::FetchError::Connect)?;
        fetch::get(socket, "/metrics").await
    };
    let watched = (pods, objects.clone());
    let collector =
        collect::Collector::new(pace, cluster.clone(), watched, read, metrics.clone(), first_round);
    let asking = serve::Asking {
        questions,
        peers,
        cluster,
    };
    let to_peers = async {
        match peer_listener {
            Some(listener) => serve::serve(listener, serve::Audience::Collectors, asking.clone()).await,
            None => std::future::pending().await,
        }
    };
    tracing::info!(addr = %args.addr, every = ?args.every, window = ?args.window, "collecting");
    // These share nothing but channels; whichever ends, ends the process.
    tokio::select! {
        () = watch::everything(client, places, list, objects_sender) => anyhow::bail!("the watches ended"),
        () = peers::follow(namespace, objects, peers_sender) => anyhow::bail!("asking linked clusters ended"),
        () = collector.run(asked) => anyhow::bail!("the collector ended"),
        () = serve::serve(api_listener, serve::Audience::People, asking.clone()) => anyhow::bail!("the API ended"),
        () = to_peers => anyhow::bail!("the API for linked clusters ended"),
        outcome = admin::serve(admin_listener, readiness, metrics, drain.clone()) => outcome.context("serving the admin port"),
        () = drain.cancelled() => Ok(()),
    }
}

async fn run_tap(args: TapArgs) -> anyhow::Result<()> {
    logging::start(&args.log_level, args.log_format)?;
    let drain = shutdown::on_signals().context("listening for signals")?;
    let admin_listener = bind(args.metrics_addr).await?;
    let listener = bind(args.addr).await?;
    let client = client(args.kubeconfig.as_deref()).await?;
    let (readiness, metrics) = (Readiness::default(), Metrics::default());
    tracing::info!(addr = %args.addr, "showing live requests");
    tokio::select! {
        () = tap::Tap::new(client).serve(listener) => anyhow::bail!("the API ended"),
        outcome = admin::serve(admin_listener, readiness, metrics, drain.clone()) => outcome.context("serving the admin port"),
        () = drain.cancelled() => Ok(()),
    }
}

async fn bind(addr: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(addr)
        .await
        .with_context(|| format!("listening on {addr}"))
}

async fn client(kubeconfig: Option<&std::path::Path>) -> anyhow::Result<Client> {
    let config = match kubeconfig {
        Some(path) => {
            let kubeconfig =
                Kubeconfig::read_from(path).with_context(|| format!("reading {}", path.display()))?;
            Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?
        }
        None => Config::incluster()
            .context("finding the cluster of this pod (outside of a pod give --kubeconfig)")?,
    };
    Client::try_from(config).context("making a Kubernetes client")
}
