//! Traces through two proxies on loopback: what passes, and what a collector is told.

mod support;

use std::convert::Infallible;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use hawser_proxy::otlp::{self, ExportRequest, ExportResponse, KeyValue, ResourceSpans, Value};
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message as _;
use support::*;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::mpsc;

const WEB: &str = "10.0.0.1:80";
const WEB_PATH: &str = "web.ns.svc.cluster.local:80";
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// A collector that speaks gRPC, and what it is told.
fn collector(listener: TcpListener) -> mpsc::UnboundedReceiver<ResourceSpans> {
    let (told, hears) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let told = told.clone();
            let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                let told = told.clone();
                async move {
                    let path = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
                    assert_eq!(request.uri().path(), path);
                    let mut message = request.into_body().collect().await.unwrap().to_bytes();
                    // Five bytes say that it is not compressed, and how long it is.
                    message.advance(5);
                    for spans in ExportRequest::decode(message).unwrap().resource_spans {
                        told.send(spans).unwrap();
                    }
                    let mut answer = BytesMut::new();
                    let body = ExportResponse::default().encode_to_vec();
                    answer.put_u8(0);
                    answer.put_u32(body.len().try_into().unwrap());
                    answer.put_slice(&body);
                    let trailers =
                        HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]);
                    let frames = [Frame::data(answer.freeze()), Frame::trailers(trailers)];
                    let body = StreamBody::new(futures::stream::iter(frames.map(Ok::<_, Infallible>)));
                    let response: Response<StreamBody<_>> = Response::builder()
                        .header("content-type", "application/grpc")
                        .body(body)
                        .unwrap();
                    Ok::<_, Infallible>(response)
                }
            });
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(server.serve_connection(TokioIo::new(socket), service));
        }
    });
    hears
}

/// An address where nobody listens yet.
fn taken() -> (TcpSocket, String) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let addr = socket.local_addr().unwrap().to_string();
    (socket, addr)
}

fn traced(flags: &str) -> Request<http_body_util::Full<Bytes>> {
    let mut request = get("/vote?choice=secret");
    let context = format!("00-{TRACE}-{PARENT}-{flags}");
    request
        .headers_mut()
        .insert("traceparent", context.parse().unwrap());
    request
        .headers_mut()
        .insert("tracestate", "vendor=1".parse().unwrap());
    request
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn attribute(all: &[KeyValue], key: &str) -> String {
    let found = all.iter().find(|one| one.key == key);
    match found.and_then(|one| one.value.as_ref()?.value.as_ref()) {
        Some(Value::Text(text)) => text.clone(),
        Some(Value::Number(number)) => number.to_string(),
        None => String::new(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sampled_trace_passes_and_both_proxies_add_a_span_below_the_client_s() {
    let control = ControlPlane::start().await;
    let app = app("127.0.0.2", "web").await;
    let (socket, addr) = taken();
    let mut hears = collector(socket.listen(8).unwrap());
    let pod = |name: &str, ip: &str| {
        let env = [
            ("TRACE_COLLECTOR_SVC_ADDR", &*addr),
            ("TRACE_PROTOCOL", "opentelemetry"),
            ("TRACE_SERVICE_NAME", name),
        ];
        Pod::start(&control, name, ip, &env)
    };
    let (server, client) = (pod("web", "127.0.0.2"), pod("client", "127.0.0.3"));
    control.change(|world| {
        let endpoint = meshed(app, &server.identity, server.inbound_port());
        service(world, WEB, WEB_PATH, vec![endpoint]);
    });
    // None of these has a span: there is no trace, it is not sampled, or it is none.
    client.get(WEB, "/before").await;
    for flags in ["00", "what"] {
        let mut connection = http1(client.connect(WEB).await).await;
        assert_eq!(send(&mut connection, traced(flags)).await.status(), 200);
    }
    let mut connection = http1(client.connect(WEB).await).await;
    let seen = send(&mut connection, traced("01")).await.into_body();
    // What the application sees is what the client sent.
    assert!(
        seen.contains(&format!("traceparent: 00-{TRACE}-{PARENT}-01\n")),
        "{seen}"
    );
    assert!(seen.contains("tracestate: vendor=1\n"), "{seen}");

    let mut spans = Vec::new();
    while spans.len() < 2 {
        let told = within(hears.recv()).await.expect("spans");
        let name = attribute(&told.resource.unwrap_or_default().attributes, "service.name");
        let scopes = told.scope_spans.into_iter();
        spans.extend(
            scopes
                .flat_map(|scope| scope.spans)
                .map(|span| (name.clone(), span)),
        );
    }
    spans.sort_by_key(|(_, span)| span.kind);
    let [(web, inbound), (asker, outbound)] = spans.as_slice() else {
        panic!("{spans:#?}")
    };
    assert_eq!((&**web, inbound.kind), ("web", otlp::SERVER));
    assert_eq!((&**asker, outbound.kind), ("client", otlp::CLIENT));
    for span in [inbound, outbound] {
        assert_eq!(
            (&*hex(&span.trace_id), &*hex(&span.parent_span_id)),
            (TRACE, PARENT)
        );
        assert_eq!((&*span.name, &*span.trace_state), ("GET", "vendor=1"));
        assert_eq!(
            attribute(&span.attributes, "url.path"),
            "/vote",
            "no query is told"
        );
        assert_eq!(attribute(&span.attributes, "http.response.status_code"), "200");
        assert!(span.start_time_unix_nano < span.end_time_unix_nano);
        assert_eq!(span.status, None);
    }
    assert_ne!(inbound.span_id, outbound.span_id);
    assert!(outbound.start_time_unix_nano <= inbound.start_time_unix_nano);
    assert_eq!(attribute(&inbound.attributes, "client_id"), client.identity);
    assert_eq!(attribute(&outbound.attributes, "server_id"), server.identity);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_costs_no_request_and_is_found_when_it_comes() {
    let control = ControlPlane::start().await;
    let app = app("127.0.0.2", "web").await;
    let (socket, addr) = taken();
    let client = Pod::start(
        &control,
        "client",
        "127.0.0.3",
        &[("TRACE_COLLECTOR_SVC_ADDR", &addr)],
    );
    control.change(|world| service(world, WEB, WEB_PATH, vec![unmeshed(app)]));
    let mut connection = http1(client.connect(WEB).await).await;
    assert_eq!(send(&mut connection, traced("01")).await.status(), 200);
    eventually("the span is given up", async || {
        let metrics = client.admin("/metrics").await.into_body();
        metrics.contains("trace_spans_total{outcome=\"failed\"} 1\n")
    })
    .await;
    let mut hears = collector(socket.listen(8).unwrap());
    eventually("the next span is taken", async || {
        assert_eq!(send(&mut connection, traced("01")).await.status(), 200);
        hears.try_recv().is_ok()
    })
    .await;
}
