//! TLS connections of a server: how many at once, and how long a handshake may take.
//!
//! Shared by the API server and the node's own server. Knows nothing of certificates, nor of what is served.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Begins a task for each connection until dropped; dropping it closes every connection.
///
/// More connections than `count_max` at once are not accepted; the backlog holds them. Where `begin` has no task for
/// one, it is closed.
pub(crate) async fn accept<F>(
    listener: &TcpListener,
    count_max: usize,
    begin: impl Fn(TcpStream) -> Option<F>,
) -> Infallible
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        if connections.len() >= count_max {
            connections.join_next().await;
            continue;
        }
        match listener.accept().await {
            Ok((stream, _)) => {
                if let Some(connection) = begin(stream) {
                    connections.spawn(connection);
                }
            }
            Err(error) => {
                // Out of file descriptors, most likely: others must close first.
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// A connection that speaks TLS by now, or nothing if it doesn't in time.
pub(crate) async fn handshake(
    stream: TcpStream,
    tls: Arc<rustls::ServerConfig>,
) -> Option<TlsStream<TcpStream>> {
    let _ = stream.set_nodelay(true);
    let handshake = TlsAcceptor::from(tls).accept(stream);
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
        Ok(Ok(stream)) => Some(stream),
        Ok(Err(error)) => {
            tracing::debug!(%error, "TLS handshake failed");
            None
        }
        Err(_) => None,
    }
}
