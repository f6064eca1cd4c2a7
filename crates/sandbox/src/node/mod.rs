//! The node agent.
#![expect(dead_code, reason = "the worker that joins these parts is being written")]

mod container;
mod env;
mod logs;
mod plan;
mod probe;
pub mod starter;
mod status;
mod volume;

use crate::kubelet::BoxFuture;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

/// One pod's network.
pub trait PodNet: Send + Sync + 'static {
    fn ip(&self) -> Ipv4Addr;
    /// A path by which another process of this machine can open the network namespace; none for the agent's own.
    fn netns(&self) -> Option<PathBuf>;
    /// Connects from inside the pod. The caller bounds the time.
    fn connect(&self, to: SocketAddr) -> BoxFuture<'_, io::Result<tokio::net::TcpStream>>;
}
