//! `hawser upgrade`: the control plane rendered again, from what it was installed with.
//!
//! Reads Secrets, a ConfigMap and, when anchors or issuer change, the running proxies; changes nothing. Issuer and
//! webhook certificate stay as they are unless flags replace them. What would break running proxies is refused.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use hawser_control::values;
use hawser_tls::{Issuer, TrustAnchors};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde_json::Value;

use super::running::{self, Breakage, Change};
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
    /// Render also what breaks running proxies, or credentials that don't fit together
    #[arg(long)]
    force: bool,
}

const CLUSTER_TIMEOUT: Duration = Duration::from_secs(60);
/// So many of the proxies that would break are named.
const NAMED_MAX: usize = 5;

/// What to apply, and what to say about it.
struct Planned {
    documents: Vec<Value>,
    notes: Vec<String>,
}

#[expect(clippy::print_stderr, reason = "this is the command line's voice")]
pub(crate) fn run(args: UpgradeArgs) -> Result<ExitCode, Problem> {
    if args.crds {
        print(&manifests::definitions())?;
        return Ok(ExitCode::SUCCESS);
    }
    let planned = crate::block_on(async {
        let planning = async {
            let client = connect(&args).await?;
            plan(&client, &args.settings, args.force, SystemTime::now()).await
        };
        tokio::time::timeout(CLUSTER_TIMEOUT, planning)
            .await
            .unwrap_or_else(|_| {
                Err(Problem::new(
                    "cannot read the installed settings",
                    "the cluster does not answer",
                    "kubectl get nodes",
                ))
            })
    })?;
    print(&planned.documents)?;
    for note in planned.notes {
        eprintln!("{note}");
    }
    Ok(ExitCode::SUCCESS)
}

async fn plan(
    client: &Client,
    settings: &Settings,
    force: bool,
    now: SystemTime,
) -> Result<Planned, Problem> {
    let installed = Installed::read(client, &settings.namespace).await?;
    let files = settings.files();
    let mut mesh = settle(settings, installed.overrides.clone())?;
    let values = &mut mesh.values;
    if let Some(bundle) = &installed.bundle {
        // What is in use, also if somebody else wrote it.
        values.identity_trust_anchors_pem.clone_from(bundle);
    }
    let keep_issuer = files.issuer.is_none() && files.key.is_none();
    if !values.identity.external_ca {
        let issuer = &mut values.identity.issuer.tls;
        [issuer.crt_pem, issuer.key_pem] = installed.issuer.clone();
    }
    let injector = &mut values.proxy_injector;
    if injector.crt_pem.is_empty() {
        [injector.crt_pem, injector.key_pem] = installed.webhook.clone();
        // Self-signed when it was made by install; others bring their own bundle.
        if injector.ca_bundle.is_empty() {
            injector.ca_bundle.clone_from(&injector.crt_pem);
        }
    }
    let mut notes = Vec::new();
    let checked = credentials::complete(&mut mesh.values, &mesh.namespace, &files, now);
    match checked {
        Err(problem) if !force => return Err(problem),
        Err(problem) => notes.push(format!("forced in spite of:\n{problem}")),
        Ok(()) => {}
    }
    if !mesh.values.identity.external_ca {
        let safe = installed.safe(client, &mesh, now).await;
        match safe {
            Err(problem) if !force => return Err(problem),
            Err(problem) => notes.push(format!("forced in spite of:\n{problem}")),
            Ok(more) => notes.extend(more),
        }
        let external = mesh.values.issuer_is_external() && keep_issuer;
        if external {
            // Somebody else writes that Secret.
            mesh.values.identity.issuer.tls = values::KeyPair::default();
        }
    }
    Ok(Planned {
        documents: manifests::render(&mesh),
        notes,
    })
}

async fn connect(args: &UpgradeArgs) -> Result<Client, Problem> {
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
    let config = Config::from_custom_kubeconfig(kubeconfig.map_err(|error| failed(error.into()))?, &options)
        .await
        .map_err(|error| failed(error.into()))?;
    Client::try_from(config).map_err(|error| failed(error.into()))
}

/// What a cluster remembers of its installation.
struct Installed {
    overrides: Value,
    /// What is believed now, if the cluster says.
    bundle: Option<String>,
    /// Certificate and key.
    issuer: [String; 2],
    webhook: [String; 2],
}

impl Installed {
    async fn read(client: &Client, namespace: &str) -> Result<Self, Problem> {
        let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
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
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
        let name = "linkerd-identity-trust-roots";
        let roots = maps
            .get_opt(name)
            .await
            .map_err(|error| crate::kube::problem(format!("cannot read the ConfigMap {name}"), error))?;
        let bundle = roots.and_then(|map| map.data?.remove("ca-bundle.crt"));
        Ok(Self {
            overrides,
            bundle,
            issuer,
            webhook,
        })
    }

    /// Would every running proxy still understand the others? What to tell the user, if so.
    async fn safe(
        &self,
        client: &Client,
        mesh: &manifests::Mesh,
        now: SystemTime,
    ) -> Result<Vec<String>, Problem> {
        let issuer = &mesh.values.identity.issuer.tls;
        let bundle = &mesh.values.identity_trust_anchors_pem;
        // Credentials that can't be read were complained about before.
        let (Ok(anchors), Ok(issuer)) = (
            TrustAnchors::from_pem(bundle),
            Issuer::from_pem(&issuer.crt_pem, &issuer.key_pem),
        ) else {
            return Ok(Vec::new());
        };
        let old_anchors = self
            .bundle
            .as_deref()
            .and_then(|bundle| TrustAnchors::from_pem(bundle).ok());
        let old_anchors = old_anchors.unwrap_or_else(|| anchors.clone());
        let [certificate, key] = &self.issuer;
        let old_issuer = Issuer::from_pem(certificate, key).ok();
        let reissued = old_issuer.as_ref().and_then(Issuer::fingerprint) != issuer.fingerprint();
        let same_anchors = anchors.same_set(&old_anchors);
        if same_anchors && !reissued {
            return Ok(Vec::new());
        }
        let running = running::observe(client, &mesh.namespace, &old_anchors)
            .await
            .map_err(|error| crate::kube::problem("cannot look at the running proxies", error))?;
        let change = Change {
            old_anchors: &old_anchors,
            anchors: &anchors,
            old_issuer: old_issuer.as_ref(),
            issuer: &issuer,
        };
        refuse(&running::broken(&running, &change, now))?;
        let mut notes = Vec::new();
        if !same_anchors {
            let (old, new) = (old_anchors.fingerprints(), anchors.fingerprints());
            notes.push(format!(
                "warning: the trust anchors change: {} added, {} removed. Proxies follow within seconds, without a \
                 restart (Linkerd's own need one). Linked clusters need the same bundle",
                new.difference(&old).count(),
                old.difference(&new).count()
            ));
        }
        if reissued {
            notes.push("note: the issuer changes; every proxy gets a new certificate within seconds".into());
        }
        Ok(notes)
    }
}

/// Names those who would break, those of the worse kind first.
fn refuse(broken: &[(&str, Breakage)]) -> Result<(), Problem> {
    let of = |kind: Breakage| -> Vec<&str> {
        let names = broken.iter().filter(|(_, breakage)| *breakage == kind);
        names.map(|(name, _)| *name).collect()
    };
    for (kind, why, attempt) in [
        (
            Breakage::DoesNotBelieveIssuer,
            "these do not believe the issuer",
            "first upgrade with only --identity-trust-anchors-file, a bundle of old and new roots; restart proxies that \
             do not follow; then bring the issuer. Or --force",
        ),
        (
            Breakage::IsNotBelieved,
            "the new bundle lacks the root that signed the certificates of these",
            "keep the old root in the bundle until every proxy has a certificate of the new issuer; restart those that \
             keep the old one. Or --force",
        ),
    ] {
        let names = of(kind);
        if names.is_empty() {
            continue;
        }
        let mut list = names
            .iter()
            .take(NAMED_MAX)
            .copied()
            .collect::<Vec<_>>()
            .join(", ");
        if names.len() > NAMED_MAX {
            list += &format!(" and {} more", names.len() - NAMED_MAX);
        }
        let what = format!("cannot upgrade without breaking {} running proxies", names.len());
        return Err(Problem::new(what, format!("{why}: {list}"), attempt));
    }
    Ok(())
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
