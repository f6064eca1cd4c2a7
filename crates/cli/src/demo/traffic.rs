//! Requests per second, success and latency per destination, from two looks at a proxy's metrics.
//!
//! Pure: text in, numbers out. Quantiles are interpolated inside a histogram's bucket, as Prometheus does.

use std::collections::BTreeMap;

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
    /// Cumulative counts by upper bound in milliseconds.
    buckets: BTreeMap<u64, f64>,
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
    for line in exposition.lines() {
        let Some(sample) = Sample::parse(line) else {
            continue;
        };
        if sample.label("direction") != Some("outbound") {
            continue;
        }
        let target = sample
            .label("dst_target_service")
            .or_else(|| sample.label("dst_service"));
        if !target.is_some_and(|name| name.starts_with(service)) {
            continue;
        }
        let destination = match sample.label("dst_target_cluster") {
            Some(cluster) => Destination::Linked(cluster.to_owned()),
            None => Destination::Local,
        };
        let totals = all.entry(destination).or_default();
        match (sample.name, sample.label("classification")) {
            ("response_total", Some("success")) => totals.successes += sample.value,
            ("response_total", _) => totals.failures += sample.value,
            ("response_latency_ms_bucket", _) => {
                let bound = sample
                    .label("le")
                    .map_or(u64::MAX, |le| le.parse().unwrap_or(u64::MAX));
                *totals.buckets.entry(bound).or_default() += sample.value;
            }
            _ => {}
        }
    }
    all
}

/// The difference between two looks, `seconds` apart. A counter that went back (a restart) counts from zero.
pub(super) fn rates(before: &Totals, now: &Totals, seconds: f64) -> Rates {
    let delta = |was: f64, is: f64| if is >= was { is - was } else { is };
    let successes = delta(before.successes, now.successes);
    let requests = successes + delta(before.failures, now.failures);
    let buckets: BTreeMap<u64, f64> = now
        .buckets
        .iter()
        .map(|(bound, count)| {
            (
                *bound,
                delta(before.buckets.get(bound).copied().unwrap_or(0.0), *count),
            )
        })
        .collect();
    Rates {
        requests_per_second: if seconds > 0.0 { requests / seconds } else { 0.0 },
        success: (requests > 0.0).then(|| successes / requests),
        p50_ms: quantile(&buckets, 0.5),
        p99_ms: quantile(&buckets, 0.99),
    }
}

fn quantile(buckets: &BTreeMap<u64, f64>, q: f64) -> Option<f64> {
    let total = buckets.get(&u64::MAX).copied().filter(|total| *total > 0.0)?;
    let wanted = q * total;
    let (mut lower, mut below) = (0.0, 0.0);
    for (bound, count) in buckets {
        if *count >= wanted {
            if *bound == u64::MAX {
                return Some(lower);
            }
            let upper = *bound as f64;
            let inside = count - below;
            let share = if inside > 0.0 {
                (wanted - below) / inside
            } else {
                1.0
            };
            return Some(lower + (upper - lower) * share);
        }
        (lower, below) = (if *bound == u64::MAX { lower } else { *bound as f64 }, *count);
    }
    None
}

/// One line of the text format. Lines that are none are skipped, never an error: they come from elsewhere.
struct Sample<'a> {
    name: &'a str,
    labels: Vec<(&'a str, String)>,
    value: f64,
}

impl<'a> Sample<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        if line.starts_with('#') {
            return None;
        }
        let name_ends = line.find(['{', ' '])?;
        let (name, mut rest) = line.split_at(name_ends);
        let mut labels = Vec::new();
        if let Some(inside) = rest.strip_prefix('{') {
            rest = inside;
            loop {
                rest = rest.trim_start_matches(',');
                if let Some(after) = rest.strip_prefix('}') {
                    rest = after;
                    break;
                }
                let (label, after) = rest.split_once("=\"")?;
                let (value, after) = unescape(after)?;
                labels.push((label, value));
                rest = after;
            }
        }
        let value = rest.split_ascii_whitespace().next()?.parse().ok()?;
        Some(Self { name, labels, value })
    }

    fn label(&self, name: &str) -> Option<&str> {
        self.labels
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, value)| value.as_str())
    }
}

/// A quoted label value up to its closing quote, and what follows.
fn unescape(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match chars.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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

    proptest! {
        #[test]
        fn any_exposition_is_read_without_panic(text in "(?s).{0,200}") {
            totals(&text, "web");
        }

        #[test]
        fn any_line_is_a_sample_or_skipped(line in "[a-z_]{1,9}\\{([a-z]{1,3}=\"[^\"]{0,4}\"?,?){0,3}\\}? ?[0-9a-z.]{0,4}") {
            let _ = Sample::parse(&line);
        }
    }
}
