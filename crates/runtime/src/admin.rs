//! The admin port of a control-plane process: `/live` (`/ping`), `/ready`, `/metrics`.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::{Metrics, Readiness, Shutdown};

/// A peer that sends no complete request head in this time is hung up on.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// More admin connections than this wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 64;

/// From the query of a request to the status and text of its answer.
type Page = Arc<dyn Fn(String) -> Pin<Box<dyn Future<Output = (StatusCode, String)> + Send>> + Send + Sync>;

/// What a process answers on its admin port besides what all do.
#[derive(Clone, Default)]
pub struct Pages(Arc<Mutex<BTreeMap<&'static str, Page>>>);

impl Pages {
    pub fn add<F>(&self, path: &'static str, page: impl Fn(String) -> F + Send + Sync + 'static)
    where
        F: Future<Output = (StatusCode, String)> + Send + 'static,
    {
        let page: Page = Arc::new(move |query| Box::pin(page(query)));
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(path, page);
    }

    fn at(&self, path: &str) -> Option<Page> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(path)
            .cloned()
    }
}

/// Serves until shutdown.
pub async fn serve(
    listener: TcpListener,
    readiness: Readiness,
    metrics: Metrics,
    shutdown: Shutdown,
) -> io::Result<()> {
    serve_with(listener, readiness, metrics, Pages::default(), shutdown).await
}

/// Serves, with these pages besides, until shutdown.
pub async fn serve_with(
    listener: TcpListener,
    readiness: Readiness,
    metrics: Metrics,
    pages: Pages,
    shutdown: Shutdown,
) -> io::Result<()> {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else {
            return Ok(());
        };
        let socket = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => return Ok(()),
        };
        let Ok((socket, _)) = socket else {
            // Out of file descriptors, most likely: try again when others have closed theirs.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let (readiness, metrics, pages) = (readiness.clone(), metrics.clone(), pages.clone());
        let shutdown = shutdown.clone();
        tokio::spawn(async move {
            let service = service_fn(|request: Request<Incoming>| {
                let page = pages
                    .at(request.uri().path())
                    .filter(|_| *request.method() == Method::GET);
                let page = page.map(|page| page(request.uri().query().unwrap_or_default().to_owned()));
                let response = answer(&request, &readiness, &metrics);
                async move {
                    Ok::<_, Infallible>(match page {
                        Some(page) => {
                            let (status, body) = page.await;
                            text(status, body)
                        }
                        None => response,
                    })
                }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .serve_connection(TokioIo::new(socket), service);
            // Whatever ends an admin connection is the peer's business.
            tokio::select! {
                _ = connection => {}
                () = shutdown.cancelled() => {}
            }
            drop(slot);
        });
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let plain = header::HeaderValue::from_static("text/plain");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

fn answer(request: &Request<Incoming>, readiness: &Readiness, metrics: &Metrics) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return text(
            StatusCode::METHOD_NOT_ALLOWED,
            "only GET is answered here\n".into(),
        );
    }
    match request.uri().path() {
        "/live" => text(StatusCode::OK, "live\n".into()),
        "/ping" => text(StatusCode::OK, "pong\n".into()),
        "/ready" if readiness.is_ready() => text(StatusCode::OK, "ready\n".into()),
        "/ready" => {
            let awaited = readiness.awaited().join(", ");
            text(
                StatusCode::SERVICE_UNAVAILABLE,
                format!("not ready: waiting for {awaited}\n"),
            )
        }
        "/metrics" => {
            let mut response = text(StatusCode::OK, metrics.render());
            let format = header::HeaderValue::from_static("text/plain; version=0.0.4");
            response.headers_mut().insert(header::CONTENT_TYPE, format);
            response
        }
        _ => text(
            StatusCode::NOT_FOUND,
            "not found: try /live, /ready or /metrics\n".into(),
        ),
    }
}
