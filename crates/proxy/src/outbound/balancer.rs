//! Chooses an endpoint and gets a way to reach it, or says why there is none.
//!
//! No queue and no task: a request that finds nobody ready waits here, until an endpoint appears or may be tried again,
//! or until fail-fast. Endpoints come from the live snapshot; those that stay keep their connections and loads.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::SeedableRng as _;
use rand::rngs::SmallRng;

use crate::answer::Why;
use crate::balance;
use crate::live::Live;
use crate::snapshot::{Backend, Endpoint, Endpoints, Outbound};
use crate::worker::Worker;

use super::peer::{ConnectError, Peer, Side};

enum Source {
    Discovered(Arc<Live<Endpoints>>),
    Fixed,
}

pub(crate) struct Balancer {
    source: Source,
    authority: Arc<str>,
    peers: RefCell<Vec<Rc<Peer>>>,
    /// The snapshot that `peers` are from; holding it keeps its address from being reused.
    seen: RefCell<Option<Arc<Endpoints>>>,
    uniform: Cell<bool>,
    failing: Cell<bool>,
    waiting: Cell<usize>,
    rng: RefCell<SmallRng>,
    pub(crate) used_at: Cell<Instant>,
}

/// An only endpoint is tried again this often while somebody wants it.
const ALONE_BACKOFF_MAX: Duration = Duration::from_millis(500);

/// Where a waiting request would go if it came now: it follows when that is no longer here.
pub(crate) struct Course<'a> {
    pub(crate) policy: &'a Live<Outbound>,
    pub(crate) leads_elsewhere: &'a dyn Fn(&Outbound) -> bool,
}

impl Course<'_> {
    pub(crate) fn changed(&self) -> bool {
        self.policy.load().as_deref().is_some_and(self.leads_elsewhere)
    }

    async fn changes(&self) {
        let mut news = self.policy.changes();
        while !self.changed() {
            // The sender lives as long as the policy.
            let _ = news.changed().await;
        }
    }
}

/// What to do when nobody is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patience {
    /// Wait until fail-fast.
    Wait(Duration),
    /// Somebody else can take it.
    None,
}

impl Balancer {
    pub(crate) fn new(worker: &Worker, backend: &Backend, authority: Option<&Arc<str>>) -> Option<Rc<Self>> {
        let (source, authority, peers) = match backend {
            Backend::Balance(path) => (
                Source::Discovered(worker.shared.discovery.endpoints(path)),
                path.clone(),
                Vec::new(),
            ),
            Backend::Forward(endpoint) => {
                let authority = authority
                    .cloned()
                    .unwrap_or_else(|| endpoint.addr.to_string().into());
                let peer = Peer::new(Side::Outbound, endpoint.clone(), authority.clone());
                (Source::Fixed, authority, vec![peer])
            }
            Backend::Filtered(_) | Backend::Failing { .. } | Backend::Unusable => return None,
        };
        Some(Rc::new(Self {
            source,
            authority,
            peers: RefCell::new(peers),
            seen: RefCell::default(),
            uniform: Cell::new(true),
            failing: Cell::new(false),
            waiting: Cell::new(0),
            rng: RefCell::new(SmallRng::from_rng(&mut rand::rng())),
            used_at: Cell::new(Instant::now()),
        }))
    }

    /// Takes over what discovery says now.
    fn refresh(&self) {
        let Source::Discovered(live) = &self.source else {
            return;
        };
        let current = live.load();
        let Some(current) = &*current else { return };
        if self
            .seen
            .borrow()
            .as_ref()
            .is_some_and(|seen| Arc::ptr_eq(seen, current))
        {
            return;
        }
        let known = self.peers.take();
        let keep = |endpoint: &Arc<Endpoint>| known.iter().find(|peer| peer.endpoint == *endpoint).cloned();
        let peers: Vec<_> = current
            .all
            .values()
            .map(|endpoint| {
                keep(endpoint)
                    .unwrap_or_else(|| Peer::new(Side::Outbound, endpoint.clone(), self.authority.clone()))
            })
            .collect();
        self.uniform.set(
            peers
                .windows(2)
                .all(|pair| pair[0].endpoint.weight == pair[1].endpoint.weight),
        );
        self.peers.replace(peers);
        self.seen.replace(Some(current.clone()));
    }

    /// Has discovery answered?
    fn known(&self) -> bool {
        match &self.source {
            Source::Discovered(live) => live.load().is_some(),
            Source::Fixed => true,
        }
    }

    /// Until discovery has answered, or not even then.
    pub(crate) async fn first(&self, within: Duration) {
        if let Source::Discovered(live) = &self.source
            && live.load().is_none()
        {
            let _ = tokio::time::timeout(within, live.first()).await;
        }
    }

    /// Might an endpoint take something now?
    pub(crate) fn available(&self, now: Instant) -> bool {
        self.refresh();
        !self.known()
            || self
                .peers
                .borrow()
                .iter()
                .any(|peer| peer.blocked_until(now).is_none())
    }

    fn pick(&self, now: Instant, tried: &[SocketAddr]) -> Option<Rc<Peer>> {
        let peers = self.peers.borrow();
        let cost = |peer: &Rc<Peer>| peer.load.cost(now);
        let uniform = self.uniform.get();
        let weight = |peer: &Rc<Peer>| if uniform { 1 } else { peer.endpoint.weight };
        let usable =
            |peer: &Rc<Peer>| peer.blocked_until(now).is_none() && !tried.contains(&peer.endpoint.addr);
        let mut rng = self.rng.borrow_mut();
        if peers.iter().all(usable) {
            return balance::choose(&peers, weight, cost, &mut *rng).map(|i| peers[i].clone());
        }
        let usable: Vec<_> = peers.iter().filter(|peer| usable(peer)).cloned().collect();
        balance::choose(&usable, weight, cost, &mut *rng).map(|i| usable[i].clone())
    }

    /// HTTP/1 doesn't wait for an endpoint that failed: with nobody better, it is tried again now.
    fn least_blocked(
        &self,
        now: Instant,
        tried: &[SocketAddr],
        at_once: impl Fn(&Peer) -> bool,
    ) -> Option<Rc<Peer>> {
        let peers = self.peers.borrow();
        let untried = peers
            .iter()
            .filter(|peer| !tried.contains(&peer.endpoint.addr) && at_once(peer) && !peer.ejected(now));
        untried.min_by_key(|peer| peer.blocked_until(now)).cloned()
    }

    /// Picks endpoints and connects until one works. What fails is left alone for a while.
    ///
    /// At most `queue` requests wait at a time, and fail fast when their `course` leads elsewhere. `fails_at_once`: with
    /// every endpoint refusing, say so instead of waiting for fail-fast.
    pub(crate) async fn acquire<T, C, Fut>(
        &self,
        worker: &Worker,
        patience: Patience,
        queue: usize,
        course: Option<&Course<'_>>,
        fails_at_once: impl Fn(&Peer) -> bool,
        connect: C,
    ) -> Result<(Rc<Peer>, T), Why>
    where
        C: Fn(Rc<Peer>) -> Fut,
        Fut: Future<Output = Result<T, ConnectError>>,
    {
        let started_at = Instant::now();
        self.used_at.set(started_at);
        let deadline = match patience {
            Patience::Wait(failfast) => started_at + failfast,
            Patience::None => started_at,
        };
        let mut tried: Vec<SocketAddr> = Vec::new();
        let mut failure = None;
        let mut now = started_at;
        loop {
            self.refresh();
            if let Some(peer) = self
                .pick(now, &tried)
                .or_else(|| self.least_blocked(now, &tried, &fails_at_once))
            {
                match connect(peer.clone()).await {
                    Ok(connected) => {
                        self.failing.set(false);
                        peer.succeeded();
                        return Ok((peer, connected));
                    }
                    Err(error) => {
                        tracing::info!(endpoint = %peer.endpoint.addr, error = error.as_str(), "Failed to connect");
                        let (min, max) = worker.shared.config.outbound.backoff;
                        // With nobody else to send to, to spare it is to fail requests.
                        let alone = self.peers.borrow().len() == 1;
                        let max = if alone {
                            max.min(ALONE_BACKOFF_MAX).max(min)
                        } else {
                            max
                        };
                        peer.failed((min, max));
                        tried.push(peer.endpoint.addr);
                        if fails_at_once(&peer) {
                            failure = Some(error);
                        }
                        now = Instant::now();
                        continue;
                    }
                }
            }
            match failure {
                Some(ConnectError::Timeout) => return Err(Why::ConnectTimeout),
                Some(error) => return Err(Why::BadGateway(error.as_str())),
                None => {}
            }
            if self.failing.get() && tried.is_empty() {
                return Err(Why::Overloaded);
            }
            if now >= deadline {
                self.failing.set(true);
                return Err(Why::FailFast);
            }
            if course.is_some_and(Course::changed) {
                return Err(Why::FailFast);
            }
            if self.waiting.get() >= queue {
                return Err(Why::Overloaded);
            }
            let waiting = Waiting::new(&self.waiting);
            self.something_new(now, deadline, course).await;
            drop(waiting);
            tried.clear();
            now = Instant::now();
        }
    }

    /// Until endpoints change, one may be tried again, the course leads elsewhere, or the deadline.
    async fn something_new(&self, now: Instant, deadline: Instant, course: Option<&Course<'_>>) {
        let retry = self
            .peers
            .borrow()
            .iter()
            .filter_map(|peer| peer.blocked_until(now))
            .min();
        let until = retry.map_or(deadline, |retry| retry.min(deadline));
        let timer = tokio::time::sleep_until(until.into());
        match &self.source {
            Source::Fixed => timer.await,
            Source::Discovered(live) => {
                let mut changes = live.changes();
                let changed = async {
                    let current = live.get();
                    let same = match (&current, &*self.seen.borrow()) {
                        (Some(current), Some(seen)) => Arc::ptr_eq(current, seen),
                        (current, seen) => current.is_none() && seen.is_none(),
                    };
                    if same {
                        let _ = changes.changed().await;
                    }
                };
                let led_elsewhere = async {
                    match course {
                        Some(course) => course.changes().await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    () = timer => {}
                    () = changed => {}
                    () = led_elsewhere => {}
                }
            }
        }
    }

    pub(crate) fn evict(&self, now: Instant, idle: Duration) {
        for peer in self.peers.borrow().iter() {
            peer.evict(now, idle);
        }
    }

    pub(crate) fn busy(&self) -> bool {
        self.peers.borrow().iter().any(|peer| peer.load.pending() > 0)
    }
}

/// Counts one that waits.
struct Waiting<'a>(&'a Cell<usize>);

impl<'a> Waiting<'a> {
    fn new(count: &'a Cell<usize>) -> Self {
        count.set(count.get() + 1);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

use std::future::Future;
