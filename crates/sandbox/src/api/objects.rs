//! Creating, updating, patching and deleting objects, for every resource alike.
//!
//! A write is: decode, give the system's own metadata, default, admit, validate, admit again, compare-and-swap. What
//! a kind does differently is in `kinds`.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::Cluster;
use super::error::{ApiError, Cause, Result};
use super::handler::Call;
use super::registry::{Resource, meta};
use super::request::Verb;
use super::{kinds, shape};
use crate::store::{Expect, Key, Stored, WriteError};

/// How often a write that names no revision is retried when others get in between.
const ATTEMPT_COUNT_MAX: usize = 16;

/// What a write led to.
#[derive(Debug)]
pub(crate) enum Written {
    Created(Arc<Stored>),
    /// Also the answer when nothing had to change.
    Updated(Arc<Stored>),
    /// The write removed the last reason for a deleted object to exist, or a deletion was immediate.
    Deleted(Arc<Stored>),
}

impl Written {
    pub(crate) fn stored(&self) -> &Arc<Stored> {
        match self {
            Self::Created(stored) | Self::Updated(stored) | Self::Deleted(stored) => stored,
        }
    }
}

/// One write in progress: the request, its resource, and where it applies.
pub(crate) struct Write<'a> {
    pub cluster: &'a Arc<Cluster>,
    pub call: &'a Call,
    pub resource: &'a Arc<Resource>,
    /// Empty for cluster-scoped resources.
    pub namespace: &'a str,
    pub dry_run: bool,
}

impl Write<'_> {
    fn key(&self, name: &str) -> Key {
        Key::new(self.namespace, name)
    }

    fn invalid(&self, name: &str, causes: Vec<Cause>) -> Box<ApiError> {
        ApiError::invalid(&self.resource.group, &self.resource.kind, name, causes)
    }

    pub(crate) fn current(&self, name: &str) -> Result<Arc<Stored>> {
        self.cluster
            .store
            .get(&self.resource.store, &self.key(name))
            .ok_or_else(|| ApiError::not_found(self.resource, name))
    }

    /// Checks that a decoded object is what the request's path says.
    pub(crate) fn check_type(&self, object: &Value) -> Result<()> {
        let resource = self.resource;
        if !object.is_object() {
            return Err(ApiError::bad_request("the object provided is not an object"));
        }
        let text = |field: &str| object.get(field).and_then(Value::as_str).unwrap_or_default();
        let (given, kind) = (text("apiVersion"), text("kind"));
        if given == resource.api_version() && kind == resource.kind {
            return Ok(());
        }
        if given.is_empty() || kind.is_empty() {
            let field = if given.is_empty() { "apiVersion" } else { "kind" };
            return Err(ApiError::bad_request(format!(
                "Object '{field}' is missing in the request's body"
            )));
        }
        Err(ApiError::bad_request(format!(
            "{kind} in version {given:?} cannot be handled as a {}: the API version in the data ({given}) or its kind \
             does not match the expected one ({}, {})",
            resource.kind,
            resource.api_version(),
            resource.kind,
        )))
    }

    /// The path says what an object of a built-in kind is if the object does not.
    fn settle_type(&self, object: &mut Value) -> Result<()> {
        if self.resource.custom.is_none()
            && let Some(fields) = object.as_object_mut()
        {
            let wanted = [
                ("apiVersion", self.resource.api_version()),
                ("kind", self.resource.kind.clone()),
            ];
            for (field, value) in wanted {
                let is_absent = |known: &Value| known.as_str().is_some_and(str::is_empty);
                if fields.get(field).is_none_or(is_absent) {
                    fields.insert(field.to_owned(), value.into());
                }
            }
        }
        self.check_type(object)
    }

    fn settle_namespace(&self, object: &mut Value) -> Result<()> {
        let given = meta::namespace(object);
        if !given.is_empty() && given != self.namespace {
            return Err(ApiError::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        let namespace = (!self.namespace.is_empty()).then(|| self.namespace.into());
        meta::set(meta::of(object), "namespace", namespace);
        Ok(())
    }

    /// Unknown fields are dropped from the object; whether that is an error is the caller's choice.
    fn prune(&self, object: &mut Value) -> Result<()> {
        let unknown = shape::prune(self.resource, object);
        self.call.fields(unknown)
    }

    pub(crate) async fn create(&self, mut object: Value) -> Result<Written> {
        let resource = self.resource;
        self.settle_type(&mut object)?;
        self.settle_namespace(&mut object)?;
        if !meta::text(&object, "resourceVersion").is_empty() {
            return Err(ApiError::bad_request(
                "resourceVersion should not be set on objects to be created",
            ));
        }
        if let Some(name) = &self.call.target.name
            && meta::name(&object) != name
        {
            return Err(ApiError::bad_request(format!(
                "the name of the object ({}) does not match the name on the URL ({name})",
                meta::name(&object)
            )));
        }
        self.prune(&mut object)?;
        shape::check_types(resource, &object)?;
        let now = self.cluster.now();
        let metadata = meta::of(&mut object);
        for field in [
            "selfLink",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "resourceVersion",
        ] {
            metadata.remove(field);
        }
        metadata.insert("uid".to_owned(), self.cluster.uid().into());
        metadata.insert("creationTimestamp".to_owned(), now.into());
        meta::set(
            metadata,
            "generation",
            resource.has_generation().then(|| 1.into()),
        );
        if resource.has("status")
            && let Some(fields) = object.as_object_mut()
        {
            fields.remove("status");
        }
        let _reserved = kinds::prepare_create(self.cluster, resource, &mut object)?;
        shape::default(resource, &mut object);

        let generate = meta::text(&object, "generateName").to_owned();
        let generated = meta::name(&object).is_empty() && !generate.is_empty();
        let mut attempts = if generated { 8 } else { 1 };
        // What webhooks add is nobody's: an applier that doesn't know of it must neither keep nor remove it.
        object = self
            .call
            .own(resource, None, object, (self.cluster.options.clock)());
        self.cluster.admit_mutating(self, None, &mut object).await?;
        shape::default(resource, &mut object);
        loop {
            attempts -= 1;
            if generated {
                // As in Kubernetes: five characters, and the prefix is cut so that the name stays a label.
                let prefix: String = generate.chars().take(58).collect();
                meta::of(&mut object).insert("name".to_owned(), format!("{prefix}{}", suffix()).into());
            }
            let name = meta::name(&object).to_owned();
            let mut causes = meta_causes(&object, None);
            causes.extend(shape::validate(resource, &object, None));
            if !causes.is_empty() {
                if name.is_empty() {
                    causes.truncate(1);
                }
                return Err(self.invalid(&name, causes));
            }
            self.cluster.admit_validating(self, None, Some(&object)).await?;
            match self.put(self.key(&name), object.clone(), Expect::Absent).await {
                Err(WriteError::Exists) if attempts > 0 => {}
                Err(WriteError::Exists) if generated => {
                    return Err(ApiError::generated_name_conflict(resource, &name));
                }
                Err(_) => return Err(ApiError::already_exists(resource, &name)),
                Ok(stored) => return Ok(Written::Created(stored)),
            }
        }
    }

    /// Replaces an object by what the client sent.
    pub(crate) async fn update(&self, name: &str, mut object: Value) -> Result<Written> {
        self.settle_type(&mut object)?;
        let given = meta::name(&object);
        if given != name {
            return Err(ApiError::bad_request(format!(
                "the name of the object ({given}) does not match the name on the URL ({name})"
            )));
        }
        if kinds::creates_on_update(self.resource)
            && self.call.target.subresource.is_none()
            && self
                .cluster
                .store
                .get(&self.resource.store, &self.key(name))
                .is_none()
        {
            return self.create(object).await;
        }
        self.modify(name, |_| Ok(object.clone())).await
    }

    /// Computes an object's next state from its present one, as often as it takes.
    pub(crate) async fn modify(
        &self,
        name: &str,
        next: impl Fn(&Value) -> Result<Value> + Send + Sync,
    ) -> Result<Written> {
        let resource = self.resource;
        for _ in 0..ATTEMPT_COUNT_MAX {
            let stored = self.current(name)?;
            let current = self.cluster.view(resource, &stored);
            let mut object = next(&current)?;
            self.settle_namespace(&mut object)?;
            let expected = meta::text(&object, "resourceVersion").to_owned();
            let unconditional = expected.is_empty() || expected == "0";
            if !unconditional && expected != stored.revision.to_string() {
                return Err(ApiError::outdated(resource, name));
            }
            // A patch computed from the present state carries its revision without the client having asked for it.
            let client_asked = self.call.verb == Verb::Update && !unconditional;
            match meta::uid(&object) {
                "" => {}
                uid if uid == meta::uid(&current) => {}
                uid => {
                    let why = format!(
                        "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                        meta::uid(&current)
                    );
                    return Err(ApiError::conflict(resource, name, why));
                }
            }
            self.prune(&mut object)?;
            shape::check_types(resource, &object)?;
            match self.replace(name, &stored, &current, object).await {
                Err(Replace::Refused(error)) => return Err(error),
                Err(Replace::Overtaken) if client_asked => return Err(ApiError::outdated(resource, name)),
                Err(Replace::Overtaken) => {}
                Ok(written) => return Ok(written),
            }
        }
        Err(ApiError::outdated(resource, name))
    }

    async fn replace(
        &self,
        name: &str,
        stored: &Arc<Stored>,
        current: &Value,
        mut object: Value,
    ) -> Result<Written, Replace> {
        let resource = self.resource;
        let mut _reserved = None;
        let subresource = self.call.target.subresource.as_deref();
        keep_system_metadata(current, &mut object);
        match subresource {
            None => {
                if resource.has("status") {
                    copy(current, &mut object, "status");
                }
                _reserved = kinds::prepare_update(self.cluster, resource, current, &mut object)?;
            }
            // What these change was computed from the object itself.
            Some("scale" | "binding") => {}
            Some(subresource) => object = kinds::only(subresource, current, object),
        }
        shape::default(resource, &mut object);
        object = self
            .call
            .own(resource, Some(current), object, (self.cluster.options.clock)());
        self.cluster
            .admit_mutating(self, Some(current), &mut object)
            .await?;
        keep_system_metadata(current, &mut object);
        shape::default(resource, &mut object);
        if !matches!(subresource, Some("status" | "binding"))
            && resource.has_generation()
            && desired_differs(resource, current, &object)
        {
            let generation = current
                .pointer("/metadata/generation")
                .and_then(Value::as_u64)
                .unwrap_or(0)
                + 1;
            meta::of(&mut object).insert("generation".to_owned(), generation.into());
        }
        let mut causes = meta_causes(&object, Some(current));
        causes.extend(shape::validate(resource, &object, Some(current)));
        if !causes.is_empty() {
            return Err(self.invalid(name, causes).into());
        }
        self.cluster
            .admit_validating(self, Some(current), Some(&object))
            .await?;
        if same(current, &object) {
            return Ok(Written::Updated(stored.clone()));
        }
        // A pod's node deletes it once more, with grace period zero, when its processes are gone.
        let waited = object
            .pointer("/metadata/deletionGracePeriodSeconds")
            .is_none_or(|seconds| seconds == 0);
        let finished = meta::is_deleting(&object) && waited && kinds::is_finalized(resource, &object);
        if finished {
            let last = self.remove(stored, object)?;
            return Ok(Written::Deleted(last));
        }
        let stored = self
            .put(self.key(name), object, Expect::Revision(stored.revision))
            .await?;
        Ok(Written::Updated(stored))
    }

    async fn put(&self, key: Key, object: Value, expect: Expect) -> Result<Arc<Stored>, WriteError> {
        let object = self.cluster.to_stored(self.resource, object);
        if self.dry_run {
            let found = self.cluster.store.get(&self.resource.store, &key);
            return dry(found, key, object, expect);
        }
        let stored = self
            .cluster
            .store
            .put(&self.resource.store, key, object, expect)?;
        self.cluster.written(self.resource, &stored);
        Ok(stored)
    }

    fn remove(&self, stored: &Arc<Stored>, last: Value) -> Result<Arc<Stored>, WriteError> {
        let last = self.cluster.to_stored(self.resource, last);
        if self.dry_run {
            return dry(
                Some(stored.clone()),
                stored.key.clone(),
                last,
                Expect::Revision(stored.revision),
            );
        }
        let last = self
            .cluster
            .store
            .delete(&self.resource.store, &stored.key, last, stored.revision)?;
        self.cluster.deleted(self.resource, &last);
        Ok(last)
    }

    /// Deletes an object, or marks it as deleted if something has to be done first.
    pub(crate) async fn delete(&self, name: &str, options: &DeleteOptions) -> Result<Written> {
        let resource = self.resource;
        for _ in 0..ATTEMPT_COUNT_MAX {
            let stored = self.current(name)?;
            let current = self.cluster.view(resource, &stored);
            options.check(resource, name, &current)?;
            self.cluster.admit_validating(self, Some(&current), None).await?;
            let mut object = current.as_ref().clone();
            let grace = kinds::grace_period(resource, &object, options.grace_period);
            options.propagate(&mut object);
            if !self.dry_run {
                kinds::prepare_delete(self.cluster, resource, &mut object);
            }
            let outcome = if grace == 0 && kinds::is_finalized(resource, &object) {
                self.remove(&stored, object).map(Written::Deleted)
            } else {
                self.mark_deleted(&mut object, grace);
                if same(&current, &object) {
                    return Ok(Written::Updated(stored));
                }
                self.put(stored.key.clone(), object, Expect::Revision(stored.revision))
                    .await
                    .map(Written::Updated)
            };
            match outcome {
                Ok(written) => return Ok(written),
                Err(WriteError::Conflict) => {}
                Err(_) => return Err(ApiError::not_found(resource, name)),
            }
        }
        Err(ApiError::outdated(resource, name))
    }

    fn mark_deleted(&self, object: &mut Value, grace: u64) {
        let resource = self.resource;
        let deleting = meta::is_deleting(object);
        let present = object
            .pointer("/metadata/deletionGracePeriodSeconds")
            .and_then(Value::as_u64);
        // A second deletion can only shorten the wait.
        if deleting && present.is_some_and(|present| present <= grace) {
            return;
        }
        let at = self.cluster.after(grace);
        let generation = object.pointer("/metadata/generation").and_then(Value::as_u64);
        let metadata = meta::of(object);
        metadata.insert("deletionTimestamp".to_owned(), at.into());
        metadata.insert("deletionGracePeriodSeconds".to_owned(), grace.into());
        if let Some(generation) = generation.filter(|_| !deleting) {
            metadata.insert("generation".to_owned(), (generation + 1).into());
        }
        kinds::mark_deleted(resource, object);
    }
}

enum Replace {
    Refused(Box<ApiError>),
    /// Somebody else wrote in between.
    Overtaken,
}

impl From<Box<ApiError>> for Replace {
    fn from(error: Box<ApiError>) -> Self {
        Self::Refused(error)
    }
}

impl From<WriteError> for Replace {
    fn from(_: WriteError) -> Self {
        Self::Overtaken
    }
}

fn dry(
    found: Option<Arc<Stored>>,
    key: Key,
    value: Value,
    expect: Expect,
) -> Result<Arc<Stored>, WriteError> {
    let revision = match (found, expect) {
        (None, Expect::Absent) => 0,
        (Some(_), Expect::Absent) => return Err(WriteError::Exists),
        (Some(found), Expect::Revision(revision)) if found.revision == revision => revision,
        (Some(_), Expect::Revision(_)) => return Err(WriteError::Conflict),
        (None, Expect::Revision(_)) => return Err(WriteError::Missing),
    };
    let bytes = value.to_string().into();
    Ok(Arc::new(Stored {
        key,
        revision,
        value,
        bytes,
    }))
}

/// The body or the query of a DELETE.
#[derive(Clone, Debug, Default)]
pub(crate) struct DeleteOptions {
    pub grace_period: Option<u64>,
    pub propagation: Option<Propagation>,
    pub uid: Option<String>,
    pub resource_version: Option<String>,
    pub dry_run: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Propagation {
    Background,
    Foreground,
    Orphan,
}

impl DeleteOptions {
    pub(crate) fn read(call: &Call, body: Option<&Value>) -> Result<Self> {
        let field = |name: &str| {
            body.and_then(|body| body.get(name))
                .filter(|value| !value.is_null())
        };
        let precondition = |name: &str| {
            field("preconditions")
                .and_then(|all| all.get(name))
                .and_then(Value::as_str)
                .map(str::to_owned)
        };
        let policy = field("propagationPolicy")
            .and_then(Value::as_str)
            .or_else(|| call.query.get("propagationPolicy"));
        let orphan = field("orphanDependents").and_then(Value::as_bool);
        let propagation = match (policy, orphan) {
            (Some("Background"), _) | (None, Some(false)) => Some(Propagation::Background),
            (Some("Foreground"), _) => Some(Propagation::Foreground),
            (Some("Orphan"), _) | (None, Some(true)) => Some(Propagation::Orphan),
            (Some(other), _) => {
                return Err(ApiError::unprocessable(format!(
                    "DeleteOptions.meta.k8s.io \"\" is invalid: propagationPolicy: Unsupported value: {other:?}: \
                     supported values: \"Foreground\", \"Background\", \"Orphan\", \"nil\""
                )));
            }
            (None, None) => None,
        };
        let grace_period = match field("gracePeriodSeconds") {
            // Negative means "now", with a warning in Kubernetes; pods turn it into one second.
            Some(seconds) => Some(seconds.as_i64().unwrap_or(0).max(0).unsigned_abs()),
            None => call.query.number::<u64>("gracePeriodSeconds")?,
        };
        let dry_body = field("dryRun")
            .and_then(Value::as_array)
            .is_some_and(|all| !all.is_empty());
        Ok(Self {
            grace_period,
            propagation,
            uid: precondition("uid"),
            resource_version: precondition("resourceVersion"),
            dry_run: dry_body || call.query.dry_run()?,
        })
    }

    fn check(&self, resource: &Resource, name: &str, current: &Value) -> Result<()> {
        for (what, wanted, present) in [
            ("UID", &self.uid, meta::uid(current)),
            (
                "ResourceVersion",
                &self.resource_version,
                meta::text(current, "resourceVersion"),
            ),
        ] {
            if let Some(wanted) = wanted
                && wanted != present
            {
                let why = format!(
                    "Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {present}"
                );
                return Err(ApiError::conflict(resource, name, why));
            }
        }
        Ok(())
    }

    /// Dependents are the garbage collector's business; a finalizer tells it what to do with them first.
    fn propagate(&self, object: &mut Value) {
        const ORPHAN: &str = "orphan";
        const FOREGROUND: &str = "foregroundDeletion";
        let Some(propagation) = self.propagation else {
            return;
        };
        let mut finalizers: Vec<String> = meta::finalizers(object)
            .filter(|name| ![ORPHAN, FOREGROUND].contains(name))
            .map(str::to_owned)
            .collect();
        match propagation {
            Propagation::Background => {}
            Propagation::Foreground => finalizers.push(FOREGROUND.to_owned()),
            Propagation::Orphan => finalizers.push(ORPHAN.to_owned()),
        }
        meta::set(
            meta::of(object),
            "finalizers",
            (!finalizers.is_empty()).then(|| finalizers.into()),
        );
    }
}

/// What clients can't change, whatever they send.
fn keep_system_metadata(current: &Value, object: &mut Value) {
    let none = Map::new();
    let before = current
        .get("metadata")
        .and_then(Value::as_object)
        .unwrap_or(&none);
    let metadata = meta::of(object);
    for field in [
        "name",
        "namespace",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "generateName",
        "selfLink",
        "resourceVersion",
    ] {
        meta::set(metadata, field, before.get(field).cloned());
    }
}

pub(crate) fn copy(from: &Value, to: &mut Value, field: &str) {
    if let Some(fields) = to.as_object_mut() {
        meta::set(fields, field, from.get(field).cloned());
    }
}

fn desired_differs(resource: &Resource, current: &Value, object: &Value) -> bool {
    let skip = |field: &String| {
        field == "metadata"
            || field == "apiVersion"
            || field == "kind"
            || (field == "status" && resource.has("status"))
    };
    let fields = |value: &Value| -> Vec<(String, Value)> {
        let all = value.as_object().into_iter().flatten();
        all.filter(|(name, _)| !skip(name))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    };
    fields(current) != fields(object)
}

/// Whether a write would change nothing but the times in `managedFields`.
fn same(current: &Value, object: &Value) -> bool {
    if current == object {
        return true;
    }
    let timeless = |value: &Value| {
        let mut value = value.clone();
        let entries = value
            .pointer_mut("/metadata/managedFields")
            .and_then(Value::as_array_mut);
        for entry in entries.into_iter().flatten().filter_map(Value::as_object_mut) {
            entry.remove("time");
        }
        value
    };
    timeless(current) == timeless(object)
}

/// What no schema can say about metadata.
fn meta_causes(object: &Value, current: Option<&Value>) -> Vec<Cause> {
    let mut causes = Vec::new();
    let mut add = |reason: &str, field: &str, message: String| {
        causes.push(Cause {
            reason: reason.to_owned(),
            message,
            field: field.to_owned(),
        });
    };
    if meta::name(object).is_empty() {
        let message = "Required value: name or generateName is required";
        add("FieldValueRequired", "metadata.name", message.to_owned());
    }
    if let Some(current) = current.filter(|_| meta::is_deleting(object)) {
        let known: Vec<&str> = meta::finalizers(current).collect();
        let added: Vec<&str> = meta::finalizers(object)
            .filter(|name| !known.contains(name))
            .collect();
        if !added.is_empty() {
            let message = format!(
                "Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers {added:?}"
            );
            add("FieldValueForbidden", "metadata.finalizers", message);
        }
    }
    causes
}

/// Five characters without vowels or look-alikes, as Kubernetes generates names.
pub(crate) fn suffix() -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    (0..5)
        .map(|_| char::from(ALPHABET[rand::random_range(0..ALPHABET.len())]))
        .collect()
}
