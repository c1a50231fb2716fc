//! Which instance gets the next request: server groups by their shares (smooth weighted round
//! robin), within a group the instance with the fewest open requests.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::Config;
use super::limits::Limits;
use super::upstream::{Open, Upstream, lock};
use crate::model::Share;

/// Hundredths of a per cent in the whole.
const WHOLE: u32 = 10_000;

/// Everything that a request is judged by, replaced as one.
#[derive(Default)]
pub(super) struct State {
    /// Absent until the load balancer is applied.
    pub config: Option<Config>,
    groups: Vec<Group>,
    /// Per group, what it is owed: a fraction of one request.
    owed: Mutex<Vec<f64>>,
    /// Server groups with a share that has nowhere to go.
    pub starved: Vec<Share>,
}

struct Group {
    name: Arc<str>,
    /// Part of all requests; together 1.
    part: f64,
    members: Vec<Arc<Upstream>>,
    next: AtomicUsize,
}

/// What a request finds.
pub(super) enum Pick {
    Instance(Open),
    /// Every instance has as many open requests as are allowed.
    Full,
    /// No healthy and enabled instance.
    Nothing,
}

impl State {
    /// `usable`: the healthy and enabled instances. What groups are owed goes over from `before`.
    pub fn new(config: Option<Config>, usable: &[Arc<Upstream>], before: &Self) -> Self {
        let mut members: BTreeMap<&Arc<str>, Vec<Arc<Upstream>>> = BTreeMap::new();
        for upstream in usable {
            members.entry(&upstream.group).or_default().push(Arc::clone(upstream));
        }
        let shares = config.as_ref().map_or(&[][..], |config| &config.shares);
        let sizes: Vec<(&str, usize)> = members.iter().map(|(name, members)| (&***name, members.len())).collect();
        let parts = parts(&sizes, shares);
        let starved = shares
            .iter()
            .filter(|share| share.basis_points > 0 && !members.keys().any(|name| ***name == *share.server_group))
            .cloned()
            .collect();
        let owed_before = lock(&before.owed);
        let mut groups = Vec::with_capacity(parts.len());
        let mut owed = Vec::with_capacity(parts.len());
        for ((name, members), part) in members.iter().zip(parts) {
            let old = before.groups.iter().position(|group| group.name == **name);
            owed.push(old.and_then(|old| owed_before.get(old).copied()).unwrap_or(0.0));
            let next = old.map_or(0, |old| before.groups[old].next.load(Ordering::Relaxed));
            groups.push(Group { name: Arc::clone(name), part, members: members.clone(), next: AtomicUsize::new(next) });
        }
        drop(owed_before);
        Self { config, groups, owed: Mutex::new(owed), starved }
    }

    /// Whether a security group's rule lets the address in at the port.
    pub fn admits(&self, address: IpAddr, port: u16) -> bool {
        let address = address.to_canonical();
        self.config.as_ref().is_some_and(|config| {
            config
                .inbound
                .iter()
                .any(|rule| (rule.port_from..=rule.port_to).contains(&port) && rule.cidr.contains(&address))
        })
    }

    /// The instance for a request that was not answered by those in `tried`; on a further try one
    /// of the same server group if it has another. Counts the request in.
    pub fn pick(&self, limits: &Limits, now_ms: u64, tried: &[u64], prefer: Option<&Arc<str>>) -> Pick {
        let first = prefer
            .and_then(|prefer| self.groups.iter().position(|group| group.name == *prefer))
            .or_else(|| self.turn());
        let Some(first) = first else { return Pick::Nothing };
        if let Some(upstream) = self.groups[first].member(limits, now_ms, tried) {
            return Pick::Instance(upstream.enter());
        }
        let others = self.groups.iter().enumerate().filter(|(index, _)| *index != first);
        match others.filter_map(|(_, group)| group.member(limits, now_ms, tried)).next() {
            Some(upstream) => Pick::Instance(upstream.enter()),
            None if self.groups.iter().any(|group| group.members.iter().any(|member| !tried.contains(&member.id))) => {
                Pick::Full
            }
            None => Pick::Nothing,
        }
    }

    /// The group whose turn it is.
    fn turn(&self) -> Option<usize> {
        if self.groups.len() < 2 {
            return (!self.groups.is_empty()).then_some(0);
        }
        let mut owed = lock(&self.owed);
        let mut best = 0;
        for (index, group) in self.groups.iter().enumerate() {
            owed[index] += group.part;
            // Sums of fractions are not exact; a billionth does not decide.
            if owed[index] > owed[best] + 1e-9 {
                best = index;
            }
        }
        owed[best] -= 1.0;
        Some(best)
    }
}

impl Group {
    /// The member with the fewest open requests, in turn among equals.
    fn member(&self, limits: &Limits, now_ms: u64, tried: &[u64]) -> Option<&Arc<Upstream>> {
        let start = self.next.fetch_add(1, Ordering::Relaxed);
        let count = self.members.len();
        let mut best: Option<((bool, usize), &Arc<Upstream>)> = None;
        for step in 0..count {
            let member = &self.members[start.wrapping_add(step) % count];
            let open = member.open();
            if open >= limits.instance_requests || tried.contains(&member.id) {
                continue;
            }
            let rank = (member.is_suspect(now_ms), open);
            if best.is_none_or(|(least, _)| rank < least) {
                best = Some((rank, member));
                if rank == (false, 0) {
                    break;
                }
            }
        }
        best.map(|(_, member)| member)
    }
}

/// The part of all requests for each usable group (name, healthy instances). Explicit shares hold;
/// groups without one divide the rest by their healthy instances; what belongs to a group that is
/// not usable goes to the others in proportion.
fn parts(usable: &[(&str, usize)], shares: &[Share]) -> Vec<f64> {
    let share_of = |name: &str| shares.iter().find(|share| share.server_group == name).map(|share| share.basis_points);
    let given: u32 = shares.iter().map(|share| share.basis_points).fold(0, u32::saturating_add).min(WHOLE);
    let rest = f64::from(WHOLE - given);
    let dividing: usize = usable.iter().filter(|(name, _)| share_of(name).is_none()).map(|(_, healthy)| healthy).sum();
    let weights: Vec<f64> = usable
        .iter()
        .map(|(name, healthy)| match share_of(name) {
            Some(share) => f64::from(share),
            None => rest * *healthy as f64 / dividing as f64,
        })
        .collect();
    let total: f64 = weights.iter().sum();
    if total > 0.0 {
        return weights.iter().map(|weight| weight / total).collect();
    }
    // Only groups that were given nothing are left: those that nobody set to nothing before those
    // that somebody did, since an answer is better than none.
    let eligible = |name: &str| dividing == 0 || share_of(name).is_none();
    let total: usize = usable.iter().filter(|(name, _)| eligible(name)).map(|(_, healthy)| healthy).sum();
    usable.iter().map(|(name, healthy)| if eligible(name) { *healthy as f64 / total as f64 } else { 0.0 }).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn share(server_group: &str, basis_points: u32) -> Share {
        Share { server_group: server_group.into(), basis_points }
    }

    #[test]
    fn groups_without_a_share_divide_the_rest_by_their_instances() {
        assert_eq!(parts(&[("a", 3), ("b", 1)], &[]), [0.75, 0.25]);
        assert_eq!(parts(&[("a", 3), ("b", 1), ("c", 9)], &[share("c", 2_000)]), [0.6, 0.2, 0.2]);
        assert_eq!(parts(&[("a", 3), ("b", 1)], &[share("a", 9_000), share("b", 1_000)]), [0.9, 0.1]);
        assert_eq!(parts(&[("a", 3), ("b", 1)], &[share("a", 10_000)]), [1.0, 0.0]);
        assert_eq!(parts(&[], &[share("a", 10_000)]), [0.0; 0]);
    }

    #[test]
    fn the_share_of_a_group_with_nothing_healthy_goes_to_the_others() {
        assert_eq!(
            parts(&[("a", 1), ("b", 1)], &[share("a", 3_000), share("b", 1_000), share("c", 6_000)]),
            [0.75, 0.25]
        );
        assert_eq!(parts(&[("b", 2)], &[share("a", 9_000), share("b", 1_000)]), [1.0]);
        assert_eq!(
            parts(&[("b", 2), ("c", 2)], &[share("a", 10_000), share("c", 0)]),
            [1.0, 0.0],
            "c is given nothing"
        );
        assert_eq!(parts(&[("c", 2)], &[share("a", 10_000), share("c", 0)]), [1.0], "but is better than no answer");
    }

    proptest! {
        #[test]
        fn parts_are_a_whole(
            healthy in proptest::collection::vec(1_usize..9, 1..6),
            shares in proptest::collection::vec((0_usize..8, 0_u32..12_000), 0..6),
        ) {
            let names: Vec<String> = (0..healthy.len()).map(|index| format!("g{index}")).collect();
            let usable: Vec<(&str, usize)> = names.iter().map(String::as_str).zip(healthy).collect();
            let shares: Vec<Share> = shares.iter().map(|(index, points)| share(&format!("g{index}"), *points)).collect();
            let parts = parts(&usable, &shares);
            prop_assert!(parts.iter().all(|part| (0.0..=1.0 + 1e-9).contains(part)));
            prop_assert!((parts.iter().sum::<f64>() - 1.0).abs() < 1e-9);
        }
    }

    #[test]
    fn ninety_to_ten_is_exact_and_even_and_outlives_a_change_of_state() {
        let limits = Limits::default();
        let upstream = |group: &str| Arc::new(Upstream::new(group.into(), ([127, 0, 0, 1], 1).into(), Arc::default()));
        let usable = [upstream("a"), upstream("b"), upstream("a")];
        let config = Config {
            spec: super::super::tests::spec("app", &[]),
            inbound: Vec::new(),
            shares: vec![share("a", 9_000), share("b", 1_000)],
        };
        let mut state = State::new(Some(config.clone()), &usable, &State::default());
        let mut to_b = Vec::new();
        for request in 0..1_000 {
            // A state that is replaced often does not starve the small share.
            if request % 3 == 0 {
                state = State::new(Some(config.clone()), &usable, &state);
            }
            let Pick::Instance(open) = state.pick(&limits, 0, &[], None) else { panic!("there are instances") };
            if &*open.upstream().group == "b" {
                to_b.push(request);
            }
        }
        assert_eq!(to_b.len(), 100);
        assert!(to_b.windows(2).all(|pair| pair[1] - pair[0] == 10), "evenly: {to_b:?}");
    }
}
