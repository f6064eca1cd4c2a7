//! A gateway without a load balancer: its node's ports, reached from the other cluster.
//!
//! The mesh, a link and a vote through it, where nodes have external addresses; then the gateway moves, and the link
//! that knows it by name follows.

use serde_json::{Value, json};

use crate::clusters::{Clusters, documents};
use crate::host::eventually;
use crate::runner::{Test, alone};
use crate::world::{A_ROLLOUT, SOON, words};

pub(crate) const TESTS: &[Test] = &[alone(
    "a_vote_goes_through_a_gateway_on_node_ports_and_follows_it_to_another_address",
    &["kubectl", "curl"],
    a_vote_goes_through_a_gateway_on_node_ports_and_follows_it_to_another_address,
)];

const CLUSTERS: &[&str] = &["west", "east"];
const MANIFEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../emojivoto/emojivoto.yml");
const EXTENSION: &str = "linkerd-multicluster";
/// A name of west's own DNS.
const HARBOUR: &str = "harbour.voters.svc.cluster.local";
/// On the segment between clusters, where nobody has it.
const NOBODY: &str = "203.0.113.40";

/// Links west to east (again), with these arguments besides.
fn link(clusters: &Clusters, args: &str) {
    let made = clusters.hawser(&format!("mc link --context east --cluster-name east {args}"));
    clusters.apply("west", &made);
}

fn gateway_is_alive(clusters: &Clusters, alive: bool) {
    eventually(&format!("the gateway is alive: {alive}"), A_ROLLOUT, || {
        let rows = clusters.hawser("mc gateways --context west -o json");
        let rows: Value = serde_json::from_str(&rows).map_err(|error| error.to_string())?;
        match rows[0]["alive"] == alive {
            true => Ok(()),
            false => Err(rows.to_string()),
        }
    });
}

/// Votes for this emoji through the mirror; the leaderboard behind it has the vote.
fn vote(clusters: &Clusters, emoji: &str) {
    let script = format!(
        "curl -sf --noproxy '*' --max-time 5 'http://web-svc-east.emojivoto/api/vote?choice=:{emoji}:' && \
         curl -sf --noproxy '*' --max-time 5 http://web-svc-east.emojivoto/api/leaderboard"
    );
    eventually(&format!("a vote for {emoji} is counted in east"), SOON, || {
        let words = [
            "-n",
            "voters",
            "exec",
            "deployment/voter",
            "-c",
            "main",
            "--",
            "sh",
            "-c",
            &script,
        ];
        let said = clusters.try_kubectl("west", &words, "");
        match said.succeeded() && said.out.contains(&format!(":{emoji}:")) {
            true => Ok(()),
            false => Err(format!("{said:?}")),
        }
    });
}

fn voter() -> String {
    let labels = json!({"app": "voter"});
    let sleep = json!({"name": "main", "image": "curlimages/curl", "command": ["sleep", "infinity"]});
    let template = json!({
        "metadata": {"labels": labels, "annotations": {"linkerd.io/inject": "enabled"}},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [sleep]},
    });
    documents(&[
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "voters"}}),
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "voter", "namespace": "voters"},
            "spec": {"selector": {"matchLabels": labels}, "template": template},
        }),
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "emojivoto"}}),
    ])
}

/// Gives a name to an address.
fn harbour(address: &str) -> String {
    let metadata = json!({"name": "harbour", "namespace": "voters"});
    documents(&[
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": metadata,
            "spec": {"clusterIP": "None", "ports": [{"port": 4143}]},
        }),
        json!({
            "apiVersion": "v1", "kind": "Endpoints", "metadata": metadata,
            "subsets": [{"addresses": [{"ip": address}], "ports": [{"port": 4143}]}],
        }),
    ])
}

fn a_vote_goes_through_a_gateway_on_node_ports_and_follows_it_to_another_address() {
    let clusters = Clusters::start(CLUSTERS, "--node-ports");
    let mesh = clusters.hawser("install --set proxy.mark=2102");
    let manifest = std::fs::read_to_string(MANIFEST).expect("the public manifest");
    let emojivoto: Vec<&str> = manifest
        .split("---\n")
        .filter(|text| !text.contains("vote-bot"))
        .collect();
    let emojivoto = clusters.try_hawser("inject -", &emojivoto.join("---\n")).out;
    clusters.everywhere(|clusters, cluster| {
        clusters.apply(cluster, &mesh);
        clusters.rolled_out(cluster, "linkerd");
        let (values, workload) = match cluster {
            "east" => ("--set gateway.serviceType=NodePort", emojivoto.clone()),
            _ => ("--gateway=false", voter()),
        };
        let extension = clusters.hawser(&format!("mc install {values} --context {cluster}"));
        clusters.apply(cluster, &extension);
        clusters.apply(cluster, &workload);
    });
    clusters.kubectl(
        "east",
        "-n emojivoto label service web-svc mirror.linkerd.io/exported=true",
    );
    clusters.rolled_out("east", EXTENSION);
    clusters.rolled_out("east", "emojivoto");
    link(&clusters, "");
    clusters.rolled_out("west", "voters");

    let nodes = clusters.get("east", "nodes").expect("nodes");
    let addresses = nodes["items"][0]["status"]["addresses"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let external = addresses.iter().find(|address| address["type"] == "ExternalIP");
    let external = external
        .and_then(|address| address["address"].as_str())
        .expect("it has one");
    let gateway = clusters
        .get("east", &format!("-n {EXTENSION} service linkerd-gateway"))
        .expect("a gateway");
    assert!(
        gateway["status"]["loadBalancer"].get("ingress").is_none(),
        "no load balancer: {gateway}"
    );
    let port = &gateway["spec"]["ports"][0]["nodePort"];
    gateway_is_alive(&clusters, true);
    let mirror = clusters
        .get("west", "-n emojivoto endpoints web-svc-east")
        .expect("the mirror");
    let subset = &mirror["subsets"][0];
    assert_eq!(
        (&subset["addresses"][0]["ip"], &subset["ports"][0]["port"]),
        (&json!(external), port),
        "{mirror}"
    );
    vote(&clusters, "joy");

    clusters.apply("west", &harbour(NOBODY));
    link(&clusters, &format!("--gateway-addresses {HARBOUR}"));
    gateway_is_alive(&clusters, false);
    clusters.apply("west", &harbour(external));
    gateway_is_alive(&clusters, true);
    vote(&clusters, "sunglasses");

    let said = clusters.try_kubectl(
        "east",
        &words(&format!("-n {EXTENSION} get service linkerd-gateway")),
        "",
    );
    assert!(said.out.contains("NodePort"), "{said:?}");
}
