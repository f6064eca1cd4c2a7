//! Checks of workloads' proxies: they are ready, trust what is configured, and show the certificates that they should.
//!
//! What a proxy trusts is asked of the proxy, not read from its pod: a bundle that never reached it looks the same
//! from outside.

use std::collections::BTreeSet;

use futures::StreamExt as _;
use hawser_core::Identity;
use hawser_runtime::exposition;
use hawser_tls::{Fingerprint, TrustAnchors};
use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use kube::api::ListParams;
use kube::{Api, ResourceExt};

use super::control_plane::{proxies_ready, versions_match};
use super::{Category, Checks, Outcome, Report, bounded, until};
use crate::{identity, meshed, scrape};

/// Proxies asked at the same time.
const ASKED_MAX: usize = 16;
/// What a proxy calls the anchors that it uses: one sample for each.
const ANCHORS_IN_USE: &str = "identity_trust_anchors_info";

impl Checks {
    async fn workloads(&self) -> Result<Vec<Pod>, String> {
        let pods: Api<Pod> = match &self.namespace {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        };
        let query = format!("{}={},!{}", meshed::MESHED, self.linkerd, meshed::COMPONENT);
        let mut found = bounded(pods.list(&ListParams::default().labels(&query)))
            .await?
            .items;
        found.retain(|pod| meshed::has_proxy(pod) && !meshed::is_finished(pod));
        Ok(found)
    }

    pub(super) async fn data_plane(&self, report: &mut Report, anchors: Option<TrustAnchors>) {
        let mut category = Category::new("linkerd-data-plane");
        if let Some(namespace) = &self.namespace {
            let namespaces: Api<Namespace> = Api::all(self.client.clone());
            let found = bounded(namespaces.get(namespace)).await;
            let exists = category.row(
                "data plane namespace exists",
                "l5d-data-plane-exists",
                "another --namespace",
                found
                    .map(drop)
                    .map_err(|why| format!("namespace {namespace}: {why}"))
                    .into(),
            );
            if !exists {
                return report.push(category);
            }
        }
        let ready = until(self.deadline, "the workloads' proxies", async || {
            match self.workloads().await {
                Ok(pods) => proxies_ready(&pods),
                Err(why) => Outcome::Error(why),
            }
        });
        let pods_attempt = "kubectl describe the pods, and kubectl logs POD linkerd-proxy";
        category.row(
            "data plane proxies are ready",
            "l5d-data-plane-ready",
            pods_attempt,
            ready.await,
        );
        let pods = self.workloads().await;
        let of_pods = |judge: fn(&[Pod]) -> Outcome| match &pods {
            Ok(pods) => judge(pods),
            Err(why) => Outcome::Error(why.clone()),
        };
        let restart = "kubectl rollout restart the workloads of these pods";
        category.row(
            "data plane and cli versions match",
            "l5d-data-plane-cli-version",
            restart,
            of_pods(|pods| versions_match(pods).warn()),
        );
        category.row(
            "data plane pod labels are configured correctly",
            "l5d-data-plane-pod-labels",
            "move them to the pod template's annotations",
            of_pods(misplaced_labels),
        );
        category.row(
            "data plane service labels and annotations are configured correctly",
            "l5d-data-plane-services-labels",
            "mirror.linkerd.io/exported is a label, config.linkerd.io/* are annotations",
            self.services_are_configured().await,
        );
        let (mut in_use, mut presented) = (Outcome::Skipped, Outcome::Skipped);
        if let (Ok(pods), Some(anchors)) = (&pods, &anchors) {
            in_use = self.anchors_in_use(pods, anchors).await;
            presented = self.certificates_presented(pods, anchors).await;
        }
        let mut trust = Category::new("linkerd-identity-data-plane");
        trust.row(
            "data plane proxies certificate match CA",
            "l5d-identity-data-plane-proxies-certs-match-ca",
            restart,
            in_use,
        );
        trust.row(
            "data plane proxies present certificates of this mesh",
            "",
            pods_attempt,
            presented,
        );
        report.push(trust);
        report.push(category);
    }

    /// Proxies that use other anchors than those configured. They can still talk to those that share one with them,
    /// so it is a warning.
    pub(super) async fn anchors_in_use(&self, pods: &[Pod], anchors: &TrustAnchors) -> Outcome {
        let configured = &anchors.fingerprints();
        let lagging = self.ask(pods, async |api, pod| {
            let text = scrape::metrics(api, &pod.name_any(), meshed::admin_port(pod)).await;
            let text = text.map_err(|error| error.to_string())?;
            let used = used_anchors(&text).or_else(|| {
                Some(
                    TrustAnchors::from_pem(meshed::trust_anchors(pod)?)
                        .ok()?
                        .fingerprints(),
                )
            });
            // Proxies of others say nothing, and may have their bundle from elsewhere.
            used.map_or(Ok(()), |used| differ(configured, &used))
        });
        Outcome::none(
            "some proxies do not use the trust anchors that are configured",
            lagging.await,
        )
        .warn()
    }

    /// A real handshake with every proxy, as a client of the mesh would have it.
    pub(super) async fn certificates_presented(&self, pods: &[Pod], anchors: &TrustAnchors) -> Outcome {
        let wrong = self.ask(pods, async |api, pod| {
            let name = meshed::identity(pod).ok_or("its pod names no identity")?;
            let expected: Identity = name.parse().map_err(|_| format!("{name:?} is no identity"))?;
            let client = hawser_tls::anonymous_client(anchors, &expected);
            let shown = identity::chain(api, pod, client).await;
            shown.map(drop).map_err(|error| match error {
                identity::IdentityError::Handshake(why) => why.to_string(),
                other => other.to_string(),
            })
        });
        Outcome::none("clients of the mesh would refuse", wrong.await)
    }

    /// Those pods about which something is to be said, in their order.
    async fn ask(
        &self,
        pods: &[Pod],
        question: impl AsyncFn(&Api<Pod>, &Pod) -> Result<(), String>,
    ) -> Vec<String> {
        let question = &question;
        let answers = pods.iter().map(|pod| async move {
            let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
            let why = question(&api, pod).await.err()?;
            Some(format!("{}: {why}", meshed::title(pod)))
        });
        let answers: Vec<Option<String>> = futures::stream::iter(answers).buffered(ASKED_MAX).collect().await;
        answers.into_iter().flatten().collect()
    }

    async fn services_are_configured(&self) -> Outcome {
        let services: Api<Service> = match &self.namespace {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        };
        match bounded(services.list_metadata(&ListParams::default())).await {
            Ok(found) => {
                let titles = found.items.iter().map(|service| {
                    let title = format!(
                        "{}/{}",
                        service.namespace().unwrap_or_default(),
                        service.name_any()
                    );
                    (title, service.labels(), service.annotations())
                });
                let wrong = titles.flat_map(|(title, labels, annotations)| {
                    let label = labels
                        .keys()
                        .filter(|name| name.starts_with("config.linkerd.io/"));
                    let label = label.map(|name| format!("{title}: {name} is a label"));
                    let exported = annotations
                        .keys()
                        .filter(|name| *name == hawser_crd::keys::EXPORTED);
                    let exported = exported.map(|name| format!("{title}: {name} is an annotation"));
                    label.chain(exported).collect::<Vec<_>>()
                });
                Outcome::none("these have no effect", wrong).warn()
            }
            Err(why) => Outcome::Error(why),
        }
    }
}

/// Settings that were written as labels, where nobody reads them.
fn misplaced_labels(pods: &[Pod]) -> Outcome {
    let wrong = pods.iter().flat_map(|pod| {
        let names = pod.labels().keys().filter(|name| {
            name.starts_with("config.linkerd.io/")
                || name.starts_with("config.alpha.linkerd.io/")
                || *name == hawser_crd::keys::INJECT
        });
        names
            .map(|name| format!("{}: {name}", meshed::title(pod)))
            .collect::<Vec<_>>()
    });
    Outcome::none("these are labels and have no effect", wrong).warn()
}

/// The anchors that a proxy says it uses; none if it is one that doesn't say.
fn used_anchors(exposition: &str) -> Option<BTreeSet<Fingerprint>> {
    let samples = exposition::samples(exposition).filter_map(Result::ok);
    let used: BTreeSet<Fingerprint> = samples
        .filter(|sample| sample.name == ANCHORS_IN_USE && sample.value > 0.0)
        .filter_map(|sample| Fingerprint::from_hex(&sample.labels.get("sha256")?))
        .collect();
    (!used.is_empty()).then_some(used)
}

fn differ(configured: &BTreeSet<Fingerprint>, used: &BTreeSet<Fingerprint>) -> Result<(), String> {
    let missing = configured.difference(used).count();
    let old = used.difference(configured).count();
    match (missing, old) {
        (0, 0) => Ok(()),
        (missing, 0) => Err(format!("it lacks {missing} of {}", configured.len())),
        (0, old) => Err(format!("it still trusts {old} that are configured no more")),
        (missing, old) => Err(format!(
            "it lacks {missing} of {} and still trusts {old} that are configured no more",
            configured.len()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fingerprints that are one digit repeated.
    fn set(names: &[&str]) -> BTreeSet<Fingerprint> {
        names
            .iter()
            .filter_map(|name| Fingerprint::from_hex(&name.repeat(64)))
            .collect()
    }

    #[test]
    fn a_proxy_that_lags_is_told_from_one_that_trusts_too_much() {
        let configured = set(&["a", "b"]);
        for (used, expected) in [
            (set(&["a", "b"]), Ok(())),
            (set(&["a"]), Err("it lacks 1 of 2")),
            (
                set(&["a", "b", "c"]),
                Err("it still trusts 1 that are configured no more"),
            ),
            (
                set(&["c"]),
                Err("it lacks 2 of 2 and still trusts 1 that are configured no more"),
            ),
        ] {
            assert_eq!(
                differ(&configured, &used),
                expected.map_err(str::to_owned),
                "{used:?}"
            );
        }
    }

    #[test]
    fn anchors_in_use_are_read_from_metrics() {
        let line =
            |digit: &str, value: u8| format!("{ANCHORS_IN_USE}{{sha256=\"{}\"}} {value}\n", digit.repeat(64));
        let exposition = format!(
            "# TYPE {ANCHORS_IN_USE} gauge\n{}{}{}process_open_fds 7\n",
            line("a", 1),
            line("b", 1),
            line("c", 0)
        );
        assert_eq!(used_anchors(&exposition), Some(set(&["a", "b"])));
        assert_eq!(used_anchors("process_open_fds 7\n"), None);
    }
}
