//! Messages to people, and their deliveries.

use sea_orm::{QueryResult, Value};

use super::{Reader, id, int, named, text, time, time_opt};
use crate::model::{About, AboutExecution, AboutLoadBalancer, Delivery, Notification, Place};
use crate::store::Error;

pub const NOTIFICATION: &str = "id, occasion, application_name, execution_id, execution_name, \
    execution_number, stage_id, account, location, load_balancer, subject, message, created_at";

pub fn read_notification(row: &QueryResult) -> Result<Notification, Error> {
    let reader = &mut Reader::new(row, "notification");
    Ok(Notification {
        id: reader.id()?,
        occasion: reader.named()?,
        application_name: reader.get()?,
        about: about(reader)?,
        subject: reader.get()?,
        text: reader.get()?,
        created_at: reader.time()?,
    })
}

/// An execution has an id, name and number; a load balancer its place and name.
fn about(reader: &mut Reader<'_>) -> Result<About, Error> {
    let at = reader.at;
    let execution = (reader.id_opt()?, reader.get::<Option<String>>()?, reader.get::<Option<i64>>()?);
    let stage = reader.id_opt()?;
    let texts = [reader.get::<Option<String>>()?, reader.get()?, reader.get()?];
    match (execution, texts) {
        ((Some(execution), Some(execution_name), Some(execution_number)), _) => {
            Ok(About::Execution(AboutExecution { execution, execution_name, execution_number, stage }))
        }
        (_, [Some(account), Some(location), Some(load_balancer)]) => {
            Ok(About::LoadBalancer(AboutLoadBalancer { place: Place { account, location }, load_balancer }))
        }
        _ => Err(reader.corrupt(at, &"it tells about nothing")),
    }
}

pub fn notification_row(notification: &Notification) -> Vec<Value> {
    let (execution, balancer) = (notification.about_execution(), notification.about_load_balancer());
    let of_balancer = |text: fn(&AboutLoadBalancer) -> &String| Value::String(balancer.map(text).cloned());
    vec![
        id(notification.id.uuid()),
        named(&notification.occasion),
        text(&notification.application_name),
        Value::Uuid(execution.map(|about| about.execution.uuid())),
        Value::String(execution.map(|about| about.execution_name.clone())),
        Value::BigInt(execution.map(|about| about.execution_number)),
        Value::Uuid(execution.and_then(|about| about.stage).map(|stage| stage.uuid())),
        of_balancer(|about| &about.place.account),
        of_balancer(|about| &about.place.location),
        of_balancer(|about| &about.load_balancer),
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
