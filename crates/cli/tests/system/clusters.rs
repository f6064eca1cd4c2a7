//! Sandboxes of a test's own, of as many clusters as it names, with kubectl and `hawser` in them.
//!
//! For claims that need another network than the shared world has. Knows no mesh.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::host::{self, HAWSER, Said};
use crate::world::words;

/// Of one command. Several clusters start at once here, which takes a busy machine its time.
const DEADLINE: Duration = Duration::from_secs(130);

/// The sandbox; ends with the value.
pub(crate) struct Clusters {
    dir: tempfile::TempDir,
    names: &'static [&'static str],
}

impl Clusters {
    /// Starts these clusters, with these flags of `sandbox up`.
    pub(crate) fn start(names: &'static [&'static str], flags: &str) -> Self {
        let clusters = Self {
            dir: host::state_dir(),
            names,
        };
        clusters.hawser(&format!("sandbox up {} {flags}", names.join(" ")));
        clusters
    }

    pub(crate) fn dir(&self) -> &std::path::Path {
        self.dir.path()
    }

    pub(crate) fn hawser(&self, line: &str) -> String {
        let said = self.try_hawser(line, "");
        assert!(said.succeeded(), "hawser {line}: {said:?}");
        said.out
    }

    pub(crate) fn try_hawser(&self, line: &str, input: &str) -> Said {
        let mut command = Command::new(HAWSER);
        command
            .args(words(line))
            .env("HAWSER_SANDBOX_DIR", self.dir.path())
            .env("KUBECONFIG", self.kubeconfig());
        host::run(command, input, DEADLINE)
    }

    fn kubeconfig(&self) -> PathBuf {
        self.dir.path().join("kubeconfig")
    }

    pub(crate) fn try_kubectl(&self, cluster: &str, words: &[&str], input: &str) -> Said {
        let mut command = Command::new("kubectl");
        command
            .arg("--kubeconfig")
            .arg(self.kubeconfig())
            .args(["--context", cluster])
            .args(words)
            .env("HOME", self.dir.path());
        host::run(command, input, DEADLINE)
    }

    pub(crate) fn kubectl(&self, cluster: &str, line: &str) -> String {
        let said = self.try_kubectl(cluster, &words(line), "");
        assert!(said.succeeded(), "kubectl --context {cluster} {line}: {said:?}");
        said.out
    }

    /// An object, or an error if it can't be had.
    pub(crate) fn get(&self, cluster: &str, line: &str) -> Result<Value, String> {
        let mut all = vec!["get", "-o", "json"];
        all.extend(words(line));
        self.try_kubectl(cluster, &all, "").json()
    }

    pub(crate) fn apply(&self, cluster: &str, manifest: &str) {
        let said = self.try_kubectl(cluster, &["apply", "-f", "-"], manifest);
        assert!(said.succeeded(), "applying to {cluster}: {said:?}\n{manifest}");
    }

    pub(crate) fn rolled_out(&self, cluster: &str, namespace: &str) {
        let listed = self.kubectl(cluster, &format!("-n {namespace} get deployments -o name"));
        for deployment in listed.lines() {
            let line = format!("-n {namespace} rollout status {deployment} --timeout=120s");
            let said = self.try_kubectl(cluster, &words(&line), "");
            assert!(
                said.succeeded(),
                "{cluster}: {said:?}\n{}",
                self.dump(cluster, namespace)
            );
        }
    }

    /// State for whoever reads a failure.
    pub(crate) fn dump(&self, cluster: &str, namespace: &str) -> String {
        let looks = [
            "get pods -A -o wide".to_owned(),
            format!("-n {namespace} get events --sort-by=.lastTimestamp"),
            format!("-n {namespace} logs --selector=app --all-containers --prefix --tail=12"),
            "-n linkerd logs deployment/linkerd-destination --all-containers --prefix --tail=12".to_owned(),
        ];
        let look = |line: &String| {
            let said = self.try_kubectl(cluster, &words(line), "");
            format!("--- {cluster}: {line}\n{}{}\n", said.out, said.err)
        };
        looks.iter().map(look).collect()
    }

    /// Where pods of other clusters reach an API server.
    pub(crate) fn server(&self, cluster: &str) -> String {
        let status: Value = serde_json::from_str(&self.hawser("sandbox status -o json")).expect("JSON");
        let clusters = status["clusters"].as_array().cloned().unwrap_or_default();
        let found = clusters.iter().find(|entry| entry["name"] == cluster);
        let server = found.and_then(|entry| entry["internalServer"].as_str());
        server.expect("the cluster runs").to_owned()
    }

    pub(crate) fn everywhere(&self, work: impl Fn(&Self, &str) + Sync) {
        std::thread::scope(|scope| {
            for cluster in self.names {
                let work = &work;
                scope.spawn(move || work(self, cluster));
            }
        });
    }
}

impl Drop for Clusters {
    fn drop(&mut self) {
        let mut command = Command::new(HAWSER);
        command
            .args(["sandbox", "down", "--state-dir"])
            .arg(self.dir.path());
        host::run(command, "", DEADLINE);
    }
}

/// JSON is YAML.
pub(crate) fn documents(objects: &[Value]) -> String {
    let texts: Vec<String> = objects.iter().map(Value::to_string).collect();
    texts.join("\n---\n")
}
