//! The control plane of the mesh: one module and one subcommand each.
//!
//! Processes share nothing but the Kubernetes API; what two of them must agree on is in [`values`] or in `hawser-core`.

pub mod keys;
pub mod ports;
pub mod values;
pub mod view;
