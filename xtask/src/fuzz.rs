//! `cargo xtask fuzz`: searches for bytes that make one of the proxy's readers do what it must not.
//!
//! Builds `fuzz/` with the instruments that libFuzzer needs, which the pinned compiler has too, and runs one reader after
//! the other. What is found on the way is kept below `target`; only small seeds are in the tree. With a nightly compiler
//! and `cargo-fuzz`, `cargo +nightly fuzz run NAME` does the same with more checks of what dependencies do with memory.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

pub(crate) const USAGE: &str = "cargo xtask fuzz [--seconds N] [NAME..]";

/// Of each reader.
const USUAL_SECONDS: u64 = 60;
/// Longer inputs say little that shorter ones don't, slowly.
const INPUT_MAX: usize = 4096;
/// An input that takes longer has found something.
const INPUT_SECONDS_MAX: u64 = 5;
const INSTRUMENTS: [&str; 4] = [
    "-sanitizer-coverage-level=4",
    "-sanitizer-coverage-inline-8bit-counters",
    "-sanitizer-coverage-pc-table",
    "-sanitizer-coverage-trace-compares",
];

#[derive(Debug, PartialEq, Eq)]
struct Options {
    seconds: u64,
    names: Vec<String>,
}

fn parse(known: &[String], arguments: &[String]) -> Result<Options> {
    let mut options = Options {
        seconds: USUAL_SECONDS,
        names: Vec::new(),
    };
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        if argument == "--seconds" {
            let value = arguments.next().and_then(|value| value.parse().ok());
            options.seconds = value.with_context(|| format!("--seconds takes a number: {USAGE}"))?;
        } else if known.contains(argument) {
            options.names.push(argument.clone());
        } else {
            bail!(
                "there is no reader {argument:?}; there are {}: {USAGE}",
                known.join(", ")
            );
        }
    }
    if options.names.is_empty() {
        options.names = known.to_vec();
    }
    Ok(options)
}

pub(crate) fn run(workspace: &Path, arguments: &[String]) -> Result<()> {
    let fuzz = workspace.join("fuzz").canonicalize()?;
    let options = parse(&readers(&fuzz)?, arguments)?;
    let programs = build(&fuzz, &options.names)?;
    let mut found = Vec::new();
    for (name, program) in options.names.iter().zip(&programs) {
        say(&format!("{name}: {} s", options.seconds));
        let artifacts = fuzz.join("artifacts").join(name);
        // Beside the program, which is where built things are.
        let grown = program.with_file_name("fuzz-corpus").join(name);
        for dir in [&artifacts, &grown] {
            std::fs::create_dir_all(dir)?;
        }
        let log = grown.with_extension("log");
        let file = std::fs::File::create(&log)?;
        let status = Command::new(program)
            .arg(format!("-max_total_time={}", options.seconds))
            .arg(format!("-max_len={INPUT_MAX}"))
            .arg(format!("-timeout={INPUT_SECONDS_MAX}"))
            .arg(format!("-artifact_prefix={}/", artifacts.display()))
            .args(["-print_final_stats=1", "-verbosity=1"])
            .arg(&grown)
            .arg(fuzz.join("corpus").join(name))
            .stdout(file.try_clone()?)
            .stderr(file)
            .status()
            .with_context(|| format!("starting {}", program.display()))?;
        let text = String::from_utf8_lossy(&std::fs::read(&log)?).into_owned();
        let (done, reached) = told(&text);
        say(&format!("{name}: {done} inputs, {reached} places reached"));
        if !status.success() {
            found.push(format!(
                "{name}: {}\n  {} FILE reads an input again, {} is the whole story",
                finding(&text),
                program.display(),
                log.display()
            ));
        }
    }
    ensure!(found.is_empty(), "found:\n{}", found.join("\n"));
    Ok(())
}

/// From a log of libFuzzer: how many inputs were tried, and how much of the program they reached.
fn told(log: &str) -> (&str, &str) {
    let last = |name: &str| {
        let found = log.lines().rev().find_map(|line| line.split_once(name));
        found.and_then(|(_, rest)| rest.split_whitespace().next())
    };
    (
        last("stat::number_of_executed_units:").unwrap_or("?"),
        last(" cov: ").unwrap_or("?"),
    )
}

/// What went wrong, and the file with the input.
fn finding(log: &str) -> String {
    let mut lines = log.lines();
    let mut words = Vec::new();
    while let Some(line) = lines.next() {
        if line.contains("panicked at") {
            words.push(line.trim());
            words.extend(lines.next());
        } else if line.starts_with("SUMMARY:") || line.contains("Test unit written to") {
            words.push(line.trim());
        }
    }
    words.join("\n  ")
}

/// All that there are.
fn readers(fuzz: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for file in std::fs::read_dir(fuzz.join("fuzz_targets"))? {
        let path = file?.path();
        let name = path.file_stem().and_then(|name| name.to_str());
        names.push(name.context("a name")?.to_owned());
    }
    names.sort();
    Ok(names)
}

/// Paths in the order of the names.
fn build(fuzz: &Path, names: &[String]) -> Result<Vec<PathBuf>> {
    let instruments = INSTRUMENTS.map(|instrument| format!(" -Cllvm-args={instrument}"));
    let flags = format!("--cfg fuzzing -Cpasses=sancov-module{}", instruments.concat());
    // Named although it is the usual one, so that what runs while building has no instruments.
    let triple = host()?;
    let mut build = Command::new(super::cargo());
    build
        .current_dir(fuzz)
        .args(["build", "--release", "--target", &triple])
        .args(["--message-format=json-render-diagnostics"])
        .env("RUSTFLAGS", flags);
    for name in names {
        build.args(["--bin", name]);
    }
    let built = super::executables(&mut build)?;
    let path = |name: &String| {
        let found = built.iter().find(|(target, _)| target == name);
        found
            .map(|(_, path)| path.clone())
            .with_context(|| format!("cargo built no {name}"))
    };
    names.iter().map(path).collect()
}

/// The machine that this is, as the compiler calls it.
fn host() -> Result<String> {
    let told = Command::new("rustc")
        .arg("-vV")
        .output()
        .context("starting rustc")?;
    let told = String::from_utf8(told.stdout)?;
    let host = told.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc doesn't say what machine this is")?.to_owned())
}

#[expect(clippy::print_stdout, reason = "progress is the output")]
fn say(text: &str) {
    println!("{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_readers_are_run_unless_some_are_named() {
        let known = ["answer", "frames"].map(str::to_owned);
        let parsed = |text: &str| {
            let words: Vec<_> = text.split_whitespace().map(str::to_owned).collect();
            parse(&known, &words).map(|options| (options.seconds, options.names.join(" ")))
        };
        assert_eq!(parsed("").unwrap(), (USUAL_SECONDS, "answer frames".into()));
        assert_eq!(parsed("--seconds 5 frames").unwrap(), (5, "frames".into()));
        assert!(parsed("--seconds").is_err() && parsed("h3").is_err());
    }

    #[test]
    fn a_log_says_what_was_done_and_what_was_found() {
        let log = "#2\tINITED cov: 70 ft: 9\n#9\tNEW    cov: 73 ft: 12\nthread 'main' panicked at a.rs:1:2:\nno\n\
                   SUMMARY: libFuzzer: deadly signal\n./crash-1; Test unit written to ./crash-1\n\
                   stat::number_of_executed_units: 12\n";
        assert_eq!(told(log), ("12", "73"));
        assert_eq!(
            finding(log).lines().map(str::trim).collect::<Vec<_>>(),
            [
                "thread 'main' panicked at a.rs:1:2:",
                "no",
                "SUMMARY: libFuzzer: deadly signal",
                "./crash-1; Test unit written to ./crash-1"
            ]
        );
    }
}
