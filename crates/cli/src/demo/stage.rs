//! What the audience sees while the demo plays: each step, what it waits for, and how long it took.
//!
//! On a terminal a spinner shows the last thing waited for; elsewhere a line appears when a step begins and one when
//! it ends. Knows nothing of what the steps do.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::Instant;

use crate::problem::Problem;

/// How often a wait looks again. Short, because the demo's speed is part of its message.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Prints the steps of one run.
pub(super) struct Stage {
    started: Instant,
    bar: Option<ProgressBar>,
    logs: String,
    finished: Vec<(String, Duration)>,
}

/// What one look found.
pub(super) enum Look<T> {
    Done(T),
    /// Not yet; the text says what is missing.
    Waiting(String),
}

impl Stage {
    /// `started` is when the demo began, `logs` where a failure sends the reader.
    pub(super) fn new(started: std::time::Instant, logs: String) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("  {spinner} {msg}") {
                bar.set_style(style);
            }
            bar
        });
        Self {
            started: started.into(),
            bar,
            logs,
            finished: Vec::new(),
        }
    }

    /// Since the demo began.
    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Every finished step with its duration.
    pub(super) fn finished(&self) -> &[(String, Duration)] {
        &self.finished
    }

    /// A line for the audience.
    pub(super) fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(line),
            None => print_line(line),
        }
    }

    /// Runs a step that ends by itself within `deadline`.
    pub(super) async fn step<T>(
        &mut self,
        title: &str,
        deadline: Duration,
        work: impl Future<Output = Result<T, Problem>>,
    ) -> Result<T, Problem> {
        let began = self.begin(title);
        let outcome = tokio::time::timeout(deadline, work).await.unwrap_or_else(|_| {
            Err(Problem::new(
                title,
                format!("it took longer than {} s", deadline.as_secs()),
                "run the demo again",
            ))
        });
        self.end(title, began, outcome)
    }

    /// Looks again and again until `look` is satisfied.
    pub(super) async fn wait<T>(
        &mut self,
        title: &str,
        deadline: Duration,
        mut look: impl AsyncFnMut() -> Result<Look<T>, Problem>,
    ) -> Result<T, Problem> {
        let began = self.begin(title);
        let mut missing = String::from("the first look");
        let outcome = loop {
            if began.elapsed() > deadline {
                let why = format!("after {} s still waiting for {missing}", deadline.as_secs());
                break Err(Problem::new(title, why, "run the demo again"));
            }
            // One look must not eat the whole deadline.
            match tokio::time::timeout(Duration::from_secs(10), look()).await {
                Ok(Ok(Look::Done(value))) => break Ok(value),
                Ok(Ok(Look::Waiting(what))) => missing = what,
                Ok(Err(problem)) => break Err(problem),
                Err(_) => missing = "an answer of the API server".into(),
            }
            if let Some(bar) = &self.bar {
                bar.set_message(format!("{title}: waiting for {missing}"));
                bar.tick();
            }
            tokio::time::sleep(LOOK_EVERY).await;
        };
        self.end(title, began, outcome)
    }

    fn begin(&self, title: &str) -> Instant {
        if let Some(bar) = &self.bar {
            bar.enable_steady_tick(Duration::from_millis(100));
            bar.set_message(title.to_owned());
        }
        Instant::now()
    }

    fn end<T>(&mut self, title: &str, began: Instant, outcome: Result<T, Problem>) -> Result<T, Problem> {
        let took = began.elapsed();
        match outcome {
            Ok(value) => {
                self.say(&format!("  ok  {title} ({:.1} s)", took.as_secs_f64()));
                self.finished.push((title.to_owned(), took));
                Ok(value)
            }
            Err(problem) => {
                self.say(&format!("  --  {title} failed after {:.1} s", took.as_secs_f64()));
                if let Some(bar) = &self.bar {
                    bar.finish_and_clear();
                }
                Err(problem.during(title, &self.logs))
            }
        }
    }

    /// Ends the spinner.
    pub(super) fn curtain(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[expect(clippy::print_stdout, reason = "this is what the demo is for")]
pub(super) fn print_line(line: &str) {
    println!("{line}");
}
