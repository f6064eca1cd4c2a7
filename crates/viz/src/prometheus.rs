//! What a Prometheus has seen of the proxies, as if we had seen it ourselves. Pure.
//!
//! It is asked for the samples themselves, not for rates: each scrape becomes a look, and the same window and the same
//! questions then give the answer. It must scrape with the configuration that `hawser viz install` ships, which labels
//! samples with the pod's `namespace` and `pod`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use hawser_runtime::metrics::escape;
use serde::Deserialize;

use crate::pods::{PodName, Pods};
use crate::reading::Reading;
use crate::window::Window;

/// What readings are made of.
const NAMES: &str = "process_start_time_seconds|response_total|response_latency_ms_(bucket|sum)|tcp_open_connections|\
                     tcp_(read|write)_bytes_total|gateway_(enabled|alive|probes|probe_latency_ms_bucket)";

/// The path of a request for everything that was scraped in the last `length`, of one namespace or all.
pub fn path(namespace: Option<&str>, length: Duration) -> String {
    // Names of namespaces need no escape within quotes.
    let place = namespace.map_or_else(|| "!=\"\"".to_owned(), |namespace| format!("=\"{namespace}\""));
    let query = format!(
        "{{__name__=~\"{NAMES}\",pod!=\"\",namespace{place}}}[{}s]",
        length.as_secs()
    );
    let mut path = "/api/v1/query?query=".to_owned();
    for byte in query.bytes() {
        match byte.is_ascii_alphanumeric() || byte == b'_' {
            true => path.push(char::from(byte)),
            // Writing to a String cannot fail.
            false => _ = write!(path, "%{byte:02X}"),
        }
    }
    path
}

#[derive(Debug, thiserror::Error)]
pub enum Nonsense {
    #[error("the answer is no answer of Prometheus")]
    Json(#[from] serde_json::Error),
    #[error("Prometheus says: {0}")]
    Refused(String),
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    error: Option<String>,
    #[serde(default)]
    data: Data,
}

#[derive(Default, Deserialize)]
struct Data {
    #[serde(default)]
    result: Vec<Series>,
}

#[derive(Deserialize)]
struct Series {
    metric: BTreeMap<String, String>,
    /// Unix time in seconds, and a number.
    values: Vec<(f64, String)>,
}

/// A process, by pod and port.
type Source = (PodName, u16);

/// A window of what was scraped of these pods; `now` is Unix time, and the window's time too.
pub fn window(answer: &str, pods: &Pods, now: Duration) -> Result<Window, Nonsense> {
    let answer: Answer = serde_json::from_str(answer)?;
    if let Some(error) = answer.error {
        return Err(Nonsense::Refused(error));
    }
    // All samples of one scrape have its time, to the millisecond.
    let mut scrapes: BTreeMap<(u64, Source), String> = BTreeMap::new();
    for series in &answer.data.result {
        let label = |name: &str| series.metric.get(name).cloned().unwrap_or_default();
        let pod = PodName {
            namespace: label("namespace"),
            name: label("pod"),
        };
        let port = label("instance")
            .rsplit(':')
            .next()
            .and_then(|port| port.parse().ok());
        let source = (pod, port.unwrap_or_default());
        let (name, labels) = (label("__name__"), labels(&series.metric));
        for (at, value) in &series.values {
            let at = (at * 1e3).max(0.0) as u64;
            let text = scrapes.entry((at, source.clone())).or_default();
            let _ = writeln!(text, "{name}{{{labels}}} {value}");
        }
    }
    let mut window = Window::new(now);
    for ((at, (pod, port)), text) in scrapes {
        // Of pods that are gone nobody knows whose they were.
        if let Some(pod) = pods.get(&pod) {
            window.record(pod, port, Duration::from_millis(at), Reading::of(&text));
        }
    }
    Ok(window)
}

fn labels(metric: &BTreeMap<String, String>) -> String {
    let mut labels = String::new();
    for (name, value) in metric.iter().filter(|(name, _)| *name != "__name__") {
        if !labels.is_empty() {
            labels.push(',');
        }
        labels.push_str(name);
        labels.push_str("=\"");
        escape(value, &mut labels);
        labels.push('"');
    }
    labels
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::api::{Objects, Question};
    use crate::kinds::Kind;
    use crate::pods::Pod;
    use crate::query::Known;

    fn pods() -> Pods {
        let pod = Arc::new(Pod {
            name: PodName {
                namespace: "x".into(),
                name: "web-1".into(),
            },
            owner: Some((Kind::Deployment, "web".into())),
            is_running: true,
            proxy: Some(4191),
            ..Pod::default()
        });
        Pods::from([(pod.name.clone(), pod)])
    }

    #[test]
    fn scrapes_become_looks() {
        let series = |name: &str, pod: &str, values: [&str; 3]| {
            let values = [(1_000.5, values[0]), (1_010.5, values[1]), (1_020.5, values[2])];
            json!({
                "metric": {
                    "__name__": name, "namespace": "x", "pod": pod, "instance": "10.0.0.1:4191",
                    "direction": "inbound", "classification": "success", "le": "+Inf", "strange": "a\"b\n",
                },
                "values": values,
            })
        };
        let result = [
            series("process_start_time_seconds", "web-1", ["5"; 3]),
            series("response_total", "web-1", ["100", "150", "200"]),
            series("response_latency_ms_bucket", "web-1", ["100", "150", "200"]),
            series("response_latency_ms_sum", "web-1", ["0", "200", "400"]),
            series("response_total", "gone", ["100", "150", "200"]),
        ];
        let answer = json!({"status": "success", "data": {"resultType": "matrix", "result": result}});
        let (pods, now) = (pods(), Duration::from_millis(1_020_500));
        let window = window(&answer.to_string(), &pods, now).expect("an answer");
        let known = Known {
            window: &window,
            pods: &pods,
            now,
        };
        let rows = known.stat(&Question {
            objects: Objects {
                kind: Kind::Deployment,
                name: None,
                namespace: None,
            },
            towards: None,
            window: Duration::from_secs(20),
        });
        let rows: Vec<_> = rows
            .iter()
            .map(|row| (&*row.name, row.rps, row.success))
            .collect();
        assert_eq!(rows, [("web", Some(5.0), Some(1.0))]);
    }

    #[test]
    fn what_prometheus_refuses_is_told_in_its_words() {
        let refusal = json!({"status": "error", "errorType": "execution", "error": "too many samples"});
        let error = window(&refusal.to_string(), &pods(), Duration::ZERO).expect_err("no answer");
        assert_eq!(error.to_string(), "Prometheus says: too many samples");
        assert!(window("<html>", &pods(), Duration::ZERO).is_err());
    }

    #[test]
    fn a_query_has_no_character_that_a_path_has_not() {
        let path = path(Some("emojivoto"), Duration::from_secs(60));
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"/?=%_".contains(&byte);
        assert!(path.bytes().all(legal), "{path}");
        assert!(
            path.ends_with("namespace%3D%22emojivoto%22%7D%5B60s%5D"),
            "{path}"
        );
    }
}
