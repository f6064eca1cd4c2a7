//! Decides about every selected TrafficSplit.
//!
//! A pure function of the last observation and the time. What the weights should be is `hawser_core::failover`'s
//! business; here a split, its annotations, the endpoints of its backends and what was measured of them become its
//! input, and its answer a conditional patch.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use hawser_core::failover::{self, Measured, Member, Plan};
use hawser_core::{ServiceName, Weight};
use hawser_crd::TrafficSplit;
use hawser_crd::keys;
use hawser_crd::split::{Backend, SplitWeight};
use k8s_openapi::api::core::v1::Endpoints;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};

use super::drill::Drill;
use super::settings::Settings;
use super::status::Status;
use crate::observe::{Key, View};

#[derive(Clone, Debug, Default)]
pub(crate) struct Snapshot {
    pub splits: View<TrafficSplit>,
    /// Whether a Service's Endpoints have a ready address.
    pub endpoints: View<bool>,
    pub slices: View<Slice>,
}

/// An EndpointSlice, reduced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Slice {
    pub service: String,
    pub ready: bool,
}

/// What to do about one split.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Decision {
    pub plan: Plan,
    /// The service that should have the traffic.
    pub primary: Option<ServiceName>,
    /// `None` when everything is as it should be.
    pub patch: Option<Value>,
    /// What the user asked for and can't have.
    pub mistakes: Vec<String>,
}

/// Tells what was measured of a service over a time, with its latency at a quantile.
pub(crate) type Measure<'a> = &'a dyn Fn(&Key, Duration, f64) -> Option<Measured>;

pub(crate) fn reduce_endpoints(endpoints: Endpoints) -> Option<bool> {
    let mut subsets = endpoints.subsets.into_iter().flatten();
    Some(subsets.any(|subset| subset.addresses.is_some_and(|addresses| !addresses.is_empty())))
}

pub(crate) fn reduce_slice(slice: EndpointSlice) -> Option<Slice> {
    let service = slice.metadata.labels?.remove(keys::LABEL_SERVICE_NAME)?;
    let ready = slice.endpoints.iter().any(|endpoint| {
        // Absent means ready, as for every consumer of slices.
        !endpoint.addresses.is_empty()
            && endpoint
                .conditions
                .as_ref()
                .and_then(|conditions| conditions.ready)
                .unwrap_or(true)
    });
    Some(Slice { service, ready })
}

/// Decides about every split. One that can't be understood is told with the reason.
pub(crate) fn plan(
    snapshot: &Snapshot,
    measure: Measure<'_>,
    now: SystemTime,
) -> BTreeMap<Key, Result<Decision, String>> {
    // Slices are the newer truth; a Service that has none (no pods yet, or no controller that makes them) is judged
    // by its Endpoints.
    let mut by_slices: BTreeMap<Key, bool> = BTreeMap::new();
    for (key, slice) in &snapshot.slices {
        *by_slices
            .entry(Key::new(&key.namespace, &slice.service))
            .or_default() |= slice.ready;
    }
    let is_ready = |key: &Key| match by_slices.get(key) {
        Some(ready) => *ready,
        None => snapshot.endpoints.get(key).is_some_and(|ready| **ready),
    };
    let splits = snapshot.splits.iter();
    splits
        .map(|(key, split)| (key.clone(), decide(key, split, &is_ready, measure, now)))
        .collect()
}

/// The services whose answers matter to some split.
pub(crate) fn judged(splits: &View<TrafficSplit>) -> BTreeSet<Key> {
    let nothing = BTreeMap::new();
    let judged = splits.iter().filter(|(_, split)| {
        let annotations = split.metadata.annotations.as_ref().unwrap_or(&nothing);
        Settings::parse(annotations).policy.thresholds.any()
    });
    let services = judged.flat_map(|(key, split)| {
        let backends = split.spec.backends.iter();
        backends.map(|backend| Key::new(&key.namespace, &backend.service))
    });
    services.collect()
}

pub(super) fn decide(
    key: &Key,
    split: &TrafficSplit,
    is_ready: &dyn Fn(&Key) -> bool,
    measure: Measure<'_>,
    now: SystemTime,
) -> Result<Decision, String> {
    let annotations = split.metadata.annotations.clone().unwrap_or_default();
    let Settings {
        mut policy,
        window,
        quantile,
        mut mistakes,
    } = Settings::parse(&annotations);
    let drill = match Drill::of(&annotations, now) {
        Ok(drill) => drill,
        Err(mistake) => {
            mistakes.push(mistake);
            None
        }
    };
    policy.primary = match annotations.get(keys::FAILOVER_PRIMARY) {
        Some(name) => Some(
            name.parse()
                .map_err(|error| format!("annotation {}: {error}", keys::FAILOVER_PRIMARY))?,
        ),
        None => None,
    };
    let remembered = remembered(&annotations);
    let members = split
        .spec
        .backends
        .iter()
        .map(|backend| {
            let service: ServiceName = backend
                .service
                .parse()
                .map_err(|error| format!("a backend's service: {error}"))?;
            let place = Key::new(&key.namespace, &backend.service);
            Ok(Member {
                remembered: remembered.get(&service).copied(),
                drilled: drill
                    .as_ref()
                    .is_some_and(|drill| drill.backends.contains(&backend.service)),
                service,
                weight: backend.weight.0,
                ready: is_ready(&place),
                measured: (policy.thresholds.any())
                    .then(|| measure(&place, window, quantile))
                    .flatten(),
            })
        })
        .collect::<Result<Vec<Member>, String>>()?;
    let before = annotations
        .get(keys::FAILOVER_STATUS)
        .and_then(|text| Status::parse(text)?.state());
    let mut plan = failover::plan(&policy, &members, before.as_ref(), now);
    let first = members.first().map(|member| member.service.clone());
    let patch = plan.change.as_ref().map(|reason| {
        let status = Status::new(&plan.state, policy.return_steps, reason);
        let mut patch = patch(split, &members, &plan, &status, &remembered);
        // Over, or over for want of a stand-in: it must not go on when that is back.
        if plan.drill != failover::Drill::Held && annotations.contains_key(keys::FAILOVER_DRILL) {
            patch["metadata"]["annotations"][keys::FAILOVER_DRILL] = Value::Null;
        }
        patch
    });
    if let Some(end) = drill.map(|drill| SystemTime::from(drill.until)) {
        plan.due = Some(plan.due.map_or(end, |due| due.min(end)));
    }
    Ok(Decision {
        patch,
        primary: policy.primary.or(first),
        plan,
        mistakes,
    })
}

/// Our own annotation: what can't be read in it is as good as forgotten.
fn remembered(annotations: &BTreeMap<String, String>) -> BTreeMap<ServiceName, Weight> {
    let text = annotations
        .get(keys::FAILOVER_WEIGHTS)
        .map_or("{}", String::as_str);
    let weights: BTreeMap<String, SplitWeight> = serde_json::from_str(text).unwrap_or_default();
    let weights = weights.into_iter();
    weights
        .filter_map(|(service, weight)| Some((service.parse().ok()?, weight.0)))
        .collect()
}

fn patch(
    split: &TrafficSplit,
    members: &[Member],
    plan: &Plan,
    status: &Status,
    remembered: &BTreeMap<ServiceName, Weight>,
) -> Value {
    let by_name = |weights: &[Weight]| -> BTreeMap<String, SplitWeight> {
        let names = members.iter().map(|member| member.service.to_string());
        names
            .zip(weights.iter().map(|weight| SplitWeight(*weight)))
            .collect()
    };
    let backends = members.iter().zip(&plan.weights).map(|(member, weight)| Backend {
        service: member.service.to_string(),
        weight: SplitWeight(*weight),
    });
    let mut annotations = json!({keys::FAILOVER_STATUS: text(status)});
    let is_plain = plan.preferred.iter().all(|weight| *weight == Weight::ONE);
    if !is_plain || !remembered.is_empty() {
        // Not worth an annotation when every weight is 1.
        annotations[keys::FAILOVER_WEIGHTS] = text(&by_name(&plan.preferred)).into();
    }
    let metadata = json!({
        "resourceVersion": split.metadata.resource_version, "uid": split.metadata.uid,
        "annotations": annotations,
    });
    json!({"metadata": metadata, "spec": {"backends": backends.collect::<Vec<_>>()}})
}

fn text(value: &impl serde::Serialize) -> String {
    // Maps of names to numbers can't fail to become JSON.
    serde_json::to_string(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    /// Reads `split NAME [primary=S] [weights=JSON] [status=JSON] [success=SHARE] [drill=JSON] BACKEND:WEIGHT...`, `endpoints NAME ready|unready` and
    /// `slice SERVICE ready|unready`.
    fn snapshot(scenario: &str) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for (number, line) in scenario
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .enumerate()
        {
            let words: Vec<&str> = line.split_whitespace().collect();
            let key = Key::new("test", words[1]);
            match words[0] {
                "split" => {
                    let mut annotations = BTreeMap::new();
                    let mut backends = Vec::new();
                    for word in &words[2..] {
                        if let Some(primary) = word.strip_prefix("primary=") {
                            annotations.insert(keys::FAILOVER_PRIMARY.to_owned(), primary.to_owned());
                        } else if let Some(weights) = word.strip_prefix("weights=") {
                            annotations.insert(keys::FAILOVER_WEIGHTS.to_owned(), weights.to_owned());
                        } else if let Some(status) = word.strip_prefix("status=") {
                            annotations.insert(keys::FAILOVER_STATUS.to_owned(), status.to_owned());
                        } else if let Some(drill) = word.strip_prefix("drill=") {
                            annotations.insert(keys::FAILOVER_DRILL.to_owned(), drill.to_owned());
                        } else if let Some(rate) = word.strip_prefix("success=") {
                            annotations.insert(keys::FAILOVER_MIN_SUCCESS_RATE.to_owned(), rate.to_owned());
                        } else {
                            let (service, weight) = word.split_once(':').unwrap();
                            let weight = SplitWeight(weight.parse().unwrap());
                            backends.push(Backend {
                                service: service.into(),
                                weight,
                            });
                        }
                    }
                    let spec = hawser_crd::split::TrafficSplitSpec {
                        service: words[1].into(),
                        backends,
                    };
                    let mut split = TrafficSplit::new("test", words[1], spec);
                    split.metadata.annotations = Some(annotations);
                    split.metadata.resource_version = Some("7".into());
                    split.metadata.uid = Some(format!("u-{}", words[1]));
                    snapshot.splits.insert(key, Arc::new(split));
                }
                "endpoints" => drop(snapshot.endpoints.insert(key, Arc::new(words[2] == "ready"))),
                "slice" => {
                    let slice = Slice {
                        service: words[1].into(),
                        ready: words[2] == "ready",
                    };
                    snapshot
                        .slices
                        .insert(Key::new("test", format!("slice-{number}")), Arc::new(slice));
                }
                other => panic!("unknown line {other}"),
            }
        }
        snapshot
    }

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    #[track_caller]
    fn check(scenario: &str, expected: &str) {
        check_measured(scenario, &|_, _, _| None, expected);
    }

    #[track_caller]
    fn check_measured(scenario: &str, measure: Measure<'_>, expected: &str) {
        let plan = plan(&snapshot(scenario), measure, NOW);
        let lines: Vec<String> = plan
            .iter()
            .map(|(key, decision)| match decision {
                Err(error) => format!("{}: {error}", key.name),
                Ok(Decision { patch: None, .. }) => format!("{}: stays", key.name),
                Ok(Decision {
                    plan,
                    patch: Some(patch),
                    ..
                }) => {
                    let backends = patch["spec"]["backends"].as_array().unwrap();
                    let weights: Vec<String> = backends
                        .iter()
                        .map(|b| format!("{}:{}", b["service"].as_str().unwrap(), b["weight"]))
                        .collect();
                    let annotations = &patch["metadata"]["annotations"];
                    let memory = annotations[keys::FAILOVER_WEIGHTS].as_str().unwrap_or("");
                    let reason = plan.change.as_ref().unwrap().kind();
                    format!("{}: {} {reason} {memory}", key.name, weights.join(" "))
                        .trim()
                        .to_owned()
                }
            })
            .collect();
        assert_eq!(lines.join("\n"), expected);
    }

    #[test]
    fn traffic_leaves_a_primary_without_endpoints() {
        let split = "split web primary=web web:1 web-east:0\n endpoints web-east ready";
        check(
            &format!("{split}\n endpoints web unready"),
            "web: web:0 web-east:1 NotReady",
        );
        check(&format!("{split}\n endpoints web ready"), "web: stays");
    }

    fn drilled(until: &str, web_east: &str) -> String {
        format!(
            "split web primary=web drill={{\"backends\":[\"web\"],\"until\":\"{until}\"}} web:1 web-east:0
             endpoints web ready
             endpoints web-east {web_east}"
        )
    }

    #[test]
    fn a_drill_is_a_failure_with_an_end() {
        let during = drilled("1970-01-01T00:00:10Z", "ready");
        check(&during, "web: web:0 web-east:1 Drill");
        let snapshot = snapshot(&during);
        let plan = plan(&snapshot, &|_, _, _| None, NOW);
        let decision = plan.values().next().unwrap().as_ref().unwrap();
        assert_eq!(decision.plan.due, Some(NOW + Duration::from_secs(10)));
        let annotations = &decision.patch.as_ref().unwrap()["metadata"]["annotations"];
        assert_eq!(annotations.get(keys::FAILOVER_DRILL), None, "it goes on");
        check(&drilled("1970-01-01T00:00:00Z", "ready"), "web: stays");
        check(&drilled("1970-01-01T00:00:10Z", "unready"), "web: stays");
    }

    #[test]
    fn nobody_can_drill_for_longer_than_somebody_watches() {
        let snapshot = snapshot(&drilled("1970-01-01T01:00:00Z", "ready"));
        let plan = plan(&snapshot, &|_, _, _| None, NOW);
        let decision = plan.values().next().unwrap().as_ref().unwrap();
        assert_eq!(decision.patch, None);
        assert_eq!(
            decision.mistakes,
            ["annotation failover.linkerd.io/drill ends more than 120 s from now: nobody drills"]
        );
    }

    #[test]
    fn a_drill_that_is_over_is_forgotten_with_the_next_change() {
        let over = "split web primary=web drill={\"backends\":[\"web\"],\"until\":\"1969-12-31T23:59:59Z\"} web:0 \
                    web-east:1\n endpoints web ready";
        let plan = plan(&snapshot(over), &|_, _, _| None, NOW);
        let decision = plan.values().next().unwrap().as_ref().unwrap();
        let annotations = &decision.patch.as_ref().unwrap()["metadata"]["annotations"];
        assert_eq!(annotations[keys::FAILOVER_DRILL], Value::Null);
        assert!(
            annotations
                .as_object()
                .unwrap()
                .contains_key(keys::FAILOVER_DRILL)
        );
    }

    #[test]
    fn what_was_decided_before_counts() {
        let before = |away: &str| {
            format!(
                "split web primary=web status={{\"phase\":\"Fallback\",\"reason\":\"NotReady\",\"message\":\"\",\
                 \"since\":\"1969-12-31T23:00:00Z\",\"weights\":{{\"web\":0,\"web-east\":1}},\
                 \"away\":{{\"web\":{{\"since\":\"1969-12-31T23:59:55Z\",\"until\":\"{away}\"}}}}}} web:0 web-east:1
                 endpoints web ready
                 endpoints web-east ready"
            )
        };
        check(&before("1970-01-01T00:00:05Z"), "web: stays");
        check(&before("1970-01-01T00:00:00Z"), "web: web:1 web-east:4 Returning");
        // Who wrote nonsense there gets what a new split gets.
        check(&before("soon"), "web: web:1 web-east:0 PrimaryReady");
    }

    #[test]
    fn measurements_are_asked_for_only_where_a_threshold_is_set() {
        let failing: Measure<'_> = &|key, window, quantile| {
            assert_eq!((window, quantile), (Duration::from_secs(30), 0.95));
            (key.name == "web").then_some(Measured {
                requests: 100,
                failures: 50,
                latency: None,
            })
        };
        let split = |words: &str| {
            format!(
                "split web primary=web {words} web:1 web-east:0\n endpoints web ready\n endpoints web-east ready"
            )
        };
        let judged_split = split("success=0.9");
        check_measured(&judged_split, failing, "web: web:0 web-east:1 SuccessRate");
        check_measured(&split(""), &|_, _, _| panic!("nobody asked"), "web: stays");
        let wanted: Vec<Key> = judged(&snapshot(&judged_split).splits).into_iter().collect();
        assert_eq!(wanted, [Key::new("test", "web"), Key::new("test", "web-east")]);
        assert!(judged(&snapshot(&split("")).splits).is_empty());
    }

    #[test]
    fn every_write_is_conditional_on_what_was_seen() {
        let snapshot = snapshot("split web primary=web web:0 web-east:1\n endpoints web ready");
        let plan = plan(&snapshot, &|_, _, _| None, NOW);
        let decision = plan.values().next().unwrap().as_ref().unwrap();
        let metadata = &decision.patch.as_ref().unwrap()["metadata"];
        assert_eq!(
            (&metadata["resourceVersion"], &metadata["uid"]),
            (&json!("7"), &json!("u-web"))
        );
    }

    #[test]
    fn the_first_backend_is_the_primary_unless_said_otherwise() {
        check(
            "split web web:0 web-east:1\n endpoints web ready",
            "web: web:1 web-east:0 PrimaryReady",
        );
    }

    #[test]
    fn a_backend_that_does_not_exist_is_not_ready() {
        check(
            "split emoji primary=emoji emoji:1 emoji-2:0 emoji-east:0\n endpoints emoji-2 ready",
            "emoji: emoji:0 emoji-2:1 emoji-east:0 NotReady",
        );
    }

    #[test]
    fn weights_stay_when_nobody_is_ready() {
        check(
            "split web primary=web web:1 web-east:0",
            "web: web:1 web-east:0 NobodyReady",
        );
    }

    #[test]
    fn slices_are_believed_before_endpoints() {
        check(
            "split web primary=web web:1 web-east:0
             endpoints web ready
             slice web unready
             slice web-east unready
             slice web-east ready",
            "web: web:0 web-east:1 NotReady",
        );
    }

    #[test]
    fn a_users_weights_are_remembered_as_they_were_written() {
        check(
            "split web primary=web web:50 a:30 b:10\n endpoints web ready",
            "web: web:50 a:0 b:0 PrimaryReady {\"a\":30,\"b\":10,\"web\":50}",
        );
        check(
            "split web primary=web weights={\"a\":30,\"b\":10,\"web\":50} web:50 a:0 b:0
             endpoints a ready\n endpoints b ready",
            "web: web:0 a:30 b:10 NotReady {\"a\":30,\"b\":10,\"web\":50}",
        );
        check(
            "split web primary=web web:1 a:500m b:1500m\n endpoints a ready\n endpoints b ready",
            "web: web:0 a:1 b:3 NotReady {\"a\":\"500m\",\"b\":\"1500m\",\"web\":1}",
        );
        check(
            "split web primary=web weights=nonsense web:2 a:0\n endpoints a ready",
            "web: web:0 a:1 NotReady {\"a\":1,\"web\":2}",
        );
    }

    #[test]
    fn what_cannot_be_understood_is_said_and_left_alone() {
        check(
            "split web primary=We_b web:1 a:0",
            "web: annotation failover.linkerd.io/primary-service: \"We_b\" is not a DNS label: \
             use lower-case letters, digits and inner hyphens",
        );
        check(
            "split web primary=other web:1 a:0\n endpoints a ready",
            "web: web:1 a:0 PrimaryIsNotABackend",
        );
    }
}
