//! Kubernetes objects, cut down to what the control plane decides by.
//!
//! Parsing is total: what an object leaves out or writes wrongly becomes the neutral value, because one odd object must
//! not hide the others. Nothing here looks at a second object.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use hawser_core::weight::Weight;
use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;
use kube::core::{DynamicObject, Selector, SelectorExt};
use serde::Deserialize;
use serde_json::Value;

use crate::keys;
use crate::ports::Ports;

pub type Labels = BTreeMap<String, String>;

/// Namespace and name of an object whose kind is clear from where the key stands.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub namespace: String,
    pub name: String,
}

impl Key {
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    pub fn of(object: &impl ResourceExt) -> Self {
        Self::new(object.namespace().unwrap_or_default(), object.name_any())
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Service {
    pub namespace: String,
    pub name: String,
    pub labels: Labels,
    pub annotations: Labels,
    pub cluster_ips: Vec<IpAddr>,
    pub headless: bool,
    pub external_name: bool,
    pub publish_not_ready: bool,
    pub internal_traffic_local: bool,
    pub ports: Vec<ServicePort>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServicePort {
    /// Empty for the only port of a Service.
    pub name: String,
    pub port: u16,
    pub app_protocol: Option<String>,
}

impl Service {
    pub fn parse(object: &core::Service) -> Self {
        let spec = object.spec.clone().unwrap_or_default();
        let mut addresses = spec.cluster_ips.unwrap_or_default();
        addresses.extend(spec.cluster_ip.clone());
        let mut cluster_ips: Vec<IpAddr> = addresses.iter().filter_map(|ip| ip.parse().ok()).collect();
        cluster_ips.dedup();
        let tcp =
            |port: &core::ServicePort| port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP");
        Self {
            namespace: object.namespace().unwrap_or_default(),
            name: object.name_any(),
            labels: object.labels().clone(),
            annotations: mesh_annotations(object.annotations()),
            cluster_ips,
            headless: spec.cluster_ip.as_deref() == Some("None"),
            external_name: spec.type_.as_deref() == Some("ExternalName"),
            publish_not_ready: spec.publish_not_ready_addresses.unwrap_or_default(),
            internal_traffic_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
            ports: spec
                .ports
                .unwrap_or_default()
                .iter()
                .filter(|port| tcp(port))
                .filter_map(|port| {
                    Some(ServicePort {
                        name: port.name.clone().unwrap_or_default(),
                        port: u16::try_from(port.port).ok()?,
                        app_protocol: port.app_protocol.clone(),
                    })
                })
                .collect(),
        }
    }

    pub fn key(&self) -> Key {
        Key::new(&self.namespace, &self.name)
    }

    pub fn discovery(&self) -> Discovery {
        let (local, members) = (
            self.annotations.get(keys::LOCAL_DISCOVERY),
            self.annotations.get(keys::REMOTE_DISCOVERY),
        );
        if local.is_some() || members.is_some() {
            return Discovery::Federated {
                local: local.filter(|name| !name.is_empty()).cloned(),
                remote: members.map(|list| Member::parse_list(list)).unwrap_or_default(),
            };
        }
        match self.labels.get(keys::REMOTE_DISCOVERY) {
            None => Discovery::Local,
            Some(cluster) => Discovery::Remote {
                cluster: cluster.clone(),
                service: self.labels.get(keys::REMOTE_SERVICE).cloned(),
            },
        }
    }

    /// The other clusters in which its endpoints are looked for.
    pub fn remote_clusters(&self) -> BTreeSet<String> {
        match self.discovery() {
            Discovery::Local => BTreeSet::new(),
            Discovery::Remote { cluster, .. } => BTreeSet::from([cluster]),
            Discovery::Federated { remote, .. } => remote.into_iter().map(|member| member.cluster).collect(),
        }
    }

    pub fn port(&self, port: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|candidate| candidate.port == port)
    }

    /// Opaque when annotated, else when in the mesh's default list.
    pub fn is_opaque(&self, port: u16, defaults: &Ports) -> bool {
        match self.annotations.get(keys::OPAQUE_PORTS) {
            Some(list) => Ports::parse_named(list, |name| {
                self.ports
                    .iter()
                    .find(|port| port.name == name)
                    .map(|port| port.port)
            })
            .contains(port),
            None => defaults.contains(port),
        }
    }
}

/// Where a Service's endpoints are looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Discovery {
    /// Here, as usual.
    Local,
    /// In another cluster, in the Service of this name and the same namespace; the name may be missing.
    Remote {
        cluster: String,
        service: Option<String>,
    },
    /// In Services of the same namespace, here and elsewhere at once.
    Federated {
        local: Option<String>,
        remote: BTreeSet<Member>,
    },
}

/// A Service of another cluster that belongs to a federated Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    pub service: String,
    pub cluster: String,
}

impl Member {
    /// Reads `web@east,web@north`. What isn't a name, one `@` and a name is nobody.
    pub fn parse_list(list: &str) -> BTreeSet<Self> {
        list.split(',')
            .filter_map(|item| Self::parse(item.trim()))
            .collect()
    }

    fn parse(item: &str) -> Option<Self> {
        let (service, cluster) = item.split_once('@')?;
        let is_whole = !service.is_empty() && !cluster.is_empty() && !cluster.contains('@');
        is_whole.then(|| Self {
            service: service.into(),
            cluster: cluster.into(),
        })
    }
}

/// One EndpointSlice, or an Endpoints object where a Service has no slices.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Slice {
    /// Empty when nothing is known, which is not the same as a Service that has nothing to offer.
    pub service: String,
    pub annotations: Labels,
    /// Value of the label that mirrors carry.
    pub cluster_name: Option<String>,
    pub ports: Vec<(String, u16)>,
    pub endpoints: Vec<Endpoint>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Endpoint {
    pub ip: Option<IpAddr>,
    pub ready: bool,
    pub hostname: Option<String>,
    pub node: Option<String>,
    pub zone: Option<String>,
    /// Zones that topology hints give this endpoint to.
    pub for_zones: Vec<String>,
    pub pod: Option<Key>,
}

impl Slice {
    pub fn of_slice(object: &discovery::EndpointSlice) -> Self {
        let namespace = object.namespace().unwrap_or_default();
        let ports = object
            .ports
            .iter()
            .flatten()
            .filter(|port| port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP"));
        Self {
            service: object
                .labels()
                .get("kubernetes.io/service-name")
                .cloned()
                .unwrap_or_default(),
            annotations: mesh_annotations(object.annotations()),
            cluster_name: object.labels().get(keys::MIRROR_CLUSTER_NAME).cloned(),
            ports: ports
                .filter_map(|port| {
                    Some((
                        port.name.clone().unwrap_or_default(),
                        u16::try_from(port.port?).ok()?,
                    ))
                })
                .collect(),
            endpoints: object
                .endpoints
                .iter()
                .flat_map(|endpoint| {
                    let conditions = endpoint.conditions.clone().unwrap_or_default();
                    endpoint.addresses.iter().map(|ip| ip.parse().ok()).map({
                        let namespace = &namespace;
                        move |ip| Endpoint {
                            ip,
                            ready: conditions.ready.unwrap_or(true),
                            hostname: endpoint.hostname.clone(),
                            node: endpoint.node_name.clone(),
                            zone: endpoint.zone.clone(),
                            for_zones: endpoint
                                .hints
                                .iter()
                                .flat_map(|hints| hints.for_zones.iter().flatten())
                                .map(|zone| zone.name.clone())
                                .collect(),
                            pod: endpoint
                                .target_ref
                                .as_ref()
                                .and_then(|target| pod_key(target, namespace)),
                        }
                    })
                })
                .collect(),
        }
    }

    /// One slice per subset, as subsets have different ports.
    pub fn of_endpoints(object: &core::Endpoints) -> Vec<Self> {
        let namespace = object.namespace().unwrap_or_default();
        let base = Self {
            service: object.name_any(),
            annotations: mesh_annotations(object.annotations()),
            cluster_name: object.labels().get(keys::MIRROR_CLUSTER_NAME).cloned(),
            ..Self::default()
        };
        let endpoint = |address: &core::EndpointAddress, ready| Endpoint {
            ip: address.ip.parse().ok(),
            ready,
            hostname: address.hostname.clone(),
            node: address.node_name.clone(),
            pod: address
                .target_ref
                .as_ref()
                .and_then(|target| pod_key(target, &namespace)),
            ..Endpoint::default()
        };
        let subsets = object.subsets.iter().flatten().map(|subset| Self {
            ports: subset
                .ports
                .iter()
                .flatten()
                .filter(|port| port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP"))
                .filter_map(|port| {
                    Some((
                        port.name.clone().unwrap_or_default(),
                        u16::try_from(port.port).ok()?,
                    ))
                })
                .collect(),
            endpoints: subset
                .addresses
                .iter()
                .flatten()
                .map(|address| endpoint(address, true))
                .chain(
                    subset
                        .not_ready_addresses
                        .iter()
                        .flatten()
                        .map(|address| endpoint(address, false)),
                )
                .collect(),
            ..base.clone()
        });
        let slices: Vec<_> = subsets.collect();
        if slices.is_empty() { vec![base] } else { slices }
    }
}

fn pod_key(target: &core::ObjectReference, namespace: &str) -> Option<Key> {
    (target.kind.as_deref() == Some("Pod")).then(|| {
        Key::new(
            target.namespace.as_deref().unwrap_or(namespace),
            target.name.as_deref().unwrap_or_default(),
        )
    })
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pod {
    pub namespace: String,
    pub name: String,
    pub labels: Labels,
    pub annotations: Labels,
    pub ips: Vec<IpAddr>,
    pub host_network: bool,
    pub finished: bool,
    pub service_account: String,
    pub node: Option<String>,
    /// Lower-case kind and name of the workload that owns the pod.
    pub owner: Option<(String, String)>,
    pub ports: Vec<(String, u16)>,
    /// Paths of HTTP probes by port.
    pub probes: BTreeMap<u16, BTreeSet<String>>,
    /// The port on which the pod's proxy takes connections with a transport header.
    pub proxy_inbound_port: Option<u16>,
    /// Ports that belong to the proxy itself.
    pub proxy_admin_ports: BTreeSet<u16>,
}

impl Pod {
    pub fn parse(object: &core::Pod) -> Self {
        let spec = object.spec.clone().unwrap_or_default();
        let status = object.status.clone().unwrap_or_default();
        let containers: Vec<&core::Container> = spec
            .containers
            .iter()
            .chain(spec.init_containers.iter().flatten())
            .collect();
        let ports: Vec<(String, u16)> = containers
            .iter()
            .flat_map(|container| container.ports.iter().flatten())
            .filter_map(|port| {
                Some((
                    port.name.clone().unwrap_or_default(),
                    u16::try_from(port.container_port).ok()?,
                ))
            })
            .collect();
        let mut probes: BTreeMap<u16, BTreeSet<String>> = BTreeMap::new();
        for container in &containers {
            for probe in [
                &container.liveness_probe,
                &container.readiness_probe,
                &container.startup_probe,
            ] {
                let Some(http) = probe.as_ref().and_then(|probe| probe.http_get.as_ref()) else {
                    continue;
                };
                let own = |name: &str| {
                    let mut ports = container.ports.iter().flatten();
                    let port = ports.find(|port| port.name.as_deref() == Some(name))?;
                    u16::try_from(port.container_port).ok()
                };
                let port = match &http.port {
                    IntOrString::Int(port) => u16::try_from(*port).ok(),
                    IntOrString::String(name) => own(name),
                };
                if let Some(port) = port {
                    probes
                        .entry(port)
                        .or_default()
                        .insert(http.path.clone().unwrap_or_else(|| "/".into()));
                }
            }
        }
        let proxy = containers
            .iter()
            .find(|container| container.name == "linkerd-proxy");
        let proxy_listener = |variable: &str| {
            let env = proxy?.env.iter().flatten().find(|env| env.name == variable)?;
            env.value.as_deref()?.rsplit(':').next()?.parse().ok()
        };
        let addresses = status
            .pod_ips
            .unwrap_or_default()
            .into_iter()
            .map(|ip| ip.ip)
            .chain(status.pod_ip);
        let mut ips: Vec<IpAddr> = addresses.filter_map(|ip| ip.parse().ok()).collect();
        ips.dedup();
        Self {
            namespace: object.namespace().unwrap_or_default(),
            name: object.name_any(),
            owner: owner(object),
            labels: object.labels().clone(),
            annotations: mesh_annotations(object.annotations()),
            ips,
            host_network: spec.host_network.unwrap_or_default(),
            finished: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
            service_account: spec.service_account_name.unwrap_or_else(|| "default".into()),
            node: spec.node_name,
            probes,
            proxy_inbound_port: proxy_listener("LINKERD2_PROXY_INBOUND_LISTEN_ADDR"),
            proxy_admin_ports: [
                "LINKERD2_PROXY_ADMIN_LISTEN_ADDR",
                "LINKERD2_PROXY_CONTROL_LISTEN_ADDR",
            ]
            .into_iter()
            .filter_map(proxy_listener)
            .collect(),
            ports,
        }
    }

    pub fn key(&self) -> Key {
        Key::new(&self.namespace, &self.name)
    }

    pub fn port_named(&self, name: &str) -> Option<u16> {
        self.ports
            .iter()
            .find(|(candidate, _)| candidate == name)
            .map(|(_, port)| *port)
    }

    /// Opaque by annotation, else by the mesh's default list.
    pub fn is_opaque(&self, port: u16, defaults: &Ports) -> bool {
        match self.annotations.get(keys::OPAQUE_PORTS) {
            Some(list) => Ports::parse_named(list, |name| self.port_named(name)).contains(port),
            None => defaults.contains(port),
        }
    }

    pub fn skips_inbound(&self, port: u16) -> bool {
        let list = self.annotations.get(keys::SKIP_INBOUND_PORTS);
        list.is_some_and(|list| Ports::parse_named(list, |name| self.port_named(name)).contains(port))
    }

    pub fn is_gateway(&self) -> bool {
        self.annotations
            .get(keys::ENABLE_GATEWAY)
            .is_some_and(|value| value == "true")
    }
}

/// The workload behind a pod. A ReplicaSet that a Deployment made is named after it and the template's hash, which
/// the pod carries too; so no watch on ReplicaSets is needed.
pub fn owner(pod: &core::Pod) -> Option<(String, String)> {
    let owners = pod.metadata.owner_references.as_ref()?;
    let owner = owners.iter().find(|owner| owner.controller == Some(true))?;
    let hash = pod.labels().get(keys::POD_TEMPLATE_HASH);
    let deployment = hash
        .filter(|_| owner.kind == "ReplicaSet")
        .and_then(|hash| owner.name.strip_suffix(hash.as_str())?.strip_suffix('-'));
    Some(match deployment {
        Some(name) => ("deployment".into(), name.into()),
        None => (owner.kind.to_ascii_lowercase(), owner.name.clone()),
    })
}

/// Annotations that somebody here reads; the rest can be large (`last-applied-configuration`) and changes often.
fn mesh_annotations(all: &Labels) -> Labels {
    all.iter()
        .filter(|(name, _)| {
            name.split('/')
                .next()
                .is_some_and(|prefix| prefix.ends_with("linkerd.io"))
        })
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

/// How traffic to one Service is shared among others.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Split {
    pub service: String,
    /// Orders splits that claim the same Service: the latest wins, as the API server saw it.
    pub created: String,
    pub backends: Vec<(String, Weight)>,
}

impl Split {
    pub fn parse(object: &DynamicObject) -> Self {
        let spec = &object.data["spec"];
        let backends = spec["backends"].as_array().map(Vec::as_slice).unwrap_or_default();
        Self {
            service: spec["service"].as_str().unwrap_or_default().into(),
            created: created(object),
            backends: backends
                .iter()
                .filter_map(|backend| {
                    Some((
                        backend["service"].as_str()?.to_owned(),
                        weight(&backend["weight"])?,
                    ))
                })
                .collect(),
        }
    }
}

/// `v1alpha1` writes quantities, `v1alpha2` numbers.
fn weight(value: &Value) -> Option<Weight> {
    match value {
        Value::String(text) => text.parse().ok(),
        Value::Number(number) => number.to_string().parse().ok(),
        _ => None,
    }
}

pub(super) fn created(object: &DynamicObject) -> String {
    object
        .creation_timestamp()
        .map(|time| time.0.to_string())
        .unwrap_or_default()
}

/// `{matchLabels, matchExpressions}`; an empty one selects everything, an unreadable one nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LabelSelector(Option<Selector>);

impl LabelSelector {
    pub fn parse(value: &Value) -> Self {
        use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
        let selector: Option<LabelSelector> = serde_json::from_value(value.clone()).ok();
        Self(selector.and_then(|selector| selector.try_into().ok()))
    }

    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.as_ref().is_some_and(|selector| selector.matches(labels))
    }
}

/// `policy.linkerd.io/Server`
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Server {
    pub name: String,
    pub labels: Labels,
    pub created: String,
    pub pods: LabelSelector,
    pub port: PortRef,
    pub protocol: Option<String>,
    pub access_policy: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum PortRef {
    Number(u16),
    Name(String),
}

impl Default for PortRef {
    fn default() -> Self {
        Self::Number(0)
    }
}

impl Server {
    pub fn parse(object: &DynamicObject) -> Self {
        let spec = &object.data["spec"];
        let text = |field: &str| spec[field].as_str().map(str::to_owned);
        Self {
            name: object.name_any(),
            labels: object.labels().clone(),
            created: created(object),
            // Without a podSelector a Server is for something that isn't a pod.
            pods: spec
                .get("podSelector")
                .map(LabelSelector::parse)
                .unwrap_or_default(),
            port: match &spec["port"] {
                Value::String(name) => name
                    .parse()
                    .map_or_else(|_| PortRef::Name(name.clone()), PortRef::Number),
                number => PortRef::Number(
                    number
                        .as_u64()
                        .and_then(|port| u16::try_from(port).ok())
                        .unwrap_or(0),
                ),
            },
            protocol: text("proxyProtocol"),
            access_policy: text("accessPolicy"),
        }
    }

    pub fn selects(&self, pod: &Pod, port: u16) -> bool {
        let port_matches = match &self.port {
            PortRef::Number(number) => *number == port,
            PortRef::Name(name) => pod
                .ports
                .iter()
                .any(|(candidate, number)| candidate == name && *number == port),
        };
        port_matches && self.pods.matches(&pod.labels)
    }
}

/// `policy.linkerd.io/ServerAuthorization`
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServerAuthorization {
    pub name: String,
    pub server_name: Option<String>,
    pub server_selector: Option<LabelSelector>,
    pub client: ClientSpec,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClientSpec {
    pub networks: Option<Vec<NetworkSpec>>,
    pub unauthenticated: bool,
    #[serde(rename = "meshTLS")]
    pub mesh_tls: Option<MeshTlsSpec>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MeshTlsSpec {
    #[serde(rename = "unauthenticatedTLS")]
    pub unauthenticated_tls: bool,
    pub identities: Vec<String>,
    pub service_accounts: Vec<AccountSpec>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AccountSpec {
    pub name: String,
    pub namespace: Option<String>,
}

/// A bare address counts as a network of one.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct NetworkSpec {
    pub cidr: String,
    pub except: Option<Vec<String>>,
}

/// Reads `10.0.0.0/8` or `10.1.2.3`.
pub fn network(text: &str) -> Option<IpNet> {
    let text = text.trim();
    text.parse()
        .ok()
        .or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

impl ServerAuthorization {
    pub fn parse(object: &DynamicObject) -> Self {
        let spec = &object.data["spec"];
        Self {
            name: object.name_any(),
            server_name: spec["server"]["name"].as_str().map(str::to_owned),
            server_selector: spec["server"].get("selector").map(LabelSelector::parse),
            // An unreadable client would otherwise become an empty one, and that lets nobody in either.
            client: serde_json::from_value(spec["client"].clone()).unwrap_or_default(),
        }
    }

    pub fn is_for(&self, server: &Server) -> bool {
        self.server_name.as_ref() == Some(&server.name)
            || self
                .server_selector
                .as_ref()
                .is_some_and(|selector| selector.matches(&server.labels))
    }
}

/// `policy.linkerd.io/AuthorizationPolicy`
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AuthorizationPolicy {
    #[serde(skip)]
    pub name: String,
    pub target_ref: Ref,
    pub required_authentication_refs: Vec<Ref>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Ref {
    pub group: String,
    pub kind: String,
    pub name: String,
    pub namespace: Option<String>,
}

impl AuthorizationPolicy {
    /// Nothing when the spec can't be read: a policy that lost a requirement would let strangers in.
    pub fn parse(object: &DynamicObject) -> Option<Self> {
        let policy: Self = serde_json::from_value(object.data["spec"].clone()).ok()?;
        Some(Self {
            name: object.name_any(),
            ..policy
        })
    }
}

/// `policy.linkerd.io/MeshTLSAuthentication`
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MeshTlsAuthentication {
    pub identities: Vec<String>,
    pub identity_refs: Vec<Ref>,
}

/// `policy.linkerd.io/NetworkAuthentication`
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct NetworkAuthentication {
    pub networks: Vec<NetworkSpec>,
}

/// The `spec` of a policy object, when it can be read.
pub fn spec<T: for<'de> Deserialize<'de>>(object: &DynamicObject) -> Option<T> {
    serde_json::from_value(object.data["spec"].clone()).ok()
}
