//! Keeps what the API server tells: pods, and the objects of [`crate::objects`].
//!
//! A watch that breaks is begun again; until then what was known last stands. One that is forbidden is noted as such and
//! tried again, so that a permission that is given later is enough; the others go on.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod as Object;
use kube::runtime::WatchStreamExt;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use tokio::sync::watch;

use crate::api;
use crate::objects::{Anchors, Objects, Reduced, ServiceFacts, insert, key};
use crate::pods::{Pod, PodName, Pods};

/// Pods beyond these are not looked at; a larger cluster wants Prometheus.
const PODS_MAX: usize = 20_000;
/// Between attempts. Short, because what is missing may be installed a moment later; and cheap to answer with no.
const PATIENCE: [Duration; 3] = [
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
];

/// Where to look.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    /// All if empty.
    pub(crate) namespaces: Vec<String>,
    /// Where the trust anchors are.
    pub(crate) linkerd_namespace: String,
}

impl Places {
    fn each(&self) -> Vec<Option<&str>> {
        match &*self.namespaces {
            [] => vec![None],
            some => some.iter().map(|namespace| Some(&**namespace)).collect(),
        }
    }
}

/// Follows everything, for ever.
pub(crate) async fn everything(
    client: Client,
    places: Places,
    list: watch::Sender<Option<Pods>>,
    objects: watch::Sender<Objects>,
) {
    let mut watches: Vec<BoxFuture<'_, ()>> = Vec::new();
    for namespace in places.each() {
        watches.push(Box::pin(pods(&client, namespace, &list, &objects)));
        watches.push(Box::pin(follow::<ServiceFacts>(
            &client, namespace, None, &objects,
        )));
        watches.push(Box::pin(follow::<api::Link>(&client, namespace, None, &objects)));
        watches.push(Box::pin(follow::<api::Split>(&client, namespace, None, &objects)));
        watches.push(Box::pin(follow::<api::Event>(&client, namespace, None, &objects)));
    }
    let anchors = Some("linkerd-identity-trust-roots");
    let mesh = Some(&*places.linkerd_namespace);
    watches.push(Box::pin(follow::<Anchors>(&client, mesh, anchors, &objects)));
    futures::future::join_all(watches).await;
}

fn api<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

async fn follow<R: Reduced>(
    client: &Client,
    namespace: Option<&str>,
    name: Option<&str>,
    objects: &watch::Sender<Objects>,
) {
    let mut config = watcher::Config::default();
    if let Some(name) = name {
        config = config.fields(&format!("metadata.name={name}"));
    }
    let events = watcher(api::<R::Object>(client, namespace), config);
    let mut events = events.backoff(Patience::default()).boxed();
    let mut listed = Vec::new();
    let denied = (R::RESOURCE, namespace.unwrap_or_default().to_owned());
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => listed.clear(),
            Ok(Event::InitApply(object)) => listed.push(object),
            Ok(Event::InitDone) => objects.send_modify(|objects| {
                objects.denied.remove(&denied);
                let present: std::collections::BTreeSet<_> = listed.iter().map(key).collect();
                R::kept(objects).retain(|key, _| {
                    present.contains(key) || namespace.is_some_and(|namespace| key.0 != namespace)
                });
                for object in listed.drain(..) {
                    insert::<R>(objects, &object, Timestamp::now());
                }
            }),
            Ok(Event::Apply(object)) => {
                objects.send_modify(|objects| insert::<R>(objects, &object, Timestamp::now()));
            }
            Ok(Event::Delete(object)) => {
                objects.send_modify(|objects| _ = R::kept(objects).remove(&key(&object)));
            }
            Err(error) => trouble(objects, &denied, &error),
        }
    }
}

/// Follows pods.
async fn pods(
    client: &Client,
    namespace: Option<&str>,
    list: &watch::Sender<Option<Pods>>,
    objects: &watch::Sender<Objects>,
) {
    let events = watcher(api::<Object>(client, namespace), watcher::Config::default());
    let mut events = events.backoff(Patience::default()).boxed();
    let mut next = Pods::new();
    let denied = ("pods", namespace.unwrap_or_default().to_owned());
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => next.clear(),
            Ok(Event::InitApply(object)) => put(&mut next, &object),
            Ok(Event::InitDone) => {
                objects.send_if_modified(|objects| objects.denied.remove(&denied).is_some());
                let mut next = std::mem::take(&mut next);
                list.send_modify(|pods| {
                    let others = pods.take().unwrap_or_default().into_iter();
                    let elsewhere =
                        |name: &PodName| namespace.is_some_and(|namespace| name.namespace != namespace);
                    next.extend(others.filter(|(name, _)| elsewhere(name)));
                    *pods = Some(next);
                });
            }
            Ok(Event::Apply(object)) => list.send_modify(|pods| {
                if let Some(pods) = pods {
                    put(pods, &object);
                }
            }),
            Ok(Event::Delete(object)) => list.send_modify(|pods| {
                if let Some(pods) = pods {
                    pods.remove(Pod::of(&object).name());
                }
            }),
            Err(error) => {
                trouble(objects, &denied, &error);
                if objects.borrow().denied.contains_key(&denied) {
                    // What may not be seen is not waited for.
                    list.send_if_modified(|pods| pods.is_none().then(|| *pods = Some(Pods::new())).is_some());
                }
            }
        }
    }
}

fn put(pods: &mut Pods, object: &Object) {
    let pod = Pod::of(object);
    if pods.len() < PODS_MAX || pods.contains_key(pod.name()) {
        pods.insert(pod.name().clone(), Arc::new(pod));
    } else {
        tracing::error!(pod = %pod.name(), "more than {PODS_MAX} pods: this one is left out");
    }
}

/// Notes what may not be seen. A kind that the cluster doesn't know is no trouble.
fn trouble(objects: &watch::Sender<Objects>, what: &(&'static str, String), error: &watcher::Error) {
    use kube::Error::Api;
    let status = match error {
        watcher::Error::InitialListFailed(Api(status)) | watcher::Error::WatchStartFailed(Api(status)) => {
            Some(&**status)
        }
        _ => None,
    };
    let (resource, namespace) = what;
    match status {
        Some(status) if status.code == 404 => {}
        Some(status) if status.code == 403 => {
            let is_news = objects.send_if_modified(|objects| {
                let before = objects.denied.insert(what.clone(), status.message.clone());
                before.as_ref() != Some(&status.message)
            });
            if is_news {
                tracing::warn!(resource, namespace, why = status.message, "this may not be seen");
            }
        }
        _ => tracing::warn!(resource, namespace, %error, "the watch broke; trying again"),
    }
}

/// [`PATIENCE`], the last of it for ever.
#[derive(Default)]
struct Patience(usize);

impl Iterator for Patience {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let wait = PATIENCE.get(self.0).or(PATIENCE.last()).copied();
        self.0 += 1;
        wait
    }
}

impl Backoff for Patience {
    fn reset(&mut self) {
        self.0 = 0;
    }
}
