//! The dashboard on the machine of whoever looks: everything there is the collector's answer, but for what only the
//! user's own rights show.
//!
//! What would become of a request (`/api/explain`) is seen in several clusters and at their control planes, which a
//! collector may not ask. So it is answered here, by whoever opened the port; all else is passed on as it is. Knows
//! neither how the collector is reached nor how an explanation comes about.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONNECTION;
use http::{Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::page;
use crate::peers::chain;
use crate::serve::{Audience, admitted, http1, reply};
use crate::wire::{EXPLAIN, Explain};

/// A collector's slowest answers ask the collectors of other clusters, for which it has deadlines of its own.
const ANSWERED_WITHIN: Duration = Duration::from_secs(20);

type Body = UnsyncBoxBody<Bytes, hyper::Error>;

/// What stands behind the page.
pub trait Behind: Send + Sync + 'static {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// A way to a collector, or why there is none.
    fn collector(&self) -> impl Future<Output = Result<Self::Stream, String>> + Send;

    /// What becomes of a request, or why nobody can say.
    fn explain(&self, asked: Explain) -> impl Future<Output = Result<Value, String>> + Send;
}

/// Serves one connection of a browser to its end.
pub async fn serve<Io>(io: Io, behind: Arc<impl Behind>)
where
    Io: AsyncRead + AsyncWrite + Unpin,
{
    let collector = Arc::new(Mutex::new(None));
    let service = service_fn(|request: Request<Incoming>| {
        let (behind, collector) = (behind.clone(), collector.clone());
        async move {
            let response = match request.uri().path() {
                EXPLAIN => {
                    let mut response = explained(&*behind, &request).await.map(body);
                    page::protect(response.headers_mut());
                    response
                }
                _ => passed(&*behind, &collector, request).await,
            };
            Ok::<_, Infallible>(response)
        }
    });
    let connection = http1().serve_connection(TokioIo::new(io), service);
    // Whatever ends a connection is the browser's business.
    let _ = connection.await;
}

async fn explained(behind: &impl Behind, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let refused = |status, why: String| reply(status, &json!({"error": why}));
    if let Err(why) = admitted(request.headers(), Audience::People) {
        return refused(StatusCode::FORBIDDEN, why);
    }
    let question = match Explain::of(request.uri().query().unwrap_or_default()) {
        Ok(question) => question,
        Err(why) => return refused(StatusCode::BAD_REQUEST, why.to_string()),
    };
    match behind.explain(question).await {
        Ok(explanation) => reply(StatusCode::OK, &explanation),
        Err(why) => refused(StatusCode::BAD_GATEWAY, why),
    }
}

/// The collector's own answer. Its connection is kept for the next request, as the browser keeps its own.
async fn passed(
    behind: &impl Behind,
    collector: &Mutex<Option<SendRequest<Incoming>>>,
    mut request: Request<Incoming>,
) -> Response<Body> {
    request.headers_mut().remove(CONNECTION);
    let mut kept = collector.lock().await;
    let passing = async {
        let mut ready = None;
        if let Some(mut sender) = kept.take()
            && sender.ready().await.is_ok()
        {
            ready = Some(sender);
        }
        let mut sender = match ready {
            Some(sender) => sender,
            None => {
                let (sender, connection) = handshake(TokioIo::new(behind.collector().await?))
                    .await
                    .map_err(|error| chain(&error))?;
                // Ends with the sender.
                tokio::spawn(connection);
                sender
            }
        };
        let mut response = sender
            .send_request(request)
            .await
            .map_err(|error| chain(&error))?;
        // Of that connection, not of the browser's.
        response.headers_mut().remove(CONNECTION);
        *kept = Some(sender);
        Ok(response.map(BodyExt::boxed_unsync))
    };
    let late = || Err(format!("no answer within {} s", ANSWERED_WITHIN.as_secs()));
    let passed = timeout(ANSWERED_WITHIN, passing).await;
    passed.unwrap_or_else(|_| late()).unwrap_or_else(|why: String| {
        let why = format!("the collector can't be reached: {why}");
        reply(StatusCode::BAD_GATEWAY, &json!({"error": why})).map(body)
    })
}

fn body(full: Full<Bytes>) -> Body {
    full.map_err(|never| match never {}).boxed_unsync()
}

#[cfg(test)]
mod tests {
    use tokio::io::{DuplexStream, duplex};

    use super::*;
    use crate::fetch;

    /// A collector that answers once with the path that it was asked for, and hangs up.
    fn collector() -> DuplexStream {
        let (near, far) = duplex(1 << 16);
        tokio::spawn(async move {
            let service = service_fn(async |request: Request<Incoming>| {
                Ok::<_, Infallible>(reply(StatusCode::OK, &json!(request.uri().to_string())))
            });
            http1()
                .keep_alive(false)
                .serve_connection(TokioIo::new(far), service)
                .await
        });
        near
    }

    struct Clusters;

    impl Behind for Clusters {
        type Stream = DuplexStream;

        async fn collector(&self) -> Result<DuplexStream, String> {
            Ok(collector())
        }

        async fn explain(&self, asked: Explain) -> Result<Value, String> {
            match asked.name.as_str() {
                "unknown" => Err("nobody knows".to_owned()),
                _ => Ok(json!(asked.from.map(|from| from.name))),
            }
        }
    }

    async fn get(host: &str, path: &str) -> Result<String, String> {
        let (near, far) = duplex(1 << 16);
        let serving = serve(far, Arc::new(Clusters));
        let (answer, ()) = tokio::join!(fetch::get_from(near, host, path), serving);
        answer.map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn explanations_are_given_here_and_all_else_by_the_collector() {
        let path = "/api/series?namespace=x&name=web&window=60s";
        assert_eq!(get("localhost", path).await, Ok(format!("\"{path}\"\n")));
        let path = "/api/explain?namespace=x&name=web&from_kind=deployment&from_name=bot";
        assert_eq!(get("localhost:1", path).await, Ok("\"bot\"\n".to_owned()));
        let refused = get("attacker.example", path).await;
        assert!(refused.is_err_and(|why| why.contains("403")));
        let missing = get("localhost", "/api/explain?namespace=x").await;
        assert!(missing.is_err_and(|why| why.contains("400") && why.contains("name is missing")));
        let unknown = get("localhost", "/api/explain?namespace=x&name=unknown").await;
        assert!(unknown.is_err_and(|why| why.contains("502") && why.contains("nobody knows")));
    }

    #[tokio::test]
    async fn a_collector_that_has_gone_is_found_again() {
        let (near, far) = duplex(1 << 16);
        let asking = async move {
            let (mut sender, connection) = handshake(TokioIo::new(near)).await.expect("it is there");
            let connection = tokio::spawn(connection);
            for path in ["/one", "/two"] {
                let request = Request::get(path).header("host", "localhost");
                let request = request
                    .body(http_body_util::Empty::<Bytes>::new())
                    .expect("a request");
                let response = sender.send_request(request).await.expect("an answer");
                let text = response.into_body().collect().await.expect("its body").to_bytes();
                assert_eq!(text, format!("\"{path}\"\n"));
            }
            drop(sender);
            connection.await
        };
        let serving = serve(far, Arc::new(Clusters));
        let (ended, ()) = tokio::join!(asking, serving);
        assert!(ended.is_ok_and(|ended| ended.is_ok()));
    }
}
