//! `hawser diagnostics proxy-metrics` and `controller-metrics`: expositions as the processes write them.

use std::process::ExitCode;

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::api::ListParams;
use kube::core::Selector;
use kube::{Api, Client, ResourceExt};

use crate::kube::problem;
use crate::meshed;
use crate::multicluster::write_out;
use crate::problem::Problem;
use crate::scrape;

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
    let pods = behind(client, &args.namespace, &args.resource).await?;
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

/// The pods of a workload that have a proxy.
async fn behind(client: &Client, namespace: &str, resource: &str) -> Result<Vec<Pod>, Problem> {
    let what = format!("cannot find the pods of {resource}");
    let (kind, name) = resource.split_once('/').unwrap_or(("pod", resource));
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    macro_rules! selector {
        ($kind:ty, $at:expr) => {{
            let api: Api<$kind> = Api::namespaced(client.clone(), namespace);
            let found = api.get(name).await.map_err(|error| problem(&what, error))?;
            found.spec.and_then($at)
        }};
    }
    let selector: Option<LabelSelector> = match kind {
        "po" | "pod" | "pods" => {
            let pod = pods.get(name).await.map_err(|error| problem(&what, error))?;
            return meshed_only(what, vec![pod]);
        }
        "deploy" | "deployment" | "deployments" => selector!(Deployment, |spec| Some(spec.selector)),
        "ds" | "daemonset" | "daemonsets" => selector!(DaemonSet, |spec| Some(spec.selector)),
        "sts" | "statefulset" | "statefulsets" => selector!(StatefulSet, |spec| Some(spec.selector)),
        "rs" | "replicaset" | "replicasets" => selector!(ReplicaSet, |spec| Some(spec.selector)),
        "job" | "jobs" => selector!(Job, |spec| spec.selector),
        _ => {
            let why = format!("{kind:?} is not a kind that has pods");
            return Err(Problem::new(what, why, "deploy/NAME or po/NAME"));
        }
    };
    let selector: Selector =
        selector
            .unwrap_or_default()
            .try_into()
            .map_err(|error: kube::core::ParseExpressionError| {
                Problem::new(&what, error, "name one of its pods: po/NAME")
            })?;
    let found = pods.list(&ListParams::default().labels_from(&selector)).await;
    meshed_only(what.clone(), found.map_err(|error| problem(what, error))?.items)
}

fn meshed_only(what: String, mut pods: Vec<Pod>) -> Result<Vec<Pod>, Problem> {
    pods.retain(|pod| meshed::has_proxy(pod) && !meshed::is_finished(pod));
    if pods.is_empty() {
        let attempt = "mesh it: kubectl get deploy -o yaml | hawser inject - | kubectl apply -f -";
        return Err(Problem::new(what, "none of them has a proxy", attempt));
    }
    Ok(pods)
}
