//! The collector as a program; everything is in the library.

fn main() -> std::process::ExitCode {
    hawser_viz::main(std::env::args_os().collect())
}
