//! Reads what a pod serves through the API server's port-forward, so that it works wherever kubectl works.

use std::time::Duration;

use hawser_viz::fetch::{self, FetchError};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;

use crate::forward::{self, ForwardError};

/// A pod that does not answer in this time is not there.
const DEADLINE: Duration = Duration::from_secs(5);

/// Why a pod could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ScrapeError {
    #[error(transparent)]
    Forward(#[from] ForwardError),
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("the pod did not answer within {0:?}")]
    Silent(Duration),
}

impl ScrapeError {
    /// Whether the pod answered that it serves no such thing.
    pub(crate) fn is_missing(&self) -> bool {
        let not_found = http::StatusCode::NOT_FOUND;
        matches!(self, Self::Fetch(FetchError::Status { status, .. }) if *status == not_found)
    }
}

/// `GET /metrics` on a port of a pod.
pub(crate) async fn metrics(pods: &Api<Pod>, pod: &str, port: u16) -> Result<String, ScrapeError> {
    get(pods, pod, port, "/metrics").await
}

/// `GET` of some path on a port of a pod.
pub(crate) async fn get(pods: &Api<Pod>, pod: &str, port: u16, path: &str) -> Result<String, ScrapeError> {
    get_within(DEADLINE, pods, pod, port, path).await
}

/// The same of something that takes its time.
pub(crate) async fn get_within(
    patience: Duration,
    pods: &Api<Pod>,
    pod: &str,
    port: u16,
    path: &str,
) -> Result<String, ScrapeError> {
    let getting = async {
        let stream = forward::connect(pods, pod, port).await?;
        Ok(fetch::get(stream, path).await?)
    };
    tokio::time::timeout(patience, getting)
        .await
        .unwrap_or(Err(ScrapeError::Silent(patience)))
}
