//! Live requests, for people who may see them: `hawser-viz tap`.
//!
//! Proxies tell of requests to nobody but this process's identity. Whoever asks here proves who they are by a token
//! that is good for nothing else (its audience is [`AUDIENCE`]); the API server says whose it is, and whether that
//! account may `watch` `pods/tap` of `tap.linkerd.io` in the namespaces asked about. Knows nothing of tables: it passes
//! on [`Tapped`] events as lines of JSON, at the pace that was asked for.

mod ask;
mod client;
mod event;

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use hawser_crd::keys::{DISABLE_TAP, TAP_ENABLED};
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::core::v1::Pod as Object;
use kube::api::{ListParams, PostParams};
use kube::{Api, Client, ResourceExt};
use linkerd2_proxy_api::tap::ObserveRequest;
use linkerd2_proxy_api::tap::tap_client::TapClient;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, sleep_until, timeout};
use tonic::transport::Endpoint;

pub use ask::{Ask, RPS_MAX, To};
pub use client::{Line, watch};
pub use event::{Happening, Tapped};

use crate::kinds::Kind;
use crate::peers::chain;
use crate::pods::{Pod, PodName};
use crate::serve::http1;

/// Where it is asked, on the pod's loopback.
pub const PORT: u16 = 8088;
pub const PATH: &str = "/api/tap";
/// What tokens must be meant for.
pub const AUDIENCE: &str = "tap.linkerd.io";
/// The longest that a token is needed: it is looked at once, when a watch begins.
pub const TOKEN_SECONDS: i64 = 600;
const CONTROL_PORT_ANNOTATION: &str = "config.linkerd.io/control-port";
const CONTROL_PORT: u16 = 4190;
const ASK_BYTES_MAX: usize = 16 * 1024;
/// People who watch at the same time; a proxy tells eight.
const WATCHES_MAX: usize = 8;
/// Proxies in one watch.
const PODS_MAX: usize = 64;
/// Lines on their way to one watcher. When they can't be sent, proxies are heard later, and leave out what is too much.
const LINES_MAX: usize = 256;
const DEADLINE: Duration = Duration::from_secs(5);
/// So long requests that were told of are followed to their ends before others are told of.
const PATIENCE: Duration = Duration::from_secs(2);
/// A line without content, so that a watcher who has gone is noticed.
const HEARTBEAT: Duration = Duration::from_secs(5);

type Body = UnsyncBoxBody<Bytes, Infallible>;
type Refusal = (StatusCode, String);

#[derive(Clone)]
pub(crate) struct Tap {
    client: Client,
    watches: Arc<Semaphore>,
}

impl Tap {
    pub(crate) fn new(client: Client) -> Self {
        Self {
            client,
            watches: Arc::new(Semaphore::new(WATCHES_MAX)),
        }
    }

    /// Serves for ever.
    pub(crate) async fn serve(self, listener: TcpListener) {
        // Those who only try cost a connection; those who watch have places of their own.
        let slots = Arc::new(Semaphore::new(4 * WATCHES_MAX));
        loop {
            let Ok(slot) = slots.clone().acquire_owned().await else {
                return;
            };
            let Ok((socket, _)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let tap = self.clone();
            tokio::spawn(async move {
                let service = service_fn(|request: Request<Incoming>| {
                    let tap = tap.clone();
                    async move { Ok::<_, Infallible>(tap.respond(request).await) }
                });
                let connection = http1().serve_connection(TokioIo::new(socket), service);
                // Whatever ends a connection is the peer's business.
                let _ = connection.await;
                drop(slot);
            });
        }
    }

    async fn respond(&self, request: Request<Incoming>) -> Response<Body> {
        let (status, content, body) = match self.watch(request).await {
            Ok(lines) => (StatusCode::OK, "application/x-ndjson", lines),
            Err((status, why)) => {
                let body = Full::from(format!("{}\n", json!({"error": why})));
                (status, "application/json", body.boxed_unsync())
            }
        };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        response
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static(content));
        response
    }

    async fn watch(&self, request: Request<Incoming>) -> Result<Body, Refusal> {
        if request.uri().path() != PATH || request.method() != Method::POST {
            return Err((
                StatusCode::NOT_FOUND,
                format!("only POST {PATH} is answered here"),
            ));
        }
        let token = bearer(request.headers().get(AUTHORIZATION));
        let token = token
            .ok_or_else(|| (StatusCode::UNAUTHORIZED, "no bearer token".to_owned()))?
            .to_owned();
        let user = timeout(DEADLINE, self.user(token))
            .await
            .map_err(|_| silent())??;
        let body = Limited::new(request.into_body(), ASK_BYTES_MAX).collect();
        let body = timeout(DEADLINE, body).await.map_err(|_| silent())?;
        let wrong = |why: String| (StatusCode::BAD_REQUEST, why);
        let body = body.map_err(|error| wrong(error.to_string()))?.to_bytes();
        let ask: Ask = serde_json::from_slice(&body).map_err(|error| wrong(error.to_string()))?;
        ask.check().map_err(wrong)?;
        timeout(DEADLINE, self.allowed(&user, &ask))
            .await
            .map_err(|_| silent())??;
        let pods = timeout(DEADLINE, self.pods(&ask)).await.map_err(|_| silent())??;
        let place = self.watches.clone().try_acquire_owned();
        let place = place.map_err(|_| {
            let why = format!("{WATCHES_MAX} others are watching already");
            (StatusCode::TOO_MANY_REQUESTS, why)
        })?;
        tracing::info!(
            user = user.username.as_deref().unwrap_or_default(),
            namespace = ask.namespace.as_deref().unwrap_or("all"),
            pods = pods.len(),
            "Requests are watched"
        );
        let (lines, receiver) = mpsc::channel(LINES_MAX);
        let each = ask
            .max_rps
            .div_ceil(u32::try_from(pods.len()).unwrap_or(u32::MAX))
            .max(1);
        let asked = ObserveRequest {
            limit: each,
            r#match: Some(ask.pattern()),
            extract: None,
        };
        for pod in pods {
            tokio::spawn(follow(pod, asked.clone(), lines.clone()));
        }
        tokio::spawn(beat(lines));
        let frames = futures::stream::unfold((receiver, place), async |(mut receiver, place)| {
            let line = receiver.recv().await?;
            Some((Ok::<_, Infallible>(Frame::data(line)), (receiver, place)))
        });
        Ok(StreamBody::new(frames).boxed_unsync())
    }

    /// Whose token it is.
    async fn user(&self, token: String) -> Result<UserInfo, Refusal> {
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: Some(token),
                audiences: Some(vec![AUDIENCE.to_owned()]),
            },
            ..TokenReview::default()
        };
        let reviews: Api<TokenReview> = Api::all(self.client.clone());
        let review = reviews.create(&PostParams::default(), &review).await;
        let status = review.map_err(|error| failed(&error))?.status.unwrap_or_default();
        // An API server that knows no audiences says yes to all.
        let meant = status
            .audiences
            .is_some_and(|all| all.iter().any(|one| one == AUDIENCE));
        match status.user {
            Some(user) if status.authenticated == Some(true) && meant => Ok(user),
            _ => Err((
                StatusCode::UNAUTHORIZED,
                "the token is not one for tap.linkerd.io".into(),
            )),
        }
    }

    /// Whether they may see requests there.
    async fn allowed(&self, user: &UserInfo, ask: &Ask) -> Result<(), Refusal> {
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: user.username.clone(),
                uid: user.uid.clone(),
                groups: user.groups.clone(),
                extra: user.extra.clone(),
                resource_attributes: Some(ResourceAttributes {
                    verb: Some("watch".into()),
                    group: Some("tap.linkerd.io".into()),
                    resource: Some("pods".into()),
                    subresource: Some("tap".into()),
                    namespace: ask.namespace.clone(),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let reviews: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let review = reviews.create(&PostParams::default(), &review).await;
        let status = review.map_err(|error| failed(&error))?.status.unwrap_or_default();
        if status.allowed {
            return Ok(());
        }
        let who = user.username.as_deref().unwrap_or("nobody");
        let place = ask.namespace.as_deref().map_or_else(
            || "all namespaces".to_owned(),
            |namespace| format!("namespace {namespace}"),
        );
        Err((
            StatusCode::FORBIDDEN,
            format!("{who} may not watch pods/tap of tap.linkerd.io in {place}"),
        ))
    }

    async fn pods(&self, ask: &Ask) -> Result<Vec<Watched>, Refusal> {
        let api: Api<Object> = match &ask.namespace {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        };
        let list = api
            .list(&ListParams::default())
            .await
            .map_err(|error| failed(&error))?;
        let found: Vec<&Object> = list
            .items
            .iter()
            .filter(|pod| ask.is_about(&Pod::of(pod)))
            .collect();
        let pods: Vec<Watched> = found.iter().filter_map(|pod| Watched::of(pod)).collect();
        if pods.is_empty() {
            let why = match found.len() {
                0 => "no pod that runs is of that name".to_owned(),
                all => format!(
                    "none of {all} pods may be watched: they have no proxy, were injected before tap was there, or \
                     {DISABLE_TAP} forbids it"
                ),
            };
            return Err((StatusCode::NOT_FOUND, why));
        }
        if pods.len() > PODS_MAX {
            let why = format!("{} pods are too many: at most {PODS_MAX} are watched", pods.len());
            return Err((StatusCode::BAD_REQUEST, why));
        }
        Ok(pods)
    }
}

/// A pod whose requests may be watched.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Watched {
    pod: PodName,
    /// What it belongs to, or itself.
    workload: String,
    tap: SocketAddr,
}

impl Watched {
    fn of(object: &Object) -> Option<Self> {
        let annotation = |key: &str| object.annotations().get(key).map(String::as_str);
        let pod = Pod::of(object);
        let is_allowed = annotation(TAP_ENABLED) == Some("true")
            && matches!(annotation(DISABLE_TAP), None | Some("false"));
        if !is_allowed || !pod.is_running() || pod.proxy.is_none() {
            return None;
        }
        let port = match annotation(CONTROL_PORT_ANNOTATION) {
            Some(port) => port.parse().ok()?,
            None => CONTROL_PORT,
        };
        let ip: IpAddr = pod.ip?;
        let (kind, name) = pod.owner.unwrap_or_else(|| (Kind::Pod, pod.name.name.clone()));
        Some(Self {
            workload: format!("{kind}/{name}"),
            pod: pod.name,
            tap: SocketAddr::new(ip, port),
        })
    }
}

fn bearer(header: Option<&HeaderValue>) -> Option<&str> {
    let (scheme, token) = header?.to_str().ok()?.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

fn silent() -> Refusal {
    (StatusCode::GATEWAY_TIMEOUT, "no answer in time".to_owned())
}

fn failed(error: &kube::Error) -> Refusal {
    (StatusCode::BAD_GATEWAY, chain(error))
}

/// Passes on what one proxy tells, until nobody listens. Each second as many requests are told of as may be.
async fn follow(pod: Watched, asked: ObserveRequest, lines: mpsc::Sender<Bytes>) {
    let following = async {
        loop {
            let began = Instant::now();
            if let Err(error) = round(&pod, &asked, &lines).await {
                let why = chain(&error);
                tracing::info!(pod = %pod.pod, why, "A proxy cannot be watched");
                let line = line(&json!({"pod": pod.pod.to_string(), "error": why}));
                if lines.send(line).await.is_err() {
                    return;
                }
                sleep_until(began + DEADLINE).await;
            }
            sleep_until(began + Duration::from_secs(1)).await;
        }
    };
    tokio::select! {
        () = following => {}
        () = lines.closed() => {}
    }
}

#[derive(Debug, thiserror::Error)]
enum RoundError {
    #[error("connecting to its proxy")]
    Connect(#[source] tonic::transport::Error),
    #[error("its proxy refuses: {}", .0.message())]
    Refused(#[source] Box<tonic::Status>),
}

/// One watch of one proxy: as many requests as were asked for, to their ends if those come soon.
async fn round(pod: &Watched, asked: &ObserveRequest, lines: &mpsc::Sender<Bytes>) -> Result<(), RoundError> {
    let endpoint = Endpoint::try_from(format!("http://{}", pod.tap)).map_err(RoundError::Connect)?;
    let channel = endpoint.connect_timeout(DEADLINE).connect().await;
    let mut tap = TapClient::new(channel.map_err(RoundError::Connect)?);
    let refused = |status| RoundError::Refused(Box::new(status));
    let mut events = tap.observe(asked.clone()).await.map_err(refused)?.into_inner();
    let (mut heads, mut until) = (0, None);
    loop {
        let next = async {
            match until {
                Some(until) => tokio::time::timeout_at(until, events.next())
                    .await
                    .unwrap_or(None),
                None => events.next().await,
            }
        };
        let Some(event) = next.await else {
            return Ok(());
        };
        let Some(told) = Tapped::of(&pod.pod, &pod.workload, event.map_err(refused)?) else {
            continue;
        };
        heads += u32::from(matches!(told.happening, Happening::Request { .. }));
        if heads >= asked.limit && until.is_none() {
            until = Some(Instant::now() + PATIENCE);
        }
        if lines.send(line(&json!(told))).await.is_err() {
            return Ok(());
        }
    }
}

async fn beat(lines: mpsc::Sender<Bytes>) {
    while lines.send(Bytes::from_static(b"\n")).await.is_ok() {
        tokio::time::sleep(HEARTBEAT).await;
    }
}

fn line(value: &serde_json::Value) -> Bytes {
    format!("{value}\n").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(annotations: serde_json::Value) -> Object {
        serde_json::from_value(json!({
            "metadata": {"namespace": "x", "name": "web-1", "annotations": annotations},
            "spec": {"containers": [{"name": "linkerd-proxy"}]},
            "status": {"phase": "Running", "podIP": "10.0.0.1"},
        }))
        .expect("a pod")
    }

    #[test]
    fn only_pods_that_allow_it_are_watched() {
        for (annotations, expected) in [
            (json!({}), None),
            (json!({TAP_ENABLED: "true"}), Some(4190)),
            (json!({TAP_ENABLED: "true", DISABLE_TAP: "true"}), None),
            (json!({TAP_ENABLED: "true", DISABLE_TAP: "yes, please"}), None),
            (json!({TAP_ENABLED: "true", DISABLE_TAP: "false"}), Some(4190)),
            (
                json!({TAP_ENABLED: "true", CONTROL_PORT_ANNOTATION: "5000"}),
                Some(5000),
            ),
            (json!({TAP_ENABLED: "true", CONTROL_PORT_ANNOTATION: "any"}), None),
        ] {
            let watched = Watched::of(&pod(annotations.clone()));
            assert_eq!(watched.map(|one| one.tap.port()), expected, "{annotations}");
        }
        let mut ended = pod(json!({TAP_ENABLED: "true"}));
        ended.status.as_mut().expect("a status").phase = Some("Succeeded".into());
        assert_eq!(Watched::of(&ended), None);
    }

    #[test]
    fn a_token_is_a_bearer_s() {
        for (header, expected) in [
            (Some("Bearer abc"), Some("abc")),
            (Some("bearer  abc"), Some("abc")),
            (Some("Basic abc"), None),
            (Some("Bearer "), None),
            (None, None),
        ] {
            let header = header.map(HeaderValue::from_static);
            assert_eq!(bearer(header.as_ref()), expected);
        }
    }
}
