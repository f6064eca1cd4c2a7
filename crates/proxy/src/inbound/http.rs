//! HTTP to the application: every request is authorized by the policy of its moment.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use hawser_core::authz::{Client, Source, authorize};
use http::{HeaderValue, Method, StatusCode, Version, header};
use hyper::upgrade::OnUpgrade;

use crate::answer::{RequestKind, Why, reached};
use crate::body::{Body, grpc_status_of};
use crate::http_rules as rules;
use crate::live::Live;
use crate::message::{Request, Response, Value};
use crate::metrics::{Counter, Labels};
use crate::outbound::http::{BODY_BROKEN, Done, ResponseBody};
use crate::outbound::peer::{ConnectError, H1Sender, H2Sender, Peer};
use crate::outbound::replay::Replay;
use crate::outbound::retry::{Attempts, Fate};
use crate::outbound::telemetry::{Grpc, HttpMetrics, ResponseEnd};
use crate::route;
use crate::snapshot::{Inbound, InboundRoute};
use crate::tap;
use crate::transport::Conn;
use crate::wire::{Incoming, SendError, h1_client};
use crate::worker::{Http, Worker, join_upgraded, serve_http};

use super::{Accepted, Refusal, drain_of, name_of, server_labels, target_labels};

/// How long to wait before an application that refused is tried again.
const RETRY_EVERY: std::time::Duration = std::time::Duration::from_millis(100);
/// Content up to this length is written together with its head, if it has come with it.
const CONTENT_MAX: usize = 16 << 10;

/// One client connection and what its requests share.
pub(crate) struct Connection {
    pub(crate) worker: Rc<Worker>,
    pub(crate) accepted: Accepted,
    pub(crate) policy: Arc<Live<Inbound>>,
    client_id: Option<HeaderValue>,
    /// Handles of the routes and authorizations that this connection has used.
    resolved: RefCell<Vec<Resolved>>,
}

struct Resolved {
    server: Source,
    route: Source,
    by: Source,
    allowed: Arc<Counter>,
    http: Rc<HttpMetrics>,
}

impl Connection {
    pub(crate) fn new(worker: &Rc<Worker>, accepted: Accepted, policy: Arc<Live<Inbound>>) -> Rc<Self> {
        let client_id = match &accepted.client {
            Client::Authenticated(id) => HeaderValue::from_str(id.as_str()).ok(),
            Client::Plain | Client::Anonymous => None,
        };
        Rc::new(Self {
            worker: worker.clone(),
            accepted,
            policy,
            client_id,
            resolved: RefCell::default(),
        })
    }

    /// An explanation goes only to clients that we know.
    pub(crate) fn answer(
        &self,
        why: &Why,
        version: Version,
        kind: &RequestKind,
        carried: bool,
    ) -> Result<Response<ResponseBody>, h2::Error> {
        let labels = Labels::new()
            .with("target_addr", self.accepted.target)
            .with("error", why.label());
        self.worker
            .metrics
            .counter("inbound_http_errors_total", labels)
            .inc();
        if *why == Why::Leaving && (carried || version == Version::HTTP_2) {
            // Says that nothing was done with it: somebody else may.
            return Err(h2::Reason::REFUSED_STREAM.into());
        }
        if let Some(reset) = why.reset(version) {
            return Err(reset);
        }
        let Accepted {
            client_addr, target, ..
        } = self.accepted;
        let hop = || format!("client {client_addr}: server: {target}: ");
        let hop = self.client_id.is_some().then(hop);
        let mut response = why.response(version, kind, hop.as_deref());
        if carried {
            rules::answer_to_http2(&mut response);
        }
        Ok(response)
    }

    /// Answers a question that ends here. Like an explanation, a name goes only to clients that we know.
    pub(crate) fn reached(&self, role: &str, version: Version, carried: bool) -> Response<ResponseBody> {
        let name = &self.worker.shared.config.identity.name;
        let us = || format!("{role} {}", name.as_str());
        let us = self.client_id.is_some().then(us);
        let mut response = reached(version, us.as_deref());
        if carried {
            rules::answer_to_http2(&mut response);
        }
        response
    }

    /// May this request pass? Returns the counters of its route.
    pub(crate) fn permit<B>(&self, request: &Request<B>) -> Result<Rc<HttpMetrics>, Why> {
        let policy = self.policy.load();
        let policy = policy
            .as_deref()
            .filter(|policy| !policy.invalid)
            .ok_or(Why::Internal("unexpected error"))?;
        let Some(route) = route_of(policy, request) else {
            self.worker
                .metrics
                .counter("inbound_http_route_not_found_total", self.labels(policy))
                .inc();
            return Err(Why::NoRoute);
        };
        match authorize(
            &route.authorizations,
            self.accepted.client_addr.ip(),
            &self.accepted.client,
        ) {
            Ok(by) => {
                if &*by.source.name == "audit" {
                    tracing::info!(server = %policy.server.name, client = name_of(&self.accepted.client), "Request allowed");
                }
                Ok(self.resolve(policy, &route.source, &by.source))
            }
            Err(denial) => {
                let labels =
                    route_labels(&self.labels(policy), &route.source).with("reason", denial.as_str());
                let Accepted {
                    client_addr, target, ..
                } = self.accepted;
                self.worker
                    .metrics
                    .counter("inbound_http_authz_deny_total", labels)
                    .inc();
                let inbound = &self.worker.inbound;
                if inbound.worth_a_line(client_addr.ip(), denial.as_str(), target) {
                    tracing::info!(
                        server = %policy.server.name,
                        route = %route.source.name,
                        client = name_of(&self.accepted.client),
                        client.addr = %client_addr,
                        %target,
                        why = denial.as_str(),
                        "Request denied"
                    );
                }
                Err(Why::Denied)
            }
        }
    }

    /// Until a request like this would no longer be let in.
    pub(crate) async fn revoked(self: Rc<Self>, request: Request<()>) {
        let mut changes = self.policy.changes();
        let Accepted {
            client, client_addr, ..
        } = &self.accepted;
        loop {
            let admitted = self.policy.load().as_deref().is_some_and(|policy| {
                let route = route_of(policy, &request).filter(|_| !policy.invalid);
                route.is_some_and(|r| authorize(&r.authorizations, client_addr.ip(), client).is_ok())
            });
            if !admitted {
                return super::tcp::terminated(&self.worker, &self.accepted, &self.policy);
            }
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    fn labels(&self, policy: &Inbound) -> Labels {
        let target = self.accepted.target;
        server_labels(
            &target_labels(target, &self.accepted.labels),
            target.port(),
            &policy.server,
        )
    }

    fn resolve(&self, policy: &Inbound, route: &Source, by: &Source) -> Rc<HttpMetrics> {
        let mut resolved = self.resolved.borrow_mut();
        let known = resolved
            .iter()
            .find(|r| same(&r.route, route) && same(&r.by, by) && same(&r.server, &policy.server));
        if let Some(known) = known {
            known.allowed.inc();
            return known.http.clone();
        }
        let labels = route_labels(&self.labels(policy), route)
            .with("authz_group", &by.group)
            .with("authz_kind", &by.kind)
            .with("authz_name", &by.name);
        let allowed = self
            .worker
            .metrics
            .counter("inbound_http_authz_allow_total", labels.clone());
        allowed.inc();
        let http = HttpMetrics::new(&self.worker.metrics, labels);
        resolved.push(Resolved {
            server: policy.server.clone(),
            route: route.clone(),
            by: by.clone(),
            allowed,
            http: http.clone(),
        });
        http
    }
}

/// Nearly always they are copies of each other, and need not be compared letter by letter.
fn same(one: &Source, other: &Source) -> bool {
    let copies = Arc::ptr_eq(&one.name, &other.name)
        && Arc::ptr_eq(&one.kind, &other.kind)
        && Arc::ptr_eq(&one.group, &other.group);
    copies || one == other
}

pub(crate) fn route_of<'a, B>(policy: &'a Inbound, request: &Request<B>) -> Option<&'a InboundRoute> {
    route::best(
        &policy.routes,
        |r| &r.matches,
        rules::host_of(request),
        &request.method,
        &request.head,
    )
}

fn route_labels(labels: &Labels, route: &Source) -> Labels {
    labels
        .with("route_group", &route.group)
        .with("route_kind", &route.kind)
        .with("route_name", &route.name)
}

pub(crate) async fn serve(
    worker: &Rc<Worker>,
    conn: Conn,
    accepted: Accepted,
    version: Http,
    policy: Arc<Live<Inbound>>,
) -> Result<(), Refusal> {
    let connection = Connection::new(worker, accepted, policy);
    let app = worker.inbound.app(connection.accepted.target);
    let config = worker.shared.config.clone();
    let drain = drain_of(worker, &conn);
    let ended = serve_http(conn, version, &config.inbound.http, &drain, move |request| {
        let (connection, app) = (connection.clone(), app.clone());
        async move { handle(&connection, &app, request).await }
    });
    if let Err(error) = ended.await {
        tracing::debug!(%error, "Connection closed");
    }
    Ok(())
}

async fn handle(
    connection: &Rc<Connection>,
    app: &Rc<Peer>,
    mut request: Request<Incoming>,
) -> Result<Response<ResponseBody>, h2::Error> {
    let kind = RequestKind::of(&request.head);
    let received = request.version;
    if let Err(what) = rules::check(&request) {
        return connection.answer(&Why::Malformed(what), received, &kind, false);
    }
    let carried = rules::from_http2(&mut request);
    let version = request.version;
    // Nobody but us says who the client is.
    request.head.remove(rules::CLIENT_ID);
    let metrics = match connection.permit(&request) {
        Ok(metrics) => metrics,
        Err(why) => return connection.answer(&why, version, &kind, carried),
    };
    if rules::ends_here(&mut request) {
        return Ok(connection.reached("inbound", version, carried));
    }
    if let Some(id) = &connection.client_id {
        request.head.insert(rules::CLIENT_ID, id);
    }
    let form = match carried {
        true => Form::Carried,
        false => Form::AsSent,
    };
    match forward(connection, app, request, form, metrics).await {
        Ok(mut response) => {
            if carried {
                rules::answer_to_http2(&mut response);
            }
            Ok(response)
        }
        Err(why) => connection.answer(&why, version, &kind, carried),
    }
}

/// Did it come as it was sent, or as HTTP/1 in HTTP/2?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    AsSent,
    Carried,
}

/// Can it be sent without the library? Then this is its content. What a client sent in HTTP/1 keeps the spelling of its
/// headers, which only the library knows.
fn plain(request: &mut Request<Incoming>, form: Form) -> Option<Bytes> {
    let plain = form == Form::Carried
        && request.version == Version::HTTP_11
        && request.head.scheme().is_none()
        && !request.head.contains(header::EXPECT);
    plain.then(|| request.body.take_short(CONTENT_MAX)).flatten()
}

/// Hands a request to the application.
async fn forward(
    connection: &Rc<Connection>,
    app: &Rc<Peer>,
    mut request: Request<Incoming>,
    form: Form,
    metrics: Rc<HttpMetrics>,
) -> Result<Response<ResponseBody>, Why> {
    let worker = &connection.worker;
    let config = &worker.shared.config;
    let most = config.inbound.in_flight_max.div_ceil(config.workers);
    let _entered = worker.inbound.in_flight.enter(most)?;
    let version = request.version;
    let is_connect = request.method == Method::CONNECT;
    let upgrade =
        rules::wants_upgrade(&request).then(|| (request.extensions.remove::<OnUpgrade>(), request.bare()));
    if upgrade.is_none() {
        rules::strip_hop_by_hop(&mut request.head);
    }
    let mut told = match worker.shared.taps.want(&request.head) {
        true => tell(connection, &request, &metrics),
        false => None,
    };
    let content = match &upgrade {
        None => plain(&mut request, form),
        Some(_) => None,
    };
    let kind = match version {
        Version::HTTP_2 => Kind::H2,
        _ if content.is_some() => Kind::Plain,
        _ => Kind::H1,
    };
    let content = content.unwrap_or_default();
    // What is known to have been left alone may be handed over again; bodies aren't kept for that.
    let mut request = Replay::new(request, 0, None);
    let mut attempts = Attempts::new(1, 0);
    let started_at = Instant::now();
    metrics.requests.inc();
    let failed = |status: StatusCode, why: Why| {
        metrics.response(status, Grpc::No, false, started_at.elapsed());
        Err(why)
    };
    let mut fresh = false;
    let (mut response, busy, h1, answered_at) = loop {
        let host = request.request().head.get(header::HOST).filter(|_| !fresh);
        let host = host.map(Value::as_bytes);
        let sender = match sender(worker, app, kind, host, started_at).await {
            Ok(sender) => sender,
            Err(why) => return failed(StatusCode::BAD_GATEWAY, why),
        };
        let last = attempts.begin();
        // Nearly all are sent once: their headers are not copied for a second time that may come.
        let sending = match kind {
            Kind::H1 => request.take(last, true),
            Kind::Plain | Kind::H2 => request.lend(),
        };
        let mut sending = sending.ok_or(Why::Internal("unexpected error"))?;
        let mut busy = app.busy();
        let (sent, h1) = match sender {
            Sender::Plain(sender) => {
                let sent = sender
                    .send(&sending, &content, app.pool(), config.inbound.idle_max)
                    .await;
                (sent.map_err(SendError::from), None)
            }
            Sender::H2(sender) => (sender.send(&mut sending).await.map_err(SendError::from), None),
            Sender::H1(mut sender) => {
                rules::announce_content(&mut sending);
                let host = sending.head.get(header::HOST).map(|host| host.as_bytes().into());
                let sent = http::Request::from(std::mem::take(&mut sending));
                let sent = sender.try_send_request(sent).await;
                let sent = sent
                    .map(|response| response.map(Incoming::Library).into())
                    .map_err(SendError::from);
                (sent, host.map(|host| Box::new((sender, host))))
            }
        };
        let error = match sent {
            Ok(response) => {
                app.budget.request();
                let answered_at = Instant::now();
                busy.answered = Some((answered_at, answered_at.duration_since(started_at)));
                break (response, busy, h1, answered_at);
            }
            Err(error) => error,
        };
        if request.is_broken() {
            return failed(StatusCode::BAD_REQUEST, Why::Malformed(BODY_BROKEN));
        }
        if kind != Kind::H1 {
            request.give_back(&mut sending);
        }
        let fate = match Fate::of_sending(&error) {
            // Content isn't sent twice to whoever may have seen it.
            Fate::Broken if !content.is_empty() => Fate::Failed,
            fate => fate,
        };
        tracing::debug!(%error, "The application failed a request");
        if !attempts.again(fate, &request, app, &worker.metrics, Instant::now()) {
            return failed(StatusCode::BAD_GATEWAY, Why::of_sending(&error));
        }
        fresh = true;
    };
    if let Some(told) = &mut told {
        told.answered(response.status, &response.head);
    }
    let switched =
        response.status == StatusCode::SWITCHING_PROTOCOLS || (is_connect && response.status.is_success());
    match upgrade {
        Some((client, head)) if switched => {
            if let (Some(client), Some(server)) = (client, response.extensions.remove::<OnUpgrade>()) {
                let revoked = connection.clone().revoked(head);
                join_upgraded(&worker.inbound_tasks, client, server, Some(Box::pin(revoked)));
            }
            if is_connect {
                response.head.remove(header::CONTENT_LENGTH);
                response.head.remove(header::TRANSFER_ENCODING);
            }
        }
        _ => rules::strip_hop_by_hop(&mut response.head),
    }
    rules::take_words(
        &mut response.head,
        [rules::PROXY_ERROR, rules::PROXY_CONNECTION, rules::ORIG_PROTO],
    );
    let end = ResponseEnd {
        metrics,
        status: response.status,
        grpc: grpc_status_of(&response.head),
        is_grpc: RequestKind::of(&response.head).grpc,
        started_at,
        answered_at,
        told,
        finish: Some(Done::new(busy, h1, None, config.inbound.idle_max)),
    };
    Ok(response.map(|body| Body::observed(body, None, end)))
}

/// Tells those who watch of a request that was let in.
fn tell(
    connection: &Connection,
    request: &Request<Incoming>,
    metrics: &HttpMetrics,
) -> Option<Box<tap::Told>> {
    let accepted = &connection.accepted;
    let taps = &connection.worker.shared.taps;
    taps.tell(&tap::Seen {
        direction: tap::Direction::Inbound,
        source: &accepted.watched(),
        destination: accepted.target,
        destination_labels: BTreeMap::new(),
        route_labels: if taps.are_watched() {
            metrics.route()
        } else {
            BTreeMap::new()
        },
        method: &request.method,
        scheme: request.head.scheme().unwrap_or("http"),
        authority: rules::authority_of(request),
        path: request.head.path(),
        headers: &request.head,
    })
}

/// The ways to send a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    H1,
    Plain,
    H2,
}

/// A way to send one request to the application.
enum Sender {
    H1(H1Sender),
    /// With its whole content and nothing unusual, on HTTP/1.
    Plain(h1_client::Client),
    H2(H2Sender),
}

/// HTTP/1 fails at once; HTTP/2 waits a little for an application that is just starting.
async fn sender(
    worker: &Rc<Worker>,
    app: &Rc<Peer>,
    kind: Kind,
    host: Option<&[u8]>,
    since: Instant,
) -> Result<Sender, Why> {
    loop {
        let sender = match kind {
            Kind::H2 => app.h2(worker).await.map(Sender::H2),
            Kind::H1 => app.h1(worker, host).await.map(Sender::H1),
            Kind::Plain => app.plain(worker, host).await.map(Sender::Plain),
        };
        let error = match sender {
            Ok(sender) => return Ok(sender),
            Err(error) => error,
        };
        if error == ConnectError::Refused && worker.shared.drain.application_gone() {
            return Err(Why::Leaving);
        }
        if kind != Kind::H2 {
            return Err(match error {
                ConnectError::Timeout => Why::ConnectTimeout,
                error => Why::BadGateway(error.as_str()),
            });
        }
        if since.elapsed() >= worker.shared.config.inbound.failfast || error == ConnectError::Forbidden {
            return Err(Why::FailFast);
        }
        tokio::time::sleep(RETRY_EVERY).await;
    }
}
