//! May a request without an answer be sent again?
//!
//! If the other side did nothing with it, always: a connection that could not be made or was told to go
//! ([RFC 9113, 8.7]). If that isn't known, only what does no harm twice, once, and not while much is failing. Pure but
//! for the clock that callers pass in; keeping the request is [`super::replay`]'s business.
//!
//! [RFC 9113, 8.7]: https://www.rfc-editor.org/rfc/rfc9113#section-8.7

use std::cell::Cell;
use std::error::Error;
use std::io;
use std::time::{Duration, Instant};

use hawser_core::authz::Source;
use http::{Method, StatusCode};

use crate::limits::Retry;
use crate::metrics::{Labels, Shard};
use crate::wire::{Fault, SendError};

use super::peer::Peer;
use super::replay::Replay;

/// What became of a request that has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It never left: its connection was closed while it waited.
    Unsent,
    /// The other side says that it did nothing with it.
    Refused,
    /// The connection had been told to go before the request came.
    GoneAway,
    /// The connection broke, and nobody knows.
    Broken,
    /// The other side did something with it, or it was wrong.
    Failed,
}

impl Fate {
    pub(crate) fn of_sending(error: &SendError) -> Self {
        match error {
            SendError::Link(fault) => Self::of_link(*fault),
            SendError::Library { unsent: true, .. } => Self::Unsent,
            SendError::Library { error, .. } => Self::of(error),
        }
    }

    fn of_link(fault: Fault) -> Self {
        match fault {
            Fault::Unsent => Self::Unsent,
            // Streams that the other side may have looked at don't end with its GOAWAY.
            Fault::GoneAway => Self::GoneAway,
            Fault::Reset(h2::Reason::REFUSED_STREAM) => Self::Refused,
            Fault::Broken => Self::Broken,
            // What we reset ourselves says nothing about the other side.
            Fault::Reset(_) | Fault::Ours(_) | Fault::Malformed => Self::Failed,
        }
    }

    fn of(error: &hyper::Error) -> Self {
        let mut source: Option<&(dyn Error + 'static)> = Some(error);
        while let Some(error) = source {
            if error.is::<io::Error>() {
                return Self::Broken;
            }
            source = error.source();
        }
        let broken =
            error.is_incomplete_message() || error.is_canceled() || error.is_closed() || error.is_timeout();
        if broken { Self::Broken } else { Self::Failed }
    }

    /// For the metric.
    fn as_str(self) -> &'static str {
        match self {
            Self::Unsent => "connection closed",
            Self::Refused => "stream refused",
            Self::GoneAway => "connection going away",
            Self::Broken => "connection broken",
            Self::Failed => "failed",
        }
    }
}

/// How often one request may still be sent.
#[derive(Debug)]
pub(crate) struct Attempts {
    left: usize,
    /// It was sent again without knowing what became of it.
    suspected: bool,
}

impl Attempts {
    /// Once for each place where it may go, as often again as its route grants, and a few times for connections that end
    /// just as they are used.
    pub(crate) fn new(places: usize, granted: usize) -> Self {
        Self {
            left: places.max(1) + granted.min(RETRIES_MAX) + CLOSED_MAX,
            suspected: false,
        }
    }

    /// Begins one; says whether it is the last.
    pub(crate) fn begin(&mut self) -> bool {
        self.left = self.left.saturating_sub(1);
        self.left == 0
    }

    /// May it be sent again after this? Then it will be, and is counted.
    pub(crate) fn again(
        &mut self,
        fate: Fate,
        request: &Replay,
        peer: &Peer,
        metrics: &Shard,
        now: Instant,
    ) -> bool {
        let harmless = match fate {
            Fate::Unsent | Fate::Refused | Fate::GoneAway => true,
            Fate::Broken => {
                !self.suspected
                    && request.is_empty()
                    && idempotent(&request.request().method)
                    && peer.budget.withdraw(now)
            }
            Fate::Failed => false,
        };
        let again = harmless && self.left > 0 && request.whole();
        if again {
            self.suspected |= fate == Fate::Broken;
            peer.count_retry(metrics, fate.as_str());
        }
        again
    }
}

/// How often a request may meet a connection that ends just as it is used.
const CLOSED_MAX: usize = 4;
/// Whatever a route or a request asks for.
const RETRIES_MAX: usize = 100;

/// The repetitions that its route grants one request.
pub(crate) struct Retries<'a> {
    policy: Option<&'a Retry>,
    route: &'a Source,
    metrics: &'a Shard,
    done: u32,
}

impl<'a> Retries<'a> {
    pub(crate) fn new(policy: Option<&'a Retry>, route: &'a Source, metrics: &'a Shard) -> Self {
        Self {
            policy,
            route,
            metrics,
            done: 0,
        }
    }

    /// All that there may be.
    pub(crate) fn limit(&self) -> usize {
        self.policy.map_or(0, |policy| policy.limit as usize)
    }

    fn left(&self) -> bool {
        self.policy.is_some_and(|policy| self.done < policy.limit)
    }

    /// For the head of this attempt's answer. The last one has all the time that the request has.
    pub(crate) fn timeout(&self) -> Option<Duration> {
        self.policy.filter(|_| self.left())?.timeout
    }

    /// Must a call's status be known before its answer is passed on?
    pub(crate) fn asks_for_codes(&self) -> bool {
        self.left() && self.policy.is_some_and(Retry::asks_for_codes)
    }

    /// Is this answer one that its route would rather not have?
    pub(crate) fn wants(&self, status: StatusCode, code: Option<u32>) -> bool {
        self.policy.is_some_and(|policy| {
            policy.wants_status(status) || code.is_some_and(|code| policy.wants_code(code))
        })
    }

    /// Counts one more, if there may be one, and says how long to pause before it.
    pub(crate) fn again(&mut self, request: &Replay) -> Option<Duration> {
        let policy = self.policy?;
        if !self.left() {
            self.count("outbound_http_route_retry_limit_exceeded_total");
            return None;
        }
        if !request.whole() {
            self.count("outbound_http_route_retry_overflow_total");
            return None;
        }
        self.done += 1;
        self.count("outbound_http_route_retry_requests_total");
        Some(policy.backoff(self.done))
    }

    /// The answer is passed on.
    pub(crate) fn answered(&self, status: StatusCode, code: Option<u32>) {
        if self.done > 0 && !self.wants(status, code) {
            self.count("outbound_http_route_retry_successes_total");
        }
    }

    fn count(&self, name: &'static str) {
        let labels = Labels::new()
            .with("route_group", &self.route.group)
            .with("route_kind", &self.route.kind)
            .with("route_name", &self.route.name);
        self.metrics.counter(name, labels).inc();
    }
}

/// Does it do no more harm twice than once? (RFC 9110, 9.2.2)
pub(crate) fn idempotent(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE
    )
}

/// How many requests may be sent again on suspicion: a fifth of all, or ten a second.
///
/// When everything fails, repeating everything would keep it failing.
#[derive(Debug)]
pub(crate) struct Budget {
    /// In thousandths.
    balance: Cell<u64>,
    paid_at: Cell<Instant>,
}

impl Budget {
    const ONE: u64 = 1_000;
    const PER_REQUEST: u64 = Self::ONE / 5;
    const PER_SECOND: u64 = 10 * Self::ONE;
    /// What has not been used for ten seconds is forgotten.
    const MAX: u64 = 10 * Self::PER_SECOND;

    pub(crate) fn new(now: Instant) -> Self {
        Self {
            balance: Cell::new(Self::PER_SECOND),
            paid_at: Cell::new(now),
        }
    }

    /// A request that was answered.
    pub(crate) fn request(&self) {
        self.balance
            .set((self.balance.get() + Self::PER_REQUEST).min(Self::MAX));
    }

    /// May one more be sent again?
    pub(crate) fn withdraw(&self, now: Instant) -> bool {
        let since = now
            .saturating_duration_since(self.paid_at.replace(now))
            .as_millis();
        let earned = u64::try_from(since)
            .unwrap_or(u64::MAX)
            .saturating_mul(Self::PER_SECOND / 1_000);
        let balance = self.balance.get().saturating_add(earned).min(Self::MAX);
        let rest = balance.checked_sub(Self::ONE);
        self.balance.set(rest.unwrap_or(balance));
        rest.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fifth_of_all_requests_may_be_repeated_and_ten_a_second_of_few() {
        let start = Instant::now();
        let budget = Budget::new(start);
        let repeated = |n: usize, now| (0..n).filter(|_| budget.withdraw(now)).count();
        assert_eq!(repeated(100, start), 10);
        assert_eq!(repeated(100, start + Duration::from_secs(1)), 10);
        for _ in 0..100 {
            budget.request();
        }
        assert_eq!(repeated(100, start + Duration::from_secs(1)), 20);
        assert_eq!(repeated(1_000, start + Duration::from_secs(3_600)), 100);
    }

    #[test]
    fn only_what_was_not_looked_at_or_does_no_harm_is_repeated() {
        for (fault, fate) in [
            (Fault::Reset(h2::Reason::REFUSED_STREAM), Fate::Refused),
            (Fault::Ours(h2::Reason::REFUSED_STREAM), Fate::Failed),
            (Fault::Reset(h2::Reason::CANCEL), Fate::Failed),
            (Fault::GoneAway, Fate::GoneAway),
            (Fault::Broken, Fate::Broken),
        ] {
            assert_eq!(Fate::of_sending(&fault.into()), fate);
        }
        for (method, harmless) in [
            (Method::GET, true),
            (Method::PUT, true),
            (Method::POST, false),
            (Method::PATCH, false),
            (Method::CONNECT, false),
        ] {
            assert_eq!(idempotent(&method), harmless, "{method}");
        }
    }
}
