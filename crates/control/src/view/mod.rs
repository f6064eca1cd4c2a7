//! What the control plane knows of its cluster, and who must hear when that changes.
//!
//! Watches write, streams read. A stream looks at the state through [`View::observe`], which also notes the topics that
//! the answer rests on; when one of them changes the stream looks again. Nothing is queued: a slow client skips states
//! and always gets the latest, and a change costs its own subscribers, not everybody's.
//! A view can also hold what other clusters have, each in a state of its own: see [`clusters`].
//! This module doesn't know what is answered: see `destination` and `policy`.

pub mod clusters;
pub mod objects;
pub mod routes;
mod state;
pub mod watch;

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError, RwLock};

use futures::future;
use tokio::sync::watch as channel;

pub use self::objects::Key;
pub use self::state::{Change, RemoteCluster, State};

/// Something that an answer can rest on.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Topic {
    /// A Service, its endpoints, the pods behind them, its TrafficSplit and its routes.
    Service(Key),
    Pod(Key),
    /// Whatever has this address now or later.
    Ip(IpAddr),
    /// Servers, their routes and authorizations of a namespace.
    Policy(String),
    /// Which other clusters Services look into, and which of them are known.
    Clusters,
    /// Whether another cluster is known, and how it names its pods.
    Cluster(String),
    /// Something in another cluster.
    Remote(String, Box<Self>),
}

/// The topics that an answer turned out to rest on.
pub type Topics = BTreeSet<Topic>;

/// The state of the cluster, shared by all streams of a process.
#[derive(Default)]
pub struct View {
    state: RwLock<State>,
    subscribers: Mutex<Subscribers>,
}

#[derive(Default)]
struct Subscribers {
    topics: HashMap<Topic, channel::Sender<()>>,
    /// Topics nobody listens to are dropped when the table has doubled since the last look.
    sweep_at: usize,
}

/// Resolves when something that an answer rested on may have changed.
pub struct Changed(Vec<channel::Receiver<()>>);

impl View {
    /// Asks the state a question. The answer is stale once [`Changed`] resolves, never before, and no change between
    /// the two is missed: topics are subscribed to while the state can't change.
    pub fn observe<T>(&self, question: impl FnOnce(&State, &mut Topics) -> T) -> (T, Changed) {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let mut topics = Topics::new();
        let answer = question(&state, &mut topics);
        let changed = self
            .subscribers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .subscribe(topics);
        (answer, changed)
    }

    /// Asks without subscribing.
    pub fn read<T>(&self, question: impl FnOnce(&State) -> T) -> T {
        question(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Applies what a watch saw and wakes those whom it concerns.
    pub fn apply(&self, change: Change) {
        let mut topics = Topics::new();
        {
            let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
            state.apply(change, &mut topics);
        }
        let subscribers = self.subscribers.lock().unwrap_or_else(PoisonError::into_inner);
        for topic in topics {
            if let Some(sender) = subscribers.topics.get(&topic) {
                sender.send_replace(());
            }
        }
    }
}

impl Subscribers {
    fn subscribe(&mut self, topics: Topics) -> Changed {
        if self.topics.len() >= self.sweep_at {
            self.topics.retain(|_, sender| sender.receiver_count() > 0);
            self.sweep_at = 2 * self.topics.len() + 64;
        }
        let receivers = topics
            .into_iter()
            .map(|topic| self.topics.entry(topic).or_default().subscribe());
        Changed(receivers.collect())
    }
}

impl Changed {
    pub async fn wait(mut self) {
        if self.0.is_empty() {
            return future::pending().await;
        }
        // A sender is dropped only when it has no receivers, so an error can't come before a change.
        let (_, _, _) =
            future::select_all(self.0.iter_mut().map(|receiver| Box::pin(receiver.changed()))).await;
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn service(name: &str) -> Topic {
        Topic::Service(Key::new("test", name))
    }

    fn watching(view: &View, name: &str) -> Changed {
        view.observe(|_, topics| topics.insert(service(name))).1
    }

    #[test]
    fn only_those_who_looked_at_what_changed_are_woken() {
        let view = View::default();
        let (web, db) = (watching(&view, "web"), watching(&view, "db"));
        view.apply(Change::Service(
            Key::new("test", "web"),
            Some(objects::Service {
                namespace: "test".into(),
                name: "web".into(),
                ..Default::default()
            }),
        ));
        assert!(web.wait().now_or_never().is_some());
        assert!(db.wait().now_or_never().is_none());
    }

    #[test]
    fn topics_without_listeners_are_forgotten() {
        let view = View::default();
        for number in 0..10_000 {
            drop(watching(&view, &format!("svc-{number}")));
        }
        let subscribers = view.subscribers.lock().unwrap();
        assert!(subscribers.topics.len() < 200, "{}", subscribers.topics.len());
    }
}
