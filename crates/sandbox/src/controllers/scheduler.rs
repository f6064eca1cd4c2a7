//! Gives each pod a node that it fits.
//!
//! Fits by selector, required node affinity and taints. Resource requests are deliberately not compared with the
//! node's capacity: nodes of a sandbox all share one machine, so refusing a pod would protect nothing.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, Taint, Toleration,
};
use serde_json::json;

use super::plan::{Note, Plan, View, Write, set_condition};
use super::pods::{is_finished, is_terminating, note};
use super::snapshot::Target;

const COMPONENT: &str = "default-scheduler";

pub(crate) fn plan(view: &View<'_>, plan: &mut Plan) {
    let waiting = view.snapshot.pods.values().filter(|pod| waits(pod));
    let mut load: BTreeMap<&str, usize> = BTreeMap::new();
    for pod in view.snapshot.pods.values().filter(|pod| !is_finished(pod)) {
        if let Some(node) = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) {
            *load.entry(node).or_default() += 1;
        }
    }
    for pod in waiting {
        let Some(spec) = &pod.spec else { continue };
        let scope = Target::of(&**pod);
        let mut refusals: BTreeMap<String, usize> = BTreeMap::new();
        let mut best: Option<(usize, &str)> = None;
        for node in view.snapshot.nodes.values() {
            let name = node.metadata.name.as_deref().unwrap_or_default();
            match refusal(spec, node) {
                Some(reason) => *refusals.entry(reason).or_default() += 1,
                None => {
                    let candidate = (load.get(name).copied().unwrap_or(0), name);
                    best = Some(best.map_or(candidate, |best| best.min(candidate)));
                }
            }
        }
        match best {
            Some((_, node)) => {
                *load.entry(node).or_default() += 1;
                let message = format!("Successfully assigned {} to {node}", scope.key);
                let note = note(&pod.metadata, COMPONENT, "Scheduled", message);
                let uid = pod.metadata.uid.clone().unwrap_or_default();
                let write = Write::Bind {
                    pod: scope.key.clone(),
                    uid,
                    node: node.to_owned(),
                };
                plan.act_and_note(&scope, write, note);
            }
            None => {
                let reasons: Vec<_> = refusals
                    .iter()
                    .map(|(reason, count)| format!("{count} node(s) {reason}"))
                    .collect();
                let nodes = view.snapshot.nodes.len();
                let message = match nodes {
                    0 => "no nodes available to schedule pods".to_owned(),
                    _ => format!("0/{nodes} nodes are available: {}.", reasons.join(", ")),
                };
                let mut conditions = json!(pod.status)["conditions"]
                    .as_array()
                    .cloned()
                    .unwrap_or_default();
                let told = ("Unschedulable", message.as_str());
                if set_condition(&mut conditions, plan.now, "PodScheduled", "False", told) {
                    let patch = json!({ "status": { "conditions": conditions } });
                    let write = Write::Patch {
                        target: scope.clone(),
                        subresource: Some("status"),
                        patch,
                    };
                    let note = note(&pod.metadata, COMPONENT, "FailedScheduling", message);
                    plan.act_and_note(
                        &scope,
                        write,
                        Note {
                            warning: true,
                            ..note
                        },
                    );
                }
            }
        }
    }
}

fn waits(pod: &Pod) -> bool {
    pod.spec.as_ref().is_some_and(|spec| {
        spec.node_name.as_deref().unwrap_or_default().is_empty()
            && spec
                .scheduler_name
                .as_deref()
                .is_none_or(|name| name == COMPONENT)
            && spec.scheduling_gates.as_ref().is_none_or(Vec::is_empty)
    }) && !is_terminating(pod)
        && !is_finished(pod)
}

/// Why the pod can't run on the node, if so.
pub(crate) fn refusal(spec: &PodSpec, node: &Node) -> Option<String> {
    if !matches_selector(spec, node) {
        return Some("didn't match Pod's node affinity/selector".to_owned());
    }
    let node_spec = node.spec.as_ref();
    let cordoned = node_spec
        .is_some_and(|spec| spec.unschedulable == Some(true))
        .then(|| Taint {
            key: "node.kubernetes.io/unschedulable".to_owned(),
            effect: "NoSchedule".to_owned(),
            ..Taint::default()
        });
    let taints = node_spec
        .iter()
        .flat_map(|spec| spec.taints.iter().flatten())
        .chain(&cordoned);
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    let mut hard = taints.filter(|taint| taint.effect != "PreferNoSchedule");
    let taint = hard.find(|taint| !tolerations.iter().any(|toleration| tolerates(toleration, taint)))?;
    if cordoned
        .as_ref()
        .is_some_and(|cordoned| taint.key == cordoned.key)
    {
        return Some("were unschedulable".to_owned());
    }
    Some(format!(
        "had untolerated taint {{{}: {}}}",
        taint.key,
        taint.value.as_deref().unwrap_or_default()
    ))
}

/// Whether selector and required affinity admit the node, taints aside.
pub(crate) fn matches_selector(spec: &PodSpec, node: &Node) -> bool {
    let labels = node.metadata.labels.as_ref();
    let label = |key: &str| labels.and_then(|labels| labels.get(key)).map(String::as_str);
    let selected = spec
        .node_selector
        .iter()
        .flatten()
        .all(|(key, value)| label(key) == Some(value));
    let affinity = spec
        .affinity
        .as_ref()
        .and_then(|affinity| affinity.node_affinity.as_ref());
    let required = affinity.and_then(|affinity| {
        affinity
            .required_during_scheduling_ignored_during_execution
            .as_ref()
    });
    selected && required.is_none_or(|selector| admits(selector, node, label))
}

fn admits<'a>(selector: &NodeSelector, node: &'a Node, label: impl Fn(&str) -> Option<&'a str>) -> bool {
    let field = |key: &str| {
        (key == "metadata.name")
            .then_some(node.metadata.name.as_deref())
            .flatten()
    };
    selector.node_selector_terms.iter().any(|term| {
        let NodeSelectorTerm {
            match_expressions,
            match_fields,
        } = term;
        let (expressions, fields) = (match_expressions.iter().flatten(), match_fields.iter().flatten());
        // An empty term matches nothing.
        (expressions.clone().next().is_some() || fields.clone().next().is_some())
            && expressions
                .into_iter()
                .all(|requirement| holds(requirement, label(&requirement.key)))
            && fields
                .into_iter()
                .all(|requirement| holds(requirement, field(&requirement.key)))
    })
}

fn holds(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = value.is_some_and(|value| values.iter().any(|listed| listed == value));
    let number = |text: Option<&str>| text.and_then(|text| text.parse::<i64>().ok());
    let order = number(value).zip(number(values.first().map(String::as_str)));
    match requirement.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => order.is_some_and(|(value, bound)| value > bound),
        "Lt" => order.is_some_and(|(value, bound)| value < bound),
        _ => false,
    }
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let given = |field: &Option<String>| {
        field
            .as_deref()
            .filter(|text| !text.is_empty())
            .map(str::to_owned)
    };
    let exists = toleration.operator.as_deref() == Some("Exists");
    given(&toleration.effect).is_none_or(|effect| effect == taint.effect)
        && given(&toleration.key).map_or(exists, |key| key == taint.key)
        && (exists || given(&toleration.value) == given(&taint.value))
}
