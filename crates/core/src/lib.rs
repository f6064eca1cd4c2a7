//! Hawser's vocabulary, and the decisions that several processes must agree on.
//!
//! Names are parsed at the edge into types that cannot be wrong. Decisions ([`authz`], [`names::mirror`]) are pure
//! functions, so the proxy, the control plane, the mirror controller and the command line cannot disagree. This crate
//! does no I/O, does not tell the time, is not async, and knows neither Kubernetes clients nor JSON.

pub mod authz;
pub mod failover;
pub mod identity;
pub mod names;
pub mod weight;

pub use identity::{Identity, IdentityPattern, TrustDomain};
pub use names::{ClusterName, NameError, Namespace, ServiceId, ServiceName};
pub use weight::Weight;
