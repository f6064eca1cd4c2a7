//! What a withdrawn right ends, over TLS with a ServiceAccount's token, as a link between clusters uses it.

use std::pin::Pin;

use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use k8s_openapi::api::rbac::v1::RoleBinding;
use kube::{Client, Config};
use tokio::task::JoinHandle;

use super::*;

/// Longer than any of this should take.
const SOON: Duration = Duration::from_secs(1);

struct Remote {
    cluster: Arc<Cluster>,
    admin: Client,
    /// Has the rights of `edit` in `default`, by a token in the Secret `token`.
    account: Client,
    server: JoinHandle<std::io::Result<()>>,
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Remote {
    async fn start() -> Self {
        let cluster = cluster();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let server = tokio::spawn(cluster.clone().serve(listener));
        let admin = cluster.client(Identity::admin());
        create::<ServiceAccount>(&admin, json!({ "metadata": { "name": "link" } })).await;
        let binding = json!({
            "metadata": { "name": "link" },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "edit" },
            "subjects": [{ "kind": "ServiceAccount", "name": "link", "namespace": "default" }],
        });
        create::<RoleBinding>(&admin, binding).await;
        let secret = json!({
            "type": "kubernetes.io/service-account-token",
            "metadata": { "name": "token", "annotations": { "kubernetes.io/service-account.name": "link" } },
        });
        let secret = create::<Secret>(&admin, secret).await;
        let data = secret.data.unwrap();
        let mut config = Config::new(url.parse().unwrap());
        let root = <rustls_pki_types::CertificateDer<'_> as rustls_pki_types::pem::PemObject>::from_pem_slice(
            &data["ca.crt"].0,
        );
        config.root_cert = Some(vec![root.unwrap().to_vec()]);
        config.auth_info.token = Some(String::from_utf8(data["token"].0.clone()).unwrap().into());
        Self {
            account: Client::try_from(config).unwrap(),
            cluster,
            admin,
            server,
        }
    }

    /// A watch that has begun.
    async fn watch(
        &self,
    ) -> Pin<Box<dyn futures::Stream<Item = kube::Result<WatchEvent<ConfigMap>>> + Send>> {
        let api: Api<ConfigMap> = Api::default_namespaced(self.account.clone());
        let mut events = api.watch(&WatchParams::default(), "0").await.unwrap().boxed();
        create::<ConfigMap>(&self.admin, json!({ "metadata": { "generateName": "m-" } })).await;
        events.next().await.unwrap().unwrap();
        events
    }

    async fn delete<K>(&self, name: &str)
    where
        K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
            + Clone
            + serde::de::DeserializeOwned
            + std::fmt::Debug,
    {
        let api: Api<K> = Api::default_namespaced(self.admin.clone());
        api.delete(name, &DeleteParams::default()).await.unwrap();
    }

    /// Whether the token is still good for anything.
    async fn list(&self) -> u16 {
        let api: Api<ConfigMap> = Api::default_namespaced(self.account.clone());
        match api.list(&ListParams::default()).await {
            Ok(_) => 200,
            Err(kube::Error::Api(status)) => status.code,
            Err(error) => panic!("{error}"),
        }
    }
}

async fn create<K>(client: &Client, object: Value) -> K
where
    K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
        + Clone
        + serde::de::DeserializeOwned
        + serde::Serialize
        + std::fmt::Debug,
{
    let api: Api<K> = Api::default_namespaced(client.clone());
    let object = serde_json::from_value(object).unwrap();
    api.create(&PostParams::default(), &object).await.unwrap()
}

async fn ends<T>(stream: impl futures::Stream<Item = T>) {
    let rest = stream.for_each(|_| std::future::ready(()));
    tokio::time::timeout(SOON, rest)
        .await
        .expect("the stream ends soon");
}

#[tokio::test]
async fn a_watch_ends_with_the_account_the_secret_or_the_permission_that_it_came_from() {
    let remote = Remote::start().await;
    assert_eq!(remote.list().await, 200);
    let events = remote.watch().await;
    remote.delete::<RoleBinding>("link").await;
    ends(events).await;
    assert_eq!(remote.list().await, 403);

    let remote = Remote::start().await;
    let events = remote.watch().await;
    remote.delete::<Secret>("token").await;
    ends(events).await;
    assert_eq!(remote.list().await, 401);

    let remote = Remote::start().await;
    let events = remote.watch().await;
    remote.delete::<ServiceAccount>("link").await;
    ends(events).await;
    assert_eq!(remote.list().await, 401);
}

#[tokio::test]
async fn a_watch_with_a_steady_flow_of_events_ends_as_well() {
    let remote = Remote::start().await;
    let events = remote.watch().await;
    let writer = tokio::spawn({
        let client = remote.admin.clone();
        async move {
            // Steady, not a flood, which would leave a busy machine no time for anything else.
            let mut pace = tokio::time::interval(Duration::from_millis(1));
            loop {
                pace.tick().await;
                create::<ConfigMap>(&client, json!({ "metadata": { "generateName": "m-" } })).await;
            }
        }
    });
    remote.delete::<ServiceAccount>("link").await;
    ends(events).await;
    writer.abort();
}

#[tokio::test]
async fn logs_and_exec_end_with_the_right_to_them() {
    let remote = Remote::start().await;
    remote
        .cluster
        .set_kubelet(Arc::new(EchoNode("127.0.0.1:1".parse().unwrap())));
    let pod =
        json!({ "metadata": { "name": "p" }, "spec": { "containers": [{ "name": "c", "image": "i" }] } });
    // Its account is made by a controller, which isn't here.
    create::<Pod>(&remote.admin, pod).await;
    let api: Api<Pod> = Api::default_namespaced(remote.account.clone());
    let parameters = kube::api::AttachParams::default().stdin(true).stderr(false);
    let process = api.exec("p", ["wait"], &parameters).await.unwrap();
    let follow = kube::api::LogParams {
        follow: true,
        ..kube::api::LogParams::default()
    };
    let mut log = Box::pin(api.log_stream("p", &follow).await.unwrap());
    let mut heard = [0; 4];
    futures::AsyncReadExt::read_exact(&mut log, &mut heard)
        .await
        .unwrap();
    remote.delete::<RoleBinding>("link").await;
    // However they end: the connection was cut.
    tokio::time::timeout(SOON, process.join())
        .await
        .expect("exec ends soon")
        .unwrap_err();
    let mut rest = Vec::new();
    let rest = futures::AsyncReadExt::read_to_end(&mut log, &mut rest);
    let _ = tokio::time::timeout(SOON, rest).await.expect("the log ends soon");
}
