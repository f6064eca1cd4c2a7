//! One worker: a thread with its own runtime, listeners, pools and counters.
//!
//! Everything here stays on its thread (`Rc`, cells, no locks); what workers share is immutable or behind [`Live`].
//! The story of a connection: accept, decide, connect, forward; it is told in `outbound` and `inbound`.
//!
//! [`Live`]: crate::live::Live

use std::convert::Infallible;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::TaskTracker;

use crate::body::{Body, OnEnd};
use crate::config::{Config, Http2Server};
use crate::discover::Discovery;
use crate::identity::Identity;
use crate::metrics::Shard;
use crate::transport::{Conn, OriginalDst};
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
    pub(crate) drain: hawser_runtime::Shutdown,
}

pub(crate) struct Worker {
    pub(crate) shared: Shared,
    pub(crate) metrics: Shard,
    pub(crate) tasks: TaskTracker,
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

/// Runs until drained: stops accepting when told to, then lets what is open end, within the grace period.
pub(crate) async fn run(shared: Shared, metrics: Shard, listeners: Listeners) {
    // Before the first certificate, connections wait in the kernel.
    tokio::select! {
        _ = shared.identity.first() => {}
        () = shared.drain.cancelled() => return,
    }
    let drain = shared.drain.clone();
    let grace = shared.config.shutdown_grace;
    let worker = Rc::new(Worker {
        outbound: outbound::State::default(),
        inbound: inbound::State::default(),
        tasks: TaskTracker::new(),
        metrics,
        shared,
    });
    let mut accepting = Vec::new();
    for listener in listeners.outbound {
        accepting.push(tokio::task::spawn_local(accept(
            worker.clone(),
            listener,
            outbound::connection,
        )));
    }
    for listener in listeners.inbound {
        accepting.push(tokio::task::spawn_local(accept(
            worker.clone(),
            listener,
            inbound::connection,
        )));
    }
    let mut sweep = tokio::time::interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            () = drain.cancelled() => break,
            _ = sweep.tick() => {
                worker.outbound.evict(worker.shared.config.outbound.discovery_idle, worker.shared.config.outbound.pool_idle);
                worker.inbound.evict(worker.shared.config.inbound.discovery_idle, worker.shared.config.inbound.pool_idle);
            }
        }
    }
    for task in accepting {
        let _ = task.await;
    }
    worker.tasks.close();
    let _ = tokio::time::timeout(grace, worker.tasks.wait()).await;
}

async fn accept<F, Fut>(worker: Rc<Worker>, listener: std::net::TcpListener, serve: F)
where
    F: Fn(Rc<Worker>, TcpStream, SocketAddr) -> Fut,
    Fut: Future<Output = ()> + 'static,
{
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "A listener cannot be used"),
    };
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = worker.shared.drain.cancelled() => return,
        };
        match accepted {
            Ok((socket, peer)) => {
                let task = worker.tasks.track_future(serve(worker.clone(), socket, peer));
                tokio::task::spawn_local(task);
            }
            Err(error) => {
                // Out of file descriptors, most likely: others must close theirs first.
                tracing::warn!(%error, "Failed to accept");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Http {
    One,
    Two,
}

/// Serves HTTP on a connection until it ends or the process drains.
pub(crate) async fn serve_http<F, Fut, E>(
    conn: Conn,
    version: Http,
    options: &Http2Server,
    drain: &hawser_runtime::Shutdown,
    handle: F,
) -> Result<(), hyper::Error>
where
    F: Fn(Request<Incoming>) -> Fut + Clone + 'static,
    Fut: Future<Output = Response<Body<E>>> + 'static,
    E: OnEnd + Unpin + 'static,
{
    let service = hyper::service::service_fn(move |request| {
        let response = handle(request);
        async move { Ok::<_, Infallible>(response.await) }
    });
    let io = TokioIo::new(conn);
    match version {
        Http::One => {
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
                () = drain.cancelled() => conn.as_mut().graceful_shutdown(),
            }
            conn.await
        }
        Http::Two => {
            let mut builder = http2::Builder::new(LocalExecutor);
            builder
                .timer(TokioTimer::new())
                .auto_date_header(false)
                .initial_stream_window_size(options.stream_window)
                .initial_connection_window_size(options.connection_window)
                .max_header_list_size(u32::try_from(HEAD_MAX).unwrap_or(u32::MAX));
            if options.adaptive {
                builder.adaptive_window(true);
            }
            builder.max_concurrent_streams(options.streams_max.unwrap_or(1_024));
            if let Some((interval, timeout)) = options.keepalive {
                builder.keep_alive_interval(interval).keep_alive_timeout(timeout);
            }
            let mut conn = pin!(builder.serve_connection(io, service));
            tokio::select! {
                ended = conn.as_mut() => return ended,
                () = drain.cancelled() => conn.as_mut().graceful_shutdown(),
            }
            conn.await
        }
    }
}

/// Joins two upgraded connections until both have ended.
pub(crate) fn join_upgraded(
    worker: &Rc<Worker>,
    client: hyper::upgrade::OnUpgrade,
    server: hyper::upgrade::OnUpgrade,
) {
    let joined = async move {
        let (Ok(client), Ok(server)) = tokio::join!(client, server) else {
            return;
        };
        let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
        if let Err(error) = crate::transport::splice(&mut client, &mut server).await {
            tracing::debug!(%error, "Upgraded connection broke");
        }
    };
    tokio::task::spawn_local(worker.tasks.track_future(joined));
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
        // What every connection costs besides its buffers, whatever it turns out to be.
        let (outbound, inbound) = (
            size_of_future(outbound::connection),
            size_of_future(inbound::connection),
        );
        assert!(outbound <= 8 * 1024, "outbound: {outbound} bytes");
        assert!(inbound <= 8 * 1024, "inbound: {inbound} bytes");
    }
}
