//! `hawser upgrade`: the control plane rendered again, from what it was installed with.
//!
//! Reads Secrets, a ConfigMap and, when anchors or issuer change, the running proxies; changes nothing. Issuer and
//! webhook certificate stay as they are unless flags replace them. What would break running proxies is refused.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use hawser_control::values;
use hawser_crd::keys;
use hawser_tls::{Issuer, TrustAnchors};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config, ResourceExt};
use serde_json::Value;

use super::running::{self, Breakage, Change};
use super::{Settings, credentials, manifests, settle};
use crate::output::print;
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

/// How the charts say who rendered an object.
const HELM: &str = "linkerd/helm ";
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
        return print(&manifests::definitions(), args.settings.output.output);
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
    let printed = print(&planned.documents, args.settings.output.output)?;
    for note in planned.notes {
        eprintln!("{note}");
    }
    Ok(printed)
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
        let name = "linkerd-config-overrides";
        let overrides = get(client, namespace, name)
            .await?
            .remove(name)
            .unwrap_or_default();
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
        let issuer = pair(
            &get(client, namespace, "linkerd-identity-issuer").await?,
            [pem, tls],
        );
        let webhook = pair(
            &get(client, namespace, "linkerd-proxy-injector-k8s-tls").await?,
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

/// The texts of a Secret that every installation has.
async fn get(client: &Client, namespace: &str, name: &str) -> Result<BTreeMap<String, String>, Problem> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let secret = match secrets.get_opt(name).await {
        Ok(Some(secret)) => secret,
        Ok(None) => return Err(missing(client, namespace, name).await),
        Err(error) => {
            return Err(crate::kube::problem(
                format!("cannot read the Secret {name}"),
                error,
            ));
        }
    };
    let data = secret.data.unwrap_or_default();
    Ok(data
        .into_iter()
        .filter_map(|(key, value)| Some((key, String::from_utf8(value.0).ok()?)))
        .collect())
}

/// Why such a Secret isn't there, as far as the mesh's configuration tells.
async fn missing(client: &Client, namespace: &str, name: &str) -> Problem {
    let what = "cannot read the installed settings";
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let map = match maps.get_opt(keys::CONFIG_MAP).await {
        Ok(Some(map)) => map,
        Ok(None) => {
            let why = format!("namespace {namespace} has no control plane");
            return Problem::new(
                what,
                why,
                "another -L NAMESPACE, or hawser install | kubectl apply -f -",
            );
        }
        Err(error) => return crate::kube::problem(what, error),
    };
    let by = map.annotations().get(keys::CREATED_BY);
    if by.is_some_and(|by| by.starts_with(HELM)) {
        let why = "the control plane was installed by Helm, which keeps the settings itself";
        let attempt = format!("helm upgrade; helm list -n {namespace} names the release");
        return Problem::new(what, why, attempt);
    }
    let why = format!("namespace {namespace} has no Secret {name}");
    Problem::new(
        what,
        why,
        "render with hawser install and the same credentials instead",
    )
}

#[cfg(test)]
mod tests {
    use hawser_control::values::TLS_SCHEME;
    use hawser_sandbox::api::{Cluster, ClusterOptions, Identity};
    use hawser_tls::{Validity, create_issuer, create_root};
    use k8s_openapi::api::core::v1::Pod;
    use kube::api::{Patch, PatchParams};
    use serde_json::json;
    use tempfile::TempDir;

    use super::*;
    use crate::apply::Applier;

    /// A root, and an issuer below it.
    struct Authority {
        root: String,
        issuer: String,
        key: String,
    }

    fn authority() -> Authority {
        let now = SystemTime::now();
        let validity = Validity {
            not_before: now - Duration::from_secs(60),
            not_after: now + Duration::from_secs(24 * 3600),
        };
        let root = create_root("root.test", validity).unwrap();
        let parent = Issuer::from_pem(&root.certificate_pem, &root.key.to_pem()).unwrap();
        let issuer = create_issuer("identity.test", &parent, validity).unwrap();
        Authority {
            root: root.certificate_pem,
            issuer: issuer.certificate_pem,
            key: issuer.key.to_pem(),
        }
    }

    /// A cluster with a mesh's configuration and pods that claim to run.
    struct World {
        client: Client,
        files: TempDir,
    }

    impl World {
        /// Installed with these, as far as upgrade reads it.
        async fn installed(authority: &Authority, set: &[&str]) -> Self {
            let cluster = Cluster::new(ClusterOptions::default());
            let world = Self {
                client: cluster.client(Identity::admin()),
                files: tempfile::tempdir().unwrap(),
            };
            let mut settings = world.settings(Some(&authority.root), Some(authority));
            settings.values.set = set.iter().map(|set| (*set).to_owned()).collect();
            let mut mesh = settle(&settings, json!({})).unwrap();
            credentials::complete(&mut mesh.values, "linkerd", &settings.files(), SystemTime::now()).unwrap();
            world.apply(manifests::render(&mesh)).await;
            world
        }

        /// What upgrade reads of what it rendered.
        async fn apply(&self, documents: Vec<Value>) {
            let mut applier = Applier::new(self.client.clone());
            let read = |object: &&Value| {
                ["Namespace", "ConfigMap", "Secret"].contains(&object["kind"].as_str().unwrap_or_default())
            };
            for object in documents.iter().filter(read) {
                applier.apply(object).await.unwrap();
            }
        }

        fn settings(&self, bundle: Option<&str>, authority: Option<&Authority>) -> Settings {
            let write = |name: &str, text: &str| {
                let path = self.files.path().join(name);
                std::fs::write(&path, text).unwrap();
                path
            };
            Settings {
                namespace: "linkerd".into(),
                identity_trust_anchors_file: bundle.map(|text| write("ca.crt", text)),
                identity_issuer_certificate_file: authority
                    .map(|authority| write("i.crt", &authority.issuer)),
                identity_issuer_key_file: authority.map(|authority| write("i.key", &authority.key)),
                ..Settings::default()
            }
        }

        async fn upgrade(&self, settings: &Settings, force: bool) -> Result<Planned, String> {
            let planned = plan(&self.client, settings, force, SystemTime::now()).await;
            planned.map_err(|problem| problem.to_string())
        }

        /// A pod whose proxy was started with a bundle, and can't be asked.
        async fn pod(&self, name: &str, bundle: &str) {
            let env = json!([{"name": "LINKERD2_PROXY_IDENTITY_TRUST_ANCHORS", "value": bundle}]);
            let pod = json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {
                    "namespace": "default", "name": name, "labels": {"linkerd.io/control-plane-ns": "linkerd"},
                },
                "spec": {"containers": [{"name": "linkerd-proxy", "image": "proxy", "env": env}]},
            });
            Applier::new(self.client.clone()).apply(&pod).await.unwrap();
            let pods: Api<Pod> = Api::namespaced(self.client.clone(), "default");
            let running = Patch::Merge(json!({"status": {"phase": "Running"}}));
            pods.patch_status(name, &PatchParams::default(), &running)
                .await
                .unwrap();
        }
    }

    fn find<'a>(planned: &'a Planned, kind: &str, name: &str) -> Option<&'a Value> {
        let mut documents = planned.documents.iter();
        documents.find(|object| object["kind"] == kind && object["metadata"]["name"] == name)
    }

    fn bundle(planned: &Planned) -> &str {
        let map = find(planned, "ConfigMap", "linkerd-identity-trust-roots").unwrap();
        map["data"]["ca-bundle.crt"].as_str().unwrap()
    }

    #[tokio::test]
    async fn without_flags_everything_stays_as_it_was_installed() {
        let a = authority();
        let world = World::installed(&a, &["proxy.logLevel=debug"]).await;
        let planned = world.upgrade(&world.settings(None, None), false).await.unwrap();
        assert_eq!(bundle(&planned), a.root);
        assert_eq!(planned.notes, [""; 0]);
        let values = find(&planned, "ConfigMap", "linkerd-config").unwrap()["data"]["values"].to_string();
        assert!(values.contains("logLevel: debug"), "{values}");
        let secrets: Api<Secret> = Api::namespaced(world.client.clone(), "linkerd");
        for name in ["linkerd-identity-issuer", "linkerd-proxy-injector-k8s-tls"] {
            let rendered = &find(&planned, "Secret", name).unwrap()["data"];
            let stored = secrets.get(name).await.unwrap();
            assert_eq!(json!(stored.data), *rendered, "{name}");
        }
    }

    #[tokio::test]
    async fn a_root_is_rotated_in_steps_and_steps_that_break_proxies_are_refused_by_name() {
        let (a, b) = (authority(), authority());
        let world = World::installed(&a, &[]).await;
        world.pod("stale", &a.root).await;
        let both = format!("{}{}", a.root, b.root);

        // Everything at once.
        let refused = world
            .upgrade(&world.settings(Some(&b.root), Some(&b)), false)
            .await;
        let refused = refused.err().unwrap();
        assert!(
            refused.contains("these do not believe the issuer: default/stale"),
            "{refused}"
        );
        // A root that the issuer in use needs.
        let refused = world.upgrade(&world.settings(Some(&b.root), None), false).await;
        let refused = refused.err().unwrap();
        assert!(refused.contains("with these trust anchors"), "{refused}");

        let planned = world
            .upgrade(&world.settings(Some(&both), None), false)
            .await
            .unwrap();
        assert_eq!(bundle(&planned), both);
        assert!(
            planned.notes[0].contains("the trust anchors change: 1 added, 0 removed"),
            "{:?}",
            planned.notes
        );
        world.apply(planned.documents).await;

        // One proxy has not heard of the new root yet.
        let issuer_of_b = world.settings(None, Some(&b));
        let refused = world.upgrade(&issuer_of_b, false).await.err().unwrap();
        assert!(refused.contains("default/stale"), "{refused}");
        let forced = world.upgrade(&issuer_of_b, true).await.unwrap();
        assert!(forced.notes[0].contains("default/stale"), "{:?}", forced.notes);
        world.pod("fresh", &both).await;
        let pods: Api<Pod> = Api::namespaced(world.client.clone(), "default");
        pods.delete("stale", &kube::api::DeleteParams::default().grace_period(0))
            .await
            .unwrap();
        let planned = world.upgrade(&issuer_of_b, false).await.unwrap();
        assert!(
            planned.notes[0].contains("the issuer changes"),
            "{:?}",
            planned.notes
        );
        world.apply(planned.documents).await;

        let planned = world
            .upgrade(&world.settings(Some(&b.root), None), false)
            .await
            .unwrap();
        assert_eq!(bundle(&planned), b.root);
        assert!(
            planned.notes[0].contains("0 added, 1 removed"),
            "{:?}",
            planned.notes
        );
    }

    #[tokio::test]
    async fn an_issuer_that_others_keep_is_checked_but_not_written() {
        let (a, b) = (authority(), authority());
        let scheme = format!("identity.issuer.scheme={TLS_SCHEME}");
        let world = World::installed(&a, &[&scheme]).await;
        let both = format!("{}{}", a.root, b.root);
        let planned = world
            .upgrade(&world.settings(Some(&both), None), false)
            .await
            .unwrap();
        assert!(find(&planned, "Secret", "linkerd-identity-issuer").is_none());
        assert_eq!(bundle(&planned), both);
        let refused = world.upgrade(&world.settings(Some(&b.root), None), false).await;
        assert!(refused.err().unwrap().contains("with these trust anchors"));
    }

    #[tokio::test]
    async fn an_installation_without_stored_settings_is_upgraded_by_who_made_it() {
        let client = Cluster::new(ClusterOptions::default()).client(Identity::admin());
        let files = tempfile::tempdir().unwrap();
        let world = World { client, files };
        let upgrade = async || {
            let refused = world.upgrade(&world.settings(None, None), false).await;
            refused.err().expect("there is nothing to start from")
        };
        assert!(upgrade().await.contains("namespace linkerd has no control plane"));
        let configuration = |by: &str| {
            json!({
                "apiVersion": "v1", "kind": "ConfigMap",
                "metadata": {
                    "namespace": "linkerd", "name": "linkerd-config", "annotations": {"linkerd.io/created-by": by},
                },
            })
        };
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "linkerd"}});
        world
            .apply(vec![namespace, configuration("linkerd/helm v0.1.0")])
            .await;
        assert_eq!(
            upgrade().await,
            "error: cannot read the installed settings\n  \
             why: the control plane was installed by Helm, which keeps the settings itself\n  \
             try: helm upgrade; helm list -n linkerd names the release"
        );
        world.apply(vec![configuration("linkerd/cli v0.1.0")]).await;
        assert!(upgrade().await.contains("no Secret linkerd-config-overrides"));
    }
}
