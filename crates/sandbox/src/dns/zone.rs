//! What a name means in a cluster.
//!
//! Pure, after the Kubernetes DNS specification 1.1: Services have an address or, headless, their endpoints'; named
//! ports have SRV records; endpoints have names; external names are aliases. Whatever lies in the domain and is
//! nothing of that does not exist, and the SOA says for how long that may be remembered.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, CNAME, SOA, SRV};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use std::sync::Arc;

use crate::network::snapshot::Snapshot;

/// As short as CoreDNS's default: addresses of pods change, and asking again is cheap.
const TTL: u32 = 5;
const NEGATIVE_TTL: u32 = 5;
/// An alias may point to an alias; nobody needs longer chains.
const ALIASES_MAX: usize = 8;

/// Everything that answers depend on.
#[derive(Clone, Copy, Debug)]
pub struct Zone<'a> {
    pub snapshot: &'a Snapshot,
    /// Without a dot at the end, for example `cluster.local`.
    pub domain: &'a str,
    /// Names outside the domain, in lower case and without a dot at the end.
    pub hosts: &'a BTreeMap<String, Ipv4Addr>,
}

/// What there is under a name.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    /// Records of one name. Empty: the name exists, but has nothing of any type that we know.
    Data {
        addresses: BTreeSet<Ipv4Addr>,
        ports: Vec<PortTarget>,
    },
    Alias(String),
    Nothing,
}

/// A named port and the name that serves it.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct PortTarget {
    target: String,
    port: u16,
    address: Option<Ipv4Addr>,
}

/// The response to a query; nothing to what is not a query.
pub fn answer(zone: &Zone<'_>, query: &Message) -> Option<Message> {
    if query.metadata.message_type != MessageType::Query {
        return None;
    }
    let mut response = Message::response(query.metadata.id, query.metadata.op_code);
    response.metadata.recursion_desired = query.metadata.recursion_desired;
    response.metadata.recursion_available = true;
    if let Some(edns) = &query.edns {
        let mut ours = Edns::new();
        ours.set_max_payload(edns.max_payload().max(512));
        response.set_edns(ours);
    }
    response.add_queries(query.queries.iter().cloned());
    let [question] = query.queries.as_slice() else {
        response.metadata.response_code = ResponseCode::FormErr;
        return Some(response);
    };
    if query.metadata.op_code != OpCode::Query || question.query_class != DNSClass::IN {
        response.metadata.response_code = ResponseCode::NotImp;
        return Some(response);
    }
    resolve(zone, question, &mut response);
    Some(response)
}

fn resolve(zone: &Zone<'_>, question: &Query, response: &mut Message) {
    let mut owner = question.name.clone();
    response.metadata.authoritative = true;
    for _ in 0..ALIASES_MAX {
        match find(zone, &text(&owner)) {
            Found::Alias(target) => {
                let Ok(target) = Name::from_ascii(format!("{target}.")) else {
                    break;
                };
                let alias = RData::CNAME(CNAME(target.clone()));
                response.add_answer(Record::from_rdata(owner, TTL, alias));
                if question.query_type == RecordType::CNAME {
                    return;
                }
                owner = target;
            }
            Found::Data { addresses, ports } => {
                add_records(question.query_type, &owner, &addresses, &ports, response);
                if response.answers.is_empty() {
                    response.add_authority(start_of_authority(zone));
                }
                return;
            }
            Found::Nothing => {
                // An alias to a name that only the world outside knows is answered by itself.
                if response.answers.is_empty() {
                    response.metadata.response_code = ResponseCode::NXDomain;
                    response.add_authority(start_of_authority(zone));
                }
                return;
            }
        }
    }
    response.metadata.response_code = ResponseCode::ServFail;
}

fn add_records(
    wanted: RecordType,
    owner: &Name,
    addresses: &BTreeSet<Ipv4Addr>,
    ports: &[PortTarget],
    response: &mut Message,
) {
    let any = wanted == RecordType::ANY;
    if any || wanted == RecordType::A {
        for address in addresses {
            response.add_answer(Record::from_rdata(owner.clone(), TTL, RData::A(A(*address))));
        }
    }
    if any || wanted == RecordType::SRV {
        let weight = u16::try_from(100 / ports.len().max(1)).unwrap_or(1).max(1);
        for port in ports {
            let Ok(target) = Name::from_ascii(format!("{}.", port.target)) else {
                continue;
            };
            let record = RData::SRV(SRV::new(0, weight, port.port, target.clone()));
            response.add_answer(Record::from_rdata(owner.clone(), TTL, record));
            if let Some(address) = port.address {
                response.add_additional(Record::from_rdata(target, TTL, RData::A(A(address))));
            }
        }
    }
}

fn start_of_authority(zone: &Zone<'_>) -> Record {
    let name = |text: String| Name::from_ascii(text).unwrap_or_else(|_| Name::root());
    let domain = name(format!("{}.", zone.domain));
    let (primary, contact) = (
        name(format!("ns.dns.{}.", zone.domain)),
        name(format!("hostmaster.{}.", zone.domain)),
    );
    let data = SOA::new(primary, contact, 1, 7200, 1800, 86400, NEGATIVE_TTL);
    Record::from_rdata(domain, NEGATIVE_TTL, RData::SOA(data))
}

/// A name as we compare it: lower case, no dot at the end.
fn text(name: &Name) -> String {
    let mut text = name.to_ascii().to_lowercase();
    if text.ends_with('.') {
        text.pop();
    }
    text
}

fn find(zone: &Zone<'_>, name: &str) -> Found {
    if let Some(address) = zone.hosts.get(name) {
        return addresses([*address]);
    }
    if name == zone.domain {
        return exists();
    }
    let Some(inside) = name
        .strip_suffix(zone.domain)
        .and_then(|rest| rest.strip_suffix('.'))
    else {
        return Found::Nothing;
    };
    let mut labels: Vec<&str> = inside.split('.').collect();
    labels.reverse();
    match labels.as_slice() {
        ["dns-version"] => exists(),
        ["svc", namespace, rest @ ..] => in_services(zone, namespace, rest),
        ["pod", namespace, address] => pod(zone, namespace, address),
        ["svc" | "pod"] => exists(),
        ["pod", namespace] if has_namespace(zone, namespace) => exists(),
        _ => Found::Nothing,
    }
}

/// Labels below a namespace, outermost first.
fn in_services(zone: &Zone<'_>, namespace: &str, labels: &[&str]) -> Found {
    let [service, below @ ..] = labels else {
        return if has_namespace(zone, namespace) {
            exists()
        } else {
            Found::Nothing
        };
    };
    let key = (namespace.to_owned(), (*service).to_owned());
    let Some(object) = zone.snapshot.services.get(&key) else {
        return Found::Nothing;
    };
    let slices = zone
        .snapshot
        .slices
        .get(&key)
        .map(Vec::as_slice)
        .unwrap_or_default();
    let view = View {
        object,
        slices,
        name: format!("{service}.{namespace}.svc.{}", zone.domain),
    };
    match below {
        [] => view.itself(),
        [protocol, port] if protocol.starts_with('_') && port.starts_with('_') => view.port(protocol, port),
        [protocol] if protocol.starts_with('_') => exists(),
        [host] => view.host(host),
        _ => Found::Nothing,
    }
}

/// `10-42-0-5.namespace.pod`: an address spelled as a name. Whether such a pod exists is not looked up.
fn pod(zone: &Zone<'_>, namespace: &str, address: &str) -> Found {
    match address.replace('-', ".").parse() {
        Ok(address) if has_namespace(zone, namespace) => addresses([address]),
        _ => Found::Nothing,
    }
}

/// Namespaces are known by their Services: an empty one has no names anyway.
fn has_namespace(zone: &Zone<'_>, namespace: &str) -> bool {
    let first = (namespace.to_owned(), String::new());
    zone.snapshot
        .services
        .range(first..)
        .next()
        .is_some_and(|((found, _), _)| found == namespace)
}

fn exists() -> Found {
    addresses([])
}

fn addresses(addresses: impl IntoIterator<Item = Ipv4Addr>) -> Found {
    Found::Data {
        addresses: addresses.into_iter().collect(),
        ports: Vec::new(),
    }
}

struct View<'a> {
    object: &'a Service,
    slices: &'a [Arc<EndpointSlice>],
    name: String,
}

impl View<'_> {
    fn itself(&self) -> Found {
        let spec = self.object.spec.clone().unwrap_or_default();
        if spec.type_.as_deref() == Some("ExternalName") {
            return match spec.external_name {
                Some(name) => Found::Alias(name.trim_end_matches('.').to_lowercase()),
                None => Found::Nothing,
            };
        }
        if let Some(address) = self.cluster_address() {
            return addresses([address]);
        }
        let endpoints: BTreeSet<_> = self
            .endpoints()
            .filter_map(|(_, endpoint)| address_of(endpoint))
            .collect();
        // As in CoreDNS, a headless Service without endpoints does not exist.
        if endpoints.is_empty() {
            Found::Nothing
        } else {
            addresses(endpoints)
        }
    }

    /// `_port._protocol`: which port, and on which names.
    fn port(&self, protocol: &str, port: &str) -> Found {
        let (protocol, port) = (protocol.trim_start_matches('_'), port.trim_start_matches('_'));
        let fits = |name: Option<&str>, kind: Option<&str>| {
            name == Some(port) && kind.unwrap_or("TCP").eq_ignore_ascii_case(protocol)
        };
        let mut targets = BTreeSet::new();
        if let Some(address) = self.cluster_address() {
            let ports = self
                .object
                .spec
                .iter()
                .flat_map(|spec| spec.ports.iter().flatten());
            for found in ports.filter(|found| fits(found.name.as_deref(), found.protocol.as_deref())) {
                let Ok(port) = u16::try_from(found.port) else {
                    continue;
                };
                targets.insert(PortTarget {
                    target: self.name.clone(),
                    port,
                    address: Some(address),
                });
            }
        } else {
            for (slice, endpoint) in self.endpoints() {
                let ports = slice.ports.iter().flatten();
                let found = ports.filter(|found| fits(found.name.as_deref(), found.protocol.as_deref()));
                for number in found
                    .filter_map(|found| found.port)
                    .filter_map(|port| u16::try_from(port).ok())
                {
                    let Some(address) = address_of(endpoint) else {
                        continue;
                    };
                    let target = format!("{}.{}", host_of(endpoint, address), self.name);
                    targets.insert(PortTarget {
                        target,
                        port: number,
                        address: Some(address),
                    });
                }
            }
        }
        if targets.is_empty() {
            return Found::Nothing;
        }
        Found::Data {
            addresses: BTreeSet::new(),
            ports: targets.into_iter().collect(),
        }
    }

    /// One endpoint by its host name, or by its address with dashes.
    fn host(&self, host: &str) -> Found {
        if self.cluster_address().is_some() {
            return Found::Nothing;
        }
        let found: BTreeSet<_> = self
            .endpoints()
            .filter_map(|(_, endpoint)| address_of(endpoint).map(|address| (endpoint, address)))
            .filter(|(endpoint, address)| host_of(endpoint, *address) == host)
            .map(|(_, address)| address)
            .collect();
        if found.is_empty() {
            Found::Nothing
        } else {
            addresses(found)
        }
    }

    fn cluster_address(&self) -> Option<Ipv4Addr> {
        self.object
            .spec
            .as_ref()
            .and_then(|spec| spec.cluster_ip.as_deref())
            .and_then(|ip| ip.parse().ok())
    }

    /// Ready endpoints, or all of them where the Service wants that.
    fn endpoints(&self) -> impl Iterator<Item = (&EndpointSlice, &Endpoint)> {
        let all = self
            .object
            .spec
            .as_ref()
            .and_then(|spec| spec.publish_not_ready_addresses)
            .unwrap_or(false);
        let ready = move |endpoint: &Endpoint| {
            all || endpoint
                .conditions
                .as_ref()
                .and_then(|conditions| conditions.ready)
                .unwrap_or(true)
        };
        let slices = self.slices.iter().map(Arc::as_ref);
        slices
            .flat_map(|slice| slice.endpoints.iter().map(move |endpoint| (slice, endpoint)))
            .filter(move |(_, endpoint)| ready(endpoint))
    }
}

fn address_of(endpoint: &Endpoint) -> Option<Ipv4Addr> {
    endpoint
        .addresses
        .first()
        .and_then(|address| address.parse().ok())
}

fn host_of(endpoint: &Endpoint, address: Ipv4Addr) -> String {
    endpoint
        .hostname
        .clone()
        .unwrap_or_else(|| address.to_string().replace('.', "-"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::services::tests::snapshot;

    const CLUSTER: &str = "
kind: Service
metadata: {namespace: default, name: web}
spec: {clusterIP: 10.43.0.7, ports: [{name: http, port: 80}]}
---
kind: Service
metadata: {namespace: default, name: db}
spec: {clusterIP: None, ports: [{name: sql, port: 5432}]}
---
kind: EndpointSlice
metadata: {namespace: default, name: db-x, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
ports: [{name: sql, port: 5432, protocol: TCP}]
endpoints:
- {addresses: [10.42.0.2], hostname: db-0}
- {addresses: [10.42.0.3]}
- {addresses: [10.42.0.4], conditions: {ready: false}}
---
kind: Service
metadata: {namespace: other, name: alias}
spec: {type: ExternalName, externalName: web.default.svc.cluster.local}
---
kind: Service
metadata: {namespace: other, name: away}
spec: {type: ExternalName, externalName: example.com}
---
kind: Service
metadata: {namespace: other, name: circle}
spec: {type: ExternalName, externalName: circle.other.svc.cluster.local}
";

    /// Response code and records as text.
    fn ask(name: &str, kind: RecordType) -> String {
        let snapshot = snapshot(CLUSTER);
        let hosts = BTreeMap::from([("gateway.east.test".to_owned(), Ipv4Addr::new(203, 0, 113, 48))]);
        let zone = Zone {
            snapshot: &snapshot,
            domain: "cluster.local",
            hosts: &hosts,
        };
        let mut query = Message::new(7, MessageType::Query, OpCode::Query);
        query.add_query(Query::query(
            Name::from_ascii(name).expect("a test's own name"),
            kind,
        ));
        let response = answer(&zone, &query).expect("a query is answered");
        let records = response
            .answers
            .iter()
            .map(|record| format!("{}={}", text(&record.name), record.data));
        let records: Vec<String> = records.collect();
        let authority = if response.authorities.is_empty() {
            ""
        } else {
            " SOA"
        };
        format!(
            "{:?} [{}]{authority}",
            response.metadata.response_code,
            records.join(", ")
        )
    }

    #[test]
    fn names_of_services_pods_and_hosts_have_addresses() {
        for (name, expected) in [
            (
                "web.default.svc.cluster.local.",
                "web.default.svc.cluster.local=10.43.0.7",
            ),
            (
                "WEB.Default.svc.cluster.local.",
                "web.default.svc.cluster.local=10.43.0.7",
            ),
            (
                "db.default.svc.cluster.local.",
                "db.default.svc.cluster.local=10.42.0.2, db.default.svc.cluster.local=10.42.0.3",
            ),
            (
                "db-0.db.default.svc.cluster.local.",
                "db-0.db.default.svc.cluster.local=10.42.0.2",
            ),
            (
                "10-42-0-3.db.default.svc.cluster.local.",
                "10-42-0-3.db.default.svc.cluster.local=10.42.0.3",
            ),
            (
                "10-42-0-9.default.pod.cluster.local.",
                "10-42-0-9.default.pod.cluster.local=10.42.0.9",
            ),
            ("gateway.east.test.", "gateway.east.test=203.0.113.48"),
            (
                "alias.other.svc.cluster.local.",
                "alias.other.svc.cluster.local=web.default.svc.cluster.local., \
                 web.default.svc.cluster.local=10.43.0.7",
            ),
            (
                "away.other.svc.cluster.local.",
                "away.other.svc.cluster.local=example.com.",
            ),
        ] {
            assert_eq!(
                ask(name, RecordType::A),
                format!("NoError [{expected}]"),
                "{name}"
            );
        }
    }

    #[test]
    fn named_ports_have_service_records() {
        assert_eq!(
            ask("_http._tcp.web.default.svc.cluster.local.", RecordType::SRV),
            "NoError [_http._tcp.web.default.svc.cluster.local=0 100 80 web.default.svc.cluster.local.]"
        );
        assert_eq!(
            ask("_sql._tcp.db.default.svc.cluster.local.", RecordType::SRV),
            "NoError [_sql._tcp.db.default.svc.cluster.local=0 50 5432 10-42-0-3.db.default.svc.cluster.local., \
             _sql._tcp.db.default.svc.cluster.local=0 50 5432 db-0.db.default.svc.cluster.local.]"
        );
    }

    #[test]
    fn a_name_without_records_of_the_type_exists_but_is_empty() {
        for (name, kind) in [
            ("web.default.svc.cluster.local.", RecordType::AAAA),
            ("default.svc.cluster.local.", RecordType::A),
            ("cluster.local.", RecordType::A),
        ] {
            assert_eq!(ask(name, kind), "NoError [] SOA", "{name}");
        }
    }

    #[test]
    fn what_does_not_exist_is_denied() {
        for name in [
            "gone.default.svc.cluster.local.",
            "web.nowhere.svc.cluster.local.",
            // How a search list tries an outside name, and the name itself.
            "web.default.default.svc.cluster.local.",
            "example.com.",
            "10-42-0-4.db.default.svc.cluster.local.",
            "10-42-0-9.nowhere.pod.cluster.local.",
            "notcluster.local.",
        ] {
            assert_eq!(ask(name, RecordType::A), "NXDomain [] SOA", "{name}");
        }
    }

    #[test]
    fn aliases_in_a_circle_end() {
        assert!(ask("circle.other.svc.cluster.local.", RecordType::A).starts_with("ServFail"));
    }
}
