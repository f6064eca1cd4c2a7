//! The containers and volumes that make a pod's proxy: what they are called, may do, and are told.
//!
//! Pure rendering from settled values. The environment is the contract with the proxy: `spec/proxy.md` 1.5; the rest is
//! 9.3 and 9.4.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::inject::{Component, Injection, object};
use crate::keys;
use crate::ports::Ports;
use crate::values::{MeshIdentity, Values};

const TOKEN_VOLUME: &str = "linkerd-identity-token";
const END_ENTITY_VOLUME: &str = "linkerd-identity-end-entity";
const XTABLES_VOLUME: &str = "linkerd-proxy-init-xtables-lock";

/// Whether the mesh's tap may see what the pod is asked and asks. What isn't a plain no to forbidding it forbids it.
pub(super) fn may_be_watched(component: Component, annotations: &BTreeMap<String, String>) -> bool {
    let forbids = annotations.get(keys::DISABLE_TAP).map(String::as_str);
    component == Component::None && matches!(forbids, None | Some("false"))
}

/// Lays what annotations say over the mesh's values. A value that can't be read leaves the mesh's in place, because a
/// pod with a default proxy is better than a pod without one.
pub(super) fn configure(
    values: &mut Values,
    annotations: &BTreeMap<String, String>,
    ports: &BTreeMap<String, u16>,
) {
    let numbers = |list: &str| Ports::parse_named(list, |name| ports.get(name).copied()).to_string();
    let proxy = &mut values.proxy;
    let init = &mut values.proxy_init;
    for (name, value) in annotations {
        let setting = [
            keys::CONFIG_PREFIX,
            keys::CONFIG_ALPHA_PREFIX,
            keys::CONFIG_BETA_PREFIX,
        ]
        .iter()
        .find_map(|prefix| name.strip_prefix(prefix));
        let Some(setting) = setting else { continue };
        let text = value.clone();
        match setting {
            "access-log" => proxy.access_log = text,
            "admin-port" => read(value, &mut proxy.ports.admin),
            "control-port" => read(value, &mut proxy.ports.control),
            "inbound-port" => read(value, &mut proxy.ports.inbound),
            "outbound-port" => read(value, &mut proxy.ports.outbound),
            "close-wait-timeout" => {
                if let Some(timeout) = hawser_crd::link::parse_duration(value) {
                    init.close_wait_timeout_secs = u32::try_from(timeout.as_secs()).unwrap_or(u32::MAX);
                }
            }
            "default-inbound-policy" => proxy.default_inbound_policy = text,
            "enable-external-profiles" => read(value, &mut proxy.enable_external_profiles),
            "enable-gateway" => read(value, &mut proxy.is_gateway),
            "image-pull-policy" => {
                proxy.image.pull_policy.clone_from(value);
                init.image.pull_policy = text;
            }
            "opaque-ports" => proxy.opaque_ports = numbers(value),
            "pod-inbound-ports" => proxy.pod_inbound_ports = numbers(value),
            "proxy-admin-shutdown" => proxy.enable_shutdown_endpoint = value == "enabled",
            "proxy-await" => proxy.r#await = value == "enabled",
            "proxy-cpu-limit" => proxy.resources.cpu.limit = text,
            "proxy-cpu-request" => proxy.resources.cpu.request = text,
            "proxy-memory-limit" => proxy.resources.memory.limit = text,
            "proxy-memory-request" => proxy.resources.memory.request = text,
            "proxy-ephemeral-storage-limit" => proxy.resources.ephemeral_storage.limit = text,
            "proxy-ephemeral-storage-request" => proxy.resources.ephemeral_storage.request = text,
            "proxy-disable-inbound-protocol-detect-timeout" => {
                read(value, &mut proxy.disable_inbound_protocol_detect_timeout);
            }
            "proxy-disable-outbound-protocol-detect-timeout" => {
                read(value, &mut proxy.disable_outbound_protocol_detect_timeout);
            }
            "proxy-enable-native-sidecar" => read(value, &mut proxy.native_sidecar),
            "proxy-gid" => read(value, &mut proxy.gid),
            "proxy-uid" => read(value, &mut proxy.uid),
            "proxy-image" => proxy.image.name = text,
            "proxy-version" => proxy.image.version = text,
            "proxy-inbound-connect-timeout" => proxy.inbound_connect_timeout = text,
            "proxy-outbound-connect-timeout" => proxy.outbound_connect_timeout = text,
            "proxy-inbound-discovery-cache-unused-timeout" => {
                proxy.inbound_discovery_cache_unused_timeout = text
            }
            "proxy-outbound-discovery-cache-unused-timeout" => {
                proxy.outbound_discovery_cache_unused_timeout = text
            }
            "proxy-log-format" => proxy.log_format = text,
            "proxy-log-level" => proxy.log_level = text,
            "proxy-require-identity-inbound-ports" => {
                proxy.require_identity_on_inbound_ports = numbers(value)
            }
            "proxy-wait-before-exit-seconds" => read(value, &mut proxy.wait_before_exit_seconds),
            "shutdown-grace-period" => proxy.shutdown_grace_period = text,
            "skip-inbound-ports" => init.ignore_inbound_ports = numbers(value),
            "skip-outbound-ports" => init.ignore_outbound_ports = numbers(value),
            "skip-subnets" => init.skip_subnets = text,
            _ => {}
        }
    }
    if annotations
        .get("config.linkerd.io/proxy-additional-env")
        .is_some_and(|text| {
            serde_json::from_str(text)
                .map(|list: Vec<Value>| proxy.additional_env.extend(list))
                .is_err()
        })
    {
        tracing::warn!("proxy-additional-env is not a JSON list of name and value");
    }
}

fn read<T: std::str::FromStr>(text: &str, into: &mut T) {
    if let Ok(value) = text.trim().parse() {
        *into = value;
    }
}

/// A proxy about to be rendered.
pub(super) struct Sidecar<'a> {
    pub(super) values: &'a Values,
    pub(super) injection: &'a Injection<'a>,
    pub(super) annotations: &'a BTreeMap<String, String>,
    pub(super) pod: &'a Value,
}

/// What a proxy adds to a pod's spec.
pub(super) struct Containers {
    init: Vec<Value>,
    proxy: Value,
    native: bool,
    extra: Vec<Value>,
    volumes: Vec<Value>,
}

impl Containers {
    /// The redirect must be in place before anything else runs, so ours come first.
    pub(super) fn put_into(self, spec: &mut Map<String, Value>) {
        let (mut init, mut containers) = (self.init, self.extra);
        if self.native {
            init.push(self.proxy);
        } else {
            containers.insert(0, self.proxy);
        }
        prepend(spec, "initContainers", init);
        prepend(spec, "containers", containers);
        let volumes = spec.entry("volumes").or_insert_with(|| json!([]));
        if let Value::Array(volumes) = volumes {
            volumes.extend(self.volumes);
        }
    }
}

fn prepend(spec: &mut Map<String, Value>, list: &str, mut first: Vec<Value>) {
    if let Some(Value::Array(rest)) = spec.remove(list) {
        first.extend(rest);
    }
    if !first.is_empty() {
        spec.insert(list.into(), Value::Array(first));
    }
}

impl Sidecar<'_> {
    pub(super) fn render(&self) -> Containers {
        let values = self.values;
        let mut volumes = Vec::new();
        if !values.cni_enabled {
            volumes.push(json!({"name": XTABLES_VOLUME, "emptyDir": {}}));
        }
        volumes.push(
            json!({"name": TOKEN_VOLUME, "projected": {"sources": [{"serviceAccountToken": {
                "path": TOKEN_VOLUME, "audience": "identity.l5d.io", "expirationSeconds": 86400,
            }}]}}),
        );
        volumes.push(json!({"name": END_ENTITY_VOLUME, "emptyDir": {"medium": "Memory"}}));
        let debug = self.setting("enable-debug-sidecar") == Some("true");
        Containers {
            init: vec![if values.cni_enabled {
                self.validator()
            } else {
                self.init()
            }],
            proxy: self.proxy(),
            native: self.native(),
            extra: if debug { vec![self.debug()] } else { vec![] },
            volumes,
        }
    }

    fn setting(&self, name: &str) -> Option<&str> {
        self.annotations
            .get(&format!("{}{name}", keys::CONFIG_PREFIX))
            .map(String::as_str)
    }

    /// Linkerd's own proxy may be used instead of ours; its programs have other names.
    fn upstream_image(&self) -> bool {
        self.values.proxy.image.name.ends_with("linkerd/proxy")
    }

    /// A native sidecar must be ready before the pod's own containers start. In the identity pod the proxy gets ready
    /// only through them, and in the rest of the control plane waiting would only cost time.
    fn native(&self) -> bool {
        self.values.proxy.native_sidecar && self.injection.component == Component::None
    }

    fn init(&self) -> Value {
        let (values, proxy, init) = (self.values, &self.values.proxy, &self.values.proxy_init);
        let own = format!("{},{}", proxy.ports.control, proxy.ports.admin);
        let mut outbound = init.ignore_outbound_ports.clone();
        if self.injection.component != Component::None {
            outbound = format!("{},{outbound}", init.kube_api_server_ports);
        }
        let mut args: Vec<String> = Vec::new();
        let mut flag = |name: &str, value: &str| {
            if !value.is_empty() {
                args.extend([format!("--{name}"), value.to_owned()]);
            }
        };
        flag("incoming-proxy-port", &proxy.ports.inbound.to_string());
        flag("outgoing-proxy-port", &proxy.ports.outbound.to_string());
        flag("proxy-uid", &proxy.uid.to_string());
        if proxy.gid >= 0 {
            flag("proxy-gid", &proxy.gid.to_string());
        }
        if proxy.mark != 0 {
            flag("proxy-mark", &proxy.mark.to_string());
        }
        flag(
            "inbound-ports-to-ignore",
            join(&own, &init.ignore_inbound_ports).as_str(),
        );
        flag("outbound-ports-to-ignore", outbound.trim_matches(','));
        if init.close_wait_timeout_secs > 0 {
            flag(
                "timeout-close-wait-secs",
                &init.close_wait_timeout_secs.to_string(),
            );
        }
        flag("subnets-to-ignore", &init.skip_subnets);
        flag("log-format", &init.log_format);
        flag("log-level", &init.log_level);
        if values.disable_ipv6 {
            args.push("--ipv6=false".into());
        }
        let mut security = json!({
            "allowPrivilegeEscalation": init.privileged,
            "capabilities": {"add": ["NET_ADMIN", "NET_RAW"]},
            "privileged": init.privileged,
            "readOnlyRootFilesystem": true,
            "seccompProfile": {"type": "RuntimeDefault"},
        });
        let as_root = init.run_as_root || init.privileged || init.close_wait_timeout_secs > 0;
        let user = if as_root {
            json!({"runAsNonRoot": false, "runAsUser": 0, "runAsGroup": 0})
        } else {
            json!({"runAsNonRoot": true, "runAsUser": init.run_as_user, "runAsGroup": init.run_as_group})
        };
        extend(&mut security, user);
        json!({
            "name": "linkerd-init",
            "image": values.proxy_init_image(),
            "imagePullPolicy": values.pull_policy(&init.image),
            "command": [if self.upstream_image() { "/usr/lib/linkerd/linkerd2-proxy-init" } else { "hawser-proxy-init" }],
            "args": args,
            "securityContext": security,
            "terminationMessagePolicy": "FallbackToLogsOnError",
            "volumeMounts": [{"name": XTABLES_VOLUME, "mountPath": "/run"}],
        })
    }

    /// With CNI the redirect is the plugin's business; this checks that the plugin did it.
    fn validator(&self) -> Value {
        json!({
            "name": "linkerd-network-validator",
            "image": self.values.proxy_init_image(),
            "imagePullPolicy": self.values.pull_policy(&self.values.proxy.image),
            "command": ["hawser-proxy-init"],
            "args": ["--validate", "--outgoing-proxy-port", self.values.proxy.ports.outbound.to_string()],
            "securityContext": restricted(65534, 65534),
            "terminationMessagePolicy": "FallbackToLogsOnError",
        })
    }

    fn debug(&self) -> Value {
        let image = &self.values.debug_container.image;
        json!({
            "name": "linkerd-debug",
            "image": self.values.image(image),
            "imagePullPolicy": self.values.pull_policy(image),
            "terminationMessagePolicy": "FallbackToLogsOnError",
            "command": ["tshark"],
            "args": ["-i", "any"],
            "securityContext": {"capabilities": {"add": ["NET_ADMIN", "NET_RAW"]}},
        })
    }

    fn proxy(&self) -> Value {
        let (values, proxy) = (self.values, &self.values.proxy);
        let admin = |path: &str| json!({"path": path, "port": proxy.ports.admin});
        let mut container = json!({
            "name": "linkerd-proxy",
            "image": values.proxy_image(),
            "imagePullPolicy": values.pull_policy(&proxy.image),
            "env": self.env(),
            "ports": [
                {"name": "linkerd-proxy", "containerPort": proxy.ports.inbound, "protocol": "TCP"},
                {"name": "linkerd-admin", "containerPort": proxy.ports.admin, "protocol": "TCP"},
            ],
            "livenessProbe": {"httpGet": admin("/live"), "initialDelaySeconds": 10, "timeoutSeconds": 1},
            "readinessProbe": {"httpGet": admin("/ready"), "initialDelaySeconds": 2, "timeoutSeconds": 1},
            "securityContext": restricted(proxy.uid, proxy.gid),
            "terminationMessagePolicy": "FallbackToLogsOnError",
            "volumeMounts": [
                {"name": END_ENTITY_VOLUME, "mountPath": "/var/run/linkerd/identity/end-entity"},
                {"name": TOKEN_VOLUME, "mountPath": "/var/run/secrets/tokens"},
            ],
        });
        let fields = object(&mut container);
        if let Some(resources) = proxy.resources.of_container() {
            fields.insert("resources".into(), resources);
        }
        if proxy.mark != 0 {
            // Marking sockets takes a capability, where all processes are one user and it has to be the mark.
            fields["securityContext"]["capabilities"]["add"] = json!(["NET_ADMIN"]);
        }
        if self.native() {
            fields.insert("restartPolicy".into(), json!("Always"));
            fields.insert(
                "startupProbe".into(),
                json!({
                    "httpGet": admin("/ready"),
                    "periodSeconds": proxy.startup_probe.period_seconds,
                    "failureThreshold": proxy.startup_probe.failure_threshold,
                    "initialDelaySeconds": proxy.startup_probe.initial_delay_seconds,
                }),
            );
        } else if self.injection.component != Component::None {
            // Readiness of the control plane is what everybody else waits for.
            fields.insert("readinessProbe".into(), json!({
                "httpGet": admin("/ready"), "periodSeconds": 1, "failureThreshold": 10, "timeoutSeconds": 1,
            }));
        } else if proxy.r#await && self.upstream_image() {
            // A helper that only Linkerd's image has; native sidecars don't need it.
            let port = format!("--port={}", proxy.ports.admin);
            fields.insert(
                "lifecycle".into(),
                json!({"postStart": {"exec": {
                    "command": ["/usr/lib/linkerd/linkerd-await", "--timeout=2m", port],
                }}}),
            );
        }
        if proxy.wait_before_exit_seconds > 0 {
            let sleep = json!({"sleep": {"seconds": proxy.wait_before_exit_seconds}});
            object(fields.entry("lifecycle").or_insert(Value::Null)).insert("preStop".into(), sleep);
        }
        container
    }

    fn env(&self) -> Vec<Value> {
        let (values, proxy) = (self.values, &self.values.proxy);
        let mut env = Env::default();
        env.field("_pod_name", "metadata.name");
        env.field("_pod_ns", "metadata.namespace");
        env.field("_pod_uid", "metadata.uid");
        env.field("_pod_nodeName", "spec.nodeName");
        env.field("_pod_sa", "spec.serviceAccountName");
        env.set(
            "LINKERD2_PROXY_SHUTDOWN_ENDPOINT_ENABLED",
            proxy.enable_shutdown_endpoint,
        );
        env.set(
            "LINKERD2_PROXY_LOG",
            format!("{},[{{headers}}]=off,[{{request}}]=off", proxy.log_level),
        );
        env.set("LINKERD2_PROXY_LOG_FORMAT", &proxy.log_format);
        env.unless_empty("LINKERD2_PROXY_ACCESS_LOG", &proxy.access_log);

        self.control_plane(&mut env);

        env.set(
            "LINKERD2_PROXY_POLICY_WORKLOAD",
            r#"{"ns":"$(_pod_ns)", "pod":"$(_pod_name)"}"#,
        );
        env.set(
            "LINKERD2_PROXY_DESTINATION_CONTEXT",
            r#"{"ns":"$(_pod_ns)", "nodeName":"$(_pod_nodeName)", "pod":"$(_pod_name)"}"#,
        );
        env.set(
            "LINKERD2_PROXY_INBOUND_DEFAULT_POLICY",
            &proxy.default_inbound_policy,
        );
        env.set("LINKERD2_PROXY_POLICY_CLUSTER_NETWORKS", &values.cluster_networks);
        env.set(
            "LINKERD2_PROXY_DESTINATION_PROFILE_NETWORKS",
            &values.cluster_networks,
        );
        let suffixes = format!("svc.{}.", values.cluster_domain);
        let profiles = if proxy.enable_external_profiles {
            "."
        } else {
            &suffixes
        };
        env.set("LINKERD2_PROXY_DESTINATION_PROFILE_SUFFIXES", profiles);
        if proxy.is_gateway {
            env.set("LINKERD2_PROXY_INBOUND_GATEWAY_SUFFIXES", &suffixes);
        }
        if proxy.is_ingress {
            env.set("LINKERD2_PROXY_INGRESS_MODE", true);
        }

        let any = if values.disable_ipv6 { "0.0.0.0" } else { "[::]" };
        env.set(
            "LINKERD2_PROXY_CONTROL_LISTEN_ADDR",
            format!("{any}:{}", proxy.ports.control),
        );
        if may_be_watched(self.injection.component, self.annotations) {
            let (ns, trust_domain) = (self.injection.control_plane_namespace, values.trust_domain());
            env.set(
                "LINKERD2_PROXY_TAP_SVC_NAME",
                format!(
                    "{}.{}.serviceaccount.identity.{ns}.{trust_domain}",
                    keys::TAP,
                    keys::VIZ_NAMESPACE
                ),
            );
        }
        env.set(
            "LINKERD2_PROXY_ADMIN_LISTEN_ADDR",
            format!("{any}:{}", proxy.ports.admin),
        );
        env.set(
            "LINKERD2_PROXY_INBOUND_LISTEN_ADDR",
            format!("{any}:{}", proxy.ports.inbound),
        );
        let outbound = proxy.ports.outbound;
        let loopback = match values.disable_ipv6 {
            true => format!("127.0.0.1:{outbound}"),
            false => format!("127.0.0.1:{outbound},[::1]:{outbound}"),
        };
        env.set("LINKERD2_PROXY_OUTBOUND_LISTEN_ADDRS", loopback);
        env.field("LINKERD2_PROXY_INBOUND_IPS", "status.podIPs");
        env.set("LINKERD2_PROXY_INBOUND_PORTS", self.inbound_ports());
        env.unless_empty(
            "LINKERD2_PROXY_INBOUND_PORTS_DISABLE_PROTOCOL_DETECTION",
            &proxy.opaque_ports,
        );
        env.unless_empty(
            "LINKERD2_PROXY_INBOUND_PORTS_REQUIRE_IDENTITY",
            &proxy.require_identity_on_inbound_ports,
        );

        if proxy.disable_inbound_protocol_detect_timeout {
            env.set("LINKERD2_PROXY_INBOUND_DETECT_TIMEOUT", "365d");
        }
        if proxy.disable_outbound_protocol_detect_timeout {
            env.set("LINKERD2_PROXY_OUTBOUND_DETECT_TIMEOUT", "365d");
        }
        env.set(
            "LINKERD2_PROXY_INBOUND_CONNECT_TIMEOUT",
            &proxy.inbound_connect_timeout,
        );
        env.set(
            "LINKERD2_PROXY_OUTBOUND_CONNECT_TIMEOUT",
            &proxy.outbound_connect_timeout,
        );
        env.set(
            "LINKERD2_PROXY_OUTBOUND_DISCOVERY_IDLE_TIMEOUT",
            &proxy.outbound_discovery_cache_unused_timeout,
        );
        env.set(
            "LINKERD2_PROXY_INBOUND_DISCOVERY_IDLE_TIMEOUT",
            &proxy.inbound_discovery_cache_unused_timeout,
        );
        for side in [
            "INBOUND_ACCEPT",
            "INBOUND_CONNECT",
            "OUTBOUND_ACCEPT",
            "OUTBOUND_CONNECT",
        ] {
            env.set(&format!("LINKERD2_PROXY_{side}_KEEPALIVE"), "10000ms");
            env.set(&format!("LINKERD2_PROXY_{side}_USER_TIMEOUT"), "30s");
        }
        for side in ["INBOUND", "OUTBOUND"] {
            env.set(
                &format!("LINKERD2_PROXY_{side}_SERVER_HTTP2_KEEP_ALIVE_INTERVAL"),
                "10s",
            );
            env.set(
                &format!("LINKERD2_PROXY_{side}_SERVER_HTTP2_KEEP_ALIVE_TIMEOUT"),
                "3s",
            );
        }
        env.unless_empty(
            "LINKERD2_PROXY_SHUTDOWN_GRACE_PERIOD",
            &proxy.shutdown_grace_period,
        );
        if let Some(cores) = self.cores() {
            env.set("LINKERD2_PROXY_CORES_MAX", cores);
        }
        if proxy.mark != 0 {
            env.set("HAWSER_PROXY_MARK", proxy.mark);
        }
        if proxy.tracing.enabled {
            self.tracing(&mut env);
        }
        let mut env = env.0;
        env.extend(proxy.additional_env.iter().cloned());
        env
    }

    /// Where spans go, to whom, and what is said of this proxy there.
    fn tracing(&self, env: &mut Env) {
        let tracing = &self.values.proxy.tracing;
        let (ns, trust_domain) = (self.injection.control_plane_namespace, self.values.trust_domain());
        let collector = &tracing.collector;
        let MeshIdentity {
            service_account_name,
            namespace,
        } = &collector.mesh_identity;
        env.set("LINKERD2_PROXY_TRACE_COLLECTOR_SVC_ADDR", &collector.endpoint);
        env.set(
            "LINKERD2_PROXY_TRACE_COLLECTOR_SVC_NAME",
            format!("{service_account_name}.{namespace}.serviceaccount.identity.{ns}.{trust_domain}"),
        );
        env.set("LINKERD2_PROXY_TRACE_PROTOCOL", "opentelemetry");
        env.set("LINKERD2_PROXY_TRACE_SERVICE_NAME", &tracing.trace_service_name);
        let labels = tracing.labels.iter();
        let labels: Vec<String> = labels.map(|(name, value)| format!("{name}={value}")).collect();
        env.unless_empty("OTEL_RESOURCE_ATTRIBUTES", &labels.join(","));
    }

    /// Where identity, destination and policy are, and who they are.
    fn control_plane(&self, env: &mut Env) {
        let (values, component) = (self.values, self.injection.component);
        let ns = self.injection.control_plane_namespace;
        let (domain, trust_domain) = (&values.cluster_domain, values.trust_domain());
        let address = |local: bool, service: &str, port: u16| match local {
            true => format!("127.0.0.1:{port}"),
            false => format!("{service}.{ns}.svc.{domain}.:{port}"),
        };
        let name = |account: &str| format!("{account}.{ns}.serviceaccount.identity.{ns}.{trust_domain}");
        let local = component == Component::Destination;
        env.set(
            "LINKERD2_PROXY_DESTINATION_SVC_ADDR",
            address(local, "linkerd-dst-headless", 8086),
        );
        env.set("LINKERD2_PROXY_DESTINATION_SVC_NAME", name("linkerd-destination"));
        env.set(
            "LINKERD2_PROXY_POLICY_SVC_ADDR",
            address(local, "linkerd-policy", 8090),
        );
        env.set("LINKERD2_PROXY_POLICY_SVC_NAME", name("linkerd-destination"));
        env.set("LINKERD2_PROXY_CONTROL_STREAM_INITIAL_TIMEOUT", "3s");
        env.set("LINKERD2_PROXY_CONTROL_STREAM_IDLE_TIMEOUT", "5m");
        env.set("LINKERD2_PROXY_CONTROL_STREAM_LIFETIME", "1h");

        env.set(
            "LINKERD2_PROXY_IDENTITY_DIR",
            "/var/run/linkerd/identity/end-entity",
        );
        if component == Component::None && !values.identity_trust_anchors_pem.is_empty() {
            env.set(
                "LINKERD2_PROXY_IDENTITY_TRUST_ANCHORS",
                &values.identity_trust_anchors_pem,
            );
        } else {
            env.0.push(
                json!({"name": "LINKERD2_PROXY_IDENTITY_TRUST_ANCHORS", "valueFrom": {"configMapKeyRef": {
                    "name": "linkerd-identity-trust-roots", "key": "ca-bundle.crt",
                }}}),
            );
        }
        env.set(
            "LINKERD2_PROXY_IDENTITY_TOKEN_FILE",
            format!("/var/run/secrets/tokens/{TOKEN_VOLUME}"),
        );
        let local = component == Component::Identity;
        env.set(
            "LINKERD2_PROXY_IDENTITY_SVC_ADDR",
            address(local, "linkerd-identity-headless", 8080),
        );
        env.set(
            "LINKERD2_PROXY_IDENTITY_LOCAL_NAME",
            format!("$(_pod_sa).$(_pod_ns).serviceaccount.identity.{ns}.{trust_domain}"),
        );
        env.set("LINKERD2_PROXY_IDENTITY_SVC_NAME", name("linkerd-identity"));
    }

    /// Every port that a container of the pod declares, so that policies are known before the first connection.
    fn inbound_ports(&self) -> String {
        let proxy = &self.values.proxy;
        if !proxy.pod_inbound_ports.is_empty() {
            return proxy.pod_inbound_ports.clone();
        }
        let mut ports: BTreeSet<u64> = ["initContainers", "containers"]
            .iter()
            .flat_map(|list| self.pod["spec"][list].as_array().into_iter().flatten())
            .flat_map(|container| container["ports"].as_array().into_iter().flatten())
            .filter(|port| port["protocol"].as_str().is_none_or(|protocol| protocol == "TCP"))
            .filter_map(|port| port["containerPort"].as_u64())
            .collect();
        if proxy.is_gateway {
            ports.insert(proxy.ports.inbound.into());
        }
        ports.iter().map(u64::to_string).collect::<Vec<_>>().join(",")
    }

    /// A CPU limit bounds the workers too; a fraction of a core still needs one.
    fn cores(&self) -> Option<u32> {
        let proxy = &self.values.proxy;
        if proxy.cores > 0 {
            return Some(proxy.cores);
        }
        let limit = proxy.resources.cpu.limit.as_str();
        let milli: f64 = match limit.strip_suffix('m') {
            Some(milli) => milli.parse().ok()?,
            None => limit.parse::<f64>().ok()? * 1000.0,
        };
        (milli > 0.0).then(|| (milli / 1000.0).ceil().min(4096.0) as u32)
    }
}

#[derive(Default)]
struct Env(Vec<Value>);

impl Env {
    fn set(&mut self, name: &str, value: impl ToString) {
        self.0.push(json!({"name": name, "value": value.to_string()}));
    }

    fn unless_empty(&mut self, name: &str, value: &str) {
        if !value.is_empty() {
            self.set(name, value);
        }
    }

    fn field(&mut self, name: &str, path: &str) {
        self.0
            .push(json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}));
    }
}

/// No privileges at all, under a uid of its own.
fn restricted(uid: i64, gid: i64) -> Value {
    let mut context = json!({
        "allowPrivilegeEscalation": false,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": true,
        "runAsNonRoot": true,
        "runAsUser": uid,
        "seccompProfile": {"type": "RuntimeDefault"},
    });
    if gid >= 0 {
        extend(&mut context, json!({"runAsGroup": gid}));
    }
    context
}

fn extend(map: &mut Value, with: Value) {
    if let Value::Object(with) = with {
        object(map).extend(with);
    }
}

fn join(first: &str, second: &str) -> String {
    [first, second]
        .iter()
        .filter(|list| !list.is_empty())
        .copied()
        .collect::<Vec<_>>()
        .join(",")
}
