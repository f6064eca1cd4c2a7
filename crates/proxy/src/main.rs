//! The proxy as a program; everything is in the library.

fn main() -> std::process::ExitCode {
    hawser_proxy::main(std::env::args_os().collect())
}
