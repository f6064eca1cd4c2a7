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

use super::plan::{Kind, Plan, Skipped, Verdict, Write};
use crate::observe::{Key, chain};

const FIELD_MANAGER: &str = "linkerd-service-mirror";
const TIMEOUT: Duration = Duration::from_secs(10);
const CONCURRENT_MIRRORS: usize = 16;

/// What failed, by the mirror's name.
pub(crate) type Failures = BTreeMap<Key, String>;

pub(crate) async fn apply(client: &Client, writes: BTreeMap<Key, Vec<Write>>) -> Failures {
    futures::stream::iter(writes)
        .map(|(key, writes)| async move {
            for write in writes {
                if let Err(error) = perform(client, &write).await {
                    let failure = format!("Failed to {}: {error}", write.intent());
                    tracing::warn!(mirror = %key, error = failure, "mirror not written");
                    return Some((key, failure));
                }
            }
            None
        })
        .buffer_unordered(CONCURRENT_MIRRORS)
        .filter_map(async |failure| failure)
        .collect()
        .await
}

async fn perform(client: &Client, write: &Write) -> Result<(), String> {
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
            Write::Delete { kind, key, version } => {
                // Only the identity: a mirror that is to go may have changed since.
                let preconditions = Preconditions {
                    uid: Some(version.uid.clone()),
                    resource_version: None,
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
        Ok(result) => result.map_err(|error| chain(&error)),
        Err(_) => Err(format!("the API server did not answer within {TIMEOUT:?}")),
    }
}

fn api(client: &Client, kind: Kind, namespace: &str) -> Api<DynamicObject> {
    let resource = match kind {
        Kind::Service => ApiResource::erase::<k8s_openapi::api::core::v1::Service>(&()),
        Kind::Endpoints => ApiResource::erase::<k8s_openapi::api::core::v1::Endpoints>(&()),
        Kind::EndpointSlice => ApiResource::erase::<k8s_openapi::api::discovery::v1::EndpointSlice>(&()),
    };
    Api::namespaced_with(client.clone(), namespace, &resource)
}

/// Verdicts hold only if the writes succeeded.
pub(crate) fn settle(plan: &Plan, failures: &Failures) -> BTreeMap<Key, Verdict> {
    let settled = |verdict: &Verdict| match verdict {
        Verdict::Mirrored { local } => match failures.get(local) {
            Some(failure) => Verdict::Failed(failure.clone()),
            None => verdict.clone(),
        },
        other => other.clone(),
    };
    plan.verdicts
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
