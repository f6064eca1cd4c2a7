//! The gateway's policy while it is used: who is let in changes at once, on connections that are open too.

use std::time::Duration;

use serde_json::{Value, json};

use crate::host::eventually;
use crate::recovery::Witness;
use crate::runner::{Test, linked};
use crate::world::World;

const GATEWAY: &str = "linkerd-multicluster";
const URL: &str = "http://web-svc-east.emojivoto/api/list";
/// "At once": the policy has to reach the gateway through two watches.
const AT_ONCE: Duration = Duration::from_secs(3);

pub(crate) const TESTS: &[Test] = &[linked(
    "a_narrowed_gateway_policy_acts_at_once_on_open_connections_and_says_why",
    &["kubectl", "curl"],
    a_narrowed_gateway_policy_acts_at_once_on_open_connections_and_says_why,
)];

fn a_narrowed_gateway_policy_acts_at_once_on_open_connections_and_says_why(world: &World) {
    let witness = Witness::start(world, "witness-policy", URL);
    let everybody = json!(["*"]);
    let somebody = json!(["somebody.else.serviceaccount.identity.linkerd.cluster.local"]);
    let everywhere = json!([{"cidr": "0.0.0.0/0"}, {"cidr": "::/0"}]);
    let elsewhere = json!([{"cidr": "192.0.2.0/24"}]);
    let narrowings = [
        ("identities", &somebody, &everywhere),
        ("networks", &everybody, &elsewhere),
    ];
    for (what, identities, networks) in narrowings {
        let before = denials(world);
        authorize(world, identities, networks);
        becomes(world, &format!("fewer {what}"), (403, 0));
        if what == "identities" {
            let told = world.hawser("west", "mc check --wait 5s", "");
            let row =
                "* east: emojivoto/web-svc-east:80, as far as the gateway of east, whose policy refuses";
            assert!(told.contains(row), "check says how far it got:\n{told}");
        }
        assert!(denials(world) > before, "denials for {what} are counted");
        authorize(world, &everybody, &everywhere);
        becomes(world, &format!("{what} as before"), (200, 0));
    }
    let log = world.proxy_log("east", GATEWAY, "linkerd-gateway");
    let told = |line: &&str| line.contains("visitors.serviceaccount.identity") && line.contains("denied");
    assert!(
        log.lines().any(|line| told(&line)),
        "the gateway says who was refused and why:\n{log}"
    );
    drop(witness);
}

/// Both kinds of authorization that the gateway has say the same.
fn authorize(world: &World, identities: &Value, networks: &Value) {
    let patches = [
        (
            "serverauthorization linkerd-gateway",
            json!({"spec": {"client": {"meshTLS": {"identities": identities}, "networks": networks}}}),
        ),
        (
            "meshtlsauthentication any-meshed",
            json!({"spec": {"identities": identities}}),
        ),
        (
            "networkauthentication source-cluster",
            json!({"spec": {"networks": networks}}),
        ),
    ];
    for (object, patch) in patches {
        let mut words = vec!["-n", GATEWAY, "patch"];
        words.extend(object.split(' '));
        let patch = patch.to_string();
        words.extend(["--type", "merge", "-p", &patch]);
        world.kubectl_words("east", &words, "");
    }
}

fn becomes(world: &World, what: &str, wanted: (u16, i32)) {
    eventually(what, AT_ONCE, || {
        match world.curl("west", "witness-policy", URL) {
            seen if seen == wanted => Ok(()),
            seen => Err(format!("{seen:?}")),
        }
    });
}

/// How many requests the gateway has denied.
fn denials(world: &World) -> u64 {
    world.gateway_count("inbound_http_authz_deny_total", "")
}
