//! Tests that need a kernel: they run in namespaces of their own, in a process of their own.

use std::process::Command;

const INSIDE: &str = "HAWSER_TEST_INSIDE";

/// Runs the body as root of new namespaces. `test` is the calling test's full name. Says so and returns where
/// namespaces are impossible.
#[expect(clippy::print_stderr, reason = "a skipped test says why")]
pub(crate) fn in_namespaces(test: &str, body: impl Future<Output = ()>) {
    if std::env::var_os(INSIDE).is_some() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime");
        return runtime.block_on(body);
    }
    let flags = [
        "--user",
        "--map-root-user",
        "--net",
        "--mount",
        "--pid",
        "--fork",
        "--mount-proc",
    ];
    let possible = Command::new("unshare").args(flags).arg("true").status();
    if !possible.is_ok_and(|status| status.success()) {
        eprintln!("skipped {test}: no user and network namespaces here");
        return;
    }
    let status = Command::new("unshare")
        .args(flags)
        .arg(std::env::current_exe().expect("a test has a path"))
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .status()
        .expect("unshare just ran");
    assert!(status.success(), "{test} failed inside its namespaces");
}
