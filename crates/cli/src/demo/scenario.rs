//! The workshop as a play: two clusters are meshed and linked, votes cross the gateway, a service fails and comes
//! back.
//!
//! Everything is done as a user would: manifests are applied, labels set, Deployments scaled, and each outcome is
//! read back from the clusters and from the proxies' metrics. Nothing here reaches into the sandbox.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use hawser_control::values::Values;
use hawser_tls::{Created, Issuer, Validity};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Endpoints, Pod, Service};
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::discovery::ApiResource;
use kube::{Client, ResourceExt};
use serde_json::{Value, json};

use crate::apply::Applier;
use crate::demo::stage::{Look, Stage};
use crate::demo::traffic::{Destination, Totals, totals};
use crate::problem::Problem;
use crate::{install, multicluster, viz};

const APPLICATION: &str = "emojivoto";
const MINUTE: Duration = Duration::from_secs(60);
/// The proxy's admin port, where it serves its metrics.
const ADMIN_PORT: u16 = 4191;
const DAY: Duration = Duration::from_secs(24 * 3600);
/// How often the dashboard's collectors look: an audience has no patience.
const LOOK_EVERY: &str = "1s";
/// Requests in a row that must have moved before traffic counts as moved.
const VOTES_MOVED: f64 = 5.0;

/// One cluster on stage.
pub(super) struct Cluster {
    pub(super) name: &'static str,
    pub(super) client: Client,
    /// How the other cluster's controllers reach this cluster's API server.
    pub(super) api_url: String,
}

/// What the audience should remember.
pub(super) struct Outcome {
    pub(super) first_vote_through_east: Duration,
    pub(super) failover: Duration,
    pub(super) failback: Duration,
}

/// Plays everything up to the return of the votes.
/// `dashboard` is where people can watch.
pub(super) async fn play(
    stage: &mut Stage,
    west: &Cluster,
    east: &Cluster,
    dashboard: Option<&str>,
) -> Result<Outcome, Problem> {
    let mut on_west = Applier::new(west.client.clone());
    let mut on_east = Applier::new(east.client.clone());

    stage.say("trust: each cluster has its own anchor; both trust the bundle of the two");
    let (west_values, east_values) = stage
        .step("trust anchors and issuers are made", MINUTE, async {
            trust(SystemTime::now())
        })
        .await?;

    stage.say("mesh: identity, destination, policy and injector in both clusters");
    stage
        .step("control planes are applied", MINUTE, async {
            let (west_plane, east_plane) = (
                install::manifests(&west_values)?,
                install::manifests(&east_values)?,
            );
            both(on_west.apply_yaml(&west_plane), on_east.apply_yaml(&east_plane)).await
        })
        .await?;
    available(
        stage,
        "control planes are ready",
        &[(west, "linkerd"), (east, "linkerd")],
    )
    .await?;

    stage
        .step("the multicluster extension is applied", MINUTE, async {
            let (west_ext, east_ext) = (
                multicluster::manifests(&west_values)?,
                multicluster::manifests(&east_values)?,
            );
            both(on_west.apply_yaml(&west_ext), on_east.apply_yaml(&east_ext)).await
        })
        .await?;

    stage.say("application: Emojivoto in both clusters, injected");
    stage
        .step("Emojivoto is applied", MINUTE, async {
            let manifest = injected(hawser_emojivoto::MANIFEST)?;
            both(
                apply_all(&mut on_west, &manifest),
                apply_all(&mut on_east, &manifest),
            )
            .await
        })
        .await?;
    let bot = Api::<Deployment>::namespaced(east.client.clone(), APPLICATION);
    stage
        .step(
            "the vote-bot of east is removed: votes are cast in west only",
            MINUTE,
            async {
                bot.delete("vote-bot", &DeleteParams::default())
                    .await
                    .map_err(|e| failed("delete east's vote-bot", e))
            },
        )
        .await?;
    let everywhere = [
        (west, "linkerd-multicluster"),
        (east, "linkerd-multicluster"),
        (west, APPLICATION),
        (east, APPLICATION),
    ];
    available(stage, "gateways and Emojivoto are ready", &everywhere).await?;

    stage.say("link: west learns where east's gateway is, and what it may read there");
    stage
        .step("web-svc is exported from east", MINUTE, async {
            let exported = json!({"metadata": {"labels": {"mirror.linkerd.io/exported": "true"}}});
            merge::<Service>(east, "web-svc", &exported).await
        })
        .await?;
    stage
        .step("east is linked to west", MINUTE, async {
            let link =
                multicluster::link_manifests(&east.client, east.name, &east.api_url, &west_values).await?;
            on_west.apply_yaml(&link).await
        })
        .await?;
    mirrored(stage, west).await?;

    stage.say("votes: west's vote-bot is pointed at web-svc-east");
    stage
        .step("vote-bot votes at web-svc-east", MINUTE, async {
            vote_at(west, "web-svc-east.emojivoto:80").await
        })
        .await?;
    stage
        .wait("the first vote went through east's gateway", MINUTE, async || {
            let answered = voted(west).await?;
            Ok(match successes(&answered, &east_of(east)) {
                count if count >= 1.0 => Look::Done(()),
                _ => Look::Waiting("a successful answer from east".into()),
            })
        })
        .await?;
    let first_vote_through_east = stage.elapsed();
    stage.say(&format!(
        "  -> first vote through east {:.1} s after the start",
        first_vote_through_east.as_secs_f64()
    ));

    stage.say("dashboard: a collector in each cluster; west's asks east's through the gateway");
    stage
        .step("the viz extension is applied", MINUTE, async {
            let (west_viz, east_viz) = (
                viz::manifests(&west_values, west.name, LOOK_EVERY)?,
                viz::manifests(&east_values, east.name, LOOK_EVERY)?,
            );
            both(
                apply_all(&mut on_west, &west_viz),
                apply_all(&mut on_east, &east_viz),
            )
            .await
        })
        .await?;
    if let Some(url) = dashboard {
        stage.say(&format!("  -> watch it: {url}"));
    }

    stage.say("failover: a TrafficSplit with web-svc first and web-svc-east behind it");
    stage
        .step(
            "the failover controller and the split are applied",
            MINUTE,
            async {
                on_west
                    .apply_yaml(&crate::failover::manifests(&west_values)?)
                    .await?;
                on_west.apply(&traffic_split()).await?;
                vote_at(west, "web-svc.emojivoto:80").await
            },
        )
        .await?;
    available(
        stage,
        "the failover controller is ready",
        &[(west, "linkerd-failover"), (west, APPLICATION)],
    )
    .await?;
    weighed(
        stage,
        "weights say web-svc 1, web-svc-east 0",
        west,
        [true, false],
    )
    .await?;
    moved(stage, "votes are cast in west", west, &Destination::Local).await?;

    let failed_at = tokio::time::Instant::now();
    stage
        .step("web is scaled to 0 in west", MINUTE, async {
            scale(west, "web", 0).await
        })
        .await?;
    weighed(stage, "weights moved to web-svc-east", west, [false, true]).await?;
    moved(stage, "votes continue through east", west, &east_of(east)).await?;
    let failover = failed_at.elapsed();

    let returned_at = tokio::time::Instant::now();
    stage
        .step("web is scaled back to 1 in west", MINUTE, async {
            scale(west, "web", 1).await
        })
        .await?;
    weighed(stage, "weights returned to web-svc", west, [true, false]).await?;
    moved(stage, "votes return to west", west, &Destination::Local).await?;
    let failback = returned_at.elapsed();

    Ok(Outcome {
        first_vote_through_east,
        failover,
        failback,
    })
}

/// Settings of both clusters: own issuers, one bundle.
fn trust(now: SystemTime) -> Result<(Values, Values), Problem> {
    let validity = Validity {
        not_before: now - MINUTE,
        not_after: now + 365 * DAY,
    };
    let anchor = || hawser_tls::create_root("root.linkerd.cluster.local", validity);
    let (west, east) = (anchor().map_err(untrusted)?, anchor().map_err(untrusted)?);
    let bundle = format!("{}{}", west.certificate_pem, east.certificate_pem);
    Ok((
        values(&west, &bundle, validity)?,
        values(&east, &bundle, validity)?,
    ))
}

fn values(root: &Created, bundle: &str, validity: Validity) -> Result<Values, Problem> {
    let parent = Issuer::from_pem(&root.certificate_pem, &root.key.to_pem()).map_err(untrusted)?;
    let issuer =
        hawser_tls::create_issuer("identity.linkerd.cluster.local", &parent, validity).map_err(untrusted)?;
    let mut values = Values {
        identity_trust_anchors_pem: bundle.to_owned(),
        ..Values::default()
    };
    values.identity.issuer.tls.crt_pem = issuer.certificate_pem;
    values.identity.issuer.tls.key_pem = issuer.key.to_pem();
    values.proxy.mark = super::PROXY_MARK;
    Ok(values)
}

fn untrusted(error: hawser_tls::Error) -> Problem {
    Problem::new(
        "cannot make certificates",
        error,
        "check that this machine's clock is right",
    )
}

/// Emojivoto with the annotation that makes the injector add a proxy, as `hawser inject` writes it.
fn injected(manifest: &str) -> Result<Vec<Value>, Problem> {
    let mut objects = crate::apply::documents(manifest)?;
    for object in objects.iter_mut().filter(|object| object["kind"] == "Deployment") {
        object["spec"]["template"]["metadata"]["annotations"]["linkerd.io/inject"] = json!("enabled");
    }
    Ok(objects)
}

async fn apply_all(applier: &mut Applier, objects: &[Value]) -> Result<(), Problem> {
    for object in objects {
        applier.apply(object).await?;
    }
    Ok(())
}

async fn both(
    west: impl Future<Output = Result<(), Problem>>,
    east: impl Future<Output = Result<(), Problem>>,
) -> Result<(), Problem> {
    futures::future::try_join(west, east).await.map(|_| ())
}

/// Waits until every Deployment of the namespaces has what it wants, with all containers ready.
async fn available(stage: &mut Stage, title: &str, places: &[(&Cluster, &str)]) -> Result<(), Problem> {
    stage
        .wait(title, 2 * MINUTE, async || {
            let mut missing = Vec::new();
            for (cluster, namespace) in places {
                let api = Api::<Deployment>::namespaced(cluster.client.clone(), namespace);
                let list = api
                    .list(&ListParams::default())
                    .await
                    .map_err(|e| failed("list Deployments", e))?;
                if list.items.is_empty() {
                    missing.push(format!("{}:{namespace}", cluster.name));
                }
                let unready = list.items.iter().filter(|deployment| !is_available(deployment));
                missing
                    .extend(unready.map(|deployment| format!("{}:{}", cluster.name, deployment.name_any())));
            }
            Ok(if missing.is_empty() {
                Look::Done(())
            } else {
                Look::Waiting(missing.join(", "))
            })
        })
        .await
}

fn is_available(deployment: &Deployment) -> bool {
    let wanted = deployment
        .spec
        .as_ref()
        .and_then(|spec| spec.replicas)
        .unwrap_or(1);
    deployment.status.as_ref().is_some_and(|status| {
        status.observed_generation == deployment.metadata.generation
            && status.updated_replicas.unwrap_or(0) == wanted
            && status.available_replicas.unwrap_or(0) == wanted
            && status.replicas.unwrap_or(0) == wanted
    })
}

/// Waits for the mirror: a Service with an address of east's gateway behind it.
async fn mirrored(stage: &mut Stage, west: &Cluster) -> Result<(), Problem> {
    let api = Api::<Endpoints>::namespaced(west.client.clone(), APPLICATION);
    stage
        .wait(
            "web-svc-east appeared in west, with the gateway's address",
            MINUTE,
            async || {
                let mirror = api
                    .get_opt("web-svc-east")
                    .await
                    .map_err(|e| failed("read the mirror's Endpoints", e))?;
                let addresses = mirror
                    .iter()
                    .flat_map(|e| e.subsets.iter().flatten())
                    .flat_map(|s| s.addresses.iter().flatten());
                Ok(match addresses.count() {
                    0 => Look::Waiting("Endpoints emojivoto/web-svc-east".into()),
                    _ => Look::Done(()),
                })
            },
        )
        .await
}

async fn vote_at(west: &Cluster, host: &str) -> Result<(), Problem> {
    let container = json!({"name": "vote-bot", "env": [{"name": "WEB_HOST", "value": host}, {"name": "REQUEST_RATE", "value": "10"}]});
    let patch = json!({"spec": {"template": {"spec": {"containers": [container]}}}});
    Api::<Deployment>::namespaced(west.client.clone(), APPLICATION)
        .patch("vote-bot", &PatchParams::default(), &Patch::Strategic(&patch))
        .await
        .map(|_| ())
        .map_err(|e| failed("point vote-bot elsewhere", e))
}

async fn scale(cluster: &Cluster, deployment: &str, replicas: u32) -> Result<(), Problem> {
    Api::<Deployment>::namespaced(cluster.client.clone(), APPLICATION)
        .patch_scale(
            deployment,
            &PatchParams::default(),
            &Patch::Merge(json!({"spec": {"replicas": replicas}})),
        )
        .await
        .map(|_| ())
        .map_err(|e| failed("scale a Deployment", e))
}

async fn merge<K>(cluster: &Cluster, name: &str, patch: &Value) -> Result<(), Problem>
where
    K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned,
{
    Api::<K>::namespaced(cluster.client.clone(), APPLICATION)
        .patch(name, &PatchParams::default(), &Patch::Merge(patch))
        .await
        .map(|_| ())
        .map_err(|e| failed(&format!("change {name}"), e))
}

fn traffic_split() -> Value {
    json!({
        "apiVersion": "split.smi-spec.io/v1alpha2",
        "kind": "TrafficSplit",
        "metadata": {
            "name": "web-svc",
            "namespace": APPLICATION,
            "labels": {"failover.linkerd.io/controlled-by": "linkerd-failover"},
            "annotations": {
                "failover.linkerd.io/primary-service": "web-svc",
                // As by default, but for an audience: the return takes two seconds instead of half a minute.
                "failover.linkerd.io/min-dwell": "1s",
                "failover.linkerd.io/return-over": "2s",
            },
        },
        "spec": {
            "service": "web-svc",
            "backends": [{"service": "web-svc", "weight": 1}, {"service": "web-svc-east", "weight": 0}],
        },
    })
}

/// Waits until exactly the wanted backends of the split have weight, in their order.
async fn weighed(stage: &mut Stage, title: &str, west: &Cluster, wanted: [bool; 2]) -> Result<(), Problem> {
    let gvk = GroupVersionKind::gvk("split.smi-spec.io", "v1alpha2", "TrafficSplit");
    let resource = ApiResource::from_gvk_with_plural(&gvk, "trafficsplits");
    let api: Api<DynamicObject> = Api::namespaced_with(west.client.clone(), APPLICATION, &resource);
    stage
        .wait(title, MINUTE, async || {
            let split = api
                .get("web-svc")
                .await
                .map_err(|e| failed("read the TrafficSplit", e))?;
            let backends = split.data["spec"]["backends"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            let weights: Vec<bool> = backends
                .iter()
                .map(|b| b["weight"].as_f64().is_some_and(|w| w > 0.0))
                .collect();
            Ok(if weights == wanted {
                Look::Done(())
            } else {
                Look::Waiting(format!("weights, now {backends:?}"))
            })
        })
        .await
}

/// Waits until new votes are answered by `destination`, and by nobody else.
async fn moved(
    stage: &mut Stage,
    title: &str,
    west: &Cluster,
    destination: &Destination,
) -> Result<(), Problem> {
    let mut before = voted(west).await?;
    stage
        .wait(title, MINUTE, async || {
            let now = voted(west).await?;
            let there = successes(&now, destination) - successes(&before, destination);
            let elsewhere: f64 = now
                .keys()
                .filter(|other| *other != destination)
                .map(|other| successes(&now, other) - successes(&before, other))
                .sum();
            if elsewhere > 0.0 || there < 0.0 {
                // Still moving, or the proxy restarted: count again from here.
                before = now;
                return Ok(Look::Waiting("votes that still go elsewhere".into()));
            }
            Ok(match there {
                enough if enough >= VOTES_MOVED => Look::Done(()),
                few => Look::Waiting(format!("{VOTES_MOVED} votes, {few} so far")),
            })
        })
        .await
}

fn east_of(east: &Cluster) -> Destination {
    Destination::Linked(east.name.to_owned())
}

fn successes(all: &BTreeMap<Destination, Totals>, destination: &Destination) -> f64 {
    all.get(destination).map_or(0.0, |totals| totals.successes)
}

/// What the proxy of west's vote-bot counted so far, by the cluster that answered.
pub(super) async fn voted(west: &Cluster) -> Result<BTreeMap<Destination, Totals>, Problem> {
    let pods = Api::<Pod>::namespaced(west.client.clone(), APPLICATION);
    let running = ListParams::default().labels("app=vote-bot");
    let list = pods
        .list(&running)
        .await
        .map_err(|e| failed("list the vote-bot's pods", e))?;
    // While a rollout replaces the pod, the newest one votes on.
    let newest = list
        .items
        .iter()
        .filter(|pod| pod.metadata.deletion_timestamp.is_none())
        .max_by_key(|pod| pod.metadata.creation_timestamp.clone());
    let Some(pod) = newest else {
        return Ok(BTreeMap::new());
    };
    // A pod that is starting has no metrics yet.
    let exposition = crate::scrape::metrics(&pods, &pod.name_any(), ADMIN_PORT)
        .await
        .unwrap_or_default();
    Ok(totals(&exposition, "web-svc"))
}

fn failed(what: &str, error: kube::Error) -> Problem {
    Problem::new(format!("cannot {what}"), error, "hawser sandbox status")
}
