//! `hawser diagnostics policy`: who may come in on a port of a pod, or how traffic to a Service goes out.
//!
//! The control plane's answer, reduced to what decides: protocol, authorizations, backends.

use std::process::ExitCode;

use hawser_control::values::Values;
use ipnet::IpNet;
use kube::Client;
use linkerd2_proxy_api::inbound::authn::Permit;
use linkerd2_proxy_api::inbound::authn::permit_mesh_tls::Clients;
use linkerd2_proxy_api::inbound::inbound_server_policies_client::InboundServerPoliciesClient;
use linkerd2_proxy_api::inbound::proxy_protocol::Kind as Inbound;
use linkerd2_proxy_api::inbound::{Authz, HttpRoute, PortSpec, Server};
use linkerd2_proxy_api::meta::{Metadata, metadata};
use linkerd2_proxy_api::outbound::backend::endpoint_discovery;
use linkerd2_proxy_api::outbound::outbound_policies_client::OutboundPoliciesClient;
use linkerd2_proxy_api::outbound::proxy_protocol::Kind as Outbound;
use linkerd2_proxy_api::outbound::{self, Backend, OutboundPolicy, TrafficSpec, traffic_spec};
use serde_json::{Map, Value, json};
use tonic::Status;
use tonic::transport::Channel;

use super::{DEADLINE, POLICY_PORT, destination};
use crate::multicluster::mesh_values;
use crate::output::{Output, write_out};
use crate::problem::Problem;

/// Show the policy of a pod's port, or of a Service's
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  hawser diagnostics policy -n emojivoto po/web-6f9b87c9d5-x2x7k 8080   who may come in
  hawser diagnostics policy -n emojivoto svc/web-svc 80                 how traffic goes out")]
pub(super) struct PolicyArgs {
    /// po/NAME or svc/NAME
    resource: String,
    port: u16,
    #[arg(short, long, default_value = "default")]
    namespace: String,
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Debug, PartialEq, Eq)]
enum Subject<'a> {
    Pod(&'a str),
    Service(&'a str),
}

impl<'a> Subject<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let (kind, name) = text.split_once('/')?;
        match kind {
            _ if name.is_empty() || name.contains('/') => None,
            "po" | "pod" | "pods" => Some(Self::Pod(name)),
            "svc" | "service" | "services" => Some(Self::Service(name)),
            _ => None,
        }
    }
}

pub(super) async fn run(client: &Client, linkerd: &str, args: PolicyArgs) -> Result<ExitCode, Problem> {
    let what = format!("cannot tell the policy of {}", args.resource);
    let subject = Subject::parse(&args.resource)
        .ok_or_else(|| Problem::new(&what, "it is neither a pod nor a service", "po/NAME or svc/NAME"))?;
    let domain = match subject {
        Subject::Pod(_) => Values::default().cluster_domain,
        Subject::Service(_) => mesh_values(client, linkerd).await?.cluster_domain,
    };
    let channel = destination(client, linkerd, POLICY_PORT).await?;
    let asking = async {
        match subject {
            Subject::Pod(name) => {
                let server = of_port(channel, &args.namespace, name, args.port).await;
                server.map(|server| inbound(&server))
            }
            Subject::Service(name) => {
                let authority = format!("{name}.{}.svc.{domain}:{}", args.namespace, args.port);
                let spec = TrafficSpec {
                    source_workload: json!({"ns": args.namespace}).to_string(),
                    target: Some(traffic_spec::Target::Authority(authority)),
                };
                let mut policies = OutboundPoliciesClient::new(channel);
                policies
                    .get(spec)
                    .await
                    .map(|answer| outbound(&answer.into_inner()))
            }
        }
    };
    let answer = tokio::time::timeout(DEADLINE, asking)
        .await
        .unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time")));
    let answer = answer.map_err(|status| {
        let attempt = "check the name, --namespace and the port";
        Problem::new(what, status.message().to_owned(), attempt)
    })?;
    write_out(&match args.output {
        Output::Yaml => crate::output::yaml(&[answer])?,
        Output::Json => format!("{answer:#}\n"),
    })?;
    Ok(ExitCode::SUCCESS)
}

/// What the pod's proxy is told of one of its ports.
pub(crate) async fn of_port(
    channel: Channel,
    namespace: &str,
    pod: &str,
    port: u16,
) -> Result<Server, Status> {
    let spec = PortSpec {
        workload: json!({"ns": namespace, "pod": pod}).to_string(),
        port: port.into(),
    };
    let mut policies = InboundServerPoliciesClient::new(channel);
    policies.get_port(spec).await.map(tonic::Response::into_inner)
}

fn inbound(server: &Server) -> Value {
    let kind = server
        .protocol
        .as_ref()
        .and_then(|protocol| protocol.kind.as_ref());
    let (protocol, routes): (_, &[HttpRoute]) = match kind {
        Some(Inbound::Detect(detect)) => ("detect", &detect.http_routes),
        Some(Inbound::Http1(http)) => ("http1", &http.routes),
        Some(Inbound::Http2(http)) => ("http2", &http.routes),
        Some(Inbound::Grpc(_)) => ("grpc", &[]),
        Some(Inbound::Opaque(_)) => ("opaque", &[]),
        Some(Inbound::Tls(_)) => ("tls", &[]),
        None => ("none", &[]),
    };
    let routes: Vec<Value> = routes
        .iter()
        .map(|route| json!({"route": resource(route.metadata.as_ref()), "authorizations": authorizations(&route.authorizations)}))
        .collect();
    let labels: Map<String, Value> = server
        .labels
        .iter()
        .map(|(name, value)| (name.clone(), json!(value)))
        .collect();
    json!({"server": labels, "protocol": protocol, "authorizations": authorizations(&server.authorizations), "routes": routes})
}

fn authorizations(list: &[Authz]) -> Vec<Value> {
    let one = |authorization: &Authz| {
        let networks = authorization.networks.iter().filter_map(|network| {
            let included = IpNet::try_from(network.net?).ok()?;
            let except = network
                .except
                .iter()
                .filter_map(|except| IpNet::try_from(*except).ok());
            let except: Vec<String> = except.map(|net| net.to_string()).collect();
            Some(if except.is_empty() {
                json!(included)
            } else {
                json!({"network": included, "except": except})
            })
        });
        let permit = authorization
            .authentication
            .as_ref()
            .and_then(|authn| authn.permit.as_ref());
        json!({
            "authorization": resource(authorization.metadata.as_ref()),
            "networks": networks.collect::<Vec<_>>(),
            "clients": permit.map_or_else(|| json!("nobody"), clients),
        })
    };
    list.iter().map(one).collect()
}

/// Each authorization and whom it lets in, in a few words.
pub(crate) fn permitted(list: &[Authz]) -> Vec<String> {
    let one = |authorization: &Authz| {
        let name = match resource(authorization.metadata.as_ref()) {
            Value::String(name) => name,
            _ => "an authorization".to_owned(),
        };
        let permit = authorization
            .authentication
            .as_ref()
            .and_then(|authn| authn.permit.as_ref());
        let clients = match permit.map_or_else(|| json!("nobody"), clients) {
            Value::Array(names) => {
                let names: Vec<&str> = names.iter().filter_map(Value::as_str).collect();
                names.join(", ")
            }
            Value::String(words) => words,
            _ => String::new(),
        };
        let networks = authorization.networks.iter();
        let networks = networks.filter_map(|network| IpNet::try_from(network.net?).ok());
        let networks: Vec<String> = networks.map(|net| net.to_string()).collect();
        let from = match networks.iter().any(|net| net.ends_with("/0")) {
            true => String::new(),
            false => format!(" from {}", networks.join(", ")),
        };
        format!("{name} ({clients}{from})")
    };
    list.iter().map(one).collect()
}

fn clients(permit: &Permit) -> Value {
    let Permit::MeshTls(tls) = permit else {
        return json!("anybody");
    };
    match &tls.clients {
        None => json!("nobody"),
        Some(Clients::Unauthenticated(_)) => json!("over mesh TLS, with or without an identity"),
        Some(Clients::Identities(permitted)) => {
            let exact = permitted.identities.iter().map(|identity| identity.name.clone());
            let suffixes = permitted.suffixes.iter().map(|suffix| {
                let parts = std::iter::once("*").chain(suffix.parts.iter().map(String::as_str));
                parts.collect::<Vec<_>>().join(".")
            });
            exact.chain(suffixes).collect()
        }
    }
}

fn outbound(policy: &OutboundPolicy) -> Value {
    let kind = policy
        .protocol
        .as_ref()
        .and_then(|protocol| protocol.kind.as_ref());
    let mut answer = json!({"resource": resource(policy.metadata.as_ref())});
    let mut routes = Map::new();
    let protocol = match kind {
        Some(Outbound::Detect(detect)) => {
            if let Some(http) = &detect.http1 {
                routes.insert("http1".into(), http_routes(&http.routes));
            }
            if let Some(http) = &detect.http2 {
                routes.insert("http2".into(), http_routes(&http.routes));
            }
            if let Some(opaque) = &detect.opaque {
                routes.insert("opaque".into(), opaque_routes(&opaque.routes));
            }
            "detect"
        }
        Some(Outbound::Http1(http)) => {
            routes.insert("http1".into(), http_routes(&http.routes));
            "http1"
        }
        Some(Outbound::Http2(http)) => {
            routes.insert("http2".into(), http_routes(&http.routes));
            "http2"
        }
        Some(Outbound::Opaque(opaque)) => {
            routes.insert("opaque".into(), opaque_routes(&opaque.routes));
            "opaque"
        }
        Some(Outbound::Grpc(_)) => "grpc",
        Some(Outbound::Tls(_)) => "tls",
        None => "none",
    };
    answer["protocol"] = json!(protocol);
    answer["routes"] = Value::Object(routes);
    answer
}

/// HTTP and opaque routes are the same to us, and different types.
macro_rules! routes {
    ($name:ident, $route:ty, $($distribution:ident)::+) => {
        fn $name(routes: &[$route]) -> Value {
            use $($distribution)::+::Kind;
            let route = |route: &$route| {
                let distributions = route.rules.iter().filter_map(|rule| rule.backends.as_ref()?.kind.as_ref());
                let backends = distributions.flat_map(|distribution| match distribution {
                    Kind::Empty(_) => Vec::new(),
                    Kind::FirstAvailable(first) => {
                        let first = first.backends.iter();
                        first.map(|one| backend(one.backend.as_ref(), None)).collect()
                    }
                    Kind::RandomAvailable(random) => {
                        let weighted = random.backends.iter().map(|weighted| {
                            let one = weighted.backend.as_ref().and_then(|route| route.backend.as_ref());
                            backend(one, Some(weighted.weight))
                        });
                        weighted.collect()
                    }
                });
                json!({"route": resource(route.metadata.as_ref()), "backends": backends.collect::<Vec<Value>>()})
            };
            routes.iter().map(route).collect()
        }
    };
}

routes!(
    http_routes,
    outbound::HttpRoute,
    outbound::http_route::distribution
);
routes!(
    opaque_routes,
    outbound::OpaqueRoute,
    outbound::opaque_route::distribution
);

fn backend(backend: Option<&Backend>, weight: Option<u32>) -> Value {
    use outbound::backend::Kind;
    let kind = backend.and_then(|backend| backend.kind.as_ref());
    let target = match kind {
        Some(Kind::Balancer(balancer)) => {
            let discovery = balancer
                .discovery
                .as_ref()
                .and_then(|discovery| discovery.kind.as_ref());
            discovery.map(|endpoint_discovery::Kind::Dst(get)| get.path.clone())
        }
        Some(Kind::Forward(address)) => {
            let address = address
                .addr
                .and_then(|address| std::net::SocketAddr::try_from(address).ok());
            address.map(|address| address.to_string())
        }
        None => None,
    };
    let mut shown =
        json!({"to": target, "resource": resource(backend.and_then(|backend| backend.metadata.as_ref()))});
    if let Some(weight) = weight {
        shown["weight"] = weight.into();
    }
    shown
}

/// `kind/namespace/name`, or the name of a default.
fn resource(metadata: Option<&Metadata>) -> Value {
    match metadata.and_then(|metadata| metadata.kind.as_ref()) {
        None => Value::Null,
        Some(metadata::Kind::Default(name)) => json!(format!("default {name}")),
        Some(metadata::Kind::Resource(resource)) => {
            let kind = resource.kind.to_ascii_lowercase();
            let port = match resource.port {
                0 => String::new(),
                port => format!(":{port}"),
            };
            json!(format!("{kind}/{}/{}{port}", resource.namespace, resource.name))
        }
    }
}

#[cfg(test)]
mod tests {
    use linkerd2_proxy_api::inbound::proxy_protocol::Opaque;
    use linkerd2_proxy_api::inbound::{Authn, Identity, IdentitySuffix, Network, ProxyProtocol, authn};

    use super::*;

    #[test]
    fn subjects_are_named_as_for_kubectl() {
        assert_eq!(Subject::parse("po/web-1"), Some(Subject::Pod("web-1")));
        assert_eq!(
            Subject::parse("service/web-svc"),
            Some(Subject::Service("web-svc"))
        );
        for text in ["web", "svc/", "deploy/web", "svc/a/b"] {
            assert_eq!(Subject::parse(text), None, "{text}");
        }
    }

    #[test]
    fn an_inbound_policy_says_who_may_come_in_from_where() {
        let permitted = authn::permit_mesh_tls::PermitClientIdentities {
            identities: vec![Identity {
                name: "web.emojivoto.serviceaccount.identity.linkerd.cluster.local".into(),
            }],
            suffixes: vec![IdentitySuffix {
                parts: vec!["linkerd".into(), "cluster".into(), "local".into()],
            }],
        };
        let server = Server {
            protocol: Some(ProxyProtocol {
                kind: Some(Inbound::Opaque(Opaque {})),
            }),
            authorizations: vec![Authz {
                networks: vec![Network {
                    net: Some("10.0.0.0/8".parse::<IpNet>().unwrap().into()),
                    except: vec![],
                }],
                authentication: Some(Authn {
                    permit: Some(Permit::MeshTls(authn::PermitMeshTls {
                        clients: Some(Clients::Identities(permitted)),
                    })),
                }),
                metadata: Some(Metadata {
                    kind: Some(metadata::Kind::Default("all-authenticated".into())),
                }),
                ..Authz::default()
            }],
            ..Server::default()
        };
        assert_eq!(
            inbound(&server),
            json!({"server": {}, "protocol": "opaque", "routes": [], "authorizations": [{
                "authorization": "default all-authenticated",
                "networks": ["10.0.0.0/8"],
                "clients": ["web.emojivoto.serviceaccount.identity.linkerd.cluster.local", "*.linkerd.cluster.local"],
            }]})
        );
    }
}
