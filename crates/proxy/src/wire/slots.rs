//! Pieces of work that one task does side by side, in places that are used again: a request costs no allocation, no task,
//! and no move of the future that serves it.
//!
//! Each place has a future of its own that lasts: it waits for work at its [`Inbox`], does it, and waits again. A future
//! per request was some KiB that were copied about thrice.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering::AcqRel};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use futures::task::AtomicWaker;

/// Free places that are kept; a connection that was busier once gives the rest back.
const FREE_MAX: usize = 64;

pub(super) struct Slots<T, F, M> {
    /// Makes the future of a place.
    make: M,
    slots: Vec<Slot<T, F>>,
    free: Vec<usize>,
    ready: Arc<Ready>,
    /// Those that are polled in this turn.
    turn: Vec<usize>,
}

struct Slot<T, F> {
    id: u32,
    inbox: Inbox<T>,
    future: Pin<Box<F>>,
    wake: Arc<WakeSlot>,
    waker: Waker,
}

/// Where a place finds its work.
pub(super) struct Inbox<T>(Rc<Desk<T>>);

struct Desk<T> {
    next: Cell<Option<T>>,
    busy: Cell<bool>,
}

impl<T> Inbox<T> {
    fn new() -> Self {
        Self(Rc::new(Desk {
            next: Cell::new(None),
            busy: Cell::new(false),
        }))
    }

    fn put(&self, work: T) {
        self.0.next.set(Some(work));
        self.0.busy.set(true);
    }

    fn is_busy(&self) -> bool {
        self.0.busy.get()
    }

    /// The next piece; whoever asks has done the one before.
    pub(super) async fn next(&self) -> T {
        poll_fn(|_| match self.0.next.take() {
            Some(work) => Poll::Ready(work),
            None => {
                self.0.busy.set(false);
                Poll::Pending
            }
        })
        .await
    }
}

/// Who wants to be polled.
#[derive(Default)]
struct Ready {
    indices: Mutex<Vec<usize>>,
    task: AtomicWaker,
}

struct WakeSlot {
    index: usize,
    queued: AtomicBool,
    ready: Arc<Ready>,
}

impl Wake for WakeSlot {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.queued.swap(true, AcqRel) {
            return;
        }
        let mut indices = self.ready.indices.lock().unwrap_or_else(PoisonError::into_inner);
        indices.push(self.index);
        let first = indices.len() == 1;
        drop(indices);
        if first {
            self.ready.task.wake();
        }
    }
}

impl<T, F: Future<Output = ()>, M: Fn(Inbox<T>) -> F> Slots<T, F, M> {
    pub(super) fn new(make: M) -> Self {
        Self {
            make,
            slots: Vec::new(),
            free: Vec::new(),
            ready: Arc::default(),
            turn: Vec::new(),
        }
    }

    /// It is begun in the next turn.
    pub(super) fn begin(&mut self, id: u32, work: T) {
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                let index = self.slots.len();
                let wake = Arc::new(WakeSlot {
                    index,
                    queued: AtomicBool::new(false),
                    ready: self.ready.clone(),
                });
                let inbox = Inbox::new();
                self.slots.push(Slot {
                    id,
                    future: Box::pin((self.make)(Inbox(inbox.0.clone()))),
                    inbox,
                    waker: wake.clone().into(),
                    wake,
                });
                index
            }
        };
        if let Some(slot) = self.slots.get_mut(index) {
            slot.id = id;
            slot.inbox.put(work);
            slot.waker.wake_by_ref();
        }
    }

    /// Drops the work with this identifier, if it is not done.
    pub(super) fn cancel(&mut self, id: u32) {
        let found = self
            .slots
            .iter()
            .position(|slot| slot.id == id && slot.inbox.is_busy());
        if let Some((index, slot)) = found.and_then(|index| Some((index, self.slots.get_mut(index)?))) {
            slot.inbox = Inbox::new();
            slot.future.set((self.make)(Inbox(slot.inbox.0.clone())));
            self.free.push(index);
        }
    }

    /// Runs all that want to.
    pub(super) fn poll(&mut self, cx: &Context<'_>) {
        self.ready.task.register(cx.waker());
        let mut turn = std::mem::take(&mut self.turn);
        std::mem::swap(
            &mut turn,
            &mut self.ready.indices.lock().unwrap_or_else(PoisonError::into_inner),
        );
        for index in turn.drain(..) {
            let Some(slot) = self.slots.get_mut(index) else {
                continue;
            };
            // From now on a wake counts for the next turn.
            slot.wake
                .queued
                .store(false, std::sync::atomic::Ordering::Release);
            if !slot.inbox.is_busy() {
                continue;
            }
            let over = slot.future.as_mut().poll(&mut Context::from_waker(&slot.waker));
            if over.is_ready() || !slot.inbox.is_busy() {
                self.free.push(index);
            }
        }
        self.turn = turn;
        if self.free.len() == self.slots.len() && self.slots.len() > FREE_MAX {
            self.slots.truncate(FREE_MAX);
            self.free.retain(|index| *index < FREE_MAX);
        }
    }

    pub(super) fn clear(&mut self) {
        self.slots.clear();
        self.free.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::channel::oneshot::{Receiver, Sender, channel};
    use std::cell::RefCell;

    type Work = (u32, Receiver<()>);

    /// Notes what was done, and what was dropped.
    struct Noted<'a>(u32, &'a RefCell<Vec<String>>, bool);

    impl Drop for Noted<'_> {
        fn drop(&mut self) {
            let what = if self.2 { "done" } else { "dropped" };
            self.1.borrow_mut().push(format!("{} {what}", self.0));
        }
    }

    fn work(id: u32) -> (Sender<()>, Work) {
        let (sender, receiver) = channel();
        (sender, (id, receiver))
    }

    #[test]
    fn places_are_used_again_and_cancelled_work_is_dropped_at_once() {
        let notes = RefCell::new(Vec::new());
        let mut slots = Slots::new(|inbox: Inbox<Work>| {
            let notes = &notes;
            async move {
                loop {
                    let (id, over) = inbox.next().await;
                    let mut noted = Noted(id, notes, false);
                    _ = over.await;
                    noted.2 = true;
                }
            }
        });
        let cx = Context::from_waker(Waker::noop());
        let mut going: Vec<_> = (0..3)
            .map(|id| {
                let (sender, work) = work(id);
                slots.begin(id, work);
                sender
            })
            .collect();
        slots.poll(&cx);
        slots.cancel(1);
        slots.cancel(1);
        assert_eq!(*notes.borrow(), ["1 dropped"]);
        _ = going.remove(0).send(());
        slots.poll(&cx);
        assert_eq!(*notes.borrow(), ["1 dropped", "0 done"]);
        // A wake that comes late does nothing, and nothing finds the identifier that is done.
        for slot in &slots.slots {
            slot.waker.wake_by_ref();
        }
        slots.poll(&cx);
        slots.cancel(0);
        assert_eq!(slots.free.len(), 2);
        for id in 3..6 {
            let (sender, work) = work(id);
            slots.begin(id, work);
            going.push(sender);
        }
        assert_eq!((slots.slots.len(), slots.free.len()), (4, 0));
        slots.poll(&cx);
        for sender in going.drain(1..) {
            _ = sender.send(());
        }
        slots.poll(&cx);
        let mut done = notes.borrow().clone();
        done.sort();
        assert_eq!(
            done,
            ["0 done", "1 dropped", "2 done", "3 done", "4 done", "5 done"]
        );
        assert_eq!(slots.free.len(), 4);
    }

    #[test]
    fn work_that_is_cancelled_before_it_was_begun_is_never_begun() {
        let begun = Cell::new(0);
        let mut slots = Slots::new(|inbox: Inbox<u32>| {
            let begun = &begun;
            async move {
                loop {
                    inbox.next().await;
                    begun.set(begun.get() + 1);
                }
            }
        });
        let cx = Context::from_waker(Waker::noop());
        slots.begin(1, 1);
        slots.cancel(1);
        slots.poll(&cx);
        assert_eq!(begun.get(), 0);
        slots.begin(3, 3);
        slots.poll(&cx);
        assert_eq!((begun.get(), slots.slots.len()), (1, 1));
    }
}
