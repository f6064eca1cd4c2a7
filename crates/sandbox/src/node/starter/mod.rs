//! The program `hawser-container`: it turns itself into a container, or enters one.
//!
//! The agent has many threads, so no code of its may run between fork and exec, and a thread of it can't change its
//! namespaces without surprising the others. So the agent spawns this program and talks to it over a socket on its
//! standard input: one JSON line says what to run, later lines say which signal to send, and end-of-file (which
//! the kernel also sends when the agent dies) kills the container.
//!
//! Two stages, both single-threaded. The *supervisor* makes the namespaces, spawns the *init* stage into them and
//! waits for it. Init is process 1 of the container: it builds the file system, gives up privileges and becomes
//! the program. When it ends, the kernel ends every process of the container.

mod privileges;
mod rootfs;

pub(super) use rootfs::mounts_below;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns, unshare};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

/// Name under which the multi-call binary runs this program.
pub const PROGRAM: &str = "hawser-container";

/// The first line from the agent.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    Create(Create),
    Enter(Enter),
}

/// A new container.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Create {
    pub process: Process,
    /// Network namespace to join, for example `/proc/7/fd/12`; the caller's own if absent.
    pub netns: Option<PathBuf>,
    pub hostname: String,
    /// An empty directory on which the root file system is mounted.
    pub root: PathBuf,
    pub read_only_root: bool,
    /// The multi-call binary and the names it has in `/usr/local/bin`.
    pub executable: PathBuf,
    pub programs: Vec<String>,
    /// Files of `/etc` that differ from the host's, by name.
    pub etc: BTreeMap<String, String>,
    pub mounts: Vec<Mount>,
}

/// Another process in a running container.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Enter {
    pub process: Process,
    /// Process id of the container's supervisor, which the caller hasn't reaped yet.
    pub supervisor: u32,
    /// Where standard input is to be opened, for example `/proc/7/fd/12`.
    pub stdin: Option<PathBuf>,
    /// A terminal for all three streams; it becomes the controlling one.
    pub terminal: Option<PathBuf>,
}

/// What finally runs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Process {
    pub arguments: Vec<String>,
    pub environment: Vec<(String, String)>,
    pub directory: Option<String>,
    pub user: u32,
    pub group: u32,
    pub groups: Vec<u32>,
    /// Bits of the capabilities that it keeps.
    pub capabilities: u64,
    pub no_new_privileges: bool,
}

/// A directory or file of the host that appears in the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mount {
    pub source: PathBuf,
    /// A path below `source` that must not lead out of it; created as a directory if missing.
    pub sub_path: Option<String>,
    pub target: PathBuf,
    pub read_only: bool,
}

/// Later lines from the agent.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    pub signal: i32,
}

/// Lines to the agent.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Report {
    /// The program runs.
    Started,
    /// It never ran.
    Failed { message: String },
    /// It ended, with a code as a shell would show it.
    Exited { code: i32, signal: Option<i32> },
}

/// Entry point of `hawser-container`; `arguments` include the program's name.
///
/// Without further arguments it expects a [`Request`] on standard input. `pause` waits for SIGTERM.
pub fn main(arguments: Vec<OsString>) -> ExitCode {
    let outcome = match arguments.get(1).and_then(|stage| stage.to_str()) {
        None => supervise(),
        Some("init") => init().map(|never| match never {}),
        Some("pause") => pause(),
        Some(other) => Err(io::Error::other(format!("unknown stage {other}"))),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody else may be listening; a failed write can't be reported either.
            let _ = writeln!(io::stderr(), "{PROGRAM}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Prefixes an error with what was being done.
fn doing<E: Into<io::Error>>(what: impl std::fmt::Display) -> impl FnOnce(E) -> io::Error {
    move |error| {
        let error = error.into();
        io::Error::new(error.kind(), format!("{what}: {error}"))
    }
}

/// The socket that the parent put on standard input. The copy isn't inherited by the next program.
fn control() -> io::Result<UnixStream> {
    Ok(UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?))
}

fn pause() -> io::Result<()> {
    let mut signals = nix::sys::signal::SigSet::empty();
    signals.add(nix::sys::signal::Signal::SIGTERM);
    signals.add(nix::sys::signal::Signal::SIGINT);
    signals.thread_block()?;
    signals.wait()?;
    Ok(())
}

fn supervise() -> io::Result<()> {
    let control = control()?;
    let mut orders = BufReader::new(control.try_clone()?);
    let mut line = String::new();
    orders.read_line(&mut line)?;
    let started = serde_json::from_str::<Request>(&line)
        .map_err(|error| io::Error::other(format!("reading the request: {error}")))
        .and_then(|request| start(&request));
    let (mut child, status) = match started {
        Ok(started) => started,
        Err(error) => {
            return report(
                &control,
                &Report::Failed {
                    message: error.to_string(),
                },
            );
        }
    };
    report(&control, &Report::Started)?;
    let ended = attend(&control, orders, &mut child, &status)?;
    let (code, signal) = exit_code(ended);
    report(&control, &Report::Exited { code, signal })
}

fn report(mut control: &UnixStream, report: &Report) -> io::Result<()> {
    let mut line = serde_json::to_vec(report)?;
    line.push(b'\n');
    control.write_all(&line)
}

/// The code as a shell shows it: 128 + signal for a killed process.
fn exit_code(status: ExitStatus) -> (i32, Option<i32>) {
    match (status.code(), status.signal()) {
        (Some(code), _) => (code, None),
        (None, Some(signal)) => (128 + signal, Some(signal)),
        (None, None) => (255, None),
    }
}

/// Spawns the init stage and returns once the program itself runs.
///
/// With it comes its `/proc/PID/status`, opened before the container's own /proc hides it from us.
fn start(request: &Request) -> io::Result<(Child, File)> {
    let mut command = Command::new("/proc/self/exe");
    command.arg0(PROGRAM).arg("init");
    match request {
        Request::Create(create) => {
            if let Some(netns) = &create.netns {
                let netns = File::open(netns).map_err(doing("opening the pod's network namespace"))?;
                setns(netns, CloneFlags::CLONE_NEWNET)
                    .map_err(doing("entering the pod's network namespace"))?;
            }
            // The supervisor moves to the new mount namespace as well, so that /proc/SUPERVISOR/ns names all of the
            // container's namespaces as long as the agent hasn't reaped it.
            unshare(
                CloneFlags::CLONE_NEWNS
                    | CloneFlags::CLONE_NEWPID
                    | CloneFlags::CLONE_NEWUTS
                    | CloneFlags::CLONE_NEWIPC,
            )
            .map_err(doing("making the container's namespaces"))?;
        }
        Request::Enter(enter) => {
            let pids = File::open(format!("/proc/{}/ns/pid_for_children", enter.supervisor))
                .map_err(doing("opening the container's process namespace"))?;
            setns(pids, CloneFlags::CLONE_NEWPID)
                .map_err(doing("entering the container's process namespace"))?;
        }
    }
    let (ours, theirs) = UnixStream::pair()?;
    let mut child = command
        .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
        .spawn()
        .map_err(doing("starting the container's first process"))?;
    // Ours is the only copy left of `theirs` once `command` is gone; end-of-file then means that exec succeeded.
    drop(command);
    let mut complaint = String::new();
    let status = File::open(format!("/proc/{}/status", child.id()));
    let outcome = serde_json::to_writer(&ours, request)
        .map_err(io::Error::from)
        .and_then(|()| ours.shutdown(Shutdown::Write))
        .and_then(|()| (&ours).read_to_string(&mut complaint));
    if outcome.is_err() || !complaint.is_empty() {
        let _ = child.kill();
        let _ = child.wait();
    }
    outcome?;
    if complaint.is_empty() {
        Ok((child, status?))
    } else {
        Err(io::Error::other(complaint))
    }
}

/// Passes on signals until the program has ended. The agent hanging up kills it.
fn attend(
    control: &UnixStream,
    mut orders: BufReader<UnixStream>,
    child: &mut Child,
    status: &File,
) -> io::Result<ExitStatus> {
    let pid = Pid::from_child(child);
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    loop {
        // The reader may hold complete lines that came together with the request.
        let mut lines = [
            PollFd::new(control.as_fd(), PollFlags::POLLIN),
            PollFd::new(process.as_fd(), PollFlags::POLLIN),
        ];
        if orders.buffer().is_empty() {
            match poll(&mut lines, PollTimeout::NONE) {
                Err(nix::errno::Errno::EINTR) => continue,
                other => other?,
            };
            if lines[1].any().unwrap_or(true) {
                return child.wait();
            }
        }
        let mut line = String::new();
        let signal = match orders.read_line(&mut line) {
            Ok(0) | Err(_) => None,
            Ok(_) => serde_json::from_str::<Order>(&line)
                .ok()
                .map(|order| order.signal),
        };
        let signal = signal.and_then(Signal::from_named_raw).unwrap_or(Signal::KILL);
        let ignored_as_init =
            matches!(signal, Signal::TERM | Signal::INT) && has_default_action(status, signal.as_raw());
        // Process 1 of a process namespace doesn't die of a signal that it has no handler for. Elsewhere it would,
        // and programs rely on that, so we do what the kernel would have done for any other process.
        let sent = if ignored_as_init { Signal::KILL } else { signal };
        let _ = pidfd_send_signal(&process, sent);
        if sent == Signal::KILL {
            let status = child.wait()?;
            let substituted = ignored_as_init && status.signal() == Some(Signal::KILL.as_raw());
            return Ok(if substituted {
                ExitStatus::from_raw(signal.as_raw())
            } else {
                status
            });
        }
    }
}

/// Whether the process neither catches, nor ignores, nor blocks the signal.
fn has_default_action(mut status: &File, signal: i32) -> bool {
    let mut text = String::new();
    let read = status.rewind().and_then(|()| status.read_to_string(&mut text));
    read.is_ok() && default_action(&text, signal)
}

fn default_action(status: &str, signal: i32) -> bool {
    status
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(key, _)| matches!(*key, "SigBlk" | "SigIgn" | "SigCgt"))
        .all(|(_, mask)| {
            u64::from_str_radix(mask.trim(), 16).is_ok_and(|mask| mask & (1 << (signal - 1)) == 0)
        })
}

/// Becomes the program. Whatever goes wrong is written to the supervisor's socket.
fn init() -> io::Result<std::convert::Infallible> {
    let mut supervisor = control()?;
    let mut request = Vec::new();
    supervisor.read_to_end(&mut request)?;
    let error = match serde_json::from_slice::<Request>(&request) {
        Err(error) => io::Error::from(error),
        Ok(request) => match enter_and_exec(request) {
            Ok(never) => match never {},
            Err(error) => error,
        },
    };
    supervisor.write_all(error.to_string().as_bytes())?;
    Err(error)
}

fn enter_and_exec(request: Request) -> io::Result<std::convert::Infallible> {
    // Before the file system changes: the kernel shows the mapped ids here.
    let mapped = privileges::Mapped::read()?;
    let (process, stdin, terminal) = match request {
        Request::Create(create) => {
            rootfs::build(&create)?;
            nix::unistd::sethostname(&create.hostname).map_err(doing("setting the host name"))?;
            (create.process, None, None)
        }
        Request::Enter(enter) => {
            let stdin = enter.stdin.as_deref().map(open).transpose()?;
            let terminal = match &enter.terminal {
                Some(path) => {
                    // The first terminal that the leader of a session without one opens becomes its terminal.
                    nix::unistd::setsid().map_err(doing("starting a session"))?;
                    Some(
                        File::options()
                            .read(true)
                            .write(true)
                            .open(path)
                            .map_err(doing("opening the terminal"))?,
                    )
                }
                None => None,
            };
            enter_namespaces(enter.supervisor)?;
            (enter.process, stdin, terminal)
        }
    };
    let directory = process.directory.as_deref().unwrap_or("/");
    std::env::set_current_dir(directory)
        .map_err(doing(format!("changing to the working directory {directory}")))?;
    let program = resolve(&process)?;
    privileges::assume(&process, &mapped)?;
    match &terminal {
        Some(terminal) => {
            nix::unistd::dup2_stdin(terminal)?;
            nix::unistd::dup2_stdout(terminal)?;
            nix::unistd::dup2_stderr(terminal)?;
        }
        None => {
            let stdin = match stdin {
                Some(stdin) => stdin,
                None => File::open("/dev/null").map_err(doing("opening /dev/null"))?,
            };
            nix::unistd::dup2_stdin(stdin)?;
        }
    }
    let [name, arguments @ ..] = process.arguments.as_slice() else {
        return Err(io::Error::other("no command"));
    };
    let error = Command::new(&program)
        .arg0(name)
        .args(arguments)
        .env_clear()
        .envs(process.environment.iter().map(|(key, value)| (key, value)))
        .exec();
    Err(doing(format!("exec: \"{}\"", program.display()))(error))
}

fn open(path: &Path) -> io::Result<File> {
    File::open(path).map_err(doing("opening standard input"))
}

fn enter_namespaces(supervisor: u32) -> io::Result<()> {
    let kinds = [
        ("net", CloneFlags::CLONE_NEWNET),
        ("ipc", CloneFlags::CLONE_NEWIPC),
        ("uts", CloneFlags::CLONE_NEWUTS),
        ("mnt", CloneFlags::CLONE_NEWNS),
    ];
    // All are opened first: after the last one the host's /proc is out of sight.
    let mut namespaces = Vec::new();
    for (name, flag) in kinds {
        let namespace = File::open(format!("/proc/{supervisor}/ns/{name}"))
            .map_err(doing(format_args!("opening the container's {name} namespace")))?;
        namespaces.push((name, namespace, flag));
    }
    for (name, namespace, flag) in namespaces {
        setns(namespace, flag).map_err(doing(format_args!("entering the container's {name} namespace")))?;
    }
    Ok(())
}

/// Finds the program as a shell would, with the container's own PATH.
fn resolve(process: &Process) -> io::Result<PathBuf> {
    let missing =
        |what: &str, name: &str| io::Error::new(io::ErrorKind::NotFound, format!("exec: \"{name}\": {what}"));
    let Some(name) = process.arguments.first() else {
        return Err(io::Error::other("no command"));
    };
    if name.contains('/') {
        return match is_executable(Path::new(name)) {
            true => Ok(PathBuf::from(name)),
            false => Err(missing("no such executable file", name)),
        };
    }
    let path = process
        .environment
        .iter()
        .find(|(key, _)| key == "PATH")
        .map_or("", |(_, value)| value.as_str());
    path.split(':')
        .map(|directory| Path::new(directory).join(name))
        .find(|candidate| is_executable(candidate))
        .ok_or_else(|| missing("executable file not found in $PATH", name))
}

fn is_executable(path: &Path) -> bool {
    path.is_file() && nix::unistd::access(path, nix::unistd::AccessFlags::X_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_has_its_default_action_unless_caught_ignored_or_blocked() {
        let status = |blocked: u64, ignored: u64, caught: u64| {
            format!("Name:\tx\nSigBlk:\t{blocked:016x}\nSigIgn:\t{ignored:016x}\nSigCgt:\t{caught:016x}\n")
        };
        let term = 1 << 14;
        assert!(default_action(&status(0, 0, 0), 15));
        assert!(default_action(&status(1, 1, 1), 15));
        assert!(!default_action(&status(term, 0, 0), 15));
        assert!(!default_action(&status(0, term, 0), 15));
        assert!(!default_action(&status(0, 0, term), 15));
    }

    #[test]
    fn a_killed_process_shows_128_plus_its_signal() {
        assert_eq!(exit_code(ExitStatus::from_raw(3 << 8)), (3, None));
        assert_eq!(exit_code(ExitStatus::from_raw(9)), (137, Some(9)));
    }

    #[test]
    fn a_program_is_looked_up_in_the_path_of_the_container() {
        let process = |name: &str, path: &str| Process {
            arguments: vec![name.to_owned()],
            environment: vec![("PATH".to_owned(), path.to_owned())],
            directory: None,
            user: 0,
            group: 0,
            groups: Vec::new(),
            capabilities: 0,
            no_new_privileges: true,
        };
        assert_eq!(
            resolve(&process("sh", "/nowhere:/bin")).unwrap(),
            PathBuf::from("/bin/sh")
        );
        assert_eq!(
            resolve(&process("sh", "/nowhere")).unwrap_err().to_string(),
            "exec: \"sh\": executable file not found in $PATH"
        );
        assert_eq!(
            resolve(&process("/nowhere/sh", "")).unwrap_err().to_string(),
            "exec: \"/nowhere/sh\": no such executable file"
        );
    }
}
