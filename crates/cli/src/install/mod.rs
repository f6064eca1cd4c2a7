//! `hawser install`: the control plane as YAML, and `hawser upgrade`, which renders it again with other settings.
//!
//! Nothing here changes a cluster: the output goes through `kubectl apply`, so that it can be read, kept and compared.
//! What is rendered is decided in [`manifests`], purely; where trust comes from in [`credentials`].

pub(crate) mod credentials;
pub(crate) mod manifests;
mod running;
mod upgrade;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use hawser_control::values::{self, Values};
use serde_json::{Value, json};

use self::credentials::Files;
pub(crate) use self::upgrade::{UpgradeArgs, run as upgrade};
use crate::output::{self, OutputArgs, ValueArgs, print, yaml};
use crate::problem::Problem;

/// Render the control plane: hawser install | kubectl apply -f -
#[derive(Debug, clap::Args)]
pub(crate) struct InstallArgs {
    #[command(flatten)]
    settings: Settings,
    /// Print only the CustomResourceDefinitions (they are part of the whole output as well)
    #[arg(long)]
    crds: bool,
    /// Accepted for compatibility: the output never depends on a cluster
    #[arg(long, hide = true)]
    ignore_cluster: bool,
}

/// What a mesh can be told on the command line.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Settings {
    /// Namespace of the control plane
    #[arg(
        id = "linkerd_namespace",
        long = "linkerd-namespace",
        short = 'L',
        default_value = "linkerd"
    )]
    namespace: String,
    /// Bundle of the certificates that all proxies trust (PEM)
    #[arg(long, value_name = "FILE")]
    identity_trust_anchors_file: Option<PathBuf>,
    /// Certificate of the authority that issues proxies' certificates (PEM)
    #[arg(long, value_name = "FILE")]
    identity_issuer_certificate_file: Option<PathBuf>,
    /// Its private key (PEM)
    #[arg(long, value_name = "FILE")]
    identity_issuer_key_file: Option<PathBuf>,
    /// The issuer's Secret (kubernetes.io/tls) is kept by someone else, such as cert-manager
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false")]
    identity_external_issuer: bool,
    /// Suffix of all identities; the cluster domain if absent
    #[arg(long)]
    identity_trust_domain: Option<String>,
    /// Three replicas of everything, on different nodes; no pod starts without its proxy
    #[arg(long)]
    ha: bool,
    #[command(flatten)]
    values: ValueArgs,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) fn run(args: InstallArgs) -> Result<ExitCode, Problem> {
    let documents = if args.crds {
        manifests::definitions()
    } else {
        let mut mesh = settle(&args.settings, Value::Object(serde_json::Map::new()))?;
        credentials::complete(
            &mut mesh.values,
            &mesh.namespace,
            &args.settings.files(),
            SystemTime::now(),
        )?;
        manifests::render(&mesh)
    };
    print(&documents, args.settings.output.output)
}

/// The control plane as YAML, with credentials of its own if the values name none. For callers in this process.
pub(crate) fn manifests(values: &Values) -> Result<String, Problem> {
    let mut mesh = manifests::Mesh::new(values.clone(), "linkerd");
    mesh.overrides = values.overrides();
    credentials::complete(
        &mut mesh.values,
        &mesh.namespace,
        &Files::default(),
        SystemTime::now(),
    )?;
    yaml(&manifests::render(&mesh))
}

impl Settings {
    pub(crate) fn files(&self) -> Files {
        Files {
            anchors: self.identity_trust_anchors_file.clone(),
            issuer: self.identity_issuer_certificate_file.clone(),
            key: self.identity_issuer_key_file.clone(),
        }
    }
}

/// What `--ha` sets, as Linkerd's `values-ha.yaml` does: replicas that don't go down together, room for each of them,
/// and pods that wait for the injector instead of starting without a proxy.
fn highly_available() -> Value {
    let room = |cpu: &str, memory: &str| {
        json!({
            "cpu": {"request": cpu},
            "memory": {"request": memory, "limit": "250Mi"},
        })
    };
    json!({
        "controllerReplicas": 3,
        "enablePodAntiAffinity": true,
        "enablePodDisruptionBudget": true,
        "webhookFailurePolicy": "Fail",
        "controllerResources": room("100m", "50Mi"),
        "identityResources": room("100m", "10Mi"),
        "proxy": {"resources": room("100m", "20Mi")},
    })
}

/// Lays files and flags over what was set before.
#[expect(clippy::print_stderr, reason = "this is the command line's voice")]
pub(crate) fn settle(settings: &Settings, mut overrides: Value) -> Result<manifests::Mesh, Problem> {
    if settings.ha {
        values::merge(&mut overrides, highly_available());
    }
    let mut overrides = output::overrides(overrides, &settings.values)?;
    if let Some(domain) = &settings.identity_trust_domain {
        values::merge(&mut overrides, json!({"identityTrustDomain": domain}));
    }
    if settings.identity_external_issuer {
        let issuer = json!({"scheme": values::TLS_SCHEME});
        values::merge(&mut overrides, json!({"identity": {"issuer": issuer}}));
    }
    let (values, unknown) = Values::with_overrides(overrides.clone()).map_err(|error| {
        Problem::new(
            "cannot use the values",
            error,
            "compare names and types with the documentation",
        )
    })?;
    for name in unknown {
        eprintln!("note: the value {name} is not used");
    }
    if let Some(fault) = values.proxy.tracing.fault() {
        let attempt =
            "--set proxy.tracing.collector.endpoint=NAME:4317 and its meshIdentity, as docs/viz.md has it";
        return Err(Problem::new("cannot use the values", fault, attempt));
    }
    Ok(manifests::Mesh {
        overrides,
        ..manifests::Mesh::new(values, &settings.namespace)
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use ::kube::Api;
    use hawser_control::injector::webhook::Injector;
    use hawser_control::view::View;
    use hawser_control::view::watch::Watches;
    use hawser_control::{destination, policy};
    use hawser_runtime::{Metrics, Readiness};
    use hawser_sandbox::api::{Cluster, ClusterOptions, Identity};
    use k8s_openapi::api::authentication::v1::TokenReview;
    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    async fn create_all(admin: &::kube::Client, yaml: &str) {
        for object in serde_saphyr::from_multiple::<Value>(yaml).unwrap() {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let api_version = text(&object["apiVersion"]);
            let root = if api_version.contains('/') { "apis" } else { "api" };
            let namespace = object["metadata"]["namespace"].as_str();
            let namespace = namespace.map_or_else(String::new, |name| format!("namespaces/{name}/"));
            let path = format!(
                "/{root}/{api_version}/{namespace}{}s",
                text(&object["kind"]).to_lowercase()
            );
            let request = http::Request::post(&path).header("content-type", "application/json");
            let created: Result<Value, _> = admin
                .request(request.body(object.to_string().into_bytes()).unwrap())
                .await;
            assert!(created.is_ok(), "{path}: {created:?}");
        }
    }

    #[tokio::test]
    async fn each_part_may_do_what_it_does_and_not_more() {
        let cluster = Cluster::new(ClusterOptions::default());
        create_all(
            &cluster.client(Identity::admin()),
            &manifests(&Values::default()).unwrap(),
        )
        .await;
        let client = |account: &str| cluster.client(Identity::service_account("linkerd", account));

        for feeds in [&destination::FEEDS[..], &policy::FEEDS] {
            let mut watches =
                Watches::start(&Arc::new(View::default()), &client("linkerd-destination"), feeds);
            timeout(SOON, watches.listed())
                .await
                .expect("destination may watch all that it watches");
        }

        let readiness = Readiness::default();
        let injector = Arc::new(Injector::new(
            client("linkerd-proxy-injector"),
            "linkerd".into(),
            Metrics::default(),
        ));
        let (follower, loaded) = (injector.clone(), readiness.guard("configuration"));
        let follower = tokio::spawn(async move { follower.follow_configuration(loaded).await });
        timeout(SOON, readiness.ready())
            .await
            .expect("the injector may read its configuration");
        let review = json!({"request": {
            "uid": "1", "kind": {"kind": "Pod"}, "namespace": "linkerd",
            "object": {"metadata": {"annotations": {"linkerd.io/inject": "enabled"}}, "spec": {"containers": []}},
        }});
        let answer = injector.review(&review).await;
        assert!(
            answer["response"]["patch"].is_string(),
            "the injector may read namespaces: {answer}"
        );
        follower.abort();

        let review = TokenReview::default();
        let reviewed = async |account: &str| {
            let reviews: Api<TokenReview> = Api::all(client(account));
            match reviews.create(&Default::default(), &review).await {
                Err(::kube::Error::Api(status)) => status.code,
                _ => 201,
            }
        };
        assert_ne!(
            reviewed("linkerd-identity").await,
            403,
            "identity may review tokens"
        );
        assert_eq!(reviewed("linkerd-destination").await, 403, "nobody else may");
        for account in [
            "linkerd-identity",
            "linkerd-destination",
            "linkerd-proxy-injector",
        ] {
            let secrets: Api<k8s_openapi::api::core::v1::Secret> =
                Api::namespaced(client(account), "linkerd");
            let read = secrets.get("linkerd-identity-issuer").await;
            assert!(
                matches!(read, Err(::kube::Error::Api(status)) if status.code == 403),
                "{account} reads no secrets"
            );
        }
    }
}
