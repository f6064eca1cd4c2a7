//! A program that does nothing until it is told to stop: the container of a pod whose work is done by its sidecar.

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

pub fn main(_: Vec<OsString>) -> ExitCode {
    match wait() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // If that can't be written either, the code still says it.
            let _ = writeln!(std::io::stderr(), "pause: waiting for signals: {error}");
            ExitCode::FAILURE
        }
    }
}

fn wait() -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        crate::shutdown::on_signals()?.cancelled().await;
        Ok(())
    })
}
