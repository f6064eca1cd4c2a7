//! Sandboxes of their own: as an ordinary user, and with nothing but a public manifest.

use std::os::unix::fs::chown;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::host::{self, HAWSER, Said};
use crate::runner::{Test, alone};
use crate::world::words;

const TOOLS: &[&str] = &["kubectl", "curl", "setpriv"];
const PUBLIC_MANIFEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../emojivoto/emojivoto.yml");
/// What systems call nobody.
const NOBODY: u32 = 65534;
const DEADLINE: Duration = Duration::from_secs(90);

pub(crate) const TESTS: &[Test] = &[
    alone(
        "an_ordinary_user_runs_a_sandbox_with_services_and_names",
        TOOLS,
        an_ordinary_user_runs_a_sandbox_with_services_and_names,
    ),
    alone(
        "the_public_emojivoto_manifest_runs_unchanged",
        &["kubectl", "curl"],
        the_public_emojivoto_manifest_runs_unchanged,
    ),
];

/// A sandbox of one cluster; ends with the value.
struct Sandbox {
    /// Binary and state, where its user can read them.
    dir: tempfile::TempDir,
    state: PathBuf,
    user: Option<u32>,
}

impl Sandbox {
    fn start(user: Option<u32>) -> Self {
        let dir = host::state_dir();
        let state = dir.path().join("state");
        std::fs::create_dir(&state).expect("a directory");
        host::mode(&state, 0o700);
        if let Some(user) = user {
            host::public_copy(dir.path());
            chown(&state, Some(user), Some(user)).expect("root gives it away");
        }
        let sandbox = Self { dir, state, user };
        let said = sandbox.hawser("up a");
        assert!(said.succeeded(), "{said:?}\n{}", sandbox.log());
        sandbox
    }

    fn hawser(&self, line: &str) -> Said {
        let mut command = match self.user {
            None => Command::new(HAWSER),
            Some(user) => {
                let mut command = Command::new("setpriv");
                command
                    .args([
                        "--reuid",
                        &user.to_string(),
                        "--regid",
                        &user.to_string(),
                        "--clear-groups",
                    ])
                    .arg(self.dir.path().join("hawser"));
                command
            }
        };
        command
            .current_dir("/")
            .arg("sandbox")
            .arg("--state-dir")
            .arg(&self.state)
            .args(words(line));
        host::run(command, "", DEADLINE)
    }

    fn kubectl(&self, line: &str) -> String {
        self.kubectl_words(&words(line))
    }

    fn kubectl_words(&self, words: &[&str]) -> String {
        let mut command = Command::new("kubectl");
        command
            .arg("--kubeconfig")
            .arg(self.state.join("kubeconfig"))
            .args(words)
            .env("HOME", &self.state);
        let said = host::run(command, "", DEADLINE);
        assert!(said.succeeded(), "kubectl {words:?}: {said:?}\n{}", self.log());
        said.out
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.state.join("sandbox.log")).unwrap_or_default()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.hawser("down");
    }
}

fn an_ordinary_user_runs_a_sandbox_with_services_and_names() {
    // Root becomes nobody; whoever is ordinary already is their own test.
    let root = nix::unistd::Uid::effective().is_root();
    let sandbox = Sandbox::start(root.then_some(NOBODY));
    let script = "mkdir /tmp/www; cd /tmp/www; exec emojivoto-web";
    let words = [
        "create",
        "deployment",
        "page",
        "--image=docker.l5d.io/buoyantio/emojivoto-web:v11",
        "--",
        "env",
        "WEB_PORT=8080",
        "EMOJISVC_HOST=localhost:1",
        "VOTINGSVC_HOST=localhost:1",
        "sh",
        "-c",
        script,
    ];
    sandbox.kubectl_words(&words);
    sandbox.kubectl("expose deployment page --port=80 --target-port=8080");
    sandbox.kubectl("rollout status deployment/page --timeout=30s");
    sandbox.kubectl("run client --image=curlimages/curl --command -- sleep infinity");
    sandbox.kubectl("wait --for=condition=Ready pod/client --timeout=30s");
    let fetch =
        "exec client -- curl -sf --noproxy * --retry 20 --retry-all-errors --retry-delay 1 --max-time 2";
    for url in ["http://page", "http://page.default.svc.cluster.local"] {
        let page = sandbox.kubectl(&format!("{fetch} {url}"));
        assert!(page.contains("<title>Emoji Vote</title>"), "{url}: {page}");
    }
    let said = sandbox.hawser("down");
    assert!(said.succeeded(), "{said:?}");
}

fn the_public_emojivoto_manifest_runs_unchanged() {
    let sandbox = Sandbox::start(None);
    sandbox.kubectl(&format!("apply -f {PUBLIC_MANIFEST}"));
    for name in ["emoji", "voting", "web", "vote-bot"] {
        sandbox.kubectl(&format!(
            "-n emojivoto rollout status deployment/{name} --timeout=60s"
        ));
    }
    host::eventually("the bot's votes are counted", Duration::from_secs(30), || {
        let board = "-n emojivoto exec deployment/vote-bot -- \
             curl -sf --noproxy * --max-time 5 http://web-svc.emojivoto/api/leaderboard";
        let text = sandbox.kubectl(board);
        if text.contains("\"votes\"") {
            return Ok(());
        }
        Err(text)
    });
    let log = sandbox.kubectl("-n emojivoto logs deployment/vote-bot");
    assert!(log.contains("Voting for :"), "{log}");
}
