//! What is printed of requests as they happen. Pure.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;

use hawser_viz::tap::{Happening, Tapped};
use serde::Serialize;

use super::super::show::{Align, Room, table as aligned};

/// Rows that a screen has room for.
pub(super) const ROWS_MAX: usize = 20;
/// Kinds of requests counted at the same time; more are not told apart from each other.
const KEYS_MAX: usize = 1_024;
/// Requests that have not ended yet.
const OPEN_MAX: usize = 4_096;

/// One event on one line, in the form of `linkerd viz tap`.
pub(super) fn line(told: &Tapped, wide: bool) -> String {
    let (word, details) = match &told.happening {
        Happening::Request {
            method,
            authority,
            path,
        } => (
            "req",
            format!(":method={method} :authority={authority} :path={path}"),
        ),
        Happening::Response { status, after_us } => ("rsp", format!(":status={status} latency={after_us}µs")),
        Happening::End {
            after_us,
            bytes,
            grpc_status,
            reset,
        } => {
            let grpc = grpc_status
                .map(|code| format!("grpc-status={code} "))
                .unwrap_or_default();
            let reset = reset
                .map(|code| format!("reset-error={code} "))
                .unwrap_or_default();
            (
                "end",
                format!("{grpc}{reset}duration={after_us}µs response-length={bytes}B"),
            )
        }
    };
    let (side, tls) = match &*told.direction {
        "inbound" => ("in ", told.source_labels.get("tls")),
        _ => ("out", told.destination_labels.get("tls")),
    };
    let id = told.id.rsplit(':').next().unwrap_or_default();
    let mut line = format!(
        "{word} id={id} proxy={side} src={} dst={} tls={} {}",
        printable(&told.source),
        printable(&told.destination),
        printable(tls.map_or("", String::as_str)),
        printable(&details)
    );
    if wide {
        let labels = [
            ("src", &told.source_labels),
            ("dst", &told.destination_labels),
            ("rt", &told.route_labels),
        ];
        let _ = write!(
            line,
            " pod={} workload={}",
            printable(&told.pod),
            printable(&told.workload)
        );
        for (side, labels) in labels {
            for (key, value) in labels.iter().filter(|(key, _)| *key != "tls") {
                // Writing to a String cannot fail.
                let _ = write!(line, " {side}_{}={}", printable(key), printable(value));
            }
        }
    }
    line.push('\n');
    line
}

/// What requests say may hold anything, but not command the reader's terminal.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

/// What tells rows apart.
#[derive(Clone, Copy, Debug)]
pub(super) struct By {
    pub(super) routes: bool,
    pub(super) sources: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    source: String,
    destination: String,
    method: String,
    path: String,
}

/// One row.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Row {
    pub(super) source: String,
    pub(super) destination: String,
    pub(super) method: String,
    /// Or a route's name.
    pub(super) path: String,
    pub(super) count: u64,
    pub(super) best_us: u64,
    pub(super) worst_us: u64,
    pub(super) last_us: u64,
    /// 0 to 1.
    pub(super) success: f64,
}

#[derive(Clone, Copy, Debug)]
struct Counted {
    count: u64,
    good: u64,
    best: u64,
    worst: u64,
    last: u64,
}

/// Requests that ended since the beginning.
#[derive(Debug)]
pub(super) struct Top {
    by: By,
    /// Requests whose end is still to come, with their status.
    open: HashMap<(String, String), (Key, Option<u32>)>,
    rows: BTreeMap<Key, Counted>,
}

impl Top {
    pub(super) fn new(by: By) -> Self {
        Self {
            by,
            open: HashMap::new(),
            rows: BTreeMap::new(),
        }
    }

    pub(super) fn hear(&mut self, told: &Tapped) {
        let id = (told.pod.clone(), told.id.clone());
        match &told.happening {
            Happening::Request { method, path, .. } => {
                if self.open.len() >= OPEN_MAX {
                    // Ends were lost; those that come now are what counts.
                    self.open.clear();
                }
                let key = self.key(told, method, path);
                self.open.insert(id, (key, None));
            }
            Happening::Response { status, .. } => {
                if let Some((_, known)) = self.open.get_mut(&id) {
                    *known = Some(*status);
                }
            }
            Happening::End {
                after_us,
                grpc_status,
                reset,
                ..
            } => {
                let Some((key, status)) = self.open.remove(&id) else {
                    return;
                };
                let is_good = reset.is_none()
                    && status.is_some_and(|status| status < 500)
                    && !matches!(grpc_status, Some(2 | 4 | 7 | 13 | 14 | 15));
                self.count(key, *after_us, is_good);
            }
        }
    }

    fn count(&mut self, key: Key, took: u64, is_good: bool) {
        let key = match self.rows.contains_key(&key) || self.rows.len() < KEYS_MAX {
            true => key,
            false => Key {
                path: "(others)".to_owned(),
                ..key
            },
        };
        let counted = self.rows.entry(key).or_insert(Counted {
            count: 0,
            good: 0,
            best: u64::MAX,
            worst: 0,
            last: 0,
        });
        counted.count += 1;
        counted.good += u64::from(is_good);
        counted.best = counted.best.min(took);
        counted.worst = counted.worst.max(took);
        counted.last = took;
    }

    fn key(&self, told: &Tapped, method: &str, path: &str) -> Key {
        let (source, destination) = match &*told.direction {
            "inbound" => (of_client(told), told.workload.clone()),
            _ => (told.workload.clone(), of_server(told)),
        };
        let path = match self.by.routes {
            true => told.route_labels.get("name").cloned().unwrap_or_default(),
            false => path.to_owned(),
        };
        let short = |name: String| {
            name.strip_prefix("deployment/")
                .map(str::to_owned)
                .unwrap_or(name)
        };
        Key {
            source: if self.by.sources {
                printable(&short(source))
            } else {
                String::new()
            },
            destination: printable(&short(destination)),
            method: printable(method),
            path: printable(&path),
        }
    }

    /// The busiest first.
    pub(super) fn rows(&self, max: usize) -> Vec<Row> {
        let mut rows: Vec<Row> = self
            .rows
            .iter()
            .map(|(key, counted)| Row {
                source: key.source.clone(),
                destination: key.destination.clone(),
                method: key.method.clone(),
                path: key.path.clone(),
                count: counted.count,
                best_us: counted.best,
                worst_us: counted.worst,
                last_us: counted.last,
                success: counted.good as f64 / counted.count as f64,
            })
            .collect();
        rows.sort_by_key(|row| std::cmp::Reverse(row.count));
        rows.truncate(max);
        rows
    }
}

/// Who asks, as far as the server's proxy knows: an account, or an address.
fn of_client(told: &Tapped) -> String {
    let account = told
        .source_labels
        .get("client_id")
        .and_then(|id| Some(id.split_once(".serviceaccount.")?.0.to_owned()));
    account.unwrap_or_else(|| host(&told.source))
}

/// Who is asked, by the endpoint's labels.
fn of_server(told: &Tapped) -> String {
    let labels = &told.destination_labels;
    let cluster = labels.get("target_cluster").filter(|name| !name.is_empty());
    if let (Some(cluster), Some(service)) = (cluster, labels.get("target_service")) {
        return format!("{service}@{cluster}");
    }
    let mut names = ["deployment", "statefulset", "daemonset", "job", "service", "pod"]
        .iter()
        .filter_map(|kind| labels.get(*kind));
    names.next().cloned().unwrap_or_else(|| host(&told.destination))
}

fn host(address: &str) -> String {
    address
        .rsplit_once(':')
        .map_or(address, |(host, _)| host)
        .to_owned()
}

pub(super) fn table(rows: &[Row], wide: bool) -> String {
    use Align::{Left, Right};
    let columns = [
        ("SOURCE", Left),
        ("DESTINATION", Left),
        ("METHOD", Left),
        ("PATH", Left),
        ("COUNT", Right),
        ("BEST", Right),
        ("WORST", Right),
        ("LAST", Right),
        ("SUCCESS", Right),
    ];
    let cells = |row: &Row| {
        vec![
            row.source.clone(),
            row.destination.clone(),
            row.method.clone(),
            row.path.clone(),
            row.count.to_string(),
            took(row.best_us),
            took(row.worst_us),
            took(row.last_us),
            format!("{:.0}%", row.success * 100.0),
        ]
    };
    let room = if wide { Room::Endless } else { Room::Screen };
    aligned(&columns, &rows.iter().map(cells).collect::<Vec<_>>(), room)
}

/// With three digits, or a few more.
fn took(us: u64) -> String {
    match us {
        0..1_000 => format!("{us}µs"),
        1_000..100_000 => format!("{:.1}ms", us as f64 / 1e3),
        100_000..1_000_000 => format!("{}ms", us / 1_000),
        _ => format!("{:.1}s", us as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(direction: &str, id: &str, happening: Happening) -> Tapped {
        let labels = |pairs: &[(&str, &str)]| {
            let owned = pairs
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
            owned.collect::<BTreeMap<_, _>>()
        };
        Tapped {
            pod: "emojivoto/web-1".into(),
            workload: "deployment/web".into(),
            id: format!("7:{id}"),
            direction: direction.into(),
            source: "10.0.0.1:4000".into(),
            destination: "10.0.0.2:80".into(),
            source_labels: labels(&[
                ("tls", "true"),
                ("client_id", "default.emojivoto.serviceaccount.identity.linkerd.x"),
            ]),
            destination_labels: labels(&[("deployment", "voting"), ("tls", "true")]),
            route_labels: labels(&[("name", "http")]),
            happening,
        }
    }

    fn head(path: &str) -> Happening {
        Happening::Request {
            method: "GET".into(),
            authority: "web-svc".into(),
            path: path.into(),
        }
    }

    fn end(after_us: u64) -> Happening {
        Happening::End {
            after_us,
            bytes: 3,
            grpc_status: None,
            reset: None,
        }
    }

    fn answer(status: u32) -> Happening {
        Happening::Response { status, after_us: 5 }
    }

    #[test]
    fn lines_are_those_of_linkerd_and_command_no_terminal() {
        let line = |happening| line(&told("inbound", "3", happening), false);
        assert_eq!(
            line(head("/api\u{1b}[2J")),
            "req id=3 proxy=in  src=10.0.0.1:4000 dst=10.0.0.2:80 tls=true :method=GET :authority=web-svc :path=/api\u{fffd}[2J\n"
        );
        assert!(line(answer(200)).ends_with("tls=true :status=200 latency=5µs\n"));
        assert!(line(end(7)).ends_with("duration=7µs response-length=3B\n"));
    }

    #[test]
    fn the_busiest_requests_come_first() {
        let mut top = Top::new(By {
            routes: false,
            sources: true,
        });
        for (id, direction, path, status, took) in [
            ("1", "inbound", "/vote", 200, 900),
            ("2", "inbound", "/vote", 500, 3_000),
            ("3", "outbound", "/list", 200, 2_000_000),
        ] {
            for happening in [head(path), answer(status), end(took)] {
                top.hear(&told(direction, id, happening));
            }
        }
        // Not ended yet.
        top.hear(&told("inbound", "4", head("/vote")));
        assert_eq!(
            table(&top.rows(9), false),
            "SOURCE              DESTINATION   METHOD   PATH    COUNT    BEST   WORST    LAST   SUCCESS\n\
             default.emojivoto   web           GET      /vote       2   900µs   3.0ms   3.0ms       50%\n\
             web                 voting        GET      /list       1    2.0s    2.0s    2.0s      100%\n"
        );
    }

    #[test]
    fn endless_paths_fill_no_memory_and_no_line_is_wider_than_a_hundred() {
        let mut top = Top::new(By {
            routes: false,
            sources: true,
        });
        for number in 0..3 * KEYS_MAX as u64 {
            let id = number.to_string();
            let path = format!("/very/long/path/that/ends/nowhere/{number}");
            for happening in [head(&path), answer(200), end(99_999 * number)] {
                top.hear(&told("inbound", &id, happening));
            }
        }
        assert_eq!(top.rows.len(), KEYS_MAX + 1);
        let text = table(&top.rows(ROWS_MAX), false);
        let widest = text.lines().map(|line| line.chars().count()).max();
        assert!(widest.is_some_and(|widest| widest <= 100), "{text}");
    }
}
