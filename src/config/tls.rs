//! Whether the server speaks TLS, and with which certificate.

use std::path::PathBuf;
use std::time::Duration;

use super::{Error, Errors};
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

    /// Whether TLS is wanted, as far as one can tell.
    pub(super) const fn is_given(&self) -> bool {
        self.tls_cert.is_some() || self.tls_key.is_some()
    }

    /// # Errors
    /// When one of the two files is missing, or they are no certificate with its key.
    pub fn validate(self) -> Result<Option<TlsConfig>, Errors> {
        let mut errors = Errors::none();
        errors.within("--tls-check-seconds", self.tls_check_seconds, 1, 86_400);
        // Each by itself: a pair that is read stops at the first.
        for (setting, path) in [("--tls-cert", &self.tls_cert), ("--tls-key", &self.tls_key)] {
            if let Some(path) = path
                && let Err(message) = tls::read(path)
            {
                errors.add(setting, format!("{}: {message}", path.display()));
            }
        }
        let certificates = match (self.tls_cert, self.tls_key) {
            (Some(certificate), Some(key)) if errors.0.iter().all(|error| error.setting == "--tls-check-seconds") => {
                let unusable = |error: Unusable| match error {
                    Unusable::Certificate { .. } => Error::new("--tls-cert", error.to_string()),
                    Unusable::Key { .. } => Error::new("--tls-key", error.to_string()),
                };
                errors.keep(Certificates::load(Files { certificate, key }).map_err(unusable))
            }
            (Some(_), None) => {
                errors.add("--tls-key", "is missing; --tls-cert needs its private key");
                None
            }
            (None, Some(_)) => {
                errors.add("--tls-cert", "is missing; --tls-key needs its certificate");
                None
            }
            _ => None,
        };
        let check_every = Duration::from_secs(self.tls_check_seconds);
        errors.or(|| certificates.map(|certificates| TlsConfig { certificates, check_every }))
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
