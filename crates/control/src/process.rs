//! What every control-plane process does before and after its work: logs, a Kubernetes client, the admin port, drain.

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use hawser_runtime::admin::{self, Pages};
use hawser_runtime::{Guard, Metrics, Readiness, Shutdown, logging, shutdown};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;

/// After this, streams that clients keep open no longer hold up the end of the process.
const DRAIN_MAX: Duration = Duration::from_secs(5);

/// Flags of every process.
#[derive(Clone, Debug, clap::Args)]
pub struct ProcessArgs {
    /// Credentials of the cluster; the pod's own if absent
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    /// Where /live, /ready and /metrics are answered
    #[arg(long)]
    pub metrics_addr: Option<SocketAddr>,
    #[arg(long, default_value = "info")]
    pub log_level: String,
    #[arg(long, default_value = "plain")]
    pub log_format: logging::Format,
}

/// A process that runs.
pub struct Process {
    pub client: Client,
    pub readiness: Readiness,
    pub metrics: Metrics,
    /// What the admin port answers besides.
    pub pages: Pages,
    /// Cancelled when the process should end.
    pub drain: Shutdown,
    /// Dropped when the process serves.
    starting: Guard,
}

impl Process {
    /// Starts logs and the admin port, then connects to the cluster.
    pub async fn start(admin_port: u16, args: &ProcessArgs) -> anyhow::Result<Self> {
        logging::start(&args.log_level, args.log_format)?;
        let drain = shutdown::on_signals().context("listening for signals")?;
        let (readiness, metrics) = (Readiness::default(), Metrics::default());
        let starting = readiness.guard("start");
        let admin_addr = args
            .metrics_addr
            .unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], admin_port)));
        let listener = bind(admin_addr).await?;
        let pages = Pages::default();
        tokio::spawn(admin::serve_with(
            listener,
            readiness.clone(),
            metrics.clone(),
            pages.clone(),
            drain.clone(),
        ));
        let client = client(args.kubeconfig.as_deref()).await?;
        Ok(Self {
            client,
            readiness,
            metrics,
            pages,
            drain,
            starting,
        })
    }

    /// Serves gRPC until drained.
    pub async fn serve_grpc(self, addr: SocketAddr, routes: tonic::service::Routes) -> anyhow::Result<()> {
        let listener = bind(addr).await?;
        tracing::info!(%addr, "serving");
        drop(self.starting);
        serve_grpc(listener, routes, self.drain).await
    }

    /// Runs something else that serves, until it ends or the process is drained.
    pub async fn serve(self, work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
        drop(self.starting);
        tokio::select! {
            outcome = work => outcome,
            () = self.drain.cancelled() => Ok(()),
        }
    }
}

/// Serves gRPC on a listener until drained.
pub async fn serve_grpc(
    listener: TcpListener,
    routes: tonic::service::Routes,
    drain: Shutdown,
) -> anyhow::Result<()> {
    let server = tonic::transport::Server::builder()
        // A proxy that vanished without a word must not hold its streams for ever.
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .add_routes(routes)
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), drain.clone().cancelled_owned());
    let overdue = async {
        drain.cancelled().await;
        tokio::time::sleep(DRAIN_MAX).await;
    };
    tokio::select! {
        outcome = server => outcome.context("serving gRPC"),
        () = overdue => Ok(()),
    }
}

pub async fn bind(addr: SocketAddr) -> anyhow::Result<TcpListener> {
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
