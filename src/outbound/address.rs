//! Which addresses may be called: each is judged when a name was looked up, or where it stands in a URL.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use ipnet::IpNet;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::Options;

/// An exception from the refusals: `10.1.0.0/16`, `127.0.0.1` or `hooks.internal:8443`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Allow {
    /// Addresses, on any port.
    Net(IpNet),
    /// A host as it stands in the URL (a name or an address), on one port.
    Host {
        /// In lower case, without the brackets of an IPv6 address.
        host: String,
        /// The only port that it is about.
        port: u16,
    },
}

/// The text is no allow entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is neither a network (`10.0.0.0/8`), an address, nor `host:port`")]
pub struct InvalidAllow(pub(super) String);

impl FromStr for Allow {
    type Err = InvalidAllow;
    fn from_str(text: &str) -> Result<Self, InvalidAllow> {
        if let Ok(net) = text.parse() {
            return Ok(Self::Net(net));
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Net(IpNet::from(address)));
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(|| InvalidAllow(text.to_owned()))?;
        let host = bare(host);
        match port.parse() {
            Ok(port) if !host.is_empty() && port > 0 => Ok(Self::Host { host: host.to_lowercase(), port }),
            _ => Err(InvalidAllow(text.to_owned())),
        }
    }
}

/// An address that configs may not reach.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{host}` is at {address}, {what}, which is not called without an allow entry; allow `{host}:{port}` or its \
     network in the server's settings if that is wanted"
)]
pub struct Refused {
    /// As it stands in the URL.
    pub host: String,
    /// What it was found to be.
    pub address: IpAddr,
    /// The port that was to be called.
    pub port: u16,
    /// What sort of address it is: `a loopback address`.
    pub what: &'static str,
}

/// The options, as they judge an address.
pub(super) struct Policy(pub Options);

impl Policy {
    /// Whether that address of the host may be called.
    pub fn judge(&self, host: &str, address: IpAddr, port: u16) -> Result<(), Refused> {
        let Some(what) = special(address) else { return Ok(()) };
        let entry = self.0.allow.iter().any(|entry| match entry {
            Allow::Net(net) => net.contains(&address),
            Allow::Host { host: allowed, port: at } => *at == port && allowed.eq_ignore_ascii_case(bare(host)),
        });
        if entry || (self.0.own_listeners)(address, port) {
            return Ok(());
        }
        Err(Refused { host: host.to_owned(), address, port, what })
    }
}

/// Looks a name up and passes on only addresses that may be called.
pub(super) struct Judging {
    pub policy: Arc<Policy>,
    pub port: u16,
}

impl Resolve for Judging {
    fn resolve(&self, name: Name) -> Resolving {
        let (policy, port, host) = (Arc::clone(&self.policy), self.port, name.as_str().to_owned());
        Box::pin(async move {
            let found = (policy.0.lookup)(host.clone()).await?;
            let mut refused = None;
            let mut allowed = Vec::new();
            for address in found {
                match policy.judge(&host, address, port) {
                    Ok(()) => allowed.push(SocketAddr::new(address, port)),
                    Err(error) => refused = Some(error),
                }
            }
            match refused {
                Some(refused) if allowed.is_empty() => Err(refused.into()),
                _ if allowed.is_empty() => Err("the name has no address".into()),
                _ => Ok(Box::new(allowed.into_iter()) as Addrs),
            }
        })
    }
}

/// What makes an address one that is not called without an allow entry; None for public ones.
pub(super) fn special(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(address) => special_v4(address),
        IpAddr::V6(address) => special_v6(address),
    }
}

fn special_v4(address: Ipv4Addr) -> Option<&'static str> {
    match address.octets() {
        _ if address.is_loopback() => Some("a loopback address"),
        _ if address.is_private() => Some("a private address"),
        [169, 254, 169, 254] | [168, 63, 129, 16] | [100, 100, 100, 200] => Some("a cloud's metadata address"),
        _ if address.is_link_local() => Some("a link-local address"),
        [100, 64..=127, ..] => Some("a shared address (carrier-grade NAT)"),
        [0, ..] => Some("an unspecified address"),
        _ if address.is_multicast() || address.is_broadcast() => Some("a multicast address"),
        [192, 0, 0 | 2, _] | [192, 88, 99, _] | [198, 18 | 19, ..] | [198, 51, 100, _] | [203, 0, 113, _] => {
            Some("an address for special use")
        }
        [240..=255, ..] => Some("a reserved address"),
        _ => None,
    }
}

fn special_v6(address: Ipv6Addr) -> Option<&'static str> {
    match address.segments() {
        _ if address.is_loopback() => Some("a loopback address"),
        _ if address.is_unspecified() => Some("an unspecified address"),
        // These carry an IPv4 address inside: they would lead around the rules for those.
        [0, 0, 0, 0, 0, 0xffff, ..] => Some("an IPv4-mapped address"),
        [0, 0, 0, 0, 0, 0, ..] | [0x64, 0xff9b, ..] | [0x2002, ..] | [0x2001, 0, ..] => {
            Some("an address that embeds an IPv4 address")
        }
        [0xfc00..=0xfdff, ..] => Some("a private address"),
        [0xfe80..=0xfebf, ..] => Some("a link-local address"),
        [0xff00..=0xffff, ..] => Some("a multicast address"),
        [0x2001, 0x1..=0x1ff, ..] | [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => Some("an address for special use"),
        [0x2000..=0x3fff, ..] => None,
        _ => Some("an address that is not public"),
    }
}

/// A host without the brackets around an IPv6 address.
pub(super) fn bare(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}
