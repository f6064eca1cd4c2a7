//! What redirects a pod's connections into its proxy, as a program of its own: in an image its file has a capability,
//! which the proxy's must not have.

fn main() -> std::process::ExitCode {
    hawser_proxy::init::main(std::env::args_os().collect())
}
