//! Keeps the list of pods as the API server tells it.

use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod as Object;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use tokio::sync::watch;

use crate::pods::{Pod, Pods};

/// Pods beyond these are not looked at; a larger cluster wants Prometheus.
const PODS_MAX: usize = 20_000;

/// Follows all pods, for ever. A watch that breaks is begun again; until then the last list stands.
pub(crate) async fn pods(client: Client, list: watch::Sender<Option<Pods>>) {
    let config = watcher::Config::default();
    let mut events = watcher(Api::<Object>::all(client), config)
        .default_backoff()
        .boxed();
    let mut next = Pods::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => next.clear(),
            Ok(Event::InitApply(object)) => insert(&mut next, &object),
            Ok(Event::InitDone) => _ = list.send_replace(Some(std::mem::take(&mut next))),
            Ok(Event::Apply(object)) => list.send_modify(|pods| {
                if let Some(pods) = pods {
                    insert(pods, &object);
                }
            }),
            Ok(Event::Delete(object)) => list.send_modify(|pods| {
                if let Some(pods) = pods {
                    pods.remove(Pod::of(&object).name());
                }
            }),
            Err(error) => tracing::warn!(%error, "the watch on pods broke; trying again"),
        }
    }
}

fn insert(pods: &mut Pods, object: &Object) {
    let pod = Pod::of(object);
    if pods.len() < PODS_MAX || pods.contains_key(pod.name()) {
        pods.insert(pod.name().clone(), Arc::new(pod));
    } else {
        tracing::error!(pod = %pod.name(), "more than {PODS_MAX} pods: this one is left out");
    }
}
