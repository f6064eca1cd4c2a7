//! Which pod addresses are taken.
//!
//! Pure. Addresses are handed out in a circle, so that an address that was just given back is not met again at once
//! by peers which still remember its last owner.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

#[derive(Debug)]
pub(super) struct Pool {
    net: Ipv4Net,
    taken: BTreeSet<Ipv4Addr>,
    last: Ipv4Addr,
}

impl Pool {
    /// The first usable address is the gateway's and never handed out.
    pub(super) fn new(net: Ipv4Net) -> Self {
        Self {
            net,
            taken: BTreeSet::new(),
            last: gateway(net),
        }
    }

    /// The next free address; nothing when all are taken.
    pub(super) fn take(&mut self) -> Option<Ipv4Addr> {
        let (first, last) = (u32::from(gateway(self.net)) + 1, u32::from(self.net.broadcast()));
        let start = u32::from(self.last) + 1;
        let free = (start..last)
            .chain(first..start.min(last))
            .map(Ipv4Addr::from)
            .find(|address| !self.taken.contains(address))?;
        self.taken.insert(free);
        self.last = free;
        Some(free)
    }

    pub(super) fn give_back(&mut self, address: Ipv4Addr) {
        self.taken.remove(&address);
    }
}

/// The first usable address of a network.
pub(super) fn gateway(net: Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(net.network()) + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_go_round_before_one_is_used_again() {
        let mut pool = Pool::new("10.42.0.0/29".parse().expect("a network"));
        let mut next = || pool.take().map(|address| address.octets()[3]);
        assert_eq!([next(), next(), next()], [Some(2), Some(3), Some(4)]);
        pool.give_back(Ipv4Addr::new(10, 42, 0, 2));
        let mut next = || pool.take().map(|address| address.octets()[3]);
        assert_eq!(
            [next(), next(), next(), next()],
            [Some(5), Some(6), Some(2), None]
        );
    }
}
