//! Connections as the proxy sees them: plain or TLS, with bytes that were read ahead, counted.
//!
//! Knows sockets and TLS records; doesn't know who is on the other side or what is said. Connecting applies the
//! socket options and the mark by which redirect rules let the proxy's own traffic through.

use std::cell::Cell;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};

use crate::bond::Bond;
use crate::config::SocketOptions;
use crate::metrics::{Counter, Labels, Shard};

/// What opaque copying moves at once, and the most that it holds per direction. Four TLS records.
const COPY_BUFFER: usize = 64 * 1024;
/// How often it does so until others on the thread get a turn.
const COPIES: usize = 4;
/// The TLS library reads so much at once.
const TLS_READ: usize = 4 * 1024;
/// Below TLS, so much is read at once while so much comes.
const GULP: usize = 64 * 1024;
/// How much is read at once of what comes first.
const READ_AHEAD: usize = 4 * 1024;
/// An opaque connection keeps this long reading after the other direction has ended.
const HALF_CLOSED_MAX: Duration = Duration::from_secs(120);

/// Finds out where a redirected connection was going.
pub trait OriginalDst: Send + Sync + 'static {
    fn original_dst(&self, socket: &TcpStream) -> io::Result<SocketAddr>;
}

/// Asks the kernel; a connection that was not redirected went where it arrived.
#[derive(Clone, Copy, Debug, Default)]
pub struct FromKernel;

impl OriginalDst for FromKernel {
    fn original_dst(&self, socket: &TcpStream) -> io::Result<SocketAddr> {
        let local = socket.local_addr()?;
        let raw = SockRef::from(socket);
        let found = if local.ip().to_canonical().is_ipv4() {
            raw.original_dst_v4()
        } else {
            raw.original_dst_v6()
        };
        match found {
            Ok(addr) => addr
                .as_socket()
                .ok_or_else(|| io::Error::other("the original destination is not an IP address")),
            Err(_) => Ok(local),
        }
    }
}

/// The TCP counters of one side of a connection.
#[derive(Debug)]
pub(crate) struct TcpMetrics {
    open_total: Arc<Counter>,
    open: Arc<Counter>,
    read: Arc<Counter>,
    written: Arc<Counter>,
    shard: Shard,
    labels: Labels,
}

impl TcpMetrics {
    pub(crate) fn new(shard: &Shard, peer: &str, labels: &Labels) -> Arc<Self> {
        let labels = labels.with("peer", peer);
        Arc::new(Self {
            open_total: shard.counter("tcp_open_total", labels.clone()),
            open: shard.gauge("tcp_open_connections", labels.clone()),
            read: shard.counter("tcp_read_bytes_total", labels.clone()),
            written: shard.counter("tcp_write_bytes_total", labels.clone()),
            shard: shard.clone(),
            labels,
        })
    }
}

/// Counts one connection from creation to drop.
#[derive(Debug)]
struct Counted {
    metrics: Arc<TcpMetrics>,
    errno: Option<&'static str>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.metrics.open.dec();
        let labels = self.metrics.labels.with("errno", self.errno.unwrap_or_default());
        self.metrics.shard.counter("tcp_close_total", labels).inc();
    }
}

#[derive(Debug)]
enum Io {
    Tcp(TcpStream),
    Client(Box<ClientTls>),
    /// Terminated here; below it is a connection whose first bytes were looked at.
    Server(Box<ServerTls>),
}

pub(crate) type ClientTls = tokio_rustls::client::TlsStream<Gulping<TcpStream>>;
pub(crate) type ServerTls = tokio_rustls::server::TlsStream<Gulping<Conn>>;

/// A byte stream to a peer.
#[derive(Debug)]
pub(crate) struct Conn {
    io: Io,
    /// Read from the peer, not yet consumed.
    ahead: BytesMut,
    counted: Option<Counted>,
    /// The trust that it rests on, if the peer is authenticated.
    bond: Option<Arc<Bond>>,
}

macro_rules! each_io {
    ($self:ident, $io:ident => $body:expr) => {
        match &mut $self.io {
            Io::Tcp($io) => $body,
            Io::Client($io) => $body,
            Io::Server($io) => $body,
        }
    };
}

impl Conn {
    pub(crate) fn tcp(socket: TcpStream) -> Self {
        Self {
            io: Io::Tcp(socket),
            ahead: BytesMut::new(),
            counted: None,
            bond: None,
        }
    }

    pub(crate) fn client(tls: ClientTls) -> Self {
        Self {
            io: Io::Client(Box::new(tls)),
            ahead: BytesMut::new(),
            counted: None,
            bond: None,
        }
    }

    pub(crate) fn server(tls: ServerTls) -> Self {
        Self {
            io: Io::Server(Box::new(tls)),
            ahead: BytesMut::new(),
            counted: None,
            bond: None,
        }
    }

    pub(crate) fn bonded(mut self, bond: Option<Arc<Bond>>) -> Self {
        self.bond = bond;
        self
    }

    pub(crate) fn bond(&self) -> Option<&Arc<Bond>> {
        self.bond.as_ref()
    }

    /// No byte passes after the peer has lost our trust for good.
    fn alive(&self) -> io::Result<()> {
        match &self.bond {
            Some(bond) if bond.is_cut() => Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "the peer is no longer trusted",
            )),
            _ => Ok(()),
        }
    }

    pub(crate) fn counted(mut self, metrics: Arc<TcpMetrics>) -> Self {
        metrics.open_total.inc();
        metrics.open.inc();
        self.counted = Some(Counted { metrics, errno: None });
        self
    }

    /// What has been read and not consumed.
    pub(crate) fn ahead(&mut self) -> &mut BytesMut {
        &mut self.ahead
    }

    /// Reads more of what comes first; 0 at the end.
    pub(crate) async fn read_ahead(&mut self) -> io::Result<usize> {
        let mut ahead = std::mem::take(&mut self.ahead);
        ahead.reserve(READ_AHEAD);
        // `ahead` was taken, so this reads from the peer.
        let n = self.read_buf(&mut ahead).await;
        self.ahead = ahead;
        n
    }

    /// Has the peer said nothing that wasn't read, not even goodbye? If it has, some of that may be lost. Costs no system
    /// call unless the kernel has news.
    pub(crate) fn is_quiet(&mut self) -> bool {
        let mut byte = [0];
        if let Io::Tcp(socket) = &self.io {
            // Nobody is to be woken, which saves a lock.
            let read = socket.try_read(&mut byte);
            let nothing = read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
            return nothing && self.ahead.is_empty() && self.alive().is_ok();
        }
        let mut cx = Context::from_waker(Waker::noop());
        Pin::new(self)
            .poll_read(&mut cx, &mut ReadBuf::new(&mut byte))
            .is_pending()
    }

    fn note<T>(&mut self, result: &io::Result<T>) {
        if let (Err(error), Some(counted)) = (result, &mut self.counted) {
            counted.errno = Some(errno(error));
        }
    }
}

/// A name for the label, or nothing for a clean end.
fn errno(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ConnectionReset => "ECONNRESET",
        io::ErrorKind::BrokenPipe => "EPIPE",
        io::ErrorKind::TimedOut => "ETIMEDOUT",
        io::ErrorKind::ConnectionRefused => "ECONNREFUSED",
        io::ErrorKind::UnexpectedEof => "",
        _ => "EIO",
    }
}

impl AsyncRead for Conn {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        self.alive()?;
        let result = if self.ahead.is_empty() {
            let this = &mut *self;
            match each_io!(this, io => Pin::new(io).poll_read(cx, buf)) {
                Poll::Ready(result) => result,
                Poll::Pending => {
                    if let Some(bond) = &self.bond {
                        bond.wake_when_cut(cx.waker());
                        // It may have happened just before.
                        self.alive()?;
                    }
                    return Poll::Pending;
                }
            }
        } else {
            let n = self.ahead.len().min(buf.remaining());
            buf.put_slice(&self.ahead[..n]);
            self.ahead.advance(n);
            if self.ahead.is_empty() {
                // Give the memory back: the connection may stay open for days.
                self.ahead = BytesMut::new();
            }
            Ok(())
        };
        self.note(&result);
        if let Some(counted) = &self.counted {
            counted.metrics.read.add((buf.filled().len() - before) as u64);
        }
        Poll::Ready(result)
    }
}

impl AsyncWrite for Conn {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.alive()?;
        let this = &mut *self;
        let result = ready!(each_io!(this, io => Pin::new(io).poll_write(cx, buf)));
        self.wrote(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.alive()?;
        let this = &mut *self;
        let result = ready!(each_io!(this, io => Pin::new(io).poll_write_vectored(cx, bufs)));
        self.wrote(result)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        each_io!(this, io => Pin::new(io).poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        each_io!(this, io => Pin::new(io).poll_shutdown(cx))
    }
}

impl Conn {
    fn wrote(&mut self, result: io::Result<usize>) -> Poll<io::Result<usize>> {
        self.note(&result);
        if let (Ok(n), Some(counted)) = (&result, &self.counted) {
            counted.metrics.written.add(*n as u64);
        }
        Poll::Ready(result)
    }
}

thread_local! {
    /// A buffer that no connection needs now: what was read at once is mostly used up at once.
    static SPARE: Cell<BytesMut> = Cell::default();
}

/// What lies below TLS. While much comes, much is read at once: the library's own reads are small, which costs four
/// system calls for a record. Little is read straight into the library's buffer, and an idle connection has no other.
#[derive(Debug)]
pub(crate) struct Gulping<T> {
    io: T,
    read: BytesMut,
    /// The last read had all it could have.
    more: bool,
}

impl<T> Gulping<T> {
    pub(crate) fn new(io: T) -> Self {
        Self {
            io,
            read: BytesMut::new(),
            more: false,
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Gulping<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.read.is_empty() {
            if !this.more {
                let room = buf.remaining();
                ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
                this.more = room >= TLS_READ && buf.remaining() == 0;
                return Poll::Ready(Ok(()));
            }
            this.read = SPARE.take();
            this.read.reserve(GULP);
            let polled = tokio_util::io::poll_read_buf(Pin::new(&mut this.io), cx, &mut this.read);
            this.more = matches!(polled, Poll::Ready(Ok(n)) if n >= TLS_READ);
            if !matches!(polled, Poll::Ready(Ok(1..))) {
                SPARE.set(std::mem::take(&mut this.read));
                return polled.map_ok(drop);
            }
        }
        let n = this.read.len().min(buf.remaining());
        buf.put_slice(&this.read[..n]);
        this.read.advance(n);
        if this.read.is_empty() {
            SPARE.set(std::mem::take(&mut this.read));
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Gulping<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Opens a listener that shares its port with those of other workers. Accepted sockets inherit its options.
pub(crate) fn listen(
    addr: SocketAddr,
    options: SocketOptions,
    backlog: i32,
) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(
        Domain::for_address(addr),
        Type::STREAM.nonblocking(),
        Some(Protocol::TCP),
    )?;
    if addr.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    apply(&socket, options)?;
    socket.bind(&addr.into())?;
    socket.listen(backlog)?;
    Ok(socket.into())
}

fn apply(socket: &Socket, options: SocketOptions) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    if let Some(interval) = options.keepalive {
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(interval).with_interval(interval))?;
    }
    if let Some(timeout) = options.user_timeout {
        socket.set_tcp_user_timeout(Some(timeout))?;
    }
    Ok(())
}

/// Connects within a deadline.
pub(crate) async fn connect(
    addr: SocketAddr,
    options: SocketOptions,
    mark: Option<u32>,
    source: Option<IpAddr>,
    timeout: Duration,
) -> io::Result<TcpStream> {
    let socket = Socket::new(
        Domain::for_address(addr),
        Type::STREAM.nonblocking(),
        Some(Protocol::TCP),
    )?;
    apply(&socket, options)?;
    if let Some(mark) = mark {
        match socket.set_mark(mark) {
            // Marking takes a capability that a proxy with a user of its own doesn't have, nor need: the redirect
            // rules know it by its user as well.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            marked => marked?,
        }
    }
    if let Some(source) = source {
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    let socket = TcpSocket::from_std_stream(socket.into());
    match tokio::time::timeout(timeout, socket.connect(addr)).await {
        Ok(connected) => connected,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "connect timed out")),
    }
}

/// What a cut-short connection's bytes are, for the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Copied {
    pub(crate) from_a: u64,
    pub(crate) from_b: u64,
}

/// Copies both ways until both sides have ended; a side that ends is shut down on the other.
///
/// Buffers exist only while there is something to copy: an idle connection holds none.
pub(crate) async fn splice<A, B>(a: &mut A, b: &mut B) -> io::Result<Copied>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    // A header may wait in the TLS session for company; a server that speaks first would wait for it.
    let mut forth = Direction {
        unflushed: true,
        ..Direction::default()
    };
    let mut back = Direction::default();
    let mut half_closed = None;
    std::future::poll_fn(|cx| {
        let first = forth.poll(cx, a, b)?;
        let second = back.poll(cx, b, a)?;
        match (first, second) {
            (Poll::Ready(()), Poll::Ready(())) => Poll::Ready(Ok(())),
            (Poll::Pending, Poll::Pending) => Poll::Pending,
            // A peer that vanished without a word must not hold the other half for ever.
            _ => {
                let moved = forth.copied + back.copied;
                let (timer, seen) =
                    half_closed.get_or_insert_with(|| (Box::pin(tokio::time::sleep(HALF_CLOSED_MAX)), moved));
                if *seen != moved {
                    *seen = moved;
                    timer
                        .as_mut()
                        .reset(tokio::time::Instant::now() + HALF_CLOSED_MAX);
                }
                timer.as_mut().poll(cx).map(Ok)
            }
        }
    })
    .await
    .map(|()| Copied {
        from_a: forth.copied,
        from_b: back.copied,
    })
}

#[derive(Default)]
struct Direction {
    buffer: Vec<u8>,
    start: usize,
    ended: bool,
    shut: bool,
    unflushed: bool,
    copied: u64,
}

impl Direction {
    fn poll<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
    ) -> io::Result<Poll<()>> {
        if self.shut {
            return Ok(Poll::Ready(()));
        }
        for _ in 0..COPIES {
            while self.start < self.buffer.len() {
                match Pin::new(&mut *to).poll_write(cx, &self.buffer[self.start..]) {
                    Poll::Pending => return Ok(Poll::Pending),
                    Poll::Ready(written) => self.start += self.wrote(written?)?,
                }
            }
            if self.ended {
                if Pin::new(&mut *to).poll_shutdown(cx)?.is_pending() {
                    return Ok(Poll::Pending);
                }
                self.shut = true;
                self.buffer = Vec::new();
                return Ok(Poll::Ready(()));
            }
            let mut scratch = [std::mem::MaybeUninit::uninit(); COPY_BUFFER];
            let mut read = ReadBuf::uninit(&mut scratch);
            // TLS gives one record at a time.
            let last = loop {
                let before = read.filled().len();
                let polled = Pin::new(&mut *from).poll_read(cx, &mut read);
                let some = read.filled().len() > before;
                if !matches!(polled, Poll::Ready(Ok(()))) || !some || read.remaining() == 0 {
                    self.ended = matches!(polled, Poll::Ready(Ok(()))) && !some;
                    break polled;
                }
            };
            self.start = 0;
            self.buffer.clear();
            // Straight from the stack to the peer; only what doesn't fit its socket is kept.
            let mut rest = read.filled();
            while !rest.is_empty() {
                match Pin::new(&mut *to).poll_write(cx, rest) {
                    Poll::Pending => break,
                    Poll::Ready(written) => rest = &rest[self.wrote(written?)?..],
                }
            }
            if let Poll::Ready(Err(error)) = last {
                return Err(error);
            }
            if !rest.is_empty() {
                self.buffer.extend_from_slice(rest);
                return Ok(Poll::Pending);
            }
            if last.is_pending() {
                self.buffer = Vec::new();
                if self.unflushed && Pin::new(&mut *to).poll_flush(cx)?.is_ready() {
                    self.unflushed = false;
                }
                return Ok(Poll::Pending);
            }
        }
        cx.waker().wake_by_ref();
        Ok(Poll::Pending)
    }

    fn wrote(&mut self, n: usize) -> io::Result<usize> {
        if n == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.copied += n as u64;
        self.unflushed = true;
        Ok(n)
    }
}

use std::future::Future as _;

/// Puts bytes in front of what will be written, so that they leave with it.
pub(crate) fn write_first(tls: &mut ClientTls, bytes: &Bytes) -> io::Result<()> {
    io::Write::write_all(&mut tls.get_mut().1.writer(), bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt as _;

    #[tokio::test]
    async fn a_half_closed_connection_still_carries_the_answer() {
        let (mut client, mut inner_client) = tokio::io::duplex(64);
        let (mut inner_server, mut server) = tokio::io::duplex(64);
        let splicing = tokio::spawn(async move { splice(&mut inner_client, &mut inner_server).await });
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut question = String::new();
        server.read_to_string(&mut question).await.unwrap();
        let answering = async {
            let answer = b"a long answer, longer than any buffer in between: ".repeat(9);
            server.write_all(&answer).await.unwrap();
            server.shutdown().await.unwrap();
        };
        let mut answer = String::new();
        let (read, ()) = tokio::join!(client.read_to_string(&mut answer), answering);
        read.unwrap();
        assert_eq!((question.as_str(), answer.len()), ("question", 450));
        assert_eq!(
            splicing.await.unwrap().unwrap(),
            Copied {
                from_a: 8,
                from_b: 450
            }
        );
    }

    #[test]
    fn connections_stay_small() {
        // What an idle opaque connection costs is its two `Conn`s and two `Direction`s; buffers come and go.
        assert!(size_of::<Conn>() <= 128, "{}", size_of::<Conn>());
        assert!(size_of::<Direction>() <= 64, "{}", size_of::<Direction>());
    }
}
