//! A container's environment and arguments.
//!
//! Pure: the objects that an environment may refer to have been read beforehand (see [`references`]), and what isn't
//! among them doesn't exist.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{
    ConfigMap, Container, EnvVarSource, ObjectFieldSelector, Pod, PodSpec, ResourceFieldSelector, Secret,
    Service,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// What every container has unless it says otherwise.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Names of ConfigMaps and Secrets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct References {
    pub config_maps: BTreeSet<String>,
    pub secrets: BTreeSet<String>,
}

/// The objects a pod refers to, as far as they exist.
#[derive(Clone, Debug, Default)]
pub(crate) struct Objects {
    pub config_maps: BTreeMap<String, ConfigMap>,
    pub secrets: BTreeMap<String, Secret>,
}

/// What a pod may ask about itself.
pub(crate) struct Facts<'a> {
    pub pod: &'a Pod,
    pub pod_ip: String,
    pub host_ip: String,
    /// What a container without limits may use, by resource name.
    pub allocatable: BTreeMap<String, Quantity>,
}

/// The pod can't start as it stands. Shown to users as the container's waiting message.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("configmap \"{0}\" not found")]
    NoConfigMap(String),
    #[error("secret \"{0}\" not found")]
    NoSecret(String),
    #[error("couldn't find key {key} in ConfigMap {name}")]
    NoConfigMapKey { name: String, key: String },
    #[error("couldn't find key {key} in Secret {name}")]
    NoSecretKey { name: String, key: String },
    #[error("unsupported fieldPath: {0}")]
    NoField(String),
    #[error("unsupported resource: {0}")]
    NoResource(String),
    #[error("{0}")]
    Other(String),
}

/// Everything that a pod's environments and volumes refer to.
pub(crate) fn references(spec: &PodSpec) -> References {
    let mut found = References::default();
    for container in super::plan::init_containers(spec).iter().chain(&spec.containers) {
        for source in container.env_from.iter().flatten() {
            found.config_maps.extend(
                source
                    .config_map_ref
                    .as_ref()
                    .map(|reference| reference.name.clone()),
            );
            found
                .secrets
                .extend(source.secret_ref.as_ref().map(|reference| reference.name.clone()));
        }
        for source in container
            .env
            .iter()
            .flatten()
            .filter_map(|variable| variable.value_from.as_ref())
        {
            found.config_maps.extend(
                source
                    .config_map_key_ref
                    .as_ref()
                    .map(|reference| reference.name.clone()),
            );
            found.secrets.extend(
                source
                    .secret_key_ref
                    .as_ref()
                    .map(|reference| reference.name.clone()),
            );
        }
    }
    for volume in spec.volumes.iter().flatten() {
        found
            .config_maps
            .extend(volume.config_map.as_ref().map(|source| source.name.clone()));
        found.secrets.extend(
            volume
                .secret
                .as_ref()
                .and_then(|source| source.secret_name.clone()),
        );
        for source in volume
            .projected
            .iter()
            .flat_map(|projected| projected.sources.iter().flatten())
        {
            found
                .config_maps
                .extend(source.config_map.as_ref().map(|source| source.name.clone()));
            found
                .secrets
                .extend(source.secret.as_ref().map(|source| source.name.clone()));
        }
    }
    found
}

/// The environment in the order of definition; a later definition of a name replaces an earlier one in place.
pub(crate) fn environment(
    container: &Container,
    facts: &Facts<'_>,
    objects: &Objects,
    services: &[(String, String)],
) -> Result<Vec<(String, String)>, ConfigError> {
    let mut variables = Variables::default();
    variables.set("PATH", PATH.to_owned());
    variables.set("HOSTNAME", hostname(facts.pod));
    variables.set("HOME", "/root".to_owned());
    for (name, value) in services {
        variables.set(name, value.clone());
    }
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        if let Some(reference) = &source.config_map_ref {
            match objects.config_maps.get(&reference.name) {
                Some(map) => {
                    for (key, value) in map.data.iter().flatten() {
                        variables.set(&format!("{prefix}{key}"), value.clone());
                    }
                }
                None if reference.optional == Some(true) => {}
                None => return Err(ConfigError::NoConfigMap(reference.name.clone())),
            }
        }
        if let Some(reference) = &source.secret_ref {
            match objects.secrets.get(&reference.name) {
                Some(secret) => {
                    for (key, value) in secret.data.iter().flatten() {
                        variables.set(
                            &format!("{prefix}{key}"),
                            String::from_utf8_lossy(&value.0).into_owned(),
                        );
                    }
                }
                None if reference.optional == Some(true) => {}
                None => return Err(ConfigError::NoSecret(reference.name.clone())),
            }
        }
    }
    for variable in container.env.iter().flatten() {
        let value = match (&variable.value, &variable.value_from) {
            (_, Some(source)) => match value_from(source, container, facts, objects)? {
                Some(value) => value,
                // An optional reference to nothing leaves the variable unset.
                None => continue,
            },
            (value, None) => expand(value.as_deref().unwrap_or_default(), &variables.0),
        };
        variables.set(&variable.name, value);
    }
    Ok(variables.0)
}

#[derive(Default)]
struct Variables(Vec<(String, String)>);

impl Variables {
    fn set(&mut self, name: &str, value: String) {
        match self.0.iter_mut().find(|(present, _)| present == name) {
            Some((_, present)) => *present = value,
            None => self.0.push((name.to_owned(), value)),
        }
    }
}

fn value_from(
    source: &EnvVarSource,
    container: &Container,
    facts: &Facts<'_>,
    objects: &Objects,
) -> Result<Option<String>, ConfigError> {
    if let Some(reference) = &source.config_map_key_ref {
        let optional = reference.optional == Some(true);
        let Some(map) = objects.config_maps.get(&reference.name) else {
            return if optional {
                Ok(None)
            } else {
                Err(ConfigError::NoConfigMap(reference.name.clone()))
            };
        };
        return match map.data.as_ref().and_then(|data| data.get(&reference.key)) {
            Some(value) => Ok(Some(value.clone())),
            None if optional => Ok(None),
            None => Err(ConfigError::NoConfigMapKey {
                name: reference.name.clone(),
                key: reference.key.clone(),
            }),
        };
    }
    if let Some(reference) = &source.secret_key_ref {
        let optional = reference.optional == Some(true);
        let Some(secret) = objects.secrets.get(&reference.name) else {
            return if optional {
                Ok(None)
            } else {
                Err(ConfigError::NoSecret(reference.name.clone()))
            };
        };
        return match secret.data.as_ref().and_then(|data| data.get(&reference.key)) {
            Some(value) => Ok(Some(String::from_utf8_lossy(&value.0).into_owned())),
            None if optional => Ok(None),
            None => Err(ConfigError::NoSecretKey {
                name: reference.name.clone(),
                key: reference.key.clone(),
            }),
        };
    }
    if let Some(reference) = &source.field_ref {
        return field(reference, facts).map(Some);
    }
    if let Some(reference) = &source.resource_field_ref {
        return resource(reference, Some(container), facts).map(Some);
    }
    Ok(None)
}

/// The downward API's view of the pod.
pub(crate) fn field(selector: &ObjectFieldSelector, facts: &Facts<'_>) -> Result<String, ConfigError> {
    let metadata = &facts.pod.metadata;
    let spec = facts.pod.spec.as_ref();
    let path = selector.field_path.as_str();
    let text = |value: Option<&String>| value.cloned().unwrap_or_default();
    if let Some((map, key)) = path.strip_suffix("']").and_then(|path| path.split_once("['")) {
        let map = match map {
            "metadata.labels" => &metadata.labels,
            "metadata.annotations" => &metadata.annotations,
            _ => return Err(ConfigError::NoField(path.to_owned())),
        };
        return Ok(text(map.as_ref().and_then(|map| map.get(key))));
    }
    Ok(match path {
        "metadata.name" => text(metadata.name.as_ref()),
        "metadata.namespace" => text(metadata.namespace.as_ref()),
        "metadata.uid" => text(metadata.uid.as_ref()),
        "metadata.labels" => lines(metadata.labels.as_ref()),
        "metadata.annotations" => lines(metadata.annotations.as_ref()),
        "spec.nodeName" => text(spec.and_then(|spec| spec.node_name.as_ref())),
        "spec.serviceAccountName" => service_account(facts.pod).to_owned(),
        "status.hostIP" | "status.hostIPs" => facts.host_ip.clone(),
        "status.podIP" | "status.podIPs" => facts.pod_ip.clone(),
        _ => return Err(ConfigError::NoField(path.to_owned())),
    })
}

pub(crate) fn service_account(pod: &Pod) -> &str {
    pod.spec
        .as_ref()
        .and_then(|spec| spec.service_account_name.as_deref())
        .unwrap_or("default")
}

/// A map as the downward API writes it: `key="value"` lines with the value quoted as in Go.
fn lines(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<String> = map
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={value:?}"))
        .collect();
    lines.join("\n")
}

/// A container's limit or request in units of the divisor, rounded up.
pub(crate) fn resource(
    selector: &ResourceFieldSelector,
    own: Option<&Container>,
    facts: &Facts<'_>,
) -> Result<String, ConfigError> {
    let spec = facts.pod.spec.as_ref();
    let named = selector.container_name.as_deref().and_then(|name| {
        spec.into_iter()
            .flat_map(|spec| super::plan::init_containers(spec).iter().chain(&spec.containers))
            .find(|container| container.name == name)
    });
    let unsupported = || ConfigError::NoResource(selector.resource.clone());
    let container = named.or(own).ok_or_else(unsupported)?;
    let (kind, name) = selector.resource.split_once('.').ok_or_else(unsupported)?;
    let resources = container.resources.as_ref();
    let limit = resources
        .and_then(|resources| resources.limits.as_ref())
        .and_then(|limits| limits.get(name));
    let request = resources
        .and_then(|resources| resources.requests.as_ref())
        .and_then(|requests| requests.get(name));
    let quantity = match kind {
        "limits" => limit.or_else(|| facts.allocatable.get(name)),
        "requests" => request.or(limit),
        _ => return Err(unsupported()),
    };
    let value = quantity.map_or(Some(0), milli).ok_or_else(unsupported)?;
    let divisor = selector
        .divisor
        .as_ref()
        .and_then(milli)
        .filter(|divisor| *divisor > 0)
        .unwrap_or(1000);
    Ok((value.div_ceil(divisor)).to_string())
}

/// A quantity in thousandths.
fn milli(quantity: &Quantity) -> Option<u128> {
    let text = quantity.0.trim();
    let digits = text
        .find(|c: char| !(c.is_ascii_digit() || c == '.'))
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let scale: u128 = match suffix {
        "m" => 1,
        "" => 1_000,
        "k" => 1_000_000,
        "M" => 1_000_000_000,
        "G" => 1_000_000_000_000,
        "T" => 1_000_000_000_000_000,
        "Ki" => 1_000 << 10,
        "Mi" => 1_000 << 20,
        "Gi" => 1_000 << 30,
        "Ti" => 1_000 << 40,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let part = if fraction.is_empty() {
        0
    } else {
        let digits = u32::try_from(fraction.len()).ok()?;
        fraction
            .parse::<u128>()
            .ok()?
            .checked_mul(scale)?
            .checked_div(10_u128.checked_pow(digits)?)?
    };
    whole.checked_mul(scale)?.checked_add(part)
}

/// Replaces `$(NAME)` by the variable's value; an unknown name stays as it is and `$$` stands for `$`.
pub(crate) fn expand(text: &str, variables: &[(String, String)]) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(position) = rest.find('$') {
        out.push_str(&rest[..position]);
        let after = &rest[position + 1..];
        if let Some(tail) = after.strip_prefix('$') {
            out.push('$');
            rest = tail;
        } else if let Some((name, tail)) = after.strip_prefix('(').and_then(|tail| tail.split_once(')')) {
            match variables.iter().find(|(present, _)| present == name) {
                Some((_, value)) => out.push_str(value),
                None => out.push_str(&format!("$({name})")),
            }
            rest = tail;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

/// The variables that tell where Services are; the API server's is always among them.
pub(crate) fn services(namespace: &str, links: Option<bool>, services: &[Service]) -> Vec<(String, String)> {
    let mut variables = Vec::new();
    for service in services {
        let name = service.metadata.name.as_deref().unwrap_or_default();
        let home = service.metadata.namespace.as_deref().unwrap_or_default();
        let is_api = (home, name) == ("default", "kubernetes");
        if !is_api && (home != namespace || links == Some(false)) {
            continue;
        }
        let Some(spec) = &service.spec else { continue };
        let Some(ip) = spec
            .cluster_ip
            .as_deref()
            .filter(|ip| !ip.is_empty() && *ip != "None")
        else {
            continue;
        };
        let ports = spec.ports.as_deref().unwrap_or_default();
        let Some(first) = ports.first() else { continue };
        let upper = name.to_uppercase().replace('-', "_");
        let mut add = |suffix: &str, value: String| variables.push((format!("{upper}_{suffix}"), value));
        add("SERVICE_HOST", ip.to_owned());
        add("SERVICE_PORT", first.port.to_string());
        for port in ports {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let url = format!("{}://{ip}:{}", protocol.to_lowercase(), port.port);
            if let Some(port_name) = &port.name {
                add(
                    &format!("SERVICE_PORT_{}", port_name.to_uppercase().replace('-', "_")),
                    port.port.to_string(),
                );
            }
            let prefix = format!("PORT_{}_{protocol}", port.port);
            if port.port == first.port {
                add("PORT", url.clone());
            }
            add(&prefix, url);
            add(&format!("{prefix}_PROTO"), protocol.to_lowercase());
            add(&format!("{prefix}_PORT"), port.port.to_string());
            add(&format!("{prefix}_ADDR"), ip.to_owned());
        }
    }
    variables
}

pub(crate) fn hostname(pod: &Pod) -> String {
    let chosen = pod.spec.as_ref().and_then(|spec| spec.hostname.clone());
    let mut name = chosen.or_else(|| pod.metadata.name.clone()).unwrap_or_default();
    // The kernel's limit.
    name.truncate(63);
    name.trim_end_matches(['-', '.']).to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn variables(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    fn check(container: Value) -> Result<Vec<(String, String)>, ConfigError> {
        let container: Container = serde_json::from_value(container).unwrap();
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "web-0", "namespace": "shop", "uid": "u1", "labels": {"app": "web", "tier": "a\"b"}},
            "spec": {"nodeName": "n1", "serviceAccountName": "web", "containers": [container]},
        }))
        .unwrap();
        let objects = Objects {
            config_maps: [(
                "conf".to_owned(),
                serde_json::from_value(json!({"data": {"a": "1", "b": "2"}})).unwrap(),
            )]
            .into(),
            secrets: [(
                "keys".to_owned(),
                serde_json::from_value(json!({"data": {"k": "c2VjcmV0"}})).unwrap(),
            )]
            .into(),
        };
        let facts = Facts {
            pod: &pod,
            pod_ip: "10.42.0.7".to_owned(),
            host_ip: "172.30.0.1".to_owned(),
            allocatable: [("cpu".to_owned(), Quantity("2".to_owned()))].into(),
        };
        let all = environment(&container, &facts, &objects, &[])?;
        Ok(all
            .into_iter()
            .filter(|(name, _)| !["PATH", "HOME", "HOSTNAME"].contains(&name.as_str()))
            .collect())
    }

    #[test]
    fn references_to_variables_expand_and_unknown_ones_stay() {
        let known = variables(&[("A", "1"), ("B", "$(A)")]);
        for (text, expected) in [
            ("$(A)-$(B)", "1-$(A)"),
            ("$$(A) $(NO) $A $", "$(A) $(NO) $A $"),
            ("$(A", "$(A"),
            ("", ""),
        ] {
            assert_eq!(expand(text, &known), expected);
        }
    }

    #[test]
    fn variables_come_from_texts_config_maps_secrets_and_the_pod() {
        let got = check(
            json!({"name": "c", "resources": {"limits": {"memory": "64Mi"}, "requests": {"cpu": "250m"}},
            "envFrom": [{"prefix": "P_", "configMapRef": {"name": "conf"}}, {"secretRef": {"name": "no", "optional": true}}],
            "env": [
                {"name": "T", "value": "x$(P_a)"},
                {"name": "P_b", "value": "changed"},
                {"name": "C", "valueFrom": {"configMapKeyRef": {"name": "conf", "key": "b"}}},
                {"name": "S", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "k"}}},
                {"name": "O", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "none", "optional": true}}},
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "SA", "valueFrom": {"fieldRef": {"fieldPath": "spec.serviceAccountName"}}},
                {"name": "L", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
                {"name": "MEM", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
                {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "requests.cpu"}}},
                {"name": "MAX", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
            ]}),
        );
        assert_eq!(
            got.unwrap(),
            variables(&[
                ("P_a", "1"),
                ("P_b", "changed"),
                ("T", "x1"),
                ("C", "2"),
                ("S", "secret"),
                ("IP", "10.42.0.7"),
                ("SA", "web"),
                ("L", "web"),
                ("MEM", "64"),
                ("CPU", "1"),
                ("MAX", "2"),
            ])
        );
    }

    #[test]
    fn a_required_reference_to_nothing_is_an_error_that_names_it() {
        let missing = |source: Value| {
            check(json!({"name": "c", "env": [{"name": "X", "valueFrom": source}]})).unwrap_err()
        };
        assert_eq!(
            missing(json!({"configMapKeyRef": {"name": "no", "key": "a"}})).to_string(),
            "configmap \"no\" not found"
        );
        assert_eq!(
            missing(json!({"configMapKeyRef": {"name": "conf", "key": "no"}})).to_string(),
            "couldn't find key no in ConfigMap conf"
        );
        assert_eq!(
            missing(json!({"secretKeyRef": {"name": "no", "key": "a"}})).to_string(),
            "secret \"no\" not found"
        );
    }

    #[test]
    fn services_of_the_namespace_and_the_api_server_become_variables() {
        let all: Vec<Service> = serde_json::from_value(json!([
            {"metadata": {"name": "kubernetes", "namespace": "default"},
             "spec": {"clusterIP": "10.43.0.1", "ports": [{"name": "https", "port": 443}]}},
            {"metadata": {"name": "web-svc", "namespace": "shop"}, "spec": {"clusterIP": "10.43.0.9", "ports": [{"port": 80}]}},
            {"metadata": {"name": "headless", "namespace": "shop"}, "spec": {"clusterIP": "None", "ports": [{"port": 80}]}},
            {"metadata": {"name": "other", "namespace": "elsewhere"}, "spec": {"clusterIP": "10.43.0.8", "ports": [{"port": 80}]}},
        ]))
        .unwrap();
        let hosts = |links| -> Vec<String> {
            services("shop", links, &all)
                .into_iter()
                .filter(|(name, _)| name.ends_with("_HOST") || name.ends_with("_PORT"))
                .map(|(name, value)| format!("{name}={value}"))
                .collect()
        };
        assert_eq!(
            hosts(Some(false))[..2],
            ["KUBERNETES_SERVICE_HOST=10.43.0.1", "KUBERNETES_SERVICE_PORT=443"]
        );
        assert!(hosts(None).contains(&"WEB_SVC_SERVICE_HOST=10.43.0.9".to_owned()));
        assert!(
            !hosts(None)
                .iter()
                .any(|line| line.starts_with("OTHER") || line.starts_with("HEADLESS"))
        );
    }

    #[test]
    fn quantities_are_read_in_thousandths() {
        for (text, expected) in [
            ("2", Some(2000)),
            ("250m", Some(250)),
            ("1.5", Some(1500)),
            ("1Ki", Some(1_024_000)),
            ("x", None),
        ] {
            assert_eq!(milli(&Quantity(text.to_owned())), expected, "{text}");
        }
    }
}
