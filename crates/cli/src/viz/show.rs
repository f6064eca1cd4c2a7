//! Tables and JSON of what was answered. Columns are Linkerd's. Pure, but for the screen of `--watch`.

use std::io::{IsTerminal, Write as _};

use hawser_viz::api::{Edge, Gateway, Stat};
use serde::Serialize;

use crate::problem::Problem;

/// A gateway, and how many Services are imported through it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct GatewayRow {
    #[serde(flatten)]
    pub(super) gateway: Gateway,
    #[serde(rename = "numberOfServices")]
    pub(super) services: usize,
}

/// Where a column's text stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Align {
    Left,
    Right,
}
use Align::{Left, Right};

/// Columns three spaces apart, each as wide as its widest cell.
fn table(columns: &[(&str, Align)], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = columns.iter().map(|(title, _)| title.len()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let line = |cells: &[String]| {
        let cells = cells.iter().zip(columns).zip(&widths);
        let padded: Vec<String> = cells
            .map(|((cell, (_, align)), width)| match align {
                Left => format!("{cell:<width$}"),
                Right => format!("{cell:>width$}"),
            })
            .collect();
        format!("{}\n", padded.join("   ").trim_end())
    };
    let titles: Vec<String> = columns.iter().map(|(title, _)| (*title).to_owned()).collect();
    std::iter::once(line(&titles))
        .chain(rows.iter().map(|row| line(row)))
        .collect()
}

fn or_dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".to_owned())
}

fn or_dash_if_empty(text: &str) -> String {
    if text.is_empty() {
        "-".to_owned()
    } else {
        text.to_owned()
    }
}

fn milliseconds(value: Option<f64>) -> String {
    or_dash(value.map(|value| format!("{value:.0}ms")))
}

pub(super) fn stat(rows: &[Stat], with_namespace: bool, wide: bool) -> String {
    let mut columns = vec![
        ("NAME", Left),
        ("MESHED", Right),
        ("SUCCESS", Right),
        ("RPS", Right),
        ("LATENCY_P50", Right),
        ("LATENCY_P95", Right),
        ("LATENCY_P99", Right),
        ("TCP_CONN", Right),
    ];
    if with_namespace {
        columns.insert(0, ("NAMESPACE", Left));
    }
    if wide {
        columns.extend([("READ_BYTES/SEC", Right), ("WRITE_BYTES/SEC", Right)]);
    }
    let row = |row: &Stat| {
        let has_traffic = row.rps.is_some();
        let mut cells = vec![
            row.name.clone(),
            or_dash(row.meshed.clone()),
            or_dash(row.success.map(|share| format!("{:.2}%", share * 100.0))),
            or_dash(row.rps.map(|rps| format!("{rps:.1}rps"))),
            milliseconds(row.latency_ms_p50),
            milliseconds(row.latency_ms_p95),
            milliseconds(row.latency_ms_p99),
            or_dash(
                (has_traffic || row.tcp_open_connections > 0).then(|| row.tcp_open_connections.to_string()),
            ),
        ];
        if with_namespace {
            cells.insert(0, row.namespace.clone());
        }
        if wide {
            cells.extend(
                [row.tcp_read_bytes_rate, row.tcp_write_bytes_rate].map(|rate| format!("{rate:.1}B/s")),
            );
        }
        cells
    };
    table(&columns, &rows.iter().map(row).collect::<Vec<_>>())
}

pub(super) fn edges(rows: &[Edge], wide: bool) -> String {
    let mut columns = vec![
        ("SRC", Left),
        ("DST", Left),
        ("SRC_NS", Left),
        ("DST_NS", Left),
        ("CLUSTER", Left),
    ];
    if wide {
        columns.extend([("CLIENT_ID", Left), ("SERVER_ID", Left)]);
    }
    columns.push(("SECURED", Left));
    let row = |row: &Edge| {
        let mut cells: Vec<String> = [
            &row.src,
            &row.dst,
            &row.src_namespace,
            &row.dst_namespace,
            &row.cluster,
        ]
        .map(|text| or_dash_if_empty(text))
        .to_vec();
        if wide {
            cells.extend([&row.client_id, &row.server_id].map(|text| or_dash_if_empty(text)));
        }
        cells.push(match (row.secured, row.no_tls_reason.as_str()) {
            (true, _) => "√".to_owned(),
            (false, "") => "no".to_owned(),
            (false, reason) => format!("no: {reason}"),
        });
        cells
    };
    table(&columns, &rows.iter().map(row).collect::<Vec<_>>())
}

pub(super) fn gateways(rows: &[GatewayRow]) -> String {
    let columns = [
        ("CLUSTER", Left),
        ("ALIVE", Left),
        ("NUM_SVC", Right),
        ("LATENCY_P50", Right),
        ("LATENCY_P95", Right),
        ("LATENCY_P99", Right),
    ];
    let row = |row: &GatewayRow| {
        let gateway = &row.gateway;
        vec![
            gateway.cluster_name.clone(),
            if gateway.alive { "True" } else { "False" }.to_owned(),
            row.services.to_string(),
            milliseconds(gateway.latency_ms_p50),
            milliseconds(gateway.latency_ms_p95),
            milliseconds(gateway.latency_ms_p99),
        ]
    };
    table(&columns, &rows.iter().map(row).collect::<Vec<_>>())
}

pub(super) fn json_text<T: Serialize>(rows: &[T]) -> String {
    format!("{:#}\n", serde_json::json!(rows))
}

/// Where `--watch` shows its tables: each over the last on a terminal, below it elsewhere.
#[derive(Debug, Default)]
pub(super) struct Screen {
    lines: usize,
}

impl Screen {
    pub(super) fn paint(&mut self, text: &str) -> Result<(), Problem> {
        let mut out = std::io::stdout().lock();
        let up = match self.lines {
            lines if lines > 0 && out.is_terminal() => format!("\x1b[{lines}A\x1b[J"),
            _ => String::new(),
        };
        self.lines = text.lines().count();
        out.write_all(format!("{up}{text}").as_bytes())
            .and_then(|()| out.flush())
            .map_err(|error| Problem::new("cannot write to standard output", error, "check where it goes"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn web() -> Stat {
        Stat {
            namespace: "emojivoto".into(),
            kind: "deployment".into(),
            name: "web".into(),
            meshed: Some("1/1".into()),
            success: Some(0.9191),
            rps: Some(1.96),
            latency_ms_p50: Some(4.6),
            latency_ms_p95: Some(9.5),
            latency_ms_p99: Some(100.0),
            tcp_open_connections: 3,
            tcp_read_bytes_rate: 512.25,
            tcp_write_bytes_rate: 0.0,
        }
    }

    #[test]
    fn statistics_have_linkerds_columns() {
        let idle = Stat {
            namespace: "emojivoto".into(),
            name: "vote-bot".into(),
            meshed: Some("1/1".into()),
            ..Stat::default()
        };
        assert_eq!(
            stat(&[idle, web()], false, false),
            "NAME       MESHED   SUCCESS      RPS   LATENCY_P50   LATENCY_P95   LATENCY_P99   TCP_CONN\n\
             vote-bot      1/1         -        -             -             -             -          -\n\
             web           1/1    91.91%   2.0rps           5ms          10ms         100ms          3\n"
        );
        assert_eq!(
            stat(&[web()], true, true),
            "NAMESPACE   NAME   MESHED   SUCCESS      RPS   LATENCY_P50   LATENCY_P95   LATENCY_P99   TCP_CONN   READ_BYTES/SEC   WRITE_BYTES/SEC\n\
             emojivoto   web       1/1    91.91%   2.0rps           5ms          10ms         100ms          3         512.2B/s            0.0B/s\n"
        );
    }

    #[test]
    fn edges_say_in_which_cluster_the_other_side_is() {
        let edge = Edge {
            src: "vote-bot".into(),
            src_namespace: "emojivoto".into(),
            dst: "linkerd-gateway".into(),
            dst_namespace: "linkerd-multicluster".into(),
            cluster: "east".into(),
            secured: true,
            ..Edge::default()
        };
        let plain = Edge {
            src: "(unmeshed)".into(),
            dst: "web".into(),
            dst_namespace: "emojivoto".into(),
            no_tls_reason: "no_tls_from_remote".into(),
            ..Edge::default()
        };
        assert_eq!(
            edges(&[edge, plain], false),
            "SRC          DST               SRC_NS      DST_NS                 CLUSTER   SECURED\n\
             vote-bot     linkerd-gateway   emojivoto   linkerd-multicluster   east      √\n\
             (unmeshed)   web               -           emojivoto              -         no: no_tls_from_remote\n"
        );
    }

    #[test]
    fn gateways_have_the_columns_of_old() {
        let row = GatewayRow {
            gateway: Gateway {
                cluster_name: "east".into(),
                alive: true,
                latency_ms_p50: Some(1.4),
                ..Gateway::default()
            },
            services: 1,
        };
        assert_eq!(
            gateways(&[row]),
            "CLUSTER   ALIVE   NUM_SVC   LATENCY_P50   LATENCY_P95   LATENCY_P99\n\
             east      True          1           1ms             -             -\n"
        );
    }
}
