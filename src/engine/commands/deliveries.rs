//! Deliveries that were given up, and messages for a test.

use serde_json::json;

use super::{Code, Commands, Error, about, allow};
use crate::model::{Action, Actor, Delivery, DeliveryId, DeliveryState, Resource, check_address};
use crate::store::{Commit, CommitError, Guard, Write};

pub(super) async fn retry(commands: &Commands, actor: &Actor, id: DeliveryId) -> Result<Delivery, Error> {
    let missing = || Error::new(Code::NotFound, format!("there is no delivery {id}"));
    let Some(delivery) = commands.store.delivery(id).await? else { return Err(missing()) };
    about(delivery.execution);
    let Some(message) = commands.store.notification(delivery.notification).await? else { return Err(missing()) };
    let resource = Resource::Execution { application: message.application_name, execution: delivery.execution };
    allow(actor, Action::Operate, &resource)?;
    let not_dead = |state: DeliveryState| {
        let what = match state {
            DeliveryState::Pending => "it is on its way already",
            DeliveryState::Sent => "it was sent",
            DeliveryState::Dead => "it changed meanwhile; read it again",
        };
        Error::new(Code::WrongState, format!("only a delivery that was given up can be tried again: {what}"))
    };
    if delivery.state != DeliveryState::Dead {
        return Err(not_dead(delivery.state));
    }
    let now = commands.clock.now();
    let detail = json!({ "delivery": id, "channel": delivery.channel, "lastError": delivery.last_error });
    let commit = Commit {
        guards: vec![Guard::Delivery { id, state: DeliveryState::Dead }],
        writes: vec![Write::ReviveDelivery { id, at: now }, commands.audit(actor, Action::Operate, resource, detail)],
        events: Vec::new(),
    };
    match commands.store.commit(commit).await {
        Ok(_) => {
            let revived = Delivery { state: DeliveryState::Pending, attempts: 0, next_at: Some(now), ..delivery };
            Ok(commands.store.delivery(id).await?.unwrap_or(revived))
        }
        Err(CommitError::Refused(_)) => Err(not_dead(DeliveryState::Dead)),
        Err(error) => Err(error.into()),
    }
}

pub(super) async fn note_test(commands: &Commands, actor: &Actor, address: &str) -> Result<(), Error> {
    allow(actor, Action::Administer, &Resource::Server)?;
    check_address(address).map_err(|message| Error::invalid(&["to"], message))?;
    let audit = commands.audit(actor, Action::Administer, Resource::Server, json!({ "testMailTo": address }));
    commands.store.commit(Commit { writes: vec![audit], ..Commit::default() }).await?;
    Ok(())
}
