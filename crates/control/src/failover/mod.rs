//! `hawser-control failover`: moves traffic away from services that have no ready endpoints or fail, and back.
//!
//! Watches of TrafficSplits and endpoints become one snapshot, [`plan`] decides the weights, [`apply`] writes them and
//! tells why. Both kinds of watch feed one task: a plan reads splits *and* endpoints, and if they advanced separately
//! the primary could be muted by endpoints from before the change that revived it. What clients measured comes from
//! [`health`]. All that is remembered is in annotations of the splits. Source: `spec/multicluster.md` 8.3; what goes
//! beyond it is in `docs/failover.md`.

mod apply;
mod drill;
mod health;
mod plan;
mod settings;
mod status;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::{StreamExt, stream};
use hawser_crd::TrafficSplit;
use hawser_crd::keys;
use hawser_runtime::Metrics;
use k8s_openapi::api::core::v1::Endpoints;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{Api, Client};
use tokio::time::Instant;

use crate::lead::{self, Next, Work};
use crate::observe::{Bell, Key, Limit, Observed, Select};
use crate::process::{Process, ProcessArgs};
use apply::Subject;
use health::Monitor;
use plan::{Decision, Slice, Snapshot};

pub use drill::{DRILL_MAX, Drill, Forecast, forecast};
pub use settings::Settings;
pub use status::{Absence, Returning, Status};

const ADMIN_PORT: u16 = 8080;
const LEASE: &str = "linkerd-failover";
const OBJECTS_MAX: Limit = Limit(100_000);
/// Writes at the same time: the loss of a gateway concerns many splits at once.
const WRITES: usize = 16;
/// What is due is due also while another split can't be written.
const RETRY: Duration = Duration::from_secs(1);
/// Between two looks at what clients measured.
const MEASURE_INTERVAL: Duration = Duration::from_secs(2);

/// Moves traffic away from services that have no ready endpoints or fail, and back.
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
    let bell = Bell::default();
    let config = Config {
        selector: args.selector,
        instance: lead::identity(),
        clock: Arc::new(SystemTime::now),
        measure_interval: MEASURE_INTERVAL,
    };
    let (client, metrics) = (process.client.clone(), process.metrics.clone());
    let controller = Controller::new(client, config, metrics, bell.clone());
    lead::run(process, &args.namespace, LEASE.into(), bell, controller).await
}

pub struct Config {
    /// TrafficSplits to look after.
    pub selector: String,
    /// Name of this replica, for Events.
    pub instance: String,
    pub clock: Arc<dyn Fn() -> SystemTime + Send + Sync>,
    /// The shortest time between two looks at what clients measured.
    pub measure_interval: Duration,
}

/// Looks after the selected splits.
pub struct Controller {
    client: Client,
    config: Config,
    metrics: Metrics,
    splits: Observed<TrafficSplit>,
    endpoints: Observed<bool>,
    slices: Observed<Slice>,
    monitor: Monitor,
    /// Versions of splits that we have replaced. Until the watch brings what we wrote, there is nothing to decide.
    replaced: BTreeMap<Key, String>,
    /// Mistakes that were told, so that none is told twice.
    told: BTreeMap<Key, Vec<String>>,
}

impl Controller {
    /// `bell` rings whenever there is something to look at.
    pub fn new(client: Client, config: Config, metrics: Metrics, bell: Bell) -> Self {
        let splits = Observed::start(
            Api::all(client.clone()),
            Select::labels(&config.selector),
            OBJECTS_MAX,
            bell.clone(),
            Some,
        );
        let endpoints = Observed::start::<Endpoints>(
            Api::all(client.clone()),
            Select::all(),
            OBJECTS_MAX,
            bell.clone(),
            plan::reduce_endpoints,
        );
        let slices = Observed::start::<EndpointSlice>(
            Api::all(client.clone()),
            Select::all(),
            OBJECTS_MAX,
            bell.clone(),
            plan::reduce_slice,
        );
        let monitor = Monitor::start(client.clone(), config.measure_interval, bell);
        Self {
            client,
            config,
            metrics,
            splits,
            endpoints,
            slices,
            monitor,
            replaced: BTreeMap::new(),
            told: BTreeMap::new(),
        }
    }

    fn subject<'a>(&'a self, key: &'a Key, uid: &'a str) -> Subject<'a> {
        Subject {
            client: &self.client,
            metrics: &self.metrics,
            instance: &self.config.instance,
            key,
            uid,
        }
    }

    /// Tells mistakes that are new.
    async fn complain(&mut self, key: &Key, uid: &str, mistakes: Vec<String>) {
        if self.told.get(key) == Some(&mistakes) {
            return;
        }
        for mistake in &mistakes {
            tracing::warn!(split = %key, mistake, "a split is not as its controller understands it");
            let note = format!("trafficsplit/{}: {mistake}", key.name);
            self.subject(key, uid)
                .event("Warning", "Misconfigured", &note)
                .await;
        }
        if mistakes.is_empty() {
            self.told.remove(key);
        } else {
            self.told.insert(key.clone(), mistakes);
        }
    }
}

/// A decision that changes a split, and the version that it is about.
struct Change {
    key: Key,
    uid: String,
    version: String,
    decision: Decision,
}

impl Work for Controller {
    async fn reconcile(&mut self) -> Next {
        let (Some(splits), Some(endpoints), Some(slices)) =
            (self.splits.view(), self.endpoints.view(), self.slices.view())
        else {
            return Next::Settled;
        };
        let snapshot = Snapshot {
            splits,
            endpoints,
            slices,
        };
        self.monitor.want(plan::judged(&snapshot.splits));
        let (ledger, looked) = (self.monitor.ledger(), Instant::now());
        let now = (self.config.clock)();
        let decisions = plan::plan(
            &snapshot,
            &|service, window, quantile| ledger.measured(service, window, quantile, looked),
            now,
        );
        self.told.retain(|key, _| decisions.contains_key(key));
        self.replaced.retain(|key, version| {
            let split = snapshot.splits.get(key);
            split.is_some_and(|split| split.metadata.resource_version.as_ref() == Some(version))
        });
        let (mut due, mut changes) = (Vec::new(), Vec::new());
        for (key, decision) in decisions {
            let metadata = snapshot.splits.get(&key).map(|split| &split.metadata);
            let of = |field: Option<&String>| field.cloned().unwrap_or_default();
            let uid = of(metadata.and_then(|metadata| metadata.uid.as_ref()));
            match decision {
                Err(mistake) => self.complain(&key, &uid, vec![mistake]).await,
                Ok(mut decision) => {
                    self.complain(&key, &uid, std::mem::take(&mut decision.mistakes))
                        .await;
                    due.extend(decision.plan.due);
                    if decision.patch.is_some() && !self.replaced.contains_key(&key) {
                        let version = of(metadata.and_then(|metadata| metadata.resource_version.as_ref()));
                        changes.push(Change {
                            key,
                            uid,
                            version,
                            decision,
                        });
                    }
                }
            }
        }
        let controller = &*self;
        let written = stream::iter(changes).map(|change: Change| async move {
            let subject = controller.subject(&change.key, &change.uid);
            let success = subject.change(&change.decision).await;
            (change.key, change.version, success)
        });
        let written: Vec<_> = written.buffer_unordered(WRITES).collect().await;
        let mut all_written = true;
        for (key, version, success) in written {
            all_written &= success;
            if success {
                self.replaced.insert(key, version);
            }
        }
        let due = due.into_iter().min();
        // Writing took time as well.
        let now = (self.config.clock)();
        match due.map(|due| due.duration_since(now).unwrap_or_default()) {
            None if all_written => Next::Settled,
            None => Next::Retry,
            Some(pause) if all_written => Next::After(pause),
            Some(pause) => Next::After(pause.min(RETRY)),
        }
    }

    fn rest(&mut self) {
        // Whoever leads measures.
        self.monitor.want(Default::default());
    }
}
