//! `failover status`: which backends of which split receive traffic, since when, and why.

use std::process::ExitCode;

use hawser_control::failover::Status;
use hawser_crd::{TrafficSplit, keys};
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use crate::kube::{ClusterArgs, problem};
use crate::output::write_out;
use crate::problem::Problem;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  hawser failover status\n  hawser failover status -o json")]
pub(super) struct StatusArgs {
    /// TrafficSplits to show
    #[arg(long, short = 'l', default_value = keys::FAILOVER_CONTROLLED_BY)]
    selector: String,
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Format {
    Table,
    Json,
}

pub(super) async fn run(cluster: &ClusterArgs, args: StatusArgs) -> Result<ExitCode, Problem> {
    let client = cluster.connect().await?.client;
    let splits: Api<TrafficSplit> = Api::all(client);
    let list = splits.list(&ListParams::default().labels(&args.selector)).await;
    let list = list.map_err(|error| problem("cannot list TrafficSplits", error))?;
    let rows: Vec<Row> = list.items.iter().filter_map(row).collect();
    write_out(&match args.output {
        Format::Table => table(&rows),
        Format::Json => json_text(&rows),
    })?;
    Ok(ExitCode::SUCCESS)
}

#[derive(Debug, PartialEq)]
struct Row {
    namespace: String,
    name: String,
    is_primary: bool,
    active: Vec<String>,
    /// Nothing was ever decided, or not by our controller.
    decided: Option<Status>,
}

/// Splits without a named primary aren't shown: nothing says what they would have failed over from.
fn row(split: &TrafficSplit) -> Option<Row> {
    let primary = split.annotations().get(keys::FAILOVER_PRIMARY)?;
    let backends = split.spec.backends.iter();
    let active: Vec<String> = backends
        .filter(|backend| !backend.weight.0.is_zero())
        .map(|backend| backend.service.clone())
        .collect();
    let decided = split.annotations().get(keys::FAILOVER_STATUS);
    Some(Row {
        namespace: split.namespace().unwrap_or_default(),
        name: split.name_any(),
        is_primary: active.contains(primary),
        active,
        decided: decided.and_then(|text| Status::parse(text)),
    })
}

/// Linkerd's four columns, and two more.
fn table(rows: &[Row]) -> String {
    let heads = [
        "NAMESPACE",
        "TRAFFIC_SPLIT",
        "STATUS",
        "ACTIVE_BACKENDS",
        "SINCE",
        "REASON",
    ];
    let mut lines = vec![heads.map(str::to_owned)];
    lines.extend(rows.iter().map(|row| {
        let status = if row.is_primary { "Primary" } else { "Fallback" };
        let decided = row.decided.as_ref();
        [
            row.namespace.clone(),
            row.name.clone(),
            status.to_owned(),
            row.active.join(", "),
            decided.map_or_else(
                || "-".into(),
                |decided| decided.since.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            ),
            decided.map_or_else(|| "-".into(), |decided| decided.message.clone()),
        ]
    }));
    let mut widths = [0; 6];
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = cell.len().max(*width);
        }
    }
    let padded = |line: &[String; 6]| {
        let cells = line.iter().zip(widths);
        let cells = cells.map(|(cell, width)| format!("{cell:<width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("   ").trim_end())
    };
    lines.iter().map(padded).collect()
}

fn json_text(rows: &[Row]) -> String {
    let rows: Vec<Value> = rows
        .iter()
        .map(|row| {
            let status = if row.is_primary { "primary" } else { "fallback" };
            let mut object = json!({
                "namespace": row.namespace, "name": row.name, "status": status, "services": row.active,
            });
            if let Some(decided) = &row.decided {
                object["decision"] = json!(decided);
            }
            object
        })
        .collect();
    format!("{:#}\n", json!(rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(annotations: Value) -> TrafficSplit {
        let mut split = json!({
            "metadata": {"namespace": "emojivoto", "name": "web-svc", "annotations": annotations},
            "spec": {"service": "web-svc", "backends": [
                {"service": "web-svc", "weight": 0}, {"service": "web-svc-east", "weight": "1"}]},
        });
        split["metadata"]["annotations"][keys::FAILOVER_PRIMARY] = "web-svc".into();
        serde_json::from_value(split).unwrap()
    }

    const DECIDED: &str = r#"{"phase":"Fallback","reason":"NotReady","message":"web-svc has no ready endpoints",
        "since":"2026-05-12T09:00:00.123Z","weights":{"web-svc":0,"web-svc-east":1}}"#;

    #[test]
    fn the_status_names_the_services_with_traffic_and_says_why() {
        let rows = [row(&split(json!({keys::FAILOVER_STATUS: DECIDED}))).unwrap()];
        assert_eq!(
            table(&rows),
            "NAMESPACE   TRAFFIC_SPLIT   STATUS     ACTIVE_BACKENDS   SINCE                  REASON\n\
             emojivoto   web-svc         Fallback   web-svc-east      2026-05-12T09:00:00Z   web-svc has no ready endpoints\n"
        );
        let read: Value = serde_json::from_str(&json_text(&rows)).unwrap();
        assert_eq!(read[0]["services"], json!(["web-svc-east"]));
        assert_eq!(read[0]["decision"]["reason"], "NotReady");
    }

    #[test]
    fn a_split_that_another_controller_moved_is_shown_as_well() {
        let rows = [row(&split(json!({}))).unwrap()];
        assert_eq!(
            table(&rows),
            "NAMESPACE   TRAFFIC_SPLIT   STATUS     ACTIVE_BACKENDS   SINCE   REASON\n\
             emojivoto   web-svc         Fallback   web-svc-east      -       -\n"
        );
        let read: Value = serde_json::from_str(&json_text(&rows)).unwrap();
        assert_eq!(
            read,
            json!([{"namespace": "emojivoto", "name": "web-svc", "status": "fallback", "services": ["web-svc-east"]}])
        );
    }
}
