//! Logs to stderr: one line per event, a constant message plus fields, readable without colour.

use std::sync::{Mutex, OnceLock, PoisonError};

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

/// The filter in force, and how to replace it.
struct Control {
    filter: Mutex<String>,
    replace: Box<dyn Fn(EnvFilter) -> bool + Send + Sync>,
}

static CONTROL: OnceLock<Control> = OnceLock::new();

/// Starts logging for this process. `filter` is a tracing filter such as `warn,hawser=info`.
pub fn start(filter: &str, format: Format) -> Result<(), Error> {
    let builder = tracing_subscriber::fmt()
        .with_env_filter(parse(filter)?)
        .with_writer(std::io::stderr)
        .with_ansi(false);
    let replace: Box<dyn Fn(EnvFilter) -> bool + Send + Sync> = match format {
        Format::Plain => {
            let builder = builder.with_timer(uptime()).with_filter_reloading();
            let handle = builder.reload_handle();
            builder.try_init().map_err(|_| Error::Twice)?;
            Box::new(move |filter| handle.reload(filter).is_ok())
        }
        Format::Json => {
            let builder = builder.json().with_filter_reloading();
            let handle = builder.reload_handle();
            builder.try_init().map_err(|_| Error::Twice)?;
            Box::new(move |filter| handle.reload(filter).is_ok())
        }
    };
    let control = Control {
        filter: Mutex::new(filter.to_owned()),
        replace,
    };
    CONTROL.set(control).map_err(|_| Error::Twice)
}

/// The filter in force, empty before [`start`].
pub fn filter() -> String {
    CONTROL.get().map_or_else(String::new, |control| {
        control
            .filter
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    })
}

/// Replaces the filter of a running process.
pub fn set_filter(filter: &str) -> Result<(), Error> {
    let parsed = parse(filter)?;
    if let Some(control) = CONTROL.get()
        && (control.replace)(parsed)
    {
        filter.clone_into(&mut control.filter.lock().unwrap_or_else(PoisonError::into_inner));
    }
    Ok(())
}

fn parse(filter: &str) -> Result<EnvFilter, Error> {
    EnvFilter::try_new(filter).map_err(|error| Error::Filter {
        filter: filter.to_owned(),
        why: error.to_string(),
    })
}
