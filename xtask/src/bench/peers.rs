//! Other proxies in our proxies' place: same redirects, ports, certificates, TLS 1.3 with P-256 and AES-128-GCM.
//!
//! Pure: configuration texts. One worker each, no access log, keep-alive on every hop, peers verified on both sides.

use std::path::Path;

use super::namespaces::SERVER_IP;

/// Where redirected connections of the client arrive.
pub(super) const OUTBOUND: &str = "127.0.0.1:4140";
pub(super) const INBOUND_PORT: u16 = 4143;
/// The origin behind the inbound proxy.
pub(super) const ORIGIN_PORT: u16 = 8080;
/// The same origin, for the client directly.
pub(super) const DIRECT_PORT: u16 = 8081;
/// In the certificate of both.
pub(super) const NAME: &str = "web.ns.serviceaccount.identity.linkerd.cluster.local";
const SUITE: &str = "TLS_AES_128_GCM_SHA256";

/// What two haproxies speak with each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Between {
    Http1,
    Http2,
}

impl Between {
    fn alpn(self) -> &'static str {
        match self {
            Self::Http1 => "http/1.1",
            Self::Http2 => "h2",
        }
    }
}

fn haproxy(dir: &Path, bind: &str, server: &str) -> String {
    let dir = dir.display();
    format!(
        "global
  nbthread 1
  maxconn 4096
  ssl-default-bind-options ssl-min-ver TLSv1.3
  ssl-default-server-options ssl-min-ver TLSv1.3
  ssl-default-bind-ciphersuites {SUITE}
  ssl-default-server-ciphersuites {SUITE}
  ca-base {dir}
  crt-base {dir}
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  http-reuse always
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
         sni str({NAME}) alpn {alpn}"
    );
    haproxy(dir, OUTBOUND, &server)
}

pub(super) fn haproxy_inbound(dir: &Path, between: Between) -> String {
    let alpn = between.alpn();
    let bind = format!(
        "{SERVER_IP}:{INBOUND_PORT} ssl crt peer.pem ca-file anchors.pem verify required curves P-256 alpn {alpn}"
    );
    haproxy(dir, &bind, &format!("127.0.0.1:{ORIGIN_PORT}"))
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
events {{ worker_connections 4096; }}
http {{
  access_log off;
  keepalive_requests 1000000000;
{temporary}{http}}}
"
    )
}

pub(super) fn nginx_origin(dir: &Path) -> String {
    let http = format!(
        "  server {{
    listen {ORIGIN_PORT};
    listen {DIRECT_PORT};
    location / {{ return 200 hello; }}
  }}
"
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
        &format!("127.0.0.1:{ORIGIN_PORT}"),
        "http",
    )
}
