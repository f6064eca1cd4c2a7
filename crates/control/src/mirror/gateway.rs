//! The gateway of one Link, followed: where its names lead, and whether it lives.
//!
//! Names are resolved again every minute, every few seconds while the gateway is dead (it may have moved), and while
//! they fail with growing pauses; the last good answer is kept in the meantime. Dropping a [`Gateway`] stops both tasks.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hawser_crd::link::{GatewaySpec, Probe};
use hawser_runtime::Metrics;
use tokio_util::task::AbortOnDropHandle;

use super::probe::{self, Pace};
use super::snapshot::Addresses;
use crate::observe::Bell;

const REFRESH: Duration = Duration::from_secs(60);
const REFRESH_DEAD: Duration = Duration::from_secs(5);
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// What distinguishes one gateway from another; when it changes, the old one is no longer followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GatewayKey {
    pub cluster: String,
    pub spec: GatewaySpec,
    pub probe: Option<Probe>,
    pub probe_host: Option<String>,
}

#[derive(Debug)]
pub(crate) struct Gateway {
    pub key: GatewayKey,
    addresses: Arc<Mutex<Addresses>>,
    is_dead: Arc<AtomicBool>,
    metrics: Metrics,
    _tasks: Vec<AbortOnDropHandle<()>>,
}

impl Gateway {
    pub(crate) fn follow(key: GatewayKey, metrics: Metrics, bell: Bell) -> Self {
        let addresses = Arc::new(Mutex::new(literal(&key.spec.hosts)));
        let is_dead = Arc::new(AtomicBool::new(false));
        let mut tasks = Vec::new();
        if !matches!(*lock(&addresses), Addresses::Resolved(_)) {
            let hosts: Arc<[String]> = key.spec.hosts.as_slice().into();
            let lookup = move || {
                let hosts = hosts.clone();
                async move { lookup(&hosts).await }
            };
            let refresh = resolve(lookup, addresses.clone(), is_dead.clone(), bell.clone());
            tasks.push(tokio::spawn(refresh));
        }
        let labels = [("target_cluster_name", key.cluster.as_str())];
        let enabled = match (&key.probe, &key.probe_host) {
            (Some(probe), Some(host)) => {
                let (host, port, path) = (host.clone(), probe.port, probe.path.clone());
                let attempt = async move || probe::get(&host, port, &path).await;
                let run = probe::run(
                    key.cluster.clone(),
                    Pace::of(probe),
                    attempt,
                    is_dead.clone(),
                    metrics.clone(),
                    bell,
                );
                tasks.push(tokio::spawn(run));
                1.0
            }
            _ => 0.0,
        };
        metrics.set(
            "gateway_enabled",
            "Whether the gateway is probed",
            &labels,
            enabled,
        );
        let tasks = tasks.into_iter().map(AbortOnDropHandle::new).collect();
        Self {
            key,
            addresses,
            is_dead,
            metrics,
            _tasks: tasks,
        }
    }

    pub(crate) fn addresses(&self) -> Addresses {
        lock(&self.addresses).clone()
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.is_dead.load(Ordering::Acquire)
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let label = ("target_cluster_name", self.key.cluster.as_str());
        for name in [
            "gateway_enabled",
            "gateway_alive",
            "gateway_latency",
            "gateway_probe_latency_ms",
            probe::LATENCY_METRIC,
            probe::FAILURE_METRIC,
        ] {
            self.metrics.forget(name, label);
        }
    }
}

fn lock(addresses: &Mutex<Addresses>) -> std::sync::MutexGuard<'_, Addresses> {
    addresses.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Addresses that need no resolution: all hosts are IP addresses.
fn literal(hosts: &[String]) -> Addresses {
    let ips: Option<Vec<IpAddr>> = hosts.iter().map(|host| host.parse().ok()).collect();
    ips.map_or(Addresses::Unknown, sorted)
}

/// Sorted as text, which is the order that users know from the original.
fn sorted(ips: Vec<IpAddr>) -> Addresses {
    let ips: BTreeMap<String, IpAddr> = ips.into_iter().map(|ip| (ip.to_string(), ip)).collect();
    match ips.is_empty() {
        true => Addresses::Unknown,
        false => Addresses::Resolved(ips.into_values().collect()),
    }
}

/// Looks up for ever; the bell rings whenever the answer is another.
async fn resolve<F: Future<Output = Addresses>>(
    lookup: impl Fn() -> F,
    addresses: Arc<Mutex<Addresses>>,
    is_dead: Arc<AtomicBool>,
    bell: Bell,
) {
    let mut retry = RETRY_MIN;
    loop {
        let found = lookup().await;
        let failed = matches!(found, Addresses::Failed(_));
        {
            let mut known = lock(&addresses);
            // One failed look-up is no reason to forget where the gateway is.
            if !(failed && matches!(*known, Addresses::Resolved(_))) && *known != found {
                *known = found;
                bell.ring();
            }
        }
        if failed {
            tokio::time::sleep(retry).await;
            retry = (retry * 2).min(RETRY_MAX);
        } else {
            retry = RETRY_MIN;
            let mut slept = Duration::ZERO;
            while slept < REFRESH && (slept.is_zero() || !is_dead.load(Ordering::Acquire)) {
                tokio::time::sleep(REFRESH_DEAD).await;
                slept += REFRESH_DEAD;
            }
        }
    }
}

/// All addresses of all hosts; one host that resolves is enough.
async fn lookup(hosts: &[String]) -> Addresses {
    let (mut ips, mut failures) = (Vec::new(), Vec::new());
    for host in hosts {
        if let Ok(ip) = host.parse() {
            ips.push(ip);
            continue;
        }
        match tokio::time::timeout(LOOKUP_TIMEOUT, tokio::net::lookup_host((host.as_str(), 0))).await {
            Ok(Ok(found)) => ips.extend(found.map(|address| address.ip())),
            Ok(Err(error)) => failures.push(format!("{host}: {error}")),
            Err(_) => failures.push(format!("{host}: no answer within {LOOKUP_TIMEOUT:?}")),
        }
    }
    match sorted(ips) {
        Addresses::Unknown => Addresses::Failed(failures.join(", ")),
        found => {
            for failure in failures {
                tracing::warn!(failure, "one of the gateway's names does not resolve");
            }
            found
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn names_are_looked_up_again_and_a_failure_keeps_the_last_answer() {
        let found = |ip: &str| Addresses::Resolved(vec![ip.parse().unwrap()]);
        let failed = || Addresses::Failed("no answer".to_owned());
        let answers = Mutex::new(vec![
            found("203.0.113.2"),
            failed(),
            found("203.0.113.1"),
            failed(),
        ]);
        let addresses = Arc::new(Mutex::new(Addresses::Unknown));
        let lookup = || std::future::ready(answers.lock().unwrap().pop().unwrap_or_else(failed));
        let mut seen = Vec::new();
        let began = tokio::time::Instant::now();
        let watching = async {
            // After the first failure, its retry, the refresh, the failure that changes nothing, and its retry.
            for until in [0, 1, 60, 61, 62] {
                tokio::time::sleep_until(began + Duration::from_secs(until) + Duration::from_millis(1)).await;
                seen.push(lock(&addresses).clone());
            }
        };
        tokio::select! {
            () = resolve(lookup, addresses.clone(), Arc::default(), Bell::default()) => {
                unreachable!("it looks up for ever")
            }
            () = watching => {}
        }
        let (first, second) = (found("203.0.113.1"), found("203.0.113.2"));
        assert_eq!(seen, [failed(), first.clone(), first.clone(), first, second]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_name_of_a_gateway_that_died_is_looked_up_again_soon() {
        let found = Addresses::Resolved(vec!["203.0.113.1".parse().unwrap()]);
        let (lookups, is_dead) = (
            std::sync::atomic::AtomicU32::new(0),
            Arc::new(AtomicBool::new(false)),
        );
        let lookup = || {
            lookups.fetch_add(1, Ordering::Relaxed);
            std::future::ready(found.clone())
        };
        let counted = async |seconds| {
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            lookups.swap(0, Ordering::Relaxed)
        };
        let watching = async {
            assert_eq!(counted(31).await, 1, "it lives");
            is_dead.store(true, Ordering::Release);
            assert_eq!(counted(20).await, 4, "it is dead");
            is_dead.store(false, Ordering::Release);
            assert_eq!(counted(50).await, 0, "it lives again");
        };
        tokio::select! {
            () = resolve(lookup, Arc::default(), is_dead.clone(), Bell::default()) => {
                unreachable!("it looks up for ever")
            }
            () = watching => {}
        }
    }

    #[test]
    fn ip_addresses_need_no_resolution() {
        let hosts = [
            "203.0.113.9".to_owned(),
            "203.0.113.10".to_owned(),
            "203.0.113.9".to_owned(),
        ];
        let expected = vec!["203.0.113.10".parse().unwrap(), "203.0.113.9".parse().unwrap()];
        assert_eq!(literal(&hosts), Addresses::Resolved(expected));
        assert_eq!(literal(&["gateway.example".to_owned()]), Addresses::Unknown);
    }
}
