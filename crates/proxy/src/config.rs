//! What the environment says (`spec/proxy.md` 1.4, 1.5), parsed once at start.
//!
//! Every variable is checked before anything runs; all faults are reported together and the process exits with 64.
//! An empty value is an unset one. Nothing else in the crate reads the environment.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hawser_core::Identity;
use hawser_runtime::logging;
use hawser_tls::TrustAnchors;
use ipnet::IpNet;

/// The environment as a value, so that tests write one.
#[derive(Clone, Debug, Default)]
pub struct Env(BTreeMap<String, String>);

/// One unusable variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    pub name: String,
    pub why: String,
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.why)
    }
}

/// A control-plane service: where it is, and who it must prove to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlService {
    pub host: String,
    pub port: u16,
    /// `None` only for loopback addresses, which are spoken to in plain text.
    pub identity: Option<Identity>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DefaultPolicy {
    Deny,
    AllAuthenticated,
    AllUnauthenticated,
    ClusterAuthenticated,
    ClusterUnauthenticated,
    Audit,
}

impl DefaultPolicy {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deny => "deny",
            Self::AllAuthenticated => "all-authenticated",
            Self::AllUnauthenticated => "all-unauthenticated",
            Self::ClusterAuthenticated => "cluster-authenticated",
            Self::ClusterUnauthenticated => "cluster-unauthenticated",
            Self::Audit => "audit",
        }
    }
}

#[derive(Clone, Debug)]
pub struct IdentityConfig {
    pub name: Identity,
    /// What peers send as SNI to reach us.
    pub server_name: String,
    pub anchors: TrustAnchors,
    pub token_file: PathBuf,
    pub dir: Option<PathBuf>,
    pub service: ControlService,
    pub refresh_min: Duration,
    pub refresh_max: Duration,
}

/// Socket options of one side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketOptions {
    pub keepalive: Option<Duration>,
    pub user_timeout: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HttpServer {
    /// From the first byte of an HTTP/1 head to its last.
    pub head_timeout: Duration,
    pub stream_window: u32,
    pub connection_window: u32,
    pub adaptive: bool,
    pub keepalive: Option<(Duration, Duration)>,
    pub streams_max: Option<u32>,
    pub frame_max: Option<u32>,
    pub header_list_max: Option<u32>,
    pub pending_resets_max: Option<usize>,
    pub send_buffer_max: Option<usize>,
}

#[derive(Clone, Debug)]
pub struct InboundConfig {
    pub addrs: Vec<SocketAddr>,
    pub ips: BTreeSet<IpAddr>,
    pub ports: BTreeSet<u16>,
    pub opaque_ports: BTreeSet<u16>,
    pub default_policy: DefaultPolicy,
    pub gateway_suffixes: Option<Vec<String>>,
    pub detect_timeout: Duration,
    pub connect_timeout: Duration,
    pub accept: SocketOptions,
    pub connect: SocketOptions,
    pub pool_idle: Duration,
    pub discovery_idle: Duration,
    pub failfast: Duration,
    pub http: HttpServer,
    /// Requests that wait for an answer, on all workers.
    pub in_flight_max: usize,
    /// Idle HTTP/1 connections to one application or endpoint.
    pub idle_max: usize,
    pub backlog: i32,
}

#[derive(Clone, Debug)]
pub struct OutboundConfig {
    pub addrs: Vec<SocketAddr>,
    pub profile_networks: Vec<IpNet>,
    pub profile_suffixes: Vec<String>,
    pub detect_timeout: Duration,
    pub connect_timeout: Duration,
    pub accept: SocketOptions,
    pub connect: SocketOptions,
    pub pool_idle: Duration,
    pub discovery_idle: Duration,
    pub http_failfast: Duration,
    pub tcp_failfast: Duration,
    pub backoff: (Duration, Duration),
    pub http: HttpServer,
    pub in_flight_max: usize,
    pub idle_max: usize,
    /// Requests, and opaque connections, that wait for an endpoint of one backend.
    pub http_queue: usize,
    pub tcp_queue: usize,
    pub informational_headers: bool,
    pub ingress: bool,
    pub backlog: i32,
}

/// Who is told of spans.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceConfig {
    pub service: ControlService,
    /// What the collector is told of this process.
    pub attributes: BTreeMap<String, String>,
}

#[derive(Clone, Debug)]
pub struct Config {
    pub inbound: InboundConfig,
    pub outbound: OutboundConfig,
    pub admin_addrs: Vec<SocketAddr>,
    /// Absent if nobody may watch requests.
    pub tap: Option<Arc<TapConfig>>,
    /// Absent if nobody is told of spans.
    pub trace: Option<Arc<TraceConfig>>,
    pub identity: IdentityConfig,
    pub destination: ControlService,
    pub destination_context: String,
    pub policy: ControlService,
    pub policy_workload: String,
    pub cluster_networks: Vec<IpNet>,
    pub stream_initial_timeout: Option<Duration>,
    pub stream_idle_timeout: Option<Duration>,
    pub stream_lifetime: Option<Duration>,
    pub metrics_retain_idle: Duration,
    pub shutdown_grace: Duration,
    /// How long new connections are still let in once the end has begun: until nobody is sent here any more.
    pub withdrawal: Duration,
    pub shutdown_endpoint: bool,
    pub workers: usize,
    pub socket_mark: Option<u32>,
    pub log_filter: String,
    pub log_format: logging::Format,
}

/// Who may watch requests, and where they ask.
#[derive(Clone, Debug)]
pub struct TapConfig {
    pub client: Identity,
    pub addrs: Vec<SocketAddr>,
}

impl Env {
    /// The process's own environment.
    pub fn of_process() -> Self {
        let text = |os: std::ffi::OsString| os.into_string().ok();
        Self(
            std::env::vars_os()
                .filter_map(|(k, v)| Some((text(k)?, text(v)?)))
                .collect(),
        )
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|v| v.trim()).filter(|v| !v.is_empty())
    }

    pub fn all(&self) -> &BTreeMap<String, String> {
        &self.0
    }
}

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for Env {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        Self(pairs.into_iter().map(|(k, v)| (k.into(), v.into())).collect())
    }
}

/// Reads variables and remembers every fault.
struct Reader<'a> {
    env: &'a Env,
    faults: Vec<Invalid>,
}

impl Reader<'_> {
    fn fault(&mut self, name: &str, why: impl Into<String>) {
        self.faults.push(Invalid {
            name: full(name),
            why: why.into(),
        });
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.env.get(&full(name))
    }

    fn parse<T>(&mut self, name: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        match parse(self.text(name)?) {
            Ok(value) => Some(value),
            Err(why) => {
                self.fault(name, why);
                None
            }
        }
    }

    fn required<T>(&mut self, name: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        if self.text(name).is_none() {
            self.fault(name, "is required");
        }
        self.parse(name, parse)
    }

    fn duration(&mut self, name: &str, default: Duration) -> Duration {
        self.parse(name, duration).unwrap_or(default)
    }

    fn number<T: std::str::FromStr>(&mut self, name: &str) -> Option<T> {
        self.parse(name, |text| {
            text.parse()
                .map_err(|_| format!("{text:?} is not a number in range"))
        })
    }

    fn flag(&mut self, name: &str, default: bool) -> bool {
        self.parse(name, boolean).unwrap_or(default)
    }

    fn sockets(&mut self, side: &str, kind: &str) -> SocketOptions {
        SocketOptions {
            keepalive: self
                .parse(&format!("{side}_{kind}_KEEPALIVE"), duration)
                .filter(|d| !d.is_zero()),
            user_timeout: self
                .parse(&format!("{side}_{kind}_USER_TIMEOUT"), duration)
                .filter(|d| !d.is_zero()),
        }
    }

    /// What the HTTP/2 library would panic at is refused here.
    fn within<T>(&mut self, name: &str, range: std::ops::RangeInclusive<T>) -> Option<T>
    where
        T: std::str::FromStr + PartialOrd + fmt::Display,
    {
        self.parse(name, |text| {
            let value = text.parse().ok().filter(|value| range.contains(value));
            value.ok_or_else(|| format!("{text:?} is not from {} to {}", range.start(), range.end()))
        })
    }

    fn http(&mut self, side: &str, head_timeout: Duration) -> HttpServer {
        let name = |what: &str| format!("{side}_SERVER_HTTP2_{what}");
        let interval = self.parse(&name("KEEP_ALIVE_INTERVAL"), duration);
        let timeout = self.parse(&name("KEEP_ALIVE_TIMEOUT"), duration);
        const WINDOW_MAX: u32 = (1 << 31) - 1;
        HttpServer {
            head_timeout,
            // Towards peers far away the window bounds the throughput, so ours start larger than the usual 64 KiB.
            stream_window: self
                .within(&name("INITIAL_STREAM_WINDOW_SIZE"), 0..=WINDOW_MAX)
                .unwrap_or(256 << 10),
            connection_window: self
                .within(&name("INITIAL_CONNECTION_WINDOW_SIZE"), 0..=WINDOW_MAX)
                .unwrap_or(4 << 20),
            adaptive: self.flag(&name("ADAPTIVE_FLOW_CONTROL"), false),
            keepalive: interval.zip(timeout),
            streams_max: self.number(&name("MAX_CONCURRENT_STREAMS")),
            frame_max: self.within(&name("MAX_FRAME_SIZE"), 1 << 14..=(1 << 24) - 1),
            header_list_max: self.number(&name("MAX_HEADER_LIST_SIZE")),
            pending_resets_max: self.number(&name("MAX_PENDING_ACCEPT_RESET_STREAMS")),
            send_buffer_max: self.within(&name("MAX_SEND_BUF_SIZE"), 1..=u32::MAX as usize),
        }
    }

    fn trace(&mut self) -> Option<TraceConfig> {
        self.text("TRACE_COLLECTOR_SVC_ADDR")?;
        self.parse("TRACE_PROTOCOL", |text| match text {
            "opentelemetry" => Ok(()),
            _ => Err("only opentelemetry is spoken".to_owned()),
        });
        let name = self.text("TRACE_SERVICE_NAME").unwrap_or("linkerd-proxy");
        let mut attributes = BTreeMap::from([("service.name".to_owned(), name.to_owned())]);
        // As every program that speaks OpenTelemetry reads it.
        let more = self.env.get("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
        let more = more.split(',').filter_map(|pair| pair.split_once('='));
        attributes.extend(more.map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned())));
        let service = self.service("TRACE_COLLECTOR")?;
        Some(TraceConfig { service, attributes })
    }

    fn service(&mut self, what: &str) -> Option<ControlService> {
        let (host, port) = self.required(&format!("{what}_SVC_ADDR"), host_port)?;
        let identity = self.parse(&format!("{what}_SVC_NAME"), identity);
        let loopback = host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()) || host == "localhost";
        if !loopback && identity.is_none() {
            self.fault(
                &format!("{what}_SVC_NAME"),
                "is required unless the address is a loopback address",
            );
            return None;
        }
        Some(ControlService {
            host,
            port,
            identity: identity.filter(|_| !loopback),
        })
    }
}

fn full(name: &str) -> String {
    if name.starts_with("HAWSER_") {
        name.to_owned()
    } else {
        format!("LINKERD2_PROXY_{name}")
    }
}

impl Config {
    /// Everything or all faults.
    pub fn from_env(env: &Env) -> Result<Self, Vec<Invalid>> {
        let mut r = Reader {
            env,
            faults: Vec::new(),
        };
        let seconds = Duration::from_secs;
        let millis = Duration::from_millis;
        let any = |port: u16| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        let local = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port));

        if env.get("LINKERD2_PROXY_IDENTITY_DISABLED").is_some() {
            r.fault("IDENTITY_DISABLED", "identity cannot be disabled");
        }
        let anchors = r.required("IDENTITY_TRUST_ANCHORS", |pem| {
            TrustAnchors::from_pem(pem).map_err(|error| error.to_string())
        });
        let dir = r.text("IDENTITY_DIR").map(PathBuf::from);
        // The environment is of the day on which the pod was made; this container may have known better.
        let remembered = dir.as_deref().and_then(crate::identity::remembered);
        let anchors = anchors.map(|anchors| remembered.unwrap_or(anchors));
        let local_name = r.parse("IDENTITY_LOCAL_NAME", identity);
        let server_id = r.parse("IDENTITY_SERVER_ID", identity);
        let server_name = r.text("IDENTITY_SERVER_NAME").map(str::to_owned);
        let name = server_id.or(local_name);
        let sni = server_name.or_else(|| name.as_ref().and_then(|n| n.dns_name()).map(str::to_owned));
        if name.is_none() {
            r.fault("IDENTITY_LOCAL_NAME", "is required");
        } else if sni.is_none() {
            r.fault("IDENTITY_SERVER_NAME", "is required with a URI identity");
        }
        let token_file = r.required("IDENTITY_TOKEN_FILE", |path| {
            let path = PathBuf::from(path);
            match std::fs::read(&path) {
                Ok(token) if token.trim_ascii().is_empty() => Err(format!("{} is empty", path.display())),
                Ok(_) => Ok(path),
                Err(error) => Err(format!("{} cannot be read: {error}", path.display())),
            }
        });
        let identity_service = r.service("IDENTITY");
        let destination = r.service("DESTINATION");
        let policy = r.service("POLICY");
        let cluster_networks = r.parse("POLICY_CLUSTER_NETWORKS", networks);
        let default_policy = r.parse("INBOUND_DEFAULT_POLICY", default_policy);
        if cluster_networks.is_none()
            && matches!(
                default_policy,
                Some(
                    DefaultPolicy::ClusterAuthenticated
                        | DefaultPolicy::ClusterUnauthenticated
                        | DefaultPolicy::Audit
                )
            )
        {
            r.fault(
                "POLICY_CLUSTER_NETWORKS",
                "is required by this INBOUND_DEFAULT_POLICY",
            );
        }
        let gateway_suffixes = r.parse("INBOUND_GATEWAY_SUFFIXES", suffixes);
        let inbound_addrs = r
            .parse("INBOUND_LISTEN_ADDR", addrs)
            .unwrap_or_else(|| vec![any(4143)]);
        let mut ports = r.parse("INBOUND_PORTS", port_set).unwrap_or_default();
        if gateway_suffixes.is_some() {
            ports.extend(inbound_addrs.first().map(SocketAddr::port));
        }
        let inbound_detect = r.duration("INBOUND_DETECT_TIMEOUT", seconds(10));
        let outbound_detect = r.duration("OUTBOUND_DETECT_TIMEOUT", seconds(10));
        let inbound = InboundConfig {
            ips: r.parse("INBOUND_IPS", ips).unwrap_or_default(),
            ports,
            opaque_ports: r
                .parse("INBOUND_PORTS_DISABLE_PROTOCOL_DETECTION", port_set)
                .unwrap_or_default(),
            default_policy: default_policy.unwrap_or(DefaultPolicy::AllUnauthenticated),
            gateway_suffixes,
            detect_timeout: inbound_detect,
            connect_timeout: r.duration("INBOUND_CONNECT_TIMEOUT", millis(300)),
            accept: r.sockets("INBOUND", "ACCEPT"),
            connect: r.sockets("INBOUND", "CONNECT"),
            pool_idle: r.duration("INBOUND_HTTP1_CONNECTION_POOL_IDLE_TIMEOUT", seconds(3)),
            discovery_idle: r.duration("INBOUND_DISCOVERY_IDLE_TIMEOUT", seconds(90)),
            failfast: r.duration("INBOUND_HTTP_FAILFAST_TIMEOUT", seconds(1)),
            http: r.http("INBOUND", inbound_detect),
            in_flight_max: r.number("INBOUND_MAX_IN_FLIGHT").unwrap_or(100_000),
            idle_max: r.number("MAX_IDLE_CONNS_PER_ENDPOINT").unwrap_or(10_000),
            backlog: r.number("INBOUND_TCP_LISTEN_BACKLOG").unwrap_or(1024),
            addrs: inbound_addrs,
        };
        let ingress = r.flag("INGRESS_MODE", false);
        let outbound_addrs = r
            .parse("OUTBOUND_LISTEN_ADDRS", addrs)
            .or_else(|| r.parse("OUTBOUND_LISTEN_ADDR", addrs))
            .unwrap_or_else(|| vec![local(4140)]);
        let outbound = OutboundConfig {
            addrs: outbound_addrs,
            profile_networks: r
                .parse("DESTINATION_PROFILE_NETWORKS", networks)
                .unwrap_or_default(),
            profile_suffixes: r
                .parse("DESTINATION_PROFILE_SUFFIXES", suffixes)
                .unwrap_or_else(|| vec!["svc.cluster.local".into()]),
            detect_timeout: outbound_detect,
            connect_timeout: r.duration("OUTBOUND_CONNECT_TIMEOUT", seconds(1)),
            accept: r.sockets("OUTBOUND", "ACCEPT"),
            connect: r.sockets("OUTBOUND", "CONNECT"),
            pool_idle: r.duration("OUTBOUND_HTTP1_CONNECTION_POOL_IDLE_TIMEOUT", seconds(3)),
            discovery_idle: r.duration("OUTBOUND_DISCOVERY_IDLE_TIMEOUT", seconds(5)),
            http_failfast: r.duration("OUTBOUND_HTTP_FAILFAST_TIMEOUT", seconds(3)),
            tcp_failfast: r.duration("OUTBOUND_TCP_FAILFAST_TIMEOUT", seconds(3)),
            backoff: (
                r.duration("OUTBOUND_CONNECT_EXP_BACKOFF_MIN", millis(100)),
                // Nobody reconnects in the background here: a request tries again, and soon finds what came back.
                r.duration("OUTBOUND_CONNECT_EXP_BACKOFF_MAX", seconds(2)),
            ),
            http: r.http("OUTBOUND", outbound_detect),
            in_flight_max: r.number("OUTBOUND_MAX_IN_FLIGHT").unwrap_or(100_000),
            idle_max: r.number("OUTBOUND_MAX_IDLE_CONNS_PER_ENDPOINT").unwrap_or(10_000),
            http_queue: r.number("OUTBOUND_HTTP_QUEUE_CAPACITY").unwrap_or(10_000),
            tcp_queue: r.number("OUTBOUND_TCP_QUEUE_CAPACITY").unwrap_or(10_000),
            informational_headers: !r.flag("OUTBOUND_DISABLE_INFORMATIONAL_HEADERS", ingress),
            ingress,
            backlog: r.number("OUTBOUND_TCP_LISTEN_BACKLOG").unwrap_or(1024),
        };
        if outbound.backoff.0 > outbound.backoff.1 {
            r.fault("OUTBOUND_CONNECT_EXP_BACKOFF_MIN", "is longer than the maximum");
        }
        let initial = r.parse("CONTROL_STREAM_INITIAL_TIMEOUT", duration);
        let idle = r.parse("CONTROL_STREAM_IDLE_TIMEOUT", duration);
        let lifetime = r.parse("CONTROL_STREAM_LIFETIME", duration);
        let ascending = |a: Option<Duration>, b: Option<Duration>| a.zip(b).is_none_or(|(a, b)| a <= b);
        if !ascending(initial, idle) || !ascending(idle, lifetime) || !ascending(initial, lifetime) {
            r.fault(
                "CONTROL_STREAM_INITIAL_TIMEOUT",
                "must not exceed the idle timeout, nor that the lifetime",
            );
        }
        let log_format = r.parse("LOG_FORMAT", str::parse).unwrap_or_default();
        let admin_addrs = r
            .parse("ADMIN_LISTEN_ADDR", addrs)
            .unwrap_or_else(|| vec![local(4191)]);
        let tap_addrs = r
            .parse("CONTROL_LISTEN_ADDR", addrs)
            .unwrap_or_else(|| vec![any(4190)]);
        let tap = r.parse("TAP_SVC_NAME", identity).map(|client| {
            Arc::new(TapConfig {
                client,
                addrs: tap_addrs,
            })
        });
        let trace = r.trace().map(Arc::new);
        let refresh_min = r.duration("IDENTITY_MIN_REFRESH", seconds(10));
        let refresh_max = r.duration("IDENTITY_MAX_REFRESH", seconds(24 * 3600));
        let metrics_retain_idle = r.duration("METRICS_RETAIN_IDLE", seconds(600));
        let shutdown_grace = r.duration("SHUTDOWN_GRACE_PERIOD", seconds(120));
        let withdrawal = r.duration(
            "HAWSER_PROXY_WITHDRAWAL_PERIOD",
            // Other clusters reach a gateway by an address of its Service, which leads here until another gateway is
            // ready; pods are told of each other by name, within moments.
            seconds(if inbound.gateway_suffixes.is_some() { 10 } else { 1 }),
        );
        let withdrawal = withdrawal.min(shutdown_grace / 2);
        let shutdown_endpoint = r.flag("SHUTDOWN_ENDPOINT_ENABLED", false);
        let workers = workers(&mut r);
        let socket_mark = r.number("HAWSER_PROXY_MARK");

        match (
            anchors,
            name,
            sni,
            token_file,
            identity_service,
            destination,
            policy,
        ) {
            (
                Some(anchors),
                Some(name),
                Some(server_name),
                Some(token_file),
                Some(service),
                Some(destination),
                Some(policy),
            ) if r.faults.is_empty() => Ok(Self {
                inbound,
                outbound,
                admin_addrs,
                tap,
                trace,
                identity: IdentityConfig {
                    name,
                    server_name,
                    anchors,
                    token_file,
                    dir,
                    service,
                    refresh_min,
                    refresh_max,
                },
                destination,
                destination_context: r.text("DESTINATION_CONTEXT").unwrap_or_default().to_owned(),
                policy,
                policy_workload: r.text("POLICY_WORKLOAD").unwrap_or_default().to_owned(),
                cluster_networks: cluster_networks.unwrap_or_default(),
                stream_initial_timeout: initial,
                stream_idle_timeout: idle,
                stream_lifetime: lifetime,
                metrics_retain_idle,
                shutdown_grace,
                withdrawal,
                shutdown_endpoint,
                workers,
                socket_mark,
                log_filter: log_filter(r.text("LOG")),
                log_format,
            }),
            _ => Err(r.faults),
        }
    }
}

/// Linkerd's filters name its own modules; ours are added at the level that `linkerd` has.
fn log_filter(text: Option<&str>) -> String {
    let text = text.unwrap_or("warn,linkerd=info");
    // `[{headers}]=off,[{request}]=off` silence spans that don't exist here; EnvFilter accepts them.
    let ours = text
        .split(',')
        .find_map(|part| part.trim().strip_prefix("linkerd="));
    match ours {
        Some(level) => format!("{text},hawser_proxy={level},hawser={level}"),
        None => text.to_owned(),
    }
}

fn workers(r: &mut Reader<'_>) -> usize {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let cores: Option<usize> = r.number("CORES");
    let min: usize = r.number("CORES_MIN").or(cores).unwrap_or(1);
    let ratio: Option<f64> = r.number("CORES_MAX_RATIO");
    let by_ratio = ratio.map(|ratio| (cpus as f64 * ratio).round() as usize);
    let max: Option<usize> = r.number("CORES_MAX").or(by_ratio);
    cpus.min(min.max(max.unwrap_or(1))).max(1)
}

/// Digits and a unit; a bare `0` needs none.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let wrong = || format!("{text:?} is not a duration: digits and one of ms, s, m, h, d");
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let millis = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        "" if number == 0 => 0,
        _ => return Err(wrong()),
    };
    number
        .checked_mul(millis)
        .map(Duration::from_millis)
        .ok_or_else(wrong)
}

fn boolean(text: &str) -> Result<bool, String> {
    text.parse()
        .map_err(|_| format!("{text:?} is neither true nor false"))
}

fn identity(text: &str) -> Result<Identity, String> {
    text.parse()
        .map_err(|error: hawser_core::identity::IdentityError| error.to_string())
}

fn host_port(text: &str) -> Result<(String, u16), String> {
    let wrong = || format!("{text:?} is not host:port");
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let port = port.parse().map_err(|_| wrong())?;
    if host.is_empty() {
        Err(wrong())
    } else {
        Ok((host.to_owned(), port))
    }
}

fn list<T>(text: &str, parse: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, String> {
    text.split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty())
        .map(parse)
        .collect()
}

fn addrs(text: &str) -> Result<Vec<SocketAddr>, String> {
    let all = list(text, |item| {
        item.parse().map_err(|_| format!("{item:?} is not ip:port"))
    })?;
    if all.len() > 2 {
        Err("at most two addresses".into())
    } else {
        Ok(all)
    }
}

fn ips(text: &str) -> Result<BTreeSet<IpAddr>, String> {
    list(text, |item| {
        item.parse().map_err(|_| format!("{item:?} is not an IP address"))
    })
    .map(BTreeSet::from_iter)
}

fn networks(text: &str) -> Result<Vec<IpNet>, String> {
    list(text, |item| {
        let whole = |_| item.parse::<IpAddr>().map(IpNet::from);
        item.parse::<IpNet>()
            .or_else(whole)
            .map_err(|_| format!("{item:?} is not a network"))
    })
}

/// Lower case, without the trailing dot; the root is the empty text.
fn suffixes(text: &str) -> Result<Vec<String>, String> {
    list(text, |item| Ok(item.trim_end_matches('.').to_ascii_lowercase()))
}

/// Is this name inside one of the suffixes, at a label boundary?
pub(crate) fn within(name: &str, suffixes: &[String]) -> bool {
    let name = name.trim_end_matches('.');
    suffixes.iter().any(|suffix| {
        suffix.is_empty()
            || (name.len() >= suffix.len()
                && name.is_char_boundary(name.len() - suffix.len())
                && name[name.len() - suffix.len()..].eq_ignore_ascii_case(suffix)
                && (name.len() == suffix.len() || name.as_bytes()[name.len() - suffix.len() - 1] == b'.'))
    })
}

fn port_set(text: &str) -> Result<BTreeSet<u16>, String> {
    let mut ports = BTreeSet::new();
    let port = |item: &str| {
        item.trim()
            .parse::<u16>()
            .map_err(|_| format!("{item:?} is not a port"))
    };
    for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
        match item.split_once('-') {
            None => _ = ports.insert(port(item)?),
            Some((first, last)) => {
                let (first, last) = (port(first)?, port(last)?);
                if first > last {
                    return Err(format!("the range {item:?} is reversed"));
                }
                ports.extend(first..=last);
            }
        }
    }
    Ok(ports)
}

fn default_policy(text: &str) -> Result<DefaultPolicy, String> {
    use DefaultPolicy as P;
    [
        P::Deny,
        P::AllAuthenticated,
        P::AllUnauthenticated,
        P::ClusterAuthenticated,
        P::ClusterUnauthenticated,
        P::Audit,
    ]
    .into_iter()
    .find(|policy| policy.as_str() == text)
    .ok_or_else(|| format!("{text:?} is not a default policy"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit_and_no_fraction() {
        assert_eq!(duration(" 10s "), Ok(Duration::from_secs(10)));
        assert_eq!(duration("300ms"), Ok(Duration::from_millis(300)));
        assert_eq!(duration("365d"), Ok(Duration::from_secs(365 * 86_400)));
        assert_eq!(duration("0"), Ok(Duration::ZERO));
        for wrong in ["10", "1.5s", "10 s", "s", "", "-1s", "99999999999999999999d"] {
            assert!(duration(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn port_sets_take_ranges_and_refuse_nonsense() {
        assert_eq!(
            port_set("25, 587,,3000-3002").unwrap(),
            BTreeSet::from([25, 587, 3000, 3001, 3002])
        );
        for wrong in ["3010-3000", "3000-", "-3", "65536", "x"] {
            assert!(port_set(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn suffixes_match_at_label_boundaries_only() {
        let suffixes = suffixes("Example.com.").unwrap();
        assert!(within("example.com", &suffixes));
        assert!(within("A.EXAMPLE.com.", &suffixes));
        assert!(!within("hackerexample.com", &suffixes));
        assert!(!within("example.com.evil", &suffixes));
    }

    #[test]
    fn networks_may_be_bare_addresses() {
        assert_eq!(networks("10.0.0.0/8,1.2.3.4").unwrap().len(), 2);
        assert!(networks("10.0.0.0/33").is_err());
    }

    #[test]
    fn all_faults_are_reported_together() {
        let env = Env::from_iter([
            ("LINKERD2_PROXY_INBOUND_DEFAULT_POLICY", "maybe"),
            ("LINKERD2_PROXY_INBOUND_DETECT_TIMEOUT", "10"),
        ]);
        let faults = Config::from_env(&env).unwrap_err();
        let names: BTreeSet<&str> = faults.iter().map(|fault| fault.name.as_str()).collect();
        for name in [
            "INBOUND_DEFAULT_POLICY",
            "INBOUND_DETECT_TIMEOUT",
            "IDENTITY_TRUST_ANCHORS",
            "DESTINATION_SVC_ADDR",
        ] {
            assert!(names.contains(full(name).as_str()), "{name} in {names:?}");
        }
    }
}
