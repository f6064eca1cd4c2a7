//! A real control plane in place of the sandbox's own: etcd, kube-apiserver, kube-controller-manager and
//! kube-scheduler as processes in the node's network namespace.
//!
//! The programs come from a directory that the caller names. What each is told is [`programs`], a pure function. They
//! keep their data in memory, are started again when they end, and die with the sandbox's processes. Nodes, networks
//! and DNS know nothing of this: they are clients of whatever API server there is.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo};
use kube::Client;
use kube::client::ConfigExt as _;
use kube::config::{KubeConfigOptions, Kubeconfig};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tower::Layer as _;

use crate::api::{ISSUER, Identity, pki};
use crate::kubelet::ClusterAddresses;
use crate::network::NetNs;
use crate::node::server::CALLER;

const ETCD: &str = "etcd";
const API_SERVER: &str = "kube-apiserver";
const CONTROLLER_MANAGER: &str = "kube-controller-manager";
const SCHEDULER: &str = "kube-scheduler";
/// Every program that a control plane consists of.
pub const PROGRAMS: [&str; 4] = [ETCD, API_SERVER, CONTROLLER_MANAGER, SCHEDULER];

/// A program that ended is started again after this long.
const RESTART_PAUSE: Duration = Duration::from_secs(1);
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Connections of this machine's clients that are carried to the API server at once.
const CONNECTION_COUNT_MAX: usize = 1024;

/// Why a control plane could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ControlPlaneError {
    #[error("making certificates")]
    Certificates(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("writing {path}")]
    Write { path: PathBuf, source: io::Error },
    #[error("making a client")]
    Client(#[source] Box<dyn std::error::Error + Send + Sync>),
}

fn certificates(error: impl std::error::Error + Send + Sync + 'static) -> ControlPlaneError {
    ControlPlaneError::Certificates(Box::new(error))
}

/// One cluster's control plane. Its programs end with the tasks it was given.
pub struct ControlPlane {
    name: String,
    pki: pki::Pki,
    client: Client,
    /// Changes when the API server is to die, and says for how long.
    absence: watch::Sender<Duration>,
}

/// A program, what it is told, and where it logs.
#[derive(Debug)]
struct Program {
    name: &'static str,
    arguments: Vec<String>,
}

impl ControlPlane {
    /// Starts the programs in the node's namespace; they become ready on their own.
    pub async fn start(
        addresses: &ClusterAddresses,
        node: &NetNs,
        binaries: &Path,
        private: &Path,
        logs: &Path,
        tasks: &mut JoinSet<()>,
    ) -> Result<Arc<Self>, ControlPlaneError> {
        let names = pki::server_names(&[]);
        let served = pki::server_addresses(&[addresses.node.into()], Some(addresses.services));
        let pki = pki::Pki::new(&names, &served).map_err(certificates)?;
        let dir = private.join("control-plane");
        write_files(&pki, &dir, &names, &served, addresses)?;
        make_directory(logs)?;
        let client = client(&pki, addresses, node).await?;
        let (absence, absent) = watch::channel(Duration::ZERO);
        for program in programs(addresses, &dir) {
            let log = logs.join(format!("{}.log", program.name));
            let keeper = Keeper {
                cluster: addresses.name.clone(),
                node: node.clone(),
                binary: binaries.join(program.name),
                dir: dir.clone(),
                log,
                absent: (program.name == API_SERVER).then(|| absent.clone()),
                // These give up on an API server that does not answer.
                after: matches!(program.name, CONTROLLER_MANAGER | SCHEDULER).then(|| client.clone()),
                program,
            };
            tasks.spawn(keeper.run());
        }
        Ok(Arc::new(Self {
            name: addresses.name.clone(),
            pki,
            client,
            absence,
        }))
    }

    /// An administrator's.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    pub(super) fn ca_pem(&self) -> &str {
        &self.pki.ca_pem
    }

    /// What the node's server shows to this API server, and demands of it.
    pub(super) fn node_tls(&self) -> Arc<rustls::ServerConfig> {
        self.pki.server.clone()
    }

    /// A kubeconfig for an administrator.
    pub(super) fn kubeconfig(&self, server_url: &str) -> String {
        let config = self.pki.kubeconfig(&self.name, server_url, &Identity::admin());
        config.expect("the crypto library makes keys and signs")
    }

    /// Kills the API server, which comes back after a while.
    pub fn interrupt(&self, absence: Duration) {
        self.absence.send_replace(absence);
    }
}

/// Waits until the API server is ready.
pub async fn ready(client: &Client) {
    loop {
        let request = http::Request::get("/readyz").body(Vec::new());
        if let Ok(request) = request
            && client.request_text(request).await.is_ok()
        {
            return;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Carries this machine's clients to the API server, which listens in another network namespace.
pub(super) async fn carry(listener: TcpListener, node: NetNs, to: SocketAddr) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        if connections.len() >= CONNECTION_COUNT_MAX {
            connections.join_next().await;
            continue;
        }
        let Ok((mut near, _)) = listener.accept().await else {
            tokio::time::sleep(LOOK_EVERY).await;
            continue;
        };
        let node = node.clone();
        connections.spawn(async move {
            let _ = near.set_nodelay(true);
            // While there is no API server the connection is closed again, as a crashed one's would be.
            if let Ok(mut far) = node.connect(to).await {
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            }
        });
    }
}

/// Keeps one program running.
struct Keeper {
    cluster: String,
    node: NetNs,
    binary: PathBuf,
    dir: PathBuf,
    log: PathBuf,
    absent: Option<watch::Receiver<Duration>>,
    /// Starts only once this client's API server is ready.
    after: Option<Client>,
    program: Program,
}

impl Keeper {
    async fn run(mut self) {
        loop {
            if let Some(client) = &self.after {
                ready(client).await;
            }
            let pause = match self.spawn() {
                Ok(mut child) => {
                    tokio::select! {
                        status = child.wait() => {
                            let status = status.map(|status| status.to_string()).unwrap_or_default();
                            let log = self.log.display();
                            tracing::warn!(cluster = self.cluster, program = self.program.name, status, %log, "ended");
                            RESTART_PAUSE
                        }
                        absence = interrupted(&mut self.absent) => {
                            // Waits for its end, so that the port is free.
                            let _ = child.kill().await;
                            absence
                        }
                    }
                }
                Err(error) => {
                    let binary = self.binary.display();
                    tracing::error!(cluster = self.cluster, %binary, %error, "starting a program");
                    RESTART_PAUSE
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    fn spawn(&self) -> io::Result<Child> {
        let log = File::options().create(true).append(true).open(&self.log)?;
        let mut command = Command::new(&self.binary);
        command
            .args(&self.program.arguments)
            .current_dir(&self.dir)
            // Nothing of the caller's matters here, least of all its proxies.
            .env_clear()
            .env("HOME", &self.dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true);
        let runtime = tokio::runtime::Handle::current();
        // A process belongs to the network namespace of the thread that starts it.
        self.node.run(|| {
            let _inside = runtime.enter();
            command.spawn()
        })
    }
}

async fn interrupted(absent: &mut Option<watch::Receiver<Duration>>) -> Duration {
    if let Some(absent) = absent
        && absent.changed().await.is_ok()
    {
        return *absent.borrow_and_update();
    }
    std::future::pending().await
}

/// A client that connects from the node's namespace.
async fn client(
    pki: &pki::Pki,
    addresses: &ClusterAddresses,
    node: &NetNs,
) -> Result<Client, ControlPlaneError> {
    let unusable = |error: Box<dyn std::error::Error + Send + Sync>| ControlPlaneError::Client(error);
    let url = format!("https://{}", addresses.api);
    let kubeconfig = pki
        .kubeconfig(&addresses.name, &url, &Identity::admin())
        .map_err(certificates)?;
    let kubeconfig = Kubeconfig::from_yaml(&kubeconfig).map_err(|error| unusable(error.into()))?;
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
    let config = config.map_err(|error| unusable(error.into()))?;
    let (node, to) = (node.clone(), addresses.api);
    let connector = tower::service_fn(move |_: http::Uri| {
        let node = node.clone();
        async move { node.connect(to).await.map(TokioIo::new) }
    });
    let https = config
        .rustls_https_connector_with_connector(connector)
        .map_err(|error| unusable(error.into()))?;
    let hyper = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build(https);
    let service = config.base_uri_layer().layer(hyper);
    Ok(Client::new(service, "default"))
}

fn make_directory(path: &Path) -> Result<(), ControlPlaneError> {
    use std::os::unix::fs::DirBuilderExt as _;
    let made = std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path);
    made.map_err(|source| ControlPlaneError::Write {
        path: path.to_owned(),
        source,
    })
}

/// Everything that the programs read. The directory is in memory and ours alone.
fn write_files(
    pki: &pki::Pki,
    dir: &Path,
    names: &[String],
    served: &[IpAddr],
    addresses: &ClusterAddresses,
) -> Result<(), ControlPlaneError> {
    make_directory(dir)?;
    let (server, server_key) = pki.server_pem(names, served).map_err(certificates)?;
    let caller = Identity::new(CALLER, &[]);
    let (kubelet_client, kubelet_client_key) = pki.client(&caller).map_err(certificates)?;
    // Over the loopback interface of the node's own namespace.
    let url = format!("https://127.0.0.1:{}", addresses.api.port());
    let kubeconfig = |user: &str| {
        let identity = Identity::new(user, &[]);
        pki.kubeconfig(&addresses.name, &url, &identity)
            .map_err(certificates)
    };
    let (signing, verifying) = pki::signing_key().map_err(certificates)?;
    let files = [
        (CA, pki.ca_pem.clone()),
        (CA_KEY, pki.ca_key_pem()),
        (SERVER, server),
        (SERVER_KEY, server_key),
        (KUBELET_CLIENT, kubelet_client),
        (KUBELET_CLIENT_KEY, kubelet_client_key),
        (ACCOUNTS_KEY, signing),
        (ACCOUNTS_PUBLIC_KEY, verifying),
        (
            CONTROLLER_MANAGER_CONFIG,
            kubeconfig("system:kube-controller-manager")?,
        ),
        (SCHEDULER_CONFIG, kubeconfig("system:kube-scheduler")?),
    ];
    for (name, text) in files {
        let path = dir.join(name);
        super::assemble::write_file(&path, &text)
            .map_err(|source| ControlPlaneError::Write { path, source })?;
    }
    Ok(())
}

const CA: &str = "ca.crt";
/// For the certificates that nodes of Kubernetes ask for.
const CA_KEY: &str = "ca.key";
const SERVER: &str = "server.crt";
const SERVER_KEY: &str = "server.key";
const KUBELET_CLIENT: &str = "kubelet-client.crt";
const KUBELET_CLIENT_KEY: &str = "kubelet-client.key";
const ACCOUNTS_KEY: &str = "service-accounts.key";
const ACCOUNTS_PUBLIC_KEY: &str = "service-accounts.pub";
const CONTROLLER_MANAGER_CONFIG: &str = "controller-manager.kubeconfig";
const SCHEDULER_CONFIG: &str = "scheduler.kubeconfig";

/// What each program is told.
fn programs(addresses: &ClusterAddresses, dir: &Path) -> [Program; 4] {
    let file = |name: &str| dir.join(name).display().to_string();
    let loopback = |port: u16| format!("http://{}", SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    // Namespaces are private, so the ports that everybody knows are free.
    let (clients, peers) = (loopback(2379), loopback(2380));
    let program = |name, flags: &[(&str, String)]| Program {
        name,
        arguments: flags
            .iter()
            .map(|(flag, value)| format!("--{flag}={value}"))
            .collect(),
    };
    let own = |text: &str| text.to_owned();
    [
        program(
            ETCD,
            &[
                ("name", own("sandbox")),
                ("data-dir", file("etcd")),
                ("listen-client-urls", clients.clone()),
                ("advertise-client-urls", clients.clone()),
                ("listen-peer-urls", peers.clone()),
                ("initial-advertise-peer-urls", peers.clone()),
                ("initial-cluster", format!("sandbox={peers}")),
                ("log-level", own("warn")),
            ],
        ),
        program(
            API_SERVER,
            &[
                ("etcd-servers", clients),
                ("bind-address", Ipv4Addr::UNSPECIFIED.to_string()),
                ("secure-port", addresses.api.port().to_string()),
                ("advertise-address", addresses.node.to_string()),
                ("tls-cert-file", file(SERVER)),
                ("tls-private-key-file", file(SERVER_KEY)),
                ("client-ca-file", file(CA)),
                ("kubelet-certificate-authority", file(CA)),
                ("kubelet-client-certificate", file(KUBELET_CLIENT)),
                ("kubelet-client-key", file(KUBELET_CLIENT_KEY)),
                ("kubelet-preferred-address-types", own("InternalIP")),
                ("service-account-issuer", own(ISSUER)),
                ("service-account-key-file", file(ACCOUNTS_PUBLIC_KEY)),
                ("service-account-signing-key-file", file(ACCOUNTS_KEY)),
                ("service-cluster-ip-range", addresses.services.to_string()),
                ("authorization-mode", own("Node,RBAC")),
                ("allow-privileged", own("true")),
            ],
        ),
        program(
            CONTROLLER_MANAGER,
            &[
                ("kubeconfig", file(CONTROLLER_MANAGER_CONFIG)),
                ("use-service-account-credentials", own("true")),
                ("service-account-private-key-file", file(ACCOUNTS_KEY)),
                ("root-ca-file", file(CA)),
                ("cluster-signing-cert-file", file(CA)),
                ("cluster-signing-key-file", file(CA_KEY)),
                // There is only one.
                ("leader-elect", own("false")),
                ("secure-port", own("0")),
            ],
        ),
        program(
            SCHEDULER,
            &[
                ("kubeconfig", file(SCHEDULER_CONFIG)),
                ("leader-elect", own("false")),
                ("secure-port", own("0")),
            ],
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::{Layout, NodePorts, plan_addresses};

    #[test]
    fn only_the_api_server_can_be_reached_from_elsewhere() {
        let plan = plan_addresses(&["west".into()], Layout::Apart, NodePorts::Inside).expect("one fits");
        for program in programs(&plan[0], Path::new("/run")) {
            let listening = program.arguments.iter().filter(|argument| {
                argument.starts_with("--listen-")
                    || argument.starts_with("--bind-address")
                    || argument.starts_with("--secure-port")
            });
            let expected = match program.name {
                ETCD => vec![
                    "--listen-client-urls=http://127.0.0.1:2379",
                    "--listen-peer-urls=http://127.0.0.1:2380",
                ],
                API_SERVER => vec!["--bind-address=0.0.0.0", "--secure-port=6443"],
                _ => vec!["--secure-port=0"],
            };
            assert_eq!(listening.collect::<Vec<_>>(), expected, "{}", program.name);
        }
    }
}
