//! Questions and answers: what the collector serves as JSON, and what the command line shows.
//!
//! Field names are those of `linkerd viz stat -o json`, so scripts written for it fit.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::kinds::Kind;

/// Objects of one kind: one by its name, or all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Objects {
    pub kind: Kind,
    pub name: Option<String>,
    /// All namespaces if absent.
    pub namespace: Option<String>,
}

/// What to compute statistics of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    pub objects: Objects,
    /// Only traffic in this direction; what is inbound at the objects, if absent.
    pub towards: Option<Towards>,
    /// How far to look back.
    pub window: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Towards {
    /// From the objects to these.
    To(Objects),
    /// From these to the objects.
    From(Objects),
}

/// Traffic of one object.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stat {
    /// Empty for what has no namespace.
    pub namespace: String,
    pub kind: String,
    pub name: String,
    /// Meshed pods of all pods that run, such as `1/2`; absent for what has no pods.
    pub meshed: Option<String>,
    /// 0 to 1. This and the next four are absent without requests.
    pub success: Option<f64>,
    pub rps: Option<f64>,
    pub latency_ms_p50: Option<f64>,
    pub latency_ms_p95: Option<f64>,
    pub latency_ms_p99: Option<f64>,
    pub tcp_open_connections: u64,
    pub tcp_read_bytes_rate: f64,
    pub tcp_write_bytes_rate: f64,
}

/// Requests that one route of policy let in.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RouteStat {
    pub namespace: String,
    /// The object whose pods were asked.
    pub name: String,
    /// The route, and the server that it belongs to; `default` where no policy names one.
    pub route: String,
    pub server: String,
    #[serde(flatten)]
    pub golden: Golden,
}

/// Who speaks to whom.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Edge {
    pub src: String,
    pub src_namespace: String,
    pub dst: String,
    pub dst_namespace: String,
    /// The linked cluster of the destination; empty for this one.
    pub cluster: String,
    /// Service account and namespace, `web.emojivoto`; empty if the side is not known by an identity.
    pub client_id: String,
    pub server_id: String,
    /// Whether both sides proved who they are.
    pub secured: bool,
    /// Why not.
    pub no_tls_reason: String,
}

/// A linked cluster's gateway, as its prober sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Gateway {
    pub cluster_name: String,
    pub alive: bool,
    pub latency_ms_p50: Option<f64>,
    pub latency_ms_p95: Option<f64>,
    pub latency_ms_p99: Option<f64>,
}

/// How the collector is doing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Processes whose metrics should be read, and how many of them were read at the last look.
    pub sources: usize,
    pub read: usize,
    /// Why the others were not, by `namespace/pod:port`; at most twenty.
    pub unread: std::collections::BTreeMap<String, String>,
    pub window_bytes: usize,
    /// How far back questions can reach by now.
    pub seconds: u64,
}

/// A cluster as its collector sees it now: everything that a dashboard draws, but for the past of a service.
///
/// Fields that are absent in an answer are empty, so that collectors of different versions understand each other.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Portrait {
    /// What the collector was told that its cluster is called; may be empty.
    pub cluster: String,
    /// When proxies were last looked at; Unix time in seconds.
    pub at: f64,
    /// What rates and quantiles are taken over.
    pub window_seconds: u64,
    pub status: Status,
    /// What the collector may not see.
    pub denied: Vec<Denied>,
    pub workloads: Vec<Workload>,
    pub services: Vec<Service>,
    pub edges: Vec<Traffic>,
    pub splits: Vec<Split>,
    pub links: Vec<Link>,
    pub certificates: Vec<Certificate>,
    /// The newest first.
    pub events: Vec<Event>,
}

/// Requests of some kind. Absent without requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Golden {
    pub rps: Option<f64>,
    /// 0 to 1.
    pub success: Option<f64>,
    pub p50_ms: Option<f64>,
    pub p95_ms: Option<f64>,
    pub p99_ms: Option<f64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Denied {
    pub resource: String,
    /// Empty for all.
    pub namespace: String,
    pub why: String,
}

/// What runs: a Deployment and the like, or a pod of its own.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Workload {
    /// `deployment/emojivoto/web`, which edges refer to.
    pub id: String,
    pub kind: String,
    pub namespace: String,
    pub name: String,
    /// Service account and namespace, `web.emojivoto`, by which other clusters know it.
    pub account: String,
    pub pods: usize,
    pub meshed: usize,
    pub is_gateway: bool,
    /// Part of the mesh itself.
    pub is_system: bool,
    /// What comes in.
    #[serde(flatten)]
    pub golden: Golden,
    /// When the first of its proxies' certificates expires; Unix time in seconds.
    pub expires_at: Option<f64>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Service {
    pub namespace: String,
    pub name: String,
    pub is_exported: bool,
    pub is_system: bool,
    /// The linked cluster and the Service there that this one stands for.
    pub mirrors: Option<Remote>,
    /// As those see it who call it.
    #[serde(flatten)]
    pub golden: Golden,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Remote {
    pub cluster: String,
    pub service: String,
}

/// From one workload to another.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Traffic {
    /// A workload's id. Empty for a client that only the server's side knows.
    pub from: String,
    /// Who that client is; empty without a mesh identity.
    pub from_account: String,
    /// A workload's id; empty if it is in another cluster, or none.
    pub to: String,
    /// Who answered, by its identity: the gateway, if it is in another cluster.
    pub to_account: String,
    /// The linked cluster that `to_account` is in; empty for this one.
    pub cluster: String,
    /// `namespace/name` of the Service that led there; may be empty.
    pub service: String,
    #[serde(flatten)]
    pub golden: Golden,
    pub connections: u64,
    pub bytes_per_second: f64,
    /// Whether both sides proved who they are.
    pub is_secured: bool,
    /// Why not.
    pub no_tls_reason: String,
}

/// How a Service's traffic is shared, and why.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Split {
    pub namespace: String,
    pub name: String,
    pub service: String,
    pub backends: Vec<Backend>,
    /// What the failover controller says: `Primary`, `Fallback`, `Returning`, `NobodyReady`, `NoPrimary`; empty if none.
    pub phase: String,
    pub why: String,
    /// Unix time in seconds.
    pub since: Option<f64>,
    /// Changes that the collector saw, the newest first.
    pub history: Vec<Change>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Backend {
    pub service: String,
    pub weight: f64,
    /// The linked cluster that it stands for; empty for this one.
    pub cluster: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Change {
    pub at: f64,
    pub phase: String,
    pub why: String,
    /// In the order of the backends.
    pub weights: Vec<(String, f64)>,
}

/// This cluster's side of a link.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Link {
    pub name: String,
    pub cluster: String,
    pub gateway: String,
    /// As its probes say; absent if nobody probes.
    pub is_alive: Option<bool>,
    /// What the probes saw.
    pub probes: Golden,
    /// What clients here saw of requests through it.
    pub requests: Golden,
    pub bytes_per_second: f64,
    pub conditions: Vec<Condition>,
    pub mirrored: Vec<Mirrored>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Condition {
    pub kind: String,
    pub status: String,
    pub reason: String,
    pub message: String,
    pub since: String,
}

/// A Service of the linked cluster, and what became of it here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Mirrored {
    pub namespace: String,
    pub service: String,
    /// Its name here.
    pub local: String,
    pub conditions: Vec<Condition>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Certificate {
    /// `trust anchor`, `issuer` or `proxies`.
    pub kind: String,
    pub name: String,
    /// Unix time in seconds.
    pub expires_at: f64,
    /// How many have at least this long.
    pub count: usize,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Event {
    /// Unix time in seconds.
    pub at: f64,
    pub is_warning: bool,
    /// Told by a part of the mesh.
    pub is_system: bool,
    pub kind: String,
    pub namespace: String,
    pub name: String,
    pub reason: String,
    pub note: String,
    pub by: String,
    pub count: i32,
}

/// Where the time of requests goes, from who asks to the application.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Path {
    /// Who asks: a workload's id.
    pub from: String,
    /// `namespace/name`; one backend, if traffic is split.
    pub service: String,
    /// The linked cluster that answers; empty for this one.
    pub cluster: String,
    /// Without those that were refused.
    pub rps: f64,
    pub refused_rps: f64,
    /// As who asks measures it: the sum of the legs.
    pub mean_ms: f64,
    pub legs: Vec<Leg>,
    /// Why the last leg is all the rest; empty if it is not.
    pub unknown: String,
}

/// What lies between two proxies on the way, or behind the last.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Leg {
    /// Workloads' ids.
    pub from: String,
    /// Empty for the application.
    pub to: String,
    /// The linked cluster where it ends; empty for this one.
    pub cluster: String,
    pub over: Over,
    pub mean_ms: f64,
    /// Of requests that were measured where it ends.
    pub rps: f64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Over {
    /// Within a cluster, with what the proxies on both sides do.
    Network,
    /// To another cluster, with what the gateway does.
    Wan,
    /// What the application itself takes.
    Application,
    /// Everything that nobody measured.
    #[default]
    Unknown,
}

/// What the proxies of a workload measured, with everything behind them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Measured {
    /// The workload's id, or several.
    pub at: String,
    pub rps: f64,
    pub mean_ms: f64,
}

/// How a Service's requests from other clusters went on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Onward {
    pub gateway: Option<Measured>,
    pub target: Option<Measured>,
}

/// A cluster on the page: this one, or one that is linked to it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cluster {
    pub name: String,
    pub is_here: bool,
    /// Since its collector answered last, in whole seconds, and 0 while it does; absent if it never did.
    pub age_seconds: Option<f64>,
    /// Why it doesn't answer now.
    pub error: Option<String>,
    /// Its last answer.
    pub portrait: Option<Portrait>,
}

/// A Service over time, as its callers in one cluster see it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Series {
    /// Of the last point; Unix time in seconds.
    pub end: f64,
    pub step_seconds: f64,
    pub lines: Vec<Line>,
}

/// A workload over time, and its pods, as their own proxies tell.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Closeup {
    /// Of the last point; Unix time in seconds.
    pub end: f64,
    pub step_seconds: f64,
    /// What it was asked.
    pub inbound: Vec<Golden>,
    /// What it asked others.
    pub outbound: Vec<Golden>,
    pub pods: Vec<PodStat>,
}

/// One pod now.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodStat {
    pub name: String,
    pub is_meshed: bool,
    /// Of its proxy, as its image or the injector says; may be empty.
    pub version: String,
    /// When its proxy's certificate expires; Unix time in seconds. Absent if it was not read.
    pub expires_at: Option<f64>,
    /// What comes in.
    #[serde(flatten)]
    pub golden: Golden,
}

/// One backend of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Line {
    pub service: String,
    /// The linked cluster that answers; empty for this one.
    pub cluster: String,
    pub points: Vec<Golden>,
}
