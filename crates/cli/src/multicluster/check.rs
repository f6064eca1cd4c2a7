//! `check`: looks for what commonly goes wrong between clusters, and says it in the words of Linkerd's checks.
//!
//! Each check gathers what it needs and answers with an [`Outcome`]; [`crate::check`] shows them.
//! Source: `spec/multicluster.md` 4.7. A check without anything to look at prints nothing.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::Arc;

use hawser_control::mirror::{self, reach};
use hawser_control::values::VERSION;
use hawser_crd::Link;
use hawser_crd::keys;
use hawser_tls::TrustAnchors;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::authorization::v1::SelfSubjectAccessReview;
use k8s_openapi::api::core::v1::{Endpoints, Namespace, Pod, Secret, Service, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use kube::api::{ListParams, PostParams};
use kube::{Api, Client, Resource, ResourceExt};
use serde_json::json;
use tokio::time::{Duration, Instant};

use super::gateways::{self, SCRAPE_DEADLINE};
use super::manifests::Names;
use super::{mesh_values, path};
use crate::check::{Category, Format, Outcome, Report, until};
use crate::kube::{ClusterArgs, is_missing};
use crate::output::write_out;
use crate::problem::Problem;
use crate::{route, scrape};

const CATEGORY: &str = "linkerd-multicluster";
/// What is new has reached every proxy by then.
const ON_ITS_WAY: Duration = Duration::from_secs(10);
/// One check's patience with a cluster.
const DEADLINE: Duration = Duration::from_secs(30);

#[derive(Debug, clap::Args)]
pub(super) struct CheckArgs {
    /// How long to wait for controllers to run
    #[arg(long, default_value = "300s")]
    wait: String,
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[arg(short, long, default_value = keys::MULTICLUSTER_NAMESPACE)]
    namespace: String,
}

/// What checks have in common.
struct Subject {
    client: Client,
    namespace: String,
    linkerd_namespace: String,
    links: Vec<Link>,
    connect: mirror::Connect,
    deadline: Instant,
}

pub(super) async fn run(cluster: &ClusterArgs, args: CheckArgs) -> Result<ExitCode, Problem> {
    let what = "cannot check the multicluster extension";
    let wait = hawser_crd::link::parse_duration(&args.wait).ok_or_else(|| {
        Problem::new(
            what,
            format!("--wait {:?} is not a duration", args.wait),
            "--wait 300s",
        )
    })?;
    let client = cluster.connect().await?.client;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let namespace = namespaces
        .get_opt(&args.namespace)
        .await
        .map_err(|error| crate::kube::problem(what, error))?;
    if namespace.is_none() {
        let why = format!("there is no namespace {}", args.namespace);
        return Err(Problem::new(what, why, "hawser mc install | kubectl apply -f -"));
    }
    let mut subject = Subject {
        client,
        namespace: args.namespace,
        linkerd_namespace: cluster.linkerd_namespace.clone(),
        links: Vec::new(),
        connect: connector(cluster),
        deadline: Instant::now() + wait,
    };
    let mut report = Report::default();
    report.push(subject.check().await);
    write_out(&report.text(args.output))?;
    Ok(report.code())
}

/// The extension's checks, where it is installed.
pub(crate) async fn check(cluster: &ClusterArgs, client: &Client, deadline: Instant) -> Option<Category> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let query = format!(
        "{} in ({},{})",
        keys::EXTENSION,
        keys::EXTENSION_MULTICLUSTER,
        keys::EXTENSION_MULTICLUSTER_LEGACY
    );
    let found = bounded(namespaces.list_metadata(&ListParams::default().labels(&query))).await;
    let namespace = found.ok()?.items.first()?.name_any();
    let mut subject = Subject {
        client: client.clone(),
        namespace,
        linkerd_namespace: cluster.linkerd_namespace.clone(),
        links: Vec::new(),
        connect: connector(cluster),
        deadline,
    };
    Some(subject.check().await)
}

/// Without a kubeconfig there is only the network.
fn connector(cluster: &ClusterArgs) -> mirror::Connect {
    cluster
        .read()
        .map_or_else(|_| mirror::connector(), route::connector)
}

impl Subject {
    async fn check(&mut self) -> Category {
        let mut category = Category::new(CATEGORY);
        let links: Api<Link> = Api::all(self.client.clone());
        let listed = bounded(links.list(&ListParams::default())).await;
        let (links, served) = match listed {
            Ok(links) => (links.items, Outcome::fine()),
            Err(error) => (Vec::new(), Outcome::Error(error)),
        };
        self.links = links;
        let passed = category.row(
            "Link CRD exists",
            "l5d-multicluster-link-crd-exists",
            "hawser mc install | kubectl apply -f -",
            served,
        );
        if !passed {
            // The rest needs the links.
            return category;
        }
        category.row(
            "Link resources are valid",
            "l5d-multicluster-links-are-valid",
            "link again: hawser mc link --cluster-name NAME | kubectl apply -f -",
            self.links_are_valid(),
        );
        if !self.links.is_empty() {
            category.row(
                "Link and CLI versions match",
                "l5d-multicluster-links-version",
                "link again with this CLI: hawser mc link --cluster-name NAME | kubectl apply -f -",
                self.links_are_of_this_version().warn(),
            );
            category.row(
                "remote cluster access credentials are valid",
                "l5d-smc-target-clusters-access",
                "link again: hawser mc link --cluster-name NAME | kubectl apply -f -",
                self.credentials_are_valid().await,
            );
            category.row(
                "clusters share trust anchors",
                "l5d-multicluster-clusters-share-anchors",
                "give both clusters one bundle: hawser upgrade --identity-trust-anchors-file bundle.crt | kubectl apply -f -",
                self.clusters_share_anchors().await,
            );
            category.row(
                "service mirror controller has required permissions",
                "l5d-multicluster-source-rbac-correct",
                "link again: hawser mc link --cluster-name NAME | kubectl apply -f -",
                self.controllers_have_permissions().await,
            );
            category.row(
                "service mirror controllers are running",
                "l5d-multicluster-service-mirror-running",
                format!("kubectl -n {} describe pods", self.namespace),
                self.controllers_run().await,
            );
            category.row(
                "extension is managing controllers",
                "l5d-multicluster-managed-controllers",
                "hawser mc install --set controllers[0].link.ref.name=NAME, and hawser mc unlink --only-controller",
                self.controllers_are_managed().await.warn(),
            );
            category.row(
                "probe services able to communicate with all gateway mirrors",
                "l5d-multicluster-gateways-endpoints",
                "hawser mc gateways, and the target's kubectl -n linkerd-multicluster get svc,pods",
                self.gateways_answer().await,
            );
            category.row(
                "all mirror services have endpoints",
                "l5d-multicluster-services-endpoints",
                "look for pods behind the exported services of the target",
                self.mirrors_have_endpoints().await,
            );
            category.row(
                "requests to mirror services reach the pods behind them",
                "",
                "kubectl logs of the hop that is named, container linkerd-proxy; hawser diagnostics policy there",
                self.requests_arrive().await,
            );
            category.row(
                "all mirror services are part of a Link",
                "l5d-multicluster-orphaned-services",
                "delete them, or link their cluster again",
                self.mirrors_have_links().await,
            );
        }
        category.row(
            "multicluster extension proxies are healthy",
            "l5d-multicluster-proxy-healthy",
            format!("kubectl -n {} get pods", self.namespace),
            self.proxies_are_healthy().await,
        );
        let rollout = format!("kubectl -n {} rollout restart deployments", self.namespace);
        category.row(
            "multicluster extension proxies are up-to-date",
            "l5d-multicluster-proxy-cp-version",
            rollout.clone(),
            self.proxies_are_of_the_control_plane().await.warn(),
        );
        category.row(
            "multicluster extension proxies and cli versions match",
            "l5d-multicluster-proxy-cli-version",
            rollout,
            self.proxies_are_of(VERSION).await.warn(),
        );
        category
    }

    fn links_are_of_this_version(&self) -> Outcome {
        let ours = format!("linkerd/cli {VERSION}");
        Outcome::each(self.links.iter().map(|link| {
            let name = link.name_any();
            match link.annotations().get(keys::CREATED_BY) {
                Some(by) if *by == ours => Ok(name),
                Some(by) => Err(format!("{name}: made by {by}, this is {ours}")),
                // Written by hand, or by something that doesn't say who it is.
                None => Err(format!("{name}: it doesn't say which version made it")),
            }
        }))
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.links
            .iter()
            .map(|link| link.spec.target_cluster_name.as_str())
    }

    fn links_are_valid(&self) -> Outcome {
        Outcome::each(self.links.iter().map(|link| {
            let name = link.name_any();
            let spec = &link.spec;
            let parsed = spec
                .gateway()
                .and_then(|_| spec.probe())
                .and_then(|_| spec.exported());
            match parsed {
                Ok(_) if spec.target_cluster_name == name => Ok(name),
                Ok(_) => Err(format!(
                    "{name}: spec.targetClusterName is {:?}",
                    spec.target_cluster_name
                )),
                Err(error) => Err(format!("{name}: {error}")),
            }
        }))
    }

    async fn target(&self, link: &Link) -> Result<Client, String> {
        let name = &link.spec.cluster_credentials_secret;
        let namespace = link.namespace().unwrap_or_else(|| self.namespace.clone());
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &namespace);
        let secret = bounded(secrets.get(name)).await?;
        let data = secret
            .data
            .unwrap_or_default()
            .remove(keys::KUBECONFIG_SECRET_KEY);
        let kubeconfig =
            data.ok_or_else(|| format!("secret {namespace}/{name} has no {}", keys::KUBECONFIG_SECRET_KEY))?;
        let connect = Arc::clone(&self.connect);
        connect(kubeconfig.0).await.map_err(|error| error.to_string())
    }

    async fn credentials_are_valid(&self) -> Outcome {
        let mut results = Vec::new();
        for link in &self.links {
            results.push(
                self.credential_is_valid(link)
                    .await
                    .map_err(|error| format!("{}: {error}", link.name_any())),
            );
        }
        Outcome::each(results)
    }

    async fn credential_is_valid(&self, link: &Link) -> Result<String, String> {
        let target = self.target(link).await?;
        bounded(target.apiserver_version()).await?;
        for verb in ["get", "list", "watch"] {
            let review: SelfSubjectAccessReview = serde_json::from_value(json!({
                "metadata": {}, "spec": {"resourceAttributes": {"resource": "services", "verb": verb}},
            }))
            .map_err(|error| error.to_string())?;
            let reviews: Api<SelfSubjectAccessReview> = Api::all(target.clone());
            let answer = bounded(reviews.create(&PostParams::default(), &review)).await?;
            if !answer.status.is_some_and(|status| status.allowed) {
                return Err(format!("its account may not {verb} services"));
            }
        }
        Ok(link.name_any())
    }

    async fn clusters_share_anchors(&self) -> Outcome {
        let local = match self.anchors(&self.client, &self.linkerd_namespace).await {
            Ok(anchors) => anchors,
            Err(error) => return Outcome::Error(format!("this cluster's anchors: {error}")),
        };
        let mut results = Vec::new();
        for link in &self.links {
            let remote = async {
                let target = self.target(link).await?;
                self.anchors(&target, &link.spec.target_cluster_linkerd_namespace)
                    .await
            };
            results.push(match remote.await {
                Ok(remote) if remote.same_set(&local) => Ok(link.name_any()),
                Ok(_) => Err(format!(
                    "Problematic clusters:\n* {}: its trust anchors differ",
                    link.name_any()
                )),
                Err(error) => Err(format!("Problematic clusters:\n* {}: {error}", link.name_any())),
            });
        }
        Outcome::each(results)
    }

    async fn anchors(&self, client: &Client, namespace: &str) -> Result<TrustAnchors, String> {
        let namespace = if namespace.is_empty() {
            keys::CONTROL_PLANE_NAMESPACE
        } else {
            namespace
        };
        let reading = tokio::time::timeout(DEADLINE, mesh_values(client, namespace));
        let values = match reading.await {
            Ok(values) => values.map_err(|problem| problem.to_string())?,
            Err(_) => return Err(format!("no answer within {DEADLINE:?}")),
        };
        TrustAnchors::from_pem(&values.identity_trust_anchors_pem).map_err(|error| error.to_string())
    }

    async fn controllers_have_permissions(&self) -> Outcome {
        let mut results = Vec::new();
        for name in self.names() {
            results.push(self.has_permissions(name).await.map(|()| name.to_owned()));
        }
        Outcome::each(results)
    }

    /// By the names that `link` gives, by those of an extension that manages its controllers, or by those of the
    /// controller for Links that have none of their own.
    async fn has_permissions(&self, cluster: &str) -> Result<(), String> {
        let candidates = [Names::linked(cluster), Names::managed(cluster), Names::shared()];
        let mut names = None;
        let mut missing = Err("no service account of a controller exists".to_owned());
        for candidate in candidates {
            match self.exists::<ServiceAccount>(&candidate.controller).await {
                Ok(()) => {
                    names = Some(candidate);
                    break;
                }
                Err(error) => missing = Err(error),
            }
        }
        let Some(names) = names else { return missing };
        let (local, credentials) = (names.local_access, names.credentials_access);
        let (roles, bindings): (Api<ClusterRole>, Api<ClusterRoleBinding>) =
            (Api::all(self.client.clone()), Api::all(self.client.clone()));
        let binding = bounded(bindings.get(&local))
            .await
            .map_err(|error| format!("cluster role binding {local}: {error}"))?;
        bounded(roles.get(&binding.role_ref.name))
            .await
            .map_err(|error| format!("cluster role: {error}"))?;
        self.exists::<Role>(&credentials).await?;
        self.exists::<RoleBinding>(&credentials).await
    }

    async fn exists<K>(&self, name: &str) -> Result<(), String>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + serde::de::DeserializeOwned
            + std::fmt::Debug,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), &self.namespace);
        bounded(api.get_metadata(name))
            .await
            .map(drop)
            .map_err(|error| format!("{} {name}: {error}", K::kind(&())))
    }

    async fn controllers_run(&self) -> Outcome {
        until(self.deadline, "service mirror controllers", async || {
            let mut results = Vec::new();
            for name in self.names() {
                results.push(self.controller_runs(name).await.map(|()| name.to_owned()));
            }
            Outcome::each(results)
        })
        .await
    }

    async fn controller_runs(&self, cluster: &str) -> Result<(), String> {
        let found = self.controllers_of(cluster).await?;
        let is_available = |deployment: &Deployment| {
            let status = deployment.status.as_ref();
            status.and_then(|status| status.available_replicas).unwrap_or(0) > 0
        };
        match found.as_slice() {
            [] => Err(format!(
                "no service mirror controller deployment for the cluster {cluster}"
            )),
            [one] if is_available(one) => Ok(()),
            [one] => Err(format!("deployment {} is not available", one.name_any())),
            _ => Err(format!(
                "{} service mirror controller deployments for the cluster {cluster}",
                found.len()
            )),
        }
    }

    /// The Deployments of a Link's own; if there are none, the one that looks after all such Links.
    async fn controllers_of(&self, cluster: &str) -> Result<Vec<Deployment>, String> {
        let deployments: Api<Deployment> = Api::namespaced(self.client.clone(), &self.namespace);
        let query = format!(
            "{} in ({},{}),{}={cluster}",
            keys::COMPONENT,
            keys::COMPONENT_SERVICE_MIRROR,
            keys::COMPONENT_CONTROLLER,
            keys::CLUSTER_NAME
        );
        let found = bounded(deployments.list(&ListParams::default().labels(&query)))
            .await?
            .items;
        if !found.is_empty() {
            return Ok(found);
        }
        let shared = format!("{}={}", keys::COMPONENT, keys::COMPONENT_LOCAL_SERVICE_MIRROR);
        Ok(bounded(deployments.list(&ListParams::default().labels(&shared)))
            .await?
            .items)
    }

    /// A controller that `link` made is not upgraded with the extension, so it should be of this version.
    async fn controllers_are_managed(&self) -> Outcome {
        let ours = format!("linkerd/cli {VERSION}");
        let mut results = Vec::new();
        for name in self.names() {
            let own = Names::linked(name).controller;
            let is_stale = |deployment: &Deployment| {
                let by = deployment.annotations().get(keys::CREATED_BY);
                deployment.name_any() == own && by != Some(&ours)
            };
            results.push(match self.controllers_of(name).await {
                Ok(found) if found.iter().any(is_stale) => Err(format!(
                    "{name}: deployment {own} was made by another version, and is not upgraded with the extension"
                )),
                Ok(_) => Ok(name.to_owned()),
                Err(error) => Err(format!("{name}: {error}")),
            });
        }
        Outcome::each(results)
    }

    async fn gateways_answer(&self) -> Outcome {
        let probed: Vec<&str> = self
            .links
            .iter()
            .filter(|link| !link.spec.gateway_address.is_empty() && !link.spec.probe_spec.path.is_empty())
            .map(|link| link.spec.target_cluster_name.as_str())
            .collect();
        if probed.is_empty() {
            return Outcome::Skipped;
        }
        let gathering = gateways::gather(&self.client, &self.namespace, None, "1m");
        let gateways = match tokio::time::timeout(SCRAPE_DEADLINE, gathering).await {
            Ok(Ok(gateways)) => gateways,
            Ok(Err(problem)) => return Outcome::Error(problem.to_string()),
            Err(_) => {
                return Outcome::Error(format!(
                    "the controllers did not answer within {SCRAPE_DEADLINE:?}"
                ));
            }
        };
        let mut results = Vec::new();
        for name in probed {
            let seen = gateways.iter().find(|gateway| gateway.cluster == name);
            let found = self.probe_has_endpoints(name).await;
            results.push(match (found, seen) {
                (Err(error), _) => Err(format!("{name}: {error}")),
                (Ok(()), Some(gateway)) if gateway.alive => Ok(name.to_owned()),
                (Ok(()), seen) => {
                    let why = seen.and_then(|gateway| gateway.failure.as_deref());
                    let why = why.unwrap_or("no controller has probed it yet");
                    Err(format!(
                        "liveness checks failed for {name}: from here to its gateway: {why}"
                    ))
                }
            });
        }
        Outcome::each(results)
    }

    async fn probe_has_endpoints(&self, cluster: &str) -> Result<(), String> {
        let services: Api<Service> = Api::namespaced(self.client.clone(), &self.namespace);
        let query = format!("{}=true,{}={cluster}", keys::MIRRORED_GATEWAY, keys::CLUSTER_NAME);
        let found = bounded(services.list_metadata(&ListParams::default().labels(&query)))
            .await?
            .items;
        let [probe] = found.as_slice() else {
            return Err(format!("{} probe services instead of one", found.len()));
        };
        let endpoints: Api<Endpoints> = Api::namespaced(self.client.clone(), &self.namespace);
        let endpoints = bounded(endpoints.get(&probe.name_any())).await?;
        match endpoints.subsets.is_some_and(|subsets| !subsets.is_empty()) {
            true => Ok(()),
            false => Err(format!("service {} has no endpoints", probe.name_any())),
        }
    }

    async fn mirrors(&self) -> Result<Vec<Service>, String> {
        let services: Api<Service> = Api::all(self.client.clone());
        let query = format!(
            "{}=true,!{},!{}",
            keys::MIRRORED_SERVICE,
            keys::MIRRORED_GATEWAY,
            keys::REMOTE_DISCOVERY
        );
        let mut mirrors = bounded(services.list(&ListParams::default().labels(&query)))
            .await?
            .items;
        let is_federated = |mirror: &Service| {
            let found = mirror.annotations();
            found.contains_key(keys::REMOTE_DISCOVERY) || found.contains_key(keys::LOCAL_DISCOVERY)
        };
        mirrors.retain(|mirror| !is_federated(mirror));
        Ok(mirrors)
    }

    async fn mirrors_have_endpoints(&self) -> Outcome {
        let mirrors = match self.mirrors().await {
            Ok(mirrors) if mirrors.is_empty() => return Outcome::Skipped,
            Ok(mirrors) => mirrors,
            Err(error) => return Outcome::Error(error),
        };
        let mut without = Vec::new();
        for mirror in mirrors {
            let namespace = mirror.namespace().unwrap_or_default();
            let endpoints: Api<Endpoints> = Api::namespaced(self.client.clone(), &namespace);
            let found = endpoints.get_opt(&mirror.name_any()).await;
            let has_some = found.is_ok_and(|found| {
                found
                    .and_then(|found| found.subsets)
                    .is_some_and(|subsets| !subsets.is_empty())
            });
            if !has_some {
                without.push(format!("{namespace}/{}", mirror.name_any()));
            }
        }
        match without.is_empty() {
            true => Outcome::fine(),
            false => Outcome::Error(format!(
                "some mirror services have no endpoints: {}",
                without.join(", ")
            )),
        }
    }

    /// One service of each link is asked for, from the pod that mirrors it.
    async fn requests_arrive(&self) -> Outcome {
        // What was linked or exported a moment ago is on its way to the proxies.
        let deadline = self.deadline.min(Instant::now() + ON_ITS_WAY);
        until(deadline, "requests to mirror services", async || {
            self.requests_once().await
        })
        .await
    }

    async fn requests_once(&self) -> Outcome {
        let mut results = Vec::new();
        for link in self
            .links
            .iter()
            .filter(|link| !link.spec.gateway_address.is_empty())
        {
            let name = link.spec.target_cluster_name.as_str();
            match self.request_arrives(name).await {
                Ok(None) => {}
                Ok(Some(told)) => results.push(Ok(format!("{name}: {told}"))),
                Err(error) => results.push(Err(format!("{name}: {error}"))),
            }
        }
        Outcome::each(results)
    }

    async fn request_arrives(&self, cluster: &str) -> Result<Option<String>, String> {
        let mut chosen = None;
        let of_cluster = |mirror: &Service| {
            mirror
                .labels()
                .get(keys::CLUSTER_NAME)
                .is_some_and(|c| c == cluster)
        };
        for mirror in self.mirrors().await?.into_iter().filter(of_cluster) {
            let Some(port) = path::port(&mirror) else { continue };
            let namespace = mirror.namespace().unwrap_or_default();
            let endpoints: Api<Endpoints> = Api::namespaced(self.client.clone(), &namespace);
            // Those without are another check's business.
            if bounded(endpoints.get(&mirror.name_any()))
                .await
                .is_ok_and(|found| path::is_ready(&found))
            {
                chosen = Some((namespace, mirror.name_any(), port));
                break;
            }
        }
        let Some((namespace, name, port)) = chosen else {
            return Ok(None);
        };
        let leaders = gateways::leaders(&self.client, &self.namespace, Some(cluster)).await;
        let leaders = leaders.map_err(|problem| problem.to_string())?;
        let (pod, admin) = leaders.first().ok_or("no controller leads the link")?;
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let question = reach::question(&namespace, &name, port);
        let text = scrape::get_within(reach::PATIENCE, &pods, pod, *admin, &question).await;
        let answers: Vec<reach::Answer> = match text {
            Ok(text) => serde_json::from_str(&text).map_err(|error| error.to_string())?,
            // A controller of another version, or of somebody else, can't be asked.
            Err(error) if error.is_missing() => return Ok(None),
            Err(error) => return Err(format!("pod {}/{pod}: {error}", self.namespace)),
        };
        path::judge(&format!("{namespace}/{name}:{port}"), cluster, &answers).map(Some)
    }

    async fn mirrors_have_links(&self) -> Outcome {
        let mirrors = match self.mirrors().await {
            Ok(mirrors) if mirrors.is_empty() => return Outcome::Skipped,
            Ok(mirrors) => mirrors,
            Err(error) => return Outcome::Error(error),
        };
        let names: BTreeSet<&str> = self.names().collect();
        let orphans: Vec<String> = mirrors
            .iter()
            .filter(|mirror| {
                !mirror
                    .labels()
                    .get(keys::CLUSTER_NAME)
                    .is_some_and(|name| names.contains(name.as_str()))
            })
            .map(|mirror| format!("{}/{}", mirror.namespace().unwrap_or_default(), mirror.name_any()))
            .collect();
        match orphans.is_empty() {
            true => Outcome::fine(),
            false => Outcome::Warning(format!("mirror services without a Link: {}", orphans.join(", "))),
        }
    }

    async fn pods(&self) -> Result<Vec<Pod>, String> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        Ok(bounded(pods.list(&ListParams::default())).await?.items)
    }

    async fn proxies_are_healthy(&self) -> Outcome {
        let pods = match self.pods().await {
            Ok(pods) if pods.is_empty() => return Outcome::Skipped,
            Ok(pods) => pods,
            Err(error) => return Outcome::Error(error),
        };
        let unready = pods.iter().filter(|pod| !has_ready_proxy(pod));
        Outcome::none("pods without a ready proxy", unready.map(ResourceExt::name_any)).warn()
    }

    async fn proxies_are_of_the_control_plane(&self) -> Outcome {
        let reading = tokio::time::timeout(DEADLINE, mesh_values(&self.client, &self.linkerd_namespace));
        match reading.await {
            Ok(Ok(mesh)) => self.proxies_are_of(mesh.proxy_version()).await,
            Ok(Err(problem)) => Outcome::Error(problem.to_string()),
            Err(_) => Outcome::Error(format!("no answer within {DEADLINE:?}")),
        }
    }

    async fn proxies_are_of(&self, version: &str) -> Outcome {
        let pods = match self.pods().await {
            Ok(pods) if pods.is_empty() => return Outcome::Skipped,
            Ok(pods) => pods,
            Err(error) => return Outcome::Error(error),
        };
        let others = pods.iter().filter_map(|pod| {
            let found = pod.annotations().get(hawser_control::keys::PROXY_VERSION)?;
            (found != version).then(|| format!("{} ({found})", pod.name_any()))
        });
        Outcome::none(&format!("proxies of other versions than {version}"), others)
    }
}

/// The proxy is a container, or a native sidecar among the init containers.
fn has_ready_proxy(pod: &Pod) -> bool {
    let Some(status) = &pod.status else { return false };
    let containers = status.container_statuses.iter().flatten();
    containers
        .chain(status.init_container_statuses.iter().flatten())
        .any(|c| c.name == "linkerd-proxy" && c.ready)
}

async fn bounded<T>(request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, String> {
    match tokio::time::timeout(DEADLINE, request).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) if is_missing(&error) => Err("it does not exist".to_owned()),
        Ok(Err(kube::Error::Api(status))) => Err(format!("{} ({})", status.message, status.code)),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {DEADLINE:?}")),
    }
}
