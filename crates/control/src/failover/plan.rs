//! Decides the weights of every selected TrafficSplit.
//!
//! A pure function of the last observation. What the weights should be is `hawser_core::failover`'s business; here a
//! split and the endpoints of its backends become its input, and its answer a conditional patch. Weights that a user
//! wrote are remembered in an annotation while they are muted, so they come back as they were.

use std::collections::BTreeMap;

use hawser_core::failover::{self, Member, Reason};
use hawser_core::{ServiceName, Weight};
use hawser_crd::TrafficSplit;
use hawser_crd::keys;
use hawser_crd::split::{Backend, SplitWeight};
use k8s_openapi::api::core::v1::Endpoints;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};

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
    pub because: Reason,
    /// `None` when the weights are right.
    pub patch: Option<Value>,
}

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
pub(crate) fn plan(snapshot: &Snapshot) -> BTreeMap<Key, Result<Decision, String>> {
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
    snapshot
        .splits
        .iter()
        .map(|(key, split)| {
            let is_ready = |service: &str| is_ready(&Key::new(&key.namespace, service));
            (key.clone(), decide(split, is_ready))
        })
        .collect()
}

fn decide(split: &TrafficSplit, is_ready: impl Fn(&str) -> bool) -> Result<Decision, String> {
    let annotations = split.metadata.annotations.clone().unwrap_or_default();
    let remembered = remembered(&annotations)?;
    let primary: Option<ServiceName> = match annotations.get(keys::FAILOVER_PRIMARY) {
        Some(name) => Some(
            name.parse()
                .map_err(|error| format!("annotation {}: {error}", keys::FAILOVER_PRIMARY))?,
        ),
        None => None,
    };
    let members = split
        .spec
        .backends
        .iter()
        .map(|backend| {
            let weight = backend.weight.0;
            // We only ever write zero or the preference, so any other weight is the user's newest word.
            let preferred = match weight.is_zero() {
                true => remembered.get(&backend.service).copied().unwrap_or(Weight::ONE),
                false => weight,
            };
            let service = backend
                .service
                .parse()
                .map_err(|error| format!("a backend's service: {error}"))?;
            Ok(Member {
                service,
                weight,
                preferred,
                ready: is_ready(&backend.service),
            })
        })
        .collect::<Result<Vec<Member>, String>>()?;
    let plan = failover::plan(primary.as_ref(), &members);
    let is_current = members
        .iter()
        .map(|member| member.weight)
        .eq(plan.weights.iter().copied());
    let patch = (!is_current).then(|| patch(split, &members, &plan.weights, &remembered));
    Ok(Decision {
        because: plan.because,
        patch,
    })
}

fn remembered(annotations: &BTreeMap<String, String>) -> Result<BTreeMap<String, Weight>, String> {
    let Some(text) = annotations.get(keys::FAILOVER_WEIGHTS) else {
        return Ok(BTreeMap::new());
    };
    let weights: BTreeMap<String, SplitWeight> = serde_json::from_str(text)
        .map_err(|error| format!("annotation {}: {error}", keys::FAILOVER_WEIGHTS))?;
    Ok(weights
        .into_iter()
        .map(|(service, weight)| (service, weight.0))
        .collect())
}

fn patch(
    split: &TrafficSplit,
    members: &[Member],
    weights: &[Weight],
    remembered: &BTreeMap<String, Weight>,
) -> Value {
    // The version of the resource that we write knows whole numbers only; only ratios matter.
    let is_whole = |weight: &Weight| weight.milli().is_multiple_of(1000);
    let whole = weights.iter().all(is_whole) && members.iter().all(|member| is_whole(&member.preferred));
    let scaled = |weight: Weight| match whole {
        true => SplitWeight(weight),
        false => SplitWeight(Weight::from_units(weight.milli())),
    };
    let backends: Vec<Backend> = members
        .iter()
        .zip(weights)
        .map(|(member, weight)| Backend {
            service: member.service.to_string(),
            weight: scaled(*weight),
        })
        .collect();
    let preferences: BTreeMap<String, SplitWeight> = members
        .iter()
        .map(|member| (member.service.to_string(), scaled(member.preferred)))
        .collect();
    let is_plain = members.iter().all(|member| member.preferred == Weight::ONE);
    let mut metadata = json!({
        "resourceVersion": split.metadata.resource_version, "uid": split.metadata.uid,
    });
    if !is_plain || !remembered.is_empty() {
        // Not worth an annotation when every weight is 1.
        let text = serde_json::to_string(&preferences).unwrap_or_default();
        metadata["annotations"] = json!({keys::FAILOVER_WEIGHTS: text});
    }
    json!({"metadata": metadata, "spec": {"backends": backends}})
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    /// Reads `split NAME [primary=S] [weights=JSON] BACKEND:WEIGHT...`, `endpoints NAME ready|unready` and
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

    #[track_caller]
    fn check(scenario: &str, expected: &str) {
        let plan = plan(&snapshot(scenario));
        let lines: Vec<String> = plan
            .iter()
            .map(|(key, decision)| match decision {
                Err(error) => format!("{}: {error}", key.name),
                Ok(Decision { because, patch: None }) => format!("{}: stays, {because:?}", key.name),
                Ok(Decision {
                    because,
                    patch: Some(patch),
                }) => {
                    let backends = patch["spec"]["backends"].as_array().unwrap();
                    let weights: Vec<String> = backends
                        .iter()
                        .map(|b| format!("{}:{}", b["service"].as_str().unwrap(), b["weight"]))
                        .collect();
                    let memory = patch["metadata"]["annotations"][keys::FAILOVER_WEIGHTS]
                        .as_str()
                        .unwrap_or("");
                    format!("{}: {} {because:?} {memory}", key.name, weights.join(" "))
                        .trim()
                        .to_owned()
                }
            })
            .collect();
        assert_eq!(lines.join("\n"), expected);
    }

    #[test]
    fn traffic_leaves_a_primary_without_endpoints_and_comes_back() {
        let split = "split web primary=web web:1 web-east:0\n endpoints web-east ready";
        check(
            &format!("{split}\n endpoints web unready"),
            "web: web:0 web-east:1 PrimaryHasNoEndpoints",
        );
        check(
            "split web primary=web web:0 web-east:1\n endpoints web ready\n endpoints web-east ready",
            "web: web:1 web-east:0 PrimaryReady",
        );
        check(
            &format!("{split}\n endpoints web ready"),
            "web: stays, PrimaryReady",
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
            "emoji: emoji:0 emoji-2:1 emoji-east:0 PrimaryHasNoEndpoints",
        );
    }

    #[test]
    fn weights_stay_when_nobody_is_ready() {
        check(
            "split web primary=web web:1 web-east:0",
            "web: stays, NobodyIsReady",
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
            "web: web:0 web-east:1 PrimaryHasNoEndpoints",
        );
    }

    #[test]
    fn a_users_weights_are_remembered_while_they_are_muted() {
        check(
            "split web primary=web web:50 a:30 b:10\n endpoints web ready",
            "web: web:50 a:0 b:0 PrimaryReady {\"a\":30,\"b\":10,\"web\":50}",
        );
        check(
            "split web primary=web weights={\"a\":30,\"b\":10,\"web\":50} web:50 a:0 b:0
             endpoints a ready\n endpoints b ready",
            "web: web:0 a:30 b:10 PrimaryHasNoEndpoints {\"a\":30,\"b\":10,\"web\":50}",
        );
    }

    #[test]
    fn quantities_are_written_as_whole_numbers_of_the_same_ratio() {
        check(
            "split web primary=web web:0 a:500m b:1500m\n endpoints a ready\n endpoints b ready",
            "web: stays, PrimaryHasNoEndpoints",
        );
        check(
            "split web primary=web web:1 a:500m b:1500m\n endpoints a ready\n endpoints b ready",
            "web: web:0 a:500 b:1500 PrimaryHasNoEndpoints {\"a\":500,\"b\":1500,\"web\":1000}",
        );
    }

    #[test]
    fn what_cannot_be_understood_is_said_and_left_alone() {
        check(
            "split web primary=web weights=nonsense web:1",
            "web: annotation failover.linkerd.io/weights: expected ident at line 1 column 2",
        );
        check(
            "split web primary=other web:1 a:0\n endpoints a ready",
            "web: stays, PrimaryIsNotABackend",
        );
    }
}
