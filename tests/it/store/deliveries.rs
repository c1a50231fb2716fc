//! Deliveries: claimed by one owner at a time, let go of when it ends, and gone with their message.

use gennaker::model::{Delivery, DeliveryId, DeliveryState};
use gennaker::store::{DeliveryFilter, Tried};

use super::*;

cases! {
    both: a_delivery_is_tried_by_one_owner_at_a_time,
    what_came_of_a_try_is_recorded_by_its_owner_only,
    deliveries_are_listed_and_go_with_their_message,
    a_thread_goes_in_order_and_waits_an_hour_at_most,
}

async fn written(at: &Home, targets: &[&str]) -> (Notification, Vec<Delivery>) {
    let notification = notification("it failed");
    let deliveries: Vec<Delivery> = targets
        .iter()
        .map(|target| Delivery {
            id: DeliveryId::new(),
            notification: notification.id,
            execution: notification.execution().expect("it tells of one"),
            channel: "email".to_owned(),
            target: (*target).to_owned(),
            state: DeliveryState::Pending,
            attempts: 0,
            next_at: Some(start()),
            last_error: None,
            created_at: start(),
            sent_at: None,
        })
        .collect();
    let mut writes = vec![Write::InsertNotification(notification.clone())];
    writes.extend(deliveries.iter().cloned().map(Write::InsertDelivery));
    at.store.commit(write(writes)).await.expect("committed");
    (notification, deliveries)
}

async fn owner(at: &Home) -> OwnerId {
    let owner = OwnerId::new();
    at.store.owner_register(owner, &[]).await.expect("registered");
    owner
}

async fn a_delivery_is_tried_by_one_owner_at_a_time(at: &Home) {
    let (message, deliveries) = written(at, &["a@example.org"]).await;
    let (id, now) = (deliveries[0].id, start());
    let (one, other) = (owner(at).await, owner(at).await);
    assert_eq!(at.store.deliveries_due(now - TimeDelta::seconds(1), 10).await.expect("read"), []);
    assert_eq!(at.store.deliveries_due(now, 10).await.expect("read"), [id]);
    assert!(at.store.delivery_claim(OwnerId::new(), id, now).await.expect("asked").is_none(), "not registered");

    let (first, second) = tokio::join!(at.store.delivery_claim(one, id, now), at.store.delivery_claim(other, id, now));
    let (first, second) = (first.expect("asked"), second.expect("asked"));
    assert!(first.is_some() != second.is_some(), "{first:?} {second:?}");
    let (holder, waiting) = if first.is_some() { (one, other) } else { (other, one) };
    let claimed = first.or(second).expect("one has it");
    assert_eq!((claimed.delivery.attempts, claimed.first, &claimed.notification), (1, id, &message));
    assert_eq!(at.store.deliveries_due(now, 10).await.expect("read"), []);
    assert_eq!(at.store.next_delivery(now).await.expect("read"), None);

    // Its owner ends: what was begun is free, and counted.
    at.store.owner_forget(holder).await.expect("forgotten");
    assert_eq!(at.store.next_delivery(now).await.expect("read"), Some(now));
    let again = at.store.delivery_claim(waiting, id, now).await.expect("asked").expect("free again");
    assert_eq!(again.delivery.attempts, 2);
}

async fn what_came_of_a_try_is_recorded_by_its_owner_only(at: &Home) {
    let (_, deliveries) = written(at, &["a@example.org"]).await;
    let (id, now, me) = (deliveries[0].id, start(), owner(at).await);
    let claimed = at.store.delivery_claim(me, id, now).await.expect("asked").expect("free").delivery;
    let later = now + TimeDelta::seconds(30);
    let again = Tried::Again { at: later, error: "later".to_owned() };
    assert!(!at.store.delivery_tried(OwnerId::new(), &claimed, &again).await.expect("asked"));
    assert!(at.store.delivery_tried(me, &claimed, &again).await.expect("asked"));
    assert!(!at.store.delivery_tried(me, &claimed, &again).await.expect("asked"), "let go of already");
    let read = at.store.delivery(id).await.expect("read").expect("there");
    assert_eq!(
        (read.state, read.next_at, read.last_error.as_deref()),
        (DeliveryState::Pending, Some(later), Some("later"))
    );
    assert!(at.store.delivery_claim(me, id, now).await.expect("asked").is_none(), "not due yet");

    let claimed = at.store.delivery_claim(me, id, later).await.expect("asked").expect("due").delivery;
    let dead = Tried::Dead { error: "no".to_owned() };
    assert!(at.store.delivery_tried(me, &claimed, &dead).await.expect("asked"));
    let revive = || Commit {
        guards: vec![Guard::Delivery { id, state: DeliveryState::Dead }],
        writes: vec![Write::ReviveDelivery { id, at: later }],
        events: Vec::new(),
    };
    at.store.commit(revive()).await.expect("revived");
    assert!(matches!(at.store.commit(revive()).await, Err(CommitError::Refused(_))), "it is dead no more");
    let claimed = at.store.delivery_claim(me, id, later).await.expect("asked").expect("due").delivery;
    assert_eq!(claimed.attempts, 1);
    assert!(at.store.delivery_tried(me, &claimed, &Tried::Sent { at: later }).await.expect("asked"));
    let read = at.store.delivery(id).await.expect("read").expect("there");
    assert_eq!(
        (read.state, read.next_at, read.last_error, read.sent_at),
        (DeliveryState::Sent, None, None, Some(later))
    );
}

async fn deliveries_are_listed_and_go_with_their_message(at: &Home) {
    let (message, deliveries) = written(at, &["a@example.org", "b@example.org", "c@example.org"]).await;
    written(at, &["d@example.org"]).await;
    assert_eq!(at.store.deliveries_of(&[message.id]).await.expect("read"), deliveries);
    let me = owner(at).await;
    let claimed = at.store.delivery_claim(me, deliveries[1].id, start()).await.expect("asked").expect("free").delivery;
    at.store.delivery_tried(me, &claimed, &Tried::Dead { error: "no".to_owned() }).await.expect("recorded");
    let page = PageRequest { after: None, before: None, limit: 10, backward: false };
    let count = async |filter: DeliveryFilter| at.store.deliveries(&filter, &page).await.expect("read").total;
    let dead = DeliveryFilter { state: Some(DeliveryState::Dead), channel: None };
    assert_eq!(count(dead.clone()).await, 1);
    assert_eq!(count(DeliveryFilter::default()).await, 4);
    assert_eq!(count(DeliveryFilter { channel: Some("pigeon".to_owned()), ..dead }).await, 0);
    at.store.prune_notifications(start() + TimeDelta::days(1)).await.expect("pruned");
    assert_eq!(count(DeliveryFilter::default()).await, 0);
}

async fn a_thread_goes_in_order_and_waits_an_hour_at_most(at: &Home) {
    let (_, first) = written(at, &["a@example.org", "b@example.org"]).await;
    let execution = first[0].execution;
    let later = start() + TimeDelta::minutes(1);
    let over = notification("it is over");
    let of_one = over.about_execution().expect("it tells of one").clone();
    let message = Notification { about: About::Execution(AboutExecution { execution, ..of_one }), ..over };
    let second = Delivery { id: DeliveryId::new(), notification: message.id, created_at: later, ..first[0].clone() };
    at.store
        .commit(write(vec![Write::InsertNotification(message), Write::InsertDelivery(second.clone())]))
        .await
        .expect("committed");
    let (_, other) = written(at, &["a@example.org"]).await;
    let due = async |now| at.store.deliveries_due(now, 10).await.expect("read");
    // The other target and the other execution do not wait.
    assert_eq!(due(later).await, [first[0].id, first[1].id, other[0].id]);

    let me = owner(at).await;
    let claim = async |id, now| at.store.delivery_claim(me, id, now).await.expect("asked").expect("free").delivery;
    for delivery in [&first[1], &other[0]] {
        let claimed = claim(delivery.id, later).await;
        at.store.delivery_tried(me, &claimed, &Tried::Sent { at: later }).await.expect("recorded");
    }
    let claimed = claim(first[0].id, later).await;
    assert_eq!(due(later).await, [], "while the first is sent");
    let put_off = later + TimeDelta::hours(2);
    let again = Tried::Again { at: put_off, error: "later".to_owned() };
    at.store.delivery_tried(me, &claimed, &again).await.expect("recorded");
    assert_eq!(due(later).await, [], "while the first is put off");
    assert_eq!(at.store.next_delivery(later).await.expect("read"), Some(put_off));
    let hour = later + TimeDelta::hours(1);
    assert_eq!(due(hour - TimeDelta::seconds(1)).await, []);
    assert_eq!(due(hour).await, [second.id], "it has waited long enough");
    assert_eq!(at.store.next_delivery(hour).await.expect("read"), Some(start()));

    let claimed = claim(first[0].id, put_off).await;
    at.store.delivery_tried(me, &claimed, &Tried::Dead { error: "no".to_owned() }).await.expect("recorded");
    assert_eq!(due(later).await, [second.id], "the first was given up");
}
