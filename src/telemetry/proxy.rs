//! The counters of the load balancers. They are kept by the hosts, second by second, for ten
//! minutes; here they are added up from the start of the server on, so that they only rise. There
//! are as many as there are load balancers and server groups behind them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::inventory::Inventory;
use crate::measure::text::{Kind, Text};
use crate::model::{Place, TrafficSecond};

/// From one look to the next.
const EVERY: Duration = Duration::from_secs(5);
/// A second is counted this long after it is over: another host may still tell of it.
const SETTLE_SECONDS: i64 = 3;
/// How long a host may take to tell.
const WITHIN: Duration = Duration::from_secs(2);
/// Hosts keep no more.
const KEPT_SECONDS: i64 = 600;
/// Upper bounds of latencies, in microseconds and as they are shown.
const BOUNDS: [(u64, &str); 14] = [
    (500, "0.0005"),
    (1_000, "0.001"),
    (2_500, "0.0025"),
    (5_000, "0.005"),
    (10_000, "0.01"),
    (25_000, "0.025"),
    (50_000, "0.05"),
    (100_000, "0.1"),
    (250_000, "0.25"),
    (500_000, "0.5"),
    (1_000_000, "1"),
    (2_500_000, "2.5"),
    (10_000_000, "10"),
    (60_000_000, "60"),
];
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// Adds up. Cheap to clone.
#[derive(Clone)]
pub struct Proxies {
    inventory: Inventory,
    clock: Clock,
    state: Arc<Mutex<State>>,
}

/// Place and name of a load balancer.
type Balancer = (Place, String);

struct State {
    /// Seconds before this are not ours to count.
    began: i64,
    /// The last second that is counted.
    counted: BTreeMap<Balancer, i64>,
    totals: BTreeMap<(Balancer, String), Totals>,
}

#[derive(Debug, Default, Clone, PartialEq)]
struct Totals {
    by_class: [u64; 5],
    failed: u64,
    retried: u64,
    /// By bound; the last are above all of them.
    latency: [u64; BOUNDS.len() + 1],
    /// From the upper bounds, in microseconds.
    sum: u64,
}

impl Totals {
    fn add(&mut self, second: &TrafficSecond) {
        for (total, count) in self.by_class.iter_mut().zip(second.by_class) {
            *total += count;
        }
        self.failed += second.failed;
        self.retried += second.retried;
        for (bound, count) in &second.latency {
            let index = BOUNDS.partition_point(|(known, _)| known < bound);
            self.latency[index] += count;
            self.sum = self.sum.saturating_add(bound.saturating_mul(*count));
        }
    }
}

impl Proxies {
    /// Counts from now on.
    #[must_use]
    pub fn new(inventory: Inventory, clock: Clock) -> Self {
        let state = State { began: clock.now().timestamp(), counted: BTreeMap::new(), totals: BTreeMap::new() };
        Self { inventory, clock, state: Arc::new(Mutex::new(state)) }
    }

    /// Asks the hosts again and again until the token is cancelled.
    pub async fn run(self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.collect() => {}
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(EVERY) => {}
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn collect(&self) {
        let balancers: BTreeSet<Balancer> =
            self.inventory.load_balancers().into_iter().map(|found| (found.spec.place, found.spec.name)).collect();
        let groups: BTreeSet<String> =
            self.inventory.server_groups().into_iter().map(|group| group.spec.name).collect();
        {
            // What is gone is counted no more, so that there are never more than exist.
            let mut state = self.state();
            state.counted.retain(|balancer, _| balancers.contains(balancer));
            state.totals.retain(|(balancer, group), _| {
                balancers.contains(balancer) && (group.is_empty() || groups.contains(group))
            });
        }
        for balancer in balancers {
            let Ok(provider) = self.inventory.provider(&balancer.0.account) else { continue };
            let upto = self.clock.now().timestamp() - SETTLE_SECONDS;
            let since = {
                let state = self.state();
                state.counted.get(&balancer).map_or(state.began, |last| last + 1).max(upto - KEPT_SECONDS)
            };
            // A host that does not answer is asked again the next time, and nothing is lost for ten minutes.
            let asked = tokio::time::timeout(WITHIN, provider.traffic(&balancer.0, &balancer.1, since)).await;
            let Ok(Ok(seconds)) = asked else { continue };
            self.state().add(&balancer, &seconds, upto, &groups);
        }
    }

    /// Adds the families.
    pub fn write(&self, text: &mut Text) {
        let state = self.state();
        text.family(
            "gennaker_proxy_requests_total",
            Kind::Counter,
            "Requests through load balancers since the start of the server, by class of the answer; failed: no instance answered.",
        );
        for ((balancer, group), totals) in state.of_groups() {
            let labels = |class| [("load_balancer", balancer), ("server_group", group), ("class", class)];
            for (class, count) in CLASSES.into_iter().zip(totals.by_class) {
                text.sample("gennaker_proxy_requests_total", &labels(class), number(count));
            }
            text.sample("gennaker_proxy_requests_total", &labels("failed"), number(totals.failed));
        }
        let help = "Requests tried again on another instance than one of this server group.";
        text.family("gennaker_proxy_retries_total", Kind::Counter, help);
        for ((balancer, group), totals) in state.of_groups() {
            let labels = [("load_balancer", balancer), ("server_group", group)];
            text.sample("gennaker_proxy_retries_total", &labels, number(totals.retried));
        }
        let help = "Requests that found no healthy instance in any server group.";
        text.family("gennaker_proxy_no_healthy_backend_total", Kind::Counter, help);
        for balancer in state.counted.keys() {
            let failed = state.totals.get(&(balancer.clone(), String::new())).map_or(0, |totals| totals.failed);
            text.sample("gennaker_proxy_no_healthy_backend_total", &[("load_balancer", &balancer.1)], number(failed));
        }
        state.write_latency(text);
    }
}

impl State {
    fn add(&mut self, balancer: &Balancer, seconds: &[TrafficSecond], upto: i64, groups: &BTreeSet<String>) {
        let from = self.counted.get(balancer).map_or(self.began, |last| last + 1);
        for second in seconds.iter().filter(|second| (from..=upto).contains(&second.second)) {
            let group = &second.server_group;
            if group.is_empty() || groups.contains(group) {
                self.totals.entry((balancer.clone(), group.clone())).or_default().add(second);
            }
        }
        let last = self.counted.entry(balancer.clone()).or_insert(upto);
        *last = upto.max(*last);
    }

    /// (load balancer, server group) and what was counted.
    fn of_groups(&self) -> impl Iterator<Item = ((&str, &str), &Totals)> {
        let named = self.totals.iter().filter(|((_, group), _)| !group.is_empty());
        named.map(|((balancer, group), totals)| ((balancer.1.as_str(), group.as_str()), totals))
    }

    fn write_latency(&self, text: &mut Text) {
        const NAME: &str = "gennaker_proxy_request_duration_seconds";
        let help = "Time to the head of the answer; the sum is made from upper bounds and is up to a quarter too high.";
        text.family(NAME, Kind::Histogram, help);
        let (bucket, sum, count) = (format!("{NAME}_bucket"), format!("{NAME}_sum"), format!("{NAME}_count"));
        for ((balancer, group), totals) in self.of_groups() {
            let mut all = 0;
            let bounds = BOUNDS.iter().map(|(_, shown)| *shown).chain(["+Inf"]);
            for (bound, within) in bounds.zip(totals.latency) {
                all += within;
                let labels = [("load_balancer", balancer), ("server_group", group), ("le", bound)];
                text.sample(&bucket, &labels, number(all));
            }
            let labels = [("load_balancer", balancer), ("server_group", group)];
            text.sample(&sum, &labels, number(totals.sum) / 1_000_000.0);
            text.sample(&count, &labels, number(all));
        }
    }
}

/// Exact up to 2^53.
#[expect(clippy::cast_precision_loss, reason = "Prometheus' numbers are of this type")]
fn number(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(second: i64, group: &str, requests: u64) -> TrafficSecond {
        TrafficSecond {
            second,
            server_group: group.to_owned(),
            requests,
            by_class: [0, requests, 0, 0, 0],
            failed: u64::from(group.is_empty()),
            retried: 0,
            latency: vec![(1_000, requests), (70_000_000, 1)],
        }
    }

    #[test]
    fn a_second_is_counted_once_and_only_when_it_is_over() {
        let balancer = (Place { account: "local".into(), location: "local".into() }, "web".to_owned());
        let groups = BTreeSet::from(["web-v000".to_owned()]);
        let mut state = State { began: 100, counted: BTreeMap::new(), totals: BTreeMap::new() };
        let told = |from: i64| -> Vec<_> { (from..=105).map(|at| second(at, "web-v000", 2)).collect() };
        state.add(&balancer, &told(98), 103, &groups);
        state.add(&balancer, &told(98), 103, &groups);
        let key = (balancer.clone(), "web-v000".to_owned());
        assert_eq!(state.totals[&key].by_class[1], 2 * 4, "100 to 103");
        state.add(&balancer, &told(104), 105, &groups);
        state.add(&balancer, &[second(106, "gone-v000", 5), second(106, "", 0)], 106, &groups);
        let totals = &state.totals[&key];
        assert_eq!((totals.by_class[1], totals.latency[1], totals.latency[BOUNDS.len()]), (12, 12, 6));
        assert_eq!(state.totals[&(balancer, String::new())].failed, 1, "nobody was there");
        assert_eq!(state.totals.len(), 2, "a group that is gone is not counted");
    }
}
