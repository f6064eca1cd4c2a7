//! Collects what is to be seen of a request's way: objects from API servers, answers from control planes.
//!
//! Only reads. What can't be read in another cluster is a fact too, and no error; every request has a deadline, and the
//! number of pods, clusters and hops that are looked at is bounded. What it means is [`super::judge`]'s business.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures::future::BoxFuture;
use hawser_control::mesh;
use hawser_control::view::Key;
use hawser_control::view::objects::{self, Discovery};
use hawser_core::Identity;
use hawser_crd::{Link, TrafficSplit, keys};
use hawser_proxy::decision::{self, Backend, NoWay, Peer, Speech, Way};
use http::Request;
use k8s_openapi::api::core::v1::{Pod, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::ListParams;
use kube::config::Kubeconfig;
use kube::{Api, Client, ResourceExt};
use linkerd2_proxy_api::destination::destination_client::DestinationClient;
use linkerd2_proxy_api::destination::{DestinationProfile, GetDestination};
use linkerd2_proxy_api::outbound::outbound_policies_client::OutboundPoliciesClient;
use linkerd2_proxy_api::outbound::{OutboundPolicy, TrafficSpec, traffic_spec};
use serde_json::json;
use tonic::Status;
use tonic::transport::Channel;

use super::near;
use super::seen::{Behind, Caller, CallingPod, Elsewhere, Found, Gateway, Listed, Mode, Seen, Target, There};
use crate::diagnostics::{self, endpoints, policy};
use crate::kube::{ClusterArgs, is_missing};
use crate::multicluster::{self, mesh_values};
use crate::problem::Problem;
use crate::{meshed, route};

/// One request's patience with a cluster.
const DEADLINE: Duration = Duration::from_secs(10);
/// Pods of one backend whose policies are asked for; more of the same say the same.
const PODS_MAX: usize = 5;
/// Into another cluster and, if it sends us on, into one more.
pub(super) const HOPS_MAX: usize = 2;

/// A cluster, and its control plane.
pub(super) struct Place {
    /// Context of the kubeconfig.
    pub(super) name: String,
    pub(super) client: Client,
    /// Asks it; of a cluster that we see with a link's credentials only, why we can't.
    ask: Result<Ask, String>,
}

struct Ask {
    destination: Channel,
    policy: Channel,
    domain: String,
}

/// How to get to other clusters.
pub(super) struct Others {
    args: ClusterArgs,
    kubeconfig: Kubeconfig,
}

impl Place {
    pub(super) async fn open(client: Client, name: String, linkerd: &str) -> Result<Self, Problem> {
        let domain = mesh_values(&client, linkerd).await?.cluster_domain;
        let ask = Ask {
            destination: diagnostics::destination(&client, linkerd, diagnostics::DESTINATION_PORT).await?,
            policy: diagnostics::destination(&client, linkerd, diagnostics::POLICY_PORT).await?,
            domain,
        };
        Ok(Self {
            name,
            client,
            ask: Ok(ask),
        })
    }

    fn ask(&self) -> Result<&Ask, String> {
        self.ask.as_ref().map_err(Clone::clone)
    }
}

impl Others {
    pub(super) fn new(args: &ClusterArgs) -> Self {
        Self {
            args: args.clone(),
            kubeconfig: args.read().unwrap_or_default(),
        }
    }

    /// The cluster that links of another call so.
    pub(super) async fn linked(&self, here: &Client, cluster: &str) -> Result<Place, String> {
        let mut links = links(here).await?.into_iter();
        let link = links.find(|link| link.spec.target_cluster_name == cluster);
        let link = link.ok_or_else(|| format!("there is no link to {cluster}"))?;
        self.open(here, &link).await
    }

    /// The cluster of a link: with our own rights if we have any there, otherwise with the link's.
    async fn open(&self, here: &Client, link: &Link) -> Result<Place, String> {
        let name = &link.spec.cluster_credentials_secret;
        let namespace = link.namespace().unwrap_or_default();
        let secrets: Api<Secret> = Api::namespaced(here.clone(), &namespace);
        let secret = within(secrets.get(name))
            .await
            .map_err(|why| format!("secret {namespace}/{name}: {why}"))?;
        let data = secret
            .data
            .unwrap_or_default()
            .remove(keys::KUBECONFIG_SECRET_KEY);
        let theirs =
            data.ok_or_else(|| format!("secret {namespace}/{name} has no {}", keys::KUBECONFIG_SECRET_KEY))?;
        let opening = async {
            let Some(context) = route::context_of(&theirs.0, &self.kubeconfig) else {
                let connect = route::connector(self.kubeconfig.clone());
                let client = connect(theirs.0).await.map_err(|error| error.to_string())?;
                within(client.apiserver_version()).await?;
                let why =
                    "no context of the kubeconfig leads to it, and the link's account may not ask there";
                return Ok(Place {
                    name: link.spec.target_cluster_name.clone(),
                    client,
                    ask: Err(why.to_owned()),
                });
            };
            let args = ClusterArgs {
                context: Some(context),
                ..self.args.clone()
            };
            let connection = args.connect().await.map_err(|problem| problem.why().to_owned())?;
            let linkerd = match link.spec.target_cluster_linkerd_namespace.as_str() {
                "" => keys::CONTROL_PLANE_NAMESPACE,
                namespace => namespace,
            };
            Place::open(connection.client, connection.context, linkerd)
                .await
                .map_err(|problem| problem.why().to_owned())
        };
        let opened = tokio::time::timeout(DEADLINE, opening).await;
        opened.unwrap_or_else(|_| Err(silence()))
    }
}

/// What the request is, the same on every hop.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) others: &'a Others,
    pub(super) request: &'a Request<()>,
    /// How far we still go.
    pub(super) hops: usize,
}

/// A Service as a caller of the same cluster meets it. Without a port it is the first that the Service has.
pub(super) fn look<'a>(
    place: &'a Place,
    asked: Asked<'a>,
    caller: Caller,
    target: Key,
    port: Option<u16>,
) -> BoxFuture<'a, Result<Seen, String>> {
    Box::pin(async move {
        let ask = place.ask()?;
        let services: Api<Service> = Api::namespaced(place.client.clone(), &target.namespace);
        let service = within(services.get_opt(&target.name)).await?;
        let Some(service) = service else {
            let (near, elsewhere) = alike(&place.client, &target).await;
            let unmirrored = unmirrored(place, asked, &caller, &target).await?;
            return Ok(Seen {
                cluster: place.name.clone(),
                unmirrored,
                caller,
                target,
                port: port.unwrap_or_default(),
                service: Found::Missing { near, elsewhere },
                way: Err(NoWay::Unknown),
                splits: Vec::new(),
                behind: BTreeMap::new(),
            });
        };
        let understood = objects::Service::parse(&service);
        let first = understood.ports.first().map(|port| port.port);
        let port = port.or(first).unwrap_or(80);
        let path = |key: &Key| format!("{}.{}.svc.{}:{port}", key.name, key.namespace, ask.domain);
        let way = match &caller {
            Caller::Pod(CallingPod { identity: None, .. }) => Ok(Way {
                speech: Speech::Opaque,
                route: None,
                backends: vec![(Backend::Service(path(&target)), 1)],
            }),
            Caller::Gateway(pod) => {
                let name = path(&target);
                let (profile, policy) = ask.both(&name, None, pod).await;
                decision::through_gateway(&name, profile, policy, asked.request)
            }
            Caller::Anybody | Caller::Pod(_) => {
                let nobody = CallingPod::default();
                let pod = match &caller {
                    Caller::Pod(pod) => pod,
                    _ => &nobody,
                };
                // Connections go to the cluster IP; a headless Service is asked about by its name.
                let address = understood
                    .cluster_ips
                    .first()
                    .map(|ip| SocketAddr::new(*ip, port));
                let name = address.map_or_else(|| path(&target), |address| address.to_string());
                let (profile, policy) = ask.both(&name, address, pod).await;
                decision::outbound(&name, profile, policy, asked.request)
            }
        };
        let splits = splits(&place.client, &target).await?;
        let mut wanted: BTreeSet<String> = BTreeSet::new();
        for (backend, _) in way.iter().flat_map(|way| &way.backends) {
            if let Backend::Service(path) = backend {
                wanted.insert(path.clone());
            }
        }
        // Those who could stand in.
        if wanted.len() > 1
            || splits
                .first()
                .is_some_and(|split| split.spec.service == target.name)
        {
            let backends = splits.iter().take(1).flat_map(|split| &split.spec.backends);
            let others = backends.map(|backend| path(&Key::new(&target.namespace, &backend.service)));
            let named: BTreeSet<String> = wanted.iter().map(|path| plain(path)).collect();
            wanted.extend(others.filter(|path| !named.contains(path)).collect::<Vec<_>>());
        }
        let mut seen = BTreeMap::new();
        for path in wanted {
            let parsed = mesh::Target::parse(&path, &ask.domain);
            if let Ok(mesh::Target::Service { service, port, .. }) = parsed {
                let found = behind(place, ask, asked, &caller, service, port).await?;
                seen.insert(path, found);
            }
        }
        Ok(Seen {
            cluster: place.name.clone(),
            caller,
            target,
            port,
            service: Found::Here(Box::new(service)),
            way,
            splits,
            behind: seen,
            unmirrored: None,
        })
    })
}

/// Destination ends the names of a split's backends with a dot.
pub(super) fn plain(path: &str) -> String {
    path.replace(".:", ":")
}

impl Ask {
    /// What destination and policy say of one target to a pod.
    async fn both(
        &self,
        name: &str,
        address: Option<SocketAddr>,
        pod: &CallingPod,
    ) -> (Result<DestinationProfile, Status>, Result<OutboundPolicy, Status>) {
        let token = token(pod);
        let profile = async {
            let mut client = DestinationClient::new(self.destination.clone());
            let request = GetDestination {
                path: name.to_owned(),
                context_token: token.clone(),
                ..GetDestination::default()
            };
            let mut updates = client.get_profile(request).await?.into_inner();
            let first = updates.message().await?;
            first.ok_or_else(|| Status::unavailable("the answer ended before it began"))
        };
        let policy = async {
            let mut client = OutboundPoliciesClient::new(self.policy.clone());
            let spec = TrafficSpec {
                source_workload: token.clone(),
                target: Some(match address {
                    Some(address) => traffic_spec::Target::Addr(address.into()),
                    None => traffic_spec::Target::Authority(name.to_owned()),
                }),
            };
            client.get(spec).await.map(tonic::Response::into_inner)
        };
        tokio::join!(answered(profile), answered(policy))
    }
}

/// As the injector writes it into a pod.
fn token(pod: &CallingPod) -> String {
    let key = pod.key.clone().unwrap_or_else(|| Key::new("", ""));
    json!({"ns": key.namespace, "pod": key.name, "nodeName": pod.node}).to_string()
}

async fn answered<T>(answer: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    let answer = tokio::time::timeout(diagnostics::DEADLINE, answer).await;
    answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time")))
}

/// The split that governs a Service; others that claim it follow.
async fn splits(client: &Client, target: &Key) -> Result<Vec<TrafficSplit>, String> {
    let api: Api<TrafficSplit> = Api::namespaced(client.clone(), &target.namespace);
    let mut splits = match tokio::time::timeout(DEADLINE, api.list(&ListParams::default())).await {
        Ok(Ok(list)) => list.items,
        Ok(Err(error)) if is_missing(&error) => Vec::new(),
        Ok(Err(error)) => return Err(error.to_string()),
        Err(_) => return Err(silence()),
    };
    splits.retain(|split| split.spec.service == target.name);
    // As destination chooses among them.
    splits.sort_by_key(|split| {
        let created = split.metadata.creation_timestamp.as_ref();
        (created.map(|time| time.0.to_string()), split.name_any())
    });
    splits.reverse();
    Ok(splits)
}

async fn behind(
    place: &Place,
    ask: &Ask,
    asked: Asked<'_>,
    caller: &Caller,
    key: Key,
    port: u16,
) -> Result<Behind, String> {
    let services: Api<Service> = Api::namespaced(place.client.clone(), &key.namespace);
    let service = within(services.get_opt(&key.name)).await?;
    let pod = match caller {
        Caller::Anybody => CallingPod::default(),
        Caller::Pod(pod) | Caller::Gateway(pod) => pod.clone(),
    };
    let authority = format!("{}.{}.svc.{}:{port}", key.name, key.namespace, ask.domain);
    let peers = endpoints::addresses(ask.destination.clone(), &authority, token(&pod)).await;
    let peers: Result<Vec<Peer>, String> = peers
        .map(|set| {
            let labels = set.metric_labels;
            let addresses = set.addrs.into_iter();
            addresses
                .filter_map(|address| decision::peer(address, &labels))
                .collect()
        })
        .map_err(|error| error.to_string());
    let listed = listed(&place.client, &key, service.as_ref()).await?;
    let found = peers.as_deref().unwrap_or_default();
    let local = found
        .iter()
        .filter(|peer| !peer.labels.contains_key("target_cluster"));
    let pods = targets(place, ask, &key.namespace, local).await?;
    let mut elsewhere = Vec::new();
    for (cluster, remote, mode) in service.iter().flat_map(|service| members(service, &key)) {
        let peers = found.iter();
        let there = peers.filter(|peer| peer.labels.get("target_cluster") == Some(&cluster));
        let member = (cluster.clone(), remote, mode);
        elsewhere.push(other(place, asked, caller, member, there).await?);
    }
    Ok(Behind {
        key,
        service,
        peers,
        listed,
        pods,
        elsewhere,
    })
}

/// The Services of other clusters for which one of this cluster stands.
fn members(service: &Service, key: &Key) -> Vec<(String, Key, Mode)> {
    let labels = service.labels();
    if let Some(cluster) = labels.get(keys::CLUSTER_NAME)
        && labels.contains_key(keys::MIRRORED_SERVICE)
        && !labels.contains_key(keys::REMOTE_DISCOVERY)
    {
        let remote = service.annotations().get(keys::REMOTE_SERVICE_FQ_NAME);
        let mut parts = remote.map(String::as_str).unwrap_or_default().split('.');
        let name = parts.next().filter(|name| !name.is_empty());
        let name = name.or_else(|| key.name.strip_suffix(cluster.as_str())?.strip_suffix('-'));
        let remote = Key::new(parts.next().unwrap_or(&key.namespace), name.unwrap_or(&key.name));
        return vec![(cluster.clone(), remote, Mode::Gateway)];
    }
    match objects::Service::parse(service).discovery() {
        Discovery::Local => Vec::new(),
        Discovery::Remote { cluster, service } => {
            let remote = Key::new(&key.namespace, service.unwrap_or_default());
            vec![(cluster, remote, Mode::Direct)]
        }
        Discovery::Federated { remote, .. } => {
            let members = remote.into_iter();
            members
                .map(|member| {
                    let remote = Key::new(&key.namespace, member.service);
                    (member.cluster, remote, Mode::Direct)
                })
                .collect()
        }
    }
}

/// What the lists of endpoints and the pods themselves say.
async fn listed(client: &Client, key: &Key, service: Option<&Service>) -> Result<Listed, String> {
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), &key.namespace);
    let query = format!("{}={}", keys::LABEL_SERVICE_NAME, key.name);
    let slices = within(slices.list(&ListParams::default().labels(&query))).await?;
    let mut listed = Listed::default();
    for endpoint in slices.items.iter().flat_map(|slice| &slice.endpoints) {
        let conditions = endpoint.conditions.as_ref();
        if conditions.and_then(|conditions| conditions.ready).unwrap_or(true) {
            listed.ready += endpoint.addresses.len();
        } else {
            listed.unready += endpoint.addresses.len();
        }
    }
    let selector = service.and_then(|service| service.spec.as_ref()?.selector.clone());
    let selector: Vec<String> = selector
        .unwrap_or_default()
        .into_iter()
        .map(|(label, value)| format!("{label}={value}"))
        .collect();
    if selector.is_empty() {
        return Ok(listed);
    }
    listed.selector = selector.join(",");
    if listed.ready == 0 {
        let pods: Api<Pod> = Api::namespaced(client.clone(), &key.namespace);
        let query = ListParams::default()
            .labels(&listed.selector)
            .limit(PODS_MAX as u32);
        let pods = within(pods.list(&query)).await?;
        let pods = pods.items.iter();
        listed.selected = pods.map(|pod| (pod.name_any(), unready(pod))).collect();
    }
    Ok(listed)
}

/// Why a pod isn't ready.
fn unready(pod: &Pod) -> Option<String> {
    if meshed::is_ready(pod) {
        return None;
    }
    let status = pod.status.clone().unwrap_or_default();
    let containers = status.container_statuses.iter().flatten();
    let waiting = containers
        .filter(|container| !container.ready)
        .find_map(|container| {
            let reason = container.state.as_ref()?.waiting.as_ref()?.reason.as_deref()?;
            Some(format!("container {} waits: {reason}", container.name))
        });
    let condition = || {
        let mut conditions = status.conditions.iter().flatten();
        let ready = conditions.find(|condition| condition.type_ == "Ready")?;
        ready.message.clone().filter(|message| !message.is_empty())
    };
    let phase = || {
        format!(
            "phase {}",
            status.phase.clone().unwrap_or_else(|| "unknown".into())
        )
    };
    Some(waiting.or_else(condition).unwrap_or_else(phase))
}

/// The pods behind some endpoints, and what their proxies are told.
async fn targets(
    place: &Place,
    ask: &Ask,
    namespace: &str,
    peers: impl Iterator<Item = &Peer>,
) -> Result<BTreeMap<SocketAddr, Target>, String> {
    let pods: Api<Pod> = Api::namespaced(place.client.clone(), namespace);
    let mut targets = BTreeMap::new();
    for peer in peers {
        let Some(name) = peer.labels.get("pod").filter(|_| targets.len() < PODS_MAX) else {
            continue;
        };
        if let Some(pod) = within(pods.get_opt(name)).await? {
            targets.insert(peer.address, target(ask, &pod, peer.address.port()).await);
        }
    }
    Ok(targets)
}

async fn target(ask: &Ask, pod: &Pod, port: u16) -> Target {
    let key = Key::of(pod);
    let policy = policy::of_port(ask.policy.clone(), &key.namespace, &key.name, port);
    let policy = answered(policy).await;
    Target {
        meshed: meshed::has_proxy(pod),
        identity: meshed::identity(pod),
        policy: policy.map_err(|status| status.message().to_owned()),
        key,
    }
}

/// What of a linked cluster a missing Service would be the mirror of, going by its name.
async fn unmirrored(
    place: &Place,
    asked: Asked<'_>,
    caller: &Caller,
    target: &Key,
) -> Result<Option<Elsewhere>, String> {
    for link in links(&place.client).await? {
        let cluster = link.spec.target_cluster_name;
        let name = target
            .name
            .strip_suffix(cluster.as_str())
            .and_then(|name| name.strip_suffix('-'));
        if let Some(name) = name.filter(|name| !name.is_empty()) {
            let remote = Key::new(&target.namespace, name);
            let nobody = std::iter::empty();
            let found = other(place, asked, caller, (cluster, remote, Mode::Gateway), nobody).await?;
            return Ok(Some(found));
        }
    }
    Ok(None)
}

async fn links(client: &Client) -> Result<Vec<Link>, String> {
    let links: Api<Link> = Api::all(client.clone());
    match tokio::time::timeout(DEADLINE, links.list(&ListParams::default())).await {
        Ok(Ok(list)) => Ok(list.items),
        Ok(Err(error)) if is_missing(&error) => Ok(Vec::new()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(silence()),
    }
}

/// Another cluster's part.
async fn other(
    place: &Place,
    asked: Asked<'_>,
    caller: &Caller,
    (cluster, remote, mode): (String, Key, Mode),
    peers: impl Iterator<Item = &Peer>,
) -> Result<Elsewhere, String> {
    let link = links(&place.client)
        .await?
        .into_iter()
        .find(|link| link.spec.target_cluster_name == cluster);
    let namespace = link.as_ref().and_then(ResourceExt::namespace).unwrap_or_default();
    let probed = match (mode, &link) {
        (Mode::Gateway, Some(_)) => {
            let asking = multicluster::probed(&place.client, &namespace, &cluster);
            tokio::time::timeout(DEADLINE, asking).await.unwrap_or(None)
        }
        _ => None,
    };
    let there = match &link {
        None => Err(format!("there is no link to {cluster}")),
        Some(_) if asked.hops == 0 => Err("it is too many hops away".to_owned()),
        Some(link) => match asked.others.open(&place.client, link).await {
            Ok(there) => beyond(&there, asked, caller, &remote, mode, peers).await,
            Err(why) => Err(why),
        },
    };
    Ok(Elsewhere {
        cluster,
        remote,
        mode,
        link,
        probed,
        there,
    })
}

async fn beyond(
    place: &Place,
    asked: Asked<'_>,
    caller: &Caller,
    remote: &Key,
    mode: Mode,
    peers: impl Iterator<Item = &Peer>,
) -> Result<There, String> {
    let services: Api<Service> = Api::namespaced(place.client.clone(), &remote.namespace);
    let service = match within(services.get_opt(&remote.name)).await? {
        Some(service) => Found::Here(Box::new(service)),
        None => {
            let (near, elsewhere) = alike(&place.client, remote).await;
            Found::Missing { near, elsewhere }
        }
    };
    let mut there = There {
        context: place.name.clone(),
        blind: place.ask().err(),
        service,
        gateways: Vec::new(),
        pods: BTreeMap::new(),
        through: None,
    };
    // Whoever may not ask has still seen the Service.
    let Ok(ask) = place.ask() else {
        return Ok(there);
    };
    match mode {
        Mode::Direct => there.pods = targets(place, ask, &remote.namespace, peers).await?,
        Mode::Gateway => {
            let mut calling = None;
            let mut port = None;
            for peer in peers {
                let authority = peer.authority.as_deref().unwrap_or_default();
                port = authority.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
            }
            for pod in gateways(&place.client).await? {
                let understood = objects::Pod::parse(&pod);
                let inbound = understood.proxy_inbound_port.unwrap_or(keys::GATEWAY_PORT);
                let ready = meshed::is_ready(&pod);
                let gateway = target(ask, &pod, inbound).await;
                if ready && calling.is_none() {
                    calling = Some(calling_pod(&pod));
                }
                there.gateways.push(Gateway { pod: gateway, ready });
            }
            // Without a caller nobody asks what lies behind.
            let pod = calling.filter(|_| !matches!(caller, Caller::Pod(CallingPod { identity: None, .. })));
            if let (Some(pod), Found::Here(_)) = (pod, &there.service) {
                let asked = Asked {
                    hops: asked.hops - 1,
                    ..asked
                };
                let seen = look(place, asked, Caller::Gateway(pod), remote.clone(), port).await?;
                there.through = Some(Box::new(seen));
            }
        }
    }
    Ok(there)
}

/// The pods of a cluster that let others in.
async fn gateways(client: &Client) -> Result<Vec<Pod>, String> {
    let pods: Api<Pod> = Api::all(client.clone());
    let query = format!(
        "{} in ({},{})",
        keys::EXTENSION,
        keys::EXTENSION_MULTICLUSTER,
        keys::EXTENSION_MULTICLUSTER_LEGACY
    );
    let mut found = within(pods.list(&ListParams::default().labels(&query)))
        .await?
        .items;
    found.retain(|pod| {
        let enabled = pod.annotations().get(keys::ENABLE_GATEWAY);
        enabled.is_some_and(|value| value == "true") && !meshed::is_finished(pod)
    });
    found.truncate(PODS_MAX);
    Ok(found)
}

/// A pod as the sender of a request.
pub(super) fn calling_pod(pod: &Pod) -> CallingPod {
    let understood = objects::Pod::parse(pod);
    let host = pod.status.as_ref().and_then(|status| status.host_ip.as_deref());
    let mut addresses = understood.ips.clone();
    // Between clusters a pod's address is often translated to its node's.
    addresses.extend(host.and_then(|ip| ip.parse::<IpAddr>().ok()));
    let identity = meshed::identity(pod).filter(|_| meshed::has_proxy(pod));
    CallingPod {
        key: Some(understood.key()),
        node: understood.node.clone().unwrap_or_default(),
        identity: identity.and_then(|name| name.parse::<Identity>().ok()),
        addresses,
    }
}

/// Names of Services that somebody may have meant, and namespaces that have one of the same name.
async fn alike(client: &Client, target: &Key) -> (Vec<String>, Vec<String>) {
    let services: Api<Service> = Api::all(client.clone());
    let Ok(all) = within(services.list_metadata(&ListParams::default())).await else {
        return Default::default();
    };
    let (beside, others): (Vec<_>, Vec<_>) = all
        .items
        .iter()
        .map(|service| Key::new(service.namespace().unwrap_or_default(), service.name_any()))
        .partition(|key| key.namespace == target.namespace);
    let names: Vec<&str> = beside.iter().map(|key| key.name.as_str()).collect();
    let same = others.into_iter().filter(|key| key.name == target.name);
    (
        near::names(&target.name, &names),
        same.map(|key| key.namespace).collect(),
    )
}

/// Waits for a request for so long and not longer, and says in one line what was wrong with it.
pub(super) async fn within<T>(request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, String> {
    match tokio::time::timeout(DEADLINE, request).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) if is_missing(&error) => Err("it does not exist".to_owned()),
        Ok(Err(kube::Error::Api(status))) => Err(status.message.clone()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(silence()),
    }
}

fn silence() -> String {
    format!("no answer within {} s", DEADLINE.as_secs())
}
