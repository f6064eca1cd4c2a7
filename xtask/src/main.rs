//! Chores of the repository that are code and not scripts: `cargo xtask codegen`, `ui`, `picture`, `images`, `bench`, `fuzz`,
//! `kubernetes`.

mod bench;
mod fuzz;
mod images;
mod kubernetes;
mod kubernetes_table;
mod picture;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

fn main() -> Result<()> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    match std::env::args().nth(1).as_deref() {
        Some("codegen") => kubernetes_table::generate(&workspace),
        Some("ui") => ui(&workspace.join("ui")),
        Some("picture") => picture::draw(),
        Some("kubernetes") => {
            let arguments: Vec<String> = std::env::args().skip(2).collect();
            kubernetes::run(&workspace, &arguments)
        }
        Some("images") => {
            let arguments: Vec<String> = std::env::args().skip(2).collect();
            images::run(&workspace, &arguments)
        }
        Some("fuzz") => {
            let arguments: Vec<String> = std::env::args().skip(2).collect();
            fuzz::run(&workspace, &arguments)
        }
        Some("bench") => bench::run(std::env::args().skip(2).collect()),
        _ => bail!(
            "usage: cargo xtask codegen | ui | picture, or {}, or {}, or {}, or {}",
            images::USAGE,
            kubernetes::USAGE,
            fuzz::USAGE,
            bench::USAGE
        ),
    }
}

/// Builds the dashboard's page, which is committed: needs Node, as nothing else does.
fn ui(dir: &Path) -> Result<()> {
    for args in [
        &["ci", "--no-audit", "--no-fund"][..],
        &["run", "check"],
        &["run", "build"],
    ] {
        let status = Command::new("npm")
            .args(args)
            .current_dir(dir)
            .status()
            .context("running npm")?;
        ensure!(status.success(), "npm {} ended with {status}", args.join(" "));
    }
    Ok(())
}

/// The cargo that runs us.
fn cargo() -> std::ffi::OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// Names and paths of what a `cargo build` with messages in JSON has built.
fn executables(build: &mut Command) -> Result<Vec<(String, PathBuf)>> {
    let output = build
        .stderr(Stdio::inherit())
        .output()
        .context("starting cargo")?;
    ensure!(output.status.success(), "cargo build failed");
    let messages = output.stdout.split(|byte| *byte == b'\n');
    let executable = |line: &[u8]| {
        let message: Value = serde_json::from_slice(line).ok()?;
        let name = message["target"]["name"].as_str()?.to_owned();
        Some((name, message["executable"].as_str()?.into()))
    };
    Ok(messages.filter_map(executable).collect())
}
