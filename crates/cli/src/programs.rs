//! The programs inside this binary, by the name that it is called by.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;

type Program = fn(Vec<OsString>) -> ExitCode;

/// Name and entry point of every program. Pods see the names in `/usr/local/bin`.
const PROGRAMS: &[(&str, Program)] = &[
    ("hawser-control", hawser_control::main),
    ("emojivoto-web", hawser_emojivoto::web::main),
    ("emojivoto-emoji-svc", hawser_emojivoto::emoji_svc::main),
    ("emojivoto-voting-svc", hawser_emojivoto::voting_svc::main),
    ("emojivoto-vote-bot", hawser_emojivoto::vote_bot::main),
];

/// The program for an `argv[0]`, with or without a path.
pub(crate) fn called_as(argv0: Option<&OsString>) -> Option<Program> {
    let name = Path::new(argv0?).file_name().and_then(OsStr::to_str)?;
    PROGRAMS
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, program)| *program)
}

/// Every name under which pods of the sandbox may call this binary.
pub(crate) fn names() -> Vec<String> {
    PROGRAMS.iter().map(|(name, _)| (*name).to_owned()).collect()
}
