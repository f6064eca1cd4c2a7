//! Readiness is a set of named guards: a process is ready when the last one has been dropped.
//!
//! The names say what is still awaited, in logs and on the admin port.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

/// Whether this process can do its work.
#[derive(Clone, Debug)]
pub struct Readiness {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    awaited: Mutex<BTreeMap<String, usize>>,
    ready: watch::Sender<bool>,
}

/// Keeps the process unready until dropped.
#[derive(Debug)]
pub struct Guard {
    name: String,
    inner: Arc<Inner>,
}

impl Default for Readiness {
    fn default() -> Self {
        Self {
            inner: Arc::new(Inner {
                awaited: Mutex::default(),
                ready: watch::Sender::new(true),
            }),
        }
    }
}

impl Readiness {
    /// Adds something to wait for.
    pub fn guard(&self, name: impl Into<String>) -> Guard {
        let name = name.into();
        let mut awaited = self.inner.awaited.lock().unwrap_or_else(PoisonError::into_inner);
        *awaited.entry(name.clone()).or_default() += 1;
        self.inner.ready.send_replace(false);
        Guard {
            name,
            inner: self.inner.clone(),
        }
    }

    pub fn is_ready(&self) -> bool {
        *self.inner.ready.borrow()
    }

    /// What is still awaited, in alphabetical order.
    pub fn awaited(&self) -> Vec<String> {
        self.inner
            .awaited
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .keys()
            .cloned()
            .collect()
    }

    /// Waits until nothing is awaited.
    pub async fn ready(&self) {
        // The sender lives as long as `self`, so waiting cannot fail.
        let _ = self.inner.ready.subscribe().wait_for(|ready| *ready).await;
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut awaited = self.inner.awaited.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = awaited.get_mut(&self.name) {
            *count -= 1;
            if *count == 0 {
                awaited.remove(&self.name);
            }
        }
        self.inner.ready.send_replace(awaited.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_is_ready_when_its_last_guard_is_dropped() {
        let readiness = Readiness::default();
        let (certificate, caches) = (readiness.guard("certificate"), readiness.guard("caches"));
        assert_eq!(readiness.awaited(), ["caches", "certificate"]);
        drop(certificate);
        assert!(!readiness.is_ready());
        drop(caches);
        readiness.ready().await;
        assert!(readiness.is_ready());
    }
}
