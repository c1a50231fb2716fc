//! What runs: accounts, server groups, instances, load balancers and security groups, in the
//! words that all clouds share. What only one cloud knows stands in `launch` and is checked by
//! that provider's schema.

use std::collections::BTreeMap;
use std::net::IpAddr;

use chrono::{DateTime, Utc};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// An account at a cloud: where credentials and locations hang.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Account {
    /// Unique.
    pub name: String,
    /// The provider's kind: `host`.
    pub provider: String,
    /// Regions, zones or namespaces; for `host` the names of hosts.
    pub locations: Vec<String>,
}

/// Account and location: part of every address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Place {
    /// The account's name.
    pub account: String,
    /// One of the account's locations; for `host` the name of a host.
    pub location: String,
}

/// How many instances: the least, the wanted and the most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Capacity {
    /// The least; never more than `desired`.
    pub min: u32,
    /// How many the provider keeps running.
    pub desired: u32,
    /// The most; never less than `desired`.
    pub max: u32,
}

/// The numbers do not stand in the order min ≤ desired ≤ max.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("capacity needs min ≤ desired ≤ max, got min {}, desired {}, max {}", .0.min, .0.desired, .0.max)]
pub struct CapacityError(pub Capacity);

impl Capacity {
    /// The same number for all three.
    #[must_use]
    pub const fn pinned(count: u32) -> Self {
        Self { min: count, desired: count, max: count }
    }

    /// The capacity, if its numbers are in order.
    ///
    /// # Errors
    /// Where they are not.
    pub const fn checked(self) -> Result<Self, CapacityError> {
        if self.min <= self.desired && self.desired <= self.max { Ok(self) } else { Err(CapacityError(self)) }
    }
}

/// A server group as wanted. Immutable but for capacity, enabled and shares.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerGroupSpec {
    /// Where it runs.
    #[serde(flatten)]
    pub place: Place,
    /// `application-stack-detail-vNNN`.
    pub name: String,
    /// Free text to free text, for people and programs; nothing follows from it.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// How many instances.
    pub capacity: Capacity,
    /// Whether it takes traffic from its load balancers as soon as it is healthy.
    pub enabled: bool,
    /// Names of the load balancers of the same place that it registers with.
    #[serde(default)]
    pub load_balancers: Vec<String>,
    /// Names of security groups of the same place. What they let in is up to the provider: `host` keeps
    /// them, and admits by those of load balancers alone.
    #[serde(default)]
    pub security_groups: Vec<String>,
    /// The instance's own check; without one a running instance counts as healthy.
    #[serde(default)]
    pub health_check: Option<HealthCheck>,
    /// What to run, in the provider's own words.
    pub launch: Value,
}

/// A check of an instance. Unknown fields are refused by the schemas: serde cannot, where one is flattened.
/// Written in milliseconds and lower case, as it is stored; read in the words of the API too
/// (`"protocol": "HTTP"`, `"interval": "PT1S"`), so that one spelling does everywhere.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", try_from = "WrittenHealthCheck")]
pub struct HealthCheck {
    /// How it asks.
    #[serde(flatten)]
    pub probe: Probe,
    /// From one probe to the next.
    pub interval_ms: u64,
    /// A probe that has no answer by then has failed.
    pub timeout_ms: u64,
    /// Passes in a row that make it healthy.
    pub healthy_threshold: u32,
    /// Failures in a row that make it unhealthy.
    pub unhealthy_threshold: u32,
    /// Failures within this time from the start do not count.
    pub start_grace_ms: u64,
}

/// A check in either spelling.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WrittenHealthCheck {
    #[serde(flatten)]
    probe: Probe,
    interval: Option<String>,
    interval_ms: Option<u64>,
    timeout: Option<String>,
    timeout_ms: Option<u64>,
    #[serde(default = "defaults::healthy_threshold")]
    healthy_threshold: u32,
    #[serde(default = "defaults::unhealthy_threshold")]
    unhealthy_threshold: u32,
    start_grace: Option<String>,
    start_grace_ms: Option<u64>,
}

impl TryFrom<WrittenHealthCheck> for HealthCheck {
    type Error = String;
    fn try_from(written: WrittenHealthCheck) -> Result<Self, String> {
        let span = |name: &str, text: Option<String>, millis: Option<u64>, least: u64, default: u64| {
            let Some(text) = text else { return Ok(millis.unwrap_or(default)) };
            if millis.is_some() {
                return Err(format!("`{name}` and `{name}Ms` say the same; leave one of them out"));
            }
            super::duration::parse(&text)
                .and_then(|span| u64::try_from(span.num_milliseconds()).ok())
                .filter(|millis| (least..=3_600_000).contains(millis))
                .ok_or_else(|| format!("`{name}` is a span of time from {least} ms to an hour, as `PT1S` or `PT0.5S`"))
        };
        Ok(Self {
            interval_ms: span("interval", written.interval, written.interval_ms, 10, defaults::interval_ms())?,
            timeout_ms: span("timeout", written.timeout, written.timeout_ms, 10, defaults::timeout_ms())?,
            start_grace_ms: span(
                "startGrace",
                written.start_grace,
                written.start_grace_ms,
                0,
                defaults::start_grace_ms(),
            )?,
            probe: written.probe,
            healthy_threshold: written.healthy_threshold,
            unhealthy_threshold: written.unhealthy_threshold,
        })
    }
}

mod defaults {
    pub const fn interval_ms() -> u64 {
        1_000
    }
    pub const fn timeout_ms() -> u64 {
        1_000
    }
    pub const fn healthy_threshold() -> u32 {
        1
    }
    pub const fn unhealthy_threshold() -> u32 {
        3
    }
    pub const fn start_grace_ms() -> u64 {
        10_000
    }
    pub fn statuses() -> Vec<u16> {
        vec![200]
    }
}

/// How a check asks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "protocol", rename_all = "camelCase")]
pub enum Probe {
    /// GET of a path; healthy on one of the statuses.
    #[serde(alias = "HTTP")]
    Http(HttpProbe),
    /// A connection is accepted.
    #[serde(alias = "TCP")]
    Tcp {},
    /// A command with the instance's environment exits with 0.
    #[serde(alias = "COMMAND")]
    Command {
        /// The program, then its arguments; no shell reads them.
        command: Vec<String>,
    },
}

/// GET of a path.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpProbe {
    /// May have a query; a `/` is put before it where it begins with none.
    pub path: String,
    /// The statuses of an answer that count as healthy; 200 alone by default.
    #[serde(default = "defaults::statuses")]
    pub statuses: Vec<u16>,
    /// The instance's port when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Text that the first 64 KiB of the body must contain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body_contains: Option<String>,
}

/// Which check says something of an instance's health.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum HealthSource {
    /// The process lives and owns its port.
    Platform,
    /// The instance's own check.
    Instance,
    /// The check of a load balancer.
    LoadBalancer {
        /// The load balancer's name.
        name: String,
    },
}

/// What a check says (Spinnaker's HealthState).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum HealthState {
    /// It was not asked yet, or could not be looked at.
    Unknown,
    /// Has not been healthy since it was started, and may still become so.
    Starting,
    /// Healthy.
    Up,
    /// Was asked and is not healthy.
    Down,
    /// Registered, but taken out of traffic.
    OutOfService,
    /// Finishing what it has.
    Draining,
    /// It does not run: its process has ended or could not be started.
    Failed,
}

/// One source's word about one instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InstanceHealth {
    /// Which check.
    pub source: HealthSource,
    /// What it says.
    pub state: HealthState,
    /// Why, for people: `GET /health answered 503`.
    pub message: String,
}

/// One running copy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Instance {
    /// Unique within the place: `<server group>-<4 base-36 characters>`.
    pub id: String,
    /// The name of its server group.
    pub server_group: String,
    /// The machine's name.
    pub host: String,
    /// Where it is reached; None where the provider does not say.
    pub address: Option<IpAddr>,
    /// The port that it was given; None where the provider does not say.
    pub port: Option<u16>,
    /// The sum of all sources.
    pub state: HealthState,
    /// What each source says, the platform first.
    pub health: Vec<InstanceHealth>,
    /// Rises with each start of a process for this instance.
    pub incarnation: u64,
    /// How often its process was started again after it had ended.
    pub restarts: u32,
    /// Of its process, on its machine; None while none runs.
    pub pid: Option<u32>,
    /// When its present process was started; None while none runs.
    pub launched_at: Option<DateTime<Utc>>,
    /// How the last process ended: `exit status 3`, `signal 9`; where it never began, [`NOT_STARTED`]
    /// and why.
    pub last_exit: Option<String>,
}

/// What an instance's last exit begins with where its command could not be started at all.
pub const NOT_STARTED: &str = "not started: ";

/// A server group as it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerGroup {
    /// As wanted by now: capacity and enabled are those of the last change.
    pub spec: ServerGroupSpec,
    /// When the provider made it.
    pub created_at: DateTime<Utc>,
    /// The key of the operation that made it, where the provider keeps it.
    #[serde(default)]
    pub operation: Option<String>,
    /// All that there are, healthy or not.
    pub instances: Vec<Instance>,
    /// What the provider says is in the way: an artifact that cannot be fetched, a full port range.
    pub problem: Option<String>,
    /// How the limits asked for are enforced: `cgroup`, `rlimit`, or why not.
    pub limits_enforced_by: Option<String>,
}

impl ServerGroup {
    /// How many instances are up by all sources.
    #[must_use]
    pub fn healthy(&self) -> usize {
        self.instances.iter().filter(|instance| instance.state == HealthState::Up).count()
    }
}

/// Transport of a rule or a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// Any bytes over a connection.
    Tcp,
    /// HTTP over TCP.
    Http,
}

/// Where a load balancer listens. A range of ports means: the first free one, kept from then on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Listener {
    /// 127.0.0.1 by default.
    #[serde(default = "loopback")]
    pub address: IpAddr,
    /// The port, or the first of the range; never 0.
    pub port: u16,
    /// The last port of the range; `port` alone when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port_to: Option<u16>,
}

const fn loopback() -> IpAddr {
    IpAddr::V4(std::net::Ipv4Addr::LOCALHOST)
}

/// The check that a load balancer makes of every instance registered with it.
pub type LoadBalancerHealthCheck = HealthCheck;

/// A load balancer as wanted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancerSpec {
    /// Where it listens.
    #[serde(flatten)]
    pub place: Place,
    /// `application[-stack[-detail]]`.
    pub name: String,
    /// At least one.
    pub listeners: Vec<Listener>,
    /// Its own check of each instance behind it; without one all count as healthy to it.
    #[serde(default)]
    pub health_check: Option<LoadBalancerHealthCheck>,
    /// Whose rules let connections in; without any, nothing enters.
    #[serde(default)]
    pub security_groups: Vec<String>,
    /// How long a connection may go on after its instance was taken out.
    #[serde(default = "drain_seconds")]
    pub drain_seconds: u64,
}

const fn drain_seconds() -> u64 {
    30
}

/// Whether two sockets cannot listen on one port, the one here and the other there: the same
/// address, or one of them stands for all addresses. `::` stands for those of IPv4 too.
#[must_use]
pub fn addresses_meet(one: IpAddr, other: IpAddr) -> bool {
    let covers = |all: IpAddr, one: IpAddr| all.is_unspecified() && (all.is_ipv6() || one.is_ipv4());
    one == other || covers(one, other) || covers(other, one)
}

/// A share of a load balancer's traffic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Share {
    /// The server group's name.
    pub server_group: String,
    /// Hundredths of a per cent, 0 to 10,000.
    pub basis_points: u32,
}

/// A load balancer as it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancer {
    /// As wanted by now.
    pub spec: LoadBalancerSpec,
    /// The name of the machine that listens; empty where the provider does not say.
    #[serde(default)]
    pub host: String,
    /// When the provider made it.
    pub created_at: DateTime<Utc>,
    /// `address:port` of each listener that is open, in the order of the spec.
    pub bound: Vec<String>,
    /// Explicit shares; server groups without one divide the rest by healthy instances.
    pub shares: Vec<Share>,
    /// Names of the server groups registered with it, enabled or not.
    pub server_groups: Vec<String>,
    /// What is in its way now.
    #[serde(default)]
    pub problems: Vec<LoadBalancerProblem>,
}

impl LoadBalancer {
    /// All that is in its way, in one text.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        let messages: Vec<&str> = self.problems.iter().map(|problem| problem.message.as_str()).collect();
        (!messages.is_empty()).then(|| messages.join("; "))
    }
}

/// Something that is in a load balancer's way, for as long as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancerProblem {
    /// Of what sort it is.
    pub kind: LoadBalancerProblemKind,
    /// What of the load balancer: a listener's address, or a server group. There is one problem of a
    /// kind about one thing.
    pub about: String,
    /// For people; may change while it lasts.
    pub message: String,
    /// When it began.
    pub since: DateTime<Utc>,
}

/// Of what sort a problem is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum LoadBalancerProblemKind {
    /// A port cannot be opened.
    Listener,
    /// As many connections are open at a listener as may be.
    Connections,
    /// The system gives a listener no connections.
    Accept,
    /// A server group with a share has nothing healthy.
    Share,
    /// Instances are to take its traffic, and none of them is healthy.
    Instances,
}

/// What a server reaches at a place: two that name the same place reach the same host, or one of
/// them is set up wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Served {
    /// Account and location, as the server names them.
    #[serde(flatten)]
    pub place: Place,
    /// Tells the host from all others.
    pub id: String,
    /// The machine's name, for people.
    pub host: String,
}

/// What passed through a load balancer to one server group in one second.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TrafficSecond {
    /// Unix time.
    pub second: i64,
    /// The server group's name.
    pub server_group: String,
    /// Those that were answered, or failed, in that second.
    pub requests: u64,
    /// Answers by class: index 0 for 1xx … 4 for 5xx.
    pub by_class: [u64; 5],
    /// Requests that no instance answered.
    pub failed: u64,
    /// Requests tried again on another instance.
    pub retried: u64,
    /// Latency: (upper bound in microseconds, count), ascending, empty buckets left out.
    pub latency: Vec<(u64, u64)>,
}

/// A rule that lets connections in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InboundRule {
    /// The network of the clients that it lets in.
    #[serde(deserialize_with = "network")]
    pub cidr: IpNet,
    /// The transport that it is about; `host` admits by network and port alone.
    #[serde(default = "tcp")]
    pub protocol: Protocol,
    /// The first port of the listener that it lets in to.
    pub port_from: u16,
    /// The last one, included.
    pub port_to: u16,
}

/// The library's words are of addresses, also where the prefix is at fault.
fn network<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<IpNet, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(|_| {
        serde::de::Error::custom(
            "it is no CIDR block, which is an address, a slash and a prefix of at most 32 (128 for IPv6), such as \
             10.0.0.0/8",
        )
    })
}

const fn tcp() -> Protocol {
    Protocol::Tcp
}

/// A security group as wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecurityGroupSpec {
    /// Where it holds.
    #[serde(flatten)]
    pub place: Place,
    /// `application[-stack[-detail]]`.
    pub name: String,
    /// For people; may be empty.
    #[serde(default)]
    pub description: String,
    /// No rule, no entry.
    pub inbound: Vec<InboundRule>,
}

/// A security group as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecurityGroup {
    /// As wanted by now.
    pub spec: SecurityGroupSpec,
    /// When the provider made it.
    pub created_at: DateTime<Utc>,
    /// Names of the load balancers that use it.
    pub load_balancers: Vec<String>,
    /// Names of the server groups that use it.
    pub server_groups: Vec<String>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_health_check_reads_in_the_words_of_the_api_and_in_those_it_is_stored_in() {
        let stored = json!({
            "protocol": "http", "path": "/health", "statuses": [200, 204], "intervalMs": 500, "timeoutMs": 1000,
            "healthyThreshold": 1, "unhealthyThreshold": 3, "startGraceMs": 60000,
        });
        let asked = json!({
            "protocol": "HTTP", "path": "/health", "statuses": [200, 204], "interval": "PT0.5S", "startGrace": "PT1M",
        });
        let read = |value: &Value| serde_json::from_value::<HealthCheck>(value.clone());
        assert_eq!(read(&stored).expect("as stored"), read(&asked).expect("as asked"));
        assert_eq!(serde_json::to_value(read(&asked).expect("as asked")).expect("written"), stored);
        for (protocol, rest) in [("TCP", json!({})), ("COMMAND", json!({"command": ["true"]}))] {
            let mut check = rest;
            check["protocol"] = protocol.into();
            read(&check).expect(protocol);
        }
        for (wrong, says) in [
            (json!({"protocol": "tcp", "interval": "1s"}), "interval"),
            (json!({"protocol": "tcp", "timeout": "PT2H"}), "an hour"),
            (json!({"protocol": "tcp", "interval": "PT1S", "intervalMs": 1000}), "leave one of them out"),
        ] {
            let error = read(&wrong).expect_err("wrong").to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
