//! From a request to a response: limits, authorisation, dispatch, and the headers that every answer carries.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header, request::Parts};
use hyper::upgrade::OnUpgrade;
use serde_json::{Value, json};

use super::body::{self, Body, Format, Response};
use super::error::{ApiError, Cause, Result};
use super::form::Form;
use super::identity::Identity;
use super::objects::{DeleteOptions, Write, Written};
use super::read::Selection;
use super::registry::{Resource, meta};
use super::request::{Query, Route, Target, Verb};
use super::tokens::Bearer;
use super::watch::Watch;
use super::{Cluster, discovery, kinds, openapi, shape};
use crate::schema::apply::{Conflicts, Manager};
use crate::store::Key;

/// How long a request that is not a stream may take, as in Kubernetes.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// One parsed, authenticated request for a resource.
#[derive(Debug)]
pub(crate) struct Call {
    pub verb: Verb,
    pub target: Target,
    pub query: Query,
    pub headers: HeaderMap,
    /// Whom it acts as.
    pub identity: Identity,
    /// Who sent it; the same unless that one acts as somebody else.
    pub author: Identity,
    pub validation: FieldValidation,
    /// The token that the identity comes from, if it comes from one.
    pub bearer: Option<Bearer>,
    /// The connection itself, for requests that turn it into something else.
    pub upgrade: Mutex<Option<OnUpgrade>>,
    /// Shown to people as `Warning` headers.
    warnings: Mutex<Vec<String>>,
}

/// What to do about unknown and duplicate fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FieldValidation {
    Ignore,
    Warn,
    Strict,
}

impl Call {
    pub(crate) fn new(
        verb: Verb,
        target: Target,
        query: Query,
        mut parts: Parts,
        identity: Identity,
        author: Identity,
    ) -> Result<Self> {
        let bearer = parts.extensions.remove::<Bearer>();
        let upgrade = Mutex::new(parts.extensions.remove::<OnUpgrade>());
        let validation = match query.get("fieldValidation") {
            None | Some("Warn") => FieldValidation::Warn,
            Some("Ignore") => FieldValidation::Ignore,
            Some("Strict") => FieldValidation::Strict,
            Some(other) => {
                return Err(ApiError::invalid(
                    "meta.k8s.io",
                    "CreateOptions",
                    "",
                    vec![Cause {
                        reason: "FieldValueNotSupported".to_owned(),
                        message: format!(
                            "Unsupported value: {other:?}: supported values: \"\", \"Ignore\", \"Strict\", \"Warn\""
                        ),
                        field: "fieldValidation".to_owned(),
                    }],
                ));
            }
        };
        Ok(Self {
            verb,
            target,
            query,
            headers: parts.headers,
            identity,
            author,
            validation,
            bearer,
            upgrade,
            warnings: Mutex::default(),
        })
    }

    pub(crate) fn key(&self, resource: &Resource, name: &str) -> Key {
        Key::new(self.namespace(resource), name)
    }

    pub(crate) fn namespace(&self, resource: &Resource) -> &str {
        self.target
            .namespace
            .as_deref()
            .filter(|_| resource.namespaced)
            .unwrap_or_default()
    }

    pub(crate) fn form(&self) -> Result<Form> {
        Form::negotiate(&self.headers, self.query.get("includeObject"))
    }

    pub(crate) fn warn(&self, warning: impl Into<String>) {
        let mut warnings = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        let warning = warning.into();
        if !warnings.contains(&warning) && warnings.len() < WARNING_COUNT_MAX {
            warnings.push(warning);
        }
    }

    /// Deals with problems of single fields as the client asked.
    pub(crate) fn fields(&self, problems: Vec<String>) -> Result<()> {
        match self.validation {
            _ if problems.is_empty() => Ok(()),
            FieldValidation::Ignore => Ok(()),
            FieldValidation::Warn => {
                problems.into_iter().for_each(|problem| self.warn(problem));
                Ok(())
            }
            FieldValidation::Strict => Err(ApiError::bad_request(format!(
                "strict decoding error: {}",
                problems.join(", ")
            ))),
        }
    }

    /// Who writes, as `managedFields` names them.
    pub(crate) fn manager(&self) -> String {
        if let Some(manager) = self.query.get("fieldManager") {
            return manager.to_owned();
        }
        let agent = self
            .headers
            .get(header::USER_AGENT)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        let prefix = agent.split('/').next().unwrap_or_default();
        if prefix.is_empty() {
            "unknown".to_owned()
        } else {
            prefix.chars().take(128).collect()
        }
    }

    pub(crate) fn is_apply(&self) -> bool {
        self.verb == Verb::Patch && body::media_type(&self.headers) == APPLY
    }

    /// Records in `managedFields` what this request changed; an apply has done so itself.
    pub(crate) fn own(
        &self,
        resource: &Resource,
        current: Option<&Value>,
        mut object: Value,
        now: jiff::Timestamp,
    ) -> Value {
        if !self.is_apply() {
            let name = self.manager();
            shape::own(resource, current, &mut object, self.manager_at(&name, now));
        }
        object
    }

    fn manager_at<'a>(&'a self, name: &'a str, now: jiff::Timestamp) -> Manager<'a> {
        let subresource = self
            .target
            .subresource
            .as_deref()
            .filter(|sub| *sub != "finalize")
            .unwrap_or_default();
        Manager {
            name,
            subresource,
            now,
        }
    }
}

/// The media type of server-side apply.
const APPLY: &str = "application/apply-patch+yaml";

fn streamed(body: Body) -> Response {
    let mut response = http::Response::new(body);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Warnings beyond this many help nobody.
const WARNING_COUNT_MAX: usize = 32;

impl Cluster {
    /// Answers one request of somebody whose identity is established.
    pub(crate) async fn answer(self: &Arc<Self>, parts: Parts, body: Body, identity: Identity) -> Response {
        let mut response = match self.route(parts, body, identity).await {
            Ok(response) => response,
            Err(error) => body::failure(&error),
        };
        let headers = response.headers_mut();
        headers
            .entry(header::CACHE_CONTROL)
            .or_insert(HeaderValue::from_static("no-cache, private"));
        if let Ok(id) = HeaderValue::from_str(&self.uid()) {
            headers.insert("audit-id", id);
        }
        response
    }

    async fn route(self: &Arc<Self>, parts: Parts, body: Body, author: Identity) -> Result<Response> {
        let query = Query::parse(parts.uri.query())?;
        let identity = self.impersonate(&author, &parts.headers)?;
        let path = parts.uri.path().to_owned();
        let (verb, target) = match Route::parse(&parts.method, &path, &query)? {
            Route::Path { verb } => {
                self.authorize_path(&identity, &verb, &path)?;
                return self.path(&parts.method, &path, &query, &parts.headers);
            }
            Route::Resource { verb, target } => (verb, target),
        };
        let call = Arc::new(Call::new(verb, target, query, parts, identity, author)?);
        self.authorize(&call)?;
        let resource = self.registry.find(&call.target)?;
        self.check_route(&call, &resource)?;
        if verb == Verb::Watch {
            let body = match Watch::start(self, call, resource).await {
                Ok(watch) => watch.into_body(),
                // Clients look for this one within the stream, as Kubernetes sends it.
                Err(error) if error.code == 410 => body::full(super::watch::error_event(&error)),
                Err(error) => return Err(error),
            };
            return Ok(streamed(body));
        }
        let Ok(_slot) = self.in_flight.try_acquire() else {
            return Err(ApiError::too_many_requests(
                "Too many requests, please try again later.",
            ));
        };
        let work = self.dispatch(&call, &resource, body);
        let mut response = match tokio::time::timeout(REQUEST_TIMEOUT, work).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => body::failure(&error),
            Err(_) => body::failure(&ApiError::timeout(
                "request did not complete within requested timeout",
            )),
        };
        for warning in call
            .warnings
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
        {
            let quoted = warning
                .replace('\\', "\\\\")
                .replace('"', "\\\"")
                .replace(['\r', '\n'], " ");
            if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
                response.headers_mut().append(header::WARNING, value);
            }
        }
        Ok(response)
    }

    fn check_route(&self, call: &Call, resource: &Resource) -> Result<()> {
        let target = &call.target;
        if let Some(subresource) = &target.subresource {
            if !resource.has(subresource) {
                return Err(ApiError::path_not_found());
            }
        } else if !resource.allows(call.verb.as_str()) {
            return Err(ApiError::method_not_allowed());
        }
        let about_one = target.name.is_some() || call.verb == Verb::Create;
        if resource.namespaced && target.namespace.is_none() && about_one {
            // Writing needs to know where; kubectl always says so.
            return Err(ApiError::method_not_allowed());
        }
        if !resource.namespaced && target.namespace.is_some() && resource.plural != "namespaces" {
            return Err(ApiError::path_not_found());
        }
        Ok(())
    }

    async fn dispatch(
        self: &Arc<Self>,
        call: &Arc<Call>,
        resource: &Arc<Resource>,
        body: Body,
    ) -> Result<Response> {
        if let Some(subresource) = call.target.subresource.as_deref()
            && !matches!(subresource, "status" | "finalize" | "ephemeralcontainers")
        {
            return self.subresource(call, resource, subresource, body).await;
        }
        let name = call.target.name.as_deref().unwrap_or_default();
        match call.verb {
            Verb::Get => return Ok(body::json(StatusCode::OK, self.get(call, resource)?)),
            Verb::List => return Ok(body::json(StatusCode::OK, self.list(call, resource).await?)),
            Verb::Watch => return Err(ApiError::internal("watches are streams")),
            Verb::Create | Verb::Update | Verb::Patch | Verb::Delete | Verb::DeleteCollection => {}
        }
        let headers = &call.headers;
        let bytes = body::read(body).await?;
        let write = Write {
            cluster: self,
            call,
            resource,
            namespace: call.namespace(resource),
            dry_run: call.query.dry_run()?,
        };
        let written = match call.verb {
            Verb::Create => {
                let object = self.decode(call, headers, &bytes)?;
                if let Some(answer) = self.review(call, resource, &object).await? {
                    return Ok(body::value(StatusCode::CREATED, &answer));
                }
                write.create(object).await?
            }
            Verb::Update => write.update(name, self.decode(call, headers, &bytes)?).await?,
            Verb::Patch => self.patch(&write, name, &bytes).await?,
            Verb::Delete | Verb::DeleteCollection => {
                let options = match bytes.as_ref() {
                    [] => None,
                    bytes => Some(body::decode(Format::of(headers)?, bytes)?),
                };
                let options = DeleteOptions::read(call, options.as_ref())?;
                let write = Write {
                    dry_run: options.dry_run,
                    ..write
                };
                if call.verb == Verb::DeleteCollection {
                    return self.delete_collection(&write, &options).await;
                }
                let written = write.delete(name, &options).await?;
                return self.deletion(call, resource, &written);
            }
            Verb::Get | Verb::List | Verb::Watch => unreachable!("reads were answered above"),
        };
        let status = match &written {
            Written::Created(_) => StatusCode::CREATED,
            Written::Updated(_) | Written::Deleted(_) => StatusCode::OK,
        };
        let bytes = self.render(call.form()?, resource, written.stored());
        Ok(body::json(status, bytes))
    }

    pub(crate) fn decode(&self, call: &Call, headers: &HeaderMap, bytes: &Bytes) -> Result<Value> {
        let format = Format::of(headers)?;
        let object = body::decode(format, bytes)?;
        if format == Format::Json && call.validation != FieldValidation::Ignore {
            call.fields(body::duplicate_fields(bytes))?;
        }
        Ok(object)
    }

    async fn patch(&self, write: &Write<'_>, name: &str, bytes: &Bytes) -> Result<Written> {
        let call = write.call;
        if !call.is_apply() {
            let media = body::media_type(&call.headers).to_owned();
            let patch = body::decode(Format::Json, bytes)?;
            return write
                .modify(name, |current| {
                    shape::patch(write.resource, &media, current, &patch)
                })
                .await;
        }
        let mut configuration = body::decode(Format::Yaml, bytes)?;
        write.check_type(&configuration)?;
        let required = |field: &str, message: &str| {
            ApiError::invalid(
                "meta.k8s.io",
                "PatchOptions",
                "",
                vec![Cause {
                    reason: "FieldValueRequired".to_owned(),
                    message: format!("Required value: {message}"),
                    field: field.to_owned(),
                }],
            )
        };
        let manager = call
            .query
            .get("fieldManager")
            .ok_or_else(|| required("fieldManager", "is required for apply patch"))?;
        let given = meta::name(&configuration);
        if given.is_empty() {
            meta::of(&mut configuration).insert("name".to_owned(), name.into());
        } else if given != name {
            return Err(ApiError::bad_request(format!(
                "the name of the object ({given}) does not match the name on the URL ({name})"
            )));
        }
        // Unknown fields would be owned and yet never be there.
        call.fields(shape::prune(write.resource, &mut configuration))?;
        let conflicts = if call.query.flag("force") {
            Conflicts::Force
        } else {
            Conflicts::Refuse
        };
        let now = (self.options.clock)();
        let apply = |current: Option<&Value>| {
            let manager = call.manager_at(manager, now);
            shape::apply(write.resource, current, &configuration, manager, conflicts)
        };
        for _ in 0..2 {
            let exists = self
                .store
                .get(&write.resource.store, &call.key(write.resource, name))
                .is_some();
            if exists || call.target.subresource.is_some() {
                return write.modify(name, |current| apply(Some(current))).await;
            }
            match write.create(apply(None)?).await {
                // Somebody else created it just now.
                Err(error) if error.reason == "AlreadyExists" => {}
                outcome => return outcome,
            }
        }
        Err(ApiError::outdated(write.resource, name))
    }

    /// What a deletion answers: the object if it lingers, else that it worked.
    fn deletion(&self, call: &Call, resource: &Resource, written: &Written) -> Result<Response> {
        let stored = written.stored();
        if matches!(written, Written::Updated(_)) || kinds::returns_deleted(resource) {
            return Ok(body::json(
                StatusCode::OK,
                self.render(call.form()?, resource, stored),
            ));
        }
        let mut details = json!({
            "name": stored.key.name, "kind": resource.plural, "uid": meta::uid(&stored.value),
        });
        if !resource.group.is_empty() {
            details["group"] = resource.group.as_str().into();
        }
        Ok(body::value(
            StatusCode::OK,
            &json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details,
            }),
        ))
    }

    async fn delete_collection(
        self: &Arc<Self>,
        write: &Write<'_>,
        options: &DeleteOptions,
    ) -> Result<Response> {
        let selection = Selection::read(write.call, write.resource)?;
        let snapshot = self.store.list(&write.resource.store);
        let mut items = Vec::new();
        for stored in selection.of(&snapshot, None) {
            let each = Write {
                namespace: &stored.key.namespace,
                ..*write
            };
            match each.delete(&stored.key.name, options).await {
                Ok(written) => items.push(self.view(write.resource, written.stored()).into_owned()),
                // Somebody else was faster.
                Err(error) if error.code == 404 => {}
                Err(error) => return Err(error),
            }
        }
        Ok(body::value(
            StatusCode::OK,
            &json!({
                "kind": write.resource.list_kind,
                "apiVersion": write.resource.api_version(),
                "metadata": { "resourceVersion": self.store.revision().to_string() },
                "items": items,
            }),
        ))
    }

    fn path(&self, method: &Method, path: &str, query: &Query, headers: &HeaderMap) -> Result<Response> {
        if !matches!(*method, Method::GET | Method::HEAD) {
            return Err(ApiError::method_not_allowed());
        }
        if let Some(rest) = path.strip_prefix("/openapi/v3") {
            let answer = self.openapi.answer(&self.registry.table(), rest, query, headers);
            return answer.ok_or_else(ApiError::path_not_found);
        }
        match path.trim_end_matches('/') {
            "/version" => Ok(body::value(StatusCode::OK, &discovery::version())),
            "/openapi/v2" => Ok(openapi::version_2(headers)),
            "/healthz" | "/livez" | "/readyz" => {
                Ok(body::text(StatusCode::OK, discovery::health(path, query)))
            }
            "/metrics" => Ok(body::text(StatusCode::OK, self.metrics())),
            "/openid/v1/jwks" => Ok(body::value(StatusCode::OK, &self.signer.keys())),
            "/.well-known/openid-configuration" => {
                Ok(body::value(StatusCode::OK, &self.signer.configuration()))
            }
            _ => {
                discovery::answer(&self.registry.table(), path, headers).ok_or_else(ApiError::path_not_found)
            }
        }
    }
}
