//! What becomes of Linkerd's objects under Hawser, and in which steps: a pure function of what was observed.
//!
//! The control plane is replaced in Linkerd's own namespace, because that is part of every identity: proxies of both
//! kinds then have the same names, the same anchors and one control plane, whose answers are Linkerd's proxy API.
//! Nothing here knows a cluster.

use std::collections::{BTreeMap, BTreeSet};

use hawser_control::values::{TLS_SCHEME, Values};
use hawser_tls::TrustAnchors;
use serde::Serialize;
use serde_json::Value;

use super::observe::{Objects, title, titles};
use crate::install::manifests::{Mesh, render};
use crate::meshed::{COMPONENT, MESHED};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    /// Works as it is.
    Kept,
    /// Has the same purpose afterwards, but not the same form.
    Changed,
    /// Has no effect afterwards.
    Unsupported,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    pub(super) verdict: Verdict,
    pub(super) subject: String,
    pub(super) why: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Step {
    pub(super) title: String,
    pub(super) commands: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Plan {
    /// Of Linkerd, as its configuration says.
    pub(super) version: String,
    pub(super) findings: Vec<Finding>,
    pub(super) steps: Vec<Step>,
    /// For `hawser install --values`.
    pub(super) values: Value,
}

/// Why there is nothing to plan.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("namespace {0} has no ConfigMap linkerd-config")]
    NoMesh(String),
    #[error("the control plane in namespace {0} is Hawser's already")]
    Ours(String),
    #[error("the values in ConfigMap linkerd-config: {0}")]
    Values(String),
}

/// So many names are shown; all are in the objects themselves.
const NAMED_MAX: usize = 6;
/// Settings of single pods that our proxy doesn't have. Source: `spec/proxy.md` 9.4.
const UNREAD_ANNOTATIONS: [&str; 3] = [
    "proxy-cpu-ratio-limit",
    "proxy-log-http-headers",
    "proxy-metrics-hostname-labels",
];
/// Kinds that are read, and what they are for.
const READ: [(&str, &str); 11] = [
    ("Server", "policies"),
    ("ServerAuthorization", "policies"),
    ("AuthorizationPolicy", "policies"),
    ("MeshTLSAuthentication", "policies: identities keep their names"),
    ("NetworkAuthentication", "policies"),
    ("HTTPRoute.policy.linkerd.io", "routes"),
    ("HTTPRoute", "routes"),
    ("GRPCRoute", "routes"),
    (
        "TrafficSplit",
        "read by the control plane itself, without an extension",
    ),
    ("Exported", "services for other clusters"),
    ("Federated", "members of federated services"),
];
/// Kinds that nobody reads afterwards, and what to do instead.
const UNREAD: [(&str, &str); 6] = [
    (
        "ServiceProfile",
        "kept but not read: make HTTPRoutes with retry and timeout annotations of them, and TrafficSplits of dstOverrides",
    ),
    ("HTTPLocalRateLimitPolicy", "no request is limited"),
    (
        "EgressNetwork",
        "traffic to other networks passes, without a policy",
    ),
    ("ExternalWorkload", "machines outside of the cluster can't join"),
    (
        "TLSRoute",
        "connections go to the Service as if there were no route",
    ),
    (
        "TCPRoute",
        "connections go to the Service as if there were no route",
    ),
];

pub(super) fn plan(objects: &Objects, linkerd: &str) -> Result<Plan, Refusal> {
    let seen = Seen { objects, linkerd };
    let Some(config) = seen.of("linkerd-config").first() else {
        return Err(Refusal::NoMesh(linkerd.to_owned()));
    };
    let text = config["data"]["values"].as_str().unwrap_or_default();
    let tree = hawser_control::values::yaml(text).map_err(|error| Refusal::Values(error.to_string()))?;
    let version = tree["linkerdVersion"].as_str().unwrap_or("unknown").to_owned();
    // A value that Linkerd doesn't have, and that we always write.
    if tree["gatewayExports"].is_object() {
        return Err(Refusal::Ours(linkerd.to_owned()));
    }
    let (theirs, unknown) =
        Values::with_overrides(tree).map_err(|error| Refusal::Values(error.to_string()))?;
    let values = without_their_own(&theirs);
    let mut findings = seen.trust(&theirs);
    findings.extend(seen.values(unknown));
    findings.extend(seen.control_plane(&values));
    findings.extend(seen.kinds());
    findings.extend(seen.annotations());
    findings.extend(seen.links());
    findings.extend(seen.extensions());
    findings.extend(seen.workloads());
    findings.sort_by_key(|finding| finding.verdict);
    let steps = seen.steps(
        &values,
        findings
            .iter()
            .any(|finding| finding.verdict == Verdict::Unsupported),
    );
    Ok(Plan {
        version,
        findings,
        steps,
        values: values.overrides(),
    })
}

/// The settings that hold for our programs as well: not images and versions, and no credentials.
fn without_their_own(theirs: &Values) -> Values {
    let plain = Values::default();
    let mut values = theirs.clone();
    values.linkerd_version = plain.linkerd_version;
    values.controller_image = plain.controller_image;
    values.controller_image_version = plain.controller_image_version;
    values.proxy.image = plain.proxy.image;
    values.proxy_init.image = plain.proxy_init.image;
    values.debug_container = plain.debug_container;
    values.identity_trust_anchors_pem = String::new();
    values.identity.issuer.tls = plain.identity.issuer.tls;
    values.proxy_injector = hawser_control::values::ProxyInjector {
        timeout_seconds: values.proxy_injector.timeout_seconds,
        ..plain.proxy_injector
    };
    values
}

fn finding(verdict: Verdict, subject: impl Into<String>, why: impl Into<String>) -> Finding {
    Finding {
        verdict,
        subject: subject.into(),
        why: why.into(),
    }
}

/// Names, of which so many are shown.
fn names(all: &BTreeSet<String>) -> String {
    let shown: Vec<&str> = all.iter().take(NAMED_MAX).map(String::as_str).collect();
    let more = all.len().saturating_sub(NAMED_MAX);
    match more {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

struct Seen<'a> {
    objects: &'a Objects,
    linkerd: &'a str,
}

impl Seen<'_> {
    fn of(&self, kind: &str) -> &[Value] {
        self.objects.get(kind).map_or(&[], Vec::as_slice)
    }

    fn trust(&self, theirs: &Values) -> Vec<Finding> {
        let stored = self.of("linkerd-identity-trust-roots").first();
        let bundle = stored.and_then(|map| map["data"]["ca-bundle.crt"].as_str());
        let bundle = bundle.unwrap_or(&theirs.identity_trust_anchors_pem);
        let roots = match TrustAnchors::from_pem(bundle) {
            Ok(_) => finding(
                Verdict::Kept,
                "trust anchors",
                "proxies of both kinds believe the same roots, and so do linked clusters",
            ),
            Err(error) => finding(Verdict::Unsupported, "trust anchors", error.to_string()),
        };
        let issuer = if theirs.issuer_is_external() {
            "its Secret is kept by someone else, such as cert-manager, and followed"
        } else {
            "its certificate and key are handed over; a key that isn't ECDSA P-256 is refused when you render"
        };
        vec![roots, finding(Verdict::Kept, "identity issuer", issuer)]
    }

    fn values(&self, unknown: Vec<String>) -> Vec<Finding> {
        let mut findings = vec![finding(
            Verdict::Kept,
            "values",
            "those that have a meaning here: hawser migrate --dry-run -o values",
        )];
        let unknown: BTreeSet<String> = unknown.into_iter().collect();
        if !unknown.is_empty() {
            findings.push(finding(
                Verdict::Changed,
                format!("{} values", unknown.len()),
                format!("not used: {}", names(&unknown)),
            ));
        }
        findings
    }

    fn control_plane(&self, values: &Values) -> Vec<Finding> {
        let mut findings = vec![finding(
            Verdict::Changed,
            "control plane",
            format!(
                "replaced in namespace {}, which is part of every identity",
                self.linkerd
            ),
        )];
        let stuck = self.stuck(values);
        if !stuck.is_empty() {
            findings.push(finding(
                Verdict::Changed,
                format!("Deployments {}", names(&stuck)),
                "their selectors can't be changed: deleted without their pods, which the new ones adopt and replace",
            ));
        }
        let webhooks = titles(self.of("ValidatingWebhook"));
        if !webhooks.is_empty() {
            findings.push(finding(
                Verdict::Changed,
                format!("validating webhooks {}", names(&webhooks)),
                "deleted: the resource types check what is written, and nobody would answer",
            ));
        }
        let jobs = titles(self.of("CronJob"));
        if !jobs.is_empty() {
            findings.push(finding(
                Verdict::Changed,
                format!("CronJobs {}", names(&jobs)),
                "deleted: nothing is reported to anybody",
            ));
        }
        if self.helm() {
            findings.push(finding(
                Verdict::Changed,
                "Helm release",
                "forgotten without deleting its objects, so that Helm doesn't bring them back",
            ));
        }
        if values.cni_enabled {
            findings.push(finding(
                Verdict::Kept,
                "CNI plugin",
                "Linkerd's goes on redirecting; pods only check that it did",
            ));
        }
        findings
    }

    /// Deployments that `apply` can't turn into ours.
    fn stuck(&self, values: &Values) -> BTreeSet<String> {
        let rendered = render(&Mesh::new(values.clone(), self.linkerd));
        let ours: BTreeMap<String, &Value> = rendered
            .iter()
            .filter(|object| object["kind"] == "Deployment")
            .map(|object| (title(object), object))
            .collect();
        let differs = |theirs: &&Value| {
            ours.get(&title(theirs))
                .is_some_and(|ours| ours["spec"]["selector"] != theirs["spec"]["selector"])
        };
        titles(self.of("Deployment").iter().filter(differs))
    }

    fn helm(&self) -> bool {
        let is_release = |secret: &Value| secret["metadata"]["labels"]["owner"] == "helm";
        self.of("Secret").iter().any(is_release)
    }

    fn kinds(&self) -> Vec<Finding> {
        let about = |(kind, why): (&'static str, &'static str), verdict| {
            let found = titles(self.of(kind));
            let subject = match kind {
                "Exported" => "exported Services".to_owned(),
                "Federated" => "federated Services".to_owned(),
                kind => format!("{kind}s"),
            };
            (!found.is_empty()).then(|| finding(verdict, format!("{subject} {}", names(&found)), why))
        };
        let read = READ.into_iter().filter_map(|kind| about(kind, Verdict::Kept));
        let unread = UNREAD
            .into_iter()
            .filter_map(|kind| about(kind, Verdict::Unsupported));
        read.chain(unread).collect()
    }

    fn annotations(&self) -> Vec<Finding> {
        let mut carriers: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
        for object in self.of("Namespace").iter().chain(self.of("Pod")) {
            for name in object["metadata"]["annotations"]
                .as_object()
                .into_iter()
                .flatten()
            {
                let setting = name
                    .0
                    .split_once(".linkerd.io/")
                    .filter(|(prefix, _)| prefix.starts_with("config"));
                if let Some(unread) =
                    setting.and_then(|(_, name)| UNREAD_ANNOTATIONS.iter().find(|known| **known == name))
                {
                    carriers.entry(unread).or_default().insert(title(object));
                }
            }
        }
        let about = |(name, who): (&str, BTreeSet<String>)| {
            finding(
                Verdict::Unsupported,
                format!("annotation config.linkerd.io/{name}"),
                format!("not used; on {}", names(&who)),
            )
        };
        carriers.into_iter().map(about).collect()
    }

    fn links(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        let links = titles(self.of("Link"));
        if !links.is_empty() {
            findings.push(finding(
                Verdict::Kept,
                format!("Links {}", names(&links)),
                "with their credentials; the other clusters may stay with Linkerd, as long as all believe the same roots",
            ));
            findings.push(finding(
                Verdict::Changed,
                "controllers of Links",
                "those that Links have now are replaced by entries in the extension's controllers",
            ));
        }
        let mirrors = titles(self.of("Mirror"));
        if !mirrors.is_empty() {
            findings.push(finding(
                Verdict::Kept,
                format!("{} mirrored Services", mirrors.len()),
                "taken over by their labels, never made anew",
            ));
        }
        if self.extension("multicluster") {
            findings.push(finding(
                Verdict::Changed,
                "gateway",
                "hands out exported Services only; gatewayExports.unrestricted=true hands out all, as Linkerd's does",
            ));
        }
        findings
    }

    /// Is there a namespace of this extension?
    fn extension(&self, name: &str) -> bool {
        self.extensions_seen()
            .iter()
            .any(|(seen, _)| seen.trim_start_matches("linkerd-") == name)
    }

    /// Extension and namespace.
    fn extensions_seen(&self) -> BTreeSet<(String, String)> {
        let labelled = self.of("Namespace").iter().filter_map(|namespace| {
            let extension = namespace["metadata"]["labels"]["linkerd.io/extension"].as_str()?;
            Some((extension.to_owned(), title(namespace)))
        });
        labelled.collect()
    }

    fn extensions(&self) -> Vec<Finding> {
        let about = |(extension, namespace): (String, String)| {
            let (verdict, why) = match extension.trim_start_matches("linkerd-") {
                "multicluster" => (
                    Verdict::Changed,
                    "replaced in place: gateway, access for other clusters, controllers",
                ),
                "viz" => (
                    Verdict::Changed,
                    "replaced: hawser viz has no Prometheus of its own (prometheus-config holds a scrape configuration with \
                     Linkerd's labels), and `linkerd viz tap` is `hawser viz tap`",
                ),
                "failover" => (
                    Verdict::Changed,
                    "replaced: TrafficSplits and their annotations stay",
                ),
                "smi" => (
                    Verdict::Changed,
                    "not needed: TrafficSplits are read by the control plane",
                ),
                "jaeger" => (Verdict::Unsupported, "set proxy.tracing instead: docs/viz.md"),
                _ => (Verdict::Unsupported, "unknown here"),
            };
            finding(
                verdict,
                format!("extension {extension} in namespace {namespace}"),
                why,
            )
        };
        self.extensions_seen().into_iter().map(about).collect()
    }

    /// Namespaces whose pods have a proxy, apart from the mesh's own, with the number of those pods.
    fn meshed(&self) -> BTreeMap<String, usize> {
        let extensions = self.extensions_seen();
        let is_ours = |namespace: &str| {
            namespace == self.linkerd
                || extensions
                    .iter()
                    .any(|(_, of_extension)| of_extension == namespace)
        };
        let mut counts = BTreeMap::new();
        for pod in self.of("Pod") {
            let namespace = pod["metadata"]["namespace"].as_str().unwrap_or_default();
            let labels = &pod["metadata"]["labels"];
            if labels[MESHED] == self.linkerd && labels[COMPONENT].is_null() && !is_ours(namespace) {
                *counts.entry(namespace.to_owned()).or_default() += 1;
            }
        }
        counts
    }

    fn workloads(&self) -> Vec<Finding> {
        let mut findings: Vec<Finding> = self
            .meshed()
            .into_iter()
            .map(|(namespace, pods)| {
                finding(
                    Verdict::Changed,
                    format!("{pods} pods of namespace {namespace}"),
                    "keep Linkerd's proxies until they are restarted, and get ours then",
                )
            })
            .collect();
        let alone = self.of("Pod").iter().filter(|pod| {
            let owners = pod["metadata"]["ownerReferences"].as_array();
            pod["metadata"]["labels"][MESHED] == self.linkerd && owners.is_none_or(Vec::is_empty)
        });
        let alone = titles(alone);
        if !alone.is_empty() {
            findings.push(finding(
                Verdict::Changed,
                format!("Pods {}", names(&alone)),
                "belong to no workload that could be restarted: delete them and make them anew",
            ));
        }
        findings
    }

    fn steps(&self, values: &Values, has_unsupported: bool) -> Vec<Step> {
        let linkerd = self.linkerd;
        let mut steps = Vec::new();
        let mut step = |title: &str, commands: Vec<String>| {
            steps.push(Step {
                title: title.to_owned(),
                commands,
            });
        };
        if has_unsupported {
            step(
                "replace what is not supported, or decide to do without it",
                vec![],
            );
        }
        let mut kept = vec![
            "hawser migrate --dry-run -o values > values.yaml".to_owned(),
            format!(
                "kubectl -n {linkerd} get configmap linkerd-identity-trust-roots -o 'jsonpath={{.data.ca-bundle\\.crt}}' > roots.crt"
            ),
        ];
        let external = values.issuer_is_external();
        if !external {
            for (entry, file) in [("crt", "issuer.crt"), ("key", "issuer.key")] {
                kept.push(format!(
                    "kubectl -n {linkerd} get secret linkerd-identity-issuer -o 'jsonpath={{.data.{entry}\\.pem}}' | base64 -d > {file}"
                ));
            }
        }
        kept.push(format!(
            "kubectl -n {linkerd} get all,configmaps,secrets,roles,rolebindings -o yaml > before.yaml"
        ));
        step(
            "keep what the new control plane needs, and a way back (files with keys: delete them afterwards)",
            kept,
        );
        let mut install =
            "hawser install --values values.yaml --identity-trust-anchors-file roots.crt".to_owned();
        if linkerd != hawser_crd::keys::CONTROL_PLANE_NAMESPACE {
            install.push_str(&format!(" -L {linkerd}"));
        }
        if external {
            if values.identity.issuer.scheme == TLS_SCHEME {
                install.push_str(" --identity-external-issuer");
            }
        } else {
            install.push_str(
                " --identity-issuer-certificate-file issuer.crt --identity-issuer-key-file issuer.key",
            );
        }
        step(
            "read what will be installed",
            vec![
                format!("{install} > mesh.yaml"),
                "kubectl diff -f mesh.yaml".to_owned(),
            ],
        );
        let mut replace = Vec::new();
        let listed = |kind: &str| titles(self.of(kind)).into_iter().collect::<Vec<_>>();
        let webhooks = listed("ValidatingWebhook");
        if !webhooks.is_empty() {
            replace.push(format!(
                "kubectl delete validatingwebhookconfiguration {}",
                webhooks.join(" ")
            ));
        }
        for job in listed("CronJob") {
            let name = job.rsplit('/').next().unwrap_or_default().to_owned();
            replace.push(format!("kubectl -n {linkerd} delete cronjob {name}"));
        }
        if self.helm() {
            replace.push(format!("kubectl -n {linkerd} delete secret -l owner=helm"));
        }
        let stuck: Vec<String> = self
            .stuck(values)
            .iter()
            .map(|name| name.rsplit('/').next().unwrap_or_default().to_owned())
            .collect();
        if !stuck.is_empty() {
            replace.push(format!(
                "kubectl -n {linkerd} delete deployment {} --cascade=orphan",
                stuck.join(" ")
            ));
        }
        replace.push("kubectl apply -f mesh.yaml".to_owned());
        replace.push("hawser check".to_owned());
        step(
            "replace the control plane; running proxies go on and ask the new one",
            replace,
        );
        for (namespace, _) in self.meshed() {
            step(
                &format!("give the pods of {namespace} new proxies; go on when their traffic is well"),
                vec![
                    format!("kubectl -n {namespace} rollout restart deployment,statefulset,daemonset"),
                    format!("hawser check --proxy -n {namespace}"),
                ],
            );
        }
        for (extension, namespace) in self.extensions_seen() {
            match extension.trim_start_matches("linkerd-") {
                "multicluster" => step(
                    "replace the multicluster extension",
                    self.multicluster(&namespace),
                ),
                "viz" => step(
                    "replace viz",
                    vec![
                        "linkerd viz uninstall | kubectl delete -f -".to_owned(),
                        "hawser viz install | kubectl apply -f -".to_owned(),
                    ],
                ),
                "failover" => step(
                    "replace failover",
                    vec![
                        format!("kubectl -n {namespace} delete deployment linkerd-failover"),
                        "hawser failover install | kubectl apply -f -".to_owned(),
                        "hawser failover status".to_owned(),
                    ],
                ),
                _ => {}
            }
        }
        step(
            "look for what is left of Linkerd, and delete it",
            vec![
                "hawser prune | kubectl delete -f -".to_owned(),
                "hawser check --proxy".to_owned(),
            ],
        );
        steps
    }

    fn multicluster(&self, namespace: &str) -> Vec<String> {
        let mut commands = Vec::new();
        let theirs = self.of("Deployment").iter().filter(|deployment| {
            let metadata = &deployment["metadata"];
            metadata["namespace"] == namespace && metadata["name"] != hawser_crd::keys::GATEWAY_NAME
        });
        let controllers: Vec<String> = theirs
            .filter_map(|deployment| deployment["metadata"]["name"].as_str())
            .map(str::to_owned)
            .collect();
        if !controllers.is_empty() {
            // Mirrors stay as they are until the next controllers run.
            commands.push(format!(
                "kubectl -n {namespace} delete deployment {}",
                controllers.join(" ")
            ));
        }
        let links: Vec<String> = self
            .of("Link")
            .iter()
            .filter_map(|link| link["metadata"]["name"].as_str())
            .enumerate()
            .map(|(at, link)| format!(" --set 'controllers[{at}].link.ref.name={link}'"))
            .collect();
        commands.push(format!(
            "hawser multicluster install{} | kubectl apply -f -",
            links.concat()
        ));
        commands.push("hawser multicluster check".to_owned());
        commands
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn root() -> String {
        let now = std::time::SystemTime::now();
        let validity = hawser_tls::Validity {
            not_before: now,
            not_after: now + std::time::Duration::from_secs(3_600),
        };
        hawser_tls::create_root("root.test", validity)
            .unwrap()
            .certificate_pem
    }

    /// Linkerd as its chart installs it, as far as it matters here.
    fn linkerd() -> Objects {
        let values = json!({
            "linkerdVersion": "edge-25.1.1", "controllerImage": "cr.l5d.io/linkerd/controller",
            "controllerReplicas": 3, "heartbeatSchedule": "0 0 * * *",
            "proxy": {"image": {"name": "cr.l5d.io/linkerd/proxy", "version": "edge-25.1.1"}, "logLevel": "debug"},
            "identityTrustDomain": "example.org",
        });
        let map = |name: &str, key: &str, text: String| json!({"metadata": {"name": name, "namespace": "linkerd"}, "data": {key: text}});
        let selector = json!({"matchLabels": {
            "linkerd.io/control-plane-component": "destination", "linkerd.io/control-plane-ns": "linkerd",
            "linkerd.io/proxy-deployment": "linkerd-destination",
        }});
        let mut objects = Objects::from([
            (
                "linkerd-config",
                vec![map("linkerd-config", "values", values.to_string())],
            ),
            (
                "linkerd-identity-trust-roots",
                vec![map("linkerd-identity-trust-roots", "ca-bundle.crt", root())],
            ),
            (
                "Deployment",
                vec![json!({
                    "metadata": {"name": "linkerd-destination", "namespace": "linkerd"}, "spec": {"selector": selector},
                })],
            ),
        ]);
        objects.insert(
            "Pod",
            vec![
                pod("emojivoto", "web-1"),
                pod("emojivoto", "web-2"),
                pod("books", "a-1"),
            ],
        );
        objects
    }

    fn pod(namespace: &str, name: &str) -> Value {
        json!({"metadata": {
            "namespace": namespace, "name": name, "labels": {"linkerd.io/control-plane-ns": "linkerd"},
            "ownerReferences": [{"kind": "ReplicaSet"}],
        }})
    }

    fn named(namespace: &str, name: &str) -> Value {
        json!({"metadata": {"namespace": namespace, "name": name}})
    }

    #[track_caller]
    fn check(objects: &Objects) -> Plan {
        plan(objects, "linkerd").unwrap()
    }

    fn verdict(plan: &Plan, subject: &str) -> Option<Verdict> {
        let found = plan
            .findings
            .iter()
            .find(|finding| finding.subject.starts_with(subject));
        found.map(|finding| finding.verdict)
    }

    fn commands(plan: &Plan) -> String {
        plan.steps
            .iter()
            .flat_map(|step| step.commands.clone())
            .collect::<Vec<_>>()
            .join("\n")
    }

    #[test]
    fn settings_are_kept_but_not_images_versions_and_what_has_no_meaning() {
        let plan = check(&linkerd());
        assert_eq!(plan.version, "edge-25.1.1");
        assert_eq!(
            plan.values,
            json!({"controllerReplicas": 3, "identityTrustDomain": "example.org", "proxy": {"logLevel": "debug"}})
        );
        let unused = plan
            .findings
            .iter()
            .find(|finding| finding.subject == "1 values")
            .unwrap();
        assert_eq!(unused.why, "not used: heartbeatSchedule");
        assert_eq!(verdict(&plan, "trust anchors"), Some(Verdict::Kept));
        assert!(
            !plan
                .findings
                .iter()
                .any(|finding| finding.verdict == Verdict::Unsupported)
        );
    }

    #[test]
    fn a_control_plane_is_replaced_where_it_is_and_pods_follow_namespace_by_namespace() {
        let plan = check(&linkerd());
        let titles: Vec<&str> = plan.steps.iter().map(|step| step.title.as_str()).collect();
        assert_eq!(
            titles,
            [
                "keep what the new control plane needs, and a way back (files with keys: delete them afterwards)",
                "read what will be installed",
                "replace the control plane; running proxies go on and ask the new one",
                "give the pods of books new proxies; go on when their traffic is well",
                "give the pods of emojivoto new proxies; go on when their traffic is well",
                "look for what is left of Linkerd, and delete it",
            ]
        );
        let commands = commands(&plan);
        assert!(
            commands.contains("delete deployment linkerd-destination --cascade=orphan"),
            "its selector can't be changed: {commands}"
        );
        assert!(
            commands.contains("--identity-issuer-key-file issuer.key"),
            "{commands}"
        );
    }

    #[test]
    fn deployments_that_apply_can_change_are_not_deleted() {
        let mut objects = linkerd();
        let ours = render(&Mesh::new(Values::default(), "linkerd"));
        let is_it = |object: &Value| {
            object["kind"] == "Deployment" && object["metadata"]["name"] == "linkerd-destination"
        };
        objects.insert("Deployment", ours.into_iter().filter(is_it).collect());
        assert!(!commands(&check(&objects)).contains("--cascade=orphan"));
    }

    #[test]
    fn an_issuer_that_others_keep_stays_theirs() {
        let mut objects = linkerd();
        let values = json!({"identity": {"issuer": {"scheme": "kubernetes.io/tls"}}});
        objects.get_mut("linkerd-config").unwrap()[0]["data"]["values"] = values.to_string().into();
        let commands = commands(&check(&objects));
        assert!(commands.contains("--identity-external-issuer"), "{commands}");
        assert!(!commands.contains("issuer.key"), "{commands}");
    }

    #[test]
    fn what_nobody_reads_afterwards_comes_last_and_is_the_first_step() {
        let mut objects = linkerd();
        objects.insert(
            "ServiceProfile",
            vec![named("emojivoto", "web-svc.emojivoto.svc.cluster.local")],
        );
        objects.insert("Server", vec![named("emojivoto", "web")]);
        objects.insert("EgressNetwork", vec![named("egress", "all")]);
        objects.insert(
            "Namespace",
            vec![json!({"metadata": {
                "name": "emojivoto", "annotations": {"config.linkerd.io/proxy-log-http-headers": "insecure"},
            }})],
        );
        let plan = check(&objects);
        assert_eq!(verdict(&plan, "Servers emojivoto/web"), Some(Verdict::Kept));
        for subject in [
            "ServiceProfiles emojivoto/web-svc",
            "EgressNetworks egress/all",
            "annotation config.linkerd.io/proxy-log-http-headers",
        ] {
            assert_eq!(verdict(&plan, subject), Some(Verdict::Unsupported), "{subject}");
        }
        assert_eq!(
            plan.findings.last().map(|finding| finding.verdict),
            Some(Verdict::Unsupported)
        );
        assert!(plan.steps[0].title.starts_with("replace what is not supported"));
    }

    #[test]
    fn webhooks_jobs_and_releases_of_linkerds_go_before_the_control_plane_is_replaced() {
        let mut objects = linkerd();
        objects.insert(
            "ValidatingWebhook",
            vec![json!({"metadata": {"name": "linkerd-sp-validator-webhook-config"}})],
        );
        objects.insert("CronJob", vec![named("linkerd", "linkerd-heartbeat")]);
        objects.insert(
            "Secret",
            vec![json!({"metadata": {"name": "release", "labels": {"owner": "helm"}}})],
        );
        let plan = check(&objects);
        let replace = &plan.steps[2].commands;
        assert_eq!(
            replace[..3],
            [
                "kubectl delete validatingwebhookconfiguration linkerd-sp-validator-webhook-config",
                "kubectl -n linkerd delete cronjob linkerd-heartbeat",
                "kubectl -n linkerd delete secret -l owner=helm",
            ]
        );
        assert_eq!(replace.last().map(String::as_str), Some("hawser check"));
    }

    #[test]
    fn links_and_extensions_follow_with_the_same_links() {
        let mut objects = linkerd();
        let extension = |name: &str, namespace: &str| json!({"metadata": {"name": namespace, "labels": {"linkerd.io/extension": name}}});
        objects.insert(
            "Namespace",
            vec![
                extension("multicluster", "linkerd-multicluster"),
                extension("viz", "linkerd-viz"),
                extension("jaeger", "linkerd-jaeger"),
            ],
        );
        objects.insert("Link", vec![named("linkerd-multicluster", "east")]);
        objects.insert("Mirror", vec![named("emojivoto", "web-svc-east")]);
        objects.insert("Exported", vec![named("emojivoto", "web-svc")]);
        objects.get_mut("Deployment").unwrap().extend([
            named("linkerd-multicluster", "linkerd-gateway"),
            named("linkerd-multicluster", "linkerd-service-mirror-east"),
        ]);
        objects
            .get_mut("Pod")
            .unwrap()
            .push(pod("linkerd-multicluster", "linkerd-gateway-1"));
        let plan = check(&objects);
        assert_eq!(
            verdict(&plan, "Links linkerd-multicluster/east"),
            Some(Verdict::Kept)
        );
        assert_eq!(verdict(&plan, "1 mirrored Services"), Some(Verdict::Kept));
        assert_eq!(
            verdict(&plan, "exported Services emojivoto/web-svc"),
            Some(Verdict::Kept)
        );
        assert_eq!(verdict(&plan, "extension jaeger"), Some(Verdict::Unsupported));
        let step = plan
            .steps
            .iter()
            .find(|step| step.title == "replace the multicluster extension")
            .unwrap();
        assert_eq!(
            step.commands,
            [
                "kubectl -n linkerd-multicluster delete deployment linkerd-service-mirror-east",
                "hawser multicluster install --set 'controllers[0].link.ref.name=east' | kubectl apply -f -",
                "hawser multicluster check",
            ]
        );
        assert!(
            !commands(&plan).contains("-n linkerd-multicluster rollout restart"),
            "the extension's pods come with the extension"
        );
    }

    #[test]
    fn without_linkerd_there_is_nothing_to_plan() {
        assert_eq!(plan(&Objects::new(), "mesh"), Err(Refusal::NoMesh("mesh".into())));
        let mut objects = linkerd();
        let values = Values::default().to_yaml().unwrap();
        objects.get_mut("linkerd-config").unwrap()[0]["data"]["values"] = values.into();
        assert_eq!(plan(&objects, "linkerd"), Err(Refusal::Ours("linkerd".into())));
    }
}
