//! placeholder
use crate::problem::Problem;
use std::process::ExitCode;
/// Play the workshop.
#[derive(Debug, clap::Args)]
pub(crate) struct DemoArgs {}
pub(crate) fn run(_: DemoArgs) -> Result<ExitCode, Problem> {
    let _ = crate::programs::names();
    crate::block_on(async { Ok(ExitCode::SUCCESS) })
}
