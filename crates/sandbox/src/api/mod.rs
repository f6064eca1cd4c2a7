//! The API server of one cluster.
//!
//! [`Cluster`] is the whole of it: objects in a [`Store`], a registry of resources, and one request function that
//! everybody goes through, whether over TLS or, in the same process, through [`Cluster::client`]. There is one generic
//! handler; what is special about a kind is a hook in `kinds`.
//!
//! The API server runs nothing and decides nothing about the cluster's state beyond what one request asks: that is the
//! business of controllers and nodes, which are clients like any other.

mod admission;
mod allocation;
pub(crate) mod body;
mod convert;
mod crd;
mod discovery;
pub(crate) mod error;
mod form;
mod handler;
mod identity;
mod impersonation;
mod kinds;
mod objects;
mod openapi;
pub(crate) mod pki;
mod rbac;
mod read;
mod registry;
pub(crate) mod request;
mod selector;
mod serve;
mod shape;
pub(crate) mod streams;
mod subresources;
mod table;
mod tokens;
mod watch;
mod webhook;

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use http_body_util::BodyExt as _;
use ipnet::Ipv4Net;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use self::body::{Body, Response};
pub use self::identity::Identity;
use self::pki::Pki;
use self::registry::{Registry, Resource, meta};
use self::tokens::Signer;
pub use self::webhook::ServiceDialer;
use crate::kubelet::{self, Kubelet};
use crate::store::{Expect, History, Key, Store, Stored};

/// How a cluster is to be made. The default is an in-memory cluster that nothing outside its process can reach.
#[derive(Clone)]
pub struct ClusterOptions {
    /// Cluster name, as it appears in its kubeconfig.
    pub name: String,
    /// How much of the past watches and lists may ask for.
    pub history: History,
    /// Tells the time for timestamps and expiry.
    pub clock: Clock,
    /// Names and addresses at which clients reach the server, beside the usual ones.
    pub names: Vec<String>,
    pub addresses: Vec<IpAddr>,
    /// Where Services get their ClusterIPs; without it nobody gives them any.
    pub services: Option<Ipv4Net>,
    /// How webhooks that name a Service are reached.
    pub service_dialer: Option<ServiceDialer>,
}

/// A source of wall-clock time.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

impl Default for ClusterOptions {
    fn default() -> Self {
        Self {
            name: "sandbox".to_owned(),
            history: History::default(),
            clock: Arc::new(Timestamp::now),
            names: Vec::new(),
            addresses: Vec::new(),
            services: None,
            service_dialer: None,
        }
    }
}

/// One cluster's API server.
pub struct Cluster {
    options: ClusterOptions,
    store: Arc<Store>,
    registry: Registry,
    kubelet: OnceLock<Arc<dyn Kubelet>>,
    pki: Pki,
    signer: Signer,
    rbac: rbac::Compiled,
    reserved: allocation::Reserved,
    openapi: openapi::Cache,
    /// Bounds the requests that are being answered; streams don't count.
    in_flight: tokio::sync::Semaphore,
    definitions_lock: Mutex<()>,
    /// Until when connections are refused.
    refusing_until: Mutex<Option<tokio::time::Instant>>,
    /// Changes when credentials or permissions may have been withdrawn.
    grants: tokio::sync::watch::Sender<u64>,
    /// Changes when every connection and stream is to be cut.
    epoch: tokio::sync::watch::Sender<u64>,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster")
            .field("name", &self.options.name)
            .finish_non_exhaustive()
    }
}

impl Cluster {
    /// A new cluster with the namespaces that every cluster has.
    pub fn new(options: ClusterOptions) -> Arc<Self> {
        let names = pki::server_names(&options.names);
        let addresses = pki::server_addresses(&options.addresses, options.services);
        let pki = Pki::new(&names, &addresses)
            .expect("the crypto library makes keys and signs names that are DNS names");
        let signer = Signer::new(ISSUER).expect("the crypto library makes keys");
        let cluster = Arc::new(Self {
            pki,
            signer,
            rbac: rbac::Compiled::default(),
            reserved: allocation::Reserved::default(),
            openapi: openapi::Cache::default(),
            in_flight: tokio::sync::Semaphore::new(REQUESTS_IN_FLIGHT_MAX),
            definitions_lock: Mutex::default(),
            refusing_until: Mutex::default(),
            store: Arc::new(Store::new(options.history)),
            registry: Registry::builtin(),
            kubelet: OnceLock::new(),
            grants: tokio::sync::watch::Sender::new(1),
            epoch: tokio::sync::watch::Sender::new(0),
            options,
        });
        for name in ["default", "kube-node-lease", "kube-public", "kube-system"] {
            cluster.bootstrap(
                "",
                "v1",
                "namespaces",
                json!({
                    "apiVersion": "v1",
                    "kind": "Namespace",
                    "metadata": { "name": name, "labels": { "kubernetes.io/metadata.name": name } },
                    "spec": { "finalizers": ["kubernetes"] },
                    "status": { "phase": "Active" },
                }),
            );
        }
        for (plural, object) in rbac::bootstrap() {
            cluster.bootstrap(rbac::GROUP, "v1", plural, object);
        }
        cluster.aggregate_roles();
        cluster.grants.send_modify(|generation| *generation += 1);
        cluster
    }

    /// Puts an object that exists from the start.
    fn bootstrap(&self, group: &str, version: &str, plural: &str, mut object: Value) {
        let Some(resource) = self.registry.lookup(group, version, plural) else {
            unreachable!("bootstrap objects are of built-in kinds");
        };
        let metadata = meta::of(&mut object);
        metadata.insert("uid".to_owned(), self.uid().into());
        metadata.insert("creationTimestamp".to_owned(), self.now().into());
        let key = Key::new(meta::namespace(&object), meta::name(&object));
        let put = self.store.put(&resource.store, key, object, Expect::Absent);
        debug_assert!(put.is_ok(), "bootstrap objects have distinct names");
    }

    /// A client inside this process: no socket, no TLS, but the same authorisation and admission as everybody.
    pub fn client(self: &Arc<Self>, identity: Identity) -> kube::Client {
        let cluster = self.clone();
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let (cluster, identity) = (cluster.clone(), identity.clone());
            let refusing = cluster.is_refusing();
            let answer: kubelet::BoxFuture<'static, std::io::Result<Response>> = Box::pin(async move {
                if refusing {
                    return Err(std::io::ErrorKind::ConnectionRefused.into());
                }
                if request.headers().contains_key(http::header::UPGRADE) {
                    return cluster.answer_upgrade(request, identity).await;
                }
                let (parts, body) = request.into_parts();
                let body: Body = body.map_err(std::io::Error::other).boxed_unsync();
                Ok(cluster.answer(parts, body, identity).await)
            });
            answer
        });
        kube::Client::new(service, "default")
    }

    /// Tells the API server how to reach the node, for logs, exec and port-forward. Only the first call counts.
    pub fn set_kubelet(&self, kubelet: Arc<dyn Kubelet>) {
        if self.kubelet.set(kubelet).is_err() {
            tracing::warn!("the cluster already has a kubelet");
        }
    }

    /// The objects, for parts of this crate that may read them without asking.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    fn now(&self) -> String {
        self.after(0)
    }

    /// The time some seconds from now, as Kubernetes writes times: in whole seconds.
    fn after(&self, seconds: u64) -> String {
        let now = (self.options.clock)();
        let seconds = SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX));
        let at = now.checked_add(seconds).unwrap_or(Timestamp::MAX);
        at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
    }

    /// A random UUID.
    fn uid(&self) -> String {
        let mut bytes: [u8; 16] = rand::random();
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        let hex = |range: std::ops::Range<usize>| -> String {
            bytes[range].iter().map(|byte| format!("{byte:02x}")).collect()
        };
        [hex(0..4), hex(4..6), hex(6..8), hex(8..10), hex(10..16)].join("-")
    }

    /// An object as a resource's version shows it.
    fn view<'a>(&self, resource: &Resource, stored: &'a Stored) -> Cow<'a, Value> {
        convert::from_stored(resource, &stored.value)
    }

    /// An object of a resource's version as it is stored.
    fn to_stored(&self, resource: &Resource, object: Value) -> Value {
        convert::to_stored(resource, object)
    }

    /// An object of this resource was created or updated.
    fn written(&self, resource: &Resource, stored: &Stored) {
        if resource.is(rbac::GROUP, "clusterroles") {
            self.aggregate_roles();
        }
        if resource.is(crd::GROUP, crd::PLURAL) {
            self.refresh_definitions();
        } else if resource.group == rbac::GROUP || resource.is("", "secrets") {
            // A Secret's token may have been replaced.
            self.grants.send_modify(|generation| *generation += 1);
        } else if resource.is("", "serviceaccounts") {
            self.account_changed(stored, meta::is_deleting(&stored.value));
            self.grants.send_modify(|generation| *generation += 1);
        }
    }

    /// An object of this resource is gone.
    fn deleted(&self, resource: &Resource, last: &Stored) {
        if resource.is(rbac::GROUP, "clusterroles") {
            self.aggregate_roles();
        }
        if resource.is(crd::GROUP, crd::PLURAL) {
            self.refresh_definitions();
        } else if resource.custom.is_some() {
            self.finish_definition(resource);
        }
        if resource.is("", "serviceaccounts") {
            self.account_changed(last, true);
        }
        if resource.group == rbac::GROUP || tokens::binds_tokens(resource) {
            self.grants.send_modify(|generation| *generation += 1);
        }
    }

    /// A kubeconfig for an administrator, with a client certificate, for a server at this URL.
    pub fn kubeconfig(&self, server_url: &str) -> String {
        let config = self
            .pki
            .kubeconfig(&self.options.name, server_url, &Identity::admin());
        config.expect("the crypto library makes keys and signs")
    }

    /// The certificate of the cluster's authority.
    pub fn ca_pem(&self) -> &str {
        &self.pki.ca_pem
    }

    /// Behaves as if the API server crashed and came back after a while: every connection and stream is cut, the past
    /// is forgotten, and nobody is served in between. Objects survive.
    pub fn interrupt(&self, absence: Duration) {
        let until = tokio::time::Instant::now() + absence;
        *self.refusing_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
        self.store.forget();
        self.epoch.send_modify(|epoch| *epoch += 1);
    }

    /// Forgets the past, as etcd does when it is compacted: lists and watches that begin there are refused.
    pub fn compact(&self) {
        self.store.forget();
    }

    fn is_refusing(&self) -> bool {
        let until = *self.refusing_until.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| tokio::time::Instant::now() < until)
    }

    fn metrics(&self) -> String {
        let objects = self.store.counts();
        let mut text = String::from("# TYPE apiserver_storage_objects gauge\n");
        for (resource, count) in objects {
            text.push_str(&format!(
                "apiserver_storage_objects{{resource=\"{resource}\"}} {count}\n"
            ));
        }
        text
    }
}

/// What Kubernetes allows by default: 400 reads and 200 writes.
const REQUESTS_IN_FLIGHT_MAX: usize = 600;

/// Issuer of ServiceAccount tokens, and their default audience.
pub(crate) const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

#[cfg(test)]
mod tests;
