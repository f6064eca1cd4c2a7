//! Everything that the controllers know about the cluster, as one value.
//!
//! Kinds that a controller reasons about are held whole, everything else as metadata, which is all that garbage
//! collection and namespaces need. A snapshot is filled by watches and by the answers to our own writes, so a plan
//! never repeats what it has already done; whichever is newer wins.

use std::any::TypeId;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::{Metadata, NamespaceResourceScope};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// A kind of object and where the API serves it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Resource {
    pub(crate) api_version: Cow<'static, str>,
    pub(crate) kind: Cow<'static, str>,
    pub(crate) plural: Cow<'static, str>,
    pub(crate) namespaced: bool,
}

impl Resource {
    pub(crate) fn of<K: k8s_openapi::Resource<Scope: 'static>>() -> Self {
        Self {
            api_version: K::API_VERSION.into(),
            kind: K::KIND.into(),
            plural: K::URL_PATH_SEGMENT.into(),
            namespaced: TypeId::of::<K::Scope>() == TypeId::of::<NamespaceResourceScope>(),
        }
    }

    /// The API group, empty for the core group.
    pub(crate) fn group(&self) -> &str {
        self.api_version.split_once('/').map_or("", |(group, _)| group)
    }

    /// The URL of the collection. All namespaces if `namespace` is empty.
    pub(crate) fn path(&self, namespace: &str) -> String {
        let root = if self.api_version.contains('/') {
            "/apis"
        } else {
            "/api"
        };
        match namespace {
            "" => format!("{root}/{}/{}", self.api_version, self.plural),
            _ => format!(
                "{root}/{}/namespaces/{namespace}/{}",
                self.api_version, self.plural
            ),
        }
    }
}

/// Where an object is within its kind. Cluster-scoped objects have an empty namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl Key {
    pub(crate) fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }

    pub(crate) fn of(metadata: &ObjectMeta) -> Self {
        Self {
            namespace: metadata.namespace.clone().unwrap_or_default(),
            name: metadata.name.clone().unwrap_or_default(),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.namespace.as_str() {
            "" => f.write_str(&self.name),
            namespace => write!(f, "{namespace}/{}", self.name),
        }
    }
}

/// One object of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Target {
    pub(crate) resource: Resource,
    pub(crate) key: Key,
}

impl Target {
    pub(crate) fn of<K>(object: &K) -> Self
    where
        K: Metadata<Ty = ObjectMeta> + k8s_openapi::Resource<Scope: 'static>,
    {
        Self {
            resource: Resource::of::<K>(),
            key: Key::of(object.metadata()),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.resource.kind, self.key)
    }
}

/// The objects of one kind.
pub(crate) type Store<K> = BTreeMap<Key, Arc<K>>;

/// What a watch or an answer says about one kind.
pub(crate) enum Change<K> {
    Applied(K),
    Deleted(Key, String),
    /// A watch began anew: these are all.
    Replaced(Vec<K>),
}

macro_rules! snapshot {
    ($($field:ident: $kind:ty,)*) => {
        /// One consistent view, as of the last change that was folded in.
        #[derive(Default)]
        pub(crate) struct Snapshot {
            $(pub(crate) $field: Store<$kind>,)*
            /// ConfigMaps of the name `kube-root-ca.crt`, whole. They are in `others` as well.
            pub(crate) root_cas: Store<ConfigMap>,
            /// All other kinds that can be listed, watched and deleted.
            pub(crate) others: BTreeMap<Resource, Store<ObjectMeta>>,
            /// Objects whose deletion was seen while writes were on their way: an answer that arrives late must not
            /// bring them back.
            pub(crate) tombstones: BTreeSet<String>,
        }

        $(impl Object for $kind {
            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }
        })*

        /// Watches every kind that is held whole.
        pub(crate) trait Watch {
            fn watch<K>(&mut self, store: fn(&mut Snapshot) -> &mut Store<K>)
            where
                K: Object
                    + k8s_openapi::Resource<Scope: 'static>
                    + kube::Resource<DynamicType = ()>
                    + Clone
                    + DeserializeOwned
                    + fmt::Debug
                    + Send
                    + Sync
                    + 'static;

            fn watch_all(&mut self) {
                $(self.watch::<$kind>(|snapshot| &mut snapshot.$field);)*
            }
        }

        impl Snapshot {
            /// Metadata of all objects, with their kind.
            pub(crate) fn objects(&self) -> Vec<(Cow<'_, Resource>, &Key, &ObjectMeta)> {
                let mut all = Vec::new();
                $({
                    let resource = Cow::<'_, Resource>::Owned(Resource::of::<$kind>());
                    all.extend(self.$field.iter().map(|(key, object)| (resource.clone(), key, &object.metadata)));
                })*
                for (resource, store) in &self.others {
                    all.extend(store.iter().map(|(key, metadata)| (Cow::Borrowed(resource), key, &**metadata)));
                }
                all
            }

            /// Folds in an object that the API server answered with.
            pub(crate) fn answered(&mut self, resource: &Resource, object: Value) {
                $(if *resource == Resource::of::<$kind>() {
                    return self.answered_as(|snapshot| &mut snapshot.$field, object);
                })*
                if resource.plural == "configmaps" && object["metadata"]["name"] == super::accounts::ROOT_CA {
                    self.answered_as(|snapshot| &mut snapshot.root_cas, object.clone());
                }
                let Ok(metadata) = serde_json::from_value::<ObjectMeta>(object["metadata"].clone()) else { return };
                if !self.tombstones.contains(metadata.uid.as_deref().unwrap_or_default())
                    && let Some(store) = self.others.get_mut(resource)
                {
                    insert(store, metadata);
                }
            }

            /// Folds in the API server's word that an object is gone.
            pub(crate) fn answered_gone(&mut self, target: &Target, uid: &str) {
                $(if target.resource == Resource::of::<$kind>() {
                    return remove(&mut self.$field, &target.key, uid);
                })*
                if let Some(store) = self.others.get_mut(&target.resource) {
                    remove(store, &target.key, uid);
                }
            }

            /// Whether the kind is one that this cluster serves, as far as we know.
            pub(crate) fn serves(&self, api_version: &str, kind: &str) -> Option<Resource> {
                $({
                    let resource = Resource::of::<$kind>();
                    if same_kind(&resource, api_version, kind) {
                        return Some(resource);
                    }
                })*
                self.others.keys().find(|resource| same_kind(resource, api_version, kind)).cloned()
            }
        }
    };
}

snapshot! {
    namespaces: Namespace,
    nodes: Node,
    leases: Lease,
    pods: Pod,
    services: Service,
    endpoints: Endpoints,
    endpoint_slices: EndpointSlice,
    deployments: Deployment,
    replica_sets: ReplicaSet,
    daemon_sets: DaemonSet,
    stateful_sets: StatefulSet,
    jobs: Job,
}

impl Snapshot {
    fn answered_as<K: Object + DeserializeOwned>(
        &mut self,
        store: fn(&mut Self) -> &mut Store<K>,
        object: Value,
    ) {
        let Ok(object) = serde_json::from_value::<K>(object) else {
            return;
        };
        if !self
            .tombstones
            .contains(object.meta().uid.as_deref().unwrap_or_default())
        {
            insert(store(self), object);
        }
    }

    /// Folds in what a watch said.
    pub(crate) fn watched<K: Object>(&mut self, store: fn(&mut Self) -> &mut Store<K>, change: Change<K>) {
        if let Change::Deleted(_, uid) = &change {
            self.tombstones.insert(uid.clone());
        }
        fold(store(self), change);
    }

    /// Folds in what a watch said about a kind of which only metadata is kept.
    pub(crate) fn watched_other(&mut self, resource: &Resource, change: Change<ObjectMeta>) {
        if let Change::Deleted(_, uid) = &change {
            self.tombstones.insert(uid.clone());
        }
        // Known from its first complete list on: until then nothing can be said to be absent.
        if matches!(change, Change::Replaced(_)) {
            self.others.entry(resource.clone()).or_default();
        }
        if let Some(store) = self.others.get_mut(resource) {
            fold(store, change);
        }
    }

    /// The objects of a core kind of which only metadata is kept.
    pub(crate) fn core(&self, plural: &str) -> impl Iterator<Item = (&Key, &Arc<ObjectMeta>)> {
        let kind = self
            .others
            .iter()
            .find(|(resource, _)| resource.api_version == "v1" && resource.plural == plural);
        kind.into_iter().flat_map(|(_, store)| store)
    }
}

/// Owner references name a group and version; which version does not matter.
fn same_kind(resource: &Resource, api_version: &str, kind: &str) -> bool {
    resource.kind == kind && resource.group() == api_version.split_once('/').map_or("", |(group, _)| group)
}

/// Anything with metadata, metadata itself included.
pub(crate) trait Object {
    fn meta(&self) -> &ObjectMeta;
}

impl Object for ObjectMeta {
    fn meta(&self) -> &ObjectMeta {
        self
    }
}

impl Object for ConfigMap {
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
}

fn fold<K: Object>(store: &mut Store<K>, change: Change<K>) {
    match change {
        Change::Applied(object) => insert(store, object),
        Change::Deleted(key, uid) => remove(store, &key, &uid),
        Change::Replaced(objects) => {
            store.clear();
            store.extend(
                objects
                    .into_iter()
                    .map(|object| (Key::of(object.meta()), Arc::new(object))),
            );
        }
    }
}

fn insert<K: Object>(store: &mut Store<K>, object: K) {
    let key = Key::of(object.meta());
    let newer = store
        .get(&key)
        .is_none_or(|known| version(known.meta()) <= version(object.meta()));
    if newer {
        store.insert(key, Arc::new(object));
    }
}

fn remove<K: Object>(store: &mut Store<K>, key: &Key, uid: &str) {
    // The name may already belong to a successor.
    if store
        .get(key)
        .is_some_and(|known| known.meta().uid.as_deref() == Some(uid))
    {
        store.remove(key);
    }
}

/// Resource versions of one cluster are comparable numbers (guaranteed by Kubernetes since 1.35, true before).
fn version(metadata: &ObjectMeta) -> u64 {
    metadata
        .resource_version
        .as_deref()
        .and_then(|version| version.parse().ok())
        .unwrap_or(0)
}
