//! `hawser version`: of this program, of the control plane, and of the proxies that run.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use hawser_control::values::VERSION;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::ListParams;

use crate::kube::ClusterArgs;
use crate::meshed;
use crate::multicluster::mesh_values;
use crate::output::write_out;
use crate::problem::Problem;

/// A cluster that takes longer than this has no version to tell.
const DEADLINE: Duration = Duration::from_secs(10);
const UNAVAILABLE: &str = "unavailable";

/// Print the versions of this program and of the mesh
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  hawser version                   this program and the control plane
  hawser version --client --short  only this program's, and nothing else")]
pub(crate) struct VersionArgs {
    /// Don't ask the cluster
    #[arg(long)]
    client: bool,
    /// Print only the numbers
    #[arg(long)]
    short: bool,
    /// Ask which proxies run as well
    #[arg(long)]
    proxy: bool,
    /// Namespace of the proxies; all if absent
    #[arg(short, long)]
    namespace: Option<String>,
}

/// What a cluster runs.
#[derive(Debug, Default, PartialEq, Eq)]
struct Running {
    control_plane: String,
    /// How many pods have each version.
    proxies: BTreeMap<String, usize>,
}

pub(crate) async fn run(cluster: &ClusterArgs, args: VersionArgs) -> Result<ExitCode, Problem> {
    let mut problem = None;
    let running = if args.client {
        None
    } else {
        let asking = ask(cluster, &args);
        let silent = || Problem::new("cannot ask the cluster", "it does not answer", "kubectl version");
        let answer = tokio::time::timeout(DEADLINE, asking).await;
        Some(answer.unwrap_or_else(|_| Err(silent())).unwrap_or_else(|why| {
            problem = Some(why);
            Running {
                control_plane: UNAVAILABLE.to_owned(),
                ..Running::default()
            }
        }))
    };
    write_out(&text(&args, running.as_ref()))?;
    // The numbers are this command's answer; why one is missing is a remark.
    if let Some(problem) = problem {
        problem.print();
    }
    Ok(ExitCode::SUCCESS)
}

async fn ask(cluster: &ClusterArgs, args: &VersionArgs) -> Result<Running, Problem> {
    let client = cluster.connect().await?.client;
    let control_plane = mesh_values(&client, &cluster.linkerd_namespace)
        .await?
        .linkerd_version;
    let mut proxies = BTreeMap::new();
    if args.proxy {
        let api: Api<Pod> = match &args.namespace {
            Some(namespace) => Api::namespaced(client, namespace),
            None => Api::all(client),
        };
        let found = api.list(&ListParams::default().labels(meshed::MESHED)).await;
        let found = found.map_err(|error| crate::kube::problem("cannot list pods", error))?;
        for version in found.items.iter().filter_map(meshed::proxy_version) {
            *proxies.entry(version).or_default() += 1;
        }
    }
    Ok(Running {
        control_plane,
        proxies,
    })
}

fn text(args: &VersionArgs, running: Option<&Running>) -> String {
    let title = |title: &'static str| if args.short { "" } else { title };
    let mut text = format!("{}{VERSION}\n", title("Client version: "));
    let Some(running) = running else { return text };
    text += &format!("{}{}\n", title("Server version: "), running.control_plane);
    if args.proxy {
        text += title("Proxy versions:\n");
        if running.proxies.is_empty() {
            text += &format!("\t{UNAVAILABLE}\n");
        }
        for (version, count) in &running.proxies {
            text += &format!("\t{version} ({count} pods)\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(short: bool, proxy: bool) -> VersionArgs {
        VersionArgs {
            client: false,
            short,
            proxy,
            namespace: None,
        }
    }

    #[test]
    fn the_lines_are_linkerds() {
        let running = Running {
            control_plane: "stable-2.11.1".into(),
            proxies: BTreeMap::from([("v0.1.0".into(), 3), ("stable-2.11.1".into(), 1)]),
        };
        assert_eq!(
            text(&args(false, true), Some(&running)),
            format!(
                "Client version: {VERSION}\nServer version: stable-2.11.1\nProxy versions:\n\
                 \tstable-2.11.1 (1 pods)\n\tv0.1.0 (3 pods)\n"
            )
        );
        assert_eq!(
            text(&args(true, false), Some(&running)),
            format!("{VERSION}\nstable-2.11.1\n")
        );
        assert_eq!(text(&args(true, false), None), format!("{VERSION}\n"));
    }
}
