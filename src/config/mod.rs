//! Settings: flags and `GENNAKER_*` variables, validated once at start. One file per section; a
//! flag stands before its variable, and the unit is part of the name.

mod data;
mod host;
mod limits;
mod log;
mod observe;
mod security;
mod server;

pub use data::{DataArgs, DataConfig};
pub use host::{HostArgs, HostConfig, PortRange};
pub use limits::{LimitsArgs, LimitsConfig};
pub use log::{LogArgs, LogFormat};
pub use observe::{ObserveArgs, ObserveConfig};
pub use security::{SecurityArgs, SecurityConfig};
pub use server::{ServerArgs, ServerConfig};

/// The directory of the host that a server without flags uses.
///
/// # Errors
/// When neither a directory nor a home is given by the environment.
pub fn default_host_dir() -> Result<std::path::PathBuf, Error> {
    Ok(data::of_environment()?.join("host"))
}

/// A setting does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{setting}: {message}")]
pub struct Error {
    /// The flag: `--listen`.
    pub setting: &'static str,
    /// What is wrong and what to do.
    pub message: String,
}

impl Error {
    fn new(setting: &'static str, message: impl Into<String>) -> Self {
        Self { setting, message: message.into() }
    }
}

/// All flags of a server, as given.
#[derive(Debug, Clone, Default, clap::Args)]
#[group(skip)]
pub struct Args {
    #[command(flatten)]
    pub server: ServerArgs,
    #[command(flatten)]
    pub data: DataArgs,
    #[command(flatten)]
    pub host: HostArgs,
    #[command(flatten)]
    pub security: SecurityArgs,
    #[command(flatten)]
    pub limits: LimitsArgs,
    #[command(flatten)]
    pub log: LogArgs,
    #[command(flatten)]
    pub observe: ObserveArgs,
}

/// All settings of a server, checked.
#[derive(Debug, Clone)]
pub struct Config {
    pub server: ServerConfig,
    pub data: DataConfig,
    pub host: HostConfig,
    pub security: SecurityConfig,
    pub limits: LimitsConfig,
    pub observe: ObserveConfig,
}

impl Args {
    /// Checks every setting; touches nothing.
    ///
    /// # Errors
    /// The first setting that does not hold.
    pub fn validate(self) -> Result<Config, Error> {
        let data = self.data.validate()?;
        let host = self.host.validate(&data.dir)?;
        let (server, security) = (self.server.validate()?, self.security.validate()?);
        Ok(Config { server, security, limits: self.limits.validate()?, observe: self.observe.validate()?, data, host })
    }
}
