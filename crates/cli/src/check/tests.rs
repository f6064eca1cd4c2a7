//! The checks against a real API server in this process, with a node that answers for the pods.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use hawser_control::values::Values;
use hawser_sandbox::api::{Cluster, ClusterOptions, Identity};
use hawser_sandbox::kubelet::{
    BoxFuture, ContainerRef, ExecOptions, ExecSession, Kubelet, KubeletError, LogOptions,
};
use hawser_tls::{Validity, create_root};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use k8s_openapi::api::rbac::v1::ClusterRole;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::apply::Applier;
use crate::meshed;

/// Answers for every pod with what its proxy would say on its admin port.
#[derive(Default)]
struct Node(Mutex<BTreeMap<String, String>>);

impl Node {
    fn metrics(&self, pod: &str, text: &str) {
        let mut all = self.0.lock().unwrap();
        all.insert(pod.to_owned(), text.to_owned());
    }
}

fn absent(pod: &str) -> KubeletError {
    KubeletError::NoSuchPod(pod.to_owned())
}

impl Kubelet for Node {
    fn logs(
        &self,
        container: ContainerRef,
        _: LogOptions,
    ) -> BoxFuture<'_, Result<tokio::sync::mpsc::Receiver<bytes::Bytes>, KubeletError>> {
        Box::pin(async move { Err(absent(&container.pod)) })
    }

    fn exec(
        &self,
        container: ContainerRef,
        _: ExecOptions,
    ) -> BoxFuture<'_, Result<ExecSession, KubeletError>> {
        Box::pin(async move { Err(absent(&container.pod)) })
    }

    fn attach(&self, container: ContainerRef) -> BoxFuture<'_, Result<ExecSession, KubeletError>> {
        Box::pin(async move { Err(absent(&container.pod)) })
    }

    fn dial(&self, _: String, pod: String, port: u16) -> BoxFuture<'_, Result<TcpStream, KubeletError>> {
        let text = self.0.lock().unwrap().get(&pod).cloned();
        Box::pin(async move {
            let text = text.ok_or_else(|| absent(&pod))?;
            let failed = |source| KubeletError::Dial { port, source };
            let listener = TcpListener::bind("127.0.0.1:0").await.map_err(failed)?;
            let address = listener.local_addr().map_err(failed)?;
            tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.unwrap();
                let _ = stream.read(&mut [0; 4096]).await;
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", text.len());
                let _ = stream.write_all(format!("{head}{text}").as_bytes()).await;
            });
            TcpStream::connect(address).await.map_err(failed)
        })
    }
}

/// A cluster, with the mesh if it has any.
struct World {
    client: Client,
    node: Arc<Node>,
}

impl World {
    fn empty() -> Self {
        let cluster = Cluster::new(ClusterOptions::default());
        let node = Arc::new(Node::default());
        cluster.set_kubelet(Arc::clone(&node) as Arc<dyn Kubelet>);
        let client = cluster.client(Identity::admin());
        Self { client, node }
    }

    async fn installed() -> Self {
        let world = Self::empty();
        let manifests = crate::install::manifests(&Values::default()).unwrap();
        let mut applier = Applier::new(world.client.clone());
        applier.apply_yaml(&manifests).await.unwrap();
        world
    }

    /// Nothing is waited for.
    fn checks(&self) -> Checks {
        Checks {
            client: self.client.clone(),
            linkerd: "linkerd".to_owned(),
            namespace: None,
            deadline: Instant::now(),
            now: SystemTime::now(),
        }
    }

    async fn pod(&self, name: &str, labels: serde_json::Value, ready: bool) {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": "default", "name": name, "labels": labels},
            "spec": {"containers": [{"name": "linkerd-proxy", "image": format!("proxy:{}", hawser_control::values::VERSION)}]},
        });
        Applier::new(self.client.clone()).apply(&pod).await.unwrap();
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), "default");
        let status = json!({"status": {"phase": "Running", "containerStatuses": [
            {"name": "linkerd-proxy", "ready": ready, "image": "", "imageID": "", "restartCount": 0}]}});
        let patched = pods
            .patch_status(name, &PatchParams::default(), &Patch::Merge(status))
            .await;
        patched.unwrap();
    }
}

async fn all(world: &World, scope: Scope) -> String {
    let mut report = Report::default();
    world
        .checks()
        .all(&mut report, Category::new("kubernetes-api"), scope)
        .await;
    report.text(Format::Table)
}

#[tokio::test]
async fn an_empty_cluster_can_have_a_mesh() {
    assert_eq!(
        all(&World::empty(), Scope::BeforeInstall).await,
        "kubernetes-api\n--------------\n\
         √ can query the Kubernetes API\n\n\
         kubernetes-version\n------------------\n\
         √ is running the minimum Kubernetes API version\n\n\
         pre-kubernetes-setup\n--------------------\n\
         √ control plane namespace does not already exist\n\
         √ can create non-namespaced resources\n\
         √ can create ServiceAccounts\n\
         √ can create Services\n\
         √ can create Deployments\n\
         √ can create ConfigMaps\n\
         √ can create Secrets\n\
         √ can read Secrets\n\n\
         Status check results are √\n"
    );
}

#[tokio::test]
async fn a_cluster_that_has_a_mesh_cannot_have_another_of_that_name() {
    let said = all(&World::installed().await, Scope::BeforeInstall).await;
    assert!(
        said.contains(
            "× control plane namespace does not already exist\n    the \"linkerd\" namespace already exists\n"
        ),
        "{said}"
    );
}

#[tokio::test]
async fn without_a_mesh_the_first_row_says_how_to_get_one_and_nothing_follows() {
    let said = all(&World::empty(), Scope::Proxies).await;
    let rest = said.split("linkerd-existence\n").nth(1).unwrap();
    assert!(rest.contains("× 'linkerd-config' config map exists\n"), "{said}");
    assert!(
        rest.contains("    try: hawser install | kubectl apply -f -\n"),
        "{said}"
    );
    assert!(rest.ends_with(
        "see https://linkerd.io/2/checks/#l5d-existence-linkerd-config for hints\n\nStatus check results are ×\n"
    ));
}

async fn configured(world: &World) -> String {
    let (checks, mut report) = (world.checks(), Report::default());
    checks.configuration(&mut report).await;
    checks.identity(&mut report).await;
    report.text(Format::Short)
}

#[tokio::test]
async fn what_install_made_is_found_and_its_certificates_hold() {
    assert_eq!(
        configured(&World::installed().await).await,
        "Status check results are √\n"
    );
}

#[tokio::test]
async fn a_missing_object_is_named() {
    let world = World::installed().await;
    let roles: Api<ClusterRole> = Api::all(world.client.clone());
    roles
        .delete("linkerd-linkerd-identity", &DeleteParams::default())
        .await
        .unwrap();
    let said = configured(&world).await;
    assert!(
        said.contains("× control plane ClusterRoles exist\n    missing:\n    * linkerd-linkerd-identity\n"),
        "{said}"
    );
}

#[tokio::test]
async fn an_issuer_that_the_bundle_does_not_trust_is_an_error() {
    let world = World::installed().await;
    let now = SystemTime::now();
    let validity = Validity {
        not_before: now - Duration::from_secs(60),
        not_after: now + Duration::from_secs(30 * 24 * 3600),
    };
    let other = create_root("root.other", validity).unwrap().certificate_pem;
    let maps: Api<ConfigMap> = Api::namespaced(world.client.clone(), "linkerd");
    let patch = Patch::Merge(json!({"data": {"ca-bundle.crt": other}}));
    let patched = maps
        .patch("linkerd-identity-trust-roots", &PatchParams::default(), &patch)
        .await;
    patched.unwrap();
    let said = configured(&world).await;
    assert!(
        said.contains("× issuer cert is issued by the trust anchor\n"),
        "{said}"
    );
    assert!(
        said.contains("‼ trust anchors are valid for at least 60 days\n"),
        "{said}"
    );
    assert!(said.contains("* CN=root.other on "), "{said}");
}

#[tokio::test]
async fn the_proxy_whose_trust_lags_behind_is_named() {
    let world = World::installed().await;
    let mut report = Report::default();
    let anchors = world.checks().identity(&mut report).await.unwrap();
    let current = anchors.fingerprints().first().unwrap().to_string();
    let foreign = "0".repeat(64);
    let labels = json!({meshed::MESHED: "linkerd"});
    for (name, used) in [("current", current.as_str()), ("lagging", foreign.as_str())] {
        world.pod(name, labels.clone(), true).await;
        let metrics = format!("identity_trust_anchors_info{{sha256=\"{used}\"}} 1\n");
        world.node.metrics(name, &metrics);
    }
    let mut report = Report::default();
    world.checks().data_plane(&mut report, Some(anchors)).await;
    let said = report.text(Format::Table);
    assert!(
        said.contains(
            "‼ data plane proxies certificate match CA\n    \
             some proxies do not use the trust anchors that are configured:\n    \
             * default/lagging: it lacks 1 of 1 and still trusts 1 that are configured no more\n"
        ),
        "{said}"
    );
    assert!(said.contains("√ data plane proxies are ready\n"), "{said}");
    assert!(said.contains("√ data plane and cli versions match\n"), "{said}");
}

#[tokio::test]
async fn unready_proxies_and_settings_without_effect_are_named() {
    let world = World::installed().await;
    let labels = json!({meshed::MESHED: "linkerd", "linkerd.io/inject": "enabled"});
    world.pod("web", labels, false).await;
    let mut report = Report::default();
    world.checks().data_plane(&mut report, None).await;
    let said = report.text(Format::Short);
    assert!(
        said.contains(
            "× data plane proxies are ready\n    their proxies are not ready:\n    * default/web\n"
        ),
        "{said}"
    );
    assert!(
        said.contains("‼ data plane pod labels are configured correctly\n"),
        "{said}"
    );
    assert!(said.contains("    * default/web: linkerd.io/inject\n"), "{said}");
}
