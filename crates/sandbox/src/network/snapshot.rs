//! A cluster's Services and where they lead, as one value that is always the latest.
//!
//! Watched once and shared by service addresses and DNS, so that both see the same cluster.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::{WatchStreamExt, reflector, watcher};
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

/// Changes closer together than this are taken together: a rollout is dozens of them.
const GATHER: Duration = Duration::from_millis(5);

/// Namespace and name.
pub type ObjectName = (String, String);

/// Services and EndpointSlices of one moment. Empty until both have been read once.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    pub services: BTreeMap<ObjectName, Arc<Service>>,
    /// By the Service they belong to, then by their own name.
    pub slices: BTreeMap<ObjectName, Vec<Arc<EndpointSlice>>>,
}

impl Snapshot {
    pub fn new(
        services: impl IntoIterator<Item = Arc<Service>>,
        slices: impl IntoIterator<Item = Arc<EndpointSlice>>,
    ) -> Self {
        let mut snapshot = Self::default();
        for service in services {
            let meta = &service.metadata;
            let (Some(namespace), Some(name)) = (meta.namespace.clone(), meta.name.clone()) else {
                continue;
            };
            snapshot.services.insert((namespace, name), service);
        }
        for slice in slices {
            let label = slice
                .metadata
                .labels
                .as_ref()
                .and_then(|labels| labels.get("kubernetes.io/service-name"));
            let (Some(namespace), Some(service)) = (slice.metadata.namespace.clone(), label) else {
                continue;
            };
            snapshot
                .slices
                .entry((namespace, service.clone()))
                .or_default()
                .push(slice);
        }
        for slices in snapshot.slices.values_mut() {
            slices.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        }
        snapshot
    }
}

/// Follows the cluster until shutdown. Receivers see nothing before both kinds have been listed.
pub fn follow(
    client: Client,
    shutdown: CancellationToken,
) -> (
    watch::Receiver<Arc<Snapshot>>,
    impl Future<Output = ()> + Send + 'static,
) {
    let (sender, receiver) = watch::channel(Arc::new(Snapshot::default()));
    let work = async move {
        let (services, service_writer) = reflector::store::<Service>();
        let (slices, slice_writer) = reflector::store::<EndpointSlice>();
        let config = watcher::Config::default;
        let service_events = watcher(Api::<Service>::all(client.clone()), config())
            .default_backoff()
            .reflect(service_writer)
            .map(|event| event.map(drop));
        let slice_events = watcher(Api::<EndpointSlice>::all(client), config())
            .default_backoff()
            .reflect(slice_writer)
            .map(|event| event.map(drop));
        // One stream, one task: a snapshot never mixes Services of now with endpoints of some other task's then.
        let mut events = std::pin::pin!(stream::select(service_events, slice_events));
        let mut publish_at: Option<Instant> = None;
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                event = events.next() => match event {
                    Some(Ok(())) => {
                        publish_at.get_or_insert_with(|| Instant::now() + GATHER);
                    }
                    Some(Err(error)) => tracing::debug!(%error, "watching services; trying again"),
                    None => return,
                },
                () = sleep_until(publish_at.unwrap_or_else(Instant::now)), if publish_at.is_some() => {
                    publish_at = None;
                    if is_ready(&services) && is_ready(&slices) {
                        let snapshot = Snapshot::new(services.state(), slices.state());
                        sender.send_if_modified(|current| {
                            let changed = **current != snapshot;
                            if changed {
                                *current = Arc::new(snapshot);
                            }
                            changed
                        });
                    }
                }
            }
        }
    };
    (receiver, work)
}

/// Whether the first list has arrived.
fn is_ready<K>(store: &reflector::Store<K>) -> bool
where
    K: reflector::Lookup + Clone + 'static,
    K::DynamicType: Eq + std::hash::Hash + Clone,
{
    let ready = std::pin::pin!(store.wait_until_ready());
    futures::FutureExt::now_or_never(ready).is_some()
}

#[cfg(test)]
mod tests {
    use kube::api::{DeleteParams, PostParams};
    use serde_json::json;

    use super::*;
    use crate::api::{Cluster, ClusterOptions, Identity};

    /// Hung tests should fail, not hang.
    const PATIENCE: Duration = Duration::from_secs(20);

    async fn seen(snapshots: &mut watch::Receiver<Arc<Snapshot>>, wanted: fn(&Snapshot) -> bool) {
        let found = tokio::time::timeout(PATIENCE, snapshots.wait_for(|snapshot| wanted(snapshot))).await;
        found
            .expect("the snapshot catches up")
            .expect("it is still followed");
    }

    #[tokio::test]
    async fn services_and_their_slices_are_followed() {
        let cluster = Cluster::new(ClusterOptions::default());
        let client = cluster.client(Identity::admin());
        let stop = CancellationToken::new();
        let (mut snapshots, work) = follow(client.clone(), stop.clone());
        let work = tokio::spawn(work);
        let name = || ("default".to_owned(), "db".to_owned());
        let service: Service = serde_json::from_value(json!({
            "metadata": {"name": "db"},
            "spec": {"clusterIP": "None", "ports": [{"port": 5432}]},
        }))
        .expect("a Service");
        let slice: EndpointSlice = serde_json::from_value(json!({
            "metadata": {"name": "db-x", "labels": {"kubernetes.io/service-name": "db"}},
            "addressType": "IPv4", "endpoints": [{"addresses": ["10.42.0.2"]}],
        }))
        .expect("an EndpointSlice");
        let services: Api<Service> = Api::namespaced(client.clone(), "default");
        let slices: Api<EndpointSlice> = Api::namespaced(client, "default");
        services
            .create(&PostParams::default(), &service)
            .await
            .expect("created");
        slices
            .create(&PostParams::default(), &slice)
            .await
            .expect("created");
        seen(&mut snapshots, |snapshot| {
            let db = ("default".to_owned(), "db".to_owned());
            snapshot.services.contains_key(&db)
                && snapshot.slices.get(&db).is_some_and(|found| found.len() == 1)
        })
        .await;
        services
            .delete(&name().1, &DeleteParams::default())
            .await
            .expect("deleted");
        seen(&mut snapshots, |snapshot| snapshot.services.is_empty()).await;
        stop.cancel();
        tokio::time::timeout(PATIENCE, work)
            .await
            .expect("it stops")
            .expect("it does not panic");
    }
}
