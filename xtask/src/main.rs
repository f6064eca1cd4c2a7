//! Chores of the repository that are code and not scripts: `cargo xtask codegen`, `ui`, `picture`, `images`, `bench`, `kubernetes`.

mod bench;
mod images;
mod kubernetes;
mod kubernetes_table;
mod picture;

use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};

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
        Some("bench") => bench::run(std::env::args().skip(2).collect()),
        _ => bail!(
            "usage: cargo xtask codegen | ui | picture, or {}, or {}, or {}",
            images::USAGE,
            kubernetes::USAGE,
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
        let status = std::process::Command::new("npm")
            .args(args)
            .current_dir(dir)
            .status()
            .context("running npm")?;
        ensure!(status.success(), "npm {} ended with {status}", args.join(" "));
    }
    Ok(())
}
