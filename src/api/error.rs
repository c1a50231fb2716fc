//! Errors as clients see them: a code from a closed list, a message that says what to do, and
//! nothing of the inside.

use super::request_id;
use crate::auth::Denied;
use crate::store;
use async_graphql::ErrorExtensions as _;

/// `extensions.code` of every error. Append only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// The request is not what GraphQL over HTTP or a field asks for.
    BadRequest,
    /// The document is not GraphQL.
    ParseFailed,
    /// The document does not fit the schema.
    ValidationFailed,
    /// The document has several operations, or none of the name given.
    OperationResolutionFailure,
    /// More fields, aliases, directives or items than a request may ask for.
    CostLimitExceeded,
    /// Nested deeper than a request may be.
    DepthLimitExceeded,
    /// A page has more items than the server gives at a time.
    PageLimitExceeded,
    /// No token, or one that is not valid.
    Unauthenticated,
    /// The token's principal may not do this.
    Forbidden,
    /// Nothing has that name or id, or it may not be seen.
    NotFound,
    /// Part of the schema, not yet of the server.
    NotImplemented,
    /// The client reads more slowly than things happen; go on after the cursor given.
    SlowConsumer,
    /// The request took longer than it may; what it asked for may be done.
    Timeout,
    /// A provider or the database cannot be reached; try again.
    Unavailable,
    /// A fault of the server; the log has more under the request id.
    Internal,
}

impl Code {
    /// The text in `extensions.code`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BadRequest => "BAD_REQUEST",
            Self::ParseFailed => "GRAPHQL_PARSE_FAILED",
            Self::ValidationFailed => "GRAPHQL_VALIDATION_FAILED",
            Self::OperationResolutionFailure => "OPERATION_RESOLUTION_FAILURE",
            Self::CostLimitExceeded => "COST_LIMIT_EXCEEDED",
            Self::DepthLimitExceeded => "DEPTH_LIMIT_EXCEEDED",
            Self::PageLimitExceeded => "PAGE_LIMIT_EXCEEDED",
            Self::Unauthenticated => "UNAUTHENTICATED",
            Self::Forbidden => "FORBIDDEN",
            Self::NotFound => "NOT_FOUND",
            Self::NotImplemented => "NOT_IMPLEMENTED",
            Self::SlowConsumer => "SLOW_CONSUMER",
            Self::Timeout => "TIMEOUT",
            Self::Unavailable => "UNAVAILABLE",
            Self::Internal => "INTERNAL_SERVER_ERROR",
        }
    }
}

/// An error of a field.
pub(super) fn coded(code: Code, message: impl Into<String>) -> async_graphql::Error {
    async_graphql::Error::new(message).extend_with(|_, extensions| extensions.set("code", code.as_str()))
}

/// A fault of the server: logged in full, shown as an id to look for in the log.
pub(super) fn fault(error: &dyn std::fmt::Display) -> async_graphql::Error {
    let id = request_id::current();
    tracing::error!(request.id = %id, error = %error, "a request failed");
    coded(Code::Internal, format!("the server failed; its log has more under the request id {id}"))
        .extend_with(|_, extensions| extensions.set("requestId", id.as_str()))
}

pub(super) fn stored(error: store::Error) -> async_graphql::Error {
    fault(&error)
}

pub(super) fn denied(denied: Denied) -> async_graphql::Error {
    coded(Code::Forbidden, denied.to_string())
}

/// Text given by a client, short enough to be repeated to them.
pub(super) fn shown(text: &str) -> String {
    let mut cut: String = text.chars().take(80).collect();
    if cut.len() < text.len() {
        cut.push('…');
    }
    cut
}
