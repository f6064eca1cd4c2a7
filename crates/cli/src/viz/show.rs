//! Tables and JSON of what was answered. Columns are Linkerd's. Pure, but for the screen of `--watch`.

use std::io::{IsTerminal, Write as _};

use hawser_viz::api::{Edge, Gateway, Leg, Over, Path, RouteStat, Stat};
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
pub(super) enum Align {
    Left,
    Right,
}
use Align::{Left, Right};

/// How much room a table has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// As much as a common terminal shows on a line; names that are too long are cut.
    Screen,
    Endless,
}

/// Columns of a terminal.
const SCREEN: usize = 100;
/// Names are cut to no less than this, so that one still knows which.
const NAME_MIN: usize = 8;

/// Columns three spaces apart, or two if there is little room, each as wide as its widest cell.
pub(super) fn table(columns: &[(&str, Align)], rows: &[Vec<String>], room: Room) -> String {
    let mut widths: Vec<usize> = columns.iter().map(|(title, _)| title.len()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let width =
        |widths: &[usize], gap: usize| widths.iter().sum::<usize>() + gap * widths.len().saturating_sub(1);
    let mut gap = "   ";
    if room == Room::Screen && width(&widths, gap.len()) > SCREEN {
        gap = "  ";
        while width(&widths, gap.len()) > SCREEN {
            let names = widths
                .iter_mut()
                .zip(columns)
                .filter(|(_, (_, align))| *align == Left);
            match names.map(|(width, _)| width).max() {
                Some(widest) if *widest > NAME_MIN => *widest -= 1,
                _ => break,
            }
        }
    }
    let line = |cells: &[String]| {
        let cells = cells.iter().zip(columns).zip(&widths);
        let padded: Vec<String> = cells
            .map(|((cell, (_, align)), width)| match (fit(cell, *width), align) {
                (cell, Left) => format!("{cell:<width$}"),
                (cell, Right) => format!("{cell:>width$}"),
            })
            .collect();
        format!("{}\n", padded.join(gap).trim_end())
    };
    let titles: Vec<String> = columns.iter().map(|(title, _)| (*title).to_owned()).collect();
    std::iter::once(line(&titles))
        .chain(rows.iter().map(|row| line(row)))
        .collect()
}

/// A text that is too long, cut so that one sees it.
fn fit(text: &str, max: usize) -> String {
    match text.char_indices().nth(max) {
        None => text.to_owned(),
        Some(_) => text.chars().take(max.saturating_sub(1)).chain(['…']).collect(),
    }
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
    table(&columns, &rows.iter().map(row).collect::<Vec<_>>(), room(wide))
}

pub(super) fn routes(rows: &[RouteStat], with_namespace: bool, wide: bool) -> String {
    let mut columns = vec![
        ("NAME", Left),
        ("ROUTE", Left),
        ("SERVER", Left),
        ("SUCCESS", Right),
        ("RPS", Right),
        ("P50", Right),
        ("P95", Right),
        ("P99", Right),
    ];
    if with_namespace {
        columns.insert(0, ("NAMESPACE", Left));
    }
    let row = |row: &RouteStat| {
        let golden = &row.golden;
        let mut cells = vec![
            row.name.clone(),
            row.route.clone(),
            or_dash_if_empty(&row.server),
            or_dash(golden.success.map(|share| format!("{:.2}%", share * 100.0))),
            or_dash(golden.rps.map(|rps| format!("{rps:.1}rps"))),
            milliseconds(golden.p50_ms),
            milliseconds(golden.p95_ms),
            milliseconds(golden.p99_ms),
        ];
        if with_namespace {
            cells.insert(0, row.namespace.clone());
        }
        cells
    };
    table(&columns, &rows.iter().map(row).collect::<Vec<_>>(), room(wide))
}

fn room(wide: bool) -> Room {
    match wide {
        true => Room::Endless,
        false => Room::Screen,
    }
}

/// Each path with its legs, the busiest first.
pub(super) fn paths(paths: &[Path], wide: bool) -> String {
    let mut columns = vec![
        ("FROM", Left),
        ("TO", Left),
        ("CLUSTER", Left),
        ("OVER", Left),
        ("MEAN", Right),
        ("SHARE", Right),
    ];
    if wide {
        columns.push(("RPS", Right));
    }
    // An id is `deployment/namespace/name`.
    let short = |id: &str| match wide {
        true => id.to_owned(),
        false => {
            let names = id.split(", ").map(|id| id.rsplit('/').next().unwrap_or_default());
            names.collect::<Vec<_>>().join(", ")
        }
    };
    let path = |path: &Path| {
        let leg = |leg: &Leg| {
            let (to, over) = match leg.over {
                Over::Network => (short(&leg.to), "network"),
                Over::Wan => (short(&leg.to), "wan"),
                Over::Application => ("(application)".to_owned(), "pod"),
                Over::Unknown => ("(all the rest)".to_owned(), "?"),
            };
            let mut cells = vec![
                short(&leg.from),
                to,
                or_dash_if_empty(&leg.cluster),
                over.to_owned(),
                format!("{:.2}ms", leg.mean_ms),
                format!(
                    "{:.0}%",
                    100.0 * leg.mean_ms / path.mean_ms.max(f64::MIN_POSITIVE)
                ),
            ];
            if wide {
                cells.push(format!("{:.1}rps", leg.rps));
            }
            cells
        };
        let rows: Vec<Vec<String>> = path.legs.iter().map(leg).collect();
        let cluster = match &*path.cluster {
            "" => String::new(),
            cluster => format!(" in {cluster}"),
        };
        let unknown = match &*path.unknown {
            "" => String::new(),
            why => format!("not all is known: {why}\n"),
        };
        let refused = if path.refused_rps > 0.0 {
            format!("; {:.1} more a second are refused", path.refused_rps)
        } else {
            String::new()
        };
        if path.legs.is_empty() {
            return format!(
                "{} asks {}{cluster} {:.1} times a second: {}\n",
                short(&path.from),
                path.service,
                path.refused_rps,
                path.unknown
            );
        }
        format!(
            "{} asks {}{cluster} {:.1} times a second and waits {:.2} ms on average{refused}\n{}{unknown}",
            short(&path.from),
            path.service,
            path.rps,
            path.mean_ms,
            table(&columns, &rows, room(wide)),
        )
    };
    paths.iter().map(path).collect::<Vec<_>>().join("\n")
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
    table(&columns, &rows.iter().map(row).collect::<Vec<_>>(), room(wide))
}

pub(super) fn gateways(rows: &[GatewayRow], wide: bool) -> String {
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
    table(&columns, &rows.iter().map(row).collect::<Vec<_>>(), room(wide))
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
    fn no_table_is_wider_than_a_screen_unless_asked_for_wide() {
        let long = |what: &str| format!("{what}-{}", "a-name-as-long-as-kubernetes-allows".repeat(2));
        let row = Stat {
            namespace: long("namespace"),
            name: long("name"),
            tcp_open_connections: 1_000,
            latency_ms_p99: Some(50_000.0),
            ..web()
        };
        let edge = Edge {
            src: long("src"),
            src_namespace: long("src-namespace"),
            dst: long("dst"),
            dst_namespace: long("dst-namespace"),
            cluster: long("cluster"),
            no_tls_reason: "not_provided_by_service_discovery".into(),
            ..Edge::default()
        };
        let leg = Leg {
            from: long("deployment/x/from"),
            to: long("deployment/x/to"),
            cluster: long("cluster"),
            over: Over::Network,
            ..Leg::default()
        };
        let gateway = GatewayRow {
            gateway: Gateway {
                cluster_name: long("cluster"),
                ..Gateway::default()
            },
            services: 1_000_000,
        };
        let path = Path {
            from: "deployment/x/bot".into(),
            service: "x/web".into(),
            legs: vec![leg],
            ..Path::default()
        };
        let route = RouteStat {
            namespace: long("namespace"),
            name: long("name"),
            route: long("route"),
            server: long("server"),
            ..RouteStat::default()
        };
        let all = |wide| {
            [
                routes(std::slice::from_ref(&route), true, wide),
                stat(std::slice::from_ref(&row), true, wide),
                edges(std::slice::from_ref(&edge), wide),
                paths(std::slice::from_ref(&path), wide),
                gateways(std::slice::from_ref(&gateway), wide),
            ]
        };
        for text in all(false) {
            let widest = text.lines().map(|line| line.chars().count()).max();
            assert!(widest.is_some_and(|widest| widest <= SCREEN), "{text}");
        }
        for text in all(true) {
            assert!(!text.contains('…'), "{text}");
        }
    }

    #[test]
    fn a_path_is_shown_leg_by_leg() {
        let leg = |from: &str, to: &str, cluster: &str, over, mean_ms| Leg {
            from: from.into(),
            to: to.into(),
            cluster: cluster.into(),
            over,
            mean_ms,
            rps: 9.0,
        };
        let gateway = "deployment/linkerd-multicluster/linkerd-gateway";
        let path = Path {
            from: "deployment/emojivoto/vote-bot".into(),
            service: "emojivoto/web-svc-east".into(),
            cluster: "east".into(),
            rps: 9.0,
            refused_rps: 0.0,
            mean_ms: 20.0,
            legs: vec![
                leg("deployment/emojivoto/vote-bot", gateway, "east", Over::Wan, 12.5),
                leg(gateway, "deployment/emojivoto/web", "east", Over::Network, 0.5),
                leg("deployment/emojivoto/web", "", "east", Over::Application, 7.0),
            ],
            unknown: String::new(),
        };
        assert_eq!(
            paths(&[path], false),
            "vote-bot asks emojivoto/web-svc-east in east 9.0 times a second and waits 20.00 ms on average\n\
             FROM              TO                CLUSTER   OVER         MEAN   SHARE\n\
             vote-bot          linkerd-gateway   east      wan       12.50ms     62%\n\
             linkerd-gateway   web               east      network    0.50ms      2%\n\
             web               (application)     east      pod        7.00ms     35%\n"
        );
        let refused = Path {
            from: "deployment/x/bot".into(),
            service: "x/web".into(),
            refused_rps: 3.0,
            unknown: "every request was refused".into(),
            ..Path::default()
        };
        assert_eq!(
            paths(&[refused], false),
            "bot asks x/web 3.0 times a second: every request was refused\n"
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
            gateways(&[row], false),
            "CLUSTER   ALIVE   NUM_SVC   LATENCY_P50   LATENCY_P95   LATENCY_P99\n\
             east      True          1           1ms             -             -\n"
        );
    }
}
