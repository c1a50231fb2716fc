//! Messages to people, and their deliveries.

use sea_orm::{QueryResult, Value};

use super::{Reader, id, int, named, text, time, time_opt};
use crate::model::{Delivery, Notification};
use crate::store::Error;

pub const NOTIFICATION: &str = "id, occasion, application_name, execution_id, execution_name, \
    execution_number, stage_id, subject, message, created_at";

pub fn read_notification(row: &QueryResult) -> Result<Notification, Error> {
    let reader = &mut Reader::new(row, "notification");
    Ok(Notification {
        id: reader.id()?,
        occasion: reader.named()?,
        application_name: reader.get()?,
        execution: reader.id()?,
        execution_name: reader.get()?,
        execution_number: reader.get()?,
        stage: reader.id_opt()?,
        subject: reader.get()?,
        text: reader.get()?,
        created_at: reader.time()?,
    })
}

pub fn notification_row(notification: &Notification) -> Vec<Value> {
    vec![
        id(notification.id.uuid()),
        named(&notification.occasion),
        text(&notification.application_name),
        id(notification.execution.uuid()),
        text(&notification.execution_name),
        int(notification.execution_number),
        Value::Uuid(notification.stage.map(|stage| stage.uuid())),
        text(&notification.subject),
        text(&notification.text),
        time(notification.created_at),
    ]
}

/// Without the lease, which is the store's own.
pub const DELIVERY: &str = "id, notification_id, execution_id, channel, target, state, attempts, next_at, \
    last_error, created_at, sent_at";

pub fn read_delivery(row: &QueryResult) -> Result<Delivery, Error> {
    let reader = &mut Reader::new(row, "delivery");
    Ok(Delivery {
        id: reader.id()?,
        notification: reader.id()?,
        execution: reader.id()?,
        channel: reader.get()?,
        target: reader.get()?,
        state: reader.named()?,
        attempts: reader.small()?,
        next_at: reader.time_opt()?,
        last_error: reader.get()?,
        created_at: reader.time()?,
        sent_at: reader.time_opt()?,
    })
}

pub fn delivery_row(delivery: &Delivery) -> Vec<Value> {
    vec![
        id(delivery.id.uuid()),
        id(delivery.notification.uuid()),
        id(delivery.execution.uuid()),
        text(&delivery.channel),
        text(&delivery.target),
        named(&delivery.state),
        int(delivery.attempts.into()),
        time_opt(delivery.next_at),
        Value::String(delivery.last_error.clone()),
        time(delivery.created_at),
        time_opt(delivery.sent_at),
    ]
}
