//! `failover check`: whether the extension can work, in the words of Linkerd's checks.
//!
//! The three of Linkerd's, and one more that they lack: that the splits are as the controller understands them.
//! Source: `spec/multicluster.md` 8.4.

use std::process::ExitCode;
use std::time::Duration;

use hawser_control::failover::Status;
use hawser_crd::{TrafficSplit, keys};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};

use crate::check::{Category, Format, Outcome, Report};
use crate::kube::{ClusterArgs, is_missing};
use crate::output::write_out;
use crate::problem::Problem;

const CATEGORY: &str = "linkerd-failover";
const INSTALL: &str = "hawser failover install | kubectl apply -f -";
/// One check's patience with a cluster.
const DEADLINE: Duration = Duration::from_secs(30);

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  hawser failover check --pre\n  hawser failover check -o json")]
pub(super) struct CheckArgs {
    /// Only what must hold before the extension is installed
    #[arg(long)]
    pre: bool,
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

pub(super) async fn run(cluster: &ClusterArgs, args: CheckArgs) -> Result<ExitCode, Problem> {
    let client = cluster.connect().await?.client;
    let mut category = Category::new(CATEGORY);
    if splits_are_defined(&client, &mut category).await && !args.pre {
        installed(&client, &mut category).await;
    }
    let mut report = Report::default();
    report.push(category);
    write_out(&report.text(args.output))?;
    Ok(report.code())
}

/// The extension's checks, where it is installed.
pub(crate) async fn check(client: &Client) -> Option<Category> {
    if namespaces(client).await.ok()?.is_empty() {
        return None;
    }
    let mut category = Category::new(CATEGORY);
    if splits_are_defined(client, &mut category).await {
        installed(client, &mut category).await;
    }
    Some(category)
}

async fn splits_are_defined(client: &Client, category: &mut Category) -> bool {
    let splits: Api<TrafficSplit> = Api::all(client.clone());
    let found = bounded(splits.list_metadata(&ListParams::default().limit(1))).await;
    category.row(
        "TrafficSplit CRD exists",
        "",
        "hawser upgrade | kubectl apply -f -",
        found.map(drop).into(),
    )
}

async fn installed(client: &Client, category: &mut Category) {
    let namespace = match namespaces(client).await {
        Ok(found) if found.len() == 1 => Ok(found.into_iter().next().unwrap_or_default()),
        Ok(found) if found.is_empty() => Err(format!(
            "no namespace has the label {}={}",
            keys::EXTENSION,
            keys::EXTENSION_FAILOVER
        )),
        Ok(found) => Err(format!("several namespaces have its label: {}", found.join(", "))),
        Err(error) => Err(error),
    };
    let outcome = match &namespace {
        Ok(name) => Outcome::Fine(vec![name.clone()]),
        Err(why) => Outcome::Error(why.clone()),
    };
    category.row("failover extension namespace exists", "", INSTALL, outcome);
    let Ok(namespace) = namespace else { return };
    category.row(
        "failover controller is healthy",
        "",
        format!(
            "kubectl -n {namespace} describe deployment {}",
            keys::FAILOVER_NAMESPACE
        ),
        is_available(client, &namespace).await.into(),
    );
    category.row(
        "traffic splits can fail over",
        "",
        "kubectl describe trafficsplit: its Events say what is wrong",
        splits_can_move(client).await,
    );
}

async fn namespaces(client: &Client) -> Result<Vec<String>, String> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let query = format!("{}={}", keys::EXTENSION, keys::EXTENSION_FAILOVER);
    let found = bounded(namespaces.list_metadata(&ListParams::default().labels(&query))).await?;
    Ok(found.items.iter().map(ResourceExt::name_any).collect())
}

async fn is_available(client: &Client, namespace: &str) -> Result<(), String> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    let deployment = bounded(deployments.get(keys::FAILOVER_NAMESPACE)).await?;
    let available = deployment
        .status
        .and_then(|status| status.available_replicas)
        .unwrap_or(0);
    if available > 0 {
        return Ok(());
    }
    Err(format!(
        "deployment {namespace}/{} has no available replica",
        keys::FAILOVER_NAMESPACE
    ))
}

async fn splits_can_move(client: &Client) -> Outcome {
    let splits: Api<TrafficSplit> = Api::all(client.clone());
    let found = bounded(splits.list(&ListParams::default().labels(keys::FAILOVER_CONTROLLED_BY))).await;
    match found {
        Ok(found) => judge(&found.items),
        Err(error) => Outcome::Warning(error),
    }
}

/// A split that is stuck is its owner's to mend; the extension works.
fn judge(splits: &[TrafficSplit]) -> Outcome {
    Outcome::each(splits.iter().map(|split| {
        let title = format!("{}/{}", split.namespace().unwrap_or_default(), split.name_any());
        let decided = split.annotations().get(keys::FAILOVER_STATUS);
        match decided.and_then(|text| Status::parse(text)) {
            Some(status) if matches!(status.phase.as_str(), "NobodyReady" | "NoPrimary") => {
                Err(format!("{title}: {}", status.message))
            }
            _ => Ok(title),
        }
    }))
    .warn()
}

async fn bounded<T>(request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, String> {
    match tokio::time::timeout(DEADLINE, request).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) if is_missing(&error) => Err("it does not exist".to_owned()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {DEADLINE:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_split_that_is_stuck_is_a_warning() {
        let split = |name: &str, phase: &str| {
            let status = json!({
                "phase": phase, "reason": "x", "message": "no backend is ready",
                "since": "2026-05-12T09:00:00Z", "weights": {},
            });
            let split = json!({
                "metadata": {
                    "namespace": "test", "name": name,
                    "annotations": {keys::FAILOVER_STATUS: status.to_string()},
                },
                "spec": {"service": name, "backends": []},
            });
            serde_json::from_value(split).unwrap()
        };
        assert_eq!(
            judge(&[split("a", "Primary"), split("b", "NobodyReady")]),
            Outcome::Warning("test/b: no backend is ready".into())
        );
        assert_eq!(
            judge(&[split("a", "Fallback")]),
            Outcome::Fine(vec!["test/a".into()])
        );
        assert_eq!(judge(&[]), Outcome::Skipped);
    }
}
