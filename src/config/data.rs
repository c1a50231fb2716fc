//! Where the data is, how durable it is, and for how long it stays.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Error, Errors, SecretArgs};
use crate::secrets::{self, Secrets};
use crate::store::{Durability, Options};

/// Flags.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Data")]
pub struct DataArgs {
    /// File of settings (TOML): below variables, which are below flags; each key is a flag's name
    /// [default: $XDG_CONFIG_HOME/gennaker/gennaker.toml or ~/.config/gennaker/gennaker.toml, then
    /// /etc/gennaker/gennaker.toml, if there is one]
    #[arg(long, env = super::file::VARIABLE, value_name = "FILE", help_heading = "Settings")]
    pub config: Option<PathBuf>,
    /// Directory of the database and everything else that is kept
    /// [default: $XDG_DATA_HOME/gennaker or ~/.local/share/gennaker]
    #[arg(long, env = "GENNAKER_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// PostgreSQL instead of SQLite: postgres://user@host/database, or secret://file/… (below a
    /// --secret-dir) or secret://env/… where that is written. Where GENNAKER_DATABASE_URL is not set, DATABASE_URL is read
    #[arg(long, env = super::variables::DATABASE_URL, value_name = "URL", hide_env_values = true)]
    pub database_url: Option<String>,
    /// What a power cut may take from SQLite: nothing (full), or the last commits (normal)
    #[arg(long, env = "GENNAKER_DURABILITY", value_enum, default_value_t = Durability::Full)]
    pub durability: Durability,
    /// Finished executions, messages to people, and old revisions of pipelines that no kept execution names are deleted after this many days; 0 keeps them for good
    #[arg(long, env = "GENNAKER_RETENTION_DAYS", value_name = "DAYS", default_value_t = DataArgs::RETENTION_DAYS)]
    pub retention_days: u32,
    /// Entries of the audit log are deleted after this many days; 0 keeps them for good
    #[arg(long, env = "GENNAKER_AUDIT_RETENTION_DAYS", value_name = "DAYS", default_value_t = DataArgs::AUDIT_RETENTION_DAYS)]
    pub audit_retention_days: u32,
}

impl DataArgs {
    const RETENTION_DAYS: u32 = 30;
    const AUDIT_RETENTION_DAYS: u32 = 365;
    /// Commits that may wait for the writer.
    const QUEUE_MAX: usize = 4096;

    /// What `secrets` resolves; None: nothing does, since what it is made of has faults of its own.
    ///
    /// # Errors
    /// When no directory is given and none can be derived, when the URL is of no database we know, and
    /// when it is a reference that leads to none.
    pub fn validate(self, secrets: Option<&Secrets>) -> Result<DataConfig, Errors> {
        const URL: &str = "--database-url";
        let mut errors = Errors::none();
        let database_url = match (self.database_url, secrets) {
            (Some(reference), Some(secrets)) if secrets::is_reference(&reference) => {
                let secret = errors.keep(super::resolved(URL, &reference, secrets));
                secret.map(|secret| secret.expose().to_owned())
            }
            (given, _) => given,
        };
        match &database_url {
            Some(url) if secrets::is_reference(url) => {}
            Some(url) if !["postgres://", "postgresql://"].iter().any(|scheme| url.starts_with(scheme)) => errors.add(
                URL,
                "is not a postgres:// URL; leave it (and GENNAKER_DATABASE_URL, DATABASE_URL) out for SQLite in the data directory",
            ),
            Some(url) => {
                if let Err(message) = Options::judge_url(url) {
                    errors.add(URL, message);
                }
            }
            None => {}
        }
        let dir = errors.keep(directory(self.data_dir)).unwrap_or_default();
        errors.or(|| DataConfig {
            dir,
            database_url,
            durability: self.durability,
            retention: days(self.retention_days),
            audit_retention: days(self.audit_retention_days),
        })
    }
}

/// Flags of the commands that open the database without a server.
#[derive(Debug, Clone, Default, clap::Args)]
#[group(skip)]
pub struct DatabaseArgs {
    /// Where the database is.
    #[command(flatten)]
    pub data: DataArgs,
    /// Where its address may come from.
    #[command(flatten)]
    pub secrets: SecretArgs,
}

impl DatabaseArgs {
    /// # Errors
    /// As [`DataArgs::validate`].
    pub fn validate(self) -> Result<DataConfig, Errors> {
        self.data.validate(Some(&Secrets::new(self.secrets.secret_dir)))
    }
}

fn directory(given: Option<PathBuf>) -> Result<PathBuf, Error> {
    match given {
        Some(dir) => {
            std::path::absolute(&dir).map_err(|error| Error::new("--data-dir", format!("{}: {error}", dir.display())))
        }
        None => default_dir(|name| std::env::var_os(name).map(PathBuf::from)),
    }
}

impl Default for DataArgs {
    fn default() -> Self {
        Self {
            config: None,
            data_dir: None,
            database_url: None,
            durability: Durability::Full,
            retention_days: Self::RETENTION_DAYS,
            audit_retention_days: Self::AUDIT_RETENTION_DAYS,
        }
    }
}

/// None for 0: for good.
fn days(days: u32) -> Option<Duration> {
    (days > 0).then(|| Duration::from_secs(u64::from(days) * 24 * 60 * 60))
}

/// The data directory of a server that is told nothing but by its environment and the file.
pub(super) fn of_environment(file: Option<&super::File>) -> Result<PathBuf, Error> {
    let data_dir = std::env::var_os("GENNAKER_DATA_DIR").map(PathBuf::from);
    let data_dir = data_dir.or_else(|| file.and_then(|file| file.text("data-dir")).map(PathBuf::from));
    directory(data_dir)
}

fn default_dir(variable: impl Fn(&str) -> Option<PathBuf>) -> Result<PathBuf, Error> {
    let absolute = |path: PathBuf| path.is_absolute().then_some(path);
    variable("XDG_DATA_HOME")
        .and_then(absolute)
        .or_else(|| variable("HOME").and_then(absolute).map(|home| home.join(".local/share")))
        .map(|base| base.join("gennaker"))
        .ok_or_else(|| Error::new("--data-dir", "neither XDG_DATA_HOME nor HOME is set; say where the data shall be"))
}

/// Settings.
#[derive(Debug, Clone)]
pub struct DataConfig {
    /// The data directory, absolute.
    pub dir: PathBuf,
    /// `postgres://…`; None: SQLite in the data directory.
    pub database_url: Option<String>,
    /// What a power cut may take of SQLite's commits.
    pub durability: Durability,
    /// Finished executions and messages older than this are deleted; None keeps them.
    pub retention: Option<Duration>,
    /// Entries of the audit log older than this are deleted; None keeps them.
    pub audit_retention: Option<Duration>,
}

impl DataConfig {
    /// What the store wants to know.
    #[must_use]
    pub fn store_options(&self) -> Options {
        Options {
            database_url: self.database_url.clone(),
            data_dir: self.dir.clone(),
            durability: self.durability,
            queue_max: DataArgs::QUEUE_MAX,
        }
    }

    /// For people; without the database's password.
    #[must_use]
    pub fn describe(&self) -> String {
        match &self.database_url {
            Some(_) => format!("PostgreSQL, other data in {}", self.dir.display()),
            None => format!("SQLite in {}", self.dir.display()),
        }
    }

    /// A path below the data directory.
    #[must_use]
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.join(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir(xdg: Option<&str>, home: Option<&str>) -> Result<PathBuf, Error> {
        default_dir(|name| if name == "HOME" { home } else { xdg }.map(PathBuf::from))
    }

    #[test]
    fn the_data_directory_follows_the_desktop_rules() {
        assert_eq!(dir(Some("/x"), Some("/h")), Ok("/x/gennaker".into()));
        assert_eq!(dir(None, Some("/h")), Ok("/h/.local/share/gennaker".into()));
        // a relative XDG_DATA_HOME is to be ignored
        assert_eq!(dir(Some("x"), Some("/h")), Ok("/h/.local/share/gennaker".into()));
        assert!(dir(None, None).is_err());
    }

    #[test]
    fn a_url_of_another_database_is_refused_without_being_repeated() {
        for (url, words) in [
            ("mysql://root:hidden@x/y", "is not a postgres:// URL"),
            ("postgres://root:hidden@x:99999/y", "port"),
            ("postgres://root:hidden@x:0/y", "port"),
            ("postgres://root:hidden@x y/z", "domain"),
            ("postgres://root:hidden@x/y?sslmode=blah", "blah"),
        ] {
            let error = with(url, &[]).expect_err(url).to_string();
            assert!(error.starts_with("--database-url: ") && error.contains(words), "{url}: {error}");
            assert!(!error.contains("hidden"), "{error}");
        }
        for url in ["postgres://g:p@db/g", "postgresql://g@[::1]:5433/g?sslmode=require&application_name=x"] {
            with(url, &[]).expect(url);
        }
    }

    fn with(url: &str, secret_dirs: &[&Path]) -> Result<DataConfig, Errors> {
        let data = DataArgs { data_dir: Some("/d".into()), database_url: Some(url.into()), ..DataArgs::default() };
        let secret_dir = secret_dirs.iter().map(|dir| dir.to_path_buf()).collect();
        DatabaseArgs { data, secrets: SecretArgs { secret_dir } }.validate()
    }

    #[test]
    fn a_file_with_the_url_lies_below_a_directory_of_secrets() {
        let dir = std::env::temp_dir().join(format!("gennaker-data-{}", uuid::Uuid::new_v4().simple()));
        std::fs::create_dir(&dir).expect("made");
        let file = dir.join("url");
        std::fs::write(&file, "postgres://g:hidden@db/g\n").expect("written");
        let reference = format!("secret://file{}", file.display());
        let error = with(&reference, &[]).expect_err("no directory of secrets").to_string();
        assert!(error.contains("url` is not below a directory") && error.contains("--secret-dir"), "{error}");
        let data = with(&reference, &[&dir]).expect("below one");
        assert_eq!(data.database_url.as_deref(), Some("postgres://g:hidden@db/g"));
        let error = with(&format!("{reference}-not"), &[&dir]).expect_err("no such file").to_string();
        assert!(error.contains("No such file"), "{error}");
        std::fs::remove_dir_all(&dir).expect("removed");
    }
}
