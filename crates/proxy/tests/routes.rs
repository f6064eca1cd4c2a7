//! What routes say about requests: where they go, what is changed, how long they may take, when they are repeated.

mod support;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use linkerd2_proxy_api::outbound::http_route as api;
use linkerd2_proxy_api::{grpc_route, http_route, http_types, outbound};
use support::*;
use tokio::net::TcpListener;

const WEB: &str = "10.0.0.1:80";
const WEB_PATH: &str = "web.ns.svc.cluster.local:80";

type Answer = Response<BoxBody<Bytes, Infallible>>;

/// An application that answers request number n, from 0, as it is told to.
async fn application<F, Fut>(answer: F) -> (SocketAddr, Arc<AtomicUsize>)
where
    F: Fn(usize, Request<Incoming>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Answer> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.2:0").await.unwrap();
    let (addr, seen) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let counted = seen.clone();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let (answer, counted) = (answer.clone(), counted.clone());
            let service = hyper::service::service_fn(move |request| {
                let answer = answer(counted.fetch_add(1, Relaxed), request);
                async move { Ok::<_, Infallible>(answer.await) }
            });
            tokio::spawn(async move {
                let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                let _ = server.serve_connection(TokioIo::new(socket), service).await;
            });
        }
    });
    (addr, seen)
}

fn with_status(status: u16, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()).boxed());
    *answer.status_mut() = status.try_into().unwrap();
    answer
}

/// Frames, and then nothing, or silence.
fn streamed(frames: Vec<Frame<Bytes>>, ends: bool) -> BoxBody<Bytes, Infallible> {
    use futures::StreamExt as _;
    let frames = futures::stream::iter(frames.into_iter().map(Ok));
    let silence = futures::stream::pending().take(usize::from(!ends));
    BoxBody::new(StreamBody::new(frames.chain(silence)))
}

fn call(message: Option<&'static str>, status: &'static str) -> Answer {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", status.parse().unwrap());
    let data = message.map(|message| Frame::data(message.into()));
    let mut answer = Response::new(streamed(
        data.into_iter().chain([Frame::trailers(trailers)]).collect(),
        true,
    ));
    answer
        .headers_mut()
        .insert("content-type", "application/grpc".parse().unwrap());
    answer
}

fn span(ms: u64) -> Option<prost_types::Duration> {
    Some(Duration::from_millis(ms).try_into().unwrap())
}

/// The rules of both HTTP versions.
fn rules(policy: &mut outbound::OutboundPolicy, change: impl Fn(&mut Vec<api::Rule>)) {
    let kind = policy.protocol.as_mut().unwrap().kind.as_mut().unwrap();
    let outbound::proxy_protocol::Kind::Detect(detect) = kind else {
        unreachable!("policies detect")
    };
    for routes in [
        &mut detect.http1.as_mut().unwrap().routes,
        &mut detect.http2.as_mut().unwrap().routes,
    ] {
        change(&mut routes[0].rules);
    }
}

fn retry(max: u32, start: u32, end: u32) -> api::Retry {
    api::Retry {
        max_retries: max,
        max_request_bytes: 1_024,
        conditions: Some(api::retry::Conditions {
            status_ranges: vec![api::retry::conditions::StatusRange { start, end }],
        }),
        timeout: None,
        backoff: Some(outbound::ExponentialBackoff {
            min_backoff: span(1),
            max_backoff: span(1),
            ..Default::default()
        }),
    }
}

/// A client whose only service is the application, under rules.
async fn client_of(app: SocketAddr, change: impl Fn(&mut Vec<api::Rule>)) -> (ControlPlane, Pod) {
    let control = ControlPlane::start().await;
    let client = Pod::start(&control, "client", "127.0.0.3", &[]);
    control.change(|world| {
        service(world, WEB, WEB_PATH, vec![unmeshed(app)]);
        rules(world.policies.get_mut(WEB).unwrap(), change);
    });
    (control, client)
}

fn post(body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    Request::post("http://web.test/")
        .header("host", "web.test")
        .body(Full::new(body.into()))
        .unwrap()
}

async fn echo(request: Request<Incoming>) -> Bytes {
    request.into_body().collect().await.unwrap().to_bytes()
}

async fn counted(pod: &Pod, name: &str) -> u64 {
    let metrics = pod.admin("/metrics").await.into_body();
    let series = metrics.lines().filter(|line| line.starts_with(name));
    series
        .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
        .sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_answers_are_repeated_with_the_body_as_often_as_the_route_says() {
    let (app, seen) = application(|number, request| async move {
        let body = echo(request).await;
        with_status(if [2, 6].contains(&number) { 200 } else { 503 }, body)
    })
    .await;
    let (_control, client) = client_of(app, |rules| rules[0].retry = Some(retry(2, 500, 599))).await;
    let mut sender = http1(client.connect(WEB).await).await;
    let answer = send(&mut sender, post("asked three times")).await;
    assert_eq!(
        (answer.status().as_u16(), &**answer.body()),
        (200, "asked three times")
    );
    assert_eq!(seen.load(Relaxed), 3);
    let answer = send(&mut sender, post("in vain")).await;
    assert_eq!((answer.status().as_u16(), &**answer.body()), (503, "in vain"));
    assert_eq!(seen.load(Relaxed), 6);
    assert_eq!(
        counted(&client, "outbound_http_route_retry_requests_total{").await,
        4
    );
    assert_eq!(
        counted(&client, "outbound_http_route_retry_successes_total{").await,
        1
    );
    assert_eq!(
        counted(&client, "outbound_http_route_retry_limit_exceeded_total{").await,
        1
    );

    // 6 is a good one; what is too large to keep has one chance only.
    assert_eq!(send(&mut sender, post("good")).await.status(), 200);
    assert_eq!(send(&mut sender, post(vec![b'x'; 2_000])).await.status(), 503);
    assert_eq!(seen.load(Relaxed), 8);
    assert_eq!(
        counted(&client, "outbound_http_route_retry_overflow_total{").await,
        1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_repeated_by_their_status_unless_a_message_has_come() {
    let (app, seen) = application(|number, _| async move {
        match number {
            0 => call(None, "14"),
            1 => call(Some("good"), "0"),
            _ => call(Some("begun"), "14"),
        }
    })
    .await;
    let control = ControlPlane::start().await;
    let client = Pod::start(&control, "client", "127.0.0.3", &[]);
    control.change(|world| {
        service(world, WEB, WEB_PATH, vec![unmeshed(app)]);
        let policy = world.policies.get_mut(WEB).unwrap();
        let mut backends = Vec::new();
        rules(policy, |_| {});
        let kind = policy.protocol.as_mut().unwrap().kind.take().unwrap();
        let outbound::proxy_protocol::Kind::Detect(detect) = kind else {
            unreachable!("policies detect")
        };
        let rule = detect.http2.unwrap().routes.remove(0).rules.remove(0);
        if let Some(api::distribution::Kind::FirstAvailable(all)) = rule.backends.unwrap().kind {
            backends.extend(
                all.backends
                    .into_iter()
                    .map(|b| outbound::grpc_route::RouteBackend {
                        backend: b.backend,
                        ..Default::default()
                    }),
            );
        }
        let only = |service: &str| grpc_route::GrpcRouteMatch {
            rpc: Some(grpc_route::GrpcRpcMatch {
                service: service.into(),
                method: String::new(),
            }),
            ..Default::default()
        };
        let rule = outbound::grpc_route::Rule {
            matches: vec![only("svc")],
            backends: Some(outbound::grpc_route::Distribution {
                kind: Some(outbound::grpc_route::distribution::Kind::FirstAvailable(
                    outbound::grpc_route::distribution::FirstAvailable { backends },
                )),
            }),
            retry: Some(outbound::grpc_route::Retry {
                max_retries: 1,
                conditions: Some(outbound::grpc_route::retry::Conditions {
                    unavailable: true,
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        policy.protocol.as_mut().unwrap().kind = Some(outbound::proxy_protocol::Kind::Grpc(
            outbound::proxy_protocol::Grpc {
                routes: vec![outbound::GrpcRoute {
                    metadata: named("calls"),
                    rules: vec![rule],
                    ..Default::default()
                }],
                failure_accrual: None,
            },
        ));
    });
    let mut sender = http2(client.connect(WEB).await).await;
    let mut ask = async |path: &str| {
        let request =
            Request::post(format!("http://web.test{path}")).header("content-type", "application/grpc");
        let answer = sender.send_request(request.body(Full::default()).unwrap()).await;
        let (head, body) = answer.unwrap().into_parts();
        let body = body.collect().await.unwrap();
        let trailers = body.trailers().cloned().unwrap_or(head.headers);
        (
            trailers["grpc-status"].to_str().unwrap().to_owned(),
            body.to_bytes(),
        )
    };
    assert_eq!(ask("/svc/Method").await, ("0".into(), "good".into()));
    assert_eq!(ask("/svc/Method").await, ("14".into(), "begun".into()));
    assert_eq!(seen.load(Relaxed), 3);
    assert_eq!(
        ask("/other/Method").await,
        ("5".into(), "".into()),
        "no such route"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_may_ask_for_repetition_where_its_route_listens() {
    let (app, seen) = application(|number, request| async move {
        let heard = request.headers().contains_key("l5d-retry-http");
        assert_eq!(heard, number == 2, "{number}");
        with_status(if number == 1 { 200 } else { 502 }, "")
    })
    .await;
    let asking = || {
        let mut request = post("");
        let value = "gateway-error".parse().unwrap();
        request.headers_mut().insert("l5d-retry-http", value);
        request
    };
    let (control, client) = client_of(app, |rules| rules[0].allow_l5d_request_headers = true).await;
    let mut sender = http1(client.connect(WEB).await).await;
    assert_eq!(send(&mut sender, asking()).await.status(), 200);
    assert_eq!(seen.load(Relaxed), 2);
    // Elsewhere the header is the application's business.
    control.change(|world| service(world, "10.0.0.2:80", WEB_PATH, vec![unmeshed(app)]));
    let mut sender = http1(client.connect("10.0.0.2:80").await).await;
    assert_eq!(send(&mut sender, asking()).await.status(), 502);
    assert_eq!(seen.load(Relaxed), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_and_requests_have_their_time_and_the_connection_is_kept() {
    let (app, seen) = application(|number, _| async move {
        if number < 3 {
            std::future::pending::<()>().await;
        }
        with_status(200, "at last")
    })
    .await;
    let (_control, client) = client_of(app, |rules| {
        rules[0].timeouts = Some(http_route::Timeouts {
            request: span(150),
            ..Default::default()
        });
        rules[0].retry = Some(api::Retry {
            timeout: span(50),
            ..retry(1, 599, 599)
        });
    })
    .await;
    let mut sender = http1(client.connect(WEB).await).await;
    // The first attempt has 50 ms, the last what is left.
    let asked_at = Instant::now();
    let late = send(&mut sender, get("/")).await;
    assert!(asked_at.elapsed() >= Duration::from_millis(150));
    assert_eq!((late.status().as_u16(), seen.load(Relaxed)), (504, 2));
    assert_eq!(late.headers()["l5d-proxy-error"], "request timed out");
    assert!(!late.headers().contains_key("connection"), "{late:?}");
    assert_eq!(send(&mut sender, get("/")).await.body(), "at last");
    assert_eq!(seen.load(Relaxed), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_has_begun_is_cut_when_it_takes_too_long_or_falls_silent() {
    for timeouts in [
        http_route::Timeouts {
            response: span(100),
            ..Default::default()
        },
        http_route::Timeouts {
            idle: span(100),
            ..Default::default()
        },
    ] {
        let (app, _) = application(|_, request| async move {
            let mut answer = Response::new(streamed(vec![Frame::data("begun".into())], false));
            if let Some(kind) = request.headers().get("content-type") {
                answer.headers_mut().insert("content-type", kind.clone());
            }
            answer
        })
        .await;
        let (_control, client) = client_of(app, |rules| rules[0].timeouts = Some(timeouts)).await;
        let mut sender = http2(client.connect(WEB).await).await;
        let mut ask = async |kind: &str| {
            let request = Request::post("http://web.test/").header("content-type", kind);
            let answer = sender.send_request(request.body(Full::default()).unwrap()).await;
            within(answer.unwrap().into_body().collect()).await
        };
        let cut = ask("text/plain").await.unwrap_err();
        let reset = std::error::Error::source(&cut).and_then(|e| e.downcast_ref::<h2::Error>());
        assert_eq!(
            reset.and_then(h2::Error::reason),
            Some(h2::Reason::CANCEL),
            "{cut:?}"
        );
        // Calls are told in their own way.
        let told = ask("application/grpc").await.unwrap();
        assert_eq!(told.trailers().unwrap()["grpc-status"], "4");
        assert_eq!(told.to_bytes(), "begun");
    }
}

fn header(name: &str, value: &str) -> Option<http_types::Headers> {
    Some(http_types::Headers {
        headers: vec![http_types::headers::Header {
            name: name.into(),
            value: value.as_bytes().to_vec(),
        }],
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_choose_by_path_method_and_header_and_filters_change_what_passes() {
    let (a, b) = (app("127.0.0.2", "a").await, app("127.0.0.2", "b").await);
    let control = ControlPlane::start().await;
    let client = Pod::start(&control, "client", "127.0.0.3", &[]);
    control.change(|world| {
        for (addr, path, app) in [
            ("10.0.0.11:80", "a.ns.svc.cluster.local:80", a),
            ("10.0.0.12:80", "b.ns.svc.cluster.local:80", b),
        ] {
            service(world, addr, path, vec![unmeshed(app)]);
        }
        service(world, WEB, WEB_PATH, vec![]);
        // Rules whose backends are those of the other services.
        let backends = |world: &mut World, of: &str| {
            let mut found = None;
            rules(world.policies.get_mut(of).unwrap(), |_| {});
            let policy = world.policies[of].clone();
            if let Some(outbound::proxy_protocol::Kind::Detect(detect)) = policy.protocol.unwrap().kind
                && let Some(api::distribution::Kind::FirstAvailable(mut all)) = detect
                    .http1
                    .unwrap()
                    .routes
                    .remove(0)
                    .rules
                    .remove(0)
                    .backends
                    .unwrap()
                    .kind
            {
                found = Some(all.backends.remove(0));
            }
            found.unwrap()
        };
        let (to_a, mut to_b) = (backends(world, "10.0.0.11:80"), backends(world, "10.0.0.12:80"));
        to_b.filters = vec![
            api::Filter {
                kind: Some(api::filter::Kind::RequestHeaderModifier(
                    http_route::RequestHeaderModifier {
                        set: header("x-for-b", "only"),
                        ..Default::default()
                    },
                )),
            },
            api::Filter {
                kind: Some(api::filter::Kind::ResponseHeaderModifier(
                    http_route::ResponseHeaderModifier {
                        add: header("x-from-b", "told"),
                        ..Default::default()
                    },
                )),
            },
        ];
        let among = |backends: &[(&api::RouteBackend, u32)]| {
            let backends = backends
                .iter()
                .map(|(backend, weight)| api::WeightedRouteBackend {
                    backend: Some((*backend).clone()),
                    weight: *weight,
                });
            Some(api::Distribution {
                kind: Some(api::distribution::Kind::RandomAvailable(
                    api::distribution::RandomAvailable {
                        backends: backends.collect(),
                    },
                )),
            })
        };
        let prefix = |path: &str| http_route::PathMatch {
            kind: Some(http_route::path_match::Kind::Prefix(path.into())),
        };
        let canary = http_route::HeaderMatch {
            name: "x-canary".into(),
            value: Some(http_route::header_match::Value::Exact(b"yes".to_vec())),
        };
        let moved = http_route::RequestRedirect {
            path: Some(http_route::PathModifier {
                replace: Some(http_route::path_modifier::Replace::Prefix("/new".into())),
            }),
            status: 302,
            ..Default::default()
        };
        rules(world.policies.get_mut(WEB).unwrap(), |rules| {
            *rules = vec![
                api::Rule {
                    backends: among(&[(&to_a, 1), (&to_b, 0)]),
                    ..Default::default()
                },
                api::Rule {
                    matches: vec![http_route::HttpRouteMatch {
                        path: Some(prefix("/")),
                        headers: vec![canary.clone()],
                        method: Some(http::Method::GET.into()),
                        ..Default::default()
                    }],
                    backends: among(&[(&to_a, 0), (&to_b, 1)]),
                    ..Default::default()
                },
                api::Rule {
                    matches: ["/other", "/old"]
                        .map(|path| http_route::HttpRouteMatch {
                            path: Some(prefix(path)),
                            ..Default::default()
                        })
                        .to_vec(),
                    filters: vec![api::Filter {
                        kind: Some(api::filter::Kind::Redirect(moved.clone())),
                    }],
                    backends: among(&[(&to_a, 1)]),
                    ..Default::default()
                },
            ];
        });
    });
    let mut sender = http1(client.connect(WEB).await).await;
    let mut ask = async |method: &str, path: &str, canary: bool| {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "web.test");
        if canary {
            request = request.header("x-canary", "yes");
        }
        send(&mut sender, request.body(Full::default()).unwrap()).await
    };
    let plain = ask("GET", "/", false).await;
    assert!(plain.body().starts_with("a HTTP/1.1 GET /\n"), "{plain:?}");
    assert!(!plain.body().contains("x-for-b"), "{plain:?}");
    let canary = ask("GET", "/x", true).await;
    assert!(canary.body().starts_with("b HTTP/1.1 GET /x\n"), "{canary:?}");
    assert!(canary.body().contains("x-for-b: only\n"), "{canary:?}");
    assert_eq!(canary.headers()["x-from-b"], "told");
    assert!(
        ask("POST", "/x", true).await.body().starts_with("a "),
        "another method"
    );
    let moved = ask("GET", "/old/page?q", false).await;
    assert_eq!(
        (moved.status().as_u16(), &moved.headers()["location"]),
        (302, &"http://web.test/new/page?q".parse().unwrap())
    );
}
