//! `hawser-control`: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    hawser_control::main(std::env::args_os().collect())
}
