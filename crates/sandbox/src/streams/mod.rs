//! Exec, attach and port-forward on the wire: what an upgraded connection carries between a client and a container.
//!
//! The sandbox's API server speaks this with clients, and the node with an API server of another process. Three forms:
//! numbered channels in WebSocket messages, SPDY, and SPDY inside WebSocket messages. Knows neither requests nor who
//! may make them.

mod spdy;

use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, SplitSink, SplitStream, Stream};
use futures::{SinkExt as _, StreamExt as _};
use http::{HeaderMap, HeaderName, HeaderValue, header};
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

pub(crate) use self::spdy::Forward;
use crate::kubelet::{ExecSession, KubeletError};

/// A form that client and server agreed on, with the protocol's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wire {
    /// Numbered channels in WebSocket messages.
    Channels(&'static str),
    /// SPDY inside WebSocket messages.
    Tunnel(&'static str),
    Spdy(&'static str),
}

const EXEC: [Wire; 3] = [
    Wire::Channels("v5.channel.k8s.io"),
    Wire::Channels("v4.channel.k8s.io"),
    Wire::Spdy("v4.channel.k8s.io"),
];
const FORWARD: [Wire; 3] = [
    Wire::Tunnel("SPDY/3.1+portforward.k8s.io"),
    Wire::Channels("v4.channel.k8s.io"),
    Wire::Spdy("portforward.k8s.io"),
];
const SPDY_UPGRADE: &str = "SPDY/3.1";
const SPDY_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");

impl Wire {
    /// The first form for exec and attach that the headers of a request offer.
    pub(crate) fn for_exec(headers: &HeaderMap) -> Option<Self> {
        EXEC.into_iter().find(|wire| wire.is_offered(headers))
    }

    /// The same for port-forward.
    pub(crate) fn for_forward(headers: &HeaderMap) -> Option<Self> {
        FORWARD.into_iter().find(|wire| wire.is_offered(headers))
    }

    fn is_offered(self, headers: &HeaderMap) -> bool {
        let (upgrade, list, protocol) = match self {
            Self::Channels(name) | Self::Tunnel(name) => ("websocket", header::SEC_WEBSOCKET_PROTOCOL, name),
            Self::Spdy(name) => (SPDY_UPGRADE, SPDY_PROTOCOL, name),
        };
        let values = |name| {
            headers
                .get_all(name)
                .into_iter()
                .filter_map(|value| value.to_str().ok())
        };
        let mut upgrades = values(header::UPGRADE);
        let offered = values(list).flat_map(|line| line.split(',')).map(str::trim);
        upgrades.any(|offer| offer.eq_ignore_ascii_case(upgrade))
            && offered.into_iter().any(|offer| offer == protocol)
    }

    /// Headers of the answer that switches protocols.
    pub(crate) fn answer(self, request: &HeaderMap) -> HeaderMap {
        let mut answer = HeaderMap::new();
        answer.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        match self {
            Self::Channels(name) | Self::Tunnel(name) => {
                answer.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
                answer.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(name));
                let key = request.get(header::SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes);
                let accept = HeaderValue::try_from(derive_accept_key(key.unwrap_or_default()));
                answer.extend(accept.map(|accept| (header::SEC_WEBSOCKET_ACCEPT, accept)));
            }
            Self::Spdy(name) => {
                answer.insert(header::UPGRADE, HeaderValue::from_static(SPDY_UPGRADE));
                answer.insert(SPDY_PROTOCOL, HeaderValue::from_static(name));
            }
        }
        answer
    }
}

/// The streams that a client of exec or attach opens.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wanted {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

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
/// How long a client may take to answer a ping, and how long after it has made its streams.
const PONG_TIMEOUT: Duration = Duration::from_millis(500);
const READY: Duration = Duration::from_millis(20);
/// Of messages that come before a ping is answered.
const EARLY_MAX: usize = 16;
/// How long a client may take to open the streams that it asked for.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);

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

/// Serves exec or attach. A client whose upgrade is refused tries an older protocol and reports that one's failure, so
/// what the node has to say instead of a session is said within the stream.
pub(crate) async fn exec(
    stream: Upgraded,
    wire: Wire,
    wanted: Wanted,
    session: Result<ExecSession, KubeletError>,
) -> io::Result<()> {
    if let Wire::Spdy(_) = wire {
        let stream = TokioIo::new(stream);
        return spdy::serve(stream, |opened| exec_spdy(opened, wanted, session)).await;
    }
    let (mut sink, mut source) = websocket(stream).await.split();
    let early = until_ready(&mut sink, &mut source).await?;
    // The client went when this ends: by its closing message, or without a word.
    let heard = stream::iter(early.into_iter().map(Ok))
        .chain(source)
        .take_while(|received| {
            let open = matches!(received, Ok(message) if !message.is_close());
            async move { open }
        })
        .filter_map(|received| async move {
            let Ok(Message::Binary(bytes)) = received else {
                return None;
            };
            match bytes.split_first()? {
                (&CLOSE, &[channel]) => Some(Heard::End(channel)),
                (&channel, _) => Some(Heard::Bytes(channel, bytes.slice(1..))),
            }
        });
    let mut client = Client::WebSocket(sink);
    converse(session, heard, &mut client).await?;
    client.dismiss().await
}

/// Waits until a client reads, and gives back what it has said meanwhile. kubectl discards what it reads before it has
/// made its streams ("Unknown stream id"), which it does at the same time; output of a quick command would be lost.
async fn until_ready(
    sink: &mut SplitSink<Socket, Message>,
    source: &mut SplitStream<Socket>,
) -> io::Result<Vec<Message>> {
    let mut early = Vec::new();
    sink.send(Message::Ping(Bytes::new()))
        .await
        .map_err(io::Error::other)?;
    let answer = async {
        while early.len() < EARLY_MAX
            && let Some(Ok(message)) = source.next().await
            && !message.is_pong()
        {
            early.push(message);
        }
    };
    // One that doesn't know pings is served all the same.
    let _ = tokio::time::timeout(PONG_TIMEOUT, answer).await;
    tokio::time::sleep(READY).await;
    Ok(early)
}

/// The same over SPDY, where every stream is opened by the client.
async fn exec_spdy(
    mut opened: mpsc::Receiver<spdy::Opened>,
    wanted: Wanted,
    session: Result<ExecSession, KubeletError>,
) -> io::Result<()> {
    let expected = [
        ("error", ERROR, true),
        ("stdin", STDIN, wanted.stdin),
        ("stdout", STDOUT, wanted.stdout),
        ("stderr", STDERR, wanted.stderr && !wanted.tty),
        ("resize", RESIZE, wanted.tty),
    ];
    let mut missing: Vec<_> = expected.into_iter().filter(|(_, _, wanted)| *wanted).collect();
    let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
    let open = async {
        while !missing.is_empty()
            && let Some(spdy::Opened { headers, stream }) = opened.recv().await
        {
            let kind = headers.get("streamtype").map(String::as_str);
            let Some(index) = missing.iter().position(|(name, ..)| Some(*name) == kind) else {
                continue;
            };
            let (_, channel, _) = missing.swap_remove(index);
            match channel {
                STDIN | RESIZE => inputs.push((channel, stream.input)),
                _ => outputs.push((channel, stream.output())),
            }
        }
    };
    if tokio::time::timeout(OPEN_TIMEOUT, open).await.is_err() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let heard = inputs.into_iter().map(|(channel, input)| {
        let bytes = ReceiverStream::new(input).map(move |bytes| Heard::Bytes(channel, bytes));
        bytes.chain(stream::iter([Heard::End(channel)])).boxed()
    });
    // That the client went ends the connection; here it only means that nothing more is heard.
    let heard = stream::select_all(heard).chain(stream::pending());
    let mut client = Client::Spdy(outputs);
    converse(session, heard, &mut client).await?;
    client.dismiss().await
}

/// Where a client is told something.
enum Client {
    WebSocket(SplitSink<Socket, Message>),
    /// A stream per channel, as far as the client opened them.
    Spdy(Vec<(u8, spdy::Output)>),
}

impl Client {
    async fn tell(&mut self, channel: u8, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::WebSocket(sink) => sink.send(message(channel, bytes)).await.map_err(io::Error::other),
            Self::Spdy(outputs) => match outputs.iter().find(|(known, _)| *known == channel) {
                Some((_, output)) => output.send(bytes).await,
                None => Ok(()),
            },
        }
    }

    /// Nothing more comes.
    async fn dismiss(self) -> io::Result<()> {
        match self {
            Self::WebSocket(mut sink) => sink.send(goodbye()).await.map_err(io::Error::other),
            Self::Spdy(outputs) => {
                for (_, output) in &outputs {
                    output.finish(&[]).await?;
                }
                Ok(())
            }
        }
    }
}

/// What a client said.
enum Heard {
    Bytes(u8, Bytes),
    /// Nothing more comes on this channel.
    End(u8),
}

/// Joins a session's streams with a client's channels, and ends with its outcome on the error channel.
async fn converse(
    session: Result<ExecSession, KubeletError>,
    heard: impl Stream<Item = Heard>,
    client: &mut Client,
) -> io::Result<()> {
    let session = match session {
        Ok(session) => session,
        Err(error) => return client.tell(ERROR, failure(&error).to_string().as_bytes()).await,
    };
    let ExecSession {
        mut stdin,
        mut stdout,
        mut stderr,
        resize,
        mut exit,
    } = session;
    let input = async move {
        let mut heard = std::pin::pin!(heard);
        while let Some(heard) = heard.next().await {
            match heard {
                Heard::Bytes(STDIN, data) => {
                    if let Some(stdin) = &mut stdin {
                        // A process that no longer reads is within its rights.
                        let _ = stdin.write_all(&data).await;
                        let _ = stdin.flush().await;
                    }
                }
                Heard::Bytes(RESIZE, data) => {
                    let size: Value = serde_json::from_slice(&data).unwrap_or_default();
                    let side = |name: &str| {
                        size.get(name)
                            .and_then(Value::as_u64)
                            .and_then(|n| u16::try_from(n).ok())
                    };
                    if let (Some(width), Some(height)) = (side("Width"), side("Height")) {
                        let _ = resize.send((width, height)).await;
                    }
                }
                Heard::End(STDIN) => {
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
                    Ok(count @ 1..) => client.tell(STDOUT, &out[..count]).await?,
                    _ => out_open = false,
                },
                read = stderr.read(&mut err), if err_open => match read {
                    Ok(count @ 1..) => client.tell(STDERR, &err[..count]).await?,
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
            Some(Err(error)) => failure(&error),
            None => failure(&KubeletError::Io {
                what: "the process was lost".to_owned(),
                source: io::ErrorKind::BrokenPipe.into(),
            }),
        };
        client.tell(ERROR, status.to_string().as_bytes()).await
    };
    tokio::select! {
        // The client went: dropping the session hangs up on the process.
        () = input => Ok(()),
        result = output => result,
    }
}

/// As a Status.
fn failure(error: &KubeletError) -> Value {
    let (code, reason) = match error {
        KubeletError::NoSuchPod(_) | KubeletError::NoSuchContainer(_) | KubeletError::NotRunning { .. } => {
            (400, "BadRequest")
        }
        KubeletError::Dial { .. } | KubeletError::Io { .. } => (500, "InternalError"),
    };
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": error.to_string(), "reason": reason, "code": code,
    })
}

/// Serves port-forward. `ports` are those of the request, which only numbered channels need.
pub(crate) async fn forward(
    stream: Upgraded,
    wire: Wire,
    forward: Forward,
    ports: Vec<u16>,
) -> io::Result<()> {
    match wire {
        Wire::Channels(_) => channels(stream, forward, ports).await,
        Wire::Tunnel(_) => tunnel(stream, forward).await,
        Wire::Spdy(_) => {
            let stream = TokioIo::new(stream);
            spdy::serve(stream, |opened| spdy::forward(opened, forward)).await
        }
    }
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
        result = spdy::serve(far, |opened| spdy::forward(opened, forward)) => result,
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

/// Ports as a query lists them, if they are so many as can be served over numbered channels.
pub(crate) fn ports<'a>(values: impl Iterator<Item = &'a str>) -> Option<Vec<u16>> {
    let ports: Result<Vec<u16>, _> = values
        .flat_map(|ports| ports.split(','))
        .map(str::parse)
        .collect();
    ports.ok().filter(|ports| (1..=16).contains(&ports.len()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// A process that repeats its input, complains, and ends with a code.
    fn echo(code: i32) -> ExecSession {
        let (output, input) = tokio::io::simplex(1024);
        let (resize, _) = mpsc::channel(1);
        ExecSession {
            stdin: Some(Box::pin(input)),
            stdout: Box::pin(output),
            stderr: Box::pin(&b"oh no"[..]),
            resize,
            exit: Box::pin(async move { Ok(code) }),
        }
    }

    async fn over_spdy(session: Result<ExecSession, KubeletError>) -> BTreeMap<u32, String> {
        let (mut near, far) = tokio::io::duplex(4096);
        let wanted = Wanted {
            stdin: true,
            stdout: true,
            stderr: true,
            tty: false,
        };
        let server = spdy::serve(far, |opened| exec_spdy(opened, wanted, session));
        let client = async move {
            let mut client = spdy::tests::Client::new();
            for (stream, kind) in [(1, "error"), (3, "stdin"), (5, "stdout"), (7, "stderr")] {
                let opening = client.open(stream, &[("streamType", kind)]);
                near.write_all(&opening).await.expect("the server reads");
            }
            let said = spdy::tests::bytes(3, true, b"ping");
            near.write_all(&said).await.expect("the server reads");
            spdy::tests::hear(&mut near, 3).await
        };
        let (_, heard) = tokio::join!(server, client);
        heard
    }

    #[tokio::test]
    async fn exec_over_spdy_carries_both_ways_and_ends_with_the_exit_code() {
        let heard = over_spdy(Ok(echo(3))).await;
        assert_eq!(heard.get(&5).map(String::as_str), Some("ping"));
        assert_eq!(heard.get(&7).map(String::as_str), Some("oh no"));
        let status: Value = serde_json::from_str(&heard[&1]).expect("a Status");
        assert_eq!(status["details"]["causes"][0]["message"], "3");
    }

    #[tokio::test]
    async fn why_there_is_no_session_is_said_on_the_error_stream() {
        let refusal = KubeletError::NotRunning {
            container: "c".to_owned(),
            reason: "ContainerCreating".to_owned(),
        };
        let heard = over_spdy(Err(refusal)).await;
        let status: Value = serde_json::from_str(&heard[&1]).expect("a Status");
        assert_eq!(status["code"], 400);
        assert_eq!(
            status["message"],
            "container c is waiting to start: ContainerCreating"
        );
    }

    #[test]
    fn a_client_is_served_in_the_newest_form_that_it_offers() {
        let headers = |upgrade: &str, name: &'static str, offers: &[&str]| {
            let mut headers = HeaderMap::new();
            headers.insert(header::UPGRADE, upgrade.parse().expect("a value"));
            for offer in offers {
                headers.append(name, offer.parse().expect("a value"));
            }
            headers
        };
        let websocket = "sec-websocket-protocol";
        let both = headers("websocket", websocket, &["v4.channel.k8s.io, v5.channel.k8s.io"]);
        assert_eq!(Wire::for_exec(&both), Some(Wire::Channels("v5.channel.k8s.io")));
        assert_eq!(
            Wire::for_forward(&both),
            Some(Wire::Channels("v4.channel.k8s.io"))
        );
        let offers = ["v4.channel.k8s.io", "portforward.k8s.io"];
        let spdy = headers("SPDY/3.1", "x-stream-protocol-version", &offers);
        assert_eq!(Wire::for_exec(&spdy), Some(Wire::Spdy("v4.channel.k8s.io")));
        assert_eq!(Wire::for_forward(&spdy), Some(Wire::Spdy("portforward.k8s.io")));
        assert_eq!(Wire::for_exec(&HeaderMap::new()), None);
    }
}
