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
