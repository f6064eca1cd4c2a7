//! Builds a real control plane: etcd, kube-apiserver, kube-controller-manager and kube-scheduler, from the Go module
//! `tests/kubernetes`, into `target/tools/kubernetes/VERSION`; `current` beside it leads there. Other minor versions
//! have module files of their own there, and names beside it: `1.30.mod` is the oldest that is supported, and `1.30`
//! leads to it.
//!
//! Go compiles some two thousand packages, about ten minutes of two cores; what is there and belongs to the module as
//! it is now is not built again. `--nodes` adds kubelet and kube-proxy. A machine that has the programs names their
//! directory in `KUBEBUILDER_ASSETS`.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

pub(crate) const USAGE: &str =
    "kubernetes build [--nodes | --version MINOR] | kubernetes conformance [--record]";

/// A program and the package that it is built from.
type Program = (&'static str, &'static str);

const PROGRAMS: &[Program] = &[
    ("etcd", "go.etcd.io/etcd/server/v3"),
    ("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
    (
        "kube-controller-manager",
        "k8s.io/kubernetes/cmd/kube-controller-manager",
    ),
    ("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"),
];
/// What runs on nodes.
const NODE_PROGRAMS: &[Program] = &[
    ("kubelet", "k8s.io/kubernetes/cmd/kubelet"),
    ("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy"),
];
const ASSETS: &str = "KUBEBUILDER_ASSETS";
const PROGRESS_EVERY: Duration = Duration::from_secs(15);

pub(crate) fn run(workspace: &Path, arguments: &[String]) -> Result<()> {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match *arguments {
        ["build"] => show(&programs(workspace, PROGRAMS)?),
        ["build", "--nodes"] => show(&programs(workspace, &[PROGRAMS, NODE_PROGRAMS].concat())?),
        ["build", "--version", minor] => {
            let dir = build(workspace, &format!("{minor}.mod"), PROGRAMS)?;
            link(&dir, minor)?;
            show(&dir)
        }
        ["conformance"] => conformance(workspace, false),
        ["conformance", "--record"] => conformance(workspace, true),
        _ => bail!("usage: cargo xtask {USAGE}"),
    }
}

/// The directory of the programs, which are built if they are not there.
fn programs(workspace: &Path, programs: &[Program]) -> Result<PathBuf> {
    if let Some(assets) = std::env::var_os(ASSETS).filter(|assets| !assets.is_empty()) {
        let assets = PathBuf::from(assets);
        let absent = programs.iter().find(|(name, _)| !assets.join(name).is_file());
        if let Some((name, _)) = absent {
            bail!("{ASSETS} is {}, where there is no {name}", assets.display());
        }
        return Ok(assets);
    }
    let dir = build(workspace, "go.mod", programs)?;
    link(&dir, "current")?;
    Ok(dir)
}

/// Makes a name beside a directory lead to it: tests look there.
fn link(dir: &Path, name: &str) -> Result<()> {
    let link = dir.with_file_name(name);
    if fs::read_link(&link).ok().as_deref() != dir.file_name().map(Path::new) {
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink(dir.file_name().unwrap_or_default(), &link)?;
    }
    Ok(())
}

fn show(dir: &Path) -> Result<()> {
    writeln!(std::io::stdout(), "{}", dir.display()).context("printing")
}

/// Asks a cluster of Kubernetes and the sandbox the same, and compares; or records what Kubernetes answers.
fn conformance(workspace: &Path, record: bool) -> Result<()> {
    let programs = programs(workspace, PROGRAMS)?;
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(workspace)
        .args(["test", "-p", "hawser-sandbox", "--test", "conformance"])
        .env(ASSETS, programs);
    if record {
        cargo.env("HAWSER_RECORD", "1");
    }
    ensure!(cargo.status()?.success(), "the sandbox and Kubernetes differ");
    Ok(())
}

/// The version of Kubernetes that the module requires.
fn version(go_mod: &str) -> Result<String> {
    let line = go_mod
        .lines()
        .map(str::split_whitespace)
        .find_map(|mut words| (words.next() == Some("k8s.io/kubernetes")).then(|| words.next()));
    let version = line
        .flatten()
        .context("the module requires no k8s.io/kubernetes")?;
    Ok(version.to_owned())
}

fn build(workspace: &Path, mod_file: &str, programs: &[Program]) -> Result<PathBuf> {
    let mod_file = workspace.join("tests/kubernetes").canonicalize()?.join(mod_file);
    let required =
        fs::read_to_string(&mod_file).with_context(|| format!("reading {}", mod_file.display()))?;
    let version = version(&required)?;
    let dir = workspace.join("target/tools/kubernetes").join(&version);
    // What the programs were built from: a change builds them again, where Go's own cache makes that short.
    let wanted = required + &fs::read_to_string(mod_file.with_extension("sum"))?;
    let stamp = dir.join("built-from");
    if fs::read_to_string(&stamp).is_ok_and(|built| built != wanted) {
        fs::remove_dir_all(&dir)?;
    }
    fs::create_dir_all(&dir)?;
    let dir = dir.canonicalize()?;
    fs::write(&stamp, wanted)?;
    let absent: Vec<_> = programs
        .iter()
        .filter(|(name, _)| !dir.join(name).is_file())
        .collect();
    if absent.is_empty() {
        say(&format!("Kubernetes {version} is built already"))?;
    } else {
        let began = Instant::now();
        for (name, package) in absent {
            go_build(&mod_file, &version, name, package, &dir)?;
        }
        let seconds = began.elapsed().as_secs();
        say(&format!("Kubernetes {version} is built, in {seconds} s"))?;
    }
    Ok(dir)
}

/// Builds one program, telling now and then how far it is.
fn go_build(mod_file: &Path, version: &str, name: &str, package: &str, dir: &Path) -> Result<()> {
    let minor = version.split('.').nth(1).unwrap_or_default();
    let about = "k8s.io/component-base/version";
    let flags =
        format!("-s -w -X {about}.gitVersion={version} -X {about}.gitMajor=1 -X {about}.gitMinor={minor}");
    let began = Instant::now();
    say(&format!("building {name}"))?;
    let mut go = Command::new("go")
        .current_dir(mod_file.parent().context("it is in a directory")?)
        .args([
            "build",
            "-v",
            "-trimpath",
            "-buildvcs=false",
            "-mod=readonly",
            "-ldflags",
        ])
        .args([flags.as_str(), "-modfile"])
        .arg(mod_file)
        .arg("-o")
        .args([dir.join(name).as_os_str(), package.as_ref()])
        .env("CGO_ENABLED", "0")
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting go: install Go, or set {ASSETS} to where the programs are"))?;
    let (mut packages, mut told) = (0_u32, began);
    let mut complaints = String::new();
    if let Some(said) = go.stderr.take() {
        for line in BufReader::new(said).lines() {
            let line = line?;
            // Packages are named as they are built; what else Go says has spaces.
            if line.contains(' ') {
                complaints.push_str(&line);
                complaints.push('\n');
                continue;
            }
            packages += 1;
            if told.elapsed() > PROGRESS_EVERY {
                told = Instant::now();
                say(&format!(
                    "  {name}: {packages} packages, {} s",
                    began.elapsed().as_secs()
                ))?;
            }
        }
    }
    ensure!(go.wait()?.success(), "go build {package} failed:\n{complaints}");
    say(&format!(
        "  {name}: {packages} packages, {} s, done",
        began.elapsed().as_secs()
    ))
}

fn say(line: &str) -> Result<()> {
    writeln!(std::io::stderr(), "{line}").context("printing")
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_version_is_the_one_that_the_module_requires() {
        let text = "module m\nrequire (\n\tk8s.io/api v0.1.0\n\tk8s.io/kubernetes v1.37.2\n)\n";
        assert_eq!(super::version(text).expect("it is there"), "v1.37.2");
        assert!(super::version("module m\n").is_err());
    }
}
