//! What every process of the mesh needs besides its work: logs, an admin port, metrics, readiness and shutdown.
//!
//! Knows nothing of Kubernetes or of the mesh. The data plane serves its admin port itself, behind its own policy,
//! and uses only the pieces here.

pub mod admin;
pub mod exposition;
pub mod logging;
pub mod metrics;
pub mod pause;
pub mod readiness;
pub mod shutdown;

pub use metrics::Metrics;
pub use readiness::{Guard, Readiness};
pub use shutdown::Shutdown;
