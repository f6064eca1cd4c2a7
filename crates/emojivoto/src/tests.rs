//! The four programs together, on loopback.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::metrics::Metrics;
use crate::process::Env;
use crate::vote_bot::Heard;
use crate::{emoji_svc, vote_bot, voting_svc, web};

struct Emojivoto {
    web: SocketAddr,
    voting: Arc<Metrics>,
    shutdown: CancellationToken,
    tasks: TaskTracker,
}

impl Emojivoto {
    async fn start() -> Self {
        let (emoji_listener, emoji) = listen().await;
        let (voting_listener, voting) = listen().await;
        let (web_listener, web) = listen().await;
        let shutdown = CancellationToken::new();
        let tasks = TaskTracker::new();
        let env = env([
            ("EMOJISVC_HOST", emoji.to_string()),
            ("VOTINGSVC_HOST", voting.to_string()),
        ]);
        let env = Env(&env);
        let poll = voting_svc::Poll::new(voting_svc::Config::parse(&env));
        let votes = Arc::clone(&poll.metrics);
        tasks.spawn(emoji_svc::serve(emoji_listener, Arc::default(), shutdown.clone()));
        tasks.spawn(voting_svc::serve(voting_listener, poll, shutdown.clone()));
        tasks.spawn(web::serve(
            web_listener,
            web::Web::new(&env).unwrap(),
            shutdown.clone(),
        ));
        tasks.close();
        Self {
            web,
            voting: votes,
            shutdown,
            tasks,
        }
    }

    async fn get(&self, path: &str) -> (StatusCode, String) {
        let stream = TcpStream::connect(self.web).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        let driver = tokio::spawn(connection);
        let request = Request::get(path)
            .header("host", "web-svc")
            .body(Empty::<Bytes>::new())
            .unwrap();
        let response = sender.send_request(request).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        driver.abort();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    async fn json(&self, path: &str) -> (StatusCode, Value) {
        let (status, body) = self.get(path).await;
        (status, serde_json::from_str(&body).unwrap())
    }

    /// Every server must drain and end.
    async fn stop(self) {
        self.shutdown.cancel();
        self.tasks.wait().await;
    }
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

fn env<const N: usize>(values: [(&'static str, String); N]) -> impl Fn(&str) -> Option<String> {
    let values = BTreeMap::from(values);
    move |name| values.get(name).cloned()
}

#[tokio::test]
async fn votes_appear_on_the_leaderboard_with_the_leader_first() {
    let app = Emojivoto::start().await;
    for choice in [":taco:", ":100:", "%3Ataco%3A"] {
        assert_eq!(
            app.get(&format!("/api/vote?choice={choice}")).await,
            (StatusCode::OK, String::new())
        );
    }
    let expected = json!([
        {"shortcode": ":taco:", "unicode": "🌮", "votes": "2"},
        {"shortcode": ":100:", "unicode": "💯", "votes": "1"},
    ]);
    assert_eq!(app.json("/api/leaderboard").await, (StatusCode::OK, expected));
    let votes = app.voting.render();
    assert!(
        votes.contains("emojivoto_votes_total{emoji=\":taco:\"} 2\n"),
        "{votes}"
    );
    app.stop().await;
}

#[tokio::test]
async fn every_emoji_on_the_list_except_the_doughnut_can_be_voted_for() {
    let app = Emojivoto::start().await;
    let (_, list) = app.json("/api/list").await;
    let mut failed = Vec::new();
    for emoji in list.as_array().unwrap() {
        let shortcode = emoji["shortcode"].as_str().unwrap();
        if app.get(&format!("/api/vote?choice={shortcode}")).await.0 != StatusCode::OK {
            failed.push(shortcode);
        }
    }
    assert_eq!((list.as_array().unwrap().len(), failed), (99, vec![":doughnut:"]));
    app.stop().await;
}

#[tokio::test]
async fn errors_say_what_the_original_says() {
    let app = Emojivoto::start().await;
    for (path, status, error) in [
        ("/api/vote", 400, "Emoji choice [] is mandatory"),
        (
            "/api/vote?choice=:hawser:",
            400,
            "Choosen emoji shortcode [:hawser:] doesnt exist",
        ),
        (
            "/api/vote?choice=:doughnut:",
            500,
            "rpc error: code = Unknown desc = ERROR",
        ),
    ] {
        let status = StatusCode::from_u16(status).unwrap();
        assert_eq!(app.json(path).await, (status, json!({"error": error})), "{path}");
    }
    app.stop().await;
}

#[tokio::test]
async fn the_page_loads_without_the_services_behind_it() {
    let nobody = listen().await.1.to_string();
    let (listener, web) = listen().await;
    let env = env([
        ("EMOJISVC_HOST", nobody.clone()),
        ("VOTINGSVC_HOST", nobody),
        ("MESSAGE_OF_THE_DAY", "<b>".into()),
    ]);
    let shutdown = CancellationToken::new();
    let tasks = TaskTracker::new();
    tasks.spawn(web::serve(
        listener,
        web::Web::new(&Env(&env)).unwrap(),
        shutdown.clone(),
    ));
    tasks.close();
    let app = Emojivoto {
        web,
        voting: Arc::default(),
        shutdown,
        tasks,
    };
    let (status, page) = app.get("/").await;
    assert!(
        status == StatusCode::OK && page.contains("&lt;b&gt;"),
        "{status} {page}"
    );
    assert_eq!(app.get("/api/list").await.0, StatusCode::INTERNAL_SERVER_ERROR);
    app.stop().await;
}

#[tokio::test]
async fn the_bot_votes_and_survives_failures() {
    let app = Emojivoto::start().await;
    let env = env([
        ("WEB_HOST", app.web.to_string()),
        ("REQUEST_RATE", "10000".into()),
    ]);
    let config = vote_bot::Config::parse(&Env(&env)).unwrap();
    let enough = CancellationToken::new();
    let (mut votes, mut errors) = (Vec::new(), Vec::new());
    let mut rng: rand::rngs::StdRng = rand::SeedableRng::seed_from_u64(1);
    let hear = |heard| {
        match heard {
            Heard::Voting(shortcode) => votes.push(shortcode),
            Heard::Failed(error) => errors.push(format!("{error:#}")),
        }
        if errors.len() == 3 {
            enough.cancel();
        }
    };
    vote_bot::run(&config, &mut rng, &Metrics::default(), hear, enough.clone()).await;
    let doughnuts = votes
        .iter()
        .filter(|shortcode| *shortcode == ":doughnut:")
        .count();
    assert!(doughnuts == 3 && votes.len() > 3, "{votes:?}");
    let error = "voting for :doughnut:: 500 Internal Server Error: \
                 {\"error\":\"rpc error: code = Unknown desc = ERROR\"}";
    assert_eq!(errors, [error; 3]);
    app.stop().await;
}
