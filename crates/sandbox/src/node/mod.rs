//! The node agent: a small kubelet that runs pods as processes in Linux namespaces.
//!
//! It speaks only the Kubernetes API, so it could serve as a node of any API server. The [`Agent`] registers the node,
//! watches the pods bound to it and gives each a worker (`worker.rs`), which owns everything about that pod. A worker
//! observes, asks `plan.rs` what to do, and does it with `container.rs`, whose other half is the program in `starter`.
//!
//! What a pod's network is and what an image name means is told to the agent by its caller. It knows no cgroups and
//! pulls no images.

mod container;
mod env;
mod logs;
mod machine;
mod plan;
mod probe;
mod recipe;
pub(crate) mod server;
pub mod starter;
mod status;
mod volume;
mod worker;

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::core::PartialObjectMeta;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::io::StreamReader;
use tokio_util::sync::CancellationToken;

use crate::images::Images;
use crate::kubelet::{
    BoxFuture, ClusterAddresses, ContainerRef, ExecOptions, ExecSession, Kubelet, KubeletError, LogOptions,
    LogStream,
};
use worker::{View, Worker};

/// Networks for pods. The sandbox's cluster network is one, a test's fake another.
pub trait PodNetworks: Send + Sync + 'static {
    /// The network of the pod with this uid, made if there is none.
    fn add_pod<'a>(&'a self, uid: &'a str) -> BoxFuture<'a, io::Result<Arc<dyn PodNet>>>;
    /// Takes it away; nothing happens if there is none.
    fn remove_pod<'a>(&'a self, uid: &'a str) -> BoxFuture<'a, ()>;
}

/// One pod's network.
pub trait PodNet: Send + Sync + 'static {
    fn ip(&self) -> Ipv4Addr;
    /// A path by which another process of this machine can open the network namespace; none for the agent's own.
    fn netns(&self) -> Option<PathBuf>;
    /// Connects from inside the pod. The caller bounds the time.
    fn connect(&self, to: SocketAddr) -> BoxFuture<'_, io::Result<TcpStream>>;
}

/// What an agent is told.
pub struct AgentConfig {
    /// May read and write pods, nodes, leases and events, read ConfigMaps, Secrets and Services, and request tokens.
    pub client: Client,
    pub addresses: ClusterAddresses,
    /// Its executable is also the container starter.
    pub images: Images,
    pub networks: Arc<dyn PodNetworks>,
    /// Holds volumes, secrets among them: best on a tmpfs that only the agent sees. What an earlier agent left there
    /// is removed.
    pub state_dir: PathBuf,
    /// Holds what containers print, a file per run: `NAMESPACE_POD_UID/CONTAINER/RUN.log`. What an earlier agent left
    /// there is removed.
    pub log_dir: PathBuf,
    pub node_name: String,
    /// Labels of the Node beside the usual ones.
    pub labels: BTreeMap<String, String>,
    /// Where [`server`] answers for this node, if it does.
    pub port: Option<u16>,
    /// Directories of the host that `hostPath` volumes may show; none by default.
    pub host_paths: Vec<PathBuf>,
}

/// A node. It does nothing until [`Agent::run`] is called, and answers the API server from then on.
pub struct Agent {
    config: AgentConfig,
    workers: Mutex<BTreeMap<String, WorkerHandle>>,
    events: machine::Recorder,
}

/// How the agent reaches the worker of one pod.
struct WorkerHandle {
    namespace: String,
    name: String,
    references: env::References,
    /// The latest version of the pod; none once it has disappeared.
    pod: watch::Sender<Option<Pod>>,
    /// A ConfigMap or Secret that the pod refers to has changed.
    sources: Arc<Notify>,
    view: watch::Receiver<Arc<View>>,
}

#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error("preparing the state directory {path}")]
    StateDir {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl Agent {
    pub fn new(config: AgentConfig) -> Arc<Self> {
        let events = machine::Recorder::new(config.client.clone(), &config.node_name);
        Arc::new(Self {
            config,
            workers: Mutex::default(),
            events,
        })
    }

    /// Runs the node until `shutdown`. Containers end with it; their pods stay in the API.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) -> Result<(), AgentError> {
        self.prepare_state_dir()?;
        let mut tasks = JoinSet::new();
        tasks.spawn(machine::register(Arc::clone(&self)));
        tasks.spawn(Arc::clone(&self).watch_sources::<ConfigMap>(|references| &references.config_maps));
        tasks.spawn(Arc::clone(&self).watch_sources::<Secret>(|references| &references.secrets));
        tasks.spawn(Arc::clone(&self).watch_pods(shutdown.clone()));
        shutdown.cancelled().await;
        tasks.shutdown().await;
        Ok(())
    }

    fn prepare_state_dir(&self) -> Result<(), AgentError> {
        use std::os::unix::fs::DirBuilderExt;
        for path in [self.config.state_dir.join("pods"), self.config.log_dir.clone()] {
            let prepared = worker::remove_pod_directory(&path).and_then(|()| {
                std::fs::DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(&path)
            });
            prepared.map_err(|source| AgentError::StateDir { path, source })?;
        }
        Ok(())
    }

    fn workers(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, WorkerHandle>> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps one worker per pod. The workers are owned here: they end when this does.
    async fn watch_pods(self: Arc<Self>, shutdown: CancellationToken) {
        let pods: Api<Pod> = Api::all(self.config.client.clone());
        let only = watcher::Config::default().fields(&format!("spec.nodeName={}", self.config.node_name));
        let mut events = pin!(watcher(pods, only).default_backoff());
        let mut running = JoinSet::new();
        let mut listed = Vec::new();
        loop {
            let event = tokio::select! {
                () = shutdown.cancelled() => break,
                Some(ended) = running.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "a pod's worker ended unexpectedly");
                    }
                    continue;
                }
                event = events.try_next() => event,
            };
            match event {
                Ok(Some(watcher::Event::Init)) => listed.clear(),
                Ok(Some(watcher::Event::InitApply(pod))) => {
                    listed.extend(pod.metadata.uid.clone());
                    self.apply(pod, &mut running);
                }
                Ok(Some(watcher::Event::InitDone)) => {
                    for (_, worker) in self.workers().iter().filter(|(uid, _)| !listed.contains(uid)) {
                        worker.pod.send_replace(None);
                    }
                }
                Ok(Some(watcher::Event::Apply(pod))) => self.apply(pod, &mut running),
                Ok(Some(watcher::Event::Delete(pod))) => {
                    if let Some(worker) = pod.metadata.uid.and_then(|uid| self.workers().remove(&uid)) {
                        worker.pod.send_replace(None);
                    }
                }
                Ok(None) => break,
                // The watcher starts again by itself, after a pause.
                Err(error) => tracing::warn!(error = probe::chain(&error), "watching pods"),
            }
        }
        running.shutdown().await;
    }

    fn apply(self: &Arc<Self>, pod: Pod, running: &mut JoinSet<()>) {
        let (Some(uid), Some(namespace), Some(name), Some(spec)) = (
            &pod.metadata.uid,
            &pod.metadata.namespace,
            &pod.metadata.name,
            &pod.spec,
        ) else {
            return;
        };
        let mut workers = self.workers();
        if let Some(worker) = workers.get(uid) {
            worker.pod.send_replace(Some(pod));
            return;
        }
        let references = env::references(spec);
        let (namespace, name, uid) = (namespace.clone(), name.clone(), uid.clone());
        let (sender, updates) = watch::channel(Some(pod.clone()));
        let sources = Arc::new(Notify::new());
        let (worker, view) = Worker::new(Arc::clone(self), pod, updates, Arc::clone(&sources));
        workers.insert(
            uid.clone(),
            WorkerHandle {
                namespace,
                name,
                references,
                pod: sender,
                sources,
                view,
            },
        );
        let agent = Arc::clone(self);
        running.spawn(async move {
            worker.run().await;
            agent.workers().remove(&uid);
        });
    }

    /// Tells workers when something changes that their pods refer to.
    async fn watch_sources<K>(
        self: Arc<Self>,
        names: fn(&env::References) -> &std::collections::BTreeSet<String>,
    ) where
        K: kube::Resource<DynamicType = ()>
            + Clone
            + serde::de::DeserializeOwned
            + std::fmt::Debug
            + Send
            + 'static,
    {
        let objects: Api<PartialObjectMeta<K>> = Api::all(self.config.client.clone());
        let changes = watcher(objects, watcher::Config::default()).default_backoff();
        let mut changes = pin!(changes.filter_map(async |event| event.ok()));
        while let Some(event) = next(&mut changes).await {
            let metadata = match event {
                watcher::Event::Apply(object)
                | watcher::Event::Delete(object)
                | watcher::Event::InitApply(object) => object.metadata,
                watcher::Event::Init | watcher::Event::InitDone => continue,
            };
            let (Some(namespace), Some(name)) = (metadata.namespace, metadata.name) else {
                continue;
            };
            for worker in self.workers().values() {
                if worker.namespace == namespace && names(&worker.references).contains(&name) {
                    worker.sources.notify_one();
                }
            }
        }
    }

    /// What is known of a pod right now.
    fn view(&self, namespace: &str, pod: &str) -> Result<Arc<View>, KubeletError> {
        let workers = self.workers();
        // A pod that replaces one of the same name may overlap with it: the newest counts.
        let found = workers
            .values()
            .filter(|worker| worker.namespace == namespace && worker.name == pod);
        let newest = found.max_by_key(|worker| {
            worker
                .pod
                .borrow()
                .as_ref()
                .and_then(|pod| pod.metadata.creation_timestamp.clone())
        });
        match newest {
            Some(worker) => Ok(Arc::clone(&worker.view.borrow())),
            None => Err(KubeletError::NoSuchPod(format!("{namespace}/{pod}"))),
        }
    }
}

async fn next<S: Stream>(stream: &mut std::pin::Pin<&mut S>) -> Option<S::Item> {
    stream.as_mut().next().await
}

impl Kubelet for Agent {
    fn logs(
        &self,
        container: ContainerRef,
        options: LogOptions,
    ) -> BoxFuture<'_, Result<mpsc::Receiver<Bytes>, KubeletError>> {
        Box::pin(async move {
            let view = self.view(&container.namespace, &container.pod)?;
            let own = view.container(&container.container)?;
            let log = if options.previous {
                &own.previous_log
            } else {
                &own.log
            };
            match log {
                Some(log) => Ok(log.read(options)),
                None if options.previous => Err(KubeletError::NotRunning {
                    container: container.container,
                    reason: "previous terminated container not found".to_owned(),
                }),
                None => Err(KubeletError::NotRunning {
                    container: container.container,
                    reason: own.waiting.clone(),
                }),
            }
        })
    }

    fn exec(
        &self,
        container: ContainerRef,
        options: ExecOptions,
    ) -> BoxFuture<'_, Result<ExecSession, KubeletError>> {
        Box::pin(async move {
            let view = self.view(&container.namespace, &container.pod)?;
            let own = view.container(&container.container)?;
            match &own.runner {
                Some(runner) => runner.exec(options).await,
                None => Err(KubeletError::NotRunning {
                    container: container.container,
                    reason: own.waiting.clone(),
                }),
            }
        })
    }

    fn attach(&self, container: ContainerRef) -> BoxFuture<'_, Result<ExecSession, KubeletError>> {
        Box::pin(async move {
            let view = self.view(&container.namespace, &container.pod)?;
            let own = view.container(&container.container)?;
            let (Some(log), Some(_)) = (&own.log, &own.runner) else {
                return Err(KubeletError::NotRunning {
                    container: container.container,
                    reason: own.waiting.clone(),
                });
            };
            // What a container writes goes to its log; whoever is attached reads there what is new.
            let follow = |stream| {
                let lines = log.read(LogOptions {
                    follow: true,
                    tail_lines: Some(0),
                    stream: Some(stream),
                    ..LogOptions::default()
                });
                StreamReader::new(ReceiverStream::new(lines).map(Ok::<_, io::Error>))
            };
            let ended = log.ended();
            let (resize, _) = mpsc::channel(1);
            Ok(ExecSession {
                stdin: None,
                stdout: Box::pin(follow(LogStream::Stdout)),
                stderr: Box::pin(follow(LogStream::Stderr)),
                resize,
                exit: Box::pin(async move {
                    ended.await;
                    Ok(0)
                }),
            })
        })
    }

    fn dial(
        &self,
        namespace: String,
        pod: String,
        port: u16,
    ) -> BoxFuture<'_, Result<TcpStream, KubeletError>> {
        Box::pin(async move {
            let view = self.view(&namespace, &pod)?;
            let net = view.net.as_deref().ok_or_else(|| KubeletError::NotRunning {
                container: pod,
                reason: "the pod has no network".to_owned(),
            })?;
            probe::dial(net, port)
                .await
                .map_err(|source| KubeletError::Dial { port, source })
        })
    }
}
