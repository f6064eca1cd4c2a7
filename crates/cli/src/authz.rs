//! `hawser authz`: which policies decide who may talk to a workload.
//!
//! Asked of the control plane for every port of every pod, so defaults and overlapping Servers are what proxies get.

use std::collections::BTreeSet;
use std::process::ExitCode;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use linkerd2_proxy_api::inbound::proxy_protocol::Kind;
use linkerd2_proxy_api::inbound::{Authz, Server};
use linkerd2_proxy_api::meta::{Metadata, metadata};

use crate::diagnostics::{self, policy};
use crate::kube::ClusterArgs;
use crate::output::write_out;
use crate::problem::Problem;
use crate::workload;

/// Show the policies that apply to a workload
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  hawser authz -n emojivoto deploy/web")]
pub(crate) struct AuthzArgs {
    /// A pod or a workload: po/NAME, deploy/NAME, ds/NAME, sts/NAME, rs/NAME or job/NAME
    resource: String,
    #[arg(short, long, default_value = "default")]
    namespace: String,
}

type Row = [String; 4];

pub(crate) async fn run(cluster: &ClusterArgs, args: AuthzArgs) -> Result<ExitCode, Problem> {
    let client = cluster.connect().await?.client;
    let pods = workload::pods(&client, &args.namespace, &args.resource).await?;
    let linkerd = &cluster.linkerd_namespace;
    let channel = diagnostics::destination(&client, linkerd, diagnostics::POLICY_PORT).await?;
    let mut rows = BTreeSet::new();
    for pod in &pods {
        let name = pod.name_any();
        for port in ports(pod) {
            let asking = policy::of_port(channel.clone(), &args.namespace, &name, port);
            let answer = tokio::time::timeout(diagnostics::DEADLINE, asking).await;
            let answer =
                answer.unwrap_or_else(|_| Err(tonic::Status::deadline_exceeded("no answer in time")));
            let server = answer.map_err(|status| {
                let what = format!("cannot tell the policy of port {port} of pod {name}");
                Problem::new(what, status.message().to_owned(), "hawser check")
            })?;
            rows.extend(of_server(&server));
        }
    }
    write_out(&table(&rows))?;
    Ok(ExitCode::SUCCESS)
}

/// What the application's containers listen on, as far as they say.
fn ports(pod: &Pod) -> BTreeSet<u16> {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    containers
        .filter(|container| container.name != "linkerd-proxy")
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| u16::try_from(port.container_port).ok())
        .collect()
}

fn of_server(server: &Server) -> Vec<Row> {
    let label = |name: &str| server.labels.get(name).cloned().unwrap_or_default();
    let name = match label("kind").as_str() {
        "default" => format!("default:{}", label("name")),
        _ => label("name"),
    };
    let kind = server
        .protocol
        .as_ref()
        .and_then(|protocol| protocol.kind.as_ref());
    let routes = match kind {
        Some(Kind::Detect(detect)) => detect.http_routes.as_slice(),
        Some(Kind::Http1(http)) => &http.routes,
        Some(Kind::Http2(http)) => &http.routes,
        _ => &[],
    };
    let mut rows = rows("*", &name, &server.authorizations);
    for route in routes {
        // Defaults have no name that anyone wrote, and repeat the Server's.
        if let Some(Metadata {
            kind: Some(metadata::Kind::Resource(resource)),
        }) = &route.metadata
        {
            rows.extend(self::rows(&resource.name, &name, &route.authorizations));
        }
    }
    rows
}

fn rows(route: &str, server: &str, authorizations: &[Authz]) -> Vec<Row> {
    let row =
        |policy: String, authorization: String| [route.to_owned(), server.to_owned(), policy, authorization];
    if authorizations.is_empty() {
        return vec![row(String::new(), String::new())];
    }
    let one = |authorization: &Authz| match authorization
        .metadata
        .as_ref()
        .and_then(|meta| meta.kind.as_ref())
    {
        Some(metadata::Kind::Resource(resource))
            if resource.kind.eq_ignore_ascii_case("serverauthorization") =>
        {
            row(String::new(), resource.name.clone())
        }
        Some(metadata::Kind::Resource(resource)) => row(resource.name.clone(), String::new()),
        Some(metadata::Kind::Default(name)) => row(format!("default/{name}"), String::new()),
        None => row(String::new(), String::new()),
    };
    authorizations.iter().map(one).collect()
}

fn table(rows: &BTreeSet<Row>) -> String {
    let head = ["ROUTE", "SERVER", "AUTHORIZATION_POLICY", "SERVER_AUTHORIZATION"].map(str::to_owned);
    let lines: Vec<&Row> = std::iter::once(&head).chain(rows).collect();
    let mut widths = [0; 4];
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(*line) {
            *width = cell.len().max(*width);
        }
    }
    let text = |line: &&Row| {
        let cells = line
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:<width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    lines.iter().map(text).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use linkerd2_proxy_api::meta::Resource;

    use super::*;

    fn by(kind: metadata::Kind) -> Authz {
        Authz {
            metadata: Some(Metadata { kind: Some(kind) }),
            ..Authz::default()
        }
    }

    #[test]
    fn each_authorization_has_a_row_in_the_column_of_its_kind() {
        let resource = |kind: &str, name: &str| {
            by(metadata::Kind::Resource(Resource {
                kind: kind.into(),
                name: name.into(),
                ..Resource::default()
            }))
        };
        let labels = [("kind", "server"), ("name", "web-http")];
        let server = Server {
            labels: HashMap::from(labels.map(|(name, value)| (name.to_owned(), value.to_owned()))),
            authorizations: vec![
                resource("AuthorizationPolicy", "web-clients"),
                resource("ServerAuthorization", "old-clients"),
            ],
            ..Server::default()
        };
        let default = Server {
            labels: HashMap::from(
                [("kind", "default"), ("name", "deny")].map(|(n, v)| (n.to_owned(), v.to_owned())),
            ),
            ..Server::default()
        };
        let rows = [server, default].iter().flat_map(of_server).collect();
        assert_eq!(
            table(&rows),
            "ROUTE  SERVER        AUTHORIZATION_POLICY  SERVER_AUTHORIZATION\n\
             *      default:deny\n\
             *      web-http                            old-clients\n\
             *      web-http      web-clients\n"
        );
    }
}
