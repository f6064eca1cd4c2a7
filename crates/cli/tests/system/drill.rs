//! A failover on purpose: forecast, carried out, and undone also when nobody is left to undo it.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::demo::report;
use crate::host::{self, HAWSER, Said, eventually};
use crate::recovery::weighs;
use crate::runner::{Test, linked};
use crate::world::{COMMAND_DEADLINE, World, words};

pub(crate) const TESTS: &[Test] = &[linked(
    "a_drill_moves_votes_as_forecast_and_gives_them_back_also_when_it_is_killed",
    &["kubectl"],
    a_drill_moves_votes_as_forecast_and_gives_them_back_also_when_it_is_killed,
)];

/// A drill that nobody watches any more ends by itself within this time.
const ABANDONED: Duration = Duration::from_secs(15);
/// Some of Emojivoto's votes fail, on purpose.
const DRILL: &str = "drill svc/web-svc -n emojivoto --backend web-svc --min-success-rate 50% --window 5s";

fn command(world: &World, line: &str) -> Command {
    let mut command = Command::new(HAWSER);
    command
        .args(words(line))
        .args(["--context", "west", "--kubeconfig"])
        .arg(world.kubeconfig())
        .env("HOME", world.dir());
    command
}

fn drill(world: &World, flags: &str) -> Said {
    host::run(command(world, &format!("{DRILL} {flags}")), "", COMMAND_DEADLINE)
}

fn a_drill_moves_votes_as_forecast_and_gives_them_back_also_when_it_is_killed(world: &World) {
    let annotate = "-n emojivoto annotate --overwrite trafficsplit web-svc";
    world.kubectl("west", &format!("{annotate} failover.linkerd.io/return-over=0s"));
    weighs(world, "web-svc", [true, false]);

    let said = drill(world, "--dry-run -o json");
    assert_eq!(said.code(), Some(0), "{said:?}");
    let outlook: Value = serde_json::from_str(&said.out).expect("JSON");
    let row = |service: &str| {
        let mut rows = outlook["rows"].as_array().expect("rows").iter();
        rows.find(|row| row["service"] == service)
            .expect("a backend")
            .clone()
    };
    let (here, east) = (row("web-svc"), row("web-svc-east"));
    assert_eq!(
        (here["share_now"].as_f64(), here["share_then"].as_f64()),
        (Some(1.0), Some(0.0))
    );
    assert_eq!(
        (east["share_now"].as_f64(), east["share_then"].as_f64()),
        (Some(0.0), Some(1.0))
    );
    assert_eq!(east["cluster"], "east");
    weighs(world, "web-svc", [true, false]);

    let said = drill(world, "--for 3s");
    assert_eq!(said.code(), Some(2), "nobody said yes: {said:?}");
    let said = drill(world, "--for 3s --yes -o json");
    assert_eq!(said.code(), Some(0), "{said:?}");
    let seen: Value = serde_json::from_str(&said.out).expect("JSON");
    assert!(
        seen["movedAfterSeconds"].is_f64() && seen["returns"] == true,
        "{seen}"
    );
    weighs(world, "web-svc", [true, false]);

    let mut killed = command(world, &format!("{DRILL} --for 60s --yes"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("hawser starts");
    weighs(world, "web-svc", [false, true]);
    killed.kill().expect("it runs");
    killed.wait().expect("it ends");
    let began = Instant::now();
    eventually("the controller ends what nobody watches", ABANDONED, || {
        let split = world.get("west", "-n emojivoto trafficsplit web-svc")?;
        match &split["spec"]["backends"][0]["weight"] {
            weight if *weight == 0 => Err(split["metadata"]["annotations"].to_string()),
            _ => Ok(()),
        }
    });
    report(&format!(
        "{:.1} s from a killed drill to weights as before",
        began.elapsed().as_secs_f64()
    ));
    // As the demo has it, for the tests that follow.
    world.kubectl("west", &format!("{annotate} failover.linkerd.io/return-over=2s"));
}
