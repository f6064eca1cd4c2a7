//! Labels, annotations, names, ports and numbers that are part of the public interface.
//!
//! They are Linkerd's, letter for letter: manifests, dashboards and scripts written for it rely on them. A constant
//! belongs here as soon as two crates, or a crate and a user, must agree on it.

/// Prefix of what the mirror writes; labels under it are never copied from a target Service to its mirror.
pub const MIRROR_PREFIX: &str = "mirror.linkerd.io/";

/// Prefix of what says where endpoints are discovered; never copied either, or a target could choose for us.
pub const MULTICLUSTER_PREFIX: &str = "multicluster.linkerd.io/";

pub const EXPORTED: &str = "mirror.linkerd.io/exported";
pub const FEDERATED: &str = "mirror.linkerd.io/federated";
pub const MIRRORED_SERVICE: &str = "mirror.linkerd.io/mirrored-service";
pub const CLUSTER_NAME: &str = "mirror.linkerd.io/cluster-name";
pub const MIRRORED_GATEWAY: &str = "mirror.linkerd.io/mirrored-gateway";
pub const HEADLESS_MIRROR_SERVICE: &str = "mirror.linkerd.io/headless-mirror-svc-name";
pub const REMOTE_RESOURCE_VERSION: &str = "mirror.linkerd.io/remote-resource-version";
pub const REMOTE_SERVICE_FQ_NAME: &str = "mirror.linkerd.io/remote-svc-fq-name";
pub const REMOTE_GATEWAY_IDENTITY: &str = "mirror.linkerd.io/remote-gateway-identity";
pub const GATEWAY_IDENTITY: &str = "mirror.linkerd.io/gateway-identity";
pub const PROBE_PATH: &str = "mirror.linkerd.io/probe-path";
pub const PROBE_PERIOD: &str = "mirror.linkerd.io/probe-period";
pub const MULTICLUSTER_GATEWAY: &str = "mirror.linkerd.io/multicluster-gateway";

/// A label on flat-mode mirrors, an annotation on federated Services.
pub const REMOTE_DISCOVERY: &str = "multicluster.linkerd.io/remote-discovery";
pub const REMOTE_SERVICE: &str = "multicluster.linkerd.io/remote-service";
pub const LOCAL_DISCOVERY: &str = "multicluster.linkerd.io/local-discovery";
/// Label of the credentials Secret in the control-plane namespace (mirrors use [`CLUSTER_NAME`]).
pub const SECRET_CLUSTER_NAME: &str = "multicluster.linkerd.io/cluster-name";
pub const SECRET_TRUST_DOMAIN: &str = "multicluster.linkerd.io/trust-domain";
pub const SECRET_CLUSTER_DOMAIN: &str = "multicluster.linkerd.io/cluster-domain";

pub const EXTENSION: &str = "linkerd.io/extension";
pub const EXTENSION_MULTICLUSTER: &str = "multicluster";
pub const EXTENSION_MULTICLUSTER_LEGACY: &str = "linkerd-multicluster";
pub const EXTENSION_VIZ: &str = "viz";
pub const EXTENSION_FAILOVER: &str = "failover";
pub const CREATED_BY: &str = "linkerd.io/created-by";
pub const INJECT: &str = "linkerd.io/inject";
pub const OPAQUE_PORTS: &str = "config.linkerd.io/opaque-ports";
pub const ENABLE_GATEWAY: &str = "config.linkerd.io/enable-gateway";
pub const REQUIRE_IDENTITY_INBOUND_PORTS: &str = "config.linkerd.io/proxy-require-identity-inbound-ports";
pub const DEFAULT_INBOUND_POLICY: &str = "config.linkerd.io/default-inbound-policy";
pub const COMPONENT: &str = "component";
pub const COMPONENT_SERVICE_MIRROR: &str = "service-mirror";
pub const COMPONENT_SERVICE_MIRROR_POD: &str = "linkerd-service-mirror";
pub const COMPONENT_CONTROLLER: &str = "controller";
pub const COMPONENT_LOCAL_SERVICE_MIRROR: &str = "local-service-mirror";

pub const FAILOVER_CONTROLLED_BY: &str = "failover.linkerd.io/controlled-by";
pub const FAILOVER_PRIMARY: &str = "failover.linkerd.io/primary-service";
/// Weights as the user wrote them (JSON object of service to weight); the controller mutes members, it doesn't forget.
pub const FAILOVER_WEIGHTS: &str = "failover.linkerd.io/weights";
/// What the controller decided last, and why (JSON); the controller's own as well.
pub const FAILOVER_STATUS: &str = "failover.linkerd.io/status";
pub const FAILOVER_SECONDARY_ORDER: &str = "failover.linkerd.io/secondary-order";
pub const FAILOVER_MIN_DWELL: &str = "failover.linkerd.io/min-dwell";
pub const FAILOVER_RETURN_OVER: &str = "failover.linkerd.io/return-over";
pub const FAILOVER_RETURN_STEPS: &str = "failover.linkerd.io/return-steps";
pub const FAILOVER_MIN_SUCCESS_RATE: &str = "failover.linkerd.io/min-success-rate";
pub const FAILOVER_MAX_LATENCY: &str = "failover.linkerd.io/max-latency";
pub const FAILOVER_LATENCY_QUANTILE: &str = "failover.linkerd.io/latency-quantile";
pub const FAILOVER_MIN_REQUESTS: &str = "failover.linkerd.io/min-requests";
/// Backends that are left for a drill, and until when (JSON); written by whoever drills, and renewed while they watch.
pub const FAILOVER_DRILL: &str = "failover.linkerd.io/drill";
pub const FAILOVER_WINDOW: &str = "failover.linkerd.io/window";

pub const KUBECONFIG_SECRET_TYPE: &str = "mirror.linkerd.io/remote-kubeconfig";
pub const KUBECONFIG_SECRET_KEY: &str = "kubeconfig";

pub const GATEWAY_PORT_NAME: &str = "mc-gateway";
pub const PROBE_PORT_NAME: &str = "mc-probe";
pub const GATEWAY_PORT: u16 = 4143;
pub const PROBE_PORT: u16 = 4191;
pub const CONTROLLER_ADMIN_PORT: u16 = 9999;

pub const CONTROL_PLANE_NAMESPACE: &str = "linkerd";
pub const MULTICLUSTER_NAMESPACE: &str = "linkerd-multicluster";
pub const VIZ_NAMESPACE: &str = "linkerd-viz";
/// The account of who may watch requests, in [`VIZ_NAMESPACE`].
pub const TAP: &str = "tap";
/// On pods whose requests may be watched, with `true`.
pub const TAP_ENABLED: &str = "viz.linkerd.io/tap-enabled";
/// On pods and namespaces whose requests may not be watched.
pub const DISABLE_TAP: &str = "viz.linkerd.io/disable-tap";
pub const FAILOVER_NAMESPACE: &str = "linkerd-failover";
pub const GATEWAY_NAME: &str = "linkerd-gateway";
pub const REMOTE_ACCESS_DEFAULT: &str = "linkerd-service-mirror-remote-access-default";
pub const CONFIG_MAP: &str = "linkerd-config";

pub const SERVICE_MIRROR_CONTROLLER: &str = "linkerd.io/service-mirror";

pub const LABEL_SERVICE_NAME: &str = "kubernetes.io/service-name";
pub const LABEL_SLICE_MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
pub const LABEL_SLICE_SKIP_MIRROR: &str = "endpointslice.kubernetes.io/skip-mirror";

pub fn credentials_secret(cluster: &str) -> String {
    format!("cluster-credentials-{cluster}")
}

/// Begins the names of the Leases by which the controllers of one Link agree who writes.
pub const SERVICE_MIRROR_LEASE_PREFIX: &str = "service-mirror-write-";

pub fn service_mirror_lease(link: &str) -> String {
    format!("{SERVICE_MIRROR_LEASE_PREFIX}{link}")
}

/// Lease by which the controllers of local members agree who writes.
pub const LOCAL_MIRROR_LEASE: &str = "local-service-mirror-write";

/// The probe Service that the `link` command makes.
pub fn probe_service(cluster: &str) -> String {
    format!("probe-gateway-{cluster}")
}
