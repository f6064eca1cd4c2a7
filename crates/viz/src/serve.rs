//! The dashboard's page and its JSON API, for people; and the same facts for the collectors of linked clusters.
//!
//! People, at [`crate::API_PORT`] on the pod's loopback, so that whoever asks comes through the API server's
//! port-forward and its permissions:
//!
//! | `GET` | answers |
//! |---|---|
//! | `/`, `/app.js`, ... | the page |
//! | `/api/clusters` | [`Cluster`]s: this one first, then those that are linked to it |
//! | `/api/portrait` | [`crate::api::Portrait`] of this cluster |
//! | `/api/series?namespace=&name=[&cluster=][&window=]` | [`crate::api::Series`] of a Service, here or in a linked cluster |
//! | `/api/workload?kind=&namespace=&name=[&cluster=][&window=]` | [`crate::api::Closeup`] of a workload, here or in a linked cluster |
//! | `/api/paths?[kind=][&name=][&namespace=][&to_name=&to_namespace=][&window=]` | [`crate::api::Path`]s: where the time goes |
//! | `/api/explain?namespace=&name=[&cluster=][&from_kind=&from_name=&from_namespace=]` | not here: see [`crate::front`] |
//! | `/api/stat`, `/api/routes`, `/api/edges`, `/api/gateways`, `/api/status` | what the command line asks: see [`Ask`] |
//!
//! Collectors, at [`crate::PEER_PORT`], ask for `/api/portrait`, `/api/series`, `/api/workload` and `/api/onward` only. Policy lets in nobody but the
//! gateway, and of those who came through it only accounts of collectors are answered.
//!
//! An answer carries an `ETag`; asked again with `If-None-Match`, it is 304 while nothing is new. A portrait changes when
//! proxies were looked at, or objects changed, and not with the time.
//!
//! Only reads. A page of another origin that a browser was tricked into sending here is refused by its `Host` or
//! `Origin`.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::hash::{DefaultHasher, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, CONTENT_TYPE, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use crate::api::{Cluster, Onward};
use crate::collect::Asked;
use crate::objects::Key;
use crate::page;
use crate::path::{Departing, join};
use crate::peers::{Peers, chain};
use crate::wire::{Ask, EXPLAIN};

/// A peer that sends no complete request head in this time is hung up on.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// More connections than this wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 64;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// What the identity of a collector begins with, wherever its mesh is.
const COLLECTORS: &str = "prometheus.linkerd-viz.serviceaccount.identity.";

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Audience {
    People,
    /// Those of linked clusters.
    Collectors,
}

/// Where answers come from.
#[derive(Clone, Debug)]
pub(crate) struct Asking {
    pub(crate) questions: mpsc::Sender<Asked>,
    pub(crate) peers: watch::Receiver<Peers>,
    /// What this cluster is called.
    pub(crate) cluster: String,
}

/// Serves for ever.
pub(crate) async fn serve(listener: TcpListener, audience: Audience, asking: Asking) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else {
            return;
        };
        let Ok((socket, _)) = listener.accept().await else {
            // Out of file descriptors, most likely: try again when others have closed theirs.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let asking = asking.clone();
        tokio::spawn(async move {
            let service = service_fn(|request: Request<Incoming>| {
                let asking = asking.clone();
                async move {
                    let mut response = asking.respond(&request, audience).await;
                    page::protect(response.headers_mut());
                    Ok::<_, Infallible>(response)
                }
            });
            let connection = http1().serve_connection(TokioIo::new(socket), service);
            // Whatever ends a connection is the peer's business.
            let _ = connection.await;
            drop(slot);
        });
    }
}

/// How connections are served, here and where live requests are shown.
pub(crate) fn http1() -> http1::Builder {
    let mut http1 = http1::Builder::new();
    http1.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    http1
}

/// An answer without headers of its own, or why there is none.
type Answer = Result<Value, (StatusCode, String)>;

impl Asking {
    async fn respond<B>(&self, request: &Request<B>, audience: Audience) -> Response<Full<Bytes>> {
        let (path, headers) = (request.uri().path(), request.headers());
        let answer = match admitted(headers, audience) {
            Err(why) => Err((StatusCode::FORBIDDEN, why)),
            Ok(()) if request.method() != Method::GET => {
                let why = "only GET is answered here".to_owned();
                Err((StatusCode::METHOD_NOT_ALLOWED, why))
            }
            Ok(()) => {
                if let Some(file) = page::file(path).filter(|_| audience == Audience::People) {
                    let accepted = headers.get(header::ACCEPT_ENCODING);
                    let unpacks =
                        accepted.is_some_and(|value| value.as_bytes().windows(4).any(|word| word == b"gzip"));
                    let mut response = Response::default();
                    *response.body_mut() = file.body(unpacks, response.headers_mut()).into();
                    return response;
                }
                self.answer(path, request.uri().query().unwrap_or_default(), audience)
                    .await
            }
        };
        match answer {
            Ok(value) => unless_known(headers, &value),
            Err((status, why)) => reply(status, &json!({"error": why})),
        }
    }

    async fn answer(&self, path: &str, query: &str, audience: Audience) -> Answer {
        if path == "/api/clusters" && audience == Audience::People {
            return self.clusters().await;
        }
        if path == EXPLAIN && audience == Audience::People {
            // Nobody who may only read metrics may ask control planes.
            let why = "a collector may not ask control planes: open the page with hawser viz dashboard, which asks \
                       with your own rights";
            return Err((StatusCode::NOT_IMPLEMENTED, why.into()));
        }
        let ask = Ask::of(path, query).map_err(|why| match why {
            crate::wire::BadQuestion::Path(_) => (StatusCode::NOT_FOUND, why.to_string()),
            why => (StatusCode::BAD_REQUEST, why.to_string()),
        })?;
        match ask {
            Ask::Portrait
            | Ask::Onward { .. }
            | Ask::Series { cluster: None, .. }
            | Ask::Workload { cluster: None, .. } => self.ask(ask).await,
            _ if audience == Audience::Collectors => {
                Err((StatusCode::FORBIDDEN, "linked clusters may not ask this".into()))
            }
            Ask::Series {
                cluster: Some(cluster),
                namespace,
                name,
                window,
            } => {
                let ask = Ask::Series {
                    cluster: None,
                    namespace,
                    name,
                    window,
                };
                self.ask_peer(&cluster, ask).await
            }
            Ask::Workload {
                cluster: Some(cluster),
                kind,
                namespace,
                name,
                window,
            } => {
                let ask = Ask::Workload {
                    cluster: None,
                    kind,
                    namespace,
                    name,
                    window,
                };
                self.ask_peer(&cluster, ask).await
            }
            Ask::Paths { window, .. } => self.paths(ask, window).await,
            ask => self.ask(ask).await,
        }
    }

    /// Paths that lead to linked clusters are continued there.
    async fn paths(&self, ask: Ask, window: Duration) -> Answer {
        let departing: Vec<Departing> = serde_json::from_value(self.ask(ask).await?)
            .map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
        // Each only once, however many ask for it.
        let remotes: BTreeSet<(String, Key)> = departing.iter().filter_map(Departing::remote).collect();
        let asking = remotes.into_iter().map(|(cluster, service)| async move {
            let onward = self.onward(&cluster, &service, window).await;
            ((cluster, service), onward)
        });
        let asked: BTreeMap<_, _> = futures::future::join_all(asking).await.into_iter().collect();
        let paths = departing.into_iter().map(|path| {
            let onward = path.remote().and_then(|remote| asked.get(&remote).cloned());
            join(path, onward)
        });
        Ok(paths.map(|path| json!(path)).collect())
    }

    async fn onward(
        &self,
        cluster: &str,
        (namespace, name): &Key,
        window: Duration,
    ) -> Result<Onward, String> {
        let ask = Ask::Onward {
            namespace: namespace.clone(),
            name: name.clone(),
            window,
        };
        let answer = self.ask_peer(cluster, ask).await.map_err(|(_, why)| why)?;
        serde_json::from_value(answer).map_err(|error| error.to_string())
    }

    async fn ask(&self, ask: Ask) -> Answer {
        let (answer, answered) = oneshot::channel();
        let asking = async {
            self.questions.send(Asked { ask, answer }).await.ok()?;
            answered.await.ok()
        };
        match tokio::time::timeout(ANSWER_TIMEOUT, asking).await {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err((StatusCode::SERVICE_UNAVAILABLE, "the collector is ending".into())),
            Err(_) => Err((StatusCode::SERVICE_UNAVAILABLE, "the collector is busy".into())),
        }
    }

    async fn ask_peer(&self, cluster: &str, ask: Ask) -> Answer {
        if cluster == self.cluster {
            return self.ask(ask).await;
        }
        let peer = self.peers.borrow().get(cluster).cloned();
        let peer = peer.ok_or_else(|| (StatusCode::NOT_FOUND, format!("no cluster {cluster} is linked")))?;
        let text = peer
            .get(&ask.path())
            .await
            .map_err(|error| (StatusCode::BAD_GATEWAY, chain(&error)))?;
        serde_json::from_str(&text).map_err(|error| (StatusCode::BAD_GATEWAY, error.to_string()))
    }

    async fn clusters(&self) -> Answer {
        let portrait = self.ask(Ask::Portrait).await?;
        let here = json!({
            "name": self.cluster, "is_here": true, "age_seconds": 0.0, "error": null, "portrait": portrait,
        });
        let peers: Vec<Cluster> = self
            .peers
            .borrow()
            .iter()
            .map(|(name, peer)| peer.show(name))
            .collect();
        let peers = peers.into_iter().map(|peer| json!(peer));
        Ok(std::iter::once(here).chain(peers).collect())
    }
}

/// Why somebody isn't answered.
pub(crate) fn admitted(headers: &HeaderMap, audience: Audience) -> Result<(), String> {
    let text = |name| {
        headers
            .get(name)
            .map(|value: &HeaderValue| value.to_str().unwrap_or_default())
    };
    match audience {
        Audience::People => {
            let host = text(header::HOST).unwrap_or_default();
            if !is_loopback(host) {
                return Err(format!(
                    "{host:?} is not this machine: only localhost is answered"
                ));
            }
            match text(header::ORIGIN) {
                Some(origin) if origin.strip_prefix("http://") != Some(host) => {
                    Err(format!("pages of {origin:?} may not ask here"))
                }
                _ => Ok(()),
            }
        }
        Audience::Collectors => {
            // The gateway adds the last element; those before it are its client's own words.
            let last = headers.get_all(header::FORWARDED).iter().next_back();
            let last = last.and_then(|value| value.to_str().ok()?.rsplit(',').next());
            let client =
                last.and_then(|last| last.split(';').find_map(|pair| pair.trim().strip_prefix("for=")));
            match client {
                Some(client) if client.starts_with(COLLECTORS) => Ok(()),
                client => Err(format!(
                    "{} is no collector",
                    client.unwrap_or("a client without identity")
                )),
            }
        }
    }
}

/// `localhost` and the like, with or without a port.
fn is_loopback(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.parse::<u16>().is_ok() => name,
        _ => host,
    };
    matches!(name, "localhost" | "127.0.0.1" | "[::1]")
}

/// An answer with a tag, by which whoever asks again says what it has already and need not be sent.
fn unless_known(asked: &HeaderMap, value: &Value) -> Response<Full<Bytes>> {
    let text = format!("{value}\n");
    let mut hasher = DefaultHasher::new();
    hasher.write(text.as_bytes());
    let tag = format!("\"{:016x}\"", hasher.finish());
    let is_known = asked
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .any(|known| known.as_bytes() == tag.as_bytes());
    let mut response = if is_known {
        let mut response = Response::default();
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else {
        with_text(StatusCode::OK, text)
    };
    if let Ok(tag) = HeaderValue::try_from(tag) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}

pub(crate) fn reply(status: StatusCode, body: &Value) -> Response<Full<Bytes>> {
    with_text(status, format!("{body}\n"))
}

fn with_text(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;
    use crate::fetch;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pairs = pairs.iter().map(|(name, value)| {
            let name = http::HeaderName::from_static(name);
            (name, HeaderValue::from_static(value))
        });
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(name, value);
        }
        headers
    }

    #[test]
    fn pages_of_other_origins_are_refused() {
        for (host, origin, is_admitted) in [
            ("localhost:50750", None, true),
            ("127.0.0.1:50750", Some("http://127.0.0.1:50750"), true),
            ("[::1]:50750", None, true),
            ("localhost", None, true),
            // A name that was made to point here.
            ("evil.example:50750", None, false),
            ("localhost.evil.example", None, false),
            ("", None, false),
            ("localhost:50750", Some("http://evil.example"), false),
            ("localhost:50750", Some("http://localhost:80"), false),
            ("localhost:50750", Some("null"), false),
        ] {
            let mut pairs = vec![("host", host)];
            pairs.extend(origin.map(|origin| ("origin", origin)));
            let outcome = admitted(&headers(&pairs), Audience::People);
            assert_eq!(outcome.is_ok(), is_admitted, "{host} {origin:?}");
        }
    }

    #[test]
    fn of_linked_clusters_only_collectors_are_answered() {
        let collector =
            "by=gw;for=prometheus.linkerd-viz.serviceaccount.identity.linkerd.cluster.local;proto=https";
        let other = "by=gw;for=web.emojivoto.serviceaccount.identity.linkerd.cluster.local;proto=https";
        for (said, is_admitted) in [
            (vec![collector], true),
            (vec![other], false),
            (vec![], false),
            // Whoever comes through the gateway may claim anything before it speaks.
            (vec![collector, other], false),
            (vec![other, collector], true),
        ] {
            let pairs: Vec<_> = said.iter().map(|said| ("forwarded", *said)).collect();
            let outcome = admitted(&headers(&pairs), Audience::Collectors);
            assert_eq!(outcome.is_ok(), is_admitted, "{said:?}");
        }
    }

    #[test]
    fn what_somebody_has_already_is_not_sent_again() {
        let first = unless_known(&HeaderMap::new(), &json!({"rps": 1}));
        assert_eq!(first.status(), StatusCode::OK);
        let mut asked = HeaderMap::new();
        asked.insert(header::IF_NONE_MATCH, first.headers()[header::ETAG].clone());
        let same = unless_known(&asked, &json!({"rps": 1}));
        assert_eq!(same.status(), StatusCode::NOT_MODIFIED);
        assert_eq!(same.headers()[header::ETAG], first.headers()[header::ETAG]);
        assert_eq!(hyper::body::Body::size_hint(same.body()).exact(), Some(0));
        let news = unless_known(&asked, &json!({"rps": 2}));
        assert_eq!(news.status(), StatusCode::OK);
    }

    #[tokio::test]
    async fn questions_reach_the_collector_and_mistakes_do_not() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let addr = listener.local_addr().expect("bound");
        let (questions, mut asked) = mpsc::channel::<Asked>(1);
        let (_peers, peers) = watch::channel(Peers::new());
        let asking = Asking {
            questions,
            peers,
            cluster: "west".into(),
        };
        let server = tokio::spawn(serve(listener, Audience::People, asking));
        let collector = tokio::spawn(async move {
            while let Some(Asked { ask, answer }) = asked.recv().await {
                let _ = answer.send(json!(ask.path()));
            }
        });
        let get = async |path: &str| {
            let socket = TcpStream::connect(addr).await.expect("it listens");
            fetch::get(socket, path).await.map_err(|error| error.to_string())
        };
        let path = "/api/stat?kind=deployment&name=web&window=60s";
        assert_eq!(get(path).await, Ok(format!("\"{path}\"\n")));
        let missing = "the answer to /api/stat is 400 Bad Request: {\"error\":\"kind is missing\"}";
        assert_eq!(get("/api/stat").await, Err(missing.into()));
        assert!(get("/nothing").await.is_err_and(|error| error.contains("404")));
        assert!(
            get("/")
                .await
                .is_ok_and(|page| page.starts_with("<!doctype html>"))
        );
        assert!(
            get("/api/clusters")
                .await
                .is_ok_and(|all| all.contains("\"/api/portrait\""))
        );
        // A linked cluster's own name for itself is asked here; one that nobody knows is said to be unknown.
        let series = "/api/series?namespace=x&name=web&window=60s";
        assert_eq!(
            get(&format!("{series}&cluster=west")).await,
            Ok(format!("\"{series}\"\n"))
        );
        let unknown = get(&format!("{series}&cluster=north")).await;
        assert!(unknown.is_err_and(|error| error.contains("404")));
        server.abort();
        collector.abort();
    }
}
