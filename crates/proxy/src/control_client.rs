//! How the proxy reaches its control plane: HTTP/2 over our own mutual TLS, plain text to loopback.
//!
//! One lazily connected channel per service; it reconnects by itself and resolves the name each time.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hawser_tls::Role;
use hyper_util::rt::TokioIo;
use rand::seq::SliceRandom as _;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Endpoint, Uri};

use crate::config::{ControlService, SocketOptions};
use crate::identity::Identity;
use crate::transport::{Conn, Gulping, connect};

pub(crate) type Channel = tonic::transport::Channel;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const KEEPALIVE: SocketOptions = SocketOptions {
    keepalive: Some(Duration::from_secs(10)),
    user_timeout: Some(Duration::from_secs(30)),
};

/// A control plane that we don't believe is complained about this often; connecting is tried again and again.
const DISTRUST_LOG_INTERVAL: Duration = Duration::from_secs(60);

pub(crate) fn channel(service: ControlService, identity: Identity, mark: Option<u32>) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{}:{}", bracketed(&service.host), service.port))
        .unwrap_or_else(|_| Endpoint::from_static("http://control"))
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(3))
        .keep_alive_while_idle(true);
    let complained = Arc::new(Mutex::new(None));
    endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
        let (service, identity, complained) = (service.clone(), identity.clone(), complained.clone());
        async move {
            let dialled = dial(&service, &identity, mark).await;
            if let Err(error) = &dialled {
                complain(&service, error, &complained);
            }
            dialled.map(TokioIo::new)
        }
    }))
}

fn bracketed(host: &str) -> String {
    if host.contains(':') {
        format!("[{host}]")
    } else {
        host.to_owned()
    }
}

/// A proxy that missed a step of a rotation can't help itself, so it says what would.
fn complain(service: &ControlService, error: &io::Error, last: &Mutex<Option<Instant>>) {
    let tls = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    if tls.map(hawser_tls::refusal) != Some(hawser_tls::Refusal::UnknownIssuer) {
        return;
    }
    let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
    if last.is_none_or(|at| at.elapsed() >= DISTRUST_LOG_INTERVAL) {
        *last = Some(Instant::now());
        tracing::error!(
            service = service.host,
            "The control plane's certificate does not chain to our trust anchors: they are from before a rotation, or \
             from another mesh; delete this pod, so that it is injected with the current bundle"
        );
    }
}

async fn dial(service: &ControlService, identity: &Identity, mark: Option<u32>) -> io::Result<Conn> {
    let mut addrs: Vec<SocketAddr> = tokio::net::lookup_host((service.host.as_str(), service.port))
        .await?
        .collect();
    addrs.shuffle(&mut rand::rng());
    let mut last = io::Error::new(
        io::ErrorKind::NotFound,
        format!("{} has no address", service.host),
    );
    for addr in addrs {
        match attempt(addr, service, identity, mark).await {
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
    identity: &Identity,
    mark: Option<u32>,
) -> io::Result<Conn> {
    let socket: TcpStream = connect(addr, KEEPALIVE, mark, None, CONNECT_TIMEOUT).await?;
    let Some(expected) = &service.identity else {
        return Ok(Conn::tcp(socket));
    };
    let (config, anchors) = match identity.get() {
        Some(credentials) => (credentials.client(expected, false), credentials.anchors().clone()),
        // The identity service is asked before we have a certificate; it is verified all the same.
        None => {
            let anchors = identity.anchors();
            (hawser_tls::anonymous_client(&anchors, expected), anchors)
        }
    };
    let name = expected
        .dns_name()
        .and_then(|name| ServerName::try_from(name.to_owned()).ok());
    let name = name.ok_or_else(|| io::Error::other("the service's identity is no DNS name"))?;
    let handshake = TlsConnector::from(config).connect(name, Gulping::new(socket));
    match tokio::time::timeout(CONNECT_TIMEOUT, handshake).await {
        Ok(tls) => tls.map(|tls| {
            let bond = identity.bond(tls.get_ref().1.peer_certificates(), Role::Server, &anchors);
            Conn::client(tls).bonded(bond)
        }),
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "TLS handshake timed out")),
    }
}
