//! From the pod to the world: accept, decide, connect, forward (`spec/proxy.md` 5).
//!
//! [`connection`] is the story. What is known about a target comes from [`crate::discover`]; endpoints are chosen by
//! [`balancer`] and reached by [`peer`]; HTTP is in [`http`], bytes are in [`tcp`].

pub(crate) mod balancer;
pub(crate) mod circuit;
pub(crate) mod http;
pub(crate) mod peer;
pub(crate) mod replay;
pub(crate) mod retry;
pub(crate) mod tcp;
pub(crate) mod telemetry;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::Rng as _;
use tokio::net::TcpStream;

use crate::answer::Why;
use crate::detect;
use crate::live::Live;
use crate::metrics::Labels;
use crate::quick::Quick;
use crate::snapshot::{Backend, Distribution, Filtered, Outbound, Protocol, Target};
use crate::transport::{Conn, TcpMetrics};
use crate::worker::{Http, InFlight, Worker};

use balancer::{Balancer, Patience};

/// A connection whose target stays unknown for longer is closed.
const DISCOVERY_TIMEOUT: Duration = Duration::from_secs(10);

/// What a worker remembers of targets and backends.
#[derive(Default)]
pub(crate) struct State {
    targets: RefCell<HashMap<Target, Rc<KnownTarget>>>,
    balancers: RefCell<HashMap<Backend, Rc<Balancer>, Quick>>,
    pub(crate) in_flight: InFlight,
}

pub(crate) struct KnownTarget {
    pub(crate) live: Arc<Live<Outbound>>,
    used_at: Cell<Instant>,
    /// As far as is known, HTTP/1 to it is carried in HTTP/2.
    pub(crate) carried: Cell<bool>,
}

impl State {
    pub(crate) fn target(&self, worker: &Worker, target: Target) -> Rc<KnownTarget> {
        let mut targets = self.targets.borrow_mut();
        let known = targets.entry(target).or_insert_with_key(|target| {
            Rc::new(KnownTarget {
                live: worker.shared.discovery.outbound(target),
                used_at: Cell::new(Instant::now()),
                carried: Cell::new(true),
            })
        });
        known.used_at.set(Instant::now());
        known.clone()
    }

    fn balancer(
        &self,
        worker: &Worker,
        backend: &Backend,
        authority: Option<&Arc<str>>,
    ) -> Option<Rc<Balancer>> {
        if let Some(known) = self.balancers.borrow().get(backend) {
            return Some(known.clone());
        }
        let new = Balancer::new(worker, backend, authority)?;
        self.balancers.borrow_mut().insert(backend.clone(), new.clone());
        Some(new)
    }

    pub(crate) fn evict(&self, idle: Duration, pool_idle: Duration) {
        let now = Instant::now();
        self.targets
            .borrow_mut()
            .retain(|_, known| Rc::strong_count(known) > 1 || now.duration_since(known.used_at.get()) < idle);
        self.balancers.borrow_mut().retain(|_, balancer| {
            balancer.evict(now, pool_idle);
            balancer.busy()
                || Rc::strong_count(balancer) > 1
                || now.duration_since(balancer.used_at.get()) < idle.max(Duration::from_secs(60))
        });
    }

    /// A backend of the distribution that can be used now, by weight, and whether another one could take over.
    pub(crate) async fn choose(
        &self,
        worker: &Worker,
        distribution: &Distribution,
        authority: Option<&Arc<str>>,
        failfast: Duration,
    ) -> Result<Chosen, Why> {
        let unusable = || Why::BadGateway("backend is not usable");
        let one = |backend: &Backend| match backend {
            Backend::Failing {
                status,
                grpc,
                message,
            } => Some(Choice::Failing(Why::Injected {
                status: *status,
                grpc: *grpc,
                message: message.to_string(),
            })),
            Backend::Filtered(filtered) => {
                let balancer = self.balancer(worker, &filtered.backend, authority)?;
                Some(Choice::Balancer(balancer, Some(filtered.clone())))
            }
            backend => {
                let balancer = self.balancer(worker, backend, authority)?;
                Some(Choice::Balancer(balancer, None))
            }
        };
        match distribution {
            Distribution::FirstAvailable(backends) if backends.len() == 1 => {
                let only = backends.first().and_then(one).ok_or_else(unusable)?;
                only.with(Patience::Wait(failfast))
            }
            Distribution::FirstAvailable(backends) => {
                let choices: Vec<_> = backends.iter().filter_map(one).collect();
                for choice in &choices {
                    choice.first(failfast).await;
                }
                let now = Instant::now();
                let mut available = choices.iter().filter(|choice| choice.available(now));
                match (available.next(), available.next()) {
                    (Some(first), Some(_)) => first.with(Patience::None),
                    (Some(only), None) => only.with(Patience::Wait(failfast)),
                    (None, _) => choices
                        .first()
                        .ok_or_else(unusable)?
                        .with(Patience::Wait(failfast)),
                }
            }
            Distribution::RandomAvailable(backends) => {
                let choices: Vec<_> = backends
                    .iter()
                    .filter(|(_, weight)| *weight > 0)
                    .filter_map(|(b, weight)| Some((one(b)?, *weight)))
                    .collect();
                if choices.len() > 1 {
                    for (choice, _) in &choices {
                        choice.first(failfast).await;
                    }
                }
                let now = Instant::now();
                let available: Vec<_> = choices
                    .iter()
                    .filter(|(choice, _)| choice.available(now))
                    .collect();
                let among = if available.is_empty() {
                    choices.iter().collect()
                } else {
                    available
                };
                let total: u64 = among.iter().map(|(_, weight)| u64::from(*weight)).sum();
                if total == 0 {
                    return Err(unusable());
                }
                let mut at = rand::rng().random_range(0..total);
                for (choice, weight) in &among {
                    match at.checked_sub(u64::from(*weight)) {
                        Some(rest) => at = rest,
                        None => {
                            return choice.with(if among.len() > 1 {
                                Patience::None
                            } else {
                                Patience::Wait(failfast)
                            });
                        }
                    }
                }
                Err(unusable())
            }
        }
    }
}

/// Where a request goes, and what is done to it on its way there.
pub(crate) struct Chosen {
    pub(crate) balancer: Rc<Balancer>,
    pub(crate) patience: Patience,
    pub(crate) filters: Option<Arc<Filtered>>,
}

/// A backend of a distribution, ready to be used.
enum Choice {
    Balancer(Rc<Balancer>, Option<Arc<Filtered>>),
    /// Every request to it gets this.
    Failing(Why),
}

impl Choice {
    async fn first(&self, within: Duration) {
        if let Self::Balancer(balancer, _) = self {
            balancer.first(within).await;
        }
    }

    fn available(&self, now: Instant) -> bool {
        match self {
            Self::Balancer(balancer, _) => balancer.available(now),
            Self::Failing(_) => true,
        }
    }

    fn with(&self, patience: Patience) -> Result<Chosen, Why> {
        match self {
            Self::Balancer(balancer, filters) => Ok(Chosen {
                balancer: balancer.clone(),
                patience,
                filters: filters.clone(),
            }),
            Self::Failing(why) => Err(why.clone()),
        }
    }
}

/// A connection that was redirected to us by the pod.
pub(crate) async fn connection(worker: Rc<Worker>, socket: TcpStream, client: SocketAddr) {
    let addr = match worker.shared.original_dst.original_dst(&socket) {
        Ok(addr) => canonical(addr),
        Err(error) => {
            tracing::info!(%client, %error, "Connection closed: its original destination is unknown");
            return;
        }
    };
    if addr.ip().is_loopback() && !worker.shared.loopback_allowed {
        tracing::info!(%client, target = %addr, "Connection closed: loopback addresses are not proxied");
        return;
    }
    let labels = Labels::new()
        .with("direction", "outbound")
        .with("target_addr", addr)
        .with("target_ip", addr.ip())
        .with("target_port", addr.port())
        .with("tls", "no_identity")
        .with("no_tls_reason", "loopback");
    let conn = Conn::tcp(socket).counted(TcpMetrics::new(&worker.metrics, "src", &labels));
    let known = worker.outbound.target(&worker, Target::Addr(addr));
    let Ok(outbound) = tokio::time::timeout(DISCOVERY_TIMEOUT, known.live.first()).await else {
        tracing::warn!(%client, target = %addr, "Connection closed: the control plane does not answer");
        count_error(&worker, "unexpected");
        return;
    };
    serve(&worker, conn, known, &outbound, client).await;
}

/// IPv4 in IPv6 clothes is IPv4.
pub(crate) fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

async fn serve(
    worker: &Rc<Worker>,
    mut conn: Conn,
    known: Rc<KnownTarget>,
    outbound: &Outbound,
    client: SocketAddr,
) {
    let version = match &outbound.protocol {
        Protocol::Http1(_) => Some(Http::One),
        Protocol::Http2(_) => Some(Http::Two),
        Protocol::Opaque(_) => None,
        Protocol::Detect { timeout, .. } => match detect_http(&mut conn, *timeout).await {
            Ok(version) => version,
            Err(error) => {
                tracing::debug!(%client, %error, "Connection closed while its protocol was detected");
                return;
            }
        },
        Protocol::Refused => {
            tracing::info!(%client, "Connection closed: the control plane refuses the target");
            count_error(worker, "unexpected");
            return;
        }
    };
    // Boxed, so that an idle connection costs what it has become, not the most that any could be.
    let ended = match version {
        None => Box::pin(tcp::forward(worker, conn, &known))
            .await
            .map_err(|error| error.to_string()),
        Some(version) => Box::pin(http::serve(worker, conn, version, known, client))
            .await
            .map_err(|error| error.to_string()),
    };
    if let Err(error) = ended {
        tracing::debug!(%client, error, "Connection closed");
    }
}

/// Reads what comes first; `None` is a protocol that we don't speak.
pub(crate) async fn detect_http(conn: &mut Conn, timeout: Duration) -> std::io::Result<Option<Http>> {
    let detecting = async {
        loop {
            if !conn.ahead().is_empty() {
                match detect::http(conn.ahead()) {
                    detect::Http::One => return Ok(Some(Http::One)),
                    detect::Http::Two => return Ok(Some(Http::Two)),
                    detect::Http::No => return Ok(None),
                    detect::Http::More => {}
                }
            }
            if conn.read_ahead().await? == 0 {
                return match conn.ahead().is_empty() {
                    true => Err(std::io::ErrorKind::UnexpectedEof.into()),
                    false => Ok(None),
                };
            }
        }
    };
    // Silence means a protocol in which the server speaks first.
    tokio::time::timeout(timeout, detecting).await.unwrap_or(Ok(None))
}

pub(crate) fn count_error(worker: &Worker, error: &str) {
    worker
        .metrics
        .counter("outbound_tcp_errors_total", Labels::new().with("error", error))
        .inc();
}
