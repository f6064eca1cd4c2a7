//! The policy service: who may come in, and how traffic goes out.
//!
//! Here are only the process and its gRPC surface; answers are pure functions in [`inbound`] and [`outbound`].

pub mod inbound;
pub mod outbound;
mod routes;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hawser_proxy_api::WAITS;
use linkerd2_proxy_api::inbound::inbound_server_policies_server::{
    InboundServerPolicies, InboundServerPoliciesServer,
};
use linkerd2_proxy_api::inbound::{PortSpec, Server};
use linkerd2_proxy_api::outbound::outbound_policies_server::{OutboundPolicies, OutboundPoliciesServer};
use linkerd2_proxy_api::outbound::{OutboundPolicy, TrafficSpec, traffic_spec};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

pub use self::inbound::DefaultPolicy;
use crate::follow::{self, Updates};
use crate::mesh::{Asker, Mesh, MeshArgs, Target};
use crate::process::{Process, ProcessArgs};
use crate::view::routes::{GATEWAY_GROUP, POLICY_GROUP, RouteKind};
use crate::view::watch::{Feed, Watches};
use crate::view::{Key, State, Topics, View};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    process: ProcessArgs,
    #[command(flatten)]
    mesh: MeshArgs,
    /// Where proxies ask
    #[arg(long, default_value = "0.0.0.0:8090")]
    addr: SocketAddr,
}

/// What the answers are made of.
pub const FEEDS: [Feed; 10] = [
    Feed::Services,
    Feed::Pods,
    Feed::Servers,
    Feed::ServerAuthorizations,
    Feed::AuthorizationPolicies,
    Feed::MeshTlsAuthentications,
    Feed::NetworkAuthentications,
    Feed::Routes(RouteKind::Http, POLICY_GROUP),
    Feed::Routes(RouteKind::Http, GATEWAY_GROUP),
    Feed::Routes(RouteKind::Grpc, GATEWAY_GROUP),
];

/// A proxy may ask before the watch has seen its pod. It is answered within 3 s in any case, so this is shorter.
const POD_AWAITED_MAX: Duration = Duration::from_secs(2);

pub async fn run(args: Args) -> anyhow::Result<()> {
    let mesh = Arc::new(Mesh::try_from(args.mesh)?);
    let process = Process::start(9990, &args.process).await?;
    let view = Arc::new(View::default());
    let mut watches = Watches::start(&view, &process.client, &FEEDS);
    watches.listed().await;
    let routes = routes(view, mesh, process.drain.clone());
    process.serve_grpc(args.addr, routes).await
}

/// Both gRPC services over a view that somebody feeds.
pub fn routes(view: Arc<View>, mesh: Arc<Mesh>, drain: CancellationToken) -> Routes {
    let answers = Arc::new(Answers { view, mesh, drain });
    Routes::new(InboundServerPoliciesServer::from_arc(answers.clone()))
        .add_service(OutboundPoliciesServer::from_arc(answers))
}

struct Answers {
    view: Arc<View>,
    mesh: Arc<Mesh>,
    drain: CancellationToken,
}

impl Answers {
    /// The policy of a pod's port, as a question to the state.
    fn inbound(
        &self,
        pod: &Key,
        port: u16,
    ) -> impl Fn(&State, &mut Topics) -> Result<Server, Status> + Send + use<> {
        let (mesh, pod) = (self.mesh.clone(), pod.clone());
        move |state: &_, topics: &mut _| inbound::policy(&mesh, state, &pod, port, topics)
    }

    async fn pod_known(&self, pod: &Key) {
        let known = async {
            loop {
                let (known, changed) = self.view.observe(|state, topics| {
                    topics.insert(crate::view::Topic::Pod(pod.clone()));
                    state.pod(pod).is_some()
                });
                if known {
                    return;
                }
                changed.wait().await;
            }
        };
        // When it stays unknown, the answer says so.
        let _ = timeout(POD_AWAITED_MAX, known).await;
    }

    fn target(
        &self,
        spec: TrafficSpec,
    ) -> Result<impl Fn(&State, &mut Topics) -> Result<OutboundPolicy, Status> + Send + use<>, Status> {
        let target = match spec.target {
            Some(traffic_spec::Target::Addr(address)) => Target::Address(
                address
                    .try_into()
                    .map_err(|_| Status::invalid_argument("the address has no IP"))?,
            ),
            Some(traffic_spec::Target::Authority(authority)) => {
                Target::parse(&authority, &self.mesh.cluster_domain)
                    // A name that isn't a Service's is somebody else's.
                    .map_err(|error| Status::not_found(error.to_string()))?
            }
            None => return Err(Status::invalid_argument("the target is missing")),
        };
        let (mesh, asker) = (self.mesh.clone(), Asker::parse(&spec.source_workload));
        Ok(move |state: &_, topics: &mut _| outbound::policy(&mesh, state, &target, &asker, topics))
    }
}

/// Which port of which pod is asked about.
fn pod_and_port(spec: &PortSpec) -> Result<(Key, u16), Status> {
    let port = u16::try_from(spec.port).ok().filter(|port| *port != 0);
    let port = port.ok_or_else(|| Status::invalid_argument(format!("{} is not a port", spec.port)))?;
    Ok((workload(&spec.workload)?, port))
}

/// `{"ns":"..","pod":".."}`, or `ns:pod` as injectors wrote it before 2.13.
fn workload(token: &str) -> Result<Key, Status> {
    let asker = Asker::parse(token);
    let (namespace, pod) = match token.split_once(':') {
        Some((namespace, pod)) if asker == Asker::default() => (namespace, pod),
        _ => (asker.namespace.as_str(), asker.pod.as_str()),
    };
    if namespace.is_empty() || pod.is_empty() {
        return Err(Status::invalid_argument(format!(
            "workload {token:?} names no namespace and pod"
        )));
    }
    Ok(Key::new(namespace, pod))
}

#[tonic::async_trait]
impl InboundServerPolicies for Answers {
    type WatchPortStream = Updates<Server>;

    async fn get_port(&self, request: Request<PortSpec>) -> Result<Response<Server>, Status> {
        let (pod, port) = pod_and_port(request.get_ref())?;
        self.pod_known(&pod).await;
        let look = self.inbound(&pod, port);
        self.view
            .read(|state| look(state, &mut Topics::new()))
            .map(Response::new)
    }

    async fn watch_port(
        &self,
        request: Request<PortSpec>,
    ) -> Result<Response<Self::WatchPortStream>, Status> {
        let (pod, port) = pod_and_port(request.get_ref())?;
        tracing::debug!(%pod, port, "watch inbound policy");
        self.pod_known(&pod).await;
        let look = self.inbound(&pod, port);
        follow::follow(self.view.clone(), self.drain.clone(), look, follow::whole).map(Response::new)
    }
}

#[tonic::async_trait]
impl OutboundPolicies for Answers {
    type WatchStream = Updates<OutboundPolicy>;

    async fn get(&self, request: Request<TrafficSpec>) -> Result<Response<OutboundPolicy>, Status> {
        let look = self.target(request.into_inner())?;
        self.view
            .read(|state| look(state, &mut Topics::new()))
            .map(Response::new)
    }

    async fn watch(&self, request: Request<TrafficSpec>) -> Result<Response<Self::WatchStream>, Status> {
        let waits = request.metadata().contains_key(WAITS);
        let look = self.target(request.into_inner())?;
        follow::or_wait(waits, self.view.clone(), self.drain.clone(), look).await
    }
}
