//! Finds out whether a gateway lives, by asking it the way traffic would go: through this pod's own proxy.
//!
//! [`Liveness`] is the state machine and [`Pace`] the timing, both pure; [`run`] is the loop. A gateway counts as
//! alive until it has failed a threshold of probes in a row, also when it never answered at all.
//!
//! A Link that leaves its timing at the defaults (a probe every 3 s, 3 failures, 30 s each) promises that a dead
//! gateway is noticed; taken literally, a black hole is after a minute and a half. Then we keep the threshold but
//! probe faster and wait less, so that death is known within 3 s. A Link with timing of its own gets exactly that.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hawser_crd::link::Probe;
use hawser_runtime::Metrics;
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use rand::Rng;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::observe::Bell;

const LATENCY_BOUNDS_MS: &[f64] = &[
    1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0, 30.0, 40.0, 50.0, 100.0, 200.0, 300.0, 400.0, 500.0, 1000.0, 2000.0,
    3000.0, 4000.0, 5000.0, 10000.0, 20000.0, 30000.0, 40000.0, 50000.0,
];

/// Over which times latencies are summed up, by their names on the command line, the longest last.
pub const LATENCY_WINDOWS: [(&str, Duration); 4] = [
    ("15s", Duration::from_secs(15)),
    ("1m", Duration::from_secs(60)),
    ("10m", Duration::from_secs(600)),
    ("1h", Duration::from_secs(3600)),
];
/// Which share of the probes was at least as fast, by the label that says so.
pub const LATENCY_QUANTILES: [(&str, f64); 3] = [("0.5", 0.5), ("0.95", 0.95), ("0.99", 0.99)];
/// Quantiles of the good probes of a window.
pub const LATENCY_METRIC: &str = "gateway_probe_latency_window_ms";
/// What the probe that made a gateway dead failed of, in its label `reason`.
pub const FAILURE_METRIC: &str = "gateway_probe_failure";
/// Longer reasons are cut: a label is no log.
const REASON_MAX: usize = 200;
/// More than the fastest pace of ours makes in an hour; a faster one of a Link's own is summed up over less.
const RECENT_MAX: usize = 8192;

/// What is known about a gateway.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum State {
    #[default]
    Unknown,
    Alive,
    Dead,
}

#[derive(Debug, Default)]
pub(crate) struct Liveness {
    state: State,
    failures: u32,
}

impl Liveness {
    /// Takes a probe's outcome in; returns the new state if it differs from the old one.
    pub(crate) fn observe(&mut self, success: bool, threshold: u32) -> Option<State> {
        self.failures = if success {
            0
        } else {
            self.failures.saturating_add(1)
        };
        let state = match success {
            true => State::Alive,
            false if self.failures >= threshold => State::Dead,
            false => self.state,
        };
        let changed = state != self.state;
        self.state = state;
        changed.then_some(state)
    }

    pub(crate) fn state(&self) -> State {
        self.state
    }
}

/// How long good probes took lately.
#[derive(Debug, Default)]
struct Recent(VecDeque<(Instant, f64)>);

impl Recent {
    fn push(&mut self, now: Instant, ms: f64) {
        if self.0.len() >= RECENT_MAX {
            self.0.pop_front();
        }
        self.0.push_back((now, ms));
    }

    /// One value for each of [`LATENCY_QUANTILES`], unless there was no good probe in that time.
    fn quantiles(&self, now: Instant, window: Duration) -> Option<[f64; 3]> {
        let recent = self.0.iter().rev();
        let mut sorted: Vec<f64> = recent
            .take_while(|(at, _)| now.duration_since(*at) <= window)
            .map(|(_, ms)| *ms)
            .collect();
        sorted.sort_by(f64::total_cmp);
        let rank = |quantile: f64| (quantile * sorted.len() as f64).ceil().max(1.0) as usize - 1;
        let [p50, p95, p99] = LATENCY_QUANTILES.map(|(_, quantile)| sorted.get(rank(quantile)).copied());
        Some([p50?, p95?, p99?])
    }

    fn report(&self, now: Instant, cluster: &str, metrics: &Metrics) {
        metrics.forget(LATENCY_METRIC, ("target_cluster_name", cluster));
        for (name, window) in LATENCY_WINDOWS {
            let Some(values) = self.quantiles(now, window) else {
                continue;
            };
            for ((quantile, _), value) in LATENCY_QUANTILES.into_iter().zip(values) {
                let labels = [
                    ("target_cluster_name", cluster),
                    ("window", name),
                    ("quantile", quantile),
                ];
                metrics.set(
                    LATENCY_METRIC,
                    "Milliseconds of the window's good probes",
                    &labels,
                    value,
                );
            }
        }
    }
}

/// When to probe, and how long to wait for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pace {
    /// Between a success and the next probe; up to a tenth is added at random, so that probers don't fall in step.
    period: Duration,
    /// From the beginning of a failed probe to that of the next.
    retry: Duration,
    timeout: Duration,
    threshold: u32,
    /// Whether the timeout may grow with the gateway's usual latency.
    follows_latency: bool,
}

impl Pace {
    pub(crate) fn of(probe: &Probe) -> Self {
        if probe.has_default_timing() {
            // 0.66 s until the first probe that fails, then three that run into their timeout: 2.76 s.
            return Self {
                period: Duration::from_millis(600),
                retry: Duration::from_millis(300),
                timeout: Duration::from_millis(700),
                threshold: probe.failure_threshold,
                follows_latency: true,
            };
        }
        Self {
            period: probe.period,
            retry: probe.period,
            timeout: probe.timeout,
            threshold: probe.failure_threshold,
            follows_latency: false,
        }
    }

    /// A far gateway is not a dead one: four times its usual latency is waited for.
    fn timeout(&self, latency: Option<Duration>) -> Duration {
        match latency {
            Some(latency) if self.follows_latency => {
                self.timeout.max(latency * 4).min(Duration::from_secs(30))
            }
            _ => self.timeout,
        }
    }

    fn pause(&self, success: bool, took: Duration, jitter: f64) -> Duration {
        let pause = if success {
            self.period
        } else {
            self.retry.saturating_sub(took)
        };
        pause + self.period.mul_f64(jitter * 0.1)
    }
}

/// Why a probe failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProbeError {
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("connecting: {0}")]
    Connect(#[from] std::io::Error),
    #[error("asking: {0}")]
    Http(#[from] hyper::Error),
    #[error("building the request: {0}")]
    Request(#[from] http::Error),
    #[error("answered {0}")]
    Status(http::StatusCode),
    /// A proxy on the way answered in the gateway's stead, with its reason.
    #[error("{1} ({0})")]
    Proxy(http::StatusCode, String),
}

/// Probes for ever. `is_dead` follows the state, and the bell rings when it changes.
pub(crate) async fn run(
    cluster: String,
    pace: Pace,
    attempt: impl AsyncFn() -> Result<(), ProbeError>,
    is_dead: Arc<AtomicBool>,
    metrics: Metrics,
    bell: Bell,
) {
    let labels: &[(&str, &str)] = &[("target_cluster_name", &cluster)];
    let mut liveness = Liveness::default();
    let mut latency: Option<Duration> = None;
    let mut last_outcome = (true, Duration::ZERO);
    let mut recent = Recent::default();
    loop {
        let jitter = rand::rng().random::<f64>();
        tokio::time::sleep(pace.pause(last_outcome.0, last_outcome.1, jitter)).await;
        let start = Instant::now();
        let timeout = pace.timeout(latency);
        let outcome = match tokio::time::timeout(timeout, attempt()).await {
            Ok(outcome) => outcome,
            Err(_) => Err(ProbeError::Timeout(timeout)),
        };
        let took = start.elapsed();
        last_outcome = (outcome.is_ok(), took);
        let changed = liveness.observe(outcome.is_ok(), pace.threshold);
        match &outcome {
            Ok(()) => {
                latency = Some(latency.map_or(took, |old| (old * 7 + took) / 8));
                let ms = took.as_secs_f64() * 1000.0;
                metrics.set(
                    "gateway_latency",
                    "Milliseconds of the last good probe",
                    labels,
                    ms.round(),
                );
                let help = "Milliseconds of good probes";
                metrics.observe("gateway_probe_latency_ms", help, labels, LATENCY_BOUNDS_MS, ms);
                count(&metrics, &cluster, "true");
                recent.push(Instant::now(), ms);
            }
            Err(error) => {
                tracing::debug!(cluster, %error, "gateway probe failed");
                // As in Linkerd: failures count from the one that makes the gateway dead.
                if liveness.state() == State::Dead {
                    count(&metrics, &cluster, "false");
                }
            }
        }
        recent.report(Instant::now(), &cluster, &metrics);
        if let Some(state) = changed {
            let dead = state == State::Dead;
            metrics.set(
                "gateway_alive",
                "Whether the gateway answers",
                labels,
                if dead { 0.0 } else { 1.0 },
            );
            is_dead.store(dead, Ordering::Release);
            metrics.forget(FAILURE_METRIC, ("target_cluster_name", &cluster));
            match &outcome {
                Err(error) => {
                    tracing::warn!(cluster, %error, "gateway is dead");
                    let reason: String = error.to_string().chars().take(REASON_MAX).collect();
                    let labels = [("target_cluster_name", cluster.as_str()), ("reason", &reason)];
                    metrics.set(FAILURE_METRIC, "Why the gateway is dead", &labels, 1.0);
                }
                Ok(()) => tracing::info!(cluster, "gateway is alive"),
            }
            bell.ring();
        }
    }
}

fn count(metrics: &Metrics, cluster: &str, successful: &str) {
    let labels = [("target_cluster_name", cluster), ("probe_successful", successful)];
    metrics.add("gateway_probes", "Probes of the gateway", &labels, 1.0);
}

/// Asks once. Anything but 200 is a failure.
pub(crate) async fn get(host: &str, port: u16, path: &str) -> Result<(), ProbeError> {
    let socket = TcpStream::connect((host, port)).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(socket)).await?;
    let request = http::Request::get(path)
        .header(http::header::HOST, format!("{host}:{port}"))
        .header(http::header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())?;
    let mut response = std::pin::pin!(sender.send_request(request));
    let response = tokio::select! {
        response = &mut response => response,
        // A short answer and the end of its connection come together; then the answer is there already.
        _ = connection => response.await,
    };
    let response = response?;
    let why = response.headers().get("l5d-proxy-error");
    match (response.status(), why.and_then(|why| why.to_str().ok())) {
        (http::StatusCode::OK, _) => Ok(()),
        (status, Some(why)) => Err(ProbeError::Proxy(status, why.to_owned())),
        (status, None) => Err(ProbeError::Status(status)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hawser_crd::link::LinkSpec;

    fn probe(period: &str) -> Probe {
        let mut spec = LinkSpec::default();
        (spec.probe_spec.path, spec.probe_spec.port) = ("/ready".into(), "4191".into());
        spec.probe_spec.period = period.into();
        spec.probe().unwrap().unwrap()
    }

    fn observe(outcomes: &str) -> String {
        let mut liveness = Liveness::default();
        outcomes
            .chars()
            .map(|outcome| match liveness.observe(outcome == '+', 3) {
                None => '.',
                Some(State::Alive) => 'A',
                Some(_) => 'D',
            })
            .collect()
    }

    #[test]
    fn a_gateway_dies_of_failures_in_a_row_and_one_success_revives_it() {
        assert_eq!(observe("+--+---+"), "A.....DA");
        assert_eq!(observe("-----"), "..D..", "also when it never lived");
        assert_eq!(observe("+++"), "A..");
    }

    /// How long after its last answer a gateway's death is known at the latest, if every failing probe takes `each`.
    fn death_known_after(pace: Pace, each: Duration) -> Duration {
        let mut liveness = Liveness::default();
        liveness.observe(true, pace.threshold);
        let (mut elapsed, mut last) = (Duration::ZERO, (true, Duration::ZERO));
        while liveness.state() != State::Dead {
            let took = each.min(pace.timeout(Some(Duration::from_millis(20))));
            elapsed += pace.pause(last.0, last.1, 1.0) + took;
            last = (false, took);
            liveness.observe(false, pace.threshold);
        }
        elapsed
    }

    const REFUSED: Duration = Duration::from_millis(1);
    const SILENT: Duration = Duration::MAX;

    #[test]
    fn with_default_timing_death_is_known_within_three_seconds() {
        for each in [REFUSED, SILENT] {
            let took = death_known_after(Pace::of(&probe("3s")), each);
            assert!(took < Duration::from_secs(3), "{took:?}");
        }
    }

    #[test]
    fn timing_that_the_link_sets_is_kept() {
        let took = death_known_after(Pace::of(&probe("10s")), REFUSED);
        assert!(
            took >= Duration::from_secs(30) && took <= Duration::from_secs(34),
            "{took:?}"
        );
    }

    #[test]
    fn a_far_gateway_is_waited_for() {
        let pace = Pace::of(&probe("3s"));
        assert_eq!(pace.timeout(None), Duration::from_millis(700));
        assert_eq!(
            pace.timeout(Some(Duration::from_millis(20))),
            Duration::from_millis(700)
        );
        assert_eq!(
            pace.timeout(Some(Duration::from_millis(400))),
            Duration::from_millis(1600)
        );
    }

    #[test]
    fn latencies_are_those_of_the_window() {
        let (mut recent, start) = (Recent::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(recent.quantiles(start, Duration::from_secs(60)), None);
        recent.push(start, 900.0);
        for second in 1..=100 {
            recent.push(after(second), second as f64);
        }
        let over = |seconds| recent.quantiles(after(100), Duration::from_secs(seconds));
        assert_eq!(over(99), Some([50.0, 95.0, 99.0]));
        assert_eq!(over(100), Some([51.0, 96.0, 100.0]));
        assert_eq!(over(0), Some([100.0; 3]));
        assert_eq!(recent.quantiles(after(9999), Duration::from_secs(60)), None);
        let (metrics, one_minute) = (Metrics::default(), "window=\"1m\",quantile=\"0.5\"} 70");
        recent.report(after(100), "east", &metrics);
        assert!(metrics.render().contains(one_minute), "{}", metrics.render());
        recent.report(after(9999), "east", &metrics);
        assert!(!metrics.render().contains("quantile"), "{}", metrics.render());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (mut recent, now) = (Recent::default(), Instant::now());
        for _ in 0..RECENT_MAX + 9 {
            recent.push(now, 1.0);
        }
        assert_eq!(recent.0.len(), RECENT_MAX);
    }

    #[tokio::test]
    async fn only_a_200_counts() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        for (answer, good) in [
            ("HTTP/1.1 200 OK", true),
            ("HTTP/1.1 503 Service Unavailable", false),
            ("", false),
        ] {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let serve = async {
                let (mut socket, _) = listener.accept().await.unwrap();
                let mut buffer = [0; 1024];
                let _ = socket.read(&mut buffer).await.unwrap();
                if !answer.is_empty() {
                    socket
                        .write_all(format!("{answer}\r\ncontent-length: 0\r\n\r\n").as_bytes())
                        .await
                        .unwrap();
                }
            };
            let (got, ()) = tokio::join!(get("127.0.0.1", port, "/ready"), serve);
            assert_eq!(got.is_ok(), good, "{answer}: {got:?}");
        }
    }
}
