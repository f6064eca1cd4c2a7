//! Checks of the control plane: it exists as installed, its certificates hold, its programs answer real requests.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use hawser_control::values::{VERSION, Values};
use hawser_tls::{Description, Fault, Issuer, TrustAnchors};
use ipnet::IpNet;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret, Service};
use kube::api::{ListParams, PostParams};
use kube::{Api, ResourceExt};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::json;

use super::{Category, Checks, Outcome, Report, bounded, until};
use crate::diagnostics;
use crate::inventory::{self, Reference};
use crate::meshed;
use crate::multicluster::mesh_values;

/// Time to renew by hand without a hurry.
const RENEW_BEFORE: Duration = Duration::from_secs(60 * 24 * 3600);
const TRUST_ROOTS: &str = "linkerd-identity-trust-roots";
const ISSUER: &str = "linkerd-identity-issuer";
const WEBHOOK: &str = "linkerd-proxy-injector-webhook-config";
const WEBHOOK_TLS: &str = "linkerd-proxy-injector-k8s-tls";

impl Checks {
    async fn values(&self) -> Result<Values, String> {
        let reading = mesh_values(&self.client, &self.linkerd);
        let read = tokio::time::timeout(super::DEADLINE, reading).await;
        let read = read.map_err(|_| "the API server does not answer".to_owned())?;
        read.map_err(|problem| problem.why().to_owned())
    }

    async fn control_plane_pods(&self) -> Result<Vec<Pod>, String> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.linkerd);
        let query = ListParams::default().labels(meshed::COMPONENT);
        Ok(bounded(pods.list(&query)).await?.items)
    }

    /// Says whether there is a control plane to look at.
    pub(super) async fn existence(&self, report: &mut Report) -> bool {
        let mut category = Category::new("linkerd-existence");
        let values = self.values().await;
        let exists = category.row(
            "'linkerd-config' config map exists",
            "l5d-existence-linkerd-config",
            "hawser install | kubectl apply -f -",
            values.as_ref().map(drop).map_err(Clone::clone).into(),
        );
        let Some(values) = values.ok().filter(|_| exists) else {
            report.push(category);
            return false;
        };
        let describe = format!("kubectl -n {} describe pods", self.linkerd);
        let replicas = until(self.deadline, "the control plane's deployments", async || {
            self.deployments_are_available().await
        });
        category.row(
            "control plane replica sets are ready",
            "l5d-existence-replicasets",
            describe.clone(),
            replicas.await,
        );
        category.row(
            "no unschedulable pods",
            "l5d-existence-unschedulable-pods",
            describe.clone(),
            match self.control_plane_pods().await {
                Ok(pods) => unschedulable(&pods),
                Err(why) => Outcome::Error(why),
            },
        );
        let ready = until(self.deadline, "the control plane's pods", async || {
            match self.control_plane_pods().await {
                Ok(pods) => all_ready(&pods),
                Err(why) => Outcome::Error(why),
            }
        });
        let ready = category.row(
            "control plane pods are ready",
            "l5d-api-control-ready",
            describe,
            ready.await,
        );
        let networks = "set clusterNetworks to all networks of pods and services, with hawser upgrade";
        category.row(
            "cluster networks contains all pods",
            "l5d-cluster-networks-pods",
            networks,
            self.networks_contain_pods(&values).await,
        );
        category.row(
            "cluster networks contains all services",
            "l5d-cluster-networks-pods",
            networks,
            self.networks_contain_services(&values).await,
        );
        report.push(category);
        ready
    }

    async fn deployments_are_available(&self) -> Outcome {
        let api: Api<Deployment> = Api::namespaced(self.client.clone(), &self.linkerd);
        let query = ListParams::default().labels(meshed::COMPONENT);
        let deployments = match bounded(api.list(&query)).await {
            Ok(deployments) => deployments.items,
            Err(why) => return Outcome::Error(why),
        };
        Outcome::none(
            "too few replicas are ready",
            deployments.iter().filter_map(|deployment| {
                let wanted = deployment
                    .spec
                    .as_ref()
                    .and_then(|spec| spec.replicas)
                    .unwrap_or(1);
                let status = deployment.status.as_ref();
                let ready = status.and_then(|status| status.ready_replicas).unwrap_or(0);
                (ready < wanted).then(|| format!("{}: {ready} of {wanted}", deployment.name_any()))
            }),
        )
    }

    async fn networks_contain_pods(&self, values: &Values) -> Outcome {
        let pods: Api<Pod> = Api::all(self.client.clone());
        let pods = match bounded(pods.list(&ListParams::default())).await {
            Ok(pods) => pods.items,
            Err(why) => return Outcome::Error(why),
        };
        let addresses = pods.iter().filter_map(|pod| {
            let on_the_host = pod.spec.as_ref()?.host_network.unwrap_or_default();
            let address = pod.status.as_ref()?.pod_ip.as_deref().filter(|_| !on_the_host)?;
            Some((meshed::title(pod), address.to_owned()))
        });
        contained(&values.cluster_networks, addresses)
    }

    async fn networks_contain_services(&self, values: &Values) -> Outcome {
        let services: Api<Service> = Api::all(self.client.clone());
        let services = match bounded(services.list(&ListParams::default())).await {
            Ok(services) => services.items,
            Err(why) => return Outcome::Error(why),
        };
        let addresses = services.iter().filter_map(|service| {
            let address = service.spec.as_ref()?.cluster_ip.as_deref()?;
            let title = format!("{}/{}", service.namespace()?, service.name_any());
            (!address.is_empty() && address != "None").then(|| (title, address.to_owned()))
        });
        contained(&values.cluster_networks, addresses)
    }

    pub(super) async fn configuration(&self, report: &mut Report) {
        let mut category = Category::new("linkerd-config");
        let expected = inventory::expected(&self.linkerd);
        let present = bounded(inventory::present(&self.client, &expected)).await;
        for (kind, description, anchor) in [
            ("Namespace", "control plane Namespace exists", "l5d-existence-ns"),
            (
                "ClusterRole",
                "control plane ClusterRoles exist",
                "l5d-existence-cr",
            ),
            (
                "ClusterRoleBinding",
                "control plane ClusterRoleBindings exist",
                "l5d-existence-crb",
            ),
            (
                "ServiceAccount",
                "control plane ServiceAccounts exist",
                "l5d-existence-sa",
            ),
            (
                "CustomResourceDefinition",
                "control plane CustomResourceDefinitions exist",
                "l5d-existence-crd",
            ),
            (
                "MutatingWebhookConfiguration",
                "control plane MutatingWebhookConfigurations exist",
                "l5d-existence-mwc",
            ),
            ("Service", "control plane Services exist", ""),
        ] {
            let outcome = match &present {
                Err(why) => Outcome::Error(why.clone()),
                Ok(present) => missing(kind, &expected, present),
            };
            category.row(
                description,
                anchor,
                "hawser upgrade | kubectl apply -f -",
                outcome,
            );
        }
        report.push(category);
    }

    /// The anchors that are configured, for those who compare.
    pub(super) async fn identity(&self, report: &mut Report) -> Option<TrustAnchors> {
        let mut category = Category::new("linkerd-identity");
        let credentials = self.credentials().await;
        let upgrade = "hawser upgrade --identity-trust-anchors-file bundle.crt --identity-issuer-certificate-file \
                       issuer.crt --identity-issuer-key-file issuer.key | kubectl apply -f -";
        category.row(
            "certificate config is valid",
            "l5d-identity-cert-config-valid",
            upgrade,
            credentials.as_ref().map(drop).map_err(Clone::clone).into(),
        );
        let anchors = credentials
            .as_ref()
            .ok()
            .map(|credentials| credentials.anchors.clone());
        if let Ok(credentials) = &credentials {
            certificates(&mut category, credentials, self.now, upgrade);
        }
        report.push(category);
        anchors
    }

    async fn credentials(&self) -> Result<Credentials, String> {
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.linkerd);
        let map = bounded(maps.get(TRUST_ROOTS)).await;
        let map = map.map_err(|why| format!("config map {TRUST_ROOTS}: {why}"))?;
        let bundle = map
            .data
            .unwrap_or_default()
            .remove("ca-bundle.crt")
            .unwrap_or_default();
        let anchors =
            TrustAnchors::from_pem(&bundle).map_err(|error| format!("config map {TRUST_ROOTS}: {error}"))?;
        let data = self.secret(ISSUER).await?;
        let text = |names: [&str; 2]| {
            names
                .iter()
                .find_map(|name| data.get(*name).cloned())
                .unwrap_or_default()
        };
        let (certificate, key) = (text(["crt.pem", "tls.crt"]), text(["key.pem", "tls.key"]));
        let issuer =
            Issuer::from_pem(&certificate, &key).map_err(|error| format!("secret {ISSUER}: {error}"))?;
        let own = CertificateDer::from_pem_slice(certificate.as_bytes())
            .map_err(|error| format!("secret {ISSUER}: {error}"))?;
        let described = anchors
            .certificates()
            .iter()
            .chain(std::iter::once(&own))
            .map(Description::of)
            .collect::<Result<Vec<_>, _>>();
        let mut described = described.map_err(|error| error.to_string())?;
        let own = described.pop().ok_or("there is no issuer")?;
        Ok(Credentials {
            anchors,
            described,
            issuer,
            own,
        })
    }

    async fn secret(&self, name: &str) -> Result<std::collections::BTreeMap<String, String>, String> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &self.linkerd);
        let secret = bounded(secrets.get(name)).await;
        let secret = secret.map_err(|why| format!("secret {name}: {why}"))?;
        let data = secret.data.unwrap_or_default().into_iter();
        Ok(data
            .filter_map(|(key, value)| Some((key, String::from_utf8(value.0).ok()?)))
            .collect())
    }

    pub(super) async fn webhooks(&self, report: &mut Report) {
        let mut category = Category::new("linkerd-webhooks-and-apisvc-tls");
        let upgrade = "hawser upgrade | kubectl apply -f -";
        let certificate = self.webhook_certificate().await;
        let valid = category.row(
            "proxy-injector webhook has valid cert",
            "l5d-proxy-injector-webhook-cert-valid",
            upgrade,
            match &certificate {
                Ok(description) => within(&[description], self.now),
                Err(why) => Outcome::Error(why.clone()),
            },
        );
        if let (Ok(description), true) = (&certificate, valid) {
            category.row(
                "proxy-injector cert is valid for at least 60 days",
                "l5d-proxy-injector-webhook-cert-not-expiring-soon",
                upgrade,
                lasting(&[description], self.now),
            );
        }
        category.row(
            "proxy-injector injects a pod",
            "",
            format!(
                "kubectl -n {} logs deploy/linkerd-proxy-injector proxy-injector",
                self.linkerd
            ),
            until(self.deadline, "the proxy injector", async || self.injects().await).await,
        );
        report.push(category);
    }

    /// What the API server must believe when it calls the webhook.
    async fn webhook_certificate(&self) -> Result<Description, String> {
        let webhooks: Api<MutatingWebhookConfiguration> = Api::all(self.client.clone());
        let configuration = bounded(webhooks.get(WEBHOOK)).await;
        let configuration = configuration.map_err(|why| format!("{WEBHOOK}: {why}"))?;
        let mut hooks = configuration.webhooks.into_iter().flatten();
        let bundle = hooks
            .find_map(|hook| hook.client_config.ca_bundle)
            .unwrap_or_default();
        let anchors = TrustAnchors::from_pem(&String::from_utf8_lossy(&bundle.0))
            .map_err(|error| format!("the caBundle of {WEBHOOK}: {error}"))?;
        let data = self.secret(WEBHOOK_TLS).await?;
        let pem = data
            .get("tls.crt")
            .or_else(|| data.get("crt.pem"))
            .cloned()
            .unwrap_or_default();
        let chain = CertificateDer::pem_slice_iter(pem.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| format!("secret {WEBHOOK_TLS}: {error}"))?;
        let (leaf, rest) = chain
            .split_first()
            .ok_or_else(|| format!("secret {WEBHOOK_TLS} holds no certificate"))?;
        let description = Description::of(leaf).map_err(|error| error.to_string())?;
        let name = format!("linkerd-proxy-injector.{}.svc", self.linkerd);
        if !description.names.contains(&name) {
            return Err(format!(
                "the certificate is for {}, not for {name}",
                description.names.join(", ")
            ));
        }
        // Self-signed ones are their own anchor.
        if !anchors.certificates().contains(leaf) {
            anchors.verify_server(leaf, rest, self.now).map_err(|error| {
                format!("secret {WEBHOOK_TLS} and the caBundle of {WEBHOOK} don't match: {error}")
            })?;
        }
        Ok(description)
    }

    /// Asks the API server what it would make of a pod, on the path that every new pod takes.
    async fn injects(&self) -> Outcome {
        let namespace = self.namespace.as_deref().unwrap_or("default");
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let pod = json!({
            "metadata": {"generateName": "hawser-check-", "annotations": {"linkerd.io/inject": "enabled"}},
            "spec": {"containers": [{"name": "check", "image": "check"}]},
        });
        let pod: Pod = match serde_json::from_value(pod) {
            Ok(pod) => pod,
            Err(error) => return Outcome::Error(error.to_string()),
        };
        let dry_run = PostParams {
            dry_run: true,
            ..PostParams::default()
        };
        match bounded(pods.create(&dry_run, &pod)).await {
            Ok(pod) if meshed::has_proxy(&pod) => Outcome::fine(),
            Ok(_) if self.is_left_alone(namespace).await => Outcome::Skipped,
            Ok(_) => Outcome::Error(format!(
                "a pod with the annotation linkerd.io/inject: enabled got no proxy in namespace {namespace}"
            )),
            // Who may not create pods can't know.
            Err(why) => Outcome::Warning(why),
        }
    }

    /// Whether a namespace asks for no admission webhooks.
    async fn is_left_alone(&self, namespace: &str) -> bool {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let found = bounded(namespaces.get_metadata(namespace)).await;
        found.is_ok_and(|namespace| {
            let label = namespace.labels().get("config.linkerd.io/admission-webhooks");
            label.is_some_and(|label| label == "disabled")
        })
    }

    pub(super) async fn control_plane_version(&self, report: &mut Report) {
        let mut category = Category::new("control-plane-version");
        let version = self.values().await.map(|values| values.linkerd_version);
        category.row(
            "can retrieve the control plane version",
            "l5d-version-control",
            "hawser upgrade | kubectl apply -f -",
            version.as_ref().map(drop).map_err(Clone::clone).into(),
        );
        if let Ok(version) = version {
            category.row(
                "control plane and cli versions match",
                "l5d-version-control",
                "hawser upgrade | kubectl apply -f -",
                same_version("the control plane", &version).warn(),
            );
        }
        report.push(category);
    }

    /// Asks what proxies ask. A program may be ready and still not know the cluster.
    pub(super) async fn control_plane_answers(&self, report: &mut Report) {
        let mut category = Category::new("control-plane-answers");
        let logs = format!(
            "kubectl -n {} logs deploy/linkerd-destination destination",
            self.linkerd
        );
        let answers = until(self.deadline, "destination to answer", async || {
            self.destination_answers().await.into()
        });
        category.row("destination tells where identity is", "", logs, answers.await);
        report.push(category);
    }

    async fn destination_answers(&self) -> Result<(), String> {
        let domain = self.values().await?.cluster_domain;
        let authority = format!("linkerd-identity-headless.{}.svc.{domain}:8080", self.linkerd);
        let channel = diagnostics::destination(&self.client, &self.linkerd, diagnostics::DESTINATION_PORT);
        let channel = channel.await.map_err(|problem| problem.why().to_owned())?;
        let found = diagnostics::endpoints::get(channel, &authority).await;
        match found {
            Ok(endpoints) if endpoints.is_empty() => Err(format!("it knows no endpoints of {authority}")),
            Ok(_) => Ok(()),
            Err(error) => Err(format!("{authority}: {error}")),
        }
    }

    pub(super) async fn control_plane_proxies(&self, report: &mut Report, anchors: Option<&TrustAnchors>) {
        let mut category = Category::new("linkerd-control-plane-proxy");
        let healthy = until(self.deadline, "the control plane's proxies", async || match self
            .control_plane_pods()
            .await
        {
            Ok(pods) => proxies_ready(&pods),
            Err(why) => Outcome::Error(why),
        });
        category.row(
            "control plane proxies are healthy",
            "l5d-cp-proxy-healthy",
            format!("kubectl -n {} get pods", self.linkerd),
            healthy.await,
        );
        let pods = self.control_plane_pods().await;
        let restart = format!("kubectl -n {} rollout restart deploy", self.linkerd);
        category.row(
            "control plane proxies and cli versions match",
            "l5d-cp-proxy-cli-version",
            restart.clone(),
            match &pods {
                Ok(pods) => versions_match(pods).warn(),
                Err(why) => Outcome::Error(why.clone()),
            },
        );
        if let (Ok(pods), Some(anchors)) = (&pods, anchors) {
            category.row(
                "control plane proxies certificate match CA",
                "",
                restart.clone(),
                self.anchors_in_use(pods, anchors).await,
            );
            category.row(
                "control plane proxies present certificates of this mesh",
                "",
                restart,
                self.certificates_presented(pods, anchors).await,
            );
        }
        report.push(category);
    }
}

/// Anchors and issuer, parsed.
struct Credentials {
    anchors: TrustAnchors,
    described: Vec<Description>,
    issuer: Issuer,
    own: Description,
}

fn certificates(category: &mut Category, credentials: &Credentials, now: SystemTime, upgrade: &'static str) {
    let anchors: Vec<&Description> = credentials.described.iter().collect();
    let issuer = [&credentials.own];
    category.row(
        "trust anchors are using supported crypto algorithm",
        "l5d-identity-trustAnchors-use-supported-crypto",
        upgrade,
        supported(&anchors, Description::fault_as_anchor),
    );
    let valid = category.row(
        "trust anchors are within their validity period",
        "l5d-identity-trustAnchors-are-time-valid",
        upgrade,
        within(&anchors, now),
    );
    if valid {
        category.row(
            "trust anchors are valid for at least 60 days",
            "l5d-identity-trustAnchors-not-expiring-soon",
            upgrade,
            lasting(&anchors, now),
        );
    }
    category.row(
        "issuer cert is using supported crypto algorithm",
        "l5d-identity-issuer-cert-uses-supported-crypto",
        upgrade,
        supported(&issuer, Description::fault_as_issuer),
    );
    let valid = category.row(
        "issuer cert is within its validity period",
        "l5d-identity-issuer-cert-is-time-valid",
        upgrade,
        within(&issuer, now),
    );
    if valid {
        category.row(
            "issuer cert is valid for at least 60 days",
            "l5d-identity-issuer-cert-not-expiring-soon",
            upgrade,
            lasting(&issuer, now),
        );
    }
    let verified = credentials.issuer.verify(&credentials.anchors, now);
    category.row(
        "issuer cert is issued by the trust anchor",
        "l5d-identity-issuer-cert-issued-by-trust-anchor",
        "put the root that signed the issuer into the bundle: cat root.crt other-root.crt > bundle.crt",
        verified.map_err(|error| error.to_string()).into(),
    );
}

/// What is wrong with them whatever the time: asked for the first moment of their lives.
fn supported(certificates: &[&Description], fault: fn(&Description, SystemTime) -> Option<Fault>) -> Outcome {
    let wrong = certificates.iter().filter_map(|description| {
        let fault = fault(description, description.not_before)?;
        Some(format!("{}: {fault}", description.subject))
    });
    Outcome::none("not usable", wrong)
}

fn within(certificates: &[&Description], now: SystemTime) -> Outcome {
    Outcome::none(
        "not valid now",
        certificates.iter().filter_map(|certificate| {
            if now < certificate.not_before {
                return Some(format!(
                    "{} from {}",
                    certificate.subject,
                    date(certificate.not_before)
                ));
            }
            let expired = now >= certificate.not_after;
            expired.then(|| format!("{} until {}", certificate.subject, date(certificate.not_after)))
        }),
    )
}

fn lasting(certificates: &[&Description], now: SystemTime) -> Outcome {
    let soon = certificates.iter().filter(|certificate| {
        let left = certificate.not_after.duration_since(now).unwrap_or_default();
        left < RENEW_BEFORE
    });
    Outcome::none(
        "expiring within 60 days",
        soon.map(|certificate| format!("{} on {}", certificate.subject, date(certificate.not_after))),
    )
    .warn()
}

fn date(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).map_or_else(
        |_| "a date beyond all calendars".to_owned(),
        |time| time.to_string(),
    )
}

fn missing(kind: &str, expected: &[Reference], present: &[Reference]) -> Outcome {
    Outcome::none(
        "missing",
        expected
            .iter()
            .filter(|reference| reference.kind == kind && !present.contains(reference))
            .map(|reference| reference.name.clone()),
    )
}

fn unschedulable(pods: &[Pod]) -> Outcome {
    let condition = |pod: &Pod| {
        let conditions = pod.status.as_ref()?.conditions.as_ref()?;
        let scheduled = conditions
            .iter()
            .find(|condition| condition.type_ == "PodScheduled")?;
        let stuck = scheduled.status == "False" && scheduled.reason.as_deref() == Some("Unschedulable");
        stuck.then(|| {
            let message = scheduled.message.as_deref().unwrap_or_default();
            format!("{}: {message}", pod.name_any())
        })
    };
    Outcome::none("no node takes", pods.iter().filter_map(condition))
}

fn all_ready(pods: &[Pod]) -> Outcome {
    if pods.is_empty() {
        return Outcome::Error("the control plane has no pods".to_owned());
    }
    let waiting = pods
        .iter()
        .filter(|pod| !meshed::is_finished(pod) && !meshed::is_ready(pod));
    Outcome::none("not ready", waiting.map(ResourceExt::name_any))
}

pub(super) fn proxies_ready(pods: &[Pod]) -> Outcome {
    let meshed = pods
        .iter()
        .filter(|pod| meshed::has_proxy(pod) && !meshed::is_finished(pod));
    let waiting = meshed.filter(|pod| !meshed::has_ready_proxy(pod));
    Outcome::none("their proxies are not ready", waiting.map(meshed::title))
}

pub(super) fn versions_match(pods: &[Pod]) -> Outcome {
    let others = pods.iter().filter_map(|pod| {
        let version = meshed::proxy_version(pod).filter(|version| version != VERSION)?;
        Some(format!("{} ({version})", meshed::title(pod)))
    });
    Outcome::none(
        &format!("some proxies are not {VERSION}, the version of this program"),
        others,
    )
}

fn same_version(what: &str, version: &str) -> Outcome {
    if version == VERSION {
        return Outcome::fine();
    }
    Outcome::Error(format!("{what} is {version}, this program is {VERSION}"))
}

/// Networks that can't be read contain nothing.
fn contained(networks: &str, addresses: impl Iterator<Item = (String, String)>) -> Outcome {
    let networks: Vec<IpNet> = networks
        .split(',')
        .filter_map(|net| net.trim().parse().ok())
        .collect();
    let outside = addresses.filter(|(_, address)| {
        let address: Option<IpAddr> = address.parse().ok();
        !address.is_some_and(|address| networks.iter().any(|net| net.contains(&address)))
    });
    Outcome::none(
        "outside of the mesh's clusterNetworks",
        outside.map(|(title, address)| format!("{title} ({address})")),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn at(days: u32) -> SystemTime {
        SystemTime::UNIX_EPOCH + DAY * days
    }

    fn certificate() -> Description {
        Description {
            subject: "CN=root".into(),
            issuer: "CN=root".into(),
            not_before: at(100),
            not_after: at(465),
            names: vec![],
            is_authority: true,
            key: "ECDSA P-256".into(),
            signature: "ECDSA-SHA256".into(),
            text: String::new(),
        }
    }

    #[test]
    fn certificates_are_valid_between_their_dates_and_announced_before_they_expire() {
        let certificate = certificate();
        for (day, valid, lasts) in [
            (99, false, true),
            (100, true, true),
            (420, true, false),
            (465, false, false),
        ] {
            assert_eq!(!within(&[&certificate], at(day)).is_error(), valid, "day {day}");
            assert_eq!(
                lasting(&[&certificate], at(day)) == Outcome::fine(),
                lasts,
                "day {day}"
            );
        }
    }

    #[test]
    fn other_algorithms_are_named_with_their_certificate() {
        let mut other = certificate();
        assert_eq!(
            supported(&[&other], Description::fault_as_anchor),
            Outcome::fine()
        );
        other.key = "ECDSA P-384".into();
        let Outcome::Error(why) = supported(&[&other], Description::fault_as_anchor) else {
            panic!("P-384 is not supported by Linkerd's proxies");
        };
        assert!(why.contains("* CN=root: its key is ECDSA P-384"), "{why}");
    }

    #[test]
    fn addresses_outside_the_networks_are_named() {
        let outcome = |address: &str| {
            contained(
                "10.0.0.0/8, fd00::/8",
                std::iter::once(("test/web".to_owned(), address.to_owned())),
            )
        };
        assert_eq!(outcome("10.42.0.9"), Outcome::fine());
        assert_eq!(outcome("fd00::9"), Outcome::fine());
        let Outcome::Error(why) = outcome("192.0.2.1") else {
            panic!("192.0.2.1 is outside");
        };
        assert!(why.contains("test/web (192.0.2.1)"), "{why}");
    }
}
