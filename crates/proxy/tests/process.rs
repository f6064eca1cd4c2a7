//! The built proxy as a process of its own: how it starts, and how it ends.
//!
//! Nothing is redirected to it, so clients connect directly, as other proxies do. Applications are on the machine's own
//! address: the real proxy refuses to serve loopback ones.

mod support;

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const IDENTITY: &str = "web.ns.serviceaccount.identity.linkerd.cluster.local";
const CLIENT: &str = "client.ns.serviceaccount.identity.linkerd.cluster.local";

/// The address by which this machine is known elsewhere. Asking for the route sends nothing.
fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("198.51.100.1:9").ok()?;
    Some(socket.local_addr().ok()?.ip())
}

macro_rules! own_address_or_skip {
    () => {
        match own_address() {
            Some(ip) => ip,
            None => {
                skipped("this machine has only a loopback address");
                return;
            }
        }
    };
}

struct Process {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    _token: tempfile::NamedTempFile,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    fn start(control: &ControlPlane, ip: IpAddr, env: &[(&str, &str)]) -> Self {
        let token = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(token.path(), "token").unwrap();
        let control_addr = control.addr.to_string();
        let (inbound, token_path) = (format!("{ip}:0"), token.path().display().to_string());
        let mut all: BTreeMap<&str, &str> = BTreeMap::from([
            ("IDENTITY_TRUST_ANCHORS", control.anchors.as_str()),
            ("IDENTITY_LOCAL_NAME", IDENTITY),
            ("IDENTITY_TOKEN_FILE", &token_path),
            ("IDENTITY_SVC_ADDR", &control_addr),
            ("DESTINATION_SVC_ADDR", &control_addr),
            ("POLICY_SVC_ADDR", &control_addr),
            ("INBOUND_LISTEN_ADDR", &inbound),
            ("INBOUND_DEFAULT_POLICY", "all-unauthenticated"),
            ("ADMIN_LISTEN_ADDR", "127.0.0.1:0"),
            ("OUTBOUND_LISTEN_ADDRS", "127.0.0.1:0"),
        ]);
        all.extend(env.iter().copied());
        let mut child = Command::new(env!("CARGO_BIN_EXE_hawser-proxy"))
            .env_clear()
            .envs(
                all.iter()
                    .map(|(name, value)| (format!("LINKERD2_PROXY_{name}"), *value)),
            )
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (log, lines) = (Arc::new(Mutex::new(Vec::new())), child.stderr.take().unwrap());
        let written = log.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(lines).lines().map_while(Result::ok) {
                written.lock().unwrap().push(line);
            }
        });
        Self {
            child,
            log,
            _token: token,
        }
    }

    fn logged(&self, text: &str) -> Option<String> {
        let log = self.log.lock().unwrap();
        log.iter().find(|line| line.contains(text)).cloned()
    }

    /// The address behind `name=[` in the line that says where it listens.
    async fn addr(&self, name: &str) -> SocketAddr {
        eventually("the proxy has started", async || {
            self.logged("Proxy started").is_some()
        })
        .await;
        let line = self.logged("Proxy started").unwrap();
        let (_, rest) = line.split_once(&format!("{name}=[")).unwrap();
        rest.split(']').next().unwrap().parse().unwrap()
    }

    fn terminate(&self) {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM).unwrap();
    }

    async fn exit(&mut self) -> ExitStatus {
        within(async {
            loop {
                match self.child.try_wait().unwrap() {
                    Some(status) => break status,
                    None => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
        })
        .await
    }
}

async fn admin(addr: SocketAddr, path: &str) -> http::Response<String> {
    let mut client = http1(TcpStream::connect(addr).await.unwrap()).await;
    send(&mut client, get(path)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminated_proxy_finishes_what_is_open_and_fails_nothing() {
    let ip = own_address_or_skip!();
    let control = ControlPlane::start().await;
    let gate = Gate::closed();
    let app = gated(&ip.to_string(), gate.clone()).await;
    let echo = greeter(&ip.to_string()).await;
    let mut proxy = Process::start(&control, ip, &[]);
    let (inbound, admin_addr) = (proxy.addr("inbound").await, proxy.addr("admin").await);
    eventually("ready", async || {
        admin(admin_addr, "/ready").await.status() == 200
    })
    .await;
    let credentials = control.credentials(CLIENT);
    let connect = async |port, session| {
        direct(&credentials, inbound, IDENTITY, port, session)
            .await
            .unwrap()
    };
    let one = async || {
        let io = TokioIo::new(connect(app.port(), Session::Http1).await);
        let (client, conn) = hyper::client::conn::http1::handshake::<_, http_body_util::Full<_>>(io)
            .await
            .unwrap();
        tokio::spawn(conn);
        client
    };
    let (two, conn) = h2::client::handshake(connect(app.port(), Session::Http2).await)
        .await
        .unwrap();
    tokio::spawn(conn);
    let mut opaque = connect(echo.port(), Session::Opaque).await;
    opaque.read_exact(&mut [0; 11]).await.unwrap();
    let (mut busy, mut steady) = (one().await, one().await);
    assert_eq!(send(&mut steady, get("/")).await.status(), 200);
    let slow_one = tokio::spawn(async move { send(&mut busy, get("/wait")).await });
    let request = http::Request::get("http://web.test/wait").body(()).unwrap();
    let (slow_two, _) = two
        .clone()
        .ready()
        .await
        .unwrap()
        .send_request(request, true)
        .unwrap();
    gate.reached(2).await;

    proxy.terminate();
    // A client that goes on on its connection is told to go, by an answer.
    let told = async {
        loop {
            let answer = send(&mut steady, get("/")).await;
            assert_eq!(answer.status(), 200);
            if answer.headers().get("connection").is_some_and(|c| c == "close") {
                break;
            }
        }
    };
    within(told).await;
    eventually("the HTTP/2 client is told to go", async || {
        two.clone().ready().await.is_err_and(|error| error.is_go_away())
    })
    .await;
    eventually("nobody new is let in", async || {
        TcpStream::connect(inbound).await.is_err()
    })
    .await;
    assert_eq!(admin(admin_addr, "/live").await.status(), 200);
    assert!(proxy.child.try_wait().unwrap().is_none());

    gate.open();
    let answer = within(slow_one).await.unwrap();
    assert_eq!(
        (
            answer.status().as_u16(),
            answer.headers()["connection"].as_bytes()
        ),
        (200, &b"close"[..])
    );
    let mut answer = within(slow_two).await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(within(answer.body_mut().data()).await.unwrap().unwrap(), "done");
    opaque.write_all(b"still here").await.unwrap();
    let mut echoed = [0; 10];
    within(opaque.read_exact(&mut echoed)).await.unwrap();
    assert_eq!(&echoed, b"still here");
    assert_eq!(admin(admin_addr, "/live").await.status(), 200);
    drop(opaque);
    assert_eq!(proxy.exit().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_end_is_cut_when_the_grace_period_is_over() {
    let ip = own_address_or_skip!();
    let control = ControlPlane::start().await;
    let echo = greeter(&ip.to_string()).await;
    let mut proxy = Process::start(&control, ip, &[("SHUTDOWN_GRACE_PERIOD", "300ms")]);
    let inbound = proxy.addr("inbound").await;
    let credentials = control.credentials(CLIENT);
    let connecting = direct(&credentials, inbound, IDENTITY, echo.port(), Session::Opaque);
    let mut opaque = within(connecting).await.unwrap();
    opaque.read_exact(&mut [0; 11]).await.unwrap();
    proxy.terminate();
    assert_eq!(proxy.exit().await.code(), Some(0));
    assert!(proxy.logged("Grace period is over").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_without_a_certificate_ends_at_once() {
    let control = ControlPlane::start().await;
    control.issue(|issuance| issuance.refuse = true);
    let mut proxy = Process::start(&control, "127.0.0.1".parse().unwrap(), &[]);
    let admin_addr = proxy.addr("admin").await;
    assert_eq!(admin(admin_addr, "/live").await.status(), 200);
    assert_eq!(admin(admin_addr, "/ready").await.status(), 503);
    proxy.terminate();
    let status = tokio::time::timeout(Duration::from_secs(5), proxy.exit())
        .await
        .unwrap();
    assert_eq!(status.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_certificate_of_our_own_is_told() {
    let control = ControlPlane::start().await;
    control.issue(|issuance| (issuance.lifetime, issuance.skew) = (Duration::from_secs(2), Duration::ZERO));
    let refresh = [
        ("IDENTITY_MIN_REFRESH", "100ms"),
        ("IDENTITY_MAX_REFRESH", "100ms"),
    ];
    let proxy = Process::start(&control, "127.0.0.1".parse().unwrap(), &refresh);
    let admin_addr = proxy.addr("admin").await;
    eventually("ready", async || {
        admin(admin_addr, "/ready").await.status() == 200
    })
    .await;
    control.issue(|issuance| issuance.refuse = true);
    eventually("the log says so", async || {
        proxy.logged("Our certificate has expired").is_some()
    })
    .await;
    let metrics = admin(admin_addr, "/metrics").await.into_body();
    let value = |name: &str| {
        let line = metrics.lines().find(|line| line.starts_with(name));
        let value = line.and_then(|line| line.rsplit(' ').next());
        value
            .unwrap_or_else(|| panic!("{name} in {metrics}"))
            .parse::<u64>()
            .unwrap()
    };
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    assert!(value("control_identity_cert_expiration_timestamp_seconds ") <= now);
    assert!(value("control_identity_cert_refresh_failures_total ") > 0);
    control.issue(|issuance| (issuance.lifetime, issuance.refuse) = (Duration::from_secs(3_600), false));
    eventually("it recovers", async || {
        let metrics = admin(admin_addr, "/metrics").await.into_body();
        let prefix = "control_identity_cert_expiration_timestamp_seconds ";
        let line = metrics.lines().find_map(|line| line.strip_prefix(prefix));
        line.is_some_and(|expiry| expiry.parse::<u64>().unwrap() > now + 600)
    })
    .await;
}
