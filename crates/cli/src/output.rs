//! Objects on their way out: the values that render them, as Helm reads them, and YAML or JSON on standard output.
//!
//! Shared by all commands that print what `kubectl` shall apply. Nothing here knows what an object is for.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use hawser_control::values;
use serde_json::Value;

use crate::problem::Problem;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Output {
    #[default]
    Yaml,
    Json,
}

#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct OutputArgs {
    /// Format of the printed objects
    #[arg(short, long, value_enum, default_value = "yaml")]
    pub(crate) output: Output,
}

/// Values, as Helm reads them.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct ValueArgs {
    /// Set a value: name=value; may be given more than once
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) set: Vec<String>,
    /// Set a value that is text, whatever it looks like
    #[arg(long, value_name = "NAME=TEXT")]
    set_string: Vec<String>,
    /// Set a value to the content of a file
    #[arg(long, value_name = "NAME=FILE")]
    set_file: Vec<String>,
    /// YAML file of values; may be given more than once
    #[arg(long, short = 'f', value_name = "FILE")]
    values: Vec<PathBuf>,
}

/// What the user's values say, over what flags say.
pub(crate) fn overrides(mut given: Value, args: &ValueArgs) -> Result<Value, Problem> {
    let wrong = |error: Box<dyn std::error::Error>, attempt: &str| {
        Problem::new("cannot use the given values", error.to_string(), attempt)
    };
    for path in &args.values {
        let text = std::fs::read_to_string(path).map_err(|error| {
            Problem::new(format!("cannot read {}", path.display()), error, "check the path")
        })?;
        let tree =
            values::yaml(&text).map_err(|error| wrong(error.into(), "check the file with a YAML reader"))?;
        values::merge(&mut given, tree);
    }
    for setting in &args.set {
        values::set(&mut given, setting).map_err(|error| {
            wrong(
                error.into(),
                "write --set proxy.logLevel=debug, for example, with \\, for a literal comma",
            )
        })?;
    }
    for setting in &args.set_string {
        values::set_string(&mut given, setting).map_err(|error| {
            wrong(
                error.into(),
                "write --set-string podLabels.build=1234, for example",
            )
        })?;
    }
    for setting in &args.set_file {
        let attempt = "--set-file name=path";
        let (name, path) = setting
            .split_once('=')
            .ok_or_else(|| wrong(format!("{setting:?} has no =").into(), attempt))?;
        let text = std::fs::read_to_string(path)
            .map_err(|error| Problem::new(format!("cannot read {path}"), error, "check the path"))?;
        values::set_text(&mut given, name, text).map_err(|error| wrong(error.into(), attempt))?;
    }
    Ok(given)
}

pub(crate) fn print(objects: &[Value], output: Output) -> Result<ExitCode, Problem> {
    let text = match output {
        Output::Yaml => yaml(objects)?,
        Output::Json => objects.iter().map(|object| format!("{object}\n")).collect(),
    };
    write_out(&text)?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn write_out(text: &str) -> Result<(), Problem> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // Whoever reads us has seen enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Problem::new(
            "cannot write to standard output",
            error,
            "check where it goes",
        )),
        Ok(()) => Ok(()),
    }
}

pub(crate) fn yaml(documents: &[Value]) -> Result<String, Problem> {
    let mut text = String::new();
    for document in documents {
        text.push_str("---\n");
        text.push_str(&serde_saphyr::to_string(document).map_err(|error| {
            Problem::new(
                "cannot write a manifest as YAML",
                error,
                "report this with the settings that you used",
            )
        })?);
        if !text.ends_with('\n') {
            text.push('\n');
        }
    }
    Ok(text)
}
