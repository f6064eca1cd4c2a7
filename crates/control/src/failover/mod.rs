//! `hawser-control failover`: moves traffic away from services that have no ready endpoints, and back.
//!
//! Watches of TrafficSplits and endpoints become one snapshot, [`plan`] decides the weights, and the loop here writes
//! them. Both kinds of watch feed one task: a plan reads splits *and* endpoints, and if they advanced separately the
//! primary could be muted by endpoints from before the change that revived it. A failed write is tried again; an Event
//! tells only what has happened. Source: `spec/multicluster.md` 8.3.

mod plan;

use std::collections::BTreeMap;
use std::time::Duration;

use hawser_core::failover::Reason;
use hawser_crd::TrafficSplit;
use hawser_crd::keys;
use hawser_runtime::Metrics;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Endpoints;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::events::v1::Event;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::lease;
use crate::observe::{Bell, Key, Limit, Observed, Select, chain};
use crate::process::{Process, ProcessArgs};
use plan::{Decision, Slice, Snapshot};

const ADMIN_PORT: u16 = 8080;
const FIELD_MANAGER: &str = "failover.linkerd.io";
const CONTROLLER: &str = "linkerd-failover";
const LEASE: &str = "linkerd-failover";
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
const OBJECTS_MAX: Limit = Limit(100_000);
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(30);
const REPAIR: Duration = Duration::from_secs(60);

/// Moves traffic away from services that have no ready endpoints, and back.
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "Example: hawser-control failover --selector failover.linkerd.io/controlled-by=linkerd-failover"
)]
pub struct Args {
    #[command(flatten)]
    pub process: ProcessArgs,
    /// TrafficSplits to look after
    #[arg(long, short = 'l', default_value = keys::FAILOVER_CONTROLLED_BY)]
    pub selector: String,
    /// Where the lease lives by which replicas agree who writes
    #[arg(long, default_value = keys::FAILOVER_NAMESPACE)]
    pub namespace: String,
}

pub async fn run(args: Args) -> anyhow::Result<()> {
    let process = Process::start(ADMIN_PORT, &args.process).await?;
    let identity = std::env::var("HOSTNAME").unwrap_or_else(|_| format!("failover-{}", std::process::id()));
    let bell = Bell::default();
    let leadership = lease::run(
        process.client.clone(),
        &args.namespace,
        LEASE.into(),
        identity.clone(),
        bell.clone(),
        process.drain.clone(),
    );
    let leads = leadership.watch();
    let work = failover(
        process.client.clone(),
        args.selector,
        identity,
        process.metrics.clone(),
        leads,
        bell,
        process.drain.clone(),
    );
    process
        .serve(async {
            work.await;
            Ok(())
        })
        .await?;
    leadership.released().await;
    Ok(())
}

/// Looks after the selected splits until shutdown, while `leads` says so.
pub async fn failover(
    client: Client,
    selector: String,
    instance: String,
    metrics: Metrics,
    leads: tokio::sync::watch::Receiver<bool>,
    bell: Bell,
    shutdown: CancellationToken,
) {
    let splits: Observed<TrafficSplit> = Observed::start(
        Api::all(client.clone()),
        Select::labels(selector),
        OBJECTS_MAX,
        bell.clone(),
        Some,
    );
    let endpoints: Observed<bool> = Observed::start::<Endpoints>(
        Api::all(client.clone()),
        Select::all(),
        OBJECTS_MAX,
        bell.clone(),
        plan::reduce_endpoints,
    );
    let slices: Observed<Slice> = Observed::start::<EndpointSlice>(
        Api::all(client.clone()),
        Select::all(),
        OBJECTS_MAX,
        bell.clone(),
        plan::reduce_slice,
    );
    let mut told = BTreeMap::new();
    let mut retry = RETRY_MIN;
    let mut next = Instant::now();
    loop {
        tokio::select! {
            () = bell.rung() => {}
            () = tokio::time::sleep_until(next) => {}
            () = shutdown.cancelled() => return,
        }
        next = Instant::now() + REPAIR;
        if !*leads.borrow() {
            continue;
        }
        let (Some(splits), Some(endpoints), Some(slices)) = (splits.view(), endpoints.view(), slices.view())
        else {
            continue;
        };
        let snapshot = Snapshot {
            splits,
            endpoints,
            slices,
        };
        let decisions = plan::plan(&snapshot);
        told.retain(|key, _| decisions.contains_key(key));
        let mut all_written = true;
        for (key, decision) in decisions {
            let uid = snapshot
                .splits
                .get(&key)
                .and_then(|split| split.metadata.uid.clone())
                .unwrap_or_default();
            let subject = Subject {
                client: &client,
                instance: &instance,
                key: &key,
                uid: &uid,
            };
            all_written &= subject.carry_out(decision, &mut told, &metrics).await;
        }
        if all_written {
            retry = RETRY_MIN;
        } else {
            next = Instant::now() + retry;
            retry = (retry * 2).min(RETRY_MAX);
        }
    }
}

/// One TrafficSplit, as something to write to and to tell about.
struct Subject<'a> {
    client: &'a Client,
    instance: &'a str,
    key: &'a Key,
    uid: &'a str,
}

/// What was last told about a split, so that nothing is told twice.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Told {
    Decided(Reason),
    NotUnderstood(String),
}

impl Subject<'_> {
    /// Says whether nothing is left to do.
    async fn carry_out(
        &self,
        decision: Result<Decision, String>,
        told: &mut BTreeMap<Key, Told>,
        metrics: &Metrics,
    ) -> bool {
        let Decision { because, patch } = match decision {
            Ok(decision) => decision,
            Err(error) => {
                if told
                    .insert(self.key.clone(), Told::NotUnderstood(error.clone()))
                    .as_ref()
                    != Some(&Told::NotUnderstood(error.clone()))
                {
                    tracing::warn!(split = %self.key, error, "the split is left alone");
                    self.event(
                        "Warning",
                        "Misconfigured",
                        &format!("trafficsplit/{}: {error}", self.key.name),
                    )
                    .await;
                }
                return true;
            }
        };
        if let Some(patch) = patch {
            if let Err(error) = self.write(patch).await {
                tracing::warn!(split = %self.key, error, "weights not written");
                metrics.add(
                    "failover_patches",
                    "Weights written",
                    &[("success", "false")],
                    1.0,
                );
                return false;
            }
            metrics.add("failover_patches", "Weights written", &[("success", "true")], 1.0);
            tracing::info!(split = %self.key, ?because, "weights written");
            told.insert(self.key.clone(), Told::Decided(because));
            let name = &self.key.name;
            let note = match because {
                Reason::PrimaryReady => format!("trafficsplit/{name} switching traffic to primary"),
                _ => format!("trafficsplit/{name} failing over to fallbacks"),
            };
            self.event("Normal", "Failover", &note).await;
            return true;
        }
        let is_news = told.insert(self.key.clone(), Told::Decided(because)) != Some(Told::Decided(because));
        let trouble = match because {
            Reason::NobodyIsReady => Some("no backend is ready; the weights stay as they are"),
            Reason::PrimaryIsNotABackend => {
                Some("the primary service is not a backend; the weights stay as they are")
            }
            _ => None,
        };
        if let Some(trouble) = trouble.filter(|_| is_news) {
            tracing::warn!(split = %self.key, trouble, "nothing to fail over to");
            self.event(
                "Warning",
                "NoFailover",
                &format!("trafficsplit/{}: {trouble}", self.key.name),
            )
            .await;
        }
        true
    }

    async fn write(&self, patch: serde_json::Value) -> Result<(), String> {
        let splits: Api<TrafficSplit> = Api::namespaced(self.client.clone(), &self.key.namespace);
        let params = PatchParams {
            field_manager: Some(FIELD_MANAGER.into()),
            ..Default::default()
        };
        let patch = Patch::Merge(patch);
        let write = splits.patch(&self.key.name, &params, &patch);
        match tokio::time::timeout(WRITE_TIMEOUT, write).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(chain(&error)),
            Err(_) => Err(format!("the API server did not answer within {WRITE_TIMEOUT:?}")),
        }
    }

    /// An Event is a courtesy: one that can't be written is logged, not retried.
    async fn event(&self, kind: &str, reason: &str, note: &str) {
        let now = Timestamp::now();
        let name = format!("{}.{:x}", self.key.name, now.as_nanosecond());
        let event = json!({
            "apiVersion": "events.k8s.io/v1", "kind": "Event",
            "metadata": {"namespace": self.key.namespace, "name": name},
            "regarding": {
                "apiVersion": "split.smi-spec.io/v1alpha2", "kind": "TrafficSplit",
                "namespace": self.key.namespace, "name": self.key.name, "uid": self.uid,
            },
            "type": kind, "reason": reason, "action": "Failover", "note": note,
            "reportingController": CONTROLLER, "reportingInstance": self.instance,
            "eventTime": now.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string(),
        });
        let write = async {
            let event: Event = serde_json::from_value(event).map_err(kube::Error::SerdeError)?;
            Api::<Event>::namespaced(self.client.clone(), &self.key.namespace)
                .create(&PostParams::default(), &event)
                .await
        };
        match tokio::time::timeout(WRITE_TIMEOUT, write).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!(split = %self.key, error = chain(&error), "event not written"),
            Err(_) => tracing::warn!(split = %self.key, "event not written: no answer"),
        }
    }
}
