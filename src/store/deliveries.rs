//! The way out of the outbox: which deliveries are due, who works on one, and what came of it.
//!
//! Who works on a delivery is an owner, as with executions: a row whose owner is forgotten is free
//! again. No two machines' clocks are compared.
//!
//! The deliveries of one execution to one target go in the order in which they were written, each
//! when those before it were sent or given up; but none waits for them longer than an hour.

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use super::apply::Answer;
use super::page::Key;
use super::prepare::Op;
use super::read::list;
use super::sql::{all, marks, one, padded};
use super::{Error, Page, PageRequest, Store, rows};
use crate::model::{Delivery, DeliveryId, DeliveryState, Notification, NotificationId, OwnerId};

/// Pending, free for an owner to take, and its turn: none of its thread is pending before it, or it
/// was written before an instant.
const FREE: &str = "next_at IS NOT NULL AND (lease_owner IS NULL \
    OR NOT EXISTS (SELECT 1 FROM owner WHERE owner.id = delivery.lease_owner)) \
    AND (created_at <= ? OR NOT EXISTS (SELECT 1 FROM delivery AS earlier \
        WHERE earlier.execution_id = delivery.execution_id AND earlier.id < delivery.id \
        AND earlier.channel = delivery.channel AND earlier.target = delivery.target \
        AND earlier.next_at IS NOT NULL))";

/// So long a delivery waits for those before it: a message that nobody takes for a reason of its
/// own holds the others up no longer.
const TURN_MAX: TimeDelta = TimeDelta::hours(1);

fn waited(now: DateTime<Utc>) -> sea_orm::Value {
    rows::time(now - TURN_MAX)
}

/// Which deliveries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeliveryFilter {
    /// In this state only.
    pub state: Option<DeliveryState>,
    /// Of this channel only: `email`.
    pub channel: Option<String>,
}

/// A delivery that is ours to try, and its message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimed {
    /// With this try counted.
    pub delivery: Delivery,
    /// What to tell.
    pub notification: Notification,
    /// The first delivery of this execution to this target: what the others answer to.
    pub first: DeliveryId,
}

/// What came of a try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tried {
    /// The other side has taken it.
    Sent {
        /// When.
        at: DateTime<Utc>,
    },
    /// It failed, and is worth another try.
    Again {
        /// When it is due again.
        at: DateTime<Utc>,
        /// Why it failed, without secrets and without the target.
        error: String,
    },
    /// It is given up.
    Dead {
        /// Why, without secrets and without the target.
        error: String,
    },
}

impl Store {
    /// Deliveries whose instant and turn have come and that nobody works on, the longest due first.
    ///
    /// # Errors
    /// When the database cannot do it.
    pub async fn deliveries_due(&self, now: DateTime<Utc>, limit: u64) -> Result<Vec<DeliveryId>, Error> {
        let sql = format!("SELECT id FROM delivery WHERE {FREE} AND next_at <= ? ORDER BY next_at, id LIMIT ?");
        let limit = rows::int(i64::try_from(limit).unwrap_or(i64::MAX));
        all(&self.inner.read, &sql, vec![waited(now), rows::time(now), limit])
            .await?
            .iter()
            .map(|row| Ok(row.try_get_by_index::<Uuid>(0)?.into()))
            .collect()
    }

    /// The earliest instant among those whose turn it is and that nobody works on.
    ///
    /// # Errors
    /// When the database cannot do it.
    pub async fn next_delivery(&self, now: DateTime<Utc>) -> Result<Option<DateTime<Utc>>, Error> {
        let sql = format!("SELECT next_at FROM delivery WHERE {FREE} ORDER BY next_at LIMIT 1");
        match one(&self.inner.read, &sql, vec![waited(now)]).await? {
            Some(row) => rows::Reader::new(&row, "delivery").time_opt(),
            None => Ok(None),
        }
    }

    /// Takes a delivery and counts a try, before anything is sent. None when it is not due, when
    /// somebody else works on it, or when `me` is not registered as an owner.
    ///
    /// # Errors
    /// When the database cannot do it.
    pub async fn delivery_claim(
        &self,
        me: OwnerId,
        id: DeliveryId,
        now: DateTime<Utc>,
    ) -> Result<Option<Claimed>, Error> {
        let sql = "UPDATE delivery SET lease_owner = ?, attempts = attempts + 1 WHERE id = ? AND next_at <= ? \
                   AND (lease_owner IS NULL OR NOT EXISTS (SELECT 1 FROM owner WHERE owner.id = delivery.lease_owner)) \
                   AND EXISTS (SELECT 1 FROM owner WHERE owner.id = ?)";
        let owner = rows::id(me.uuid());
        let values = vec![owner.clone(), rows::id(id.uuid()), rows::time(now), owner];
        if !matches!(self.write_op(Op::Count { sql, values }, None).await?.answer, Answer::Count(1)) {
            return Ok(None);
        }
        let Some(delivery) = self.delivery(id).await? else { return Ok(None) };
        let Some(notification) = self.notification(delivery.notification).await? else { return Ok(None) };
        let sql = "SELECT id FROM delivery WHERE execution_id = ? AND target = ? AND channel = ? ORDER BY id LIMIT 1";
        let thread =
            vec![rows::id(delivery.execution.uuid()), rows::text(&delivery.target), rows::text(&delivery.channel)];
        let first = match one(&self.inner.read, sql, thread).await? {
            Some(row) => row.try_get_by_index::<Uuid>(0)?.into(),
            None => delivery.id,
        };
        Ok(Some(Claimed { delivery, notification, first }))
    }

    /// Records what came of the try that was claimed, and lets go of it. False: it is no longer
    /// ours, and what came of it is for the other to say.
    ///
    /// # Errors
    /// When the database cannot do it: the try stays claimed until this succeeds or the owner ends.
    pub async fn delivery_tried(&self, me: OwnerId, claimed: &Delivery, tried: &Tried) -> Result<bool, Error> {
        let (state, next_at, error, sent_at) = match tried {
            Tried::Sent { at } => (DeliveryState::Sent, None, None, Some(*at)),
            Tried::Again { at, error } => (DeliveryState::Pending, Some(*at), Some(error.clone()), None),
            Tried::Dead { error } => (DeliveryState::Dead, None, Some(error.clone()), None),
        };
        let sql = "UPDATE delivery SET state = ?, next_at = ?, last_error = ?, sent_at = ?, lease_owner = NULL \
                   WHERE id = ? AND lease_owner = ? AND attempts = ?";
        let values = vec![
            rows::named(&state),
            rows::time_opt(next_at),
            sea_orm::Value::String(error),
            rows::time_opt(sent_at),
            rows::id(claimed.id.uuid()),
            rows::id(me.uuid()),
            rows::int(claimed.attempts.into()),
        ];
        Ok(matches!(self.write_op(Op::Count { sql, values }, None).await?.answer, Answer::Count(1)))
    }

    /// Gives up all that wait to be sent, for this reason; how many. Each may be tried again.
    ///
    /// # Errors
    /// When the database cannot do it.
    pub async fn give_up_deliveries(&self, why: &str) -> Result<u64, Error> {
        let sql = "UPDATE delivery SET state = ?, next_at = NULL, lease_owner = NULL, last_error = ? WHERE state = ?";
        let (dead, pending) = (rows::named(&DeliveryState::Dead), rows::named(&DeliveryState::Pending));
        let op = Op::Count { sql, values: vec![dead, rows::text(why), pending] };
        match self.write_op(op, None).await?.answer {
            Answer::Count(count) => Ok(count),
            _ => Ok(0),
        }
    }

    /// The delivery of that id.
    pub async fn delivery(&self, id: DeliveryId) -> Result<Option<Delivery>, Error> {
        let sql = format!("SELECT {} FROM delivery WHERE id = ?", rows::DELIVERY);
        one(&self.inner.read, &sql, vec![rows::id(id.uuid())]).await?.as_ref().map(rows::read_delivery).transpose()
    }

    /// Newest first.
    pub async fn deliveries(&self, filter: &DeliveryFilter, page: &PageRequest) -> Result<Page<Delivery>, Error> {
        let mut list = list("delivery", rows::DELIVERY, Key::Id, true);
        if let Some(state) = filter.state {
            list.filter.push_str(" AND state = ?");
            list.values.push(rows::named(&state));
        }
        if let Some(channel) = &filter.channel {
            list.filter.push_str(" AND channel = ?");
            list.values.push(rows::text(channel));
        }
        list.page(&self.inner.read, page, |row| {
            let delivery = rows::read_delivery(row)?;
            Ok((delivery.id.uuid().simple().to_string(), delivery))
        })
        .await
    }

    /// The deliveries of several messages at once, for loaders; in the order they were written.
    pub async fn deliveries_of(&self, notifications: &[NotificationId]) -> Result<Vec<Delivery>, Error> {
        let mut deliveries = Vec::new();
        for some in notifications.chunks(256) {
            let values = padded(some.iter().map(|id| rows::id(id.uuid())).collect());
            let sql = format!(
                "SELECT {} FROM delivery WHERE notification_id IN ({}) ORDER BY id",
                rows::DELIVERY,
                marks(values.len())
            );
            for row in all(&self.inner.read, &sql, values).await? {
                deliveries.push(rows::read_delivery(&row)?);
            }
        }
        Ok(deliveries)
    }
}
