//! What to do next: a pure function of the snapshot and the time.
//!
//! [`plan`] asks every controller in turn. Nobody tells it what changed, so a missed event, a restart and a repair are
//! the ordinary case. A plan may be carried out late, twice or in part.

use std::collections::HashMap;
use std::fmt;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use serde_json::{Map, Value, json};

use super::snapshot::{Key, Object, Resource, Snapshot, Target};
use crate::kubelet::ClusterAddresses;

/// What to do, and when to look again even if nothing changes.
pub(crate) struct Plan {
    pub(crate) now: Timestamp,
    pub(crate) actions: Vec<Action>,
    pub(crate) wake: Option<Timestamp>,
}

/// One write on behalf of one object. While any write of a scope is on its way, no other of that scope starts.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Action {
    pub(crate) scope: Target,
    /// Instead of the scope: writes for different objects that must not overtake each other share a lane.
    pub(crate) lane: Option<Target>,
    pub(crate) write: Write,
    /// Event to record when the write succeeded.
    pub(crate) note: Option<Note>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Write {
    Create {
        resource: Resource,
        object: Value,
    },
    /// A merge patch. With `metadata.resourceVersion` in it, it only applies to what the plan has seen.
    Patch {
        target: Target,
        subresource: Option<&'static str>,
        patch: Value,
    },
    Delete {
        target: Target,
        uid: String,
        /// Only if none of these exists: snapshots of different kinds may be of different age.
        unless: Vec<Reference>,
        manner: Manner,
    },
    Bind {
        pod: Key,
        uid: String,
        node: String,
    },
    /// Removes the finalizer `kubernetes` once nothing is left in the namespace.
    Finalize {
        namespace: String,
    },
    /// Nothing but the note.
    Note,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    Background,
    Foreground,
    /// Without waiting for a node that can't answer.
    AtOnce,
}

/// An object whose existence matters, by identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reference {
    pub(crate) target: Target,
    /// Any object of the name if empty.
    pub(crate) uid: String,
}

impl Reference {
    /// Any object of the name.
    pub(crate) fn any(target: Target) -> Self {
        Self {
            target,
            uid: String::new(),
        }
    }
}

/// An Event about the scope's object. `{name}` stands for the name of the object that was written.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Note {
    pub(crate) warning: bool,
    pub(crate) component: &'static str,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
    pub(crate) regarding_uid: String,
    /// The reason to give if the API server refuses the write. Without one, nobody but the log is told.
    pub(crate) refusal: Option<&'static str>,
}

impl Action {
    pub(crate) fn lane(&self) -> &Target {
        self.lane.as_ref().unwrap_or(&self.scope)
    }
}

impl Plan {
    pub(crate) fn new(now: Timestamp) -> Self {
        Self {
            now,
            actions: Vec::new(),
            wake: None,
        }
    }

    pub(crate) fn act(&mut self, scope: &Target, write: Write) {
        self.actions.push(Action {
            scope: scope.clone(),
            lane: None,
            write,
            note: None,
        });
    }

    pub(crate) fn act_and_note(&mut self, scope: &Target, write: Write, note: Note) {
        self.actions.push(Action {
            scope: scope.clone(),
            lane: None,
            write,
            note: Some(note),
        });
    }

    pub(crate) fn create(&mut self, scope: &Target, resource: Resource, object: Value) {
        self.act(scope, Write::Create { resource, object });
    }

    pub(crate) fn patch(&mut self, scope: &Target, target: Target, patch: Value) {
        self.act(
            scope,
            Write::Patch {
                target,
                subresource: None,
                patch,
            },
        );
    }

    pub(crate) fn patch_status(&mut self, scope: &Target, target: Target, patch: Value) {
        self.act(
            scope,
            Write::Patch {
                target,
                subresource: Some("status"),
                patch,
            },
        );
    }

    pub(crate) fn delete(&mut self, scope: &Target, target: Target, metadata: &ObjectMeta, manner: Manner) {
        self.delete_unless(scope, target, metadata, manner, Vec::new());
    }

    /// Deletes the object if none of those exists, whatever the snapshot says.
    pub(crate) fn delete_unless(
        &mut self,
        scope: &Target,
        target: Target,
        metadata: &ObjectMeta,
        manner: Manner,
        unless: Vec<Reference>,
    ) {
        let uid = metadata.uid.clone().unwrap_or_default();
        self.act(
            scope,
            Write::Delete {
                target,
                uid,
                unless,
                manner,
            },
        );
    }

    /// Patches the status so that it reads `wanted`, if it does not already.
    pub(crate) fn status(&mut self, scope: &Target, current: &impl serde::Serialize, wanted: Value) {
        let current = serde_json::to_value(current).unwrap_or_default();
        if let Some(patch) = merge_patch(&current, &wanted) {
            let patch = json!({ "status": patch });
            self.act(
                scope,
                Write::Patch {
                    target: scope.clone(),
                    subresource: Some("status"),
                    patch,
                },
            );
        }
    }

    /// Whether the time has come; if not, the plan is made again then.
    pub(crate) fn has_come(&mut self, time: Timestamp) -> bool {
        if time <= self.now {
            return true;
        }
        self.wake = Some(self.wake.map_or(time, |wake| wake.min(time)));
        false
    }
}

/// The snapshot with the lookups that several controllers need.
pub(crate) struct View<'a> {
    pub(crate) snapshot: &'a Snapshot,
    pub(crate) addresses: &'a ClusterAddresses,
    pods: HashMap<&'a str, Vec<&'a Pod>>,
    replica_sets: HashMap<&'a str, Vec<&'a ReplicaSet>>,
}

impl<'a> View<'a> {
    fn new(snapshot: &'a Snapshot, addresses: &'a ClusterAddresses) -> Self {
        Self {
            snapshot,
            addresses,
            pods: by_controller(snapshot.pods.values().map(|pod| &**pod)),
            replica_sets: by_controller(snapshot.replica_sets.values().map(|set| &**set)),
        }
    }

    /// Pods by the uid of their controller, in order of their names.
    pub(crate) fn pods_of(&self, owner: &ObjectMeta) -> &[&'a Pod] {
        self.pods
            .get(owner.uid.as_deref().unwrap_or_default())
            .map_or(&[], Vec::as_slice)
    }

    pub(crate) fn replica_sets_of(&self, owner: &ObjectMeta) -> &[&'a ReplicaSet] {
        self.replica_sets
            .get(owner.uid.as_deref().unwrap_or_default())
            .map_or(&[], Vec::as_slice)
    }
}

fn by_controller<'a, K: Object>(objects: impl Iterator<Item = &'a K>) -> HashMap<&'a str, Vec<&'a K>> {
    let mut groups: HashMap<&str, Vec<&K>> = HashMap::new();
    for object in objects {
        if let Some(controller) = controller_of(object.meta()) {
            groups.entry(controller.uid.as_str()).or_default().push(object);
        }
    }
    groups
}

pub(crate) fn controller_of(metadata: &ObjectMeta) -> Option<&OwnerReference> {
    metadata
        .owner_references
        .iter()
        .flatten()
        .find(|owner| owner.controller == Some(true))
}

/// Everything there is to do.
pub(crate) fn plan(snapshot: &Snapshot, addresses: &ClusterAddresses, now: Timestamp) -> Plan {
    let view = View::new(snapshot, addresses);
    let mut plan = Plan::new(now);
    for controller in [
        super::namespaces::plan,
        super::accounts::plan,
        super::nodes::plan,
        super::scheduler::plan,
        super::load_balancers::plan,
        super::endpoints::plan,
        super::mirroring::plan,
        super::deployments::plan,
        super::replica_sets::plan,
        super::daemon_sets::plan,
        super::stateful_sets::plan,
        super::jobs::plan,
        super::garbage::plan,
    ] as [fn(&View<'_>, &mut Plan); 13]
    {
        controller(&view, &mut plan);
    }
    // The API server refuses what is new in a namespace that is going.
    plan.actions.retain(|action| match &action.write {
        Write::Create { object, .. } => {
            let namespace = Key::new("", object["metadata"]["namespace"].as_str().unwrap_or_default());
            let namespace = snapshot.namespaces.get(&namespace);
            namespace.is_none_or(|namespace| namespace.metadata.deletion_timestamp.is_none())
        }
        _ => true,
    });
    plan
}

/// What there is to do for an infrastructure provider.
pub(crate) fn provider(snapshot: &Snapshot, addresses: &ClusterAddresses, now: Timestamp) -> Plan {
    let view = View::new(snapshot, addresses);
    let mut plan = Plan::new(now);
    super::load_balancers::plan(&view, &mut plan);
    plan
}

/// The merge patch that turns one value into the other, if they differ. Values that we left out as "none" are removed.
pub(crate) fn merge_patch(from: &Value, to: &Value) -> Option<Value> {
    let (Value::Object(from), Value::Object(to)) = (from, to) else {
        return (from != to).then(|| to.clone());
    };
    let mut patch = Map::new();
    for key in from.keys().filter(|key| to.get(*key).is_none_or(Value::is_null)) {
        if !from[key].is_null() {
            patch.insert(key.clone(), Value::Null);
        }
    }
    for (key, to) in to.iter().filter(|(_, to)| !to.is_null()) {
        match from.get(key) {
            Some(from) => patch.extend(merge_patch(from, to).map(|patch| (key.clone(), patch))),
            None => {
                patch.insert(key.clone(), to.clone());
            }
        }
    }
    (!patch.is_empty()).then_some(Value::Object(patch))
}

pub(crate) fn time(time: Timestamp) -> Value {
    json!(Time(time))
}

/// Sets a condition. Its transition time changes only with its status. True if anything changed.
pub(crate) fn set_condition(
    conditions: &mut Vec<Value>,
    now: Timestamp,
    kind: &str,
    status: &str,
    (reason, message): (&str, &str),
) -> bool {
    let index = conditions
        .iter()
        .position(|condition| condition["type"] == kind)
        .unwrap_or_else(|| {
            conditions.push(json!({ "type": kind }));
            conditions.len() - 1
        });
    let condition = &mut conditions[index];
    if condition["status"] == status && condition["reason"] == reason && condition["message"] == message {
        return false;
    }
    if condition["status"] != status {
        condition["lastTransitionTime"] = time(now);
    }
    condition["status"] = status.into();
    condition["reason"] = reason.into();
    condition["message"] = message.into();
    true
}

/// The reference that makes `owner` the controller of another object.
pub(crate) fn controlled_by(owner: &Target, metadata: &ObjectMeta) -> Value {
    json!({
        "apiVersion": owner.resource.api_version,
        "kind": owner.resource.kind,
        "name": metadata.name,
        "uid": metadata.uid,
        "controller": true,
        "blockOwnerDeletion": true,
    })
}

/// A short name for a value, of letters that spell no words. Stable across runs and versions: it ends up in names of
/// objects (64-bit FNV-1a).
pub(crate) fn short_hash(value: &Value) -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut hash = value
        .to_string()
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
    let mut name = String::new();
    for _ in 0..10 {
        name.push(char::from(LETTERS[usize::try_from(hash % 27).unwrap_or(0)]));
        hash /= 27;
    }
    name
}

/// For tests and traces.
impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.write {
            Write::Create { resource, object } => {
                let metadata = &object["metadata"];
                let name = metadata["name"]
                    .as_str()
                    .or_else(|| metadata["generateName"].as_str())
                    .unwrap_or_default();
                let key = Key::new(metadata["namespace"].as_str().unwrap_or_default(), name);
                write!(f, "create {} {key}", resource.kind)
            }
            Write::Patch {
                target,
                subresource,
                patch,
            } => {
                let subresource = subresource.map(|name| format!("/{name}")).unwrap_or_default();
                write!(f, "patch {target}{subresource} {patch}")
            }
            Write::Delete {
                target,
                unless,
                manner,
                ..
            } => {
                write!(f, "delete {target}")?;
                if *manner != Manner::Background {
                    write!(f, " {manner:?}")?;
                }
                unless
                    .iter()
                    .try_for_each(|reference| write!(f, " unless {}", reference.target))
            }
            Write::Bind { pod, node, .. } => write!(f, "bind {pod} {node}"),
            Write::Finalize { namespace } => write!(f, "finalize {namespace}"),
            Write::Note => write!(f, "note {}", self.scope),
        }
    }
}
