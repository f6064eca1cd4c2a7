//! One cluster's objects: a map per resource, one revision counter, and the recent past.
//!
//! Every write, deletion included, takes the next revision. Readers get immutable snapshots that writers copy only
//! while somebody still reads them. The past is one ring of changes per resource; watches *pull* from it at their own
//! pace, so a slow watcher costs nothing and never blocks a writer: once the ring has moved past it, it is told so and
//! must list again. The same ring, undone backwards, answers lists at an older revision.
//!
//! It deliberately knows nothing of Kubernetes except that an object carries its revision in
//! `metadata.resourceVersion`.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::Instant;

/// Names a resource across all of its versions, for example `pods` or `apps/deployments`.
pub type ResourceId = Arc<str>;

/// Where an object lives within its resource; `namespace` is empty for cluster-scoped objects.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    pub namespace: String,
    pub name: String,
}

impl Key {
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

/// One revision of one object. `bytes` is `value` as JSON, serialised once and written through to every reader.
#[derive(Debug)]
pub struct Stored {
    pub key: Key,
    pub revision: u64,
    pub value: Value,
    pub bytes: Bytes,
}

/// The objects of a resource at one moment.
pub type Objects = BTreeMap<Key, Arc<Stored>>;

/// A consistent list: everything written up to `revision`, nothing after it.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub revision: u64,
    pub objects: Arc<Objects>,
}

/// One write. Creation has no `before`; deletion has no `after`, and `before` then carries the deletion's revision.
#[derive(Clone, Debug)]
pub enum Change {
    Created(Arc<Stored>),
    Updated {
        before: Arc<Stored>,
        after: Arc<Stored>,
    },
    /// `last` is `before` as watchers should see it: with the revision of the deletion.
    Deleted {
        before: Arc<Stored>,
        last: Arc<Stored>,
    },
}

impl Change {
    pub fn revision(&self) -> u64 {
        match self {
            Self::Created(after) | Self::Updated { after, .. } => after.revision,
            Self::Deleted { last, .. } => last.revision,
        }
    }
}

/// What a writer believes about the object it replaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    Absent,
    Revision(u64),
}

/// Why a write did not happen.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum WriteError {
    #[error("the object already exists")]
    Exists,
    #[error("the object does not exist")]
    Missing,
    #[error("the object has moved on to another revision")]
    Conflict,
}

/// The past that was asked for is no longer (or not yet) known.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PastError {
    #[error("revision {asked} is older than the oldest known one, {oldest}")]
    Forgotten { asked: u64, oldest: u64 },
    #[error("revision {asked} is in the future, now is {now}")]
    Future { asked: u64, now: u64 },
}

/// How much of the past is kept per resource.
#[derive(Clone, Copy, Debug)]
pub struct History {
    /// Changes younger than this are kept ...
    pub age_min: Duration,
    /// ... and at least this many changes whatever their age ...
    pub count_min: usize,
    /// ... but never more than this many, so that a busy resource can't eat the machine.
    pub count_max: usize,
}

impl Default for History {
    fn default() -> Self {
        Self {
            age_min: Duration::from_secs(300),
            count_min: 4096,
            count_max: 16_384,
        }
    }
}

/// The store of one cluster.
#[derive(Debug)]
pub struct Store {
    history: History,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    revision: u64,
    /// Changes up to this revision were forgotten on purpose, for resources not yet written to as well.
    forgotten: u64,
    resources: BTreeMap<ResourceId, Resource>,
}

#[derive(Debug)]
struct Resource {
    objects: Arc<Objects>,
    changes: VecDeque<(Instant, Change)>,
    /// Every change after this revision is in `changes`.
    floor: u64,
    /// Revision of the latest change: what watchers wait for.
    latest: watch::Sender<u64>,
}

impl Resource {
    fn new(floor: u64) -> Self {
        Self {
            objects: Arc::default(),
            changes: VecDeque::new(),
            floor,
            latest: watch::Sender::new(0),
        }
    }

    fn record(&mut self, history: History, change: Change) {
        let now = Instant::now();
        let revision = change.revision();
        self.changes.push_back((now, change));
        while let Some((at, oldest)) = self.changes.front() {
            let count = self.changes.len();
            let surplus = count > history.count_min && now.duration_since(*at) > history.age_min;
            if !surplus && count <= history.count_max {
                break;
            }
            self.floor = oldest.revision();
            self.changes.pop_front();
        }
        self.latest.send_replace(revision);
    }
}

impl Default for Store {
    fn default() -> Self {
        Self::new(History::default())
    }
}

impl Store {
    pub fn new(history: History) -> Self {
        Self {
            history,
            inner: Mutex::new(Inner {
                revision: 1,
                forgotten: 0,
                resources: BTreeMap::new(),
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing under this lock can panic half-way through a change, so a poisoned lock still holds whole objects.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The revision of the latest write.
    pub fn revision(&self) -> u64 {
        self.lock().revision
    }

    pub fn get(&self, resource: &ResourceId, key: &Key) -> Option<Arc<Stored>> {
        self.lock().resources.get(resource)?.objects.get(key).cloned()
    }

    /// The present state of a resource.
    pub fn list(&self, resource: &ResourceId) -> Snapshot {
        let inner = self.lock();
        let objects = inner
            .resources
            .get(resource)
            .map(|found| found.objects.clone())
            .unwrap_or_default();
        Snapshot {
            revision: inner.revision,
            objects,
        }
    }

    /// The state of a resource at an older revision, reconstructed by undoing what came later.
    pub fn list_at(&self, resource: &ResourceId, revision: u64) -> Result<Snapshot, PastError> {
        let inner = self.lock();
        if revision > inner.revision {
            return Err(PastError::Future {
                asked: revision,
                now: inner.revision,
            });
        }
        let found = inner.resources.get(resource);
        let floor = found.map_or(inner.forgotten, |found| found.floor);
        if revision < floor {
            return Err(PastError::Forgotten {
                asked: revision,
                oldest: floor,
            });
        }
        let Some(found) = found else {
            return Ok(Snapshot {
                revision,
                objects: Arc::default(),
            });
        };
        let (mut objects, later): (_, Vec<Change>) = (
            found.objects.clone(),
            found
                .changes
                .iter()
                .rev()
                .take_while(|(_, change)| change.revision() > revision)
                .map(|(_, change)| change.clone())
                .collect(),
        );
        drop(inner);
        for change in later {
            let objects = Arc::make_mut(&mut objects);
            match change {
                Change::Created(after) => drop(objects.remove(&after.key)),
                Change::Updated { before, .. } | Change::Deleted { before, .. } => {
                    objects.insert(before.key.clone(), before);
                }
            }
        }
        Ok(Snapshot { revision, objects })
    }

    /// Creates or replaces an object, stamping the new revision into it.
    pub fn put(
        &self,
        resource: &ResourceId,
        key: Key,
        value: Value,
        expect: Expect,
    ) -> Result<Arc<Stored>, WriteError> {
        let mut inner = self.lock();
        let revision = inner.revision + 1;
        let forgotten = inner.forgotten;
        let found = inner
            .resources
            .entry(resource.clone())
            .or_insert_with(|| Resource::new(forgotten));
        let before = check(found.objects.get(&key), expect)?;
        let after = Arc::new(stamp(key, value, revision));
        Arc::make_mut(&mut found.objects).insert(after.key.clone(), after.clone());
        let change = match before {
            None => Change::Created(after.clone()),
            Some(before) => Change::Updated {
                before,
                after: after.clone(),
            },
        };
        found.record(self.history, change);
        inner.revision = revision;
        Ok(after)
    }

    /// Removes an object. `last` is its final state; the result carries the deletion's revision.
    pub fn delete(
        &self,
        resource: &ResourceId,
        key: &Key,
        last: Value,
        revision: u64,
    ) -> Result<Arc<Stored>, WriteError> {
        let mut inner = self.lock();
        let next = inner.revision + 1;
        let found = inner.resources.get_mut(resource).ok_or(WriteError::Missing)?;
        let before = check(found.objects.get(key), Expect::Revision(revision))?.ok_or(WriteError::Missing)?;
        Arc::make_mut(&mut found.objects).remove(key);
        let last = Arc::new(stamp(key.clone(), last, next));
        found.record(
            self.history,
            Change::Deleted {
                before,
                last: last.clone(),
            },
        );
        inner.revision = next;
        Ok(last)
    }

    /// Watches a resource from just after `revision`.
    pub fn watch(self: &Arc<Self>, resource: &ResourceId, revision: u64) -> Result<Watcher, PastError> {
        let mut inner = self.lock();
        if revision > inner.revision {
            return Err(PastError::Future {
                asked: revision,
                now: inner.revision,
            });
        }
        let forgotten = inner.forgotten;
        let found = inner
            .resources
            .entry(resource.clone())
            .or_insert_with(|| Resource::new(forgotten));
        if revision < found.floor {
            return Err(PastError::Forgotten {
                asked: revision,
                oldest: found.floor,
            });
        }
        Ok(Watcher {
            store: self.clone(),
            resource: resource.clone(),
            seen: revision,
            latest: found.latest.subscribe(),
        })
    }

    /// The revision of the latest change to a resource, and a way to wait for later ones.
    pub fn latest(&self, resource: &ResourceId) -> watch::Receiver<u64> {
        let mut inner = self.lock();
        let forgotten = inner.forgotten;
        inner
            .resources
            .entry(resource.clone())
            .or_insert_with(|| Resource::new(forgotten))
            .latest
            .subscribe()
    }

    /// How many objects each resource has.
    pub fn counts(&self) -> BTreeMap<ResourceId, usize> {
        let inner = self.lock();
        inner
            .resources
            .iter()
            .map(|(resource, found)| (resource.clone(), found.objects.len()))
            .collect()
    }

    /// Waits until the store has reached a revision.
    pub async fn reached(&self, revision: u64) {
        // Only clients that quote another cluster's revision wait here, for at most their deadline; polling spares
        // every write a second notification.
        while self.revision() < revision {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Forgets the past, as a restarted API server and a compacted etcd have: watches and lists from before now must start again.
    pub fn forget(&self) {
        let mut inner = self.lock();
        let now = inner.revision;
        inner.forgotten = now;
        for resource in inner.resources.values_mut() {
            resource.changes.clear();
            resource.floor = now;
            // Wakes every watcher, so that each finds out by itself whether it missed something.
            resource.latest.send_replace(now);
        }
    }

    fn changes_after(&self, resource: &ResourceId, seen: u64) -> Result<(Vec<Change>, u64), PastError> {
        let inner = self.lock();
        let Some(found) = inner.resources.get(resource) else {
            return Ok((Vec::new(), inner.revision));
        };
        if seen < found.floor {
            return Err(PastError::Forgotten {
                asked: seen,
                oldest: found.floor,
            });
        }
        let start = found
            .changes
            .partition_point(|(_, change)| change.revision() <= seen);
        let changes: Vec<Change> = found
            .changes
            .range(start..)
            .take(BATCH_COUNT_MAX)
            .map(|(_, change)| change.clone())
            .collect();
        let revision = match changes.last() {
            Some(last) if changes.len() == BATCH_COUNT_MAX => last.revision(),
            _ => inner.revision,
        };
        Ok((changes, revision))
    }
}

/// Bounds what one pull copies, and so how long it holds the lock.
const BATCH_COUNT_MAX: usize = 256;

/// A position in a resource's past. Dropping it costs nothing: the store doesn't know its watchers.
#[derive(Debug)]
pub struct Watcher {
    store: Arc<Store>,
    resource: ResourceId,
    seen: u64,
    latest: watch::Receiver<u64>,
}

impl Watcher {
    /// What happened since the last call, possibly nothing, in order and bounded.
    ///
    /// Afterwards [`Watcher::seen`] says up to which revision this resource's changes are complete.
    pub fn pull(&mut self) -> Result<Vec<Change>, PastError> {
        self.latest.mark_unchanged();
        let (changes, revision) = self.store.changes_after(&self.resource, self.seen)?;
        self.seen = revision;
        Ok(changes)
    }

    /// Completes when [`Watcher::pull`] would find something.
    pub async fn changed(&mut self) {
        loop {
            if *self.latest.borrow_and_update() > self.seen {
                return;
            }
            if self.latest.changed().await.is_err() {
                // The store outlives its watchers by construction; waiting for ever is still the right answer.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Every change of this resource up to here was handed out.
    pub fn seen(&self) -> u64 {
        self.seen
    }
}

fn check(found: Option<&Arc<Stored>>, expect: Expect) -> Result<Option<Arc<Stored>>, WriteError> {
    match (found, expect) {
        (None, Expect::Absent) => Ok(None),
        (Some(_), Expect::Absent) => Err(WriteError::Exists),
        (None, Expect::Revision(_)) => Err(WriteError::Missing),
        (Some(found), Expect::Revision(revision)) if found.revision == revision => Ok(Some(found.clone())),
        (Some(_), Expect::Revision(_)) => Err(WriteError::Conflict),
    }
}

fn stamp(key: Key, mut value: Value, revision: u64) -> Stored {
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert("resourceVersion".to_owned(), Value::String(revision.to_string()));
    }
    // A `Value` has string keys only, so it always has a JSON form.
    let bytes = Bytes::from(value.to_string());
    Stored {
        key,
        revision,
        value,
        bytes,
    }
}

#[cfg(test)]
mod tests;
