//! Carries a plan out. Safe to run from an old plan: every write is conditional on the version it was planned against.
//!
//! Writes for one mirror happen in order and stop at the first failure; mirrors don't wait for each other.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::{ApiResource, DynamicObject};
use kube::{Api, Client};
use serde_json::json;

use super::plan::{Kind, Skipped, Verdict, Write};
use crate::observe::{Key, chain};

const FIELD_MANAGER: &str = "linkerd-service-mirror";
const TIMEOUT: Duration = Duration::from_secs(10);
const CONCURRENT_MIRRORS: usize = 16;

/// What failed, by the mirror's name.
pub(crate) type Failures = BTreeMap<Key, Failure>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub message: String,
    /// Somebody else wrote first.
    pub is_conflict: bool,
}

pub(crate) async fn apply(client: &Client, writes: BTreeMap<Key, Vec<Write>>) -> Failures {
    futures::stream::iter(writes)
        .map(|(key, writes)| async move {
            for write in writes {
                if let Err(Failure { message, is_conflict }) = perform(client, &write).await {
                    let message = format!("Failed to {}: {message}", write.intent());
                    tracing::warn!(mirror = %key, error = message, "mirror not written");
                    return Some((key, Failure { message, is_conflict }));
                }
            }
            None
        })
        .buffer_unordered(CONCURRENT_MIRRORS)
        .filter_map(async |failure| failure)
        .collect()
        .await
}

async fn perform(client: &Client, write: &Write) -> Result<(), Failure> {
    let action = async {
        match write {
            Write::Create { kind, key, object } => {
                let object: DynamicObject =
                    serde_json::from_value(object.clone()).map_err(kube::Error::SerdeError)?;
                let params = PostParams {
                    field_manager: Some(FIELD_MANAGER.into()),
                    ..Default::default()
                };
                api(client, *kind, &key.namespace)
                    .create(&params, &object)
                    .await?;
                tracing::info!(?kind, object = %key, "created");
            }
            Write::Patch { kind, key, patch, .. } => {
                let params = PatchParams {
                    field_manager: Some(FIELD_MANAGER.into()),
                    ..Default::default()
                };
                api(client, *kind, &key.namespace)
                    .patch(&key.name, &params, &Patch::Merge(patch))
                    .await?;
                tracing::info!(?kind, object = %key, "updated");
            }
            Write::Delete { kind, key, version } | Write::DeleteUnchanged { kind, key, version } => {
                // Only the identity, usually: a mirror that is to go may have changed since.
                let is_strict = matches!(write, Write::DeleteUnchanged { .. });
                let preconditions = Preconditions {
                    uid: Some(version.uid.clone()),
                    resource_version: is_strict.then(|| version.resource_version.clone()),
                };
                let params = DeleteParams {
                    preconditions: Some(preconditions),
                    ..Default::default()
                };
                match api(client, *kind, &key.namespace)
                    .delete(&key.name, &params)
                    .await
                {
                    Ok(_) => tracing::info!(?kind, object = %key, "deleted"),
                    // Endpoints often go with their Service before we get there.
                    Err(kube::Error::Api(status)) if status.code == 404 => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok::<(), kube::Error>(())
    };
    match tokio::time::timeout(TIMEOUT, action).await {
        Ok(result) => result.map_err(|error| Failure {
            is_conflict: matches!(&error, kube::Error::Api(status) if status.code == 409),
            message: chain(&error),
        }),
        Err(_) => Err(Failure {
            message: format!("the API server did not answer within {TIMEOUT:?}"),
            is_conflict: false,
        }),
    }
}

fn api(client: &Client, kind: Kind, namespace: &str) -> Api<DynamicObject> {
    let resource = match kind {
        Kind::Namespace => {
            let resource = ApiResource::erase::<k8s_openapi::api::core::v1::Namespace>(&());
            return Api::all_with(client.clone(), &resource);
        }
        Kind::Service | Kind::Federated | Kind::Probe => {
            ApiResource::erase::<k8s_openapi::api::core::v1::Service>(&())
        }
        Kind::Endpoints => ApiResource::erase::<k8s_openapi::api::core::v1::Endpoints>(&()),
        Kind::EndpointSlice => ApiResource::erase::<k8s_openapi::api::discovery::v1::EndpointSlice>(&()),
    };
    Api::namespaced_with(client.clone(), namespace, &resource)
}

/// Verdicts hold only if the writes succeeded.
pub(crate) fn settle(verdicts: &BTreeMap<Key, Verdict>, failures: &Failures) -> BTreeMap<Key, Verdict> {
    let settled = |verdict: &Verdict| {
        let local = match verdict {
            Verdict::Mirrored { local } | Verdict::Joined { local } => local,
            other => return other.clone(),
        };
        match (verdict, failures.get(local)) {
            (_, None) => verdict.clone(),
            // Several controllers write to one federated Service, so that is an everyday thing.
            (Verdict::Joined { .. }, Some(failure)) if failure.is_conflict => Verdict::Outrun,
            (_, Some(failure)) => Verdict::Failed(failure.message.clone()),
        }
    };
    verdicts
        .iter()
        .map(|(key, verdict)| (key.clone(), settled(verdict)))
        .collect()
}

/// Tells the users of the target's Service why it isn't mirrored here.
pub(crate) async fn event(target: &Client, cluster: &str, skipped: &Skipped, now: &str) {
    let Skipped {
        service: key,
        uid,
        reason,
        message,
    } = skipped;
    let event = json!({
        "apiVersion": "v1", "kind": "Event",
        // One name per Service, link and reason, so that a repetition doesn't pile up.
        "metadata": {
            "namespace": key.namespace,
            "name": format!("{}.not-mirrored-to-{cluster}.{}", key.name, reason.to_lowercase()),
        },
        "involvedObject": {"apiVersion": "v1", "kind": "Service", "namespace": key.namespace, "name": key.name, "uid": uid},
        "type": "Normal", "reason": "ServiceMirroringSkipped",
        "message": format!("Skipped mirroring service: {message}"),
        "source": {"component": format!("linkerd-service-mirror-{cluster}")},
        "firstTimestamp": now, "lastTimestamp": now, "count": 1,
    });
    let write = async {
        let event = serde_json::from_value(event).map_err(kube::Error::SerdeError)?;
        let events: Api<k8s_openapi::api::core::v1::Event> = Api::namespaced(target.clone(), &key.namespace);
        events.create(&PostParams::default(), &event).await
    };
    match tokio::time::timeout(TIMEOUT, write).await {
        Ok(Ok(_)) => {}
        Ok(Err(kube::Error::Api(status))) if status.code == 409 => {}
        Ok(Err(error)) => {
            tracing::warn!(service = %key, error = chain(&error), "event on the target not written")
        }
        Err(_) => tracing::warn!(service = %key, "event on the target not written: no answer"),
    }
}
