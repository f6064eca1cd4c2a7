//! Everything about one pod: its task.
//!
//! One task owns the pod's state. Containers, hooks and probes run in tasks of their own that only send notes to it, so
//! nothing here needs a lock. After every note the worker plans afresh, does what the plan says and shows the result:
//! to the API through the reporter (which always sends the latest status, never a queue of them) and to the API
//! server's log and exec requests through the [`View`]. Dropping the worker kills what it started.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::authentication::v1 as authentication;
use k8s_openapi::api::core::v1::{
    ConfigMap, Container, LifecycleHandler, Pod, PodSpec, PodStatus, Secret, Service, ServiceAccount,
};
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use serde_json::json;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;

use super::container::{self, Orders, Runner, StartError, Started};
use super::env::{self, ConfigError, Facts, Objects};
use super::logs::Log;
use super::machine::{Severity, capacity};
use super::plan::{self, Action, ContainerState, Current, Ended, PodState, Running, init_containers, plan};
use super::probe::{self, Finding, Target, chain};
use super::recipe::{self, Ingredients, Unready};
use super::starter::Request;
use super::status::{self, Place};
use super::volume::{self, Content, Directory, TokenRequest};
use super::{Agent, PodNet};
use crate::kubelet::KubeletError;

/// Notes that may wait for the worker; their senders wait when it is full.
const NOTES_MAX: usize = 64;
/// What is missing is looked for again after this time, if nobody has told us before that it has appeared.
const RETRY: SignedDuration = SignedDuration::from_secs(2);
/// Output may still be on its way when a container has ended.
const OUTPUT_GRACE: Duration = Duration::from_secs(1);
const API_RETRY_MAX: Duration = Duration::from_secs(5);
const TERMINATION_MESSAGE_MAX: usize = 4096;
const TERMINATION_TAIL_LINES: u64 = 80;
const TERMINATION_TAIL_BYTES: usize = 2048;
const SIGTERM: i32 = 15;
const SIGKILL: i32 = 9;

/// What the API server may ask about a pod.
#[derive(Default)]
pub(super) struct View {
    pub net: Option<Arc<dyn PodNet>>,
    containers: BTreeMap<String, ContainerView>,
}

#[derive(Clone, Default)]
pub(super) struct ContainerView {
    /// Present while it runs.
    pub runner: Option<Runner>,
    pub log: Option<Arc<Log>>,
    pub previous_log: Option<Arc<Log>>,
    /// Why it doesn't run.
    pub waiting: String,
}

impl View {
    pub(super) fn container(&self, name: &str) -> Result<&ContainerView, KubeletError> {
        self.containers
            .get(name)
            .ok_or_else(|| KubeletError::NoSuchContainer(name.to_owned()))
    }
}

/// What the worker's tasks tell it. The id says which run of the container is meant.
struct Note {
    container: String,
    id: String,
    what: What,
}

enum What {
    Exited { code: i32, signal: Option<i32> },
    Hook(Result<(), String>),
    Probe(Finding),
}

/// One run of a container.
struct Run {
    id: String,
    orders: Orders,
    runner: Runner,
    /// Its log, hooks and probes. They end with the run.
    tasks: JoinSet<()>,
    stopper: Option<AbortHandle>,
    /// The last failure of a probe that was recorded.
    complaint: Option<String>,
}

#[derive(Clone, Default)]
struct Logs {
    current: Option<Arc<Log>>,
    previous: Option<Arc<Log>>,
}

enum Volume {
    /// Its files follow what they come from.
    Live(Directory, PathBuf),
    Fixed(PathBuf),
}

struct Token {
    value: String,
    renew_at: Timestamp,
}

/// Why the pod isn't ready to start containers.
enum SetUp {
    Pending {
        retry_at: Timestamp,
        why: Option<String>,
    },
    Done,
}

#[derive(Debug, thiserror::Error)]
enum SetUpError {
    #[error("asking the API server")]
    Api(#[from] kube::Error),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("making the pod's network")]
    Network(#[source] io::Error),
    #[error("making volume {name}")]
    Volume { name: String, source: io::Error },
}

pub(super) struct Worker {
    agent: Arc<Agent>,
    /// Its status is the one we have shown last.
    pod: Pod,
    spec: PodSpec,
    namespace: String,
    name: String,
    uid: String,
    directory: PathBuf,
    log_directory: PathBuf,
    updates: watch::Receiver<Option<Pod>>,
    sources: Arc<Notify>,
    view: watch::Sender<Arc<View>>,
    inbox: mpsc::Receiver<Note>,
    notes: mpsc::Sender<Note>,
    state: PodState,
    set_up: SetUp,
    net: Option<Arc<dyn PodNet>>,
    ip: Option<String>,
    objects: Objects,
    services: Vec<(String, String)>,
    tokens: BTreeMap<TokenRequest, Token>,
    volumes: BTreeMap<String, Volume>,
    refresh_at: Option<Timestamp>,
    runs: BTreeMap<String, Run>,
    logs: BTreeMap<String, Logs>,
    started: Timestamp,
    /// The pod was over before we saw it; there is nothing to run or to show.
    settled: bool,
    /// It has disappeared from the API.
    gone: bool,
}

impl Worker {
    pub(super) fn new(
        agent: Arc<Agent>,
        pod: Pod,
        updates: watch::Receiver<Option<Pod>>,
        sources: Arc<Notify>,
    ) -> (Self, watch::Receiver<Arc<View>>) {
        let (view, viewed) = watch::channel(Arc::default());
        let (notes, inbox) = mpsc::channel(NOTES_MAX);
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let before = pod.status.as_ref();
        let started = before
            .and_then(|status| status.start_time.as_ref())
            .map_or_else(Timestamp::now, |time| time.0);
        let settled = before
            .and_then(|status| status.phase.as_deref())
            .is_some_and(status::is_over);
        let spec = pod.spec.clone().unwrap_or_default();
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let name = pod.metadata.name.clone().unwrap_or_default();
        let directory = agent.config.state_dir.join("pods").join(&uid);
        let log_directory = agent.config.log_dir.join(format!("{namespace}_{name}_{uid}"));
        let mut worker = Self {
            namespace,
            name,
            uid,
            directory,
            log_directory,
            updates,
            sources,
            view,
            inbox,
            notes,
            state: PodState::default(),
            set_up: SetUp::Pending {
                retry_at: started.min(Timestamp::now()),
                why: None,
            },
            net: None,
            ip: None,
            objects: Objects::default(),
            services: Vec::new(),
            tokens: BTreeMap::new(),
            volumes: BTreeMap::new(),
            refresh_at: None,
            runs: BTreeMap::new(),
            logs: BTreeMap::new(),
            started,
            settled,
            gone: false,
            agent,
            spec,
            pod,
        };
        worker.remember_restarts();
        worker.show();
        (worker, viewed)
    }

    /// An agent that starts afresh goes on counting where the last one stopped.
    fn remember_restarts(&mut self) {
        let Some(status) = &self.pod.status else { return };
        let all = status
            .init_container_statuses
            .iter()
            .chain(&status.container_statuses)
            .flatten();
        for shown in all.filter(|shown| shown.container_id.is_some()) {
            let known = ContainerState {
                restarts: shown.restart_count + 1,
                ..ContainerState::default()
            };
            self.state.containers.insert(shown.name.clone(), known);
        }
    }

    /// Runs the pod until it is gone.
    pub(super) async fn run(mut self) {
        let (statuses, latest) = watch::channel(None);
        let mut reporter = JoinSet::new();
        reporter.spawn(report(self.pods(), self.name.clone(), self.uid.clone(), latest));
        loop {
            self.take_in_deletion();
            let wake_at = if self.settled { None } else { self.step().await };
            if !self.settled {
                self.publish(&statuses);
            }
            self.show();
            if self.is_finished() {
                break;
            }
            let pause = wake_at.map_or(Duration::from_secs(3600), until);
            tokio::select! {
                Some(note) = self.inbox.recv() => {
                    self.observe(note);
                    // Whatever has come in meanwhile is planned for at once.
                    while let Ok(note) = self.inbox.try_recv() {
                        self.observe(note);
                    }
                }
                changed = self.updates.changed() => self.gone |= changed.is_err(),
                () = self.sources.notified() => self.refresh_now(),
                () = tokio::time::sleep(pause) => {}
            }
        }
        // The reporter sends what is left and ends.
        drop(statuses);
        while reporter.join_next().await.is_some() {}
        self.release().await;
        if !self.gone {
            delete(&self.pods(), &self.name, &self.uid).await;
        }
        for directory in [&self.directory, &self.log_directory] {
            if let Err(error) = remove_pod_directory(directory) {
                tracing::warn!(pod = self.name, namespace = self.namespace, %error, "removing the pod's directory");
            }
        }
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.agent.config.client.clone(), &self.namespace)
    }

    fn is_finished(&self) -> bool {
        let deleting = self.state.deleting.is_some();
        deleting && (self.settled || plan(&self.spec, &self.state, Timestamp::now()).over)
    }

    /// Takes over the latest version of the pod.
    fn take_in_deletion(&mut self) {
        let latest = self.updates.borrow_and_update().clone();
        let Some(mut pod) = latest else {
            self.gone = true;
            self.state.deleting = Some(
                self.state
                    .deleting
                    .map_or_else(Timestamp::now, |at| at.min(Timestamp::now())),
            );
            return;
        };
        if pod.metadata.resource_version != self.pod.metadata.resource_version {
            let relabelled = pod.metadata.labels != self.pod.metadata.labels
                || pod.metadata.annotations != self.pod.metadata.annotations;
            // Of the status only what others write is news to us.
            let foreign = pod
                .status
                .take()
                .and_then(|status| status.conditions)
                .unwrap_or_default();
            let mut own = self.pod.status.take().unwrap_or_default();
            own.conditions.get_or_insert_default().retain(status::is_own);
            own.conditions
                .get_or_insert_default()
                .extend(foreign.into_iter().filter(|condition| !status::is_own(condition)));
            pod.status = Some(own);
            // Images may change in a pod that runs; nothing else of interest may.
            self.spec = pod.spec.clone().unwrap_or_default();
            self.pod = pod;
            if relabelled {
                self.refresh_now();
            }
        }
        if self.pod.metadata.deletion_timestamp.is_some() {
            let grace = SignedDuration::from_secs(
                self.pod
                    .metadata
                    .deletion_grace_period_seconds
                    .unwrap_or(0)
                    .max(0),
            );
            let deadline = Timestamp::now() + grace;
            self.state.deleting = Some(
                self.state
                    .deleting
                    .map_or(deadline, |earlier| earlier.min(deadline)),
            );
        }
    }

    fn refresh_now(&mut self) {
        self.refresh_at = Some(Timestamp::now());
        if let SetUp::Pending { retry_at, .. } = &mut self.set_up {
            *retry_at = Timestamp::now();
        }
        for container in self.state.containers.values_mut() {
            if let Current::Waiting { retry_at, .. } = &mut container.current {
                *retry_at = None;
            }
        }
    }

    /// Does everything that can be done now; returns when to come back if nothing happens.
    async fn step(&mut self) -> Option<Timestamp> {
        let now = Timestamp::now();
        let phase = status::phase(&self.spec, &self.state);
        if self.state.deleting.is_none() && status::is_over(phase) && self.runs.is_empty() {
            // Nothing runs any more; the network can go while the pod stays to be looked at.
            self.release().await;
            return None;
        }
        let mut wakes = Vec::new();
        if self.state.deleting.is_none() {
            if let SetUp::Pending { retry_at, .. } = &self.set_up {
                if *retry_at > now {
                    return Some(*retry_at);
                }
                if let Err(error) = self.prepare().await {
                    let why = chain(&error);
                    self.agent
                        .events
                        .record(&self.pod, None, Severity::Warning, "FailedMount", &why);
                    let retry_at = Timestamp::now() + RETRY;
                    self.set_up = SetUp::Pending {
                        retry_at,
                        why: Some(why),
                    };
                    return Some(retry_at);
                }
                self.set_up = SetUp::Done;
            } else if self.refresh_at.is_some_and(|at| at <= now) {
                self.refresh().await;
            }
            wakes.extend(self.refresh_at);
            wakes.extend(self.check_deadline(now));
        }
        loop {
            let plan = plan(&self.spec, &self.state, Timestamp::now());
            self.state.initialized = plan.initialized;
            if plan.actions.is_empty() {
                wakes.extend(plan.wake_at);
                return wakes.into_iter().min();
            }
            for action in plan.actions {
                match action {
                    Action::Start(name) => self.start(&name).await,
                    Action::Stop { container, deadline } => self.stop(&container, deadline),
                }
            }
        }
    }

    fn check_deadline(&mut self, now: Timestamp) -> Option<Timestamp> {
        let deadline = self.started + SignedDuration::from_secs(self.spec.active_deadline_seconds?);
        if deadline > now {
            return Some(deadline);
        }
        let message = "Pod was active on the node longer than the specified deadline";
        self.state
            .failed
            .get_or_insert_with(|| ("DeadlineExceeded".to_owned(), message.to_owned()));
        None
    }

    // What the pod needs before its first container.

    async fn prepare(&mut self) -> Result<(), SetUpError> {
        if self.net.is_none() {
            let net = self
                .agent
                .config
                .networks
                .add_pod(&self.uid)
                .await
                .map_err(SetUpError::Network)?;
            self.ip = Some(net.ip().to_string());
            self.net = Some(net);
        }
        self.fetch().await?;
        self.update_tokens().await?;
        self.update_volumes()
    }

    /// Reads what the pod refers to, and the Services that its containers are told of.
    async fn fetch(&mut self) -> Result<(), kube::Error> {
        let client = || self.agent.config.client.clone();
        let references = env::references(&self.spec);
        let config_maps: Api<ConfigMap> = Api::namespaced(client(), &self.namespace);
        let secrets: Api<Secret> = Api::namespaced(client(), &self.namespace);
        let mut objects = Objects::default();
        for name in references.config_maps {
            if let Some(object) = config_maps.get_opt(&name).await? {
                objects.config_maps.insert(name, object);
            }
        }
        for name in references.secrets {
            if let Some(object) = secrets.get_opt(&name).await? {
                objects.secrets.insert(name, object);
            }
        }
        self.objects = objects;
        let services: Api<Service> = Api::namespaced(client(), &self.namespace);
        let mut known = services.list(&ListParams::default()).await?.items;
        if self.namespace != "default" {
            let of_default: Api<Service> = Api::namespaced(client(), "default");
            known.extend(of_default.get_opt("kubernetes").await?);
        }
        for service in &mut known {
            // Items of a list may leave out what the list says.
            service
                .metadata
                .namespace
                .get_or_insert_with(|| self.namespace.clone());
        }
        self.services = env::services(&self.namespace, self.spec.enable_service_links, &known);
        Ok(())
    }

    /// Gets tokens that are missing or due for renewal.
    async fn update_tokens(&mut self) -> Result<(), kube::Error> {
        let accounts: Api<ServiceAccount> =
            Api::namespaced(self.agent.config.client.clone(), &self.namespace);
        for wanted in volume::tokens(&self.spec) {
            let now = Timestamp::now();
            if self.tokens.get(&wanted).is_some_and(|token| token.renew_at > now) {
                continue;
            }
            let request = authentication::TokenRequest {
                spec: authentication::TokenRequestSpec {
                    audiences: wanted.audience.iter().cloned().collect(),
                    expiration_seconds: Some(wanted.lifetime_s),
                    bound_object_ref: Some(authentication::BoundObjectReference {
                        api_version: Some("v1".to_owned()),
                        kind: Some("Pod".to_owned()),
                        name: Some(self.name.clone()),
                        uid: Some(self.uid.clone()),
                    }),
                },
                ..authentication::TokenRequest::default()
            };
            let account = env::service_account(&self.pod);
            let answer = accounts
                .create_token_request(account, &PostParams::default(), &request)
                .await?;
            let Some(issued) = answer.status else { continue };
            let lifetime = issued.expiration_timestamp.0.duration_since(now);
            let token = Token {
                value: issued.token,
                renew_at: now + lifetime * 4 / 5,
            };
            self.tokens.insert(wanted, token);
        }
        self.refresh_at = self.tokens.values().map(|token| token.renew_at).min();
        Ok(())
    }

    fn facts(&self) -> Facts<'_> {
        Facts {
            pod: &self.pod,
            pod_ip: self.ip.clone().unwrap_or_default(),
            host_ip: self.agent.config.addresses.node.to_string(),
            allocatable: capacity(),
        }
    }

    /// Makes the volumes, and brings those up to date whose files follow something else.
    fn update_volumes(&mut self) -> Result<(), SetUpError> {
        let tokens = self
            .tokens
            .iter()
            .map(|(wanted, token)| (wanted.clone(), token.value.clone()))
            .collect();
        for volume in self.spec.volumes.clone().unwrap_or_default() {
            let failed = |source| SetUpError::Volume {
                name: volume.name.clone(),
                source,
            };
            let path = self.directory.join("volumes").join(&volume.name);
            let content = volume::content(&volume, &self.facts(), &self.objects, &tokens)?;
            let known = self.volumes.get_mut(&volume.name);
            match (content, known) {
                (Content::Files(files), Some(Volume::Live(directory, _))) => {
                    directory.write(files).map_err(failed)?;
                }
                (Content::Files(files), _) => {
                    let mut directory = Directory::new(path.clone());
                    directory.write(files).map_err(failed)?;
                    self.volumes
                        .insert(volume.name.clone(), Volume::Live(directory, path));
                }
                (_, Some(_)) => {}
                (Content::Host(path), None) => {
                    let allowed = self.agent.config.host_paths.iter();
                    let real = path.canonicalize().map_err(failed)?;
                    if !allowed
                        .filter_map(|allowed| allowed.canonicalize().ok())
                        .any(|one| real.starts_with(one))
                    {
                        let what = format!("this node doesn't show {} to pods", path.display());
                        return Err(ConfigError::Other(what).into());
                    }
                    self.volumes.insert(volume.name.clone(), Volume::Fixed(real));
                }
                (content @ (Content::Empty | Content::Memory), None) => {
                    make_shared_directory(&path).map_err(failed)?;
                    if content == Content::Memory {
                        mount_memory(&path);
                    }
                    self.volumes.insert(volume.name.clone(), Volume::Fixed(path));
                }
            }
        }
        Ok(())
    }

    async fn refresh(&mut self) {
        self.refresh_at = None;
        let outcome = async {
            self.fetch().await?;
            self.update_tokens().await?;
            self.update_volumes()
        };
        if let Err(error) = outcome.await {
            // What the containers see stays as it was.
            let why = chain(&error);
            self.agent
                .events
                .record(&self.pod, None, Severity::Warning, "FailedMount", &why);
            self.refresh_at = Some(Timestamp::now() + RETRY);
        }
    }

    // Containers.

    fn container(&self, name: &str) -> Option<Container> {
        init_containers(&self.spec)
            .iter()
            .chain(&self.spec.containers)
            .find(|one| one.name == name)
            .cloned()
    }

    async fn start(&mut self, name: &str) {
        let Some(container) = self.container(name) else {
            return;
        };
        let state = self.state.containers.entry(name.to_owned()).or_default();
        if let Current::Ended(ended) = &state.current {
            state.last = Some(ended.clone());
            state.restarts += 1;
            state.current = Current::default();
            // The world may have changed since the last start.
            if let Err(error) = self.fetch().await {
                return self.hold(name, "CreateContainerConfigError", chain(&error));
            }
        }
        let id = hex(rand::random::<[u8; 32]>());
        match self.launch(&container, &id).await {
            Ok(()) => {}
            Err(Refusal::Unready(unready)) => {
                self.agent.events.record(
                    &self.pod,
                    Some(name),
                    Severity::Warning,
                    "Failed",
                    &unready.message,
                );
                self.hold(name, unready.reason, unready.message);
            }
            Err(Refusal::Start(error)) => {
                let message = chain(&error);
                self.agent
                    .events
                    .record(&self.pod, Some(name), Severity::Warning, "Failed", &message);
                let now = Timestamp::now();
                self.end(
                    name,
                    Ended {
                        id,
                        code: 128,
                        signal: None,
                        reason: "StartError".to_owned(),
                        message: Some(message),
                        started: None,
                        at: now,
                    },
                );
            }
        }
    }

    /// The container waits, for a reason that may go away.
    fn hold(&mut self, name: &str, reason: &str, message: String) {
        let state = self.state.containers.entry(name.to_owned()).or_default();
        let why = Some((reason.to_owned(), message));
        state.current = Current::Waiting {
            why,
            retry_at: Some(Timestamp::now() + RETRY),
        };
    }

    fn end(&mut self, name: &str, ended: Ended) {
        let state = self.state.containers.entry(name.to_owned()).or_default();
        state.ends = plan::count_end(state.ends, &ended);
        state.current = Current::Ended(ended);
    }

    async fn launch(&mut self, container: &Container, id: &str) -> Result<(), Refusal> {
        let name = container.name.as_str();
        let own = self.directory.join("containers").join(name);
        let log_directory = self.log_directory.join(name);
        let (root, termination_log) = (own.join("root"), own.join("termination-log"));
        let restarts = self.state.containers.get(name).map_or(0, |state| state.restarts);
        let files = || {
            fs::create_dir_all(&root)?;
            fs::create_dir_all(&log_directory)?;
            fs::write(&termination_log, "")?;
            fs::set_permissions(
                &termination_log,
                std::os::unix::fs::PermissionsExt::from_mode(0o666),
            )
        };
        files().map_err(StartError::Starter)?;
        let volumes = self.volumes.iter().map(|(name, volume)| match volume {
            Volume::Live(_, path) | Volume::Fixed(path) => (name.clone(), path.clone()),
        });
        let facts = self.facts();
        let config = &self.agent.config;
        let create = recipe::create(
            container,
            &Ingredients {
                facts: &facts,
                objects: &self.objects,
                services: &self.services,
                images: &config.images,
                addresses: &config.addresses,
                volumes: volumes.collect(),
                netns: self.net.as_ref().and_then(|net| net.netns()),
                root,
                termination_log,
            },
        )?;
        let process = create.process.clone();
        let starter = config.images.executable.clone();
        let started = container::start(&starter, &Request::Create(create), Stdio::piped).await?;
        let Started {
            orders,
            supervisor,
            stdout,
            stderr,
            exit,
        } = started;
        let (Some(stdout), Some(stderr)) = (stdout, stderr) else {
            unreachable!("start() was asked for pipes");
        };
        let log = Log::new(log_directory.join(format!("{restarts}.log")));
        let logs = self.logs.entry(name.to_owned()).or_default();
        if let Some(forgotten) = logs.previous.take() {
            forgotten.remove();
        }
        logs.previous = logs.current.replace(Arc::clone(&log));

        let mut tasks = JoinSet::new();
        let (notes, at) = (self.notes.clone(), (name.to_owned(), id.to_owned()));
        tasks.spawn(async move {
            let logging = async {
                if let Err(error) = log.write(stdout, stderr).await {
                    tracing::warn!(%error, "writing a container's log");
                }
            };
            tokio::pin!(logging);
            let mut logged = false;
            let exited = exit.wait();
            tokio::pin!(exited);
            let (code, signal) = loop {
                tokio::select! {
                    ended = &mut exited => break ended,
                    () = &mut logging, if !logged => logged = true,
                }
            };
            if !logged {
                let _ = timeout(OUTPUT_GRACE, &mut logging).await;
            }
            // The worker is gone only if the pod is.
            let _ = notes
                .send(Note {
                    container: at.0,
                    id: at.1,
                    what: What::Exited { code, signal },
                })
                .await;
        });
        let runner = Runner {
            starter,
            supervisor,
            process,
        };
        let hook = container
            .lifecycle
            .as_ref()
            .and_then(|lifecycle| lifecycle.post_start.clone());
        let running = Running {
            id: id.to_owned(),
            since: Timestamp::now(),
            hook_pending: hook.is_some(),
            started: container.startup_probe.is_none(),
            ready: container.readiness_probe.is_none(),
            unhealthy: None,
            stopping: None,
        };
        self.state.containers.entry(name.to_owned()).or_default().current = Current::Running(running);
        let run = Run {
            id: id.to_owned(),
            orders,
            runner,
            tasks,
            stopper: None,
            complaint: None,
        };
        self.runs.insert(name.to_owned(), run);
        let message = format!("Started container {name}");
        self.agent
            .events
            .record(&self.pod, Some(name), Severity::Normal, "Started", &message);
        match hook {
            None => self.probe(name),
            Some(hook) => {
                let Some(target) = self.target(name) else {
                    return Ok(());
                };
                let (notes, container, id) = (self.notes.clone(), name.to_owned(), id.to_owned());
                if let Some(run) = self.runs.get_mut(name) {
                    run.tasks.spawn(async move {
                        let outcome = run_hook(&target, &hook).await;
                        let _ = notes
                            .send(Note {
                                container,
                                id,
                                what: What::Hook(outcome),
                            })
                            .await;
                    });
                }
            }
        }
        Ok(())
    }

    fn target(&self, name: &str) -> Option<Target> {
        let run = self.runs.get(name)?;
        Some(Target {
            net: Arc::clone(self.net.as_ref()?),
            runner: run.runner.clone(),
            container: self.container(name)?,
        })
    }

    /// Begins to ask the container how it is.
    fn probe(&mut self, name: &str) {
        let Some(target) = self.target(name) else { return };
        let Some(run) = self.runs.get_mut(name) else {
            return;
        };
        let (notes, container, id) = (self.notes.clone(), name.to_owned(), run.id.clone());
        run.tasks.spawn(async move {
            let (found, mut findings) = mpsc::channel(1);
            let forward = async {
                while let Some(finding) = findings.recv().await {
                    let (container, id) = (container.clone(), id.clone());
                    // Fails only when the worker has gone, and this task with it.
                    let _ = notes
                        .send(Note {
                            container,
                            id,
                            what: What::Probe(finding),
                        })
                        .await;
                }
            };
            tokio::join!(probe::watch(target, found), forward);
        });
    }

    /// Asks the container to stop and sees to it that it has stopped at the deadline.
    fn stop(&mut self, name: &str, deadline: Timestamp) {
        let target = self.target(name);
        let Some(run) = self.runs.get_mut(name) else {
            return;
        };
        if let Some(Current::Running(running)) = self
            .state
            .containers
            .get_mut(name)
            .map(|container| &mut container.current)
        {
            running.stopping = Some(deadline);
        }
        let orders = run.orders.clone();
        let hook = target
            .as_ref()
            .and_then(|target| target.container.lifecycle.as_ref()?.pre_stop.clone());
        let again = run.stopper.take().inspect(AbortHandle::abort).is_some();
        run.stopper = Some(run.tasks.spawn(async move {
            if !again && deadline > Timestamp::now() {
                if let (Some(target), Some(hook)) = (&target, &hook) {
                    // A hook that fails or takes too long doesn't keep the container alive.
                    let _ = timeout(until(deadline), run_hook(target, hook)).await;
                }
                orders.signal(SIGTERM).await;
            }
            tokio::time::sleep(until(deadline)).await;
            orders.signal(SIGKILL).await;
        }));
        if !again {
            let message = format!("Stopping container {name}");
            self.agent
                .events
                .record(&self.pod, Some(name), Severity::Normal, "Killing", &message);
        }
    }

    fn observe(&mut self, note: Note) {
        let Note {
            container: name,
            id,
            what,
        } = note;
        let Some(run) = self.runs.get_mut(&name).filter(|run| run.id == id) else {
            return;
        };
        let Some(Current::Running(running)) = self
            .state
            .containers
            .get_mut(&name)
            .map(|container| &mut container.current)
        else {
            return;
        };
        match what {
            What::Exited { code, signal } => {
                let started = Some(running.since);
                self.runs.remove(&name);
                let message = self.termination_message(&name, code);
                let reason = if code == 0 { "Completed" } else { "Error" }.to_owned();
                self.end(
                    &name,
                    Ended {
                        id,
                        code,
                        signal,
                        reason,
                        message,
                        started,
                        at: Timestamp::now(),
                    },
                );
            }
            What::Hook(outcome) => {
                running.hook_pending = false;
                match outcome {
                    Ok(()) => self.probe(&name),
                    Err(message) => {
                        running.unhealthy = Some(plan::grace(&self.spec));
                        self.warn(&name, "FailedPostStartHook", &message);
                    }
                }
            }
            What::Probe(Finding::Started) => running.started = true,
            What::Probe(Finding::Ready(ready)) => running.ready = ready,
            What::Probe(Finding::Unhealthy(kind, grace)) => {
                running.unhealthy = Some(grace.unwrap_or_else(|| plan::grace(&self.spec)));
                let message = format!("{kind} probe failed, the container will be restarted");
                self.warn(&name, "Unhealthy", &message);
            }
            What::Probe(Finding::Failure(kind, why)) => {
                let message = format!("{kind} probe failed: {why}");
                if run.complaint.as_ref() != Some(&message) {
                    run.complaint = Some(message.clone());
                    self.warn(&name, "Unhealthy", &message);
                }
            }
        }
    }

    fn warn(&self, container: &str, reason: &str, message: &str) {
        self.agent
            .events
            .record(&self.pod, Some(container), Severity::Warning, reason, message);
    }

    /// What the container left behind about its end.
    fn termination_message(&self, name: &str, code: i32) -> Option<String> {
        let path = self
            .directory
            .join("containers")
            .join(name)
            .join("termination-log");
        // A container that ran as the user we are may have done anything to the file; then it says nothing.
        let mut bytes = fs::read(path).unwrap_or_default();
        bytes.truncate(TERMINATION_MESSAGE_MAX);
        if !bytes.is_empty() {
            return Some(String::from_utf8_lossy(&bytes).into_owned());
        }
        let policy = self.container(name)?.termination_message_policy;
        if code == 0 || policy.as_deref() != Some("FallbackToLogsOnError") {
            return None;
        }
        let log = self.logs.get(name)?.current.as_ref()?;
        Some(log.tail(TERMINATION_TAIL_LINES, TERMINATION_TAIL_BYTES)).filter(|text| !text.is_empty())
    }

    // What others see.

    fn publish(&mut self, statuses: &watch::Sender<Option<PodStatus>>) {
        let place = Place {
            host_ip: self.agent.config.addresses.node.to_string(),
            pod_ip: self.ip.clone(),
            started: self.started,
        };
        let mut shown = status::render(&self.pod, &self.state, &place, Timestamp::now());
        if let SetUp::Pending { why: Some(why), .. } = &self.set_up {
            shown.message = Some(why.clone());
        }
        if self.pod.status.as_ref() != Some(&shown) {
            statuses.send_replace(Some(shown.clone()));
            self.pod.status = Some(shown);
        }
    }

    fn show(&self) {
        let mut view = View {
            net: self.net.clone(),
            containers: BTreeMap::new(),
        };
        for container in init_containers(&self.spec).iter().chain(&self.spec.containers) {
            let name = &container.name;
            let logs = self.logs.get(name).cloned().unwrap_or_default();
            let waiting = match self.state.containers.get(name).map(|state| &state.current) {
                Some(Current::Waiting {
                    why: Some((reason, message)),
                    ..
                }) => format!("{reason}: {message}"),
                Some(Current::Ended(ended)) => format!("terminated: {}", ended.reason),
                _ if self.settled => "the pod is over".to_owned(),
                _ if self.state.initialized => "ContainerCreating".to_owned(),
                _ => "PodInitializing".to_owned(),
            };
            let runner = self.runs.get(name).map(|run| run.runner.clone());
            let shown = ContainerView {
                runner,
                log: logs.current,
                previous_log: logs.previous,
                waiting,
            };
            view.containers.insert(name.clone(), shown);
        }
        self.view.send_replace(Arc::new(view));
    }

    async fn release(&mut self) {
        self.runs.clear();
        if self.net.take().is_some() {
            self.agent.config.networks.remove_pod(&self.uid).await;
        }
    }
}

enum Refusal {
    Unready(Unready),
    Start(StartError),
}

impl From<Unready> for Refusal {
    fn from(unready: Unready) -> Self {
        Self::Unready(unready)
    }
}

impl From<StartError> for Refusal {
    fn from(error: StartError) -> Self {
        Self::Start(error)
    }
}

async fn run_hook(target: &Target, hook: &LifecycleHandler) -> Result<(), String> {
    if let Some(action) = &hook.exec {
        let command = action.command.as_deref().unwrap_or_default();
        return match target.runner.run(command).await {
            Ok((0, _)) => Ok(()),
            Ok((code, output)) => Err(format!("hook ended with code {code}: {output}")),
            Err(error) => Err(chain(&error)),
        };
    }
    if let Some(action) = &hook.http_get {
        return probe::http_get(target, action).await;
    }
    if let Some(action) = &hook.sleep {
        tokio::time::sleep(Duration::from_secs(u64::try_from(action.seconds).unwrap_or(0))).await;
    }
    Ok(())
}

/// Sends the latest status until the worker has gone and the last one has arrived.
async fn report(pods: Api<Pod>, name: String, uid: String, mut latest: watch::Receiver<Option<PodStatus>>) {
    let mut pause = Duration::from_millis(50);
    loop {
        // `changed` also marks the value as seen, so whether it has arrived must be remembered here.
        let open = latest.changed().await.is_ok();
        let Some(mut status) = latest.borrow_and_update().clone() else {
            return;
        };
        loop {
            let patch = json!({"metadata": {"uid": uid}, "status": status});
            match pods
                .patch_status(&name, &PatchParams::default(), &Patch::Merge(patch))
                .await
            {
                Ok(_) => break,
                // Gone, or another pod of that name.
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => return,
                Err(kube::Error::Api(status)) if names_another(&status) => return,
                Err(error) => {
                    tracing::warn!(pod = name, error = chain(&error), "writing a pod's status");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(API_RETRY_MAX);
                    if let Some(newer) = latest.borrow_and_update().clone() {
                        status = newer;
                    }
                }
            }
        }
        pause = Duration::from_millis(50);
        if !open {
            return;
        }
    }
}

/// Kubernetes takes a patch with another uid for an attempt to change it.
fn names_another(status: &kube::core::Status) -> bool {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    status.code == 422 && causes.into_iter().any(|cause| cause.field == "metadata.uid")
}

/// Tells the API that nothing is left of the pod.
async fn delete(pods: &Api<Pod>, name: &str, uid: &str) {
    let only = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions {
            uid: Some(uid.to_owned()),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    let mut pause = Duration::from_millis(50);
    loop {
        match pods.delete(name, &only).await {
            Ok(_) => return,
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => return,
            Err(error) => tracing::warn!(pod = name, error = chain(&error), "deleting a pod that has ended"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(API_RETRY_MAX);
    }
}

fn until(at: Timestamp) -> Duration {
    Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or(Duration::ZERO)
}

fn hex(bytes: [u8; 32]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Containers of one pod may run as different users, and all of them may write.
fn make_shared_directory(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)?;
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o777))
}

/// Without the right to mount, the volume is on disk like any other.
fn mount_memory(path: &Path) {
    use nix::mount::{MsFlags, mount};
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    if let Err(error) = mount(Some("tmpfs"), path, Some("tmpfs"), flags, Some("mode=0777")) {
        tracing::warn!(path = %path.display(), %error, "mounting an emptyDir in memory");
    }
}

/// Removes a directory with all that is mounted in it; it may not exist.
pub(super) fn remove_pod_directory(path: &Path) -> io::Result<()> {
    let real = match path.canonicalize() {
        Ok(real) => real,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for point in super::starter::mounts_below(&real)?.into_iter().rev() {
        nix::mount::umount2(&point, nix::mount::MntFlags::MNT_DETACH)?;
    }
    fs::remove_dir_all(real)
}
