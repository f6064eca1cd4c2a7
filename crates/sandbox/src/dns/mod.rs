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

#[cfg(test)]
mod tests {
    use hickory_proto::op::{MessageType, OpCode, Query, ResponseCode};
    use hickory_proto::rr::{Name, RecordType};

    use super::*;
    use crate::network::services::tests::snapshot;
    use crate::network::testing::in_namespaces;
    use crate::network::wan::Wan;
    use crate::network::{ClusterNetwork, Layout, plan_addresses, services};

    const CLUSTER: &str = "
kind: Service
metadata: {namespace: kube-system, name: kube-dns}
spec: {clusterIP: 10.43.0.10, ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53}]}
---
kind: EndpointSlice
metadata: {namespace: kube-system, name: kube-dns, labels: {kubernetes.io/service-name: kube-dns}}
addressType: IPv4
ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53}]
endpoints: [{addresses: [10.42.0.1]}]
";

    fn question() -> Vec<u8> {
        let mut query = Message::new(7, MessageType::Query, OpCode::Query);
        let name = Name::from_ascii("kube-dns.kube-system.svc.cluster.local.").expect("a name");
        query.add_query(Query::query(name, RecordType::A));
        query.to_vec().expect("a query is short")
    }

    fn check(answer: &[u8]) {
        let answer = Message::from_vec(answer).expect("a DNS message");
        assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
        let data: Vec<_> = answer
            .answers
            .iter()
            .map(|record| record.data.to_string())
            .collect();
        assert_eq!(data, ["10.43.0.10"]);
    }

    /// Asks until the Service is programmed: before that it is refused.
    async fn ask_udp(pod: &NetNs, server: SocketAddr) -> io::Result<Vec<u8>> {
        let socket = pod.bind_udp(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))).await?;
        socket.connect(server).await?;
        socket.send(&question()).await?;
        let mut answer = vec![0; 512];
        let length = socket.recv(&mut answer).await?;
        answer.truncate(length);
        Ok(answer)
    }

    async fn ask_tcp(pod: &NetNs, server: SocketAddr) -> io::Result<Vec<u8>> {
        let mut stream = pod.connect(server).await?;
        let question = question();
        let length = u16::try_from(question.len())
            .expect("a query is short")
            .to_be_bytes();
        stream.write_all(&[&length, question.as_slice()].concat()).await?;
        let length = stream.read_u16().await?;
        let mut answer = vec![0; usize::from(length)];
        stream.read_exact(&mut answer).await?;
        Ok(answer)
    }

    async fn from_a_pod() {
        let wan = Wan::new();
        let addresses = plan_addresses(&["west".into()], Layout::Apart)
            .expect("one fits")
            .remove(0);
        let server = SocketAddr::from((addresses.dns, 53));
        let network = ClusterNetwork::create(addresses, &wan).await.expect("a network");
        let (_sender, snapshots) = watch::channel(Arc::new(snapshot(CLUSTER)));
        let stop = CancellationToken::new();
        tokio::spawn(services::run(
            snapshots.clone(),
            Arc::clone(&network),
            stop.clone(),
        ));
        let at = SocketAddr::from((network.gateway(), 53));
        let bound = Server::bind(network.node(), at)
            .await
            .expect("port 53 of a namespace of our own");
        tokio::spawn(bound.run(snapshots, "cluster.local".into(), BTreeMap::new(), stop.clone()));
        let pod = network.add_pod("pod").await.expect("a pod").netns;
        let answer = timeout(Duration::from_secs(20), async {
            loop {
                match timeout(Duration::from_millis(200), ask_udp(&pod, server)).await {
                    Ok(Ok(answer)) => return answer,
                    _ => tokio::task::yield_now().await,
                }
            }
        });
        check(&answer.await.expect("an answer over UDP"));
        let answer = timeout(Duration::from_secs(5), ask_tcp(&pod, server)).await;
        check(&answer.expect("in time").expect("an answer over TCP"));
        stop.cancel();
    }

    #[test]
    fn pods_ask_through_the_dns_service() {
        in_namespaces("dns::tests::pods_ask_through_the_dns_service", from_a_pod());
    }
}
