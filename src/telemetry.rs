//! The server's log: set up once per process. What it holds is chosen by `GENNAKER_LOG_FILTER`.

use std::fs::File;
use std::sync::{Mutex, OnceLock};

use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, Registry, reload};

use crate::config::{LogArgs, LogFormat};

/// The variable that says what is logged, in the syntax of `tracing`'s filters.
pub const FILTER_VARIABLE: &str = "GENNAKER_LOG_FILTER";

/// Where the log goes.
pub enum Target {
    /// Standard error.
    Stderr,
    /// A file, without colours.
    File(File),
}

static RELOAD: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// From now on the log holds what this filter lets through; nothing without a log.
///
/// # Errors
/// When the text is no filter.
pub fn set_filter(text: &str) -> Result<(), String> {
    let filter = EnvFilter::try_new(text).map_err(|error| error.to_string())?;
    match RELOAD.get() {
        Some(handle) => handle.reload(filter).map_err(|error| error.to_string()),
        None => Ok(()),
    }
}

/// Starts the log; a second call in a process changes nothing.
pub fn start(format: LogFormat, target: Target) {
    let filter = EnvFilter::try_from_env(FILTER_VARIABLE).unwrap_or_else(|_| EnvFilter::new(LogArgs::FILTER));
    let colours = matches!(target, Target::Stderr) && std::io::IsTerminal::is_terminal(&std::io::stderr());
    let writer = match target {
        Target::Stderr => BoxMakeWriter::new(std::io::stderr),
        Target::File(file) => BoxMakeWriter::new(Mutex::new(file)),
    };
    let (filter, handle) = reload::Layer::new(filter);
    let layer = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(colours);
    let layer = match format {
        LogFormat::Text => layer.with_target(false).boxed(),
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
    };
    // An error means that a log was started before, which then stays.
    if tracing_subscriber::registry().with(filter).with(layer).try_init().is_ok() {
        let _ = RELOAD.set(handle);
    }
}
