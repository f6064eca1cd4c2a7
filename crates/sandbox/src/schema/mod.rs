//! The pure half of the Kubernetes API server: what objects look like and how they change.
//!
//! [`builtin`] lists the resources to serve, [`Schema`] knows the fields of one kind (built-in or CRD): it prunes,
//! defaults and validates. [`patch`] and [`apply`] change objects, [`protobuf`] turns request bodies into JSON,
//! [`openapi`] describes everything to kubectl. All of it works on `serde_json::Value`; nothing here knows of HTTP,
//! storage, time or other objects. A written object passes through: `mistyped`, `prune`, a patch or `apply`, `default_`,
//! `prepare_for_create`, `validate`.
//!
//! Deliberately missing: descriptions are not served, so `kubectl explain` shows structure without prose.

mod cause;
mod cel;
mod convert;
mod crd;
mod defaults;
mod names;
mod registry;
mod tree;
mod validation;

pub mod apply;
pub mod openapi;
pub mod patch;
pub mod protobuf;
pub mod quantity;

pub use cause::{Cause, Path, Reason};
pub use registry::{Registry, ResourceType, Subresource, builtin};
pub use tree::Schema;
pub use validation::matches as selector_matches;
