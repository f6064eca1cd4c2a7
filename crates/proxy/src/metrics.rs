//! Counters of the data plane, sharded by worker (`spec/proxy.md` 8).
//!
//! A series belongs to one worker, which alone writes it: an addition is a load and a store, no locked instruction.
//! Handles are resolved once per connection, endpoint or route, under the shard's lock; a scrape merges the shards.
//! Series that nobody holds and that stopped moving are forgotten.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// More series than this in one shard are counted but not exported, so a hostile client can't exhaust memory.
const SERIES_MAX: usize = 16_384;

/// Upper bounds of `response_latency_ms`.
const LATENCY_MS: [u64; 26] = [
    1,
    2,
    3,
    4,
    5,
    10,
    20,
    30,
    40,
    50,
    100,
    200,
    300,
    400,
    500,
    1_000,
    2_000,
    3_000,
    4_000,
    5_000,
    10_000,
    20_000,
    30_000,
    40_000,
    50_000,
    u64::MAX,
];

/// Written by one thread, read by any. Also serves as a gauge: subtraction wraps back.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    pub(crate) fn inc(&self) {
        self.add(1);
    }

    pub(crate) fn dec(&self) {
        self.add(u64::MAX);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Latency {
    buckets: [Counter; LATENCY_MS.len()],
    sum_us: Counter,
}

impl Latency {
    pub(crate) fn observe(&self, elapsed: Duration) {
        let ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
        self.buckets[LATENCY_MS.partition_point(|bound| *bound < ms)].inc();
        // Within one cluster whole milliseconds would be nearly nothing.
        self.sum_us
            .add(u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX));
    }
}

/// Label names and values as the exposition writes them, escaped. Cheap to extend, compared as text.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Labels(String);

impl Labels {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// A copy with one more label.
    pub(crate) fn with(&self, name: &str, value: impl std::fmt::Display) -> Self {
        let mut labels = self.clone();
        labels.push(name, value);
        labels
    }

    /// A copy with all of another's labels.
    pub(crate) fn and(mut self, other: &Self) -> Self {
        if !self.0.is_empty() && !other.0.is_empty() {
            self.0.push(',');
        }
        self.0.push_str(&other.0);
        self
    }

    /// Names and values as they were given.
    pub(crate) fn pairs(&self) -> Vec<(String, String)> {
        let sample = format!("x{{{}}} 0\n", self.0);
        let samples = hawser_runtime::exposition::samples(&sample).filter_map(Result::ok);
        let labels = samples.flat_map(|sample| sample.labels.iter());
        labels
            .map(|(name, value)| (name.to_owned(), value.into_owned()))
            .collect()
    }

    pub(crate) fn push(&mut self, name: &str, value: impl std::fmt::Display) {
        if !self.0.is_empty() {
            self.0.push(',');
        }
        for c in name.chars() {
            self.0.push(if c.is_ascii_alphanumeric() || c == '_' {
                c
            } else {
                '_'
            });
        }
        self.0.push_str("=\"");
        hawser_runtime::metrics::escape(&value.to_string(), &mut self.0);
        self.0.push('"');
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

#[derive(Clone, Debug)]
enum Value {
    Number(Arc<Counter>),
    Latency(Arc<Latency>),
}

#[derive(Debug)]
struct Series {
    kind: Kind,
    value: Value,
    seen: u64,
    changed_at: Instant,
}

/// The series of one worker.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shard(Arc<Mutex<BTreeMap<(&'static str, Labels), Series>>>);

impl Shard {
    pub(crate) fn counter(&self, name: &'static str, labels: Labels) -> Arc<Counter> {
        self.number(name, labels, Kind::Counter)
    }

    pub(crate) fn gauge(&self, name: &'static str, labels: Labels) -> Arc<Counter> {
        self.number(name, labels, Kind::Gauge)
    }

    fn number(&self, name: &'static str, labels: Labels, kind: Kind) -> Arc<Counter> {
        match self.resolve(name, labels, kind, || Value::Number(Arc::default())) {
            Value::Number(counter) => counter,
            Value::Latency(_) => Arc::default(),
        }
    }

    pub(crate) fn latency(&self, name: &'static str, labels: Labels) -> Arc<Latency> {
        match self.resolve(name, labels, Kind::Histogram, || Value::Latency(Arc::default())) {
            Value::Latency(latency) => latency,
            Value::Number(_) => Arc::default(),
        }
    }

    fn resolve(&self, name: &'static str, labels: Labels, kind: Kind, new: impl Fn() -> Value) -> Value {
        let mut series = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(series) = series.get(&(name, labels.clone())) {
            return series.value.clone();
        }
        let value = new();
        if series.len() < SERIES_MAX {
            let entry = Series {
                kind,
                value: value.clone(),
                seen: 0,
                changed_at: Instant::now(),
            };
            series.insert((name, labels), entry);
        }
        value
    }
}

/// All shards of the process.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    shards: Arc<Mutex<Vec<Shard>>>,
}

impl Metrics {
    pub(crate) fn shard(&self) -> Shard {
        let shard = Shard::default();
        self.shards
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(shard.clone());
        shard
    }

    /// Forgets series that nobody holds and that have not moved for `idle`.
    pub(crate) fn evict(&self, now: Instant, idle: Duration) {
        for shard in self.shards.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            shard
                .0
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .retain(|_, series| {
                    let (held, seen) = match &series.value {
                        Value::Number(counter) => (Arc::strong_count(counter) > 1, counter.get()),
                        Value::Latency(latency) => {
                            let count = latency
                                .buckets
                                .iter()
                                .map(Counter::get)
                                .fold(0, u64::wrapping_add);
                            (Arc::strong_count(latency) > 1, count)
                        }
                    };
                    if held || seen != series.seen {
                        series.seen = seen;
                        series.changed_at = now;
                    }
                    now.duration_since(series.changed_at) < idle
                });
        }
    }

    /// The exposition of all shards, merged.
    pub(crate) fn render(&self) -> String {
        #[derive(Clone)]
        enum Sum {
            Number(u64),
            Latency(Box<[u64; LATENCY_MS.len()]>, u64),
        }
        let mut merged: BTreeMap<&'static str, (Kind, BTreeMap<Labels, Sum>)> = BTreeMap::new();
        for shard in self.shards.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            for ((name, labels), series) in shard.0.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                let family = merged
                    .entry(name)
                    .or_insert_with(|| (series.kind, BTreeMap::new()));
                let sum = family
                    .1
                    .entry(labels.clone())
                    .or_insert_with(|| match series.kind {
                        Kind::Histogram => Sum::Latency(Box::new([0; LATENCY_MS.len()]), 0),
                        Kind::Counter | Kind::Gauge => Sum::Number(0),
                    });
                match (sum, &series.value) {
                    (Sum::Number(total), Value::Number(counter)) => {
                        *total = total.wrapping_add(counter.get())
                    }
                    (Sum::Latency(buckets, sum), Value::Latency(latency)) => {
                        for (total, bucket) in buckets.iter_mut().zip(&latency.buckets) {
                            *total += bucket.get();
                        }
                        *sum = sum.wrapping_add(latency.sum_us.get());
                    }
                    _ => {}
                }
            }
        }
        let mut out = String::new();
        // Writing to a String cannot fail.
        for (name, (kind, series)) in merged {
            let kind = match kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
                Kind::Histogram => "histogram",
            };
            let _ = writeln!(out, "# TYPE {name} {kind}");
            for (Labels(labels), sum) in series {
                let braces = if labels.is_empty() {
                    String::new()
                } else {
                    format!("{{{labels}}}")
                };
                match sum {
                    Sum::Number(n) => _ = writeln!(out, "{name}{braces} {}", n as i64),
                    Sum::Latency(buckets, sum) => {
                        let comma = if labels.is_empty() { "" } else { "," };
                        let mut total = 0;
                        for (bound, count) in LATENCY_MS.iter().zip(*buckets) {
                            total += count;
                            let bound = if *bound == u64::MAX {
                                "+Inf".to_owned()
                            } else {
                                bound.to_string()
                            };
                            let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {total}");
                        }
                        let (whole, rest) = (sum / 1_000, sum % 1_000);
                        let _ = writeln!(
                            out,
                            "{name}_sum{braces} {whole}.{rest:03}\n{name}_count{braces} {total}"
                        );
                    }
                }
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_merged_and_labels_escaped() {
        let metrics = Metrics::default();
        for n in [1, 2] {
            let labels = Labels::new()
                .with("direction", "inbound")
                .with("dst_a-b/c", "x\"y\\z\n");
            metrics.shard().counter("request_total", labels).add(n);
        }
        assert_eq!(
            metrics.render(),
            "# TYPE request_total counter\nrequest_total{direction=\"inbound\",dst_a_b_c=\"x\\\"y\\\\z\\n\"} 3\n"
        );
    }

    #[test]
    fn gauges_come_back_to_zero() {
        let metrics = Metrics::default();
        let open = metrics.shard().gauge("tcp_open_connections", Labels::new());
        open.inc();
        open.dec();
        assert!(metrics.render().ends_with("tcp_open_connections 0\n"));
    }

    #[test]
    fn latencies_are_cumulative() {
        let metrics = Metrics::default();
        let latency = metrics.shard().latency("response_latency_ms", Labels::new());
        latency.observe(Duration::from_micros(2_250));
        latency.observe(Duration::from_secs(3_600));
        let text = metrics.render();
        for line in [
            "_bucket{le=\"1\"} 0",
            "_bucket{le=\"2\"} 1",
            "_bucket{le=\"50000\"} 1",
            "_bucket{le=\"+Inf\"} 2",
            "_count 2",
            "_sum 3600002.250",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
    }

    #[test]
    fn idle_series_are_forgotten_but_held_ones_stay() {
        let metrics = Metrics::default();
        let shard = metrics.shard();
        let held = shard.counter("held_total", Labels::new());
        shard.counter("gone_total", Labels::new()).inc();
        let now = Instant::now();
        metrics.evict(now, Duration::from_secs(600));
        assert!(metrics.render().contains("gone_total 1"));
        metrics.evict(now + Duration::from_secs(601), Duration::from_secs(600));
        assert!(!metrics.render().contains("gone_total"));
        assert!(metrics.render().contains("held_total 0"));
        held.inc();
    }
}
