use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn pods() -> ResourceId {
    Arc::from("pods")
}

fn object(content: u8) -> Value {
    json!({ "metadata": {}, "content": content })
}

fn contents(snapshot: &Snapshot) -> Vec<(String, u64)> {
    snapshot
        .objects
        .values()
        .map(|stored| (stored.key.name.clone(), stored.revision))
        .collect()
}

#[test]
fn every_write_takes_the_next_revision_and_stamps_it() {
    let store = Store::default();
    let created = store
        .put(&pods(), Key::new("a", "x"), object(1), Expect::Absent)
        .unwrap();
    let updated = store
        .put(
            &pods(),
            Key::new("a", "x"),
            object(2),
            Expect::Revision(created.revision),
        )
        .unwrap();
    let deleted = store
        .delete(&pods(), &Key::new("a", "x"), object(2), updated.revision)
        .unwrap();
    assert_eq!([created.revision, updated.revision, deleted.revision], [2, 3, 4]);
    assert_eq!(deleted.value["metadata"]["resourceVersion"], "4");
    assert_eq!(deleted.bytes, deleted.value.to_string());
}

#[test]
fn a_writer_with_an_outdated_belief_is_refused() {
    let store = Store::default();
    let key = Key::new("a", "x");
    assert_eq!(
        store
            .put(&pods(), key.clone(), object(1), Expect::Revision(1))
            .unwrap_err(),
        WriteError::Missing
    );
    store
        .put(&pods(), key.clone(), object(1), Expect::Absent)
        .unwrap();
    assert_eq!(
        store
            .put(&pods(), key.clone(), object(1), Expect::Absent)
            .unwrap_err(),
        WriteError::Exists
    );
    assert_eq!(
        store
            .put(&pods(), key.clone(), object(1), Expect::Revision(1))
            .unwrap_err(),
        WriteError::Conflict
    );
    assert_eq!(
        store.delete(&pods(), &key, object(1), 1).unwrap_err(),
        WriteError::Conflict
    );
}

#[test]
fn a_resource_that_was_empty_when_listed_can_be_watched_from_there() {
    let store = Arc::new(Store::default());
    let listed = store.list(&pods()).revision;
    store
        .put(&Arc::from("other"), Key::new("", "x"), object(0), Expect::Absent)
        .unwrap();
    store
        .put(&pods(), Key::new("", "x"), object(0), Expect::Absent)
        .unwrap();
    let mut watcher = store.watch(&pods(), listed).unwrap();
    assert_eq!(watcher.pull().unwrap().len(), 1);
}

#[test]
fn a_forgotten_past_is_refused_and_the_present_is_not() {
    let store = Arc::new(Store::default());
    store
        .put(&pods(), Key::new("", "x"), object(0), Expect::Absent)
        .unwrap();
    let mut slow = store.watch(&pods(), 1).unwrap();
    store.forget();
    let oldest = store.revision();
    assert_eq!(
        slow.pull().unwrap_err(),
        PastError::Forgotten { asked: 1, oldest }
    );
    assert_eq!(
        store.watch(&pods(), 1).unwrap_err(),
        PastError::Forgotten { asked: 1, oldest }
    );
    assert_eq!(
        store.list_at(&pods(), 1).unwrap_err(),
        PastError::Forgotten { asked: 1, oldest }
    );
    // Nobody knows what there was of this either.
    assert_eq!(
        store.list_at(&Arc::from("other"), 1).unwrap_err(),
        PastError::Forgotten { asked: 1, oldest }
    );
    assert!(store.watch(&pods(), oldest).is_ok());
}

#[tokio::test(start_paused = true)]
async fn history_is_bounded_by_count_and_age_together() {
    let history = History {
        age_min: Duration::from_secs(75),
        count_min: 2,
        count_max: 4,
    };
    let store = Arc::new(Store::new(history));
    let write = |name: &str| {
        store
            .put(&pods(), Key::new("", name), object(0), Expect::Absent)
            .unwrap()
            .revision
    };
    let first = write("a");
    write("b");
    write("c");
    write("d");
    assert!(
        store.list_at(&pods(), first - 1).is_ok(),
        "young changes stay although there are more than the minimum"
    );
    write("e");
    assert!(
        store.list_at(&pods(), first - 1).is_err(),
        "the maximum holds whatever the age"
    );
    tokio::time::advance(Duration::from_secs(76)).await;
    let last = write("f");
    assert!(
        store.list_at(&pods(), last - 3).is_err(),
        "old changes beyond the minimum go"
    );
    assert!(store.list_at(&pods(), last - 2).is_ok());
}

#[tokio::test]
async fn a_watcher_wakes_for_its_own_resource_only() {
    let store = Arc::new(Store::default());
    let mut watcher = store.watch(&pods(), store.revision()).unwrap();
    store
        .put(&Arc::from("other"), Key::new("", "x"), object(0), Expect::Absent)
        .unwrap();
    let mut changed = Box::pin(watcher.changed());
    assert!(futures::poll!(&mut changed).is_pending());
    store
        .put(&pods(), Key::new("", "x"), object(0), Expect::Absent)
        .unwrap();
    assert!(futures::poll!(&mut changed).is_ready());
}

proptest! {
    /// Any sequence of writes, seen by a watcher that pulls at arbitrary moments, gives the final state; and the
    /// state at every revision can be had afterwards.
    #[test]
    fn replayed_changes_and_undone_changes_agree_with_what_was(
        writes in proptest::collection::vec((0u8..6, 0u8..3, any::<bool>()), 1..80),
    ) {
        let store = Arc::new(Store::default());
        let mut watcher = store.watch(&pods(), store.revision()).unwrap();
        let mut replayed = Objects::new();
        let mut seen = vec![store.list(&pods())];
        for (name, action, pull) in writes {
            let key = Key::new("", name.to_string());
            match (store.get(&pods(), &key), action) {
                (None, _) => drop(store.put(&pods(), key, object(action), Expect::Absent).unwrap()),
                (Some(found), 0) => drop(store.delete(&pods(), &key, found.value.clone(), found.revision).unwrap()),
                (Some(found), _) => {
                    drop(store.put(&pods(), key, object(action), Expect::Revision(found.revision)).unwrap());
                }
            }
            seen.push(store.list(&pods()));
            if pull {
                replay(&mut replayed, watcher.pull().unwrap());
            }
        }
        replay(&mut replayed, watcher.pull().unwrap());
        let replayed = Snapshot { revision: watcher.seen(), objects: Arc::new(replayed) };
        prop_assert_eq!(contents(&replayed), contents(&store.list(&pods())));
        for snapshot in seen {
            prop_assert_eq!(contents(&store.list_at(&pods(), snapshot.revision).unwrap()), contents(&snapshot));
        }
    }
}

fn replay(objects: &mut Objects, changes: Vec<Change>) {
    for change in changes {
        match change {
            Change::Created(after) | Change::Updated { after, .. } => {
                drop(objects.insert(after.key.clone(), after))
            }
            Change::Deleted { last, .. } => drop(objects.remove(&last.key)),
        }
    }
}
