//! `hawser-control service-mirror`: mirrors the services that a linked cluster exports.
//!
//! Watches of both clusters become a [`snapshot`]; [`plan`] decides what the mirrors should look like; [`apply`] writes
//! it; [`status`] reports it on the Link. The loop here joins them: it is told that something changed, looks at the
//! whole, and does what is missing. Deletion, repair, orphan collection and restart are the same code as the ordinary
//! case, and nothing is ever given up on. Source: `spec/multicluster.md` 3 and 6.

mod apply;
mod federated;
mod gateway;
mod headless;
mod links;
mod plan;
mod probe;
pub mod reach;
mod remote;
mod snapshot;
mod status;

use std::time::Duration;

use anyhow::Context as _;
use hawser_crd::Link;
use hawser_crd::keys;
use hawser_crd::link::Probe;
use hawser_crd::selector;
use hawser_runtime::Metrics;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Endpoints, Namespace, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::lead::{self, Next, Work};
use crate::observe::{Bell, Key, Limit, Observed, Select, chain};
use crate::process::{Process, ProcessArgs};
pub use federated::LocalConfig;
use federated::LocalMembers;
use gateway::{Gateway, GatewayKey};
pub use probe::{FAILURE_METRIC, LATENCY_METRIC, LATENCY_QUANTILES, LATENCY_WINDOWS};
pub use remote::{Connect, RemoteError, connector};
pub(crate) use remote::{Heartbeat, Reach};
use remote::{Session, SessionKey};
use snapshot::{Addresses, LinkView, LocalEndpoints, LocalService, LocalSlice, Seniorities, Snapshot};
use status::Health;

/// Far more than a cluster has; a bound all the same.
const LOCAL_MAX: Limit = Limit(100_000);

/// Mirrors the services that a linked cluster exports.
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "Example: hawser-control service-mirror --namespace linkerd-multicluster --probe-service probe-gateway-east east"
)]
pub struct Args {
    #[command(flatten)]
    pub process: ProcessArgs,
    /// Where the Link, its credentials and the probe service live
    #[arg(long, default_value = keys::MULTICLUSTER_NAMESPACE)]
    pub namespace: String,
    /// Service through which the gateway is probed; without it the gateway is taken to be alive
    #[arg(long)]
    pub probe_service: Option<String>,
    /// Write EndpointSlices too (only where no EndpointSlice mirroring controller runs)
    #[arg(long)]
    pub write_endpoint_slices: bool,
    /// Give the pods of headless services mirrors of their own (otherwise such a service is mirrored as a whole)
    #[arg(long)]
    pub enable_headless_services: bool,
    /// Make the namespaces of mirrors where they are missing
    #[arg(long)]
    pub enable_namespace_creation: bool,
    /// Leave the mirrors of a Link that is deleted, as Linkerd does
    #[arg(long)]
    pub keep_mirrors: bool,
    /// Accepted for compatibility: failed writes are retried until they succeed
    #[arg(long, hide = true)]
    pub event_requeue_limit: Option<u32>,
    /// Make this cluster's own services join federated ones, instead of serving a Link
    #[arg(long)]
    pub local_mirror: bool,
    /// With --local-mirror: labels of services that join
    #[arg(long, default_value = "mirror.linkerd.io/federated=member")]
    pub federated_service_selector: String,
    /// With --local-mirror: annotations that federated services don't take over
    #[arg(long, value_delimiter = ',')]
    pub excluded_annotations: Vec<String>,
    /// With --local-mirror: labels that federated services don't take over
    #[arg(long, value_delimiter = ',')]
    pub excluded_labels: Vec<String>,
    /// Look after every Link that has no controller of its own, instead of serving one
    #[arg(long)]
    pub all_links: bool,
    /// Name of the Link
    #[arg(
        value_name = "LINK",
        required_unless_present_any = ["local_mirror", "all_links"],
        conflicts_with_all = ["local_mirror", "all_links"]
    )]
    pub link: Option<String>,
}

/// What a mirror controller is for, apart from the cluster it runs in.
#[derive(Clone, Debug, Default)]
pub struct Config {
    pub namespace: String,
    pub link: String,
    /// Through which the gateway is probed.
    pub probe_service: Option<String>,
    /// Whether nobody else makes that Service.
    pub makes_probe_service: bool,
    pub write_endpoint_slices: bool,
    pub mirrors_headless: bool,
    pub makes_namespaces: bool,
    /// Whether mirrors outlive their Link.
    pub keeps_mirrors: bool,
}

pub async fn run(args: Args) -> anyhow::Result<()> {
    let process = Process::start(keys::CONTROLLER_ADMIN_PORT, &args.process).await?;
    reach::answer_on(&process.pages, process.client.clone());
    let config = Config {
        namespace: args.namespace,
        link: args.link.unwrap_or_default(),
        probe_service: args.probe_service.filter(|name| !name.is_empty()),
        makes_probe_service: args.all_links,
        write_endpoint_slices: args.write_endpoint_slices,
        mirrors_headless: args.enable_headless_services,
        makes_namespaces: args.enable_namespace_creation,
        keeps_mirrors: args.keep_mirrors,
    };
    if !config.link.is_empty() {
        let (client, metrics) = (process.client.clone(), process.metrics.clone());
        let (bell, namespace) = (Bell::default(), config.namespace.clone());
        let lease = keys::service_mirror_lease(&config.link);
        let controller = Controller::new(client, config, connector(), metrics, bell.clone());
        return lead::run(process, &namespace, lease, bell, controller).await;
    }
    let local = if args.local_mirror {
        let selector = selector::from_query(&args.federated_service_selector)
            .and_then(|selector| selector::parse(Some(&selector)))
            .context("--federated-service-selector")?;
        Some(LocalConfig {
            namespace: config.namespace.clone(),
            selector,
            excluded_annotations: args.excluded_annotations,
            excluded_labels: args.excluded_labels,
        })
    } else {
        None
    };
    serve_cluster(process, config, local, args.all_links).await
}

/// What a cluster needs once: its own members of federated Services, and the Links without a controller.
async fn serve_cluster(
    process: Process,
    config: Config,
    local: Option<LocalConfig>,
    all_links: bool,
) -> anyhow::Result<()> {
    let (client, drain, identity) = (process.client.clone(), process.drain.clone(), lead::identity());
    let mut works = JoinSet::new();
    if let Some(local) = local {
        let (bell, candidate) = (
            Bell::default(),
            lead::Candidate {
                client: client.clone(),
                namespace: config.namespace.clone(),
                lease: keys::LOCAL_MIRROR_LEASE.into(),
                identity: identity.clone(),
            },
        );
        let members = LocalMembers::new(client.clone(), local, bell.clone());
        works.spawn(lead::lead(candidate, bell, members, drain.clone()));
    }
    if all_links {
        let metrics = process.metrics.clone();
        works.spawn(links::look_after(
            client,
            config,
            identity,
            connector(),
            metrics,
            drain.clone(),
        ));
    }
    let first = async {
        // None of them ends before the drain, unless something is wrong with it.
        match works.join_next().await {
            Some(ended) => Ok(ended?),
            None => Ok(()),
        }
    };
    process.serve(first).await?;
    while let Some(ended) = works.join_next().await {
        ended?;
    }
    Ok(())
}

/// Mirrors every Link that has no controller of its own, until shutdown.
pub async fn mirror_all(
    client: Client,
    config: Config,
    identity: String,
    connect: Connect,
    metrics: Metrics,
    shutdown: CancellationToken,
) {
    let config = Config {
        makes_probe_service: true,
        ..config
    };
    links::look_after(client, config, identity, connect, metrics, shutdown).await;
}

/// Mirrors until shutdown, while `leads` says so.
pub async fn mirror(
    client: Client,
    config: Config,
    connect: Connect,
    metrics: Metrics,
    leads: tokio::sync::watch::Receiver<bool>,
    bell: Bell,
    shutdown: CancellationToken,
) {
    let controller = Controller::new(client, config, connect, metrics, bell.clone());
    lead::follow(leads, bell, controller, shutdown).await;
}

/// Keeps this cluster's own members in federated Services until shutdown, while `leads` says so.
pub async fn join_local(
    client: Client,
    config: LocalConfig,
    leads: tokio::sync::watch::Receiver<bool>,
    bell: Bell,
    shutdown: CancellationToken,
) {
    let members = LocalMembers::new(client, config, bell.clone());
    lead::follow(leads, bell, members, shutdown).await;
}

impl Work for Controller {
    async fn reconcile(&mut self) -> Next {
        match self.look().await {
            true => Next::Settled,
            false => Next::Retry,
        }
    }

    /// Mirrors stay as they are.
    fn rest(&mut self) {
        self.session = None;
        self.gateway = None;
    }
}

/// The task that owns all state of one Link's mirror.
struct Controller {
    client: Client,
    config: Config,
    connect: Connect,
    metrics: Metrics,
    bell: Bell,
    links: Observed<Link>,
    credentials: Option<(String, Observed<Vec<u8>>)>,
    namespaces: Observed<()>,
    local: Option<Local>,
    session: Option<Session>,
    gateway: Option<Gateway>,
}

/// What is ours in this cluster. Depends on the target's name, so it follows the Link.
struct Local {
    cluster: String,
    services: Observed<LocalService>,
    endpoints: Observed<LocalEndpoints>,
    slices: Option<Observed<LocalSlice>>,
}

impl Controller {
    fn new(client: Client, config: Config, connect: Connect, metrics: Metrics, bell: Bell) -> Self {
        let own = &config.namespace;
        let links: Api<Link> = Api::namespaced(client.clone(), own);
        let namespaces: Api<Namespace> = Api::all(client.clone());
        Self {
            links: Observed::start(links, Select::all(), LOCAL_MAX, bell.clone(), Some),
            credentials: None,
            namespaces: Observed::start(
                namespaces,
                Select::all(),
                LOCAL_MAX,
                bell.clone(),
                snapshot::namespace,
            ),
            client,
            config,
            connect,
            metrics,
            bell,
            local: None,
            session: None,
            gateway: None,
        }
    }

    /// Looks at everything and does what is missing; says whether all of it succeeded.
    async fn look(&mut self) -> bool {
        let Some(links) = self.links.view() else {
            return true;
        };
        let found = links.get(&Key::new(&self.config.namespace, &self.config.link));
        let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let link = match found.map(|link| LinkView::read(link)) {
            None if self.config.keeps_mirrors => {
                self.rest();
                return true;
            }
            None => None,
            Some(Ok(view)) => Some(view),
            Some(Err(error)) => {
                // Its author will change it, which rings the bell.
                tracing::error!(link = self.config.link, %error, "the link can't be used");
                let error = error.to_string();
                let said = found.and_then(|link| link.status.clone()).unwrap_or_default();
                let status = status::with_health(said.clone(), &said, Health::Invalid(&error), &now);
                let version = found.and_then(|link| link.metadata.resource_version.clone());
                return status == said || self.write_status(&version.unwrap_or_default(), &status).await;
            }
        };
        let cluster = link
            .as_ref()
            .map_or_else(|| self.config.link.clone(), |link| link.cluster.to_string());
        self.follow_local(&cluster);
        self.follow_gateway(link.as_ref());
        let unreachable = self.follow_remote(link.as_ref()).await;
        self.report(&cluster, unreachable.as_deref());
        let seniorities = snapshot::seniorities(&links);
        let Some(snapshot) = self.snapshot(link, seniorities, unreachable) else {
            return true;
        };
        let plan = plan::plan(&snapshot);
        if !plan.writes.is_empty() {
            let labels = [("target_cluster_name", cluster.as_str())];
            self.metrics.add(
                "service_mirror_endpoint_repairs",
                "Times mirrors were written",
                &labels,
                1.0,
            );
        }
        let failures = apply::apply(&self.client, plan.writes.clone()).await;
        if let Some(session) = &self.session {
            for skipped in &plan.skipped {
                apply::event(&session.client, &cluster, skipped, &now).await;
            }
        }
        let Some(link) = &snapshot.link else {
            return failures.is_empty();
        };
        let status = match &snapshot.unreachable {
            Some(reason) => status::unreachable(&link.status, reason, &now),
            None if snapshot.remote.is_none() => None,
            None => {
                let [mirrored, federated] =
                    [&plan.verdicts, &plan.federated].map(|verdicts| apply::settle(verdicts, &failures));
                status::from_verdicts(&link.status, &mirrored, &federated, &now)
            }
        };
        let status = status.unwrap_or_else(|| link.status.clone());
        let status = status::with_health(status, &link.status, self.health(&snapshot), &now);
        let reported = status == link.status || self.write_status(&link.resource_version, &status).await;
        failures.is_empty() && reported
    }

    fn health<'a>(&self, snapshot: &'a Snapshot) -> Health<'a> {
        let is_refused = self
            .session
            .as_ref()
            .is_some_and(|session| matches!(session.reach(), Reach::Refused(_)));
        match &snapshot.unreachable {
            Some(why) if is_refused => Health::Refused(why),
            Some(why) => Health::Unreachable(why),
            None if snapshot.remote.is_none() => Health::Connecting,
            None if snapshot.gateway_is_dead => Health::GatewayDead,
            None => Health::Working,
        }
    }

    fn follow_local(&mut self, cluster: &str) {
        if self.local.as_ref().is_some_and(|local| local.cluster == cluster) {
            return;
        }
        let ours = Select::labels(format!("{}={cluster}", keys::CLUSTER_NAME));
        let name = cluster.to_owned();
        let services: Api<Service> = Api::all(self.client.clone());
        let endpoints: Api<Endpoints> = Api::all(self.client.clone());
        let slices: Api<EndpointSlice> = Api::all(self.client.clone());
        self.local = Some(Local {
            cluster: cluster.to_owned(),
            services: Observed::start(
                services,
                Select::all(),
                LOCAL_MAX,
                self.bell.clone(),
                move |service| snapshot::local_service(service, &name),
            ),
            endpoints: Observed::start(
                endpoints,
                ours.clone(),
                LOCAL_MAX,
                self.bell.clone(),
                snapshot::local_endpoints,
            ),
            slices: self
                .config
                .write_endpoint_slices
                .then(|| Observed::start(slices, ours, LOCAL_MAX, self.bell.clone(), snapshot::local_slice)),
        });
    }

    fn follow_gateway(&mut self, link: Option<&LinkView>) {
        let key = link.and_then(|link| {
            Some(GatewayKey {
                cluster: link.cluster.to_string(),
                spec: link.gateway.clone()?,
                probe: link.probe.clone().map(|probe| Probe {
                    port: self.probe_port().unwrap_or(probe.port),
                    ..probe
                }),
                probe_host: self.config.probe_service.clone(),
            })
        });
        if self.gateway.as_ref().map(|gateway| &gateway.key) != key.as_ref() {
            // The old one first: dropping it forgets its metrics.
            self.gateway = None;
            self.gateway = key.map(|key| Gateway::follow(key, self.metrics.clone(), self.bell.clone()));
        }
    }

    /// The port of the Service through which the gateway is probed, if that Service is known. It leads to the Link's
    /// port, and need not be the same: a node port is rarely the one that a gateway has by default.
    fn probe_port(&self) -> Option<u16> {
        let services = self.local.as_ref()?.services.view()?;
        let place = Key::new(&self.config.namespace, self.config.probe_service.as_deref()?);
        let ports = &services.get(&place)?.ports;
        let port = ports.iter().find(|port| port.name == keys::PROBE_PORT_NAME)?;
        u16::try_from(port.port).ok()
    }

    /// Keeps a session with the target; says why there is none, if so.
    async fn follow_remote(&mut self, link: Option<&LinkView>) -> Option<String> {
        let Some(link) = link else {
            self.session = None;
            return None;
        };
        self.follow_credentials(&link.credentials);
        let secrets = self.credentials.as_ref()?.1.view()?;
        let place = Key::new(&self.config.namespace, &link.credentials);
        let Some(kubeconfig) = secrets.get(&place) else {
            self.session = None;
            return Some(format!("there is no secret {place} with its credentials"));
        };
        let key = SessionKey {
            kubeconfig: kubeconfig.as_ref().clone(),
            exported: link.exported.clone(),
            remote_discovery: link.remote_discovery.clone(),
            federated: link.federated.clone(),
        };
        let is_current = self
            .session
            .as_ref()
            .is_some_and(|session| session.key == key && session.reach() != Reach::Recovered);
        if !is_current {
            self.session = None;
            match Session::start(key, &self.connect, &self.bell).await {
                Ok(session) => self.session = Some(session),
                Err(error) => return Some(error.to_string()),
            }
        }
        let session = self.session.as_mut()?;
        match session.reach() {
            Reach::Down(error) => Some(format!("{}: {error}", session.server)),
            Reach::Refused(error) => {
                session.stop_watching();
                Some(error)
            }
            _ => session.trouble(),
        }
    }

    /// Watches the one Secret that the Link names, so that a rotation is seen at once.
    fn follow_credentials(&mut self, name: &str) {
        if self
            .credentials
            .as_ref()
            .is_some_and(|(followed, _)| followed == name)
        {
            return;
        }
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &self.config.namespace);
        let kubeconfig = |secret: Secret| {
            let is_kubeconfig = secret.type_.as_deref() == Some(keys::KUBECONFIG_SECRET_TYPE);
            let data = secret.data?.remove(keys::KUBECONFIG_SECRET_KEY)?;
            is_kubeconfig.then_some(data.0)
        };
        let observed = Observed::start(
            secrets,
            Select::named(name),
            LOCAL_MAX,
            self.bell.clone(),
            kubeconfig,
        );
        self.credentials = Some((name.to_owned(), observed));
    }

    fn report(&self, cluster: &str, unreachable: Option<&str>) {
        let value = if unreachable.is_some() { 0.0 } else { 1.0 };
        let labels = [("target_cluster_name", cluster)];
        self.metrics.set(
            "target_cluster_reachable",
            "Whether the target's API server answers",
            &labels,
            value,
        );
    }

    /// `None` while this cluster isn't completely known.
    fn snapshot(
        &self,
        link: Option<LinkView>,
        links: Seniorities,
        unreachable: Option<String>,
    ) -> Option<Snapshot> {
        let local = self.local.as_ref()?;
        let slices = match &local.slices {
            Some(slices) => slices.view()?,
            None => Default::default(),
        };
        Some(Snapshot {
            namespace: self.config.namespace.clone(),
            link_name: self.config.link.clone(),
            link,
            links,
            probe_service: self.config.probe_service.clone(),
            makes_probe_service: self.config.makes_probe_service,
            mirrors_headless: self.config.mirrors_headless,
            makes_namespaces: self.config.makes_namespaces,
            write_slices: self.config.write_endpoint_slices,
            namespaces: self.namespaces.view()?,
            services: local.services.view()?,
            endpoints: local.endpoints.view()?,
            slices,
            // An unreachable target's last view is as good as any until it answers again.
            remote: self.session.as_ref().and_then(Session::view),
            unreachable,
            addresses: self
                .gateway
                .as_ref()
                .map_or(Addresses::Unknown, Gateway::addresses),
            gateway_is_dead: self.gateway.as_ref().is_some_and(Gateway::is_dead),
        })
    }

    async fn write_status(&self, version: &str, status: &hawser_crd::link::LinkStatus) -> bool {
        let links: Api<Link> = Api::namespaced(self.client.clone(), &self.config.namespace);
        let patch = json!({"metadata": {"resourceVersion": version}, "status": status});
        let (params, patch) = (PatchParams::default(), Patch::Merge(patch));
        let write = links.patch_status(&self.config.link, &params, &patch);
        match tokio::time::timeout(Duration::from_secs(10), write).await {
            Ok(Ok(_)) => true,
            // The Link changed meanwhile; its new version is on the way to us.
            Ok(Err(kube::Error::Api(error))) if error.code == 409 => true,
            Ok(Err(error)) => {
                tracing::warn!(
                    link = self.config.link,
                    error = chain(&error),
                    "status of the link not written"
                );
                false
            }
            Err(_) => false,
        }
    }
}
