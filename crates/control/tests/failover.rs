//! Failover against an API server in this process: what is written, when, and what is told of it.
//!
//! Time is paused where time matters: it moves on whenever everybody waits. No sleeps: every expectation is a condition
//! that a watch waits for.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use hawser_control::failover::{Config, Controller, Status};
use hawser_control::lead;
use hawser_control::observe::Bell;
use hawser_crd::{TrafficSplit, keys};
use hawser_runtime::Metrics;
use hawser_sandbox::api::{Cluster, ClusterOptions, Identity};
use k8s_openapi::api::core::v1::{Endpoints, Namespace, Pod};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::wait::{await_condition, conditions};
use kube::{Api, Client, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Much longer than anything here takes, whether time is paused or not.
const DEADLINE: Duration = Duration::from_secs(300);

struct World {
    client: Client,
    began: Instant,
}

impl World {
    /// A namespace with these services, all ready.
    async fn new(services: &[&str]) -> Self {
        let cluster = Cluster::new(ClusterOptions::default());
        let world = Self {
            client: cluster.client(Identity::admin()),
            began: Instant::now(),
        };
        let namespaces: Api<Namespace> = Api::all(world.client.clone());
        let namespace = object(json!({"metadata": {"name": "test"}}));
        namespaces
            .create(&PostParams::default(), &namespace)
            .await
            .unwrap();
        let definitions: Api<CustomResourceDefinition> = Api::all(world.client.clone());
        let definition = object(hawser_crd::manifests::traffic_splits());
        definitions
            .create(&PostParams::default(), &definition)
            .await
            .unwrap();
        let established = await_condition(
            definitions,
            "trafficsplits.split.smi-spec.io",
            conditions::is_crd_established(),
        );
        tokio::time::timeout(DEADLINE, established)
            .await
            .unwrap()
            .unwrap();
        for service in services {
            let endpoints = object(json!({"metadata": {"name": service}, "subsets": subsets(true)}));
            let api: Api<Endpoints> = world.api();
            api.create(&PostParams::default(), &endpoints).await.unwrap();
        }
        world
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), "test")
    }

    /// A split of `web`, which is the primary, through a version of the API.
    async fn split(&self, version: &str, annotations: Value, backends: Value) {
        let gvk = GroupVersionKind::gvk("split.smi-spec.io", version, "TrafficSplit");
        let resource = ApiResource::from_gvk_with_plural(&gvk, "trafficsplits");
        let mut split = json!({
            "apiVersion": format!("split.smi-spec.io/{version}"), "kind": "TrafficSplit",
            "metadata": {
                "name": "web",
                "labels": {keys::FAILOVER_CONTROLLED_BY: "linkerd-failover"},
                "annotations": annotations,
            },
            "spec": {"service": "web", "backends": backends},
        });
        split["metadata"]["annotations"][keys::FAILOVER_PRIMARY] = "web".into();
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), "test", &resource);
        api.create(&PostParams::default(), &object(split)).await.unwrap();
    }

    async fn ready(&self, service: &str, ready: bool) {
        let patch = Patch::Merge(json!({"subsets": subsets(ready)}));
        let api: Api<Endpoints> = self.api();
        api.patch(service, &PatchParams::default(), &patch).await.unwrap();
    }

    fn controller(&self) -> Running {
        self.controller_through(self.client.clone())
    }

    /// Runs a controller with a client of its own until the value is dropped.
    fn controller_through(&self, client: Client) -> Running {
        let (metrics, bell, stop) = (Metrics::default(), Bell::default(), CancellationToken::new());
        let began = self.began;
        let config = Config {
            selector: "failover.linkerd.io/controlled-by=linkerd-failover".into(),
            instance: "test".into(),
            clock: Arc::new(move || SystemTime::UNIX_EPOCH + began.elapsed()),
            measure_interval: Duration::from_millis(10),
        };
        let controller = Controller::new(client, config, metrics.clone(), bell.clone());
        let (leads, watch) = tokio::sync::watch::channel(true);
        tokio::spawn(lead::follow(watch, bell, controller, stop.clone()));
        Running {
            metrics,
            _leads: leads,
            _stop: stop.drop_guard(),
        }
    }

    /// Waits until the split has these weights; says how long after the world's beginning.
    #[track_caller]
    fn weighs(&self, expected: &'static str) -> impl Future<Output = Duration> {
        let (api, began, caller) = (
            self.api::<TrafficSplit>(),
            self.began,
            std::panic::Location::caller(),
        );
        async move {
            let met = await_condition(api.clone(), "web", move |split: Option<&TrafficSplit>| {
                split.is_some_and(|split| weights(split) == expected)
            });
            if tokio::time::timeout(DEADLINE, met).await.is_err() {
                let split = api.get_opt("web").await;
                panic!("{caller}: never {expected}, but {split:#?}");
            }
            began.elapsed()
        }
    }

    async fn status(&self) -> Status {
        let split = self.api::<TrafficSplit>().get("web").await.unwrap();
        Status::parse(&split.annotations()[keys::FAILOVER_STATUS]).expect("readable")
    }

    /// Notes of the Events, in their order, once there are so many.
    async fn notes(&self, count: usize) -> Vec<String> {
        let api: Api<Event> = self.api();
        let gathered = async {
            loop {
                let mut events = api.list(&ListParams::default()).await.unwrap().items;
                if events.len() >= count {
                    events.sort_by_key(|event| event.name_any());
                    return events.into_iter().filter_map(|event| event.note).collect();
                }
                // Not a yield: paused time moves on only while everybody waits.
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(DEADLINE, gathered).await.unwrap()
    }
}

struct Running {
    metrics: Metrics,
    _leads: tokio::sync::watch::Sender<bool>,
    _stop: DropGuard,
}

fn object<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn subsets(ready: bool) -> Value {
    let addresses = if ready { "addresses" } else { "notReadyAddresses" };
    json!([{addresses: [{"ip": "10.42.0.9"}], "ports": [{"name": "http", "port": 8080}]}])
}

fn backends(weights: &[(&str, Value)]) -> Value {
    let backends = weights.iter();
    backends
        .map(|(service, weight)| json!({"service": service, "weight": weight}))
        .collect()
}

fn weights(split: &TrafficSplit) -> String {
    let backends = split.spec.backends.iter();
    let weights: Vec<String> = backends.map(|backend| backend.weight.0.to_string()).collect();
    weights.join("/")
}

#[tokio::test(start_paused = true)]
async fn weights_follow_readiness_at_once_and_return_in_steps_and_every_change_says_why() {
    let world = World::new(&["web", "web-east"]).await;
    let written = backends(&[("web", json!(0)), ("web-east", json!(1))]);
    world.split("v1alpha2", json!({}), written).await;
    let _running = world.controller();
    world.weighs("1/0").await;
    let failed = world.began.elapsed();
    world.ready("web", false).await;
    let left = world.weighs("0/1").await;
    assert!(left - failed < Duration::from_secs(1), "{:?}", left - failed);
    assert_eq!(world.status().await.message, "web has no ready endpoints");
    world.ready("web", true).await;
    for step in ["1/4", "2/3", "3/2", "4/1", "1/0"] {
        world.weighs(step).await;
    }
    let took = (world.began.elapsed() - left).as_secs_f64();
    assert!(
        (40.0..41.0).contains(&took),
        "10 s away and 30 s of return are {took} s"
    );
    assert_eq!(
        world.notes(7).await,
        [
            "trafficsplit/web switching traffic to primary: the primary is ready",
            "trafficsplit/web failing over to fallbacks: web has no ready endpoints",
            "trafficsplit/web switching traffic to primary: web is back, step 1 of 5",
            "trafficsplit/web switching traffic to primary: web is back, step 2 of 5",
            "trafficsplit/web switching traffic to primary: web is back, step 3 of 5",
            "trafficsplit/web switching traffic to primary: web is back, step 4 of 5",
            "trafficsplit/web switching traffic to primary: web has returned",
        ]
    );
    let status = world.status().await;
    assert_eq!(
        (status.phase.as_str(), status.reason.as_str()),
        ("Primary", "Returned")
    );
}

#[tokio::test(start_paused = true)]
async fn a_restarted_controller_goes_on_where_the_last_one_was() {
    let world = World::new(&["web", "web-east"]).await;
    let written = backends(&[("web", json!(1)), ("web-east", json!(0))]);
    world.split("v1alpha2", json!({}), written).await;
    let first = world.controller();
    world.ready("web", false).await;
    let left = world.weighs("0/1").await;
    world.ready("web", true).await;
    drop(first);
    let second = world.controller();
    let back = world.weighs("1/4").await;
    assert!(back - left >= Duration::from_secs(10), "{:?}", back - left);
    world.weighs("2/3").await;
    drop(second);
    let _third = world.controller();
    let begun = world.began.elapsed();
    world.weighs("3/2").await;
    assert!(world.began.elapsed() - begun < Duration::from_secs(8));
    world.weighs("1/0").await;
}

#[tokio::test(start_paused = true)]
async fn quantities_of_the_first_version_keep_their_ratios() {
    let world = World::new(&["web", "a", "b"]).await;
    let written = backends(&[
        ("web", json!(1)),
        ("a", json!("500m")),
        ("b", json!("1500m")),
        ("not-there", json!("1")),
    ]);
    let annotations = json!({keys::FAILOVER_RETURN_OVER: "0s", keys::FAILOVER_MIN_DWELL: "0s"});
    world.split("v1alpha1", annotations, written).await;
    let _running = world.controller();
    world.weighs("2/0/0/0").await;
    world.ready("web", false).await;
    world.weighs("0/1/3/0").await;
    world.ready("b", false).await;
    world.weighs("0/1/0/0").await;
    world.ready("web", true).await;
    world.weighs("2/0/0/0").await;
}

/// What becomes of a write.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Refused,
    Unanswered,
    /// It is done, but nobody hears of it.
    Lost,
}

/// A client whose first writes of splits meet these fates, and how many writes were acknowledged.
fn unlucky(client: Client, fates: &[Fate]) -> (Client, Arc<AtomicUsize>) {
    let fates = Arc::new(Mutex::new(VecDeque::from(fates.to_vec())));
    let acknowledged = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&acknowledged);
    let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
        let is_write =
            request.method() == http::Method::PATCH && request.uri().path().contains("trafficsplits");
        let fate = is_write.then(|| fates.lock().unwrap().pop_front()).flatten();
        let (client, count) = (client.clone(), Arc::clone(&count));
        async move {
            if fate == Some(Fate::Unanswered) {
                return std::future::pending().await;
            }
            let failure = http::Response::builder().status(500);
            let failure = failure.body(kube::client::Body::empty()).unwrap();
            if fate == Some(Fate::Refused) {
                return Ok(failure);
            }
            let response = client.send(request).await?;
            if fate == Some(Fate::Lost) {
                return Ok(failure);
            }
            if is_write && response.status().is_success() {
                count.fetch_add(1, Ordering::Relaxed);
            }
            Ok::<_, kube::Error>(response)
        }
    });
    (Client::new(service, "default"), acknowledged)
}

#[tokio::test(start_paused = true)]
async fn a_failed_write_is_tried_again_and_never_told_as_done() {
    use Fate::{Lost, Refused, Unanswered};
    let all = [
        "trafficsplit/web switching traffic to primary: the primary is ready",
        "trafficsplit/web failing over to fallbacks: web has no ready endpoints",
        "trafficsplit/web switching traffic to primary: web is ready again",
        "trafficsplit/web failing over to fallbacks: web has no ready endpoints",
    ];
    // The fates of the first writes, and which of the four changes nobody can know to have been made.
    for (fates, lost) in [
        (vec![Refused, Refused, Refused], 0),
        (vec![Unanswered, Refused, Unanswered], 0),
        (vec![Lost, Refused, Lost], 2),
        (vec![Refused, Lost, Unanswered], 1),
    ] {
        let world = World::new(&["web", "web-east"]).await;
        let written = backends(&[("web", json!(0)), ("web-east", json!(1))]);
        let annotations = json!({keys::FAILOVER_RETURN_OVER: "0s", keys::FAILOVER_MIN_DWELL: "0s"});
        world.split("v1alpha2", annotations, written).await;
        let (client, acknowledged) = unlucky(world.client.clone(), &fates);
        let running = world.controller_through(client);
        world.weighs("1/0").await;
        world.ready("web", false).await;
        world.weighs("0/1").await;
        world.ready("web", true).await;
        world.weighs("1/0").await;
        world.ready("web", false).await;
        world.weighs("0/1").await;
        let told = &all[lost..];
        assert_eq!(world.notes(told.len()).await, told, "{fates:?}");
        assert_eq!(acknowledged.load(Ordering::Relaxed), told.len(), "{fates:?}");
        let metrics = running.metrics.render();
        let counted = format!("failover_patches{{success=\"true\"}} {}\n", told.len());
        assert!(metrics.contains(&counted), "{counted} in {metrics}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_mistake_in_an_annotation_is_told_once_and_failover_goes_on() {
    let world = World::new(&["web", "web-east"]).await;
    let written = backends(&[("web", json!(1)), ("web-east", json!(0))]);
    world
        .split("v1alpha2", json!({keys::FAILOVER_MIN_DWELL: "soon"}), written)
        .await;
    let _running = world.controller();
    world.notes(1).await;
    world.ready("web", false).await;
    world.weighs("0/1").await;
    let expected = [
        "trafficsplit/web: annotation failover.linkerd.io/min-dwell is \"soon\", not a duration up to 24h; the default \
         holds",
        "trafficsplit/web failing over to fallbacks: web has no ready endpoints",
    ];
    assert_eq!(world.notes(2).await, expected);
}

/// A meshed pod's admin port: every look at it finds fifty requests to web more, failed ones if it is broken.
async fn client_of_web(broken: Arc<AtomicBool>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut good, mut bad) = (0, 0);
        while let Ok((mut socket, _)) = listener.accept().await {
            let count = if broken.load(Ordering::Relaxed) {
                &mut bad
            } else {
                &mut good
            };
            *count += 50;
            let series = "response_total{direction=\"outbound\",dst_namespace=\"test\",dst_service=\"web\"";
            let body = format!(
                "{series},classification=\"success\"}} {good}\n{series},classification=\"failure\"}} {bad}\n"
            );
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            let mut request = [0; 1024];
            if socket.read(&mut request).await.is_ok_and(|length| length > 0) {
                let _ = socket.write_all(answer.as_bytes()).await;
            }
        }
    });
    port
}

#[tokio::test]
async fn traffic_leaves_a_service_that_its_clients_find_failing() {
    let world = World::new(&["web", "web-east"]).await;
    let broken = Arc::new(AtomicBool::new(false));
    let port = client_of_web(Arc::clone(&broken)).await;
    let pods: Api<Pod> = world.api();
    let pod = json!({
        "metadata": {"name": "client", "labels": {"linkerd.io/control-plane-ns": "linkerd"}},
        "spec": {"containers": [{
            "name": "linkerd-proxy", "image": "proxy",
            "ports": [{"name": "linkerd-admin", "containerPort": port}],
        }]},
    });
    pods.create(&PostParams::default(), &object(pod)).await.unwrap();
    let status = json!({"status": {"phase": "Running", "podIP": "127.0.0.1"}});
    pods.patch_status("client", &PatchParams::default(), &Patch::Merge(status))
        .await
        .unwrap();
    let written = backends(&[("web", json!(0)), ("web-east", json!(1))]);
    world
        .split(
            "v1alpha2",
            json!({keys::FAILOVER_MIN_SUCCESS_RATE: "90%"}),
            written,
        )
        .await;
    let _running = world.controller();
    world.weighs("1/0").await;
    broken.store(true, Ordering::Relaxed);
    world.weighs("0/1").await;
    let status = world.status().await;
    assert_eq!(
        (status.phase.as_str(), status.reason.as_str()),
        ("Fallback", "SuccessRate")
    );
    assert!(status.message.starts_with("web fails: "), "{}", status.message);
}
