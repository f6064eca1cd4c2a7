//! Logs, exec, attach and port-forward: streams between a client and a container, through the node.

use std::io;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures::{SinkExt as _, StreamExt as _};
use http::{HeaderName, HeaderValue, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};

use super::Cluster;
use super::body::{self, Response};
use super::error::{ApiError, Result};
use super::handler::Call;
use super::spdy::{self, Forward};
use crate::kubelet::{BoxFuture, ContainerRef, ExecOptions, ExecSession, Kubelet, KubeletError, LogOptions};
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
            stream: None,
        };
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
        let header = |name: &str| {
            call.headers
                .get(name)
                .and_then(|value| value.to_str().ok())
                .unwrap_or_default()
        };
        let protocols: Vec<&str> = header("sec-websocket-protocol")
            .split(',')
            .map(str::trim)
            .collect();
        let is_websocket = header("upgrade").eq_ignore_ascii_case("websocket");
        let is_spdy = header("upgrade").eq_ignore_ascii_case("SPDY/3.1");
        let offers = |protocol: &str| is_websocket && protocols.contains(&protocol);
        let kubelet = self.node()?.clone();
        let upgrade = call.upgrade.lock().unwrap_or_else(PoisonError::into_inner).take();
        let refuse = || ApiError::bad_request("Upgrade request required");

        let (protocol, work): (&str, Work) = if matches!(kind, "exec" | "attach") {
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
            let protocol = ["v5.channel.k8s.io", "v4.channel.k8s.io"]
                .into_iter()
                .find(|protocol| offers(protocol));
            let protocol = protocol.ok_or_else(|| match is_spdy {
                true => ApiError::not_implemented("exec and attach are served over WebSocket only"),
                false => refuse(),
            })?;
            let session = match kind {
                "attach" => kubelet.attach(container).await,
                _ => kubelet.exec(container, options).await,
            };
            // A client whose upgrade is refused tries an older protocol and reports that one's failure, so what the
            // node has to say is said within the stream.
            let work: Work = match session {
                Ok(session) => Box::new(move |stream| Box::pin(exec(stream, session))),
                Err(error) => {
                    let status = kubelet_error(error).status();
                    Box::new(move |stream| Box::pin(refuse_exec(stream, status)))
                }
            };
            (protocol, work)
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
            if is_spdy {
                (
                    "",
                    Box::new(move |stream| Box::pin(spdy::serve(TokioIo::new(stream), forward))),
                )
            } else if offers("SPDY/3.1+portforward.k8s.io") {
                (
                    "SPDY/3.1+portforward.k8s.io",
                    Box::new(move |stream| Box::pin(tunnel(stream, forward))),
                )
            } else if offers("v4.channel.k8s.io") {
                let ports: std::result::Result<Vec<u16>, _> = call
                    .query
                    .all("ports")
                    .flat_map(|ports| ports.split(','))
                    .map(str::parse)
                    .collect();
                let ports = ports.ok().filter(|ports| (1..=16).contains(&ports.len()));
                let ports =
                    ports.ok_or_else(|| ApiError::bad_request("query parameter \"ports\" is required"))?;
                (
                    "v4.channel.k8s.io",
                    Box::new(move |stream| Box::pin(channels(stream, forward, ports))),
                )
            } else {
                return Err(refuse());
            }
        };
        let upgrade = upgrade.ok_or_else(refuse)?;
        let mut response = body::text(StatusCode::SWITCHING_PROTOCOLS, "");
        let headers = response.headers_mut();
        headers.clear();
        let mut set = |name: HeaderName, value: &str| {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(name, value);
            }
        };
        set(header::CONNECTION, "Upgrade");
        if is_websocket {
            set(header::UPGRADE, "websocket");
            set(
                header::SEC_WEBSOCKET_ACCEPT,
                &derive_accept_key(header("sec-websocket-key").as_bytes()),
            );
            set(header::SEC_WEBSOCKET_PROTOCOL, protocol);
        } else {
            set(header::UPGRADE, "SPDY/3.1");
            set(
                HeaderName::from_static("x-stream-protocol-version"),
                "portforward.k8s.io",
            );
        }
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

type Work = Box<dyn FnOnce(Upgraded) -> BoxFuture<'static, io::Result<()>> + Send>;
type Socket = WebSocketStream<TokioIo<Upgraded>>;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// Version 5 of the protocol: the next byte names a channel that ends.
const CLOSE: u8 = 255;

/// How long output may still arrive after the process has ended, from children that kept its streams.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(200);

async fn websocket(stream: Upgraded) -> Socket {
    WebSocketStream::from_raw_socket(TokioIo::new(stream), Role::Server, None).await
}

fn message(channel: u8, bytes: &[u8]) -> Message {
    let mut joined = Vec::with_capacity(bytes.len() + 1);
    joined.push(channel);
    joined.extend_from_slice(bytes);
    Message::binary(joined)
}

/// The end of a session that went well. Clients take a close without this code for a failure.
fn goodbye() -> Message {
    Message::Close(Some(CloseFrame {
        code: CloseCode::Normal,
        reason: "".into(),
    }))
}

/// Standard streams over WebSocket channels.
async fn exec(stream: Upgraded, session: ExecSession) -> io::Result<()> {
    let ExecSession {
        mut stdin,
        mut stdout,
        mut stderr,
        resize,
        mut exit,
    } = session;
    let (mut sink, mut source) = websocket(stream).await.split();
    let input = async move {
        while let Some(Ok(received)) = source.next().await {
            let bytes = match received {
                Message::Binary(bytes) => bytes,
                Message::Close(_) => return,
                _ => continue,
            };
            match bytes.split_first() {
                Some((&STDIN, data)) => {
                    if let Some(stdin) = &mut stdin {
                        // A process that no longer reads is within its rights.
                        let _ = stdin.write_all(data).await;
                        let _ = stdin.flush().await;
                    }
                }
                Some((&RESIZE, data)) => {
                    let size: Value = serde_json::from_slice(data).unwrap_or_default();
                    let side = |name: &str| {
                        size.get(name)
                            .and_then(Value::as_u64)
                            .and_then(|n| u16::try_from(n).ok())
                    };
                    if let (Some(width), Some(height)) = (side("Width"), side("Height")) {
                        let _ = resize.send((width, height)).await;
                    }
                }
                Some((&CLOSE, &[STDIN])) => {
                    if let Some(mut stdin) = stdin.take() {
                        let _ = stdin.shutdown().await;
                    }
                }
                _ => {}
            }
        }
    };
    let output = async move {
        let (mut out, mut err) = (vec![0; 32 * 1024], vec![0; 32 * 1024]);
        let (mut out_open, mut err_open) = (true, true);
        let mut code = None;
        while code.is_none() || out_open || err_open {
            tokio::select! {
                read = stdout.read(&mut out), if out_open => match read {
                    Ok(count @ 1..) => sink.send(message(STDOUT, &out[..count])).await.map_err(io::Error::other)?,
                    _ => out_open = false,
                },
                read = stderr.read(&mut err), if err_open => match read {
                    Ok(count @ 1..) => sink.send(message(STDERR, &err[..count])).await.map_err(io::Error::other)?,
                    _ => err_open = false,
                },
                result = &mut exit, if code.is_none() => code = Some(result),
                () = tokio::time::sleep(DRAIN_TIMEOUT), if code.is_some() => break,
            }
        }
        let status = match code {
            Some(Ok(0)) => json!({ "metadata": {}, "status": "Success" }),
            Some(Ok(code)) => json!({
                "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
                "message": format!("command terminated with non-zero exit code: exit status {code}"),
                "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
            }),
            Some(Err(error)) => kubelet_error(error).status(),
            None => ApiError::internal("the process was lost").status(),
        };
        sink.send(message(ERROR, status.to_string().as_bytes()))
            .await
            .map_err(io::Error::other)?;
        sink.send(goodbye()).await.map_err(io::Error::other)
    };
    tokio::select! {
        // The client went: dropping the session hangs up on the process.
        () = input => Ok(()),
        result = output => result,
    }
}

/// A stream that only says why there is no process.
async fn refuse_exec(stream: Upgraded, status: Value) -> io::Result<()> {
    let mut socket = websocket(stream).await;
    let text = status.to_string();
    let sent = socket.send(message(ERROR, text.as_bytes())).await;
    sent.map_err(io::Error::other)?;
    socket.send(goodbye()).await.map_err(io::Error::other)
}

/// SPDY inside WebSocket messages.
async fn tunnel(stream: Upgraded, forward: Forward) -> io::Result<()> {
    let (mut sink, mut source) = websocket(stream).await.split();
    let (near, far) = tokio::io::duplex(64 * 1024);
    let (mut reader, mut writer) = tokio::io::split(near);
    let inward = async move {
        while let Some(Ok(received)) = source.next().await {
            match received {
                Message::Binary(bytes) => writer.write_all(&bytes).await?,
                Message::Close(_) => break,
                _ => {}
            }
        }
        io::Result::Ok(())
    };
    let outward = async move {
        let mut buffer = vec![0; 32 * 1024];
        loop {
            let count = reader.read(&mut buffer).await?;
            if count == 0 {
                return io::Result::Ok(());
            }
            sink.send(Message::binary(buffer[..count].to_vec()))
                .await
                .map_err(io::Error::other)?;
        }
    };
    tokio::select! {
        result = inward => result,
        result = outward => result,
        result = spdy::serve(far, forward) => result,
    }
}

/// Ports as numbered channels: twice the port's index for data, one more for errors. Both begin with the port.
async fn channels(stream: Upgraded, forward: Forward, ports: Vec<u16>) -> io::Result<()> {
    let (mut sink, mut source) = websocket(stream).await.split();
    let (messages, mut outgoing) = mpsc::channel::<Message>(32);
    let mut inputs = Vec::new();
    let mut downloads = Vec::new();
    for (index, port) in (0_u8..).zip(ports) {
        let (data, errors) = (index * 2, index * 2 + 1);
        for channel in [data, errors] {
            sink.send(message(channel, &port.to_le_bytes()))
                .await
                .map_err(io::Error::other)?;
        }
        match forward
            .kubelet
            .dial(forward.namespace.clone(), forward.pod.clone(), port)
            .await
        {
            Ok(connection) => {
                let (mut from_pod, to_pod) = connection.into_split();
                inputs.push(Some(to_pod));
                let messages = messages.clone();
                downloads.push(async move {
                    let mut buffer = vec![0; 32 * 1024];
                    while let Ok(count @ 1..) = from_pod.read(&mut buffer).await {
                        if messages.send(message(data, &buffer[..count])).await.is_err() {
                            return;
                        }
                    }
                });
            }
            Err(error) => {
                inputs.push(None);
                let text = error.to_string();
                sink.send(message(errors, text.as_bytes()))
                    .await
                    .map_err(io::Error::other)?;
            }
        }
    }
    drop(messages);
    let download = futures::future::join_all(downloads);
    let write = async move {
        while let Some(message) = outgoing.recv().await {
            sink.send(message).await.map_err(io::Error::other)?;
        }
        // All pods' ends are closed and everything they said is sent.
        sink.send(goodbye()).await.map_err(io::Error::other)
    };
    let upload = async move {
        while let Some(Ok(received)) = source.next().await {
            let bytes = match received {
                Message::Binary(bytes) => bytes,
                Message::Close(_) => break,
                _ => continue,
            };
            let Some((channel, data)) = bytes.split_first() else {
                continue;
            };
            if channel % 2 == 0
                && let Some(Some(input)) = inputs.get_mut(usize::from(channel / 2))
            {
                input.write_all(data).await?;
            }
        }
        io::Result::Ok(())
    };
    tokio::select! {
        result = upload => result,
        (result, _) = async { tokio::join!(write, download) } => result,
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
