//! What a drill would do, and what speaks against it.
//!
//! Pure: from what was seen to a forecast. The weights are the failover controller's, by the function by which it decides;
//! here they become requests per second, and objections that a person can judge.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use hawser_control::failover::{Drill, Settings, Status, forecast};
use hawser_core::Weight;
use hawser_core::failover;
use hawser_crd::{TrafficSplit, keys};
use hawser_viz::api::Stat;
use jiff::Timestamp;
use kube::ResourceExt;
use serde::Serialize;

/// Fewer requests in the window are no evidence.
pub(super) const REQUESTS_MIN: f64 = 10.0;

/// What must hold while somebody drills.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Limits {
    /// Smallest share of successful requests.
    pub(super) success_min: f64,
    /// Longest 95th percentile of the latency.
    pub(super) latency_max_ms: Option<f64>,
}

/// The requests to a split's backends, as their clients see them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Traffic {
    pub(super) rps: f64,
    pub(super) success: Option<f64>,
    pub(super) p95_ms: Option<f64>,
}

impl Traffic {
    pub(super) fn of(stat: &Stat) -> Self {
        Self {
            rps: stat.rps.unwrap_or_default(),
            success: stat.success,
            p95_ms: stat.latency_ms_p95,
        }
    }

    /// All of it together; the slowest is what counts of the latency.
    pub(super) fn sum(all: impl IntoIterator<Item = Self>) -> Self {
        let (mut sum, mut succeeded) = (Self::default(), 0.0);
        for one in all {
            sum.rps += one.rps;
            succeeded += one.rps * one.success.unwrap_or(1.0);
            if one.rps > 0.0 {
                sum.p95_ms = [sum.p95_ms, one.p95_ms].into_iter().flatten().reduce(f64::max);
            }
        }
        sum.success = (sum.rps > 0.0).then(|| succeeded / sum.rps);
        sum
    }

    /// How it falls short, if there is enough of it to tell.
    pub(super) fn breach(&self, limits: &Limits, window: Duration) -> Option<String> {
        if self.rps * window.as_secs_f64() < REQUESTS_MIN {
            return None;
        }
        if let Some(success) = self.success.filter(|success| *success < limits.success_min) {
            return Some(format!(
                "{:.1} % of requests succeed, wanted are {:.1} %",
                success * 100.0,
                limits.success_min * 100.0
            ));
        }
        let (latency, wanted) = self.p95_ms.zip(limits.latency_max_ms)?;
        (latency > wanted).then(|| format!("requests take up to {latency:.0} ms, wanted are {wanted:.0} ms"))
    }
}

/// One backend as it was seen.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Backend {
    pub(super) service: String,
    /// The linked cluster that it stands for; none if it is of this one.
    pub(super) cluster: Option<String>,
    /// Ready endpoints. Of a mirror these are addresses of the gateway.
    pub(super) ready: usize,
    pub(super) traffic: Traffic,
}

/// What was seen before a drill.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) split: TrafficSplit,
    pub(super) backends: Vec<Backend>,
    /// Why the failover controller can't be counted on.
    pub(super) controller: Result<(), String>,
    /// Over which traffic was measured.
    pub(super) window: Duration,
}

/// What would become of one backend.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Row {
    pub(super) service: String,
    /// Empty for this one.
    pub(super) cluster: String,
    pub(super) drilled: bool,
    pub(super) ready: usize,
    /// Of the traffic, 0 to 1.
    pub(super) share_now: f64,
    pub(super) share_then: f64,
    pub(super) rps_now: f64,
    pub(super) rps_then: f64,
}

/// Something that speaks against it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Objection {
    pub(super) what: String,
    /// Whether somebody who insists may drill all the same.
    pub(super) may_insist: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Outlook {
    pub(super) service: String,
    pub(super) split: String,
    pub(super) limits: Limits,
    pub(super) rows: Vec<Row>,
    pub(super) objections: Vec<Objection>,
}

/// The weights of a split, by service.
pub(super) fn weights(split: &TrafficSplit) -> BTreeMap<String, Weight> {
    let backends = split.spec.backends.iter();
    backends
        .map(|backend| (backend.service.clone(), backend.weight.0))
        .collect()
}

/// The same shares, whatever the numbers.
pub(super) fn shares(weights: &BTreeMap<String, Weight>) -> BTreeMap<String, f64> {
    let sum: f64 = weights.values().map(|weight| f64::from(weight.milli())).sum();
    let of = |weight: &Weight| match sum {
        0.0 => 0.0,
        sum => f64::from(weight.milli()) / sum,
    };
    let shares = weights.iter();
    shares
        .map(|(service, weight)| (service.clone(), of(weight)))
        .collect()
}

/// The annotation by which these are left until then.
pub(super) fn annotation(drilled: &BTreeSet<String>, until: SystemTime, by: &str) -> String {
    let drill = Drill {
        backends: drilled.clone(),
        until: Timestamp::try_from(until).unwrap_or(Timestamp::UNIX_EPOCH),
        by: by.to_owned(),
    };
    // Names and a time can't fail to become JSON.
    serde_json::to_string(&drill).unwrap_or_default()
}

/// What would become of the traffic if these were left.
pub(super) fn outlook(
    seen: &Seen,
    drilled: &BTreeSet<String>,
    limits: Limits,
    now: SystemTime,
) -> Result<Outlook, String> {
    let mut split = seen.split.clone();
    let until = now + Duration::from_secs(60);
    split.annotations_mut().insert(
        keys::FAILOVER_DRILL.to_owned(),
        annotation(drilled, until, "forecast"),
    );
    let ready = |service: &str| {
        let mut backends = seen.backends.iter();
        backends.any(|backend| backend.service == service && backend.ready > 0)
    };
    let then = forecast(&split, &ready, now)?;
    let shares_now = shares(&weights(&seen.split));
    let weights_then = then.weights.iter();
    let weights_then = weights_then.map(|(service, weight)| (service.to_string(), *weight));
    let shares_then = shares(&weights_then.collect());
    let all = Traffic::sum(seen.backends.iter().map(|backend| backend.traffic));
    let share =
        |shares: &BTreeMap<String, f64>, service: &str| shares.get(service).copied().unwrap_or_default();
    let rows: Vec<Row> = seen
        .backends
        .iter()
        .map(|backend| Row {
            service: backend.service.clone(),
            cluster: backend.cluster.clone().unwrap_or_default(),
            drilled: drilled.contains(&backend.service),
            ready: backend.ready,
            share_now: share(&shares_now, &backend.service),
            share_then: share(&shares_then, &backend.service),
            rps_now: backend.traffic.rps,
            rps_then: all.rps * share(&shares_then, &backend.service),
        })
        .collect();
    let mut objections = Vec::new();
    let mut object = |what: String, may_insist: bool| objections.push(Objection { what, may_insist });
    let metadata = &seen.split.metadata;
    if let Err(why) = &seen.controller {
        object(format!("no failover controller acts: {why}"), false);
    }
    if let Some(text) = metadata.annotations.iter().flatten().find_map(|(key, text)| {
        let is_drill = key == keys::FAILOVER_DRILL;
        is_drill.then_some(text)
    }) {
        let going_on = serde_json::from_str::<Drill>(text).ok();
        if let Some(drill) = going_on.filter(|drill| SystemTime::from(drill.until) > now) {
            object(
                format!("{} drills already, until {}", drill.by, drill.until),
                false,
            );
        }
    }
    let status = seen.split.annotations().get(keys::FAILOVER_STATUS);
    let status = status.and_then(|text| Status::parse(text));
    if let Some(status) = status.filter(|status| status.phase != "Primary") {
        let what = format!("it is not at rest: {}, {}", status.phase, status.message);
        object(what, status.phase == "Fallback");
    }
    for mistake in &then.mistakes {
        object(mistake.clone(), true);
    }
    let leaves: Vec<&Row> = rows.iter().filter(|row| row.drilled).collect();
    if then.drill == failover::Drill::Broken {
        object(
            "nobody else has a ready endpoint: the traffic would stay".to_owned(),
            false,
        );
    } else if leaves.iter().all(|row| row.share_now == 0.0) {
        object(
            "none of them has traffic now: nothing would move".to_owned(),
            false,
        );
    }
    // What is breached before would be blamed on the drill.
    if let Some(breach) = all.breach(&limits, seen.window) {
        object(format!("it is not well already: {breach}"), true);
    } else {
        for backend in &seen.backends {
            let mut rows = rows.iter();
            let gains = rows.any(|row| row.service == backend.service && row.share_then > row.share_now);
            let breach = backend.traffic.breach(&limits, seen.window);
            if let Some(breach) = breach.filter(|_| gains) {
                object(format!("{} is not well already: {breach}", backend.service), true);
            }
        }
    }
    Ok(Outlook {
        service: seen.split.spec.service.clone(),
        split: format!(
            "{}/{}",
            seen.split.namespace().unwrap_or_default(),
            seen.split.name_any()
        ),
        limits,
        rows,
        objections,
    })
}

/// What the split's own thresholds say, where nobody says otherwise.
pub(super) fn limits(
    split: &TrafficSplit,
    success_min: Option<f64>,
    latency_max: Option<Duration>,
) -> Limits {
    const SUCCESS_MIN: f64 = 0.95;
    let thresholds = Settings::parse(split.annotations()).policy.thresholds;
    let latency = latency_max.or(thresholds.latency_max);
    Limits {
        success_min: success_min.or(thresholds.success_min).unwrap_or(SUCCESS_MIN),
        latency_max_ms: latency.map(|latency| latency.as_secs_f64() * 1e3),
    }
}

impl Outlook {
    /// Whether somebody may drill.
    pub(super) fn permits(&self, insists: bool) -> bool {
        self.objections
            .iter()
            .all(|objection| insists && objection.may_insist)
    }

    pub(super) fn text(&self) -> String {
        let heads = ["BACKEND", "CLUSTER", "READY", "NOW", "THEN", "REQ/S NOW", "THEN"];
        let mut lines = vec![heads.map(str::to_owned)];
        lines.extend(self.rows.iter().map(|row| {
            let cluster = match row.cluster.as_str() {
                "" => "this one",
                name => name,
            };
            [
                row.service.clone(),
                cluster.to_owned(),
                row.ready.to_string(),
                format!("{:.0} %", row.share_now * 100.0),
                format!("{:.0} %", row.share_then * 100.0),
                format!("{:.1}", row.rps_now),
                format!("{:.1}", row.rps_then),
            ]
        }));
        let mut widths = [0; 7];
        for line in &lines {
            for (width, cell) in widths.iter_mut().zip(line) {
                *width = cell.len().max(*width);
            }
        }
        let padded = |line: &[String; 7]| {
            let cells = line.iter().zip(widths);
            let cells = cells.map(|(cell, width)| format!("{cell:<width$}"));
            format!("{}\n", cells.collect::<Vec<_>>().join("   ").trim_end())
        };
        let mut text: String = lines.iter().map(padded).collect();
        for objection in &self.objections {
            let insist = if objection.may_insist { " (--force)" } else { "" };
            text += &format!("× {}{insist}\n", objection.what);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;
    const LIMITS: Limits = Limits {
        success_min: 0.95,
        latency_max_ms: None,
    };

    fn seen(annotations: Value, backends: &[(&str, u32, usize, f64)]) -> Seen {
        let list: Vec<Value> = backends
            .iter()
            .map(|(service, weight, ..)| json!({"service": service, "weight": weight}))
            .collect();
        let split = json!({
            "metadata": {"namespace": "emojivoto", "name": "web-svc", "annotations": annotations},
            "spec": {"service": "web-svc", "backends": list},
        });
        Seen {
            split: serde_json::from_value(split).expect("a split"),
            backends: backends
                .iter()
                .map(|(service, _, ready, rps)| Backend {
                    service: (*service).to_owned(),
                    cluster: service.strip_prefix("web-svc-").map(str::to_owned),
                    ready: *ready,
                    traffic: Traffic {
                        rps: *rps,
                        success: (*rps > 0.0).then_some(1.0),
                        p95_ms: None,
                    },
                })
                .collect(),
            controller: Ok(()),
            window: Duration::from_secs(10),
        }
    }

    fn drilled(service: &str) -> BTreeSet<String> {
        BTreeSet::from([service.to_owned()])
    }

    #[track_caller]
    fn check(seen: &Seen, service: &str, expected: &str) {
        let outlook = outlook(seen, &drilled(service), LIMITS, NOW).expect("a forecast");
        let words = |text: &str| {
            let lines = text.lines();
            let lines = lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
            lines.filter(|line| !line.is_empty()).collect::<Vec<_>>()
        };
        assert_eq!(words(&outlook.text())[1..], words(expected));
    }

    #[test]
    fn the_forecast_says_who_would_get_how_many_requests() {
        let three = [
            ("web-svc", 1, 2, 20.0),
            ("web-svc-east", 0, 1, 0.0),
            ("web-svc-north", 0, 1, 0.0),
        ];
        check(
            &seen(json!({}), &three),
            "web-svc",
            "web-svc        this one  2  100 %   0 %  20.0   0.0
             web-svc-east   east      1    0 %  50 %   0.0  10.0
             web-svc-north  north     1    0 %  50 %   0.0  10.0",
        );
        let weights = json!({keys::FAILOVER_WEIGHTS: r#"{"web-svc":1,"web-svc-east":3,"web-svc-north":1}"#});
        check(
            &seen(weights, &three),
            "web-svc",
            "web-svc        this one  2  100 %   0 %  20.0   0.0
             web-svc-east   east      1    0 %  75 %   0.0  15.0
             web-svc-north  north     1    0 %  25 %   0.0   5.0",
        );
    }

    #[test]
    fn where_nobody_could_stand_in_there_is_no_drill_even_if_somebody_insists() {
        let seen = seen(json!({}), &[("web-svc", 1, 2, 20.0), ("web-svc-east", 0, 0, 0.0)]);
        check(
            &seen,
            "web-svc",
            "web-svc        this one  2  100 %  100 %  20.0  20.0
             web-svc-east   east      0    0 %    0 %   0.0   0.0
             × nobody else has a ready endpoint: the traffic would stay",
        );
        let outlook = outlook(&seen, &drilled("web-svc"), LIMITS, NOW).expect("a forecast");
        assert!(!outlook.permits(true));
    }

    #[test]
    fn a_stand_in_that_fails_already_is_an_objection_to_which_one_may_insist() {
        let mut seen = seen(json!({}), &[("web-svc", 3, 2, 50.0), ("web-svc-east", 0, 1, 5.0)]);
        seen.backends[1].traffic.success = Some(0.5);
        let outlook = outlook(&seen, &drilled("web-svc"), LIMITS, NOW).expect("a forecast");
        let expected = Objection {
            what: "web-svc-east is not well already: 50.0 % of requests succeed, wanted are 95.0 %".into(),
            may_insist: true,
        };
        assert_eq!(outlook.objections, [expected]);
        assert!(outlook.permits(true) && !outlook.permits(false));
        seen.backends[0].traffic.success = Some(0.9);
        let outlook = super::outlook(&seen, &drilled("web-svc"), LIMITS, NOW).expect("a forecast");
        let what = "it is not well already: 86.4 % of requests succeed, wanted are 95.0 %";
        assert_eq!(outlook.objections[0].what, what);
    }

    #[test]
    fn what_is_not_at_rest_is_not_drilled() {
        let objections = |annotations: Value, controller: Result<(), String>| {
            let mut seen = seen(
                annotations,
                &[("web-svc", 1, 1, 20.0), ("web-svc-east", 0, 1, 0.0)],
            );
            seen.controller = controller;
            let outlook = outlook(&seen, &drilled("web-svc"), LIMITS, NOW).expect("a forecast");
            let whats = outlook.objections.into_iter().map(|objection| objection.what);
            whats.collect::<Vec<_>>()
        };
        assert_eq!(objections(json!({}), Ok(())), [""; 0]);
        assert_eq!(
            objections(json!({}), Err("it is not installed".into())),
            ["no failover controller acts: it is not installed"]
        );
        let status = json!({
            "phase": "NobodyReady", "reason": "NobodyReady", "message": "no backend is ready",
            "since": "1970-01-01T00:00:00Z", "weights": {"web-svc": 1, "web-svc-east": 0},
        });
        assert_eq!(
            objections(json!({keys::FAILOVER_STATUS: status.to_string()}), Ok(())),
            ["it is not at rest: NobodyReady, no backend is ready"]
        );
        let other = annotation(&drilled("web-svc-east"), NOW + Duration::from_secs(9), "bob");
        assert_eq!(
            objections(json!({keys::FAILOVER_DRILL: other}), Ok(())),
            ["bob drills already, until 1970-01-01T00:00:09Z"]
        );
    }

    #[test]
    fn a_backend_without_traffic_drills_nothing() {
        let seen = seen(json!({}), &[("web-svc", 1, 2, 20.0), ("web-svc-east", 0, 1, 0.0)]);
        let outlook = outlook(&seen, &drilled("web-svc-east"), LIMITS, NOW).expect("a forecast");
        assert_eq!(outlook.objections.len(), 1, "{:?}", outlook.objections);
        assert!(outlook.objections[0].what.contains("nothing would move"));
    }

    #[test]
    fn a_breach_needs_enough_requests() {
        let window = Duration::from_secs(10);
        let traffic = |rps, success, p95_ms| Traffic {
            rps,
            success: Some(success),
            p95_ms: Some(p95_ms),
        };
        let limits = Limits {
            success_min: 0.9,
            latency_max_ms: Some(100.0),
        };
        assert_eq!(traffic(0.5, 0.0, 900.0).breach(&limits, window), None);
        assert_eq!(traffic(20.0, 0.9, 100.0).breach(&limits, window), None);
        assert_eq!(
            traffic(20.0, 0.8, 10.0).breach(&limits, window).as_deref(),
            Some("80.0 % of requests succeed, wanted are 90.0 %")
        );
        assert_eq!(
            traffic(20.0, 1.0, 250.0).breach(&limits, window).as_deref(),
            Some("requests take up to 250 ms, wanted are 100 ms")
        );
        let sum = Traffic::sum([traffic(30.0, 1.0, 10.0), traffic(10.0, 0.0, 50.0)]);
        assert_eq!(sum, traffic(40.0, 0.75, 50.0));
    }
}
