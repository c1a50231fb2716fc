//! The cached view of clouds, kept fresh by the providers' change notices. What the API and the
//! stages read; and what people are told of it by itself ([`problems`]).

pub mod problems;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use futures_util::future::join_all;
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::model::{Account, LoadBalancer, Place, SecurityGroup, ServerGroup};
use crate::providers::{Error, ErrorKind, Provider, Snapshot};

/// Without a notice a snapshot is read again after this long.
const REFRESH_EVERY: Duration = Duration::from_secs(10);
/// After a failed read, and at most this often whatever the notices.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How long a provider may take to say what it has.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Notices that come closer together than this share one read.
const SETTLE: Duration = Duration::from_millis(10);

/// All accounts and their latest snapshots. Cheap to clone.
#[derive(Clone)]
pub struct Inventory {
    inner: Arc<Inner>,
}

struct Inner {
    accounts: BTreeMap<String, Entry>,
    changed: watch::Sender<u64>,
    clock: Clock,
}

struct Entry {
    provider: Arc<dyn Provider>,
    latest: RwLock<Option<Arc<Snapshot>>>,
    /// Held while reading, so that an older answer never replaces a newer one. The number of the
    /// last read that ended well.
    reading: Mutex<u64>,
    /// How many reads have begun: those who wait in line share the one that begins after they asked.
    begun: AtomicU64,
    /// What its provider answered instead of a snapshot; none after a read that ended well.
    unreadable: RwLock<Option<Unreadable>>,
}

/// An account that cannot be read: what is shown of it is its last state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// Of the first of the reads that failed without one between them that did not.
    pub since: DateTime<Utc>,
    /// What the newest of them answered.
    pub message: String,
    /// Whether it was ever read before.
    pub has_state: bool,
}

impl std::fmt::Display for Unreadable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let since = self.since.to_rfc3339_opts(SecondsFormat::Secs, true);
        let shown = if self.has_state { "its last state is shown" } else { "nothing is known of it" };
        write!(f, "it could not be read since {since}, {shown}: {}", self.message)
    }
}

impl Inventory {
    /// Over these accounts; the last of a name stands. Nothing is read before [`Inventory::run`]
    /// or [`Inventory::refresh`].
    #[must_use]
    pub fn new(providers: Vec<Arc<dyn Provider>>, clock: Clock) -> Self {
        let entry = |provider: Arc<dyn Provider>| Entry {
            provider,
            latest: RwLock::new(None),
            reading: Mutex::new(0),
            begun: AtomicU64::new(0),
            unreadable: RwLock::new(None),
        };
        let accounts = providers.into_iter().map(|provider| (provider.account().name, entry(provider))).collect();
        Self { inner: Arc::new(Inner { accounts, changed: watch::channel(0).0, clock }) }
    }

    /// Keeps the snapshots fresh until the token is cancelled; reads all of each account at every
    /// notice, and every 10 s without one.
    pub async fn run(&self, stop: CancellationToken) {
        let keepers = self.inner.accounts.keys().map(|account| self.keep(account, &stop));
        join_all(keepers).await;
    }

    async fn keep(&self, account: &str, stop: &CancellationToken) {
        let Some(entry) = self.inner.accounts.get(account) else { return };
        let mut changes = entry.provider.changes();
        let mut away = false;
        loop {
            // Before the read: a change during it is a new notice.
            changes.mark_unchanged();
            let read = tokio::select! {
                () = stop.cancelled() => return,
                read = self.refresh(account) => read,
            };
            let pause = match read {
                Ok(_) => {
                    if away {
                        tracing::info!(account, "account `{account}` can be read again");
                    }
                    away = false;
                    REFRESH_EVERY
                }
                Err(error) => {
                    if !away {
                        tracing::warn!(account, error = %error, "account `{account}` cannot be read; its last state is shown");
                    }
                    away = true;
                    RETRY_AFTER
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
                notice = changes.changed() => {
                    // A provider that is gone tells nothing any more; the interval goes on.
                    let settle = if notice.is_ok() { SETTLE } else { pause };
                    tokio::select! {
                        () = stop.cancelled() => return,
                        () = tokio::time::sleep(settle) => {}
                    }
                }
            }
        }
    }

    /// Woken after each change of any snapshot, and when an account can no longer be read or can be
    /// again; the value only counts.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.inner.changed.subscribe()
    }

    /// All accounts, by name.
    #[must_use]
    pub fn accounts(&self) -> Vec<Account> {
        self.inner.accounts.values().map(|entry| entry.provider.account()).collect()
    }

    /// The provider of an account.
    ///
    /// # Errors
    /// `NotFound` when there is no such account; names the ones there are.
    pub fn provider(&self, account: &str) -> Result<Arc<dyn Provider>, Error> {
        self.entry(account).map(|entry| Arc::clone(&entry.provider))
    }

    /// Reads the account anew now and returns it. Those who ask while a read is under way share
    /// the next one.
    ///
    /// # Errors
    /// `NotFound` when there is no such account; what the provider answers.
    pub async fn refresh(&self, account: &str) -> Result<Arc<Snapshot>, Error> {
        let entry = self.entry(account)?;
        let asked = entry.begun.load(Ordering::SeqCst);
        let mut good = entry.reading.lock().await;
        if *good > asked {
            // One that began after we asked has ended well.
            if let Some(snapshot) = entry.latest() {
                return Ok(snapshot);
            }
        }
        let number = entry.begun.fetch_add(1, Ordering::SeqCst) + 1;
        let read = tokio::time::timeout(READ_TIMEOUT, entry.provider.snapshot()).await.unwrap_or_else(|_| {
            Err(Error {
                kind: ErrorKind::Unavailable,
                message: format!("account `{account}` did not answer within {} s", READ_TIMEOUT.as_secs()),
            })
        });
        let read = read.map(Arc::new);
        let mut changed = entry.reads(read.as_ref().err(), &self.inner.clock);
        if let Ok(snapshot) = &read {
            *good = number;
            let mut latest = entry.latest.write().unwrap_or_else(PoisonError::into_inner);
            changed |= latest.as_ref() != Some(snapshot);
            *latest = Some(Arc::clone(snapshot));
        }
        if changed {
            self.inner.changed.send_modify(|count| *count += 1);
        }
        read
    }

    /// Why what is shown of an account may be old; none while it can be read, or where there is no
    /// such account.
    #[must_use]
    pub fn unreadable(&self, account: &str) -> Option<Unreadable> {
        let entry = self.inner.accounts.get(account)?;
        entry.unreadable.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The latest snapshot of an account.
    ///
    /// # Errors
    /// `NotFound` when there is no such account, `Unavailable` when it was never read.
    pub fn snapshot(&self, account: &str) -> Result<Arc<Snapshot>, Error> {
        self.entry(account)?.latest().ok_or_else(|| Error {
            kind: ErrorKind::Unavailable,
            message: format!("account `{account}` has not been read yet; try again in a moment"),
        })
    }

    /// From the latest snapshot.
    #[must_use]
    pub fn server_group(&self, place: &Place, name: &str) -> Option<ServerGroup> {
        let snapshot = self.snapshot(&place.account).ok()?;
        snapshot.server_groups.iter().find(|group| group.spec.place == *place && group.spec.name == name).cloned()
    }

    /// Of all accounts, by place and name.
    #[must_use]
    pub fn server_groups(&self) -> Vec<ServerGroup> {
        let mut all = self.all(|snapshot| &snapshot.server_groups);
        all.sort_by(|a, b| (&a.spec.place, &a.spec.name).cmp(&(&b.spec.place, &b.spec.name)));
        all
    }

    /// From the latest snapshot.
    #[must_use]
    pub fn load_balancer(&self, place: &Place, name: &str) -> Option<LoadBalancer> {
        let snapshot = self.snapshot(&place.account).ok()?;
        snapshot.load_balancers.iter().find(|found| found.spec.place == *place && found.spec.name == name).cloned()
    }

    /// Of all accounts, by place and name.
    #[must_use]
    pub fn load_balancers(&self) -> Vec<LoadBalancer> {
        let mut all = self.all(|snapshot| &snapshot.load_balancers);
        all.sort_by(|a, b| (&a.spec.place, &a.spec.name).cmp(&(&b.spec.place, &b.spec.name)));
        all
    }

    /// From the latest snapshot.
    #[must_use]
    pub fn security_group(&self, place: &Place, name: &str) -> Option<SecurityGroup> {
        let snapshot = self.snapshot(&place.account).ok()?;
        snapshot.security_groups.iter().find(|found| found.spec.place == *place && found.spec.name == name).cloned()
    }

    /// Of all accounts, by place and name.
    #[must_use]
    pub fn security_groups(&self) -> Vec<SecurityGroup> {
        let mut all = self.all(|snapshot| &snapshot.security_groups);
        all.sort_by(|a, b| (&a.spec.place, &a.spec.name).cmp(&(&b.spec.place, &b.spec.name)));
        all
    }

    /// Whether a load balancer of ours listens there: what outgoing calls may always reach.
    #[must_use]
    pub fn listens_on(&self, address: IpAddr, port: u16) -> bool {
        self.inner.accounts.values().filter_map(Entry::latest).any(|snapshot| {
            let mut bound = snapshot.load_balancers.iter().flat_map(|load_balancer| &load_balancer.bound);
            bound.any(|bound| {
                bound.parse::<SocketAddr>().is_ok_and(|bound| {
                    bound.port() == port
                        && (bound.ip() == address || (bound.ip().is_unspecified() && address.is_loopback()))
                })
            })
        })
    }

    fn all<T: Clone>(&self, of: impl Fn(&Snapshot) -> &Vec<T>) -> Vec<T> {
        self.inner.accounts.values().filter_map(Entry::latest).flat_map(|snapshot| of(&snapshot).clone()).collect()
    }

    fn entry(&self, account: &str) -> Result<&Entry, Error> {
        self.inner.accounts.get(account).ok_or_else(|| {
            let names: Vec<_> = self.inner.accounts.keys().map(|name| format!("`{name}`")).collect();
            let there = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            Error { kind: ErrorKind::NotFound, message: format!("there is no account `{account}`; there is {there}") }
        })
    }
}

impl Entry {
    /// Remembers how a read ended. Whether that is another way than before.
    fn reads(&self, error: Option<&Error>, clock: &Clock) -> bool {
        let mut unreadable = self.unreadable.write().unwrap_or_else(PoisonError::into_inner);
        let was = unreadable.is_some();
        *unreadable = error.map(|error| Unreadable {
            since: unreadable.as_ref().map_or_else(|| clock.now(), |unreadable| unreadable.since),
            message: error.message.clone(),
            has_state: self.latest().is_some(),
        });
        was != unreadable.is_some()
    }

    fn latest(&self) -> Option<Arc<Snapshot>> {
        self.latest.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stages::tests::memory::{Memory, place};

    fn inventory() -> (Memory, Inventory) {
        let cloud = Memory::new(Clock::system());
        cloud.given_load_balancer("hello");
        (cloud.clone(), Inventory::new(vec![Arc::new(cloud)], Clock::system()))
    }

    #[tokio::test]
    async fn what_listens_on_all_addresses_is_ours_by_any_of_this_machine() {
        let (cloud, inventory) = inventory();
        cloud.given_bound("hello", "0.0.0.0:8080");
        inventory.refresh("local").await.expect("read");
        assert!(inventory.listens_on([127, 0, 0, 1].into(), 8080));
        assert!(inventory.listens_on([0, 0, 0, 0].into(), 8080));
        assert!(!inventory.listens_on([127, 0, 0, 1].into(), 8081));
        assert!(!inventory.listens_on([10, 0, 0, 1].into(), 8080), "that may be another machine");
    }

    #[tokio::test]
    async fn nothing_is_known_before_the_first_read() {
        let (_, inventory) = inventory();
        assert_eq!(inventory.snapshot("local").expect_err("not read").kind, ErrorKind::Unavailable);
        assert_eq!(inventory.load_balancers(), []);
        let unknown = inventory.refresh("aws").await.expect_err("no such account");
        assert_eq!(
            (unknown.kind, unknown.message.as_str()),
            (ErrorKind::NotFound, "there is no account `aws`; there is `local`")
        );
        inventory.refresh("local").await.expect("read");
        assert!(inventory.load_balancer(&place(), "hello").is_some());
        assert!(inventory.listens_on([127, 0, 0, 1].into(), 18080));
        assert!(!inventory.listens_on([127, 0, 0, 1].into(), 18081));
        assert!(!inventory.listens_on([127, 0, 0, 2].into(), 18080));
    }

    #[tokio::test]
    async fn a_notice_brings_the_change_and_only_a_change_is_told() {
        let (cloud, inventory) = inventory();
        let stop = CancellationToken::new();
        let keeper = tokio::spawn({
            let (inventory, stop) = (inventory.clone(), stop.clone());
            async move { inventory.run(stop).await }
        });
        let mut changed = inventory.changed();
        cloud.given("hello-v000", true, 1);
        let seen = async {
            while inventory.server_group(&place(), "hello-v000").is_none() {
                changed.changed().await.expect("the inventory lives");
            }
        };
        tokio::time::timeout(Duration::from_secs(5), seen).await.expect("long before the regular read");
        // Whatever reads were still under way are over after this one.
        inventory.refresh("local").await.expect("read");
        changed.mark_unchanged();
        inventory.refresh("local").await.expect("read");
        assert!(!changed.has_changed().expect("the inventory lives"), "a read of the same is no change");
        stop.cancel();
        keeper.await.expect("it ends");
    }

    #[tokio::test]
    async fn an_account_that_cannot_be_read_says_since_when_and_why_until_it_can() {
        let start = DateTime::from_timestamp(1_800_000_000, 0).expect("an instant");
        let clock = Clock::manual(start);
        let cloud = Memory::new(clock.clone());
        cloud.given_load_balancer("hello");
        let inventory = Inventory::new(vec![Arc::new(cloud.clone())], clock.clone());
        let mut changed = inventory.changed();
        cloud.given_away(Some("the host does not answer"));
        inventory.refresh("local").await.expect_err("away");
        assert!(changed.has_changed().expect("the inventory lives"));
        let text = inventory.unreadable("local").expect("away").to_string();
        assert_eq!(
            text,
            "it could not be read since 2027-01-15T08:00:00Z, nothing is known of it: the host does not answer"
        );
        cloud.given_away(None);
        inventory.refresh("local").await.expect("read");
        assert_eq!(inventory.unreadable("local"), None);

        clock.advance(Duration::from_secs(5));
        cloud.given_away(Some("the host does not answer"));
        inventory.refresh("local").await.expect_err("away");
        changed.mark_unchanged();
        clock.advance(Duration::from_secs(5));
        cloud.given_away(Some("the host was stopped"));
        inventory.refresh("local").await.expect_err("away");
        assert!(!changed.has_changed().expect("the inventory lives"), "told once");
        let text = inventory.unreadable("local").expect("away").to_string();
        assert_eq!(
            text,
            "it could not be read since 2027-01-15T08:00:05Z, its last state is shown: the host was stopped"
        );
        assert!(inventory.load_balancer(&place(), "hello").is_some());
        cloud.given_away(None);
        inventory.refresh("local").await.expect("read");
        assert!(changed.has_changed().expect("the inventory lives"));
        assert_eq!(inventory.unreadable("local"), None);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn who_asks_after_a_change_reads_it() {
        let (cloud, inventory) = inventory();
        let mut readers = tokio::task::JoinSet::new();
        for number in 0..50 {
            let (cloud, inventory) = (cloud.clone(), inventory.clone());
            readers.spawn(async move {
                let name = format!("hello-v{number:03}");
                cloud.given(&name, true, 1);
                let snapshot = inventory.refresh("local").await.expect("read");
                assert!(snapshot.server_groups.iter().any(|group| group.spec.name == name), "{name}");
            });
        }
        readers.join_all().await;
        assert_eq!(inventory.server_groups().len(), 50);
    }
}
