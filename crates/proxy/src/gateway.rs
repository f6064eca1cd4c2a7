//! The gateway: an authenticated client and a name become an outbound target, and nothing else (`spec/proxy.md` 7).
//!
//! Whether the name may be entered at all is the control plane's answer: an export it doesn't confirm is refused with
//! an audit line. Authorization is that of the gateway's own port.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use hawser_core::authz::Client;
use http::{HeaderName, HeaderValue, Version, header};

use crate::answer::{RequestKind, Why};
use crate::config::within;
use crate::http_rules as rules;
use crate::inbound::http::Connection;
use crate::inbound::{Accepted, Refusal, drain_of, name_of, source_metrics, tcp as inbound_tcp};
use crate::message::{Head, Request, Response};
use crate::metrics::Labels;
use crate::outbound::http::{ResponseBody, exchange};
use crate::outbound::{KnownTarget, tcp as outbound_tcp};
use crate::snapshot::{Outbound, ProfileAnswer, Target};
use crate::transport::Conn;
use crate::wire::Incoming;
use crate::worker::{Http, Worker, serve_http};

const FORWARDED: HeaderName = header::FORWARDED;
const DISCOVERY_TIMEOUT: Duration = Duration::from_secs(10);

/// A direct connection whose header names a service.
pub(crate) async fn serve(
    worker: &Rc<Worker>,
    conn: Conn,
    accepted: Accepted,
    name: &str,
    port: u16,
    http: Option<Http>,
) -> Result<(), Refusal> {
    let config = worker.shared.config.clone();
    let suffixes = config
        .inbound
        .gateway_suffixes
        .as_ref()
        .ok_or(Refusal::NotAGateway)?;
    let target: Arc<str> = format!("{name}:{port}").into();
    let conn = conn.counted(source_metrics(worker, accepted.target, &accepted.labels));
    let policy = worker.inbound.policy(worker, accepted.target.port());
    let known = within(name, suffixes).then(|| worker.outbound.target(worker, Target::Name(target.clone())));
    match http {
        None => {
            inbound_tcp::permit(worker, &accepted, &policy)?;
            let entered = enter(known.as_ref()).await;
            let (known, _) = entered.map_err(|why| refused(worker, &accepted, &target, why))?;
            tokio::select! {
                ended = outbound_tcp::forward(worker, conn, known) => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, "Connection closed");
                    }
                }
                () = inbound_tcp::revoked(&accepted, &policy) => inbound_tcp::terminated(worker, &accepted, &policy),
                why = withdrawn(known.clone()) => {
                    refused(worker, &accepted, &target, why);
                }
            }
        }
        Some(version) => {
            let own_id = config.identity.name.as_str();
            let host = target.strip_suffix(":80").unwrap_or(&target);
            let forwarded = match &accepted.client {
                Client::Authenticated(client) => {
                    HeaderValue::try_from(format!("by={own_id};for={client};host={host};proto=https")).ok()
                }
                Client::Plain | Client::Anonymous => None,
            };
            let gateway = Rc::new(Gateway {
                host: HeaderValue::from_str(host).ok(),
                forwarded,
                connection: Connection::new(worker, accepted, policy),
                known,
                own_id: own_id.into(),
                target,
            });
            let drain = drain_of(worker, &conn);
            let served = serve_http(conn, version, &config.inbound.http, &drain, move |request| {
                let gateway = gateway.clone();
                async move { gateway.handle(request).await }
            });
            if let Err(error) = served.await {
                tracing::debug!(%error, "Connection closed");
            }
        }
    }
    Ok(())
}

/// The target, if it is one that may be entered.
async fn enter(known: Option<&Rc<KnownTarget>>) -> Result<(&Rc<KnownTarget>, Arc<Outbound>), Refusal> {
    let known = known.ok_or(Refusal::GatewayDomain)?;
    let outbound = tokio::time::timeout(DISCOVERY_TIMEOUT, known.live.first())
        .await
        .map_err(|_| Refusal::GatewayDomain)?;
    door(&outbound).map(|()| (known, outbound))
}

pub(crate) fn door(outbound: &Outbound) -> Result<(), Refusal> {
    match outbound.profile {
        ProfileAnswer::Known => Ok(()),
        ProfileAnswer::Missing => Err(Refusal::GatewayDomain),
        ProfileAnswer::NotExported => Err(Refusal::NotExported),
    }
}

/// Until the target may no longer be entered.
async fn withdrawn(known: Rc<KnownTarget>) -> Refusal {
    let mut changes = known.live.changes();
    loop {
        if let Some(Err(why)) = known.live.get().map(|outbound| door(&outbound)) {
            return why;
        }
        if changes.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Who wanted in where there is no door: counted, and told to whoever audits.
fn refused(worker: &Worker, accepted: &Accepted, target: &str, why: Refusal) -> Refusal {
    let labels = Labels::new()
        .with("direction", "inbound")
        .with("target_name", target)
        .with("reason", why.message());
    worker
        .metrics
        .counter("inbound_gateway_refused_total", labels.and(&accepted.labels))
        .inc();
    if worker
        .inbound
        .worth_a_line(accepted.client_addr.ip(), why.message(), target)
    {
        tracing::info!(
            client = name_of(&accepted.client),
            client.addr = %accepted.client_addr,
            target,
            why = why.message(),
            "Gateway refused"
        );
    }
    why
}

struct Gateway {
    connection: Rc<Connection>,
    /// `None` outside the gateway's suffixes.
    known: Option<Rc<KnownTarget>>,
    own_id: Box<str>,
    target: Arc<str>,
    /// The service, as HTTP/1 requests name it: the port that goes without saying isn't said.
    host: Option<HeaderValue>,
    /// What the gateway adds about this client.
    forwarded: Option<HeaderValue>,
}

impl Gateway {
    async fn handle(&self, mut request: Request<Incoming>) -> Result<Response<ResponseBody>, h2::Error> {
        let kind = RequestKind::of(&request.head);
        let received = request.version;
        if let Err(what) = rules::check(&request) {
            return self
                .connection
                .answer(&Why::Malformed(what), received, &kind, false);
        }
        let carried = rules::from_http2(&mut request);
        let version = request.version;
        match self.forward(request).await {
            Ok(mut response) => {
                if carried {
                    rules::answer_to_http2(&mut response);
                }
                Ok(response)
            }
            Err(why) => self.connection.answer(&why, version, &kind, carried),
        }
    }

    async fn forward(&self, mut request: Request<Incoming>) -> Result<Response<ResponseBody>, Why> {
        let Connection { worker, accepted, .. } = &*self.connection;
        request.head.remove(rules::CLIENT_ID);
        self.connection.permit(&request)?.requests.inc();
        let Client::Authenticated(client) = &accepted.client else {
            return Err(Why::Denied);
        };
        if client.as_str() == &*self.own_id || passed_before(&request.head, &self.own_id) {
            return Err(Why::Loop);
        }
        let entered = enter(self.known.as_ref()).await;
        let (known, outbound) =
            entered.map_err(|why| match refused(worker, accepted, &self.target, why) {
                Refusal::NotExported => Why::NotExported,
                _ => Why::GatewayDomain,
            })?;
        if rules::ends_here(&mut request) {
            return Ok(self.connection.reached("gateway", request.version, false));
        }
        if let Some(forwarded) = &self.forwarded {
            request.head.append(FORWARDED, forwarded);
        }
        if worker.shared.taps.want(&request.head) {
            request.extensions.insert(accepted.watched());
        }
        if request.version < Version::HTTP_2
            && let Some(host) = &self.host
        {
            request.head.insert(header::HOST, host);
        }
        let revoked = rules::wants_upgrade(&request).then(|| {
            let revoked = self.connection.clone().revoked(request.bare());
            let withdrawn = withdrawn(known.clone());
            async move {
                tokio::select! {
                    () = revoked => {}
                    _ = withdrawn => {}
                }
            }
            .boxed_local()
        });
        exchange(
            worker,
            &worker.inbound_tasks,
            &known.live,
            Some(&outbound),
            request,
            revoked,
        )
        .await
    }
}

/// Is there a `by=<us>` in any element of any `forwarded` header, in any of its legal forms (RFC 7239)?
fn passed_before(head: &Head, own_id: &str) -> bool {
    head.get_all(FORWARDED.as_str()).any(|value| {
        let text = value.to_str().unwrap_or_default();
        split_unquoted(text).any(|pair| {
            pair.split_once('=').is_some_and(|(name, value)| {
                name.trim().eq_ignore_ascii_case("by") && unquoted(value.trim()).eq_ignore_ascii_case(own_id)
            })
        })
    })
}

/// Pairs of all elements; separators inside quotes don't separate.
fn split_unquoted(text: &str) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    text.split(move |c| {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ => return !quoted && matches!(c, ';' | ','),
        }
        false
    })
}

fn unquoted(value: &str) -> String {
    let Some(inner) = value.strip_prefix('"').and_then(|v| v.strip_suffix('"')) else {
        return value.to_owned();
    };
    let mut out = String::with_capacity(inner.len());
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        out.extend(if c == '\\' { chars.next() } else { Some(c) });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_is_found_in_every_legal_form() {
        let own = "gw.mesh.example";
        for (value, looped) in [
            ("by=gw.mesh.example;for=a", true),
            ("for=a;by=other, for=b; BY=\"GW.mesh.example\" ;proto=https", true),
            ("by=\"gw\\.mesh.example\"", true),
            ("by=other;for=gw.mesh.example", false),
            ("for=\"x;by=gw.mesh.example\"", false),
            ("by=gw.mesh.example.evil", false),
        ] {
            let mut head = Head::default();
            head.insert(FORWARDED, &HeaderValue::from_static(value));
            assert_eq!(passed_before(&head, own), looped, "{value}");
        }
    }
}
