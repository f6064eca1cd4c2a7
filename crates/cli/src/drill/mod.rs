//! `hawser drill`: a failover on purpose, while somebody watches.
//!
//! The failover controller does it: an annotation of the TrafficSplit names backends that it shall leave, with an end
//! that lies seconds away and is renewed only while this command watches. So a drill ends by itself when the command is
//! killed or loses the API server, and the controller breaks it off when nobody else can serve. [`outlook`] says what
//! would happen, [`watch`] carries it out.

mod outlook;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{IsTerminal, Write as _};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use hawser_control::view::objects::{self, Discovery};
use hawser_core::{Namespace, ServiceName};
use hawser_crd::{TrafficSplit, keys};
use hawser_viz::Kind;
use hawser_viz::api::{Objects, Question};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use serde_json::json;

use self::outlook::{Backend, Limits, Outlook, Seen, Traffic, limits, outlook};
use crate::explain;
use crate::kube::{ClusterArgs, is_missing, problem};
use crate::output::write_out;
use crate::problem::Problem;
use crate::viz::Source;

/// Fail over on purpose, watch what happens, and come back
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The service needs a TrafficSplit that the failover controller looks after. Traffic returns when the drill ends, when it \
breaches the limits, on Ctrl-C, and within seconds after this command is killed.

Exit code: 0 if all went well (with --dry-run: if it may be done), 1 if not, 2 if the question makes no sense.

Examples:
  hawser drill svc/web-svc --backend web-svc --dry-run -n emojivoto   who would get how many requests?
  hawser drill svc/web-svc --cluster east --for 5m --yes -n emojivoto
  hawser drill svc/web-svc --cluster east --min-success-rate 99% --max-latency 300ms")]
pub(crate) struct DrillArgs {
    /// The service that clients ask: svc/NAME
    #[arg(value_parser = explain::service)]
    service: ServiceName,
    /// Its backends of this linked cluster fail
    #[arg(long, value_name = "CLUSTER", required_unless_present = "backend")]
    cluster: Option<String>,
    /// This backend of its TrafficSplit fails; may be repeated
    #[arg(long, value_name = "SERVICE", value_parser = explain::service)]
    backend: Vec<ServiceName>,
    #[arg(short, long, default_value = "default")]
    namespace: Namespace,
    /// How long to stay failed over
    #[arg(long = "for", value_name = "DURATION", default_value = "1m", value_parser = length)]
    length: Duration,
    /// Only say what would happen
    #[arg(long)]
    dry_run: bool,
    /// Don't ask
    #[arg(short, long)]
    yes: bool,
    /// Drill although something speaks against it
    #[arg(long)]
    force: bool,
    /// Break off when fewer requests succeed [default: the split's threshold, or 95%]
    #[arg(long, value_name = "SHARE", value_parser = share)]
    min_success_rate: Option<f64>,
    /// Break off when the 95th percentile takes longer [default: the split's threshold, or never]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    max_latency: Option<Duration>,
    /// Over which time requests are counted
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    window: Duration,
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    /// Namespace of the viz extension, whose collector is asked
    #[arg(long, value_name = "NAMESPACE", default_value = keys::VIZ_NAMESPACE)]
    viz_namespace: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    #[default]
    Table,
    Json,
}

fn duration(text: &str) -> Result<Duration, String> {
    let duration = hawser_crd::link::parse_duration(text).filter(|duration| !duration.is_zero());
    duration.ok_or_else(|| "not a duration, such as 30s or 5m".to_owned())
}

/// Longer ones are no drills.
const LENGTH_MAX: Duration = Duration::from_secs(3600);

fn length(text: &str) -> Result<Duration, String> {
    let length = duration(text)?;
    if length > LENGTH_MAX {
        return Err("more than an hour is no drill".to_owned());
    }
    Ok(length)
}

fn share(text: &str) -> Result<f64, String> {
    let share: Option<f64> = match text.strip_suffix('%') {
        Some(percent) => percent
            .trim_end()
            .parse::<f64>()
            .ok()
            .map(|percent| percent / 100.0),
        None => text.parse().ok(),
    };
    let share = share.filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "not a share, such as 0.95 or 95%".to_owned())
}

/// The question makes no sense.
const USAGE: u8 = 2;

pub(crate) async fn run(cluster: &ClusterArgs, args: DrillArgs) -> Result<ExitCode, Problem> {
    let what = format!("cannot drill svc/{}", args.service);
    let is_asked = std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
    if !args.dry_run && !args.yes && !is_asked {
        let why = "it moves traffic, and there is no terminal on which to ask whether it may";
        Problem::new(what, why, "--dry-run to see what would happen, --yes to do it").print();
        return Ok(ExitCode::from(USAGE));
    }
    let client = cluster.connect().await?.client;
    let split = split(&client, &args).await?;
    let mut source = Source::near(&client, &args.viz_namespace).await?;
    let seen = look(&client, &mut source, split, args.window).await?;
    let drilled = drilled(&seen, &args)?;
    let limits = limits(&seen.split, args.min_success_rate, args.max_latency);
    let now = SystemTime::now();
    let outlook = outlook(&seen, &drilled, limits, now).map_err(|why| {
        Problem::new(
            &what,
            why,
            "kubectl describe trafficsplit: its Events say what is wrong",
        )
    })?;
    if args.dry_run {
        write_out(&shown(&args, &outlook))?;
        return Ok(code(outlook.permits(args.force)));
    }
    if !outlook.permits(args.force) {
        write_out(&shown(&args, &outlook))?;
        let why = outlook.objections.iter().map(|objection| objection.what.as_str());
        let attempt = match outlook.permits(true) {
            true => "--force, if that is what you want to know",
            false => "hawser failover status",
        };
        return Err(Problem::new(what, why.collect::<Vec<_>>().join("; "), attempt));
    }
    say(&plan_text(&args, &outlook, &drilled));
    if !args.yes && !agreed().await {
        let why = "nobody said yes";
        return Err(Problem::new(what, why, "--yes, or answer with yes"));
    }
    let drill = watch::Drill {
        client,
        split: seen.split,
        drilled,
        outlook,
        length: args.length,
        window: args.window,
    };
    let report = watch::run(drill, source).await?;
    write_out(&match args.output {
        Format::Table => report.text(),
        Format::Json => format!("{:#}\n", json!(report)),
    })?;
    Ok(code(report.passed))
}

fn code(fine: bool) -> ExitCode {
    if fine {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn shown(args: &DrillArgs, outlook: &Outlook) -> String {
    match args.output {
        Format::Table => outlook.text(),
        Format::Json => format!("{:#}\n", json!(outlook)),
    }
}

/// What will be done, before it is.
fn plan_text(args: &DrillArgs, outlook: &Outlook, drilled: &BTreeSet<String>) -> String {
    let Limits {
        success_min,
        latency_max_ms,
    } = outlook.limits;
    let latency = latency_max_ms.map_or_else(String::new, |latency| {
        format!(" or take longer than {latency:.0} ms")
    });
    let names: Vec<&str> = drilled.iter().map(String::as_str).collect();
    format!(
        "{}\nfor {} s trafficsplit {} leaves {}, as if failed; then traffic returns step by step.\n\
         It is broken off when fewer than {:.1} % of requests succeed{latency}, on Ctrl-C, and {} s after this command dies.",
        outlook.text(),
        args.length.as_secs(),
        outlook.split,
        names.join(", "),
        success_min * 100.0,
        watch::LEASE.as_secs(),
    )
}

/// Whether the person at the terminal says yes.
async fn agreed() -> bool {
    let asking = tokio::task::spawn_blocking(|| {
        let mut stderr = std::io::stderr();
        let _ = write!(stderr, "do it? (yes/no) ");
        let _ = stderr.flush();
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer).is_ok() && matches!(answer.trim(), "y" | "yes")
    });
    asking.await.unwrap_or(false)
}

/// The split that governs the service.
async fn split(client: &Client, args: &DrillArgs) -> Result<TrafficSplit, Problem> {
    let what = format!("cannot drill svc/{}", args.service);
    let splits: Api<TrafficSplit> = Api::namespaced(client.clone(), args.namespace.as_str());
    let found = match splits.list(&ListParams::default()).await {
        Ok(list) => list.items,
        Err(error) if is_missing(&error) => Vec::new(),
        Err(error) => return Err(problem(what, error)),
    };
    let mut found = found
        .into_iter()
        .filter(|split| split.spec.service == args.service.as_str());
    match (found.next(), found.next()) {
        (Some(split), None) => Ok(split),
        (Some(_), Some(_)) => {
            let why = "several TrafficSplits claim it";
            Err(Problem::new(
                what,
                why,
                "delete those that don't count: kubectl get trafficsplits",
            ))
        }
        (None, _) => {
            let why = format!(
                "no TrafficSplit in {} is for it: nobody would stand in",
                args.namespace
            );
            Err(Problem::new(what, why, "see docs/failover.md"))
        }
    }
}

/// Whom the drill is about.
fn drilled(seen: &Seen, args: &DrillArgs) -> Result<BTreeSet<String>, Problem> {
    let what = format!("cannot drill svc/{}", args.service);
    let names = || -> Vec<&str> {
        seen.backends
            .iter()
            .map(|backend| backend.service.as_str())
            .collect()
    };
    let mut drilled = BTreeSet::new();
    for backend in &args.backend {
        if !names().contains(&backend.as_str()) {
            let why = format!(
                "{backend} is not a backend of trafficsplit {}",
                seen.split.name_any()
            );
            let attempt = format!("--backend with one of: {}", names().join(", "));
            return Err(Problem::new(what, why, attempt));
        }
        drilled.insert(backend.to_string());
    }
    if let Some(cluster) = &args.cluster {
        let of_cluster = seen
            .backends
            .iter()
            .filter(|backend| backend.cluster.as_ref() == Some(cluster));
        let before = drilled.len();
        drilled.extend(of_cluster.map(|backend| backend.service.clone()));
        if drilled.len() == before {
            let known: BTreeSet<&str> = seen
                .backends
                .iter()
                .filter_map(|backend| backend.cluster.as_deref())
                .collect();
            let why = format!(
                "no backend of trafficsplit {} is in cluster {cluster}",
                seen.split.name_any()
            );
            let known = known.into_iter().collect::<Vec<_>>().join(", ");
            let attempt = format!(
                "--cluster with one of: {known}; or --backend with one of: {}",
                names().join(", ")
            );
            return Err(Problem::new(what, why, attempt));
        }
    }
    Ok(drilled)
}

async fn look(
    client: &Client,
    source: &mut Source,
    split: TrafficSplit,
    window: Duration,
) -> Result<Seen, Problem> {
    let what = "cannot look at the backends";
    let namespace = split.namespace().unwrap_or_default();
    let services: Api<Service> = Api::namespaced(client.clone(), &namespace);
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), &namespace);
    let traffic = traffic(source, &split, window).await?;
    let mut backends = Vec::new();
    for backend in &split.spec.backends {
        let service = services.get_opt(&backend.service).await;
        let service = service.map_err(|error| problem(what, error))?;
        let query = format!("{}={}", keys::LABEL_SERVICE_NAME, backend.service);
        let slices = slices.list(&ListParams::default().labels(&query)).await;
        let slices = slices.map_err(|error| problem(what, error))?.items;
        let endpoints = slices.iter().flat_map(|slice| &slice.endpoints);
        let ready = endpoints.filter(|endpoint| {
            let conditions = endpoint.conditions.as_ref();
            conditions.and_then(|conditions| conditions.ready).unwrap_or(true)
        });
        backends.push(Backend {
            service: backend.service.clone(),
            cluster: service.as_ref().and_then(cluster_of),
            ready: ready.map(|endpoint| endpoint.addresses.len()).sum(),
            traffic: traffic.get(&backend.service).copied().unwrap_or_default(),
        });
    }
    Ok(Seen {
        controller: controller(client, &split).await,
        split,
        backends,
        window,
    })
}

/// The linked cluster for which a Service stands.
fn cluster_of(service: &Service) -> Option<String> {
    match objects::Service::parse(service).discovery() {
        Discovery::Remote { cluster, .. } => Some(cluster),
        Discovery::Local | Discovery::Federated { .. } => service.labels().get(keys::CLUSTER_NAME).cloned(),
    }
}

/// The requests to each backend, as their clients see them.
async fn traffic(
    source: &mut Source,
    split: &TrafficSplit,
    window: Duration,
) -> Result<BTreeMap<String, Traffic>, Problem> {
    let question = Question {
        objects: Objects {
            kind: Kind::Service,
            name: None,
            namespace: split.namespace(),
        },
        towards: None,
        window,
    };
    let rows = source.stat(&question).await?;
    let wanted = |service: &str| {
        split
            .spec
            .backends
            .iter()
            .any(|backend| backend.service == service)
    };
    let rows = rows.iter().filter(|row| wanted(&row.name));
    Ok(rows.map(|row| (row.name.clone(), Traffic::of(row))).collect())
}

/// Whether a failover controller looks after the split.
async fn controller(client: &Client, split: &TrafficSplit) -> Result<(), String> {
    let deployments: Api<Deployment> = Api::all(client.clone());
    let query = format!("metadata.name={}", keys::FAILOVER_NAMESPACE);
    let found = deployments.list(&ListParams::default().fields(&query)).await;
    let found = found.map_err(|error| error.to_string())?.items;
    let Some(deployment) = found.first() else {
        return Err("the failover extension is not installed".to_owned());
    };
    let status = deployment.status.as_ref();
    if status.and_then(|status| status.available_replicas).unwrap_or(0) == 0 {
        return Err("the failover controller does not run".to_owned());
    }
    let spec = deployment
        .spec
        .as_ref()
        .and_then(|spec| spec.template.spec.as_ref());
    let args: Vec<&String> = spec
        .iter()
        .flat_map(|spec| &spec.containers)
        .flat_map(|container| container.args.iter().flatten())
        .collect();
    let given = args.iter().find_map(|arg| arg.strip_prefix("--selector="));
    let selector = given.unwrap_or(keys::FAILOVER_CONTROLLED_BY);
    let is_selected = match selector.split_once('=') {
        Some((label, value)) => split.labels().get(label).map(String::as_str) == Some(value),
        None => split.labels().contains_key(selector),
    };
    match is_selected {
        true => Ok(()),
        false => Err(format!("the split has no label {selector}")),
    }
}

#[expect(clippy::print_stderr, reason = "this is the command line's voice")]
fn say(text: &str) {
    eprintln!("{text}");
}
