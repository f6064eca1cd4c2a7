//! Replicas of a Deployment that don't go down together.
//!
//! Pure; what is replicated, and whether it should be, is decided by those who render it.

use serde_json::{Value, json};

/// Keeps replicas on different nodes, in different zones where there are any, and replaces them one at a time.
pub(crate) fn keep_apart(deployment: &mut Value, selector: &Value) {
    let term = |topology: &str| json!({"labelSelector": {"matchLabels": selector}, "topologyKey": topology});
    deployment["spec"]["strategy"] = json!({"rollingUpdate": {"maxUnavailable": 1}});
    deployment["spec"]["template"]["spec"]["affinity"] = json!({"podAntiAffinity": {
        "preferredDuringSchedulingIgnoredDuringExecution": [
            {"weight": 100, "podAffinityTerm": term("topology.kubernetes.io/zone")},
        ],
        "requiredDuringSchedulingIgnoredDuringExecution": [term("kubernetes.io/hostname")],
    }});
}

/// Lets only one replica be evicted at a time.
pub(crate) fn budget(deployment: &Value, selector: &Value) -> Value {
    json!({
        "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": deployment["metadata"],
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": selector}},
    })
}
