//! Who may come in on a port of a pod.
//!
//! Pure: Servers, the routes attached to them and authorizations become the message that the pod's proxy enforces. Whatever can't be read or refers
//! to something missing grants nothing. Source: `spec/proxy.md` 6.1, `spec/multicluster.md` 5.3.

use std::collections::{BTreeMap, HashMap};
use std::str::FromStr;
use std::time::Duration;

use hawser_core::identity::{Identity, IdentityPattern};
use ipnet::IpNet;
use linkerd2_proxy_api::grpc_route::GrpcFailureInjector;
use linkerd2_proxy_api::http_route::{HttpFailureInjector, HttpRouteMatch, PathMatch, Ratio, path_match};
use linkerd2_proxy_api::http_types::HttpMethod;
use linkerd2_proxy_api::http_types::http_method;
use linkerd2_proxy_api::inbound::proxy_protocol::{Detect, Grpc, Http1, Http2, Kind, Opaque, Tls};
use linkerd2_proxy_api::inbound::{
    self as proto, Authn, Authz, GrpcRoute, HttpRoute, IdentitySuffix, Network, ProxyProtocol, authn,
    grpc_route, http_route,
};
use linkerd2_proxy_api::meta::{Metadata, Resource, metadata};
use tonic::Status;

use super::routes;
use crate::keys;
use crate::mesh::Mesh;
use crate::ports::Ports;
use crate::view::objects::{AuthorizationPolicy, ClientSpec, NetworkSpec, Pod, Ref, Server, network};
use crate::view::routes::{Filter, Parent, Route, RouteKind, Rule};
use crate::view::{Key, State, Topic, Topics};

/// How long a proxy waits for the first bytes of a connection before it takes them for opaque.
const DETECT_TIMEOUT: Duration = Duration::from_secs(10);
const POLICY_GROUP: &str = "policy.linkerd.io";

/// What holds where no Server says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DefaultPolicy {
    Deny,
    Audit,
    Allow { cluster_only: bool, authenticated: bool },
}

impl FromStr for DefaultPolicy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let allow = |cluster_only, authenticated| Self::Allow {
            cluster_only,
            authenticated,
        };
        Ok(match text {
            "deny" => Self::Deny,
            "audit" => Self::Audit,
            "all-unauthenticated" => allow(false, false),
            "all-authenticated" => allow(false, true),
            "cluster-unauthenticated" => allow(true, false),
            "cluster-authenticated" => allow(true, true),
            other => {
                return Err(format!(
                    "{other:?} is not a policy: try all-unauthenticated or deny"
                ));
            }
        })
    }
}

impl DefaultPolicy {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deny => "deny",
            Self::Audit => "audit",
            Self::Allow {
                cluster_only: false,
                authenticated: false,
            } => "all-unauthenticated",
            Self::Allow {
                cluster_only: false,
                authenticated: true,
            } => "all-authenticated",
            Self::Allow {
                cluster_only: true,
                authenticated: false,
            } => "cluster-unauthenticated",
            Self::Allow {
                cluster_only: true,
                authenticated: true,
            } => "cluster-authenticated",
        }
    }

    /// The same, for ports that want an identity in any case.
    fn authenticated(self) -> Self {
        match self {
            Self::Allow { cluster_only, .. } => Self::Allow {
                cluster_only,
                authenticated: true,
            },
            Self::Audit => Self::Allow {
                cluster_only: false,
                authenticated: true,
            },
            Self::Deny => Self::Deny,
        }
    }
}

/// The Server that governs a port of a pod: the oldest, if several select it.
pub fn server<'a>(state: &'a State, pod: &Pod, port: u16) -> Option<&'a Server> {
    let servers = state.policies(&pod.namespace)?.servers.values();
    servers
        .filter(|server| server.selects(pod, port))
        .min_by_key(|server| (&server.created, &server.name))
}

/// The policy of one port.
pub fn policy(
    mesh: &Mesh,
    state: &State,
    key: &Key,
    port: u16,
    topics: &mut Topics,
) -> Result<proto::Server, Status> {
    topics.insert(Topic::Pod(key.clone()));
    topics.insert(Topic::Policy(key.namespace.clone()));
    let pod = state
        .pod(key)
        .ok_or_else(|| Status::not_found(format!("pod {key} is not known")))?;
    let opaque = mesh.is_opaque(state, pod, port, topics);
    let default = default_policy(mesh, pod, port);
    let routes = http_routes(mesh, pod, port);
    let server_ips = pod.ips.iter().map(|ip| (*ip).into()).collect();
    let Some(server) = server(state, pod, port) else {
        return Ok(proto::Server {
            protocol: Some(protocol(None, opaque, routes, vec![])),
            server_ips,
            authorizations: default_authorizations(mesh, default),
            labels: labels("", "default", default.as_str()),
        });
    };
    let mut authorizations = server_authorizations(mesh, state, pod, server, topics);
    let parent = Parent::Server(Key::new(&pod.namespace, &server.name));
    // A Server takes no routes from strangers: the first one would take its default route away.
    let attached = |kind| {
        let mut routes = state.routes(kind, &parent, port);
        routes.retain(|route| route.id.key.namespace == pod.namespace);
        routes
    };
    let mut http = Vec::new();
    for route in attached(RouteKind::Http) {
        http.push(http_route(
            route,
            route_authorizations(mesh, state, pod, route, topics),
        ));
    }
    let mut grpc = Vec::new();
    for route in attached(RouteKind::Grpc) {
        grpc.push(grpc_route(
            route,
            route_authorizations(mesh, state, pod, route, topics),
        ));
    }
    if http.is_empty() {
        http = routes;
    }
    if grpc.is_empty() {
        grpc.push(default_grpc_route());
    }
    if authorizations.is_empty() {
        let access: DefaultPolicy = server
            .access_policy
            .as_deref()
            .and_then(|policy| policy.parse().ok())
            .unwrap_or(DefaultPolicy::Deny);
        authorizations = default_authorizations(mesh, access);
    }
    Ok(proto::Server {
        protocol: Some(protocol(server.protocol.as_deref(), opaque, http, grpc)),
        server_ips,
        authorizations,
        labels: labels(POLICY_GROUP, "server", &server.name),
    })
}

fn default_policy(mesh: &Mesh, pod: &Pod, port: u16) -> DefaultPolicy {
    let annotated = pod
        .annotations
        .get(keys::DEFAULT_INBOUND_POLICY)
        .and_then(|policy| policy.parse().ok());
    let policy = annotated.unwrap_or(mesh.default_policy);
    let named = |name: &str| pod.port_named(name);
    let wants_identity = pod
        .annotations
        .get(keys::REQUIRE_IDENTITY_PORTS)
        .is_some_and(|list| Ports::parse_named(list, named).contains(port));
    if wants_identity {
        policy.authenticated()
    } else {
        policy
    }
}

fn protocol(
    named: Option<&str>,
    opaque: bool,
    routes: Vec<HttpRoute>,
    grpc: Vec<GrpcRoute>,
) -> ProxyProtocol {
    let kind = match named {
        _ if opaque => Kind::Opaque(Opaque {}),
        Some("HTTP/1") => Kind::Http1(Http1 {
            routes,
            ..Http1::default()
        }),
        Some("HTTP/2") => Kind::Http2(Http2 {
            routes,
            ..Http2::default()
        }),
        Some("gRPC") => Kind::Grpc(Grpc { routes: grpc }),
        Some("TLS") => Kind::Tls(Tls {}),
        _ => Kind::Detect(Detect {
            timeout: DETECT_TIMEOUT.try_into().ok(),
            http_routes: routes,
            ..Detect::default()
        }),
    };
    ProxyProtocol { kind: Some(kind) }
}

/// Everything goes to the one default route, except the pod's own probes: a kubelet has no identity, and a gateway in
/// another cluster is probed on the proxy's `/ready`.
fn http_routes(mesh: &Mesh, pod: &Pod, port: u16) -> Vec<HttpRoute> {
    let prefix = HttpRouteMatch {
        path: Some(PathMatch {
            kind: Some(path_match::Kind::Prefix("/".into())),
        }),
        ..HttpRouteMatch::default()
    };
    let mut routes = vec![HttpRoute {
        metadata: Some(default_metadata("default")),
        rules: vec![http_route::Rule {
            matches: vec![prefix],
            filters: vec![],
        }],
        ..HttpRoute::default()
    }];
    let Some(paths) = pod.probes.get(&port) else {
        return routes;
    };
    let get = |path: &String| HttpRouteMatch {
        path: Some(PathMatch {
            kind: Some(path_match::Kind::Exact(path.clone())),
        }),
        method: Some(HttpMethod {
            r#type: Some(http_method::Type::Registered(http_method::Registered::Get.into())),
        }),
        ..HttpRouteMatch::default()
    };
    routes.push(HttpRoute {
        metadata: Some(default_metadata("probe")),
        authorizations: vec![Authz {
            networks: mesh.probe_networks.iter().map(|net| allowed(*net)).collect(),
            authentication: Some(unauthenticated()),
            labels: labels("", "default", "probe"),
            metadata: Some(default_metadata("probe")),
        }],
        rules: vec![http_route::Rule {
            matches: paths.iter().map(get).collect(),
            filters: vec![],
        }],
        ..HttpRoute::default()
    });
    routes
}

/// Rules that can't be said are left out: what they would have let in is not let in.
fn http_route(route: &Route, authorizations: Vec<Authz>) -> HttpRoute {
    use http_route::filter::Kind;
    let filter = |filter: &Filter| http_route::Filter {
        kind: Some(match filter {
            Filter::RequestHeaders(change) => Kind::RequestHeaderModifier(routes::request_headers(change)),
            Filter::Redirect(redirect) => Kind::Redirect(routes::redirect(redirect)),
            Filter::ResponseHeaders(_) => Kind::FailureInjector(unsupported("ResponseHeaderModifier")),
            Filter::Unsupported(kind) => Kind::FailureInjector(unsupported(kind)),
        }),
    };
    let rule = |rule: &Rule| {
        Some(http_route::Rule {
            matches: routes::http_matches(&rule.matches).ok()?,
            filters: rule.filters.iter().map(filter).collect(),
        })
    };
    HttpRoute {
        metadata: Some(routes::metadata(&route.id)),
        hosts: routes::hosts(route),
        authorizations,
        rules: route.rules.iter().filter_map(rule).collect(),
    }
}

fn grpc_route(route: &Route, authorizations: Vec<Authz>) -> GrpcRoute {
    use grpc_route::filter::Kind;
    let failure = |kind: &str| {
        Kind::FailureInjector(GrpcFailureInjector {
            code: tonic::Code::Unavailable as u32,
            message: format!("Filter not supported {kind}"),
            ratio: always(),
        })
    };
    let filter = |filter: &Filter| grpc_route::Filter {
        kind: Some(match filter {
            Filter::RequestHeaders(change) => Kind::RequestHeaderModifier(routes::request_headers(change)),
            Filter::ResponseHeaders(_) => failure("ResponseHeaderModifier"),
            Filter::Redirect(_) => failure("RequestRedirect"),
            Filter::Unsupported(kind) => failure(kind),
        }),
    };
    let rule = |rule: &Rule| {
        Some(grpc_route::Rule {
            matches: routes::grpc_matches(&rule.matches).ok()?,
            filters: rule.filters.iter().map(filter).collect(),
        })
    };
    GrpcRoute {
        metadata: Some(routes::metadata(&route.id)),
        hosts: routes::hosts(route),
        authorizations,
        rules: route.rules.iter().filter_map(rule).collect(),
    }
}

fn unsupported(kind: &str) -> HttpFailureInjector {
    HttpFailureInjector {
        status: 500,
        message: format!("Filter not supported {kind}"),
        ratio: always(),
    }
}

fn always() -> Option<Ratio> {
    Some(Ratio {
        numerator: 1,
        denominator: 1,
    })
}

/// What is granted to a route, on top of what its Server grants.
fn route_authorizations(
    mesh: &Mesh,
    state: &State,
    pod: &Pod,
    route: &Route,
    topics: &mut Topics,
) -> Vec<Authz> {
    let is_target = |target: &Ref| {
        target.group == route.id.group
            && target.kind == route.id.kind.to_string()
            && target.name == route.id.key.name
    };
    granted(mesh, state, pod, is_target, topics)
}

fn default_grpc_route() -> GrpcRoute {
    GrpcRoute {
        metadata: Some(default_metadata("default")),
        rules: vec![grpc_route::Rule {
            matches: vec![Default::default()],
            filters: vec![],
        }],
        ..GrpcRoute::default()
    }
}

fn default_authorizations(mesh: &Mesh, policy: DefaultPolicy) -> Vec<Authz> {
    let (networks, authentication) = match policy {
        DefaultPolicy::Deny => return vec![],
        DefaultPolicy::Audit => (everywhere(), unauthenticated()),
        DefaultPolicy::Allow {
            cluster_only,
            authenticated,
        } => (
            if cluster_only {
                mesh.cluster_networks.clone()
            } else {
                everywhere()
            },
            if authenticated {
                identities(&[IdentityPattern::Any])
            } else {
                unauthenticated()
            },
        ),
    };
    vec![Authz {
        networks: networks.into_iter().map(allowed).collect(),
        authentication: Some(authentication),
        labels: labels("", "default", policy.as_str()),
        metadata: Some(default_metadata(policy.as_str())),
    }]
}

fn server_authorizations(
    mesh: &Mesh,
    state: &State,
    pod: &Pod,
    server: &Server,
    topics: &mut Topics,
) -> Vec<Authz> {
    let Some(policies) = state.policies(&pod.namespace) else {
        return vec![];
    };
    let by_server = policies
        .server_authorizations
        .values()
        .filter(|authorization| authorization.is_for(server))
        .filter_map(|authorization| {
            let (networks, authentication) = client(mesh, &pod.namespace, &authorization.client)?;
            Some(authz(
                networks,
                authentication,
                "serverauthorization",
                &authorization.name,
                &pod.namespace,
            ))
        });
    let mut granted: Vec<Authz> = by_server.collect();
    let is_target = |target: &Ref| targets(target, pod, server);
    granted.extend(self::granted(mesh, state, pod, is_target, topics));
    granted
}

/// What the AuthorizationPolicies for a target let in.
fn granted(
    mesh: &Mesh,
    state: &State,
    pod: &Pod,
    is_target: impl Fn(&Ref) -> bool,
    topics: &mut Topics,
) -> Vec<Authz> {
    let Some(policies) = state.policies(&pod.namespace) else {
        return vec![];
    };
    let mut granted = Vec::new();
    for policy in policies
        .authorization_policies
        .values()
        .filter(|policy| is_target(&policy.target_ref))
    {
        if let Some((networks, authentication)) = required(mesh, state, &pod.namespace, policy, topics) {
            granted.push(authz(
                networks,
                authentication,
                "authorizationpolicy",
                &policy.name,
                &pod.namespace,
            ));
        }
    }
    granted
}

fn targets(target: &Ref, pod: &Pod, server: &Server) -> bool {
    match (target.group.as_str(), target.kind.as_str()) {
        (POLICY_GROUP, "Server") => target.name == server.name,
        ("" | "core", "Namespace") => target.name == pod.namespace,
        // What is granted to a route is granted there.
        _ => false,
    }
}

/// What a ServerAuthorization asks of clients; `None` when it can't be met or read.
fn client(mesh: &Mesh, namespace: &str, spec: &ClientSpec) -> Option<(Vec<Network>, Authn)> {
    let networks = match &spec.networks {
        Some(networks) => read_networks(networks)?,
        None => everywhere().into_iter().map(allowed).collect(),
    };
    if spec.unauthenticated {
        return Some((networks, unauthenticated()));
    }
    let mesh_tls = spec.mesh_tls.as_ref()?;
    if mesh_tls.unauthenticated_tls {
        return Some((networks, unauthenticated_tls()));
    }
    let mut patterns = Vec::new();
    for identity in &mesh_tls.identities {
        patterns.extend(identity.parse::<IdentityPattern>());
    }
    for account in &mesh_tls.service_accounts {
        let namespace = account.namespace.as_deref().unwrap_or(namespace);
        patterns.extend(account_identity(mesh, &account.name, namespace).map(IdentityPattern::Exactly));
    }
    (!patterns.is_empty()).then(|| (networks, identities(&patterns)))
}

/// What an AuthorizationPolicy asks of clients: all of its references at once.
fn required(
    mesh: &Mesh,
    state: &State,
    namespace: &str,
    policy: &AuthorizationPolicy,
    topics: &mut Topics,
) -> Option<(Vec<Network>, Authn)> {
    let (mut networks, mut authentication) = (None, None);
    for required in &policy.required_authentication_refs {
        let from = required.namespace.as_deref().unwrap_or(namespace);
        topics.insert(Topic::Policy(from.to_owned()));
        let there = state.policies(from);
        match (required.group.as_str(), required.kind.as_str()) {
            (POLICY_GROUP, "MeshTLSAuthentication") if authentication.is_none() => {
                let spec = there?.mesh_tls.get(&required.name)?;
                let mut patterns = Vec::new();
                for identity in &spec.identities {
                    patterns.extend(identity.parse::<IdentityPattern>());
                }
                for reference in &spec.identity_refs {
                    patterns.extend(referenced(mesh, from, reference));
                }
                authentication = Some(identities((!patterns.is_empty()).then_some(&patterns)?));
            }
            ("" | "core", "ServiceAccount") if authentication.is_none() => {
                let identity = account_identity(mesh, &required.name, from)?;
                authentication = Some(identities(&[IdentityPattern::Exactly(identity)]));
            }
            (POLICY_GROUP, "NetworkAuthentication") if networks.is_none() => {
                networks = Some(read_networks(&there?.networks.get(&required.name)?.networks)?);
            }
            // Two of a kind can't be met at once, and an unknown kind can't be met at all.
            _ => return None,
        }
    }
    Some((
        networks.unwrap_or_else(|| everywhere().into_iter().map(allowed).collect()),
        authentication.unwrap_or_else(unauthenticated),
    ))
}

fn referenced(mesh: &Mesh, namespace: &str, reference: &Ref) -> Option<IdentityPattern> {
    match (reference.group.as_str(), reference.kind.as_str()) {
        ("" | "core", "ServiceAccount") => {
            let namespace = reference.namespace.as_deref().unwrap_or(namespace);
            account_identity(mesh, &reference.name, namespace).map(IdentityPattern::Exactly)
        }
        ("" | "core", "Namespace") => Some(IdentityPattern::Suffix(format!(
            "{}.serviceaccount.identity.{}.{}",
            reference.name, mesh.control_plane_namespace, mesh.trust_domain
        ))),
        _ => None,
    }
}

fn account_identity(mesh: &Mesh, account: &str, namespace: &str) -> Option<Identity> {
    Identity::of_service_account(
        account,
        namespace,
        &mesh.control_plane_namespace,
        &mesh.trust_domain,
    )
    .ok()
}

/// `None` when one can't be read: an exception that is lost would widen what is allowed.
fn read_networks(specs: &[NetworkSpec]) -> Option<Vec<Network>> {
    let networks: Option<Vec<Network>> = specs
        .iter()
        .map(|spec| {
            let except: Option<Vec<IpNet>> = spec
                .except
                .iter()
                .flatten()
                .map(|except| network(except))
                .collect();
            Some(Network {
                net: Some(network(&spec.cidr)?.into()),
                except: except?.into_iter().map(Into::into).collect(),
            })
        })
        .collect();
    networks.filter(|networks| !networks.is_empty())
}

fn everywhere() -> Vec<IpNet> {
    vec![ipnet::Ipv4Net::default().into(), ipnet::Ipv6Net::default().into()]
}

fn allowed(net: IpNet) -> Network {
    Network {
        net: Some(net.into()),
        except: vec![],
    }
}

fn unauthenticated() -> Authn {
    Authn {
        permit: Some(authn::Permit::Unauthenticated(authn::PermitUnauthenticated {})),
    }
}

fn unauthenticated_tls() -> Authn {
    let clients = authn::permit_mesh_tls::Clients::Unauthenticated(authn::PermitUnauthenticated {});
    Authn {
        permit: Some(authn::Permit::MeshTls(authn::PermitMeshTls {
            clients: Some(clients),
        })),
    }
}

fn identities(patterns: &[IdentityPattern]) -> Authn {
    let mut permitted = authn::permit_mesh_tls::PermitClientIdentities::default();
    for pattern in patterns {
        match pattern {
            IdentityPattern::Any => permitted.suffixes.push(IdentitySuffix { parts: vec![] }),
            IdentityPattern::Suffix(suffix) => permitted.suffixes.push(IdentitySuffix {
                parts: suffix.split('.').map(str::to_owned).collect(),
            }),
            IdentityPattern::Exactly(identity) => {
                permitted.identities.push(proto::Identity {
                    name: identity.as_str().to_owned(),
                });
            }
        }
    }
    let clients = authn::permit_mesh_tls::Clients::Identities(permitted);
    Authn {
        permit: Some(authn::Permit::MeshTls(authn::PermitMeshTls {
            clients: Some(clients),
        })),
    }
}

fn authz(networks: Vec<Network>, authentication: Authn, kind: &str, name: &str, namespace: &str) -> Authz {
    Authz {
        networks,
        authentication: Some(authentication),
        labels: labels(POLICY_GROUP, kind, name),
        metadata: Some(Metadata {
            kind: Some(metadata::Kind::Resource(Resource {
                group: POLICY_GROUP.into(),
                kind: kind.into(),
                name: name.into(),
                namespace: namespace.into(),
                ..Resource::default()
            })),
        }),
    }
}

fn labels(group: &str, kind: &str, name: &str) -> HashMap<String, String> {
    BTreeMap::from([("group", group), ("kind", kind), ("name", name)])
        .into_iter()
        .map(|(label, value)| (label.to_owned(), value.to_owned()))
        .collect()
}

/// Names something that no object stands for.
pub(super) fn default_metadata(name: &str) -> Metadata {
    Metadata {
        kind: Some(metadata::Kind::Default(name.into())),
    }
}
