//! What was seen of a request's way: objects, and the control plane's answers as proxies get them.
//!
//! Only facts. [`super::look`] collects them, [`super::judge`] draws conclusions.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use hawser_control::view::Key;
use hawser_core::Identity;
use hawser_crd::{Link, TrafficSplit};
use hawser_proxy::decision::{NoWay, Peer, Way};
use k8s_openapi::api::core::v1::Service;
use linkerd2_proxy_api::inbound::Server;

/// Who sends the request.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Caller {
    /// Some pod of the mesh, nobody said which.
    Anybody,
    Pod(CallingPod),
    /// A gateway, on behalf of another cluster.
    Gateway(CallingPod),
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct CallingPod {
    pub(super) key: Option<Key>,
    pub(super) node: String,
    /// None if it has no proxy.
    pub(super) identity: Option<Identity>,
    /// From which its connections may come.
    pub(super) addresses: Vec<IpAddr>,
}

/// One Service in one cluster, as a caller there meets it.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) cluster: String,
    pub(super) caller: Caller,
    pub(super) target: Key,
    pub(super) port: u16,
    pub(super) service: Found<Service>,
    /// Of the caller's proxy; of a pod without one, the Service itself.
    pub(super) way: Result<Way, NoWay>,
    pub(super) splits: Vec<TrafficSplit>,
    /// By `name:port`, as in the way; also those that have no weight now.
    pub(super) behind: BTreeMap<String, Behind>,
    /// If there is no such Service: what it would be the mirror of.
    pub(super) unmirrored: Option<Elsewhere>,
}

/// An object, or names that may have been meant.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Found<T> {
    Here(Box<T>),
    /// Names beside it, and namespaces that have one of the same name.
    Missing {
        near: Vec<String>,
        elsewhere: Vec<String>,
    },
}

/// What stands behind one backend.
#[derive(Clone, Debug)]
pub(super) struct Behind {
    pub(super) key: Key,
    pub(super) service: Option<Service>,
    /// As destination answers.
    pub(super) peers: Result<Vec<Peer>, String>,
    pub(super) listed: Listed,
    /// Pods of this cluster by the address of their endpoint; not of all endpoints, if there are many.
    pub(super) pods: BTreeMap<SocketAddr, Target>,
    /// Other clusters in which its endpoints are.
    pub(super) elsewhere: Vec<Elsewhere>,
}

/// What the endpoints' own objects say.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Listed {
    pub(super) ready: usize,
    pub(super) unready: usize,
    /// `app=web`; empty for a Service that selects nothing.
    pub(super) selector: String,
    /// The pods that it selects, and why they aren't ready.
    pub(super) selected: Vec<(String, Option<String>)>,
}

/// A pod that would answer.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) key: Key,
    pub(super) meshed: bool,
    /// What its certificate says.
    pub(super) identity: Option<String>,
    pub(super) policy: Result<Server, String>,
}

/// How another cluster's Service is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Gateway,
    /// Its pods are dialled: a flat network.
    Direct,
}

/// The part of a Service that is in another cluster.
#[derive(Clone, Debug)]
pub(super) struct Elsewhere {
    /// As the Link calls it.
    pub(super) cluster: String,
    pub(super) remote: Key,
    pub(super) mode: Mode,
    pub(super) link: Option<Link>,
    /// What the controller that probes the gateway says of it, if it could be asked.
    pub(super) probed: Option<Result<(), String>>,
    /// What is there, or why nobody looked.
    pub(super) there: Result<There, String>,
}

#[derive(Clone, Debug)]
pub(super) struct There {
    /// Context of the kubeconfig.
    pub(super) context: String,
    /// Why only Services could be looked at.
    pub(super) blind: Option<String>,
    pub(super) service: Found<Service>,
    pub(super) gateways: Vec<Gateway>,
    /// Of those endpoints that are dialled.
    pub(super) pods: BTreeMap<SocketAddr, Target>,
    /// What a gateway finds when it is asked for the Service.
    pub(super) through: Option<Box<Seen>>,
}

#[derive(Clone, Debug)]
pub(super) struct Gateway {
    pub(super) pod: Target,
    pub(super) ready: bool,
}
