//! The subresources that are not simply a part of their object: scale, binding, eviction, token, and the reviews,
//! which are requests in the shape of objects.

use std::sync::Arc;

use http::StatusCode;
use serde_json::{Value, json};

use super::Cluster;
use super::body::{self, Body, Response};
use super::error::{ApiError, Cause, Result};
use super::handler::Call;
use super::objects::{DeleteOptions, Write};
use super::registry::{Resource, meta};
use super::request::Verb;
use super::selector::LabelSelector;
use super::shape;
use super::tokens::user_info;
use crate::store::ResourceId;

impl Cluster {
    pub(crate) async fn subresource(
        self: &Arc<Self>,
        call: &Arc<Call>,
        resource: &Arc<Resource>,
        subresource: &str,
        body: Body,
    ) -> Result<Response> {
        let name = call.target.name.as_deref().unwrap_or_default();
        let write = Write {
            cluster: self,
            call,
            resource,
            namespace: call.namespace(resource),
            dry_run: call.query.dry_run()?,
        };
        match (subresource, call.verb) {
            ("scale", Verb::Get) => {
                let stored = write.current(name)?;
                Ok(body::value(StatusCode::OK, &scale(resource, &stored.value)))
            }
            ("scale", Verb::Update | Verb::Patch) => self.scale(&write, name, body).await,
            ("binding", Verb::Create) => {
                let binding = self.decode(call, &call.headers, &body::read(body).await?)?;
                self.bind(&write, name, &binding).await
            }
            ("eviction", Verb::Create) => {
                let bytes = body::read(body).await?;
                let eviction = if bytes.is_empty() {
                    Value::Null
                } else {
                    self.decode(call, &call.headers, &bytes)?
                };
                self.evict(&write, name, &eviction).await
            }
            ("token", Verb::Create) => {
                let request = self.decode(call, &call.headers, &body::read(body).await?)?;
                let account = write.current(name)?;
                Ok(body::value(
                    StatusCode::CREATED,
                    &self.token_request(&account, &request)?,
                ))
            }
            ("log", Verb::Get) => self.log(call, name).await,
            ("exec" | "attach" | "portforward", Verb::Get | Verb::Create) => {
                self.stream(call, subresource, name).await
            }
            (_, Verb::Get | Verb::Update | Verb::Patch | Verb::Create) => Err(ApiError::not_implemented(
                format!("the subresource {subresource} is not served"),
            )),
            _ => Err(ApiError::method_not_allowed()),
        }
    }

    async fn scale(&self, write: &Write<'_>, name: &str, body: Body) -> Result<Response> {
        let (call, resource) = (write.call, write.resource);
        let bytes = body::read(body).await?;
        let media = body::media_type(&call.headers).to_owned();
        let sent = match call.verb {
            Verb::Patch => body::decode(body::Format::Yaml, &bytes)?,
            _ => self.decode(call, &call.headers, &bytes)?,
        };
        let (spec_path, _, _) = scale_paths(resource);
        let written = write
            .modify(name, |current| {
                let present = scale(resource, current);
                let wanted = match call.verb {
                    Verb::Patch => shape::patch_plain(&media, &present, &sent)?,
                    _ => sent.clone(),
                };
                let revision = meta::text(&wanted, "resourceVersion");
                if !revision.is_empty() && revision != meta::text(current, "resourceVersion") {
                    return Err(ApiError::outdated(resource, name));
                }
                let replicas = wanted
                    .pointer("/spec/replicas")
                    .and_then(Value::as_i64)
                    .unwrap_or(0);
                if replicas < 0 {
                    return Err(ApiError::invalid(
                        "autoscaling",
                        "Scale",
                        name,
                        vec![Cause {
                            reason: "FieldValueInvalid".to_owned(),
                            message: format!("Invalid value: {replicas}: must be greater than or equal to 0"),
                            field: "spec.replicas".to_owned(),
                        }],
                    ));
                }
                let mut object = current.clone();
                put(&mut object, &spec_path, replicas.into());
                Ok(object)
            })
            .await?;
        Ok(body::value(
            StatusCode::OK,
            &scale(resource, &written.stored().value),
        ))
    }

    /// The scheduler's decision: a pod gets its node, once.
    async fn bind(&self, write: &Write<'_>, name: &str, binding: &Value) -> Result<Response> {
        let node = binding
            .pointer("/target/name")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        if node.is_empty() {
            return Err(ApiError::bad_request("target.name: Required value"));
        }
        let now = self.now();
        write
            .modify(name, |pod| {
                let present = pod.pointer("/spec/nodeName").and_then(Value::as_str).unwrap_or_default();
                if !present.is_empty() {
                    let why = format!("pod {name} is already assigned to node {present:?}");
                    return Err(ApiError::conflict(write.resource, name, why));
                }
                if meta::is_deleting(pod) {
                    let why = format!("pod {name} is being deleted, cannot be assigned to a host");
                    return Err(ApiError::conflict(write.resource, name, why));
                }
                let mut pod = pod.clone();
                meta::child(&mut pod, "spec").insert("nodeName".to_owned(), node.clone().into());
                let status = meta::child(&mut pod, "status");
                let conditions = status.entry("conditions").or_insert_with(|| json!([]));
                if let Some(conditions) = conditions.as_array_mut() {
                    conditions.retain(|condition| condition["type"] != "PodScheduled");
                    conditions.push(json!({
                        "type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now,
                    }));
                }
                Ok(pod)
            })
            .await?;
        Ok(body::value(StatusCode::CREATED, &success(201)))
    }

    /// Deletes a pod unless a disruption budget forbids it for now.
    async fn evict(&self, write: &Write<'_>, name: &str, eviction: &Value) -> Result<Response> {
        let pod = write.current(name)?;
        let budgets = self.store.list(&ResourceId::from("policy/poddisruptionbudgets"));
        for budget in budgets
            .objects
            .values()
            .filter(|budget| budget.key.namespace == write.namespace)
        {
            let selector = budget
                .value
                .pointer("/spec/selector")
                .and_then(LabelSelector::from_object);
            if !selector.is_some_and(|selector| selector.matches(&pod.value)) {
                continue;
            }
            let allowed = budget
                .value
                .pointer("/status/disruptionsAllowed")
                .and_then(Value::as_i64)
                .unwrap_or(0);
            if allowed <= 0 {
                let message = "Cannot evict pod as it would violate the pod's disruption budget.";
                return Err(ApiError::too_many_requests(message));
            }
        }
        let options = DeleteOptions::read(write.call, eviction.get("deleteOptions"))?;
        write.delete(name, &options).await?;
        Ok(body::value(StatusCode::CREATED, &success(201)))
    }

    /// Objects that are questions; `None` for real ones.
    pub(crate) async fn review(
        self: &Arc<Self>,
        call: &Arc<Call>,
        resource: &Arc<Resource>,
        object: &Value,
    ) -> Result<Option<Value>> {
        let text = |pointer: &str| {
            object
                .pointer(pointer)
                .and_then(Value::as_str)
                .unwrap_or_default()
        };
        let mut object = object.clone();
        if matches!(
            resource.group.as_str(),
            "authentication.k8s.io" | "authorization.k8s.io"
        ) {
            meta::of(&mut object)
                .entry("creationTimestamp")
                .or_insert(Value::Null);
        }
        let answer = match (resource.group.as_str(), resource.plural.as_str()) {
            ("authentication.k8s.io", "tokenreviews") => self.token_review(&object),
            ("authentication.k8s.io", "selfsubjectreviews") => {
                object["status"] = json!({ "userInfo": user_info(&call.identity) });
                object
            }
            ("authorization.k8s.io", "selfsubjectaccessreviews") => {
                self.access_review(&call.identity, &object)
            }
            ("authorization.k8s.io", "selfsubjectrulesreviews") => self.rules_review(&call.identity, &object),
            ("authorization.k8s.io", "subjectaccessreviews" | "localsubjectaccessreviews") => {
                let groups = object
                    .pointer("/spec/groups")
                    .and_then(Value::as_array)
                    .into_iter()
                    .flatten();
                let identity = super::Identity {
                    user: text("/spec/user").to_owned(),
                    groups: groups.filter_map(Value::as_str).map(str::to_owned).collect(),
                    ..Default::default()
                };
                let asked = text("/spec/resourceAttributes/namespace");
                if resource.namespaced && asked != call.namespace(resource) {
                    return Err(ApiError::bad_request(
                        "spec.resourceAttributes.namespace must match metadata.namespace",
                    ));
                }
                self.access_review(&identity, &object)
            }
            ("", "bindings") => {
                let Some(pods) = self.registry.lookup("", "v1", "pods") else {
                    return Ok(None);
                };
                let write = Write {
                    cluster: self,
                    call,
                    resource: &pods,
                    namespace: call.namespace(resource),
                    dry_run: call.query.dry_run()?,
                };
                self.bind(&write, meta::name(&object), &object).await?;
                success(201)
            }
            _ => return Ok(None),
        };
        Ok(Some(answer))
    }
}

fn success(code: u16) -> Value {
    json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": code })
}

/// JSON pointers of the desired and the actual number, and of a text selector if there is one.
fn scale_paths(resource: &Resource) -> (String, String, Option<String>) {
    let scale = resource.custom.as_ref().and_then(|custom| custom.scale.as_ref());
    let path = |field: &str| {
        let path = scale.and_then(|scale| scale.get(field)).and_then(Value::as_str);
        path.map(|path| path.replace('.', "/"))
    };
    (
        path("specReplicasPath").unwrap_or_else(|| "/spec/replicas".to_owned()),
        path("statusReplicasPath").unwrap_or_else(|| "/status/replicas".to_owned()),
        path("labelSelectorPath"),
    )
}

fn scale(resource: &Resource, object: &Value) -> Value {
    let (spec, status, selector) = scale_paths(resource);
    let number = |pointer: &str| object.pointer(pointer).and_then(Value::as_i64).unwrap_or(0);
    let metadata = object.get("metadata").cloned().unwrap_or_default();
    let kept: Value = ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"]
        .into_iter()
        .filter_map(|field| Some((field.to_owned(), metadata.get(field)?.clone())))
        .collect::<serde_json::Map<_, _>>()
        .into();
    let mut answer = json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": kept,
        "spec": { "replicas": number(&spec) },
        "status": { "replicas": number(&status) },
    });
    let selector = match selector {
        Some(pointer) => object
            .pointer(&pointer)
            .and_then(Value::as_str)
            .map(str::to_owned),
        None => object
            .pointer("/spec/selector")
            .and_then(LabelSelector::from_object)
            .map(|all| all.to_string()),
    };
    if let Some(selector) = selector.filter(|selector| !selector.is_empty()) {
        answer["status"]["selector"] = selector.into();
    }
    answer
}

/// Sets a field by JSON pointer, making the objects on the way.
fn put(object: &mut Value, pointer: &str, value: Value) {
    let (path, field) = pointer.rsplit_once('/').unwrap_or(("", pointer));
    let mut place = object;
    for part in path.split('/').filter(|part| !part.is_empty()) {
        meta::child(place, part);
        place = &mut place[part];
    }
    place[field] = value;
}
