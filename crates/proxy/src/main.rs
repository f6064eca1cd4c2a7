//! The proxy as a program, and under another name what redirects a pod's connections into it: an image needs only
//! this file. Everything is in the library.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    let name = args.first().and_then(|path| Path::new(path).file_name());
    if name.is_some_and(|name| name == "hawser-proxy-init") {
        hawser_proxy::init::main(args)
    } else {
        hawser_proxy::main(args)
    }
}
