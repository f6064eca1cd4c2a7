//! However a sandbox ends, nothing of it is left: no process, namespace, mount, interface or rule.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::host::{self, HAWSER, eventually};
use crate::runner::{Test, alone};
use crate::world::{COMMAND_DEADLINE, Demo, words};

pub(crate) const TESTS: &[Test] = &[
    alone(
        "kill_minus_9_leaves_nothing_of_a_demo",
        &[],
        kill_minus_9_leaves_nothing_of_a_demo,
    ),
    alone(
        "ctrl_c_leaves_nothing_of_a_demo",
        &[],
        ctrl_c_leaves_nothing_of_a_demo,
    ),
    alone(
        "sandbox_down_leaves_nothing",
        &["kubectl"],
        sandbox_down_leaves_nothing,
    ),
];

const STARTED: Duration = Duration::from_secs(90);
/// The kernel takes its time with namespaces that held many interfaces.
const GONE: Duration = Duration::from_secs(15);

/// The machine before, and what was added to it.
struct Traces {
    furniture: BTreeMap<&'static str, BTreeSet<String>>,
    processes: BTreeSet<u32>,
    namespaces: BTreeSet<String>,
}

impl Traces {
    /// All that runs below these, in namespaces that aren't ours.
    fn of(
        furniture: BTreeMap<&'static str, BTreeSet<String>>,
        ancestors: &[u32],
        processes_min: usize,
    ) -> Self {
        let processes: BTreeSet<u32> = ancestors.iter().flat_map(|pid| host::family(*pid)).collect();
        let ours = host::namespaces(&BTreeSet::from([std::process::id()]));
        let namespaces: BTreeSet<String> = &host::namespaces(&processes) - &ours;
        assert!(
            processes.len() >= processes_min,
            "a busy sandbox has processes: {processes:?}"
        );
        for kind in ["net", "mnt", "pid", "user"] {
            let found = namespaces
                .iter()
                .filter(|name| name.starts_with(&format!("{kind}:")));
            assert!(
                found.count() > 0,
                "a sandbox has a {kind} namespace: {namespaces:?}"
            );
        }
        Self {
            furniture,
            processes,
            namespaces,
        }
    }

    /// Waits until nothing is left.
    fn vanish(&self) {
        eventually("everything is gone", GONE, || {
            let all = host::pids();
            let held: BTreeSet<String> = &host::namespaces(&all) & &self.namespaces;
            if !held.is_empty() {
                return Err(format!("namespaces {held:?} are held"));
            }
            let left: Vec<u32> = self
                .processes
                .iter()
                .copied()
                .filter(|pid| all.contains(pid))
                .collect();
            if !left.is_empty() {
                return Err(format!("processes {left:?} are left"));
            }
            Ok(())
        });
        assert_eq!(self.furniture, host::furniture(), "mounts, interfaces and rules");
    }
}

/// A demo that is in the middle of its work.
fn busy_demo() -> (Demo, Traces) {
    let before = host::furniture();
    let demo = Demo::start(&[]);
    demo.says("ok  control planes are ready", STARTED);
    // Itself, the sandbox's three, and the containers of two control planes.
    let traces = Traces::of(before, &[demo.pid()], 4 + 2 * 6);
    (demo, traces)
}

fn kill_minus_9_leaves_nothing_of_a_demo() {
    let (mut demo, traces) = busy_demo();
    demo.signal(Signal::SIGKILL);
    demo.ended(GONE);
    traces.vanish();
}

fn ctrl_c_leaves_nothing_of_a_demo() {
    let (mut demo, traces) = busy_demo();
    demo.signal(Signal::SIGINT);
    let status = demo.ended(GONE);
    assert_eq!(
        status.code(),
        Some(130),
        "as shells expect of an interrupted program"
    );
    traces.vanish();
}

fn sandbox_down_leaves_nothing() {
    let before = host::furniture();
    let dir = host::state_dir();
    let sandbox = |words: &[&str]| {
        let mut command = Command::new(HAWSER);
        command
            .arg("sandbox")
            .arg("--state-dir")
            .arg(dir.path())
            .args(words);
        host::run(command, "", COMMAND_DEADLINE * 3)
    };
    let up = sandbox(&["up", "one", "two"]);
    assert!(up.succeeded(), "{up:?}");
    let kubectl = |line: &str| {
        let mut command = Command::new("kubectl");
        command
            .arg("--kubeconfig")
            .arg(dir.path().join("kubeconfig"))
            .args(["--context", "one"])
            .args(words(line))
            .env("HOME", dir.path());
        let said = host::run(command, "", COMMAND_DEADLINE * 2);
        assert!(said.succeeded(), "kubectl {line}: {said:?}");
    };
    kubectl("run sleeper --image=curlimages/curl --command -- sleep infinity");
    kubectl("wait --for=condition=Ready pod/sleeper --timeout=30s");
    // Detached, so it is nobody's child: known by the directory among its arguments.
    let traces = Traces::of(before, &host::naming(dir.path()), 4);
    let down = sandbox(&["down"]);
    assert!(down.succeeded(), "{down:?}");
    traces.vanish();
}
