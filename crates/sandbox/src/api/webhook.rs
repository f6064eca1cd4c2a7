//! Admission webhooks: which of them a write concerns, what they are asked, and what their answers do.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::Cluster;
use super::error::{ApiError, Result};
use super::objects::Write;
use super::pki::provider;
use super::registry::meta;
use super::request::Verb;
use super::selector::LabelSelector;
use super::tokens::user_info;
use crate::store::{Key, ResourceId};

/// Connects to a port of a Service, for webhooks that name one. Without it such webhooks fail.
pub type ServiceDialer = Arc<
    dyn Fn(String, String, u16) -> crate::kubelet::BoxFuture<'static, io::Result<TcpStream>> + Send + Sync,
>;

/// The largest answer that is read.
const ANSWER_SIZE_MAX: usize = 4 * 1024 * 1024;

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn list<'a>(value: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> {
    value
        .pointer(pointer)
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}

/// Where a webhook is, as errors name it.
fn url(webhook: &Value) -> String {
    match webhook.pointer("/clientConfig/service") {
        Some(service) if service.is_object() => {
            let port = service.get("port").and_then(Value::as_u64).unwrap_or(443);
            let path = text(service, "/path").trim_start_matches('/');
            let (name, namespace) = (text(service, "/name"), text(service, "/namespace"));
            format!("https://{name}.{namespace}.svc:{port}/{path}")
        }
        _ => text(webhook, "/clientConfig/url").to_owned(),
    }
}

/// Whether a webhook's rules name this write.
fn concerns(webhook: &Value, write: &Write<'_>, operation: &str) -> bool {
    let resource = write.resource;
    let subresource = write.call.target.subresource.as_deref();
    let qualified = match subresource {
        Some(subresource) => format!("{}/{subresource}", resource.plural),
        None => resource.plural.clone(),
    };
    // `matchPolicy: Equivalent`, the default: another version of the same resource is the same resource.
    let equivalent = text(webhook, "/matchPolicy") != "Exact";
    list(webhook, "/rules").any(|rule| {
        let any = |field: &str, wanted: &str| {
            list(rule, field)
                .filter_map(Value::as_str)
                .any(|one| one == "*" || one == wanted)
        };
        let named = list(rule, "/resources")
            .filter_map(Value::as_str)
            .any(|one| match one {
                "*" => subresource.is_none(),
                "*/*" => true,
                one => {
                    one == qualified
                        || one.strip_suffix("/*") == Some(&resource.plural)
                        || one.strip_prefix("*/").is_some_and(|sub| Some(sub) == subresource)
                }
            });
        let scope = match text(rule, "/scope") {
            "Namespaced" => resource.namespaced,
            "Cluster" => !resource.namespaced,
            _ => true,
        };
        any("/operations", operation)
            && any("/apiGroups", &resource.group)
            && (equivalent || any("/apiVersions", &resource.version))
            && named
            && scope
    })
}

impl Cluster {
    fn webhooks(&self, plural: &str) -> Vec<(String, Value)> {
        let id = ResourceId::from(format!("admissionregistration.k8s.io/{plural}"));
        let configurations = self.store.list(&id).objects;
        let all = configurations.values().flat_map(|stored| {
            list(&stored.value, "/webhooks")
                .map(|webhook| (stored.key.name.clone(), webhook.clone()))
                .collect::<Vec<_>>()
        });
        all.collect()
    }

    fn selected(&self, webhook: &Value, write: &Write<'_>, old: Option<&Value>, new: Option<&Value>) -> bool {
        // Webhooks can't lock the cluster out of their own configuration.
        if write.resource.group == "admissionregistration.k8s.io" {
            return false;
        }
        let selector = |pointer: &str| {
            webhook
                .pointer(pointer)
                .map_or_else(|| Some(LabelSelector::default()), LabelSelector::from_object)
        };
        let (Some(by_namespace), Some(by_object)) =
            (selector("/namespaceSelector"), selector("/objectSelector"))
        else {
            return false;
        };
        if !by_namespace.is_empty() {
            let namespace = match write.resource.is("", "namespaces") {
                true => new.or(old).cloned(),
                false => self
                    .store
                    .get(&ResourceId::from("namespaces"), &Key::new("", write.namespace))
                    .map(|stored| stored.value.clone()),
            };
            let namespaced = write.resource.namespaced || write.resource.is("", "namespaces");
            if namespaced && !namespace.is_some_and(|namespace| by_namespace.matches(&namespace)) {
                return false;
            }
        }
        [old, new]
            .into_iter()
            .flatten()
            .any(|object| by_object.matches(object))
    }

    pub(crate) async fn call_mutating_webhooks(
        &self,
        write: &Write<'_>,
        old: Option<&Value>,
        object: &mut Value,
    ) -> Result<()> {
        let webhooks = self.webhooks("mutatingwebhookconfigurations");
        if webhooks.is_empty() {
            return Ok(());
        }
        let operation = if old.is_none() { "CREATE" } else { "UPDATE" };
        // A webhook that asks for it is called once more if a later one changed what it has seen.
        let mut seen: Vec<Option<Value>> = vec![None; webhooks.len()];
        for round in 0..2 {
            for (index, (configuration, webhook)) in webhooks.iter().enumerate() {
                if round == 1 {
                    let again = text(webhook, "/reinvocationPolicy") == "IfNeeded";
                    let changed = seen[index].as_ref().is_some_and(|seen| seen != object);
                    if !again || !changed {
                        continue;
                    }
                }
                if !concerns(webhook, write, operation) || !self.selected(webhook, write, old, Some(object)) {
                    continue;
                }
                let answer = self
                    .call_webhook(configuration, webhook, write, operation, old, Some(object))
                    .await?;
                if let Some(patch) = answer.and_then(|answer| answer.patch) {
                    let name = text(webhook, "/name");
                    *object = crate::schema::patch::json_patch(object, &patch).map_err(|error| {
                        ApiError::internal(format!(
                            "webhook {name:?} answered a patch that doesn't apply: {error}"
                        ))
                    })?;
                }
                seen[index] = Some(object.clone());
            }
        }
        Ok(())
    }

    pub(crate) async fn call_validating_webhooks(
        &self,
        write: &Write<'_>,
        old: Option<&Value>,
        new: Option<&Value>,
    ) -> Result<()> {
        let operation = match (old, new) {
            (None, _) => "CREATE",
            (Some(_), Some(_)) => "UPDATE",
            (Some(_), None) => "DELETE",
        };
        let webhooks = self.webhooks("validatingwebhookconfigurations");
        let calls = webhooks
            .iter()
            .filter(|(_, webhook)| {
                concerns(webhook, write, operation) && self.selected(webhook, write, old, new)
            })
            .map(|(configuration, webhook)| {
                self.call_webhook(configuration, webhook, write, operation, old, new)
            });
        futures::future::try_join_all(calls).await.map(|_| ())
    }

    /// Asks one webhook; `None` if it failed and its policy is to go on without it.
    async fn call_webhook(
        &self,
        configuration: &str,
        webhook: &Value,
        write: &Write<'_>,
        operation: &str,
        old: Option<&Value>,
        new: Option<&Value>,
    ) -> Result<Option<Answer>> {
        let name = text(webhook, "/name");
        if write.dry_run && !matches!(text(webhook, "/sideEffects"), "None" | "NoneOnDryRun") {
            return Err(ApiError::bad_request(format!(
                "admission webhook {name:?} does not support dry run"
            )));
        }
        let uid = self.uid();
        let review = self.review_request(&uid, webhook, write, operation, old, new);
        let seconds = webhook
            .get("timeoutSeconds")
            .and_then(Value::as_u64)
            .unwrap_or(10)
            .clamp(1, 30);
        let query = format!("?timeout={seconds}s");
        let exchange = self.exchange(webhook, &review, &query);
        let posting = |problem: &dyn std::fmt::Display| {
            format!(
                "failed to call webhook: Post \"{}{query}\": {problem}",
                url(webhook)
            )
        };
        let answer = match tokio::time::timeout(Duration::from_secs(seconds), exchange).await {
            Ok(Ok((status, answer))) if status.is_success() => {
                let answer = serde_json::from_slice(&answer);
                let answer = answer.map_err(|error| format!("failed to call webhook: {error}"));
                answer.and_then(|answer| Answer::read(&answer, &uid))
            }
            Ok(Ok((_, said))) => Err(format!(
                "failed to call webhook: an error on the server ({:?}) has prevented the request from succeeding",
                String::from_utf8_lossy(&said)
            )),
            Ok(Err(error)) => Err(posting(&error)),
            Err(_) => Err(posting(&"context deadline exceeded")),
        };
        let answer = match answer {
            Ok(answer) => answer,
            Err(problem) if text(webhook, "/failurePolicy") == "Ignore" => {
                tracing::warn!(
                    webhook = name,
                    configuration,
                    problem,
                    "admission webhook failed open"
                );
                return Ok(None);
            }
            Err(problem) => {
                return Err(ApiError::internal(format!(
                    "failed calling webhook {name:?}: {problem}"
                )));
            }
        };
        for warning in &answer.warnings {
            write.call.warn(warning.clone());
        }
        if answer.allowed {
            return Ok(Some(answer));
        }
        let message = match (&answer.message, &answer.reason) {
            (Some(message), _) => format!("admission webhook {name:?} denied the request: {message}"),
            (None, Some(reason)) => format!("admission webhook {name:?} denied the request: {reason}"),
            (None, None) => format!("admission webhook {name:?} denied the request without explanation"),
        };
        Err(ApiError::denied(
            answer.code.unwrap_or(400),
            answer.reason.as_deref(),
            message,
        ))
    }

    fn review_request(
        &self,
        uid: &str,
        webhook: &Value,
        write: &Write<'_>,
        operation: &str,
        old: Option<&Value>,
        new: Option<&Value>,
    ) -> Value {
        let (resource, target) = (write.resource, &write.call.target);
        let kind = json!({ "group": resource.group, "version": resource.version, "kind": resource.kind });
        let plural =
            json!({ "group": resource.group, "version": resource.version, "resource": resource.plural });
        let name = new
            .or(old)
            .map(meta::name)
            .filter(|name| !name.is_empty())
            .or(target.name.as_deref());
        let options = match write.call.verb {
            Verb::Create => "CreateOptions",
            Verb::Delete | Verb::DeleteCollection => "DeleteOptions",
            _ => "UpdateOptions",
        };
        let mut request = json!({
            "uid": uid,
            "kind": kind,
            "resource": plural,
            "requestKind": kind,
            "requestResource": plural,
            "name": name.unwrap_or_default(),
            "operation": operation,
            "userInfo": user_info(&write.call.identity),
            "object": new,
            "oldObject": old,
            "dryRun": write.dry_run,
            "options": { "kind": options, "apiVersion": "meta.k8s.io/v1" },
        });
        if write.dry_run {
            request["options"]["dryRun"] = json!(["All"]);
        }
        if let Some(manager) = write.call.query.get("fieldManager") {
            request["options"]["fieldManager"] = manager.into();
        }
        if !write.namespace.is_empty() {
            request["namespace"] = write.namespace.into();
        }
        if let Some(subresource) = &target.subresource {
            request["subResource"] = subresource.as_str().into();
            request["requestSubResource"] = subresource.as_str().into();
        }
        let version = list(webhook, "/admissionReviewVersions")
            .filter_map(Value::as_str)
            .find(|version| matches!(*version, "v1" | "v1beta1"))
            .unwrap_or("v1");
        json!({ "kind": "AdmissionReview", "apiVersion": format!("admission.k8s.io/{version}"), "request": request })
    }

    /// One HTTPS request. Webhooks are rare enough not to keep connections.
    async fn exchange(
        &self,
        webhook: &Value,
        review: &Value,
        query: &str,
    ) -> io::Result<(http::StatusCode, Vec<u8>)> {
        let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, what.to_owned());
        let config = webhook
            .pointer("/clientConfig")
            .ok_or_else(|| invalid("clientConfig is missing"))?;
        let (stream, host, path): (TcpStream, String, String) =
            match config.get("service").filter(|s| s.is_object()) {
                Some(service) => {
                    let (namespace, name) = (
                        text(service, "/namespace").to_owned(),
                        text(service, "/name").to_owned(),
                    );
                    let port = service
                        .get("port")
                        .and_then(Value::as_u64)
                        .and_then(|port| u16::try_from(port).ok());
                    let host = format!("{name}.{namespace}.svc");
                    let dial = self.options.service_dialer.clone();
                    let dial = dial.ok_or_else(|| invalid("this cluster can't reach Services"))?;
                    let stream = dial(namespace, name, port.unwrap_or(443)).await?;
                    let path = match text(service, "/path") {
                        "" => "/",
                        path => path,
                    };
                    (stream, host, path.to_owned())
                }
                None => {
                    let uri: http::Uri = text(config, "/url")
                        .parse()
                        .map_err(|_| invalid("the url is not a URL"))?;
                    if uri.scheme_str() != Some("https") {
                        return Err(invalid("the url must begin with https"));
                    }
                    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
                    let stream = TcpStream::connect((host.as_str(), uri.port_u16().unwrap_or(443))).await?;
                    (
                        stream,
                        host,
                        uri.path_and_query().map_or("/", |path| path.as_str()).to_owned(),
                    )
                }
            };
        let bundle = STANDARD
            .decode(text(config, "/caBundle"))
            .map_err(|_| invalid("caBundle is not base64"))?;
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&bundle) {
            let certificate = certificate.map_err(|_| invalid("caBundle is not PEM"))?;
            roots.add(certificate).map_err(io::Error::other)?;
        }
        let tls = rustls::ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from(host.clone()).map_err(io::Error::other)?;
        let stream = tokio_rustls::TlsConnector::from(Arc::new(tls))
            .connect(name, stream)
            .await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(io::Error::other)?;
        let request = http::Request::post(format!("{path}{query}"))
            .header("host", &host)
            .header("content-type", "application/json")
            .header("accept", "application/json")
            .header("user-agent", "kube-apiserver-admission")
            .body(Full::new(bytes::Bytes::from(review.to_string())))
            .map_err(io::Error::other)?;
        let exchange = async {
            let response = sender.send_request(request).await.map_err(io::Error::other)?;
            let status = response.status();
            let mut body = response.into_body();
            let mut answer = Vec::new();
            while let Some(frame) = body.frame().await {
                if let Ok(data) = frame.map_err(io::Error::other)?.into_data() {
                    answer.extend_from_slice(&data);
                }
                if answer.len() > ANSWER_SIZE_MAX {
                    return Err(io::Error::other("the answer is too large"));
                }
            }
            Ok((status, answer))
        };
        // The connection is driven only as long as the exchange lasts, so nothing outlives the deadline.
        tokio::select! {
            answer = exchange => answer,
            _ = async { let _ = connection.await; std::future::pending::<()>().await } => Err(io::ErrorKind::ConnectionReset.into()),
        }
    }
}

/// What a webhook said.
struct Answer {
    allowed: bool,
    patch: Option<Value>,
    warnings: Vec<String>,
    code: Option<u16>,
    reason: Option<String>,
    message: Option<String>,
}

impl Answer {
    fn read(review: &Value, uid: &str) -> std::result::Result<Self, String> {
        let response = review.get("response").filter(|response| response.is_object());
        let invalid = "received invalid webhook response";
        let response = response.ok_or_else(|| format!("{invalid}: webhook response was absent"))?;
        let named = text(response, "/uid");
        if named != uid {
            return Err(format!("{invalid}: expected response.uid={uid:?}, got {named:?}"));
        }
        let patch = match response.get("patch").and_then(Value::as_str) {
            None | Some("") => None,
            Some(encoded) => {
                let bytes = STANDARD
                    .decode(encoded)
                    .map_err(|error| format!("the patch is not base64: {error}"))?;
                Some(
                    serde_json::from_slice(&bytes)
                        .map_err(|error| format!("the patch is not JSON: {error}"))?,
                )
            }
        };
        let status = |field: &str| response.pointer(&format!("/status/{field}"));
        let words = |field: &str| {
            status(field)
                .and_then(Value::as_str)
                .filter(|t| !t.is_empty())
                .map(str::to_owned)
        };
        Ok(Self {
            allowed: response.get("allowed").and_then(Value::as_bool).unwrap_or(false),
            patch,
            warnings: list(response, "/warnings")
                .filter_map(Value::as_str)
                .map(str::to_owned)
                .collect(),
            code: status("code")
                .and_then(Value::as_u64)
                .and_then(|code| u16::try_from(code).ok())
                .filter(|c| *c >= 400),
            reason: words("reason"),
            message: words("message"),
        })
    }
}
