//! The container starter as a program of its own. The `hawser` binary has the same under its name; tests use this one.

use std::process::ExitCode;

fn main() -> ExitCode {
    hawser_sandbox::node::starter::main(std::env::args_os().collect())
}
