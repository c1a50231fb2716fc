//! The host provider: its directory, what it may run, and the ports it may use.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::{Error, Errors};

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
    /// Ports for instances; those that the system gives to outgoing connections are passed over
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
    /// The lowest; 1024 or above where it was read from text.
    pub first: u16,
    /// The highest, included.
    pub last: u16,
}

impl PortRange {
    /// Below the ephemeral ports of Linux (32768 on) and macOS (49152 on).
    pub const DEFAULT: Self = Self { first: 20_000, last: 29_999 };

    /// The ports that the system gives to outgoing connections, as of now; none where it does not tell.
    fn ephemeral() -> Option<Self> {
        Self::written(&std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?)
    }

    fn written(text: &str) -> Option<Self> {
        let mut ends = text.split_whitespace().map_while(|end| end.parse().ok());
        Some(Self { first: ends.next()?, last: ends.next()? })
    }

    /// The ports that instances get: those that the system gives to outgoing connections are passed
    /// over, since an instance might find its own taken.
    pub fn usable(self) -> impl Iterator<Item = u16> + Clone {
        self.beside(Self::ephemeral())
    }

    fn beside(self, ephemeral: Option<Self>) -> impl Iterator<Item = u16> + Clone {
        let is_ephemeral = move |port| ephemeral.is_some_and(|range| (range.first..=range.last).contains(&port));
        (self.first..=self.last).filter(move |port| !is_ephemeral(*port))
    }

    /// # Errors
    /// When no port is left for instances.
    pub fn check(self) -> Result<(), Error> {
        self.check_beside(Self::ephemeral())
    }

    fn check_beside(self, ephemeral: Option<Self>) -> Result<(), Error> {
        match ephemeral {
            Some(range) if self.beside(ephemeral).next().is_none() => Err(Error::new(
                "--port-range",
                format!(
                    "this system gives all ports of {self} to outgoing connections too \
                     (net.ipv4.ip_local_port_range is {range}), so an instance might find its port taken; choose a \
                     range with others, or move the system's (`sysctl -w net.ipv4.ip_local_port_range='FROM TO'`)"
                ),
            )),
            _ => Ok(()),
        }
    }

    /// What to know where only some ports of the range are given to instances.
    #[must_use]
    pub fn warning(self) -> Option<String> {
        self.warning_beside(Self::ephemeral()?)
    }

    fn warning_beside(self, ephemeral: Self) -> Option<String> {
        let (all, left) = (self.beside(None).count(), self.beside(Some(ephemeral)).count());
        (left < all).then(|| {
            format!(
                "of the ports for instances ({self}) {} are passed over, which this system gives to outgoing \
                 connections too (net.ipv4.ip_local_port_range is {ephemeral}): {left} are left; choose others \
                 (--port-range) if these are too few",
                all - left
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
    /// Artifact roots that are no directory, no port left for instances, and all else that does not hold.
    pub fn validate(self, data_dir: &Path) -> Result<HostConfig, Errors> {
        let mut errors = Errors::none();
        errors.keep(self.port_range.check());
        let roots = self.artifact_root.iter().filter_map(|root| errors.keep(artifact_root(root)));
        let artifact_roots = roots.collect();
        let absolute = |dir: PathBuf| {
            std::path::absolute(&dir).map_err(|error| Error::new("--host-dir", format!("{}: {error}", dir.display())))
        };
        let dir = match self.host_dir {
            Some(dir) => errors.keep(absolute(dir)).unwrap_or_default(),
            None => data_dir.join("host"),
        };
        if self.max_artifact_bytes < 1 << 20 {
            let message = format!("{} is less than 1 MiB, in which no artifact has room", self.max_artifact_bytes);
            errors.add("--max-artifact-bytes", message);
        }
        let (port_range, max_artifact_bytes) = (self.port_range, self.max_artifact_bytes);
        let max_instances = self.max_instances as usize;
        let max_instance_log_bytes = self.max_instance_log_bytes;
        errors.or(|| HostConfig {
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

fn artifact_root(root: &Path) -> Result<PathBuf, Error> {
    let found = root.canonicalize().map_err(|error| {
        Error::new("--artifact-root", format!("{}: {error}; name an existing directory", root.display()))
    })?;
    match found.is_dir() {
        true => Ok(found),
        false => Err(Error::new("--artifact-root", format!("{} is not a directory", root.display()))),
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
    /// The account that the host belongs to.
    pub account: String,
    /// The location within the account that the host is.
    pub location: String,
    /// Of the machine; none: its hostname.
    pub host_name: Option<String>,
    /// One host per directory.
    pub dir: PathBuf,
    /// Absolute, links resolved.
    pub artifact_roots: Vec<PathBuf>,
    /// Where instances get their ports from.
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
    fn ports_that_the_system_gives_to_outgoing_connections_are_passed_over() {
        let range = PortRange { first: 30_000, last: 33_000 };
        let ephemeral = |text: &str| PortRange::written(text);
        let usual = ephemeral("32768\t60999\n");
        assert_eq!(usual, Some(PortRange { first: 32_768, last: 60_999 }));
        assert!(range.beside(usual).eq(30_000..=32_767));
        assert_eq!(range.check_beside(usual), Ok(()));
        let warning = range.warning_beside(usual.expect("read")).expect("they overlap");
        assert!(warning.contains("(30000-33000) 233 are") && warning.contains("32768-60999): 2768 are"), "{warning}");
        for apart in ["33001 60999", "1024 29999"] {
            let apart = ephemeral(apart).expect("read");
            assert_eq!(range.warning_beside(apart), None, "{apart}");
            assert!(range.beside(Some(apart)).eq(30_000..=33_000), "{apart}");
        }
        for unknown in ["", "x y", "1"] {
            assert_eq!(ephemeral(unknown), None, "{unknown}");
        }
        assert!(range.beside(None).eq(30_000..=33_000));
        let error = range.check_beside(ephemeral("1024 65535")).expect_err("nothing is left");
        assert_eq!(error.setting, "--port-range");
        assert!(error.message.contains("ip_local_port_range is 1024-65535"), "{error}");
    }

    #[test]
    fn an_artifact_root_has_to_exist() {
        let artifact_root = vec!["/does/not/exist".into(), "/dev/null".into(), "/".into()];
        let args = HostArgs { artifact_root, max_artifact_bytes: 1, ..HostArgs::default() };
        let errors = args.validate(Path::new("/data")).expect_err("no such directory").0;
        let settings: Vec<_> = errors.iter().map(|error| error.setting).collect();
        assert_eq!(settings, ["--artifact-root", "--artifact-root", "--max-artifact-bytes"]);
    }
}
