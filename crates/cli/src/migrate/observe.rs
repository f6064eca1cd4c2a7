//! What there is of Linkerd in a cluster. Reads objects and decides nothing; [`super::plan`] does.
//!
//! Everything is a list of plain objects by kind, so that the plan can be tried on any objects. Of Secrets only the names
//! are read, and of a mesh's issuer nothing.

use std::collections::{BTreeMap, BTreeSet};

use kube::api::{ApiResource, DynamicObject, ListParams};
use kube::core::GroupVersionKind;
use kube::{Api, Client};
use serde_json::Value;

use crate::kube::{is_missing, problem};
use crate::problem::Problem;

/// Objects by kind; a kind of a group is written `Kind.group`.
pub(super) type Objects = BTreeMap<&'static str, Vec<Value>>;

/// A kind that matters, and which objects of it do.
struct Kind {
    name: &'static str,
    group: &'static str,
    versions: &'static [&'static str],
    kind: &'static str,
    labels: &'static str,
}

const fn kind(
    name: &'static str,
    group: &'static str,
    versions: &'static [&'static str],
    kind: &'static str,
) -> Kind {
    Kind {
        name,
        group,
        versions,
        kind,
        labels: "",
    }
}

impl Kind {
    const fn labelled(self, labels: &'static str) -> Self {
        Self { labels, ..self }
    }
}

const POLICY: &str = "policy.linkerd.io";
const GATEWAY: &str = "gateway.networking.k8s.io";
const WEBHOOKS: &str = "admissionregistration.k8s.io";

/// Later versions first; the first that the cluster serves is read.
const KINDS: &[Kind] = &[
    kind("Namespace", "", &["v1"], "Namespace"),
    kind("Pod", "", &["v1"], "Pod").labelled("linkerd.io/control-plane-ns"),
    kind("Deployment", "apps", &["v1"], "Deployment"),
    kind("DaemonSet", "apps", &["v1"], "DaemonSet"),
    kind("CronJob", "batch", &["v1"], "CronJob").labelled("linkerd.io/control-plane-component"),
    kind("Exported", "", &["v1"], "Service").labelled("mirror.linkerd.io/exported"),
    kind("Federated", "", &["v1"], "Service").labelled("mirror.linkerd.io/federated"),
    kind("Mirror", "", &["v1"], "Service").labelled("mirror.linkerd.io/mirrored-service=true"),
    kind(
        "ValidatingWebhook",
        WEBHOOKS,
        &["v1"],
        "ValidatingWebhookConfiguration",
    )
    .labelled("linkerd.io/control-plane-ns"),
    kind(
        "Link",
        "multicluster.linkerd.io",
        &["v1alpha3", "v1alpha2", "v1alpha1"],
        "Link",
    ),
    kind("Server", POLICY, &["v1beta3", "v1beta2", "v1beta1"], "Server"),
    kind("ServerAuthorization", POLICY, &["v1beta1"], "ServerAuthorization"),
    kind(
        "AuthorizationPolicy",
        POLICY,
        &["v1alpha1"],
        "AuthorizationPolicy",
    ),
    kind(
        "MeshTLSAuthentication",
        POLICY,
        &["v1alpha1"],
        "MeshTLSAuthentication",
    ),
    kind(
        "NetworkAuthentication",
        POLICY,
        &["v1alpha1"],
        "NetworkAuthentication",
    ),
    kind(
        "HTTPLocalRateLimitPolicy",
        POLICY,
        &["v1alpha1"],
        "HTTPLocalRateLimitPolicy",
    ),
    kind("EgressNetwork", POLICY, &["v1alpha1"], "EgressNetwork"),
    kind(
        "ExternalWorkload",
        "workload.linkerd.io",
        &["v1beta1", "v1alpha1"],
        "ExternalWorkload",
    ),
    kind(
        "HTTPRoute.policy.linkerd.io",
        POLICY,
        &["v1beta3", "v1beta2", "v1beta1", "v1alpha1"],
        "HTTPRoute",
    ),
    kind("HTTPRoute", GATEWAY, &["v1", "v1beta1"], "HTTPRoute"),
    kind("GRPCRoute", GATEWAY, &["v1", "v1alpha2"], "GRPCRoute"),
    kind("TLSRoute", GATEWAY, &["v1", "v1alpha3", "v1alpha2"], "TLSRoute"),
    kind("TCPRoute", GATEWAY, &["v1alpha2"], "TCPRoute"),
    kind("ServiceProfile", "linkerd.io", &["v1alpha2"], "ServiceProfile"),
    kind(
        "TrafficSplit",
        "split.smi-spec.io",
        &["v1alpha2", "v1alpha1"],
        "TrafficSplit",
    ),
];

/// Looks at everything. A kind that the cluster doesn't know has no objects.
pub(super) async fn observe(client: &Client, linkerd: &str) -> Result<Objects, Problem> {
    let mut objects = Objects::new();
    for kind in KINDS {
        objects.insert(kind.name, list(client, kind).await?);
    }
    for (name, object) in [
        ("linkerd-config", "linkerd-config"),
        ("linkerd-identity-trust-roots", "linkerd-identity-trust-roots"),
    ] {
        let maps: Api<DynamicObject> =
            Api::namespaced_with(client.clone(), linkerd, &resource("", "v1", "ConfigMap"));
        let found = maps
            .get_opt(object)
            .await
            .map_err(|error| problem(format!("cannot read ConfigMap {linkerd}/{object}"), error))?;
        objects.insert(name, found.iter().map(plain).collect());
    }
    objects.insert("Secret", secrets(client, linkerd).await?);
    Ok(objects)
}

fn resource(group: &str, version: &str, kind: &str) -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind))
}

fn plain(object: &DynamicObject) -> Value {
    serde_json::to_value(object).unwrap_or_default()
}

async fn list(client: &Client, kind: &Kind) -> Result<Vec<Value>, Problem> {
    let selected = ListParams::default().labels(kind.labels);
    for version in kind.versions {
        let api: Api<DynamicObject> =
            Api::all_with(client.clone(), &resource(kind.group, version, kind.kind));
        match api.list(&selected).await {
            Ok(list) => return Ok(list.items.iter().map(plain).collect()),
            Err(error) if is_missing(&error) => {}
            Err(error) => {
                return Err(problem(
                    format!("cannot list objects of kind {}", kind.kind),
                    error,
                ));
            }
        }
    }
    Ok(Vec::new())
}

/// Names of the Secrets in the control plane's namespace, with their labels: enough to see who keeps the issuer, and
/// whether Helm installed the mesh.
async fn secrets(client: &Client, linkerd: &str) -> Result<Vec<Value>, Problem> {
    let api: Api<DynamicObject> =
        Api::namespaced_with(client.clone(), linkerd, &resource("", "v1", "Secret"));
    match api.list_metadata(&ListParams::default()).await {
        Ok(list) => Ok(list
            .items
            .iter()
            .map(|object| serde_json::to_value(object).unwrap_or_default())
            .collect()),
        Err(error) => Err(problem(
            format!("cannot list the Secrets of namespace {linkerd}"),
            error,
        )),
    }
}

/// `namespace/name`, or the name of what has no namespace.
pub(super) fn title(object: &Value) -> String {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
    match text("namespace") {
        "" => text("name").to_owned(),
        namespace => format!("{namespace}/{}", text("name")),
    }
}

pub(super) fn titles<'a>(objects: impl IntoIterator<Item = &'a Value>) -> BTreeSet<String> {
    objects.into_iter().map(title).collect()
}
