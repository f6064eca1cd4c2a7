//! What a connection decides by: immutable values made from the control plane's answers.
//!
//! Pure conversions, no I/O: [`crate::discover`] receives messages and publishes these. What cannot be understood
//! fails alone: a backend, an endpoint or a policy, never the process. Source: `spec/proxy.md` 5.1 to 5.4, 6.1.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use hawser_core::authz::{Authentication, Authorization, Network, Source};
use hawser_core::{Identity, IdentityPattern};
use linkerd2_proxy_api::{destination as dst, inbound, meta, outbound};
use tonic::{Code, Status};

use crate::config::{DefaultPolicy, InboundConfig};
use crate::route::{Filter, HttpRoute, Matches};

/// How an endpoint is to be spoken to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum EndpointTls {
    /// Plain text, and why.
    No(&'static str),
    Mutual {
        id: Identity,
        server_name: String,
    },
    /// Told to use TLS in a way that we can't: refused, rather than sent in the clear.
    Unusable,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Hint {
    None,
    H2,
    Opaque,
}

/// One address of a service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Endpoint {
    pub(crate) addr: SocketAddr,
    pub(crate) weight: u32,
    pub(crate) tls: EndpointTls,
    pub(crate) hint: Hint,
    /// Where its proxy takes direct connections.
    pub(crate) inbound_port: Option<u16>,
    /// The name and port by which a gateway knows the service.
    pub(crate) authority: Option<(String, Option<u16>)>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) keepalive: Option<(Duration, Duration)>,
}

impl Endpoint {
    /// The address as the client gave it, with nothing known about it.
    pub(crate) fn forward(addr: SocketAddr) -> Self {
        Self {
            addr,
            weight: 1,
            tls: EndpointTls::No("not_provided_by_service_discovery"),
            hint: Hint::None,
            inbound_port: None,
            authority: None,
            labels: BTreeMap::new(),
            keepalive: None,
        }
    }

    /// Where the connection goes: to the proxy itself if it takes direct connections.
    pub(crate) fn dialled(&self) -> SocketAddr {
        match (&self.tls, self.inbound_port) {
            (EndpointTls::Mutual { .. }, Some(port)) => SocketAddr::new(self.addr.ip(), port),
            _ => self.addr,
        }
    }

    /// `None` if the address is unusable.
    pub(crate) fn from_proto(
        proto: dst::WeightedAddr,
        set_labels: &std::collections::HashMap<String, String>,
        local: &dyn Fn(IpAddr) -> bool,
    ) -> Option<Self> {
        let addr = SocketAddr::try_from(proto.addr?).ok()?;
        let mut labels: BTreeMap<String, String> = set_labels.clone().into_iter().collect();
        labels.extend(proto.metric_labels);
        let mut endpoint = Self {
            weight: proto.weight,
            labels,
            ..Self::forward(addr)
        };
        if local(addr.ip()) {
            // The pod itself: the application gets what was sent, as it was sent.
            endpoint.tls = EndpointTls::No("loopback");
            return Some(endpoint);
        }
        if let Some(identity) = proto.tls_identity {
            endpoint.tls = endpoint_tls(identity);
        }
        if let Some(hint) = proto.protocol_hint {
            endpoint.hint = match hint.protocol {
                Some(dst::protocol_hint::Protocol::H2(_)) => Hint::H2,
                Some(dst::protocol_hint::Protocol::Opaque(_)) => Hint::Opaque,
                None => Hint::None,
            };
            endpoint.inbound_port = hint
                .opaque_transport
                .and_then(|t| u16::try_from(t.inbound_port).ok())
                .filter(|port| (1..=65534).contains(port));
        }
        endpoint.authority = proto
            .authority_override
            .and_then(|a| authority(&a.authority_override));
        endpoint.keepalive = proto
            .http2
            .and_then(|p| p.keep_alive)
            .and_then(|k| Some((span(k.interval)?, span(k.timeout)?)));
        Some(endpoint)
    }
}

fn endpoint_tls(identity: dst::TlsIdentity) -> EndpointTls {
    use dst::tls_identity::Strategy;
    let server_name = identity
        .server_name
        .map(|name| name.name)
        .filter(|name| !name.is_empty());
    let id = match identity.strategy {
        Some(Strategy::DnsLikeIdentity(id)) => id.name,
        Some(Strategy::UriLikeIdentity(id)) => id.uri,
        None => return EndpointTls::No("not_provided_by_service_discovery"),
    };
    let Ok(id) = id.parse::<Identity>() else {
        return EndpointTls::Unusable;
    };
    let server_name = server_name.or_else(|| id.dns_name().map(str::to_owned));
    server_name.map_or(EndpointTls::Unusable, |server_name| EndpointTls::Mutual {
        id,
        server_name,
    })
}

/// `name` or `name:port`.
pub(crate) fn authority(text: &str) -> Option<(String, Option<u16>)> {
    let (name, port) = match text.rsplit_once(':') {
        Some((name, port)) => (name, Some(port.parse().ok()?)),
        None => (text, None),
    };
    (!name.is_empty()).then(|| (name.trim_end_matches('.').to_owned(), port))
}

pub(crate) fn span(proto: Option<prost_types::Duration>) -> Option<Duration> {
    proto.and_then(|d| Duration::try_from(d).ok())
}

/// The endpoints of a name, by address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Endpoints {
    pub(crate) all: BTreeMap<SocketAddr, Arc<Endpoint>>,
}

/// Where requests or connections go.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Backend {
    /// A balancer over the endpoints of `name:port`.
    Balance(Arc<str>),
    Forward(Arc<Endpoint>),
    /// Requests are changed on their way.
    Filtered(Arc<Filtered>),
    /// Requests fail as the policy says: the backend isn't there.
    Failing {
        status: u16,
        grpc: Option<u32>,
        message: Arc<str>,
    },
    /// The answer was not usable, and only this backend suffers.
    Unusable,
}

/// A backend, and what is done to the requests that go there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Filtered {
    pub(crate) backend: Backend,
    pub(crate) filters: Vec<Filter>,
}

/// How backends share the traffic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Distribution {
    FirstAvailable(Vec<Backend>),
    /// By weight, among those that can be used now.
    RandomAvailable(Vec<(Backend, u32)>),
}

impl Distribution {
    pub(crate) fn one(backend: Backend) -> Self {
        Self::FirstAvailable(vec![backend])
    }
}

/// What to do with opaque connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TcpPolicy {
    Forward(Distribution),
    Forbidden,
}

#[derive(Clone, Debug)]
pub(crate) enum Protocol {
    Detect {
        timeout: Duration,
        http1: Arc<[HttpRoute]>,
        http2: Arc<[HttpRoute]>,
        opaque: TcpPolicy,
    },
    Http1(Arc<[HttpRoute]>),
    Http2(Arc<[HttpRoute]>),
    Opaque(TcpPolicy),
    /// The control plane refuses the target for good; the connection is closed.
    Refused,
}

/// Everything known about one target of outbound traffic.
#[derive(Clone, Debug)]
pub(crate) struct Outbound {
    pub(crate) protocol: Protocol,
    /// `name:port` of the service, for metrics.
    pub(crate) authority: Option<Arc<str>>,
    /// Gateways require one.
    pub(crate) profile: ProfileAnswer,
    pub(crate) breaker: Option<Breaker>,
}

/// How many of the latest answers must be good.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct SuccessRate {
    /// Up to 1.
    pub(crate) threshold: f64,
    pub(crate) window: Duration,
    /// Fewer say nothing.
    pub(crate) requests_min: u32,
}

/// When an endpoint that answers with failures is left alone, and for how long.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Breaker {
    /// In a row.
    pub(crate) failures_max: Option<NonZeroU32>,
    pub(crate) rate: Option<SuccessRate>,
    backoff_min: Duration,
    backoff_max: Duration,
    jitter: f32,
}

impl Breaker {
    fn from_proto(accrual: Option<&outbound::FailureAccrual>) -> Option<Self> {
        use outbound::failure_accrual::Kind;
        let (failures_max, backoff, rate) = match accrual?.kind.as_ref()? {
            Kind::ConsecutiveFailures(c) => (c.max_failures, c.backoff, None),
            Kind::Unified(u) => {
                let rate = SuccessRate {
                    threshold: u.success_rate_threshold,
                    window: span(u.decay).unwrap_or(Duration::from_secs(10)),
                    requests_min: u.min_requests,
                };
                let counts = rate.threshold > 0.0 && rate.threshold <= 1.0;
                (
                    u.max_consecutive_failures,
                    u.backoff,
                    Some(rate).filter(|_| counts),
                )
            }
        };
        let (backoff, failures_max) = (backoff?, NonZeroU32::new(failures_max));
        let (backoff_min, backoff_max) = (span(backoff.min_backoff)?, span(backoff.max_backoff)?);
        let watches = failures_max.is_some() || rate.is_some();
        let valid = watches && backoff_min <= backoff_max && backoff.jitter_ratio >= 0.0;
        valid.then_some(Self {
            failures_max,
            rate,
            backoff_min,
            backoff_max,
            jitter: backoff.jitter_ratio.min(1.0),
        })
    }

    #[cfg(test)]
    pub(crate) fn for_test(failures_max: Option<u32>, rate: Option<SuccessRate>, pause: Duration) -> Self {
        Self {
            failures_max: failures_max.and_then(NonZeroU32::new),
            rate,
            backoff_min: pause,
            backoff_max: pause * 2,
            jitter: 0.0,
        }
    }

    /// After having been opened `before` times in a row.
    pub(crate) fn backoff(self, before: u32) -> Duration {
        let grown = self
            .backoff_min
            .saturating_mul(2u32.saturating_pow(before.min(30)));
        let jitter = rand::random::<f32>() * self.jitter;
        grown.min(self.backoff_max).mul_f32(1.0 + jitter)
    }

    fn of(policy: &PolicyAnswer) -> Option<Self> {
        use outbound::proxy_protocol::Kind;
        let PolicyAnswer::Policy(policy) = policy else {
            return None;
        };
        let accrual = match policy.protocol.as_ref()?.kind.as_ref()? {
            Kind::Detect(detect) => {
                let http1 = detect
                    .http1
                    .as_ref()
                    .and_then(|http| http.failure_accrual.as_ref());
                http1.or_else(|| detect.http2.as_ref()?.failure_accrual.as_ref())
            }
            Kind::Http1(http) => http.failure_accrual.as_ref(),
            Kind::Http2(http) => http.failure_accrual.as_ref(),
            Kind::Grpc(grpc) => grpc.failure_accrual.as_ref(),
            Kind::Opaque(_) | Kind::Tls(_) => None,
        };
        Self::from_proto(accrual)
    }
}

/// Is the target one that the control plane knows?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProfileAnswer {
    Known,
    Missing,
    /// It may exist, but not for whom we ask.
    NotExported,
}

/// A service profile, as far as it moves traffic.
#[derive(Clone, Debug, Default)]
pub(crate) struct Profile {
    pub(crate) name: Option<String>,
    pub(crate) opaque: bool,
    pub(crate) overrides: Vec<(Arc<str>, u32)>,
    pub(crate) endpoint: Option<Arc<Endpoint>>,
}

impl Profile {
    /// What destination said, or why it refuses to say anything.
    pub(crate) fn of_answer(
        answer: Result<dst::DestinationProfile, Status>,
        local: &dyn Fn(IpAddr) -> bool,
    ) -> (ProfileAnswer, Option<Self>) {
        match answer.map(|profile| Self::from_proto(profile, local)) {
            Ok(profile) if profile.name.is_some() || profile.endpoint.is_some() => {
                (ProfileAnswer::Known, Some(profile))
            }
            Ok(profile) => (ProfileAnswer::Missing, Some(profile)),
            // What destination says of a Service that exists but isn't exported to the clients of a gateway.
            Err(status)
                if matches!(
                    status.code(),
                    Code::FailedPrecondition | Code::NotFound | Code::PermissionDenied
                ) =>
            {
                (ProfileAnswer::NotExported, None)
            }
            Err(_) => (ProfileAnswer::Missing, None),
        }
    }

    pub(crate) fn from_proto(proto: dst::DestinationProfile, local: &dyn Fn(IpAddr) -> bool) -> Self {
        let overrides = proto.dst_overrides.into_iter().filter(|dst| dst.weight > 0);
        Self {
            name: Some(proto.fully_qualified_name).filter(|name| !name.is_empty()),
            opaque: proto.opaque_protocol,
            overrides: overrides
                .map(|dst| (Arc::from(dst.authority), dst.weight))
                .collect(),
            endpoint: proto
                .endpoint
                .and_then(|e| Endpoint::from_proto(e, &Default::default(), local))
                .map(Arc::new),
        }
    }
}

/// The policy service's answer about a target.
#[derive(Clone, Debug)]
pub(crate) enum PolicyAnswer {
    Policy(Box<outbound::OutboundPolicy>),
    /// Nothing is known: fall back to the profile or to the address.
    NotFound,
    Refused,
}

impl PolicyAnswer {
    pub(crate) fn of_answer(answer: Result<outbound::OutboundPolicy, Status>) -> Self {
        match answer {
            Ok(policy) => Self::Policy(Box::new(policy)),
            Err(status) if matches!(status.code(), Code::NotFound | Code::Unimplemented) => Self::NotFound,
            Err(_) => Self::Refused,
        }
    }
}

/// What the target was asked by.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Target {
    Addr(SocketAddr),
    /// By name, at a gateway or by an ingress.
    Name(Arc<str>),
}

/// Joins the two answers (`spec/proxy.md` 5.1, and 7 for names).
pub(crate) fn join(
    target: &Target,
    answer: ProfileAnswer,
    profile: Option<&Profile>,
    policy: &PolicyAnswer,
    detect_timeout: Duration,
    local: &dyn Fn(IpAddr) -> bool,
) -> Outbound {
    let port = match target {
        Target::Addr(addr) => addr.port(),
        Target::Name(name) => authority(name).and_then(|(_, port)| port).unwrap_or(80),
    };
    let logical: Option<Arc<str>> = profile
        .and_then(|p| p.name.as_ref())
        .map(|name| format!("{name}:{port}").into());
    let overridden = profile
        .filter(|p| p.name.is_some() && !p.overrides.is_empty())
        .map(|p| {
            let split = p
                .overrides
                .iter()
                .map(|(path, weight)| (Backend::Balance(path.clone()), *weight));
            Distribution::RandomAvailable(split.collect())
        });
    let opaque = profile.is_some_and(|p| p.opaque);
    let protocol = match policy {
        PolicyAnswer::Refused => Protocol::Refused,
        PolicyAnswer::Policy(policy) => from_policy(policy, local),
        PolicyAnswer::NotFound => {
            let backend = match (profile.and_then(|p| p.endpoint.clone()), target, &logical) {
                (Some(endpoint), ..) => Backend::Forward(endpoint),
                (None, _, Some(name)) => Backend::Balance(name.clone()),
                (None, Target::Addr(addr), None) => {
                    let mut endpoint = Endpoint::forward(*addr);
                    if local(addr.ip()) {
                        endpoint.tls = EndpointTls::No("loopback");
                    }
                    Backend::Forward(Arc::new(endpoint))
                }
                (None, Target::Name(_), None) => Backend::Unusable,
            };
            let distribution = Distribution::one(backend);
            let http: Arc<[_]> = Arc::new([HttpRoute::to(distribution.clone())]);
            Protocol::Detect {
                timeout: detect_timeout,
                http1: http.clone(),
                http2: http,
                opaque: TcpPolicy::Forward(distribution),
            }
        }
    };
    let protocol = match overridden {
        Some(split) => protocol.redirected(&split),
        None => protocol,
    };
    let protocol = match protocol {
        Protocol::Detect { opaque: tcp, .. } if opaque => Protocol::Opaque(tcp),
        Protocol::Http1(routes) | Protocol::Http2(routes) if opaque => {
            let first = routes.first().map(|route| route.backends.clone());
            Protocol::Opaque(TcpPolicy::Forward(
                first.unwrap_or_else(|| Distribution::one(Backend::Unusable)),
            ))
        }
        other => other,
    };
    Outbound {
        protocol,
        authority: logical,
        profile: answer,
        breaker: Breaker::of(policy),
    }
}

impl Protocol {
    /// A profile's split replaces what the policy says about where traffic goes, never that it is forbidden.
    fn redirected(self, split: &Distribution) -> Self {
        let http: Arc<[HttpRoute]> = Arc::new([HttpRoute::to(split.clone())]);
        let tcp = |policy: TcpPolicy| match policy {
            TcpPolicy::Forward(_) => TcpPolicy::Forward(split.clone()),
            TcpPolicy::Forbidden => TcpPolicy::Forbidden,
        };
        match self {
            Self::Detect { timeout, opaque, .. } => Self::Detect {
                timeout,
                http1: http.clone(),
                http2: http,
                opaque: tcp(opaque),
            },
            Self::Http1(_) => Self::Http1(http),
            Self::Http2(_) => Self::Http2(http),
            Self::Opaque(opaque) => Self::Opaque(tcp(opaque)),
            Self::Refused => Self::Refused,
        }
    }
}

fn from_policy(policy: &outbound::OutboundPolicy, local: &dyn Fn(IpAddr) -> bool) -> Protocol {
    use outbound::proxy_protocol::Kind;
    let routes = |routes: &[outbound::HttpRoute]| -> Arc<[HttpRoute]> {
        routes
            .iter()
            .flat_map(|r| HttpRoute::from_http(r, local))
            .collect()
    };
    match policy.protocol.as_ref().and_then(|p| p.kind.as_ref()) {
        Some(Kind::Detect(detect)) => {
            let one: &[_] = detect.http1.as_ref().map_or(&[], |h| &h.routes);
            let two: &[_] = detect.http2.as_ref().map_or(&[], |h| &h.routes);
            let http1 = routes(one);
            Protocol::Detect {
                timeout: span(detect.timeout).unwrap_or(Duration::from_secs(10)),
                // The same, as a rule.
                http2: if one == two { http1.clone() } else { routes(two) },
                http1,
                opaque: tcp_policy(detect.opaque.as_ref().map_or(&[], |o| &o.routes), local),
            }
        }
        Some(Kind::Http1(http)) => Protocol::Http1(routes(&http.routes)),
        Some(Kind::Http2(http)) => Protocol::Http2(routes(&http.routes)),
        Some(Kind::Grpc(grpc)) => Protocol::Http2(
            grpc.routes
                .iter()
                .flat_map(|r| HttpRoute::from_grpc(r, local))
                .collect(),
        ),
        Some(Kind::Opaque(opaque)) => Protocol::Opaque(tcp_policy(&opaque.routes, local)),
        Some(Kind::Tls(tls)) => Protocol::Opaque(tls_policy(&tls.routes, local)),
        None => Protocol::Refused,
    }
}

/// The API has the same distribution for each protocol, with types of its own.
macro_rules! distribution {
    ($($api:ident)::+, $proto:expr, $one:expr) => {{
        use $($api)::+::distribution::Kind;
        match $proto.as_ref().and_then(|d| d.kind.as_ref()) {
            Some(Kind::FirstAvailable(all)) => {
                Distribution::FirstAvailable(all.backends.iter().map($one).collect())
            }
            Some(Kind::RandomAvailable(all)) => Distribution::RandomAvailable(
                all.backends
                    .iter()
                    .map(|w| (w.backend.as_ref().map_or(Backend::Unusable, $one), w.weight))
                    .collect(),
            ),
            Some(Kind::Empty(_)) | None => Distribution::one(Backend::Unusable),
        }
    }};
}
pub(crate) use distribution;

fn tcp_policy(routes: &[outbound::OpaqueRoute], local: &dyn Fn(IpAddr) -> bool) -> TcpPolicy {
    let rule = routes.first().and_then(|route| route.rules.first());
    let Some(rule) = rule.filter(|rule| rule.filters.is_empty()) else {
        return TcpPolicy::Forbidden;
    };
    let one = |b: &outbound::opaque_route::RouteBackend| backend(b.backend.as_ref(), local);
    TcpPolicy::Forward(distribution!(outbound::opaque_route, rule.backends, one))
}

fn tls_policy(routes: &[outbound::TlsRoute], local: &dyn Fn(IpAddr) -> bool) -> TcpPolicy {
    let rule = routes.first().and_then(|route| route.rules.first());
    let Some(rule) = rule.filter(|rule| rule.filters.is_empty()) else {
        return TcpPolicy::Forbidden;
    };
    let one = |b: &outbound::tls_route::RouteBackend| backend(b.backend.as_ref(), local);
    TcpPolicy::Forward(distribution!(outbound::tls_route, rule.backends, one))
}

pub(crate) fn backend(proto: Option<&outbound::Backend>, local: &dyn Fn(IpAddr) -> bool) -> Backend {
    use outbound::backend::Kind;
    use outbound::backend::endpoint_discovery::Kind as Discovery;
    match proto.and_then(|b| b.kind.as_ref()) {
        Some(Kind::Balancer(balancer)) => match balancer.discovery.as_ref().and_then(|d| d.kind.as_ref()) {
            Some(Discovery::Dst(dst)) if authority(&dst.path).is_some_and(|(_, port)| port.is_some()) => {
                Backend::Balance(dst.path.as_str().into())
            }
            _ => Backend::Unusable,
        },
        Some(Kind::Forward(addr)) => Endpoint::from_proto(addr.clone(), &Default::default(), local)
            .map_or(Backend::Unusable, |endpoint| Backend::Forward(Arc::new(endpoint))),
        None => Backend::Unusable,
    }
}

/// What an inbound port speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InboundProtocol {
    Detect(Duration),
    Http1,
    Http2,
    Opaque,
    Tls,
}

/// One route of an inbound server; its own authorizations and the server's.
#[derive(Clone, Debug)]
pub(crate) struct InboundRoute {
    pub(crate) matches: Matches,
    pub(crate) source: Source,
    pub(crate) authorizations: Vec<Authorization>,
}

/// Who may use an inbound port.
#[derive(Clone, Debug)]
pub(crate) struct Inbound {
    pub(crate) protocol: InboundProtocol,
    pub(crate) server: Source,
    pub(crate) authorizations: Vec<Authorization>,
    pub(crate) routes: Vec<InboundRoute>,
    /// The answer could not be understood: HTTP gets 500, TCP is closed.
    pub(crate) invalid: bool,
}

pub(crate) fn source(group: &str, kind: &str, name: &str) -> Source {
    Source {
        group: group.into(),
        kind: kind.into(),
        name: name.into(),
    }
}

fn any_network() -> Vec<Network> {
    ["0.0.0.0/0", "::/0"]
        .into_iter()
        .filter_map(|net| net.parse().ok())
        .map(|net| Network {
            net,
            except: Vec::new(),
        })
        .collect()
}

/// Loopback clients are the pod itself (`spec/proxy.md` 6.1).
fn localhost() -> Authorization {
    let networks = ["127.0.0.1/32", "::1/128"];
    Authorization {
        networks: networks
            .into_iter()
            .filter_map(|n| n.parse().ok())
            .map(|net| Network {
                net,
                except: Vec::new(),
            })
            .collect(),
        authentication: Authentication::Unauthenticated,
        source: source("", "default", "localhost"),
    }
}

impl Inbound {
    /// Until the control plane has answered.
    pub(crate) fn default_for(port: u16, config: &InboundConfig, cluster_networks: &[ipnet::IpNet]) -> Self {
        let policy = config.default_policy;
        let cluster = || {
            cluster_networks
                .iter()
                .map(|net| Network {
                    net: *net,
                    except: Vec::new(),
                })
                .collect()
        };
        let authenticated = || Authentication::TlsAuthenticated(vec![IdentityPattern::Any]);
        let allow = match policy {
            DefaultPolicy::Deny => None,
            DefaultPolicy::AllAuthenticated => Some((any_network(), authenticated())),
            DefaultPolicy::AllUnauthenticated | DefaultPolicy::Audit => {
                Some((any_network(), Authentication::Unauthenticated))
            }
            DefaultPolicy::ClusterAuthenticated => Some((cluster(), authenticated())),
            DefaultPolicy::ClusterUnauthenticated => Some((cluster(), Authentication::Unauthenticated)),
        };
        let source = source("", "default", policy.as_str());
        let authorizations = allow.map(|(networks, authentication)| Authorization {
            networks,
            authentication,
            source: source.clone(),
        });
        let protocol = if config.opaque_ports.contains(&port) {
            InboundProtocol::Opaque
        } else {
            InboundProtocol::Detect(config.detect_timeout)
        };
        Self::with_defaults(protocol, source, authorizations.into_iter().collect(), Vec::new())
    }

    fn with_defaults(
        protocol: InboundProtocol,
        server: Source,
        mut authorizations: Vec<Authorization>,
        mut routes: Vec<InboundRoute>,
    ) -> Self {
        authorizations.push(localhost());
        for route in &mut routes {
            route.authorizations.extend(authorizations.iter().cloned());
        }
        if routes.is_empty() {
            routes.push(InboundRoute {
                matches: Matches::everything(),
                source: source("", "default", "default"),
                authorizations: authorizations.clone(),
            });
        }
        Self {
            protocol,
            server,
            authorizations,
            routes,
            invalid: false,
        }
    }

    pub(crate) fn from_proto(proto: inbound::Server) -> Self {
        Self::try_from_proto(proto).unwrap_or_else(|| Self {
            protocol: InboundProtocol::Detect(Duration::from_secs(10)),
            server: source("", "default", "invalid"),
            authorizations: Vec::new(),
            routes: Vec::new(),
            invalid: true,
        })
    }

    fn try_from_proto(proto: inbound::Server) -> Option<Self> {
        use inbound::proxy_protocol::Kind;
        let server = from_labels(&proto.labels)?;
        let authorizations = proto
            .authorizations
            .into_iter()
            .map(authorization)
            .collect::<Option<Vec<_>>>()?;
        let http = |routes: Vec<inbound::HttpRoute>| {
            routes.into_iter().map(inbound_route).collect::<Option<Vec<_>>>()
        };
        let (protocol, routes) = match proto.protocol?.kind? {
            Kind::Detect(detect) => (
                InboundProtocol::Detect(span(detect.timeout)?),
                http(detect.http_routes)?,
            ),
            Kind::Http1(http1) => (InboundProtocol::Http1, http(http1.routes)?),
            Kind::Http2(http2) => (InboundProtocol::Http2, http(http2.routes)?),
            Kind::Grpc(grpc) => {
                let routes = grpc
                    .routes
                    .into_iter()
                    .map(inbound_grpc_route)
                    .collect::<Option<Vec<_>>>()?;
                (InboundProtocol::Http2, routes)
            }
            Kind::Opaque(_) => (InboundProtocol::Opaque, Vec::new()),
            Kind::Tls(_) => (InboundProtocol::Tls, Vec::new()),
        };
        Some(Self::with_defaults(protocol, server, authorizations, routes))
    }
}

fn inbound_route(proto: inbound::HttpRoute) -> Option<InboundRoute> {
    let matches = proto.rules.iter().flat_map(|rule| &rule.matches);
    Some(InboundRoute {
        matches: Matches::from_proto(&proto.hosts, matches),
        source: from_metadata(proto.metadata.as_ref())?,
        authorizations: proto
            .authorizations
            .into_iter()
            .map(authorization)
            .collect::<Option<_>>()?,
    })
}

fn inbound_grpc_route(proto: inbound::GrpcRoute) -> Option<InboundRoute> {
    let matches = proto.rules.iter().flat_map(|rule| &rule.matches);
    Some(InboundRoute {
        matches: Matches::from_grpc(&proto.hosts, matches),
        source: from_metadata(proto.metadata.as_ref())?,
        authorizations: proto
            .authorizations
            .into_iter()
            .map(authorization)
            .collect::<Option<_>>()?,
    })
}

fn from_labels(labels: &std::collections::HashMap<String, String>) -> Option<Source> {
    let get = |key: &str| labels.get(key).map(String::as_str);
    Some(source(
        get("group").unwrap_or_default(),
        get("kind")?,
        get("name")?,
    ))
}

pub(crate) fn from_metadata(proto: Option<&meta::Metadata>) -> Option<Source> {
    match proto?.kind.as_ref()? {
        meta::metadata::Kind::Default(name) => Some(source("", "default", name)),
        meta::metadata::Kind::Resource(r) => Some(source(&r.group, &r.kind, &r.name)),
    }
}

fn authorization(proto: inbound::Authz) -> Option<Authorization> {
    use inbound::authn::Permit;
    use inbound::authn::permit_mesh_tls::Clients;
    let source = from_metadata(proto.metadata.as_ref()).or_else(|| from_labels(&proto.labels))?;
    let network = |network: inbound::Network| {
        let except = network
            .except
            .into_iter()
            .map(|net| net.try_into().ok())
            .collect::<Option<Vec<_>>>()?;
        Some(Network {
            net: network.net?.try_into().ok()?,
            except,
        })
    };
    let networks = proto
        .networks
        .into_iter()
        .map(network)
        .collect::<Option<Vec<_>>>()?;
    if networks.is_empty() {
        return None;
    }
    let authentication = match proto.authentication?.permit? {
        Permit::Unauthenticated(_) => Authentication::Unauthenticated,
        Permit::MeshTls(tls) => match tls.clients? {
            Clients::Unauthenticated(_) => Authentication::TlsUnauthenticated,
            Clients::Identities(clients) => {
                let exact = clients.identities.iter().map(|id| id.name.parse().ok());
                let suffix = clients
                    .suffixes
                    .iter()
                    .map(|suffix| match suffix.parts.as_slice() {
                        [] => Some(IdentityPattern::Any),
                        parts => format!("*.{}", parts.join(".")).parse().ok(),
                    });
                Authentication::TlsAuthenticated(exact.chain(suffix).collect::<Option<_>>()?)
            }
        },
    };
    Some(Authorization {
        networks,
        authentication,
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nobody(_: IpAddr) -> bool {
        false
    }

    fn addr(text: &str) -> dst::WeightedAddr {
        dst::WeightedAddr {
            addr: Some(text.parse::<SocketAddr>().unwrap().into()),
            weight: 10_000,
            ..Default::default()
        }
    }

    #[test]
    fn an_identity_that_cannot_be_verified_never_means_plain_text() {
        let uri = dst::tls_identity::UriLikeIdentity {
            uri: "spiffe://td/ns".into(),
        };
        let proto = dst::WeightedAddr {
            tls_identity: Some(dst::TlsIdentity {
                strategy: Some(dst::tls_identity::Strategy::UriLikeIdentity(uri)),
                server_name: None,
            }),
            ..addr("10.1.1.1:80")
        };
        let endpoint = Endpoint::from_proto(proto, &Default::default(), &nobody).unwrap();
        assert_eq!(endpoint.tls, EndpointTls::Unusable);
    }

    #[test]
    fn the_pod_itself_is_spoken_to_in_plain_text() {
        let id = dst::tls_identity::DnsLikeIdentity {
            name: "a.b.example".into(),
        };
        let proto = dst::WeightedAddr {
            tls_identity: Some(dst::TlsIdentity {
                strategy: Some(dst::tls_identity::Strategy::DnsLikeIdentity(id)),
                server_name: None,
            }),
            ..addr("10.1.1.1:80")
        };
        let endpoint = Endpoint::from_proto(proto, &Default::default(), &|_| true).unwrap();
        assert_eq!(endpoint.tls, EndpointTls::No("loopback"));
    }

    #[test]
    fn a_backend_without_a_port_in_its_path_fails_alone() {
        use outbound::backend::{BalanceP2c, EndpointDiscovery, Kind, endpoint_discovery};
        let with = |path: &str| outbound::Backend {
            kind: Some(Kind::Balancer(BalanceP2c {
                discovery: Some(EndpointDiscovery {
                    kind: Some(endpoint_discovery::Kind::Dst(
                        endpoint_discovery::DestinationGet { path: path.into() },
                    )),
                }),
                load: None,
            })),
            ..Default::default()
        };
        assert_eq!(backend(Some(&with("web")), &nobody), Backend::Unusable);
        assert_eq!(
            backend(Some(&with("web.ns.svc:80")), &nobody),
            Backend::Balance("web.ns.svc:80".into())
        );
    }

    #[test]
    fn overrides_of_a_profile_replace_the_policys_backend() {
        let profile = Profile {
            name: Some("web.ns.svc".into()),
            overrides: vec![("a.ns.svc:80".into(), 1), ("b.ns.svc:80".into(), 3)],
            ..Default::default()
        };
        let target = Target::Addr("10.0.0.1:80".parse().unwrap());
        let joined = join(
            &target,
            ProfileAnswer::Known,
            Some(&profile),
            &PolicyAnswer::NotFound,
            Duration::ZERO,
            &nobody,
        );
        let Protocol::Detect { http1: http, .. } = joined.protocol else {
            panic!("detects")
        };
        let expected = [("a.ns.svc:80", 1), ("b.ns.svc:80", 3)].map(|(p, w)| (Backend::Balance(p.into()), w));
        assert_eq!(http[0].backends, Distribution::RandomAvailable(expected.into()));
        assert_eq!(joined.authority.as_deref(), Some("web.ns.svc:80"));
    }

    #[test]
    fn an_unreadable_server_lets_nobody_in() {
        let policy = Inbound::from_proto(inbound::Server::default());
        assert!(policy.invalid && policy.authorizations.is_empty() && policy.routes.is_empty());
    }
}
