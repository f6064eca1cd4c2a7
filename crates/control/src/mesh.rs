//! What destination and policy must know about the mesh to answer, and how they read the names that proxies ask for.
//!
//! Both give answers about the same pods, so both take these settings from here: a disagreement about what is opaque
//! or who is who would break connections in ways that neither log explains.

use std::net::{IpAddr, SocketAddr};

use hawser_core::identity::{Identity, TrustDomain};
use ipnet::IpNet;
use serde::Deserialize;

use crate::ports::Ports;
use crate::view::objects::{Pod, Service, network};
use crate::view::{Key, State, Topic, Topics};
use crate::{keys, policy};

/// Command-line settings that destination and policy share.
#[derive(Clone, Debug, clap::Args)]
pub struct MeshArgs {
    /// Namespace of the control plane
    #[arg(long, default_value = "linkerd")]
    pub controller_namespace: String,
    #[arg(long, default_value = "cluster.local")]
    pub cluster_domain: String,
    /// Suffix of all identities; the cluster domain if absent
    #[arg(long)]
    pub identity_trust_domain: Option<String>,
    #[arg(
        long,
        default_value = "10.0.0.0/8,100.64.0.0/10,172.16.0.0/12,192.168.0.0/16,fd00::/8"
    )]
    pub cluster_networks: String,
    #[arg(long, default_value = "25,587,3306,4444,5432,6379,9300,11211")]
    pub default_opaque_ports: String,
    /// Inbound policy of pods that name none
    #[arg(long, default_value = "all-unauthenticated")]
    pub default_policy: policy::DefaultPolicy,
    /// Networks from which probes are let in without authentication
    #[arg(long, default_value = "0.0.0.0/0,::/0")]
    pub probe_networks: String,
    /// Lets proxies carry HTTP/1 over HTTP/2 between each other
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    pub enable_h2_upgrade: bool,
    /// Sends all mesh traffic to the proxies' own port: `transport-header`, or only what is opaque: `transparent`
    #[arg(long, default_value = "transport-header", value_parser = ["transport-header", "transparent"])]
    pub outbound_transport_mode: String,
    /// Label that exports a Service to other clusters
    #[arg(long, default_value = keys::MIRROR_EXPORTED)]
    pub gateway_export_label: String,
    /// Values of that label; gateways serve only these Services
    #[arg(long, default_value = "true,remote-discovery", value_delimiter = ',')]
    pub gateway_export_values: Vec<String>,
    /// Lets gateways serve every Service
    #[arg(long)]
    pub gateway_exports_unrestricted: bool,
}

/// The settings, understood.
#[derive(Clone, Debug)]
pub struct Mesh {
    pub control_plane_namespace: String,
    pub cluster_domain: String,
    pub trust_domain: TrustDomain,
    pub cluster_networks: Vec<IpNet>,
    pub opaque_ports: Ports,
    pub default_policy: policy::DefaultPolicy,
    pub probe_networks: Vec<IpNet>,
    pub h2_upgrade: bool,
    pub transport_header: bool,
    /// Label and values that export a Service; `None` exports all.
    pub exports: Option<(String, Vec<String>)>,
}

impl TryFrom<MeshArgs> for Mesh {
    type Error = anyhow::Error;

    fn try_from(args: MeshArgs) -> Result<Self, anyhow::Error> {
        Ok(Self {
            trust_domain: args
                .identity_trust_domain
                .as_deref()
                .unwrap_or(&args.cluster_domain)
                .parse()?,
            cluster_networks: networks(&args.cluster_networks)?,
            probe_networks: networks(&args.probe_networks)?,
            opaque_ports: Ports::parse(&args.default_opaque_ports),
            control_plane_namespace: args.controller_namespace,
            cluster_domain: args.cluster_domain,
            default_policy: args.default_policy,
            h2_upgrade: args.enable_h2_upgrade,
            transport_header: args.outbound_transport_mode == "transport-header",
            exports: (!args.gateway_exports_unrestricted)
                .then_some((args.gateway_export_label, args.gateway_export_values)),
        })
    }
}

fn networks(list: &str) -> Result<Vec<IpNet>, anyhow::Error> {
    list.split(',')
        .filter(|item| !item.trim().is_empty())
        .map(|item| {
            network(item).ok_or_else(|| anyhow::anyhow!("{item:?} is not a network such as 10.0.0.0/8"))
        })
        .collect()
}

impl Mesh {
    /// Whether a pod has a proxy of this control plane.
    pub fn owns(&self, pod: &Pod) -> bool {
        pod.labels.get(keys::CONTROL_PLANE_NS) == Some(&self.control_plane_namespace)
    }

    pub fn identity(&self, pod: &Pod) -> Option<Identity> {
        let (account, namespace) = (&pod.service_account, &pod.namespace);
        Identity::of_service_account(
            account,
            namespace,
            &self.control_plane_namespace,
            &self.trust_domain,
        )
        .ok()
    }

    pub fn is_exported(&self, service: &Service) -> bool {
        self.exports.as_ref().is_none_or(|(label, values)| {
            service
                .labels
                .get(label)
                .is_some_and(|value| values.contains(value))
        })
    }

    pub fn is_cluster_network(&self, ip: IpAddr) -> bool {
        self.cluster_networks.iter().any(|network| network.contains(&ip))
    }

    /// Whether the pod takes bytes on this port without looking at them, as annotations, defaults and Servers say.
    pub fn is_opaque(&self, state: &State, pod: &Pod, port: u16, topics: &mut Topics) -> bool {
        topics.insert(Topic::Policy(pod.namespace.clone()));
        match policy::inbound::server(state, pod, port) {
            Some(server)
                if server
                    .protocol
                    .as_deref()
                    .is_some_and(|protocol| protocol != "unknown") =>
            {
                server.protocol.as_deref() == Some("opaque")
            }
            _ => pod.is_opaque(port, &self.opaque_ports),
        }
    }

    pub fn service_name(&self, service: &Key) -> String {
        format!(
            "{}.{}.svc.{}",
            service.name, service.namespace, self.cluster_domain
        )
    }
}

/// What a proxy asks about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Address(SocketAddr),
    Service {
        service: Key,
        /// One pod of a headless Service, by host name.
        instance: Option<String>,
        port: u16,
    },
}

/// Why a name can't be asked about.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither an address with a port nor <service>.<namespace>.svc.<cluster domain>")]
pub struct NotATarget(String);

impl Target {
    /// Reads `10.1.2.3:80`, `web.emojivoto.svc.cluster.local:80` or `web-0.web.emojivoto.svc:80`. The port defaults
    /// to 80, as in a URL.
    pub fn parse(path: &str, cluster_domain: &str) -> Result<Self, NotATarget> {
        if let Ok(address) = path.parse() {
            return Ok(Self::Address(address));
        }
        let wrong = || NotATarget(path.to_owned());
        let (host, port) = match path.rsplit_once(':') {
            Some((host, port)) => (host, port.parse().map_err(|_| wrong())?),
            None => (path, 80),
        };
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        let local = host
            .strip_suffix(cluster_domain)
            .and_then(|host| host.strip_suffix('.'))
            .unwrap_or(&host);
        let labels: Vec<&str> = local.split('.').collect();
        let (instance, service, namespace) = match labels[..] {
            [service, namespace, "svc"] => (None, service, namespace),
            [instance, service, namespace, "svc"] => (Some(instance.to_owned()), service, namespace),
            _ => return Err(wrong()),
        };
        if labels.iter().any(|label| label.is_empty()) {
            return Err(wrong());
        }
        Ok(Self::Service {
            service: Key::new(namespace, service),
            instance,
            port,
        })
    }
}

/// Who asks: the opaque token that the injector gave the proxy. Proxies of other makers may send anything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Asker {
    #[serde(rename = "ns")]
    pub namespace: String,
    pub pod: String,
    #[serde(rename = "nodeName")]
    pub node: String,
}

impl Asker {
    pub fn parse(token: &str) -> Self {
        serde_json::from_str(token).unwrap_or_default()
    }

    /// Refuses a gateway that asks by name for a Service which isn't exported. An export would otherwise be a matter
    /// of mirroring only, and whoever may talk to the gateway could reach every Service behind it.
    pub fn may_ask_for(
        &self,
        mesh: &Mesh,
        state: &State,
        service: &Service,
        topics: &mut Topics,
    ) -> Result<(), tonic::Status> {
        let key = Key::new(&self.namespace, &self.pod);
        let gateway = state.pod(&key).is_some_and(Pod::is_gateway);
        if !gateway {
            return Ok(());
        }
        topics.insert(Topic::Pod(key));
        if mesh.is_exported(service) {
            return Ok(());
        }
        // FailedPrecondition is what proxies take as final. PermissionDenied would be asked again for ever.
        Err(tonic::Status::failed_precondition(format!(
            "service {} is not exported to other clusters",
            service.key()
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_addresses_services_or_instances() {
        let service = |namespace: &str, name: &str, instance: Option<&str>, port| Target::Service {
            service: Key::new(namespace, name),
            instance: instance.map(str::to_owned),
            port,
        };
        for (path, expected) in [
            ("10.0.0.1:80", Target::Address("10.0.0.1:80".parse().unwrap())),
            ("[fd00::1]:80", Target::Address("[fd00::1]:80".parse().unwrap())),
            (
                "web.test.svc.cluster.local:8080",
                service("test", "web", None, 8080),
            ),
            (
                "web.test.svc.cluster.local.:8080",
                service("test", "web", None, 8080),
            ),
            ("WEB.test.svc:1", service("test", "web", None, 1)),
            ("web.test.svc.cluster.local", service("test", "web", None, 80)),
            (
                "db-0.db.test.svc.cluster.local:5432",
                service("test", "db", Some("db-0"), 5432),
            ),
        ] {
            assert_eq!(Target::parse(path, "cluster.local"), Ok(expected), "{path}");
        }
        for wrong in [
            "",
            "example.com:80",
            "web.test.svc.cluster.local:x",
            ".test.svc:80",
            "a.b.c.d.svc:1",
            "web:80",
        ] {
            assert!(Target::parse(wrong, "cluster.local").is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_token_of_another_maker_is_nobody() {
        assert_eq!(Asker::parse("ns:test"), Asker::default());
        assert_eq!(
            Asker::parse(r#"{"ns":"a","pod":"b"}"#),
            Asker {
                namespace: "a".into(),
                pod: "b".into(),
                node: String::new()
            }
        );
    }
}
