//! The built-in resources as discovery announces them: names, scope, verbs and subresources.
//!
//! Facts only. Which of them behave specially is the API server's business.

/// One resource of the API, such as `deployments` in `apps/v1`.
#[derive(Debug, PartialEq, Eq)]
pub struct ResourceType {
    /// Empty for the core group.
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub list_kind: &'static str,
    pub plural: &'static str,
    pub singular: &'static str,
    pub short_names: &'static [&'static str],
    pub categories: &'static [&'static str],
    pub namespaced: bool,
    pub verbs: &'static [&'static str],
    pub subresources: &'static [Subresource],
}

impl ResourceType {
    /// `apps/v1`, or `v1` for the core group.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources
            .iter()
            .find(|subresource| subresource.name == name)
    }
}

/// The kind that a subresource takes and gives may live in another group (`Scale` in `autoscaling/v1`).
#[derive(Debug, PartialEq, Eq)]
pub struct Subresource {
    pub name: &'static str,
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub verbs: &'static [&'static str],
}

#[derive(Debug)]
pub struct Registry(&'static [ResourceType]);

impl Registry {
    pub fn resources(&self) -> impl Iterator<Item = &'static ResourceType> + use<> {
        self.0.iter()
    }

    pub fn resource(&self, group: &str, version: &str, plural: &str) -> Option<&'static ResourceType> {
        self.resources()
            .find(|it| it.group == group && it.version == version && it.plural == plural)
    }

    pub fn kind(&self, group: &str, version: &str, kind: &str) -> Option<&'static ResourceType> {
        self.resources()
            .find(|it| it.group == group && it.version == version && it.kind == kind)
    }
}

/// In the order in which discovery lists groups.
pub fn builtin() -> &'static Registry {
    static BUILTIN: Registry = Registry(RESOURCES);
    &BUILTIN
}

const ALL: &[&str] = &[
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];
const NO_COLLECTION: &[&str] = &["create", "delete", "get", "list", "patch", "update", "watch"];
const CREATE: &[&str] = &["create"];
const STATUS: &[&str] = &["get", "patch", "update"];

macro_rules! resource {
    (
        $group:literal $version:literal $kind:literal $plural:literal $singular:literal $scope:ident
        $(short $short:tt)? $(in $categories:tt)? $(can $verbs:ident)? $(, [$($sub:expr),* $(,)?])?
    ) => {
        ResourceType {
            group: $group,
            version: $version,
            kind: $kind,
            list_kind: concat!($kind, "List"),
            plural: $plural,
            singular: $singular,
            short_names: resource!(@or $(&$short)?, &[]),
            categories: resource!(@or $(&$categories)?, &[]),
            namespaced: resource!(@$scope),
            verbs: resource!(@or $($verbs)?, ALL),
            subresources: resource!(@or $(&[$($sub),*])?, &[]),
        }
    };
    (@or $given:expr, $default:expr) => { $given };
    (@or , $default:expr) => { $default };
    (@namespaced) => { true };
    (@cluster) => { false };
}

const fn subresource(
    name: &'static str,
    (group, version, kind): (&'static str, &'static str, &'static str),
    verbs: &'static [&'static str],
) -> Subresource {
    Subresource {
        name,
        group,
        version,
        kind,
        verbs,
    }
}

const fn status(group: &'static str, version: &'static str, kind: &'static str) -> Subresource {
    subresource("status", (group, version, kind), STATUS)
}

const SCALE: Subresource = subresource("scale", ("autoscaling", "v1", "Scale"), STATUS);
const PROXY: &[&str] = &["create", "delete", "get", "patch", "update"];
const STREAM: &[&str] = &["create", "get"];

#[rustfmt::skip]
static RESOURCES: &[ResourceType] = &[
    resource!("" "v1" "Binding" "bindings" "binding" namespaced can CREATE),
    resource!("" "v1" "ConfigMap" "configmaps" "configmap" namespaced short ["cm"]),
    resource!("" "v1" "Endpoints" "endpoints" "endpoints" namespaced short ["ep"]),
    resource!("" "v1" "Event" "events" "event" namespaced short ["ev"]),
    resource!("" "v1" "LimitRange" "limitranges" "limitrange" namespaced short ["limits"]),
    resource!("" "v1" "Namespace" "namespaces" "namespace" cluster short ["ns"] can NO_COLLECTION, [
        subresource("finalize", ("", "v1", "Namespace"), &["update"]),
        status("", "v1", "Namespace"),
    ]),
    resource!("" "v1" "Node" "nodes" "node" cluster short ["no"], [
        subresource("proxy", ("", "v1", "NodeProxyOptions"), PROXY),
        status("", "v1", "Node"),
    ]),
    resource!("" "v1" "PersistentVolumeClaim" "persistentvolumeclaims" "persistentvolumeclaim" namespaced short ["pvc"], [
        status("", "v1", "PersistentVolumeClaim"),
    ]),
    resource!("" "v1" "Pod" "pods" "pod" namespaced short ["po"] in ["all"], [
        subresource("attach", ("", "v1", "PodAttachOptions"), STREAM),
        subresource("binding", ("", "v1", "Binding"), CREATE),
        subresource("ephemeralcontainers", ("", "v1", "Pod"), STATUS),
        subresource("eviction", ("policy", "v1", "Eviction"), CREATE),
        subresource("exec", ("", "v1", "PodExecOptions"), STREAM),
        subresource("log", ("", "v1", "Pod"), &["get"]),
        subresource("portforward", ("", "v1", "PodPortForwardOptions"), STREAM),
        subresource("proxy", ("", "v1", "PodProxyOptions"), PROXY),
        status("", "v1", "Pod"),
    ]),
    resource!("" "v1" "ResourceQuota" "resourcequotas" "resourcequota" namespaced short ["quota"], [
        status("", "v1", "ResourceQuota"),
    ]),
    resource!("" "v1" "Secret" "secrets" "secret" namespaced),
    resource!("" "v1" "ServiceAccount" "serviceaccounts" "serviceaccount" namespaced short ["sa"], [
        subresource("token", ("authentication.k8s.io", "v1", "TokenRequest"), CREATE),
    ]),
    resource!("" "v1" "Service" "services" "service" namespaced short ["svc"] in ["all"], [
        subresource("proxy", ("", "v1", "ServiceProxyOptions"), PROXY),
        status("", "v1", "Service"),
    ]),
    resource!("apiregistration.k8s.io" "v1" "APIService" "apiservices" "apiservice" cluster in ["api-extensions"], [
        status("apiregistration.k8s.io", "v1", "APIService"),
    ]),
    resource!("apps" "v1" "ControllerRevision" "controllerrevisions" "controllerrevision" namespaced),
    resource!("apps" "v1" "DaemonSet" "daemonsets" "daemonset" namespaced short ["ds"] in ["all"], [
        status("apps", "v1", "DaemonSet"),
    ]),
    resource!("apps" "v1" "Deployment" "deployments" "deployment" namespaced short ["deploy"] in ["all"], [
        SCALE,
        status("apps", "v1", "Deployment"),
    ]),
    resource!("apps" "v1" "ReplicaSet" "replicasets" "replicaset" namespaced short ["rs"] in ["all"], [
        SCALE,
        status("apps", "v1", "ReplicaSet"),
    ]),
    resource!("apps" "v1" "StatefulSet" "statefulsets" "statefulset" namespaced short ["sts"] in ["all"], [
        SCALE,
        status("apps", "v1", "StatefulSet"),
    ]),
    resource!("events.k8s.io" "v1" "Event" "events" "event" namespaced short ["ev"]),
    resource!("authentication.k8s.io" "v1" "SelfSubjectReview" "selfsubjectreviews" "selfsubjectreview" cluster can CREATE),
    resource!("authentication.k8s.io" "v1" "TokenReview" "tokenreviews" "tokenreview" cluster can CREATE),
    resource!("authorization.k8s.io" "v1" "LocalSubjectAccessReview" "localsubjectaccessreviews" "localsubjectaccessreview" namespaced can CREATE),
    resource!("authorization.k8s.io" "v1" "SelfSubjectAccessReview" "selfsubjectaccessreviews" "selfsubjectaccessreview" cluster can CREATE),
    resource!("authorization.k8s.io" "v1" "SelfSubjectRulesReview" "selfsubjectrulesreviews" "selfsubjectrulesreview" cluster can CREATE),
    resource!("authorization.k8s.io" "v1" "SubjectAccessReview" "subjectaccessreviews" "subjectaccessreview" cluster can CREATE),
    resource!("batch" "v1" "CronJob" "cronjobs" "cronjob" namespaced short ["cj"] in ["all"], [
        status("batch", "v1", "CronJob"),
    ]),
    resource!("batch" "v1" "Job" "jobs" "job" namespaced in ["all"], [
        status("batch", "v1", "Job"),
    ]),
    resource!("networking.k8s.io" "v1" "IngressClass" "ingressclasses" "ingressclass" cluster),
    resource!("networking.k8s.io" "v1" "Ingress" "ingresses" "ingress" namespaced short ["ing"], [
        status("networking.k8s.io", "v1", "Ingress"),
    ]),
    resource!("networking.k8s.io" "v1" "NetworkPolicy" "networkpolicies" "networkpolicy" namespaced short ["netpol"]),
    resource!("policy" "v1" "PodDisruptionBudget" "poddisruptionbudgets" "poddisruptionbudget" namespaced short ["pdb"], [
        status("policy", "v1", "PodDisruptionBudget"),
    ]),
    resource!("rbac.authorization.k8s.io" "v1" "ClusterRoleBinding" "clusterrolebindings" "clusterrolebinding" cluster),
    resource!("rbac.authorization.k8s.io" "v1" "ClusterRole" "clusterroles" "clusterrole" cluster),
    resource!("rbac.authorization.k8s.io" "v1" "RoleBinding" "rolebindings" "rolebinding" namespaced),
    resource!("rbac.authorization.k8s.io" "v1" "Role" "roles" "role" namespaced),
    resource!("storage.k8s.io" "v1" "StorageClass" "storageclasses" "storageclass" cluster short ["sc"]),
    resource!("admissionregistration.k8s.io" "v1" "MutatingWebhookConfiguration" "mutatingwebhookconfigurations" "mutatingwebhookconfiguration" cluster in ["api-extensions"]),
    resource!("admissionregistration.k8s.io" "v1" "ValidatingWebhookConfiguration" "validatingwebhookconfigurations" "validatingwebhookconfiguration" cluster in ["api-extensions"]),
    resource!("apiextensions.k8s.io" "v1" "CustomResourceDefinition" "customresourcedefinitions" "customresourcedefinition" cluster short ["crd", "crds"] in ["api-extensions"], [
        status("apiextensions.k8s.io", "v1", "CustomResourceDefinition"),
    ]),
    resource!("scheduling.k8s.io" "v1" "PriorityClass" "priorityclasses" "priorityclass" cluster short ["pc"]),
    resource!("coordination.k8s.io" "v1" "Lease" "leases" "lease" namespaced),
    resource!("discovery.k8s.io" "v1" "EndpointSlice" "endpointslices" "endpointslice" namespaced),
];

#[cfg(test)]
mod tests {
    use super::super::Schema;
    use super::*;

    #[test]
    fn every_stored_resource_has_a_schema() {
        for it in builtin().resources() {
            assert!(
                Schema::for_kind(it.group, it.version, it.kind).is_some(),
                "{} has no schema",
                it.kind
            );
            assert_eq!(it.list_kind, format!("{}List", it.kind));
        }
    }
}
