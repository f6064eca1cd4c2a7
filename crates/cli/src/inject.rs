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

use crate::kube::ClusterArgs;
use crate::problem::Problem;

/// Directories below each other beyond this are a loop.
const DEPTH_MAX: usize = 32;

/// Add the mesh's proxy to workloads
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kubectl get deploy -o yaml | hawser inject - | kubectl apply -f -   mesh what runs
  hawser inject app.yml db.yml manifests/ | kubectl apply -f -        mesh what is about to")]
pub(crate) struct InjectArgs {
    /// Files, or directories with all that is below them; - is standard input
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// Render the proxy now instead of leaving it to the cluster's webhook
    #[arg(long)]
    manual: bool,
    /// With --manual: the values of the mesh (ConfigMap linkerd-config, key values) instead of the cluster's
    #[arg(long, value_name = "FILE", requires = "manual")]
    values: Option<PathBuf>,
    /// With --manual: the defaults of a mesh instead of the cluster's values
    #[arg(long, conflicts_with = "values")]
    ignore_cluster: bool,
    /// For ingress controllers: route by header
    #[arg(long)]
    ingress: bool,
    #[command(flatten)]
    settings: Settings,
    #[arg(long, short, value_enum, default_value_t)]
    output: Format,
}

/// Take the mesh's proxy out of workloads
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kubectl get deploy -o yaml | hawser uninject - | kubectl apply -f -")]
pub(crate) struct UninjectArgs {
    /// Files, or directories with all that is below them; - is standard input
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

/// Declares the flags that become annotations, and the annotation of each.
macro_rules! settings {
    ($($(#[$meta:meta])* $field:ident: $type:ty => $annotation:literal,)*) => {
        /// What a proxy can be told where it runs.
        #[derive(Debug, Default, clap::Args)]
        struct Settings { $($(#[$meta])* #[arg(long)] $field: $type,)* }

        impl Settings {
            fn annotations(&self) -> BTreeMap<String, String> {
                [$(($annotation, self.$field.annotation()),)*]
                    .into_iter()
                    .filter_map(|(name, value)| Some((name.to_owned(), value?)))
                    .collect()
            }
        }
    };
}

/// A flag's value in an annotation, if it was given.
trait Setting {
    fn annotation(&self) -> Option<String>;
}

impl Setting for bool {
    fn annotation(&self) -> Option<String> {
        self.then(|| "true".to_owned())
    }
}

impl<T: ToString> Setting for Option<T> {
    fn annotation(&self) -> Option<String> {
        self.as_ref().map(T::to_string)
    }
}

settings! {
    /// Log every request: apache or json
    access_log: Option<String> => "config.linkerd.io/access-log",
    /// Port of the proxy's own endpoints
    admin_port: Option<u16> => "config.linkerd.io/admin-port",
    /// Sets nf_conntrack_tcp_timeout_close_wait, for example 20s
    #[arg(value_name = "DURATION")]
    close_wait_timeout: Option<String> => "config.linkerd.io/close-wait-timeout",
    /// Port of the proxy's tap
    control_port: Option<u16> => "config.linkerd.io/control-port",
    /// Who may connect where no policy says so, for example all-authenticated
    #[arg(value_name = "POLICY")]
    default_inbound_policy: Option<String> => "config.linkerd.io/default-inbound-policy",
    /// Add a container with network tools
    enable_debug_sidecar: bool => "config.linkerd.io/enable-debug-sidecar",
    /// Look up names outside of the cluster as well
    enable_external_profiles: bool => "config.linkerd.io/enable-external-profiles",
    #[arg(value_name = "POLICY")]
    image_pull_policy: Option<String> => "config.linkerd.io/image-pull-policy",
    /// Port on which the proxy accepts what comes
    inbound_port: Option<u16> => "config.linkerd.io/inbound-port",
    /// Run the proxy as a native sidecar
    native_sidecar: bool => "config.linkerd.io/proxy-enable-native-sidecar",
    /// Ports whose bytes the proxy doesn't look at
    #[arg(value_name = "PORTS")]
    opaque_ports: Option<String> => "config.linkerd.io/opaque-ports",
    /// Port on which the proxy accepts what goes
    outbound_port: Option<u16> => "config.linkerd.io/outbound-port",
    #[arg(value_name = "QUANTITY")]
    proxy_cpu_limit: Option<String> => "config.linkerd.io/proxy-cpu-limit",
    #[arg(value_name = "QUANTITY")]
    proxy_cpu_request: Option<String> => "config.linkerd.io/proxy-cpu-request",
    proxy_image: Option<String> => "config.linkerd.io/proxy-image",
    #[arg(value_name = "LEVEL")]
    proxy_log_level: Option<String> => "config.linkerd.io/proxy-log-level",
    #[arg(value_name = "QUANTITY")]
    proxy_memory_limit: Option<String> => "config.linkerd.io/proxy-memory-limit",
    #[arg(value_name = "QUANTITY")]
    proxy_memory_request: Option<String> => "config.linkerd.io/proxy-memory-request",
    proxy_uid: Option<u32> => "config.linkerd.io/proxy-uid",
    proxy_version: Option<String> => "config.linkerd.io/proxy-version",
    /// Inbound ports on which every client needs an identity
    #[arg(value_name = "PORTS")]
    require_identity_on_inbound_ports: Option<String> => "config.linkerd.io/proxy-require-identity-inbound-ports",
    /// How long the proxy lets connections end by themselves
    #[arg(value_name = "DURATION")]
    shutdown_grace_period: Option<String> => "config.linkerd.io/shutdown-grace-period",
    /// Inbound ports that bypass the proxy
    #[arg(value_name = "PORTS")]
    skip_inbound_ports: Option<String> => "config.linkerd.io/skip-inbound-ports",
    /// Outbound ports that bypass the proxy
    #[arg(value_name = "PORTS")]
    skip_outbound_ports: Option<String> => "config.linkerd.io/skip-outbound-ports",
    /// Networks that bypass the proxy
    #[arg(value_name = "NETWORKS")]
    skip_subnets: Option<String> => "config.linkerd.io/skip-subnets",
    /// How long the proxy waits for the application to end
    #[arg(value_name = "SECONDS")]
    wait_before_exit_seconds: Option<u32> => "config.alpha.linkerd.io/proxy-wait-before-exit-seconds",
}

pub(crate) fn inject(cluster: &ClusterArgs, args: InjectArgs) -> Result<ExitCode, Problem> {
    let texts = texts(&args.paths, &mut std::io::stdin())?;
    let options = Options {
        ingress: args.ingress,
        annotations: args.settings.annotations(),
        manual: args.manual.then(|| manual(cluster, &args)).transpose()?,
    };
    let converted = convert(&texts, args.output, &|document| cli::inject(document, &options))?;
    converted.write()?;
    Ok(converted.code())
}

pub(crate) fn uninject(args: UninjectArgs) -> Result<ExitCode, Problem> {
    let texts = texts(&args.paths, &mut std::io::stdin())?;
    convert(&texts, args.output, &cli::uninject)?.write()?;
    Ok(ExitCode::SUCCESS)
}

fn manual(cluster: &ClusterArgs, args: &InjectArgs) -> Result<Manual, Problem> {
    let values = match &args.values {
        None if args.ignore_cluster => Values::default(),
        None => crate::block_on(async {
            let client = cluster.connect().await?.client;
            crate::multicluster::mesh_values(&client, &cluster.linkerd_namespace).await
        })?,
        Some(path) => Values::from_yaml(&read(path)?).map_err(|error| {
            let attempt = "kubectl -n linkerd get cm linkerd-config -o jsonpath='{.data.values}' shows what is expected";
            Problem::new(format!("cannot use the values in {}", path.display()), error, attempt)
        })?,
    };
    Ok(Manual {
        values,
        control_plane_namespace: cluster.linkerd_namespace.clone(),
    })
}

/// What is to be written where.
#[derive(Debug)]
struct Converted {
    documents: String,
    reports: Vec<Report>,
}

impl Converted {
    #[expect(clippy::print_stderr, reason = "this is the command line's voice")]
    fn write(&self) -> Result<(), Problem> {
        crate::output::write_out(&self.documents)?;
        // Lines of their own, between the manifests and what kubectl says of them.
        eprintln!("\n{}", self.summary());
        std::io::stderr().flush().ok();
        Ok(())
    }

    fn summary(&self) -> String {
        self.reports.iter().map(|report| format!("{report}\n")).collect()
    }

    /// Fails where a workload can't have a proxy, or nothing could.
    fn code(&self) -> ExitCode {
        let impossible = |report: &Report| {
            let refused = matches!(
                report.outcome,
                Outcome::Skipped(Skip::HostNetwork | Skip::SidecarExists | Skip::NoToken)
            );
            refused || report.udp
        };
        let idle = |report: &Report| matches!(report.outcome, Outcome::Skipped(_));
        if self.reports.iter().any(impossible) || self.reports.iter().all(idle) {
            ExitCode::FAILURE
        } else {
            ExitCode::SUCCESS
        }
    }
}

/// Runs every document through `one`.
fn convert(
    texts: &[(String, String)],
    format: Format,
    one: &dyn Fn(Value) -> (Value, Vec<Report>),
) -> Result<Converted, Problem> {
    let (mut documents, mut reports) = (Vec::new(), Vec::new());
    for (source, text) in texts {
        let parsed: Vec<Value> = serde_saphyr::from_multiple(text).map_err(|error| {
            Problem::new(
                format!("cannot read the manifests in {source}"),
                error,
                "check them with: kubectl apply --dry-run=client -f",
            )
        })?;
        for document in parsed.into_iter().filter(|document| !document.is_null()) {
            if !document.is_object() {
                return Err(Problem::new(
                    format!("cannot read the manifests in {source}"),
                    "a document is not an object",
                    "check them with: kubectl apply --dry-run=client -f",
                ));
            }
            let (document, more) = one(document);
            documents.push(document);
            reports.extend(more);
        }
    }
    let documents = match format {
        Format::Yaml => crate::output::yaml(&documents)?,
        Format::Json => documents
            .iter()
            .map(|document| format!("{document:#}\n"))
            .collect(),
    };
    Ok(Converted { documents, reports })
}

/// Names and contents: files in the order given, what is below a directory in the order of its names.
fn texts(paths: &[PathBuf], stdin: &mut dyn Read) -> Result<Vec<(String, String)>, Problem> {
    let mut texts = Vec::new();
    for path in paths {
        let name = path.display().to_string();
        if path == Path::new("-") {
            let mut text = String::new();
            stdin.read_to_string(&mut text).map_err(|error| {
                Problem::new("cannot read standard input", error, "pipe YAML into this command")
            })?;
            texts.push(("standard input".to_owned(), text));
        } else if name.starts_with("http://") || name.starts_with("https://") {
            return Err(Problem::new(
                format!("cannot read {name}"),
                "addresses are not fetched: what goes into a cluster should be seen first",
                format!("curl -fsSL {name} | hawser inject -"),
            ));
        } else {
            let mut files = Vec::new();
            if path.is_dir() {
                walk(path, DEPTH_MAX, &mut files)?;
            } else {
                files.push(path.clone());
            }
            for file in files {
                texts.push((file.display().to_string(), read(&file)?));
            }
        }
    }
    Ok(texts)
}

/// Manifests below a directory.
fn walk(directory: &Path, depth: usize, files: &mut Vec<PathBuf>) -> Result<(), Problem> {
    let failed = |why: Box<dyn std::error::Error>| {
        Problem::new(
            format!("cannot read {}", directory.display()),
            why,
            "check the path",
        )
    };
    let Some(depth) = depth.checked_sub(1) else {
        return Err(failed("directories are nested too deeply".into()));
    };
    let entries = std::fs::read_dir(directory).and_then(|entries| {
        let paths = entries.map(|entry| Ok(entry?.path()));
        paths.collect::<Result<Vec<_>, std::io::Error>>()
    });
    let mut entries = entries.map_err(|error| failed(error.into()))?;
    entries.sort();
    for entry in entries {
        if entry.is_dir() {
            walk(&entry, depth, files)?;
        } else if entry
            .extension()
            .is_some_and(|kind| kind == "yml" || kind == "yaml" || kind == "json")
        {
            files.push(entry);
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<String, Problem> {
    std::fs::read_to_string(path)
        .map_err(|error| Problem::new(format!("cannot read {}", path.display()), error, "check the path"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const DEPLOYMENT: &str = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\n\
        spec: {template: {spec: {containers: [{name: web, image: web}]}}}\n";

    fn injected(text: &str, format: Format) -> Converted {
        convert(&[("app.yml".into(), text.into())], format, &|document| {
            cli::inject(document, &Options::default())
        })
        .unwrap()
    }

    #[test]
    fn a_list_from_kubectl_stays_a_list_with_annotated_workloads() {
        let list = json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": [
            serde_saphyr::from_str::<Value>(DEPLOYMENT).unwrap(),
            {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web-svc"}},
        ]});
        // What `kubectl get -o json` prints is YAML as well.
        let converted = injected(&list.to_string(), Format::Json);
        let back: Value = serde_json::from_str(&converted.documents).unwrap();
        let mut expected = list.clone();
        expected["items"][0]["spec"]["template"]["metadata"] =
            json!({"annotations": {"linkerd.io/inject": "enabled"}});
        assert_eq!(back, expected);
        assert_eq!(
            converted.summary(),
            "deployment \"web\" injected\nservice \"web-svc\" skipped\n"
        );
        assert_eq!(converted.code(), ExitCode::SUCCESS);
    }

    #[test]
    fn it_fails_where_nothing_or_not_everything_can_be_meshed() {
        let host = DEPLOYMENT.replace("{spec: {", "{spec: {hostNetwork: true, ");
        let both = format!("{DEPLOYMENT}---\n{host}");
        for (text, expected) in [
            (DEPLOYMENT, ExitCode::SUCCESS),
            (both.as_str(), ExitCode::FAILURE),
            ("kind: ConfigMap\nmetadata: {name: settings}\n", ExitCode::FAILURE),
            ("", ExitCode::FAILURE),
        ] {
            assert_eq!(injected(text, Format::Yaml).code(), expected, "{text}");
        }
    }

    #[test]
    fn flags_become_annotations_under_their_documented_names() {
        let settings = Settings {
            close_wait_timeout: Some("20s".into()),
            skip_inbound_ports: Some("25,587".into()),
            enable_debug_sidecar: true,
            admin_port: Some(9191),
            ..Settings::default()
        };
        let expected = [
            ("config.linkerd.io/admin-port", "9191"),
            ("config.linkerd.io/close-wait-timeout", "20s"),
            ("config.linkerd.io/enable-debug-sidecar", "true"),
            ("config.linkerd.io/skip-inbound-ports", "25,587"),
        ];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(settings.annotations(), BTreeMap::from(expected));
    }

    #[test]
    fn files_directories_and_standard_input_come_in_the_order_given() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        std::fs::create_dir_all(path("app/below")).unwrap();
        for (name, text) in [
            ("one.yml", "one"),
            ("app/b.yaml", "b"),
            ("app/a.json", "a"),
            ("app/below/c.yml", "c"),
            ("app/README.md", "not a manifest"),
        ] {
            std::fs::write(path(name), text).unwrap();
        }
        let paths = [path("one.yml"), PathBuf::from("-"), path("app")];
        let found = texts(&paths, &mut "stdin".as_bytes()).unwrap();
        let found: Vec<&str> = found.iter().map(|(_, text)| text.as_str()).collect();
        assert_eq!(found, ["one", "stdin", "a", "b", "c"]);
    }

    #[test]
    fn addresses_are_refused_with_the_command_that_does_it() {
        let url = PathBuf::from("https://run.linkerd.io/emojivoto.yml");
        let problem = texts(&[url], &mut std::io::empty()).unwrap_err().to_string();
        let expected = "try: curl -fsSL https://run.linkerd.io/emojivoto.yml | hawser inject -";
        assert!(problem.contains(expected), "{problem}");
    }

    #[test]
    fn what_is_no_manifest_is_refused_by_its_file() {
        for text in ["just words", "- a\n- list\n", "a: [b"] {
            let texts = [("app.yml".to_owned(), text.to_owned())];
            let problem = convert(&texts, Format::Yaml, &cli::uninject).unwrap_err();
            assert!(problem.to_string().contains("app.yml"), "{problem}");
        }
    }
}
