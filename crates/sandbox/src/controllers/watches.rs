//! Watches that keep the snapshot up to date, including kinds that come and go with their definitions.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{ConfigMap, Event as CoreEvent, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::PartialObjectMeta;
use kube::discovery::{Discovery, Scope, verbs};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

use super::snapshot::{Change, Key, Object, Resource, Snapshot, Store, Watch};

/// A change that is folded into the snapshot by the one task that owns it.
pub(crate) enum Update {
    Whole(Box<dyn FnOnce(&mut Snapshot) + Send>),
    Other(Box<(Resource, Change<ObjectMeta>)>),
    /// A watch that planning waits for has delivered its first complete list.
    Synced,
    /// The kinds that the cluster serves now, beside those that are held whole.
    Kinds(BTreeSet<Resource>),
}

/// Updates wait here while a plan is made; a watch that is ahead by more waits for the loop.
const UPDATES_MAX: usize = 1024;

pub(crate) struct Watches {
    client: Client,
    sender: mpsc::Sender<Update>,
    /// Owns the watch tasks: they end with it.
    tasks: JoinSet<()>,
    whole: BTreeSet<Resource>,
    others: BTreeMap<Resource, AbortHandle>,
    unsynced: usize,
    /// Only one discovery runs at a time; a change of definitions meanwhile asks for another.
    discovering: bool,
    rediscover: bool,
}

impl Watches {
    pub(crate) fn start(client: Client) -> (Self, mpsc::Receiver<Update>) {
        let (mut watches, receiver) = Self::new(client);
        watches.watch_all();
        let root_cas = watcher::Config::default().fields("metadata.name=kube-root-ca.crt");
        watches.watch_some::<ConfigMap>(root_cas, |snapshot| &mut snapshot.root_cas);
        watches.discover();
        (watches, receiver)
    }

    /// Services and nothing else.
    pub(crate) fn start_services(client: Client) -> (Self, mpsc::Receiver<Update>) {
        let (mut watches, receiver) = Self::new(client);
        watches.watch::<Service>(|snapshot| &mut snapshot.services);
        (watches, receiver)
    }

    fn new(client: Client) -> (Self, mpsc::Receiver<Update>) {
        let (sender, receiver) = mpsc::channel(UPDATES_MAX);
        let watches = Self {
            client,
            sender,
            tasks: JoinSet::new(),
            whole: BTreeSet::new(),
            others: BTreeMap::new(),
            unsynced: 0,
            discovering: false,
            rediscover: false,
        };
        (watches, receiver)
    }

    pub(crate) fn are_synced(&self) -> bool {
        self.unsynced == 0
    }

    /// All kinds that a namespace may hold, except events.
    pub(crate) fn served(&self) -> Vec<Resource> {
        self.whole.iter().chain(self.others.keys()).cloned().collect()
    }

    pub(crate) fn fold(&mut self, snapshot: &mut Snapshot, update: Update) {
        match update {
            Update::Whole(fold) => fold(snapshot),
            Update::Other(update) => {
                let (resource, change) = *update;
                if !self.others.contains_key(&resource) {
                    return;
                }
                if resource.plural == "customresourcedefinitions" {
                    self.discover();
                }
                snapshot.watched_other(&resource, change);
            }
            Update::Synced => self.unsynced = self.unsynced.saturating_sub(1),
            Update::Kinds(kinds) => {
                self.others.retain(|resource, watch| {
                    let kept = kinds.contains(resource);
                    if !kept {
                        watch.abort();
                        snapshot.others.remove(resource);
                    }
                    kept
                });
                for resource in kinds {
                    if !self.others.contains_key(&resource) {
                        self.watch_other(resource);
                    }
                }
                self.discovering = false;
                if std::mem::take(&mut self.rediscover) {
                    self.discover();
                }
            }
        }
        while self.tasks.try_join_next().is_some() {}
    }

    fn discover(&mut self) {
        if std::mem::replace(&mut self.discovering, true) {
            self.rediscover = true;
            return;
        }
        let (client, sender, whole) = (self.client.clone(), self.sender.clone(), self.whole.clone());
        self.tasks.spawn(async move {
            let mut pause = std::time::Duration::from_millis(50);
            loop {
                match kinds(client.clone(), &whole).await {
                    Ok(kinds) => {
                        let _ = sender.send(Update::Kinds(kinds)).await;
                        return;
                    }
                    Err(error) => tracing::warn!(%error, "discovering kinds"),
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(std::time::Duration::from_secs(10));
            }
        });
    }

    fn watch_other(&mut self, resource: Resource) {
        let (group, version) = resource
            .api_version
            .split_once('/')
            .unwrap_or(("", &resource.api_version));
        let kind = kube::core::ApiResource {
            group: group.to_owned(),
            version: version.to_owned(),
            api_version: resource.api_version.clone().into_owned(),
            kind: resource.kind.clone().into_owned(),
            plural: resource.plural.clone().into_owned(),
        };
        let api: Api<PartialObjectMeta<kube::core::DynamicObject>> =
            Api::all_with(self.client.clone(), &kind);
        let sender = self.sender.clone();
        let watched = resource.clone();
        let task = self.tasks.spawn(async move {
            follow(
                api,
                watcher::Config::default(),
                |change: Change<PartialObjectMeta<_>>| {
                    let change = match change {
                        Change::Applied(object) => Change::Applied(object.metadata),
                        Change::Deleted(key, uid) => Change::Deleted(key, uid),
                        Change::Replaced(all) => {
                            Change::Replaced(all.into_iter().map(|object| object.metadata).collect())
                        }
                    };
                    let update = Update::Other(Box::new((watched.clone(), change)));
                    let sender = sender.clone();
                    async move { sender.send(update).await.is_ok() }
                },
            )
            .await;
        });
        self.others.insert(resource, task);
    }

    fn watch_some<K>(&mut self, config: watcher::Config, store: fn(&mut Snapshot) -> &mut Store<K>)
    where
        K: Object
            + kube::Resource<DynamicType = ()>
            + Clone
            + DeserializeOwned
            + fmt::Debug
            + Send
            + Sync
            + 'static,
    {
        self.unsynced += 1;
        let (api, sender) = (Api::<K>::all(self.client.clone()), self.sender.clone());
        self.tasks.spawn(async move {
            let mut synced = false;
            follow(api, config, |change: Change<K>| {
                let first = matches!(change, Change::Replaced(_)) && !std::mem::replace(&mut synced, true);
                let fold = Update::Whole(Box::new(move |snapshot| snapshot.watched(store, change)));
                let sender = sender.clone();
                async move {
                    sender.send(fold).await.is_ok() && (!first || sender.send(Update::Synced).await.is_ok())
                }
            })
            .await;
        });
    }
}

impl Watch for Watches {
    fn watch<K>(&mut self, store: fn(&mut Snapshot) -> &mut Store<K>)
    where
        K: Object
            + k8s_openapi::Resource<Scope: 'static>
            + kube::Resource<DynamicType = ()>
            + Clone
            + DeserializeOwned
            + fmt::Debug
            + Send
            + Sync
            + 'static,
    {
        self.whole.insert(Resource::of::<K>());
        self.watch_some(watcher::Config::default(), store);
    }
}

/// Turns a watch into changes until nobody wants them any more.
async fn follow<K, F>(api: Api<K>, config: watcher::Config, mut tell: impl FnMut(Change<K>) -> F)
where
    K: kube::Resource + Clone + DeserializeOwned + fmt::Debug + Send + 'static,
    F: Future<Output = bool>,
{
    let mut events = std::pin::pin!(watcher(api, config).default_backoff());
    let mut listed = Vec::new();
    while let Some(event) = events.next().await {
        let change = match event {
            Ok(Event::Init) => {
                listed.clear();
                continue;
            }
            Ok(Event::InitApply(object)) => {
                listed.push(object);
                continue;
            }
            Ok(Event::InitDone) => Change::Replaced(std::mem::take(&mut listed)),
            Ok(Event::Apply(object)) => Change::Applied(object),
            Ok(Event::Delete(object)) => Change::Deleted(
                Key::of(object.meta()),
                object.meta().uid.clone().unwrap_or_default(),
            ),
            Err(error) => {
                tracing::debug!(%error, "a watch is restarted");
                continue;
            }
        };
        if !tell(change).await {
            return;
        }
    }
}

async fn kinds(client: Client, whole: &BTreeSet<Resource>) -> Result<BTreeSet<Resource>, kube::Error> {
    let events = Resource::of::<CoreEvent>();
    let mut kinds = BTreeSet::new();
    for group in Discovery::new(client).run_aggregated().await?.groups() {
        for (kind, capabilities) in group.recommended_resources() {
            let resource = Resource {
                api_version: kind.api_version.into(),
                kind: kind.kind.into(),
                plural: kind.plural.into(),
                namespaced: capabilities.scope == Scope::Namespaced,
            };
            let needed = [verbs::LIST, verbs::WATCH, verbs::DELETE];
            let able = needed.iter().all(|verb| capabilities.supports_operation(verb));
            // Events own nothing, are owned by nothing, come in masses and end by themselves.
            if able && resource.plural != events.plural && !whole.contains(&resource) {
                kinds.insert(resource);
            }
        }
    }
    Ok(kinds)
}
