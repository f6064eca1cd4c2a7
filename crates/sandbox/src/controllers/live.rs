//! The controllers at work on a real API server, in process, with a node that only says what a node would say.
//!
//! Time is paused, so it passes only when nobody has anything left to do: deadlines here are reached at once by what
//! never happens, and never by what is merely slow.

use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, Namespace, Node, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::runtime::wait::{Condition, await_condition};
use kube::runtime::watcher::{self, Event, watcher};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::*;
use crate::api::{Cluster, ClusterOptions, Identity};

struct Sandbox {
    client: Client,
    shutdown: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl Sandbox {
    async fn start() -> Self {
        let cluster = Cluster::new(ClusterOptions::default());
        let client = cluster.client(Identity::admin());
        let shutdown = CancellationToken::new();
        let controllers = tokio::spawn(run(client.clone(), tests::addresses(), shutdown.clone()));
        let node = tokio::spawn(node(client.clone()));
        Self {
            client,
            shutdown,
            tasks: vec![controllers, node],
        }
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), "shop")
    }

    async fn create<K>(&self, api: &Api<K>, object: Value)
    where
        K: kube::Resource<DynamicType = ()> + Clone + DeserializeOwned + serde::Serialize + std::fmt::Debug,
    {
        api.create(&PostParams::default(), &serde_json::from_value(object).unwrap())
            .await
            .unwrap();
    }

    async fn namespace(&self) {
        let object = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "shop" } });
        self.create(&Api::<Namespace>::all(self.client.clone()), object)
            .await;
    }

    async fn stop(self) {
        self.shutdown.cancel();
        for task in self.tasks {
            task.abort();
            let _ = task.await;
        }
    }
}

/// Waits for a condition of one object. The time is only a bound for a test that fails.
async fn until<K>(api: &Api<K>, name: &str, condition: impl Condition<K>)
where
    K: kube::Resource + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    let wait = tokio::time::timeout(
        Duration::from_secs(20),
        await_condition(api.clone(), name, condition),
    );
    assert!(
        wait.await.is_ok(),
        "waiting for {name}: {:?}",
        api.get_opt(name).await
    );
}

/// Runs every pod that it is given, at once, and ends it when told.
async fn node(client: Client) {
    let nodes: Api<Node> = Api::all(client.clone());
    let object = json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": "west" },
        "status": { "conditions": [{ "type": "Ready", "status": "True" }] },
    });
    let node = serde_json::from_value(object.clone()).unwrap();
    nodes.create(&PostParams::default(), &node).await.unwrap();
    let status = Patch::Merge(json!({ "status": object["status"] }));
    nodes
        .patch_status("west", &PatchParams::default(), &status)
        .await
        .unwrap();
    let mut events = std::pin::pin!(watcher(
        Api::<Pod>::all(client.clone()),
        watcher::Config::default()
    ));
    let mut address = 0;
    while let Some(event) = events.next().await {
        let (Ok(Event::Apply(pod)) | Ok(Event::InitApply(pod))) = event else {
            continue;
        };
        let (namespace, name) = (
            pod.metadata.namespace.clone().unwrap(),
            pod.metadata.name.clone().unwrap(),
        );
        let pods: Api<Pod> = Api::namespaced(client.clone(), &namespace);
        if pods::is_terminating(&pod) {
            let _ = pods.delete(&name, &DeleteParams::default().grace_period(0)).await;
        } else if pod.spec.as_ref().unwrap().node_name.is_some() && pods::phase(&pod) == "Pending" {
            address += 1;
            let status = Patch::Merge(json!({ "status": {
                "phase": "Running",
                "podIP": format!("10.42.0.{address}"),
                "conditions": [{ "type": "Ready", "status": "True" }],
            } }));
            let _ = pods.patch_status(&name, &PatchParams::default(), &status).await;
        }
    }
}

fn deployment(name: &str, replicas: u32) -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": { "name": name },
        "spec": {
            "replicas": replicas,
            "selector": { "matchLabels": { "app": name } },
            "template": {
                "metadata": { "labels": { "app": name } },
                "spec": { "containers": [{ "name": "web", "image": "web" }] },
            },
        },
    })
}

fn available(replicas: i32) -> impl Condition<Deployment> {
    move |deployment: Option<&Deployment>| {
        let status = deployment.and_then(|deployment| deployment.status.as_ref());
        status.is_some_and(|status| {
            status.available_replicas.unwrap_or(0) == replicas && status.replicas.unwrap_or(0) == replicas
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_deployment_and_its_service_come_and_go_with_their_namespace() {
    let sandbox = Sandbox::start().await;
    sandbox.namespace().await;
    until(
        &sandbox.api::<ServiceAccount>(),
        "default",
        |account: Option<&ServiceAccount>| account.is_some(),
    )
    .await;
    let deployments = sandbox.api::<Deployment>();
    sandbox.create(&deployments, deployment("web", 2)).await;
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": "web" },
        "spec": { "type": "LoadBalancer", "selector": { "app": "web" }, "ports": [{ "port": 80 }] },
    });
    sandbox.create(&sandbox.api::<Service>(), service).await;
    until(&deployments, "web", available(2)).await;
    let addresses = |wanted: usize| {
        move |endpoints: Option<&Endpoints>| {
            let subsets = endpoints
                .iter()
                .flat_map(|endpoints| endpoints.subsets.iter().flatten());
            subsets
                .flat_map(|subset| subset.addresses.iter().flatten())
                .count()
                == wanted
        }
    };
    until(&sandbox.api::<Endpoints>(), "web", addresses(2)).await;
    until(&sandbox.api::<Service>(), "web", |service: Option<&Service>| {
        let ingress = json!(service)["status"]["loadBalancer"]["ingress"][0]["ip"].clone();
        ingress == "172.31.1.1"
    })
    .await;

    let scale = Patch::Merge(json!({ "spec": { "replicas": 1 } }));
    deployments
        .patch("web", &PatchParams::default(), &scale)
        .await
        .unwrap();
    until(&deployments, "web", available(1)).await;
    until(&sandbox.api::<Endpoints>(), "web", addresses(1)).await;

    let namespaces: Api<Namespace> = Api::all(sandbox.client.clone());
    namespaces.delete("shop", &DeleteParams::default()).await.unwrap();
    until(&namespaces, "shop", |namespace: Option<&Namespace>| {
        namespace.is_none()
    })
    .await;
    let all = ListParams::default();
    let left = (
        sandbox.api::<Pod>().list(&all).await.unwrap().items.len(),
        sandbox
            .api::<EndpointSlice>()
            .list(&all)
            .await
            .unwrap()
            .items
            .len(),
        sandbox.api::<ConfigMap>().list(&all).await.unwrap().items.len(),
    );
    assert_eq!(left, (0, 0, 0));
    sandbox.stop().await;
}

#[tokio::test(start_paused = true)]
async fn services_that_come_at_once_get_different_load_balancer_addresses() {
    let sandbox = Sandbox::start().await;
    sandbox.namespace().await;
    let services = sandbox.api::<Service>();
    let service = |name: &str| {
        let spec = json!({ "type": "LoadBalancer", "ports": [{ "port": 80 }] });
        json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": name }, "spec": spec })
    };
    // Each sorts before those that are already being given an address.
    let names: Vec<String> = (0..20).rev().map(|index| format!("s{index:02}")).collect();
    for name in &names {
        sandbox.create(&services, service(name)).await;
        tokio::task::yield_now().await;
    }
    let ip = |service: Option<&Service>| json!(service)["status"]["loadBalancer"]["ingress"][0]["ip"].clone();
    let mut addresses = std::collections::BTreeSet::new();
    for name in &names {
        until(&services, name, |service: Option<&Service>| {
            ip(service).is_string()
        })
        .await;
        addresses.insert(ip(services.get_opt(name).await.unwrap().as_ref()).to_string());
    }
    assert_eq!(addresses.len(), names.len());
    sandbox.stop().await;
}

#[tokio::test(start_paused = true)]
async fn deleting_a_deployment_in_the_foreground_takes_everything_along() {
    let sandbox = Sandbox::start().await;
    sandbox.namespace().await;
    let deployments = sandbox.api::<Deployment>();
    sandbox.create(&deployments, deployment("web", 3)).await;
    until(&deployments, "web", available(3)).await;
    deployments
        .delete("web", &DeleteParams::foreground())
        .await
        .unwrap();
    until(&deployments, "web", |deployment: Option<&Deployment>| {
        deployment.is_none()
    })
    .await;
    let pods = sandbox
        .api::<Pod>()
        .list(&ListParams::default())
        .await
        .unwrap()
        .items;
    assert_eq!(pods.len(), 0);
    sandbox.stop().await;
}

#[tokio::test(start_paused = true)]
async fn settled_controllers_write_nothing() {
    let sandbox = Sandbox::start().await;
    sandbox.namespace().await;
    let deployments = sandbox.api::<Deployment>();
    for index in 0..20 {
        sandbox
            .create(&deployments, deployment(&format!("web-{index}"), 2))
            .await;
    }
    for index in 0..20 {
        until(&deployments, &format!("web-{index}"), available(2)).await;
    }
    let pods = sandbox.api::<Pod>();
    let revision = || async {
        pods.list(&ListParams::default())
            .await
            .unwrap()
            .metadata
            .resource_version
    };
    // Time is paused: it passes only when nobody has anything left to do.
    tokio::time::sleep(Duration::from_millis(1)).await;
    let before = revision().await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(revision().await, before);
    assert_eq!(pods.list(&ListParams::default()).await.unwrap().items.len(), 40);
    sandbox.stop().await;
}

#[tokio::test(start_paused = true)]
async fn objects_of_a_kind_defined_later_follow_their_owner_and_their_namespace() {
    let sandbox = Sandbox::start().await;
    sandbox.namespace().await;
    let definitions: Api<CustomResourceDefinition> = Api::all(sandbox.client.clone());
    let schema = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": { "name": "widgets.example.com" },
        "spec": {
            "group": "example.com",
            "scope": "Namespaced",
            "names": { "plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList" },
            "versions": [
                { "name": "v1", "served": true, "storage": true, "schema": { "openAPIV3Schema": schema } },
            ],
        },
    });
    sandbox.create(&definitions, definition).await;
    let established = |definition: Option<&CustomResourceDefinition>| {
        let conditions = json!(definition)["status"]["conditions"].clone();
        let mut conditions = conditions.as_array().into_iter().flatten();
        conditions.any(|condition| condition["type"] == "Established" && condition["status"] == "True")
    };
    until(&definitions, "widgets.example.com", established).await;

    let maps = sandbox.api::<ConfigMap>();
    let owner = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "owner" } });
    sandbox.create(&maps, owner).await;
    let uid = maps.get("owner").await.unwrap().metadata.uid;
    let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("example.com", "v1", "Widget"));
    let widgets: Api<DynamicObject> = Api::namespaced_with(sandbox.client.clone(), "shop", &kind);
    for (name, owners) in [
        (
            "owned",
            json!([{ "apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": uid }]),
        ),
        ("free", json!([])),
    ] {
        let widget = json!({
            "apiVersion": "example.com/v1",
            "kind": "Widget",
            "metadata": { "name": name, "ownerReferences": owners },
        });
        widgets
            .create(&PostParams::default(), &serde_json::from_value(widget).unwrap())
            .await
            .unwrap();
    }
    let gone = |widget: Option<&DynamicObject>| widget.is_none();
    maps.delete("owner", &DeleteParams::default()).await.unwrap();
    until(&widgets, "owned", gone).await;
    widgets.get("free").await.unwrap();
    let namespaces: Api<Namespace> = Api::all(sandbox.client.clone());
    namespaces.delete("shop", &DeleteParams::default()).await.unwrap();
    until(&namespaces, "shop", |namespace: Option<&Namespace>| {
        namespace.is_none()
    })
    .await;
    until(&widgets, "free", gone).await;
    sandbox.stop().await;
}
