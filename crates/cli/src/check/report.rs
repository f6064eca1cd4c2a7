//! What checks find, in rows and categories, and how that is shown: as a table, as its failures only, or as JSON.
//!
//! Rendering is pure and readable without colour. Which rows there are, and what makes one fail, is the business of
//! those who fill a [`Category`]. Shape and anchors are Linkerd's, because scripts read them.

use std::borrow::Cow;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use indicatif::ProgressBar;
use serde_json::{Value, json};
use tokio::time::Instant;

/// Where Linkerd explains its checks; ours of the same name look at the same thing.
const HINTS: &str = "https://linkerd.io/2/checks/#";
/// How often something that is still starting is looked at again.
const PERIOD: Duration = Duration::from_secs(1);

/// What came out of one check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// With one line for each thing that is fine.
    Fine(Vec<String>),
    /// Why it may become a problem.
    Warning(String),
    /// Why it is one.
    Error(String),
    /// There is nothing to check.
    Skipped,
}

impl Outcome {
    pub(crate) fn fine() -> Self {
        Self::Fine(Vec::new())
    }

    pub(crate) fn is_error(&self) -> bool {
        matches!(self, Self::Error(_))
    }

    /// An error becomes a warning.
    pub(crate) fn warn(self) -> Self {
        match self {
            Self::Error(why) => Self::Warning(why),
            other => other,
        }
    }

    /// Fine if nothing is named, otherwise an error that names them after `why`, one per line.
    pub(crate) fn none(why: &str, named: impl IntoIterator<Item = String>) -> Self {
        let lines: Vec<String> = named.into_iter().map(|name| format!("* {name}")).collect();
        if lines.is_empty() {
            return Self::fine();
        }
        let more = lines.len().saturating_sub(NAMED_MAX);
        let mut text = format!("{why}:\n{}", lines[..lines.len() - more].join("\n"));
        if more > 0 {
            text += &format!("\n* and {more} more");
        }
        Self::Error(text)
    }

    /// One outcome of many: fine if all are, skipped if there are none.
    pub(crate) fn each(results: impl IntoIterator<Item = Result<String, String>>) -> Self {
        let (mut fine, mut errors) = (Vec::new(), Vec::new());
        for result in results {
            match result {
                Ok(name) => fine.push(name),
                Err(error) => errors.push(error),
            }
        }
        match (fine.is_empty(), errors.is_empty()) {
            (true, true) => Self::Skipped,
            (_, true) => Self::Fine(fine),
            _ => Self::Error(errors.join("\n")),
        }
    }
}

impl From<Result<(), String>> for Outcome {
    fn from(result: Result<(), String>) -> Self {
        match result {
            Ok(()) => Self::fine(),
            Err(why) => Self::Error(why),
        }
    }
}

/// A thousand pods with the same fault are one fault.
const NAMED_MAX: usize = 20;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    description: Cow<'static, str>,
    /// Name of Linkerd's explanation; empty where it has none.
    anchor: &'static str,
    /// What to try when it isn't fine.
    attempt: Cow<'static, str>,
    outcome: Outcome,
}

/// Checks that belong together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Category {
    name: &'static str,
    rows: Vec<Row>,
}

impl Category {
    pub(crate) fn new(name: &'static str) -> Self {
        Self {
            name,
            rows: Vec::new(),
        }
    }

    /// Adds a row; says whether what follows can be looked at, that is, whether this was no error.
    pub(crate) fn row(
        &mut self,
        description: impl Into<Cow<'static, str>>,
        anchor: &'static str,
        attempt: impl Into<Cow<'static, str>>,
        outcome: Outcome,
    ) -> bool {
        let passed = !outcome.is_error();
        self.rows.push(Row {
            description: description.into(),
            anchor,
            attempt: attempt.into(),
            outcome,
        });
        passed
    }
}

/// How a report is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    #[default]
    Table,
    Json,
    /// Only what isn't fine
    Short,
}

/// Whether marks are coloured. They differ without it as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Paint {
    Colour,
    Plain,
}

impl Paint {
    pub(crate) fn of_stdout() -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        if wanted && std::io::stdout().is_terminal() {
            Self::Colour
        } else {
            Self::Plain
        }
    }

    pub(crate) fn mark(self, mark: &str) -> String {
        let colour = match (self, mark) {
            (Self::Plain, _) => return mark.to_owned(),
            (_, "√") => 32,
            (_, "‼") => 33,
            _ => 31,
        };
        format!("\x1b[{colour};1m{mark}\x1b[0m")
    }
}

/// Everything that one command checked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Report {
    categories: Vec<Category>,
}

impl Report {
    pub(crate) fn push(&mut self, category: Category) {
        self.categories.push(category);
    }

    fn is_fine(&self) -> bool {
        let mut rows = self.categories.iter().flat_map(|category| &category.rows);
        !rows.any(|row| row.outcome.is_error())
    }

    /// Failed checks fail the command; warnings don't.
    pub(crate) fn code(&self) -> ExitCode {
        if self.is_fine() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }

    /// As it goes to this process's standard output.
    pub(crate) fn text(&self, format: Format) -> String {
        match format {
            Format::Json => format!("{:#}\n", self.json()),
            _ => self.table(format, Paint::of_stdout()),
        }
    }

    fn table(&self, format: Format, paint: Paint) -> String {
        let shown = |row: &&Row| match &row.outcome {
            Outcome::Skipped => false,
            Outcome::Fine(_) => format != Format::Short,
            _ => true,
        };
        let mut text = String::new();
        for category in &self.categories {
            let rows: Vec<&Row> = category.rows.iter().filter(shown).collect();
            if rows.is_empty() {
                continue;
            }
            text += &format!("{}\n{}\n", category.name, "-".repeat(category.name.len()));
            text.extend(rows.into_iter().map(|row| row.text(paint)));
            text.push('\n');
        }
        let mark = paint.mark(if self.is_fine() { "√" } else { "×" });
        text + &format!("Status check results are {mark}\n")
    }

    fn json(&self) -> Value {
        let categories: Vec<Value> = self
            .categories
            .iter()
            .map(|category| {
                let checks: Vec<Value> = category.rows.iter().filter_map(Row::json).collect();
                json!({"categoryName": category.name, "checks": checks})
            })
            .collect();
        json!({"success": self.is_fine(), "categories": categories})
    }
}

impl Row {
    fn hint(&self) -> String {
        format!("{HINTS}{}", self.anchor)
    }

    fn text(&self, paint: Paint) -> String {
        let (mark, why) = match &self.outcome {
            Outcome::Skipped => return String::new(),
            Outcome::Fine(names) => {
                let mut text = format!("{} {}\n", paint.mark("√"), self.description);
                text.extend(names.iter().map(|name| format!("\t* {name}\n")));
                return text;
            }
            Outcome::Warning(why) => ("‼", why),
            Outcome::Error(why) => ("×", why),
        };
        let mut text = format!("{} {}\n", paint.mark(mark), self.description);
        text.extend(why.lines().map(|line| format!("    {line}\n")));
        if !self.attempt.is_empty() {
            text += &format!("    try: {}\n", self.attempt);
        }
        if !self.anchor.is_empty() {
            text += &format!("    see {} for hints\n", self.hint());
        }
        text
    }

    fn json(&self) -> Option<Value> {
        let (result, why) = match &self.outcome {
            Outcome::Skipped => return None,
            Outcome::Fine(_) => ("success", None),
            Outcome::Warning(why) => ("warning", Some(why)),
            Outcome::Error(why) => ("error", Some(why)),
        };
        let mut check = json!({"description": self.description, "result": result});
        if let Some(why) = why {
            check["error"] = why.as_str().into();
            if !self.anchor.is_empty() {
                check["hint"] = self.hint().into();
            }
            if !self.attempt.is_empty() {
                check["try"] = self.attempt.as_ref().into();
            }
        }
        Some(check)
    }
}

/// Looks again and again until there is no error or no time. On a terminal it says what it waits for.
pub(crate) async fn until(deadline: Instant, waiting_for: &str, look: impl AsyncFn() -> Outcome) -> Outcome {
    let progress = ProgressBar::hidden();
    loop {
        let outcome = look().await;
        if !outcome.is_error() || Instant::now() >= deadline {
            progress.finish_and_clear();
            return outcome;
        }
        if progress.is_hidden() {
            // A draw target that is not a terminal shows nothing.
            progress.set_draw_target(indicatif::ProgressDrawTarget::stderr());
            progress.enable_steady_tick(Duration::from_millis(100));
        }
        let left = deadline.saturating_duration_since(Instant::now()).as_secs();
        progress.set_message(format!("waiting for {waiting_for} (up to {left} s more)"));
        tokio::time::sleep(PERIOD).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let mut category = Category::new("linkerd-multicluster");
        category.row("Link CRD exists", "crd", "", Outcome::fine());
        category.row(
            "Link resources are valid",
            "links",
            "",
            Outcome::Fine(vec!["east".into()]),
        );
        category.row("skipped", "skipped", "", Outcome::Skipped);
        category.row("orphans", "orphans", "", Outcome::Warning("a, b".into()));
        let why = Outcome::Error("Problematic clusters:\n* east".into());
        category.row("anchors", "anchors", "use one bundle", why);
        let mut fine = Category::new("linkerd-config");
        fine.row(
            "control plane Namespace exists",
            "l5d-existence-ns",
            "",
            Outcome::fine(),
        );
        Report {
            categories: vec![fine, category],
        }
    }

    #[test]
    fn the_table_shows_what_is_fine_and_what_to_read_when_it_is_not() {
        assert_eq!(
            report().table(Format::Table, Paint::Plain),
            "linkerd-config\n--------------\n\
             √ control plane Namespace exists\n\
             \n\
             linkerd-multicluster\n--------------------\n\
             √ Link CRD exists\n\
             √ Link resources are valid\n\t* east\n\
             ‼ orphans\n    a, b\n    see https://linkerd.io/2/checks/#orphans for hints\n\
             × anchors\n    Problematic clusters:\n    * east\n    try: use one bundle\n    \
             see https://linkerd.io/2/checks/#anchors for hints\n\
             \n\
             Status check results are ×\n"
        );
    }

    #[test]
    fn the_short_form_shows_only_what_is_not_fine() {
        assert_eq!(
            report().table(Format::Short, Paint::Plain),
            "linkerd-multicluster\n--------------------\n\
             ‼ orphans\n    a, b\n    see https://linkerd.io/2/checks/#orphans for hints\n\
             × anchors\n    Problematic clusters:\n    * east\n    try: use one bundle\n    \
             see https://linkerd.io/2/checks/#anchors for hints\n\
             \n\
             Status check results are ×\n"
        );
        assert_eq!(
            Report::default().table(Format::Short, Paint::Plain),
            "Status check results are √\n"
        );
    }

    #[test]
    fn scripts_read_the_same_shape_as_linkerds() {
        let success = |description: &str| json!({"description": description, "result": "success"});
        let hint = |anchor: &str| format!("https://linkerd.io/2/checks/#{anchor}");
        assert_eq!(
            report().json(),
            json!({"success": false, "categories": [
                {"categoryName": "linkerd-config", "checks": [success("control plane Namespace exists")]},
                {"categoryName": "linkerd-multicluster", "checks": [
                    success("Link CRD exists"),
                    success("Link resources are valid"),
                    {"description": "orphans", "result": "warning", "error": "a, b", "hint": hint("orphans")},
                    {"description": "anchors", "result": "error", "error": "Problematic clusters:\n* east",
                     "hint": hint("anchors"), "try": "use one bundle"},
                ]},
            ]})
        );
    }

    #[test]
    fn colour_adds_nothing_that_is_not_said_without_it() {
        let coloured = report().table(Format::Table, Paint::Colour);
        let mut plain = coloured.clone();
        for code in ["\x1b[31;1m", "\x1b[32;1m", "\x1b[33;1m", "\x1b[0m"] {
            plain = plain.replace(code, "");
        }
        assert_ne!(coloured, plain);
        assert_eq!(plain, report().table(Format::Table, Paint::Plain));
    }

    #[test]
    fn one_failure_among_many_fails_the_check() {
        let ok = |name: &str| Ok(name.to_owned());
        assert_eq!(
            Outcome::each([ok("east"), ok("north")]),
            Outcome::Fine(vec!["east".into(), "north".into()])
        );
        assert_eq!(
            Outcome::each([ok("east"), Err("north: gone".into())]),
            Outcome::Error("north: gone".into())
        );
        assert_eq!(Outcome::each([]), Outcome::Skipped);
    }

    #[test]
    fn many_faults_of_one_kind_are_counted_rather_than_listed() {
        let Outcome::Error(why) = Outcome::none("not ready", (0..25).map(|at| format!("pod-{at}"))) else {
            panic!("25 are not none");
        };
        assert_eq!(why.lines().count(), 1 + NAMED_MAX + 1);
        assert!(why.ends_with("* and 5 more"), "{why}");
    }

    #[tokio::test]
    async fn what_is_past_its_deadline_is_still_looked_at_once() {
        let looks = std::cell::Cell::new(0);
        let outcome = until(Instant::now(), "pods", async || {
            looks.set(looks.get() + 1);
            Outcome::Error("not yet".into())
        });
        assert_eq!(outcome.await, Outcome::Error("not yet".into()));
        assert_eq!(looks.get(), 1);
    }
}
