//! Where the server listens. Beyond loopback only when told twice, since there is no TLS yet.

use std::net::SocketAddr;

use super::Error;

/// Flags.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Server")]
pub struct ServerArgs {
    /// Address and port for the API and its pages; port 0 takes any free one
    #[arg(long, env = "GENNAKER_LISTEN", value_name = "ADDRESS", default_value = ServerArgs::LISTEN)]
    pub listen: SocketAddr,
    /// Listen beyond loopback although tokens and answers then cross the network unencrypted;
    /// put a TLS proxy in front
    #[arg(long, env = "GENNAKER_INSECURE")]
    pub insecure: bool,
}

impl ServerArgs {
    const LISTEN: &'static str = "127.0.0.1:7777";

    /// # Errors
    /// When the address is beyond loopback and nobody said that this is wanted.
    pub fn validate(self) -> Result<ServerConfig, Error> {
        if !self.listen.ip().is_loopback() && !self.insecure {
            return Err(Error::new(
                "--listen",
                format!(
                    "{} is reachable from other machines and this server speaks no TLS; listen on 127.0.0.1 or [::1], \
                     or say --insecure if a TLS proxy stands in front",
                    self.listen
                ),
            ));
        }
        Ok(ServerConfig { listen: self.listen })
    }
}

impl Default for ServerArgs {
    fn default() -> Self {
        Self { listen: Self::LISTEN.parse().expect("the default address is one"), insecure: false }
    }
}

/// Settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerConfig {
    /// Address and port for the API.
    pub listen: SocketAddr,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listen(address: &str, insecure: bool) -> Result<ServerConfig, Error> {
        ServerArgs { listen: address.parse().expect("an address"), insecure }.validate()
    }

    #[test]
    fn loopback_needs_no_word() {
        for address in ["127.0.0.1:0", "127.8.8.8:80", "[::1]:7777"] {
            assert!(listen(address, false).is_ok(), "{address}");
        }
    }

    #[test]
    fn beyond_loopback_is_refused_unless_wanted() {
        for address in ["0.0.0.0:7777", "[::]:7777", "192.168.1.5:7777"] {
            let error = listen(address, false).expect_err(address);
            assert_eq!(error.setting, "--listen");
            assert!(error.message.contains("--insecure"), "{error}");
            assert!(listen(address, true).is_ok(), "{address}");
        }
    }
}
