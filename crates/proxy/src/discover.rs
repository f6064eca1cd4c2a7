//! gRPC streams become snapshots.
//!
//! Workers ask for a key and get a [`Live`] value at once, filled when the control plane answers. One task per key
//! follows its streams, reconnects with back-off and keeps the last answer while the control plane is away. Keys that
//! nobody holds any more are dropped after the idle timeout. Runs on the control thread; see `spec/proxy.md` 1.6, 5.1.

use std::collections::HashMap;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use hawser_proxy_api::{WAIT, WAITS};
use linkerd2_proxy_api::destination::destination_client::DestinationClient;
use linkerd2_proxy_api::destination::{self as dst, GetDestination};
use linkerd2_proxy_api::inbound::PortSpec;
use linkerd2_proxy_api::inbound::inbound_server_policies_client::InboundServerPoliciesClient;
use linkerd2_proxy_api::outbound::outbound_policies_client::OutboundPoliciesClient;
use linkerd2_proxy_api::outbound::{TrafficSpec, traffic_spec};
use rand::Rng as _;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status, Streaming};

use crate::config::{Config, within};
use crate::control_client::Channel;
use crate::live::Live;
use crate::snapshot::{
    self, Endpoint, Endpoints, Inbound, Outbound, PolicyAnswer, Profile, ProfileAnswer, Protocol, Target,
};

/// More keys than this at once are refused: they come from clients.
const KEYS_MAX: usize = 10_000;
const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// Between attempts to reach a control plane that is away: what it says when it comes back must be heard soon.
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// Between questions that were answered with "no".
const REFUSED_AGAIN: Duration = Duration::from_secs(10);
/// A profile that takes longer doesn't hold traffic up; it is applied when it comes.
const PROFILE_PATIENCE: Duration = Duration::from_secs(3);

/// One kind of lookup: what is known by key.
struct Cache<K, V>(Mutex<HashMap<K, Entry<V>>>);

struct Entry<V> {
    live: Arc<Live<V>>,
    used_at: Instant,
    task: Option<JoinHandle<()>>,
}

impl<K: std::hash::Hash + Eq + Clone, V> Cache<K, V> {
    fn new() -> Self {
        Self(Mutex::default())
    }

    /// The value of a key; `started` is told of new keys.
    fn get(
        &self,
        key: &K,
        new: impl FnOnce() -> Arc<Live<V>>,
        full: impl FnOnce() -> V,
        started: impl FnOnce(K),
    ) -> Arc<Live<V>> {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = entries.get(key) {
            return entry.live.clone();
        }
        if entries.len() >= KEYS_MAX {
            return Live::new(full());
        }
        let live = new();
        entries.insert(
            key.clone(),
            Entry {
                live: live.clone(),
                used_at: Instant::now(),
                task: None,
            },
        );
        started(key.clone());
        live
    }

    fn start(&self, key: &K, start: impl FnOnce(Weak<Live<V>>) -> JoinHandle<()>) {
        if let Some(entry) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get_mut(key) {
            entry.task = Some(start(Arc::downgrade(&entry.live)));
        }
    }

    fn evict(&self, now: Instant, idle: Duration, keep: impl Fn(&K) -> bool) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|key, entry| {
                if Arc::strong_count(&entry.live) > 1 || keep(key) {
                    entry.used_at = now;
                }
                let kept = now.duration_since(entry.used_at) < idle;
                if !kept && let Some(task) = &entry.task {
                    task.abort();
                }
                kept
            });
    }
}

enum Started {
    Outbound(Target),
    Endpoints(Arc<str>),
    Inbound(u16),
}

/// Keys that were asked for and are not followed yet.
pub(crate) struct Keys(mpsc::UnboundedReceiver<Started>);

/// The workers' side: asks without waiting.
#[derive(Clone)]
pub(crate) struct Discovery(Arc<Shared>);

struct Shared {
    config: Arc<Config>,
    outbound: Cache<Target, Outbound>,
    endpoints: Cache<Arc<str>, Endpoints>,
    inbound: Cache<u16, Inbound>,
    started: mpsc::UnboundedSender<Started>,
}

impl Discovery {
    /// The handle, and the keys that [`Discovery::run`] will follow.
    pub(crate) fn new(config: Arc<Config>) -> (Self, Keys) {
        // Unbounded, but not more than there are keys.
        let (started, keys) = mpsc::unbounded_channel();
        let discovery = Self(Arc::new(Shared {
            config,
            outbound: Cache::new(),
            endpoints: Cache::new(),
            inbound: Cache::new(),
            started,
        }));
        for port in discovery.0.config.inbound.ports.clone() {
            discovery.inbound(port);
        }
        (discovery, Keys(keys))
    }

    pub(crate) fn outbound(&self, target: &Target) -> Arc<Live<Outbound>> {
        let refused = || Outbound {
            protocol: Protocol::Refused,
            authority: None,
            profile: ProfileAnswer::Missing,
            breaker: None,
        };
        self.0.outbound.get(target, Live::empty, refused, |key| {
            self.start(Started::Outbound(key))
        })
    }

    /// The endpoints of `name:port`.
    pub(crate) fn endpoints(&self, path: &Arc<str>) -> Arc<Live<Endpoints>> {
        self.0
            .endpoints
            .get(path, Live::empty, Endpoints::default, |key| {
                self.start(Started::Endpoints(key))
            })
    }

    /// The policy of a port, the default until the control plane has answered.
    pub(crate) fn inbound(&self, port: u16) -> Arc<Live<Inbound>> {
        let default = || Inbound::default_for(port, &self.0.config.inbound, &self.0.config.cluster_networks);
        self.0.inbound.get(
            &port,
            || Live::new(default()),
            default,
            |key| self.start(Started::Inbound(key)),
        )
    }

    /// The control thread's side: follows every key that is asked for.
    pub(crate) async fn run(self, destination: Channel, policy: Channel, keys: Keys) {
        run(self, destination, policy, keys.0).await;
    }

    fn start(&self, started: Started) {
        // The receiver is gone only when the process ends.
        let _ = self.0.started.send(started);
    }
}

async fn run(
    discovery: Discovery,
    destination: Channel,
    policy: Channel,
    mut keys: mpsc::UnboundedReceiver<Started>,
) {
    let shared = &discovery.0;
    let config = &shared.config;
    let mut sweep = tokio::time::interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            key = keys.recv() => match key {
                None => return,
                Some(Started::Outbound(target)) => shared.outbound.start(&target, |live| {
                    tokio::spawn(outbound(config.clone(), destination.clone(), policy.clone(), target.clone(), live))
                }),
                Some(Started::Endpoints(path)) => shared.endpoints.start(&path, |live| {
                    tokio::spawn(endpoints(config.clone(), destination.clone(), path.clone(), live))
                }),
                Some(Started::Inbound(port)) => shared.inbound.start(&port, |live| {
                    tokio::spawn(inbound(config.clone(), policy.clone(), port, live))
                }),
            },
            _ = sweep.tick() => {
                let now = Instant::now();
                shared.outbound.evict(now, config.outbound.discovery_idle, |_| false);
                shared.endpoints.evict(now, config.outbound.discovery_idle, |_| false);
                shared.inbound.evict(now, config.inbound.discovery_idle, |port| config.inbound.ports.contains(port));
            }
        }
    }
}

/// Is this the pod's own address?
fn local(config: &Config) -> impl Fn(IpAddr) -> bool + '_ {
    |ip| config.inbound.ips.contains(&ip)
}

/// Grows with every failure.
struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Self(BACKOFF_MIN)
    }
}

impl Backoff {
    fn next(&mut self) -> Duration {
        let wait = self.0;
        self.0 = (wait * 2).min(BACKOFF_MAX);
        wait
    }
}

/// How a stream ended.
enum Ended {
    /// Quietly, or with an error that a new attempt may cure.
    Again(Status),
    /// The answer is that there is none.
    Final(Status),
}

/// Opens a stream again and again and hands each message on, until `message` says that nobody listens.
pub(crate) async fn follow<T, O>(
    config: &Config,
    what: &str,
    mut open: impl FnMut() -> O,
    is_final: impl Fn(Code) -> bool,
    mut message: impl FnMut(Result<T, Status>) -> bool,
) where
    O: Future<Output = Result<tonic::Response<Streaming<T>>, Status>>,
{
    let mut backoff = Backoff::default();
    let mut waits = false;
    loop {
        let mut answered = false;
        let asked_at = Instant::now();
        let first_by = config.stream_initial_timeout;
        let first_by = if waits {
            first_by.map(|limit| limit + WAIT)
        } else {
            first_by
        };
        let ended = stream(config, first_by, open(), &is_final, |update| {
            answered = true;
            message(Ok(update))
        })
        .await;
        let wait = match ended {
            None => return,
            Some(Ended::Final(status)) => {
                // Whoever can wait with its next answer until the world has changed is asked at once; but not again
                // and again if it doesn't.
                let waited = !waits || asked_at.elapsed() >= REFUSED_AGAIN;
                waits = can_wait(&status) && waited;
                if !message(Err(status)) {
                    return;
                }
                // The world may change: ask others again as well, but rarely.
                if waits { Duration::ZERO } else { REFUSED_AGAIN }
            }
            Some(Ended::Again(status)) => {
                tracing::debug!(what, code = ?status.code(), message = status.message(), "Control plane stream ended");
                if answered {
                    backoff = Backoff::default();
                }
                backoff.next()
            }
        };
        let jitter = rand::rng().random_range(0.8..1.2);
        tokio::time::sleep(wait.mul_f64(jitter)).await;
    }
}

/// Whether we were refused by somebody who can wait with the next answer until it is another.
fn can_wait(refused: &Status) -> bool {
    refused.metadata().contains_key(WAITS)
}

/// A question to which the answer may wait.
fn asked_again<T>(question: T, waits: bool) -> tonic::Request<T> {
    let mut request = tonic::Request::new(question);
    if waits {
        request
            .metadata_mut()
            .insert(WAITS, MetadataValue::from_static("true"));
    }
    request
}

/// One stream to its end; `None` if nobody listens any more.
async fn stream<T>(
    config: &Config,
    first_by: Option<Duration>,
    open: impl Future<Output = Result<tonic::Response<Streaming<T>>, Status>>,
    is_final: &impl Fn(Code) -> bool,
    mut message: impl FnMut(T) -> bool,
) -> Option<Ended> {
    let classify = |status: Status| {
        if is_final(status.code()) {
            Ended::Final(status)
        } else {
            Ended::Again(status)
        }
    };
    let patience = |limit: Option<Duration>| limit.unwrap_or(Duration::from_secs(365 * 86_400));
    let deadline = tokio::time::Instant::now() + patience(config.stream_lifetime);
    let first_by = patience(first_by);
    let mut updates = match tokio::time::timeout(first_by, open).await {
        Ok(Ok(response)) => response.into_inner(),
        Ok(Err(status)) => return Some(classify(status)),
        Err(_) => return Some(Ended::Again(Status::deadline_exceeded("no answer in time"))),
    };
    let mut wait = first_by;
    loop {
        let update = tokio::select! {
            update = tokio::time::timeout(wait, updates.message()) => update,
            () = tokio::time::sleep_until(deadline) => return Some(Ended::Again(Status::ok("lifetime over"))),
        };
        match update {
            Err(_) => return Some(Ended::Again(Status::deadline_exceeded("idle"))),
            Ok(Err(status)) => return Some(classify(status)),
            Ok(Ok(None)) => return Some(Ended::Again(Status::ok("closed"))),
            Ok(Ok(Some(update))) => {
                if !message(update) {
                    return None;
                }
            }
        }
        wait = patience(config.stream_idle_timeout);
    }
}

/// What both lookups have said so far.
#[derive(Default)]
struct Answers {
    profile: Option<(ProfileAnswer, Option<Profile>)>,
    policy: Option<PolicyAnswer>,
}

async fn outbound(
    config: Arc<Config>,
    destination: Channel,
    policy: Channel,
    target: Target,
    live: Weak<Live<Outbound>>,
) {
    let answers = Arc::new(Mutex::new(Answers::default()));
    let wants_profile = match &target {
        Target::Addr(addr) => config
            .outbound
            .profile_networks
            .iter()
            .any(|net| net.contains(&addr.ip())),
        Target::Name(name) => {
            let host = snapshot::authority(name).map(|(host, _)| host);
            host.is_some_and(|host| within(&host, &config.outbound.profile_suffixes))
        }
    };
    let publish = |change: &dyn Fn(&mut Answers)| {
        let Some(live) = live.upgrade() else { return false };
        let mut answers = answers.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut answers);
        if let (Some((answer, profile)), Some(policy)) = (&answers.profile, &answers.policy) {
            let timeout = config.outbound.detect_timeout;
            let joined = snapshot::join(
                &target,
                *answer,
                profile.as_ref(),
                policy,
                timeout,
                &local(&config),
            );
            live.set(joined);
        }
        true
    };
    let path = match &target {
        Target::Addr(addr) => addr.to_string(),
        Target::Name(name) => name.to_string(),
    };
    let profiles = async {
        if !wants_profile {
            publish(&|answers| answers.profile = Some((ProfileAnswer::Missing, None)));
            return;
        }
        let request = GetDestination {
            path: path.clone(),
            context_token: config.destination_context.clone(),
            ..Default::default()
        };
        let waits = AtomicBool::new(false);
        let open = || {
            let mut client = DestinationClient::new(destination.clone());
            let request = asked_again(request.clone(), waits.load(Relaxed));
            async move { client.get_profile(request).await }
        };
        let refused = |code| {
            matches!(
                code,
                Code::InvalidArgument | Code::FailedPrecondition | Code::NotFound | Code::PermissionDenied
            )
        };
        follow(&config, "profile", open, refused, |update| {
            waits.store(update.as_ref().is_err_and(can_wait), Relaxed);
            let profile = Profile::of_answer(update, &local(&config));
            publish(&|answers| answers.profile = Some(profile.clone()))
        })
        .await;
    };
    // Gateways must know for sure; a pod's own traffic isn't held up by a slow profile.
    let impatience = async {
        tokio::time::sleep(PROFILE_PATIENCE).await;
        if matches!(target, Target::Addr(_)) {
            publish(&|answers| {
                answers.profile = answers.profile.take().or(Some((ProfileAnswer::Missing, None)))
            });
        }
    };
    let policies = async {
        let spec = TrafficSpec {
            source_workload: config.policy_workload.clone(),
            target: Some(match &target {
                Target::Addr(addr) => traffic_spec::Target::Addr((*addr).into()),
                Target::Name(name) => traffic_spec::Target::Authority(name.to_string()),
            }),
        };
        let waits = AtomicBool::new(false);
        let open = || {
            let mut client = OutboundPoliciesClient::new(policy.clone());
            let request = asked_again(spec.clone(), waits.load(Relaxed));
            async move { client.watch(request).await }
        };
        let refused = |code| {
            matches!(
                code,
                Code::NotFound | Code::Unimplemented | Code::InvalidArgument | Code::FailedPrecondition
            )
        };
        follow(&config, "outbound policy", open, refused, |update| {
            waits.store(update.as_ref().is_err_and(can_wait), Relaxed);
            let answer = PolicyAnswer::of_answer(update);
            publish(&|answers| answers.policy = Some(answer.clone()))
        })
        .await;
    };
    tokio::join!(profiles, policies, impatience);
}

async fn endpoints(config: Arc<Config>, destination: Channel, path: Arc<str>, live: Weak<Live<Endpoints>>) {
    let request = GetDestination {
        scheme: "k8s".into(),
        path: path.to_string(),
        context_token: config.destination_context.clone(),
    };
    // A new stream is a full answer: what it doesn't repeat in its first message is gone.
    let fresh = AtomicBool::new(true);
    let open = || {
        fresh.store(true, Relaxed);
        let (mut client, request) = (DestinationClient::new(destination.clone()), request.clone());
        async move { client.get(request).await }
    };
    let is_final = |code| {
        matches!(
            code,
            Code::InvalidArgument | Code::NotFound | Code::FailedPrecondition
        )
    };
    follow(&config, "endpoints", open, is_final, |update| {
        let Some(live) = live.upgrade() else { return false };
        let mut all = match live.get() {
            Some(known) if !fresh.swap(false, Relaxed) => (*known).clone(),
            _ => Endpoints::default(),
        };
        match update {
            Ok(update) => apply(&mut all, update, &local(&config)),
            Err(_) => all = Endpoints::default(),
        }
        live.set(all);
        true
    })
    .await;
}

fn apply(endpoints: &mut Endpoints, update: dst::Update, local: &dyn Fn(IpAddr) -> bool) {
    match update.update {
        Some(dst::update::Update::Add(set)) => {
            for addr in set.addrs {
                if let Some(endpoint) = Endpoint::from_proto(addr, &set.metric_labels, local) {
                    endpoints.all.insert(endpoint.addr, Arc::new(endpoint));
                }
            }
        }
        Some(dst::update::Update::Remove(set)) => {
            for addr in set
                .addrs
                .into_iter()
                .filter_map(|addr| SocketAddr::try_from(addr).ok())
            {
                endpoints.all.remove(&addr);
            }
        }
        Some(dst::update::Update::NoEndpoints(_)) => endpoints.all.clear(),
        None => {}
    }
}

async fn inbound(config: Arc<Config>, policy: Channel, port: u16, live: Weak<Live<Inbound>>) {
    let spec = PortSpec {
        workload: config.policy_workload.clone(),
        port: u32::from(port),
    };
    let open = || {
        let (mut client, spec) = (InboundServerPoliciesClient::new(policy.clone()), spec.clone());
        async move { client.watch_port(spec).await }
    };
    follow(
        &config,
        "inbound policy",
        open,
        |_| false,
        |update| {
            let Some(live) = live.upgrade() else { return false };
            if let Ok(server) = update {
                live.set(Inbound::from_proto(server));
            }
            true
        },
    )
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(addrs: &[&str]) -> dst::Update {
        let addrs = addrs.iter().map(|addr| dst::WeightedAddr {
            addr: Some(addr.parse::<SocketAddr>().unwrap().into()),
            ..Default::default()
        });
        dst::Update {
            update: Some(dst::update::Update::Add(dst::WeightedAddrSet {
                addrs: addrs.collect(),
                ..Default::default()
            })),
        }
    }

    #[test]
    fn a_control_plane_that_was_away_for_long_is_still_heard_within_two_seconds() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..1_000).map(|_| backoff.next()).collect();
        assert_eq!(waits[..4], [100, 200, 400, 800].map(Duration::from_millis));
        // With its jitter, and time to connect.
        assert!(
            waits
                .iter()
                .all(|wait| wait.mul_f64(1.2) < Duration::from_millis(1_500))
        );
    }

    #[test]
    fn endpoints_are_added_removed_and_cleared() {
        let mut endpoints = Endpoints::default();
        apply(&mut endpoints, add(&["10.0.0.1:80", "10.0.0.2:80"]), &|_| false);
        let gone = dst::AddrSet {
            addrs: vec!["10.0.0.1:80".parse::<SocketAddr>().unwrap().into()],
        };
        apply(
            &mut endpoints,
            dst::Update {
                update: Some(dst::update::Update::Remove(gone)),
            },
            &|_| false,
        );
        assert_eq!(
            endpoints.all.keys().map(ToString::to_string).collect::<Vec<_>>(),
            ["10.0.0.2:80"]
        );
        let none = dst::NoEndpoints { exists: true };
        apply(
            &mut endpoints,
            dst::Update {
                update: Some(dst::update::Update::NoEndpoints(none)),
            },
            &|_| false,
        );
        assert!(endpoints.all.is_empty());
    }
}
