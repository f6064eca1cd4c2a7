//! What operators ask of a running mesh, from the host: is it well, who is that, where would this go.

use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::host::{self, HAWSER, Said, eventually};
use crate::runner::{Test, linked};
use crate::world::{COMMAND_DEADLINE, SOON, VISITORS, World, words};

const TOOLS: &[&str] = &["kubectl"];

pub(crate) const TESTS: &[Test] = &[
    linked(
        "check_finds_nothing_wrong_in_either_cluster_from_the_host",
        TOOLS,
        check_finds_nothing_wrong_in_either_cluster_from_the_host,
    ),
    linked(
        "check_sends_a_request_to_a_pod_behind_each_link",
        &["kubectl", "curl"],
        check_sends_a_request_to_a_pod_behind_each_link,
    ),
    linked(
        "check_names_the_proxy_that_lags_behind_a_new_bundle_until_it_has_caught_up",
        TOOLS,
        check_names_the_proxy_that_lags_behind_a_new_bundle_until_it_has_caught_up,
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
        // Only west fails over, so only west has the controller for it.
        let extensions: &[&str] = match cluster {
            "west" => &["linkerd-multicluster", "linkerd-viz", "linkerd-failover"],
            _ => &["linkerd-multicluster", "linkerd-viz"],
        };
        for extension in extensions {
            let named = |category: &&Value| category["categoryName"] == *extension;
            assert!(
                categories.iter().any(|category| named(&category)),
                "{cluster}: {extension}"
            );
        }
    }
}

fn check_sends_a_request_to_a_pod_behind_each_link(world: &World) {
    let told = world.hawser("west", "mc check --wait 20s", "");
    let row =
        "√ requests to mirror services reach the pods behind them\n\t* east: emojivoto/web-svc-east:80\n";
    assert!(told.contains(row), "{told}");
    // What answered was no application: web knows no OPTIONS.
    let script = "curl -s -o /dev/null -X OPTIONS -H 'Max-Forwards: 2' --noproxy '*' --max-time 5 \
                  -w '%{http_code} %header{l5d-answered-by}' http://web-svc-east.emojivoto/";
    world.citizen("west", "asker");
    let web = "inbound web.emojivoto.serviceaccount.identity.linkerd.cluster.local";
    eventually("the proxy of web answers", SOON, || {
        let said = world.shell("west", "asker", script);
        match said.out == format!("200 {web}") {
            true => Ok(()),
            false => Err(format!("{said:?}")),
        }
    });
    world.remove("west", "asker");
}

fn check_names_the_proxy_that_lags_behind_a_new_bundle_until_it_has_caught_up(world: &World) {
    world.citizen("west", "laggard");
    let pod = world.pod("west", VISITORS, "app=laggard").expect("it runs");
    let pod = pod["metadata"]["name"].as_str().expect("a name").to_owned();
    let dir = world.dir().join("lag");
    std::fs::create_dir(&dir).expect("a folder of our own");
    let file = |name: &str| dir.join(name).display().to_string();
    world.hawser_alone(
        &format!("certs create root {} {}", file("new.crt"), file("new.key")),
        "",
    );
    let old = world
        .get("west", "-n linkerd configmap linkerd-identity-trust-roots")
        .expect("the bundle");
    let old = old["data"]["ca-bundle.crt"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let new = std::fs::read_to_string(dir.join("new.crt")).expect("certs create wrote it");
    let rendered = |name: &str, bundle: &str| {
        std::fs::write(dir.join(name), bundle).expect("the folder is ours");
        world.hawser(
            "west",
            &format!("upgrade --identity-trust-anchors-file {}", file(name)),
            "",
        )
    };
    let both = rendered("both.crt", &format!("{old}{new}"));
    let lagging = |world: &World| {
        let line = format!("check --proxy -n {VISITORS} --wait 1s -o json");
        let report: Value = serde_json::from_str(&ask(world, "west", &line).out).expect("JSON");
        let categories = report["categories"].as_array().cloned().unwrap_or_default();
        let mut checks = categories
            .iter()
            .flat_map(|category| category["checks"].as_array().into_iter().flatten());
        let row = checks.find(|check| check["description"] == "data plane proxies certificate match CA");
        row.map(|row| row["error"].as_str().unwrap_or_default().to_owned())
            .ok_or_else(|| report.to_string())
    };

    let proxy = host::process_of(world.pid(), &["LINKERD2_PROXY_", &pod]);
    let stop = |signal| kill(Pid::from_raw(proxy), signal).expect("it is ours");
    stop(Signal::SIGSTOP);
    world.kubectl_words("west", &["apply", "-f", "-"], &both);
    eventually("the one that lags is named, and no other", SOON, || {
        let named = lagging(world)?;
        let names: Vec<&str> = named.lines().filter(|line| line.starts_with("* ")).collect();
        match names.as_slice() {
            [one] if one.contains(&pod) => Ok(()),
            _ => Err(named),
        }
    });
    stop(Signal::SIGCONT);
    eventually("once it has caught up, nobody is", SOON, || {
        match lagging(world)? {
            named if named.is_empty() => Ok(()),
            named => Err(named),
        }
    });
    let before = rendered("old.crt", &old);
    world.kubectl_words("west", &["apply", "-f", "-"], &before);
    eventually("back to the bundle of before", SOON, || match lagging(world)? {
        named if named.is_empty() => Ok(()),
        named => Err(named),
    });
    world.remove("west", "laggard");
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
