//! The vocabulary of a ruleset: tables, chains, sets, rules, and what rules match and do.
//!
//! Plain values; [`crate::Batch`] gives them to the kernel. Names are those of nft(8) where it has a word.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use ipnet::IpNet;

/// Which packets a table sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    Ip,
    Ip6,
    /// Both; a match on an address then also matches the address's family.
    Inet,
}

/// A table and everything in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    pub family: Family,
    pub name: String,
    pub chains: Vec<Chain>,
    pub sets: Vec<Set>,
}

/// Rules that are tried in order. Without a `base` it is entered by jumps only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    pub name: String,
    pub base: Option<Base>,
    pub rules: Vec<Rule>,
}

/// Where packets enter a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    pub kind: Kind,
    pub hook: Hook,
    /// Lower runs first; see [`priority`].
    pub priority: i32,
    pub policy: Policy,
}

/// Usual priorities of base chains.
pub mod priority {
    pub const DNAT: i32 = -100;
    pub const FILTER: i32 = 0;
    pub const SNAT: i32 = 100;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Filter,
    /// Only the first packet of a connection enters; the kernel remembers what was decided.
    Nat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    Accept,
    Drop,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    Icmp,
    Tcp,
    Udp,
    Icmp6,
    Sctp,
}

impl Protocol {
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Icmp => 1,
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Icmp6 => 58,
            Self::Sctp => 132,
        }
    }
}

/// Bits of `ct state`, for [`Match::ConnectionState`].
pub mod state {
    pub const INVALID: u32 = 1;
    pub const ESTABLISHED: u32 = 2;
    pub const RELATED: u32 = 4;
    pub const NEW: u32 = 8;
    pub const UNTRACKED: u32 = 64;
}

/// Bits of `ct status`, for [`Match::ConnectionStatus`].
pub mod status {
    pub const SNAT: u32 = 1 << 4;
    pub const DNAT: u32 = 1 << 5;
}

/// What a packet must be, or with [`Rule::unless`] must not be, for its rule to go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    Protocol(Protocol),
    Mark(u32),
    /// Owner of the sending socket; output and postrouting only.
    SocketUser(u32),
    SocketGroup(u32),
    /// A whole name, or with a trailing `*` the beginning of one.
    InputInterface(String),
    OutputInterface(String),
    /// The loopback interface by its index, which is 1 in every network namespace.
    OutputLoopback,
    Source(IpNet),
    Destination(IpNet),
    /// Any of these. Say [`Match::Protocol`] first: ports of other protocols lie at the same place.
    DestinationPorts(Vec<RangeInclusive<u16>>),
    /// Any of the bits in [`state`].
    ConnectionState(u32),
    /// Any of the bits in [`status`].
    ConnectionStatus(u32),
    /// The packet's fields, in this order, are a member of this named [`Set`].
    Member {
        fields: Vec<Field>,
        set: String,
    },
}

/// What a rule does with a packet that matched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Verdict(Verdict),
    /// Counts packets and bytes, shown by `nft list ruleset`.
    Count,
    SetMark(u32),
    /// Sends the connection elsewhere; port 0 keeps the port.
    Dnat(SocketAddr),
    /// Sends each new connection to one of these, chosen at random with equal chances. Not empty.
    Balance(Vec<SocketAddr>),
    Snat(IpAddr),
    /// To this port of the machine itself.
    Redirect(u16),
    Masquerade,
    RejectWithReset,
    RejectWithPortUnreachable,
    /// Does what a named [`Set`] of verdicts says about the packet's fields; goes on if it says nothing.
    Look {
        fields: Vec<Field>,
        set: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Accept,
    Drop,
    Return,
    Jump(String),
    Goto(String),
}

/// Matches, then actions, in the order they were added.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    pub(crate) comment: Option<String>,
    pub(crate) parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    When(Match),
    Unless(Match),
    Then(Action),
}

impl Rule {
    pub fn new() -> Self {
        Self::default()
    }

    /// Shown by `nft list ruleset`; cut at 127 bytes, which is what nft can show.
    #[must_use]
    pub fn comment(mut self, text: impl Into<String>) -> Self {
        self.comment = Some(text.into());
        self
    }

    #[must_use]
    pub fn when(mut self, condition: Match) -> Self {
        self.parts.push(Part::When(condition));
        self
    }

    #[must_use]
    pub fn unless(mut self, condition: Match) -> Self {
        self.parts.push(Part::Unless(condition));
        self
    }

    #[must_use]
    pub fn then(mut self, action: Action) -> Self {
        self.parts.push(Part::Then(action));
        self
    }

    #[must_use]
    pub fn verdict(self, verdict: Verdict) -> Self {
        self.then(Action::Verdict(verdict))
    }
}

/// A part of a packet that sets are asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    SourceAddress,
    DestinationAddress,
    Protocol,
    DestinationPort,
}

/// One component of a set member; must be of the kind its [`Field`] has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    Address(IpAddr),
    Protocol(Protocol),
    Port(u16),
}

/// A named set, or a map from keys to verdicts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    pub name: String,
    pub fields: Vec<Field>,
    pub members: Members,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Members {
    Keys(Vec<Vec<Key>>),
    Verdicts(Vec<(Vec<Key>, Verdict)>),
}

impl Table {
    pub fn new(family: Family, name: impl Into<String>) -> Self {
        Self {
            family,
            name: name.into(),
            chains: Vec::new(),
            sets: Vec::new(),
        }
    }

    #[must_use]
    pub fn chain(mut self, chain: Chain) -> Self {
        self.chains.push(chain);
        self
    }

    #[must_use]
    pub fn set(mut self, set: Set) -> Self {
        self.sets.push(set);
        self
    }
}

impl Chain {
    /// A chain that is entered by jumps.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            base: None,
            rules: Vec::new(),
        }
    }

    /// A chain that packets enter at a hook, with policy accept.
    pub fn base(name: impl Into<String>, kind: Kind, hook: Hook, priority: i32) -> Self {
        let base = Base {
            kind,
            hook,
            priority,
            policy: Policy::Accept,
        };
        Self {
            name: name.into(),
            base: Some(base),
            rules: Vec::new(),
        }
    }

    #[must_use]
    pub fn rule(mut self, rule: Rule) -> Self {
        self.rules.push(rule);
        self
    }

    #[must_use]
    pub fn rules(mut self, rules: impl IntoIterator<Item = Rule>) -> Self {
        self.rules.extend(rules);
        self
    }
}
