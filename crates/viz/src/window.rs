//! The last hour of every proxy, in memory.
//!
//! Pure: time and readings are given. A proxy's counters become increments when they arrive, so a restart, or a series
//! that the proxy forgot and began anew, can't show as a jump later. Rates are those of Prometheus' `rate`, from the
//! looks at one proxy, but for what is better known here: a flow that appears under a proxy that was read before
//! counted from zero.
//!
//! Memory: 1,000 proxies with ten busy flows each, looked at every 10 s, take at most 192 MiB for the hour
//! ([`Window::bytes`] and a test hold it).

use std::collections::{BTreeMap, VecDeque};
use std::ops::AddAssign;
use std::sync::Arc;
use std::time::Duration;

use hawser_runtime::exposition::Histogram;

use crate::api::Golden;
use crate::pods::{Pod, PodName};
use crate::reading::{Expiry, FLOWS_MAX, Flow, Reading, Totals};
use crate::tape::{BOUNDS, Counts, Tape};

/// Since some moment before everything else.
pub type At = Duration;

/// A proxy that was not read for this long has no open connections that we know of.
const STALE: Duration = Duration::from_secs(60);

#[derive(Clone, Debug)]
pub struct Window {
    span: Duration,
    histories: BTreeMap<Source, History>,
}

/// A process of a pod, by the port of its metrics.
type Source = (PodName, u16);

#[derive(Clone, Debug)]
struct History {
    pod: Arc<Pod>,
    started_at: Option<f64>,
    /// When the last looks were; the first of them has number `first`.
    looks: VecDeque<At>,
    first: u64,
    /// Whether the last reading was complete, so that what it lacked wasn't there.
    was_whole: bool,
    expiry: Expiry,
    flows: BTreeMap<Flow, Tracked>,
}

#[derive(Clone, Debug, Default)]
struct Tracked {
    last: Totals,
    tape: Tape,
}

/// Per second, except what is open now.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Rates {
    pub(crate) success: f64,
    pub(crate) failure: f64,
    pub(crate) read: f64,
    pub(crate) written: f64,
    pub(crate) open: u64,
    /// Whether anything was looked at, or nothing is known.
    pub(crate) is_seen: bool,
    latency_us: f64,
    latency: [f64; BOUNDS.len()],
}

impl Window {
    pub fn new(span: Duration) -> Self {
        Self {
            span,
            histories: BTreeMap::new(),
        }
    }

    /// Adds what one look told. Looks at one source come in the order of time; one that doesn't is ignored.
    pub fn record(&mut self, pod: &Arc<Pod>, port: u16, at: At, reading: Reading) {
        let history = self
            .histories
            .entry((pod.name.clone(), port))
            .or_insert_with(|| History {
                pod: pod.clone(),
                started_at: None,
                looks: VecDeque::new(),
                first: 0,
                was_whole: false,
                expiry: Expiry::default(),
                flows: BTreeMap::new(),
            });
        if history.looks.back().is_none_or(|last| *last < at) {
            history.pod = pod.clone();
            history.record(at, reading);
        }
    }

    /// Lets go of what is older than the span.
    pub fn forget(&mut self, now: At) {
        let oldest = now.saturating_sub(self.span);
        self.histories.retain(|_, history| {
            history.forget_before(oldest);
            !history.looks.is_empty()
        });
    }

    /// How many processes have been read within the span.
    pub fn sources(&self) -> usize {
        self.histories.len()
    }

    /// What the window takes in memory, about.
    pub fn bytes(&self) -> usize {
        self.histories.values().map(History::bytes).sum()
    }

    /// Every flow with what it did in the last `length` before `now`.
    pub(crate) fn rates(&self, now: At, length: Duration) -> impl Iterator<Item = (&Pod, &Flow, Rates)> {
        let all = self.rates_by(now, length, |pod, flow| Some((pod, flow)));
        all.map(|((pod, flow), rates)| (pod, flow, rates))
    }

    /// The same of those flows only that are given a key, which costs that much less.
    pub(crate) fn rates_by<'a, K>(
        &'a self,
        now: At,
        length: Duration,
        key: impl Fn(&'a Pod, &'a Flow) -> Option<K> + Copy + 'a,
    ) -> impl Iterator<Item = (K, Rates)> {
        self.histories.values().flat_map(move |history| {
            let seen = history.seen(now, length);
            let fresh = history
                .looks
                .back()
                .is_some_and(|last| now.saturating_sub(*last) <= STALE);
            let keyed = history.flows.iter();
            let keyed = keyed.filter_map(move |(flow, tracked)| Some((key(&history.pod, flow)?, tracked)));
            keyed.map(move |(key, tracked)| {
                let mut rates = seen.as_ref().map_or_else(Rates::default, |(looks, scale)| {
                    Rates::of(&tracked.tape.sum(looks), *scale)
                });
                rates.open = if fresh { tracked.last.open } else { 0 };
                (key, rates)
            })
        })
    }
}

impl Window {
    /// Pods that were read in the last `length`, also those that are gone.
    pub(crate) fn pods(&self, now: At, length: Duration) -> impl Iterator<Item = &Pod> {
        let lately = move |history: &&History| {
            let last = history.looks.back();
            last.is_some_and(|last| now.saturating_sub(*last) <= length)
        };
        self.histories
            .values()
            .filter(lately)
            .map(|history| &*history.pod)
    }

    /// What processes that were read lately say about certificates.
    pub(crate) fn expiries(&self, now: At) -> impl Iterator<Item = (&Pod, Expiry)> {
        let fresh = move |history: &&History| {
            let last = history.looks.back();
            last.is_some_and(|last| now.saturating_sub(*last) <= STALE)
        };
        let histories = self.histories.values().filter(fresh);
        histories.map(|history| (&*history.pod, history.expiry))
    }
}

impl History {
    fn record(&mut self, at: At, reading: Reading) {
        let is_first = self.looks.is_empty();
        let look = self.first + self.looks.len() as u64;
        self.looks.push_back(at);
        let restarted = match (self.started_at, reading.started_at) {
            (Some(before), Some(now)) => (now - before).abs() > 1.0,
            _ => false,
        };
        let tells_start = reading.started_at.is_some();
        self.started_at = reading.started_at;
        self.expiry = reading.expiry;
        let whole = reading.left_out == 0;
        if whole {
            for (flow, tracked) in &mut self.flows {
                if !reading.flows.contains_key(flow) {
                    // Forgotten by the proxy: should it come back, it begins at zero.
                    tracked.last = Totals::default();
                }
            }
        }
        for (flow, now) in reading.flows {
            let was_known = self.flows.contains_key(&flow);
            if !was_known && self.flows.len() >= FLOWS_MAX {
                continue;
            }
            let tracked = self.flows.entry(flow).or_default();
            let (before, counts) = (tracked.last.counts, now.counts);
            tracked.last = now;
            let is_baseline = is_first || (!was_known && !self.was_whole);
            if is_baseline && !restarted {
                continue;
            }
            // A process that doesn't say when it started is taken for a new one if anything fell.
            let anew = restarted || (!tells_start && counts.is_below(&before));
            let grown = if anew {
                counts
            } else {
                counts.zip(&before, u64::saturating_sub)
            };
            tracked.tape.push(look, &grown);
        }
        self.was_whole = whole;
    }

    fn forget_before(&mut self, oldest: At) {
        while self.looks.front().is_some_and(|at| *at < oldest) {
            self.looks.pop_front();
            self.first += 1;
        }
        let first = self.first;
        self.flows.retain(|_, tracked| {
            tracked.tape.forget_before(first);
            !tracked.tape.is_empty() || tracked.last != Totals::default()
        });
    }

    /// The looks of a stretch of time whose growth lies in it, and what makes their sum a rate: `rate` stretches what
    /// was seen to the ends of the stretch, or by half an interval where they are too far away.
    fn seen(&self, now: At, length: Duration) -> Option<(std::ops::RangeInclusive<u64>, f64)> {
        let start = now.saturating_sub(length);
        let from = self.looks.partition_point(|at| *at < start);
        let to = self.looks.partition_point(|at| *at <= now).checked_sub(1)?;
        let (first, last) = (*self.looks.get(from)?, *self.looks.get(to)?);
        let seen = last
            .checked_sub(first)
            .filter(|seen| !seen.is_zero())?
            .as_secs_f64();
        let interval = seen / (to - from) as f64;
        let reach = |gap: Duration| match gap.as_secs_f64() {
            gap if gap < interval * 1.1 => gap,
            _ => interval / 2.0,
        };
        // Looked at from the start of time, a longer stretch reaches back no further.
        let before = first + length - now.min(first + length);
        let reached = seen + reach(before) + reach(now - last);
        let number = |at: usize| self.first + at as u64;
        Some((
            number(from) + 1..=number(to),
            reached / seen / length.as_secs_f64(),
        ))
    }

    fn bytes(&self) -> usize {
        let flows = self.flows.iter().map(|(flow, tracked)| {
            let names = match flow {
                Flow::Outbound(outbound) => 512 + outbound.authority.len(),
                Flow::Inbound(_) | Flow::Probes(_) => 256,
            };
            size_of::<(Flow, Tracked)>() + names + tracked.tape.bytes()
        });
        size_of::<Self>() + self.looks.capacity() * size_of::<At>() + flows.sum::<usize>()
    }
}

impl Rates {
    fn of(counts: &Counts, scale: f64) -> Self {
        let per_second = |count: u64| count as f64 * scale;
        Self {
            success: per_second(counts.success),
            failure: per_second(counts.failure),
            read: per_second(counts.read),
            written: per_second(counts.written),
            open: 0,
            is_seen: true,
            latency_us: per_second(counts.latency_us),
            latency: counts.latency.map(per_second),
        }
    }

    pub(crate) fn requests(&self) -> f64 {
        self.success + self.failure
    }

    /// 0 to 1; nothing without requests.
    pub(crate) fn success_rate(&self) -> Option<f64> {
        (self.requests() > 0.0).then(|| self.success / self.requests())
    }

    pub(crate) fn latency_ms(&self, quantile: f64) -> Option<f64> {
        let (mut histogram, mut total) = (Histogram::default(), 0.0);
        for (bound, rate) in BOUNDS.iter().zip(self.latency) {
            total += rate;
            histogram.add(*bound, total);
        }
        histogram.quantile(quantile)
    }

    /// What an answer took on average.
    pub(crate) fn mean_ms(&self) -> Option<f64> {
        let count: f64 = self.latency.iter().sum();
        (count > 0.0).then(|| self.latency_us / count / 1e3)
    }

    pub(crate) fn golden(&self) -> Golden {
        Golden {
            rps: self.success_rate().map(|_| self.requests()),
            success: self.success_rate(),
            p50_ms: self.latency_ms(0.5),
            p95_ms: self.latency_ms(0.95),
            p99_ms: self.latency_ms(0.99),
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.requests() + self.read + self.written <= 0.0 && self.open == 0
    }
}

impl AddAssign<&Self> for Rates {
    fn add_assign(&mut self, other: &Self) {
        self.success += other.success;
        self.failure += other.failure;
        self.read += other.read;
        self.written += other.written;
        self.open = self.open.saturating_add(other.open);
        self.is_seen |= other.is_seen;
        self.latency_us += other.latency_us;
        for (sum, rate) in self.latency.iter_mut().zip(other.latency) {
            *sum += rate;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pod(name: &str) -> Arc<Pod> {
        Arc::new(Pod {
            name: PodName {
                namespace: "x".into(),
                name: name.into(),
            },
            ..Pod::default()
        })
    }

    fn seconds(seconds: u64) -> At {
        Duration::from_secs(seconds)
    }

    fn text(started_at: u64, success: u64) -> String {
        format!(
            "process_start_time_seconds {started_at}\n\
             response_total{{direction=\"inbound\",classification=\"success\"}} {success}\n"
        )
    }

    fn success(window: &Window, now: u64, length: u64) -> f64 {
        window
            .rates(seconds(now), seconds(length))
            .map(|(_, _, rates)| rates.success)
            .sum()
    }

    #[test]
    fn a_steady_counter_has_its_rate_also_between_looks() {
        let mut window = Window::new(seconds(3600));
        for at in (100..=200).step_by(10) {
            window.record(&pod("a"), 4191, seconds(at), Reading::of(&text(1, 1000 + 5 * at)));
        }
        for now in [200, 204, 209] {
            assert!((success(&window, now, 60) - 5.0).abs() < 1e-9, "at {now}");
        }
        assert_eq!(
            success(&window, 300, 60),
            0.0,
            "nothing is known of the last minute"
        );
    }

    #[test]
    fn a_restart_counts_from_zero_and_a_forgotten_series_not_at_all() {
        let mut window = Window::new(seconds(3600));
        let looks = [(1, 1_000), (1, 1_010), (18, 5), (18, 6)];
        for (at, (started_at, success)) in looks.into_iter().enumerate() {
            window.record(
                &pod("a"),
                4191,
                seconds(10 * at as u64),
                Reading::of(&text(started_at, success)),
            );
        }
        assert!((success(&window, 30, 30) - 16.0 / 30.0).abs() < 1e-9);

        // Two series of one flow, of which the proxy forgets the larger: nothing was answered, nothing shows.
        let series = |code: u32, value: u32| {
            format!(
                "response_total{{direction=\"inbound\",classification=\"success\",status_code=\"{code}\"}} {value}\n"
            )
        };
        let start = "process_start_time_seconds 1\n";
        let mut window = Window::new(seconds(3600));
        for (at, text) in [series(200, 1000) + &series(304, 7), series(304, 7)]
            .into_iter()
            .enumerate()
        {
            window.record(
                &pod("a"),
                4191,
                seconds(10 * at as u64),
                Reading::of(&format!("{start}{text}")),
            );
        }
        assert_eq!(success(&window, 10, 10), 0.0);
    }

    #[test]
    fn the_first_failure_ever_is_a_failure() {
        let failing = "response_total{direction=\"outbound\",classification=\"failure\"} 3\n";
        let mut window = Window::new(seconds(3600));
        window.record(&pod("a"), 4191, seconds(0), Reading::of(&text(1, 10)));
        window.record(
            &pod("a"),
            4191,
            seconds(10),
            Reading::of(&(text(1, 10) + failing)),
        );
        let failures: f64 = window
            .rates(seconds(10), seconds(10))
            .map(|(_, _, rates)| rates.failure)
            .sum();
        assert!((failures - 0.3).abs() < 1e-9);
    }

    #[test]
    fn what_a_broken_answer_lacked_does_not_come_back_as_a_jump() {
        let mut window = Window::new(seconds(3600));
        window.record(
            &pod("a"),
            4191,
            seconds(0),
            Reading::of("process_start_time_seconds 1\nnonsense{\n"),
        );
        window.record(&pod("a"), 4191, seconds(10), Reading::of(&text(1, 5_000)));
        window.record(&pod("a"), 4191, seconds(20), Reading::of(&text(1, 5_010)));
        assert!((success(&window, 20, 20) - 0.5).abs() < 1e-9);
    }

    #[test]
    fn a_proxy_that_vanished_has_no_open_connections_and_is_forgotten() {
        let open = "tcp_open_connections{direction=\"inbound\",peer=\"src\"} 4\n";
        let mut window = Window::new(seconds(3600));
        window.record(&pod("a"), 4191, seconds(0), Reading::of(open));
        let open_at = |now| -> u64 {
            window
                .rates(seconds(now), seconds(60))
                .map(|(_, _, rates)| rates.open)
                .sum()
        };
        assert_eq!((open_at(5), open_at(61)), (4, 0));
        window.forget(seconds(3601));
        assert_eq!(window.sources(), 0);
    }

    /// `rate` as Prometheus computes it, from the samples of one counter.
    fn prometheus_rate(samples: &[(u64, u64, u64)], now: u64, length: u64) -> f64 {
        let start = now.saturating_sub(length);
        let inside: Vec<_> = samples
            .iter()
            .filter(|(at, ..)| (start..=now).contains(at))
            .collect();
        let (Some(first), Some(last)) = (inside.first(), inside.last()) else {
            return 0.0;
        };
        if first.0 == last.0 {
            return 0.0;
        }
        let increase: u64 = inside
            .windows(2)
            .map(|pair| {
                let ((_, started, before), (_, restarted, now)) = (pair[0], pair[1]);
                if started == restarted { now - before } else { *now }
            })
            .sum();
        let sampled = (last.0 - first.0) as f64;
        let average = sampled / (inside.len() - 1) as f64;
        let reach = |gap: u64| {
            if (gap as f64) < average * 1.1 {
                gap as f64
            } else {
                average / 2.0
            }
        };
        let reached = sampled + reach(first.0 + length - now) + reach(now - last.0);
        increase as f64 * (reached / sampled) / length as f64
    }

    proptest! {
        #[test]
        fn rates_are_those_of_prometheus(
            looks in proptest::collection::vec((1..25_u64, 0..500_u64, prop::bool::weighted(0.1)), 1..60),
            length in 10..300_u64, after in 0..40_u64,
        ) {
            let mut window = Window::new(seconds(3600));
            let (mut at, mut started, mut value) = (1_000, 1, 1_000_u64);
            let mut samples = Vec::new();
            for (passed, grown, restarts) in looks {
                at += passed;
                if restarts {
                    (started, value) = (started + 10, 0);
                }
                value += grown;
                samples.push((at, started, value));
                window.record(&pod("a"), 4191, seconds(at), Reading::of(&text(started, value)));
            }
            let now = at + after;
            let (ours, theirs) = (success(&window, now, length), prometheus_rate(&samples, now, length));
            prop_assert!((ours - theirs).abs() <= 1e-9 * theirs.max(1.0), "{} {}", ours, theirs);
        }

        #[test]
        fn anything_recorded_gives_finite_answers_and_is_forgotten_in_time(
            looks in proptest::collection::vec((0..4_000_u64, "(response_total|tcp_open_connections|response_latency_ms_bucket|x)", any::<f64>(), any::<f64>()), 0..40),
            span in 1..4_000_u64,
        ) {
            let mut window = Window::new(seconds(span));
            for (at, name, start, value) in looks {
                let text = format!(
                    "process_start_time_seconds {start}\n{name}{{direction=\"inbound\",peer=\"src\",classification=\"success\",le=\"5\"}} {value}\n"
                );
                window.record(&pod("a"), 4191, seconds(at), Reading::of(&text));
                window.forget(seconds(at));
                for (_, _, rates) in window.rates(seconds(at), seconds(60)) {
                    prop_assert!(rates.requests().is_finite() && rates.requests() >= 0.0);
                    prop_assert!(rates.latency_ms(0.99).is_none_or(f64::is_finite));
                }
            }
            window.forget(seconds(4_000 + span));
            prop_assert_eq!((window.sources(), window.bytes()), (0, 0));
        }
    }
}
