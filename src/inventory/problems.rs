//! People are told what is in a load balancer's way when it begins and when it ends, by a message in
//! the feed. What was told is remembered in the database, so that several servers that look at one
//! cloud tell it once, and a server that was away tells what it missed.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tokio_util::sync::CancellationToken;

use super::Inventory;
use crate::clock::Clock;
use crate::model::{
    About, AboutLoadBalancer, Account, EventBody, LoadBalancerProblem, Notification, NotificationId, Occasion,
    StreamId, names,
};
use crate::providers::Snapshot;
use crate::store::{Commit, CommitError, Guard, NewEvent, ProblemKey, Store, ToldProblem, Write};

/// The beginning of one problem is told at most once in this time; its end follows whenever it comes.
const PAUSE: TimeDelta = TimeDelta::seconds(60);
/// What is gone for so long is over: something that crashes is well now and then.
const SETTLED: TimeDelta = TimeDelta::seconds(10);
/// While something is gone and not over yet, it is looked again after this long.
const LOOK_SOON: Duration = Duration::from_secs(1);
/// Without a change it is looked again after this long, as long as there is anything to look at.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// Bytes of a message.
const TEXT_MAX: usize = 2_000;

/// Tells until the token is cancelled.
pub async fn tell(inventory: Inventory, store: Store, clock: Clock, stop: CancellationToken) {
    let mut changed = inventory.changed();
    // Accounts of which nothing was told that still matters.
    let mut quiet: BTreeMap<String, bool> = BTreeMap::new();
    let mut absent: BTreeMap<String, Absent> = BTreeMap::new();
    loop {
        changed.mark_unchanged();
        for account in inventory.accounts() {
            let was_quiet = quiet.get(&account.name).copied().unwrap_or(false);
            let absent = absent.entry(account.name.clone()).or_default();
            let is_quiet =
                look(&inventory, &store, &clock, (&account, absent), was_quiet).await.unwrap_or_else(|error| {
                    let name = &account.name;
                    tracing::warn!(account = name, "problems of load balancers of `{name}` are not told yet: {error}");
                    false
                });
            quiet.insert(account.name, is_quiet);
        }
        let again = quiet.values().any(|quiet| !quiet);
        let after = if absent.values().all(Absent::is_empty) { LOOK_AGAIN } else { LOOK_SOON };
        tokio::select! {
            () = stop.cancelled() => return,
            () = clock.sleep(after), if again => {}
            changed = changed.changed() => if changed.is_err() {
                // Cannot be while this task holds the inventory; then nothing would ever come.
                return stop.cancelled().await;
            },
        }
    }
}

/// One look at an account. Whether nothing need be looked at until it changes.
async fn look(
    inventory: &Inventory,
    store: &Store,
    clock: &Clock,
    (account, absent): (&Account, &mut Absent),
    was_quiet: bool,
) -> Result<bool, String> {
    // It changes when it is read for the first time.
    let Ok(snapshot) = inventory.snapshot(&account.name) else { return Ok(false) };
    let none = snapshot.load_balancers.iter().all(|balancer| balancer.problems.is_empty());
    if none && was_quiet {
        return Ok(true);
    }
    let told = store.told_problems(&account.name).await.map_err(|error| error.to_string())?;
    for commit in decide(account, &snapshot, &told, absent, clock.now()) {
        match store.commit(commit).await {
            // Refused: another server has told it.
            Ok(_) | Err(CommitError::Refused(_)) => {}
            Err(error) => return Err(error.to_string()),
        }
    }
    Ok(none && told.is_empty())
}

/// Problems that were told and are not there, each with the instant since when this server sees it so.
type Absent = BTreeMap<ProblemKey, DateTime<Utc>>;

/// What is to be told, and remembered of it.
fn decide(
    account: &Account,
    snapshot: &Snapshot,
    told: &[ToldProblem],
    absent: &mut Absent,
    now: DateTime<Utc>,
) -> Vec<Commit> {
    let revision = i64::try_from(snapshot.revision).unwrap_or(i64::MAX);
    let told: BTreeMap<&ProblemKey, &ToldProblem> = told.iter().map(|told| (&told.key, told)).collect();
    // Of another's snapshot that is newer than ours; a host whose clock was put back counts from
    // lower numbers, but not for ever.
    let is_ahead = |told: &ToldProblem| told.revision >= revision && now < told.told_at + PAUSE;
    let present = present(snapshot);
    let mut commits = Vec::new();
    for (key, problem) in &present {
        let before = told.get(key).copied();
        let waits = |told: &ToldProblem| !told.is_over || now < told.begun_at + PAUSE || is_ahead(told);
        if before.is_some_and(waits) {
            continue;
        }
        let mut message = problem.message.clone();
        message.truncate(message.floor_char_boundary(TEXT_MAX));
        let (begun_at, told_at, is_over) = (now, now, false);
        let after = ToldProblem { key: key.clone(), message, is_over, begun_at, told_at, revision };
        commits.push(telling(before, after));
    }
    absent.retain(|key, _| told.get(key).is_some_and(|told| !told.is_over) && !present.contains_key(key));
    // A place that is not this account's is another server's to look at.
    let ours = told.values().filter(|told| account.locations.contains(&told.key.place.location));
    for told in ours.filter(|told| !present.contains_key(&told.key) && !is_ahead(told)) {
        if !told.is_over {
            if now < *absent.entry(told.key.clone()).or_insert(now) + SETTLED {
                continue;
            }
            let after = ToldProblem { is_over: true, told_at: now, revision, ..(*told).clone() };
            commits.push(telling(Some(told), after));
        } else if now >= told.begun_at.max(told.told_at) + PAUSE {
            let guards = vec![Guard::ToldProblem { key: told.key.clone(), revision: Some(told.revision) }];
            let writes = vec![Write::ForgetToldProblem(told.key.clone())];
            commits.push(Commit { guards, writes, events: Vec::new() });
        }
    }
    commits
}

fn present(snapshot: &Snapshot) -> BTreeMap<ProblemKey, &LoadBalancerProblem> {
    let of = |balancer: &'_ crate::model::LoadBalancer, problem: &LoadBalancerProblem| ProblemKey {
        place: balancer.spec.place.clone(),
        load_balancer: balancer.spec.name.clone(),
        kind: problem.kind,
        about: problem.about.clone(),
    };
    let balancers = snapshot.load_balancers.iter();
    balancers
        .flat_map(|balancer| balancer.problems.iter().map(move |problem| (of(balancer, problem), problem)))
        .collect()
}

/// The message, and what is remembered of it, in one commit that only one server can make.
fn telling(before: Option<&ToldProblem>, after: ToldProblem) -> Commit {
    let key = &after.key;
    let (name, account, location) = (&key.load_balancer, &key.place.account, &key.place.location);
    let (occasion, what, text) = if after.is_over {
        (Occasion::LoadBalancerProblemOver, "a problem is over", format!("No longer the case: {}", after.message))
    } else {
        (Occasion::LoadBalancerProblem, "there is a problem", after.message.clone())
    };
    let notification = Notification {
        id: NotificationId::new(),
        occasion,
        application_name: names::parse(name).map_or_else(|| name.clone(), |name| name.application),
        about: About::LoadBalancer(AboutLoadBalancer { place: key.place.clone(), load_balancer: name.clone() }),
        subject: format!("load balancer {name} at {account}/{location}: {what}"),
        text,
        created_at: after.told_at,
    };
    let event = NewEvent {
        stream: StreamId::Notifications,
        seq: None,
        at: after.told_at,
        body: EventBody::Notified { notification: Box::new(notification.clone()) },
    };
    let guard = Guard::ToldProblem { key: key.clone(), revision: before.map(|before| before.revision) };
    let remember = if before.is_some() { Write::UpdateToldProblem(after) } else { Write::InsertToldProblem(after) };
    Commit { guards: vec![guard], writes: vec![Write::InsertNotification(notification), remember], events: vec![event] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::LoadBalancerProblemKind;
    use crate::stages::tests::memory::{Memory, place};

    /// What one server sees, tells and remembers, without a database.
    struct Told {
        account: Account,
        snapshot: Snapshot,
        rows: Vec<ToldProblem>,
        absent: Absent,
    }

    impl Told {
        async fn new() -> Self {
            use crate::providers::Provider as _;
            let cloud = Memory::new(Clock::system());
            cloud.given_load_balancer("hello");
            let snapshot = cloud.snapshot().await.expect("read");
            Self { account: cloud.account(), snapshot, rows: Vec::new(), absent: Absent::new() }
        }

        /// As of a second, with these groups' shares having nowhere to go: the occasions that are told.
        fn at(&mut self, second: i64, groups: &[&str]) -> Vec<Occasion> {
            self.snapshot.revision += 1;
            let problem = |group: &&str| LoadBalancerProblem {
                kind: LoadBalancerProblemKind::Share,
                about: (*group).to_owned(),
                message: format!("the share of {group} goes to the others"),
                since: at(second),
            };
            self.snapshot.load_balancers[0].problems = groups.iter().map(problem).collect();
            self.again(second)
        }

        fn again(&mut self, second: i64) -> Vec<Occasion> {
            let mut occasions = Vec::new();
            for commit in decide(&self.account, &self.snapshot, &self.rows, &mut self.absent, at(second)) {
                for write in commit.writes {
                    match write {
                        Write::InsertNotification(notification) => occasions.push(notification.occasion),
                        Write::InsertToldProblem(told) => self.rows.push(told),
                        Write::UpdateToldProblem(told) => {
                            let row = self.rows.iter_mut().find(|row| row.key == told.key).expect("there");
                            *row = told;
                        }
                        Write::ForgetToldProblem(key) => self.rows.retain(|row| row.key != key),
                        other => panic!("{other:?}"),
                    }
                }
            }
            occasions
        }
    }

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + second, 0).expect("an instant")
    }

    const BEGUN: Occasion = Occasion::LoadBalancerProblem;
    const OVER: Occasion = Occasion::LoadBalancerProblemOver;

    #[tokio::test]
    async fn each_problem_is_told_when_it_begins_and_when_it_ends() {
        let mut told = Told::new().await;
        assert_eq!(told.at(0, &[]), []);
        assert_eq!(told.at(1, &["a"]), [BEGUN]);
        assert_eq!(told.at(2, &["a"]), [], "once");
        assert_eq!(told.at(3, &["a", "b"]), [BEGUN]);
        assert_eq!(told.at(4, &["b"]), [], "it may come again at once");
        assert_eq!(told.at(13, &["b"]), []);
        assert_eq!(told.at(14, &["b"]), [OVER]);
        assert_eq!(told.at(500, &["b"]), []);
        assert_eq!((told.at(501, &[]), told.at(511, &[])), (vec![], vec![OVER]));
        assert_eq!((told.at(572, &[]), told.rows.len(), told.absent.len()), (vec![], 0, 0), "nothing is left of it");
    }

    #[tokio::test]
    async fn what_comes_and_goes_is_one_problem_and_its_beginning_is_told_once_a_minute() {
        let mut told = Told::new().await;
        let mut occasions = Vec::new();
        for second in 0..180 {
            occasions.extend(told.at(second, if second % 5 == 0 { &["a"] } else { &[] }));
        }
        assert_eq!(occasions, [BEGUN], "it was never gone for long");
        assert_eq!(told.at(190, &[]), [OVER]);
        // What began again within the minute, and stays, is told when the minute is over.
        assert_eq!(told.at(191, &["a"]), [BEGUN]);
        assert_eq!((told.at(192, &[]), told.at(202, &[])), (vec![], vec![OVER]));
        assert_eq!(told.at(203, &["a"]), []);
        assert_eq!(told.again(250), []);
        assert_eq!(told.again(252), [BEGUN]);
    }

    #[tokio::test]
    async fn an_older_view_than_the_one_that_was_told_by_tells_nothing() {
        let mut told = Told::new().await;
        let before = told.snapshot.clone();
        assert_eq!(told.at(1, &["a"]), [BEGUN]);
        let during = told.snapshot.clone();
        told.snapshot = before;
        assert_eq!(told.again(2), [], "it had not begun by then");
        told.snapshot = during.clone();
        assert_eq!((told.at(490, &[]), told.at(500, &[])), (vec![], vec![OVER]));
        let after = std::mem::replace(&mut told.snapshot, during);
        assert_eq!(told.again(501), [], "it was over by then");
        // A host whose clock was put back is believed after a while.
        assert_eq!(told.again(600), [BEGUN]);
        told.snapshot = Snapshot { revision: 1, ..after };
        assert_eq!((told.again(601), told.again(700), told.again(710)), (vec![], vec![], vec![OVER]));
    }

    #[tokio::test]
    async fn other_places_are_left_to_who_sees_them() {
        let mut told = Told::new().await;
        assert_eq!(told.at(1, &["a"]), [BEGUN]);
        told.rows[0].key.place.location = format!("not-{}", place().location);
        assert_eq!(told.at(500, &[]), []);
    }

    #[tokio::test]
    async fn a_message_says_what_where_and_of_whom() {
        let mut told = Told::new().await;
        told.at(1, &["a"]);
        let over = ToldProblem { is_over: true, ..told.rows[0].clone() };
        let commit = telling(Some(&told.rows[0]), over);
        let [Write::InsertNotification(message), _] = &commit.writes[..] else { panic!("{commit:?}") };
        assert_eq!(message.application_name, "hello");
        assert_eq!(message.subject, "load balancer hello at local/local: a problem is over");
        assert_eq!(message.text, "No longer the case: the share of a goes to the others");
    }
}
