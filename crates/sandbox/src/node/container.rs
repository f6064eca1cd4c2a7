//! Starts and enters containers: the agent's side of [`super::starter`].

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::Stdio;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::pty::{OpenptFlags, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader, ReadBuf};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::{Child, ChildStderr, ChildStdout, Command};
use tokio::sync::{Mutex, mpsc};

use super::starter::{Enter, Order, PROGRAM, Process, Report, Request};
use crate::kubelet::{ExecOptions, ExecSession, KubeletError};

/// A machine under heavy load still makes a few mounts in this time.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Of what a hook or probe prints, so much is kept for the message about its failure.
const OUTPUT_MAX: u64 = 1024;

#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// The container can't be made or its program can't run.
    #[error("{0}")]
    Refused(String),
    #[error("running {PROGRAM}")]
    Starter(#[source] io::Error),
}

/// A container or a process in one. Dropping all handles kills it.
pub(crate) struct Started {
    pub orders: Orders,
    /// Its process id stays taken until [`Started::exit`] has returned.
    pub supervisor: u32,
    pub stdout: Option<ChildStdout>,
    pub stderr: Option<ChildStderr>,
    pub exit: Exit,
}

/// Sends signals to the program.
#[derive(Clone)]
pub(crate) struct Orders(Arc<Mutex<OwnedWriteHalf>>);

pub(crate) struct Exit {
    reports: BufReader<OwnedReadHalf>,
    child: Child,
}

impl Orders {
    pub(crate) async fn signal(&self, signal: i32) {
        let mut line = serde_json::to_vec(&Order { signal }).expect("an order is plain data");
        line.push(b'\n');
        // A container that has ended doesn't take orders.
        let _ = self.0.lock().await.write_all(&line).await;
    }
}

impl Exit {
    /// The exit code and the signal.
    pub(crate) async fn wait(mut self) -> (i32, Option<i32>) {
        let killed = (128 + 9, Some(9));
        let ended = match read_report(&mut self.reports).await {
            Ok(Report::Exited { code, signal }) => (code, signal),
            // The supervisor was killed, and the container with it.
            Ok(Report::Started | Report::Failed { .. }) | Err(_) => killed,
        };
        // The supervisor ends right after its last report; its code says nothing more.
        let _ = self.child.wait().await;
        ended
    }
}

async fn read_report(reports: &mut BufReader<OwnedReadHalf>) -> io::Result<Report> {
    let mut line = String::new();
    if reports.read_line(&mut line).await? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_str(&line)?)
}

/// Runs the starter and returns when the program runs.
pub(crate) async fn start(
    starter: &Path,
    request: &Request,
    output: impl Fn() -> Stdio,
) -> Result<Started, StartError> {
    let attempt = async {
        let (ours, theirs) = StdUnixStream::pair().map_err(StartError::Starter)?;
        ours.set_nonblocking(true).map_err(StartError::Starter)?;
        let ours = UnixStream::from_std(ours).map_err(StartError::Starter)?;
        let mut child = Command::new(starter)
            .arg0(PROGRAM)
            .env_clear()
            .current_dir("/")
            .stdin(OwnedFd::from(theirs))
            .stdout(output())
            .stderr(output())
            // A signal to the agent's terminal is the agent's to handle.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(StartError::Starter)?;
        let (reports, mut orders) = ours.into_split();
        let mut reports = BufReader::new(reports);
        let mut line = serde_json::to_vec(request).expect("a request is plain data");
        line.push(b'\n');
        orders.write_all(&line).await.map_err(StartError::Starter)?;
        match read_report(&mut reports).await.map_err(StartError::Starter)? {
            Report::Started => {}
            Report::Failed { message } => return Err(StartError::Refused(message)),
            Report::Exited { .. } => {
                return Err(StartError::Refused("it ended before it started".to_owned()));
            }
        }
        let supervisor = child
            .id()
            .ok_or_else(|| StartError::Starter(io::ErrorKind::NotFound.into()))?;
        Ok(Started {
            orders: Orders(Arc::new(Mutex::new(orders))),
            supervisor,
            stdout: child.stdout.take(),
            stderr: child.stderr.take(),
            exit: Exit { reports, child },
        })
    };
    let timeout = || StartError::Starter(io::ErrorKind::TimedOut.into());
    tokio::time::timeout(START_TIMEOUT, attempt)
        .await
        .map_err(|_| timeout())?
}

/// Runs programs in a container that runs.
#[derive(Clone)]
pub(crate) struct Runner {
    pub starter: PathBuf,
    pub supervisor: u32,
    /// The container's own process; programs get its environment, user and privileges.
    pub process: Process,
}

impl Runner {
    fn enter(&self, command: &[String], stdin: Option<PathBuf>, terminal: Option<PathBuf>) -> Request {
        let process = Process {
            arguments: command.to_vec(),
            ..self.process.clone()
        };
        Request::Enter(Enter {
            process,
            supervisor: self.supervisor,
            stdin,
            terminal,
        })
    }

    /// Runs a hook or probe to its end. Returns the exit code and the start of what it printed.
    pub(crate) async fn run(&self, command: &[String]) -> Result<(i32, String), StartError> {
        let request = self.enter(command, None, None);
        let mut started = start(&self.starter, &request, Stdio::piped).await?;
        let (stdout, stderr) = (started.stdout.take(), started.stderr.take());
        // Both are read to the end, lest the program block; only the start of either is kept.
        let (printed, complained, (code, _)) =
            tokio::join!(drain(stdout), drain(stderr), started.exit.wait());
        Ok((code, printed + &complained))
    }

    /// Runs a program for a client.
    pub(crate) async fn exec(&self, options: ExecOptions) -> Result<ExecSession, KubeletError> {
        if options.tty {
            self.exec_in_terminal(options).await
        } else {
            self.exec_on_pipes(options).await
        }
    }

    async fn exec_on_pipes(&self, options: ExecOptions) -> Result<ExecSession, KubeletError> {
        let (theirs, ours) = io::pipe().map_err(io_error("making a pipe"))?;
        let request = self.enter(&options.command, options.stdin.then(|| path_of(&theirs)), None);
        let mut started = start(&self.starter, &request, Stdio::piped)
            .await
            .map_err(start_error)?;
        drop(theirs);
        let stdin = match options.stdin {
            true => {
                let writer =
                    pipe::Sender::from_owned_fd(OwnedFd::from(ours)).map_err(io_error("using a pipe"))?;
                Some(Box::pin(writer) as _)
            }
            false => None,
        };
        let (Some(stdout), Some(stderr)) = (started.stdout.take(), started.stderr.take()) else {
            unreachable!("start() was asked for pipes");
        };
        // There is no terminal to resize; the receiver going away says so.
        let (resize, _) = mpsc::channel(1);
        Ok(ExecSession {
            stdin,
            stdout: Box::pin(stdout),
            stderr: Box::pin(stderr),
            resize,
            exit: exit(started),
        })
    }

    async fn exec_in_terminal(&self, options: ExecOptions) -> Result<ExecSession, KubeletError> {
        let failed = || io_error("opening a terminal");
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
            .map_err(|error| failed()(error.into()))?;
        unlockpt(&master).map_err(|error| failed()(error.into()))?;
        let name = ptsname(&master, Vec::new()).map_err(|error| failed()(error.into()))?;
        let terminal = PathBuf::from(name.to_string_lossy().into_owned());
        let request = self.enter(&options.command, None, Some(terminal));
        let started = start(&self.starter, &request, Stdio::null)
            .await
            .map_err(start_error)?;

        rustix::io::ioctl_fionbio(&master, true).map_err(|error| failed()(error.into()))?;
        let reader = master.try_clone().map_err(failed())?;
        let sizes = master.try_clone().map_err(failed())?;
        // Terminals are polled like pipes; only the check that it is one must be left out.
        let stdout = Terminal(pipe::Receiver::from_owned_fd_unchecked(reader).map_err(failed())?);
        let stdin = match options.stdin {
            true => Some(Box::pin(pipe::Sender::from_owned_fd_unchecked(master).map_err(failed())?) as _),
            false => None,
        };
        let (resize, mut wanted) = mpsc::channel::<(u16, u16)>(4);
        tokio::spawn(async move {
            // Ends when the session is dropped.
            while let Some((columns, rows)) = wanted.recv().await {
                let size = Winsize {
                    ws_row: rows,
                    ws_col: columns,
                    ws_xpixel: 0,
                    ws_ypixel: 0,
                };
                if tcsetwinsize(&sizes, size).is_err() {
                    return;
                }
            }
        });
        Ok(ExecSession {
            stdin,
            stdout: Box::pin(stdout),
            stderr: Box::pin(tokio::io::empty()),
            resize,
            exit: exit(started),
        })
    }
}

fn exit(started: Started) -> crate::kubelet::BoxFuture<'static, Result<i32, KubeletError>> {
    Box::pin(async move {
        // Held until the end: dropping it would hang up.
        let _orders = started.orders;
        Ok(started.exit.wait().await.0)
    })
}

async fn drain(stream: Option<impl AsyncRead + Unpin>) -> String {
    let Some(stream) = stream else {
        return String::new();
    };
    let mut kept = Vec::new();
    let mut limited = stream.take(OUTPUT_MAX);
    // What can't be read isn't shown.
    let _ = limited.read_to_end(&mut kept).await;
    let _ = tokio::io::copy(&mut limited.into_inner(), &mut tokio::io::sink()).await;
    String::from_utf8_lossy(&kept).into_owned()
}

/// How the starter can open a descriptor of ours that isn't inherited.
pub(crate) fn path_of(fd: &impl AsRawFd) -> PathBuf {
    PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd()))
}

fn io_error(what: &'static str) -> impl FnOnce(io::Error) -> KubeletError {
    move |source| KubeletError::Io {
        what: what.to_owned(),
        source,
    }
}

fn start_error(error: StartError) -> KubeletError {
    match error {
        StartError::Refused(message) => KubeletError::Io {
            what: message,
            source: io::Error::other("the command was not started"),
        },
        StartError::Starter(source) => KubeletError::Io {
            what: format!("running {PROGRAM}"),
            source,
        },
    }
}

/// The master side of a terminal. Once nobody has the other side open, reading fails; that is its end.
struct Terminal(pipe::Receiver);

impl AsyncRead for Terminal {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.0).poll_read(cx, buffer) {
            Poll::Ready(Err(error)) if error.raw_os_error() == Some(libc::EIO) => Poll::Ready(Ok(())),
            other => other,
        }
    }
}
