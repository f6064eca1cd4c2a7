//! What a person is told when a command fails: what failed, why, and what to try. Three lines, no more.

use std::error::Error;
use std::fmt;

/// A failure in the user's words.
#[derive(Debug)]
pub(crate) struct Problem {
    what: String,
    why: String,
    attempt: String,
}

impl Problem {
    /// `why` is an error, printed with its sources, or a sentence; `attempt` is what the reader could do next.
    pub(crate) fn new(
        what: impl fmt::Display,
        why: impl Into<Box<dyn Error>>,
        attempt: impl fmt::Display,
    ) -> Self {
        Self {
            what: what.to_string(),
            why: chain(why.into().as_ref()),
            attempt: attempt.to_string(),
        }
    }

    /// The reason alone, for those who say the rest themselves.
    pub(crate) fn why(&self) -> &str {
        &self.why
    }

    /// The same failure, seen from a step of the demo.
    pub(crate) fn during(self, step: &str, logs: &str) -> Self {
        let what = if self.what == step {
            self.what
        } else {
            format!("{step}: {}", self.what)
        };
        Self {
            what,
            why: self.why,
            attempt: format!("{}; logs are in {logs}", self.attempt),
        }
    }

    #[expect(clippy::print_stderr, reason = "this is the command line's voice")]
    pub(crate) fn print(&self) {
        eprintln!("{self}");
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "error: {}\n  why: {}\n  try: {}",
            one_line(&self.what),
            one_line(&self.why),
            self.attempt
        )
    }
}

impl Error for Problem {}

fn chain(error: &(dyn Error + 'static)) -> String {
    let (mut text, mut source) = said(error);
    while let Some(cause) = source {
        let (cause_text, next) = said(cause);
        // Many errors print their source themselves.
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = next;
    }
    text
}

/// What an error says, and what is behind it. The client shows the whole object with which a server refused; its message
/// says it all.
fn said<'a>(error: &'a (dyn Error + 'static)) -> (String, Option<&'a (dyn Error + 'static)>) {
    match error.downcast_ref() {
        Some(kube::Error::Api(status)) if !status.message.is_empty() => (status.message.clone(), None),
        _ => (error.to_string(), error.source()),
    }
}

/// Messages from servers and files may hold anything; a problem stays three lines.
fn one_line(text: &str) -> String {
    text.split(['\n', '\r'])
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join("; ")
        .replace(":; ", ": ")
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    #[test]
    fn a_servers_refusal_is_told_in_its_words() {
        let status = Status::failure("secrets \"a\" not found", "NotFound").with_code(404);
        let problem = Problem::new(
            "cannot read",
            kube::Error::Api(status.boxed()),
            "kubectl get secrets",
        );
        assert_eq!(problem.why(), "secrets \"a\" not found");
    }

    #[test]
    fn a_problem_is_three_lines_whatever_servers_say() {
        let problem = Problem::new("cannot link", "first\nsecond:\n* third\n", "hawser check");
        assert_eq!(
            problem.to_string(),
            "error: cannot link\n  why: first; second: * third\n  try: hawser check"
        );
    }
}
