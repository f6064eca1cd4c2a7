//! `emojivoto-web`: the page, and a REST interface in front of the two gRPC services.
//!
//! The page is static and asks the REST interface, so it loads even when everything behind it is gone and can say so.

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body;
use tonic::transport::{Channel, Endpoint};

use crate::emoji;
use crate::grpc::{
    self, EMOJI_SERVICE, Empty, FindByShortcodeRequest, FindByShortcodeResponse, ListAllEmojiResponse,
    ResultsResponse, VOTING_SERVICE,
};
use crate::metrics::Metrics;
use crate::process::{self, Env, respond, say};

/// The program. It takes its settings from the environment: `WEB_PORT`, `EMOJISVC_HOST` and `VOTINGSVC_HOST`
/// (host:port), `MESSAGE_OF_THE_DAY`, `PROM_PORT`. `INDEX_BUNDLE` is accepted and ignored: the page is built in.
pub fn main(_arguments: Vec<OsString>) -> ExitCode {
    process::run(|shutdown| async move {
        let env = Env(&|name| std::env::var(name).ok());
        let port = env.port("WEB_PORT")?;
        let prom_port = env
            .optional("PROM_PORT")
            .map(|_| env.port("PROM_PORT"))
            .transpose()?;
        let web = Web::new(&env)?;
        let listener = process::listen(port).await?;
        say(format_args!("Starting web server on WEB_PORT=[{port}]"));
        let metrics_served = process::serve_metrics(prom_port, Arc::clone(&web.metrics), shutdown.clone());
        let (served, ()) = tokio::join!(metrics_served, serve(listener, web, shutdown));
        served
    })
}

pub(crate) struct Web {
    emoji: Channel,
    voting: Channel,
    page: String,
    metrics: Arc<Metrics>,
}

impl Web {
    /// Must be called within a tokio runtime. Connects when first asked, and again whenever needed.
    pub(crate) fn new(env: &Env<'_>) -> anyhow::Result<Arc<Self>> {
        let page = include_str!("../assets/index.html")
            .replace(
                "{{message}}",
                &escape(&env.optional("MESSAGE_OF_THE_DAY").unwrap_or_default()),
            )
            .replace("{{host}}", &escape(&env.optional("HOSTNAME").unwrap_or_default()));
        Ok(Arc::new(Self {
            emoji: channel(&env.required("EMOJISVC_HOST")?)?,
            voting: channel(&env.required("VOTINGSVC_HOST")?)?,
            page,
            metrics: Arc::default(),
        }))
    }

    async fn handle(&self, request: &Request<Incoming>) -> Response<Body> {
        let path = request.uri().path();
        let (route, response) = match path {
            "/" | "/leaderboard" => (
                "/",
                respond(StatusCode::OK, "text/html; charset=utf-8", self.page.clone()),
            ),
            "/js" => (
                "/js",
                respond(StatusCode::OK, "text/javascript; charset=utf-8", SCRIPT),
            ),
            "/css" => ("/css", respond(StatusCode::OK, "text/css; charset=utf-8", STYLE)),
            "/img/favicon.svg" => ("/img", respond(StatusCode::OK, "image/svg+xml", ICON)),
            "/api/list" => ("/api/list", json_or_error(path, self.list().await)),
            "/api/leaderboard" => ("/api/leaderboard", json_or_error(path, self.leaderboard().await)),
            "/api/vote" => {
                let choice = choice(request.uri().query().unwrap_or_default());
                let voted = self.vote(&choice).await;
                let response = match voted {
                    Ok(()) => Response::new(Body::empty()),
                    Err(refusal) => refusal.respond(path),
                };
                ("/api/vote", response)
            }
            _ => (
                "other",
                respond(StatusCode::NOT_FOUND, "text/plain", "404 page not found\n"),
            ),
        };
        self.metrics.count(
            "emojivoto_web_requests_total",
            "Requests by route and status",
            &[("route", route), ("status", response.status().as_str())],
        );
        response
    }

    async fn list(&self) -> Result<serde_json::Value, Refusal> {
        let all: ListAllEmojiResponse = grpc::call(&self.emoji, EMOJI_SERVICE, "ListAll", Empty {}).await?;
        Ok(json!(all.list))
    }

    async fn leaderboard(&self) -> Result<serde_json::Value, Refusal> {
        let all: ResultsResponse = grpc::call(&self.voting, VOTING_SERVICE, "Results", Empty {}).await?;
        let mut board = Vec::new();
        for result in all.results {
            let Some(emoji) = self.find(&result.shortcode).await? else {
                continue;
            };
            let votes = result.votes.to_string();
            board.push(json!({"shortcode": emoji.shortcode, "unicode": emoji.unicode, "votes": votes}));
        }
        Ok(board.into())
    }

    async fn vote(&self, choice: &str) -> Result<(), Refusal> {
        if choice.is_empty() {
            return Err(Refusal::Request(format!("Emoji choice [{choice}] is mandatory")));
        }
        let Some(emoji) = self.find(choice).await? else {
            return Err(Refusal::Request(format!(
                "Choosen emoji shortcode [{choice}] doesnt exist"
            )));
        };
        let method = emoji::method(&emoji.shortcode);
        let Empty {} = grpc::call(&self.voting, VOTING_SERVICE, &method, Empty {}).await?;
        Ok(())
    }

    async fn find(&self, shortcode: &str) -> Result<Option<grpc::Emoji>, Status> {
        let wanted = FindByShortcodeRequest {
            shortcode: shortcode.to_owned(),
        };
        let found: FindByShortcodeResponse =
            grpc::call(&self.emoji, EMOJI_SERVICE, "FindByShortcode", wanted).await?;
        Ok(found.emoji)
    }
}

const SCRIPT: &str = include_str!("../assets/page.js");
const STYLE: &str = include_str!("../assets/page.css");
const ICON: &str = include_str!("../assets/favicon.svg");

pub(crate) async fn serve(listener: TcpListener, web: Arc<Web>, shutdown: CancellationToken) {
    process::serve(listener, shutdown, move |request| {
        let web = Arc::clone(&web);
        async move {
            let mut response = web.handle(&request).await;
            let policy = HeaderValue::from_static("default-src 'self'");
            response
                .headers_mut()
                .insert(header::CONTENT_SECURITY_POLICY, policy);
            response
        }
    })
    .await;
}

fn channel(host: &str) -> anyhow::Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{host}"))
        .with_context(|| format!("{host:?} is not a host and port"))?
        .connect_timeout(Duration::from_secs(2))
        .timeout(Duration::from_secs(5))
        // A pod that vanished with its network never says goodbye; without pings its connection would be kept.
        .http2_keep_alive_interval(Duration::from_secs(5))
        .keep_alive_timeout(Duration::from_secs(2))
        .keep_alive_while_idle(true);
    Ok(endpoint.connect_lazy())
}

/// Why a REST request failed.
#[derive(Debug)]
enum Refusal {
    Request(String),
    Service(Status),
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        Self::Service(status)
    }
}

impl Refusal {
    fn respond(self, path: &str) -> Response<Body> {
        let (status, error) = match self {
            Self::Request(error) => (StatusCode::BAD_REQUEST, error),
            Self::Service(status) => {
                let error = format!(
                    "rpc error: code = {:?} desc = {}",
                    status.code(),
                    status.message()
                );
                (StatusCode::INTERNAL_SERVER_ERROR, error)
            }
        };
        process::complain(format_args!("Error serving request [{path}]: {error}"));
        respond(
            status,
            "application/json; charset=UTF-8",
            format!("{}\n", json!({"error": error})),
        )
    }
}

fn json_or_error(path: &str, answer: Result<serde_json::Value, Refusal>) -> Response<Body> {
    match answer {
        Ok(body) => respond(
            StatusCode::OK,
            "application/json; charset=UTF-8",
            format!("{body}\n"),
        ),
        Err(refusal) => refusal.respond(path),
    }
}

/// The value of `choice` in a query string.
fn choice(query: &str) -> String {
    let value = query
        .split('&')
        .find_map(|pair| pair.strip_prefix("choice="))
        .unwrap_or_default();
    let mut bytes = value.bytes();
    let mut decoded = Vec::with_capacity(value.len());
    while let Some(byte) = bytes.next() {
        let hex = |digit: Option<u8>| {
            char::from(digit?)
                .to_digit(16)
                .and_then(|digit| u8::try_from(digit).ok())
        };
        decoded.push(match byte {
            b'+' => b' ',
            b'%' => {
                let (high, low) = (hex(bytes.next()), hex(bytes.next()));
                let (Some(high), Some(low)) = (high, low) else {
                    return String::new();
                };
                high << 4 | low
            }
            byte => byte,
        });
    }
    String::from_utf8(decoded).unwrap_or_default()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::choice;

    #[test]
    fn a_choice_is_percent_decoded() {
        for (query, expected) in [
            ("choice=:joy:", ":joy:"),
            ("a=b&choice=%3Ataco%3a", ":taco:"),
            ("choice=%3", ""),
            ("choice=%ff", ""),
            ("", ""),
        ] {
            assert_eq!(choice(query), expected);
        }
    }
}
