//! The settings of a mesh: what `hawser install` was told, under Linkerd's names.
//!
//! Stored as YAML under the key `values` of the ConfigMap `linkerd-config`, from where the injector and the CLI read
//! them back. A value that Hawser doesn't use is accepted and reported, because existing command lines and Helm value
//! files must keep working. Nothing here knows how a value ends up in a manifest.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The version that manifests and annotations carry.
pub const VERSION: &str = concat!("v", env!("CARGO_PKG_VERSION"));

/// `identity.issuer.scheme` of issuers that others keep, such as cert-manager: the Secret holds `tls.crt` and `tls.key`.
pub const TLS_SCHEME: &str = "kubernetes.io/tls";

/// Why settings could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ValuesError {
    #[error("reading the values as YAML: {0}")]
    Yaml(String),
    #[error("the value of {0}")]
    Invalid(String),
    #[error("`--set {0}`: expected name=value, for example proxy.logLevel=debug")]
    Setting(String),
}

macro_rules! values {
    ($($(#[$meta:meta])* pub struct $name:ident { $($(#[$field_meta:meta])* $field:ident: $type:ty = $default:expr,)* })*) => {$(
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        pub struct $name { $($(#[$field_meta])* pub $field: $type,)* }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }
    )*};
}

values! {
    /// Everything that a mesh can be told.
    pub struct Values {
        linkerd_version: String = VERSION.into(),
        cluster_domain: String = "cluster.local".into(),
        /// Networks whose addresses are looked up in the control plane, comma separated.
        cluster_networks: String = "10.0.0.0/8,100.64.0.0/10,172.16.0.0/12,192.168.0.0/16,fd00::/8".into(),
        #[serde(rename = "identityTrustAnchorsPEM")]
        identity_trust_anchors_pem: String = String::new(),
        /// Empty means the cluster domain: see [`Values::trust_domain`].
        identity_trust_domain: String = String::new(),
        image_pull_policy: String = "IfNotPresent".into(),
        image_pull_secrets: Vec<Value> = vec![],
        controller_image: String = "cr.hawser.dev/hawser/controller".into(),
        controller_image_version: String = String::new(),
        controller_replicas: u32 = 1,
        #[serde(rename = "controllerUID")]
        controller_uid: i64 = 2103,
        #[serde(rename = "controllerGID")]
        controller_gid: i64 = -1,
        controller_resources: Resources = Resources::default(),
        /// Empty means those of all controllers; so with the next two.
        identity_resources: Resources = Resources::default(),
        destination_resources: Resources = Resources::default(),
        proxy_injector_resources: Resources = Resources::default(),
        /// Replicas on different nodes, and in different zones where there are any.
        enable_pod_anti_affinity: bool = false,
        /// Of the replicas of a part, only one may be evicted at a time.
        enable_pod_disruption_budget: bool = false,
        controller_log_level: String = "info".into(),
        controller_log_format: String = "plain".into(),
        #[serde(rename = "enableH2Upgrade")]
        enable_h2_upgrade: bool = true,
        enable_endpoint_slices: bool = true,
        cni_enabled: bool = false,
        #[serde(rename = "disableIPv6")]
        disable_ipv6: bool = true,
        webhook_failure_policy: String = "Ignore".into(),
        node_selector: BTreeMap<String, String> = BTreeMap::from([("kubernetes.io/os".into(), "linux".into())]),
        tolerations: Vec<Value> = vec![],
        pod_annotations: BTreeMap<String, String> = BTreeMap::new(),
        pod_labels: BTreeMap<String, String> = BTreeMap::new(),
        priority_class_name: String = String::new(),
        identity: Identity = Identity::default(),
        policy_controller: PolicyController = PolicyController::default(),
        gateway_exports: GatewayExports = GatewayExports::default(),
        proxy: Proxy = Proxy::default(),
        proxy_init: ProxyInit = ProxyInit::default(),
        proxy_injector: ProxyInjector = ProxyInjector::default(),
        debug_container: DebugContainer = DebugContainer::default(),
    }

    pub struct Identity {
        /// Anchors and issuer are kept by someone else (cert-manager, trust-manager): install writes neither.
        #[serde(rename = "externalCA")]
        external_ca: bool = false,
        service_account_token_projection: bool = true,
        issuer: Issuer = Issuer::default(),
    }

    pub struct Issuer {
        scheme: String = "linkerd.io/tls".into(),
        clock_skew_allowance: String = "20s".into(),
        issuance_lifetime: String = "24h0m0s".into(),
        tls: KeyPair = KeyPair::default(),
    }

    pub struct KeyPair {
        #[serde(rename = "crtPEM")]
        crt_pem: String = String::new(),
        #[serde(rename = "keyPEM", skip_serializing_if = "String::is_empty")]
        key_pem: String = String::new(),
    }

    pub struct PolicyController {
        resources: Resources = Resources::default(),
        probe_networks: Vec<String> = vec!["0.0.0.0/0".into(), "::/0".into()],
    }

    /// Which Services a gateway hands out to other clusters. Not in Linkerd, where a gateway serves every Service.
    pub struct GatewayExports {
        /// `true` lets a gateway serve every Service of the cluster, as Linkerd does.
        unrestricted: bool = false,
        /// The label that exports a Service, and the values of it that do.
        label: String = crate::keys::MIRROR_EXPORTED.into(),
        values: Vec<String> = vec!["true".into(), "remote-discovery".into()],
    }

    pub struct Image {
        name: String = String::new(),
        /// Empty means the pull policy of the whole mesh.
        pull_policy: String = String::new(),
        /// Empty means the version of the mesh.
        version: String = String::new(),
    }

    pub struct Proxy {
        image: Image = Image { name: "cr.hawser.dev/hawser/proxy".into(), ..Image::default() },
        access_log: String = String::new(),
        additional_env: Vec<Value> = vec![],
        r#await: bool = true,
        cores: u32 = 0,
        default_inbound_policy: String = "all-unauthenticated".into(),
        disable_inbound_protocol_detect_timeout: bool = false,
        disable_outbound_protocol_detect_timeout: bool = false,
        enable_external_profiles: bool = false,
        enable_shutdown_endpoint: bool = false,
        gid: i64 = -1,
        inbound_connect_timeout: String = "100ms".into(),
        inbound_discovery_cache_unused_timeout: String = "90s".into(),
        is_gateway: bool = false,
        is_ingress: bool = false,
        log_format: String = "plain".into(),
        log_level: String = "warn,linkerd=info,hawser=info,hickory=error".into(),
        /// Socket mark of the proxy's own connections, for places where all containers share one uid. 0 is unset.
        mark: u32 = 0,
        native_sidecar: bool = true,
        opaque_ports: String = "25,587,3306,4444,5432,6379,9300,11211".into(),
        outbound_connect_timeout: String = "1000ms".into(),
        outbound_discovery_cache_unused_timeout: String = "5s".into(),
        /// `transport-header` sends all mesh traffic to the proxy's own port, `transparent` only what is opaque.
        outbound_transport_mode: String = "transport-header".into(),
        pod_inbound_ports: String = String::new(),
        ports: ProxyPorts = ProxyPorts::default(),
        require_identity_on_inbound_ports: String = String::new(),
        resources: Resources = Resources::default(),
        shutdown_grace_period: String = String::new(),
        startup_probe: StartupProbe = StartupProbe::default(),
        tracing: Tracing = Tracing::default(),
        uid: i64 = 2102,
        wait_before_exit_seconds: u32 = 0,
    }

    pub struct ProxyPorts {
        admin: u16 = 4191,
        control: u16 = 4190,
        inbound: u16 = 4143,
        outbound: u16 = 4140,
    }

    /// Where proxies tell of the requests of sampled traces.
    pub struct Tracing {
        enabled: bool = false,
        trace_service_name: String = "linkerd-proxy".into(),
        /// What else is said of a proxy, by the names that OpenTelemetry has for it.
        labels: BTreeMap<String, String> = BTreeMap::from([
            ("k8s.namespace.name".into(), "$(_pod_ns)".into()),
            ("k8s.node.name".into(), "$(_pod_nodeName)".into()),
            ("k8s.pod.name".into(), "$(_pod_name)".into()),
            ("k8s.pod.uid".into(), "$(_pod_uid)".into()),
        ]),
        collector: TraceCollector = TraceCollector::default(),
    }

    /// Speaks OTLP over gRPC, in the mesh.
    pub struct TraceCollector {
        /// `collector.observability.svc.cluster.local:4317`
        endpoint: String = String::new(),
        mesh_identity: MeshIdentity = MeshIdentity::default(),
    }

    pub struct MeshIdentity {
        service_account_name: String = String::new(),
        namespace: String = String::new(),
    }

    pub struct StartupProbe {
        failure_threshold: u32 = 120,
        initial_delay_seconds: u32 = 0,
        period_seconds: u32 = 1,
    }

    pub struct Resources {
        cpu: Resource = Resource::default(),
        memory: Resource = Resource::default(),
        #[serde(rename = "ephemeral-storage")]
        ephemeral_storage: Resource = Resource::default(),
    }

    pub struct Resource {
        limit: String = String::new(),
        request: String = String::new(),
    }

    pub struct ProxyInit {
        /// Empty means the proxy's image, which holds both programs.
        image: Image = Image::default(),
        close_wait_timeout_secs: u32 = 0,
        ignore_inbound_ports: String = "4567,4568".into(),
        ignore_outbound_ports: String = "4567,4568".into(),
        /// Ports of the API server, which the control plane's own pods reach without a proxy.
        #[serde(rename = "kubeAPIServerPorts")]
        kube_api_server_ports: String = "443,6443".into(),
        iptables_mode: String = "nft".into(),
        log_format: String = String::new(),
        log_level: String = String::new(),
        privileged: bool = false,
        run_as_root: bool = false,
        run_as_user: i64 = 65534,
        run_as_group: i64 = 65534,
        skip_subnets: String = String::new(),
    }

    pub struct ProxyInjector {
        external_secret: bool = false,
        ca_bundle: String = String::new(),
        #[serde(rename = "crtPEM")]
        crt_pem: String = String::new(),
        #[serde(rename = "keyPEM", skip_serializing_if = "String::is_empty")]
        key_pem: String = String::new(),
        timeout_seconds: u32 = 10,
    }

    pub struct DebugContainer {
        image: Image = Image { name: "cr.l5d.io/linkerd/debug".into(), ..Image::default() },
    }
}

impl Resources {
    /// As Kubernetes wants them in a container; `None` if nothing is set.
    pub fn of_container(&self) -> Option<Value> {
        let named = [
            ("cpu", &self.cpu),
            ("memory", &self.memory),
            ("ephemeral-storage", &self.ephemeral_storage),
        ];
        let collect = |part: fn(&Resource) -> &String| {
            let set = named.iter().filter(|(_, resource)| !part(resource).is_empty());
            set.map(|(name, resource)| ((*name).to_owned(), part(resource).clone().into()))
                .collect::<Map<_, _>>()
        };
        let parts = [
            ("limits", collect(|resource| &resource.limit)),
            ("requests", collect(|resource| &resource.request)),
        ];
        let set: Map<String, Value> = parts
            .into_iter()
            .filter(|(_, part)| !part.is_empty())
            .map(|(name, part)| (name.to_owned(), Value::Object(part)))
            .collect();
        (!set.is_empty()).then_some(Value::Object(set))
    }
}

impl Tracing {
    /// Why no proxy would start with it.
    pub fn fault(&self) -> Option<String> {
        let TraceCollector {
            endpoint,
            mesh_identity,
        } = &self.collector;
        let path = "proxy.tracing.collector";
        if !self.enabled {
            return None;
        }
        for (name, value) in [
            ("endpoint", endpoint),
            (
                "meshIdentity.serviceAccountName",
                &mesh_identity.service_account_name,
            ),
            ("meshIdentity.namespace", &mesh_identity.namespace),
        ] {
            if value.is_empty() {
                return Some(format!("{path}.{name} is missing"));
            }
        }
        let has_port = endpoint
            .rsplit_once(':')
            .is_some_and(|(name, port)| !name.is_empty() && port.parse::<u16>().is_ok());
        (!has_port).then(|| format!("{path}.endpoint is {endpoint:?}; it must be a name and a port"))
    }
}

impl Values {
    /// The values with `overrides` (as a tree of the same names) laid over the defaults, and the paths that mean
    /// nothing to this version.
    pub fn with_overrides(overrides: Value) -> Result<(Self, Vec<String>), ValuesError> {
        let defaults =
            serde_json::to_value(Self::default()).map_err(|error| ValuesError::Invalid(error.to_string()))?;
        let mut unknown = Vec::new();
        let overrides = conform(&defaults, overrides, "", &mut unknown);
        let mut merged = defaults;
        merge(&mut merged, overrides);
        let values =
            serde_json::from_value(merged).map_err(|error| ValuesError::Invalid(error.to_string()))?;
        Ok((values, unknown))
    }

    /// Reads what [`Values::to_yaml`] wrote, or any Helm value file.
    pub fn from_yaml(text: &str) -> Result<Self, ValuesError> {
        Self::with_overrides(yaml(text)?).map(|(values, _)| values)
    }

    pub fn to_yaml(&self) -> Result<String, ValuesError> {
        serde_saphyr::to_string(self).map_err(|error| ValuesError::Yaml(error.to_string()))
    }

    /// What differs from a plain installation, for the next upgrade to start from. Credentials have Secrets of their
    /// own.
    pub fn overrides(&self) -> Value {
        let mut plain = self.clone();
        plain.identity.issuer.tls = KeyPair::default();
        let tree = |values: &Self| serde_json::to_value(values).unwrap_or_default();
        difference(&tree(&Self::default()), tree(&plain)).unwrap_or_else(|| Value::Object(Default::default()))
    }

    /// Is the issuer's Secret written by someone else?
    pub fn issuer_is_external(&self) -> bool {
        self.identity.external_ca || self.identity.issuer.scheme == TLS_SCHEME
    }

    pub fn trust_domain(&self) -> &str {
        if self.identity_trust_domain.is_empty() {
            &self.cluster_domain
        } else {
            &self.identity_trust_domain
        }
    }

    /// The proxy's image with its tag.
    pub fn proxy_image(&self) -> String {
        self.image(&self.proxy.image)
    }

    pub fn proxy_init_image(&self) -> String {
        if self.proxy_init.image.name.is_empty() {
            self.proxy_image()
        } else {
            self.image(&self.proxy_init.image)
        }
    }

    pub fn controller_image(&self) -> String {
        let version = or(&self.controller_image_version, &self.linkerd_version);
        format!("{}:{version}", self.controller_image)
    }

    /// Tag of the proxy's image.
    pub fn proxy_version(&self) -> &str {
        or(&self.proxy.image.version, &self.linkerd_version)
    }

    pub fn image(&self, image: &Image) -> String {
        format!("{}:{}", image.name, or(&image.version, &self.linkerd_version))
    }

    pub fn pull_policy<'a>(&'a self, image: &'a Image) -> &'a str {
        or(&image.pull_policy, &self.image_pull_policy)
    }
}

fn or<'a>(first: &'a str, second: &'a str) -> &'a str {
    if first.is_empty() { second } else { first }
}

/// Reads a YAML document as a tree.
pub fn yaml(text: &str) -> Result<Value, ValuesError> {
    if text.trim().is_empty() {
        return Ok(Value::Object(Map::new()));
    }
    serde_saphyr::from_str(text).map_err(|error| ValuesError::Yaml(error.to_string()))
}

/// Lays one tree over another; `null` removes.
pub fn merge(below: &mut Value, above: Value) {
    match (below, above) {
        (Value::Object(below), Value::Object(above)) => {
            for (name, value) in above {
                if value.is_null() {
                    below.remove(&name);
                } else {
                    merge(below.entry(name).or_insert(Value::Null), value);
                }
            }
        }
        (below, above) => *below = above,
    }
}

/// What must be merged into one tree to get another; nothing if they are equal.
fn difference(below: &Value, above: Value) -> Option<Value> {
    match (below, above) {
        (Value::Object(below), Value::Object(above)) => {
            let changed = above.into_iter().filter_map(|(name, value)| {
                let value = match below.get(&name) {
                    Some(below) => difference(below, value)?,
                    None => value,
                };
                Some((name, value))
            });
            let changed: Map<String, Value> = changed.collect();
            (!changed.is_empty()).then_some(Value::Object(changed))
        }
        (below, above) => (*below != above).then_some(above),
    }
}

/// Adds what `--set` says to a tree: `a.b=1,c[0].d=x,list={x,y}`, with Helm's escapes.
pub fn set(tree: &mut Value, setting: &str) -> Result<(), ValuesError> {
    set_each(tree, setting, literal)
}

/// The same for `--set-string`: every value is text.
pub fn set_string(tree: &mut Value, setting: &str) -> Result<(), ValuesError> {
    set_each(tree, setting, |text| Value::String(unescape(text)))
}

/// Adds one value to a tree, as it is.
pub fn set_text(tree: &mut Value, path: &str, text: String) -> Result<(), ValuesError> {
    *place(tree, path).ok_or_else(|| ValuesError::Setting(path.into()))? = Value::String(text);
    Ok(())
}

fn set_each(tree: &mut Value, setting: &str, read: impl Fn(&str) -> Value) -> Result<(), ValuesError> {
    for pair in split_unescaped(setting, ',')
        .into_iter()
        .filter(|pair| !pair.is_empty())
    {
        let Some((path, value)) = pair.split_once('=') else {
            return Err(ValuesError::Setting(setting.into()));
        };
        *place(tree, path).ok_or_else(|| ValuesError::Setting(setting.into()))? = read(value);
    }
    Ok(())
}

/// Where a path leads in a tree, which grows accordingly; `None` if it isn't a path.
fn place<'a>(tree: &'a mut Value, path: &str) -> Option<&'a mut Value> {
    let mut place = tree;
    for step in steps(path)? {
        place = match step {
            Step::Name(name) => {
                if !place.is_object() {
                    *place = Value::Object(Map::new());
                }
                let Value::Object(map) = place else {
                    unreachable!("just made an object")
                };
                map.entry(name).or_insert(Value::Null)
            }
            Step::Index(at) => {
                if !place.is_array() {
                    *place = Value::Array(vec![]);
                }
                let Value::Array(list) = place else {
                    unreachable!("just made a list")
                };
                if list.len() <= at {
                    list.resize(at + 1, Value::Null);
                }
                &mut list[at]
            }
        };
    }
    Some(place)
}

enum Step {
    Name(String),
    Index(usize),
}

/// More elements than anybody writes by hand; a bound, because an index costs memory.
const INDEX_MAX: usize = 1024;

fn steps(path: &str) -> Option<Vec<Step>> {
    let mut steps = Vec::new();
    for part in split_unescaped(path, '.') {
        let (name, indexes) = match part.find('[') {
            Some(at) => part.split_at(at),
            None => (part.as_str(), ""),
        };
        if name.is_empty() {
            return None;
        }
        steps.push(Step::Name(unescape(name)));
        for index in indexes.split('[').skip(1) {
            let at = index
                .strip_suffix(']')?
                .parse()
                .ok()
                .filter(|at| *at < INDEX_MAX)?;
            steps.push(Step::Index(at));
        }
    }
    Some(steps)
}

fn literal(text: &str) -> Value {
    if let Some(list) = text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
        return split_unescaped(list, ',')
            .iter()
            .filter(|item| !item.is_empty())
            .map(|item| literal(item))
            .collect();
    }
    match text {
        "true" => Value::Bool(true),
        "false" => Value::Bool(false),
        "null" => Value::Null,
        // A number with a leading zero is a name for something, such as a zone, not a quantity.
        _ if !text.starts_with('0') || text == "0" => text
            .parse::<i64>()
            .map_or_else(|_| Value::String(unescape(text)), Value::from),
        _ => Value::String(unescape(text)),
    }
}

/// Splits at a separator that isn't escaped and isn't inside braces; escapes stay for the next reader.
fn split_unescaped(text: &str, separator: char) -> Vec<String> {
    let mut parts = vec![String::new()];
    let (mut escaped, mut depth) = (false, 0_u32);
    for character in text.chars() {
        let at = parts.len() - 1;
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            _ if character == separator && depth == 0 => {
                parts.push(String::new());
                continue;
            }
            _ => {}
        }
        parts[at].push(character);
    }
    parts
}

fn unescape(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => plain.extend(characters.next()),
            other => plain.push(other),
        }
    }
    plain
}

/// Maps with defaults to which users add names of their own.
const OWN_NAMES: [&str; 2] = ["nodeSelector", "proxy.tracing.labels"];

/// Bends scalars to the type of the default (`--set proxy.cores="2"`, `controllerLogLevel: 5`), drops what no default
/// knows and notes its path. Maps and lists whose default is empty hold the user's own names and pass unchanged, and
/// so do [`OWN_NAMES`].
fn conform(default: &Value, value: Value, path: &str, unknown: &mut Vec<String>) -> Value {
    match (default, value) {
        (Value::Object(known), Value::Object(map)) if !known.is_empty() && !OWN_NAMES.contains(&path) => {
            let mut kept = Map::new();
            for (name, value) in map {
                let path = if path.is_empty() {
                    name.clone()
                } else {
                    format!("{path}.{name}")
                };
                match known.get(&name) {
                    _ if value.is_null() => {}
                    Some(default) => drop(kept.insert(name, conform(default, value, &path, unknown))),
                    // Secrets that the defaults leave out when empty.
                    None if name == "keyPEM" => drop(kept.insert(name, value)),
                    None => unknown.push(path),
                }
            }
            Value::Object(kept)
        }
        (Value::String(_), Value::Number(number)) => Value::String(number.to_string()),
        (Value::String(_), Value::Bool(yes)) => Value::String(yes.to_string()),
        (Value::Number(_), Value::String(text)) => {
            text.parse::<i64>().map_or(Value::String(text), Value::from)
        }
        (Value::Bool(_), Value::String(text)) => {
            text.parse::<bool>().map_or(Value::String(text), Value::from)
        }
        (_, value) => value,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn overrides(settings: &[&str]) -> Value {
        let mut tree = json!({});
        for setting in settings {
            set(&mut tree, setting).expect("a valid setting");
        }
        tree
    }

    #[test]
    fn names_are_the_ones_that_linkerd_users_know() {
        let values = serde_json::to_value(Values::default()).unwrap();
        for pointer in [
            "/identityTrustAnchorsPEM",
            "/identityTrustDomain",
            "/clusterDomain",
            "/clusterNetworks",
            "/controllerUID",
            "/enableH2Upgrade",
            "/disableIPv6",
            "/identity/externalCA",
            "/identity/issuer/issuanceLifetime",
            "/identity/issuer/clockSkewAllowance",
            "/identity/issuer/tls/crtPEM",
            "/proxy/await",
            "/proxy/image/pullPolicy",
            "/proxy/ports/inbound",
            "/proxy/resources/ephemeral-storage/limit",
            "/proxy/defaultInboundPolicy",
            "/proxy/tracing/traceServiceName",
            "/proxy/tracing/collector/meshIdentity/serviceAccountName",
            "/proxyInit/ignoreInboundPorts",
            "/proxyInit/kubeAPIServerPorts",
            "/policyController/probeNetworks",
        ] {
            assert!(values.pointer(pointer).is_some(), "{pointer}");
        }
    }

    #[test]
    fn tracing_that_keeps_proxies_from_starting_is_refused() {
        let mut tracing = Tracing::default();
        assert_eq!(tracing.fault(), None, "it is off");
        tracing.enabled = true;
        let missing = |what: &str| Some(format!("proxy.tracing.collector.{what} is missing"));
        assert_eq!(tracing.fault(), missing("endpoint"));
        tracing.collector.endpoint = "collector.traces".into();
        assert_eq!(tracing.fault(), missing("meshIdentity.serviceAccountName"));
        let account = &mut tracing.collector.mesh_identity;
        (account.service_account_name, account.namespace) = ("collector".into(), "traces".into());
        let fault = tracing.fault().unwrap_or_default();
        assert!(fault.contains("it must be a name and a port"), "{fault}");
        tracing.collector.endpoint.push_str(":4317");
        assert_eq!(tracing.fault(), None);
    }

    #[test]
    fn settings_follow_helm() {
        for (settings, expected) in [
            (&["a.b=1", "a.c=x"][..], json!({"a": {"b": 1, "c": "x"}})),
            (&["a=true,b=null"], json!({"a": true, "b": null})),
            (
                &["networks=10.0.0.0/8\\,fd00::/8"],
                json!({"networks": "10.0.0.0/8,fd00::/8"}),
            ),
            (&["list={x,2}"], json!({"list": ["x", 2]})),
            (&["list[1].name=x"], json!({"list": [null, {"name": "x"}]})),
            (
                &["selector.kubernetes\\.io/os=linux"],
                json!({"selector": {"kubernetes.io/os": "linux"}}),
            ),
            (&["zone=007"], json!({"zone": "007"})),
        ] {
            assert_eq!(overrides(settings), expected, "{settings:?}");
        }
        for wrong in ["noequals", "=1", "a[x]=1", "a[99999]=1"] {
            assert!(set(&mut json!({}), wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn overrides_take_the_type_of_the_default_and_unknown_names_are_reported() {
        let (values, unknown) = Values::with_overrides(overrides(&[
            "proxy.resources.cpu.limit=2",
            "proxyInit.runAsRoot=true",
            "proxy.mark=17",
            "heartbeatSchedule=never",
            "nodeSelector.zone=a",
        ]))
        .unwrap();
        assert_eq!(values.proxy.resources.cpu.limit, "2");
        assert!(values.proxy_init.run_as_root);
        assert_eq!(values.proxy.mark, 17);
        assert_eq!(values.node_selector.get("zone").map(String::as_str), Some("a"));
        assert_eq!(unknown, ["heartbeatSchedule"]);
    }

    #[test]
    fn a_value_of_the_wrong_kind_is_refused() {
        assert!(Values::with_overrides(overrides(&["proxy.ports.inbound=many"])).is_err());
    }

    #[test]
    fn overrides_lead_from_the_defaults_back_to_the_values() {
        let mut values = Values::default();
        assert_eq!(values.overrides(), json!({}));
        values.proxy.mark = 7;
        values.controller_replicas = 3;
        values.identity.issuer.tls.key_pem = "SECRET".into();
        let overrides = values.overrides();
        assert_eq!(overrides, json!({"controllerReplicas": 3, "proxy": {"mark": 7}}));
        let (read, unknown) = Values::with_overrides(overrides).unwrap();
        assert_eq!((read.proxy.mark, unknown), (7, vec![]));
    }

    #[test]
    fn yaml_written_is_yaml_read() {
        let mut values = Values {
            identity_trust_anchors_pem: "-----BEGIN\na: b\n# no\n".into(),
            ..Values::default()
        };
        values.proxy.mark = 3;
        assert_eq!(Values::from_yaml(&values.to_yaml().unwrap()).unwrap(), values);
    }
}
