//! The Kubernetes resource types of the mesh: names, shapes and CRD manifests.
//!
//! [`keys`] holds every label, annotation, port and name that other programs may rely on; [`link`], [`split`] and
//! [`policy`] the custom resources; [`manifests`] their CustomResourceDefinitions. Nothing here talks to a cluster
//! or decides anything.

pub mod keys;
pub mod link;
pub mod manifests;
pub mod policy;
mod resource;
pub mod selector;
pub mod split;

pub use link::Link;
pub use policy::{
    AuthorizationPolicy, MeshTLSAuthentication, NetworkAuthentication, Server, ServerAuthorization,
};
pub use split::TrafficSplit;
