//! What a proxy decides with the control plane's answers, for those who explain it.
//!
//! Pure, and made of the data path's own conversions and functions, so that an explanation can't say anything else than
//! what happens. Nothing is decided here, and proxies don't use it. Who asks, and in which words it is told, is the
//! caller's business.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hawser_core::Identity;
use hawser_core::authz::{Client, Denial, Source, authorize};
use http::{Request, Version};
use linkerd2_proxy_api::destination::{DestinationProfile, WeightedAddr};
use linkerd2_proxy_api::{inbound, outbound};
use tonic::Status;

use crate::gateway::door;
use crate::inbound::Refusal;
use crate::inbound::http::route_of;
use crate::outbound::http::routes_of;
use crate::snapshot::{
    self, Distribution, Endpoint, EndpointTls, Hint, Inbound, InboundProtocol, PolicyAnswer, Profile,
    Protocol, Target, TcpPolicy,
};
use crate::{http_rules, message, route};

/// How long a proxy looks for HTTP doesn't matter to what it decides.
const ANY_TIMEOUT: Duration = Duration::from_secs(10);

/// What a proxy takes a connection for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speech {
    /// It looks: HTTP if it is, bytes otherwise.
    Detected,
    Http1,
    Http2,
    /// Bytes, without looking.
    Opaque,
}

/// Where a request goes.
#[derive(Clone, Debug, PartialEq)]
pub struct Way {
    pub speech: Speech,
    /// The resource whose route it takes; none for bytes.
    pub route: Option<Source>,
    /// With their weights; the first of equals if these are all zero.
    pub backends: Vec<(Backend, u32)>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Backend {
    /// The endpoints of `name:port`.
    Service(String),
    Address(Peer),
    /// Answered by the proxy itself.
    Fails {
        status: u16,
        message: String,
    },
    /// The control plane's answer makes no sense.
    Unusable,
}

/// Why a request goes nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoWay {
    /// The control plane refuses the target.
    Refused,
    /// The Service has no such port.
    Forbidden,
    /// No route takes such a request.
    NoRoute,
    /// Not for clients of a gateway.
    NotExported,
    /// Gateways serve only what is known.
    Unknown,
}

/// One endpoint, and how it is spoken to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The address of the application.
    pub address: SocketAddr,
    /// Where the connection goes.
    pub dialled: SocketAddr,
    pub tls: Tls,
    pub opaque: bool,
    /// By which a gateway knows the Service.
    pub authority: Option<String>,
    pub labels: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tls {
    /// Plain text, and why.
    Plain(&'static str),
    /// Whoever answers must prove that it is this.
    Mutual(Identity),
    /// Never connected to.
    Unusable,
}

/// What a proxy says to somebody who comes in.
#[derive(Clone, Debug, PartialEq)]
pub struct Admission {
    /// The Server, or the default policy.
    pub server: Source,
    pub speech: Speech,
    /// Who lets the client in, or why nobody does.
    pub answer: Result<Source, Refused>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Refused {
    /// The policy makes no sense.
    Invalid,
    /// No route takes such a request.
    NoRoute,
    Denied {
        route: Option<Source>,
        why: Denial,
    },
}

/// Where an application's own request goes that it sends to an address with a port, or to a name with a port.
pub fn outbound(
    target: &str,
    profile: Result<DestinationProfile, Status>,
    policy: Result<outbound::OutboundPolicy, Status>,
    request: &Request<()>,
) -> Result<Way, NoWay> {
    let target = match target.parse() {
        Ok(address) => Target::Addr(address),
        Err(_) => Target::Name(target.into()),
    };
    way(&join(&target, profile, policy), request)
}

/// Where a request goes that came to a gateway for `name:port`.
pub fn through_gateway(
    name: &str,
    profile: Result<DestinationProfile, Status>,
    policy: Result<outbound::OutboundPolicy, Status>,
    request: &Request<()>,
) -> Result<Way, NoWay> {
    let joined = join(&Target::Name(name.into()), profile, policy);
    door(&joined).map_err(|refusal| match refusal {
        Refusal::NotExported => NoWay::NotExported,
        _ => NoWay::Unknown,
    })?;
    way(&joined, request)
}

fn join(
    target: &Target,
    profile: Result<DestinationProfile, Status>,
    policy: Result<outbound::OutboundPolicy, Status>,
) -> snapshot::Outbound {
    let elsewhere = |_: IpAddr| false;
    let (answer, profile) = Profile::of_answer(profile, &elsewhere);
    let policy = PolicyAnswer::of_answer(policy);
    snapshot::join(target, answer, profile.as_ref(), &policy, ANY_TIMEOUT, &elsewhere)
}

fn way(joined: &snapshot::Outbound, request: &Request<()>) -> Result<Way, NoWay> {
    let speech = match &joined.protocol {
        Protocol::Refused => return Err(NoWay::Refused),
        Protocol::Opaque(TcpPolicy::Forbidden) => return Err(NoWay::Forbidden),
        Protocol::Opaque(TcpPolicy::Forward(distribution)) => {
            return Ok(Way {
                speech: Speech::Opaque,
                route: None,
                backends: shares(distribution),
            });
        }
        Protocol::Detect { .. } => Speech::Detected,
        Protocol::Http1(_) => Speech::Http1,
        Protocol::Http2(_) => Speech::Http2,
    };
    let request = message::Request::from(request);
    let routes = routes_of(joined, request.version).ok_or(NoWay::Refused)?;
    let taken = route::best(
        routes,
        |route| &route.matches,
        http_rules::host_of(&request),
        &request.method,
        &request.head,
    );
    let taken = taken.ok_or(NoWay::NoRoute)?;
    Ok(Way {
        speech,
        route: Some(taken.source.clone()),
        backends: shares(&taken.backends),
    })
}

fn shares(distribution: &Distribution) -> Vec<(Backend, u32)> {
    match distribution {
        // The others stand in only while the first can't be used.
        Distribution::FirstAvailable(all) => {
            let weight = |at| u32::from(at == 0);
            let all = all.iter().enumerate();
            all.map(|(at, one)| (backend(one), weight(at))).collect()
        }
        Distribution::RandomAvailable(all) => {
            all.iter().map(|(one, weight)| (backend(one), *weight)).collect()
        }
    }
}

fn backend(one: &snapshot::Backend) -> Backend {
    match one {
        snapshot::Backend::Balance(path) => Backend::Service(path.to_string()),
        snapshot::Backend::Forward(endpoint) => Backend::Address(peer_of(endpoint)),
        snapshot::Backend::Filtered(filtered) => backend(&filtered.backend),
        snapshot::Backend::Failing { status, message, .. } => Backend::Fails {
            status: *status,
            message: message.to_string(),
        },
        snapshot::Backend::Unusable => Backend::Unusable,
    }
}

/// How a proxy speaks to one of the endpoints that it was told of; `None` if it can't use the address.
pub fn peer(address: WeightedAddr, set_labels: &HashMap<String, String>) -> Option<Peer> {
    Endpoint::from_proto(address, set_labels, &|_| false).map(|endpoint| peer_of(&endpoint))
}

fn peer_of(endpoint: &Endpoint) -> Peer {
    Peer {
        address: endpoint.addr,
        dialled: endpoint.dialled(),
        tls: match &endpoint.tls {
            EndpointTls::No(why) => Tls::Plain(why),
            EndpointTls::Mutual { id, .. } => Tls::Mutual(id.clone()),
            EndpointTls::Unusable => Tls::Unusable,
        },
        opaque: endpoint.hint == Hint::Opaque,
        authority: endpoint.authority.as_ref().map(|(name, port)| match port {
            Some(port) => format!("{name}:{port}"),
            None => name.clone(),
        }),
        labels: endpoint.labels.clone(),
    }
}

/// Whether a proxy lets a client in: with a request, or with bytes that say nothing.
pub fn admit(
    policy: inbound::Server,
    request: Option<&Request<()>>,
    address: IpAddr,
    client: &Client,
) -> Admission {
    let policy = Inbound::from_proto(policy);
    let speech = match policy.protocol {
        InboundProtocol::Detect(_) => Speech::Detected,
        InboundProtocol::Http1 => Speech::Http1,
        InboundProtocol::Http2 => Speech::Http2,
        InboundProtocol::Opaque | InboundProtocol::Tls => Speech::Opaque,
    };
    let answer = match request.filter(|_| speech != Speech::Opaque) {
        _ if policy.invalid => Err(Refused::Invalid),
        None => authorize(&policy.authorizations, address, client)
            .map(|by| by.source.clone())
            .map_err(|why| Refused::Denied { route: None, why }),
        Some(request) => match route_of(&policy, &message::Request::from(request)) {
            None => Err(Refused::NoRoute),
            Some(route) => authorize(&route.authorizations, address, client)
                .map(|by| by.source.clone())
                .map_err(|why| Refused::Denied {
                    route: Some(route.source.clone()),
                    why,
                }),
        },
    };
    Admission {
        server: policy.server,
        speech,
        answer,
    }
}

/// A request as an application sends it, as far as decisions look at it.
pub fn request(method: http::Method, path: &http::Uri, host: &str) -> Result<Request<()>, http::Error> {
    Request::builder()
        .version(Version::HTTP_11)
        .method(method)
        .uri(path.clone())
        .header(http::header::HOST, host)
        .body(())
}
