//! The node as the API shows it: the Node object, its Lease, and the events it reports.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::Agent;
use super::probe::chain;

const LEASE_PERIOD: Duration = Duration::from_secs(10);
const LEASE_DURATION_S: u32 = 40;
/// A Node's conditions are written again after so many lease renewals, as a sign of life for older clients.
const STATUS_EVERY: u32 = 30;
const PODS_MAX: u32 = 250;
const FIELD_MANAGER: &str = "hawser-node";
/// Events that may wait for the API server; more are lost, as events may be.
const EVENTS_MAX: usize = 256;

/// What the machine has, by resource name.
pub(crate) fn capacity() -> BTreeMap<String, Quantity> {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let memory = std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| memory_total(&text));
    let mut all = BTreeMap::from([
        ("cpu".to_owned(), Quantity(cpus.to_string())),
        ("pods".to_owned(), Quantity(PODS_MAX.to_string())),
        ("ephemeral-storage".to_owned(), Quantity("16Gi".to_owned())),
    ]);
    all.extend(memory.map(|kib| ("memory".to_owned(), Quantity(format!("{kib}Ki")))));
    all
}

fn memory_total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.split_whitespace().next()?.parse().ok()
}

fn seconds(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn micros(at: Timestamp) -> String {
    format!("{at:.6}")
}

fn node(agent: &Agent) -> Value {
    let name = &agent.config.node_name;
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let mut labels = json!({
        "kubernetes.io/hostname": name,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": architecture,
    });
    for (key, value) in &agent.config.labels {
        labels[key] = json!(value);
    }
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": labels},
    })
}

fn node_status(agent: &Agent, since: Timestamp, now: Timestamp) -> Value {
    let condition = |kind: &str, status: &str, reason: &str, message: &str| {
        json!({
            "type": kind, "status": status, "reason": reason, "message": message,
            "lastHeartbeatTime": seconds(now), "lastTransitionTime": seconds(since),
        })
    };
    let known = &agent.config.addresses;
    let mut addresses = vec![json!({"type": "InternalIP", "address": known.node.to_string()})];
    if let Some(external) = known.external {
        addresses.push(json!({"type": "ExternalIP", "address": external.to_string()}));
    }
    addresses.push(json!({"type": "Hostname", "address": agent.config.node_name}));
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let endpoints = agent
        .config
        .port
        .map(|port| json!({"kubeletEndpoint": {"Port": port}}));
    json!({"status": {
        "daemonEndpoints": endpoints,
        "capacity": capacity(),
        "allocatable": capacity(),
        "addresses": addresses,
        "conditions": [
            condition("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
            condition("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
            condition("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
            condition("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
        ],
        "nodeInfo": {
            "kubeletVersion": concat!("v1.33.0+hawser-", env!("CARGO_PKG_VERSION")),
            "kubeProxyVersion": "",
            "containerRuntimeVersion": concat!("hawser://", env!("CARGO_PKG_VERSION")),
            "kernelVersion": kernel.trim(),
            "osImage": "the host's own",
            "operatingSystem": "linux",
            "architecture": node(agent)["metadata"]["labels"]["kubernetes.io/arch"],
            "machineID": "", "systemUUID": "", "bootID": "",
        },
    }})
}

/// Registers the node and shows, from then on, that it lives.
pub(super) async fn register(agent: Arc<Agent>) {
    use k8s_openapi::api::coordination::v1::Lease;
    use k8s_openapi::api::core::v1::Node;

    let since = Timestamp::now();
    let name = agent.config.node_name.as_str();
    let nodes: Api<Node> = Api::all(agent.config.client.clone());
    let leases: Api<Lease> = Api::namespaced(agent.config.client.clone(), "kube-node-lease");
    let mut round: u32 = 0;
    let mut pause = Duration::from_millis(50);
    loop {
        let now = Timestamp::now();
        let beat = async {
            if round.is_multiple_of(STATUS_EVERY) {
                let apply = PatchParams::apply(FIELD_MANAGER).force();
                let node: Node = serde_json::from_value(node(&agent)).map_err(kube::Error::SerdeError)?;
                match nodes.create(&PostParams::default(), &node).await {
                    Err(kube::Error::Api(status)) if status.code == 409 => {
                        nodes.patch(name, &apply, &Patch::Apply(&node)).await?
                    }
                    other => other?,
                };
                let status = node_status(&agent, since, now);
                nodes
                    .patch_status(name, &PatchParams::default(), &Patch::Merge(status))
                    .await?;
            }
            let spec = json!({
                "holderIdentity": name, "leaseDurationSeconds": LEASE_DURATION_S, "renewTime": micros(now),
            });
            let renewal = leases
                .patch(
                    name,
                    &PatchParams::default(),
                    &Patch::Merge(json!({"spec": spec})),
                )
                .await;
            match renewal {
                Err(kube::Error::Api(status)) if status.code == 404 => {
                    let lease =
                        json!({"metadata": {"name": name, "namespace": "kube-node-lease"}, "spec": spec});
                    let lease: Lease = serde_json::from_value(lease).map_err(kube::Error::SerdeError)?;
                    leases.create(&PostParams::default(), &lease).await
                }
                other => other,
            }
        };
        match beat.await {
            Ok(_) => {
                round = round.wrapping_add(1);
                pause = LEASE_PERIOD;
            }
            Err(error) => {
                tracing::warn!(node = name, error = chain(&error), "registering the node");
                pause = (pause * 2).min(LEASE_PERIOD);
            }
        }
        tokio::time::sleep(pause).await;
    }
}

/// Writes events about pods, in the background: nothing waits for them and nothing depends on them.
pub(super) struct Recorder {
    queue: mpsc::Sender<Value>,
    source: Value,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Severity {
    Normal,
    Warning,
}

impl Recorder {
    pub(super) fn new(client: Client, node: &str) -> Self {
        let (queue, mut events) = mpsc::channel::<Value>(EVENTS_MAX);
        // Ends with the last sender, which is the agent's.
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                let namespace = event["metadata"]["namespace"].as_str().unwrap_or_default();
                let api: Api<k8s_openapi::api::core::v1::Event> = Api::namespaced(client.clone(), namespace);
                let Ok(event) = serde_json::from_value(event) else {
                    continue;
                };
                if let Err(error) = api.create(&PostParams::default(), &event).await {
                    tracing::debug!(error = chain(&error), "writing an event");
                }
            }
        });
        Self {
            queue,
            source: json!({"component": "kubelet", "host": node}),
        }
    }

    pub(super) fn record(
        &self,
        pod: &Pod,
        container: Option<&str>,
        severity: Severity,
        reason: &str,
        message: &str,
    ) {
        let metadata = &pod.metadata;
        let now = Timestamp::now();
        let name = metadata.name.as_deref().unwrap_or_default();
        let event = json!({
            "metadata": {
                "name": format!("{name}.{:x}", now.as_nanosecond()),
                "namespace": metadata.namespace,
            },
            "involvedObject": {
                "apiVersion": "v1", "kind": "Pod", "name": name, "namespace": metadata.namespace,
                "uid": metadata.uid, "resourceVersion": metadata.resource_version,
                "fieldPath": container.map(|container| format!("spec.containers{{{container}}}")),
            },
            "reason": reason,
            "message": message,
            "type": format!("{severity:?}"),
            "source": self.source,
            "reportingComponent": "kubelet",
            "reportingInstance": self.source["host"],
            "firstTimestamp": seconds(now),
            "lastTimestamp": seconds(now),
            "count": 1,
        });
        // Full: the event is lost.
        let _ = self.queue.try_send(event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_the_total_of_the_machine() {
        assert_eq!(
            memory_total("MemTotal:       16316412 kB\nMemFree:  1 kB\n"),
            Some(16_316_412)
        );
        assert_eq!(memory_total(""), None);
    }
}
