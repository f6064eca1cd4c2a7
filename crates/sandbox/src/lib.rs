//! Small, complete Kubernetes clusters on one Linux machine.
//!
//! Each cluster has an API server ([`api`] over [`store`] and [`schema`]), the controllers that a cluster needs
//! ([`controllers`]), one node that runs pods as processes in network namespaces ([`node`]), a pod network with
//! service addresses ([`network`]) and cluster DNS ([`dns`]). [`launcher`] puts all clusters of a sandbox in private
//! namespaces that vanish with it.
//!
//! This crate knows nothing of meshes: it serves any CRD and runs any pod. What an image name means is told to it
//! by its caller ([`images::Images`]).

pub mod api;
pub mod controllers;
pub mod dns;
pub mod images;
pub mod kubelet;
pub mod launcher;
pub mod network;
pub mod node;
pub mod schema;
pub mod store;
mod streams;
mod tls_listener;
