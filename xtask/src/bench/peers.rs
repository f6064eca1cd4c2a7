//! Other proxies in our proxies' place: same redirects, ports, certificates, TLS 1.3 with P-256 and AES-128-GCM.
//!
//! Pure: configuration texts. One worker each, no access log, keep-alive on every hop, peers verified on both sides.

use std::path::Path;

use super::namespaces::SERVER_IP;

/// Where redirected connections of the client arrive.
pub(super) const OUTBOUND: &str = "127.0.0.1:4140";
pub(super) const INBOUND_PORT: u16 = 4143;
/// In the certificate of both.
pub(super) const NAME: &str = "web.ns.serviceaccount.identity.linkerd.cluster.local";
const SUITE: &str = "TLS_AES_128_GCM_SHA256";

/// An application in the server's pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// nginx with an answer of five bytes.
    Small,
    /// The same in HTTP/2.
    Small2,
    /// Ours: bodies of any length, bare bytes.
    Bytes,
}

impl Origin {
    pub(super) const ALL: [Self; 3] = [Self::Small, Self::Small2, Self::Bytes];

    /// Behind the inbound proxy.
    pub(super) fn port(self) -> u16 {
        match self {
            Self::Small => 8080,
            Self::Small2 => 8082,
            Self::Bytes => 8084,
        }
    }

    /// For the client directly.
    pub(super) fn direct_port(self) -> u16 {
        self.port() + 1
    }

    /// What the client asks for; the control plane of `mesh_path.rs` knows it under this address.
    pub(super) fn service(self) -> String {
        format!("10.0.0.{}:80", self.port() % 100)
    }
}

/// What two haproxies speak with each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Between {
    Http1,
    Http2,
    /// Nothing of their own.
    Tcp,
}

impl Between {
    fn alpn(self) -> &'static str {
        match self {
            Self::Http1 => "alpn http/1.1",
            Self::Http2 => "alpn h2",
            Self::Tcp => "",
        }
    }
}

fn haproxy(dir: &Path, between: Between, bind: &str, server: &str) -> String {
    let dir = dir.display();
    let mode = match between {
        Between::Tcp => "tcp",
        Between::Http1 | Between::Http2 => "http\n  http-reuse always",
    };
    format!(
        "global
  nbthread 1
  maxconn 9000
  ssl-default-bind-options ssl-min-ver TLSv1.3
  ssl-default-server-options ssl-min-ver TLSv1.3
  ssl-default-bind-ciphersuites {SUITE}
  ssl-default-server-ciphersuites {SUITE}
  ca-base {dir}
  crt-base {dir}
defaults
  mode {mode}
  timeout connect 5s
  timeout client 60s
  timeout server 60s
frontend in
  bind {bind}
  default_backend out
backend out
  server next {server}
"
    )
}

pub(super) fn haproxy_outbound(dir: &Path, between: Between) -> String {
    let alpn = between.alpn();
    let server = format!(
        "{SERVER_IP}:{INBOUND_PORT} ssl crt peer.pem ca-file anchors.pem verify required verifyhost {NAME} \
         sni str({NAME}) {alpn}"
    );
    haproxy(dir, between, OUTBOUND, &server)
}

pub(super) fn haproxy_inbound(dir: &Path, between: Between, origin: Origin) -> String {
    let alpn = between.alpn();
    let bind = format!(
        "{SERVER_IP}:{INBOUND_PORT} ssl crt peer.pem ca-file anchors.pem verify required curves P-256 {alpn}"
    );
    let version = if origin == Origin::Small2 { "proto h2" } else { "" };
    let server = format!("127.0.0.1:{} {version}", origin.port());
    haproxy(dir, between, &bind, &server)
}

/// One process does everything: with a single worker a supervising second one would only stand by.
fn nginx(dir: &Path, name: &str, http: &str) -> String {
    let dir = dir.display();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|what| format!("  {what}_temp_path {dir}/{name}-{what};\n"))
        .collect();
    format!(
        "user root;
daemon off;
master_process off;
worker_processes 1;
pid {dir}/{name}.pid;
error_log stderr warn;
events {{ worker_connections 16384; }}
http {{
  access_log off;
  keepalive_requests 1000000000;
{temporary}{http}}}
"
    )
}

pub(super) fn nginx_origin(dir: &Path) -> String {
    let listen = |origin: Origin, version: &str| {
        let (behind, direct) = (origin.port(), origin.direct_port());
        format!("    listen {behind} {version};\n    listen {direct} {version};\n")
    };
    let http = format!(
        "  server {{
{}{}    location / {{ return 200 hello; }}
  }}
",
        listen(Origin::Small, ""),
        listen(Origin::Small2, "http2"),
    );
    nginx(dir, "origin", &http)
}

/// `listen` and further settings of the server, and what it passes requests to.
fn nginx_proxy(dir: &Path, name: &str, settings: &str, upstream: &str, scheme: &str) -> String {
    let http = format!(
        "  upstream next {{
    server {upstream};
    keepalive 256;
    keepalive_requests 1000000000;
  }}
  server {{
{settings}
    location / {{
      proxy_pass {scheme}://next;
      proxy_http_version 1.1;
      proxy_set_header Connection \"\";
      proxy_set_header Host $host;
    }}
  }}
"
    );
    nginx(dir, name, &http)
}

pub(super) fn nginx_outbound(dir: &Path) -> String {
    let files = dir.display();
    let settings = format!(
        "    listen {OUTBOUND};
    proxy_ssl_certificate {files}/peer.pem;
    proxy_ssl_certificate_key {files}/peer.pem;
    proxy_ssl_trusted_certificate {files}/anchors.pem;
    proxy_ssl_verify on;
    proxy_ssl_verify_depth 3;
    proxy_ssl_name {NAME};
    proxy_ssl_server_name on;
    proxy_ssl_protocols TLSv1.3;
    proxy_ssl_conf_command Ciphersuites {SUITE};"
    );
    nginx_proxy(
        dir,
        "outbound",
        &settings,
        &format!("{SERVER_IP}:{INBOUND_PORT}"),
        "https",
    )
}

pub(super) fn nginx_inbound(dir: &Path) -> String {
    let files = dir.display();
    let settings = format!(
        "    listen {SERVER_IP}:{INBOUND_PORT} ssl;
    ssl_certificate {files}/peer.pem;
    ssl_certificate_key {files}/peer.pem;
    ssl_client_certificate {files}/anchors.pem;
    ssl_verify_client on;
    ssl_verify_depth 3;
    ssl_protocols TLSv1.3;
    ssl_ecdh_curve prime256v1;
    ssl_conf_command Ciphersuites {SUITE};"
    );
    nginx_proxy(
        dir,
        "inbound",
        &settings,
        &format!("127.0.0.1:{}", Origin::Small.port()),
        "http",
    )
}
