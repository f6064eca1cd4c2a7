//! Starts and stops a whole sandbox.
//!
//! [`enter`] makes the private namespaces, [`kubernetes`] runs a real control plane where one is asked for, [`control`] is how other processes talk to a running sandbox, and
//! [`doctor`] says what a machine lacks. Which clusters, images and networks make up a sandbox is the assembly's
//! business, which runs inside.

pub mod assemble;
pub mod control;
pub mod doctor;
pub mod enter;
pub mod kubernetes;
