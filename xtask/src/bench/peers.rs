//! Other proxies in our proxies' place: same redirects, ports, certificates, TLS 1.3 with P-256 and AES-128-GCM.
//!
//! Pure: configuration texts. One worker each, no access log, keep-alive on every hop, peers verified on both sides.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;

use serde_json::{Value, json};

use super::namespaces::{GATEWAY_IP, SERVER_IP};

/// Where redirected connections of the client arrive.
pub(super) const OUTBOUND: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 4140);
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
    /// Ours: a message and trailers.
    Grpc,
}

impl Origin {
    pub(super) const ALL: [Self; 4] = [Self::Small, Self::Small2, Self::Bytes, Self::Grpc];

    /// Behind the inbound proxy.
    pub(super) fn port(self) -> u16 {
        match self {
            Self::Small => 8080,
            Self::Small2 => 8082,
            Self::Bytes => 8084,
            Self::Grpc => 8086,
        }
    }

    /// For the client directly.
    pub(super) fn direct_port(self) -> u16 {
        self.port() + 1
    }

    /// What the client asks for; the control plane of `mesh_path.rs` knows it under this address. One leads to the
    /// application's own proxy, another through a gateway.
    pub(super) fn service(self, path: &[Side]) -> String {
        let far = if path.contains(&Side::Gateway) { 100 } else { 0 };
        format!("10.0.0.{}:80", self.port() % 100 + far)
    }

    fn speaks_http2(self) -> bool {
        matches!(self, Self::Small2 | Self::Grpc)
    }
}

/// A proxy's place on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Outbound,
    Gateway,
    Inbound,
}

impl Side {
    /// From one pod to another.
    pub(super) const DIRECT: &[Self] = &[Self::Outbound, Self::Inbound];
    /// From one cluster to another.
    pub(super) const THROUGH_GATEWAY: &[Self] = &[Self::Outbound, Self::Gateway, Self::Inbound];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Gateway => "gateway",
            Self::Inbound => "inbound",
        }
    }

    /// Between pods on every address: a redirect turns the one that was asked for into that of the interface.
    fn listens_on(self) -> SocketAddrV4 {
        match self {
            Self::Outbound => OUTBOUND,
            Self::Gateway | Self::Inbound => SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, INBOUND_PORT),
        }
    }

    fn is_reached_at(self) -> SocketAddrV4 {
        match self {
            Self::Outbound => OUTBOUND,
            Self::Gateway => SocketAddrV4::new(GATEWAY_IP, INBOUND_PORT),
            Self::Inbound => SocketAddrV4::new(SERVER_IP, INBOUND_PORT),
        }
    }
}

/// What a proxy is to be told: where it stands on which path, and what is at its end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hop {
    pub(super) side: Side,
    pub(super) path: &'static [Side],
    pub(super) origin: Origin,
}

impl Hop {
    /// Whom it sends to: the next proxy, or the application.
    fn next(self) -> SocketAddrV4 {
        let mut rest = self.path.iter().skip_while(|side| **side != self.side).skip(1);
        match rest.next() {
            Some(side) => side.is_reached_at(),
            None => SocketAddrV4::new(Ipv4Addr::LOCALHOST, self.origin.port()),
        }
    }

    fn tls_before(self) -> bool {
        self.side != Side::Outbound
    }

    fn tls_behind(self) -> bool {
        self.side != Side::Inbound
    }
}

/// What two proxies of another kind speak with each other.
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

pub(super) fn haproxy(dir: &Path, hop: Hop, between: Between) -> String {
    let (dir, alpn) = (dir.display(), between.alpn());
    let mode = match between {
        Between::Tcp => "tcp",
        Between::Http1 | Between::Http2 => "http\n  http-reuse always",
    };
    let certificates = "ssl crt peer.pem ca-file anchors.pem verify required";
    let before = match hop.tls_before() {
        true => format!("{certificates} curves P-256 {alpn}"),
        false => String::new(),
    };
    let behind = match hop.tls_behind() {
        true => format!("{certificates} verifyhost {NAME} sni str({NAME}) {alpn}"),
        false if hop.origin.speaks_http2() => "proto h2".into(),
        false => String::new(),
    };
    let (listen, next) = (hop.side.listens_on(), hop.next());
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
  bind {listen} {before}
  default_backend out
backend out
  server next {next} {behind}
"
    )
}

/// With one worker, as the command line says; TLS 1.3's suites can't be chosen, and with AES in hardware BoringSSL
/// prefers the one that the others are told to use.
pub(super) fn envoy(dir: &Path, hop: Hop, between: Between) -> Value {
    const TYPES: &str = "type.googleapis.com/envoy.extensions";
    let file = |name: &str| json!({ "filename": dir.join(name) });
    let common_tls = || {
        let mut context = json!({
            "tls_params": {
                "tls_minimum_protocol_version": "TLSv1_3",
                "tls_maximum_protocol_version": "TLSv1_3",
                "ecdh_curves": ["P-256"],
            },
            "tls_certificates": [{ "certificate_chain": file("peer.pem"), "private_key": file("peer.pem") }],
            "validation_context": {
                "trusted_ca": file("anchors.pem"),
                "match_typed_subject_alt_names": [{ "san_type": "DNS", "matcher": { "exact": NAME } }],
            },
        });
        if between == Between::Http2 {
            context["alpn_protocols"] = json!(["h2"]);
        }
        context
    };
    let socket = |name: &str, config: Value| json!({ "name": name, "typed_config": config });
    let address =
        |addr: SocketAddrV4| json!({ "socket_address": { "address": addr.ip(), "port_value": addr.port() } });
    let filter = match between {
        Between::Tcp => json!({
            "name": "envoy.filters.network.tcp_proxy",
            "typed_config": {
                "@type": format!("{TYPES}.filters.network.tcp_proxy.v3.TcpProxy"),
                "stat_prefix": "in",
                "cluster": "next",
            },
        }),
        Between::Http1 | Between::Http2 => json!({
            "name": "envoy.filters.network.http_connection_manager",
            "typed_config": {
                "@type": format!("{TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager"),
                "stat_prefix": "in",
                "generate_request_id": false,
                "route_config": { "virtual_hosts": [{
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": "next", "timeout": "0s" } }],
                }] },
                "http_filters": [{
                    "name": "envoy.filters.http.router",
                    "typed_config": {
                        "@type": format!("{TYPES}.filters.http.router.v3.Router"),
                        "suppress_envoy_headers": true,
                    },
                }],
            },
        }),
    };
    let mut chain = json!({ "filters": [filter] });
    if hop.tls_before() {
        chain["transport_socket"] = socket(
            "envoy.transport_sockets.tls",
            json!({
                "@type": format!("{TYPES}.transport_sockets.tls.v3.DownstreamTlsContext"),
                "require_client_certificate": true,
                "common_tls_context": common_tls(),
            }),
        );
    }
    // Its usual limits are for thousands of clusters, and would refuse some of our loads.
    let many =
        json!({ "max_connections": 100_000, "max_pending_requests": 100_000, "max_requests": 100_000 });
    let mut cluster = json!({
        "name": "next",
        "type": "STATIC",
        "connect_timeout": "5s",
        "circuit_breakers": { "thresholds": [many] },
        "load_assignment": {
            "cluster_name": "next",
            "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address(hop.next()) } }] }],
        },
    });
    if hop.tls_behind() {
        cluster["transport_socket"] = socket(
            "envoy.transport_sockets.tls",
            json!({
                "@type": format!("{TYPES}.transport_sockets.tls.v3.UpstreamTlsContext"),
                "sni": NAME,
                "common_tls_context": common_tls(),
            }),
        );
    }
    let http2 = if hop.tls_behind() {
        between == Between::Http2
    } else {
        hop.origin.speaks_http2()
    };
    let version = if http2 {
        "http2_protocol_options"
    } else {
        "http_protocol_options"
    };
    cluster["typed_extension_protocol_options"] = json!({
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": format!("{TYPES}.upstreams.http.v3.HttpProtocolOptions"),
            "explicit_http_config": { version: {} },
        },
    });
    let listener =
        json!({ "name": "in", "address": address(hop.side.listens_on()), "filter_chains": [chain] });
    json!({ "static_resources": { "listeners": [listener], "clusters": [cluster] } })
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

/// HTTP/1.1 on every hop: it has nothing else for what is behind it.
pub(super) fn nginx_proxy(dir: &Path, hop: Hop) -> String {
    let files = dir.display();
    let (listen, next) = (hop.side.listens_on(), hop.next());
    let before = match hop.tls_before() {
        true => format!(
            "listen {listen} ssl;
    ssl_certificate {files}/peer.pem;
    ssl_certificate_key {files}/peer.pem;
    ssl_client_certificate {files}/anchors.pem;
    ssl_verify_client on;
    ssl_verify_depth 3;
    ssl_protocols TLSv1.3;
    ssl_ecdh_curve prime256v1;
    ssl_conf_command Ciphersuites {SUITE};"
        ),
        false => format!("listen {listen};"),
    };
    let (scheme, behind) = match hop.tls_behind() {
        true => (
            "https",
            format!(
                "proxy_ssl_certificate {files}/peer.pem;
    proxy_ssl_certificate_key {files}/peer.pem;
    proxy_ssl_trusted_certificate {files}/anchors.pem;
    proxy_ssl_verify on;
    proxy_ssl_verify_depth 3;
    proxy_ssl_name {NAME};
    proxy_ssl_server_name on;
    proxy_ssl_protocols TLSv1.3;
    proxy_ssl_conf_command Ciphersuites {SUITE};"
            ),
        ),
        false => ("http", String::new()),
    };
    let http = format!(
        "  upstream next {{
    server {next};
    keepalive 256;
    keepalive_requests 1000000000;
  }}
  server {{
    {before}
    {behind}
    location / {{
      proxy_pass {scheme}://next;
      proxy_http_version 1.1;
      proxy_set_header Connection \"\";
      proxy_set_header Host $host;
    }}
  }}
"
    );
    nginx(dir, hop.side.name(), &http)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_proxy_sends_to_the_next_on_its_path_and_only_the_ends_speak_without_tls() {
        let told = |path: &'static [Side]| {
            let hop = |side: &Side| {
                let hop = Hop {
                    side: *side,
                    path,
                    origin: Origin::Small,
                };
                format!(
                    "{} {} {} {}",
                    hop.side.name(),
                    hop.next(),
                    hop.tls_before(),
                    hop.tls_behind()
                )
            };
            path.iter().map(hop).collect::<Vec<_>>()
        };
        assert_eq!(
            told(Side::DIRECT),
            [
                "outbound 10.77.0.2:4143 false true",
                "inbound 127.0.0.1:8080 true false"
            ]
        );
        assert_eq!(
            told(Side::THROUGH_GATEWAY),
            [
                "outbound 10.77.1.3:4143 false true",
                "gateway 10.77.0.2:4143 true true",
                "inbound 127.0.0.1:8080 true false"
            ]
        );
    }
}
