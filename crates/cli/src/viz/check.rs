//! `viz check`: is the extension there, does it run, and does it read every proxy?

use std::process::ExitCode;

use hawser_crd::keys;
use hawser_viz::Pod;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod as Object};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use tokio::time::{Duration, Instant};

use super::Format;
use super::source::{COLLECTOR, Collector};
use crate::check::{Category, Outcome, Report, until};
use crate::kube::ClusterArgs;
use crate::multicluster::manifests::Settings;
use crate::output::write_out;
use crate::problem::Problem;

/// A cluster that doesn't answer in this time says nothing about its extensions.
const DEADLINE: Duration = Duration::from_secs(10);
const INSTALL: &str = "hawser viz install | kubectl apply -f -";

#[derive(Debug, clap::Args)]
pub(super) struct CheckArgs {
    /// How long to wait for the collector to run
    #[arg(long, default_value = "300s")]
    wait: String,
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
    #[arg(short, long, default_value = keys::VIZ_NAMESPACE)]
    namespace: String,
}

pub(super) async fn run(cluster: &ClusterArgs, args: CheckArgs) -> Result<ExitCode, Problem> {
    let wait = hawser_crd::link::parse_duration(&args.wait).ok_or_else(|| {
        let why = format!("--wait {:?} is not a duration", args.wait);
        Problem::new("cannot check the viz extension", why, "--wait 300s")
    })?;
    let client = cluster.connect().await?.client;
    let mut report = Report::default();
    report.push(extension(&client, &args.namespace, Instant::now() + wait).await);
    write_out(&report.text(args.output))?;
    Ok(report.code())
}

/// The extension's checks, where it is installed.
pub(crate) async fn check(client: &Client, deadline: Instant) -> Option<Category> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let query = format!("{}={}", keys::EXTENSION, keys::EXTENSION_VIZ);
    let params = ListParams::default().labels(&query);
    let found = tokio::time::timeout(DEADLINE, namespaces.list_metadata(&params)).await;
    let namespace = found.ok()?.ok()?.items.first()?.name_any();
    Some(extension(client, &namespace, deadline).await)
}

async fn extension(client: &Client, namespace: &str, deadline: Instant) -> Category {
    let mut category = Category::new("linkerd-viz");
    let exists = category.row(
        "linkerd-viz Namespace exists",
        "l5d-viz-ns-exists",
        INSTALL,
        there(Api::<Namespace>::all(client.clone()), namespace).await,
    );
    if !exists {
        return category;
    }
    let role = super::manifests::role_name(&Settings {
        namespace: namespace.to_owned(),
        ..Settings::default()
    });
    category.row(
        "linkerd-viz ClusterRoles exist",
        "l5d-viz-cr-exists",
        INSTALL,
        there(Api::<ClusterRole>::all(client.clone()), &role).await,
    );
    category.row(
        "linkerd-viz ClusterRoleBindings exist",
        "l5d-viz-crb-exists",
        INSTALL,
        there(Api::<ClusterRoleBinding>::all(client.clone()), &role).await,
    );
    category.row(
        "linkerd-viz ConfigMaps exist",
        "l5d-viz-cm-exists",
        INSTALL,
        there(
            Api::<ConfigMap>::namespaced(client.clone(), namespace),
            "prometheus-config",
        )
        .await,
    );
    let runs = category.row(
        "viz extension pods are running",
        "l5d-viz-pods-running",
        format!("kubectl -n {namespace} describe pods"),
        until(deadline, "the collector", async || {
            running(client, namespace).await
        })
        .await,
    );
    if runs {
        category.row(
            "viz extension proxies are healthy",
            "l5d-viz-pods-injection",
            format!("kubectl -n {namespace} rollout restart deploy"),
            meshed(client, namespace).await,
        );
        category.row(
            "every meshed pod's metrics are read",
            "",
            format!("kubectl -n {namespace} logs deploy/metrics-api"),
            until(deadline, "metrics of every meshed pod", async || {
                read(client, namespace).await
            })
            .await
            .warn(),
        );
    }
    category
}

async fn there<K>(api: Api<K>, name: &str) -> Outcome
where
    K: kube::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    match api.get_opt(name).await {
        Ok(Some(_)) => Outcome::fine(),
        Ok(None) => Outcome::Error(format!("there is no {name}")),
        Err(error) => Outcome::Error(error.to_string()),
    }
}

async fn pods(client: &Client, namespace: &str) -> Result<Vec<Object>, String> {
    let pods: Api<Object> = Api::namespaced(client.clone(), namespace);
    let list = pods.list(&ListParams::default().labels(COLLECTOR)).await;
    list.map(|list| list.items).map_err(|error| error.to_string())
}

async fn running(client: &Client, namespace: &str) -> Outcome {
    let pods = match pods(client, namespace).await {
        Ok(pods) => pods,
        Err(error) => return Outcome::Error(error),
    };
    let is_ready = |pod: &&Object| {
        let conditions = pod
            .status
            .iter()
            .flat_map(|status| status.conditions.iter().flatten());
        let mut ready = conditions.filter(|condition| condition.type_ == "Ready");
        Pod::of(pod).is_running() && ready.any(|condition| condition.status == "True")
    };
    if pods.iter().any(|pod| is_ready(&pod)) {
        return Outcome::fine();
    }
    if pods.is_empty() {
        return Outcome::Error("the collector has no pod".into());
    }
    Outcome::none("these pods are not ready", pods.iter().map(ResourceExt::name_any))
}

/// Proxies that let in only the mesh refuse a collector without one.
async fn meshed(client: &Client, namespace: &str) -> Outcome {
    match pods(client, namespace).await {
        Ok(pods) => {
            let unmeshed = pods.iter().filter(|pod| Pod::of(pod).ports().next().is_none());
            Outcome::none("these pods have no proxy", unmeshed.map(ResourceExt::name_any))
        }
        Err(error) => Outcome::Error(error),
    }
}

async fn read(client: &Client, namespace: &str) -> Outcome {
    let status = match Collector::find(client, namespace).await {
        Ok(Some(collector)) => collector.status().await,
        Ok(None) => return Outcome::Error("the collector is gone".into()),
        Err(problem) => Err(problem),
    };
    match status {
        Ok(status) => Outcome::none(
            &format!(
                "{} of {} processes are read; not these",
                status.read, status.sources
            ),
            status
                .unread
                .into_iter()
                .map(|(source, why)| format!("{source}: {why}")),
        ),
        Err(problem) => Outcome::Error(problem.why().to_owned()),
    }
}
