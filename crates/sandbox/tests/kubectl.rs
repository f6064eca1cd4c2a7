//! Real kubectl against a real API server, over TLS on a loopback port.
//!
//! What kubectl asks and how it reads the answers is the best description of the API that there is.

use std::net::Ipv4Addr;
use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use hawser_sandbox::api::{Cluster, ClusterOptions};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

struct Kubectl {
    _cluster: Arc<Cluster>,
    home: tempfile::TempDir,
    server: tokio::task::JoinHandle<std::io::Result<()>>,
}

impl Drop for Kubectl {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Kubectl {
    async fn start() -> Self {
        let cluster = Cluster::new(ClusterOptions {
            services: Some("10.43.0.0/16".parse().expect("a network")),
            ..ClusterOptions::default()
        });
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .expect("a free port");
        let url = format!("https://{}", listener.local_addr().expect("it is bound"));
        let home = tempfile::tempdir().expect("a directory");
        std::fs::write(home.path().join("config"), cluster.kubeconfig(&url)).expect("a writable directory");
        let server = tokio::spawn(cluster.clone().serve(listener));
        Self {
            _cluster: cluster,
            home,
            server,
        }
    }

    async fn try_run(&self, line: &str, input: &str) -> (bool, String, String) {
        let mut child = Command::new("kubectl")
            .args(line.split_whitespace())
            .env("KUBECONFIG", self.home.path().join("config"))
            .env("HOME", self.home.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("kubectl starts");
        let mut stdin = child.stdin.take().expect("stdin is piped");
        stdin.write_all(input.as_bytes()).await.expect("kubectl reads");
        drop(stdin);
        let output = tokio::time::timeout(Duration::from_secs(60), child.wait_with_output())
            .await
            .expect("kubectl ends")
            .expect("kubectl ran");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (
            output.status.success(),
            text(&output.stdout),
            text(&output.stderr),
        )
    }

    /// Runs a command that must succeed and gives its output.
    async fn run(&self, line: &str, input: &str) -> String {
        let (success, out, err) = self.try_run(line, input).await;
        assert!(success, "kubectl {line}\n{out}{err}");
        out
    }
}

const MANIFEST: &str = "
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
spec:
  replicas: 2
  selector: { matchLabels: { app: web } }
  template:
    metadata: { labels: { app: web } }
    spec:
      containers:
      - { name: c, image: nginx, ports: [{ containerPort: 80 }] }
---
apiVersion: v1
kind: Service
metadata:
  name: web
spec:
  selector: { app: web }
  ports: [{ port: 80 }]
";

async fn every_step() {
    let kubectl = Kubectl::start().await;
    let steps: &[(&str, &str, &[&str])] = &[
        ("version", "", &["Server Version: v1.33"]),
        (
            "get namespaces",
            "",
            &["NAME", "STATUS", "AGE", "kube-system", "Active"],
        ),
        (
            "api-resources",
            "",
            &["deployments", "deploy", "apps/v1", "Deployment"],
        ),
        (
            "apply -f -",
            MANIFEST,
            &["deployment.apps/web created", "service/web created"],
        ),
        (
            "apply -f -",
            MANIFEST,
            &["deployment.apps/web unchanged", "service/web unchanged"],
        ),
        ("get deployments", "", &["READY", "UP-TO-DATE", "0/2"]),
        ("get service web", "", &["ClusterIP", "10.43.", "80/TCP"]),
        (
            "get deploy web -o jsonpath={.spec.strategy.type}",
            "",
            &["RollingUpdate"],
        ),
        (
            "apply -f -",
            "{apiVersion: v1, kind: ConfigMap, metadata: {name: m}, data: {a: b}}",
            &["configmap/m created"],
        ),
        (
            "apply --server-side -f -",
            "{apiVersion: v1, kind: ConfigMap, metadata: {name: ssa}, data: {a: b}}",
            &["configmap/ssa serverside-applied"],
        ),
        (
            "create configmap lit --from-literal=x=y",
            "",
            &["configmap/lit created"],
        ),
        (
            "create secret generic s --from-literal=x=y",
            "",
            &["secret/s created"],
        ),
        (
            "create deployment d --image=nginx",
            "",
            &["deployment.apps/d created"],
        ),
        ("create serviceaccount sa", "", &["serviceaccount/sa created"]),
        ("create namespace other", "", &["namespace/other created"]),
        (
            "create role r --verb=get --resource=pods",
            "",
            &["role.rbac.authorization.k8s.io/r created"],
        ),
        (
            "create rolebinding rb --role=r --serviceaccount=default:sa",
            "",
            &["created"],
        ),
        ("create token sa", "", &["eyJ"]),
        ("auth can-i create pods", "", &["yes"]),
        ("auth whoami", "", &["kubernetes-admin"]),
        ("label configmap m tier=front", "", &["configmap/m labeled"]),
        ("annotate configmap m note=hello", "", &["configmap/m annotated"]),
        ("get configmaps -l tier=front", "", &["m ", "DATA"]),
        (
            "patch configmap m -p {\"data\":{\"a\":\"c\"}}",
            "",
            &["configmap/m patched"],
        ),
        ("get configmap m -o jsonpath={.data.a}", "", &["c"]),
        (
            "scale deployment web --replicas=3",
            "",
            &["deployment.apps/web scaled"],
        ),
        ("get deployment web -o jsonpath={.spec.replicas}", "", &["3"]),
        (
            "set image deployment/web c=nginx:2",
            "",
            &["deployment.apps/web image updated"],
        ),
        ("run p --image=nginx", "", &["pod/p created"]),
        ("get pods", "", &["RESTARTS", "0/1", "Pending"]),
        (
            "describe pod p",
            "",
            &["Service Account:  default", "kube-api-access-"],
        ),
        (
            "describe deployment web",
            "",
            &["RollingUpdateStrategy:  25% max unavailable"],
        ),
        ("explain deployment.spec.replicas", "", &["replicas", "integer"]),
        ("get --raw /readyz", "", &["ok"]),
        ("delete pod p", "", &["pod \"p\" deleted"]),
        ("wait --for=delete pod/p --timeout=5s", "", &[]),
        ("delete configmap m ssa lit", "", &["configmap \"m\" deleted"]),
        ("get events", "", &[]),
    ];
    let mut faults = Vec::new();
    for (line, input, expected) in steps {
        let (success, out, err) = kubectl.try_run(line, input).await;
        let missing: Vec<&&str> = expected.iter().filter(|part| !out.contains(**part)).collect();
        if !success || !missing.is_empty() {
            faults.push(format!("kubectl {line}\n  lacks {missing:?}\n{out}{err}"));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));

    let (success, _, err) = kubectl
        .try_run("create configmap m --from-literal=a=b -n nowhere", "")
        .await;
    assert!(!success);
    assert!(err.contains("namespaces \"nowhere\" not found"), "{err}");
    kubectl.run("delete namespace other --wait=false", "").await;
}

fn kubectl_works_against_the_api_server() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(every_step());
}

fn main() -> ExitCode {
    let claim = "kubectl_works_against_the_api_server";
    hawser_testing::with_program("kubectl", &[(claim, kubectl_works_against_the_api_server)])
}
