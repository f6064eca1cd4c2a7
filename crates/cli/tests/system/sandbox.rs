//! The sandbox by itself: `hawser sandbox`, real kubectl, pods that are this machine's programs.
//!
//! What pods can reach is asked by pods: each check is a pod that runs a shell command and succeeds or fails.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use crate::host::HAWSER;
use crate::runner::{Test, alone};

const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) const TESTS: &[Test] = &[
    alone(
        "clusters_are_reached_by_services_names_and_load_balancers_only",
        &["kubectl", "curl", "python3"],
        clusters_are_reached_by_services_names_and_load_balancers_only,
    ),
    alone(
        "a_killed_sandbox_leaves_no_process",
        &["kubectl"],
        a_killed_sandbox_leaves_no_process,
    ),
    alone(
        "a_stopped_sandbox_leaves_its_logs_and_no_secret",
        &["kubectl"],
        a_stopped_sandbox_leaves_its_logs_and_no_secret,
    ),
];

/// A running sandbox with clusters `west` and `east`; ends with the test.
struct Sandbox {
    dir: tempfile::TempDir,
    /// Pods are never waited for under the same name twice.
    checks: std::cell::Cell<u32>,
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let _ = self.hawser(&["down"]);
    }
}

impl Sandbox {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .expect("ours");
        let sandbox = Self {
            dir,
            checks: std::cell::Cell::new(0),
        };
        succeeded(&sandbox.hawser(&["up", "west", "east"]));
        sandbox
    }

    fn hawser(&self, args: &[&str]) -> Output {
        let mut command = Command::new(HAWSER);
        command
            .arg("sandbox")
            .args(args)
            .env("HAWSER_SANDBOX_DIR", self.dir.path());
        command.output().expect("hawser runs")
    }

    fn kubectl(&self, cluster: &str, args: &[&str]) -> String {
        let output = Command::new("kubectl")
            .args([
                "--kubeconfig",
                &self.dir.path().join("kubeconfig").display().to_string(),
            ])
            .args(["--context", cluster])
            .args(args)
            .env("HOME", self.dir.path())
            .output()
            .expect("kubectl runs");
        succeeded(&output);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// A Service that answers with a word, behind a LoadBalancer address, which is returned.
    fn serve(&self, cluster: &str, word: &str) -> String {
        let script = format!(
            "mkdir /tmp/www && cd /tmp/www && echo {word} > index.html && exec python3 -m http.server 8080"
        );
        self.kubectl(
            cluster,
            &[
                "create",
                "deployment",
                "web",
                "--image=web",
                "--",
                "sh",
                "-c",
                &script,
            ],
        );
        let expose = [
            "expose",
            "deployment",
            "web",
            "--port=80",
            "--target-port=8080",
            "--type=LoadBalancer",
        ];
        self.kubectl(cluster, &expose);
        self.kubectl(
            cluster,
            &[
                "wait",
                "--for=condition=Available",
                "deployment/web",
                "--timeout=20s",
            ],
        );
        let address = "jsonpath={.status.loadBalancer.ingress[0].ip}";
        let began = Instant::now();
        loop {
            let address = self.kubectl(cluster, &["get", "service", "web", "-o", address]);
            if !address.is_empty() {
                return address;
            }
            assert!(began.elapsed() < PATIENCE, "the Service got no address");
        }
    }

    /// Runs a shell command as a pod and says whether it succeeded.
    fn succeeds_in_pod(&self, cluster: &str, script: &str) -> bool {
        self.checks.set(self.checks.get() + 1);
        let name = format!("check-{}", self.checks.get());
        self.kubectl(
            cluster,
            &[
                "run",
                &name,
                "--image=check",
                "--restart=Never",
                "--command",
                "--",
                "sh",
                "-c",
                script,
            ],
        );
        let began = Instant::now();
        loop {
            match self
                .kubectl(cluster, &["get", "pod", &name, "-o", "jsonpath={.status.phase}"])
                .as_str()
            {
                "Succeeded" => return true,
                "Failed" => return false,
                phase => assert!(
                    began.elapsed() < PATIENCE,
                    "pod {name} in {cluster} is still {phase}: {script}"
                ),
            }
        }
    }

    fn check(&self, cluster: &str, script: &str) {
        assert!(self.succeeds_in_pod(cluster, script), "in {cluster}: {script}");
    }

    fn processes(&self) -> Vec<i32> {
        processes_naming(self.dir.path())
    }
}

fn succeeded(output: &Output) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{}{}",
        text(&output.stdout),
        text(&output.stderr)
    );
}

/// Retries for a while: rules follow the endpoints, they don't come with them.
fn answers(url: &str, word: &str) -> String {
    format!(
        "curl -sS --noproxy '*' --retry 20 --retry-all-errors --retry-delay 1 --max-time 2 {url} | grep -x {word}"
    )
}

fn is_silent(url: &str) -> String {
    format!("! curl -sS --noproxy '*' --max-time 2 {url}")
}

/// Processes of a sandbox have its directory among their arguments.
fn processes_naming(dir: &Path) -> Vec<i32> {
    let wanted = dir.display().to_string();
    let entries = std::fs::read_dir("/proc")
        .expect("/proc is mounted")
        .filter_map(Result::ok);
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid: &i32| {
            let line = std::fs::read(PathBuf::from(format!("/proc/{pid}/cmdline"))).unwrap_or_default();
            line.split(|byte| *byte == 0)
                .any(|argument| argument == wanted.as_bytes())
        })
        .collect()
}

fn clusters_are_reached_by_services_names_and_load_balancers_only() {
    let sandbox = Sandbox::start();
    let west = sandbox.serve("west", "west");
    let east = sandbox.serve("east", "east");

    sandbox.check("west", &answers("http://web", "west"));
    sandbox.check("west", &answers("http://web.default.svc.cluster.local", "west"));
    sandbox.check("west", &answers(&format!("http://{west}"), "west"));
    sandbox.check("west", &answers(&format!("http://{east}"), "east"));
    sandbox.check("east", &answers(&format!("http://{west}"), "west"));
    // The same addresses mean other pods in the other cluster; this one exists in west alone.
    sandbox.kubectl("west", &["scale", "deployment", "web", "--replicas=5"]);
    sandbox.kubectl(
        "west",
        &[
            "wait",
            "--for=condition=Available",
            "deployment/web",
            "--timeout=20s",
        ],
    );
    let addresses = sandbox.kubectl(
        "west",
        &[
            "get",
            "pods",
            "-l",
            "app=web",
            "-o",
            "jsonpath={.items[*].status.podIP}",
        ],
    );
    let taken = sandbox.kubectl(
        "east",
        &["get", "pods", "-o", "jsonpath={.items[*].status.podIP}"],
    );
    let only_west = addresses
        .split(' ')
        .find(|address| !taken.split(' ').any(|other| other == *address));
    let only_west = format!("http://{}:8080", only_west.expect("west has more pods"));
    sandbox.check("west", &answers(&only_west, "west"));
    sandbox.check("east", &is_silent(&only_west));
    sandbox.check("east", &is_silent("http://192.0.2.1"));
    sandbox.check("east", &is_silent("http://no-such-name.example"));
    sandbox.check(
        "east",
        "curl -skS --noproxy '*' --max-time 2 https://kubernetes.default/version | grep gitVersion",
    );

    succeeded(&sandbox.hawser(&["cut", "west", "east"]));
    sandbox.check("west", &is_silent(&format!("http://{east}")));
    succeeded(&sandbox.hawser(&["heal", "west", "east"]));
    sandbox.check("west", &answers(&format!("http://{east}"), "east"));

    assert!(!sandbox.processes().is_empty());
    succeeded(&sandbox.hawser(&["down"]));
    let began = Instant::now();
    while !sandbox.processes().is_empty() {
        assert!(
            began.elapsed() < PATIENCE,
            "processes are left: {:?}",
            sandbox.processes()
        );
    }
}

fn a_killed_sandbox_leaves_no_process() {
    let sandbox = Sandbox::start();
    sandbox.kubectl(
        "west",
        &["run", "sleeper", "--image=x", "--command", "--", "sleep", "1000"],
    );
    sandbox.kubectl(
        "west",
        &["wait", "--for=condition=Ready", "pod/sleeper", "--timeout=20s"],
    );
    let first = sandbox.processes().into_iter().min().expect("it runs");
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(first),
        nix::sys::signal::Signal::SIGKILL,
    )
    .expect("ours");
    let began = Instant::now();
    while !sandbox.processes().is_empty() {
        assert!(
            began.elapsed() < PATIENCE,
            "processes are left: {:?}",
            sandbox.processes()
        );
    }
    assert!(!sandbox.hawser(&["status"]).status.success());
}

fn a_stopped_sandbox_leaves_its_logs_and_no_secret() {
    let sandbox = Sandbox::start();
    assert!(sandbox.succeeds_in_pod(
        "west",
        "echo words to remember; test -s /var/run/secrets/kubernetes.io/serviceaccount/token"
    ));
    succeeded(&sandbox.hawser(&["down"]));
    let mut logged = false;
    let mut directories = vec![sandbox.dir.path().to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).expect("ours to read") {
            let path = entry.expect("an entry").path();
            let kind = std::fs::symlink_metadata(&path).expect("it is there").file_type();
            if kind.is_dir() {
                directories.push(path);
            } else if kind.is_file() {
                let text = std::fs::read_to_string(&path).unwrap_or_default();
                logged |= text.contains("words to remember");
                // How every token and every key begins.
                let secret =
                    text.contains("eyJ") || text.contains("PRIVATE KEY") || text.contains("client-key");
                assert!(!secret, "{} holds a secret", path.display());
            }
        }
    }
    assert!(logged, "what the pod printed can be read");
}
