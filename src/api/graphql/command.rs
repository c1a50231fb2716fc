//! What mutations answer when they are refused: data, not faults.

use async_graphql::{Enum, Interface, Result, SimpleObject};

use crate::api::error::{Code, fault};
use crate::auth::token;
use crate::engine::commands;
use crate::store;

/// Why a mutation was refused.
#[derive(Enum, Debug, Clone, Copy, PartialEq, Eq)]
#[graphql(remote = "commands::Code")]
pub enum UserErrorCode {
    /// Nothing has that name or id, or it may not be seen.
    NotFound,
    /// A name is taken, or something changed meanwhile: read again.
    Conflict,
    /// The input does not hold; `field` says where.
    Invalid,
    /// The principal's roles do not allow it.
    Forbidden,
    /// The thing is in a state in which this cannot be done.
    WrongState,
    /// The idempotency key was used with another input.
    IdempotencyKeyReused,
    /// The server cannot do it now; try again.
    Unavailable,
}

/// Something is wrong with what a mutation was asked; nothing has changed.
#[derive(Interface)]
#[graphql(
    field(name = "message", ty = "&String", desc = "What failed, on what, and what to do."),
    field(name = "field", ty = "&Option<Vec<String>>", desc = "Where in the input, from its first field inwards."),
    field(name = "code", ty = "&UserErrorCode", desc = "For programs.")
)]
pub enum UserError {
    Command(CommandError),
}

/// Why a command was refused.
#[derive(SimpleObject, Debug, Clone)]
pub struct CommandError {
    /// For programs.
    pub code: UserErrorCode,
    /// What failed, on what, and what to do.
    pub message: String,
    /// Where in the input, from its first field inwards.
    pub field: Option<Vec<String>>,
}

impl CommandError {
    pub fn new(code: commands::Code, message: impl Into<String>, field: &[&str]) -> Self {
        let field = (!field.is_empty()).then(|| field.iter().map(|&part| part.to_owned()).collect());
        Self { code: code.into(), message: message.into(), field }
    }
}

/// A mutation did not happen.
pub enum Refused {
    /// For what was asked: part of the payload; at least one.
    User(Vec<CommandError>),
    /// For a fault of the server: an error of the field.
    Fault(async_graphql::Error),
}

impl Refused {
    pub fn not_found(message: impl Into<String>, field: &[&str]) -> Self {
        CommandError::new(commands::Code::NotFound, message, field).into()
    }

    pub fn invalid(message: impl Into<String>, field: &[&str]) -> Self {
        CommandError::new(commands::Code::Invalid, message, field).into()
    }
}

impl From<CommandError> for Refused {
    fn from(error: CommandError) -> Self {
        Self::User(vec![error])
    }
}

impl From<commands::Error> for CommandError {
    fn from(error: commands::Error) -> Self {
        let field = (!error.field.is_empty()).then_some(error.field);
        Self { code: error.code.into(), message: error.message, field }
    }
}

impl From<commands::Error> for Refused {
    fn from(error: commands::Error) -> Self {
        CommandError::from(error).into()
    }
}

impl From<Vec<commands::Error>> for Refused {
    fn from(errors: Vec<commands::Error>) -> Self {
        Self::User(errors.into_iter().map(Into::into).collect())
    }
}

impl From<async_graphql::Error> for Refused {
    fn from(error: async_graphql::Error) -> Self {
        let code = error.extensions.as_ref().and_then(|values| values.get("code"));
        let is = |wanted: Code| code.is_some_and(|code| *code == async_graphql::Value::from(wanted.as_str()));
        if is(Code::Forbidden) {
            return CommandError::new(commands::Code::Forbidden, error.message, &[]).into();
        }
        Self::Fault(error)
    }
}

impl From<token::Error> for Refused {
    fn from(error: token::Error) -> Self {
        let code = match &error {
            token::Error::Denied(_) => commands::Code::Forbidden,
            token::Error::Invalid(_) => commands::Code::Invalid,
            token::Error::NotFound(_) => commands::Code::NotFound,
            token::Error::Commit(store::CommitError::Refused(_)) => commands::Code::Conflict,
            token::Error::Commit(store::CommitError::Unavailable(_)) => commands::Code::Unavailable,
            _ => return Self::Fault(fault(&error)),
        };
        CommandError::new(code, error.to_string(), &[]).into()
    }
}

/// Of `validateWith` alone.
pub const NEEDS_VALIDATE_ONLY: &str = "it goes with `validateOnly`; leave it out, or set that to true";

/// The payload of what a mutation came to.
pub fn settle<T, P: From<Result<Option<T>, Vec<CommandError>>>>(result: Result<T, Refused>) -> Result<Option<P>> {
    settle_checked(result.map(Some))
}

/// The same where the input may only have been checked: then there is nothing.
pub fn settle_checked<T, P: From<Result<Option<T>, Vec<CommandError>>>>(
    result: Result<Option<T>, Refused>,
) -> Result<Option<P>> {
    match result {
        Ok(value) => Ok(Some(P::from(Ok(value)))),
        Err(Refused::User(errors)) => Ok(Some(P::from(Err(errors)))),
        Err(Refused::Fault(error)) => Err(error),
    }
}

/// A mutation's payload: what it made or changed, or the errors that kept it from doing so.
macro_rules! payload {
    ($(#[$doc:meta])* $name:ident { $(#[$field_doc:meta])* $field:ident: $ty:ty }) => {
        $(#[$doc])*
        #[derive(async_graphql::SimpleObject)]
        pub struct $name {
            $(#[$field_doc])*
            pub $field: Option<$ty>,
            /// What was wrong with the input; empty when it was done.
            pub user_errors: Vec<$crate::api::graphql::command::CommandError>,
        }

        impl From<Result<Option<$ty>, Vec<$crate::api::graphql::command::CommandError>>> for $name {
            fn from(result: Result<Option<$ty>, Vec<$crate::api::graphql::command::CommandError>>) -> Self {
                match result {
                    Ok($field) => Self { $field, user_errors: Vec::new() },
                    Err(user_errors) => Self { $field: None, user_errors },
                }
            }
        }
    };
}

/// The payload of a mutation that starts an execution.
macro_rules! started_payload {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(async_graphql::SimpleObject)]
        pub struct $name {
            /// The execution to follow.
            pub execution: Option<$crate::api::graphql::execution::Execution>,
            /// An earlier call with the same idempotency key had started it.
            pub is_replay: bool,
            /// What was wrong with the input; empty when it was done.
            pub user_errors: Vec<$crate::api::graphql::command::CommandError>,
        }

        impl From<Result<Option<$crate::engine::commands::Started>, Vec<$crate::api::graphql::command::CommandError>>>
            for $name
        {
            fn from(
                result: Result<
                    Option<$crate::engine::commands::Started>,
                    Vec<$crate::api::graphql::command::CommandError>,
                >,
            ) -> Self {
                let (started, user_errors) = match result {
                    Ok(started) => (started, Vec::new()),
                    Err(user_errors) => (None, user_errors),
                };
                Self {
                    is_replay: started.as_ref().is_some_and(|started| started.replay),
                    execution: started
                        .map(|started| $crate::api::graphql::execution::Execution::whole(started.execution)),
                    user_errors,
                }
            }
        }
    };
}

pub(super) use {payload, started_payload};
