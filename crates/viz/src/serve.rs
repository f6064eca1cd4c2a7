//! The JSON API: `GET /api/stat`, `/api/edges`, `/api/gateways`, `/api/status`.
//!
//! Only reads. It listens on loopback unless told otherwise, so that whoever asks comes through the API server's
//! port-forward and its permissions. A dashboard's files would be further paths here.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::collect::Asked;
use crate::wire::Ask;

/// A peer that sends no complete request head in this time is hung up on.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// More connections than this wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 64;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves for ever.
pub(crate) async fn serve(listener: TcpListener, questions: mpsc::Sender<Asked>) {
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
        let questions = questions.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let questions = questions.clone();
                async move { Ok::<_, Infallible>(respond(&request, &questions).await) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .serve_connection(TokioIo::new(socket), service);
            // Whatever ends a connection is the peer's business.
            let _ = connection.await;
            drop(slot);
        });
    }
}

async fn respond(request: &Request<Incoming>, questions: &mpsc::Sender<Asked>) -> Response<Full<Bytes>> {
    let wrong = |status, why: String| reply(status, &json!({"error": why}));
    if request.method() != Method::GET {
        return wrong(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered here".into());
    }
    let ask = match Ask::of(request.uri().path(), request.uri().query().unwrap_or_default()) {
        Ok(ask) => ask,
        Err(why @ crate::wire::BadQuestion::Path(_)) => return wrong(StatusCode::NOT_FOUND, why.to_string()),
        Err(why) => return wrong(StatusCode::BAD_REQUEST, why.to_string()),
    };
    let (answer, answered) = oneshot::channel();
    let asking = async {
        questions.send(Asked { ask, answer }).await.ok()?;
        answered.await.ok()
    };
    match tokio::time::timeout(ANSWER_TIMEOUT, asking).await {
        Ok(Some(answer)) => reply(StatusCode::OK, &answer),
        Ok(None) => wrong(StatusCode::SERVICE_UNAVAILABLE, "the collector is ending".into()),
        Err(_) => wrong(StatusCode::SERVICE_UNAVAILABLE, "the collector is busy".into()),
    }
}

fn reply(status: StatusCode, body: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(format!("{body}\n"))));
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

    #[tokio::test]
    async fn questions_reach_the_collector_and_mistakes_do_not() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let addr = listener.local_addr().expect("bound");
        let (questions, mut asked) = mpsc::channel::<Asked>(1);
        let server = tokio::spawn(serve(listener, questions));
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
        assert!(get("/").await.is_err_and(|error| error.contains("404")));
        server.abort();
        collector.abort();
    }
}
