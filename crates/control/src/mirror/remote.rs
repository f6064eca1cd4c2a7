//! The target cluster, as its credentials Secret lets us see it.
//!
//! Only what the Link's selectors match is watched, and only a bounded amount. A heartbeat tells a silent API server
//! from a quiet one; whoever owns the session makes a new one when the server answers again, because the old
//! connections may be dead without knowing it.
//!
//! The kubeconfig comes from a Secret that another cluster's administrator made: it may name no files of this pod
//! and no programs to run, or it could send this pod's own credentials elsewhere.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hawser_crd::selector::{self, Query, Selector};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::core::v1::{Endpoints, Service};
use kube::api::PostParams;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Api, Client, Config};
use tokio_util::task::AbortOnDropHandle;

use super::snapshot::{Remote, RemoteEndpoints, RemoteService, remote_endpoints, remote_service};
use crate::observe::{Bell, Limit, Observed, Select, View, chain};

const EXPORTED_MAX: Limit = Limit(10_000);
/// A watch is authorized when it begins, and a real API server lets it go on after its account is gone. So the account
/// is asked about this often, and a refusal ends our watches.
const HEARTBEAT: Duration = Duration::from_millis(700);
const TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    #[error("the kubeconfig is not text")]
    NotText,
    #[error("reading the kubeconfig: {0}")]
    Kubeconfig(#[from] KubeconfigError),
    #[error("the kubeconfig has a {0}, which a link's credentials may not have")]
    Forbidden(&'static str),
    #[error("making a client: {0}")]
    Client(#[from] kube::Error),
    /// Not said by [`connector`], which tries.
    #[error("{0} is not reachable from here, and no context of the kubeconfig leads to the same cluster")]
    Unreachable(String),
}

/// Makes a client of the kubeconfig in a link's Secret.
pub type Connect =
    Arc<dyn Fn(Vec<u8>) -> Pin<Box<dyn Future<Output = Result<Client, RemoteError>> + Send>> + Send + Sync>;

/// Connects over the network.
pub fn connector() -> Connect {
    Arc::new(|kubeconfig| Box::pin(async move { client(&kubeconfig).await }))
}

/// What distinguishes one session from another.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct SessionKey {
    pub kubeconfig: Vec<u8>,
    /// Services that are mirrored behind the gateway.
    pub exported: Selector,
    /// Services that are mirrored without it.
    pub remote_discovery: Selector,
    /// Services that join federated ones.
    pub federated: Selector,
}

/// Whether a cluster's API server lets us watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    Up,
    /// Doesn't answer.
    Down(String),
    /// Answers, and has withdrawn our account or its rights.
    Refused(String),
    /// Was down or refused us, and lets us in again.
    Recovered,
}

pub(crate) struct Session {
    pub key: SessionKey,
    pub client: Client,
    /// Absent where nothing is selected.
    services: Option<Observed<RemoteService>>,
    endpoints: Option<Observed<RemoteEndpoints>>,
    members: Option<Observed<RemoteService>>,
    is_stopped: bool,
    heartbeat: Heartbeat,
    /// Address of the API server.
    pub server: String,
}

/// Asks an API server now and then whether we may still watch; rings when that changes. `target` is its name in logs.
pub(crate) struct Heartbeat {
    reach: Arc<Mutex<Reach>>,
    _task: AbortOnDropHandle<()>,
}

impl Heartbeat {
    pub(crate) fn start(target: String, client: Client, bell: Bell) -> Self {
        let reach = Arc::new(Mutex::new(Reach::Up));
        let task = tokio::spawn(heartbeat(target, client, reach.clone(), bell));
        Self {
            reach,
            _task: AbortOnDropHandle::new(task),
        }
    }

    pub(crate) fn reach(&self) -> Reach {
        self.reach.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Session {
    pub(crate) async fn start(key: SessionKey, connect: &Connect, bell: &Bell) -> Result<Self, RemoteError> {
        let client = connect(key.kubeconfig.clone()).await?;
        let services = |selectors: Vec<Selector>| {
            let select = match selector::any_of(&selectors.iter().collect::<Vec<_>>()) {
                Query::Nothing => return None,
                Query::Labels(query) => Select::labels(query),
                Query::Everything => Select::all(),
            };
            let api: Api<Service> = Api::all(client.clone());
            let reduce = move |service: Service| {
                let labels = service.metadata.labels.clone().unwrap_or_default();
                let is_selected = selectors.iter().any(|selector| selector.matches(&labels));
                is_selected.then(|| remote_service(service)).flatten()
            };
            Some(Observed::start(api, select, EXPORTED_MAX, bell.clone(), reduce))
        };
        let mirrored = services(vec![key.exported.clone(), key.remote_discovery.clone()]);
        let members = services(vec![key.federated.clone()]);
        // Kubernetes copies a Service's labels to its Endpoints, so one query selects both.
        let endpoints = key.exported.query().map(|query| {
            let api: Api<Endpoints> = Api::all(client.clone());
            let select = Select::labels(query);
            Observed::start(api, select, EXPORTED_MAX, bell.clone(), remote_endpoints)
        });
        let server = server(&key.kubeconfig);
        let heartbeat = Heartbeat::start(server.clone(), client.clone(), bell.clone());
        Ok(Self {
            key,
            client,
            services: mirrored,
            endpoints,
            members,
            is_stopped: false,
            heartbeat,
            server,
        })
    }

    /// Ends the watches; the heartbeat goes on, so that we learn when we are let in again.
    pub(crate) fn stop_watching(&mut self) {
        self.is_stopped = true;
        self.services = None;
        self.endpoints = None;
        self.members = None;
    }

    /// What the target exports, once it is completely known and as long as we may know it.
    pub(crate) fn view(&self) -> Option<Remote> {
        if self.is_stopped {
            return None;
        }
        fn complete<T: Send + Sync + 'static>(observed: Option<&Observed<T>>) -> Option<View<T>> {
            observed.map_or_else(|| Some(View::default()), Observed::view)
        }
        Some(Remote {
            services: complete(self.services.as_ref())?,
            endpoints: complete(self.endpoints.as_ref())?,
            members: complete(self.members.as_ref())?,
        })
    }

    pub(crate) fn reach(&self) -> Reach {
        self.heartbeat.reach()
    }

    /// Why the target can't be listed although it answers: missing permissions, most likely.
    pub(crate) fn trouble(&self) -> Option<String> {
        if self.view().is_some() {
            return None;
        }
        let services = [&self.services, &self.members].into_iter().flatten();
        let mut troubles = services
            .map(Observed::trouble)
            .chain(self.endpoints.as_ref().map(Observed::trouble));
        troubles.find_map(|trouble| trouble)
    }
}

async fn heartbeat(target: String, client: Client, reach: Arc<Mutex<Reach>>, bell: Bell) {
    loop {
        let answer = match tokio::time::timeout(TIMEOUT, may_watch(&client)).await {
            Ok(answer) => answer,
            Err(_) => Reach::Down(format!("no answer within {TIMEOUT:?}")),
        };
        let next = {
            let mut reach = reach.lock().unwrap_or_else(PoisonError::into_inner);
            let next = match (&*reach, answer) {
                (Reach::Up, Reach::Up) => Reach::Up,
                (_, Reach::Up) => Reach::Recovered,
                // The reason differs from attempt to attempt; the first one is worth as much as the last.
                (Reach::Down(first), Reach::Down(_)) => Reach::Down(first.clone()),
                (Reach::Refused(first), Reach::Refused(_)) => Reach::Refused(first.clone()),
                (_, other) => other,
            };
            let changed = *reach != next;
            *reach = next.clone();
            changed.then_some(next)
        };
        if let Some(next) = next {
            match &next {
                Reach::Down(error) => {
                    tracing::warn!(
                        target_cluster = target,
                        error,
                        "target cluster does not answer; what is known of it stays as it is"
                    )
                }
                Reach::Refused(error) => {
                    tracing::warn!(
                        target_cluster = target,
                        error,
                        "target cluster refuses our account; what is known of it stays as it is"
                    )
                }
                _ => tracing::info!(target_cluster = target, "target cluster answers again"),
            }
            bell.ring();
        }
        tokio::time::sleep(HEARTBEAT).await;
    }
}

/// Asks the target whether our account exists and may still watch. The question is authenticated and authorized anew
/// each time, and costs the target nothing but that.
async fn may_watch(client: &Client) -> Reach {
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(ResourceAttributes {
                resource: Some("services".into()),
                verb: Some("watch".into()),
                ..Default::default()
            }),
            ..Default::default()
        },
        ..Default::default()
    };
    let reviews: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    match reviews.create(&PostParams::default(), &review).await {
        Ok(answer) if answer.status.as_ref().is_some_and(|status| !status.allowed) => {
            Reach::Refused("its account may not watch services".into())
        }
        Ok(_) => Reach::Up,
        Err(kube::Error::Api(status)) if status.code == 401 => {
            Reach::Refused(format!("its credentials are not accepted: {}", status.message))
        }
        // Some clusters don't let accounts ask about themselves; that says nothing about what they may watch.
        Err(kube::Error::Api(status)) if status.code == 403 || status.code == 404 => Reach::Up,
        Err(error) => Reach::Down(chain(&error)),
    }
}

/// Where a kubeconfig leads.
fn server(kubeconfig: &[u8]) -> String {
    let text = std::str::from_utf8(kubeconfig).unwrap_or_default();
    let servers = Kubeconfig::from_yaml(text)
        .map(|kubeconfig| kubeconfig.clusters)
        .unwrap_or_default();
    let mut servers = servers.into_iter().filter_map(|named| named.cluster?.server);
    servers.next().unwrap_or_else(|| "its API server".into())
}

/// A client from a link's kubeconfig.
pub(crate) async fn client(kubeconfig: &[u8]) -> Result<Client, RemoteError> {
    let text = std::str::from_utf8(kubeconfig).map_err(|_| RemoteError::NotText)?;
    let kubeconfig = Kubeconfig::from_yaml(text)?;
    refuse_local_means(&kubeconfig)?;
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    config.connect_timeout = Some(TIMEOUT);
    Ok(Client::try_from(config)?)
}

fn refuse_local_means(kubeconfig: &Kubeconfig) -> Result<(), RemoteError> {
    for auth in kubeconfig
        .auth_infos
        .iter()
        .filter_map(|named| named.auth_info.as_ref())
    {
        let forbidden = [
            (auth.exec.is_some(), "program to run"),
            (auth.auth_provider.is_some(), "auth provider"),
            (auth.token_file.is_some(), "token file"),
            (auth.client_key.is_some(), "client key file"),
            (auth.client_certificate.is_some(), "client certificate file"),
        ];
        if let Some((_, what)) = forbidden.into_iter().find(|(is_set, _)| *is_set) {
            return Err(RemoteError::Forbidden(what));
        }
    }
    for cluster in kubeconfig
        .clusters
        .iter()
        .filter_map(|named| named.cluster.as_ref())
    {
        if cluster.certificate_authority.is_some() {
            return Err(RemoteError::Forbidden("certificate authority file (inline it)"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kubeconfig(user: &str, cluster: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
             contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
             clusters: [{{name: c, cluster: {{server: 'https://127.0.0.1:1'{cluster}}}}}]\n\
             users: [{{name: u, user: {{{user}}}}}]\n"
        )
    }

    #[tokio::test]
    async fn credentials_may_not_reach_into_this_pod() {
        assert!(client(kubeconfig("token: t", "").as_bytes()).await.is_ok());
        for (user, cluster, what) in [
            ("tokenFile: /var/run/secrets/token", "", "token file"),
            (
                "exec: {apiVersion: client.authentication.k8s.io/v1, command: sh}",
                "",
                "program to run",
            ),
            (
                "token: t",
                ", certificate-authority: /etc/passwd",
                "certificate authority file",
            ),
        ] {
            let error = client(kubeconfig(user, cluster).as_bytes())
                .await
                .err()
                .unwrap()
                .to_string();
            assert!(error.contains(what), "{error}");
        }
    }
}
