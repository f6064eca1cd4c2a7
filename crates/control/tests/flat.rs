//! Clusters with a flat network, in this process: mirrors without gateways, federated Services, and what proxies hear.
//!
//! Three API servers, the real controllers of west between them, and the destination service over a fed view. No
//! sockets, no sleeps: every expectation is a condition that a watch or a stream waits for.

mod support;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser as _;
use hawser_control::destination;
use hawser_control::mesh::{Mesh, MeshArgs};
use hawser_control::mirror::{self, Connect, LocalConfig};
use hawser_control::observe::Bell;
use hawser_control::view::View;
use hawser_control::view::clusters::{Clusters, Setup};
use hawser_control::view::watch::Watches;
use hawser_crd::{Link, keys, selector};
use hawser_runtime::Metrics;
use hawser_sandbox::api::Identity;
use k8s_openapi::api::core::v1::{Endpoints, Pod, Secret, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Patch, PatchParams};
use linkerd2_proxy_api::destination::destination_client::DestinationClient;
use linkerd2_proxy_api::destination::{GetDestination, Update, tls_identity, update};
use serde_json::json;
use tokio_util::sync::{CancellationToken, DropGuard};

use support::{DEADLINE, EXTENSION, Side, within};

/// A cluster with a namespace `test`, in which an account may run pods.
async fn side(name: &str) -> Side {
    let side = Side::new(name, &["test"]).await;
    let account = json!({"metadata": {"name": "bb"}});
    side.create::<ServiceAccount>("test", account).await;
    side
}

impl Side {
    /// A Service with one ready, meshed pod.
    async fn serve(&self, name: &str, label: (&str, &str), ip: &str) {
        let service = json!({
            "metadata": {"name": name, "labels": {label.0: label.1}},
            "spec": {"selector": {"app": name}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
        });
        self.create::<Service>("test", service).await;
        let pod = json!({
            "metadata": {"name": name, "labels": {"app": name, "linkerd.io/control-plane-ns": "linkerd"}},
            "spec": {"serviceAccountName": "bb", "containers": [{"name": "app", "image": "app"}]},
        });
        self.create::<Pod>("test", pod).await;
        let status = json!({"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]}});
        let pods = self.api::<Pod>("test");
        pods.patch_status(name, &PatchParams::default(), &Patch::Merge(status))
            .await
            .unwrap();
        let target = json!({"kind": "Pod", "name": name, "namespace": "test"});
        let slice = json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
            "endpoints": [{"addresses": [ip], "conditions": {"ready": true}, "targetRef": target}],
        });
        self.create::<EndpointSlice>("test", slice).await;
    }
}

/// West imports from east and north; `elsewhere` is what rotated credentials lead to.
struct World {
    west: Side,
    east: Side,
    north: Side,
    elsewhere: Side,
    connect: Connect,
    _stop: DropGuard,
}

impl World {
    async fn linked() -> Self {
        let west = side("west").await;
        for namespace in [EXTENSION, "linkerd"] {
            west.namespace(namespace).await;
        }
        west.define(hawser_crd::manifests::links()).await;
        let (east, north) = (side("east").await, side("north").await);
        let elsewhere = side("elsewhere").await;
        let clusters = [
            ("east", east.clone()),
            ("north", north.clone()),
            ("elsewhere", elsewhere.clone()),
        ];
        let connect: Connect = Arc::new(move |kubeconfig| {
            let found = clusters.iter().find(|(name, _)| name.as_bytes() == kubeconfig);
            let client = found.map(|(_, side)| side.cluster.client(Identity::admin()));
            Box::pin(async move { client.ok_or(mirror::RemoteError::NotText) })
        });
        let stop = CancellationToken::new();
        let world = Self {
            west,
            east,
            north,
            elsewhere,
            connect,
            _stop: stop.clone().drop_guard(),
        };
        for cluster in ["east", "north"] {
            world.link(cluster, &stop).await;
        }
        let config = LocalConfig {
            namespace: EXTENSION.into(),
            selector: selector::parse(Some(&members())).unwrap(),
            excluded_annotations: vec![],
            excluded_labels: vec![],
        };
        let (_, leads) = tokio::sync::watch::channel(true);
        let client = world.west.client.clone();
        tokio::spawn(mirror::join_local(client, config, leads, Bell::default(), stop));
        world
    }

    /// What `link --gateway=false` prints, and its controller.
    async fn link(&self, cluster: &str, stop: &CancellationToken) {
        for namespace in [EXTENSION, "linkerd"] {
            let secret = json!({
                "metadata": {
                    "name": keys::credentials_secret(cluster),
                    "labels": {keys::SECRET_CLUSTER_NAME: cluster},
                    "annotations": {
                        keys::SECRET_TRUST_DOMAIN: format!("{cluster}.example"),
                        keys::SECRET_CLUSTER_DOMAIN: "cluster.local",
                    },
                },
                "type": keys::KUBECONFIG_SECRET_TYPE, "stringData": {"kubeconfig": cluster},
            });
            self.west.create::<Secret>(namespace, secret).await;
        }
        let link = json!({
            "metadata": {"name": cluster},
            "spec": {
                "targetClusterName": cluster, "targetClusterDomain": "cluster.local", "probeSpec": {},
                "clusterCredentialsSecret": keys::credentials_secret(cluster),
                "remoteDiscoverySelector": {"matchLabels": {keys::EXPORTED: "remote-discovery"}},
                "federatedServiceSelector": members(),
            },
        });
        self.west.create::<Link>(EXTENSION, link).await;
        let config = mirror::Config {
            namespace: EXTENSION.into(),
            link: cluster.into(),
            ..Default::default()
        };
        let (_, leads) = tokio::sync::watch::channel(true);
        tokio::spawn(mirror::mirror(
            self.west.client.clone(),
            config,
            self.connect.clone(),
            Metrics::default(),
            leads,
            Bell::default(),
            stop.clone(),
        ));
    }

    /// What a proxy of west hears about a Service.
    async fn endpoints(&self, service: &str) -> Heard {
        #[derive(clap::Parser)]
        struct Defaults {
            #[command(flatten)]
            mesh: MeshArgs,
        }
        let mesh = Mesh::try_from(Defaults::parse_from(["test"]).mesh).unwrap();
        let view = Arc::new(View::default());
        let mut watches = Watches::start(&view, &self.west.client, &destination::FEEDS);
        within(watches.listed()).await;
        let setup = Setup {
            client: self.west.client.clone(),
            namespace: "linkerd".into(),
            connect: self.connect.clone(),
            metrics: Metrics::default(),
        };
        let clusters = Clusters::follow(&view, setup);
        within(clusters.listed()).await;
        let server = destination::server(view, Arc::new(mesh), CancellationToken::new());
        let request = GetDestination {
            path: format!("{service}.test.svc.cluster.local:80"),
            ..GetDestination::default()
        };
        let stream = DestinationClient::new(server).get(request).await.unwrap();
        Heard {
            stream: stream.into_inner(),
            known: BTreeMap::new(),
            _kept: (watches, clusters),
        }
    }
}

/// A proxy's picture of a Service.
struct Heard {
    stream: tonic::Streaming<Update>,
    /// Identities by address.
    known: BTreeMap<String, String>,
    _kept: (Watches, Clusters),
}

impl Heard {
    /// Listens until the picture is this: address and trust domain of each endpoint.
    #[track_caller]
    fn becomes<'a>(&'a mut self, expected: &'a [(&str, &str)]) -> impl Future<Output = ()> + 'a {
        let caller = std::panic::Location::caller();
        let wanted: BTreeMap<String, String> = expected
            .iter()
            .map(|(address, domain)| {
                let identity = format!("bb.test.serviceaccount.identity.linkerd.{domain}");
                ((*address).to_owned(), identity)
            })
            .collect();
        async move {
            while self.known != wanted {
                match tokio::time::timeout(DEADLINE, self.stream.message()).await {
                    Ok(Ok(Some(update))) => self.take(update),
                    other => panic!("{caller}: {:?} never became {wanted:?}: {other:?}", self.known),
                }
            }
        }
    }

    fn take(&mut self, update: Update) {
        let text = |address| SocketAddr::try_from(address).unwrap().to_string();
        match update.update.unwrap() {
            update::Update::Add(set) => {
                for address in set.addrs {
                    let identity = match address.tls_identity.and_then(|identity| identity.strategy) {
                        Some(tls_identity::Strategy::DnsLikeIdentity(name)) => name.name,
                        _ => String::new(),
                    };
                    self.known.insert(text(address.addr.unwrap()), identity);
                }
            }
            update::Update::Remove(set) => {
                for address in set.addrs {
                    self.known.remove(&text(address));
                }
            }
            update::Update::NoEndpoints(_) => self.known.clear(),
        }
    }
}

fn members() -> k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector {
    selector::from_query("mirror.linkerd.io/federated=member").unwrap()
}

const MEMBER: (&str, &str) = (keys::FEDERATED, "member");
const DISCOVERED: (&str, &str) = (keys::EXPORTED, "remote-discovery");

/// Members of a federated Service, in the order of their names: `here`, `bb@east`, ...
fn membership(service: Option<&Service>) -> Option<String> {
    let annotations = service?.metadata.annotations.clone().unwrap_or_default();
    let remote = annotations
        .get(keys::REMOTE_DISCOVERY)
        .cloned()
        .unwrap_or_default();
    let mut members: Vec<&str> = remote.split(',').filter(|item| !item.is_empty()).collect();
    if annotations.contains_key(keys::LOCAL_DISCOVERY) {
        members.push("here");
    }
    members.sort_unstable();
    Some(members.join(" "))
}

fn consists_of(expected: &'static str) -> impl Fn(Option<&Service>) -> bool + Send {
    move |service| membership(service).as_deref() == Some(expected)
}

/// `bb`'s entry among the federated services of a Link.
fn condition(link: Option<&Link>) -> Option<(String, String)> {
    let status = link?.status.as_ref()?;
    let mut entries = status.federated_services.iter();
    let entry = entries.find(|entry| entry.remote_ref.name == "bb")?;
    let condition = entry.conditions.first()?;
    Some((condition.status.clone(), condition.reason.clone()))
}

#[tokio::test]
async fn a_federated_service_joins_what_all_clusters_have_and_loses_what_leaves() {
    let world = World::linked().await;
    world.north.serve("bb", MEMBER, "10.42.64.5").await;
    world.east.serve("bb", MEMBER, "10.42.32.5").await;
    world.west.serve("bb", MEMBER, "10.42.0.5").await;
    let federated = "bb-federated";
    let west = &world.west;
    west.expect::<Service>("test", federated, consists_of("bb@east bb@north here"))
        .await;
    west.expect::<Link>(EXTENSION, "east", |link| {
        condition(link) == Some(("True".into(), "Mirrored".into()))
    })
    .await;
    let endpoints = west.api::<Endpoints>("test").get_opt(federated).await.unwrap();
    assert!(
        endpoints.is_none(),
        "its endpoints are found by the control plane"
    );
    let mut heard = world.endpoints(federated).await;
    let here = ("10.42.0.5:8080", "cluster.local");
    let east = ("10.42.32.5:8080", "east.example");
    let north = ("10.42.64.5:8080", "north.example");
    heard.becomes(&[here, east, north]).await;

    let unlabel = json!({"metadata": {"labels": {keys::FEDERATED: null}}});
    world.north.patch::<Service>("test", "bb", unlabel.clone()).await;
    west.expect::<Service>("test", federated, consists_of("bb@east here"))
        .await;
    west.expect::<Link>(EXTENSION, "north", |link| condition(link).is_none())
        .await;
    heard.becomes(&[here, east]).await;

    west.delete::<Link>(EXTENSION, "east").await;
    west.expect::<Service>("test", federated, |service| {
        consists_of("here")(service)
            && service.is_some_and(|service| {
                let annotations = service.metadata.annotations.clone().unwrap_or_default();
                !annotations.contains_key(keys::REMOTE_DISCOVERY)
            })
    })
    .await;
    heard.becomes(&[here]).await;
    west.patch::<Service>("test", "bb", unlabel).await;
    west.expect::<Service>("test", federated, |service| service.is_none())
        .await;
    heard.becomes(&[]).await;
}

#[tokio::test]
async fn a_federated_name_that_is_taken_is_left_alone_and_told() {
    let world = World::linked().await;
    let foreign = json!({"metadata": {"name": "bb-federated"}, "spec": {"ports": [{"port": 9}]}});
    world.west.create::<Service>("test", foreign).await;
    let before = world
        .west
        .api::<Service>("test")
        .get("bb-federated")
        .await
        .unwrap();
    world.east.serve("bb", MEMBER, "10.42.32.5").await;
    world
        .west
        .expect::<Link>(EXTENSION, "east", |link| {
            condition(link) == Some(("False".into(), "NameConflict".into()))
        })
        .await;
    let after = world
        .west
        .api::<Service>("test")
        .get("bb-federated")
        .await
        .unwrap();
    assert_eq!(before, after);
}

#[tokio::test]
async fn a_mirror_without_a_gateway_leads_to_the_pods_as_long_as_credentials_do() {
    let world = World::linked().await;
    let west = &world.west;
    world.east.serve("bb", DISCOVERED, "10.42.32.5").await;
    world.elsewhere.serve("bb", DISCOVERED, "10.42.96.5").await;
    west.expect::<Service>("test", "bb-east", |service| {
        let labels = service.and_then(|service| service.metadata.labels.clone());
        labels.is_some_and(|labels| {
            labels
                .get(keys::REMOTE_DISCOVERY)
                .is_some_and(|name| name == "east")
                && labels.get(keys::REMOTE_SERVICE).is_some_and(|name| name == "bb")
        })
    })
    .await;
    let endpoints = west.api::<Endpoints>("test").get_opt("bb-east").await.unwrap();
    assert!(endpoints.is_none());
    let mut heard = world.endpoints("bb-east").await;
    heard.becomes(&[("10.42.32.5:8080", "east.example")]).await;

    // Longer than the pause between two signs of life.
    world.east.cluster.interrupt(Duration::from_secs(4));
    let rotated = json!({"stringData": {"kubeconfig": "elsewhere"}});
    let secret = keys::credentials_secret("east");
    west.patch::<Secret>("linkerd", &secret, rotated).await;
    heard.becomes(&[("10.42.96.5:8080", "east.example")]).await;

    west.delete::<Secret>("linkerd", &secret).await;
    heard.becomes(&[]).await;
}

#[tokio::test]
async fn a_cluster_that_is_away_keeps_its_last_state_and_is_looked_at_anew_when_it_is_back() {
    let world = World::linked().await;
    world.east.serve("bb", DISCOVERED, "10.42.32.5").await;
    world
        .west
        .expect::<Service>("test", "bb-east", |service| service.is_some())
        .await;
    let mut heard = world.endpoints("bb-east").await;
    heard.becomes(&[("10.42.32.5:8080", "east.example")]).await;
    world.east.cluster.interrupt(Duration::from_secs(4));
    world
        .west
        .expect::<Link>(EXTENSION, "east", |link| {
            let status = link.and_then(|link| link.status.as_ref());
            status.is_some_and(|status| {
                let mut services = status.mirror_services.iter();
                services.any(|entry| entry.conditions[0].reason == "TargetUnreachable")
            })
        })
        .await;
    let unheard = tokio::time::timeout(Duration::ZERO, heard.stream.message()).await;
    assert!(unheard.is_err(), "nothing is taken away: {unheard:?}");
    // The first thing to be heard is news, not a gap.
    let moved = json!({"status": {"podIP": "10.42.32.6", "podIPs": [{"ip": "10.42.32.6"}]}});
    within(async {
        let pods = world.east.api::<Pod>("test");
        let (params, patch) = (PatchParams::default(), Patch::Merge(moved));
        while pods.patch_status("bb", &params, &patch).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let target = json!({"kind": "Pod", "name": "bb", "namespace": "test"});
    let endpoints =
        json!([{"addresses": ["10.42.32.6"], "conditions": {"ready": true}, "targetRef": target}]);
    let slice = json!({"endpoints": endpoints});
    world.east.patch::<EndpointSlice>("test", "bb", slice).await;
    heard.becomes(&[("10.42.32.6:8080", "east.example")]).await;
}
