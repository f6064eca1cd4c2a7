//! Endpoints that somebody wrote by hand for a Service without a selector, copied to EndpointSlices.
//!
//! Clients read slices only, so without the copy such a Service would lead nowhere.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{EndpointAddress, Endpoints, Service};
use serde_json::{Map, Value, json};

use super::endpoints::{plan_owned_slices, selector};
use super::plan::{Manner, Plan, Reference, View, controller_of};
use super::snapshot::{Resource, Target};

const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
/// Annotations that say something about the original only.
const NOT_COPIED: [&str; 2] = [
    "endpoints.kubernetes.io/last-change-trigger-time",
    "kubectl.kubernetes.io/last-applied-configuration",
];
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// As in Kubernetes. What is beyond is not mirrored.
const ADDRESSES_PER_SUBSET_MAX: usize = 1000;

pub(crate) fn plan(view: &View<'_>, plan: &mut Plan) {
    for (key, endpoints) in &view.snapshot.endpoints {
        if endpoints.metadata.deletion_timestamp.is_some() {
            continue;
        }
        let scope = Target::of(&**endpoints);
        match view.snapshot.services.get(key) {
            Some(service) if selector(service).is_none() && is_mirrored(endpoints) => {
                plan_owned_slices(view, plan, &scope, &endpoints.metadata, slices(endpoints));
            }
            Some(_) => plan_owned_slices(view, plan, &scope, &endpoints.metadata, Vec::new()),
            // A mirror proves that there was a Service once. With it gone, its Endpoints go too.
            None if has_mirror(view, endpoints) => {
                let service = Target {
                    resource: Resource::of::<Service>(),
                    key: key.clone(),
                };
                let unless = vec![Reference::any(service)];
                plan.delete_unless(
                    &scope,
                    scope.clone(),
                    &endpoints.metadata,
                    Manner::Background,
                    unless,
                );
            }
            None => {}
        }
    }
}

fn is_mirrored(endpoints: &Endpoints) -> bool {
    let label = endpoints
        .metadata
        .labels
        .as_ref()
        .and_then(|labels| labels.get(SKIP));
    let leader = endpoints
        .metadata
        .annotations
        .as_ref()
        .is_some_and(|all| all.contains_key(LEADER));
    label.is_none_or(|skip| skip != "true") && !leader
}

fn has_mirror(view: &View<'_>, endpoints: &Endpoints) -> bool {
    view.snapshot.endpoint_slices.values().any(|slice| {
        controller_of(&slice.metadata)
            .is_some_and(|owner| Some(&owner.uid) == endpoints.metadata.uid.as_ref())
    })
}

fn slices(endpoints: &Endpoints) -> Vec<Value> {
    let mut labels: Map<String, Value> = endpoints
        .metadata
        .labels
        .iter()
        .flatten()
        .map(|(key, value)| (key.clone(), value.as_str().into()))
        .collect();
    labels.insert(
        "endpointslice.kubernetes.io/managed-by".to_owned(),
        MANAGER.into(),
    );
    labels.insert(
        "kubernetes.io/service-name".to_owned(),
        json!(endpoints.metadata.name),
    );
    let annotations: BTreeMap<_, _> = endpoints
        .metadata
        .annotations
        .iter()
        .flatten()
        .filter(|(key, _)| !NOT_COPIED.contains(&key.as_str()))
        .collect();
    let mut slices = Vec::new();
    for subset in endpoints.subsets.iter().flatten() {
        let ports: Vec<Value> = subset
            .ports
            .iter()
            .flatten()
            .map(|port| {
                let mut copy = json!(port);
                copy["name"] = json!(port.name.as_deref().unwrap_or_default());
                copy["protocol"] = json!(port.protocol.as_deref().unwrap_or("TCP"));
                copy
            })
            .collect();
        let mut families: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
        let ready = subset.addresses.iter().flatten().map(|address| (address, true));
        let not_ready = subset
            .not_ready_addresses
            .iter()
            .flatten()
            .map(|address| (address, false));
        for (address, ready) in ready.chain(not_ready).take(ADDRESSES_PER_SUBSET_MAX) {
            let family = match address.ip.parse() {
                Ok(IpAddr::V4(_)) => "IPv4",
                Ok(IpAddr::V6(_)) => "IPv6",
                Err(_) => continue,
            };
            families.entry(family).or_default().push(endpoint(address, ready));
        }
        slices.extend(families.into_iter().map(|(family, endpoints)| {
            json!({
                "metadata": { "labels": labels, "annotations": annotations },
                "addressType": family,
                "endpoints": endpoints,
                "ports": ports,
            })
        }));
    }
    slices
}

fn endpoint(address: &EndpointAddress, ready: bool) -> Value {
    let mut endpoint = json!({ "addresses": [address.ip], "conditions": { "ready": ready } });
    if let Some(hostname) = address.hostname.as_ref().filter(|name| !name.is_empty()) {
        endpoint["hostname"] = json!(hostname);
    }
    if let Some(node) = &address.node_name {
        endpoint["nodeName"] = json!(node);
    }
    if let Some(target) = &address.target_ref {
        endpoint["targetRef"] = json!(target);
    }
    endpoint
}
