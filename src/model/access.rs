//! Who acts, on what, and the row that says so afterwards.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{AuditId, ExecutionId, PrincipalId, TokenId};

/// What a principal may do at the most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Role {
    /// Reads everything but secrets, tokens and the audit log.
    Viewer,
    /// Reads, saves pipelines and applications, starts, judges and cancels executions.
    Operator,
    /// Everything, principals and tokens included.
    Admin,
}

/// A person or a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum PrincipalKind {
    /// A person.
    User,
    /// A program: a bot, a script, a continuous-integration server.
    Service,
    /// Gennaker itself.
    System,
}

/// Who may act. Tokens belong to one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Principal {
    /// Stays the same for good.
    pub id: PrincipalId,
    /// Unique.
    pub name: String,
    /// Whether it is a person, a program or Gennaker itself; no rights follow from it.
    pub kind: PrincipalKind,
    /// The highest of them decides; none: it may do nothing.
    pub roles: Vec<Role>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
}

/// A token as it is kept: never its text, only the SHA-256 of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// Part of the token's text, so that the row is found by it.
    pub id: TokenId,
    /// Whom its bearer acts as.
    pub principal: PrincipalId,
    /// What it is for, in the words of who made it.
    pub description: String,
    /// SHA-256 of the secret part.
    pub hash: Vec<u8>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// No longer valid from this instant on.
    pub expires_at: Option<DateTime<Utc>>,
    /// When it was revoked; it is no longer valid from then on.
    pub revoked_at: Option<DateTime<Utc>>,
}

/// Who acts, as an argument of every command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Actor {
    /// Whose deed it is in the audit log.
    pub principal: PrincipalId,
    /// The principal's name, as rows and messages keep it.
    pub name: String,
    /// As they are when the command is asked for; the highest decides.
    pub roles: Vec<Role>,
}

impl Actor {
    /// Whether the actor has this role or a higher one.
    #[must_use]
    pub fn has(&self, role: Role) -> bool {
        self.roles.iter().any(|held| *held >= role)
    }
}

/// What an actor wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Action {
    /// Look at something.
    Read,
    /// Create, change or delete what is stored: applications, pipelines.
    Save,
    /// Start an execution.
    Start,
    /// Cancel an execution.
    Cancel,
    /// Decide a manual judgment.
    Judge,
    /// Change infrastructure outside a pipeline.
    Operate,
    /// Principals, tokens, the audit log.
    Administer,
}

/// What is acted upon, by its human keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum Resource {
    /// The whole server: principals, tokens, kinds.
    Server,
    /// An application, and what hangs on it and has no resource of its own.
    Application {
        /// Its name.
        application: String,
    },
    /// A pipeline, saved or about to be.
    Pipeline {
        /// The name of the application that it belongs to.
        application: String,
        /// Its name, unique within the application.
        pipeline: String,
    },
    /// An execution with all its stages.
    Execution {
        /// The name of the application that it belongs to.
        application: String,
        /// The execution's id.
        execution: ExecutionId,
    },
}

/// One line of the audit log, written in the transaction of the command it tells about.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AuditRow {
    /// Rises with time.
    pub id: AuditId,
    /// When the command was given.
    pub at: DateTime<Utc>,
    /// Who gave it.
    pub principal: PrincipalId,
    /// The principal's name as of then.
    pub principal_name: String,
    /// What was done.
    pub action: Action,
    /// To what.
    pub resource: Resource,
    /// What was asked, without secrets; at most 4 KiB.
    pub detail: serde_json::Value,
}
