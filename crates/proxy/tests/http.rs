//! HTTP across the mesh: what both versions promise, and what proxies must not let pass.

mod support;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use support::*;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

const WEB: &str = "10.0.0.1:80";
const WEB_PATH: &str = "web.ns.svc.cluster.local:80";

/// An application at 127.0.0.2 behind its proxy, and a client behind another.
struct Mesh {
    control: ControlPlane,
    server: Pod,
    client: Pod,
}

impl Mesh {
    async fn before(app: SocketAddr, server: &[(&str, &str)], client: &[(&str, &str)]) -> Self {
        let control = ControlPlane::start().await;
        let server = Pod::start(&control, "web", "127.0.0.2", server);
        let client = Pod::start(&control, "client", "127.0.0.3", client);
        let endpoint = meshed(app, &server.identity, server.inbound_port());
        control.change(|world| service(world, WEB, WEB_PATH, vec![endpoint]));
        Self {
            control,
            server,
            client,
        }
    }
}

type Frames = StreamBody<tokio_stream::wrappers::ReceiverStream<Result<Frame<Bytes>, h2::Error>>>;

/// A response body that the handler goes on writing.
fn frames() -> (mpsc::Sender<Result<Frame<Bytes>, h2::Error>>, Frames) {
    let (tx, rx) = mpsc::channel(16);
    (
        tx,
        StreamBody::new(tokio_stream::wrappers::ReceiverStream::new(rx)),
    )
}

fn data(text: impl Into<Bytes>) -> Result<Frame<Bytes>, h2::Error> {
    Ok(Frame::data(text.into()))
}

fn grpc_status(code: &'static str) -> Result<Frame<Bytes>, h2::Error> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", code.parse().unwrap());
    trailers.insert("grpc-message", "told in trailers".parse().unwrap());
    Ok(Frame::trailers(trailers))
}

/// An HTTP/2 application.
async fn application<F, Fut>(handle: F) -> SocketAddr
where
    F: Fn(Request<Incoming>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<Response<Frames>, h2::Error>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.2:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let service = hyper::service::service_fn(handle.clone());
            tokio::spawn(
                hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(socket), service),
            );
        }
    });
    addr
}

async fn h2_client(socket: TcpStream) -> h2::client::SendRequest<Bytes> {
    let (client, conn) = h2::client::handshake(socket).await.unwrap();
    tokio::spawn(conn);
    client
}

fn rpc() -> Request<()> {
    Request::post("http://web.test/svc/Method")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unary_calls_status_arrives_in_its_trailers() {
    let app = application(async |request: Request<Incoming>| {
        assert_eq!(request.headers()["te"], "trailers");
        let question = request.into_body().collect().await.unwrap().to_bytes();
        let (tx, body) = frames();
        tx.send(data(question)).await.unwrap();
        tx.send(grpc_status("5")).await.unwrap();
        Ok(Response::new(body))
    })
    .await;
    let mesh = Mesh::before(app, &[], &[]).await;
    let client = h2_client(mesh.client.connect(WEB).await).await;
    let (answer, mut body) = client.ready().await.unwrap().send_request(rpc(), false).unwrap();
    body.send_data("question".into(), true).unwrap();
    let mut answer = within(answer).await.unwrap().into_body();
    assert_eq!(within(answer.data()).await.unwrap().unwrap(), "question");
    let trailers = within(answer.trailers()).await.unwrap().unwrap();
    assert_eq!(
        (&trailers["grpc-status"], &trailers["grpc-message"]),
        (&"5".parse().unwrap(), &"told in trailers".parse().unwrap())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_streams_both_ways_at_once() {
    let app = application(async |request: Request<Incoming>| {
        let (tx, body) = frames();
        tokio::spawn(async move {
            let mut asked = request.into_body();
            while let Some(frame) = asked.frame().await {
                tx.send(Ok(frame.unwrap())).await.unwrap();
            }
            tx.send(grpc_status("0")).await.unwrap();
        });
        Ok(Response::new(body))
    })
    .await;
    let mesh = Mesh::before(app, &[], &[]).await;
    let client = h2_client(mesh.client.connect(WEB).await).await;
    let (answer, mut ask) = client.ready().await.unwrap().send_request(rpc(), false).unwrap();
    // The answer begins before the question has ended, and each message comes before the next is sent.
    let mut answer = within(answer).await.unwrap().into_body();
    for message in ["one", "two", "three"] {
        ask.send_data(message.into(), false).unwrap();
        assert_eq!(within(answer.data()).await.unwrap().unwrap(), message);
    }
    ask.send_data(Bytes::new(), true).unwrap();
    while let Some(rest) = within(answer.data()).await {
        assert!(rest.unwrap().is_empty());
    }
    let trailers = within(answer.trailers()).await.unwrap().unwrap();
    assert_eq!(trailers["grpc-status"], "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_reaches_an_http2_client_with_its_reason_and_an_http1_client_as_502() {
    let app = application(async |request: Request<Incoming>| {
        if request.uri().path() == "/late" {
            let (tx, body) = frames();
            tx.send(data("some")).await.unwrap();
            // Not before the client has seen the answer begin.
            tokio::spawn(async move {
                let _ = request.into_body().collect().await;
                let _ = tx.send(Err(Reason::INADEQUATE_SECURITY.into())).await;
            });
            return Ok(Response::new(body));
        }
        Err(Reason::ENHANCE_YOUR_CALM.into())
    })
    .await;
    let mesh = Mesh::before(app, &[], &[]).await;
    let client = h2_client(mesh.client.connect(WEB).await).await;
    let (answer, _) = client
        .clone()
        .ready()
        .await
        .unwrap()
        .send_request(rpc(), true)
        .unwrap();
    let reset = within(answer).await.unwrap_err();
    assert_eq!(
        (reset.is_reset(), reset.reason()),
        (true, Some(Reason::ENHANCE_YOUR_CALM))
    );

    let late = Request::get("http://web.test/late").body(()).unwrap();
    let (answer, mut asking) = client.ready().await.unwrap().send_request(late, false).unwrap();
    let mut body = within(answer).await.unwrap().into_body();
    assert_eq!(within(body.data()).await.unwrap().unwrap(), "some");
    asking.send_data(Bytes::new(), true).unwrap();
    let reset = within(body.data()).await.unwrap().unwrap_err();
    assert_eq!(
        (reset.is_reset(), reset.reason()),
        (true, Some(Reason::INADEQUATE_SECURITY))
    );

    // To HTTP/1 clients a reset means nothing: another proxy that resets what it was asked for them.
    let name = "resetting.ns.serviceaccount.identity.linkerd.cluster.local";
    let resetting = resetting_proxy(&mesh.control, name).await;
    mesh.control.change(|world| {
        let endpoint = meshed(resetting, name, resetting.port());
        service(
            world,
            "10.0.0.2:80",
            "broken.ns.svc.cluster.local:80",
            vec![endpoint],
        );
    });
    let answer = mesh.client.get("10.0.0.2:80", "/").await;
    assert_eq!(answer.status(), 502);
    assert_eq!(answer.headers()["l5d-proxy-error"], "stream reset");
}

/// A proxy that lets everybody in and resets every request.
async fn resetting_proxy(control: &ControlPlane, name: &str) -> SocketAddr {
    let tls = tokio_rustls::TlsAcceptor::from(control.credentials(name).direct_server().clone());
    let listener = TcpListener::bind("127.0.0.2:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let mut conn = tls.accept(socket).await.unwrap();
            let mut magic = [0; 23];
            conn.read_exact(&mut magic).await.unwrap();
            let mut header = vec![0; conn.read_u32().await.unwrap() as usize];
            conn.read_exact(&mut header).await.unwrap();
            tokio::spawn(async move {
                let mut conn = h2::server::handshake(conn).await.unwrap();
                while let Some(Ok((_, mut respond))) = conn.accept().await {
                    respond.send_reset(Reason::CANCEL);
                }
            });
        }
    });
    addr
}

/// What the application's side of an HTTP/1 exchange saw, for one connection at a time.
async fn raw(answer: &'static [u8]) -> (SocketAddr, mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.2:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (tx, rx) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let tx = tx.clone();
            tokio::spawn(async move {
                let mut socket = BufReader::new(socket);
                loop {
                    let mut head = String::new();
                    while !head.ends_with("\r\n\r\n") {
                        if socket.read_line(&mut head).await.unwrap_or(0) == 0 {
                            return;
                        }
                    }
                    if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
                        let mut body = String::new();
                        while !(body.contains("0\r\n") && body.ends_with("\r\n\r\n")) {
                            if socket.read_line(&mut body).await.unwrap_or(0) == 0 {
                                return;
                            }
                        }
                        head.push_str(&body);
                    }
                    let _ = tx.send(head);
                    if socket.write_all(answer).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (addr, rx)
}

/// Everything until the connection ends.
async fn rest(socket: &mut TcpStream) -> String {
    let mut text = Vec::new();
    let _ = within(socket.read_to_end(&mut text)).await;
    String::from_utf8_lossy(&text).into_owned()
}

/// Until the text ends like this.
async fn until(socket: &mut TcpStream, end: &str) -> String {
    let mut text = Vec::new();
    while !text.ends_with(end.as_bytes()) {
        match within(socket.read_u8()).await {
            Ok(byte) => text.push(byte),
            Err(_) => panic!("ended with {:?}", String::from_utf8_lossy(&text)),
        }
    }
    String::from_utf8(text).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn http1_0_is_answered_and_closed() {
    let (app, mut seen) = raw(b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    let mesh = Mesh::before(app, &[], &[]).await;
    let mut socket = mesh.client.connect(WEB).await;
    socket
        .write_all(b"GET /old HTTP/1.0\r\nhost: a\r\n\r\n")
        .await
        .unwrap();
    let answer = rest(&mut socket).await;
    assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
    assert!(answer.ends_with("\r\n\r\nok"), "{answer}");
    let head = within(seen.recv()).await.unwrap();
    assert!(head.starts_with("GET /old HTTP/1.0\r\n"), "{head}");
}

#[tokio::test(flavor = "multi_thread")]
async fn head_answers_keep_their_length_and_have_no_body() {
    let (app, _seen) = raw(b"HTTP/1.1 200 OK\r\ncontent-length: 1234\r\n\r\n").await;
    let mesh = Mesh::before(app, &[], &[]).await;
    let mut socket = mesh.client.connect(WEB).await;
    let request = b"HEAD / HTTP/1.1\r\nhost: a\r\n\r\n";
    for _ in 0..2 {
        socket.write_all(request).await.unwrap();
        let head = until(&mut socket, "\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        assert!(head.contains("content-length: 1234\r\n"), "{head}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelined_requests_are_answered_in_order() {
    let app = app("127.0.0.2", "web").await;
    let mesh = Mesh::before(app, &[], &[]).await;
    let mut socket = mesh.client.connect(WEB).await;
    let all: String = (0..5)
        .map(|n| format!("GET /{n} HTTP/1.1\r\nhost: a\r\n\r\n"))
        .collect();
    socket.write_all(all.as_bytes()).await.unwrap();
    for n in 0..5 {
        until(&mut socket, &format!("GET /{n}\n")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn content_arrives_whole_however_long_it_is_and_however_it_is_sent() {
    let app = app("127.0.0.2", "web").await;
    let mesh = Mesh::before(app, &[], &[]).await;
    for together in [true, false] {
        let mut socket = mesh.client.connect(WEB).await;
        for length in [0, 1, 4_096, 16_384, 16_385, 30_000, 7] {
            let head = format!("PUT /{length} HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\n");
            let body = "b".repeat(length);
            if together {
                socket
                    .write_all(format!("{head}{body}").as_bytes())
                    .await
                    .unwrap();
            } else {
                socket.write_all(head.as_bytes()).await.unwrap();
                socket.write_all(body.as_bytes()).await.unwrap();
            }
            let answer = until(&mut socket, &format!("\n\n{body}")).await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{length}: {answer}");
            assert_eq!(
                answer.matches("\ncontent-length: ").count(),
                2,
                "{length}: {answer}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn content_that_does_not_follow_its_head_is_not_waited_for() {
    let (app, mut seen) = raw(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let mesh = Mesh::before(app, &[], &[]).await;
    let mut socket = mesh.client.connect(WEB).await;
    let head = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\n";
    socket.write_all(head).await.unwrap();
    assert!(within(seen.recv()).await.unwrap().starts_with("POST / "));
    let answer = until(&mut socket, "\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn content_of_a_request_that_usually_has_none_arrives() {
    let listener = TcpListener::bind("127.0.0.2:0").await.unwrap();
    let mesh = Mesh::before(listener.local_addr().unwrap(), &[], &[]).await;
    let mut socket = mesh.client.connect(WEB).await;
    let head = b"GET / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
    socket.write_all(head).await.unwrap();
    // The head is there before anybody knows how much follows.
    let (mut app, _) = within(listener.accept()).await.unwrap();
    let head = until(&mut app, "\r\n\r\n").await;
    assert!(head.contains("transfer-encoding: chunked\r\n"), "{head}");
    let content = "3\r\nabc\r\n0\r\n\r\n";
    socket.write_all(content.as_bytes()).await.unwrap();
    assert_eq!(until(&mut app, "0\r\n\r\n").await, content);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_waits_to_be_told_to_continue_is_told() {
    let app = app("127.0.0.2", "web").await;
    let mesh = Mesh::before(app, &[], &[]).await;
    let mut socket = mesh.client.connect(WEB).await;
    socket
        .write_all(b"POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n")
        .await
        .unwrap();
    let told = until(&mut socket, "\r\n\r\n").await;
    assert!(told.starts_with("HTTP/1.1 100"), "{told}");
    socket.write_all(b"body").await.unwrap();
    let head = until(&mut socket, "\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    until(&mut socket, "\n\nbody").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_and_their_trailers_arrive_both_ways() {
    let (app, mut seen) = raw(
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n5\r\nhello\r\n0\r\nx-sum: 7\r\n\r\n",
    )
    .await;
    let mesh = Mesh::before(app, &[], &[]).await;
    let mut socket = mesh.client.connect(WEB).await;
    socket
        .write_all(
            b"POST / HTTP/1.1\r\nhost: a\r\nte: trailers\r\ntrailer: x-asked\r\ntransfer-encoding: chunked\r\n\r\n\
              4\r\nwhat\r\n0\r\nx-asked: 1\r\n\r\n",
        )
        .await
        .unwrap();
    let answer = until(&mut socket, "x-sum: 7\r\n\r\n").await;
    assert!(answer.contains("transfer-encoding: chunked\r\n"), "{answer}");
    assert!(answer.contains("5\r\nhello\r\n0\r\n"), "{answer}");
    let asked = within(seen.recv()).await.unwrap();
    assert!(asked.contains("4\r\nwhat\r\n"), "{asked}");
    assert!(asked.ends_with("x-asked: 1\r\n\r\n"), "{asked}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_two_readers_could_read_differently_is_refused_on_both_sides() {
    let (app, mut seen) = raw(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let mesh = Mesh::before(app, &[], &[]).await;
    for head in [
        "content-length: 3\r\ntransfer-encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        "content-length: 3\r\ncontent-length: 4\r\n",
        "content-length: 3, 3\r\n",
        "content-length: +3\r\n",
        "content-length: -3\r\n",
        "content-length: 0x3\r\n",
        "content-length: 3 \t3\r\n",
        "content-length:\r\n",
        "content-length: 18446744073709551616\r\n",
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: chunked, chunked\r\n",
        "transfer-encoding: gzip, chunked\r\n",
        "transfer-encoding: chunked, identity\r\n",
        "transfer-encoding: identity\r\n",
        "transfer-encoding: xchunked\r\n",
        "transfer-encoding: \x0bchunked\r\n",
        "transfer-encoding : chunked\r\n",
        "transfer-encoding\r\n",
        "x: y\ntransfer-encoding: chunked\r\n",
        "x: y\n",
        "x: y\r\n\n",
        "x: y\rtransfer-encoding: chunked\r\n",
        "x: y\r\n transfer-encoding: chunked\r\n",
        "x: y\0\r\n",
        ": y\r\n",
        "host: b\r\n",
    ] {
        let request = format!(
            "POST / HTTP/1.1\r\nhost: a\r\n{head}\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n"
        );
        for mut socket in [
            mesh.client.connect(WEB).await,
            mesh.server.connect_inbound(app).await,
        ] {
            socket.write_all(request.as_bytes()).await.unwrap();
            let answer = rest(&mut socket).await;
            assert!(answer.starts_with("HTTP/1.1 400"), "{head:?}: {answer:?}");
            assert!(!answer.contains("HTTP/1.1 200"), "{head:?}: {answer:?}");
        }
    }
    assert!(seen.try_recv().is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_in_bad_chunks_ends_its_connection() {
    let (app, mut seen) = raw(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let mesh = Mesh::before(app, &[], &[]).await;
    for body in [
        "\r\n",
        "x\r\n",
        "-1\r\n",
        "+0\r\n",
        " 0\r\n",
        "0x0\r\n",
        "0\n",
        "0;a\nb\r\n",
        "3\r\nabcd\r\n0\r\n",
        "3\r\nabc\n0\r\n",
        "3\r\nabc0\r\n",
        "10000000000000003\r\nabc\r\n0\r\n",
    ] {
        let request = format!(
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n{body}\r\nGET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n"
        );
        for mut socket in [
            mesh.client.connect(WEB).await,
            mesh.server.connect_inbound(app).await,
        ] {
            socket.write_all(request.as_bytes()).await.unwrap();
            let answer = rest(&mut socket).await;
            assert!(!answer.contains("HTTP/1.1 200"), "{body:?}: {answer:?}");
        }
    }
    assert!(seen.try_recv().is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_does_not_end_is_given_up_but_an_idle_connection_is_kept() {
    let app = app("127.0.0.2", "web").await;
    let mesh = Mesh::before(app, &[("INBOUND_DETECT_TIMEOUT", "400ms")], &[]).await;
    let mut slow = mesh.server.connect_inbound(app).await;
    let mut idle = mesh.server.connect_inbound(app).await;
    for socket in [&mut slow, &mut idle] {
        socket
            .write_all(b"GET /1 HTTP/1.1\r\nhost: a\r\n\r\n")
            .await
            .unwrap();
        until(socket, "host: a\n\n").await;
    }
    slow.write_all(b"GET /2 HTTP/1.1\r\nx: ").await.unwrap();
    // A byte now and then doesn't help.
    let dripping = async {
        while slow.write_all(b"y").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within(dripping).await;
    // By then the other one has been idle for longer than a head may take.
    idle.write_all(b"GET /3 HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .unwrap();
    until(&mut idle, "host: a\n\n").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgraded_connection_is_not_taken_for_a_slow_head() {
    let app = raw_upgrade().await;
    let mesh = Mesh::before(app, &[("INBOUND_DETECT_TIMEOUT", "200ms")], &[]).await;
    let mut socket = mesh.server.connect_inbound(app).await;
    socket
        .write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n")
        .await
        .unwrap();
    until(&mut socket, "\r\n\r\n").await;
    for _ in 0..5 {
        socket.write_all(b"x").await.unwrap();
        assert_eq!(within(socket.read_u8()).await.unwrap(), b'x');
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn raw_upgrade() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.2:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        until(&mut socket, "\r\n\r\n").await;
        let answer = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
        socket.write_all(answer).await.unwrap();
        let (mut read, mut write) = socket.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    });
    addr
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_that_are_too_long_are_refused() {
    let app = app("127.0.0.2", "web").await;
    let mesh = Mesh::before(app, &[], &[]).await;
    let mut socket = mesh.client.connect(WEB).await;
    let head = format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "y".repeat(200_000));
    let _ = socket.write_all(head.as_bytes()).await;
    let mut answer = [0; 12];
    within(socket.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 431");

    let client = h2_client(mesh.client.connect(WEB).await).await;
    let request = Request::get("http://web.test/")
        .header("x", "y".repeat(100_000))
        .body(())
        .unwrap();
    let (answer, _) = client.ready().await.unwrap().send_request(request, true).unwrap();
    assert_eq!(within(answer).await.unwrap().status(), 431);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_to_the_application_belong_to_one_host() {
    // The application says which connection a request came on.
    let listener = TcpListener::bind("127.0.0.2:0").await.unwrap();
    let app = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut number = 0;
        while let Ok((socket, _)) = listener.accept().await {
            number += 1;
            let service = hyper::service::service_fn(move |_| async move {
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(number.to_string()))))
            });
            tokio::spawn(
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), service),
            );
        }
    });
    let mesh = Mesh::before(app, &[("INBOUND_HTTP1_CONNECTION_POOL_IDLE_TIMEOUT", "1h")], &[]).await;
    let mut client = http1(mesh.server.connect_inbound(app).await).await;
    let mut on = async |host: Option<&str>| {
        let mut request = Request::get("/");
        if let Some(host) = host {
            request = request.header("host", host);
        }
        let answer = send(&mut client, request.body(Full::default()).unwrap()).await;
        assert_eq!(answer.status(), 200);
        answer.into_body()
    };
    let first = on(Some("a")).await;
    assert_eq!(on(Some("a")).await, first, "the same host shares");
    let second = on(Some("b")).await;
    assert_ne!(second, first, "another host does not");
    assert_eq!(on(Some("a")).await, first);
    let nameless = on(None).await;
    assert_ne!(on(None).await, nameless, "no host shares with nobody");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_over_the_limit_are_shed_and_nothing_else() {
    for (server, client) in [
        (&[("INBOUND_MAX_IN_FLIGHT", "1")][..], &[][..]),
        (&[], &[("OUTBOUND_MAX_IN_FLIGHT", "1")]),
    ] {
        let gate = Gate::closed();
        let app = gated("127.0.0.2", gate.clone()).await;
        let mesh = Mesh::before(app, server, client).await;
        let mut first = http1(mesh.client.connect(WEB).await).await;
        let first = tokio::spawn(async move { send(&mut first, get("/wait")).await });
        gate.reached(1).await;
        let shed = mesh.client.get(WEB, "/").await;
        assert_eq!(shed.status(), 503);
        let told = shed.headers()["l5d-proxy-error"].to_str().unwrap();
        assert!(told.ends_with("service unavailable"), "{told}");
        gate.open();
        assert_eq!(within(first).await.unwrap().status(), 200);
        assert_eq!(mesh.client.get(WEB, "/").await.status(), 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_requests_are_bounded() {
    let control = ControlPlane::start().await;
    let queue = [
        ("OUTBOUND_HTTP_QUEUE_CAPACITY", "1"),
        ("OUTBOUND_HTTP_FAILFAST_TIMEOUT", "1h"),
    ];
    let client = Pod::start(&control, "client", "127.0.0.3", &queue);
    control.change(|world| service(world, WEB, WEB_PATH, vec![]));
    let socket = client.connect(WEB).await;
    let mut waiting = http1(socket).await;
    let waiting = tokio::spawn(async move { send(&mut waiting, get("/")).await });
    let mut second = http1(client.connect(WEB).await).await;
    // Whichever comes first waits; the other is told.
    let second = tokio::spawn(async move { send(&mut second, get("/")).await });
    let (shed, waiting) = within(async {
        match futures::future::select(waiting, second).await {
            futures::future::Either::Left((shed, other)) | futures::future::Either::Right((shed, other)) => {
                (shed.unwrap(), other)
            }
        }
    })
    .await;
    assert_eq!(shed.status(), 503);
    let app = app("127.0.0.2", "web").await;
    control.change(|world| service(world, WEB, WEB_PATH, vec![unmeshed(app)]));
    assert_eq!(within(waiting).await.unwrap().status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_from_the_environment_reach_http2_clients() {
    let app = app("127.0.0.2", "web").await;
    let settings = [
        ("OUTBOUND_SERVER_HTTP2_MAX_CONCURRENT_STREAMS", "7"),
        ("OUTBOUND_SERVER_HTTP2_MAX_FRAME_SIZE", "20000"),
        ("OUTBOUND_SERVER_HTTP2_MAX_HEADER_LIST_SIZE", "5000"),
        ("OUTBOUND_SERVER_HTTP2_INITIAL_STREAM_WINDOW_SIZE", "70000"),
    ];
    let mesh = Mesh::before(app, &[], &settings).await;
    let mut socket = mesh.client.connect(WEB).await;
    socket
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .await
        .unwrap();
    let mut head = [0; 9];
    within(socket.read_exact(&mut head)).await.unwrap();
    assert_eq!(head[3], 4, "SETTINGS");
    let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
    within(socket.read_exact(&mut payload)).await.unwrap();
    let value = |id: u8| {
        let mut all = payload.chunks(6);
        let one = all.find(|setting| setting[1] == id).unwrap();
        u32::from_be_bytes(one[2..].try_into().unwrap())
    };
    assert_eq!(
        (value(3), value(4), value(5), value(6)),
        (7, 70_000, 20_000, 5_000)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_opens_and_resets_without_end_is_sent_away() {
    let gate = Gate::closed();
    let app = gated("127.0.0.2", gate).await;
    let mesh = Mesh::before(app, &[], &[]).await;
    let (mut client, conn) = h2::client::handshake(mesh.client.connect(WEB).await)
        .await
        .unwrap();
    let conn = tokio::spawn(conn);
    let flood = async {
        loop {
            client = match client.ready().await {
                Ok(client) => client,
                Err(error) => break error,
            };
            let request = Request::get("http://web.test/wait").body(()).unwrap();
            match client.send_request(request, true) {
                Ok((_, mut stream)) => stream.send_reset(Reason::CANCEL),
                Err(error) => break error,
            }
        }
    };
    within(flood).await;
    // Its last words may be lost when the connection is closed under what it still sends.
    let ended = within(conn).await.unwrap().unwrap_err();
    assert!(
        ended.is_io() || ended.reason() == Some(Reason::ENHANCE_YOUR_CALM),
        "{ended}"
    );
    assert_eq!(mesh.client.get(WEB, "/").await.status(), 200);
}
