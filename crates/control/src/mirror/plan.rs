//! Decides how the mirrors of one Link should look, and what to write to get there.
//!
//! A pure function of a snapshot: no client, no clock, no name resolution. Creating, updating, repairing, collecting
//! orphans and restarting are the same computation. Objects that aren't ours are never written; a write carries the
//! version it was planned against, so it fails rather than overwrite what we haven't seen.
//!
//! Updates are conditional merge patches rather than server-side apply: an update replaces labels and annotations
//! wholesale (also those someone else put on a mirror), and a creation must fail when the name is taken. Apply can
//! express neither.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use hawser_core::ServiceName;
use hawser_crd::keys;
use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset};
use serde_json::{Value, json};

use super::headless::{self, Shape};
use super::snapshot::{
    Addresses, HEADLESS, LinkView, LocalEndpoints, LocalService, LocalSlice, Map, Port, Remote,
    RemoteService, Snapshot, Version, is_mirror_of,
};
use super::{federated, status};
use crate::observe::Key;

/// Annotations that describe the target cluster only.
const NEVER_COPIED_ANNOTATIONS: [&str; 3] = [
    "service.kubernetes.io/topology-aware-hints",
    "service.kubernetes.io/topology-mode",
    "kubectl.kubernetes.io/last-applied-configuration",
];
const SLICES_MANAGED_BY: &str = "hawser-service-mirror";

/// What to do.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Plan {
    /// By local name; the writes of one name are made in order, and the rest is skipped when one fails.
    pub writes: BTreeMap<Key, Vec<Write>>,
    /// By the target's name: what became of each exported Service, if all writes succeed.
    pub verdicts: BTreeMap<Key, Verdict>,
    /// The same for Services that join federated ones.
    pub federated: BTreeMap<Key, Verdict>,
    /// Local names that are wanted although no verdict has them: mirrors of single pods.
    pub instances: BTreeSet<Key>,
    /// What the target's users should be told of, in Events on their Services.
    pub skipped: Vec<Skipped>,
}

/// A Service that is not mirrored, and only its users can change that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Skipped {
    pub service: Key,
    /// The Service's uid in the target.
    pub uid: String,
    /// As in the Link's condition.
    pub reason: String,
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Service,
    /// A Service too, but not a mirror.
    Federated,
    /// A Service through which a gateway is probed.
    Probe,
    Namespace,
    Endpoints,
    EndpointSlice,
}

/// One conditional change.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Write {
    /// Fails if the object exists.
    Create { kind: Kind, key: Key, object: Value },
    /// A merge patch; fails if the object changed since.
    Patch {
        kind: Kind,
        key: Key,
        version: Version,
        patch: Value,
    },
    /// Fails if the object is another one by now.
    Delete { kind: Kind, key: Key, version: Version },
    /// Fails if the object changed since.
    DeleteUnchanged { kind: Kind, key: Key, version: Version },
}

impl Write {
    /// What a failure of this write means, in the words of a Link's condition.
    pub(crate) fn intent(&self) -> String {
        let (verb, kind) = match self {
            Self::Create { kind, .. } => ("create", kind),
            Self::Patch { kind, .. } => ("update", kind),
            Self::Delete { kind, .. } | Self::DeleteUnchanged { kind, .. } => ("delete", kind),
        };
        let thing = match kind {
            Kind::Service => "mirror service",
            Kind::Federated => "federated service",
            Kind::Probe => "probe service",
            Kind::Namespace => "namespace",
            Kind::Endpoints => "mirror endpoints",
            Kind::EndpointSlice => "mirror endpoint slice",
        };
        format!("{verb} {thing}")
    }
}

/// What became of an exported Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Mirrored {
        local: Key,
    },
    /// Belongs to this federated Service.
    Joined {
        local: Key,
    },
    MissingNamespace,
    /// A Service that isn't ours has the mirror's name.
    NameConflict {
        local: Key,
    },
    /// As it is, the Service can't have a mirror.
    Unfit(String),
    /// Services like it are not for this.
    Invalid(&'static str),
    Failed(String),
    /// There is nothing wrong, but something must happen first.
    Waiting(&'static str),
    /// Somebody else wrote at the same time; the next plan takes that into account.
    Outrun,
}

pub(crate) fn plan(snapshot: &Snapshot) -> Plan {
    let mut plan = Plan::default();
    match (&snapshot.link, &snapshot.remote) {
        (None, _) => remove_all(snapshot, &mut plan),
        (Some(link), None) => refresh_without_remote(snapshot, link, &mut plan),
        (Some(link), Some(remote)) => {
            mirror(snapshot, link, remote, &mut plan);
            collect_orphans(snapshot, link, &mut plan);
        }
    }
    if let Some(link) = &snapshot.link {
        probe_endpoints(snapshot, link, &mut plan);
    }
    federated::of_link(snapshot, &mut plan);
    plan.writes.retain(|_, writes| !writes.is_empty());
    plan
}

/// How clients reach the target's pods.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Gateway,
    /// By their own addresses, which the control plane discovers.
    Direct,
}

fn mirror(snapshot: &Snapshot, link: &LinkView, remote: &Remote, plan: &mut Plan) {
    for (key, service) in &remote.services {
        let way = if link.remote_discovery.matches(&service.labels) {
            Way::Direct
        } else if link.exported.matches(&service.labels) {
            Way::Gateway
        } else {
            continue;
        };
        let verdict = mirror_one(snapshot, link, remote, (key, service), way, plan);
        plan.skipped.extend(skipped(link, key, service, &verdict));
        plan.verdicts.insert(key.clone(), verdict);
    }
}

/// What to tell the users of a Service, unless the Link's status says the same already: then they were told.
fn skipped(link: &LinkView, key: &Key, service: &RemoteService, verdict: &Verdict) -> Option<Skipped> {
    let message = match verdict {
        Verdict::Mirrored { .. }
        | Verdict::Joined { .. }
        | Verdict::Failed(_)
        | Verdict::Waiting(_)
        | Verdict::Outrun => return None,
        Verdict::MissingNamespace => "namespace does not exist".to_owned(),
        Verdict::NameConflict { local } => {
            format!("a service {local} that belongs to somebody else has the mirror's name")
        }
        Verdict::Unfit(message) => message.clone(),
        Verdict::Invalid(message) => (*message).to_owned(),
    };
    let condition = status::condition(verdict);
    let told = link.status.mirror_services.iter().any(|entry| {
        entry.remote_ref.name == key.name
            && entry.remote_ref.namespace == key.namespace
            && entry
                .conditions
                .iter()
                .any(|old| old.reason == condition.reason && old.message == condition.message)
    });
    (!told).then(|| Skipped {
        service: key.clone(),
        uid: service.uid.clone(),
        reason: condition.reason,
        message,
    })
}

fn mirror_one(
    snapshot: &Snapshot,
    link: &LinkView,
    remote: &Remote,
    (key, service): (&Key, &RemoteService),
    way: Way,
    plan: &mut Plan,
) -> Verdict {
    let name = match mirror_name(key, link) {
        Ok(name) => name,
        Err(error) => return Verdict::Unfit(error.to_string()),
    };
    let local = Key::new(&key.namespace, name);
    let namespace = Key::new("", &key.namespace);
    if !snapshot.namespaces.contains_key(&namespace) {
        if !snapshot.makes_namespaces {
            return Verdict::MissingNamespace;
        }
        let write = create_namespace(link, namespace.clone());
        plan.writes.entry(namespace).or_insert_with(|| vec![write]);
        return Verdict::Waiting("Its namespace is being created");
    }
    if service.ports.is_empty() {
        return Verdict::Unfit("the service exposes no ports".into());
    }
    let found = snapshot.services.get(&local);
    if found.is_some_and(|found| !is_mirror_of(&found.labels, link.cluster.as_str())) {
        return Verdict::NameConflict { local };
    }
    let found_endpoints = snapshot.endpoints.get(&local);
    if found_endpoints.is_some_and(|found| !is_mirror_of(&found.labels, link.cluster.as_str())) {
        return Verdict::NameConflict { local };
    }
    // The mirror of a pod, which has its name from elsewhere.
    if found.is_some_and(|found| found.labels.contains_key(keys::HEADLESS_MIRROR_SERVICE)) {
        return Verdict::NameConflict { local };
    }
    let shape = if way == Way::Gateway && snapshot.mirrors_headless && service.headless {
        headless::shape(
            remote.endpoints.get(key).map(AsRef::as_ref),
            found.map(AsRef::as_ref),
        )
    } else {
        Some(Shape::Plain)
    };
    let Some(shape) = shape else {
        return Verdict::Waiting("The headless service has no endpoints yet");
    };
    if let Some(found) = found.filter(|found| found.is_headless() != (shape == Shape::Instances)) {
        let version = found.version.clone();
        plan.writes.entry(local.clone()).or_default().push(Write::Delete {
            kind: Kind::Service,
            key: local,
            version,
        });
        return Verdict::Waiting("Its mirror is made anew: a cluster IP can't come or go");
    }
    if shape == Shape::Instances {
        return headless::mirror(snapshot, link, remote, (key, service), &local, plan);
    }

    let mut desired = mirror_service(link, key, service);
    if way == Way::Direct {
        let cluster = link.cluster.to_string();
        desired.labels.insert(keys::REMOTE_DISCOVERY.into(), cluster);
        desired
            .labels
            .insert(keys::REMOTE_SERVICE.into(), key.name.clone());
    }
    let mut writes: Vec<Write> = service_write(Kind::Service, &local, &desired, found.map(AsRef::as_ref))
        .into_iter()
        .collect();
    let verdict = match &snapshot.addresses {
        _ if way == Way::Direct => {
            // Left from when it was reached through the gateway.
            writes.extend(delete_endpoints(snapshot, &local));
            Verdict::Mirrored { local: local.clone() }
        }
        Addresses::Resolved(addresses) => {
            // Emptiness is about what the target could serve; liveness about whether we can get there.
            let is_ready = remote.endpoints.get(key).is_some_and(|found| found.is_ready);
            let is_empty = service.has_selector && !is_ready;
            let subsets = subsets(
                link,
                addresses,
                &service.ports,
                is_empty,
                snapshot.gateway_is_dead,
            );
            let desired = Desired {
                labels: endpoints_labels(link, &service.labels),
                annotations: endpoints_annotations(link, fq_name(link, key)),
                subsets,
            };
            writes.extend(desired.writes(snapshot, &local, found_endpoints.map(AsRef::as_ref)));
            Verdict::Mirrored { local: local.clone() }
        }
        unresolved => unresolved_verdict(link, unresolved),
    };
    plan.writes.entry(local).or_default().extend(writes);
    verdict
}

/// Why there is no address of the gateway.
pub(super) fn unresolved_verdict(link: &LinkView, addresses: &Addresses) -> Verdict {
    let why = match addresses {
        Addresses::Failed(error) => error,
        _ if link.gateway.is_some() => "it is being resolved",
        _ => "the link has no gateway",
    };
    Verdict::Failed(format!("Failed to get gateway address: {why}"))
}

fn create_namespace(link: &LinkView, key: Key) -> Write {
    let object = json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {
            "name": key.name,
            "labels": {keys::MIRRORED_SERVICE: "true", keys::CLUSTER_NAME: link.cluster.to_string()},
        },
    });
    Write::Create {
        kind: Kind::Namespace,
        key,
        object,
    }
}

fn mirror_name(key: &Key, link: &LinkView) -> Result<String, hawser_core::NameError> {
    let name: ServiceName = key.name.parse()?;
    Ok(hawser_core::names::mirror(&name, &link.cluster)?.to_string())
}

fn delete_endpoints(snapshot: &Snapshot, local: &Key) -> Vec<Write> {
    let delete = |kind: Kind, key: &Key, version: &Version| Write::Delete {
        kind,
        key: key.clone(),
        version: version.clone(),
    };
    let endpoints = snapshot.endpoints.get(local);
    let endpoints = endpoints.map(|found| delete(Kind::Endpoints, local, &found.version));
    let of_service = |slice: &LocalSlice| {
        let labels = slice.slice.metadata.labels.as_ref();
        labels.and_then(|labels| labels.get(keys::LABEL_SERVICE_NAME)) == Some(&local.name)
    };
    let slices = snapshot
        .slices
        .iter()
        .filter(|(key, slice)| key.namespace == local.namespace && of_service(slice))
        .map(|(key, slice)| delete(Kind::EndpointSlice, key, &slice.version));
    endpoints.into_iter().chain(slices).collect()
}

/// The target can't be seen. Which mirrors exist stays as it is; where their gateway is and whether it lives, we know.
fn refresh_without_remote(snapshot: &Snapshot, link: &LinkView, plan: &mut Plan) {
    let Addresses::Resolved(addresses) = &snapshot.addresses else {
        return;
    };
    for (key, service) in &snapshot.services {
        // Endpoints of headless mirrors lead to mirrors of pods, not to the gateway.
        if !is_mirror_of(&service.labels, link.cluster.as_str()) || service.is_headless() {
            continue;
        }
        let Some(found) = snapshot.endpoints.get(key) else {
            continue;
        };
        let is_empty = found.subsets.is_empty();
        let mut annotations = found.annotations.clone();
        if let Some(gateway) = &link.gateway {
            annotations.insert(keys::REMOTE_GATEWAY_IDENTITY.into(), gateway.identity.clone());
        }
        let desired = Desired {
            labels: found.labels.clone(),
            annotations,
            subsets: subsets(
                link,
                addresses,
                &service.ports,
                is_empty,
                snapshot.gateway_is_dead,
            ),
        };
        plan.writes
            .entry(key.clone())
            .or_default()
            .extend(desired.writes(snapshot, key, Some(found)));
    }
}

/// Mirrors of Services that are no longer exported, and Endpoints that their Service left behind.
fn collect_orphans(snapshot: &Snapshot, link: &LinkView, plan: &mut Plan) {
    let mut wanted: BTreeSet<Key> = plan
        .verdicts
        .keys()
        .filter_map(|key| Some(Key::new(&key.namespace, mirror_name(key, link).ok()?)))
        .collect();
    wanted.extend(plan.instances.iter().cloned());
    let wanted = |key: &Key| wanted.contains(key);
    remove(snapshot, link.cluster.as_str(), &wanted, plan);
}

/// No Link, no mirrors. Its name is all that is left to know them by.
fn remove_all(snapshot: &Snapshot, plan: &mut Plan) {
    remove(snapshot, &snapshot.link_name, &|_| false, plan);
    if let Some(name) = &snapshot.probe_service {
        let key = Key::new(&snapshot.namespace, name);
        let is_ours = |found: &&std::sync::Arc<LocalEndpoints>| {
            found.labels.get(keys::CLUSTER_NAME) == Some(&snapshot.link_name)
        };
        let delete = |kind: Kind, version: &Version| Write::Delete {
            kind,
            key: key.clone(),
            version: version.clone(),
        };
        let service = snapshot.services.get(&key);
        let service = service
            .filter(|found| snapshot.makes_probe_service && is_probe_of(&found.labels, &snapshot.link_name));
        let writes = plan.writes.entry(key.clone()).or_default();
        writes.extend(service.map(|found| delete(Kind::Probe, &found.version)));
        let endpoints = snapshot.endpoints.get(&key).filter(is_ours);
        writes.extend(endpoints.map(|found| delete(Kind::Endpoints, &found.version)));
    }
}

fn remove(snapshot: &Snapshot, cluster: &str, keep: &dyn Fn(&Key) -> bool, plan: &mut Plan) {
    for (key, service) in &snapshot.services {
        if is_mirror_of(&service.labels, cluster) && !keep(key) {
            let version = service.version.clone();
            let delete = Write::Delete {
                kind: Kind::Service,
                key: key.clone(),
                version,
            };
            plan.writes.entry(key.clone()).or_default().push(delete);
        }
    }
    for (key, endpoints) in &snapshot.endpoints {
        if is_mirror_of(&endpoints.labels, cluster) && !keep(key) {
            let version = endpoints.version.clone();
            let delete = Write::Delete {
                kind: Kind::Endpoints,
                key: key.clone(),
                version,
            };
            plan.writes.entry(key.clone()).or_default().push(delete);
        }
    }
    for (key, slice) in &snapshot.slices {
        let labels = slice.slice.metadata.labels.clone().unwrap_or_default();
        let service = labels.get(keys::LABEL_SERVICE_NAME).cloned().unwrap_or_default();
        if is_mirror_of(&labels, cluster) && !keep(&Key::new(&key.namespace, service)) {
            let version = slice.version.clone();
            let delete = Write::Delete {
                kind: Kind::EndpointSlice,
                key: key.clone(),
                version,
            };
            plan.writes.entry(key.clone()).or_default().push(delete);
        }
    }
}

/// The probe's way to the gateway. Always ready: a gateway that nobody can reach could never be seen alive again.
fn probe_endpoints(snapshot: &Snapshot, link: &LinkView, plan: &mut Plan) {
    let (Some(name), Some(probe), Some(gateway)) = (&snapshot.probe_service, &link.probe, &link.gateway)
    else {
        return;
    };
    let Addresses::Resolved(addresses) = &snapshot.addresses else {
        return;
    };
    let key = Key::new(&snapshot.namespace, name);
    let found = snapshot.endpoints.get(&key).map(AsRef::as_ref);
    let cluster = link.cluster.to_string();
    if found.is_some_and(|found| found.labels.get(keys::CLUSTER_NAME) != Some(&cluster)) {
        return;
    }
    let desired = Desired {
        labels: Map::from([(keys::CLUSTER_NAME.into(), cluster)]),
        annotations: Map::from([(keys::REMOTE_GATEWAY_IDENTITY.into(), gateway.identity.clone())]),
        subsets: vec![EndpointSubset {
            addresses: Some(addresses.iter().map(address).collect()),
            not_ready_addresses: None,
            ports: Some(vec![endpoint_port(keys::PROBE_PORT_NAME, "TCP", probe.port)]),
        }],
    };
    let writes = desired.writes(snapshot, &key, found);
    let service = probe_service(snapshot, link, &key, probe.port);
    plan.writes
        .entry(key)
        .or_default()
        .extend(service.into_iter().chain(writes));
}

/// The Service of the probe, where nobody else makes it. One that exists is left as it is.
fn probe_service(snapshot: &Snapshot, link: &LinkView, key: &Key, port: u16) -> Option<Write> {
    if !snapshot.makes_probe_service || snapshot.services.contains_key(key) {
        return None;
    }
    let object = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": key.name, "namespace": key.namespace,
            "labels": {
                keys::EXTENSION: keys::EXTENSION_MULTICLUSTER,
                keys::MIRRORED_GATEWAY: "true", keys::CLUSTER_NAME: link.cluster.to_string(),
            },
        },
        "spec": {"ports": [{"name": keys::PROBE_PORT_NAME, "port": port, "protocol": "TCP"}]},
    });
    Some(Write::Create {
        kind: Kind::Probe,
        key: key.clone(),
        object,
    })
}

fn is_probe_of(labels: &Map, cluster: &str) -> bool {
    labels.contains_key(keys::MIRRORED_GATEWAY)
        && labels.get(keys::CLUSTER_NAME).is_some_and(|name| name == cluster)
}

// --- what objects should look like -------------------------------------------------------------------------------

pub(super) struct DesiredService {
    pub labels: Map,
    pub annotations: Map,
    pub ports: Vec<Port>,
    /// Without a cluster IP.
    pub headless: bool,
}

pub(super) struct Desired {
    pub labels: Map,
    pub annotations: Map,
    pub subsets: Vec<EndpointSubset>,
}

pub(super) fn mirror_service(link: &LinkView, key: &Key, service: &RemoteService) -> DesiredService {
    let mut annotations = copied_annotations(&service.annotations, &link.excluded_annotations);
    annotations.insert(keys::REMOTE_SERVICE_FQ_NAME.into(), fq_name(link, key));
    annotations.insert(
        keys::REMOTE_RESOURCE_VERSION.into(),
        service.resource_version.clone(),
    );
    DesiredService {
        labels: endpoints_labels(link, &service.labels),
        annotations,
        ports: service.ports.clone(),
        headless: false,
    }
}

pub(super) fn copied_annotations(of_target: &Map, excluded: &[String]) -> Map {
    of_target
        .iter()
        .filter(|(name, _)| {
            let name = name.as_str();
            name == keys::OPAQUE_PORTS
                || !(is_the_mesh_s(name)
                    || NEVER_COPIED_ANNOTATIONS.contains(&name)
                    || is_excluded(name, excluded))
        })
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

/// Labels of the target's Service, and that they are a copy.
pub(super) fn copied_labels(of_target: &Map, excluded: &[String]) -> Map {
    let mut labels: Map = of_target
        .iter()
        .filter(|(name, _)| !is_the_mesh_s(name) && !is_excluded(name, excluded))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    labels.insert(keys::MIRRORED_SERVICE.into(), "true".into());
    labels
}

fn is_the_mesh_s(name: &str) -> bool {
    name.starts_with(keys::MIRROR_PREFIX) || name.starts_with(keys::MULTICLUSTER_PREFIX)
}

pub(super) fn endpoints_labels(link: &LinkView, of_target: &Map) -> Map {
    let mut labels = copied_labels(of_target, &link.excluded_labels);
    labels.insert(keys::CLUSTER_NAME.into(), link.cluster.to_string());
    labels
}

pub(super) fn endpoints_annotations(link: &LinkView, fq_name: String) -> Map {
    let mut annotations = Map::from([(keys::REMOTE_SERVICE_FQ_NAME.into(), fq_name)]);
    if let Some(gateway) = link
        .gateway
        .as_ref()
        .filter(|gateway| !gateway.identity.is_empty())
    {
        annotations.insert(keys::REMOTE_GATEWAY_IDENTITY.into(), gateway.identity.clone());
    }
    annotations
}

pub(super) fn fq_name(link: &LinkView, key: &Key) -> String {
    format!("{}.{}.svc.{}", key.name, key.namespace, link.domain)
}

/// An exclusion is a key, or `prefix/*`.
fn is_excluded(name: &str, excluded: &[String]) -> bool {
    excluded.iter().any(|entry| match entry.strip_suffix('*') {
        Some(prefix) if prefix.ends_with('/') => name.starts_with(prefix),
        _ => entry == name,
    })
}

pub(super) fn subsets(
    link: &LinkView,
    addresses: &[IpAddr],
    ports: &[Port],
    is_empty: bool,
    gateway_is_dead: bool,
) -> Vec<EndpointSubset> {
    let Some(gateway) = link.gateway.as_ref().filter(|_| !is_empty) else {
        return Vec::new();
    };
    let addresses: Vec<EndpointAddress> = addresses.iter().map(address).collect();
    let ports = ports
        .iter()
        .map(|port| endpoint_port(&port.name, &port.protocol, gateway.port))
        .collect();
    let (ready, not_ready) = if gateway_is_dead {
        (None, Some(addresses))
    } else {
        (Some(addresses), None)
    };
    vec![EndpointSubset {
        addresses: ready,
        not_ready_addresses: not_ready,
        ports: Some(ports),
    }]
}

fn address(ip: &IpAddr) -> EndpointAddress {
    EndpointAddress {
        ip: ip.to_string(),
        ..Default::default()
    }
}

fn endpoint_port(name: &str, protocol: &str, port: u16) -> EndpointPort {
    EndpointPort {
        name: (!name.is_empty()).then(|| name.to_owned()),
        protocol: Some(protocol.to_owned()),
        port: i32::from(port),
        app_protocol: None,
    }
}

// --- how to get there --------------------------------------------------------------------------------------------

pub(super) fn service_write(
    kind: Kind,
    key: &Key,
    desired: &DesiredService,
    found: Option<&LocalService>,
) -> Option<Write> {
    let ports: Vec<Value> = desired.ports.iter().map(port_json).collect();
    let Some(found) = found else {
        let mut object = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {
                "name": key.name, "namespace": key.namespace,
                "labels": desired.labels, "annotations": desired.annotations,
            },
            "spec": {"ports": ports},
        });
        if desired.headless {
            object["spec"]["clusterIP"] = HEADLESS.into();
        }
        return Some(Write::Create {
            kind,
            key: key.clone(),
            object,
        });
    };
    // Labels and annotations that others add don't make us write (two controllers would fight for ever); they go
    // with the next real update, which the recorded version of the target brings about.
    let is_current = contains(&found.labels, &desired.labels)
        && contains(&found.annotations, &desired.annotations)
        && found.ports == desired.ports
        && !found.has_selector;
    if is_current {
        return None;
    }
    let patch = json!({
        "metadata": metadata_patch(&found.version, (&found.labels, &desired.labels), (&found.annotations, &desired.annotations)),
        "spec": {"ports": ports, "selector": null},
    });
    Some(Write::Patch {
        kind,
        key: key.clone(),
        version: found.version.clone(),
        patch,
    })
}

fn port_json(port: &Port) -> Value {
    let mut json = json!({"protocol": port.protocol, "port": port.port, "targetPort": port.target});
    if !port.name.is_empty() {
        json["name"] = port.name.clone().into();
    }
    json
}

fn contains(found: &Map, desired: &Map) -> bool {
    desired.iter().all(|(key, value)| found.get(key) == Some(value))
}

/// Sets what is desired and nulls the rest, if the object is still the one we saw.
fn metadata_patch(version: &Version, labels: (&Map, &Map), annotations: (&Map, &Map)) -> Value {
    let replace = |(found, desired): (&Map, &Map)| -> Value {
        let gone = found
            .keys()
            .filter(|key| !desired.contains_key(*key))
            .map(|key| (key.clone(), Value::Null));
        gone.chain(
            desired
                .iter()
                .map(|(key, value)| (key.clone(), value.clone().into())),
        )
        .collect()
    };
    json!({
        "uid": version.uid, "resourceVersion": version.resource_version,
        "labels": replace(labels), "annotations": replace(annotations),
    })
}

impl Desired {
    pub(super) fn writes(
        &self,
        snapshot: &Snapshot,
        key: &Key,
        found: Option<&LocalEndpoints>,
    ) -> Vec<Write> {
        let mut labels = self.labels.clone();
        if snapshot.write_slices {
            // Should a mirroring controller appear after all, the two must not both write slices.
            labels.insert(keys::LABEL_SLICE_SKIP_MIRROR.into(), "true".into());
        }
        let mut writes: Vec<Write> = self.endpoints_write(key, &labels, found).into_iter().collect();
        if snapshot.write_slices {
            for family in [Family::V4, Family::V6] {
                let slice_key = Key::new(&key.namespace, format!("{}-{}", key.name, family.suffix()));
                let found = snapshot.slices.get(&slice_key).map(AsRef::as_ref);
                writes.extend(self.slice_write(key, slice_key, family, found));
            }
        }
        writes
    }

    fn endpoints_write(&self, key: &Key, labels: &Map, found: Option<&LocalEndpoints>) -> Option<Write> {
        let Some(found) = found else {
            let object = json!({
                "apiVersion": "v1", "kind": "Endpoints",
                "metadata": {
                    "name": key.name, "namespace": key.namespace,
                    "labels": labels, "annotations": self.annotations,
                },
                "subsets": self.subsets,
            });
            return Some(Write::Create {
                kind: Kind::Endpoints,
                key: key.clone(),
                object,
            });
        };
        let is_current = found.labels == *labels
            && contains(&found.annotations, &self.annotations)
            && canonical(&found.subsets) == canonical(&self.subsets);
        if is_current {
            return None;
        }
        let patch = json!({
            "metadata": metadata_patch(&found.version, (&found.labels, labels), (&found.annotations, &self.annotations)),
            "subsets": self.subsets,
        });
        Some(Write::Patch {
            kind: Kind::Endpoints,
            key: key.clone(),
            version: found.version.clone(),
            patch,
        })
    }

    fn slice_write(
        &self,
        service: &Key,
        key: Key,
        family: Family,
        found: Option<&LocalSlice>,
    ) -> Option<Write> {
        let endpoints: Vec<Value> = self
            .subsets
            .iter()
            .flat_map(|subset| slice_endpoints(subset, family))
            .collect();
        if endpoints.is_empty() {
            let version = found?.version.clone();
            return Some(Write::Delete {
                kind: Kind::EndpointSlice,
                key,
                version,
            });
        }
        let ports: Vec<Value> = self
            .subsets
            .iter()
            .flat_map(|subset| subset.ports.iter().flatten())
            .map(|port| json!({"name": port.name.clone().unwrap_or_default(), "protocol": port.protocol, "port": port.port}))
            .collect();
        let mut labels = self.labels.clone();
        labels.insert(keys::LABEL_SERVICE_NAME.into(), service.name.clone());
        labels.insert(keys::LABEL_SLICE_MANAGED_BY.into(), SLICES_MANAGED_BY.into());
        let Some(found) = found else {
            let object = json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {
                    "name": key.name, "namespace": key.namespace,
                    "labels": labels, "annotations": self.annotations,
                },
                "addressType": family.address_type(), "endpoints": endpoints, "ports": ports,
            });
            return Some(Write::Create {
                kind: Kind::EndpointSlice,
                key,
                object,
            });
        };
        let found_json = serde_json::to_value(&found.slice).unwrap_or_default();
        let (found_labels, found_annotations) = (
            found.slice.metadata.labels.clone().unwrap_or_default(),
            found.slice.metadata.annotations.clone().unwrap_or_default(),
        );
        let is_current = found_labels == labels
            && contains(&found_annotations, &self.annotations)
            && found_json["endpoints"] == Value::from(endpoints.clone())
            && found_json["ports"] == Value::from(ports.clone());
        if is_current {
            return None;
        }
        let patch = json!({
            "metadata": metadata_patch(&found.version, (&found_labels, &labels), (&found_annotations, &self.annotations)),
            "endpoints": endpoints, "ports": ports,
        });
        Some(Write::Patch {
            kind: Kind::EndpointSlice,
            key,
            version: found.version.clone(),
            patch,
        })
    }
}

#[derive(Clone, Copy)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn suffix(self) -> &'static str {
        match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        }
    }

    fn address_type(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    fn holds(self, ip: &str) -> bool {
        match self {
            Self::V4 => !ip.contains(':'),
            Self::V6 => ip.contains(':'),
        }
    }
}

fn slice_endpoints(subset: &EndpointSubset, family: Family) -> Vec<Value> {
    let endpoints = |addresses: &Option<Vec<EndpointAddress>>, ready: bool| -> Vec<Value> {
        addresses
            .iter()
            .flatten()
            .filter(|address| family.holds(&address.ip))
            .map(|address| {
                let mut endpoint = json!({"addresses": [address.ip], "conditions": {"ready": ready}});
                if let Some(hostname) = &address.hostname {
                    endpoint["hostname"] = hostname.clone().into();
                }
                endpoint
            })
            .collect()
    };
    let mut all = endpoints(&subset.addresses, true);
    all.extend(endpoints(&subset.not_ready_addresses, false));
    all
}

/// The API server orders addresses and ports its own way.
fn canonical(subsets: &[EndpointSubset]) -> Vec<EndpointSubset> {
    let sorted = |addresses: &Option<Vec<EndpointAddress>>| {
        let mut addresses = addresses.clone().filter(|addresses| !addresses.is_empty())?;
        addresses.sort_by(|a, b| a.ip.cmp(&b.ip));
        Some(addresses)
    };
    let mut subsets: Vec<EndpointSubset> = subsets
        .iter()
        .map(|subset| {
            let mut ports = subset.ports.clone().unwrap_or_default();
            for port in &mut ports {
                port.name = port.name.take().filter(|name| !name.is_empty());
            }
            ports.sort_by(|a, b| (&a.name, a.port, &a.protocol).cmp(&(&b.name, b.port, &b.protocol)));
            EndpointSubset {
                addresses: sorted(&subset.addresses),
                not_ready_addresses: sorted(&subset.not_ready_addresses),
                ports: Some(ports),
            }
        })
        .collect();
    subsets.sort_by_key(|subset| format!("{subset:?}"));
    subsets
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
