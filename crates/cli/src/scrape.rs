//! Reads a pod's metrics through the API server's port-forward, so that it works wherever kubectl works.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;

use crate::forward::{self, ForwardError};

/// An exposition larger than this is not read.
const EXPOSITION_BYTES_MAX: usize = 16 << 20;
/// A pod that does not answer in this time is not there.
const DEADLINE: Duration = Duration::from_secs(5);

/// Why a pod's metrics could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ScrapeError {
    #[error(transparent)]
    Forward(#[from] ForwardError),
    #[error("reading the pod's metrics: {0}")]
    Http(String),
    #[error("the pod did not answer within {} s", DEADLINE.as_secs())]
    Silent,
}

/// `GET /metrics` on a port of a pod.
pub(crate) async fn metrics(pods: &Api<Pod>, pod: &str, port: u16) -> Result<String, ScrapeError> {
    tokio::time::timeout(DEADLINE, get(pods, pod, port))
        .await
        .unwrap_or(Err(ScrapeError::Silent))
}

async fn get(pods: &Api<Pod>, pod: &str, port: u16) -> Result<String, ScrapeError> {
    let http = |error: &dyn std::fmt::Display| ScrapeError::Http(error.to_string());
    let stream = forward::connect(pods, pod, port).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| http(&error))?;
    let connection = tokio::spawn(connection);
    let request = http::Request::get("/metrics")
        .header(http::header::HOST, "localhost")
        .body(Empty::<Bytes>::new())
        .map_err(|error| http(&error))?;
    let response = sender.send_request(request).await.map_err(|error| http(&error))?;
    if !response.status().is_success() {
        return Err(http(&response.status()));
    }
    let body = Limited::new(response.into_body(), EXPOSITION_BYTES_MAX)
        .collect()
        .await
        .map_err(|error| http(&error))?;
    connection.abort();
    String::from_utf8(body.to_bytes().into()).map_err(|error| http(&error))
}
