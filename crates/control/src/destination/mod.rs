//! The destination service: who stands behind a name, and how to talk to them.
//!
//! Here are only the process and its gRPC surface; answers are pure functions in [`endpoints`] and [`profile`]. They stand
//! here or in other clusters, which [`crate::view::clusters`] follows.

pub mod endpoints;
pub mod profile;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;

use hawser_proxy_api::WAITS;
use linkerd2_proxy_api::destination::destination_server::{Destination, DestinationServer};
use linkerd2_proxy_api::destination::{DestinationProfile, GetDestination, Update};
use linkerd2_proxy_api::meta::{Metadata, Resource, metadata};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::follow::{self, Updates};
use crate::mesh::{Asker, Mesh, MeshArgs, Target};
use crate::mirror;
use crate::process::{Process, ProcessArgs};
use crate::view::clusters::{Clusters, Setup};
use crate::view::watch::{Feed, Watches};
use crate::view::{Key, View};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    process: ProcessArgs,
    #[command(flatten)]
    mesh: MeshArgs,
    /// Where proxies ask
    #[arg(long, default_value = "0.0.0.0:8086")]
    addr: SocketAddr,
}

/// What the answers are made of.
pub const FEEDS: [Feed; 6] = [
    Feed::Services,
    Feed::EndpointSlices,
    Feed::Endpoints,
    Feed::Pods,
    Feed::TrafficSplits,
    Feed::Servers,
];

pub async fn run(args: Args) -> anyhow::Result<()> {
    let mesh = Arc::new(Mesh::try_from(args.mesh)?);
    let process = Process::start(9996, &args.process).await?;
    let view = Arc::new(View::default());
    let mut watches = Watches::start(&view, &process.client, &FEEDS);
    watches.listed().await;
    let setup = Setup {
        client: process.client.clone(),
        namespace: mesh.control_plane_namespace.clone(),
        connect: mirror::connector(),
        metrics: process.metrics.clone(),
    };
    let clusters = Clusters::follow(&view, setup);
    clusters.listed().await;
    let server = server(view, mesh, process.drain.clone());
    process
        .serve_grpc(args.addr, tonic::service::Routes::new(server))
        .await
}

/// The gRPC service over a view that somebody feeds.
pub fn server(
    view: Arc<View>,
    mesh: Arc<Mesh>,
    drain: CancellationToken,
) -> DestinationServer<impl Destination> {
    DestinationServer::new(Answers { view, mesh, drain })
}

struct Answers {
    view: Arc<View>,
    mesh: Arc<Mesh>,
    drain: CancellationToken,
}

#[tonic::async_trait]
impl Destination for Answers {
    type GetStream = Updates<Update>;
    type GetProfileStream = Updates<DestinationProfile>;

    async fn get(&self, request: Request<GetDestination>) -> Result<Response<Self::GetStream>, Status> {
        let GetDestination {
            path, context_token, ..
        } = request.into_inner();
        tracing::debug!(%path, "get");
        let target = self.target(&path)?;
        let Target::Service {
            service,
            instance,
            port,
        } = target
        else {
            return Err(Status::invalid_argument(
                "addresses have no endpoints but themselves: ask for a name",
            ));
        };
        let (mesh, asker) = (self.mesh.clone(), Asker::parse(&context_token));
        let look = move |state: &_, topics: &mut _| {
            endpoints::resolve(&mesh, state, &service, instance.as_deref(), port, &asker, topics)
        };
        follow::follow(self.view.clone(), self.drain.clone(), look, endpoints::updates).map(Response::new)
    }

    async fn get_profile(
        &self,
        request: Request<GetDestination>,
    ) -> Result<Response<Self::GetProfileStream>, Status> {
        let waits = request.metadata().contains_key(WAITS);
        let GetDestination {
            path, context_token, ..
        } = request.into_inner();
        tracing::debug!(%path, "get profile");
        let target = self.target(&path)?;
        let (mesh, asker) = (self.mesh.clone(), Asker::parse(&context_token));
        let look = move |state: &_, topics: &mut _| profile::profile(&mesh, state, &target, &asker, topics);
        follow::or_wait(waits, self.view.clone(), self.drain.clone(), look).await
    }
}

impl Answers {
    fn target(&self, path: &str) -> Result<Target, Status> {
        Target::parse(path, &self.mesh.cluster_domain)
            .map_err(|error| Status::invalid_argument(error.to_string()))
    }
}

/// How metrics and policies name a Service's port.
pub fn service_metadata(service: &Key, port: u16) -> Metadata {
    Metadata {
        kind: Some(metadata::Kind::Resource(Resource {
            group: "core".into(),
            kind: "Service".into(),
            name: service.name.clone(),
            namespace: service.namespace.clone(),
            port: port.into(),
            ..Resource::default()
        })),
    }
}
