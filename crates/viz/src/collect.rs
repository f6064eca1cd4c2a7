//! Reads every proxy at regular times, and answers questions from what was read.
//!
//! One task owns the window, so nothing is locked and an answer never mixes two looks at one proxy. Reading is bounded
//! in number and time; a proxy that doesn't answer, or answers nonsense, costs its own numbers and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, BoxStream, StreamExt};
use hawser_runtime::{Guard, Metrics};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::api::Status;
use crate::fetch::FetchError;
use crate::objects::{Objects, seconds};
use crate::peers::chain;
use crate::pods::{Pod, PodName, Pods};
use crate::query::Known;
use crate::reading::Reading;
use crate::window::{At, Window};
use crate::wire::Ask;

/// How often and how long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    pub(crate) every: Duration,
    pub(crate) span: Duration,
}

impl Pace {
    /// What a portrait's rates are taken over: short enough to be now, long enough to be steady.
    fn glance(self) -> Duration {
        (self.every * 4).max(Duration::from_secs(10))
    }
}

/// A portrait is painted anew at most this often, and only when there is news; so many viewers cost hardly more than
/// one, and whoever has the last one need not be sent the same again.
const PORTRAIT_AGE_MIN: Duration = Duration::from_millis(500);

/// A process that doesn't answer in this time is not read in this round.
const DEADLINE: Duration = Duration::from_secs(5);
/// Processes read at the same time. With all of 1,000 silent, a round takes 80 s and the next ones wait for it.
const READING_MAX: usize = 64;
/// Reasons that a status lists.
const UNREAD_MAX: usize = 20;

/// A question and where its answer goes.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) ask: Ask,
    pub(crate) answer: oneshot::Sender<Value>,
}

/// Reads the metrics at an address.
pub(crate) trait Read: Fn(SocketAddr) -> Self::Answer + Clone + Send + Sync + 'static {
    type Answer: Future<Output = Result<String, FetchError>> + Send;
}

impl<F, A> Read for F
where
    F: Fn(SocketAddr) -> A + Clone + Send + Sync + 'static,
    A: Future<Output = Result<String, FetchError>> + Send,
{
    type Answer = A;
}

pub(crate) struct Collector<R> {
    pace: Pace,
    began: Instant,
    cluster: String,
    pods: watch::Receiver<Option<Pods>>,
    objects: watch::Receiver<Objects>,
    portrait: Option<(Instant, Value)>,
    /// When processes were last looked at, whatever came of it: what a portrait shows is as of then.
    looked: (At, Timestamp),
    /// Whether that was after the portrait.
    has_looked: bool,
    read: R,
    window: Window,
    metrics: Metrics,
    /// Sources of the last round that ended, and of those the ones that could not be read.
    sources: usize,
    unread: BTreeMap<(PodName, u16), String>,
    first_round: Option<Guard>,
}

/// One attempt to read a process.
struct Look {
    pod: Arc<Pod>,
    port: u16,
    at: Duration,
    read: Result<String, FetchError>,
}

impl<R: Read> Collector<R> {
    /// `cluster` is what this one is called. `first_round` is dropped when every process was looked at once.
    pub(crate) fn new(
        pace: Pace,
        cluster: String,
        (pods, objects): (watch::Receiver<Option<Pods>>, watch::Receiver<Objects>),
        read: R,
        metrics: Metrics,
        first_round: Guard,
    ) -> Self {
        Self {
            pace,
            began: Instant::now(),
            cluster,
            pods,
            objects,
            portrait: None,
            looked: (At::ZERO, Timestamp::now()),
            has_looked: false,
            read,
            window: Window::new(pace.span),
            metrics,
            sources: 0,
            unread: BTreeMap::new(),
            first_round: Some(first_round),
        }
    }

    /// Runs until nobody can ask any more.
    pub(crate) async fn run(mut self, mut questions: mpsc::Receiver<Asked>) {
        let mut ticks = interval(self.pace.every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut round: Option<BoxStream<'static, Look>> = None;
        loop {
            tokio::select! {
                _ = ticks.tick(), if round.is_none() => round = self.begin(),
                look = next(&mut round) => match look {
                    Some(look) => self.take(look),
                    None => {
                        round = None;
                        self.end();
                    }
                },
                asked = questions.recv() => match asked {
                    // Whoever asked may be gone.
                    Some(Asked { ask, answer }) => _ = answer.send(self.answer(&ask)),
                    None => return,
                },
            }
        }
    }

    /// A round through all processes, once the pods are known.
    fn begin(&mut self) -> Option<BoxStream<'static, Look>> {
        let sources: Vec<(Arc<Pod>, u16, SocketAddr)> = {
            let pods = self.pods.borrow();
            let running = pods.as_ref()?.values().filter(|pod| pod.is_running());
            running
                .flat_map(|pod| pod.addresses().map(|addr| (pod.clone(), addr.port(), addr)))
                .collect()
        };
        self.sources = sources.len();
        let named: BTreeSet<(&PodName, u16)> =
            sources.iter().map(|(pod, port, _)| (pod.name(), *port)).collect();
        self.unread.retain(|(pod, port), _| named.contains(&(pod, *port)));
        let (read, began) = (self.read.clone(), self.began);
        let looks = stream::iter(sources).map(move |(pod, port, addr)| {
            let read = read.clone();
            async move {
                let at = began.elapsed();
                let read = timeout(DEADLINE, read(addr))
                    .await
                    .unwrap_or(Err(FetchError::Silent));
                Look { pod, port, at, read }
            }
        });
        Some(looks.buffer_unordered(READING_MAX).boxed())
    }

    fn saw(&mut self) {
        self.looked = (self.began.elapsed(), Timestamp::now());
        self.has_looked = true;
    }

    fn take(&mut self, look: Look) {
        let source = (look.pod.name().clone(), look.port);
        let outcome = match look.read {
            Ok(text) => {
                let reading = Reading::of(&text);
                let left_out = reading.left_out;
                self.window.record(&look.pod, look.port, look.at, reading);
                self.unread.remove(&source);
                if left_out == 0 { "read" } else { "read in part" }
            }
            Err(error) => {
                let pod = look.pod.name();
                let why = chain(&error);
                tracing::debug!(%pod, port = look.port, why, "metrics could not be read");
                self.unread.insert(source, why);
                "not read"
            }
        };
        let help = "Looks at processes' metrics, by what came of them.";
        self.metrics
            .add("viz_looks_total", help, &[("outcome", outcome)], 1.0);
        self.saw();
    }

    fn end(&mut self) {
        self.window.forget(self.began.elapsed());
        self.first_round = None;
        self.saw();
        let gauges = [
            ("viz_sources", "Processes to read.", self.sources),
            (
                "viz_sources_unread",
                "Processes that could not be read.",
                self.unread.len(),
            ),
            (
                "viz_window_bytes",
                "What the window takes in memory.",
                self.window.bytes(),
            ),
        ];
        for (name, help, value) in gauges {
            self.metrics.set(name, help, &[], value as f64);
        }
    }

    fn answer(&mut self, ask: &Ask) -> Value {
        if *ask == Ask::Portrait {
            // A watch whose sender is gone has no news.
            let has_news = self.has_looked
                || self.pods.has_changed().unwrap_or(false)
                || self.objects.has_changed().unwrap_or(false);
            let is_good = |(at, _): &&(Instant, Value)| !has_news || at.elapsed() < PORTRAIT_AGE_MIN;
            if let Some((_, portrait)) = self.portrait.as_ref().filter(is_good) {
                return portrait.clone();
            }
            self.has_looked = false;
            self.pods.mark_unchanged();
            self.objects.mark_unchanged();
            let portrait = self.look_up(ask);
            self.portrait = Some((Instant::now(), portrait.clone()));
            return portrait;
        }
        self.look_up(ask)
    }

    fn look_up(&self, ask: &Ask) -> Value {
        let pods = self.pods.borrow();
        let nothing = Pods::new();
        let known = Known {
            window: &self.window,
            pods: pods.as_ref().unwrap_or(&nothing),
            now: self.began.elapsed(),
        };
        match ask {
            Ask::Stat(question) => json!(known.stat(question)),
            Ask::Edges { objects, window } => json!(known.edges(objects, *window)),
            Ask::Gateways { window } => json!(known.gateways(*window)),
            Ask::Routes { objects, window } => json!(known.routes(objects, *window)),
            Ask::Paths { from, to, window } => {
                let objects = self.objects.borrow();
                json!(known.departing(&objects, from.as_ref(), to.as_ref(), *window))
            }
            Ask::Onward {
                namespace,
                name,
                window,
            } => json!(known.onward(&(namespace.clone(), name.clone()), *window)),
            Ask::Status => json!(self.status()),
            Ask::Portrait => {
                let (now, at) = self.looked;
                let known = Known { now, ..known };
                let mut portrait = known.portrait(&self.objects.borrow(), self.pace.glance(), seconds(at));
                portrait.cluster.clone_from(&self.cluster);
                portrait.status = self.status();
                json!(portrait)
            }
            Ask::Workload {
                kind,
                namespace,
                name,
                window,
                ..
            } => {
                let length = (*window).min(self.pace.span);
                let now = seconds(Timestamp::now());
                json!(known.closeup(
                    (*kind, namespace, name),
                    length,
                    self.pace.every,
                    self.pace.glance(),
                    now
                ))
            }
            Ask::Series {
                namespace,
                name,
                window,
                ..
            } => {
                let (service, length) = ((namespace.clone(), name.clone()), (*window).min(self.pace.span));
                let now = seconds(Timestamp::now());
                json!(known.series(&self.objects.borrow(), &service, length, self.pace.every, now))
            }
        }
    }

    fn status(&self) -> Status {
        let unread = self.unread.iter().take(UNREAD_MAX);
        Status {
            sources: self.sources,
            read: self.sources.saturating_sub(self.unread.len()),
            unread: unread
                .map(|((pod, port), why)| (format!("{pod}:{port}"), why.clone()))
                .collect(),
            window_bytes: self.window.bytes(),
            seconds: self.looked.0.min(self.pace.span).as_secs(),
        }
    }
}

async fn next(round: &mut Option<BoxStream<'static, Look>>) -> Option<Look> {
    match round {
        Some(looks) => looks.next().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use hawser_runtime::Readiness;

    use super::*;
    use crate::api::{Objects, Question, Stat};
    use crate::kinds::Kind;

    /// A pod named `web` whose proxy answers what `read` makes of the number of the look.
    async fn asked_after(
        looks: u32,
        read: impl Fn(u32) -> Result<String, FetchError> + Clone + Send + Sync + 'static,
    ) -> (Vec<Stat>, Status) {
        let object = json!({
            "metadata": {"namespace": "x", "name": "web"},
            "spec": {"containers": [{"name": "linkerd-proxy"}]},
            "status": {"phase": "Running", "podIP": "10.0.0.1"},
        });
        let pod = Arc::new(Pod::of(&serde_json::from_value(object).expect("a pod")));
        let (_list, pods) = watch::channel(Some(Pods::from([(pod.name().clone(), pod)])));
        let pace = Pace {
            every: Duration::from_secs(10),
            span: Duration::from_secs(3600),
        };
        let readiness = Readiness::default();
        let began = Instant::now();
        let read = move |_: SocketAddr| {
            let read = read.clone();
            async move {
                let number = began.elapsed().as_secs() / 10;
                if number % 3 == 2 {
                    // Silent now and then.
                    std::future::pending::<()>().await;
                }
                read(number as u32)
            }
        };
        let guard = readiness.guard("first round");
        let (_objects, objects) = watch::channel(crate::objects::Objects::default());
        let collector = Collector::new(
            pace,
            "west".into(),
            (pods, objects),
            read,
            Metrics::default(),
            guard,
        );
        let (ask, questions) = mpsc::channel(1);
        let running = tokio::spawn(collector.run(questions));
        readiness.ready().await;
        tokio::time::sleep(pace.every * looks + Duration::from_secs(6)).await;
        let question = Question {
            objects: Objects {
                kind: Kind::Pod,
                name: None,
                namespace: None,
            },
            towards: None,
            window: pace.every * looks,
        };
        let mut answers = Vec::new();
        for ask_for in [Ask::Stat(question), Ask::Status] {
            let (answer, answered) = oneshot::channel();
            let asked = Asked { ask: ask_for, answer };
            ask.send(asked).await.expect("the collector runs");
            answers.push(answered.await.expect("it answers"));
        }
        drop(ask);
        running.await.expect("it ends when nobody can ask");
        let [stat, status] = answers.try_into().expect("two answers");
        (
            serde_json::from_value(stat).expect("rows"),
            serde_json::from_value(status).expect("a status"),
        )
    }

    #[tokio::test(start_paused = true)]
    async fn silence_now_and_then_costs_no_requests() {
        let (rows, status) = asked_after(6, |number| {
            Ok(format!(
                "response_total{{direction=\"inbound\",classification=\"success\"}} {}\n",
                100 * number
            ))
        })
        .await;
        assert_eq!((status.sources, status.read), (1, 1));
        let [row] = rows.as_slice() else {
            panic!("{rows:?}")
        };
        assert_eq!((&*row.name, row.meshed.as_deref()), ("web", Some("1/1")));
        assert!(row.rps.is_some_and(|rps| (rps - 10.0).abs() < 0.5), "{row:?}");
        assert_eq!(row.success, Some(1.0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_portrait_is_the_same_until_there_is_news() {
        let (list, pods) = watch::channel(Some(Pods::new()));
        let (_objects, objects) = watch::channel(crate::objects::Objects::default());
        let pace = Pace {
            every: Duration::from_secs(10),
            span: Duration::from_secs(3600),
        };
        let read = |_: SocketAddr| async { Ok(String::new()) };
        let guard = Readiness::default().guard("first round");
        let watched = (pods, objects);
        let collector = Collector::new(pace, "west".into(), watched, read, Metrics::default(), guard);
        let (ask, questions) = mpsc::channel(1);
        let _running = tokio::spawn(collector.run(questions));
        let portrait = async |after| {
            tokio::time::sleep(Duration::from_secs(after)).await;
            let (answer, answered) = oneshot::channel();
            let asked = Asked {
                ask: Ask::Portrait,
                answer,
            };
            ask.send(asked).await.expect("the collector runs");
            answered.await.expect("it answers")
        };
        let first = portrait(1).await;
        assert_eq!(portrait(8).await, first, "no round began since");
        let second = portrait(2).await;
        assert_ne!(second, first, "a round later");
        assert_eq!(portrait(1).await, second);
        let object = json!({"metadata": {"namespace": "x", "name": "new"}, "status": {"phase": "Running"}});
        let pod = Arc::new(Pod::of(&serde_json::from_value(object).expect("a pod")));
        list.send_replace(Some(Pods::from([(pod.name().clone(), pod)])));
        let third = portrait(1).await;
        assert_eq!(third["workloads"][0]["name"], "new");
        assert_eq!(
            third["at"], second["at"],
            "its figures are those of the last look"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn nonsense_takes_nothing_down_and_is_told() {
        let (rows, status) = asked_after(3, |number| match number {
            0 => Ok("\u{0}{{{{\nresponse_total{direction=\"inbound\"} -1e308\n".into()),
            _ => Err(FetchError::Status {
                path: "/metrics".into(),
                status: http::StatusCode::IM_A_TEAPOT,
                body: "short and stout".into(),
            }),
        })
        .await;
        assert_eq!(rows.first().and_then(|row| row.rps), None);
        let why = status.unread.get("x/web:4191").map(String::as_str);
        assert_eq!(
            why,
            Some("the answer to /metrics is 418 I'm a teapot: short and stout")
        );
    }
}
