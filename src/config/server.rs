//! Where the server listens, to whom, and how it ends. Beyond loopback only by TLS, behind known
//! proxies, or when told twice.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;

use super::Errors;
use super::tls::{TlsArgs, TlsConfig};
use crate::api::Origin;

/// Flags.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Server")]
pub struct ServerArgs {
    /// Address and port for the API and its pages; port 0 takes any free one. Beyond loopback it
    /// needs TLS (--tls-cert), --trusted-proxies or --insecure
    #[arg(long, env = "GENNAKER_LISTEN", value_name = "ADDRESS", default_value = ServerArgs::LISTEN)]
    pub listen: SocketAddr,
    /// Listen beyond loopback although tokens and answers then cross the network unencrypted
    #[arg(long, env = "GENNAKER_INSECURE")]
    pub insecure: bool,
    /// Networks (CIDR) or addresses of the proxies in front: requests are taken from them only, and
    /// their X-Forwarded-For is believed; may be repeated
    #[arg(long, env = "GENNAKER_TRUSTED_PROXIES", value_name = "NETWORK", value_delimiter = ',', value_parser = network)]
    pub trusted_proxies: Vec<IpNet>,
    /// Pages of these origins (https://console.example) may use the API from browsers; may be
    /// repeated. Pages of this server always may
    #[arg(long, env = "GENNAKER_CORS_ALLOWED_ORIGINS", value_name = "ORIGIN", value_delimiter = ',')]
    pub cors_allowed_origins: Vec<Origin>,
    /// Seconds that steps under way have to end when the server is asked to stop; what takes longer
    /// is taken up again at the next start
    #[arg(long, env = "GENNAKER_SHUTDOWN_GRACE_SECONDS", value_name = "SECONDS", default_value_t = ServerArgs::GRACE_SECONDS)]
    pub shutdown_grace_seconds: u64,
    /// The certificate, if it speaks TLS.
    #[command(flatten)]
    pub tls: TlsArgs,
}

/// A network, or an address, which is a network of one.
fn network(text: &str) -> Result<IpNet, String> {
    let address = text.parse::<IpAddr>().map(IpNet::from);
    address.or_else(|_| text.parse()).map_err(|_| "write a network such as 10.0.0.0/8, or an address".to_owned())
}

impl ServerArgs {
    const LISTEN: &'static str = "127.0.0.1:7777";
    const GRACE_SECONDS: u64 = 30;
    const GRACE_SECONDS_MAX: u64 = 3_600;

    /// # Errors
    /// When the address is beyond loopback and nothing protects it, the certificate is none, and when the
    /// grace is too long.
    pub fn validate(self) -> Result<ServerConfig, Errors> {
        let mut errors = Errors::none();
        // Also where that does not hold: one fault is not told as two.
        let protected = self.tls.is_given() || !self.trusted_proxies.is_empty() || self.insecure;
        let tls = errors.keep(self.tls.validate()).flatten();
        if !self.listen.ip().is_loopback() && !protected {
            errors.add(
                "--listen",
                format!(
                    "{} is reachable from other machines; give a certificate (--tls-cert, --tls-key), name the TLS \
                     proxies in front (--trusted-proxies), listen on 127.0.0.1 or [::1], or say --insecure",
                    self.listen
                ),
            );
        }
        if self.shutdown_grace_seconds > Self::GRACE_SECONDS_MAX {
            let message = format!("{} is more than {}", self.shutdown_grace_seconds, Self::GRACE_SECONDS_MAX);
            errors.add("--shutdown-grace-seconds", message);
        }
        errors.or(|| ServerConfig {
            listen: self.listen,
            tls,
            trusted_proxies: self.trusted_proxies,
            allowed_origins: self.cors_allowed_origins,
            shutdown_grace: Duration::from_secs(self.shutdown_grace_seconds),
        })
    }
}

impl Default for ServerArgs {
    fn default() -> Self {
        Self {
            listen: Self::LISTEN.parse().expect("the default address is one"),
            insecure: false,
            trusted_proxies: Vec::new(),
            cors_allowed_origins: Vec::new(),
            shutdown_grace_seconds: Self::GRACE_SECONDS,
            tls: TlsArgs::default(),
        }
    }
}

/// Settings.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Address and port for the API.
    pub listen: SocketAddr,
    /// None: plain HTTP.
    pub tls: Option<TlsConfig>,
    /// Requests are taken from these only, unless there are none.
    pub trusted_proxies: Vec<IpNet>,
    /// Other sites whose pages may use the API.
    pub allowed_origins: Vec<Origin>,
    /// How long steps under way may take when the server stops.
    pub shutdown_grace: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listen(address: &str, change: impl FnOnce(&mut ServerArgs)) -> Result<ServerConfig, Errors> {
        let mut args = ServerArgs { listen: address.parse().expect("an address"), ..ServerArgs::default() };
        change(&mut args);
        args.validate()
    }

    fn fixture(name: &str) -> Option<std::path::PathBuf> {
        Some(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/fixtures").join(name))
    }

    #[test]
    fn loopback_needs_no_word() {
        for address in ["127.0.0.1:0", "127.8.8.8:80", "[::1]:7777"] {
            assert!(listen(address, |_| ()).is_ok(), "{address}");
        }
    }

    #[test]
    fn beyond_loopback_is_refused_unless_something_protects_it_or_it_is_wanted() {
        for address in ["0.0.0.0:7777", "[::]:7777", "192.168.1.5:7777"] {
            let error = &listen(address, |_| ()).expect_err(address).0[0];
            assert_eq!(error.setting, "--listen");
            for way in ["--insecure", "--tls-cert", "--trusted-proxies"] {
                assert!(error.message.contains(way), "{error}");
            }
            assert!(listen(address, |args| args.insecure = true).is_ok(), "{address}");
            let proxies = vec![network("10.0.0.1").expect("an address")];
            assert!(listen(address, |args| args.trusted_proxies = proxies).is_ok(), "{address}");
            let tls =
                TlsArgs { tls_cert: fixture("tls-first.pem"), tls_key: fixture("tls-first.key"), ..TlsArgs::default() };
            assert!(listen(address, |args| args.tls = tls).is_ok(), "{address}");
        }
    }

    #[test]
    fn a_certificate_needs_its_key() {
        let tls = TlsArgs { tls_cert: fixture("tls-first.pem"), ..TlsArgs::default() };
        assert_eq!(listen("127.0.0.1:0", |args| args.tls = tls).expect_err("no key").0[0].setting, "--tls-key");
        let tls =
            TlsArgs { tls_cert: fixture("tls-first.pem"), tls_key: fixture("tls-second.key"), ..TlsArgs::default() };
        assert_eq!(listen("127.0.0.1:0", |args| args.tls = tls).expect_err("another's key").0[0].setting, "--tls-key");
    }
}
