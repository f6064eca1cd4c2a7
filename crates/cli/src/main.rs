//! `hawser`: one binary that holds everything, and the command line that people use.
//!
//! Called under one of the names in [`programs`] it is that program: this is how pods of the sandbox find the proxy,
//! the control plane and the demo application without any image. Otherwise it is the command line below. This crate
//! composes; what commands do is in the modules and crates that they name.

mod apply;
mod authz;
mod certs;
mod check;
mod completion;
mod demo;
mod diagnostics;
mod drill;
mod explain;
mod failover;
mod forward;
mod identity;
mod inject;
mod install;
mod inventory;
mod kube;
mod meshed;
mod migrate;
mod multicluster;
mod output;
mod problem;
mod programs;
mod replicas;
mod route;
mod sandbox;
mod scrape;
mod uninstall;
mod version;
mod viz;
mod workload;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use hawser_runtime::logging::{self, Format};

use crate::kube::ClusterArgs;
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
#[command(after_help = "Examples:
  hawser demo                        see two linked clusters on this machine
  hawser install | kubectl apply -f - a mesh for the cluster of your kubeconfig
  hawser check                       is it well?")]
struct Cli {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Log requests to clusters on standard error
    #[arg(long, global = true, help_heading = "Cluster")]
    verbose: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Authz(authz::AuthzArgs),
    Certs(certs::CertsArgs),
    Check(check::CheckArgs),
    Completion(completion::CompletionArgs),
    Demo(demo::DemoArgs),
    Diagnostics(diagnostics::DiagnosticsArgs),
    Drill(drill::DrillArgs),
    Explain(explain::ExplainArgs),
    Failover(failover::FailoverArgs),
    Identity(identity::IdentityArgs),
    Inject(inject::InjectArgs),
    Install(install::InstallArgs),
    Man(completion::ManArgs),
    Migrate(migrate::MigrateArgs),
    Multicluster(multicluster::MulticlusterArgs),
    Prune(uninstall::PruneArgs),
    Sandbox(sandbox::SandboxArgs),
    Uninject(inject::UninjectArgs),
    Uninstall(uninstall::UninstallArgs),
    Upgrade(install::UpgradeArgs),
    Version(version::VersionArgs),
    Viz(viz::VizArgs),
}

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    if let Some(program) = programs::called_as(args.first()) {
        return program(args);
    }
    let cli = Cli::parse_from(args);
    match run(cli) {
        Ok(code) => code,
        Err(problem) => {
            problem.print();
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode, Problem> {
    if cli.verbose {
        logging::start("info,hawser=debug,kube=debug,tower_http=debug", Format::Plain)
            .map_err(|error| Problem::new("cannot log", error, "leave --verbose out"))?;
    }
    let cluster = &cli.cluster;
    match cli.command {
        Command::Authz(args) => block_on(authz::run(cluster, args)),
        Command::Certs(args) => certs::run(args),
        Command::Check(args) => block_on(check::run(cluster, args)),
        Command::Completion(args) => completion::run(args, Cli::command()),
        Command::Demo(args) => demo::run(args),
        Command::Diagnostics(args) => block_on(diagnostics::run(cluster, args)),
        Command::Drill(args) => block_on(drill::run(cluster, args)),
        Command::Explain(args) => block_on(explain::run(cluster, args)),
        Command::Failover(args) => block_on(failover::run(cluster, args)),
        Command::Identity(args) => block_on(identity::run(cluster, args)),
        Command::Inject(args) => inject::inject(cluster, args),
        Command::Install(args) => install::run(args),
        Command::Man(args) => completion::man(args, Cli::command()),
        Command::Migrate(args) => block_on(migrate::run(cluster, args)),
        Command::Multicluster(args) => block_on(multicluster::run(cluster, args)),
        Command::Prune(args) => block_on(uninstall::prune(cluster, args)),
        Command::Sandbox(args) => sandbox::run(args),
        Command::Uninject(args) => inject::uninject(args),
        Command::Uninstall(args) => block_on(uninstall::run(cluster, args)),
        Command::Upgrade(args) => install::upgrade(args),
        Command::Version(args) => block_on(version::run(cluster, args)),
        Command::Viz(args) => block_on(viz::run(cluster, args)),
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Every command with its whole name, as it is typed.
    fn commands(command: &clap::Command, path: &str, all: &mut Vec<(String, clap::Command)>) {
        let shown = command.get_subcommands().filter(|command| !command.is_hide_set());
        for command in shown.filter(|command| command.get_name() != "help") {
            let path = format!("{path} {}", command.get_name());
            all.push((path.clone(), command.clone()));
            commands(command, &path, all);
        }
    }

    #[test]
    fn every_command_has_help_with_an_example_of_itself() {
        let mut cli = Cli::command();
        cli.build();
        let mut all = Vec::new();
        commands(&cli, "hawser", &mut all);
        assert!(all.len() > 30, "{}", all.len());
        let mut without = Vec::new();
        for (path, mut command) in all {
            let help = command.render_long_help().to_string();
            let example = path.replace("hawser multicluster", "hawser mc");
            let shown = help
                .lines()
                .filter(|line| !line.trim_start().starts_with("Usage:"))
                .any(|line| line.contains(&path) || line.contains(&example));
            if !shown {
                without.push(path);
            }
        }
        assert_eq!(without, [""; 0], "these show no example of themselves");
    }

    #[test]
    fn flags_of_the_cluster_may_come_before_or_after_the_command() {
        for line in [
            "hawser --context east -L mesh check --proxy",
            "hawser check --proxy --context east -L mesh",
        ] {
            let cli = Cli::try_parse_from(line.split(' ')).unwrap();
            assert_eq!(cli.cluster.context.as_deref(), Some("east"), "{line}");
            assert_eq!(cli.cluster.linkerd_namespace, "mesh", "{line}");
        }
    }

    #[test]
    fn commands_with_flags_of_their_own_for_the_cluster_hear_those_before_them() {
        let line = "hawser --context east -L mesh upgrade";
        let matches = Cli::command().get_matches_from(line.split(' '));
        let upgrade = matches.subcommand_matches("upgrade").unwrap();
        let said = |name: &str| upgrade.get_one::<String>(name).map(String::as_str);
        assert_eq!(said("context"), Some("east"));
        assert_eq!(said("linkerd_namespace"), Some("mesh"));
    }

    #[test]
    fn the_commands_of_the_workshop_are_understood() {
        for line in [
            "hawser install",
            "hawser --context=west install --linkerd-namespace linkerd",
            "hawser upgrade --identity-trust-anchors-file=./bundle.crt",
            "hawser upgrade --context west --identity-trust-anchors-file ./bundle.crt",
            "hawser install --identity-trust-anchors-file bundle.crt --identity-issuer-certificate-file issuer.crt \
             --identity-issuer-key-file issuer.key",
            "hawser mc install",
            "hawser --context=east multicluster install",
            "hawser mc link --cluster-name east",
            "hawser mc --context east link --cluster-name east",
            "hawser mc allow --service-account-name west",
            "hawser mc gateways",
            "hawser mc check",
            "hawser --context west multicluster check --wait 10s",
            "hawser inject emojivoto.yml",
            "hawser inject -",
            "hawser inject --manual --ignore-cluster a.yml b.yml",
            "hawser mc unlink --cluster-name east",
            "hawser mc uninstall",
            "hawser uninstall",
            "hawser check --pre",
            "hawser check --proxy -n emojivoto -o short --wait 30s",
            "hawser version --client --short",
            "hawser identity -n emojivoto -l app=web-svc",
            "hawser drill svc/web-svc --cluster east --dry-run",
            "hawser --context west drill svc/web-svc --backend web-svc --for 5m --yes --min-success-rate 99%",
            "hawser explain svc/web-svc-east -n emojivoto",
            "hawser explain deploy/vote-bot --to svc/web-svc --context west -n emojivoto --json",
            "hawser diagnostics endpoints web-svc.emojivoto.svc.cluster.local:80",
            "hawser diagnostics proxy-metrics -n emojivoto deploy/web",
            "hawser completion bash",
            "hawser authz -n emojivoto deploy/web",
            "hawser prune",
            "hawser migrate --dry-run -o json",
            "hawser viz install",
            "hawser viz stat deploy -n emojivoto",
            "hawser --context=west viz stat --from deploy/vote-bot svc -n emojivoto -t 30s -o wide",
            "hawser viz edges po -A -o json",
            "hawser viz dashboard --port 0 --show url",
        ] {
            let words = line.split(' ').filter(|word| !word.is_empty());
            let parsed = Cli::try_parse_from(words);
            assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
        }
    }
}
