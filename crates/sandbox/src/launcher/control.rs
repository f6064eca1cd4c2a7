//! How other processes talk to a running sandbox: one JSON line each way over a socket in its state directory.
//!
//! The directory has mode 0700, so whoever can connect may do everything. What a command does is the sandbox's
//! business; this module only carries it.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::sync::Semaphore;

/// Longest line either way. A status of many clusters stays far below.
const LINE_MAX: u64 = 1 << 20;
/// Commands answered at once; more wait in the kernel's queue.
const COMMANDS_MAX: usize = 16;
/// A peer that has not said its line by then is hung up on.
const LINE_DEADLINE: Duration = Duration::from_secs(5);

/// What a sandbox can be told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum Command {
    Status,
    /// No packet passes between the two clusters.
    Cut {
        a: String,
        b: String,
    },
    /// Undoes cut, delay and loss.
    Heal {
        a: String,
        b: String,
    },
    /// Each packet waits this long, in each direction.
    Delay {
        a: String,
        b: String,
        milliseconds: u64,
    },
    /// This share of packets is lost, 0 to 1.
    Loss {
        a: String,
        b: String,
        share: f64,
    },
    /// The API server drops every connection and is back after a while.
    KillApi {
        cluster: String,
        milliseconds: u64,
    },
    Down,
}

/// What it says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    Done,
    Status(Status),
    /// In the user's words.
    Failed {
        why: String,
    },
}

/// A sandbox at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Every API server answers and every node is ready.
    pub ready: bool,
    pub kubeconfig: PathBuf,
    pub clusters: Vec<ClusterStatus>,
    /// Pairs of clusters whose traffic is disturbed, and how.
    pub disturbed: Vec<String>,
}

/// A cluster at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterStatus {
    pub name: String,
    /// For clients on this machine.
    pub server: String,
    /// For pods of any cluster.
    pub internal_server: String,
    pub ready: bool,
    /// What is still awaited, when not ready.
    pub waiting_for: Vec<String>,
    pub pods: usize,
    pub pods_ready: usize,
}

/// Why a sandbox did not answer.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("no sandbox is running in {0}")]
    NotRunning(PathBuf),
    #[error("talking to the sandbox in {dir}")]
    Io { dir: PathBuf, source: io::Error },
    #[error("the sandbox refused: {0}")]
    Refused(String),
}

/// The socket's path.
pub fn socket(state_dir: &Path) -> PathBuf {
    state_dir.join("control.sock")
}

/// Says one command and waits for its answer, at most `deadline`.
pub fn ask(state_dir: &Path, command: &Command, deadline: Duration) -> Result<Answer, ControlError> {
    let io = |source| ControlError::Io {
        dir: state_dir.to_owned(),
        source,
    };
    let mut stream = UnixStream::connect(socket(state_dir)).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            ControlError::NotRunning(state_dir.to_owned())
        }
        _ => io(error),
    })?;
    stream.set_read_timeout(Some(deadline)).map_err(io)?;
    stream.set_write_timeout(Some(deadline)).map_err(io)?;
    let mut line = serde_json::to_vec(command).map_err(|error| io(error.into()))?;
    line.push(b'\n');
    stream.write_all(&line).map_err(io)?;
    let mut answer = String::new();
    BufReader::new(stream)
        .take(LINE_MAX)
        .read_line(&mut answer)
        .map_err(io)?;
    match serde_json::from_str(&answer).map_err(|error| io(error.into()))? {
        Answer::Failed { why } => Err(ControlError::Refused(why)),
        answer => Ok(answer),
    }
}

/// Answers commands until the future is dropped. A socket left by a sandbox that was killed is replaced.
pub async fn serve<F>(
    state_dir: &Path,
    answer: impl Fn(Command) -> F + Clone + Send + 'static,
) -> io::Result<()>
where
    F: Future<Output = Answer> + Send,
{
    let path = socket(state_dir);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    let slots = std::sync::Arc::new(Semaphore::new(COMMANDS_MAX));
    // Answers end with this future: dropping the set aborts them.
    let mut under_way = tokio::task::JoinSet::new();
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else {
            return Ok(());
        };
        let (mut stream, _) = listener.accept().await?;
        while under_way.try_join_next().is_some() {}
        let answer = answer.clone();
        under_way.spawn(async move {
            let _slot = slot;
            let (read, mut write) = stream.split();
            let mut line = String::new();
            let mut read = tokio::io::BufReader::new(read.take(LINE_MAX));
            if !matches!(
                tokio::time::timeout(LINE_DEADLINE, read.read_line(&mut line)).await,
                Ok(Ok(_))
            ) {
                return;
            }
            let said = match serde_json::from_str(&line) {
                Ok(command) => answer(command).await,
                Err(error) => Answer::Failed {
                    why: format!("not a command: {error}"),
                },
            };
            if let Ok(mut bytes) = serde_json::to_vec(&said) {
                bytes.push(b'\n');
                // Whoever asked may have gone.
                let _ = tokio::time::timeout(LINE_DEADLINE, write.write_all(&bytes)).await;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_command_is_answered_and_garbage_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = dir.path().to_owned();
        let server = tokio::spawn(async move {
            serve(&at, |command| async move {
                match command {
                    Command::Status => Answer::Status(Status {
                        ready: true,
                        ..Status::default()
                    }),
                    _ => Answer::Failed {
                        why: "no such cluster".into(),
                    },
                }
            })
            .await
        });
        let at = dir.path().to_owned();
        tokio::task::spawn_blocking(move || {
            let second = Duration::from_secs(1);
            while !socket(&at).exists() {
                std::thread::yield_now();
            }
            let answer = ask(&at, &Command::Status, second).expect("an answer");
            assert_eq!(
                answer,
                Answer::Status(Status {
                    ready: true,
                    ..Status::default()
                })
            );
            let refused = ask(
                &at,
                &Command::KillApi {
                    cluster: "x".into(),
                    milliseconds: 1,
                },
                second,
            );
            assert!(matches!(refused, Err(ControlError::Refused(why)) if why == "no such cluster"));
            let mut stream = UnixStream::connect(socket(&at)).expect("connected");
            stream.write_all(b"garbage\n").expect("written");
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line).expect("an answer");
            assert!(line.contains("not a command"), "{line}");
        })
        .await
        .expect("no panic");
        server.abort();
    }

    #[test]
    fn a_sandbox_that_is_not_there_is_said_to_be_not_running() {
        let dir = tempfile::tempdir().expect("a directory");
        let answer = ask(dir.path(), &Command::Status, Duration::from_secs(1));
        assert!(matches!(answer, Err(ControlError::NotRunning(_))), "{answer:?}");
    }
}
