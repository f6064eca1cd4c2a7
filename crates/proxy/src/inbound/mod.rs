//! From the world to the pod: accept, authenticate, authorize, forward (`spec/proxy.md` 4.4, 4.5, 6).
//!
//! Redirected connections keep their port and may be anything; direct connections come from other proxies, must be
//! mutually authenticated, and say in a header what they carry. Every refusal has its own reason.

pub(crate) mod http;
pub(crate) mod tcp;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hawser_core::authz::{Client, Source};
use hawser_runtime::Shutdown;
use hawser_tls::Role;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use crate::detect;
use crate::gateway;
use crate::header::{Header, Session};
use crate::live::Live;
use crate::metrics::Labels;
use crate::outbound::peer::{Peer, Side};
use crate::outbound::{canonical, detect_http};
use crate::snapshot::{Endpoint, EndpointTls, Inbound, InboundProtocol};
use crate::tap;
use crate::transport::{Conn, Gulping, TcpMetrics};
use crate::worker::{Http, InFlight, Worker};

/// Refusals of one source are logged this often; load balancers probe for ever.
const LOG_INTERVAL: Duration = Duration::from_secs(60);
const LOG_SOURCES_MAX: usize = 1_024;

/// Why a connection was closed before it carried anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Refusal {
    WrongAddress,
    DetectTimeout,
    Handshake(hawser_tls::Refusal),
    NotAuthenticated,
    /// A ClientHello for another server's name.
    WrongServerName,
    NoHeaderProtocol,
    Header,
    NotAGateway,
    Loop,
    GatewayDomain,
    NotExported,
    Denied,
    Closed,
}

impl Refusal {
    pub(crate) fn message(self) -> &'static str {
        match self {
            Self::WrongAddress => "inbound connections are not allowed on this IP address",
            Self::DetectTimeout => "TLS detection timed out",
            Self::Handshake(why) => why.as_str(),
            Self::NotAuthenticated => "direct connections must be mutually authenticated",
            Self::WrongServerName => "direct connections must name this proxy's identity as TLS server name",
            Self::NoHeaderProtocol => "direct connections require transport header negotiation",
            Self::Header => "direct connections must begin with a transport header",
            Self::NotAGateway => "this proxy is not a gateway",
            Self::Loop => "inbound connection must not target the proxy itself",
            Self::GatewayDomain => "gateway domain invalid",
            Self::NotExported => "service is not exported by this gateway",
            Self::Denied => "unauthorized connection",
            Self::Closed => "connection closed by the client",
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::DetectTimeout => "tls detection timeout",
            Self::Loop => "gateway loop",
            Self::GatewayDomain | Self::NotExported => "gateway domain invalid",
            Self::Closed => "i/o",
            _ => "unexpected",
        }
    }
}

/// What is known of a client once its connection is accepted.
#[derive(Clone, Debug)]
pub(crate) struct Accepted {
    pub(crate) client_addr: SocketAddr,
    pub(crate) client: Client,
    /// Where the application is to be reached.
    pub(crate) target: SocketAddr,
    /// TLS labels of metrics.
    pub(crate) labels: Labels,
}

impl Accepted {
    /// For those who watch requests.
    pub(crate) fn watched(&self) -> tap::Client {
        let words = |pairs: &[(&str, &str)]| {
            let owned = pairs
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
            owned.collect()
        };
        tap::Client {
            addr: self.client_addr,
            labels: match &self.client {
                Client::Authenticated(id) => words(&[("tls", "true"), ("client_id", id.as_str())]),
                Client::Anonymous => words(&[("tls", "true")]),
                Client::Plain => words(&[("tls", "no_identity")]),
            },
        }
    }
}

/// A value, and when it was last asked for.
type Used<T> = (T, Cell<Instant>);

/// What a worker remembers of ports and applications.
#[derive(Default)]
pub(crate) struct State {
    ports: RefCell<HashMap<u16, Used<Arc<Live<Inbound>>>>>,
    apps: RefCell<HashMap<SocketAddr, Used<Rc<Peer>>>>,
    logged: RefCell<HashMap<(IpAddr, &'static str, String), Instant>>,
    pub(crate) in_flight: InFlight,
}

impl State {
    pub(crate) fn policy(&self, worker: &Worker, port: u16) -> Arc<Live<Inbound>> {
        let mut ports = self.ports.borrow_mut();
        let (live, used_at) = ports
            .entry(port)
            .or_insert_with(|| (worker.shared.discovery.inbound(port), Cell::new(Instant::now())));
        used_at.set(Instant::now());
        live.clone()
    }

    /// The application behind an address of the pod.
    pub(crate) fn app(&self, target: SocketAddr) -> Rc<Peer> {
        let mut apps = self.apps.borrow_mut();
        let (app, used_at) = apps.entry(target).or_insert_with(|| {
            let mut endpoint = Endpoint::forward(target);
            endpoint.tls = EndpointTls::No("loopback");
            let app = Peer::new(Side::Inbound, Arc::new(endpoint), target.to_string().into());
            (app, Cell::new(Instant::now()))
        });
        used_at.set(Instant::now());
        app.clone()
    }

    /// Is this refusal to be logged, or was it within the last minute?
    pub(crate) fn worth_a_line(&self, client: IpAddr, reason: &'static str, target: impl ToString) -> bool {
        let now = Instant::now();
        let mut logged = self.logged.borrow_mut();
        let key = (client, reason, target.to_string());
        let recently = logged
            .get(&key)
            .is_some_and(|at| now.duration_since(*at) < LOG_INTERVAL);
        let worth = !recently && logged.len() < LOG_SOURCES_MAX;
        if worth {
            logged.insert(key, now);
        }
        worth
    }

    pub(crate) fn evict(&self, idle: Duration, pool_idle: Duration) {
        let now = Instant::now();
        self.ports
            .borrow_mut()
            .retain(|_, (_, used_at)| now.duration_since(used_at.get()) < idle);
        self.apps.borrow_mut().retain(|_, (app, used_at)| {
            app.evict(now, pool_idle);
            Rc::strong_count(app) > 1 || now.duration_since(used_at.get()) < idle
        });
        self.logged
            .borrow_mut()
            .retain(|_, at| now.duration_since(*at) < LOG_INTERVAL);
    }
}

/// A connection that was redirected to us, or made to us by another proxy.
pub(crate) async fn connection(worker: Rc<Worker>, socket: TcpStream, client_addr: SocketAddr) {
    let client_addr = canonical(client_addr);
    let (Ok(target), Ok(local)) = (
        worker.shared.original_dst.original_dst(&socket),
        socket.local_addr(),
    ) else {
        tracing::info!(client.addr = %client_addr, "Connection closed: its original destination is unknown");
        return;
    };
    let target = canonical(target);
    if let Err(refusal) = serve(&worker, socket, client_addr, target, local.port()).await {
        refuse(&worker, refusal, client_addr, target);
    }
}

/// Counts a refusal and logs it, once a minute for each source.
pub(crate) fn refuse(worker: &Worker, refusal: Refusal, client: SocketAddr, target: SocketAddr) {
    let labels = Labels::new()
        .with("target_addr", target)
        .with("error", refusal.label())
        .with("reason", refusal.message());
    worker.metrics.counter("inbound_tcp_errors_total", labels).inc();
    match refusal {
        // Nobody was refused, or whoever refused has said more.
        Refusal::Closed | Refusal::Denied | Refusal::GatewayDomain | Refusal::NotExported => {}
        // A port scan comes to many ports; one line is enough.
        refusal if worker.inbound.worth_a_line(client.ip(), refusal.message(), "") => {
            tracing::info!(error = refusal.message(), client.addr = %client, %target, "Connection closed");
        }
        _ => {}
    }
}

/// Who is at the other end, for logs: an identity, or why there is none.
pub(crate) fn name_of(client: &Client) -> &str {
    match client {
        Client::Authenticated(id) => id.as_str(),
        Client::Anonymous => "TLS without an identity",
        Client::Plain => "no TLS",
    }
}

async fn serve(
    worker: &Rc<Worker>,
    socket: TcpStream,
    client_addr: SocketAddr,
    target: SocketAddr,
    own_port: u16,
) -> Result<(), Refusal> {
    let config = &worker.shared.config.inbound;
    if !config.ips.is_empty() && !config.ips.contains(&target.ip()) {
        return Err(Refusal::WrongAddress);
    }
    let conn = Conn::tcp(socket);
    if target.port() == own_port {
        direct(worker, conn, client_addr, target).await
    } else {
        redirected(worker, conn, client_addr, target).await
    }
}

/// From another proxy: mutual TLS, then a header that says what follows.
async fn direct(
    worker: &Rc<Worker>,
    mut conn: Conn,
    client_addr: SocketAddr,
    own: SocketAddr,
) -> Result<(), Refusal> {
    let timeout = worker.shared.config.inbound.detect_timeout;
    let deadline = tokio::time::Instant::now() + timeout;
    let credentials = worker.shared.identity.get().ok_or(Refusal::NotAuthenticated)?;
    // Before the handshake, so that whoever is not meant for us is closed without an answer: a plain client would
    // take a TLS alert for one.
    match hello(&mut conn, deadline).await? {
        None => return Err(Refusal::NotAuthenticated),
        Some(name) if name != worker.shared.config.identity.server_name => {
            return Err(Refusal::WrongServerName);
        }
        Some(_) => {}
    }
    let accepting = TlsAcceptor::from(credentials.direct_server().clone()).accept(Gulping::new(conn));
    let tls = match Box::pin(tokio::time::timeout_at(deadline, accepting)).await {
        Err(_) => return Err(Refusal::DetectTimeout),
        Ok(Err(error)) => return Err(handshake_refusal(&error)),
        Ok(Ok(tls)) => tls,
    };
    let session = tls.get_ref().1;
    let client = client_of(session);
    let Client::Authenticated(id) = &client else {
        return Err(Refusal::NotAuthenticated);
    };
    if session.alpn_protocol() != Some(hawser_tls::ALPN_TRANSPORT) {
        return Err(Refusal::NoHeaderProtocol);
    }
    let labels = Labels::new().with("tls", "true").with("client_id", id);
    let chain = session.peer_certificates();
    let bond = worker
        .shared
        .identity
        .bond(chain, Role::Client, credentials.anchors());
    let mut conn = Conn::server(tls).bonded(bond);
    let header = tokio::time::timeout_at(deadline, read_header(&mut conn))
        .await
        .map_err(|_| Refusal::DetectTimeout)??;
    let header_labels = Labels::new()
        .with("session_protocol", header.session.as_str())
        .with("target_port", header.port)
        .with("target_name", header.name.as_deref().unwrap_or_default())
        .with("client_id", id);
    worker
        .metrics
        .counter("inbound_tcp_transport_header_connections", header_labels)
        .inc();

    let http = match header.session {
        Session::Opaque => None,
        Session::Http1 => Some(Http::One),
        Session::Http2 => Some(Http::Two),
    };
    if let Some(name) = header.name {
        let accepted = Accepted {
            client_addr,
            client,
            target: own,
            labels,
        };
        return Box::pin(gateway::serve(worker, conn, accepted, &name, header.port, http)).await;
    }
    let target = SocketAddr::new(own.ip(), header.port);
    if target == own {
        return Err(Refusal::Loop);
    }
    let conn = conn.counted(source_metrics(worker, target, &labels));
    let accepted = Accepted {
        client_addr,
        client,
        target,
        labels,
    };
    let policy = worker.inbound.policy(worker, target.port());
    forward(worker, conn, accepted, http, policy).await
}

/// Boxed, so that an idle connection costs what it has become, not the most that any could be.
async fn forward(
    worker: &Rc<Worker>,
    conn: Conn,
    accepted: Accepted,
    http: Option<Http>,
    policy: Arc<Live<Inbound>>,
) -> Result<(), Refusal> {
    match http {
        None => Box::pin(tcp::serve(worker, conn, accepted, policy)).await,
        Some(version) => Box::pin(http::serve(worker, conn, accepted, version, policy)).await,
    }
}

/// What asks a connection to end in order: the end of the process, or of the trust in its client.
pub(crate) fn drain_of(worker: &Worker, conn: &Conn) -> Shutdown {
    let process = worker.shared.drain.inbound_from_now();
    conn.bond()
        .map_or_else(|| process.clone(), |bond| bond.drain_with(process))
}

pub(crate) fn client_of(session: &rustls::ServerConnection) -> Client {
    let leaf = session.peer_certificates().and_then(<[_]>::first);
    leaf.and_then(hawser_tls::peer_identity)
        .map_or(Client::Anonymous, Client::Authenticated)
}

fn handshake_refusal(error: &std::io::Error) -> Refusal {
    let tls = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls.map(hawser_tls::refusal) {
        Some(hawser_tls::Refusal::Protocol) => Refusal::NotAuthenticated,
        Some(why) => Refusal::Handshake(why),
        None => Refusal::NotAuthenticated,
    }
}

async fn read_header(conn: &mut Conn) -> Result<Header, Refusal> {
    loop {
        match Header::decode(conn.ahead()) {
            Ok(Some(header)) => return Ok(header),
            Ok(None) => {}
            Err(error) => {
                tracing::debug!(%error, "Transport header refused");
                return Err(Refusal::Header);
            }
        }
        match conn.read_ahead().await {
            Ok(0) | Err(_) => return Err(Refusal::Header),
            Ok(_) => {}
        }
    }
}

pub(crate) fn source_metrics(worker: &Worker, target: SocketAddr, tls: &Labels) -> Arc<TcpMetrics> {
    TcpMetrics::new(&worker.metrics, "src", &target_labels(target, tls))
}

pub(crate) fn target_labels(target: SocketAddr, tls: &Labels) -> Labels {
    let labels = Labels::new()
        .with("direction", "inbound")
        .with("target_addr", target)
        .with("target_ip", target.ip())
        .with("target_port", target.port());
    labels.and(tls)
}

pub(crate) fn server_labels(labels: &Labels, port: u16, server: &Source) -> Labels {
    labels
        .with("srv_group", &server.group)
        .with("srv_kind", &server.kind)
        .with("srv_name", &server.name)
        .with("srv_port", port)
}

/// What TLS detection found.
pub(crate) enum Detected {
    Terminated(Conn, Client),
    /// TLS for somebody else, passed through untouched.
    Foreign(Conn, String),
    Plain(Conn),
}

/// The server name of the ClientHello that the connection begins with, if it begins with one.
async fn hello(conn: &mut Conn, deadline: tokio::time::Instant) -> Result<Option<String>, Refusal> {
    loop {
        match detect::tls(conn.ahead()) {
            detect::Tls::Sni(name) => return Ok(Some(name)),
            detect::Tls::No => return Ok(None),
            detect::Tls::More => {}
        }
        match tokio::time::timeout_at(deadline, conn.read_ahead()).await {
            Err(_) => return Err(Refusal::DetectTimeout),
            Ok(Err(_)) => return Err(Refusal::Closed),
            Ok(Ok(0)) if conn.ahead().is_empty() => return Err(Refusal::Closed),
            Ok(Ok(0)) => return Ok(None),
            Ok(Ok(_)) => {}
        }
    }
}

/// Looks at the first bytes; ends TLS that is for us.
pub(crate) async fn detect_tls(
    identity: &crate::identity::Identity,
    server_name: &str,
    mut conn: Conn,
    timeout: Duration,
) -> Result<Detected, Refusal> {
    let deadline = tokio::time::Instant::now() + timeout;
    let sni = hello(&mut conn, deadline).await?;
    match sni {
        None => Ok(Detected::Plain(conn)),
        Some(name) if name != server_name => Ok(Detected::Foreign(conn, name)),
        Some(_) => {
            let credentials = identity.get().ok_or(Refusal::NotAuthenticated)?;
            let accepting =
                TlsAcceptor::from(credentials.transparent_server().clone()).accept(Gulping::new(conn));
            match Box::pin(tokio::time::timeout_at(deadline, accepting)).await {
                Err(_) => Err(Refusal::DetectTimeout),
                Ok(Err(error)) => Err(handshake_refusal(&error)),
                Ok(Ok(tls)) => {
                    let session = tls.get_ref().1;
                    let client = client_of(session);
                    let bond =
                        identity.bond(session.peer_certificates(), Role::Client, credentials.anchors());
                    Ok(Detected::Terminated(Conn::server(tls).bonded(bond), client))
                }
            }
        }
    }
}

/// To one of the application's ports: whatever comes, as its policy says.
async fn redirected(
    worker: &Rc<Worker>,
    conn: Conn,
    client_addr: SocketAddr,
    target: SocketAddr,
) -> Result<(), Refusal> {
    let live = worker.inbound.policy(worker, target.port());
    let policy = live.get().ok_or(Refusal::Denied)?;
    let plain = |reason: &str| {
        Labels::new()
            .with("tls", "no_identity")
            .with("no_tls_reason", reason)
    };
    let count = |conn: Conn, labels: &Labels| conn.counted(source_metrics(worker, target, labels));
    if policy.protocol == InboundProtocol::Opaque {
        let labels = plain("port_skipped");
        let accepted = Accepted {
            client_addr,
            client: Client::Plain,
            target,
            labels,
        };
        return forward(worker, count(conn, &accepted.labels), accepted, None, live).await;
    }
    let config = &worker.shared.config;
    let found = detect_tls(
        &worker.shared.identity,
        &config.identity.server_name,
        conn,
        config.inbound.detect_timeout,
    )
    .await?;
    let (mut conn, accepted) = match found {
        Detected::Plain(conn) => {
            let labels = plain("no_tls_from_remote");
            (
                count(conn, &labels),
                Accepted {
                    client_addr,
                    client: Client::Plain,
                    target,
                    labels,
                },
            )
        }
        Detected::Foreign(conn, sni) => {
            let labels = Labels::new().with("tls", "opaque").with("sni", sni);
            let accepted = Accepted {
                client_addr,
                client: Client::Plain,
                target,
                labels,
            };
            return forward(worker, count(conn, &accepted.labels), accepted, None, live).await;
        }
        Detected::Terminated(conn, client) => {
            let id = match &client {
                Client::Authenticated(id) => id.as_str(),
                Client::Plain | Client::Anonymous => "",
            };
            let labels = Labels::new().with("tls", "true").with("client_id", id);
            (
                count(conn, &labels),
                Accepted {
                    client_addr,
                    client,
                    target,
                    labels,
                },
            )
        }
    };
    let meshed = accepted.client != Client::Plain;
    let detected =
        async |conn: &mut Conn, timeout| detect_http(conn, timeout).await.map_err(|_| Refusal::Closed);
    let version = match policy.protocol {
        InboundProtocol::Detect(timeout) => detected(&mut conn, timeout).await?,
        // A meshed peer may have carried HTTP/1 in HTTP/2.
        InboundProtocol::Http1 if meshed => detected(&mut conn, config.inbound.detect_timeout)
            .await?
            .or(Some(Http::One)),
        InboundProtocol::Http1 => Some(Http::One),
        InboundProtocol::Http2 => Some(Http::Two),
        InboundProtocol::Opaque | InboundProtocol::Tls => None,
    };
    forward(worker, conn, accepted, version, live).await
}
