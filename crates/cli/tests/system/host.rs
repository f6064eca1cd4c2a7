//! The machine under the tests: what it can run, programs with deadlines, and what processes and namespaces exist.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

pub(crate) const HAWSER: &str = env!("CARGO_BIN_EXE_hawser");
/// How often a condition is looked at. Each look costs a process or more, so oftener would only slow down what is
/// waited for.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Why no sandbox can run here, if so.
pub(crate) fn cannot_run() -> Option<String> {
    let mut doctor = Command::new(HAWSER);
    doctor.args(["sandbox", "doctor", "-o", "json"]);
    let said = run(doctor, "", Duration::from_secs(20));
    let findings: Value = match serde_json::from_str(&said.out) {
        Ok(findings) => findings,
        Err(error) => panic!("`hawser sandbox doctor -o json` printed {:?}: {error}", said.out),
    };
    let findings = findings.as_array().cloned().unwrap_or_default();
    assert!(!findings.is_empty(), "the doctor looked at something");
    let missing = findings
        .iter()
        .find(|finding| finding["required"] == true && finding["ok"] != true)?;
    let text = |field: &str| missing[field].as_str().unwrap_or_default();
    Some(format!("{}: {}; try: {}", text("name"), text("why"), text("fix")))
}

/// Whether a program is in the path.
pub(crate) fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

/// What a program said, and how it ended.
#[derive(Debug)]
pub(crate) struct Said {
    /// Absent if it was ended at its deadline.
    pub(crate) status: Option<ExitStatus>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Said {
    pub(crate) fn code(&self) -> Option<i32> {
        self.status.and_then(|status| status.code())
    }

    pub(crate) fn succeeded(&self) -> bool {
        self.code() == Some(0)
    }

    /// What a successful program printed as JSON, or why there is nothing.
    pub(crate) fn json(self) -> Result<Value, String> {
        if !self.succeeded() {
            return Err(self.err);
        }
        serde_json::from_str(&self.out).map_err(|error| format!("{error} in {}", self.out))
    }
}

/// Runs a program to its end with this input, at most until the deadline.
pub(crate) fn run(mut command: Command, input: &str, deadline: Duration) -> Said {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
    let stdin = child.stdin.take();
    let (mut stdout, mut stderr) = (child.stdout.take(), child.stderr.take());
    let input = input.to_owned();
    // A program may end without reading its input.
    std::thread::spawn(move || stdin.map(|mut stdin| stdin.write_all(input.as_bytes())));
    let read = |text: &mut Vec<u8>, from: Option<&mut dyn std::io::Read>| {
        from.map(|from| from.read_to_end(text));
    };
    std::thread::scope(|scope| {
        let out = scope.spawn(move || {
            let mut text = Vec::new();
            read(&mut text, stdout.as_mut().map(|pipe| pipe as _));
            String::from_utf8_lossy(&text).into_owned()
        });
        let err = scope.spawn(move || {
            let mut text = Vec::new();
            read(&mut text, stderr.as_mut().map(|pipe| pipe as _));
            String::from_utf8_lossy(&text).into_owned()
        });
        let began = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().expect("a child can be waited for") {
                break Some(status);
            }
            if began.elapsed() > deadline {
                let _ = child.kill();
                let _ = child.wait();
                break None;
            }
            pause(Duration::from_millis(5));
        };
        Said {
            status,
            out: out.join().expect("reading does not panic"),
            err: err.join().expect("reading does not panic"),
        }
    })
}

/// Looks again and again until `look` finds something; the error of its last look is why it did not.
pub(crate) fn eventually<T>(
    what: &str,
    deadline: Duration,
    mut look: impl FnMut() -> Result<T, String>,
) -> T {
    let began = Instant::now();
    loop {
        match look() {
            Ok(found) => return found,
            Err(why) => assert!(
                began.elapsed() < deadline,
                "{what}: not within {} s, last seen: {why}",
                deadline.as_secs()
            ),
        }
        pause(LOOK_EVERY);
    }
}

fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// A process and all that descend from it, by parent ids.
pub(crate) fn family(ancestor: u32) -> BTreeSet<u32> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for pid in pids() {
        if let Some(parent) = parent(pid) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut family = BTreeSet::from([ancestor]);
    let mut unseen = vec![ancestor];
    while let Some(pid) = unseen.pop() {
        for child in children.get(&pid).into_iter().flatten() {
            if family.insert(*child) {
                unseen.push(*child);
            }
        }
    }
    family
}

/// The only process of a family whose environment holds all these words.
pub(crate) fn process_of(ancestor: u32, words: &[&str]) -> i32 {
    let holds = |pid: &u32| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let environment = String::from_utf8_lossy(&environment);
        words.iter().all(|word| environment.contains(word))
    };
    let found: Vec<u32> = family(ancestor).into_iter().filter(holds).collect();
    let [one] = found.as_slice() else {
        panic!("{} processes with {words:?}", found.len());
    };
    i32::try_from(*one).expect("pids are small")
}

/// Every namespace that a process of these holds, as the kernel names them: `net:[4026531840]`.
pub(crate) fn namespaces(pids: &BTreeSet<u32>) -> BTreeSet<String> {
    let of = |pid: &u32| {
        let links = std::fs::read_dir(format!("/proc/{pid}/ns")).into_iter().flatten();
        links
            .filter_map(|link| std::fs::read_link(link.ok()?.path()).ok())
            .map(|target| target.display().to_string())
            .collect::<Vec<_>>()
    };
    pids.iter().flat_map(of).collect()
}

/// Processes with this directory among their arguments.
pub(crate) fn naming(dir: &Path) -> Vec<u32> {
    let wanted = dir.display().to_string();
    let names = |pid: &u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0)
            .any(|argument| argument == wanted.as_bytes())
    };
    pids().into_iter().filter(names).collect()
}

pub(crate) fn pids() -> BTreeSet<u32> {
    let entries = std::fs::read_dir("/proc").expect("/proc is mounted");
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect()
}

fn parent(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything.
    let (_, after) = stat.rsplit_once(')')?;
    after.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// Mounts and network interfaces of this machine, as this process sees them.
pub(crate) fn furniture() -> BTreeMap<&'static str, BTreeSet<String>> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("Linux has it");
    let links = std::fs::read_dir("/sys/class/net").into_iter().flatten();
    let names = links.filter_map(|link| link.ok()?.file_name().into_string().ok());
    let mut all = BTreeMap::from([
        ("mounts", mounts.lines().map(str::to_owned).collect()),
        ("interfaces", names.collect()),
    ]);
    if has("nft") {
        let mut nft = Command::new("nft");
        nft.args(["list", "ruleset"]);
        let rules = run(nft, "", Duration::from_secs(5)).out;
        all.insert("rules", rules.lines().map(str::to_owned).collect());
    }
    all
}

/// A directory for a state, ours alone, and removed with the value.
pub(crate) fn state_dir() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    mode(dir.path(), 0o700);
    dir
}

pub(crate) fn mode(path: &Path, bits: u32) {
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(bits)).expect("ours");
}

/// A copy of the binary where any user may run it.
pub(crate) fn public_copy(dir: &Path) -> PathBuf {
    let copy = dir.join("hawser");
    std::fs::copy(HAWSER, &copy).expect("copied");
    mode(dir, 0o755);
    mode(&copy, 0o755);
    copy
}
