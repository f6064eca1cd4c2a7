//! Checks of the cluster itself: it answers, is new enough, and would let us install.

use k8s_openapi::api::authorization::v1::SelfSubjectAccessReview;
use k8s_openapi::api::core::v1::Namespace;
use kube::Api;
use kube::api::PostParams;
use serde_json::json;

use super::{Category, Checks, Outcome, Report, bounded};

/// The oldest Kubernetes that still gets fixes when this was written.
const MINOR_MIN: u32 = 30;

impl Checks {
    pub(super) async fn kubernetes_api(&self, category: &mut Category) -> bool {
        let answer = bounded(self.client.apiserver_version()).await;
        category.row(
            "can query the Kubernetes API",
            "k8s-api",
            "kubectl version",
            answer.map(drop).into(),
        )
    }

    pub(super) async fn kubernetes_version(&self, report: &mut Report) -> bool {
        let mut category = Category::new("kubernetes-version");
        let outcome = match bounded(self.client.apiserver_version()).await {
            Ok(info) => is_new_enough(&info.major, &info.minor),
            Err(why) => Outcome::Error(why),
        };
        let passed = category.row(
            "is running the minimum Kubernetes API version",
            "k8s-version",
            "upgrade the cluster",
            outcome,
        );
        report.push(category);
        passed
    }

    pub(super) async fn before_install(&self, report: &mut Report) -> bool {
        let mut category = Category::new("pre-kubernetes-setup");
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let namespace = match bounded(namespaces.get_opt(&self.linkerd)).await {
            Ok(None) => Outcome::fine(),
            Ok(Some(_)) => Outcome::Error(format!("the {:?} namespace already exists", self.linkerd)),
            Err(why) => Outcome::Error(why),
        };
        let mut passed = category.row(
            "control plane namespace does not already exist",
            "pre-ns",
            "hawser check, or another --linkerd-namespace",
            namespace,
        );
        let cluster_wide = [
            ("", "namespaces"),
            ("rbac.authorization.k8s.io", "clusterroles"),
            ("rbac.authorization.k8s.io", "clusterrolebindings"),
            ("apiextensions.k8s.io", "customresourcedefinitions"),
            ("admissionregistration.k8s.io", "mutatingwebhookconfigurations"),
        ];
        let mut missing = Vec::new();
        for (group, resource) in cluster_wide {
            if let Err(why) = self.may("create", group, resource, None).await {
                missing.push(why);
            }
        }
        passed &= category.row(
            "can create non-namespaced resources",
            "pre-k8s-cluster-k8s",
            "use a context of a cluster administrator",
            Outcome::none("missing permissions", missing),
        );
        for (description, verb, group, resource) in [
            ("can create ServiceAccounts", "create", "", "serviceaccounts"),
            ("can create Services", "create", "", "services"),
            ("can create Deployments", "create", "apps", "deployments"),
            ("can create ConfigMaps", "create", "", "configmaps"),
            ("can create Secrets", "create", "", "secrets"),
            ("can read Secrets", "get", "", "secrets"),
        ] {
            let allowed = self.may(verb, group, resource, Some(&self.linkerd)).await;
            passed &= category.row(
                description,
                "pre-k8s",
                "use a context of a cluster administrator",
                allowed.into(),
            );
        }
        report.push(category);
        passed
    }

    async fn may(
        &self,
        verb: &str,
        group: &str,
        resource: &str,
        namespace: Option<&str>,
    ) -> Result<(), String> {
        let review: SelfSubjectAccessReview = serde_json::from_value(json!({
            "metadata": {},
            "spec": {"resourceAttributes": {"verb": verb, "group": group, "resource": resource, "namespace": namespace}},
        }))
        .map_err(|error| error.to_string())?;
        let reviews: Api<SelfSubjectAccessReview> = Api::all(self.client.clone());
        let answer = bounded(reviews.create(&PostParams::default(), &review)).await?;
        if answer.status.is_some_and(|status| status.allowed) {
            return Ok(());
        }
        Err(format!("not allowed to {verb} {resource}"))
    }
}

/// Providers append to the minor version: `31+`.
fn is_new_enough(major: &str, minor: &str) -> Outcome {
    let number = |text: &str| -> Option<u32> {
        let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        text[..end].parse().ok()
    };
    match (number(major), number(minor)) {
        (Some(1), Some(minor)) if minor < MINOR_MIN => {
            Outcome::Error(format!("it is 1.{minor}, at least 1.{MINOR_MIN} is needed"))
        }
        (Some(_), Some(_)) => Outcome::fine(),
        _ => Outcome::Warning(format!(
            "its version {major:?}.{minor:?} is not one that is known"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers_whatever_providers_append() {
        for version in ["30", "33+", "100"] {
            assert_eq!(is_new_enough("1", version), Outcome::fine(), "{version}");
        }
        assert!(is_new_enough("1", "9").is_error());
        assert!(is_new_enough("1", "29+").is_error());
        assert!(matches!(is_new_enough("", "x"), Outcome::Warning(_)));
    }
}
