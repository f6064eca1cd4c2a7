//! `hawser failover`: the failover extension's manifests, and which splits have failed over.

use std::process::ExitCode;

use hawser_control::values::Values;
use hawser_crd::TrafficSplit;
use hawser_crd::keys;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::install::yaml;
use crate::kube::{ClusterArgs, problem};
use crate::multicluster::manifests::{self, Settings};
use crate::multicluster::{OutputArgs, ValueArgs, mesh_values, print, settings, write_out};
use crate::problem::Problem;

/// The documented value of the label that puts a split into the controller's hands.
const SELECTOR: &str = "failover.linkerd.io/controlled-by=linkerd-failover";

/// Fail over between services: hawser failover install | kubectl apply -f -
#[derive(Debug, clap::Args)]
pub(crate) struct FailoverArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Print the extension: hawser failover install | kubectl apply -f -
    Install(InstallArgs),
    /// Show which services receive traffic: hawser failover status
    Status(StatusArgs),
}

#[derive(Debug, clap::Args)]
struct InstallArgs {
    /// TrafficSplits to look after
    #[arg(long, short = 'l', default_value = SELECTOR)]
    selector: String,
    /// Don't look at the cluster: take the defaults of a mesh
    #[arg(long)]
    ignore_cluster: bool,
    #[command(flatten)]
    values: ValueArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, clap::Args)]
struct StatusArgs {
    /// TrafficSplits to show
    #[arg(long, short = 'l', default_value = keys::FAILOVER_CONTROLLED_BY)]
    selector: String,
    /// table or json
    #[arg(short, long, default_value = "table")]
    output: String,
}

pub(crate) async fn run(cluster: &ClusterArgs, args: FailoverArgs) -> Result<ExitCode, Problem> {
    match args.command {
        Command::Install(install) => {
            let mesh = if install.ignore_cluster {
                Values::default()
            } else {
                let connection = cluster.connect().await?;
                mesh_values(&connection.client, &cluster.linkerd_namespace).await?
            };
            let settings = settings(&mesh, json!({}), &install.values)?;
            print(
                &manifests::failover(&settings, &install.selector),
                install.output.output,
            )
        }
        Command::Status(status) => {
            let client = cluster.connect().await?.client;
            let splits: Api<TrafficSplit> = Api::all(client);
            let list = splits.list(&ListParams::default().labels(&status.selector)).await;
            let list = list.map_err(|error| problem("cannot list TrafficSplits", error))?;
            let rows: Vec<Row> = list.items.iter().filter_map(row).collect();
            write_out(&if status.output == "json" {
                json_text(&rows)
            } else {
                table(&rows)
            })?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// The extension as YAML, for a mesh with these values. For callers in this process.
pub(crate) fn manifests(mesh: &Values) -> Result<String, Problem> {
    let settings: Settings = settings(mesh, json!({}), &ValueArgs::default())?;
    yaml(&manifests::failover(&settings, SELECTOR))
}

#[derive(Debug, PartialEq, Eq)]
struct Row {
    namespace: String,
    name: String,
    is_primary: bool,
    active: Vec<String>,
}

/// Splits without a named primary aren't shown: nothing says what they would have failed over from.
fn row(split: &TrafficSplit) -> Option<Row> {
    let primary = split.annotations().get(keys::FAILOVER_PRIMARY)?;
    let active: Vec<String> = split
        .spec
        .backends
        .iter()
        .filter(|backend| !backend.weight.0.is_zero())
        .map(|backend| backend.service.clone())
        .collect();
    Some(Row {
        namespace: split.namespace().unwrap_or_default(),
        name: split.name_any(),
        is_primary: active.contains(primary),
        active,
    })
}

fn table(rows: &[Row]) -> String {
    let mut lines = vec![["NAMESPACE", "TRAFFIC_SPLIT", "STATUS", "ACTIVE_BACKENDS"].map(str::to_owned)];
    lines.extend(rows.iter().map(|row| {
        let status = if row.is_primary { "Primary" } else { "Fallback" };
        [
            row.namespace.clone(),
            row.name.clone(),
            status.to_owned(),
            row.active.join(", "),
        ]
    }));
    let mut widths = [0; 4];
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = cell.len().max(*width);
        }
    }
    let padded = |line: &[String; 4]| {
        let cells = line
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:<width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("   ").trim_end())
    };
    lines.iter().map(padded).collect()
}

fn json_text(rows: &[Row]) -> String {
    let rows: Vec<_> = rows
        .iter()
        .map(|row| {
            let status = if row.is_primary { "primary" } else { "fallback" };
            json!({"namespace": row.namespace, "name": row.name, "status": status, "services": row.active})
        })
        .collect();
    format!("{:#}\n", json!(rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_names_the_services_with_traffic() {
        let split: TrafficSplit = serde_json::from_value(json!({
            "metadata": {"namespace": "emojivoto", "name": "web-svc", "annotations": {keys::FAILOVER_PRIMARY: "web-svc"}},
            "spec": {"service": "web-svc", "backends": [
                {"service": "web-svc", "weight": 0}, {"service": "web-svc-east", "weight": "1"}]},
        }))
        .unwrap();
        let rows = [row(&split).unwrap()];
        assert_eq!(
            table(&rows),
            "NAMESPACE   TRAFFIC_SPLIT   STATUS     ACTIVE_BACKENDS\n\
             emojivoto   web-svc         Fallback   web-svc-east\n"
        );
    }
}
