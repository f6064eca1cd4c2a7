//! Opaque connections: one connection to one endpoint, bytes both ways.

use std::io;
use std::rc::Rc;

use crate::answer::Why;
use crate::header::Session;
use crate::snapshot::{Distribution, Outbound, Protocol, TcpPolicy};
use crate::transport::{Conn, splice};
use crate::worker::Worker;

use super::balancer::Patience;
use super::peer::Busy;
use super::{Chosen, KnownTarget};

/// Forwards until both sides have ended.
pub(crate) async fn forward(worker: &Rc<Worker>, mut conn: Conn, known: &KnownTarget) -> io::Result<()> {
    let Some(outbound) = known.live.get() else {
        return Ok(());
    };
    let (mut upstream, _busy) = match Box::pin(connect(worker, &outbound)).await {
        Ok(upstream) => upstream,
        Err(why) => {
            super::count_error(worker, why.label());
            tracing::info!(
                error = why.message(),
                authority = outbound.authority.as_deref(),
                "Connection closed"
            );
            return Ok(());
        }
    };
    splice(&mut conn, &mut upstream).await.map(drop)
}

async fn connect(worker: &Rc<Worker>, outbound: &Outbound) -> Result<(Conn, Busy), Why> {
    let distribution = match &outbound.protocol {
        Protocol::Opaque(TcpPolicy::Forward(d))
        | Protocol::Detect {
            opaque: TcpPolicy::Forward(d),
            ..
        } => d,
        Protocol::Http1(routes) | Protocol::Http2(routes) => &routes.first().ok_or(Why::NoRoute)?.backends,
        Protocol::Opaque(TcpPolicy::Forbidden)
        | Protocol::Detect {
            opaque: TcpPolicy::Forbidden,
            ..
        }
        | Protocol::Refused => {
            return Err(Why::Denied);
        }
    };
    let attempts = match distribution {
        Distribution::FirstAvailable(all) => all.len(),
        Distribution::RandomAvailable(all) => all.len(),
    };
    let failfast = worker.shared.config.outbound.tcp_failfast;
    let mut last = Why::FailFast;
    for attempt in 1..=attempts.max(1) {
        let Chosen {
            balancer,
            mut patience,
            ..
        } = worker
            .outbound
            .choose(worker, distribution, outbound.authority.as_ref(), failfast)
            .await?;
        if attempt == attempts {
            patience = Patience::Wait(failfast);
        }
        let connected = balancer.acquire(
            worker,
            patience,
            worker.shared.config.outbound.tcp_queue,
            None,
            |_| false,
            |peer| async move { peer.dial(worker, Session::Opaque).await },
        );
        match connected.await {
            Ok((peer, conn)) => {
                return Ok((conn, peer.busy()));
            }
            Err(why) => last = why,
        }
    }
    Err(last)
}
