//! The data plane: a proxy beside each pod, and the same proxy as a gateway between clusters.
//!
//! A connection's story is accept → decide → connect → forward: [`outbound`] tells it for the pod's own connections,
//! [`inbound`] for those to the pod, [`gateway`] joins the two. What they decide by are immutable snapshots that
//! [`discover`] makes of the control plane's answers. Workers share nothing that needs a lock on that path; the
//! control plane's client, identity and the admin port live on a thread of their own.
//!
//! The crate doesn't know Kubernetes: it speaks the proxy API and reads its environment (`spec/proxy.md`).

mod admin;
mod answer;
mod balance;
mod body;
mod bond;
mod config;
mod control_client;
#[cfg(test)]
mod damage;
pub mod decision;
mod detect;
mod discover;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod gateway;
mod head;
mod header;
mod http_rules;
mod identity;
mod inbound;
pub mod init;
mod late;
mod limits;
mod live;
mod message;
mod metrics;
pub mod otlp;
mod outbound;
mod process;
mod quick;
mod route;
mod snapshot;
mod span;
mod tap;
mod transport;
mod wire;
mod worker;

pub use config::{Config, Env, Invalid};
pub use process::{Proxy, Seams, StartError, main};
pub use transport::{FromKernel, OriginalDst};
