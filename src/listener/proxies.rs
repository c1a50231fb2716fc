//! Who a request comes from: the peer, or what a proxy that is trusted says of it.

use std::net::IpAddr;

use axum::http::HeaderMap;
use ipnet::IpNet;

/// The address of the client, in each request's extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Client(pub IpAddr);

/// The client behind a request; None when requests are taken from proxies only and the peer is
/// none. Of the addresses that the proxies added, the last one that is no proxy itself counts:
/// what stands before it anybody could have written.
pub(super) fn client(peer: IpAddr, headers: &HeaderMap, proxies: &[IpNet]) -> Option<Client> {
    let peer = peer.to_canonical();
    if proxies.is_empty() {
        return Some(Client(peer));
    }
    let trusted = |address: &IpAddr| proxies.iter().any(|network| network.contains(address));
    if !trusted(&peer) {
        return None;
    }
    let mut client = peer;
    let lines: Vec<_> = headers.get_all("x-forwarded-for").iter().filter_map(|line| line.to_str().ok()).collect();
    for text in lines.iter().rev().flat_map(|line| line.rsplit(',')) {
        let Some(address) = address(text.trim()) else { break };
        client = address;
        if !trusted(&address) {
            break;
        }
    }
    Some(Client(client))
}

/// An address, also in brackets and with a port, as some proxies write it.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.split_once(']')).map_or(text, |(address, _)| address);
    let address: Option<IpAddr> = bare.parse().ok();
    address.or_else(|| Some(text.parse::<std::net::SocketAddr>().ok()?.ip())).map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(peer: &str, forwarded: &[&str], proxies: &[&str]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for line in forwarded {
            headers.append("x-forwarded-for", line.parse().expect("a value"));
        }
        let proxies: Vec<IpNet> = proxies.iter().map(|text| text.parse().expect("a network")).collect();
        client(peer.parse().expect("an address"), &headers, &proxies).map(|Client(address)| address.to_string())
    }

    #[test]
    fn without_proxies_nothing_is_believed() {
        assert_eq!(seen("192.0.2.1", &["10.9.9.9"], &[]).as_deref(), Some("192.0.2.1"));
    }

    #[test]
    fn with_proxies_others_are_not_let_in() {
        assert_eq!(seen("192.0.2.1", &["10.0.0.1"], &["10.0.0.0/8"]), None);
        assert_eq!(seen("::ffff:10.0.0.1", &[], &["10.0.0.0/8"]).as_deref(), Some("10.0.0.1"));
    }

    #[test]
    fn the_last_address_that_is_no_proxy_counts() {
        let proxies = ["10.0.0.0/8"];
        assert_eq!(seen("10.0.0.1", &["192.0.2.7"], &proxies).as_deref(), Some("192.0.2.7"));
        assert_eq!(seen("10.0.0.1", &["203.0.113.9, 192.0.2.7, 10.0.0.2"], &proxies).as_deref(), Some("192.0.2.7"));
        assert_eq!(seen("10.0.0.1", &["203.0.113.9", "192.0.2.7:4711"], &proxies).as_deref(), Some("192.0.2.7"));
        assert_eq!(seen("10.0.0.1", &["[2001:db8::1]:80"], &proxies).as_deref(), Some("2001:db8::1"));
        assert_eq!(seen("10.0.0.1", &["192.0.2.7, unknown"], &proxies).as_deref(), Some("10.0.0.1"));
    }
}
