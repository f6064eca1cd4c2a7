//! The network side: TLS connections become authenticated requests.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::header;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::net::{TcpListener, TcpStream};

use crate::tls_listener;

use super::Cluster;
use super::body::{self, Body, Response};
use super::error::ApiError;
use super::identity::Identity;
use super::pki;
use super::tokens::Bearer;

const CONNECTION_COUNT_MAX: usize = 4096;

impl Cluster {
    /// Serves TLS until dropped; dropping it closes every connection.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) -> io::Result<()> {
        let begin = |stream| (!self.is_refusing()).then(|| self.clone().connection(stream));
        match tls_listener::accept(&listener, CONNECTION_COUNT_MAX, begin).await {}
    }

    async fn connection(self: Arc<Self>, stream: TcpStream) {
        let mut epoch = self.epoch.subscribe();
        let Some(stream) = tls_listener::handshake(stream, self.pki.server.clone()).await else {
            return;
        };
        // The certificate was verified against the cluster's authority during the handshake.
        let certificate = stream
            .get_ref()
            .1
            .peer_certificates()
            .and_then(|chain| chain.first());
        let user = certificate.and_then(pki::identity);
        let service = hyper::service::service_fn({
            let cluster = self.clone();
            move |request: http::Request<Incoming>| {
                let (cluster, user) = (cluster.clone(), user.clone());
                async move { Ok::<_, std::convert::Infallible>(cluster.answer_remote(request, user).await) }
            }
        });
        let mut builder = Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(Duration::from_secs(30));
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(Some(Duration::from_secs(30)))
            .max_concurrent_streams(1000);
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        tokio::select! {
            result = connection => {
                if let Err(error) = result {
                    tracing::debug!(error, "connection ended with an error");
                }
            }
            _ = epoch.changed() => {}
        }
    }

    /// Answers a request from within the process that wants to take over its connection: there has to be one.
    pub(crate) async fn answer_upgrade(
        self: Arc<Self>,
        request: http::Request<kube::client::Body>,
        identity: Identity,
    ) -> io::Result<Response> {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let service = hyper::service::service_fn(move |request: http::Request<Incoming>| {
            let (cluster, identity) = (self.clone(), identity.clone());
            async move {
                let (parts, body) = request.into_parts();
                let body: Body = body.map_err(io::Error::other).boxed_unsync();
                Ok::<_, std::convert::Infallible>(cluster.answer(parts, body, identity).await)
            }
        });
        let server = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(far), service);
        // Both ends live as long as the client holds the upgraded connection or the response.
        tokio::spawn(server.with_upgrades());
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(near))
            .await
            .map_err(io::Error::other)?;
        tokio::spawn(connection.with_upgrades());
        let response = sender.send_request(request).await.map_err(io::Error::other)?;
        Ok(response.map(|body| body.map_err(io::Error::other).boxed_unsync()))
    }

    async fn answer_remote(
        self: Arc<Self>,
        request: http::Request<Incoming>,
        user: Option<Identity>,
    ) -> Response {
        let (mut parts, body) = request.into_parts();
        let body: Body = body.map_err(io::Error::other).boxed_unsync();
        let authorization = parts.headers.remove(header::AUTHORIZATION);
        let token = authorization
            .as_ref()
            .map(|value| value.to_str().unwrap_or_default());
        let token = token.and_then(|value| {
            let (scheme, token) = value.split_once(' ')?;
            scheme
                .eq_ignore_ascii_case("bearer")
                .then(|| token.trim().to_owned())
        });
        let identity = match (user, token) {
            (Some(user), _) => user,
            (None, Some(token)) => match self.believe(&token, &[]) {
                Some((identity, _)) => {
                    parts.extensions.insert(Bearer { token });
                    identity
                }
                None => return body::failure(&ApiError::unauthorized()),
            },
            (None, None) if authorization.is_some() => return body::failure(&ApiError::unauthorized()),
            (None, None) => Identity::anonymous(),
        };
        self.answer(parts, body, identity).await
    }
}
