//! The dashboards for Grafana: everything that they ask, asked as Grafana would, of a Prometheus that runs as we ship it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::demo::report;
use crate::host::{self, eventually};
use crate::world::{COMMAND_DEADLINE, SOON};

/// What the demo at rest tells nothing of, by the words that an expression contains, and why.
const SILENT: &[(&str, &str)] = &[
    ("outbound_http_retries_total", "no request is tried again"),
    ("outbound_http_errors_total", "no proxy fails"),
    ("outbound_tcp_errors_total", "no proxy fails"),
    ("inbound_http_errors_total", "no proxy fails"),
    ("inbound_tcp_errors_total", "no proxy fails"),
    ("inbound_http_authz_deny_total", "nobody is refused"),
    ("inbound_tcp_authz_deny_total", "nobody is refused"),
    ("inbound_gateway_refused_total", "nobody is refused"),
    (
        "failover_patches",
        "nothing has failed over since the controller began",
    ),
    ("linkerd-gateway", "no cluster is linked to west"),
];

/// What stands for a variable. Also what is chosen for it in the demo's west.
fn chosen(variable: &Value) -> &'static str {
    match (text(&variable["name"]), variable["includeAll"] == true) {
        (_, true) => ".+",
        ("namespace", _) => "emojivoto",
        ("kind", _) => "deployment",
        ("workload", _) => "web",
        ("service", _) => "web-svc",
        ("datasource", _) => "",
        (name, _) => panic!("nothing is chosen for ${name}"),
    }
}

/// Asks all of it. `port` leads to Prometheus.
pub(crate) fn every_query_answers(port: u16) {
    let dashboards = dashboards();
    assert!(dashboards.len() >= 5, "{:?}", dashboards.keys());
    let mut open: Vec<Question> = dashboards
        .iter()
        .flat_map(|(name, all)| questions(name, all))
        .collect();
    let count = open.len();
    for (words, _) in SILENT {
        let named = open.iter().any(|question| question.expression.contains(words));
        assert!(named, "no dashboard asks for {words}");
        assert!(is_exported(words), "no program tells of {words}");
    }
    eventually("every query of the dashboards answers", SOON, || {
        open.retain(|question| question.ask(port).is_err());
        let silent = |question: &Question| {
            SILENT
                .iter()
                .any(|(words, _)| question.expression.contains(words))
        };
        match open.iter().find(|question| !silent(question)) {
            Some(question) => question.ask(port),
            None => Ok(()),
        }
    });
    report(&format!(
        "Prometheus answers {} of {count} queries of the dashboards",
        count - open.len()
    ));
}

/// One expression, with the place that it comes from.
struct Question {
    place: String,
    expression: String,
    /// A label and the value that one of the samples must have for it.
    expected: Option<(String, &'static str)>,
}

impl Question {
    fn ask(&self, port: u16) -> Result<(), String> {
        let mut curl = Command::new("curl");
        curl.args(["-s", "--noproxy", "*", "--max-time", "5", "--data-urlencode"]);
        curl.arg(format!("query={}", self.expression));
        curl.arg(format!("http://localhost:{port}/api/v1/query"));
        let said = host::run(curl, "", COMMAND_DEADLINE);
        let answer: Value = serde_json::from_str(&said.out).map_err(|error| format!("{error}: {said:?}"))?;
        let samples = answer["data"]["result"].as_array().cloned().unwrap_or_default();
        let is_it = |sample: &Value| match &self.expected {
            Some((label, value)) => sample["metric"][label] == *value,
            None => true,
        };
        match samples.iter().any(is_it) {
            true => Ok(()),
            false => Err(format!("{}: {} is {answer}", self.place, self.expression)),
        }
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn dashboards() -> BTreeMap<String, Value> {
    let files = std::fs::read_dir(root().join("grafana")).expect("the dashboards are there");
    let files = files.map(|file| file.expect("it can be listed").path());
    let json = files.filter(|path| path.extension().is_some_and(|extension| extension == "json"));
    json.map(|path| {
        let text = std::fs::read_to_string(&path).expect("it can be read");
        let dashboard = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path:?}: {error}"));
        let name = path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        (name, dashboard)
    })
    .collect()
}

/// What a dashboard asks to fill its variables, and for its panels.
fn questions(name: &str, dashboard: &Value) -> Vec<Question> {
    let array = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let variables = array(&dashboard["templating"]["list"]);
    let fill = |expression: &str| {
        let mut filled = expression
            .replace("$__rate_interval", "10s")
            .replace("$__range", "1m");
        for variable in &variables {
            filled = filled.replace(&format!("${}", text(&variable["name"])), chosen(variable));
        }
        assert!(!filled.contains('$'), "{name}: {filled}");
        filled
    };
    let mut questions = Vec::new();
    for variable in variables.iter().filter(|variable| variable["type"] == "query") {
        let place = format!("{name}, variable {}", variable["name"]);
        let query = fill(text(&variable["query"]["query"]));
        let values = query
            .strip_prefix("label_values(")
            .and_then(|rest| rest.strip_suffix(')'));
        let (series, label) = values
            .and_then(|rest| rest.rsplit_once(", "))
            .unwrap_or_else(|| panic!("{place}: {query}"));
        questions.push(Question {
            place,
            expression: format!("count by ({label}) ({series})"),
            expected: Some((label.to_owned(), chosen(variable))).filter(|(_, value)| *value != ".+"),
        });
    }
    for panel in array(&dashboard["panels"]) {
        for target in array(&panel["targets"]) {
            questions.push(Question {
                place: format!("{name}, panel {}", panel["title"]),
                expression: fill(text(&target["expr"])),
                expected: None,
            });
        }
    }
    questions
}

/// Whether the name occurs in what is built: a misspelt one would stay silent for ever.
fn is_exported(name: &str) -> bool {
    let mut grep = Command::new("grep");
    grep.args(["-rqF", &format!("\"{name}\"")]);
    grep.args(["proxy", "control", "crd"].map(|one| root().join("crates").join(one).join("src")));
    host::run(grep, "", COMMAND_DEADLINE).succeeded()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
