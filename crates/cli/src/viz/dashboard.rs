//! `viz dashboard`: a port of this machine's loopback that leads to the collector's page.
//!
//! Each connection goes through the API server's port-forward to whichever collector runs then, so a collector that is
//! replaced costs a reload and nothing else. What would become of a request is answered here, as `hawser explain` does,
//! with the rights of whoever opened the port: a collector may not ask control planes, and not those of others at all.

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use hawser_control::view::Key;
use hawser_crd::keys;
use hawser_proxy::decision;
use hawser_viz::wire::Explain;
use hawser_viz::{API_PORT, front};
use http::{Method, Uri};
use kube::Client;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::source::Collector;
use crate::kube::ClusterArgs;
use crate::output::write_out;
use crate::problem::Problem;
use crate::{explain, forward};

/// Where Linkerd's dashboard is.
pub(crate) const PORT: u16 = 50750;
/// A browser opens six; a few may look at once.
const CONNECTIONS_MAX: usize = 64;
/// A collector that is starting is waited for.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(300);
/// Each asks several control planes, and the page asks again and again.
const EXPLANATIONS_MAX: usize = 2;
const EXPLAINED_WITHIN: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum Show {
    /// The URL and how to end
    #[default]
    Help,
    /// Only the URL
    Url,
}

#[derive(Debug, clap::Args)]
pub(super) struct DashboardArgs {
    /// Port of this machine's loopback; 0 takes any
    #[arg(long, short, default_value_t = PORT)]
    port: u16,
    /// What to print
    #[arg(long, value_enum, default_value = "help")]
    show: Show,
    /// Namespace of the extension
    #[arg(long, default_value = keys::VIZ_NAMESPACE)]
    viz_namespace: String,
}

pub(super) async fn run(cluster: &ClusterArgs, args: &DashboardArgs) -> Result<ExitCode, Problem> {
    let client = cluster.connect().await?.client;
    if Collector::find(&client, &args.viz_namespace).await?.is_none() {
        return Err(Problem::new(
            "cannot open the dashboard",
            format!("no collector runs in namespace {}", args.viz_namespace),
            "hawser viz install | kubectl apply -f -; then hawser viz check",
        ));
    }
    let listener = listen(args.port).await.map_err(|error| {
        let why = format!("port {} of this machine: {error}", args.port);
        Problem::new(
            "cannot open the dashboard",
            why,
            "--port 0 takes one that is free",
        )
    })?;
    let url = url(&listener)?;
    match args.show {
        Show::Url => write_out(&format!("{url}\n"))?,
        Show::Help => {
            write_out(&format!("{url}\n"))?;
            // If stderr is closed, nobody wants to know.
            let _ = writeln!(std::io::stderr(), "the dashboard is there until Ctrl-C");
        }
    }
    tokio::select! {
        () = serve(listener, client, args.viz_namespace.clone(), cluster.clone()) => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// Loopback only: whoever reaches the port sees what the user may see.
pub(crate) async fn listen(port: u16) -> std::io::Result<TcpListener> {
    TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await
}

pub(crate) fn url(listener: &TcpListener) -> Result<String, Problem> {
    let addr = listener
        .local_addr()
        .map_err(|error| Problem::new("cannot open the dashboard", error, "--port 0"))?;
    Ok(format!("http://localhost:{}", addr.port()))
}

/// Leads every connection to a collector, for ever; `cluster` is how the user gets to it.
pub(crate) async fn serve(listener: TcpListener, client: Client, namespace: String, cluster: ClusterArgs) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let behind = Arc::new(Behind {
        client,
        namespace,
        cluster,
        turns: Semaphore::new(EXPLANATIONS_MAX),
    });
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else {
            return;
        };
        let Ok((socket, _)) = listener.accept().await else {
            tokio::time::sleep(LOOK_EVERY).await;
            continue;
        };
        let behind = behind.clone();
        tokio::spawn(async move {
            front::serve(socket, behind).await;
            drop(slot);
        });
    }
}

/// The clusters, as the user gets to them.
struct Behind {
    client: Client,
    /// Of the extension.
    namespace: String,
    cluster: ClusterArgs,
    turns: Semaphore,
}

impl front::Behind for Behind {
    type Stream = forward::Stream;

    /// One that is starting is waited for.
    async fn collector(&self) -> Result<forward::Stream, String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let why = match Collector::find(&self.client, &self.namespace).await {
                Ok(Some(collector)) => {
                    let (pods, pod) = collector.pod();
                    match forward::connect(pods, pod, API_PORT).await {
                        Ok(stream) => return Ok(stream),
                        Err(error) => error.to_string(),
                    }
                }
                Ok(None) => format!("none runs in namespace {}", self.namespace),
                Err(problem) => problem.why().to_owned(),
            };
            if Instant::now() > deadline {
                return Err(why);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn explain(&self, asked: Explain) -> Result<Value, String> {
        let explaining = async {
            let _turn = self.turns.acquire().await;
            explained(&self.cluster, asked).await
        };
        let explained = tokio::time::timeout(EXPLAINED_WITHIN, explaining).await;
        explained.unwrap_or_else(|_| Err(format!("no answer within {} s", EXPLAINED_WITHIN.as_secs())))
    }
}

async fn explained(cluster: &ClusterArgs, asked: Explain) -> Result<Value, String> {
    let why = |problem: Problem| problem.why().to_owned();
    let authority = format!("{}.{}", asked.name, asked.namespace);
    let request = decision::request(Method::GET, &Uri::from_static("/"), &authority);
    let request = request.map_err(|error| error.to_string())?;
    let from = asked.from.and_then(|from| {
        let workload = format!("{}/{}", from.kind, from.name?);
        Some((
            from.namespace.unwrap_or_else(|| asked.namespace.clone()),
            workload,
        ))
    });
    let question = explain::Question {
        cluster: asked.cluster.as_deref(),
        from: from
            .as_ref()
            .map(|(namespace, workload)| (namespace.as_str(), workload.as_str())),
        to: Key::new(asked.namespace, asked.name),
        port: None,
        request: &request,
    };
    let connection = cluster.connect().await.map_err(why)?;
    let explanation = explain::explain(cluster, connection, question)
        .await
        .map_err(why)?;
    serde_json::to_value(explanation).map_err(|error| error.to_string())
}
