//! What operators look at: the log, set up once per process, traces on their way to a collector,
//! and the counters of the hosts' proxies. What the log holds is chosen by
//! [`LogArgs::FILTER_VARIABLE`].

mod line;
pub mod proxy;
pub mod traces;

use std::fs::File;
use std::sync::{Mutex, OnceLock};

use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, reload};

use crate::config::{LogArgs, LogFormat};
use crate::measure::{self, Invariant};

/// Where the log goes.
pub enum Target {
    /// Standard error.
    Stderr,
    /// A file, without colours.
    File(File),
}

static RELOAD: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Starts the log, and counts and logs panics from now on; a second call in a process changes
/// nothing.
pub fn start(format: LogFormat, target: Target) {
    let filter = EnvFilter::try_from_env(LogArgs::FILTER_VARIABLE).unwrap_or_else(|_| EnvFilter::new(LogArgs::FILTER));
    let colours = matches!(target, Target::Stderr) && std::io::IsTerminal::is_terminal(&std::io::stderr());
    let writer = match target {
        Target::Stderr => BoxMakeWriter::new(std::io::stderr),
        Target::File(file) => BoxMakeWriter::new(Mutex::new(file)),
    };
    let (filter, handle) = reload::Layer::new(filter);
    // An error means that a log was started before, which then stays.
    if tracing_subscriber::registry().with(filter).with(line::Lines::new(format, colours, writer)).try_init().is_ok() {
        let _ = RELOAD.set(handle);
        watch_panics();
    }
}

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

/// A panic is a line of the log like any other, with the ids of what was under way.
fn watch_panics() {
    std::panic::set_hook(Box::new(|panic| {
        measure::violated(Invariant::Panic);
        let text = panic.payload_as_str().unwrap_or("of an unknown kind");
        let at = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(at, "panic: {text}");
    }));
}
