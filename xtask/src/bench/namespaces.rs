//! Pods without Kubernetes: network namespaces with wires between them, in namespaces of our own.
//!
//! The command starts itself again inside new user, process, mount and network namespaces. The inner process is the
//! first one there, so nothing that it starts survives it; it dies with the outer one. Root isn't needed where the
//! kernel lets users have namespaces.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::Signal;
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVeth};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, RouteMessageBuilder};
use serde_json::{Value, json};

use super::peers::Side;
use super::programs::Programs;

/// Tells the inner process what to do, as JSON.
const INSIDE: &str = "HAWSER_BENCH_INSIDE";
pub(super) const CLIENT_IP: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
pub(super) const SERVER_IP: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
/// Where the gateway is entered.
pub(super) const GATEWAY_IP: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 3);
const PREFIX: u8 = 24;
/// Where services have their addresses: routed to the wire, but redirected before they reach it.
const SERVICES: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 0, 0, 0), 24);

/// What the inner process is told.
pub(super) struct Inside {
    pub(super) part: String,
    /// Exists until the outer process ends.
    pub(super) dir: PathBuf,
    pub(super) programs: Programs,
}

/// Runs this command again inside, and waits.
pub(super) fn enter(inside: &Inside, args: &[String]) -> Result<()> {
    let told = json!({ "part": inside.part, "dir": inside.dir, "programs": inside.programs.json() });
    // A process enters a new process namespace only with its children, and this one stays outside to keep the
    // directory: so one makes the namespaces, and its child, the first process inside, does the work.
    let status = Command::new(std::env::current_exe()?)
        .arg("bench")
        .args(args)
        .env(INSIDE, told.to_string())
        .status()?;
    ensure!(status.success(), "the measurement failed");
    Ok(())
}

/// Inside: what to do. Between outside and inside it makes the namespaces.
pub(super) fn entered() -> Result<Option<Inside>> {
    let Ok(told) = std::env::var(INSIDE) else {
        return Ok(None);
    };
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    if nix::unistd::getpid().as_raw() != 1 {
        unshare_all().context("making namespaces (hawser sandbox doctor says what is missing)")?;
        let status = Command::new(std::env::current_exe()?)
            .args(std::env::args_os().skip(1))
            .status()?;
        std::process::exit(status.code().unwrap_or(1));
    }
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>)?;
    mount(
        Some("proc"),
        "/proc",
        Some("proc"),
        MsFlags::empty(),
        None::<&str>,
    )
    .context("mounting /proc")?;
    let told: Value = serde_json::from_str(&told)?;
    let text = |name: &str| told[name].as_str().context("our own words");
    Ok(Some(Inside {
        part: text("part")?.into(),
        dir: text("dir")?.into(),
        programs: Programs::from_json(&told["programs"]).context("our own words")?,
    }))
}

fn unshare_all() -> Result<()> {
    let (uid, gid) = (nix::unistd::getuid(), nix::unistd::getgid());
    unshare(
        CloneFlags::CLONE_NEWUSER
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWNS,
    )?;
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    std::fs::write("/proc/self/gid_map", format!("0 {gid} 1"))?;
    Ok(())
}

/// A network namespace that lives as long as this value and what runs in it.
pub(super) struct NetNs(File);

impl NetNs {
    fn current() -> Result<Self> {
        Ok(Self(File::open("/proc/thread-self/ns/net")?))
    }

    fn create() -> Result<Self> {
        scratch(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            Self::current()
        })
    }

    /// Where other processes of ours can open it.
    pub(super) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// Runs `f` on a thread of its own inside. Processes that it starts are inside too.
    pub(super) fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        scratch(|| {
            setns(&self.0, CloneFlags::CLONE_NEWNET).expect("a namespace of ours can be entered");
            f()
        })
    }
}

fn scratch<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| match scope.spawn(f).join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// The client's namespace is the calling process's own. The gateway has a wire to each of the others.
pub(super) struct Pods {
    pub(super) client: NetNs,
    pub(super) gateway: NetNs,
    pub(super) server: NetNs,
}

impl Pods {
    pub(super) fn create() -> Result<Self> {
        let pods = Self {
            client: NetNs::current()?,
            gateway: NetNs::create()?,
            server: NetNs::create()?,
        };
        let (client, gateway, server) = (&pods.client, &pods.gateway, &pods.server);
        join([(client, "server", CLIENT_IP), (server, "client", SERVER_IP)])?;
        client.run(|| configure(async |links| route(&links, SERVICES, SERVER_IP).await))?;
        join([
            (client, "gateway", Ipv4Addr::new(10, 77, 1, 1)),
            (gateway, "client", GATEWAY_IP),
        ])?;
        let server_there = Ipv4Addr::new(10, 77, 2, 2);
        join([
            (gateway, "server", Ipv4Addr::new(10, 77, 2, 3)),
            (server, "gateway", server_there),
        ])?;
        gateway.run(|| configure(async |links| route(&links, (SERVER_IP, 32), server_there).await))?;
        // A client that opens connection after connection would have used up its ports within seconds.
        client.run(|| std::fs::write("/proc/sys/net/ipv4/tcp_tw_reuse", "1"))?;
        Ok(pods)
    }

    /// Where a proxy of this side stands.
    pub(super) fn of(&self, side: Side) -> &NetNs {
        match side {
            Side::Outbound => &self.client,
            Side::Gateway => &self.gateway,
            Side::Inbound => &self.server,
        }
    }
}

/// A wire between two pods, with an interface and an address at each end.
fn join([here, there]: [(&NetNs, &str, Ipv4Addr); 2]) -> Result<()> {
    let peer = LinkMessageBuilder::<LinkUnspec>::new()
        .name(there.1)
        .setns_by_fd(there.0.0.as_raw_fd())
        .build();
    let wire = LinkMessageBuilder::<LinkUnspec>::new_with_info_kind(InfoKind::Veth)
        .name(here.1)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .build();
    here.0
        .run(|| configure(async |links| links.link().add(wire).execute().await))?;
    for (namespace, name, ip) in [here, there] {
        namespace.run(|| configure(async |links| set_up(&links, name, ip).await))?;
    }
    Ok(())
}

async fn route(links: &Handle, to: (Ipv4Addr, u8), by: Ipv4Addr) -> Result<(), rtnetlink::Error> {
    let route = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(to.0, to.1)
        .gateway(by)
        .build();
    links.route().add(route).execute().await
}

/// Loopback and one more interface of a pod.
async fn set_up(links: &Handle, name: &str, ip: Ipv4Addr) -> Result<(), rtnetlink::Error> {
    let index = nix::net::if_::if_nametoindex(name).expect("the interface was just made");
    for index in [1, index] {
        links
            .link()
            .set(LinkUnspec::new_with_index(index).up().build())
            .execute()
            .await?;
    }
    links.address().add(index, ip.into(), PREFIX).execute().await
}

/// Talks to the kernel of the calling thread's namespace.
fn configure(work: impl AsyncFnOnce(Handle) -> Result<(), rtnetlink::Error>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        work(handle).await.context("setting up the pods' network")
    })
}
