//! API servers in this process, as tests of the controllers use them: made, filled, and waited for by watches.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use hawser_sandbox::api::{Cluster, ClusterOptions, Identity};
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::core::NamespaceResourceScope;
use kube::runtime::wait::{Condition, await_condition, conditions};
use kube::{Api, Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// A condition that isn't met by then is a failure, whatever the machine's load.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);
pub(crate) const EXTENSION: &str = "linkerd-multicluster";

/// A cluster and an administrator's client.
#[derive(Clone)]
pub(crate) struct Side {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) client: Client,
}

impl Side {
    pub(crate) async fn new(name: &str, namespaces: &[&str]) -> Self {
        let cluster = Cluster::new(ClusterOptions {
            name: name.into(),
            ..Default::default()
        });
        let client = cluster.client(Identity::admin());
        let side = Self { cluster, client };
        for namespace in namespaces {
            side.namespace(namespace).await;
        }
        side
    }

    pub(crate) async fn namespace(&self, name: &str) {
        let namespace: Namespace = object(json!({"metadata": {"name": name}}));
        Api::all(self.client.clone())
            .create(&PostParams::default(), &namespace)
            .await
            .unwrap();
    }

    pub(crate) async fn define(&self, definition: Value) {
        let crds: Api<CustomResourceDefinition> = Api::all(self.client.clone());
        let name = definition["metadata"]["name"].as_str().unwrap().to_owned();
        crds.create(&PostParams::default(), &object(definition))
            .await
            .unwrap();
        within(await_condition(crds, &name, conditions::is_crd_established()))
            .await
            .unwrap();
    }

    pub(crate) fn api<K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>>(
        &self,
        namespace: &str,
    ) -> Api<K> {
        Api::namespaced(self.client.clone(), namespace)
    }

    pub(crate) async fn create<K>(&self, namespace: &str, value: Value)
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + DeserializeOwned
            + Serialize
            + Debug,
    {
        self.api::<K>(namespace)
            .create(&PostParams::default(), &object(value))
            .await
            .unwrap();
    }

    pub(crate) async fn patch<K>(&self, namespace: &str, name: &str, patch: Value)
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug,
    {
        self.api::<K>(namespace)
            .patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .unwrap();
    }

    pub(crate) async fn delete<K>(&self, namespace: &str, name: &str)
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug,
    {
        self.api::<K>(namespace)
            .delete(name, &DeleteParams::default())
            .await
            .unwrap();
    }

    /// Waits until an object is as expected.
    #[track_caller]
    pub(crate) fn expect<K>(
        &self,
        namespace: &str,
        name: &str,
        what: impl Fn(Option<&K>) -> bool + Send,
    ) -> impl Future<Output = ()>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + DeserializeOwned
            + Debug
            + Send
            + 'static,
    {
        let api = self.api::<K>(namespace);
        let (name, caller) = (name.to_owned(), std::panic::Location::caller());
        async move {
            let met =
                tokio::time::timeout(DEADLINE, await_condition(api.clone(), &name, Adapter(what))).await;
            if !matches!(met, Ok(Ok(_))) {
                let found = api.get_opt(&name).await;
                panic!(
                    "{caller}: {name} never became as expected; it is {found:#?} ({:?})",
                    met.err()
                );
            }
        }
    }
}

/// Closures with borrowed arguments don't infer as conditions by themselves.
struct Adapter<F>(F);

impl<K, F: Fn(Option<&K>) -> bool> Condition<K> for Adapter<F> {
    fn matches_object(&self, object: Option<&K>) -> bool {
        (self.0)(object)
    }
}

pub(crate) fn object<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future)
        .await
        .expect("it happens in time")
}
