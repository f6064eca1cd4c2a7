//! What the mesh costs: client → outbound proxy → mutual TLS → inbound proxy → origin, on loopback, against no proxy.
//!
//! Both proxies and the origin are processes of their own, so that their CPU time is theirs alone. The client sends
//! small HTTP/1.1 requests on keep-alive connections, each as soon as the last was answered.
//! `cargo bench -p hawser-proxy --bench mesh_path -- [connections] [seconds]`

#![expect(clippy::print_stdout, reason = "the figures are the output")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hawser_proxy::OriginalDst;
use nix::sys::resource::{UsageWho, getrusage};
use support::{ControlPlane, Pod, Redirects, meshed, service};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const TARGET: &str = "10.0.0.1:80";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";

/// Every connection was going here; without, where it arrived.
struct Always(Option<SocketAddr>);

impl OriginalDst for Always {
    fn original_dst(&self, socket: &TcpStream) -> std::io::Result<SocketAddr> {
        self.0.map_or_else(|| socket.local_addr(), Ok)
    }
}

fn main() {
    match std::env::var("MESH_PATH_ROLE").as_deref() {
        Ok("origin") => origin(),
        Ok(role) => proxy(role),
        Err(_) => measure(),
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

fn cpu() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("own usage");
    let micros = |t: nix::sys::time::TimeVal| (t.tv_sec() * 1_000_000 + t.tv_usec()) as u64;
    Duration::from_micros(micros(usage.user_time()) + micros(usage.system_time()))
}

/// Says where it listens, then its CPU time for every line it is asked, until the parent goes away.
fn report(addr: SocketAddr) {
    println!("{addr}");
    for _ in std::io::stdin().lock().lines() {
        println!("{}", cpu().as_micros());
    }
    std::process::exit(0);
}

fn origin() {
    let runtime = runtime();
    let listener = runtime
        .block_on(tokio::net::TcpListener::bind("127.0.0.2:0"))
        .expect("a port");
    let addr = listener.local_addr().expect("its address");
    std::thread::spawn(move || report(addr));
    runtime.block_on(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let _ = socket.set_nodelay(true);
            tokio::spawn(async move {
                let mut buffer = vec![0; 4096];
                let mut filled = 0;
                while let Ok(n @ 1..) = socket.read(&mut buffer[filled..]).await {
                    filled += n;
                    if buffer[..filled].ends_with(b"\r\n\r\n") {
                        filled = 0;
                        if socket.write_all(ANSWER).await.is_err() {
                            return;
                        }
                    }
                }
            });
        }
    });
}

fn proxy(role: &str) {
    let env = |name: &str| std::env::var(name).expect("set by the parent");
    let control = env("MESH_PATH_CONTROL").parse().expect("an address");
    let outbound = role == "outbound";
    let (ip, dst) = if outbound {
        ("127.0.0.3", TARGET.parse().ok())
    } else {
        ("127.0.0.2", None)
    };
    let anchors = env("MESH_PATH_ANCHORS");
    let pod = Pod::start_with(
        (control, &anchors),
        role,
        ip,
        &[],
        Redirects::default(),
        Arc::new(Always(dst)),
    );
    report(if outbound {
        pod.proxy.outbound[0]
    } else {
        pod.proxy.inbound[0]
    });
}

/// A child that is killed with us.
struct Process {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
    addr: SocketAddr,
}

impl Process {
    fn start(role: &str, env: &[(&str, &str)]) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .env("MESH_PATH_ROLE", role)
            .envs(env.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a child");
        let mut lines = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        lines.read_line(&mut line).expect("its address");
        let addr = line.trim().parse().expect("an address");
        Self { child, lines, addr }
    }

    fn cpu(&mut self) -> Duration {
        writeln!(self.child.stdin.as_mut().expect("piped")).expect("a living child");
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("its CPU time");
        Duration::from_micros(line.trim().parse().expect("microseconds"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = self.lines.read_to_end(&mut Vec::new());
    }
}

struct Figures {
    requests: usize,
    elapsed: Duration,
    p50: Duration,
    p99: Duration,
}

fn load(addr: SocketAddr, connections: usize, time: Duration) -> Figures {
    let latencies = runtime().block_on(async {
        let ends_at = Instant::now() + time;
        let clients: Vec<_> = (0..connections)
            .map(|_| tokio::spawn(client(addr, ends_at)))
            .collect();
        let mut all = Vec::new();
        for client in clients {
            all.extend(client.await.expect("no client panics"));
        }
        all
    });
    let mut sorted = latencies;
    sorted.sort_unstable();
    let at = |percent: usize| {
        sorted
            .get((sorted.len() * percent / 100).min(sorted.len() - 1))
            .copied()
            .unwrap_or_default()
    };
    Figures {
        requests: sorted.len(),
        elapsed: time,
        p50: at(50),
        p99: at(99),
    }
}

async fn client(addr: SocketAddr, ends_at: Instant) -> Vec<Duration> {
    let mut socket = TcpStream::connect(addr).await.expect("a connection");
    let _ = socket.set_nodelay(true);
    let mut latencies = Vec::new();
    let mut answer = vec![0; 4096];
    while Instant::now() < ends_at {
        let started_at = Instant::now();
        socket
            .write_all(b"GET /hello HTTP/1.1\r\nhost: web.ns\r\naccept: */*\r\n\r\n")
            .await
            .expect("a request");
        let mut filled = 0;
        while !answer[..filled].ends_with(b"hello") {
            let n = socket.read(&mut answer[filled..]).await.expect("an answer");
            assert!(
                n > 0,
                "the connection stays open: {}",
                String::from_utf8_lossy(&answer[..filled])
            );
            filled += n;
        }
        assert!(
            answer.starts_with(b"HTTP/1.1 200"),
            "{}",
            String::from_utf8_lossy(&answer[..filled])
        );
        latencies.push(started_at.elapsed());
    }
    latencies
}

fn measure() {
    let numbers: Vec<u64> = std::env::args().filter_map(|arg| arg.parse().ok()).collect();
    let connections = numbers.first().map_or(64, |n| *n as usize);
    let time = Duration::from_secs(numbers.get(1).copied().unwrap_or(5));
    let control_runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let control = control_runtime.block_on(ControlPlane::start());
    let control_addr = control.addr.to_string();
    let env = [
        ("MESH_PATH_CONTROL", control_addr.as_str()),
        ("MESH_PATH_ANCHORS", control.anchors.as_str()),
    ];

    let mut origin = Process::start("origin", &[]);
    let mut inbound = Process::start("inbound", &env);
    let mut outbound = Process::start("outbound", &env);
    let identity = "inbound.ns.serviceaccount.identity.linkerd.cluster.local";
    let endpoint = meshed(origin.addr, identity, inbound.addr.port());
    control.change(|world| service(world, TARGET, "web.ns.svc.cluster.local:80", vec![endpoint]));

    println!("{connections} connections, {} s each", time.as_secs());
    let ways = [("no proxy", origin.addr), ("two proxies", outbound.addr)];
    for (name, addr) in ways {
        load(addr, connections, time / 5);
        let before = [origin.cpu(), outbound.cpu(), inbound.cpu()];
        let figures = load(addr, connections, time);
        let after = [origin.cpu(), outbound.cpu(), inbound.cpu()];
        let micros = |i: usize| (after[i] - before[i]).as_micros() as f64 / figures.requests as f64;
        println!(
            "{name:12} {:8.0} req/s   p50 {:6} µs   p99 {:6} µs   CPU µs/request: origin {:.1}, outbound {:.1}, inbound {:.1}",
            figures.requests as f64 / figures.elapsed.as_secs_f64(),
            figures.p50.as_micros(),
            figures.p99.as_micros(),
            micros(0),
            micros(1),
            micros(2),
        );
    }
}
