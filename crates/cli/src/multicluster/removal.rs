//! `unlink` and `uninstall`: print what is to go, with just enough of each object for `kubectl delete -f -`.

use std::process::ExitCode;

use hawser_crd::Link;
use hawser_crd::keys;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Secret, Service, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::{ClusterResourceScope, NamespaceResourceScope};
use kube::api::ListParams;
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::manifests::Names;
use crate::kube::{ClusterArgs, is_missing, problem};
use crate::output::{OutputArgs, print};
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
    let mut objects = Vec::new();
    // What the extension's own settings brought would come back with the next install, so it isn't ours to name.
    let own = Names::linked(name);
    let place = Place {
        client: &client,
        namespace: &args.namespace,
    };
    objects.extend(place.cluster_wide::<ClusterRole>(&own.local_access).await?);
    objects.extend(
        place
            .cluster_wide::<ClusterRoleBinding>(&own.local_access)
            .await?,
    );
    objects.extend(place.namespaced::<Role>(&own.credentials_access).await?);
    objects.extend(place.namespaced::<RoleBinding>(&own.credentials_access).await?);
    objects.extend(place.namespaced::<ServiceAccount>(&own.controller).await?);
    objects.extend(place.namespaced::<Deployment>(&own.controller).await?);
    objects.extend(place.namespaced::<PodDisruptionBudget>(&own.controller).await?);
    objects.extend(place.namespaced::<Service>(&own.probe).await?);
    // Without its permissions the controller can't give the lease back, and whoever follows it would wait.
    objects.extend(
        place
            .namespaced::<Lease>(&keys::service_mirror_lease(name))
            .await?,
    );
    if !args.only_controller {
        let credentials = match link.spec.cluster_credentials_secret.as_str() {
            "" => keys::credentials_secret(name),
            secret => secret.to_owned(),
        };
        objects.extend(place.namespaced::<Secret>(&credentials).await?);
        objects.push(reference(
            "multicluster.linkerd.io/v1alpha3",
            "Link",
            Some(&args.namespace),
            name,
        ));
        let mirrors = format!("{}=true,{}={name}", keys::MIRRORED_SERVICE, keys::CLUSTER_NAME);
        objects.extend(labelled::<Service>(Api::all(client.clone()), &mirrors).await?);
        let (query, linkerd) = (
            format!("{}={name}", keys::SECRET_CLUSTER_NAME),
            &cluster.linkerd_namespace,
        );
        objects.extend(labelled::<Secret>(Api::namespaced(client.clone(), linkerd), &query).await?);
        objects.extend(labelled::<Role>(Api::namespaced(client.clone(), linkerd), &query).await?);
        objects.extend(labelled::<RoleBinding>(Api::namespaced(client.clone(), linkerd), &query).await?);
    }
    print(&objects, args.output.output)
}

/// Where objects of one name may be, so that only those that exist are printed: kubectl fails on the others.
struct Place<'a> {
    client: &'a Client,
    namespace: &'a str,
}

impl Place<'_> {
    async fn namespaced<K>(&self, name: &str) -> Result<Option<Value>, Problem>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + std::fmt::Debug,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), self.namespace);
        existing(&api, Some(self.namespace), name).await
    }

    async fn cluster_wide<K>(&self, name: &str) -> Result<Option<Value>, Problem>
    where
        K: Resource<DynamicType = (), Scope = ClusterResourceScope>
            + Clone
            + DeserializeOwned
            + std::fmt::Debug,
    {
        existing(&Api::<K>::all(self.client.clone()), None, name).await
    }
}

async fn existing<K>(api: &Api<K>, namespace: Option<&str>, name: &str) -> Result<Option<Value>, Problem>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
{
    let (version, kind) = (K::api_version(&()), K::kind(&()));
    match api.get_metadata_opt(name).await {
        Ok(found) => Ok(found.map(|_| reference(&version, &kind, namespace, name))),
        Err(error) => Err(problem(format!("cannot look for {kind} {name}"), error)),
    }
}

/// End another cluster's access: hawser mc revoke west | kubectl delete -f -
///
/// Prints the account that `allow` made. Once it is deleted, its token is worth nothing: the other cluster's controllers
/// notice within a second (a real API server may remember a token for ten seconds) and stop watching; their mirrors
/// stay as they were. Requests that clients send through the gateway don't use the account: who may do that is in
/// MeshTLSAuthentication any-meshed of the gateway's namespace.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: hawser mc revoke west --context east | kubectl --context east delete -f -")]
pub(super) struct RevokeArgs {
    /// Name of the account
    #[arg(value_name = "NAME", required_unless_present = "service_account_name")]
    name: Option<String>,
    /// Name of the account, as allow takes it
    #[arg(long, conflicts_with = "name")]
    service_account_name: Option<String>,
    #[arg(long, default_value = keys::MULTICLUSTER_NAMESPACE)]
    namespace: String,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) async fn revoke(cluster: &ClusterArgs, args: RevokeArgs) -> Result<ExitCode, Problem> {
    let name = args.name.or(args.service_account_name).unwrap_or_default();
    let what = format!("cannot revoke the access of {name:?}");
    let client = cluster.connect().await?.client;
    let objects = access(&client, &args.namespace, &name).await?;
    if objects.is_empty() {
        let why = format!(
            "namespace {} has no account of that name that hawser mc allow made",
            args.namespace
        );
        let attempt = format!(
            "kubectl -n {} get serviceaccounts -l {}={}",
            args.namespace,
            keys::EXTENSION,
            keys::EXTENSION_MULTICLUSTER
        );
        return Err(Problem::new(what, why, attempt));
    }
    print(&objects, args.output.output)
}

/// What makes up an account: first its token, then what it was allowed.
async fn access(client: &Client, namespace: &str, name: &str) -> Result<Vec<Value>, Problem> {
    let query = format!("{}={}", keys::EXTENSION, keys::EXTENSION_MULTICLUSTER);
    let named = |objects: Vec<Value>, name: &str| -> Vec<Value> {
        let is_it = |object: &Value| object["metadata"]["name"] == name;
        objects.into_iter().filter(is_it).collect()
    };
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let account = named(labelled(accounts, &query).await?, name);
    // Before the account: with that gone, Kubernetes deletes it itself, and kubectl would miss it.
    let mut objects = named(labelled(secrets, &query).await?, &format!("{name}-token"));
    objects.extend(account);
    let bindings: Api<ClusterRoleBinding> = Api::all(client.clone());
    objects.extend(named(labelled(bindings, &query).await?, name));
    let roles: Api<ClusterRole> = Api::all(client.clone());
    objects.extend(named(labelled(roles, &query).await?, name));
    Ok(objects)
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
