//! Whether a member that has endpoints also answers: measured requests against thresholds.
//!
//! Off unless a threshold is set. Too few requests say nothing, so that an idle service is neither blamed nor praised.
//! Where the numbers come from, and over which time they were counted, is the caller's business.

use std::fmt;
use std::time::Duration;

/// What a member must do to be trusted with traffic.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Thresholds {
    /// Smallest share of successful requests, 0 to 1.
    pub success_min: Option<f64>,
    /// Longest latency, at the quantile at which [`Measured::latency`] was taken.
    pub latency_max: Option<Duration>,
    /// Fewer requests than this are no evidence.
    pub requests_min: u64,
}

/// The requests that a member answered lately.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Measured {
    pub requests: u64,
    /// How many of them failed.
    pub failures: u64,
    pub latency: Option<Duration>,
}

/// How a member fell short.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    Success { measured: Measured, wanted: f64 },
    Latency { measured: Measured, wanted: Duration },
}

/// What the measurements say.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Verdict {
    /// Nothing: no threshold, or too few requests.
    Unknown,
    Good,
    /// Within the thresholds, but not by enough to be given more traffic.
    Poor,
    Bad(Fault),
}

/// More traffic is given only to who fails at most this share of the failures that are allowed: a member on the edge
/// would otherwise come and go.
const FAILURES_TO_RETURN: f64 = 0.5;
/// The same for latency.
const LATENCY_TO_RETURN: f64 = 0.75;
/// `1.0 - 0.9` is a little less than a tenth, and a tenth is allowed.
const EPSILON: f64 = 1e-9;

impl Thresholds {
    /// Whether measuring makes any difference.
    pub fn any(&self) -> bool {
        self.success_min.is_some() || self.latency_max.is_some()
    }

    pub(super) fn judge(&self, measured: Option<&Measured>) -> Verdict {
        let Some(measured) = measured
            .copied()
            .filter(|measured| self.any() && measured.requests >= self.requests_min.max(1))
        else {
            return Verdict::Unknown;
        };
        let failed = measured.failed();
        let mut poor = false;
        if let Some(wanted) = self.success_min {
            let allowed = 1.0 - wanted;
            if failed > allowed + EPSILON {
                return Verdict::Bad(Fault::Success { measured, wanted });
            }
            poor |= failed > allowed * FAILURES_TO_RETURN + EPSILON;
        }
        if let (Some(wanted), Some(latency)) = (self.latency_max, measured.latency) {
            if latency > wanted {
                return Verdict::Bad(Fault::Latency { measured, wanted });
            }
            poor |= latency > wanted.mul_f64(LATENCY_TO_RETURN);
        }
        if poor { Verdict::Poor } else { Verdict::Good }
    }
}

impl Measured {
    /// The share of requests that failed.
    fn failed(&self) -> f64 {
        // Counts of requests are far below 2^53.
        self.failures as f64 / self.requests.max(1) as f64
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Success { measured, wanted } => write!(
                f,
                "{:.1} % of {} requests succeeded, wanted are {} %",
                (1.0 - measured.failed()) * 100.0,
                measured.requests,
                percent(*wanted)
            ),
            Self::Latency { measured, wanted } => write!(
                f,
                "{} requests took up to {} ms, wanted are {} ms",
                measured.requests,
                measured.latency.unwrap_or_default().as_millis(),
                wanted.as_millis()
            ),
        }
    }
}

/// Without digits that say nothing: `95`, `99.95`.
fn percent(share: f64) -> f64 {
    (share * 1e6).round() / 1e4
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(requests: u64, failures: u64, latency_ms: u64) -> Verdict {
        let thresholds = Thresholds {
            success_min: Some(0.9),
            latency_max: Some(Duration::from_millis(400)),
            requests_min: 20,
        };
        thresholds.judge(Some(&Measured {
            requests,
            failures,
            latency: Some(Duration::from_millis(latency_ms)),
        }))
    }

    fn fault(verdict: Verdict) -> String {
        match verdict {
            Verdict::Bad(fault) => fault.to_string(),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn who_fails_or_dawdles_is_told_by_how_much() {
        assert_eq!(
            fault(judge(200, 76, 10)),
            "62.0 % of 200 requests succeeded, wanted are 90 %"
        );
        assert_eq!(
            fault(judge(200, 0, 812)),
            "200 requests took up to 812 ms, wanted are 400 ms"
        );
    }

    #[test]
    fn few_requests_are_no_evidence() {
        assert_eq!(judge(19, 19, 5_000), Verdict::Unknown);
        assert_eq!(
            Thresholds::default().judge(Some(&Measured::default())),
            Verdict::Unknown
        );
    }

    #[test]
    fn the_edge_is_good_enough_to_stay_and_not_to_return() {
        assert_eq!(judge(100, 10, 10), Verdict::Poor);
        assert_eq!(judge(100, 5, 10), Verdict::Good);
        assert_eq!(judge(100, 0, 400), Verdict::Poor);
        assert_eq!(judge(100, 0, 300), Verdict::Good);
    }
}
