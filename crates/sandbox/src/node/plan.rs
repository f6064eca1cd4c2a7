//! Decides what a pod needs next: which containers to start, which to stop, and whether it is over.
//!
//! A pure function of the pod's specification and what has been observed of its containers. The worker calls it after
//! every event and carries the actions out; calling it twice with the same state gives the same plan.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, PodSpec};

const BACK_OFF_FIRST: Duration = Duration::from_secs(10);
const BACK_OFF_MAX: Duration = Duration::from_secs(300);
/// A container that ran for so long has recovered.
const BACK_OFF_RESET: SignedDuration = SignedDuration::from_secs(600);
/// What a sidecar gets if the others have used up the pod's grace period.
const SIDECAR_GRACE_MIN: SignedDuration = SignedDuration::from_secs(2);

/// What is known of one pod's containers.
#[derive(Clone, Debug, Default)]
pub(crate) struct PodState {
    /// By container name, init containers included.
    pub containers: BTreeMap<String, ContainerState>,
    /// Init containers have done their work and don't run again.
    pub initialized: bool,
    /// When the pod must be gone, once somebody has asked for that.
    pub deleting: Option<Timestamp>,
    /// The pod has failed as a whole, for example by its deadline: (reason, message).
    pub failed: Option<(String, String)>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct ContainerState {
    pub current: Current,
    /// How the run before the current one ended.
    pub last: Option<Ended>,
    pub restarts: i32,
    /// Ends in a row that were not preceded by a long run.
    pub ends: u32,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Current {
    /// Not started yet; the reason and message say why if there is more to say than "its turn hasn't come".
    Waiting {
        why: Option<(String, String)>,
        retry_at: Option<Timestamp>,
    },
    Running(Running),
    Ended(Ended),
}

impl Default for Current {
    fn default() -> Self {
        Self::Waiting {
            why: None,
            retry_at: None,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Running {
    pub id: String,
    pub since: Timestamp,
    /// The postStart hook has not returned.
    pub hook_pending: bool,
    /// The startup probe has succeeded, or there is none.
    pub started: bool,
    pub ready: bool,
    /// A probe wants it restarted: the grace period it gets.
    pub unhealthy: Option<SignedDuration>,
    /// It has been told to stop and is killed at this time.
    pub stopping: Option<Timestamp>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ended {
    pub id: String,
    pub code: i32,
    pub signal: Option<i32>,
    pub reason: String,
    pub message: Option<String>,
    pub started: Option<Timestamp>,
    pub at: Timestamp,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Action {
    Start(String),
    /// Ask it to stop; kill it at the deadline. A repeated order has an earlier deadline.
    Stop {
        container: String,
        deadline: Timestamp,
    },
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Plan {
    pub actions: Vec<Action>,
    /// When to plan again even if nothing happens.
    pub wake_at: Option<Timestamp>,
    /// All init containers have done their work.
    pub initialized: bool,
    /// Nothing runs and nothing will be started again.
    pub over: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

impl RestartPolicy {
    pub(crate) fn of_pod(spec: &PodSpec) -> Self {
        match spec.restart_policy.as_deref() {
            Some("Never") => Self::Never,
            Some("OnFailure") => Self::OnFailure,
            _ => Self::Always,
        }
    }

    /// Init containers that succeed are done, whatever the pod's policy says about failures.
    pub(crate) fn of_init(spec: &PodSpec) -> Self {
        match Self::of_pod(spec) {
            Self::Never => Self::Never,
            Self::Always | Self::OnFailure => Self::OnFailure,
        }
    }

    pub(crate) fn restarts(self, ended: &Ended) -> bool {
        match self {
            Self::Always => true,
            Self::OnFailure => ended.code != 0,
            Self::Never => false,
        }
    }
}

/// An init container that keeps running beside the regular ones.
pub(crate) fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

pub(crate) fn init_containers(spec: &PodSpec) -> &[Container] {
    spec.init_containers.as_deref().unwrap_or_default()
}

/// How long a container rests after it has ended this many times in a row.
pub(crate) fn back_off(ends: u32) -> Duration {
    match ends {
        0 | 1 => Duration::ZERO,
        n => BACK_OFF_FIRST
            .saturating_mul(1 << (n - 2).min(10))
            .min(BACK_OFF_MAX),
    }
}

/// The count after one more end.
pub(crate) fn count_end(before: u32, ended: &Ended) -> u32 {
    let recovered = ended
        .started
        .is_some_and(|started| ended.at.duration_since(started) >= BACK_OFF_RESET);
    if recovered { 1 } else { before.saturating_add(1) }
}

pub(crate) fn grace(spec: &PodSpec) -> SignedDuration {
    SignedDuration::from_secs(spec.termination_grace_period_seconds.unwrap_or(30).max(0))
}

pub(crate) fn plan(spec: &PodSpec, state: &PodState, now: Timestamp) -> Plan {
    let mut planner = Planner {
        state,
        now,
        plan: Plan {
            initialized: state.initialized,
            ..Plan::default()
        },
    };
    if let Some(deadline) = state.deleting {
        planner.wind_down(spec, deadline);
    } else if state.failed.is_some() {
        planner.wind_down(spec, now + grace(spec));
    } else {
        planner.live(spec);
    }
    planner.plan
}

struct Planner<'a> {
    state: &'a PodState,
    now: Timestamp,
    plan: Plan,
}

/// Where a container stands from the planner's point of view.
enum Standing {
    /// It will not run again.
    Done { succeeded: bool },
    /// It runs; later ones may start.
    Up,
    /// It isn't running, or not far enough.
    NotYet,
}

impl Planner<'_> {
    fn current(&self, name: &str) -> &Current {
        static NEW: Current = Current::Waiting {
            why: None,
            retry_at: None,
        };
        self.state
            .containers
            .get(name)
            .map_or(&NEW, |container| &container.current)
    }

    fn wake_at(&mut self, at: Timestamp) {
        self.plan.wake_at = Some(self.plan.wake_at.map_or(at, |earlier| earlier.min(at)));
    }

    fn stop(&mut self, name: &str, running: &Running, deadline: Timestamp) {
        if running.stopping.is_none_or(|earlier| deadline < earlier) {
            self.plan.actions.push(Action::Stop {
                container: name.to_owned(),
                deadline,
            });
        }
    }

    /// Starts, restarts or leaves alone one container that should be running.
    fn keep(&mut self, name: &str, policy: RestartPolicy) -> Standing {
        match self.current(name).clone() {
            Current::Waiting { retry_at, .. } => self.start_at(name, retry_at.unwrap_or(self.now)),
            Current::Ended(ended) if policy.restarts(&ended) => {
                let ends = self
                    .state
                    .containers
                    .get(name)
                    .map_or(0, |container| container.ends);
                self.start_at(name, ended.at + back_off(ends));
            }
            Current::Ended(ended) => {
                return Standing::Done {
                    succeeded: ended.code == 0,
                };
            }
            Current::Running(running) => {
                if let Some(grace) = running.unhealthy {
                    self.stop(name, &running, running.stopping.unwrap_or(self.now + grace));
                }
                if !running.hook_pending && running.started {
                    return Standing::Up;
                }
            }
        }
        Standing::NotYet
    }

    fn start_at(&mut self, name: &str, at: Timestamp) {
        if at <= self.now {
            self.plan.actions.push(Action::Start(name.to_owned()));
        } else {
            self.wake_at(at);
        }
    }

    fn live(&mut self, spec: &PodSpec) {
        let initial = init_containers(spec);
        if self.state.initialized {
            let regular_over = spec
                .containers
                .iter()
                .all(|container| self.is_done(&container.name, spec));
            if regular_over {
                // The work is done: sidecars leave, the last started first.
                let deadline = self.now + grace(spec);
                return self.stop_sidecars(spec, deadline);
            }
            for sidecar in initial.iter().filter(|container| is_sidecar(container)) {
                self.keep(&sidecar.name, RestartPolicy::Always);
            }
        } else {
            for container in initial {
                let policy = if is_sidecar(container) {
                    RestartPolicy::Always
                } else {
                    RestartPolicy::of_init(spec)
                };
                match self.keep(&container.name, policy) {
                    Standing::Done { succeeded: true } => {}
                    Standing::Up if is_sidecar(container) => {}
                    Standing::Done { succeeded: false } => {
                        let deadline = self.now + grace(spec);
                        return self.stop_sidecars(spec, deadline);
                    }
                    Standing::Up | Standing::NotYet => return,
                }
            }
            self.plan.initialized = true;
        }
        for container in &spec.containers {
            self.keep(&container.name, RestartPolicy::of_pod(spec));
            // A postStart hook holds back the containers after it.
            let starting =
                matches!(self.plan.actions.last(), Some(Action::Start(name)) if *name == container.name);
            let hooked = container
                .lifecycle
                .as_ref()
                .is_some_and(|lifecycle| lifecycle.post_start.is_some());
            let pending =
                matches!(self.current(&container.name), Current::Running(running) if running.hook_pending);
            if pending || (starting && hooked) {
                return;
            }
        }
    }

    fn is_done(&self, name: &str, spec: &PodSpec) -> bool {
        matches!(self.current(name), Current::Ended(ended) if !RestartPolicy::of_pod(spec).restarts(ended))
    }

    fn wind_down(&mut self, spec: &PodSpec, deadline: Timestamp) {
        let mut running = false;
        let ordinary = init_containers(spec)
            .iter()
            .filter(|container| !is_sidecar(container));
        for container in ordinary.chain(&spec.containers) {
            if let Current::Running(run) = self.current(&container.name).clone() {
                running = true;
                self.stop(&container.name, &run, deadline);
            }
        }
        if !running {
            let last = deadline.max(self.now + SIDECAR_GRACE_MIN);
            // A pod that must be gone at once has no such minimum.
            self.stop_sidecars(spec, if deadline <= self.now { deadline } else { last });
        } else if deadline <= self.now {
            self.stop_sidecars(spec, deadline);
            self.plan.over = false;
        } else {
            self.wake_at(deadline);
        }
    }

    /// Stops the last running sidecar; the pod is over when there is none.
    fn stop_sidecars(&mut self, spec: &PodSpec, deadline: Timestamp) {
        let last =
            init_containers(spec)
                .iter()
                .rev()
                .find_map(|container| match self.current(&container.name) {
                    Current::Running(running) => Some((container.name.clone(), running.clone())),
                    Current::Waiting { .. } | Current::Ended(_) => None,
                });
        match last {
            None => self.plan.over = true,
            Some((name, running)) => {
                // Time passes between two plans; only an order from outside may shorten what was granted.
                let granted = running.stopping.filter(|_| self.state.deleting.is_none());
                self.stop(&name, &running, granted.unwrap_or(deadline));
                if self.state.deleting.is_some() && deadline > self.now {
                    self.wake_at(deadline);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + second).unwrap()
    }

    fn running(started: bool) -> Current {
        Current::Running(Running {
            id: String::new(),
            since: at(0),
            hook_pending: false,
            started,
            ready: started,
            unhealthy: None,
            stopping: None,
        })
    }

    fn stopping(deadline: i64) -> Current {
        let Current::Running(run) = running(true) else {
            unreachable!("running() runs")
        };
        Current::Running(Running {
            stopping: Some(at(deadline)),
            ..run
        })
    }

    fn ended(code: i32, second: i64) -> Current {
        Current::Ended(Ended {
            id: String::new(),
            code,
            signal: None,
            reason: String::new(),
            message: None,
            started: Some(at(0)),
            at: at(second),
        })
    }

    fn spec(policy: &str) -> PodSpec {
        serde_json::from_value(json!({
            "restartPolicy": policy,
            "initContainers": [{"name": "init"}, {"name": "mesh", "restartPolicy": "Always"}, {"name": "late"}],
            "containers": [{"name": "web"}, {"name": "log"}],
        }))
        .unwrap()
    }

    fn state(containers: &[(&str, Current, u32)]) -> PodState {
        let containers = containers.iter().map(|(name, current, ends)| {
            let container = ContainerState {
                current: current.clone(),
                ends: *ends,
                ..ContainerState::default()
            };
            ((*name).to_owned(), container)
        });
        PodState {
            containers: containers.collect(),
            ..PodState::default()
        }
    }

    fn initialized(containers: &[(&str, Current, u32)]) -> PodState {
        PodState {
            initialized: true,
            ..state(containers)
        }
    }

    #[track_caller]
    fn check(policy: &str, state: &PodState, now: i64, expected: &str) {
        let plan = plan(&spec(policy), state, at(now));
        let mut words: Vec<String> = plan
            .actions
            .iter()
            .map(|action| match action {
                Action::Start(name) => format!("start {name}"),
                Action::Stop { container, deadline } => {
                    format!("stop {container} by {}", deadline.as_second() - 1_000_000)
                }
            })
            .collect();
        if let Some(wake) = plan.wake_at {
            words.push(format!("wake at {}", wake.as_second() - 1_000_000));
        }
        if plan.over {
            words.push("over".to_owned());
        }
        assert_eq!(words.join(", "), expected);
    }

    #[test]
    fn init_containers_run_one_after_the_other_and_a_sidecar_holds_back_the_next_until_started() {
        check("Always", &state(&[]), 0, "start init");
        check("Always", &state(&[("init", running(true), 0)]), 0, "");
        check("Always", &state(&[("init", ended(0, 1), 1)]), 1, "start mesh");
        check(
            "Always",
            &state(&[("init", ended(0, 1), 1), ("mesh", running(false), 0)]),
            1,
            "",
        );
        check(
            "Always",
            &state(&[("init", ended(0, 1), 1), ("mesh", running(true), 0)]),
            1,
            "start late",
        );
        check(
            "Always",
            &state(&[
                ("init", ended(0, 1), 1),
                ("mesh", running(true), 0),
                ("late", ended(0, 2), 1),
            ]),
            2,
            "start web, start log",
        );
    }

    #[test]
    fn a_failed_init_container_is_retried_after_its_back_off_or_fails_the_pod() {
        check("OnFailure", &state(&[("init", ended(1, 5), 2)]), 5, "wake at 15");
        check("OnFailure", &state(&[("init", ended(1, 5), 2)]), 15, "start init");
        check("Never", &state(&[("init", ended(1, 5), 1)]), 5, "over");
    }

    #[test]
    fn an_initialized_pod_never_runs_init_containers_again_but_restarts_sidecars() {
        let all = [
            ("mesh", ended(1, 5), 1),
            ("web", running(true), 0),
            ("log", running(true), 0),
        ];
        check("Always", &initialized(&all), 5, "start mesh");
    }

    #[test]
    fn containers_restart_by_policy_with_back_off() {
        let all = |code, ends| {
            [
                ("mesh", running(true), 0),
                ("web", ended(code, 5), ends),
                ("log", running(true), 0),
            ]
        };
        check("Always", &initialized(&all(0, 1)), 5, "start web");
        check("Always", &initialized(&all(0, 3)), 5, "wake at 25");
        check("OnFailure", &initialized(&all(0, 1)), 5, "");
        check("OnFailure", &initialized(&all(1, 1)), 5, "start web");
        check("Never", &initialized(&all(1, 1)), 5, "");
    }

    #[test]
    fn sidecars_leave_when_the_work_is_done() {
        let all = |mesh: Current| {
            [
                ("mesh", mesh, 0),
                ("web", ended(0, 5), 1),
                ("log", ended(0, 6), 1),
            ]
        };
        check("Never", &initialized(&all(running(true))), 6, "stop mesh by 36");
        check("Never", &initialized(&all(stopping(36))), 7, "");
        check("Never", &initialized(&all(ended(0, 8))), 8, "over");
    }

    #[test]
    fn deletion_stops_regular_containers_first_and_then_sidecars_and_kills_at_the_deadline() {
        let deleted = |mesh: Current, web: Current, deadline| PodState {
            deleting: Some(at(deadline)),
            ..initialized(&[("mesh", mesh, 0), ("web", web, 0), ("log", ended(0, 1), 1)])
        };
        check(
            "Always",
            &deleted(running(true), running(true), 30),
            0,
            "stop web by 30, wake at 30",
        );
        check(
            "Always",
            &deleted(running(true), stopping(30), 30),
            0,
            "wake at 30",
        );
        check(
            "Always",
            &deleted(running(true), ended(0, 3), 30),
            3,
            "stop mesh by 30, wake at 30",
        );
        check("Always", &deleted(ended(0, 4), ended(0, 3), 30), 4, "over");
        // Somebody has shortened the grace period.
        check(
            "Always",
            &deleted(running(true), stopping(30), 5),
            5,
            "stop web by 5, stop mesh by 5",
        );
    }

    #[test]
    fn an_unhealthy_container_is_stopped_once_with_its_grace_period() {
        let Current::Running(run) = running(true) else {
            unreachable!("running() runs")
        };
        let unhealthy = Running {
            unhealthy: Some(SignedDuration::from_secs(7)),
            ..run
        };
        let all = |run: Running| {
            [
                ("mesh", running(true), 0),
                ("web", Current::Running(run), 0),
                ("log", running(true), 0),
            ]
        };
        check(
            "Always",
            &initialized(&all(unhealthy.clone())),
            10,
            "stop web by 17",
        );
        let told = Running {
            stopping: Some(at(17)),
            ..unhealthy
        };
        check("Always", &initialized(&all(told)), 11, "");
    }

    #[test]
    fn back_off_starts_at_once_then_doubles_from_ten_seconds_to_five_minutes() {
        let seconds: Vec<u64> = (0..9).map(|ends| back_off(ends).as_secs()).collect();
        assert_eq!(seconds, [0, 0, 10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(back_off(u32::MAX), BACK_OFF_MAX);
    }

    #[test]
    fn a_long_run_resets_the_count() {
        let Current::Ended(short) = ended(1, 599) else {
            unreachable!("ended() ended")
        };
        let Current::Ended(long) = ended(1, 600) else {
            unreachable!("ended() ended")
        };
        assert_eq!((count_end(4, &short), count_end(4, &long)), (5, 1));
    }
}
