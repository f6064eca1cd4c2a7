//! The injector as the API server calls it: TLS, one AdmissionReview in, one out.
//!
//! Whatever goes wrong, the answer is "allowed": a mesh must not keep pods from starting. What a pod becomes is decided
//! in [`super::inject`].

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use arc_swap::{ArcSwap, ArcSwapOption};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use futures::StreamExt;
use hawser_runtime::Shutdown;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use k8s_openapi::api::core::v1 as core;
use kube::runtime::events::EventType;
use kube::runtime::watcher::watch_object;
use kube::{Api, Client, ResourceExt};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;

use super::inject::{Component, Injection, Namespace, Owner, strings};
use crate::notes::{Notes, about};
use crate::process::{self, Process, ProcessArgs};
use crate::values::Values;
use crate::view::objects;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    process: ProcessArgs,
    /// Namespace of the control plane
    #[arg(long, default_value = "linkerd")]
    controller_namespace: String,
    /// Directory with tls.crt and tls.key
    #[arg(long, default_value = "/var/run/linkerd/tls")]
    tls_dir: PathBuf,
    /// Where the API server asks
    #[arg(long, default_value = "0.0.0.0:8443")]
    addr: SocketAddr,
}

/// Pods are at most 1.5 MB in etcd; a review holds little more than one.
const BODY_MAX: usize = 8 << 20;
/// The API server itself gives up after ten seconds.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(8);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECTIONS_MAX: usize = 256;
const TLS_RELOAD_PERIOD: Duration = Duration::from_secs(5);
/// For so long after this pod was told to end, an API server may still send reviews to it. A pod whose review nobody
/// answers starts without a proxy.
const LINGER: Duration = Duration::from_secs(5);

pub async fn run(args: Args) -> anyhow::Result<()> {
    let process = Process::start(9995, &args.process).await?;
    let loaded = process.readiness.guard("configuration");
    let tls = Arc::new(ArcSwap::new(server_config(&args.tls_dir)?));
    let injector = Arc::new(Injector::new(
        process.client.clone(),
        args.controller_namespace,
        process.metrics.clone(),
    ));
    let listener = process::bind(args.addr).await?;
    tracing::info!(addr = %args.addr, "serving");
    let serving = tokio::spawn(serve(
        listener,
        tls.clone(),
        injector.clone(),
        process.drain.clone(),
    ));
    let work = async {
        tokio::select! {
            () = injector.follow_configuration(loaded) => {}
            () = reload(args.tls_dir, tls.clone()) => {}
        }
        anyhow::bail!("a task that never ends has ended")
    };
    process.serve(work).await?;
    serving.await.context("answering the API server to the end")
}

/// Reads the webhook's certificate and key.
pub fn server_config(dir: &std::path::Path) -> anyhow::Result<Arc<ServerConfig>> {
    let read = |name: &str| {
        let path = dir.join(name);
        std::fs::read(&path).with_context(|| format!("reading {}", path.display()))
    };
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&read("tls.crt")?)
        .collect::<Result<_, _>>()
        .context("reading the webhook's certificate")?;
    let key = PrivateKeyDer::from_pem_slice(&read("tls.key")?).context("reading the webhook's key")?;
    let config = ServerConfig::builder_with_provider(hawser_tls::provider().clone())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    Ok(Arc::new(config))
}

async fn reload(dir: PathBuf, tls: Arc<ArcSwap<ServerConfig>>) {
    let files = |dir: &PathBuf| {
        let read = |name: &str| std::fs::read(dir.join(name)).ok();
        (read("tls.crt"), read("tls.key"))
    };
    let mut last = files(&dir);
    loop {
        tokio::time::sleep(TLS_RELOAD_PERIOD).await;
        let current = files(&dir);
        if current == last {
            continue;
        }
        match server_config(&dir) {
            Ok(config) => {
                tracing::info!("certificate replaced");
                tls.store(config);
            }
            Err(error) => tracing::error!(error = format!("{error:#}"), "certificate not replaced"),
        }
        last = current;
    }
}

/// Accepts until some time after the drain has begun; then answers what was asked, and ends.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ArcSwap<ServerConfig>>,
    injector: Arc<Injector>,
    drain: Shutdown,
) {
    let (closing, connections) = (Shutdown::new(), TaskTracker::new());
    let over = async {
        drain.cancelled().await;
        tokio::time::sleep(LINGER).await;
    };
    tokio::select! {
        () = accept(listener, tls, injector, &closing, &connections) => {}
        () = over => {}
    }
    closing.cancel();
    connections.close();
    let _ = timeout(REQUEST_TIMEOUT, connections.wait()).await;
}

async fn accept(
    listener: TcpListener,
    tls: Arc<ArcSwap<ServerConfig>>,
    injector: Arc<Injector>,
    closing: &Shutdown,
    connections: &TaskTracker,
) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    while let Ok(slot) = slots.clone().acquire_owned().await {
        let Ok((socket, peer)) = listener.accept().await else {
            // Out of file descriptors, most likely.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let (acceptor, injector) = (TlsAcceptor::from(tls.load_full()), injector.clone());
        let closing = closing.clone();
        connections.spawn(async move {
            let Ok(Ok(stream)) = timeout(HANDSHAKE_TIMEOUT, acceptor.accept(socket)).await else {
                tracing::debug!(%peer, "handshake failed");
                return;
            };
            let service = service_fn(|request| {
                let injector = injector.clone();
                async move { Ok::<_, Infallible>(injector.answer(request).await) }
            });
            let builder = auto::Builder::new(TokioExecutor::new());
            let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
            // How a connection ends is the API server's business.
            tokio::select! {
                _ = connection.as_mut() => {}
                () = closing.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    let _ = connection.await;
                }
            }
            drop(slot);
        });
    }
}

/// The webhook with what it needs to know.
pub struct Injector {
    values: ArcSwapOption<Values>,
    /// What proxies should trust, when the ConfigMap of anchors says so.
    anchors: ArcSwapOption<String>,
    notes: Notes,
    client: Client,
    namespace: String,
    metrics: hawser_runtime::Metrics,
}

impl Injector {
    pub fn new(client: Client, namespace: String, metrics: hawser_runtime::Metrics) -> Self {
        Self {
            values: ArcSwapOption::empty(),
            anchors: ArcSwapOption::empty(),
            notes: Notes::new(client.clone(), "linkerd-proxy-injector"),
            client,
            namespace,
            metrics,
        }
    }

    /// Keeps values and anchors those of the ConfigMaps, so that a changed bundle is in the next pod. Runs for ever;
    /// drops the guard when pods can be injected.
    pub async fn follow_configuration(&self, loaded: hawser_runtime::Guard) {
        tokio::join!(self.follow_values(loaded), self.follow_anchors());
    }

    async fn follow_values(&self, loaded: hawser_runtime::Guard) {
        let mut loaded = Some(loaded);
        self.follow("linkerd-config", |data| {
            match data.get("values").map(|text| Values::from_yaml(text)) {
                Some(Ok(values)) => {
                    tracing::info!("values loaded");
                    self.values.store(Some(Arc::new(values)));
                    drop(loaded.take());
                }
                Some(Err(error)) => tracing::error!(%error, "values not loaded"),
                None => tracing::error!("ConfigMap linkerd-config has no key values"),
            }
        })
        .await;
    }

    async fn follow_anchors(&self) {
        self.follow("linkerd-identity-trust-roots", |data| {
            let bundle = data.get("ca-bundle.crt").map_or("", String::as_str);
            match hawser_tls::TrustAnchors::from_pem(bundle) {
                Ok(_) => self.anchors.store(Some(Arc::new(bundle.to_owned()))),
                // A proxy that believes nobody never gets ready.
                Err(error) => tracing::error!(%error, "trust bundle refused: pods get the old one"),
            }
        })
        .await;
    }

    async fn follow(&self, name: &str, mut use_data: impl FnMut(std::collections::BTreeMap<String, String>)) {
        let maps: Api<core::ConfigMap> = Api::namespaced(self.client.clone(), &self.namespace);
        let mut changes = std::pin::pin!(watch_object(maps, name));
        while let Some(change) = changes.next().await {
            match change {
                Ok(Some(map)) => use_data(map.data.unwrap_or_default()),
                Ok(None) => tracing::warn!(name, "ConfigMap does not exist"),
                Err(error) => {
                    tracing::warn!(name, %error, "watch failed");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let body = timeout(
            REQUEST_TIMEOUT,
            Limited::new(request.into_body(), BODY_MAX).collect(),
        )
        .await;
        let review: Option<Value> = body
            .ok()
            .and_then(Result::ok)
            .and_then(|body| serde_json::from_slice(&body.to_bytes()).ok());
        let (status, body) = match review {
            Some(review) => (StatusCode::OK, self.review(&review).await.to_string()),
            None => (
                StatusCode::BAD_REQUEST,
                "an AdmissionReview was expected\n".to_owned(),
            ),
        };
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = status;
        response.headers_mut().insert(
            http::header::CONTENT_TYPE,
            http::HeaderValue::from_static("application/json"),
        );
        response
    }

    /// Answers one review. Never refuses.
    pub async fn review(&self, review: &Value) -> Value {
        let request = &review["request"];
        let kind = request["kind"]["kind"].as_str().unwrap_or_default();
        let labels = [("kind", kind)];
        self.metrics.add(
            "proxy_inject_admission_requests_total",
            "admission requests",
            &labels,
            1.0,
        );
        let mut response = json!({"uid": request["uid"], "allowed": true});
        let patch = timeout(REQUEST_TIMEOUT, self.patch(request)).await;
        let outcome = match patch {
            Ok(Ok(patch)) if patch.0.is_empty() => "unchanged",
            Ok(Ok(patch)) => match serde_json::to_vec(&patch) {
                Ok(patch) => {
                    response["patchType"] = json!("JSONPatch");
                    response["patch"] = json!(BASE64.encode(patch));
                    "patched"
                }
                Err(_) => "failed",
            },
            Ok(Err(error)) => {
                tracing::error!(error = format!("{error:#}"), "pod admitted without a proxy");
                "failed"
            }
            Err(_) => {
                tracing::error!("pod admitted without a proxy: the API server did not answer in time");
                "failed"
            }
        };
        let labels = [("kind", kind), ("outcome", outcome)];
        self.metrics.add(
            "proxy_inject_admission_responses_total",
            "admission responses",
            &labels,
            1.0,
        );
        json!({"apiVersion": review["apiVersion"], "kind": "AdmissionReview", "response": response})
    }

    async fn patch(&self, request: &Value) -> anyhow::Result<json_patch::Patch> {
        let mut values = Values::clone(
            &*self
                .values
                .load_full()
                .context("the mesh's values are not loaded yet")?,
        );
        if let Some(anchors) = self.anchors.load_full() {
            values.identity_trust_anchors_pem.clone_from(&anchors);
        }
        let name = request["namespace"].as_str().unwrap_or_default();
        let namespaces: Api<core::Namespace> = Api::all(self.client.clone());
        let found = namespaces
            .get(name)
            .await
            .with_context(|| format!("reading namespace {name}"))?;
        let namespace = Namespace {
            name: name.to_owned(),
            annotations: found.annotations().clone(),
        };
        let object = &request["object"];
        let owner = serde_json::from_value::<core::Pod>(object.clone())
            .ok()
            .and_then(|pod| objects::owner(&pod));
        let owner = owner.map(|(kind, name)| Owner { kind, name });
        let injection = Injection {
            values: &values,
            control_plane_namespace: &self.namespace,
            namespace: &namespace,
            owner: owner.as_ref(),
            component: Component::None,
        };
        if request["kind"]["kind"] == "Service" {
            return Ok(injection.patch_service(object));
        }
        let (patch, outcome) = injection.patch(object);
        // Without an owner there is nothing yet that a note could be about: the pod has no name.
        if let Some(owner) = owner {
            let (kind, api_version) = match owner.kind.as_str() {
                "deployment" => ("Deployment", "apps/v1"),
                "daemonset" => ("DaemonSet", "apps/v1"),
                "statefulset" => ("StatefulSet", "apps/v1"),
                "replicaset" => ("ReplicaSet", "apps/v1"),
                "job" => ("Job", "batch/v1"),
                _ => return Ok(patch),
            };
            let about = about(api_version, kind, name, &owner.name);
            match &outcome {
                Ok(()) => self.notes.publish(
                    about,
                    EventType::Normal,
                    "Injected",
                    "Linkerd sidecar proxy injected".into(),
                ),
                Err(skip) => self.notes.publish(
                    about,
                    EventType::Normal,
                    "InjectionSkipped",
                    format!("Linkerd sidecar proxy injection skipped: {skip}"),
                ),
            }
        }
        let labels = strings(&object["metadata"]["labels"]);
        match outcome {
            Ok(()) => tracing::info!(namespace = name, app = labels.get("app"), "proxy injected"),
            Err(skip) => tracing::debug!(namespace = name, %skip, "no proxy injected"),
        }
        Ok(patch)
    }
}
