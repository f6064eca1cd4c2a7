//! What the API shows of a pod: phase, conditions and the state of each container. Pure.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState as ShownState, ContainerStateRunning, ContainerStateTerminated,
    ContainerStateWaiting, ContainerStatus, HostIP, Pod, PodCondition, PodIP, PodSpec, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::plan::{Current, Ended, PodState, RestartPolicy, back_off, init_containers, is_sidecar};

/// Conditions that the node decides; others belong to their writers and are kept.
const OWN: &[&str] = &[
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
    "PodScheduled",
];

/// Where the pod runs.
pub(crate) struct Place {
    pub host_ip: String,
    /// Absent until its network exists.
    pub pod_ip: Option<String>,
    pub started: Timestamp,
}

pub(crate) fn render(pod: &Pod, state: &PodState, place: &Place, now: Timestamp) -> PodStatus {
    let empty = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&empty);
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let phase = phase(spec, state);
    let shown =
        |container: &Container, is_init: bool| container_status(container, spec, name, state, is_init);
    let initial: Vec<_> = init_containers(spec)
        .iter()
        .map(|container| shown(container, true))
        .collect();
    let regular: Vec<_> = spec
        .containers
        .iter()
        .map(|container| shown(container, false))
        .collect();
    let (reason, message) = match &state.failed {
        Some((reason, message)) => (Some(reason.clone()), Some(message.clone())),
        None => (None, None),
    };
    PodStatus {
        conditions: Some(conditions(
            pod, spec, state, place, phase, &initial, &regular, now,
        )),
        phase: Some(phase.to_owned()),
        reason,
        message,
        host_ip: Some(place.host_ip.clone()),
        host_ips: Some(vec![HostIP {
            ip: place.host_ip.clone(),
        }]),
        pod_ip: place.pod_ip.clone(),
        pod_ips: place.pod_ip.clone().map(|ip| vec![PodIP { ip }]),
        start_time: Some(Time(place.started)),
        init_container_statuses: Some(initial).filter(|statuses| !statuses.is_empty()),
        container_statuses: Some(regular),
        qos_class: pod.status.as_ref().and_then(|status| status.qos_class.clone()),
        ..PodStatus::default()
    }
}

/// Whether the condition is one that the node decides.
pub(crate) fn is_own(condition: &PodCondition) -> bool {
    OWN.contains(&condition.type_.as_str())
}

pub(crate) fn is_over(phase: &str) -> bool {
    matches!(phase, "Succeeded" | "Failed")
}

pub(crate) fn phase(spec: &PodSpec, state: &PodState) -> &'static str {
    let current = |name: &str| state.containers.get(name).map(|container| &container.current);
    let has_run = |name: &str| {
        state.containers.get(name).is_some_and(|container| {
            container.last.is_some() || !matches!(container.current, Current::Waiting { .. })
        })
    };
    if state.failed.is_some() {
        return "Failed";
    }
    if !state.initialized {
        let failed = init_containers(spec)
            .iter()
            .filter(|container| !is_sidecar(container))
            .any(|container| {
                matches!(current(&container.name), Some(Current::Ended(ended))
                if ended.code != 0 && !RestartPolicy::of_init(spec).restarts(ended))
            });
        return if failed { "Failed" } else { "Pending" };
    }
    let policy = RestartPolicy::of_pod(spec);
    let mut all_done = true;
    let mut any_failed = false;
    for container in &spec.containers {
        match current(&container.name) {
            Some(Current::Ended(ended)) => {
                all_done &= !policy.restarts(ended) || state.deleting.is_some();
                any_failed |= ended.code != 0;
            }
            _ => all_done = false,
        }
    }
    let sidecars_up = init_containers(spec)
        .iter()
        .any(|container| matches!(current(&container.name), Some(Current::Running(_))));
    match (all_done, any_failed) {
        // A pod isn't over before its sidecars are.
        (true, _) if sidecars_up => "Running",
        (true, true) => "Failed",
        (true, false) => "Succeeded",
        (false, _) if spec.containers.iter().all(|container| has_run(&container.name)) => "Running",
        (false, _) => "Pending",
    }
}

fn container_status(
    container: &Container,
    spec: &PodSpec,
    pod: &str,
    state: &PodState,
    is_init: bool,
) -> ContainerStatus {
    let default = super::plan::ContainerState::default();
    let own = state.containers.get(&container.name).unwrap_or(&default);
    let policy = match (is_init, is_sidecar(container)) {
        (true, true) => RestartPolicy::Always,
        (true, false) => RestartPolicy::of_init(spec),
        (false, _) => RestartPolicy::of_pod(spec),
    };
    let mut last = own.last.as_ref();
    let mut ready = false;
    let mut started = false;
    let mut id = own.last.as_ref().map(|ended| ended.id.clone());
    let shown = match &own.current {
        Current::Waiting { why, .. } => {
            let initializing = !init_containers(spec).is_empty() && !state.initialized;
            let idle = if initializing {
                "PodInitializing"
            } else {
                "ContainerCreating"
            };
            let (reason, message) = match why {
                Some((reason, message)) => (reason.clone(), Some(message.clone())),
                None => (idle.to_owned(), None),
            };
            waiting(reason, message)
        }
        Current::Running(running) => {
            id = Some(running.id.clone());
            started = running.started && !running.hook_pending;
            ready = if is_init && !is_sidecar(container) {
                false
            } else {
                started && running.ready
            };
            ShownState {
                running: Some(ContainerStateRunning {
                    started_at: Some(Time(running.since)),
                }),
                ..ShownState::default()
            }
        }
        Current::Ended(ended) => {
            id = Some(ended.id.clone());
            let comes_back = policy.restarts(ended)
                && state.deleting.is_none()
                && state.failed.is_none()
                && !(is_init && !is_sidecar(container) && state.initialized);
            // A pod that is over keeps the last state of its sidecars.
            if comes_back && !is_over(phase(spec, state)) {
                last = Some(ended);
                let pause = back_off(own.ends).as_secs();
                waiting(
                    "CrashLoopBackOff".to_owned(),
                    Some(format!(
                        "back-off {pause}s restarting failed container={} pod={pod}",
                        container.name
                    )),
                )
            } else {
                ready = is_init && !is_sidecar(container) && ended.code == 0;
                ShownState {
                    terminated: Some(terminated(ended)),
                    ..ShownState::default()
                }
            }
        }
    };
    let image = container.image.clone().unwrap_or_default();
    ContainerStatus {
        name: container.name.clone(),
        image_id: format!("host://{}", crate::images::repository(&image)),
        image,
        container_id: id.filter(|id| !id.is_empty()).map(|id| format!("hawser://{id}")),
        ready,
        started: Some(started),
        restart_count: own.restarts,
        state: Some(shown),
        last_state: Some(ShownState {
            terminated: last.map(terminated),
            ..ShownState::default()
        }),
        ..ContainerStatus::default()
    }
}

fn waiting(reason: String, message: Option<String>) -> ShownState {
    ShownState {
        waiting: Some(ContainerStateWaiting {
            reason: Some(reason),
            message,
        }),
        ..ShownState::default()
    }
}

fn terminated(ended: &Ended) -> ContainerStateTerminated {
    ContainerStateTerminated {
        container_id: Some(ended.id.clone())
            .filter(|id| !id.is_empty())
            .map(|id| format!("hawser://{id}")),
        exit_code: ended.code,
        finished_at: Some(Time(ended.at)),
        message: ended.message.clone(),
        reason: Some(ended.reason.clone()),
        signal: ended.signal,
        started_at: ended.started.map(Time),
    }
}

#[expect(
    clippy::too_many_arguments,
    reason = "one call; a struct would only repeat the names"
)]
fn conditions(
    pod: &Pod,
    spec: &PodSpec,
    state: &PodState,
    place: &Place,
    phase: &str,
    initial: &[ContainerStatus],
    regular: &[ContainerStatus],
    now: Timestamp,
) -> Vec<PodCondition> {
    let previous = pod
        .status
        .as_ref()
        .and_then(|status| status.conditions.clone())
        .unwrap_or_default();
    let sidecars: Vec<&str> = init_containers(spec)
        .iter()
        .filter(|container| is_sidecar(container))
        .map(|c| c.name.as_str())
        .collect();
    let counted = initial
        .iter()
        .filter(|status| sidecars.contains(&status.name.as_str()))
        .chain(regular);
    let unready: Vec<&str> = counted
        .filter(|status| !status.ready)
        .map(|status| status.name.as_str())
        .collect();
    let over = is_over(phase);
    let containers = match (over, unready.as_slice()) {
        (true, _) if phase == "Succeeded" => Err(("PodCompleted", None)),
        (true, _) => Err(("PodFailed", None)),
        (false, []) => Ok(()),
        (false, names) => Err((
            "ContainersNotReady",
            Some(format!("containers with unready status: [{}]", names.join(" "))),
        )),
    };
    let initialized = if state.initialized {
        Ok(())
    } else {
        let names: Vec<&str> = initial
            .iter()
            .filter(|status| !status.ready)
            .map(|s| s.name.as_str())
            .collect();
        Err((
            "ContainersNotInitialized",
            Some(format!(
                "containers with incomplete status: [{}]",
                names.join(" ")
            )),
        ))
    };
    let network = if place.pod_ip.is_some() {
        Ok(())
    } else {
        Err(("NetworkPending", None))
    };
    let answers = [
        ("PodReadyToStartContainers", network),
        ("Initialized", initialized),
        ("Ready", containers.clone()),
        ("ContainersReady", containers),
        ("PodScheduled", Ok(())),
    ];
    let own = answers.into_iter().map(|(kind, answer)| {
        let before = previous.iter().find(|condition| condition.type_ == kind);
        let (status, reason, message) = match answer {
            Ok(()) => ("True", None, None),
            Err((reason, message)) => ("False", Some(reason.to_owned()), message),
        };
        let unchanged = before.filter(|before| before.status == status);
        PodCondition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason,
            message,
            last_transition_time: unchanged
                .and_then(|c| c.last_transition_time.clone())
                .or(Some(Time(now))),
            observed_generation: pod.metadata.generation,
            ..PodCondition::default()
        }
    });
    let others = previous
        .iter()
        .filter(|condition| !OWN.contains(&condition.type_.as_str()))
        .cloned();
    own.chain(others).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::plan::{ContainerState, Running};
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + second).unwrap()
    }

    fn running(ready: bool) -> ContainerState {
        ContainerState {
            current: Current::Running(Running {
                id: "r".to_owned(),
                since: at(1),
                hook_pending: false,
                started: true,
                ready,
                unhealthy: None,
                stopping: None,
            }),
            ..ContainerState::default()
        }
    }

    fn ended(code: i32) -> ContainerState {
        let ended = Ended {
            id: "e".to_owned(),
            code,
            signal: None,
            reason: if code == 0 { "Completed" } else { "Error" }.to_owned(),
            message: None,
            started: Some(at(1)),
            at: at(2),
        };
        ContainerState {
            current: Current::Ended(ended),
            ends: 2,
            restarts: 1,
            ..ContainerState::default()
        }
    }

    fn pod(policy: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p"},
            "spec": {"restartPolicy": policy, "containers": [{"name": "web", "image": "web:1"}],
                     "initContainers": [{"name": "init"}, {"name": "mesh", "restartPolicy": "Always"}]},
            "status": {"conditions": [
                {"type": "Ready", "status": "False", "lastTransitionTime": "2001-01-01T00:00:00Z"},
                {"type": "example.com/gate", "status": "True"}]},
        }))
        .unwrap()
    }

    fn state(initialized: bool, containers: &[(&str, ContainerState)]) -> PodState {
        PodState {
            initialized,
            containers: containers
                .iter()
                .map(|(name, state)| ((*name).to_owned(), state.clone()))
                .collect(),
            ..PodState::default()
        }
    }

    /// Phase, the conditions that hold, and per container a word for its state.
    #[track_caller]
    fn check(policy: &str, state: &PodState, expected: &str) {
        let place = Place {
            host_ip: "172.30.0.1".to_owned(),
            pod_ip: Some("10.42.0.2".to_owned()),
            started: at(0),
        };
        let status = render(&pod(policy), state, &place, at(9));
        let mut words = vec![status.phase.unwrap()];
        words.extend(
            status
                .conditions
                .unwrap()
                .into_iter()
                .filter(|c| c.status == "True" && c.type_.len() < 14)
                .map(|c| c.type_),
        );
        for container in status
            .init_container_statuses
            .unwrap()
            .into_iter()
            .chain(status.container_statuses.unwrap())
        {
            let shown = container.state.unwrap();
            let word = match (shown.waiting, shown.running, shown.terminated) {
                (Some(waiting), ..) => waiting.reason.unwrap(),
                (_, Some(_), _) => if container.ready { "ready" } else { "running" }.to_owned(),
                (.., Some(terminated)) => terminated.reason.unwrap(),
                _ => "nothing".to_owned(),
            };
            words.push(format!("{}={word}", container.name));
        }
        assert_eq!(words.join(" "), expected);
    }

    #[test]
    fn a_pod_goes_from_pending_over_initialized_to_ready() {
        check(
            "Always",
            &state(false, &[]),
            "Pending PodScheduled init=PodInitializing mesh=PodInitializing web=PodInitializing",
        );
        check(
            "Always",
            &state(
                true,
                &[
                    ("init", ended(0)),
                    ("mesh", running(true)),
                    ("web", running(false)),
                ],
            ),
            "Running Initialized PodScheduled init=Completed mesh=ready web=running",
        );
        check(
            "Always",
            &state(
                true,
                &[
                    ("init", ended(0)),
                    ("mesh", running(true)),
                    ("web", running(true)),
                ],
            ),
            "Running Initialized Ready PodScheduled init=Completed mesh=ready web=ready",
        );
    }

    #[test]
    fn an_unready_sidecar_makes_the_pod_unready() {
        check(
            "Always",
            &state(
                true,
                &[
                    ("init", ended(0)),
                    ("mesh", running(false)),
                    ("web", running(true)),
                ],
            ),
            "Running Initialized PodScheduled init=Completed mesh=running web=ready",
        );
    }

    #[test]
    fn a_container_that_will_restart_waits_in_a_crash_loop_and_one_that_will_not_is_terminated() {
        let all = state(
            true,
            &[("init", ended(0)), ("mesh", running(true)), ("web", ended(1))],
        );
        check(
            "Always",
            &all,
            "Running Initialized PodScheduled init=Completed mesh=ready web=CrashLoopBackOff",
        );
        check(
            "Never",
            &all,
            "Running Initialized PodScheduled init=Completed mesh=ready web=Error",
        );
    }

    #[test]
    fn a_pod_is_over_when_its_sidecars_are() {
        let all = |code| {
            state(
                true,
                &[("init", ended(0)), ("mesh", ended(143)), ("web", ended(code))],
            )
        };
        check(
            "Never",
            &all(0),
            "Succeeded Initialized PodScheduled init=Completed mesh=Error web=Completed",
        );
        check(
            "Never",
            &all(1),
            "Failed Initialized PodScheduled init=Completed mesh=Error web=Error",
        );
        check(
            "OnFailure",
            &all(0),
            "Succeeded Initialized PodScheduled init=Completed mesh=Error web=Completed",
        );
    }

    #[test]
    fn a_failed_init_container_fails_a_pod_that_never_restarts() {
        check(
            "Never",
            &state(false, &[("init", ended(1))]),
            "Failed PodScheduled init=Error mesh=PodInitializing web=PodInitializing",
        );
    }

    #[test]
    fn transition_times_change_with_the_status_only_and_foreign_conditions_stay() {
        let place = Place {
            host_ip: String::new(),
            pod_ip: None,
            started: at(0),
        };
        let unready = render(&pod("Always"), &state(false, &[]), &place, at(9))
            .conditions
            .unwrap();
        let ready = unready
            .iter()
            .find(|condition| condition.type_ == "Ready")
            .unwrap();
        assert_eq!(
            ready.last_transition_time.as_ref().unwrap().0.to_string(),
            "2001-01-01T00:00:00Z"
        );
        assert!(
            unready
                .iter()
                .any(|condition| condition.type_ == "example.com/gate")
        );
    }
}
