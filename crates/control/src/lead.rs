//! How a controller spends its time: of several replicas one leads, and the leader looks whenever something changed.
//!
//! [`lead`] joins a lease, a bell and [`Work`]. It knows nothing of what is observed or written; that a failed look is
//! repeated with growing pauses, and that everything is looked at once a minute without a reason, is decided here.

use std::time::Duration;

use kube::Client;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::lease;
use crate::observe::Bell;
use crate::process::Process;

/// Changes come in bursts (a Service and its Endpoints, a list); one look serves them all.
const SETTLE: Duration = Duration::from_millis(10);
/// A look at everything without a reason, as a second line of defence.
const REPAIR: Duration = Duration::from_secs(60);
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// When to look again, at the latest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Everything is as it should be: when the bell rings.
    Settled,
    /// Something is due then, whether or not the bell rings.
    After(Duration),
    /// A write failed: soon, and with growing pauses as long as it fails.
    Retry,
}

/// What only a leader does.
pub trait Work: Send + 'static {
    /// Looks at everything and does what is missing.
    fn reconcile(&mut self) -> impl Future<Output = Next> + Send;

    /// Stops whatever goes on between two looks: another replica leads, or none.
    fn rest(&mut self) {}
}

/// Who stands for which lease.
pub struct Candidate {
    pub client: Client,
    pub namespace: String,
    pub lease: String,
    /// Name of this replica.
    pub identity: String,
}

/// This pod's name, by which people find the leader.
pub fn identity() -> String {
    std::env::var("HOSTNAME").unwrap_or_else(|_| format!("process-{}", std::process::id()))
}

/// Stands for the lease until shutdown, works while it leads, and gives the lease back in the end. The bell is the one
/// that the work's observations ring.
pub async fn lead(candidate: Candidate, bell: Bell, work: impl Work, shutdown: CancellationToken) {
    let Candidate {
        client,
        namespace,
        lease,
        identity,
    } = candidate;
    let leadership = lease::run(
        client,
        &namespace,
        lease,
        identity,
        bell.clone(),
        shutdown.clone(),
    );
    follow(leadership.watch(), bell, work, shutdown).await;
    leadership.released().await;
}

/// Works whenever `leads` says so, until shutdown.
pub async fn follow(
    leads: watch::Receiver<bool>,
    bell: Bell,
    mut work: impl Work,
    shutdown: CancellationToken,
) {
    let mut pace = Pace::default();
    let mut next = Instant::now();
    loop {
        tokio::select! {
            () = bell.rung() => {}
            () = tokio::time::sleep_until(next) => {}
            () = shutdown.cancelled() => return,
        }
        tokio::time::sleep(SETTLE).await;
        let outcome = if *leads.borrow() {
            work.reconcile().await
        } else {
            work.rest();
            Next::Settled
        };
        next = Instant::now() + pace.pause(outcome);
    }
}

/// How long to wait for the bell.
#[derive(Debug, Default)]
struct Pace {
    failures: u32,
}

impl Pace {
    fn pause(&mut self, outcome: Next) -> Duration {
        match outcome {
            Next::Retry => {
                let pause = RETRY_MIN.saturating_mul(2_u32.saturating_pow(self.failures));
                self.failures = self.failures.saturating_add(1);
                pause.min(RETRY_MAX)
            }
            Next::Settled => {
                self.failures = 0;
                REPAIR
            }
            Next::After(pause) => {
                self.failures = 0;
                pause.min(REPAIR)
            }
        }
    }
}

/// Makes leading for one lease the whole work of a process.
pub async fn run(
    process: Process,
    namespace: &str,
    lease: String,
    bell: Bell,
    work: impl Work,
) -> anyhow::Result<()> {
    let candidate = Candidate {
        client: process.client.clone(),
        namespace: namespace.to_owned(),
        lease,
        identity: identity(),
    };
    let mut leading = tokio::spawn(lead(candidate, bell, work, process.drain.clone()));
    // Serving ends with the drain; the lease is given back after it, within the deadlines of its own requests.
    process.serve(async { Ok((&mut leading).await?) }).await?;
    if !leading.is_finished() {
        leading.await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_retried_with_growing_pauses_and_dates_are_kept() {
        let mut pace = Pace::default();
        let mut pauses = |outcomes: &[Next]| -> Vec<u128> {
            let millis = outcomes.iter().map(|outcome| pace.pause(*outcome).as_millis());
            millis.collect()
        };
        let due = Next::After(Duration::from_secs(5));
        assert_eq!(
            pauses(&[Next::Retry, Next::Retry, due, Next::Retry, Next::Settled]),
            [100, 200, 5_000, 100, 60_000]
        );
        assert_eq!(pauses(&[Next::Retry; 40]).last(), Some(&30_000));
        assert_eq!(pauses(&[Next::After(Duration::MAX)]), [60_000]);
    }
}
