//! What an authenticated connection rests on, and what becomes of it when we believe others than before.
//!
//! Workers make a bond with each connection and look at it; the control thread judges all of them when anchors change.
//! Nothing new begins on a *retired* connection of ours; a peer that lost our trust is asked to end in order (*drain*)
//! and is *cut* when the time for that is over. No handshakes here, and no decision about whom to believe.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::task::Waker;
use std::time::SystemTime;

use futures::task::AtomicWaker;
use hawser_runtime::Shutdown;
use hawser_tls::{Role, TrustAnchors};
use rustls_pki_types::CertificateDer;

/// One connection's.
#[derive(Debug)]
pub(crate) struct Bond {
    chain: Vec<CertificateDer<'static>>,
    peer: Role,
    made_at: SystemTime,
    retired: AtomicBool,
    lost: AtomicBool,
    /// Of connections that can end in order.
    drain: OnceLock<Shutdown>,
    cut: AtomicBool,
    reader: AtomicWaker,
}

impl Bond {
    /// Were anchors changed since it was made?
    pub(crate) fn retired(&self) -> bool {
        self.retired.load(Relaxed)
    }

    /// Cancelled when the connection should end in order: with the process, or with the trust in the peer.
    pub(crate) fn drain_with(&self, process: &Shutdown) -> Shutdown {
        let drain = self.drain.get_or_init(|| process.child_token());
        if self.lost.load(SeqCst) {
            drain.cancel();
        }
        drain.clone()
    }

    fn lose(&self) {
        self.lost.store(true, SeqCst);
        if let Some(drain) = self.drain.get() {
            drain.cancel();
        }
    }

    pub(crate) fn is_cut(&self) -> bool {
        self.cut.load(SeqCst)
    }

    /// Wakes the connection's reader when it is cut.
    pub(crate) fn wake_when_cut(&self, waker: &Waker) {
        self.reader.register(waker);
    }

    fn cut(&self) {
        self.cut.store(true, SeqCst);
        self.reader.wake();
    }

    fn believed_by(&self, anchors: &TrustAnchors) -> bool {
        anchors.believe(&self.chain, self.peer, self.made_at)
    }
}

/// All that are open.
#[derive(Debug, Default)]
pub(crate) struct Bonds(Mutex<Vec<Weak<Bond>>>);

/// Bonds whose peers lost our trust.
pub(crate) struct Lost(Vec<Weak<Bond>>);

impl Bonds {
    /// `used` are the anchors that the handshake was made with, `current` says which are in use now.
    pub(crate) fn make(
        &self,
        chain: &[CertificateDer<'_>],
        peer: Role,
        used: &TrustAnchors,
        current: impl FnOnce() -> TrustAnchors,
    ) -> Arc<Bond> {
        let bond = Arc::new(Bond {
            chain: chain.iter().map(|der| der.clone().into_owned()).collect(),
            peer,
            made_at: SystemTime::now(),
            retired: AtomicBool::new(false),
            lost: AtomicBool::new(false),
            drain: OnceLock::new(),
            cut: AtomicBool::new(false),
            reader: AtomicWaker::new(),
        });
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if open.len() == open.capacity() {
            open.retain(|bond| bond.strong_count() > 0);
        }
        open.push(Arc::downgrade(&bond));
        drop(open);
        // Anchors that changed during the handshake were judged by without this bond.
        let current = current();
        if current != *used && !bond.believed_by(&current) {
            bond.cut();
        }
        bond
    }

    /// Retires every connection, and begins to drain those whose peers `anchors` don't believe.
    pub(crate) async fn judge(&self, anchors: &TrustAnchors) -> Lost {
        let open: Vec<Weak<Bond>> = {
            let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            open.retain(|bond| bond.strong_count() > 0);
            open.clone()
        };
        let mut lost = Vec::new();
        for weak in open {
            let Some(bond) = weak.upgrade() else { continue };
            bond.retired.store(true, Relaxed);
            if !bond.believed_by(anchors) {
                bond.lose();
                lost.push(weak);
            }
            // Verifying takes long enough for others on this thread to want a turn.
            tokio::task::yield_now().await;
        }
        Lost(lost)
    }
}

impl Lost {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Their time is over.
    pub(crate) fn cut(self) {
        for bond in self.0.iter().filter_map(Weak::upgrade) {
            bond.cut();
        }
    }
}
