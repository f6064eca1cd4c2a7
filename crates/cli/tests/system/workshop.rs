//! The guides in docs/, played: every command in one shell with real kubectl, every output compared with what is written.
//!
//! Commands are the lines of ```` ```console ```` blocks that begin with `$ ` (and go on with `> `); what follows is
//! their output, where `[..]` stands for any text in a line and `...` for any lines. A block after the comment
//! `<!-- until -->` is repeated until it comes true, as a person would. Knows nothing of what the document is about.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use crate::host::{self, HAWSER};
use crate::runner::{Test, alone};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
/// For one command; a check waits for a whole control plane.
const DEADLINE: Duration = Duration::from_secs(120);
/// A service that fails over returns after half a minute at the earliest.
const UNTIL: Duration = Duration::from_secs(120);
/// Ends the output of a command, before its exit code.
const MARK: &str = "\u{1e}";

pub(crate) const TESTS: &[Test] = &[
    alone(
        "the_workshop_goes_as_its_guide_says",
        &["bash", "kubectl", "curl"],
        the_workshop_goes_as_its_guide_says,
    ),
    alone(
        "the_workshop_goes_the_same_way_on_control_planes_of_kubernetes",
        &["bash", "kubectl", "curl"],
        the_workshop_goes_the_same_way_on_control_planes_of_kubernetes,
    )
    .unless(crate::kubernetes::missing),
    alone(
        "one_root_for_all_clusters_goes_as_its_guide_says",
        &["bash", "kubectl", "curl", "python3"],
        one_root_for_all_clusters_goes_as_its_guide_says,
    ),
    alone(
        "flat_networks_go_as_their_guide_says",
        &["bash", "kubectl", "curl", "python3"],
        flat_networks_go_as_their_guide_says,
    ),
    alone(
        "certificates_are_made_and_roots_replaced_as_the_guide_says",
        &["bash", "kubectl", "curl", "openssl"],
        certificates_are_made_and_roots_replaced_as_the_guide_says,
    ),
];

fn the_workshop_goes_as_its_guide_says() {
    play("workshop.md");
}

fn the_workshop_goes_the_same_way_on_control_planes_of_kubernetes() {
    let programs = hawser_testing::control_plane().expect("it is there");
    let mut shell = Shell::start(&[
        ("HAWSER_SANDBOX_API", OsStr::new("kubernetes")),
        ("KUBEBUILDER_ASSETS", programs.as_os_str()),
    ]);
    play_in(&mut shell, "workshop.md");
}

fn one_root_for_all_clusters_goes_as_its_guide_says() {
    play("one-root.md");
}

fn flat_networks_go_as_their_guide_says() {
    play("flat.md");
}

fn certificates_are_made_and_roots_replaced_as_the_guide_says() {
    play("trust.md");
}

fn play(guide: &str) {
    play_in(&mut Shell::start(&[]), guide);
}

/// Plays a guide that begins with clusters that run.
pub(crate) fn play_with(kubeconfig: &Path, guide: &str) {
    play_in(
        &mut Shell::start(&[("KUBECONFIG", kubeconfig.as_os_str())]),
        guide,
    );
}

fn play_in(shell: &mut Shell, guide: &str) {
    let path = Path::new(ROOT).join("docs").join(guide);
    let guide = std::fs::read_to_string(path).expect("the guide is there");
    let steps = steps(&guide);
    assert!(!steps.is_empty(), "the guide has steps");
    for step in &steps {
        let began = Instant::now();
        loop {
            let (code, output) = shell.run(&step.command);
            let fits = code == 0 && fits(&step.expected, &output);
            if fits {
                break;
            }
            let patience = if step.until { UNTIL } else { Duration::ZERO };
            assert!(
                began.elapsed() < patience,
                "line {} of the guide: {}\nexpected:\n{}\nseen (exit code {code}):\n{}",
                step.line,
                step.command,
                step.expected.join("\n"),
                output.join("\n"),
            );
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

/// One command of the guide and what it must print.
#[derive(Debug)]
struct Step {
    line: usize,
    command: String,
    expected: Vec<String>,
    until: bool,
}

fn steps(guide: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let (mut inside, mut until) = (false, false);
    for (number, line) in guide.lines().enumerate() {
        if line.starts_with("```") {
            until &= !inside;
            inside = line == "```console";
        } else if line == "<!-- until -->" {
            until = true;
        } else if inside && let Some(command) = line.strip_prefix("$ ") {
            steps.push(Step {
                line: number + 1,
                command: command.to_owned(),
                expected: Vec::new(),
                until,
            });
        } else if inside && let Some(step) = steps.last_mut() {
            match line.strip_prefix("> ") {
                Some(more) => {
                    step.command.push('\n');
                    step.command.push_str(more);
                }
                None => step.expected.push(line.trim_end().to_owned()),
            }
        }
    }
    steps
}

/// Whether all lines are as the patterns say. A command without patterns may print what it likes.
fn fits(patterns: &[String], lines: &[String]) -> bool {
    fn all(patterns: &[String], lines: &[String]) -> bool {
        match (patterns.split_first(), lines.split_first()) {
            (None, None) => true,
            (Some((pattern, rest)), _) if pattern == "..." => {
                all(rest, lines) || lines.split_first().is_some_and(|(_, lines)| all(patterns, lines))
            }
            (Some((pattern, patterns)), Some((line, lines))) => like(pattern, line) && all(patterns, lines),
            _ => false,
        }
    }
    patterns.is_empty() || all(patterns, lines)
}

/// Whether a line is as a pattern with `[..]` for any text says. Runs of blanks are alike: tables grow with names.
fn like(pattern: &str, line: &str) -> bool {
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let (pattern, line) = (words(pattern), words(line));
    let mut parts = pattern.split("[..]");
    let Some(mut rest) = parts.next().and_then(|first| line.strip_prefix(first)) else {
        return false;
    };
    let parts: Vec<&str> = parts.collect();
    let Some((last, between)) = parts.split_last() else {
        return rest.is_empty();
    };
    for part in between {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// A bash with a sandbox directory of its own; the sandbox ends with it.
struct Shell {
    bash: Child,
    stdin: ChildStdin,
    lines: Receiver<String>,
    dir: tempfile::TempDir,
}

impl Shell {
    fn start(environment: &[(&str, &OsStr)]) -> Self {
        let dir = host::state_dir();
        let bin = dir.path().join("bin");
        let state = dir.path().join("sandbox");
        for made in [&bin, &state] {
            std::fs::create_dir(made).expect("a directory");
            host::mode(made, 0o700);
        }
        std::os::unix::fs::symlink(HAWSER, bin.join("hawser")).expect("a link");
        let path = std::env::var("PATH").unwrap_or_default();
        let mut bash = Command::new("bash")
            .args(["--noprofile", "--norc", "-c", "exec 2>&1; shopt -s expand_aliases; while IFS= read -r file; do . \"$file\" < /dev/null; printf '\\n\\036%d\\n' $?; done"])
            .current_dir(ROOT)
            .env("PATH", format!("{}:{path}", bin.display()))
            .env("HOME", dir.path())
            .env("TMPDIR", dir.path())
            .env("HAWSER_SANDBOX_DIR", &state)
            .env_remove("KUBECONFIG")
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("bash starts");
        let stdin = bash.stdin.take().expect("piped");
        let stdout = BufReader::new(bash.stdout.take().expect("piped"));
        let (sender, lines) = sync_channel(64);
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Self {
            bash,
            stdin,
            lines,
            dir,
        }
    }

    /// Exit code and lines of a command.
    fn run(&mut self, command: &str) -> (i32, Vec<String>) {
        let file = self.dir.path().join("command");
        std::fs::write(&file, format!("{command}\n")).expect("ours");
        writeln!(self.stdin, "{}", file.display()).expect("bash listens");
        let began = Instant::now();
        let mut output: Vec<String> = Vec::new();
        loop {
            match self.lines.recv_timeout(DEADLINE.saturating_sub(began.elapsed())) {
                Ok(line) => match line.strip_prefix(MARK) {
                    Some(code) => {
                        // The empty line before the mark is ours unless the output had no end of line.
                        while output.last().is_some_and(String::is_empty) {
                            output.pop();
                        }
                        return (code.trim().parse().unwrap_or(-1), output);
                    }
                    None => output.push(line.trim_end().to_owned()),
                },
                Err(RecvTimeoutError::Timeout) => {
                    panic!("{command}: not within {DEADLINE:?}\n{}", output.join("\n"))
                }
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("{command}: the shell ended\n{}", output.join("\n"))
                }
            }
        }
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = Command::new(HAWSER)
            .args(["sandbox", "down"])
            .env("HAWSER_SANDBOX_DIR", self.dir.path().join("sandbox"))
            .output();
        let _ = self.bash.kill();
        let _ = self.bash.wait();
    }
}
