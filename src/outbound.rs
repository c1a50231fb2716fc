//! The one way out: every HTTP call that configs can aim goes through here. Each connection's
//! resolved address is judged, and so is each redirect; loopback, private and other special ranges
//! need an allow entry, but for listeners of Gennaker's own load balancers.

mod address;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use reqwest::header::{self, HeaderMap, HeaderName};
use reqwest::{Client, Method, StatusCode, Url};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};

pub use address::{Allow, InvalidAllow, Refused};
use address::{Judging, Policy, bare};

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
    /// Those are let through too.
    pub own_listeners: OwnListeners,
    /// The system's resolver by default.
    pub lookup: Lookup,
    /// For the connection alone, TLS included.
    pub connect_timeout: Duration,
    /// More of a body is not read.
    pub body_bytes_max: usize,
    /// One more ends the call with [`Error::TooManyRedirects`].
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

/// A call to make.
#[derive(Debug, Clone)]
pub struct Request {
    /// Of the first call; redirects may turn it into GET.
    pub method: Method,
    /// `http` or `https`, without user and password.
    pub url: String,
    /// Of the first call; a redirect to another origin carries none of them.
    pub headers: HeaderMap,
    /// None: no body.
    pub body: Option<Vec<u8>>,
    /// For all of it, redirects and body included.
    pub timeout: Duration,
}

/// What came back.
#[derive(Debug, Clone)]
pub struct Response {
    /// Of the last answer, redirects followed.
    pub status: StatusCode,
    /// Of the last answer.
    pub headers: HeaderMap,
    /// At most [`Options::body_bytes_max`] of it.
    pub body: Bytes,
    /// The body was longer than what is read of one.
    pub truncated: bool,
}

/// The call did not work out. Never holds headers or bodies.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The URL does not hold; nothing was called.
    #[error("`{url}` cannot be called: {reason}")]
    Url {
        /// As given, without what may be secret in it.
        url: String,
        /// Why.
        reason: &'static str,
    },
    /// An address that may not be reached; there was no connection to it.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The last of them was not followed.
    #[error("`{host}` answered with more than {max} redirects")]
    TooManyRedirects {
        /// Who sent it.
        host: String,
        /// [`Options::redirects_max`].
        max: usize,
    },
    /// A redirect that leads where the call must not go.
    #[error("`{host}` redirects to `{to}`, which is not followed: {reason}")]
    Redirect {
        /// Who sent it.
        host: String,
        /// Where to, without what may be secret in it.
        to: String,
        /// Why it is not followed.
        reason: &'static str,
    },
    /// The request was not sent.
    #[error("no connection to `{host}`: {cause}")]
    Connect {
        /// Who was called.
        host: String,
        /// The error beneath.
        cause: String,
    },
    /// It took longer than it may, at whatever point.
    #[error("`{host}` did not answer within {} ms", .after.as_millis())]
    Timeout {
        /// Who was called.
        host: String,
        /// [`Request::timeout`].
        after: Duration,
    },
    /// It broke on the way.
    #[error("the connection to `{host}` failed: {cause}")]
    Transport {
        /// Who was called.
        host: String,
        /// The error beneath.
        cause: String,
    },
    /// The client could not be set up; nothing was called.
    #[error("the HTTP client could not be made: {0}")]
    Client(String),
    /// Of a download only.
    #[error("`{host}` answered {status}")]
    Status {
        /// Who answered.
        host: String,
        /// What.
        status: StatusCode,
    },
    /// Of a download only.
    #[error("what `{host}` sends has more than {max} bytes")]
    TooLarge {
        /// Who sends it.
        host: String,
        /// How much was allowed.
        max: u64,
    },
    /// Of a download only: where it goes to, not where it comes from.
    #[error("what `{host}` sends cannot be written: {cause}")]
    Write {
        /// Who sends it.
        host: String,
        /// The system's word.
        cause: std::io::Error,
    },
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
    /// A client under these rules; nothing is connected yet.
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
