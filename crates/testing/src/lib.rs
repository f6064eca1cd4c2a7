//! Tests that need more than Rust: where the machine lacks it they are ignored, with the reason, and never passed.
//!
//! A test program without libtest's harness calls [`in_namespaces`], [`with_program`] or [`unless`] with its tests, or
//! makes trials of its own from [`inside`], [`namespaced`] and [`ignored`]. Knows nothing of what is tested.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use libtest_mimic::{Arguments, Failed, Trial};

const INSIDE: &str = "HAWSER_TEST_INSIDE";

/// A claim's name and how it is shown: by a function that panics if it doesn't hold.
pub type Test = (&'static str, fn());

/// Tests that need a kernel: each is this program started again under `unshare`, as root of new user, network, mount
/// and process namespaces whose loopback interface is up.
#[must_use]
pub fn in_namespaces(tests: &[Test]) -> ExitCode {
    if let Some(ended) = inside(tests) {
        return ended;
    }
    let trials = tests.iter().map(|&(name, _)| namespaced(name));
    run(trials.collect(), no_namespaces())
}

/// If this process is one that [`namespaced`] started: runs the test that it was started for.
#[must_use]
pub fn inside(tests: &[Test]) -> Option<ExitCode> {
    let wanted = std::env::var_os(INSIDE)?;
    let Some((_, body)) = tests.iter().find(|(name, _)| *name == wanted) else {
        return Some(ExitCode::FAILURE);
    };
    body();
    Some(ExitCode::SUCCESS)
}

/// A test that is this program started again in namespaces; there [`inside`] runs it.
#[must_use]
pub fn namespaced(name: &'static str) -> Trial {
    Trial::test(name, move || started_again(name))
}

/// A test that can't run, and why.
#[must_use]
pub fn ignored(trial: Trial, why: &str) -> Trial {
    trial.with_kind(why).with_ignored_flag(true)
}

/// The directory of a control plane's programs: the one that the environment names, or where `cargo xtask kubernetes
/// build` puts them; or why there is none.
pub fn control_plane() -> Result<PathBuf, String> {
    let named = std::env::var_os("KUBEBUILDER_ASSETS").filter(|assets| !assets.is_empty());
    let found = named.map_or_else(|| built("current"), |assets| complete(Path::new(&assets)));
    found.ok_or_else(|| "no control plane of Kubernetes here; try: cargo xtask kubernetes build".to_owned())
}

/// The same of the oldest Kubernetes that is supported.
pub fn oldest_control_plane() -> Result<PathBuf, String> {
    let why = || {
        format!(
            "no control plane of Kubernetes {OLDEST} here; try: cargo xtask kubernetes build --version {OLDEST}"
        )
    };
    built(OLDEST).ok_or_else(why)
}

const OLDEST: &str = "1.30";

fn built(version: &str) -> Option<PathBuf> {
    let all = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/kubernetes");
    complete(&all.join(version))
}

fn complete(dir: &Path) -> Option<PathBuf> {
    let dir = dir.canonicalize().ok()?;
    dir.join("kube-scheduler").is_file().then_some(dir)
}

/// Tests that need a program in the path. In CI it must be there.
#[must_use]
pub fn with_program(program: &str, tests: &[Test]) -> ExitCode {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|dir| dir.join(program).is_file());
    let missing = (!found && std::env::var_os("CI").is_none()).then(|| format!("no {program} here"));
    unless(missing, tests)
}

/// Tests that can't run if there is a reason.
#[must_use]
pub fn unless(missing: Option<String>, tests: &[Test]) -> ExitCode {
    let trials = tests.iter().map(|&(name, body)| {
        Trial::test(name, move || {
            body();
            Ok(())
        })
    });
    run(trials.collect(), missing)
}

/// Runs those that the arguments of this process choose.
fn run(mut trials: Vec<Trial>, missing: Option<String>) -> ExitCode {
    if let Some(why) = missing {
        trials = trials.into_iter().map(|trial| ignored(trial, &why)).collect();
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// Runs this one test of a program, whose output is shown if it fails.
fn started_again(name: &str) -> Result<(), Failed> {
    let program = std::env::current_exe().map_err(|error| format!("this program has no path: {error}"))?;
    let output = unshare(program.as_os_str()).env(INSIDE, name).output();
    let output = output.map_err(|error| format!("unshare does not start: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let [out, err] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    Err(format!("{}\n{out}{err}", output.status).into())
}

/// Why no namespaces can be made here, if so.
#[must_use]
pub fn no_namespaces() -> Option<String> {
    let output = match unshare(OsStr::new("true")).output() {
        Ok(output) => output,
        Err(error) => return Some(format!("no unshare here: {error}")),
    };
    let said = String::from_utf8_lossy(&output.stderr);
    (!output.status.success()).then(|| format!("no namespaces here: {}", said.trim()))
}

fn unshare(program: &OsStr) -> Command {
    let mut command = Command::new("unshare");
    command
        .args([
            "--user",
            "--map-root-user",
            "--net",
            "--mount",
            "--pid",
            "--fork",
            "--mount-proc",
        ])
        .args(["sh", "-c", "ip link set lo up && exec \"$0\""])
        .arg(program);
    command
}
