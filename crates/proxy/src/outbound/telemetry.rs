//! What is counted per request, resolved once per endpoint (`spec/proxy.md` 8.2).

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;

use crate::body::OnEnd;
use crate::metrics::{Counter, Labels, Latency, Shard};
use crate::tap::{Broken, Told};

use super::circuit::Outcome;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kind {
    status: u16,
    grpc: Option<u32>,
    success: bool,
}

/// Is it gRPC, and what did it say?
#[derive(Clone, Copy, Debug)]
pub(crate) enum Grpc {
    No,
    Status(Option<u32>),
}

/// Counters of one endpoint or one inbound route.
pub(crate) struct HttpMetrics {
    pub(crate) requests: Arc<Counter>,
    shard: Shard,
    labels: Labels,
    responses: RefCell<Vec<(Kind, Arc<Counter>)>>,
    latencies: RefCell<Vec<(u16, Arc<Latency>)>>,
}

impl HttpMetrics {
    pub(crate) fn new(shard: &Shard, labels: Labels) -> Rc<Self> {
        Rc::new(Self {
            requests: shard.counter("request_total", labels.clone()),
            shard: shard.clone(),
            labels,
            responses: RefCell::default(),
            latencies: RefCell::default(),
        })
    }

    /// Which route these are of, as its labels say: `group`, `kind` and `name`.
    pub(crate) fn route(&self) -> BTreeMap<String, String> {
        let pairs = self.labels.pairs().into_iter();
        pairs
            .filter_map(|(name, value)| Some((name.strip_prefix("route_")?.to_owned(), value)))
            .collect()
    }

    /// Counts a response; says whether it was a success.
    pub(crate) fn response(&self, status: StatusCode, grpc: Grpc, complete: bool, elapsed: Duration) -> bool {
        let failed = match grpc {
            Grpc::Status(Some(code)) => matches!(code, 2 | 4 | 7 | 13 | 14 | 15),
            Grpc::Status(None) | Grpc::No => status.is_server_error(),
        };
        let grpc = match grpc {
            Grpc::Status(code) => Some(code.unwrap_or(2)),
            Grpc::No => None,
        };
        let outcome = Kind {
            status: status.as_u16(),
            grpc,
            success: !failed && complete,
        };
        // A handful of outcomes per endpoint: looking through them is quicker than hashing.
        let mut responses = self.responses.borrow_mut();
        match responses.iter().find(|(known, _)| *known == outcome) {
            Some((_, counter)) => counter.inc(),
            None => {
                let mut labels = self.labels.with("status_code", outcome.status);
                labels.push(
                    "classification",
                    if outcome.success { "success" } else { "failure" },
                );
                if let Some(code) = grpc {
                    labels.push("grpc_status", code);
                }
                let counter = self.shard.counter("response_total", labels);
                counter.inc();
                responses.push((outcome, counter));
            }
        }
        let mut latencies = self.latencies.borrow_mut();
        match latencies.iter().find(|(known, _)| *known == outcome.status) {
            Some((_, latency)) => latency.observe(elapsed),
            None => {
                let labels = self.labels.with("status_code", outcome.status);
                let latency = self.shard.latency("response_latency_ms", labels);
                latency.observe(elapsed);
                latencies.push((outcome.status, latency));
            }
        }
        outcome.success
    }
}

/// How a response ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Complete(Outcome),
    /// The server's side broke.
    Broken,
    /// The client went away.
    Abandoned,
}

/// What is done when a response has ended: connections are kept, loads settled.
pub(crate) trait Finish {
    fn finish(self, end: End);
}

/// Counts a response when its body has ended, and then finishes.
pub(crate) struct ResponseEnd<F: Finish> {
    pub(crate) metrics: Rc<HttpMetrics>,
    pub(crate) status: StatusCode,
    /// From the head, of a response without body.
    pub(crate) grpc: Option<u32>,
    pub(crate) is_grpc: bool,
    pub(crate) started_at: Instant,
    /// When its head was here.
    pub(crate) answered_at: Instant,
    /// For those who watch requests.
    pub(crate) told: Option<Box<Told>>,
    pub(crate) finish: Option<F>,
}

impl<F: Finish> ResponseEnd<F> {
    /// `broken`: how it ended, if not by itself.
    fn over(&mut self, trailers: Option<u32>, broken: Option<End>) {
        if self.finish.is_some() {
            self.over_after(self.started_at.elapsed(), trailers, broken);
        }
    }

    fn over_after(&mut self, elapsed: Duration, trailers: Option<u32>, broken: Option<End>) {
        let Some(finish) = self.finish.take() else { return };
        let code = self.grpc.or(trailers).filter(|_| self.is_grpc);
        let grpc = if self.is_grpc {
            Grpc::Status(code)
        } else {
            Grpc::No
        };
        let success = self
            .metrics
            .response(self.status, grpc, broken.is_none(), elapsed);
        if let Some(told) = self.told.take() {
            match broken {
                None | Some(End::Complete(_)) => told.ended(code),
                Some(End::Broken) => told.broke(Broken::ByServer),
                Some(End::Abandoned) => told.broke(Broken::ByClient),
            }
        }
        finish.finish(broken.unwrap_or_else(|| End::Complete(Outcome::of(success, self.status, code))));
    }
}

impl<F: Finish> OnEnd for ResponseEnd<F> {
    fn passed(&mut self, bytes: usize) {
        if let Some(told) = &mut self.told {
            told.passed(bytes);
        }
    }

    fn end(mut self, grpc_status: Option<u32>) {
        self.over(grpc_status, None);
    }

    fn end_at_once(mut self) {
        let elapsed = self.answered_at.duration_since(self.started_at);
        self.over_after(elapsed, None, None);
    }

    fn fail(mut self) {
        self.over(None, Some(End::Broken));
    }
}

impl<F: Finish> Drop for ResponseEnd<F> {
    /// The client went away.
    fn drop(&mut self) {
        self.over(None, Some(End::Abandoned));
    }
}
