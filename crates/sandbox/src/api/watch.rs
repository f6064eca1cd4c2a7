//! Watches: a stream of events from a revision on, for as long as the client cares.
//!
//! A watch is a position in the store's past plus a selection. It pulls, so it can't hold up anybody; if it falls
//! behind what the store remembers, it ends with the error that makes clients list again.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use super::Cluster;
use super::body::Body;
use super::error::{ApiError, Cause, Result};
use super::form::{Form, Head};
use super::handler::Call;
use super::read::{Selection, past_error};
use super::registry::{Resource, meta};
use crate::store::{Change, Stored, Watcher};

/// Kubernetes sends bookmarks about this often.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(60);

/// Initial events are sent in pieces of about this size.
const CHUNK_SIZE: usize = 64 * 1024;

/// A running watch; becomes a response body.
pub(crate) struct Watch {
    cluster: Arc<Cluster>,
    call: Arc<Call>,
    resource: Arc<Resource>,
    selection: Selection,
    form: Form,
    head: Head,
    watcher: Watcher,
    /// The state that a watch without a revision starts from.
    initial: VecDeque<Arc<Stored>>,
    /// Mark the end of the initial state, as streaming lists want it.
    announce: bool,
    bookmarks: bool,
    next_bookmark: Instant,
    deadline: Instant,
    /// Changes when credentials or permissions may have been withdrawn.
    grants: watch::Receiver<u64>,
    /// Changes when all connections are to be cut.
    epoch: watch::Receiver<u64>,
    ended: bool,
}

impl Watch {
    pub(crate) async fn start(
        cluster: &Arc<Cluster>,
        call: Arc<Call>,
        resource: Arc<Resource>,
    ) -> Result<Self> {
        let mut selection = Selection::read(&call, &resource)?;
        if let Some(name) = &call.target.name {
            selection.fields = super::selector::FieldSelector::only_name(name);
        }
        let form = call.form()?;
        let query = &call.query;
        let revision = query.number::<u64>("resourceVersion")?.unwrap_or(0);
        let bookmarks = query.flag("allowWatchBookmarks");
        let rule = query.get("resourceVersionMatch");
        let streaming = query.flag("sendInitialEvents");
        let given = query.get("sendInitialEvents").is_some();
        let forbidden = |field: &str, message: &str| {
            Err(ApiError::invalid(
                "meta.k8s.io",
                "ListOptions",
                "",
                vec![Cause {
                    reason: "FieldValueForbidden".to_owned(),
                    message: format!("Forbidden: {message}"),
                    field: field.to_owned(),
                }],
            ))
        };
        match (given, rule) {
            (true, Some("NotOlderThan")) | (false, None) => {}
            (true, _) => {
                let message = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
                return forbidden("resourceVersionMatch", message);
            }
            (false, Some(_)) => {
                return forbidden(
                    "resourceVersionMatch",
                    "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
                );
            }
        }
        if streaming && !bookmarks {
            return forbidden(
                "sendInitialEvents",
                "sendInitialEvents requires allowWatchBookmarks",
            );
        }
        let timeout = match query.number::<u64>("timeoutSeconds")? {
            Some(seconds) if seconds > 0 => Duration::from_secs(seconds),
            // Spread, so that clients that started together don't come back together.
            _ => Duration::from_secs(rand::random_range(1800..3600)),
        };
        cluster.await_revision(revision).await?;
        let store = &cluster.store;
        let from_state = streaming || (revision == 0 && !given);
        let (watcher, initial) = if from_state {
            let snapshot = store.list(&resource.store);
            let initial = selection.of(&snapshot, None).cloned().collect();
            // The moment was taken just now; only a flood within it could make it too old already.
            (
                store
                    .watch(&resource.store, snapshot.revision)
                    .map_err(past_error)?,
                initial,
            )
        } else {
            let revision = if revision == 0 { store.revision() } else { revision };
            (
                store.watch(&resource.store, revision).map_err(past_error)?,
                VecDeque::new(),
            )
        };
        let now = Instant::now();
        Ok(Self {
            form,
            head: Head::Columns,
            watcher,
            initial,
            announce: streaming,
            bookmarks,
            next_bookmark: now + jittered(BOOKMARK_INTERVAL),
            deadline: now + timeout,
            grants: cluster.grants.subscribe(),
            epoch: cluster.epoch.subscribe(),
            ended: false,
            cluster: cluster.clone(),
            call,
            resource,
            selection,
        })
    }

    pub(crate) fn into_body(self) -> Body {
        let stream = futures::stream::unfold(self, |mut watch| async move {
            let chunk = watch.next().await?;
            Some((Ok::<_, std::io::Error>(Frame::data(chunk)), watch))
        });
        StreamBody::new(stream).boxed_unsync()
    }

    /// The next events, or `None` when the watch is over.
    async fn next(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        let mut chunk = BytesMut::new();
        while let Some(stored) = self.initial.pop_front() {
            self.event(&mut chunk, "ADDED", &stored);
            if chunk.len() > CHUNK_SIZE {
                return Some(chunk.freeze());
            }
        }
        if std::mem::take(&mut self.announce) {
            self.bookmark(&mut chunk, Some(json!({ "k8s.io/initial-events-end": "true" })));
        }
        loop {
            // First of all, lest a steady flow of events outlive the right to see them.
            if self.grants.has_changed().unwrap_or(false) {
                self.grants.mark_unchanged();
                if !self.may_continue() {
                    return None;
                }
            }
            match self.watcher.pull() {
                Ok(changes) => changes.iter().for_each(|change| self.change(&mut chunk, change)),
                Err(error) => {
                    self.ended = true;
                    let status = past_error(error).status();
                    line(&mut chunk, "ERROR", status.to_string().as_bytes());
                }
            }
            if !chunk.is_empty() {
                return Some(chunk.freeze());
            }
            tokio::select! {
                () = self.watcher.changed() => {}
                () = tokio::time::sleep_until(self.next_bookmark), if self.bookmarks => {
                    self.next_bookmark = Instant::now() + jittered(BOOKMARK_INTERVAL);
                    self.bookmark(&mut chunk, None);
                }
                () = tokio::time::sleep_until(self.deadline) => {
                    self.ended = true;
                    if !self.bookmarks {
                        return None;
                    }
                    self.bookmark(&mut chunk, None);
                }
                _ = self.grants.changed() => if !self.may_continue() { return None },
                _ = self.epoch.changed() => return None,
            }
        }
    }

    /// Whether the client may still see this, and this is still what it asked for.
    fn may_continue(&self) -> bool {
        let now = self.cluster.registry.find(&self.call.target);
        // Clients start again when the definition of what they watch has changed, as with Kubernetes.
        now.is_ok_and(|now| now.definition() == self.resource.definition())
            && self.cluster.still_allowed(&self.call).is_ok()
    }

    /// Writes what a change means to this watch: entering its selection is an addition, leaving it a deletion.
    fn change(&mut self, chunk: &mut BytesMut, change: &Change) {
        let inside = |stored: &Stored| self.selection.contains(&stored.key, &stored.value);
        match change {
            Change::Created(after) => {
                if inside(after) {
                    self.event(chunk, "ADDED", after);
                }
            }
            Change::Updated { before, after } => match (inside(before), inside(after)) {
                (true, true) => self.event(chunk, "MODIFIED", after),
                (false, true) => self.event(chunk, "ADDED", after),
                (true, false) => {
                    // What the client knew, at the revision at which it stopped knowing it.
                    let mut value = before.value.clone();
                    meta::of(&mut value)
                        .insert("resourceVersion".to_owned(), after.revision.to_string().into());
                    let bytes = value.to_string().into();
                    let last = Stored {
                        key: before.key.clone(),
                        revision: after.revision,
                        value,
                        bytes,
                    };
                    self.event(chunk, "DELETED", &Arc::new(last));
                }
                (false, false) => {}
            },
            Change::Deleted { before, last } => {
                if inside(before) {
                    self.event(chunk, "DELETED", last);
                }
            }
        }
    }

    fn event(&mut self, chunk: &mut BytesMut, kind: &str, stored: &Arc<Stored>) {
        let object = match self.form {
            Form::Table { .. } => {
                let view = self.cluster.view(&self.resource, stored);
                let metadata = json!({ "resourceVersion": stored.revision.to_string() });
                let head = std::mem::replace(&mut self.head, Head::None);
                let objects: [&Cow<'_, Value>; 1] = [&view];
                let objects = objects.into_iter().map(AsRef::as_ref);
                self.form
                    .table(&self.resource, objects, &metadata, head)
                    .to_string()
                    .into()
            }
            form => self.cluster.render(form, &self.resource, stored),
        };
        line(chunk, kind, &object);
    }

    fn bookmark(&mut self, chunk: &mut BytesMut, annotations: Option<Value>) {
        let revision = self.watcher.seen().to_string();
        let mut object = match self.form {
            Form::Table { .. } => {
                let mut table = self.form.table(
                    &self.resource,
                    std::iter::empty(),
                    &json!({ "resourceVersion": revision }),
                    Head::None,
                );
                table["rows"] = json!([{ "cells": [], "object": {
                    "kind": "PartialObjectMetadata",
                    "apiVersion": "meta.k8s.io/v1",
                    "metadata": { "resourceVersion": revision },
                } }]);
                table
            }
            Form::Metadata { .. } => json!({
                "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
                "metadata": { "resourceVersion": revision },
            }),
            Form::Object => json!({
                "kind": self.resource.kind, "apiVersion": self.resource.api_version(),
                "metadata": { "resourceVersion": revision, "creationTimestamp": null },
            }),
        };
        if let Some(annotations) = annotations {
            let target = match self.form {
                Form::Table { .. } => &mut object["rows"][0]["object"]["metadata"],
                _ => &mut object["metadata"],
            };
            target["annotations"] = annotations;
        }
        line(chunk, "BOOKMARK", object.to_string().as_bytes());
    }
}

/// A whole stream that only says why there is none.
pub(crate) fn error_event(error: &ApiError) -> Bytes {
    let mut chunk = BytesMut::new();
    line(&mut chunk, "ERROR", error.status().to_string().as_bytes());
    chunk.freeze()
}

fn line(chunk: &mut BytesMut, kind: &str, object: &[u8]) {
    chunk.reserve(object.len() + 40);
    chunk.put_slice(b"{\"type\":\"");
    chunk.put_slice(kind.as_bytes());
    chunk.put_slice(b"\",\"object\":");
    chunk.put_slice(object);
    chunk.put_slice(b"}\n");
}

fn jittered(interval: Duration) -> Duration {
    interval.mul_f64(rand::random_range(0.8..1.2))
}
