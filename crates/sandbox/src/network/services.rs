//! Gives Services their addresses: connections to a ClusterIP, a LoadBalancer address or a node port go to a ready
//! endpoint.
//!
//! [`plan`] is pure: from a snapshot to a packet filter table. Each port of a Service is a chain; one verdict map
//! finds it by address, protocol and port, so a packet is looked up once however many Services there are. The whole
//! table is replaced in one transaction per change. Services without ready endpoints are left out: the node's own
//! rules refuse what nobody claims. Ports of the node's own address have a map of their own, in which nobody looks for
//! those who come from another cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hawser_nft::{
    Action, ApplyError, Batch, Chain, Family, Field, Hook, Key, Kind, Match, Members, Protocol, Rule, Set,
    Table, Verdict, priority, status,
};
use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::cluster::{ClusterNetwork, LEG};
use super::snapshot::Snapshot;
use crate::kubelet::ClusterAddresses;

/// A failed change is tried again after this long; nothing else would wake us.
const RETRY: Duration = Duration::from_secs(1);

/// Keeps the node's rules equal to the plan for the latest snapshot.
pub async fn run(
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    network: Arc<ClusterNetwork>,
    shutdown: CancellationToken,
) {
    let mut applied: Option<Table> = None;
    loop {
        let wanted = plan(&snapshots.borrow_and_update().clone(), network.addresses());
        let failed = applied.as_ref() != Some(&wanted) && {
            match apply(&network, &wanted) {
                Ok(()) => {
                    applied = Some(wanted);
                    false
                }
                Err(error) => {
                    let cluster = &network.addresses().name;
                    tracing::warn!(
                        cluster,
                        error = &error as &dyn std::error::Error,
                        "service addresses"
                    );
                    true
                }
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = snapshots.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(RETRY), if failed => {}
        }
    }
}

fn apply(network: &ClusterNetwork, table: &Table) -> Result<(), ApplyError> {
    network.node().run(|| Batch::new().replace(table).apply())
}

/// The table that makes the snapshot's Services reachable.
fn plan(snapshot: &Snapshot, node: &ClusterAddresses) -> Table {
    let (mut entries, mut inside) = (Vec::new(), Vec::new());
    let mut chains = Vec::new();
    let mut backends = BTreeSet::new();
    for ((namespace, name), service) in &snapshot.services {
        let slices = snapshot.slices.get(&(namespace.clone(), name.clone()));
        let slices = slices.map(Vec::as_slice).unwrap_or_default();
        let addresses = addresses_of(service);
        for port in service.spec.iter().flat_map(|spec| spec.ports.iter().flatten()) {
            let Some(protocol) = protocol_of(port) else {
                continue;
            };
            let Ok(number) = u16::try_from(port.port) else {
                continue;
            };
            let endpoints = endpoints_of(slices, port);
            if addresses.is_empty() || endpoints.is_empty() {
                continue;
            }
            let chain = format!("{namespace}/{name}/{}", port.name.as_deref().unwrap_or_default());
            // Two ports of a Service may differ in nothing but the protocol, even in name if it is one port only.
            let chain = format!(
                "{chain}/{number}-{}",
                port.protocol.as_deref().unwrap_or("TCP").to_lowercase()
            );
            let entry = |address: Ipv4Addr, number: u16| {
                let key = vec![
                    Key::Address(address.into()),
                    Key::Protocol(protocol),
                    Key::Port(number),
                ];
                (key, Verdict::Goto(chain.clone()))
            };
            entries.extend(addresses.iter().map(|address| entry(*address, number)));
            if let Some(port) = port.node_port.and_then(|port| u16::try_from(port).ok()) {
                entries.extend(node.external.map(|address| entry(address, port)));
                inside.push(entry(node.node, port));
            }
            backends.extend(endpoints.iter().map(SocketAddr::ip));
            let balance = Rule::new()
                .when(Match::Protocol(protocol))
                .then(Action::Balance(endpoints));
            chains.push(Chain::new(chain).rule(balance));
        }
    }
    // Two Services with one address and port can't both have it. The API server doesn't hand out such addresses.
    let unique = |entries: Vec<_>| -> Entries {
        let entries: BTreeMap<_, _> = entries.into_iter().rev().collect();
        entries.into_iter().collect()
    };
    table(unique(entries), unique(inside), backends, chains)
}

type Entries = Vec<(Vec<Key>, Verdict)>;

fn table(entries: Entries, inside: Entries, backends: BTreeSet<IpAddr>, chains: Vec<Chain>) -> Table {
    let fields = vec![Field::DestinationAddress, Field::Protocol, Field::DestinationPort];
    let pair = vec![Field::SourceAddress, Field::DestinationAddress];
    let look = |rule: Rule, set: &str| {
        rule.then(Action::Look {
            fields: fields.clone(),
            set: set.into(),
        })
    };
    let dnat = |name, hook, own: Rule| {
        Chain::base(name, Kind::Nat, hook, priority::DNAT)
            .rule(look(Rule::new(), "services"))
            .rule(look(own, "node-ports"))
    };
    let not_from_outside = Rule::new()
        .comment("ports of this node, not for other clusters")
        .unless(Match::InputInterface(LEG.into()));
    let verdicts = |name: &str, entries| Set {
        name: name.into(),
        fields: fields.clone(),
        members: Members::Verdicts(entries),
    };
    let same = |address: &IpAddr| vec![Key::Address(*address), Key::Address(*address)];
    let hairpin = Rule::new()
        .comment("a pod that reaches itself through a service")
        .when(Match::ConnectionStatus(status::DNAT))
        .when(Match::Member {
            fields: pair.clone(),
            set: "hairpin".into(),
        })
        .then(Action::Masquerade);
    let mut table = Table::new(Family::Ip, "hawser-services")
        .set(verdicts("services", entries))
        .set(verdicts("node-ports", inside))
        .set(Set {
            name: "hairpin".into(),
            fields: pair,
            members: Members::Keys(backends.iter().map(same).collect()),
        })
        .chain(dnat("prerouting", Hook::Prerouting, not_from_outside))
        .chain(dnat("output", Hook::Output, Rule::new()))
        .chain(Chain::base("postrouting", Kind::Nat, Hook::Postrouting, priority::SNAT).rule(hairpin));
    table.chains.extend(chains);
    table
}

/// ClusterIP and LoadBalancer addresses; none for headless Services and external names.
fn addresses_of(service: &Service) -> Vec<Ipv4Addr> {
    let cluster = service.spec.iter().filter_map(|spec| spec.cluster_ip.as_deref());
    let ingress = service
        .status
        .iter()
        .filter_map(|status| status.load_balancer.as_ref());
    let ingress = ingress.flat_map(|balancer| balancer.ingress.iter().flatten());
    cluster
        .chain(ingress.filter_map(|ingress| ingress.ip.as_deref()))
        .filter_map(|ip| ip.parse().ok())
        .collect()
}

fn protocol_of(port: &ServicePort) -> Option<Protocol> {
    match port.protocol.as_deref() {
        None | Some("TCP") => Some(Protocol::Tcp),
        Some("UDP") => Some(Protocol::Udp),
        Some("SCTP") => Some(Protocol::Sctp),
        Some(_) => None,
    }
}

/// The ready endpoints of a Service's port; if none is ready, those that still serve while they terminate.
fn endpoints_of(slices: &[Arc<EndpointSlice>], port: &ServicePort) -> Vec<SocketAddr> {
    let mut ready = BTreeSet::new();
    let mut serving = BTreeSet::new();
    for slice in slices.iter().filter(|slice| slice.address_type == "IPv4") {
        // A slice's port belongs to the Service's port of the same name; no name and an empty one are the same.
        let wanted = port.name.as_deref().unwrap_or_default();
        let number = slice
            .ports
            .iter()
            .flatten()
            .find(|port| port.name.as_deref().unwrap_or_default() == wanted);
        let Some(number) = number
            .and_then(|port| port.port)
            .and_then(|port| u16::try_from(port).ok())
        else {
            continue;
        };
        for endpoint in &slice.endpoints {
            let conditions = endpoint.conditions.clone().unwrap_or_default();
            let addresses = endpoint
                .addresses
                .iter()
                .filter_map(|address| address.parse::<Ipv4Addr>().ok());
            let addresses = addresses.map(|address| SocketAddr::from((address, number)));
            if conditions.ready.unwrap_or(true) {
                ready.extend(addresses);
            } else if conditions.serving.unwrap_or(false) && conditions.terminating.unwrap_or(false) {
                serving.extend(addresses);
            }
        }
    }
    if ready.is_empty() { serving } else { ready }
        .into_iter()
        .collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::network::{Layout, NodePorts, plan_addresses};

    pub(crate) fn snapshot(objects: &str) -> Snapshot {
        let (mut services, mut slices) = (Vec::new(), Vec::new());
        for document in objects.split("---\n").filter(|text| !text.trim().is_empty()) {
            let value: serde_json::Value = serde_saphyr::from_str(document).expect("a test's own YAML");
            match value["kind"].as_str() {
                Some("Service") => {
                    services.push(Arc::new(
                        serde_json::from_value(value).expect("a test's own Service"),
                    ));
                }
                _ => slices.push(Arc::new(
                    serde_json::from_value(value).expect("a test's own EndpointSlice"),
                )),
            }
        }
        Snapshot::new(services, slices)
    }

    fn west(node_ports: NodePorts) -> ClusterAddresses {
        plan_addresses(&["west".into()], Layout::Apart, node_ports)
            .expect("one fits")
            .remove(0)
    }

    fn shown_inside(objects: &str) -> Vec<String> {
        shown(&plan(&snapshot(objects), &west(NodePorts::Inside)))
    }

    /// Entries of the verdict maps, then balances, as text.
    fn shown(table: &Table) -> Vec<String> {
        let mut lines = Vec::new();
        for set in &table.sets {
            if let Members::Verdicts(entries) = &set.members {
                lines.extend(
                    entries
                        .iter()
                        .map(|(key, verdict)| format!("{key:?} {verdict:?}")),
                );
            }
        }
        for chain in table.chains.iter().filter(|chain| chain.base.is_none()) {
            lines.push(format!("{}: {:?}", chain.name, chain.rules));
        }
        lines
    }

    const WEB: &str = "
kind: Service
metadata: {namespace: default, name: web}
spec: {clusterIP: 10.43.0.7, ports: [{port: 80, targetPort: 8080}]}
status: {loadBalancer: {ingress: [{ip: 203.0.113.16}]}}
---
kind: EndpointSlice
metadata: {namespace: default, name: web-x, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: '', port: 8080}]
endpoints:
- {addresses: [10.42.0.2], conditions: {ready: true}}
- {addresses: [10.42.0.3], conditions: {ready: false, serving: true, terminating: true}}
";

    #[test]
    fn every_address_of_a_service_leads_to_its_ready_endpoints() {
        let lines = shown_inside(WEB);
        assert_eq!(
            lines,
            [
                "[Address(10.43.0.7), Protocol(Tcp), Port(80)] Goto(\"default/web//80-tcp\")",
                "[Address(203.0.113.16), Protocol(Tcp), Port(80)] Goto(\"default/web//80-tcp\")",
                "default/web//80-tcp: [Rule { comment: None, parts: [When(Protocol(Tcp)), \
                 Then(Balance([10.42.0.2:8080]))] }]",
            ]
        );
    }

    #[test]
    fn endpoints_that_terminate_serve_when_no_other_is_ready() {
        let lines = shown_inside(&WEB.replace("{ready: true}", "{ready: false}"));
        assert!(lines[2].contains("Balance([10.42.0.3:8080])"), "{lines:?}");
    }

    #[test]
    fn services_without_address_or_endpoints_claim_nothing() {
        let headless = WEB.replace("10.43.0.7", "None").replace("{ip: 203.0.113.16}", "");
        let (service, _) = WEB.split_once("---\n").expect("two documents");
        for objects in [headless.as_str(), service] {
            assert_eq!(shown_inside(objects), Vec::<String>::new());
        }
    }

    #[test]
    fn a_node_port_leads_there_by_the_nodes_own_address_and_by_the_external_one_if_there_is_one() {
        let service = WEB.replace("{port: 80,", "{port: 80, nodePort: 30080,");
        let of_set = |node_ports, name: &str| {
            let table = plan(&snapshot(&service), &west(node_ports));
            let set = table.sets.iter().find(|set| set.name == name).expect("a set");
            let Members::Verdicts(entries) = &set.members else {
                panic!("a verdict map");
            };
            let of_port = entries.iter().filter(|(key, _)| key[2] == Key::Port(30080));
            of_port
                .map(|(key, _)| format!("{:?}", key[0]))
                .collect::<Vec<_>>()
        };
        for node_ports in [NodePorts::Inside, NodePorts::Everywhere] {
            assert_eq!(of_set(node_ports, "node-ports"), ["Address(203.0.113.1)"]);
        }
        assert_eq!(of_set(NodePorts::Inside, "services"), Vec::<String>::new());
        assert_eq!(
            of_set(NodePorts::Everywhere, "services"),
            ["Address(203.0.113.2)"]
        );
    }
}
