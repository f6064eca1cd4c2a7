//! The real kubectl against a cluster of the sandbox: what people type.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};

use serde_json::json;

use crate::host;
use crate::runner::{Test, linked};
use crate::world::{SOON, World, words};

const TOOLS: &[&str] = &["kubectl"];
const NAMESPACE: &str = "kubectl";

pub(crate) const TESTS: &[Test] = &[
    linked(
        "kubectl_makes_changes_and_shows",
        TOOLS,
        kubectl_makes_changes_and_shows,
    ),
    linked(
        "kubectl_applies_on_both_sides",
        TOOLS,
        kubectl_applies_on_both_sides,
    ),
    linked("kubectl_rolls_out", TOOLS, kubectl_rolls_out),
    linked("kubectl_watches", TOOLS, kubectl_watches),
    linked("kubectl_reaches_into_pods", TOOLS, kubectl_reaches_into_pods),
    linked(
        "the_emojivoto_page_comes_through_kubectl_port_forward",
        TOOLS,
        the_emojivoto_page_comes_through_kubectl_port_forward,
    ),
    linked("kubectl_asks_what_it_may", TOOLS, kubectl_asks_what_it_may),
];

/// A namespace for one test, removed with the value.
struct Namespace<'a>(&'a World);

impl<'a> Namespace<'a> {
    fn new(world: &'a World) -> Self {
        let name = NAMESPACE;
        world.kubectl("west", &format!("create namespace {name}"));
        Self(world)
    }

    fn kubectl(&self, line: &str) -> String {
        self.0.kubectl("west", &format!("-n {NAMESPACE} {line}"))
    }

    fn sleeper(&self, name: &str) {
        self.kubectl(&format!(
            "create deployment {name} --image=curlimages/curl -- sleep infinity"
        ));
        self.0.rolled_out("west", NAMESPACE, name);
    }
}

impl Drop for Namespace<'_> {
    fn drop(&mut self) {
        // Waits: its name is used again.
        self.0.try_kubectl(
            "west",
            &words(&format!("delete namespace {NAMESPACE} --timeout=25s")),
            "",
        );
    }
}

#[track_caller]
fn says(text: &str, wanted: &[&str]) {
    for word in wanted {
        assert!(text.contains(word), "{word:?} in:\n{text}");
    }
}

fn kubectl_makes_changes_and_shows(world: &World) {
    let space = Namespace::new(world);
    space.sleeper("sleeper");
    says(
        &space.kubectl("get deployments"),
        &["NAME", "READY", "sleeper", "1/1"],
    );
    says(
        &space.kubectl("get deploy sleeper -o wide"),
        &["CONTAINERS", "curlimages/curl"],
    );
    says(&space.kubectl("get pods"), &["sleeper-", "1/1", "Running"]);
    says(
        &space.kubectl("get all"),
        &[
            "pod/sleeper-",
            "deployment.apps/sleeper",
            "replicaset.apps/sleeper-",
        ],
    );
    says(
        &space.kubectl("describe deployment sleeper"),
        &["Replicas:", "1 desired", "Available", "ScalingReplicaSet"],
    );
    says(
        &space.kubectl("describe pods -l app=sleeper"),
        &["Status:", "Running", "Events:", "Started"],
    );
    space.kubectl("label deployment sleeper colour=red");
    says(
        &space.kubectl("get deployments -l colour=red -o name"),
        &["deployment.apps/sleeper"],
    );
    assert_eq!(space.kubectl("get deployments -l colour!=red -o name"), "");
    space.kubectl("label deployment sleeper colour=blue --overwrite");
    space.kubectl("label deployment sleeper colour-");
    space.kubectl("annotate deployment sleeper note=kept");
    let note = space.kubectl("get deployment sleeper -o jsonpath={.metadata.annotations.note}");
    assert_eq!(note, "kept");

    let editor = world.dir().join("editor");
    std::fs::write(&editor, "#!/bin/sh\nsed -i 's/note: kept/note: edited/' \"$1\"\n").expect("written");
    host::mode(&editor, 0o755);
    let mut edit = world.kubectl_command("west", &words(&format!("-n {NAMESPACE} edit deployment sleeper")));
    edit.env("EDITOR", &editor).env_remove("KUBE_EDITOR");
    let said = host::run(edit, "", SOON);
    assert!(said.succeeded(), "{said:?}");
    let note = space.kubectl("get deployment sleeper -o jsonpath={.metadata.annotations.note}");
    assert_eq!(note, "edited");

    let annotated = r#"{"metadata":{"annotations":{"note":"patched"}}}"#;
    let patches = [
        ("merge", annotated),
        (
            "strategic",
            r#"{"spec":{"template":{"spec":{"terminationGracePeriodSeconds":1}}}}"#,
        ),
        ("json", r#"[{"op":"remove","path":"/metadata/annotations/note"}]"#),
    ];
    for (kind, patch) in patches {
        let words = [
            "-n",
            NAMESPACE,
            "patch",
            "deployment",
            "sleeper",
            "--type",
            kind,
            "-p",
            patch,
        ];
        says(&world.kubectl_words("west", &words, ""), &["patched"]);
    }
    let note = space.kubectl("get deployment sleeper -o jsonpath={.metadata.annotations.note}");
    assert_eq!(note, "");
    world.rolled_out("west", NAMESPACE, "sleeper");
    space.kubectl("scale deployment sleeper --replicas=3");
    space.kubectl("wait --for=jsonpath={.status.readyReplicas}=3 deployment/sleeper --timeout=25s");
    space.kubectl("wait --for=condition=Available deployment/sleeper --timeout=25s");
    space.kubectl("delete deployment sleeper --timeout=25s");
    space.kubectl("wait --for=delete pod -l app=sleeper --timeout=25s");
    let gone = world.try_kubectl(
        "west",
        &words(&format!("-n {NAMESPACE} get deployment sleeper")),
        "",
    );
    assert!(!gone.succeeded());
    says(
        &gone.err,
        &["Error from server (NotFound): deployments.apps \"sleeper\" not found"],
    );
}

fn kubectl_applies_on_both_sides(world: &World) {
    let space = Namespace::new(world);
    let map = |data: &serde_json::Value| {
        json!({
            "apiVersion": "v1", "kind": "ConfigMap", "data": data,
            "metadata": {"name": "settings", "namespace": NAMESPACE},
        })
        .to_string()
    };
    let apply = |flags: &str, object: &str| {
        let line = format!("apply {flags} -f -");
        world.try_kubectl("west", &words(&line), object)
    };
    let values = || space.kubectl("get configmap settings -o jsonpath={.data}");
    says(
        &apply("", &map(&json!({"a": "1", "b": "1"}))).out,
        &["configmap/settings created"],
    );
    says(
        &apply("", &map(&json!({"a": "2"}))).out,
        &["configmap/settings configured"],
    );
    assert_eq!(values(), r#"{"a":"2"}"#, "what left the manifest left the object");
    says(
        &apply("", &map(&json!({"a": "2"}))).out,
        &["configmap/settings unchanged"],
    );

    let refused = apply("--server-side --field-manager=other", &map(&json!({"a": "3"})));
    assert!(!refused.succeeded(), "the field has an owner");
    says(&refused.err, &["conflict", ".data.a"]);
    let forced = apply(
        "--server-side --field-manager=other --force-conflicts",
        &map(&json!({"a": "3", "c": "3"})),
    );
    says(&forced.out, &["serverside-applied"]);
    assert_eq!(values(), r#"{"a":"3","c":"3"}"#);
    let fewer = apply("--server-side --field-manager=other", &map(&json!({"c": "3"})));
    assert!(fewer.succeeded(), "{fewer:?}");
    assert_eq!(
        values(),
        r#"{"c":"3"}"#,
        "fields that their last owner gave up are gone"
    );

    let nonsense = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"a": 1}, "metadata": {"name": "bad", "namespace": NAMESPACE}});
    let refused = apply("--server-side", &nonsense.to_string());
    assert!(!refused.succeeded(), "a number is no string: {refused:?}");
    let dry = apply("--dry-run=server", &map(&json!({"d": "4"})));
    says(&dry.out, &["(server dry run)"]);
    assert_eq!(values(), r#"{"c":"3"}"#);
}

fn kubectl_rolls_out(world: &World) {
    let space = Namespace::new(world);
    space.sleeper("sleeper");
    let pods = || space.kubectl("get pods -l app=sleeper -o jsonpath={.items[*].metadata.uid}");
    let before = pods();
    space.kubectl("rollout restart deployment sleeper");
    says(
        &space.kubectl("rollout status deployment sleeper --timeout=25s"),
        &["successfully rolled out"],
    );
    host::eventually("only the new pod is left", SOON * 2, || {
        let now = pods();
        if now.contains(&before) || now.contains(' ') {
            return Err(now);
        }
        Ok(())
    });
    says(
        &space.kubectl("rollout history deployment sleeper"),
        &["REVISION", "2"],
    );
}

/// A kubectl that goes on until it is told to stop; ends with the value.
pub(crate) struct Running {
    child: Child,
    lines: Receiver<String>,
}

impl Running {
    fn start(world: &World, line: &str) -> Self {
        let mut command = world.kubectl_command("west", &words(line));
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("kubectl starts");
        let pipe = child.stdout.take().expect("it is piped");
        let (heard, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                if heard.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines }
    }

    /// A port of this machine that leads to one of a pod or Service.
    pub(crate) fn forward(world: &World, to: &str) -> (Self, u16) {
        let forward = Self::start(world, to);
        let line = forward.line(&["Forwarding from 127.0.0.1:"]);
        let port = line
            .trim_start_matches("Forwarding from 127.0.0.1:")
            .split(' ')
            .next()
            .and_then(|port| port.parse().ok())
            .unwrap_or_else(|| panic!("a port in {line:?}"));
        (forward, port)
    }

    /// The next line with all of these words.
    fn line(&self, wanted: &[&str]) -> String {
        let mut seen = Vec::new();
        loop {
            match self.lines.recv_timeout(SOON) {
                Ok(line) if wanted.iter().all(|word| line.contains(word)) => return line,
                Ok(line) => seen.push(line),
                Err(error) => panic!("a line with {wanted:?}: {error}; seen: {seen:#?}"),
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn kubectl_watches(world: &World) {
    let space = Namespace::new(world);
    let watch = Running::start(world, &format!("-n {NAMESPACE} get pods -w"));
    space.kubectl("run watched --image=curlimages/curl --command -- sleep infinity");
    watch.line(&["watched", "Pending"]);
    watch.line(&["watched", "1/1", "Running"]);
    space.kubectl("delete pod watched --grace-period=1 --wait=false");
    watch.line(&["watched", "Terminating"]);

    let events = Running::start(
        world,
        &format!("-n {NAMESPACE} get configmaps -w --output-watch-events"),
    );
    space.kubectl("create configmap one");
    events.line(&["ADDED", "one"]);
    space.kubectl("delete configmap one");
    events.line(&["DELETED", "one"]);
}

fn kubectl_reaches_into_pods(world: &World) {
    let space = Namespace::new(world);
    let script = "echo begun; while ! test -e /tmp/go; do sleep 0.1; done; echo gone; exec sleep infinity";
    let run = [
        "-n",
        NAMESPACE,
        "run",
        "speaker",
        "--image=curlimages/curl",
        "--command",
        "--",
        "sh",
        "-c",
        script,
    ];
    world.kubectl_words("west", &run, "");
    space.kubectl("wait --for=condition=Ready pod/speaker --timeout=25s");
    assert_eq!(space.kubectl("logs speaker"), "begun\n");
    let follow = Running::start(world, &format!("-n {NAMESPACE} logs -f speaker"));
    follow.line(&["begun"]);

    let exec = |flags: &str, script: &str, input: &str| {
        let mut all = vec!["-n", NAMESPACE, "exec"];
        all.extend(words(flags));
        all.extend(["speaker", "--", "sh", "-c", script]);
        world.try_kubectl("west", &all, input)
    };
    let said = exec("", "echo out; echo err >&2", "");
    assert_eq!(
        (said.code(), said.out.as_str(), said.err.as_str()),
        (Some(0), "out\n", "err\n")
    );
    let said = exec("-i", "tr a-z A-Z", "through standard input\n");
    assert_eq!(
        (said.code(), said.out.as_str()),
        (Some(0), "THROUGH STANDARD INPUT\n")
    );
    assert_eq!(exec("", "exit 7", "").code(), Some(7), "exit codes come through");
    let much = exec("", "head -c 3000000 /dev/zero | tr '\\0' x", "");
    assert_eq!(
        (much.code(), much.out.len()),
        (Some(0), 3_000_000),
        "all of it comes through"
    );

    assert_eq!(exec("", "touch /tmp/go", "").code(), Some(0));
    follow.line(&["gone"]);
    assert_eq!(space.kubectl("logs speaker --tail=1"), "gone\n");
}

fn the_emojivoto_page_comes_through_kubectl_port_forward(world: &World) {
    let (_forward, port) = Running::forward(world, "-n emojivoto port-forward service/web-svc :80");
    // Twice, because one forward serves many connections.
    for (path, wanted) in [("/", "<title>Emoji Vote</title>"), ("/api/list", ":doughnut:")] {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("the port is open");
        stream.set_read_timeout(Some(SOON)).expect("a socket");
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
        )
        .expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("text");
        says(&answer, &["HTTP/1.1 200", wanted]);
    }
}

fn kubectl_asks_what_it_may(world: &World) {
    let may = |line: &str| {
        let said = world.try_kubectl("west", &words(&format!("auth can-i {line}")), "");
        (said.out.trim().to_owned(), said.code())
    };
    assert_eq!(may("delete nodes"), ("yes".into(), Some(0)));
    says(&world.kubectl("west", "auth whoami"), &["system:masters"]);
    says(&world.kubectl("west", "version"), &["Server Version"]);
    says(
        &world.kubectl("west", "api-resources"),
        &["trafficsplits", "links", "deployments"],
    );
    says(
        &world.kubectl("west", "explain trafficsplit.spec.backends"),
        &["weight"],
    );
}
