//! Addresses of Services of type LoadBalancer, from the cluster's pool.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1::Service;
use serde_json::json;

use super::addresses::allocate_load_balancer;
use super::plan::{Action, Note, Plan, View, Write};
use super::pods::note;
use super::snapshot::{Key, Resource, Target};

const COMPONENT: &str = "service-controller";

pub(crate) fn plan(view: &View<'_>, plan: &mut Plan) {
    let services = || {
        view.snapshot
            .services
            .values()
            .filter(|service| service.metadata.deletion_timestamp.is_none())
    };
    // One at a time: until the answer to a write is known, the snapshot shows its address as free.
    let lane = Target {
        resource: Resource::of::<Service>(),
        key: Key {
            namespace: String::new(),
            name: "load-balancer-pool".to_owned(),
        },
    };
    let (pool, mut taken) = (view.addresses.load_balancers, BTreeSet::new());
    for service in services().filter(|service| wants_address(service)) {
        taken.extend(addresses(service));
    }
    for service in services() {
        let scope = Target::of(&**service);
        let current: Vec<_> = addresses(service).collect();
        if !wants_address(service) {
            if !current.is_empty() && !has_foreign_class(service) {
                let patch = json!({ "status": { "loadBalancer": { "ingress": null } } });
                plan.patch_status(&scope, scope.clone(), patch);
            }
            continue;
        }
        let wanted = service
            .spec
            .as_ref()
            .and_then(|spec| spec.load_balancer_ip.as_deref());
        let wanted = wanted
            .filter(|text| !text.is_empty())
            .and_then(|text| text.parse().ok());
        if current
            .first()
            .is_some_and(|current| wanted.is_none_or(|wanted| wanted == *current))
        {
            continue;
        }
        let Some(address) = allocate_load_balancer(pool, wanted, &taken) else {
            tracing::debug!(service = %scope.key, %pool, "no load balancer address is free");
            continue;
        };
        taken.insert(address);
        let ingress = json!([{ "ip": address, "ipMode": "VIP" }]);
        let patch = json!({ "status": { "loadBalancer": { "ingress": ingress } } });
        let note: Note = note(
            &service.metadata,
            COMPONENT,
            "EnsuredLoadBalancer",
            "Ensured load balancer".into(),
        );
        plan.actions.push(Action {
            scope: scope.clone(),
            lane: Some(lane.clone()),
            write: Write::Patch {
                target: scope,
                subresource: Some("status"),
                patch,
            },
            note: Some(note),
        });
    }
}

fn wants_address(service: &Service) -> bool {
    service
        .spec
        .as_ref()
        .is_some_and(|spec| spec.type_.as_deref() == Some("LoadBalancer"))
        && !has_foreign_class(service)
}

/// Somebody else's load balancer.
fn has_foreign_class(service: &Service) -> bool {
    service
        .spec
        .as_ref()
        .is_some_and(|spec| spec.load_balancer_class.is_some())
}

fn addresses(service: &Service) -> impl Iterator<Item = Ipv4Addr> {
    let balancer = service
        .status
        .as_ref()
        .and_then(|status| status.load_balancer.as_ref());
    let ingress = balancer
        .into_iter()
        .flat_map(|balancer| balancer.ingress.iter().flatten());
    ingress.filter_map(|ingress| ingress.ip.as_deref()?.parse().ok())
}
