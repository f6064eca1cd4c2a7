//! `mesh-path`: requests from one pod to another, through what stands in both pods' way.
//!
//! Every way gets the same client, wire, redirects and origin. Rounds are interleaved, so that what disturbs the
//! machine disturbs all ways; ratios are of one round and only then summed up.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use super::figures::{Spread, table};
use super::namespaces::Inside;
use super::pods::{Stage, Way, find};
use super::process::Process;
use super::{Options, say};

const CONNECTIONS: [usize; 2] = [64, 1];
const WARM_UP: Duration = Duration::from_millis(500);

/// One measurement, by name so that the report and the JSON have the same.
type Figures = BTreeMap<&'static str, f64>;

/// Name, title, decimals.
const COLUMNS: [(&str, &str, usize); 8] = [
    ("rate", "requests/s", 0),
    ("p50", "p50 µs", 0),
    ("p99", "p99 µs", 0),
    ("cpu", "CPU µs/request, both", 1),
    ("cpu_outbound", "outbound", 1),
    ("cpu_inbound", "inbound", 1),
    ("memory_idle", "RSS idle MiB, both", 1),
    ("memory_peak", "peak", 1),
];

pub(super) fn run(inside: &Inside, options: &Options) -> Result<Value> {
    let stage = Stage::set(inside)?;
    let mut ways = Vec::new();
    for way in Way::ALL {
        match way.needs().filter(|program| find(program).is_none()) {
            Some(program) => say(&format!(
                "{}: not measured, {program} is not installed",
                way.name()
            )),
            None => ways.push(way),
        }
    }
    let mut all: BTreeMap<(usize, &str), Vec<Figures>> = BTreeMap::new();
    for round in 0..options.rounds {
        // Each round begins with another way: nobody always follows the same neighbour.
        ways.rotate_left(1);
        for way in &ways {
            for (connections, figures) in measure(&stage, *way, options.time)? {
                all.entry((connections, way.name())).or_default().push(figures);
            }
        }
        say(&format!("round {} of {} is done", round + 1, options.rounds));
    }
    for connections in CONNECTIONS {
        say(&report(&all, connections));
    }
    Ok(json!({ "seconds": options.time.as_secs(), "ways": raw(&all) }))
}

fn measure(stage: &Stage<'_>, way: Way, time: Duration) -> Result<Vec<(usize, Figures)>> {
    let proxies = stage.proxies(way)?;
    let memory = |of: fn((u64, u64)) -> u64| -> Result<f64> {
        let all: Vec<_> = proxies.iter().map(Process::memory).collect::<Result<_>>()?;
        Ok(all.into_iter().map(of).sum::<u64>() as f64 / 1024.0)
    };
    let idle = memory(|(now, _)| now)?;
    let mut measured = Vec::new();
    for connections in CONNECTIONS {
        stage.load(way, connections, WARM_UP)?;
        let cpu = || -> Result<Vec<Duration>> {
            std::iter::once(&stage.origin)
                .chain(&proxies)
                .map(Process::cpu)
                .collect()
        };
        let before = cpu()?;
        let load = stage.load(way, connections, time)?;
        let after = cpu()?;
        let [requests, errors, elapsed, p50, p99, p999] = load[..] else {
            anyhow::bail!("the load generator said {load:?}");
        };
        let spent: Vec<f64> = after
            .iter()
            .zip(&before)
            .map(|(after, before)| (*after - *before).as_micros() as f64 / requests)
            .collect();
        let mut figures = Figures::from([
            ("rate", requests / elapsed * 1e6),
            ("errors", errors),
            ("p50", p50),
            ("p99", p99),
            ("p999", p999),
            ("cpu_origin", spent[0]),
        ]);
        if let [_, outbound, inbound] = spent[..] {
            figures.extend([
                ("cpu", outbound + inbound),
                ("cpu_outbound", outbound),
                ("cpu_inbound", inbound),
                ("memory_idle", idle),
                ("memory_peak", memory(|(_, most)| most)?),
            ]);
        }
        measured.push((connections, figures));
    }
    Ok(measured)
}

fn report(all: &BTreeMap<(usize, &str), Vec<Figures>>, connections: usize) -> String {
    let of = |way: Way| all.get(&(connections, way.name()));
    let mut titles = vec!["way".to_owned()];
    titles.extend(COLUMNS.iter().map(|(_, title, _)| (*title).to_owned()));
    titles.push("errors".into());
    let mut rows = vec![titles];
    let mut ratios = vec![
        ["hawser's share of", "CPU/request", "requests/s", "p50", "p99"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for way in Way::ALL {
        let Some(rounds) = of(way) else { continue };
        let spread = |name: &str| Spread::of(rounds.iter().filter_map(|figures| figures.get(name)).copied());
        let mut row = vec![way.name().to_owned()];
        row.extend(COLUMNS.iter().map(|(name, _, decimals)| {
            spread(name).map_or_else(|| "-".into(), |spread| spread.text(*decimals))
        }));
        let errors: f64 = rounds.iter().filter_map(|figures| figures.get("errors")).sum();
        row.push(format!("{errors}"));
        rows.push(row);
        if let Some(ours) = of(Way::Hawser).filter(|_| way != Way::Hawser) {
            let mut row = vec![way.name().to_owned()];
            row.extend(["cpu", "rate", "p50", "p99"].map(|name| {
                let pairs = ours.iter().zip(rounds);
                let ratios = pairs.filter_map(|(ours, other)| Some(ours.get(name)? / other.get(name)?));
                Spread::of(ratios).map_or_else(|| "-".into(), |spread| spread.text(2))
            }));
            ratios.push(row);
        }
    }
    let plural = if connections == 1 { "" } else { "s" };
    format!(
        "\n{connections} connection{plural}: median (least to most) of the rounds\n\n{}\nRatios within each round\n\n{}",
        table(&rows),
        table(&ratios)
    )
}

fn raw(all: &BTreeMap<(usize, &str), Vec<Figures>>) -> Value {
    all.iter()
        .map(|((connections, way), rounds)| json!({ "way": way, "connections": connections, "rounds": rounds }))
        .collect()
}
