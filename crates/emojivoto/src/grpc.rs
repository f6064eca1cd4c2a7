//! The messages of `emojivoto.v1` and the little that is needed to call and answer unary methods.
//!
//! Written by hand: voting has a method per emoji, all of one shape, so the method names are data here and not code.

use http::{Request, Response};
use hyper::body::Incoming;
use tonic::body::Body;
use tonic::client::Grpc as Client;
use tonic::server::Grpc as Server;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_prost::ProstCodec;

use crate::metrics::Metrics;

pub(crate) const EMOJI_SERVICE: &str = "emojivoto.v1.EmojiService";
pub(crate) const VOTING_SERVICE: &str = "emojivoto.v1.VotingService";

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Empty {}

#[derive(Clone, PartialEq, prost::Message, serde::Serialize)]
pub(crate) struct Emoji {
    #[prost(string, tag = "1")]
    pub(crate) unicode: String,
    #[prost(string, tag = "2")]
    pub(crate) shortcode: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ListAllEmojiResponse {
    #[prost(message, repeated, tag = "1")]
    pub(crate) list: Vec<Emoji>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct FindByShortcodeRequest {
    #[prost(string, tag = "1")]
    pub(crate) shortcode: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct FindByShortcodeResponse {
    #[prost(message, optional, tag = "1")]
    pub(crate) emoji: Option<Emoji>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct VotingResult {
    #[prost(string, tag = "1")]
    pub(crate) shortcode: String,
    #[prost(int32, tag = "2")]
    pub(crate) votes: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ResultsResponse {
    #[prost(message, repeated, tag = "1")]
    pub(crate) results: Vec<VotingResult>,
}

/// The method name if the path is one of `service`'s.
pub(crate) fn method<'a>(request: &'a Request<Incoming>, service: &str) -> Option<&'a str> {
    request
        .uri()
        .path()
        .strip_prefix('/')?
        .strip_prefix(service)?
        .strip_prefix('/')
}

/// Answers one unary method that exists.
pub(crate) async fn answer<I, O>(
    request: Request<Incoming>,
    metrics: &Metrics,
    decide: impl Fn(I) -> Result<O, Status>,
) -> Response<Body>
where
    I: prost::Message + Default + 'static,
    O: prost::Message + Default + 'static,
{
    let path = request.uri().path().to_owned();
    let (service, method) = path.trim_start_matches('/').split_once('/').unwrap_or_default();
    let service_fn = tower::service_fn(|message: tonic::Request<I>| {
        let decided = decide(message.into_inner());
        let code = decided.as_ref().err().map_or(Code::Ok, Status::code);
        metrics.count(
            "grpc_server_handled_total",
            "Total number of RPCs completed on the server.",
            &[
                ("grpc_code", &format!("{code:?}")),
                ("grpc_method", method),
                ("grpc_service", service),
            ],
        );
        std::future::ready(decided.map(tonic::Response::new))
    });
    Server::new(ProstCodec::<O, I>::default())
        .unary(service_fn, request)
        .await
}

/// Answers a method that does not exist.
pub(crate) fn unimplemented() -> Response<Body> {
    Status::unimplemented("unknown method").into_http()
}

/// Calls one unary method.
pub(crate) async fn call<I, O>(
    channel: &Channel,
    service: &str,
    method: &str,
    message: I,
) -> Result<O, Status>
where
    I: prost::Message + 'static,
    O: prost::Message + Default + 'static,
{
    let path = http::uri::PathAndQuery::try_from(format!("/{service}/{method}"))
        .map_err(|_| Status::invalid_argument("not a method name"))?;
    let mut client = Client::new(channel.clone());
    client
        .ready()
        .await
        .map_err(|error| Status::unavailable(error.to_string()))?;
    let response = client
        .unary(tonic::Request::new(message), path, ProstCodec::<I, O>::default())
        .await?;
    Ok(response.into_inner())
}
