//! `hawser diagnostics proxy-metrics` and `controller-metrics`: expositions as the processes write them.

use std::process::ExitCode;

use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};

use crate::kube::problem;
use crate::meshed;
use crate::output::write_out;
use crate::problem::Problem;
use crate::{scrape, workload};

/// Print the metrics of a workload's proxies
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  hawser diagnostics proxy-metrics -n emojivoto deploy/web
  hawser diagnostics proxy-metrics -n emojivoto po/web-6f9b87c9d5-x2x7k | grep request_total")]
pub(super) struct ProxyMetricsArgs {
    /// A pod or a workload: po/NAME, deploy/NAME, ds/NAME, sts/NAME, rs/NAME or job/NAME
    resource: String,
    #[arg(short, long, default_value = "default")]
    namespace: String,
}

/// Print the metrics of the control plane's programs
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  hawser diagnostics controller-metrics | grep ^process")]
pub(super) struct ControllerMetricsArgs {}

pub(super) async fn proxies(client: &Client, args: ProxyMetricsArgs) -> Result<ExitCode, Problem> {
    let pods = workload::pods(client, &args.namespace, &args.resource).await?;
    let api: Api<Pod> = Api::namespaced(client.clone(), &args.namespace);
    let sources = pods
        .iter()
        .map(|pod| Source {
            pod: pod.name_any(),
            container: None,
            port: meshed::admin_port(pod),
        })
        .collect();
    print(&api, sources).await
}

pub(super) async fn controllers(client: &Client, linkerd: &str) -> Result<ExitCode, Problem> {
    let api: Api<Pod> = Api::namespaced(client.clone(), linkerd);
    let found = api.list(&ListParams::default().labels(meshed::COMPONENT)).await;
    let pods = found
        .map_err(|error| problem("cannot find the control plane", error))?
        .items;
    let sources: Vec<Source> = pods.iter().flat_map(programs).collect();
    if sources.is_empty() {
        let why = format!("namespace {linkerd} has no pods of it");
        return Err(Problem::new(
            "cannot find the control plane",
            why,
            "check --context and --linkerd-namespace",
        ));
    }
    print(&api, sources).await
}

/// Where one process writes its metrics.
struct Source {
    pod: String,
    container: Option<String>,
    port: u16,
}

/// The containers of a control plane's pod, without its proxy.
fn programs(pod: &Pod) -> Vec<Source> {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let admin = |container: &k8s_openapi::api::core::v1::Container| {
        let mut ports = container.ports.iter().flatten();
        let admin = ports.find(|port| {
            let name = port.name.as_deref().unwrap_or_default();
            name != "linkerd-admin" && (name.ends_with("-admin") || name.starts_with("admin"))
        })?;
        Some(Source {
            pod: pod.name_any(),
            container: Some(container.name.clone()),
            port: u16::try_from(admin.container_port).ok()?,
        })
    };
    containers.filter_map(admin).collect()
}

async fn print(api: &Api<Pod>, sources: Vec<Source>) -> Result<ExitCode, Problem> {
    let mut code = ExitCode::SUCCESS;
    for (at, source) in sources.iter().enumerate() {
        let text = scrape::metrics(api, &source.pod, source.port)
            .await
            .unwrap_or_else(|error| {
                code = ExitCode::FAILURE;
                let what = format!("cannot read the metrics of pod {}", source.pod);
                let problem = Problem::new(what, error, "kubectl get pods shows whether it runs");
                // What isn't a comment would spoil an exposition.
                problem
                    .to_string()
                    .lines()
                    .map(|line| format!("# {line}\n"))
                    .collect()
            });
        let container = source.container.as_ref();
        let container = container.map_or_else(String::new, |name| format!("# CONTAINER {name}\n"));
        let (at, of) = (at + 1, sources.len());
        write_out(&format!(
            "#\n# POD {} ({at} of {of})\n{container}#\n{text}",
            source.pod
        ))?;
    }
    Ok(code)
}
