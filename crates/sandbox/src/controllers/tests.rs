//! Plans as stories: manifests in, writes out.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::plan::{Plan, Write, plan};
use super::snapshot::{Change, Key, Resource, Snapshot, Target};
use super::{BACKOFF, Outcome, Scopes};
use crate::kubelet::ClusterAddresses;

pub(super) fn addresses() -> ClusterAddresses {
    ClusterAddresses {
        name: "west".into(),
        pods: "10.42.0.0/16".parse().unwrap(),
        reachable_pods: Vec::new(),
        external: None,
        services: "10.43.0.0/16".parse().unwrap(),
        node: "172.31.0.2".parse().unwrap(),
        load_balancers: "172.31.1.0/24".parse().unwrap(),
        api: "172.31.0.2:6443".parse().unwrap(),
        dns: "10.43.0.10".parse().unwrap(),
        domain: "cluster.local".into(),
    }
}

fn now() -> Timestamp {
    "2026-05-01T12:00:00Z".parse().unwrap()
}

/// A cluster that is planned for, and that does what the plans say. It plays the node as well.
struct Story {
    snapshot: Snapshot,
    now: Timestamp,
    version: u64,
}

impl Story {
    fn new() -> Self {
        let mut snapshot = Snapshot::default();
        for (kind, plural) in [("ServiceAccount", "serviceaccounts"), ("ConfigMap", "configmaps")] {
            let resource = Resource {
                api_version: "v1".into(),
                kind: kind.into(),
                plural: plural.into(),
                namespaced: true,
            };
            snapshot.watched_other(&resource, Change::Replaced(Vec::new()));
        }
        Self {
            snapshot,
            now: now(),
            version: 0,
        }
    }

    /// Puts an object in, or in place of its predecessor. Kind and version come from it.
    fn put(&mut self, mut object: Value) -> &mut Self {
        let kind = object["kind"].as_str().unwrap().to_owned();
        let resource = self
            .snapshot
            .serves(object["apiVersion"].as_str().unwrap(), &kind)
            .unwrap();
        self.version += 1;
        let metadata = &mut object["metadata"];
        if metadata["name"].is_null() {
            let prefix = metadata["generateName"].as_str().unwrap().to_owned();
            metadata["name"] = json!(format!("{prefix}{}", self.version));
        }
        if resource.namespaced && metadata["namespace"].is_null() {
            metadata["namespace"] = json!("default");
        }
        if metadata["uid"].is_null() {
            metadata["uid"] = json!(format!("{kind}-{}", metadata["name"].as_str().unwrap()));
        }
        if metadata["creationTimestamp"].is_null() {
            metadata["creationTimestamp"] = json!(self.now.to_string());
        }
        metadata["resourceVersion"] = json!(self.version.to_string());
        self.snapshot.answered(&resource, object);
        self
    }

    /// What is planned now, one line per write.
    fn plan(&self) -> Vec<String> {
        let plan = plan(&self.snapshot, &addresses(), self.now);
        plan.actions.iter().map(ToString::to_string).collect()
    }

    /// Like [`Self::plan`], without the writes of a status.
    fn deeds(&self) -> Vec<String> {
        self.plan()
            .into_iter()
            .filter(|line| !line.contains("/status "))
            .collect()
    }

    /// Carries out what is planned, once.
    fn step(&mut self) -> Vec<String> {
        let plan = plan(&self.snapshot, &addresses(), self.now);
        let lines = plan.actions.iter().map(ToString::to_string).collect();
        for action in plan.actions {
            match action.write {
                Write::Create { object, .. } => {
                    self.put(object);
                }
                Write::Patch { target, patch, .. } => {
                    let mut object = self.get(&target.resource.kind, &target.key.to_string());
                    object["apiVersion"] = json!(target.resource.api_version);
                    object["kind"] = json!(target.resource.kind);
                    json_patch::merge(&mut object, &patch);
                    if patch.get("spec").is_some() {
                        let generation = object["metadata"]["generation"].as_i64().unwrap_or(1);
                        object["metadata"]["generation"] = json!(generation + 1);
                    }
                    self.put(object);
                }
                Write::Delete { target, uid, .. } => self.snapshot.answered_gone(&target, &uid),
                Write::Bind { pod, node, .. } => {
                    let mut object = self.get("Pod", &pod.to_string());
                    object["spec"]["nodeName"] = json!(node);
                    self.put(object);
                }
                Write::Finalize { .. } | Write::Note => {}
            }
        }
        lines
    }

    /// Carries out plans until there is nothing to do.
    fn settle(&mut self) -> &mut Self {
        for _ in 0..50 {
            if self.step().is_empty() {
                return self;
            }
        }
        panic!("never settles: {:#?}", self.plan());
    }

    fn get(&self, kind: &str, key: &str) -> Value {
        let (namespace, name) = key.split_once('/').unwrap_or(("", key));
        let key = Key::new(namespace, name);
        let snapshot = &self.snapshot;
        let mut object = match kind {
            "Pod" => json!(*snapshot.pods[&key]),
            "Node" => json!(*snapshot.nodes[&key]),
            "Service" => json!(*snapshot.services[&key]),
            "Endpoints" => json!(*snapshot.endpoints[&key]),
            "EndpointSlice" => json!(*snapshot.endpoint_slices[&key]),
            "Deployment" => json!(*snapshot.deployments[&key]),
            "ReplicaSet" => json!(*snapshot.replica_sets[&key]),
            "DaemonSet" => json!(*snapshot.daemon_sets[&key]),
            "StatefulSet" => json!(*snapshot.stateful_sets[&key]),
            "Job" => json!(*snapshot.jobs[&key]),
            "Namespace" => json!(*snapshot.namespaces[&key]),
            _ => panic!("{kind} is not held whole"),
        };
        if object["apiVersion"].is_null() {
            object["kind"] = json!(kind);
        }
        object
    }

    fn slice(&self) -> Value {
        json!(**self.snapshot.endpoint_slices.values().next().unwrap())
    }

    fn pods(&self) -> Vec<String> {
        self.snapshot.pods.keys().map(|key| key.name.clone()).collect()
    }

    /// The node reports every pod whose name begins so as running and ready.
    fn ready(&mut self, prefix: &str) -> &mut Self {
        self.report(prefix, "Running", "True")
    }

    fn report(&mut self, prefix: &str, phase: &str, ready: &str) -> &mut Self {
        for name in self.pods().into_iter().filter(|name| name.starts_with(prefix)) {
            let mut pod = self.get("Pod", &format!("default/{name}"));
            let since = self.now.to_string();
            pod["status"] = json!({
                "phase": phase,
                "podIP": format!("10.42.0.{}", pod["metadata"]["resourceVersion"].as_str().unwrap()),
                "conditions": [{ "type": "Ready", "status": ready, "lastTransitionTime": since }],
            });
            self.put(pod);
        }
        self
    }

    fn node(&mut self, name: &str, spec: Value) -> &mut Self {
        let ready = json!([{ "type": "Ready", "status": "True" }]);
        self.put(json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name } },
            "spec": spec,
            "status": { "conditions": ready },
        }))
    }

    fn edit(&mut self, kind: &str, key: &str, patch: Value) -> &mut Self {
        let mut object = self.get(kind, key);
        json_patch::merge(&mut object, &patch);
        let generation = object["metadata"]["generation"].as_i64().unwrap_or(1);
        object["metadata"]["generation"] = json!(generation + 1);
        self.put(object)
    }
}

fn template(image: &str) -> Value {
    json!({
        "metadata": { "labels": { "app": "web" } },
        "spec": { "containers": [{ "name": "web", "image": image, "ports": [{ "name": "http", "containerPort": 8080 }] }] },
    })
}

fn deployment(replicas: u32, image: &str) -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": { "name": "web", "generation": 1 },
        "spec": {
            "replicas": replicas,
            "selector": { "matchLabels": { "app": "web" } },
            "strategy": { "type": "RollingUpdate" },
            "template": template(image),
        },
    })
}

fn service(spec: Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "web" }, "spec": spec })
}

/// Replicas of the ReplicaSets of `web`, by image.
fn replicas(story: &Story) -> Vec<(String, i64)> {
    let mut sets: Vec<_> = story
        .snapshot
        .replica_sets
        .values()
        .map(|set| {
            let set = json!(**set);
            let image = set["spec"]["template"]["spec"]["containers"][0]["image"]
                .as_str()
                .unwrap()
                .to_owned();
            (image, set["spec"]["replicas"].as_i64().unwrap())
        })
        .collect();
    sets.sort();
    sets
}

#[test]
fn a_deployment_becomes_available_by_way_of_a_replica_set_and_pods() {
    let mut story = Story::new();
    story.node("west", json!({})).put(deployment(2, "v1")).settle();
    assert_eq!(replicas(&story), [("v1".into(), 2)]);
    assert_eq!(story.pods().len(), 2);
    story.ready("web-").settle();
    let status = story.get("Deployment", "default/web")["status"].clone();
    assert_eq!(status["availableReplicas"], 2);
    let conditions: Vec<_> = status["conditions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|condition| {
            (
                condition["type"].as_str().unwrap(),
                condition["reason"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        conditions,
        [
            ("Available", "MinimumReplicasAvailable"),
            ("Progressing", "NewReplicaSetAvailable")
        ]
    );
    assert_eq!(story.plan(), [""; 0]);
}

#[test]
fn a_generation_is_observed_only_when_its_revision_is_written() {
    let mut story = Story::new();
    story.node("west", json!({})).put(deployment(0, "v1"));
    for _ in 0..6 {
        story.step();
        let seen = story.get("Deployment", "default/web");
        let revision = &seen["metadata"]["annotations"]["deployment.kubernetes.io/revision"];
        assert!(
            seen["status"]["observedGeneration"].is_null() || revision == "1",
            "{seen}"
        );
    }
    assert_eq!(story.plan(), [""; 0]);
}

#[test]
fn a_rolling_update_never_has_fewer_available_or_more_pods_than_allowed() {
    let mut story = Story::new();
    story
        .node("west", json!({}))
        .put(deployment(4, "v1"))
        .settle()
        .ready("web-")
        .settle();
    story.edit(
        "Deployment",
        "default/web",
        json!({ "spec": { "template": template("v2") } }),
    );
    let mut history = Vec::new();
    for _ in 0..40 {
        story.step();
        let total: i64 = replicas(&story).iter().map(|(_, replicas)| replicas).sum();
        let available = story
            .snapshot
            .pods
            .values()
            .filter(|pod| super::pods::is_ready(pod))
            .count();
        assert!(
            total <= 5 && available >= 3,
            "{total} pods, {available} available"
        );
        if history.last() != Some(&replicas(&story)) {
            history.push(replicas(&story));
        }
        // The node makes one pod ready at a time.
        let waiting = story
            .snapshot
            .pods
            .values()
            .find(|pod| !super::pods::is_ready(pod));
        if let Some(name) = waiting.and_then(|pod| pod.metadata.name.clone()) {
            story.ready(&name);
        }
    }
    assert_eq!(history.last().unwrap(), &[("v1".into(), 0), ("v2".into(), 4)]);
    assert_eq!(
        story.get("Deployment", "default/web")["metadata"]["annotations"],
        json!({
            "deployment.kubernetes.io/revision": "2",
        })
    );
    assert_eq!(story.plan(), [""; 0]);
}

#[test]
fn an_update_that_never_becomes_ready_stops_and_is_reported() {
    let mut story = Story::new();
    story
        .node("west", json!({}))
        .put(deployment(4, "v1"))
        .settle()
        .ready("web-")
        .settle();
    story
        .edit(
            "Deployment",
            "default/web",
            json!({ "spec": { "template": template("broken") } }),
        )
        .settle();
    assert_eq!(replicas(&story), [("broken".into(), 2), ("v1".into(), 3)]);
    story.now = super::pods::after(story.now, 600);
    story.settle();
    let conditions = story.get("Deployment", "default/web")["status"]["conditions"].clone();
    assert_eq!(conditions[1]["reason"], "ProgressDeadlineExceeded");
}

#[test]
fn an_undo_reuses_the_old_replica_set_under_a_new_revision() {
    let mut story = Story::new();
    story
        .node("west", json!({}))
        .put(deployment(1, "v1"))
        .settle()
        .ready("web-")
        .settle();
    for image in ["v2", "v1"] {
        story.edit(
            "Deployment",
            "default/web",
            json!({ "spec": { "template": template(image) } }),
        );
        story.settle().ready("web-").settle().ready("web-").settle();
    }
    assert_eq!(replicas(&story), [("v1".into(), 1), ("v2".into(), 0)]);
    let annotations = story.get("Deployment", "default/web")["metadata"]["annotations"].clone();
    assert_eq!(annotations["deployment.kubernetes.io/revision"], "3");
}

#[test]
fn a_recreated_deployment_starts_anew_only_when_the_old_pods_are_gone() {
    let mut story = Story::new();
    let mut old = deployment(2, "v1");
    old["spec"]["strategy"] = json!({ "type": "Recreate" });
    story
        .node("west", json!({}))
        .put(old)
        .settle()
        .ready("web-")
        .settle();
    story.edit(
        "Deployment",
        "default/web",
        json!({ "spec": { "template": template("v2") } }),
    );
    let mut history = Vec::new();
    while !story.step().is_empty() {
        history.push(replicas(&story));
    }
    assert!(
        history.contains(&vec![("v1".into(), 0), ("v2".into(), 0)]),
        "{history:?}"
    );
    assert_eq!(replicas(&story), [("v1".into(), 0), ("v2".into(), 2)]);
}

#[test]
fn a_paused_deployment_is_scaled_but_not_rolled() {
    let mut story = Story::new();
    story.node("west", json!({})).put(deployment(1, "v1")).settle();
    let patch = json!({ "spec": { "paused": true, "replicas": 3, "template": template("v2") } });
    story.edit("Deployment", "default/web", patch).settle();
    assert_eq!(replicas(&story), [("v1".into(), 3)]);
}

#[test]
fn the_pod_that_is_missed_least_goes_first() {
    let mut story = Story::new();
    story
        .node("west", json!({}))
        .put(deployment(3, "v1"))
        .settle()
        .ready("web-")
        .settle();
    let unready = story.pods().pop().unwrap();
    story.report(&unready, "Running", "False").settle();
    story
        .edit("Deployment", "default/web", json!({ "spec": { "replicas": 2 } }))
        .settle();
    assert!(
        story.pods().len() == 2 && !story.pods().contains(&unready),
        "{:?}",
        story.pods()
    );
}

#[test]
fn pods_are_spread_over_nodes_that_they_fit() {
    let mut story = Story::new();
    let taints = json!({ "taints": [{ "key": "dedicated", "value": "db", "effect": "NoSchedule" }] });
    story
        .node("a", json!({}))
        .node("b", json!({}))
        .node("c", taints)
        .node("d", json!({ "unschedulable": true }));
    story.put(deployment(4, "v1")).settle();
    let mut nodes: Vec<_> = story
        .snapshot
        .pods
        .values()
        .map(|pod| pod.spec.clone().unwrap().node_name.unwrap())
        .collect();
    nodes.sort();
    assert_eq!(nodes, ["a", "a", "b", "b"]);
}

#[test]
fn a_pod_that_fits_nowhere_says_why() {
    let mut story = Story::new();
    story.node("a", json!({ "unschedulable": true }));
    let spec = json!({ "containers": [], "nodeSelector": { "zone": "moon" } });
    story
        .put(json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "lost" }, "spec": spec }))
        .settle();
    assert_eq!(
        story.get("Pod", "default/lost")["status"]["conditions"][0]["message"],
        "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector."
    );
}

#[test]
fn slices_and_endpoints_follow_readiness_and_resolve_named_ports() {
    let mut story = Story::new();
    let ports = json!([{ "name": "http", "port": 80, "targetPort": "http", "protocol": "TCP" }]);
    story
        .node("west", json!({}))
        .put(deployment(2, "v1"))
        .settle()
        .ready("web-")
        .settle();
    let sick = story.pods().pop().unwrap();
    story.report(&sick, "Running", "False");
    story
        .put(service(
            json!({ "selector": { "app": "web" }, "clusterIP": "10.43.1.1", "ports": ports }),
        ))
        .settle();
    let slice = story.slice();
    assert_eq!(
        slice["ports"],
        json!([{ "name": "http", "port": 8080, "protocol": "TCP" }])
    );
    let mut ready: Vec<_> = slice["endpoints"]
        .as_array()
        .unwrap()
        .iter()
        .map(|endpoint| endpoint["conditions"]["ready"].as_bool().unwrap())
        .collect();
    ready.sort_unstable();
    assert_eq!(ready, [false, true]);
    let subsets = story.get("Endpoints", "default/web")["subsets"].clone();
    assert_eq!(subsets[0]["addresses"].as_array().unwrap().len(), 1);
    assert_eq!(
        subsets[0]["notReadyAddresses"][0]["targetRef"]["name"],
        sick.as_str()
    );
    assert_eq!(
        subsets[0]["ports"],
        json!([{ "name": "http", "port": 8080, "protocol": "TCP" }])
    );
}

#[test]
fn a_service_without_pods_has_one_empty_slice() {
    let mut story = Story::new();
    story
        .put(service(
            json!({ "selector": { "app": "none" }, "ports": [{ "port": 80 }] }),
        ))
        .settle();
    let slice = story.slice();
    assert_eq!(
        (&slice["endpoints"], &slice["addressType"]),
        (&json!([]), &json!("IPv4"))
    );
}

#[test]
fn a_terminating_pod_still_serves_but_is_not_ready() {
    let mut story = Story::new();
    story
        .node("west", json!({}))
        .put(deployment(1, "v1"))
        .settle()
        .ready("web-")
        .settle();
    story
        .put(service(
            json!({ "selector": { "app": "web" }, "ports": [{ "port": 80 }] }),
        ))
        .settle();
    let name = story.pods().pop().unwrap();
    story.edit(
        "Pod",
        &format!("default/{name}"),
        json!({ "metadata": { "deletionTimestamp": "2026-05-01T12:00:30Z" } }),
    );
    story.step();
    let slice = story.slice();
    let expected = json!({ "ready": false, "serving": true, "terminating": true });
    assert_eq!(slice["endpoints"][0]["conditions"], expected);
    assert_eq!(story.get("Endpoints", "default/web")["subsets"], json!([]));
}

#[test]
fn hand_written_endpoints_are_mirrored_with_their_labels_until_their_service_goes() {
    let mut story = Story::new();
    story.put(service(json!({ "ports": [{ "name": "http", "port": 80 }] })));
    story.put(json!({
        "apiVersion": "v1",
        "kind": "Endpoints",
        "metadata": {
            "name": "web",
            "labels": { "mirror": "yes" },
            "annotations": { "gateway": "here", "endpoints.kubernetes.io/last-change-trigger-time": "now" },
        },
        "subsets": [{ "addresses": [{ "ip": "172.31.1.1" }], "ports": [{ "name": "http", "port": 4143 }] }],
    }));
    story.settle();
    let slice = story.slice();
    assert_eq!(
        slice["metadata"]["labels"],
        json!({
            "mirror": "yes",
            "kubernetes.io/service-name": "web",
            "endpointslice.kubernetes.io/managed-by": "endpointslicemirroring-controller.k8s.io",
        })
    );
    assert_eq!(slice["metadata"]["annotations"], json!({ "gateway": "here" }));
    assert_eq!(slice["metadata"]["ownerReferences"][0]["kind"], "Endpoints");
    assert_eq!(
        slice["endpoints"],
        json!([{ "addresses": ["172.31.1.1"], "conditions": { "ready": true } }])
    );
    assert_eq!(
        slice["ports"],
        json!([{ "name": "http", "port": 4143, "protocol": "TCP" }])
    );
    story.snapshot.services.clear();
    assert_eq!(
        story.plan(),
        ["delete Endpoints default/web unless Service default/web"]
    );
}

#[test]
fn a_load_balancer_gets_an_address_of_its_own() {
    let mut story = Story::new();
    for name in ["first", "second"] {
        let mut gateway = service(json!({ "type": "LoadBalancer", "ports": [{ "port": 4143 }] }));
        gateway["metadata"]["name"] = json!(name);
        story.put(gateway);
    }
    story.settle();
    for (name, ip) in [("first", "172.31.1.1"), ("second", "172.31.1.2")] {
        let ingress =
            story.get("Service", &format!("default/{name}"))["status"]["loadBalancer"]["ingress"].clone();
        assert_eq!(ingress[0]["ip"], ip);
    }
}

#[test]
fn a_namespace_empties_before_it_is_finalized() {
    let mut story = Story::new();
    story.put(deployment(1, "v1"));
    story.put(json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": { "name": "default", "deletionTimestamp": "2026-05-01T12:00:00Z" },
        "spec": { "finalizers": ["kubernetes"] },
        "status": { "phase": "Terminating" },
    }));
    assert_eq!(story.deeds(), ["delete Deployment default/web"]);
    story.snapshot.deployments.clear();
    assert_eq!(story.plan(), ["finalize default"]);
}

#[test]
fn a_namespace_gets_an_account_and_a_copy_of_the_ca() {
    let mut story = Story::new();
    let ca = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": { "name": "kube-root-ca.crt", "namespace": "kube-system" },
        "data": { "ca.crt": "pem" },
    });
    story
        .put(ca)
        .put(json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "shop" } }));
    assert_eq!(
        story.plan(),
        [
            "create ServiceAccount shop/default",
            "create ConfigMap shop/kube-root-ca.crt"
        ]
    );
    story.settle();
}

#[test]
fn dependents_of_an_absent_owner_are_deleted_after_asking_once_more() {
    let mut story = Story::new();
    let mut set = deployment(1, "v1");
    set["kind"] = json!("ReplicaSet");
    set["metadata"]["ownerReferences"] = json!([owner("Deployment", "web", "gone")]);
    set["spec"]["replicas"] = json!(0);
    story.put(set);
    assert_eq!(
        story.deeds(),
        ["delete ReplicaSet default/web unless Deployment default/web"]
    );
}

#[test]
fn a_foreground_deletion_waits_for_blocking_dependents() {
    let mut story = Story::new();
    let mut parent = deployment(0, "v1");
    parent["metadata"]["uid"] = json!("parent");
    parent["metadata"]["deletionTimestamp"] = json!("2026-05-01T12:00:00Z");
    parent["metadata"]["finalizers"] = json!(["foregroundDeletion"]);
    let mut child = deployment(0, "v1");
    child["kind"] = json!("ReplicaSet");
    child["metadata"]["name"] = json!("child");
    child["metadata"]["ownerReferences"] = json!([owner("Deployment", "web", "parent")]);
    story.put(parent).put(child);
    assert_eq!(story.deeds(), ["delete ReplicaSet default/child Foreground"]);
    story.snapshot.replica_sets.clear();
    assert_eq!(
        story.deeds(),
        [r#"patch Deployment default/web {"metadata":{"finalizers":[],"resourceVersion":"1"}}"#]
    );
}

#[test]
fn an_orphaning_deletion_sets_dependents_free() {
    let mut story = Story::new();
    let mut parent = deployment(0, "v1");
    parent["metadata"]["uid"] = json!("parent");
    parent["metadata"]["deletionTimestamp"] = json!("2026-05-01T12:00:00Z");
    parent["metadata"]["finalizers"] = json!(["orphan"]);
    let mut child = deployment(0, "v1");
    child["kind"] = json!("ReplicaSet");
    child["metadata"]["name"] = json!("child");
    child["metadata"]["ownerReferences"] = json!([owner("Deployment", "web", "parent")]);
    story.put(parent).put(child);
    assert_eq!(
        story.deeds(),
        [r#"patch ReplicaSet default/child {"metadata":{"ownerReferences":[],"resourceVersion":"2"}}"#]
    );
    story.settle();
    assert_eq!(
        story.get("Deployment", "default/web")["metadata"]["finalizers"],
        json!([])
    );
}

fn owner(kind: &str, name: &str, uid: &str) -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": kind,
        "name": name,
        "uid": uid,
        "controller": true,
        "blockOwnerDeletion": true,
    })
}

#[test]
fn a_job_runs_until_enough_pods_succeeded_and_is_removed_after_its_time() {
    let mut story = Story::new();
    story
        .node("west", json!({}))
        .put(job(json!({ "completions": 2, "ttlSecondsAfterFinished": 60 })));
    for _ in 0..2 {
        story.settle();
        assert_eq!(story.get("Job", "default/task")["status"]["active"], 1);
        story.report("task-", "Succeeded", "False");
    }
    story.settle();
    let status = story.get("Job", "default/task")["status"].clone();
    assert_eq!(
        (&status["succeeded"], &status["conditions"][1]["type"]),
        (&json!(2), &json!("Complete"))
    );
    story.now = super::pods::after(story.now, 60);
    assert_eq!(story.plan(), ["delete Job default/task Foreground"]);
}

#[test]
fn a_failing_job_backs_off_and_gives_up() {
    let mut story = Story::new();
    story
        .node("west", json!({}))
        .put(job(json!({ "backoffLimit": 1 })))
        .settle();
    story.report("task-", "Failed", "False").settle();
    assert_eq!(story.get("Job", "default/task")["status"]["active"], json!(null));
    story.now = super::pods::after(story.now, 10);
    story.settle();
    assert_eq!(story.get("Job", "default/task")["status"]["active"], 1);
    story.report("task-", "Failed", "False").settle();
    let status = story.get("Job", "default/task")["status"].clone();
    assert_eq!(status["conditions"][1]["reason"], "BackoffLimitExceeded");
}

fn job(spec: Value) -> Value {
    let mut job = json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": { "name": "task", "generation": 1 },
        "spec": { "completions": 1, "parallelism": 1, "template": template("task") },
    });
    json_patch::merge(&mut job["spec"], &spec);
    job
}

#[test]
fn a_daemon_runs_on_every_node_and_moves_to_a_new_template() {
    let mut story = Story::new();
    let daemon = json!({
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": { "name": "web", "generation": 1 },
        "spec": { "selector": { "matchLabels": { "app": "web" } }, "template": template("v1") },
    });
    story
        .node("a", json!({}))
        .node("b", json!({}))
        .put(daemon)
        .settle();
    let mut nodes: Vec<_> = story
        .snapshot
        .pods
        .values()
        .map(|pod| pod.spec.clone().unwrap().node_name.unwrap())
        .collect();
    nodes.sort();
    assert_eq!(nodes, ["a", "b"]);
    story.ready("web-").settle();
    story.edit(
        "DaemonSet",
        "default/web",
        json!({ "spec": { "template": template("v2") } }),
    );
    for _ in 0..3 {
        story.settle().ready("web-").settle();
    }
    let status = story.get("DaemonSet", "default/web")["status"].clone();
    assert_eq!(
        (&status["updatedNumberScheduled"], &status["numberAvailable"]),
        (&json!(2), &json!(2))
    );
}

#[test]
fn a_stateful_set_starts_in_order_and_shrinks_from_the_end() {
    let mut story = Story::new();
    let set = json!({
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": { "name": "db", "generation": 1 },
        "spec": {
            "replicas": 3,
            "serviceName": "db",
            "selector": { "matchLabels": { "app": "web" } },
            "template": template("v1"),
        },
    });
    story.node("west", json!({})).put(set).settle();
    assert_eq!(story.pods(), ["db-0"]);
    story
        .ready("db-")
        .settle()
        .ready("db-")
        .settle()
        .ready("db-")
        .settle();
    assert_eq!(story.pods(), ["db-0", "db-1", "db-2"]);
    story
        .edit("StatefulSet", "default/db", json!({ "spec": { "replicas": 1 } }))
        .settle();
    assert_eq!(story.pods(), ["db-0"]);
    assert_eq!(story.get("Pod", "default/db-0")["spec"]["subdomain"], "db");
}

#[test]
fn a_lost_node_is_tainted_and_its_pods_are_not_ready_until_it_returns() {
    let mut story = Story::new();
    let lease = |renewed: &str| {
        json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": { "name": "west", "namespace": "kube-node-lease" },
            "spec": { "renewTime": renewed },
        })
    };
    story
        .node("west", json!({}))
        .put(lease("2026-05-01T12:00:00.000000Z"));
    story.put(deployment(1, "v1")).settle().ready("web-").settle();
    assert_eq!(story.plan(), [""; 0]);
    let is_ready = |story: &Story| super::pods::is_ready(story.snapshot.pods.values().next().unwrap());
    story.now = super::pods::after(story.now, 40);
    story.settle();
    assert_eq!(
        story.get("Node", "west")["spec"]["taints"][0]["key"],
        "node.kubernetes.io/unreachable"
    );
    assert!(!is_ready(&story));
    story.put(lease("2026-05-01T12:00:40.000000Z")).settle();
    assert_eq!(story.get("Node", "west")["spec"]["taints"], json!([]));
    assert!(is_ready(&story));
}

#[test]
fn pods_of_a_vanished_node_are_removed_at_once() {
    let mut story = Story::new();
    story.node("west", json!({})).put(deployment(1, "v1")).settle();
    story.snapshot.nodes.clear();
    let pod = story.pods().pop().unwrap();
    assert_eq!(
        story.deeds(),
        [format!("delete Pod default/{pod} AtOnce unless Node west")]
    );
}

#[test]
fn an_answer_that_arrives_after_the_deletion_was_seen_changes_nothing() {
    let mut story = Story::new();
    story.put(deployment(0, "v1"));
    let object = story.get("Deployment", "default/web");
    let key = Key::new("default", "web");
    story.snapshot.watched(
        |snapshot| &mut snapshot.deployments,
        Change::Deleted(key, "Deployment-web".into()),
    );
    story.put(object);
    assert!(story.snapshot.deployments.is_empty());
}

/// A plan that patches the object of this name, so.
fn patch_of(name: &str, value: u32) -> Plan {
    let resource = Resource::of::<k8s_openapi::api::core::v1::ConfigMap>();
    let target = Target {
        resource,
        key: Key::new("default", name),
    };
    let mut plan = Plan::new(now());
    plan.patch(&target, target.clone(), json!({ "data": value }));
    plan
}

/// How many writes of the plan may start, and how long the others wait.
fn admit(scopes: &mut Scopes, plan: Plan, at: Instant) -> (usize, Option<Duration>) {
    let (admitted, wake) = scopes.admit(plan, at);
    (admitted.len(), wake.map(|wake| wake - at))
}

#[test]
fn an_object_is_written_for_only_when_its_last_writes_were_answered() {
    let (mut scopes, at) = (Scopes::default(), Instant::now());
    assert_eq!(admit(&mut scopes, patch_of("a", 1), at), (1, None));
    assert_eq!(admit(&mut scopes, patch_of("a", 2), at), (0, None));
    assert_eq!(admit(&mut scopes, patch_of("b", 1), at), (1, None));
    scopes.finished(&patch_of("a", 1).actions[0].scope, Outcome::Done, at);
    assert_eq!(admit(&mut scopes, patch_of("a", 2), at), (1, None));
}

#[test]
fn failures_and_writes_without_effect_are_repeated_ever_more_slowly() {
    for outcome in [Outcome::Failed, Outcome::Done] {
        let (mut scopes, mut at) = (Scopes::default(), Instant::now());
        let scope = patch_of("a", 1).actions[0].scope.clone();
        let mut waits = Vec::new();
        for _ in 0..4 {
            assert_eq!(admit(&mut scopes, patch_of("a", 1), at), (1, None));
            scopes.finished(&scope, outcome, at);
            let (admitted, wait) = admit(&mut scopes, patch_of("a", 1), at);
            assert_eq!(admitted, 0);
            waits.push(wait.unwrap());
            at += wait.unwrap();
        }
        assert_eq!(waits, [BACKOFF, BACKOFF * 2, BACKOFF * 4, BACKOFF * 8]);
        // Something else to write, written well, ends it.
        admit(&mut scopes, patch_of("a", 2), at);
        scopes.finished(&scope, Outcome::Done, at);
        assert_eq!(admit(&mut scopes, patch_of("a", 3), at + BACKOFF * 16).0, 1);
    }
}

#[test]
fn nothing_is_created_in_a_namespace_that_is_going() {
    let mut story = Story::new();
    story.put(deployment(1, "v1")).put(json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": { "name": "default", "deletionTimestamp": "2026-05-01T12:00:00Z" },
        "status": { "phase": "Terminating" },
    }));
    assert_eq!(story.deeds(), ["delete Deployment default/web"]);
}
