//! `gateways`: whether the gateways of linked clusters answer, as the controllers that probe them see it.
//!
//! The leader of each link is asked for its metrics through the API server, so this works wherever kubectl works.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use hawser_crd::keys;
use hawser_runtime::exposition::samples;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use serde_json::json;

use crate::kube::{ClusterArgs, problem};
use crate::problem::Problem;
use crate::scrape;

#[derive(Debug, clap::Args)]
pub(super) struct GatewaysArgs {
    /// Only this cluster's gateway
    #[arg(long)]
    cluster_name: Option<String>,
    /// How long to wait for all controllers' answers, in seconds (30s) or as a duration
    #[arg(short, long, default_value = "30s")]
    wait: String,
    /// table or json
    #[arg(short, long, default_value = "table")]
    output: String,
    #[arg(long, default_value = keys::MULTICLUSTER_NAMESPACE)]
    namespace: String,
}

/// One gateway, as its prober sees it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Gateway {
    pub(super) cluster: String,
    pub(super) alive: bool,
    services: usize,
    latency_ms: Option<f64>,
}

pub(super) async fn run(cluster: &ClusterArgs, args: GatewaysArgs) -> Result<ExitCode, Problem> {
    let what = "cannot show the gateways";
    let wait = hawser_crd::link::parse_duration(&args.wait).ok_or_else(|| {
        Problem::new(
            what,
            format!("--wait {:?} is not a duration", args.wait),
            "--wait 30s",
        )
    })?;
    let connection = cluster.connect().await?;
    let gathering = gather(&connection.client, &args.namespace, args.cluster_name.as_deref());
    let gateways = match tokio::time::timeout(wait, gathering).await {
        Ok(gateways) => gateways?,
        Err(_) => {
            let why = format!("no answer within {wait:?}");
            return Err(Problem::new(what, why, "a longer --wait, or hawser mc check"));
        }
    };
    let text = match args.output.as_str() {
        "json" => json_text(&gateways),
        _ => table(&gateways),
    };
    super::write_out(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// Asks the leaders of all links.
pub(super) async fn gather(
    client: &Client,
    namespace: &str,
    only: Option<&str>,
) -> Result<Vec<Gateway>, Problem> {
    let what = "cannot find the controllers of links";
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let leases: Api<Lease> = Api::namespaced(client.clone(), namespace);
    let mut query = format!(
        "{} in ({},{})",
        keys::COMPONENT,
        keys::COMPONENT_SERVICE_MIRROR_POD,
        keys::COMPONENT_CONTROLLER
    );
    if let Some(cluster) = only {
        query = format!("{query},{}={cluster}", keys::CLUSTER_NAME);
    }
    let controllers = pods
        .list(&ListParams::default().labels(&query))
        .await
        .map_err(|error| problem(what, error))?
        .items;
    let leaders: Vec<String> = leases
        .list(&ListParams::default())
        .await
        .map_err(|error| problem(what, error))?
        .items
        .into_iter()
        .filter(|lease| lease.name_any().contains("service-mirror-write"))
        .filter_map(|lease| lease.spec?.holder_identity)
        .collect();
    let mut gateways = Vec::new();
    for pod in controllers.iter().filter(|pod| leaders.contains(&pod.name_any())) {
        let Some(port) = admin_port(pod) else { continue };
        let text = scrape::metrics(&pods, &pod.name_any(), port)
            .await
            .map_err(|error| {
                let what = format!("cannot read the metrics of pod {namespace}/{}", pod.name_any());
                Problem::new(
                    what,
                    error,
                    format!("kubectl -n {namespace} logs {}", pod.name_any()),
                )
            })?;
        for (cluster, metrics) in by_cluster(&text) {
            if metrics.get("gateway_enabled") != Some(&1.0) {
                continue;
            }
            let query = format!("{}=true,{}={cluster}", keys::MIRRORED_SERVICE, keys::CLUSTER_NAME);
            let services: Api<Service> = Api::all(client.clone());
            let mirrors = services
                .list_metadata(&ListParams::default().labels(&query))
                .await;
            let alive = metrics.get("gateway_alive") == Some(&1.0);
            gateways.push(Gateway {
                cluster,
                alive,
                services: mirrors
                    .map_err(|error| problem("cannot count the mirrors", error))?
                    .items
                    .len(),
                latency_ms: metrics.get("gateway_latency").copied().filter(|_| alive),
            });
        }
    }
    gateways.sort_by(|a, b| a.cluster.cmp(&b.cluster));
    Ok(gateways)
}

fn admin_port(pod: &Pod) -> Option<u16> {
    let containers = pod.spec.as_ref()?.containers.iter();
    let mut ports = containers.flat_map(|container| container.ports.iter().flatten());
    let admin = ports.find(|port| {
        port.name
            .as_deref()
            .is_some_and(|name| name.ends_with("-admin") && name != "linkerd-admin")
    })?;
    u16::try_from(admin.container_port).ok()
}

/// The gauges of an exposition, by target cluster.
fn by_cluster(text: &str) -> BTreeMap<String, BTreeMap<String, f64>> {
    let mut clusters: BTreeMap<String, BTreeMap<String, f64>> = BTreeMap::new();
    for sample in samples(text).flatten() {
        let mut labels = sample.labels.iter();
        if let (Some(("target_cluster_name", cluster)), None) = (labels.next(), labels.next()) {
            clusters
                .entry(cluster.into_owned())
                .or_default()
                .insert(sample.name.to_owned(), sample.value);
        }
    }
    clusters
}

fn table(gateways: &[Gateway]) -> String {
    let width = gateways
        .iter()
        .map(|gateway| gateway.cluster.len())
        .fold(7, usize::max);
    let mut text = format!(
        "{:<width$}  {:<5}  {:>9}  {:>11}  \n",
        "CLUSTER", "ALIVE", "NUM_SVC", "LATENCY"
    );
    for gateway in gateways {
        let alive = if gateway.alive { "True" } else { "False" };
        let latency = gateway
            .latency_ms
            .map_or_else(|| "-".to_owned(), |ms| format!("{ms:.0}ms"));
        text += &format!(
            "{:<width$}  {alive:<5}  {:>9}  {latency:>11}  \n",
            gateway.cluster, gateway.services
        );
    }
    text
}

fn json_text(gateways: &[Gateway]) -> String {
    let rows: Vec<_> = gateways
        .iter()
        .map(|gateway| {
            json!({
                "clusterName": gateway.cluster, "alive": gateway.alive,
                "numberOfServices": gateway.services, "latency": gateway.latency_ms.unwrap_or(0.0) as u64,
            })
        })
        .collect();
    format!("{:#}\n", json!(rows))
}

/// How long `check` lets one controller's answer take.
pub(super) const SCRAPE_DEADLINE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    fn gateway(cluster: &str, alive: bool) -> Gateway {
        Gateway {
            cluster: cluster.into(),
            alive,
            services: 1,
            latency_ms: alive.then_some(1.6),
        }
    }

    #[test]
    fn the_table_is_aligned_as_documented() {
        assert_eq!(
            table(&[gateway("east", true), gateway("far-away", false)]),
            "CLUSTER   ALIVE    NUM_SVC      LATENCY  \n\
             east      True           1          2ms  \n\
             far-away  False          1            -  \n"
        );
    }

    #[test]
    fn gauges_are_read_by_cluster() {
        let metrics = by_cluster(
            "# TYPE gateway_alive gauge\n\
             gateway_alive{target_cluster_name=\"east\"} 1\n\
             gateway_latency{target_cluster_name=\"east\"} 3\n\
             gateway_probes{target_cluster_name=\"east\",probe_successful=\"true\"} 7\n\
             nonsense\n",
        );
        assert_eq!(
            metrics["east"],
            BTreeMap::from([("gateway_alive".into(), 1.0), ("gateway_latency".into(), 3.0)])
        );
    }
}
