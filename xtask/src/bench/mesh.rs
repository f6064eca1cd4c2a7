//! `mesh`: how fast the mesh reacts, in `hawser demo` with its two clusters.
//!
//! The demo plays and checks its scenario and prints its own figures. While its clusters then stay up, services of
//! east are exported and un-exported, and west is asked every few milliseconds whether the mirror is there.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::figures::{Spread, table};
use super::process::interrupt;
use super::{Options, programs, say};

const DEMO_DEADLINE: Duration = Duration::from_secs(300);
const END_DEADLINE: Duration = Duration::from_secs(20);
const CHANGE_DEADLINE: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(5);
const EXPORTS: usize = 10;
const NAMESPACE: &str = "/api/v1/namespaces/emojivoto";
/// The demo exports web-svc itself; this one nobody else touches.
const EXPORTED: &str = "voting-svc";
/// As the demo prints them.
const FIGURES: [&str; 3] = [
    "from the start to the first vote through east",
    "from the loss of web in west to votes through east",
    "from the return of web to votes in west",
];

pub(super) fn run(options: &Options) -> Result<Value> {
    let hawser = programs::build_hawser()?;
    let kubectl = options.others.find("kubectl");
    if kubectl.is_none() {
        say("from label to mirror: not measured, kubectl is not installed");
    }
    let mut seconds = [const { Vec::new() }; FIGURES.len()];
    let (mut appeared, mut gone) = (Vec::new(), Vec::new());
    for round in 0..options.rounds {
        let demo = Demo::play(&hawser)?;
        for (all, one) in seconds.iter_mut().zip(demo.figures) {
            all.push(one);
        }
        if let Some(kubectl) = &kubectl {
            let west = Api::of(kubectl, &demo.kubeconfig, "west")?;
            let east = Api::of(kubectl, &demo.kubeconfig, "east")?;
            for _ in 0..EXPORTS {
                appeared.push(until_mirrored(&west, &east)?);
                gone.push(until_gone(&west, &east)?);
            }
        }
        demo.end()?;
        say(&format!("demo {} of {} is done", round + 1, options.rounds));
    }
    let mut rows = vec![
        ["what", "median (least to most)", "times"]
            .map(str::to_owned)
            .to_vec(),
    ];
    let mut results = json!({});
    let mut figure = |what: &str, unit: &str, decimals, all: Vec<f64>| {
        let Some(spread) = Spread::of(all.iter().copied()) else {
            return;
        };
        rows.push(vec![
            what.into(),
            format!("{} {unit}", spread.text(decimals)),
            all.len().to_string(),
        ]);
        results[what] = json!({ "unit": unit, "all": all });
    };
    for (what, all) in FIGURES.iter().zip(seconds) {
        figure(what, "s", 1, all);
    }
    figure(
        "from the export label to the mirror with endpoints",
        "ms",
        0,
        appeared,
    );
    figure("from the label's removal to the mirror's", "ms", 0, gone);
    say(&format!("\n{}", table(&rows)));
    Ok(results)
}

/// A demo that has played its scenario.
struct Demo {
    child: Option<Child>,
    lines: Receiver<String>,
    kubeconfig: PathBuf,
    figures: [f64; FIGURES.len()],
    _dir: tempfile::TempDir,
}

impl Demo {
    fn play(hawser: &Path) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let mut child = Command::new(hawser)
            .args(["demo", "--state-dir"])
            .arg(dir.path().join("demo"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting the demo")?;
        let stdout = BufReader::new(child.stdout.take().context("its output")?);
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            // Ends with the demo.
            for line in stdout.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let mut demo = Self {
            child: Some(child),
            lines,
            kubeconfig: PathBuf::new(),
            figures: [f64::NAN; FIGURES.len()],
            _dir: dir,
        };
        demo.watch()?;
        Ok(demo)
    }

    /// Reads along until the scenario has been played.
    fn watch(&mut self) -> Result<()> {
        let began = Instant::now();
        let mut last = String::new();
        loop {
            let line = match self
                .lines
                .recv_timeout(DEMO_DEADLINE.saturating_sub(began.elapsed()))
            {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) => bail!("the demo takes too long; last line: {last}"),
                Err(RecvTimeoutError::Disconnected) => bail!("the demo failed; last line: {last}"),
            };
            if let Some((_, path)) = line.split_once("KUBECONFIG=") {
                self.kubeconfig = path.trim().into();
            }
            for (what, figure) in FIGURES.iter().zip(&mut self.figures) {
                if let Some(seconds) = summary_figure(&line, what) {
                    *figure = seconds;
                }
            }
            if line.starts_with("live,") {
                break;
            }
            last = line;
        }
        ensure!(
            self.figures.iter().all(|figure| figure.is_finite()),
            "the demo's summary lacks a figure"
        );
        Ok(())
    }

    fn end(mut self) -> Result<()> {
        let child = self.child.take().context("it ends once")?;
        interrupt(child, END_DEADLINE).context("ending the demo")
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        if let Some(child) = self.child.take() {
            let _ = interrupt(child, END_DEADLINE);
        }
    }
}

/// `  12.3 s  what`
fn summary_figure(line: &str, what: &str) -> Option<f64> {
    let figure = line.trim().strip_suffix(what)?.trim().strip_suffix('s')?;
    figure.trim().parse().ok()
}

/// A cluster's API in plain HTTP on loopback, by `kubectl proxy`.
struct Api {
    proxy: Child,
    addr: SocketAddr,
}

impl Api {
    fn of(kubectl: &Path, kubeconfig: &Path, context: &str) -> Result<Self> {
        let mut proxy = Command::new(kubectl)
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .args(["--context", context, "proxy", "--port=0"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting kubectl proxy")?;
        let mut line = String::new();
        let stdout = proxy.stdout.take().context("its output")?;
        let read = BufReader::new(stdout).read_line(&mut line);
        let addr = line.trim().rsplit(' ').next().and_then(|addr| addr.parse().ok());
        match (read, addr) {
            (Ok(_), Some(addr)) => Ok(Self { proxy, addr }),
            _ => {
                let _ = proxy.kill();
                let _ = proxy.wait();
                bail!("kubectl proxy said {line:?}")
            }
        }
    }

    fn ask(&self, method: &str, path: &str, body: &str) -> Result<(String, Value)> {
        let mut socket = TcpStream::connect(self.addr)?;
        socket.set_read_timeout(Some(CHANGE_DEADLINE))?;
        let length = body.len();
        let kind = "application/merge-patch+json";
        // HTTP/1.0: the answer ends with the connection.
        write!(
            socket,
            "{method} {path} HTTP/1.0\r\nhost: 127.0.0.1\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n\r\n{body}"
        )?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("an answer")?;
        let status = head.split(' ').nth(1).context("a status")?;
        Ok((status.to_owned(), serde_json::from_str(body)?))
    }

    fn export(&self, label: &Value) -> Result<()> {
        let patch = json!({ "metadata": { "labels": { "mirror.linkerd.io/exported": label } } });
        let path = format!("{NAMESPACE}/services/{EXPORTED}");
        let (status, answer) = self.ask("PATCH", &path, &patch.to_string())?;
        ensure!(status == "200", "labelling {EXPORTED}: {answer}");
        Ok(())
    }

    fn mirror(&self, kind: &str) -> Result<Option<Value>> {
        let (status, object) = self.ask("GET", &format!("{NAMESPACE}/{kind}/{EXPORTED}-east"), "")?;
        Ok(Some(object).filter(|_| status == "200"))
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        let _ = self.proxy.kill();
        let _ = self.proxy.wait();
    }
}

fn until_mirrored(west: &Api, east: &Api) -> Result<f64> {
    let began = Instant::now();
    east.export(&json!("true"))?;
    until(began, "the mirror is there", || {
        let endpoints = west.mirror("endpoints")?;
        let addresses = endpoints
            .iter()
            .filter_map(|e| e["subsets"][0]["addresses"].as_array());
        Ok(addresses.flatten().next().is_some() && west.mirror("services")?.is_some())
    })
}

fn until_gone(west: &Api, east: &Api) -> Result<f64> {
    let began = Instant::now();
    east.export(&Value::Null)?;
    until(began, "the mirror is gone", || {
        Ok(west.mirror("services")?.is_none() && west.mirror("endpoints")?.is_none())
    })
}

/// Milliseconds.
fn until(began: Instant, what: &str, holds: impl Fn() -> Result<bool>) -> Result<f64> {
    while !holds()? {
        ensure!(began.elapsed() < CHANGE_DEADLINE, "never: {what}");
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(began.elapsed().as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_demos_figures_are_read_from_its_summary() {
        let line = "        21.4 s  from the start to the first vote through east";
        assert_eq!(summary_figure(line, FIGURES[0]), Some(21.4));
        assert_eq!(summary_figure(line, FIGURES[1]), None);
    }
}
