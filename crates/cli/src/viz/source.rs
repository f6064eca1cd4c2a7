//! Where answers come from: the collector in the cluster, or, without one, the proxies themselves.
//!
//! Reading the proxies takes two looks at each, some seconds apart, through the API server's port-forward; the same
//! window and the same questions then give the answer. It is slower and sees only those seconds, and says so.

use std::time::Duration;

use futures::StreamExt;
use hawser_viz::api::{Edge, Gateway, Objects, Path, Question, RouteStat, Stat, Status};
use hawser_viz::wire::Ask;
use hawser_viz::{API_PORT, Kind, Known, Pod, Pods, Reading, Window, fetch, prometheus};
use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod as Object;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::{ViewArgs, say};
use crate::kube::problem;
use crate::problem::Problem;
use crate::scrape;

/// Selects the collector's pods.
pub(super) const COLLECTOR: &str = "linkerd.io/extension=viz,component=metrics-api";
/// Between two looks at a proxy: long enough for a rate of one request per second to show.
const APART: Duration = Duration::from_secs(3);
/// A Prometheus with much to say.
const PATIENCE: Duration = Duration::from_secs(20);
/// Port-forwards at the same time.
const FORWARDS_MAX: usize = 8;

pub(crate) enum Source {
    Collector(Collector),
    Proxies(Client),
    Prometheus(Client, http::Uri),
}

/// A collector's pod.
pub(crate) struct Collector {
    pods: Api<Object>,
    pod: String,
}

impl Collector {
    /// A running one, if there is any.
    pub(super) async fn find(client: &Client, namespace: &str) -> Result<Option<Self>, Problem> {
        let pods: Api<Object> = Api::namespaced(client.clone(), namespace);
        let list = pods
            .list(&ListParams::default().labels(COLLECTOR))
            .await
            .map_err(|error| problem("cannot look for the metrics collector", error))?;
        let mut running = list.items.iter().filter(|pod| Pod::of(pod).is_running());
        let pod = running.next().map(ResourceExt::name_any);
        Ok(pod.map(|pod| Self { pods, pod }))
    }

    pub(super) fn pod(&self) -> (&Api<Object>, &str) {
        (&self.pods, &self.pod)
    }

    pub(super) async fn status(&self) -> Result<Status, Problem> {
        self.ask(&Ask::Status).await
    }

    async fn ask<T: DeserializeOwned>(&self, ask: &Ask) -> Result<T, Problem> {
        let what = "cannot ask the metrics collector";
        let attempt = || {
            format!(
                "hawser viz check; kubectl -n {} logs {}",
                self.namespace(),
                self.pod
            )
        };
        let text = scrape::get(&self.pods, &self.pod, API_PORT, &ask.path())
            .await
            .map_err(|error| Problem::new(what, error, attempt()))?;
        serde_json::from_str(&text)
            .map_err(|error| Problem::new(what, error, "use a CLI of the same version"))
    }

    fn namespace(&self) -> &str {
        self.pods.namespace().unwrap_or_default()
    }
}

impl Source {
    pub(super) async fn find(client: &Client, view: &ViewArgs) -> Result<Self, Problem> {
        if let Some(url) = &view.prometheus_url {
            return Ok(Self::Prometheus(client.clone(), url.clone()));
        }
        Self::near(client, &view.viz_namespace).await
    }

    /// The collector of this namespace, or else the proxies.
    pub(crate) async fn near(client: &Client, namespace: &str) -> Result<Self, Problem> {
        let collector = Collector::find(client, namespace).await?;
        Ok(collector.map_or_else(|| Self::Proxies(client.clone()), Self::Collector))
    }

    pub(crate) async fn stat(&mut self, question: &Question) -> Result<Vec<Stat>, Problem> {
        match self {
            Self::Collector(collector) => collector.ask(&Ask::Stat(question.clone())).await,
            _ => {
                // What comes in at a pod is known to its own proxy, everything else to those who send.
                let sees_itself = question.towards.is_none()
                    && !matches!(
                        question.objects.kind,
                        Kind::Service | Kind::Authority | Kind::Namespace
                    );
                let namespace = question.objects.namespace.as_deref().filter(|_| sees_itself);
                let seen = self.seen(namespace, question.window).await?;
                let mut question = question.clone();
                question.window = seen.length;
                Ok(seen.known().stat(&question))
            }
        }
    }

    pub(super) async fn routes(
        &mut self,
        objects: &Objects,
        window: Duration,
    ) -> Result<Vec<RouteStat>, Problem> {
        match self {
            Self::Collector(collector) => {
                let objects = objects.clone();
                collector.ask(&Ask::Routes { objects, window }).await
            }
            _ => {
                let namespace = objects
                    .namespace
                    .as_deref()
                    .filter(|_| objects.kind != Kind::Namespace);
                let seen = self.seen(namespace, window).await?;
                Ok(seen.known().routes(objects, seen.length))
            }
        }
    }

    /// What the proxies did, where no collector says it.
    async fn seen(&self, namespace: Option<&str>, window: Duration) -> Result<Seen, Problem> {
        match self {
            Self::Prometheus(client, url) => Seen::by_prometheus(client, url, namespace, window).await,
            Self::Proxies(client) => Seen::now(client, namespace).await,
            Self::Collector(Collector { pods, .. }) => {
                Seen::now(&pods.clone().into_client(), namespace).await
            }
        }
    }

    pub(super) async fn edges(&mut self, objects: &Objects, window: Duration) -> Result<Vec<Edge>, Problem> {
        match self {
            Self::Collector(collector) => {
                let objects = objects.clone();
                collector.ask(&Ask::Edges { objects, window }).await
            }
            _ => {
                let seen = self.seen(None, window).await?;
                Ok(seen.known().edges(objects, seen.length))
            }
        }
    }

    /// Only collectors know of each other's clusters.
    pub(super) async fn paths(
        &self,
        from: &Objects,
        to: Option<&(String, String)>,
        window: Duration,
    ) -> Result<Vec<Path>, Problem> {
        let Self::Collector(collector) = self else {
            return Err(Problem::new(
                "cannot follow requests",
                "only collectors know of each other's clusters, and none is asked",
                "hawser viz install | kubectl apply -f -, here and in linked clusters",
            ));
        };
        let ask = Ask::Paths {
            from: Some(from.clone()),
            to: to.cloned(),
            window,
        };
        collector.ask(&ask).await
    }

    pub(super) async fn gateways(&mut self, window: Duration) -> Result<Vec<Gateway>, Problem> {
        match self {
            Self::Collector(collector) => collector.ask(&Ask::Gateways { window }).await,
            _ => {
                let seen = self.seen(None, window).await?;
                Ok(seen.known().gateways(seen.length))
            }
        }
    }
}

/// What two looks at the proxies showed.
struct Seen {
    window: Window,
    pods: Pods,
    now: Duration,
    length: Duration,
}

impl Seen {
    /// By the samples that a Prometheus took.
    async fn by_prometheus(
        client: &Client,
        url: &http::Uri,
        namespace: Option<&str>,
        length: Duration,
    ) -> Result<Self, Problem> {
        let what = format!("cannot ask Prometheus at {url}");
        let attempt = "kubectl -n linkerd-viz port-forward deploy/prometheus 9090; then --prometheus-url http://localhost:9090";
        let wrong = |why: Box<dyn std::error::Error>| Problem::new(&what, why, attempt);
        let host = url.host().filter(|_| url.scheme_str() == Some("http"));
        let host = host.ok_or_else(|| wrong("only http://HOST:PORT can be asked".into()))?;
        let pods = pods(client, namespace).await?;
        let path = format!(
            "{}{}",
            url.path().trim_end_matches('/'),
            prometheus::path(namespace, length)
        );
        let asking = async {
            let socket =
                TcpStream::connect((host.trim_matches(['[', ']']), url.port_u16().unwrap_or(80))).await;
            let socket = socket.map_err(|error| wrong(error.into()))?;
            let answer = fetch::get_from(socket, host, &path).await;
            answer.map_err(|error| wrong(error.into()))
        };
        let answer = tokio::time::timeout(PATIENCE, asking).await;
        let answer =
            answer.map_err(|_| wrong(format!("no answer within {} s", PATIENCE.as_secs()).into()))??;
        let now = Duration::from_millis(u64::try_from(Timestamp::now().as_millisecond()).unwrap_or(0));
        Ok(Self {
            window: prometheus::window(&answer, &pods, now).map_err(|error| wrong(error.into()))?,
            pods,
            now,
            length,
        })
    }

    async fn now(client: &Client, namespace: Option<&str>) -> Result<Self, Problem> {
        let pods = pods(client, namespace).await?;
        let running = pods.values().filter(|pod| pod.is_running());
        let sources: Vec<_> = running
            .flat_map(|pod| pod.ports().map(move |port| (pod, port)))
            .collect();
        let progress = Progress::new(sources.len());
        let began = Instant::now();
        let mut window = Window::new(Duration::from_secs(3600));
        let mut trouble = None;
        for round in 0..2 {
            if round == 1 {
                progress.wait();
                tokio::time::sleep_until(began + APART).await;
            }
            let looks = futures::stream::iter(&sources).map(|(pod, port)| async move {
                let at = began.elapsed();
                let name = pod.name();
                let pods: Api<Object> = Api::namespaced(client.clone(), &name.namespace);
                (*pod, *port, at, scrape::metrics(&pods, &name.name, *port).await)
            });
            let mut looks = looks.buffer_unordered(FORWARDS_MAX);
            while let Some((pod, port, at, read)) = looks.next().await {
                progress.step();
                match read {
                    Ok(text) => window.record(pod, port, at, Reading::of(&text)),
                    Err(error) => {
                        trouble = Some(Problem::new(format!("cannot read {}", pod.name()), error, ""))
                    }
                }
            }
        }
        let length = began.elapsed();
        progress.end();
        match trouble {
            // Numbers without any proxy would all be zero.
            Some(trouble) if window.sources() == 0 => {
                let attempt = "kubectl -n NAMESPACE port-forward POD 4191, to see what the API server says";
                Err(Problem::new("cannot read any proxy", trouble, attempt))
            }
            Some(trouble) => {
                say(&format!("not all proxies could be read: {trouble}"));
                Ok(Self::over(window, pods, length))
            }
            None => Ok(Self::over(window, pods, length)),
        }
    }

    /// Time began with the first look.
    fn over(window: Window, pods: Pods, length: Duration) -> Self {
        Self {
            window,
            pods,
            now: length,
            length,
        }
    }

    fn known(&self) -> Known<'_> {
        Known {
            window: &self.window,
            pods: &self.pods,
            now: self.now,
        }
    }
}

async fn pods(client: &Client, namespace: Option<&str>) -> Result<Pods, Problem> {
    let api: Api<Object> = match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    };
    let list = api.list(&ListParams::default()).await;
    let list = list.map_err(|error| problem("cannot list pods", error))?;
    let pods = list.items.iter().map(Pod::of);
    Ok(pods.map(|pod| (pod.name().clone(), pod.into())).collect())
}

/// Says what is going on, to people.
struct Progress(ProgressBar);

impl Progress {
    fn new(sources: usize) -> Self {
        say(&format!(
            "no collector in this cluster (hawser viz install): reading {sources} proxies twice, {} s apart",
            APART.as_secs()
        ));
        let bar = ProgressBar::new(2 * sources as u64);
        if let Ok(style) = ProgressStyle::with_template("{spinner} {pos}/{len} {msg}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(100));
        Self(bar)
    }

    fn step(&self) {
        self.0.inc(1);
    }

    fn wait(&self) {
        self.0.set_message("waiting for traffic");
    }

    fn end(&self) {
        self.0.finish_and_clear();
    }
}
