//! What the cluster's objects say about traffic, apart from pods: Services, Links, splits, Events, trust anchors.
//!
//! A pure reduction of what the API server says; what is kept is small, and its number is bounded. A split remembers
//! how it changed while it was watched, which Kubernetes doesn't.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;

use hawser_crd::link::LinkCondition;
use hawser_crd::{Link, TrafficSplit, keys};
use jiff::Timestamp;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{ConfigMap, Service};
use k8s_openapi::api::events::v1::Event;
use kube::{Resource, ResourceExt};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::api;

/// Namespace and name.
pub(crate) type Key = (String, String);

/// Everything that is known now.
#[derive(Clone, Debug, Default)]
pub(crate) struct Objects {
    pub(crate) services: BTreeMap<Key, ServiceFacts>,
    pub(crate) links: BTreeMap<Key, api::Link>,
    pub(crate) splits: BTreeMap<Key, api::Split>,
    pub(crate) events: BTreeMap<Key, api::Event>,
    pub(crate) anchors: BTreeMap<Key, Anchors>,
    /// What may not be seen, by resource and namespace (empty for all), and why.
    pub(crate) denied: BTreeMap<(&'static str, String), String>,
}

/// Something that is kept of each object of a kind.
pub(crate) trait Reduced: Sized + Send + 'static {
    type Object: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + DeserializeOwned
        + Clone
        + std::fmt::Debug
        + Send
        + 'static;
    const RESOURCE: &'static str;
    const COUNT_MAX: usize;

    /// `before` is what was kept of the same object.
    fn of(object: &Self::Object, before: Option<&Self>, now: Timestamp) -> Self;

    fn kept(objects: &mut Objects) -> &mut BTreeMap<Key, Self>;

    /// Of the oldest there is one less when there are too many; without an age the newcomer is refused.
    fn age(&self) -> Option<f64> {
        None
    }
}

/// Keeps what is to be kept of an object.
pub(crate) fn insert<R: Reduced>(objects: &mut Objects, object: &R::Object, now: Timestamp) {
    let key = key(object);
    let kept = R::kept(objects);
    let reduced = R::of(object, kept.get(&key), now);
    kept.insert(key.clone(), reduced);
    if kept.len() > R::COUNT_MAX {
        let ages = kept.iter().filter_map(|(key, kept)| Some((kept.age()?, key)));
        let oldest = ages.min_by(|(one, _), (other, _)| one.total_cmp(other));
        let oldest = oldest.map_or(key, |(_, key)| key.clone());
        kept.remove(&oldest);
    }
}

pub(crate) fn key(object: &impl Resource) -> Key {
    (object.namespace().unwrap_or_default(), object.name_any())
}

/// What matters of a Service.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ServiceFacts {
    pub(crate) is_exported: bool,
    pub(crate) is_system: bool,
    /// Stands for a gateway, so that it can be probed.
    pub(crate) is_probe: bool,
    /// Cluster, and namespace and name there.
    pub(crate) mirrors: Option<(String, Key)>,
    pub(crate) address: Option<IpAddr>,
}

impl Reduced for ServiceFacts {
    type Object = Service;
    const RESOURCE: &'static str = "services";
    const COUNT_MAX: usize = 10_000;

    fn of(service: &Service, _: Option<&Self>, _: Timestamp) -> Self {
        let labels = service.labels();
        let is = |key| labels.get(key).is_some_and(|value| value == "true");
        let remote = || {
            let cluster = labels.get(keys::CLUSTER_NAME)?.clone();
            let name = service.annotations().get(keys::REMOTE_SERVICE_FQ_NAME)?;
            let mut parts = name.splitn(3, '.');
            let (name, namespace) = (parts.next()?, parts.next()?);
            Some((cluster, (namespace.to_owned(), name.to_owned())))
        };
        let address = service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref());
        Self {
            is_exported: labels.contains_key(keys::EXPORTED) || labels.contains_key(keys::FEDERATED),
            is_system: labels.contains_key(keys::EXTENSION)
                || labels.contains_key("linkerd.io/control-plane-ns")
                || labels.contains_key("linkerd.io/control-plane-component"),
            is_probe: labels.contains_key(keys::MIRRORED_GATEWAY),
            mirrors: is(keys::MIRRORED_SERVICE).then(remote).flatten(),
            address: address.and_then(|address| address.parse().ok()),
        }
    }

    fn kept(objects: &mut Objects) -> &mut BTreeMap<Key, Self> {
        &mut objects.services
    }
}

impl Reduced for api::Link {
    type Object = Link;
    const RESOURCE: &'static str = "links";
    const COUNT_MAX: usize = 1_000;

    fn of(link: &Link, _: Option<&Self>, _: Timestamp) -> Self {
        let (spec, status) = (&link.spec, link.status.clone().unwrap_or_default());
        let condition = |condition: &LinkCondition| api::Condition {
            kind: condition.type_.clone(),
            status: condition.status.clone(),
            reason: condition.reason.clone(),
            message: condition.message.clone(),
            since: condition.last_transition_time.clone(),
        };
        let services = status.mirror_services.iter().chain(&status.federated_services);
        let mirrored = services.map(|service| {
            let local = service.conditions.iter().find_map(|one| one.local_ref.as_ref());
            api::Mirrored {
                namespace: service.remote_ref.namespace.clone(),
                service: service.remote_ref.name.clone(),
                local: local.map(|local| local.name.clone()).unwrap_or_default(),
                conditions: service.conditions.iter().map(condition).collect(),
            }
        });
        let gateway = match (&*spec.gateway_address, &*spec.gateway_port) {
            ("", _) => String::new(),
            (address, port) => format!("{address}:{port}"),
        };
        Self {
            name: link.name_any(),
            cluster: spec.target_cluster_name.clone(),
            gateway,
            conditions: status.conditions.iter().map(condition).collect(),
            mirrored: mirrored.collect(),
            ..Self::default()
        }
    }

    fn kept(objects: &mut Objects) -> &mut BTreeMap<Key, Self> {
        &mut objects.links
    }
}

/// Changes of one split that are remembered.
const HISTORY_MAX: usize = 50;

/// What the failover controller notes about a split.
#[derive(Default, Deserialize)]
#[serde(default)]
struct FailoverStatus {
    phase: String,
    message: String,
    since: Option<Timestamp>,
}

impl Reduced for api::Split {
    type Object = TrafficSplit;
    const RESOURCE: &'static str = "trafficsplits";
    const COUNT_MAX: usize = 1_000;

    fn of(split: &TrafficSplit, before: Option<&Self>, now: Timestamp) -> Self {
        let status = split.annotations().get(keys::FAILOVER_STATUS);
        let status: FailoverStatus = status
            .and_then(|text| serde_json::from_str(text).ok())
            .unwrap_or_default();
        let backends = split.spec.backends.iter().map(|backend| api::Backend {
            service: backend.service.clone(),
            weight: f64::from(backend.weight.0.milli()) / 1_000.0,
            cluster: String::new(),
        });
        let backends: Vec<_> = backends.collect();
        let weights: Vec<_> = backends
            .iter()
            .map(|backend| (backend.service.clone(), backend.weight))
            .collect();
        let mut history = before
            .map(|before| VecDeque::from(before.history.clone()))
            .unwrap_or_default();
        if history.front().is_none_or(|last| last.weights != weights) {
            // What was so before it was seen is as old as the controller says.
            let at = match (before, status.since) {
                (None, Some(since)) => since,
                _ => now,
            };
            history.push_front(api::Change {
                at: seconds(at),
                phase: status.phase.clone(),
                why: status.message.clone(),
                weights,
            });
            history.truncate(HISTORY_MAX);
        }
        Self {
            namespace: split.namespace().unwrap_or_default(),
            name: split.name_any(),
            service: split.spec.service.clone(),
            backends,
            phase: status.phase,
            why: status.message,
            since: status.since.map(seconds),
            history: history.into(),
        }
    }

    fn kept(objects: &mut Objects) -> &mut BTreeMap<Key, Self> {
        &mut objects.splits
    }
}

impl Reduced for api::Event {
    type Object = Event;
    const RESOURCE: &'static str = "events";
    const COUNT_MAX: usize = 300;

    fn of(event: &Event, _: Option<&Self>, _: Timestamp) -> Self {
        let series = event.series.as_ref();
        let at = series
            .map(|series| series.last_observed_time.0)
            .or_else(|| event.deprecated_last_timestamp.as_ref().map(|time| time.0))
            .or_else(|| event.event_time.as_ref().map(|time| time.0))
            .or_else(|| event.metadata.creation_timestamp.as_ref().map(|time| time.0));
        let source = event.deprecated_source.as_ref();
        let by = event
            .reporting_controller
            .clone()
            .filter(|by| !by.is_empty())
            .or_else(|| source?.component.clone())
            .unwrap_or_default();
        let about = event.regarding.clone().unwrap_or_default();
        Self {
            at: at.map(seconds).unwrap_or_default(),
            is_warning: event.type_.as_deref() == Some("Warning"),
            is_system: ["linkerd", "hawser"].iter().any(|mesh| by.contains(mesh)),
            kind: about.kind.unwrap_or_default(),
            namespace: about.namespace.unwrap_or_default(),
            name: about.name.unwrap_or_default(),
            reason: event.reason.clone().unwrap_or_default(),
            note: event
                .note
                .clone()
                .unwrap_or_default()
                .chars()
                .take(1_000)
                .collect(),
            by,
            count: series
                .map(|series| series.count)
                .or(event.deprecated_count)
                .unwrap_or(1),
        }
    }

    fn kept(objects: &mut Objects) -> &mut BTreeMap<Key, Self> {
        &mut objects.events
    }

    fn age(&self) -> Option<f64> {
        // What the mesh says is rarer and worth more than what Kubernetes says.
        Some(if self.is_system { self.at + 1e12 } else { self.at })
    }
}

/// What the mesh trusts.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Anchors(pub(crate) Vec<api::Certificate>);

impl Reduced for Anchors {
    type Object = ConfigMap;
    const RESOURCE: &'static str = "configmaps";
    const COUNT_MAX: usize = 1;

    fn of(map: &ConfigMap, _: Option<&Self>, _: Timestamp) -> Self {
        let bundle = map.data.as_ref().and_then(|data| data.get("ca-bundle.crt"));
        let certificates = bundle
            .and_then(|pem| hawser_tls::certificates(pem, "trust anchors").ok())
            .unwrap_or_default();
        let certificates = certificates.iter().filter_map(|certificate| {
            let about = hawser_tls::Description::of(certificate).ok()?;
            Some(api::Certificate {
                kind: "trust anchor".into(),
                name: about.subject,
                expires_at: seconds(about.not_after.try_into().ok()?),
                count: 1,
            })
        });
        Self(certificates.collect())
    }

    fn kept(objects: &mut Objects) -> &mut BTreeMap<Key, Self> {
        &mut objects.anchors
    }
}

/// Unix time in seconds.
pub(crate) fn seconds(at: Timestamp) -> f64 {
    at.as_millisecond() as f64 / 1_000.0
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn take<R: Reduced>(objects: &mut Objects, object: Value, now: i64) {
        let object = serde_json::from_value(object).expect("an object");
        insert::<R>(objects, &object, Timestamp::from_second(now).expect("in range"));
    }

    #[test]
    fn a_split_remembers_how_its_weights_changed_and_why() {
        let split = |weights: [u32; 2], message: &str| {
            let status = json!({"phase": "Fallback", "message": message, "since": "1970-01-01T00:00:05Z"});
            json!({
                "metadata": {"namespace": "x", "name": "web", "annotations": {"failover.linkerd.io/status": status.to_string()}},
                "spec": {"service": "web", "backends": [
                    {"service": "web", "weight": weights[0]}, {"service": "web-east", "weight": weights[1]}]},
            })
        };
        let mut objects = Objects::default();
        take::<api::Split>(&mut objects, split([1, 0], "as usual"), 10);
        take::<api::Split>(&mut objects, split([1, 0], "as ever"), 20);
        take::<api::Split>(&mut objects, split([0, 1], "nobody home"), 30);
        let split = objects.splits.values().next().expect("it is kept");
        let history: Vec<_> = split
            .history
            .iter()
            .map(|change| (change.at, &*change.why, change.weights[1].1))
            .collect();
        assert_eq!(history, [(30.0, "nobody home", 1.0), (5.0, "as usual", 0.0)]);
    }

    #[test]
    fn of_too_many_events_the_mesh_s_own_stay() {
        let event = |at: usize, by: &str| {
            json!({
                "metadata": {"namespace": "x", "name": format!("{by}.{at}"), "creationTimestamp": "1970-01-01T00:00:01Z"},
                "eventTime": null, "reportingController": by, "reason": "Failover", "note": "n".repeat(5_000),
            })
        };
        let mut objects = Objects::default();
        take::<api::Event>(&mut objects, event(0, "linkerd-failover"), 0);
        for at in 0..400 {
            take::<api::Event>(&mut objects, event(at, "kubelet"), 0);
        }
        assert_eq!(objects.events.len(), api::Event::COUNT_MAX);
        let kept = objects.events.get(&("x".into(), "linkerd-failover.0".into()));
        assert_eq!(kept.map(|event| (event.at, event.note.len())), Some((1.0, 1_000)));
    }

    #[test]
    fn a_mirror_says_what_it_stands_for() {
        let mut objects = Objects::default();
        let mirror = json!({
            "metadata": {
                "namespace": "emojivoto", "name": "web-svc-east",
                "labels": {"mirror.linkerd.io/mirrored-service": "true", "mirror.linkerd.io/cluster-name": "east"},
                "annotations": {"mirror.linkerd.io/remote-svc-fq-name": "web-svc.emojivoto.svc.cluster.local"},
            },
            "spec": {"clusterIP": "10.96.0.7"},
        });
        take::<ServiceFacts>(&mut objects, mirror, 0);
        let facts = objects.services.values().next().expect("it is kept");
        let remote = ("emojivoto".to_owned(), "web-svc".to_owned());
        assert_eq!(facts.mirrors, Some(("east".into(), remote)));
        assert_eq!(facts.address, Some([10, 96, 0, 7].into()));
    }
}
