//! How a program gets into namespaces of its own, and how everything in them ends with it.
//!
//! Three processes of one program. The *outside* one is what the user started: it opens listeners on the host's
//! loopback interface, leaves the host's namespaces and waits. *Init* is process 1 of the new PID namespace: it makes
//! the mounts and reaps orphans. The *supervisor* is everything else. All three have one thread when they pass
//! through here. Each later one runs the same command line again, with its stage in the environment.
//!
//! However one of them ends, the rest follows: init asks the kernel to be killed with the outside process, and when
//! process 1 ends, the kernel kills its namespace. With the last process the namespaces, their mounts and their
//! interfaces are gone. This file knows nothing of clusters.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, Uid};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

const STAGE: &str = "HAWSER_SANDBOX_STAGE";
const OUTSIDE: &str = "HAWSER_SANDBOX_OUTSIDE";

/// How long the supervisor may take to end its pods before it is killed.
const GRACE: Duration = Duration::from_secs(15);
/// Listeners that fit one control message.
const LISTENERS_MAX: usize = 64;

/// What went wrong on the way inside; the text says which step.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct EnterError {
    what: String,
    #[source]
    source: io::Error,
}

fn failed<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> EnterError {
    let what = what.into();
    move |source| EnterError { what, source: source.into() }
}

/// On which side of the namespaces' border [`enter`] returned.
#[derive(Debug)]
pub enum Entered {
    /// The sandbox has come to its end; this is how.
    Outside(ExitCode),
    Inside(Inside),
}

/// What the supervisor gets from outside.
#[derive(Debug)]
pub struct Inside {
    /// Listeners on the host's loopback interface, one for each port asked for.
    pub listeners: Vec<TcpListener>,
    /// A file system in memory that only the sandbox sees.
    pub run_dir: PathBuf,
    /// Ends when the outside process does.
    pub lifeline: UnixStream,
}

/// What to enter with.
#[derive(Clone, Debug)]
pub struct EnterOptions {
    /// A loopback listener for each; 0 lets the kernel choose the port.
    pub ports: Vec<u16>,
    /// A directory of the user's, made if absent and readable by nobody else.
    pub state_dir: PathBuf,
}

/// Moves the program into namespaces of its own: call it before anything starts a thread. It returns twice: in the
/// supervisor, inside, and at the very end in the process that the user started.
pub fn enter(options: &EnterOptions) -> Result<Entered, EnterError> {
    match env::var(STAGE).as_deref() {
        Ok("idmap") => map_identities().map(|()| Entered::Outside(ExitCode::SUCCESS)),
        Ok("init") => init(options).map(Entered::Outside),
        Ok("supervisor") => supervisor(options).map(Entered::Inside),
        _ => outside(options).map(Entered::Outside),
    }
}

/// Where the in-memory directory is mounted.
fn run_dir(options: &EnterOptions) -> PathBuf {
    options.state_dir.join("run")
}

fn outside(options: &EnterOptions) -> Result<ExitCode, EnterError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(run_dir(options))
        .map_err(failed(format!("making {}", run_dir(options).display())))?;
    let listeners: Vec<TcpListener> = options
        .ports
        .iter()
        .map(|port| {
            let what = format!("listening on 127.0.0.1:{port}");
            TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).map_err(failed(what))
        })
        .collect::<Result<_, _>>()?;

    leave()?;
    let (ours, theirs) = UnixStream::pair().map_err(failed("making a socket pair"))?;
    send(&ours, &listeners).map_err(failed("handing over the listeners"))?;
    drop(listeners);
    let signals = Signals::block()?;
    let init = again("init").stdin(Stdio::from(OwnedFd::from(theirs))).spawn();
    let init = init.map_err(failed("starting process 1 of the sandbox"))?;
    supervise(init, &signals, &ours)
}

/// Leaves the host's namespaces. The next child is process 1 of the new PID namespace.
fn leave() -> Result<(), EnterError> {
    // As root all identities stay what they are, so that pods may use several. Only a process outside can map more
    // than one, hence a helper. It is started while there is still an outside.
    let helper = Uid::effective().is_root().then(|| {
        let helper = again("idmap").stdin(Stdio::piped()).env(OUTSIDE, std::process::id().to_string()).spawn();
        helper.map_err(failed("starting the helper that maps identities"))
    });
    let helper = helper.transpose()?;
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    unshare(CloneFlags::CLONE_NEWUSER).map_err(failed("making a user namespace (see: hawser sandbox doctor)"))?;
    let mapped = match helper {
        // Closing its input is the sign to start.
        Some(helper) => helper.wait_with_output().is_ok_and(|output| output.status.success()),
        None => false,
    };
    if !mapped {
        let write = |file: &str, text: &str| {
            fs::write(format!("/proc/self/{file}"), text).map_err(failed(format!("mapping identities ({file})")))
        };
        write("setgroups", "deny")?;
        write("uid_map", &format!("0 {uid} 1"))?;
        write("gid_map", &format!("0 {gid} 1"))?;
    }
    let rest = CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC;
    unshare(rest).map_err(failed("making the sandbox's namespaces (see: hawser sandbox doctor)"))
}

/// Gives the outside process, which is in a new user namespace, all identities that there are.
fn map_identities() -> Result<(), EnterError> {
    let mut line = String::new();
    io::stdin().read_line(&mut line).map_err(failed("waiting to map identities"))?;
    let process = env::var(OUTSIDE).map_err(|error| failed("finding whom to map")(io::Error::other(error)))?;
    for map in ["uid_map", "gid_map"] {
        let read = fs::read_to_string(format!("/proc/self/{map}")).map_err(failed(format!("reading {map}")))?;
        fs::write(format!("/proc/{process}/{map}"), same(&read)).map_err(failed(format!("writing {map}")))?;
    }
    Ok(())
}

/// A map of every identity that a map knows to itself.
fn same(map: &str) -> String {
    let extent = |line: &str| {
        let mut columns = line.split_whitespace();
        let (first, count) = (columns.next()?, columns.nth(1)?);
        Some(format!("{first} {first} {count}\n"))
    };
    map.lines().filter_map(extent).collect()
}

fn init(options: &EnterOptions) -> Result<ExitCode, EnterError> {
    set_pdeathsig(Signal::SIGKILL).map_err(failed("tying the sandbox to its parent"))?;
    let lifeline = lifeline().map_err(failed("finding the parent"))?;
    // The parent may have died before the line above; then nobody would ever kill us.
    if hung_up(&lifeline) {
        return Ok(ExitCode::FAILURE);
    }
    let none = None::<&OsStr>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .map_err(failed("making the mounts private"))?;
    let strict = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("proc"), "/proc", Some("proc"), strict | MsFlags::MS_NOEXEC, none)
        .map_err(failed("mounting /proc"))?;
    mount(Some("tmpfs"), &run_dir(options), Some("tmpfs"), strict, Some("mode=0700"))
        .map_err(failed(format!("mounting {}", run_dir(options).display())))?;
    nix::unistd::sethostname("hawser-sandbox").map_err(failed("naming the sandbox"))?;
    let signals = Signals::block()?;
    let supervisor = again("supervisor").stdin(Stdio::inherit()).spawn();
    supervise(supervisor.map_err(failed("starting the supervisor"))?, &signals, &lifeline)
}

fn supervisor(options: &EnterOptions) -> Result<Inside, EnterError> {
    let lifeline = lifeline().map_err(failed("finding the parent"))?;
    let listeners = receive(&lifeline).map_err(failed("taking over the listeners"))?;
    if listeners.len() != options.ports.len() {
        let error = io::Error::other(format!("{} of {}", listeners.len(), options.ports.len()));
        return Err(failed("taking over the listeners")(error));
    }
    Ok(Inside { listeners, run_dir: run_dir(options), lifeline })
}

/// The same command line at a later stage.
fn again(stage: &str) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.args(env::args_os().skip(1)).env(STAGE, stage);
    command
}

/// Our standard input, which is the socket to the outside process.
fn lifeline() -> io::Result<UnixStream> {
    Ok(io::stdin().as_fd().try_clone_to_owned()?.into())
}

fn hung_up(socket: &UnixStream) -> bool {
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLHUP)];
    poll(&mut fds, PollTimeout::ZERO).is_ok()
        && fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP))
}

fn send(socket: &UnixStream, listeners: &[TcpListener]) -> io::Result<()> {
    let fds: Vec<_> = listeners.iter().map(AsRawFd::as_raw_fd).collect();
    if fds.len() > LISTENERS_MAX {
        return Err(io::Error::other("too many listeners"));
    }
    let rights = [ControlMessage::ScmRights(&fds)];
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(b"L")], &rights, MsgFlags::empty(), None)?;
    Ok(())
}

fn receive(socket: &UnixStream) -> io::Result<Vec<TcpListener>> {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(LISTENERS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let flags = RecvFlags::CMSG_CLOEXEC;
    rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, flags)?;
    let mut listeners = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            listeners.extend(fds.map(TcpListener::from));
        }
    }
    Ok(listeners)
}

/// The signals that a waiting process cares for, as a descriptor.
struct Signals {
    fd: SignalFd,
}

impl Signals {
    /// Children start with no signal blocked: the standard library sees to that.
    fn block() -> Result<Self, EnterError> {
        let mut set = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGCHLD] {
            set.add(signal);
        }
        set.thread_block().map_err(failed("blocking signals"))?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let fd = SignalFd::with_flags(&set, flags).map_err(failed("waiting for signals"))?;
        Ok(Self { fd })
    }
}

/// Waits for the child, reaping whatever else ends, and passes on the wish to end. `_held` must live as long.
fn supervise(child: Child, signals: &Signals, _held: &UnixStream) -> Result<ExitCode, EnterError> {
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("process ids are positive i32s"));
    let mut kill_at: Option<Instant> = None;
    loop {
        if let Some(status) = reap(pid)? {
            return Ok(code(status));
        }
        let timeout = match kill_at {
            None => PollTimeout::NONE,
            Some(at) => {
                let left = at.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    // Already gone is as good.
                    let _ = kill(pid, Signal::SIGKILL);
                }
                PollTimeout::try_from(left.max(Duration::from_millis(100))).unwrap_or(PollTimeout::MAX)
            }
        };
        let mut fds = [PollFd::new(signals.fd.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(failed("waiting for the sandbox")(error)),
        }
        while let Ok(Some(signal)) = signals.fd.read_signal() {
            let ends = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];
            if ends.contains(&i32::try_from(signal.ssi_signo).unwrap_or(0)) {
                kill_at.get_or_insert_with(|| Instant::now() + GRACE);
                let _ = kill(pid, Signal::SIGTERM);
            }
        }
    }
}

/// Collects every process that ended; the result is that of `wanted`, if it was among them.
fn reap(wanted: Pid) -> Result<Option<ExitStatus>, EnterError> {
    let mut found = None;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) if pid == wanted => found = Some(ExitStatus::from_raw(code << 8)),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == wanted => {
                found = Some(ExitStatus::from_raw(signal as i32));
            }
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(found),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(failed("waiting for processes")(error)),
        }
    }
}

fn code(status: ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

/// The directory for everything the sandbox keeps on the host, which is one socket and one kubeconfig.
pub fn default_state_dir() -> PathBuf {
    let base = env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_dir());
    match base {
        Some(base) => base.join("hawser"),
        None => Path::new("/tmp").join(format!("hawser-{}", nix::unistd::geteuid())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_identity_that_exists_is_mapped_to_itself() {
        assert_eq!(same("         0          0 4294967295\n"), "0 0 4294967295\n");
        assert_eq!(same("0 100000 65536\n70000 200000 10\n"), "0 0 65536\n70000 70000 10\n");
    }

    #[test]
    fn listeners_pass_through_a_socket() {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let listeners: Vec<_> =
            (0..3).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback")).collect();
        send(&ours, &listeners).expect("sent");
        let addresses = |listeners: &[TcpListener]| -> Vec<_> {
            listeners.iter().map(|listener| listener.local_addr().expect("bound")).collect()
        };
        assert_eq!(addresses(&receive(&theirs).expect("received")), addresses(&listeners));
    }
}
