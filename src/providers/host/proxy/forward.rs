//! One request's way: to an instance, to another one if the first did not answer and the request
//! may be repeated, and the answer back; or a tunnel, when both sides agree on another protocol.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::body::{Body, Incoming};
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, HeaderMap, HeaderValue, RETRY_AFTER};
use hyper::http::uri::{PathAndQuery, Uri};
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;

use super::balance::Pick;
use super::body::{AnswerBody, Progress, Replay, RequestBody};
use super::headers;
use super::limits::Limits;
use super::listen::{Busy, Client};
use super::stats::Outcome;
use super::upstream::{Channel, Open, Unanswered};

/// Answers a client's request.
pub(super) async fn handle(
    client: Arc<Client>,
    request: Request<Incoming>,
) -> Result<Response<AnswerBody>, Infallible> {
    let busy = Busy::begin(&client);
    let mut response = match forward(&client, request).await {
        Ok(Answer::Instance(response, channel, open)) => {
            let (mut parts, incoming) = response.into_parts();
            headers::strip(&mut parts.headers);
            let limits = Arc::clone(&client.balancer.shared.limits);
            Response::from_parts(parts, AnswerBody::streamed(incoming, channel, open, limits, busy))
        }
        Ok(Answer::Switched(headers)) => {
            let mut response = Response::new(AnswerBody::text("", busy));
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            *response.headers_mut() = headers;
            return Ok(response);
        }
        Err(refusal) => refusal.response(busy),
    };
    if client.is_closing() {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}

enum Answer {
    Instance(Response<Incoming>, Channel, Open),
    /// The headers of the answer; the tunnel runs.
    Switched(HeaderMap),
}

/// An answer of the proxy's own.
struct Refusal {
    status: StatusCode,
    text: String,
}

impl Refusal {
    fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, text: text.into() }
    }

    fn response(self, busy: Busy) -> Response<AnswerBody> {
        let mut response = Response::new(AnswerBody::text(format!("{}\n", self.text), busy));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        match self.status {
            StatusCode::SERVICE_UNAVAILABLE => headers.insert(RETRY_AFTER, HeaderValue::from_static("1")),
            StatusCode::FORBIDDEN => headers.insert(CONNECTION, HeaderValue::from_static("close")),
            _ => None,
        };
        response
    }
}

/// The head of a request as instances get it.
#[derive(Clone)]
struct Head {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
}

impl Head {
    fn with(self, body: RequestBody) -> Request<RequestBody> {
        let mut request = Request::new(body);
        *request.method_mut() = self.method;
        *request.uri_mut() = self.uri;
        *request.headers_mut() = self.headers;
        request
    }
}

/// What is kept of a request that may be sent twice.
enum Spare {
    None,
    Head(Head),
    HeadAndBody(Head, Arc<Replay>),
}

impl Spare {
    fn again(&self) -> Option<Request<RequestBody>> {
        match self {
            Self::None => None,
            Self::Head(head) => Some(head.clone().with(RequestBody::Empty)),
            Self::HeadAndBody(head, replay) => replay.again().map(|body| head.clone().with(body)),
        }
    }
}

async fn forward(client: &Arc<Client>, mut request: Request<Incoming>) -> Result<Answer, Refusal> {
    if request.method() == Method::CONNECT {
        return Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "this load balancer is not a tunnel to elsewhere"));
    }
    let balancer = &client.balancer;
    let limits = &balancer.shared.limits;
    let started = Instant::now();
    let Some(picked) = balancer.enter(client) else {
        return Err(Refusal::new(StatusCode::FORBIDDEN, "no rule of a security group lets this address in any more"));
    };
    let mut open = or_unavailable(client, picked)?;

    let protocol = headers::upgrade(request.headers());
    let upgrade = protocol.is_some().then(|| hyper::upgrade::on(&mut request));
    let (mut sent, spare, progress) = prepare(client, request, &open, protocol, limits);

    let mut connect_retries = limits.connect_retries;
    let mut resends = 1;
    let mut tried = Vec::new();
    let mut fresh = false;
    loop {
        let upstream = Arc::clone(open.upstream());
        let resting = if fresh { None } else { upstream.resting(limits) };
        let mut channel = match resting {
            Some(channel) => channel,
            None => match upstream.connect(limits).await {
                Ok(channel) => channel,
                Err(error) => {
                    // Nothing was sent, so any request may go elsewhere.
                    upstream.suspect(limits.suspect);
                    tried.push(upstream.id);
                    let other = if connect_retries > 0 { another(client, &tried, &upstream.group) } else { None };
                    let Some(other) = other else {
                        return Err(failed(client, &open, format!("the instance cannot be reached: {error}")));
                    };
                    connect_retries -= 1;
                    balancer.stats.record_retry(balancer.shared.second(), &upstream.group);
                    open = other;
                    fresh = false;
                    continue;
                }
            },
        };
        let reused = channel.reused;
        let unanswered = match answer(&mut channel, sent, &progress, limits.response_head).await {
            Some(Ok(response)) => {
                upstream.trust();
                let outcome = Outcome::Answered(response.status().as_u16(), started.elapsed());
                balancer.stats.record(balancer.shared.second(), &upstream.group, outcome);
                if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                    return switch(client, response, channel, open, upgrade);
                }
                return Ok(Answer::Instance(response, channel, open));
            }
            Some(Err(unanswered)) => unanswered,
            None => {
                balancer.stats.record(balancer.shared.second(), &upstream.group, Outcome::Failed);
                return Err(Refusal::new(StatusCode::GATEWAY_TIMEOUT, "the instance did not answer in time"));
            }
        };
        drop(channel);
        if unanswered.unsent.is_none() && unanswered.error.is_user() {
            // Of the client's making: its body ended early.
            return Err(Refusal::new(StatusCode::BAD_REQUEST, "the request's body ended early"));
        }
        let error = unanswered.error.to_string();
        let Some(again) = repeatable(unanswered, &spare) else {
            return Err(failed(client, &open, format!("the instance gave no answer: {error}")));
        };
        sent = again;
        if reused {
            // The instance may just have closed a connection that had rested.
            fresh = true;
            continue;
        }
        tried.push(upstream.id);
        let other = if resends > 0 { another(client, &tried, &upstream.group) } else { None };
        let Some(other) = other else {
            return Err(failed(client, &open, format!("the instance gave no answer: {error}")));
        };
        resends -= 1;
        balancer.stats.record_retry(balancer.shared.second(), &upstream.group);
        open = other;
        fresh = false;
    }
}

/// The request as instances get it, and what is kept for a second try.
fn prepare(
    client: &Client,
    request: Request<Incoming>,
    open: &Open,
    protocol: Option<HeaderValue>,
    limits: &Limits,
) -> (Request<RequestBody>, Spare, Progress) {
    let (parts, incoming) = request.into_parts();
    let mut headers = parts.headers;
    // The target's authority stands above the header (RFC 9112, 3.2.2).
    let host = parts
        .uri
        .authority()
        .and_then(|authority| HeaderValue::from_str(authority.as_str()).ok())
        .or_else(|| headers.get(HOST).cloned())
        .or_else(|| HeaderValue::from_str(&open.upstream().address.to_string()).ok())
        .unwrap_or_else(|| HeaderValue::from_static("localhost"));
    headers::to_instance(&mut headers, &client.forwarded_for, &host);
    if let Some(protocol) = protocol {
        headers::set_upgrade(&mut headers, protocol);
    }
    let uri = if parts.uri.scheme().is_some() || parts.uri.authority().is_some() {
        let path = parts.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        Uri::from(path)
    } else {
        parts.uri
    };
    let head = Head { method: parts.method, uri, headers };
    let idempotent = head.method.is_idempotent();
    let progress = Progress::default();
    if incoming.is_end_stream() {
        let spare = if idempotent { Spare::Head(head.clone()) } else { Spare::None };
        return (head.with(RequestBody::Empty), spare, progress);
    }
    if !idempotent {
        return (head.with(RequestBody::Once(incoming, progress.clone())), Spare::None, progress);
    }
    let replay = Replay::new(incoming, progress.clone(), limits);
    let body = RequestBody::Again(Arc::clone(&replay), 0);
    (head.clone().with(body), Spare::HeadAndBody(head, replay), progress)
}

/// The answer's head, or nothing when neither it came nor the request's body moved for too long.
async fn answer(
    channel: &mut Channel,
    request: Request<RequestBody>,
    progress: &Progress,
    limit: Duration,
) -> Option<Result<Response<Incoming>, Unanswered>> {
    let mut exchange = pin!(channel.exchange(request));
    let mut seen = 0;
    loop {
        if let Ok(result) = tokio::time::timeout(limit, exchange.as_mut()).await {
            return Some(result);
        }
        let count = progress.count();
        if count == seen {
            return None;
        }
        seen = count;
    }
}

/// The request once more, if not a byte of it was sent, or if it may be repeated and no byte of an
/// answer came.
fn repeatable(unanswered: Unanswered, spare: &Spare) -> Option<Request<RequestBody>> {
    unanswered.unsent.or_else(|| if unanswered.begun { None } else { spare.again() })
}

/// Another instance, one of the same server group if there is one.
fn another(client: &Client, tried: &[u64], group: &Arc<str>) -> Option<Open> {
    match client.balancer.pick(tried, group) {
        Pick::Instance(open) => Some(open),
        Pick::Full | Pick::Nothing => None,
    }
}

fn or_unavailable(client: &Client, picked: Pick) -> Result<Open, Refusal> {
    let balancer = &client.balancer;
    let text = match picked {
        Pick::Instance(open) => return Ok(open),
        Pick::Full => format!("load balancer `{}`: all instances are busy", balancer.name),
        Pick::Nothing => format!("load balancer `{}` has no healthy instance", balancer.name),
    };
    balancer.stats.record(balancer.shared.second(), &balancer.shared.nobody, Outcome::Failed);
    Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, text))
}

fn failed(client: &Client, open: &Open, text: String) -> Refusal {
    let balancer = &client.balancer;
    balancer.stats.record(balancer.shared.second(), &open.upstream().group, Outcome::Failed);
    tracing::debug!(
        load_balancer = %balancer.name, server_group = %open.upstream().group, address = %open.upstream().address,
        "{text}"
    );
    Refusal::new(StatusCode::BAD_GATEWAY, text)
}

/// Lets the two sides talk to each other without looking at what they say.
fn switch(
    client: &Arc<Client>,
    mut response: Response<Incoming>,
    channel: Channel,
    open: Open,
    upgrade: Option<OnUpgrade>,
) -> Result<Answer, Refusal> {
    let protocol = headers::upgrade(response.headers());
    let (Some(to_client), Some(protocol)) = (upgrade, protocol) else {
        return Err(Refusal::new(StatusCode::BAD_GATEWAY, "the instance switched protocols without being asked"));
    };
    let to_instance = hyper::upgrade::on(&mut response);
    let mut headers = std::mem::take(response.headers_mut());
    headers::strip(&mut headers);
    headers::set_upgrade(&mut headers, protocol);
    let client = Arc::clone(client);
    let tracker = client.balancer.shared.tracker.clone();
    tracker.spawn(async move {
        let mut cut = open.upstream().cut();
        let through = async {
            if let Some(connection) = channel.into_connection() {
                let _ = connection.await;
            }
        };
        let talk = async {
            let (Ok(near), Ok(far)) = tokio::join!(to_client, to_instance) else { return };
            let _ = tokio::io::copy_bidirectional(&mut TokioIo::new(near), &mut TokioIo::new(far)).await;
        };
        tokio::select! {
            _ = async { tokio::join!(through, talk) } => {}
            // At the latest when the time of its instance or of its listener is over.
            _ = cut.changed() => {}
            () = client.killed() => {}
            () = client.stalled() => {}
        }
        drop(open);
    });
    Ok(Answer::Switched(headers))
}
