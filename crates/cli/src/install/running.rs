//! What the running proxies believe and who signed them, and which of them new credentials would break.
//!
//! The looking is done here as well, but the judgement is pure. Our proxies say in their metrics what they use now; of
//! others, and of those that can't be reached, the anchors that their pod was started with are taken.

use std::collections::BTreeSet;
use std::time::SystemTime;

use futures::StreamExt;
use hawser_runtime::exposition;
use hawser_tls::{Fingerprint, Issuer, TrustAnchors};
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};

use crate::{meshed, scrape};

/// So many proxies are asked at the same time.
const SCRAPES_MAX: usize = 32;

/// A running proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Running {
    /// Namespace and name of its pod.
    pub(crate) name: String,
    pub(crate) believes: BTreeSet<Fingerprint>,
    /// Of the certificate that signed its own, if it says.
    pub(crate) issuer: Option<Fingerprint>,
}

/// Credentials before and after a change.
pub(crate) struct Change<'a> {
    pub(crate) old_anchors: &'a TrustAnchors,
    pub(crate) anchors: &'a TrustAnchors,
    pub(crate) old_issuer: Option<&'a Issuer>,
    pub(crate) issuer: &'a Issuer,
}

/// What would happen to a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Breakage {
    /// It would refuse everybody with a new certificate.
    DoesNotBelieveIssuer,
    /// It would be refused by everybody who believes only the new anchors.
    IsNotBelieved,
}

/// Who would break, and how.
pub(crate) fn broken<'a>(
    running: &'a [Running],
    change: &Change<'_>,
    now: SystemTime,
) -> Vec<(&'a str, Breakage)> {
    let signs = |issuer: &Issuer, anchors: &TrustAnchors| issuer.verify(anchors, now).is_ok();
    let dropped = !change.anchors.includes(change.old_anchors);
    let old_is_believed = change
        .old_issuer
        .is_none_or(|issuer| signs(issuer, change.anchors));
    let breakage = |proxy: &Running| {
        let among = |anchors: &TrustAnchors| {
            anchors
                .only(&proxy.believes)
                .is_some_and(|anchors| signs(change.issuer, &anchors))
        };
        if !among(change.anchors) && !among(change.old_anchors) {
            return Some(Breakage::DoesNotBelieveIssuer);
        }
        let signed_by = |issuer: Option<&Issuer>| {
            // Who doesn't say is taken to have a certificate of the cluster's issuer.
            proxy.issuer.is_none() || proxy.issuer == issuer.and_then(Issuer::fingerprint)
        };
        let believed = if proxy.issuer.is_some() && signed_by(Some(change.issuer)) {
            true
        } else if signed_by(change.old_issuer) {
            old_is_believed
        } else {
            // Signed by an issuer that is gone: its root may be any of those that go.
            !dropped
        };
        (!believed).then_some(Breakage::IsNotBelieved)
    };
    running
        .iter()
        .filter_map(|proxy| Some((proxy.name.as_str(), breakage(proxy)?)))
        .collect()
}

/// Looks at every running proxy of a control plane. `bundle` is what the cluster's ConfigMap says.
pub(crate) async fn observe(
    client: &Client,
    namespace: &str,
    bundle: &TrustAnchors,
) -> Result<Vec<Running>, kube::Error> {
    let all: Api<Pod> = Api::all(client.clone());
    let selector = format!("{}={namespace}", meshed::MESHED);
    let mut pods = all.list(&ListParams::default().labels(&selector)).await?.items;
    pods.retain(|pod| meshed::has_proxy(pod) && runs(pod));
    let looks = pods.iter().map(|pod| look(client, pod, bundle));
    Ok(futures::stream::iter(looks).buffered(SCRAPES_MAX).collect().await)
}

fn runs(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    pod.metadata.deletion_timestamp.is_none() && phase == Some("Running")
}

async fn look(client: &Client, pod: &Pod, bundle: &TrustAnchors) -> Running {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    let metrics = scrape::metrics(&pods, &pod.name_any(), meshed::admin_port(pod)).await;
    let (mut believes, mut issuer) = (BTreeSet::new(), None);
    for sample in exposition::samples(&metrics.unwrap_or_default()).flatten() {
        let sha256 = || Fingerprint::from_hex(&sample.labels.get("sha256")?);
        match sample.name {
            "identity_trust_anchors_info" => believes.extend(sha256()),
            "identity_cert_issuer_info" => issuer = sha256(),
            _ => {}
        }
    }
    if believes.is_empty() {
        // Without a bundle of its own it is started with the cluster's.
        let own = meshed::trust_anchors(pod).and_then(|pem| TrustAnchors::from_pem(pem).ok());
        believes = own.as_ref().unwrap_or(bundle).fingerprints();
    }
    Running {
        name: meshed::title(pod),
        believes,
        issuer,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use hawser_tls::{Validity, create_issuer, create_root};

    use super::*;

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    /// A root and an issuer below it.
    fn authority() -> (String, Issuer) {
        let validity = Validity {
            not_before: now() - Duration::from_secs(60),
            not_after: now() + Duration::from_secs(3_600),
        };
        let root = create_root("root.test", validity).unwrap();
        let parent = Issuer::from_pem(&root.certificate_pem, &root.key.to_pem()).unwrap();
        let issuer = create_issuer("identity.test", &parent, validity).unwrap();
        let issuer = Issuer::from_pem(&issuer.certificate_pem, &issuer.key.to_pem()).unwrap();
        (root.certificate_pem, issuer)
    }

    #[test]
    fn only_a_rotation_in_steps_breaks_nobody() {
        use Breakage::{DoesNotBelieveIssuer, IsNotBelieved};
        let ((a, issuer_a), (b, issuer_b)) = (authority(), authority());
        let bundle = |pem: &str| TrustAnchors::from_pem(pem).unwrap();
        let (old, both, new) = (bundle(&a), bundle(&format!("{a}{b}")), bundle(&b));
        let judge = |believes: &TrustAnchors, signed_by: Option<&Issuer>, change: Change<'_>| {
            let running = [Running {
                name: "test/web".into(),
                believes: believes.fingerprints(),
                issuer: signed_by.and_then(Issuer::fingerprint),
            }];
            let broken = broken(&running, &change, now());
            broken.first().map(|(_, breakage)| *breakage)
        };
        let change = |from: (&'static str, &'static str), to: (&'static str, &'static str)| {
            let anchors = |name| match name {
                "old" => &old,
                "both" => &both,
                _ => &new,
            };
            let issuer = |name| if name == "a" { &issuer_a } else { &issuer_b };
            Change {
                old_anchors: anchors(from.0),
                anchors: anchors(to.0),
                old_issuer: Some(issuer(from.1)),
                issuer: issuer(to.1),
            }
        };
        let (a, b) = (Some(&issuer_a), Some(&issuer_b));
        for (believes, signed_by, from, to, expected) in [
            // The steps.
            (&old, a, ("old", "a"), ("both", "a"), None),
            (&both, a, ("both", "a"), ("both", "b"), None),
            (&both, b, ("both", "b"), ("new", "b"), None),
            // A proxy that says nothing of its issuer, and one whose anchors are not those of the cluster.
            (&old, None, ("old", "a"), ("both", "a"), None),
            (&new, b, ("old", "a"), ("both", "b"), None),
            // Everything at once.
            (&old, a, ("old", "a"), ("new", "b"), Some(DoesNotBelieveIssuer)),
            // The issuer before a proxy knows its root.
            (&old, a, ("both", "a"), ("both", "b"), Some(DoesNotBelieveIssuer)),
            // The old root goes while its issuer's certificates are in use.
            (&both, a, ("both", "b"), ("new", "b"), Some(IsNotBelieved)),
            (&both, None, ("both", "a"), ("new", "b"), Some(IsNotBelieved)),
        ] {
            assert_eq!(
                judge(believes, signed_by, change(from, to)),
                expected,
                "{from:?} -> {to:?} with {signed_by:?}"
            );
        }
    }
}
