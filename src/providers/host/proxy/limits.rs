//! What a load balancer allows itself and others: sizes, counts and deadlines.

use std::time::Duration;

/// Limits of all load balancers of a proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Open client connections per listener; further ones wait in the socket's queue.
    pub client_connections: usize,
    /// Head of a request or an answer, in bytes.
    pub header_bytes: usize,
    /// From the first byte of a request to the end of its head; also from accept to the first byte.
    pub header_read: Duration,
    /// How long a kept-alive client connection may rest.
    pub client_idle: Duration,
    /// How long nothing may move between a client and the proxy while a request or a tunnel is open.
    pub client_stall: Duration,
    /// Open requests per instance and load balancer; one with as many is passed over.
    pub instance_requests: usize,
    /// Resting connections kept per instance.
    pub instance_idle: usize,
    /// To establish a connection to an instance.
    pub connect: Duration,
    /// From the last byte of the request's body that moved to the head of the answer.
    pub response_head: Duration,
    /// How long a connection to an instance may rest. Below the five seconds after which common
    /// servers close theirs, so that no request meets a connection that is just being closed.
    pub pool_idle: Duration,
    /// How old a connection to an instance may become.
    pub pool_age: Duration,
    /// Other instances tried after one to which no connection could be made.
    pub connect_retries: usize,
    /// How long an instance to which no connection could be made is passed over if there are others.
    pub suspect: Duration,
    /// Body of a repeatable request that is kept for a second try, in bytes.
    pub replay_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            client_connections: 10_000,
            header_bytes: 64 * 1024,
            header_read: Duration::from_secs(30),
            client_idle: Duration::from_secs(75),
            client_stall: Duration::from_secs(900),
            instance_requests: 4_096,
            instance_idle: 256,
            connect: Duration::from_secs(2),
            response_head: Duration::from_secs(60),
            pool_idle: Duration::from_secs(4),
            pool_age: Duration::from_secs(600),
            connect_retries: 3,
            suspect: Duration::from_secs(1),
            replay_bytes: 64 * 1024,
        }
    }
}

impl Limits {
    /// How often a connection is looked at for having rested, dawdled or stalled.
    pub(super) fn look(&self) -> Duration {
        let shortest = self.header_read.min(self.client_idle).min(self.client_stall);
        (shortest / 3).clamp(Duration::from_millis(10), Duration::from_secs(10))
    }
}
