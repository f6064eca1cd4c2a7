//! How the proxy reaches its control plane: HTTP/2 over our own mutual TLS, plain text to loopback.
//!
//! One lazily connected channel per service; it reconnects by itself and resolves the name each time.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rand::seq::SliceRandom as _;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Endpoint, Uri};

use crate::config::{ControlService, SocketOptions};
use crate::identity::Identity;
use crate::transport::{Conn, connect};

pub(crate) type Channel = tonic::transport::Channel;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const KEEPALIVE: SocketOptions = SocketOptions {
    keepalive: Some(Duration::from_secs(10)),
    user_timeout: Some(Duration::from_secs(30)),
};

/// How to verify a service before we have a certificate of our own.
#[derive(Clone)]
pub(crate) struct Trust {
    pub(crate) anchors: hawser_tls::TrustAnchors,
    pub(crate) identity: Identity,
}

pub(crate) fn channel(service: ControlService, trust: Trust, mark: Option<u32>) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{}:{}", bracketed(&service.host), service.port))
        .unwrap_or_else(|_| Endpoint::from_static("http://control"))
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(3))
        .keep_alive_while_idle(true);
    endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
        let (service, trust) = (service.clone(), trust.clone());
        async move { dial(&service, &trust, mark).await.map(TokioIo::new) }
    }))
}

fn bracketed(host: &str) -> String {
    if host.contains(':') {
        format!("[{host}]")
    } else {
        host.to_owned()
    }
}

async fn dial(service: &ControlService, trust: &Trust, mark: Option<u32>) -> io::Result<Conn> {
    let mut addrs: Vec<SocketAddr> = tokio::net::lookup_host((service.host.as_str(), service.port))
        .await?
        .collect();
    addrs.shuffle(&mut rand::rng());
    let mut last = io::Error::new(
        io::ErrorKind::NotFound,
        format!("{} has no address", service.host),
    );
    for addr in addrs {
        match attempt(addr, service, trust, mark).await {
            Ok(conn) => return Ok(conn),
            Err(error) => {
                tracing::debug!(%addr, service = service.host, %error, "Failed to connect to the control plane");
                last = error;
            }
        }
    }
    Err(last)
}

async fn attempt(
    addr: SocketAddr,
    service: &ControlService,
    trust: &Trust,
    mark: Option<u32>,
) -> io::Result<Conn> {
    let socket: TcpStream = connect(addr, KEEPALIVE, mark, None, CONNECT_TIMEOUT).await?;
    let Some(expected) = &service.identity else {
        return Ok(Conn::tcp(socket));
    };
    let config = match trust.identity.get() {
        Some(credentials) => credentials.client(expected, false),
        // The identity service is asked before we have a certificate; it is verified all the same.
        None => hawser_tls::anonymous_client(&trust.anchors, expected),
    };
    let name = expected
        .dns_name()
        .and_then(|name| ServerName::try_from(name.to_owned()).ok());
    let name = name.ok_or_else(|| io::Error::other("the service's identity is no DNS name"))?;
    let handshake = TlsConnector::from(config).connect(name, socket);
    match tokio::time::timeout(CONNECT_TIMEOUT, handshake).await {
        Ok(tls) => tls.map(Conn::client),
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "TLS handshake timed out")),
    }
}
