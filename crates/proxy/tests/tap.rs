//! Who may watch requests, and what they see: two proxies and a gateway on loopback.

mod support;

use std::net::SocketAddr;

use hyper_util::rt::TokioIo;
use linkerd2_proxy_api::tap::tap_client::TapClient;
use linkerd2_proxy_api::tap::tap_event::{self, ProxyDirection, http::Event};
use linkerd2_proxy_api::tap::{ObserveRequest, TapEvent};
use support::*;
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Streaming};

const WEB: &str = "10.0.0.1:80";
const WEB_PATH: &str = "web.ns.svc.cluster.local:80";
const WATCHER: &str = "tap.linkerd-viz.serviceaccount.identity.linkerd.cluster.local";

/// A pod that `WATCHER` may watch.
fn watched(control: &ControlPlane, name: &str, ip: &str) -> Pod {
    let addr = format!("{ip}:0");
    let env = [("TAP_SVC_NAME", WATCHER), ("CONTROL_LISTEN_ADDR", &*addr)];
    Pod::start(control, name, ip, &env)
}

/// The tap of a pod, asked over mutual TLS as `who`, or in plain text.
async fn tap(control: &ControlPlane, pod: &Pod, who: Option<&str>) -> TapClient<Channel> {
    let addr: SocketAddr = pod.proxy.tap[0];
    let identity = pod.identity.clone();
    let tls = who.map(|who| control.credentials(who).client(&identity.parse().unwrap(), false));
    let connector = tower::service_fn(move |_: http::Uri| {
        let (identity, tls) = (identity.clone(), tls.clone());
        async move {
            let socket = TcpStream::connect(addr).await?;
            let stream: Box<dyn Stream> = match tls {
                None => Box::new(socket),
                Some(config) => {
                    let name = rustls_pki_types::ServerName::try_from(identity).unwrap();
                    let tls = tokio_rustls::TlsConnector::from(config);
                    Box::new(tls.connect(name, socket).await?)
                }
            };
            Ok::<_, std::io::Error>(TokioIo::new(stream))
        }
    });
    let endpoint = Endpoint::from_static("http://tap");
    TapClient::new(endpoint.connect_with_connector(connector).await.unwrap())
}

trait Stream: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin> Stream for T {}

async fn watch(control: &ControlPlane, pod: &Pod, limit: u32) -> Streaming<TapEvent> {
    let request = ObserveRequest {
        limit,
        ..ObserveRequest::default()
    };
    let mut tap = tap(control, pod, Some(WATCHER)).await;
    tap.observe(request).await.unwrap().into_inner()
}

/// Everything that is told of as many requests as were asked for.
async fn told(mut events: Streaming<TapEvent>) -> Vec<(TapEvent, Event)> {
    let mut all = Vec::new();
    while let Some(event) = events.message().await.unwrap() {
        let Some(tap_event::Event::Http(http)) = event.event.clone() else {
            panic!("{event:?}")
        };
        all.push((event, http.event.unwrap()));
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn both_proxies_tell_of_a_request_from_its_head_to_its_end() {
    let control = ControlPlane::start().await;
    let app = app("127.0.0.2", "web").await;
    let server = watched(&control, "web", "127.0.0.2");
    let client = watched(&control, "client", "127.0.0.3");
    control.change(|world| {
        let mut endpoint = meshed(app, &server.identity, server.inbound_port());
        endpoint.metric_labels.insert("deployment".into(), "web".into());
        service(world, WEB, WEB_PATH, vec![endpoint]);
    });
    // Certificates are there, or nobody could be asked.
    client.get(WEB, "/before").await;
    let (outbound, inbound) = (
        watch(&control, &client, 1).await,
        watch(&control, &server, 1).await,
    );
    let body = client.get(WEB, "/vote?choice=secret").await.into_body();
    let seen = told(outbound).await;
    let [
        (sent, Event::RequestInit(head)),
        (_, Event::ResponseInit(answer)),
        (_, Event::ResponseEnd(end)),
    ] = seen.as_slice()
    else {
        panic!("{seen:#?}")
    };
    assert_eq!(
        (&*head.path, &*head.authority),
        ("/vote", "web.test"),
        "no query is told"
    );
    assert_eq!((head.headers.as_ref(), answer.http_status), (None, 200));
    assert_eq!((answer.id, end.id), (head.id, head.id));
    assert_eq!(end.response_bytes, body.len() as u64);
    assert_eq!(sent.proxy_direction, ProxyDirection::Outbound as i32);
    let labels = &sent.destination_meta.as_ref().unwrap().labels;
    assert_eq!(
        (&*labels["deployment"], &*labels["server_id"]),
        ("web", &*server.identity)
    );

    let seen = told(inbound).await;
    assert_eq!(seen.len(), 3, "{seen:#?}");
    let (event, _) = &seen[0];
    assert_eq!(event.proxy_direction, ProxyDirection::Inbound as i32);
    assert_eq!(
        event.source_meta.as_ref().unwrap().labels["client_id"],
        client.identity
    );
    assert_eq!(event.route_meta.as_ref().unwrap().labels["kind"], "default");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_watches_but_the_one_who_may() {
    let control = ControlPlane::start().await;
    let server = watched(&control, "web", "127.0.0.2");
    eventually("ready", async || server.admin("/ready").await.status() == 200).await;
    let other = server.identity.replace("web.", "other.");
    for who in [Some(&*other), None] {
        let asked = ObserveRequest {
            limit: 1,
            ..ObserveRequest::default()
        };
        let refused = tap(&control, &server, who).await.observe(asked).await;
        assert_eq!(
            refused.err().map(|status| status.code()),
            Some(Code::Unauthenticated),
            "{who:?}"
        );
    }
    let limitless = tap(&control, &server, Some(WATCHER))
        .await
        .observe(ObserveRequest::default())
        .await;
    assert_eq!(
        limitless.err().map(|status| status.code()),
        Some(Code::InvalidArgument)
    );
    let silent = Pod::start(&control, "silent", "127.0.0.4", &[]);
    assert_eq!(silent.proxy.tap, []);
}
