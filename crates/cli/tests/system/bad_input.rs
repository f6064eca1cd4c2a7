//! Mistakes: of whoever types a command, and of whoever names a Service.

use std::process::Command;
use std::time::SystemTime;

use hawser_tls::{Issuer, Validity, create_issuer, create_root};
use serde_json::{Value, json};

use crate::host::{self, HAWSER, eventually};
use crate::runner::{Test, linked};
use crate::world::{COMMAND_DEADLINE, SOON, World, words};

pub(crate) const TESTS: &[Test] = &[
    linked(
        "every_command_line_error_says_what_failed_why_and_what_to_try",
        &[],
        every_command_line_error_says_what_failed_why_and_what_to_try,
    ),
    linked(
        "a_name_too_long_for_a_mirror_becomes_a_condition_and_an_event",
        &["kubectl"],
        a_name_too_long_for_a_mirror_becomes_a_condition_and_an_event,
    ),
    linked(
        "a_foreign_service_under_a_mirrors_name_is_left_alone_and_reported",
        &["kubectl"],
        a_foreign_service_under_a_mirrors_name_is_left_alone_and_reported,
    ),
];

fn every_command_line_error_says_what_failed_why_and_what_to_try(world: &World) {
    let dir = host::state_dir();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).expect("written");
    let now = SystemTime::now();
    let hour = std::time::Duration::from_secs(3600);
    let validity = Validity {
        not_before: now - hour,
        not_after: now + 24 * hour,
    };
    let root = |name: &str| create_root(name, validity).expect("a root");
    let (ours, other) = (root("root.ours"), root("root.other"));
    let parent = Issuer::from_pem(&other.certificate_pem, &other.key.to_pem()).expect("an issuer");
    let issuer = create_issuer("identity.linkerd.cluster.local", &parent, validity).expect("an issuer");
    write("roots.crt", &ours.certificate_pem);
    write("issuer.crt", &issuer.certificate_pem);
    write("issuer.key", &issuer.key.to_pem());
    write(
        "garbage.crt",
        "-----BEGIN CERTIFICATE-----\nbm8=\n-----END CERTIFICATE-----\n",
    );
    write("text", "not PEM at all");

    let running = world.dir().display().to_string();
    let kubeconfig = world.kubeconfig().display().to_string();
    let install = |anchors: &str, certificate: &str, key: &str| {
        format!(
            "install --identity-trust-anchors-file {} --identity-issuer-certificate-file {} --identity-issuer-key-file {}",
            path(anchors),
            path(certificate),
            path(key)
        )
    };
    let mistakes = [
        ("sandbox up Not_A_Name".to_owned(), "not a DNS label"),
        (
            format!("sandbox --state-dir {running} cut west north"),
            "no cluster is called north",
        ),
        (
            format!("sandbox --state-dir {running} kill-api north"),
            "no cluster north",
        ),
        (
            format!("sandbox --state-dir {running} up other"),
            "one is running",
        ),
        (format!("demo --state-dir {running}"), "one is running"),
        (
            format!("sandbox --state-dir {} status", path("none")),
            "none is running",
        ),
        (
            format!("mc --kubeconfig {} gateways", path("none")),
            "No such file",
        ),
        (
            format!("mc --kubeconfig {kubeconfig} --context north gateways"),
            "no context \"north\"",
        ),
        (
            format!("mc --kubeconfig {kubeconfig} --context east link --cluster-name Not_A_Name"),
            "not a DNS label",
        ),
        (
            format!("mc --kubeconfig {kubeconfig} --context west unlink --cluster-name north"),
            "there is no link",
        ),
        (
            format!("explain --kubeconfig {kubeconfig} --context north svc/web-svc"),
            "no context \"north\"",
        ),
        (
            format!(
                "explain --kubeconfig {kubeconfig} --context west deploy/nobody --to svc/web-svc -n emojivoto"
            ),
            "nobody",
        ),
        (
            format!(
                "drill --kubeconfig {kubeconfig} --context west svc/web-svc -n emojivoto --backend nobody --dry-run"
            ),
            "nobody is not a backend of trafficsplit web-svc",
        ),
        (
            format!(
                "drill --kubeconfig {kubeconfig} --context west svc/web-svc -n emojivoto --cluster north --dry-run"
            ),
            "no backend of trafficsplit web-svc is in cluster north",
        ),
        (
            format!(
                "drill --kubeconfig {kubeconfig} --context west svc/emoji-svc -n emojivoto --cluster east --dry-run"
            ),
            "no TrafficSplit",
        ),
        (format!("inject {}", path("none")), "No such file"),
        (
            install("text", "issuer.crt", "issuer.key"),
            "holds no certificate",
        ),
        (install("garbage.crt", "issuer.crt", "issuer.key"), ""),
        (install("roots.crt", "garbage.crt", "issuer.key"), ""),
        (install("roots.crt", "issuer.crt", "text"), ""),
        (install("roots.crt", "issuer.crt", "issuer.key"), "chain"),
        (install("none", "issuer.crt", "issuer.key"), "No such file"),
    ];
    for (line, why) in mistakes {
        let mut command = Command::new(HAWSER);
        command
            .args(words(&line))
            .env_remove("KUBECONFIG")
            .env("HOME", dir.path());
        let said = host::run(command, "", COMMAND_DEADLINE);
        assert_eq!(said.code(), Some(1), "hawser {line}: {said:?}");
        let lines: Vec<&str> = said.err.lines().collect();
        let [what, because, attempt] = lines[..] else {
            panic!("three lines from `hawser {line}`: {}", said.err);
        };
        assert!(what.starts_with("error: "), "hawser {line}: {}", said.err);
        assert!(
            because.starts_with("  why: ") && because.contains(why),
            "{why:?} from `hawser {line}`: {}",
            said.err
        );
        assert!(
            attempt.starts_with("  try: ") && attempt.len() > "  try: ".len(),
            "hawser {line}: {}",
            said.err
        );
    }
}

fn exported(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": name, "namespace": "emojivoto", "labels": {"mirror.linkerd.io/exported": "true"},
        },
        "spec": {"selector": {"app": "web-svc"}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
    })
}

/// The condition of an exported Service in the Link, once it has this reason.
fn condition(world: &World, service: &str, reason: &str) -> Value {
    eventually(&format!("the link says {reason} of {service}"), SOON, || {
        let link = world.get("west", "-n linkerd-multicluster link east")?;
        let entries = link["status"]["mirrorServices"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let entry = entries.iter().find(|entry| entry["remoteRef"]["name"] == service);
        match entry.map(|entry| entry["conditions"][0].clone()) {
            Some(condition) if condition["reason"] == reason => Ok(condition),
            other => Err(format!("{other:?}")),
        }
    })
}

/// An Event about a Service of east that speaks of this.
fn event(world: &World, service: &str, word: &str) {
    eventually(
        &format!("an Event in east about {service} says {word:?}"),
        SOON,
        || {
            let line = format!("-n emojivoto events --field-selector involvedObject.name={service}");
            let events = world.get("east", &line)?;
            let messages: Vec<&str> = events["items"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|event| event["message"].as_str())
                .collect();
            if messages.iter().any(|message| message.contains(word)) {
                return Ok(());
            }
            Err(format!("{messages:?}"))
        },
    );
}

fn a_name_too_long_for_a_mirror_becomes_a_condition_and_an_event(world: &World) {
    // With -east it would have 64.
    let name = "a".repeat(59);
    world.apply("east", &exported(&name));
    let condition = condition(world, &name, "Error");
    assert_eq!(condition["status"], "False");
    let message = condition["message"].as_str().unwrap_or_default();
    assert!(message.contains("63"), "the limit is named: {message}");
    event(world, &name, "63");
    world.kubectl("east", &format!("-n emojivoto delete service {name}"));
    // The mirror goes on with the others.
    world.apply("east", &exported("just-fits"));
    eventually("another Service is mirrored", SOON, || {
        world
            .get("west", "-n emojivoto service just-fits-east")
            .map(|_| ())
    });
    world.kubectl("east", "-n emojivoto delete service just-fits");
}

fn a_foreign_service_under_a_mirrors_name_is_left_alone_and_reported(world: &World) {
    let mut foreign = exported("taken-east");
    foreign["metadata"]["labels"] = json!({"owner": "somebody"});
    world.apply("west", &foreign);
    let before = world
        .get("west", "-n emojivoto service taken-east")
        .expect("it was made");
    world.apply("east", &exported("taken"));
    let condition = condition(world, "taken", "NameConflict");
    assert_eq!(condition["status"], "False");
    event(world, "taken", "taken-east");
    let read = || {
        world
            .get("west", "-n emojivoto service taken-east")
            .expect("it is there")
    };
    assert_eq!(before, read(), "somebody else's object");
    world.kubectl("east", "-n emojivoto delete service taken");
    eventually("the link forgets it", SOON, || {
        let link = world.get("west", "-n linkerd-multicluster link east")?;
        match link["status"]["mirrorServices"].to_string() {
            text if text.contains("\"taken\"") => Err(text),
            _ => Ok(()),
        }
    });
    assert_eq!(before, read(), "somebody else's object");
    world.kubectl("west", "-n emojivoto delete service taken-east");
}
