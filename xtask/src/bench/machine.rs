//! What the figures were measured on.

use std::ffi::OsStr;
use std::process::Command;

use serde_json::{Value, json};

use super::programs::Others;

fn version(program: impl AsRef<OsStr>, arg: &str) -> Option<String> {
    let output = Command::new(program).arg(arg).output().ok()?;
    // nginx tells its version on stderr, envoy after an empty line.
    let text = if output.stdout.is_empty() {
        output.stderr
    } else {
        output.stdout
    };
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().map(str::trim).find(|line| !line.is_empty())?;
    Some(
        line.rsplit_once("version: ")
            .map_or(line, |(_, rest)| rest)
            .to_owned(),
    )
}

/// Of the other programs that are installed, by name.
fn versions(others: &Others) -> Vec<(&'static str, String)> {
    let asked = [("haproxy", "-v"), ("nginx", "-v"), ("envoy", "--version")];
    let told = |(program, arg)| Some((program, version(others.find(program)?, arg)?));
    asked.into_iter().filter_map(told).collect()
}

fn processor() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    model.map_or_else(|| "unknown processor".into(), |(_, name)| name.to_owned())
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn kernel() -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    release.trim().to_owned()
}

/// Processes that wanted to run during the last minute: above the bench's own, the figures are disturbed.
fn load() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ')
        .next()
        .and_then(|word| word.parse().ok())
        .unwrap_or(0.0)
}

pub(super) fn describe(others: &Others) -> Value {
    let mut told = json!({
        "processor": processor(),
        "cores": cores(),
        "kernel": kernel(),
        "load_before": load(),
        "rustc": version("rustc", "--version"),
    });
    for (program, version) in versions(others) {
        told[program] = version.into();
    }
    told
}

pub(super) fn text(others: &Others) -> String {
    let rustc = version("rustc", "--version").unwrap_or_else(|| "no rustc".into());
    let versions = versions(others).into_iter();
    let versions = versions.map(|(program, version)| format!("{program}: {version}"));
    let versions: Vec<_> = std::iter::once(rustc).chain(versions).collect();
    format!(
        "{}, {} cores, Linux {}, load before {}; {}",
        processor(),
        cores(),
        kernel(),
        load(),
        versions.join("; "),
    )
}
