//! Federated Services: one name for the Services of that name in many clusters.
//!
//! Several controllers keep one Service together: one per Link, and one for this cluster's own members. Each adds and
//! removes its own membership in the discovery annotations, conditionally on the version it saw, so a race is a retry.
//! The oldest member also decides labels, annotations and ports. A membership whose Link is gone belongs to nobody any
//! more, and whoever sees it first takes it away.
//!
//! [`plan`] is pure. Where the endpoints of a federated Service are is the destination controller's business; this
//! module never looks at a pod. Source: `spec/multicluster.md` 6.9.

use std::collections::BTreeMap;

use hawser_core::ServiceName;
use hawser_crd::Link;
use hawser_crd::keys;
use hawser_crd::selector::Selector;
use k8s_openapi::api::core::v1::{Namespace, Service};
use kube::{Api, Client};
use serde_json::{Value, json};

use super::plan::{self, DesiredService, Kind, Plan, Verdict, Write};
use super::snapshot::{self, LocalService, Map, RemoteService, Seniorities, Snapshot};
use super::{LOCAL_MAX, apply};
use crate::lead::{Next, Work};
use crate::observe::{Bell, Key, Observed, Select, View};

/// Ends the name of every federated Service.
pub(crate) const SUFFIX: &str = "-federated";

/// Whose members are looked after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Joiner<'a> {
    /// This cluster's.
    Local,
    Cluster(&'a str),
}

/// Everything a plan is made from.
struct Federation<'a> {
    joiner: Joiner<'a>,
    /// The joiner's Services that are members; `None` until they are completely known.
    members: Option<&'a View<RemoteService>>,
    namespaces: &'a View<()>,
    services: &'a View<LocalService>,
    links: &'a Seniorities,
    excluded_labels: &'a [String],
    excluded_annotations: &'a [String],
}

/// Plans for the members that a Link's target has. Without the Link it has none.
pub(super) fn of_link(snapshot: &Snapshot, plan: &mut Plan) {
    let nobody = View::new();
    let cluster = snapshot
        .link
        .as_ref()
        .map_or_else(|| snapshot.link_name.clone(), |link| link.cluster.to_string());
    let federation = Federation {
        joiner: Joiner::Cluster(&cluster),
        members: match (&snapshot.link, &snapshot.remote) {
            (None, _) => Some(&nobody),
            (Some(_), remote) => remote.as_ref().map(|remote| &remote.members),
        },
        namespaces: &snapshot.namespaces,
        services: &snapshot.services,
        links: &snapshot.links,
        excluded_labels: snapshot.link.as_ref().map_or(&[], |link| &link.excluded_labels),
        excluded_annotations: snapshot
            .link
            .as_ref()
            .map_or(&[], |link| &link.excluded_annotations),
    };
    federation.plan(plan);
}

/// Who belongs to a federated Service, as its annotations say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Membership {
    local: Option<String>,
    /// `service@cluster`, in the order of joining.
    remote: Vec<String>,
}

impl Membership {
    fn read(annotations: &Map) -> Self {
        let text = |key: &str| annotations.get(key).filter(|text| !text.is_empty());
        Self {
            local: text(keys::LOCAL_DISCOVERY).cloned(),
            remote: text(keys::REMOTE_DISCOVERY)
                .map(|list| list.split(',').map(|item| item.trim().to_owned()).collect())
                .unwrap_or_default(),
        }
    }

    /// Empty parts have no key.
    fn annotations(&self) -> Map {
        let remote = (!self.remote.is_empty()).then(|| self.remote.join(","));
        [
            (keys::LOCAL_DISCOVERY, self.local.clone()),
            (keys::REMOTE_DISCOVERY, remote),
        ]
        .into_iter()
        .filter_map(|(key, value)| Some((key.to_owned(), value?)))
        .collect()
    }

    fn is_empty(&self) -> bool {
        self.local.is_none() && self.remote.is_empty()
    }

    fn clusters(&self) -> impl Iterator<Item = &str> {
        self.remote.iter().filter_map(|item| cluster_of(item))
    }
}

fn cluster_of(item: &str) -> Option<&str> {
    let (service, cluster) = item.split_once('@')?;
    (!service.is_empty() && !cluster.is_empty()).then_some(cluster)
}

impl Federation<'_> {
    fn plan(&self, plan: &mut Plan) {
        let Some(members) = self.members else {
            return;
        };
        let mut wanted: BTreeMap<Key, (&Key, &RemoteService)> = BTreeMap::new();
        for (key, service) in members {
            match self.place(key, service) {
                Ok(local) => {
                    wanted.insert(local.clone(), (key, service));
                    plan.federated.insert(key.clone(), Verdict::Joined { local });
                }
                Err(verdict) => {
                    plan.federated.insert(key.clone(), verdict);
                }
            }
        }
        let ours = self
            .services
            .iter()
            .filter(|(key, service)| is_federated(key, service));
        for (key, found) in ours {
            let write = self.refresh(key, found, wanted.remove(key));
            plan.writes.entry(key.clone()).or_default().extend(write);
        }
        // What is left doesn't exist yet.
        for (local, (key, service)) in wanted {
            let desired = self.desired(service, &self.with_mine(&Membership::default(), Some(key)));
            let write = plan::service_write(Kind::Federated, &local, &desired, None);
            plan.writes.entry(local).or_default().extend(write);
        }
    }

    /// Which federated Service a member belongs to, or why it can't.
    fn place(&self, key: &Key, service: &RemoteService) -> Result<Key, Verdict> {
        let name = format!("{}{SUFFIX}", key.name);
        let name: ServiceName = name
            .parse()
            .map_err(|error: hawser_core::NameError| Verdict::Unfit(error.to_string()))?;
        if service.headless {
            return Err(Verdict::Invalid("Headless service cannot join federated service"));
        }
        if service.ports.is_empty() {
            return Err(Verdict::Unfit("the service exposes no ports".into()));
        }
        if !self.namespaces.contains_key(&Key::new("", &key.namespace)) {
            return Err(Verdict::MissingNamespace);
        }
        let local = Key::new(&key.namespace, name.to_string());
        match self.services.get(&local) {
            Some(found) if !is_federated(&local, found) => Err(Verdict::NameConflict { local }),
            _ => Ok(local),
        }
    }

    /// What an existing federated Service needs, with `mine` as the joiner's member.
    fn refresh(
        &self,
        key: &Key,
        found: &LocalService,
        mine: Option<(&Key, &RemoteService)>,
    ) -> Option<Write> {
        let before = Membership::read(&found.annotations);
        let after = self.with_mine(&before, mine.map(|(key, _)| key));
        if after.is_empty() {
            return Some(Write::DeleteUnchanged {
                kind: Kind::Federated,
                key: key.clone(),
                version: found.version.clone(),
            });
        }
        let look = mine.filter(|_| self.is_oldest(&after));
        let write = look.and_then(|(_, service)| {
            plan::service_write(Kind::Federated, key, &self.desired(service, &after), Some(found))
        });
        if write.is_some() {
            return write;
        }
        // A membership that is only to go doesn't make the above write.
        let annotations = after.annotations();
        let written = |name: &str| found.annotations.get(name) == annotations.get(name);
        if written(keys::LOCAL_DISCOVERY) && written(keys::REMOTE_DISCOVERY) {
            return None;
        }
        let annotation = |name: &str| {
            annotations
                .get(name)
                .map_or(Value::Null, |text| text.as_str().into())
        };
        Some(Write::Patch {
            kind: Kind::Federated,
            key: key.clone(),
            version: found.version.clone(),
            patch: json!({"metadata": {
                "uid": found.version.uid, "resourceVersion": found.version.resource_version,
                "annotations": {
                    keys::LOCAL_DISCOVERY: annotation(keys::LOCAL_DISCOVERY),
                    keys::REMOTE_DISCOVERY: annotation(keys::REMOTE_DISCOVERY),
                },
            }}),
        })
    }

    /// The membership with the joiner's own part as it should be, and without what no Link stands behind.
    fn with_mine(&self, membership: &Membership, mine: Option<&Key>) -> Membership {
        let own = |item: &str| match self.joiner {
            Joiner::Local => false,
            Joiner::Cluster(cluster) => cluster_of(item) == Some(cluster),
        };
        let mine_item = match (self.joiner, mine) {
            (Joiner::Cluster(cluster), Some(key)) => Some(format!("{}@{cluster}", key.name)),
            _ => None,
        };
        let is_kept = |item: &&String| {
            if own(item) {
                mine_item.as_ref() == Some(*item)
            } else {
                cluster_of(item).is_some_and(|cluster| self.links.contains_key(cluster))
            }
        };
        let mut remote: Vec<String> = Vec::new();
        for item in membership.remote.iter().filter(is_kept).chain(&mine_item) {
            if !remote.contains(item) {
                remote.push(item.clone());
            }
        }
        let local = match self.joiner {
            Joiner::Local => mine.map(|key| key.name.clone()),
            Joiner::Cluster(_) => membership.local.clone(),
        };
        Membership { local, remote }
    }

    /// Whether the joiner's member decides labels, annotations and ports: a local member always does.
    fn is_oldest(&self, membership: &Membership) -> bool {
        let Joiner::Cluster(cluster) = self.joiner else {
            return true;
        };
        let age = |cluster: &str| self.links.get(cluster);
        membership.local.is_none()
            && membership
                .clusters()
                .filter_map(age)
                .all(|other| age(cluster).is_some_and(|mine| mine <= other))
    }

    fn desired(&self, service: &RemoteService, membership: &Membership) -> DesiredService {
        let mut annotations = plan::copied_annotations(&service.annotations, self.excluded_annotations);
        annotations.extend(membership.annotations());
        DesiredService {
            labels: plan::copied_labels(&service.labels, self.excluded_labels),
            annotations,
            ports: service.ports.clone(),
            headless: false,
        }
    }
}

/// Whether a Service is federated by us. A mirror of a cluster names it, so it can't be taken for one.
fn is_federated(key: &Key, service: &LocalService) -> bool {
    key.name.ends_with(SUFFIX)
        && service.labels.get(keys::MIRRORED_SERVICE).map(String::as_str) == Some("true")
        && !service.labels.contains_key(keys::CLUSTER_NAME)
}

/// What the controller of local members is for.
#[derive(Clone, Debug)]
pub struct LocalConfig {
    /// Where the Links live.
    pub namespace: String,
    pub selector: Selector,
    pub excluded_annotations: Vec<String>,
    pub excluded_labels: Vec<String>,
}

/// Makes this cluster's own members join.
pub(super) struct LocalMembers {
    client: Client,
    config: LocalConfig,
    links: Observed<Link>,
    namespaces: Observed<()>,
    /// Absent when nothing is selected.
    members: Option<Observed<RemoteService>>,
    services: Observed<LocalService>,
}

impl LocalMembers {
    /// The bell rings when there is something to do.
    pub(super) fn new(client: Client, config: LocalConfig, bell: Bell) -> Self {
        let links: Api<Link> = Api::namespaced(client.clone(), &config.namespace);
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let services: Api<Service> = Api::all(client.clone());
        let members = config.selector.query().map(|query| {
            Observed::start(
                services.clone(),
                Select::labels(query),
                LOCAL_MAX,
                bell.clone(),
                snapshot::remote_service,
            )
        });
        Self {
            links: Observed::start(links, Select::all(), LOCAL_MAX, bell.clone(), Some),
            namespaces: Observed::start(
                namespaces,
                Select::all(),
                LOCAL_MAX,
                bell.clone(),
                snapshot::namespace,
            ),
            members,
            services: Observed::start(services, Select::all(), LOCAL_MAX, bell.clone(), |service| {
                snapshot::local_service(service, "")
            }),
            client,
            config,
        }
    }

    fn plan(&self) -> Option<Plan> {
        let members = match &self.members {
            Some(members) => members.view()?,
            None => View::new(),
        };
        let mut plan = Plan::default();
        let federation = Federation {
            joiner: Joiner::Local,
            members: Some(&members),
            namespaces: &self.namespaces.view()?,
            services: &self.services.view()?,
            links: &snapshot::seniorities(&self.links.view()?),
            excluded_labels: &self.config.excluded_labels,
            excluded_annotations: &self.config.excluded_annotations,
        };
        federation.plan(&mut plan);
        Some(plan)
    }
}

impl Work for LocalMembers {
    async fn reconcile(&mut self) -> Next {
        let Some(plan) = self.plan() else {
            return Next::Settled;
        };
        for (member, verdict) in &plan.federated {
            // Joining is said by the write; the rest has no Link whose status could say it.
            if !matches!(verdict, Verdict::Joined { .. }) {
                tracing::warn!(%member, ?verdict, "a member can't join its federated service");
            }
        }
        match apply::apply(&self.client, plan.writes).await.is_empty() {
            true => Next::Settled,
            false => Next::Retry,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::snapshot::{Port, Version};
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> Map {
        pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    fn port() -> Port {
        Port {
            name: "http".into(),
            protocol: "TCP".into(),
            port: 80,
            target: k8s_openapi::apimachinery::pkg::util::intstr::IntOrString::Int(80),
        }
    }

    fn member(color: &str) -> RemoteService {
        RemoteService {
            labels: map(&[("color", color), (keys::FEDERATED, "member")]),
            annotations: map(&[(keys::REMOTE_DISCOVERY, "evil@elsewhere"), ("note", color)]),
            ports: vec![port()],
            ..Default::default()
        }
    }

    /// A federated Service that the oldest of its members painted.
    fn federated(color: &str, local: Option<&str>, remote: Option<&str>) -> LocalService {
        let mut annotations = map(&[("note", color)]);
        annotations.extend(local.map(|text| (keys::LOCAL_DISCOVERY.to_owned(), text.to_owned())));
        annotations.extend(remote.map(|text| (keys::REMOTE_DISCOVERY.to_owned(), text.to_owned())));
        LocalService {
            version: Version {
                uid: "uid".into(),
                resource_version: "7".into(),
            },
            labels: map(&[(keys::MIRRORED_SERVICE, "true"), ("color", color)]),
            annotations,
            ports: vec![port()],
            ..Default::default()
        }
    }

    /// What `joiner` does about `bb` and what exists, when east was linked before north.
    fn check(joiner: Joiner<'_>, member: Option<RemoteService>, found: Option<LocalService>) -> String {
        let members: View<RemoteService> = member
            .into_iter()
            .map(|service| (Key::new("test", "bb"), Arc::new(service)))
            .collect();
        let services: View<LocalService> = found
            .into_iter()
            .map(|service| (Key::new("test", "bb-federated"), Arc::new(service)))
            .collect();
        let links = ["east", "north"]
            .into_iter()
            .enumerate()
            .map(|(age, name)| (name.to_owned(), (age.to_string(), name.to_owned())));
        let mut plan = Plan::default();
        let federation = Federation {
            joiner,
            members: Some(&members),
            namespaces: &View::from([(Key::new("", "test"), Arc::new(()))]),
            services: &services,
            links: &links.collect(),
            excluded_labels: &[],
            excluded_annotations: &[],
        };
        federation.plan(&mut plan);
        let writes = plan.writes.into_values().flatten().map(|write| match write {
            Write::Create { object, .. } => {
                let metadata = &object["metadata"];
                format!("create {} {}", metadata["labels"], metadata["annotations"])
            }
            Write::Patch { patch, version, .. } => {
                assert_eq!(
                    patch["metadata"]["resourceVersion"],
                    version.resource_version.as_str()
                );
                let metadata = &patch["metadata"];
                format!("patch {} {}", metadata["labels"], metadata["annotations"])
            }
            Write::DeleteUnchanged { .. } => "delete".to_owned(),
            Write::Delete { .. } => "delete whatever it is".to_owned(),
        });
        let verdicts = plan.federated.into_values().map(|verdict| format!("{verdict:?}"));
        writes
            .chain(verdicts)
            .collect::<Vec<_>>()
            .join("\n")
            .replace("multicluster.linkerd.io/", "")
            .replace("mirror.linkerd.io/", "")
    }

    const EAST: Joiner<'_> = Joiner::Cluster("east");
    const NORTH: Joiner<'_> = Joiner::Cluster("north");
    const JOINED: &str = "Joined { local: Key { namespace: \"test\", name: \"bb-federated\" } }";

    #[test]
    fn the_first_member_makes_the_service_and_a_target_cannot_name_other_members() {
        assert_eq!(
            check(EAST, Some(member("blue")), None),
            format!(
                "create {{\"color\":\"blue\",\"mirrored-service\":\"true\"}} \
                 {{\"remote-discovery\":\"bb@east\",\"note\":\"blue\"}}\n{JOINED}"
            )
        );
    }

    #[test]
    fn a_later_member_only_adds_itself() {
        assert_eq!(
            check(
                NORTH,
                Some(member("red")),
                Some(federated("blue", None, Some("bb@east")))
            ),
            format!(
                "patch null {{\"local-discovery\":null,\"remote-discovery\":\"bb@east,bb@north\"}}\n{JOINED}"
            )
        );
    }

    #[test]
    fn the_oldest_link_decides_what_the_service_looks_like() {
        assert_eq!(
            check(
                EAST,
                Some(member("blue")),
                Some(federated("red", None, Some("bb@north")))
            ),
            format!(
                "patch {{\"color\":\"blue\",\"mirrored-service\":\"true\"}} \
                 {{\"remote-discovery\":\"bb@north,bb@east\",\"note\":\"blue\"}}\n{JOINED}"
            )
        );
        let settled = federated("blue", None, Some("bb@north,bb@east"));
        assert_eq!(check(EAST, Some(member("blue")), Some(settled.clone())), JOINED);
        assert_eq!(check(NORTH, Some(member("red")), Some(settled)), JOINED);
    }

    #[test]
    fn a_local_member_is_older_than_all_links() {
        assert_eq!(
            check(
                Joiner::Local,
                Some(member("green")),
                Some(federated("blue", None, Some("bb@east")))
            ),
            format!(
                "patch {{\"color\":\"green\",\"mirrored-service\":\"true\"}} \
                 {{\"local-discovery\":\"bb\",\"remote-discovery\":\"bb@east\",\"note\":\"green\"}}\n{JOINED}"
            )
        );
        let settled = federated("green", Some("bb"), Some("bb@east"));
        assert_eq!(check(EAST, Some(member("blue")), Some(settled)), JOINED);
    }

    #[test]
    fn who_leaves_takes_its_key_along_and_the_last_one_the_service() {
        let both = federated("green", Some("bb"), Some("bb@east"));
        assert_eq!(
            check(EAST, None, Some(both.clone())),
            "patch null {\"local-discovery\":\"bb\",\"remote-discovery\":null}"
        );
        assert_eq!(
            check(Joiner::Local, None, Some(both)),
            "patch null {\"local-discovery\":null,\"remote-discovery\":\"bb@east\"}"
        );
        assert_eq!(
            check(EAST, None, Some(federated("blue", None, Some("bb@east")))),
            "delete"
        );
    }

    #[test]
    fn a_member_without_a_link_is_taken_away_by_whoever_sees_it() {
        let orphan = federated("blue", None, Some("bb@gone,bb@north, nonsense"));
        assert_eq!(
            check(Joiner::Local, None, Some(orphan)),
            "patch null {\"local-discovery\":null,\"remote-discovery\":\"bb@north\"}"
        );
    }

    #[test]
    fn a_service_of_somebody_else_is_left_alone_and_a_headless_one_cannot_join() {
        let foreign = LocalService::default();
        assert_eq!(
            check(EAST, Some(member("blue")), Some(foreign)),
            "NameConflict { local: Key { namespace: \"test\", name: \"bb-federated\" } }"
        );
        let headless = RemoteService {
            headless: true,
            ..member("blue")
        };
        assert_eq!(
            check(EAST, Some(headless), None),
            "Invalid(\"Headless service cannot join federated service\")"
        );
    }
}
