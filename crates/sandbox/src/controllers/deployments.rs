//! Rolls a Deployment's pods from one template to the next, by way of a ReplicaSet for each template.

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Map, Value, json};

use super::plan::{
    Manner, Plan, View, Write, controlled_by, controller_of, merge_patch, set_condition, short_hash, time,
};
use super::pods::{after, created, is_finished, note};
use super::snapshot::{Key, Resource, Target};

const COMPONENT: &str = "deployment-controller";
const HASH: &str = "pod-template-hash";
const REVISION: &str = "deployment.kubernetes.io/revision";
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MAX: &str = "deployment.kubernetes.io/max-replicas";
/// Annotations of a Deployment that do not belong on its ReplicaSets.
const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    "deployment.kubernetes.io/revision-history",
    "deprecated.deployment.rollback.to",
    REVISION,
    DESIRED,
    MAX,
];

pub(crate) fn plan(view: &View<'_>, plan: &mut Plan) {
    for deployment in view.snapshot.deployments.values() {
        let Some(spec) = &deployment.spec else { continue };
        if deployment.metadata.deletion_timestamp.is_none() {
            Rollout::new(view, deployment, spec).plan(view, plan);
        }
    }
}

/// A Deployment and its ReplicaSets, the oldest first.
struct Rollout<'a> {
    deployment: &'a Deployment,
    spec: &'a DeploymentSpec,
    scope: Target,
    new: Option<&'a ReplicaSet>,
    old: Vec<&'a ReplicaSet>,
    wanted: i64,
    surge: i64,
    unavailable: i64,
}

impl<'a> Rollout<'a> {
    fn new(view: &View<'a>, deployment: &'a Deployment, spec: &'a DeploymentSpec) -> Self {
        let mut sets = view.replica_sets_of(&deployment.metadata).to_vec();
        sets.sort_by_key(|set| (created(&set.metadata), set.metadata.name.clone()));
        let template = json!(spec.template);
        // Its name was made from the template, so it is the one even if the API server filled in something since.
        let name = format!(
            "{}-{}",
            deployment.metadata.name.as_deref().unwrap_or_default(),
            short_hash(&template)
        );
        let same =
            |set: &&ReplicaSet| template_of(set) == template || set.metadata.name.as_ref() == Some(&name);
        let new = sets.iter().copied().find(same);
        sets.retain(|set| new.is_none_or(|new| !std::ptr::eq(*set, new)));
        let wanted = i64::from(spec.replicas.unwrap_or(1));
        let rolling = spec
            .strategy
            .as_ref()
            .and_then(|strategy| strategy.rolling_update.as_ref());
        let surge = resolve(
            rolling.and_then(|rolling| rolling.max_surge.as_ref()),
            wanted,
            Round::Up,
        );
        let unavailable = resolve(
            rolling.and_then(|rolling| rolling.max_unavailable.as_ref()),
            wanted,
            Round::Down,
        );
        // With neither allowed nothing could ever move.
        let (surge, unavailable) = match (is_recreated(spec), surge, unavailable) {
            (true, ..) => (0, 0),
            (false, 0, 0) => (0, 1),
            (false, surge, unavailable) => (surge, unavailable.min(wanted)),
        };
        Self {
            deployment,
            spec,
            scope: Target::of(deployment),
            new,
            old: sets,
            wanted,
            surge,
            unavailable,
        }
    }

    fn sets(&self) -> impl Iterator<Item = &'a ReplicaSet> + use<'a, '_> {
        self.old.iter().copied().chain(self.new)
    }

    fn plan(&self, view: &View<'_>, plan: &mut Plan) {
        let revision = self.revision();
        match self.new {
            None if self.spec.paused != Some(true) => self.plan_new(view, plan, revision),
            None => {}
            Some(new) => self.plan_annotations(plan, new, revision),
        }
        if self.spec.paused == Some(true) {
            if let Some(new) = self.new.or_else(|| self.old.last().copied()) {
                let others: i64 = self
                    .sets()
                    .filter(|set| !std::ptr::eq(*set, new))
                    .map(replicas)
                    .sum();
                self.scale(plan, new, (self.wanted - others).max(0));
            }
        } else if is_recreated(self.spec) {
            self.plan_recreate(view, plan);
        } else {
            self.plan_rolling(plan);
        }
        self.plan_history(plan);
        self.plan_status(plan, revision);
    }

    /// The number of the current template: higher than any other, also after an undo.
    fn revision(&self) -> i64 {
        let last = self.old.iter().map(|set| revision_of(set)).max().unwrap_or(0);
        match self.new.map(revision_of) {
            Some(revision) if revision > last => revision,
            _ => last + 1,
        }
    }

    fn annotations(&self, revision: i64) -> Map<String, Value> {
        let copied = self.deployment.metadata.annotations.iter().flatten();
        let copied = copied.filter(|(key, _)| !NOT_COPIED.contains(&key.as_str()));
        let mut annotations: Map<_, _> = copied
            .map(|(key, value)| (key.clone(), value.as_str().into()))
            .collect();
        for (key, number) in [
            (REVISION, revision),
            (DESIRED, self.wanted),
            (MAX, self.wanted + self.surge),
        ] {
            annotations.insert(key.to_owned(), number.to_string().into());
        }
        annotations
    }

    fn plan_new(&self, view: &View<'_>, plan: &mut Plan, revision: i64) {
        let template = json!(self.spec.template);
        let hash = short_hash(&template);
        let key = Key::new(
            &self.scope.key.namespace,
            &format!("{}-{hash}", self.scope.key.name),
        );
        let resource = Resource::of::<ReplicaSet>();
        if let Some(orphan) = view.snapshot.replica_sets.get(&key) {
            // Left behind by a Deployment of this name that was deleted without its dependents.
            if controller_of(&orphan.metadata).is_none() && orphan.metadata.deletion_timestamp.is_none() {
                let mut owners: Vec<Value> = orphan
                    .metadata
                    .owner_references
                    .iter()
                    .flatten()
                    .map(|owner| json!(owner))
                    .collect();
                owners.push(controlled_by(&self.scope, &self.deployment.metadata));
                let version = &orphan.metadata.resource_version;
                let patch = json!({ "metadata": { "ownerReferences": owners, "resourceVersion": version } });
                let target = Target { resource, key };
                plan.patch(&self.scope, target, patch);
            }
            return;
        }
        let replicas = if is_recreated(self.spec) {
            self.recreated(view)
        } else {
            self.room(0)
        };
        let mut template = template;
        template["metadata"]["labels"][HASH] = hash.as_str().into();
        let mut selector = json!(self.spec.selector);
        selector["matchLabels"][HASH] = hash.as_str().into();
        let object = json!({
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": {
                "name": key.name,
                "namespace": key.namespace,
                "labels": template["metadata"]["labels"],
                "annotations": self.annotations(revision),
                "ownerReferences": [controlled_by(&self.scope, &self.deployment.metadata)],
            },
            "spec": {
                "replicas": replicas,
                "minReadySeconds": self.spec.min_ready_seconds.unwrap_or(0),
                "selector": selector,
                "template": template,
            },
        });
        let message = format!("Scaled up replica set {} from 0 to {replicas}", key.name);
        let note = note(&self.deployment.metadata, COMPONENT, "ScalingReplicaSet", message);
        plan.act_and_note(&self.scope, Write::Create { resource, object }, note);
    }

    fn plan_annotations(&self, plan: &mut Plan, new: &ReplicaSet, revision: i64) {
        let current = json!(new.metadata.annotations);
        // Annotations that others put on the ReplicaSet stay.
        let mut wanted = current.as_object().cloned().unwrap_or_default();
        wanted.extend(self.annotations(revision));
        let min_ready = self.spec.min_ready_seconds.unwrap_or(0);
        let current_min_ready = new
            .spec
            .as_ref()
            .and_then(|spec| spec.min_ready_seconds)
            .unwrap_or(0);
        let current = json!({
            "metadata": { "annotations": current },
            "spec": { "minReadySeconds": current_min_ready },
        });
        let wanted = json!({
            "metadata": { "annotations": wanted },
            "spec": { "minReadySeconds": min_ready },
        });
        if let Some(patch) = merge_patch(&current, &wanted) {
            plan.patch(&self.scope, Target::of(new), patch);
        }
    }

    fn scale(&self, plan: &mut Plan, set: &ReplicaSet, to: i64) {
        let from = replicas(set);
        if from == to {
            return;
        }
        let target = Target::of(set);
        let direction = if to > from { "up" } else { "down" };
        let message = format!(
            "Scaled {direction} replica set {} from {from} to {to}",
            target.key.name
        );
        let note = note(&self.deployment.metadata, COMPONENT, "ScalingReplicaSet", message);
        let patch = json!({ "spec": { "replicas": to } });
        plan.act_and_note(
            &self.scope,
            Write::Patch {
                target,
                subresource: None,
                patch,
            },
            note,
        );
    }

    /// How many pods the new ReplicaSet may have if it has `has` now.
    fn room(&self, has: i64) -> i64 {
        let total: i64 = self.sets().map(replicas).sum();
        let free = (self.wanted + self.surge - total).max(0);
        (has + free).min(self.wanted)
    }

    fn plan_rolling(&self, plan: &mut Plan) {
        let Some(new) = self.new else { return };
        self.scale(plan, new, self.room(replicas(new)));
        let total: i64 = self.sets().map(replicas).sum();
        let min_available = self.wanted - self.unavailable;
        let new_unavailable = (replicas(new) - available(new)).max(0);
        // Pods that are not available are not missed: they go first.
        let mut sick = total - min_available - new_unavailable;
        let mut surplus = self.sets().map(available).sum::<i64>() - min_available;
        for old in &self.old {
            let (has, healthy) = (replicas(old), available(old));
            let ill = (has - healthy).min(sick.max(0));
            sick -= ill;
            let well = (has - ill).min(healthy).min(surplus.max(0)).min(sick.max(0));
            surplus -= well;
            sick -= well;
            self.scale(plan, old, has - ill - well);
        }
    }

    fn plan_recreate(&self, view: &View<'_>, plan: &mut Plan) {
        for old in &self.old {
            self.scale(plan, old, 0);
        }
        if let Some(new) = self.new {
            let to = self.recreated(view).max(replicas(new)).min(self.wanted);
            self.scale(plan, new, to);
        }
    }

    /// All, once no pod of another template runs any more.
    fn recreated(&self, view: &View<'_>) -> i64 {
        let running = |set: &&ReplicaSet| view.pods_of(&set.metadata).iter().any(|pod| !is_finished(pod));
        let busy = self.old.iter().any(|set| replicas(set) > 0 || running(set));
        if busy { 0 } else { self.wanted }
    }

    fn plan_history(&self, plan: &mut Plan) {
        let limit = usize::try_from(self.spec.revision_history_limit.unwrap_or(10)).unwrap_or(0);
        let idle = |set: &&&ReplicaSet| {
            let seen = set.status.as_ref();
            replicas(set) == 0
                && seen.is_none_or(|status| status.replicas == 0)
                && seen.and_then(|status| status.observed_generation) == set.metadata.generation
                && set.metadata.deletion_timestamp.is_none()
        };
        let mut idle: Vec<_> = self.old.iter().filter(idle).collect();
        idle.sort_by_key(|set| revision_of(set));
        for set in idle.iter().take(idle.len().saturating_sub(limit)) {
            plan.delete(&self.scope, Target::of(**set), &set.metadata, Manner::Background);
        }
    }

    fn plan_status(&self, plan: &mut Plan, revision: i64) {
        // A generation was observed when its ReplicaSet is there and its revision is written: whoever reads the one
        // finds the other too.
        if self.new.is_none() && self.spec.paused != Some(true) {
            return;
        }
        let current = json!(self.deployment.metadata.annotations);
        let number = revision.to_string();
        if self.new.is_some() && current[REVISION] != number.as_str() {
            let patch = json!({ "metadata": { "annotations": { REVISION: number } } });
            plan.patch(&self.scope, self.scope.clone(), patch);
            // Writes of one plan may overtake each other, so the status comes with the next.
            return;
        }
        let status = |set: &ReplicaSet| set.status.clone().unwrap_or_default();
        let total: i64 = self.sets().map(|set| i64::from(status(set).replicas)).sum();
        let ready: i64 = self
            .sets()
            .map(|set| i64::from(status(set).ready_replicas.unwrap_or(0)))
            .sum();
        let available: i64 = self.sets().map(available).sum();
        let updated = self.new.map_or(0, |new| i64::from(status(new).replicas));
        let asked: i64 = self.sets().map(replicas).sum();
        let count = |number: i64| Some(number).filter(|number| *number > 0);
        let mut conditions = json!(self.deployment.status)["conditions"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        self.set_available(plan, &mut conditions, available);
        self.set_progressing(
            plan,
            &mut conditions,
            &Progress {
                total,
                updated,
                ready,
                available,
            },
        );
        let wanted = json!({
            "observedGeneration": self.deployment.metadata.generation,
            "replicas": count(total),
            "updatedReplicas": count(updated),
            "readyReplicas": count(ready),
            "availableReplicas": count(available),
            "unavailableReplicas": count(asked - available),
            "conditions": conditions,
            "collisionCount": self.deployment.status.as_ref().and_then(|status| status.collision_count),
        });
        plan.status(&self.scope, &self.deployment.status, wanted);
    }

    fn set_available(&self, plan: &Plan, conditions: &mut Vec<Value>, available: i64) {
        let (status, told) = if available >= self.wanted - self.unavailable {
            (
                "True",
                ("MinimumReplicasAvailable", "Deployment has minimum availability."),
            )
        } else {
            (
                "False",
                (
                    "MinimumReplicasUnavailable",
                    "Deployment does not have minimum availability.",
                ),
            )
        };
        update_condition(conditions, plan, "Available", status, told);
    }

    fn set_progressing(&self, plan: &mut Plan, conditions: &mut Vec<Value>, progress: &Progress) {
        let condition = conditions
            .iter()
            .find(|condition| condition["type"] == "Progressing")
            .cloned();
        let reason = condition
            .as_ref()
            .and_then(|condition| condition["reason"].as_str());
        if self.spec.paused == Some(true) {
            if reason != Some("NewReplicaSetAvailable") {
                let told = ("DeploymentPaused", "Deployment is paused");
                update_condition(conditions, plan, "Progressing", "Unknown", told);
            }
            return;
        }
        let Some(new) = self.new else { return };
        let name = new.metadata.name.as_deref().unwrap_or_default();
        let before = self.deployment.status.clone().unwrap_or_default();
        let complete = [progress.total, progress.updated, progress.available]
            .iter()
            .all(|n| *n == self.wanted);
        if complete {
            let message = format!("ReplicaSet \"{name}\" has successfully progressed.");
            let told = ("NewReplicaSetAvailable", message.as_str());
            update_condition(conditions, plan, "Progressing", "True", told);
            return;
        }
        let old = |total: i64, updated: i64| total - updated;
        let count = |number: Option<i32>| i64::from(number.unwrap_or(0));
        let moved = progress.updated > count(before.updated_replicas)
            || progress.ready > count(before.ready_replicas)
            || progress.available > count(before.available_replicas)
            || old(progress.total, progress.updated)
                < old(count(before.replicas), count(before.updated_replicas));
        let message = format!("ReplicaSet \"{name}\" is progressing.");
        let since = condition
            .as_ref()
            .and_then(|condition| serde_json::from_value::<Time>(condition["lastUpdateTime"].clone()).ok());
        let fresh = reason.is_none_or(|reason| {
            // After it was complete, any other state is the start of a new rollout.
            matches!(reason, "NewReplicaSetAvailable" | "DeploymentPaused")
        });
        if moved || fresh {
            update_condition(
                conditions,
                plan,
                "Progressing",
                "True",
                ("ReplicaSetUpdated", &message),
            );
            if let Some(condition) = conditions
                .iter_mut()
                .find(|condition| condition["type"] == "Progressing")
            {
                condition["lastUpdateTime"] = time(plan.now);
            }
            return;
        }
        let patience = i64::from(self.spec.progress_deadline_seconds.unwrap_or(600));
        if reason != Some("ProgressDeadlineExceeded")
            && since.is_some_and(|since| plan.has_come(after(since.0, patience)))
        {
            let message = format!("ReplicaSet \"{name}\" has timed out progressing.");
            let told = ("ProgressDeadlineExceeded", message.as_str());
            update_condition(conditions, plan, "Progressing", "False", told);
        }
    }
}

struct Progress {
    total: i64,
    updated: i64,
    ready: i64,
    available: i64,
}

/// Conditions of Deployments also say when they were last touched.
fn update_condition(conditions: &mut Vec<Value>, plan: &Plan, kind: &str, status: &str, told: (&str, &str)) {
    if set_condition(conditions, plan.now, kind, status, told)
        && let Some(condition) = conditions.iter_mut().find(|condition| condition["type"] == kind)
    {
        condition["lastUpdateTime"] = time(plan.now);
    }
}

fn is_recreated(spec: &DeploymentSpec) -> bool {
    spec.strategy
        .as_ref()
        .and_then(|strategy| strategy.type_.as_deref())
        == Some("Recreate")
}

/// The template without the label that tells ReplicaSets apart.
fn template_of(set: &ReplicaSet) -> Value {
    let mut template = json!(set.spec.as_ref().and_then(|spec| spec.template.as_ref()));
    if let Some(labels) = template["metadata"]["labels"].as_object_mut() {
        labels.remove(HASH);
    }
    template
}

fn replicas(set: &ReplicaSet) -> i64 {
    set.spec
        .as_ref()
        .and_then(|spec| spec.replicas)
        .unwrap_or(1)
        .into()
}

/// A status may lag behind: pods that were just taken away no longer count.
fn available(set: &ReplicaSet) -> i64 {
    let seen = set
        .status
        .as_ref()
        .and_then(|status| status.available_replicas)
        .unwrap_or(0);
    replicas(set).min(seen.into())
}

fn revision_of(set: &ReplicaSet) -> i64 {
    let annotation = set
        .metadata
        .annotations
        .as_ref()
        .and_then(|annotations| annotations.get(REVISION));
    annotation.and_then(|revision| revision.parse().ok()).unwrap_or(0)
}

#[derive(Clone, Copy)]
pub(crate) enum Round {
    Up,
    Down,
}

/// A number of pods, or a percentage of `of`. A quarter if not given.
pub(crate) fn resolve(value: Option<&IntOrString>, of: i64, round: Round) -> i64 {
    let percent = match value {
        Some(IntOrString::Int(number)) => return i64::from(*number).max(0),
        Some(IntOrString::String(text)) => text
            .strip_suffix('%')
            .and_then(|number| number.parse::<i64>().ok())
            .unwrap_or(0),
        None => 25,
    };
    let product = of.saturating_mul(percent.max(0));
    match round {
        Round::Up => (product + 99) / 100,
        Round::Down => product / 100,
    }
}
