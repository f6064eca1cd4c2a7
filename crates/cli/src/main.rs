//! `hawser`: one binary that holds everything, and the command line that people use.
//!
//! Called under one of the names in [`programs`] it is that program: this is how pods of the sandbox find the proxy,
//! the control plane and the demo application without any image. Otherwise it is the command line below. This crate
//! composes; what commands do is in the modules and crates that they name.

mod apply;
mod certs;
mod check;
mod demo;
mod failover;
mod inject;
mod install;
mod kube;
mod multicluster;
mod problem;
mod programs;
mod sandbox;
mod scrape;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::problem::Problem;

/// Secure multi-cluster Kubernetes.
///
/// Ties clusters together: mutual TLS for every pod, services of one cluster in another, a gateway that lets in
/// nobody it cannot authenticate, and failover that comes back gently.
#[derive(Debug, Parser)]
#[command(
    name = "hawser",
    version,
    propagate_version = true,
    arg_required_else_help = true
)]
#[command(
    after_help = "Examples:\n  hawser demo                 see two linked clusters on this machine\n  hawser sandbox up west east start two empty clusters for kubectl"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::DemoArgs),
    Inject(inject::InjectArgs),
    Install(install::InstallArgs),
    Sandbox(sandbox::SandboxArgs),
    Multicluster(multicluster::MulticlusterArgs),
    Failover(failover::FailoverArgs),
    Certs(certs::CertsArgs),
    Uninject(inject::UninjectArgs),
    Upgrade(install::UpgradeArgs),
}

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    if let Some(program) = programs::called_as(args.first()) {
        return program(args);
    }
    let cli = Cli::parse_from(args);
    let outcome = match cli.command {
        Command::Demo(args) => demo::run(args),
        Command::Inject(args) => inject::inject(args),
        Command::Install(args) => install::run(args),
        Command::Sandbox(args) => sandbox::run(args),
        Command::Multicluster(args) => block_on(multicluster::run(args)),
        Command::Failover(args) => block_on(failover::run(args)),
        Command::Certs(args) => certs::run(args),
        Command::Uninject(args) => inject::uninject(args),
        Command::Upgrade(args) => install::upgrade(args),
    };
    match outcome {
        Ok(code) => code,
        Err(problem) => {
            problem.print();
            ExitCode::FAILURE
        }
    }
}

/// Runs a command's future on a runtime of its own.
fn block_on<T>(future: impl Future<Output = Result<T, Problem>>) -> Result<T, Problem> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Problem::new("cannot start", error, "check the limits of this shell: ulimit -a"))?;
    runtime.block_on(future)
}
