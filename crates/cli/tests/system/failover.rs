//! Traffic leaves a service that is ready and fails.

use std::time::Instant;

use serde_json::{Value, json};

use crate::demo::report;
use crate::host::eventually;
use crate::recovery::weighs;
use crate::runner::{Test, linked};
use crate::world::{SOON, World};

pub(crate) const TESTS: &[Test] = &[
    linked(
        "votes_move_to_east_when_web_in_west_answers_with_errors_and_return_when_it_is_mended",
        &["kubectl"],
        votes_move_to_east_when_web_in_west_answers_with_errors_and_return_when_it_is_mended,
    ),
    linked(
        "requests_leave_a_backend_that_turns_slow_and_return_when_it_is_quick_again",
        &["kubectl", "curl"],
        requests_leave_a_backend_that_turns_slow_and_return_when_it_is_quick_again,
    ),
];

/// The slow one is the mirror of east, for whose link a delay is enough.
fn requests_leave_a_backend_that_turns_slow_and_return_when_it_is_quick_again(world: &World) {
    let split = "web-quick";
    world.apply(
        "west",
        &json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": split, "namespace": "emojivoto"},
            "spec": {"selector": {"app": "web-svc"}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
        }),
    );
    world.apply(
        "west",
        &json!({
            "apiVersion": "split.smi-spec.io/v1alpha2", "kind": "TrafficSplit",
            "metadata": {
                "name": split, "namespace": "emojivoto",
                "labels": {"failover.linkerd.io/controlled-by": "linkerd-failover"},
                "annotations": {
                    "failover.linkerd.io/primary-service": "web-svc-east",
                    "failover.linkerd.io/max-latency": "300ms",
                    "failover.linkerd.io/latency-quantile": "0.5",
                    "failover.linkerd.io/window": "5s",
                    "failover.linkerd.io/min-requests": "10",
                    "failover.linkerd.io/min-dwell": "5s",
                    "failover.linkerd.io/return-over": "0s",
                },
            },
            "spec": {"service": split, "backends": [{"service": "web-svc-east", "weight": 1}, {"service": "web-svc", "weight": 0}]},
        }),
    );
    world.caller("west", "hasty", &format!("http://{split}.emojivoto/api/list"));
    weighs(world, split, [true, false]);
    let began = Instant::now();
    // There and back, a request takes at least twice as long.
    world.sandbox("delay west east 200ms");
    weighs(world, split, [false, true]);
    report(&format!(
        "{:.1} s from a slow link to weights in west",
        began.elapsed().as_secs_f64()
    ));
    eventually("the status says why", SOON, || {
        let status = world.hawser("west", "failover status -o json", "");
        let status: Value = serde_json::from_str(&status).map_err(|error| error.to_string())?;
        let rows = status.as_array().cloned().unwrap_or_default();
        let row = rows.iter().find(|row| row["name"] == split);
        match row.is_some_and(|row| row["decision"]["reason"] == "Latency") {
            true => Ok(()),
            false => Err(status.to_string()),
        }
    });
    world.sandbox("heal west east");
    weighs(world, split, [true, false]);
    world.remove("west", "hasty");
    world.kubectl(
        "west",
        &format!("-n emojivoto delete trafficsplit,service {split}"),
    );
}

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
    weighs(world, "web-svc", [true, false]);
    annotate(
        world,
        "failover.linkerd.io/min-success-rate=70% failover.linkerd.io/window=5s failover.linkerd.io/min-requests=10",
    );
    let began = Instant::now();
    // Nobody answers there, and web stays ready all the same.
    look_for_emoji_at(world, "127.0.0.1:1");
    weighs(world, "web-svc", [false, true]);
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
    weighs(world, "web-svc", [true, false]);
    annotate(
        world,
        "failover.linkerd.io/min-success-rate- failover.linkerd.io/window- failover.linkerd.io/min-requests-",
    );
}
