//! A container's log: what is kept of its output, and how it is read back.
//!
//! One file per run in the format of the container runtime interface (`TIME STREAM F|P TEXT`). A file that is full is
//! renamed to `.1`, replacing an older one, so a run never keeps more than twice [`SIZE_MAX`]. Readers that follow
//! wait for the writer's progress and read what is new.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use jiff::Timestamp;
use tokio::io::AsyncRead;
use tokio::sync::{mpsc, watch};
use tokio_util::codec::{Decoder, FramedRead};

use crate::kubelet::{LogOptions, LogStream};

const SIZE_MAX: u64 = 10 << 20;
/// Longer lines are kept in pieces.
const LINE_MAX: usize = 16 << 10;
/// What a client may leave unread before we stop reading the file for it.
const CHUNKS_MAX: usize = 16;

/// The log of one run.
#[derive(Debug)]
pub(crate) struct Log {
    path: PathBuf,
    size_max: u64,
    progress: watch::Sender<Progress>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Progress {
    rotations: u64,
    bytes: u64,
    closed: bool,
}

impl Log {
    pub(crate) fn new(path: PathBuf) -> Arc<Self> {
        Self::with_size(path, SIZE_MAX)
    }

    fn with_size(path: PathBuf, size_max: u64) -> Arc<Self> {
        Arc::new(Self {
            path,
            size_max,
            progress: watch::Sender::new(Progress::default()),
        })
    }

    fn rotated(&self) -> PathBuf {
        self.path.with_extension("1")
    }

    /// Writes both streams until they end.
    pub(crate) async fn write(
        &self,
        stdout: impl AsyncRead + Send + Unpin,
        stderr: impl AsyncRead + Send + Unpin,
    ) -> io::Result<()> {
        let outcome = self.write_lines(stdout, stderr).await;
        self.progress.send_modify(|progress| progress.closed = true);
        outcome
    }

    async fn write_lines(
        &self,
        stdout: impl AsyncRead + Send + Unpin,
        stderr: impl AsyncRead + Send + Unpin,
    ) -> io::Result<()> {
        let mut file = File::create(&self.path)?;
        let out = FramedRead::new(stdout, Lines).map(|line| ("stdout", line));
        let err = FramedRead::new(stderr, Lines).map(|line| ("stderr", line));
        // What has come in meanwhile is written at once.
        let mut lines = futures::stream::select(out, err).ready_chunks(64);
        while let Some(ready) = lines.next().await {
            let now = Timestamp::now();
            let mut text = Vec::new();
            for (stream, line) in ready {
                // A stream that can't be read has ended; the other goes on.
                let Ok(line) = line else { continue };
                write!(text, "{now:.9} {stream} {} ", if line.whole { 'F' } else { 'P' })?;
                text.extend_from_slice(&line.text);
                text.push(b'\n');
            }
            let mut progress = *self.progress.borrow();
            if progress.bytes > 0 && progress.bytes + text.len() as u64 > self.size_max {
                fs::rename(&self.path, self.rotated())?;
                file = File::create(&self.path)?;
                progress = Progress {
                    rotations: progress.rotations + 1,
                    ..Progress::default()
                };
            }
            file.write_all(&text)?;
            progress.bytes += text.len() as u64;
            self.progress.send_replace(progress);
        }
        Ok(())
    }

    /// Sends what is wanted of the log; with `follow`, until the run has ended or the receiver is dropped.
    pub(crate) fn read(self: &Arc<Self>, options: LogOptions) -> mpsc::Receiver<Bytes> {
        let (sender, receiver) = mpsc::channel(CHUNKS_MAX);
        let log = Arc::clone(self);
        tokio::spawn(async move {
            // The receiver going away ends the reading; a file that can't be read ends the log.
            let _ = log.send(options, Timestamp::now(), &sender).await;
        });
        receiver
    }

    async fn send(&self, options: LogOptions, now: Timestamp, to: &mpsc::Sender<Bytes>) -> io::Result<()> {
        let mut progress = self.progress.subscribe();
        let mut seen = *progress.borrow_and_update();
        let mut output = Output {
            options: options.clone(),
            now,
            left: options.limit_bytes,
        };
        let older = read_all(&self.rotated())?;
        let mut file = match File::open(&self.path) {
            Ok(file) => Some(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let mut fresh = Vec::new();
        if let Some(file) = &mut file {
            file.read_to_end(&mut fresh)?;
        }
        let rest = fresh.split_off(
            fresh
                .iter()
                .rposition(|byte| *byte == b'\n')
                .map_or(0, |end| end + 1),
        );
        let recent = output.recent(&[older, fresh]);
        let mut open = send_text(to, recent).await && output.left != Some(0);
        let mut buffer = rest;
        while open && options.follow {
            let latest = *progress.borrow_and_update();
            if latest == seen && !latest.closed {
                tokio::select! {
                    changed = progress.changed() => if changed.is_err() { return Ok(()) },
                    () = to.closed() => return Ok(()),
                }
                continue;
            }
            if let Some(file) = &mut file {
                file.read_to_end(&mut buffer)?;
            }
            if latest.rotations != seen.rotations || file.is_none() {
                file = Some(File::open(&self.path)?);
                if let Some(file) = &mut file {
                    file.read_to_end(&mut buffer)?;
                }
            }
            seen = latest;
            let rest = buffer.split_off(
                buffer
                    .iter()
                    .rposition(|byte| *byte == b'\n')
                    .map_or(0, |end| end + 1),
            );
            let text = output.format(&buffer);
            buffer = rest;
            open = send_text(to, text).await && output.left != Some(0) && !latest.closed;
        }
        Ok(())
    }

    /// The last lines of the output, for a termination message.
    pub(crate) fn tail(&self, lines: u64, bytes: usize) -> String {
        let options = LogOptions {
            tail_lines: Some(lines),
            ..LogOptions::default()
        };
        let mut output = Output {
            options,
            now: Timestamp::now(),
            left: None,
        };
        let files = [self.rotated(), self.path.clone()].map(|path| read_all(&path).unwrap_or_default());
        let text = output.recent(&files);
        let start = text.len().saturating_sub(bytes);
        String::from_utf8_lossy(&text[start..]).into_owned()
    }

    /// Completes when the run's output has ended.
    pub(crate) fn ended(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut progress = self.progress.subscribe();
        async move {
            // The log going away is an end as well.
            let _ = progress.wait_for(|progress| progress.closed).await;
        }
    }

    pub(crate) fn remove(&self) {
        // Either may not exist.
        let _ = fs::remove_file(&self.path);
        let _ = fs::remove_file(self.rotated());
    }
}

async fn send_text(to: &mpsc::Sender<Bytes>, text: Vec<u8>) -> bool {
    text.is_empty() || to.send(Bytes::from(text)).await.is_ok()
}

fn read_all(path: &Path) -> io::Result<Vec<u8>> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other,
    }
}

/// Turns stored lines into what the caller asked for.
struct Output {
    options: LogOptions,
    now: Timestamp,
    left: Option<u64>,
}

impl Output {
    /// The last of the stored lines that are wanted.
    fn recent(&mut self, files: &[Vec<u8>]) -> Vec<u8> {
        let all = files
            .iter()
            .flat_map(|file| file.split_inclusive(|byte| *byte == b'\n'));
        let stream = self.options.stream;
        let all = all.filter(|line| is_of(line, stream));
        let Some(tail) = self.options.tail_lines else {
            return self.lines(all);
        };
        let mut last = VecDeque::new();
        for line in all {
            last.push_back(line);
            if last.len() as u64 > tail {
                last.pop_front();
            }
        }
        self.lines(last.into_iter())
    }

    fn format(&mut self, stored: &[u8]) -> Vec<u8> {
        self.lines(stored.split_inclusive(|byte| *byte == b'\n'))
    }

    fn lines<'a>(&mut self, stored: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
        let mut out = Vec::new();
        for line in stored.filter(|line| is_of(line, self.options.stream)) {
            let mut fields = line.splitn(4, |byte| *byte == b' ');
            let (Some(time), Some(_), Some(tag), Some(text)) =
                (fields.next(), fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            let time = std::str::from_utf8(time).unwrap_or_default();
            let old = self.options.since.is_some_and(|since| {
                let written = time.parse::<Timestamp>().unwrap_or(Timestamp::MIN);
                jiff::SignedDuration::try_from(since)
                    .is_ok_and(|since| self.now.duration_since(written) > since)
            });
            if old {
                continue;
            }
            if self.options.timestamps {
                out.extend_from_slice(time.as_bytes());
                out.push(b' ');
            }
            out.extend_from_slice(text.strip_suffix(b"\n").unwrap_or(text));
            if tag == b"F" {
                out.push(b'\n');
            }
        }
        if let Some(left) = &mut self.left {
            out.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= out.len() as u64;
        }
        out
    }
}

/// Whether a stored line was written to that stream.
fn is_of(line: &[u8], stream: Option<LogStream>) -> bool {
    let Some(stream) = stream else { return true };
    let wanted: &[u8] = match stream {
        LogStream::Stdout => b"stdout",
        LogStream::Stderr => b"stderr",
    };
    line.split(|byte| *byte == b' ').nth(1) == Some(wanted)
}

/// Splits output into lines, and long lines into pieces.
struct Lines;

struct Line {
    text: BytesMut,
    /// Ended by a newline.
    whole: bool,
}

impl Decoder for Lines {
    type Item = Line;
    type Error = io::Error;

    fn decode(&mut self, buffer: &mut BytesMut) -> io::Result<Option<Line>> {
        let searched = buffer.len().min(LINE_MAX);
        if let Some(end) = buffer[..searched].iter().position(|byte| *byte == b'\n') {
            let mut text = buffer.split_to(end + 1);
            text.truncate(end);
            return Ok(Some(Line { text, whole: true }));
        }
        if buffer.len() >= LINE_MAX {
            return Ok(Some(Line {
                text: buffer.split_to(LINE_MAX),
                whole: false,
            }));
        }
        Ok(None)
    }

    fn decode_eof(&mut self, buffer: &mut BytesMut) -> io::Result<Option<Line>> {
        match self.decode(buffer)? {
            Some(line) => Ok(Some(line)),
            None if buffer.is_empty() => Ok(None),
            None => Ok(Some(Line {
                text: buffer.split(),
                whole: false,
            })),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn collect(mut receiver: mpsc::Receiver<Bytes>) -> String {
        let mut all = Vec::new();
        while let Some(chunk) = receiver.recv().await {
            all.extend_from_slice(&chunk);
        }
        String::from_utf8(all).unwrap()
    }

    async fn written(directory: &Path, output: &str) -> Arc<Log> {
        let log = Log::new(directory.join("0.log"));
        log.write(output.as_bytes(), &b""[..]).await.unwrap();
        log
    }

    #[tokio::test]
    async fn what_was_written_is_read_back_whole_by_lines_or_by_bytes() {
        let directory = tempfile::tempdir().unwrap();
        let log = written(directory.path(), "one\ntwo\nthree").await;
        let read = |options| collect(log.read(options));
        assert_eq!(read(LogOptions::default()).await, "one\ntwo\nthree");
        assert_eq!(
            read(LogOptions {
                tail_lines: Some(2),
                ..LogOptions::default()
            })
            .await,
            "two\nthree"
        );
        assert_eq!(
            read(LogOptions {
                limit_bytes: Some(5),
                ..LogOptions::default()
            })
            .await,
            "one\nt"
        );
        assert_eq!(
            read(LogOptions {
                follow: true,
                ..LogOptions::default()
            })
            .await,
            "one\ntwo\nthree"
        );
        let stamped = read(LogOptions {
            timestamps: true,
            tail_lines: Some(1),
            ..LogOptions::default()
        })
        .await;
        let (time, text) = stamped.split_once(' ').unwrap();
        assert!(
            time.parse::<Timestamp>().is_ok() && time.len() == "2026-01-01T00:00:00.000000000Z".len(),
            "{time}"
        );
        assert_eq!(text, "three");
        assert_eq!(log.tail(80, 4), "hree");
    }

    #[test]
    fn old_lines_are_left_out() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let since = Some(std::time::Duration::from_secs(10));
        let mut output = Output {
            options: LogOptions {
                since,
                ..LogOptions::default()
            },
            now,
            left: None,
        };
        let stored = b"2026-01-01T00:00:49.0Z stdout F old\n2026-01-01T00:00:51.0Z stdout F new\n";
        assert_eq!(output.format(stored), b"new\n");
    }

    #[tokio::test]
    async fn a_follower_sees_new_lines_until_the_run_ends() {
        let directory = tempfile::tempdir().unwrap();
        let log = Log::new(directory.path().join("0.log"));
        let (stdout, mut process) = tokio::io::duplex(1024);
        let writer = Arc::clone(&log);
        let writing = tokio::spawn(async move { writer.write(stdout, &b""[..]).await });
        let mut follower = log.read(LogOptions {
            follow: true,
            ..LogOptions::default()
        });
        use tokio::io::AsyncWriteExt;
        process.write_all(b"one\n").await.unwrap();
        assert_eq!(follower.recv().await.unwrap(), "one\n");
        process.write_all(b"two\n").await.unwrap();
        assert_eq!(follower.recv().await.unwrap(), "two\n");
        drop(process);
        assert_eq!(follower.recv().await, None);
        writing.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_full_file_is_rotated_once_and_a_follower_misses_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let log = Log::with_size(directory.path().join("0.log"), 100);
        let (stdout, mut process) = tokio::io::duplex(1024);
        let writer = Arc::clone(&log);
        let writing = tokio::spawn(async move { writer.write(stdout, &b""[..]).await });
        let mut follower = log.read(LogOptions {
            follow: true,
            ..LogOptions::default()
        });
        use tokio::io::AsyncWriteExt;
        for line in ["one\n", "two\n", "three\n", "four\n", "five\n"] {
            process.write_all(line.as_bytes()).await.unwrap();
            assert_eq!(follower.recv().await.unwrap(), line);
        }
        drop(process);
        writing.await.unwrap().unwrap();
        assert_eq!(
            collect(log.read(LogOptions::default())).await,
            "three\nfour\nfive\n"
        );
    }

    #[test]
    fn a_long_line_comes_in_pieces() {
        let mut buffer = BytesMut::from("x".repeat(LINE_MAX + 3).as_str());
        let first = Lines.decode(&mut buffer).unwrap().unwrap();
        assert_eq!((first.text.len(), first.whole), (LINE_MAX, false));
        assert!(Lines.decode(&mut buffer).unwrap().is_none());
        let last = Lines.decode_eof(&mut buffer).unwrap().unwrap();
        assert_eq!((last.text.len(), last.whole), (3, false));
    }
}
