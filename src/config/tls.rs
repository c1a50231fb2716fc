//! Whether the server speaks TLS, and with which certificate.

use std::path::PathBuf;
use std::time::Duration;

use super::Error;
use crate::listener::tls::{self, Certificates, Error as Unusable, Files};

/// Flags.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "TLS")]
pub struct TlsArgs {
    /// Speak TLS, with this certificate (PEM, the server's own first, then those that lead to its root)
    #[arg(long, env = "GENNAKER_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// Private key of the certificate (PEM, without a passphrase)
    #[arg(long, env = "GENNAKER_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// Seconds from one look whether certificate and key have changed to the next
    #[arg(long, env = "GENNAKER_TLS_CHECK_SECONDS", value_name = "SECONDS", default_value_t = TlsArgs::CHECK_SECONDS)]
    pub tls_check_seconds: u64,
}

impl Default for TlsArgs {
    fn default() -> Self {
        Self { tls_cert: None, tls_key: None, tls_check_seconds: Self::CHECK_SECONDS }
    }
}

impl TlsArgs {
    const CHECK_SECONDS: u64 = 60;

    /// Files that are named and cannot be read, each by itself.
    pub(super) fn unreadable(&self) -> Vec<Error> {
        let files = [("--tls-cert", &self.tls_cert), ("--tls-key", &self.tls_key)];
        let unreadable = files.into_iter().filter_map(|(setting, path)| {
            let path = path.as_deref()?;
            let message = tls::read(path).err()?;
            Some(Error::new(setting, format!("{}: {message}", path.display())))
        });
        unreadable.collect()
    }

    /// # Errors
    /// When one of the two files is missing, or they are no certificate with its key.
    pub fn validate(self) -> Result<Option<TlsConfig>, Error> {
        let seconds = self.tls_check_seconds;
        if !(1..=86_400).contains(&seconds) {
            return Err(Error::new("--tls-check-seconds", format!("{seconds} is not within 1 to 86400")));
        }
        let files = match (self.tls_cert, self.tls_key) {
            (None, None) => return Ok(None),
            (Some(certificate), Some(key)) => Files { certificate, key },
            (Some(_), None) => return Err(Error::new("--tls-key", "is missing; --tls-cert needs its private key")),
            (None, Some(_)) => return Err(Error::new("--tls-cert", "is missing; --tls-key needs its certificate")),
        };
        let certificates = Certificates::load(files).map_err(|error| match error {
            Unusable::Certificate { .. } => Error::new("--tls-cert", error.to_string()),
            Unusable::Key { .. } => Error::new("--tls-key", error.to_string()),
        })?;
        Ok(Some(TlsConfig { certificates, check_every: Duration::from_secs(seconds) }))
    }
}

/// Settings.
#[derive(Debug, Clone)]
pub struct TlsConfig {
    /// As read at this time.
    pub certificates: Certificates,
    /// From one look at the files to the next.
    pub check_every: Duration,
}
