//! Labels and annotations that the control plane reads or writes. Names are Linkerd's, so that manifests fit.
//!
//! What the multicluster extension uses too is defined in `hawser_crd::keys`.

pub use hawser_crd::keys::{
    CLUSTER_NAME as MIRROR_CLUSTER_NAME, CREATED_BY, DEFAULT_INBOUND_POLICY, DISABLE_TAP, ENABLE_GATEWAY,
    EXPORTED as MIRROR_EXPORTED, INJECT, LOCAL_DISCOVERY, OPAQUE_PORTS, REMOTE_DISCOVERY,
    REMOTE_GATEWAY_IDENTITY as MIRROR_GATEWAY_IDENTITY, REMOTE_SERVICE,
    REMOTE_SERVICE_FQ_NAME as MIRROR_REMOTE_NAME, REQUIRE_IDENTITY_INBOUND_PORTS as REQUIRE_IDENTITY_PORTS,
    TAP, TAP_ENABLED, VIZ_NAMESPACE,
};

pub const CONTROL_PLANE_NS: &str = "linkerd.io/control-plane-ns";
pub const CONTROL_PLANE_COMPONENT: &str = "linkerd.io/control-plane-component";
pub const WORKLOAD_NS: &str = "linkerd.io/workload-ns";
pub const PROXY_VERSION: &str = "linkerd.io/proxy-version";
pub const TRUST_ROOT_SHA256: &str = "linkerd.io/trust-root-sha256";
pub const POD_TEMPLATE_HASH: &str = "pod-template-hash";

/// Prefix of everything that configures a proxy.
pub const CONFIG_PREFIX: &str = "config.linkerd.io/";
pub const CONFIG_ALPHA_PREFIX: &str = "config.alpha.linkerd.io/";
pub const CONFIG_BETA_PREFIX: &str = "config.beta.linkerd.io/";

pub const SKIP_INBOUND_PORTS: &str = "config.linkerd.io/skip-inbound-ports";
