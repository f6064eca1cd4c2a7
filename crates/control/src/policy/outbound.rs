//! How traffic to a target goes out: the protocol to expect and the backends to choose among.
//!
//! Pure. Services get the routes that are attached to them, or a default one; addresses outside the cluster are passed
//! through; everything else is not found and the proxy makes do with the profile. Of a Service with routes, what no rule
//! matches is answered 404. Source: `spec/proxy.md` 5.2 to 5.4.

use std::time::Duration;

use hawser_crd::link::parse_duration;
use linkerd2_proxy_api::destination::WeightedAddr;
use linkerd2_proxy_api::grpc_route::GrpcFailureInjector;
use linkerd2_proxy_api::http_route::{
    HttpFailureInjector, HttpRouteMatch, PathMatch, Ratio, Timeouts, path_match,
};
use linkerd2_proxy_api::meta::Metadata;
use linkerd2_proxy_api::opaque_route::Forbidden;
use linkerd2_proxy_api::outbound::backend::balance_p2c::{Load, PeakEwma};
use linkerd2_proxy_api::outbound::backend::endpoint_discovery::{self, DestinationGet};
use linkerd2_proxy_api::outbound::backend::{self, BalanceP2c, EndpointDiscovery};
use linkerd2_proxy_api::outbound::failure_accrual::{self, ConsecutiveFailures, Unified};
use linkerd2_proxy_api::outbound::proxy_protocol::{Detect, Grpc, Http1, Http2, Kind, Opaque};
use linkerd2_proxy_api::outbound::{
    Backend, ExponentialBackoff, FailureAccrual, GrpcRoute, HttpRoute, OpaqueRoute, OutboundPolicy,
    ProxyProtocol, Queue, grpc_route, http_route, opaque_route,
};
use tonic::Status;

use super::inbound::default_metadata;
use super::routes;
use crate::destination::{endpoints, service_metadata};
use crate::mesh::{Asker, Mesh, Target};
use crate::view::objects::{Labels, Service};
use crate::view::routes::{BackendRef, Filter, Parent, Route, RouteKind, Rule};
use crate::view::{Key, State, Topic, Topics};

const DETECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A request larger than this is not kept for another attempt.
const RETRY_BYTES_MAX: u32 = 64 * 1024;

pub fn policy(
    mesh: &Mesh,
    state: &State,
    target: &Target,
    asker: &Asker,
    topics: &mut Topics,
) -> Result<OutboundPolicy, Status> {
    match target {
        Target::Address(address) => {
            topics.insert(Topic::Ip(address.ip()));
            if let Some(service) = state.service_at(address.ip()) {
                topics.insert(Topic::Service(service.key()));
                return Ok(of_service(mesh, state, service, address.port(), asker, topics));
            }
            if state.pod_at(address.ip()).is_some() || mesh.is_cluster_network(address.ip()) {
                return Err(Status::not_found(format!("{address} is not a service")));
            }
            Ok(passed_through(endpoints::plain(*address, Default::default())))
        }
        Target::Service {
            service: key,
            instance,
            port,
        } => {
            topics.insert(Topic::Service(key.clone()));
            let service = state.service(key).filter(|service| !service.external_name);
            let service =
                service.ok_or_else(|| Status::not_found(format!("service {key} does not exist")))?;
            asker.may_ask_for(mesh, state, service, topics)?;
            if instance.is_some() {
                return Err(Status::not_found("instances have no policy of their own"));
            }
            Ok(of_service(mesh, state, service, *port, asker, topics))
        }
    }
}

fn of_service(
    mesh: &Mesh,
    state: &State,
    service: &Service,
    port: u16,
    asker: &Asker,
    topics: &mut Topics,
) -> OutboundPolicy {
    let key = service.key();
    let metadata = service_metadata(&key, port);
    let defined = service.port(port);
    if defined.is_none() && !service.headless {
        return OutboundPolicy {
            protocol: Some(ProxyProtocol {
                kind: Some(Kind::Opaque(Opaque {
                    routes: vec![undefined_port()],
                })),
            }),
            metadata: Some(metadata),
        };
    }
    let backend = balancer(mesh, &key, port);
    let routes = Routes {
        metadata: "http",
        backend,
        failure_accrual: failure_accrual(&service.annotations),
        timeouts: timeouts(&service.annotations),
        retry: http_retry(&service.annotations),
    };
    let parent = Parent::Service(key.clone());
    let attached = |kind| attached(state.routes(kind, &parent, port), &key, asker);
    let mut context = Context {
        mesh,
        state,
        service,
        port,
        topics,
    };
    let app_protocol = defined.and_then(|port| port.app_protocol.as_deref());
    let is_http = matches!(app_protocol, None | Some("http" | "kubernetes.io/h2c"));
    // What isn't known is not looked at, or a protocol where the server speaks first would wait for ever.
    let is_opaque = service.is_opaque(port, &mesh.opaque_ports) || !is_http;
    let grpc_routes = attached(RouteKind::Grpc);
    let kind = if is_opaque {
        routes.opaque()
    } else if !grpc_routes.is_empty() && app_protocol != Some("http") {
        Kind::Grpc(Grpc {
            routes: grpc_routes
                .into_iter()
                .map(|route| context.grpc_route(route, &routes.backend))
                .collect(),
            failure_accrual: routes.failure_accrual,
        })
    } else {
        let mut http: Vec<HttpRoute> = attached(RouteKind::Http)
            .into_iter()
            .map(|route| context.http_route(route, &routes.backend))
            .collect();
        if http.is_empty() {
            http.push(routes.http());
        }
        routes.protocol(app_protocol, http)
    };
    OutboundPolicy {
        protocol: Some(ProxyProtocol { kind: Some(kind) }),
        metadata: Some(metadata),
    }
}

/// The routes that concern a client: those of its own namespace if there are any, else those of the Service's.
fn attached<'a>(routes: Vec<&'a Route>, service: &Key, asker: &Asker) -> Vec<&'a Route> {
    let of = |namespace: &str| -> Vec<&Route> {
        let mut routes = routes.clone();
        routes.retain(|route| route.id.key.namespace == namespace);
        routes
    };
    let own = of(&asker.namespace);
    if own.is_empty() {
        of(&service.namespace)
    } else {
        own
    }
}

fn passed_through(address: WeightedAddr) -> OutboundPolicy {
    let metadata = default_metadata("egress-fallback");
    let routes = Routes {
        metadata: "egress-fallback",
        backend: Backend {
            metadata: Some(metadata.clone()),
            queue: Some(queue()),
            kind: Some(backend::Kind::Forward(address)),
        },
        failure_accrual: None,
        timeouts: None,
        retry: None,
    };
    OutboundPolicy {
        protocol: Some(ProxyProtocol {
            kind: Some(routes.protocol(None, vec![routes.http()])),
        }),
        metadata: Some(metadata),
    }
}

fn balancer(mesh: &Mesh, service: &Key, port: u16) -> Backend {
    Backend {
        metadata: Some(service_metadata(service, port)),
        queue: Some(queue()),
        kind: Some(backend::Kind::Balancer(BalanceP2c {
            discovery: Some(EndpointDiscovery {
                kind: Some(endpoint_discovery::Kind::Dst(DestinationGet {
                    path: format!("{}:{port}", mesh.service_name(service)),
                })),
            }),
            load: Some(Load::PeakEwma(PeakEwma {
                default_rtt: Duration::from_millis(30).try_into().ok(),
                decay: Duration::from_secs(10).try_into().ok(),
            })),
        })),
    }
}

/// What routes of a Service are translated with.
struct Context<'a> {
    mesh: &'a Mesh,
    state: &'a State,
    service: &'a Service,
    port: u16,
    topics: &'a mut Topics,
}

/// Where the requests of a rule go, or what they are answered because they can't.
enum Fate {
    To(Box<Backend>, Vec<Filter>),
    Error(String),
}

/// Where a rule's requests go. The types of HTTP and gRPC have the same fields and other names.
macro_rules! distribution {
    ($route:ident, $fates:expr, $parent:expr, $filters:ident, $failure:ident) => {{
        use $route::distribution::{FirstAvailable, Kind, RandomAvailable};
        let route_backend = |fate| match fate {
            Fate::To(backend, filters) => $route::RouteBackend {
                backend: Some(*backend),
                filters: $filters(&filters),
                ..Default::default()
            },
            Fate::Error(message) => $route::RouteBackend {
                backend: Some(nowhere()),
                filters: vec![$failure(message)],
                ..Default::default()
            },
        };
        let kind = if $fates.is_empty() {
            Kind::FirstAvailable(FirstAvailable {
                backends: vec![route_backend(Fate::To($parent.clone().into(), vec![]))],
            })
        } else {
            let weighted = |(fate, weight)| $route::WeightedRouteBackend {
                backend: Some(route_backend(fate)),
                weight,
            };
            Kind::RandomAvailable(RandomAvailable {
                backends: $fates.into_iter().map(weighted).collect(),
            })
        };
        Some($route::Distribution { kind: Some(kind) })
    }};
}

impl Context<'_> {
    fn http_route(&mut self, route: &Route, parent: &Backend) -> HttpRoute {
        HttpRoute {
            metadata: Some(routes::metadata(&route.id)),
            hosts: routes::hosts(route),
            rules: route
                .rules
                .iter()
                .filter_map(|rule| self.http_rule(route, rule, parent))
                .collect(),
        }
    }

    fn http_rule(&mut self, route: &Route, rule: &Rule, parent: &Backend) -> Option<http_route::Rule> {
        let matches = said(route, routes::http_matches(&rule.matches))?;
        let fates = self.fates(route, rule);
        Some(http_route::Rule {
            matches,
            filters: http_filters(&rule.filters),
            backends: distribution!(http_route, fates, parent, http_filters, http_failure),
            timeouts: self.timeouts(route, rule),
            retry: self.annotated(route, http_retry),
            allow_l5d_request_headers: true,
            ..http_route::Rule::default()
        })
    }

    fn grpc_route(&mut self, route: &Route, parent: &Backend) -> GrpcRoute {
        GrpcRoute {
            metadata: Some(routes::metadata(&route.id)),
            hosts: routes::hosts(route),
            rules: route
                .rules
                .iter()
                .filter_map(|rule| self.grpc_rule(route, rule, parent))
                .collect(),
        }
    }

    fn grpc_rule(&mut self, route: &Route, rule: &Rule, parent: &Backend) -> Option<grpc_route::Rule> {
        let matches = said(route, routes::grpc_matches(&rule.matches))?;
        let fates = self.fates(route, rule);
        Some(grpc_route::Rule {
            matches,
            filters: grpc_filters(&rule.filters),
            backends: distribution!(grpc_route, fates, parent, grpc_filters, grpc_failure),
            timeouts: self.timeouts(route, rule),
            retry: self.annotated(route, grpc_retry),
            allow_l5d_request_headers: true,
            ..grpc_route::Rule::default()
        })
    }

    /// The backends of a rule with their weights; none means the Service itself.
    fn fates(&mut self, route: &Route, rule: &Rule) -> Vec<(Fate, u32)> {
        if rule.backend_refs.is_empty() {
            return vec![];
        }
        let weighted = rule
            .backend_refs
            .iter()
            .filter(|backend| backend.weight != Some(0));
        let fates: Vec<(Fate, u32)> = weighted
            .map(|backend| (self.fate(route, backend), backend.weight.unwrap_or(1)))
            .collect();
        if fates.is_empty() {
            return vec![(Fate::Error("No backend has any weight".into()), 1)];
        }
        fates
    }

    fn fate(&mut self, route: &Route, backend: &BackendRef) -> Fate {
        let kind = backend.kind.as_deref().unwrap_or("Service");
        if !matches!(backend.group.as_str(), "" | "core") || kind != "Service" {
            return Fate::Error(format!("Backend kind not supported {kind}"));
        }
        let namespace = backend.namespace.as_ref().unwrap_or(&route.id.key.namespace);
        let key = Key::new(namespace, &backend.name);
        self.topics.insert(Topic::Service(key.clone()));
        let found = self.state.service(&key).filter(|service| !service.external_name);
        let Some(service) = found else {
            return Fate::Error(format!("Service not found {}", backend.name));
        };
        let is_parent = key == self.service.key();
        let port = backend.port.or_else(|| is_parent.then_some(self.port));
        match port.filter(|port| service.headless || service.port(*port).is_some()) {
            Some(port) => Fate::To(balancer(self.mesh, &key, port).into(), backend.filters.clone()),
            None => Fate::Error(format!("Service has no such port {}", backend.name)),
        }
    }

    /// What a route's own annotations say, or else the Service's.
    fn annotated<T>(&self, route: &Route, read: impl Fn(&Labels) -> Option<T>) -> Option<T> {
        read(&route.annotations).or_else(|| read(&self.service.annotations))
    }

    fn timeouts(&self, route: &Route, rule: &Rule) -> Option<Timeouts> {
        let request = rule.timeouts.request.as_deref().and_then(parse_duration);
        // Zero means none at all.
        let request = request.filter(|request| !request.is_zero());
        let mut timeouts = self.annotated(route, timeouts).unwrap_or_default();
        if let Some(request) = request {
            timeouts.request = request.try_into().ok();
        }
        (timeouts != Timeouts::default()).then_some(timeouts)
    }
}

/// A rule whose matches can't be said matches nothing.
fn said<T>(route: &Route, matches: Result<T, routes::Unspeakable>) -> Option<T> {
    matches
        .inspect_err(|error| tracing::warn!(route = %route.id.key, %error, "a rule is ignored"))
        .ok()
}

/// Stands where no backend can be; a filter answers before it is asked.
fn nowhere() -> Backend {
    Backend {
        metadata: Some(default_metadata("invalid")),
        queue: Some(queue()),
        kind: None,
    }
}

fn always() -> Option<Ratio> {
    Some(Ratio {
        numerator: 1,
        denominator: 1,
    })
}

fn http_failure(message: String) -> http_route::Filter {
    http_route::Filter {
        kind: Some(http_route::filter::Kind::FailureInjector(HttpFailureInjector {
            status: 500,
            message,
            ratio: always(),
        })),
    }
}

/// Unknown would tell clients nothing; that a backend is missing is a server's fault that may pass.
fn grpc_failure(message: String) -> grpc_route::Filter {
    grpc_route::Filter {
        kind: Some(grpc_route::filter::Kind::FailureInjector(GrpcFailureInjector {
            code: tonic::Code::Unavailable as u32,
            message,
            ratio: always(),
        })),
    }
}

fn http_filters(filters: &[Filter]) -> Vec<http_route::Filter> {
    use http_route::filter::Kind;
    let filter = |filter: &Filter| match filter {
        Filter::RequestHeaders(change) => http_route::Filter {
            kind: Some(Kind::RequestHeaderModifier(routes::request_headers(change))),
        },
        Filter::ResponseHeaders(change) => http_route::Filter {
            kind: Some(Kind::ResponseHeaderModifier(routes::response_headers(change))),
        },
        Filter::Redirect(redirect) => http_route::Filter {
            kind: Some(Kind::Redirect(routes::redirect(redirect))),
        },
        Filter::Unsupported(kind) => http_failure(format!("Filter not supported {kind}")),
    };
    filters.iter().map(filter).collect()
}

fn grpc_filters(filters: &[Filter]) -> Vec<grpc_route::Filter> {
    let filter = |filter: &Filter| match filter {
        Filter::RequestHeaders(change) => grpc_route::Filter {
            kind: Some(grpc_route::filter::Kind::RequestHeaderModifier(
                routes::request_headers(change),
            )),
        },
        Filter::ResponseHeaders(_) => grpc_failure("Filter not supported ResponseHeaderModifier".into()),
        Filter::Redirect(_) => grpc_failure("Filter not supported RequestRedirect".into()),
        Filter::Unsupported(kind) => grpc_failure(format!("Filter not supported {kind}")),
    };
    filters.iter().map(filter).collect()
}

/// The one route that each protocol has without any of its users', to the one backend.
struct Routes {
    metadata: &'static str,
    backend: Backend,
    failure_accrual: Option<FailureAccrual>,
    timeouts: Option<Timeouts>,
    retry: Option<http_route::Retry>,
}

impl Routes {
    /// HTTP as the port's `appProtocol` says, or whatever comes.
    fn protocol(&self, app_protocol: Option<&str>, routes: Vec<HttpRoute>) -> Kind {
        let failure_accrual = self.failure_accrual;
        let http1 = |routes| Http1 {
            routes,
            failure_accrual,
        };
        let http2 = |routes| Http2 {
            routes,
            failure_accrual,
        };
        match app_protocol {
            Some("http") => Kind::Http1(http1(routes)),
            Some("kubernetes.io/h2c") => Kind::Http2(http2(routes)),
            _ => Kind::Detect(Detect {
                timeout: DETECT_TIMEOUT.try_into().ok(),
                opaque: Some(Opaque {
                    routes: vec![self.opaque_route()],
                }),
                http1: Some(http1(routes.clone())),
                http2: Some(http2(routes)),
            }),
        }
    }

    fn opaque(&self) -> Kind {
        Kind::Opaque(Opaque {
            routes: vec![self.opaque_route()],
        })
    }

    fn http(&self) -> HttpRoute {
        use http_route::distribution::{FirstAvailable, Kind};
        let backend = http_route::RouteBackend {
            backend: Some(self.backend.clone()),
            ..Default::default()
        };
        let everything = HttpRouteMatch {
            path: Some(PathMatch {
                kind: Some(path_match::Kind::Prefix("/".into())),
            }),
            ..HttpRouteMatch::default()
        };
        HttpRoute {
            metadata: Some(default_metadata(self.metadata)),
            rules: vec![http_route::Rule {
                matches: vec![everything],
                backends: Some(http_route::Distribution {
                    kind: Some(Kind::FirstAvailable(FirstAvailable {
                        backends: vec![backend],
                    })),
                }),
                timeouts: self.timeouts,
                retry: self.retry.clone(),
                ..http_route::Rule::default()
            }],
            ..HttpRoute::default()
        }
    }

    fn opaque_route(&self) -> OpaqueRoute {
        let metadata = if self.metadata == "http" {
            "opaq"
        } else {
            self.metadata
        };
        opaque_route_to(default_metadata(metadata), Some(self.backend.clone()), vec![])
    }
}

fn opaque_route_to(
    metadata: Metadata,
    backend: Option<Backend>,
    filters: Vec<opaque_route::Filter>,
) -> OpaqueRoute {
    use opaque_route::distribution::{Empty, FirstAvailable, Kind};
    let kind = match backend {
        None => Kind::Empty(Empty {}),
        Some(backend) => Kind::FirstAvailable(FirstAvailable {
            backends: vec![opaque_route::RouteBackend {
                backend: Some(backend),
                filters: vec![],
            }],
        }),
    };
    OpaqueRoute {
        metadata: Some(metadata),
        rules: vec![opaque_route::Rule {
            backends: Some(opaque_route::Distribution { kind: Some(kind) }),
            filters,
        }],
    }
}

fn undefined_port() -> OpaqueRoute {
    let forbidden = opaque_route::Filter {
        kind: Some(opaque_route::filter::Kind::Forbidden(Forbidden {})),
    };
    opaque_route_to(default_metadata("undefined-port"), None, vec![forbidden])
}

fn queue() -> Queue {
    Queue {
        capacity: 100,
        failfast_timeout: Duration::from_secs(3).try_into().ok(),
    }
}

fn timeouts(annotations: &Labels) -> Option<Timeouts> {
    let read = |name: &str| {
        let text = annotations.get(&format!("timeout.linkerd.io/{name}"))?;
        parse_duration(text)?.try_into().ok()
    };
    let timeouts = Timeouts {
        request: read("request"),
        response: read("response"),
        idle: read("idle"),
    };
    (timeouts != Timeouts::default()).then_some(timeouts)
}

/// Answers that `retry.linkerd.io/http` names: `5xx`, `gateway-error`, `503`, `500-504`. One that can't be read means
/// no retries: better than retrying what nobody wanted.
fn http_retry(annotations: &Labels) -> Option<http_route::Retry> {
    use http_route::retry::{Conditions, conditions::StatusRange};
    let range = |item: &str| {
        let (start, end) = match item {
            "5xx" => (500, 599),
            "gateway-error" => (502, 504),
            item => match item.split_once('-') {
                Some((start, end)) => (start.parse().ok()?, end.parse().ok()?),
                None => item.parse().ok().map(|code| (code, code))?,
            },
        };
        (100 <= start && start <= end && end <= 599).then_some(StatusRange { start, end })
    };
    let listed = annotations.get("retry.linkerd.io/http")?;
    let status_ranges = listed
        .split(',')
        .map(|item| range(item.trim()))
        .collect::<Option<_>>();
    let Some(status_ranges) = status_ranges else {
        tracing::warn!(listed, "retry.linkerd.io/http can't be read; nothing is retried");
        return None;
    };
    Some(http_route::Retry {
        max_retries: retry_limit(annotations),
        max_request_bytes: RETRY_BYTES_MAX,
        conditions: Some(Conditions { status_ranges }),
        timeout: retry_timeout(annotations).and_then(|timeout| timeout.try_into().ok()),
        backoff: Some(retry_backoff()),
    })
}

/// Statuses that `retry.linkerd.io/grpc` names.
fn grpc_retry(annotations: &Labels) -> Option<grpc_route::Retry> {
    let mut conditions = grpc_route::retry::Conditions::default();
    let listed = annotations.get("retry.linkerd.io/grpc")?;
    for status in listed.split(',').map(str::trim) {
        let condition = match status {
            "cancelled" => &mut conditions.cancelled,
            "deadline-exceeded" => &mut conditions.deadine_exceeded,
            "internal" => &mut conditions.internal,
            "resource-exhausted" => &mut conditions.resource_exhausted,
            "unavailable" => &mut conditions.unavailable,
            _ => {
                tracing::warn!(listed, "retry.linkerd.io/grpc can't be read; nothing is retried");
                return None;
            }
        };
        *condition = true;
    }
    Some(grpc_route::Retry {
        max_retries: retry_limit(annotations),
        max_request_bytes: RETRY_BYTES_MAX,
        conditions: Some(conditions),
        timeout: retry_timeout(annotations).and_then(|timeout| timeout.try_into().ok()),
        backoff: Some(retry_backoff()),
    })
}

fn retry_limit(annotations: &Labels) -> u32 {
    let limit = annotations.get("retry.linkerd.io/limit");
    limit.and_then(|text| text.parse().ok()).unwrap_or(1)
}

fn retry_timeout(annotations: &Labels) -> Option<Duration> {
    parse_duration(annotations.get("retry.linkerd.io/timeout")?)
}

fn retry_backoff() -> ExponentialBackoff {
    ExponentialBackoff {
        min_backoff: Duration::from_millis(25).try_into().ok(),
        max_backoff: Duration::from_millis(250).try_into().ok(),
        jitter_ratio: 1.0,
        ..ExponentialBackoff::default()
    }
}

/// A breaker as the annotations ask for it; a value that can't be read means its default.
fn failure_accrual(annotations: &Labels) -> Option<FailureAccrual> {
    let setting = |name: &str| annotations.get(&format!("balancer.linkerd.io/failure-accrual{name}"));
    let kind = setting("")?;
    let duration = |name: &str, default: u64| {
        let read = setting(name).and_then(|text| parse_duration(text));
        read.unwrap_or_else(|| Duration::from_secs(default))
    };
    let number = |name: &str, default: u32| {
        let read = setting(name).and_then(|text| text.parse().ok());
        read.unwrap_or(default)
    };
    let min_backoff = duration("-consecutive-min-penalty", 1);
    let max_backoff = duration("-consecutive-max-penalty", 60).max(min_backoff);
    let jitter = setting("-consecutive-jitter-ratio").and_then(|text| text.parse::<f32>().ok());
    let backoff = Some(ExponentialBackoff {
        min_backoff: min_backoff.try_into().ok(),
        max_backoff: max_backoff.try_into().ok(),
        jitter_ratio: jitter.filter(|jitter| *jitter >= 0.0).unwrap_or(0.5),
        ..ExponentialBackoff::default()
    });
    let max_failures = number("-consecutive-max-failures", 7);
    let threshold = setting("-success-rate-threshold").and_then(|text| text.parse::<f64>().ok());
    let kind = match kind.as_str() {
        "consecutive" => failure_accrual::Kind::ConsecutiveFailures(ConsecutiveFailures {
            max_failures,
            backoff,
        }),
        "unified" => failure_accrual::Kind::Unified(Unified {
            success_rate_threshold: threshold
                .filter(|threshold| (0.0..=1.0).contains(threshold))
                .unwrap_or(0.8),
            decay: duration("-success-rate-window", 10).try_into().ok(),
            min_requests: number("-success-rate-min-requests", 5),
            max_consecutive_failures: max_failures,
            backoff,
        }),
        _ => return None,
    };
    Some(FailureAccrual {
        kind: Some(kind),
        ..FailureAccrual::default()
    })
}
