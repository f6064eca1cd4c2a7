//! The policy resources: which ports are servers, and who may talk to them.
//!
//! Shapes only; what they mean together is decided by the policy controller.

use crate::resource::{NoStatus, custom_resource};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::{Deserialize, Serialize};

pub const GROUP: &str = "policy.linkerd.io";

custom_resource!(
    /// One port of a set of pods, and the protocol spoken there.
    Server,
    ServerSpec,
    NoStatus,
    "policy.linkerd.io",
    "v1beta3",
    "servers"
);

custom_resource!(
    /// Lets clients into Servers; the older of the two ways to say so.
    ServerAuthorization,
    ServerAuthorizationSpec,
    NoStatus,
    "policy.linkerd.io",
    "v1beta1",
    "serverauthorizations"
);

custom_resource!(
    /// Lets in whoever satisfies all of the required authentications.
    AuthorizationPolicy,
    AuthorizationPolicySpec,
    NoStatus,
    "policy.linkerd.io",
    "v1alpha1",
    "authorizationpolicies"
);

custom_resource!(
    /// Clients that prove one of these identities.
    MeshTLSAuthentication,
    MeshTLSAuthenticationSpec,
    NoStatus,
    "policy.linkerd.io",
    "v1alpha1",
    "meshtlsauthentications"
);

custom_resource!(
    /// Clients from one of these networks.
    NetworkAuthentication,
    NetworkAuthenticationSpec,
    NoStatus,
    "policy.linkerd.io",
    "v1alpha1",
    "networkauthentications"
);

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServerSpec {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_selector: Option<LabelSelector>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external_workload_selector: Option<LabelSelector>,
    pub port: IntOrString,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy_protocol: Option<ProxyProtocol>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_policy: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProxyProtocol {
    #[serde(rename = "unknown")]
    Unknown,
    #[serde(rename = "HTTP/1")]
    Http1,
    #[serde(rename = "HTTP/2")]
    Http2,
    #[serde(rename = "gRPC")]
    Grpc,
    #[serde(rename = "opaque")]
    Opaque,
    #[serde(rename = "TLS")]
    Tls,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServerAuthorizationSpec {
    pub server: ServerReference,
    pub client: Client,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServerReference {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Client {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub networks: Option<Vec<Network>>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub unauthenticated: bool,
    #[serde(rename = "meshTLS", skip_serializing_if = "Option::is_none")]
    pub mesh_tls: Option<MeshTls>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MeshTls {
    #[serde(rename = "unauthenticatedTLS", skip_serializing_if = "std::ops::Not::not")]
    pub unauthenticated_tls: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identities: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_accounts: Option<Vec<ServiceAccountReference>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServiceAccountReference {
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Network {
    pub cidr: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub except: Option<Vec<String>>,
}

/// Names an object of the same namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LocalTargetRef {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    pub kind: String,
    pub name: String,
}

/// Names an object, by default of the same namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NamespacedTargetRef {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    pub kind: String,
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AuthorizationPolicySpec {
    pub target_ref: LocalTargetRef,
    pub required_authentication_refs: Vec<NamespacedTargetRef>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MeshTLSAuthenticationSpec {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identities: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity_refs: Option<Vec<NamespacedTargetRef>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkAuthenticationSpec {
    pub networks: Vec<Network>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip<T: Serialize + serde::de::DeserializeOwned>(json: serde_json::Value) {
        let typed: T = serde_json::from_value(json.clone()).unwrap();
        assert_eq!(serde_json::to_value(&typed).unwrap(), json);
    }

    #[test]
    fn servers_keep_their_shape() {
        round_trip::<Server>(serde_json::json!({
            "apiVersion": "policy.linkerd.io/v1beta3", "kind": "Server",
            "metadata": {"name": "linkerd-gateway"},
            "spec": {"podSelector": {"matchLabels": {"app": "linkerd-gateway"}}, "port": "linkerd-proxy",
                     "proxyProtocol": "HTTP/1"},
        }));
    }

    #[test]
    fn server_authorizations_keep_their_shape() {
        round_trip::<ServerAuthorization>(serde_json::json!({
            "apiVersion": "policy.linkerd.io/v1beta1", "kind": "ServerAuthorization",
            "metadata": {"name": "linkerd-gateway"},
            "spec": {"server": {"name": "linkerd-gateway"},
                     "client": {"networks": [{"cidr": "0.0.0.0/0"}, {"cidr": "::/0", "except": ["fd00::/8"]}],
                                "meshTLS": {"identities": ["*"]}}},
        }));
    }

    #[test]
    fn authorization_policies_keep_their_shape() {
        round_trip::<AuthorizationPolicy>(serde_json::json!({
            "apiVersion": "policy.linkerd.io/v1alpha1", "kind": "AuthorizationPolicy",
            "metadata": {"name": "linkerd-gateway"},
            "spec": {"targetRef": {"group": "policy.linkerd.io", "kind": "Server", "name": "linkerd-gateway"},
                     "requiredAuthenticationRefs": [
                        {"group": "policy.linkerd.io", "kind": "MeshTLSAuthentication", "name": "any-meshed"}]},
        }));
        round_trip::<MeshTLSAuthentication>(serde_json::json!({
            "apiVersion": "policy.linkerd.io/v1alpha1", "kind": "MeshTLSAuthentication",
            "metadata": {"name": "any-meshed"}, "spec": {"identities": ["*"]},
        }));
        round_trip::<NetworkAuthentication>(serde_json::json!({
            "apiVersion": "policy.linkerd.io/v1alpha1", "kind": "NetworkAuthentication",
            "metadata": {"name": "source-cluster"}, "spec": {"networks": [{"cidr": "0.0.0.0/0"}]},
        }));
    }
}
