//! Puts a sandbox together from its parts, inside the namespaces that [`super::enter`] made.
//!
//! Per cluster: a network, an API server on two listeners (loopback of the machine, and the segment between clusters),
//! controllers, a node agent, service addresses and DNS. API server and controllers are the sandbox's own or Kubernetes'. Every part is a client of its cluster's API server; the only
//! thing they share is this file.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use k8s_openapi::api::core::v1::{Node, Pod, Service, ServiceAccount};
use kube::Client;
use kube::api::{Api, DynamicObject, ListParams, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::discovery::ApiResource;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::control::{self, Answer, ClusterStatus, Command, Status};
use super::enter::{self, ApiServers, KUBECONFIG, Request};
use super::kubernetes::{self, ControlPlane, ControlPlaneError};
use crate::api::{Cluster, ClusterOptions, Identity, ServiceDialer};
use crate::images::Images;
use crate::kubelet::{BoxFuture, ClusterAddresses};
use crate::network::wan::{Condition, Wan, WanError};
use crate::network::{self, ClusterNetwork, NetworkError, PodNetwork, plan_addresses};
use crate::node::{PodNet, PodNetworks};
use crate::{controllers, dns, node};

const DNS_PORT: u16 = 53;
/// Looking into all clusters for a status must not hang on one that is cut or killed.
const STATUS_DEADLINE: Duration = Duration::from_secs(2);

/// Why a sandbox could not be put together.
#[derive(Debug, thiserror::Error)]
pub enum AssembleError {
    #[error("starting the runtime")]
    Runtime { source: io::Error },
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error("listening for cluster {cluster} on {at}")]
    Listen {
        cluster: String,
        at: SocketAddr,
        source: io::Error,
    },
    #[error("writing {path}")]
    Write { path: PathBuf, source: io::Error },
    #[error(transparent)]
    ControlPlane(#[from] ControlPlaneError),
    #[error("making the first objects of cluster {cluster}")]
    Bootstrap {
        cluster: String,
        source: Box<kube::Error>,
    },
}

/// Runs the sandbox until it is told to stop; what the supervisor process does.
pub fn run(request: Request, listeners: Vec<TcpListener>, images: Images) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let outcome = runtime
        .map_err(|source| AssembleError::Runtime { source })
        .and_then(|runtime| runtime.block_on(supervise(&request, listeners, images)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "the sandbox could not be started"
            );
            ExitCode::FAILURE
        }
    }
}

async fn supervise(
    request: &Request,
    listeners: Vec<TcpListener>,
    images: Images,
) -> Result<(), AssembleError> {
    let (mut term, mut int) = (
        signals(SignalKind::terminate())?,
        signals(SignalKind::interrupt())?,
    );
    let sandbox = Sandbox::start(request, listeners, images).await?;
    let sandbox = Arc::new(sandbox);
    let stop = CancellationToken::new();
    let (answering, told) = (sandbox.clone(), stop.clone());
    let answer = move |command| {
        let (sandbox, stop) = (answering.clone(), told.clone());
        async move { sandbox.answer(command, &stop).await }
    };
    tokio::select! {
        served = control::serve(&request.state_dir, answer) => {
            served.map_err(|source| AssembleError::Write { path: control::socket(&request.state_dir), source })?;
        }
        () = stop.cancelled() => {
            // The answer to `down` is on its way.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    tracing::info!("the sandbox stops");
    // Neither has a use any more, and one is a secret.
    for file in [
        control::socket(&request.state_dir),
        request.state_dir.join(KUBECONFIG),
    ] {
        let _ = std::fs::remove_file(file);
    }
    // Pods and namespaces end with this process.
    Ok(())
}

fn signals(kind: SignalKind) -> Result<tokio::signal::unix::Signal, AssembleError> {
    signal(kind).map_err(|source| AssembleError::Runtime { source })
}

/// All clusters, running.
pub struct Sandbox {
    clusters: BTreeMap<String, Running>,
    wan: Wan,
    kubeconfig: PathBuf,
    shutdown: CancellationToken,
    /// Ends with the sandbox.
    _tasks: JoinSet<()>,
}

struct Running {
    addresses: ClusterAddresses,
    api: ApiServer,
    client: Client,
    /// Where this machine's clients reach the API server.
    server: String,
}

/// What serves a cluster's API.
enum ApiServer {
    Sandbox(Arc<Cluster>),
    Kubernetes(Arc<ControlPlane>),
}

impl ApiServer {
    fn kubeconfig(&self, server_url: &str) -> String {
        match self {
            Self::Sandbox(cluster) => cluster.kubeconfig(server_url),
            Self::Kubernetes(plane) => plane.kubeconfig(server_url),
        }
    }

    fn interrupt(&self, absence: Duration) {
        match self {
            Self::Sandbox(cluster) => cluster.interrupt(absence),
            Self::Kubernetes(plane) => plane.interrupt(absence),
        }
    }
}

impl Sandbox {
    /// Starts every cluster; they become ready on their own. `listeners` are in the request's order.
    pub async fn start(
        request: &Request,
        listeners: Vec<TcpListener>,
        images: Images,
    ) -> Result<Self, AssembleError> {
        let shutdown = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let wan = Wan::new();
        let mut clusters = BTreeMap::new();
        let mut kubeconfigs = Vec::new();
        for (addresses, listener) in plan_addresses(&request.clusters, request.layout, request.node_ports)?
            .into_iter()
            .zip(listeners)
        {
            let name = addresses.name.clone();
            let private = enter::private_dir(&request.state_dir).join(&name);
            let logs = request.state_dir.join(&name).join("logs");
            let start = Start {
                addresses,
                listener,
                images: &images,
                api: &request.api,
                private: &private,
                logs: &logs,
                wan: &wan,
            };
            let running = start.run(&mut tasks, &shutdown).await?;
            kubeconfigs.push(running.api.kubeconfig(&running.server));
            clusters.insert(name, running);
        }
        let kubeconfig = request.state_dir.join(KUBECONFIG);
        write_private(&kubeconfig, &join(&kubeconfigs))?;
        Ok(Self {
            clusters,
            wan,
            kubeconfig,
            shutdown,
            _tasks: tasks,
        })
    }

    async fn answer(&self, command: Command, stop: &CancellationToken) -> Answer {
        let changed = match command {
            Command::Status => return Answer::Status(self.status().await),
            Command::Down => {
                // Before the answer: whoever asked for the end may look right after it.
                let _ = std::fs::remove_file(&self.kubeconfig);
                self.shutdown.cancel();
                stop.cancel();
                return Answer::Done;
            }
            Command::KillApi {
                cluster,
                milliseconds,
            } => {
                let Some(running) = self.clusters.get(&cluster) else {
                    return Answer::Failed {
                        why: format!("there is no cluster {cluster}"),
                    };
                };
                running.api.interrupt(Duration::from_millis(milliseconds));
                return Answer::Done;
            }
            Command::Cut { a, b } => self.disturb(&a, &b, |condition| condition.cut = true),
            Command::Heal { a, b } => self.disturb(&a, &b, |condition| *condition = Condition::default()),
            Command::Delay { a, b, milliseconds } => self.disturb(&a, &b, |condition| {
                condition.delay = Duration::from_millis(milliseconds)
            }),
            Command::Loss { a, b, share } => self.disturb(&a, &b, |condition| condition.loss = share),
        };
        match changed {
            Ok(()) => Answer::Done,
            Err(error) => Answer::Failed {
                why: error.to_string(),
            },
        }
    }

    fn disturb(&self, a: &str, b: &str, change: impl FnOnce(&mut Condition)) -> Result<(), WanError> {
        self.wan.set(a, b, change).map(|_| ())
    }

    async fn status(&self) -> Status {
        let looks = self.clusters.values().map(Running::status);
        let clusters = futures::future::join_all(looks).await;
        let disturbed = self.wan.conditions().into_iter().map(|(a, b, condition)| {
            let what = match condition {
                Condition { cut: true, .. } => "cut".to_owned(),
                Condition { delay, loss, .. } => format!("delay {delay:?}, loss {:.1} %", loss * 100.0),
            };
            format!("{a} - {b}: {what}")
        });
        Status {
            ready: clusters.iter().all(|cluster| cluster.ready),
            kubeconfig: self.kubeconfig.clone(),
            clusters,
            disturbed: disturbed.collect(),
        }
    }
}

impl Running {
    async fn status(&self) -> ClusterStatus {
        let mut status = ClusterStatus {
            name: self.addresses.name.clone(),
            server: self.server.clone(),
            internal_server: format!("https://{}", self.addresses.api),
            ..ClusterStatus::default()
        };
        match tokio::time::timeout(STATUS_DEADLINE, self.look()).await {
            Ok(Ok((waiting_for, pods, pods_ready))) => {
                (status.waiting_for, status.pods, status.pods_ready) = (waiting_for, pods, pods_ready);
            }
            Ok(Err(error)) => status.waiting_for.push(format!("the API server ({error})")),
            Err(_) => status.waiting_for.push("the API server's answer".into()),
        }
        status.ready = status.waiting_for.is_empty();
        status
    }

    async fn look(&self) -> Result<(Vec<String>, usize, usize), kube::Error> {
        let mut waiting = Vec::new();
        let nodes = Api::<Node>::all(self.client.clone())
            .list(&ListParams::default())
            .await?;
        if !nodes.items.iter().any(|node| {
            has(node
                .status
                .as_ref()
                .and_then(|s| s.conditions.as_deref())
                .map(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "True")))
        }) {
            waiting.push("the node".into());
        }
        let accounts = Api::<ServiceAccount>::namespaced(self.client.clone(), "default");
        if accounts.get_opt("default").await?.is_none() {
            waiting.push("the default service account".into());
        }
        let pods = Api::<Pod>::all(self.client.clone())
            .list(&ListParams::default())
            .await?;
        let ready = pods.items.iter().filter(|pod| {
            has(pod
                .status
                .as_ref()
                .and_then(|s| s.conditions.as_deref())
                .map(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "True")))
        });
        Ok((waiting, pods.items.len(), ready.count()))
    }
}

fn has(found: Option<bool>) -> bool {
    found.unwrap_or(false)
}

/// What one cluster is made from.
struct Start<'a> {
    addresses: ClusterAddresses,
    listener: TcpListener,
    images: &'a Images,
    api: &'a ApiServers,
    /// Seen by the sandbox alone.
    private: &'a Path,
    /// Stays readable when the sandbox has ended.
    logs: &'a Path,
    wan: &'a Wan,
}

impl Start<'_> {
    async fn run(
        self,
        tasks: &mut JoinSet<()>,
        shutdown: &CancellationToken,
    ) -> Result<Running, AssembleError> {
        let addresses = self.addresses;
        let cluster = addresses.name.clone();
        let listen = |at: SocketAddr| {
            let cluster = cluster.clone();
            move |source| AssembleError::Listen { cluster, at, source }
        };
        let network = ClusterNetwork::create(addresses.clone(), self.wan).await?;

        let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        self.listener.set_nonblocking(true).map_err(listen(loopback))?;
        let port = self.listener.local_addr().map_err(listen(loopback))?.port();
        let server = format!("https://127.0.0.1:{port}");
        let machine = tokio::net::TcpListener::from_std(self.listener).map_err(listen(loopback))?;
        let parts = Parts {
            network: network.clone(),
            images: self.images.clone(),
            private: self.private.to_owned(),
            logs: self.logs.to_owned(),
            shutdown: shutdown.clone(),
        };
        let (api, client) = match self.api {
            ApiServers::Sandbox => {
                let segment = network
                    .node()
                    .listen(addresses.api)
                    .await
                    .map_err(listen(addresses.api))?;
                let (services, dialer) = dialer(network.clone());
                let api = Cluster::new(ClusterOptions {
                    name: cluster.clone(),
                    addresses: vec![addresses.node.into()],
                    services: Some(addresses.services),
                    service_dialer: Some(dialer),
                    ..ClusterOptions::default()
                });
                let client = api.client(Identity::admin());
                let _ = services.set(client.clone());
                for listener in [machine, segment] {
                    let (api, name) = (api.clone(), cluster.clone());
                    tasks.spawn(async move {
                        if let Err(error) = api.serve(listener).await {
                            tracing::error!(cluster = name, %error, "the API server stopped");
                        }
                    });
                }
                let objects = first_objects(&addresses, network.gateway(), api.ca_pem());
                let own = own_objects(&addresses, api.ca_pem());
                write(&client, objects.iter().chain(&own))
                    .await
                    .map_err(|source| AssembleError::Bootstrap {
                        cluster: cluster.clone(),
                        source: Box::new(source),
                    })?;
                let agent = parts.agent(client.clone(), None);
                api.set_kubelet(agent.clone());
                parts
                    .start(client.clone(), agent, controllers::run, tasks)
                    .await?;
                (ApiServer::Sandbox(api), client)
            }
            ApiServers::Kubernetes { binaries } => {
                let node = network.node();
                let logs = self.logs.with_file_name("control-plane");
                let plane =
                    ControlPlane::start(&addresses, node, binaries, self.private, &logs, tasks).await?;
                let client = plane.client();
                tasks.spawn(kubernetes::carry(machine, node.clone(), addresses.api));
                let agent = parts.agent(client.clone(), Some(node::server::PORT));
                let at = SocketAddr::from((addresses.node, node::server::PORT));
                let listener = node.listen(at).await.map_err(listen(at))?;
                tasks.spawn(node::server::serve(agent.clone(), listener, plane.node_tls()));
                let objects = first_objects(&addresses, network.gateway(), plane.ca_pem());
                let (name, client_too) = (cluster.clone(), client.clone());
                tasks.spawn(async move {
                    kubernetes::ready(&client_too).await;
                    // Namespaces of the system appear a little later.
                    while let Err(error) = write(&client_too, &objects).await {
                        tracing::info!(cluster = name, %error, "making the first objects");
                        tokio::time::sleep(Duration::from_millis(200)).await;
                    }
                    let mut own = JoinSet::new();
                    let started = parts.start(client_too, agent, controllers::run_provider, &mut own);
                    if let Err(error) = started.await {
                        let error = &error as &dyn std::error::Error;
                        tracing::error!(cluster = name, error, "the cluster could not be started");
                    }
                    while own.join_next().await.is_some() {}
                });
                (ApiServer::Kubernetes(plane), client)
            }
        };
        Ok(Running {
            addresses,
            api,
            client,
            server,
        })
    }
}

/// What a cluster consists of beside its API server: all of it clients of that.
struct Parts {
    network: Arc<ClusterNetwork>,
    images: Images,
    private: PathBuf,
    logs: PathBuf,
    shutdown: CancellationToken,
}

impl Parts {
    fn agent(&self, client: Client, port: Option<u16>) -> Arc<node::Agent> {
        let addresses = self.network.addresses();
        node::Agent::new(node::AgentConfig {
            client,
            addresses: addresses.clone(),
            images: self.images.clone(),
            networks: Arc::new(Networks(self.network.clone())),
            state_dir: self.private.clone(),
            log_dir: self.logs.clone(),
            node_name: format!("{}-node", addresses.name),
            labels: BTreeMap::new(),
            port,
            host_paths: Vec::new(),
        })
    }

    async fn start<C>(
        self,
        client: Client,
        agent: Arc<node::Agent>,
        controllers: impl FnOnce(Client, ClusterAddresses, CancellationToken) -> C,
        tasks: &mut JoinSet<()>,
    ) -> Result<(), AssembleError>
    where
        C: Future<Output = ()> + Send + 'static,
    {
        let (network, shutdown) = (self.network, self.shutdown);
        let addresses = network.addresses().clone();
        let cluster = addresses.name.clone();
        let (snapshots, follow) = network::snapshot::follow(client.clone(), shutdown.clone());
        tasks.spawn(follow);
        tasks.spawn(network::services::run(
            snapshots.clone(),
            network.clone(),
            shutdown.clone(),
        ));
        let at = SocketAddr::from((network.gateway(), DNS_PORT));
        let names = dns::Server::bind(network.node(), at).await;
        let names = names.map_err(|source| AssembleError::Listen {
            cluster: cluster.clone(),
            at,
            source,
        })?;
        tasks.spawn(names.run(
            snapshots,
            addresses.domain.clone(),
            BTreeMap::new(),
            shutdown.clone(),
        ));
        tasks.spawn(controllers(client, addresses, shutdown.clone()));
        tasks.spawn(async move {
            if let Err(error) = agent.run(shutdown).await {
                tracing::error!(
                    cluster,
                    error = &error as &dyn std::error::Error,
                    "the node stopped"
                );
            }
        });
        Ok(())
    }
}

/// Pod networks, as the node agent wants them.
struct Networks(Arc<ClusterNetwork>);

impl PodNetworks for Networks {
    fn add_pod<'a>(&'a self, uid: &'a str) -> BoxFuture<'a, io::Result<Arc<dyn PodNet>>> {
        Box::pin(async move {
            let pod = self.0.add_pod(uid).await.map_err(io::Error::other)?;
            Ok(Arc::new(pod) as Arc<dyn PodNet>)
        })
    }

    fn remove_pod<'a>(&'a self, uid: &'a str) -> BoxFuture<'a, ()> {
        Box::pin(self.0.remove_pod(uid))
    }
}

impl PodNet for PodNetwork {
    fn ip(&self) -> Ipv4Addr {
        self.ip
    }

    fn netns(&self) -> Option<PathBuf> {
        let fd = std::os::fd::AsRawFd::as_raw_fd(&self.netns.fd());
        Some(format!("/proc/{}/fd/{fd}", std::process::id()).into())
    }

    fn connect(&self, to: SocketAddr) -> BoxFuture<'_, io::Result<TcpStream>> {
        Box::pin(self.netns.connect(to))
    }
}

/// How the API server reaches webhooks: by their Service's address, from the node, like everybody else. The client
/// is set once there is one.
fn dialer(network: Arc<ClusterNetwork>) -> (Arc<OnceLock<Client>>, ServiceDialer) {
    let client = Arc::new(OnceLock::<Client>::new());
    let known = client.clone();
    let dialer: ServiceDialer = Arc::new(move |namespace, name, port| {
        let (client, network) = (known.get().cloned(), network.clone());
        Box::pin(async move {
            let client = client.ok_or_else(|| io::Error::other("the API server is starting"))?;
            let services = Api::<Service>::namespaced(client, &namespace);
            let service = services.get(&name).await.map_err(io::Error::other)?;
            let address = service
                .spec
                .and_then(|spec| spec.cluster_ip)
                .and_then(|ip| ip.parse::<Ipv4Addr>().ok());
            let address = address.ok_or_else(|| io::Error::other("the Service has no address"))?;
            network.node().connect((address, port).into()).await
        })
    });
    (client, dialer)
}

/// Objects that every cluster begins with besides those of its API server: how pods find DNS, and how other clusters
/// find the API server.
fn first_objects(addresses: &ClusterAddresses, gateway: Ipv4Addr, ca_pem: &str) -> Vec<Value> {
    vec![
        json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "cluster-info", "namespace": "kube-public"},
            "data": {"kubeconfig": cluster_info(addresses, ca_pem)},
        }),
        service(
            "kube-system",
            "kube-dns",
            addresses.dns,
            &[("dns", "UDP", DNS_PORT), ("dns-tcp", "TCP", DNS_PORT)],
        ),
        slice(
            "kube-system",
            "kube-dns",
            gateway,
            &[("dns", "UDP", DNS_PORT), ("dns-tcp", "TCP", DNS_PORT)],
        ),
    ]
}

/// What Kubernetes' own control plane writes by itself: how pods find the API server, and whom they trust.
fn own_objects(addresses: &ClusterAddresses, ca_pem: &str) -> Vec<Value> {
    let api = Ipv4Addr::from(u32::from(addresses.services.network()) + 1);
    vec![
        json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "kube-root-ca.crt", "namespace": "kube-system"},
            "data": {"ca.crt": ca_pem},
        }),
        service("default", "kubernetes", api, &[("https", "TCP", 443)]),
        slice(
            "default",
            "kubernetes",
            addresses.node,
            &[("https", "TCP", addresses.api.port())],
        ),
    ]
}

/// Makes these objects what they should be.
async fn write(client: &Client, objects: impl IntoIterator<Item = &Value>) -> Result<(), kube::Error> {
    for object in objects {
        let text = |pointer: &str| {
            object
                .pointer(pointer)
                .and_then(Value::as_str)
                .unwrap_or_default()
        };
        let (group, version) = text("/apiVersion")
            .split_once('/')
            .unwrap_or_else(|| ("", text("/apiVersion")));
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, text("/kind")));
        let api: Api<DynamicObject> =
            Api::namespaced_with(client.clone(), text("/metadata/namespace"), &resource);
        api.patch(
            text("/metadata/name"),
            &PatchParams::apply("sandbox").force(),
            &Patch::Apply(&object),
        )
        .await?;
    }
    Ok(())
}

/// Where other clusters find the API server: a kubeconfig without a user, as kubeadm publishes it.
fn cluster_info(addresses: &ClusterAddresses, ca_pem: &str) -> String {
    json!({
        "apiVersion": "v1", "kind": "Config",
        "clusters": [{"name": "", "cluster": {
            "server": format!("https://{}", addresses.api),
            "certificate-authority-data": BASE64.encode(ca_pem),
        }}],
        "contexts": [], "users": [],
    })
    .to_string()
}

type Port<'a> = (&'a str, &'a str, u16);

fn service(namespace: &str, name: &str, address: Ipv4Addr, ports: &[Port<'_>]) -> Value {
    let ports: Vec<_> = ports
        .iter()
        .map(|(name, protocol, port)| json!({"name": name, "protocol": protocol, "port": port, "targetPort": port}))
        .collect();
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"clusterIP": address, "clusterIPs": [address], "ports": ports},
    })
}

fn slice(namespace: &str, service: &str, address: Ipv4Addr, ports: &[Port<'_>]) -> Value {
    let ports: Vec<_> = ports
        .iter()
        .map(|(name, protocol, port)| json!({"name": name, "protocol": protocol, "port": port}))
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": service, "namespace": namespace,
            "labels": {"kubernetes.io/service-name": service, "endpointslice.kubernetes.io/managed-by": "sandbox"},
        },
        "addressType": "IPv4",
        "endpoints": [{"addresses": [address], "conditions": {"ready": true}}],
        "ports": ports,
    })
}

/// One kubeconfig with a context per cluster; the first is the current one.
fn join(kubeconfigs: &[String]) -> String {
    let mut joined =
        json!({"apiVersion": "v1", "kind": "Config", "clusters": [], "users": [], "contexts": []});
    for kubeconfig in kubeconfigs {
        let Ok(mut one) = serde_saphyr::from_str::<Value>(kubeconfig) else {
            unreachable!("we wrote it ourselves");
        };
        for list in ["clusters", "users", "contexts"] {
            if let (Some(all), Some(new)) = (joined[list].as_array_mut(), one[list].as_array_mut()) {
                all.append(new);
            }
        }
        if joined.get("current-context").is_none() {
            joined["current-context"] = one["current-context"].take();
        }
    }
    // JSON is YAML: every reader of kubeconfigs takes it.
    serde_saphyr::to_string(&joined).unwrap_or_else(|_| joined.to_string())
}

fn write_private(path: &Path, text: &str) -> Result<(), AssembleError> {
    write_file(path, text).map_err(|source| AssembleError::Write {
        path: path.to_owned(),
        source,
    })
}

/// A file that nobody else may read.
pub(super) fn write_file(path: &Path, text: &str) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = std::fs::OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    io::Write::write_all(&mut file, text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_joined_kubeconfig_has_every_cluster_and_begins_with_the_first() {
        let of = |name: &str| {
            json!({
                "clusters": [{"name": name}], "users": [{"name": name}], "contexts": [{"name": name}],
                "current-context": name,
            })
            .to_string()
        };
        let joined: Value = serde_saphyr::from_str(&join(&[of("west"), of("east")])).expect("YAML");
        assert_eq!(joined["current-context"], "west");
        assert_eq!(joined["contexts"], json!([{"name": "west"}, {"name": "east"}]));
    }
}
