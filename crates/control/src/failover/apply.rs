//! Carries one decision out: the write, and the Event that tells of it.
//!
//! Nothing is told that didn't happen: the Event follows the API server's answer to the write. A write is conditional on
//! the version that was decided about, so that it can't undo what somebody else wrote meanwhile.

use std::time::Duration;

use hawser_core::failover::Phase;
use hawser_crd::TrafficSplit;
use hawser_runtime::Metrics;
use jiff::Timestamp;
use k8s_openapi::api::events::v1::Event;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};

use super::plan::Decision;
use crate::observe::{Key, chain};

const FIELD_MANAGER: &str = "failover.linkerd.io";
const CONTROLLER: &str = "linkerd-failover";
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// The API server takes no longer note, and what users wrote is quoted in it.
const NOTE_CHARS_MAX: usize = 1_000;

/// One TrafficSplit, as something to write to and to tell about.
pub(crate) struct Subject<'a> {
    pub client: &'a Client,
    pub metrics: &'a Metrics,
    pub instance: &'a str,
    pub key: &'a Key,
    pub uid: &'a str,
}

impl Subject<'_> {
    /// Writes, then tells. Says whether it was written.
    pub(crate) async fn change(&self, decision: &Decision) -> bool {
        let (Some(reason), Some(patch)) = (&decision.plan.change, &decision.patch) else {
            return true;
        };
        let written = self.write(patch).await;
        let success = if written.is_ok() { "true" } else { "false" };
        let name = "failover_patches";
        self.metrics
            .add(name, "Weights written", &[("success", success)], 1.0);
        if let Err(error) = written {
            tracing::warn!(split = %self.key, error, "weights not written");
            return false;
        }
        tracing::info!(split = %self.key, why = %reason, "weights written");
        let what = match &decision.plan.state.phase {
            Phase::NobodyReady | Phase::NoPrimary => None,
            Phase::Fallback => Some("failing over to fallbacks".to_owned()),
            Phase::Returning { to, .. } if decision.primary.as_ref() != Some(to) => {
                Some(format!("switching traffic to {to}"))
            }
            Phase::Primary | Phase::Returning { .. } => Some("switching traffic to primary".to_owned()),
        };
        let name = &self.key.name;
        match what {
            None => {
                let note = format!("trafficsplit/{name}: {reason}");
                self.event("Warning", "NoFailover", &note).await;
            }
            Some(what) => {
                let note = format!("trafficsplit/{name} {what}: {reason}");
                self.event("Normal", "Failover", &note).await;
            }
        }
        true
    }

    async fn write(&self, patch: &Value) -> Result<(), String> {
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
    pub(crate) async fn event(&self, kind: &str, reason: &str, note: &str) {
        let now = Timestamp::now();
        let name = format!("{}.{:x}", self.key.name, now.as_nanosecond());
        let note: String = note.chars().take(NOTE_CHARS_MAX).collect();
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
