//! The API server of one cluster.
//!
//! [`Cluster`] is the whole of it: objects in a [`Store`], a registry of resources, and one request function that
//! everybody goes through, whether over TLS or, in the same process, through [`Cluster::client`]. There is one generic
//! handler; what is special about a kind is a hook in `kinds`.
//!
//! The API server runs nothing and decides nothing about the cluster's state beyond what one request asks: that is the
//! business of controllers and nodes, which are clients like any other.

mod body;
mod discovery;
mod error;
mod form;
mod handler;
mod identity;
mod kinds;
mod objects;
mod read;
mod registry;
mod request;
mod selector;
mod shape;
mod table;
mod watch;

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};

use http_body_util::BodyExt as _;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use self::body::{Body, Response};
use self::error::Result;
use self::handler::Call;
pub use self::identity::Identity;
use self::objects::Write;
use self::registry::{Registry, Resource};
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
}

/// A source of wall-clock time.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

impl Default for ClusterOptions {
    fn default() -> Self {
        Self {
            name: "sandbox".to_owned(),
            history: History::default(),
            clock: Arc::new(Timestamp::now),
        }
    }
}

/// One cluster's API server.
pub struct Cluster {
    options: ClusterOptions,
    store: Arc<Store>,
    registry: Registry,
    kubelet: OnceLock<Arc<dyn Kubelet>>,
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
        let cluster = Arc::new(Self {
            store: Arc::new(Store::new(options.history)),
            registry: Registry::builtin(),
            kubelet: OnceLock::new(),
            grants: tokio::sync::watch::Sender::new(0),
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
        cluster
    }

    /// Puts an object that exists from the start.
    fn bootstrap(&self, group: &str, version: &str, plural: &str, mut object: Value) {
        let Some(resource) = self.registry.lookup(group, version, plural) else {
            unreachable!("bootstrap objects are of built-in kinds");
        };
        let metadata = registry::meta::of(&mut object);
        metadata.insert("uid".to_owned(), self.uid().into());
        metadata.insert("creationTimestamp".to_owned(), self.now().into());
        let key = Key::new(registry::meta::namespace(&object), registry::meta::name(&object));
        let put = self.store.put(&resource.store, key, object, Expect::Absent);
        debug_assert!(put.is_ok(), "bootstrap objects have distinct names");
    }

    /// A client inside this process: no socket, no TLS, but the same authorisation and admission as everybody.
    pub fn client(self: &Arc<Self>, identity: Identity) -> kube::Client {
        let cluster = self.clone();
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let (cluster, identity) = (cluster.clone(), identity.clone());
            let answer: kubelet::BoxFuture<'static, std::io::Result<Response>> = Box::pin(async move {
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
    fn view<'a>(&self, _resource: &Resource, stored: &'a Stored) -> Cow<'a, Value> {
        Cow::Borrowed(&stored.value)
    }

    /// An object of a resource's version as it is stored.
    fn to_stored(&self, _resource: &Resource, object: Value) -> Value {
        object
    }

    /// An object of this resource was created or updated.
    fn written(&self, _resource: &Resource) {}

    /// An object of this resource is gone.
    fn deleted(&self, _resource: &Resource, _last: &Stored) {}

    async fn admit_mutating(
        &self,
        _write: &Write<'_>,
        _old: Option<&Value>,
        _object: &mut Value,
    ) -> Result<()> {
        Ok(())
    }

    async fn admit_validating(
        &self,
        _write: &Write<'_>,
        _old: Option<&Value>,
        _new: Option<&Value>,
    ) -> Result<()> {
        Ok(())
    }

    fn authorize(&self, _call: &Call) -> Result<()> {
        Ok(())
    }

    fn authorize_path(&self, _identity: &Identity, _verb: &str, _path: &str) -> Result<()> {
        Ok(())
    }

    fn still_allowed(&self, call: &Call) -> Result<()> {
        self.authorize(call)
    }

    async fn subresource(
        self: &Arc<Self>,
        _call: &Arc<Call>,
        _resource: &Arc<Resource>,
        _subresource: &str,
        _body: Body,
    ) -> Result<Response> {
        Err(error::ApiError::not_implemented("this subresource is not served"))
    }

    async fn review(&self, _call: &Call, _resource: &Resource, _object: &Value) -> Result<Option<Value>> {
        Ok(None)
    }
}

#[cfg(test)]
mod tests;
