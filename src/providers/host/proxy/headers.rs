//! Headers on their way through: what belongs to one connection alone is taken off, what the
//! instance should know of the client is put on.

use hyper::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE,
};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// The protocol that an `upgrade` asks for or agrees to.
pub(super) fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let wanted = headers.get_all(CONNECTION).iter().any(|value| tokens(value).any(|token| is(token, "upgrade")));
    if wanted { headers.get(UPGRADE).cloned() } else { None }
}

/// Takes off what is between two neighbours only.
pub(super) fn strip(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .flat_map(tokens)
            .filter(|token| !is(token, "close") && !is(token, "keep-alive"))
            .filter_map(|token| HeaderName::from_bytes(token.as_bytes()).ok())
            // What says how the message is framed, or for whom it is, cannot be named away.
            .filter(|name| *name != CONTENT_LENGTH && *name != HOST)
            .collect();
        for name in named {
            headers.remove(name);
        }
        headers.remove(CONNECTION);
    }
    // The length of a body in chunks is what its chunks say.
    if headers.remove(TRANSFER_ENCODING).is_some() {
        headers.remove(CONTENT_LENGTH);
    }
    for name in [&KEEP_ALIVE, &PROXY_CONNECTION, &PROXY_AUTHENTICATE, &PROXY_AUTHORIZATION, &TE, &UPGRADE] {
        headers.remove(name);
    }
}

/// Makes the client's headers those that an instance gets.
pub(super) fn to_instance(headers: &mut HeaderMap, client: &HeaderValue, host: &HeaderValue) {
    strip(headers);
    // The proxy itself tells the client to go on as soon as the instance wants the body.
    headers.remove(EXPECT);
    let forwarded_for = match join(headers, &FORWARDED_FOR) {
        Some(mut before) => {
            before.extend_from_slice(b", ");
            before.extend_from_slice(client.as_bytes());
            HeaderValue::from_maybe_shared(bytes::Bytes::from(before)).unwrap_or_else(|_| client.clone())
        }
        None => client.clone(),
    };
    headers.insert(FORWARDED_FOR, forwarded_for);
    headers.insert(FORWARDED_PROTO, HeaderValue::from_static("http"));
    headers.insert(FORWARDED_HOST, host.clone());
    headers.insert(HOST, host.clone());
}

/// Puts an upgrade back on.
pub(super) fn set_upgrade(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, protocol);
}

/// All values of a header as one.
fn join(headers: &HeaderMap, name: &HeaderName) -> Option<Vec<u8>> {
    let mut values = headers.get_all(name).iter();
    let mut joined = values.next()?.as_bytes().to_vec();
    for value in values {
        joined.extend_from_slice(b", ");
        joined.extend_from_slice(value.as_bytes());
    }
    Some(joined)
}

fn tokens(value: &HeaderValue) -> impl Iterator<Item = &str> {
    value.to_str().unwrap_or_default().split(',').map(str::trim).filter(|token| !token.is_empty())
}

const fn is(token: &str, name: &str) -> bool {
    token.eq_ignore_ascii_case(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn what_belongs_to_one_connection_is_taken_off() {
        let mut headers = map(&[
            ("connection", "close, X-Private"),
            ("connection", "content-length, host"),
            ("x-private", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("upgrade", "h2c"),
            ("proxy-authorization", "secret"),
            ("content-length", "5"),
            ("accept", "*/*"),
        ]);
        strip(&mut headers);
        assert_eq!(headers, map(&[("content-length", "5"), ("accept", "*/*")]));
    }

    #[test]
    fn chunks_win_over_a_length() {
        let mut headers = map(&[("transfer-encoding", "chunked"), ("content-length", "5")]);
        strip(&mut headers);
        assert!(headers.is_empty());
    }

    #[test]
    fn the_client_is_added_behind_those_before_it() {
        let mut headers =
            map(&[("x-forwarded-for", "10.0.0.1"), ("x-forwarded-for", "10.0.0.2"), ("x-forwarded-host", "forged")]);
        to_instance(&mut headers, &HeaderValue::from_static("127.0.0.1"), &HeaderValue::from_static("shop.example"));
        assert_eq!(
            headers,
            map(&[
                ("x-forwarded-for", "10.0.0.1, 10.0.0.2, 127.0.0.1"),
                ("x-forwarded-proto", "http"),
                ("x-forwarded-host", "shop.example"),
                ("host", "shop.example"),
            ])
        );
    }

    #[test]
    fn an_upgrade_needs_both_headers() {
        assert_eq!(
            upgrade(&map(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]))
                .as_ref()
                .map(HeaderValue::as_bytes),
            Some(&b"websocket"[..])
        );
        assert_eq!(upgrade(&map(&[("upgrade", "websocket")])), None);
        assert_eq!(upgrade(&map(&[("connection", "upgrade")])), None);
    }
}
