//! Spans of a sampled trace, from a pod's proxy to a collector that is in the mesh itself.
//!
//! The collector's pod hands its connection to this program, over `kubectl exec`: containers have no other program that
//! could be one.

use std::convert::Infallible;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Buf as _, BufMut as _, BytesMut};
use hawser_proxy::otlp::{self, ExportRequest, ExportResponse, KeyValue, Value};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message as _;
use serde_json::json;
use tokio::process::Command;

use crate::runner::{Test, linked};
use crate::world::{SOON, VISITORS, World, idle};

pub(crate) const TESTS: &[Test] = &[linked(
    "a_collector_in_the_mesh_is_told_of_a_sampled_request_by_its_sender_s_proxy",
    &["kubectl", "perl"],
    a_collector_in_the_mesh_is_told_of_a_sampled_request_by_its_sender_s_proxy,
)];

const PORT: u16 = 4317;
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";
/// Between two requests: spans are sent every second.
const PAUSE: Duration = Duration::from_millis(500);

/// Takes one connection and passes it on, byte for byte, over its own standard input and output.
const HAND_OVER: &str = "
    my $listener = IO::Socket::INET->new(Listen => 8, LocalPort => $ARGV[0], ReuseAddr => 1) or die $!;
    my $peer = $listener->accept or die $!;
    my %to = (fileno($peer) => *STDOUT, fileno(STDIN) => $peer);
    my $ready = IO::Select->new($peer, *STDIN);
    while (my @from = $ready->can_read) {
        for my $from (@from) {
            sysread($from, my $bytes, 65536) or exit;
            my $to = $to{fileno $from};
            while (length $bytes) { substr($bytes, 0, syswrite($to, $bytes) // exit, \"\") }
        }
    }";

type Frames = futures::stream::Iter<std::vec::IntoIter<Result<Frame<bytes::Bytes>, Infallible>>>;

/// Spans as lines of JSON, which are kept.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<String>>>);

impl Told {
    /// Serves whoever connects to the pod, one after the other, for ever.
    async fn collect(&self, mut hand_over: Command) {
        loop {
            let mut child = hand_over
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .kill_on_drop(true)
                .spawn()
                .expect("kubectl starts");
            let io = tokio::io::join(
                child.stdout.take().expect("it is piped"),
                child.stdin.take().expect("it is piped"),
            );
            let told = self.clone();
            let service = hyper::service::service_fn(move |request| {
                let told = told.clone();
                async move { told.answer(request).await }
            });
            let server = http2::Builder::new(TokioExecutor::new());
            // A connection that ends is followed by another.
            let _ = server.serve_connection(TokioIo::new(io), service).await;
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<Response<StreamBody<Frames>>, Infallible> {
        let export = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
        assert_eq!(request.uri().path(), export);
        let mut message = request.into_body().collect().await.expect("a message").to_bytes();
        // Five bytes say that it is not compressed, and how long it is.
        message.advance(5);
        let lines = lines(ExportRequest::decode(message).expect("spans"));
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(lines);
        let body = ExportResponse::default().encode_to_vec();
        let mut message = BytesMut::new();
        message.put_u8(0);
        message.put_u32(body.len().try_into().expect("it is short"));
        message.put_slice(&body);
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        let frames = vec![Ok(Frame::data(message.freeze())), Ok(Frame::trailers(trailers))];
        let mut response = Response::new(StreamBody::new(futures::stream::iter(frames)));
        let kind = HeaderValue::from_static("application/grpc");
        response.headers_mut().insert("content-type", kind);
        Ok(response)
    }
}

/// A line of JSON for each span.
fn lines(request: ExportRequest) -> Vec<String> {
    let text = |all: &[KeyValue], key: &str| {
        let found = all.iter().find(|one| one.key == key);
        match found.and_then(|one| one.value.as_ref()?.value.clone()) {
            Some(Value::Text(text)) => text,
            Some(Value::Number(number)) => number.to_string(),
            None => String::new(),
        }
    };
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let mut lines = Vec::new();
    for of_proxy in request.resource_spans {
        let named = of_proxy.resource.unwrap_or_default().attributes;
        for span in of_proxy.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            let line = json!({
                "service": text(&named, "service.name"),
                "namespace": text(&named, "k8s.namespace.name"),
                "kind": span.kind,
                "trace": hex(&span.trace_id),
                "parent": hex(&span.parent_span_id),
                "path": text(&span.attributes, "url.path"),
                "status": text(&span.attributes, "http.response.status_code"),
                "server": text(&span.attributes, "server_id"),
            });
            lines.push(line.to_string());
        }
    }
    lines
}

fn a_collector_in_the_mesh_is_told_of_a_sampled_request_by_its_sender_s_proxy(world: &World) {
    let identity = |account: &str| format!("{account}.serviceaccount.identity.linkerd.cluster.local");
    world.citizen("west", "collector");
    let mut asker = idle("asker");
    let env = json!([
        {"name": "LINKERD2_PROXY_TRACE_COLLECTOR_SVC_ADDR", "value": format!("collector.{VISITORS}:{PORT}")},
        {"name": "LINKERD2_PROXY_TRACE_COLLECTOR_SVC_NAME", "value": identity(&format!("default.{VISITORS}"))},
        {"name": "LINKERD2_PROXY_TRACE_SERVICE_NAME", "value": "asker"},
        {"name": "OTEL_RESOURCE_ATTRIBUTES", "value": "k8s.namespace.name=$(_pod_ns)"},
    ]);
    asker["spec"]["template"]["metadata"]["annotations"] = json!({
        "linkerd.io/inject": "enabled",
        "config.linkerd.io/proxy-additional-env": env.to_string(),
    });
    world.apply("west", &asker);
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "collector", "namespace": VISITORS},
        "spec": {"selector": {"app": "collector"}, "ports": [{"port": PORT}]},
    });
    world.apply("west", &service);
    world.rolled_out("west", VISITORS, "asker");
    let expected = json!({
        "service": "asker", "namespace": VISITORS, "kind": otlp::CLIENT, "trace": TRACE, "parent": PARENT,
        "path": "/api/list", "status": "200", "server": identity("web.emojivoto"),
    })
    .to_string();
    let asked = format!(
        "curl -s -o /dev/null --noproxy '*' --max-time 5 -H 'traceparent: 00-{TRACE}-{PARENT}-01' \
         'http://web-svc.emojivoto/api/list?secret'"
    );
    let port = PORT.to_string();
    let words = [
        "-n",
        VISITORS,
        "exec",
        "-i",
        "deployment/collector",
        "-c",
        "main",
        "--",
        "perl",
        "-MIO::Socket::INET",
        "-MIO::Select",
        "-e",
        HAND_OVER,
        &port,
    ];
    let hand_over = world.kubectl_command("west", &words);
    let told = Told::default();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let asking = async {
        // Until the proxy has found the collector, spans are left out.
        loop {
            world.shell("west", "asker", &asked);
            tokio::time::sleep(PAUSE).await;
            if told
                .0
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .contains(&expected)
            {
                return;
            }
        }
    };
    let heard = runtime.block_on(async {
        tokio::select! {
            () = told.collect(Command::from(hand_over)) => Err(()),
            heard = tokio::time::timeout(SOON, asking) => heard.map_err(drop),
        }
    });
    let told = told.0.lock().unwrap_or_else(PoisonError::into_inner).join("\n");
    for name in ["asker", "collector"] {
        world.remove("west", name);
    }
    world.kubectl("west", &format!("-n {VISITORS} delete service collector"));
    assert!(heard.is_ok(), "{expected} is not among\n{told}");
}
