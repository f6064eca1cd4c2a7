//! `viz check`: is the extension there, does it run, does it read every proxy, and does it ask who may see requests?

use std::process::ExitCode;

use hawser_crd::keys;
use hawser_viz::Pod;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod as Object, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use tokio::time::{Duration, Instant};

use super::source::Collector;
use super::{Format, manifests, tap};
use crate::check::{Category, Outcome, Report, until};
use crate::kube::ClusterArgs;
use crate::meshed;
use crate::output::write_out;
use crate::problem::Problem;

/// A cluster that doesn't answer in this time says nothing about its extensions.
const DEADLINE: Duration = Duration::from_secs(10);
const INSTALL: &str = "hawser viz install | kubectl apply -f -";

#[derive(Debug, clap::Args)]
pub(super) struct CheckArgs {
    /// How long to wait for the extension to run
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
        there(Api::<Namespace>::all(client.clone()), &[namespace.to_owned()]).await,
    );
    if !exists {
        return category;
    }
    let roles = manifests::roles(namespace);
    category.row(
        "linkerd-viz ClusterRoles exist",
        "l5d-viz-cr-exists",
        INSTALL,
        there(Api::<ClusterRole>::all(client.clone()), &roles).await,
    );
    category.row(
        "linkerd-viz ClusterRoleBindings exist",
        "l5d-viz-crb-exists",
        INSTALL,
        there(Api::<ClusterRoleBinding>::all(client.clone()), &roles).await,
    );
    category.row(
        "linkerd-viz ServiceAccounts exist",
        "",
        INSTALL,
        there(
            Api::<ServiceAccount>::namespaced(client.clone(), namespace),
            &manifests::ACCOUNTS.map(str::to_owned),
        )
        .await,
    );
    category.row(
        "linkerd-viz ConfigMaps exist",
        "l5d-viz-cm-exists",
        INSTALL,
        there(
            Api::<ConfigMap>::namespaced(client.clone(), namespace),
            &["prometheus-config".to_owned()],
        )
        .await,
    );
    category.row(
        "viz extension pods are running",
        "l5d-viz-pods-running",
        format!("kubectl -n {namespace} describe pods"),
        until(deadline, "the extension's pods", async || {
            running(&pods(client, namespace).await)
        })
        .await,
    );
    let pods = pods(client, namespace).await;
    category.row(
        "viz extension proxies are healthy",
        "l5d-viz-pods-injection",
        format!("kubectl -n {namespace} rollout restart deploy"),
        with_proxies(&pods),
    );
    // Each is asked if it runs, whatever has become of the other.
    let runs = |component| pods.as_ref().is_ok_and(|pods| is_running(pods, component));
    if runs(manifests::COLLECTOR) {
        category.row(
            "every meshed pod's metrics are read",
            "",
            format!("kubectl -n {namespace} logs deploy/{}", manifests::COLLECTOR),
            until(deadline, "metrics of every meshed pod", async || {
                read(client, namespace).await
            })
            .await
            .warn(),
        );
    }
    if runs(keys::TAP) {
        category.row(
            "tap API service is running",
            "l5d-tap-api",
            format!("kubectl -n {namespace} logs deploy/{}", keys::TAP),
            until(deadline, "an answer of tap", async || {
                let refused = tap::refuses(client, namespace).await;
                Outcome::from(refused.map_err(|problem| problem.why().to_owned()))
            })
            .await,
        );
    }
    category
}

/// What of these is missing.
async fn there<K>(api: Api<K>, names: &[String]) -> Outcome
where
    K: kube::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let mut missing = Vec::new();
    for name in names {
        match api.get_opt(name).await {
            Ok(Some(_)) => {}
            Ok(None) => missing.push(name.clone()),
            Err(error) => return Outcome::Error(error.to_string()),
        }
    }
    Outcome::none("missing", missing)
}

/// Those of the extension itself, not of what users put beside it.
async fn pods(client: &Client, namespace: &str) -> Result<Vec<Object>, String> {
    let pods: Api<Object> = Api::namespaced(client.clone(), namespace);
    let query = format!("{}={}", keys::EXTENSION, keys::EXTENSION_VIZ);
    let list = pods.list(&ListParams::default().labels(&query)).await;
    let list = list.map_err(|error| error.to_string())?.items.into_iter();
    Ok(list
        .filter(|pod| COMPONENTS.iter().any(|one| is_of(pod, one)) && Pod::of(pod).is_running())
        .collect())
}

/// Who answers the questions of the command line.
const COMPONENTS: [&str; 2] = [manifests::COLLECTOR, keys::TAP];

fn is_of(pod: &Object, component: &str) -> bool {
    pod.labels()
        .get(keys::COMPONENT)
        .is_some_and(|one| one == component)
}

fn is_running(pods: &[Object], component: &str) -> bool {
    pods.iter()
        .any(|pod| is_of(pod, component) && meshed::is_ready(pod))
}

fn running(pods: &Result<Vec<Object>, String>) -> Outcome {
    let pods = match pods {
        Ok(pods) => pods,
        Err(error) => return Outcome::Error(error.clone()),
    };
    let missing = COMPONENTS.iter().filter(|one| !is_running(pods, one));
    let missing = missing.map(|one| {
        let of_it: Vec<String> = pods
            .iter()
            .filter(|pod| is_of(pod, one))
            .map(ResourceExt::name_any)
            .collect();
        match of_it.is_empty() {
            true => format!("{one}: no pod"),
            false => format!("{one}: {}", of_it.join(", ")),
        }
    });
    Outcome::none("of these no pod is ready", missing)
}

/// Proxies that let in only the mesh refuse a collector without one, and tell of requests only to tap's identity.
fn with_proxies(pods: &Result<Vec<Object>, String>) -> Outcome {
    match pods {
        Ok(pods) => {
            let unmeshed = pods.iter().filter(|pod| Pod::of(pod).ports().next().is_none());
            Outcome::none("these pods have no proxy", unmeshed.map(ResourceExt::name_any))
        }
        Err(error) => Outcome::Error(error.clone()),
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
