//! Logs, exec, attach and port-forward: streams between a client and a container, through the node.

use std::io;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use http::StatusCode;
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::upgrade::Upgraded;
use jiff::Timestamp;
use serde_json::Value;
use tokio_stream::wrappers::ReceiverStream;

use super::Cluster;
use super::body::{self, Response};
use super::error::{ApiError, Result};
use super::handler::Call;
use super::request::Query;
use crate::kubelet::{BoxFuture, ContainerRef, ExecOptions, Kubelet, KubeletError, LogOptions};
use crate::store::{Key, ResourceId};
use crate::streams::{self, Forward, Wanted, Wire};

impl Cluster {
    pub(crate) fn node(&self) -> Result<&Arc<dyn Kubelet>> {
        self.kubelet
            .get()
            .ok_or_else(|| ApiError::unavailable("no node serves this cluster"))
    }

    /// The container that a request means: named, annotated as default, or the only sensible one.
    pub(crate) fn container(&self, call: &Call, pod_name: &str) -> Result<ContainerRef> {
        let namespace = call.target.namespace.clone().unwrap_or_default();
        let stored = self
            .store
            .get(&ResourceId::from("pods"), &Key::new(namespace.as_str(), pod_name));
        let Some(stored) = stored else {
            let resource = self.registry.find(&call.target)?;
            return Err(ApiError::not_found(&resource, pod_name));
        };
        let pod = &stored.value;
        let names = |list: &str| -> Vec<&str> {
            let containers = pod
                .pointer(&format!("/spec/{list}"))
                .and_then(Value::as_array)
                .into_iter()
                .flatten();
            containers
                .filter_map(|container| container.get("name").and_then(Value::as_str))
                .collect()
        };
        let containers = names("containers");
        let every: Vec<&str> = [
            containers.clone(),
            names("initContainers"),
            names("ephemeralContainers"),
        ]
        .concat();
        let default = pod.pointer("/metadata/annotations/kubectl.kubernetes.io~1default-container");
        let container = match (
            call.query.get("container"),
            default.and_then(Value::as_str),
            containers.as_slice(),
        ) {
            (Some(named), _, _) if every.contains(&named) => named,
            (Some(named), _, _) => {
                return Err(ApiError::bad_request(format!(
                    "container {named} is not valid for pod {pod_name}"
                )));
            }
            (None, Some(default), _) if every.contains(&default) => default,
            (None, _, [only]) => only,
            (None, _, several) => {
                return Err(ApiError::bad_request(format!(
                    "a container name must be specified for pod {pod_name}, choose one of: {several:?}"
                )));
            }
        };
        Ok(ContainerRef {
            namespace,
            pod: pod_name.to_owned(),
            container: container.to_owned(),
        })
    }

    pub(crate) async fn log(self: &Arc<Self>, call: &Arc<Call>, pod: &str) -> Result<Response> {
        let container = self.container(call, pod)?;
        let options = log_options(&call.query, (self.options.clock)())?;
        let lines = self
            .node()?
            .logs(container, options)
            .await
            .map_err(kubelet_error)?;
        let frames = ReceiverStream::new(lines).map(|bytes| Ok::<_, io::Error>(Frame::data(bytes)));
        let mut response = body::text(StatusCode::OK, "");
        let cut = self.clone().withdrawn(call.clone());
        *response.body_mut() = StreamBody::new(frames.take_until(cut)).boxed_unsync();
        Ok(response)
    }

    /// Completes when every stream is cut, or when this one is no longer allowed.
    fn withdrawn(self: Arc<Self>, call: Arc<Call>) -> impl Future<Output = ()> + Send {
        let (mut epoch, mut grants) = (self.epoch.subscribe(), self.grants.subscribe());
        async move {
            loop {
                tokio::select! {
                    _ = epoch.changed() => return,
                    _ = grants.changed() => if self.still_allowed(&call).is_err() { return },
                }
            }
        }
    }

    /// Turns the connection into streams of a container or of a pod's ports.
    pub(crate) async fn stream(
        self: &Arc<Self>,
        call: &Arc<Call>,
        kind: &str,
        pod: &str,
    ) -> Result<Response> {
        let kubelet = self.node()?.clone();
        let upgrade = call.upgrade.lock().unwrap_or_else(PoisonError::into_inner).take();
        let refuse = || ApiError::bad_request("Upgrade request required");

        let (wire, work): (Wire, Work) = if matches!(kind, "exec" | "attach") {
            let container = self.container(call, pod)?;
            let options = ExecOptions {
                command: call.query.all("command").map(str::to_owned).collect(),
                tty: call.query.flag("tty"),
                stdin: call.query.flag("stdin"),
            };
            if kind == "exec" && options.command.is_empty() {
                return Err(ApiError::bad_request(
                    "you must specify at least one command for the container",
                ));
            }
            let wire = Wire::for_exec(&call.headers).ok_or_else(refuse)?;
            let wanted = Wanted {
                stdin: options.stdin,
                stdout: call.query.flag("stdout"),
                stderr: call.query.flag("stderr"),
                tty: options.tty,
            };
            let session = match kind {
                "attach" => kubelet.attach(container).await,
                _ => kubelet.exec(container, options).await,
            };
            (
                wire,
                Box::new(move |stream| Box::pin(streams::exec(stream, wire, wanted, session))),
            )
        } else {
            let namespace = call.target.namespace.clone().unwrap_or_default();
            if self
                .store
                .get(&ResourceId::from("pods"), &Key::new(namespace.as_str(), pod))
                .is_none()
            {
                return Err(ApiError::not_found(&*self.registry.find(&call.target)?, pod));
            }
            let forward = Forward {
                kubelet,
                namespace,
                pod: pod.to_owned(),
            };
            let wire = Wire::for_forward(&call.headers).ok_or_else(refuse)?;
            let ports = streams::ports(call.query.all("ports"));
            let ports = match wire {
                Wire::Channels(_) => {
                    ports.ok_or_else(|| ApiError::bad_request("query parameter \"ports\" is required"))?
                }
                _ => Vec::new(),
            };
            (
                wire,
                Box::new(move |stream| Box::pin(streams::forward(stream, wire, forward, ports))),
            )
        };
        let upgrade = upgrade.ok_or_else(refuse)?;
        let mut response = body::text(StatusCode::SWITCHING_PROTOCOLS, "");
        *response.headers_mut() = wire.answer(&call.headers);
        let cut = self.clone().withdrawn(call.clone());
        // Ends with its connection, with a cut, or when either side is done.
        tokio::spawn(async move {
            let served = async {
                let stream = upgrade.await.map_err(io::Error::other)?;
                work(stream).await
            };
            tokio::select! {
                result = served => {
                    if let Err(error) = result {
                        tracing::debug!(%error, "a stream ended with an error");
                    }
                }
                () = cut => {}
            }
        });
        Ok(response)
    }
}

/// What a query says about logs.
pub(crate) fn log_options(query: &Query, now: Timestamp) -> Result<LogOptions> {
    let since = match (query.number::<u64>("sinceSeconds")?, query.get("sinceTime")) {
        (Some(seconds), _) => Some(Duration::from_secs(seconds)),
        (None, Some(at)) => {
            let at: Timestamp = at
                .parse()
                .map_err(|_| ApiError::bad_request(format!("invalid sinceTime {at:?}")))?;
            Some(Duration::try_from(now.duration_since(at)).unwrap_or(Duration::ZERO))
        }
        (None, None) => None,
    };
    Ok(LogOptions {
        follow: query.flag("follow"),
        previous: query.flag("previous"),
        timestamps: query.flag("timestamps"),
        tail_lines: query.number("tailLines")?,
        limit_bytes: query.number("limitBytes")?,
        since,
        stream: None,
    })
}

type Work = Box<dyn FnOnce(Upgraded) -> BoxFuture<'static, io::Result<()>> + Send>;

pub(crate) fn kubelet_error(error: KubeletError) -> Box<ApiError> {
    match error {
        KubeletError::NoSuchPod(_) | KubeletError::NoSuchContainer(_) | KubeletError::NotRunning { .. } => {
            ApiError::bad_request(error.to_string())
        }
        KubeletError::Dial { .. } | KubeletError::Io { .. } => ApiError::internal(&error),
    }
}
