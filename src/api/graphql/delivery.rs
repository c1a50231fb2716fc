//! Deliveries: messages on their way to people, and those that were given up.

use std::collections::HashMap;
use std::sync::Arc;

use async_graphql::dataloader::{self, DataLoader};
use async_graphql::{Context, Enum, ID, InputObject, Object, Result, SimpleObject};
use chrono::{DateTime, Utc};

use super::command::{CommandError, Refused, payload, settle};
use super::connection::lists;
use super::ids::{self, Key};
use super::notification::Notification;
use super::session::session;
use crate::api::error::{fault, stored};
use crate::engine::commands;
use crate::model::{self, Action, EMAIL, NotificationId, Resource};
use crate::notifiers::not_configured;
use crate::store::{self, Store};

/// Where a delivery stands.
#[derive(Enum, Debug, Clone, Copy, PartialEq, Eq)]
#[graphql(remote = "model::DeliveryState")]
pub enum DeliveryState {
    /// To be sent, at once or at its next instant.
    Pending,
    /// The other side has taken it.
    Sent,
    /// Given up; `retryDelivery` has it tried again.
    Dead,
}

/// Reads the deliveries of several messages with one query.
pub struct Loader(pub Store);

impl dataloader::Loader<NotificationId> for Loader {
    type Value = Vec<model::Delivery>;
    type Error = Arc<store::Error>;

    async fn load(&self, keys: &[NotificationId]) -> Result<HashMap<NotificationId, Self::Value>, Self::Error> {
        let mut all: HashMap<NotificationId, Self::Value> = HashMap::new();
        for delivery in self.0.deliveries_of(keys).await.map_err(Arc::new)? {
            all.entry(delivery.notification).or_default().push(delivery);
        }
        Ok(all)
    }
}

/// The deliveries of a message, in the order of its rules.
pub async fn load(ctx: &Context<'_>, notification: NotificationId) -> Result<Vec<Delivery>> {
    let loader = ctx.data::<DataLoader<Loader>>()?;
    let found = loader.load_one(notification).await.map_err(|error| fault(&error))?;
    Ok(found.unwrap_or_default().into_iter().map(Delivery).collect())
}

/// A message on its way to one target over one channel.
#[derive(Clone)]
pub struct Delivery(pub model::Delivery);

impl From<model::Delivery> for Delivery {
    fn from(row: model::Delivery) -> Self {
        Self(row)
    }
}

/// A message on its way to one target over one channel.
#[Object]
impl Delivery {
    /// Opaque and global.
    pub async fn id(&self) -> ID {
        Key::Delivery(self.0.id).id()
    }
    /// One of `notifierKinds`.
    async fn channel(&self) -> &str {
        &self.0.channel
    }
    /// Where it goes: an address. Null to whoever may not change pipelines.
    async fn target(&self, ctx: &Context<'_>) -> Result<Option<&str>> {
        Ok(session(ctx)?.sees_targets().then_some(self.0.target.as_str()))
    }
    /// Where it stands.
    async fn state(&self) -> DeliveryState {
        self.0.state.into()
    }
    /// Tries that were begun, since it was written or since `retryDelivery`.
    async fn attempts(&self) -> i32 {
        self.0.attempts
    }
    /// Why the last try failed.
    async fn last_error(&self) -> Option<&str> {
        self.0.last_error.as_deref()
    }
    /// When it is tried next, or is due since; null when it was sent or given up.
    async fn next_attempt_at(&self) -> Option<DateTime<Utc>> {
        self.0.next_at
    }
    /// When it was written.
    async fn created_at(&self) -> DateTime<Utc> {
        self.0.created_at
    }
    /// When the other side took it.
    async fn sent_at(&self) -> Option<DateTime<Utc>> {
        self.0.sent_at
    }
    /// The message.
    async fn notification(&self, ctx: &Context<'_>) -> Result<Option<Notification>> {
        let found = session(ctx)?.api.store.notification(self.0.notification).await.map_err(stored)?;
        Ok(found.map(Notification))
    }
}

/// Which deliveries.
#[derive(InputObject, Default)]
pub struct DeliveryFilter {
    /// Those that stand there.
    state: Option<DeliveryState>,
    /// Those over this channel.
    channel: Option<String>,
}

/// Queries for deliveries.
#[derive(Default)]
pub struct DeliveryQuery;

lists!(
    DeliveryQuery;
    /// Messages on their way, the newest first. Those that were given up: `filter: {state: DEAD}`.
    fn deliveries(
        this, session, page,
        #[graphql(desc = "Which ones; all when absent.")] filter: Option<DeliveryFilter>
    ) -> Delivery {
        session.may(Action::Read, &Resource::Server)?;
        let filter = filter.unwrap_or_default();
        let filter = store::DeliveryFilter { state: filter.state.map(Into::into), channel: filter.channel };
        page.read(async |page| session.api.store.deliveries(&filter, &page).await).await
    }
);

/// A delivery to try again.
#[derive(InputObject)]
pub struct RetryDeliveryInput {
    /// Which one.
    delivery: ID,
}

/// A mail for a test.
#[derive(InputObject)]
pub struct SendTestEmailInput {
    /// The address it goes to.
    to: String,
}

payload!(
    /// What `retryDelivery` came to.
    RetryDeliveryPayload {
        /// The delivery, which is due again.
        delivery: Delivery
    }
);

/// What `sendTestEmail` came to.
#[derive(SimpleObject)]
pub struct SendTestEmailPayload {
    /// Whether the mail server has taken the mail.
    is_sent: bool,
    /// Why it was not sent; empty when it was.
    user_errors: Vec<CommandError>,
}

impl From<Result<Option<()>, Vec<CommandError>>> for SendTestEmailPayload {
    fn from(result: Result<Option<()>, Vec<CommandError>>) -> Self {
        Self { is_sent: result.is_ok(), user_errors: result.err().unwrap_or_default() }
    }
}

/// Mutations of deliveries.
#[derive(Default)]
pub struct DeliveryMutation;

#[Object]
impl DeliveryMutation {
    /// Has a delivery that was given up tried again, at once and with all its tries before it.
    async fn retry_delivery(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "What to try again.")] input: RetryDeliveryInput,
    ) -> Result<Option<RetryDeliveryPayload>> {
        let session = session(ctx)?;
        let retry = async {
            let Some(Key::Delivery(id)) = Key::parse(&input.delivery) else {
                return Err(Refused::invalid(ids::not_an_id(&input.delivery), &["delivery"]));
            };
            let delivery = session.api.commands.retry_delivery(session.actor, id).await?;
            session.api.notifiers.wake();
            Ok(delivery.into())
        };
        settle(retry.await)
    }
    /// Sends a mail to try out the settings, and answers with what the mail server says. For admins.
    async fn send_test_email(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Where to.")] input: SendTestEmailInput,
    ) -> Result<Option<SendTestEmailPayload>> {
        let session = session(ctx)?;
        let send = async {
            session.api.commands.note_test_mail(session.actor, &input.to).await?;
            let unavailable =
                |message: String| Refused::from(CommandError::new(commands::Code::Unavailable, message, &[]));
            let Some(channel) = session.api.notifiers.get(EMAIL) else {
                return Err(unavailable(not_configured(EMAIL)));
            };
            // Before the request itself is given up.
            let sent = tokio::time::timeout(std::time::Duration::from_secs(25), channel.send_test(&input.to));
            tokio::select! {
                sent = sent => match sent {
                    Ok(sent) => sent.map_err(|fault| unavailable(fault.message)),
                    Err(_) => Err(unavailable("the mail server did not take the mail within 25 s".to_owned())),
                },
                // The answer would come when nobody can give it any more.
                () = session.api.config.lifecycle.draining.cancelled() => {
                    Err(unavailable("the server is stopping; whether the mail was sent is not known".to_owned()))
                }
            }
        };
        settle(send.await)
    }
}
