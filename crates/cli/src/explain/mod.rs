//! `hawser explain`: what would become of a request now, and why.
//!
//! [`look`] collects what is [`seen`], [`judge`] draws conclusions, [`finding`] writes them down. Decisions come from
//! where proxies have them: the control plane's answers, and the functions by which proxies act on them.

mod finding;
mod judge;
mod look;
mod near;
mod seen;
#[cfg(test)]
mod tests;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use hawser_control::view::Key;
use hawser_core::{Namespace, ServiceName};
use hawser_proxy::decision;
use http::{Method, Uri};
use indicatif::ProgressBar;

pub(crate) use self::finding::Explanation;
use self::look::{Asked, HOPS_MAX, Others, Place};
use self::seen::Caller;
use crate::check::Paint;
use crate::kube::{ClusterArgs, Connection};
use crate::output::write_out;
use crate::problem::Problem;
use crate::workload;

/// Say what would become of a request now, and why
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit code: 0 if every request would arrive, 1 if not, 2 if the question makes no sense.

Examples:
  hawser explain svc/web-svc-east -n emojivoto                  from anybody in the mesh
  hawser explain deploy/vote-bot --to svc/web-svc -n emojivoto  from one workload
  hawser explain deploy/web --to svc/db --to-namespace data --port 5432 -o json"
)]
pub(crate) struct ExplainArgs {
    /// A service: svc/NAME; or with --to who asks: deploy/NAME, po/NAME, ds/NAME, sts/NAME, rs/NAME or job/NAME
    #[arg(value_parser = resource)]
    resource: Resource,
    /// The service that is asked: svc/NAME
    #[arg(long, value_name = "SERVICE", value_parser = service)]
    to: Option<ServiceName>,
    #[arg(short, long, default_value = "default")]
    namespace: Namespace,
    /// Namespace of the service [default: that of who asks]
    #[arg(long, value_name = "NAMESPACE", requires = "to")]
    to_namespace: Option<Namespace>,
    /// Port of the service [default: its first]
    #[arg(short, long, value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// Method of the request, where routes differ by it
    #[arg(long, default_value = "GET")]
    method: Method,
    /// Path of the request, where routes differ by it
    #[arg(long, default_value = "/")]
    path: Uri,
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    /// The same as -o json
    #[arg(long, conflicts_with = "output")]
    json: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    #[default]
    Table,
    Json,
}

/// As kubectl names them.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Resource {
    Service(ServiceName),
    /// Whole, for [`workload`].
    Workload(String),
}

fn resource(text: &str) -> Result<Resource, String> {
    match text.split_once('/') {
        Some(("po" | "pod" | "pods" | "deploy" | "deployment" | "deployments", name))
        | Some(("ds" | "daemonset" | "daemonsets" | "sts" | "statefulset" | "statefulsets", name))
        | Some(("rs" | "replicaset" | "replicasets" | "job" | "jobs", name)) => {
            if name.is_empty() || name.contains('/') {
                return Err("write deploy/NAME".to_owned());
            }
            Ok(Resource::Workload(text.to_owned()))
        }
        _ => service(text).map(Resource::Service),
    }
}

/// `svc/NAME`, or the name alone.
pub(crate) fn service(text: &str) -> Result<ServiceName, String> {
    let name = match text.split_once('/') {
        Some(("svc" | "service" | "services", name)) => name,
        Some((kind, _)) => return Err(format!("{kind:?} is neither svc nor a kind that has pods")),
        None => text,
    };
    name.parse()
        .map_err(|error: hawser_core::names::NameError| error.to_string())
}

/// The question makes no sense.
const USAGE: u8 = 2;

pub(crate) async fn run(cluster: &ClusterArgs, args: ExplainArgs) -> Result<ExitCode, Problem> {
    let (from, to) = match (&args.resource, &args.to) {
        (Resource::Service(service), None) => (None, service),
        (Resource::Workload(workload), Some(to)) => (Some(workload), to),
        (Resource::Workload(workload), None) => {
            let why = "a workload sends requests to services, and none is named";
            let attempt = format!("hawser explain {workload} --to svc/NAME");
            Problem::new(format!("cannot explain {workload}"), why, attempt).print();
            return Ok(ExitCode::from(USAGE));
        }
        (Resource::Service(service), Some(to)) => {
            let why = "a service sends no requests";
            let attempt = format!("hawser explain deploy/NAME --to svc/{to}");
            Problem::new(format!("cannot explain svc/{service}"), why, attempt).print();
            return Ok(ExitCode::from(USAGE));
        }
    };
    let namespace = args.to_namespace.as_ref().unwrap_or(&args.namespace);
    let target = Key::new(namespace.as_str(), to.as_str());
    let what = format!("cannot explain svc/{to}");
    let request = decision::request(args.method, &args.path, &format!("{to}.{namespace}"))
        .map_err(|error| Problem::new(&what, error, "--path /api/list, for example"))?;
    let progress = progress();
    let connection = cluster.connect().await?;
    let question = Question {
        cluster: None,
        from: from.map(|workload| (args.namespace.as_str(), workload.as_str())),
        to: target,
        port: args.port,
        request: &request,
    };
    let explanation = explain(cluster, connection, question).await?;
    progress.finish_and_clear();
    write_out(&if args.json || args.output == Format::Json {
        let text = serde_json::to_string_pretty(&explanation);
        format!(
            "{}\n",
            text.map_err(|error| Problem::new(&what, error, "leave -o json out"))?
        )
    } else {
        explanation.text(Paint::of_stdout())
    })?;
    Ok(if explanation.succeeds {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Which request is meant.
pub(crate) struct Question<'a> {
    /// Where it is sent, as a Link of the cluster that we talk to calls it; there, if absent.
    pub(crate) cluster: Option<&'a str>,
    /// Namespace and `deploy/NAME`; anybody in the mesh if absent.
    pub(crate) from: Option<(&'a str, &'a str)>,
    pub(crate) to: Key,
    /// The first that the service has, if absent.
    pub(crate) port: Option<u16>,
    pub(crate) request: &'a http::Request<()>,
}

/// Looks, and judges.
pub(crate) async fn explain(
    cluster: &ClusterArgs,
    connection: Connection,
    question: Question<'_>,
) -> Result<Explanation, Problem> {
    let what = format!("cannot explain svc/{}", question.to.name);
    let others = Others::new(cluster);
    let place = match question.cluster {
        None => Place::open(connection.client, connection.context, &cluster.linkerd_namespace).await?,
        Some(name) => others
            .linked(&connection.client, name)
            .await
            .map_err(|why| Problem::new(&what, why, "hawser mc check"))?,
    };
    let caller = match question.from {
        None => Caller::Anybody,
        Some((namespace, workload)) => {
            let pods = workload::all_pods(&place.client, namespace, workload).await?;
            let pod = pods
                .iter()
                .find(|pod| crate::meshed::is_ready(pod))
                .or_else(|| pods.first());
            let pod = pod.ok_or_else(|| {
                let why = format!("{workload} has no pods");
                Problem::new(&what, why, format!("kubectl -n {namespace} get pods"))
            })?;
            Caller::Pod(look::calling_pod(pod))
        }
    };
    let asked = Asked {
        others: &others,
        request: question.request,
        hops: HOPS_MAX,
    };
    let seen = look::look(&place, asked, caller, question.to, question.port)
        .await
        .map_err(|why| Problem::new(&what, why, "hawser check"))?;
    Ok(judge::judge(&seen, question.request))
}

fn progress() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let progress = ProgressBar::new_spinner();
    progress.set_message("asking the control planes on the way");
    progress.enable_steady_tick(Duration::from_millis(100));
    progress
}
