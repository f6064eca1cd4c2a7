//! The sandbox and Kubernetes, asked the same questions.
//!
//! `record.txt` holds what Kubernetes answered. On every machine the sandbox's answers are compared with it; where there
//! is a control plane of Kubernetes, so are that one's, started anew. Of versions with a file of their own here, like
//! `1.30.txt`, these claims may differ. With `HAWSER_RECORD=1` the record, or the table in
//! `docs/sandbox-conformance.md`, is written instead. `cargo xtask kubernetes conformance` does it all.

mod cases;
mod hooks;
mod rules;
mod script;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use hawser_sandbox::api::{Cluster, ClusterOptions, Identity};
use hawser_sandbox::controllers;
use hawser_sandbox::kubelet::ClusterAddresses;
use hawser_sandbox::launcher::kubernetes::{ControlPlane, ready};
use hawser_sandbox::network::{Layout, NetNs, NodePorts, plan_addresses};
use http_body_util::Full;
use hyper::body::Bytes;
use hyper_util::rt::TokioExecutor;
use libtest_mimic::{Arguments, Trial};
use nix::mount::MsFlags;
use serde_json::json;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::script::{Case, Server};

const REAL: &str = "kubernetes_answers_as_it_was_recorded_to";
const OLDEST: &str = "the_oldest_kubernetes_answers_as_it_was_recorded_to";
const RECORD: &str = "HAWSER_RECORD";
/// Until a control plane of Kubernetes is ready, on a machine with other things to do.
const READY_DEADLINE: Duration = Duration::from_secs(120);

/// Transcript, or why there is none, by claim.
type Answers = BTreeMap<&'static str, Result<String, String>>;

fn main() -> ExitCode {
    let newest = || kubernetes_answers_as_it_was_recorded_to(hawser_testing::control_plane());
    let oldest = || kubernetes_answers_as_it_was_recorded_to(hawser_testing::oldest_control_plane());
    if let Some(ended) = hawser_testing::inside(&[(REAL, newest), (OLDEST, oldest)]) {
        return ended;
    }
    let real = |name, programs: Result<PathBuf, String>| {
        let trial = hawser_testing::namespaced(name);
        match programs.err().or_else(hawser_testing::no_namespaces) {
            Some(why) => hawser_testing::ignored(trial, &why),
            None => trial,
        }
    };
    let newest = real(REAL, hawser_testing::control_plane());
    let oldest = real(OLDEST, hawser_testing::oldest_control_plane());
    let sandbox = Trial::test("the_sandbox_answers_as_kubernetes_does", || {
        finish(runtime().block_on(compare_sandbox()))
    });
    // What is recorded is there when it is compared with.
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    libtest_mimic::run(&arguments, vec![newest, oldest, sandbox]).exit_code()
}

/// Runs as root of new namespaces, which end what was started.
fn kubernetes_answers_as_it_was_recorded_to(programs: Result<PathBuf, String>) {
    let complaints = runtime().block_on(async {
        let private = tempfile::tempdir().expect("a writable directory");
        // In memory, as a sandbox's is: etcd waits for disks.
        let memory = Some("tmpfs");
        nix::mount::mount(memory, private.path(), memory, MsFlags::empty(), None::<&str>)
            .expect("we are root");
        let mut addresses = addresses();
        addresses.api.set_ip(Ipv4Addr::LOCALHOST.into());
        let programs = programs.expect("they were there");
        let (node, logs) = (
            NetNs::current().expect("we have one"),
            private.path().join("logs"),
        );
        let mut tasks = JoinSet::new();
        let plane = ControlPlane::start(&addresses, &node, &programs, private.path(), &logs, &mut tasks);
        let plane = plane.await.expect("a control plane");
        let client = plane.client();
        if tokio::time::timeout(READY_DEADLINE, ready(&client))
            .await
            .is_err()
        {
            let log = std::fs::read_to_string(logs.join("kube-apiserver.log"));
            panic!(
                "not ready within {READY_DEADLINE:?}:\n{}",
                log.unwrap_or_default()
            );
        }
        let server = Server {
            client,
            restart: Box::new(move || plane.interrupt(Duration::ZERO)),
            compact: Box::new(|version| Box::pin(compact_etcd(version))),
        };
        compare_real(&server).await
    });
    assert!(complaints.is_empty(), "{complaints}");
}

fn addresses() -> ClusterAddresses {
    let plan = plan_addresses(&["twin".to_owned()], Layout::Apart, NodePorts::Inside);
    plan.expect("one cluster fits").remove(0)
}

fn finish(complaints: String) -> Result<(), libtest_mimic::Failed> {
    match complaints.is_empty() {
        true => Ok(()),
        false => Err(complaints.into()),
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime")
}

fn is_recording() -> bool {
    std::env::var_os(RECORD).is_some()
}

fn at(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

const RECORD_PATH: &str = "tests/conformance/record.txt";
/// Claims that the sandbox is known not to keep, each with what it does instead.
const LIMITS_PATH: &str = "tests/conformance/limits.txt";
const TABLE_PATH: &str = "../../docs/sandbox-conformance.md";

async fn compare_real(server: &Server) -> String {
    let version = server
        .client
        .apiserver_version()
        .await
        .expect("a version")
        .git_version;
    let cases = cases::cases();
    let answers = ask(server, &cases).await;
    let failures: String = answers
        .iter()
        .filter_map(|(claim, answer)| Some(format!("{claim}: {}\n", answer.as_ref().err()?)))
        .collect();
    if !failures.is_empty() {
        return failures;
    }
    let own = at(&format!("tests/conformance/{}.txt", minor(&version)));
    let own = std::fs::read_to_string(own).ok();
    let mut text = format!("Kubernetes {version}\n");
    for case in &cases {
        let answer = answers[case.claim].as_deref().unwrap_or_default();
        let _ = write!(text, "\n# {}: {}\n{answer}", case.area, case.claim);
    }
    let path = at(RECORD_PATH);
    if is_recording() && own.is_none() {
        std::fs::write(path, text).expect("a writable directory");
        return String::new();
    }
    let recorded = std::fs::read_to_string(path).unwrap_or_default();
    let (recorded_version, recorded) = transcripts(&recorded);
    let (version, answered) = transcripts(&text);
    let mut complaints = match own {
        Some(_) => String::new(),
        None => difference(recorded_version, version),
    };
    let own = reasons(own.as_deref().unwrap_or_default());
    for case in &cases {
        let [expected, found] = [&recorded, &answered].map(|all| all.get(case.claim).copied());
        let difference = difference(expected.unwrap_or_default(), found.unwrap_or_default());
        match (difference.is_empty(), own.contains_key(case.claim)) {
            (true, false) | (false, true) => {}
            (true, true) => {
                let _ = writeln!(complaints, "{}: as recorded, but is said not to be", case.claim);
            }
            (false, false) => {
                let _ = write!(complaints, "{}: {}\n{difference}", case.area, case.claim);
            }
        }
    }
    complaints
}

/// `1.30` of `v1.30.14`.
fn minor(version: &str) -> &str {
    let version = version.trim_start_matches('v');
    version.rsplit_once('.').map_or(version, |(minor, _)| minor)
}

/// Claims, each with why it is not kept.
fn reasons(lines: &str) -> BTreeMap<&str, &str> {
    lines.lines().filter_map(|line| line.split_once(": ")).collect()
}

/// The first line of a record, and what it holds for each claim.
fn transcripts(record: &str) -> (&str, BTreeMap<&str, &str>) {
    let (version, cases) = record.split_once('\n').unwrap_or_default();
    let cases = cases.split("\n# ").flat_map(|text| {
        let (title, transcript) = text.split_once('\n')?;
        Some((title.split_once(": ")?.1, transcript.trim_end()))
    });
    (version, cases.collect())
}

async fn compare_sandbox() -> String {
    let recorded = std::fs::read_to_string(at(RECORD_PATH)).expect("a record");
    let (version, recorded) = transcripts(&recorded);
    let cases = cases::cases();
    let stop = CancellationToken::new();
    let answers = ask(&sandbox(stop.clone()), &cases).await;
    stop.cancel();

    let limits = std::fs::read_to_string(at(LIMITS_PATH)).expect("the known limits");
    let limits = reasons(&limits);
    let mut complaints = String::new();
    let mut table = String::new();
    let mut area = "";
    for case in &cases {
        let Some(expected) = recorded.get(case.claim) else {
            let _ = writeln!(complaints, "{}: not in the record", case.claim);
            continue;
        };
        let difference = match &answers[case.claim] {
            Ok(answer) => difference(expected, answer.trim_end()),
            Err(why) => format!("no answer: {why}"),
        };
        let agrees = match (difference.is_empty(), limits.get(case.claim)) {
            (true, None) => "yes".to_owned(),
            (false, Some(limit)) => format!("no: {limit}"),
            (true, Some(_)) => {
                let _ = writeln!(complaints, "{}: agrees, but is said not to", case.claim);
                continue;
            }
            (false, None) => {
                let _ = writeln!(complaints, "{}: {}\n{difference}", case.area, case.claim);
                continue;
            }
        };
        if area != case.area {
            area = case.area;
            let _ = write!(
                table,
                "\n## {area}\n\n| behaviour | the sandbox does the same |\n|---|---|\n"
            );
        }
        let _ = writeln!(table, "| {} | {agrees} |", case.claim);
    }
    if !complaints.is_empty() {
        return complaints;
    }
    let text = format!(
        "# Where the sandbox is like Kubernetes\n\nThe sandbox's API server and controllers are asked the same as those of \
         {version}, and the answers compared: codes, reasons, messages and the parts of objects that matter. This table \
         is generated from that (`cargo xtask kubernetes conformance`); the questions are in \
         `crates/sandbox/tests/conformance`.\n{table}"
    );
    let path = at(TABLE_PATH);
    if is_recording() {
        std::fs::write(path, text).expect("a writable directory");
        return String::new();
    }
    let written = std::fs::read_to_string(path).unwrap_or_default();
    difference(&written, &text)
}

/// A cluster in this process: its API server and controllers, no node.
fn sandbox(stop: CancellationToken) -> Server {
    let addresses = addresses();
    let cluster = Cluster::new(ClusterOptions {
        services: Some(addresses.services),
        ..ClusterOptions::default()
    });
    let client = cluster.client(Identity::admin());
    let (own, ca) = (client.clone(), cluster.ca_pem().to_owned());
    tokio::spawn(async move {
        // As whoever starts a cluster does.
        let root = json!({"metadata": {"name": "kube-root-ca.crt"}, "data": {"ca.crt": ca}});
        let request = http::Request::post("/api/v1/namespaces/kube-system/configmaps")
            .header("content-type", "application/json")
            .body(root.to_string().into_bytes());
        let _ = own
            .request::<serde_json::Value>(request.expect("a request"))
            .await;
        controllers::run(own, addresses, stop).await;
    });
    let compacted = cluster.clone();
    Server {
        client,
        restart: Box::new(move || cluster.interrupt(Duration::ZERO)),
        compact: Box::new(move |_| {
            compacted.compact();
            Box::pin(async { Ok(()) })
        }),
    }
}

/// Where the control plane's etcd listens, in namespaces of its own; versions of objects are its revisions.
const ETCD: &str = "http://127.0.0.1:2379/v3/kv/compaction";

async fn compact_etcd(version: String) -> Result<(), String> {
    let body = json!({"revision": version}).to_string();
    let request = http::Request::post(ETCD).body(Full::new(Bytes::from(body)));
    let client = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build_http();
    let answer = client.request(request.map_err(|error| error.to_string())?).await;
    match answer.map_err(|error| error.to_string())?.status() {
        status if status.is_success() => Ok(()),
        status => Err(format!("etcd compacts nothing: {status}")),
    }
}

/// Plays every case in a namespace of its own.
async fn ask(server: &Server, cases: &[Case]) -> Answers {
    let mut answers = Answers::new();
    let run = std::process::id();
    let hooks = hooks::serve().await;
    for (number, case) in cases.iter().enumerate() {
        let namespace = format!("twin-{run}-{number}");
        let namespaces = "/api/v1/namespaces";
        let make = script::post(namespaces, json!({"metadata": {"name": namespace}})).quiet();
        let remove = script::delete(&format!("{namespaces}/{namespace}")).quiet();
        // Pods are refused in a namespace that has no account yet.
        let account = script::get(&format!("{namespaces}/{namespace}/serviceaccounts/default"));
        let account = account.until(|code, _| code == 200).quiet();
        let (before, after) = (quiet([make, account]), quiet([remove]));
        let known = [
            ("ns", namespace.as_str()),
            ("hooks", hooks.url.as_str()),
            ("hooks-ca", hooks.ca.as_str()),
        ];
        let answer = match script::play(server, &before, &known).await {
            Ok(_) => script::play(server, case, &known).await,
            Err(why) => Err(why),
        };
        let _ = script::play(server, &after, &known).await;
        let twice = answers.insert(case.claim, answer);
        assert!(twice.is_none(), "two cases claim {:?}", case.claim);
    }
    answers
}

fn quiet(steps: impl Into<Vec<script::Step>>) -> Case {
    Case {
        area: "",
        claim: "",
        steps: steps.into(),
    }
}

/// Lines that differ, in their order; nothing if none does.
fn difference(expected: &str, found: &str) -> String {
    if expected == found {
        return String::new();
    }
    let (expected, found): (Vec<&str>, Vec<&str>) = (expected.lines().collect(), found.lines().collect());
    let mut out = String::new();
    for index in 0..expected.len().max(found.len()) {
        let (wanted, got) = (expected.get(index), found.get(index));
        if wanted != got {
            for (mark, line) in [('-', wanted), ('+', got)] {
                if let Some(line) = line {
                    let _ = writeln!(out, "  {mark} {line}");
                }
            }
        }
    }
    out
}
