//! From the vocabulary of [`crate::table`] to nf_tables expressions and set elements.
//!
//! Pure. Each match loads something into a register and compares it; each action is one or a few expressions. What
//! needs a set of its own (port lists, the endpoints of a balance) is handed back as an anonymous [`SetSpec`], which
//! the batch must write before the rule. Attribute numbers are those of linux/netfilter/nf_tables.h.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use ipnet::IpNet;

use crate::attribute::{Attributes, Messages};
use crate::table::{Action, Family, Field, Key, Match, Members, Part, Rule, Set, Verdict};

const IPV4: u32 = libc::NFPROTO_IPV4 as u32;
const IPV6: u32 = libc::NFPROTO_IPV6 as u32;

/// The four-byte registers start here; the kernel has sixteen of them.
const FIRST: u32 = libc::NFT_REG32_00 as u32;
/// Second value of an action that needs two, clear of an IPv6 address in the first four registers.
const SECOND: u32 = FIRST + 4;

const EQUAL: u32 = libc::NFT_CMP_EQ as u32;
const UNEQUAL: u32 = libc::NFT_CMP_NEQ as u32;

// Numbers of nft(8)'s data types. The kernel stores them for whoever lists the ruleset.
const TYPE_INTEGER: u32 = 4;
const TYPE_IPV4: u32 = 7;
const TYPE_IPV6: u32 = 8;
const TYPE_PROTOCOL: u32 = 12;
const TYPE_PORT: u32 = 13;
const TYPE_VERDICT: u32 = 0xffff_ff00;
const TYPE_BITS: u32 = 6;

/// nft's mark for set keys in the machine's byte order; without it a list shows 16777216 for 1.
const KEY_IN_HOST_ORDER: [u8; 6] = {
    let order = 1u32.to_ne_bytes();
    [0, 4, order[0], order[1], order[2], order[3]]
};

/// Comments are at most 128 bytes with the final zero.
const COMMENT_MAX: usize = 127;

pub(crate) fn family(family: Family) -> u8 {
    match family {
        Family::Inet => 1,
        Family::Ip => 2,
        Family::Ip6 => 10,
    }
}

/// A set as the kernel wants to hear of it.
#[derive(Debug)]
pub(crate) struct SetSpec {
    pub(crate) name: String,
    pub(crate) id: u32,
    pub(crate) flags: u32,
    pub(crate) key_type: u32,
    pub(crate) key_length: u32,
    /// Data type and length of a map.
    pub(crate) data: Option<(u32, u32)>,
    pub(crate) user_data: Vec<u8>,
    pub(crate) elements: Vec<Element>,
}

#[derive(Debug)]
pub(crate) struct Element {
    key: Vec<u8>,
    flags: u32,
    data: Option<Data>,
}

#[derive(Debug)]
enum Data {
    Value(Vec<u8>),
    Verdict(Verdict),
}

impl SetSpec {
    /// A named set of a table.
    pub(crate) fn named(set: &Set, family: Family, id: u32) -> Self {
        let (flags, data, elements) = match &set.members {
            Members::Keys(keys) => {
                let elements = keys.iter().map(|key| Element {
                    key: key_bytes(key),
                    flags: 0,
                    data: None,
                });
                (0, None, elements.collect())
            }
            Members::Verdicts(pairs) => {
                let elements = pairs.iter().map(|(key, verdict)| Element {
                    key: key_bytes(key),
                    flags: 0,
                    data: Some(Data::Verdict(verdict.clone())),
                });
                (
                    libc::NFT_SET_MAP as u32,
                    Some((TYPE_VERDICT, 0)),
                    elements.collect(),
                )
            }
        };
        let (key_type, key_length) = key_type(&set.fields, family);
        Self {
            name: set.name.clone(),
            id,
            flags,
            key_type,
            key_length,
            data,
            user_data: Vec::new(),
            elements,
        }
    }

    fn ports(id: u32, ranges: &[RangeInclusive<u16>]) -> Self {
        let mut elements = Vec::new();
        for (first, end) in merged(ranges) {
            elements.push(Element {
                key: first.to_be_bytes().to_vec(),
                flags: 0,
                data: None,
            });
            // The end is the first port outside. A range up to the last port has none.
            if let Some(end) = end {
                let flags = libc::NFT_SET_ELEM_INTERVAL_END as u32;
                elements.push(Element {
                    key: end.to_be_bytes().to_vec(),
                    flags,
                    data: None,
                });
            }
        }
        Self {
            name: "__set%d".into(),
            id,
            flags: (libc::NFT_SET_ANONYMOUS | libc::NFT_SET_CONSTANT | libc::NFT_SET_INTERVAL) as u32,
            key_type: TYPE_PORT,
            key_length: 2,
            data: None,
            user_data: Vec::new(),
            elements,
        }
    }

    /// Maps 0, 1, 2... to addresses with ports.
    fn endpoints(id: u32, endpoints: &[SocketAddr]) -> Self {
        let v6 = endpoints.first().is_some_and(SocketAddr::is_ipv6);
        let (address, length) = if v6 { (TYPE_IPV6, 16) } else { (TYPE_IPV4, 4) };
        let elements = (0u32..).zip(endpoints).map(|(index, endpoint)| {
            let value = key_bytes(&[Key::Address(endpoint.ip()), Key::Port(endpoint.port())]);
            Element {
                key: index.to_ne_bytes().to_vec(),
                flags: 0,
                data: Some(Data::Value(value)),
            }
        });
        Self {
            name: "__map%d".into(),
            id,
            flags: (libc::NFT_SET_ANONYMOUS | libc::NFT_SET_CONSTANT | libc::NFT_SET_MAP) as u32,
            key_type: TYPE_INTEGER,
            key_length: 4,
            data: Some((address << TYPE_BITS | TYPE_PORT, length + 4)),
            user_data: KEY_IN_HOST_ORDER.to_vec(),
            elements: elements.collect(),
        }
    }
}

/// Sorted, with overlapping and adjacent ranges joined; as first port and first port after.
fn merged(ranges: &[RangeInclusive<u16>]) -> Vec<(u16, Option<u16>)> {
    let mut sorted: Vec<(u32, u32)> = ranges
        .iter()
        .filter(|range| !range.is_empty())
        .map(|range| (u32::from(*range.start()), u32::from(*range.end()) + 1))
        .collect();
    sorted.sort_unstable();
    let mut joined: Vec<(u32, u32)> = Vec::new();
    for (first, end) in sorted {
        match joined.last_mut() {
            Some(last) if first <= last.1 => last.1 = last.1.max(end),
            _ => joined.push((first, end)),
        }
    }
    joined
        .into_iter()
        .map(|(first, end)| {
            (
                u16::try_from(first).expect("came from a port"),
                u16::try_from(end).ok(),
            )
        })
        .collect()
}

/// Components one after the other, each padded to whole registers.
fn key_bytes(key: &[Key]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in key {
        match part {
            Key::Address(IpAddr::V4(address)) => bytes.extend(address.octets()),
            Key::Address(IpAddr::V6(address)) => bytes.extend(address.octets()),
            Key::Protocol(protocol) => bytes.push(protocol.number()),
            Key::Port(port) => bytes.extend(port.to_be_bytes()),
        }
        if key.len() > 1 {
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
    }
    bytes
}

fn key_type(fields: &[Field], family: Family) -> (u32, u32) {
    let field = |field: &Field| match field {
        Field::SourceAddress | Field::DestinationAddress if family == Family::Ip6 => (TYPE_IPV6, 16),
        Field::SourceAddress | Field::DestinationAddress => (TYPE_IPV4, 4),
        Field::Protocol => (TYPE_PROTOCOL, 1),
        Field::DestinationPort => (TYPE_PORT, 2),
    };
    if let [only] = fields {
        return field(only);
    }
    fields
        .iter()
        .map(field)
        .fold((0, 0), |(kind, length), (next, size)| {
            (kind << TYPE_BITS | next, length + u32::next_multiple_of(size, 4))
        })
}

pub(crate) fn verdict(attributes: &mut Attributes<'_>, verdict: &Verdict) {
    let (code, chain) = match verdict {
        Verdict::Drop => (0, None),
        Verdict::Accept => (1, None),
        Verdict::Return => (libc::NFT_RETURN, None),
        Verdict::Jump(chain) => (libc::NFT_JUMP, Some(chain)),
        Verdict::Goto(chain) => (libc::NFT_GOTO, Some(chain)),
    };
    attributes.nest(2, |data| {
        data.number(1, code.cast_unsigned());
        if let Some(chain) = chain {
            data.string(2, chain);
        }
    });
}

pub(crate) fn element(attributes: &mut Attributes<'_>, element: &Element) {
    attributes.nest(1, |fields| {
        fields.nest(1, |key| key.put(1, &element.key));
        match &element.data {
            Some(Data::Value(value)) => fields.nest(2, |data| data.put(1, value)),
            Some(Data::Verdict(to)) => fields.nest(2, |data| verdict(data, to)),
            None => {}
        }
        if element.flags != 0 {
            fields.number(3, element.flags);
        }
    });
}

/// nft's form of a comment.
pub(crate) fn comment(text: &str) -> Vec<u8> {
    let mut end = text.len().min(COMMENT_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let length = u8::try_from(end + 1).expect("comments are cut to less than 256 bytes");
    let mut bytes = vec![0, length];
    bytes.extend_from_slice(&text.as_bytes()[..end]);
    bytes.push(0);
    bytes
}

/// The expressions of a rule as the content of one attribute, and the anonymous sets that they name.
pub(crate) fn rule(rule: &Rule, family: Family, next_set: &mut u32) -> (Vec<u8>, Vec<SetSpec>) {
    let mut bytes = Vec::new();
    let mut encoder = Encoder {
        family,
        attributes: Attributes::into(&mut bytes),
        next_set,
        sets: Vec::new(),
    };
    for part in &rule.parts {
        match part {
            Part::When(condition) => encoder.condition(condition, Sense::Is),
            Part::Unless(condition) => encoder.condition(condition, Sense::IsNot),
            Part::Then(action) => encoder.action(action),
        }
    }
    let sets = encoder.sets;
    (bytes, sets)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sense {
    Is,
    IsNot,
}

struct Encoder<'a> {
    family: Family,
    attributes: Attributes<'a>,
    next_set: &'a mut u32,
    sets: Vec<SetSpec>,
}

impl Encoder<'_> {
    fn condition(&mut self, condition: &Match, sense: Sense) {
        let ne = |value: u32| value.to_ne_bytes();
        match condition {
            Match::Protocol(protocol) => {
                self.meta(libc::NFT_META_L4PROTO, FIRST);
                self.compare(sense, &[protocol.number()]);
            }
            Match::Mark(mark) => {
                self.meta(libc::NFT_META_MARK, FIRST);
                self.compare(sense, &ne(*mark));
            }
            Match::SocketUser(user) => {
                self.meta(libc::NFT_META_SKUID, FIRST);
                self.compare(sense, &ne(*user));
            }
            Match::SocketGroup(group) => {
                self.meta(libc::NFT_META_SKGID, FIRST);
                self.compare(sense, &ne(*group));
            }
            Match::InputInterface(name) => {
                self.meta(libc::NFT_META_IIFNAME, FIRST);
                self.compare(sense, &interface(name));
            }
            Match::OutputInterface(name) => {
                self.meta(libc::NFT_META_OIFNAME, FIRST);
                self.compare(sense, &interface(name));
            }
            Match::OutputLoopback => {
                self.meta(libc::NFT_META_OIF, FIRST);
                self.compare(sense, &ne(1));
            }
            Match::Source(net) => self.address(net, Field::SourceAddress, sense),
            Match::Destination(net) => self.address(net, Field::DestinationAddress, sense),
            Match::DestinationPorts(ranges) => self.ports(ranges, sense),
            Match::ConnectionState(bits) => self.connection(libc::NFT_CT_STATE, *bits, sense),
            Match::ConnectionStatus(bits) => self.connection(libc::NFT_CT_STATUS, *bits, sense),
            Match::Member { fields, set } => {
                self.load(fields);
                self.lookup(set, None, None, sense);
            }
        }
    }

    fn action(&mut self, action: &Action) {
        match action {
            Action::Verdict(to) => self.expression("immediate", |data| {
                data.number(1, libc::NFT_REG_VERDICT as u32);
                data.nest(2, |inner| verdict(inner, to));
            }),
            Action::Count => self.expression("counter", |_| {}),
            Action::SetMark(mark) => {
                self.immediate(FIRST, &mark.to_ne_bytes());
                self.expression("meta", |data| {
                    data.number(2, libc::NFT_META_MARK as u32);
                    data.number(3, FIRST);
                });
            }
            Action::Dnat(to) => {
                self.immediate_address(to.ip());
                let port = (to.port() != 0).then_some(SECOND);
                if let Some(register) = port {
                    self.immediate(register, &to.port().to_be_bytes());
                }
                self.nat(libc::NFT_NAT_DNAT, to.ip(), port);
            }
            Action::Balance(endpoints) => self.balance(endpoints),
            Action::Snat(to) => {
                self.immediate_address(*to);
                self.nat(libc::NFT_NAT_SNAT, *to, None);
            }
            Action::Redirect(port) => {
                self.immediate(FIRST, &port.to_be_bytes());
                self.expression("redir", |data| data.number(1, FIRST));
            }
            Action::Masquerade => self.expression("masq", |_| {}),
            Action::RejectWithReset => self.expression("reject", |data| {
                data.number(1, libc::NFT_REJECT_TCP_RST as u32);
            }),
            Action::RejectWithPortUnreachable => {
                let (kind, code) = match self.family {
                    Family::Ip => (libc::NFT_REJECT_ICMP_UNREACH, 3),
                    Family::Ip6 => (libc::NFT_REJECT_ICMP_UNREACH, 4),
                    Family::Inet => (
                        libc::NFT_REJECT_ICMPX_UNREACH,
                        libc::NFT_REJECT_ICMPX_PORT_UNREACH as u8,
                    ),
                };
                self.expression("reject", |data| {
                    data.number(1, kind as u32);
                    data.put(2, &[code]);
                });
            }
            Action::Look { fields, set } => {
                self.load(fields);
                self.lookup(set, None, Some(libc::NFT_REG_VERDICT as u32), Sense::Is);
            }
        }
    }

    fn balance(&mut self, endpoints: &[SocketAddr]) {
        let (Some(first), Ok(count)) = (endpoints.first(), u32::try_from(endpoints.len())) else {
            return;
        };
        if endpoints.len() == 1 {
            return self.action(&Action::Dnat(*first));
        }
        self.expression("numgen", |data| {
            data.number(1, FIRST);
            data.number(2, count);
            data.number(3, libc::NFT_NG_RANDOM as u32);
            data.number(4, 0);
        });
        let set = SetSpec::endpoints(self.next_id(), endpoints);
        self.lookup(&set.name, Some(set.id), Some(FIRST), Sense::Is);
        self.sets.push(set);
        // The map's value lies in consecutive registers: the address, then the port.
        let port = if first.is_ipv6() { FIRST + 4 } else { FIRST + 1 };
        self.nat(libc::NFT_NAT_DNAT, first.ip(), Some(port));
    }

    fn ports(&mut self, ranges: &[RangeInclusive<u16>], sense: Sense) {
        self.payload(Field::DestinationPort, FIRST);
        match ranges {
            [one] if one.start() == one.end() => self.compare(sense, &one.start().to_be_bytes()),
            ranges => {
                let set = SetSpec::ports(self.next_id(), ranges);
                self.lookup(&set.name, Some(set.id), None, sense);
                self.sets.push(set);
            }
        }
    }

    fn address(&mut self, net: &IpNet, field: Field, sense: Sense) {
        if self.family == Family::Inet {
            self.meta(libc::NFT_META_NFPROTO, FIRST);
            let protocol = if net.addr().is_ipv4() { IPV4 } else { IPV6 };
            // Not negated with the address: a packet of the other family has no such address to compare.
            self.compare(
                Sense::Is,
                &[u8::try_from(protocol).expect("protocol families fit a byte")],
            );
        }
        let (base, offset, length) = match (field, net) {
            (Field::SourceAddress, IpNet::V4(_)) => (libc::NFT_PAYLOAD_NETWORK_HEADER, 12, 4),
            (_, IpNet::V4(_)) => (libc::NFT_PAYLOAD_NETWORK_HEADER, 16, 4),
            (Field::SourceAddress, IpNet::V6(_)) => (libc::NFT_PAYLOAD_NETWORK_HEADER, 8, 16),
            (_, IpNet::V6(_)) => (libc::NFT_PAYLOAD_NETWORK_HEADER, 24, 16),
        };
        self.payload_at(base, offset, length, FIRST);
        if net.prefix_len() != net.max_prefix_len() {
            self.bitwise(&octets(net.netmask()));
        }
        self.compare(sense, &octets(net.network()));
    }

    fn connection(&mut self, key: libc::c_int, bits: u32, sense: Sense) {
        self.expression("ct", |data| {
            data.number(1, FIRST);
            data.number(2, key as u32);
        });
        self.bitwise(&bits.to_ne_bytes());
        let opposite = if sense == Sense::Is {
            Sense::IsNot
        } else {
            Sense::Is
        };
        self.compare(opposite, &[0; 4]);
    }

    /// Loads fields into consecutive registers, as a set's key wants them.
    fn load(&mut self, fields: &[Field]) {
        let mut register = FIRST;
        for field in fields {
            match field {
                Field::Protocol => self.meta(libc::NFT_META_L4PROTO, register),
                other => self.payload(*other, register),
            }
            let (_, length) = key_type(&[*field], self.family);
            register += length.div_ceil(4);
        }
    }

    fn payload(&mut self, field: Field, register: u32) {
        let network = libc::NFT_PAYLOAD_NETWORK_HEADER;
        match (field, self.family) {
            (Field::SourceAddress, Family::Ip6) => self.payload_at(network, 8, 16, register),
            (Field::SourceAddress, _) => self.payload_at(network, 12, 4, register),
            (Field::DestinationAddress, Family::Ip6) => self.payload_at(network, 24, 16, register),
            (Field::DestinationAddress, _) => self.payload_at(network, 16, 4, register),
            (Field::DestinationPort, _) => {
                self.payload_at(libc::NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2, register);
            }
            (Field::Protocol, _) => self.meta(libc::NFT_META_L4PROTO, register),
        }
    }

    fn payload_at(&mut self, base: libc::c_int, offset: u32, length: u32, register: u32) {
        self.expression("payload", |data| {
            data.number(1, register);
            data.number(2, base as u32);
            data.number(3, offset);
            data.number(4, length);
        });
    }

    fn meta(&mut self, key: libc::c_int, register: u32) {
        self.expression("meta", |data| {
            data.number(2, key as u32);
            data.number(1, register);
        });
    }

    fn compare(&mut self, sense: Sense, value: &[u8]) {
        self.expression("cmp", |data| {
            data.number(1, FIRST);
            data.number(2, if sense == Sense::Is { EQUAL } else { UNEQUAL });
            data.nest(3, |inner| inner.put(1, value));
        });
    }

    fn bitwise(&mut self, mask: &[u8]) {
        self.expression("bitwise", |data| {
            data.number(1, FIRST);
            data.number(2, FIRST);
            data.number(3, u32::try_from(mask.len()).expect("masks are at most 16 bytes"));
            data.nest(4, |inner| inner.put(1, mask));
            data.nest(5, |inner| inner.put(1, &vec![0; mask.len()]));
        });
    }

    fn lookup(&mut self, name: &str, id: Option<u32>, into: Option<u32>, sense: Sense) {
        self.expression("lookup", |data| {
            data.string(1, name);
            data.number(2, FIRST);
            if let Some(register) = into {
                data.number(3, register);
            }
            if let Some(id) = id {
                data.number(4, id);
            }
            if sense == Sense::IsNot {
                data.number(5, 1);
            }
        });
    }

    fn immediate(&mut self, register: u32, value: &[u8]) {
        self.expression("immediate", |data| {
            data.number(1, register);
            data.nest(2, |inner| inner.put(1, value));
        });
    }

    fn immediate_address(&mut self, address: IpAddr) {
        self.immediate(FIRST, &octets(address));
    }

    fn nat(&mut self, kind: libc::c_int, address: IpAddr, port: Option<u32>) {
        self.expression("nat", |data| {
            data.number(1, kind as u32);
            data.number(2, if address.is_ipv4() { IPV4 } else { IPV6 });
            data.number(3, FIRST);
            if let Some(register) = port {
                data.number(5, register);
            }
        });
    }

    fn expression(&mut self, name: &str, body: impl FnOnce(&mut Attributes<'_>)) {
        self.attributes.nest(1, |expression| {
            expression.string(1, name);
            expression.nest(2, body);
        });
    }

    fn next_id(&mut self) -> u32 {
        *self.next_set += 1;
        *self.next_set
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// The register holds a name padded with zeros; comparing fewer bytes compares a prefix.
fn interface(name: &str) -> Vec<u8> {
    match name.strip_suffix('*') {
        Some(prefix) => prefix.as_bytes().to_vec(),
        None => {
            let mut bytes = name.as_bytes().to_vec();
            bytes.resize(libc::IFNAMSIZ, 0);
            bytes
        }
    }
}

/// Elements per message: an attribute holds 64 KiB, an element takes at most some 100 bytes plus a chain's name.
pub(crate) const ELEMENTS_PER_MESSAGE: usize = 128;

pub(crate) fn set(messages: &mut Messages, header: (u16, u16, u32, u8), table: &str, set: &SetSpec) {
    let (kind, flags, sequence, family) = header;
    messages.message(kind, flags, sequence, family, 0, |attributes| {
        attributes.string(1, table);
        attributes.string(2, &set.name);
        attributes.number(3, set.flags);
        attributes.number(4, set.key_type);
        attributes.number(5, set.key_length);
        if let Some((kind, length)) = set.data {
            attributes.number(6, kind);
            attributes.number(7, length);
        }
        attributes.number(10, set.id);
        if !set.user_data.is_empty() {
            attributes.put(13, &set.user_data);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_ranges_are_sorted_joined_and_half_open() {
        assert_eq!(
            merged(&[
                4567..=4568,
                80..=80,
                4190..=4191,
                81..=90,
                4191..=4200,
                65000..=65535
            ]),
            [
                (80, Some(91)),
                (4190, Some(4201)),
                (4567, Some(4569)),
                (65000, None)
            ]
        );
    }

    #[test]
    fn an_interface_pattern_compares_the_beginning_of_a_name() {
        assert_eq!(interface("veth*"), b"veth");
        assert_eq!(interface("lo"), *b"lo\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    }

    #[test]
    fn components_of_a_concatenated_key_fill_whole_registers() {
        let key = [
            Key::Address([10, 43, 0, 1].into()),
            Key::Protocol(crate::table::Protocol::Tcp),
            Key::Port(443),
        ];
        assert_eq!(key_bytes(&key), [10, 43, 0, 1, 6, 0, 0, 0, 1, 0xbb, 0, 0]);
        assert_eq!(key_bytes(&key[2..]), [1, 0xbb]);
        let fields = [Field::DestinationAddress, Field::Protocol, Field::DestinationPort];
        assert_eq!(key_type(&fields, Family::Ip), (7 << 12 | 12 << 6 | 13, 12));
    }

    #[test]
    fn a_comment_is_cut_between_characters() {
        let cut = comment(&format!("{}ä", "x".repeat(126)));
        assert_eq!((cut[1], cut.len()), (127, 129));
    }
}
