//! Private namespaces for a sandbox, made so that nothing can be left behind.
//!
//! ```text
//! caller ── outer ── init (pid 1 of its namespace) ── supervisor
//! ```
//!
//! *Outer* makes user, pid, mount, ipc and uts namespaces; the caller writes its id maps. *Init* mounts what a new pid
//! namespace needs, reaps orphans, and is the sandbox's life: when it ends, the kernel kills everything in the pid
//! namespace, and with the last process the other namespaces, mounts and rules are gone. The *supervisor* opens its
//! loopback listeners while it still sees the machine's network and only then makes a network namespace of its own.
//!
//! Each process ends when the one before it does, also by `kill -9`: the kernel signals it (`PR_SET_PDEATHSIG`), and
//! its standard input, a pipe from the one before, ends. All four are this very binary; nothing runs between fork
//! and exec. Needs no root where the kernel allows user namespaces.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Gid, Pid, Uid};
use serde::{Deserialize, Serialize};

use crate::network::{Layout, NodePorts};

/// The name under which the caller's binary must call [`main`].
pub const PROGRAM: &str = "hawser-sandbox";

const REQUEST: &str = "sandbox.json";
const LOG: &str = "sandbox.log";
pub(super) const KUBECONFIG: &str = "kubeconfig";
/// How long the end of its input may take to end a sandbox.
const STOP_DEADLINE: Duration = Duration::from_secs(5);
/// Kinds of namespace besides the network's, which the supervisor makes.
const NAMESPACES: CloneFlags = CloneFlags::CLONE_NEWUSER
    .union(CloneFlags::CLONE_NEWPID)
    .union(CloneFlags::CLONE_NEWNS)
    .union(CloneFlags::CLONE_NEWIPC)
    .union(CloneFlags::CLONE_NEWUTS);

/// What to start.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Request {
    /// Names of the clusters, which become contexts of the kubeconfig.
    pub clusters: Vec<String>,
    #[serde(default)]
    pub layout: Layout,
    #[serde(default)]
    pub node_ports: NodePorts,
    #[serde(default)]
    pub api: ApiServers,
    /// Logs, kubeconfig and control socket live here; made with mode 0700.
    pub state_dir: PathBuf,
}

/// What the clusters' API servers are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ApiServers {
    /// The sandbox's own, with its own controllers.
    #[default]
    Sandbox,
    /// Kubernetes' programs, from this directory.
    Kubernetes { binaries: PathBuf },
}

/// A directory in memory that only the sandbox's own processes see.
pub(super) fn private_dir(state_dir: &Path) -> PathBuf {
    state_dir.join("run")
}

/// Whether the sandbox ends with its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attachment {
    /// Ends with the caller, however that ends.
    Attached,
    /// Goes on until it is told to stop.
    Detached,
}

/// Why a sandbox could not be started.
#[derive(Debug, thiserror::Error)]
pub enum EnterError {
    #[error("writing {path}")]
    State { path: PathBuf, source: io::Error },
    #[error("starting the sandbox's first process")]
    Spawn { source: io::Error },
    #[error("this machine does not let us make namespaces: {why}")]
    Namespaces { why: String },
    #[error("writing the id maps of the sandbox's user namespace")]
    IdMaps { source: io::Error },
}

/// A sandbox that was started; whether it is ready, [`super::control`] says.
#[derive(Debug)]
pub struct Entered {
    outer: Child,
    state_dir: PathBuf,
}

impl Entered {
    /// Where it logs.
    pub fn log(&self) -> PathBuf {
        self.state_dir.join(LOG)
    }

    /// Has it ended? Never waits.
    pub fn ended(&mut self) -> bool {
        !matches!(self.outer.try_wait(), Ok(None))
    }

    /// Ends it and waits until nothing of it is left.
    pub fn stop(&mut self) {
        // At the end of its input init ends; the kernel then kills everything in its pid namespace before outer,
        // which waits for init, ends as well.
        drop(self.outer.stdin.take());
        let began = Instant::now();
        while !self.ended() {
            if began.elapsed() > STOP_DEADLINE {
                // Init is told by the kernel that outer died.
                let _ = self.outer.kill();
                let _ = self.outer.wait();
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        // A secret that opens nothing any more.
        let _ = fs::remove_file(self.state_dir.join(KUBECONFIG));
    }
}

/// Starts the sandbox's processes. Call before there are threads: the parent-death signal belongs to the thread that
/// starts a process.
pub fn start(request: &Request, attachment: Attachment) -> Result<Entered, EnterError> {
    let dir = &request.state_dir;
    let state = |path: &Path| {
        let path = path.to_owned();
        move |source| EnterError::State { path, source }
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(state(dir))?;
    let owned = fs::metadata(dir).and_then(|found| {
        // In a shared /tmp somebody else may have made it first, to be told secrets.
        if found.uid() != Uid::effective().as_raw() || found.mode() & 0o077 != 0 {
            return Err(io::Error::other(
                "the directory is not ours alone (owner, mode 0700)",
            ));
        }
        Ok(())
    });
    owned.map_err(state(dir))?;
    let written = dir.join(REQUEST);
    let json = serde_json::to_vec_pretty(request).map_err(io::Error::other);
    json.and_then(|json| fs::write(&written, json))
        .map_err(state(&written))?;
    let log_path = dir.join(LOG);
    let log = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(&log_path);
    let log = log.map_err(state(&log_path))?;

    let mut command = again("outer", dir);
    command.arg(match attachment {
        Attachment::Attached => "attached",
        Attachment::Detached => "detached",
    });
    if attachment == Attachment::Detached {
        // Ctrl-C in the caller's terminal is not meant for it.
        command.process_group(0);
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
    let mut outer = command.spawn().map_err(|source| EnterError::Spawn { source })?;

    let outcome = map_ids(&mut outer);
    if outcome.is_err() {
        let _ = outer.kill();
        let _ = outer.wait();
    }
    outcome?;
    if attachment == Attachment::Detached {
        drop(outer.stdin.take());
    }
    Ok(Entered {
        outer,
        state_dir: dir.clone(),
    })
}

/// Waits for outer's namespaces, then says who is who in them.
fn map_ids(outer: &mut Child) -> Result<(), EnterError> {
    let mut answer = String::new();
    let out = outer.stdout.take().ok_or_else(|| EnterError::Namespaces {
        why: "no pipe".into(),
    })?;
    BufReader::new(out)
        .take(4096)
        .read_line(&mut answer)
        .map_err(|error| EnterError::Namespaces {
            why: error.to_string(),
        })?;
    if answer.trim_end() != "unshared" {
        let why = if answer.is_empty() {
            "its first process ended".into()
        } else {
            answer.trim_end().to_owned()
        };
        return Err(EnterError::Namespaces { why });
    }
    let proc = PathBuf::from(format!("/proc/{}", outer.id()));
    let write = |file: &str, text: String| fs::write(proc.join(file), text);
    let (uid, gid) = (Uid::effective(), Gid::effective());
    let maps = if uid.is_root() {
        // Every id that we have ourselves, so that pods can run as the users they ask for.
        let same =
            |file: &str| identity_map(&fs::read_to_string(format!("/proc/self/{file}")).unwrap_or_default());
        write("uid_map", same("uid_map")).and_then(|()| write("gid_map", same("gid_map")))
    } else {
        // One id, which becomes root inside; without helpers nobody may map more.
        write("setgroups", "deny".into())
            .and_then(|()| write("uid_map", format!("0 {uid} 1")))
            .and_then(|()| write("gid_map", format!("0 {gid} 1")))
    };
    let go = |outer: &mut Child| outer.stdin.as_mut().map_or(Ok(()), |pipe| pipe.write_all(b"\n"));
    maps.and_then(|()| go(outer))
        .map_err(|source| EnterError::IdMaps { source })
}

/// Maps every id of our own namespace to itself. Input and output are in the form of `/proc/PID/uid_map`.
fn identity_map(own: &str) -> String {
    own.lines()
        .filter_map(|line| {
            let mut columns = line.split_ascii_whitespace();
            let (inside, _, count) = (columns.next()?, columns.next()?, columns.next()?);
            Some(format!("{inside} {inside} {count}\n"))
        })
        .collect()
}

/// What runs inside, once the namespaces stand: the request and one loopback listener per cluster, in its order.
pub type Supervise = fn(Request, Vec<TcpListener>) -> ExitCode;

/// Entry point of [`PROGRAM`]: plays the part that its arguments name.
pub fn main(args: &[OsString], supervise: Supervise) -> ExitCode {
    let part = args.get(1).and_then(|part| part.to_str()).unwrap_or_default();
    let dir = args.get(2).map(PathBuf::from).unwrap_or_default();
    let outcome = match part {
        "outer" => outer(&dir, args.get(3).is_some_and(|how| how == "detached")),
        "init" => init(&dir),
        "supervisor" => supervisor(&dir, supervise),
        "probe" => Ok(super::doctor::probe()),
        _ => Err(io::Error::other("this program is started by `hawser sandbox`")),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            // Standard error is the sandbox's log.
            let _ = writeln!(io::stderr(), "{PROGRAM} {part}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn again(part: &str, dir: &Path) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg0(PROGRAM).arg(part).arg(dir);
    command
}

fn outer(dir: &Path, detached: bool) -> io::Result<ExitCode> {
    let mut stdout = io::stdout();
    if let Err(error) = unshare(NAMESPACES) {
        writeln!(stdout, "{}", error.desc())?;
        return Ok(ExitCode::FAILURE);
    }
    writeln!(stdout, "unshared")?;
    stdout.flush()?;
    let mut go = [0];
    io::stdin().read_exact(&mut go)?;
    if !detached {
        // A caller that died before this is noticed by the end of our input.
        prctl::set_pdeathsig(Signal::SIGKILL)?;
    }
    // No thread can be started here any more: the kernel refuses once our children have another pid namespace. So
    // init itself watches for the end of the caller's pipe; detached, for the end of ours.
    let input = if detached {
        Stdio::piped()
    } else {
        Stdio::inherit()
    };
    let mut init = again("init", dir).stdin(input).stdout(Stdio::null()).spawn()?;
    let pipe = init.stdin.take();
    let status = init.wait()?;
    drop(pipe);
    Ok(exit_code(status.code()))
}

fn init(dir: &Path) -> io::Result<ExitCode> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    std::thread::spawn(|| {
        end_of_input();
        std::process::exit(1);
    });
    let none: Option<&str> = None;
    // Nothing mounted here is seen outside, and the other way round.
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let proc_flags = flags | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), proc_flags, none)?;
    // Pods' volumes hold tokens: in memory only, and gone with this namespace however it ends.
    let private = private_dir(dir);
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&private)?;
    mount(Some("tmpfs"), &private, Some("tmpfs"), flags, Some("mode=0700"))?;
    let supervisor = again("supervisor", dir).stdin(Stdio::null()).spawn()?;
    let supervisor = Pid::from_raw(i32::try_from(supervisor.id()).map_err(io::Error::other)?);
    loop {
        match waitpid(None, None) {
            Ok(WaitStatus::Exited(pid, code)) if pid == supervisor => return Ok(exit_code(Some(code))),
            Ok(WaitStatus::Signaled(pid, ..)) if pid == supervisor => return Ok(ExitCode::FAILURE),
            // An orphan of some pod.
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn supervisor(dir: &Path, supervise: Supervise) -> io::Result<ExitCode> {
    let request: Request = serde_json::from_reader(File::open(dir.join(REQUEST))?)?;
    let listeners = request
        .clusters
        .iter()
        .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
        .collect::<io::Result<Vec<_>>>()?;
    unshare(CloneFlags::CLONE_NEWNET)?;
    Ok(supervise(request, listeners))
}

fn end_of_input() {
    let mut sink = [0; 64];
    while matches!(io::stdin().read(&mut sink), Ok(1..)) {}
}

fn exit_code(code: Option<i32>) -> ExitCode {
    code.and_then(|code| u8::try_from(code).ok())
        .map_or(ExitCode::FAILURE, ExitCode::from)
}

#[cfg(test)]
mod tests {
    use super::identity_map;

    #[test]
    fn root_keeps_every_id_it_has() {
        assert_eq!(
            identity_map("         0          0 4294967295\n"),
            "0 0 4294967295\n"
        );
        assert_eq!(
            identity_map("0 100000 65536\n65536 5 1\n"),
            "0 0 65536\n65536 65536 1\n"
        );
    }
}
