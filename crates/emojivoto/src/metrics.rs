//! Counters in Prometheus text form, served on `PROM_PORT`.
//!
//! Callers pass label values from fixed sets only; nothing here bounds the number of series.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use tonic::body::Body;

use crate::process::respond;

#[derive(Default)]
pub(crate) struct Metrics(Mutex<BTreeMap<&'static str, Family>>);

#[derive(Default)]
struct Family {
    help: &'static str,
    /// By label text, for example `emoji=":joy:"`.
    series: BTreeMap<String, u64>,
}

impl Metrics {
    pub(crate) fn count(&self, name: &'static str, help: &'static str, labels: &[(&str, &str)]) {
        let mut text = String::new();
        for (label, value) in labels {
            let comma = if text.is_empty() { "" } else { "," };
            let _ = write!(text, "{comma}{label}={value:?}");
        }
        let mut families = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let family = families.entry(name).or_default();
        family.help = help;
        *family.series.entry(text).or_default() += 1;
    }

    pub(crate) fn render(&self) -> String {
        let mut text = String::new();
        for (name, family) in self.0.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let _ = writeln!(text, "# HELP {name} {}\n# TYPE {name} counter", family.help);
            for (labels, value) in &family.series {
                let _ = writeln!(text, "{name}{{{labels}}} {value}");
            }
        }
        text
    }

    pub(crate) fn handle(&self, request: &Request<Incoming>) -> Response<Body> {
        match request.uri().path() {
            "/metrics" => respond(StatusCode::OK, "text/plain; version=0.0.4", self.render()),
            _ => respond(StatusCode::NOT_FOUND, "text/plain", "see /metrics\n"),
        }
    }
}
