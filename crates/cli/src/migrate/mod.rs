//! `hawser migrate --dry-run`: what a cluster has of Linkerd, what becomes of it, and the steps in their order.
//!
//! Reads and never writes: the steps are commands, so that each can be read, tried and taken back. What is seen is in
//! [`observe`], what is decided, purely, in [`plan`]. docs/migrating-from-linkerd.md tells the whole way.

mod observe;
mod plan;

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use self::plan::{Plan, Refusal, Verdict};
use crate::kube::ClusterArgs;
use crate::output::{write_out, yaml};
use crate::problem::Problem;

/// Plan the way from Linkerd to Hawser: hawser migrate --dry-run
///
/// Looks at the cluster and says what stays as it is, what changes, what isn't supported, and which steps lead there.
/// Nothing is changed: the steps are commands for you.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  hawser migrate --dry-run                         what would happen
  hawser migrate --dry-run -o json                 the same, for scripts
  hawser migrate --dry-run -o values > values.yaml settings for hawser install --values")]
pub(crate) struct MigrateArgs {
    /// Only look: there is no other way yet
    #[arg(long)]
    dry_run: bool,
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    Table,
    Json,
    /// Linkerd's values that have a meaning here
    Values,
}

const DEADLINE: Duration = Duration::from_secs(60);
const WHAT: &str = "cannot plan the migration";

pub(crate) async fn run(cluster: &ClusterArgs, args: MigrateArgs) -> Result<ExitCode, Problem> {
    if !args.dry_run {
        let why = "hawser migrate changes nothing by itself: it only plans";
        return Err(Problem::new(WHAT, why, "hawser migrate --dry-run"));
    }
    let client = cluster.connect().await?.client;
    let linkerd = &cluster.linkerd_namespace;
    let objects = tokio::time::timeout(DEADLINE, observe::observe(&client, linkerd))
        .await
        .unwrap_or_else(|_| {
            Err(Problem::new(
                WHAT,
                "the cluster does not answer",
                "kubectl get nodes",
            ))
        })?;
    let plan = plan::plan(&objects, linkerd).map_err(|refusal| {
        let attempt = match refusal {
            Refusal::NoMesh(_) => "-L NAMESPACE with the namespace of Linkerd's control plane",
            Refusal::Ours(_) => "hawser check",
            Refusal::Values(_) => "kubectl get configmap linkerd-config -o yaml",
        };
        Problem::new(WHAT, refusal, attempt)
    })?;
    write_out(&match args.output {
        Output::Table => table(&plan),
        Output::Json => format!("{:#}\n", serde_json::to_value(&plan).unwrap_or_default()),
        Output::Values => yaml(&[plan.values])?,
    })?;
    Ok(ExitCode::SUCCESS)
}

fn table(plan: &Plan) -> String {
    let mut text = format!("Linkerd {}\n", plan.version);
    for (verdict, heading) in [
        (Verdict::Kept, "stays as it is"),
        (Verdict::Changed, "changes"),
        (Verdict::Unsupported, "is not supported"),
    ] {
        let mut findings = plan
            .findings
            .iter()
            .filter(|finding| finding.verdict == verdict)
            .peekable();
        if findings.peek().is_none() {
            continue;
        }
        let _ = writeln!(text, "\n{heading}");
        for finding in findings {
            let _ = writeln!(text, "  {}\n      {}", finding.subject, finding.why);
        }
    }
    text.push_str("\nsteps\n");
    for (at, step) in plan.steps.iter().enumerate() {
        let _ = writeln!(text, "  {}. {}", at + 1, step.title);
        for command in &step.commands {
            let _ = writeln!(text, "       {command}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use hawser_control::values::Values;
    use hawser_sandbox::api::{Cluster, ClusterOptions, Identity};
    use serde_json::{Value, json};

    use super::*;
    use crate::apply::Applier;

    #[tokio::test]
    async fn a_cluster_is_read_and_left_as_it_is() {
        let cluster = Cluster::new(ClusterOptions::default());
        let client = cluster.client(Identity::admin());
        let mut applier = Applier::new(client.clone());
        let values =
            json!({"linkerdVersion": "stable-2.14.10", "controllerImage": "cr.l5d.io/linkerd/controller"});
        let namespace = |name: &str, labels: Value| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}});
        let service = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "web-svc", "namespace": "emojivoto", "labels": {"mirror.linkerd.io/exported": "true"}},
            "spec": {"ports": [{"port": 80}]},
        });
        let link = json!({
            "apiVersion": "multicluster.linkerd.io/v1alpha3", "kind": "Link",
            "metadata": {"name": "east", "namespace": "linkerd-multicluster"},
            "spec": {"targetClusterName": "east"},
        });
        for object in [
            namespace("linkerd", json!({})),
            namespace("emojivoto", json!({})),
            namespace(
                "linkerd-multicluster",
                json!({"linkerd.io/extension": "multicluster"}),
            ),
            hawser_crd::manifests::links(),
            json!({
                "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "linkerd-config", "namespace": "linkerd"},
                "data": {"values": values.to_string()},
            }),
            service,
            link,
        ] {
            applier.apply(&object).await.unwrap();
        }
        let seen = observe::observe(&client, "linkerd").await.unwrap();
        let text = table(&plan::plan(&seen, "linkerd").unwrap());
        for line in [
            "Linkerd stable-2.14.10",
            "  exported Services emojivoto/web-svc",
            "  Links linkerd-multicluster/east",
            "  1. replace what is not supported, or decide to do without it",
        ] {
            assert!(text.lines().any(|seen| seen == line), "{line} in\n{text}");
        }
        assert!(
            text.contains("is not supported\n  trust anchors\n"),
            "there is no bundle to take over:\n{text}"
        );
        assert_eq!(
            observe::observe(&client, "linkerd").await.unwrap(),
            seen,
            "nothing has changed"
        );
    }

    #[test]
    fn a_plan_for_a_mesh_of_ours_is_refused() {
        let map = json!({"data": {"values": Values::default().to_yaml().unwrap()}});
        let objects = observe::Objects::from([("linkerd-config", vec![map])]);
        assert!(matches!(plan::plan(&objects, "linkerd"), Err(Refusal::Ours(_))));
    }
}
