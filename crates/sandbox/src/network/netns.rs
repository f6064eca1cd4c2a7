//! A network namespace as a value.
//!
//! A namespace lives as long as somebody holds it: this descriptor, a process in it, or a socket made in it. Sockets
//! belong to the namespace in which they were *made*, wherever they are used later, so only making them happens inside.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::sched::{CloneFlags, setns, unshare};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 1024;

/// Owns a network namespace. Clones are the same namespace.
#[derive(Clone, Debug)]
pub struct NetNs {
    fd: Arc<OwnedFd>,
}

impl NetNs {
    /// A new, empty namespace: only a loopback interface, which is down.
    pub fn create() -> io::Result<Self> {
        on_scratch_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            Self::current()
        })
    }

    /// The calling thread's namespace.
    pub fn current() -> io::Result<Self> {
        let file = File::open("/proc/thread-self/ns/net")?;
        Ok(Self {
            fd: Arc::new(file.into()),
        })
    }

    /// Runs `f` on a thread of its own that entered the namespace, and waits for it.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        on_scratch_thread(|| {
            setns(self.fd.as_fd(), CloneFlags::CLONE_NEWNET)
                .expect("a namespace of our own user namespace can be entered");
            f()
        })
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The caller bounds how long this may take.
    pub async fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let stream = self.tcp(to)?.connect(to).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    pub async fn listen(&self, at: SocketAddr) -> io::Result<TcpListener> {
        let socket = self.tcp(at)?;
        socket.set_reuseaddr(true)?;
        socket.bind(at)?;
        socket.listen(BACKLOG)
    }

    pub async fn bind_udp(&self, at: SocketAddr) -> io::Result<UdpSocket> {
        let socket = self.run(|| std::net::UdpSocket::bind(at))?;
        socket.set_nonblocking(true)?;
        UdpSocket::from_std(socket)
    }

    /// Sets a network parameter of the namespace, for example `ipv4/ip_forward`.
    pub(crate) fn set(&self, parameter: &str, value: &str) -> io::Result<()> {
        let path = format!("/proc/sys/net/{parameter}");
        self.run(|| std::fs::write(&path, value))
    }

    fn tcp(&self, peer: SocketAddr) -> io::Result<TcpSocket> {
        self.run(|| {
            if peer.is_ipv4() {
                TcpSocket::new_v4()
            } else {
                TcpSocket::new_v6()
            }
        })
    }
}

/// A thread that entered another namespace is never used for anything else.
fn on_scratch_thread<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| match scope.spawn(f).join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}
