//! The admin port (`spec/proxy.md` 1.3): liveness, readiness, metrics, and a few levers for the pod itself.
//!
//! Behind the inbound policy of its own port like any other, with TLS detected by SNI, so that the kubelet probes it
//! in plain text and other clusters' gateways' probes come by mutual TLS. Probes pass before any policy is known.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use hawser_core::authz::{Client, authorize};
use hawser_runtime::Shutdown;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};

use crate::config::{Config, Env};
use crate::discover::Discovery;
use crate::identity::Identity;
use crate::inbound::{Detected, detect_tls};
use crate::metrics::{Labels, Metrics, Shard};
use crate::outbound::{canonical, detect_http};
use crate::transport::{Conn, TcpMetrics};
use crate::worker::{Http, LocalExecutor};
use crate::{message, route};

const DETECT_TIMEOUT: Duration = Duration::from_secs(1);
const CONNECTIONS_MAX: usize = 256;
const FILTER_BYTES_MAX: usize = 4 * 1024;

#[derive(Clone)]
pub(crate) struct Admin {
    pub(crate) config: Arc<Config>,
    pub(crate) env: Arc<Env>,
    pub(crate) identity: Identity,
    pub(crate) discovery: Discovery,
    pub(crate) metrics: Metrics,
    pub(crate) shard: Shard,
    pub(crate) shutdown: Shutdown,
    pub(crate) started_at: SystemTime,
}

type Answer = Response<Full<Bytes>>;

pub(crate) async fn serve(admin: Admin, listener: std::net::TcpListener) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "The admin port cannot be used"),
    };
    let slots = Arc::new(tokio::sync::Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else {
            return;
        };
        let Ok((socket, client)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let admin = admin.clone();
        tokio::task::spawn_local(async move {
            let own = socket.local_addr();
            if let Ok(own) = own {
                connection(admin, Conn::tcp(socket), canonical(client), own).await;
            }
            drop(slot);
        });
    }
}

async fn connection(admin: Admin, conn: Conn, client_addr: SocketAddr, own: SocketAddr) {
    let sni = &admin.config.identity.server_name;
    let (mut conn, client) = match detect_tls(&admin.identity, sni, conn, DETECT_TIMEOUT).await {
        Ok(Detected::Plain(conn)) => (conn, Client::Plain),
        Ok(Detected::Terminated(conn, client)) => (conn, client),
        Ok(Detected::Foreign(..)) | Err(_) => return,
    };
    let mut labels = Labels::new()
        .with("direction", "inbound")
        .with("target_addr", own)
        .with("target_ip", own.ip())
        .with("target_port", own.port());
    match &client {
        Client::Plain => {
            labels = labels
                .with("tls", "no_identity")
                .with("no_tls_reason", "no_tls_from_remote")
        }
        Client::Anonymous => labels = labels.with("tls", "true").with("client_id", ""),
        Client::Authenticated(id) => labels = labels.with("tls", "true").with("client_id", id),
    }
    conn = conn.counted(TcpMetrics::new(&admin.shard, "src", &labels));
    let requests = admin.shard.counter("request_total", labels);
    let version = match detect_http(&mut conn, DETECT_TIMEOUT).await {
        Ok(Some(version)) => version,
        Ok(None) if client == Client::Plain => Http::One,
        Ok(None) => Http::Two,
        Err(_) => return,
    };
    let service = service_fn(move |request| {
        requests.inc();
        let (admin, client) = (admin.clone(), client.clone());
        async move {
            let response = match permitted(&admin, &request, client_addr.ip(), &client, own.port()) {
                Ok(()) => admin.answer(request, client_addr.ip()).await,
                Err(status) => text(status, ""),
            };
            Ok::<_, Infallible>(response)
        }
    });
    // What ends an admin connection is the client's business.
    let _ = match version {
        Http::One => {
            let mut builder = http1::Builder::new();
            builder
                .timer(TokioTimer::new())
                .header_read_timeout(Duration::from_secs(60));
            builder.serve_connection(TokioIo::new(conn), service).await
        }
        Http::Two => {
            http2::Builder::new(LocalExecutor)
                .serve_connection(TokioIo::new(conn), service)
                .await
        }
    };
}

fn permitted(
    admin: &Admin,
    request: &Request<Incoming>,
    ip: IpAddr,
    client: &Client,
    port: u16,
) -> Result<(), StatusCode> {
    let policy = admin.discovery.inbound(port);
    let policy = policy.load();
    let policy = policy.as_deref().ok_or(StatusCode::INTERNAL_SERVER_ERROR)?;
    if policy.invalid {
        return Err(StatusCode::INTERNAL_SERVER_ERROR);
    }
    let request = message::Request::from(request);
    let host = crate::http_rules::host_of(&request);
    let found = route::best(
        &policy.routes,
        |r| &r.matches,
        host,
        &request.method,
        &request.head,
    );
    let found = found.ok_or(StatusCode::NOT_FOUND)?;
    authorize(&found.authorizations, ip, client)
        .map(drop)
        .map_err(|_| StatusCode::FORBIDDEN)
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

fn only(allow: &'static str) -> Answer {
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "");
    response
        .headers_mut()
        .insert(header::ALLOW, HeaderValue::from_static(allow));
    response
}

impl Admin {
    async fn answer(&self, request: Request<Incoming>, client: IpAddr) -> Answer {
        let from_pod = client.is_loopback();
        match (request.uri().path(), request.method()) {
            ("/live", _) => text(StatusCode::OK, "live\n"),
            ("/ready", _) if self.identity.get().is_some() => text(StatusCode::OK, "ready\n"),
            ("/ready", _) => text(StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
            ("/metrics", _) => self.exposition(&request),
            ("/env.json", &Method::GET) => self.environment(request.uri().query(), &request),
            ("/env.json", _) => only("GET"),
            ("/proxy-log-level" | "/shutdown", _) if !from_pod => text(
                StatusCode::FORBIDDEN,
                "Requests are only permitted from localhost.",
            ),
            ("/proxy-log-level", &Method::GET) => text(StatusCode::OK, hawser_runtime::logging::filter()),
            ("/proxy-log-level", &Method::PUT) => {
                let Ok(body) = Limited::new(request.into_body(), FILTER_BYTES_MAX)
                    .collect()
                    .await
                else {
                    return text(StatusCode::BAD_REQUEST, "the filter is too long\n");
                };
                let filter = body.to_bytes();
                match std::str::from_utf8(&filter)
                    .map_err(|e| e.to_string())
                    .and_then(|filter| {
                        hawser_runtime::logging::set_filter(filter.trim()).map_err(|error| error.to_string())
                    }) {
                    Ok(()) => text(StatusCode::NO_CONTENT, ""),
                    Err(why) => text(StatusCode::BAD_REQUEST, format!("{why}\n")),
                }
            }
            ("/proxy-log-level", _) => only("GET, PUT"),
            ("/shutdown", &Method::POST) if !self.config.shutdown_endpoint => {
                text(StatusCode::NOT_FOUND, "shutdown endpoint is not enabled\n")
            }
            ("/shutdown", &Method::POST) => {
                self.shutdown.cancel();
                text(StatusCode::OK, "shutdown\n")
            }
            ("/shutdown", _) => only("POST"),
            _ => text(StatusCode::NOT_FOUND, ""),
        }
    }

    fn exposition(&self, request: &Request<Incoming>) -> Answer {
        let mut out = self.metrics.render();
        identity_metrics(&mut out, &self.identity);
        process_metrics(&mut out, self.started_at);
        let wants_gzip = request
            .headers()
            .get_all(header::ACCEPT_ENCODING)
            .iter()
            .any(|value| {
                value
                    .to_str()
                    .unwrap_or_default()
                    .split(',')
                    .any(|coding| coding.split(';').next().unwrap_or_default().trim() == "gzip")
            });
        let mut response = text(StatusCode::OK, Bytes::new());
        let format = HeaderValue::from_static("text/plain; version=0.0.4");
        response.headers_mut().insert(header::CONTENT_TYPE, format);
        if wants_gzip {
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            // Writing to memory cannot fail.
            let _ = gzip.write_all(out.as_bytes());
            if let Ok(bytes) = gzip.finish() {
                response
                    .headers_mut()
                    .insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
                *response.body_mut() = Full::new(bytes.into());
                return response;
            }
        }
        *response.body_mut() = Full::new(out.into());
        response
    }

    fn environment(&self, query: Option<&str>, request: &Request<Incoming>) -> Answer {
        let accept = request
            .headers()
            .get(header::ACCEPT)
            .and_then(|value| value.to_str().ok());
        let json = accept.is_none_or(|accept| {
            ["application/json", "application/*", "*/*"]
                .iter()
                .any(|t| accept.contains(t))
        });
        if !json {
            return text(StatusCode::NOT_ACCEPTABLE, "");
        }
        let (status, body) = match query {
            Some(query) if query.contains('=') => {
                let error = "query parameters must be names of environment variables, without values";
                (StatusCode::BAD_REQUEST, serde_json::json!({ "error": error }))
            }
            Some(query) => {
                let all = self.env.all();
                let some: BTreeMap<&str, Option<&String>> = query
                    .split('&')
                    .filter(|name| !name.is_empty())
                    .map(|name| (name, all.get(name)))
                    .collect();
                (StatusCode::OK, serde_json::json!(some))
            }
            None => (StatusCode::OK, serde_json::json!(self.env.all())),
        };
        let mut response = text(status, body.to_string());
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }
}

/// Whom we believe and who signed us, so that one look at all proxies shows how far a rotation is.
fn identity_metrics(out: &mut String, identity: &Identity) {
    use std::fmt::Write as _;
    // Writing to a String cannot fail.
    let _ = writeln!(out, "# TYPE identity_trust_anchors_info gauge");
    for sha256 in identity.anchors().fingerprints() {
        let _ = writeln!(out, "identity_trust_anchors_info{{sha256=\"{sha256}\"}} 1");
    }
    if let Some(sha256) = identity.get().and_then(|credentials| credentials.issuer()) {
        let _ = writeln!(
            out,
            "# TYPE identity_cert_issuer_info gauge\nidentity_cert_issuer_info{{sha256=\"{sha256}\"}} 1"
        );
    }
}

/// What the kernel says of this process; what it doesn't say is left out.
fn process_metrics(out: &mut String, started_at: SystemTime) {
    use std::fmt::Write as _;
    let started = started_at
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64();
    let mut gauge = |name: &str, kind: &str, value: f64| {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "# TYPE {name} {kind}\n{name} {value}");
    };
    gauge("process_start_time_seconds", "gauge", started);
    if let Ok(usage) = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF) {
        let seconds = |t: nix::sys::time::TimeVal| t.tv_sec() as f64 + t.tv_usec() as f64 / 1e6;
        gauge(
            "process_cpu_seconds_total",
            "counter",
            seconds(usage.user_time()) + seconds(usage.system_time()),
        );
    }
    let pages = std::fs::read_to_string("/proc/self/statm").ok();
    let resident = pages
        .as_deref()
        .and_then(|text| text.split(' ').nth(1)?.parse::<f64>().ok());
    if let (Some(pages), Ok(Some(size))) =
        (resident, nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE))
    {
        gauge("process_resident_memory_bytes", "gauge", pages * size as f64);
    }
    if let Ok(fds) = std::fs::read_dir("/proc/self/fd") {
        gauge("process_open_fds", "gauge", fds.count() as f64);
    }
    let _ = writeln!(
        out,
        "# TYPE proxy_build_info gauge\nproxy_build_info{{version=\"{}\",vendor=\"hawser\"}} 1",
        env!("CARGO_PKG_VERSION")
    );
}
