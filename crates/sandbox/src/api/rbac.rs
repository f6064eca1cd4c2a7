//! Who may do what: RBAC, evaluated from the Role and binding objects themselves.
//!
//! The objects are compiled into [`Rules`] once per change of any of them. Decisions are pure functions of that.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};

use super::Cluster;
use super::error::{ApiError, Result};
use super::handler::Call;
use super::identity::Identity;
use super::registry::{Resource, meta};
use super::request::selected_name;
use super::selector::LabelSelector;
use crate::store::{Expect, Key, ResourceId};

pub(crate) const GROUP: &str = "rbac.authorization.k8s.io";

/// One thing that somebody wants to do.
#[derive(Clone, Debug)]
pub(crate) enum Action<'a> {
    Resource {
        verb: &'a str,
        group: &'a str,
        /// With subresource: `pods/log`.
        resource: String,
        namespace: &'a str,
        name: &'a str,
    },
    Path {
        verb: &'a str,
        path: &'a str,
    },
}

#[derive(Clone, Debug, Default)]
struct Rule {
    verbs: Vec<String>,
    groups: Vec<String>,
    resources: Vec<String>,
    names: Vec<String>,
    paths: Vec<String>,
}

fn texts(value: &Value, field: &str) -> Vec<String> {
    let items = value.get(field).and_then(Value::as_array).into_iter().flatten();
    items.filter_map(Value::as_str).map(str::to_owned).collect()
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}

impl Rule {
    fn of(value: &Value) -> Self {
        Self {
            verbs: texts(value, "verbs"),
            groups: texts(value, "apiGroups"),
            resources: texts(value, "resources"),
            names: texts(value, "resourceNames"),
            paths: texts(value, "nonResourceURLs"),
        }
    }

    fn allows(&self, action: &Action<'_>) -> bool {
        let any = |list: &[String], wanted: &str| list.iter().any(|one| one == "*" || one == wanted);
        match action {
            Action::Resource {
                verb,
                group,
                resource,
                name,
                ..
            } => {
                let subresource = resource.split_once('/').map(|(_, sub)| sub);
                any(&self.verbs, verb)
                    && any(&self.groups, group)
                    && (any(&self.resources, resource)
                        || subresource.is_some_and(|sub| {
                            self.resources
                                .iter()
                                .any(|one| one.strip_prefix("*/") == Some(sub))
                        }))
                    && (self.names.is_empty() || self.names.iter().any(|one| one == name))
            }
            Action::Path { verb, path } => {
                any(&self.verbs, verb)
                    && self.paths.iter().any(|one| match one.strip_suffix('*') {
                        Some(prefix) => path.starts_with(prefix),
                        None => one == path,
                    })
            }
        }
    }

    fn value(&self) -> Value {
        let mut value = json!({ "verbs": self.verbs });
        for (field, list) in [
            ("apiGroups", &self.groups),
            ("resources", &self.resources),
            ("resourceNames", &self.names),
            ("nonResourceURLs", &self.paths),
        ] {
            if !list.is_empty() {
                value[field] = list.clone().into();
            }
        }
        value
    }
}

#[derive(Clone, Debug)]
enum Subject {
    User(String),
    Group(String),
}

/// All bindings with their roles' rules; by namespace, empty for cluster-wide.
#[derive(Debug, Default)]
pub(crate) struct Rules {
    bindings: BTreeMap<String, Vec<Binding>>,
}

/// Whom a binding gives which rules.
type Binding = (Vec<Subject>, Arc<Vec<Rule>>);

impl Rules {
    fn compile(cluster: &Cluster) -> Self {
        let list = |plural: &str| {
            cluster
                .store
                .list(&ResourceId::from(format!("{GROUP}/{plural}")))
                .objects
        };
        let rules_of = |value: &Value| -> Arc<Vec<Rule>> {
            let rules = value.get("rules").and_then(Value::as_array).into_iter().flatten();
            Arc::new(rules.map(Rule::of).collect())
        };
        let (mut roles, mut bindings) = (BTreeMap::new(), BTreeMap::<String, Vec<_>>::new());
        for plural in ["clusterroles", "roles"] {
            for stored in list(plural).values() {
                roles.insert(
                    (stored.key.namespace.clone(), stored.key.name.clone()),
                    rules_of(&stored.value),
                );
            }
        }
        for plural in ["clusterrolebindings", "rolebindings"] {
            for stored in list(plural).values() {
                let namespace = &stored.key.namespace;
                let Some(role) = stored.value.get("roleRef") else {
                    continue;
                };
                let home = if text(role, "kind") == "Role" {
                    namespace.clone()
                } else {
                    String::new()
                };
                let Some(rules) = roles.get(&(home, text(role, "name").to_owned())) else {
                    continue;
                };
                let subjects = stored
                    .value
                    .get("subjects")
                    .and_then(Value::as_array)
                    .into_iter()
                    .flatten();
                let subjects = subjects
                    .filter_map(|subject| {
                        let name = text(subject, "name");
                        match text(subject, "kind") {
                            "User" => Some(Subject::User(name.to_owned())),
                            "Group" => Some(Subject::Group(name.to_owned())),
                            "ServiceAccount" => {
                                let of = match text(subject, "namespace") {
                                    "" => namespace.as_str(),
                                    given => given,
                                };
                                Some(Subject::User(format!("system:serviceaccount:{of}:{name}")))
                            }
                            _ => None,
                        }
                    })
                    .collect();
                bindings
                    .entry(namespace.clone())
                    .or_default()
                    .push((subjects, rules.clone()));
            }
        }
        Self { bindings }
    }

    fn of<'a>(&'a self, identity: &'a Identity, namespace: &'a str) -> impl Iterator<Item = &'a Rule> {
        let cluster_wide = self.bindings.get("").into_iter();
        let local = self
            .bindings
            .get(namespace)
            .filter(|_| !namespace.is_empty())
            .into_iter();
        cluster_wide
            .chain(local)
            .flatten()
            .filter(|(subjects, _)| {
                subjects.iter().any(|subject| match subject {
                    Subject::User(name) => *name == identity.user,
                    Subject::Group(name) => identity.groups.contains(name),
                })
            })
            .flat_map(|(_, rules)| rules.iter())
    }

    fn allow(&self, identity: &Identity, action: &Action<'_>) -> bool {
        let namespace = match action {
            Action::Resource { namespace, .. } => namespace,
            Action::Path { .. } => "",
        };
        identity.is_master() || self.of(identity, namespace).any(|rule| rule.allows(action))
    }
}

/// The compiled rules and the revisions of what they were compiled from.
#[derive(Debug, Default)]
pub(crate) struct Compiled(Mutex<(u64, Arc<Rules>)>);

impl Cluster {
    pub(crate) fn rules(&self) -> Arc<Rules> {
        let generation = *self.grants.borrow();
        let mut compiled = self.rbac.0.lock().unwrap_or_else(PoisonError::into_inner);
        if compiled.0 != generation {
            *compiled = (generation, Arc::new(Rules::compile(self)));
        }
        compiled.1.clone()
    }

    pub(crate) fn allowed(&self, identity: &Identity, action: &Action<'_>) -> bool {
        identity.is_master() || self.rules().allow(identity, action)
    }

    pub(crate) fn authorize(&self, call: &Call) -> Result<()> {
        let target = &call.target;
        let resource = match &target.subresource {
            Some(subresource) => format!("{}/{subresource}", target.plural),
            None => target.plural.clone(),
        };
        let selected = selected_name(&call.query).filter(|_| target.name.is_none());
        let name = target.name.clone().or(selected).unwrap_or_default();
        let namespace = target.namespace.as_deref().unwrap_or_default();
        let verb = call.verb.as_str();
        let action = Action::Resource {
            verb,
            group: &target.group,
            resource: resource.clone(),
            namespace,
            name: &name,
        };
        if self.allowed(&call.identity, &action) {
            return Ok(());
        }
        let user = &call.identity.user;
        let scope = match namespace {
            "" => "at the cluster scope".to_owned(),
            namespace => format!("in the namespace {namespace:?}"),
        };
        let group = &target.group;
        let why = format!("User {user:?} cannot {verb} resource {resource:?} in API group {group:?} {scope}");
        let name = target.name.as_deref().unwrap_or_default();
        Err(ApiError::forbidden(group, &target.plural, name, why))
    }

    pub(crate) fn authorize_path(&self, identity: &Identity, verb: &str, path: &str) -> Result<()> {
        if self.allowed(identity, &Action::Path { verb, path }) {
            return Ok(());
        }
        let user = &identity.user;
        Err(ApiError::forbidden(
            "",
            "",
            "",
            format!("User {user:?} cannot {verb} path {path:?}"),
        ))
    }

    /// Asked again by streams when something may have been withdrawn.
    pub(crate) fn still_allowed(&self, call: &Call) -> Result<()> {
        if let Some(bearer) = &call.bearer
            && self.believe(&bearer.token, &[]).is_none()
        {
            return Err(ApiError::unauthorized());
        }
        self.impersonate(&call.author, &call.headers)?;
        self.registry.find(&call.target)?;
        self.authorize(call)
    }

    /// Aggregated ClusterRoles collect the rules of those that their selectors match.
    pub(crate) fn aggregate_roles(&self) {
        let id = ResourceId::from(format!("{GROUP}/clusterroles"));
        let roles = self.store.list(&id).objects;
        for stored in roles.values() {
            let selectors = stored
                .value
                .pointer("/aggregationRule/clusterRoleSelectors")
                .and_then(Value::as_array);
            let Some(selectors) = selectors else { continue };
            let selectors: Vec<LabelSelector> =
                selectors.iter().filter_map(LabelSelector::from_object).collect();
            let mut rules: Vec<Value> = Vec::new();
            for other in roles.values().filter(|other| other.key != stored.key) {
                if !selectors.iter().any(|selector| selector.matches(&other.value)) {
                    continue;
                }
                for rule in other
                    .value
                    .get("rules")
                    .and_then(Value::as_array)
                    .into_iter()
                    .flatten()
                {
                    if !rules.contains(rule) {
                        rules.push(rule.clone());
                    }
                }
            }
            let rules = Value::from(rules);
            if stored.value.get("rules") != Some(&rules) {
                let mut role = stored.value.clone();
                role["rules"] = rules;
                // If somebody else wrote the role just now, their write aggregates again.
                let _ = self
                    .store
                    .put(&id, stored.key.clone(), role, Expect::Revision(stored.revision));
            }
        }
    }

    /// `SubjectAccessReview` and its relatives, all but the one that lists rules.
    pub(crate) fn access_review(&self, identity: &Identity, review: &Value) -> Value {
        let spec = review.get("spec").cloned().unwrap_or_default();
        let allowed = if let Some(wanted) = spec.get("resourceAttributes").filter(|wanted| wanted.is_object())
        {
            let resource = match text(wanted, "subresource") {
                "" => text(wanted, "resource").to_owned(),
                subresource => format!("{}/{subresource}", text(wanted, "resource")),
            };
            self.allowed(
                identity,
                &Action::Resource {
                    verb: text(wanted, "verb"),
                    group: text(wanted, "group"),
                    resource,
                    namespace: text(wanted, "namespace"),
                    name: text(wanted, "name"),
                },
            )
        } else {
            let wanted = spec.get("nonResourceAttributes").cloned().unwrap_or_default();
            self.allowed(
                identity,
                &Action::Path {
                    verb: text(&wanted, "verb"),
                    path: text(&wanted, "path"),
                },
            )
        };
        let mut answer = review.clone();
        answer["status"] = json!({ "allowed": allowed });
        answer
    }

    pub(crate) fn rules_review(&self, identity: &Identity, review: &Value) -> Value {
        let namespace = review
            .pointer("/spec/namespace")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let all = Rule {
            verbs: vec!["*".into()],
            groups: vec!["*".into()],
            resources: vec!["*".into()],
            ..Rule::default()
        };
        let all_paths = Rule {
            verbs: vec!["*".into()],
            paths: vec!["*".into()],
            ..Rule::default()
        };
        let rules = self.rules();
        let rules: Vec<&Rule> = match identity.is_master() {
            true => vec![&all, &all_paths],
            false => rules.of(identity, namespace).collect(),
        };
        let of = |paths: bool| -> Vec<Value> {
            rules
                .iter()
                .filter(|rule| rule.paths.is_empty() != paths)
                .map(|rule| rule.value())
                .collect()
        };
        let mut answer = review.clone();
        answer["status"] =
            json!({ "resourceRules": of(false), "nonResourceRules": of(true), "incomplete": false });
        answer
    }

    /// Nobody grants what they don't hold: writing a role needs its rules, or the verb `escalate`.
    pub(crate) fn check_escalation(&self, call: &Call, resource: &Resource, object: &Value) -> Result<()> {
        if resource.group != GROUP || call.identity.is_master() {
            return Ok(());
        }
        let namespace = meta::namespace(object);
        let rules = self.rules();
        let (verb, granted): (_, Vec<Rule>) = match resource.plural.as_str() {
            "roles" | "clusterroles" => {
                let given = object
                    .get("rules")
                    .and_then(Value::as_array)
                    .into_iter()
                    .flatten();
                ("escalate", given.map(Rule::of).collect())
            }
            _ => {
                let role = object.get("roleRef").cloned().unwrap_or_default();
                let local = text(&role, "kind") == "Role";
                let plural = if local { "roles" } else { "clusterroles" };
                let home = if local { namespace } else { "" };
                let key = Key::new(home, text(&role, "name"));
                let found = self
                    .store
                    .get(&ResourceId::from(format!("{GROUP}/{plural}")), &key);
                let given = found.iter().flat_map(|stored| {
                    stored
                        .value
                        .get("rules")
                        .and_then(Value::as_array)
                        .into_iter()
                        .flatten()
                });
                ("bind", given.map(Rule::of).collect())
            }
        };
        let (plural, name) = match verb {
            "bind" => {
                let local = object.pointer("/roleRef/kind").and_then(Value::as_str) == Some("Role");
                let name = object
                    .pointer("/roleRef/name")
                    .and_then(Value::as_str)
                    .unwrap_or_default();
                (if local { "roles" } else { "clusterroles" }, name)
            }
            _ => (resource.plural.as_str(), meta::name(object)),
        };
        let exempt = Action::Resource {
            verb,
            group: GROUP,
            resource: plural.to_owned(),
            namespace,
            name,
        };
        if rules.allow(&call.identity, &exempt) {
            return Ok(());
        }
        let held: Vec<&Rule> = rules.of(&call.identity, namespace).collect();
        match granted.iter().find(|rule| !covered(&held, rule)) {
            None => Ok(()),
            Some(missing) => {
                let why = format!(
                    "user {:?} (groups={:?}) is attempting to grant RBAC permissions not currently held: {}",
                    call.identity.user,
                    call.identity.groups,
                    missing.value()
                );
                Err(ApiError::forbidden(
                    &resource.group,
                    &resource.plural,
                    meta::name(object),
                    why,
                ))
            }
        }
    }
}

/// Whether every single permission of a rule is held through some rule.
fn covered(held: &[&Rule], rule: &Rule) -> bool {
    let one_of = |list: &[String]| -> Vec<String> {
        if list.is_empty() {
            vec![String::new()]
        } else {
            list.to_vec()
        }
    };
    let holds = |list: &[String], wanted: &str| list.iter().any(|one| one == "*" || one == wanted);
    rule.verbs.iter().all(|verb| {
        let paths = rule.paths.iter().all(|path| {
            held.iter().any(|held| {
                holds(&held.verbs, verb)
                    && held.paths.iter().any(|one| match one.strip_suffix('*') {
                        Some(prefix) => path.starts_with(prefix),
                        None => one == path,
                    })
            })
        });
        paths
            && rule.groups.iter().all(|group| {
                rule.resources.iter().all(|resource| {
                    one_of(&rule.names).iter().all(|name| {
                        held.iter().any(|held| {
                            holds(&held.verbs, verb)
                                && holds(&held.groups, group)
                                && holds(&held.resources, resource)
                                && (held.names.is_empty() || held.names.contains(name))
                        })
                    })
                })
            })
    })
}

/// `role [label] : rules`, a rule being `verbs groups resources`, or `verbs url...` for paths; `core` is the core group.
const ROLES: &str = "
cluster-admin: * * * ; * url *
system:discovery: get url /api /api/* /apis /apis/* /healthz /livez /openapi /openapi/* /readyz /version /version/
system:public-info-viewer: get url /healthz /livez /readyz /version /version/
system:monitoring: get url /healthz /healthz/* /livez /livez/* /metrics /metrics/slis /readyz /readyz/*
system:basic-user: create authorization.k8s.io selfsubjectaccessreviews,selfsubjectrulesreviews ; create authentication.k8s.io selfsubjectreviews
system:service-account-issuer-discovery: get url /.well-known/openid-configuration /openid/v1/jwks
system:auth-delegator: create authentication.k8s.io tokenreviews ; create authorization.k8s.io subjectaccessreviews
system:aggregate-to-view: get,list,watch core configmaps,endpoints,persistentvolumeclaims,persistentvolumeclaims/status,pods,replicationcontrollers,replicationcontrollers/scale,serviceaccounts,services,services/status,bindings,events,limitranges,namespaces/status,pods/log,pods/status,replicationcontrollers/status,resourcequotas,resourcequotas/status,namespaces ; get,list,watch discovery.k8s.io endpointslices ; get,list,watch apps controllerrevisions,daemonsets,daemonsets/status,deployments,deployments/scale,deployments/status,replicasets,replicasets/scale,replicasets/status,statefulsets,statefulsets/scale,statefulsets/status ; get,list,watch autoscaling horizontalpodautoscalers,horizontalpodautoscalers/status ; get,list,watch batch cronjobs,cronjobs/status,jobs,jobs/status ; get,list,watch policy poddisruptionbudgets,poddisruptionbudgets/status ; get,list,watch networking.k8s.io ingresses,ingresses/status,networkpolicies
system:aggregate-to-edit: get,list,watch core pods/attach,pods/exec,pods/portforward,pods/proxy,secrets,services/proxy ; impersonate core serviceaccounts ; create,delete,deletecollection,patch,update core pods,pods/attach,pods/exec,pods/portforward,pods/proxy ; create core pods/eviction,serviceaccounts/token ; create,delete,deletecollection,patch,update core configmaps,events,persistentvolumeclaims,replicationcontrollers,replicationcontrollers/scale,secrets,serviceaccounts,services,services/proxy,endpoints ; create,delete,deletecollection,patch,update apps daemonsets,deployments,deployments/rollback,deployments/scale,replicasets,replicasets/scale,statefulsets,statefulsets/scale ; create,delete,deletecollection,patch,update autoscaling horizontalpodautoscalers ; create,delete,deletecollection,patch,update batch cronjobs,jobs ; create,delete,deletecollection,patch,update policy poddisruptionbudgets ; create,delete,deletecollection,patch,update networking.k8s.io ingresses,networkpolicies ; create,delete,deletecollection,get,list,patch,update,watch coordination.k8s.io leases
system:aggregate-to-admin: create authorization.k8s.io localsubjectaccessreviews ; create,delete,deletecollection,get,list,patch,update,watch rbac.authorization.k8s.io roles,rolebindings
system:node: create authentication.k8s.io tokenreviews ; create authorization.k8s.io subjectaccessreviews,localsubjectaccessreviews ; get,list,watch core services,configmaps,secrets,persistentvolumeclaims,persistentvolumes,namespaces,endpoints,serviceaccounts ; create,get,list,watch,update,patch,delete core nodes,pods ; update,patch core nodes/status,pods/status ; create core pods/eviction,serviceaccounts/token ; create,update,patch core events ; create,update,patch events.k8s.io events ; create,get,update,patch,delete coordination.k8s.io leases ; get,list,watch discovery.k8s.io endpointslices
system:kube-controller-manager: * * *
system:kube-scheduler: get,list,watch core pods,nodes,namespaces,services,replicationcontrollers,persistentvolumeclaims,persistentvolumes ; delete core pods ; create core bindings,pods/binding ; patch,update core pods/status ; get,list,watch apps replicasets,statefulsets ; get,list,watch policy poddisruptionbudgets ; create,patch,update core events ; create,patch,update events.k8s.io events ; create,get,list,update,watch,patch coordination.k8s.io leases
";

/// `binding role kind:subject`.
const BINDINGS: &str = "
cluster-admin cluster-admin Group:system:masters
system:discovery system:discovery Group:system:authenticated
system:basic-user system:basic-user Group:system:authenticated
system:public-info-viewer system:public-info-viewer Group:system:authenticated,Group:system:unauthenticated
system:service-account-issuer-discovery system:service-account-issuer-discovery Group:system:serviceaccounts
system:monitoring system:monitoring Group:system:monitoring
system:node system:node Group:system:nodes
system:kube-controller-manager system:kube-controller-manager User:system:kube-controller-manager
system:kube-scheduler system:kube-scheduler User:system:kube-scheduler
";

/// The roles and bindings that every cluster starts with.
pub(crate) fn bootstrap() -> Vec<(&'static str, Value)> {
    let mut objects = Vec::new();
    let words = |list: &str| -> Vec<String> {
        list.split(',')
            .map(|word| {
                if word == "core" {
                    String::new()
                } else {
                    word.to_owned()
                }
            })
            .collect()
    };
    for line in ROLES.lines() {
        let Some((name, rules)) = line.split_once(": ") else {
            continue;
        };
        let rules: Vec<Value> = rules
            .split(" ; ")
            .filter_map(|rule| match rule.split_whitespace().collect::<Vec<_>>()[..] {
                [verbs, "url", ref paths @ ..] => {
                    Some(json!({ "verbs": words(verbs), "nonResourceURLs": paths }))
                }
                [verbs, groups, resources] => Some(json!({
                    "verbs": words(verbs), "apiGroups": words(groups), "resources": words(resources),
                })),
                _ => None,
            })
            .collect();
        let mut labels = json!({ "kubernetes.io/bootstrapping": "rbac-defaults" });
        if let Some(to) = name.strip_prefix("system:aggregate-to-") {
            labels[format!("rbac.authorization.k8s.io/aggregate-to-{to}")] = "true".into();
        }
        objects.push((
            "clusterroles",
            json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
                "metadata": { "name": name, "labels": labels }, "rules": rules,
            }),
        ));
    }
    for (name, parts) in [
        ("admin", &["admin", "edit", "view"][..]),
        ("edit", &["edit", "view"][..]),
        ("view", &["view"][..]),
    ] {
        let selectors: Vec<Value> = parts
            .iter()
            .map(|part| json!({ "matchLabels": { format!("rbac.authorization.k8s.io/aggregate-to-{part}"): "true" } }))
            .collect();
        objects.push((
            "clusterroles",
            json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
                "metadata": { "name": name, "labels": { "kubernetes.io/bootstrapping": "rbac-defaults" } },
                "aggregationRule": { "clusterRoleSelectors": selectors }, "rules": [],
            }),
        ));
    }
    for line in BINDINGS.lines() {
        let [name, role, subjects] = line.split_whitespace().collect::<Vec<_>>()[..] else {
            continue;
        };
        let subjects: Vec<Value> = subjects
            .split(',')
            .filter_map(|subject| subject.split_once(':'))
            .map(|(kind, name)| json!({ "apiGroup": GROUP, "kind": kind, "name": name }))
            .collect();
        objects.push((
            "clusterrolebindings",
            json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
                "metadata": { "name": name, "labels": { "kubernetes.io/bootstrapping": "rbac-defaults" } },
                "roleRef": { "apiGroup": GROUP, "kind": "ClusterRole", "name": role }, "subjects": subjects,
            }),
        ));
    }
    objects
}
