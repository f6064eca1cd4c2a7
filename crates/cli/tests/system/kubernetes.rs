//! The mesh on control planes of Kubernetes, where the machine has their programs.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::demo::report;
use crate::host::{self, HAWSER};
use crate::runner::{Test, alone};

/// Kubernetes' programs take a while to start.
const DEADLINE: Duration = Duration::from_secs(400);

pub(crate) const TESTS: &[Test] = &[
    alone(
        "the_demo_plays_to_its_end_on_control_planes_of_kubernetes",
        &[],
        the_demo_plays_to_its_end_on_control_planes_of_kubernetes,
    )
    .unless(missing),
    alone(
        "the_demo_plays_to_its_end_on_control_planes_of_the_oldest_kubernetes",
        &[],
        the_demo_plays_to_its_end_on_control_planes_of_the_oldest_kubernetes,
    )
    .unless(|| hawser_testing::oldest_control_plane().err()),
];

pub(crate) fn missing() -> Option<String> {
    hawser_testing::control_plane().err()
}

fn the_demo_plays_to_its_end_on_control_planes_of_kubernetes() {
    plays(&hawser_testing::control_plane().expect("it is there"));
}

fn the_demo_plays_to_its_end_on_control_planes_of_the_oldest_kubernetes() {
    plays(&hawser_testing::oldest_control_plane().expect("it is there"));
}

fn plays(programs: &Path) {
    let dir = host::state_dir();
    let mut demo = Command::new(HAWSER);
    demo.args(["demo", "--once", "--api", "kubernetes", "--kubernetes"])
        .arg(programs)
        .arg("--state-dir")
        .arg(dir.path());
    let said = host::run(demo, "", DEADLINE);
    assert!(said.succeeded(), "{said:?}");
    assert!(said.out.contains("outcomes are as they should be"), "{said:?}");
    for line in said.out.lines().filter(|line| line.contains(" s  from ")) {
        report(line.trim());
    }
}
