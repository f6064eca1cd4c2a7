//! The segment between clusters: a switch in user space that can cut, delay and lose.
//!
//! Each cluster has one leg: a pair of interfaces, one in the node's namespace, the other in ours, read and written
//! through a packet socket. Ours has no addresses, so the sandbox itself is not on the segment. Frames are carried
//! with the kernel's offload header in front, as between a hypervisor and its guests: large segments and checksums
//! that are yet to be computed pass as they are, which saves work and keeps this module ignorant of IP.
//!
//! [`Switch`] decides where a frame goes and when; it is pure. [`Wan`] reads, waits and writes.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, bind, setsockopt, socket};
use rand::Rng;
use tokio::net::UdpSocket;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::cluster::{carrier, connect, up, veth};
use super::netns::NetNs;

nix::setsockopt_impl!(
    OffloadHeader,
    libc::SOL_PACKET,
    libc::PACKET_VNET_HDR,
    bool,
    nix::sys::socket::sockopt::SetBool
);
/// Asks the kernel to put the offload header before each frame.
#[derive(Clone, Copy, Debug)]
struct OffloadHeader;

/// Length of the offload header (`struct virtio_net_hdr`).
const OFFLOAD_HEADER: usize = 10;
/// The largest segment the kernel makes, with both headers and room for VLAN tags.
const FRAME_MAX: usize = OFFLOAD_HEADER + 22 + 65536;
/// Frames that may be under way because of delays. More are dropped, as by a router whose buffer is full.
const DELAYED_MAX: usize = 4096;
/// Addresses that are remembered. A sandbox has a handful; a pod that makes up more only costs itself flooding.
const LEARNED_MAX: usize = 1024;
/// Frames read from a leg before the other tasks get their turn.
const BURST: usize = 64;

/// Why a leg could not be made.
#[derive(Debug, thiserror::Error)]
pub enum WanError {
    #[error("opening a packet socket on {leg}")]
    Socket {
        leg: String,
        #[source]
        source: io::Error,
    },
    #[error("making the interfaces of {leg}")]
    Link {
        leg: String,
        #[source]
        source: rtnetlink::Error,
    },
    #[error("no cluster is called {0}")]
    NoSuchCluster(String),
}

/// How frames between two clusters fare. The same both ways.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Condition {
    pub cut: bool,
    /// Added to each direction, so that a round trip takes twice as long.
    pub delay: Duration,
    /// Share of frames that get lost, 0 to 1.
    pub loss: f64,
}

type Address = [u8; 6];
type Port = usize;

/// What becomes of a frame at one port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Delivery {
    to: Port,
    after: Duration,
}

/// Learns which addresses are behind which port and applies the conditions between ports.
#[derive(Debug, Default)]
struct Switch {
    ports: usize,
    learned: BTreeMap<Address, Port>,
    /// By the lower port, then the higher one.
    conditions: BTreeMap<(Port, Port), Condition>,
}

impl Switch {
    /// Where a frame goes. `roll` gives a number in [0, 1) for each possible loss.
    fn forward(&mut self, from: Port, frame: &[u8], mut roll: impl FnMut() -> f64) -> Vec<Delivery> {
        let Some((to, rest)) = frame.split_first_chunk::<6>() else {
            return Vec::new();
        };
        let Some(source) = rest.first_chunk::<6>() else {
            return Vec::new();
        };
        if self.learned.len() >= LEARNED_MAX {
            self.learned.clear();
        }
        self.learned.insert(*source, from);
        let known = self.learned.get(to).copied();
        (0..self.ports)
            .filter(|port| *port != from && known.is_none_or(|known| known == *port))
            .filter_map(|port| {
                let condition = self.condition(from, port);
                let lost = condition.cut || (condition.loss > 0.0 && roll() < condition.loss);
                (!lost).then_some(Delivery {
                    to: port,
                    after: condition.delay,
                })
            })
            .collect()
    }

    fn condition(&self, a: Port, b: Port) -> Condition {
        self.conditions
            .get(&(a.min(b), a.max(b)))
            .copied()
            .unwrap_or_default()
    }
}

/// A frame and where it goes.
type Parcel = (Port, Box<[u8]>);

/// Frames that wait for their time, in the order in which they leave.
#[derive(Debug, Default)]
struct Delayed {
    /// By time, then by arrival, so that equal times keep their order.
    frames: BTreeMap<(Instant, u64), Parcel>,
    arrivals: u64,
}

impl Delayed {
    /// Drops the frame when too many wait already.
    fn push(&mut self, at: Instant, to: Port, frame: &[u8]) {
        if self.frames.len() < DELAYED_MAX {
            self.arrivals += 1;
            self.frames.insert((at, self.arrivals), (to, frame.into()));
        }
    }

    /// The first frame whose time has come.
    fn pop(&mut self, now: Instant) -> Option<Parcel> {
        let first = self.frames.first_entry().filter(|entry| entry.key().0 <= now)?;
        Some(first.remove())
    }

    fn next(&self) -> Option<Instant> {
        self.frames.first_key_value().map(|((at, _), _)| *at)
    }
}

#[derive(Debug, Default)]
struct State {
    switch: Switch,
    delayed: Delayed,
    legs: Vec<Leg>,
}

#[derive(Clone, Debug)]
struct Leg {
    cluster: String,
    socket: Arc<UdpSocket>,
}

/// The segment. Dropping it ends all traffic between clusters.
#[derive(Debug)]
pub struct Wan {
    state: Arc<Mutex<State>>,
    /// Told when a frame was delayed.
    wake: Arc<Notify>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl Drop for Wan {
    fn drop(&mut self) {
        for task in self.tasks.get_mut().unwrap_or_else(PoisonError::into_inner) {
            task.abort();
        }
    }
}

impl Wan {
    /// A segment without clusters, whose interfaces will be in the calling thread's namespace.
    pub fn new() -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let wake = Arc::new(Notify::new());
        let pace = tokio::spawn(pace(Arc::clone(&state), Arc::clone(&wake)));
        Self {
            state,
            wake,
            tasks: Mutex::new(vec![pace]),
        }
    }

    /// Adds a leg whose inner end is `name` in the node's namespace.
    pub(super) async fn attach(&self, cluster: &str, node: &NetNs, name: &str) -> Result<(), WanError> {
        let port = lock(&self.state).legs.len();
        let leg = format!("wan-{port}");
        let socket = |source: io::Error| WanError::Socket {
            leg: leg.clone(),
            source,
        };
        let link = |source| WanError::Link {
            leg: leg.clone(),
            source,
        };

        let outside = NetNs::current().map_err(socket)?;
        // The kernel would otherwise announce itself on the segment.
        for parameter in ["ipv6/conf/default/disable_ipv6"] {
            if let Err(error) = outside.set(parameter, "1") {
                tracing::debug!(%error, parameter, "not set");
            }
        }
        let links = connect(&outside).map_err(socket)?;
        let peer = rtnetlink::LinkMessageBuilder::<rtnetlink::LinkUnspec>::new()
            .name(name)
            .setns_by_fd(node.fd().as_raw_fd())
            .build();
        links
            .link()
            .add(veth(&leg, peer).arp(false).build())
            .execute()
            .await
            .map_err(link)?;
        // Both ends before anything is sent: a frame that meets an end without carrier is lost, and ARP asks again
        // only after a second.
        let inner_links = connect(node).map_err(socket)?;
        let index = |name: &str| nix::net::if_::if_nametoindex(name).map_err(io::Error::from);
        let outer = index(&leg).map_err(socket)?;
        let inner = node.run(|| index(name)).map_err(socket)?;
        let ends = [(&links, outer), (&inner_links, inner)];
        for (links, end) in ends {
            up(links, end).await.map_err(link)?;
        }
        for (links, end) in ends {
            carrier(links, end).await.map_err(link)?;
        }

        let opened = open(&leg).map_err(|errno| socket(errno.into()))?;
        // To the runtime a packet socket is like any datagram socket; only opening and binding differ.
        let opened = UdpSocket::from_std(opened.into()).map_err(socket)?;
        let opened = Arc::new(opened);
        {
            let mut state = lock(&self.state);
            state.legs.push(Leg {
                cluster: cluster.to_owned(),
                socket: Arc::clone(&opened),
            });
            state.switch.ports = state.legs.len();
        }
        let task = tokio::spawn(read(
            port,
            opened,
            Arc::clone(&self.state),
            Arc::clone(&self.wake),
        ));
        self.tasks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(task);
        Ok(())
    }

    /// How frames between the two clusters fare from now on.
    pub fn set(&self, a: &str, b: &str, change: impl FnOnce(&mut Condition)) -> Result<Condition, WanError> {
        let mut state = lock(&self.state);
        let port = |name: &str| {
            let found = state.legs.iter().position(|leg| leg.cluster == name);
            found.ok_or_else(|| WanError::NoSuchCluster(name.to_owned()))
        };
        let (a, b) = (port(a)?, port(b)?);
        let condition = state.switch.conditions.entry((a.min(b), a.max(b))).or_default();
        change(condition);
        Ok(*condition)
    }

    /// Pairs of clusters whose condition is not the best.
    pub fn conditions(&self) -> Vec<(String, String, Condition)> {
        let state = lock(&self.state);
        let name = |port: Port| state.legs[port].cluster.clone();
        let changed = state
            .switch
            .conditions
            .iter()
            .filter(|(_, condition)| **condition != Condition::default());
        changed
            .map(|((a, b), condition)| (name(*a), name(*b), *condition))
            .collect()
    }
}

impl Default for Wan {
    fn default() -> Self {
        Self::new()
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // Frames may be lost at any point without breaking anything.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A packet socket on one interface.
fn open(interface: &str) -> Result<OwnedFd, Errno> {
    // The kernel tells us the interface's address for binding, so that none has to be put together from parts.
    let address = nix::ifaddrs::getifaddrs()?
        .filter(|candidate| candidate.interface_name == interface)
        .find_map(|candidate| {
            candidate
                .address
                .filter(|address| address.as_link_addr().is_some())
        })
        .ok_or(Errno::ENODEV)?;
    let address = *address.as_link_addr().ok_or(Errno::ENODEV)?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)?;
    setsockopt(&socket, OffloadHeader, &true)?;
    bind(socket.as_raw_fd(), &address)?;
    Ok(socket)
}

/// Carries frames from one leg. Several legs at once share only the short lock on the decision.
async fn read(port: Port, leg: Arc<UdpSocket>, state: Arc<Mutex<State>>, wake: Arc<Notify>) {
    let mut buffer = vec![0; FRAME_MAX];
    loop {
        // An error is that of an interface that went down: its node is gone, or going.
        let Ok(()) = leg.readable().await else { return };
        for _ in 0..BURST {
            match leg.try_recv(&mut buffer) {
                Ok(length) => deliver(port, &buffer[..length], &state, &wake),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    tracing::debug!(port, %error, "reading frames between clusters");
                    break;
                }
            }
        }
        tokio::task::yield_now().await;
    }
}

fn deliver(from: Port, frame: &[u8], state: &Mutex<State>, wake: &Notify) {
    let Some(ethernet) = frame.get(OFFLOAD_HEADER..) else {
        return;
    };
    let mut rng = rand::rng();
    let mut at_once = Vec::new();
    {
        let mut state = lock(state);
        let now = Instant::now();
        for delivery in state.switch.forward(from, ethernet, || rng.random()) {
            if delivery.after.is_zero() {
                at_once.push(Arc::clone(&state.legs[delivery.to].socket));
            } else {
                state.delayed.push(now + delivery.after, delivery.to, frame);
                wake.notify_one();
            }
        }
    }
    for leg in at_once {
        write(&leg, frame);
    }
}

/// Sends delayed frames when their time has come.
async fn pace(state: Arc<Mutex<State>>, wake: Arc<Notify>) {
    loop {
        let next = lock(&state).delayed.next();
        match next {
            None => wake.notified().await,
            Some(at) => tokio::select! {
                () = tokio::time::sleep_until(at) => {}
                () = wake.notified() => {}
            },
        }
        loop {
            let due = {
                let mut state = lock(&state);
                let popped = state.delayed.pop(Instant::now());
                popped.map(|(to, frame)| (Arc::clone(&state.legs[to].socket), frame))
            };
            let Some((leg, frame)) = due else { break };
            write(&leg, &frame);
        }
    }
}

/// A frame that the kernel has no room for is lost, as on a wire.
fn write(leg: &UdpSocket, frame: &[u8]) {
    if let Err(error) = leg.try_send(frame) {
        tracing::trace!(%error, "a frame between clusters was lost");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Address = [2, 0, 0, 0, 0, 1];
    const B: Address = [2, 0, 0, 0, 0, 2];
    const ALL: Address = [0xff; 6];

    fn switch() -> Switch {
        Switch {
            ports: 3,
            ..Switch::default()
        }
    }

    fn frame(to: Address, from: Address) -> Vec<u8> {
        [to.as_slice(), &from, b"payload"].concat()
    }

    fn at(to: Port) -> Delivery {
        Delivery {
            to,
            after: Duration::ZERO,
        }
    }

    fn certain() -> f64 {
        0.0
    }

    #[test]
    fn frames_are_flooded_until_their_target_has_been_heard() {
        let mut switch = switch();
        assert_eq!(switch.forward(0, &frame(B, A), certain), [at(1), at(2)]);
        assert_eq!(switch.forward(1, &frame(A, B), certain), [at(0)]);
        assert_eq!(switch.forward(0, &frame(B, A), certain), [at(1)]);
        assert_eq!(switch.forward(0, &frame(ALL, A), certain), [at(1), at(2)]);
    }

    #[test]
    fn a_cut_concerns_one_pair_in_both_directions() {
        let mut switch = switch();
        switch.conditions.insert(
            (0, 1),
            Condition {
                cut: true,
                ..Condition::default()
            },
        );
        assert_eq!(switch.forward(0, &frame(ALL, A), certain), [at(2)]);
        assert_eq!(switch.forward(1, &frame(ALL, B), certain), [at(2)]);
    }

    #[test]
    fn loss_is_decided_per_frame_and_delay_is_added() {
        let mut switch = switch();
        let condition = Condition {
            cut: false,
            delay: Duration::from_millis(20),
            loss: 0.5,
        };
        switch.conditions.insert((0, 1), condition);
        let delayed = Delivery {
            to: 1,
            after: Duration::from_millis(20),
        };
        assert_eq!(switch.forward(0, &frame(ALL, A), || 0.5), [delayed, at(2)]);
        assert_eq!(switch.forward(0, &frame(ALL, A), || 0.49), [at(2)]);
    }

    #[test]
    fn fragments_of_frames_go_nowhere_and_teach_nothing() {
        let mut switch = switch();
        assert_eq!(switch.forward(0, &[0; 11], certain), []);
        assert!(switch.learned.is_empty());
    }

    #[test]
    fn what_is_learned_is_bounded() {
        let mut switch = switch();
        for number in 0..5000u32 {
            let [a, b, c, d] = number.to_be_bytes();
            switch.forward(0, &frame(ALL, [2, 0, a, b, c, d]), certain);
        }
        assert!(switch.learned.len() <= LEARNED_MAX);
    }

    #[test]
    fn delayed_frames_leave_in_the_order_of_their_times() {
        let mut delayed = Delayed::default();
        let start = Instant::now();
        delayed.push(start + Duration::from_millis(20), 1, b"late");
        delayed.push(start + Duration::from_millis(10), 2, b"first");
        delayed.push(start + Duration::from_millis(10), 2, b"second");
        let later = start + Duration::from_millis(10);
        assert_eq!(delayed.pop(start), None);
        assert_eq!(delayed.pop(later), Some((2, b"first".as_slice().into())));
        assert_eq!(delayed.pop(later), Some((2, b"second".as_slice().into())));
        assert_eq!(delayed.pop(later), None);
        assert_eq!(delayed.next(), Some(start + Duration::from_millis(20)));
    }

    #[test]
    fn a_full_queue_drops_what_comes_last() {
        let mut delayed = Delayed::default();
        for _ in 0..DELAYED_MAX + 10 {
            delayed.push(Instant::now(), 0, b"frame");
        }
        assert_eq!(delayed.frames.len(), DELAYED_MAX);
    }
}
