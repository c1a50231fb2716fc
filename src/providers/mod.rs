//! Clouds. A provider speaks in `ensure_…`: each call carries a [`Ticket`], finds its own earlier
//! work by the ticket's operation, and is refused when its fence is lower than one seen before for
//! the same object. Providers hold no database handle.

#[cfg(test)]
pub(crate) mod behaviour;
pub mod host;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::watch;

use crate::model::{
    Account, Capacity, LoadBalancer, LoadBalancerSpec, Place, SecurityGroup, SecurityGroupSpec, ServerGroup,
    ServerGroupSpec, Share, TrafficSecond,
};

/// What a call carries so that the cloud can know and order it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Operation {
    /// `<execution>/<stage>/<attempt>/<effect>`: the same means the same call.
    pub key: String,
    /// The highest seen of each execution stands; lower ones are refused.
    pub fence: i64,
    /// The call has ended by then.
    pub deadline: DateTime<Utc>,
}

/// A provider refused or failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{message}")]
pub struct Error {
    /// What sort of failure.
    pub kind: ErrorKind,
    /// What failed, on what, and what to do.
    pub message: String,
}

/// What sort of failure, and so whether trying again helps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ErrorKind {
    /// The thing named does not exist.
    NotFound,
    /// The name is taken by something that another operation made.
    Conflict,
    /// The input does not hold.
    Invalid,
    /// The fence is lower than one seen.
    Fenced,
    /// A limit is reached: ports, memory, instances.
    Exhausted,
    /// The cloud cannot be reached or has failed; try again.
    Unavailable,
}

impl ErrorKind {
    /// Whether the same call may work later.
    #[must_use]
    pub const fn is_temporary(self) -> bool {
        matches!(self, Self::Unavailable)
    }
}

/// Everything a provider has in an account, at one instant.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Snapshot {
    /// Rises with each change.
    pub revision: u64,
    /// With their instances.
    pub server_groups: Vec<ServerGroup>,
    /// With what is in their way.
    pub load_balancers: Vec<LoadBalancer>,
    /// With what uses them.
    pub security_groups: Vec<SecurityGroup>,
}

/// What a provider says of itself.
#[derive(Debug, Clone, PartialEq)]
pub struct ProviderKind {
    /// Its name in accounts: `host`.
    pub kind: &'static str,
    /// Its name for people.
    pub title: &'static str,
    /// One to three sentences.
    pub description: &'static str,
    /// JSON Schema of [`ServerGroupSpec::launch`].
    pub schema: Value,
    /// A launch that passes.
    pub example: Value,
}

/// A place in what an instance wrote: files are named by a generation that only rises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LogPlace {
    /// Which file.
    pub generation: u64,
    /// Bytes from the beginning of the generation's file.
    pub offset: u64,
}

/// A part of what an instance wrote, in whole lines; a longer line than was asked for comes in pieces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LogPart {
    /// What is not UTF-8 is replaced.
    pub text: String,
    /// Where the next part begins.
    pub end: LogPlace,
    /// What came before was removed: the place asked for is no longer there.
    pub after_gap: bool,
    /// More is there already.
    pub more: bool,
}

/// A cloud account.
#[async_trait]
pub trait Provider: Send + Sync {
    /// What the provider says of itself.
    fn kind(&self) -> ProviderKind;
    /// The account that it speaks for.
    fn account(&self) -> Account;
    /// Checks a launch beyond the schema. Error: (JSON pointer, message). What stands at the JSON
    /// pointers `open` is not known yet: it is text, and counts as any value.
    ///
    /// # Errors
    /// The first fault.
    fn validate_launch(&self, launch: &Value, open: &[String]) -> Result<(), (String, String)>;

    /// Fresh, not cached.
    async fn snapshot(&self) -> Result<Snapshot, Error>;
    /// The revision that the provider knows to be newest; woken at each change.
    fn changes(&self) -> watch::Receiver<u64>;

    /// Makes the server group, or finds it made by the same operation key. `Conflict` when another made it.
    async fn ensure_server_group(&self, op: &Operation, spec: &ServerGroupSpec) -> Result<ServerGroup, Error>;
    /// How many instances it has from now on; they are started and stopped after the answer.
    async fn ensure_capacity(
        &self,
        op: &Operation,
        place: &Place,
        name: &str,
        capacity: Capacity,
    ) -> Result<ServerGroup, Error>;
    /// In or out of its load balancers; out drains what is open.
    async fn ensure_enabled(
        &self,
        op: &Operation,
        place: &Place,
        name: &str,
        enabled: bool,
    ) -> Result<ServerGroup, Error>;
    /// Out of traffic at once and on its way out for good: its instances are stopped by its stop
    /// policy, and then the snapshot has it no more. Comes back before that. Absent already is fine.
    async fn ensure_server_group_destroyed(&self, op: &Operation, place: &Place, name: &str) -> Result<(), Error>;
    /// Makes the load balancer, or changes the one of that name; its shares stay.
    async fn ensure_load_balancer(&self, op: &Operation, spec: &LoadBalancerSpec) -> Result<LoadBalancer, Error>;
    /// Absent already is fine; `Conflict` while server groups are registered with it.
    async fn ensure_load_balancer_deleted(&self, op: &Operation, place: &Place, name: &str) -> Result<(), Error>;
    /// All shares of a load balancer at once; an empty list removes them.
    async fn ensure_shares(
        &self,
        op: &Operation,
        place: &Place,
        load_balancer: &str,
        shares: &[Share],
    ) -> Result<LoadBalancer, Error>;
    /// Makes the security group, or changes the one of that name; its rules hold for new connections at
    /// once.
    async fn ensure_security_group(&self, op: &Operation, spec: &SecurityGroupSpec) -> Result<SecurityGroup, Error>;
    /// Absent already is fine; `Conflict` while something uses it.
    async fn ensure_security_group_deleted(&self, op: &Operation, place: &Place, name: &str) -> Result<(), Error>;

    /// The end of what an instance wrote, at most `bytes` (≤ 64 KiB).
    async fn log_tail(&self, place: &Place, instance: &str, bytes: usize) -> Result<String, Error>;
    /// What an instance wrote from a place on, or the last `bytes` of it; at most `bytes` (≤ 64 KiB).
    async fn log_part(
        &self,
        place: &Place,
        instance: &str,
        from: Option<LogPlace>,
        bytes: usize,
    ) -> Result<LogPart, Error>;
    /// Counters of a load balancer for the seconds from `since` (Unix time) on, at most 600.
    async fn traffic(&self, place: &Place, load_balancer: &str, since: i64) -> Result<Vec<TrafficSecond>, Error>;
}
