//! The programs inside this binary, by the name that it is called by.

use std::ffi::{OsStr, OsString};
use std::net::TcpListener;
use std::path::Path;
use std::process::ExitCode;

use hawser_runtime::logging::Format;
use hawser_sandbox::images::{Image, Images};
use hawser_sandbox::launcher::{assemble, enter};

use crate::problem::Problem;

type Program = fn(Vec<OsString>) -> ExitCode;

/// Name and entry point of every program. Pods see the names in `/usr/local/bin`.
const PROGRAMS: &[(&str, Program)] = &[
    (enter::PROGRAM, |args| enter::main(&args, supervise)),
    ("hawser-container", hawser_sandbox::node::starter::main),
    ("hawser-proxy", hawser_proxy::main),
    ("hawser-proxy-init", hawser_proxy::init::main),
    ("pause", hawser_runtime::pause::main),
    ("hawser-control", hawser_control::main),
    ("hawser-viz", hawser_viz::main),
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

/// What the sandbox's supervisor process does.
fn supervise(request: enter::Request, listeners: Vec<TcpListener>) -> ExitCode {
    if let Err(error) = hawser_runtime::logging::start("warn,hawser_sandbox=info", Format::Plain) {
        Problem::new("cannot log", error, "hawser sandbox up").print();
    }
    assemble::run(request, listeners, images())
}

/// The images that the sandbox's pods may name.
fn images() -> Images {
    let image = |repository: &str, entrypoint: &[&str]| Image {
        repository: repository.to_owned(),
        entrypoint: entrypoint.iter().map(|word| (*word).to_owned()).collect(),
        arguments: Vec::new(),
    };
    Images {
        // Not `/proc/self/exe`: pods have a `/proc` of their own.
        executable: std::fs::read_link("/proc/self/exe").unwrap_or_default(),
        programs: names(),
        declared: vec![
            image("cr.hawser.dev/hawser/proxy", &["hawser-proxy"]),
            image("cr.hawser.dev/hawser/controller", &["hawser-control"]),
            image("cr.hawser.dev/hawser/viz", &["hawser-viz"]),
            image("registry.k8s.io/pause", &["pause"]),
            image("docker.l5d.io/buoyantio/emojivoto-web", &["emojivoto-web"]),
            image(
                "docker.l5d.io/buoyantio/emojivoto-emoji-svc",
                &["emojivoto-emoji-svc"],
            ),
            image(
                "docker.l5d.io/buoyantio/emojivoto-voting-svc",
                &["emojivoto-voting-svc"],
            ),
            image("curlimages/curl", &["curl"]),
        ],
    }
}
