//! Kubernetes Events, written in passing.
//!
//! An Event is a note for people, so it is never waited for: when the API server is slow, notes are dropped instead of
//! collected.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// Notes on their way at once.
const IN_FLIGHT_MAX: usize = 16;
const TIMEOUT: Duration = Duration::from_secs(5);

/// Writes Events in the name of one controller.
#[derive(Clone)]
pub struct Notes {
    recorder: Recorder,
    slots: Arc<Semaphore>,
}

impl Notes {
    pub fn new(client: Client, controller: &str) -> Self {
        let reporter = Reporter {
            controller: controller.into(),
            instance: None,
        };
        Self {
            recorder: Recorder::new(client, reporter),
            slots: Arc::new(Semaphore::new(IN_FLIGHT_MAX)),
        }
    }

    pub fn publish(&self, about: ObjectReference, type_: EventType, reason: &str, note: String) {
        let Ok(slot) = self.slots.clone().try_acquire_owned() else {
            return;
        };
        let recorder = self.recorder.clone();
        let event = Event {
            type_,
            reason: reason.into(),
            note: Some(note),
            action: reason.into(),
            secondary: None,
        };
        tokio::spawn(async move {
            let published = timeout(TIMEOUT, recorder.publish(&event, &about)).await;
            if !matches!(published, Ok(Ok(()))) {
                tracing::debug!(reason = %event.reason, "event not written");
            }
            drop(slot);
        });
    }
}

/// The object that a note is about.
pub fn about(api_version: &str, kind: &str, namespace: &str, name: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some(api_version.into()),
        kind: Some(kind.into()),
        namespace: Some(namespace.into()),
        name: Some(name.into()),
        ..ObjectReference::default()
    }
}
