//! A conversation with an API server as data, and its transcript.
//!
//! A transcript holds what a case asks to be shown, without what differs from run to run. Knows not who answers.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use kube::Client;
use kube::client::Body;
use regex::Regex;
use serde_json::Value;

/// For what controllers do, and a restart, on a machine with other things to do.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// No methods of HTTP.
const RESTART: &str = "RESTART";
const COMPACT: &str = "COMPACT";

/// Whom the questions are put to.
pub(crate) struct Server {
    pub(crate) client: Client,
    pub(crate) restart: Box<dyn Fn()>,
    /// Makes the store forget what was before this version.
    pub(crate) compact: Box<dyn Fn(String) -> BoxFuture<'static, Result<(), String>>>,
}

/// One claim about an API server's behaviour.
pub(crate) struct Case {
    pub(crate) area: &'static str,
    pub(crate) claim: &'static str,
    pub(crate) steps: Vec<Step>,
}

/// One request. `{ns}` is the case's namespace, `{hooks}` where webhooks are and `{hooks-ca}` how to know them; other
/// names in braces are what earlier steps kept.
#[derive(Clone)]
pub(crate) struct Step {
    method: &'static str,
    path: String,
    accept: &'static str,
    content_type: &'static str,
    body: Option<Value>,
    shown: Vec<&'static str>,
    kept: Vec<(&'static str, &'static str)>,
    until: Option<fn(u16, &Value) -> bool>,
    first: usize,
    is_quiet: bool,
}

fn step(method: &'static str, path: &str, content_type: &'static str, body: Option<Value>) -> Step {
    Step {
        method,
        path: path.to_owned(),
        accept: "application/json",
        content_type,
        body,
        shown: Vec::new(),
        kept: Vec::new(),
        until: None,
        first: usize::MAX,
        is_quiet: false,
    }
}

pub(crate) fn get(path: &str) -> Step {
    step("GET", path, "", None)
}

pub(crate) fn post(path: &str, body: Value) -> Step {
    step("POST", path, "application/json", Some(body))
}

pub(crate) fn put(path: &str, body: Value) -> Step {
    step("PUT", path, "application/json", Some(body))
}

pub(crate) fn merge(path: &str, body: Value) -> Step {
    step("PATCH", path, "application/merge-patch+json", Some(body))
}

pub(crate) fn strategic(path: &str, body: Value) -> Step {
    step(
        "PATCH",
        path,
        "application/strategic-merge-patch+json",
        Some(body),
    )
}

pub(crate) fn json_patch(path: &str, body: Value) -> Step {
    step("PATCH", path, "application/json-patch+json", Some(body))
}

pub(crate) fn apply(path: &str, body: Value) -> Step {
    step("PATCH", path, "application/apply-patch+yaml", Some(body))
}

/// The API server ends and comes back: nothing that is open stays open, nothing that was stored is lost.
pub(crate) fn restart() -> Step {
    step(RESTART, "", "", None).quiet()
}

/// The store forgets what was before a version that an earlier step kept, as it does every five minutes.
pub(crate) fn compact(version: &str) -> Step {
    step(COMPACT, version, "", None).quiet()
}

pub(crate) fn delete(path: &str) -> Step {
    step("DELETE", path, "", None)
}

impl Step {
    /// Parts of the answer that the transcript shows, as JSON pointers; of each event if there are several.
    pub(crate) fn shows(mut self, pointers: &[&'static str]) -> Self {
        self.shown.extend(pointers);
        self
    }

    /// Part of the answer that later steps name.
    pub(crate) fn keeps(mut self, name: &'static str, pointer: &'static str) -> Self {
        self.kept.push((name, pointer));
        self
    }

    /// Asks again until code and answer are as they should become.
    pub(crate) fn until(mut self, done: fn(u16, &Value) -> bool) -> Self {
        self.until = Some(done);
        self
    }

    /// Of several events only these many, where what follows depends on time.
    pub(crate) fn first(mut self, count: usize) -> Self {
        self.first = count;
        self
    }

    pub(crate) fn accepts(mut self, media: &'static str) -> Self {
        self.accept = media;
        self
    }

    pub(crate) fn with_body(mut self, body: Value) -> Self {
        self.content_type = "application/json";
        self.body = Some(body);
        self
    }

    /// Prepares or cleans up: it must succeed unless it is waited for, and the transcript says nothing of it.
    pub(crate) fn quiet(mut self) -> Self {
        self.is_quiet = true;
        self
    }
}

/// What the case's conversation showed.
pub(crate) async fn play(
    server: &Server,
    case: &Case,
    known: &[(&'static str, &str)],
) -> Result<String, String> {
    let mut kept: BTreeMap<_, _> = known
        .iter()
        .map(|&(name, value)| (name, value.to_owned()))
        .collect();
    let mut transcript = String::new();
    for step in &case.steps {
        if step.method == RESTART {
            (server.restart)();
            continue;
        }
        if step.method == COMPACT {
            let version = kept.get(step.path.as_str()).cloned();
            (server.compact)(version.ok_or_else(|| format!("nothing kept {}", step.path))?).await?;
            continue;
        }
        let (code, answers) = answer(&server.client, step, &kept).await?;
        if step.is_quiet && step.until.is_none() && !(200..300).contains(&code) {
            return Err(format!("{} {}: {code} {answers:?}", step.method, step.path));
        }
        for (name, pointer) in &step.kept {
            let value = answers.first().and_then(|answer| answer.pointer(pointer));
            let value = value.ok_or_else(|| format!("{}: no {pointer} in {answers:?}", step.path))?;
            kept.insert(
                name,
                value.as_str().map_or_else(|| value.to_string(), str::to_owned),
            );
        }
        if step.is_quiet {
            continue;
        }
        let _ = writeln!(transcript, "{} {} -> {code}", step.method, step.path);
        for answer in answers.iter().take(step.first) {
            for pointer in &step.shown {
                let value = answer.pointer(pointer);
                let value = value.map_or_else(|| "absent".to_owned(), Value::to_string);
                let _ = writeln!(transcript, "  {pointer}: {}", timeless(&value, known));
            }
        }
    }
    Ok(transcript)
}

async fn answer(
    client: &Client,
    step: &Step,
    kept: &BTreeMap<&'static str, String>,
) -> Result<(u16, Vec<Value>), String> {
    let began = Instant::now();
    loop {
        let asked = ask(client, step, kept).await;
        let done = match (&asked, step.until) {
            (Ok((code, answers)), Some(done)) => done(*code, answers.first().unwrap_or(&Value::Null)),
            // Who restarts does not answer.
            (Err(_), Some(_)) => false,
            (_, None) => true,
        };
        if done {
            return asked;
        }
        if began.elapsed() > PATIENCE {
            return Err(format!("{} is still {asked:?}", step.path));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn ask(
    client: &Client,
    step: &Step,
    kept: &BTreeMap<&'static str, String>,
) -> Result<(u16, Vec<Value>), String> {
    let filled = |text: &str| {
        kept.iter().fold(text.to_owned(), |text, (name, value)| {
            text.replace(&format!("{{{name}}}"), value)
        })
    };
    let mut request = http::Request::builder()
        .method(step.method)
        .uri(filled(&step.path))
        .header("accept", step.accept);
    if !step.content_type.is_empty() {
        request = request.header("content-type", step.content_type);
    }
    let body = step
        .body
        .as_ref()
        .map(|body| filled(&body.to_string()).into_bytes());
    let request = request
        .body(Body::from(body.unwrap_or_default()))
        .map_err(|error| error.to_string())?;
    let response = client.send(request).await.map_err(|error| error.to_string())?;
    let code = response.status().as_u16();
    let bytes = response
        .into_body()
        .collect_bytes()
        .await
        .map_err(|error| error.to_string())?;
    // A watch answers with one event per line.
    let values = serde_json::Deserializer::from_slice(&bytes).into_iter::<Value>();
    let plain = || vec![Value::String(String::from_utf8_lossy(&bytes).into_owned())];
    Ok((code, values.collect::<Result<_, _>>().unwrap_or_else(|_| plain())))
}

/// Without what differs from run to run.
fn timeless(text: &str, known: &[(&'static str, &str)]) -> String {
    let replaced = [
        (
            r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
            "UID",
        ),
        (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "TIME"),
        (r#""resourceVersion":"\d+""#, r#""resourceVersion":"RV""#),
        (r"made-[a-z0-9]{5}", "made-NAME"),
        (r"resource version: \d+ \(\d+\)", "resource version: RV (RV)"),
    ];
    let named = known.iter().fold(text.to_owned(), |text, (name, value)| {
        text.replace(value, &name.to_uppercase())
    });
    replaced.iter().fold(named, |text, (pattern, with)| {
        let pattern = Regex::new(pattern).expect("a pattern");
        pattern.replace_all(&text, *with).into_owned()
    })
}
