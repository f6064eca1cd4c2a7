//! The library's `pause` as a program, for an image.

fn main() -> std::process::ExitCode {
    hawser_runtime::pause::main(std::env::args_os().collect())
}
