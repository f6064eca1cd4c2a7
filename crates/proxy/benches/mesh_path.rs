//! What the mesh costs: client → outbound proxy → mutual TLS → inbound proxy → origin, on loopback, against no proxy.
//!
//! Both proxies and the origin are processes of their own, so that their CPU time is theirs alone. The client sends
//! small HTTP/1.1 requests on keep-alive connections, each as soon as the last was answered.
//! `cargo bench -p hawser-proxy --bench mesh_path -- [connections] [seconds]`
//!
//! `cargo xtask bench mesh-path` measures the proxy's own program behind real redirects and beside other proxies; it
//! calls this program in further roles for what it needs there: the control plane, the rules, the origin, the load.

#![expect(clippy::print_stdout, reason = "the figures are the output")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hawser_proxy::OriginalDst;
use nix::sys::resource::{UsageWho, getrusage};
use support::{ControlPlane, Pod, Redirects, meshed, service};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

const TARGET: &str = "10.0.0.1:80";
/// An answer that takes longer has failed.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);
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
        Ok("control") => control(),
        Ok("init") => std::process::exit(i32::from(
            hawser_proxy::init::main(std::env::args_os().collect()) != ExitCode::SUCCESS,
        )),
        Ok("load") => print_load(),
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
    let addrs = std::env::var("MESH_PATH_LISTEN").unwrap_or_else(|_| "127.0.0.2:0".into());
    runtime().block_on(async move {
        let mut accepting = Vec::new();
        for addr in addrs.split(',') {
            let listener = TcpListener::bind(addr).await.expect("a port");
            let addr = listener.local_addr().expect("its address");
            accepting.push((addr, tokio::spawn(accept(listener))));
        }
        let addr = accepting[0].0;
        std::thread::spawn(move || report(addr));
        for (_, accepting) in accepting {
            let _ = accepting.await;
        }
    });
}

async fn accept(listener: TcpListener) {
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
}

/// Set by the parent.
fn env(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is set"))
}

/// A control plane that proxies in two network namespaces reach on their own loopback, and files for other servers.
fn control() {
    let listen = || {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("a setting");
        listener
    };
    let namespace = std::fs::File::open(env("MESH_PATH_NETNS")).expect("the other namespace");
    let there = std::thread::spawn(move || {
        nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).expect("the namespace is ours");
        listen()
    });
    let listeners = [listen(), there.join().expect("a listener")];
    let addrs = listeners
        .each_ref()
        .map(|listener| listener.local_addr().expect("its address"));
    let target = env("MESH_PATH_ENDPOINT").parse().expect("an address");
    let inbound: SocketAddr = env("MESH_PATH_INBOUND").parse().expect("an address");
    let identity = env("MESH_PATH_IDENTITY");

    runtime().block_on(async {
        let control = ControlPlane::new(addrs[0]);
        let endpoint = meshed(target, &identity, inbound.port());
        control.change(|world| service(world, TARGET, "web.ns.svc.cluster.local:80", vec![endpoint]));
        for listener in listeners {
            control.serve(TcpListener::from_std(listener).expect("a listener"));
        }
        let dir = std::path::PathBuf::from(env("MESH_PATH_DIR"));
        std::fs::write(dir.join("anchors.pem"), &control.anchors).expect("a file");
        std::fs::write(dir.join("peer.pem"), control.certificate_file(&identity)).expect("a file");
        std::thread::spawn(move || {
            println!("{} {}", addrs[0], addrs[1]);
            // Until the parent goes away.
            let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
            std::process::exit(0);
        });
        std::future::pending::<()>().await;
    });
}

/// One line: requests, failed requests, elapsed, p50, p99, p99.9 (all times in µs).
fn print_load() {
    let number = |name: &str| env(name).parse::<u64>().expect("a number");
    let addr = env("MESH_PATH_TARGET").parse().expect("an address");
    let figures = load(
        addr,
        number("MESH_PATH_CONNECTIONS") as usize,
        Duration::from_millis(number("MESH_PATH_MILLIS")),
    );
    println!(
        "{} {} {} {} {} {}",
        figures.requests,
        figures.errors,
        figures.elapsed.as_micros(),
        figures.p50.as_micros(),
        figures.p99.as_micros(),
        figures.p999.as_micros(),
    );
}

fn proxy(role: &str) {
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
    errors: usize,
    elapsed: Duration,
    p50: Duration,
    p99: Duration,
    p999: Duration,
}

/// What one connection saw.
#[derive(Default)]
struct Seen {
    latencies: Vec<Duration>,
    errors: usize,
}

fn load(addr: SocketAddr, connections: usize, time: Duration) -> Figures {
    let began = Instant::now();
    let seen = runtime().block_on(async {
        let ends_at = began + time;
        let clients: Vec<_> = (0..connections)
            .map(|_| tokio::spawn(client(addr, ends_at)))
            .collect();
        let mut all = Seen::default();
        for client in clients {
            let one = client.await.expect("no client panics");
            all.latencies.extend(one.latencies);
            all.errors += one.errors;
        }
        all
    });
    let elapsed = began.elapsed();
    let mut sorted = seen.latencies;
    sorted.sort_unstable();
    let at = |permille: usize| {
        let index = sorted.len() * permille / 1000;
        sorted
            .get(index.min(sorted.len().saturating_sub(1)))
            .copied()
            .unwrap_or_default()
    };
    Figures {
        requests: sorted.len(),
        errors: seen.errors,
        elapsed,
        p50: at(500),
        p99: at(990),
        p999: at(999),
    }
}

/// Requests on one connection, each as soon as the last was answered. A failure costs the connection: the next
/// request is on a new one, a little later.
async fn client(addr: SocketAddr, ends_at: Instant) -> Seen {
    let mut seen = Seen::default();
    while Instant::now() < ends_at {
        if requests(addr, ends_at, &mut seen.latencies).await.is_err() {
            seen.errors += 1;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    seen
}

async fn requests(addr: SocketAddr, ends_at: Instant, latencies: &mut Vec<Duration>) -> std::io::Result<()> {
    let mut socket = TcpStream::connect(addr).await?;
    socket.set_nodelay(true)?;
    let mut answer = vec![0; 4096];
    while Instant::now() < ends_at {
        let started_at = Instant::now();
        let exchange = async {
            socket
                .write_all(b"GET /hello HTTP/1.1\r\nhost: web.ns\r\naccept: */*\r\n\r\n")
                .await?;
            let mut filled = 0;
            // Every origin answers with this body and nothing after it.
            while !answer[..filled].ends_with(b"hello") {
                match socket.read(&mut answer[filled..]).await? {
                    0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                    n => filled += n,
                }
            }
            let good = answer.starts_with(b"HTTP/1.1 200");
            let outcome: std::io::Result<()> = good
                .then_some(())
                .ok_or_else(|| std::io::ErrorKind::InvalidData.into());
            outcome
        };
        tokio::time::timeout(ANSWER_DEADLINE, exchange).await??;
        latencies.push(started_at.elapsed());
    }
    Ok(())
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
        assert_eq!(figures.errors, 0, "every request is answered");
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
