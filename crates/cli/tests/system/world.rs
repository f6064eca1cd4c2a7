//! Two linked clusters that the demo left running, and the hands that tests need in them.
//!
//! Everything goes through kubectl and `hawser`, as users do it. Pods named *visitor* belong to no mesh; *citizens*
//! were injected.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::host::{self, HAWSER, Said, eventually};

/// The demo's last words before its live table.
const PLAYED: &str = "live, until Ctrl-C";
const DEMO_DEADLINE: Duration = Duration::from_secs(180);
/// One command of kubectl or hawser.
pub(crate) const COMMAND_DEADLINE: Duration = Duration::from_secs(30);
/// For anything that should take a second or two, on a machine with other things to do.
pub(crate) const SOON: Duration = Duration::from_secs(30);
/// For pods that are replaced.
pub(crate) const A_ROLLOUT: Duration = Duration::from_secs(60);

/// Where test pods live, in both clusters.
pub(crate) const VISITORS: &str = "visitors";

pub(crate) struct World {
    demo: Demo,
}

impl World {
    /// Plays the demo to its end and leaves it running.
    pub(crate) fn start() -> Self {
        let demo = Demo::start(&[]);
        demo.says(PLAYED, DEMO_DEADLINE);
        let world = Self { demo };
        for cluster in ["west", "east"] {
            world.kubectl(cluster, &format!("create namespace {VISITORS}"));
        }
        world
    }

    /// What the demo printed so far.
    pub(crate) fn transcript(&self) -> String {
        self.demo.transcript()
    }

    pub(crate) fn dir(&self) -> &Path {
        self.demo.dir.path()
    }

    /// The process that everything of this world descends from.
    pub(crate) fn pid(&self) -> u32 {
        self.demo.pid()
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.dir().join("kubeconfig")
    }

    /// Runs kubectl with the words of this line and returns its output; it must succeed.
    pub(crate) fn kubectl(&self, cluster: &str, line: &str) -> String {
        self.kubectl_words(cluster, &words(line), "")
    }

    /// The same with words that hold spaces, and standard input.
    pub(crate) fn kubectl_words(&self, cluster: &str, words: &[&str], input: &str) -> String {
        let said = self.try_kubectl(cluster, words, input);
        assert!(
            said.succeeded(),
            "kubectl --context {cluster} {words:?}: {said:?}"
        );
        said.out
    }

    pub(crate) fn try_kubectl(&self, cluster: &str, words: &[&str], input: &str) -> Said {
        host::run(self.kubectl_command(cluster, words), input, COMMAND_DEADLINE)
    }

    /// A kubectl that is not started yet.
    pub(crate) fn kubectl_command(&self, cluster: &str, words: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        command
            .arg("--kubeconfig")
            .arg(self.kubeconfig())
            .args(["--context", cluster])
            .args(words)
            .env("HOME", self.dir())
            .env_remove("KUBECONFIG");
        command
    }

    /// An object, or an error if it can't be had.
    pub(crate) fn get(&self, cluster: &str, line: &str) -> Result<Value, String> {
        let mut all = vec!["get", "-o", "json"];
        all.extend(words(line));
        self.try_kubectl(cluster, &all, "").json()
    }

    pub(crate) fn apply(&self, cluster: &str, object: &Value) {
        self.kubectl_words(cluster, &["apply", "-f", "-"], &object.to_string());
    }

    /// Runs `hawser` against a cluster; it must succeed.
    pub(crate) fn hawser(&self, cluster: &str, line: &str, input: &str) -> String {
        let said = self.run_hawser(cluster, line, input);
        assert!(said.succeeded(), "hawser {line}: {said:?}");
        said.out
    }

    /// The same, which may fail.
    pub(crate) fn try_hawser(&self, cluster: &str, line: &str) -> Said {
        self.run_hawser(cluster, line, "")
    }

    fn run_hawser(&self, cluster: &str, line: &str, input: &str) -> Said {
        let mut command = Command::new(HAWSER);
        command
            .args(words(line))
            .args(["--context", cluster, "--kubeconfig"])
            .arg(self.kubeconfig());
        host::run(command, input, COMMAND_DEADLINE)
    }

    /// Runs `hawser` without a cluster; it must succeed.
    pub(crate) fn hawser_alone(&self, line: &str, input: &str) -> String {
        let mut command = Command::new(HAWSER);
        command.args(words(line));
        let said = host::run(command, input, COMMAND_DEADLINE);
        assert!(said.succeeded(), "hawser {line}: {said:?}");
        said.out
    }

    /// Tells the sandbox something.
    pub(crate) fn sandbox(&self, line: &str) -> String {
        let mut command = Command::new(HAWSER);
        command
            .arg("sandbox")
            .arg("--state-dir")
            .arg(self.dir())
            .args(words(line));
        let said = host::run(command, "", COMMAND_DEADLINE);
        assert!(said.succeeded(), "hawser sandbox {line}: {said:?}");
        said.out
    }

    /// Starts a Deployment of one pod that does nothing, for [`Self::shell`]; not in the mesh.
    pub(crate) fn visitor(&self, cluster: &str, name: &str) {
        self.apply(cluster, &idle(name));
        self.rolled_out(cluster, VISITORS, name);
    }

    /// A citizen that asks for a URL ten times a second.
    pub(crate) fn caller(&self, cluster: &str, name: &str, url: &str) {
        let script =
            format!("while :; do curl -s -o /dev/null --noproxy '*' --max-time 5 {url}; sleep 0.1; done");
        let mut deployment = idle(name);
        let template = &mut deployment["spec"]["template"];
        template["metadata"]["annotations"]["linkerd.io/inject"] = "enabled".into();
        template["spec"]["containers"][0]["command"] = serde_json::json!(["sh", "-c", script]);
        self.apply(cluster, &deployment);
        self.rolled_out(cluster, VISITORS, name);
    }

    /// Like a visitor, injected.
    pub(crate) fn citizen(&self, cluster: &str, name: &str) {
        let mut deployment = idle(name);
        deployment["spec"]["template"]["metadata"]["annotations"]["linkerd.io/inject"] = "enabled".into();
        self.apply(cluster, &deployment);
        self.rolled_out(cluster, VISITORS, name);
    }

    pub(crate) fn remove(&self, cluster: &str, name: &str) {
        self.kubectl(
            cluster,
            &format!("-n {VISITORS} delete deployment {name} --wait=false"),
        );
    }

    /// Waits until a Deployment has what it wants.
    pub(crate) fn rolled_out(&self, cluster: &str, namespace: &str, name: &str) {
        let words = [
            "-n",
            namespace,
            "rollout",
            "status",
            &format!("deployment/{name}"),
            "--timeout=60s",
        ];
        let said = host::run(self.kubectl_command(cluster, &words), "", A_ROLLOUT + SOON);
        assert!(
            said.succeeded(),
            "{namespace}/{name} of {cluster} is not rolled out: {said:?}"
        );
    }

    /// Runs a shell command in a visitor or citizen.
    pub(crate) fn shell(&self, cluster: &str, name: &str, script: &str) -> Said {
        let pod = format!("deployment/{name}");
        self.try_kubectl(
            cluster,
            &[
                "-n", VISITORS, "exec", &pod, "-c", "main", "--", "sh", "-c", script,
            ],
            "",
        )
    }

    /// The HTTP status that curl gets in a pod; 0 if none, with curl's exit code.
    pub(crate) fn curl(&self, cluster: &str, pod: &str, url: &str) -> (u16, i32) {
        let script = format!(
            "curl -s -o /dev/null --noproxy '*' --max-time 5 -w '%{{http_code}}' '{url}'; echo \" $?\""
        );
        let said = self.shell(cluster, pod, &script);
        let numbers = || {
            let (status, code) = said.out.trim().split_once(' ')?;
            Some((status.parse().ok()?, code.parse().ok()?))
        };
        numbers().unwrap_or_else(|| panic!("curl {url} in {cluster}:{pod}: {said:?}"))
    }

    /// Logs of the proxy of a Deployment's pod.
    pub(crate) fn proxy_log(&self, cluster: &str, namespace: &str, deployment: &str) -> String {
        self.kubectl(
            cluster,
            &format!("-n {namespace} logs deployment/{deployment} -c linkerd-proxy"),
        )
    }

    /// The sum of a counter of east's gateway over the series whose labels contain a text.
    pub(crate) fn gateway_count(&self, counter: &str, labels: &str) -> u64 {
        let line = "-n linkerd-multicluster exec deployment/linkerd-gateway -c linkerd-proxy -- \
                    curl -s http://localhost:4191/metrics";
        let text = self.kubectl("east", line);
        text.lines()
            .filter(|line| {
                line.strip_prefix(counter)
                    .is_some_and(|rest| rest.starts_with('{'))
            })
            .filter(|line| line.contains(labels))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
            .sum()
    }

    /// The only running pod with a label.
    pub(crate) fn pod(&self, cluster: &str, namespace: &str, label: &str) -> Result<Value, String> {
        let list = self.get(cluster, &format!("-n {namespace} pods -l {label}"))?;
        let pods = list["items"].as_array().cloned().unwrap_or_default();
        let mut living = pods.into_iter().filter(|pod| {
            pod["metadata"]["deletionTimestamp"].is_null() && pod["status"]["phase"] == "Running"
        });
        match (living.next(), living.next()) {
            (Some(pod), None) => Ok(pod),
            (None, _) => Err(format!("no pod {label} runs in {cluster}:{namespace}")),
            (Some(_), Some(_)) => Err(format!("several pods {label} run in {cluster}:{namespace}")),
        }
    }

    /// State for whoever reads a failure.
    pub(crate) fn dump(&self) -> String {
        let mut out = String::new();
        for cluster in ["west", "east"] {
            let looks = [
                "get pods -A -o wide",
                "get endpoints -A",
                "get events -A --sort-by=.lastTimestamp",
            ];
            for look in looks {
                let text = self.try_kubectl(cluster, &words(look), "");
                let _ = writeln!(out, "--- {cluster}: {look}\n{}{}", tail(&text.out, 40), text.err);
            }
            let pods = self.get(cluster, "pods -A").unwrap_or_default();
            for pod in pods["items"].as_array().into_iter().flatten() {
                let meta = |field: &str| pod["metadata"][field].as_str().unwrap_or_default();
                let line = format!(
                    "-n {} logs {} --all-containers --prefix --tail=6",
                    meta("namespace"),
                    meta("name")
                );
                let text = self.try_kubectl(cluster, &words(&line), "");
                let _ = writeln!(out, "--- {cluster}: {line}\n{}{}", text.out, text.err);
            }
        }
        let log = std::fs::read_to_string(self.dir().join("sandbox.log")).unwrap_or_default();
        let _ = writeln!(out, "--- sandbox.log\n{}", tail(&log, 30));
        out
    }
}

pub(crate) fn idle(name: &str) -> Value {
    serde_json::json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": name, "namespace": VISITORS},
        "spec": {
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {
                    "terminationGracePeriodSeconds": 1,
                    "containers": [{"name": "main", "image": "curlimages/curl", "command": ["sleep", "infinity"]}],
                },
            },
        },
    })
}

pub(crate) fn words(line: &str) -> Vec<&str> {
    line.split_ascii_whitespace().collect()
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// A `hawser demo` in a directory of its own; ends with the value.
pub(crate) struct Demo {
    pub(crate) dir: tempfile::TempDir,
    child: Child,
    heard: Arc<Mutex<String>>,
}

impl Demo {
    pub(crate) fn start(args: &[&str]) -> Self {
        let dir = host::state_dir();
        let mut child = Command::new(HAWSER)
            .arg("demo")
            .args(args)
            .arg("--state-dir")
            .arg(dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("hawser starts");
        let heard = Arc::default();
        listen(child.stdout.take(), &heard);
        listen(child.stderr.take(), &heard);
        Self { dir, child, heard }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn transcript(&self) -> String {
        self.heard.lock().expect("listeners don't panic").clone()
    }

    /// Waits until it printed something.
    pub(crate) fn says(&self, words: &str, deadline: Duration) {
        eventually(&format!("the demo says {words:?}"), deadline, || {
            let heard = self.transcript();
            if heard.contains(words) {
                return Ok(());
            }
            assert!(
                Path::new(&format!("/proc/{}/exe", self.pid())).exists(),
                "the demo ended:\n{heard}"
            );
            Err(heard)
        });
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid()).expect("pids are small");
        kill(Pid::from_raw(pid), signal).expect("it is our child");
    }

    /// Waits until it ended.
    pub(crate) fn ended(&mut self, deadline: Duration) -> std::process::ExitStatus {
        eventually("the demo ends", deadline, || {
            let status = self.child.try_wait().map_err(|error| error.to_string())?;
            status.ok_or_else(|| "it runs".into())
        })
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        // Its end is the sandbox's: that is a test of its own.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn listen(pipe: Option<impl Read + Send + 'static>, heard: &Arc<Mutex<String>>) {
    let (Some(pipe), heard) = (pipe, heard.clone()) else {
        return;
    };
    std::thread::spawn(move || {
        let mut lines = BufReader::new(pipe);
        let mut line = String::new();
        while lines.read_line(&mut line).is_ok_and(|read| read > 0) {
            if let Ok(mut heard) = heard.lock() {
                heard.push_str(&line);
            }
            line.clear();
        }
    });
}
