//! What our proxies and our identity service say to each other beyond Linkerd's proxy API.
//!
//! A refused profile can be followed ([`WAITS`]), and one method, `dev.hawser.identity.v1.Trust/Watch`: a stream of whom to believe and who signs, for proxies that
//! already believe the service. Linkerd's control plane answers it with `Unimplemented`, Linkerd's proxies never ask;
//! both keep the anchors that they started with. Written by hand, so that building needs no code generator.

use std::convert::Infallible;
use std::future::ready;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::uri::PathAndQuery;
use tokio_stream::Stream;
use tonic::codegen::{Body, BoxFuture, Context, Poll, Service, StdError};
use tonic::server::NamedService;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

/// Metadata of a refused profile: a client that sends it with the next question is answered when the answer is another
/// one, or after [`WAIT`]. So what was refused is followed like anything else, although its stream has ended.
pub const WAITS: &str = "hawser-waits";
/// How long a question waits for another answer.
pub const WAIT: Duration = Duration::from_secs(30);

const SERVICE: &str = "dev.hawser.identity.v1.Trust";
const WATCH: &str = "/dev.hawser.identity.v1.Trust/Watch";

#[derive(Clone, PartialEq, prost::Message)]
pub struct WatchRequest {}

/// Sent at once, and again at each change.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Trusted {
    /// The whole bundle, PEM.
    #[prost(string, tag = "1")]
    pub anchors: String,
    /// The SHA-256 of the certificate that new leaves are signed with, in hexadecimal.
    #[prost(string, tag = "2")]
    pub issuer: String,
}

/// What a watcher gets.
pub type Updates = Pin<Box<dyn Stream<Item = Result<Trusted, Status>> + Send>>;

/// Asks a service.
pub async fn watch(channel: Channel) -> Result<Response<Streaming<Trusted>>, Status> {
    let mut client = tonic::client::Grpc::new(channel);
    client
        .ready()
        .await
        .map_err(|error| Status::unavailable(error.to_string()))?;
    let path = PathAndQuery::from_static(WATCH);
    let codec = ProstCodec::<WatchRequest, Trusted>::default();
    client
        .server_streaming(Request::new(WatchRequest {}), path, codec)
        .await
}

/// The service: calls a function for each watcher.
#[derive(Clone)]
pub struct TrustServer(Arc<dyn Fn() -> Updates + Send + Sync>);

impl TrustServer {
    pub fn new(watch: impl Fn() -> Updates + Send + Sync + 'static) -> Self {
        Self(Arc::new(watch))
    }
}

impl NamedService for TrustServer {
    const NAME: &'static str = SERVICE;
}

impl<B> Service<http::Request<B>> for TrustServer
where
    B: Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let watch = self.0.clone();
        Box::pin(async move {
            if request.uri().path() != WATCH {
                return Ok(Status::unimplemented("unknown method").into_http());
            }
            let method = tower::service_fn(move |_: Request<WatchRequest>| {
                ready(Ok::<_, Status>(Response::new(watch())))
            });
            let codec = ProstCodec::<Trusted, WatchRequest>::default();
            Ok(tonic::server::Grpc::new(codec)
                .server_streaming(method, request)
                .await)
        })
    }
}
