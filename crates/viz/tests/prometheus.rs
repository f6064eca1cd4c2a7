//! The collector's answers beside those of Prometheus' own engine, on the same numbers at the same times.
//!
//! `promtool test rules` evaluates expressions without a server.

use std::fmt::Write as _;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Duration;

use hawser_viz::api::{Objects, Question, Stat};
use hawser_viz::{Kind, Known, Pod, Pods, Reading, Window};

const PROXIES: usize = 3;
const LOOKS: usize = 30;
const EVERY: u64 = 10;
/// Those of the proxy.
const BOUNDS: [&str; 26] = [
    "1", "2", "3", "4", "5", "10", "20", "30", "40", "50", "100", "200", "300", "400", "500", "1000", "2000",
    "3000", "4000", "5000", "10000", "20000", "30000", "40000", "50000", "+Inf",
];

fn main() -> ExitCode {
    hawser_testing::with_program(
        "promtool",
        &[(
            "rates_and_quantiles_are_those_of_prometheus",
            rates_and_quantiles_are_those_of_prometheus,
        )],
    )
}

/// Counters of one proxy at one look.
#[derive(Clone)]
struct Counters {
    started_at: u64,
    success: u64,
    failure: u64,
    /// Cumulative, by [`BOUNDS`].
    buckets: [u64; BOUNDS.len()],
}

/// Numbers that look like chance and are the same in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

fn rates_and_quantiles_are_those_of_prometheus() {
    let mut numbers = Numbers(42);
    let proxies: Vec<Vec<Counters>> = (0..PROXIES).map(|proxy| history(&mut numbers, proxy)).collect();

    let pods: Vec<Arc<Pod>> = (0..PROXIES).map(pod).collect();
    let mut window = Window::new(Duration::from_secs(3600));
    for (pod, history) in pods.iter().zip(&proxies) {
        for (look, counters) in history.iter().enumerate() {
            let at = Duration::from_secs(look as u64 * EVERY);
            window.record(pod, 4191, at, Reading::of(&exposition(counters)));
        }
    }
    let pods: Pods = pods.into_iter().map(|pod| (pod.name().clone(), pod)).collect();

    let mut expectations = String::new();
    // On a look, and between two.
    for (now, length) in [(290, 60), (293, 60), (200, 120), (155, 45), (299, 285)] {
        let known = Known {
            window: &window,
            pods: &pods,
            now: Duration::from_secs(now),
        };
        let row = ask(&known, length);
        let requests = format!("sum(rate(response_total[{length}s]))");
        let successes = format!("sum(rate(response_total{{classification=\"success\"}}[{length}s]))");
        let quantile = |q: f64| {
            format!("histogram_quantile({q}, sum by (le) (rate(response_latency_ms_bucket[{length}s])))")
        };
        for (ours, theirs) in [
            (row.rps, requests.clone()),
            (row.success, format!("{successes} / {requests}")),
            (row.latency_ms_p50, quantile(0.5)),
            (row.latency_ms_p95, quantile(0.95)),
            (row.latency_ms_p99, quantile(0.99)),
        ] {
            let ours = ours.unwrap_or_else(|| panic!("an answer for {theirs} at {now}"));
            let _ = write!(
                expectations,
                "  - expr: abs({theirs} - {ours}) < bool 1e-6\n    eval_time: {now}s\n    exp_samples: [{{labels: '{{}}', value: 1}}]\n"
            );
        }
    }
    assert_eq!(expectations.matches("expr:").count(), 25);
    evaluate(&rules(&proxies, &expectations));
}

/// Large to begin with, because Prometheus guesses where a small counter began; a restart in the middle of some.
fn history(numbers: &mut Numbers, proxy: usize) -> Vec<Counters> {
    let mut counters = Counters {
        started_at: 1,
        success: 100_000,
        failure: 100_000,
        buckets: std::array::from_fn(|at| 100_000 * (at as u64 + 1)),
    };
    let mut history = Vec::new();
    for look in 0..LOOKS {
        if proxy > 0 && look == 10 * proxy + 3 {
            counters = Counters {
                started_at: 1 + look as u64 * EVERY,
                success: 0,
                failure: 0,
                buckets: [0; BOUNDS.len()],
            };
        }
        counters.success += numbers.below(200);
        counters.failure += numbers.below(20);
        let mut below = 0;
        for bucket in &mut counters.buckets {
            below += numbers.below(50);
            *bucket += below;
        }
        history.push(counters.clone());
    }
    history
}

fn pod(number: usize) -> Arc<Pod> {
    let object = serde_json::json!({
        "metadata": {"namespace": "emojivoto", "name": format!("web-{number}")},
        "spec": {"containers": [{"name": "linkerd-proxy"}]},
        "status": {"phase": "Running"},
    });
    Arc::new(Pod::of(&serde_json::from_value(object).expect("a pod")))
}

fn exposition(counters: &Counters) -> String {
    let mut text = format!(
        "process_start_time_seconds {}\n\
         response_total{{direction=\"inbound\",classification=\"success\"}} {}\n\
         response_total{{direction=\"inbound\",classification=\"failure\"}} {}\n",
        counters.started_at, counters.success, counters.failure
    );
    for (le, count) in BOUNDS.iter().zip(counters.buckets) {
        let _ = writeln!(
            text,
            "response_latency_ms_bucket{{direction=\"inbound\",le=\"{le}\"}} {count}"
        );
    }
    text
}

fn ask(known: &Known<'_>, length: u64) -> Stat {
    let question = Question {
        objects: Objects {
            kind: Kind::Namespace,
            name: None,
            namespace: None,
        },
        towards: None,
        window: Duration::from_secs(length),
    };
    let rows: [Stat; 1] = known.stat(&question).try_into().expect("one namespace");
    rows.into_iter().next().expect("a row")
}

/// A file for `promtool test rules`.
fn rules(proxies: &[Vec<Counters>], expectations: &str) -> String {
    let mut series = String::new();
    let mut add = |name: String, values: Vec<u64>| {
        let values: Vec<String> = values.iter().map(u64::to_string).collect();
        let _ = write!(
            series,
            "  - series: '{name}'\n    values: '{}'\n",
            values.join(" ")
        );
    };
    for (pod, history) in proxies.iter().enumerate() {
        let values = |of: &dyn Fn(&Counters) -> u64| history.iter().map(of).collect::<Vec<_>>();
        let name = |class: &str| format!("response_total{{pod=\"{pod}\",classification=\"{class}\"}}");
        add(name("success"), values(&|counters| counters.success));
        add(name("failure"), values(&|counters| counters.failure));
        for (at, le) in BOUNDS.iter().enumerate() {
            let name = format!("response_latency_ms_bucket{{pod=\"{pod}\",le=\"{le}\"}}");
            add(name, values(&|counters| counters.buckets[at]));
        }
    }
    format!(
        "rule_files: []\nevaluation_interval: {EVERY}s\ntests:\n- interval: {EVERY}s\n  input_series:\n{series}  promql_expr_test:\n{expectations}"
    )
}

fn evaluate(rules: &str) {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("rules.yml");
    std::fs::write(&file, rules).expect("written");
    let said = Command::new("promtool")
        .args(["test", "rules"])
        .arg(&file)
        .output()
        .expect("promtool starts");
    assert!(
        said.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&said.stdout),
        String::from_utf8_lossy(&said.stderr)
    );
}
