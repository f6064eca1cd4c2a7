//! A drill: backends that are left for a while although they can serve, as if they had failed.
//!
//! Kept in an annotation of the split, with an end that lies near and that whoever watches renews. So a drill whose
//! watcher dies, or loses the API server, ends by itself. It is heeded only while somebody else can serve.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use hawser_core::ServiceName;
use hawser_core::Weight;
use hawser_core::failover::{self, Phase};
use hawser_crd::TrafficSplit;
use hawser_crd::keys;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::plan;
use crate::observe::Key;

/// Ends further away are taken for mistakes: nobody watches for so long without renewing.
pub const DRILL_MAX: Duration = Duration::from_secs(120);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Drill {
    /// Who is left, of the split's backends.
    pub backends: BTreeSet<String>,
    pub until: Timestamp,
    /// Who drills, for people.
    #[serde(default)]
    pub by: String,
}

impl Drill {
    /// The drill that goes on now, or why what is written is none.
    pub(super) fn of(
        annotations: &BTreeMap<String, String>,
        now: SystemTime,
    ) -> Result<Option<Self>, String> {
        let key = keys::FAILOVER_DRILL;
        let Some(text) = annotations.get(key) else {
            return Ok(None);
        };
        let drill: Self = serde_json::from_str(text)
            .map_err(|error| format!("annotation {key} is {text:?}, which is no drill: {error}"))?;
        let left = SystemTime::from(drill.until)
            .duration_since(now)
            .unwrap_or_default();
        if left > DRILL_MAX {
            // Without the time that is left: a mistake is told again when it reads differently.
            return Err(format!(
                "annotation {key} ends more than {} s from now: nobody drills",
                DRILL_MAX.as_secs()
            ));
        }
        Ok((!left.is_zero()).then_some(drill))
    }
}

/// What the controller would do.
#[derive(Clone, Debug, PartialEq)]
pub struct Forecast {
    /// In the order of the split's backends.
    pub weights: Vec<(ServiceName, Weight)>,
    pub phase: Phase,
    pub drill: failover::Drill,
    /// What of the split isn't understood.
    pub mistakes: Vec<String>,
}

/// What the controller would do about a split, by the function by which it decides. Measurements are left out: a drill
/// is about what happens to those that are well.
pub fn forecast(
    split: &TrafficSplit,
    is_ready: &dyn Fn(&str) -> bool,
    now: SystemTime,
) -> Result<Forecast, String> {
    let key = Key::of(split);
    let ready = |place: &Key| is_ready(&place.name);
    let decision = plan::decide(&key, split, &ready, &|_, _, _| None, now)?;
    let names = split
        .spec
        .backends
        .iter()
        .filter_map(|backend| backend.service.parse().ok());
    Ok(Forecast {
        weights: names.zip(decision.plan.weights).collect(),
        phase: decision.plan.state.phase,
        drill: decision.plan.drill,
        mistakes: decision.mistakes,
    })
}
