//! Explanations are compared with what happens: what is said to arrive arrives, and what is said to fail fails there.

use serde_json::{Value, json};

use crate::host::{self, HAWSER, Said, eventually};
use crate::runner::{Test, linked};
use crate::workshop::play_with;
use crate::world::{COMMAND_DEADLINE, SOON, VISITORS, World, words};

pub(crate) const TESTS: &[Test] = &[
    linked(
        "what_is_explained_to_arrive_arrives_and_what_is_explained_to_fail_does",
        &["kubectl", "curl"],
        what_is_explained_to_arrive_arrives_and_what_is_explained_to_fail_does,
    ),
    linked(
        "a_request_is_explained_as_the_guide_says",
        &["bash", "kubectl"],
        a_request_is_explained_as_the_guide_says,
    ),
    linked(
        "questions_that_make_no_sense_have_an_exit_code_of_their_own",
        &[],
        questions_that_make_no_sense_have_an_exit_code_of_their_own,
    ),
];

fn explain(world: &World, line: &str) -> Said {
    let mut command = std::process::Command::new(HAWSER);
    command
        .arg("explain")
        .args(words(line))
        .args(["--context", "west", "--kubeconfig"])
        .arg(world.kubeconfig())
        .env("HOME", world.dir());
    host::run(command, "", COMMAND_DEADLINE)
}

/// What fails, as `about subject: seen`, with the exit code.
fn failures(world: &World, line: &str) -> Result<(Option<i32>, Vec<String>), String> {
    let said = explain(world, &format!("{line} -o json"));
    let code = said.code();
    let explanation: Value = serde_json::from_str(&said.out).map_err(|error| format!("{error}: {said:?}"))?;
    let findings = explanation["findings"].as_array().cloned().unwrap_or_default();
    let text = |finding: &Value, field: &str| finding[field].as_str().unwrap_or_default().to_owned();
    let failing = findings.iter().filter(|finding| finding["verdict"] == "fails");
    let lines = failing.map(|finding| {
        format!(
            "{} {}: {}; {}",
            text(finding, "about"),
            text(finding, "subject"),
            text(finding, "seen"),
            text(finding, "why")
        )
    });
    Ok((code, lines.collect()))
}

/// Explanation and reality agree, and the explanation says this of what fails.
fn agree(world: &World, what: &str, to: &str, url: &str, code: i32, fails: &[&str]) {
    eventually(what, SOON, || {
        let line =
            format!("deploy/asker --to svc/{to} -n {VISITORS} --to-namespace emojivoto --path /api/list");
        let (exit, failing) = failures(world, &line)?;
        let (status, _) = world.curl("west", "asker", url);
        let arrived = i32::from(status != 200);
        let told = fails
            .iter()
            .all(|words| failing.iter().any(|line| line.contains(words)));
        match exit == Some(code) && arrived == code && told && failing.is_empty() == fails.is_empty() {
            true => Ok(()),
            false => Err(format!("exit code {exit:?}, status {status}, {failing:?}")),
        }
    });
}

fn what_is_explained_to_arrive_arrives_and_what_is_explained_to_fail_does(world: &World) {
    world.citizen("west", "asker");
    let (near, far) = (
        "http://web-svc.emojivoto/api/list",
        "http://web-svc-east.emojivoto/api/list",
    );
    agree(world, "all is well here", "web-svc", near, 0, &[]);
    agree(world, "all is well in east", "web-svc-east", far, 0, &[]);

    let server = json!({
        "apiVersion": "policy.linkerd.io/v1beta3", "kind": "Server",
        "metadata": {"name": "nobody-enters", "namespace": "emojivoto"},
        "spec": {"podSelector": {"matchLabels": {"app": "web-svc"}}, "port": 8080, "proxyProtocol": "HTTP/1"},
    });
    world.apply("east", &server);
    let denied = ["nobody-enters lets in nobody"];
    agree(
        world,
        "east's web lets in nobody",
        "web-svc-east",
        far,
        1,
        &denied,
    );
    world.kubectl("east", "-n emojivoto delete server nobody-enters");

    world.kubectl(
        "east",
        "-n emojivoto label service web-svc mirror.linkerd.io/exported-",
    );
    let missing = [
        "name service emojivoto/web-svc-east: it does not exist",
        "it has no label mirror.linkerd.io/exported",
    ];
    agree(
        world,
        "web-svc of east is not exported",
        "web-svc-east",
        far,
        1,
        &missing,
    );
    world.kubectl(
        "east",
        "-n emojivoto label service web-svc mirror.linkerd.io/exported=true",
    );
    agree(world, "it is exported again", "web-svc-east", far, 0, &[]);
    world.remove("west", "asker");
}

fn a_request_is_explained_as_the_guide_says(world: &World) {
    play_with(&world.kubeconfig(), "explain.md");
}

fn questions_that_make_no_sense_have_an_exit_code_of_their_own(world: &World) {
    for line in [
        "deploy/vote-bot",
        "svc/web-svc --to svc/emoji-svc",
        "secret/web",
        "svc/Web_1",
        "svc/web-svc --port 0",
    ] {
        let said = explain(world, line);
        assert_eq!(said.code(), Some(2), "explain {line}: {said:?}");
        assert!(said.out.is_empty(), "explain {line}: {said:?}");
    }
    let said = explain(world, "svc/web -n emojivoto");
    assert_eq!(said.code(), Some(1), "{said:?}");
    assert!(said.out.contains("try: svc/web-svc"), "{said:?}");
    let said = explain(world, "svc/web-svc -n emojivoto --port 81");
    assert_eq!(said.code(), Some(1), "{said:?}");
    assert!(said.out.contains("its ports are 80 (http)"), "{said:?}");
}
