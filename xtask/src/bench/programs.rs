//! Builds what is measured and says where it is.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

/// As users get them.
pub(super) const RELEASE: &str = "release";

/// Where the programs of `mesh-path` and `idle` are.
#[derive(Clone, Debug)]
pub(super) struct Programs {
    /// The data plane as users run it.
    pub(super) proxy: PathBuf,
    /// `crates/proxy/benches/mesh_path.rs`: control plane, rules, origin and load.
    pub(super) bench: PathBuf,
}

impl Programs {
    pub(super) fn json(&self) -> Value {
        json!({ "proxy": self.proxy, "bench": self.bench })
    }

    pub(super) fn from_json(value: &Value) -> Option<Self> {
        let path = |name: &str| value[name].as_str().map(PathBuf::from);
        Some(Self {
            proxy: path("proxy")?,
            bench: path("bench")?,
        })
    }
}

pub(super) fn build(profile: &str) -> Result<Programs> {
    let built = cargo(
        profile,
        &[
            "-p",
            "hawser-proxy",
            "--bin",
            "hawser-proxy",
            "--bench",
            "mesh_path",
        ],
    )?;
    let find = |name: &str| {
        let found = built.iter().find(|(target, _)| target == name);
        found
            .map(|(_, path)| path.clone())
            .with_context(|| format!("cargo built no {name}"))
    };
    Ok(Programs {
        proxy: find("hawser-proxy")?,
        bench: find("mesh_path")?,
    })
}

/// The one binary that holds everything.
pub(super) fn build_hawser() -> Result<PathBuf> {
    let built = cargo(RELEASE, &["-p", "hawser-cli", "--bin", "hawser"])?;
    let found = built.into_iter().find(|(target, _)| target == "hawser");
    Ok(found.context("cargo built no hawser")?.1)
}

/// Names and paths of the executables.
fn cargo(profile: &str, args: &[&str]) -> Result<Vec<(String, PathBuf)>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args([
            "build",
            "--message-format=json-render-diagnostics",
            "--profile",
            profile,
        ])
        .args(args)
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
