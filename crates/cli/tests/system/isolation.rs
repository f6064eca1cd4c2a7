//! No packet passes between clusters except to LoadBalancer addresses and API servers.
//!
//! Each address is first shown to answer inside its own cluster, so that silence from the other means something.

use serde_json::{Value, json};

use crate::host::eventually;
use crate::runner::{Test, linked};
use crate::world::{SOON, VISITORS, World};

pub(crate) const TESTS: &[Test] = &[linked(
    "only_load_balancers_and_api_servers_are_reached_from_another_cluster",
    &["kubectl", "curl"],
    only_load_balancers_and_api_servers_are_reached_from_another_cluster,
)];

/// A Service of east with this name and type in front of `page`.
fn service(name: &str, kind: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": VISITORS},
        "spec": {"type": kind, "selector": {"app": "page"}, "ports": [{"port": 80, "targetPort": 8080}]},
    })
}

fn only_load_balancers_and_api_servers_are_reached_from_another_cluster(world: &World) {
    world.visitor("west", "west-visitor");
    world.visitor("east", "east-visitor");
    // More pods than west has, so that one of them has an address that means nobody in west.
    let replicas = items(world, "west", "pods -A").len() + 1;
    world.apply("east", &page(replicas));
    world.rolled_out("east", VISITORS, "page");
    for (name, kind) in [
        ("page-lb", "LoadBalancer"),
        ("page-node", "NodePort"),
        ("page", "ClusterIP"),
    ] {
        world.apply("east", &service(name, kind));
    }
    let taken: Vec<String> = items(world, "west", "pods -A")
        .iter()
        .map(|pod| text(&pod["status"]["podIP"]))
        .collect();
    let pod = items(world, "east", &format!("-n {VISITORS} pods -l app=page"))
        .iter()
        .map(|pod| text(&pod["status"]["podIP"]))
        .find(|ip| !taken.contains(ip))
        .expect("east has a pod at an address that west doesn't use");
    let cluster_ip = text(&of_service(world, "page")["spec"]["clusterIP"]);
    let west_has = items(world, "west", "services -A")
        .iter()
        .any(|service| service["spec"]["clusterIP"] == cluster_ip.as_str());
    assert!(!west_has, "the address is east's alone: {cluster_ip}");
    let node = items(world, "east", "nodes");
    let node = node[0]["status"]["addresses"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let node = node
        .iter()
        .find(|address| address["type"] == "InternalIP")
        .map(|address| text(&address["address"]))
        .expect("the node has an address");
    let node_port = &of_service(world, "page-node")["spec"]["ports"][0]["nodePort"];
    let load_balancer = eventually("the Service gets an address", SOON, || {
        match text(&of_service(world, "page-lb")["status"]["loadBalancer"]["ingress"][0]["ip"]) {
            none if none.is_empty() => Err("none".into()),
            address => Ok(address),
        }
    });

    let inside = [
        ("pod address", format!("http://{pod}:8080")),
        ("cluster IP", format!("http://{cluster_ip}")),
        ("name", format!("http://page.{VISITORS}")),
        ("node port", format!("http://{node}:{node_port}")),
    ];
    for (what, url) in &inside {
        eventually(&format!("the {what} answers in east"), SOON, || {
            match world.curl("east", "east-visitor", url) {
                (200, 0) => Ok(()),
                other => Err(format!("{url}: {other:?}")),
            }
        });
        let (status, code) = world.curl("west", "west-visitor", url);
        assert!(
            status == 0 && code != 0,
            "east's {what} {url} answers in west: status {status}"
        );
    }
    let url = format!("http://{load_balancer}");
    assert_eq!(
        world.curl("west", "west-visitor", &url),
        (200, 0),
        "east's load balancer"
    );

    let server = server(world, "east");
    let script = format!("curl -sk --noproxy '*' --max-time 5 {server}/version");
    let said = world.shell("west", "west-visitor", &script);
    assert!(said.out.contains("gitVersion"), "east's API server: {said:?}");

    for name in ["page-lb", "page-node", "page"] {
        world.kubectl("east", &format!("-n {VISITORS} delete service {name}"));
    }
    world.remove("east", "page");
    world.remove("west", "west-visitor");
    world.remove("east", "east-visitor");
}

/// Pods that answer HTTP: Emojivoto's page, without anything behind it.
fn page(replicas: usize) -> Value {
    let env = json!([
        {"name": "WEB_PORT", "value": "8080"},
        {"name": "EMOJISVC_HOST", "value": "localhost:1"},
        {"name": "VOTINGSVC_HOST", "value": "localhost:1"},
        {"name": "INDEX_BUNDLE", "value": "dist/index_bundle.js"},
    ]);
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "page", "namespace": VISITORS},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "page"}},
            "template": {
                "metadata": {"labels": {"app": "page"}},
                "spec": {
                    "terminationGracePeriodSeconds": 1,
                    "containers": [{
                        "name": "main", "image": "docker.l5d.io/buoyantio/emojivoto-web:v11", "env": env,
                        "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1},
                    }],
                },
            },
        },
    })
}

fn items(world: &World, cluster: &str, line: &str) -> Vec<Value> {
    let list = world.get(cluster, line).expect("a list");
    list["items"].as_array().cloned().unwrap_or_default()
}

fn of_service(world: &World, name: &str) -> Value {
    world
        .get("east", &format!("-n {VISITORS} service {name}"))
        .expect("the Service")
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// An API server's address for pods.
fn server(world: &World, cluster: &str) -> String {
    let said = world.sandbox("status -o json");
    let status: Value = serde_json::from_str(&said).expect("JSON");
    let clusters = status["clusters"].as_array().cloned().unwrap_or_default();
    let found = clusters.iter().find(|entry| entry["name"] == cluster);
    text(&found.expect("the cluster runs")["internalServer"])
}
