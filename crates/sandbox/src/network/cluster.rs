//! One cluster's node namespace: bridge, leg on the segment between clusters, pods.
//!
//! A pod has a `/32` address and routes everything through the node. Were pods on-link to each other, answers of a
//! Service's backend would take the short way over the bridge, past the node that must translate them back.
//!
//! In a flat layout the nodes also route between the pods of different clusters, as the cloud's routers would.
//!
//! Knows no Services; see [`super::services`].

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::TryStreamExt;
use hawser_nft::{
    Action, ApplyError, Batch, Chain, Family, Hook, Kind, Match, Protocol, Rule, Table, Verdict, priority,
    state, status,
};
use ipnet::{IpNet, Ipv4Net};
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkMessage, State};
use rtnetlink::packet_route::route::{RouteScope, RouteType};
use rtnetlink::{Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, RouteMessageBuilder};

use super::netns::NetNs;
use super::pool::{Pool, gateway};
use super::wan::{Wan, WanError};
use crate::controllers::addresses::NODE_PORTS;
use crate::kubelet::ClusterAddresses;

/// The segment between clusters (RFC 5737 documentation addresses: nobody's).
const WAN: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(203, 0, 113, 0), 24);
/// Addresses per cluster on the segment; the upper half are for LoadBalancers.
const WAN_PREFIX: u8 = 27;

const BRIDGE: &str = "pods0";
/// The interface that leads to other clusters.
pub(super) const LEG: &str = "wan0";
const LOCAL_TABLE: u32 = 255;

const CARRIER_LOOK_EVERY: Duration = Duration::from_millis(5);
/// The kernel may gather such news for a second.
const CARRIER_LOOKS: u32 = 300;
/// Discard: a port on which the node does not listen, so that it refuses at once.
const UNUSED_PORT: u16 = 9;

/// Why a network could not be made or changed.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("network of cluster {cluster}: {what}")]
    Namespace {
        cluster: String,
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("network of cluster {cluster}: {what}")]
    Link {
        cluster: String,
        what: &'static str,
        #[source]
        source: rtnetlink::Error,
    },
    #[error("network of cluster {cluster}: packet filter rules")]
    Rules {
        cluster: String,
        #[source]
        source: ApplyError,
    },
    #[error("network of cluster {cluster}: the leg to other clusters")]
    Wan {
        cluster: String,
        #[source]
        source: WanError,
    },
    #[error("cluster {cluster} has no free pod address")]
    NoAddress { cluster: String },
    #[error("a sandbox has at most {max} clusters")]
    TooManyClusters { max: usize },
}

/// A pod's network, ready for its first process.
#[derive(Clone, Debug)]
pub struct PodNetwork {
    pub netns: NetNs,
    pub ip: Ipv4Addr,
}

/// Whether pods of different clusters reach each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// All clusters use the same pod addresses; nothing works by the accident of a flat network.
    #[default]
    Apart,
    /// Each cluster has pod addresses of its own, and pods reach those of all clusters. Services stay apart.
    Flat,
}

/// Whether the ports of a node are reached from other clusters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodePorts {
    /// They answer to the cluster's own pods and node.
    #[default]
    Inside,
    /// The node has an address on the segment between clusters besides, at which they answer and nothing else does.
    Everywhere,
}

/// What each cluster of a sandbox is reached by. The same names in the same order give the same addresses.
pub fn plan_addresses(
    clusters: &[String],
    layout: Layout,
    node_ports: NodePorts,
) -> Result<Vec<ClusterAddresses>, NetworkError> {
    let blocks: Vec<Ipv4Net> = WAN
        .subnets(WAN_PREFIX)
        .expect("the segment is larger than a block")
        .collect();
    if clusters.len() > blocks.len() {
        return Err(NetworkError::TooManyClusters { max: blocks.len() });
    }
    let all_pods = Ipv4Net::new_assert(Ipv4Addr::new(10, 42, 0, 0), 16);
    let pods: Vec<Ipv4Net> = match layout {
        Layout::Apart => vec![all_pods; blocks.len()],
        Layout::Flat => all_pods
            .subnets(all_pods.prefix_len() + WAN_PREFIX - WAN.prefix_len())
            .expect("as many as there are blocks")
            .collect(),
    };
    let plan = |((name, block), pods): ((&String, Ipv4Net), &Ipv4Net)| {
        let upper = block
            .subnets(WAN_PREFIX + 1)
            .expect("a block has halves")
            .last()
            .expect("two halves");
        let node = gateway(block);
        let services = Ipv4Net::new_assert(Ipv4Addr::new(10, 43, 0, 0), 16);
        ClusterAddresses {
            name: name.clone(),
            pods: *pods,
            reachable_pods: Vec::new(),
            services,
            node,
            external: (node_ports == NodePorts::Everywhere).then(|| Ipv4Addr::from(u32::from(node) + 1)),
            load_balancers: upper,
            api: SocketAddr::from((node, 6443)),
            dns: Ipv4Addr::from(u32::from(services.network()) + 10),
            domain: "cluster.local".into(),
        }
    };
    let mut plans: Vec<ClusterAddresses> = clusters.iter().zip(blocks).zip(&pods).map(plan).collect();
    if layout == Layout::Flat {
        let all: Vec<(Ipv4Net, Ipv4Addr)> = plans.iter().map(|plan| (plan.pods, plan.node)).collect();
        for plan in &mut plans {
            plan.reachable_pods = all
                .iter()
                .filter(|(_, node)| *node != plan.node)
                .copied()
                .collect();
        }
    }
    Ok(plans)
}

/// The network of one cluster. Dropping it, with all pods' namespaces, removes it.
#[derive(Debug)]
pub struct ClusterNetwork {
    addresses: ClusterAddresses,
    node: NetNs,
    links: Handle,
    bridge: u32,
    pods: Mutex<Pods>,
}

#[derive(Debug)]
struct Pods {
    pool: Pool,
    by_uid: BTreeMap<String, PodNetwork>,
}

impl ClusterNetwork {
    /// Makes the node namespace and connects it to the segment.
    pub async fn create(addresses: ClusterAddresses, wan: &Wan) -> Result<Arc<Self>, NetworkError> {
        let cluster = addresses.name.clone();
        let namespace = |what| {
            let cluster = cluster.clone();
            move |source| NetworkError::Namespace {
                cluster,
                what,
                source,
            }
        };
        let link = |what| {
            let cluster = cluster.clone();
            move |source| NetworkError::Link {
                cluster,
                what,
                source,
            }
        };

        let node = NetNs::create().map_err(namespace("making the node's namespace"))?;
        // Answers come back the way they went through address translation, so paths may look asymmetric; and a
        // router that tells pods of a shorter way would break that translation.
        for (parameter, value) in [
            ("ipv4/ip_forward", "1"),
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/default/rp_filter", "0"),
            ("ipv4/conf/all/send_redirects", "0"),
            ("ipv4/conf/default/send_redirects", "0"),
            ("ipv6/conf/default/disable_ipv6", "1"),
        ] {
            optional(node.set(parameter, value)).map_err(namespace("setting network parameters"))?;
        }
        let links = connect(&node).map_err(namespace("opening a route socket"))?;

        wan.attach(&addresses.name, &node, LEG)
            .await
            .map_err(|source| NetworkError::Wan {
                cluster: cluster.clone(),
                source,
            })?;
        links
            .link()
            .add(
                LinkBridge::new(BRIDGE)
                    .address(mac(gateway(addresses.pods)).to_vec())
                    .up()
                    .build(),
            )
            .execute()
            .await
            .map_err(link("adding the bridge"))?;
        // The bridge would otherwise hand frames to the packet filter a second time, before they are routed.
        optional(node.set("bridge/bridge-nf-call-iptables", "0"))
            .map_err(namespace("keeping the packet filter off the bridge"))?;
        let index = |name: &'static str| {
            let (node, error) = (node.clone(), namespace("finding an interface's index"));
            move || {
                node.run(|| nix::net::if_::if_nametoindex(name))
                    .map_err(|errno| error(errno.into()))
            }
        };
        let (bridge, leg, lo) = (index(BRIDGE)(), index(LEG)(), index("lo")());
        let (bridge, leg, lo) = (bridge?, leg?, lo?);
        up(&links, lo)
            .await
            .map_err(link("bringing up the loopback interface"))?;
        let pods = addresses.pods;
        for (interface, address, prefix) in [
            (bridge, gateway(pods), pods.prefix_len()),
            (leg, addresses.node, WAN.prefix_len()),
        ] {
            address_on(&links, interface, address, prefix)
                .await
                .map_err(link("giving the node an address"))?;
        }
        // The node answers for all LoadBalancer addresses, and for the one of its ports if it has one; services
        // without endpoints then refuse by themselves.
        let external = addresses.external.map(|address| Ipv4Net::new_assert(address, 32));
        let answered = [addresses.load_balancers].into_iter().chain(external);
        let answered = answered.map(|net| {
            RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(net.network(), net.prefix_len())
                .output_interface(lo)
                .kind(RouteType::Local)
                .scope(RouteScope::Host)
                .pref_source(addresses.node)
                .table_id(LOCAL_TABLE)
                .build()
        });
        // Only for connections that the node itself opens: without a route the kernel gives up before translation.
        let services = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(addresses.services.network(), addresses.services.prefix_len())
            .output_interface(bridge)
            .scope(RouteScope::Link)
            .build();
        let other_pods = addresses.reachable_pods.iter().map(|(pods, node)| {
            RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(pods.network(), pods.prefix_len())
                .output_interface(leg)
                .gateway(*node)
                .build()
        });
        for route in answered.chain([services]).chain(other_pods) {
            links
                .route()
                .add(route)
                .execute()
                .await
                .map_err(link("adding a route"))?;
        }
        let rules = filter(&addresses);
        node.run(|| Batch::new().replace(&rules).apply())
            .map_err(|source| NetworkError::Rules {
                cluster: cluster.clone(),
                source,
            })?;

        let pods = Pods {
            pool: Pool::new(addresses.pods),
            by_uid: BTreeMap::new(),
        };
        Ok(Arc::new(Self {
            addresses,
            node,
            links,
            bridge,
            pods: Mutex::new(pods),
        }))
    }

    pub fn addresses(&self) -> &ClusterAddresses {
        &self.addresses
    }

    /// The node's own namespace.
    pub fn node(&self) -> &NetNs {
        &self.node
    }

    /// The node's address as pods see it, and their gateway.
    pub fn gateway(&self) -> Ipv4Addr {
        gateway(self.addresses.pods)
    }

    /// The pod's network, made at the first call.
    pub async fn add_pod(&self, uid: &str) -> Result<PodNetwork, NetworkError> {
        let ip = {
            let mut pods = self.lock();
            if let Some(pod) = pods.by_uid.get(uid) {
                return Ok(pod.clone());
            }
            pods.pool.take().ok_or_else(|| NetworkError::NoAddress {
                cluster: self.addresses.name.clone(),
            })?
        };
        match self.make_pod(ip).await {
            Ok(netns) => {
                let pod = PodNetwork { netns, ip };
                let previous = self.lock().by_uid.insert(uid.to_owned(), pod.clone());
                // Two calls for one pod at once: the later one wins, the earlier one's address is returned.
                if let Some(previous) = previous {
                    self.unmake_pod(previous.ip).await;
                }
                Ok(pod)
            }
            Err(error) => {
                self.unmake_pod(ip).await;
                Err(error)
            }
        }
    }

    /// Takes the pod off the network. Its namespace ends with its last process.
    pub async fn remove_pod(&self, uid: &str) {
        let pod = self.lock().by_uid.remove(uid);
        if let Some(pod) = pod {
            self.unmake_pod(pod.ip).await;
        }
    }

    async fn make_pod(&self, ip: Ipv4Addr) -> Result<NetNs, NetworkError> {
        let cluster = &self.addresses.name;
        let namespace = |what| {
            move |source| NetworkError::Namespace {
                cluster: cluster.clone(),
                what,
                source,
            }
        };
        let link = |what| {
            move |source| NetworkError::Link {
                cluster: cluster.clone(),
                what,
                source,
            }
        };

        let pod = NetNs::create().map_err(namespace("making a pod's namespace"))?;
        // Containers may listen on low ports whatever their user is, as under other container runtimes.
        for (parameter, value) in [
            ("ipv6/conf/default/disable_ipv6", "1"),
            ("ipv4/ip_unprivileged_port_start", "0"),
        ] {
            optional(pod.set(parameter, value)).map_err(namespace("setting a pod's network parameters"))?;
        }
        let peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name("eth0")
            .address(mac(ip).to_vec())
            .setns_by_fd(pod.fd().as_raw_fd())
            .build();
        let pair = veth(&interface_of(ip), peer).controller(self.bridge).up().build();
        self.links
            .link()
            .add(pair)
            .execute()
            .await
            .map_err(link("adding a pod's interface"))?;

        let links = connect(&pod).map_err(namespace("opening a pod's route socket"))?;
        let eth0 = pod
            .run(|| nix::net::if_::if_nametoindex("eth0"))
            .map_err(|errno| namespace("finding a pod's interface")(errno.into()))?;
        for interface in [1, eth0] {
            up(&links, interface)
                .await
                .map_err(link("bringing up a pod's interface"))?;
        }
        address_on(&links, eth0, ip, 32)
            .await
            .map_err(link("giving a pod its address"))?;
        let route = || RouteMessageBuilder::<Ipv4Addr>::new().output_interface(eth0);
        let to_gateway = route()
            .destination_prefix(self.gateway(), 32)
            .scope(RouteScope::Link)
            .build();
        let default = route().gateway(self.gateway()).build();
        for route in [to_gateway, default] {
            links
                .route()
                .add(route)
                .execute()
                .await
                .map_err(link("adding a pod's routes"))?;
        }
        // Addresses of the link layer are known, so nobody asks for them and nobody can give a wrong answer.
        let known = [(&links, eth0, self.gateway()), (&self.links, self.bridge, ip)];
        for (links, interface, address) in known {
            let neighbour = links
                .neighbours()
                .add(interface, address.into())
                .link_layer_address(&mac(address));
            neighbour
                .replace()
                .execute()
                .await
                .map_err(link("adding a pod's neighbours"))?;
        }
        self.reach_gateway(&pod).await;
        Ok(pod)
    }

    /// Waits until packets pass. The kernel notices a new link's carrier some time after the link was made; what is
    /// sent before is lost, and TCP tries again only after a second.
    async fn reach_gateway(&self, pod: &NetNs) {
        let nobody = SocketAddr::from((self.gateway(), UNUSED_PORT));
        for _ in 0..CARRIER_LOOKS {
            if let Ok(_refused) = tokio::time::timeout(CARRIER_LOOK_EVERY, pod.connect(nobody)).await {
                return;
            }
        }
        // It will come; until then connections are slow, but not impossible.
        tracing::debug!(
            cluster = self.addresses.name,
            "a pod does not reach its gateway yet"
        );
    }

    /// Removes whatever was made for the address.
    async fn unmake_pod(&self, ip: Ipv4Addr) {
        let name = interface_of(ip);
        if let Ok(index) = self.node.run(|| nix::net::if_::if_nametoindex(name.as_str()))
            && let Err(error) = self.links.link().del(index).execute().await
        {
            tracing::warn!(cluster = self.addresses.name, interface = name, %error, "removing a pod's interface");
        }
        // Or connections to the pod would wait for ever instead of hearing that it is gone. It may not be known yet.
        let neighbour = self
            .links
            .neighbours()
            .add(self.bridge, ip.into())
            .message_mut()
            .clone();
        if let Err(error) = self.links.neighbours().del(neighbour).execute().await {
            tracing::debug!(cluster = self.addresses.name, %ip, %error, "removing a pod's neighbour entry");
        }
        self.lock().pool.give_back(ip);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Pods> {
        // Every change under the lock is a single insertion or removal, so a panicked holder leaves it whole.
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The link-layer address that goes with an address: locally administered, as container networks use to make them.
fn mac(ip: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = ip.octets();
    [0x0a, 0x58, a, b, c, d]
}

/// Interface names have at most 15 bytes; a pod's address makes a unique one.
fn interface_of(ip: Ipv4Addr) -> String {
    format!("pod{:08x}", u32::from(ip))
}

/// Not every kernel has every parameter; where it is absent its effect is absent too.
fn optional(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// A route socket in the namespace. Ends when its handles are dropped.
pub(super) fn connect(namespace: &NetNs) -> io::Result<Handle> {
    let runtime = tokio::runtime::Handle::current();
    let (connection, handle, _) = namespace.run(|| {
        let _inside = runtime.enter();
        rtnetlink::new_connection()
    })?;
    runtime.spawn(connection);
    Ok(handle)
}

pub(super) fn veth(name: &str, peer: LinkMessage) -> LinkMessageBuilder<LinkUnspec> {
    LinkMessageBuilder::<LinkUnspec>::new_with_info_kind(InfoKind::Veth)
        .name(name)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
}

pub(super) async fn up(links: &Handle, index: u32) -> Result<(), rtnetlink::Error> {
    let message = LinkUnspec::new_with_index(index).up().build();
    links.link().set(message).execute().await
}

/// Waits until the interface has a carrier.
pub(super) async fn carrier(links: &Handle, index: u32) -> Result<(), rtnetlink::Error> {
    for _ in 0..CARRIER_LOOKS {
        let mut found = links.link().get().match_index(index).execute();
        while let Some(link) = found.try_next().await? {
            if link.attributes.contains(&LinkAttribute::OperState(State::Up)) {
                return Ok(());
            }
        }
        tokio::time::sleep(CARRIER_LOOK_EVERY).await;
    }
    // It will come; until then connections are slow, but not impossible.
    tracing::debug!(index, "an interface has no carrier yet");
    Ok(())
}

async fn address_on(
    links: &Handle,
    index: u32,
    address: Ipv4Addr,
    prefix: u8,
) -> Result<(), rtnetlink::Error> {
    links.address().add(index, address.into(), prefix).execute().await
}

/// What may cross the node, whichever Services there are.
fn filter(addresses: &ClusterAddresses) -> Table {
    let one = |address: Ipv4Addr| IpNet::V4(Ipv4Net::new_assert(address, 32));
    let wan = || Rule::new().when(Match::InputInterface(LEG.into()));
    let known = Match::ConnectionState(state::ESTABLISHED | state::RELATED);
    let tcp = || Match::Protocol(Protocol::Tcp);
    // After translation a packet to a service address can only be one that no Service with endpoints wanted.
    let unclaimed = || {
        let to = || Rule::new().when(Match::Destination(addresses.services.into()));
        [
            to().comment("no such service or no endpoints")
                .when(tcp())
                .then(Action::RejectWithReset),
            to().comment("no such service or no endpoints")
                .then(Action::RejectWithPortUnreachable),
        ]
    };
    let closed = addresses.external.map(|external| {
        wan()
            .comment("no such node port or no endpoints")
            .when(tcp())
            .when(Match::Destination(one(external)))
            .when(Match::DestinationPorts(vec![NODE_PORTS]))
            .then(Action::RejectWithReset)
    });
    let chain = |name, hook| Chain::base(name, Kind::Filter, hook, priority::FILTER);
    let among_pods = addresses.reachable_pods.iter().map(|(pods, _)| {
        wan()
            .comment("pods of another cluster")
            .when(Match::Source((*pods).into()))
            .when(Match::Destination(addresses.pods.into()))
            .verdict(Verdict::Accept)
    });
    let unmasked = addresses.reachable_pods.iter().map(|(pods, _)| {
        Rule::new()
            .comment("pods appear as themselves to pods")
            .when(Match::Source(addresses.pods.into()))
            .when(Match::Destination((*pods).into()))
            .verdict(Verdict::Return)
    });
    Table::new(Family::Ip, "hawser-node")
        .chain(
            chain("forward", Hook::Forward)
                .rules(unclaimed())
                .rule(
                    wan()
                        .comment("answers")
                        .when(known.clone())
                        .verdict(Verdict::Accept),
                )
                .rule(
                    wan()
                        .comment("to a load balancer address or a node port")
                        .when(Match::ConnectionStatus(status::DNAT))
                        .verdict(Verdict::Accept),
                )
                .rules(among_pods)
                .rule(wan().comment("other clusters see no pods").verdict(Verdict::Drop)),
        )
        .chain(chain("output", Hook::Output).rules(unclaimed()))
        .chain(
            chain("input", Hook::Input)
                .rule(wan().comment("answers").when(known).verdict(Verdict::Accept))
                .rule(
                    wan()
                        .when(Match::Protocol(Protocol::Icmp))
                        .verdict(Verdict::Accept),
                )
                .rule(
                    wan()
                        .comment("API server")
                        .when(tcp())
                        .when(Match::Destination(one(addresses.node)))
                        .when(Match::DestinationPorts(vec![
                            addresses.api.port()..=addresses.api.port(),
                        ]))
                        .verdict(Verdict::Accept),
                )
                .rule(
                    wan()
                        .comment("no endpoints")
                        .when(tcp())
                        .when(Match::Destination(addresses.load_balancers.into()))
                        .then(Action::RejectWithReset),
                )
                .rules(closed)
                .rule(wan().verdict(Verdict::Drop)),
        )
        .chain(
            Chain::base("postrouting", Kind::Nat, Hook::Postrouting, priority::SNAT)
                .rules(unmasked)
                .rule(
                    Rule::new()
                        .comment("pods appear as their node")
                        .when(Match::OutputInterface(LEG.into()))
                        .when(Match::Source(addresses.pods.into()))
                        .then(Action::Masquerade),
                ),
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clusters_share_pod_and_service_networks_and_split_the_segment() {
        let names = ["west".into(), "east".into()];
        let plan = plan_addresses(&names, Layout::Apart, NodePorts::Inside).expect("two fit");
        let shown: Vec<String> = plan
            .iter()
            .map(|a| {
                format!(
                    "{} {} {} {} {} {}",
                    a.name, a.pods, a.services, a.api, a.load_balancers, a.dns
                )
            })
            .collect();
        assert_eq!(
            shown,
            [
                "west 10.42.0.0/16 10.43.0.0/16 203.0.113.1:6443 203.0.113.16/28 10.43.0.10",
                "east 10.42.0.0/16 10.43.0.0/16 203.0.113.33:6443 203.0.113.48/28 10.43.0.10",
            ]
        );
    }

    #[test]
    fn nodes_have_an_external_address_only_if_their_ports_are_for_everybody() {
        let names = ["west".into(), "east".into()];
        let external = |node_ports| {
            let plan = plan_addresses(&names, Layout::Apart, node_ports).expect("two fit");
            plan.iter()
                .map(|addresses| addresses.external.map(|address| address.to_string()))
                .collect::<Vec<_>>()
        };
        assert_eq!(external(NodePorts::Inside), [None, None]);
        let addresses = ["203.0.113.2", "203.0.113.34"];
        assert_eq!(
            external(NodePorts::Everywhere),
            addresses.map(|address| Some(address.to_owned()))
        );
    }

    #[test]
    fn a_sandbox_of_too_many_clusters_is_refused() {
        let names: Vec<String> = (0..9).map(|number| format!("c{number}")).collect();
        for layout in [Layout::Apart, Layout::Flat] {
            let plan = |names: &[String]| plan_addresses(names, layout, NodePorts::Everywhere);
            let error = plan(&names).expect_err("the segment holds eight");
            assert_eq!(error.to_string(), "a sandbox has at most 8 clusters");
            assert_eq!(plan(&names[..8]).map(|plan| plan.len()).ok(), Some(8));
        }
    }

    #[test]
    fn in_a_flat_layout_every_cluster_knows_where_the_others_pods_are() {
        let names = ["west".into(), "east".into()];
        let plan = plan_addresses(&names, Layout::Flat, NodePorts::Inside).expect("two fit");
        let shown: Vec<String> = plan
            .iter()
            .map(|a| format!("{} {} {} {:?}", a.name, a.pods, a.services, a.reachable_pods))
            .collect();
        assert_eq!(
            shown,
            [
                "west 10.42.0.0/19 10.43.0.0/16 [(10.42.32.0/19, 203.0.113.33)]",
                "east 10.42.32.0/19 10.43.0.0/16 [(10.42.0.0/19, 203.0.113.1)]",
            ]
        );
    }
}
