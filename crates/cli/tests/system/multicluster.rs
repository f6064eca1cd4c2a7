//! Links as their users change them: without a controller of their own, revoked and renewed, with headless services.

use std::time::Instant;

use serde_json::{Value, json};

use crate::demo::report;
use crate::entry::load_balancer;
use crate::host::eventually;
use crate::runner::{Test, linked};
use crate::world::{A_ROLLOUT, SOON, VISITORS, World};

const TOOLS: &[&str] = &["kubectl", "curl"];

pub(crate) const TESTS: &[Test] = &[
    linked(
        "a_link_is_looked_after_without_a_controller_of_its_own",
        TOOLS,
        a_link_is_looked_after_without_a_controller_of_its_own,
    ),
    linked(
        "a_revoked_account_is_cut_off_and_the_next_one_is_let_in",
        TOOLS,
        a_revoked_account_is_cut_off_and_the_next_one_is_let_in,
    ),
    linked(
        "pods_of_a_headless_service_are_reached_by_name_through_the_gateway",
        &["kubectl", "curl", "python3"],
        pods_of_a_headless_service_are_reached_by_name_through_the_gateway,
    ),
    linked("a_gateway_may_be_a_name", TOOLS, a_gateway_may_be_a_name),
];

const EXTENSION: &str = "linkerd-multicluster";

/// Links west to east (again), with these arguments besides, and waits until the controller is the new one.
fn link(world: &World, args: &str) {
    let manifest = world.hawser("east", &format!("mc link --cluster-name east {args}"), "");
    world.kubectl_words("west", &["apply", "-f", "-"], &manifest);
    world.rolled_out("west", EXTENSION, "linkerd-service-mirror-east");
}

/// Why the Link is ready or not, in one word.
fn reason(world: &World) -> Result<String, String> {
    let link = world.get("west", &format!("-n {EXTENSION} link east"))?;
    let reason = link
        .pointer("/status/conditions/0/reason")
        .and_then(Value::as_str);
    Ok(reason.unwrap_or_default().to_owned())
}

fn is(world: &World, wanted: &str) {
    eventually(&format!("the link is {wanted}"), A_ROLLOUT, || {
        match reason(world)? {
            found if found == wanted => Ok(()),
            found => Err(found),
        }
    });
}

fn mirrored(world: &World, service: &str, exported: bool) {
    let label = if exported {
        "mirror.linkerd.io/exported=true"
    } else {
        "mirror.linkerd.io/exported-"
    };
    world.kubectl("east", &format!("-n emojivoto label service {service} {label}"));
    let what = format!("the mirror of {service} is there: {exported}");
    eventually(&what, A_ROLLOUT, || {
        match world.get("west", &format!("-n emojivoto service {service}-east")) {
            Ok(_) if exported => Ok(()),
            Err(error) if !exported && error.contains("NotFound") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}

fn a_link_is_looked_after_without_a_controller_of_its_own(world: &World) {
    let controller = world.hawser("west", "mc unlink --cluster-name east --only-controller", "");
    world.kubectl_words("west", &["delete", "-f", "-"], &controller);
    mirrored(world, "voting-svc", true);
    eventually("the gateway is probed by somebody else", A_ROLLOUT, || {
        let rows = world.hawser("west", "mc gateways -o json", "");
        let rows: Value = serde_json::from_str(&rows).map_err(|error| error.to_string())?;
        match rows[0]["alive"] == true && rows[0]["latencyP99"].is_u64() {
            true => Ok(()),
            false => Err(rows.to_string()),
        }
    });
    link(world, "");
    mirrored(world, "voting-svc", false);
}

fn a_revoked_account_is_cut_off_and_the_next_one_is_let_in(world: &World) {
    let guest = world.hawser("east", "mc allow --service-account-name guest", "");
    world.kubectl_words("east", &["apply", "-f", "-"], &guest);
    link(world, "--service-account-name guest");
    is(world, "Mirroring");
    let guest = world.hawser("east", "mc revoke guest", "");
    world.kubectl_words("east", &["delete", "-f", "-"], &guest);
    let began = Instant::now();
    is(world, "AccessRefused");
    report(&format!(
        "{:.1} s from the account's end to that of its watches",
        began.elapsed().as_secs_f64()
    ));
    // What is mirrored goes on working.
    let endpoints = world
        .get("west", "-n emojivoto endpoints web-svc-east")
        .expect("it stays");
    assert!(
        endpoints.pointer("/subsets/0/addresses/0/ip").is_some(),
        "{endpoints}"
    );
    link(world, "");
    is(world, "Mirroring");
}

/// A name of west's own DNS stands for the name that somebody gave to a load balancer.
fn a_gateway_may_be_a_name(world: &World) {
    let gateway = load_balancer(world, "east");
    let metadata = json!({"name": "harbour", "namespace": VISITORS});
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": metadata,
        "spec": {"clusterIP": "None", "ports": [{"name": "mc", "port": 4143}]},
    });
    let endpoints = json!({
        "apiVersion": "v1", "kind": "Endpoints", "metadata": metadata,
        "subsets": [{"addresses": [{"ip": gateway}], "ports": [{"name": "mc", "port": 4143}]}],
    });
    world.apply("west", &service);
    world.apply("west", &endpoints);
    world.citizen("west", "guest");
    link(
        world,
        &format!("--gateway-addresses harbour.{VISITORS}.svc.cluster.local"),
    );
    eventually("the mirror has the name's address", A_ROLLOUT, || {
        let link = world.get("west", &format!("-n {EXTENSION} link east"))?;
        let mirror = world.get("west", "-n emojivoto endpoints web-svc-east")?;
        let (named, found) = (
            &link["spec"]["gatewayAddress"],
            &mirror["subsets"][0]["addresses"][0]["ip"],
        );
        let harbour = format!("harbour.{VISITORS}.svc.cluster.local");
        match *named == harbour && *found == gateway.as_str() {
            true => Ok(()),
            false => Err(format!("{named} {found}")),
        }
    });
    eventually("it leads there", SOON, || {
        match world.curl("west", "guest", "http://web-svc-east.emojivoto/api/list") {
            (200, 0) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    link(world, "");
    is(world, "Mirroring");
    world.remove("west", "guest");
    world.kubectl("west", &format!("-n {VISITORS} delete service,endpoints harbour"));
}

fn pods_of_a_headless_service_are_reached_by_name_through_the_gateway(world: &World) {
    link(world, "--set enableHeadlessServices=true");
    let serve = "mkdir -p /tmp/www && hostname > /tmp/www/index.html && cd /tmp/www && exec python3 -m http.server 8080";
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "db", "namespace": VISITORS, "labels": {"mirror.linkerd.io/exported": "true"}},
        "spec": {"clusterIP": "None", "selector": {"app": "db"}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
    });
    let set = json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet",
        "metadata": {"name": "db", "namespace": VISITORS},
        "spec": {
            "serviceName": "db", "replicas": 2, "podManagementPolicy": "Parallel",
            "selector": {"matchLabels": {"app": "db"}},
            "template": {
                "metadata": {"labels": {"app": "db"}, "annotations": {"linkerd.io/inject": "enabled"}},
                "spec": {
                    "terminationGracePeriodSeconds": 1,
                    "containers": [{"name": "main", "image": "curlimages/curl", "command": ["sh", "-c", serve]}],
                },
            },
        },
    });
    world.apply("east", &service);
    world.apply("east", &set);
    world.citizen("west", "reader");
    for pod in ["db-0", "db-1"] {
        let url = format!("http://{pod}.db-east.{VISITORS}.svc.cluster.local/");
        eventually(&format!("{pod} answers by its name"), A_ROLLOUT, || {
            let said = world.shell(
                "west",
                "reader",
                &format!("curl -s --noproxy '*' --max-time 5 {url}"),
            );
            match said.out.trim() == pod {
                true => Ok(()),
                false => Err(format!("{said:?}")),
            }
        });
    }
    world.kubectl(
        "east",
        &format!("-n {VISITORS} delete service,statefulset db --wait=false"),
    );
    eventually("mirrors of pods go with their service", SOON, || {
        match world.get("west", &format!("-n {VISITORS} service db-0-east")) {
            Err(error) if error.contains("NotFound") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    world.remove("west", "reader");
    link(world, "");
}
