//! What an API server asks of a node: logs, exec and port-forward.
//!
//! The API server authenticates and authorises before it asks; a kubelet only knows pods and containers. Tests use a
//! fake kubelet, the sandbox the node agent of the same process.

use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

/// A future on the heap: this trait is used as an object, off every hot path.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// One container of one pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContainerRef {
    pub namespace: String,
    pub pod: String,
    pub container: String,
}

/// The query of `GET .../pods/{name}/log`.
#[derive(Clone, Debug, Default)]
pub struct LogOptions {
    pub follow: bool,
    pub previous: bool,
    pub timestamps: bool,
    pub tail_lines: Option<u64>,
    pub limit_bytes: Option<u64>,
    /// Only lines younger than this.
    pub since: Option<Duration>,
    /// Only what was written there.
    pub stream: Option<LogStream>,
}

/// One of a container's outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogStream {
    Stdout,
    Stderr,
}

/// What to run in a container.
#[derive(Clone, Debug, Default)]
pub struct ExecOptions {
    pub command: Vec<String>,
    pub tty: bool,
    pub stdin: bool,
}

/// Standard streams of a running exec or attach. Dropping it hangs up on the process.
pub struct ExecSession {
    /// Absent when the caller asked for no stdin. Shutting it down is end-of-file.
    pub stdin: Option<Pin<Box<dyn AsyncWrite + Send>>>,
    pub stdout: Pin<Box<dyn AsyncRead + Send>>,
    /// Empty with a terminal, where the kernel joins both.
    pub stderr: Pin<Box<dyn AsyncRead + Send>>,
    /// Terminal size as (columns, rows).
    pub resize: mpsc::Sender<(u16, u16)>,
    /// Resolves to the exit code once the process has ended (128 + signal when killed).
    pub exit: BoxFuture<'static, Result<i32, KubeletError>>,
}

/// Why a node could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum KubeletError {
    #[error("pod {0} is not on this node")]
    NoSuchPod(String),
    #[error("container {0} is not valid for the pod")]
    NoSuchContainer(String),
    #[error("container {container} is waiting to start: {reason}")]
    NotRunning { container: String, reason: String },
    #[error("connecting to port {port} in the pod")]
    Dial { port: u16, source: std::io::Error },
    #[error("{what}")]
    Io { what: String, source: std::io::Error },
}

/// A node's answers. One per cluster.
pub trait Kubelet: Send + Sync + 'static {
    /// Log bytes as they should be sent to the client; with `follow` the channel ends when the container does.
    fn logs(
        &self,
        container: ContainerRef,
        options: LogOptions,
    ) -> BoxFuture<'_, Result<mpsc::Receiver<Bytes>, KubeletError>>;

    fn exec(
        &self,
        container: ContainerRef,
        options: ExecOptions,
    ) -> BoxFuture<'_, Result<ExecSession, KubeletError>>;

    /// The output of a running container from now on; there is no stdin. `exit` resolves to zero when it has ended.
    fn attach(&self, container: ContainerRef) -> BoxFuture<'_, Result<ExecSession, KubeletError>>;

    /// Opens a TCP connection to `127.0.0.1:port` inside the pod's network namespace, falling back to its address.
    fn dial(
        &self,
        namespace: String,
        pod: String,
        port: u16,
    ) -> BoxFuture<'_, Result<tokio::net::TcpStream, KubeletError>>;
}

/// Where a cluster's parts can be reached; given to controllers, node and DNS alike.
#[derive(Clone, Debug)]
pub struct ClusterAddresses {
    /// Cluster name, also the node's name prefix.
    pub name: String,
    /// Pod network, for example `10.42.0.0/16`; the same in every cluster unless their pods reach each other.
    pub pods: ipnet::Ipv4Net,
    /// Pod networks of other clusters that pods of this one reach directly, each with the node it is behind.
    pub reachable_pods: Vec<(ipnet::Ipv4Net, std::net::Ipv4Addr)>,
    /// Service network, for example `10.43.0.0/16`; the same in every cluster.
    pub services: ipnet::Ipv4Net,
    /// The node's address on the segment between clusters.
    pub node: std::net::Ipv4Addr,
    /// Where clients outside the cluster reach the node's ports, and nothing else; none if they don't.
    pub external: Option<std::net::Ipv4Addr>,
    /// Addresses on that segment for Services of type LoadBalancer.
    pub load_balancers: ipnet::Ipv4Net,
    /// Where pods of any cluster reach this cluster's API server: `node:6443`.
    pub api: SocketAddr,
    /// ClusterIP of kube-dns.
    pub dns: std::net::Ipv4Addr,
    /// DNS domain, `cluster.local`.
    pub domain: String,
}
