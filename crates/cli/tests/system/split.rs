//! Weights that a user wrote into a TrafficSplit are followed while traffic flows.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::demo::report;
use crate::host::eventually;
use crate::runner::{Test, linked};
use crate::world::{SOON, VISITORS, World};

pub(crate) const TESTS: &[Test] = &[linked(
    "weights_edited_by_hand_are_followed_within_two_seconds_without_a_restart",
    &["kubectl", "curl"],
    weights_edited_by_hand_are_followed_within_two_seconds_without_a_restart,
)];

const PROMISED: Duration = Duration::from_secs(2);

fn weights_edited_by_hand_are_followed_within_two_seconds_without_a_restart(world: &World) {
    world.citizen("west", "chooser");
    let port = json!({"name": "http", "port": 80, "targetPort": 8080});
    world.apply(
        "west",
        &json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "web-apex", "namespace": "emojivoto"},
            "spec": {"selector": {"app": "web-svc"}, "ports": [port]},
        }),
    );
    weigh(world, 1, 0);
    eventually("requests stay in west", SOON, || all_answered_by(world, None));
    let before = world.pod("west", VISITORS, "app=chooser").expect("it runs");
    for (local, linked, cluster) in [(0, 1, Some("east")), (1, 0, None), (0, 5, Some("east"))] {
        let began = Instant::now();
        weigh(world, local, linked);
        // Looks take time, and the first to see only moved requests began after they had moved.
        let moved = eventually(
            &format!("weights {local} and {linked} are followed"),
            PROMISED,
            || {
                let looked = began.elapsed();
                all_answered_by(world, cluster).map(|()| looked)
            },
        );
        report(&format!(
            "weights {local}:{linked} were followed after {:.1} s at most",
            moved.as_secs_f64()
        ));
    }
    weigh(world, 1, 1);
    eventually("both answer", SOON, || match (ask(world)?, ask(world)?) {
        (first, second) if first.linked + second.linked > 0.0 && first.local + second.local > 0.0 => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let after = world.pod("west", VISITORS, "app=chooser").expect("it runs");
    assert_eq!(before["metadata"]["uid"], after["metadata"]["uid"]);
    assert_eq!(
        before["status"]["containerStatuses"][0]["restartCount"],
        after["status"]["containerStatuses"][0]["restartCount"]
    );
    world.kubectl("west", "-n emojivoto delete trafficsplit web-apex");
    world.kubectl("west", "-n emojivoto delete service web-apex");
    world.remove("west", "chooser");
}

fn weigh(world: &World, local: u32, linked: u32) {
    world.apply(
        "west",
        &json!({
            "apiVersion": "split.smi-spec.io/v1alpha2", "kind": "TrafficSplit",
            "metadata": {"name": "web-apex", "namespace": "emojivoto"},
            "spec": {
                "service": "web-apex",
                "backends": [{"service": "web-svc", "weight": local}, {"service": "web-svc-east", "weight": linked}],
            },
        }),
    );
}

#[derive(Debug)]
struct Answers {
    local: f64,
    linked: f64,
}

/// Sends a handful of requests and says who answered them, as the proxy counts.
fn ask(world: &World) -> Result<Answers, String> {
    let script = "metrics() { curl -s http://localhost:4191/metrics | grep ^response_total | grep 'direction=\"outbound\"'; }; \
        metrics; echo ---; \
        for i in 1 2 3 4 5; do curl -sf -o /dev/null --max-time 5 http://web-apex.emojivoto/api/list || echo failed; done; \
        echo ---; metrics";
    let said = world.shell("west", "chooser", script);
    let mut parts = said.out.split("---\n");
    let (Some(before), Some(requests), Some(after)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(format!("{said:?}"));
    };
    if !requests.is_empty() {
        return Err(format!("requests failed: {requests}"));
    }
    let (before, after) = (count(before), count(after));
    Ok(Answers {
        local: after.local - before.local,
        linked: after.linked - before.linked,
    })
}

fn count(metrics: &str) -> Answers {
    let mut all = Answers {
        local: 0.0,
        linked: 0.0,
    };
    for line in metrics.lines() {
        let value: f64 = line
            .rsplit(' ')
            .next()
            .and_then(|value| value.parse().ok())
            .unwrap_or_default();
        if line.contains("dst_target_cluster=\"east\"") {
            all.linked += value;
        } else {
            all.local += value;
        }
    }
    all
}

fn all_answered_by(world: &World, cluster: Option<&str>) -> Result<(), String> {
    let answers = ask(world)?;
    let (there, elsewhere) = match cluster {
        Some(_) => (answers.linked, answers.local),
        None => (answers.local, answers.linked),
    };
    if there >= 5.0 && elsewhere == 0.0 {
        Ok(())
    } else {
        Err(format!("{answers:?}"))
    }
}
