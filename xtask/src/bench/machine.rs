//! What the figures were measured on.

use std::process::Command;

use serde_json::{Value, json};

fn first_line(program: &str, arg: &str) -> Option<String> {
    let output = Command::new(program).arg(arg).output().ok()?;
    // nginx tells its version on stderr.
    let text = if output.stdout.is_empty() {
        output.stderr
    } else {
        output.stdout
    };
    String::from_utf8_lossy(&text).lines().next().map(str::to_owned)
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

pub(super) fn describe() -> Value {
    json!({
        "processor": processor(),
        "cores": cores(),
        "kernel": kernel(),
        "load_before": load(),
        "rustc": first_line("rustc", "--version"),
        "haproxy": first_line("haproxy", "-v"),
        "nginx": first_line("nginx", "-v"),
    })
}

pub(super) fn text() -> String {
    let version = |program, arg| first_line(program, arg).unwrap_or_else(|| format!("no {program}"));
    format!(
        "{}, {} cores, Linux {}, load before {}; {}; {}; {}",
        processor(),
        cores(),
        kernel(),
        load(),
        version("rustc", "--version"),
        version("haproxy", "-v"),
        version("nginx", "-v"),
    )
}
