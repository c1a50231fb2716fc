//! How the server's own log is written.

/// Flags.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Log")]
pub struct LogArgs {
    /// Form of the log on standard error; GENNAKER_LOG_FILTER says what is in it (`info`, `gennaker=debug`)
    #[arg(long = "log", env = "GENNAKER_LOG", value_enum, default_value_t = LogFormat::Text)]
    pub format: LogFormat,
}

/// Form of the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}
