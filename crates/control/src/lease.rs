//! Leader election by a Lease: of several replicas, one writes.
//!
//! A holder that hasn't renewed for the lease's duration, measured by the observer's own clock since it last saw
//! the lease change, is taken over; clocks of different machines are never compared. A holder that can't renew
//! stops writing before others may take over. Every write is conditional on the version that was read, so two
//! replicas can't both win.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::observe::{Bell, chain};

const DURATION: Duration = Duration::from_secs(30);
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(2);

/// Whether this process leads.
#[derive(Debug)]
pub struct Leadership {
    leads: watch::Receiver<bool>,
    task: AbortOnDropHandle<()>,
}

impl Leadership {
    pub fn watch(&self) -> watch::Receiver<bool> {
        self.leads.clone()
    }

    /// Waits, after shutdown, until the lease is given back.
    pub async fn released(self) {
        // Bounded by the deadlines of the last renewal and of the release itself.
        let _ = self.task.await;
    }
}

/// Runs for the lease until shutdown, and gives it back then. The bell rings when leadership comes or goes.
pub fn run(
    client: Client,
    namespace: &str,
    name: String,
    identity: String,
    bell: Bell,
    shutdown: CancellationToken,
) -> Leadership {
    let leases: Api<Lease> = Api::namespaced(client, namespace);
    let (sender, leads) = watch::channel(false);
    let task = tokio::spawn(async move {
        let mut election = Election::default();
        loop {
            let attempt = tokio::time::timeout(RENEW_DEADLINE, election.attempt(&leases, &name, &identity));
            let result = match attempt.await {
                Ok(result) => result.map_err(|error| chain(&error)),
                Err(_) => Err("the API server did not answer".to_owned()),
            };
            if let Err(error) = &result {
                tracing::warn!(lease = name, error, "leader election");
            }
            let leads = election.leads(result.ok(), Instant::now());
            if sender.send_replace(leads) != leads {
                tracing::info!(lease = name, identity, leads, "leadership");
                bell.ring();
            }
            tokio::select! {
                () = tokio::time::sleep(RETRY) => {}
                () = shutdown.cancelled() => break,
            }
        }
        if sender.send_replace(false) {
            // The next leader needn't wait for the lease to run out.
            let release =
                json!({"spec": {"holderIdentity": ""}, "metadata": {"resourceVersion": election.version}});
            let (params, release) = (PatchParams::default(), Patch::Merge(release));
            let _ = tokio::time::timeout(RETRY, leases.patch(&name, &params, &release)).await;
        }
    });
    Leadership {
        leads,
        task: AbortOnDropHandle::new(task),
    }
}

#[derive(Debug, Default)]
struct Election {
    version: String,
    /// The version that another holder's lease had, and when it was first seen.
    seen: Option<(String, Instant)>,
    renewed: Option<Instant>,
}

impl Election {
    /// Tries to get or keep the lease once.
    async fn attempt(
        &mut self,
        leases: &Api<Lease>,
        name: &str,
        identity: &str,
    ) -> Result<bool, kube::Error> {
        let now = MicroTime(Timestamp::now());
        let Some(lease) = leases.get_opt(name).await? else {
            let lease: Lease = serde_json::from_value(json!({
                "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                "metadata": {"name": name},
                "spec": {
                    "holderIdentity": identity, "leaseDurationSeconds": DURATION.as_secs(),
                    "acquireTime": now, "renewTime": now, "leaseTransitions": 0,
                },
            }))
            .map_err(kube::Error::SerdeError)?;
            let created = leases.create(&PostParams::default(), &lease).await?;
            self.version = created.metadata.resource_version.unwrap_or_default();
            return Ok(true);
        };
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        let spec = lease.spec.unwrap_or_default();
        let holder = spec.holder_identity.unwrap_or_default();
        let mut write = json!({"renewTime": now, "leaseDurationSeconds": DURATION.as_secs()});
        if holder != identity {
            let duration = spec
                .lease_duration_seconds
                .and_then(|s| u64::try_from(s).ok())
                .map(Duration::from_secs);
            if !self.may_take(&holder, &version, duration.unwrap_or(DURATION), Instant::now()) {
                return Ok(false);
            }
            write["holderIdentity"] = identity.into();
            write["acquireTime"] = json!(now);
            write["leaseTransitions"] = spec.lease_transitions.unwrap_or(0).saturating_add(1).into();
        }
        let patch = Patch::Merge(json!({"metadata": {"resourceVersion": version}, "spec": write}));
        let patched = leases.patch(name, &PatchParams::default(), &patch).await?;
        self.version = patched.metadata.resource_version.unwrap_or_default();
        Ok(true)
    }

    /// Whether a lease that someone else holds is up for grabs.
    fn may_take(&mut self, holder: &str, version: &str, duration: Duration, now: Instant) -> bool {
        if holder.is_empty() {
            return true;
        }
        match &self.seen {
            Some((seen, since)) if seen == version => now.duration_since(*since) >= duration,
            _ => {
                self.seen = Some((version.to_owned(), now));
                false
            }
        }
    }

    /// Whether we lead after an attempt. One without an answer is forgiven for a while; a lease seen in other hands
    /// is not.
    fn leads(&mut self, held: Option<bool>, now: Instant) -> bool {
        match held {
            Some(true) => self.renewed = Some(now),
            Some(false) => self.renewed = None,
            None => {}
        }
        let leads = self
            .renewed
            .is_some_and(|renewed| now.duration_since(renewed) < RENEW_DEADLINE);
        if !leads {
            self.renewed = None;
        }
        leads
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_taken_over_only_after_its_holder_was_silent_for_its_duration() {
        let (mut election, start) = (Election::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        assert!(!election.may_take("other", "1", DURATION, start));
        assert!(!election.may_take("other", "1", DURATION, after(29)));
        assert!(!election.may_take("other", "2", DURATION, after(30)), "renewed");
        assert!(!election.may_take("other", "2", DURATION, after(59)));
        assert!(election.may_take("other", "2", DURATION, after(60)));
        assert!(election.may_take("", "3", DURATION, after(60)), "released");
    }

    #[test]
    fn a_leader_that_cannot_renew_stops_before_others_may_start() {
        let (mut election, start) = (Election::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        assert!(election.leads(Some(true), start));
        assert!(election.leads(None, after(9)));
        assert!(!election.leads(None, after(10)));
        assert!(!election.leads(None, after(11)));
        assert!(election.leads(Some(true), after(12)));
        assert!(!election.leads(Some(false), after(13)), "someone else holds it");
    }
}
