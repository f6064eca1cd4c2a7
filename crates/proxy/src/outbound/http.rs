//! HTTP to the world: each request is routed, balanced, sent and answered on its own.
//!
//! The connection that a request came on decides nothing but its version. Requests to meshed endpoints share one
//! HTTP/2 connection per endpoint and worker, whatever they came as.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use futures::future::LocalBoxFuture;
use http::uri::Authority;
use http::{HeaderValue, Method, StatusCode, Version, header};
use http_body_util::BodyExt as _;
use hyper::body::Body as _;
use hyper::upgrade::OnUpgrade;
use rand::Rng as _;
use tokio_util::task::TaskTracker;

use crate::answer::{RequestKind, Why, reached};
use crate::body::{Body, First, grpc_status, grpc_status_of};
use crate::http_rules as rules;
use crate::late::Late;
use crate::limits::BODY_MAX;
use crate::live::Live;
use crate::message::{Head, Request, Response, Value};
use crate::metrics::Labels;
use crate::route::{self, Filter, HttpRoute, Matches, PathChange};
use crate::snapshot::{Breaker, Distribution, EndpointTls, Hint, Outbound, Protocol};
use crate::tap;
use crate::transport::Conn;
use crate::wire::h1_server::{self, Served};
use crate::wire::{Incoming, SendError};
use crate::worker::{Http, Worker, join_upgraded, serve_http};

use super::balancer::{Course, Patience};
use super::circuit::{Attempt, Outcome};
use super::peer::{Busy, H1Sender, Peer, Sender};
use super::replay::{Replay, RequestBody};
use super::retry::{Attempts, Fate, Retries};
use super::telemetry::{End, Finish, Grpc, HttpMetrics, ResponseEnd};
use super::{Chosen, KnownTarget};

/// How often a request that nobody takes is led elsewhere; each time it may wait until fail-fast.
const FOLLOWED_MAX: u32 = 2;

pub(crate) type ResponseBody = Body<ResponseEnd<Done>>;

/// Settles a response: the load of its endpoint, and its HTTP/1 connection if it had one.
pub(crate) struct Done {
    busy: Busy,
    h1: Option<Box<Kept>>,
    attempt: Option<Attempt>,
    idle_max: usize,
}

/// An HTTP/1 connection, and the host that it was used for.
pub(crate) type Kept = (H1Sender, Box<[u8]>);

impl Finish for Done {
    fn finish(mut self, end: End) {
        // What was cut short says nothing about the connection's state.
        if matches!(end, End::Complete(_))
            && let Some(kept) = self.h1.take()
        {
            let (sender, host) = *kept;
            self.busy.peer().keep_h1(sender, host, self.idle_max);
        }
        if let Some(attempt) = self.attempt.take() {
            match end {
                End::Complete(outcome) => attempt.ended(outcome),
                End::Broken => attempt.ended(Outcome::Bad),
                End::Abandoned => {}
            }
        }
    }
}

impl Done {
    pub(crate) fn new(busy: Busy, h1: Option<Box<Kept>>, attempt: Option<Attempt>, idle_max: usize) -> Self {
        Self {
            busy,
            h1,
            attempt,
            idle_max,
        }
    }
}

/// Serves one client connection.
pub(crate) async fn serve(
    worker: &Rc<Worker>,
    conn: Conn,
    version: Http,
    known: Rc<KnownTarget>,
    client_addr: SocketAddr,
) -> Result<(), hyper::Error> {
    let drain = worker.shared.drain.outbound.clone();
    let config = worker.shared.config.clone();
    let last = RefCell::new(known.live.get());
    let client = Rc::new((worker.clone(), known, last));
    let shared = client.clone();
    let handle = move |mut request: Request<Incoming>| {
        let client = shared.clone();
        async move {
            let (worker, known, last) = &*client;
            let kind = RequestKind::of(&request.head);
            let version = request.version;
            if rules::ends_here(&mut request) {
                return Ok(reached(version, Some("outbound")));
            }
            if worker.shared.taps.want(&request.head) {
                let labels = BTreeMap::from([("tls".to_owned(), "no_identity".to_owned())]);
                request.extensions.insert(tap::Client {
                    addr: client_addr,
                    labels,
                });
            }
            let outbound = current(known, last);
            match exchange(
                worker,
                &worker.outbound_tasks,
                &known.live,
                outbound.as_deref(),
                request,
                None,
            )
            .await
            {
                Ok(response) => {
                    known
                        .carried
                        .set(response.extensions.get::<Uncarried>().is_none());
                    Ok(response)
                }
                Err(why) => {
                    count(worker, &why);
                    tracing::debug!(error = why.message(), "Request failed");
                    if let Some(reset) = why.reset(version) {
                        return Err(reset);
                    }
                    let tell = worker.shared.config.outbound.informational_headers;
                    Ok(why.response(version, &kind, tell.then_some("")))
                }
            }
        }
    };
    let mut conn = conn;
    if version == Http::One {
        let limit = config.outbound.http.head_timeout;
        // What goes on as HTTP/1 keeps the spelling of its headers, which only the library knows.
        let ours = || client.1.carried.get();
        match h1_server::serve(conn, limit, &drain, ours, &handle).await {
            Served::Over => return Ok(()),
            Served::Odd(rest) => conn = rest,
        }
    }
    Box::pin(serve_http(conn, version, &config.outbound.http, &drain, handle)).await
}

/// What is said of a request whose body can't be read to its end.
pub(crate) const BODY_BROKEN: &str = "the request's body is malformed or broke off";

/// On an answer: its HTTP/1 request went on as HTTP/1.
#[derive(Clone, Copy, Debug)]
struct Uncarried;

/// What is known now; a target that turned opaque keeps its HTTP policy for connections that are HTTP already.
fn current(known: &KnownTarget, last: &RefCell<Option<Arc<Outbound>>>) -> Option<Arc<Outbound>> {
    let now = known.live.load();
    let mut last = last.borrow_mut();
    if let Some(now) = &*now
        && !matches!(now.protocol, Protocol::Opaque(_))
        && last.as_ref().is_none_or(|last| !Arc::ptr_eq(last, now))
    {
        *last = Some(now.clone());
    }
    last.clone()
}

pub(crate) fn count(worker: &Worker, why: &Why) {
    worker
        .metrics
        .counter(
            "outbound_http_errors_total",
            Labels::new().with("error", why.label()),
        )
        .inc();
}

/// Sends one request along its route and returns the answer, or says why there is none.
///
/// `outbound` is what `policy` says, or said when the connection was still HTTP's.
/// What it turns into by an upgrade belongs to `tasks` and lasts until `revoked`.
pub(crate) async fn exchange(
    worker: &Rc<Worker>,
    tasks: &TaskTracker,
    policy: &Live<Outbound>,
    outbound: Option<&Outbound>,
    mut request: Request<Incoming>,
    revoked: Option<LocalBoxFuture<'static, ()>>,
) -> Result<Response<ResponseBody>, Why> {
    rules::check(&request).map_err(Why::Malformed)?;
    let config = &worker.shared.config;
    let most = config.outbound.in_flight_max.div_ceil(config.workers);
    let _entered = worker.outbound.in_flight.enter(most)?;
    let outbound = outbound.ok_or(Why::Internal("unexpected error"))?;
    let routes = routes_of(outbound, request.version).ok_or(Why::Internal("unexpected error"))?;
    let upgrade = rules::wants_upgrade(&request).then(|| request.extensions.remove::<OnUpgrade>());
    if upgrade.is_none() {
        rules::strip_hop_by_hop(&mut request.head);
    }
    let required = rules::take_words(&mut request.head, [rules::REQUIRE_ID, rules::DST_OVERRIDE]);

    let host = rules::host_of(&request);
    let route = route::best(routes, |r| &r.matches, host, &request.method, &request.head);
    let route = route.ok_or(Why::NoRoute)?;
    for filter in &route.filters {
        apply(filter, &route.matches, &mut request)?;
    }
    let limits = route.limits.of_request(&mut request.head);
    let retry = limits.retry.as_ref();
    let mut late = limits.timeouts.any().then(|| Late::new(limits.timeouts));
    let is_connect = request.method == Method::CONNECT;
    let request = Replay::new(
        request,
        retry.map_or(BODY_MAX, |retry| retry.body_max),
        late.as_ref().map(|late| late.progress().clone()),
    );
    let retries = Retries::new(retry, &route.source, &worker.metrics);
    // Pinned here, it is moved once; awaited in two places, it would have a place in each.
    let mut sending = pin!(send(
        worker,
        Way {
            policy,
            outbound,
            route,
        },
        retries,
        request,
        upgrade.is_some(),
        required.as_ref(),
    ));
    let mut response = match &mut late {
        None => sending.await?,
        Some(late) => tokio::select! {
            biased;
            sent = sending.as_mut() => sent?,
            () = late.ended() => return Err(Why::RequestTimeout),
        },
    };
    if let Some(late) = late {
        let grpc = RequestKind::of(&response.head).grpc;
        response = response.map(|body| body.limited(late, grpc));
    }
    let switched =
        response.status == StatusCode::SWITCHING_PROTOCOLS || (is_connect && response.status.is_success());
    match upgrade {
        Some(client) if switched => {
            if let (Some(client), Some(server)) = (client, response.extensions.remove::<OnUpgrade>()) {
                join_upgraded(tasks, client, server, revoked);
            }
            if is_connect {
                response.head.remove(header::CONTENT_LENGTH);
                response.head.remove(header::TRANSFER_ENCODING);
            }
        }
        _ => rules::strip_hop_by_hop(&mut response.head),
    }
    for filter in &route.filters {
        if let Filter::ResponseHeaders(change) = filter {
            change.apply(&mut response.head);
        }
    }
    Ok(response)
}

pub(crate) fn routes_of(outbound: &Outbound, version: Version) -> Option<&[HttpRoute]> {
    match &outbound.protocol {
        Protocol::Detect { http1, http2, .. } => Some(match version {
            Version::HTTP_2 => http2,
            _ => http1,
        }),
        Protocol::Http1(http) | Protocol::Http2(http) => Some(http),
        Protocol::Opaque(_) | Protocol::Refused => None,
    }
}

/// The rule of the same resource, if that has only one.
fn same_rule<'a>(outbound: &'a Outbound, version: Version, route: &HttpRoute) -> Option<&'a HttpRoute> {
    let mut same = routes_of(outbound, version)?
        .iter()
        .filter(|other| other.source == route.source);
    let only = same.next()?;
    same.next().is_none().then_some(only)
}

fn apply<B>(filter: &Filter, matches: &Matches, request: &mut Request<B>) -> Result<(), Why> {
    match filter {
        Filter::RequestHeaders(change) => change.apply(&mut request.head),
        Filter::ResponseHeaders(_) => {}
        Filter::Fail {
            status,
            grpc,
            message,
            numerator,
            denominator,
        } => {
            if rand::rng().random_range(0..*denominator) < *numerator {
                return Err(Why::Injected {
                    status: *status,
                    grpc: *grpc,
                    message: message.clone(),
                });
            }
        }
        Filter::Redirect {
            scheme,
            host,
            path,
            port,
            status,
        } => {
            let head = &request.head;
            let scheme = scheme.as_deref().or_else(|| head.scheme()).unwrap_or("http");
            let host = host.as_deref().unwrap_or_else(|| rules::host_of(request));
            let query = head.query().map(|q| format!("?{q}")).unwrap_or_default();
            let path = match path {
                None => head.path().to_owned(),
                Some(PathChange::Full(path)) => path.clone(),
                Some(PathChange::Prefix(replacement)) => {
                    let rest = matches.behind_prefix(head.path());
                    let rest = rest.ok_or(Why::Internal("redirect of a path without its prefix"))?;
                    match format!("{}{rest}", replacement.trim_end_matches('/')) {
                        empty if empty.is_empty() => "/".to_owned(),
                        path => path,
                    }
                }
            };
            let port = port.filter(|port| !matches!((scheme, port), ("http", 80) | ("https", 443)));
            let port = port.map(|port| format!(":{port}")).unwrap_or_default();
            return Err(Why::Redirected {
                status: *status,
                location: format!("{scheme}://{host}{port}{path}{query}"),
            });
        }
    }
    Ok(())
}

/// One sending of a request, until its answer's head: what is told of it afterwards.
struct Sending {
    metrics: Rc<HttpMetrics>,
    attempt: Option<Attempt>,
    busy: Busy,
    started_at: Instant,
}

impl Sending {
    fn to(worker: &Worker, peer: &Rc<Peer>, breaker: Option<Breaker>) -> Self {
        Self {
            metrics: peer.http_metrics(worker),
            attempt: breaker.map(|breaker| Attempt::new(peer, breaker)),
            busy: peer.busy(),
            started_at: Instant::now(),
        }
    }

    /// It has no answer that is passed on.
    fn ended(self, status: StatusCode, grpc: Grpc, complete: bool) {
        self.metrics.requests.inc();
        let success = self
            .metrics
            .response(status, grpc, complete, self.started_at.elapsed());
        let code = match grpc {
            Grpc::Status(code) => code,
            Grpc::No => None,
        };
        if let Some(attempt) = self.attempt {
            attempt.ended(Outcome::of(success, status, code));
        }
    }
}

/// Reads a call's status if it comes first. What begins with a message isn't held back.
async fn peek(response: &mut Response<Incoming>) -> (First, Option<u32>) {
    let first = response.body.frame().await;
    let trailers = first
        .as_ref()
        .and_then(|frame| frame.as_ref().ok()?.trailers_ref());
    let code = trailers.and_then(grpc_status);
    (first, code)
}

/// What a request goes by: the rule that takes it, where that is from, and what is said by now.
struct Way<'a> {
    policy: &'a Live<Outbound>,
    outbound: &'a Outbound,
    route: &'a HttpRoute,
}

async fn send(
    worker: &Rc<Worker>,
    way: Way<'_>,
    mut retries: Retries<'_>,
    mut request: Replay,
    upgrade: bool,
    required: Option<&HeaderValue>,
) -> Result<Response<ResponseBody>, Why> {
    let Way {
        policy,
        outbound,
        route,
    } = way;
    let config = &worker.shared.config.outbound;
    let failfast = config.http_failfast;
    let version = request.request().version;
    let backends = match &route.backends {
        Distribution::FirstAvailable(all) => all.len(),
        Distribution::RandomAvailable(all) => all.len(),
    };
    let mut attempts = Attempts::new(backends, retries.limit());
    let mut fresh = false;
    let (mut later, mut followed): (Option<Arc<Outbound>>, _) = (None, 0);
    loop {
        let last = attempts.begin();
        let rule = later
            .as_deref()
            .and_then(|later| same_rule(later, version, route))
            .unwrap_or(route);
        let chosen = worker
            .outbound
            .choose(worker, &rule.backends, outbound.authority.as_ref(), failfast)
            .await?;
        let Chosen {
            balancer,
            patience,
            filters,
        } = chosen;
        let patience = if last { Patience::Wait(failfast) } else { patience };
        let by_h2 = |peer: &Peer| !upgrade && (version == Version::HTTP_2 || carried(peer));
        let host = request.request().head.get(header::HOST).filter(|_| !fresh);
        let kept_for = host.map(Value::as_bytes);
        let leads_elsewhere =
            |now: &Outbound| same_rule(now, version, route).is_some_and(|now| now.backends != rule.backends);
        let course = Course {
            policy,
            leads_elsewhere: &leads_elsewhere,
        };
        let acquired = balancer.acquire(
            worker,
            patience,
            config.http_queue,
            Some(&course),
            |peer| !by_h2(peer),
            |peer| async move {
                if by_h2(&peer) {
                    peer.h2(worker).await.map(Sender::H2)
                } else {
                    peer.h1(worker, kept_for).await.map(Sender::H1)
                }
            },
        );
        let (peer, sender) = match acquired.await {
            Ok(acquired) => acquired,
            Err(_) if !last && patience == Patience::None => continue,
            // Nobody is here, and what comes now goes elsewhere: so does this.
            Err(Why::FailFast) if followed < FOLLOWED_MAX && course.changed() => {
                followed += 1;
                later = policy.get();
                continue;
            }
            Err(Why::FailFast) if !last => {
                let pause = retries.again(&request).ok_or(Why::FailFast)?;
                tokio::time::sleep(pause).await;
                continue;
            }
            Err(why) => return Err(why),
        };
        if let Some(required) = required {
            let id = match &peer.endpoint.tls {
                EndpointTls::Mutual { id, .. } => Some(id.as_str().as_bytes()),
                _ => None,
            };
            if id != Some(required.as_bytes()) {
                return Err(Why::IdentityRequired);
            }
        }
        let h2 = matches!(sender, Sender::H2(_));
        // Nearly all are sent once: their headers are not copied for a second time that may come.
        let lent = h2 && filters.is_none() && retries.limit() == 0 && peer.endpoint.authority.is_none();
        let sent = match lent {
            true => request.lend(),
            false => request.take(last, !h2),
        };
        let mut sent = sent.ok_or(Why::Internal("unexpected error"))?;
        for filter in filters.iter().flat_map(|backend| &backend.filters) {
            apply(filter, &route.matches, &mut sent)?;
        }
        let mut told = tell(worker, &request, &sent, &peer, route);
        prepare(&mut sent, &peer, h2);
        let mut sending = Sending::to(worker, &peer, outbound.breaker);
        let answer = async {
            match sender {
                Sender::H2(sender) => (sender.send(&mut sent).await.map_err(SendError::from), None),
                Sender::H1(mut sender) => {
                    rules::announce_content(&mut sent);
                    let host = sent.head.get(header::HOST).map(|host| host.as_bytes().into());
                    let sent = http::Request::from(std::mem::take(&mut sent));
                    let answer = sender.try_send_request(sent).await;
                    let answer = answer
                        .map(|response| response.map(Incoming::Library).into())
                        .map_err(SendError::from);
                    (answer, host.map(|host| Box::new((sender, host))))
                }
            }
        };
        let answer = match retries.timeout().filter(|_| !last) {
            None => Some(answer.await),
            Some(limit) => Box::pin(tokio::time::timeout(limit, answer)).await.ok(),
        };
        let Some((answer, h1)) = answer else {
            sending.ended(StatusCode::GATEWAY_TIMEOUT, Grpc::No, false);
            let pause = retries.again(&request).ok_or(Why::RequestTimeout)?;
            tokio::time::sleep(pause).await;
            continue;
        };
        let mut response = match answer {
            Ok(response) => response,
            Err(error) => {
                if request.is_broken() {
                    // The endpoint is not to blame.
                    sending.attempt = None;
                    sending.ended(StatusCode::BAD_REQUEST, Grpc::No, false);
                    return Err(Why::Malformed(BODY_BROKEN));
                }
                if lent {
                    request.give_back(&mut sent);
                }
                let fate = Fate::of_sending(&error);
                tracing::debug!(endpoint = %peer.endpoint.addr, %error, "Request failed");
                match fate {
                    Fate::Broken | Fate::Failed => sending.ended(StatusCode::BAD_GATEWAY, Grpc::No, false),
                    // It is there and wants nothing now.
                    Fate::Refused => peer.failed(config.backoff),
                    Fate::Unsent | Fate::GoneAway => {}
                }
                if !attempts.again(fate, &request, &peer, &worker.metrics, Instant::now()) {
                    return Err(Why::of_sending(&error));
                }
                fresh = true;
                continue;
            }
        };
        peer.budget.request();
        let answered_at = Instant::now();
        let rtt = answered_at.duration_since(sending.started_at);
        sending.busy.answered = Some((answered_at, rtt));
        let (status, is_grpc) = (response.status, RequestKind::of(&response.head).grpc);
        if let Some(told) = &mut told {
            told.answered(status, &response.head);
        }
        let said = grpc_status_of(&response.head);
        let (mut first, mut code) = (None, said);
        if retries.asks_for_codes() && is_grpc && code.is_none() && !response.body.is_end_stream() {
            let (frame, told) = peek(&mut response).await;
            (first, code) = (Some(frame), told);
        }
        if retries.wants(status, code)
            && !last
            && let Some(pause) = retries.again(&request)
        {
            drop(response);
            sending.ended(status, if is_grpc { Grpc::Status(code) } else { Grpc::No }, true);
            tokio::time::sleep(pause).await;
            continue;
        }
        retries.answered(status, code);
        if version < Version::HTTP_2 {
            rules::answer_from_http2(&mut response, version);
            if !h2 {
                response.extensions.insert(Uncarried);
            }
        }
        tidy(&mut response.head, &peer);
        for filter in filters.iter().flat_map(|backend| &backend.filters) {
            if let Filter::ResponseHeaders(change) = filter {
                change.apply(&mut response.head);
            }
        }
        let Sending {
            metrics,
            attempt,
            busy,
            started_at,
        } = sending;
        metrics.requests.inc();
        let end = ResponseEnd {
            metrics,
            status,
            grpc: said,
            is_grpc,
            started_at,
            answered_at,
            told,
            finish: Some(Done::new(busy, h1, attempt, config.idle_max)),
        };
        return Ok(response.map(|body| Body::observed(body, first, end)));
    }
}

/// Tells those who watch of a request that is about to be sent.
fn tell(
    worker: &Worker,
    request: &Replay,
    sent: &Request<RequestBody>,
    peer: &Peer,
    route: &HttpRoute,
) -> Option<Box<tap::Told>> {
    // There only if somebody wanted to know when the request came.
    let source = request.request().extensions.get::<tap::Client>()?;
    let is_watched = worker.shared.taps.are_watched();
    let mut labels = if is_watched {
        peer.endpoint.labels.clone()
    } else {
        BTreeMap::new()
    };
    let tls = match &peer.endpoint.tls {
        EndpointTls::Mutual { id, .. } => {
            labels.insert("server_id".to_owned(), id.as_str().to_owned());
            "true"
        }
        EndpointTls::No(_) | EndpointTls::Unusable => "no_identity",
    };
    labels.insert("tls".to_owned(), tls.to_owned());
    let route = [
        ("group", &route.source.group),
        ("kind", &route.source.kind),
        ("name", &route.source.name),
    ];
    let route = route.iter().filter(|_| is_watched);
    worker.shared.taps.tell(&tap::Seen {
        direction: tap::Direction::Outbound,
        source,
        destination: peer.endpoint.addr,
        destination_labels: labels,
        route_labels: route
            .map(|(key, value)| ((*key).to_owned(), value.to_string()))
            .collect(),
        method: &sent.method,
        scheme: sent.head.scheme().unwrap_or("http"),
        authority: rules::authority_of(sent),
        path: sent.head.path(),
        headers: &sent.head,
    })
}

/// Is HTTP/1 carried in HTTP/2 to this endpoint?
fn carried(peer: &Peer) -> bool {
    peer.endpoint.hint == Hint::H2 && matches!(peer.endpoint.tls, EndpointTls::Mutual { .. })
}

/// Writes the request as this endpoint wants it.
fn prepare(request: &mut Request<RequestBody>, peer: &Peer, h2: bool) {
    if h2 {
        rules::to_http2(request, |host| peer.authority_of(host));
    }
    if let Some((name, port)) = &peer.endpoint.authority {
        let authority = peer.overridden.get_or_init(|| match port {
            // The port that goes without saying is not said.
            None | Some(80) => Authority::try_from(name.as_str()).ok(),
            Some(port) => Authority::try_from(format!("{name}:{port}")).ok(),
        });
        request.head.remove(header::HOST);
        request.head.remove(rules::DST_CANONICAL);
        if let Some(authority) = authority {
            if !h2 && let Ok(host) = HeaderValue::from_str(authority.as_str()) {
                request.head.insert(header::HOST, &host);
            } else {
                request.head.set_authority(Some(authority.as_str()));
            }
        }
    }
}

/// Takes out what only proxies say to each other. A stranger's words about the mesh are not repeated.
fn tidy(head: &mut Head, peer: &Peer) {
    match peer.endpoint.tls {
        EndpointTls::Mutual { .. } => rules::take_words(head, [rules::PROXY_CONNECTION]),
        _ => rules::take_words(head, [rules::PROXY_CONNECTION, rules::PROXY_ERROR]),
    };
}
