//! One endpoint as one worker knows it: its load, its connections, and whether it can be reached.
//!
//! HTTP/2 to an endpoint is one connection per worker, made once however many requests wait for it; HTTP/1 is a small
//! stack of idle connections. Balancing is [`super::balancer`]'s business.

use std::cell::{Cell, OnceCell, RefCell};
use std::io;
use std::net::IpAddr;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use futures::future::{LocalBoxFuture, Shared};
use hawser_tls::Role;
use http::uri::Authority;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rand::Rng as _;
use rustls_pki_types::ServerName;
use tokio_rustls::TlsConnector;

use crate::balance::Load;
use crate::bond::Bond;
use crate::header::{Header, Session};
use crate::message::Value;
use crate::metrics::{Labels, Shard};
use crate::snapshot::{Endpoint, EndpointTls, Hint};
use crate::transport::{self, Conn, Gulping, TcpMetrics};
use crate::wire::Options;
use crate::wire::client::Client;
use crate::wire::h1_client::{self, Pool};
use crate::worker::{HEAD_MAX, Worker};

use super::circuit::Circuit;
use super::replay::RequestBody;
use super::retry::Budget;
use super::telemetry::HttpMetrics;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ConnectError {
    Refused,
    Timeout,
    Tls,
    /// We would be talking to ourselves, or in the clear to someone who should be verified.
    Forbidden,
}

impl ConnectError {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "client error (Connect)",
            Self::Timeout => "connect timed out",
            Self::Tls => "TLS handshake failed",
            Self::Forbidden => "endpoint may not be connected to",
        }
    }
}

/// A connection's handle, and the trust that the connection rests on.
#[derive(Clone)]
pub(crate) struct Held<S> {
    sender: S,
    bond: Option<Arc<Bond>>,
}

impl<S> Held<S> {
    /// Are other anchors in use than when it was made? Then what is under way may end, but nothing new begins.
    fn retired(&self) -> bool {
        self.bond.as_ref().is_some_and(|bond| bond.retired())
    }
}

impl<S> Deref for Held<S> {
    type Target = S;

    fn deref(&self) -> &S {
        &self.sender
    }
}

impl<S> DerefMut for Held<S> {
    fn deref_mut(&mut self) -> &mut S {
        &mut self.sender
    }
}

pub(crate) type H2Sender = Held<Client>;
pub(crate) type H1Sender = Held<http1::SendRequest<RequestBody>>;
type Connecting = Shared<LocalBoxFuture<'static, Result<H2Sender, ConnectError>>>;

/// The connection that all HTTP/2 requests of this worker share.
#[derive(Default)]
enum H2 {
    #[default]
    None,
    Connecting(Connecting),
    Open(H2Sender),
}

pub(crate) struct Peer {
    side: Side,
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) load: Load,
    pub(crate) authority: Arc<str>,
    blocked_until: Cell<Option<Instant>>,
    backoff: Cell<Duration>,
    h2: RefCell<H2>,
    h1: RefCell<Vec<Idle>>,
    plain: Rc<Pool>,
    pub(crate) circuit: Circuit,
    pub(crate) budget: Budget,
    /// What a gateway calls the service, as requests say it.
    pub(crate) overridden: OnceCell<Option<Authority>>,
    /// The host of the latest request, read: most requests to an endpoint name the same one.
    named: RefCell<Option<(Box<[u8]>, Authority)>>,
    http: OnceCell<Rc<HttpMetrics>>,
    tcp: OnceCell<Arc<TcpMetrics>>,
}

/// An HTTP/1 connection that waits for the next request to the same host. Some servers decide by the first request's
/// host for the whole connection, so hosts don't share one, and requests without a host share with nobody.
struct Idle {
    sender: H1Sender,
    host: Box<[u8]>,
    since: Instant,
}

/// Counts as something to do for its peer until dropped.
pub(crate) struct Busy {
    peer: Rc<Peer>,
    /// When its answer came, and how long that took.
    pub(crate) answered: Option<(Instant, Duration)>,
}

impl Drop for Busy {
    fn drop(&mut self) {
        match self.answered {
            Some((at, rtt)) => self.peer.load.end(at, Some(rtt)),
            None => self.peer.load.end(Instant::now(), None),
        }
    }
}

impl Busy {
    pub(crate) fn peer(&self) -> &Rc<Peer> {
        &self.peer
    }
}

/// Would connecting there reach the pod's own private ports? The unspecified address does too.
fn is_own_host(ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    ip.is_loopback() || ip.is_unspecified()
}

/// On which side of the proxy a peer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// The world.
    Outbound,
    /// Our own application.
    Inbound,
}

/// A way to send one request.
pub(crate) enum Sender {
    H1(H1Sender),
    H2(H2Sender),
}

impl Peer {
    pub(crate) fn new(side: Side, endpoint: Arc<Endpoint>, authority: Arc<str>) -> Rc<Self> {
        Rc::new(Self {
            side,
            load: Load::new(Instant::now()),
            endpoint,
            authority,
            blocked_until: Cell::default(),
            backoff: Cell::default(),
            h2: RefCell::default(),
            h1: RefCell::default(),
            plain: Rc::default(),
            circuit: Circuit::new(Instant::now()),
            budget: Budget::new(Instant::now()),
            overridden: OnceCell::new(),
            named: RefCell::default(),
            http: OnceCell::new(),
            tcp: OnceCell::new(),
        })
    }

    pub(crate) fn busy(self: &Rc<Self>) -> Busy {
        self.load.start();
        Busy {
            peer: self.clone(),
            answered: None,
        }
    }

    /// When it may be tried again, if it failed lately.
    pub(crate) fn blocked_until(&self, now: Instant) -> Option<Instant> {
        let unreachable = self.blocked_until.get().filter(|until| *until > now);
        unreachable.max(self.circuit.blocked_until(now))
    }

    /// Does its circuit breaker keep requests away?
    pub(crate) fn ejected(&self, now: Instant) -> bool {
        self.circuit.blocked_until(now).is_some()
    }

    pub(crate) fn failed(&self, (min, max): (Duration, Duration)) {
        let backoff = (self.backoff.get() * 2).clamp(min, max);
        self.backoff.set(backoff);
        let jitter = rand::rng().random_range(1.0..1.1);
        self.blocked_until
            .set(Some(Instant::now() + backoff.mul_f64(jitter)));
    }

    /// A Host header as the authority that it is.
    pub(crate) fn authority_of(&self, host: Value<'_>) -> Option<Authority> {
        let mut named = self.named.borrow_mut();
        if let Some((known, authority)) = &*named
            && **known == *host.as_bytes()
        {
            return Some(authority.clone());
        }
        let authority = Authority::try_from(host.as_bytes()).ok()?;
        *named = Some((host.as_bytes().into(), authority.clone()));
        Some(authority)
    }

    pub(crate) fn succeeded(&self) {
        self.backoff.set(Duration::ZERO);
        self.blocked_until.set(None);
    }

    pub(crate) fn http_metrics(&self, worker: &Worker) -> Rc<HttpMetrics> {
        self.http
            .get_or_init(|| HttpMetrics::new(&worker.metrics, self.labels()))
            .clone()
    }

    fn tcp_metrics(&self, worker: &Worker) -> Arc<TcpMetrics> {
        self.tcp
            .get_or_init(|| TcpMetrics::new(&worker.metrics, "dst", &self.labels()))
            .clone()
    }

    fn labels(&self) -> Labels {
        let endpoint = &self.endpoint;
        let mut labels = match self.side {
            Side::Outbound => Labels::new()
                .with("direction", "outbound")
                .with("authority", &self.authority),
            Side::Inbound => Labels::new().with("direction", "inbound"),
        };
        labels = labels
            .with("target_addr", endpoint.addr)
            .with("target_ip", endpoint.addr.ip())
            .with("target_port", endpoint.addr.port());
        match &endpoint.tls {
            EndpointTls::Mutual { id, .. } => {
                labels.push("tls", "true");
                labels.push("server_id", id);
            }
            EndpointTls::No(why) => {
                labels.push("tls", "no_identity");
                labels.push("no_tls_reason", why);
            }
            EndpointTls::Unusable => labels.push("tls", "no_identity"),
        }
        for (name, value) in &endpoint.labels {
            labels.push(&format!("dst_{name}"), value);
        }
        labels
    }

    /// A request that is sent again after it met this endpoint.
    pub(crate) fn count_retry(&self, metrics: &Shard, reason: &str) {
        let (name, labels) = match self.side {
            Side::Outbound => (
                "outbound_http_retries_total",
                Labels::new().with("authority", &self.authority),
            ),
            Side::Inbound => (
                "inbound_http_retries_total",
                Labels::new().with("target_addr", self.endpoint.addr),
            ),
        };
        metrics.counter(name, labels.with("reason", reason)).inc();
    }

    /// A connection, with the transport header ahead of the first byte where the endpoint wants one.
    pub(crate) async fn dial(&self, worker: &Worker, session: Session) -> Result<Conn, ConnectError> {
        let shared = &worker.shared;
        let endpoint = &*self.endpoint;
        let (timeout, options) = match self.side {
            Side::Outbound => (
                shared.config.outbound.connect_timeout,
                shared.config.outbound.connect,
            ),
            Side::Inbound => (
                shared.config.inbound.connect_timeout,
                shared.config.inbound.connect,
            ),
        };
        let addr = endpoint.dialled();
        if endpoint.tls == EndpointTls::Unusable || (is_own_host(addr.ip()) && !shared.loopback_allowed) {
            return Err(ConnectError::Forbidden);
        }
        let io_error = |error: io::Error| match error.kind() {
            io::ErrorKind::TimedOut => ConnectError::Timeout,
            _ => ConnectError::Refused,
        };
        let socket = transport::connect(addr, options, shared.config.socket_mark, shared.source, timeout)
            .await
            .map_err(io_error)?;
        let EndpointTls::Mutual { id, server_name } = &endpoint.tls else {
            return Ok(Conn::tcp(socket).counted(self.tcp_metrics(worker)));
        };
        let credentials = shared.identity.get().ok_or(ConnectError::Tls)?;
        let with_header = endpoint.inbound_port.is_some() || endpoint.authority.is_some();
        let name = ServerName::try_from(server_name.clone()).map_err(|_| ConnectError::Tls)?;
        let handshake =
            TlsConnector::from(credentials.client(id, with_header)).connect(name, Gulping::new(socket));
        let mut tls = match tokio::time::timeout(timeout, handshake).await {
            Ok(Ok(tls)) => tls,
            Ok(Err(error)) => {
                tracing::info!(%addr, server.id = %id, %error, "TLS handshake failed");
                return Err(ConnectError::Tls);
            }
            Err(_) => return Err(ConnectError::Timeout),
        };
        if tls.get_ref().1.alpn_protocol() == Some(hawser_tls::ALPN_TRANSPORT) {
            let (name, port) = match &endpoint.authority {
                Some((name, Some(port))) => (Some(name.clone()), *port),
                _ => (None, endpoint.addr.port()),
            };
            let session = if endpoint.hint == Hint::Opaque {
                Session::Opaque
            } else {
                session
            };
            let header = Header { port, name, session }.encode();
            transport::write_first(&mut tls, &header).map_err(|_| ConnectError::Tls)?;
        }
        let chain = tls.get_ref().1.peer_certificates();
        let bond = shared.identity.bond(chain, Role::Server, credentials.anchors());
        Ok(Conn::client(tls).bonded(bond).counted(self.tcp_metrics(worker)))
    }

    /// The shared HTTP/2 connection, made if there is none.
    pub(crate) async fn h2(self: &Rc<Self>, worker: &Rc<Worker>) -> Result<H2Sender, ConnectError> {
        let connecting = {
            let mut h2 = self.h2.borrow_mut();
            match &*h2 {
                H2::Open(sender) if !sender.is_closed() && !sender.retired() => return Ok(sender.clone()),
                H2::Connecting(connecting) if connecting.peek().is_none() => connecting.clone(),
                _ => {
                    let (peer, worker) = (Rc::downgrade(self), worker.clone());
                    let connecting = async move {
                        let peer = peer.upgrade().ok_or(ConnectError::Refused)?;
                        peer.connect_h2(&worker).await
                    };
                    let connecting = connecting.boxed_local().shared();
                    *h2 = H2::Connecting(connecting.clone());
                    connecting
                }
            }
        };
        let sender = connecting.clone().await?;
        let mut h2 = self.h2.borrow_mut();
        if matches!(&*h2, H2::Connecting(current) if current.ptr_eq(&connecting)) {
            *h2 = H2::Open(sender.clone());
        }
        Ok(sender)
    }

    async fn connect_h2(&self, worker: &Worker) -> Result<H2Sender, ConnectError> {
        let conn = self.dial(worker, Session::Http2).await?;
        let bond = conn.bond().cloned();
        let windows = &worker.shared.config.outbound.http;
        let options = Options {
            keepalive: self.endpoint.keepalive,
            ..Options::of_client(windows)
        };
        let sender = Client::start(conn, options);
        Ok(Held { sender, bond })
    }

    /// An idle HTTP/1 connection that was used for this host, or a new one.
    pub(crate) async fn h1(&self, worker: &Worker, host: Option<&[u8]>) -> Result<H1Sender, ConnectError> {
        if let Some(sender) = host.and_then(|host| self.idle_h1(host)) {
            return Ok(sender);
        }
        // Boxed, as it is rare and large: every request's future would have room for it.
        let conn = Box::pin(self.dial(worker, Session::Http1)).await?;
        let bond = conn.bond().cloned();
        let (sender, conn) = http1::Builder::new()
            .preserve_header_case(true)
            .max_buf_size(HEAD_MAX)
            .handshake(TokioIo::new(conn))
            .await
            .map_err(|_| ConnectError::Refused)?;
        tokio::task::spawn_local(async move {
            if let Err(error) = conn.with_upgrades().await {
                tracing::debug!(%error, "HTTP/1 connection to an endpoint broke");
            }
        });
        Ok(Held { sender, bond })
    }

    /// The same for plain requests; these connections are only theirs.
    pub(crate) async fn plain(
        &self,
        worker: &Worker,
        host: Option<&[u8]>,
    ) -> Result<h1_client::Client, ConnectError> {
        if let Some(client) = host.and_then(|host| self.plain.take(host)) {
            return Ok(client);
        }
        let conn = Box::pin(self.dial(worker, Session::Http1)).await?;
        Ok(h1_client::Client::new(conn))
    }

    /// Where they go back to.
    pub(crate) fn pool(&self) -> &Rc<Pool> {
        &self.plain
    }

    fn idle_h1(&self, host: &[u8]) -> Option<H1Sender> {
        let mut idle = self.h1.borrow_mut();
        let found = idle
            .iter()
            .rposition(|idle| idle.sender.is_ready() && !idle.sender.retired() && *idle.host == *host)?;
        Some(idle.swap_remove(found).sender)
    }

    /// Keeps a connection for the next request to the same host.
    pub(crate) fn keep_h1(&self, sender: H1Sender, host: Box<[u8]>, idle_max: usize) {
        let mut idle = self.h1.borrow_mut();
        if !sender.is_closed() && !sender.retired() && idle.len() < idle_max {
            idle.push(Idle {
                sender,
                host,
                since: Instant::now(),
            });
        }
    }

    pub(crate) fn evict(&self, now: Instant, idle: Duration) {
        self.h1.borrow_mut().retain(|kept| {
            !kept.sender.is_closed() && !kept.sender.retired() && now.duration_since(kept.since) < idle
        });
        self.plain.evict(now, idle);
        let mut h2 = self.h2.borrow_mut();
        if matches!(&*h2, H2::Open(sender) if sender.retired()) {
            *h2 = H2::None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_say_this_host_is_known() {
        for (ip, own) in [
            ("127.0.0.1", true),
            ("127.9.9.9", true),
            ("0.0.0.0", true),
            ("::1", true),
            ("::", true),
            ("::ffff:127.0.0.1", true),
            ("::ffff:10.0.0.1", false),
            ("10.0.0.1", false),
        ] {
            assert_eq!(is_own_host(ip.parse().unwrap()), own, "{ip}");
        }
    }
}
