//! A client of the GraphQL API over real HTTP and a real WebSocket (`graphql-transport-ws`): what
//! the demo drives its own server with, and what the tests talk through.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use rustls::CertificateError;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::{self, Message};

use super::view::visible;

/// Longest wait for an answer to a query or for the handshake of a subscription.
const TIMEOUT: Duration = Duration::from_secs(30);
/// From one ping of ours to the next, so that a silent connection is noticed.
const PING: Duration = Duration::from_secs(10);

/// The API did not give what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No server, or it went away.
    #[error("{url} cannot be reached: {message}")]
    Unreachable {
        /// What was asked.
        url: String,
        /// Why.
        message: String,
    },
    /// An answer that is none of GraphQL: the beginning of it.
    #[error("{url} does not answer as Gennaker does (status {status}){body}")]
    Status {
        /// What was asked.
        url: String,
        /// The HTTP status.
        status: u16,
        /// Its beginning, with what sets it off from the text before it.
        body: String,
    },
    /// The answer has errors.
    #[error("{}", first_message(.0))]
    GraphQl(Vec<Value>),
    /// The mutation was refused: its `userErrors`.
    #[error("{}", first_message(.0))]
    Refused(Vec<Value>),
    /// A file of certificates does not serve.
    #[error("certificates cannot be read from {}: {message}", file.display())]
    Certificates {
        /// The file.
        file: PathBuf,
        /// Why.
        message: String,
    },
    /// The WebSocket was closed before the subscription was over.
    #[error("the subscription broke off: {0}")]
    Broken(String),
    /// A list that has to be taken whole has more than that.
    #[error("`{list}` has {count} items, and a command takes {most} of a list; name a part of it")]
    TooMany {
        /// The field that has it.
        list: String,
        /// Items that there are.
        count: u64,
        /// Items that would be taken.
        most: usize,
    },
}

impl Error {
    /// Whether the same may work when the server is back: there was no answer, or only that there is
    /// none now.
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Status { status, .. } => matches!(status, 429 | 502..=504),
            _ => self.is_no_answer(),
        }
    }

    /// Whether there is no answer of a server of ours, or only that there is none now.
    #[must_use]
    pub fn is_no_answer(&self) -> bool {
        matches!(self.code(), Some("UNREACHABLE" | "UNAVAILABLE"))
    }

    /// Whether what was asked for is at fault, and not the server or who asks.
    #[must_use]
    pub fn is_about_input(&self) -> bool {
        const CODES: [&str; 7] = [
            "NOT_FOUND",
            "CONFLICT",
            "INVALID",
            "WRONG_STATE",
            "IDEMPOTENCY_KEY_REUSED",
            "BAD_REQUEST",
            "GRAPHQL_VALIDATION_FAILED",
        ];
        self.code().is_some_and(|code| CODES.contains(&code))
    }

    /// All that is wrong with what was asked for.
    ///
    /// # Errors
    /// Itself, where something else is at fault.
    pub fn about_input(self) -> Result<Vec<Value>, Self> {
        if !self.is_about_input() {
            return Err(self);
        }
        match self {
            Self::GraphQl(errors) | Self::Refused(errors) => Ok(errors),
            other => Err(other),
        }
    }

    /// The `code` of the first error of either kind, or the one that says the same.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::GraphQl(errors) => errors.first()?.pointer("/extensions/code")?.as_str(),
            Self::Refused(errors) => errors.first()?.get("code")?.as_str(),
            Self::Status { status: 401, .. } => Some("UNAUTHENTICATED"),
            Self::Status { status: 403, .. } => Some("FORBIDDEN"),
            Self::Status { status: 502..=504, .. } => Some("UNAVAILABLE"),
            Self::Certificates { .. } => Some("INVALID"),
            Self::Unreachable { .. } | Self::Broken(_) | Self::Status { .. } => Some("UNREACHABLE"),
            Self::TooMany { .. } => None,
        }
    }
}

fn first_message(errors: &[Value]) -> String {
    let Some(error) = errors.first() else { return "refused without a reason".to_owned() };
    let message = error["message"].as_str().unwrap_or("refused");
    match error["field"].as_array() {
        Some(field) if !field.is_empty() => {
            let path: Vec<_> = field.iter().filter_map(Value::as_str).collect();
            format!("{message} (at {})", path.join("."))
        }
        _ => message.to_owned(),
    }
}

/// A client. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    /// `http://127.0.0.1:7777`
    base: String,
    token: Option<String>,
    /// What the certificates of `https` are checked against; made once, when needed.
    tls: Option<Arc<rustls::ClientConfig>>,
}

impl Client {
    /// A client of the server at that URL, which has no path.
    ///
    /// # Errors
    /// When the HTTP client cannot be made.
    pub fn new(base: &str, token: Option<&str>) -> Result<Self, Error> {
        let http = reqwest::Client::builder()
            .no_proxy()
            .timeout(TIMEOUT)
            // Nothing is checked against them, and a machine may have none.
            .tls_certs_only([])
            .build()
            .map_err(|error| Error::Unreachable { url: base.to_owned(), message: error.to_string() })?;
        Ok(Self { http, base: base.trim_end_matches('/').to_owned(), token: token.map(str::to_owned), tls: None })
    }

    /// A client of a server anywhere, by `http` or `https`. Certificates are checked against those
    /// of the system (or of Mozilla where the system has none), and those in the file.
    ///
    /// # Errors
    /// When the file has no certificates.
    pub fn anywhere(base: &str, token: Option<&str>, ca_file: Option<&Path>) -> Result<Self, Error> {
        if !base.starts_with("https://") {
            return Self::new(base, token);
        }
        let tls = tls(ca_file)?;
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls.clone())
            .timeout(TIMEOUT)
            .build()
            .map_err(|error| Error::Unreachable { url: base.to_owned(), message: error.to_string() })?;
        Ok(Self { http, tls: Some(Arc::new(tls)), ..Self::new(base, token)? })
    }

    /// The server's URL.
    #[must_use]
    pub fn base(&self) -> &str {
        &self.base
    }

    /// The same server as somebody else.
    #[must_use]
    pub fn with_token(&self, token: Option<&str>) -> Self {
        Self { token: token.map(str::to_owned), ..self.clone() }
    }

    /// Sends a document and gives the status and the answer as they are.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn post(&self, document: &str, variables: &Value) -> Result<(u16, Value), Error> {
        let mut request = self
            .http
            .post(format!("{}/graphql", self.base))
            // With it, the status says whether the request itself was in order.
            .header(reqwest::header::ACCEPT, "application/graphql-response+json, application/json;q=0.9")
            .json(&json!({ "query": document, "variables": variables }));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        let answer = request.send().await.map_err(|error| {
            // Somebody was there; what came was no HTTP.
            let tls = (self.tls.is_none() && !error.is_connect() && !error.is_timeout())
                .then(|| format!("if it speaks TLS, write {}", self.base.replacen("http:", "https:", 1)));
            self.unreachable(&error, tls)
        })?;
        let status = answer.status().as_u16();
        let body = answer.bytes().await.map_err(|error| self.unreachable(&error, None))?;
        let value = serde_json::from_slice(&body)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&body).into_owned()));
        Ok((status, value))
    }

    /// The data of a query or mutation.
    ///
    /// # Errors
    /// When there is no data, or there are errors beside it.
    pub async fn query(&self, document: &str, variables: Value) -> Result<Value, Error> {
        let (status, mut answer) = self.post(document, &variables).await?;
        match answer.get_mut("errors").map(Value::take) {
            Some(Value::Array(errors)) if !errors.is_empty() => Err(Error::GraphQl(errors)),
            _ if answer.get("data").is_some_and(Value::is_object) => Ok(answer["data"].take()),
            _ => Err(self.no_graphql(status, answer.as_str().unwrap_or(&answer.to_string()))),
        }
    }

    /// The payload of a mutation's only field, without `userErrors`.
    ///
    /// # Errors
    /// Those of [`Client::query`], and `userErrors`.
    pub async fn mutate(&self, document: &str, input: Value) -> Result<Value, Error> {
        let mut data = self.query(document, json!({ "input": input })).await?;
        let payload = data
            .as_object_mut()
            .and_then(|fields| fields.values_mut().next())
            .map(Value::take)
            .ok_or_else(|| Error::Broken("a mutation answered without its field".to_owned()))?;
        match payload.get("userErrors") {
            Some(Value::Array(errors)) if !errors.is_empty() => Err(Error::Refused(errors.clone())),
            _ => Ok(payload),
        }
    }

    /// Begins a subscription on a connection of its own.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses the connection.
    pub async fn subscribe(&self, document: &str, variables: &Value) -> Result<Subscription, Error> {
        match tokio::time::timeout(TIMEOUT, self.subscribe_now(document, variables)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Error::Broken(format!("no acknowledgement within {} s", TIMEOUT.as_secs()))),
        }
    }

    async fn subscribe_now(&self, document: &str, variables: &Value) -> Result<Subscription, Error> {
        let url = format!("{}/graphql/ws", self.base.replacen("http", "ws", 1));
        let unreachable = |error: tungstenite::Error| self.unreachable(&error, None);
        let mut request = url.as_str().into_client_request().map_err(unreachable)?;
        request.headers_mut().insert("sec-websocket-protocol", HeaderValue::from_static("graphql-transport-ws"));
        let stream = self.connect().await?;
        let (socket, _) = tokio_tungstenite::client_async(request, stream).await.map_err(|error| match error {
            tungstenite::Error::Http(answer) => {
                let body = answer.body().as_deref().map(String::from_utf8_lossy).unwrap_or_default();
                self.no_graphql(answer.status().as_u16(), &body)
            }
            error => unreachable(error),
        })?;
        let mut subscription = Subscription { socket, over: false, heard: Instant::now() };
        let payload = match &self.token {
            Some(token) => json!({ "Authorization": format!("Bearer {token}") }),
            None => json!({}),
        };
        subscription.send(&json!({ "type": "connection_init", "payload": payload })).await?;
        loop {
            match subscription.receive().await? {
                message if message["type"] == "connection_ack" => break,
                message if message["type"] == "ping" => subscription.send(&json!({ "type": "pong" })).await?,
                message => return Err(Error::Broken(format!("instead of an acknowledgement came {message}"))),
            }
        }
        subscription
            .send(&json!({
                "id": "1",
                "type": "subscribe",
                "payload": { "query": document, "variables": variables },
            }))
            .await?;
        Ok(subscription)
    }

    /// A connection for a WebSocket.
    async fn connect(&self) -> Result<Box<dyn Stream>, Error> {
        let unreachable = |error: &(dyn std::error::Error + 'static)| self.unreachable(error, None);
        let url = reqwest::Url::parse(&self.base).map_err(|error| unreachable(&error))?;
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let port = url.port_or_known_default().unwrap_or(80);
        let tcp = TcpStream::connect((host.as_str(), port)).await.map_err(|error| unreachable(&error))?;
        // What is sent is small and waited for.
        let _ = tcp.set_nodelay(true);
        let Some(tls) = &self.tls else { return Ok(Box::new(tcp)) };
        let name = ServerName::try_from(host).map_err(|error| unreachable(&error))?;
        let connector = tokio_rustls::TlsConnector::from(tls.clone());
        let stream = connector.connect(name, tcp).await.map_err(|error| unreachable(&error))?;
        Ok(Box::new(stream))
    }

    /// No answer: why, and what to do where that can be seen.
    fn unreachable(&self, error: &(dyn std::error::Error + 'static), hint: Option<String>) -> Error {
        let hint = hint.or_else(|| self.about_tls(error)).map(|hint| format!("; {hint}")).unwrap_or_default();
        Error::Unreachable { url: self.base.clone(), message: format!("{}{hint}", innermost(error)) }
    }

    fn no_graphql(&self, status: u16, body: &str) -> Error {
        const BODY_CHARS: usize = 200;
        let words = body.split_whitespace().collect::<Vec<_>>().join(" ");
        let begin: String = visible(&words).chars().take(BODY_CHARS).collect();
        let body = if begin.is_empty() { String::new() } else { format!(": {begin}") };
        Error::Status { url: self.base.clone(), status, body }
    }

    fn about_tls(&self, error: &(dyn std::error::Error + 'static)) -> Option<String> {
        let hint = match chain(error).find_map(|error| error.downcast_ref())? {
            rustls::Error::InvalidMessage(_) => {
                return Some(format!(
                    "it does not speak TLS there: write {}",
                    self.base.replacen("https:", "http:", 1)
                ));
            }
            rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
                "none that is trusted here has signed its certificate: give the one that has by --ca-file or \
                 GENNAKER_CA_FILE"
            }
            rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            ) => "write the server's address with a name that its certificate is for",
            rustls::Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
                "the server needs a new certificate"
            }
            rustls::Error::InvalidCertificate(CertificateError::Other(_)) => {
                "the server needs a certificate of its own (CA:FALSE), with its name as a subjectAltName"
            }
            _ => return None,
        };
        Some(hint.to_owned())
    }
}

/// An error and what caused it. An I/O error does not give what it holds as its source.
fn chain<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| match error.downcast_ref().and_then(std::io::Error::get_ref) {
        Some(held) => Some(held),
        None => error.source(),
    })
}

/// The error at the end of the chain: `Connection refused` instead of `error sending request`.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    chain(error).last().unwrap_or(error).to_string()
}

fn tls(ca_file: Option<&Path>) -> Result<rustls::ClientConfig, Error> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    if let Some(file) = ca_file {
        let fault = |message: String| Error::Certificates { file: file.to_owned(), message };
        let certificates: Vec<_> = CertificateDer::pem_file_iter(file)
            .and_then(Iterator::collect)
            .map_err(|error: rustls::pki_types::pem::Error| fault(error.to_string()))?;
        if roots.add_parsable_certificates(certificates).0 == 0 {
            return Err(fault("it has no certificate; give one or more as PEM".to_owned()));
        }
    }
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions();
    let config = config.map_err(|error| Error::Broken(error.to_string()))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

/// What a WebSocket runs over.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A running subscription; dropping it ends it.
pub struct Subscription {
    socket: WebSocketStream<Box<dyn Stream>>,
    over: bool,
    heard: Instant,
}

impl Subscription {
    /// The data of the next event; None when the server has completed the subscription.
    ///
    /// # Errors
    /// When the operation ended with errors or the connection broke.
    pub async fn next(&mut self) -> Result<Option<Value>, Error> {
        while !self.over {
            let mut message = match tokio::time::timeout(PING, self.receive()).await {
                Ok(message) => message?,
                Err(_) if self.heard.elapsed() > PING * 3 => {
                    self.over = true;
                    return Err(Error::Broken(format!("nothing heard for {} s", self.heard.elapsed().as_secs())));
                }
                Err(_) => {
                    self.send(&json!({ "type": "ping" })).await?;
                    continue;
                }
            };
            match message["type"].as_str() {
                Some("next") => {
                    let mut payload = message["payload"].take();
                    if let Some(Value::Array(errors)) = payload.get_mut("errors").map(Value::take)
                        && !errors.is_empty()
                    {
                        return Err(Error::GraphQl(errors));
                    }
                    return Ok(Some(payload["data"].take()));
                }
                Some("error") => {
                    self.over = true;
                    return Err(Error::GraphQl(message["payload"].as_array().cloned().unwrap_or_default()));
                }
                Some("complete") => self.over = true,
                Some("ping") => self.send(&json!({ "type": "pong" })).await?,
                _ => {}
            }
        }
        Ok(None)
    }

    async fn send(&mut self, message: &Value) -> Result<(), Error> {
        self.socket.send(Message::text(message.to_string())).await.map_err(|error| Error::Broken(error.to_string()))
    }

    /// The next JSON message. May be dropped while it waits.
    async fn receive(&mut self) -> Result<Value, Error> {
        loop {
            let message = self.socket.next().await;
            self.heard = Instant::now();
            match message {
                Some(Ok(Message::Text(text))) => {
                    return serde_json::from_str(&text).map_err(|error| Error::Broken(error.to_string()));
                }
                Some(Ok(Message::Close(frame))) => {
                    let why = frame.map_or_else(
                        || "closed".to_owned(),
                        |frame| format!("closed with {}: {}", u16::from(frame.code), frame.reason),
                    );
                    return Err(Error::Broken(why));
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(Error::Broken(error.to_string())),
                None => return Err(Error::Broken("closed without a word".to_owned())),
            }
        }
    }
}
