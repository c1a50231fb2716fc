//! The host provider: its directory, what it may run, and the ports it may use.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::Error;

/// Flags.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Host")]
pub struct HostArgs {
    /// The account that the host belongs to, as stages and files name it
    #[arg(long, env = "GENNAKER_ACCOUNT", value_name = "NAME", default_value = HostArgs::PLACE, value_parser = HostArgs::place)]
    pub account: String,
    /// The location within the account that the host is, as stages and files name it
    #[arg(long, env = "GENNAKER_LOCATION", value_name = "NAME", default_value = HostArgs::PLACE, value_parser = HostArgs::place)]
    pub location: String,
    /// The machine's name, which its instances and load balancers are shown with
    /// [default: its hostname]
    #[arg(long, env = "GENNAKER_HOST_NAME", value_name = "NAME", value_parser = HostArgs::machine)]
    pub host_name: Option<String>,
    /// Directory of the host daemon, which is started if none runs there
    /// [default: `host` in the data directory]
    #[arg(long, env = "GENNAKER_HOST_DIR", value_name = "DIR")]
    pub host_dir: Option<PathBuf>,
    /// Local artifacts must lie below one of these directories; may be repeated
    #[arg(long, env = "GENNAKER_ARTIFACT_ROOTS", value_name = "DIR", value_delimiter = ':')]
    pub artifact_root: Vec<PathBuf>,
    /// Ports for instances; keep it outside the ephemeral range of the system
    #[arg(long, env = "GENNAKER_PORT_RANGE", value_name = "FROM-TO", default_value_t = PortRange::DEFAULT)]
    pub port_range: PortRange,
    /// Bytes of all unpacked artifacts of the host together; what no server group uses makes room
    #[arg(long, env = "GENNAKER_MAX_ARTIFACT_BYTES", value_name = "BYTES", default_value_t = HostArgs::MAX_ARTIFACT_BYTES)]
    pub max_artifact_bytes: u64,
    /// Bytes of an instance's log, which is kept in 3 files; the oldest goes first
    #[arg(long, env = "GENNAKER_MAX_INSTANCE_LOG_BYTES", value_name = "BYTES",
          default_value_t = HostArgs::MAX_INSTANCE_LOG_BYTES,
          value_parser = clap::value_parser!(u64).range(HostArgs::MIN_INSTANCE_LOG_BYTES..))]
    pub max_instance_log_bytes: u64,
    /// Instances on the host, at most
    #[arg(long, env = "GENNAKER_MAX_INSTANCES", value_name = "COUNT", default_value_t = HostArgs::MAX_INSTANCES,
          value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub max_instances: u32,
}

impl HostArgs {
    /// 10 GiB.
    const MAX_ARTIFACT_BYTES: u64 = 10 << 30;
}

impl Default for HostArgs {
    fn default() -> Self {
        Self {
            account: Self::PLACE.to_owned(),
            location: Self::PLACE.to_owned(),
            host_name: None,
            host_dir: None,
            artifact_root: Vec::new(),
            port_range: PortRange::DEFAULT,
            max_artifact_bytes: Self::MAX_ARTIFACT_BYTES,
            max_instance_log_bytes: Self::MAX_INSTANCE_LOG_BYTES,
            max_instances: Self::MAX_INSTANCES,
        }
    }
}

/// Ports from the first to the last, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRange {
    pub first: u16,
    pub last: u16,
}

impl PortRange {
    /// Below the ephemeral ports of Linux (32768 on) and macOS (49152 on).
    pub const DEFAULT: Self = Self { first: 20_000, last: 29_999 };

    /// What to know before instances get ports that the system gives to outgoing connections too; none
    /// where there is nothing to warn of, or the system does not tell.
    #[must_use]
    pub fn warning(self) -> Option<String> {
        let ephemeral = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
        self.warning_beside(&ephemeral)
    }

    fn warning_beside(self, ephemeral: &str) -> Option<String> {
        let mut ends = ephemeral.split_whitespace().map_while(|end| end.parse::<u16>().ok());
        let (first, last) = (ends.next()?, ends.next()?);
        (self.first <= last && first <= self.last).then(|| {
            format!(
                "the ports for instances ({self}) overlap with those that this system gives to outgoing connections \
                 ({first}-{last}): an instance may find its port taken; choose others (--port-range), or move the \
                 system's (sysctl net.ipv4.ip_local_port_range)"
            )
        })
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl FromStr for PortRange {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (first, last) = text.split_once('-').ok_or("a range of ports is written 20000-29999")?;
        let port = |text: &str| text.trim().parse::<u16>().map_err(|_| format!("`{text}` is not a port"));
        let (first, last) = (port(first)?, port(last)?);
        if first < 1024 || last < first {
            return Err(format!("{first}-{last} is not a range of ports from 1024 on, the lower one first"));
        }
        Ok(Self { first, last })
    }
}

impl HostArgs {
    /// Where nothing else is asked for.
    pub const MAX_INSTANCES: u32 = 500;
    /// Where nothing else is asked for: 30 MiB.
    pub const MAX_INSTANCE_LOG_BYTES: u64 = 30 << 20;
    /// In each of the files what is read from an instance at a time has room.
    pub const MIN_INSTANCE_LOG_BYTES: u64 = 192 << 10;

    /// The account, and the location, where nothing else is asked for.
    pub const PLACE: &str = "local";

    /// Reads the name of an account or a location.
    ///
    /// # Errors
    /// When it is none.
    pub fn place(text: &str) -> Result<String, String> {
        named(text, "-_")
    }

    /// Reads a machine's name.
    ///
    /// # Errors
    /// When it is none.
    pub fn machine(text: &str) -> Result<String, String> {
        named(text, "-_.")
    }

    /// # Errors
    /// When an artifact root is no absolute directory.
    pub fn validate(self, data_dir: &Path) -> Result<HostConfig, Error> {
        let mut artifact_roots = Vec::new();
        for root in self.artifact_root {
            let found = root.canonicalize().map_err(|error| {
                Error::new("--artifact-root", format!("{}: {error}; name an existing directory", root.display()))
            })?;
            if !found.is_dir() {
                return Err(Error::new("--artifact-root", format!("{} is not a directory", root.display())));
            }
            artifact_roots.push(found);
        }
        let dir = match self.host_dir {
            Some(dir) => std::path::absolute(&dir)
                .map_err(|error| Error::new("--host-dir", format!("{}: {error}", dir.display())))?,
            None => data_dir.join("host"),
        };
        if self.max_artifact_bytes < 1 << 20 {
            let message = format!("{} is less than 1 MiB, in which no artifact has room", self.max_artifact_bytes);
            return Err(Error::new("--max-artifact-bytes", message));
        }
        let (port_range, max_artifact_bytes) = (self.port_range, self.max_artifact_bytes);
        let max_instances = self.max_instances as usize;
        let max_instance_log_bytes = self.max_instance_log_bytes;
        Ok(HostConfig {
            account: self.account,
            location: self.location,
            host_name: self.host_name,
            dir,
            artifact_roots,
            port_range,
            max_artifact_bytes,
            max_instance_log_bytes,
            max_instances,
        })
    }
}

/// Letters, digits and what else is allowed.
fn named(text: &str, also: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || also.contains(c);
    match !text.is_empty() && text.len() <= 63 && text.chars().all(fits) {
        true => Ok(text.to_owned()),
        false => {
            let also: Vec<String> = also.chars().map(|c| format!("`{c}`")).collect();
            Err(format!("a name has 1 to 63 letters, digits, {}", also.join(", ")))
        }
    }
}

/// Settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostConfig {
    pub account: String,
    pub location: String,
    /// Of the machine; none: its hostname.
    pub host_name: Option<String>,
    /// One host per directory.
    pub dir: PathBuf,
    /// Absolute, links resolved.
    pub artifact_roots: Vec<PathBuf>,
    pub port_range: PortRange,
    /// Bytes of all unpacked artifacts of the host together, at most.
    pub max_artifact_bytes: u64,
    /// Bytes of an instance's log, at most.
    pub max_instance_log_bytes: u64,
    /// At most, on the host.
    pub max_instances: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_range_reads_back() {
        assert_eq!("20000-29999".parse(), Ok(PortRange::DEFAULT));
        assert_eq!(PortRange::DEFAULT.to_string().parse(), Ok(PortRange::DEFAULT));
        for text in ["", "20000", "30000-20000", "80-90", "1-x", "70000-80000"] {
            assert!(text.parse::<PortRange>().is_err(), "{text}");
        }
    }

    #[test]
    fn names_are_what_addresses_can_have_in_them() {
        assert_eq!(HostArgs::place("eu-1_b"), Ok("eu-1_b".to_owned()));
        assert_eq!(HostArgs::machine("a.example.org"), Ok("a.example.org".to_owned()));
        for text in ["", "a b", "a/b", "a.b", &"x".repeat(64)] {
            assert!(HostArgs::place(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_host_is_asked_for_what_it_does_by_itself() {
        use crate::providers::host::daemon;
        assert_eq!(HostArgs::MAX_INSTANCES as usize, daemon::MAX_INSTANCES);
        assert_eq!(HostArgs::MAX_ARTIFACT_BYTES, daemon::MAX_ARTIFACT_BYTES);
        assert_eq!(HostArgs::MAX_INSTANCE_LOG_BYTES, daemon::MAX_INSTANCE_LOG_BYTES);
    }

    #[test]
    fn a_range_that_meets_the_ephemeral_one_is_warned_of() {
        let range = PortRange { first: 30_000, last: 33_000 };
        let warning = range.warning_beside("32768\t60999\n").expect("they overlap");
        assert!(warning.contains("30000-33000") && warning.contains("32768-60999"), "{warning}");
        for apart in ["33001 60999", "1024 29999", "", "x y"] {
            assert_eq!(range.warning_beside(apart), None, "{apart}");
        }
    }

    #[test]
    fn an_artifact_root_has_to_exist() {
        let args = HostArgs { artifact_root: vec!["/does/not/exist".into()], ..HostArgs::default() };
        let error = args.validate(Path::new("/data")).expect_err("no such directory");
        assert_eq!(error.setting, "--artifact-root");
    }
}
