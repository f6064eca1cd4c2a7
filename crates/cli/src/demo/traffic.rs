//! Requests per second, success and latency per destination, from two looks at a proxy's metrics.
//!
//! Pure: text in, numbers out. Lines that are no samples are skipped, never an error: they come from elsewhere.

use std::collections::BTreeMap;

use hawser_runtime::exposition::{Histogram, increase, samples};

/// Where requests went: the cluster that answered them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Destination {
    Local,
    /// Through the link to that cluster's gateway.
    Linked(String),
}

/// Counters of one destination since its proxy started.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Totals {
    pub(super) successes: f64,
    pub(super) failures: f64,
    /// In milliseconds.
    latency: Histogram,
}

/// What happened between two looks.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Rates {
    pub(super) requests_per_second: f64,
    /// 0 to 1; absent without requests.
    pub(super) success: Option<f64>,
    pub(super) p50_ms: Option<f64>,
    pub(super) p99_ms: Option<f64>,
}

/// The outbound responses in a proxy's exposition that came from Services whose name starts with `service`.
pub(super) fn totals(exposition: &str, service: &str) -> BTreeMap<Destination, Totals> {
    let mut all: BTreeMap<Destination, Totals> = BTreeMap::new();
    for sample in samples(exposition).flatten() {
        let label = |name| sample.labels.get(name);
        if label("direction").as_deref() != Some("outbound") {
            continue;
        }
        let target = label("dst_target_service").or_else(|| label("dst_service"));
        if !target.is_some_and(|name| name.starts_with(service)) {
            continue;
        }
        let destination = match label("dst_target_cluster") {
            Some(cluster) => Destination::Linked(cluster.into_owned()),
            None => Destination::Local,
        };
        let totals = all.entry(destination).or_default();
        match (sample.name, label("classification").as_deref()) {
            ("response_total", Some("success")) => totals.successes += sample.value,
            ("response_total", _) => totals.failures += sample.value,
            ("response_latency_ms_bucket", _) => {
                if let Some(le) = label("le").and_then(|le| le.parse().ok()) {
                    totals.latency.add(le, sample.value);
                }
            }
            _ => {}
        }
    }
    all
}

/// The difference between two looks, `seconds` apart. A counter that went back (a restart) counts from zero.
pub(super) fn rates(before: &Totals, now: &Totals, seconds: f64) -> Rates {
    let successes = increase(before.successes, now.successes);
    let requests = successes + increase(before.failures, now.failures);
    let latency = now.latency.since(&before.latency);
    Rates {
        requests_per_second: if seconds > 0.0 { requests / seconds } else { 0.0 },
        success: (requests > 0.0).then(|| successes / requests),
        p50_ms: latency.quantile(0.5),
        p99_ms: latency.quantile(0.99),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXPOSITION: &str = "\
# HELP response_total Total count of HTTP responses.
response_total{direction=\"outbound\",dst_service=\"web-svc\",classification=\"success\"} 90
response_total{direction=\"outbound\",dst_service=\"web-svc\",classification=\"failure\"} 10
response_total{direction=\"outbound\",dst_target_cluster=\"east\",dst_target_service=\"web-svc\",classification=\"success\"} 5
response_total{direction=\"outbound\",dst_service=\"emoji-svc\",classification=\"success\"} 7
response_total{direction=\"inbound\",classification=\"success\"} 7
response_latency_ms_bucket{direction=\"outbound\",dst_service=\"web-svc\",le=\"1\"} 50
response_latency_ms_bucket{direction=\"outbound\",dst_service=\"web-svc\",le=\"10\"} 100
response_latency_ms_bucket{direction=\"outbound\",dst_service=\"web-svc\",le=\"+Inf\"} 100
";

    #[test]
    fn responses_are_counted_by_the_cluster_that_answered() {
        let all = totals(EXPOSITION, "web-svc");
        let of = |destination| all.get(&destination).map(|t| (t.successes, t.failures));
        assert_eq!(of(Destination::Local), Some((90.0, 10.0)));
        assert_eq!(of(Destination::Linked("east".into())), Some((5.0, 0.0)));
        assert_eq!(all.len(), 2);
    }

    #[test]
    fn rates_are_differences() {
        let now = totals(EXPOSITION, "web-svc")
            .remove(&Destination::Local)
            .expect("present");
        let rates = rates(&Totals::default(), &now, 10.0);
        assert_eq!(rates.requests_per_second, 10.0);
        assert_eq!(rates.success, Some(0.9));
        assert_eq!(rates.p50_ms, Some(1.0));
        assert!(rates.p99_ms.is_some_and(|ms| (9.0..=10.0).contains(&ms)));
    }

    #[test]
    fn a_restarted_proxy_never_shows_negative_rates() {
        let before = Totals {
            successes: 1000.0,
            ..Totals::default()
        };
        let now = Totals {
            successes: 4.0,
            ..Totals::default()
        };
        assert_eq!(rates(&before, &now, 1.0).requests_per_second, 4.0);
    }
}
