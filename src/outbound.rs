//! The one way out: every HTTP call that configs can aim goes through here. Each connection's
//! resolved address is judged, and so is each redirect; loopback, private and other special ranges
//! need an allow entry, but for listeners of Gennaker's own load balancers.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use ipnet::IpNet;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{self, HeaderMap, HeaderName};
use reqwest::{Client, Method, StatusCode, Url};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};

/// One client is kept for each port in use; with more ports than this they are made anew.
const CLIENTS_MAX: usize = 64;

/// Looks a host name up.
pub type Lookup = Arc<dyn Fn(String) -> BoxFuture<'static, std::io::Result<Vec<IpAddr>>> + Send + Sync>;
/// Whether an address and port are one of Gennaker's own load balancers.
pub type OwnListeners = Arc<dyn Fn(IpAddr, u16) -> bool + Send + Sync>;

/// What may be called, and its limits.
#[derive(Clone)]
pub struct Options {
    /// What is let through beside public addresses.
    pub allow: Vec<Allow>,
    pub own_listeners: OwnListeners,
    /// The system's resolver by default.
    pub lookup: Lookup,
    pub connect_timeout: Duration,
    /// More of a body is not read.
    pub body_bytes_max: usize,
    pub redirects_max: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            allow: Vec::new(),
            own_listeners: Arc::new(|_, _| false),
            lookup: Arc::new(|host| {
                Box::pin(async move {
                    let found = tokio::net::lookup_host((host, 0)).await?;
                    Ok(found.map(|address| address.ip()).collect())
                })
            }),
            connect_timeout: Duration::from_secs(10),
            body_bytes_max: 1024 * 1024,
            redirects_max: 5,
        }
    }
}

/// An exception from the refusals: `10.1.0.0/16`, `127.0.0.1` or `hooks.internal:8443`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Allow {
    /// Addresses, on any port.
    Net(IpNet),
    /// A host as it stands in the URL (a name or an address), on one port.
    Host { host: String, port: u16 },
}

/// The text is no allow entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is neither a network (`10.0.0.0/8`), an address, nor `host:port`")]
pub struct InvalidAllow(String);

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

/// A call to make.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: Method,
    /// `http` or `https`, without user and password.
    pub url: String,
    pub headers: HeaderMap,
    pub body: Option<Vec<u8>>,
    /// For all of it, redirects and body included.
    pub timeout: Duration,
}

/// What came back.
#[derive(Debug, Clone)]
pub struct Response {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// The body was longer than what is read of one.
    pub truncated: bool,
}

/// The call did not work out. Never holds headers or bodies.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("`{url}` cannot be called: {reason}")]
    Url { url: String, reason: &'static str },
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error("`{host}` answered with more than {max} redirects")]
    TooManyRedirects { host: String, max: usize },
    #[error("`{host}` redirects to `{to}`, which is not followed: {reason}")]
    Redirect { host: String, to: String, reason: &'static str },
    #[error("no connection to `{host}`: {cause}")]
    Connect { host: String, cause: String },
    #[error("`{host}` did not answer within {} ms", .after.as_millis())]
    Timeout { host: String, after: Duration },
    #[error("the connection to `{host}` failed: {cause}")]
    Transport { host: String, cause: String },
    #[error("the HTTP client could not be made: {0}")]
    Client(String),
    /// Of a download only.
    #[error("`{host}` answered {status}")]
    Status { host: String, status: StatusCode },
    /// Of a download only.
    #[error("what `{host}` sends has more than {max} bytes")]
    TooLarge { host: String, max: u64 },
    /// Of a download only: where it goes to, not where it comes from.
    #[error("what `{host}` sends cannot be written: {cause}")]
    Write { host: String, cause: std::io::Error },
}

impl Error {
    /// Whether the other side may have seen the request; if not, it may be made again by anyone.
    #[must_use]
    pub const fn may_have_been_received(&self) -> bool {
        matches!(
            self,
            Self::Timeout { .. }
                | Self::Transport { .. }
                | Self::Status { .. }
                | Self::TooLarge { .. }
                | Self::Write { .. }
        )
    }
}

/// An address that configs may not reach.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{host}` is at {address}, {what}, which is not called without an allow entry; allow `{host}:{port}` or its \
     network in the server's settings if that is wanted"
)]
pub struct Refused {
    pub host: String,
    pub address: IpAddr,
    pub port: u16,
    /// What sort of address it is: `a loopback address`.
    pub what: &'static str,
}

/// The guarded client. Cheap to clone.
#[derive(Clone)]
pub struct Outbound {
    policy: Arc<Policy>,
    clients: Arc<Mutex<BTreeMap<u16, Client>>>,
}

impl fmt::Debug for Outbound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbound").field("allow", &self.policy.0.allow).finish_non_exhaustive()
    }
}

impl Outbound {
    #[must_use]
    pub fn new(options: Options) -> Self {
        // The second of two calls, or another part that installed it first, is fine.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self { policy: Arc::new(Policy(options)), clients: Arc::default() }
    }

    /// Makes the call and follows its redirects, judging every address on the way.
    ///
    /// # Errors
    /// See [`Error`]; an answer of any status is no error.
    pub async fn send(&self, request: Request) -> Result<Response, Error> {
        let timeout = request.timeout;
        let (response, host) = self.follow(request).await?;
        self.read(response, &host, timeout).await
    }

    /// Gets a URL and writes its body as it comes, judging as [`Outbound::send`] does; the number of
    /// bytes. After an error, what was written is of no use.
    ///
    /// # Errors
    /// See [`Error`]; a status other than 200 to 299 and a body of more than `max` bytes are errors.
    pub async fn download(
        &self,
        url: &str,
        max: u64,
        timeout: Duration,
        writer: &mut (impl AsyncWrite + Unpin + Send),
    ) -> Result<u64, Error> {
        let request =
            Request { method: Method::GET, url: url.to_owned(), headers: HeaderMap::new(), body: None, timeout };
        let (mut response, host) = self.follow(request).await?;
        let status = response.status();
        if !status.is_success() {
            return Err(Error::Status { host, status });
        }
        let mut bytes = 0_u64;
        while let Some(chunk) = response.chunk().await.map_err(|error| failure(&error, &host, timeout))? {
            bytes += chunk.len() as u64;
            if bytes > max {
                return Err(Error::TooLarge { host, max });
            }
            writer.write_all(&chunk).await.map_err(|cause| Error::Write { host: host.clone(), cause })?;
        }
        writer.flush().await.map_err(|cause| Error::Write { host, cause })?;
        Ok(bytes)
    }

    /// The first answer that is no redirect, and the host that gave it.
    async fn follow(&self, request: Request) -> Result<(reqwest::Response, String), Error> {
        let started = tokio::time::Instant::now();
        let Request { mut method, url, mut headers, mut body, timeout } = request;
        let mut url = checked(&url)?;
        for _ in 0..=self.policy.0.redirects_max {
            let left = timeout.saturating_sub(started.elapsed());
            let host = host_of(&url).to_owned();
            if left.is_zero() {
                return Err(Error::Timeout { host, after: timeout });
            }
            let response = self.hop(&method, &url, &headers, body.as_deref(), left, timeout).await?;
            let Some(to) = redirect_of(&response, &url) else {
                return Ok((response, host));
            };
            let next = checked(&to).map_err(|error| match error {
                Error::Url { reason, .. } => Error::Redirect { host: host.clone(), to: shown(&to), reason },
                other => other,
            })?;
            if url.scheme() == "https" && next.scheme() == "http" {
                return Err(Error::Redirect { host, to: shown(&to), reason: "it leaves https" });
            }
            let same_method = matches!(response.status().as_u16(), 307 | 308);
            if !same_method && method != Method::HEAD {
                method = Method::GET;
                body = None;
                headers.remove(header::CONTENT_TYPE);
            }
            if url.origin() != next.origin() {
                if body.is_some() {
                    return Err(Error::Redirect {
                        host,
                        to: shown(&to),
                        reason: "it would carry the body to another origin",
                    });
                }
                // What was meant for the first origin, credentials above all, stays there.
                headers = HeaderMap::new();
            }
            url = next;
        }
        Err(Error::TooManyRedirects { host: host_of(&url).to_owned(), max: self.policy.0.redirects_max })
    }

    async fn hop(
        &self,
        method: &Method,
        url: &Url,
        headers: &HeaderMap,
        body: Option<&[u8]>,
        left: Duration,
        timeout: Duration,
    ) -> Result<reqwest::Response, Error> {
        let port = url.port_or_known_default().unwrap_or_default();
        // A literal address is never looked up, so it is judged here.
        if let Ok(address) = bare(host_of(url)).parse() {
            self.policy.judge(host_of(url), address, port)?;
        }
        let mut request =
            self.client(port)?.request(method.clone(), url.clone()).headers(headers.clone()).timeout(left);
        if let Some(body) = body {
            request = request.body(body.to_vec());
        }
        request.send().await.map_err(|error| failure(&error, host_of(url), timeout))
    }

    async fn read(&self, mut response: reqwest::Response, host: &str, timeout: Duration) -> Result<Response, Error> {
        let max = self.policy.0.body_bytes_max;
        let (status, headers) = (response.status(), std::mem::take(response.headers_mut()));
        let mut body = BytesMut::new();
        let mut truncated = false;
        while let Some(chunk) = response.chunk().await.map_err(|error| failure(&error, host, timeout))? {
            let room = max - body.len();
            body.extend_from_slice(&chunk[..chunk.len().min(room)]);
            if chunk.len() > room {
                truncated = true;
                break;
            }
        }
        Ok(Response { status, headers, body: body.freeze(), truncated })
    }

    /// The client for a port: its resolver knows the port, and so can judge by it.
    fn client(&self, port: u16) -> Result<Client, Error> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&port) {
            return Ok(client.clone());
        }
        let builder = || {
            Client::builder()
                .user_agent(concat!("gennaker/", env!("CARGO_PKG_VERSION")))
                .dns_resolver(Arc::new(Judging { policy: Arc::clone(&self.policy), port }))
                .redirect(reqwest::redirect::Policy::none())
                .retry(reqwest::retry::never())
                .connect_timeout(self.policy.0.connect_timeout)
                // Every call makes its connection, and so is judged.
                .pool_max_idle_per_host(0)
                .referer(false)
                .no_proxy()
                .http1_only()
        };
        // A machine without any root certificate can still call `http`.
        let client = builder()
            .build()
            .or_else(|_| builder().tls_certs_only([]).build())
            .map_err(|error| Error::Client(chain(&error)))?;
        if clients.len() >= CLIENTS_MAX {
            clients.clear();
        }
        clients.insert(port, client.clone());
        Ok(client)
    }
}

struct Policy(Options);

impl Policy {
    fn judge(&self, host: &str, address: IpAddr, port: u16) -> Result<(), Refused> {
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
struct Judging {
    policy: Arc<Policy>,
    port: u16,
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
fn special(address: IpAddr) -> Option<&'static str> {
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

fn checked(text: &str) -> Result<Url, Error> {
    let fault = |reason| Error::Url { url: shown(text), reason };
    let url = Url::parse(text).map_err(|_| fault("it is not a URL"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(fault("only http and https are"));
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err(fault("it names no host"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(fault("it holds a user or password; give them in a header, as a secret"));
    }
    Ok(url)
}

fn host_of(url: &Url) -> &str {
    url.host_str().unwrap_or_default()
}

/// A host without the brackets around an IPv6 address.
fn bare(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

/// Where a redirect leads, as an absolute URL.
fn redirect_of(response: &reqwest::Response, url: &Url) -> Option<String> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return None;
    }
    let to = response.headers().get(HeaderName::from_static("location"))?;
    let to = String::from_utf8_lossy(to.as_bytes()).into_owned();
    Some(url.join(&to).map_or(to, String::from))
}

fn failure(error: &reqwest::Error, host: &str, timeout: Duration) -> Error {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(cause) = source {
        if let Some(refused) = cause.downcast_ref::<Refused>() {
            return Error::Refused(refused.clone());
        }
        source = cause.source();
    }
    let host = host.to_owned();
    if error.is_connect() {
        Error::Connect { host, cause: root_cause(error) }
    } else if error.is_timeout() {
        Error::Timeout { host, after: timeout }
    } else {
        Error::Transport { host, cause: root_cause(error) }
    }
}

/// The innermost cause: the others only repeat that something failed, some with the URL.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut inner = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    shown(&inner.to_string())
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// A URL or cause as errors show it: without its query, which may hold what is nobody's business, and cut.
fn shown(text: &str) -> String {
    let text = text.split_once('?').map_or(text, |(before, _)| before);
    text.chars().filter(|character| !character.is_control()).take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::Router;
    use axum::response::Redirect;
    use axum::routing::{any, get};
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn get_of(url: &str) -> Request {
        Request {
            method: Method::GET,
            url: url.to_owned(),
            headers: HeaderMap::new(),
            body: None,
            timeout: Duration::from_secs(10),
        }
    }

    async fn serve(router: Router) -> SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        tokio::spawn(async move { axum::serve(listener, router).await });
        address
    }

    fn allowing(entries: &[&str]) -> Options {
        Options { allow: entries.iter().map(|text| text.parse().expect("an entry")).collect(), ..Options::default() }
    }

    /// `public.test` looks like a host on the internet but leads to `address`.
    fn named(address: &'static str) -> Lookup {
        Arc::new(move |_| Box::pin(async move { Ok(vec![address.parse().expect("an address")]) }))
    }

    #[test]
    fn special_ranges_are_known_by_address() {
        for text in [
            "127.0.0.1",
            "127.8.9.1",
            "10.0.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "169.254.1.1",
            "100.64.0.1",
            "100.127.255.255",
            "0.0.0.0",
            "0.1.2.3",
            "224.0.0.1",
            "255.255.255.255",
            "240.0.0.1",
            "192.0.0.192",
            "198.18.0.1",
            "168.63.129.16",
            "::1",
            "::",
            "::ffff:8.8.8.8",
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "2001:db8::1",
            "2001::1",
            "100::1",
        ] {
            assert!(special(text.parse().expect(text)).is_some(), "{text}");
        }
        for text in ["8.8.8.8", "1.1.1.1", "172.32.0.1", "100.128.0.1", "192.0.1.1", "2606:4700::1111", "2a00:1450::1"]
        {
            assert_eq!(special(text.parse().expect(text)), None, "{text}");
        }
    }

    #[test]
    fn allow_entries_are_networks_addresses_or_host_and_port() {
        let net = |text: &str| Allow::Net(text.parse().expect("a network"));
        let host = |host: &str, port| Allow::Host { host: host.into(), port };
        assert_eq!("10.0.0.0/8".parse(), Ok(net("10.0.0.0/8")));
        assert_eq!("::1".parse(), Ok(net("::1/128")));
        assert_eq!("127.0.0.1".parse(), Ok(net("127.0.0.1/32")));
        assert_eq!("127.0.0.1:80".parse(), Ok(host("127.0.0.1", 80)));
        assert_eq!("[::1]:80".parse(), Ok(host("::1", 80)));
        assert_eq!("Hooks.Internal:8443".parse(), Ok(host("hooks.internal", 8443)));
        for text in ["", "internal", "internal:", ":80", "internal:0", "internal:99999"] {
            assert_eq!(text.parse::<Allow>(), Err(InvalidAllow(text.into())), "{text}");
        }
    }

    #[tokio::test]
    async fn a_local_server_is_refused_unless_an_entry_or_a_listener_of_ours_says_otherwise() {
        static CALLS: AtomicUsize = AtomicUsize::new(0);
        let address = serve(Router::new().route(
            "/",
            get(|| async {
                CALLS.fetch_add(1, Ordering::SeqCst);
                "hello"
            }),
        ))
        .await;
        let port = address.port();
        let urls = [
            format!("http://127.0.0.1:{port}/"),
            format!("http://localhost:{port}/"),
            format!("http://0x7f.1:{port}/"),
            format!("http://[::ffff:127.0.0.1]:{port}/"),
            format!("http://2130706433:{port}/"),
        ];
        let guarded = Outbound::new(Options::default());
        for url in &urls {
            let refused = guarded.send(get_of(url)).await;
            assert!(matches!(refused, Err(Error::Refused(_))), "{url}: {refused:?}");
        }
        let elsewhere = Outbound::new(allowing(&["10.0.0.0/8", "127.0.0.1:1", "localhost:1"]));
        for url in &urls {
            assert!(matches!(elsewhere.send(get_of(url)).await, Err(Error::Refused(_))), "{url}");
        }
        assert_eq!(CALLS.load(Ordering::SeqCst), 0);

        let own: OwnListeners = Arc::new(move |ip, at| ip == address.ip() && at == port);
        for options in [
            allowing(&["127.0.0.0/8"]),
            allowing(&[&format!("127.0.0.1:{port}")]),
            Options { own_listeners: own, ..Options::default() },
        ] {
            let answer = Outbound::new(options).send(get_of(&urls[0])).await.expect("it is allowed");
            assert_eq!((answer.status.as_u16(), &*answer.body), (200, &b"hello"[..]));
        }
        let by_name =
            Outbound::new(Options { lookup: named("127.0.0.1"), ..allowing(&[&format!("hooks.internal:{port}")]) });
        assert!(by_name.send(get_of(&format!("http://hooks.internal:{port}/"))).await.is_ok());
        let refused = by_name.send(get_of(&format!("http://public.test:{port}/"))).await;
        assert!(matches!(refused, Err(Error::Refused(_))), "a public name that leads inside: {refused:?}");
    }

    #[tokio::test]
    async fn a_redirect_is_judged_as_the_first_call_is() {
        let inner = serve(Router::new().route("/secret", any(|| async { "inner" }))).await;
        let to = format!("http://127.0.0.1:{}/secret", inner.port());
        let outer = serve(
            Router::new()
                .route(
                    "/out",
                    get({
                        let to = to.clone();
                        move || async move { Redirect::temporary(&to) }
                    }),
                )
                .route(
                    "/post",
                    any({
                        let to = to.clone();
                        move || async move { Redirect::temporary(&to) }
                    }),
                )
                .route("/loop", get(|| async { Redirect::to("/loop") }))
                .route("/relative", any(|| async { Redirect::to("here") }))
                .route("/here", get(|headers: HeaderMap| async move { format!("{:?}", headers.get("x-token")) }))
                .route("/file", get(|| async { Redirect::to("file:///etc/passwd") })),
        )
        .await;
        let port = outer.port();
        let client = Outbound::new(allowing(&[&format!("127.0.0.1:{port}")]));
        let at = |path: &str| format!("http://127.0.0.1:{port}{path}");

        let refused = client.send(get_of(&at("/out"))).await;
        assert!(matches!(&refused, Err(Error::Refused(refused)) if refused.port == inner.port()), "{refused:?}");
        let looped = client.send(get_of(&at("/loop"))).await;
        assert!(matches!(looped, Err(Error::TooManyRedirects { max: 5, .. })), "{looped:?}");
        let file = client.send(get_of(&at("/file"))).await;
        assert!(matches!(file, Err(Error::Redirect { .. })), "{file:?}");
        let mut post = Request { method: Method::POST, body: Some(b"x".to_vec()), ..get_of(&at("/relative")) };
        post.headers.insert("x-token", "t".parse().expect("a value"));
        let followed = client.send(post).await.expect("it stays at home");
        assert_eq!(&*followed.body, b"Some(\"t\")");

        let both = Outbound::new(allowing(&["127.0.0.1"]));
        assert_eq!(&*both.send(get_of(&at("/out"))).await.expect("both are allowed").body, b"inner");
        let post = Request { method: Method::POST, body: Some(b"x".to_vec()), ..get_of(&at("/post")) };
        let carried = both.send(post).await;
        assert!(matches!(carried, Err(Error::Redirect { .. })), "{carried:?}");
    }

    #[tokio::test]
    async fn bodies_and_waiting_have_limits_and_other_schemes_are_refused() {
        let address = serve(
            Router::new()
                .route("/large", get(|| async { "x".repeat(3000) }))
                .route("/never", get(|| async { std::future::pending::<()>().await })),
        )
        .await;
        let client = Outbound::new(Options { body_bytes_max: 1000, ..allowing(&["127.0.0.1"]) });
        let large = client.send(get_of(&format!("http://{address}/large"))).await.expect("an answer");
        assert_eq!((large.body.len(), large.truncated), (1000, true));
        let never = get_of(&format!("http://{address}/never"));
        let never = client.send(Request { timeout: Duration::from_millis(200), ..never }).await;
        assert!(matches!(&never, Err(error @ Error::Timeout { .. }) if error.may_have_been_received()), "{never:?}");
        for url in ["ftp://example.com/", "file:///etc/passwd", "nothing", "http://", "http://u:p@127.0.0.1/"] {
            assert!(matches!(client.send(get_of(url)).await, Err(Error::Url { .. })), "{url}");
        }
        let closed = client.send(get_of("http://127.0.0.1:1/")).await;
        assert!(matches!(&closed, Err(error @ Error::Connect { .. }) if !error.may_have_been_received()), "{closed:?}");
    }

    #[tokio::test]
    async fn a_download_is_judged_bounded_and_written_as_it_comes() {
        let address = serve(
            Router::new()
                .route("/file", get(|| async { "x".repeat(3_000_000) }))
                .route("/moved", get(|| async { Redirect::temporary("/file") }))
                .route("/never", get(|| async { std::future::pending::<()>().await })),
        )
        .await;
        let client = Outbound::new(Options { lookup: named("127.0.0.1"), ..allowing(&["127.0.0.1"]) });
        let soon = Duration::from_secs(10);
        let at = |path: &str| format!("http://{address}{path}");
        for path in ["/file", "/moved"] {
            let mut written = Vec::new();
            let bytes = client.download(&at(path), 3_000_000, soon, &mut written).await.expect("as large as may be");
            assert_eq!((bytes, written.len()), (3_000_000, 3_000_000), "{path}");
        }
        let mut written = Vec::new();
        let large = client.download(&at("/file"), 2_999_999, soon, &mut written).await;
        assert!(matches!(large, Err(Error::TooLarge { max: 2_999_999, .. })), "{large:?}");
        assert!(written.len() <= 2_999_999);
        let missing = client.download(&at("/none"), 1, soon, &mut Vec::new()).await;
        assert!(matches!(missing, Err(Error::Status { status: StatusCode::NOT_FOUND, .. })), "{missing:?}");
        let never = client.download(&at("/never"), 1, Duration::from_millis(200), &mut Vec::new()).await;
        assert!(matches!(never, Err(Error::Timeout { .. })), "{never:?}");

        let guarded = Outbound::new(Options { lookup: named("127.0.0.1"), ..Options::default() });
        for url in [at("/file"), format!("http://public.test:{}/file", address.port())] {
            let mut written = Vec::new();
            let refused = guarded.download(&url, 3_000_000, soon, &mut written).await;
            assert!(matches!(refused, Err(Error::Refused(_))), "{url}: {refused:?}");
            assert!(written.is_empty());
        }
    }
}
