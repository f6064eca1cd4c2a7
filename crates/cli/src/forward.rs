//! A connection to a port of a pod through the API server, so that it works wherever kubectl works.

use std::time::Duration;

use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::transport::{Channel, Endpoint};

/// A pod that does not answer in this time is not there.
const DEADLINE: Duration = Duration::from_secs(5);

/// Why a pod's port could not be reached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ForwardError {
    #[error("forwarding port {port} of pod {pod}")]
    Refused {
        pod: String,
        port: u16,
        #[source]
        source: Box<kube::Error>,
    },
    #[error("the API server forwards no port {port} of pod {pod}")]
    NoStream { pod: String, port: u16 },
    #[error("pod {pod} did not answer on port {port} within {} s", DEADLINE.as_secs())]
    Silent { pod: String, port: u16 },
}

pub(crate) trait Bytes: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Bytes for T {}

/// Ends when it is dropped.
pub(crate) type Stream = Box<dyn Bytes>;

pub(crate) async fn connect(pods: &Api<Pod>, pod: &str, port: u16) -> Result<Stream, ForwardError> {
    let name = || pod.to_owned();
    let ports = [port];
    let forwarding = tokio::time::timeout(DEADLINE, pods.portforward(pod, &ports));
    let mut forward = forwarding
        .await
        .map_err(|_| ForwardError::Silent { pod: name(), port })?
        .map_err(|source| ForwardError::Refused {
            pod: name(),
            port,
            source: Box::new(source),
        })?;
    let stream = forward
        .take_stream(port)
        .ok_or_else(|| ForwardError::NoStream { pod: name(), port })?;
    Ok(Box::new(stream))
}

/// A gRPC connection to a port that a pod serves without TLS on its loopback.
pub(crate) async fn channel(
    pods: &Api<Pod>,
    pod: &str,
    port: u16,
) -> Result<Channel, tonic::transport::Error> {
    let (pods, pod) = (pods.clone(), pod.to_owned());
    let connector = tower::service_fn(move |_: http::Uri| {
        let (pods, pod) = (pods.clone(), pod.clone());
        async move { connect(&pods, &pod, port).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://localhost")
        .connect_timeout(DEADLINE)
        .connect_with_connector(connector)
        .await
}
