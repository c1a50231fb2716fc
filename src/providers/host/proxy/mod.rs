//! The data plane of a host: HTTP load balancers in front of instances. Knows nothing of processes
//! or files; the daemon tells it what to listen on and who stands behind.

use std::net::SocketAddr;
use std::path::Path;

use crate::model::{InboundRule, LoadBalancerSpec, Share, TrafficSecond};

/// What a load balancer is to be: given whole, applied at once.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub spec: LoadBalancerSpec,
    /// All rules of its security groups; none, no entry.
    pub inbound: Vec<InboundRule>,
    pub shares: Vec<Share>,
}

/// One instance behind a load balancer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    pub server_group: String,
    pub instance: String,
    /// Connections are pooled per (instance, incarnation); another number means another process.
    pub incarnation: u64,
    pub address: SocketAddr,
    /// Passes its own and the load balancer's check.
    pub healthy: bool,
    /// Its server group is enabled; false drains what is open within the spec's `drain_seconds`.
    pub enabled: bool,
}

/// Something people should know: a share with nothing healthy went to the others, a listener failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    pub load_balancer: String,
    pub message: String,
}

/// The load balancers of a host. Cheap to clone.
#[derive(Clone)]
pub struct Proxy {}

#[allow(unused_variables, clippy::unused_async, clippy::todo, clippy::missing_errors_doc)]
impl Proxy {
    /// `stats_dir` keeps the counters over a restart (written each second, atomically).
    pub fn new(stats_dir: &Path) -> std::io::Result<Self> {
        todo!()
    }
    /// Starts or changes a load balancer on listeners that are already bound (non-blocking). An
    /// unchanged listener goes on without a gap; one that is no longer in the list is closed after
    /// its connections are done. Rules and shares change in one atomic step.
    pub fn apply(&self, config: Config, listeners: Vec<std::net::TcpListener>) -> std::io::Result<()> {
        todo!()
    }
    /// Changes rules, shares and check without touching listeners.
    pub fn update(&self, config: Config) {
        todo!()
    }
    /// Closes its listeners and, after the drain time, its connections.
    pub fn remove(&self, load_balancer: &str) {
        todo!()
    }
    /// All instances behind a load balancer, in one atomic step.
    pub fn set_backends(&self, load_balancer: &str, backends: Vec<Backend>) {
        todo!()
    }
    /// Open requests and upgraded connections to the instances of a server group, over all load balancers.
    #[must_use]
    pub fn open_to(&self, server_group: &str) -> usize {
        todo!()
    }
    /// Seconds from `since` (Unix time) on, oldest first, at most 600 seconds back.
    #[must_use]
    pub fn traffic(&self, load_balancer: &str, since: i64) -> Vec<TrafficSecond> {
        todo!()
    }
    #[must_use]
    pub fn notices(&self) -> tokio::sync::broadcast::Receiver<Notice> {
        todo!()
    }
    /// Stops accepting (another process accepts on the same sockets), lets open requests end up to
    /// the deadline, flushes the counters.
    pub async fn drain(&self, up_to: std::time::Duration) {
        todo!()
    }
}
