//! The node agent with real processes, against the API server of the same process.
//!
//! Containers need namespaces, so each test runs in some of its own. Pods share their loopback network here; pod
//! networks have their own tests.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use hawser_sandbox::api::{Cluster, ClusterOptions, Identity};
use hawser_sandbox::images::{Image, Images};
use hawser_sandbox::kubelet::{BoxFuture, ClusterAddresses, ContainerRef, ExecOptions, Kubelet, LogOptions};
use hawser_sandbox::node::{Agent, AgentConfig, PodNet, PodNetworks};
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

/// Generous: the machine may be busy with other tests.
const PATIENCE: Duration = Duration::from_secs(60);

/// All pods share the test's network.
struct SharedNetworks;

struct SharedNet;

impl PodNetworks for SharedNetworks {
    fn add_pod<'a>(&'a self, _: &'a str) -> BoxFuture<'a, io::Result<Arc<dyn PodNet>>> {
        Box::pin(async { Ok(Arc::new(SharedNet) as Arc<dyn PodNet>) })
    }

    fn remove_pod<'a>(&'a self, _: &'a str) -> BoxFuture<'a, ()> {
        Box::pin(async {})
    }
}

impl PodNet for SharedNet {
    fn ip(&self) -> Ipv4Addr {
        Ipv4Addr::LOCALHOST
    }

    fn netns(&self) -> Option<PathBuf> {
        None
    }

    fn connect(&self, to: SocketAddr) -> BoxFuture<'_, io::Result<TcpStream>> {
        Box::pin(TcpStream::connect(to))
    }
}

struct TestNode {
    client: Client,
    agent: Arc<Agent>,
    running: tokio::task::JoinHandle<()>,
    shutdown: CancellationToken,
    state: tempfile::TempDir,
}

impl TestNode {
    fn start() -> Self {
        let cluster = Cluster::new(ClusterOptions::default());
        let client = cluster.client(Identity::admin());
        let state = tempfile::tempdir().unwrap();
        let agent = Agent::new(AgentConfig {
            client: client.clone(),
            addresses: ClusterAddresses {
                name: "test".to_owned(),
                pods: "10.42.0.0/16".parse().unwrap(),
                reachable_pods: Vec::new(),
                external: None,
                services: "10.43.0.0/16".parse().unwrap(),
                node: Ipv4Addr::LOCALHOST,
                load_balancers: "172.30.1.0/24".parse().unwrap(),
                api: ([127, 0, 0, 1], 6443).into(),
                dns: [10, 43, 0, 10].into(),
                domain: "cluster.local".to_owned(),
            },
            images: Images {
                executable: env!("CARGO_BIN_EXE_hawser-container").into(),
                programs: vec!["hawser-container".to_owned()],
                declared: vec![Image {
                    repository: "pause".to_owned(),
                    entrypoint: vec!["hawser-container".to_owned(), "pause".to_owned()],
                    arguments: Vec::new(),
                }],
            },
            networks: Arc::new(SharedNetworks),
            state_dir: state.path().to_owned(),
            log_dir: state.path().join("logs"),
            port: None,
            node_name: "n1".to_owned(),
            labels: BTreeMap::new(),
            host_paths: Vec::new(),
        });
        cluster.set_kubelet(Arc::clone(&agent) as Arc<dyn Kubelet>);
        let shutdown = CancellationToken::new();
        let run = Arc::clone(&agent).run(shutdown.clone());
        let running = tokio::spawn(async move { run.await.unwrap() });
        Self {
            client,
            agent,
            running,
            shutdown,
            state,
        }
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), "default")
    }

    async fn pod(&self, name: &str, mut spec: Value) {
        spec["nodeName"] = json!("n1");
        // No controller runs here that would make a service account.
        spec["automountServiceAccountToken"] = json!(false);
        let pod = json!({"metadata": {"name": name, "labels": {"app": name}}, "spec": spec});
        self.pods()
            .create(&PostParams::default(), &serde_json::from_value(pod).unwrap())
            .await
            .unwrap();
    }

    /// Waits until the pod, or its absence, is as wished.
    async fn wait(&self, name: &str, what: &str, wished: impl Fn(Option<&Pod>) -> bool) -> Option<Pod> {
        let condition = |pod: Option<&Pod>| wished(pod);
        let waiting = kube::runtime::wait::await_condition(self.pods(), name, condition);
        match tokio::time::timeout(PATIENCE, waiting).await {
            Ok(pod) => pod.unwrap(),
            Err(_) => panic!(
                "{name} is not {what}: {:#?}",
                self.pods().get_opt(name).await.unwrap().and_then(|p| p.status)
            ),
        }
    }

    async fn phase(&self, name: &str, phase: &str) -> Pod {
        self.wait(name, phase, |pod| pod.is_some_and(|pod| phase_of(pod) == phase))
            .await
            .unwrap()
    }

    async fn ready(&self, name: &str) -> Pod {
        self.wait(name, "ready", |pod| {
            pod.is_some_and(|pod| condition(pod, "Ready"))
        })
        .await
        .unwrap()
    }

    async fn gone(&self, name: &str) {
        self.wait(name, "gone", |pod| pod.is_none()).await;
    }

    async fn logs(&self, pod: &str, container: &str, options: LogOptions) -> String {
        let mut chunks = self
            .agent
            .logs(container_ref(pod, container), options)
            .await
            .unwrap();
        let mut all = Vec::new();
        while let Some(chunk) = chunks.recv().await {
            all.extend_from_slice(&chunk);
        }
        String::from_utf8(all).unwrap()
    }

    async fn exec(&self, pod: &str, container: &str, command: &[&str]) -> (String, String, i32) {
        let command = command.iter().map(|word| (*word).to_owned()).collect();
        let options = ExecOptions {
            command,
            tty: false,
            stdin: false,
        };
        let mut session = self
            .agent
            .exec(container_ref(pod, container), options)
            .await
            .unwrap();
        let (mut out, mut err) = (String::new(), String::new());
        session.stdout.read_to_string(&mut out).await.unwrap();
        session.stderr.read_to_string(&mut err).await.unwrap();
        (out, err, session.exit.await.unwrap())
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.running.await.unwrap();
        // Memory volumes would keep the directory from being removed.
        drop(self.state);
    }
}

fn container_ref(pod: &str, container: &str) -> ContainerRef {
    ContainerRef {
        namespace: "default".to_owned(),
        pod: pod.to_owned(),
        container: container.to_owned(),
    }
}

fn phase_of(pod: &Pod) -> &str {
    pod.status
        .as_ref()
        .and_then(|status| status.phase.as_deref())
        .unwrap_or_default()
}

fn condition(pod: &Pod, kind: &str) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions
        .into_iter()
        .flatten()
        .any(|condition| condition.type_ == kind && condition.status == "True")
}

fn exit_code(pod: &Pod, container: &str) -> Option<i32> {
    let status = pod.status.as_ref()?;
    let all = status
        .init_container_statuses
        .iter()
        .chain(&status.container_statuses)
        .flatten();
    let state = all
        .into_iter()
        .find(|status| status.name == container)?
        .state
        .as_ref()?;
    state.terminated.as_ref().map(|terminated| terminated.exit_code)
}

/// Runs a test with a node that has just started.
fn with_node(body: impl AsyncFnOnce(TestNode)) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    tracing_subscriber::fmt().with_writer(io::stderr).init();
    runtime.block_on(async { body(TestNode::start()).await });
}

fn sh(script: &str) -> Value {
    json!({"name": "main", "image": "host", "command": ["sh", "-c", script]})
}

fn the_node_registers_itself_with_a_lease() {
    with_node(async |node| {
        let nodes: Api<Node> = Api::all(node.client.clone());
        let ready = |object: Option<&Node>| {
            let conditions = object.and_then(|node| node.status.as_ref()?.conditions.as_ref());
            conditions.is_some_and(|all| all.iter().any(|one| one.type_ == "Ready" && one.status == "True"))
        };
        let waiting = kube::runtime::wait::await_condition(nodes, "n1", ready);
        tokio::time::timeout(PATIENCE, waiting).await.unwrap().unwrap();
        node.stop().await;
    });
}

fn a_pod_that_does_its_work_succeeds_with_its_output_and_exit_code() {
    with_node(async |node| {
        node.pod(
            "job",
            json!({"restartPolicy": "Never", "containers": [
                {"name": "good", "image": "host", "command": ["sh", "-c", "echo hello; echo oops >&2"]}]}),
        )
        .await;
        let pod = node.phase("job", "Succeeded").await;
        assert_eq!(exit_code(&pod, "good"), Some(0));
        let output = node.logs("job", "good", LogOptions::default()).await;
        assert!(
            output.contains("hello\n") && output.contains("oops\n"),
            "{output}"
        );
        node.pod(
            "bad",
            json!({"restartPolicy": "Never", "containers": [sh("exit 7")]}),
        )
        .await;
        assert_eq!(exit_code(&node.phase("bad", "Failed").await, "main"), Some(7));
        node.stop().await;
    });
}

fn a_container_sees_its_own_world_only() {
    with_node(async |node| {
        let script = "echo pid=$$$$; cat /etc/hostname /etc/resolv.conf; ls /usr/local/bin; ls -d /work /home/* 2>&1; \
                      touch /usr/bin/x 2>&1; touch /tmp/x && echo tmp; echo var=$GREETING; grep CapEff /proc/self/status";
        let mut main = sh(script);
        main["env"] = json!([{"name": "GREETING", "value": "hi"}]);
        main["securityContext"] = json!({"capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]}});
        node.pod("world", json!({"restartPolicy": "Never", "containers": [main]}))
            .await;
        node.phase("world", "Succeeded").await;
        let seen = node.logs("world", "main", LogOptions::default()).await;
        for expected in [
            "pid=1\n",
            "world\n",
            "nameserver 10.43.0.10\nsearch default.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n",
            "hawser-container\n",
            "Read-only file system",
            "tmp\n",
            "var=hi\n",
            "CapEff:\t0000000000001000\n",
        ] {
            assert!(seen.contains(expected), "{expected:?} is missing in: {seen}");
        }
        node.stop().await;
    });
}

fn init_containers_and_sidecars_start_in_order_and_the_sidecar_leaves_last() {
    with_node(async |node| {
        let mount = json!([{"name": "shared", "mountPath": "/shared"}]);
        let container = |name: &str, script: &str| json!({"name": name, "image": "host", "command": ["sh", "-c", script], "volumeMounts": mount});
        let trap = |name: &str| {
            format!(
                "echo {name} up >> /shared/log; trap 'echo {name} down >> /shared/log; exit 0' TERM; \
                     while :; do sleep 0.05; done"
            )
        };
        let mut sidecar = container(
            "sidecar",
            &format!("sleep 0.2; touch /shared/ready; {}", trap("sidecar")),
        );
        sidecar["restartPolicy"] = json!("Always");
        sidecar["startupProbe"] = json!({"exec": {"command": ["test", "-e", "/shared/ready"]}});
        let mut main = container("main", &trap("main"));
        main["readinessProbe"] = json!({"exec": {"command": ["grep", "-q", "main up", "/shared/log"]}});
        main["lifecycle"] =
            json!({"preStop": {"exec": {"command": ["sh", "-c", "echo preStop >> /shared/log"]}}});
        // The log outlives the containers in a second pod's sight: it is read before the deletion ends.
        let witness = container(
            "witness",
            "trap 'while ! grep -q \"sidecar down\" /shared/log; do sleep 0.05; done; cat /shared/log; exit 0' TERM; while :; do sleep 0.05; done",
        );
        let mut early = witness.clone();
        early["restartPolicy"] = json!("Always");
        node.pod(
            "ordered",
            json!({
                "volumes": [{"name": "shared", "emptyDir": {"medium": "Memory"}}],
                "initContainers": [early, container("first", "echo first >> /shared/log"), sidecar],
                "containers": [main],
            }),
        )
        .await;
        let pod = node.ready("ordered").await;
        assert_eq!(exit_code(&pod, "first"), Some(0));
        let follow = LogOptions {
            follow: true,
            ..LogOptions::default()
        };
        let told = node
            .agent
            .logs(container_ref("ordered", "witness"), follow)
            .await
            .unwrap();
        node.pods()
            .delete("ordered", &DeleteParams::default())
            .await
            .unwrap();
        node.gone("ordered").await;
        let mut told = told;
        let mut log = Vec::new();
        while let Some(chunk) = told.recv().await {
            log.extend_from_slice(&chunk);
        }
        assert_eq!(
            String::from_utf8(log).unwrap(),
            "first\nsidecar up\nmain up\npreStop\nmain down\nsidecar down\n"
        );
        node.stop().await;
    });
}

fn a_container_that_crashes_is_restarted_and_then_waits() {
    with_node(async |node| {
        let mut main = sh("echo run; exit 3");
        main["terminationMessagePolicy"] = json!("FallbackToLogsOnError");
        node.pod("crash", json!({"containers": [main]})).await;
        let waits = |pod: Option<&Pod>| {
            let status = pod.and_then(|pod| pod.status.as_ref()?.container_statuses.as_ref()?.first());
            status.is_some_and(|status| {
                let waiting = status
                    .state
                    .as_ref()
                    .and_then(|state| state.waiting.as_ref()?.reason.as_deref());
                status.restart_count == 1 && waiting == Some("CrashLoopBackOff")
            })
        };
        let pod = node.wait("crash", "in a crash loop", waits).await.unwrap();
        assert_eq!(phase_of(&pod), "Running");
        let status = &pod.status.unwrap().container_statuses.unwrap()[0];
        let last = status.last_state.as_ref().unwrap().terminated.as_ref().unwrap();
        assert_eq!((last.exit_code, last.message.as_deref()), (3, Some("run\n")));
        let previous = LogOptions {
            previous: true,
            ..LogOptions::default()
        };
        assert_eq!(node.logs("crash", "main", previous).await, "run\n");
        node.pods()
            .delete("crash", &DeleteParams::default())
            .await
            .unwrap();
        node.gone("crash").await;
        node.stop().await;
    });
}

fn what_cannot_start_says_why() {
    with_node(async |node| {
        let reason = |pod: Option<&Pod>| -> Option<String> {
            let status = pod?.status.as_ref()?.container_statuses.as_ref()?.first()?;
            status.state.as_ref()?.waiting.as_ref()?.reason.clone()
        };
        node.pod(
            "unknown",
            json!({"containers": [{"name": "main", "image": "nginx"}]}),
        )
        .await;
        node.wait("unknown", "refused", |pod| {
            reason(pod).as_deref() == Some("ErrImagePull")
        })
        .await;

        let mut unset = sh("echo $A; sleep 100");
        unset["env"] = json!([{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "late", "key": "a"}}}]);
        node.pod("late", json!({"containers": [unset]})).await;
        node.wait("late", "refused", |pod| {
            reason(pod).as_deref() == Some("CreateContainerConfigError")
        })
        .await;
        let maps: Api<ConfigMap> = Api::namespaced(node.client.clone(), "default");
        let map = json!({"metadata": {"name": "late"}, "data": {"a": "1"}});
        maps.create(&PostParams::default(), &serde_json::from_value(map).unwrap())
            .await
            .unwrap();
        node.ready("late").await;

        let missing = json!({"name": "main", "image": "x", "command": ["no-such-program"]});
        node.pod(
            "missing",
            json!({"restartPolicy": "Never", "containers": [missing]}),
        )
        .await;
        let pod = node.phase("missing", "Failed").await;
        let status = &pod.status.unwrap().container_statuses.unwrap()[0];
        let ended = status.state.as_ref().unwrap().terminated.as_ref().unwrap();
        assert_eq!(
            (ended.exit_code, ended.reason.as_deref()),
            (128, Some("StartError"))
        );
        assert!(
            ended.message.as_ref().unwrap().contains("not found in $PATH"),
            "{:?}",
            ended.message
        );
        node.stop().await;
    });
}

fn a_config_map_volume_follows_its_config_map() {
    with_node(async |node| {
        let maps: Api<ConfigMap> = Api::namespaced(node.client.clone(), "default");
        let map = json!({"metadata": {"name": "conf"}, "data": {"a": "one"}});
        maps.create(&PostParams::default(), &serde_json::from_value(map).unwrap())
            .await
            .unwrap();
        let mut main = sh("cat /conf/a; while ! grep -q two /conf/a; do sleep 0.02; done; cat /conf/a /only");
        main["volumeMounts"] = json!([{"name": "conf", "mountPath": "/conf"},
                                      {"name": "conf", "mountPath": "/only", "subPath": "a"}]);
        let volumes = json!([{"name": "conf", "configMap": {"name": "conf"}}]);
        node.pod(
            "follow",
            json!({"restartPolicy": "Never", "volumes": volumes, "containers": [main]}),
        )
        .await;
        node.ready("follow").await;
        let change = json!({"data": {"a": "two"}});
        maps.patch("conf", &PatchParams::default(), &Patch::Merge(change))
            .await
            .unwrap();
        node.phase("follow", "Succeeded").await;
        // A sub-path stays what it was when the container started.
        assert_eq!(
            node.logs("follow", "main", LogOptions::default()).await,
            "onetwoone"
        );
        node.stop().await;
    });
}

fn a_program_runs_in_a_running_container_with_pipes_or_a_terminal() {
    with_node(async |node| {
        node.pod(
            "shell",
            json!({"containers": [{"name": "main", "image": "pause", "env": [{"name": "A", "value": "1"}]}]}),
        )
        .await;
        node.ready("shell").await;
        let (out, err, code) = node
            .exec(
                "shell",
                "main",
                &["sh", "-c", "echo $A $(cat /proc/1/comm); echo bad >&2; exit 5"],
            )
            .await;
        assert_eq!(
            (out.as_str(), err.as_str(), code),
            ("1 hawser-containe\n", "bad\n", 5)
        );

        let options = ExecOptions {
            command: vec!["cat".to_owned()],
            tty: false,
            stdin: true,
        };
        let mut session = node
            .agent
            .exec(container_ref("shell", "main"), options)
            .await
            .unwrap();
        session.stdin.as_mut().unwrap().write_all(b"over").await.unwrap();
        session.stdin = None;
        let mut echoed = String::new();
        session.stdout.read_to_string(&mut echoed).await.unwrap();
        assert_eq!((echoed.as_str(), session.exit.await.unwrap()), ("over", 0));

        let script = "test -t 0 && read line && stty size && exit 9";
        let command = ["sh", "-c", script].map(str::to_owned).to_vec();
        let options = ExecOptions {
            command,
            tty: true,
            stdin: true,
        };
        let mut session = node
            .agent
            .exec(container_ref("shell", "main"), options)
            .await
            .unwrap();
        session.resize.send((120, 40)).await.unwrap();
        // The terminal has taken the size over once the queue is empty again.
        while session.resize.capacity() < session.resize.max_capacity() {
            tokio::task::yield_now().await;
        }
        session.stdin.as_mut().unwrap().write_all(b"go\n").await.unwrap();
        let mut shown = String::new();
        session.stdout.read_to_string(&mut shown).await.unwrap();
        assert_eq!(session.exit.await.unwrap(), 9, "{shown}");
        assert!(shown.contains("40 120"), "{shown}");

        let missing = ExecOptions {
            command: vec!["no-such".to_owned()],
            ..ExecOptions::default()
        };
        assert!(
            node.agent
                .exec(container_ref("shell", "main"), missing)
                .await
                .is_err()
        );
        node.stop().await;
    });
}

fn a_container_that_is_not_alive_is_restarted() {
    with_node(async |node| {
        let mut main = sh("sleep 1000");
        main["livenessProbe"] =
            json!({"exec": {"command": ["false"]}, "periodSeconds": 1, "failureThreshold": 1});
        node.pod("sick", json!({"containers": [main]})).await;
        let restarted = |pod: Option<&Pod>| {
            let status = pod.and_then(|pod| pod.status.as_ref()?.container_statuses.as_ref()?.first());
            status.is_some_and(|status| status.restart_count == 1)
        };
        let pod = node.wait("sick", "restarted", restarted).await.unwrap();
        let status = &pod.status.unwrap().container_statuses.unwrap()[0];
        let last = status.last_state.as_ref().unwrap().terminated.as_ref().unwrap();
        assert_eq!((last.exit_code, last.signal), (143, Some(15)));
        node.stop().await;
    });
}

fn main() -> ExitCode {
    hawser_testing::in_namespaces(&[
        (
            "the_node_registers_itself_with_a_lease",
            the_node_registers_itself_with_a_lease,
        ),
        (
            "a_pod_that_does_its_work_succeeds_with_its_output_and_exit_code",
            a_pod_that_does_its_work_succeeds_with_its_output_and_exit_code,
        ),
        (
            "a_container_sees_its_own_world_only",
            a_container_sees_its_own_world_only,
        ),
        (
            "init_containers_and_sidecars_start_in_order_and_the_sidecar_leaves_last",
            init_containers_and_sidecars_start_in_order_and_the_sidecar_leaves_last,
        ),
        (
            "a_container_that_crashes_is_restarted_and_then_waits",
            a_container_that_crashes_is_restarted_and_then_waits,
        ),
        ("what_cannot_start_says_why", what_cannot_start_says_why),
        (
            "a_config_map_volume_follows_its_config_map",
            a_config_map_volume_follows_its_config_map,
        ),
        (
            "a_program_runs_in_a_running_container_with_pipes_or_a_terminal",
            a_program_runs_in_a_running_container_with_pipes_or_a_terminal,
        ),
        (
            "a_container_that_is_not_alive_is_restarted",
            a_container_that_is_not_alive_is_restarted,
        ),
    ])
}
