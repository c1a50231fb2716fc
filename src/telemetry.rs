//! The server's log: set up once per process. What it holds is chosen by `GENNAKER_LOG_FILTER`.

use std::fs::File;
use std::sync::Mutex;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

use crate::config::LogFormat;

/// The variable that says what is logged, in the syntax of `tracing`'s filters.
pub const FILTER_VARIABLE: &str = "GENNAKER_LOG_FILTER";

/// Where the log goes.
pub enum Target {
    /// Standard error.
    Stderr,
    /// A file, without colours.
    File(File),
}

/// Starts the log; a second call in a process changes nothing.
pub fn start(format: LogFormat, target: Target) {
    // Statements of the database and each connection's life are of use to few.
    let filter = EnvFilter::try_from_env(FILTER_VARIABLE)
        .unwrap_or_else(|_| EnvFilter::new("info,sqlx=warn,sea_orm=warn,sea_orm_migration=warn"));
    let colours = matches!(target, Target::Stderr) && std::io::IsTerminal::is_terminal(&std::io::stderr());
    let writer = match target {
        Target::Stderr => BoxMakeWriter::new(std::io::stderr),
        Target::File(file) => BoxMakeWriter::new(Mutex::new(file)),
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_ansi(colours);
    // An error means that a log was started before, which then stays.
    let _ = match format {
        LogFormat::Text => builder.with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
}
