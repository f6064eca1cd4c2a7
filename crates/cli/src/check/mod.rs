//! `hawser check`: looks for what commonly goes wrong, and says it in the words of Linkerd's checks.

mod report;

pub(crate) use report::{Category, Format, Outcome, Report, until};
