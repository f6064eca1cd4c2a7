//! Clusters written down as text, for tests.

use std::sync::Arc;
use std::time::Duration;

use hawser_sandbox::api::{Cluster, ClusterOptions, Identity};
use kube::Client;
use kube::core::DynamicObject;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::mesh::{Mesh, MeshArgs};
use crate::view::objects::{self, Key};
use crate::view::routes::{GATEWAY_GROUP, POLICY_GROUP, Route, RouteId, RouteKind};
use crate::view::watch::{Feed, Watches};
use crate::view::{Change, View};

/// A mesh with default settings.
pub(crate) fn mesh() -> Mesh {
    #[derive(clap::Parser)]
    struct Defaults {
        #[command(flatten)]
        mesh: MeshArgs,
    }
    let defaults = <Defaults as clap::Parser>::parse_from(["test"]);
    Mesh::try_from(defaults.mesh).expect("the defaults are valid")
}

pub(crate) fn documents(yaml: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(yaml).expect("the test's objects are YAML")
}

/// A view of these objects, without a cluster.
pub(crate) fn view(yaml: &str) -> Arc<View> {
    let view = View::default();
    for document in documents(yaml) {
        view.apply(change(document));
    }
    Arc::new(view)
}

/// The same, with other clusters: name, trust domain, objects.
pub(crate) fn view_with_clusters(yaml: &str, clusters: &[(&str, &str, &str)]) -> Arc<View> {
    let view = view(yaml);
    for (name, trust_domain, yaml) in clusters {
        let trust_domain = trust_domain.parse().expect("the test's trust domain is valid");
        view.apply(Change::Cluster((*name).to_owned(), Some(trust_domain)));
        for document in documents(yaml) {
            view.apply(Change::Remote((*name).to_owned(), Box::new(change(document))));
        }
    }
    view
}

/// The change that brings an object.
pub(crate) fn change(document: Value) -> Change {
    fn typed<T: DeserializeOwned>(document: &Value) -> T {
        serde_json::from_value(document.clone()).expect("the test's object has the right form")
    }
    let kind = document["kind"].as_str().unwrap_or_default().to_owned();
    let text = |field: &str| document["metadata"][field].as_str().unwrap_or_default();
    let key = Key::new(text("namespace"), text("name"));
    let dynamic = || typed::<DynamicObject>(&document);
    match kind.as_str() {
        "Service" => Change::Service(key, Some(objects::Service::parse(&typed(&document)))),
        "Pod" => Change::Pod(key, Some(objects::Pod::parse(&typed(&document)))),
        "EndpointSlice" => Change::Slice(key, Some(objects::Slice::of_slice(&typed(&document)))),
        "Endpoints" => Change::Endpoints(key, Some(objects::Slice::of_endpoints(&typed(&document)))),
        "TrafficSplit" => Change::Split(key, Some(objects::Split::parse(&dynamic()))),
        "Server" => Change::Server(key, Some(objects::Server::parse(&dynamic()))),
        "ServerAuthorization" => {
            Change::ServerAuthorization(key, Some(objects::ServerAuthorization::parse(&dynamic())))
        }
        "AuthorizationPolicy" => {
            Change::AuthorizationPolicy(key, objects::AuthorizationPolicy::parse(&dynamic()))
        }
        "MeshTLSAuthentication" => Change::MeshTls(key, objects::spec(&dynamic())),
        "NetworkAuthentication" => Change::Network(key, objects::spec(&dynamic())),
        "HTTPRoute" | "GRPCRoute" => {
            let route_kind = if kind == "HTTPRoute" {
                RouteKind::Http
            } else {
                RouteKind::Grpc
            };
            let api_version = document["apiVersion"].as_str().unwrap_or_default();
            let group = if api_version.starts_with(POLICY_GROUP) {
                POLICY_GROUP
            } else {
                GATEWAY_GROUP
            };
            let id = RouteId {
                kind: route_kind,
                group,
                key,
            };
            Change::Route(id, Route::parse(route_kind, group, &dynamic()))
        }
        other => panic!("{other} is not watched"),
    }
}

/// A cluster in this process with these objects, watched by a view.
pub(crate) struct Watched {
    pub(crate) client: Client,
    pub(crate) view: Arc<View>,
    pub(crate) drain: CancellationToken,
    _watches: Watches,
}

impl Watched {
    pub(crate) async fn start(feeds: &[Feed], yaml: &str) -> Self {
        let client = Cluster::new(ClusterOptions::default()).client(Identity::admin());
        for document in documents(yaml) {
            create(&client, document).await;
        }
        let view = Arc::new(View::default());
        let mut watches = Watches::start(&view, &client, feeds);
        tokio::time::timeout(Duration::from_secs(10), watches.listed())
            .await
            .expect("watches list within seconds");
        Self {
            client,
            view,
            drain: CancellationToken::new(),
            _watches: watches,
        }
    }

    pub(crate) async fn create(&self, yaml: &str) {
        for document in documents(yaml) {
            create(&self.client, document).await;
        }
    }

    /// Merge-patches one object.
    pub(crate) async fn patch(&self, path: &str, patch: Value) {
        request(
            &self.client,
            "PATCH",
            path,
            "application/merge-patch+json",
            &patch,
        )
        .await;
    }

    pub(crate) async fn delete(&self, path: &str) {
        request(&self.client, "DELETE", path, "application/json", &json!({})).await;
    }
}

/// Creates an object; its status, if it has one, is written as its own request, as controllers do.
async fn create(client: &Client, document: Value) {
    let api_version = document["apiVersion"].as_str().unwrap_or_default();
    let root = if api_version.contains('/') {
        format!("/apis/{api_version}")
    } else {
        format!("/api/{api_version}")
    };
    let kind = document["kind"].as_str().unwrap_or_default().to_lowercase();
    let plural = match kind.as_str() {
        "endpoints" => kind,
        "authorizationpolicy" => "authorizationpolicies".into(),
        kind => format!("{kind}s"),
    };
    let collection = match document["metadata"]["namespace"].as_str() {
        Some(namespace) => format!("{root}/namespaces/{namespace}/{plural}"),
        None => format!("{root}/{plural}"),
    };
    request(client, "POST", &collection, "application/json", &document).await;
    if document["status"].is_object() {
        let path = format!(
            "{collection}/{}/status",
            document["metadata"]["name"].as_str().unwrap_or_default()
        );
        let status = json!({"status": document["status"]});
        request(client, "PATCH", &path, "application/merge-patch+json", &status).await;
    }
}

async fn request(client: &Client, method: &str, path: &str, content_type: &str, body: &Value) {
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", content_type)
        .body(body.to_string().into_bytes())
        .expect("the test's request is valid");
    let answered: Result<Value, _> = client.request(request).await;
    answered.unwrap_or_else(|error| panic!("{method} {path}: {error}"));
}
