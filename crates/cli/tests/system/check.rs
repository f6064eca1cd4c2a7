//! What operators ask of a running mesh, from the host: is it well, who is that, where would this go.

use std::process::Command;

use serde_json::Value;

use crate::host::{self, HAWSER, Said};
use crate::runner::{Test, linked};
use crate::world::{COMMAND_DEADLINE, World, words};

const TOOLS: &[&str] = &["kubectl"];

pub(crate) const TESTS: &[Test] = &[
    linked(
        "check_finds_nothing_wrong_in_either_cluster_from_the_host",
        TOOLS,
        check_finds_nothing_wrong_in_either_cluster_from_the_host,
    ),
    linked(
        "check_fails_and_names_what_is_missing",
        TOOLS,
        check_fails_and_names_what_is_missing,
    ),
    linked(
        "identity_and_endpoints_are_those_of_the_running_pods",
        TOOLS,
        identity_and_endpoints_are_those_of_the_running_pods,
    ),
    linked(
        "a_list_from_kubectl_goes_through_inject_back_to_kubectl",
        TOOLS,
        a_list_from_kubectl_goes_through_inject_back_to_kubectl,
    ),
    linked(
        "uninstall_refuses_while_the_mesh_is_in_use",
        TOOLS,
        uninstall_refuses_while_the_mesh_is_in_use,
    ),
];

fn ask(world: &World, cluster: &str, line: &str) -> Said {
    let mut command = Command::new(HAWSER);
    command
        .args(["--context", cluster, "--kubeconfig"])
        .arg(world.kubeconfig())
        .args(words(line));
    host::run(command, "", COMMAND_DEADLINE)
}

fn check_finds_nothing_wrong_in_either_cluster_from_the_host(world: &World) {
    for cluster in ["west", "east"] {
        let said = ask(world, cluster, "check --proxy --wait 20s -o json");
        assert!(said.succeeded(), "{cluster}: {said:?}");
        let report: Value = serde_json::from_str(&said.out).expect("JSON");
        let categories = report["categories"].as_array().expect("categories");
        let checks = categories
            .iter()
            .flat_map(|category| category["checks"].as_array());
        let wrong: Vec<&Value> = checks
            .flatten()
            .filter(|check| check["result"] != "success")
            .collect();
        assert_eq!(wrong, [&Value::Null; 0], "{cluster}");
        assert!(categories.len() > 10, "{cluster}: {report:#}");
    }
}

fn check_fails_and_names_what_is_missing(world: &World) {
    let role = "linkerd-linkerd-proxy-injector";
    let get = ["get", "clusterrolebinding", role, "-o", "json"];
    let mut kept: Value = serde_json::from_str(&world.kubectl_words("west", &get, "")).expect("JSON");
    for field in ["resourceVersion", "uid", "creationTimestamp", "managedFields"] {
        kept["metadata"].as_object_mut().expect("metadata").remove(field);
    }
    world.kubectl("west", &format!("delete clusterrolebinding {role}"));
    let said = ask(world, "west", "check --wait 1s -o short");
    world.apply("west", &kept);
    assert!(!said.succeeded(), "{said:?}");
    let expected =
        format!("× control plane ClusterRoleBindings exist\n    missing:\n    * {role}\n    try: ");
    assert!(said.out.contains(&expected), "{}", said.out);
}

fn identity_and_endpoints_are_those_of_the_running_pods(world: &World) {
    let name = "web.emojivoto.serviceaccount.identity.linkerd.cluster.local";
    let said = ask(world, "east", "identity -n emojivoto -l app=web-svc");
    assert!(said.succeeded(), "{said:?}");
    assert!(
        said.out.contains(&format!("Subject: CN={name}\n")),
        "{}",
        said.out
    );

    let authority = "web-svc.emojivoto.svc.cluster.local:80";
    let said = ask(
        world,
        "east",
        &format!("diagnostics endpoints {authority} -o json"),
    );
    assert!(said.succeeded(), "{said:?}");
    let endpoints: Value = serde_json::from_str(&said.out).expect("JSON");
    let pods = world
        .get("east", "-n emojivoto pods -l app=web-svc")
        .expect("pods");
    assert_eq!(endpoints[0]["ip"], pods["items"][0]["status"]["podIP"]);
    assert_eq!(endpoints[0]["identity"], name);
}

fn a_list_from_kubectl_goes_through_inject_back_to_kubectl(world: &World) {
    let list = world.kubectl("east", "-n emojivoto get deployments,services -o yaml");
    let injected = world.hawser_alone("inject -", &list);
    let applied = world.kubectl_words("east", &["apply", "--dry-run=server", "-f", "-"], &injected);
    for line in ["deployment.apps/web ", "service/web-svc "] {
        assert!(applied.contains(line), "{applied}");
    }
}

fn uninstall_refuses_while_the_mesh_is_in_use(world: &World) {
    let said = ask(world, "west", "uninstall");
    assert!(!said.succeeded() && said.out.is_empty(), "{said:?}");
    assert!(said.err.contains("extensions are installed: * "), "{}", said.err);
    let said = ask(world, "west", "uninstall --force");
    assert!(said.succeeded(), "{said:?}");
    let words = ["delete", "--dry-run=server", "-f", "-"];
    let deleted = world.kubectl_words("west", &words, &said.out);
    assert!(deleted.contains("namespace \"linkerd\" deleted"), "{deleted}");
}
