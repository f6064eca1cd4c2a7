//! The mesh on control planes of Kubernetes, where the machine has their programs.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::demo::report;
use crate::host::{self, HAWSER};
use crate::runner::{Test, alone};

/// Kubernetes' programs take a while to start.
const DEADLINE: Duration = Duration::from_secs(400);

pub(crate) const TESTS: &[Test] = &[alone(
    "the_demo_plays_to_its_end_on_control_planes_of_kubernetes",
    &[],
    the_demo_plays_to_its_end_on_control_planes_of_kubernetes,
)
.unless(missing)];

/// Where the programs are: where the environment says, or where `cargo xtask kubernetes build` puts them.
fn programs() -> PathBuf {
    let named = std::env::var_os("KUBEBUILDER_ASSETS").filter(|assets| !assets.is_empty());
    let built = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/kubernetes/current");
    named.map_or_else(built, PathBuf::from)
}

fn missing() -> Option<String> {
    let absent = !programs().join("kube-controller-manager").is_file();
    absent.then(|| "no control plane of Kubernetes here; try: cargo xtask kubernetes build".to_owned())
}

fn the_demo_plays_to_its_end_on_control_planes_of_kubernetes() {
    let dir = host::state_dir();
    let mut demo = Command::new(HAWSER);
    demo.args(["demo", "--once", "--api", "kubernetes", "--kubernetes"])
        .arg(programs())
        .arg("--state-dir")
        .arg(dir.path());
    let said = host::run(demo, "", DEADLINE);
    assert!(said.succeeded(), "{said:?}");
    assert!(said.out.contains("outcomes are as they should be"), "{said:?}");
    for line in said.out.lines().filter(|line| line.contains(" s  from ")) {
        report(line.trim());
    }
}
