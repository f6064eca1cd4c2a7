//! Labels and annotations that the control plane reads or writes. Names are Linkerd's, so that manifests fit.

pub const CONTROL_PLANE_NS: &str = "linkerd.io/control-plane-ns";
pub const CONTROL_PLANE_COMPONENT: &str = "linkerd.io/control-plane-component";
pub const WORKLOAD_NS: &str = "linkerd.io/workload-ns";
pub const INJECT: &str = "linkerd.io/inject";
pub const CREATED_BY: &str = "linkerd.io/created-by";
pub const PROXY_VERSION: &str = "linkerd.io/proxy-version";
pub const TRUST_ROOT_SHA256: &str = "linkerd.io/trust-root-sha256";
pub const POD_TEMPLATE_HASH: &str = "pod-template-hash";

/// Prefix of everything that configures a proxy.
pub const CONFIG_PREFIX: &str = "config.linkerd.io/";
pub const CONFIG_ALPHA_PREFIX: &str = "config.alpha.linkerd.io/";
pub const CONFIG_BETA_PREFIX: &str = "config.beta.linkerd.io/";

pub const OPAQUE_PORTS: &str = "config.linkerd.io/opaque-ports";
pub const SKIP_INBOUND_PORTS: &str = "config.linkerd.io/skip-inbound-ports";
pub const ENABLE_GATEWAY: &str = "config.linkerd.io/enable-gateway";
pub const DEFAULT_INBOUND_POLICY: &str = "config.linkerd.io/default-inbound-policy";
pub const REQUIRE_IDENTITY_PORTS: &str = "config.linkerd.io/proxy-require-identity-inbound-ports";

pub const MIRROR_EXPORTED: &str = "mirror.linkerd.io/exported";
pub const MIRROR_CLUSTER_NAME: &str = "mirror.linkerd.io/cluster-name";
pub const MIRROR_REMOTE_NAME: &str = "mirror.linkerd.io/remote-svc-fq-name";
pub const MIRROR_GATEWAY_IDENTITY: &str = "mirror.linkerd.io/remote-gateway-identity";
