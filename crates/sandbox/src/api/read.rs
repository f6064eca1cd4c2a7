//! Get and list: one object, or a consistent page of many.

use std::borrow::Cow;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::{BufMut, Bytes, BytesMut};
use serde_json::{Value, json};

use super::Cluster;
use super::error::{ApiError, Cause, Result};
use super::form::{Form, Head};
use super::handler::Call;
use super::registry::Resource;
use super::request::Query;
use super::selector::{FieldSelector, LabelSelector};
use crate::store::{Key, PastError, Snapshot, Stored};

/// How long a read waits for a revision that this cluster has not reached, as in Kubernetes.
const FUTURE_WAIT: Duration = Duration::from_secs(3);

/// Which objects a list, watch or deletion of many is about.
#[derive(Clone, Debug)]
pub(crate) struct Selection {
    /// `None` for all namespaces or a cluster-scoped resource.
    pub namespace: Option<String>,
    pub labels: LabelSelector,
    pub fields: FieldSelector,
}

impl Selection {
    pub(crate) fn read(call: &Call, resource: &Resource) -> Result<Self> {
        let mut fields = FieldSelector::parse(call.query.get("fieldSelector").unwrap_or_default())?;
        for field in fields.fields() {
            let known = matches!(field, "metadata.name" | "metadata.namespace")
                || resource.selectable.iter().any(|known| known == field);
            if !known {
                return Err(ApiError::bad_request(format!(
                    "field label not supported: {field}"
                )));
            }
        }
        if resource.group == "events.k8s.io" {
            // Events are stored in the words of the core group.
            fields.rename(&[
                ("regarding.", "involvedObject."),
                ("reportingController", "reportingComponent"),
            ]);
        }
        Ok(Self {
            namespace: call.target.namespace.clone().filter(|_| resource.namespaced),
            labels: LabelSelector::parse(call.query.get("labelSelector").unwrap_or_default())?,
            fields,
        })
    }

    pub(crate) fn is_everything(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    pub(crate) fn contains(&self, key: &Key, object: &Value) -> bool {
        self.namespace
            .as_ref()
            .is_none_or(|namespace| *namespace == key.namespace)
            && self.labels.matches(object)
            && self.fields.matches(object)
    }

    /// The selected objects in key order, from a key on.
    pub(crate) fn of<'a>(
        &'a self,
        snapshot: &'a Snapshot,
        after: Option<&Key>,
    ) -> impl Iterator<Item = &'a Arc<Stored>> {
        let start = match (after, &self.namespace) {
            (Some(after), _) => Bound::Excluded(after.clone()),
            (None, Some(namespace)) => Bound::Included(Key::new(namespace.clone(), "")),
            (None, None) => Bound::Unbounded,
        };
        snapshot
            .objects
            .range((start, Bound::Unbounded))
            .map(|(_, stored)| stored)
            .take_while(|stored| {
                self.namespace
                    .as_ref()
                    .is_none_or(|namespace| *namespace == stored.key.namespace)
            })
            .filter(|stored| self.labels.matches(&stored.value) && self.fields.matches(&stored.value))
    }
}

/// Which moment a list is about.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Moment {
    Now,
    NotOlderThan(u64),
    Exactly(u64),
    /// A later page of an earlier list.
    Page {
        revision: u64,
        after: Key,
    },
    /// A later page whose moment has been forgotten: what is there now.
    PageNow {
        after: Key,
    },
}

impl Moment {
    fn read(query: &Query) -> Result<Self> {
        let revision = query.number::<u64>("resourceVersion")?;
        let rule = query.get("resourceVersionMatch");
        let forbidden = |message: &str| {
            Err(ApiError::invalid(
                "meta.k8s.io",
                "ListOptions",
                "",
                vec![Cause {
                    reason: "FieldValueForbidden".to_owned(),
                    message: format!("Forbidden: {message}"),
                    field: "resourceVersionMatch".to_owned(),
                }],
            ))
        };
        if query.flag("sendInitialEvents") {
            return Err(ApiError::invalid(
                "meta.k8s.io",
                "ListOptions",
                "",
                vec![Cause {
                    reason: "FieldValueForbidden".to_owned(),
                    message: "Forbidden: sendInitialEvents is forbidden for list".to_owned(),
                    field: "sendInitialEvents".to_owned(),
                }],
            ));
        }
        if let Some(token) = query.get("continue") {
            if rule.is_some() {
                return forbidden("resourceVersionMatch is forbidden when continue is provided");
            }
            if revision.is_some_and(|revision| revision != 0) {
                return Err(ApiError::bad_request(
                    "specifying resource version is not allowed when using continue",
                ));
            }
            return Self::of_token(token);
        }
        match (revision, rule) {
            (None, None) => Ok(Self::Now),
            (None, Some(_)) => {
                forbidden("resourceVersionMatch is forbidden unless resourceVersion is provided")
            }
            (Some(0), Some("Exact")) => {
                forbidden("resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"")
            }
            (Some(revision), Some("Exact")) => Ok(Self::Exactly(revision)),
            (Some(revision), Some("NotOlderThan") | None) => Ok(Self::NotOlderThan(revision)),
            (Some(_), Some(other)) => Err(ApiError::invalid(
                "meta.k8s.io",
                "ListOptions",
                "",
                vec![Cause {
                    reason: "FieldValueNotSupported".to_owned(),
                    message: format!(
                        "Unsupported value: {other:?}: supported values: \"Exact\", \"NotOlderThan\""
                    ),
                    field: "resourceVersionMatch".to_owned(),
                }],
            )),
        }
    }

    fn of_token(token: &str) -> Result<Self> {
        let bad = || ApiError::bad_request("continue key is not valid: it was not made by this server");
        let bytes = URL_SAFE_NO_PAD
            .decode(token.trim_end_matches('='))
            .map_err(|_| bad())?;
        let token: Value = serde_json::from_slice(&bytes).map_err(|_| bad())?;
        let start = token.get("start").and_then(Value::as_str).ok_or_else(bad)?;
        let (namespace, name) = start.trim_end_matches('\0').split_once('/').ok_or_else(bad)?;
        let after = Key::new(namespace, name);
        match token.get("rv").and_then(Value::as_i64).ok_or_else(bad)? {
            revision if revision > 0 => Ok(Self::Page {
                revision: revision.unsigned_abs(),
                after,
            }),
            _ => Ok(Self::PageNow { after }),
        }
    }
}

fn token(revision: i64, last: &Key) -> String {
    let start = format!("{}/{}\0", last.namespace, last.name);
    URL_SAFE_NO_PAD.encode(json!({ "v": "meta.k8s.io/v1", "rv": revision, "start": start }).to_string())
}

impl Cluster {
    pub(crate) fn get(&self, call: &Call, resource: &Resource) -> Result<Bytes> {
        let name = call.target.name.as_deref().unwrap_or_default();
        let form = call.form()?;
        let stored = self
            .store
            .get(&resource.store, &call.key(resource, name))
            .ok_or_else(|| ApiError::not_found(resource, name))?;
        Ok(self.render(form, resource, &stored))
    }

    /// One object in the form and version that was asked for.
    pub(crate) fn render(&self, form: Form, resource: &Resource, stored: &Arc<Stored>) -> Bytes {
        match self.view(resource, stored) {
            Cow::Borrowed(object) => form.object(resource, object, &stored.bytes),
            Cow::Owned(object) => form.object(resource, &object, &object.to_string().into()),
        }
    }

    pub(crate) async fn list(&self, call: &Call, resource: &Resource) -> Result<Bytes> {
        let selection = Selection::read(call, resource)?;
        let moment = Moment::read(&call.query)?;
        let form = call.form()?;
        let limit = call.query.number::<usize>("limit")?.filter(|limit| *limit > 0);
        let after = match &moment {
            Moment::Page { after, .. } | Moment::PageNow { after } => Some(after.clone()),
            _ => None,
        };
        let consistent = !matches!(moment, Moment::PageNow { .. });
        let snapshot = self.snapshot(resource, &moment).await?;

        let mut selected = selection.of(&snapshot, after.as_ref());
        let page: Vec<&Arc<Stored>> = selected.by_ref().take(limit.unwrap_or(usize::MAX)).collect();
        let mut metadata = json!({ "resourceVersion": snapshot.revision.to_string() });
        let remaining = selected.count();
        if let (Some(last), true) = (page.last(), remaining > 0) {
            let revision = if consistent {
                i64::try_from(snapshot.revision).unwrap_or(-1)
            } else {
                -1
            };
            metadata["continue"] = token(revision, &last.key).into();
            if selection.is_everything() {
                metadata["remainingItemCount"] = remaining.into();
            }
        }
        let views = page
            .into_iter()
            .map(|stored| (stored, self.view(resource, stored)));
        Ok(match form {
            Form::Object => {
                let pieces: Vec<Bytes> = views
                    .map(|(stored, view)| match view {
                        Cow::Borrowed(_) => stored.bytes.clone(),
                        Cow::Owned(object) => object.to_string().into(),
                    })
                    .collect();
                object_list(resource, &metadata, &pieces)
            }
            Form::Metadata { .. } => {
                let objects: Vec<Value> = views.map(|(_, view)| view.into_owned()).collect();
                form.metadata_list(&objects, &metadata).to_string().into()
            }
            Form::Table { .. } => {
                let views: Vec<Cow<'_, Value>> = views.map(|(_, view)| view).collect();
                form.table(
                    resource,
                    views.iter().map(AsRef::as_ref),
                    &metadata,
                    Head::Columns,
                )
                .to_string()
                .into()
            }
        })
    }

    async fn snapshot(&self, resource: &Resource, moment: &Moment) -> Result<Snapshot> {
        match moment {
            Moment::Now | Moment::PageNow { .. } => Ok(self.store.list(&resource.store)),
            Moment::NotOlderThan(revision) => {
                self.await_revision(*revision).await?;
                Ok(self.store.list(&resource.store))
            }
            Moment::Exactly(revision) => {
                self.await_revision(*revision).await?;
                self.store.list_at(&resource.store, *revision).map_err(|error| match error {
                    PastError::Forgotten { .. } => {
                        ApiError::expired("The resourceVersion for the provided list is too old.")
                    }
                    future @ PastError::Future { .. } => past_error(future),
                })
            }
            Moment::Page { revision, after } => {
                self.store.list_at(&resource.store, *revision).map_err(|error| match error {
                    PastError::Forgotten { .. } => {
                        let mut error = ApiError::expired(
                            "The provided continue parameter is too old to display a consistent list result. You can \
                             start a new list without the continue parameter, or use the continue token in this \
                             response to retrieve the remainder of the results. Continuing with the provided token \
                             results in an inconsistent list - objects that were created, modified, or deleted between \
                             the time the first chunk was returned and now may show up in the list.",
                        );
                        error.resume = Some(token(-1, after));
                        error
                    }
                    future @ PastError::Future { .. } => past_error(future),
                })
            }
        }
    }

    /// Waits a little for a revision that another replica might already have shown the client.
    pub(crate) async fn await_revision(&self, revision: u64) -> Result<()> {
        let reached = tokio::time::timeout(FUTURE_WAIT, self.store.reached(revision)).await;
        reached.map_err(|_| ApiError::future_revision(revision, self.store.revision()))
    }
}

pub(crate) fn past_error(error: PastError) -> Box<ApiError> {
    match error {
        PastError::Forgotten { asked, oldest } => {
            ApiError::expired(format!("too old resource version: {asked} ({oldest})"))
        }
        PastError::Future { asked, now } => ApiError::future_revision(asked, now),
    }
}

fn object_list(resource: &Resource, metadata: &Value, items: &[Bytes]) -> Bytes {
    let head =
        json!({ "kind": resource.list_kind, "apiVersion": resource.api_version(), "metadata": metadata });
    let head = head.to_string();
    let head = head.strip_suffix('}').unwrap_or(&head);
    let size = head.len() + items.iter().map(|item| item.len() + 1).sum::<usize>() + 16;
    let mut list = BytesMut::with_capacity(size);
    list.put_slice(head.as_bytes());
    list.put_slice(b",\"items\":[");
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            list.put_u8(b',');
        }
        list.put_slice(item);
    }
    list.put_slice(b"]}");
    list.freeze()
}
