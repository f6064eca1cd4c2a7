//! One worker: a thread with its own runtime, listeners, pools and counters.
//!
//! Everything here stays on its thread (`Rc`, cells, no locks); what workers share is immutable or behind [`Live`].
//! The story of a connection: accept, decide, connect, forward; it is told in `outbound` and `inbound`.
//!
//! [`Live`]: crate::live::Live

use std::cell::Cell;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::AcqRel};
use std::time::Duration;

use futures::future::LocalBoxFuture;
use http::{HeaderValue, Method, StatusCode, header};
use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::TaskTracker;

use crate::answer::{RequestKind, Why};
use crate::body::{Body, OnEnd};
use crate::config::{Config, HttpServer};
use crate::discover::Discovery;
use crate::head::{Heads, Watched};
use crate::identity::Identity;
use crate::message::{Request, Response};
use crate::metrics::Shard;
use crate::tap::Taps;
use crate::transport::{Conn, OriginalDst};
use crate::wire::{self, Incoming};
use crate::{inbound, outbound};

/// A request head may have this many bytes.
pub(crate) const HEAD_MAX: usize = 64 * 1024;

/// What all workers share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) config: Arc<Config>,
    pub(crate) discovery: Discovery,
    pub(crate) identity: Identity,
    pub(crate) original_dst: Arc<dyn OriginalDst>,
    /// Off except where everything is on loopback: a proxy must not relay to its own pod's private ports.
    pub(crate) loopback_allowed: bool,
    pub(crate) source: Option<IpAddr>,
    pub(crate) taps: Taps,
    pub(crate) drain: Drain,
}

/// The orderly end. First, whoever is connected is told to go, while those who don't know yet are still let in. Then
/// nobody is let in and the rest is told to go. The application may need others to finish what it has begun, so the
/// way out stays open until nobody is inside any more, on any worker.
#[derive(Clone)]
pub(crate) struct Drain {
    pub(crate) inbound: hawser_runtime::Shutdown,
    pub(crate) closed: hawser_runtime::Shutdown,
    pub(crate) outbound: hawser_runtime::Shutdown,
    /// Workers with something inbound.
    workers: Arc<AtomicUsize>,
}

impl Drain {
    pub(crate) fn new(begin: hawser_runtime::Shutdown, workers: usize) -> Self {
        Self {
            inbound: begin,
            closed: hawser_runtime::Shutdown::new(),
            outbound: hawser_runtime::Shutdown::new(),
            workers: Arc::new(AtomicUsize::new(workers)),
        }
    }

    /// What tells a connection that begins now to go.
    pub(crate) fn inbound_from_now(&self) -> &hawser_runtime::Shutdown {
        if self.inbound.is_cancelled() {
            &self.closed
        } else {
            &self.inbound
        }
    }

    /// The application has gone before us: nobody is to be let in any more. Says whether that is so.
    pub(crate) fn application_gone(&self) -> bool {
        let ending = self.inbound.is_cancelled();
        if ending {
            self.closed.cancel();
        }
        ending
    }

    fn inbound_done(&self) {
        if self.workers.fetch_sub(1, AcqRel) == 1 {
            self.outbound.cancel();
        }
    }
}

/// Requests that wait for an answer, as many as may.
#[derive(Default)]
pub(crate) struct InFlight(Cell<usize>);

impl InFlight {
    /// A place until dropped, if there is one.
    pub(crate) fn enter(&self, max: usize) -> Result<Entered<'_>, Why> {
        if self.0.get() >= max {
            return Err(Why::Overloaded);
        }
        self.0.set(self.0.get() + 1);
        Ok(Entered(self))
    }
}

pub(crate) struct Entered<'a>(&'a InFlight);

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.0.0.set(self.0.0.get() - 1);
    }
}

pub(crate) struct Worker {
    pub(crate) shared: Shared,
    pub(crate) metrics: Shard,
    pub(crate) inbound_tasks: TaskTracker,
    pub(crate) outbound_tasks: TaskTracker,
    pub(crate) outbound: outbound::State,
    pub(crate) inbound: inbound::State,
}

/// Listeners of one worker, opened before anything else starts.
pub(crate) struct Listeners {
    pub(crate) outbound: Vec<std::net::TcpListener>,
    pub(crate) inbound: Vec<std::net::TcpListener>,
}

/// Spawns onto the thread that runs it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LocalExecutor;

impl<F> hyper::rt::Executor<F> for LocalExecutor
where
    F: Future + 'static,
    F::Output: 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

/// Runs until drained: when told to, stops accepting once nobody is sent here any more, then lets what is open end, all
/// within the grace period.
pub(crate) async fn run(shared: Shared, metrics: Shard, listeners: Listeners) {
    // Before the first certificate, connections wait in the kernel.
    tokio::select! {
        _ = shared.identity.first() => {}
        () = shared.drain.inbound.cancelled() => return,
    }
    let drain = shared.drain.clone();
    let (withdrawal, grace) = (shared.config.withdrawal, shared.config.shutdown_grace);
    let worker = Rc::new(Worker {
        outbound: outbound::State::default(),
        inbound: inbound::State::default(),
        inbound_tasks: TaskTracker::new(),
        outbound_tasks: TaskTracker::new(),
        metrics,
        shared,
    });
    let (mut incoming, mut outgoing) = (Vec::new(), Vec::new());
    for listener in listeners.outbound {
        let tasks = worker.outbound_tasks.clone();
        let accepting = accept(
            worker.clone(),
            listener,
            drain.outbound.clone(),
            tasks,
            outbound::connection,
        );
        outgoing.push(tokio::task::spawn_local(accepting));
    }
    for listener in listeners.inbound {
        let tasks = worker.inbound_tasks.clone();
        let accepting = accept(
            worker.clone(),
            listener,
            drain.closed.clone(),
            tasks,
            inbound::connection,
        );
        incoming.push(tokio::task::spawn_local(accepting));
    }
    let mut sweep = tokio::time::interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            () = drain.inbound.cancelled() => break,
            _ = sweep.tick() => {
                worker.outbound.evict(worker.shared.config.outbound.discovery_idle, worker.shared.config.outbound.pool_idle);
                worker.inbound.evict(worker.shared.config.inbound.discovery_idle, worker.shared.config.inbound.pool_idle);
            }
        }
    }
    let ending = async {
        // Cut short by another worker, or by the application's end.
        let _ = tokio::time::timeout(withdrawal, drain.closed.cancelled()).await;
        drain.closed.cancel();
        ended(incoming, &worker.inbound_tasks).await;
        drain.inbound_done();
        drain.outbound.cancelled().await;
        ended(outgoing, &worker.outbound_tasks).await;
    };
    if tokio::time::timeout(grace, ending).await.is_err() {
        tracing::warn!("Grace period is over: open connections are cut");
    }
}

/// When nobody accepts any more and everything accepted has ended.
async fn ended(accepting: Vec<tokio::task::JoinHandle<()>>, tasks: &TaskTracker) {
    for task in accepting {
        let _ = task.await;
    }
    tasks.close();
    tasks.wait().await;
}

async fn accept<F, Fut>(
    worker: Rc<Worker>,
    listener: std::net::TcpListener,
    drain: hawser_runtime::Shutdown,
    tasks: TaskTracker,
    serve: F,
) where
    F: Fn(Rc<Worker>, TcpStream, SocketAddr) -> Fut,
    Fut: Future<Output = ()> + 'static,
{
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "A listener cannot be used"),
    };
    let spawn = |socket, peer| {
        tokio::task::spawn_local(tasks.track_future(serve(worker.clone(), socket, peer)));
    };
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = drain.cancelled() => break,
        };
        match accepted {
            Ok((socket, peer)) => spawn(socket, peer),
            Err(error) => {
                // Out of file descriptors, most likely: others must close theirs first.
                tracing::warn!(%error, "Failed to accept");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    // The kernel has accepted these already; closing the listener would reset them.
    if let Ok(listener) = listener.into_std() {
        while let Ok((socket, peer)) = listener.accept() {
            if socket.set_nonblocking(true).is_ok()
                && let Ok(socket) = TcpStream::from_std(socket)
            {
                spawn(socket, peer);
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Http {
    One,
    Two,
}

/// While draining, an idle HTTP/1 connection stays open this long: a request may be on its way already.
pub(crate) const DRAIN_IDLE: Duration = Duration::from_secs(1);

/// Serves HTTP on a connection until it ends or the process drains.
///
/// An error of `handle` resets the request's stream; handlers give none to HTTP/1 requests.
pub(crate) async fn serve_http<F, Fut, E>(
    conn: Conn,
    version: Http,
    options: &HttpServer,
    drain: &hawser_runtime::Shutdown,
    handle: F,
) -> Result<(), hyper::Error>
where
    F: Fn(Request<Incoming>) -> Fut + Clone + 'static,
    Fut: Future<Output = Result<Response<Body<E>>, h2::Error>> + 'static,
    E: OnEnd + Unpin + 'static,
{
    match version {
        Http::One => {
            let heads = Arc::new(Heads::default());
            let io = TokioIo::new(Watched::new(conn, heads.clone(), options.head_timeout));
            let (watched, draining) = (heads.clone(), drain.clone());
            let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let (serving, draining) = (watched.begin(), draining.clone());
                let connect = request.method() == Method::CONNECT;
                let request = Request::from(request.map(Incoming::Library));
                let response = match watched.fault() {
                    None => Ok(handle(request)),
                    Some(fault) => {
                        let why = Why::Malformed(fault);
                        Err(why.response(request.version, &RequestKind::default(), None))
                    }
                };
                async move {
                    let mut response = match response {
                        Ok(response) => response.await?,
                        Err(refused) => refused,
                    };
                    let status = response.status;
                    if status == StatusCode::SWITCHING_PROTOCOLS || (connect && status.is_success()) {
                        serving.upgraded();
                    } else if draining.is_cancelled() {
                        let close = HeaderValue::from_static("close");
                        response.head.insert(header::CONNECTION, &close);
                    }
                    let response = response.map(|body| body.serving(serving));
                    Ok::<_, h2::Error>(http::Response::from(response))
                }
            });
            let conn = http1::Builder::new()
                .half_close(true)
                .preserve_header_case(true)
                .auto_date_header(false)
                .header_read_timeout(None)
                .max_buf_size(HEAD_MAX)
                .serve_connection(io, service)
                .with_upgrades();
            let mut conn = pin!(conn);
            tokio::select! {
                ended = conn.as_mut() => return ended,
                () = drain.cancelled() => {}
            }
            tokio::select! {
                ended = conn.as_mut() => return ended,
                () = tokio::time::sleep(DRAIN_IDLE) => {}
            }
            if heads.fresh() {
                return Ok(());
            }
            conn.as_mut().graceful_shutdown();
            conn.await
        }
        Http::Two if !options.adaptive => {
            wire::server::serve(conn, wire::Options::of_server(options), drain, handle).await;
            Ok(())
        }
        // Windows that follow the round-trip time are the library's.
        Http::Two => {
            let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let response = handle(request.map(Incoming::Library).into());
                async move { Ok::<_, h2::Error>(http::Response::from(response.await?)) }
            });
            let mut builder = http2::Builder::new(LocalExecutor);
            builder
                .timer(TokioTimer::new())
                .auto_date_header(false)
                .initial_stream_window_size(options.stream_window)
                .initial_connection_window_size(options.connection_window)
                .max_header_list_size(options.header_list_max.unwrap_or(HEAD_MAX as u32))
                .max_frame_size(options.frame_max);
            builder.adaptive_window(true);
            builder.max_concurrent_streams(options.streams_max.unwrap_or(1_024));
            if let Some(max) = options.pending_resets_max {
                builder.max_pending_accept_reset_streams(max);
            }
            if let Some(max) = options.send_buffer_max {
                builder.max_send_buf_size(max);
            }
            if let Some((interval, timeout)) = options.keepalive {
                builder.keep_alive_interval(interval).keep_alive_timeout(timeout);
            }
            let mut conn = pin!(builder.serve_connection(TokioIo::new(conn), service));
            tokio::select! {
                // A connection accepted while draining must get through its handshake first.
                biased;
                ended = conn.as_mut() => return ended,
                () = drain.cancelled() => conn.as_mut().graceful_shutdown(),
            }
            conn.await
        }
    }
}

/// Joins two upgraded connections until both have ended, or the client may no longer be here.
pub(crate) fn join_upgraded(
    tasks: &TaskTracker,
    client: hyper::upgrade::OnUpgrade,
    server: hyper::upgrade::OnUpgrade,
    revoked: Option<LocalBoxFuture<'static, ()>>,
) {
    let joined = async move {
        let (Ok(client), Ok(server)) = tokio::join!(client, server) else {
            return;
        };
        let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
        let revoked = revoked.unwrap_or_else(|| Box::pin(std::future::pending()));
        tokio::select! {
            ended = crate::transport::splice(&mut client, &mut server) => if let Err(error) = ended {
                tracing::debug!(%error, "Upgraded connection broke");
            },
            () = revoked => {}
        }
    };
    tokio::task::spawn_local(tasks.track_future(joined));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of_future<F, Fut>(_: F) -> usize
    where
        F: Fn(Rc<Worker>, TcpStream, SocketAddr) -> Fut,
    {
        size_of::<Fut>()
    }

    #[test]
    fn a_connections_future_is_bounded() {
        // What every connection costs besides what it turns out to be, and its buffers.
        let (outbound, inbound) = (
            size_of_future(outbound::connection),
            size_of_future(inbound::connection),
        );
        assert!(outbound <= 2 * 1024, "outbound: {outbound} bytes");
        assert!(inbound <= 3 * 1024, "inbound: {inbound} bytes");
    }
}
