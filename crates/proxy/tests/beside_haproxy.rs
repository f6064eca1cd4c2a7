//! What applications see of odd requests: behind our two proxies, and behind two haproxies with HTTP/2 between them.
//!
//! Where they see the same, somebody else has read the request as we did. Where they don't, [`OURS`] says what we do
//! instead and why. Every case ends with a request that closes the connection, so nothing here waits for a time.

mod support;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex};

use support::*;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, UnixStream};

const WEB: &str = "10.0.0.1:80";
const WEB_PATH: &str = "web.ns.svc.cluster.local:80";
/// Follows what a case sends.
const LAST: &str = "GET /last HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";

fn main() -> ExitCode {
    hawser_testing::with_program(
        "haproxy",
        &[(
            "applications_see_what_they_see_behind_haproxy",
            applications_see_what_they_see_behind_haproxy,
        )],
    )
}

/// Sent without [`LAST`]; the application sees the same behind both.
const SAME: &[&str] = &[
    "GET / HTTP/1.1\r\nHost: a\r\nX-CaSe:  Some Value \t\r\nx-empty:\r\n\r\n",
    "\r\nGET /after-an-empty-line HTTP/1.1\r\nhost: a\r\n\r\n",
    "POST /length HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc",
    "POST /no-content HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n",
    "POST /no-length HTTP/1.1\r\nhost: a\r\n\r\n",
    "GET /with-content HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc",
    "DELETE /with-content HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc",
    "POST /chunks HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
    "POST /extensions HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0;c\r\n\r\n",
    "POST /coding-in-capitals HTTP/1.1\r\nhost: a\r\nTransfer-Encoding: Chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "POST /announced HTTP/1.1\r\nhost: a\r\nte: trailers\r\ntrailer: x-sum\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx-sum: 1\r\n\r\n",
    "GET /chunks HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "HEAD /head HTTP/1.1\r\nhost: a\r\n\r\n",
    "OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n",
    "OPTIONS /path HTTP/1.1\r\nhost: a\r\n\r\n",
    "PURGE /odd-method HTTP/1.1\r\nhost: a\r\n\r\n",
    "M-SEARCH /odd-method HTTP/1.1\r\nhost: a\r\n\r\n",
    "get /small-method HTTP/1.1\r\nhost: a\r\n\r\n",
    "GET /1 HTTP/1.1\r\nhost: a\r\n\r\nPOST /2 HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\nxGET /3 HTTP/1.1\r\nhost: a\r\n\r\n",
    "GET /twice HTTP/1.1\r\nhost: a\r\nx: 1\r\nx: 2\r\n\r\n",
    "GET /cookies HTTP/1.1\r\nhost: a\r\ncookie: a=1\r\ncookie: b=2\r\n\r\n",
    "GET /closing HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
    "GET /named-length HTTP/1.1\r\nhost: a\r\nconnection: host\r\n\r\n",
    "GET /hop HTTP/1.1\r\nhost: a\r\nkeep-alive: timeout=5\r\nproxy-connection: keep-alive\r\n\r\n",
    "GET /te HTTP/1.1\r\nhost: a\r\nte: trailers\r\n\r\n",
    "GET /te-more HTTP/1.1\r\nhost: a\r\nte: gzip;q=1\r\n\r\n",
    "GET /no-host HTTP/1.1\r\n\r\n",
    "GET /empty-host HTTP/1.1\r\nhost:\r\n\r\n",
    "GET /two-hosts HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
    "GET /odd-host HTTP/1.1\r\nhost: a/b@c\r\n\r\n",
    "GET /host-with-port HTTP/1.1\r\nhost: a:8080\r\n\r\n",
    "GET no-slash HTTP/1.1\r\nhost: a\r\n\r\n",
    "GET //a/./b/../c?d=%00&e=%2F%2f HTTP/1.1\r\nhost: a\r\n\r\n",
    "GET /unusual'!$&()*+,;=:@-._~[]|{} HTTP/1.1\r\nhost: a\r\n\r\n",
    "GET /value HTTP/1.1\r\nhost: a\r\nx: \"quoted, \\\" \", <>; \u{e4}\r\n\r\n",
    "POST /lengths HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabc",
    "POST /length-twice HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ncontent-length: 3\r\n\r\nabc",
    "POST /length HTTP/1.1\r\nhost: a\r\ncontent-length: +3\r\n\r\nabc",
    "POST /length HTTP/1.1\r\nhost: a\r\ncontent-length: -3\r\n\r\nabc",
    "POST /length HTTP/1.1\r\nhost: a\r\ncontent-length: 0x3\r\n\r\nabc",
    "POST /length HTTP/1.1\r\nhost: a\r\ncontent-length: 003\r\n\r\nabc",
    "POST /length HTTP/1.1\r\nhost: a\r\ncontent-length:\r\n\r\n",
    "POST /coding HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "POST /coding HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "POST /coding HTTP/1.1\r\nhost: a\r\ntransfer-encoding: identity\r\n\r\n0\r\n\r\n",
    "POST /coding HTTP/1.1\r\nhost: a\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    "POST /coding HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "POST /coding HTTP/1.1\r\nhost: a\r\ntransfer-encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
    "POST /bad-size HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nx\r\n\r\n",
    "POST /bad-size HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n-1\r\n\r\n",
    "POST /bad-size HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n+0\r\n\r\n",
    "POST /bad-size HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n10000000000000000\r\n\r\n",
    "POST /bad-chunk HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n",
    "GET /folded HTTP/1.1\r\n x: 1\r\nhost: a\r\n\r\n",
    "GET /space HTTP/1.1\r\nhost: a\r\nx : 1\r\n\r\n",
    "GET /bare-return HTTP/1.1\r\nhost: a\r\nx: 1\r2\r\n\r\n",
    "GET /bare-return HTTP/1.1\r\nhost: a\r\nx: 1\ry: 2\r\n\r\n",
    "GET /no-name HTTP/1.1\r\nhost: a\r\n: 1\r\n\r\n",
    "GET /no-colon HTTP/1.1\r\nhost: a\r\nx\r\n\r\n",
    "GET /odd-name HTTP/1.1\r\nhost: a\r\nx(y): 1\r\n\r\n",
];

const STRICT: &str = "what two readers could read differently is refused";
const OPAQUE: &str =
    "not the first line of HTTP/1.0 or 1.1: passed unread, byte for byte, as any other protocol";
const V10: &str = "applications see the version that the client speaks";
const ABSOLUTE: &str =
    "the form of the target and the host stay as the client wrote them, as behind Linkerd's proxy";

/// Sent, what becomes of it behind our proxies, and why that differs from what haproxy makes of it.
const OURS: &[(&str, &str, &str)] = &[
    (
        "POST /trailers HTTP/1.1\r\nhost: a\r\nte: trailers\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx-sum: 1\r\n\r\n",
        "200 200; POST /trailers HTTP/1.1 [host: a, te: trailers] \"abc\"; GET /last HTTP/1.1 [host: a]",
        "trailers that no header announced are left out, as they may be (RFC 9110, 6.5.1)",
    ),
    (
        "GET /1.0 HTTP/1.0\r\nhost: a\r\n\r\n",
        "200; GET /1.0 HTTP/1.0 [host: a]",
        V10,
    ),
    (
        "GET /1.0-no-host HTTP/1.0\r\n\r\n",
        "200; GET /1.0-no-host HTTP/1.0 []",
        V10,
    ),
    (
        "GET /1.0-kept HTTP/1.0\r\nhost: a\r\nconnection: keep-alive\r\n\r\n",
        "200 200; GET /1.0-kept HTTP/1.0 [host: a]; GET /last HTTP/1.1 [host: a]",
        V10,
    ),
    (
        "POST /1.0-chunks HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        "refused",
        "HTTP/1.0 knows no chunks, so some reader takes them for content (RFC 9112, 6.1)",
    ),
    (
        "GET /1.2 HTTP/1.2\r\nhost: a\r\n\r\n",
        "200 200; GET /1.2 HTTP/1.2 [host: a]; GET /last HTTP/1.1 [host: a]",
        OPAQUE,
    ),
    (
        "GET /2.0 HTTP/2.0\r\nhost: a\r\n\r\n",
        "200 200; GET /2.0 HTTP/2.0 [host: a]; GET /last HTTP/1.1 [host: a]",
        OPAQUE,
    ),
    (
        "GET /version http/1.1\r\nhost: a\r\n\r\n",
        "200 200; GET /version http/1.1 [host: a]; GET /last HTTP/1.1 [host: a]",
        OPAQUE,
    ),
    (
        "GET /no-version\r\nhost: a\r\n\r\n",
        "200 200; GET /no-version [host: a]; GET /last HTTP/1.1 [host: a]",
        OPAQUE,
    ),
    ("GET  /two-spaces HTTP/1.1\r\nhost: a\r\n\r\n", "refused", STRICT),
    (
        "GET\t/tab HTTP/1.1\r\nhost: a\r\n\r\n",
        "200 200; GET\t/tab HTTP/1.1 [host: a]; GET /last HTTP/1.1 [host: a]",
        OPAQUE,
    ),
    (
        "POST /expecting HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\nabc",
        "100 200 200; POST /expecting HTTP/1.1 [expect: 100-continue, host: a] \"abc\"; GET /last HTTP/1.1 [host: a]",
        "the proxy itself tells its client to continue, which saves a round trip",
    ),
    (
        "GET /named HTTP/1.1\r\nhost: a\r\nconnection: x-mine, close\r\nx-mine: 1\r\nx-other: 2\r\n\r\n",
        "200; GET /named HTTP/1.1 [host: a, x-other: 2]",
        "what `connection` names ends here (RFC 9110, 7.6.1)",
    ),
    (
        "GET /h2c HTTP/1.1\r\nhost: a\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n\r\n",
        "200 200; GET /h2c HTTP/1.1 [host: a]; GET /last HTTP/1.1 [host: a]",
        "an upgrade to HTTP/2 ends here: past it, nothing would be read any more",
    ),
    (
        "GET http://a/absolute HTTP/1.1\r\nhost: a\r\n\r\n",
        "200 200; GET http://a/absolute HTTP/1.1 [host: a]; GET /last HTTP/1.1 [host: a]",
        ABSOLUTE,
    ),
    (
        "GET http://b/absolute HTTP/1.1\r\nhost: a\r\n\r\n",
        "200 200; GET http://b/absolute HTTP/1.1 [host: a]; GET /last HTTP/1.1 [host: a]",
        ABSOLUTE,
    ),
    (
        "GET http://a/absolute HTTP/1.1\r\n\r\n",
        "200 200; GET http://a/absolute HTTP/1.1 [host: a]; GET /last HTTP/1.1 [host: a]",
        ABSOLUTE,
    ),
    (
        "GET /a-host-twice HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n",
        "refused",
        STRICT,
    ),
    ("GET /<angle> HTTP/1.1\r\nhost: a\r\n\r\n", "refused", STRICT),
    (
        "POST /`?< HTTP/1.1\r\nhost: a\r\ncontent-length: 38\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: a\r\nx: y\r\n\r\n",
        "refused",
        STRICT,
    ),
    (
        "GET /fragment#part HTTP/1.1\r\nhost: a\r\n\r\n",
        "200 200; GET /fragment HTTP/1.1 [host: a]; GET /last HTTP/1.1 [host: a]",
        "a fragment is the client's own business; without it everybody reads the same path",
    ),
    (
        "POST /length-list HTTP/1.1\r\nhost: a\r\ncontent-length: 3, 3\r\n\r\nabc",
        "refused",
        STRICT,
    ),
    (
        "POST /length HTTP/1.1\r\nhost: a\r\ncontent-length: 18446744073709551617\r\n\r\na",
        "refused",
        STRICT,
    ),
    (
        "POST /both HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "refused",
        STRICT,
    ),
    (
        "POST /bare-feed HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n",
        "refused",
        STRICT,
    ),
    (
        "GET /folded HTTP/1.1\r\nhost: a\r\nx: 1\r\n 2\r\n\r\n",
        "refused",
        STRICT,
    ),
    (
        "GET /bare-feed HTTP/1.1\r\nhost: a\r\nx: 1\n\r\n",
        "refused",
        STRICT,
    ),
    ("GET /bare-feeds HTTP/1.1\nhost: a\n\n", "refused", STRICT),
    (
        "GET /zero HTTP/1.1\r\nhost: a\r\nx: 1\0\r\n\r\n",
        "refused",
        STRICT,
    ),
    (
        "CONNECT a:80 HTTP/1.1\r\nhost: a:80\r\ncontent-length: 3\r\n\r\nabc",
        "200 200; CONNECT a:80 HTTP/1.1 [host: a:80] \"abc\"; GET /last HTTP/1.1 [host: a]",
        "what follows belongs to whoever is at the end of the tunnel, and so does the header that speaks of it",
    ),
    (
        "PRI * HTTP/1.1\r\nhost: a\r\n\r\n",
        "200 200; PRI * HTTP/1.1 [host: a]; GET /last HTTP/1.1 [host: a]",
        "a method like others, here: HTTP/2 begins with another version",
    ),
];

fn applications_see_what_they_see_behind_haproxy() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let differences = runtime.block_on(async {
        let (app, other_app) = (Application::start().await, Application::start().await);
        let control = ControlPlane::start().await;
        let server = Pod::start(&control, "web", "127.0.0.2", &[]);
        let client = Pod::start(&control, "client", "127.0.0.3", &[]);
        let endpoint = meshed(app.addr, &server.identity, server.inbound_port());
        control.change(|world| service(world, WEB, WEB_PATH, vec![endpoint]));
        let haproxy = Haproxy::start(other_app.addr).await;

        let mut differences = String::new();
        let many: String = (0..90).map(|n| format!("x-{n}: {n}\r\n")).collect();
        let many = format!("GET /many HTTP/1.1\r\nhost: a\r\n{many}\r\n");
        for asked in SAME.iter().copied().chain([many.as_str()]) {
            let ours = app.seen_after(client.connect(WEB).await, asked).await;
            let theirs = other_app.seen_after(haproxy.connect().await, asked).await;
            if ours != theirs {
                differences += &format!("{asked:?}\n  here: {ours}\n  behind haproxy: {theirs}\n");
            }
        }
        for (asked, expected, why) in OURS {
            let ours = app.seen_after(client.connect(WEB).await, asked).await;
            if ours != *expected {
                differences += &format!("{asked:?}\n  here: {ours}\n  expected: {expected}, because {why}\n");
            }
        }
        differences
    });
    assert!(differences.is_empty(), "\n{differences}");
}

/// Answers every request that is whole, and remembers it.
struct Application {
    addr: SocketAddr,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Application {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.2:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let seen = Arc::<Mutex<Vec<String>>>::default();
        let noted = seen.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let noted = noted.clone();
                tokio::spawn(async move {
                    let mut socket = BufReader::new(socket);
                    while let Some(request) = Seen::read(&mut socket).await {
                        noted.lock().unwrap().push(request.text());
                        let content = if request.method() == "HEAD" { "" } else { "ok" };
                        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{content}");
                        // What passes unread, nobody else ends.
                        let close = request.headers.get("connection");
                        let close = close.is_some_and(|value| value.concat() == "close");
                        if socket.write_all(answer.as_bytes()).await.is_err() || close {
                            break;
                        }
                    }
                });
            }
        });
        Self { addr, seen }
    }

    /// The answers' codes at the client and the requests here, after all of both.
    async fn seen_after(&self, mut client: impl AsyncRead + AsyncWrite + Unpin, asked: &str) -> String {
        // Whoever refuses early may close before all of it is written.
        let _ = client.write_all(format!("{asked}{LAST}").as_bytes()).await;
        let mut answers = Vec::new();
        let _ = within(client.read_to_end(&mut answers)).await;
        let answers = String::from_utf8_lossy(&answers).into_owned();
        // Who is to blame is said differently.
        let codes = answers
            .split("HTTP/1.")
            .skip(1)
            .map(|answer| match answer.get(2..5) {
                Some(code) if code < "400" => code,
                _ => "refused",
            });
        let codes = codes.collect::<Vec<_>>().join(" ");
        let seen = std::mem::take(&mut *self.seen.lock().unwrap());
        std::iter::once(codes).chain(seen).collect::<Vec<_>>().join("; ")
    }
}

/// One request as an application reads it that forgives nothing.
struct Seen {
    line: String,
    headers: BTreeMap<String, Vec<String>>,
    content: String,
    trailers: Vec<String>,
}

impl Seen {
    async fn read(socket: &mut (impl AsyncBufReadExt + Unpin)) -> Option<Self> {
        let mut line = read_line(socket).await?;
        if line.is_empty() {
            line = read_line(socket).await?;
        }
        let mut headers = BTreeMap::<_, Vec<_>>::new();
        for field in read_fields(socket).await? {
            let (name, value) = field.split_once(':').expect("a field");
            let values = headers.entry(name.to_ascii_lowercase()).or_default();
            values.push(value.trim_matches([' ', '\t']).to_owned());
        }
        let mut request = Self {
            line,
            headers,
            content: String::new(),
            trailers: Vec::new(),
        };
        match (
            request.headers.get("content-length"),
            request.headers.get("transfer-encoding"),
        ) {
            (None, None) => {}
            (Some(length), None) => {
                let length = length.concat().parse().expect("one length");
                request.content = read_content(socket, length).await?;
            }
            (None, Some(coding)) => {
                assert_eq!(coding.concat(), "chunked");
                loop {
                    let size = read_line(socket).await?;
                    let size = usize::from_str_radix(&size, 16).expect("a size");
                    if size == 0 {
                        break;
                    }
                    request.content += &read_content(socket, size).await?;
                    assert_eq!(read_line(socket).await?, "");
                }
                request.trailers = read_fields(socket).await?;
            }
            both => panic!("two framings: {both:?}"),
        }
        Some(request)
    }

    fn method(&self) -> &str {
        self.line.split(' ').next().unwrap_or_default()
    }

    /// Without what concerns one hop only or is the mesh's own.
    fn text(&self) -> String {
        let hop = ["connection", "content-length", "transfer-encoding"];
        let fields = self.headers.iter();
        let fields = fields.filter(|(name, _)| !hop.contains(&name.as_str()) && !name.starts_with("l5d-"));
        let fields: Vec<_> = fields
            .map(|(name, values)| format!("{name}: {}", values.join(" | ")))
            .collect();
        let mut text = format!("{} [{}]", self.line, fields.join(", "));
        if !self.content.is_empty() {
            text += &format!(" {:?}", self.content);
        }
        if !self.trailers.is_empty() {
            text += &format!(" {:?}", self.trailers);
        }
        text
    }
}

async fn read_line(socket: &mut (impl AsyncBufReadExt + Unpin)) -> Option<String> {
    let mut line = Vec::new();
    socket.read_until(b'\n', &mut line).await.ok()?;
    // What breaks off is no request.
    let line = line.strip_suffix(b"\n")?;
    let line = line.strip_suffix(b"\r").expect("lines end with both");
    assert!(!line.contains(&b'\r'));
    Some(String::from_utf8_lossy(line).into_owned())
}

async fn read_fields(socket: &mut (impl AsyncBufReadExt + Unpin)) -> Option<Vec<String>> {
    let mut fields = Vec::new();
    loop {
        match read_line(socket).await? {
            end if end.is_empty() => return Some(fields),
            field => fields.push(field),
        }
    }
}

async fn read_content(socket: &mut (impl AsyncBufReadExt + Unpin), length: usize) -> Option<String> {
    let mut content = vec![0; length];
    socket.read_exact(&mut content).await.ok()?;
    Some(String::from_utf8_lossy(&content).into_owned())
}

/// Two in a row, in one process.
struct Haproxy {
    process: Child,
    dir: tempfile::TempDir,
}

impl Haproxy {
    async fn start(app: SocketAddr) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (file, at) = (dir.path().join("conf"), dir.path().display());
        let text = format!(
            "defaults
  mode http
  timeout connect 20s
  timeout client 20s
  timeout server 20s
frontend outbound
  bind unix@{at}/outbound
  default_backend inbound
backend inbound
  server inbound unix@{at}/inbound proto h2
frontend inbound
  bind unix@{at}/inbound proto h2
  default_backend app
backend app
  server app {app}
"
        );
        std::fs::write(&file, text).unwrap();
        let mut command = Command::new("haproxy");
        command
            .args(["-db", "-q", "-f"])
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let haproxy = Self {
            process: command.spawn().unwrap(),
            dir,
        };
        eventually("haproxy listens", async || {
            UnixStream::connect(haproxy.dir.path().join("outbound"))
                .await
                .is_ok()
        })
        .await;
        haproxy
    }

    async fn connect(&self) -> UnixStream {
        UnixStream::connect(self.dir.path().join("outbound"))
            .await
            .unwrap()
    }
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
