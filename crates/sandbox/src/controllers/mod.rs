//! What kube-controller-manager and kube-scheduler do, as an ordinary client of the cluster.
//!
//! Watches fill one [`snapshot`]; [`plan`] is a pure function from it, and the time, to writes; [`apply`] carries them
//! out. The loop in this file joins them. It is told *that* something changed, never *what*: whatever should be
//! different is found again by the next plan, so there are no event queues, no resyncs and nothing to poll.
//!
//! One task owns the snapshot. Writes run beside it, so that one which waits for an admission webhook doesn't hold up
//! the others; all writes on behalf of one object (their scope) must have been answered before the next ones for it
//! start. Answers are folded into the snapshot like watch events, so no plan is made from before its own writes.

pub mod addresses;

mod accounts;
mod apply;
mod daemon_sets;
mod deployments;
mod endpoints;
mod garbage;
mod jobs;
#[cfg(test)]
mod live;
mod load_balancers;
mod mirroring;
mod namespaces;
mod nodes;
mod plan;
mod pods;
mod replica_sets;
mod scheduler;
mod snapshot;
mod stateful_sets;
#[cfg(test)]
mod tests;
mod watches;

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::Client;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::apply::{Answer, ApplyError};
use self::plan::{Action, Plan};
use self::snapshot::{Snapshot, Target};
use self::watches::{Update, Watches};
use crate::kubelet::ClusterAddresses;

/// An admission webhook may take 30 s.
const WRITE_TIMEOUT: Duration = Duration::from_secs(35);
const BACKOFF: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_secs(15);
/// With more scopes than this remembered, those that have been quiet are forgotten.
const SCOPES_KEPT: usize = 1024;

/// Runs all controllers and the scheduler of one cluster until the shutdown.
///
/// The client needs the rights of `system:masters`. ConfigMaps `kube-root-ca.crt` are copied from the one in
/// kube-system, so whoever starts the cluster has to write that one.
pub async fn run(client: Client, addresses: ClusterAddresses, shutdown: CancellationToken) {
    let watches = Watches::start(client.clone());
    follow(client, addresses, watches, plan::plan, shutdown).await;
}

/// Runs only what an infrastructure provider adds to Kubernetes' own controllers: addresses of load balancers.
pub async fn run_provider(client: Client, addresses: ClusterAddresses, shutdown: CancellationToken) {
    let watches = Watches::start_services(client.clone());
    follow(client, addresses, watches, plan::provider, shutdown).await;
}

type Planner = fn(&Snapshot, &ClusterAddresses, Timestamp) -> Plan;

async fn follow(
    client: Client,
    addresses: ClusterAddresses,
    (mut watches, mut updates): (Watches, mpsc::Receiver<Update>),
    planner: Planner,
    shutdown: CancellationToken,
) {
    let mut snapshot = Snapshot::default();
    let mut scopes = Scopes::default();
    let mut writes: JoinSet<(Target, Result<Answer, ApplyError>)> = JoinSet::new();
    let mut wake: Option<Instant> = None;
    loop {
        let sleep = async {
            match wake {
                Some(wake) => tokio::time::sleep_until(wake).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            update = updates.recv() => {
                // The watches hold a sender themselves, so there is always one.
                if let Some(update) = update {
                    watches.fold(&mut snapshot, update);
                }
            }
            Some(written) = writes.join_next() => finish(&mut snapshot, &mut scopes, written),
            () = sleep => {}
        }
        // Changes come in groups: whoever is about to add to this one may do so first.
        tokio::task::yield_now().await;
        while let Ok(update) = updates.try_recv() {
            watches.fold(&mut snapshot, update);
        }
        while let Some(written) = writes.try_join_next() {
            finish(&mut snapshot, &mut scopes, written);
        }
        if writes.is_empty() {
            snapshot.tombstones.clear();
        }
        if !watches.are_synced() {
            continue;
        }
        let plan = planner(&snapshot, &addresses, Timestamp::now());
        let (ready, wait) = scopes.admit(plan, Instant::now());
        wake = wait;
        if ready.is_empty() {
            continue;
        }
        let served = Arc::new(watches.served());
        for action in ready {
            let (client, served) = (client.clone(), Arc::clone(&served));
            writes.spawn(async move {
                let scope = action.lane().clone();
                tracing::trace!(%action, "writing");
                let timeout = tokio::time::timeout(WRITE_TIMEOUT, apply::apply(&client, action, &served));
                (scope, timeout.await.unwrap_or(Err(ApplyError::Timeout)))
            });
        }
    }
}

fn finish(
    snapshot: &mut Snapshot,
    scopes: &mut Scopes,
    written: Result<(Target, Result<Answer, ApplyError>), tokio::task::JoinError>,
) {
    let (scope, result) = match written {
        Ok(written) => written,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    };
    let outcome = match result {
        Ok(answer) => {
            match answer {
                Answer::Object(resource, object) => snapshot.answered(&resource, object),
                Answer::Gone(target, uid) => snapshot.answered_gone(&target, &uid),
                Answer::Nothing => {}
            }
            Outcome::Done
        }
        Err(error) => {
            if error.is_staleness() {
                tracing::debug!(%scope, %error, "a write came too late");
            } else {
                tracing::warn!(%scope, error = &error as &dyn std::error::Error, "a write failed");
            }
            Outcome::Failed
        }
    };
    scopes.finished(&scope, outcome, Instant::now());
}

/// Which objects are being written for, and which have to wait after a failure.
#[derive(Default)]
struct Scopes(HashMap<Target, Progress>);

/// How the writes for one object went.
struct Progress {
    running: usize,
    failed: bool,
    /// What was written last, if that went well.
    writes: Option<u64>,
    /// Whether that is the same as before.
    again: bool,
    /// How often in a row it failed or had to be written again.
    attempts: u32,
    ended: Instant,
}

#[derive(Clone, Copy, PartialEq)]
enum Outcome {
    Done,
    Failed,
}

impl Scopes {
    /// The actions that may start now, and when to look again for the sake of the others.
    fn admit(&mut self, plan: Plan, now: Instant) -> (Vec<Action>, Option<Instant>) {
        let until =
            |time: Timestamp| now + Duration::try_from(time.duration_since(plan.now)).unwrap_or_default();
        let mut wake = plan.wake.map(until);
        let mut groups: BTreeMap<Target, Vec<Action>> = BTreeMap::new();
        for action in plan.actions {
            groups.entry(action.lane().clone()).or_default().push(action);
        }
        if self.0.len() > SCOPES_KEPT {
            self.0.retain(|scope, progress| {
                progress.running > 0 || groups.contains_key(scope) || now < progress.ended + BACKOFF_MAX
            });
        }
        let mut admitted = Vec::new();
        for (scope, actions) in groups {
            let mut hasher = DefaultHasher::new();
            for action in &actions {
                format!("{:?}", action.write).hash(&mut hasher);
            }
            let writes = hasher.finish();
            let running = actions.len();
            let started = Progress {
                running,
                failed: false,
                writes: Some(writes),
                again: false,
                attempts: 0,
                ended: now,
            };
            let Some(progress) = self.0.get_mut(&scope) else {
                self.0.insert(scope, started);
                admitted.extend(actions);
                continue;
            };
            if progress.running > 0 {
                continue;
            }
            // What was just written is planned again when the answer did not say what it led to, and a watch will; or
            // when the API server keeps changing what we write. Neither must become a busy loop.
            let again = progress.writes == Some(writes);
            let attempts = progress.attempts + u32::from(again);
            let due = progress.ended + backoff(attempts);
            if now < due {
                wake = Some(wake.map_or(due, |wake| wake.min(due)));
                continue;
            }
            *progress = Progress {
                attempts,
                again,
                ..started
            };
            admitted.extend(actions);
        }
        (admitted, wake)
    }

    fn finished(&mut self, scope: &Target, outcome: Outcome, now: Instant) {
        let Some(progress) = self.0.get_mut(scope) else {
            return;
        };
        progress.running = progress.running.saturating_sub(1);
        progress.failed |= outcome == Outcome::Failed;
        progress.ended = now;
        if progress.running > 0 {
            return;
        }
        if progress.failed {
            progress.attempts += 1;
            progress.writes = None;
        } else if !progress.again {
            progress.attempts = 0;
        }
    }
}

fn backoff(attempts: u32) -> Duration {
    match attempts {
        0 => Duration::ZERO,
        attempts => BACKOFF
            .saturating_mul(1 << (attempts - 1).min(16))
            .min(BACKOFF_MAX),
    }
}
