//! Messages to people: the list, and the feed.

use std::time::Duration;

use async_graphql::{Context, ID, Object, Result, SimpleObject, Subscription};
use chrono::{DateTime, Utc};
use futures_util::stream::{self, BoxStream, StreamExt as _};

use super::connection::lists;
use super::definition::Occasion;
use super::delivery::{self, Delivery};
use super::events::{self, LastCursor, Tail};
use super::execution::Execution;
use super::ids::Key;
use super::load_balancer::LoadBalancer;
use super::place::Placed as _;
use super::session::session;
use super::stage::{self, Stage};
use crate::api::error::stored;
use crate::model::{self, Action, EventBody, Resource, StreamId};

/// A message to people.
#[derive(Clone)]
pub struct Notification(pub model::Notification);

impl From<model::Notification> for Notification {
    fn from(row: model::Notification) -> Self {
        Self(row)
    }
}

/// A message to people.
#[Object]
impl Notification {
    /// Opaque and global.
    pub async fn id(&self) -> ID {
        Key::Notification(self.0.id).id()
    }
    /// Why it was sent.
    async fn occasion(&self) -> Occasion {
        self.0.occasion.into()
    }
    /// One line.
    async fn subject(&self) -> &str {
        &self.0.subject
    }
    /// A few lines of plain text.
    async fn text(&self) -> &str {
        &self.0.text
    }
    /// When it was written.
    async fn created_at(&self) -> DateTime<Utc> {
        self.0.created_at
    }
    /// The application's name as of then.
    async fn application_name(&self) -> &str {
        &self.0.application_name
    }
    /// The pipeline's name as of then, or the operation's title; null where it tells about a load
    /// balancer.
    async fn execution_name(&self) -> Option<&str> {
        self.0.about_execution().map(|about| about.execution_name.as_str())
    }
    /// The execution's number; null where it tells about a load balancer.
    async fn execution_number(&self) -> Option<i64> {
        self.0.about_execution().map(|about| about.execution_number)
    }
    /// The execution it tells about; null where it is gone.
    async fn execution(&self, ctx: &Context<'_>) -> Result<Option<Execution>> {
        match self.0.execution() {
            Some(id) => Ok(session(ctx)?.execution(id).await?.map(Execution::whole)),
            None => Ok(None),
        }
    }
    /// The account of the load balancer it tells about.
    async fn account(&self) -> Option<&str> {
        self.0.about_load_balancer().map(|about| about.place.account.as_str())
    }
    /// The location of the load balancer it tells about.
    async fn location(&self) -> Option<&str> {
        self.0.about_load_balancer().map(|about| about.place.location.as_str())
    }
    /// The name of the load balancer it tells about.
    async fn load_balancer_name(&self) -> Option<&str> {
        self.0.about_load_balancer().map(|about| about.load_balancer.as_str())
    }
    /// The load balancer it tells about, as it is now; null where it is gone.
    async fn load_balancer(&self, ctx: &Context<'_>) -> Result<Option<LoadBalancer>> {
        let session = session(ctx)?;
        let about = self.0.about_load_balancer();
        Ok(about.and_then(|about| LoadBalancer::find(&session, &about.place, &about.load_balancer)))
    }
    /// The stage it tells about.
    async fn stage(&self, ctx: &Context<'_>) -> Result<Option<Stage>> {
        match self.0.stage() {
            Some(id) => stage::find(ctx, id).await,
            None => Ok(None),
        }
    }
    /// Its ways out of the server: one for each target of the rules that asked for it. Empty when it
    /// went to the feed only.
    async fn deliveries(&self, ctx: &Context<'_>) -> Result<Vec<Delivery>> {
        delivery::load(ctx, self.0.id).await
    }
}

/// Queries for messages.
#[derive(Default)]
pub struct NotificationQuery;

lists!(
    NotificationQuery;
    /// All messages, the newest first.
    fn notifications(this, session, page) -> Notification {
        session.may(Action::Read, &Resource::Server)?;
        page.read(async |page| session.api.store.notifications(&page).await).await
    }
);

/// A message, as it is written.
#[derive(SimpleObject)]
pub struct NotificationEvent {
    /// Give it as `after` to go on behind this message.
    cursor: String,
    /// When it was written.
    occurred_at: DateTime<Utc>,
    /// The message.
    notification: Notification,
    /// Messages between the cursor given and this one are no longer kept.
    is_after_gap: bool,
}

/// The feed of messages.
#[derive(Default)]
pub struct NotificationSubscription;

#[Subscription]
impl NotificationSubscription {
    /// Messages to people as they are written: after the cursor given, or from now on.
    async fn notifications(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The cursor of the last message seen; only new messages when absent.")] after: Option<String>,
    ) -> Result<BoxStream<'static, Result<NotificationEvent>>> {
        let session = session(ctx)?;
        session.may(Action::Read, &Resource::Server)?;
        let last = ctx.data_opt::<LastCursor>().cloned().unwrap_or_default();
        let after = last.get().or(after);
        let mut tail = Tail::open(session.api, StreamId::Notifications);
        let (oldest, newest) = session.api.store.event_bounds(StreamId::Notifications).await.map_err(stored)?;
        let mut gap = false;
        tail.seq = match after {
            None => newest,
            Some(text) => {
                let cursor = events::parse(&text, StreamId::Notifications)?;
                gap = cursor.epoch != session.api.store.epoch() || cursor.seq > newest || cursor.seq + 1 < oldest;
                if gap { oldest - 1 } else { cursor.seq }
            }
        };
        Ok(stream::unfold(Some((tail, gap, last)), async |state| {
            let (mut tail, gap, last) = state?;
            loop {
                let event = match tail.next().await {
                    Ok(event) => event,
                    Err(error) => return Some((Err(error), None)),
                };
                let Some(event) = event else {
                    tail.wait(Duration::from_secs(5)).await;
                    continue;
                };
                let EventBody::Notified { notification } = event.body else { continue };
                let cursor = tail.cursor();
                last.set(&cursor);
                let item = NotificationEvent {
                    cursor,
                    occurred_at: event.at,
                    notification: Notification(*notification),
                    is_after_gap: gap,
                };
                return Some((Ok(item), Some((tail, false, last))));
            }
        })
        .boxed())
    }
}
