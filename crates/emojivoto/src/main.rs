//! The four programs as one file, for an image: which of them it is, its name says.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use hawser_emojivoto::{emoji_svc, vote_bot, voting_svc, web};

#[expect(clippy::print_stderr, reason = "the program's only output")]
fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    let name = args
        .first()
        .and_then(|path| Path::new(path).file_name()?.to_str());
    match name {
        Some("emojivoto-web") => web::main(args),
        Some("emojivoto-emoji-svc") => emoji_svc::main(args),
        Some("emojivoto-voting-svc") => voting_svc::main(args),
        Some("emojivoto-vote-bot") => vote_bot::main(args),
        _ => {
            eprintln!(
                "call this as emojivoto-web, emojivoto-emoji-svc, emojivoto-voting-svc or emojivoto-vote-bot"
            );
            ExitCode::from(64)
        }
    }
}
