//! The proxy injector: gives new pods their proxy, new Services their opaque ports, and never stands in the way.
//!
//! [`inject`] decides and renders, purely; [`cli`] is what `hawser inject` does with manifests; [`webhook`] answers the
//! API server.

pub mod cli;
pub mod inject;
mod proxy;
#[cfg(test)]
mod tests;
pub mod webhook;

pub use self::inject::{Component, Injection, Mode, Namespace, Owner, Skip};
pub use self::webhook::{Args, run};
