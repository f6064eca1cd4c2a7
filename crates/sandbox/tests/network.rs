//! Packets in the networks of clusters: who reaches whom, by which address, under which name.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use hawser_sandbox::dns::Server;
use hawser_sandbox::network::snapshot::Snapshot;
use hawser_sandbox::network::wan::{Condition, Wan};
use hawser_sandbox::network::{ClusterNetwork, Layout, NetNs, NodePorts, plan_addresses, services};
use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

fn snapshot(objects: &str) -> Snapshot {
    let (mut services, mut slices) = (Vec::new(), Vec::new());
    for document in objects.split("---\n").filter(|text| !text.trim().is_empty()) {
        let value: serde_json::Value = serde_saphyr::from_str(document).expect("a test's own YAML");
        match value["kind"].as_str() {
            Some("Service") => {
                services.push(Arc::new(
                    serde_json::from_value(value).expect("a test's own Service"),
                ));
            }
            _ => slices.push(Arc::new(
                serde_json::from_value(value).expect("a test's own EndpointSlice"),
            )),
        }
    }
    Snapshot::new(services, slices)
}

async fn serve(namespace: &NetNs, at: &str, answer: &'static str) {
    let listener = namespace
        .listen(at.parse().expect("an address"))
        .await
        .expect("listening");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
}

async fn ask(namespace: &NetNs, to: &str) -> Result<String, io::ErrorKind> {
    let to = to.parse().expect("an address");
    let connection = timeout(Duration::from_millis(700), namespace.connect(to)).await;
    let mut stream = connection
        .map_err(|_| io::ErrorKind::TimedOut)?
        .map_err(|error| error.kind())?;
    let mut answer = String::new();
    stream
        .read_to_string(&mut answer)
        .await
        .map_err(|error| error.kind())?;
    Ok(answer)
}

fn web_service(address: &str, to: Ipv4Addr) -> Arc<Snapshot> {
    Arc::new(snapshot(&format!(
        "
kind: Service
metadata: {{namespace: default, name: web}}
spec: {{clusterIP: 10.43.0.7, ports: [{{port: 80, nodePort: 30080}}]}}
status: {{loadBalancer: {{ingress: [{{ip: {address}}}]}}}}
---
kind: EndpointSlice
metadata: {{namespace: default, name: web-x, labels: {{kubernetes.io/service-name: web}}}}
addressType: IPv4
ports: [{{name: '', port: 8080}}]
endpoints:
- {{addresses: [{to}]}}
"
    )))
}

/// West's and east's.
async fn networks(wan: &Wan, layout: Layout, node_ports: NodePorts) -> Vec<Arc<ClusterNetwork>> {
    let plan = plan_addresses(&["west".into(), "east".into()], layout, node_ports).expect("two fit");
    let mut clusters = Vec::new();
    for addresses in plan {
        clusters.push(ClusterNetwork::create(addresses, wan).await.expect("a network"));
    }
    clusters
}

async fn two_clusters() {
    let wan = Wan::new();
    let clusters = networks(&wan, Layout::Apart, NodePorts::Inside).await;
    let (west, east) = (&clusters[0], &clusters[1]);
    let server = west.add_pod("server").await.expect("a pod");
    let client = west.add_pod("client").await.expect("a pod");
    let again = west.add_pod("client").await.expect("the same pod");
    assert_eq!(client.ip, again.ip);
    serve(&server.netns, "0.0.0.0:8080", "west").await;
    assert_eq!(
        ask(&client.netns, "10.42.0.2:8080").await.as_deref(),
        Ok("west"),
        "pod to pod"
    );
    assert_eq!(
        ask(west.node(), "10.42.0.2:8080").await.as_deref(),
        Ok("west"),
        "node to pod"
    );
    assert_eq!(
        ask(&client.netns, "10.43.0.7:80").await,
        Err(io::ErrorKind::ConnectionRefused)
    );
    assert_eq!(
        ask(west.node(), "10.43.0.7:80").await,
        Err(io::ErrorKind::ConnectionRefused)
    );

    let (sender, receiver) = watch::channel(web_service("203.0.113.16", server.ip));
    let run = services::run(receiver, Arc::clone(west), Default::default());
    let run = tokio::spawn(run);
    while ask(&client.netns, "10.43.0.7:80").await.is_err() {
        tokio::task::yield_now().await;
    }
    assert_eq!(
        ask(&client.netns, "10.43.0.7:80").await.as_deref(),
        Ok("west"),
        "cluster address"
    );
    assert_eq!(
        ask(&server.netns, "10.43.0.7:80").await.as_deref(),
        Ok("west"),
        "itself"
    );
    assert_eq!(
        ask(west.node(), "10.43.0.7:80").await.as_deref(),
        Ok("west"),
        "from the node"
    );
    assert_eq!(
        ask(&client.netns, "203.0.113.16:80").await.as_deref(),
        Ok("west"),
        "own load balancer"
    );
    assert_eq!(
        ask(west.node(), "203.0.113.16:80").await.as_deref(),
        Ok("west"),
        "from the node"
    );

    for (from, who) in [
        (&client.netns, "a pod"),
        (&server.netns, "itself"),
        (west.node(), "the node"),
    ] {
        let answer = ask(from, "203.0.113.1:30080").await;
        assert_eq!(answer.as_deref(), Ok("west"), "node port from {who}");
    }
    assert_eq!(
        ask(&client.netns, "203.0.113.1:30081").await,
        Err(io::ErrorKind::ConnectionRefused),
        "nobody's node port"
    );

    let stranger = east.add_pod("stranger").await.expect("a pod");
    assert_eq!(
        ask(&stranger.netns, "203.0.113.1:30080").await,
        Err(io::ErrorKind::TimedOut),
        "node ports stay inside"
    );
    assert_eq!(stranger.ip, server.ip, "addresses overlap on purpose");
    assert_eq!(
        ask(&stranger.netns, "203.0.113.16:80").await.as_deref(),
        Ok("west"),
        "between clusters"
    );
    assert_eq!(
        ask(&stranger.netns, "203.0.113.17:80").await,
        Err(io::ErrorKind::ConnectionRefused)
    );
    serve(west.node(), "203.0.113.1:6443", "api").await;
    serve(west.node(), "203.0.113.1:22", "ssh").await;
    assert_eq!(
        ask(&stranger.netns, "203.0.113.1:6443").await.as_deref(),
        Ok("api")
    );
    assert_eq!(
        ask(&stranger.netns, "203.0.113.1:22").await,
        Err(io::ErrorKind::TimedOut)
    );
    assert_eq!(
        ask(&stranger.netns, "10.42.0.3:8080").await,
        Err(io::ErrorKind::TimedOut)
    );
    assert_eq!(
        ask(&stranger.netns, "192.0.2.1:80").await,
        Err(io::ErrorKind::NetworkUnreachable)
    );
    let here = NetNs::current().expect("our own namespace");
    assert_eq!(
        ask(&here, "203.0.113.16:80").await,
        Err(io::ErrorKind::NetworkUnreachable)
    );

    wan.set("west", "east", |condition| condition.cut = true)
        .expect("both are there");
    assert_eq!(
        ask(&stranger.netns, "203.0.113.16:80").await,
        Err(io::ErrorKind::TimedOut)
    );
    wan.set("east", "west", |condition| {
        *condition = Condition {
            delay: Duration::from_millis(60),
            ..Default::default()
        };
    })
    .expect("both are there");
    let started = std::time::Instant::now();
    assert_eq!(
        ask(&stranger.netns, "203.0.113.16:80").await.as_deref(),
        Ok("west"),
        "healed but slow"
    );
    assert!(
        started.elapsed() >= Duration::from_millis(120),
        "a round trip is two delays"
    );

    west.remove_pod("server").await;
    assert_eq!(
        ask(&client.netns, "10.43.0.7:80").await,
        Err(io::ErrorKind::TimedOut)
    );
    let gone = timeout(
        Duration::from_secs(10),
        client
            .netns
            .connect("10.42.0.2:8080".parse().expect("an address")),
    );
    let gone = gone
        .await
        .expect("the node says that the pod is gone")
        .expect_err("it is gone")
        .kind();
    assert_eq!(gone, io::ErrorKind::HostUnreachable);
    sender.send_replace(Arc::default());
    while ask(&client.netns, "10.43.0.7:80").await != Err(io::ErrorKind::ConnectionRefused) {
        tokio::task::yield_now().await;
    }
    run.abort();
}

async fn two_flat_clusters() {
    let wan = Wan::new();
    let clusters = networks(&wan, Layout::Flat, NodePorts::Inside).await;
    let (west, east) = (&clusters[0], &clusters[1]);
    let server = west.add_pod("server").await.expect("a pod");
    let client = east.add_pod("client").await.expect("a pod");
    let at = SocketAddr::from((server.ip, 8080));
    let listener = server.netns.listen(at).await.expect("listening");
    let (connected, accepted) = tokio::join!(client.netns.connect(at), listener.accept());
    connected.expect("pods reach pods of other clusters");
    let (_, seen) = accepted.expect("a connection");
    assert_eq!(seen.ip(), client.ip, "and see who they are");

    serve(&server.netns, "0.0.0.0:8081", "west").await;
    let of_west = format!("{}:8081", server.ip);
    assert_eq!(ask(&client.netns, &of_west).await.as_deref(), Ok("west"));
    assert_eq!(
        ask(&client.netns, "10.43.0.7:80").await,
        Err(io::ErrorKind::ConnectionRefused),
        "services stay each cluster's own"
    );
    assert_eq!(
        ask(east.node(), &of_west).await,
        Err(io::ErrorKind::TimedOut),
        "nodes are no pods"
    );
    wan.set("west", "east", |condition| condition.cut = true)
        .expect("both are there");
    assert_eq!(ask(&client.netns, &of_west).await, Err(io::ErrorKind::TimedOut));
}

async fn two_clusters_with_external_nodes() {
    let wan = Wan::new();
    let clusters = networks(&wan, Layout::Apart, NodePorts::Everywhere).await;
    let (west, east) = (&clusters[0], &clusters[1]);
    let server = west.add_pod("server").await.expect("a pod");
    let stranger = east.add_pod("stranger").await.expect("a pod");
    serve(&server.netns, "0.0.0.0:8080", "west").await;
    for (at, answer) in [("203.0.113.1:6443", "api"), ("203.0.113.2:22", "ssh")] {
        serve(west.node(), at, answer).await;
    }
    let (sender, receiver) = watch::channel(web_service("203.0.113.16", server.ip));
    let run = tokio::spawn(services::run(receiver, Arc::clone(west), Default::default()));
    while ask(&stranger.netns, "203.0.113.2:30080").await.is_err() {
        tokio::task::yield_now().await;
    }
    for (from, who) in [
        (&stranger.netns, "a pod of another cluster"),
        (east.node(), "its node"),
        (&server.netns, "itself"),
        (west.node(), "its own node"),
    ] {
        let answer = ask(from, "203.0.113.2:30080").await;
        assert_eq!(answer.as_deref(), Ok("west"), "external node port from {who}");
    }
    for (at, what) in [
        ("203.0.113.2:22", "what else listens on the node"),
        ("203.0.113.2:80", "the service's own port"),
        ("203.0.113.1:30080", "the node's own address"),
    ] {
        let answer = ask(&stranger.netns, at).await;
        assert_eq!(answer, Err(io::ErrorKind::TimedOut), "{what} at {at}");
    }
    assert_eq!(
        ask(&stranger.netns, "203.0.113.2:30081").await,
        Err(io::ErrorKind::ConnectionRefused),
        "nobody's node port"
    );
    assert_eq!(
        ask(&stranger.netns, "203.0.113.1:6443").await.as_deref(),
        Ok("api")
    );
    drop(sender);
    run.abort();
}

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
    let addresses = plan_addresses(&["west".into()], Layout::Apart, NodePorts::Inside)
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

fn run(body: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(body);
}

fn packets_go_where_services_say_and_nowhere_else() {
    run(two_clusters());
}

fn node_ports_and_nothing_else_answer_at_a_nodes_external_address() {
    run(two_clusters_with_external_nodes());
}

fn pods_of_a_flat_sandbox_reach_each_other_by_address() {
    run(two_flat_clusters());
}

fn pods_ask_through_the_dns_service() {
    run(from_a_pod());
}

fn main() -> ExitCode {
    hawser_testing::in_namespaces(&[
        (
            "pods_of_a_flat_sandbox_reach_each_other_by_address",
            pods_of_a_flat_sandbox_reach_each_other_by_address,
        ),
        (
            "node_ports_and_nothing_else_answer_at_a_nodes_external_address",
            node_ports_and_nothing_else_answer_at_a_nodes_external_address,
        ),
        (
            "packets_go_where_services_say_and_nowhere_else",
            packets_go_where_services_say_and_nowhere_else,
        ),
        (
            "pods_ask_through_the_dns_service",
            pods_ask_through_the_dns_service,
        ),
    ])
}
