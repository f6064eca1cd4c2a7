//! `hawser upgrade`: the control plane rendered again, from what it was installed with.
//!
//! Reads three Secrets and changes nothing. Issuer and webhook certificate stay as they are unless flags replace them,
//! so that running proxies don't notice.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use hawser_control::values;
use k8s_openapi::api::core::v1::Secret;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde_json::Value;

use super::{Settings, credentials, manifests, print, settle};
use crate::problem::Problem;

/// Render the control plane again, with other settings: hawser upgrade | kubectl apply -f -
#[derive(Debug, clap::Args)]
pub(crate) struct UpgradeArgs {
    #[command(flatten)]
    settings: Settings,
    /// Path of the kubeconfig
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig
    #[arg(long)]
    context: Option<String>,
    /// Print only the CustomResourceDefinitions
    #[arg(long)]
    crds: bool,
    /// Skip the check that the issuer is trusted by the anchors
    #[arg(long)]
    force: bool,
}

const CLUSTER_TIMEOUT: Duration = Duration::from_secs(20);

#[expect(clippy::print_stderr, reason = "this is the command line's voice")]
pub(crate) fn run(args: UpgradeArgs) -> Result<ExitCode, Problem> {
    if args.crds {
        print(&manifests::definitions())?;
        return Ok(ExitCode::SUCCESS);
    }
    let installed = crate::block_on(async {
        let read = Installed::read(&args);
        tokio::time::timeout(CLUSTER_TIMEOUT, read)
            .await
            .unwrap_or_else(|_| {
                Err(Problem::new(
                    "cannot read the installed settings",
                    "the cluster does not answer",
                    "kubectl get nodes",
                ))
            })
    })?;
    let anchors_replaced = args.settings.files().anchors.is_some();
    let mut mesh = settle(&args.settings, installed.overrides)?;
    if !mesh.values.identity.external_ca {
        let issuer = &mut mesh.values.identity.issuer.tls;
        [issuer.crt_pem, issuer.key_pem] = installed.issuer;
    }
    let injector = &mut mesh.values.proxy_injector;
    if injector.crt_pem.is_empty() {
        [injector.crt_pem, injector.key_pem] = installed.webhook;
        // Self-signed when it was made by install; others bring their own bundle.
        if injector.ca_bundle.is_empty() {
            injector.ca_bundle.clone_from(&injector.crt_pem);
        }
    }
    let files = args.settings.files();
    let checked = credentials::complete(&mut mesh.values, &mesh.namespace, &files, SystemTime::now());
    match checked {
        Err(problem) if !args.force => return Err(problem),
        _ => {}
    }
    print(&manifests::render(&mesh))?;
    if anchors_replaced {
        eprintln!(
            "note: new trust anchors reach pods that are created from now on; restart the others before you remove an \
             old root from the bundle"
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// What a cluster remembers of its installation.
struct Installed {
    overrides: Value,
    /// Certificate and key.
    issuer: [String; 2],
    webhook: [String; 2],
}

impl Installed {
    async fn read(args: &UpgradeArgs) -> Result<Self, Problem> {
        let failed = |why: Box<dyn std::error::Error>| {
            Problem::new(
                "cannot find the cluster to talk to",
                why,
                "give --kubeconfig or --context, or set KUBECONFIG",
            )
        };
        let kubeconfig = match &args.kubeconfig {
            Some(path) => Kubeconfig::read_from(path),
            None => Kubeconfig::read(),
        };
        let options = KubeConfigOptions {
            context: args.context.clone(),
            ..KubeConfigOptions::default()
        };
        let config =
            Config::from_custom_kubeconfig(kubeconfig.map_err(|error| failed(error.into()))?, &options)
                .await
                .map_err(|error| failed(error.into()))?;
        let client = Client::try_from(config).map_err(|error| failed(error.into()))?;
        let secrets: Api<Secret> = Api::namespaced(client, &args.settings.namespace);
        let name = "linkerd-config-overrides";
        let overrides = get(&secrets, name).await?.remove(name).unwrap_or_default();
        let overrides = values::yaml(&overrides).map_err(|error| {
            Problem::new(
                "cannot read the stored settings",
                error,
                "render with hawser install instead",
            )
        })?;
        let pair = |data: &BTreeMap<String, String>, names: [[&str; 2]; 2]| {
            let found = names.into_iter().find(|names| data.contains_key(names[0]));
            found
                .map(|names| names.map(|name| data.get(name).cloned().unwrap_or_default()))
                .unwrap_or_default()
        };
        let (pem, tls) = (["crt.pem", "key.pem"], ["tls.crt", "tls.key"]);
        let issuer = pair(&get(&secrets, "linkerd-identity-issuer").await?, [pem, tls]);
        let webhook = pair(
            &get(&secrets, "linkerd-proxy-injector-k8s-tls").await?,
            [tls, pem],
        );
        Ok(Self {
            overrides,
            issuer,
            webhook,
        })
    }
}

/// The texts of a Secret.
async fn get(secrets: &Api<Secret>, name: &str) -> Result<BTreeMap<String, String>, Problem> {
    let secret = secrets.get(name).await.map_err(|error| {
        Problem::new(
            format!("cannot read the secret {name}"),
            error,
            "check that the mesh is installed: kubectl -n linkerd get secrets; otherwise use hawser install",
        )
    })?;
    let data = secret.data.unwrap_or_default();
    Ok(data
        .into_iter()
        .filter_map(|(key, value)| Some((key, String::from_utf8(value.0).ok()?)))
        .collect())
}
