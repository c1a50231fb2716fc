//! Which files hold secrets, and which private addresses outgoing calls may reach.

use std::path::PathBuf;

use super::{Error, Errors};
use crate::outbound::Allow;

/// Where files with secrets may be: of the server, and of commands that resolve a setting that is a
/// reference.
#[derive(Debug, Clone, Default, clap::Args)]
#[group(skip)]
#[command(next_help_heading = "Security")]
pub struct SecretArgs {
    /// `secret://file/…` may name files below these directories; may be repeated
    #[arg(long, env = "GENNAKER_SECRET_DIRS", value_name = "DIR", value_delimiter = ':')]
    pub secret_dir: Vec<PathBuf>,
}

/// Flags.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Security")]
pub struct SecurityArgs {
    /// Where secrets may come from.
    #[command(flatten)]
    pub secrets: SecretArgs,
    /// Private or loopback networks (CIDR), addresses or host:port that outgoing calls may reach; may
    /// be repeated. Public addresses and own load balancers need none
    #[arg(long, env = "GENNAKER_OUTBOUND_ALLOW", value_name = "ENTRY", value_delimiter = ',')]
    pub outbound_allow: Vec<String>,
}

/// Settings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SecurityConfig {
    /// Absolute, links resolved.
    pub secret_dirs: Vec<PathBuf>,
    /// What outgoing calls may reach beside public addresses and own load balancers.
    pub outbound_allow: Vec<Allow>,
}

impl SecurityArgs {
    /// # Errors
    /// Directories that do not exist, and networks that are none.
    pub fn validate(self) -> Result<SecurityConfig, Errors> {
        let mut errors = Errors::none();
        let found = |dir: &PathBuf| {
            dir.canonicalize().map_err(|error| {
                Error::new("--secret-dir", format!("{}: {error}; name an existing directory", dir.display()))
            })
        };
        let secret_dirs = self.secrets.secret_dir.iter().filter_map(|dir| errors.keep(found(dir))).collect();
        let read = |text: &String| text.parse().map_err(|error| Error::new("--outbound-allow", format!("{error}")));
        let outbound_allow = self.outbound_allow.iter().filter_map(|text| errors.keep(read(text))).collect();
        errors.or(|| SecurityConfig { secret_dirs, outbound_allow })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allow(entries: &[&str]) -> Result<SecurityConfig, Errors> {
        let outbound_allow = entries.iter().map(ToString::to_string).collect();
        SecurityArgs { outbound_allow, ..SecurityArgs::default() }.validate()
    }

    #[test]
    fn networks_addresses_and_hosts_with_a_port_are_taken() {
        let config = allow(&["10.0.0.0/8", "::1", "hooks.internal:8443"]).expect("all three are entries");
        assert_eq!(config.outbound_allow.len(), 3);
        assert_eq!(allow(&["example.org"]).expect_err("a name alone is none").0[0].setting, "--outbound-allow");
    }

    #[test]
    fn a_secret_directory_has_to_exist() {
        let secret_dir = vec!["/does/not/exist".into(), "/nor/does/this".into()];
        let secrets = SecretArgs { secret_dir };
        let args = SecurityArgs { secrets, outbound_allow: vec!["example.org".into()] };
        let errors = args.validate().expect_err("no such directory").0;
        let settings: Vec<_> = errors.iter().map(|error| error.setting).collect();
        assert_eq!(settings, ["--secret-dir", "--secret-dir", "--outbound-allow"]);
    }
}
