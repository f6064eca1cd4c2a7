//! Tells when a request has taken too long: in all, since it was asked, or without a sign of life.
//!
//! Made only for requests with such limits. What moves is noted by the bodies as they pass; the timer looks at the
//! notes when it rings, so that a frame costs no timer.

use std::cell::{Cell, RefCell};
use std::future::Future as _;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use tokio::time::{Instant, Sleep};

use crate::limits::Timeouts;

/// What is seen of a request and its answer.
#[derive(Debug)]
pub(crate) struct Progress {
    /// When the request had come to its end.
    asked_at: Cell<Option<Instant>>,
    moved_at: Cell<Instant>,
    waker: RefCell<Option<Waker>>,
}

impl Progress {
    fn new(now: Instant) -> Rc<Self> {
        Rc::new(Self {
            asked_at: Cell::default(),
            moved_at: Cell::new(now),
            waker: RefCell::default(),
        })
    }

    /// A frame passed.
    pub(crate) fn moved(&self) {
        self.moved_at.set(Instant::now());
    }

    /// The whole request has passed.
    pub(crate) fn asked(&self) {
        if self.asked_at.get().is_none() {
            self.asked_at.set(Some(Instant::now()));
            if let Some(waker) = self.waker.take() {
                waker.wake();
            }
        }
    }
}

impl Timeouts {
    /// The next moment at which it might be too late, as far as is known.
    fn next(self, since: Instant, asked_at: Option<Instant>, moved_at: Instant) -> Option<Instant> {
        let whole = self.request.map(|limit| since + limit);
        let answer = self.response.zip(asked_at).map(|(limit, at)| at + limit);
        let silent = self.idle.map(|limit| moved_at + limit);
        [whole, answer, silent].into_iter().flatten().min()
    }
}

/// Ready when a request has taken too long.
#[derive(Debug)]
pub(crate) struct Late {
    timeouts: Timeouts,
    since: Instant,
    progress: Rc<Progress>,
    timer: Pin<Box<Sleep>>,
}

impl Late {
    pub(crate) fn new(timeouts: Timeouts) -> Self {
        let now = Instant::now();
        Self {
            timeouts,
            since: now,
            progress: Progress::new(now),
            timer: Box::pin(tokio::time::sleep_until(now)),
        }
    }

    pub(crate) fn progress(&self) -> &Rc<Progress> {
        &self.progress
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            // The end of the request may bring the moment nearer.
            if self.progress.asked_at.get().is_none() {
                self.progress.waker.replace(Some(cx.waker().clone()));
            }
            let Progress {
                asked_at, moved_at, ..
            } = &*self.progress;
            let next = self.timeouts.next(self.since, asked_at.get(), moved_at.get());
            let Some(next) = next else {
                return Poll::Pending;
            };
            if Instant::now() >= next {
                return Poll::Ready(());
            }
            if self.timer.deadline() != next {
                self.timer.as_mut().reset(next);
            }
            if self.timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }

    pub(crate) async fn ended(&mut self) {
        std::future::poll_fn(|cx| self.poll(cx)).await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_answers_time_runs_from_the_end_of_the_question_and_silence_from_what_moved_last() {
        let since = Instant::now();
        let ms = Duration::from_millis;
        let limits = |request: u64, response: u64, idle: u64| {
            let limit = |n| (n > 0).then(|| ms(n));
            Timeouts {
                request: limit(request),
                response: limit(response),
                idle: limit(idle),
            }
        };
        for (limits, asked_at, moved_at, late_at) in [
            (limits(1_000, 100, 0), None, 900, Some(1_000)),
            (limits(1_000, 100, 0), Some(300), 900, Some(400)),
            (limits(1_000, 100, 0), Some(950), 960, Some(1_000)),
            (limits(0, 100, 0), None, 900, None),
            (limits(0, 0, 100), Some(0), 450, Some(550)),
            (limits(500, 0, 100), Some(0), 450, Some(500)),
        ] {
            let next = limits.next(since, asked_at.map(|at| since + ms(at)), since + ms(moved_at));
            assert_eq!(next, late_at.map(|at| since + ms(at)), "{limits:?}");
        }
    }
}
