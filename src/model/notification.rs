//! What people are told, when, and how it gets to them.

use std::str::FromStr as _;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{DeliveryId, ExecutionId, NotificationId, Place, StageId};

/// When a message is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Occasion {
    /// The execution, or the stage, began.
    Started,
    /// It succeeded.
    Completed,
    /// It failed.
    Failed,
    /// It was cancelled.
    Canceled,
    /// A manual judgment waits for a person.
    ApprovalNeeded,
    /// Something is in a load balancer's way: told to the feed without a rule.
    LoadBalancerProblem,
    /// It is no more.
    LoadBalancerProblemOver,
}

impl Occasion {
    /// Whether rules of a pipeline may ask for it.
    #[must_use]
    pub const fn is_of_executions(self) -> bool {
        !matches!(self, Self::LoadBalancerProblem | Self::LoadBalancerProblemOver)
    }
}

/// A rule of a pipeline or of one of its stages: on which occasions to tell whom. Without a
/// channel the message goes to the `notifications` feed only; with one it goes there too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NotificationRule {
    /// When a message is written.
    pub on: Vec<Occasion>,
    /// Who gets it by mail too; None: nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<EmailTarget>,
}

/// Who gets mail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EmailTarget {
    /// Addresses; each gets a mail of its own.
    pub to: Vec<String>,
}

/// The channel of an [`EmailTarget`].
pub const EMAIL: &str = "email";

/// A rule as an execution carries it from its start on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExecutionRule {
    /// The key of the stage it is about; none: the whole execution and its judgments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<String>,
    /// When a message is written.
    pub on: Vec<Occasion>,
    /// Who gets it by mail too; None: nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<EmailTarget>,
}

impl ExecutionRule {
    /// A rule of the pipeline (no stage), or of the stage with that key.
    #[must_use]
    pub fn new(stage: Option<&str>, rule: &NotificationRule) -> Self {
        Self { stage: stage.map(str::to_owned), on: rule.on.clone(), email: rule.email.clone() }
    }

    /// The rule as it was configured.
    #[must_use]
    pub fn rule(&self) -> NotificationRule {
        NotificationRule { on: self.on.clone(), email: self.email.clone() }
    }
}

/// Bytes of an address.
const ADDRESS_MAX: usize = 254;

/// Whether the text is a mail address, without a name beside it; says what is wrong if it is none.
///
/// # Errors
/// When it is none.
pub fn check_address(text: &str) -> Result<(), String> {
    let shown: String = text.chars().take(80).collect();
    let shown = shown.escape_debug();
    if text.len() > ADDRESS_MAX {
        return Err(format!("`{shown}…` is longer than an address may be ({ADDRESS_MAX} bytes)"));
    }
    if text.chars().any(|char| char.is_control() || char.is_whitespace()) {
        return Err(format!("`{shown}` is not an address: it has spaces or control characters in it"));
    }
    match lettre::Address::from_str(text) {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("`{shown}` is not a mail address ({error}); write it as `name@example.org`")),
    }
}

/// A message: a row of the outbox, written in the transaction of what it tells about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notification {
    /// Rises with time.
    pub id: NotificationId,
    /// What made it be written.
    pub occasion: Occasion,
    /// The name of the application that it concerns.
    pub application_name: String,
    /// What it tells about.
    #[serde(flatten)]
    pub about: About,
    /// One line.
    pub subject: String,
    /// A few lines of plain text.
    pub text: String,
    /// When it was written.
    pub created_at: DateTime<Utc>,
}

/// What a message tells about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum About {
    /// The message was asked for by a rule of a pipeline or a stage.
    Execution(AboutExecution),
    /// The message is about a load balancer's problem, or that it is over.
    LoadBalancer(AboutLoadBalancer),
}

/// An execution, or one of its stages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AboutExecution {
    /// The execution's id.
    pub execution: ExecutionId,
    /// The pipeline's name, or the operation's title.
    pub execution_name: String,
    /// The execution's number within its pipeline, or within its application for operations.
    pub execution_number: i64,
    /// The stage; None: the whole execution.
    pub stage: Option<StageId>,
}

/// A load balancer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AboutLoadBalancer {
    /// Where it listens.
    #[serde(flatten)]
    pub place: Place,
    /// Its name.
    pub load_balancer: String,
}

impl Notification {
    /// What it says of an execution; None where it is about something else.
    #[must_use]
    pub const fn about_execution(&self) -> Option<&AboutExecution> {
        match &self.about {
            About::Execution(about) => Some(about),
            About::LoadBalancer(_) => None,
        }
    }

    /// What it says of a load balancer; None where it is about something else.
    #[must_use]
    pub const fn about_load_balancer(&self) -> Option<&AboutLoadBalancer> {
        match &self.about {
            About::LoadBalancer(about) => Some(about),
            About::Execution(_) => None,
        }
    }

    /// The execution that it tells about.
    #[must_use]
    pub fn execution(&self) -> Option<ExecutionId> {
        self.about_execution().map(|about| about.execution)
    }

    /// The stage that it tells about.
    #[must_use]
    pub fn stage(&self) -> Option<StageId> {
        self.about_execution().and_then(|about| about.stage)
    }
}

/// Where a delivery stands. Stored by name: append only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum DeliveryState {
    /// To be sent, at once or at its next instant.
    Pending,
    /// The other side has taken it.
    Sent,
    /// Given up; a person may have it tried again.
    Dead,
}

/// A message on its way to one target over one channel: written in the transaction of the message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// Part of a mail's Message-ID, so that a repetition is known as one.
    pub id: DeliveryId,
    /// The message that is delivered.
    pub notification: NotificationId,
    /// The execution that the message tells about; the deliveries of one to one target go in order.
    pub execution: ExecutionId,
    /// `email`.
    pub channel: String,
    /// An address, in the channel's own form.
    pub target: String,
    /// Where it stands.
    pub state: DeliveryState,
    /// Tries that were begun since it was written, or since a person asked for more.
    pub attempts: i32,
    /// Set while it is pending.
    pub next_at: Option<DateTime<Utc>>,
    /// Why the last try failed, without secrets and without the target.
    pub last_error: Option<String>,
    /// When it was written.
    pub created_at: DateTime<Utc>,
    /// When the other side took it; None: not yet.
    pub sent_at: Option<DateTime<Utc>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_stored_before_there_were_channels_are_read() {
        let rule: NotificationRule = serde_json::from_str(r#"{"on":["FAILED"]}"#).expect("reads");
        assert_eq!(rule, NotificationRule { on: vec![Occasion::Failed], email: None });
        assert_eq!(serde_json::to_string(&rule).expect("writes"), r#"{"on":["FAILED"]}"#);
        let carried: ExecutionRule = serde_json::from_str(r#"{"on":["FAILED"]}"#).expect("reads");
        assert_eq!(carried, ExecutionRule::new(None, &rule));
    }

    #[test]
    fn an_address_is_one_and_nothing_else() {
        for good in ["a@example.org", "ops+gennaker@mail.example.org", "jürgen@example.org", "a@localhost"] {
            assert_eq!(check_address(good), Ok(()), "{good}");
        }
        let long = format!("{}@example.org", "a".repeat(300));
        for bad in [
            "",
            "a",
            "a@",
            "@example.org",
            "Ann <a@example.org>",
            "a@b,c@d",
            "a@ex\r\nBcc: b@c",
            "a b@c",
            long.as_str(),
        ] {
            assert!(check_address(bad).is_err(), "{bad}");
        }
    }
}
