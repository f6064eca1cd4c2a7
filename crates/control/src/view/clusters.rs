//! Looks into other clusters on behalf of the Services here that name them.
//!
//! A cluster is watched while some Service looks into it and a Secret of the control plane's own namespace says how:
//! nothing is read that nobody asked for. Changed credentials are used at once. A cluster that doesn't answer keeps its
//! last state, since its pods may well live, and this is said in the log and as a metric; when it answers again it is
//! watched anew, because the old connections may be dead without knowing it.
//!
//! One task decides whom to follow, and one task per cluster owns its watches. What is made of it: see `destination`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use hawser_core::identity::TrustDomain;
use hawser_crd::keys;
use hawser_runtime::Metrics;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use tokio::sync::watch as channel;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::watch::{Feed, Watches};
use super::{Change, Topic, View};
use crate::mirror::{Connect, Heartbeat, Reach};
use crate::observe::{Bell, Limit, Observed, Select};

/// What of another cluster the answers are made of.
const FEEDS: [Feed; 5] = [
    Feed::Services,
    Feed::EndpointSlices,
    Feed::Endpoints,
    Feed::Pods,
    Feed::Servers,
];
/// More clusters than are linked in practice; each one costs a task and its objects.
const CLUSTERS_MAX: usize = 100;
const REACHABLE_METRIC: &str = "remote_cluster_reachable";
/// How long answers may wait for another cluster's first list.
const LISTED_MAX: Duration = Duration::from_secs(3);

/// What a cluster is followed with.
#[derive(Clone)]
pub struct Setup {
    pub client: Client,
    /// Where the credentials are.
    pub namespace: String,
    pub connect: Connect,
    pub metrics: Metrics,
}

/// The clusters that are followed. Dropping it stops that.
pub struct Clusters {
    view: Arc<View>,
    settled: channel::Receiver<BTreeSet<String>>,
    _task: AbortOnDropHandle<()>,
}

impl Clusters {
    /// Starts to follow whichever clusters the view's Services look into.
    pub fn follow(view: &Arc<View>, setup: Setup) -> Self {
        let (sender, settled) = channel::channel(BTreeSet::new());
        let task = tokio::spawn(follow_interest(view.clone(), setup, sender));
        Self {
            view: view.clone(),
            settled,
            _task: AbortOnDropHandle::new(task),
        }
    }

    /// Waits until every cluster that is looked into was listed once, or won't be soon. Whoever answers earlier would
    /// tell proxies that endpoints are gone which they still use.
    pub async fn listed(&self) {
        let wanted: BTreeSet<String> = self.view.read(|state| state.remote_interest().cloned().collect());
        let mut settled = self.settled.clone();
        // A second more than one cluster takes at most.
        let patience = LISTED_MAX + Duration::from_secs(1);
        let _ = timeout(patience, settled.wait_for(|settled| wanted.is_subset(settled))).await;
    }
}

async fn follow_interest(view: Arc<View>, setup: Setup, settled: channel::Sender<BTreeSet<String>>) {
    let settled = Arc::new(settled);
    let mut followed: BTreeMap<String, AbortOnDropHandle<()>> = BTreeMap::new();
    loop {
        let (wanted, changed) = view.observe(|state, topics| {
            topics.insert(Topic::Clusters);
            state.remote_interest().cloned().collect::<BTreeSet<_>>()
        });
        if wanted.len() > CLUSTERS_MAX {
            tracing::error!(
                wanted = wanted.len(),
                max = CLUSTERS_MAX,
                "services look into more clusters than are followed"
            );
        }
        let wanted: BTreeSet<String> = wanted.into_iter().take(CLUSTERS_MAX).collect();
        let lost: Vec<String> = followed
            .keys()
            .filter(|name| !wanted.contains(*name))
            .cloned()
            .collect();
        for name in lost {
            if let Some(task) = followed.remove(&name) {
                // Its last word must not come after the first one of a successor.
                task.abort();
                let _ = task.await;
            }
            view.apply(Change::Cluster(name.clone(), None));
            settled.send_if_modified(|settled| settled.remove(&name));
            setup
                .metrics
                .forget(REACHABLE_METRIC, ("target_cluster_name", &name));
        }
        for name in &wanted {
            if !followed.contains_key(name) {
                let cluster = Cluster {
                    name: name.clone(),
                    view: view.clone(),
                    setup: setup.clone(),
                    settled: settled.clone(),
                };
                followed.insert(name.clone(), AbortOnDropHandle::new(tokio::spawn(cluster.run())));
            }
        }
        setup.metrics.set(
            "cluster_store_size",
            "Other clusters that are looked into",
            &[],
            f64::from(u32::try_from(followed.len()).unwrap_or(u32::MAX)),
        );
        changed.wait().await;
    }
}

/// How to get into a cluster, as a Secret says it.
#[derive(Clone, Debug, PartialEq)]
struct Access {
    kubeconfig: Vec<u8>,
    trust_domain: TrustDomain,
}

impl Access {
    /// `None` when the Secret isn't meant for this, or lacks something.
    fn read(secret: Secret, cluster: &str) -> Option<Self> {
        let labels = secret.metadata.labels.unwrap_or_default();
        let annotations = secret.metadata.annotations.unwrap_or_default();
        let is_meant = secret.type_.as_deref() == Some(keys::KUBECONFIG_SECRET_TYPE)
            && labels.get(keys::SECRET_CLUSTER_NAME).map(String::as_str) == Some(cluster)
            && annotations.contains_key(keys::SECRET_CLUSTER_DOMAIN);
        if !is_meant {
            return None;
        }
        Some(Self {
            kubeconfig: secret.data?.remove(keys::KUBECONFIG_SECRET_KEY)?.0,
            trust_domain: annotations.get(keys::SECRET_TRUST_DOMAIN)?.parse().ok()?,
        })
    }
}

/// The task that follows one cluster.
struct Cluster {
    name: String,
    view: Arc<View>,
    setup: Setup,
    settled: Arc<channel::Sender<BTreeSet<String>>>,
}

struct Session {
    access: Access,
    heartbeat: Heartbeat,
    _watches: Watches,
}

impl Cluster {
    async fn run(self) {
        let (bell, name) = (Bell::default(), self.name.clone());
        let secrets: Api<Secret> = Api::namespaced(self.setup.client.clone(), &self.setup.namespace);
        // By name, which is all that our permissions allow.
        let select = Select::named(&keys::credentials_secret(&name));
        let access = Observed::start(secrets, select, Limit(1), bell.clone(), move |secret| {
            Access::read(secret, &name)
        });
        let mut session: Option<Session> = None;
        let mut is_away = false;
        loop {
            bell.rung().await;
            let Some(found) = access.view() else {
                let why = access.trouble().unwrap_or_default();
                tracing::warn!(
                    cluster = self.name,
                    error = why,
                    "credentials of a cluster can't be read"
                );
                self.settle(false);
                continue;
            };
            let Some(access) = found.into_values().next() else {
                tracing::warn!(
                    cluster = self.name,
                    "services look into a cluster for which there are no credentials"
                );
                session = None;
                self.view.apply(Change::Cluster(self.name.clone(), None));
                self.settle(false);
                continue;
            };
            let reach = session.as_ref().map(|session| session.heartbeat.reach());
            if let Some(Reach::Down(error) | Reach::Refused(error)) = &reach
                && !is_away
            {
                tracing::warn!(
                    cluster = self.name,
                    error,
                    "a cluster does not answer, or refuses us; its last state is kept"
                );
            }
            is_away = matches!(reach, Some(Reach::Down(_) | Reach::Refused(_)));
            let is_current = session.as_ref().is_some_and(|session| session.access == *access)
                && reach != Some(Reach::Recovered);
            if !is_current {
                // The old watches first: two of them would mix what two clusters have. What they saw stays in the view
                // until the new ones have listed everything.
                drop(session.take());
                session = self.connect(&access, &bell).await;
            }
            self.settle(!is_away && session.is_some());
        }
    }

    async fn connect(&self, access: &Access, bell: &Bell) -> Option<Session> {
        let client = match (self.setup.connect)(access.kubeconfig.clone()).await {
            Ok(client) => client,
            Err(error) => {
                tracing::error!(cluster = self.name, %error, "credentials of a cluster can't be used");
                return None;
            }
        };
        tracing::info!(cluster = self.name, "looking into a cluster");
        let known = Change::Cluster(self.name.clone(), Some(access.trust_domain.clone()));
        self.view.apply(known);
        let mut watches = Watches::start_remote(&self.view, &self.name, &client, &FEEDS);
        let heartbeat = Heartbeat::start(self.name.clone(), client, bell.clone());
        if timeout(LISTED_MAX, watches.listed()).await.is_err() {
            tracing::warn!(cluster = self.name, "a cluster does not answer yet");
        }
        Some(Session {
            access: access.clone(),
            heartbeat,
            _watches: watches,
        })
    }

    /// Nobody needs to wait for this cluster any more.
    fn settle(&self, reachable: bool) {
        self.setup.metrics.set(
            REACHABLE_METRIC,
            "Whether a cluster that is looked into answers",
            &[("target_cluster_name", &self.name)],
            if reachable { 1.0 } else { 0.0 },
        );
        self.settled
            .send_if_modified(|settled| settled.insert(self.name.clone()));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_a_whole_secret_of_the_right_kind_and_cluster_gives_access() {
        let whole = json!({
            "metadata": {
                "labels": {keys::SECRET_CLUSTER_NAME: "east"},
                "annotations": {keys::SECRET_TRUST_DOMAIN: "east.example", keys::SECRET_CLUSTER_DOMAIN: "cluster.local"},
            },
            "type": keys::KUBECONFIG_SECRET_TYPE,
            "data": {"kubeconfig": "aGk="},
        });
        let read = |secret: &serde_json::Value| {
            Access::read(serde_json::from_value(secret.clone()).unwrap(), "east")
        };
        let access = read(&whole).unwrap();
        assert_eq!(access.kubeconfig, b"hi");
        assert_eq!(access.trust_domain.to_string(), "east.example");
        for (pointer, wrong) in [
            ("/type", json!("Opaque")),
            ("/data", json!({})),
            ("/metadata/labels", json!({keys::SECRET_CLUSTER_NAME: "north"})),
            (
                "/metadata/annotations",
                json!({keys::SECRET_TRUST_DOMAIN: "east.example"}),
            ),
            (
                "/metadata/annotations",
                json!({keys::SECRET_CLUSTER_DOMAIN: "cluster.local"}),
            ),
        ] {
            let mut secret = whole.clone();
            *secret.pointer_mut(pointer).unwrap() = wrong;
            assert_eq!(read(&secret), None, "{pointer}");
        }
    }
}
