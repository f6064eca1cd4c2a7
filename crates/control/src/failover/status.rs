//! What the controller decided last about a TrafficSplit, as it is kept in an annotation of it.
//!
//! For people and programs who want to know why the weights are as they are, and for the controller itself: it is what
//! makes a restart change nothing. An annotation that can't be read counts as none.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use hawser_core::failover::{Away, Phase, Reason, State};
use hawser_crd::split::SplitWeight;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// `Primary`, `Fallback`, `Returning`, `NobodyReady` or `NoPrimary`.
    pub phase: String,
    /// Why, in one word.
    pub reason: String,
    /// Why, in the words of the Event.
    pub message: String,
    /// Since when it is so.
    pub since: Timestamp,
    /// Where traffic is on its way to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub returning: Option<Returning>,
    /// The weights that were written.
    pub weights: BTreeMap<String, SplitWeight>,
    /// Which services were left lately, and when they may come back at the earliest.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub away: BTreeMap<String, Absence>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Returning {
    pub to: String,
    pub step: u32,
    pub steps: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Absence {
    pub since: Timestamp,
    pub until: Timestamp,
}

impl Status {
    pub fn parse(annotation: &str) -> Option<Self> {
        serde_json::from_str(annotation).ok()
    }

    pub(crate) fn new(state: &State, steps: u32, reason: &Reason) -> Self {
        let returning = match &state.phase {
            Phase::Returning { to, step } => Some(Returning {
                to: to.to_string(),
                step: *step,
                steps,
            }),
            _ => None,
        };
        let phase = match state.phase {
            Phase::Primary => "Primary",
            Phase::Fallback => "Fallback",
            Phase::Returning { .. } => "Returning",
            Phase::NobodyReady => "NobodyReady",
            Phase::NoPrimary => "NoPrimary",
        };
        let absence = |away: &Away| Absence {
            since: timestamp(away.since),
            until: timestamp(away.since.checked_add(away.hold).unwrap_or(away.since)),
        };
        Self {
            phase: phase.into(),
            reason: reason.kind().into(),
            message: reason.to_string(),
            since: timestamp(state.since),
            returning,
            weights: (state.weights.iter())
                .map(|(service, weight)| (service.to_string(), SplitWeight(*weight)))
                .collect(),
            away: (state.away.iter())
                .map(|(service, away)| (service.to_string(), absence(away)))
                .collect(),
        }
    }

    /// What was decided, as far as it makes sense.
    pub(crate) fn state(&self) -> Option<State> {
        let phase = match (self.phase.as_str(), &self.returning) {
            ("Primary", _) => Phase::Primary,
            ("Fallback", _) => Phase::Fallback,
            ("Returning", Some(returning)) => Phase::Returning {
                to: returning.to.parse().ok()?,
                step: returning.step,
            },
            ("NobodyReady", _) => Phase::NobodyReady,
            ("NoPrimary", _) => Phase::NoPrimary,
            _ => return None,
        };
        let weights = self.weights.iter();
        let weights = weights.filter_map(|(service, weight)| Some((service.parse().ok()?, weight.0)));
        let away = self.away.iter().filter_map(|(service, absence)| {
            let hold = absence.until.duration_since(absence.since);
            let away = Away {
                since: SystemTime::from(absence.since),
                hold: Duration::try_from(hold).ok()?,
            };
            Some((service.parse().ok()?, away))
        });
        Some(State {
            phase,
            since: SystemTime::from(self.since),
            weights: weights.collect(),
            away: away.collect(),
        })
    }
}

/// Times outside of what calendars hold can't come from a clock.
fn timestamp(time: SystemTime) -> Timestamp {
    Timestamp::try_from(time).unwrap_or(Timestamp::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hawser_core::Weight;

    fn state(phase: Phase) -> State {
        let seconds = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let service = |name: &str| name.parse().expect("a legal name");
        State {
            phase,
            since: seconds(1_000),
            weights: BTreeMap::from([(service("web"), Weight::ZERO), (service("web-east"), Weight::ONE)]),
            away: BTreeMap::from([(
                service("web"),
                Away {
                    since: seconds(1_000),
                    hold: Duration::from_secs(10),
                },
            )]),
        }
    }

    #[test]
    fn what_is_written_reads_back() {
        let web: hawser_core::ServiceName = "web".parse().unwrap();
        let returning = Phase::Returning {
            to: web.clone(),
            step: 2,
        };
        for phase in [
            Phase::Primary,
            Phase::Fallback,
            Phase::NobodyReady,
            Phase::NoPrimary,
            returning,
        ] {
            let state = state(phase);
            let written =
                serde_json::to_string(&Status::new(&state, 5, &Reason::NotReady(web.clone()))).unwrap();
            assert_eq!(
                Status::parse(&written).and_then(|read| read.state()),
                Some(state),
                "{written}"
            );
        }
    }

    #[test]
    fn the_annotation_is_readable() {
        let web = "web".parse().unwrap();
        let status = Status::new(&state(Phase::Fallback), 5, &Reason::NotReady(web));
        assert_eq!(
            serde_json::to_string(&status).unwrap(),
            r#"{"phase":"Fallback","reason":"NotReady","message":"web has no ready endpoints","since":"1970-01-01T00:16:40Z","weights":{"web":0,"web-east":1},"away":{"web":{"since":"1970-01-01T00:16:40Z","until":"1970-01-01T00:16:50Z"}}}"#
        );
    }

    #[test]
    fn what_cannot_be_read_counts_as_nothing() {
        for annotation in ["", "{}", "nonsense", r#"{"phase":"Primary"}"#] {
            assert_eq!(Status::parse(annotation), None, "{annotation}");
        }
        let mut status = Status::new(&state(Phase::Primary), 5, &Reason::Edited);
        status.phase = "Elsewhere".into();
        assert_eq!(status.state(), None);
    }
}
