//! Networks of clusters, all inside the sandbox's private namespace.
//!
//! Each cluster has a node namespace ([`NetNs`]) with a bridge for pods, and one leg on the segment between clusters
//! ([`wan::Wan`]). Unless the [`Layout`] is flat, pods of different clusters have the same addresses on purpose: nothing
//! reaches another cluster except by its LoadBalancer addresses, its API server and, if asked for, its [`NodePorts`].
//! [`services`] gives Services their addresses. Nothing here
//! runs a program or needs more than CAP_NET_ADMIN in the sandbox's own namespaces.

mod cluster;
mod netns;
mod pool;
pub mod services;
pub mod snapshot;
pub mod wan;

pub use cluster::{ClusterNetwork, Layout, NetworkError, NodePorts, PodNetwork, plan_addresses};
pub use netns::NetNs;
