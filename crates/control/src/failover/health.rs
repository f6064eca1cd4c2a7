//! What clients' proxies measured of the services behind splits.
//!
//! [`Ledger`] is the bookkeeping, and pure: cumulative counters of many proxies become requests, failures and a latency
//! per service over any window. [`Monitor`] reads the proxies' admin ports round by round, only while somebody wants to
//! know, and never spends more than a tenth of the time on it. What is good enough is not decided here.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, stream};
use hawser_core::failover::Measured;
use hawser_runtime::exposition::{self, Histogram, increase};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::settings::WINDOW_MAX;
use crate::keys;
use crate::observe::{Bell, Key, Limit, Observed, Select};

/// Proxies that are asked at the same time.
const CONCURRENCY: usize = 32;
/// A proxy that does not answer in this time is asked again in the next round.
const DEADLINE: Duration = Duration::from_secs(2);
const EXPOSITION_BYTES_MAX: usize = 8 << 20;
const CLIENTS_MAX: Limit = Limit(20_000);
/// A round that took long is followed by a pause this many times as long.
const REST: u32 = 9;
const ADMIN_PORT: u16 = 4191;
const ADMIN_PORT_NAME: &str = "linkerd-admin";

/// Counters of one service.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Counters {
    requests: f64,
    failures: f64,
    latency: Histogram,
}

/// Counters by service.
pub(crate) type Counts = BTreeMap<Key, Counters>;

impl Counters {
    fn since(&self, before: &Self) -> Self {
        Self {
            requests: increase(before.requests, self.requests),
            failures: increase(before.failures, self.failures),
            latency: self.latency.since(&before.latency),
        }
    }

    fn merge(&mut self, other: &Self) {
        self.requests += other.requests;
        self.failures += other.failures;
        self.latency.merge(&other.latency);
    }
}

/// What one proxy counted as a client of the wanted services. Lines that are no samples are skipped.
pub(crate) fn read(exposition: &[u8], wanted: &BTreeSet<Key>) -> Counts {
    let mut counts = Counts::new();
    for sample in exposition::samples(exposition).flatten() {
        let is_latency = match sample.name {
            "response_total" => false,
            "response_latency_ms_bucket" => true,
            _ => continue,
        };
        let label = |name: &str| sample.labels.get(name);
        if label("direction").as_deref() != Some("outbound") {
            continue;
        }
        let (Some(namespace), Some(service)) = (label("dst_namespace"), label("dst_service")) else {
            continue;
        };
        let key = Key::new(namespace, service);
        // Prometheus' numbers may be anything, ours are counts.
        if !wanted.contains(&key) || !sample.value.is_finite() || sample.value < 0.0 {
            continue;
        }
        let counters = counts.entry(key).or_default();
        if is_latency {
            if let Some(le) = label("le").and_then(|le| le.parse().ok()) {
                counters.latency.add(le, sample.value);
            }
        } else {
            counters.requests += sample.value;
            if label("classification").as_deref() != Some("success") {
                counters.failures += sample.value;
            }
        }
    }
    counts
}

/// Counts of all rounds so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger {
    /// What each client counted when it last answered, by its uid.
    clients: BTreeMap<String, Counts>,
    /// Sums over all clients since a service is looked at, with the time of the round.
    services: BTreeMap<Key, VecDeque<(Instant, Counters)>>,
}

impl Ledger {
    /// Takes in what the clients that answered counted.
    pub(crate) fn absorb(
        &mut self,
        answers: Vec<(String, Counts)>,
        is_alive: impl Fn(&str) -> bool,
        wanted: &BTreeSet<Key>,
        now: Instant,
    ) {
        self.services.retain(|service, _| wanted.contains(service));
        for service in wanted {
            let rounds = self.services.entry(service.clone()).or_default();
            let mut sum = Counters::default();
            if let Some((_, before)) = rounds.back() {
                sum.clone_from(before);
                let nothing = Counters::default();
                for (client, counts) in &answers {
                    // Whatever a new client counted may be long ago.
                    let Some(known) = self.clients.get(client) else {
                        continue;
                    };
                    if let Some(counted) = counts.get(service) {
                        sum.merge(&counted.since(known.get(service).unwrap_or(&nothing)));
                    }
                }
            }
            rounds.push_back((now, sum));
            // The newest of those that are too old is where the longest window begins.
            while rounds
                .get(1)
                .is_some_and(|(at, _)| now.duration_since(*at) > WINDOW_MAX)
            {
                rounds.pop_front();
            }
        }
        self.clients.extend(answers);
        self.clients.retain(|client, _| is_alive(client));
    }

    /// What was measured of a service lately.
    pub(crate) fn measured(
        &self,
        service: &Key,
        window: Duration,
        quantile: f64,
        now: Instant,
    ) -> Option<Measured> {
        let rounds = self.services.get(service)?;
        let (_, last) = rounds.back()?;
        let is_old = |(at, _): &&(Instant, Counters)| now.duration_since(*at) >= window;
        let (_, first) = rounds.iter().rev().find(is_old).or_else(|| rounds.front())?;
        let counted = last.since(first);
        let milliseconds = counted.latency.quantile(quantile);
        Some(Measured {
            // Whole by nature; conversions saturate.
            requests: counted.requests.round() as u64,
            failures: counted.failures.round() as u64,
            latency: milliseconds.and_then(|ms| Duration::try_from_secs_f64(ms / 1_000.0).ok()),
        })
    }
}

/// A meshed pod, which may be a client of anything.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Proxy {
    uid: String,
    admin: SocketAddr,
}

fn reduce(pod: Pod) -> Option<Proxy> {
    let status = pod.status?;
    if status.phase.as_deref() != Some("Running") {
        return None;
    }
    let ip: IpAddr = status.pod_ip?.parse().ok()?;
    let spec = pod.spec?;
    let containers = spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten());
    let mut ports = containers.flat_map(|container| container.ports.iter().flatten());
    let port = ports
        .find(|port| port.name.as_deref() == Some(ADMIN_PORT_NAME))
        .and_then(|port| u16::try_from(port.container_port).ok());
    Some(Proxy {
        uid: pod.metadata.uid?,
        admin: SocketAddr::new(ip, port.unwrap_or(ADMIN_PORT)),
    })
}

/// Reads the proxies; dropping it ends that.
#[derive(Debug)]
pub(crate) struct Monitor {
    wanted: watch::Sender<BTreeSet<Key>>,
    ledger: watch::Receiver<Arc<Ledger>>,
    _task: AbortOnDropHandle<()>,
}

impl Monitor {
    /// `bell` rings after each round.
    pub(crate) fn start(client: Client, interval: Duration, bell: Bell) -> Self {
        let (wanted, wanted_now) = watch::channel(BTreeSet::new());
        let (publish, ledger) = watch::channel(Arc::default());
        let task = tokio::spawn(monitor(client, interval, bell, wanted_now, publish));
        Self {
            wanted,
            ledger,
            _task: AbortOnDropHandle::new(task),
        }
    }

    /// From now on these services are looked at; with none, nothing is done.
    pub(crate) fn want(&self, services: BTreeSet<Key>) {
        self.wanted.send_if_modified(|wanted| {
            let is_new = *wanted != services;
            *wanted = services;
            is_new
        });
    }

    pub(crate) fn ledger(&self) -> Arc<Ledger> {
        Arc::clone(&self.ledger.borrow())
    }
}

async fn monitor(
    client: Client,
    interval: Duration,
    bell: Bell,
    mut wanted: watch::Receiver<BTreeSet<Key>>,
    publish: watch::Sender<Arc<Ledger>>,
) {
    loop {
        // Ends with the controller.
        if wanted.wait_for(|wanted| !wanted.is_empty()).await.is_err() {
            return;
        }
        let proxies = Observed::start(
            Api::<Pod>::all(client.clone()),
            Select::labels(keys::CONTROL_PLANE_NS),
            CLIENTS_MAX,
            Bell::default(),
            reduce,
        );
        let mut ledger = Ledger::default();
        loop {
            let services = wanted.borrow_and_update().clone();
            if services.is_empty() {
                break;
            }
            let began = Instant::now();
            if let Some(proxies) = proxies.view() {
                let uids: BTreeSet<&str> = proxies.values().map(|proxy| proxy.uid.as_str()).collect();
                let asked: Vec<Proxy> = proxies.values().map(|proxy| Proxy::clone(proxy)).collect();
                let answers = ask(asked, &services).await;
                ledger.absorb(answers, |uid| uids.contains(uid), &services, Instant::now());
                publish.send_replace(Arc::new(ledger.clone()));
                bell.ring();
            }
            tokio::time::sleep(interval.max(began.elapsed() * REST)).await;
        }
    }
}

/// Asks many proxies; those that don't answer are left out.
async fn ask(proxies: Vec<Proxy>, services: &BTreeSet<Key>) -> Vec<(String, Counts)> {
    let answers = stream::iter(proxies).map(|proxy: Proxy| async move {
        match tokio::time::timeout(DEADLINE, metrics(proxy.admin)).await {
            Ok(Ok(exposition)) => Some((proxy.uid, read(&exposition, services))),
            Ok(Err(error)) => {
                tracing::debug!(proxy = %proxy.admin, %error, "metrics not read");
                None
            }
            Err(_) => {
                tracing::debug!(proxy = %proxy.admin, "metrics not read: no answer");
                None
            }
        }
    });
    let answers = answers.buffer_unordered(CONCURRENCY);
    answers.filter_map(std::future::ready).collect().await
}

#[derive(Debug, thiserror::Error)]
enum ScrapeError {
    #[error("connecting")]
    Connect(#[from] std::io::Error),
    #[error("asking")]
    Http(#[from] hyper::Error),
    #[error("the answer is {0}")]
    Status(http::StatusCode),
    #[error("reading the answer: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
    #[error("the address makes no request")]
    Request(#[from] http::Error),
}

async fn metrics(admin: SocketAddr) -> Result<Bytes, ScrapeError> {
    let socket = TcpStream::connect(admin).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(socket)).await?;
    let request = http::Request::get("/metrics")
        .header(http::header::HOST, admin.to_string())
        .header(http::header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())?;
    let answer = async {
        let response = sender.send_request(request).await?;
        if response.status() != http::StatusCode::OK {
            return Err(ScrapeError::Status(response.status()));
        }
        let body = Limited::new(response.into_body(), EXPOSITION_BYTES_MAX)
            .collect()
            .await;
        Ok(body.map_err(ScrapeError::Body)?.to_bytes())
    };
    // The connection must be driven until the answer is there; how it ends doesn't matter then.
    let mut connection = std::pin::pin!(connection);
    let mut answer = std::pin::pin!(answer);
    tokio::select! {
        answer = &mut answer => answer,
        _ = &mut connection => answer.await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn web() -> Key {
        Key::new("test", "web")
    }

    fn exposition(good: u32, bad: u32, slow: u32) -> String {
        let labels = "direction=\"outbound\",dst_namespace=\"test\",dst_service=\"web\"";
        let all = good + bad;
        format!(
            "# TYPE response_total counter\n\
             response_total{{{labels},status_code=\"200\",classification=\"success\"}} {good}\n\
             response_total{{{labels},status_code=\"500\",classification=\"failure\"}} {bad}\n\
             response_total{{direction=\"inbound\",dst_namespace=\"test\",dst_service=\"web\"}} 1000\n\
             response_total{{direction=\"outbound\",dst_namespace=\"other\",dst_service=\"web\"}} 1000\n\
             garbage {{\n\
             response_latency_ms_bucket{{{labels},status_code=\"200\",le=\"100\"}} {}\n\
             response_latency_ms_bucket{{{labels},status_code=\"200\",le=\"1000\"}} {all}\n\
             response_latency_ms_bucket{{{labels},status_code=\"200\",le=\"+Inf\"}} {all}\n",
            all - slow
        )
    }

    /// Rounds of one second; each has what the proxies answer: `name good bad slow`.
    fn measure(rounds: &[&[(&str, u32, u32, u32)]], window: u64) -> Option<Measured> {
        let start = Instant::now();
        let wanted = BTreeSet::from([web()]);
        let (mut ledger, mut now) = (Ledger::default(), start);
        for (round, answers) in rounds.iter().enumerate() {
            now = start + Duration::from_secs(round as u64);
            let answers = answers.iter().map(|(name, good, bad, slow)| {
                let counts = read(exposition(*good, *bad, *slow).as_bytes(), &wanted);
                ((*name).to_owned(), counts)
            });
            ledger.absorb(answers.collect(), |_| true, &wanted, now);
        }
        ledger.measured(&web(), Duration::from_secs(window), 0.5, now)
    }

    fn counts(measured: Option<Measured>) -> Option<(u64, u64)> {
        measured.map(|measured| (measured.requests, measured.failures))
    }

    #[test]
    fn what_was_counted_before_we_looked_says_nothing() {
        assert_eq!(counts(measure(&[&[("a", 900, 100, 0)]], 10)), Some((0, 0)));
        let late = measure(
            &[&[("a", 900, 100, 0)], &[("a", 901, 100, 0), ("b", 900, 100, 0)]],
            10,
        );
        assert_eq!(counts(late), Some((1, 0)));
    }

    #[test]
    fn clients_are_summed_over_the_window_and_no_longer() {
        let rounds: [&[_]; 4] = [
            &[("a", 0, 0, 0), ("b", 0, 0, 0)],
            &[("a", 10, 5, 0), ("b", 10, 0, 0)],
            &[("a", 20, 5, 0), ("b", 20, 0, 0)],
            &[("a", 30, 5, 0), ("b", 30, 1, 0)],
        ];
        assert_eq!(counts(measure(&rounds, 10)), Some((66, 6)));
        assert_eq!(counts(measure(&rounds, 2)), Some((41, 1)));
    }

    #[test]
    fn a_client_that_was_silent_or_restarted_is_counted_right() {
        let silent: [&[_]; 3] = [&[("a", 10, 0, 0)], &[], &[("a", 30, 2, 0)]];
        assert_eq!(counts(measure(&silent, 10)), Some((22, 2)));
        let restarted: [&[_]; 2] = [&[("a", 10, 10, 0)], &[("a", 3, 1, 0)]];
        assert_eq!(counts(measure(&restarted, 10)), Some((4, 1)));
    }

    #[test]
    fn latency_is_that_of_the_window() {
        let quick: [&[_]; 2] = [&[("a", 1000, 0, 1000)], &[("a", 1100, 0, 1000)]];
        let slow: [&[_]; 2] = [&[("a", 1000, 0, 0)], &[("a", 1100, 0, 100)]];
        let latency = |rounds: [&[_]; 2]| measure(&rounds, 10).and_then(|measured| measured.latency);
        assert_eq!(latency(quick), Some(Duration::from_millis(50)));
        assert_eq!(latency(slow), Some(Duration::from_millis(550)));
    }

    #[test]
    fn books_are_closed_for_services_that_nobody_wants_and_clients_that_are_gone() {
        let now = Instant::now();
        let wanted = BTreeSet::from([web()]);
        let mut ledger = Ledger::default();
        let counts = read(exposition(1, 0, 0).as_bytes(), &wanted);
        ledger.absorb(vec![("a".into(), counts)], |_| true, &wanted, now);
        ledger.absorb(vec![], |_| false, &BTreeSet::new(), now);
        assert_eq!((ledger.clients.len(), ledger.services.len()), (0, 0));
    }

    #[test]
    fn the_oldest_rounds_are_forgotten() {
        let start = Instant::now();
        let wanted = BTreeSet::from([web()]);
        let mut ledger = Ledger::default();
        for round in 0..3_000 {
            let now = start + Duration::from_secs(round);
            ledger.absorb(vec![], |_| true, &wanted, now);
        }
        let rounds = ledger.services[&web()].len() as u64;
        assert!(rounds <= WINDOW_MAX.as_secs() + 2, "{rounds}");
    }

    proptest! {
        #[test]
        fn any_exposition_is_read(text in "(?s).{0,300}") {
            read(text.as_bytes(), &BTreeSet::from([web()]));
        }
    }
}
