//! A root of trust is replaced in two linked clusters while votes cross their gateway: nothing restarts, nothing fails.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;

use serde_json::Value;

use crate::demo::report;
use crate::host::{HAWSER, eventually, run};
use crate::recovery::Witness;
use crate::runner::{Test, linked};
use crate::world::{COMMAND_DEADLINE, SOON, World};

pub(crate) const CLUSTERS: [&str; 2] = ["west", "east"];

pub(crate) const TESTS: &[Test] = &[linked(
    "a_root_is_replaced_in_both_clusters_without_a_restart_or_a_lost_request",
    &["kubectl", "curl"],
    a_root_is_replaced_in_both_clusters_without_a_restart_or_a_lost_request,
)];

#[derive(Clone, Copy, Debug)]
enum Step {
    BothRoots,
    NewIssuers,
    OnlyTheNewRoot,
}

/// At the same time, to save it.
pub(crate) fn in_both_clusters(work: impl Fn(&'static str) + Sync) {
    std::thread::scope(|scope| {
        for cluster in CLUSTERS {
            scope.spawn(|| work(cluster));
        }
    });
}

fn a_root_is_replaced_in_both_clusters_without_a_restart_or_a_lost_request(world: &World) {
    let url = "http://web-svc-east.emojivoto/api/list";
    let witness = Witness::start(world, "witness-rotation", url);
    let began = Instant::now();
    let dir = world.dir().join("rotation");
    std::fs::create_dir(&dir).expect("a folder of our own");
    let file = |name: &str| dir.join(name).display().to_string();
    let make = |line: &str| world.hawser_alone(&format!("certs create {line}"), "");
    make(&format!("root {} {}", file("root.crt"), file("root.key")));
    for cluster in CLUSTERS {
        let (certificate, key) = (file(&format!("{cluster}.crt")), file(&format!("{cluster}.key")));
        let ca = format!("--ca {} --ca-key {}", file("root.crt"), file("root.key"));
        make(&format!("issuer {certificate} {key} {ca}"));
    }
    let old = stored_bundle(world, "west");
    let new = std::fs::read_to_string(dir.join("root.crt")).expect("certs create wrote it");
    std::fs::write(dir.join("both.crt"), format!("{old}{new}")).expect("the folder is ours");
    let pods_before = CLUSTERS.map(|cluster| pods(world, cluster));

    // Too much at once is refused, and the one who would break is named.
    let said = upgrade(world, "west", &issuer_flags(&dir, "west", Some("root.crt")));
    assert!(!said.succeeded(), "{said:?}");
    assert!(said.err.contains("these do not believe the issuer: "), "{said:?}");

    for step in [Step::BothRoots, Step::NewIssuers, Step::OnlyTheNewRoot] {
        in_both_clusters(|cluster| {
            let flags = match step {
                Step::BothRoots => anchors_flag(&dir, "both.crt"),
                Step::NewIssuers => issuer_flags(&dir, cluster, None),
                Step::OnlyTheNewRoot => anchors_flag(&dir, "root.crt"),
            };
            let said = upgrade(world, cluster, &flags);
            assert!(said.succeeded(), "{step:?} in {cluster}: {said:?}");
            world.kubectl_words(cluster, &["apply", "-f", "-"], &said.out);
        });
        // The next step needs this one in both clusters: their proxies speak to each other.
        in_both_clusters(|cluster| follows(world, cluster, &dir, step));
        report(&format!("{:.1} s until {step:?}", began.elapsed().as_secs_f64()));
    }
    witness.hears(10);
    assert_eq!(witness.failures(), "", "requests were lost");
    let pods_after = CLUSTERS.map(|cluster| pods(world, cluster));
    assert_eq!(pods_before, pods_after, "nothing was restarted");

    // A pod that is injected now believes the new root only, and is believed.
    world.citizen("west", "latecomer");
    eventually("a new pod is served through the link", SOON, || {
        match world.curl("west", "latecomer", url) {
            (200, 0) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    // One that still believes the old root alone can't even begin: its proxy says why.
    stranded(world, &old);
}

/// Starts a pod that was injected before the rotation, and waits for its proxy's complaint.
fn stranded(world: &World, old: &str) {
    let template = world
        .pod("west", crate::world::VISITORS, "app=latecomer")
        .unwrap_or_else(|error| panic!("{error}"));
    let mut pod = serde_json::json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "stranded", "namespace": crate::world::VISITORS},
        "spec": template["spec"],
    });
    pod["metadata"]["labels"] = serde_json::json!({"app": "stranded"});
    pod["metadata"]["annotations"] = serde_json::json!({"linkerd.io/inject": "disabled"});
    let spec = pod["spec"].as_object_mut().expect("a pod has a spec");
    spec.remove("nodeName");
    let lists = ["containers", "initContainers"];
    for list in lists {
        for container in spec
            .get_mut(list)
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            for variable in container["env"].as_array_mut().into_iter().flatten() {
                if variable["name"] == "LINKERD2_PROXY_IDENTITY_TRUST_ANCHORS" {
                    variable["value"] = old.into();
                }
            }
        }
    }
    world.apply("west", &pod);
    eventually("the stranded proxy says what is wrong", SOON, || {
        let line = "-n visitors logs stranded -c linkerd-proxy";
        let said = world.try_kubectl("west", &crate::world::words(line), "");
        let complaint = "certificate does not chain to our trust anchors";
        if said.out.contains(complaint) {
            return Ok(());
        }
        Err(format!("{said:?}"))
    });
    world.kubectl("west", "-n visitors delete pod stranded --wait=false");
    world.remove("west", "latecomer");
}

fn anchors_flag(dir: &Path, name: &str) -> String {
    format!("--identity-trust-anchors-file {}", dir.join(name).display())
}

fn issuer_flags(dir: &Path, cluster: &str, anchors: Option<&str>) -> String {
    let file = |ending: &str| dir.join(format!("{cluster}.{ending}")).display().to_string();
    format!(
        "{} --identity-issuer-certificate-file {} --identity-issuer-key-file {}",
        anchors.map(|name| anchors_flag(dir, name)).unwrap_or_default(),
        file("crt"),
        file("key")
    )
}

fn upgrade(world: &World, cluster: &str, flags: &str) -> crate::host::Said {
    let mut command = std::process::Command::new(HAWSER);
    command
        .arg("upgrade")
        .args(crate::world::words(flags))
        .args(["--context", cluster, "--kubeconfig"])
        .arg(world.kubeconfig());
    run(command, "", COMMAND_DEADLINE)
}

fn stored_bundle(world: &World, cluster: &str) -> String {
    let map = world
        .get(cluster, "-n linkerd configmap linkerd-identity-trust-roots")
        .unwrap_or_else(|error| panic!("{error}"));
    map["data"]["ca-bundle.crt"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

/// Every running pod with a proxy, with the number of restarts.
fn pods(world: &World, cluster: &str) -> BTreeSet<String> {
    let list = world
        .get(cluster, "-A pods -l linkerd.io/control-plane-ns=linkerd")
        .unwrap_or_else(|error| panic!("{error}"));
    let pods = list["items"].as_array().cloned().unwrap_or_default();
    let running = pods
        .iter()
        .filter(|pod| pod["status"]["phase"] == "Running" && pod["metadata"]["deletionTimestamp"].is_null());
    running
        .map(|pod| {
            let restarts: u64 = pod["status"]["containerStatuses"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|container| container["restartCount"].as_u64())
                .sum();
            let meta = |field: &str| pod["metadata"][field].as_str().unwrap_or_default().to_owned();
            format!(
                "{}/{} restarted {restarts} times",
                meta("namespace"),
                meta("name")
            )
        })
        .collect()
}

/// Waits until every proxy of a cluster is where a step leads.
fn follows(world: &World, cluster: &str, dir: &Path, step: Step) {
    let info = |name: &str, certificate: &_| {
        let sha256 = hawser_tls::Fingerprint::of(certificate);
        format!("{name}{{sha256=\"{sha256}\"}} 1")
    };
    let certificates = |name: &str| {
        let pem = std::fs::read_to_string(dir.join(name)).expect("the test wrote it");
        hawser_tls::certificates(&pem, "the test's").expect("PEM")
    };
    let bundle = match step {
        Step::BothRoots | Step::NewIssuers => "both.crt",
        Step::OnlyTheNewRoot => "root.crt",
    };
    let anchors: BTreeSet<String> = certificates(bundle)
        .iter()
        .map(|certificate| info("identity_trust_anchors_info", certificate))
        .collect();
    let issuer = info(
        "identity_cert_issuer_info",
        &certificates(&format!("{cluster}.crt"))[0],
    );
    for pod in pods(world, cluster) {
        let name = pod.split(' ').next().unwrap_or_default();
        let (namespace, name) = name.split_once('/').expect("namespace and name");
        eventually(&format!("{cluster}:{pod} follows"), SOON, || {
            let line = format!("diagnostics proxy-metrics -n {namespace} po/{name}");
            let metrics = world.hawser(cluster, &line, "");
            let used: BTreeSet<String> = metrics
                .lines()
                .filter(|line| line.starts_with("identity_trust_anchors_info{"))
                .map(str::to_owned)
                .collect();
            let signed = metrics.contains(&issuer) != matches!(step, Step::BothRoots);
            if used == anchors && signed {
                return Ok(());
            }
            Err(format!("{used:?}, issuer as it should be: {signed}"))
        });
    }
}
