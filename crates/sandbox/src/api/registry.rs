//! Every resource that the cluster serves, built in or defined by a CRD, in one shape.
//!
//! The generic handlers know resources only through [`Resource`]. A CRD registers here at run time; nothing else in
//! the API server distinguishes its resources from built-in ones except where Kubernetes itself does.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arc_swap::ArcSwap;
use serde_json::Value;

use super::error::{ApiError, Result};
use super::request::Target;
use crate::store::ResourceId;

/// One resource in one version.
#[derive(Debug)]
pub(crate) struct Resource {
    pub group: String,
    pub version: String,
    pub kind: String,
    pub list_kind: String,
    pub plural: String,
    pub singular: String,
    pub short_names: Vec<String>,
    pub categories: Vec<String>,
    pub namespaced: bool,
    pub verbs: Vec<String>,
    pub subresources: BTreeSet<String>,
    /// Shared by all versions, and by groups that are two views of one resource.
    pub store: ResourceId,
    /// Fields that may be selected beside `metadata.name` and `metadata.namespace`.
    pub selectable: Vec<String>,
}

impl Resource {
    pub(crate) fn api_version(&self) -> String {
        api_version(&self.group, &self.version)
    }

    /// `deployments.apps`.
    pub(crate) fn qualified(&self) -> String {
        if self.group.is_empty() {
            self.plural.clone()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }

    pub(crate) fn allows(&self, verb: &str) -> bool {
        self.verbs.iter().any(|known| known == verb)
    }

    pub(crate) fn has(&self, subresource: &str) -> bool {
        self.subresources.contains(subresource)
    }

    pub(crate) fn is(&self, group: &str, plural: &str) -> bool {
        self.group == group && self.plural == plural
    }

    /// Kinds whose `metadata.generation` counts changes of the desired state.
    pub(crate) fn has_generation(&self) -> bool {
        match self.group.as_str() {
            "" => matches!(self.plural.as_str(), "replicationcontrollers" | "pods"),
            "apps"
            | "batch"
            | "networking.k8s.io"
            | "policy"
            | "admissionregistration.k8s.io"
            | "discovery.k8s.io"
            | "apiextensions.k8s.io" => true,
            group => !group.ends_with(".k8s.io") || group == "gateway.networking.k8s.io",
        }
    }
}

pub(crate) fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    }
}

/// Resources by (group, version, plural).
pub(crate) type Table = BTreeMap<(String, String, String), Arc<Resource>>;

/// The present table; replaced as a whole when a CRD changes.
#[derive(Debug)]
pub(crate) struct Registry {
    table: ArcSwap<Table>,
}

impl Registry {
    pub(crate) fn builtin() -> Self {
        Self {
            table: ArcSwap::from_pointee(builtin()),
        }
    }

    pub(crate) fn table(&self) -> Arc<Table> {
        self.table.load_full()
    }

    pub(crate) fn find(&self, target: &Target) -> Result<Arc<Resource>> {
        self.lookup(&target.group, &target.version, &target.plural)
            .ok_or_else(ApiError::path_not_found)
    }

    pub(crate) fn lookup(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Resource>> {
        self.table
            .load()
            .get(&(group.to_owned(), version.to_owned(), plural.to_owned()))
            .cloned()
    }
}

const ALL_VERBS: [&str; 8] = [
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];

/// `apiVersion kind plural scope subresources short-names categories`, `-` for none.
const BUILTIN: &str = "
v1 Binding bindings ns - - create-only
v1 ConfigMap configmaps ns - cm -
v1 Endpoints endpoints ns - ep -
v1 Event events ns - ev -
v1 LimitRange limitranges ns - limits -
v1 Namespace namespaces - finalize,status ns -
v1 Node nodes - proxy,status no -
v1 PersistentVolumeClaim persistentvolumeclaims ns status pvc -
v1 PodTemplate podtemplates ns - - -
v1 Pod pods ns attach,binding,ephemeralcontainers,eviction,exec,log,portforward,proxy,status po all
v1 ReplicationController replicationcontrollers ns scale,status rc all
v1 ResourceQuota resourcequotas ns status quota -
v1 Secret secrets ns - - -
v1 ServiceAccount serviceaccounts ns token sa -
v1 Service services ns proxy,status svc all
admissionregistration.k8s.io/v1 MutatingWebhookConfiguration mutatingwebhookconfigurations - - - api-extensions
admissionregistration.k8s.io/v1 ValidatingWebhookConfiguration validatingwebhookconfigurations - - - api-extensions
apiextensions.k8s.io/v1 CustomResourceDefinition customresourcedefinitions - status crd,crds api-extensions
apps/v1 ControllerRevision controllerrevisions ns - - -
apps/v1 DaemonSet daemonsets ns status ds all
apps/v1 Deployment deployments ns scale,status deploy all
apps/v1 ReplicaSet replicasets ns scale,status rs all
apps/v1 StatefulSet statefulsets ns scale,status sts all
authentication.k8s.io/v1 SelfSubjectReview selfsubjectreviews - - - create-only
authentication.k8s.io/v1 TokenReview tokenreviews - - - create-only
authorization.k8s.io/v1 LocalSubjectAccessReview localsubjectaccessreviews ns - - create-only
authorization.k8s.io/v1 SelfSubjectAccessReview selfsubjectaccessreviews - - - create-only
authorization.k8s.io/v1 SelfSubjectRulesReview selfsubjectrulesreviews - - - create-only
authorization.k8s.io/v1 SubjectAccessReview subjectaccessreviews - - - create-only
autoscaling/v2 HorizontalPodAutoscaler horizontalpodautoscalers ns status hpa all
batch/v1 CronJob cronjobs ns status cj all
batch/v1 Job jobs ns status - all
coordination.k8s.io/v1 Lease leases ns - - -
discovery.k8s.io/v1 EndpointSlice endpointslices ns - - -
events.k8s.io/v1 Event events ns - ev -
networking.k8s.io/v1 IngressClass ingressclasses - - - -
networking.k8s.io/v1 Ingress ingresses ns status ing -
networking.k8s.io/v1 NetworkPolicy networkpolicies ns - netpol -
policy/v1 PodDisruptionBudget poddisruptionbudgets ns status pdb -
rbac.authorization.k8s.io/v1 ClusterRoleBinding clusterrolebindings - - - -
rbac.authorization.k8s.io/v1 ClusterRole clusterroles - - - -
rbac.authorization.k8s.io/v1 RoleBinding rolebindings ns - - -
rbac.authorization.k8s.io/v1 Role roles ns - - -
scheduling.k8s.io/v1 PriorityClass priorityclasses - - pc -
";

fn builtin() -> Table {
    let words = |text: &str| -> Vec<String> {
        text.split(',')
            .filter(|word| *word != "-")
            .map(str::to_owned)
            .collect()
    };
    BUILTIN
        .lines()
        .filter_map(|line| {
            let [api_version, kind, plural, scope, subresources, short, categories] =
                line.split_whitespace().collect::<Vec<_>>()[..]
            else {
                return None;
            };
            let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
            let create_only = categories == "create-only";
            let verbs = if create_only {
                &ALL_VERBS[..1]
            } else {
                &ALL_VERBS[..]
            };
            let resource = Resource {
                group: group.to_owned(),
                version: version.to_owned(),
                kind: kind.to_owned(),
                list_kind: format!("{kind}List"),
                plural: plural.to_owned(),
                singular: kind.to_lowercase(),
                short_names: words(short),
                categories: if create_only {
                    Vec::new()
                } else {
                    words(categories)
                },
                namespaced: scope == "ns",
                verbs: verbs.iter().map(|verb| (*verb).to_owned()).collect(),
                subresources: words(subresources).into_iter().collect(),
                store: store_id(group, plural),
                selectable: selectable(group, plural)
                    .iter()
                    .map(|field| (*field).to_owned())
                    .collect(),
            };
            Some((
                (group.to_owned(), version.to_owned(), plural.to_owned()),
                Arc::new(resource),
            ))
        })
        .collect()
}

/// Where a resource is stored. Both groups of Events are views of the same objects.
pub(crate) fn store_id(group: &str, plural: &str) -> ResourceId {
    match group {
        "" | "events.k8s.io" => Arc::from(plural),
        _ => Arc::from(format!("{group}/{plural}")),
    }
}

fn selectable(group: &str, plural: &str) -> &'static [&'static str] {
    match (group, plural) {
        ("", "pods") => &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.podIPs",
            "status.nominatedNodeName",
        ],
        ("", "events") => &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ],
        ("events.k8s.io", "events") => &[
            "regarding.kind",
            "regarding.namespace",
            "regarding.name",
            "regarding.uid",
            "regarding.apiVersion",
            "regarding.resourceVersion",
            "regarding.fieldPath",
            "reason",
            "reportingController",
            "type",
        ],
        ("", "secrets") => &["type"],
        ("", "namespaces") => &["status.phase"],
        ("", "nodes") => &["spec.unschedulable"],
        ("", "services") => &["spec.clusterIP", "spec.type"],
        ("", "replicationcontrollers") | ("apps", "replicasets") => &["status.replicas"],
        ("batch", "jobs") => &["status.successful"],
        _ => &[],
    }
}

/// The parts of an object that every kind has.
pub(crate) mod meta {
    use serde_json::Map;

    use super::Value;

    pub(crate) fn text<'a>(object: &'a Value, field: &str) -> &'a str {
        object
            .get("metadata")
            .and_then(|meta| meta.get(field))
            .and_then(Value::as_str)
            .unwrap_or_default()
    }

    pub(crate) fn name(object: &Value) -> &str {
        text(object, "name")
    }

    pub(crate) fn namespace(object: &Value) -> &str {
        text(object, "namespace")
    }

    pub(crate) fn uid(object: &Value) -> &str {
        text(object, "uid")
    }

    pub(crate) fn is_deleting(object: &Value) -> bool {
        !text(object, "deletionTimestamp").is_empty()
    }

    /// `metadata`, made if absent. A non-object is replaced: decoding has refused those before.
    pub(crate) fn of(object: &mut Value) -> &mut Map<String, Value> {
        child(object, "metadata")
    }

    /// A map inside an object, made if absent.
    pub(crate) fn child<'a>(object: &'a mut Value, field: &str) -> &'a mut Map<String, Value> {
        if !object.is_object() {
            *object = Value::Object(Map::new());
        }
        let Value::Object(fields) = object else {
            unreachable!("it was just made an object")
        };
        let child = fields.entry(field).or_insert_with(|| Value::Object(Map::new()));
        if !child.is_object() {
            *child = Value::Object(Map::new());
        }
        let Value::Object(child) = child else {
            unreachable!("it was just made an object")
        };
        child
    }

    /// Sets or, with `None` or null, removes a field.
    pub(crate) fn set(object: &mut Map<String, Value>, field: &str, value: Option<Value>) {
        match value {
            None | Some(Value::Null) => drop(object.remove(field)),
            Some(value) => drop(object.insert(field.to_owned(), value)),
        }
    }

    pub(crate) fn finalizers(object: &Value) -> impl Iterator<Item = &str> {
        object
            .pointer("/metadata/finalizers")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
    }
}
