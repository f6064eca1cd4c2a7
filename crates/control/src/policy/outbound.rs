//! How traffic to a target goes out: the protocol to expect and the backends to choose among.
//!
//! Pure. Services get their default policy, addresses outside the cluster are passed through, everything else is not
//! found and the proxy makes do with the profile. Routes (HTTPRoute, GRPCRoute) are not served yet.
//! Source: `spec/proxy.md` 5.2 and 5.3.

use std::time::Duration;

use hawser_crd::link::parse_duration;
use linkerd2_proxy_api::destination::WeightedAddr;
use linkerd2_proxy_api::http_route::{HttpRouteMatch, PathMatch, Timeouts, path_match};
use linkerd2_proxy_api::meta::Metadata;
use linkerd2_proxy_api::opaque_route::Forbidden;
use linkerd2_proxy_api::outbound::backend::balance_p2c::{Load, PeakEwma};
use linkerd2_proxy_api::outbound::backend::endpoint_discovery::{self, DestinationGet};
use linkerd2_proxy_api::outbound::backend::{self, BalanceP2c, EndpointDiscovery};
use linkerd2_proxy_api::outbound::failure_accrual::{self, ConsecutiveFailures};
use linkerd2_proxy_api::outbound::proxy_protocol::{Detect, Http1, Http2, Kind, Opaque};
use linkerd2_proxy_api::outbound::{
    Backend, ExponentialBackoff, FailureAccrual, HttpRoute, OpaqueRoute, OutboundPolicy, ProxyProtocol,
    Queue, http_route, opaque_route,
};
use tonic::Status;

use super::inbound::default_metadata;
use crate::destination::{endpoints, service_metadata};
use crate::mesh::{Asker, Mesh, Target};
use crate::view::objects::{Labels, Service};
use crate::view::{State, Topic, Topics};

const DETECT_TIMEOUT: Duration = Duration::from_secs(10);

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
                return Ok(of_service(mesh, service, address.port()));
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
            Ok(of_service(mesh, service, *port))
        }
    }
}

fn of_service(mesh: &Mesh, service: &Service, port: u16) -> OutboundPolicy {
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
    let backend = Backend {
        metadata: Some(metadata.clone()),
        queue: Some(queue()),
        kind: Some(backend::Kind::Balancer(BalanceP2c {
            discovery: Some(EndpointDiscovery {
                kind: Some(endpoint_discovery::Kind::Dst(DestinationGet {
                    path: format!("{}:{port}", mesh.service_name(&key)),
                })),
            }),
            load: Some(Load::PeakEwma(PeakEwma {
                default_rtt: Duration::from_millis(30).try_into().ok(),
                decay: Duration::from_secs(10).try_into().ok(),
            })),
        })),
    };
    let routes = Routes {
        metadata: "http",
        backend,
        failure_accrual: failure_accrual(&service.annotations),
        timeouts: timeouts(&service.annotations),
    };
    let app_protocol = defined.and_then(|port| port.app_protocol.as_deref());
    let kind = match app_protocol {
        _ if service.is_opaque(port, &mesh.opaque_ports) => routes.opaque(),
        None => routes.detect(),
        Some("http") => Kind::Http1(Http1 {
            routes: vec![routes.http()],
            failure_accrual: routes.failure_accrual,
        }),
        Some("kubernetes.io/h2c") => Kind::Http2(Http2 {
            routes: vec![routes.http()],
            failure_accrual: routes.failure_accrual,
        }),
        // What isn't known is not looked at, or a protocol where the server speaks first would wait for ever.
        Some(_) => routes.opaque(),
    };
    OutboundPolicy {
        protocol: Some(ProxyProtocol { kind: Some(kind) }),
        metadata: Some(metadata),
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
    };
    OutboundPolicy {
        protocol: Some(ProxyProtocol {
            kind: Some(routes.detect()),
        }),
        metadata: Some(metadata),
    }
}

/// The one route that each protocol has, to the one backend.
struct Routes {
    metadata: &'static str,
    backend: Backend,
    failure_accrual: Option<FailureAccrual>,
    timeouts: Option<Timeouts>,
}

impl Routes {
    fn detect(&self) -> Kind {
        let http = vec![self.http()];
        Kind::Detect(Detect {
            timeout: DETECT_TIMEOUT.try_into().ok(),
            opaque: Some(Opaque {
                routes: vec![self.opaque_route()],
            }),
            http1: Some(Http1 {
                routes: http.clone(),
                failure_accrual: self.failure_accrual,
            }),
            http2: Some(Http2 {
                routes: http,
                failure_accrual: self.failure_accrual,
            }),
        })
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

/// Only the `consecutive` breaker; a value that can't be read means its default.
fn failure_accrual(annotations: &Labels) -> Option<FailureAccrual> {
    let setting = |name: &str| annotations.get(&format!("balancer.linkerd.io/failure-accrual{name}"));
    setting("").filter(|kind| *kind == "consecutive")?;
    let duration = |name: &str, default: u64| {
        let read = setting(name).and_then(|text| parse_duration(text));
        read.unwrap_or_else(|| Duration::from_secs(default))
    };
    let min_backoff = duration("-consecutive-min-penalty", 1);
    let max_backoff = duration("-consecutive-max-penalty", 60).max(min_backoff);
    let jitter = setting("-consecutive-jitter-ratio").and_then(|text| text.parse::<f32>().ok());
    Some(FailureAccrual {
        kind: Some(failure_accrual::Kind::ConsecutiveFailures(ConsecutiveFailures {
            max_failures: setting("-consecutive-max-failures")
                .and_then(|text| text.parse().ok())
                .unwrap_or(7),
            backoff: Some(ExponentialBackoff {
                min_backoff: min_backoff.try_into().ok(),
                max_backoff: max_backoff.try_into().ok(),
                jitter_ratio: jitter.filter(|jitter| *jitter >= 0.0).unwrap_or(0.5),
                ..ExponentialBackoff::default()
            }),
        })),
        ..FailureAccrual::default()
    })
}
