//! Traffic leaves a service that is ready and fails.

use std::time::Instant;

use serde_json::Value;

use crate::demo::report;
use crate::host::eventually;
use crate::recovery::weighs;
use crate::runner::{Test, linked};
use crate::world::{SOON, World};

pub(crate) const TESTS: &[Test] = &[linked(
    "votes_move_to_east_when_web_in_west_answers_with_errors_and_return_when_it_is_mended",
    &["kubectl"],
    votes_move_to_east_when_web_in_west_answers_with_errors_and_return_when_it_is_mended,
)];

fn annotate(world: &World, annotations: &str) {
    world.kubectl(
        "west",
        &format!("-n emojivoto annotate --overwrite trafficsplit web-svc {annotations}"),
    );
}

/// Where web looks for the emoji that it lists.
fn look_for_emoji_at(world: &World, host: &str) {
    world.kubectl(
        "west",
        &format!("-n emojivoto set env deployment/web EMOJISVC_HOST={host}"),
    );
}

fn votes_move_to_east_when_web_in_west_answers_with_errors_and_return_when_it_is_mended(world: &World) {
    weighs(world, [true, false]);
    annotate(
        world,
        "failover.linkerd.io/min-success-rate=70% failover.linkerd.io/window=5s failover.linkerd.io/min-requests=10",
    );
    let began = Instant::now();
    // Nobody answers there, and web stays ready all the same.
    look_for_emoji_at(world, "127.0.0.1:1");
    weighs(world, [false, true]);
    report(&format!(
        "{:.1} s from a broken web to weights in east",
        began.elapsed().as_secs_f64()
    ));
    eventually("the status says why", SOON, || {
        let status: Value = serde_json::from_str(&world.hawser("west", "failover status -o json", ""))
            .map_err(|error| error.to_string())?;
        match &status[0]["decision"]["reason"] {
            reason if reason == "SuccessRate" => Ok(()),
            _ => Err(status.to_string()),
        }
    });
    look_for_emoji_at(world, "emoji-svc.emojivoto:8080");
    weighs(world, [true, false]);
    annotate(
        world,
        "failover.linkerd.io/min-success-rate- failover.linkerd.io/window- failover.linkerd.io/min-requests-",
    );
}
