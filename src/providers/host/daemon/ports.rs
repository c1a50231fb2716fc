//! Which port an instance gets: from a configured range, not given to another, not one that the
//! system gives to outgoing connections, and free now.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};

use super::PortRange;

/// A port that nobody holds, from a starting point on, so that one that was just given back rests.
#[must_use]
pub fn free(range: PortRange, taken: &BTreeSet<u16>, after: u16) -> Option<u16> {
    first(range.usable(), taken, after)
}

fn first(usable: impl Iterator<Item = u16> + Clone, taken: &BTreeSet<u16>, after: u16) -> Option<u16> {
    let behind = usable.clone().filter(|port| *port > after);
    behind.chain(usable.filter(|port| *port <= after)).find(|port| !taken.contains(port) && is_free(*port))
}

/// Whether a listener can be opened on it, on loopback and on all addresses.
#[must_use]
pub fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
        && TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok()
        // A machine without IPv6 cannot hold the port there either.
        && match TcpListener::bind((Ipv6Addr::LOCALHOST, port)) {
            Ok(_) => true,
            Err(error) => error.kind() != std::io::ErrorKind::AddrInUse,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_is_taken_is_passed_over() {
        let held = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("binds");
        let port = held.local_addr().expect("has one").port();
        assert!(!is_free(port));
        let only = port..=port;
        assert_eq!(first(only.clone(), &BTreeSet::new(), 0), None);
        drop(held);
        assert_eq!(first(only.clone(), &BTreeSet::new(), 0), Some(port));
        assert_eq!(first(only.clone(), &BTreeSet::new(), port), Some(port), "the only one, though it was just given");
        assert_eq!(first(only, &BTreeSet::from([port]), 0), None);
    }
}
