//! The whole system as its users have it: the built `hawser`, two linked clusters, real kubectl.
//!
//! `hawser demo` plays its scenario once; the tests then use what it leaves running, one after the other, and each
//! leaves it as it was found. Tests of starting and ending come last, with sandboxes of their own. A test's name is
//! its claim. Where the machine can't run a sandbox, every test is ignored, with the reason.

mod bad_input;
mod browser;
mod check;
mod clusters;
mod dashboard;
mod demo;
mod drill;
mod entry;
mod explain;
mod failover;
mod flat;
mod grafana;
mod host;
mod isolation;
mod kubectl;
mod kubernetes;
mod multicluster;
mod node_ports;
mod nodes;
mod policy;
mod recovery;
mod rotation;
mod runner;
mod sandbox;
mod spans;
mod split;
mod traces;
mod upgrade;
mod user;
mod viz;
mod workshop;
mod world;

use std::process::ExitCode;

use runner::Test;

fn main() -> ExitCode {
    let tests: Vec<Test> = [
        demo::TESTS,
        kubectl::TESTS,
        check::TESTS,
        entry::TESTS,
        explain::TESTS,
        isolation::TESTS,
        split::TESTS,
        policy::TESTS,
        recovery::TESTS,
        failover::TESTS,
        drill::TESTS,
        multicluster::TESTS,
        upgrade::TESTS,
        rotation::TESTS,
        bad_input::TESTS,
        dashboard::TESTS,
        viz::TESTS,
        spans::TESTS,
        sandbox::TESTS,
        workshop::TESTS,
        flat::TESTS,
        node_ports::TESTS,
        user::TESTS,
        traces::TESTS,
        kubernetes::TESTS,
        nodes::TESTS,
    ]
    .concat();
    runner::run(&tests)
}
