//! `hawser diagnostics endpoints`: where proxies would send requests for a name.

use std::net::SocketAddr;
use std::process::ExitCode;

use kube::Client;
use linkerd2_proxy_api::destination::destination_client::DestinationClient;
use linkerd2_proxy_api::destination::tls_identity::Strategy;
use linkerd2_proxy_api::destination::update::Update as Kind;
use linkerd2_proxy_api::destination::{GetDestination, Update, WeightedAddrSet};
use serde_json::{Value, json};
use tonic::Status;
use tonic::transport::Channel;

use super::{DEADLINE, DESTINATION_PORT, Format, destination};
use crate::output::write_out;
use crate::problem::Problem;

/// Show where proxies send requests for a name
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  hawser diagnostics endpoints web-svc.emojivoto.svc.cluster.local:80
  hawser diagnostics endpoints linkerd-dst.linkerd.svc.cluster.local:8086 -o json")]
pub(super) struct EndpointsArgs {
    /// Names with ports, as applications dial them
    #[arg(value_name = "AUTHORITY", required = true)]
    authorities: Vec<String>,
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Why a name's endpoints aren't known.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EndpointsError {
    #[error("destination does not know it")]
    Unknown,
    #[error("destination refuses: {}", .0.message())]
    Refused(Box<Status>),
    #[error("destination did not answer within {} s", DEADLINE.as_secs())]
    Silent,
    #[error("destination ended the answer before it began")]
    Ended,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Endpoint {
    namespace: String,
    pod: String,
    service: String,
    address: SocketAddr,
    /// Expected in its certificate; without one it is reached in plain text.
    identity: Option<String>,
    weight: u32,
}

pub(super) async fn run(client: &Client, linkerd: &str, args: EndpointsArgs) -> Result<ExitCode, Problem> {
    let channel = destination(client, linkerd, DESTINATION_PORT).await?;
    let mut all = Vec::new();
    for authority in &args.authorities {
        let found = get(channel.clone(), authority).await.map_err(|error| {
            Problem::new(
                format!("cannot tell the endpoints of {authority}"),
                error,
                "give a Service's name with its port: web-svc.emojivoto.svc.cluster.local:80",
            )
        })?;
        all.extend(found);
    }
    all.sort();
    write_out(&match args.output {
        Format::Table => table(&all),
        Format::Json => format!("{:#}\n", json(&all)),
    })?;
    Ok(ExitCode::SUCCESS)
}

/// What destination answers first; none if the Service has no ready endpoints.
pub(crate) async fn get(channel: Channel, authority: &str) -> Result<Vec<Endpoint>, EndpointsError> {
    addresses(channel, authority, String::new()).await.map(endpoints)
}

/// The same as it is said, to a proxy with this token.
pub(crate) async fn addresses(
    channel: Channel,
    authority: &str,
    context_token: String,
) -> Result<WeightedAddrSet, EndpointsError> {
    let request = GetDestination {
        scheme: "k8s".into(),
        path: authority.into(),
        context_token,
    };
    let asking = async {
        let mut client = DestinationClient::new(channel);
        let refused = |status| EndpointsError::Refused(Box::new(status));
        let mut updates = client.get(request).await.map_err(refused)?.into_inner();
        updates
            .message()
            .await
            .map_err(refused)?
            .ok_or(EndpointsError::Ended)
    };
    let update = tokio::time::timeout(DEADLINE, asking)
        .await
        .map_err(|_| EndpointsError::Silent)??;
    set(update)
}

fn set(update: Update) -> Result<WeightedAddrSet, EndpointsError> {
    match update.update {
        Some(Kind::Add(set)) => Ok(set),
        Some(Kind::NoEndpoints(none)) if !none.exists => Err(EndpointsError::Unknown),
        _ => Ok(WeightedAddrSet::default()),
    }
}

fn endpoints(set: WeightedAddrSet) -> Vec<Endpoint> {
    let shared = set.metric_labels;
    let endpoint = |address: linkerd2_proxy_api::destination::WeightedAddr| {
        let label = |name: &str| {
            let own = address.metric_labels.get(name).or_else(|| shared.get(name));
            own.cloned().unwrap_or_default()
        };
        let identity = address
            .tls_identity
            .as_ref()
            .and_then(|tls| match tls.strategy.as_ref()? {
                Strategy::DnsLikeIdentity(dns) => Some(dns.name.clone()),
                Strategy::UriLikeIdentity(uri) => Some(uri.uri.clone()),
            });
        Some(Endpoint {
            namespace: label("namespace"),
            pod: label("pod"),
            service: label("service"),
            identity,
            weight: address.weight,
            address: SocketAddr::try_from(address.addr?).ok()?,
        })
    };
    set.addrs.into_iter().filter_map(endpoint).collect()
}

fn table(endpoints: &[Endpoint]) -> String {
    let mut lines = vec![["NAMESPACE", "IP", "PORT", "POD", "SERVICE"].map(str::to_owned)];
    lines.extend(endpoints.iter().map(|endpoint| {
        [
            endpoint.namespace.clone(),
            endpoint.address.ip().to_string(),
            endpoint.address.port().to_string(),
            endpoint.pod.clone(),
            format!("{}.{}", endpoint.service, endpoint.namespace),
        ]
    }));
    let mut widths = [0; 5];
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = cell.len().max(*width);
        }
    }
    let text = |line: &[String; 5]| {
        let cells = line
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:<width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("   ").trim_end())
    };
    lines.iter().map(text).collect()
}

fn json(endpoints: &[Endpoint]) -> Value {
    let rows = endpoints.iter().map(|endpoint| {
        json!({
            "namespace": endpoint.namespace, "ip": endpoint.address.ip(), "port": endpoint.address.port(),
            "pod": endpoint.pod, "service": endpoint.service,
            "identity": endpoint.identity, "weight": endpoint.weight,
        })
    });
    rows.collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use linkerd2_proxy_api::destination::{NoEndpoints, WeightedAddr};

    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        let owned = pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        owned.collect()
    }

    #[test]
    fn endpoints_are_shown_with_the_pods_behind_them() {
        let address = |text: &str, pod: &str| WeightedAddr {
            addr: Some(text.parse::<SocketAddr>().unwrap().into()),
            weight: 10_000,
            metric_labels: labels(&[("pod", pod)]),
            ..WeightedAddr::default()
        };
        let added = WeightedAddrSet {
            addrs: vec![
                address("10.42.0.12:8080", "web-2"),
                address("10.42.0.9:8080", "web-1"),
            ],
            metric_labels: labels(&[("namespace", "emojivoto"), ("service", "web-svc")]),
        };
        let update = Update {
            update: Some(Kind::Add(added)),
        };
        let mut found = set(update).map(endpoints).unwrap();
        found.sort();
        assert_eq!(
            table(&found),
            "NAMESPACE   IP           PORT   POD     SERVICE\n\
             emojivoto   10.42.0.9    8080   web-1   web-svc.emojivoto\n\
             emojivoto   10.42.0.12   8080   web-2   web-svc.emojivoto\n"
        );
        assert_eq!(
            json(&found)[0],
            json!({"namespace": "emojivoto", "ip": "10.42.0.9", "port": 8080, "pod": "web-1", "service": "web-svc",
                   "identity": null, "weight": 10000})
        );
    }

    #[test]
    fn a_service_without_endpoints_is_not_an_unknown_name() {
        let none = |exists| Update {
            update: Some(Kind::NoEndpoints(NoEndpoints { exists })),
        };
        assert_eq!(set(none(true)).map(endpoints).unwrap(), []);
        assert!(matches!(set(none(false)), Err(EndpointsError::Unknown)));
    }
}
