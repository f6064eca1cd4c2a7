//! `unlink` and `uninstall`: print what is to go, with just enough of each object for `kubectl delete -f -`.

use std::process::ExitCode;

use hawser_crd::Link;
use hawser_crd::keys;
use k8s_openapi::api::core::v1::{Namespace, Secret, Service};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::ListParams;
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{OutputArgs, manifests, print};
use crate::kube::{ClusterArgs, is_missing, problem};
use crate::problem::Problem;

#[derive(Debug, clap::Args)]
pub(super) struct UnlinkArgs {
    #[arg(long)]
    cluster_name: String,
    #[arg(long, default_value = keys::MULTICLUSTER_NAMESPACE)]
    namespace: String,
    /// Leave the link itself, its credentials and its mirrors
    #[arg(long)]
    only_controller: bool,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) async fn unlink(cluster: &ClusterArgs, args: UnlinkArgs) -> Result<ExitCode, Problem> {
    let what = format!("cannot unlink {:?}", args.cluster_name);
    let connection = cluster.connect().await?;
    let client = connection.client;
    let links: Api<Link> = Api::namespaced(client.clone(), &args.namespace);
    let link = match links.get_opt(&args.cluster_name).await {
        Ok(Some(link)) => link,
        Ok(None) => {
            let why = format!("there is no link {}/{}", args.namespace, args.cluster_name);
            return Err(Problem::new(
                what,
                why,
                format!("kubectl -n {} get links", args.namespace),
            ));
        }
        Err(error) => return Err(problem(what, error)),
    };
    let name = &args.cluster_name;
    let namespace = Some(args.namespace.as_str());
    let rbac = "rbac.authorization.k8s.io/v1";
    let mut objects = vec![
        reference(rbac, "ClusterRole", None, &manifests::local_access_name(name)),
        reference(
            rbac,
            "ClusterRoleBinding",
            None,
            &manifests::local_access_name(name),
        ),
        reference(rbac, "Role", namespace, &manifests::credentials_access_name(name)),
        reference(
            rbac,
            "RoleBinding",
            namespace,
            &manifests::credentials_access_name(name),
        ),
        reference(
            "v1",
            "ServiceAccount",
            namespace,
            &manifests::controller_name(name),
        ),
        reference(
            "apps/v1",
            "Deployment",
            namespace,
            &manifests::controller_name(name),
        ),
    ];
    if !link.spec.probe_spec.path.is_empty() {
        objects.push(reference("v1", "Service", namespace, &keys::probe_service(name)));
    }
    if !args.only_controller {
        objects.push(reference(
            "v1",
            "Secret",
            namespace,
            &keys::credentials_secret(name),
        ));
        objects.push(reference(
            "multicluster.linkerd.io/v1alpha3",
            "Link",
            namespace,
            name,
        ));
        objects.push(reference(
            "coordination.k8s.io/v1",
            "Lease",
            namespace,
            &keys::service_mirror_lease(name),
        ));
        let mirrors = format!("{}=true,{}={name}", keys::MIRRORED_SERVICE, keys::CLUSTER_NAME);
        objects.extend(labelled::<Service>(Api::all(client.clone()), &mirrors).await?);
        let (query, linkerd) = (
            format!("{}={name}", keys::SECRET_CLUSTER_NAME),
            &cluster.linkerd_namespace,
        );
        objects.extend(labelled::<Secret>(Api::namespaced(client.clone(), linkerd), &query).await?);
        objects.extend(labelled::<Role>(Api::namespaced(client.clone(), linkerd), &query).await?);
        objects.extend(labelled::<RoleBinding>(Api::namespaced(client, linkerd), &query).await?);
    }
    print(&objects, args.output.output)
}

pub(super) async fn uninstall(cluster: &ClusterArgs, output: OutputArgs) -> Result<ExitCode, Problem> {
    let what = "cannot uninstall the multicluster extension";
    let client = cluster.connect().await?.client;
    let links: Api<Link> = Api::all(client.clone());
    let names: Vec<String> = match links.list(&ListParams::default()).await {
        Ok(links) => links
            .items
            .iter()
            .map(|link| format!("  * {}", link.name_any()))
            .collect(),
        // No definition, no links.
        Err(error) if is_missing(&error) => Vec::new(),
        Err(error) => return Err(problem(what, error)),
    };
    if !names.is_empty() {
        let why = format!("clusters are still linked:\n{}", names.join("\n"));
        let attempt = "hawser mc unlink --cluster-name NAME | kubectl delete -f -, for each of them";
        return Err(Problem::new(what, why, attempt));
    }
    let objects = extension(
        &client,
        keys::EXTENSION_MULTICLUSTER,
        keys::EXTENSION_MULTICLUSTER_LEGACY,
    )
    .await?;
    if objects.is_empty() {
        let why = "the cluster has no objects of it";
        return Err(Problem::new(
            what,
            why,
            "check --context, or be glad: it is gone already",
        ));
    }
    print(&objects, output.output)
}

/// Everything of an extension that isn't in its namespace, and the namespace itself.
pub(crate) async fn extension(client: &Client, name: &str, legacy: &str) -> Result<Vec<Value>, Problem> {
    let query = format!("{} in ({name},{legacy})", keys::EXTENSION);
    let mut objects = Vec::new();
    objects.extend(labelled::<ClusterRole>(Api::all(client.clone()), &query).await?);
    objects.extend(labelled::<ClusterRoleBinding>(Api::all(client.clone()), &query).await?);
    objects.extend(labelled::<Role>(Api::all(client.clone()), &query).await?);
    objects.extend(labelled::<RoleBinding>(Api::all(client.clone()), &query).await?);
    objects.extend(labelled::<CustomResourceDefinition>(Api::all(client.clone()), &query).await?);
    objects.extend(labelled::<Namespace>(Api::all(client.clone()), &query).await?);
    Ok(objects)
}

async fn labelled<K>(api: Api<K>, query: &str) -> Result<Vec<Value>, Problem>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
{
    let kind = K::kind(&());
    let list = api.list_metadata(&ListParams::default().labels(query)).await;
    let list = list.map_err(|error| problem(format!("cannot list objects of kind {kind}"), error))?;
    let version = K::api_version(&());
    Ok(list
        .items
        .iter()
        .map(|object| reference(&version, &kind, object.namespace().as_deref(), &object.name_any()))
        .collect())
}

fn reference(version: &str, kind: &str, namespace: Option<&str>, name: &str) -> Value {
    let mut metadata = json!({"name": name});
    if let Some(namespace) = namespace {
        metadata["namespace"] = namespace.into();
    }
    json!({"apiVersion": version, "kind": kind, "metadata": metadata})
}
