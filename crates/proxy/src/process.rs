//! The process: configuration, threads, and an orderly end (`spec/proxy.md` 1.2).
//!
//! Listeners are opened before anything runs, so a conflict is found at once. One control thread talks to the control
//! plane and serves the admin port; each worker thread serves connections.

use std::ffi::OsString;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use hawser_runtime::Shutdown;
use tokio::runtime::{Builder, LocalOptions};

use crate::admin::{self, Admin};
use crate::config::{Config, ControlService, Env, SocketOptions};
use crate::control_client::channel;
use crate::discover::Discovery;
use crate::identity::{self, KeyAndRequest};
use crate::metrics::Metrics;
use crate::span::{self, Spans};
use crate::tap::{self, Taps};
use crate::transport::{FromKernel, OriginalDst, listen};
use crate::worker::{self, Drain, Listeners, Shared};

/// `EX_USAGE`: the configuration is wrong.
const EXIT_CONFIG: u8 = 64;
const ADMIN_BACKLOG: i32 = 128;
const FORGET_INTERVAL: Duration = Duration::from_secs(60);
const WAITING_LOG_INTERVAL: Duration = Duration::from_secs(15);

/// What differs where there is no redirect: everything on loopback.
#[derive(Clone)]
pub struct Seams {
    pub original_dst: Arc<dyn OriginalDst>,
    pub loopback_allowed: bool,
    /// Where our connections come from, if not from where the routes say.
    pub source: Option<IpAddr>,
}

impl Default for Seams {
    fn default() -> Self {
        Self {
            original_dst: Arc::new(FromKernel),
            loopback_allowed: false,
            source: None,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the {what} port {addr} cannot be opened: {source}")]
    Listen {
        what: &'static str,
        addr: SocketAddr,
        source: io::Error,
    },
    #[error("the proxy cannot prepare its identity: {0}")]
    Identity(String),
    #[error("a thread cannot be started: {0}")]
    Thread(#[from] io::Error),
}

/// A running proxy.
pub struct Proxy {
    pub outbound: Vec<SocketAddr>,
    pub inbound: Vec<SocketAddr>,
    pub admin: Vec<SocketAddr>,
    /// Empty if nobody may watch requests.
    pub tap: Vec<SocketAddr>,
    shutdown: Shutdown,
    stopped: Shutdown,
    workers: Vec<JoinHandle<()>>,
    control: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Starts all threads and returns once every port is open.
    pub fn start(config: Config, env: Env, seams: Seams) -> Result<Self, StartError> {
        let config = Arc::new(config);
        let (shutdown, stopped) = (Shutdown::new(), Shutdown::new());
        let metrics = Metrics::default();
        let identity = identity::Identity::new(config.identity.anchors.clone());
        let key = KeyAndRequest::load(&config.identity)
            .map_err(|error| StartError::Identity(identity::chain(&error)))?;

        // The first worker decides the port if none was given, the others share it.
        let admin_listeners = open(
            &config.admin_addrs,
            "admin",
            SocketOptions::default(),
            ADMIN_BACKLOG,
        )?;
        let tap_listeners = match &config.tap {
            Some(tap) => open(&tap.addrs, "tap", SocketOptions::default(), ADMIN_BACKLOG)?,
            None => Vec::new(),
        };
        let (mut outbound, mut inbound) = (config.outbound.addrs.clone(), config.inbound.addrs.clone());
        let mut opened = Vec::new();
        for _ in 0..config.workers {
            let listeners = Listeners {
                outbound: open(
                    &outbound,
                    "outbound",
                    config.outbound.accept,
                    config.outbound.backlog,
                )?,
                inbound: open(&inbound, "inbound", config.inbound.accept, config.inbound.backlog)?,
            };
            (outbound, inbound) = (addrs(&listeners.outbound), addrs(&listeners.inbound));
            opened.push(listeners);
        }
        let (admin_addrs, tap_addrs) = (addrs(&admin_listeners), addrs(&tap_listeners));
        let taps = Taps::default();
        // Before there is a worker who could tell of a request.
        let tracing = config.trace.clone().map(|trace| {
            let (spans, waiting) = Spans::new();
            let spans = Arc::new(spans);
            taps.trace(spans.clone());
            (trace, spans, waiting)
        });

        let (discovery, keys) = Discovery::new(config.clone());
        let shared = Shared {
            config: config.clone(),
            discovery: discovery.clone(),
            identity: identity.clone(),
            original_dst: seams.original_dst,
            loopback_allowed: seams.loopback_allowed,
            source: seams.source,
            taps: taps.clone(),
            drain: Drain::new(shutdown.clone(), config.workers),
        };
        let shard = metrics.shard();
        let admin = Admin {
            config: config.clone(),
            env: Arc::new(env),
            identity: identity.clone(),
            discovery: discovery.clone(),
            metrics: metrics.clone(),
            shard: shard.clone(),
            shutdown: shutdown.clone(),
            started_at: SystemTime::now(),
        };
        let worker_metrics = metrics.clone();
        let stop = stopped.clone();
        let control = std::thread::Builder::new()
            .name("control".into())
            .spawn(move || {
                run_local(async move {
                    let to = |service: &ControlService| {
                        channel(service.clone(), identity.clone(), config.socket_mark)
                    };
                    let certify = identity::run(
                        config.clone(),
                        key,
                        to(&config.identity.service),
                        identity.clone(),
                        identity::Renewals::new(&shard),
                    );
                    if let Some(tap) = config.tap.clone() {
                        let server_name: Arc<str> = config.identity.server_name.as_str().into();
                        for listener in tap_listeners {
                            let (tap, identity) = (tap.clone(), identity.clone());
                            let serving =
                                tap::serve(listener, tap, identity, server_name.clone(), taps.clone());
                            tokio::task::spawn_local(serving);
                        }
                    }
                    if let Some((trace, spans, waiting)) = tracing {
                        let collector = to(&trace.service);
                        tokio::spawn(span::export(spans, waiting, collector, trace, shard.clone()));
                    }
                    tokio::spawn(discovery.run(to(&config.destination), to(&config.policy), keys));
                    tokio::spawn(certify);
                    tokio::spawn(waiting(identity));
                    tokio::spawn(forgetting(metrics, config.metrics_retain_idle));
                    for listener in admin_listeners {
                        tokio::task::spawn_local(admin::serve(admin.clone(), listener));
                    }
                    stop.cancelled().await;
                });
            })?;
        let mut workers = Vec::new();
        for (index, listeners) in opened.into_iter().enumerate() {
            let (shared, shard) = (shared.clone(), worker_metrics.shard());
            let worker = std::thread::Builder::new().name(format!("worker-{index}"));
            workers.push(worker.spawn(move || run_local(worker::run(shared, shard, listeners)))?);
        }
        Ok(Self {
            outbound,
            inbound,
            admin: admin_addrs,
            tap: tap_addrs,
            shutdown,
            stopped,
            workers,
            control: Some(control),
        })
    }

    /// Cancelling it begins the orderly end.
    pub fn shutdown(&self) -> &Shutdown {
        &self.shutdown
    }

    /// Waits until every worker has drained; the admin port answers to the end.
    pub fn wait(mut self) {
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
        self.stopped.cancel();
        if let Some(control) = self.control.take() {
            let _ = control.join();
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shutdown.cancel();
        self.stopped.cancel();
    }
}

async fn waiting(identity: identity::Identity) {
    while tokio::time::timeout(WAITING_LOG_INTERVAL, identity.first())
        .await
        .is_err()
    {
        tracing::warn!("Waiting for identity to be initialized...");
    }
}

/// A runtime of this thread's own.
fn run_local(work: impl Future<Output = ()>) {
    match Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
    {
        Ok(runtime) => {
            runtime.block_on(work);
            // A name lookup that hangs must not hold up the end.
            runtime.shutdown_background();
        }
        Err(error) => tracing::error!(%error, "A thread has no runtime"),
    }
}

fn open(
    addrs: &[SocketAddr],
    what: &'static str,
    options: SocketOptions,
    backlog: i32,
) -> Result<Vec<TcpListener>, StartError> {
    let one = |addr: &SocketAddr| {
        listen(*addr, options, backlog).map_err(|source| StartError::Listen {
            what,
            addr: *addr,
            source,
        })
    };
    addrs.iter().map(one).collect()
}

async fn forgetting(metrics: Metrics, idle: Duration) {
    let mut every = tokio::time::interval(FORGET_INTERVAL);
    loop {
        every.tick().await;
        metrics.evict(Instant::now(), idle);
    }
}

fn addrs(listeners: &[TcpListener]) -> Vec<SocketAddr> {
    listeners
        .iter()
        .filter_map(|listener| listener.local_addr().ok())
        .collect()
}

/// The process: exit code 64 for a wrong configuration, 1 if it can't start.
pub fn main(_args: Vec<OsString>) -> ExitCode {
    let env = Env::of_process();
    let config = match Config::from_env(&env) {
        Ok(config) => config,
        Err(faults) => {
            for fault in faults {
                complain(&format!("Invalid configuration: {fault}"));
            }
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    if let Err(error) = hawser_runtime::logging::start(&config.log_filter, config.log_format) {
        complain(&error.to_string());
        return ExitCode::from(EXIT_CONFIG);
    }
    if config.inbound.default_policy == crate::config::DefaultPolicy::AllUnauthenticated
        && env.get("LINKERD2_PROXY_INBOUND_DEFAULT_POLICY").is_none()
    {
        tracing::warn!("INBOUND_DEFAULT_POLICY is not set; using all-unauthenticated");
    }
    let grace = config.shutdown_grace;
    // Before anything runs: a signal that comes while the proxy starts must not be lost.
    let (started, starting) = tokio::sync::oneshot::channel();
    let (ready, watching) = std::sync::mpsc::channel();
    let watcher = std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || watch_signals(&ready, starting, grace));
    if let Err(error) = watcher {
        complain(&error.to_string());
        return ExitCode::FAILURE;
    }
    if watching.recv().is_err() {
        complain("signals cannot be received");
        return ExitCode::FAILURE;
    }
    let proxy = match Proxy::start(config, env, Seams::default()) {
        Ok(proxy) => proxy,
        Err(error) => {
            complain(&error.to_string());
            return ExitCode::FAILURE;
        }
    };
    tracing::info!(inbound = ?proxy.inbound, outbound = ?proxy.outbound, admin = ?proxy.admin, "Proxy started");
    // The watcher waits for it.
    let _ = started.send(proxy.shutdown().clone());
    proxy.wait();
    tracing::info!("Proxy stopped");
    ExitCode::SUCCESS
}

/// Logs may be off; a fault at start is told all the same.
#[expect(clippy::print_stderr, reason = "nothing else is listening yet")]
fn complain(text: &str) {
    eprintln!("{text}");
}

fn watch_signals(
    ready: &std::sync::mpsc::Sender<()>,
    starting: tokio::sync::oneshot::Receiver<Shutdown>,
    grace: Duration,
) {
    run_local(async {
        let signalled = match hawser_runtime::shutdown::on_signals() {
            Ok(signalled) => signalled,
            Err(error) => return tracing::error!(%error, "Signals cannot be received"),
        };
        let _ = ready.send(());
        // Dropped if the proxy can't start.
        let Ok(shutdown) = starting.await else { return };
        tokio::select! {
            () = signalled.cancelled() => shutdown.cancel(),
            () = shutdown.cancelled() => {}
        }
        // Workers end by themselves; this is for what they can't end.
        tokio::time::sleep(grace + Duration::from_secs(5)).await;
        tracing::warn!("Grace period is over");
        std::process::exit(0);
    });
}
