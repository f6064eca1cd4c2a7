//! Emojivoto, the workshop's demo application: vote for your favourite emoji.
//!
//! Four programs, compatible with the images of the public manifest in environment, ports, gRPC methods and REST
//! paths: [`web`] shows the page and calls [`emoji_svc`] (the list of emoji) and [`voting_svc`] (the votes) by gRPC;
//! [`vote_bot`] votes through web. Voting for a doughnut fails on purpose, so that there is something to find.
//!
//! Nothing here knows about meshes or Kubernetes: these are ordinary programs that speak plain text.

pub mod emoji_svc;
pub mod vote_bot;
pub mod voting_svc;
pub mod web;

mod emoji;
mod grpc;
mod metrics;
mod process;
#[cfg(test)]
mod tests;

/// The Kubernetes manifest of the whole application.
pub const MANIFEST: &str = include_str!("../emojivoto.yml");
