//! Takes deliveries out of the outbox: woken by commits, else asleep until the earliest is due.
//!
//! A try is counted and claimed in the database before anything is sent, so that two servers do
//! not work on one delivery at a time. What came of it is recorded afterwards. When the server
//! dies in between, or the other side's answer is lost, nobody can know whether it was taken: the
//! delivery is tried again, and the receiver tells a repetition by its name (a mail's Message-ID).

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::FutureExt as _;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::{Fault, Notifiers, not_configured};
use crate::clock::Clock;
use crate::model::{Delivery, DeliveryId, OwnerId, StreamId};
use crate::store::{Claimed, Error, Store, Tried};

/// How deliveries are tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// From the first failed try to the second; doubled from there on, give or take a fifth.
    pub retry_first: Duration,
    /// The longest wait between two tries.
    pub retry_max: Duration,
    /// Tries after which a delivery is given up.
    pub attempts_max: i32,
    /// Tries under way at a time.
    pub concurrency: usize,
    /// Tries under way may go on for this long after the server was asked to end.
    pub grace: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            retry_first: Duration::from_secs(30),
            retry_max: Duration::from_secs(3_600),
            attempts_max: 20,
            concurrency: 8,
            grace: Duration::from_secs(10),
        }
    }
}

/// From one look to the next at the latest: notices only shorten waits.
const LOOK_EVERY: TimeDelta = TimeDelta::seconds(5);
/// From one look to the next where something is due that cannot be taken yet.
const LOOK_SOON: TimeDelta = TimeDelta::milliseconds(200);

/// What a try works with.
#[derive(Clone)]
struct Work {
    options: Options,
    notifiers: Notifiers,
    store: Store,
    clock: Clock,
    me: OwnerId,
}

/// Delivers until the token is cancelled. `me` has to be registered, and beating, as an owner.
pub async fn run(
    options: Options,
    notifiers: Notifiers,
    store: Store,
    clock: Clock,
    me: OwnerId,
    stop: CancellationToken,
) {
    let mut bus = store.appended();
    let grace = options.grace;
    let work = Work { options, notifiers, store, clock, me };
    let mut tries = JoinSet::new();
    loop {
        let until = match round(&work, &mut tries).await {
            Ok(until) => until,
            Err(error) => {
                tracing::warn!("deliveries cannot be looked for now: {error}");
                work.clock.now() + LOOK_EVERY
            }
        };
        tokio::select! {
            () = stop.cancelled() => break,
            () = heard(&mut bus) => {}
            () = work.notifiers.woken() => {}
            Some(_) = tries.join_next() => {}
            () = work.clock.sleep_until(until) => {}
        }
    }
    let ended = tokio::time::timeout(grace, async { while tries.join_next().await.is_some() {} }).await;
    if ended.is_err() {
        tracing::warn!("{} deliveries are left to the next start, which will repeat them", tries.len());
    }
}

/// Returns when a message was written, here or at another server.
async fn heard(bus: &mut broadcast::Receiver<(StreamId, i64)>) {
    loop {
        match bus.recv().await {
            Ok((StreamId::Notifications, _)) | Err(RecvError::Lagged(_)) => return,
            Ok(_) => {}
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }
}

/// Begins tries as far as there is room; when to look again at the latest.
async fn round(work: &Work, tries: &mut JoinSet<()>) -> Result<DateTime<Utc>, Error> {
    let now = work.clock.now();
    let room = work.options.concurrency.saturating_sub(tries.len());
    if room > 0 {
        for id in work.store.deliveries_due(now, u64::try_from(room).unwrap_or(u64::MAX)).await? {
            if let Some(claimed) = work.store.delivery_claim(work.me, id, now).await? {
                let delivery = &claimed.delivery;
                let span = tracing::error_span!(
                    "delivery",
                    execution.id = %delivery.execution,
                    delivery.id = %delivery.id,
                    stage.id = claimed.notification.stage().map(tracing::field::display),
                );
                tries.spawn(one(work.clone(), claimed).instrument(span));
            }
        }
    }
    let next = work.store.next_delivery(now).await?.unwrap_or(DateTime::<Utc>::MAX_UTC);
    Ok(next.clamp(now + LOOK_SOON, now + LOOK_EVERY))
}

/// One try, and its record.
async fn one(work: Work, claimed: Claimed) {
    let outcome = match work.notifiers.get(&claimed.delivery.channel) {
        Some(channel) => AssertUnwindSafe(channel.send(&claimed))
            .catch_unwind()
            .await
            .unwrap_or_else(|_| Err(Fault::temporary("the server met a fault of its own while sending"))),
        None => Err(Fault::permanent(not_configured(&claimed.delivery.channel))),
    };
    let delivery = &claimed.delivery;
    let tried = judge(&outcome, delivery, work.clock.now(), &work.options);
    match &tried {
        Tried::Sent { .. } => tracing::info!("{} was delivered", delivery.channel),
        Tried::Again { at, error } => tracing::warn!(
            "try {} to deliver {} failed, the next is at {at}: {error}",
            delivery.attempts,
            delivery.channel
        ),
        Tried::Dead { error } => tracing::error!("{} is given up: {error}", delivery.channel),
    }
    record(&work, delivery, &tried).await;
}

/// Until it is recorded nobody else may have the delivery, so this does not give up.
async fn record(work: &Work, delivery: &Delivery, tried: &Tried) {
    let mut pause = Duration::from_millis(200);
    loop {
        match work.store.delivery_tried(work.me, delivery, tried).await {
            Ok(true) => return,
            Ok(false) => {
                tracing::warn!("somebody else has taken the delivery over meanwhile");
                return;
            }
            Err(error) => tracing::warn!("what came of a try is not recorded yet: {error}"),
        }
        work.clock.sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(10));
    }
}

/// What a try's outcome means.
fn judge(outcome: &Result<(), Fault>, delivery: &Delivery, now: DateTime<Utc>, options: &Options) -> Tried {
    match outcome {
        Ok(()) => Tried::Sent { at: now },
        Err(fault) if fault.permanent => Tried::Dead { error: fault.message.clone() },
        Err(fault) if delivery.attempts >= options.attempts_max => {
            Tried::Dead { error: format!("given up after {} tries: {}", delivery.attempts, fault.message) }
        }
        Err(fault) => {
            let wait = wait(delivery.id, delivery.attempts, options);
            Tried::Again { at: now + TimeDelta::from_std(wait).unwrap_or(LOOK_EVERY), error: fault.message.clone() }
        }
    }
}

/// Doubled with each try, up to the longest; give or take a fifth, so that what failed together
/// does not come back together.
fn wait(id: DeliveryId, attempts: i32, options: &Options) -> Duration {
    let doublings = u32::try_from(attempts.saturating_sub(1)).unwrap_or(0).min(30);
    let wait = options.retry_first.saturating_mul(1 << doublings).min(options.retry_max);
    // The id's last bits are random, and another part of them is taken for each try.
    let random = id.uuid().as_u128().rotate_right(u32::try_from(attempts).unwrap_or(0) * 5) % 41;
    wait.mul_f64(0.8 + f64::from(u32::try_from(random).unwrap_or(20)) / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{DeliveryState, ExecutionId, NotificationId};

    fn delivery(attempts: i32) -> Delivery {
        let at = DateTime::from_timestamp(1_800_000_000, 0).expect("an instant");
        Delivery {
            id: DeliveryId::new(),
            notification: NotificationId::new(),
            execution: ExecutionId::new(),
            channel: "email".into(),
            target: "a@example.org".into(),
            state: DeliveryState::Pending,
            attempts,
            next_at: Some(at),
            last_error: None,
            created_at: at,
            sent_at: None,
        }
    }

    #[test]
    fn waits_double_up_to_the_longest_and_differ_by_a_fifth_at_most() {
        let options = Options::default();
        for (attempts, wanted) in [(1, 30), (2, 60), (3, 120), (8, 3_600), (20, 3_600)] {
            for _ in 0..50 {
                let wait = wait(DeliveryId::new(), attempts, &options).as_secs_f64() / f64::from(wanted);
                assert!((0.79..=1.21).contains(&wait), "try {attempts}: {wait} of {wanted} s");
            }
        }
        let waits: std::collections::HashSet<_> = (0..20).map(|_| wait(DeliveryId::new(), 1, &options)).collect();
        assert!(waits.len() > 3, "{waits:?}");
    }

    #[test]
    fn a_permanent_fault_and_the_last_try_end_it() {
        let (options, now) = (Options::default(), delivery(1).created_at);
        let fails = |attempts, fault: Fault| judge(&Err(fault), &delivery(attempts), now, &options);
        assert_eq!(judge(&Ok(()), &delivery(20), now, &options), Tried::Sent { at: now });
        assert_eq!(fails(1, Fault::permanent("no such user")), Tried::Dead { error: "no such user".into() });
        assert!(matches!(fails(19, Fault::temporary("later")), Tried::Again { at, .. } if at > now));
        let last = Tried::Dead { error: "given up after 20 tries: later".into() };
        assert_eq!(fails(20, Fault::temporary("later")), last);
    }
}
