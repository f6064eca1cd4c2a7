//! The client of `mesh-path`: requests over HTTP/1.1 and HTTP/2, bare bytes, or connections that only stay.
//!
//! Told by the environment what to do, says what it saw in one line of `name=value`. Each connection, and each stream
//! of it, asks again as soon as it was answered, or at a fixed rate. Knows no proxies: it connects where it is told to.

use std::future::poll_fn;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use h2::client::SendRequest;
use http::{HeaderValue, Method, Request};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{Error, env, runtime};

/// An answer that takes longer has failed.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);
const PIECE: usize = 64 << 10;
const WINDOW: u32 = 1 << 20;

/// First bytes on a connection to our own origin that are not HTTP.
pub(super) const DOWN: u8 = 0;
pub(super) const UP: u8 = 1;
pub(super) const ECHO: u8 = 2;
/// A gRPC call's message and its answer's: not compressed, 16 bytes.
pub(super) const MESSAGE: &[u8] = b"\0\0\0\0\x10\x0a\x0esixteen bytes.";

/// What to do.
#[derive(Clone, Copy)]
struct Wanted {
    target: SocketAddr,
    ends_at: Instant,
    /// 1, 2, or 0 for bare bytes.
    http: u64,
    connections: u64,
    /// Of each connection, at a time.
    streams: u64,
    /// Bytes of each request and of each answer.
    up: u64,
    down: u64,
    /// After so many requests, a new connection. 0: never.
    renew: u64,
    /// Requests per second of all connections together, whether answers come or not. 0: each when the last was answered.
    rate: u64,
    grpc: bool,
}

impl Wanted {
    fn of_env() -> Self {
        let number = |name: &str, usual: u64| {
            let text = std::env::var(format!("MESH_PATH_{name}"));
            text.map_or(usual, |text| text.parse().expect("a number"))
        };
        Self {
            target: env("MESH_PATH_TARGET").parse().expect("an address"),
            ends_at: Instant::now() + Duration::from_millis(number("MILLIS", 1_000)),
            http: number("HTTP", 1),
            connections: number("CONNECTIONS", 1),
            streams: number("STREAMS", 1),
            up: number("UP", 0),
            down: number("DOWN", 5),
            renew: number("RENEW", 0),
            rate: number("RATE", 0),
            grpc: number("GRPC", 0) > 0,
        }
    }

    fn over(&self) -> bool {
        Instant::now() >= self.ends_at
    }

    async fn connect(&self) -> Result<TcpStream, Error> {
        let socket = TcpStream::connect(self.target).await?;
        socket.set_nodelay(true)?;
        Ok(socket)
    }

    /// Of a request over HTTP/1.1.
    fn head(&self) -> String {
        let path = self.path();
        match self.up {
            0 => format!("GET {path} HTTP/1.1\r\nhost: web.ns\r\naccept: */*\r\n\r\n"),
            up => format!("POST {path} HTTP/1.1\r\nhost: web.ns\r\ncontent-length: {up}\r\n\r\n"),
        }
    }

    /// What our own origin answers with so many bytes; nginx answers everything alike.
    fn path(&self) -> String {
        match self.grpc {
            true => "/voting.v1.Votes/Vote".into(),
            false => format!("/{}", self.down),
        }
    }
}

/// What one connection or stream saw.
#[derive(Default)]
struct Seen {
    latencies: Vec<Duration>,
    errors: usize,
}

/// Requests until the time is over.
pub(super) fn requests() -> String {
    let wanted = Wanted::of_env();
    let began = Instant::now();
    let seen = match wanted.rate {
        0 => runtime().block_on(async {
            let clients: Vec<_> = (0..wanted.connections)
                .map(|_| tokio::task::spawn(client(wanted)))
                .collect();
            let mut seen = Vec::new();
            for client in clients {
                seen.push(client.await.expect("no client panics"));
            }
            seen
        }),
        rate => paced(&wanted, rate),
    };
    let elapsed = began.elapsed();
    let mut sorted: Vec<_> = seen.iter().flat_map(|seen| &seen.latencies).copied().collect();
    sorted.sort_unstable();
    let at = |permille: usize| {
        let index = (sorted.len() * permille / 1000).min(sorted.len().saturating_sub(1));
        sorted.get(index).copied().unwrap_or_default().as_micros()
    };
    format!(
        "done={} errors={} elapsed={} p50={} p99={} p999={}",
        sorted.len(),
        seen.iter().map(|seen| seen.errors).sum::<usize>(),
        elapsed.as_micros(),
        at(500),
        at(990),
        at(999),
    )
}

/// Requests at a fixed rate, each measured from when it was due: one that has to wait because the last was slow counts
/// its waiting too. A thread for each connection, since the runtime's clock has a grain of a millisecond.
fn paced(wanted: &Wanted, rate: u64) -> Vec<Seen> {
    // Threads inherit it: usually the kernel lets them sleep for 50 µs more.
    nix::sys::prctl::set_timerslack(1).expect("a setting");
    let began = Instant::now();
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..wanted.connections)
            .map(|first| scope.spawn(move || paced_client(wanted, rate, began, first)))
            .collect();
        let seen = clients.into_iter().map(|client| client.join());
        seen.map(|seen| seen.expect("no client panics")).collect()
    })
}

/// Every so many-th of all requests, on one connection.
fn paced_client(wanted: &Wanted, rate: u64, began: Instant, first: u64) -> Seen {
    let (mut seen, mut connection) = (Seen::default(), None);
    let due = |turn: u64| began + Duration::from_secs_f64(turn as f64 / rate as f64);
    let turns = (first..).step_by(wanted.connections as usize).map(due);
    for due in turns.take_while(|due| *due < wanted.ends_at) {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        // What is then still to be done is no longer a delay.
        let in_time = Instant::now() < wanted.ends_at + ANSWER_DEADLINE;
        if in_time && ask_waiting(wanted, &mut connection).is_ok() {
            seen.latencies.push(due.elapsed());
        } else {
            seen.errors += 1;
            connection = None;
        }
    }
    seen
}

/// [`ask`] without content and without a runtime, which would cost more than the request.
fn ask_waiting(wanted: &Wanted, connection: &mut Option<std::net::TcpStream>) -> Result<(), Error> {
    if connection.is_none() {
        let socket = std::net::TcpStream::connect(wanted.target)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(ANSWER_DEADLINE))?;
        *connection = Some(socket);
    }
    let socket = connection.as_mut().ok_or("it was just made")?;
    socket.write_all(wanted.head().as_bytes())?;
    let (mut read, mut here) = ([0; 4 << 10], 0);
    loop {
        match socket.read(&mut read[here..])? {
            0 => return Err("the end came early, or there is more than expected".into()),
            n => here += n,
        }
        if let Some((head, length)) = answer(&read[..here])? {
            let length = length.ok_or("not a 200")?;
            if here as u64 >= head as u64 + length {
                return Ok(());
            }
        }
    }
}

/// A failure costs the connection: the next request is on a new one, a little later.
async fn client(wanted: Wanted) -> Seen {
    let mut seen = Seen::default();
    while !wanted.over() {
        let ended = match wanted.http {
            0 => echo(&wanted, &mut seen).await,
            1 => http1(&wanted, &mut seen).await,
            _ => http2(wanted, &mut seen).await,
        };
        if ended.is_err() {
            seen.errors += 1;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    seen
}

/// A connection of bare bytes on which one has come back.
async fn echoed(wanted: &Wanted) -> Result<TcpStream, Error> {
    let mut socket = wanted.connect().await?;
    socket.write_u8(ECHO).await?;
    socket.read_u8().await?;
    Ok(socket)
}

async fn echo(wanted: &Wanted, seen: &mut Seen) -> Result<(), Error> {
    let started_at = Instant::now();
    tokio::time::timeout(ANSWER_DEADLINE, echoed(wanted)).await??;
    seen.latencies.push(started_at.elapsed());
    Ok(())
}

async fn http1(wanted: &Wanted, seen: &mut Seen) -> Result<(), Error> {
    let mut started_at = Instant::now();
    let mut socket = wanted.connect().await?;
    let mut read = BytesMut::with_capacity(PIECE);
    let mut count = 0;
    while !wanted.over() && (wanted.renew == 0 || count < wanted.renew) {
        tokio::time::timeout(ANSWER_DEADLINE, ask(wanted, &mut socket, &mut read)).await??;
        seen.latencies.push(started_at.elapsed());
        started_at = Instant::now();
        count += 1;
    }
    Ok(())
}

async fn ask(wanted: &Wanted, socket: &mut TcpStream, read: &mut BytesMut) -> Result<(), Error> {
    socket.write_all(wanted.head().as_bytes()).await?;
    write(socket, wanted.up).await?;
    let length = loop {
        if let Some(length) = super::head_of(read, answer)? {
            break length.ok_or("not a 200")?;
        }
        if socket.read_buf(read).await? == 0 {
            return Err("the end came early".into());
        }
    };
    super::discard(socket, read, length).await
}

/// A head's length, and its content's if it is a good answer's. `None` wants more.
fn answer(head: &[u8]) -> Result<Option<(usize, Option<u64>)>, httparse::Error> {
    let mut headers = [httparse::EMPTY_HEADER; 16];
    let mut response = httparse::Response::new(&mut headers);
    let parsed = response.parse(head)?;
    let good = response.code == Some(200);
    Ok(parsed
        .is_complete()
        .then(|| (parsed.unwrap(), good.then(|| super::length_of(response.headers)))))
}

/// So many bytes of nothing.
pub(super) async fn write(socket: &mut TcpStream, length: u64) -> Result<(), Error> {
    let piece = [0; PIECE];
    let mut left = length;
    while left > 0 {
        let now = left.min(PIECE as u64);
        socket.write_all(&piece[..now as usize]).await?;
        left -= now;
    }
    Ok(())
}

async fn http2(wanted: Wanted, seen: &mut Seen) -> Result<(), Error> {
    let socket = wanted.connect().await?;
    let (sender, connection) = h2::client::Builder::new()
        .initial_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .handshake::<_, Bytes>(socket)
        .await?;
    let connection = tokio::task::spawn(connection);
    let streams: Vec<_> = (0..wanted.streams)
        .map(|_| tokio::task::spawn(stream(wanted, sender.clone())))
        .collect();
    drop(sender);
    let mut ended = Ok(());
    for stream in streams {
        match stream.await? {
            Ok(latencies) => seen.latencies.extend(latencies),
            Err(error) => ended = Err(error),
        }
    }
    connection.abort();
    ended
}

async fn stream(wanted: Wanted, mut sender: SendRequest<Bytes>) -> Result<Vec<Duration>, Error> {
    let mut latencies = Vec::new();
    let uri: http::Uri = format!("http://web.ns{}", wanted.path()).parse()?;
    while !wanted.over() {
        let started_at = Instant::now();
        let exchange = async {
            sender = sender.clone().ready().await?;
            let mut request = Request::new(());
            *request.uri_mut() = uri.clone();
            if wanted.up > 0 || wanted.grpc {
                *request.method_mut() = Method::POST;
            }
            if wanted.grpc {
                let headers = request.headers_mut();
                headers.insert("content-type", HeaderValue::from_static("application/grpc"));
                headers.insert("te", HeaderValue::from_static("trailers"));
            }
            let (answer, mut body) = sender.send_request(request, wanted.up == 0 && !wanted.grpc)?;
            if wanted.grpc {
                body.send_data(Bytes::from_static(MESSAGE), true)?;
            }
            let mut left = wanted.up as usize;
            while left > 0 {
                body.reserve_capacity(left.min(PIECE));
                let room = poll_fn(|cx| body.poll_capacity(cx))
                    .await
                    .ok_or("the stream ended")??;
                left -= room;
                body.send_data(Bytes::from_static(&[0; PIECE]).slice(..room), left == 0)?;
            }
            let answer = answer.await?;
            if answer.status() != 200 {
                return Err("not a 200".into());
            }
            let mut body = answer.into_body();
            while let Some(data) = body.data().await {
                body.flow_control().release_capacity(data?.len())?;
            }
            if wanted.grpc {
                let trailers = body.trailers().await?.ok_or("no trailers")?;
                if trailers.get("grpc-status").is_none_or(|status| status != "0") {
                    return Err("not a status of 0".into());
                }
            }
            Ok::<_, Error>(())
        };
        tokio::time::timeout(ANSWER_DEADLINE, exchange).await??;
        latencies.push(started_at.elapsed());
    }
    Ok(latencies)
}

/// One connection with as many bytes as go through it, one way.
pub(super) fn bytes() -> String {
    let wanted = Wanted::of_env();
    let began = Instant::now();
    let moved = runtime().block_on(move_bytes(&wanted)).expect("the bytes pass");
    let mib = moved as f64 / f64::from(1 << 20);
    format!("done={mib} errors=0 elapsed={}", began.elapsed().as_micros())
}

async fn move_bytes(wanted: &Wanted) -> Result<u64, Error> {
    let mut socket = wanted.connect().await?;
    if wanted.up > 0 {
        socket.write_u8(UP).await?;
        while !wanted.over() {
            write(&mut socket, PIECE as u64).await?;
        }
        socket.shutdown().await?;
        // How much has come.
        return Ok(socket.read_u64().await?);
    }
    socket.write_u8(DOWN).await?;
    let mut piece = vec![0; 4 * PIECE];
    let mut moved = 0;
    while !wanted.over() {
        match socket.read(&mut piece).await? {
            0 => return Err("the end came early".into()),
            n => moved += n as u64,
        }
    }
    Ok(moved)
}

/// Connections that were used once and then stay open until our input ends.
pub(super) fn hold() -> ! {
    let wanted = Wanted::of_env();
    runtime().block_on(async {
        let open = async || match wanted.http {
            0 => echoed(&wanted).await,
            _ => {
                let mut socket = wanted.connect().await?;
                ask(&wanted, &mut socket, &mut BytesMut::new()).await?;
                Ok(socket)
            }
        };
        let mut open_ones = Vec::new();
        for _ in 0..wanted.connections {
            let opened = tokio::time::timeout(ANSWER_DEADLINE, open()).await;
            open_ones.push(opened.expect("an answer in time").expect("an answer"));
        }
        super::wait_for_parent(&format!("done={}", open_ones.len()));
    });
    std::process::exit(0)
}
