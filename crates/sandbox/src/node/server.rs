//! The node's own HTTPS server, for an API server in another process: logs, exec, attach and port-forward.
//!
//! The paths, parameters and protocols are those of a kubelet. Whoever calls must hold a certificate of the cluster's
//! authority that names [`CALLER`]: that API server has asked who may do what before.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use http::{Method, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use jiff::Timestamp;
use tokio::net::{TcpListener, TcpStream};
use tokio_stream::wrappers::ReceiverStream;

use crate::api::body::{self, Response};
use crate::api::error::{ApiError, Result};
use crate::api::request::Query;
use crate::api::{pki, streams as api_streams};
use crate::kubelet::{ContainerRef, ExecOptions, Kubelet};
use crate::streams::{self, Forward, Wanted, Wire};
use crate::tls_listener;

/// The user that a kube-apiserver's certificate for kubelets names by custom.
pub(crate) const CALLER: &str = "kube-apiserver-kubelet-client";
/// Where kubelets listen by custom.
pub(crate) const PORT: u16 = 10250;

const CONNECTION_COUNT_MAX: usize = 1024;
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);

/// Serves until dropped; dropping it closes every connection. `tls` verifies client certificates where there are any.
pub(crate) async fn serve(kubelet: Arc<dyn Kubelet>, listener: TcpListener, tls: Arc<rustls::ServerConfig>) {
    let begin = |stream| Some(connection(kubelet.clone(), stream, tls.clone()));
    match tls_listener::accept(&listener, CONNECTION_COUNT_MAX, begin).await {}
}

async fn connection(kubelet: Arc<dyn Kubelet>, stream: TcpStream, tls: Arc<rustls::ServerConfig>) {
    let Some(stream) = tls_listener::handshake(stream, tls).await else {
        return;
    };
    let chain = stream.get_ref().1.peer_certificates();
    let caller = chain.and_then(|chain| chain.first()).and_then(pki::identity);
    let known = caller.is_some_and(|caller| caller.user == CALLER);
    let service = hyper::service::service_fn(move |request: http::Request<Incoming>| {
        let kubelet = kubelet.clone();
        async move {
            let answer = match known {
                true => answer(kubelet, request).await,
                false => Err(ApiError::unauthorized()),
            };
            Ok::<_, Infallible>(answer.unwrap_or_else(|error| body::failure(&error)))
        }
    });
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!(error, "connection ended with an error");
    }
}

async fn answer(kubelet: Arc<dyn Kubelet>, mut request: http::Request<Incoming>) -> Result<Response> {
    let path = request.uri().path().to_owned();
    let query = Query::parse(request.uri().query())?;
    let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
    if !matches!(*request.method(), Method::GET | Method::POST) {
        return Err(ApiError::bad_request("only GET and POST are served here"));
    }
    let container = |namespace: &str, pod: &str, container: &str| ContainerRef {
        namespace: namespace.to_owned(),
        pod: pod.to_owned(),
        container: container.to_owned(),
    };
    let refuse = || ApiError::bad_request("Upgrade request required");
    match *segments {
        ["healthz"] => Ok(body::text(StatusCode::OK, "ok")),
        ["containerLogs", namespace, pod, name] => {
            let options = api_streams::log_options(&query, Timestamp::now())?;
            let logs = kubelet.logs(container(namespace, pod, name), options).await;
            let lines = logs.map_err(api_streams::kubelet_error)?;
            let frames = ReceiverStream::new(lines).map(|bytes| Ok::<_, io::Error>(Frame::data(bytes)));
            let mut response = body::text(StatusCode::OK, "");
            *response.body_mut() = StreamBody::new(frames).boxed_unsync();
            Ok(response)
        }
        [kind @ ("exec" | "attach"), namespace, pod, name] => {
            let wire = Wire::for_exec(request.headers()).ok_or_else(refuse)?;
            let wanted = Wanted {
                stdin: query.flag("input"),
                stdout: query.flag("output"),
                stderr: query.flag("error"),
                tty: query.flag("tty"),
            };
            let options = ExecOptions {
                command: query.all("command").map(str::to_owned).collect(),
                tty: wanted.tty,
                stdin: wanted.stdin,
            };
            let target = container(namespace, pod, name);
            let session = match kind {
                "attach" => kubelet.attach(target).await,
                _ => kubelet.exec(target, options).await,
            };
            let upgrade = hyper::upgrade::on(&mut request);
            Ok(switch(wire, &request, async move {
                streams::exec(upgrade.await.map_err(io::Error::other)?, wire, wanted, session).await
            }))
        }
        ["portForward", namespace, pod] => {
            let wire = Wire::for_forward(request.headers()).ok_or_else(refuse)?;
            let forward = Forward {
                kubelet,
                namespace: namespace.to_owned(),
                pod: pod.to_owned(),
            };
            let ports = streams::ports(query.all("port"));
            let ports = match wire {
                Wire::Channels(_) => {
                    ports.ok_or_else(|| ApiError::bad_request("query parameter \"port\" is required"))?
                }
                _ => Vec::new(),
            };
            let upgrade = hyper::upgrade::on(&mut request);
            Ok(switch(wire, &request, async move {
                streams::forward(upgrade.await.map_err(io::Error::other)?, wire, forward, ports).await
            }))
        }
        _ => Err(ApiError::path_not_found()),
    }
}

/// Answers that protocols are switched, and does the work once they are. It ends with its connection or by itself.
fn switch(
    wire: Wire,
    request: &http::Request<Incoming>,
    work: impl Future<Output = io::Result<()>> + Send + 'static,
) -> Response {
    tokio::spawn(async move {
        if let Err(error) = work.await {
            tracing::debug!(%error, "a stream ended with an error");
        }
    });
    let mut response = body::text(StatusCode::SWITCHING_PROTOCOLS, "");
    *response.headers_mut() = wire.answer(request.headers());
    response
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use bytes::Bytes;
    use kube::Client;
    use kube::config::{KubeConfigOptions, Kubeconfig};
    use tokio::sync::mpsc;

    use super::*;
    use crate::api::Identity;
    use crate::kubelet::{BoxFuture, ExecSession, KubeletError, LogOptions};

    /// A node of one pod, which says what it was asked.
    struct Node;

    fn absent<T: Send + 'static>(
        pod: &'static str,
    ) -> BoxFuture<'static, std::result::Result<T, KubeletError>> {
        Box::pin(std::future::ready(Err(KubeletError::NoSuchPod(pod.to_owned()))))
    }

    impl Kubelet for Node {
        fn logs(
            &self,
            container: ContainerRef,
            options: LogOptions,
        ) -> BoxFuture<'_, std::result::Result<mpsc::Receiver<Bytes>, KubeletError>> {
            if container.pod != "p" {
                return absent("q");
            }
            let (sender, lines) = mpsc::channel(1);
            let _ = sender.try_send(format!("{} {:?}", container.container, options.tail_lines).into());
            Box::pin(std::future::ready(Ok(lines)))
        }

        fn exec(
            &self,
            _: ContainerRef,
            _: ExecOptions,
        ) -> BoxFuture<'_, std::result::Result<ExecSession, KubeletError>> {
            absent("p")
        }

        fn attach(&self, _: ContainerRef) -> BoxFuture<'_, std::result::Result<ExecSession, KubeletError>> {
            absent("p")
        }

        fn dial(
            &self,
            _: String,
            _: String,
            _: u16,
        ) -> BoxFuture<'_, std::result::Result<TcpStream, KubeletError>> {
            absent("p")
        }
    }

    /// What a user is answered: the text, or the code of the refusal.
    async fn ask(user: &str, path: &str) -> std::result::Result<String, u16> {
        let names = pki::server_names(&[]);
        let authority = pki::Pki::new(&names, &pki::server_addresses(&[], None)).expect("an authority");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .expect("a free port");
        let url = format!("https://{}", listener.local_addr().expect("it is bound"));
        let server = tokio::spawn(serve(Arc::new(Node), listener, authority.server.clone()));
        let kubeconfig = authority
            .kubeconfig("node", &url, &Identity::new(user, &[]))
            .expect("a kubeconfig");
        let kubeconfig = Kubeconfig::from_yaml(&kubeconfig).expect("YAML");
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
        let client = Client::try_from(config.expect("a configuration")).expect("a client");
        let request = http::Request::get(path).body(Vec::new()).expect("a request");
        let answer = client.request_text(request).await;
        server.abort();
        answer.map_err(|error| match error {
            kube::Error::Api(status) => status.code,
            error => panic!("{error}"),
        })
    }

    #[tokio::test]
    async fn an_api_server_reads_logs() {
        let said = ask(CALLER, "/containerLogs/ns/p/c?tailLines=3").await;
        assert_eq!(said.as_deref(), Ok("c Some(3)"));
    }

    #[tokio::test]
    async fn nobody_else_is_answered() {
        assert_eq!(ask("kubernetes-admin", "/containerLogs/ns/p/c").await, Err(401));
    }

    #[tokio::test]
    async fn what_is_not_there_is_said_to_be_missing() {
        assert_eq!(ask(CALLER, "/containerLogs/ns/q/c").await, Err(400));
        assert_eq!(ask(CALLER, "/stats").await, Err(404));
        assert_eq!(ask(CALLER, "/exec/ns/p/c?command=true").await, Err(400));
    }
}
