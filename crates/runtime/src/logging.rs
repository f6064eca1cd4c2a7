//! Logs to stderr: one line per event, a constant message plus fields, readable without colour.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::time::uptime;

/// How log lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    #[default]
    Plain,
    Json,
}

impl std::str::FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "plain" => Ok(Self::Plain),
            "json" => Ok(Self::Json),
            other => Err(format!("log format {other:?} is unknown: use plain or json")),
        }
    }
}

/// Why logging could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the log filter {filter:?} is not valid: {why}")]
    Filter { filter: String, why: String },
    #[error("logging was started before")]
    Twice,
}

/// Starts logging for this process. `filter` is a tracing filter such as `warn,hawser=info`.
pub fn start(filter: &str, format: Format) -> Result<(), Error> {
    let parsed = EnvFilter::try_new(filter).map_err(|error| Error::Filter {
        filter: filter.to_owned(),
        why: error.to_string(),
    })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(parsed)
        .with_writer(std::io::stderr)
        .with_ansi(false);
    match format {
        Format::Plain => builder.with_timer(uptime()).try_init(),
        Format::Json => builder.json().try_init(),
    }
    .map_err(|_| Error::Twice)
}
