//! `Tap/Observe` on the tap port: over mutual TLS, for one identity.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use hawser_core::authz::Client;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use linkerd2_proxy_api::tap::tap_server::{Tap, TapServer};
use linkerd2_proxy_api::tap::{ObserveRequest, TapEvent};
use tokio::net::{TcpListener, TcpStream};
use tonic::{Request, Response, Status};

use crate::config::TapConfig;
use crate::identity::Identity;
use crate::inbound::{Detected, detect_tls};
use crate::transport::Conn;
use crate::worker::LocalExecutor;

use super::{Refused, Taps, Watch};

const DETECT_TIMEOUT: Duration = Duration::from_secs(1);
const CONNECTIONS_MAX: usize = 16;
const STREAMS_MAX: u32 = 16;
/// A pattern with all its conditions is far smaller.
const REQUEST_BYTES_MAX: usize = 64 * 1024;
/// A watcher that has vanished without a word is let go.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(10));

/// Serves one listener for ever. `server_name` is what clients call this proxy in TLS.
pub(crate) async fn serve(
    listener: std::net::TcpListener,
    config: Arc<TapConfig>,
    identity: Identity,
    server_name: Arc<str>,
    taps: Taps,
) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "The tap port cannot be used"),
    };
    let slots = Arc::new(tokio::sync::Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else {
            return;
        };
        let Ok((socket, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let (config, identity, server_name) = (config.clone(), identity.clone(), server_name.clone());
        let taps = taps.clone();
        tokio::task::spawn_local(async move {
            connection(socket, &config, &identity, &server_name, taps).await;
            drop(slot);
        });
    }
}

async fn connection(
    socket: TcpStream,
    config: &TapConfig,
    identity: &Identity,
    server_name: &str,
    taps: Taps,
) {
    let found = detect_tls(identity, server_name, Conn::tcp(socket), DETECT_TIMEOUT).await;
    let (conn, client) = match found {
        Ok(Detected::Terminated(conn, client)) => (conn, client),
        Ok(Detected::Plain(conn)) => (conn, Client::Plain),
        Ok(Detected::Foreign(..)) | Err(_) => return,
    };
    let may_watch = matches!(&client, Client::Authenticated(id) if *id == config.client);
    let server = TapServer::new(Server {
        taps: may_watch.then_some(taps),
    });
    let service = TowerToHyperService::new(server.max_decoding_message_size(REQUEST_BYTES_MAX));
    let mut builder = http2::Builder::new(LocalExecutor);
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEPALIVE.0)
        .keep_alive_timeout(KEEPALIVE.1)
        .max_concurrent_streams(STREAMS_MAX);
    // What ends a connection is the client's business.
    let _ = builder.serve_connection(TokioIo::new(conn), service).await;
}

struct Server {
    /// For those who may watch only.
    taps: Option<Taps>,
}

#[tonic::async_trait]
impl Tap for Server {
    type ObserveStream = Events;

    async fn observe(&self, request: Request<ObserveRequest>) -> Result<Response<Events>, Status> {
        let Some(taps) = &self.taps else {
            return Err(Status::unauthenticated("only the mesh's tap may watch requests"));
        };
        let watch = taps.open(request.get_ref()).map_err(|refused| match refused {
            Refused::NoLimit | Refused::TooComplex(_) => Status::invalid_argument(refused.to_string()),
            Refused::TooMany => Status::resource_exhausted(refused.to_string()),
        })?;
        Ok(Response::new(Events(watch)))
    }
}

/// The events of one watch, until whoever watches has gone or as many requests as they asked for have ended.
struct Events(Watch);

impl Stream for Events {
    type Item = Result<TapEvent, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.events.poll_recv(cx).map(|event| event.map(Ok))
    }
}
