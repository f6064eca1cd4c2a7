//! `cargo xtask bench`: measures what the product costs, on this machine, beside what else is installed.
//!
//! `mesh-path`: requests through two proxies and mutual TLS. `mesh`: how fast the whole mesh reacts, in the demo.
//! `idle`: what a proxy occupies when nothing happens. `soak`: whether it grows under load. All of it runs in namespaces
//! that end with the command. BENCHMARKS.md holds what it showed.

mod figures;
mod idle;
mod loads;
mod machine;
mod mesh;
mod mesh_path;
mod namespaces;
mod peers;
mod pods;
mod process;
mod programs;
mod soak;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use loads::Load;
use peers::Side;
use programs::Others;
use serde_json::{Value, json};

pub(crate) const USAGE: &str = "cargo xtask bench [mesh-path|mesh|idle|soak] [--load NAME,..|all] \
     [--path direct|gateway] [--rate N] [--envoy PATH] [--linkerd PATH] [--seconds N] [--rounds N] [--profile NAME] \
     [--json FILE]";

/// What was asked for.
pub(crate) struct Options {
    /// `None`: everything but `soak`, which is long.
    only: Option<String>,
    /// Of `mesh-path`.
    loads: Vec<&'static Load>,
    /// From one pod to another, or through a gateway.
    path: &'static [Side],
    /// Requests per second of loads with a fixed rate, if it isn't to be their own.
    rate: Option<u64>,
    others: Others,
    /// Of each measurement, or of the whole soak.
    time: Option<Duration>,
    rounds: usize,
    /// Cargo's, of the programs. Others than release find faults (`dev` checks for overflow), not speed.
    profile: String,
    json: Option<PathBuf>,
}

impl Options {
    pub(crate) fn parse(args: impl IntoIterator<Item = String>) -> Result<Self> {
        let mut options = Self {
            only: None,
            loads: loads::named(&loads::USUAL.join(","))?,
            path: Side::DIRECT,
            rate: None,
            others: Others::default(),
            time: None,
            rounds: 5,
            profile: programs::RELEASE.to_owned(),
            json: None,
        };
        let mut args = args.into_iter();
        while let Some(arg) = args.next() {
            let mut value = || {
                args.next()
                    .with_context(|| format!("{arg} needs a value: {USAGE}"))
            };
            let mut number = |most: u64| {
                let text = value()?;
                let number = text.parse().ok().filter(|number| (1..=most).contains(number));
                number.with_context(|| format!("{arg} takes 1 to {most}, not {text:?}"))
            };
            match arg.as_str() {
                "mesh-path" | "mesh" | "idle" | "soak" if options.only.is_none() => options.only = Some(arg),
                "--load" => options.loads = loads::named(&value()?)?,
                "--path" => {
                    options.path = match value()?.as_str() {
                        "direct" => Side::DIRECT,
                        "gateway" => Side::THROUGH_GATEWAY,
                        other => bail!("--path is direct or gateway, not {other:?}"),
                    };
                }
                "--rate" => options.rate = Some(number(1_000_000)?),
                "--envoy" => options.others.give("envoy", value()?.into())?,
                "--linkerd" => options.others.give("linkerd2-proxy", value()?.into())?,
                "--seconds" => options.time = Some(Duration::from_secs(number(86_400)?)),
                "--rounds" => options.rounds = usize::try_from(number(100)?)?,
                "--profile" => options.profile = value()?,
                "--json" => options.json = Some(value()?.into()),
                _ => bail!("{arg:?} is not understood: {USAGE}"),
            }
        }
        Ok(options)
    }

    fn wants(&self, part: &str) -> bool {
        self.only.as_deref().map_or(part != "soak", |only| only == part)
    }
}

/// Called twice: by the user, and by ourselves inside the namespaces.
pub(crate) fn run(args: Vec<String>) -> Result<()> {
    let options = Options::parse(args.iter().cloned())?;
    if let Some(inside) = namespaces::entered()? {
        let result = match inside.part.as_str() {
            "mesh-path" => mesh_path::run(&inside, &options)?,
            "soak" => soak::run(&inside, &options)?,
            _ => idle::run(&inside, &options)?,
        };
        return Ok(std::fs::write(inside.dir.join(RESULT), result.to_string())?);
    }
    let mut results = json!({ "machine": machine::describe(&options.others), "profile": options.profile });
    say(&format!("{}\n", machine::text(&options.others)));
    for part in ["mesh-path", "idle", "soak"] {
        if options.wants(part) {
            let programs = programs::build(&options.profile)?;
            results[part] = in_namespaces(part, &programs, &args)?;
        }
    }
    if options.wants("mesh") {
        results["mesh"] = mesh::run(&options)?;
    }
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&results)? + "\n";
        std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

const RESULT: &str = "result.json";

fn in_namespaces(part: &str, programs: &programs::Programs, args: &[String]) -> Result<Value> {
    let dir = tempfile::tempdir()?;
    namespaces::enter(
        &namespaces::Inside {
            part: part.into(),
            dir: dir.path().into(),
            programs: programs.clone(),
        },
        args,
    )?;
    let result = std::fs::read(dir.path().join(RESULT)).context("reading the result")?;
    Ok(serde_json::from_slice(&result)?)
}

#[expect(clippy::print_stdout, reason = "the figures are the output")]
fn say(text: &str) {
    println!("{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &str) -> Result<Options> {
        Options::parse(args.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn without_a_name_everything_is_measured() {
        let options = parse("--rounds 2").unwrap();
        assert!(
            ["mesh-path", "mesh", "idle"]
                .iter()
                .all(|part| options.wants(part))
        );
        assert!(!options.wants("soak") && parse("soak").unwrap().wants("soak"));
        assert_eq!(options.rounds, 2);
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for wrong in [
            "nonsense",
            "mesh idle",
            "--rounds",
            "--rounds 0",
            "--seconds 1h",
            "--load h3",
            "--path backwards",
            "--envoy /nowhere/envoy",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
