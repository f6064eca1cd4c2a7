//! Chores of the repository that are code and not scripts: `cargo xtask codegen`, `picture`, `bench`, `kubernetes`.

mod bench;
mod kubernetes;
mod kubernetes_table;
mod picture;

use std::path::Path;

use anyhow::{Result, bail};

fn main() -> Result<()> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    match std::env::args().nth(1).as_deref() {
        Some("codegen") => kubernetes_table::generate(&workspace),
        Some("picture") => picture::draw(),
        Some("kubernetes") => {
            let arguments: Vec<String> = std::env::args().skip(2).collect();
            kubernetes::run(&workspace, &arguments)
        }
        Some("bench") => bench::run(std::env::args().skip(2).collect()),
        _ => bail!(
            "usage: cargo xtask codegen | picture, or {}, or {}",
            kubernetes::USAGE,
            bench::USAGE
        ),
    }
}
