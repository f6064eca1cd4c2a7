//! Opaque connections to the application: authorized when they open, and closed when they no longer are.

use std::rc::Rc;
use std::sync::Arc;

use hawser_core::authz::authorize;

use crate::header::Session;
use crate::live::Live;
use crate::metrics::Labels;
use crate::snapshot::Inbound;
use crate::transport::{Conn, splice};
use crate::worker::Worker;

use super::{Accepted, Refusal, name_of, server_labels, target_labels};

pub(crate) async fn serve(
    worker: &Rc<Worker>,
    mut conn: Conn,
    accepted: Accepted,
    policy: Arc<Live<Inbound>>,
) -> Result<(), Refusal> {
    permit(worker, &accepted, &policy)?;
    let app = worker.inbound.app(accepted.target);
    let mut upstream = match Box::pin(app.dial(worker, Session::Opaque)).await {
        Ok(upstream) => upstream,
        Err(error) => {
            tracing::info!(target = %accepted.target, error = error.as_str(), "Connection closed: the application is unreachable");
            return Err(Refusal::Closed);
        }
    };
    tokio::select! {
        _ = splice(&mut conn, &mut upstream) => {}
        () = revoked(&accepted, &policy) => terminated(worker, &accepted, &policy),
    }
    Ok(())
}

/// Decides, logs and counts.
pub(crate) fn permit(worker: &Worker, accepted: &Accepted, policy: &Live<Inbound>) -> Result<(), Refusal> {
    let policy = policy.get().ok_or(Refusal::Denied)?;
    let labels = labels(accepted, &policy);
    match authorize(
        &policy.authorizations,
        accepted.client_addr.ip(),
        &accepted.client,
    ) {
        Ok(by) => {
            let labels = labels
                .with("authz_group", &by.source.group)
                .with("authz_kind", &by.source.kind)
                .with("authz_name", &by.source.name);
            worker
                .metrics
                .counter("inbound_tcp_authz_allow_total", labels)
                .inc();
            if &*by.source.name == "audit" {
                tracing::info!(server = %policy.server.name, client = name_of(&accepted.client), client.addr = %accepted.client_addr, "Connection allowed");
            }
            Ok(())
        }
        Err(denial) => {
            let labels = labels.with("reason", denial.as_str());
            worker
                .metrics
                .counter("inbound_tcp_authz_deny_total", labels)
                .inc();
            if worker
                .inbound
                .worth_a_line(accepted.client_addr.ip(), denial.as_str(), accepted.target)
            {
                tracing::info!(
                    server = %policy.server.name,
                    client = name_of(&accepted.client),
                    client.addr = %accepted.client_addr,
                    target = %accepted.target,
                    why = denial.as_str(),
                    "Connection denied"
                );
            }
            Err(Refusal::Denied)
        }
    }
}

/// Until the client would not be let in any more.
pub(crate) async fn revoked(accepted: &Accepted, policy: &Live<Inbound>) {
    let mut changes = policy.changes();
    loop {
        if let Some(policy) = policy.get()
            && authorize(
                &policy.authorizations,
                accepted.client_addr.ip(),
                &accepted.client,
            )
            .is_err()
        {
            return;
        }
        if changes.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

pub(crate) fn terminated(worker: &Worker, accepted: &Accepted, policy: &Live<Inbound>) {
    if let Some(policy) = policy.get() {
        worker
            .metrics
            .counter("inbound_tcp_authz_terminate_total", labels(accepted, &policy))
            .inc();
    }
    tracing::info!(
        client = name_of(&accepted.client),
        client.addr = %accepted.client_addr,
        target = %accepted.target,
        "Connection terminated due to policy change"
    );
}

fn labels(accepted: &Accepted, policy: &Inbound) -> Labels {
    server_labels(
        &target_labels(accepted.target, &accepted.labels),
        accepted.target.port(),
        &policy.server,
    )
}
