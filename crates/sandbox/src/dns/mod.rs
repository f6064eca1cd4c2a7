//! A cluster's DNS: names of Services and pods, as CoreDNS would answer them.
//!
//! [`zone`] decides what a name means and is pure; this file is the server. It listens in the node's namespace and is
//! reached through the Service `kube-dns` like any other. Names outside the cluster's domain exist only if the
//! launcher declared them: nothing is asked of the machine's own resolver.

mod zone;

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

pub use self::zone::{Zone, answer};
use crate::network::NetNs;
use crate::network::snapshot::Snapshot;

/// Clients that don't announce a larger buffer get at most this much over UDP.
const UDP_PLAIN: usize = 512;
/// The most we send over UDP whatever is announced, so that no answer is fragmented.
const UDP_MAX: usize = 1232;
/// TCP connections at once. More wait to be accepted.
const CONNECTIONS_MAX: usize = 256;
/// After a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// A TCP client must ask, or take its answer, within this time.
const TCP_IDLE: Duration = Duration::from_secs(10);

/// The sockets of a DNS server, bound before anything is started that needs it.
#[derive(Debug)]
pub struct Server {
    udp: UdpSocket,
    tcp: TcpListener,
}

impl Server {
    pub async fn bind(node: &NetNs, at: SocketAddr) -> io::Result<Self> {
        Ok(Self {
            udp: node.bind_udp(at).await?,
            tcp: node.listen(at).await?,
        })
    }

    /// Answers until shutdown from the latest snapshot. `hosts` are names outside the cluster's domain.
    pub async fn run(
        self,
        snapshots: watch::Receiver<Arc<Snapshot>>,
        domain: String,
        hosts: BTreeMap<String, Ipv4Addr>,
        shutdown: CancellationToken,
    ) {
        let zones = Zones {
            snapshots,
            domain,
            hosts: Arc::new(hosts),
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = serve_udp(self.udp, zones.clone()) => {}
            () = serve_tcp(self.tcp, zones) => {}
        }
    }
}

#[derive(Clone, Debug)]
struct Zones {
    snapshots: watch::Receiver<Arc<Snapshot>>,
    domain: String,
    hosts: Arc<BTreeMap<String, Ipv4Addr>>,
}

impl Zones {
    /// The answer to a message, or nothing to something that is not a question.
    fn answer(&self, message: &[u8]) -> Option<Message> {
        let query = Message::from_vec(message).ok()?;
        let snapshot = Arc::clone(&self.snapshots.borrow());
        answer(
            &Zone {
                snapshot: &snapshot,
                domain: &self.domain,
                hosts: &self.hosts,
            },
            &query,
        )
    }
}

async fn serve_udp(socket: UdpSocket, zones: Zones) {
    let mut buffer = [0; 4096];
    loop {
        // An error is one that an earlier answer met on its way, such as a client's closed port.
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        let Some(answer) = zones.answer(&buffer[..length]) else {
            continue;
        };
        let room = answer
            .edns
            .as_ref()
            .map_or(UDP_PLAIN, |edns| usize::from(edns.max_payload()).min(UDP_MAX));
        let bytes = match answer.to_vec() {
            Ok(bytes) if bytes.len() <= room => bytes,
            _ => answer.truncate().to_vec().unwrap_or_default(),
        };
        // Lost answers are asked for again.
        let _ = socket.send_to(&bytes, client).await;
    }
}

async fn serve_tcp(listener: TcpListener, zones: Zones) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let permit = Arc::clone(&permits)
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        let Ok((stream, _)) = listener.accept().await else {
            // Out of file descriptors, most likely: others must close first.
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        while connections.try_join_next().is_some() {}
        let zones = zones.clone();
        connections.spawn(async move {
            if let Err(error) = converse(stream, &zones).await {
                tracing::debug!(%error, "DNS over TCP");
            }
            drop(permit);
        });
    }
}

async fn converse(mut stream: TcpStream, zones: &Zones) -> io::Result<()> {
    loop {
        let mut length = [0; 2];
        match timeout(TCP_IDLE, stream.read_exact(&mut length)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) if error.kind() != io::ErrorKind::UnexpectedEof => return Err(error),
            _ => return Ok(()),
        }
        let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
        timeout(TCP_IDLE, stream.read_exact(&mut message)).await??;
        let Some(answer) = zones.answer(&message) else {
            return Ok(());
        };
        let bytes = answer.to_vec().map_err(io::Error::other)?;
        let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
        let framed = [length.to_be_bytes().as_slice(), &bytes].concat();
        timeout(TCP_IDLE, stream.write_all(&framed)).await??;
    }
}
