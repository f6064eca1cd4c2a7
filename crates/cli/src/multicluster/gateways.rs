//! `gateways`: whether the gateways of linked clusters answer, as the controllers that probe them see it.
//!
//! The leader of each link is asked for its metrics through the API server, so this works wherever kubectl works.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use hawser_control::mirror::{FAILURE_METRIC, LATENCY_METRIC, LATENCY_QUANTILES, LATENCY_WINDOWS};
use hawser_crd::keys;
use hawser_runtime::exposition::samples;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use serde_json::json;

use crate::kube::{ClusterArgs, problem};
use crate::output::write_out;
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
    /// Of which time the latencies are
    #[arg(long, short = 't', default_value = "1m", value_parser = LATENCY_WINDOWS.map(|(name, _)| name))]
    time_window: String,
    /// table or json
    #[arg(short, long, default_value = "table", value_parser = ["table", "json"])]
    output: String,
    /// Namespace of the multicluster extension
    #[arg(long, alias = "gateway-namespace", default_value = keys::MULTICLUSTER_NAMESPACE)]
    namespace: String,
}

/// One gateway, as its prober sees it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Gateway {
    pub(super) cluster: String,
    pub(super) alive: bool,
    /// Why it isn't alive.
    pub(super) failure: Option<String>,
    services: usize,
    /// Of the last good probe.
    latency_ms: Option<f64>,
    /// p50, p95 and p99 of the window.
    quantiles_ms: Option<[f64; 3]>,
}

/// What one controller says of one gateway.
#[derive(Clone, Debug, Default, PartialEq)]
struct Reading {
    is_probed: bool,
    is_alive: bool,
    failure: Option<String>,
    latency_ms: Option<f64>,
    quantiles_ms: [Option<f64>; 3],
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
    let gathering = gather(
        &connection.client,
        &args.namespace,
        args.cluster_name.as_deref(),
        &args.time_window,
    );
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
    write_out(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// Pods that lead a link, or the given one, and their admin ports.
pub(super) async fn leaders(
    client: &Client,
    namespace: &str,
    only: Option<&str>,
) -> Result<Vec<(String, u16)>, Problem> {
    let what = "cannot find the controllers of links";
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let leases: Api<Lease> = Api::namespaced(client.clone(), namespace);
    let controllers = pods
        .list(&ListParams::default())
        .await
        .map_err(|error| problem(what, error))?
        .items;
    let leaders: Vec<String> = leases
        .list(&ListParams::default())
        .await
        .map_err(|error| problem(what, error))?
        .items
        .into_iter()
        .filter(|lease| {
            let link = lease.name_any();
            let link = link.strip_prefix(keys::SERVICE_MIRROR_LEASE_PREFIX);
            link.is_some_and(|link| only.is_none_or(|only| only == link))
        })
        .filter_map(|lease| lease.spec?.holder_identity)
        .collect();
    let leading = controllers
        .into_iter()
        .filter(|pod| leaders.contains(&pod.name_any()));
    Ok(leading
        .filter_map(|pod| Some((pod.name_any(), admin_port(&pod)?)))
        .collect())
}

/// Asks the leaders of all links.
pub(super) async fn gather(
    client: &Client,
    namespace: &str,
    only: Option<&str>,
    window: &str,
) -> Result<Vec<Gateway>, Problem> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let mut gateways = Vec::new();
    for (pod, port) in leaders(client, namespace, only).await? {
        let text = scrape::metrics(&pods, &pod, port).await.map_err(|error| {
            let what = format!("cannot read the metrics of pod {namespace}/{pod}");
            Problem::new(what, error, format!("kubectl -n {namespace} logs {pod}"))
        })?;
        for (cluster, reading) in readings(&text, window) {
            if !reading.is_probed || only.is_some_and(|only| only != cluster) {
                continue;
            }
            let query = format!("{}=true,{}={cluster}", keys::MIRRORED_SERVICE, keys::CLUSTER_NAME);
            let services: Api<Service> = Api::all(client.clone());
            let mirrors = services
                .list_metadata(&ListParams::default().labels(&query))
                .await;
            let [p50, p95, p99] = reading.quantiles_ms;
            let quantiles = p50.zip(p95).zip(p99).map(|((p50, p95), p99)| [p50, p95, p99]);
            gateways.push(Gateway {
                cluster,
                alive: reading.is_alive,
                failure: reading.failure,
                services: mirrors
                    .map_err(|error| problem("cannot count the mirrors", error))?
                    .items
                    .len(),
                latency_ms: reading.latency_ms.filter(|_| reading.is_alive),
                quantiles_ms: quantiles.filter(|_| reading.is_alive),
            });
        }
    }
    gateways.sort_by(|a, b| a.cluster.cmp(&b.cluster));
    Ok(gateways)
}

/// Whether the gateway of a cluster answers its prober, or why not; nothing if nobody probes it or could be asked.
pub(crate) async fn probed(client: &Client, namespace: &str, cluster: &str) -> Option<Result<(), String>> {
    let gateways = gather(client, namespace, Some(cluster), "1m").await.ok()?;
    let gateway = gateways.into_iter().next()?;
    Some(if gateway.alive {
        Ok(())
    } else {
        Err(gateway.failure.unwrap_or_else(|| "it does not answer".into()))
    })
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

/// What an exposition says, by target cluster.
fn readings(text: &str, window: &str) -> BTreeMap<String, Reading> {
    let mut clusters: BTreeMap<String, Reading> = BTreeMap::new();
    for sample in samples(text).flatten() {
        let Some(cluster) = sample.labels.get("target_cluster_name") else {
            continue;
        };
        let reading = clusters.entry(cluster.into_owned()).or_default();
        match sample.name {
            "gateway_enabled" => reading.is_probed = sample.value == 1.0,
            "gateway_alive" => reading.is_alive = sample.value == 1.0,
            FAILURE_METRIC => reading.failure = sample.labels.get("reason").map(Cow::into_owned),
            "gateway_latency" => reading.latency_ms = Some(sample.value),
            LATENCY_METRIC if sample.labels.get("window").as_deref() == Some(window) => {
                let quantile = sample.labels.get("quantile");
                let at = LATENCY_QUANTILES
                    .iter()
                    .position(|(name, _)| quantile.as_deref() == Some(name));
                if let Some(place) = at.and_then(|at| reading.quantiles_ms.get_mut(at)) {
                    *place = Some(sample.value);
                }
            }
            _ => {}
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
        "{:<width$}  {:<5}  {:>9}  {:>11}  {:>11}  {:>11}  \n",
        "CLUSTER", "ALIVE", "NUM_SVC", "LATENCY_P50", "LATENCY_P95", "LATENCY_P99"
    );
    for gateway in gateways {
        let alive = if gateway.alive { "True" } else { "False" };
        text += &format!(
            "{:<width$}  {alive:<5}  {:>9}  ",
            gateway.cluster, gateway.services
        );
        for at in 0..3 {
            let latency = gateway.quantiles_ms.as_ref().and_then(|all| all.get(at));
            let latency = latency.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.0}ms"));
            text += &format!("{latency:>11}  ");
        }
        text.push('\n');
    }
    text
}

fn json_text(gateways: &[Gateway]) -> String {
    let rows: Vec<_> = gateways
        .iter()
        .map(|gateway| {
            let [p50, p95, p99] = gateway
                .quantiles_ms
                .unwrap_or_default()
                .map(|ms| ms.round() as u64);
            json!({
                "clusterName": gateway.cluster, "alive": gateway.alive,
                "numberOfServices": gateway.services,
                "latency": gateway.latency_ms.unwrap_or(0.0).round() as u64,
                "latencyP50": p50, "latencyP95": p95, "latencyP99": p99,
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
            failure: None,
            services: 1,
            latency_ms: alive.then_some(1.6),
            quantiles_ms: alive.then_some([1.6, 20.0, 1234.4]),
        }
    }

    #[test]
    fn the_table_is_aligned_as_documented() {
        assert_eq!(
            table(&[gateway("east", true), gateway("far-away", false)]),
            "CLUSTER   ALIVE    NUM_SVC  LATENCY_P50  LATENCY_P95  LATENCY_P99  \n\
             east      True           1          2ms         20ms       1234ms  \n\
             far-away  False          1            -            -            -  \n"
        );
    }

    #[test]
    fn readings_are_of_one_cluster_and_one_window() {
        let readings = readings(
            "# TYPE gateway_alive gauge\n\
             gateway_enabled{target_cluster_name=\"east\"} 1\n\
             gateway_alive{target_cluster_name=\"east\"} 1\n\
             gateway_latency{target_cluster_name=\"east\"} 3\n\
             gateway_probes{target_cluster_name=\"east\",probe_successful=\"true\"} 7\n\
             gateway_probe_latency_window_ms{target_cluster_name=\"east\",window=\"1m\",quantile=\"0.5\"} 2.5\n\
             gateway_probe_latency_window_ms{target_cluster_name=\"east\",window=\"1h\",quantile=\"0.95\"} 9\n\
             gateway_enabled{target_cluster_name=\"north\"} 0\n\
             nonsense\n",
            "1m",
        );
        let east = Reading {
            is_probed: true,
            is_alive: true,
            failure: None,
            latency_ms: Some(3.0),
            quantiles_ms: [Some(2.5), None, None],
        };
        assert_eq!(
            readings,
            BTreeMap::from([("east".into(), east), ("north".into(), Reading::default())])
        );
    }
}
