//! What all four programs share: environment, standard output, serving HTTP, and ending on SIGTERM.

use std::convert::Infallible;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;

use crate::metrics::Metrics;

/// Requests in flight get this long after SIGTERM. A container has to be gone within a second.
const DRAIN: Duration = Duration::from_millis(800);
/// Beyond this many connections new ones wait in the listener's backlog.
const CONNECTIONS_MAX: usize = 1024;

/// Where settings come from: the process environment, or a test's closure.
pub(crate) struct Env<'a>(pub(crate) &'a dyn Fn(&str) -> Option<String>);

impl Env<'_> {
    pub(crate) fn optional(&self, name: &str) -> Option<String> {
        (self.0)(name).filter(|value| !value.is_empty())
    }

    pub(crate) fn required(&self, name: &str) -> anyhow::Result<String> {
        self.optional(name)
            .with_context(|| format!("the environment variable {name} must be set"))
    }

    pub(crate) fn port(&self, name: &str) -> anyhow::Result<u16> {
        let value = self.required(name)?;
        value
            .parse()
            .with_context(|| format!("{name}={value} is not a port"))
    }

    /// Optional settings of the original that fall back when they do not parse.
    pub(crate) fn number<N: std::str::FromStr>(&self, name: &str, default: N) -> N {
        self.optional(name)
            .and_then(|value| value.parse().ok())
            .unwrap_or(default)
    }
}

/// Runs a program until it ends or SIGTERM or SIGINT arrives.
pub(crate) fn run<F>(program: impl FnOnce(CancellationToken) -> F) -> ExitCode
where
    F: Future<Output = anyhow::Result<()>>,
{
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error.into()),
    };
    let shutdown = CancellationToken::new();
    let ended = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let program = program(shutdown.clone());
        tokio::pin!(program);
        tokio::select! {
            ended = &mut program => return ended,
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        shutdown.cancel();
        // A program that does not end by itself loses its last requests, not its deadline.
        tokio::time::timeout(DRAIN + DRAIN / 8, program)
            .await
            .unwrap_or(Ok(()))
    });
    runtime.shutdown_background();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn fail(error: &anyhow::Error) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "error: {error:#}");
    ExitCode::FAILURE
}

/// One line to standard output. Nobody reading it is no reason to stop.
pub(crate) fn say(line: std::fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

pub(crate) async fn listen(port: u16) -> anyhow::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
        .await
        .with_context(|| format!("listening on port {port}"))
}

/// Serves `PROM_PORT` if it is set, otherwise waits for the shutdown.
pub(crate) async fn serve_metrics(
    port: Option<u16>,
    metrics: Arc<Metrics>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let Some(port) = port else {
        shutdown.cancelled().await;
        return Ok(());
    };
    let listener = listen(port).await?;
    serve(listener, shutdown, move |request| {
        let response = metrics.handle(&request);
        async { response }
    })
    .await;
    Ok(())
}

/// Serves HTTP/1.1 and HTTP/2 (so gRPC too) without TLS until the shutdown, then drains.
pub(crate) async fn serve<H, F>(listener: TcpListener, shutdown: CancellationToken, handle: H)
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_secs(30));
    builder.http2().timer(TokioTimer::new());
    let graceful = GracefulShutdown::new();
    let free = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    // Owns the connections: what has not drained ends with this function.
    let mut connections = JoinSet::new();
    loop {
        let accept = async {
            let permit = Arc::clone(&free).acquire_owned().await;
            (listener.accept().await, permit)
        };
        let (accepted, permit) = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = accept => accepted,
        };
        let Ok((stream, _)) = accepted else {
            // Out of file descriptors, most likely; connections that end will free some.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        let handle = handle.clone();
        let service = service_fn(move |request| {
            let response = handle(request);
            async { Ok::<_, Infallible>(response.await) }
        });
        let connection = builder
            .serve_connection(TokioIo::new(stream), service)
            .into_owned();
        let connection = graceful.watch(connection);
        connections.spawn(async move {
            let _ = connection.await;
            drop(permit);
        });
        while connections.try_join_next().is_some() {}
    }
    let _ = tokio::time::timeout(DRAIN, graceful.shutdown()).await;
}

pub(crate) fn respond(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<Body> {
    let mut response = Response::new(Body::new(Full::new(body.into())));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static(content_type),
    );
    response
}

/// One line to standard error.
pub(crate) fn complain(line: std::fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
