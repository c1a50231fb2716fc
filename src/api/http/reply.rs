//! Answers: GraphQL responses made presentable, and every fault as JSON with a code.

use async_graphql::{PathSegment, ServerError, Value};
use async_graphql_axum::GraphQLResponse;
use axum::http::header::{self, HeaderValue};
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::{Value as Json, json};

use super::media::Media;
use crate::api::error::{Code, fault, shown};
use crate::api::precheck::Refused;
use crate::auth::Unauthenticated;
use crate::measure::api::{self as measure, Limit, Outcome};

const ERRORS_MAX: usize = 50;
const MESSAGE_CHARS_MAX: usize = 500;

/// The request is not executed.
#[derive(Debug)]
pub struct Fault {
    pub status: StatusCode,
    pub code: Code,
    pub message: String,
    /// Methods for `Allow`, with 405.
    pub allow: Option<&'static str>,
}

impl Fault {
    pub fn new(status: StatusCode, code: Code, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), allow: None }
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, Code::BadRequest, message)
    }

    /// The server is about to end and begins nothing new.
    pub fn stopping() -> Self {
        let message = "the server is stopping; try again in a moment, here or at another server";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable, message)
    }

    /// The `errors` of the answer.
    pub fn errors(&self) -> Json {
        json!([{"message": self.message, "extensions": {"code": self.code.as_str()}}])
    }

    /// The answer, in the media type asked for.
    pub fn reply(self, media: Media) -> Response {
        // Clients of the older media type take what is not 2xx for no GraphQL at all.
        let of_document =
            matches!(self.code, Code::ParseFailed | Code::ValidationFailed | Code::OperationResolutionFailure);
        let status = if media == Media::Json && of_document { StatusCode::OK } else { self.status };
        let mut response = body(status, media, &json!({"errors": self.errors()}));
        if let Some(allow) = self.allow {
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allow));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"gennaker\""));
        }
        response
    }
}

impl From<Refused> for Fault {
    fn from(refused: Refused) -> Self {
        match refused.code {
            Code::DepthLimitExceeded => measure::rejected(Limit::Depth),
            Code::CostLimitExceeded => measure::rejected(Limit::Complexity),
            _ => {}
        }
        Self::new(StatusCode::BAD_REQUEST, refused.code, refused.message)
    }
}

impl From<Unauthenticated> for Fault {
    fn from(error: Unauthenticated) -> Self {
        match error {
            Unauthenticated::Missing | Unauthenticated::Invalid => {
                Self::new(StatusCode::UNAUTHORIZED, Code::Unauthenticated, error.to_string())
            }
            Unauthenticated::Store(error) => {
                let shown = fault(&error);
                Self::new(StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable, shown.message)
            }
        }
    }
}

fn body(status: StatusCode, media: Media, value: &Json) -> Response {
    let content_type = HeaderValue::from_static(media.content_type());
    (status, [(header::CONTENT_TYPE, content_type)], value.to_string()).into_response()
}

/// A GraphQL response and whether the request as a whole failed (it has no data at all).
pub fn presentable(response: async_graphql::Response) -> (Json, bool) {
    let failed = response.data == Value::Null
        && !response.errors.is_empty()
        && response.errors.iter().all(|error| error.path.is_empty());
    let mut value = serde_json::Map::new();
    if !response.errors.is_empty() {
        let errors = response.errors.into_iter().take(ERRORS_MAX).map(error);
        value.insert("errors".into(), errors.collect());
    }
    if !failed {
        value.insert("data".into(), response.data.into_json().unwrap_or_default());
    }
    if !response.extensions.is_empty() {
        value.insert("extensions".into(), json!(response.extensions));
    }
    (Json::Object(value), failed)
}

fn error(mut error: ServerError) -> Json {
    if error.message.chars().count() > MESSAGE_CHARS_MAX {
        error.message = error.message.chars().take(MESSAGE_CHARS_MAX).chain(['…']).collect();
    }
    let has_code = error.extensions.as_ref().is_some_and(|values| values.get("code").is_some());
    if !has_code {
        // The library's own: a document that does not fit, or an argument that cannot be read. Of the
        // latter it tells the types and what they accept, and we the field.
        let is_argument = ["Failed to parse", "Expected input type"].iter().any(|what| error.message.starts_with(what));
        let field = error.path.iter().rev().find_map(|part| match part {
            PathSegment::Field(name) => Some(name),
            PathSegment::Index(_) => None,
        });
        if let (true, Some(field)) = (is_argument, field) {
            error.message = format!("an argument of `{field}` does not hold: {}", error.message);
        }
        let code = if error.path.is_empty() { Code::ValidationFailed } else { Code::BadRequest };
        error.extensions.get_or_insert_default().set("code", code.as_str());
    }
    json!(error)
}

/// A GraphQL response as an HTTP answer.
pub fn executed(response: async_graphql::Response, media: Media) -> Response {
    if response.errors.is_empty() {
        // Nothing to make presentable: straight to bytes.
        let mut answer = GraphQLResponse::from(response).into_response();
        answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media.content_type()));
        return answer;
    }
    let (value, failed) = presentable(response);
    let status = if failed && media != Media::Json { StatusCode::BAD_REQUEST } else { StatusCode::OK };
    let mut answer = body(status, media, &value);
    answer.extensions_mut().insert(Outcome::Errors);
    answer
}

/// For every path that is none.
pub async fn no_such_page(method: Method, uri: Uri) -> Response {
    let message = format!("there is nothing at {method} {}; the API is at /graphql", shown(uri.path()));
    Fault::new(StatusCode::NOT_FOUND, Code::NotFound, message).reply(Media::Json)
}
