//! Shutdown by SIGTERM or SIGINT, as a token that everything long-lived watches.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Cancelled when the process should stop. Clones share one fate.
pub type Shutdown = CancellationToken;

/// A token that SIGTERM and SIGINT cancel. Call within a runtime.
pub fn on_signals() -> io::Result<Shutdown> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let token = CancellationToken::new();
    let cancelled = token.clone();
    tokio::spawn(async move {
        let which = tokio::select! {
            _ = term.recv() => "SIGTERM",
            _ = int.recv() => "SIGINT",
            () = cancelled.cancelled() => return,
        };
        tracing::info!(signal = which, "shutting down");
        cancelled.cancel();
    });
    Ok(token)
}
