//! What becomes of requests while the place where they go is leaving, killed, or coming back.

mod support;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use http::{Request, Response};
use http_body_util::Full;
use support::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

const WEB: &str = "10.0.0.1:80";
const WEB_PATH: &str = "web.ns.svc.cluster.local:80";

fn post(path: &str, body: &'static str) -> Request<Full<Bytes>> {
    Request::post(path)
        .header("host", "web.test")
        .body(Full::from(body))
        .unwrap()
}

/// Clients that ask one after the other, over both versions of HTTP, and keep what was not answered well.
struct Load {
    answered: Arc<AtomicUsize>,
    failures: Arc<Mutex<Vec<String>>>,
    over: watch::Sender<bool>,
    clients: JoinSet<()>,
}

impl Load {
    async fn start(client: &Pod) -> Self {
        let mut load = Self {
            answered: Arc::default(),
            failures: Arc::default(),
            over: watch::Sender::default(),
            clients: JoinSet::new(),
        };
        for number in 0..8 {
            let request = move || match number % 4 {
                0 | 1 => get("http://web.test/"),
                _ => post("http://web.test/", "what is asked"),
            };
            let socket = client.connect(WEB).await;
            let (answered, failures) = (load.answered.clone(), load.failures.clone());
            let over = load.over.subscribe();
            let note = move |answer: hyper::Result<Response<String>>| match answer {
                Ok(answer) if answer.status() == 200 => _ = answered.fetch_add(1, Relaxed),
                other => failures.lock().unwrap().push(format!("{number}: {other:?}")),
            };
            if number % 2 == 0 {
                let mut sender = http1(socket).await;
                load.clients.spawn(async move {
                    while !*over.borrow() && sender.ready().await.is_ok() {
                        note(whole(sender.send_request(request()).await).await);
                    }
                });
            } else {
                let mut sender = http2(socket).await;
                load.clients.spawn(async move {
                    while !*over.borrow() && sender.ready().await.is_ok() {
                        note(whole(sender.send_request(request()).await).await);
                    }
                });
            }
        }
        load.goes_on().await;
        load
    }

    /// Until a hundred more are answered.
    async fn goes_on(&self) {
        let before = self.answered.load(Relaxed);
        eventually("a hundred more answers", async || {
            self.answered.load(Relaxed) >= before + 100 || !self.failures.lock().unwrap().is_empty()
        })
        .await;
    }

    /// What failed.
    async fn ends(mut self) -> Vec<String> {
        self.over.send_replace(true);
        while let Some(ended) = within(self.clients.join_next()).await {
            ended.unwrap();
        }
        std::mem::take(&mut self.failures.lock().unwrap())
    }
}

async fn whole(answer: hyper::Result<Response<hyper::body::Incoming>>) -> hyper::Result<Response<String>> {
    Ok(text(answer?).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_drains_while_another_takes_over_loses_nothing() {
    let control = ControlPlane::start().await;
    let (old_app, new_app) = (app("127.0.0.2", "old").await, app("127.0.0.5", "new").await);
    let old = Pod::start(&control, "web", "127.0.0.2", &[]);
    let client = Pod::start(&control, "client", "127.0.0.3", &[]);
    let before = meshed(old_app, &old.identity, old.inbound_port());
    control.change(|world| service(world, WEB, WEB_PATH, vec![before]));
    let load = Load::start(&client).await;

    old.proxy.shutdown().cancel();
    let new = Pod::start(&control, "web", "127.0.0.5", &[]);
    let after = meshed(new_app, &new.identity, new.inbound_port());
    control.change(|world| _ = world.endpoints.insert(WEB_PATH.into(), vec![after]));
    within(tokio::task::spawn_blocking(move || old.proxy.wait()))
        .await
        .unwrap();
    load.goes_on().await;
    assert_eq!(load.ends().await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_wait_while_the_only_gateway_is_replaced() {
    let control = ControlPlane::start().await;
    let app = app("127.0.0.2", "web").await;
    let server = Pod::start(&control, "web", "127.0.0.2", &[]);
    let gateway_env = [
        ("INBOUND_GATEWAY_SUFFIXES", "svc.cluster.local."),
        // No longer than it takes to notice: the point is that nobody is there for a while.
        ("SHUTDOWN_GRACE_PERIOD", "1s"),
    ];
    let old = Pod::start(&control, "gateway", "127.0.0.4", &gateway_env);
    let client = Pod::start(&control, "client", "127.0.0.3", &[]);
    let gateway = old.proxy.inbound[0];
    control.change(|world| {
        let near = meshed(app, &server.identity, server.inbound_port());
        service(world, "10.1.0.1:80", WEB_PATH, vec![near]);
        let far = through_gateway(gateway, &old.identity, WEB_PATH);
        service(world, WEB, "web-east.ns.svc.cluster.local:80", vec![far]);
    });
    let load = Load::start(&client).await;
    old.proxy.shutdown().cancel();
    within(tokio::task::spawn_blocking(move || old.proxy.wait()))
        .await
        .unwrap();
    // The address is the Service's, so that the next gateway is where the last was.
    let same = gateway.to_string();
    let env = [gateway_env[0], ("INBOUND_LISTEN_ADDR", &same)];
    let _new = Pod::start(&control, "gateway", "127.0.0.4", &env);
    load.goes_on().await;
    assert_eq!(load.ends().await, [""; 0]);
}

fn asked(mut sender: H1Client, request: Request<Full<Bytes>>) -> JoinHandle<Response<String>> {
    tokio::spawn(async move { send(&mut sender, request).await })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_endpoint_fails_only_what_it_may_have_done_and_must_not_do_twice() {
    let control = ControlPlane::start().await;
    let gate = Gate::closed();
    let app = gated("127.0.0.2", gate.clone()).await;
    let server = Pod::start(&control, "web", "127.0.0.2", &[]);
    let relay = Relay::start("127.0.0.2", server.proxy.inbound[0]).await;
    let client = Pod::start(&control, "client", "127.0.0.3", &[]);
    let endpoint = meshed(app, &server.identity, relay.addr.port());
    control.change(|world| service(world, WEB, WEB_PATH, vec![endpoint]));
    let reading = asked(http1(client.connect(WEB).await).await, get("/wait"));
    let bodiless_post = asked(http1(client.connect(WEB).await).await, post("/wait", ""));
    let put = Request::put("/wait").header("host", "web.test");
    let put = put.body(Full::from("new")).unwrap();
    let put_with_body = asked(http1(client.connect(WEB).await).await, put);
    gate.reached(3).await;

    relay.kill().await;
    for lost in [bodiless_post, put_with_body] {
        let lost = within(lost).await.unwrap();
        assert_eq!(lost.status(), 502, "{lost:?}");
    }
    // What comes while nobody is there waits.
    let late = asked(http1(client.connect(WEB).await).await, post("/", "late"));
    relay.revive().await;
    gate.reached(4).await;
    gate.open();
    assert_eq!(within(reading).await.unwrap().status(), 200);
    assert_eq!(within(late).await.unwrap().status(), 200);
    let metrics = client.admin("/metrics").await.into_body();
    let retried =
        format!("outbound_http_retries_total{{authority=\"{WEB_PATH}\",reason=\"connection broken\"}} 1");
    assert!(metrics.contains(&retried), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_killed_under_load_loses_only_posts_in_flight() {
    let control = ControlPlane::start().await;
    let app = app("127.0.0.2", "web").await;
    let server = Pod::start(&control, "web", "127.0.0.2", &[]);
    let relay = Relay::start("127.0.0.2", server.proxy.inbound[0]).await;
    let client = Pod::start(&control, "client", "127.0.0.3", &[]);
    let endpoint = meshed(app, &server.identity, relay.addr.port());
    control.change(|world| service(world, WEB, WEB_PATH, vec![endpoint]));
    let load = Load::start(&client).await;
    relay.kill().await;
    relay.revive().await;
    let before = load.answered.load(Relaxed);
    eventually("a hundred more answers", async || {
        load.answered.load(Relaxed) >= before + 100
    })
    .await;
    let failures = load.ends().await;
    // Four clients post, each one request at a time.
    assert!(failures.len() <= 4, "{failures:?}");
    for failure in &failures {
        let (number, what) = failure.split_once(": ").unwrap();
        assert!(number.parse::<u32>().unwrap() % 4 >= 2, "not a POST: {failure}");
        assert!(what.contains("status: 502"), "{failure}");
    }
}

/// A proxy that lets everybody in; `speak` gets each connection and its number, from 0, after the transport header.
async fn scripted<F, Fut>(control: &ControlPlane, name: &str, speak: F) -> SocketAddr
where
    F: Fn(usize, tokio_rustls::server::TlsStream<tokio::net::TcpStream>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let tls = tokio_rustls::TlsAcceptor::from(control.credentials(name).direct_server().clone());
    let listener = TcpListener::bind("127.0.0.2:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        for number in 0.. {
            let Ok((socket, _)) = listener.accept().await else {
                return;
            };
            let mut conn = tls.accept(socket).await.unwrap();
            let mut magic = [0; 23];
            conn.read_exact(&mut magic).await.unwrap();
            let mut header = vec![0; conn.read_u32().await.unwrap() as usize];
            conn.read_exact(&mut header).await.unwrap();
            tokio::spawn(speak(number, conn));
        }
    });
    addr
}

const SCRIPTED: &str = "scripted.ns.serviceaccount.identity.linkerd.cluster.local";

async fn client_of(control: &ControlPlane, addr: SocketAddr) -> Pod {
    let client = Pod::start(control, "client", "127.0.0.3", &[]);
    control.change(|world| service(world, WEB, WEB_PATH, vec![meshed(addr, SCRIPTED, addr.port())]));
    client
}

/// Answers everything with what was asked, or refuses the first so many streams.
async fn echo(
    conn: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    refused: usize,
    seen: &AtomicUsize,
) {
    let mut conn = h2::server::handshake(conn).await.unwrap();
    while let Some(Ok((request, mut respond))) = conn.accept().await {
        if seen.fetch_add(1, Relaxed) < refused {
            respond.send_reset(Reason::REFUSED_STREAM);
            continue;
        }
        tokio::spawn(async move {
            let (mut asked, mut body) = (Vec::new(), request.into_body());
            while let Some(Ok(data)) = body.data().await {
                asked.extend_from_slice(&data);
            }
            let mut answer = respond.send_response(Response::new(()), false).unwrap();
            answer.send_data(asked.into(), true).unwrap();
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_refused_is_sent_again_with_its_body_but_not_for_ever() {
    let control = ControlPlane::start().await;
    let seen = Arc::new(AtomicUsize::new(0));
    let counted = seen.clone();
    let addr = scripted(&control, SCRIPTED, move |_, conn| {
        let seen = counted.clone();
        async move { echo(conn, 2, &seen).await }
    })
    .await;
    let client = client_of(&control, addr).await;
    let mut sender = http1(client.connect(WEB).await).await;
    let answer = send(&mut sender, post("/", "twice refused")).await;
    assert_eq!(
        (answer.status().as_u16(), answer.body().as_str()),
        (200, "twice refused")
    );
    assert_eq!(seen.load(Relaxed), 3);

    let seen = Arc::new(AtomicUsize::new(0));
    let counted = seen.clone();
    let addr = scripted(&control, SCRIPTED, move |_, conn| {
        let seen = counted.clone();
        async move { echo(conn, usize::MAX, &seen).await }
    })
    .await;
    control.change(|world| {
        _ = world
            .endpoints
            .insert(WEB_PATH.into(), vec![meshed(addr, SCRIPTED, addr.port())])
    });
    eventually("the one that always refuses is asked", async || {
        let mut sender = http1(client.connect(WEB).await).await;
        send(&mut sender, post("/", "x")).await.status() == 502
    })
    .await;
    assert_eq!(seen.load(Relaxed), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_goaway_left_out_is_sent_again_with_its_body() {
    let control = ControlPlane::start().await;
    let seen = Arc::new(AtomicUsize::new(0));
    let counted = seen.clone();
    let addr = scripted(&control, SCRIPTED, move |number, mut conn| {
        let seen = counted.clone();
        async move {
            if number > 0 {
                return echo(conn, 0, &seen).await;
            }
            // SETTINGS, then GOAWAY for streams after 0 as soon as a request has come.
            let mut preface = [0; 24];
            conn.read_exact(&mut preface).await.unwrap();
            conn.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
            loop {
                let mut head = [0; 9];
                conn.read_exact(&mut head).await.unwrap();
                let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
                conn.read_exact(&mut payload).await.unwrap();
                if head[3] == 1 {
                    break;
                }
            }
            let goaway = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            conn.write_all(&goaway).await.unwrap();
            conn.flush().await.unwrap();
            let _ = tokio::io::copy(&mut conn, &mut tokio::io::sink()).await;
        }
    })
    .await;
    let client = client_of(&control, addr).await;
    let mut sender = http1(client.connect(WEB).await).await;
    let answer = send(&mut sender, post("/", "left out")).await;
    assert_eq!(
        (answer.status().as_u16(), answer.body().as_str()),
        (200, "left out")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_that_ends_before_its_proxy_fails_nobody_who_has_another() {
    let control = ControlPlane::start().await;
    let gone = {
        let listener = TcpListener::bind("127.0.0.2:0").await.unwrap();
        listener.local_addr().unwrap()
    };
    let app = app("127.0.0.5", "web").await;
    let leaving = Pod::start(
        &control,
        "web",
        "127.0.0.2",
        &[("HAWSER_PROXY_WITHDRAWAL_PERIOD", "50s")],
    );
    let staying = Pod::start(&control, "web", "127.0.0.5", &[]);
    let client = Pod::start(&control, "client", "127.0.0.3", &[]);
    let identity = leaving.identity.clone();
    leaving.proxy.shutdown().cancel();
    control.change(|world| {
        let endpoints = vec![
            meshed(gone, &identity, leaving.inbound_port()),
            meshed(app, &staying.identity, staying.inbound_port()),
        ];
        service(world, WEB, WEB_PATH, endpoints);
    });
    let mut sender = http1(client.connect(WEB).await).await;
    for _ in 0..50 {
        assert_eq!(send(&mut sender, post("/", "asked")).await.status(), 200);
    }
    // It doesn't stay for those who can't be served.
    tokio::time::timeout(
        Duration::from_secs(20),
        tokio::task::spawn_blocking(move || leaving.proxy.wait()),
    )
    .await
    .unwrap()
    .unwrap();
}
