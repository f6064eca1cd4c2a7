//! `hawser completion` and `hawser man`: what shells and manuals know of the command line, made from the same tree.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Command;
use clap_complete::Shell;

use crate::output::write_out;
use crate::problem::Problem;

/// Print completions for a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  source <(hawser completion bash)
  hawser completion zsh > \"${fpath[1]}/_hawser\"
  hawser completion fish | source")]
pub(crate) struct CompletionArgs {
    #[arg(value_enum)]
    shell: Shell,
}

/// Write a manual page for every command
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  hawser man --dir ~/.local/share/man/man1 && man hawser-check")]
pub(crate) struct ManArgs {
    /// Where the pages go; it is made if it does not exist
    #[arg(long, value_name = "DIRECTORY")]
    dir: PathBuf,
}

pub(crate) fn run(args: CompletionArgs, mut cli: Command) -> Result<ExitCode, Problem> {
    let mut script = Vec::new();
    let name = cli.get_name().to_owned();
    clap_complete::generate(args.shell, &mut cli, name, &mut script);
    write_out(&String::from_utf8_lossy(&script))?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn man(args: ManArgs, cli: Command) -> Result<ExitCode, Problem> {
    write_pages(&args.dir, cli).map_err(|error| {
        Problem::new(
            format!("cannot write the manual to {}", args.dir.display()),
            error,
            "--dir with a directory that you may write to",
        )
    })?;
    Ok(ExitCode::SUCCESS)
}

fn write_pages(dir: &Path, cli: Command) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)?;
    clap_mangen::generate_to(cli.disable_help_subcommand(true), dir)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn every_command_has_a_page_that_shows_its_example() {
        let dir = tempfile::tempdir().unwrap();
        write_pages(dir.path(), crate::Cli::command()).unwrap();
        let page = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert!(page("hawser.1").contains("hawser demo"));
        assert!(page("hawser-check.1").contains("hawser check"));
        assert!(page("hawser-multicluster-gateways.1").contains("gateways"));
    }

    #[test]
    fn shells_learn_the_commands() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut crate::Cli::command(), "hawser", &mut script);
            let script = String::from_utf8(script).unwrap();
            for word in ["multicluster", "uninject", "gateways", "trust-anchors"] {
                assert!(script.contains(word), "{shell}: {word}");
            }
        }
    }
}
