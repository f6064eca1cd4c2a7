//! `idle`: what a proxy occupies when it has its certificate and nothing to do.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use super::figures::Spread;
use super::namespaces::Inside;
use super::peers::Side;
use super::pods::Stage;
use super::{Options, say};

/// After the certificate came, so that what starting needed can be given back.
const SETTLE: Duration = Duration::from_secs(2);

pub(super) fn run(inside: &Inside, options: &Options) -> Result<Value> {
    let stage = Stage::set(inside, options)?;
    let mut now = Vec::new();
    let mut most = Vec::new();
    for _ in 0..options.rounds {
        let proxy = stage.hawser(Side::Inbound)?;
        stage.wait_ready(Side::Inbound)?;
        std::thread::sleep(SETTLE);
        let (resident, peak) = proxy.memory()?;
        now.push(resident / 1024.0);
        most.push(peak / 1024.0);
    }
    let (now, most) = (spread(now), spread(most));
    let size = std::fs::metadata(&inside.programs.proxy)?.len() as f64 / f64::from(1 << 20);
    say(&format!(
        "idle proxy with certificate: {} MiB resident, {} MiB at most while starting; program {size:.1} MiB",
        now.text(1),
        most.text(1)
    ));
    Ok(json!({ "resident_mib": now.json(), "peak_mib": most.json(), "program_mib": size }))
}

fn spread(figures: Vec<f64>) -> Spread {
    Spread::of(figures).expect("there is at least one round")
}
