//! The live table at the end of the demo: who answers west's votes, how fast and how well, until Ctrl-C.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::time::Duration;

use tokio::time::Instant;

use crate::demo::scenario::{Cluster, voted};
use crate::demo::traffic::{Destination, Rates, Totals, rates};
use crate::problem::Problem;

/// Rates are taken over this many seconds: long enough for ten votes a second to look steady.
const WINDOW: Duration = Duration::from_secs(2);

/// Repaints until `stop` resolves.
pub(super) async fn show(
    west: &Cluster,
    east: &Cluster,
    stop: impl Future<Output = ()>,
) -> Result<(), Problem> {
    tokio::pin!(stop);
    let terminal = std::io::stdout().is_terminal();
    let (mut before, mut looked) = (voted(west).await?, Instant::now());
    let mut painted = 0;
    loop {
        tokio::select! {
            () = &mut stop => return Ok(()),
            () = tokio::time::sleep(WINDOW) => {}
        }
        // A look that fails is a row without numbers, not the end: clusters may be cut or restarted while watched.
        let now = voted(west).await.unwrap_or_else(|_| before.clone());
        let seconds = looked.elapsed().as_secs_f64();
        looked = Instant::now();
        let table = render(&rows(&before, &now, seconds, east.name));
        before = now;
        painted = paint(&table, if terminal { painted } else { 0 });
    }
}

type Row = (String, Rates);

fn rows(
    before: &BTreeMap<Destination, Totals>,
    now: &BTreeMap<Destination, Totals>,
    seconds: f64,
    linked: &str,
) -> Vec<Row> {
    let nothing = Totals::default();
    let of = |destination: &Destination| {
        let was = before.get(destination).unwrap_or(&nothing);
        rates(was, now.get(destination).unwrap_or(&nothing), seconds)
    };
    vec![
        ("west, local web-svc".into(), of(&Destination::Local)),
        (
            format!("{linked}, through the link"),
            of(&Destination::Linked(linked.to_owned())),
        ),
    ]
}

fn render(rows: &[Row]) -> String {
    let mut out = format!(
        "{:<24} {:>8} {:>9} {:>9} {:>9}\n",
        "VOTES ANSWERED BY", "REQ/S", "SUCCESS", "P50", "P99"
    );
    let number = |value: Option<f64>, unit: &str, places: usize| {
        value.map_or_else(|| "-".into(), |value| format!("{value:.places$}{unit}"))
    };
    for (name, rates) in rows {
        let success = number(rates.success.map(|share| share * 100.0), " %", 1);
        let (p50, p99) = (number(rates.p50_ms, " ms", 1), number(rates.p99_ms, " ms", 1));
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "{name:<24} {:>8.1} {success:>9} {p50:>9} {p99:>9}",
            rates.requests_per_second
        );
    }
    out
}

/// Paints over the last table; returns how many lines this one has.
fn paint(table: &str, over: usize) -> usize {
    let mut out = std::io::stdout().lock();
    let up = if over > 0 {
        format!("\x1b[{over}A\x1b[J")
    } else {
        String::new()
    };
    // A closed terminal is noticed by the signal that follows.
    let _ = out
        .write_all(format!("{up}{table}").as_bytes())
        .and_then(|()| out.flush());
    table.lines().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_aligned_and_readable_without_colour() {
        let busy = Rates {
            requests_per_second: 20.04,
            success: Some(0.925),
            p50_ms: Some(2.5),
            p99_ms: Some(9.0),
        };
        let rows = [
            ("west, local web-svc".into(), busy),
            ("east, through the link".into(), Rates::default()),
        ];
        let expected = "\
VOTES ANSWERED BY           REQ/S   SUCCESS       P50       P99
west, local web-svc          20.0    92.5 %    2.5 ms    9.0 ms
east, through the link        0.0         -         -         -
";
        assert_eq!(render(&rows), expected);
    }
}
