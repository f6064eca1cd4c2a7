//! A Link: this cluster imports the services that another one exports.
//!
//! All scalars of the spec are strings, ports and thresholds too, because that is what the CRD has always said;
//! [`LinkSpec::gateway`] and [`LinkSpec::probe`] turn them into values that can't be wrong. The same fields serve
//! `v1alpha1` to `v1alpha3`; absent fields have their documented defaults.

use crate::resource::custom_resource;
use crate::selector::{self, InvalidSelector, Selector};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde::{Deserialize, Serialize};
use std::time::Duration;

custom_resource!(
    /// One direction of a connection between two clusters, seen from the importing one.
    Link,
    LinkSpec,
    LinkStatus,
    "multicluster.linkerd.io",
    "v1alpha3",
    "links"
);

pub const PROBE_PERIOD_DEFAULT: Duration = Duration::from_secs(3);
pub const PROBE_TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
pub const PROBE_FAILURE_THRESHOLD_DEFAULT: u32 = 3;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LinkSpec {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub target_cluster_name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub target_cluster_domain: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub target_cluster_linkerd_namespace: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cluster_credentials_secret: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub gateway_address: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub gateway_port: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub gateway_identity: String,
    pub probe_spec: ProbeSpec,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remote_discovery_selector: Option<LabelSelector>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub federated_service_selector: Option<LabelSelector>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub excluded_annotations: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub excluded_labels: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProbeSpec {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub path: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub port: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub period: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub timeout: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub failure_threshold: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LinkStatus {
    pub mirror_services: Vec<ServiceStatus>,
    /// Written also when empty, or a merge patch could never take away the last one.
    pub federated_services: Vec<ServiceStatus>,
    /// Of the Link as a whole: `Ready`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<LinkCondition>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceStatus {
    pub controller_name: String,
    pub remote_ref: ObjectRef,
    pub conditions: Vec<LinkCondition>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct ObjectRef {
    pub group: String,
    pub kind: String,
    pub name: String,
    pub namespace: String,
}

impl ObjectRef {
    pub fn service(namespace: &str, name: &str) -> Self {
        Self {
            group: String::new(),
            kind: "Service".into(),
            name: name.into(),
            namespace: namespace.into(),
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LinkCondition {
    #[serde(rename = "type")]
    pub type_: String,
    pub status: String,
    pub reason: String,
    pub message: String,
    pub last_transition_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local_ref: Option<ObjectRef>,
}

/// Where the target's gateway is, as the Link says it: not resolved yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewaySpec {
    /// IP addresses and host names, in the Link's order, at least one.
    pub hosts: Vec<String>,
    pub port: u16,
    /// Empty when the Link expects no identity (which no meshed gateway accepts).
    pub identity: String,
}

/// How to find out whether the gateway lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    pub path: String,
    pub port: u16,
    pub period: Duration,
    pub timeout: Duration,
    pub failure_threshold: u32,
}

impl Probe {
    /// Whether the Link's author left the timing alone. Then we may be quicker than it promises.
    pub fn has_default_timing(&self) -> bool {
        self.period == PROBE_PERIOD_DEFAULT
            && self.timeout == PROBE_TIMEOUT_DEFAULT
            && self.failure_threshold == PROBE_FAILURE_THRESHOLD_DEFAULT
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    #[error("spec.{field} is {value:?}, which is not a port number")]
    Port { field: &'static str, value: String },
    #[error("spec.{field} is {value:?}, which is not a duration such as 3s or 1m30s")]
    Duration { field: &'static str, value: String },
    #[error("spec.probeSpec.failureThreshold is {0:?}, which is not a positive number")]
    Threshold(String),
    #[error("spec.probeSpec.path is {0:?}, which does not begin with a slash")]
    Path(String),
    #[error("spec.{field} is empty")]
    Missing { field: &'static str },
    #[error("spec.{field}: {source}")]
    Selector {
        field: &'static str,
        source: InvalidSelector,
    },
}

impl LinkSpec {
    /// The gateway, if the Link has one.
    pub fn gateway(&self) -> Result<Option<GatewaySpec>, LinkError> {
        let hosts: Vec<String> = self
            .gateway_address
            .split(',')
            .map(str::trim)
            .filter(|host| !host.is_empty())
            .map(str::to_owned)
            .collect();
        if hosts.is_empty() {
            return Ok(None);
        }
        let port = port("gatewayPort", &self.gateway_port)?;
        Ok(Some(GatewaySpec {
            hosts,
            port,
            identity: self.gateway_identity.clone(),
        }))
    }

    /// How to probe the gateway, unless the Link says not to.
    pub fn probe(&self) -> Result<Option<Probe>, LinkError> {
        let spec = &self.probe_spec;
        if spec.path.is_empty() {
            return Ok(None);
        }
        if !spec.path.starts_with('/') || spec.path.contains(|c: char| c.is_ascii_control() || c == ' ') {
            return Err(LinkError::Path(spec.path.clone()));
        }
        let failure_threshold = match spec.failure_threshold.trim() {
            "" => PROBE_FAILURE_THRESHOLD_DEFAULT,
            text => text
                .parse()
                .ok()
                .filter(|threshold| *threshold > 0)
                .ok_or_else(|| LinkError::Threshold(text.to_owned()))?,
        };
        Ok(Some(Probe {
            path: spec.path.clone(),
            port: port("probeSpec.port", &spec.port)?,
            period: duration("probeSpec.period", &spec.period, PROBE_PERIOD_DEFAULT)?,
            timeout: duration("probeSpec.timeout", &spec.timeout, PROBE_TIMEOUT_DEFAULT)?,
            failure_threshold,
        }))
    }

    /// Which Services of the target are mirrored behind the gateway.
    pub fn exported(&self) -> Result<Selector, LinkError> {
        selector::parse(self.selector.as_ref()).map_err(|source| LinkError::Selector {
            field: "selector",
            source,
        })
    }

    /// Which Services of the target are reached without the gateway; they win over [`Self::exported`].
    pub fn remote_discovery(&self) -> Result<Selector, LinkError> {
        selector::parse(self.remote_discovery_selector.as_ref()).map_err(|source| LinkError::Selector {
            field: "remoteDiscoverySelector",
            source,
        })
    }

    /// Which Services of the target join a federated service.
    pub fn federated(&self) -> Result<Selector, LinkError> {
        selector::parse(self.federated_service_selector.as_ref()).map_err(|source| LinkError::Selector {
            field: "federatedServiceSelector",
            source,
        })
    }
}

fn port(field: &'static str, text: &str) -> Result<u16, LinkError> {
    match text.trim().parse() {
        Ok(0) | Err(_) => Err(LinkError::Port {
            field,
            value: text.to_owned(),
        }),
        Ok(port) => Ok(port),
    }
}

fn duration(field: &'static str, text: &str, default: Duration) -> Result<Duration, LinkError> {
    match text.trim() {
        "" => Ok(default),
        text => parse_duration(text)
            .filter(|duration| !duration.is_zero())
            .ok_or_else(|| LinkError::Duration {
                field,
                value: text.to_owned(),
            }),
    }
}

/// Reads a duration as Go writes it: `3s`, `1m30s`, `1.5h`, `250ms`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut seconds = 0.0_f64;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let number_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(number_end);
        let unit_end = tail
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let scale = match unit {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        seconds += number.parse::<f64>().ok()? * scale;
        rest = tail;
    }
    Duration::try_from_secs_f64(seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: serde_json::Value) -> LinkSpec {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn durations_are_read_as_go_writes_them() {
        assert_eq!(parse_duration("3s"), Some(Duration::from_secs(3)));
        assert_eq!(parse_duration("1m30s"), Some(Duration::from_secs(90)));
        assert_eq!(parse_duration("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(parse_duration("1.5h"), Some(Duration::from_secs(5400)));
        for wrong in ["", "3", "s", "3x", "-3s", "3 s", "99999999999999999999h"] {
            assert_eq!(parse_duration(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_link_of_the_first_version_gets_the_defaults_of_the_last() {
        let spec = spec(serde_json::json!({
            "targetClusterName": "east",
            "gatewayAddress": "203.0.113.7, lb.example", "gatewayPort": "4143", "gatewayIdentity": "gw",
            "probeSpec": {"path": "/ready", "port": "4191", "period": "3s"},
        }));
        let gateway = spec.gateway().unwrap().unwrap();
        assert_eq!(gateway.hosts, ["203.0.113.7", "lb.example"]);
        let probe = spec.probe().unwrap().unwrap();
        assert_eq!(
            (probe.timeout, probe.failure_threshold),
            (Duration::from_secs(30), 3)
        );
        assert!(probe.has_default_timing());
        assert_eq!(spec.exported().unwrap().query(), None);
    }

    #[test]
    fn a_link_without_a_gateway_has_neither_gateway_nor_probe() {
        let spec = spec(serde_json::json!({"targetClusterName": "east", "probeSpec": {}}));
        assert_eq!((spec.gateway().unwrap(), spec.probe().unwrap()), (None, None));
    }

    #[test]
    fn wrong_values_are_named() {
        let gateway = spec(serde_json::json!({"gatewayAddress": "a", "gatewayPort": "http"})).gateway();
        assert_eq!(
            gateway.unwrap_err().to_string(),
            "spec.gatewayPort is \"http\", which is not a port number"
        );
        let probe =
            spec(serde_json::json!({"probeSpec": {"path": "/ready", "port": "1", "period": "soon"}})).probe();
        assert!(
            probe
                .unwrap_err()
                .to_string()
                .starts_with("spec.probeSpec.period is \"soon\"")
        );
    }

    #[test]
    fn a_link_keeps_its_shape_through_json() {
        let mut link = Link::new("linkerd-multicluster", "east", LinkSpec::default());
        link.spec.target_cluster_name = "east".into();
        let json = serde_json::to_value(&link).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "apiVersion": "multicluster.linkerd.io/v1alpha3", "kind": "Link",
                "metadata": {"name": "east", "namespace": "linkerd-multicluster"},
                "spec": {"targetClusterName": "east", "probeSpec": {}},
            })
        );
        assert_eq!(serde_json::from_value::<Link>(json).unwrap(), link);
    }
}
