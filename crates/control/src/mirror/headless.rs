//! Mirrors of headless Services: one mirror for each pod that has a name of its own, and one that lists them.
//!
//! `<pod>.<service>-<cluster>` resolves to the cluster IP of the pod's mirror, whose endpoint is the gateway, which asks
//! its cluster for just that pod. Pure, and part of the mirrors' plan: cluster IPs are known only after the mirrors of
//! the pods exist, so the list follows a moment later. Source: `spec/multicluster.md` 6.8.

use hawser_core::ServiceName;
use hawser_crd::keys;
use k8s_openapi::api::core::v1::{EndpointAddress, EndpointSubset};

use super::plan::{
    self, Desired, DesiredService, Kind, Plan, Verdict, endpoints_annotations, endpoints_labels,
    mirror_service, service_write, subsets,
};
use super::snapshot::{
    Addresses, LinkView, LocalService, Map, Remote, RemoteEndpoints, RemoteService, Snapshot, is_mirror_of,
};
use crate::observe::Key;

/// What the mirror of a headless Service looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// With a cluster IP: its pods have no names.
    Plain,
    /// With a mirror for each pod.
    Instances,
}

/// Its endpoints decide; while there are none, a mirror stays as it is, and `None` says that there is no telling.
pub(super) fn shape(endpoints: Option<&RemoteEndpoints>, found: Option<&LocalService>) -> Option<Shape> {
    match endpoints {
        Some(endpoints) if !endpoints.instances.is_empty() => Some(Shape::Instances),
        Some(endpoints) if endpoints.has_addresses => Some(Shape::Plain),
        _ => found.map(|found| match found.is_headless() {
            true => Shape::Instances,
            false => Shape::Plain,
        }),
    }
}

/// Plans the mirrors of a Service and its pods. Whether `local` may be written was checked.
pub(super) fn mirror(
    snapshot: &Snapshot,
    link: &LinkView,
    remote: &Remote,
    (key, service): (&Key, &RemoteService),
    local: &Key,
    plan: &mut Plan,
) -> Verdict {
    let found = snapshot.services.get(local).map(AsRef::as_ref);
    let mut desired = mirror_service(link, key, service);
    desired.headless = true;
    let write = service_write(Kind::Service, local, &desired, found);
    plan.writes.entry(local.clone()).or_default().extend(write);
    let nothing = RemoteEndpoints::default();
    let endpoints = remote.endpoints.get(key).map_or(&nothing, AsRef::as_ref);
    // Whatever can't be resolved or has no room: pods that are mirrored stay so.
    let Addresses::Resolved(_) = &snapshot.addresses else {
        let pods = snapshot.services.iter().filter(|(_, found)| {
            found.labels.get(keys::HEADLESS_MIRROR_SERVICE) == Some(&local.name)
                && is_mirror_of(&found.labels, link.cluster.as_str())
        });
        let pods = pods.map(|(pod, _)| pod.clone());
        plan.instances
            .extend(pods.filter(|pod| pod.namespace == local.namespace));
        return plan::unresolved_verdict(link, &snapshot.addresses);
    };
    let mut troubles = Vec::new();
    let mut lists = Vec::new();
    for instances in &endpoints.instances {
        let mut list = |hostnames: &[String], is_ready: bool| -> Option<Vec<EndpointAddress>> {
            let addresses = hostnames.iter().filter_map(|hostname| {
                let instance = Instance {
                    service: (key, service),
                    endpoints,
                    local,
                    hostname,
                    is_ready,
                };
                match instance.mirror(snapshot, link, plan) {
                    Ok(ip) => ip.map(|ip| EndpointAddress {
                        ip,
                        hostname: Some(hostname.clone()),
                        ..Default::default()
                    }),
                    Err(trouble) => {
                        troubles.push(trouble);
                        None
                    }
                }
            });
            let addresses: Vec<EndpointAddress> = addresses.collect();
            (!addresses.is_empty()).then_some(addresses)
        };
        let (addresses, not_ready_addresses) =
            (list(&instances.ready, true), list(&instances.not_ready, false));
        if addresses.is_some() || not_ready_addresses.is_some() {
            lists.push(EndpointSubset {
                addresses,
                not_ready_addresses,
                ports: Some(instances.ports.clone()),
            });
        }
    }
    let desired = Desired {
        labels: endpoints_labels(link, &service.labels),
        annotations: endpoints_annotations(link, plan::fq_name(link, key)),
        subsets: lists,
    };
    let found = snapshot.endpoints.get(local).map(AsRef::as_ref);
    let writes = desired.writes(snapshot, local, found);
    plan.writes.entry(local.clone()).or_default().extend(writes);
    match troubles.is_empty() {
        true => Verdict::Mirrored { local: local.clone() },
        false => Verdict::Failed(format!(
            "Failed to create mirror endpoints: {}",
            troubles.join(", ")
        )),
    }
}

/// One pod of a headless Service.
struct Instance<'a> {
    service: (&'a Key, &'a RemoteService),
    endpoints: &'a RemoteEndpoints,
    /// The Service's mirror.
    local: &'a Key,
    hostname: &'a str,
    is_ready: bool,
}

impl Instance<'_> {
    /// Plans the pod's own mirror; says its cluster IP, once there is one, or why there can be no mirror.
    fn mirror(
        &self,
        snapshot: &Snapshot,
        link: &LinkView,
        plan: &mut Plan,
    ) -> Result<Option<String>, String> {
        let cluster = link.cluster.as_str();
        let hostname: ServiceName = self
            .hostname
            .parse()
            .map_err(|error: hawser_core::NameError| error.to_string())?;
        let name = hawser_core::names::mirror(&hostname, &link.cluster).map_err(|error| error.to_string())?;
        let own = Key::new(&self.local.namespace, name.to_string());
        let found = snapshot.services.get(&own).map(AsRef::as_ref);
        let is_ours = |labels: &Map| {
            is_mirror_of(labels, cluster)
                && labels.get(keys::HEADLESS_MIRROR_SERVICE) == Some(&self.local.name)
        };
        let found_endpoints = snapshot.endpoints.get(&own).map(AsRef::as_ref);
        if found.is_some_and(|found| !is_ours(&found.labels))
            || found_endpoints.is_some_and(|found| !is_ours(&found.labels))
            || (plan.writes.contains_key(&own) && !plan.instances.contains(&own))
        {
            return Err(format!(
                "{own} exists and does not belong to this service; it is left alone"
            ));
        }
        let ip = found
            .map(|found| found.cluster_ip.clone())
            .filter(|ip| !ip.is_empty());
        if plan.instances.contains(&own) {
            // Listed twice, for ports of which not all are ready.
            return Ok(ip);
        }
        let (key, service) = self.service;
        let mut labels = endpoints_labels(link, &service.labels);
        labels.insert(keys::HEADLESS_MIRROR_SERVICE.into(), self.local.name.clone());
        let fq_name = format!("{}.{}", self.hostname, plan::fq_name(link, key));
        // The version under which the pod was first seen: following it would write to every pod's mirror whenever one
        // pod comes or goes.
        let version = found
            .and_then(|found| found.annotations.get(keys::REMOTE_RESOURCE_VERSION))
            .unwrap_or(&self.endpoints.resource_version);
        let mut annotations = Map::from([
            (keys::REMOTE_SERVICE_FQ_NAME.into(), fq_name.clone()),
            (keys::REMOTE_RESOURCE_VERSION.into(), version.clone()),
        ]);
        if let Some(ports) = service.annotations.get(keys::OPAQUE_PORTS) {
            annotations.insert(keys::OPAQUE_PORTS.into(), ports.clone());
        }
        let desired = DesiredService {
            labels: labels.clone(),
            annotations,
            ports: service.ports.clone(),
            headless: false,
        };
        let mut writes: Vec<_> = service_write(Kind::Service, &own, &desired, found)
            .into_iter()
            .collect();
        let Addresses::Resolved(addresses) = &snapshot.addresses else {
            return Ok(None);
        };
        let desired = Desired {
            labels,
            annotations: endpoints_annotations(link, fq_name),
            subsets: subsets(
                link,
                addresses,
                &service.ports,
                !self.is_ready,
                snapshot.gateway_is_dead,
            ),
        };
        writes.extend(desired.writes(snapshot, &own, found_endpoints));
        plan.writes.entry(own.clone()).or_default().extend(writes);
        plan.instances.insert(own);
        Ok(ip)
    }
}
