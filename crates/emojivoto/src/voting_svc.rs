//! `emojivoto-voting-svc`: counts votes in memory, by gRPC, one method per emoji.
//!
//! A vote for a doughnut fails with the probability `FAILURE_RATE` (always, unless set): the fault that the workshop's
//! tools are supposed to find.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::emoji;
use crate::grpc::{self, Empty, ResultsResponse, VOTING_SERVICE, VotingResult};
use crate::metrics::Metrics;
use crate::process::{self, Env, say};

/// The program. It takes its settings from the environment: `GRPC_PORT`, `PROM_PORT`, `FAILURE_RATE` (0.0 to 1.0) and
/// `ARTIFICIAL_DELAY` (such as `250ms` or `1.5s`) before each vote.
pub fn main(_arguments: Vec<OsString>) -> ExitCode {
    process::run(|shutdown| async move {
        let env = Env(&|name| std::env::var(name).ok());
        let port = env.port("GRPC_PORT")?;
        let prom_port = env
            .optional("PROM_PORT")
            .map(|_| env.port("PROM_PORT"))
            .transpose()?;
        let poll = Poll::new(Config::parse(&env));
        let listener = process::listen(port).await?;
        say(format_args!("Starting grpc server on GRPC_PORT=[{port}]"));
        let metrics = Arc::clone(&poll.metrics);
        let metrics_served = process::serve_metrics(prom_port, metrics, shutdown.clone());
        let (served, ()) = tokio::join!(metrics_served, serve(listener, poll, shutdown));
        served
    })
}

pub(crate) struct Config {
    pub(crate) failure_rate: f64,
    pub(crate) delay: Duration,
}

impl Config {
    pub(crate) fn parse(env: &Env<'_>) -> Self {
        let delay = env
            .optional("ARTIFICIAL_DELAY")
            .and_then(|text| duration(&text))
            .unwrap_or_default();
        Self {
            failure_rate: env.number("FAILURE_RATE", 1.0),
            delay,
        }
    }
}

/// `250ms` or `1.5s`.
fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = match text.strip_suffix("ms") {
        Some(number) => (number, 0.001),
        None => (text.strip_suffix('s')?, 1.0),
    };
    Duration::try_from_secs_f64(number.parse::<f64>().ok()? * unit).ok()
}

pub(crate) struct Poll {
    config: Config,
    /// Shortcode by method name.
    methods: HashMap<String, &'static str>,
    votes: Mutex<BTreeMap<&'static str, i32>>,
    pub(crate) metrics: Arc<Metrics>,
}

impl Poll {
    pub(crate) fn new(config: Config) -> Arc<Self> {
        let methods = emoji::ALL
            .iter()
            .map(|(shortcode, _)| (emoji::method(shortcode), *shortcode))
            .collect();
        Arc::new(Self {
            config,
            methods,
            votes: Mutex::default(),
            metrics: Arc::default(),
        })
    }

    fn vote(&self, shortcode: &'static str) -> Result<Empty, Status> {
        if shortcode == ":doughnut:" && rand::random::<f64>() < self.config.failure_rate {
            say(format_args!("logging an error for doughnut"));
            return Err(Status::unknown("ERROR"));
        }
        let total = {
            let mut votes = self.votes.lock().unwrap_or_else(PoisonError::into_inner);
            let total = votes.entry(shortcode).or_default();
            *total = total.saturating_add(1);
            *total
        };
        self.metrics.count(
            "emojivoto_votes_total",
            "Number of emoji votes",
            &[("emoji", shortcode)],
        );
        say(format_args!(
            "Voted for [{shortcode}], which now has a total of [{total}] votes"
        ));
        Ok(Empty {})
    }

    /// The leader first.
    fn results(&self) -> ResultsResponse {
        let votes = self.votes.lock().unwrap_or_else(PoisonError::into_inner);
        let results = votes.iter().map(|(shortcode, votes)| (*shortcode, *votes));
        let mut results: Vec<_> = results
            .map(|(shortcode, votes)| VotingResult {
                shortcode: shortcode.into(),
                votes,
            })
            .collect();
        results.sort_by_key(|result| std::cmp::Reverse(result.votes));
        ResultsResponse { results }
    }
}

pub(crate) async fn serve(listener: TcpListener, poll: Arc<Poll>, shutdown: CancellationToken) {
    process::serve(listener, shutdown, move |request| {
        let poll = Arc::clone(&poll);
        async move {
            let method = grpc::method(&request, VOTING_SERVICE).unwrap_or_default();
            if method == "Results" {
                return grpc::answer(request, &poll.metrics, |_: Empty| Ok(poll.results())).await;
            }
            let Some(shortcode) = poll.methods.get(method).copied() else {
                return grpc::unimplemented();
            };
            tokio::time::sleep(poll.config.delay).await;
            grpc::answer(request, &poll.metrics, |_: Empty| poll.vote(shortcode)).await
        }
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delay_is_seconds_or_milliseconds() {
        for (text, expected) in [
            ("250ms", Some(Duration::from_millis(250))),
            ("1.5s", Some(Duration::from_millis(1500))),
            ("-1s", None),
            ("soon", None),
        ] {
            assert_eq!(duration(text), expected);
        }
    }

    #[test]
    fn the_emoji_with_most_votes_leads() {
        let poll = Poll::new(Config {
            failure_rate: 1.0,
            delay: Duration::ZERO,
        });
        for shortcode in [":joy:", ":taco:", ":doughnut:", ":taco:"] {
            let _ = poll.vote(shortcode);
        }
        let votes = |shortcode: &str, votes| VotingResult {
            shortcode: shortcode.into(),
            votes,
        };
        assert_eq!(poll.results().results, [votes(":taco:", 2), votes(":joy:", 1)]);
    }
}
