//! Nothing is lost: whatever is restarted, cut or deleted by hand, the state converges again by itself.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::demo::report;
use crate::host::eventually;
use crate::runner::{Test, linked};
use crate::world::{A_ROLLOUT, SOON, World};

const TOOLS: &[&str] = &["kubectl", "curl"];
/// A dead gateway, or a cut link, is noticed by then: three probes in a row with their timeouts are the slowest way.
const NOTICED: Duration = Duration::from_secs(10);

pub(crate) const TESTS: &[Test] = &[
    linked(
        "a_mirror_follows_its_export_label_and_returns_when_deleted_by_hand",
        TOOLS,
        a_mirror_follows_its_export_label_and_returns_when_deleted_by_hand,
    ),
    linked(
        "restarted_api_servers_lose_no_vote_and_mirrors_follow_again",
        TOOLS,
        restarted_api_servers_lose_no_vote_and_mirrors_follow_again,
    ),
    linked(
        "a_cut_link_withdraws_the_mirror_and_healing_brings_it_back",
        TOOLS,
        a_cut_link_withdraws_the_mirror_and_healing_brings_it_back,
    ),
    linked(
        "no_vote_through_east_is_lost_when_its_gateway_pod_is_deleted",
        TOOLS,
        no_vote_through_east_is_lost_when_its_gateway_pod_is_deleted,
    ),
    linked(
        "votes_go_on_while_the_control_plane_restarts_and_changes_follow_afterwards",
        TOOLS,
        votes_go_on_while_the_control_plane_restarts_and_changes_follow_afterwards,
    ),
    linked(
        "with_three_replicas_any_one_may_be_killed_under_load_and_nothing_is_lost",
        TOOLS,
        with_three_replicas_any_one_may_be_killed_under_load_and_nothing_is_lost,
    ),
];

/// Exports a service of east or takes it back.
fn export(world: &World, service: &str, exported: bool) {
    let label = if exported {
        "mirror.linkerd.io/exported=true"
    } else {
        "mirror.linkerd.io/exported-"
    };
    world.kubectl("east", &format!("-n emojivoto label service {service} {label}"));
}

/// Ready and unready addresses of a mirror.
fn addresses(world: &World, mirror: &str) -> Result<(usize, usize), String> {
    let endpoints = world.get("west", &format!("-n emojivoto endpoints {mirror}"))?;
    let count = |field: &str| {
        let subsets = endpoints["subsets"].as_array().into_iter().flatten();
        subsets
            .map(|subset| subset[field].as_array().map_or(0, Vec::len))
            .sum()
    };
    Ok((count("addresses"), count("notReadyAddresses")))
}

pub(crate) fn appears(world: &World, mirror: &str) -> Duration {
    let began = Instant::now();
    eventually(
        &format!("{mirror} appears with an address"),
        SOON,
        || match addresses(world, mirror)? {
            (1.., 0) => Ok(()),
            other => Err(format!("ready and unready addresses: {other:?}")),
        },
    );
    began.elapsed()
}

fn vanishes(world: &World, mirror: &str) {
    eventually(&format!("{mirror} vanishes"), SOON, || {
        match world.get("west", &format!("-n emojivoto service {mirror}")) {
            Err(error) if error.contains("NotFound") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}

fn a_mirror_follows_its_export_label_and_returns_when_deleted_by_hand(world: &World) {
    export(world, "voting-svc", true);
    let took = appears(world, "voting-svc-east");
    report(&format!("{:.1} s from label to mirror", took.as_secs_f64()));
    export(world, "voting-svc", false);
    vanishes(world, "voting-svc-east");

    let before = world
        .get("west", "-n emojivoto service web-svc-east")
        .expect("the mirror");
    world.kubectl("west", "-n emojivoto delete service web-svc-east");
    appears(world, "web-svc-east");
    let after = world
        .get("west", "-n emojivoto service web-svc-east")
        .expect("a new mirror");
    assert_ne!(before["metadata"]["uid"], after["metadata"]["uid"]);
    for field in ["labels", "annotations"] {
        assert_eq!(before["metadata"][field], after["metadata"][field], "{field}");
    }
    assert_eq!(before["spec"]["ports"], after["spec"]["ports"]);

    world.kubectl("west", "-n emojivoto delete endpoints web-svc-east");
    appears(world, "web-svc-east");
}

/// Meshed pods in west that ask web for its list, ten times a second, and keep every answer that isn't 200.
pub(crate) struct Witness<'a> {
    world: &'a World,
    name: &'static str,
}

impl<'a> Witness<'a> {
    pub(crate) fn start(world: &'a World, name: &'static str, url: &str) -> Self {
        let script = format!(
            "while :; do \
               got=$(curl -s -o /dev/null --noproxy '*' --max-time 10 -w '%{{http_code}} %header{{l5d-proxy-error}}' {url}; echo \" $?\"); \
               if [ \"$got\" = '200  0' ]; then echo 1 >> /tmp/good; else echo \"$(date +%T) $got\" >> /tmp/bad; fi; \
               sleep 0.1; \
             done"
        );
        let mut deployment = json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": name, "namespace": "visitors"},
            "spec": {
                "selector": {"matchLabels": {"app": name}},
                "template": {
                    "metadata": {"labels": {"app": name}},
                    "spec": {"terminationGracePeriodSeconds": 1},
                },
            },
        });
        let template = &mut deployment["spec"]["template"];
        template["metadata"]["annotations"] = json!({"linkerd.io/inject": "enabled"});
        template["spec"]["containers"] =
            json!([{"name": "main", "image": "curlimages/curl", "command": ["sh", "-c", script]}]);
        world.apply("west", &deployment);
        world.rolled_out("west", "visitors", name);
        let witness = Self { world, name };
        witness.hears(1);
        // Its first request may come before its proxy knows the way.
        witness.forget();
        witness.hears(5);
        assert_eq!(witness.failures(), "", "before anything is disturbed");
        witness
    }

    fn good(&self) -> usize {
        let said = self
            .world
            .shell("west", self.name, "cat /tmp/good 2>/dev/null | wc -l");
        said.out.trim().parse().unwrap_or_else(|_| panic!("{said:?}"))
    }

    /// Waits for so many more good answers.
    pub(crate) fn hears(&self, more: usize) -> Duration {
        let began = Instant::now();
        let before = self.good();
        eventually(
            &format!("{} hears {more} good answers", self.name),
            A_ROLLOUT,
            || match self.good() {
                now if now >= before + more => Ok(()),
                now => Err(format!("{} so far; failures: {}", now - before, self.failures())),
            },
        );
        began.elapsed()
    }

    /// One line per request that failed: when, HTTP status, the proxy's reason, curl's code.
    pub(crate) fn failures(&self) -> String {
        self.world
            .shell("west", self.name, "cat /tmp/bad 2>/dev/null")
            .out
    }

    fn forget(&self) {
        let said = self.world.shell("west", self.name, "rm -f /tmp/bad");
        assert!(said.succeeded(), "{said:?}");
    }
}

impl Drop for Witness<'_> {
    fn drop(&mut self) {
        let words = [
            "-n",
            "visitors",
            "delete",
            "deployment",
            self.name,
            "--wait=false",
        ];
        self.world.try_kubectl("west", &words, "");
    }
}

fn restarted_api_servers_lose_no_vote_and_mirrors_follow_again(world: &World) {
    let witness = Witness::start(world, "witness-api", "http://web-svc-east.emojivoto/api/list");
    world.sandbox("kill-api west --for 2s");
    world.sandbox("kill-api east --for 2s");
    for cluster in ["west", "east"] {
        eventually(&format!("the API server of {cluster} is back"), SOON, || {
            world.get(cluster, "namespace default").map(|_| ())
        });
    }
    export(world, "voting-svc", true);
    appears(world, "voting-svc-east");
    export(world, "voting-svc", false);
    vanishes(world, "voting-svc-east");
    witness.hears(5);
    assert_eq!(witness.failures(), "", "requests need no API server");
}

fn a_cut_link_withdraws_the_mirror_and_healing_brings_it_back(world: &World) {
    world.sandbox("cut west east");
    let began = Instant::now();
    let withdrawn = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        eventually(
            "web-svc-east has no ready address",
            NOTICED,
            || match addresses(world, "web-svc-east")? {
                (0, _) => Ok(()),
                other => Err(format!("ready and unready addresses: {other:?}")),
            },
        );
        began.elapsed()
    }));
    // Whatever came out: the next test needs the link.
    world.sandbox("heal west east");
    let withdrawn = withdrawn.unwrap_or_else(|why| std::panic::resume_unwind(why));
    report(&format!(
        "{:.1} s from the cut to the withdrawal",
        withdrawn.as_secs_f64()
    ));
    let took = appears(world, "web-svc-east");
    report(&format!("{:.1} s from healing to its return", took.as_secs_f64()));
    // The watch survived as well, or came back.
    export(world, "voting-svc", true);
    appears(world, "voting-svc-east");
    export(world, "voting-svc", false);
    vanishes(world, "voting-svc-east");
}

/// Deletes the only pod with a label and waits for another that is ready.
fn replace(world: &World, cluster: &str, namespace: &str, label: &str) {
    let old = world
        .pod(cluster, namespace, label)
        .unwrap_or_else(|error| panic!("{error}"));
    let name = old["metadata"]["name"].as_str().unwrap_or_default();
    world.kubectl(cluster, &format!("-n {namespace} delete pod {name} --wait=false"));
    eventually(&format!("{cluster}:{label} has a new pod"), A_ROLLOUT, || {
        let pod = world.pod(cluster, namespace, label)?;
        let conditions = pod["status"]["conditions"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let ready = |condition: &Value| condition["type"] == "Ready" && condition["status"] == "True";
        if pod["metadata"]["uid"] != old["metadata"]["uid"] && conditions.iter().any(ready) {
            return Ok(());
        }
        Err(format!("{}: {conditions:?}", pod["metadata"]["name"]))
    });
}

fn no_vote_through_east_is_lost_when_its_gateway_pod_is_deleted(world: &World) {
    let witness = Witness::start(world, "witness-gateway", "http://web-svc-east.emojivoto/api/list");
    replace(world, "east", "linkerd-multicluster", "app=linkerd-gateway");
    let took = witness.hears(5);
    report(&format!(
        "{:.1} s until five good answers after the gateway's pod was replaced",
        took.as_secs_f64(),
    ));
    assert_eq!(witness.failures(), "", "while the gateway was replaced");
}

fn votes_go_on_while_the_control_plane_restarts_and_changes_follow_afterwards(world: &World) {
    let local = Witness::start(world, "witness-local", "http://web-svc.emojivoto/api/list");
    let linked = Witness::start(world, "witness-linked", "http://web-svc-east.emojivoto/api/list");
    for (cluster, namespace, label) in [
        ("west", "linkerd-multicluster", "component=linkerd-service-mirror"),
        (
            "west",
            "linkerd",
            "linkerd.io/control-plane-component=destination",
        ),
        ("west", "linkerd", "linkerd.io/control-plane-component=identity"),
        (
            "west",
            "linkerd",
            "linkerd.io/control-plane-component=proxy-injector",
        ),
        (
            "east",
            "linkerd",
            "linkerd.io/control-plane-component=destination",
        ),
        (
            "west",
            "linkerd-failover",
            "app.kubernetes.io/name=linkerd-failover",
        ),
    ] {
        replace(world, cluster, namespace, label);
    }
    local.hears(5);
    linked.hears(5);
    for witness in [&local, &linked] {
        assert_eq!(witness.failures(), "", "{} lost requests", witness.name);
    }
    // Each of them works again: a mirror is made, weights move and return, a new pod gets its proxy and certificate.
    export(world, "voting-svc", true);
    appears(world, "voting-svc-east");
    export(world, "voting-svc", false);
    vanishes(world, "voting-svc-east");
    world.kubectl("west", "-n emojivoto scale deployment web --replicas=0");
    weighs(world, "web-svc", [false, true]);
    local.forget();
    local.hears(5);
    world.kubectl("west", "-n emojivoto scale deployment web --replicas=1");
    weighs(world, "web-svc", [true, false]);
}

/// What `--ha` gives three replicas, except for the affinities that one node can't satisfy: cluster, namespace, name.
const REPLICATED: [(&str, &str, &str); 6] = [
    ("west", "linkerd-multicluster", "linkerd-service-mirror-east"),
    ("west", "linkerd", "linkerd-destination"),
    ("west", "linkerd", "linkerd-identity"),
    ("west", "linkerd", "linkerd-proxy-injector"),
    ("east", "linkerd", "linkerd-destination"),
    ("east", "linkerd-multicluster", "linkerd-gateway"),
];

fn scale_all(world: &World, replicas: usize) {
    for (cluster, namespace, name) in REPLICATED {
        world.kubectl(
            cluster,
            &format!("-n {namespace} scale deployment {name} --replicas={replicas}"),
        );
    }
    for (cluster, namespace, name) in REPLICATED {
        world.rolled_out(cluster, namespace, name);
    }
}

/// Kills one pod of a Deployment without a word; the leader, where one leads.
fn kill_one(world: &World, cluster: &str, namespace: &str, deployment: &str) {
    let listed = world.kubectl(cluster, &format!("-n {namespace} get pods -o name"));
    let mut pods = listed.lines().filter_map(|line| {
        let name = line.strip_prefix("pod/")?;
        let rest = name.strip_prefix(deployment)?.strip_prefix('-')?;
        (rest.split('-').count() == 2).then_some(name)
    });
    let leases = world
        .get(cluster, &format!("-n {namespace} leases"))
        .unwrap_or_default();
    let leads = |pod: &str| {
        let leases = leases["items"].as_array().into_iter().flatten();
        let mut holders = leases.filter_map(|lease| lease["spec"]["holderIdentity"].as_str());
        holders.any(|holder| holder.contains(pod))
    };
    let first = pods.next().expect("it has pods");
    let victim = pods.find(|pod| leads(pod)).unwrap_or(first);
    world.kubectl(
        cluster,
        &format!("-n {namespace} delete pod {victim} --grace-period=0 --force"),
    );
}

fn with_three_replicas_any_one_may_be_killed_under_load_and_nothing_is_lost(world: &World) {
    scale_all(world, 3);
    let local = Witness::start(world, "witness-near", "http://web-svc.emojivoto/api/list");
    let linked = Witness::start(world, "witness-far", "http://web-svc-east.emojivoto/api/list");
    for (cluster, namespace, name) in REPLICATED {
        kill_one(world, cluster, namespace, name);
        linked.hears(2);
    }
    local.hears(5);
    for witness in [&local, &linked] {
        assert_eq!(witness.failures(), "", "{} lost requests", witness.name);
    }
    // Another replica takes the dead leader's place when its lease has run out, and knows what it left.
    let began = Instant::now();
    export(world, "voting-svc", true);
    eventually("the next leader makes a mirror", A_ROLLOUT, || {
        match addresses(world, "voting-svc-east")? {
            (1.., 0) => Ok(()),
            other => Err(format!("ready and unready addresses: {other:?}")),
        }
    });
    report(&format!(
        "{:.1} s until the next mirror after a leader was killed",
        began.elapsed().as_secs_f64()
    ));
    export(world, "voting-svc", false);
    vanishes(world, "voting-svc-east");
    scale_all(world, 1);
}

/// Waits until exactly these backends of the split have weight.
pub(crate) fn weighs(world: &World, split: &str, wanted: [bool; 2]) {
    eventually("the failover controller moves the weights", SOON, || {
        let split = world.get("west", &format!("-n emojivoto trafficsplit {split}"))?;
        let backends = split["spec"]["backends"].as_array().cloned().unwrap_or_default();
        let weights: Vec<bool> = backends
            .iter()
            .map(|backend| backend["weight"].as_f64().is_some_and(|weight| weight > 0.0))
            .collect();
        if weights == wanted {
            return Ok(());
        }
        Err(format!("{backends:?}"))
    });
}
