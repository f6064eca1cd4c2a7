//! Chooses ClusterIPs, node ports and load-balancer addresses.
//!
//! Pure functions: the caller knows what is taken. The API server calls the first two while it creates a Service,
//! under its write lock, because the answer to a create already has to contain the address.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

/// The range that Kubernetes reserves for node ports.
pub const NODE_PORTS: std::ops::RangeInclusive<u16> = 30000..=32767;

/// Why an address or a port could not be allocated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AllocationError {
    #[error("provided IP is not in the valid range. The range of valid IPs is {0}")]
    AddressOutOfRange(Ipv4Net),
    #[error("provided IP is already allocated")]
    AddressTaken,
    #[error("range {0} is full")]
    AddressesExhausted(Ipv4Net),
    #[error("provided port is not in the valid range. The range of valid ports is 30000-32767")]
    PortOutOfRange,
    #[error("provided port is already allocated")]
    PortTaken,
    #[error("range 30000-32767 is full")]
    PortsExhausted,
}

/// The ClusterIP of a new Service: `wanted` if its manifest names one, otherwise a free one.
///
/// `seed` is any number that differs between Services, such as a hash of the uid; free addresses are looked for from
/// there, so that a Service that was deleted and made again doesn't inherit connections to its old address. Addresses
/// that Kubernetes hands out only on demand (the first sixteenth of the range, at most 256) stay free for manifests
/// that name their address, unless everything else is taken.
pub fn allocate_cluster_ip(
    range: Ipv4Net,
    wanted: Option<Ipv4Addr>,
    taken: &BTreeSet<Ipv4Addr>,
    seed: u64,
) -> Result<Ipv4Addr, AllocationError> {
    let first = u32::from(range.network()) + 1;
    let end = u32::from(range.broadcast());
    if let Some(wanted) = wanted {
        return match u32::from(wanted) {
            address if address < first || address >= end => Err(AllocationError::AddressOutOfRange(range)),
            _ if taken.contains(&wanted) => Err(AllocationError::AddressTaken),
            _ => Ok(wanted),
        };
    }
    let size = u64::from(end.saturating_sub(first));
    let reserved = (size / 16).min(256);
    let probe = |offset: u64, count: u64| {
        (0..count)
            .map(move |step| offset + seed.wrapping_add(step) % count)
            .find_map(|index| {
                let address = Ipv4Addr::from(first + u32::try_from(index).ok()?);
                (!taken.contains(&address)).then_some(address)
            })
    };
    probe(reserved, size - reserved)
        .or_else(|| probe(0, reserved))
        .ok_or(AllocationError::AddressesExhausted(range))
}

/// A node port: `wanted` if the manifest names one, otherwise a free one, looked for from `seed`.
pub fn allocate_node_port(
    wanted: Option<u16>,
    taken: &BTreeSet<u16>,
    seed: u64,
) -> Result<u16, AllocationError> {
    if let Some(wanted) = wanted {
        return match wanted {
            port if !NODE_PORTS.contains(&port) => Err(AllocationError::PortOutOfRange),
            port if taken.contains(&port) => Err(AllocationError::PortTaken),
            port => Ok(port),
        };
    }
    let skip = usize::try_from(seed % u64::try_from(NODE_PORTS.len()).unwrap_or(1)).unwrap_or(0);
    let mut ports = NODE_PORTS.skip(skip).chain(NODE_PORTS.take(skip));
    ports
        .find(|port| !taken.contains(port))
        .ok_or(AllocationError::PortsExhausted)
}

/// The address of a Service of type LoadBalancer: the one it asks for if that is free, otherwise the lowest free one.
pub fn allocate_load_balancer(
    range: Ipv4Net,
    wanted: Option<Ipv4Addr>,
    taken: &BTreeSet<Ipv4Addr>,
) -> Option<Ipv4Addr> {
    match wanted {
        Some(wanted) => Some(wanted).filter(|wanted| range.contains(wanted) && !taken.contains(wanted)),
        None => range.hosts().find(|address| !taken.contains(address)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    fn taken(addresses: &[&str]) -> BTreeSet<Ipv4Addr> {
        addresses.iter().map(|address| address.parse().unwrap()).collect()
    }

    #[test]
    fn a_free_cluster_ip_is_looked_for_from_the_seed_outside_the_reserved_band() {
        let services = range("10.43.0.0/16");
        for (seed, taken_addresses, expected) in [
            (0, &[][..], "10.43.1.1"),
            (1, &[], "10.43.1.2"),
            (1, &["10.43.1.2"], "10.43.1.3"),
            (65277, &["10.43.255.254"], "10.43.1.1"),
        ] {
            let allocated = allocate_cluster_ip(services, None, &taken(taken_addresses), seed);
            assert_eq!(allocated, Ok(expected.parse().unwrap()), "seed {seed}");
        }
    }

    #[test]
    fn every_host_address_is_used_before_a_range_is_full() {
        let small = range("10.0.0.0/28");
        let mut used = BTreeSet::new();
        for seed in 0..14 {
            used.insert(allocate_cluster_ip(small, None, &used, seed * 7).unwrap());
        }
        assert_eq!(used.len(), 14);
        assert_eq!(
            allocate_cluster_ip(small, None, &used, 3),
            Err(AllocationError::AddressesExhausted(small))
        );
    }

    #[test]
    fn a_named_cluster_ip_must_be_in_range_and_free() {
        let services = range("10.43.0.0/16");
        for (wanted, expected) in [
            ("10.43.0.10", Ok("10.43.0.10".parse().unwrap())),
            ("10.43.0.1", Err(AllocationError::AddressTaken)),
            ("10.43.0.0", Err(AllocationError::AddressOutOfRange(services))),
            ("10.43.255.255", Err(AllocationError::AddressOutOfRange(services))),
            ("10.44.0.1", Err(AllocationError::AddressOutOfRange(services))),
        ] {
            let wanted = Some(wanted.parse().unwrap());
            assert_eq!(
                allocate_cluster_ip(services, wanted, &taken(&["10.43.0.1"]), 0),
                expected
            );
        }
    }

    #[test]
    fn node_ports_wrap_around_and_are_unique() {
        let used = BTreeSet::from([32767]);
        assert_eq!(allocate_node_port(None, &used, 2767), Ok(30000));
        assert_eq!(
            allocate_node_port(Some(32767), &used, 0),
            Err(AllocationError::PortTaken)
        );
        assert_eq!(
            allocate_node_port(Some(80), &used, 0),
            Err(AllocationError::PortOutOfRange)
        );
        assert_eq!(allocate_node_port(Some(30080), &used, 0), Ok(30080));
        assert_eq!(
            allocate_node_port(None, &NODE_PORTS.collect(), 5),
            Err(AllocationError::PortsExhausted)
        );
    }

    #[test]
    fn load_balancers_get_the_address_they_ask_for_or_the_lowest_free_one() {
        let pool = range("172.31.1.64/29");
        let used = taken(&["172.31.1.65"]);
        assert_eq!(
            allocate_load_balancer(pool, None, &used),
            "172.31.1.66".parse().ok()
        );
        assert_eq!(
            allocate_load_balancer(pool, "172.31.1.70".parse().ok(), &used),
            "172.31.1.70".parse().ok()
        );
        assert_eq!(
            allocate_load_balancer(pool, "172.31.1.65".parse().ok(), &used),
            None
        );
        assert_eq!(allocate_load_balancer(pool, "10.0.0.1".parse().ok(), &used), None);
    }
}
