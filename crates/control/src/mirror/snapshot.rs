//! What the mirror controller sees, as one value: the Link, both clusters' objects reduced to what matters, and the
//! state of the gateway.
//!
//! Objects of the local cluster are kept only if they are ours or have a name that a mirror of ours could have.

use std::collections::BTreeMap;
use std::net::IpAddr;

use hawser_core::ClusterName;
use hawser_crd::keys;
use hawser_crd::link::{GatewaySpec, LinkStatus, Probe};
use hawser_crd::selector::Selector;
use hawser_crd::{Link, link::LinkError};
use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Namespace, Service, ServicePort,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::federated;
use crate::observe::View;

pub(crate) type Map = BTreeMap<String, String>;

/// The cluster IP of a Service that has none.
pub(crate) const HEADLESS: &str = "None";

/// Everything a plan is made from.
#[derive(Clone, Debug, Default)]
pub(crate) struct Snapshot {
    /// Where the Link lives.
    pub namespace: String,
    pub link_name: String,
    /// `None` when no such Link exists: then what was mirrored for it goes.
    pub link: Option<LinkView>,
    /// The age of every Link, by the cluster that it names.
    pub links: Seniorities,
    pub probe_service: Option<String>,
    /// Whether nobody else makes that Service.
    pub makes_probe_service: bool,
    /// Whether headless Services get mirrors for each of their pods.
    pub mirrors_headless: bool,
    /// Whether namespaces of mirrors are made where they are missing.
    pub makes_namespaces: bool,
    /// Whether EndpointSlices are written too, because nothing in this cluster copies Endpoints to them.
    pub write_slices: bool,
    /// Names of the local namespaces that accept new objects.
    pub namespaces: View<()>,
    pub services: View<LocalService>,
    pub endpoints: View<LocalEndpoints>,
    pub slices: View<LocalSlice>,
    /// `None` until the target has been listed once: then its absence of Services means nothing.
    pub remote: Option<Remote>,
    /// Set when the target doesn't answer, with the reason.
    pub unreachable: Option<String>,
    pub addresses: Addresses,
    /// A gateway counts as alive until it has failed enough probes.
    pub gateway_is_dead: bool,
}

/// Orders Links: the oldest first, the name decides between twins.
pub(crate) type Seniorities = BTreeMap<String, (String, String)>;

pub(crate) fn seniorities(links: &View<Link>) -> Seniorities {
    links
        .iter()
        .map(|(key, link)| {
            let created = link.metadata.creation_timestamp.as_ref();
            let created = created.map(|time| time.0.to_string()).unwrap_or_default();
            let cluster = match link.spec.target_cluster_name.as_str() {
                "" => key.name.clone(),
                name => name.to_owned(),
            };
            (cluster, (created, key.name.clone()))
        })
        .collect()
}

/// A Link, read.
#[derive(Clone, Debug)]
pub(crate) struct LinkView {
    pub cluster: ClusterName,
    pub domain: String,
    pub gateway: Option<GatewaySpec>,
    pub probe: Option<Probe>,
    pub exported: Selector,
    pub remote_discovery: Selector,
    pub federated: Selector,
    pub excluded_annotations: Vec<String>,
    pub excluded_labels: Vec<String>,
    pub credentials: String,
    pub status: LinkStatus,
    pub resource_version: String,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkViewError {
    #[error("spec.targetClusterName: {0}")]
    Name(#[from] hawser_core::NameError),
    #[error(transparent)]
    Spec(#[from] LinkError),
}

impl LinkView {
    pub(crate) fn read(link: &Link) -> Result<Self, LinkViewError> {
        let spec = &link.spec;
        let name = match spec.target_cluster_name.as_str() {
            "" => link.metadata.name.as_deref().unwrap_or_default(),
            name => name,
        };
        let cluster: ClusterName = name.parse()?;
        let credentials = match spec.cluster_credentials_secret.as_str() {
            "" => keys::credentials_secret(cluster.as_str()),
            name => name.to_owned(),
        };
        let domain = match spec.target_cluster_domain.as_str() {
            "" => "cluster.local".to_owned(),
            domain => domain.to_owned(),
        };
        Ok(Self {
            cluster,
            domain,
            gateway: spec.gateway()?,
            probe: spec.probe()?,
            exported: spec.exported()?,
            remote_discovery: spec.remote_discovery()?,
            federated: spec.federated()?,
            excluded_annotations: spec.excluded_annotations.clone(),
            excluded_labels: spec.excluded_labels.clone(),
            credentials,
            status: link.status.clone().unwrap_or_default(),
            resource_version: link.metadata.resource_version.clone().unwrap_or_default(),
        })
    }
}

/// The target cluster, as far as it is exported.
#[derive(Clone, Debug, Default)]
pub(crate) struct Remote {
    pub services: View<RemoteService>,
    pub endpoints: View<RemoteEndpoints>,
    /// Services that belong to federated ones.
    pub members: View<RemoteService>,
}

/// Where the gateway is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Addresses {
    /// Not resolved yet, or no gateway.
    #[default]
    Unknown,
    /// Sorted by their text, without duplicates; never empty.
    Resolved(Vec<IpAddr>),
    Failed(String),
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct RemoteService {
    pub resource_version: String,
    pub uid: String,
    pub labels: Map,
    pub annotations: Map,
    pub ports: Vec<Port>,
    /// Its endpoints are made by hand and don't carry its labels, so they can't be observed.
    pub has_selector: bool,
    pub headless: bool,
}

/// What stands behind a Service of the target.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct RemoteEndpoints {
    pub resource_version: String,
    pub is_ready: bool,
    /// Whether there is any address, ready or not.
    pub has_addresses: bool,
    pub instances: Vec<Instances>,
}

/// Pods that have names of their own, by the ports that they serve.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Instances {
    pub ready: Vec<String>,
    pub not_ready: Vec<String>,
    pub ports: Vec<EndpointPort>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Port {
    pub name: String,
    pub protocol: String,
    pub port: i32,
    pub target: IntOrString,
}

/// What is needed to change an object safely.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Version {
    pub uid: String,
    pub resource_version: String,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct LocalService {
    pub version: Version,
    pub labels: Map,
    pub annotations: Map,
    pub ports: Vec<Port>,
    pub has_selector: bool,
    /// Empty until one is allocated, `None` if there is none on purpose.
    pub cluster_ip: String,
}

impl LocalService {
    pub(crate) fn is_headless(&self) -> bool {
        self.cluster_ip == HEADLESS
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct LocalEndpoints {
    pub version: Version,
    pub labels: Map,
    pub annotations: Map,
    pub subsets: Vec<EndpointSubset>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct LocalSlice {
    pub version: Version,
    pub slice: EndpointSlice,
}

/// Whether labels say that an object mirrors something of `cluster`.
pub(crate) fn is_mirror_of(labels: &Map, cluster: &str) -> bool {
    labels
        .get(keys::MIRRORED_SERVICE)
        .is_some_and(|value| value == "true")
        && labels
            .get(keys::CLUSTER_NAME)
            .is_some_and(|value| value == cluster)
}

pub(crate) fn namespace(namespace: Namespace) -> Option<()> {
    // A terminating namespace refuses new objects.
    namespace.metadata.deletion_timestamp.is_none().then_some(())
}

pub(crate) fn remote_service(service: Service) -> Option<RemoteService> {
    let (meta, spec) = (service.metadata, service.spec.unwrap_or_default());
    Some(RemoteService {
        resource_version: meta.resource_version.unwrap_or_default(),
        uid: meta.uid.unwrap_or_default(),
        labels: meta.labels.unwrap_or_default(),
        annotations: meta.annotations.unwrap_or_default(),
        headless: spec.cluster_ip.as_deref() == Some(HEADLESS),
        ports: spec.ports.unwrap_or_default().into_iter().map(port).collect(),
        has_selector: spec.selector.is_some_and(|selector| !selector.is_empty()),
    })
}

pub(crate) fn remote_endpoints(endpoints: Endpoints) -> Option<RemoteEndpoints> {
    let subsets = endpoints.subsets.unwrap_or_default();
    let any = |of: fn(&EndpointSubset) -> &Option<Vec<EndpointAddress>>| {
        let mut lists = subsets.iter().filter_map(|subset| of(subset).as_ref());
        lists.any(|addresses| !addresses.is_empty())
    };
    let is_ready = any(|subset| &subset.addresses);
    let has_addresses = is_ready || any(|subset| &subset.not_ready_addresses);
    let hostnames = |addresses: Option<Vec<EndpointAddress>>| -> Vec<String> {
        let names = addresses.into_iter().flatten();
        names.filter_map(|address| address.hostname).collect()
    };
    let instances = subsets.into_iter().map(|subset| Instances {
        ready: hostnames(subset.addresses),
        not_ready: hostnames(subset.not_ready_addresses),
        ports: subset.ports.unwrap_or_default(),
    });
    Some(RemoteEndpoints {
        is_ready,
        has_addresses,
        instances: instances
            .filter(|instances| !(instances.ready.is_empty() && instances.not_ready.is_empty()))
            .collect(),
        resource_version: endpoints.metadata.resource_version.unwrap_or_default(),
    })
}

/// Keeps Services that are ours or that a mirror of `cluster` or a federated Service could collide with.
pub(crate) fn local_service(service: Service, cluster: &str) -> Option<LocalService> {
    let meta = service.metadata;
    let name = meta.name.clone().unwrap_or_default();
    let labels = meta.labels.clone().unwrap_or_default();
    let may_collide = name.strip_suffix(cluster).is_some_and(|rest| rest.ends_with('-'));
    if !may_collide && !name.ends_with(federated::SUFFIX) && !is_mirror_of(&labels, cluster) {
        return None;
    }
    let spec = service.spec.unwrap_or_default();
    Some(LocalService {
        version: version(&meta),
        labels,
        annotations: meta.annotations.unwrap_or_default(),
        ports: spec.ports.unwrap_or_default().into_iter().map(port).collect(),
        has_selector: spec.selector.is_some_and(|selector| !selector.is_empty()),
        cluster_ip: spec.cluster_ip.unwrap_or_default(),
    })
}

pub(crate) fn local_endpoints(endpoints: Endpoints) -> Option<LocalEndpoints> {
    let meta = endpoints.metadata;
    Some(LocalEndpoints {
        version: version(&meta),
        labels: meta.labels.unwrap_or_default(),
        annotations: meta.annotations.unwrap_or_default(),
        subsets: endpoints.subsets.unwrap_or_default(),
    })
}

pub(crate) fn local_slice(slice: EndpointSlice) -> Option<LocalSlice> {
    let version = version(&slice.metadata);
    let mut slice = slice;
    slice.metadata = ObjectMeta {
        labels: slice.metadata.labels,
        annotations: slice.metadata.annotations,
        ..Default::default()
    };
    Some(LocalSlice { version, slice })
}

fn version(meta: &ObjectMeta) -> Version {
    Version {
        uid: meta.uid.clone().unwrap_or_default(),
        resource_version: meta.resource_version.clone().unwrap_or_default(),
    }
}

fn port(port: ServicePort) -> Port {
    Port {
        name: port.name.unwrap_or_default(),
        protocol: port.protocol.unwrap_or_else(|| "TCP".into()),
        port: port.port,
        target: port.target_port.unwrap_or(IntOrString::Int(port.port)),
    }
}
