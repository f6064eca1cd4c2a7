//! Which addresses stand behind a Service, and how a proxy must talk to each.
//!
//! Pure: from the state of the cluster to the answer, and from two answers to the updates between them. Streams and
//! gRPC are in the parent module. Source: `spec/proxy.md` 5.3, `spec/multicluster.md` 7.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::time::Duration;

use linkerd2_proxy_api::destination::{
    AddrSet, AuthorityOverride, Http2ClientParams, NoEndpoints, ProtocolHint, TlsIdentity, Update,
    WeightedAddr, WeightedAddrSet, http2_client_params, protocol_hint, tls_identity, update,
};
use tonic::Status;

use crate::keys;
use crate::mesh::{Asker, Mesh};
use crate::view::objects::{Discovery, Member, Pod, Service, Slice};
use crate::view::{Key, RemoteCluster, State, Topic, Topics};

/// Proxies give all endpoints of a set the same weight today; the number is Linkerd's.
const WEIGHT: u32 = 10_000;
/// Where a meshed pod takes connections with a transport header unless its proxy says otherwise.
const PROXY_INBOUND_PORT: u16 = 4143;
/// Ports that a pod's proxy answers itself.
const PROXY_ADMIN_PORTS: [u16; 2] = [4190, 4191];

/// Everything that stands behind one port of a Service.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Endpoints {
    /// Whether the Service exists.
    pub exists: bool,
    pub addresses: BTreeMap<SocketAddr, WeightedAddr>,
    /// Labels that all have in common.
    pub labels: BTreeMap<String, String>,
}

/// The ready endpoints of a Service's port; those of one pod if an instance is named. Some Services have theirs in other
/// clusters: a cluster that isn't known adds nothing and takes nothing away.
pub fn resolve(
    mesh: &Mesh,
    state: &State,
    key: &Key,
    instance: Option<&str>,
    port: u16,
    asker: &Asker,
    topics: &mut Topics,
) -> Result<Endpoints, Status> {
    topics.insert(Topic::Service(key.clone()));
    let Some(service) = state.service(key).filter(|service| !service.external_name) else {
        return Ok(Endpoints::default());
    };
    let wanted = Wanted {
        instance,
        port,
        node: Some(&asker.node),
    };
    let mut found = Endpoints {
        exists: true,
        labels: BTreeMap::from([
            ("namespace".into(), key.namespace.clone()),
            ("service".into(), key.name.clone()),
        ]),
        ..Endpoints::default()
    };
    match service.discovery() {
        Discovery::Local => of_service(mesh, state, service, &wanted, topics, &mut found),
        Discovery::Remote { service: None, .. } => {
            return Err(Status::failed_precondition(format!(
                "service {key} has no label {}",
                keys::REMOTE_SERVICE
            )));
        }
        Discovery::Remote {
            cluster,
            service: Some(service),
        } => {
            let member = Member { service, cluster };
            of_member(mesh, state, &key.namespace, &member, &wanted, topics, &mut found);
        }
        Discovery::Federated { local, remote } => {
            for member in &remote {
                of_member(mesh, state, &key.namespace, member, &wanted, topics, &mut found);
            }
            // Last: where networks overlap against the rules, an address is the one here.
            if let Some(name) = local {
                let key = Key::new(&key.namespace, name);
                topics.insert(Topic::Service(key.clone()));
                if let Some(service) = state.service(&key).filter(|service| !service.external_name) {
                    let mut here = Endpoints::default();
                    of_service(mesh, state, service, &wanted, topics, &mut here);
                    found.addresses.extend(here.addresses);
                }
            }
        }
    }
    Ok(found)
}

/// What of a Service is asked for.
struct Wanted<'a> {
    instance: Option<&'a str>,
    port: u16,
    /// Where the client is; unknown to other clusters.
    node: Option<&'a str>,
}

/// Adds the endpoints of a Service of another cluster.
fn of_member(
    mesh: &Mesh,
    state: &State,
    namespace: &str,
    member: &Member,
    wanted: &Wanted<'_>,
    topics: &mut Topics,
    found: &mut Endpoints,
) {
    let Member { service, cluster } = member;
    topics.insert(Topic::Cluster(cluster.clone()));
    let Some(remote) = state.remote(cluster) else {
        return;
    };
    let key = Key::new(namespace, service);
    let mut topics_there = Topics::from([Topic::Service(key.clone())]);
    let mut there = Endpoints::default();
    if let Some(service) = remote
        .state
        .service(&key)
        .filter(|service| !service.external_name)
    {
        let wanted = Wanted {
            node: None,
            ..*wanted
        };
        of_service(
            &of_cluster(mesh, remote),
            &remote.state,
            service,
            &wanted,
            &mut topics_there,
            &mut there,
        );
    }
    topics.extend(of_remote(cluster, topics_there));
    let labels = [
        ("target_cluster", cluster),
        ("target_service", service),
        ("target_service_namespace", &key.namespace),
    ];
    for (address, mut weighted) in there.addresses {
        // Without an identity to expect, plain text would cross from one cluster to another.
        if weighted.tls_identity.is_none() {
            tracing::debug!(cluster, service = %key, %address, "left out: its pod is not in the mesh");
            continue;
        }
        let labels = labels.map(|(label, value)| (label.to_owned(), value.clone()));
        weighted.metric_labels.extend(labels);
        weighted.http2 = weighted.http2.map(|_| http2(Distance::Far));
        found.addresses.insert(address, weighted);
    }
}

/// The mesh as another cluster is part of it.
pub(super) fn of_cluster(mesh: &Mesh, remote: &RemoteCluster) -> Mesh {
    Mesh {
        trust_domain: remote.trust_domain.clone(),
        ..mesh.clone()
    }
}

pub(super) fn of_remote(cluster: &str, topics: Topics) -> impl Iterator<Item = Topic> {
    topics
        .into_iter()
        .map(move |topic| Topic::Remote(cluster.to_owned(), Box::new(topic)))
}

/// Adds the endpoints that a cluster lists for a Service.
fn of_service(
    mesh: &Mesh,
    state: &State,
    service: &Service,
    wanted: &Wanted<'_>,
    topics: &mut Topics,
    found: &mut Endpoints,
) {
    for slice in state.slices(&service.key()) {
        if let Some(cluster) = &slice.cluster_name {
            found
                .labels
                .extend(mirror_labels(cluster, remote_name(state, service, slice)));
        }
        let target_port = target_port(service, slice, wanted.port);
        for endpoint in &slice.endpoints {
            let Some(ip) = endpoint.ip else { continue };
            let is_wanted = (endpoint.ready || service.publish_not_ready)
                && wanted
                    .instance
                    .is_none_or(|instance| endpoint.hostname.as_deref() == Some(instance))
                && wanted
                    .node
                    .filter(|_| service.internal_traffic_local)
                    .is_none_or(|node| endpoint.node.as_deref() == Some(node));
            if !is_wanted {
                continue;
            }
            let address = SocketAddr::new(ip, target_port);
            let mut weighted = match &endpoint.pod {
                Some(pod) => match state.pod(pod) {
                    Some(pod) => pod_address(mesh, state, pod, address, topics),
                    // Not known yet, or not any more. Its address alone would be dialled without TLS. When the pod
                    // shows up, the Service is looked at again.
                    None => continue,
                },
                None => foreign_address(mesh, state, service, slice, wanted.port, address),
            };
            if let Some(zone) = &endpoint.zone {
                weighted.metric_labels.insert("zone".into(), zone.clone());
                weighted
                    .metric_labels
                    .insert("zone_locality".into(), "unknown".into());
            }
            found.addresses.insert(address, weighted);
        }
    }
}

/// Service port to endpoint port, by the port's name. A port that the Service doesn't define is taken literally.
fn target_port(service: &Service, slice: &Slice, port: u16) -> u16 {
    let Some(name) = service.port(port).map(|port| &port.name) else {
        return port;
    };
    let named = slice.ports.iter().find(|(candidate, _)| candidate == name);
    // Hand-made Endpoints may leave out the name when there is only one port.
    let only = slice
        .ports
        .first()
        .filter(|_| slice.ports.len() == 1 && service.ports.len() == 1);
    named.or(only).map_or(port, |(_, number)| *number)
}

/// An address whose pod is known.
pub fn pod_address(
    mesh: &Mesh,
    state: &State,
    pod: &Pod,
    address: SocketAddr,
    topics: &mut Topics,
) -> WeightedAddr {
    let mut labels = HashMap::from([
        ("pod".to_owned(), pod.name.clone()),
        ("serviceaccount".to_owned(), pod.service_account.clone()),
    ]);
    if let Some((kind, name)) = &pod.owner {
        labels.insert(kind.clone(), name.clone());
    }
    if let Some(hash) = pod.labels.get(keys::POD_TEMPLATE_HASH) {
        labels.insert("pod_template_hash".into(), hash.clone());
    }
    let mut weighted = plain(address, labels);
    if !mesh.owns(pod) {
        return weighted;
    }
    weighted
        .metric_labels
        .insert("control_plane_ns".into(), mesh.control_plane_namespace.clone());
    let port = address.port();
    if pod.skips_inbound(port) {
        return weighted;
    }
    weighted.tls_identity = mesh.identity(pod).map(|identity| dns_identity(identity.as_str()));
    if weighted.tls_identity.is_none() {
        return weighted;
    }
    if PROXY_ADMIN_PORTS.contains(&port) || pod.proxy_admin_ports.contains(&port) {
        return weighted;
    }
    let opaque = mesh.is_opaque(state, pod, port, topics);
    let protocol = if opaque {
        Some(protocol_hint::Protocol::Opaque(protocol_hint::Opaque {}))
    } else {
        mesh.h2_upgrade
            .then_some(protocol_hint::Protocol::H2(protocol_hint::H2 {}))
    };
    let opaque_transport = (opaque || mesh.transport_header).then(|| protocol_hint::OpaqueTransport {
        inbound_port: pod.proxy_inbound_port.unwrap_or(PROXY_INBOUND_PORT).into(),
    });
    weighted.protocol_hint = Some(ProtocolHint {
        protocol,
        opaque_transport,
    });
    weighted.http2 = Some(http2(Distance::Near));
    weighted
}

/// An address without a pod: another cluster's gateway if its annotations say so, otherwise just an address.
fn foreign_address(
    mesh: &Mesh,
    state: &State,
    service: &Service,
    slice: &Slice,
    port: u16,
    address: SocketAddr,
) -> WeightedAddr {
    let mut weighted = plain(address, HashMap::new());
    if let Some(name) = remote_name(state, service, slice) {
        weighted.authority_override = Some(AuthorityOverride {
            authority_override: format!("{name}:{port}"),
        });
    }
    let identity = annotation(state, service, slice, keys::MIRROR_GATEWAY_IDENTITY);
    if let Some(identity) = identity.filter(|identity| !identity.is_empty()) {
        weighted.tls_identity = Some(TlsIdentity {
            strategy: Some(tls_identity::Strategy::DnsLikeIdentity(
                tls_identity::DnsLikeIdentity {
                    name: identity.to_owned(),
                },
            )),
            server_name: None,
        });
        weighted.protocol_hint = mesh.h2_upgrade.then_some(ProtocolHint {
            protocol: Some(protocol_hint::Protocol::H2(protocol_hint::H2 {})),
            opaque_transport: None,
        });
        weighted.http2 = Some(http2(Distance::Far));
    }
    weighted
}

/// Slices that another controller made may lack what the Endpoints object says.
fn annotation<'a>(state: &'a State, service: &Service, slice: &'a Slice, name: &str) -> Option<&'a str> {
    let own = slice.annotations.get(name);
    let endpoints = || {
        state
            .endpoints(&service.key())
            .iter()
            .find_map(|slice| slice.annotations.get(name))
    };
    own.or_else(endpoints).map(String::as_str)
}

fn remote_name<'a>(state: &'a State, service: &'a Service, slice: &'a Slice) -> Option<&'a str> {
    annotation(state, service, slice, keys::MIRROR_REMOTE_NAME)
        .or_else(|| {
            service
                .annotations
                .get(keys::MIRROR_REMOTE_NAME)
                .map(String::as_str)
        })
        .filter(|name| !name.is_empty())
}

fn mirror_labels(cluster: &str, remote_name: Option<&str>) -> Vec<(String, String)> {
    let mut labels = vec![("target_cluster".to_owned(), cluster.to_owned())];
    let mut parts = remote_name.unwrap_or_default().split('.');
    if let (Some(service), Some(namespace)) = (parts.next(), parts.next()) {
        labels.push(("target_service".into(), service.into()));
        labels.push(("target_service_namespace".into(), namespace.into()));
    }
    labels
}

/// An address about which nothing is known.
pub fn plain(address: SocketAddr, metric_labels: HashMap<String, String>) -> WeightedAddr {
    WeightedAddr {
        addr: Some(address.into()),
        weight: WEIGHT,
        metric_labels,
        ..WeightedAddr::default()
    }
}

/// The name is both what the certificate must say and what the client asks for.
fn dns_identity(identity: &str) -> TlsIdentity {
    let name = tls_identity::DnsLikeIdentity {
        name: identity.to_owned(),
    };
    TlsIdentity {
        strategy: Some(tls_identity::Strategy::DnsLikeIdentity(name.clone())),
        server_name: Some(name),
    }
}

/// Keep-alives find out that an endpoint is gone although nobody said so.
fn http2(distance: Distance) -> Http2ClientParams {
    let duration = |seconds| Duration::from_secs(seconds).try_into().ok();
    let interval = match distance {
        Distance::Near => 10,
        Distance::Far => 3,
    };
    Http2ClientParams {
        keep_alive: Some(http2_client_params::KeepAlive {
            interval: duration(interval),
            timeout: duration(3),
            while_idle: true,
        }),
        ..Http2ClientParams::default()
    }
}

/// Where an endpoint is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Distance {
    Near,
    /// In another cluster. When that is cut off, nobody here hears of it but those who ask often.
    Far,
}

/// The updates that turn one answer into the next. What is added comes before what is removed, so that a set that is
/// exchanged completely is never empty on the way.
pub fn updates(old: Option<&Endpoints>, new: &Endpoints) -> Vec<Update> {
    let of = |update| Update { update: Some(update) };
    if new.addresses.is_empty() {
        let news = old.is_none_or(|old| !old.addresses.is_empty() || old.exists != new.exists);
        let none = NoEndpoints { exists: new.exists };
        return news
            .then(|| of(update::Update::NoEndpoints(none)))
            .into_iter()
            .collect();
    }
    // Labels belong to the set: when they change, every address is sent again.
    let same_labels = old.filter(|old| old.labels == new.labels);
    let added: Vec<WeightedAddr> = new
        .addresses
        .iter()
        .filter(|(address, weighted)| {
            same_labels.and_then(|old| old.addresses.get(address)) != Some(weighted)
        })
        .map(|(_, weighted)| weighted.clone())
        .collect();
    let removed: Vec<_> = old
        .into_iter()
        .flat_map(|old| old.addresses.keys())
        .filter(|address| !new.addresses.contains_key(address))
        .map(|address| (*address).into())
        .collect();
    let mut updates = Vec::new();
    if !added.is_empty() {
        let metric_labels = new.labels.clone().into_iter().collect();
        updates.push(of(update::Update::Add(WeightedAddrSet {
            addrs: added,
            metric_labels,
        })));
    }
    if !removed.is_empty() {
        updates.push(of(update::Update::Remove(AddrSet { addrs: removed })));
    }
    updates
}
