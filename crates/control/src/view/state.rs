//! The objects of a cluster with the indexes that questions need, and which topics a change touches.
//!
//! Pure: no watch, no lock, no clock. An equal object changes nothing and wakes nobody. The objects of another cluster
//! are a state within the state: the same indexes, under topics of their own.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use hawser_core::identity::TrustDomain;

use super::objects::{
    AuthorizationPolicy, Key, MeshTlsAuthentication, NetworkAuthentication, Pod, Server, ServerAuthorization,
    Service, Slice, Split,
};
use super::routes::{Parent, Route, RouteId, RouteKind};
use super::watch::Feed;
use super::{Topic, Topics};

/// One object as a watch saw it; `None` when it is gone.
pub enum Change {
    Service(Key, Option<Service>),
    Slice(Key, Option<Slice>),
    Endpoints(Key, Option<Vec<Slice>>),
    Pod(Key, Option<Pod>),
    Split(Key, Option<Split>),
    Server(Key, Option<Server>),
    ServerAuthorization(Key, Option<ServerAuthorization>),
    AuthorizationPolicy(Key, Option<AuthorizationPolicy>),
    MeshTls(Key, Option<MeshTlsAuthentication>),
    Network(Key, Option<NetworkAuthentication>),
    Route(RouteId, Option<Route>),
    /// After a complete list: nothing else of this kind exists.
    Only(Feed, BTreeSet<Key>),
    /// Another cluster became known, or is forgotten with all that it has.
    Cluster(String, Option<TrustDomain>),
    /// Something happened in another cluster; of no effect while that is not known.
    Remote(String, Box<Self>),
}

/// Another cluster, as far as its API server let us see it.
pub struct RemoteCluster {
    /// Suffix of its identities.
    pub trust_domain: TrustDomain,
    pub state: State,
}

#[derive(Default)]
pub struct State {
    services: BTreeMap<Key, Service>,
    slices: BTreeMap<Key, Slice>,
    endpoints: BTreeMap<Key, Vec<Slice>>,
    pods: BTreeMap<Key, Pod>,
    splits: BTreeMap<Key, Split>,
    policies: BTreeMap<String, Policies>,
    routes: BTreeMap<RouteId, Route>,
    routes_of: HashMap<Parent, BTreeSet<RouteId>>,
    /// Slices by Service.
    slices_of: HashMap<Key, BTreeSet<Key>>,
    /// Services by a pod that they list.
    listed_by: HashMap<Key, BTreeSet<Key>>,
    service_ips: HashMap<IpAddr, BTreeSet<Key>>,
    pod_ips: HashMap<IpAddr, BTreeSet<Key>>,
    remotes: BTreeMap<String, RemoteCluster>,
    /// How many Services look into each other cluster.
    interest: BTreeMap<String, usize>,
}

/// The policy objects of one namespace, by name.
#[derive(Default)]
pub struct Policies {
    pub servers: BTreeMap<String, Server>,
    pub server_authorizations: BTreeMap<String, ServerAuthorization>,
    pub authorization_policies: BTreeMap<String, AuthorizationPolicy>,
    pub mesh_tls: BTreeMap<String, MeshTlsAuthentication>,
    pub networks: BTreeMap<String, NetworkAuthentication>,
}

impl State {
    pub fn service(&self, key: &Key) -> Option<&Service> {
        self.services.get(key)
    }

    pub fn pod(&self, key: &Key) -> Option<&Pod> {
        self.pods.get(key)
    }

    pub fn policies(&self, namespace: &str) -> Option<&Policies> {
        self.policies.get(namespace)
    }

    /// The Service that owns a cluster IP.
    pub fn service_at(&self, ip: IpAddr) -> Option<&Service> {
        self.service_ips
            .get(&ip)?
            .iter()
            .next()
            .and_then(|key| self.services.get(key))
    }

    /// The pod that has an address now. Finished pods and those on their node's network don't count.
    pub fn pod_at(&self, ip: IpAddr) -> Option<&Pod> {
        self.pod_ips
            .get(&ip)?
            .iter()
            .next()
            .and_then(|key| self.pods.get(key))
    }

    /// All slices of a Service; its Endpoints object when it has none.
    pub fn slices(&self, service: &Key) -> Vec<&Slice> {
        match self.slices_of.get(service).filter(|slices| !slices.is_empty()) {
            Some(slices) => slices.iter().filter_map(|key| self.slices.get(key)).collect(),
            None => self.endpoints.get(service).into_iter().flatten().collect(),
        }
    }

    /// The Endpoints object of a Service, for annotations that a slice may lack.
    pub fn endpoints(&self, service: &Key) -> &[Slice] {
        self.endpoints.get(service).map(Vec::as_slice).unwrap_or_default()
    }

    /// The split that governs a Service: the latest, if several claim it.
    pub fn split(&self, service: &Key) -> Option<&Split> {
        let from = Key::new(&service.namespace, "");
        self.splits
            .range(from..)
            .take_while(|(key, _)| key.namespace == service.namespace)
            .filter(|(_, split)| split.service == service.name)
            .max_by_key(|(key, split)| (&split.created, &key.name))
            .map(|(_, split)| split)
    }

    /// The routes of one kind for a port of a parent, the oldest first.
    pub fn routes(&self, kind: RouteKind, parent: &Parent, port: u16) -> Vec<&Route> {
        let ids = self.routes_of.get(parent).into_iter().flatten();
        let mut routes: Vec<&Route> = ids
            .filter_map(|id| self.routes.get(id))
            .filter(|route| route.id.kind == kind && route.is_for(parent, port))
            .collect();
        routes.sort_by_key(|route| (&route.created, &route.id.key));
        routes
    }

    pub fn remote(&self, cluster: &str) -> Option<&RemoteCluster> {
        self.remotes.get(cluster)
    }

    pub fn remotes(&self) -> impl Iterator<Item = (&String, &RemoteCluster)> {
        self.remotes.iter()
    }

    /// The other clusters that Services look into.
    pub fn remote_interest(&self) -> impl Iterator<Item = &String> {
        self.interest.keys()
    }

    pub fn apply(&mut self, change: Change, topics: &mut Topics) {
        match change {
            Change::Route(id, new) => self.apply_route(id, new, topics),
            Change::Only(feed, listed) => {
                for gone in self.keys(feed).difference(&listed) {
                    self.apply(feed.gone(gone.clone()), topics);
                }
            }
            Change::Cluster(name, trust_domain) => self.apply_cluster(name, trust_domain, topics),
            Change::Remote(name, change) => {
                if let Some(remote) = self.remotes.get_mut(&name) {
                    let mut there = Topics::new();
                    remote.state.apply(*change, &mut there);
                    topics.extend(
                        there
                            .into_iter()
                            .map(|topic| Topic::Remote(name.clone(), Box::new(topic))),
                    );
                }
            }
            Change::Service(key, new) => self.apply_service(key, new, topics),
            Change::Slice(key, new) => self.apply_slice(key, new, topics),
            Change::Endpoints(key, new) => self.apply_endpoints(key, new, topics),
            Change::Pod(key, new) => self.apply_pod(key, new, topics),
            Change::Split(key, new) => {
                let namespace = key.namespace.clone();
                for split in replace(&mut self.splits, key, new, Clone::clone)
                    .into_iter()
                    .flatten()
                    .flatten()
                {
                    topics.insert(Topic::Service(Key::new(&namespace, split.service)));
                }
            }
            Change::Server(key, new) => self.apply_policy(key, topics, |policies, name| {
                changed(&mut policies.servers, name, new)
            }),
            Change::ServerAuthorization(key, new) => self.apply_policy(key, topics, |policies, name| {
                changed(&mut policies.server_authorizations, name, new)
            }),
            Change::AuthorizationPolicy(key, new) => self.apply_policy(key, topics, |policies, name| {
                changed(&mut policies.authorization_policies, name, new)
            }),
            Change::MeshTls(key, new) => self.apply_policy(key, topics, |policies, name| {
                changed(&mut policies.mesh_tls, name, new)
            }),
            Change::Network(key, new) => self.apply_policy(key, topics, |policies, name| {
                changed(&mut policies.networks, name, new)
            }),
        }
    }

    fn apply_route(&mut self, id: RouteId, new: Option<Route>, topics: &mut Topics) {
        let parents = |route: &Route| -> Vec<Parent> {
            route.parents.iter().map(|(parent, _)| parent.clone()).collect()
        };
        let Some([old, new]) = replace(&mut self.routes, id.clone(), new, parents)
            .map(|[old, new]| [old.unwrap_or_default(), new.unwrap_or_default()])
        else {
            return;
        };
        for parent in &old {
            if let Some(ids) = self.routes_of.get_mut(parent) {
                ids.remove(&id);
                if ids.is_empty() {
                    self.routes_of.remove(parent);
                }
            }
        }
        for parent in &new {
            self.routes_of
                .entry(parent.clone())
                .or_default()
                .insert(id.clone());
        }
        topics.extend(old.into_iter().chain(new).map(|parent| match parent {
            Parent::Service(key) => Topic::Service(key),
            Parent::Server(key) => Topic::Policy(key.namespace),
        }));
    }

    fn keys(&self, feed: Feed) -> BTreeSet<Key> {
        fn named<'a, V: 'a>(
            policies: &'a BTreeMap<String, Policies>,
            of: impl Fn(&'a Policies) -> &'a BTreeMap<String, V>,
        ) -> BTreeSet<Key> {
            let of = &of;
            let keys = policies
                .iter()
                .flat_map(|(namespace, all)| of(all).keys().map(move |name| Key::new(namespace, name)));
            keys.collect()
        }
        match feed {
            Feed::Services => self.services.keys().cloned().collect(),
            Feed::EndpointSlices => self.slices.keys().cloned().collect(),
            Feed::Endpoints => self.endpoints.keys().cloned().collect(),
            Feed::Pods => self.pods.keys().cloned().collect(),
            Feed::TrafficSplits => self.splits.keys().cloned().collect(),
            Feed::Servers => named(&self.policies, |policies| &policies.servers),
            Feed::ServerAuthorizations => named(&self.policies, |policies| &policies.server_authorizations),
            Feed::AuthorizationPolicies => named(&self.policies, |policies| &policies.authorization_policies),
            Feed::MeshTlsAuthentications => named(&self.policies, |policies| &policies.mesh_tls),
            Feed::NetworkAuthentications => named(&self.policies, |policies| &policies.networks),
            Feed::Routes(kind, group) => self
                .routes
                .keys()
                .filter(|id| id.kind == kind && id.group == group)
                .map(|id| id.key.clone())
                .collect(),
        }
    }

    /// Whoever looks at another cluster also listens for its coming and going, so its objects' topics needn't ring.
    fn apply_cluster(&mut self, name: String, trust_domain: Option<TrustDomain>, topics: &mut Topics) {
        match (self.remotes.get_mut(&name), trust_domain) {
            (None, None) => return,
            (Some(remote), Some(trust_domain)) if remote.trust_domain == trust_domain => return,
            (Some(remote), Some(trust_domain)) => remote.trust_domain = trust_domain,
            (Some(_), None) => drop(self.remotes.remove(&name)),
            (None, Some(trust_domain)) => {
                let state = Self::default();
                self.remotes
                    .insert(name.clone(), RemoteCluster { trust_domain, state });
            }
        }
        topics.insert(Topic::Clusters);
        topics.insert(Topic::Cluster(name));
    }

    fn apply_service(&mut self, key: Key, new: Option<Service>, topics: &mut Topics) {
        self.apply_interest(&key, new.as_ref(), topics);
        let Some([old, new]) = replace(&mut self.services, key.clone(), new, |service| {
            service.cluster_ips.clone()
        })
        .map(|[old, new]| [old.unwrap_or_default(), new.unwrap_or_default()]) else {
            return;
        };
        reindex(&mut self.service_ips, &key, &old, &new);
        topics.extend(old.into_iter().chain(new).map(Topic::Ip));
        topics.insert(Topic::Service(key));
    }

    fn apply_interest(&mut self, key: &Key, new: Option<&Service>, topics: &mut Topics) {
        let clusters = |service: Option<&Service>| -> BTreeSet<String> {
            service.map(Service::remote_clusters).unwrap_or_default()
        };
        let (old, new) = (clusters(self.services.get(key)), clusters(new));
        for gained in new.difference(&old) {
            *self.interest.entry(gained.clone()).or_default() += 1;
        }
        for lost in old.difference(&new) {
            if let Some(count) = self.interest.get_mut(lost) {
                *count -= 1;
            }
        }
        self.interest.retain(|_, count| *count > 0);
        if old != new {
            topics.insert(Topic::Clusters);
        }
    }

    fn apply_slice(&mut self, key: Key, new: Option<Slice>, topics: &mut Topics) {
        let namespace = key.namespace.clone();
        let Some(both) = replace(&mut self.slices, key.clone(), new, Clone::clone) else {
            return;
        };
        let services = both.each_ref().map(|slice| {
            slice
                .iter()
                .map(|slice| Key::new(&namespace, &slice.service))
                .collect::<Vec<_>>()
        });
        reindex(&mut self.slices_of, &key, &services[0], &services[1]);
        let touched: BTreeSet<Key> = services.into_iter().flatten().collect();
        self.relist(&touched, both.iter().flatten());
        topics.extend(touched.into_iter().map(Topic::Service));
    }

    fn apply_endpoints(&mut self, key: Key, new: Option<Vec<Slice>>, topics: &mut Topics) {
        let Some(both) = replace(&mut self.endpoints, key.clone(), new, Clone::clone) else {
            return;
        };
        let touched = BTreeSet::from([key]);
        self.relist(&touched, both.iter().flatten().flatten());
        topics.extend(touched.into_iter().map(Topic::Service));
    }

    /// Notes anew which pods these Services list. `slices` are those that changed: only their pods can be affected.
    fn relist<'a>(&mut self, services: &BTreeSet<Key>, slices: impl Iterator<Item = &'a Slice>) {
        let mentioned: BTreeSet<&Key> = slices
            .flat_map(|slice| &slice.endpoints)
            .filter_map(|e| e.pod.as_ref())
            .collect();
        for service in services {
            let listed: BTreeSet<Key> = self
                .slices(service)
                .into_iter()
                .chain(self.endpoints(service))
                .flat_map(|slice| &slice.endpoints)
                .filter_map(|endpoint| endpoint.pod.clone())
                .collect();
            for pod in &mentioned {
                if listed.contains(*pod) {
                    self.listed_by
                        .entry((*pod).clone())
                        .or_default()
                        .insert(service.clone());
                } else if let Some(services) = self.listed_by.get_mut(*pod) {
                    services.remove(service);
                    if services.is_empty() {
                        self.listed_by.remove(*pod);
                    }
                }
            }
        }
    }

    fn apply_pod(&mut self, key: Key, new: Option<Pod>, topics: &mut Topics) {
        let addresses = |pod: &Pod| {
            if pod.finished || pod.host_network {
                vec![]
            } else {
                pod.ips.clone()
            }
        };
        let Some([old, new]) = replace(&mut self.pods, key.clone(), new, addresses)
            .map(|[old, new]| [old.unwrap_or_default(), new.unwrap_or_default()])
        else {
            return;
        };
        reindex(&mut self.pod_ips, &key, &old, &new);
        topics.extend(old.into_iter().chain(new).map(Topic::Ip));
        topics.extend(
            self.listed_by
                .get(&key)
                .into_iter()
                .flatten()
                .cloned()
                .map(Topic::Service),
        );
        topics.insert(Topic::Pod(key));
    }

    fn apply_policy(
        &mut self,
        key: Key,
        topics: &mut Topics,
        apply: impl FnOnce(&mut Policies, String) -> bool,
    ) {
        if apply(self.policies.entry(key.namespace.clone()).or_default(), key.name) {
            topics.insert(Topic::Policy(key.namespace));
        }
    }
}

/// Puts a new value in place and hands out what `part` of the old and the new one; `None` when nothing changed.
fn replace<K: Ord, V: PartialEq, P>(
    map: &mut BTreeMap<K, V>,
    key: K,
    new: Option<V>,
    part: impl Fn(&V) -> P,
) -> Option<[Option<P>; 2]> {
    if map.get(&key) == new.as_ref() {
        return None;
    }
    let new_part = new.as_ref().map(&part);
    let old = match new {
        Some(new) => map.insert(key, new),
        None => map.remove(&key),
    };
    Some([old.as_ref().map(part), new_part])
}

fn changed<V: PartialEq>(map: &mut BTreeMap<String, V>, name: String, new: Option<V>) -> bool {
    replace(map, name, new, |_| ()).is_some()
}

fn reindex<I: std::hash::Hash + Eq + Clone>(
    index: &mut HashMap<I, BTreeSet<Key>>,
    key: &Key,
    old: &[I],
    new: &[I],
) {
    for entry in old {
        if let Some(keys) = index.get_mut(entry) {
            keys.remove(key);
            if keys.is_empty() {
                index.remove(entry);
            }
        }
    }
    for entry in new {
        index.entry(entry.clone()).or_default().insert(key.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::super::objects::Endpoint;
    use super::*;

    fn topics(state: &mut State, change: Change) -> Vec<String> {
        let mut topics = Topics::new();
        state.apply(change, &mut topics);
        topics.iter().map(|topic| format!("{topic:?}")).collect()
    }

    fn pod(ip: &str) -> Pod {
        Pod {
            namespace: "test".into(),
            name: "web-1".into(),
            ips: vec![ip.parse().unwrap()],
            ..Pod::default()
        }
    }

    fn slice_of(pod: &str) -> Slice {
        Slice {
            service: "web".into(),
            endpoints: vec![Endpoint {
                pod: Some(Key::new("test", pod)),
                ready: true,
                ..Endpoint::default()
            }],
            ..Slice::default()
        }
    }

    #[test]
    fn a_pod_concerns_its_addresses_and_the_services_that_list_it() {
        let mut state = State::default();
        let key = Key::new("test", "web-1");
        assert_eq!(
            topics(
                &mut state,
                Change::Slice(Key::new("test", "web-abc"), Some(slice_of("web-1")))
            ),
            ["Service(test/web)"]
        );
        assert_eq!(
            topics(&mut state, Change::Pod(key.clone(), Some(pod("10.0.0.1")))),
            ["Service(test/web)", "Pod(test/web-1)", "Ip(10.0.0.1)"]
        );
        assert_eq!(
            topics(&mut state, Change::Pod(key.clone(), Some(pod("10.0.0.1")))),
            [""; 0],
            "nothing is new"
        );
        assert_eq!(
            topics(
                &mut state,
                Change::Slice(Key::new("test", "web-abc"), Some(slice_of("web-2")))
            ),
            ["Service(test/web)"]
        );
        assert_eq!(
            topics(&mut state, Change::Pod(key, Some(pod("10.0.0.2")))),
            ["Pod(test/web-1)", "Ip(10.0.0.1)", "Ip(10.0.0.2)"],
            "no longer listed"
        );
    }

    #[test]
    fn an_address_belongs_to_the_pod_that_has_it_now() {
        let mut state = State::default();
        let ip = "10.0.0.1".parse().unwrap();
        let old = Pod {
            finished: true,
            name: "old".into(),
            ..pod("10.0.0.1")
        };
        state.apply(
            Change::Pod(Key::new("test", "old"), Some(old)),
            &mut Topics::new(),
        );
        assert_eq!(state.pod_at(ip), None);
        state.apply(
            Change::Pod(Key::new("test", "web-1"), Some(pod("10.0.0.1"))),
            &mut Topics::new(),
        );
        assert_eq!(state.pod_at(ip).map(|pod| pod.name.as_str()), Some("web-1"));
    }

    #[test]
    fn the_latest_split_governs() {
        let mut state = State::default();
        for (name, created) in [("a", "2026-01-02"), ("b", "2026-01-01")] {
            let split = Split {
                service: "web".into(),
                created: created.into(),
                ..Split::default()
            };
            state.apply(
                Change::Split(Key::new("test", name), Some(split)),
                &mut Topics::new(),
            );
        }
        assert_eq!(
            state
                .split(&Key::new("test", "web"))
                .map(|split| split.created.as_str()),
            Some("2026-01-02")
        );
        assert_eq!(state.split(&Key::new("other", "web")), None);
    }

    #[test]
    fn another_cluster_is_a_world_of_its_own() {
        let mut state = State::default();
        let key = Key::new("test", "web-1");
        let appears = || {
            Change::Remote(
                "east".into(),
                Box::new(Change::Pod(key.clone(), Some(pod("10.0.0.1")))),
            )
        };
        assert_eq!(
            topics(&mut state, appears()),
            [""; 0],
            "nobody knows that cluster"
        );
        let known = Change::Cluster("east".into(), "example".parse().ok());
        assert_eq!(topics(&mut state, known), ["Clusters", "Cluster(\"east\")"]);
        assert_eq!(
            topics(&mut state, appears()),
            [
                "Remote(\"east\", Pod(test/web-1))",
                "Remote(\"east\", Ip(10.0.0.1))"
            ]
        );
        assert!(state.pod(&key).is_none(), "it isn't here");
        let only = Change::Only(Feed::Pods, BTreeSet::new());
        assert_eq!(
            topics(&mut state, Change::Remote("east".into(), Box::new(only))).len(),
            2,
            "a list without it takes it away"
        );
    }

    #[test]
    fn interest_in_a_cluster_ends_with_the_last_service_that_looks_there() {
        let mut state = State::default();
        let looks = |name: &str, members: &str| {
            let service = Service {
                annotations: [(crate::keys::REMOTE_DISCOVERY.to_owned(), members.to_owned())].into(),
                ..Service::default()
            };
            Change::Service(Key::new("test", name), Some(service))
        };
        let gone = |name: &str| Change::Service(Key::new("test", name), None);
        let mut after = |change| {
            let told = topics(&mut state, change).contains(&"Clusters".to_owned());
            (
                told,
                state.remote_interest().cloned().collect::<Vec<_>>().join(" "),
            )
        };
        assert_eq!(
            after(looks("a", "web@east,web@north")),
            (true, "east north".into())
        );
        assert_eq!(
            after(looks("b", "web@east,nonsense")),
            (true, "east north".into())
        );
        assert_eq!(after(gone("a")), (true, "east".into()));
        assert_eq!(after(gone("b")), (true, String::new()));
    }

    #[test]
    fn slices_hide_the_endpoints_object() {
        let mut state = State::default();
        let web = Key::new("test", "web");
        state.apply(
            Change::Endpoints(web.clone(), Some(vec![slice_of("old")])),
            &mut Topics::new(),
        );
        assert_eq!(state.slices(&web), [&slice_of("old")]);
        state.apply(
            Change::Slice(Key::new("test", "web-abc"), Some(slice_of("new"))),
            &mut Topics::new(),
        );
        assert_eq!(state.slices(&web), [&slice_of("new")]);
        state.apply(
            Change::Slice(Key::new("test", "web-abc"), None),
            &mut Topics::new(),
        );
        assert_eq!(state.slices(&web), [&slice_of("old")]);
    }
}
