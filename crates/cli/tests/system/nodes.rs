//! Nodes of Kubernetes: kubelet, kube-proxy, containerd and runc, in clusters whose control planes are Kubernetes' too.
//!
//! A node is a pid, a mount and a network namespace with a leg on its cluster's bridge, and a folder; when its first
//! process ends, the kernel ends the rest. It needs root of the machine itself, to whom control groups belong. The
//! sandbox's own nodes take no pods here: what runs, runs as Kubernetes runs it, from images.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use hawser_testing::control_plane;
use serde_json::{Value, json};

use crate::clusters::{Clusters, documents};
use crate::demo::report;
use crate::host::{self, eventually, has};
use crate::runner::{Test, alone};
use crate::world::{A_ROLLOUT, SOON, words};

pub(crate) const TESTS: &[Test] = &[alone(
    "a_vote_crosses_clusters_where_kubelet_and_containerd_run_the_mesh",
    &["kubectl"],
    a_vote_crosses_clusters_where_kubelet_and_containerd_run_the_mesh,
)
.unless(missing)];

const CLUSTERS: &[&str] = &["west", "east"];
const MANIFEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../emojivoto/emojivoto.yml");
const SCRIPT: &str = include_str!("node.sh");
/// Beside kubelet and kube-proxy, from Debian's packages containerd, runc and iproute2, and util-linux.
const TOOLS: &[&str] = &["containerd", "ctr", "runc", "ip", "unshare", "nsenter"];
/// Where Debian's package containernetworking-plugins puts them.
const CNI: &str = "/usr/lib/cni";
const GROUPS: &str = "/sys/fs/cgroup";
/// Pods of these nodes; the sandbox's own have the addresses before.
const PODS: &str = "10.42.201.0/24";
const DEADLINE: Duration = Duration::from_secs(20);

/// An archive with every image, as `cargo xtask images` writes it.
fn images() -> PathBuf {
    let named = std::env::var_os("HAWSER_IMAGES").filter(|archive| !archive.is_empty());
    let target = format!(
        "../../target/{}-unknown-linux-gnu/release/images.tar",
        std::env::consts::ARCH
    );
    let built = || Path::new(env!("CARGO_MANIFEST_DIR")).join(target);
    named.map_or_else(built, PathBuf::from)
}

fn missing() -> Option<String> {
    let programs = match control_plane() {
        Ok(programs) => programs,
        Err(why) => return Some(why),
    };
    let absent = |program: &&&str| !programs.join(program).is_file();
    if let Some(program) = ["kubelet", "kube-proxy"].iter().find(absent) {
        return Some(format!("no {program}; try: cargo xtask kubernetes build --nodes"));
    }
    if !images().is_file() {
        return Some("no archive of images; try: cargo xtask images".to_owned());
    }
    let tool = TOOLS.iter().find(|tool| !has(tool)).copied();
    let absent = tool.or_else(|| (!Path::new(CNI).join("ptp").is_file()).then_some(CNI));
    if let Some(absent) = absent {
        return Some(format!(
            "no {absent}; try: apt-get install containerd runc containernetworking-plugins iproute2"
        ));
    }
    // Whose control groups they are is seen by making one.
    let groups = Groups::new("hawser-probe");
    groups
        .err()
        .map(|error| format!("no control groups for a node: {error}; try: as root"))
}

/// One control group in every hierarchy of version 1, or the one in version 2. Removed with the value.
struct Groups {
    name: String,
}

impl Groups {
    fn new(name: &str) -> std::io::Result<Self> {
        let groups = Self {
            name: name.to_owned(),
        };
        for hierarchy in hierarchies() {
            let group = hierarchy.join(name);
            fs::create_dir_all(&group)?;
            // A new group of version 1 has no processors and no memory.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if hierarchy.join(file).is_file() {
                    fs::write(group.join(file), fs::read(hierarchy.join(file))?)?;
                }
            }
        }
        Ok(groups)
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        for hierarchy in hierarchies() {
            remove_group(&hierarchy.join(&self.name));
        }
    }
}

/// Files of a control group can't be removed, only the group, when it has no others within.
fn remove_group(group: &Path) {
    let within = fs::read_dir(group).into_iter().flatten().flatten();
    for entry in within.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove_group(&entry.path());
    }
    let _ = fs::remove_dir(group);
}

fn hierarchies() -> Vec<PathBuf> {
    let root = PathBuf::from(GROUPS);
    if root.join("cgroup.procs").is_file() {
        return vec![root];
    }
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    let mounted = |path: &PathBuf| path.join("cgroup.procs").is_file();
    entries.map(|entry| entry.path()).filter(mounted).collect()
}

/// A node that joined a cluster. Ends with the value, and leaves nothing.
struct Node {
    process: Child,
    /// Removed once no process is left in them.
    groups: Option<Groups>,
    dir: PathBuf,
}

impl Node {
    /// Starts what runs on a node, and waits until the cluster finds it ready.
    fn join(clusters: &Clusters, cluster: &str) -> Self {
        let name = format!("{cluster}-real");
        let dir = clusters.dir().join(&name);
        let groups = format!("hawser-{name}-{}", std::process::id());
        write_files(clusters, cluster, &name, &groups, &dir);
        let groups = Groups::new(&groups).expect("control groups");
        let mut unshare = Command::new("unshare");
        unshare
            .args([
                "--mount",
                "--net",
                "--pid",
                "--fork",
                "--kill-child",
                "--mount-proc",
            ])
            .args(["sh", "-c", SCRIPT])
            .env("NAME", &name)
            .env("DIR", &dir)
            .env("PROGRAMS", control_plane().expect("it is there"))
            .env("IMAGES", images())
            .stdin(Stdio::piped())
            .stderr(fs::File::create(dir.join("node.log")).expect("a file"));
        let process = unshare.spawn().expect("unshare starts");
        let mut node = Self {
            process,
            groups: Some(groups),
            dir,
        };
        node.connect(clusters, cluster);
        // The API server asks kubelets in this name, and they ask it back whether that may be.
        let caller = "--clusterrole=system:kubelet-api-admin --user=kube-apiserver-kubelet-client";
        clusters.kubectl(
            cluster,
            &format!("create clusterrolebinding kubelet-api {caller}"),
        );
        eventually(&format!("{name} is ready"), A_ROLLOUT, || {
            node.is_ready(clusters, cluster, &name)
        });
        node
    }

    /// Gives it a leg on the cluster's bridge, then lets it begin.
    fn connect(&mut self, clusters: &Clusters, cluster: &str) {
        let api_server = clusters
            .dir()
            .join(format!("run/{cluster}/control-plane/server.crt"));
        let flag = PathBuf::from(format!("--tls-cert-file={}", api_server.display()));
        let found = host::naming(&flag);
        let [cluster_pid] = found.as_slice() else {
            panic!("{} API servers of {cluster}", found.len());
        };
        let own = self.process.id();
        // Its namespace is there once it differs from ours.
        let network =
            |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).map_err(|error| error.to_string());
        eventually("the node's network namespace", DEADLINE, || {
            match network(&own.to_string())? == network("self")? {
                true => Err("it is still ours".to_owned()),
                false => Ok(()),
            }
        });
        let leg = format!("ip link add eth0 type veth peer name real0 netns {cluster_pid}");
        inside(own, &leg);
        inside(*cluster_pid, "ip link set real0 master pods0 up");
        inside(
            *cluster_pid,
            &format!("ip route add {PODS} via 10.42.200.1 dev pods0"),
        );
        let begin = self
            .process
            .stdin
            .as_mut()
            .map(|input| input.write_all(b"begin\n"));
        begin.expect("it has an input").expect("it reads");
    }

    /// What Kubernetes says of it; its request for a certificate is granted on the way.
    fn is_ready(&mut self, clusters: &Clusters, cluster: &str, name: &str) -> Result<(), String> {
        if let Ok(Some(status)) = self.process.try_wait() {
            let log = fs::read_to_string(self.dir.join("node.log")).unwrap_or_default();
            panic!("{name} ended with {status}: {log}");
        }
        let requests = clusters.get(cluster, "certificatesigningrequests")?;
        for request in requests["items"].as_array().into_iter().flatten() {
            if request["status"].get("conditions").is_none() {
                let request = request["metadata"]["name"].as_str().unwrap_or_default();
                clusters.kubectl(cluster, &format!("certificate approve {request}"));
            }
        }
        let node = clusters.get(cluster, &format!("node {name}"))?;
        let conditions = node["status"]["conditions"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let ready = |condition: &&Value| condition["type"] == "Ready";
        match conditions.iter().find(ready) {
            Some(condition) if condition["status"] == "True" && self.dir.join(SERVING).exists() => Ok(()),
            condition => Err(format!("{condition:?}; logs are in {}", self.dir.display())),
        }
    }
}

/// The certificate that the API server demands of a kubelet.
const SERVING: &str = "pki/kubelet-server-current.pem";

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if let Some(groups) = self.groups.take() {
            // The kernel is still ending what was in the namespace.
            let name = groups.name.clone();
            let left = || {
                remove_all(&name);
                let left = hierarchies()
                    .into_iter()
                    .find(|hierarchy| hierarchy.join(&name).exists());
                left.map_or(Ok(()), |hierarchy| Err(hierarchy.display().to_string()))
            };
            if !std::thread::panicking() {
                eventually("its control groups go", DEADLINE, left);
            }
        }
    }
}

fn remove_all(name: &str) {
    for hierarchy in hierarchies() {
        remove_group(&hierarchy.join(name));
    }
}

/// Runs a command in a process's network.
fn inside(pid: u32, line: &str) {
    let mut command = Command::new("nsenter");
    command
        .args(["--net", "--target", &pid.to_string(), "--"])
        .args(words(line));
    let said = host::run(command, "", DEADLINE);
    assert!(said.succeeded(), "{line}: {said:?}");
}

fn write_files(clusters: &Clusters, cluster: &str, name: &str, groups: &str, dir: &Path) {
    fs::create_dir(dir).expect("a folder");
    let file = |name: &str| dir.join(name).display().to_string();
    let view = "config view --raw --minify -o json";
    let mut config: Value = serde_json::from_str(&clusters.kubectl(cluster, view)).expect("JSON");
    config["clusters"][0]["cluster"]["server"] = clusters.server(cluster).into();
    let authority = config["clusters"][0]["cluster"]["certificate-authority-data"].clone();
    let authority = authority.as_str().expect("an authority");
    // What they may do is what Kubernetes lets a node do, not what the administrator may who lets them act.
    let mut acting = |user: &str, group: &str| {
        let may = &mut config["users"][0]["user"];
        may["as"] = user.into();
        may["as-groups"] = json!([group, "system:authenticated"]);
        config.to_string()
    };
    let kubelet = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {"anonymous": {"enabled": false}, "x509": {"clientCAFile": file("ca.crt")}},
        "authorization": {"mode": "Webhook"},
        "serverTLSBootstrap": true,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{groups}"),
        "enforceNodeAllocatable": ["none"],
        "failCgroupV1": false,
        "failSwapOn": false,
        "localStorageCapacityIsolation": false,
        "containerRuntimeEndpoint": format!("unix://{}", file("containerd.sock")),
        "clusterDNS": ["10.43.0.10"],
        "clusterDomain": "cluster.local",
        "podLogsDir": file("logs"),
    });
    let proxy = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": file("kube-proxy.kubeconfig")},
        "mode": "nftables",
        "clusterCIDR": "10.42.0.0/16",
        "hostnameOverride": name,
        "conntrack": {"maxPerCore": 0},
    });
    // Not every machine lets root lower the score that says whom to kill when memory runs out.
    let containerd = format!(
        r#"version = 2
root = "{root}"
state = "{state}"
[grpc]
address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "registry.k8s.io/pause:3.2"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{CNI}"
conf_dir = "{cni}"
"#,
        root = file("containerd"),
        state = file("state"),
        socket = file("containerd.sock"),
        cni = file("cni"),
    );
    let addresses = json!({
        "type": "host-local", "dataDir": file("addresses"),
        "ranges": [[{"subnet": PODS}]], "routes": [{"dst": "0.0.0.0/0"}],
    });
    let network = json!({
        "cniVersion": "0.4.0", "name": "pods",
        "plugins": [{"type": "ptp", "ipMasq": false, "ipam": addresses}],
    });
    fs::create_dir(dir.join("cni")).expect("a folder");
    let files = [
        ("kubelet.yaml", kubelet.to_string()),
        (
            "kubelet.kubeconfig",
            acting(&format!("system:node:{name}"), "system:nodes"),
        ),
        ("kube-proxy.yaml", proxy.to_string()),
        (
            "kube-proxy.kubeconfig",
            acting("system:kube-proxy", "system:authenticated"),
        ),
        ("containerd.toml", containerd),
        ("cni/10-pods.conflist", network.to_string()),
        ("ca.crt", decoded(authority)),
    ];
    for (name, text) in files {
        fs::write(dir.join(name), text).expect("written");
    }
}

fn decoded(text: &str) -> String {
    let mut base64 = Command::new("base64");
    base64.arg("--decode");
    host::run(base64, text, DEADLINE).out
}

/// The public manifest, with one image for all of its programs.
fn from_our_image() -> String {
    let manifest = fs::read_to_string(MANIFEST).expect("the public manifest");
    let ours = format!("cr.hawser.dev/hawser/emojivoto:v{}", env!("CARGO_PKG_VERSION"));
    let mut objects: Vec<Value> = manifest
        .split("---\n")
        .filter(|text| !text.trim().is_empty())
        .map(|text| serde_saphyr::from_str(text).expect("YAML"))
        .collect();
    let containers = objects
        .iter_mut()
        .filter_map(|object| {
            object
                .pointer_mut("/spec/template/spec/containers")?
                .as_array_mut()
        })
        .flatten();
    for container in containers {
        let image = std::mem::replace(&mut container["image"], ours.clone().into());
        let image = image.as_str().expect("a name");
        let program = image.rsplit('/').next().and_then(|name| name.split(':').next());
        // Vote-bot is in web's image, and says what it starts.
        if container.get("command").is_none() {
            container["command"] = json!([program]);
        }
    }
    documents(&objects)
}

fn a_vote_crosses_clusters_where_kubelet_and_containerd_run_the_mesh() {
    let programs = control_plane().expect("it is there");
    let clusters = Clusters::start(
        CLUSTERS,
        &format!("--api kubernetes --kubernetes {}", programs.display()),
    );
    let _nodes = CLUSTERS
        .iter()
        .map(|cluster| Node::join(&clusters, cluster))
        .collect::<Vec<_>>();
    let mesh = clusters.hawser("install");
    let emojivoto = clusters.try_hawser("inject -", &from_our_image()).out;
    clusters.everywhere(|clusters, cluster| {
        clusters.kubectl(cluster, &format!("cordon {cluster}-node"));
        clusters.apply(cluster, &mesh);
        clusters.rolled_out(cluster, "linkerd");
        let extension = clusters.hawser(&format!("mc install --context {cluster}"));
        clusters.apply(cluster, &extension);
        clusters.apply(cluster, &emojivoto);
        clusters.rolled_out(cluster, "linkerd-multicluster");
        clusters.rolled_out(cluster, "emojivoto");
    });
    clusters.kubectl(
        "east",
        "-n emojivoto label service web-svc mirror.linkerd.io/exported=true",
    );
    clusters.apply(
        "west",
        &clusters.hawser("mc link --context east --cluster-name east"),
    );
    eventually("the mirror", SOON, || {
        clusters.get("west", "-n emojivoto service web-svc-east")
    });
    clusters.kubectl(
        "west",
        "-n emojivoto set env deployment/vote-bot WEB_HOST=web-svc-east:80",
    );
    clusters.rolled_out("west", "emojivoto");

    for cluster in CLUSTERS {
        let pods = clusters.get(cluster, "pods --all-namespaces").expect("pods");
        let pods = pods["items"].as_array().expect("a list");
        let elsewhere = |pod: &&Value| pod["spec"]["nodeName"] != format!("{cluster}-real");
        assert_eq!(pods.iter().find(elsewhere), None, "every pod is Kubernetes' own");
        report(&format!("{cluster}: kubelet runs {} pods", pods.len()));
    }
    eventually("votes are counted through the gateway", SOON, || {
        let said = clusters.kubectl(
            "west",
            "-n emojivoto logs deployment/vote-bot -c vote-bot --tail=1",
        );
        match said.contains("Voting for") && !said.contains("Error") {
            true => Ok(()),
            false => Err(said),
        }
    });
    let edges = eventually("the edge from vote-bot to the gateway", SOON, || {
        let edges = clusters.hawser("viz edges deploy -n emojivoto --context west");
        let mut lines = edges.lines().map(words);
        let edge = lines.find(|line| line.starts_with(&["vote-bot", "linkerd-gateway"]));
        edge.map(|line| line.join(" ")).ok_or_else(|| edges.clone())
    });
    assert_eq!(
        edges,
        "vote-bot linkerd-gateway emojivoto linkerd-multicluster east √"
    );
    for cluster in CLUSTERS {
        let checked = clusters.hawser(&format!("check --context {cluster} --wait 20s"));
        assert!(!checked.contains('×'), "{checked}");
    }
}
