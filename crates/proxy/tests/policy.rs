//! Policy that changes while connections are open: the next request is judged by it, and what carries no requests ends.

mod support;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use support::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

const WEB: &str = "10.0.0.1:80";
const WEB_PATH: &str = "web.ns.svc.cluster.local:80";
/// Where no client is.
const ELSEWHERE: &str = "198.51.100.0/24";

/// A client, a pod, and what the pod serves.
struct Mesh {
    control: ControlPlane,
    server: Pod,
    client: Pod,
}

impl Mesh {
    async fn before(apps: &[(&str, &str, std::net::SocketAddr)]) -> Self {
        let control = ControlPlane::start().await;
        let server = Pod::start(&control, "web", "127.0.0.2", &[]);
        let client = Pod::start(&control, "client", "127.0.0.3", &[]);
        control.change(|world| {
            for (addr, path, app) in apps {
                let endpoint = meshed(*app, &server.identity, server.inbound_port());
                service(world, addr, path, vec![endpoint]);
            }
        });
        Self {
            control,
            server,
            client,
        }
    }
}

fn rpc() -> Request<Full<Bytes>> {
    Request::post("http://web.test/svc/Method")
        .header("content-type", "application/grpc")
        .body(Full::default())
        .unwrap()
}

fn told<'a>(answer: &'a Response<String>, header: &str) -> &'a str {
    answer
        .headers()
        .get(header)
        .unwrap_or_else(|| panic!("{header} in {answer:?}"))
        .to_str()
        .unwrap()
}

/// Ends within a second, says the contract; the rest is for a busy machine.
async fn ends(socket: &mut TcpStream) {
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(std::time::Duration::from_secs(3), socket.read_to_end(&mut rest)).await;
    assert!(ended.is_ok(), "still open");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_request_on_an_open_connection_is_judged_by_the_new_policy() {
    let app = app("127.0.0.2", "web").await;
    let mesh = Mesh::before(&[(WEB, WEB_PATH, app)]).await;
    let mut one = http1(mesh.client.connect(WEB).await).await;
    let mut two = http2(mesh.client.connect(WEB).await).await;
    assert_eq!(send(&mut one, get("/")).await.status(), 200);
    let mut call = async || text(two.send_request(rpc()).await.unwrap()).await;
    assert_eq!(call().await.status(), 200);

    let strangers = "somebody.ns.serviceaccount.identity.linkerd.cluster.local";
    for (narrow, reason) in [
        (
            anyone_from(ELSEWHERE),
            "client address is not in an allowed network",
        ),
        (only(strangers), "client identity is not allowed"),
        (nobody(), "client address is not in an allowed network"),
    ] {
        let set = |server| {
            mesh.control
                .change(|world| _ = world.servers.insert(app.port(), server));
        };
        set(narrow);
        eventually("the request is denied", async || {
            send(&mut one, get("/")).await.status() == 403
        })
        .await;
        let denied = send(&mut one, get("/")).await;
        assert!(told(&denied, "l5d-proxy-error").ends_with("unauthorized request on route"));
        let denied = call().await;
        assert_eq!(
            (denied.status().as_u16(), told(&denied, "grpc-status")),
            (200, "7"),
            "{denied:?}"
        );
        assert!(told(&denied, "grpc-message").ends_with("unauthorized request on route"));
        let metrics = mesh.server.admin("/metrics").await.into_body();
        let counted = metrics.lines().any(|line| {
            line.starts_with("inbound_http_authz_deny_total{direction=\"inbound\"")
                && line.contains(&format!("client_id=\"{}\"", mesh.client.identity))
                && line.contains(&format!("reason=\"{reason}\""))
        });
        assert!(counted, "{reason} in {metrics}");

        set(only(&mesh.client.identity));
        eventually("the same connection is let in again", async || {
            send(&mut one, get("/")).await.status() == 200
        })
        .await;
        assert_eq!(call().await.status(), 200);
    }
    let opened = mesh.client.admin("/metrics").await.into_body();
    let opened: Vec<&str> = opened
        .lines()
        .filter(|line| line.starts_with("tcp_open_total{") && line.contains("peer=\"dst\""))
        .collect();
    assert!(opened.iter().all(|line| line.ends_with(" 1")), "{opened:?}");
}

/// Upgrades every connection, and then echoes.
async fn upgrading() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.2:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(socket.read_u8().await.unwrap());
                }
                let answer =
                    b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
                socket.write_all(answer).await.unwrap();
                let (mut read, mut write) = socket.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    addr
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_without_requests_end_when_they_are_no_longer_allowed() {
    let (echo, upgrade) = (greeter("127.0.0.2").await, upgrading().await);
    let mesh = Mesh::before(&[
        ("10.0.0.2:80", "ws.ns.svc.cluster.local:80", upgrade),
        ("10.0.0.9:25", "smtp.ns.svc.cluster.local:25", echo),
    ])
    .await;
    mesh.control
        .change(|world| world.profiles.get_mut("10.0.0.9:25").unwrap().opaque_protocol = true);
    let mut opaque = mesh.client.connect("10.0.0.9:25").await;
    within(opaque.read_exact(&mut [0; 11])).await.unwrap();
    let mut upgraded = mesh.client.connect("10.0.0.2:80").await;
    upgraded
        .write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n")
        .await
        .unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(within(upgraded.read_u8()).await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101"));

    // What changes for others changes nothing here.
    mesh.control.change(|world| {
        for port in [echo.port(), upgrade.port()] {
            world.servers.insert(port, only(&mesh.client.identity));
        }
    });
    for socket in [&mut opaque, &mut upgraded] {
        socket.write_all(b"x").await.unwrap();
        assert_eq!(within(socket.read_u8()).await.unwrap(), b'x');
    }
    mesh.control.change(|world| {
        for port in [echo.port(), upgrade.port()] {
            world.servers.insert(port, anyone_from(ELSEWHERE));
        }
    });
    ends(&mut opaque).await;
    ends(&mut upgraded).await;
    let metrics = mesh.server.admin("/metrics").await.into_body();
    let terminated: Vec<&str> = metrics
        .lines()
        .filter(|line| line.starts_with("inbound_tcp_authz_terminate_total{"))
        .collect();
    assert_eq!(terminated.len(), 2, "{terminated:?}");

    // And nobody new is let in, which is counted with its reason.
    let mut refused = mesh.client.connect("10.0.0.9:25").await;
    ends(&mut refused).await;
    let metrics = mesh.server.admin("/metrics").await.into_body();
    let denied = metrics.lines().any(|line| {
        line.starts_with("inbound_tcp_authz_deny_total{")
            && line.contains("reason=\"client address is not in an allowed network\"")
    });
    assert!(denied, "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_closes_what_is_no_longer_exported_and_those_who_are_no_longer_welcome() {
    let echo = greeter("127.0.0.2").await;
    let mesh = Mesh::before(&[("10.1.0.1:25", "smtp.ns.svc.cluster.local:25", echo)]).await;
    let suffixes = [("INBOUND_GATEWAY_SUFFIXES", "svc.cluster.local.")];
    let gateway = Pod::start(&mesh.control, "gateway", "127.0.0.4", &suffixes);
    let target = "smtp.ns.svc.cluster.local:25";
    mesh.control.change(|world| {
        let far = through_gateway(gateway.proxy.inbound[0], &gateway.identity, target);
        service(
            world,
            "10.0.0.9:25",
            "smtp-east.ns.svc.cluster.local:25",
            vec![far],
        );
        for profile in world.profiles.values_mut() {
            profile.opaque_protocol = true;
        }
    });
    let open = async || {
        let mut socket = mesh.client.connect("10.0.0.9:25").await;
        within(socket.read_exact(&mut [0; 11])).await.map(|_| socket)
    };
    let refusals = async |reason: &str| {
        let metrics = gateway.admin("/metrics").await.into_body();
        let wanted = format!(
            "inbound_gateway_refused_total{{direction=\"inbound\",target_name=\"{target}\",reason=\"{reason}\",\
             tls=\"true\",client_id=\"{}\"}} ",
            mesh.client.identity
        );
        let found = metrics.lines().find_map(|line| line.strip_prefix(&wanted));
        found.map_or(0, |n| n.parse::<u64>().unwrap())
    };

    let mut welcome = open().await.unwrap();
    let port = gateway.inbound_port();
    mesh.control
        .change(|world| _ = world.servers.insert(port, anyone_from(ELSEWHERE)));
    ends(&mut welcome).await;
    assert!(open().await.is_err());
    mesh.control
        .change(|world| _ = world.servers.insert(port, anyone()));
    eventually("it is welcome again", async || open().await.is_ok()).await;

    let mut exported = open().await.unwrap();
    mesh.control.change(|world| _ = world.profiles.remove(target));
    ends(&mut exported).await;
    let not_exported = "service is not exported by this gateway";
    eventually("its end is counted", async || refusals(not_exported).await == 1).await;
    assert!(open().await.is_err());
    assert_eq!(refusals(not_exported).await, 2);
}
