//! Two proxies, a gateway and an application on loopback, under a static control plane.

mod support;

use std::collections::BTreeMap;
use std::pin::pin;

use support::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const WEB: &str = "10.0.0.1:80";
const WEB_PATH: &str = "web.ns.svc.cluster.local:80";

#[tokio::test(flavor = "multi_thread")]
async fn http1_crosses_the_mesh_as_it_was_sent() {
    let control = ControlPlane::start().await;
    let app = app("127.0.0.2", "web").await;
    let server = Pod::start(&control, "web", "127.0.0.2", &[]);
    let client = Pod::start(&control, "client", "127.0.0.3", &[]);
    control.change(|world| {
        service(
            world,
            WEB,
            WEB_PATH,
            vec![meshed(app, &server.identity, server.inbound_port())],
        )
    });
    let response = client.get(WEB, "/path?query").await;
    assert_eq!(response.status(), 200);
    let seen = response.body();
    assert!(seen.starts_with("web HTTP/1.1 GET /path?query\n"), "{seen}");
    assert!(seen.contains("host: web.test\n"), "{seen}");
    assert!(
        seen.contains(&format!("l5d-client-id: {}\n", client.identity)),
        "{seen}"
    );
    assert!(!seen.contains("l5d-orig-proto"), "{seen}");
    assert_eq!(response.version(), http::Version::HTTP_11);
    assert!(!response.headers().contains_key("l5d-orig-proto"));
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_and_grpc_trailers_cross_the_mesh() {
    let control = ControlPlane::start().await;
    let app = app("127.0.0.2", "web").await;
    let server = Pod::start(&control, "web", "127.0.0.2", &[]);
    let client = Pod::start(&control, "client", "127.0.0.3", &[]);
    control.change(|world| {
        service(
            world,
            WEB,
            WEB_PATH,
            vec![meshed(app, &server.identity, server.inbound_port())],
        )
    });
    let mut h2 = http2(client.connect(WEB).await).await;
    let request = http::Request::post("http://web.test/svc/Method")
        .body("body".into())
        .unwrap();
    let response = text(h2.send_request(request).await.unwrap()).await;
    assert!(
        response
            .body()
            .starts_with("web HTTP/2.0 POST http://web.test/svc/Method\n"),
        "{}",
        response.body()
    );
    assert!(response.body().ends_with("\n\nbody"), "{}", response.body());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_speaks_first_is_reached_through_an_opaque_port() {
    let control = ControlPlane::start().await;
    let app = greeter("127.0.0.2").await;
    let server = Pod::start(&control, "smtp", "127.0.0.2", &[]);
    let client = Pod::start(&control, "client", "127.0.0.3", &[]);
    control.change(|world| {
        service(
            world,
            WEB,
            WEB_PATH,
            vec![meshed(app, &server.identity, server.inbound_port())],
        );
        world.profiles.get_mut(WEB).unwrap().opaque_protocol = true;
    });
    let mut socket = client.connect(WEB).await;
    let mut greeting = [0; 11];
    socket.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"220 hello\r\n");
    socket.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    socket.shutdown().await.unwrap();
    let mut echoed = String::new();
    socket.read_to_string(&mut echoed).await.unwrap();
    assert_eq!(echoed, "GET / HTTP/1.1\r\n\r\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_knows_is_forwarded_to_where_it_was_going() {
    let control = ControlPlane::start().await;
    let app = app("127.0.0.2", "stranger").await;
    let client = Pod::start(&control, "client", "127.0.0.3", &[]);
    let response = client.get(&app.to_string(), "/").await;
    assert!(
        response.body().starts_with("stranger HTTP/1.1 GET /\n"),
        "{}",
        response.body()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_forwards_by_name_and_only_what_is_exported() {
    let control = ControlPlane::start().await;
    let app = app("127.0.0.2", "web").await;
    let server = Pod::start(&control, "web", "127.0.0.2", &[]);
    let suffixes = [("INBOUND_GATEWAY_SUFFIXES", "svc.cluster.local.")];
    let gateway = Pod::start(&control, "gateway", "127.0.0.4", &suffixes);
    let client = Pod::start(&control, "client", "127.0.0.3", &[]);
    let gateway_addr = gateway.proxy.inbound[0];
    control.change(|world| {
        service(
            world,
            "10.1.0.1:80",
            WEB_PATH,
            vec![meshed(app, &server.identity, server.inbound_port())],
        );
        for (addr, name, target) in [
            (WEB, "web-east.ns.svc.cluster.local:80", WEB_PATH),
            (
                "10.0.0.2:80",
                "secret-east.ns.svc.cluster.local:80",
                "secret.ns.svc.cluster.local:80",
            ),
            (
                "10.0.0.3:80",
                "evil-east.ns.svc.cluster.local:80",
                "evil.example:80",
            ),
        ] {
            service(
                world,
                addr,
                name,
                vec![through_gateway(gateway_addr, &gateway.identity, target)],
            );
        }
    });
    let response = client.get(WEB, "/through").await;
    assert_eq!(response.status(), 200, "{response:?}");
    let seen = response.body();
    assert!(seen.starts_with("web HTTP/1.1 GET /through\n"), "{seen}");
    assert!(seen.contains("host: web.ns.svc.cluster.local\n"), "{seen}");
    let forwarded = format!(
        "forwarded: by={};for={};host=web.ns.svc.cluster.local;proto=https\n",
        gateway.identity, client.identity
    );
    assert!(seen.contains(&forwarded), "{seen}");
    assert!(
        seen.contains(&format!("l5d-client-id: {}\n", gateway.identity)),
        "{seen}"
    );

    // Whoever asks how far a request gets is answered by the proxy at which the question ends.
    let mut asking = http1(client.connect(WEB).await).await;
    for (forwards, answer) in [
        ("0", "outbound".to_owned()),
        ("1", format!("gateway {}", gateway.identity)),
        ("2", format!("inbound {}", server.identity)),
    ] {
        let mut question = get("/asked");
        *question.method_mut() = http::Method::OPTIONS;
        question
            .headers_mut()
            .insert("max-forwards", forwards.parse().unwrap());
        let response = send(&mut asking, question).await;
        assert_eq!(response.status(), 200, "{response:?}");
        assert_eq!(
            response.headers()["l5d-answered-by"],
            answer.as_str(),
            "{response:?}"
        );
        assert_eq!(response.body(), "", "the application heard nothing");
    }

    let refused = client.get("10.0.0.2:80", "/").await;
    assert_eq!(refused.status(), 403);
    let told = refused.headers()["l5d-proxy-error"].to_str().unwrap();
    assert!(told.starts_with("client 127.0.0.3:"), "{told}");
    assert!(
        told.ends_with(&format!(
            ": server: {gateway_addr}: service is not exported by this gateway"
        )),
        "{told}"
    );
    assert_eq!(client.get("10.0.0.3:80", "/").await.status(), 404);

    // The gateway itself, and a pod of its own cluster that isn't a gateway, refuse plain text.
    let mut stranger = tokio::net::TcpStream::connect(gateway_addr).await.unwrap();
    stranger
        .write_all(b"GET / HTTP/1.1\r\nhost: web.ns.svc.cluster.local\r\n\r\n")
        .await
        .unwrap();
    let mut nothing = Vec::new();
    let _ = stranger.read_to_end(&mut nothing).await;
    assert!(!nothing.starts_with(b"HTTP"), "{nothing:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn opaque_connections_pass_the_gateway_too() {
    let control = ControlPlane::start().await;
    let app = greeter("127.0.0.2").await;
    let server = Pod::start(&control, "smtp", "127.0.0.2", &[]);
    let gateway = Pod::start(
        &control,
        "gateway",
        "127.0.0.4",
        &[("INBOUND_GATEWAY_SUFFIXES", "svc.cluster.local.")],
    );
    let client = Pod::start(&control, "client", "127.0.0.3", &[]);
    control.change(|world| {
        service(
            world,
            "10.1.0.1:80",
            WEB_PATH,
            vec![meshed(app, &server.identity, server.inbound_port())],
        );
        let far = through_gateway(gateway.proxy.inbound[0], &gateway.identity, WEB_PATH);
        service(world, WEB, "smtp-east.ns.svc.cluster.local:80", vec![far]);
        for profile in world.profiles.values_mut() {
            profile.opaque_protocol = true;
        }
    });
    let mut socket = client.connect(WEB).await;
    let mut greeting = [0; 11];
    socket.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"220 hello\r\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn policy_is_enforced_for_each_request_and_for_open_connections() {
    let control = ControlPlane::start().await;
    let app = app("127.0.0.2", "web").await;
    let echo = greeter("127.0.0.2").await;
    let server = Pod::start(&control, "web", "127.0.0.2", &[]);
    let client = Pod::start(&control, "client", "127.0.0.3", &[]);
    control.change(|world| {
        let port = server.inbound_port();
        service(world, WEB, WEB_PATH, vec![meshed(app, &server.identity, port)]);
        service(
            world,
            "10.0.0.9:25",
            "smtp.ns.svc.cluster.local:25",
            vec![meshed(echo, &server.identity, port)],
        );
        world.profiles.get_mut("10.0.0.9:25").unwrap().opaque_protocol = true;
        world.servers.insert(app.port(), only(&client.identity));
        world.servers.insert(echo.port(), only(&client.identity));
    });
    let mut http = http1(client.connect(WEB).await).await;
    eventually("the client is let in", async || {
        client.get(WEB, "/").await.status() == 200
    })
    .await;
    assert_eq!(send(&mut http, get("/")).await.status(), 200);
    let mut opaque = client.connect("10.0.0.9:25").await;
    opaque.read_exact(&mut [0; 11]).await.unwrap();

    control.change(|world| {
        world.servers.insert(app.port(), nobody());
        world.servers.insert(echo.port(), nobody());
    });
    // The open connection ends without the client doing anything.
    let mut rest = Vec::new();
    let _ = opaque.read_to_end(&mut rest).await;
    eventually("requests on an open connection are denied", async || {
        let mut http = http1(client.connect(WEB).await).await;
        send(&mut http, get("/")).await.status() == 403
    })
    .await;
    let denied = send(&mut http, get("/")).await;
    assert_eq!(denied.status(), 403);
    let told = denied.headers()["l5d-proxy-error"].to_str().unwrap();
    assert!(told.ends_with(": unauthorized request on route"), "{told}");
    let metrics = server.admin("/metrics").await.into_body();
    assert!(metrics.contains("inbound_http_authz_deny_total{"), "{metrics}");
    assert!(
        metrics.contains("inbound_tcp_authz_terminate_total{"),
        "{metrics}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_cannot_claim_an_identity() {
    let control = ControlPlane::start().await;
    let app = app("127.0.0.2", "web").await;
    let server = Pod::start(&control, "web", "127.0.0.2", &[]);
    let mut client = http1(server.connect_inbound(app).await).await;
    let mut request = get("/");
    request
        .headers_mut()
        .insert("l5d-client-id", "somebody.else".parse().unwrap());
    let response = send(&mut client, request).await;
    assert_eq!(response.status(), 200);
    assert!(!response.body().contains("l5d-client-id"), "{}", response.body());
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_move_live_traffic_and_dead_backends_are_skipped() {
    let control = ControlPlane::start().await;
    let (a, b) = (app("127.0.0.2", "a").await, app("127.0.0.2", "b").await);
    let client = Pod::start(&control, "client", "127.0.0.3", &[]);
    let dead = "127.0.0.2:1".parse().unwrap();
    let split = |a: u32, b: u32| {
        let one = |path: &str, weight| linkerd2_proxy_api::destination::WeightedDst {
            authority: path.into(),
            weight,
            backend_ref: None,
        };
        vec![
            one("a.ns.svc.cluster.local:80", a),
            one("b.ns.svc.cluster.local:80", b),
        ]
    };
    control.change(|world| {
        service(
            world,
            "10.0.0.11:80",
            "a.ns.svc.cluster.local:80",
            vec![unmeshed(a)],
        );
        service(
            world,
            "10.0.0.12:80",
            "b.ns.svc.cluster.local:80",
            vec![unmeshed(b)],
        );
        service(world, WEB, WEB_PATH, vec![]);
        world.profiles.get_mut(WEB).unwrap().dst_overrides = split(10, 0);
    });
    let mut http = http1(client.connect(WEB).await).await;
    let mut who = async || send(&mut http, get("/")).await.into_body().chars().next();
    for _ in 0..5 {
        assert_eq!(who().await, Some('a'));
    }
    control.change(|world| world.profiles.get_mut(WEB).unwrap().dst_overrides = split(0, 10));
    let moved = async { while who().await != Some('b') {} };
    tokio::time::timeout(std::time::Duration::from_secs(10), moved)
        .await
        .unwrap();
    for _ in 0..5 {
        assert_eq!(who().await, Some('b'));
    }
    // Who waits for a backend that is gone follows the weights, long before it would fail.
    control.change(|world| {
        world.endpoints.insert("b.ns.svc.cluster.local:80".into(), vec![]);
    });
    let followed = loop {
        let mut asking = pin!(who());
        let waits = tokio::time::timeout(std::time::Duration::from_millis(300), &mut asking);
        let Err(_) = waits.await else { continue };
        control.change(|world| world.profiles.get_mut(WEB).unwrap().dst_overrides = split(10, 0));
        break tokio::time::timeout(std::time::Duration::from_secs(2), asking).await;
    };
    assert_eq!(followed, Ok(Some('a')));
    control.change(|world| {
        world
            .endpoints
            .insert("b.ns.svc.cluster.local:80".into(), vec![unmeshed(b)]);
    });
    // Half of the weight is on a backend that is dead: nobody notices.
    control.change(|world| world.profiles.get_mut(WEB).unwrap().dst_overrides = split(10, 10));
    let moved = async { while who().await != Some('a') {} };
    tokio::time::timeout(std::time::Duration::from_secs(10), moved)
        .await
        .unwrap();
    control.change(|world| {
        world
            .endpoints
            .insert("b.ns.svc.cluster.local:80".into(), vec![unmeshed(dead)]);
    });
    let mut seen = BTreeMap::new();
    for _ in 0..40 {
        *seen
            .entry(client.get(WEB, "/").await.status().as_u16())
            .or_insert(0) += 1;
    }
    assert_eq!(seen, BTreeMap::from([(200, 40)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_endpoint_among_live_ones_costs_no_request() {
    let control = ControlPlane::start().await;
    let live = app("127.0.0.2", "web").await;
    let client = Pod::start(&control, "client", "127.0.0.3", &[]);
    let dead = "127.0.0.2:1".parse().unwrap();
    control.change(|world| service(world, WEB, WEB_PATH, vec![unmeshed(live), unmeshed(dead)]));
    for _ in 0..20 {
        assert_eq!(client.get(WEB, "/").await.status(), 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_listening_is_told_apart_from_nobody_known() {
    let control = ControlPlane::start().await;
    let client = Pod::hasty_client(&control);
    let dead = "127.0.0.2:1".parse().unwrap();
    control.change(|world| {
        service(world, WEB, WEB_PATH, vec![unmeshed(dead)]);
        service(world, "10.0.0.2:80", "empty.ns.svc.cluster.local:80", vec![]);
    });
    let refused = client.get(WEB, "/").await;
    assert_eq!(
        (refused.status().as_u16(), &refused.headers()["l5d-proxy-error"]),
        (502, &"client error (Connect)".parse().unwrap())
    );
    let nobody = client.get("10.0.0.2:80", "/").await;
    assert_eq!(
        (nobody.status().as_u16(), &nobody.headers()["l5d-proxy-error"]),
        (504, &"service in fail-fast".parse().unwrap())
    );
    assert_eq!(client.get("10.0.0.2:80", "/").await.status(), 503);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_could_be_smuggled_is_refused() {
    let control = ControlPlane::start().await;
    let app = app("127.0.0.2", "web").await;
    let server = Pod::start(&control, "web", "127.0.0.2", &[]);
    for head in [
        "GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
        // Seen only when the head has been passed on.
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\nmore\r\n",
    ] {
        let mut socket = server.connect_inbound(app).await;
        socket.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let _ = socket.read_to_string(&mut answer).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{head:?}: {answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgraded_connection_is_joined_byte_for_byte() {
    let control = ControlPlane::start().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.2:0").await.unwrap();
    let app = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(socket.read_u8().await.unwrap());
        }
        socket
            .write_all(
                b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
            )
            .await
            .unwrap();
        let (mut read, mut write) = socket.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    });
    let server = Pod::start(&control, "web", "127.0.0.2", &[]);
    let client = Pod::start(&control, "client", "127.0.0.3", &[]);
    control.change(|world| {
        service(
            world,
            WEB,
            WEB_PATH,
            vec![meshed(app, &server.identity, server.inbound_port())],
        )
    });
    let mut socket = client.connect(WEB).await;
    socket
        .write_all(b"GET /ws HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n")
        .await
        .unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await.unwrap());
    }
    assert!(
        head.starts_with(b"HTTP/1.1 101"),
        "{}",
        String::from_utf8_lossy(&head)
    );
    socket.write_all(b"\x81\x05hello").await.unwrap();
    let mut echoed = [0; 7];
    socket.read_exact(&mut echoed).await.unwrap();
    assert_eq!(&echoed, b"\x81\x05hello");
}

#[tokio::test(flavor = "multi_thread")]
async fn draining_finishes_what_is_open_and_the_admin_port_answers_to_the_end() {
    let control = ControlPlane::start().await;
    let app = app("127.0.0.2", "web").await;
    let server = Pod::start(&control, "web", "127.0.0.2", &[]);
    eventually("ready", async || server.admin("/ready").await.status() == 200).await;
    assert_eq!(server.admin("/live").await.body(), "live\n");
    let mut client = http1(server.connect_inbound(app).await).await;
    assert_eq!(send(&mut client, get("/")).await.status(), 200);
    server.proxy.shutdown().cancel();
    assert_eq!(server.admin("/live").await.body(), "live\n");
    tokio::task::spawn_blocking(move || server.proxy.wait())
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_tell_both_sides_of_a_request() {
    let control = ControlPlane::start().await;
    let app = app("127.0.0.2", "web").await;
    let server = Pod::start(&control, "web", "127.0.0.2", &[]);
    let client = Pod::start(&control, "client", "127.0.0.3", &[]);
    control.change(|world| {
        let mut endpoint = meshed(app, &server.identity, server.inbound_port());
        endpoint.metric_labels.insert("pod".into(), "web-\"1\"".into());
        service(world, WEB, WEB_PATH, vec![endpoint]);
    });
    assert_eq!(client.get(WEB, "/").await.status(), 200);
    let outbound = client.admin("/metrics").await.into_body();
    let expected = format!(
        "request_total{{direction=\"outbound\",authority=\"{WEB_PATH}\",target_addr=\"{app}\",target_ip=\"127.0.0.2\",\
         target_port=\"{}\",tls=\"true\",server_id=\"{}\",dst_pod=\"web-\\\"1\\\"\"}} 1",
        app.port(),
        server.identity
    );
    assert!(outbound.contains(&expected), "{expected}\n{outbound}");
    let inbound = server.admin("/metrics").await.into_body();
    for part in [
        "response_total{direction=\"inbound\"",
        "classification=\"success\"",
        "response_latency_ms_bucket{",
        "tcp_open_total{",
    ] {
        assert!(inbound.contains(part), "{part}\n{inbound}");
    }
    assert!(
        inbound.contains(&format!("client_id=\"{}\"", client.identity)),
        "{inbound}"
    );
}
