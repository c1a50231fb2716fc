//! What tells people. A message is a row of the outbox, written in the transaction of what it
//! tells about, so that it cannot be lost or told about something that did not happen.
//!
//! The feed is the row itself, read through the `notifications` query and subscription: it is
//! delivered once it is committed. A channel that leaves the server (mail) has a row for each of
//! its targets beside the message, and is a file here with a line in [`kinds`]; [`deliver`] works
//! on those rows.

pub mod deliver;
pub mod email;
mod letter;

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::model::EMAIL;
use crate::store::Claimed;

/// A channel, as people read about it.
#[derive(Debug, Clone)]
pub struct Kind {
    /// Its name in rules: `email`.
    pub kind: &'static str,
    /// Its name for people.
    pub title: &'static str,
    /// One to three sentences.
    pub description: &'static str,
    /// JSON Schema (2020-12) of what stands below its name in a rule.
    pub schema: Value,
    /// Something that passes the schema.
    pub example: Value,
}

/// All channels that a rule may name.
#[must_use]
pub fn kinds() -> Vec<Kind> {
    vec![Kind {
        kind: EMAIL,
        title: "Email",
        description: "Sends a mail to each address, as text and HTML; the mails about one execution are one thread.",
        schema: json!({
            "type": "object",
            "properties": {
                "to": {
                    "description": "Addresses, without names.",
                    "type": "array",
                    "items": { "type": "string", "format": "email", "maxLength": 254 },
                    "minItems": 1,
                    "maxItems": 100,
                },
            },
            "required": ["to"],
            "additionalProperties": false,
        }),
        example: json!({ "to": ["team@example.org"] }),
    }]
}

/// A try failed. The message is for people, without secrets and without the target.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Fault {
    /// What failed, and why.
    pub message: String,
    /// Trying again is of no use.
    pub permanent: bool,
}

impl Fault {
    fn temporary(message: impl Into<String>) -> Self {
        Self { message: message.into(), permanent: false }
    }

    fn permanent(message: impl Into<String>) -> Self {
        Self { message: message.into(), permanent: true }
    }
}

/// A channel that leaves the server.
#[async_trait::async_trait]
pub trait Notifier: Send + Sync {
    /// Its name in rules.
    fn kind(&self) -> &'static str;

    /// Hands the message over, within a time of its own; repeated with the same delivery when
    /// nobody knows whether the other side has taken it.
    async fn send(&self, claimed: &Claimed) -> Result<(), Fault>;

    /// Sends a message that says that this is a test, and waits for what the other side says.
    async fn send_test(&self, target: &str) -> Result<(), Fault>;
}

/// The channels that this server is set up for. Cheap to clone.
#[derive(Clone, Default)]
pub struct Notifiers(Arc<Inner>);

#[derive(Default)]
struct Inner {
    channels: HashMap<&'static str, Arc<dyn Notifier>>,
    wake: Notify,
}

impl std::fmt::Debug for Notifiers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.channels.keys()).finish()
    }
}

impl Notifiers {
    /// These channels.
    #[must_use]
    pub fn new(channels: impl IntoIterator<Item = Arc<dyn Notifier>>) -> Self {
        let channels = channels.into_iter().map(|channel| (channel.kind(), channel)).collect();
        Self(Arc::new(Inner { channels, wake: Notify::new() }))
    }

    /// The channel of that name, if this server is set up for it.
    #[must_use]
    pub fn get(&self, kind: &str) -> Option<&Arc<dyn Notifier>> {
        self.0.channels.get(kind)
    }

    /// Something may be due that was not written by a commit of a message.
    pub fn wake(&self) {
        self.0.wake.notify_one();
    }

    async fn woken(&self) {
        self.0.wake.notified().await;
    }
}

/// What is said of a channel that this server is not set up for.
#[must_use]
pub fn not_configured(kind: &str) -> String {
    match kind {
        EMAIL => "mail is not set up on this server: give it --smtp-host and --smtp-from, then retry the delivery",
        _ => "this server has no such channel",
    }
    .to_owned()
}
