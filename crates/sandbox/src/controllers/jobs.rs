//! Runs pods until enough of them have succeeded.
//!
//! Counts by the pods that exist: one that somebody deletes is replaced without a trace. Completion modes other than
//! `NonIndexed`, pod failure policies and success policies are not known.

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::plan::{Manner, Note, Plan, View, Write, set_condition, time};
use super::pods::{self, after, created, is_active, is_ready, note, phase};
use super::replica_sets::count;
use super::snapshot::Target;

const COMPONENT: &str = "job-controller";
/// After the first failure; doubled by every further one.
const BACKOFF_SECONDS: i64 = 10;
const BACKOFF_SECONDS_MAX: i64 = 360;

pub(crate) fn plan(view: &View<'_>, plan: &mut Plan) {
    for job in view.snapshot.jobs.values() {
        if let Some(spec) = &job.spec
            && job.metadata.deletion_timestamp.is_none()
        {
            plan_job(view, plan, job, spec);
        }
    }
}

fn plan_job(view: &View<'_>, plan: &mut Plan, job: &Job, spec: &JobSpec) {
    let scope = Target::of(job);
    let status = job.status.clone().unwrap_or_default();
    let finished = status.conditions.iter().flatten().find(|condition| {
        matches!(condition.type_.as_str(), "Complete" | "Failed") && condition.status == "True"
    });
    if let Some(finished) = finished {
        let since = finished
            .last_transition_time
            .as_ref()
            .map_or(plan.now, |time| time.0);
        if let Some(seconds) = spec.ttl_seconds_after_finished
            && plan.has_come(after(since, seconds.into()))
        {
            plan.delete(&scope, scope.clone(), &job.metadata, Manner::Foreground);
        }
        return;
    }
    let pods = view.pods_of(&job.metadata);
    let active: Vec<&Pod> = pods.iter().copied().filter(|pod| is_active(pod)).collect();
    let succeeded = pods.iter().filter(|pod| phase(pod) == "Succeeded").count();
    let failures: Vec<&Pod> = pods
        .iter()
        .copied()
        .filter(|pod| phase(pod) == "Failed")
        .collect();
    let suspended = spec.suspend == Some(true);
    let start = status.start_time.as_ref().map(|time| time.0);
    let outcome = outcome(plan, spec, &active, succeeded, &failures, start);
    let mut conditions = json!(job.status)["conditions"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let mut completion = status.completion_time.as_ref().map(|time| json!(time));
    let mut told = None;
    match &outcome {
        Some(Outcome::Complete) => {
            let told_as = ("CompletionsReached", "Reached expected number of succeeded pods");
            set_condition(&mut conditions, plan.now, "SuccessCriteriaMet", "True", told_as);
            set_condition(&mut conditions, plan.now, "Complete", "True", told_as);
            completion = Some(time(plan.now));
            told = Some(note(
                &job.metadata,
                COMPONENT,
                "Completed",
                "Job completed".to_owned(),
            ));
        }
        Some(Outcome::Failed(reason, message)) => {
            set_condition(
                &mut conditions,
                plan.now,
                "FailureTarget",
                "True",
                (reason, message),
            );
            set_condition(&mut conditions, plan.now, "Failed", "True", (reason, message));
            let note = note(&job.metadata, COMPONENT, reason, (*message).to_owned());
            told = Some(Note {
                warning: true,
                ..note
            });
        }
        None if suspended => {
            set_condition(
                &mut conditions,
                plan.now,
                "Suspended",
                "True",
                ("JobSuspended", "Job suspended"),
            );
        }
        None => {
            if conditions
                .iter()
                .any(|condition| condition["type"] == "Suspended" && condition["status"] == "True")
            {
                set_condition(
                    &mut conditions,
                    plan.now,
                    "Suspended",
                    "False",
                    ("JobResumed", "Job resumed"),
                );
            }
        }
    }
    if outcome.is_some() || suspended {
        for pod in &active {
            pods::delete(plan, &scope, &job.metadata, COMPONENT, pod);
        }
    } else {
        plan_pods(plan, &scope, job, spec, &active, succeeded, &failures);
    }
    let running = if outcome.is_some() { 0 } else { active.len() };
    let start = if suspended {
        None
    } else {
        Some(start.unwrap_or(plan.now))
    };
    let wanted = json!({
        "active": count(running),
        "ready": if outcome.is_some() { 0 } else { active.iter().filter(|pod| is_ready(pod)).count() },
        "succeeded": count(succeeded),
        "failed": count(failures.len()),
        "startTime": start.map(time),
        "completionTime": completion,
        "conditions": Some(conditions).filter(|conditions| !conditions.is_empty()),
        "uncountedTerminatedPods": status.uncounted_terminated_pods,
        "terminating": status.terminating,
    });
    plan.status(&scope, &job.status, wanted);
    if let Some(note) = told {
        plan.act_and_note(&scope, Write::Note, note);
    }
}

enum Outcome {
    Complete,
    Failed(&'static str, &'static str),
}

fn outcome(
    plan: &mut Plan,
    spec: &JobSpec,
    active: &[&Pod],
    succeeded: usize,
    failures: &[&Pod],
    start: Option<Timestamp>,
) -> Option<Outcome> {
    let complete = match spec.completions {
        Some(completions) => succeeded >= usize::try_from(completions).unwrap_or(0),
        // A work queue is empty when one worker has said so and the others have ended.
        None => succeeded > 0 && active.is_empty(),
    };
    if complete {
        return Some(Outcome::Complete);
    }
    let restarts: usize = active
        .iter()
        .flat_map(|pod| {
            pod.status
                .iter()
                .flat_map(|status| status.container_statuses.iter().flatten())
        })
        .map(|container| usize::try_from(container.restart_count).unwrap_or(0))
        .sum();
    let limit = usize::try_from(spec.backoff_limit.unwrap_or(6)).unwrap_or(0);
    if failures.len() > limit || restarts > limit {
        return Some(Outcome::Failed(
            "BackoffLimitExceeded",
            "Job has reached the specified backoff limit",
        ));
    }
    let deadline = start
        .zip(spec.active_deadline_seconds)
        .map(|(start, seconds)| after(start, seconds));
    if spec.suspend != Some(true) && deadline.is_some_and(|deadline| plan.has_come(deadline)) {
        return Some(Outcome::Failed(
            "DeadlineExceeded",
            "Job was active longer than specified deadline",
        ));
    }
    None
}

fn plan_pods(
    plan: &mut Plan,
    scope: &Target,
    job: &Job,
    spec: &JobSpec,
    active: &[&Pod],
    succeeded: usize,
    failures: &[&Pod],
) {
    let parallelism = usize::try_from(spec.parallelism.unwrap_or(1)).unwrap_or(0);
    let wanted = match spec.completions {
        Some(completions) => usize::try_from(completions)
            .unwrap_or(0)
            .saturating_sub(succeeded)
            .min(parallelism),
        None if succeeded > 0 => active.len(),
        None => parallelism,
    };
    for pod in active.iter().rev().take(active.len().saturating_sub(wanted)) {
        pods::delete(plan, scope, &job.metadata, COMPONENT, pod);
    }
    if active.len() >= wanted || !backed_off(plan, failures) {
        return;
    }
    for _ in active.len()..wanted {
        pods::create(plan, scope, &job.metadata, COMPONENT, pod(scope, job, spec));
    }
}

/// Whether the last failure was long enough ago.
fn backed_off(plan: &mut Plan, failures: &[&Pod]) -> bool {
    let Some(last) = failures.iter().map(|pod| ended(pod)).max() else {
        return true;
    };
    let doublings = u32::try_from(failures.len() - 1).unwrap_or(u32::MAX).min(10);
    let pause = (BACKOFF_SECONDS << doublings).min(BACKOFF_SECONDS_MAX);
    plan.has_come(after(last, pause))
}

fn ended(pod: &Pod) -> Timestamp {
    let containers = pod
        .status
        .iter()
        .flat_map(|status| status.container_statuses.iter().flatten());
    let ends = containers.filter_map(|container| {
        container
            .state
            .as_ref()?
            .terminated
            .as_ref()?
            .finished_at
            .as_ref()
    });
    ends.map(|time| time.0)
        .max()
        .unwrap_or_else(|| created(&pod.metadata))
}

fn pod(scope: &Target, job: &Job, spec: &JobSpec) -> Value {
    let mut pod = pods::from_template(&spec.template, scope, &job.metadata);
    let labels = &mut pod["metadata"]["labels"];
    for (label, value) in [
        ("controller-uid", &job.metadata.uid),
        ("job-name", &job.metadata.name),
    ] {
        labels[label] = json!(value);
        labels[format!("batch.kubernetes.io/{label}")] = json!(value);
    }
    pod
}
