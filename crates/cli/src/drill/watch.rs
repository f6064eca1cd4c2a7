//! Carries a drill out: begins it, renews it while all is well, ends it in every case, and tells what was seen.
//!
//! The annotation that it writes ends by itself after [`LEASE`], so nothing here has to succeed for traffic to return:
//! not this process, not the API server. A renewal is conditional on what was read, so that it can't bring back a drill
//! that the controller broke off.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::io::IsTerminal;
use std::time::{Duration, SystemTime};

use hawser_crd::{TrafficSplit, keys};
use indicatif::ProgressBar;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::Instant;

use super::outlook::{Outlook, Traffic, annotation, shares, weights};
use super::traffic;
use crate::kube::problem;
use crate::problem::Problem;
use crate::viz::Source;

/// How long a drill goes on without being renewed.
pub(super) const LEASE: Duration = Duration::from_secs(10);
/// It is renewed when so much is left, so that several renewals may fail.
const RENEW_AT: Duration = Duration::from_secs(8);
/// Between two looks at the split.
const TICK: Duration = Duration::from_millis(500);
/// Between two looks at what is measured.
const MEASURE_EVERY: Duration = Duration::from_secs(2);
/// A controller that has not acted by then doesn't act.
const ACTS_WITHIN: Duration = Duration::from_secs(8);
/// One request's patience.
const DEADLINE: Duration = Duration::from_secs(2);
/// Shares are compared as people see them.
const EPSILON: f64 = 0.001;
const FIELD_MANAGER: &str = "hawser-drill";

pub(super) struct Drill {
    pub(super) client: Client,
    pub(super) split: TrafficSplit,
    pub(super) drilled: BTreeSet<String>,
    pub(super) outlook: Outlook,
    pub(super) length: Duration,
    /// Over which requests are counted.
    pub(super) window: Duration,
}

/// Why a drill ended.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum End {
    /// It lasted as long as it should.
    Over,
    /// The limits were breached.
    Breach(String),
    /// Somebody interrupted it.
    Interrupted,
    /// The controller ended it: nobody else could serve.
    BrokenOff,
    /// The weights did not move.
    NotActed(String),
    /// The split could not be read or written for too long.
    Lost(String),
}

/// What was seen.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    pub(super) split: String,
    pub(super) drilled: BTreeSet<String>,
    pub(super) passed: bool,
    pub(super) end: End,
    /// From the beginning until the weights were as forecast.
    pub(super) moved_after_seconds: Option<f64>,
    pub(super) lasted_seconds: f64,
    /// The worst that was measured.
    pub(super) success_min: Option<f64>,
    pub(super) p95_max_ms: Option<f64>,
    /// Looks at enough requests to tell anything.
    pub(super) looks: usize,
    /// Whether the controller took the traffic back before we left.
    pub(super) returns: bool,
}

impl Report {
    pub(super) fn text(&self) -> String {
        let end = match &self.end {
            End::Over => "lasted as long as it should".to_owned(),
            End::Breach(why) => format!("was broken off: {why}"),
            End::Interrupted => "was interrupted".to_owned(),
            End::BrokenOff => "was broken off by the failover controller: nobody else could serve".to_owned(),
            End::NotActed(why) => format!("did not begin: {why}"),
            End::Lost(why) => format!("was given up: {why}"),
        };
        let mark = if self.passed { "√" } else { "×" };
        let moved = match self.moved_after_seconds {
            Some(seconds) => format!("{seconds:.1} s after its beginning traffic had moved"),
            None => "traffic did not move as forecast".to_owned(),
        };
        let measured = match (self.success_min, self.p95_max_ms) {
            (Some(success), Some(p95)) => format!(
                "at worst {:.1} % of requests succeeded, and the 95th percentile was {p95:.0} ms",
                success * 100.0
            ),
            (Some(success), None) => format!("at worst {:.1} % of requests succeeded", success * 100.0),
            (None, _) => "there were too few requests to judge".to_owned(),
        };
        let returns = match self.returns {
            true => "traffic returns step by step: hawser failover status".to_owned(),
            false => format!(
                "traffic has not begun to return; the drill ends by itself within {} s: hawser failover status",
                LEASE.as_secs()
            ),
        };
        format!(
            "{mark} drill of {} {end}, after {:.0} s\n  {moved}\n  {measured}\n  {returns}\n",
            self.split, self.lasted_seconds
        )
    }
}

/// What the measurements came to.
#[derive(Clone, Debug, Default, PartialEq)]
struct Worst {
    success: Option<f64>,
    p95_ms: Option<f64>,
    looks: usize,
}

impl Worst {
    fn take_in(&mut self, traffic: &Traffic) {
        self.looks += 1;
        let least = [self.success, traffic.success].into_iter().flatten();
        self.success = least.reduce(f64::min);
        let most = [self.p95_ms, traffic.p95_ms].into_iter().flatten();
        self.p95_ms = most.reduce(f64::max);
    }
}

/// From its beginning to its end, which comes in every case.
pub(super) async fn run(drill: Drill, source: Source) -> Result<Report, Problem> {
    let progress = progress();
    let mut interrupted = Interruption::listen()?;
    let splits: Api<TrafficSplit> =
        Api::namespaced(drill.client.clone(), &drill.split.namespace().unwrap_or_default());
    let hand = Hand {
        splits: &splits,
        drill: &drill,
        by: format!("hawser drill, process {}", std::process::id()),
    };
    let version = drill.split.metadata.resource_version.as_deref();
    hand.write(version).await.map_err(|error| {
        problem(
            format!("cannot begin the drill of {}", drill.outlook.split),
            error,
        )
    })?;
    let began = Instant::now();
    let (publish, measured) = watch::channel(BTreeMap::new());
    let mut worst = Worst::default();
    let mut moved = None;
    let watching = hand.watch(began, measured, &mut worst, &mut moved, &progress);
    let end = tokio::select! {
        end = watching => end,
        () = interrupted.comes() => End::Interrupted,
        never = measure(source, &drill.split, drill.window, publish) => match never {},
    };
    progress.set_message("giving the traffic back");
    let returns = hand.end().await;
    progress.finish_and_clear();
    let moved: Option<Duration> = moved;
    Ok(Report {
        split: drill.outlook.split.clone(),
        drilled: drill.drilled.clone(),
        passed: end == End::Over,
        end,
        moved_after_seconds: moved.map(|moved| moved.as_secs_f64()),
        lasted_seconds: began.elapsed().as_secs_f64(),
        success_min: worst.success,
        p95_max_ms: worst.p95_ms,
        looks: worst.looks,
        returns,
    })
}

/// Reads and writes the split.
struct Hand<'a> {
    splits: &'a Api<TrafficSplit>,
    drill: &'a Drill,
    by: String,
}

impl Hand<'_> {
    fn name(&self) -> String {
        self.drill.split.name_any()
    }

    /// How the traffic is shared during the drill.
    fn forecast(&self) -> BTreeMap<String, f64> {
        let rows = self.drill.outlook.rows.iter();
        rows.map(|row| (row.service.clone(), row.share_then)).collect()
    }

    async fn read(&self) -> Result<TrafficSplit, kube::Error> {
        bounded(self.splits.get(&self.name())).await
    }

    /// Lets the drill go on for another lease, if the split is still the one that was read.
    async fn write(&self, version: Option<&str>) -> Result<(), kube::Error> {
        let text = annotation(&self.drill.drilled, SystemTime::now() + LEASE, &self.by);
        self.annotate(version, json!(text)).await
    }

    async fn annotate(&self, version: Option<&str>, value: Value) -> Result<(), kube::Error> {
        let mut patch = json!({"metadata": {"annotations": {keys::FAILOVER_DRILL: value}}});
        if let Some(version) = version {
            patch["metadata"]["resourceVersion"] = version.into();
        }
        let params = PatchParams {
            field_manager: Some(FIELD_MANAGER.into()),
            ..PatchParams::default()
        };
        bounded(self.splits.patch(&self.name(), &params, &Patch::Merge(&patch)))
            .await
            .map(drop)
    }

    /// Until there is a reason to end.
    async fn watch(
        &self,
        began: Instant,
        mut measured: Measured,
        worst: &mut Worst,
        moved: &mut Option<Duration>,
        progress: &ProgressBar,
    ) -> End {
        let wanted = self.forecast();
        let mut renewed = began;
        loop {
            tokio::time::sleep(TICK).await;
            if began.elapsed() >= self.drill.length {
                return if moved.is_some() {
                    End::Over
                } else {
                    End::NotActed("the weights did not move as forecast".to_owned())
                };
            }
            match self.read().await {
                Ok(split) => {
                    if !split.annotations().contains_key(keys::FAILOVER_DRILL) {
                        return End::BrokenOff;
                    }
                    if moved.is_none() && alike(&shares(&weights(&split)), &wanted) {
                        *moved = Some(began.elapsed());
                    }
                    if moved.is_none() && began.elapsed() > ACTS_WITHIN {
                        let seconds = ACTS_WITHIN.as_secs();
                        return End::NotActed(format!(
                            "the failover controller did not act within {seconds} s"
                        ));
                    }
                    // Whoever was faster is read next time.
                    let due = renewed.elapsed() > LEASE - RENEW_AT;
                    if due
                        && self
                            .write(split.metadata.resource_version.as_deref())
                            .await
                            .is_ok()
                    {
                        renewed = Instant::now();
                    }
                }
                Err(error) if renewed.elapsed() > LEASE => return End::Lost(error.to_string()),
                Err(_) => {}
            }
            if measured.has_changed().unwrap_or(false) {
                let all = measured.borrow_and_update().clone();
                let traffic = Traffic::sum(all.into_values());
                progress.set_message(told(&traffic, self.drill.length.saturating_sub(began.elapsed())));
                if traffic.rps * self.drill.window.as_secs_f64() >= super::outlook::REQUESTS_MIN {
                    worst.take_in(&traffic);
                }
                if let Some(breach) = traffic.breach(&self.drill.outlook.limits, self.drill.window) {
                    return End::Breach(breach);
                }
            }
        }
    }

    /// Takes the annotation away, and waits until the controller has begun to give the traffic back.
    async fn end(&self) -> bool {
        let forecast = self.forecast();
        let until = Instant::now() + LEASE;
        let mut taken = false;
        while Instant::now() < until {
            if !taken {
                taken = self.annotate(None, Value::Null).await.is_ok();
            }
            if taken
                && let Ok(split) = self.read().await
                && !alike(&shares(&weights(&split)), &forecast)
            {
                return true;
            }
            tokio::time::sleep(TICK).await;
        }
        false
    }
}

fn alike(shares: &BTreeMap<String, f64>, wanted: &BTreeMap<String, f64>) -> bool {
    wanted.iter().all(|(service, wanted)| {
        let share = shares.get(service).copied().unwrap_or_default();
        (share - wanted).abs() < EPSILON
    })
}

fn told(traffic: &Traffic, left: Duration) -> String {
    let success = traffic
        .success
        .map_or_else(|| "-".to_owned(), |success| format!("{:.1} %", success * 100.0));
    let p95 = traffic
        .p95_ms
        .map_or_else(|| "-".to_owned(), |p95| format!("{p95:.0} ms"));
    format!(
        "{:.1} requests per second, {success} succeed, p95 {p95}; {} s left",
        traffic.rps,
        left.as_secs()
    )
}

async fn bounded<T>(request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, kube::Error> {
    let silent = || kube::Error::Service(format!("no answer within {} s", DEADLINE.as_secs()).into());
    tokio::time::timeout(DEADLINE, request)
        .await
        .unwrap_or_else(|_| Err(silent()))
}

type Measured = watch::Receiver<BTreeMap<String, Traffic>>;

/// Measures at its own pace, which must not hold up a renewal.
async fn measure(
    mut source: Source,
    split: &TrafficSplit,
    window: Duration,
    publish: watch::Sender<BTreeMap<String, Traffic>>,
) -> Infallible {
    loop {
        // A look that fails says nothing about the traffic.
        if let Ok(seen) = traffic(&mut source, split, window).await {
            publish.send_replace(seen);
        }
        tokio::time::sleep(MEASURE_EVERY).await;
    }
}

/// Ctrl-C, or whoever ends this process politely.
struct Interruption {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

impl Interruption {
    fn listen() -> Result<Self, Problem> {
        let of = |kind| {
            let attempt = "check the limits of this shell: ulimit -a";
            signal(kind).map_err(|error| Problem::new("cannot wait for signals", error, attempt))
        };
        Ok(Self {
            interrupt: of(SignalKind::interrupt())?,
            terminate: of(SignalKind::terminate())?,
            hangup: of(SignalKind::hangup())?,
        })
    }

    async fn comes(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}

fn progress() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let progress = ProgressBar::new_spinner();
    progress.set_message("waiting for the failover controller");
    progress.enable_steady_tick(Duration::from_millis(100));
    progress
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_says_how_it_ended_and_what_was_measured() {
        let report = Report {
            split: "emojivoto/web-svc".into(),
            drilled: BTreeSet::from(["web-svc".into()]),
            passed: false,
            end: End::Breach("80.0 % of requests succeed, wanted are 95.0 %".into()),
            moved_after_seconds: Some(0.5),
            lasted_seconds: 12.3,
            success_min: Some(0.8),
            p95_max_ms: Some(48.0),
            looks: 4,
            returns: true,
        };
        assert_eq!(
            report.text(),
            "× drill of emojivoto/web-svc was broken off: 80.0 % of requests succeed, wanted are 95.0 %, after 12 s\n  \
             0.5 s after its beginning traffic had moved\n  \
             at worst 80.0 % of requests succeeded, and the 95th percentile was 48 ms\n  \
             traffic returns step by step: hawser failover status\n"
        );
    }

    #[test]
    fn a_lease_is_short_and_outlives_several_failed_renewals() {
        assert!(LEASE < hawser_control::failover::DRILL_MAX);
        assert!(RENEW_AT > 3 * (DEADLINE + TICK));
    }

    #[test]
    fn the_worst_is_what_is_remembered() {
        let traffic = |success, p95_ms| Traffic {
            rps: 9.0,
            success: Some(success),
            p95_ms: Some(p95_ms),
        };
        let mut worst = Worst::default();
        for (success, p95) in [(0.9, 10.0), (1.0, 90.0), (0.95, 20.0)] {
            worst.take_in(&traffic(success, p95));
        }
        let expected = Worst {
            success: Some(0.9),
            p95_ms: Some(90.0),
            looks: 3,
        };
        assert_eq!(worst, expected);
    }
}
