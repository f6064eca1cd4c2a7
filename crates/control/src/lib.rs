//! The control plane of the mesh: one module and one subcommand each.
//!
//! Processes share nothing but the Kubernetes API; what two of them must agree on is in [`values`] and [`mesh`] or in
//! `hawser-core`. [`destination`] and [`policy`] answer proxies from the same kind of [`view`].

pub mod destination;
pub mod failover;
pub mod follow;
pub mod identity;
pub mod injector;
pub mod keys;
pub mod lead;
pub mod lease;
pub mod mesh;
pub mod mirror;
pub mod notes;
pub mod observe;
pub mod policy;
pub mod ports;
pub mod process;
#[cfg(test)]
mod testing;
pub mod values;
pub mod view;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The control plane of the mesh.
#[derive(Debug, Parser)]
#[command(name = "hawser-control", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Certifies proxies
    Identity(identity::Args),
    /// Tells proxies who stands behind a name
    Destination(destination::Args),
    /// Tells proxies who may come in and how traffic goes out
    Policy(policy::Args),
    /// Gives new pods their proxy
    Injector(injector::Args),
    /// Mirrors the services that a linked cluster exports
    ServiceMirror(mirror::Args),
    /// Moves traffic away from services that have no ready endpoints, and back
    Failover(failover::Args),
}

/// Whether a program would accept these arguments (without its own name), so that whoever renders a manifest can test
/// it.
pub fn check_arguments(args: impl Iterator<Item = OsString>) -> Result<(), String> {
    let args = std::iter::once(OsString::from("hawser-control")).chain(args);
    Cli::try_parse_from(args)
        .map(drop)
        .map_err(|error| error.to_string())
}

/// Runs one of the programs to its end; `args` begins with the program's own name.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help goes to stdout, mistakes to stderr; if neither can be written, the code still says it.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "hawser-control: starting the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(async {
        match cli.command {
            Command::Identity(args) => identity::run(args).await,
            Command::Destination(args) => destination::run(args).await,
            Command::Policy(args) => policy::run(args).await,
            Command::Injector(args) => injector::run(args).await,
            Command::ServiceMirror(args) => mirror::run(args).await,
            Command::Failover(args) => failover::run(args).await,
        }
    });
    // Threads that are still busy (name look-ups, for instance) must not hold up the end.
    runtime.shutdown_background();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "hawser-control: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn no_two_flags_of_a_command_contradict_each_other() {
        Cli::command().debug_assert();
    }
}
