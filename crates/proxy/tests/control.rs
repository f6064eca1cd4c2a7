//! What proxies do while their control plane changes its mind, goes away or comes back.

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use linkerd2_proxy_api::{http_route, outbound};
use support::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const WEB: &str = "10.0.0.1:80";
const WEB_PATH: &str = "web.ns.svc.cluster.local:80";

/// The leaf that a proxy shows to a new connection, and a client on it.
async fn shown(control: &ControlPlane, pod: &Pod, port: u16) -> (Vec<u8>, H1Client) {
    let credentials = control.credentials("client.ns.serviceaccount.identity.linkerd.cluster.local");
    let connecting = direct(
        &credentials,
        pod.proxy.inbound[0],
        &pod.identity,
        port,
        Session::Http1,
    );
    let tls = within(connecting).await.unwrap();
    let leaf = tls.get_ref().1.peer_certificates().unwrap()[0].to_vec();
    let (client, conn) = hyper::client::conn::http1::handshake(TokioIo::new(tls))
        .await
        .unwrap();
    tokio::spawn(conn);
    (leaf, client)
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_renewed_for_new_connections_and_old_ones_go_on() {
    let control = ControlPlane::start().await;
    let app = app("127.0.0.2", "web").await;
    let refresh = [("IDENTITY_MIN_REFRESH", "50ms"), ("IDENTITY_MAX_REFRESH", "50ms")];
    let server = Pod::start(&control, "web", "127.0.0.2", &refresh);
    let (first, mut old) = shown(&control, &server, app.port()).await;
    eventually("new connections see another certificate", async || {
        shown(&control, &server, app.port()).await.0 != first
    })
    .await;
    assert_eq!(send(&mut old, get("/")).await.status(), 200);

    control.issue(|issuance| issuance.refuse = true);
    let failures = async || {
        let metrics = server.admin("/metrics").await.into_body();
        let prefix = "control_identity_cert_refresh_failures_total ";
        let line = metrics.lines().find_map(|line| line.strip_prefix(prefix));
        line.unwrap_or_else(|| panic!("{metrics}"))
            .parse::<u64>()
            .unwrap()
    };
    eventually("renewals fail and are tried again", async || {
        failures().await >= 2
    })
    .await;
    let (kept, mut client) = shown(&control, &server, app.port()).await;
    assert_eq!(send(&mut client, get("/")).await.status(), 200);
    assert_eq!(shown(&control, &server, app.port()).await.0, kept);

    control.issue(|issuance| issuance.refuse = false);
    eventually("it is renewed again", async || {
        shown(&control, &server, app.port()).await.0 != kept
    })
    .await;
    assert_eq!(send(&mut old, get("/")).await.status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn traffic_goes_on_without_a_control_plane_and_follows_it_when_it_is_back() {
    let control = ControlPlane::start().await;
    let (a, b) = (app("127.0.0.2", "a").await, app("127.0.0.2", "b").await);
    let client = Pod::start(&control, "client", "127.0.0.3", &[]);
    control.change(|world| service(world, WEB, WEB_PATH, vec![unmeshed(a)]));
    let answered = async || {
        let answer = client.get(WEB, "/").await;
        assert_eq!(answer.status(), 200, "{answer:?}");
        answer.into_body().chars().next()
    };
    assert_eq!(answered().await, Some('a'));
    control.stop();
    control.change(|world| service(world, WEB, WEB_PATH, vec![unmeshed(b)]));
    for _ in 0..50 {
        assert_eq!(answered().await, Some('a'));
    }
    control.restart().await;
    eventually("the new endpoints are used", async || {
        answered().await == Some('b')
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_share_the_load_and_are_counted_once() {
    if std::thread::available_parallelism().map_or(1, std::num::NonZero::get) < 2 {
        skipped("this machine has one core, so there is one worker");
        return;
    }
    let control = ControlPlane::start().await;
    let app = app("127.0.0.2", "web").await;
    let cores = [("CORES", "2")];
    let server = Pod::start(&control, "web", "127.0.0.2", &cores);
    let client = Pod::start(&control, "client", "127.0.0.3", &cores);
    control.change(|world| {
        let endpoint = meshed(app, &server.identity, server.inbound_port());
        service(world, WEB, WEB_PATH, vec![endpoint]);
    });
    for _ in 0..64 {
        assert_eq!(client.get(WEB, "/").await.status(), 200);
    }
    let series = async |pod: &Pod, name: &str, label: &str| {
        let metrics = pod.admin("/metrics").await.into_body();
        let found: Vec<u64> = metrics
            .lines()
            .filter(|line| line.starts_with(name) && line.contains(label))
            .filter_map(|line| line.rsplit(' ').next()?.parse().ok())
            .collect();
        assert_eq!(found.len(), 1, "{name} {label} in {metrics}");
        found[0]
    };
    let to_app = format!("target_addr=\"{app}\"");
    assert_eq!(series(&client, "request_total{", &to_app).await, 64);
    // Each worker has one HTTP/2 connection to the endpoint: the kernel gave both of them something to do. All 64 to
    // one of two has a chance of 2^-63.
    let dialled = format!(
        "{to_app},target_ip=\"127.0.0.2\",target_port=\"{}\",tls=\"true\"",
        app.port()
    );
    assert_eq!(series(&client, "tcp_open_total{", &dialled).await, 2);
    client.proxy.shutdown().cancel();
    tokio::task::spawn_blocking(move || client.proxy.wait())
        .await
        .unwrap();
}

/// The first backend of the first route of both HTTP versions.
fn each_route(
    policy: &mut outbound::OutboundPolicy,
    change: impl Fn(&mut outbound::http_route::RouteBackend),
) {
    use outbound::http_route::distribution::Kind;
    let Some(outbound::proxy_protocol::Kind::Detect(detect)) =
        policy.protocol.as_mut().unwrap().kind.as_mut()
    else {
        unreachable!("policies detect")
    };
    let (one, two) = (detect.http1.as_mut().unwrap(), detect.http2.as_mut().unwrap());
    for route in one.routes.iter_mut().chain(&mut two.routes) {
        let Some(Kind::FirstAvailable(all)) = &mut route.rules[0].backends.as_mut().unwrap().kind else {
            unreachable!("routes take the first available")
        };
        change(&mut all.backends[0]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_is_not_there_fails_as_its_policy_says() {
    let control = ControlPlane::start().await;
    let app = app("127.0.0.2", "web").await;
    let client = Pod::start(&control, "client", "127.0.0.3", &[]);
    control.change(|world| {
        service(world, WEB, WEB_PATH, vec![unmeshed(app)]);
        each_route(world.policies.get_mut(WEB).unwrap(), |backend| {
            backend.filters.push(outbound::http_route::Filter {
                kind: Some(outbound::http_route::filter::Kind::FailureInjector(
                    http_route::HttpFailureInjector {
                        status: 500,
                        message: "Service not found".into(),
                        ratio: None,
                    },
                )),
            });
        });
    });
    let failed = client.get(WEB, "/").await;
    assert_eq!(failed.status(), 500);
    assert_eq!(failed.headers()["l5d-proxy-error"], "Service not found");
    assert_eq!(failed.headers()["content-length"], "0");

    let mut rpc = http1(client.connect(WEB).await).await;
    let mut request = get("/svc/Method");
    let grpc = "application/grpc+proto".parse().unwrap();
    request.headers_mut().insert("content-type", grpc);
    let failed = send(&mut rpc, request).await;
    assert_eq!(failed.status(), 200);
    let header = |name: &str| failed.headers()[name].to_str().unwrap();
    assert_eq!(
        (
            header("content-type"),
            header("grpc-status"),
            header("grpc-message")
        ),
        ("application/grpc", "9", "Service not found")
    );
}

/// A circuit that opens after three failures, for so long.
fn with_breaker(policy: &mut outbound::OutboundPolicy, backoff: Duration) {
    let span = Some(prost_types::Duration::try_from(backoff).unwrap());
    let kind = policy.protocol.as_mut().unwrap().kind.as_mut().unwrap();
    let outbound::proxy_protocol::Kind::Detect(detect) = kind else {
        unreachable!("policies detect")
    };
    detect.http1.as_mut().unwrap().failure_accrual = Some(outbound::FailureAccrual {
        ejection: None,
        kind: Some(outbound::failure_accrual::Kind::ConsecutiveFailures(
            outbound::failure_accrual::ConsecutiveFailures {
                max_failures: 3,
                backoff: Some(outbound::ExponentialBackoff {
                    min_backoff: span,
                    max_backoff: span,
                    jitter_ratio: 0.0,
                    ..Default::default()
                }),
            },
        )),
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_break_off_their_requests_dont_open_an_endpoints_circuit() {
    let control = ControlPlane::start().await;
    let good = app("127.0.0.2", "good").await;
    let client = Pod::hasty_client(&control);
    control.change(|world| {
        service(world, WEB, WEB_PATH, vec![unmeshed(good)]);
        with_breaker(world.policies.get_mut(WEB).unwrap(), Duration::from_secs(3_600));
    });
    for _ in 0..6 {
        let mut socket = client.connect(WEB).await;
        let broken =
            b"POST / HTTP/1.1\r\nhost: web\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\nmore\r\n";
        socket.write_all(broken).await.unwrap();
        let mut answer = String::new();
        let _ = socket.read_to_string(&mut answer).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{answer:?}");
    }
    assert_eq!(client.get(WEB, "/").await.status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_keeps_failing_is_left_alone_until_it_recovers() {
    let control = ControlPlane::start().await;
    let good = app("127.0.0.2", "good").await;
    let (bad, health) = failing("127.0.0.2").await;
    let client = Pod::hasty_client(&control);
    control.change(|world| {
        service(world, WEB, WEB_PATH, vec![unmeshed(bad)]);
        with_breaker(world.policies.get_mut(WEB).unwrap(), Duration::from_secs(3_600));
        service(
            world,
            "10.0.0.2:80",
            "bad.ns.svc.cluster.local:80",
            vec![unmeshed(bad)],
        );
        with_breaker(
            world.policies.get_mut("10.0.0.2:80").unwrap(),
            Duration::from_millis(50),
        );
    });
    for _ in 0..3 {
        assert_eq!(client.get(WEB, "/").await.status(), 500);
    }
    assert_eq!(client.get(WEB, "/").await.status(), 504);
    control.change(|world| {
        world
            .endpoints
            .insert(WEB_PATH.into(), vec![unmeshed(good), unmeshed(bad)]);
    });
    eventually("the other endpoint is used", async || {
        client.get(WEB, "/").await.status() == 200
    })
    .await;
    for _ in 0..50 {
        assert_eq!(client.get(WEB, "/").await.status(), 200);
    }

    // Alone, it isn't asked either while its circuit is open, and one answer closes it again.
    let mut seen = BTreeSet::new();
    for _ in 0..10 {
        seen.insert(client.get("10.0.0.2:80", "/").await.status().as_u16());
    }
    assert!(
        seen.contains(&500) && seen.iter().all(|status| [500, 503, 504].contains(status)),
        "{seen:?}"
    );
    health.open();
    eventually("it is asked again", async || {
        client.get("10.0.0.2:80", "/").await.status() == 200
    })
    .await;
    for _ in 0..20 {
        assert_eq!(client.get("10.0.0.2:80", "/").await.status(), 200);
    }
}
