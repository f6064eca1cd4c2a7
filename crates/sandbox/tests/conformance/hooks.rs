//! A server of admission webhooks on the loopback interface. What it answers, the path of a call says.
//!
//! Knows not who calls.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls_pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// Longer than any caller of `/slow` waits.
const SLOW: Duration = Duration::from_secs(5);

/// Where the server is, and the certificate that it shows.
pub(crate) struct Hooks {
    pub(crate) url: String,
    /// PEM in base64, as configurations want it.
    pub(crate) ca: String,
}

/// Serves until the runtime ends.
pub(crate) async fn serve() -> Hooks {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a certificate");
    let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions of TLS")
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .expect("they belong together");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("https://{}", listener.local_addr().expect("it is bound"));
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(connection(acceptor.clone(), stream));
        }
    });
    Hooks {
        url,
        ca: STANDARD.encode(made.cert.pem()),
    }
}

async fn connection(acceptor: TlsAcceptor, stream: TcpStream) {
    let Ok(stream) = acceptor.accept(stream).await else {
        return;
    };
    let connection = hyper::server::conn::http1::Builder::new();
    let _ = connection
        .serve_connection(TokioIo::new(stream), service_fn(answer))
        .await;
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    let body = request.into_body().collect().await;
    let body = body.map(|body| body.to_bytes()).unwrap_or_default();
    let review: Value = serde_json::from_slice(&body).unwrap_or_default();
    let mut response = match path.as_str() {
        "/deny" => {
            json!({"allowed": false, "status": {"code": 409, "reason": "Conflict", "message": "not today"}})
        }
        "/deny-silently" => json!({"allowed": false}),
        "/tell" => json!({"allowed": false, "status": {"message": told(&review["request"])}}),
        "/label" => patch(&json!([{"op": "add", "path": "/metadata/labels", "value": {"hook": "was-here"}}])),
        "/misfit" => patch(&json!([{"op": "remove", "path": "/data/absent"}])),
        "/slow" => {
            tokio::time::sleep(SLOW).await;
            json!({"allowed": true})
        }
        "/broken" => {
            let mut broken = Response::new(Full::from("out of order"));
            *broken.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            return Ok(broken);
        }
        _ => json!({"allowed": true}),
    };
    response["uid"] = match path.as_str() {
        "/mistaken" => "another".into(),
        _ => review["request"]["uid"].clone(),
    };
    let answer = json!({"apiVersion": review["apiVersion"], "kind": "AdmissionReview", "response": response});
    let mut answer = Response::new(Full::from(answer.to_string()));
    answer.headers_mut().insert(
        http::header::CONTENT_TYPE,
        http::HeaderValue::from_static("application/json"),
    );
    Ok(answer)
}

fn patch(patch: &Value) -> Value {
    let patch = STANDARD.encode(patch.to_string());
    json!({"allowed": true, "patchType": "JSONPatch", "patch": patch})
}

/// What the server was asked, without what is different each time.
fn told(request: &Value) -> String {
    let fields = [
        "/operation",
        "/kind",
        "/resource",
        "/subResource",
        "/requestKind",
        "/requestResource",
        "/name",
        "/namespace",
        "/userInfo/username",
        "/dryRun",
        "/options",
        "/object/kind",
        "/object/data",
        "/oldObject/kind",
        "/oldObject/data",
    ];
    let told: Vec<String> = fields
        .iter()
        .map(|field| format!("{field}={}", request.pointer(field).unwrap_or(&Value::Null)))
        .collect();
    told.join(" ")
}
