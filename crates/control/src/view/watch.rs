//! Feeds the view from watches on the Kubernetes API.
//!
//! One task per kind. A watch that breaks is taken up again for ever; objects that vanished meanwhile are found by
//! comparing what is known with the new list. Kinds whose definitions may be missing hold up nobody.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use kube::api::ApiResource;
use kube::core::{DynamicObject, GroupVersionKind};
use kube::runtime::watcher;
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::objects::{
    AuthorizationPolicy, Key, Pod, Server, ServerAuthorization, Service, Slice, Split, spec,
};
use super::routes::{GATEWAY_GROUP, Route, RouteId, RouteKind};
use super::{Change, View};

/// After a failure the next attempt waits this long, doubling up to the maximum.
const DELAY_MIN: Duration = Duration::from_millis(200);
const DELAY_MAX: Duration = Duration::from_secs(10);
/// A kind that isn't defined yet is looked for at this pace, so that a new definition takes effect in about a second.
const DELAY_UNDEFINED: Duration = Duration::from_secs(1);

/// A watch of another cluster that outlives this is renewed, so that a dead connection is noticed soon after.
const REMOTE_LIFETIME_SECONDS: u32 = 40;
/// What another cluster may put into our memory, of each kind.
const REMOTE_OBJECTS_MAX: usize = 50_000;

/// What to watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Feed {
    Services,
    EndpointSlices,
    Endpoints,
    Pods,
    TrafficSplits,
    Servers,
    ServerAuthorizations,
    AuthorizationPolicies,
    MeshTlsAuthentications,
    NetworkAuthentications,
    /// Of one kind and API group.
    Routes(RouteKind, &'static str),
}

impl Feed {
    /// The change that takes an object away.
    pub(super) fn gone(self, key: Key) -> Change {
        match self {
            Self::Services => Change::Service(key, None),
            Self::EndpointSlices => Change::Slice(key, None),
            Self::Endpoints => Change::Endpoints(key, None),
            Self::Pods => Change::Pod(key, None),
            Self::TrafficSplits => Change::Split(key, None),
            Self::Servers => Change::Server(key, None),
            Self::ServerAuthorizations => Change::ServerAuthorization(key, None),
            Self::AuthorizationPolicies => Change::AuthorizationPolicy(key, None),
            Self::MeshTlsAuthentications => Change::MeshTls(key, None),
            Self::NetworkAuthentications => Change::Network(key, None),
            Self::Routes(kind, group) => Change::Route(RouteId { kind, group, key }, None),
        }
    }
}

/// Where a watch writes: into the view, or into another cluster's part of it.
#[derive(Clone)]
struct Sink {
    view: Arc<View>,
    cluster: Option<String>,
}

impl Sink {
    fn apply(&self, change: Change) {
        self.view.apply(match &self.cluster {
            None => change,
            Some(name) => Change::Remote(name.clone(), Box::new(change)),
        });
    }

    /// Nobody bounds what our own cluster has: without all of it our answers would be wrong.
    fn objects_max(&self) -> usize {
        self.cluster.as_ref().map_or(usize::MAX, |_| REMOTE_OBJECTS_MAX)
    }

    fn config(&self) -> watcher::Config {
        watcher::Config {
            timeout: self.cluster.as_ref().map(|_| REMOTE_LIFETIME_SECONDS),
            ..watcher::Config::default()
        }
    }
}

/// The running watches. Dropping it stops them.
pub struct Watches {
    tasks: JoinSet<()>,
    first_lists: Vec<oneshot::Receiver<()>>,
}

impl Watches {
    /// Starts feeding the view.
    pub fn start(view: &Arc<View>, client: &Client, feeds: &[Feed]) -> Self {
        Self::into(view, None, client, feeds)
    }

    /// Starts feeding another cluster's part of the view.
    pub(super) fn start_remote(view: &Arc<View>, cluster: &str, client: &Client, feeds: &[Feed]) -> Self {
        Self::into(view, Some(cluster.to_owned()), client, feeds)
    }

    fn into(view: &Arc<View>, cluster: Option<String>, client: &Client, feeds: &[Feed]) -> Self {
        let mut watches = Self {
            tasks: JoinSet::new(),
            first_lists: Vec::new(),
        };
        let sink = Sink {
            view: view.clone(),
            cluster,
        };
        for feed in feeds {
            watches.follow(*feed, sink.clone(), client.clone());
        }
        watches
    }

    /// Resolves when every kind was listed once (or turned out not to be defined).
    pub async fn listed(&mut self) {
        for first in self.first_lists.drain(..) {
            // The sender lives as long as its task, and tasks never end by themselves.
            let _ = first.await;
        }
    }

    fn follow(&mut self, feed: Feed, sink: Sink, client: Client) {
        let (listed, first) = oneshot::channel();
        self.first_lists.push(first);
        let dynamic = |group: &str, version: &str, kind: &str, plural: &str| {
            let kind = GroupVersionKind::gvk(group, version, kind);
            Api::<DynamicObject>::all_with(client.clone(), &ApiResource::from_gvk_with_plural(&kind, plural))
        };
        let policy =
            |version: &str, kind: &str, plural: &str| dynamic("policy.linkerd.io", version, kind, plural);
        match feed {
            Feed::Services => self.tasks.spawn(follow::<core::Service>(
                Api::all(client),
                (feed, sink),
                listed,
                |key, object| Change::Service(key, object.map(|object| Service::parse(&object))),
            )),
            Feed::EndpointSlices => self.tasks.spawn(follow::<discovery::EndpointSlice>(
                Api::all(client),
                (feed, sink),
                listed,
                |key, object| Change::Slice(key, object.map(|object| Slice::of_slice(&object))),
            )),
            Feed::Endpoints => self.tasks.spawn(follow::<core::Endpoints>(
                Api::all(client),
                (feed, sink),
                listed,
                |key, object| Change::Endpoints(key, object.map(|object| Slice::of_endpoints(&object))),
            )),
            Feed::Pods => self.tasks.spawn(follow::<core::Pod>(
                Api::all(client),
                (feed, sink),
                listed,
                |key, object| Change::Pod(key, object.map(|object| Pod::parse(&object))),
            )),
            Feed::TrafficSplits => {
                let api = dynamic("split.smi-spec.io", "v1alpha2", "TrafficSplit", "trafficsplits");
                self.tasks.spawn(follow(
                    api,
                    (feed, sink),
                    listed,
                    |key, object: Option<DynamicObject>| {
                        Change::Split(key, object.map(|object| Split::parse(&object)))
                    },
                ))
            }
            Feed::Servers => {
                let api = policy("v1beta3", "Server", "servers");
                self.tasks.spawn(follow(
                    api,
                    (feed, sink),
                    listed,
                    |key, object: Option<DynamicObject>| {
                        Change::Server(key, object.map(|object| Server::parse(&object)))
                    },
                ))
            }
            Feed::ServerAuthorizations => {
                let api = policy("v1beta1", "ServerAuthorization", "serverauthorizations");
                self.tasks.spawn(follow(
                    api,
                    (feed, sink),
                    listed,
                    |key, object: Option<DynamicObject>| {
                        Change::ServerAuthorization(
                            key,
                            object.map(|object| ServerAuthorization::parse(&object)),
                        )
                    },
                ))
            }
            Feed::AuthorizationPolicies => {
                let api = policy("v1alpha1", "AuthorizationPolicy", "authorizationpolicies");
                self.tasks.spawn(follow(
                    api,
                    (feed, sink),
                    listed,
                    |key, object: Option<DynamicObject>| {
                        Change::AuthorizationPolicy(
                            key,
                            object.and_then(|object| AuthorizationPolicy::parse(&object)),
                        )
                    },
                ))
            }
            Feed::MeshTlsAuthentications => {
                let api = policy("v1alpha1", "MeshTLSAuthentication", "meshtlsauthentications");
                self.tasks.spawn(follow(
                    api,
                    (feed, sink),
                    listed,
                    |key, object: Option<DynamicObject>| {
                        Change::MeshTls(key, object.and_then(|object| spec(&object)))
                    },
                ))
            }
            Feed::NetworkAuthentications => {
                let api = policy("v1alpha1", "NetworkAuthentication", "networkauthentications");
                self.tasks.spawn(follow(
                    api,
                    (feed, sink),
                    listed,
                    |key, object: Option<DynamicObject>| {
                        Change::Network(key, object.and_then(|object| spec(&object)))
                    },
                ))
            }
            Feed::Routes(kind, group) => {
                let (version, plural) = match (kind, group) {
                    (RouteKind::Http, GATEWAY_GROUP) => ("v1", "httproutes"),
                    (RouteKind::Http, _) => ("v1beta3", "httproutes"),
                    (RouteKind::Grpc, _) => ("v1", "grpcroutes"),
                };
                let api = dynamic(group, version, &kind.to_string(), plural);
                self.tasks.spawn(follow(
                    api,
                    (feed, sink),
                    listed,
                    move |key, object: Option<DynamicObject>| {
                        let route = object.and_then(|object| Route::parse(kind, group, &object));
                        Change::Route(RouteId { kind, group, key }, route)
                    },
                ))
            }
        };
    }
}

async fn follow<K>(
    api: Api<K>,
    (feed, sink): (Feed, Sink),
    listed: oneshot::Sender<()>,
    change: impl Fn(Key, Option<K>) -> Change,
) where
    K: Resource + ResourceExt + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut listed = Some(listed);
    let mut known: BTreeSet<Key> = BTreeSet::new();
    let mut listing: BTreeSet<Key> = BTreeSet::new();
    let mut delay = DELAY_MIN;
    let kind = api.resource_url().to_owned();
    let mut events = pin!(watcher(api, sink.config()));
    while let Some(event) = events.next().await {
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                if is_undefined(&error) {
                    tracing::debug!(%kind, "not defined in this cluster");
                    announce(&mut listed);
                    delay = DELAY_UNDEFINED;
                } else {
                    tracing::warn!(%kind, error = %chain(&error), "watch failed");
                    delay = (delay * 2).min(DELAY_MAX);
                }
                tokio::time::sleep(delay).await;
                continue;
            }
        };
        delay = DELAY_MIN;
        match event {
            watcher::Event::Init => listing.clear(),
            watcher::Event::InitApply(object) => {
                let key = Key::of(&object);
                if has_room(&listing, &key, &sink, &kind) {
                    listing.insert(key.clone());
                    sink.apply(change(key, Some(object)));
                }
            }
            watcher::Event::InitDone => {
                known = std::mem::take(&mut listing);
                sink.apply(Change::Only(feed, known.clone()));
                announce(&mut listed);
            }
            watcher::Event::Apply(object) => {
                let key = Key::of(&object);
                if has_room(&known, &key, &sink, &kind) {
                    known.insert(key.clone());
                    sink.apply(change(key, Some(object)));
                }
            }
            watcher::Event::Delete(object) => {
                let key = Key::of(&object);
                known.remove(&key);
                sink.apply(change(key, None));
            }
        }
    }
}

/// Objects beyond the bound are left out, and said to be.
fn has_room(known: &BTreeSet<Key>, key: &Key, sink: &Sink, kind: &str) -> bool {
    let (count, max) = (known.len(), sink.objects_max());
    let has_room = count < max || known.contains(key);
    if !has_room {
        tracing::error!(kind, cluster = sink.cluster, object = %key, max, "another cluster has more objects than are looked at");
    }
    has_room
}

/// Whoever waited for the first list may have given up; that is no matter.
fn announce(listed: &mut Option<oneshot::Sender<()>>) {
    if let Some(listed) = listed.take() {
        let _ = listed.send(());
    }
}

fn is_undefined(error: &watcher::Error) -> bool {
    let (watcher::Error::InitialListFailed(kube::Error::Api(status))
    | watcher::Error::WatchStartFailed(kube::Error::Api(status))) = error
    else {
        return false;
    };
    status.code == 404
}

/// The error with its causes, for one log line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
