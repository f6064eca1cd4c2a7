//! A process that is measured, and ends with its owner.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::unistd::{SysconfVar, sysconf};

use super::namespaces::NetNs;

pub(super) struct Process {
    child: Child,
    log: PathBuf,
    /// Programs of ours end when it closes.
    _stdin: Option<ChildStdin>,
}

impl Process {
    /// Starts a server in a namespace; what it says goes to `NAME.log` in `dir`.
    pub(super) fn start(namespace: &NetNs, dir: &Path, name: &str, command: &mut Command) -> Result<Self> {
        let log = dir.join(format!("{name}.log"));
        let file = File::create(&log)?;
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        let child = namespace.run(|| command.spawn());
        let child = child.with_context(|| format!("starting {name}"))?;
        Ok(Self {
            child,
            log,
            _stdin: None,
        })
    }

    /// Starts one of our helpers, which say one line when they are ready.
    pub(super) fn helper(
        namespace: &NetNs,
        dir: &Path,
        name: &str,
        command: &mut Command,
    ) -> Result<(Self, String)> {
        let log = dir.join(format!("{name}.log"));
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(&log)?);
        let child = namespace.run(|| command.spawn());
        let mut child = child.with_context(|| format!("starting {name}"))?;
        let stdin = child.stdin.take();
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("its output")?).read_line(&mut line)?;
        let process = Self {
            child,
            log,
            _stdin: stdin,
        };
        if line.is_empty() {
            bail!("{name} did not start: {}", process.last_words());
        }
        Ok((process, line.trim().to_owned()))
    }

    fn proc(&self, file: &str) -> Result<String> {
        let path = format!("/proc/{}/{file}", self.child.id());
        std::fs::read_to_string(&path).with_context(|| format!("{path}: {}", self.last_words()))
    }

    /// What all its threads needed so far; the kernel counts in 10 ms.
    pub(super) fn cpu(&self) -> Result<Cpu> {
        cpu_of(&self.proc("stat")?).context("its CPU time")
    }

    /// Resident memory in KiB: now, and the most so far.
    pub(super) fn memory(&self) -> Result<(f64, f64)> {
        let status = self.proc("status")?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse().ok()
        };
        field("VmRSS:").zip(field("VmHWM:")).context("its memory")
    }

    /// How many files and sockets it has open.
    pub(super) fn descriptors(&self) -> Result<usize> {
        let path = format!("/proc/{}/fd", self.child.id());
        Ok(std::fs::read_dir(&path).context(path)?.count())
    }

    /// The end of its log.
    pub(super) fn last_words(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Ends a program as a user would, so that it can clean up.
pub(super) fn interrupt(mut child: Child, deadline: Duration) -> Result<()> {
    let pid = nix::unistd::Pid::from_raw(child.id().try_into()?);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT)?;
    let began = Instant::now();
    while began.elapsed() < deadline {
        if child.try_wait()?.is_some() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill()?;
    child.wait()?;
    bail!("it had to be killed after {deadline:?}")
}

/// Time on a processor, in the program itself and in the kernel for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cpu {
    pub(super) user: Duration,
    pub(super) kernel: Duration,
}

/// `/proc/PID/stat`: the name may contain anything, the fields after it may not.
fn cpu_of(stat: &str) -> Option<Cpu> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let per_second = u64::try_from(sysconf(SysconfVar::CLK_TCK).ok()??).ok()?;
    let mut time = || {
        let ticks = fields.next()?.parse::<u64>().ok()?;
        Some(Duration::from_micros(ticks * 1_000_000 / per_second))
    };
    Some(Cpu {
        user: time()?,
        kernel: time()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_read_past_a_name_with_spaces_and_brackets() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 0 0 0 150 50 9 9 20 0 1 0 1 1 1";
        let (user, kernel) = (Duration::from_millis(1500), Duration::from_millis(500));
        assert_eq!(cpu_of(stat), Some(Cpu { user, kernel }));
    }
}
