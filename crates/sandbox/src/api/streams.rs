//! Logs, exec, attach and port-forward: streams between a client and a container, through the node.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use http::StatusCode;
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use serde_json::Value;
use tokio_stream::wrappers::ReceiverStream;

use super::Cluster;
use super::body::{self, Response};
use super::error::{ApiError, Result};
use super::handler::Call;
use crate::kubelet::{ContainerRef, Kubelet, KubeletError, LogOptions};
use crate::store::{Key, ResourceId};

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
        let query = &call.query;
        let since = match (query.number::<u64>("sinceSeconds")?, query.get("sinceTime")) {
            (Some(seconds), _) => Some(Duration::from_secs(seconds)),
            (None, Some(at)) => {
                let at: jiff::Timestamp = at
                    .parse()
                    .map_err(|_| ApiError::bad_request(format!("invalid sinceTime {at:?}")))?;
                let past = (self.options.clock)().duration_since(at);
                Some(Duration::try_from(past).unwrap_or(Duration::ZERO))
            }
            (None, None) => None,
        };
        let options = LogOptions {
            follow: query.flag("follow"),
            previous: query.flag("previous"),
            timestamps: query.flag("timestamps"),
            tail_lines: query.number("tailLines")?,
            limit_bytes: query.number("limitBytes")?,
            since,
        };
        let lines = self
            .node()?
            .logs(container, options)
            .await
            .map_err(kubelet_error)?;
        let frames = ReceiverStream::new(lines).map(|bytes| Ok::<_, std::io::Error>(Frame::data(bytes)));
        let mut response = body::text(StatusCode::OK, "");
        let mut epoch = self.epoch.subscribe();
        let cut = async move {
            // Only a cut ends the stream early; the cluster itself outlives it.
            if epoch.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        *response.body_mut() = StreamBody::new(frames.take_until(cut)).boxed_unsync();
        Ok(response)
    }

    pub(crate) async fn stream(
        self: &Arc<Self>,
        _call: &Arc<Call>,
        kind: &str,
        _pod: &str,
    ) -> Result<Response> {
        Err(ApiError::not_implemented(format!("{kind} is not served")))
    }
}

pub(crate) fn kubelet_error(error: KubeletError) -> Box<ApiError> {
    match error {
        KubeletError::NoSuchPod(_) | KubeletError::NoSuchContainer(_) | KubeletError::NotRunning { .. } => {
            ApiError::bad_request(error.to_string())
        }
        KubeletError::Dial { .. } | KubeletError::Io { .. } => ApiError::internal(&error),
    }
}
