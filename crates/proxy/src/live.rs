//! A value that one thread replaces and every thread reads.
//!
//! Reading is an atomic load, so requests read it each time instead of being told of changes; whoever waits (for the
//! first value, or for a connection's permission to be withdrawn) waits on a level, never on an event.

use std::sync::Arc;

use arc_swap::{ArcSwapOption, Guard};
use tokio::sync::watch;

#[derive(Debug)]
pub(crate) struct Live<T> {
    value: ArcSwapOption<T>,
    generation: watch::Sender<u64>,
}

impl<T> Live<T> {
    /// Empty until the first answer.
    pub(crate) fn empty() -> Arc<Self> {
        Arc::new(Self {
            value: ArcSwapOption::empty(),
            generation: watch::Sender::new(0),
        })
    }

    pub(crate) fn new(value: T) -> Arc<Self> {
        let live = Self::empty();
        live.set(value);
        live
    }

    pub(crate) fn set(&self, value: T) {
        self.value.store(Some(Arc::new(value)));
        self.generation.send_modify(|generation| *generation += 1);
    }

    pub(crate) fn load(&self) -> Guard<Option<Arc<T>>> {
        self.value.load()
    }

    pub(crate) fn get(&self) -> Option<Arc<T>> {
        self.value.load_full()
    }

    /// The value, as soon as there is one.
    pub(crate) async fn first(&self) -> Arc<T> {
        let mut generation = self.generation.subscribe();
        loop {
            if let Some(value) = self.get() {
                return value;
            }
            // The sender lives as long as `self`.
            let _ = generation.changed().await;
        }
    }

    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }
}
