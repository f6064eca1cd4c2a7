//! `link` and `link-gen`: run against the exporting cluster, applied to the importing one.
//!
//! What the gateway Service says becomes the Link, and the token of an account becomes a kubeconfig; both are pure
//! functions of objects that [`objects`] and [`run`] fetch. Source: `spec/multicluster.md` 2.2 and 4.3.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Duration;

use base64::Engine as _;
use hawser_core::ClusterName;
use hawser_crd::keys;
use hawser_crd::link::{LinkSpec, ProbeSpec, parse_duration};
use hawser_crd::selector;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Secret, Service};
use kube::api::ListParams;
use kube::config::Cluster;
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::manifests::{self, LinkManifest, Names, Settings};
use super::mesh_values;
use crate::kube::{ClusterArgs, is_missing, problem};
use crate::output::{OutputArgs, ValueArgs, print};
use crate::problem::Problem;

/// A load balancer's address and an account's token may be a moment in coming.
const PATIENCE: Duration = Duration::from_secs(20);

/// Kubernetes' label for nodes that take no traffic from outside.
const NOT_FOR_OUTSIDE: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// Whether the controller is part of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Controller {
    Included,
    Left,
}

#[derive(Clone, Debug, clap::Args)]
pub(super) struct LinkArgs {
    /// What the importing cluster calls this one; suffix of the mirrors' names
    #[arg(long)]
    cluster_name: String,
    #[arg(long, default_value = keys::MULTICLUSTER_NAMESPACE)]
    namespace: String,
    /// Address of this cluster's API server as the importing cluster reaches it
    #[arg(long, default_value = "")]
    api_server_address: String,
    /// Account whose token the importing cluster uses
    #[arg(long, default_value = keys::REMOTE_ACCESS_DEFAULT)]
    service_account_name: String,
    #[arg(long, default_value = keys::GATEWAY_NAME)]
    gateway_name: String,
    #[arg(long, default_value = keys::MULTICLUSTER_NAMESPACE)]
    gateway_namespace: String,
    /// Services to mirror behind the gateway
    #[arg(long, short = 'l', default_value = "mirror.linkerd.io/exported=true")]
    selector: String,
    /// Services to mirror without the gateway, over a flat network
    #[arg(long, default_value = "mirror.linkerd.io/exported=remote-discovery")]
    remote_discovery_selector: String,
    /// Services that join a federated service
    #[arg(long, default_value = "mirror.linkerd.io/federated=member")]
    federated_service_selector: String,
    /// Addresses of the gateway instead of its load balancer's, with commas between them
    #[arg(long, default_value = "")]
    gateway_addresses: String,
    /// Port of the gateway instead of its Service's
    #[arg(long)]
    gateway_port: Option<u16>,
    #[arg(long, value_delimiter = ',')]
    excluded_annotations: Vec<String>,
    #[arg(long, value_delimiter = ',')]
    excluded_labels: Vec<String>,
    /// Link through the gateway
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    gateway: bool,
    /// Log level of the controller
    #[arg(long, default_value = "info")]
    log_level: String,
    /// Log format of the controller
    #[arg(long, default_value = "plain", value_parser = ["plain", "json"])]
    log_format: String,
    /// Registry of the controller's image
    #[arg(long)]
    registry: Option<String>,
    /// Version of the controller's image
    #[arg(long)]
    control_plane_version: Option<String>,
    /// Accepted for compatibility: what failed is tried again until it succeeds
    #[arg(long, hide = true)]
    service_mirror_retry_limit: Option<u32>,
    /// Three replicas of the controller, on different nodes
    #[arg(long)]
    ha: bool,
    #[command(flatten)]
    values: ValueArgs,
    #[command(flatten)]
    output: OutputArgs,
}

const DEFAULT_SELECTOR: &str = "mirror.linkerd.io/exported=true";

pub(super) async fn run(
    cluster: &ClusterArgs,
    args: LinkArgs,
    controller: Controller,
) -> Result<ExitCode, Problem> {
    let what = "cannot make the link";
    let contradiction = [
        (args.selector != DEFAULT_SELECTOR, "--selector"),
        (!args.gateway_addresses.is_empty(), "--gateway-addresses"),
        (args.gateway_port.is_some(), "--gateway-port"),
    ];
    if let Some((_, flag)) = contradiction
        .into_iter()
        .find(|(is_given, _)| !args.gateway && *is_given)
    {
        return Err(Problem::new(
            what,
            format!("{flag} means nothing with --gateway=false"),
            "leave one of them out",
        ));
    }
    check_name(&args.cluster_name)?;
    let connection = cluster.connect().await?;
    let (client, linkerd) = (&connection.client, &cluster.linkerd_namespace);
    let mesh = mesh_values(client, linkerd).await?;
    let mut overrides = json!({
        "namespace": args.namespace, "linkerdNamespace": linkerd,
        "logLevel": args.log_level, "logFormat": args.log_format,
        "replicas": if args.ha { 3 } else { 1 }, "enablePodAntiAffinity": args.ha,
    });
    if let Some(registry) = &args.registry {
        overrides["controllerImage"] = elsewhere(&mesh.controller_image, registry).into();
    }
    if let Some(version) = &args.control_plane_version {
        overrides["controllerImageVersion"] = version.as_str().into();
    }
    let settings = super::settings(&mesh, overrides, &args.values)?;
    let gateway = if args.gateway {
        let wanted = Wanted {
            namespace: &args.gateway_namespace,
            name: &args.gateway_name,
            addresses: &args.gateway_addresses,
            port: args.gateway_port,
        };
        Some(find_gateway(client, &wanted, PATIENCE).await?)
    } else {
        None
    };
    let token = find_token(client, &args.namespace, &args.service_account_name, PATIENCE).await?;
    let mut target = connection.cluster.clone();
    inline_authority(&mut target, &token)?;
    if args.api_server_address.is_empty() {
        publish_server(client, &mut target).await?;
    } else {
        target.server = Some(args.api_server_address.clone());
    }
    let parse = |flag: &str, text: &str| {
        selector::from_query(text).map_err(|error| Problem::new(what, error, format!("{flag} name=value")))
    };
    let spec = LinkSpec {
        selector: args
            .gateway
            .then(|| parse("--selector", &args.selector))
            .transpose()?,
        remote_discovery_selector: Some(parse(
            "--remote-discovery-selector",
            &args.remote_discovery_selector,
        )?),
        federated_service_selector: Some(parse(
            "--federated-service-selector",
            &args.federated_service_selector,
        )?),
        excluded_annotations: args.excluded_annotations.clone(),
        excluded_labels: args.excluded_labels.clone(),
        ..link_spec(&args.cluster_name, &mesh.cluster_domain, linkerd, gateway)
    };
    let kubeconfig = kubeconfig(
        &connection.context,
        &args.service_account_name,
        &token.token,
        &target,
    );
    let has_gateway = args.gateway;
    let manifest = LinkManifest {
        cluster: &args.cluster_name,
        kubeconfig: &kubeconfig,
        trust_domain: mesh.trust_domain(),
        cluster_domain: &mesh.cluster_domain,
        spec,
    };
    let objects = match controller {
        Controller::Included => manifests::link_and_controller(&settings, &manifest, has_gateway),
        Controller::Left => manifests::link(&settings, &manifest),
    };
    print(&objects, args.output.output)
}

/// An image's name in another registry.
fn elsewhere(image: &str, registry: &str) -> String {
    let name = image.rsplit('/').next().unwrap_or(image);
    format!("{}/{name}", registry.trim_end_matches('/'))
}

/// A link with all defaults, with its controller.
pub(super) async fn objects(
    target: &Client,
    cluster_name: &str,
    api_url: &str,
    settings: &Settings,
) -> Result<Vec<Value>, Problem> {
    check_name(cluster_name)?;
    let mesh = mesh_values(target, &settings.linkerd_namespace).await?;
    let wanted = Wanted {
        namespace: &settings.namespace,
        name: &settings.gateway.name,
        addresses: "",
        port: None,
    };
    let gateway = find_gateway(target, &wanted, PATIENCE).await?;
    let token = find_token(target, &settings.namespace, keys::REMOTE_ACCESS_DEFAULT, PATIENCE).await?;
    let mut cluster = Cluster {
        server: Some(api_url.to_owned()),
        ..Default::default()
    };
    inline_authority(&mut cluster, &token)?;
    let exported = |query: &str| selector::from_query(query).ok();
    let spec = LinkSpec {
        selector: exported(DEFAULT_SELECTOR),
        remote_discovery_selector: exported("mirror.linkerd.io/exported=remote-discovery"),
        federated_service_selector: exported("mirror.linkerd.io/federated=member"),
        ..link_spec(
            cluster_name,
            &mesh.cluster_domain,
            &settings.linkerd_namespace,
            Some(gateway),
        )
    };
    let kubeconfig = kubeconfig(cluster_name, keys::REMOTE_ACCESS_DEFAULT, &token.token, &cluster);
    let manifest = LinkManifest {
        cluster: cluster_name,
        kubeconfig: &kubeconfig,
        trust_domain: mesh.trust_domain(),
        cluster_domain: &mesh.cluster_domain,
        spec,
    };
    Ok(manifests::link_and_controller(settings, &manifest, true))
}

fn check_name(name: &str) -> Result<(), Problem> {
    let what = "cannot make the link";
    let attempt = "--cluster-name with a short name such as east";
    name.parse::<ClusterName>()
        .map_err(|error| Problem::new(what, error, attempt))?;
    // The longest name that is made of it, besides the mirrors': the credentials' role.
    let longest = Names::linked(name).controller;
    longest
        .parse::<hawser_core::ServiceName>()
        .map_err(|error| Problem::new(what, error, attempt))?;
    Ok(())
}

struct Wanted<'a> {
    namespace: &'a str,
    name: &'a str,
    addresses: &'a str,
    port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq)]
struct Gateway {
    addresses: String,
    port: u16,
    identity: String,
    probe: ProbeSpec,
}

fn link_spec(cluster: &str, domain: &str, linkerd: &str, gateway: Option<Gateway>) -> LinkSpec {
    let mut spec = LinkSpec {
        target_cluster_name: cluster.into(),
        target_cluster_domain: domain.into(),
        target_cluster_linkerd_namespace: linkerd.into(),
        cluster_credentials_secret: keys::credentials_secret(cluster),
        ..LinkSpec::default()
    };
    if let Some(gateway) = gateway {
        spec.gateway_address = gateway.addresses;
        spec.gateway_port = gateway.port.to_string();
        spec.gateway_identity = gateway.identity;
        spec.probe_spec = gateway.probe;
    }
    spec
}

async fn find_gateway(client: &Client, wanted: &Wanted<'_>, patience: Duration) -> Result<Gateway, Problem> {
    let what = format!("cannot find the gateway {}/{}", wanted.namespace, wanted.name);
    let services: Api<Service> = Api::namespaced(client.clone(), wanted.namespace);
    let (deadline, mut is_waiting) = (Instant::now() + patience, false);
    loop {
        let service = match services.get(wanted.name).await {
            Ok(service) => service,
            Err(error) if is_missing(&error) => {
                let attempt = "hawser mc install | kubectl apply -f -, or --gateway=false, or --gateway-name";
                return Err(Problem::new(what, error, attempt));
            }
            Err(error) => return Err(problem(what, error)),
        };
        let kind = service.spec.as_ref().and_then(|spec| spec.type_.as_deref());
        match gateway(&service, wanted) {
            Err(GatewayError::NoAddress) if kind == Some("NodePort") => {
                let addresses = node_addresses(client, &service).await?;
                let wanted = Wanted {
                    addresses: &addresses,
                    ..*wanted
                };
                return gateway(&service, &wanted)
                    .map_err(|error| Problem::new(&what, error, error.attempt()));
            }
            Err(GatewayError::NoAddress) if kind == Some("LoadBalancer") && Instant::now() < deadline => {
                if !is_waiting {
                    note(&format!(
                        "waiting for the load balancer's address (up to {patience:?})"
                    ));
                }
                is_waiting = true;
                tokio::time::sleep(Duration::from_millis(250)).await;
            }
            result => return result.map_err(|error| Problem::new(&what, error, error.attempt())),
        }
    }
}

/// Addresses of the nodes, which all answer on a node port.
async fn node_addresses(client: &Client, gateway: &Service) -> Result<String, Problem> {
    let what = "cannot tell at which addresses the gateway's node port answers";
    let attempt = "--gateway-addresses ADDRESS,ADDRESS";
    let policy = gateway
        .spec
        .as_ref()
        .and_then(|spec| spec.external_traffic_policy.as_deref());
    if policy == Some("Local") {
        let why = "its externalTrafficPolicy is Local: only nodes with a pod of it answer, and pods move";
        return Err(Problem::new(what, why, attempt));
    }
    let nodes: Api<Node> = Api::all(client.clone());
    let nodes = nodes.list(&ListParams::default()).await;
    let nodes = nodes.map_err(|error| Problem::new(what, error, attempt))?.items;
    for (kind, remark) in [
        ("ExternalIP", ""),
        (
            "InternalIP",
            ", internal ones for want of others: the other cluster must have a route to them",
        ),
    ] {
        let addresses = of_ready_nodes(&nodes, kind);
        if !addresses.is_empty() {
            let addresses = Vec::from_iter(addresses).join(",");
            note(&format!(
                "the link uses the nodes' addresses {addresses}{remark}; link again when nodes come and go, or give a \
                 name that follows them with --gateway-addresses"
            ));
            return Ok(addresses);
        }
    }
    Err(Problem::new(what, "no ready node has an address", attempt))
}

fn of_ready_nodes(nodes: &[Node], kind: &str) -> BTreeSet<String> {
    let is_ready = |node: &&Node| {
        let conditions = node
            .status
            .iter()
            .flat_map(|status| status.conditions.iter().flatten());
        let mut ready = conditions.filter(|condition| condition.type_ == "Ready");
        ready.any(|condition| condition.status == "True") && !node.labels().contains_key(NOT_FOR_OUTSIDE)
    };
    let ready = nodes
        .iter()
        .filter(is_ready)
        .filter_map(|node| node.status.as_ref());
    let addresses = ready.flat_map(|status| status.addresses.iter().flatten());
    addresses
        .filter(|address| address.type_ == kind)
        .map(|address| address.address.clone())
        .collect()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum GatewayError {
    #[error("it has no ingress addresses")]
    NoAddress,
    #[error("its service has no annotation {0}")]
    NoAnnotation(&'static str),
    #[error("its service has no usable port named {0}")]
    NoPort(&'static str),
    #[error("its annotation {} is not a duration", keys::PROBE_PERIOD)]
    Period,
}

impl GatewayError {
    fn attempt(self) -> &'static str {
        match self {
            Self::NoAddress => "wait for the load balancer, or give --gateway-addresses",
            Self::NoAnnotation(_) | Self::NoPort(_) | Self::Period => {
                "hawser mc install | kubectl apply -f -"
            }
        }
    }
}

/// What a gateway Service says about its gateway.
fn gateway(service: &Service, wanted: &Wanted<'_>) -> Result<Gateway, GatewayError> {
    let annotation = |name: &'static str| {
        let value = service
            .metadata
            .annotations
            .as_ref()
            .and_then(|annotations| annotations.get(name));
        value
            .filter(|value| !value.is_empty())
            .cloned()
            .ok_or(GatewayError::NoAnnotation(name))
    };
    let spec = service.spec.clone().unwrap_or_default();
    let is_node_port = spec.type_.as_deref() == Some("NodePort");
    let port = |name: &'static str| {
        let port = spec
            .ports
            .iter()
            .flatten()
            .find(|port| port.name.as_deref() == Some(name));
        let port = port.ok_or(GatewayError::NoPort(name))?;
        let number = if is_node_port {
            port.node_port
        } else {
            Some(port.port)
        };
        number
            .and_then(|number| u16::try_from(number).ok())
            .filter(|n| *n > 0)
            .ok_or(GatewayError::NoPort(name))
    };
    let listed: Vec<&str> = wanted
        .addresses
        .split(',')
        .map(str::trim)
        .filter(|a| !a.is_empty())
        .collect();
    let addresses = if listed.is_empty() {
        let status = service
            .status
            .as_ref()
            .and_then(|status| status.load_balancer.as_ref());
        let ingress = status
            .and_then(|balancer| balancer.ingress.as_ref())
            .into_iter()
            .flatten();
        ingress
            .filter_map(|entry| entry.ip.clone().or_else(|| entry.hostname.clone()))
            .collect::<Vec<_>>()
            .join(",")
    } else {
        listed.join(",")
    };
    if addresses.is_empty() {
        return Err(GatewayError::NoAddress);
    }
    let period = match annotation(keys::PROBE_PERIOD)? {
        seconds if seconds.parse::<u32>().is_ok() => format!("{seconds}s"),
        duration if parse_duration(&duration).is_some() => duration,
        _ => return Err(GatewayError::Period),
    };
    Ok(Gateway {
        addresses,
        port: match wanted.port {
            Some(port) => port,
            None => port(keys::GATEWAY_PORT_NAME)?,
        },
        identity: annotation(keys::GATEWAY_IDENTITY)?,
        probe: ProbeSpec {
            path: annotation(keys::PROBE_PATH)?,
            port: port(keys::PROBE_PORT_NAME)?.to_string(),
            period,
            ..ProbeSpec::default()
        },
    })
}

struct Token {
    token: String,
    /// The cluster's certificate authority, as it gives it to its own pods.
    authority: Option<Vec<u8>>,
}

async fn find_token(
    client: &Client,
    namespace: &str,
    account: &str,
    patience: Duration,
) -> Result<Token, Problem> {
    let what = format!("cannot find the token of service account {namespace}/{account}");
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let params = ListParams::default().fields("type=kubernetes.io/service-account-token");
    let (deadline, mut is_waiting) = (Instant::now() + patience, false);
    loop {
        let list = secrets
            .list(&params)
            .await
            .map_err(|error| problem(&what, error))?;
        let of_account = |secret: &&Secret| {
            let annotations = secret.metadata.annotations.as_ref();
            annotations
                .and_then(|a| a.get("kubernetes.io/service-account.name"))
                .is_some_and(|name| name == account)
        };
        let secret = list.items.iter().find(of_account);
        let data = secret.and_then(|secret| secret.data.clone());
        let token = data.as_ref().and_then(|data| data.get("token"));
        match token.and_then(|token| String::from_utf8(token.0.clone()).ok()) {
            Some(token) => {
                let authority = data.and_then(|data| data.get("ca.crt").map(|bytes| bytes.0.clone()));
                return Ok(Token { token, authority });
            }
            None if secret.is_some() && Instant::now() < deadline => {
                if !is_waiting {
                    note(&format!("waiting for the account's token (up to {patience:?})"));
                }
                is_waiting = true;
                tokio::time::sleep(Duration::from_millis(250)).await;
            }
            None => {
                let attempt =
                    format!("hawser mc allow --service-account-name {account} | kubectl apply -f -");
                return Err(Problem::new(
                    what,
                    "no secret of that account has a token",
                    attempt,
                ));
            }
        }
    }
}

/// Where the kubeconfig's server is this machine only, takes the one that the cluster publishes about itself.
async fn publish_server(client: &Client, cluster: &mut Cluster) -> Result<(), Problem> {
    let Some(server) = cluster.server.clone().filter(|server| is_local(server)) else {
        return Ok(());
    };
    let what = "cannot tell how another cluster reaches this one's API server";
    let attempt = "--api-server-address https://ADDRESS:PORT";
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "kube-public");
    let published = match maps.get_opt("cluster-info").await {
        Ok(map) => map.and_then(|map| published_server(&map)),
        Err(error) => {
            let why = format!("{server} is this machine only, and cluster-info can't be read: {error}");
            return Err(Problem::new(what, why, attempt));
        }
    };
    let Some(published) = published else {
        let why = format!(
            "{server} is this machine only, and the cluster publishes no other (configmap kube-public/cluster-info)"
        );
        return Err(Problem::new(what, why, attempt));
    };
    note(&format!(
        "{server} is this machine only; the link uses {published}, which the cluster publishes"
    ));
    cluster.server = Some(published);
    Ok(())
}

/// kubeadm's convention: a kubeconfig without users.
fn published_server(map: &ConfigMap) -> Option<String> {
    let text = map.data.as_ref()?.get("kubeconfig")?;
    let published = kube::config::Kubeconfig::from_yaml(text).ok()?;
    let mut servers = published
        .clusters
        .into_iter()
        .filter_map(|named| named.cluster?.server);
    servers.find(|server| !is_local(server))
}

/// Whether an address means another machine on every machine.
fn is_local(server: &str) -> bool {
    let Ok(uri) = server.parse::<http::Uri>() else {
        return false;
    };
    let host = uri.host().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    match host.parse::<std::net::IpAddr>() {
        Ok(ip) => ip.is_loopback() || ip.is_unspecified(),
        Err(_) => host == "localhost" || host.ends_with(".localhost"),
    }
}

/// Tells people what happens, beside the output.
#[expect(clippy::print_stderr, reason = "this is the command line's voice")]
fn note(text: &str) {
    eprintln!("note: {text}");
}

/// A kubeconfig must carry its certificate authority: a path means nothing in another cluster's pod.
fn inline_authority(cluster: &mut Cluster, token: &Token) -> Result<(), Problem> {
    if cluster.certificate_authority_data.is_some() {
        return Ok(());
    }
    let bytes = match cluster.certificate_authority.take() {
        Some(path) => Some(std::fs::read(&path).map_err(|error| {
            Problem::new(
                format!("cannot read the certificate authority {path}"),
                error,
                "check the kubeconfig",
            )
        })?),
        None => token.authority.clone(),
    };
    cluster.certificate_authority_data =
        bytes.map(|bytes| base64::engine::general_purpose::STANDARD.encode(bytes));
    Ok(())
}

/// One context, one cluster, one user. JSON is YAML, and needs no quoting rules.
fn kubeconfig(context: &str, account: &str, token: &str, cluster: &Cluster) -> String {
    let mut entry = json!({"server": cluster.server});
    for (field, value) in [
        (
            "certificate-authority-data",
            cluster.certificate_authority_data.clone().map(Value::from),
        ),
        (
            "tls-server-name",
            cluster.tls_server_name.clone().map(Value::from),
        ),
        (
            "insecure-skip-tls-verify",
            cluster.insecure_skip_tls_verify.map(Value::from),
        ),
        ("proxy-url", cluster.proxy_url.clone().map(Value::from)),
    ] {
        if let Some(value) = value {
            entry[field] = value;
        }
    }
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": context, "preferences": {},
        "clusters": [{"name": context, "cluster": entry}],
        "contexts": [{"name": context, "context": {"cluster": context, "user": account}}],
        "users": [{"name": account, "user": {"token": token}}],
    });
    serde_saphyr::to_string(&config).unwrap_or_else(|_| config.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(changes: Value) -> Service {
        let mut service = json!({
            "metadata": {"annotations": {
                keys::GATEWAY_IDENTITY: "gateway.identity", keys::PROBE_PATH: "/ready", keys::PROBE_PERIOD: "3",
            }},
            "spec": {"type": "LoadBalancer", "ports": [
                {"name": "mc-gateway", "port": 4143, "nodePort": 31000}, {"name": "mc-probe", "port": 4191, "nodePort": 31001},
            ]},
            "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.7"}, {"hostname": "lb.example"}]}},
        });
        hawser_control::values::merge(&mut service, changes);
        serde_json::from_value(service).unwrap()
    }

    fn wanted() -> Wanted<'static> {
        Wanted {
            namespace: "n",
            name: "g",
            addresses: "",
            port: None,
        }
    }

    #[test]
    fn the_gateways_service_says_where_it_is_and_how_to_probe_it() {
        let found = gateway(&service(json!({})), &wanted()).unwrap();
        assert_eq!(
            (found.addresses.as_str(), found.port),
            ("203.0.113.7,lb.example", 4143)
        );
        assert_eq!(
            (found.probe.port.as_str(), found.probe.period.as_str()),
            ("4191", "3s")
        );
        assert_eq!(found.probe.timeout, "", "left to the definition's default");
    }

    #[test]
    fn an_image_may_come_from_elsewhere() {
        for registry in ["local:5000/mesh", "local:5000/mesh/"] {
            let image = elsewhere("cr.example:5000/mesh/controller", registry);
            assert_eq!(image, "local:5000/mesh/controller");
        }
    }

    #[test]
    fn flags_win_over_the_load_balancer_and_node_ports_over_ports() {
        let node_port = service(json!({"spec": {"type": "NodePort"}, "status": null}));
        assert_eq!(gateway(&node_port, &wanted()), Err(GatewayError::NoAddress));
        let given = Wanted {
            addresses: "192.0.2.1, 192.0.2.2",
            ..wanted()
        };
        let found = gateway(&node_port, &given).unwrap();
        assert_eq!(
            (found.addresses.as_str(), found.port, found.probe.port.as_str()),
            ("192.0.2.1,192.0.2.2", 31000, "31001")
        );
        assert_eq!(
            gateway(
                &node_port,
                &Wanted {
                    port: Some(5000),
                    ..given
                }
            )
            .unwrap()
            .port,
            5000
        );
    }

    #[test]
    fn only_ready_nodes_that_take_traffic_from_outside_are_named() {
        let node = |ready: &str, label: &str, address: &str| -> Node {
            serde_json::from_value(json!({
                "metadata": {"labels": {label: ""}},
                "status": {
                    "conditions": [{"type": "Ready", "status": ready}],
                    "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}, {"type": "ExternalIP", "address": address}],
                },
            }))
            .unwrap()
        };
        let nodes = [
            node("True", "a", "192.0.2.2"),
            node("True", "a", "192.0.2.1"),
            node("Unknown", "a", "192.0.2.3"),
            node("True", NOT_FOR_OUTSIDE, "192.0.2.4"),
        ];
        let found = of_ready_nodes(&nodes, "ExternalIP");
        assert_eq!(Vec::from_iter(found), ["192.0.2.1", "192.0.2.2"]);
        assert_eq!(Vec::from_iter(of_ready_nodes(&nodes, "InternalIP")), ["10.0.0.1"]);
    }

    #[test]
    fn what_a_gateway_lacks_is_named() {
        let without = |name: &str| {
            gateway(
                &service(json!({"metadata": {"annotations": {name: null}}})),
                &wanted(),
            )
        };
        assert_eq!(
            without(keys::GATEWAY_IDENTITY),
            Err(GatewayError::NoAnnotation(keys::GATEWAY_IDENTITY))
        );
        assert_eq!(
            without(keys::PROBE_PATH),
            Err(GatewayError::NoAnnotation(keys::PROBE_PATH))
        );
        let period = service(json!({"metadata": {"annotations": {keys::PROBE_PERIOD: "soon"}}}));
        assert_eq!(gateway(&period, &wanted()), Err(GatewayError::Period));
    }

    #[test]
    fn a_links_kubeconfig_has_one_of_each_and_can_be_read() {
        let cluster = Cluster {
            server: Some("https://192.0.2.1:6443".into()),
            certificate_authority_data: Some("Q0E=".into()),
            ..Default::default()
        };
        let text = kubeconfig("east", "account", "token", &cluster);
        let read = kube::config::Kubeconfig::from_yaml(&text).unwrap();
        assert_eq!(read.current_context.as_deref(), Some("east"));
        assert_eq!(
            (read.clusters.len(), read.contexts.len(), read.auth_infos.len()),
            (1, 1, 1)
        );
        let entry = read.clusters[0].cluster.clone().unwrap();
        assert_eq!(entry.server, cluster.server);
        assert_eq!(
            entry.certificate_authority_data,
            cluster.certificate_authority_data
        );
    }

    #[test]
    fn cluster_names_that_make_too_long_names_are_refused() {
        assert!(check_name("east").is_ok());
        for name in ["", "East", "a.b", &"a".repeat(50)] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }

    async fn create<K>(api: Api<K>, value: Value)
    where
        K: kube::Resource + Clone + serde::de::DeserializeOwned + serde::Serialize + std::fmt::Debug,
    {
        let object: K = serde_json::from_value(value).unwrap();
        api.create(&kube::api::PostParams::default(), &object)
            .await
            .unwrap();
    }

    /// A cluster with the extension, as far as links look at it.
    async fn target() -> Client {
        let cluster = hawser_sandbox::api::Cluster::new(Default::default());
        let client = cluster.client(hawser_sandbox::api::Identity::admin());
        for name in [keys::CONTROL_PLANE_NAMESPACE, keys::MULTICLUSTER_NAMESPACE] {
            let namespaces: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(client.clone());
            create(namespaces, json!({"metadata": {"name": name}})).await;
        }
        let values = hawser_control::values::Values::default().to_yaml().unwrap();
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), keys::CONTROL_PLANE_NAMESPACE);
        create(
            maps,
            json!({"metadata": {"name": keys::CONFIG_MAP}, "data": {"values": values}}),
        )
        .await;
        let extension = keys::MULTICLUSTER_NAMESPACE;
        for object in manifests::render(&Settings::default()).unwrap() {
            if object["kind"] == "Service" {
                create(Api::<Service>::namespaced(client.clone(), extension), object).await;
            }
        }
        let token = json!({
            "metadata": {
                "name": "token",
                "annotations": {"kubernetes.io/service-account.name": keys::REMOTE_ACCESS_DEFAULT},
            },
            "type": "kubernetes.io/service-account-token",
            "stringData": {"token": "secret-token", "ca.crt": "CA"},
        });
        create(Api::<Secret>::namespaced(client.clone(), extension), token).await;
        client
    }

    #[tokio::test]
    async fn a_link_is_made_of_what_the_target_says() {
        let client = target().await;
        let services: Api<Service> = Api::namespaced(client.clone(), keys::MULTICLUSTER_NAMESPACE);
        let status = json!({"status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.7"}]}}});
        let params = kube::api::PatchParams::default();
        services
            .patch_status(keys::GATEWAY_NAME, &params, &kube::api::Patch::Merge(status))
            .await
            .unwrap();

        let made = objects(&client, "east", "https://192.0.2.1:6443", &Settings::default())
            .await
            .unwrap();
        let link = made.iter().find(|object| object["kind"] == "Link").unwrap();
        assert_eq!(
            link["spec"],
            json!({
                "targetClusterName": "east", "targetClusterDomain": "cluster.local",
                "targetClusterLinkerdNamespace": "linkerd",
                "clusterCredentialsSecret": "cluster-credentials-east",
                "gatewayAddress": "203.0.113.7", "gatewayPort": "4143",
                "gatewayIdentity": "linkerd-gateway.linkerd-multicluster.serviceaccount.identity.linkerd.cluster.local",
                "probeSpec": {"path": "/ready", "port": "4191", "period": "3s"},
                "selector": {"matchLabels": {keys::EXPORTED: "true"}},
                "remoteDiscoverySelector": {"matchLabels": {keys::EXPORTED: "remote-discovery"}},
                "federatedServiceSelector": {"matchLabels": {keys::FEDERATED: "member"}},
            })
        );
        let secret = made.iter().find(|object| object["kind"] == "Secret").unwrap();
        let text = secret["data"]["kubeconfig"].as_str().unwrap();
        let text = base64::engine::general_purpose::STANDARD.decode(text).unwrap();
        let read = kube::config::Kubeconfig::from_yaml(std::str::from_utf8(&text).unwrap()).unwrap();
        let cluster = read.clusters[0].cluster.clone().unwrap();
        assert_eq!(cluster.server.as_deref(), Some("https://192.0.2.1:6443"));
        assert_eq!(cluster.certificate_authority_data.as_deref(), Some("Q0E="));
    }

    #[tokio::test]
    async fn a_server_that_only_this_machine_knows_is_replaced_by_what_the_cluster_publishes() {
        let client = target().await;
        let local = || Cluster {
            server: Some("https://127.0.0.1:6443".into()),
            ..Default::default()
        };
        let problem = publish_server(&client, &mut local())
            .await
            .unwrap_err()
            .to_string();
        assert!(
            problem.contains("https://127.0.0.1:6443 is this machine only")
                && problem.contains("try: --api-server-address"),
            "{problem}"
        );
        let namespaces: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(client.clone());
        if namespaces.get_opt("kube-public").await.unwrap().is_none() {
            create(namespaces, json!({"metadata": {"name": "kube-public"}})).await;
        }
        let published = json!({
            "apiVersion": "v1", "kind": "Config",
            "clusters": [{"name": "", "cluster": {"server": "https://192.0.2.1:6443"}}],
        });
        let map =
            json!({"metadata": {"name": "cluster-info"}, "data": {"kubeconfig": published.to_string()}});
        create(Api::<ConfigMap>::namespaced(client.clone(), "kube-public"), map).await;
        let mut cluster = local();
        publish_server(&client, &mut cluster).await.unwrap();
        assert_eq!(cluster.server.as_deref(), Some("https://192.0.2.1:6443"));
        let mut elsewhere = Cluster {
            server: Some("https://api.example".into()),
            ..Default::default()
        };
        publish_server(&client, &mut elsewhere).await.unwrap();
        assert_eq!(elsewhere.server.as_deref(), Some("https://api.example"));
    }

    #[test]
    fn loopback_has_many_names() {
        for server in [
            "https://127.0.0.1:6443",
            "https://[::1]:6443",
            "https://localhost:6443/path",
            "https://0.0.0.0:6443",
        ] {
            assert!(is_local(server), "{server}");
        }
        for server in ["https://192.0.2.1", "https://api.example:6443", "nonsense"] {
            assert!(!is_local(server), "{server}");
        }
    }

    #[tokio::test]
    async fn a_gateway_without_an_address_is_a_problem_with_a_way_out() {
        let client = target().await;
        let wanted = Wanted {
            namespace: keys::MULTICLUSTER_NAMESPACE,
            name: keys::GATEWAY_NAME,
            ..wanted()
        };
        let problem = find_gateway(&client, &wanted, Duration::ZERO).await.unwrap_err();
        assert_eq!(
            problem.to_string(),
            "error: cannot find the gateway linkerd-multicluster/linkerd-gateway\n  \
             why: it has no ingress addresses\n  \
             try: wait for the load balancer, or give --gateway-addresses"
        );
    }
}
