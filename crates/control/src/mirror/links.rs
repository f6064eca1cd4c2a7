//! Looks after every Link that has no controller Deployment of its own, so that applying a Link and its Secret is all
//! it takes.
//!
//! Which Links these are is [`wanted`], a pure function of what exists; each gets the same controller, with the same
//! lease, that a Deployment of its own would run, so the two can take turns but never write at once. Mirrors whose Link
//! was deleted while nobody looked get one too: it removes them. Leases that are left of Links are [`abandoned`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hawser_crd::{Link, keys};
use hawser_runtime::Metrics;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Service;
use kube::api::{DeleteParams, ListParams, Preconditions};
use kube::{Api, Client, ResourceExt};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{Config, Connect, Controller, LOCAL_MAX};
use crate::lead::{self, Candidate};
use crate::observe::{Bell, Observed, Select, View};

/// A look without a reason: a controller that ended by itself is started again.
const REPAIR: Duration = Duration::from_secs(60);
const DEADLINE: Duration = Duration::from_secs(10);

/// Runs controllers until shutdown, and until all of them have given their leases back. `config.link` is ignored: each
/// gets its own.
pub(super) async fn look_after(
    client: Client,
    config: Config,
    identity: String,
    connect: Connect,
    metrics: Metrics,
    shutdown: CancellationToken,
) {
    let bell = Bell::default();
    let (links, deployments): (Api<Link>, Api<Deployment>) = (
        Api::namespaced(client.clone(), &config.namespace),
        Api::namespaced(client.clone(), &config.namespace),
    );
    let services: Api<Service> = Api::all(client.clone());
    let controllers = format!(
        "{} in ({},{}),{}",
        keys::COMPONENT,
        keys::COMPONENT_SERVICE_MIRROR,
        keys::COMPONENT_CONTROLLER,
        keys::CLUSTER_NAME
    );
    let mirrors = format!("{}=true,{}", keys::MIRRORED_SERVICE, keys::CLUSTER_NAME);
    let links = Observed::start(links, Select::all(), LOCAL_MAX, bell.clone(), |link: Link| {
        Some(link.spec.target_cluster_name)
    });
    let deployments = Observed::start(
        deployments,
        Select::labels(controllers),
        LOCAL_MAX,
        bell.clone(),
        |deployment: Deployment| {
            let is_leaving = deployment.metadata.deletion_timestamp.is_some();
            deployment
                .labels()
                .get(keys::CLUSTER_NAME)
                .filter(|_| !is_leaving)
                .cloned()
        },
    );
    let mirrors = Observed::start(
        services,
        Select::labels(mirrors),
        LOCAL_MAX,
        bell.clone(),
        |service: Service| service.labels().get(keys::CLUSTER_NAME).cloned(),
    );
    let mut running: BTreeMap<String, Running> = BTreeMap::new();
    loop {
        let mut sweeps = tokio::select! {
            () = bell.rung() => false,
            () = tokio::time::sleep(REPAIR) => true,
            () = shutdown.cancelled() => break,
        };
        let (Some(links), Some(deployments), Some(mirrors)) =
            (links.view(), deployments.view(), mirrors.view())
        else {
            continue;
        };
        let wanted = wanted(&links, &deployments, &mirrors, config.keeps_mirrors);
        for (_, unwanted) in running.iter().filter(|(name, _)| !wanted.contains(*name)) {
            unwanted.stop.cancel();
        }
        // One that was told to stop is waited for before its Link gets another: under one name they'd share the lease.
        running.retain(|_, member| {
            let ended = member.task.is_finished();
            sweeps |= ended;
            !ended
        });
        if sweeps {
            let in_use = |link: &str| {
                wanted.contains(link)
                    || running.contains_key(link)
                    || links.keys().any(|key| key.name == link)
                    || deployments.values().any(|cluster| cluster.as_str() == link)
            };
            sweep(&client, &config.namespace, in_use).await;
        }
        for link in wanted {
            running.entry(link).or_insert_with_key(|link| {
                tracing::info!(link, "looking after a link");
                let stop = shutdown.child_token();
                let config = Config {
                    link: link.clone(),
                    probe_service: Some(keys::probe_service(link)),
                    ..config.clone()
                };
                let candidate = Candidate {
                    client: client.clone(),
                    namespace: config.namespace.clone(),
                    lease: keys::service_mirror_lease(link),
                    identity: identity.clone(),
                };
                let (own, ended) = (Bell::default(), bell.clone());
                let (name, series) = (link.clone(), metrics.clone());
                let controller = Controller::new(
                    client.clone(),
                    config,
                    connect.clone(),
                    metrics.clone(),
                    own.clone(),
                );
                let leading = lead::lead(candidate, own, controller, stop.clone());
                let task = tokio::spawn(async move {
                    leading.await;
                    series.forget("target_cluster_reachable", ("target_cluster_name", &name));
                    ended.ring();
                });
                Running { stop, task }
            });
        }
    }
    for (_, member) in running {
        // Its own requests have deadlines.
        let _ = member.task.await;
    }
}

/// Deletes the leases that Links left behind. What fails is tried again at the next repair.
async fn sweep(client: &Client, namespace: &str, in_use: impl Fn(&str) -> bool) {
    let leases: Api<Lease> = Api::namespaced(client.clone(), namespace);
    let sweeping = async {
        let found = leases.list(&ListParams::default()).await?;
        for lease in found.items.iter().filter(|lease| abandoned(lease, &in_use)) {
            let name = lease.name_any();
            let params = DeleteParams {
                // Whoever takes it meanwhile keeps it.
                preconditions: Some(Preconditions {
                    resource_version: lease.resource_version(),
                    uid: lease.uid(),
                }),
                ..DeleteParams::default()
            };
            leases.delete(&name, &params).await?;
            tracing::info!(lease = name, "removed what was left of a link");
        }
        Ok::<_, kube::Error>(())
    };
    match tokio::time::timeout(DEADLINE, sweeping).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "leases of links that are gone"),
        Err(_) => tracing::debug!("leases of links that are gone: no answer in time"),
    }
}

/// Whether a lease is that of a Link, of one that nobody knows any more, and nobody holds it.
fn abandoned(lease: &Lease, in_use: impl Fn(&str) -> bool) -> bool {
    let name = lease.metadata.name.as_deref().unwrap_or_default();
    let link = name.strip_prefix(keys::SERVICE_MIRROR_LEASE_PREFIX);
    let holder = lease
        .spec
        .as_ref()
        .and_then(|spec| spec.holder_identity.as_deref());
    holder.unwrap_or_default().is_empty() && link.is_some_and(|link| !in_use(link))
}

struct Running {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// Names of the Links to look after. `links` are target clusters by Link, `deployments` the clusters of controllers,
/// `mirrors` the clusters of mirrors.
fn wanted(
    links: &View<String>,
    deployments: &View<String>,
    mirrors: &View<String>,
    keeps_mirrors: bool,
) -> BTreeSet<String> {
    // A Link and its target should have one name. Where they don't, neither name is an orphan's.
    let names: BTreeSet<&str> = links.keys().map(|key| key.name.as_str()).collect();
    let targets: BTreeSet<&str> = links.values().map(|target| target.as_str()).collect();
    let served: BTreeSet<&str> = deployments.values().map(|cluster| cluster.as_str()).collect();
    let orphaned = mirrors
        .values()
        .map(|cluster| cluster.as_str())
        .filter(|cluster| !keeps_mirrors && !targets.contains(cluster));
    names
        .iter()
        .copied()
        .chain(orphaned)
        .filter(|name| !served.contains(name))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::observe::Key;

    fn view(pairs: &[(&str, &str)]) -> View<String> {
        pairs
            .iter()
            .map(|(name, value)| (Key::new("test", *name), Arc::new((*value).to_owned())))
            .collect()
    }

    #[track_caller]
    fn check(links: &[(&str, &str)], deployments: &[&str], mirrors: &[&str], expected: &[&str]) {
        let named = |clusters: &[&str]| -> View<String> {
            view(
                &clusters
                    .iter()
                    .map(|cluster| (*cluster, *cluster))
                    .collect::<Vec<_>>(),
            )
        };
        let (links, deployments, mirrors) = (view(links), named(deployments), named(mirrors));
        let found = wanted(&links, &deployments, &mirrors, false);
        assert_eq!(found.iter().map(String::as_str).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn only_leases_of_links_that_are_gone_and_that_nobody_holds_are_abandoned() {
        let lease = |name: &str, holder: &str| -> Lease {
            serde_json::from_value(serde_json::json!({
                "metadata": {"name": name}, "spec": {"holderIdentity": holder},
            }))
            .unwrap()
        };
        let in_use = |link: &str| link == "east";
        for (name, holder, expected) in [
            ("north", "", true),
            ("north", "pod-1", false),
            ("east", "", false),
        ] {
            let lease = lease(&keys::service_mirror_lease(name), holder);
            assert_eq!(abandoned(&lease, in_use), expected, "{name} {holder}");
        }
        assert!(!abandoned(&lease("linkerd-failover", ""), in_use));
        assert!(!abandoned(&lease(keys::LOCAL_MIRROR_LEASE, ""), in_use));
    }

    #[test]
    fn a_link_is_looked_after_unless_it_has_a_controller() {
        check(
            &[("east", "east"), ("north", "north")],
            &["north"],
            &["east"],
            &["east"],
        );
    }

    #[test]
    fn mirrors_without_a_link_are_cleared_away_unless_they_are_kept() {
        check(&[], &["north"], &["east", "north"], &["east"]);
        assert!(wanted(&view(&[]), &view(&[]), &view(&[("web", "east")]), true).is_empty());
    }

    #[test]
    fn a_link_that_names_its_target_otherwise_keeps_its_mirrors() {
        check(&[("to-east", "east")], &[], &["east"], &["to-east"]);
        check(&[("east", "East!")], &[], &["east"], &["east"]);
    }
}
