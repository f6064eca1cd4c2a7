//! The mirror against API servers in this process: two clusters, west imports what east exports.
//!
//! No sockets but the probe's, no sleeps: every expectation is a condition that a watch waits for.

mod support;

use std::sync::Arc;
use std::time::Duration;

use hawser_control::lease;
use hawser_control::mirror::{self, Connect};
use hawser_control::observe::Bell;
use hawser_crd::Link;
use hawser_crd::keys;
use hawser_runtime::Metrics;
use hawser_sandbox::api::Identity;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Endpoints, Event as CoreEvent, Secret, Service, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

use support::{EXTENSION, Side, object, within};

/// West, east, and a mirror controller between them.
struct World {
    west: Side,
    east: Side,
    _stop: DropGuard,
}

impl World {
    async fn linked(probe_port: u16) -> Self {
        let west = Side::new("west", &[EXTENSION, "test"]).await;
        let east = Side::new("east", &["test", "only-east"]).await;
        west.define(hawser_crd::manifests::links()).await;
        west.create::<Secret>(EXTENSION, credentials("east")).await;
        west.create::<Link>(EXTENSION, link(probe_port)).await;

        let other = Side::new("other", &["test"]).await;
        other.create::<Service>("test", service("elsewhere", true)).await;
        let clusters = [("east", east.clone()), ("other", other)];
        let connect: Connect = Arc::new(move |kubeconfig| {
            let found = clusters.iter().find(|(name, _)| name.as_bytes() == kubeconfig);
            let client = found.map(|(_, side)| side.cluster.client(Identity::admin()));
            Box::pin(async move { client.ok_or(mirror::RemoteError::NotText) })
        });
        let stop = CancellationToken::new();
        let config = mirror::Config {
            namespace: EXTENSION.into(),
            link: "east".into(),
            probe_service: Some("localhost".into()),
            ..Default::default()
        };
        let (_, leads) = tokio::sync::watch::channel(true);
        let client = west.client.clone();
        let mirror = mirror::mirror(
            client,
            config,
            connect,
            Metrics::default(),
            leads,
            Bell::default(),
            stop.clone(),
        );
        tokio::spawn(mirror);
        Self {
            west,
            east,
            _stop: stop.drop_guard(),
        }
    }

    /// An exported Service with one ready pod.
    async fn export(&self, name: &str) {
        self.east.create::<Service>("test", service(name, true)).await;
        self.east.create::<Endpoints>("test", endpoints(name, true)).await;
    }
}

fn credentials(kubeconfig: &str) -> Value {
    json!({
        "metadata": {"name": "cluster-credentials-east"},
        "type": keys::KUBECONFIG_SECRET_TYPE, "stringData": {"kubeconfig": kubeconfig},
    })
}

fn link(probe_port: u16) -> Value {
    json!({
        "metadata": {"name": "east"},
        "spec": {
            "targetClusterName": "east", "targetClusterDomain": "cluster.local",
            "clusterCredentialsSecret": "cluster-credentials-east",
            "gatewayAddress": "203.0.113.7", "gatewayPort": "4143", "gatewayIdentity": "gateway.identity",
            "probeSpec": {
                "path": "/ready", "port": probe_port.to_string(), "period": "50ms", "timeout": "5s",
                "failureThreshold": "2",
            },
            "selector": {"matchLabels": {keys::EXPORTED: "true"}},
        },
    })
}

fn service(name: &str, exported: bool) -> Value {
    let mut labels = json!({"app": name});
    if exported {
        labels[keys::EXPORTED] = "true".into();
    }
    json!({
        "metadata": {"name": name, "labels": labels},
        "spec": {"selector": {"app": name}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
    })
}

fn endpoints(name: &str, ready: bool) -> Value {
    let addresses = if ready { "addresses" } else { "notReadyAddresses" };
    json!({
        "metadata": {"name": name, "labels": {"app": name, keys::EXPORTED: "true"}},
        "subsets": [{addresses: [{"ip": "10.42.0.9"}], "ports": [{"name": "http", "port": 8080}]}],
    })
}

/// Addresses of Endpoints: `ready/not ready`.
fn addresses(endpoints: Option<&Endpoints>) -> Option<String> {
    let subsets = endpoints?.subsets.iter().flatten();
    let (mut ready, mut not_ready) = (Vec::new(), Vec::new());
    for subset in subsets {
        ready.extend(
            subset
                .addresses
                .iter()
                .flatten()
                .map(|address| address.ip.clone()),
        );
        not_ready.extend(
            subset
                .not_ready_addresses
                .iter()
                .flatten()
                .map(|address| address.ip.clone()),
        );
    }
    Some(format!("{}/{}", ready.join(","), not_ready.join(",")))
}

fn leads_to(expected: &'static str) -> impl Fn(Option<&Endpoints>) -> bool + Send {
    move |endpoints| addresses(endpoints).as_deref() == Some(expected)
}

fn condition(link: Option<&Link>, service: &str) -> Option<(String, String)> {
    let status = link?.status.as_ref()?;
    let entry = status
        .mirror_services
        .iter()
        .find(|entry| entry.remote_ref.name == service)?;
    entry
        .conditions
        .first()
        .map(|condition| (condition.status.clone(), condition.reason.clone()))
}

fn has_condition(
    service: &'static str,
    status: &'static str,
    reason: &'static str,
) -> impl Fn(Option<&Link>) -> bool + Send {
    move |link| condition(link, service) == Some((status.to_owned(), reason.to_owned()))
}

/// A gateway's probe port that answers until dropped.
async fn gateway() -> (u16, tokio_util::task::AbortOnDropHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let serve = tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut request = [0; 1024];
            if socket.read(&mut request).await.is_ok_and(|length| length > 0) {
                let _ = socket
                    .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                    .await;
            }
        }
    });
    (port, tokio_util::task::AbortOnDropHandle::new(serve))
}

#[tokio::test]
async fn an_exported_service_has_a_mirror_as_long_as_it_is_exported() {
    let (port, _gateway) = gateway().await;
    let world = World::linked(port).await;
    world.export("web").await;
    world
        .west
        .expect::<Service>("test", "web-east", |service| {
            service.is_some_and(|service| {
                let labels = service.metadata.labels.clone().unwrap_or_default();
                let spec = service.spec.clone().unwrap_or_default();
                labels.get(keys::CLUSTER_NAME).is_some_and(|name| name == "east")
                    && labels.get("app").is_some_and(|app| app == "web")
                    && !labels.contains_key(keys::EXPORTED)
                    && spec.selector.is_none_or(|selector| selector.is_empty())
                    && spec
                        .ports
                        .is_some_and(|ports| ports.len() == 1 && ports[0].port == 80)
            })
        })
        .await;
    world
        .west
        .expect::<Endpoints>("test", "web-east", leads_to("203.0.113.7/"))
        .await;
    world
        .west
        .expect::<Link>(EXTENSION, "east", has_condition("web", "True", "Mirrored"))
        .await;
    world
        .west
        .expect::<Endpoints>(EXTENSION, "localhost", leads_to("203.0.113.7/"))
        .await;

    world
        .east
        .patch::<Service>(
            "test",
            "web",
            json!({"metadata": {"labels": {keys::EXPORTED: null}}}),
        )
        .await;
    world
        .west
        .expect::<Service>("test", "web-east", |service| service.is_none())
        .await;
    world
        .west
        .expect::<Endpoints>("test", "web-east", |endpoints| endpoints.is_none())
        .await;
    world
        .west
        .expect::<Link>(EXTENSION, "east", |link| condition(link, "web").is_none())
        .await;
}

#[tokio::test]
async fn a_mirror_has_endpoints_only_while_its_service_has_ready_pods() {
    let (port, _gateway) = gateway().await;
    let world = World::linked(port).await;
    world.export("web").await;
    world
        .west
        .expect::<Endpoints>("test", "web-east", leads_to("203.0.113.7/"))
        .await;
    world
        .east
        .patch::<Endpoints>(
            "test",
            "web",
            json!({"subsets": endpoints("web", false)["subsets"]}),
        )
        .await;
    world
        .west
        .expect::<Endpoints>("test", "web-east", leads_to("/"))
        .await;
    world
        .east
        .patch::<Endpoints>(
            "test",
            "web",
            json!({"subsets": endpoints("web", true)["subsets"]}),
        )
        .await;
    world
        .west
        .expect::<Endpoints>("test", "web-east", leads_to("203.0.113.7/"))
        .await;
}

#[tokio::test]
async fn a_dead_gateways_mirrors_are_not_ready_until_it_answers_again() {
    let (port, alive) = gateway().await;
    let world = World::linked(port).await;
    world.export("web").await;
    world
        .west
        .expect::<Endpoints>("test", "web-east", leads_to("203.0.113.7/"))
        .await;
    drop(alive);
    world
        .west
        .expect::<Endpoints>("test", "web-east", leads_to("/203.0.113.7"))
        .await;
    // Otherwise nobody could ever find out that it lives again.
    world
        .west
        .expect::<Endpoints>(EXTENSION, "localhost", leads_to("203.0.113.7/"))
        .await;
}

#[tokio::test]
async fn a_gateway_that_never_answered_is_dead_too() {
    let (port, never_alive) = gateway().await;
    drop(never_alive);
    let world = World::linked(port).await;
    world.export("web").await;
    world
        .west
        .expect::<Endpoints>("test", "web-east", leads_to("/203.0.113.7"))
        .await;
}

#[tokio::test]
async fn a_foreign_service_with_the_mirrors_name_is_left_alone_and_told() {
    let (port, _gateway) = gateway().await;
    let world = World::linked(port).await;
    let foreign = json!({
        "metadata": {"name": "web-east", "labels": {"owner": "someone"}},
        "spec": {"ports": [{"port": 9}]},
    });
    world.west.create::<Service>("test", foreign).await;
    let before = world.west.api::<Service>("test").get("web-east").await.unwrap();
    world.export("web").await;
    world
        .west
        .expect::<Link>(EXTENSION, "east", has_condition("web", "False", "NameConflict"))
        .await;
    assert_eq!(
        world.west.api::<Service>("test").get("web-east").await.unwrap(),
        before
    );
    assert!(
        world
            .west
            .api::<Endpoints>("test")
            .get_opt("web-east")
            .await
            .unwrap()
            .is_none()
    );

    world.west.delete::<Service>("test", "web-east").await;
    world
        .west
        .expect::<Link>(EXTENSION, "east", has_condition("web", "True", "Mirrored"))
        .await;
}

#[tokio::test]
async fn a_missing_namespace_is_told_and_made_up_for() {
    let (port, _gateway) = gateway().await;
    let world = World::linked(port).await;
    world
        .east
        .create::<Service>("only-east", service("web", true))
        .await;
    world
        .west
        .expect::<Link>(
            EXTENSION,
            "east",
            has_condition("web", "False", "MissingNamespace"),
        )
        .await;
    world
        .east
        .expect::<CoreEvent>(
            "only-east",
            "web.not-mirrored-to-east.missingnamespace",
            |event| event.is_some_and(|event| event.reason.as_deref() == Some("ServiceMirroringSkipped")),
        )
        .await;
    world.west.namespace("only-east").await;
    world
        .west
        .expect::<Service>("only-east", "web-east", |service| service.is_some())
        .await;
}

#[tokio::test]
async fn what_others_do_to_mirrors_is_undone() {
    let (port, _gateway) = gateway().await;
    let world = World::linked(port).await;
    world.export("web").await;
    world
        .west
        .expect::<Endpoints>("test", "web-east", leads_to("203.0.113.7/"))
        .await;
    world
        .west
        .patch::<Endpoints>("test", "web-east", json!({"subsets": []}))
        .await;
    world
        .west
        .expect::<Endpoints>("test", "web-east", leads_to("203.0.113.7/"))
        .await;
    world
        .west
        .patch::<Service>("test", "web-east", json!({"spec": {"selector": {"app": "mine"}}}))
        .await;
    world
        .west
        .expect::<Service>("test", "web-east", |service| {
            let spec = service.and_then(|service| service.spec.as_ref());
            spec.is_some_and(|spec| spec.selector.as_ref().is_none_or(|selector| selector.is_empty()))
        })
        .await;
    let uid = world
        .west
        .api::<Service>("test")
        .get("web-east")
        .await
        .unwrap()
        .metadata
        .uid;
    world.west.delete::<Service>("test", "web-east").await;
    world
        .west
        .expect::<Service>("test", "web-east", move |service| {
            service.is_some_and(|service| service.metadata.uid != uid)
        })
        .await;
}

#[tokio::test]
async fn mirrors_survive_the_targets_absence_and_catch_up_after_it() {
    let (port, _gateway) = gateway().await;
    let world = World::linked(port).await;
    world.export("web").await;
    world
        .west
        .expect::<Endpoints>("test", "web-east", leads_to("203.0.113.7/"))
        .await;
    // Longer than the pause between two heartbeats.
    world.east.cluster.interrupt(Duration::from_secs(4));
    world
        .west
        .expect::<Link>(
            EXTENSION,
            "east",
            has_condition("web", "Unknown", "TargetUnreachable"),
        )
        .await;
    assert!(
        world
            .west
            .api::<Service>("test")
            .get_opt("web-east")
            .await
            .unwrap()
            .is_some()
    );
    world
        .west
        .expect::<Link>(EXTENSION, "east", has_condition("web", "True", "Mirrored"))
        .await;
    world.export("late").await;
    world
        .west
        .expect::<Endpoints>("test", "late-east", leads_to("203.0.113.7/"))
        .await;
}

#[tokio::test]
async fn rotated_credentials_are_used_at_once() {
    let (port, _gateway) = gateway().await;
    let world = World::linked(port).await;
    world.export("web").await;
    world
        .west
        .expect::<Service>("test", "web-east", |service| service.is_some())
        .await;
    let rotated = json!({"stringData": {"kubeconfig": "other"}});
    world
        .west
        .patch::<Secret>(EXTENSION, "cluster-credentials-east", rotated)
        .await;
    world
        .west
        .expect::<Service>("test", "elsewhere-east", |service| service.is_some())
        .await;
    world
        .west
        .expect::<Service>("test", "web-east", |service| service.is_none())
        .await;
}

#[tokio::test]
async fn without_its_link_nothing_of_it_remains() {
    let (port, _gateway) = gateway().await;
    let world = World::linked(port).await;
    world.export("web").await;
    world
        .west
        .expect::<Endpoints>("test", "web-east", leads_to("203.0.113.7/"))
        .await;
    world.west.delete::<Link>(EXTENSION, "east").await;
    world
        .west
        .expect::<Service>("test", "web-east", |service| service.is_none())
        .await;
    world
        .west
        .expect::<Endpoints>("test", "web-east", |endpoints| endpoints.is_none())
        .await;
    world
        .west
        .expect::<Endpoints>(EXTENSION, "localhost", |endpoints| endpoints.is_none())
        .await;
}

/// Status and reason of a Link as a whole.
fn is_ready(status: &'static str, reason: &'static str) -> impl Fn(Option<&Link>) -> bool + Send {
    move |link| {
        let status_of = link.and_then(|link| link.status.as_ref());
        let conditions = status_of.iter().flat_map(|status| &status.conditions);
        let mut ready = conditions.filter(|condition| condition.type_ == "Ready");
        ready.any(|condition| condition.status == status && condition.reason == reason)
    }
}

#[tokio::test]
async fn a_link_that_cannot_be_used_says_why_until_it_is_corrected() {
    let (port, _gateway) = gateway().await;
    let world = World::linked(port).await;
    world.export("web").await;
    let (west, ready) = (&world.west, is_ready("True", "Mirroring"));
    west.expect::<Link>(EXTENSION, "east", ready).await;
    let wrong = json!({"spec": {"gatewayPort": "many"}});
    west.patch::<Link>(EXTENSION, "east", wrong).await;
    west.expect::<Link>(EXTENSION, "east", is_ready("False", "InvalidSpec"))
        .await;
    let link = west.api::<Link>(EXTENSION).get("east").await.unwrap();
    assert_eq!(
        link.status.unwrap().conditions[0].message,
        "spec.gatewayPort is \"many\", which is not a port number"
    );
    // Nobody's traffic suffers from a slip.
    assert_eq!(
        addresses(
            west.api::<Endpoints>("test")
                .get_opt("web-east")
                .await
                .unwrap()
                .as_ref()
        )
        .as_deref(),
        Some("203.0.113.7/")
    );
    west.patch::<Link>(EXTENSION, "east", json!({"spec": {"gatewayPort": "4143"}}))
        .await;
    west.expect::<Link>(EXTENSION, "east", is_ready("True", "Mirroring"))
        .await;
}

/// West with a controller that looks after every Link without one of its own; kubeconfigs are clusters' names.
async fn looked_after(sides: &[(&'static str, &Side)]) -> (Side, DropGuard) {
    let west = Side::new("west", &[EXTENSION, "test"]).await;
    west.define(hawser_crd::manifests::links()).await;
    let sides: Vec<(&'static str, Side)> = sides
        .iter()
        .map(|(name, side)| (*name, (*side).clone()))
        .collect();
    let connect: Connect = Arc::new(move |kubeconfig| {
        let found = sides.iter().find(|(name, _)| name.as_bytes() == kubeconfig);
        let client = found.map(|(_, side)| side.cluster.client(Identity::admin()));
        Box::pin(async move { client.ok_or(mirror::RemoteError::NotText) })
    });
    let config = mirror::Config {
        namespace: EXTENSION.into(),
        ..Default::default()
    };
    let stop = CancellationToken::new();
    let work = mirror::mirror_all(
        west.client.clone(),
        config,
        "test".into(),
        connect,
        Metrics::default(),
        stop.clone(),
    );
    tokio::spawn(work);
    (west, stop.drop_guard())
}

/// A Link without a probe, and its Secret.
async fn apply_link(west: &Side, name: &str) {
    let mut secret = credentials(name);
    secret["metadata"]["name"] = keys::credentials_secret(name).into();
    west.create::<Secret>(EXTENSION, secret).await;
    let mut link = link(1);
    link["metadata"]["name"] = name.into();
    link["spec"]["targetClusterName"] = name.into();
    link["spec"]["clusterCredentialsSecret"] = keys::credentials_secret(name).into();
    link["spec"]["probeSpec"] = json!({});
    west.create::<Link>(EXTENSION, link).await;
}

async fn exports(side: &Side, name: &str) {
    side.create::<Service>("test", service(name, true)).await;
    side.create::<Endpoints>("test", endpoints(name, true)).await;
}

#[tokio::test]
async fn three_clusters_are_linked_by_nothing_but_applied_links() {
    let east = Side::new("east", &["test"]).await;
    let north = Side::new("north", &["test"]).await;
    let (west, _stop) = looked_after(&[("east", &east), ("north", &north)]).await;
    for (side, name) in [(&east, "east"), (&north, "north")] {
        exports(side, "web").await;
        apply_link(&west, name).await;
    }
    west.expect::<Endpoints>("test", "web-east", leads_to("203.0.113.7/"))
        .await;
    west.expect::<Endpoints>("test", "web-north", leads_to("203.0.113.7/"))
        .await;
    west.expect::<Lease>(EXTENSION, "service-mirror-write-north", |lease| lease.is_some())
        .await;

    // One target's silence is its own affair.
    east.cluster.interrupt(Duration::from_secs(3));
    west.expect::<Link>(EXTENSION, "east", is_ready("False", "TargetUnreachable"))
        .await;
    exports(&north, "late").await;
    west.expect::<Service>("test", "late-north", |service| service.is_some())
        .await;
    west.expect::<Link>(EXTENSION, "north", is_ready("True", "Mirroring"))
        .await;

    west.delete::<Link>(EXTENSION, "north").await;
    west.expect::<Service>("test", "web-north", |service| service.is_none())
        .await;
    west.expect::<Service>("test", "late-north", |service| service.is_none())
        .await;
    west.expect::<Link>(EXTENSION, "east", is_ready("True", "Mirroring"))
        .await;
    assert!(
        west.api::<Service>("test")
            .get_opt("web-east")
            .await
            .unwrap()
            .is_some()
    );
}

#[tokio::test]
async fn a_link_with_a_controller_of_its_own_is_left_to_it() {
    let east = Side::new("east", &["test"]).await;
    let (west, _stop) = looked_after(&[("east", &east)]).await;
    exports(&east, "web").await;
    apply_link(&west, "east").await;
    west.expect::<Service>("test", "web-east", |service| service.is_some())
        .await;
    let labels = json!({"component": "service-mirror", keys::CLUSTER_NAME: "east"});
    let template = json!({
        "metadata": {"labels": {"app": "mirror"}},
        "spec": {"containers": [{"name": "c", "image": "i"}]},
    });
    let deployment = json!({
        "metadata": {"name": "linkerd-service-mirror-east", "labels": labels},
        "spec": {"selector": {"matchLabels": {"app": "mirror"}}, "template": template},
    });
    west.create::<Deployment>(EXTENSION, deployment).await;
    let free = |lease: Option<&Lease>| {
        let spec = lease.and_then(|lease| lease.spec.as_ref());
        spec.is_some_and(|spec| spec.holder_identity.as_deref().unwrap_or_default().is_empty())
    };
    west.expect::<Lease>(EXTENSION, "service-mirror-write-east", free)
        .await;
    west.delete::<Deployment>(EXTENSION, "linkerd-service-mirror-east")
        .await;
    let held = |lease: Option<&Lease>| {
        let spec = lease.and_then(|lease| lease.spec.as_ref());
        spec.is_some_and(|spec| spec.holder_identity.as_deref() == Some("test"))
    };
    west.expect::<Lease>(EXTENSION, "service-mirror-write-east", held)
        .await;
}

#[tokio::test]
async fn mirrors_of_a_link_that_was_deleted_while_nobody_looked_are_removed() {
    let east = Side::new("east", &["test"]).await;
    let (west, stop) = looked_after(&[("east", &east)]).await;
    drop(stop);
    for (name, cluster) in [("web-east", "east"), ("web-mine", "")] {
        let mut service = service(name, false);
        service["spec"]["selector"] = Value::Null;
        if !cluster.is_empty() {
            service["metadata"]["labels"] =
                json!({keys::MIRRORED_SERVICE: "true", keys::CLUSTER_NAME: cluster});
        }
        west.create::<Service>("test", service).await;
    }
    let connect: Connect = Arc::new(|_| Box::pin(async { Err(mirror::RemoteError::NotText) }));
    let config = mirror::Config {
        namespace: EXTENSION.into(),
        ..Default::default()
    };
    let stop = CancellationToken::new();
    let _guard = stop.clone().drop_guard();
    let (client, metrics) = (west.client.clone(), Metrics::default());
    tokio::spawn(mirror::mirror_all(
        client,
        config,
        "next".into(),
        connect,
        metrics,
        stop,
    ));
    west.expect::<Service>("test", "web-east", |service| service.is_none())
        .await;
    assert!(
        west.api::<Service>("test")
            .get_opt("web-mine")
            .await
            .unwrap()
            .is_some()
    );
}

/// An account in east that may watch what links watch, and a kubeconfig with its token.
async fn account(east: &Side, url: &str) -> String {
    let extension = "test";
    let role = json!({
        "metadata": {"name": "west"},
        "rules": [{"apiGroups": [""], "resources": ["services", "endpoints"], "verbs": ["get", "list", "watch"]}],
    });
    let binding = json!({
        "metadata": {"name": "west"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "west"},
        "subjects": [{"kind": "ServiceAccount", "name": "west", "namespace": extension}],
    });
    let params = PostParams::default();
    let roles: Api<ClusterRole> = Api::all(east.client.clone());
    roles.create(&params, &object(role)).await.unwrap();
    let bindings: Api<ClusterRoleBinding> = Api::all(east.client.clone());
    bindings.create(&params, &object(binding)).await.unwrap();
    east.create::<ServiceAccount>(extension, json!({"metadata": {"name": "west"}}))
        .await;
    let secret = json!({
        "metadata": {"name": "west-token", "annotations": {"kubernetes.io/service-account.name": "west"}},
        "type": "kubernetes.io/service-account-token",
    });
    let secret: Secret = east
        .api(extension)
        .create(&params, &object(secret))
        .await
        .unwrap();
    let data = secret.data.unwrap();
    let token = String::from_utf8(data["token"].0.clone()).unwrap();
    let authority = serde_json::to_value(&data["ca.crt"]).unwrap();
    json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": url, "certificate-authority-data": authority}}],
        "users": [{"name": "u", "user": {"token": token}}],
    })
    .to_string()
}

#[tokio::test]
async fn a_revoked_account_is_cut_off_and_mirrors_wait_for_the_next_credentials() {
    let (port, _gateway) = gateway().await;
    let west = Side::new("west", &[EXTENSION, "test"]).await;
    let east = Side::new("east", &["test"]).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let _server =
        tokio_util::task::AbortOnDropHandle::new(tokio::spawn(east.cluster.clone().serve(listener)));
    west.define(hawser_crd::manifests::links()).await;
    let kubeconfig = account(&east, &url).await;
    west.create::<Secret>(EXTENSION, credentials(&kubeconfig)).await;
    west.create::<Link>(EXTENSION, link(port)).await;
    exports(&east, "web").await;
    let stop = CancellationToken::new();
    let _guard = stop.clone().drop_guard();
    let config = mirror::Config {
        namespace: EXTENSION.into(),
        link: "east".into(),
        ..Default::default()
    };
    let (_, leads) = tokio::sync::watch::channel(true);
    tokio::spawn(mirror::mirror(
        west.client.clone(),
        config,
        mirror::connector(),
        Metrics::default(),
        leads,
        Bell::default(),
        stop,
    ));
    west.expect::<Endpoints>("test", "web-east", leads_to("203.0.113.7/"))
        .await;

    // Rights that are withdrawn count like an account that is gone, although an open watch would go on.
    let bindings: Api<ClusterRoleBinding> = Api::all(east.client.clone());
    let binding = bindings.get("west").await.unwrap();
    bindings.delete("west", &DeleteParams::default()).await.unwrap();
    west.expect::<Link>(EXTENSION, "east", is_ready("False", "AccessRefused"))
        .await;
    let again = ClusterRoleBinding {
        metadata: kube::core::ObjectMeta {
            name: Some("west".into()),
            ..Default::default()
        },
        ..binding
    };
    bindings.create(&PostParams::default(), &again).await.unwrap();
    west.expect::<Link>(EXTENSION, "east", is_ready("True", "Mirroring"))
        .await;

    east.delete::<ServiceAccount>("test", "west").await;
    west.expect::<Link>(EXTENSION, "east", is_ready("False", "AccessRefused"))
        .await;
    west.expect::<Link>(
        EXTENSION,
        "east",
        has_condition("web", "Unknown", "TargetUnreachable"),
    )
    .await;
    assert!(
        west.api::<Service>("test")
            .get_opt("web-east")
            .await
            .unwrap()
            .is_some()
    );
    let _ = bindings.delete("west", &DeleteParams::default()).await;
    let roles: Api<ClusterRole> = Api::all(east.client.clone());
    let _ = roles.delete("west", &DeleteParams::default()).await;
    let _ = east
        .api::<Secret>("test")
        .delete("west-token", &DeleteParams::default())
        .await;
    let next = account(&east, &url).await;
    west.patch::<Secret>(
        EXTENSION,
        "cluster-credentials-east",
        json!({"stringData": {"kubeconfig": next}}),
    )
    .await;
    west.expect::<Link>(EXTENSION, "east", is_ready("True", "Mirroring"))
        .await;
    exports(&east, "late").await;
    west.expect::<Service>("test", "late-east", |service| service.is_some())
        .await;
}

#[tokio::test]
async fn links_of_every_version_are_mirrored_and_stored_as_the_last() {
    let east = Side::new("east", &["test"]).await;
    let (west, _stop) = looked_after(&[("east", &east)]).await;
    exports(&east, "web").await;
    for version in ["v1alpha1", "v1alpha2"] {
        let name = format!("east-{version}");
        let mut secret = credentials("east");
        secret["metadata"]["name"] = keys::credentials_secret(&name).into();
        west.create::<Secret>(EXTENSION, secret).await;
        let mut link = link(1);
        link["metadata"]["name"] = name.clone().into();
        link["spec"]["targetClusterName"] = name.clone().into();
        link["spec"]["clusterCredentialsSecret"] = keys::credentials_secret(&name).into();
        link["spec"]["probeSpec"] = json!({});
        let kind = kube::core::GroupVersionKind::gvk("multicluster.linkerd.io", version, "Link");
        let resource = kube::core::ApiResource::from_gvk(&kind);
        link["apiVersion"] = resource.api_version.clone().into();
        link["kind"] = "Link".into();
        let links: Api<kube::core::DynamicObject> =
            Api::namespaced_with(west.client.clone(), EXTENSION, &resource);
        links.create(&PostParams::default(), &object(link)).await.unwrap();
        west.expect::<Endpoints>("test", &format!("web-{name}"), leads_to("203.0.113.7/"))
            .await;
        west.expect::<Link>(EXTENSION, &name, has_condition("web", "True", "Mirrored"))
            .await;
    }
}

#[tokio::test]
async fn a_leader_that_leaves_makes_room_for_the_next() {
    let west = Side::new("west", &[EXTENSION]).await;
    let candidate = |name: &str| {
        let stop = CancellationToken::new();
        let leadership = lease::run(
            west.client.clone(),
            EXTENSION,
            keys::service_mirror_lease("east"),
            name.into(),
            Bell::default(),
            stop.clone(),
        );
        (leadership, stop)
    };
    let holder = |name: &'static str| {
        move |lease: Option<&Lease>| {
            let spec = lease.and_then(|lease| lease.spec.as_ref());
            spec.and_then(|spec| spec.holder_identity.as_deref()) == Some(name)
        }
    };
    let (first, leave) = candidate("first");
    within(first.watch().wait_for(|leads| *leads)).await.unwrap();
    west.expect::<Lease>(EXTENSION, "service-mirror-write-east", holder("first"))
        .await;
    let (second, _stay) = candidate("second");
    assert!(!*second.watch().borrow());
    leave.cancel();
    within(first.released()).await;
    within(second.watch().wait_for(|leads| *leads)).await.unwrap();
    west.expect::<Lease>(EXTENSION, "service-mirror-write-east", holder("second"))
        .await;
}
