//! What the collectors of linked clusters say, asked through the gateway like any other exported Service.
//!
//! Only collectors whose mirror is in our own namespace are asked, and only for what they see themselves: a cluster
//! that is linked to a linked one isn't shown. One that stops answering keeps its last answer, with its age.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::PEER_PORT;
use crate::api::{Cluster, Portrait};
use crate::fetch::{self, FetchError};
use crate::objects::Objects;

/// The name of the Service that a collector is exported as.
pub const SERVICE: &str = "metrics-api";
/// Where portraits are asked for.
const PATH: &str = "/api/portrait";
/// A cluster that doesn't answer in this time is cut off, as far as anybody looking can tell.
const DEADLINE: Duration = Duration::from_secs(3);
/// Between two questions.
const PERIOD: Duration = Duration::from_secs(2);
/// Linked clusters that are shown.
const PEERS_MAX: usize = 64;

/// By the cluster's name.
pub(crate) type Peers = BTreeMap<String, Peer>;

#[derive(Clone, Debug)]
pub(crate) struct Peer {
    /// Its mirror, as it is called and where it is.
    host: String,
    address: IpAddr,
    answered: Option<(Instant, Portrait)>,
    error: Option<String>,
}

impl Peer {
    /// For the page.
    pub(crate) fn show(&self, name: &str) -> Cluster {
        Cluster {
            name: name.to_owned(),
            is_here: false,
            age_seconds: self.answered.as_ref().map(|(at, _)| match &self.error {
                // What is answered again and again has no age, so that the same is said of it as long as it is.
                None => 0.0,
                Some(_) => at.elapsed().as_secs() as f64,
            }),
            error: self.error.clone(),
            portrait: self.answered.as_ref().map(|(_, portrait)| portrait.clone()),
        }
    }

    /// What the collector answers at a path.
    pub(crate) async fn get(&self, path: &str) -> Result<String, FetchError> {
        let asking = async {
            let address = SocketAddr::new(self.address, PEER_PORT);
            let socket = TcpStream::connect(address).await.map_err(FetchError::Connect)?;
            fetch::get_from(socket, &self.host, path).await
        };
        let answer = tokio::time::timeout(DEADLINE, asking).await;
        answer.unwrap_or(Err(FetchError::Silent))
    }
}

/// The collectors of linked clusters, as the mirrors in `namespace` say.
fn named(objects: &Objects, namespace: &str) -> BTreeMap<String, (String, IpAddr)> {
    let mirrors = objects.services.iter().filter_map(|((place, name), facts)| {
        let (cluster, (_, remote)) = facts.mirrors.as_ref()?;
        let address = facts.address?;
        (place == namespace && remote == SERVICE).then(|| {
            let host = format!("{name}.{place}.svc.cluster.local:{PEER_PORT}");
            (cluster.clone(), (host, address))
        })
    });
    mirrors.take(PEERS_MAX).collect()
}

/// Asks them all again and again, for ever.
pub(crate) async fn follow(
    namespace: String,
    objects: watch::Receiver<Objects>,
    peers: watch::Sender<Peers>,
) {
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let named = named(&objects.borrow(), &namespace);
        let mut next: Peers = named
            .into_iter()
            .map(|(cluster, (host, address))| {
                let before = peers.borrow().get(&cluster).cloned();
                let before = before.map(|peer| (peer.answered, peer.error));
                let (answered, error) = before.unwrap_or_default();
                (
                    cluster,
                    Peer {
                        host,
                        address,
                        answered,
                        error,
                    },
                )
            })
            .collect();
        futures::future::join_all(next.values_mut().map(ask)).await;
        peers.send_replace(next);
    }
}

async fn ask(peer: &mut Peer) {
    let answer = peer.get(PATH).await;
    let portrait = answer.map_err(|error| chain(&error));
    let portrait = portrait.and_then(|text| {
        serde_json::from_str::<Portrait>(&text).map_err(|error| format!("its answer makes no sense: {error}"))
    });
    match portrait {
        Ok(portrait) => (peer.answered, peer.error) = (Some((Instant::now(), portrait)), None),
        Err(error) => peer.error = Some(error),
    }
}

/// An error and its causes on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::ServiceFacts;

    #[test]
    fn only_mirrors_of_collectors_in_our_namespace_are_asked() {
        let mut objects = Objects::default();
        for (place, name, remote) in [
            ("linkerd-viz", "metrics-api-east", "metrics-api"),
            ("linkerd-viz", "other-east", "other"),
            ("elsewhere", "metrics-api-north", "metrics-api"),
        ] {
            let facts = ServiceFacts {
                mirrors: Some(("east".into(), ("linkerd-viz".into(), remote.into()))),
                address: Some([10, 0, 0, 1].into()),
                ..ServiceFacts::default()
            };
            objects.services.insert((place.into(), name.into()), facts);
        }
        let host = "metrics-api-east.linkerd-viz.svc.cluster.local:8086".to_owned();
        let expected = BTreeMap::from([("east".to_owned(), (host, [10, 0, 0, 1].into()))]);
        assert_eq!(named(&objects, "linkerd-viz"), expected);
    }
}
