//! Watches become maps: one collection of objects, each reduced to what planning needs.
//!
//! A consumer is told *that* something changed, never what; it then looks at the whole. Whatever ends a watch (a cut
//! connection, an expired resource version, a server that restarts) leaves the last complete view in place until
//! the next one is complete. A view holds at most a given number of objects, so that another cluster can't exhaust
//! this process.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Resource, ResourceExt};
use rand::Rng;
use serde::de::DeserializeOwned;
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

/// Waits between attempts to list or watch; short first, because most interruptions are.
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(10);
/// A watch that outlives this is renewed, so that a silently dead connection is noticed soon after.
const WATCH_LIFETIME_SECONDS: u32 = 40;

/// An object's place in its cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
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

    pub fn of<K: Resource>(object: &K) -> Self {
        Self::new(object.namespace().unwrap_or_default(), object.name_any())
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Rings when any collection of a controller changed. Rings while nobody listens are kept, once.
#[derive(Clone, Debug, Default)]
pub struct Bell(Arc<Notify>);

impl Bell {
    pub fn ring(&self) {
        self.0.notify_one();
    }

    pub async fn rung(&self) {
        self.0.notified().await;
    }
}

/// The objects of one collection, by their place.
pub type View<T> = BTreeMap<Key, Arc<T>>;

#[derive(Debug)]
struct State<T> {
    /// `None` until the first list is complete.
    view: Option<View<T>>,
    /// The list in progress.
    next: View<T>,
    /// Why nothing new arrives; gone with the next event.
    trouble: Option<String>,
    /// What was left out for want of room; gone with the next list.
    overflow: Option<String>,
}

/// One collection under observation; dropping it ends the watch.
#[derive(Debug)]
pub struct Observed<T> {
    state: Arc<Mutex<State<T>>>,
    _task: AbortOnDropHandle<()>,
}

/// How many objects a view holds at most.
#[derive(Clone, Copy, Debug)]
pub struct Limit(pub usize);

/// Which objects of a collection to observe.
#[derive(Clone, Debug, Default)]
pub struct Select {
    labels: Option<String>,
    fields: Option<String>,
}

impl Select {
    pub fn all() -> Self {
        Self::default()
    }

    pub fn labels(query: impl Into<String>) -> Self {
        Self {
            labels: Some(query.into()),
            fields: None,
        }
    }

    /// One object. Asking for it alone is what permissions on a single name require.
    pub fn named(name: &str) -> Self {
        Self {
            labels: None,
            fields: Some(format!("metadata.name={name}")),
        }
    }
}

impl<T: Send + Sync + 'static> Observed<T> {
    /// Starts to watch. `reduce` keeps what matters of an object, or nothing.
    pub fn start<K>(
        api: Api<K>,
        select: Select,
        limit: Limit,
        bell: Bell,
        reduce: impl Fn(K) -> Option<T> + Send + 'static,
    ) -> Self
    where
        K: Resource + Clone + DeserializeOwned + fmt::Debug + Send + 'static,
        K::DynamicType: Default,
    {
        let kind = K::kind(&K::DynamicType::default()).into_owned();
        let state = Arc::new(Mutex::new(State {
            view: None,
            next: View::new(),
            trouble: None,
            overflow: None,
        }));
        let config = watcher::Config {
            label_selector: select.labels,
            field_selector: select.fields,
            timeout: Some(WATCH_LIFETIME_SECONDS),
            ..Default::default()
        };
        let shared = Arc::clone(&state);
        let task = tokio::spawn(async move {
            let mut events = std::pin::pin!(watcher::watcher(api, config));
            let mut retry = RETRY_MIN;
            while let Some(event) = events.next().await {
                match event {
                    Ok(event) => {
                        // A list that begins says nothing yet; the next thing may be its failure.
                        if !matches!(event, Event::Init) {
                            retry = RETRY_MIN;
                        }
                        if lock(&shared).absorb(event, limit, &reduce) {
                            bell.ring();
                        }
                    }
                    Err(error) => {
                        let message = chain(&error);
                        let is_news = lock(&shared).trouble.replace(message.clone()).is_none();
                        if is_news {
                            tracing::warn!(kind, error = message, "watch interrupted");
                            bell.ring();
                        } else {
                            tracing::debug!(kind, error = message, "watch still interrupted");
                        }
                        // Watches that were interrupted together shouldn't come back together.
                        let jitter = rand::rng().random::<f64>() / 4.0;
                        tokio::time::sleep(retry.mul_f64(1.0 + jitter)).await;
                        retry = (retry * 2).min(RETRY_MAX);
                    }
                }
            }
        });
        Self {
            state,
            _task: AbortOnDropHandle::new(task),
        }
    }

    /// The last complete view; `None` until there is one.
    pub fn view(&self) -> Option<View<T>> {
        lock(&self.state).view.clone()
    }

    /// Why the view may be old.
    pub fn trouble(&self) -> Option<String> {
        lock(&self.state).trouble.clone()
    }

    /// Why the view may be incomplete.
    pub fn overflow(&self) -> Option<String> {
        lock(&self.state).overflow.clone()
    }
}

fn lock<T>(state: &Mutex<State<T>>) -> std::sync::MutexGuard<'_, State<T>> {
    // A panic while holding the lock can only come from `reduce`; the maps are whole at every such point.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T> State<T> {
    /// Takes one event in; says whether the view may differ now.
    fn absorb<K: Resource>(
        &mut self,
        event: Event<K>,
        limit: Limit,
        reduce: &impl Fn(K) -> Option<T>,
    ) -> bool {
        if !matches!(event, Event::Init) {
            self.trouble = None;
        }
        match event {
            Event::Init => {
                self.next.clear();
                self.overflow = None;
                false
            }
            Event::InitApply(object) => {
                insert(&mut self.next, object, limit, reduce, &mut self.overflow);
                false
            }
            Event::InitDone => {
                self.view = Some(std::mem::take(&mut self.next));
                true
            }
            Event::Apply(object) => {
                let view = self.view.get_or_insert_default();
                insert(view, object, limit, reduce, &mut self.overflow);
                true
            }
            Event::Delete(object) => {
                let view = self.view.get_or_insert_default();
                view.remove(&Key::of(&object)).is_some()
            }
        }
    }
}

/// Puts an object into a view, or takes it out if it doesn't matter (any more).
fn insert<K: Resource, T>(
    view: &mut View<T>,
    object: K,
    limit: Limit,
    reduce: &impl Fn(K) -> Option<T>,
    overflow: &mut Option<String>,
) {
    let key = Key::of(&object);
    match reduce(object) {
        None => {
            view.remove(&key);
        }
        Some(_) if view.len() >= limit.0 && !view.contains_key(&key) => {
            if overflow.is_none() {
                let message = format!("more than {} objects; {key} and others are ignored", limit.0);
                tracing::error!(message, "a cluster has more objects than are looked after");
                *overflow = Some(message);
            }
        }
        Some(reduced) => {
            view.insert(key, Arc::new(reduced));
        }
    }
}

/// An error and its causes on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Some libraries print their source in Display as well.
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;

    fn object(name: &str) -> ConfigMap {
        let mut object = ConfigMap::default();
        object.metadata.name = Some(name.into());
        object.metadata.namespace = Some("test".into());
        object
    }

    fn state() -> State<String> {
        State {
            view: None,
            next: View::new(),
            trouble: None,
            overflow: None,
        }
    }

    fn reduce(object: ConfigMap) -> Option<String> {
        Some(object.name_any()).filter(|name| name != "ignored")
    }

    fn names(state: &State<String>) -> Option<Vec<String>> {
        state
            .view
            .as_ref()
            .map(|view| view.keys().map(|key| key.name.clone()).collect())
    }

    #[test]
    fn a_list_in_progress_does_not_disturb_the_view() {
        let mut state = state();
        for event in [
            Event::Init,
            Event::InitApply(object("a")),
            Event::InitDone,
            Event::Init,
        ] {
            state.absorb(event, Limit(9), &reduce);
        }
        assert_eq!(names(&state), Some(vec!["a".into()]));
        state.absorb(Event::InitApply(object("b")), Limit(9), &reduce);
        assert_eq!(names(&state), Some(vec!["a".into()]));
        assert!(state.absorb(Event::<ConfigMap>::InitDone, Limit(9), &reduce));
        assert_eq!(names(&state), Some(vec!["b".into()]));
    }

    #[test]
    fn more_objects_than_allowed_are_reported_and_not_kept() {
        let mut state = state();
        for event in [
            Event::Init,
            Event::InitApply(object("a")),
            Event::InitApply(object("b")),
            Event::InitDone,
        ] {
            state.absorb(event, Limit(1), &reduce);
        }
        assert_eq!(names(&state), Some(vec!["a".into()]));
        assert_eq!(
            state.overflow.as_deref(),
            Some("more than 1 objects; test/b and others are ignored")
        );
    }

    #[test]
    fn objects_without_interest_leave_the_view() {
        let mut state = state();
        state.absorb(Event::Apply(object("a")), Limit(9), &reduce);
        state.absorb(Event::Apply(object("ignored")), Limit(9), &reduce);
        assert_eq!(names(&state), Some(vec!["a".into()]));
        assert!(state.absorb(Event::Delete(object("a")), Limit(9), &reduce));
        assert!(!state.absorb(Event::Delete(object("a")), Limit(9), &reduce));
    }
}
