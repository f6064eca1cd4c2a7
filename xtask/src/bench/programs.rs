//! Builds what is measured and says where it is, and where the programs are that it is measured beside.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

/// As users get them.
pub(super) const RELEASE: &str = "release";

/// Where the programs of `mesh-path` and `idle` are.
#[derive(Clone, Debug)]
pub(super) struct Programs {
    /// The data plane as its image has it, unless another profile is asked for.
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

/// Other programs: where the command line says that they are, or where programs usually are.
#[derive(Clone, Debug, Default)]
pub(super) struct Others(BTreeMap<&'static str, PathBuf>);

impl Others {
    pub(super) fn give(&mut self, program: &'static str, path: PathBuf) -> Result<()> {
        ensure!(path.is_file(), "there is no program {}", path.display());
        self.0.insert(program, path);
        Ok(())
    }

    /// Servers are often where an ordinary user's path doesn't lead.
    pub(super) fn find(&self, program: &str) -> Option<PathBuf> {
        if let Some(path) = self.0.get(program) {
            return Some(path.clone());
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let usual = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
        let mut dirs = std::env::split_paths(&path).chain(usual);
        dirs.find_map(|dir| Some(dir.join(program)).filter(|file| file.is_file()))
    }

    pub(super) fn need(&self, program: &str) -> Result<PathBuf> {
        self.find(program)
            .with_context(|| format!("{program} is not installed"))
    }
}

pub(super) fn build(profile: &str) -> Result<Programs> {
    let wanted: &[_] = match profile {
        RELEASE => &["--bench", "mesh_path"],
        _ => &["--bin", "hawser-proxy", "--bench", "mesh_path"],
    };
    let built = cargo(profile, &[&["-p", "hawser-proxy"], wanted].concat())?;
    let find = |name: &str| {
        let found = built.iter().find(|(target, _)| target == name);
        found
            .map(|(_, path)| path.clone())
            .with_context(|| format!("cargo built no {name}"))
    };
    let proxy = match profile {
        RELEASE => crate::images::proxy(&std::env::current_dir()?)?,
        _ => find("hawser-proxy")?,
    };
    Ok(Programs {
        proxy,
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
    let mut build = Command::new(crate::cargo());
    build
        .args([
            "build",
            "--message-format=json-render-diagnostics",
            "--profile",
            profile,
        ])
        .args(args);
    crate::executables(&mut build)
}
