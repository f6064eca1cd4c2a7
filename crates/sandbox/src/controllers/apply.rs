//! Carries one write out. Each may be repeated safely.

use k8s_openapi::api::core::v1::{Event, Node, Pod};
use kube::Client;
use kube::api::{
    DeleteParams, GetParams, ListParams, Patch, PatchParams, PostParams, Preconditions, Request,
};
use serde_json::{Value, json};

use super::plan::{Action, Manner, Note, Reference, Write, time};
use super::snapshot::{Key, Resource, Target};

const MANAGER: &str = "kube-controller-manager";
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApplyError {
    #[error(transparent)]
    Api(#[from] kube::Error),
    #[error("building the request")]
    Request(#[from] kube::core::request::Error),
    #[error("{0} still exists")]
    StillExists(Target),
    #[error("the namespace still holds {0}")]
    NotEmpty(String),
    #[error("the API server did not answer in time")]
    Timeout,
}

impl ApplyError {
    /// Whether this only says that the snapshot was old, so that looking again is all there is to do.
    pub(crate) fn is_staleness(&self) -> bool {
        match self {
            Self::Api(kube::Error::Api(status)) => matches!(status.code, 404 | 409),
            Self::StillExists(_) | Self::NotEmpty(_) => true,
            _ => false,
        }
    }
}

/// What is now known because of the write.
pub(crate) enum Answer {
    Object(Resource, Value),
    Gone(Target, String),
    Nothing,
}

/// Carries an action out and records its event. `served` are the kinds that a namespace may hold.
pub(crate) async fn apply(
    client: &Client,
    action: Action,
    served: &[Resource],
) -> Result<Answer, ApplyError> {
    let Action {
        scope, write, note, ..
    } = action;
    let answer = write_out(client, write, served).await;
    let note = note.and_then(|note| match &answer {
        Ok(Answer::Object(_, object)) => {
            let name = object["metadata"]["name"].as_str().unwrap_or_default();
            Some(Note {
                message: note.message.replace("{name}", name),
                ..note
            })
        }
        Ok(_) => Some(note),
        Err(error) if error.is_staleness() => None,
        Err(error) => {
            let message = match error {
                ApplyError::Api(kube::Error::Api(status)) => format!("Error creating: {}", status.message),
                error => format!("Error creating: {error}"),
            };
            note.refusal.map(|reason| Note {
                warning: true,
                reason,
                message,
                ..note
            })
        }
    });
    if let Some(note) = note
        && let Err(error) = record(client, &scope, note).await
    {
        tracing::debug!(%scope, %error, "recording an event");
    }
    answer
}

async fn write_out(client: &Client, write: Write, served: &[Resource]) -> Result<Answer, ApplyError> {
    match write {
        Write::Create { resource, object } => {
            let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
            let request = Request::new(resource.path(namespace));
            let created = client.request(request.create(&post(), body(&object))?).await?;
            Ok(Answer::Object(resource, created))
        }
        Write::Patch {
            target,
            subresource,
            patch,
        } => {
            let patched = send_patch(client, &target, subresource, &patch).await?;
            Ok(Answer::Object(target.resource, patched))
        }
        Write::Delete {
            target,
            uid,
            unless,
            manner,
        } => {
            for reference in unless {
                if exists(client, &reference).await? {
                    return Err(ApplyError::StillExists(reference.target));
                }
            }
            delete(client, target, uid, manner).await
        }
        Write::Bind { pod, uid, node } => {
            let binding = json!({
                "apiVersion": "v1",
                "kind": "Binding",
                "metadata": { "name": pod.name, "namespace": pod.namespace, "uid": uid },
                "target": { "apiVersion": "v1", "kind": Resource::of::<Node>().kind, "name": node },
            });
            let request = Request::new(Resource::of::<Pod>().path(&pod.namespace));
            let request = request.create_subresource("binding", &pod.name, &post(), body(&binding))?;
            client.request::<Value>(request).await?;
            Ok(Answer::Nothing)
        }
        Write::Finalize { namespace } => finalize(client, &namespace, served).await,
        Write::Note => Ok(Answer::Nothing),
    }
}

fn post() -> PostParams {
    PostParams {
        field_manager: Some(MANAGER.to_owned()),
        ..PostParams::default()
    }
}

fn body(object: &Value) -> Vec<u8> {
    object.to_string().into_bytes()
}

async fn send_patch(
    client: &Client,
    target: &Target,
    subresource: Option<&str>,
    patch: &Value,
) -> Result<Value, ApplyError> {
    let parameters = PatchParams {
        field_manager: Some(MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let request = Request::new(target.resource.path(&target.key.namespace));
    let patch = Patch::Merge(patch);
    let request = match subresource {
        Some(name) => request.patch_subresource(name, &target.key.name, &parameters, &patch)?,
        None => request.patch(&target.key.name, &parameters, &patch)?,
    };
    Ok(client.request(request).await?)
}

async fn exists(client: &Client, reference: &Reference) -> Result<bool, ApplyError> {
    let Target { resource, key } = &reference.target;
    let request = Request::new(resource.path(&key.namespace)).get(&key.name, &GetParams::default())?;
    match client.request::<Value>(request).await {
        Ok(found) => Ok(reference.uid.is_empty() || found["metadata"]["uid"] == reference.uid.as_str()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
        Err(error) => Err(error.into()),
    }
}

async fn delete(client: &Client, target: Target, uid: String, manner: Manner) -> Result<Answer, ApplyError> {
    let parameters = match manner {
        Manner::Background => DeleteParams::background(),
        Manner::Foreground => DeleteParams::foreground(),
        Manner::AtOnce => DeleteParams::background().grace_period(0),
    };
    let preconditions = Preconditions {
        uid: Some(uid.clone()),
        resource_version: None,
    };
    let parameters = parameters.preconditions(preconditions);
    let request =
        Request::new(target.resource.path(&target.key.namespace)).delete(&target.key.name, &parameters)?;
    let object: Value = client.request(request).await?;
    let metadata = &object["metadata"];
    let held = metadata["finalizers"]
        .as_array()
        .is_some_and(|finalizers| !finalizers.is_empty());
    let lingers = metadata["deletionTimestamp"].is_string()
        && (held || metadata["deletionGracePeriodSeconds"].as_i64() != Some(0));
    if object["kind"] == "Status" || !lingers {
        return Ok(Answer::Gone(target, uid));
    }
    Ok(Answer::Object(target.resource, object))
}

/// The snapshot says that the namespace is empty; the API server has the last word.
async fn finalize(client: &Client, namespace: &str, served: &[Resource]) -> Result<Answer, ApplyError> {
    let events = Request::new(Resource::of::<Event>().path(namespace));
    let all = ListParams::default();
    client
        .request::<Value>(events.delete_collection(&DeleteParams::default(), &all)?)
        .await?;
    for resource in served.iter().filter(|resource| resource.namespaced) {
        let list = Request::new(resource.path(namespace)).list(&all.clone().limit(1))?;
        match client.request::<Value>(list).await {
            Ok(list) if list["items"].as_array().is_some_and(|items| !items.is_empty()) => {
                return Err(ApplyError::NotEmpty(resource.plural.clone().into_owned()));
            }
            Ok(_) => {}
            // The kind itself was removed meanwhile.
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(error.into()),
        }
    }
    let request = Request::new("/api/v1/namespaces");
    let mut object: Value = client
        .request(request.get(namespace, &GetParams::default())?)
        .await?;
    if let Some(finalizers) = object["spec"]["finalizers"].as_array_mut() {
        finalizers.retain(|finalizer| finalizer != "kubernetes");
    }
    let request = request.replace_subresource("finalize", namespace, &post(), body(&object))?;
    client.request::<Value>(request).await?;
    Ok(Answer::Nothing)
}

async fn record(client: &Client, scope: &Target, note: Note) -> Result<(), ApplyError> {
    let Target {
        resource,
        key: Key { namespace, name },
    } = scope;
    let home = if namespace.is_empty() {
        "default"
    } else {
        namespace
    };
    let now = time(jiff::Timestamp::now());
    let event = json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": { "generateName": format!("{name}."), "namespace": home },
        "involvedObject": {
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "namespace": Some(namespace).filter(|namespace| !namespace.is_empty()),
            "name": name,
            "uid": note.regarding_uid,
        },
        "type": if note.warning { "Warning" } else { "Normal" },
        "reason": note.reason,
        "message": note.message,
        "source": { "component": note.component },
        "reportingComponent": note.component,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    });
    client
        .request::<Value>(Request::new(Resource::of::<Event>().path(home)).create(&post(), body(&event))?)
        .await?;
    Ok(())
}
