//! `hawser inject` and `hawser uninject`: manifests in, manifests with or without proxies out.
//!
//! Documents go to stdout, the report to stderr, so that `| kubectl apply -f -` works. What happens to a document is
//! decided in `hawser_control::injector::cli`; here are only files, flags and words.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use hawser_control::injector::Skip;
use hawser_control::injector::cli::{self, Manual, Options, Outcome, Report};
use hawser_control::values::Values;
use serde_json::Value;

use crate::problem::Problem;

/// Add the mesh's proxy to workloads: hawser inject app.yml | kubectl apply -f -
#[derive(Debug, clap::Args)]
pub(crate) struct InjectArgs {
    /// Files or directories with manifests; - is standard input
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// Render the proxy now instead of leaving it to the cluster's webhook
    #[arg(long)]
    manual: bool,
    /// With --manual: the values of the mesh (ConfigMap linkerd-config, key values); defaults if absent
    #[arg(long, value_name = "FILE", requires = "manual")]
    values: Option<PathBuf>,
    /// With --manual: accepted for compatibility, the cluster is never asked
    #[arg(long, hide = true)]
    ignore_cluster: bool,
    /// Namespace of the control plane
    #[arg(long = "linkerd-namespace", short = 'L', default_value = "linkerd")]
    namespace: String,
    /// For ingress controllers: route by header
    #[arg(long)]
    ingress: bool,
    /// Add a container with network tools
    #[arg(long)]
    enable_debug_sidecar: bool,
    /// Sets nf_conntrack_tcp_timeout_close_wait
    #[arg(long, value_name = "DURATION")]
    close_wait_timeout: Option<String>,
    /// Ports whose bytes the proxy doesn't look at
    #[arg(long, value_name = "PORTS")]
    opaque_ports: Option<String>,
    /// Inbound ports that bypass the proxy
    #[arg(long, value_name = "PORTS")]
    skip_inbound_ports: Option<String>,
    /// Outbound ports that bypass the proxy
    #[arg(long, value_name = "PORTS")]
    skip_outbound_ports: Option<String>,
    #[arg(long)]
    default_inbound_policy: Option<String>,
    #[arg(long)]
    require_identity_on_inbound_ports: Option<String>,
    #[arg(long)]
    proxy_image: Option<String>,
    #[arg(long)]
    proxy_version: Option<String>,
    #[arg(long)]
    proxy_log_level: Option<String>,
    #[arg(long)]
    proxy_cpu_request: Option<String>,
    #[arg(long)]
    proxy_cpu_limit: Option<String>,
    #[arg(long)]
    proxy_memory_request: Option<String>,
    #[arg(long)]
    proxy_memory_limit: Option<String>,
    #[arg(long)]
    native_sidecar: bool,
    #[arg(long, short, value_enum, default_value_t)]
    output: Format,
}

/// Take the mesh's proxy out of workloads
#[derive(Debug, clap::Args)]
pub(crate) struct UninjectArgs {
    /// Files or directories with manifests; - is standard input
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    #[arg(long, short, value_enum, default_value_t)]
    output: Format,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    #[default]
    Yaml,
    Json,
}

pub(crate) fn inject(args: InjectArgs) -> Result<ExitCode, Problem> {
    let manual = if args.manual { Some(manual(&args)?) } else { None };
    let options = Options {
        ingress: args.ingress,
        annotations: annotations(&args),
        manual,
    };
    let reports = convert(&args.paths, args.output, &|document| {
        cli::inject(document, &options)
    })?;
    let impossible = |report: &Report| {
        matches!(
            report.outcome,
            Outcome::Skipped(Skip::HostNetwork | Skip::SidecarExists | Skip::NoToken)
        )
    };
    Ok(if reports.iter().any(impossible) {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

pub(crate) fn uninject(args: UninjectArgs) -> Result<ExitCode, Problem> {
    convert(&args.paths, args.output, &cli::uninject)?;
    Ok(ExitCode::SUCCESS)
}

fn manual(args: &InjectArgs) -> Result<Manual, Problem> {
    let values = match &args.values {
        None => Values::default(),
        Some(path) => Values::from_yaml(&read(path)?).map_err(|error| {
            let attempt = "kubectl -n linkerd get cm linkerd-config -o jsonpath='{.data.values}' shows what is expected";
            Problem::new(format!("cannot use the values in {}", path.display()), error, attempt)
        })?,
    };
    Ok(Manual {
        values,
        control_plane_namespace: args.namespace.clone(),
    })
}

fn annotations(args: &InjectArgs) -> BTreeMap<String, String> {
    let flag = |set: bool| set.then(|| "true".to_owned());
    [
        ("enable-debug-sidecar", flag(args.enable_debug_sidecar)),
        ("close-wait-timeout", args.close_wait_timeout.clone()),
        ("opaque-ports", args.opaque_ports.clone()),
        ("skip-inbound-ports", args.skip_inbound_ports.clone()),
        ("skip-outbound-ports", args.skip_outbound_ports.clone()),
        ("default-inbound-policy", args.default_inbound_policy.clone()),
        (
            "proxy-require-identity-inbound-ports",
            args.require_identity_on_inbound_ports.clone(),
        ),
        ("proxy-image", args.proxy_image.clone()),
        ("proxy-version", args.proxy_version.clone()),
        ("proxy-log-level", args.proxy_log_level.clone()),
        ("proxy-cpu-request", args.proxy_cpu_request.clone()),
        ("proxy-cpu-limit", args.proxy_cpu_limit.clone()),
        ("proxy-memory-request", args.proxy_memory_request.clone()),
        ("proxy-memory-limit", args.proxy_memory_limit.clone()),
        ("proxy-enable-native-sidecar", flag(args.native_sidecar)),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some((format!("config.linkerd.io/{name}"), value?)))
    .collect()
}

/// Runs every document through `one` and writes it out; what happened is said on stderr.
#[expect(clippy::print_stderr, reason = "this is the command line's voice")]
fn convert(
    paths: &[PathBuf],
    format: Format,
    one: &dyn Fn(Value) -> (Value, Vec<Report>),
) -> Result<Vec<Report>, Problem> {
    let (mut documents, mut reports) = (Vec::new(), Vec::new());
    for text in texts(paths)? {
        let parsed: Vec<Value> = serde_saphyr::from_multiple(&text).map_err(|error| {
            Problem::new(
                "cannot read the manifests",
                error,
                "check them with: kubectl apply --dry-run=client -f",
            )
        })?;
        for document in parsed.into_iter().filter(|document| !document.is_null()) {
            let (document, more) = one(document);
            documents.push(document);
            reports.extend(more);
        }
    }
    let text = match format {
        Format::Yaml => super::install::yaml(&documents)?,
        Format::Json => documents
            .iter()
            .map(|document| format!("{document:#}\n"))
            .collect(),
    };
    if let Err(error) = std::io::stdout().write_all(text.as_bytes())
        && error.kind() != std::io::ErrorKind::BrokenPipe
    {
        return Err(Problem::new(
            "cannot write the manifests",
            error,
            "check the pipe behind standard output",
        ));
    }
    for report in &reports {
        eprintln!("{report}");
    }
    Ok(reports)
}

/// The files in the order given; a directory's in the order of their names.
fn texts(paths: &[PathBuf]) -> Result<Vec<String>, Problem> {
    let mut texts = Vec::new();
    for path in paths {
        if path == Path::new("-") {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map_err(|error| {
                Problem::new("cannot read standard input", error, "pipe YAML into this command")
            })?;
            texts.push(text);
        } else if path.is_dir() {
            let entries = std::fs::read_dir(path).map_err(|error| {
                Problem::new(format!("cannot read {}", path.display()), error, "check the path")
            })?;
            let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
            files.retain(|file| {
                file.extension()
                    .is_some_and(|kind| kind == "yml" || kind == "yaml" || kind == "json")
            });
            files.sort();
            for file in files {
                texts.push(read(&file)?);
            }
        } else {
            texts.push(read(path)?);
        }
    }
    Ok(texts)
}

fn read(path: &Path) -> Result<String, Problem> {
    std::fs::read_to_string(path)
        .map_err(|error| Problem::new(format!("cannot read {}", path.display()), error, "check the path"))
}
