//! Counters, gauges and histograms in Prometheus' text format (0.0.4).
//!
//! For control-plane processes, which count a few things per second: one lock, no cleverness. The data plane has its
//! own, without locks. Label values are escaped, so a name from a cluster can't break the exposition.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

/// All series of a process. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    families: Arc<Mutex<BTreeMap<&'static str, Family>>>,
}

#[derive(Debug)]
struct Family {
    help: &'static str,
    kind: Kind,
    series: BTreeMap<Vec<(String, String)>, Value>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

#[derive(Debug)]
enum Value {
    Number(f64),
    Histogram {
        bounds: &'static [f64],
        counts: Vec<u64>,
        sum: f64,
    },
}

/// Label names and values, in the order in which they are written.
pub type Labels<'a> = &'a [(&'a str, &'a str)];

impl Metrics {
    /// Adds to a counter; the series appears with its first addition, which may be zero.
    pub fn add(&self, name: &'static str, help: &'static str, labels: Labels<'_>, amount: f64) {
        self.with(
            name,
            help,
            Kind::Counter,
            labels,
            || Value::Number(0.0),
            |value| {
                if let Value::Number(number) = value {
                    *number += amount;
                }
            },
        );
    }

    pub fn set(&self, name: &'static str, help: &'static str, labels: Labels<'_>, value: f64) {
        self.with(
            name,
            help,
            Kind::Gauge,
            labels,
            || Value::Number(0.0),
            |number| *number = Value::Number(value),
        );
    }

    /// Records one observation; `bounds` must be ascending and constant for a name.
    pub fn observe(
        &self,
        name: &'static str,
        help: &'static str,
        labels: Labels<'_>,
        bounds: &'static [f64],
        value: f64,
    ) {
        let new = || Value::Histogram {
            bounds,
            counts: vec![0; bounds.len() + 1],
            sum: 0.0,
        };
        self.with(name, help, Kind::Histogram, labels, new, |series| {
            if let Value::Histogram { bounds, counts, sum } = series {
                let bucket = bounds.partition_point(|bound| *bound < value);
                counts[bucket] += 1;
                *sum += value;
            }
        });
    }

    /// Forgets every series of a family whose labels include this one.
    pub fn forget(&self, name: &'static str, label: (&str, &str)) {
        let mut families = self.families.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(family) = families.get_mut(name) {
            family.series.retain(|labels, _| {
                !labels
                    .iter()
                    .any(|(name, value)| (name.as_str(), value.as_str()) == label)
            });
        }
    }

    fn with(
        &self,
        name: &'static str,
        help: &'static str,
        kind: Kind,
        labels: Labels<'_>,
        new: impl FnOnce() -> Value,
        change: impl FnOnce(&mut Value),
    ) {
        let mut families = self.families.lock().unwrap_or_else(PoisonError::into_inner);
        let family = families.entry(name).or_insert_with(|| Family {
            help,
            kind,
            series: BTreeMap::new(),
        });
        debug_assert_eq!(family.kind, kind, "a metric has one type");
        let labels = labels
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        change(family.series.entry(labels).or_insert_with(new));
    }

    /// The whole exposition.
    pub fn render(&self) -> String {
        let mut out = String::new();
        for (name, family) in self
            .families
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
        {
            family.render(name, &mut out);
        }
        out
    }
}

impl Family {
    fn render(&self, name: &str, out: &mut String) {
        let kind = match self.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        // Writing to a String cannot fail.
        let _ = writeln!(out, "# HELP {name} {}\n# TYPE {name} {kind}", self.help);
        for (labels, value) in &self.series {
            let labels = render_labels(labels);
            match value {
                Value::Number(number) if labels.is_empty() => _ = writeln!(out, "{name} {number}"),
                Value::Number(number) => _ = writeln!(out, "{name}{{{labels}}} {number}"),
                Value::Histogram { bounds, counts, sum } => {
                    let comma = if labels.is_empty() { "" } else { "," };
                    let braces = if labels.is_empty() {
                        String::new()
                    } else {
                        format!("{{{labels}}}")
                    };
                    let mut total = 0;
                    for (i, count) in counts.iter().enumerate() {
                        total += count;
                        let bound = bounds.get(i).map_or_else(|| "+Inf".to_owned(), f64::to_string);
                        let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {total}");
                    }
                    let _ = writeln!(out, "{name}_sum{braces} {sum}\n{name}_count{braces} {total}");
                }
            }
        }
    }
}

fn render_labels(labels: &[(String, String)]) -> String {
    let mut out = String::new();
    for (i, (name, value)) in labels.iter().enumerate() {
        let _ = write!(out, "{}{name}=\"", if i == 0 { "" } else { "," });
        escape(value, &mut out);
        out.push('"');
    }
    out
}

/// Writes a label value as the text format wants it.
pub fn escape(value: &str, out: &mut String) {
    for c in value.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exposition_is_prometheus_text() {
        let metrics = Metrics::default();
        metrics.add(
            "probes",
            "Probes sent.",
            &[("cluster", "east"), ("ok", "true")],
            2.0,
        );
        metrics.set("alive", "Gateway is alive.", &[("cluster", "ea\"st\n")], 1.0);
        metrics.observe("latency_ms", "Probe latency.", &[], &[1.0, 5.0], 3.0);
        metrics.observe("latency_ms", "Probe latency.", &[], &[1.0, 5.0], 9.0);
        let expected = "\
# HELP alive Gateway is alive.
# TYPE alive gauge
alive{cluster=\"ea\\\"st\\n\"} 1
# HELP latency_ms Probe latency.
# TYPE latency_ms histogram
latency_ms_bucket{le=\"1\"} 0
latency_ms_bucket{le=\"5\"} 1
latency_ms_bucket{le=\"+Inf\"} 2
latency_ms_sum 12
latency_ms_count 2
# HELP probes Probes sent.
# TYPE probes counter
probes{cluster=\"east\",ok=\"true\"} 2
";
        assert_eq!(metrics.render(), expected);
    }

    #[test]
    fn a_forgotten_cluster_takes_only_its_own_series_along() {
        let metrics = Metrics::default();
        for cluster in ["east", "north"] {
            metrics.set(
                "alive",
                "Gateway is alive.",
                &[("cluster", cluster), ("x", "y")],
                1.0,
            );
        }
        metrics.forget("alive", ("cluster", "east"));
        let rendered = metrics.render();
        assert!(
            rendered.contains("north") && !rendered.contains("east"),
            "{rendered}"
        );
    }
}
