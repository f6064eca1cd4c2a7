//! When is an endpoint left alone because its answers are bad? (`spec/proxy.md` 5.5)
//!
//! After so many failures in a row, or when too few of the latest answers were good. Then nobody asks it for a while,
//! and after that one request finds out. Connections that can't be made are [`super::peer`]'s business.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::snapshot::{Breaker, SuccessRate};

use super::peer::Peer;

/// How soon a request that waits looks again at an endpoint under probe.
const PROBE_POLL: Duration = Duration::from_millis(20);

/// What an answer says about who gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Good,
    /// It is well, and has too much to do: 429, RESOURCE_EXHAUSTED.
    Throttled,
    Bad,
}

impl Outcome {
    pub(crate) fn of(success: bool, status: http::StatusCode, code: Option<u32>) -> Self {
        if status == http::StatusCode::TOO_MANY_REQUESTS || code == Some(8) {
            Self::Throttled
        } else if success {
            Self::Good
        } else {
            Self::Bad
        }
    }
}

pub(crate) struct Circuit {
    failures: Cell<u32>,
    latest: RefCell<Window>,
    /// How often in a row it was opened.
    opened: Cell<u32>,
    open_until: Cell<Option<Instant>>,
    /// Somebody is finding out whether it may close.
    probing: Cell<bool>,
}

impl Circuit {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            failures: Cell::default(),
            latest: RefCell::new(Window::new(now)),
            opened: Cell::default(),
            open_until: Cell::default(),
            probing: Cell::default(),
        }
    }

    /// `None` while it is closed.
    pub(crate) fn blocked_until(&self, now: Instant) -> Option<Instant> {
        let until = self.open_until.get()?;
        if until > now {
            return Some(until);
        }
        // Looked at again soon: the probe's end isn't known.
        self.probing.get().then(|| now + PROBE_POLL)
    }

    fn ended(&self, breaker: Breaker, outcome: Outcome, now: Instant) {
        // Whoever watches only failures in a row takes what is throttled for well.
        let bad = outcome == Outcome::Bad || (outcome == Outcome::Throttled && breaker.rate.is_some());
        match self.open_until.get() {
            // It was under way when the circuit was opened, and says nothing new.
            Some(until) if until > now => {}
            Some(_) if bad => self.open(breaker, now),
            Some(_) => {
                self.failures.set(0);
                self.opened.set(0);
                self.open_until.set(None);
            }
            None => {
                match outcome {
                    Outcome::Bad => self.failures.set(self.failures.get().saturating_add(1)),
                    Outcome::Good => self.failures.set(0),
                    Outcome::Throttled => {}
                }
                let in_a_row = breaker
                    .failures_max
                    .is_some_and(|max| self.failures.get() >= max.get());
                let mut latest = self.latest.borrow_mut();
                let too_few = breaker.rate.is_some_and(|rate| {
                    latest.record(rate, !bad, now);
                    latest.below(rate)
                });
                drop(latest);
                if in_a_row || too_few {
                    self.open(breaker, now);
                }
            }
        }
    }

    fn open(&self, breaker: Breaker, now: Instant) {
        let opened = self.opened.get();
        self.opened.set(opened.saturating_add(1));
        self.open_until.set(Some(now + breaker.backoff(opened)));
        self.latest.replace(Window::new(now));
    }
}

/// The latest answers, in slots of time.
struct Window {
    began_at: Instant,
    /// Good ones, and all.
    slots: [(u32, u32); 10],
    newest: u128,
}

impl Window {
    fn new(now: Instant) -> Self {
        Self {
            began_at: now,
            slots: [(0, 0); 10],
            newest: 0,
        }
    }

    fn record(&mut self, rate: SuccessRate, good: bool, now: Instant) {
        let count = self.slots.len();
        let slot = (rate.window / 10).as_nanos().max(1);
        let number = now.saturating_duration_since(self.began_at).as_nanos() / slot;
        if number > self.newest {
            let passed = usize::try_from(number - self.newest).unwrap_or(count).min(count);
            self.newest = number;
            // What the circle comes to again is long ago.
            let newest = usize::try_from(number % count as u128).unwrap_or(0);
            for back in 0..passed {
                self.slots[(newest + count - back) % count] = (0, 0);
            }
        }
        let newest = usize::try_from(self.newest % count as u128).unwrap_or(0);
        let (all_good, all) = &mut self.slots[newest];
        *all_good += u32::from(good);
        *all += 1;
    }

    fn below(&self, rate: SuccessRate) -> bool {
        let sum = |(good, all), (g, a): &(u32, u32)| (good + u64::from(*g), all + u64::from(*a));
        let (good, all) = self.slots.iter().fold((0, 0), sum);
        all > 0 && all >= u64::from(rate.requests_min) && (good as f64) < rate.threshold * all as f64
    }
}

/// One request under a circuit breaker. Dropped without an end, it says nothing about the endpoint.
pub(crate) struct Attempt {
    peer: Rc<Peer>,
    breaker: Breaker,
    probe: bool,
}

impl Attempt {
    /// The first one after a pause decides for all.
    pub(crate) fn new(peer: &Rc<Peer>, breaker: Breaker) -> Self {
        let circuit = &peer.circuit;
        Self {
            peer: peer.clone(),
            breaker,
            probe: circuit.open_until.get().is_some() && !circuit.probing.replace(true),
        }
    }

    pub(crate) fn ended(self, outcome: Outcome) {
        self.peer.circuit.ended(self.breaker, outcome, Instant::now());
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if self.probe {
            self.peer.circuit.probing.set(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `.` is a good answer, `t` a throttled one, `x` a bad one; each takes 10 ms. `|` where the circuit opens.
    fn watched(breaker: Breaker, answers: &str) -> String {
        let start = Instant::now();
        let circuit = Circuit::new(start);
        let mut seen = String::new();
        for (number, answer) in (0u32..).zip(answers.chars()) {
            let now = start + Duration::from_millis(10) * number;
            let opened = circuit.opened.get();
            circuit.ended(
                breaker,
                match answer {
                    '.' => Outcome::Good,
                    't' => Outcome::Throttled,
                    _ => Outcome::Bad,
                },
                now,
            );
            seen.push(answer);
            if circuit.opened.get() > opened {
                seen.push('|');
            }
        }
        seen
    }

    #[test]
    fn failures_in_a_row_open_it_and_one_good_answer_closes_it() {
        // The first pause lasts over one more answer, later ones over two; what comes in a pause was under way before.
        let three = Breaker::for_test(Some(3), None, Duration::from_millis(15));
        for (answers, seen) in [
            ("xx.xx.xxx", "xx.xx.xxx|"),
            ("xxtxx", "xxtx|x"),
            ("xxx...xxx", "xxx|...xxx|"),
            ("xxx.xxxxxxxx", "xxx|.x|xxx|xxx|x"),
        ] {
            assert_eq!(watched(three, answers), seen);
        }
    }

    #[test]
    fn too_few_good_answers_among_the_latest_open_it() {
        let rate = SuccessRate {
            threshold: 0.5,
            window: Duration::from_millis(100),
            requests_min: 4,
        };
        let half = Breaker::for_test(None, Some(rate), Duration::from_millis(15));
        for (answers, seen) in [
            ("xxx", "xxx"),
            ("xxxx", "xxxx|"),
            (".x.x.x.xx", ".x.x.x.xx|"),
            ("tttt", "tttt|"),
            // Old good answers are forgotten.
            ("....................xxxxxx", "....................xxxxxx|"),
        ] {
            assert_eq!(watched(half, answers), seen);
        }
    }
}
