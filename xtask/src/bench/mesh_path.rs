//! `mesh-path`: from one pod to another, through what stands in both pods' way.
//!
//! Every way gets the same client, wire, redirects and origin. Rounds are interleaved, so that what disturbs the
//! machine disturbs all ways; ratios are of one round and only then summed up. What passes is in [`super::loads`].

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::figures::{Spread, table};
use super::loads::{Kind, Load};
use super::namespaces::Inside;
use super::peers::Side;
use super::pods::{Figures, Stage, Way};
use super::process::{Cpu, Process};
use super::{Options, say};

/// Of each measurement.
const USUAL: Duration = Duration::from_secs(4);
const WARM_UP: Duration = Duration::from_millis(500);
/// After the last connection was opened, so that what opening needed can be given back.
const SETTLE: Duration = Duration::from_secs(2);

/// Name, title, decimals; `{}` is the load's unit. Those that a load doesn't have are left out.
const COLUMNS: [(&str, &str, usize); 15] = [
    ("rate", "{}/s", 0),
    ("p50", "p50 µs", 0),
    ("p99", "p99 µs", 0),
    ("p999", "p99.9 µs", 0),
    ("cpu", "CPU µs/{}, all", 1),
    ("cpu_kernel", "the kernel's", 1),
    ("cpu_outbound", "outbound", 1),
    ("cpu_gateway", "gateway", 1),
    ("cpu_inbound", "inbound", 1),
    ("memory_idle", "RSS idle MiB, all", 1),
    ("memory_peak", "peak", 1),
    ("memory_each", "KiB/connection, all", 1),
    ("memory_each_outbound", "outbound", 1),
    ("memory_each_gateway", "gateway", 1),
    ("memory_each_inbound", "inbound", 1),
];

/// Of ours by the other's.
const RATIOS: [(&str, &str); 6] = [
    ("cpu", "CPU/{}"),
    ("rate", "{}/s"),
    ("p50", "p50"),
    ("p99", "p99"),
    ("p999", "p99.9"),
    ("memory_each", "KiB/connection"),
];

type Rounds = BTreeMap<(&'static str, &'static str), Vec<Figures>>;

pub(super) fn run(inside: &Inside, options: &Options) -> Result<Value> {
    let stage = Stage::set(inside, options)?;
    let ways = options.loads.iter().flat_map(|load| load.ways);
    let mut missing: Vec<_> = ways.filter_map(|way| way.needs()).collect();
    missing.retain(|program| options.others.find(program).is_none());
    missing.sort_unstable();
    missing.dedup();
    for program in &missing {
        say(&format!("not measured: {program} is not installed"));
    }
    let time = options.time.unwrap_or(USUAL);
    let mut all = Rounds::new();
    for round in 0..options.rounds {
        for load in &options.loads {
            let mut ways = load.ways.to_vec();
            ways.retain(|way| way.needs().is_none_or(|program| !missing.contains(&program)));
            // Each round begins with another way: nobody always follows the same neighbour.
            let first = round % ways.len();
            ways.rotate_left(first);
            for way in ways {
                let figures = measure(&stage, options, way, load, time)?;
                all.entry((load.name, way.name())).or_default().push(figures);
            }
        }
        say(&format!("round {} of {} is done", round + 1, options.rounds));
    }
    for load in &options.loads {
        say(&report(&all, load, options));
    }
    let path: Vec<_> = options.path.iter().map(|side| side.name()).collect();
    Ok(json!({ "seconds": time.as_secs(), "path": path, "ways": raw(&all) }))
}

fn measure(stage: &Stage<'_>, options: &Options, way: Way, load: &Load, time: Duration) -> Result<Figures> {
    let proxies = stage.proxies(way, load)?;
    let cpu = || -> Result<Vec<Cpu>> { proxies.iter().map(Process::cpu).collect() };
    let memory = || -> Result<Vec<(f64, f64)>> { proxies.iter().map(Process::memory).collect() };
    let before = memory()?;
    let mut figures = Figures::new();
    let mut note = |name: &str, of_each: &[f64]| {
        if !of_each.is_empty() {
            figures.insert(name.to_owned(), of_each.iter().sum());
        }
        for (side, figure) in options.path.iter().zip(of_each) {
            figures.insert(format!("{name}_{}", side.name()), *figure);
        }
    };
    note(
        "memory_idle",
        &before.iter().map(|(now, _)| now / 1024.0).collect::<Vec<_>>(),
    );
    if load.kind == Kind::Hold {
        let client = stage.hold(way, load)?;
        std::thread::sleep(SETTLE);
        let grown = memory()?.into_iter().zip(before);
        let each = grown.map(|((now, _), (before, _))| (now - before) / load.connections());
        note("memory_each", &each.collect::<Vec<_>>());
        drop(client);
    } else {
        stage.load(way, load, WARM_UP)?;
        let before = cpu()?;
        let seen = stage.load(way, load, time)?;
        let spent = cpu()?.into_iter().zip(before);
        let spent: Vec<_> = spent
            .map(|(after, before)| (after.user - before.user, after.kernel - before.kernel))
            .collect();
        let done = seen["done"];
        ensure!(
            done > 0.0,
            "{}: {} did nothing in {time:?}; --seconds takes more",
            load.name,
            way.name()
        );
        let each = |time: Duration| time.as_micros() as f64 / done;
        let whole: Vec<_> = spent.iter().map(|(user, kernel)| each(*user + *kernel)).collect();
        note("cpu", &whole);
        let kernel: Vec<_> = spent.iter().map(|(_, kernel)| each(*kernel)).collect();
        note("cpu_kernel", &kernel);
        note("rate", &[done / seen["elapsed"] * 1e6]);
        figures.extend(seen);
    }
    let peak: f64 = memory()?.into_iter().map(|(_, most)| most / 1024.0).sum();
    if peak > 0.0 {
        figures.insert("memory_peak".into(), peak);
    }
    Ok(figures)
}

fn report(all: &Rounds, load: &Load, options: &Options) -> String {
    let titled = |title: &str| title.replace("{}", load.unit());
    let ours = all.get(&(load.name, Way::Hawser.name()));
    let has = |name: &str| {
        ours.iter()
            .copied()
            .flatten()
            .any(|figures| figures.contains_key(name))
    };
    let columns: Vec<_> = COLUMNS.into_iter().filter(|(name, ..)| has(name)).collect();
    let ratios: Vec<_> = RATIOS.into_iter().filter(|(name, _)| has(name)).collect();
    let mut rows = vec![vec!["way".to_owned()]];
    rows[0].extend(columns.iter().map(|(_, title, _)| titled(title)));
    rows[0].push("errors".into());
    let mut shares = vec![vec!["hawser's share of".to_owned()]];
    shares[0].extend(ratios.iter().map(|(_, title)| titled(title)));
    let text = |figures: &mut dyn Iterator<Item = f64>, decimals| {
        Spread::of(figures).map_or_else(|| "-".into(), |spread| spread.text(decimals))
    };
    for way in load.ways {
        let Some(rounds) = all.get(&(load.name, way.name())) else {
            continue;
        };
        let of = |name: &'static str| {
            rounds
                .iter()
                .filter_map(move |figures| figures.get(name).copied())
        };
        let mut row = vec![way.name().to_owned()];
        row.extend(
            columns
                .iter()
                .map(|(name, _, decimals)| text(&mut of(name), *decimals)),
        );
        row.push(of("errors").fold(0.0, |sum, errors| sum + errors).to_string());
        rows.push(row);
        if let Some(ours) = ours.filter(|_| *way != Way::Hawser) {
            let mut row = vec![way.name().to_owned()];
            row.extend(ratios.iter().map(|(name, _)| {
                let pairs = ours.iter().zip(rounds);
                let mut shares = pairs.filter_map(|(ours, other)| Some(ours.get(*name)? / other.get(*name)?));
                text(&mut shares, 2)
            }));
            shares.push(row);
        }
    }
    format!(
        "\n{} ({}), {}: median (least to most) of the rounds\n\n{}\nRatios within each round\n\n{}",
        load.title_at(options.rate),
        load.name,
        match options.path.contains(&Side::Gateway) {
            true => "through a gateway",
            false => "from pod to pod",
        },
        table(&rows),
        table(&shares)
    )
}

fn raw(all: &Rounds) -> Value {
    all.iter()
        .map(|((load, way), rounds)| json!({ "way": way, "load": load, "rounds": rounds }))
        .collect()
}
