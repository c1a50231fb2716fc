//! What checks ask, and what they say.

use async_graphql::{Enum, SimpleObject};

use super::scalars::Duration;
use crate::model::{self, Probe};

/// What a check says.
#[derive(Enum, Debug, Clone, Copy, PartialEq, Eq)]
#[graphql(remote = "model::HealthState")]
pub enum HealthState {
    /// Nothing is known yet.
    Unknown,
    /// It is starting.
    Starting,
    /// It is healthy.
    Up,
    /// It is not healthy.
    Down,
    /// Registered, but taken out of traffic.
    OutOfService,
    /// Finishing what it has.
    Draining,
    /// It has ended and will not be started again.
    Failed,
}

/// How a check asks.
#[derive(Enum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum HealthCheckProtocol {
    /// GET of a path; healthy on one of the statuses.
    Http,
    /// A connection is accepted.
    Tcp,
    /// A command with the instance's environment exits with 0.
    Command,
}

/// A check of instances.
#[derive(SimpleObject)]
pub struct HealthCheck {
    /// How it asks.
    protocol: HealthCheckProtocol,
    /// The path that is asked for.
    path: Option<String>,
    /// The answers that are healthy.
    statuses: Vec<u16>,
    /// The port; the instance's own when absent.
    port: Option<u16>,
    /// Text that the body must contain.
    body_contains: Option<String>,
    /// The command that is run.
    command: Vec<String>,
    /// From one probe to the next.
    interval: Duration,
    /// How long an answer may take.
    timeout: Duration,
    /// Passes in a row that make an instance healthy.
    healthy_threshold: u32,
    /// Failures in a row that make it unhealthy.
    unhealthy_threshold: u32,
    /// Failures within this time from the start do not count.
    start_grace: Duration,
}

impl From<&model::HealthCheck> for HealthCheck {
    fn from(check: &model::HealthCheck) -> Self {
        let (protocol, http, command) = match &check.probe {
            Probe::Http(http) => (HealthCheckProtocol::Http, Some(http.clone()), Vec::new()),
            Probe::Tcp {} => (HealthCheckProtocol::Tcp, None, Vec::new()),
            Probe::Command { command } => (HealthCheckProtocol::Command, None, command.clone()),
        };
        let (path, statuses, port, body_contains) = match http {
            Some(http) => (Some(http.path), http.statuses, http.port, http.body_contains),
            None => (None, Vec::new(), None, None),
        };
        Self {
            protocol,
            path,
            statuses,
            port,
            body_contains,
            command,
            interval: check.interval_ms.into(),
            timeout: check.timeout_ms.into(),
            healthy_threshold: check.healthy_threshold,
            unhealthy_threshold: check.unhealthy_threshold,
            start_grace: check.start_grace_ms.into(),
        }
    }
}
