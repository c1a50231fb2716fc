//! How the logs of server and host are written.

/// Flags.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Log")]
pub struct LogArgs {
    /// Form of the log on standard error
    #[arg(long = "log", env = "GENNAKER_LOG", value_enum, default_value_t = LogFormat::Text)]
    pub format: LogFormat,
    /// What is in the log: a level, and levels of single parts (`info`, `warn,gennaker::engine=debug`)
    #[arg(long, env = LogArgs::FILTER_VARIABLE, value_name = "FILTER", default_value = LogArgs::FILTER, value_parser = filter)]
    pub log_filter: Option<String>,
}

impl LogArgs {
    /// The variable that says what is logged, in the syntax of `tracing`'s filters.
    pub const FILTER_VARIABLE: &str = "GENNAKER_LOG_FILTER";
    /// What is in the log unless something else is wanted: statements of the database and each
    /// connection's life are of use to few.
    pub const FILTER: &'static str = "info,sqlx=warn,sea_orm=warn,tokio_cron_scheduler=warn";

    /// What is in the log.
    #[must_use]
    pub fn filter(&self) -> &str {
        self.log_filter.as_deref().unwrap_or(Self::FILTER)
    }
}

fn filter(text: &str) -> Result<String, String> {
    let read = tracing_subscriber::EnvFilter::try_new(text);
    read.map(|_| text.to_owned()).map_err(|error| format!("{error}; write such as `info` or `warn,gennaker=debug`"))
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

impl LogFormat {
    /// As the flag takes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}
