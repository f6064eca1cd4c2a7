//! What annotations of a TrafficSplit ask for.
//!
//! A mistake in an optional annotation costs its effect, not the failover: the default holds, and the mistake is
//! told. `docs/failover.md` describes every one.

use std::collections::BTreeMap;
use std::time::Duration;

use hawser_core::failover::{Policy, Thresholds};
use hawser_crd::keys;
use hawser_crd::link::parse_duration;

/// Longer dwells, returns and windows are taken for mistakes.
const DURATION_MAX: Duration = Duration::from_secs(24 * 3600);
/// Bounds what is remembered of every service.
pub(crate) const WINDOW_MAX: Duration = Duration::from_secs(600);
const STEPS_MAX: u32 = 100;
const WINDOW: Duration = Duration::from_secs(30);
const QUANTILE: f64 = 0.95;
const REQUESTS_MIN: u64 = 20;

#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    pub policy: Policy,
    /// Over which time requests are counted.
    pub window: Duration,
    /// Which latency is compared.
    pub quantile: f64,
    /// What was asked for and can't be had.
    pub mistakes: Vec<String>,
}

impl Settings {
    /// Without the primary, which isn't optional.
    pub fn parse(annotations: &BTreeMap<String, String>) -> Self {
        let mut reader = Reader {
            annotations,
            mistakes: Vec::new(),
        };
        let default = Policy::default();
        let order = reader.read(
            keys::FAILOVER_SECONDARY_ORDER,
            "names of services with commas between them",
            |text| {
                let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
                names.map(|name| name.parse().ok()).collect()
            },
        );
        let dwell = reader.read(keys::FAILOVER_MIN_DWELL, "a duration up to 24h", duration);
        let return_over = reader.read(keys::FAILOVER_RETURN_OVER, "a duration up to 24h", duration);
        let return_steps = reader.read(keys::FAILOVER_RETURN_STEPS, "a number from 1 to 100", |text| {
            text.parse().ok().filter(|steps| (1..=STEPS_MAX).contains(steps))
        });
        let success_min = reader.read(
            keys::FAILOVER_MIN_SUCCESS_RATE,
            "a share such as 0.95 or 95%",
            share,
        );
        let latency_max = reader.read(keys::FAILOVER_MAX_LATENCY, "a duration such as 500ms", |text| {
            duration(text).filter(|latency| !latency.is_zero())
        });
        let quantile = reader.read(
            keys::FAILOVER_LATENCY_QUANTILE,
            "a share such as 0.95 or 95%",
            share,
        );
        let requests_min = reader.read(keys::FAILOVER_MIN_REQUESTS, "a number from 1", |text| {
            text.parse().ok().filter(|requests| *requests > 0)
        });
        let window = reader.read(keys::FAILOVER_WINDOW, "a duration from 5s to 10m", |text| {
            duration(text).filter(|window| (Duration::from_secs(5)..=WINDOW_MAX).contains(window))
        });
        Self {
            policy: Policy {
                primary: None,
                order: order.unwrap_or_default(),
                dwell: dwell.unwrap_or(default.dwell),
                return_over: return_over.unwrap_or(default.return_over),
                return_steps: return_steps.unwrap_or(default.return_steps),
                thresholds: Thresholds {
                    success_min,
                    latency_max,
                    requests_min: requests_min.unwrap_or(REQUESTS_MIN),
                },
            },
            window: window.unwrap_or(WINDOW),
            quantile: quantile.unwrap_or(QUANTILE),
            mistakes: reader.mistakes,
        }
    }
}

struct Reader<'a> {
    annotations: &'a BTreeMap<String, String>,
    mistakes: Vec<String>,
}

impl Reader<'_> {
    fn read<T>(&mut self, key: &str, wanted: &str, parse: impl Fn(&str) -> Option<T>) -> Option<T> {
        let text = self.annotations.get(key)?.trim();
        let value = parse(text);
        if value.is_none() {
            self.mistakes.push(format!(
                "annotation {key} is {text:?}, not {wanted}; the default holds"
            ));
        }
        value
    }
}

fn duration(text: &str) -> Option<Duration> {
    // Zero needs no unit.
    let duration = if text == "0" {
        Some(Duration::ZERO)
    } else {
        parse_duration(text)
    };
    duration.filter(|duration| *duration <= DURATION_MAX)
}

fn share(text: &str) -> Option<f64> {
    let share: f64 = match text.strip_suffix('%') {
        Some(percent) => percent.trim_end().parse::<f64>().ok()? / 100.0,
        None => text.parse().ok()?,
    };
    (share > 0.0 && share <= 1.0).then_some(share)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(annotations: &[(&str, &str)]) -> Settings {
        let annotations = annotations
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        Settings::parse(&annotations.collect())
    }

    #[test]
    fn without_annotations_everything_is_as_documented() {
        let settings = parse(&[]);
        let expected = Policy {
            thresholds: Thresholds {
                requests_min: 20,
                ..Thresholds::default()
            },
            ..Policy::default()
        };
        assert_eq!(settings.policy, expected);
        assert_eq!(
            (settings.window, settings.quantile),
            (Duration::from_secs(30), 0.95)
        );
        assert!(!settings.policy.thresholds.any());
        assert_eq!(settings.mistakes, [""; 0]);
    }

    #[test]
    fn every_annotation_is_heard() {
        let settings = parse(&[
            (keys::FAILOVER_SECONDARY_ORDER, "b, a"),
            (keys::FAILOVER_MIN_DWELL, "1m"),
            (keys::FAILOVER_RETURN_OVER, "0"),
            (keys::FAILOVER_RETURN_STEPS, "3"),
            (keys::FAILOVER_MIN_SUCCESS_RATE, "99.5%"),
            (keys::FAILOVER_MAX_LATENCY, "250ms"),
            (keys::FAILOVER_LATENCY_QUANTILE, "0.99"),
            (keys::FAILOVER_MIN_REQUESTS, "5"),
            (keys::FAILOVER_WINDOW, "10s"),
        ]);
        let expected = Policy {
            primary: None,
            order: ["b", "a"].iter().filter_map(|name| name.parse().ok()).collect(),
            dwell: Duration::from_secs(60),
            return_over: Duration::ZERO,
            return_steps: 3,
            thresholds: Thresholds {
                success_min: Some(0.995),
                latency_max: Some(Duration::from_millis(250)),
                requests_min: 5,
            },
        };
        assert_eq!(settings.policy, expected);
        assert_eq!(
            (settings.window, settings.quantile),
            (Duration::from_secs(10), 0.99)
        );
        assert_eq!(settings.mistakes, [""; 0]);
    }

    #[test]
    fn a_mistake_is_told_and_costs_only_itself() {
        let settings = parse(&[
            (keys::FAILOVER_MIN_SUCCESS_RATE, "95"),
            (keys::FAILOVER_MIN_DWELL, "soon"),
            (keys::FAILOVER_RETURN_STEPS, "2"),
        ]);
        assert_eq!(
            settings.mistakes,
            [
                "annotation failover.linkerd.io/min-dwell is \"soon\", not a duration up to 24h; the default holds",
                "annotation failover.linkerd.io/min-success-rate is \"95\", not a share such as 0.95 or 95%; \
                 the default holds",
            ]
        );
        assert_eq!(settings.policy.dwell, Policy::default().dwell);
        assert_eq!(settings.policy.return_steps, 2);
    }
}
