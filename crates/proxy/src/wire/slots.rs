//! Futures that one task runs side by side, in places that are used again: a request costs no allocation and no task.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::AcqRel};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Wake, Waker};

use futures::task::AtomicWaker;

/// Free places that are kept; a connection that was busy once gives the rest back.
const FREE_MAX: usize = 32;

pub(super) struct Slots<F> {
    slots: Vec<Slot<F>>,
    free: Vec<usize>,
    ready: Arc<Ready>,
    /// Those that are polled in this turn.
    turn: Vec<usize>,
}

struct Slot<F> {
    id: u32,
    /// The box stays when its content goes.
    future: Pin<Box<Option<F>>>,
    wake: Arc<WakeSlot>,
    waker: Waker,
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

impl<F> Default for Slots<F> {
    fn default() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            ready: Arc::default(),
            turn: Vec::new(),
        }
    }
}

impl<F: Future<Output = ()>> Slots<F> {
    /// It is polled in the next turn.
    pub(super) fn begin(&mut self, id: u32, future: F) {
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                let index = self.slots.len();
                let wake = Arc::new(WakeSlot {
                    index,
                    queued: AtomicBool::new(false),
                    ready: self.ready.clone(),
                });
                self.slots.push(Slot {
                    id,
                    future: Box::pin(None),
                    waker: wake.clone().into(),
                    wake,
                });
                index
            }
        };
        if let Some(slot) = self.slots.get_mut(index) {
            slot.id = id;
            slot.future.as_mut().set(Some(future));
            slot.waker.wake_by_ref();
        }
    }

    /// Drops the future of this identifier, if it is still running.
    pub(super) fn cancel(&mut self, id: u32) {
        let found = self
            .slots
            .iter()
            .position(|slot| slot.id == id && slot.future.is_some());
        if let Some(index) = found {
            self.end(index);
        }
    }

    fn end(&mut self, index: usize) {
        if let Some(slot) = self.slots.get_mut(index) {
            slot.future.as_mut().set(None);
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
            let mut own = Context::from_waker(&slot.waker);
            let over = slot
                .future
                .as_mut()
                .as_pin_mut()
                .is_some_and(|future| future.poll(&mut own).is_ready());
            if over {
                self.end(index);
            }
        }
        self.turn = turn;
        if self.free.len() == self.slots.len() && self.slots.len() > FREE_MAX {
            self.slots.clear();
            self.free.clear();
        }
    }

    pub(super) fn clear(&mut self) {
        self.slots.clear();
        self.free.clear();
    }
}
