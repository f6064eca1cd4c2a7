//! `soak`: both proxies under everything at once, for as long as is asked, and whether they grow meanwhile.
//!
//! Laps of all loads together, each followed by a silence in which memory and descriptors are read. Caches and pools
//! fill first, so only the second half of the run counts.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::figures::{Spread, table};
use super::loads::{self, Load};
use super::namespaces::Inside;
use super::pods::{Stage, Way};
use super::process::Process;
use super::{Options, say};

pub(super) const USUAL: Duration = Duration::from_secs(600);
const LAP: Duration = Duration::from_secs(8);
/// Until buffers and idle connections of a lap have been given back.
const SETTLE: Duration = Duration::from_secs(2);
/// HTTP/1 and 2, connections that come and go, bodies both ways, and bare bytes.
const MIX: [&str; 6] = ["h1-64", "h2-8x8", "new", "up-64k", "down-64k", "tcp-down"];
const SIDES: [&str; 2] = ["outbound", "inbound"];
/// The first samples to compare with the last ones.
const SAMPLES_MIN: usize = 6;

/// Of one process after a lap.
#[derive(Clone, Copy, Debug)]
struct Sample {
    resident_mib: f64,
    descriptors: f64,
}

pub(super) fn run(inside: &Inside, options: &Options) -> Result<Value> {
    let stage = Stage::set(inside, options)?;
    let mix = loads::named(&MIX.join(","))?;
    let time = options.time.unwrap_or(USUAL);
    // The first load of the mix shows that both are ready.
    let proxies = stage.proxies(Way::Hawser, mix[0])?;
    let (mut done, mut errors) = (0.0, 0.0);
    let mut samples = [Vec::new(), Vec::new()];
    let began = Instant::now();
    while began.elapsed() < time {
        let (more, wrong) = lap(&stage, &mix)?;
        done += more;
        errors += wrong;
        std::thread::sleep(SETTLE);
        for (samples, proxy) in samples.iter_mut().zip(&proxies) {
            samples.push(sample(proxy)?);
        }
    }
    let laps = samples[0].len();
    let mut rows = vec![
        ["proxy", "what", "first half", "second half", "last", "grows"]
            .map(str::to_owned)
            .to_vec(),
    ];
    let mut sides = serde_json::Map::new();
    for (side, samples) in SIDES.iter().zip(&samples) {
        let resident: Vec<f64> = samples.iter().map(|sample| sample.resident_mib).collect();
        let descriptors: Vec<f64> = samples.iter().map(|sample| sample.descriptors).collect();
        // What laps differ by; a leak of a few bytes for each request is more within minutes.
        for (what, figures, most) in [("RSS MiB", &resident, 1.0), ("descriptors", &descriptors, 8.0)] {
            let (first, second) = figures.split_at(figures.len() / 2);
            let text = |part: &[f64]| {
                Spread::of(part.iter().copied()).map_or_else(String::new, |spread| spread.text(1))
            };
            let last = figures
                .last()
                .map_or_else(String::new, |last| format!("{last:.1}"));
            let growth = growth(figures, most);
            rows.push(vec![
                (*side).to_owned(),
                what.to_owned(),
                text(first),
                text(second),
                last,
                growth.text().to_owned(),
            ]);
        }
        sides.insert(
            (*side).to_owned(),
            json!({ "resident_mib": resident, "descriptors": descriptors }),
        );
    }
    say(&format!(
        "\n{laps} laps in {} s, {done:.0} requests and MiB, {errors:.0} errors\n\n{}",
        began.elapsed().as_secs(),
        table(&rows)
    ));
    ensure!(errors == 0.0, "{errors} errors");
    Ok(json!({ "laps": laps, "done": done, "errors": errors, "proxies": sides }))
}

/// All loads side by side; what was done, and what went wrong.
fn lap(stage: &Stage<'_>, mix: &[&'static Load]) -> Result<(f64, f64)> {
    let figures: Vec<_> = std::thread::scope(|scope| {
        let running: Vec<_> = mix
            .iter()
            .map(|load| scope.spawn(|| stage.load(Way::Hawser, load, LAP)))
            .collect();
        let ended = running.into_iter().map(|load| match load.join() {
            Ok(figures) => figures,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        ended.collect::<Result<_>>()
    })?;
    let sum = |name: &str| figures.iter().filter_map(|figures| figures.get(name)).sum();
    Ok((sum("done"), sum("errors")))
}

fn sample(proxy: &Process) -> Result<Sample> {
    Ok(Sample {
        resident_mib: proxy.memory()?.0 / 1024.0,
        descriptors: proxy.descriptors()? as f64,
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Growth {
    No,
    Yes,
    TooShort,
}

impl Growth {
    fn text(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::Yes => "YES",
            Self::TooShort => "too short to say",
        }
    }
}

/// Does it still grow in the second half? By more than this between the medians of its two parts.
fn growth(figures: &[f64], most: f64) -> Growth {
    let half = &figures[figures.len() / 2..];
    let (before, after) = half.split_at(half.len() / 2);
    let median = |part: &[f64]| Spread::of(part.iter().copied()).map(|spread| spread.median);
    match (median(before), median(after)) {
        (Some(before), Some(after)) if figures.len() >= SAMPLES_MIN => match after - before > most {
            true => Growth::Yes,
            false => Growth::No,
        },
        _ => Growth::TooShort,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_settles_does_not_grow_and_what_leaks_does() {
        for (figures, expected) in [
            (&[10.0, 18.0, 21.0, 22.0, 22.4, 22.1, 22.3, 22.2][..], Growth::No),
            (&[10.0, 12.0, 14.0, 16.0, 18.0, 20.0, 22.0, 24.0], Growth::Yes),
            (&[10.0, 30.0, 12.0, 11.0, 12.0, 11.0], Growth::No),
            (&[10.0, 20.0, 30.0], Growth::TooShort),
            (&[], Growth::TooShort),
        ] {
            assert_eq!(growth(figures, 1.0), expected, "{figures:?}");
        }
    }
}
