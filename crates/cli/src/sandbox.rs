//! `hawser sandbox`: start, look at, disturb and stop clusters on this machine.

use std::io::{IsTerminal, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand, ValueEnum};
use hawser_sandbox::launcher::control::{self, Answer, ControlError, Status};
use hawser_sandbox::launcher::doctor::{Finding, doctor};
use hawser_sandbox::launcher::enter::{self, ApiServers, Attachment, EnterError, Entered, Request};
use hawser_sandbox::launcher::kubernetes;
use hawser_sandbox::network::{Layout, NodePorts};

use crate::output::write_out;
use crate::problem::Problem;

/// How long one command to a running sandbox may take.
const COMMAND_DEADLINE: Duration = Duration::from_secs(10);
/// Small clusters start in a second or two; a busy machine may take longer.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// Kubernetes' own programs take several seconds of computing to start.
const KUBERNETES_START_DEADLINE: Duration = Duration::from_secs(300);
/// How often a starting sandbox is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Run small, complete Kubernetes clusters on this machine.
///
/// Clusters are made of processes in private namespaces: no container runtime, no images, no downloads. Real kubectl
/// works against them. All clusters use the same pod and service addresses; only LoadBalancer addresses and API
/// servers are reachable from one to another. With `up --flat`, pods have addresses of their own and reach each other;
/// with `up --node-ports`, nodes have external addresses at which their node ports answer to other clusters.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  hawser sandbox up west east\n  export KUBECONFIG=$(hawser sandbox kubeconfig)\n  kubectl --context west get pods -A\n  hawser sandbox down"
)]
pub(crate) struct SandboxArgs {
    /// Where logs, kubeconfig and control socket live.
    #[arg(long, global = true, env = "HAWSER_SANDBOX_DIR", default_value_os_t = default_state_dir())]
    state_dir: PathBuf,
    #[command(subcommand)]
    command: SandboxCommand,
}

#[derive(Debug, Subcommand)]
enum SandboxCommand {
    /// Start clusters and wait until they are ready
    #[command(
        after_help = "Examples:\n  hawser sandbox up west east\n  hawser sandbox up west east north --flat\n  hawser sandbox up west east --node-ports\n  hawser sandbox up west east --api kubernetes"
    )]
    Up {
        /// Names of the clusters, also the contexts of the kubeconfig
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
        /// Give each cluster pod addresses of its own, and let pods of all clusters reach each other
        #[arg(long)]
        flat: bool,
        /// Give each node an external address, at which other clusters reach its node ports
        #[arg(long)]
        node_ports: bool,
        /// How long to wait until they are ready, in seconds: 60, or 300 for Kubernetes' control planes
        #[arg(long)]
        wait: Option<u64>,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Stop all clusters
    #[command(after_help = "Example:\n  hawser sandbox down")]
    Down,
    /// Say what is running
    #[command(after_help = "Example:\n  hawser sandbox status -o json")]
    Status {
        /// How to print it
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// Print the path of the kubeconfig
    #[command(after_help = "Example:\n  export KUBECONFIG=$(hawser sandbox kubeconfig)")]
    Kubeconfig,
    /// Let no packet pass between two clusters
    #[command(after_help = "Example:\n  hawser sandbox cut west east")]
    Cut { a: String, b: String },
    /// Undo cut, delay and loss between two clusters
    #[command(after_help = "Example:\n  hawser sandbox heal west east")]
    Heal { a: String, b: String },
    /// Delay every packet between two clusters
    #[command(after_help = "Example:\n  hawser sandbox delay west east 50ms")]
    Delay {
        a: String,
        b: String,
        /// In each direction, for example 50ms or 1s
        #[arg(value_parser = duration)]
        delay: Duration,
    },
    /// Lose a share of the packets between two clusters
    #[command(after_help = "Example:\n  hawser sandbox loss west east 1%")]
    Loss {
        a: String,
        b: String,
        /// For example 1%
        #[arg(value_parser = share)]
        share: f64,
    },
    /// Make an API server drop every connection, and come back
    #[command(after_help = "Example:\n  hawser sandbox kill-api east --for 3s")]
    KillApi {
        name: String,
        /// How long it stays away
        #[arg(long = "for", value_parser = duration, default_value = "1s")]
        away: Duration,
    },
    /// Say whether this machine can run a sandbox, and what to do if not
    #[command(after_help = "Example:\n  hawser sandbox doctor")]
    Doctor {
        /// How to print it
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
}

/// What the clusters' control planes are.
#[derive(Debug, Args)]
pub(crate) struct ApiArgs {
    /// Whose API servers, controllers and schedulers run: the sandbox's own, or those of Kubernetes
    #[arg(long, value_enum, env = "HAWSER_SANDBOX_API", default_value_t)]
    api: Api,
    /// Where etcd, kube-apiserver, kube-controller-manager and kube-scheduler are, for --api kubernetes
    #[arg(
        long,
        value_name = "DIR",
        env = "KUBEBUILDER_ASSETS",
        default_value = "target/tools/kubernetes/current"
    )]
    kubernetes: PathBuf,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Api {
    #[default]
    Sandbox,
    Kubernetes,
}

impl ApiArgs {
    pub(crate) fn servers(&self) -> Result<ApiServers, Problem> {
        if self.api == Api::Sandbox {
            return Ok(ApiServers::Sandbox);
        }
        let missing = |why: String| {
            Problem::new(
                "cannot start control planes of Kubernetes",
                why,
                "cargo xtask kubernetes build, or set KUBEBUILDER_ASSETS",
            )
        };
        let binaries = self.kubernetes.canonicalize();
        let binaries =
            binaries.map_err(|error| missing(format!("{}: {error}", self.kubernetes.display())))?;
        let absent = kubernetes::PROGRAMS
            .iter()
            .find(|program| !binaries.join(program).is_file());
        match absent {
            Some(program) => Err(missing(format!(
                "there is no {program} in {}",
                binaries.display()
            ))),
            None => Ok(ApiServers::Kubernetes { binaries }),
        }
    }

    /// How long clusters may take to start.
    pub(crate) fn patience(&self) -> Duration {
        match self.api {
            Api::Sandbox => START_DEADLINE,
            Api::Kubernetes => KUBERNETES_START_DEADLINE,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

/// A directory of this user's: the session's own where there is one.
pub(crate) fn default_state_dir() -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(dir) if !dir.is_empty() => PathBuf::from(dir).join("hawser"),
        _ => std::env::temp_dir().join(format!("hawser-{}", nix::unistd::Uid::effective())),
    }
}

pub(crate) fn run(args: SandboxArgs) -> Result<ExitCode, Problem> {
    let dir = args.state_dir;
    match args.command {
        SandboxCommand::Up {
            names,
            flat,
            node_ports,
            wait,
            api,
        } => {
            let request = Request {
                clusters: names,
                layout: if flat { Layout::Flat } else { Layout::Apart },
                node_ports: if node_ports {
                    NodePorts::Everywhere
                } else {
                    NodePorts::Inside
                },
                api: api.servers()?,
                state_dir: dir,
            };
            let patience = wait.map_or_else(|| api.patience(), Duration::from_secs);
            return up(&request, patience);
        }
        SandboxCommand::Doctor { output } => return examine(output),
        SandboxCommand::Status { output } => show(&status(&dir)?, output)?,
        SandboxCommand::Kubeconfig => write_out(&format!("{}\n", status(&dir)?.kubeconfig.display()))?,
        SandboxCommand::Down => down(&dir)?,
        SandboxCommand::Cut { a, b } => tell(&dir, &control::Command::Cut { a, b })?,
        SandboxCommand::Heal { a, b } => tell(&dir, &control::Command::Heal { a, b })?,
        SandboxCommand::Delay { a, b, delay } => {
            tell(
                &dir,
                &control::Command::Delay {
                    a,
                    b,
                    milliseconds: milliseconds(delay),
                },
            )?;
        }
        SandboxCommand::Loss { a, b, share } => tell(&dir, &control::Command::Loss { a, b, share })?,
        SandboxCommand::KillApi { name: cluster, away } => {
            tell(
                &dir,
                &control::Command::KillApi {
                    cluster,
                    milliseconds: milliseconds(away),
                },
            )?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn up(request: &Request, patience: Duration) -> Result<ExitCode, Problem> {
    let dir = &request.state_dir;
    if status(dir).is_ok() {
        let why = format!("one is running in {}", dir.display());
        return Err(Problem::new(
            "cannot start a sandbox",
            why,
            "hawser sandbox down, or another --state-dir",
        ));
    }
    let mut entered = begin(request, Attachment::Detached)?;
    let status = ready(&mut entered, dir, patience, |waiting| progress(&waiting))?;
    progress("");
    show(&status, Output::Table)?;
    write_out(&format!(
        "\nnext: export KUBECONFIG={}\n",
        status.kubeconfig.display()
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// Starts a sandbox's processes; [`ready`] waits for its clusters.
pub(crate) fn begin(request: &Request, attachment: Attachment) -> Result<Entered, Problem> {
    let names = &request.clusters;
    for (i, name) in names.iter().enumerate() {
        let wrong = |why: String| {
            Problem::new(
                format!("cannot name a cluster {name:?}"),
                why,
                "hawser sandbox up west east",
            )
        };
        name.parse::<hawser_core::ClusterName>()
            .map_err(|error| wrong(error.to_string()))?;
        if names[..i].contains(name) {
            return Err(wrong("the name was given twice".into()));
        }
    }
    enter::start(request, attachment).map_err(|error| {
        let hint = match error {
            EnterError::Namespaces { .. } | EnterError::IdMaps { .. } => "hawser sandbox doctor",
            _ => "another --state-dir",
        };
        Problem::new("cannot start a sandbox", error, hint)
    })
}

/// Waits until every cluster is ready, telling what is missing.
pub(crate) fn ready(
    entered: &mut Entered,
    dir: &Path,
    patience: Duration,
    mut tell: impl FnMut(String),
) -> Result<Status, Problem> {
    let began = Instant::now();
    let mut missing = String::from("its first process");
    loop {
        if entered.ended() {
            let why = last_line(&entered.log());
            return Err(Problem::new(
                "the sandbox ended while it started",
                why,
                format!("read {}", entered.log().display()),
            ));
        }
        match status(dir) {
            Ok(status) if status.ready => return Ok(status),
            Ok(status) => {
                let waiting = status.clusters.iter().filter(|cluster| !cluster.ready);
                missing = waiting
                    .map(|c| format!("{}: {}", c.name, c.waiting_for.join(", ")))
                    .collect::<Vec<_>>()
                    .join("; ");
            }
            // Its socket appears when its clusters exist.
            Err(_) => {}
        }
        if began.elapsed() > patience {
            entered.stop();
            let why = format!("after {} s still waiting for {missing}", patience.as_secs());
            return Err(Problem::new(
                "the sandbox did not get ready",
                why,
                format!("read {}", entered.log().display()),
            ));
        }
        tell(format!("waiting for {missing}"));
        std::thread::sleep(LOOK_EVERY);
    }
}

fn last_line(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    text.lines()
        .rev()
        .find(|line| !line.trim().is_empty())
        .unwrap_or("it left no message")
        .to_owned()
}

pub(crate) fn status(dir: &Path) -> Result<Status, Problem> {
    match control::ask(dir, &control::Command::Status, COMMAND_DEADLINE) {
        Ok(Answer::Status(status)) => Ok(status),
        Ok(other) => Err(Problem::new(
            "cannot read the sandbox's status",
            format!("it said {other:?}"),
            "hawser sandbox down",
        )),
        Err(error) => Err(refused(error)),
    }
}

fn tell(dir: &Path, command: &control::Command) -> Result<(), Problem> {
    control::ask(dir, command, COMMAND_DEADLINE)
        .map(|_| ())
        .map_err(refused)
}

fn down(dir: &Path) -> Result<(), Problem> {
    tell(dir, &control::Command::Down)?;
    // Success is reported after it happened: the socket is refused once the last process is gone.
    let began = Instant::now();
    while status(dir).is_ok() {
        if began.elapsed() > COMMAND_DEADLINE {
            return Err(Problem::new(
                "the sandbox does not stop",
                "it still answers",
                "kill its processes: pkill -f hawser-sandbox",
            ));
        }
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(())
}

fn refused(error: ControlError) -> Problem {
    match error {
        ControlError::NotRunning(dir) => Problem::new(
            "cannot talk to the sandbox",
            format!("none is running in {}", dir.display()),
            "hawser sandbox up west east",
        ),
        ControlError::Refused(why) => Problem::new("the sandbox refused", why, "hawser sandbox status"),
        error @ ControlError::Io { .. } => {
            Problem::new("cannot talk to the sandbox", error, "hawser sandbox down")
        }
    }
}

fn examine(output: Output) -> Result<ExitCode, Problem> {
    let findings = doctor();
    match output {
        Output::Json => write_out(&json(&findings)?)?,
        Output::Table => write_out(&diagnosis(&findings))?,
    }
    let healthy = findings.iter().all(|finding| finding.ok || !finding.required);
    Ok(if healthy {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn diagnosis(findings: &[Finding]) -> String {
    let mut out = String::new();
    for finding in findings {
        let mark = match (finding.ok, finding.required) {
            (true, _) => "ok  ",
            (false, true) => "FAIL",
            (false, false) => "warn",
        };
        out += &format!("{mark}  {}: {}\n", finding.name, finding.why);
        if !finding.fix.is_empty() {
            out += &format!("      try: {}\n", finding.fix);
        }
    }
    out
}

fn show(status: &Status, output: Output) -> Result<(), Problem> {
    if output == Output::Json {
        write_out(&json(status)?)?;
        return Ok(());
    }
    let mut out = format!(
        "{:<12} {:<6} {:<8} {:<26} FROM PODS\n",
        "CLUSTER", "READY", "PODS", "SERVER"
    );
    for cluster in &status.clusters {
        let pods = format!("{}/{}", cluster.pods_ready, cluster.pods);
        let ready = if cluster.ready { "yes" } else { "no" };
        out += &format!(
            "{:<12} {ready:<6} {pods:<8} {:<26} {}\n",
            cluster.name, cluster.server, cluster.internal_server
        );
    }
    for disturbed in &status.disturbed {
        out += &format!("disturbed: {disturbed}\n");
    }
    write_out(&out)
}

fn json<T: serde::Serialize>(value: &T) -> Result<String, Problem> {
    let text = serde_json::to_string_pretty(value);
    text.map(|text| text + "\n")
        .map_err(|error| Problem::new("cannot print as JSON", error, "leave out --output"))
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// `50ms`, `1s`, `2m`.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number
        .parse()
        .map_err(|_| format!("{text:?} is not a duration such as 50ms or 1s"))?;
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        _ => return Err(format!("{text:?} needs a unit: ms, s or m")),
    };
    Ok(Duration::from_millis(number.saturating_mul(milliseconds)))
}

/// `1%` or `0.01`.
fn share(text: &str) -> Result<f64, String> {
    let (number, unit) = text
        .strip_suffix('%')
        .map_or((text, 1.0), |number| (number, 100.0));
    let share = number.parse::<f64>().map(|share| share / unit);
    share
        .ok()
        .filter(|share| (0.0..=1.0).contains(share))
        .ok_or_else(|| format!("{text:?} is not a share such as 1%"))
}

/// One line that is written over, on a terminal only.
pub(crate) fn progress(text: &str) {
    let mut err = std::io::stderr().lock();
    if err.is_terminal() {
        let _ = write!(err, "\r\x1b[K{text}").and_then(|()| err.flush());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_shares_have_units() {
        assert_eq!(duration("50ms"), Ok(Duration::from_millis(50)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert!(duration("50").is_err() && duration("ms").is_err() && duration("-1s").is_err());
        assert_eq!(share("1%"), Ok(0.01));
        assert_eq!(share("0.5"), Ok(0.5));
        assert!(share("101%").is_err() && share("NaN").is_err());
    }

    #[test]
    fn a_diagnosis_says_what_to_try() {
        let bad = Finding {
            name: "mounts".into(),
            ok: false,
            required: true,
            why: "EPERM".into(),
            fix: "run as root".into(),
        };
        assert_eq!(diagnosis(&[bad]), "FAIL  mounts: EPERM\n      try: run as root\n");
    }
}
