//! Which requests somebody wants to see. Pure.
//!
//! A pattern is a tree that a peer sends, so its size is bounded, and what it doesn't say matches nothing.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use http::Method;
use ipnet::IpNet;
use linkerd2_proxy_api::http_types::{HttpMethod, Scheme, scheme};
use linkerd2_proxy_api::tap::observe_request::Match;
use linkerd2_proxy_api::tap::observe_request::r#match::http::{
    Match as HttpMatch, StringMatch, string_match,
};
use linkerd2_proxy_api::tap::observe_request::r#match::tcp::{Match as TcpMatch, Netmask};
use linkerd2_proxy_api::tap::observe_request::r#match::{Http, Label, Match as Kind, Tcp};

use super::Seen;

/// Conditions in one pattern.
const CONDITIONS_MAX: usize = 256;

/// The pattern has too many conditions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a pattern has at most {CONDITIONS_MAX} conditions")]
pub(crate) struct TooComplex;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Pattern {
    All(Vec<Self>),
    Any(Vec<Self>),
    Not(Box<Self>),
    Source(Address),
    Destination(Address),
    Method(Method),
    Scheme(String),
    Authority(Text),
    Path(Text),
    DestinationLabel(Label),
    RouteLabel(Label),
    /// What can't be understood.
    Never,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Address {
    Net(IpNet),
    Ports(RangeInclusive<u16>),
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Text {
    Exact(String),
    Prefix(String),
}

impl Pattern {
    /// No pattern at all is every request.
    pub(super) fn of(asked: Option<&Match>) -> Result<Self, TooComplex> {
        match asked {
            None => Ok(Self::All(Vec::new())),
            Some(asked) => {
                let mut room = CONDITIONS_MAX;
                Self::read(asked, &mut room)
            }
        }
    }

    fn read(asked: &Match, room: &mut usize) -> Result<Self, TooComplex> {
        *room = room.checked_sub(1).ok_or(TooComplex)?;
        Ok(match &asked.r#match {
            None => Self::Never,
            Some(Kind::All(all)) => Self::All(Self::each(&all.matches, room)?),
            Some(Kind::Any(any)) => Self::Any(Self::each(&any.matches, room)?),
            Some(Kind::Not(not)) => match Self::read(not, room)? {
                Self::Never => Self::Never,
                not => Self::Not(Box::new(not)),
            },
            Some(Kind::Source(tcp)) => address(tcp).map_or(Self::Never, Self::Source),
            Some(Kind::Destination(tcp)) => address(tcp).map_or(Self::Never, Self::Destination),
            Some(Kind::Http(http)) => of_http(http).unwrap_or(Self::Never),
            Some(Kind::DestinationLabel(label)) => Self::DestinationLabel(label.clone()),
            Some(Kind::RouteLabel(label)) => Self::RouteLabel(label.clone()),
        })
    }

    fn each(matches: &[Match], room: &mut usize) -> Result<Vec<Self>, TooComplex> {
        matches.iter().map(|one| Self::read(one, room)).collect()
    }

    pub(super) fn matches(&self, seen: &Seen<'_>) -> bool {
        match self {
            Self::All(all) => all.iter().all(|one| one.matches(seen)),
            Self::Any(any) => any.iter().any(|one| one.matches(seen)),
            Self::Not(not) => !not.matches(seen),
            Self::Source(wanted) => wanted.includes(seen.source.addr.ip(), seen.source.addr.port()),
            Self::Destination(wanted) => wanted.includes(seen.destination.ip(), seen.destination.port()),
            Self::Method(wanted) => seen.method == wanted,
            Self::Scheme(wanted) => seen.scheme == wanted,
            Self::Authority(wanted) => wanted.fits(seen.authority),
            Self::Path(wanted) => wanted.fits(seen.path),
            Self::DestinationLabel(wanted) => seen.destination_labels.get(&wanted.key) == Some(&wanted.value),
            Self::RouteLabel(wanted) => seen.route_labels.get(&wanted.key) == Some(&wanted.value),
            Self::Never => false,
        }
    }
}

impl Address {
    fn includes(&self, ip: IpAddr, port: u16) -> bool {
        match self {
            Self::Net(net) => net.contains(&ip.to_canonical()),
            Self::Ports(ports) => ports.contains(&port),
        }
    }
}

impl Text {
    fn fits(&self, text: &str) -> bool {
        match self {
            Self::Exact(wanted) => text == wanted,
            Self::Prefix(wanted) => text.starts_with(wanted),
        }
    }
}

fn address(tcp: &Tcp) -> Option<Address> {
    match tcp.r#match.as_ref()? {
        TcpMatch::Netmask(Netmask { ip, mask }) => {
            let ip = IpAddr::try_from((*ip)?).ok()?;
            Some(Address::Net(IpNet::new(ip, u8::try_from(*mask).ok()?).ok()?))
        }
        TcpMatch::Ports(ports) => {
            // An end that isn't given is the other one.
            let (min, max) = match (ports.min, ports.max) {
                (min, 0) => (min, min),
                (0, max) => (max, max),
                both => both,
            };
            let end = |port: u32| u16::try_from(port).ok();
            Some(Address::Ports(end(min)?..=end(max)?))
        }
    }
}

fn of_http(http: &Http) -> Option<Pattern> {
    let text = |wanted: &StringMatch| {
        Some(match wanted.r#match.clone()? {
            string_match::Match::Exact(text) => Text::Exact(text),
            string_match::Match::Prefix(text) => Text::Prefix(text),
        })
    };
    let method = |method: &HttpMethod| Method::try_from(method.clone()).ok();
    let name = |scheme: &Scheme| match scheme.r#type.as_ref()? {
        scheme::Type::Registered(kind) if *kind == scheme::Registered::Http as i32 => Some("http".to_owned()),
        scheme::Type::Registered(kind) if *kind == scheme::Registered::Https as i32 => {
            Some("https".to_owned())
        }
        scheme::Type::Registered(_) => None,
        scheme::Type::Unregistered(other) => Some(other.clone()),
    };
    Some(match http.r#match.as_ref()? {
        HttpMatch::Scheme(scheme) => Pattern::Scheme(name(scheme)?),
        HttpMatch::Method(wanted) => Pattern::Method(method(wanted)?),
        HttpMatch::Authority(wanted) => Pattern::Authority(text(wanted)?),
        HttpMatch::Path(wanted) => Pattern::Path(text(wanted)?),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use linkerd2_proxy_api::tap::observe_request::r#match::Seq;
    use linkerd2_proxy_api::tap::observe_request::r#match::tcp::PortRange;

    use super::super::{Client, Direction};
    use super::*;
    use crate::message::Head;

    fn of(kind: Kind) -> Match {
        Match { r#match: Some(kind) }
    }

    fn http(wanted: HttpMatch) -> Match {
        of(Kind::Http(Http {
            r#match: Some(wanted),
        }))
    }

    fn path(wanted: string_match::Match) -> Match {
        http(HttpMatch::Path(StringMatch {
            r#match: Some(wanted),
        }))
    }

    fn ports(min: u32, max: u32) -> Match {
        of(Kind::Destination(Tcp {
            r#match: Some(TcpMatch::Ports(PortRange { min, max })),
        }))
    }

    fn net(ip: [u8; 4], mask: u32) -> Match {
        let ip = Some(IpAddr::from(ip).into());
        of(Kind::Source(Tcp {
            r#match: Some(TcpMatch::Netmask(Netmask { ip, mask })),
        }))
    }

    fn label(key: &str, value: &str) -> Match {
        of(Kind::DestinationLabel(Label {
            key: key.into(),
            value: value.into(),
        }))
    }

    fn not(one: Match) -> Match {
        of(Kind::Not(Box::new(one)))
    }

    /// `POST http://web/api/vote` from 10.0.0.1 to port 80 of the pod `web-1`.
    fn is_seen(wanted: &Match) -> bool {
        let source = Client {
            addr: ([10, 0, 0, 1], 4000).into(),
            labels: BTreeMap::new(),
        };
        Pattern::of(Some(wanted)).expect("small").matches(&Seen {
            direction: Direction::Outbound,
            source: &source,
            destination: ([10, 0, 0, 2], 80).into(),
            destination_labels: BTreeMap::from([("pod".into(), "web-1".into())]),
            route_labels: BTreeMap::new(),
            method: &Method::POST,
            scheme: "http",
            authority: "web",
            path: "/api/vote",
            headers: &Head::default(),
        })
    }

    #[test]
    fn a_request_is_seen_by_what_it_is() {
        let both = |matches: Vec<Match>| of(Kind::All(Seq { matches }));
        let either = |matches: Vec<Match>| of(Kind::Any(Seq { matches }));
        let prefix = |text: &str| path(string_match::Match::Prefix(text.into()));
        let exact = |text: &str| path(string_match::Match::Exact(text.into()));
        let post = || http(HttpMatch::Method(Method::POST.into()));
        for (wanted, expected) in [
            (both(vec![]), true),
            (either(vec![]), false),
            (prefix("/api"), true),
            (exact("/api"), false),
            (exact("/api/vote"), true),
            (post(), true),
            (http(HttpMatch::Scheme("https".into())), false),
            (both(vec![post(), prefix("/other")]), false),
            (either(vec![post(), prefix("/other")]), true),
            (not(prefix("/other")), true),
            (ports(80, 0), true),
            (ports(1, 79), false),
            (net([10, 0, 0, 0], 8), true),
            (net([10, 0, 0, 2], 32), false),
            (label("pod", "web-1"), true),
            (label("pod", "web-2"), false),
        ] {
            assert_eq!(is_seen(&wanted), expected, "{wanted:?}");
        }
    }

    #[test]
    fn what_cannot_be_understood_matches_nothing_in_whatever_form() {
        for nonsense in [Match { r#match: None }, net([10, 0, 0, 0], 77), ports(1, 70_000)] {
            assert!(!is_seen(&nonsense), "{nonsense:?}");
            assert!(!is_seen(&not(nonsense)));
        }
    }

    #[test]
    fn a_pattern_is_bounded() {
        let wide = |count| {
            let matches = vec![ports(80, 80); count];
            Pattern::of(Some(&of(Kind::Any(Seq { matches })))).map(drop)
        };
        assert_eq!(wide(CONDITIONS_MAX - 1), Ok(()));
        assert_eq!(wide(CONDITIONS_MAX), Err(TooComplex));
    }
}
