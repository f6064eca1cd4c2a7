//! What a proxy should know about a target before it connects: its name, whether it is opaque, how traffic is split.
//!
//! Pure. A Service gets a profile by name, a pod its own endpoint, anything else as little as is true.
//! Source: `spec/proxy.md` 5.3, `spec/multicluster.md` 8.2.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use linkerd2_proxy_api::destination::{DestinationProfile, RetryBudget, WeightedDst};
use tonic::Status;

use super::endpoints;
use crate::mesh::{Asker, Mesh, Target};
use crate::view::objects::Service;
use crate::view::{Key, State, Topic, Topics};

pub fn profile(
    mesh: &Mesh,
    state: &State,
    target: &Target,
    asker: &Asker,
    topics: &mut Topics,
) -> Result<DestinationProfile, Status> {
    match target {
        Target::Address(address) => Ok(of_address(mesh, state, *address, topics)),
        Target::Service {
            service: key,
            instance,
            port,
        } => {
            topics.insert(Topic::Service(key.clone()));
            let Some(service) = state.service(key) else {
                // What proxies take as final; after NotFound a gateway would keep its client waiting. Not
                // FailedPrecondition: that says of a Service that it isn't exported.
                return Err(Status::invalid_argument(format!("service {key} does not exist")));
            };
            if service.external_name {
                return Err(Status::invalid_argument(format!(
                    "service {key} is only a name for {key} elsewhere"
                )));
            }
            asker.may_ask_for(mesh, state, service, topics)?;
            Ok(match instance {
                None => of_service(mesh, state, service, *port, topics),
                Some(instance) => of_instance(mesh, state, key, instance, *port, asker, topics),
            })
        }
    }
}

fn of_address(mesh: &Mesh, state: &State, address: SocketAddr, topics: &mut Topics) -> DestinationProfile {
    topics.insert(Topic::Ip(address.ip()));
    if let Some(service) = state.service_at(address.ip()) {
        return of_service(mesh, state, service, address.port(), topics);
    }
    if let Some(pod) = state.pod_at(address.ip()) {
        topics.insert(Topic::Pod(pod.key()));
        return DestinationProfile {
            opaque_protocol: mesh.is_opaque(state, pod, address.port(), topics),
            endpoint: Some(endpoints::pod_address(mesh, state, pod, address, topics)),
            retry_budget: Some(retry_budget()),
            ..DestinationProfile::default()
        };
    }
    if let Some(profile) = of_remote_pod(mesh, state, address, topics) {
        return profile;
    }
    let outside = !mesh.is_cluster_network(address.ip());
    DestinationProfile {
        opaque_protocol: mesh.opaque_ports.contains(address.port()),
        endpoint: outside.then(|| endpoints::plain(address, HashMap::new())),
        retry_budget: Some(retry_budget()),
        ..DestinationProfile::default()
    }
}

/// A pod of another cluster that we look into: over a flat network it can be dialled by its address.
fn of_remote_pod(
    mesh: &Mesh,
    state: &State,
    address: SocketAddr,
    topics: &mut Topics,
) -> Option<DestinationProfile> {
    topics.insert(Topic::Clusters);
    state.remotes().find_map(|(name, remote)| {
        let mut there = Topics::from([Topic::Ip(address.ip())]);
        let profile = remote.state.pod_at(address.ip()).map(|pod| {
            there.insert(Topic::Pod(pod.key()));
            let mesh = endpoints::of_cluster(mesh, remote);
            DestinationProfile {
                opaque_protocol: mesh.is_opaque(&remote.state, pod, address.port(), &mut there),
                endpoint: Some(endpoints::pod_address(
                    &mesh,
                    &remote.state,
                    pod,
                    address,
                    &mut there,
                )),
                retry_budget: Some(retry_budget()),
                ..DestinationProfile::default()
            }
        });
        topics.extend(endpoints::of_remote(name, there));
        profile.filter(|profile| {
            let endpoint = profile.endpoint.as_ref();
            endpoint.is_some_and(|endpoint| endpoint.tls_identity.is_some())
        })
    })
}

fn of_service(
    mesh: &Mesh,
    state: &State,
    service: &Service,
    port: u16,
    topics: &mut Topics,
) -> DestinationProfile {
    let key = service.key();
    topics.insert(Topic::Service(key.clone()));
    if service.port(port).is_none() && !service.headless {
        // Nothing may override the refusal that the policy gives for a port which the Service doesn't define.
        return DestinationProfile {
            retry_budget: Some(retry_budget()),
            ..DestinationProfile::default()
        };
    }
    DestinationProfile {
        fully_qualified_name: mesh.service_name(&key),
        opaque_protocol: service.is_opaque(port, &mesh.opaque_ports),
        retry_budget: Some(retry_budget()),
        dst_overrides: overrides(mesh, state, &key, port),
        parent_ref: Some(super::service_metadata(&key, port)),
        ..DestinationProfile::default()
    }
}

/// A pod by its host name below a headless Service.
fn of_instance(
    mesh: &Mesh,
    state: &State,
    service: &Key,
    instance: &str,
    port: u16,
    asker: &Asker,
    topics: &mut Topics,
) -> DestinationProfile {
    let found = endpoints::resolve(mesh, state, service, Some(instance), port, asker, topics).ok();
    let Some((address, endpoint)) = found.and_then(|found| found.addresses.into_iter().next()) else {
        return DestinationProfile {
            retry_budget: Some(retry_budget()),
            ..DestinationProfile::default()
        };
    };
    let pod = state.pod_at(address.ip());
    DestinationProfile {
        opaque_protocol: pod.is_some_and(|pod| mesh.is_opaque(state, pod, address.port(), topics)),
        endpoint: Some(endpoint),
        retry_budget: Some(retry_budget()),
        ..DestinationProfile::default()
    }
}

/// A split whose weights are all zero counts as none, so that traffic goes to the Service itself.
fn overrides(mesh: &Mesh, state: &State, service: &Key, port: u16) -> Vec<WeightedDst> {
    let backends = state
        .split(service)
        .map(|split| split.backends.as_slice())
        .unwrap_or_default();
    if backends.iter().all(|(_, weight)| weight.is_zero()) {
        return vec![];
    }
    backends
        .iter()
        .map(|(name, weight)| {
            let backend = Key::new(&service.namespace, name);
            WeightedDst {
                authority: format!("{}.:{port}", mesh.service_name(&backend)),
                // Thousandths times ten is the unit upstream chose; only ratios matter.
                weight: weight.milli().saturating_mul(10),
                backend_ref: Some(super::service_metadata(&backend, port)),
            }
        })
        .collect()
}

fn retry_budget() -> RetryBudget {
    RetryBudget {
        retry_ratio: 0.2,
        min_retries_per_second: 10,
        ttl: Duration::from_secs(10).try_into().ok(),
    }
}
