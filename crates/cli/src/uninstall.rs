//! `hawser uninstall` and `hawser prune`: print what the control plane consists of, or no longer consists of, for
//! `kubectl delete -f -`.
//!
//! They change nothing. `uninstall` refuses while something depends on the control plane, because a proxy without one keeps its
//! certificate for a day and then stops.

use std::process::ExitCode;

use hawser_crd::keys;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use serde_json::Value;

use crate::inventory::{self, Reference};
use crate::kube::{ClusterArgs, problem};
use crate::meshed;
use crate::output::{OutputArgs, print};
use crate::problem::Problem;

/// Print the control plane's objects, to delete them
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  hawser uninstall | kubectl delete -f -")]
pub(crate) struct UninstallArgs {
    /// Even if pods or extensions still need it
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// Print objects of the control plane that this version has no more, to delete them
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  hawser prune | kubectl delete -f -")]
pub(crate) struct PruneArgs {
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) async fn prune(cluster: &ClusterArgs, args: PruneArgs) -> Result<ExitCode, Problem> {
    let client = cluster.connect().await?.client;
    let found = inventory::left_over(&client, &cluster.linkerd_namespace).await;
    let found = found.map_err(|error| problem("cannot tell what is left over", error))?;
    let objects: Vec<Value> = found.iter().map(Reference::to_object).collect();
    print(&objects, args.output.output)
}

const WHAT: &str = "cannot uninstall the control plane";

pub(crate) async fn run(cluster: &ClusterArgs, args: UninstallArgs) -> Result<ExitCode, Problem> {
    let client = cluster.connect().await?.client;
    let objects = objects(&client, &cluster.linkerd_namespace, args.force).await?;
    print(&objects, args.output.output)
}

async fn objects(client: &Client, linkerd: &str, force: bool) -> Result<Vec<Value>, Problem> {
    if !force {
        refuse_extensions(client).await?;
        refuse_meshed_pods(client, linkerd).await?;
    }
    let expected = inventory::expected(linkerd);
    let mut present = inventory::present(client, &expected)
        .await
        .map_err(|error| problem(WHAT, error))?;
    if present.is_empty() {
        let why = format!("the cluster has no objects of it in namespace {linkerd}");
        return Err(Problem::new(WHAT, why, "check --context and --linkerd-namespace"));
    }
    order(&mut present);
    Ok(present.iter().map(Reference::to_object).collect())
}

/// The webhook first, so that nothing waits for it when its pods are gone; what holds other objects last.
fn order(objects: &mut [Reference]) {
    objects.sort_by_key(|object| match object.kind.as_str() {
        "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration" => 0,
        "CustomResourceDefinition" => 2,
        "Namespace" => 3,
        _ => 1,
    });
}

async fn refuse_extensions(client: &Client) -> Result<(), Problem> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let found = namespaces
        .list_metadata(&ListParams::default().labels(keys::EXTENSION))
        .await
        .map_err(|error| problem(WHAT, error))?;
    let names: Vec<String> = found
        .items
        .iter()
        .filter_map(|namespace| namespace.labels().get(keys::EXTENSION))
        .map(|extension| format!("* {extension}"))
        .collect();
    if names.is_empty() {
        return Ok(());
    }
    Err(Problem::new(
        WHAT,
        format!("extensions are installed:\n{}", names.join("\n")),
        "hawser EXTENSION uninstall | kubectl delete -f - for each of them, or --force",
    ))
}

async fn refuse_meshed_pods(client: &Client, linkerd: &str) -> Result<(), Problem> {
    let pods: Api<Pod> = Api::all(client.clone());
    let query = format!("{}={linkerd},!{}", meshed::MESHED, meshed::COMPONENT);
    let found = pods
        .list(&ListParams::default().labels(&query))
        .await
        .map_err(|error| problem(WHAT, error))?;
    let names: Vec<String> = found
        .items
        .iter()
        .filter(|pod| meshed::has_proxy(pod) && !meshed::is_finished(pod))
        .map(|pod| format!("* {}", meshed::title(pod)))
        .collect();
    if names.is_empty() {
        return Ok(());
    }
    Err(Problem::new(
        WHAT,
        format!("these pods have its proxy:\n{}", names.join("\n")),
        "kubectl get deploy -o yaml | hawser uninject - | kubectl apply -f - for their workloads, or --force",
    ))
}

#[cfg(test)]
mod tests {
    use hawser_sandbox::api::{Cluster, ClusterOptions, Identity};
    use serde_json::json;

    use super::*;
    use crate::apply::Applier;

    async fn installed() -> Client {
        let client = Cluster::new(ClusterOptions::default()).client(Identity::admin());
        let manifests = crate::install::manifests(&Default::default()).unwrap();
        Applier::new(client.clone()).apply_yaml(&manifests).await.unwrap();
        client
    }

    fn names(objects: &[Value]) -> Vec<String> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let name =
            |object: &Value| format!("{} {}", text(&object["kind"]), text(&object["metadata"]["name"]));
        objects.iter().map(name).collect()
    }

    #[tokio::test]
    async fn everything_that_install_made_is_printed_once() {
        let client = installed().await;
        let printed = objects(&client, "linkerd", false).await.unwrap();
        let rendered = inventory::expected("linkerd");
        assert_eq!(printed.len(), rendered.len());
        let printed = names(&printed);
        assert_eq!(
            printed.first().unwrap(),
            "MutatingWebhookConfiguration linkerd-proxy-injector-webhook-config"
        );
        assert_eq!(printed.last().unwrap(), "Namespace linkerd");
        assert!(printed.contains(&"ClusterRole linkerd-linkerd-identity".to_owned()));
    }

    #[tokio::test]
    async fn it_refuses_while_a_pod_has_a_proxy_unless_forced() {
        let client = installed().await;
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "web", "namespace": "default", "labels": {meshed::MESHED: "linkerd"}},
            "spec": {"containers": [{"name": "linkerd-proxy", "image": "proxy"}]},
        });
        Applier::new(client.clone()).apply(&pod).await.unwrap();
        let problem = objects(&client, "linkerd", false).await.unwrap_err().to_string();
        assert!(
            problem.contains("these pods have its proxy: * default/web"),
            "{problem}"
        );
        assert!(objects(&client, "linkerd", true).await.is_ok());
    }

    #[tokio::test]
    async fn it_refuses_while_an_extension_needs_the_mesh() {
        let client = installed().await;
        let extension = crate::multicluster::manifests(&Default::default()).unwrap();
        Applier::new(client.clone()).apply_yaml(&extension).await.unwrap();
        let problem = objects(&client, "linkerd", false).await.unwrap_err().to_string();
        assert!(problem.contains("* multicluster"), "{problem}");
    }

    #[tokio::test]
    async fn prune_finds_what_another_version_left_and_nothing_of_this_one() {
        let client = installed().await;
        let left_over = async || inventory::left_over(&client, "linkerd").await.unwrap();
        assert_eq!(left_over().await, []);
        let old = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "linkerd-sp-validator", "namespace": "linkerd", "labels": {meshed::MESHED: "linkerd"}},
            "spec": {"ports": [{"port": 443}]},
        });
        let mut others = old.clone();
        others["metadata"] = json!({"name": "mine", "namespace": "linkerd"});
        let mut applier = Applier::new(client.clone());
        applier.apply(&old).await.unwrap();
        applier.apply(&others).await.unwrap();
        let found: Vec<Value> = left_over().await.iter().map(Reference::to_object).collect();
        assert_eq!(names(&found), ["Service linkerd-sp-validator"]);
    }

    #[tokio::test]
    async fn nothing_to_uninstall_is_said() {
        let client = Cluster::new(ClusterOptions::default()).client(Identity::admin());
        let problem = objects(&client, "linkerd", false).await.unwrap_err().to_string();
        assert!(
            problem.contains("no objects of it in namespace linkerd"),
            "{problem}"
        );
    }
}
