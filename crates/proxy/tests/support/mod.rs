//! A mesh on loopback: a static control plane, proxies, an application, and clients whose connections are "redirected".
//!
//! The control plane serves a [`World`] that tests replace; every stream follows it. A pod is a 127.0.0.x address.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part")]

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use bytes::Bytes;
use hawser_proxy::{Config, Env, OriginalDst, Proxy, Seams};
use hawser_proxy_api::{TrustServer, Trusted};
use hawser_tls::{Credentials, Issuer, PrivateKey, TrustAnchors, Validity, create_issuer, create_root};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use linkerd2_proxy_api::destination::destination_server::{Destination, DestinationServer};
use linkerd2_proxy_api::destination::{self as dst, DestinationProfile, GetDestination, Update};
use linkerd2_proxy_api::identity::identity_server::{Identity, IdentityServer};
use linkerd2_proxy_api::identity::{CertifyRequest, CertifyResponse};
use linkerd2_proxy_api::inbound::inbound_server_policies_server::{
    InboundServerPolicies, InboundServerPoliciesServer,
};
use linkerd2_proxy_api::inbound::{self, PortSpec, Server};
use linkerd2_proxy_api::outbound::outbound_policies_server::{OutboundPolicies, OutboundPoliciesServer};
use linkerd2_proxy_api::outbound::{self, OutboundPolicy, TrafficSpec, traffic_spec};
use linkerd2_proxy_api::{meta, net};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request as Rpc, Response as Reply, Status};

/// What the control plane says.
#[derive(Clone, Default)]
pub struct World {
    pub profiles: BTreeMap<String, DestinationProfile>,
    pub policies: BTreeMap<String, OutboundPolicy>,
    pub endpoints: BTreeMap<String, Vec<dst::WeightedAddr>>,
    pub servers: BTreeMap<u16, Server>,
}

#[derive(Clone)]
pub struct ControlPlane {
    world: watch::Sender<World>,
    issuance: watch::Sender<Issuance>,
    issuer: watch::Sender<Arc<Issuer>>,
    /// None where nobody is told.
    trusted: watch::Sender<Option<Trusted>>,
    pub anchors: String,
    pub addr: SocketAddr,
    /// None in the copies that serve.
    server: Option<Arc<Mutex<OwnRuntimes>>>,
}

/// A root and an issuer below it.
pub struct Authority {
    pub anchors: String,
    pub issuer: Issuer,
}

impl Authority {
    pub fn new() -> Self {
        let now = SystemTime::now();
        let day = Duration::from_secs(86_400);
        let validity = Validity {
            not_before: now - day,
            not_after: now + day,
        };
        let root = create_root("root.test", validity).unwrap();
        let parent = Issuer::from_pem(&root.certificate_pem, &root.key.to_pem()).unwrap();
        let issuer = create_issuer("issuer.test", &parent, validity).unwrap();
        Self {
            anchors: root.certificate_pem,
            issuer: Issuer::from_pem(&issuer.certificate_pem, &issuer.key.to_pem()).unwrap(),
        }
    }
}

/// How the identity service signs.
#[derive(Clone, Copy)]
pub struct Issuance {
    pub lifetime: Duration,
    pub skew: Duration,
    pub refuse: bool,
}

/// Runtimes of the control plane's own: without them, all its connections are gone.
#[derive(Default)]
struct OwnRuntimes(Vec<tokio::runtime::Runtime>);

impl OwnRuntimes {
    fn stop(&mut self) {
        for runtime in self.0.drain(..) {
            runtime.shutdown_background();
        }
    }
}

impl Drop for OwnRuntimes {
    fn drop(&mut self) {
        self.stop();
    }
}

type Updates<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl ControlPlane {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let control = Self::new(listener.local_addr().unwrap());
        control.serve(listener);
        control
    }

    /// One that nobody reaches before it serves.
    pub fn new(addr: SocketAddr) -> Self {
        let Authority { anchors, issuer } = Authority::new();
        Self {
            world: watch::Sender::default(),
            issuance: watch::Sender::new(Issuance {
                lifetime: Duration::from_secs(3_600),
                skew: Duration::from_secs(20),
                refuse: false,
            }),
            issuer: watch::Sender::new(Arc::new(issuer)),
            trusted: watch::Sender::new(None),
            anchors,
            addr,
            server: Some(Arc::default()),
        }
    }

    /// May be called for several listeners, which then serve the same world.
    pub fn serve(&self, listener: TcpListener) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let control = Self {
            server: None,
            ..self.clone()
        };
        let listener = {
            let _entered = runtime.enter();
            TcpListener::from_std(listener.into_std().unwrap()).unwrap()
        };
        let trusted = self.trusted.clone();
        let trust = TrustServer::new(move || {
            let trusted = tokio_stream::wrappers::WatchStream::new(trusted.subscribe());
            Box::pin(trusted.filter_map(|trusted| trusted.map(Ok)))
        });
        let server = tonic::transport::Server::builder()
            .add_service(trust)
            .add_service(IdentityServer::new(control.clone()))
            .add_service(DestinationServer::new(control.clone()))
            .add_service(InboundServerPoliciesServer::new(control.clone()))
            .add_service(OutboundPoliciesServer::new(control.clone()))
            .serve_with_incoming(TcpListenerStream::new(listener));
        runtime.spawn(server);
        self.server.as_ref().unwrap().lock().unwrap().0.push(runtime);
    }

    /// All its connections break and nobody listens any more.
    pub fn stop(&self) {
        self.server.as_ref().unwrap().lock().unwrap().stop();
    }

    /// Listens again where it did before.
    pub async fn restart(&self) {
        // Until the last of its old listeners has gone.
        let listener = loop {
            match TcpListener::bind(self.addr).await {
                Ok(listener) => break listener,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        self.serve(listener);
    }

    /// Announces a bundle, and signs with another issuer if one is given.
    pub fn trust(&self, bundle: &str, issuer: Option<Issuer>) {
        if let Some(issuer) = issuer {
            self.issuer.send_replace(Arc::new(issuer));
        }
        let issuer = self.issuer.borrow().fingerprint().unwrap().to_string();
        let anchors = bundle.to_owned();
        self.trusted.send_replace(Some(Trusted { anchors, issuer }));
    }

    pub fn issue(&self, change: impl FnOnce(&mut Issuance)) {
        self.issuance.send_modify(change);
    }

    /// What a proxy of this name would have.
    pub fn credentials(&self, name: &str) -> Credentials {
        let identity: hawser_core::Identity = name.parse().unwrap();
        let key = PrivateKey::generate().unwrap();
        let request = hawser_tls::csr(&key, &identity).unwrap();
        let (hour, now) = (Duration::from_secs(3_600), SystemTime::now());
        let issuer = self.issuer.borrow().clone();
        let issued = issuer
            .issue(&request, &identity, hour, Duration::from_secs(20), now)
            .unwrap();
        let anchors = TrustAnchors::from_pem(&self.anchors).unwrap();
        Credentials::new(identity, &key, issued.leaf, issued.intermediates, anchors, now).unwrap()
    }

    /// A certificate for `name` as proxies get one, with its issuer and key, for servers that read files.
    pub fn certificate_file(&self, name: &str) -> String {
        let identity = name.parse().unwrap();
        let key = PrivateKey::generate().unwrap();
        let csr = hawser_tls::csr(&key, &identity).unwrap();
        let skew = Duration::from_secs(20);
        let issuer = self.issuer.borrow().clone();
        let issued = issuer
            .issue(
                &csr,
                &identity,
                Duration::from_secs(3_600),
                skew,
                SystemTime::now(),
            )
            .unwrap();
        let mut pem = String::new();
        for der in std::iter::once(&issued.leaf).chain(&issued.intermediates) {
            let text = base64::engine::general_purpose::STANDARD.encode(der);
            pem.push_str("-----BEGIN CERTIFICATE-----\n");
            for line in text.as_bytes().chunks(64) {
                pem.push_str(std::str::from_utf8(line).unwrap());
                pem.push('\n');
            }
            pem.push_str("-----END CERTIFICATE-----\n");
        }
        pem + &key.to_pem()
    }

    pub fn change(&self, change: impl FnOnce(&mut World)) {
        self.world.send_modify(change);
    }

    /// Follows one part of the world; what is not there ends the stream with NotFound.
    fn follow<T: Clone + PartialEq + Send + Sync + 'static>(
        &self,
        part: impl Fn(&World) -> Option<T> + Send + 'static,
    ) -> Updates<T> {
        let mut last = None;
        let stream = tokio_stream::wrappers::WatchStream::new(self.world.subscribe());
        Box::pin(stream.filter_map(move |world| {
            let now = part(&world);
            if now == last {
                return if now.is_none() {
                    Some(Err(Status::not_found("not there")))
                } else {
                    None
                };
            }
            last = now.clone();
            Some(now.ok_or_else(|| Status::not_found("not there")))
        }))
    }
}

#[tonic::async_trait]
impl Identity for ControlPlane {
    async fn certify(&self, request: Rpc<CertifyRequest>) -> Result<Reply<CertifyResponse>, Status> {
        let request = request.into_inner();
        let identity = request
            .identity
            .parse()
            .map_err(|_| Status::invalid_argument("identity"))?;
        let Issuance {
            lifetime,
            skew,
            refuse,
        } = *self.issuance.borrow();
        if refuse {
            return Err(Status::unavailable("no certificates today"));
        }
        let csr = request.certificate_signing_request.into();
        let issuer = self.issuer.borrow().clone();
        let issued = issuer
            .issue(&csr, &identity, lifetime, skew, SystemTime::now())
            .map_err(|error| Status::failed_precondition(error.to_string()))?;
        Ok(Reply::new(CertifyResponse {
            leaf_certificate: issued.leaf.to_vec(),
            intermediate_certificates: issued.intermediates.iter().map(|der| der.to_vec()).collect(),
            valid_until: Some(issued.not_after.into()),
        }))
    }
}

#[tonic::async_trait]
impl Destination for ControlPlane {
    type GetStream = Updates<Update>;
    async fn get(&self, request: Rpc<GetDestination>) -> Result<Reply<Self::GetStream>, Status> {
        let path = request.into_inner().path;
        let sets = self.follow(move |world| world.endpoints.get(&path).cloned());
        let mut known: Vec<net::TcpAddress> = Vec::new();
        let updates = sets.map(move |set| {
            let set = set?;
            let now: Vec<_> = set.iter().filter_map(|e| e.addr).collect();
            let gone: Vec<_> = known.iter().filter(|addr| !now.contains(addr)).copied().collect();
            known = now;
            let remove = dst::update::Update::Remove(dst::AddrSet { addrs: gone.clone() });
            let add = dst::update::Update::Add(dst::WeightedAddrSet {
                addrs: set,
                ..Default::default()
            });
            let none = dst::update::Update::NoEndpoints(dst::NoEndpoints { exists: true });
            let mut updates = Vec::new();
            if !gone.is_empty() {
                updates.push(Update { update: Some(remove) });
            }
            updates.push(Update {
                update: Some(if known.is_empty() { none } else { add }),
            });
            Ok(updates)
        });
        let flat = updates.map(|updates: Result<Vec<Update>, Status>| match updates {
            Ok(updates) => tokio_stream::iter(updates.into_iter().map(Ok).collect::<Vec<_>>()),
            Err(status) => tokio_stream::iter(vec![Err(status)]),
        });
        Ok(Reply::new(Box::pin(futures::StreamExt::flatten(flat))))
    }

    type GetProfileStream = Updates<DestinationProfile>;
    async fn get_profile(
        &self,
        request: Rpc<GetDestination>,
    ) -> Result<Reply<Self::GetProfileStream>, Status> {
        let path = request.into_inner().path;
        Ok(Reply::new(
            self.follow(move |world| world.profiles.get(&path).cloned()),
        ))
    }
}

#[tonic::async_trait]
impl InboundServerPolicies for ControlPlane {
    async fn get_port(&self, _: Rpc<PortSpec>) -> Result<Reply<Server>, Status> {
        Err(Status::unimplemented("streams only"))
    }

    type WatchPortStream = Updates<Server>;
    async fn watch_port(&self, request: Rpc<PortSpec>) -> Result<Reply<Self::WatchPortStream>, Status> {
        let port = request.into_inner().port as u16;
        Ok(Reply::new(self.follow(move |world| {
            Some(world.servers.get(&port).cloned().unwrap_or_else(anyone))
        })))
    }
}

#[tonic::async_trait]
impl OutboundPolicies for ControlPlane {
    async fn get(&self, _: Rpc<TrafficSpec>) -> Result<Reply<OutboundPolicy>, Status> {
        Err(Status::unimplemented("streams only"))
    }

    type WatchStream = Updates<OutboundPolicy>;
    async fn watch(&self, request: Rpc<TrafficSpec>) -> Result<Reply<Self::WatchStream>, Status> {
        let key = match request.into_inner().target {
            Some(traffic_spec::Target::Addr(addr)) => SocketAddr::try_from(addr).unwrap().to_string(),
            Some(traffic_spec::Target::Authority(name)) => name,
            None => return Err(Status::invalid_argument("no target")),
        };
        Ok(Reply::new(
            self.follow(move |world| world.policies.get(&key).cloned()),
        ))
    }
}

pub fn named(name: &str) -> Option<meta::Metadata> {
    Some(meta::Metadata {
        kind: Some(meta::metadata::Kind::Default(name.into())),
    })
}

fn any_network() -> Vec<inbound::Network> {
    vec![inbound::Network {
        net: Some("0.0.0.0/0".parse::<ipnet::IpNet>().unwrap().into()),
        except: Vec::new(),
    }]
}

fn server(permit: Option<inbound::authn::Permit>, protocol: inbound::proxy_protocol::Kind) -> Server {
    let authorizations = permit.map(|permit| inbound::Authz {
        networks: any_network(),
        authentication: Some(inbound::Authn { permit: Some(permit) }),
        metadata: named("test"),
        ..Default::default()
    });
    Server {
        protocol: Some(inbound::ProxyProtocol { kind: Some(protocol) }),
        authorizations: authorizations.into_iter().collect(),
        labels: HashMap::from([("kind".into(), "default".into()), ("name".into(), "test".into())]),
        ..Default::default()
    }
}

fn detect() -> inbound::proxy_protocol::Kind {
    inbound::proxy_protocol::Kind::Detect(inbound::proxy_protocol::Detect {
        timeout: Some(prost_types::Duration {
            seconds: 10,
            nanos: 0,
        }),
        ..Default::default()
    })
}

pub fn anyone() -> Server {
    server(
        Some(inbound::authn::Permit::Unauthenticated(
            inbound::authn::PermitUnauthenticated {},
        )),
        detect(),
    )
}

pub fn only(identity: &str) -> Server {
    let clients = inbound::authn::permit_mesh_tls::PermitClientIdentities {
        identities: vec![inbound::Identity {
            name: identity.into(),
        }],
        suffixes: Vec::new(),
    };
    let permit = inbound::authn::PermitMeshTls {
        clients: Some(inbound::authn::permit_mesh_tls::Clients::Identities(clients)),
    };
    server(Some(inbound::authn::Permit::MeshTls(permit)), detect())
}

/// Anyone, from there.
pub fn anyone_from(net: &str) -> Server {
    let mut server = anyone();
    server.authorizations[0].networks[0].net = Some(net.parse::<ipnet::IpNet>().unwrap().into());
    server
}

pub fn nobody() -> Server {
    server(None, detect())
}

/// A service at `addr` with its endpoints behind the name `path`.
pub fn service(world: &mut World, addr: &str, path: &str, endpoints: Vec<dst::WeightedAddr>) {
    world.policies.insert(addr.into(), policy(path));
    world.policies.insert(path.into(), policy(path));
    let (name, _) = path.rsplit_once(':').unwrap();
    let profile = DestinationProfile {
        fully_qualified_name: name.into(),
        ..Default::default()
    };
    world.profiles.insert(addr.into(), profile.clone());
    world.profiles.insert(path.into(), profile);
    world.endpoints.insert(path.into(), endpoints);
}

pub fn policy(path: &str) -> OutboundPolicy {
    use outbound::proxy_protocol as p;
    let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    let balancer = outbound::backend::BalanceP2c {
        discovery: Some(outbound::backend::EndpointDiscovery {
            kind: Some(outbound::backend::endpoint_discovery::Kind::Dst(
                outbound::backend::endpoint_discovery::DestinationGet { path: path.into() },
            )),
        }),
        load: Some(outbound::backend::balance_p2c::Load::PeakEwma(Default::default())),
    };
    let backend = outbound::Backend {
        metadata: named("service"),
        queue: Some(outbound::Queue {
            capacity: 100,
            failfast_timeout: seconds(3),
        }),
        kind: Some(outbound::backend::Kind::Balancer(balancer)),
    };
    let http = outbound::HttpRoute {
        metadata: named("http"),
        rules: vec![outbound::http_route::Rule {
            backends: Some(outbound::http_route::Distribution {
                kind: Some(outbound::http_route::distribution::Kind::FirstAvailable(
                    outbound::http_route::distribution::FirstAvailable {
                        backends: vec![outbound::http_route::RouteBackend {
                            backend: Some(backend.clone()),
                            ..Default::default()
                        }],
                    },
                )),
            }),
            ..Default::default()
        }],
        ..Default::default()
    };
    let opaque = outbound::OpaqueRoute {
        metadata: named("opaque"),
        rules: vec![outbound::opaque_route::Rule {
            backends: Some(outbound::opaque_route::Distribution {
                kind: Some(outbound::opaque_route::distribution::Kind::FirstAvailable(
                    outbound::opaque_route::distribution::FirstAvailable {
                        backends: vec![outbound::opaque_route::RouteBackend {
                            backend: Some(backend),
                            ..Default::default()
                        }],
                    },
                )),
            }),
            ..Default::default()
        }],
    };
    OutboundPolicy {
        metadata: named("service"),
        protocol: Some(outbound::ProxyProtocol {
            kind: Some(p::Kind::Detect(p::Detect {
                timeout: seconds(10),
                opaque: Some(p::Opaque { routes: vec![opaque] }),
                http1: Some(p::Http1 {
                    routes: vec![http.clone()],
                    failure_accrual: None,
                }),
                http2: Some(p::Http2 {
                    routes: vec![http],
                    failure_accrual: None,
                }),
            })),
        }),
    }
}

pub fn unmeshed(addr: SocketAddr) -> dst::WeightedAddr {
    dst::WeightedAddr {
        addr: Some(addr.into()),
        weight: 10_000,
        ..Default::default()
    }
}

/// An endpoint behind a proxy, as the destination controller describes it.
pub fn meshed(addr: SocketAddr, identity: &str, inbound_port: u16) -> dst::WeightedAddr {
    let id = dst::tls_identity::DnsLikeIdentity {
        name: identity.into(),
    };
    dst::WeightedAddr {
        tls_identity: Some(dst::TlsIdentity {
            strategy: Some(dst::tls_identity::Strategy::DnsLikeIdentity(id.clone())),
            server_name: Some(id),
        }),
        protocol_hint: Some(dst::ProtocolHint {
            protocol: Some(dst::protocol_hint::Protocol::H2(dst::protocol_hint::H2 {})),
            opaque_transport: Some(dst::protocol_hint::OpaqueTransport {
                inbound_port: inbound_port.into(),
            }),
        }),
        ..unmeshed(addr)
    }
}

/// A gateway's address for one service.
pub fn through_gateway(gateway: SocketAddr, identity: &str, authority: &str) -> dst::WeightedAddr {
    let mut endpoint = meshed(gateway, identity, 1);
    if let Some(hint) = &mut endpoint.protocol_hint {
        hint.opaque_transport = None;
    }
    endpoint.authority_override = Some(dst::AuthorityOverride {
        authority_override: authority.into(),
    });
    endpoint
}

/// Where "redirected" connections were going, by the client's address.
#[derive(Clone, Default)]
pub struct Redirects(Arc<Mutex<HashMap<SocketAddr, SocketAddr>>>);

impl OriginalDst for Redirects {
    fn original_dst(&self, socket: &TcpStream) -> io::Result<SocketAddr> {
        match self.0.lock().unwrap().get(&socket.peer_addr()?) {
            Some(addr) => Ok(*addr),
            None => socket.local_addr(),
        }
    }
}

/// A proxy of the pod at `ip`.
pub struct Pod {
    pub proxy: Proxy,
    pub identity: String,
    redirects: Redirects,
    _token: tempfile::NamedTempFile,
}

impl Pod {
    pub fn start(control: &ControlPlane, name: &str, ip: &str, env: &[(&str, &str)]) -> Self {
        let redirects = Redirects::default();
        let original_dst = Arc::new(redirects.clone());
        Self::start_with(
            (control.addr, &control.anchors),
            name,
            ip,
            env,
            redirects,
            original_dst,
        )
    }

    /// A client whose requests wait for an endpoint no longer than 100 ms.
    pub fn hasty_client(control: &ControlPlane) -> Self {
        let env = [("OUTBOUND_HTTP_FAILFAST_TIMEOUT", "100ms")];
        Self::start(control, "client", "127.0.0.3", &env)
    }

    /// For a process of its own: the control plane is elsewhere.
    pub fn start_with(
        (control_addr, anchors): (SocketAddr, &str),
        name: &str,
        ip: &str,
        env: &[(&str, &str)],
        redirects: Redirects,
        original_dst: Arc<dyn OriginalDst>,
    ) -> Self {
        let identity = format!("{name}.ns.serviceaccount.identity.linkerd.cluster.local");
        let token = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(token.path(), "token").unwrap();
        let control_addr = control_addr.to_string();
        let (any, outbound) = (format!("{ip}:0"), "127.0.0.1:0");
        let token_path = token.path().display().to_string();
        let mut all: BTreeMap<String, String> = [
            ("IDENTITY_TRUST_ANCHORS", anchors),
            ("IDENTITY_LOCAL_NAME", &identity),
            ("IDENTITY_TOKEN_FILE", &token_path),
            ("IDENTITY_SVC_ADDR", &control_addr),
            ("DESTINATION_SVC_ADDR", &control_addr),
            ("POLICY_SVC_ADDR", &control_addr),
            ("POLICY_CLUSTER_NETWORKS", "10.0.0.0/8"),
            ("DESTINATION_PROFILE_NETWORKS", "10.0.0.0/8"),
            ("INBOUND_LISTEN_ADDR", &any),
            ("ADMIN_LISTEN_ADDR", &any),
            ("OUTBOUND_LISTEN_ADDRS", outbound),
            ("INBOUND_IPS", ip),
        ]
        .into_iter()
        .map(|(name, value)| (format!("LINKERD2_PROXY_{name}"), value.to_owned()))
        .collect();
        all.extend(
            env.iter()
                .map(|(name, value)| (format!("LINKERD2_PROXY_{name}"), (*value).to_owned())),
        );
        let env = Env::from_iter(all);
        let seams = Seams {
            original_dst,
            loopback_allowed: true,
            source: ip.parse().ok(),
        };
        let config = Config::from_env(&env).unwrap_or_else(|faults| panic!("{faults:?}"));
        let proxy = Proxy::start(config, env, seams).unwrap();
        Self {
            proxy,
            identity,
            redirects,
            _token: token,
        }
    }

    pub fn inbound_port(&self) -> u16 {
        self.proxy.inbound[0].port()
    }

    /// A connection of the pod's own application to `target`.
    pub async fn connect(&self, target: &str) -> TcpStream {
        self.redirected(self.proxy.outbound[0], target.parse().unwrap())
            .await
    }

    /// A stranger's connection to one of the pod's ports.
    pub async fn connect_inbound(&self, target: SocketAddr) -> TcpStream {
        self.redirected(self.proxy.inbound[0], target).await
    }

    async fn redirected(&self, proxy: SocketAddr, target: SocketAddr) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        self.redirects
            .0
            .lock()
            .unwrap()
            .insert(socket.local_addr().unwrap(), target);
        socket.connect(proxy).await.unwrap()
    }

    pub async fn get(&self, target: &str, path: &str) -> Response<String> {
        let mut client = http1(self.connect(target).await).await;
        send(&mut client, get(path)).await
    }

    pub async fn admin(&self, path: &str) -> Response<String> {
        let mut client = http1(TcpStream::connect(self.proxy.admin[0]).await.unwrap()).await;
        send(&mut client, get(path)).await
    }
}

pub fn get(path: &str) -> Request<Full<Bytes>> {
    Request::get(path)
        .header("host", "web.test")
        .body(Full::default())
        .unwrap()
}

pub type H1Client = hyper::client::conn::http1::SendRequest<Full<Bytes>>;
pub type H2Client = hyper::client::conn::http2::SendRequest<Full<Bytes>>;

pub async fn http1(socket: TcpStream) -> H1Client {
    let (client, conn) = hyper::client::conn::http1::handshake(TokioIo::new(socket))
        .await
        .unwrap();
    tokio::spawn(conn.with_upgrades());
    client
}

pub async fn http2(socket: TcpStream) -> H2Client {
    let io = TokioIo::new(socket);
    let (client, conn) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io)
        .await
        .unwrap();
    tokio::spawn(conn);
    client
}

pub async fn send(client: &mut H1Client, request: Request<Full<Bytes>>) -> Response<String> {
    client.ready().await.unwrap();
    let response = client.send_request(request).await.unwrap();
    text(response).await
}

pub async fn text(response: Response<hyper::body::Incoming>) -> Response<String> {
    let (head, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Response::from_parts(head, String::from_utf8(body.to_vec()).unwrap())
}

/// An application that answers with what it saw: name, version, URI, headers and body.
pub async fn app(ip: &str, name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind((ip, 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let service =
                hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| async move {
                    let (head, body) = request.into_parts();
                    let body = body.collect().await?.to_bytes();
                    let mut seen = format!("{name} {:?} {} {}\n", head.version, head.method, head.uri);
                    for (name, value) in &head.headers {
                        seen.push_str(&format!("{name}: {}\n", value.to_str().unwrap_or("?")));
                    }
                    seen.push_str(&format!("\n{}", String::from_utf8_lossy(&body)));
                    Ok::<_, hyper::Error>(Response::new(Full::new(Bytes::from(seen))))
                });
            tokio::spawn(async move {
                let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                let _ = server
                    .serve_connection_with_upgrades(TokioIo::new(socket), service)
                    .await;
            });
        }
    });
    addr
}

/// An application that greets first and then echoes, closing when the client does.
pub async fn greeter(ip: &str) -> SocketAddr {
    use tokio::io::AsyncWriteExt as _;
    let listener = TcpListener::bind((ip, 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = socket.write_all(b"220 hello\r\n").await;
                let (mut read, mut write) = socket.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            });
        }
    });
    addr
}

/// Passes bytes on to a proxy, until it is killed as a process is: its sockets are closed under everybody.
pub struct Relay {
    pub addr: SocketAddr,
    to: SocketAddr,
    running: Mutex<tokio::task::JoinSet<()>>,
}

impl Relay {
    pub async fn start(ip: &str, to: SocketAddr) -> Self {
        let listener = TcpListener::bind((ip, 0)).await.unwrap();
        let relay = Self {
            addr: listener.local_addr().unwrap(),
            to,
            running: Mutex::default(),
        };
        relay.serve(listener);
        relay
    }

    fn serve(&self, listener: TcpListener) {
        let to = self.to;
        self.running.lock().unwrap().spawn(async move {
            let mut open = tokio::task::JoinSet::new();
            while let Ok((mut from, _)) = listener.accept().await {
                open.spawn(async move {
                    let mut to = TcpStream::connect(to).await.unwrap();
                    from.set_zero_linger().unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
                });
            }
        });
    }

    pub async fn kill(&self) {
        let mut running = std::mem::take(&mut *self.running.lock().unwrap());
        running.shutdown().await;
    }

    /// Listens again where it did before.
    pub async fn revive(&self) {
        self.serve(TcpListener::bind(self.addr).await.unwrap());
    }
}

/// Waits for a condition, not for a time.
pub async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(
        tokio::time::timeout(Duration::from_secs(20), waiting)
            .await
            .is_ok(),
        "never: {what}"
    );
}

/// What follows a transport header.
#[derive(Clone, Copy)]
pub enum Session {
    Opaque,
    Http1,
    Http2,
}

/// A direct connection to a proxy, as another proxy makes it, for the application's `port`.
pub async fn direct(
    credentials: &Credentials,
    proxy: SocketAddr,
    identity: &str,
    port: u16,
    session: Session,
) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    use tokio::io::AsyncWriteExt as _;
    let config = credentials.client(&identity.parse().unwrap(), true);
    let name = rustls_pki_types::ServerName::try_from(identity.to_owned()).unwrap();
    let socket = TcpStream::connect(proxy).await?;
    let mut tls = tokio_rustls::TlsConnector::from(config)
        .connect(name, socket)
        .await?;
    // `port` is field 1, `session_protocol` field 3 with an empty message for each protocol.
    let mut message = vec![
        0x08,
        (port & 0x7f) as u8 | 0x80,
        (port >> 7 & 0x7f) as u8 | 0x80,
        (port >> 14) as u8,
    ];
    match session {
        Session::Opaque => {}
        Session::Http1 => message.extend([0x1a, 2, 0x0a, 0]),
        Session::Http2 => message.extend([0x1a, 2, 0x12, 0]),
    }
    let mut header = b"transport.l5d.io/v1\r\n\r\n".to_vec();
    header.extend((message.len() as u32).to_be_bytes());
    header.extend(message);
    tls.write_all(&header).await?;
    Ok(tls)
}

/// Holds back the answers to `/wait` until it is opened.
#[derive(Clone)]
pub struct Gate {
    waiting: watch::Sender<usize>,
    open: watch::Sender<bool>,
}

impl Gate {
    pub fn closed() -> Self {
        Self {
            waiting: watch::Sender::new(0),
            open: watch::Sender::new(false),
        }
    }

    pub async fn pass(&self) {
        self.waiting.send_modify(|n| *n += 1);
        let _ = self.open.subscribe().wait_for(|open| *open).await;
    }

    /// Until so many have come.
    pub async fn reached(&self, n: usize) {
        let mut waiting = self.waiting.subscribe();
        within(waiting.wait_for(|waiting| *waiting >= n)).await.unwrap();
    }

    pub fn open(&self) {
        self.open.send_replace(true);
    }
}

/// Like [`app`], with a gate before `/wait`.
pub async fn gated(ip: &str, gate: Gate) -> SocketAddr {
    let listener = TcpListener::bind((ip, 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let gate = gate.clone();
            let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
                let gate = gate.clone();
                async move {
                    if request.uri().path() == "/wait" {
                        gate.pass().await;
                    }
                    Ok::<_, hyper::Error>(Response::new(Full::new(Bytes::from("done"))))
                }
            });
            tokio::spawn(async move {
                let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                let _ = server.serve_connection(TokioIo::new(socket), service).await;
            });
        }
    });
    addr
}

/// The answer, or a failed test.
pub async fn within<F: Future>(future: F) -> F::Output {
    let answer = tokio::time::timeout(Duration::from_secs(20), future).await;
    answer.expect("an answer within 20 s")
}

/// An application that answers 500 until its gate is opened.
pub async fn failing(ip: &str) -> (SocketAddr, Gate) {
    let (listener, gate) = (TcpListener::bind((ip, 0)).await.unwrap(), Gate::closed());
    let (addr, health) = (listener.local_addr().unwrap(), gate.clone());
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let health = health.clone();
            let service = hyper::service::service_fn(move |_: Request<hyper::body::Incoming>| {
                let status = if *health.open.borrow() { 200 } else { 500 };
                let response = Response::builder().status(status).body(Full::<Bytes>::default());
                async move { response }
            });
            tokio::spawn(
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), service),
            );
        }
    });
    (addr, gate)
}

/// Says that a test can't run here, and why.
#[expect(
    clippy::print_stderr,
    reason = "a test that is skipped must not look as if it had passed"
)]
pub fn skipped(why: &str) {
    eprintln!("skipped: {why}");
}
