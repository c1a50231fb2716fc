//! `/graphql`: GraphQL over HTTP. Each step may refuse: method, token, accepted types, content
//! type, size, JSON, document; in that order, so that little is done for a request that fails.

use std::sync::Arc;

use async_graphql::parser::types::OperationType;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::{self, HeaderMap};
use axum::http::{Method, Request, StatusCode};
use axum::response::{IntoResponse, Response};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};

use super::media::{Media, negotiate};
use super::reply::{self, Fault};
use super::request::{Parameters, Ready};
use super::{App, sse};
use crate::api::error::Code;
use crate::measure::api::{self as measure, Limit};

/// Any request to `/graphql`.
pub async fn serve(State(app): State<Arc<App>>, request: Request<Body>) -> Response {
    let media = negotiate(request.headers());
    // A fault is told in a type the client reads, and in JSON if it reads none of ours.
    let told_as = media.filter(|media| *media != Media::Events).unwrap_or(Media::Json);
    match answer(&app, media, request).await {
        Ok(response) => response,
        Err(fault) => fault.reply(told_as),
    }
}

async fn answer(app: &Arc<App>, media: Option<Media>, request: Request<Body>) -> Result<Response, Fault> {
    let is_get = match *request.method() {
        Method::GET | Method::HEAD => true,
        Method::POST => false,
        _ => return Err(not_allowed("use GET for queries and POST for everything", "GET, POST")),
    };
    let actor = app.actor(request.headers()).await?;
    let Some(media) = media else {
        let message = "answers are application/graphql-response+json, application/json or text/event-stream";
        return Err(Fault::new(StatusCode::NOT_ACCEPTABLE, Code::BadRequest, message));
    };
    let token = super::bearer(request.headers()).unwrap_or_default().to_owned();
    let last_event = request.headers().get("last-event-id").and_then(|value| value.to_str().ok()).map(str::to_owned);
    let parameters = if is_get {
        Parameters::from_query(request.uri().query().unwrap_or_default())?
    } else {
        content_type(request.headers())?;
        let body = read(app, request.into_body()).await?;
        let json = serde_json::from_slice(&body)
            .map_err(|error| Fault::bad_request(format!("the request's body is not JSON: {error}")))?;
        Parameters::from_json(json)?
    };
    let ready = parameters.ready(app, actor, last_event)?;
    if is_get && ready.ty != OperationType::Query {
        return Err(not_allowed("send mutations and subscriptions with POST", "POST"));
    }
    match (media, ready.ty) {
        (Media::Events, _) => sse::serve(app, ready, token),
        (_, OperationType::Subscription) => Err(Fault::bad_request(
            "subscriptions come over WebSocket (/graphql/ws, graphql-transport-ws) or with `Accept: text/event-stream`",
        )),
        _ => execute(app, ready, media).await,
    }
}

async fn execute(app: &App, ready: Ready, media: Media) -> Result<Response, Fault> {
    match tokio::time::timeout(app.options.timeout, app.schema.execute(ready.request)).await {
        Ok(response) => Ok(reply::executed(response, media).into_response()),
        Err(_) => Err(Fault::new(
            StatusCode::GATEWAY_TIMEOUT,
            Code::Timeout,
            format!(
                "no answer within {} s; ask for less, and look what became of a mutation before sending it again",
                app.options.timeout.as_secs()
            ),
        )),
    }
}

fn not_allowed(message: &str, allow: &'static str) -> Fault {
    Fault { allow: Some(allow), ..Fault::new(StatusCode::METHOD_NOT_ALLOWED, Code::BadRequest, message) }
}

/// Only types that a browser does not send across sites without asking first.
fn content_type(headers: &HeaderMap) -> Result<(), Fault> {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let mut parts = value.split(';').map(|part| part.trim().to_ascii_lowercase());
    let known = matches!(parts.next().as_deref(), Some("application/json" | "application/graphql-response+json"));
    let utf8 = parts.all(|part| part.strip_prefix("charset=").is_none_or(|set| set.trim_matches('"') == "utf-8"));
    if known && utf8 {
        return Ok(());
    }
    let message = "send `Content-Type: application/json` and a JSON body in UTF-8";
    Err(Fault::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, Code::BadRequest, message))
}

async fn read(app: &App, body: Body) -> Result<bytes::Bytes, Fault> {
    let max = app.options.live.borrow().body_max;
    let body = Limited::new(body, max).collect();
    match tokio::time::timeout(app.options.timeout, body).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.downcast_ref::<LengthLimitError>().is_some() => {
            measure::rejected(Limit::Body);
            let message = format!("the request's body has more than {max} bytes");
            Err(Fault::new(StatusCode::PAYLOAD_TOO_LARGE, Code::BadRequest, message))
        }
        Ok(Err(_)) => Err(Fault::bad_request("the request's body ended early")),
        Err(_) => Err(Fault::new(StatusCode::REQUEST_TIMEOUT, Code::Timeout, "the request's body came too slowly")),
    }
}
