//! Settings: flags, `GENNAKER_*` variables and one file, each below the one before; validated at
//! start. One file per section; the unit is part of the name. A setting is a flag, defined once: its
//! variable and its key in the file follow from that ([`file`]).

mod data;
mod effective;
mod file;
mod host;
mod limits;
mod log;
mod observe;
mod security;
mod server;
mod smtp;
mod tls;
pub mod variables;

pub use data::{DataArgs, DataConfig, DatabaseArgs};
pub use effective::{LIVE, Setting, Source, effective, limits_table};
pub use file::{Fault, File, in_one_line};
pub use host::{HostArgs, HostConfig, PortRange};
pub use limits::{LimitsArgs, LimitsConfig};
pub use log::{LogArgs, LogFormat};
pub use observe::{ObserveArgs, ObserveConfig};
pub use security::{SecretArgs, SecurityArgs, SecurityConfig};
pub use server::{ServerArgs, ServerConfig};
pub use smtp::{SmtpArgs, SmtpConfig};
pub use tls::{TlsArgs, TlsConfig};

use crate::secrets::{Secret, Secrets};

/// The directory of the host that a server without flags uses.
///
/// # Errors
/// When neither a directory nor a home is given by the environment, or the file of settings has
/// faults.
pub fn default_host_dir() -> Result<std::path::PathBuf, Error> {
    let file = match File::path_by_environment() {
        Some(path) => {
            let (file, faults) = File::read(&path);
            if let Some(fault) = faults.first() {
                return Err(Error::new("--config", fault.to_string()));
            }
            Some(file)
        }
        None => None,
    };
    if let Some(dir) = file.as_ref().and_then(|file| file.text("host-dir")) {
        let failed = |error| Error::new("--host-dir", format!("{dir}: {error}"));
        return std::path::absolute(dir).map_err(failed);
    }
    Ok(data::of_environment(file.as_ref())?.join("host"))
}

/// The value behind a setting that is a `secret://` reference, by the same rule as any other reference.
fn resolved(setting: &'static str, reference: &str, secrets: &Secrets) -> Result<Secret, Error> {
    secrets.resolve(reference).map_err(|error| {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
        Error::new(setting, format!("{error}{cause}"))
    })
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
    /// Where it listens, to whom, and how it ends.
    #[command(flatten)]
    pub server: ServerArgs,
    /// Where the data is, and for how long it is kept.
    #[command(flatten)]
    pub data: DataArgs,
    /// The host that it starts or finds.
    #[command(flatten)]
    pub host: HostArgs,
    /// Which secrets and which addresses it may reach.
    #[command(flatten)]
    pub security: SecurityArgs,
    /// How much is taken at the most.
    #[command(flatten)]
    pub limits: LimitsArgs,
    /// The mail server, and how often mails are tried.
    #[command(flatten)]
    pub smtp: SmtpArgs,
    /// How the log is written.
    #[command(flatten)]
    pub log: LogArgs,
    /// Metrics and traces.
    #[command(flatten)]
    pub observe: ObserveArgs,
}

/// All settings of a server, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where it listens, to whom, and how it ends.
    pub server: ServerConfig,
    /// Where the data is, and for how long it is kept.
    pub data: DataConfig,
    /// The host that it starts or finds.
    pub host: HostConfig,
    /// Which secrets and which addresses it may reach.
    pub security: SecurityConfig,
    /// How much is taken at the most.
    pub limits: LimitsConfig,
    /// Metrics and traces.
    pub observe: ObserveConfig,
    /// The mail server, and how often mails are tried.
    pub smtp: SmtpConfig,
    /// How the log is written; its flags need no check.
    pub log: LogArgs,
}

/// Settings that do not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Errors(pub Vec<Error>);

impl std::fmt::Display for Errors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let lines: Vec<_> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for Errors {}

impl Errors {
    const fn none() -> Self {
        Self(Vec::new())
    }

    fn add(&mut self, setting: &'static str, message: impl Into<String>) {
        self.0.push(Error::new(setting, message));
    }

    /// What holds; what does not is kept for later.
    fn keep<T>(&mut self, outcome: Result<T, impl Into<Self>>) -> Option<T> {
        outcome.map_err(|errors| self.0.extend(errors.into().0)).ok()
    }

    /// A number has to lie in its range, ends included.
    fn within(&mut self, setting: &'static str, value: u64, least: u64, most: u64) {
        if !(least..=most).contains(&value) {
            self.add(setting, format!("{value} is not within {least} to {most}"));
        }
    }

    /// The value, if nothing was wrong.
    fn or<T>(self, value: impl FnOnce() -> T) -> Result<T, Self> {
        if self.0.is_empty() { Ok(value()) } else { Err(self) }
    }
}

impl From<Error> for Errors {
    fn from(error: Error) -> Self {
        Self(vec![error])
    }
}

impl Args {
    /// Checks every setting; changes nothing.
    ///
    /// # Errors
    /// All settings that do not hold.
    pub fn validate(self) -> Result<Config, Errors> {
        let mut errors = Errors::none();
        // Where the directories of secrets do not hold, what they lack says nothing.
        let security = self.security.validate();
        let secrets = security.as_ref().ok().map(|security| Secrets::new(security.secret_dirs.clone()));
        let data = errors.keep(self.data.validate(secrets.as_ref()));
        let dir = data.as_ref().map(|data| data.dir.clone()).unwrap_or_default();
        let host = errors.keep(self.host.validate(&dir));
        let server = errors.keep(self.server.validate());
        let security = errors.keep(security);
        let limits = errors.keep(self.limits.validate());
        let observe = errors.keep(self.observe.validate());
        if let Some(secrets) = &secrets {
            errors.keep(self.smtp.resolves(secrets));
        }
        let smtp = errors.keep(self.smtp.validate());
        if !errors.0.is_empty() {
            return Err(errors);
        }
        match (server, data, host, security, limits, smtp, observe) {
            (Some(server), Some(data), Some(host), Some(security), Some(limits), Some(smtp), Some(observe)) => {
                Ok(Config { server, data, host, security, limits, smtp, observe, log: self.log })
            }
            _ => Err(errors),
        }
    }
}
