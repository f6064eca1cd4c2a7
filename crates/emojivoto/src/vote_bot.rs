//! `emojivoto-vote-bot`: traffic for the demo. It votes for something every second, 15 % of the time for a doughnut.
//!
//! It never gives up: whatever fails is reported on standard error and tried again at the next turn.

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rand::Rng;
use tokio::net::TcpStream;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::metrics::Metrics;
use crate::process::{self, Env};

const DOUGHNUTS: f64 = 0.15;
/// For one request, connecting included. Longer than any proxy's own retries, short enough to see an outage end.
const PATIENCE: Duration = Duration::from_secs(10);
const LIST_BYTES_MAX: usize = 1 << 20;

/// The program. It takes its settings from the environment: `WEB_HOST` (host:port), `HOST_OVERRIDE` (another Host
/// header), `REQUEST_RATE` (votes a second), `TTL` (seconds after which to stop), `PROM_PORT`.
pub fn main(_arguments: Vec<OsString>) -> ExitCode {
    process::run(|shutdown| async move {
        let env = Env(&|name| std::env::var(name).ok());
        let config = Config::parse(&env)?;
        let prom_port = env
            .optional("PROM_PORT")
            .map(|_| env.port("PROM_PORT"))
            .transpose()?;
        let metrics = Arc::new(Metrics::default());
        let bot = async {
            let speak = |heard: Heard| match heard {
                Heard::Voting(shortcode) => process::say(format_args!("✔ Voting for {shortcode}")),
                Heard::Failed(error) => process::complain(format_args!("error: {error:#}")),
            };
            run(&config, &mut rand::rng(), &metrics, speak, shutdown.clone()).await;
            shutdown.cancel();
        };
        let metrics_served = process::serve_metrics(prom_port, Arc::clone(&metrics), shutdown.clone());
        let (served, ()) = tokio::join!(metrics_served, bot);
        served
    })
}

pub(crate) struct Config {
    web: String,
    host: HeaderValue,
    pause: Duration,
    lifetime: Option<Duration>,
}

impl Config {
    pub(crate) fn parse(env: &Env<'_>) -> anyhow::Result<Self> {
        let web = env.required("WEB_HOST")?;
        let host = env.optional("HOST_OVERRIDE").unwrap_or_else(|| web.clone());
        let host = HeaderValue::try_from(&host).with_context(|| format!("{host:?} is not a host"))?;
        // As in the original, numbers that make no sense mean the default.
        let rate = env.number("REQUEST_RATE", 1_u32).max(1);
        let lifetime = Some(env.number("TTL", 0))
            .filter(|seconds| *seconds > 0)
            .map(Duration::from_secs);
        Ok(Self {
            web: if web.contains(':') {
                web
            } else {
                format!("{web}:80")
            },
            host,
            pause: Duration::from_secs(1) / rate,
            lifetime,
        })
    }
}

/// What the bot says.
pub(crate) enum Heard {
    Voting(String),
    Failed(anyhow::Error),
}

/// Votes until the shutdown or the end of the configured lifetime.
pub(crate) async fn run(
    config: &Config,
    rng: &mut impl Rng,
    metrics: &Metrics,
    mut speak: impl FnMut(Heard),
    shutdown: CancellationToken,
) {
    let mut web = Web {
        config,
        connection: None,
    };
    let mut turns = tokio::time::interval_at(Instant::now() + config.pause, config.pause);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let lifetime = async {
        match config.lifetime {
            Some(lifetime) => tokio::time::sleep(lifetime).await,
            None => std::future::pending().await,
        }
    };
    let votes = async {
        loop {
            turns.tick().await;
            let result = match vote(&mut web, rng, &mut speak).await {
                Ok(()) => "success",
                Err(error) => {
                    speak(Heard::Failed(error));
                    "failure"
                }
            };
            metrics.count(
                "emojivoto_bot_votes_total",
                "Votes of the bot",
                &[("result", result)],
            );
        }
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = lifetime => {}
        () = votes => {}
    }
}

async fn vote(web: &mut Web<'_>, rng: &mut impl Rng, speak: &mut impl FnMut(Heard)) -> anyhow::Result<()> {
    #[derive(serde::Deserialize)]
    struct Emoji {
        shortcode: String,
    }
    let (status, list) = web.get("/api/list").await.context("reading the list of emoji")?;
    if status != StatusCode::OK {
        bail!("reading the list of emoji: {status}");
    }
    let list: Vec<Emoji> = serde_json::from_slice(&list).context("reading the list of emoji")?;
    let shortcode = if rng.random_bool(DOUGHNUTS) || list.is_empty() {
        ":doughnut:"
    } else {
        &list[rng.random_range(..list.len())].shortcode
    };
    speak(Heard::Voting(shortcode.to_owned()));
    let voting = || format!("voting for {shortcode}");
    let (status, body) = web
        .get(&format!("/api/vote?choice={shortcode}"))
        .await
        .with_context(voting)?;
    if !status.is_success() {
        bail!(
            "{}: {status}: {}",
            voting(),
            String::from_utf8_lossy(&body).trim_end()
        );
    }
    Ok(())
}

/// One kept connection to web, made anew after anything goes wrong.
struct Web<'a> {
    config: &'a Config,
    connection: Option<(SendRequest<Empty<Bytes>>, AbortOnDropHandle<()>)>,
}

impl Web<'_> {
    async fn get(&mut self, path: &str) -> anyhow::Result<(StatusCode, Bytes)> {
        // Taken out, so that an answer that was not read to its end takes its connection with it.
        let kept = self.connection.take().filter(|(sender, _)| sender.is_ready());
        tokio::time::timeout(PATIENCE, async {
            let (mut sender, driver) = match kept {
                Some(kept) => kept,
                None => self.connect().await?,
            };
            let mut request = Request::new(Empty::new());
            *request.uri_mut() = Uri::try_from(path)?;
            request
                .headers_mut()
                .insert(header::HOST, self.config.host.clone());
            let (head, body) = sender.send_request(request).await?.into_parts();
            let body = Limited::new(body, LIST_BYTES_MAX).collect().await;
            let body = body.map_err(anyhow::Error::from_boxed)?.to_bytes();
            // Waits for the moment at which the connection can take the next request.
            if sender.ready().await.is_ok() {
                self.connection = Some((sender, driver));
            }
            Ok((head.status, body))
        })
        .await
        .with_context(|| format!("no answer within {PATIENCE:?}"))?
    }

    async fn connect(&self) -> anyhow::Result<(SendRequest<Empty<Bytes>>, AbortOnDropHandle<()>)> {
        let web = &self.config.web;
        let stream = TcpStream::connect(web)
            .await
            .with_context(|| format!("connecting to {web}"))?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let driver = tokio::spawn(async {
            // Its error reaches the request that waits for it.
            let _ = connection.await;
        });
        Ok((sender, AbortOnDropHandle::new(driver)))
    }
}
