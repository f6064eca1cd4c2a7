//! `viz dashboard`: a port of this machine's loopback that leads to the collector's page.
//!
//! Each connection goes through the API server's port-forward to whichever collector runs then, so a collector that is
//! replaced costs a reload and nothing else. Bytes are passed on as they are.

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use hawser_crd::keys;
use hawser_viz::API_PORT;
use kube::Client;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::source::Collector;
use crate::forward;
use crate::kube::ClusterArgs;
use crate::output::write_out;
use crate::problem::Problem;

/// Where Linkerd's dashboard is.
pub(crate) const PORT: u16 = 50750;
/// A browser opens six; a few may look at once.
const CONNECTIONS_MAX: usize = 64;
/// A collector that is starting is waited for.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(300);

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
        () = serve(listener, client, args.viz_namespace.clone()) => {}
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

/// Leads every connection to a collector, for ever.
pub(crate) async fn serve(listener: TcpListener, client: Client, namespace: String) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else {
            return;
        };
        let Ok((socket, _)) = listener.accept().await else {
            tokio::time::sleep(LOOK_EVERY).await;
            continue;
        };
        let (client, namespace) = (client.clone(), namespace.clone());
        tokio::spawn(async move {
            // A browser that is told nothing says so itself, and tries again.
            let _ = lead(socket, &client, &namespace).await;
            drop(slot);
        });
    }
}

async fn lead(mut socket: TcpStream, client: &Client, namespace: &str) -> std::io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let mut stream = loop {
        if let Ok(Some(collector)) = Collector::find(client, namespace).await {
            let (pods, pod) = collector.pod();
            if let Ok(stream) = forward::connect(pods, pod, API_PORT).await {
                break stream;
            }
        }
        if Instant::now() > deadline {
            return Ok(());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    };
    tokio::io::copy_bidirectional(&mut socket, &mut stream)
        .await
        .map(|_| ())
}
