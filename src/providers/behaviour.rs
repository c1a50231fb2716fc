//! What every provider has to do, whatever cloud it speaks to. Run against the real host
//! (`tests/it/host/behaviour.rs`) and against the cloud in memory that the stages are tested
//! with, so that the double stays like the real one. Panics say what does not hold.

use std::time::Duration;

use gennaker::clock::Clock;
use gennaker::model::{
    Capacity, HealthState, LoadBalancer, LoadBalancerSpec, SecurityGroup, SecurityGroupSpec, ServerGroup,
    ServerGroupSpec, Share,
};
use gennaker::providers::{Error, ErrorKind, Operation, Provider};
use tokio::sync::watch;

/// What is asked to behave.
pub struct Subject<'a> {
    pub provider: &'a dyn Provider,
    pub clock: Clock,
    /// Templates that work; names and membership are replaced. The group becomes healthy by itself.
    pub security_group: SecurityGroupSpec,
    pub load_balancer: LoadBalancerSpec,
    pub server_group: ServerGroupSpec,
}

/// Longer than any change takes on a busy machine.
const WITHIN: Duration = Duration::from_secs(60);

/// Runs the whole suite; it makes objects named `suite…`, at most four instances at a time.
pub async fn behaves(subject: &Subject<'_>) {
    subject.networks_are_made_changed_and_told().await;
    subject.a_group_is_made_once_by_its_operation().await;
    subject.late_calls_change_nothing().await;
    subject.a_group_gets_as_many_instances_as_asked_for().await;
    subject.a_group_leaves_traffic_and_comes_back().await;
    subject.shares_are_set_all_at_once().await;
    subject.what_is_not_there_is_said().await;
    subject.what_is_used_is_not_deleted_and_what_is_gone_is_fine().await;
}

const GROUP: &str = "suite-v000";
const NEXT: &str = "suite-v001";
const NETWORK: &str = "suite";

/// Fails with the kind.
#[track_caller]
fn refused<T: std::fmt::Debug>(what: &str, kind: ErrorKind, result: Result<T, Error>) {
    let error = result.expect_err(what);
    assert_eq!(error.kind, kind, "{what}: {error}");
    assert!(!error.message.is_empty(), "{what}: an error says what, on what and what to do");
}

impl Subject<'_> {
    fn op(&self, key: &str) -> Operation {
        Operation { key: key.to_owned(), fence: 1, deadline: self.clock.now() + Duration::from_secs(60) }
    }

    fn group(&self, name: &str) -> ServerGroupSpec {
        ServerGroupSpec {
            name: name.to_owned(),
            capacity: Capacity { min: 0, desired: 1, max: 4 },
            enabled: true,
            load_balancers: vec![NETWORK.to_owned()],
            security_groups: vec![],
            ..self.server_group.clone()
        }
    }

    fn balancer(&self) -> LoadBalancerSpec {
        let security_groups = vec![NETWORK.to_owned()];
        LoadBalancerSpec { name: NETWORK.to_owned(), security_groups, ..self.load_balancer.clone() }
    }

    fn security(&self) -> SecurityGroupSpec {
        SecurityGroupSpec { name: NETWORK.to_owned(), ..self.security_group.clone() }
    }

    async fn find(&self, name: &str) -> Option<ServerGroup> {
        let snapshot = self.provider.snapshot().await.expect("a snapshot");
        snapshot.server_groups.into_iter().find(|group| group.spec.name == name)
    }

    async fn found_balancer(&self) -> Option<LoadBalancer> {
        let snapshot = self.provider.snapshot().await.expect("a snapshot");
        snapshot.load_balancers.into_iter().find(|found| found.spec.name == NETWORK)
    }

    async fn found_security(&self) -> Option<SecurityGroup> {
        let snapshot = self.provider.snapshot().await.expect("a snapshot");
        snapshot.security_groups.into_iter().find(|found| found.spec.name == NETWORK)
    }

    /// Waits by the provider's own notices until the group is as wanted: without a notice of the
    /// change that brings it about this runs into its deadline.
    async fn until(&self, what: &str, name: &str, wanted: impl Fn(Option<&ServerGroup>) -> bool) {
        let mut changes = self.provider.changes();
        let come = async {
            loop {
                changes.borrow_and_update();
                if wanted(self.find(name).await.as_ref()) {
                    return;
                }
                changes.changed().await.expect("the provider is there");
            }
        };
        let in_time = tokio::time::timeout(WITHIN, come).await;
        assert!(in_time.is_ok(), "{what} did not come about: {:#?}", self.find(name).await);
    }

    async fn healthy(&self, name: &str, count: usize) {
        let wanted = |group: Option<&ServerGroup>| {
            group.is_some_and(|group| group.healthy() == count && group.instances.len() == count)
        };
        self.until(&format!("{count} healthy"), name, wanted).await;
    }

    /// The change is told, and the snapshot after the notice is at least as new as it.
    async fn told(&self, what: &str, mut changes: watch::Receiver<u64>) {
        let told = tokio::time::timeout(WITHIN, changes.changed()).await;
        assert!(told.is_ok_and(|told| told.is_ok()), "no notice of {what}");
        let revision = *changes.borrow_and_update();
        let snapshot = self.provider.snapshot().await.expect("a snapshot");
        assert!(snapshot.revision >= revision, "{what}: {} is older than the notice {revision}", snapshot.revision);
    }

    async fn networks_are_made_changed_and_told(&self) {
        let provider = self.provider;
        refused(
            "a load balancer with an unknown security group",
            ErrorKind::NotFound,
            provider.ensure_load_balancer(&self.op("ex_suite/lb/1/early"), &self.balancer()).await,
        );
        let mut changes = provider.changes();
        changes.mark_unchanged();
        provider.ensure_security_group(&self.op("ex_suite/sg/1/put"), &self.security()).await.expect("made");
        self.told("a new security group", changes).await;
        let described = SecurityGroupSpec { description: "changed".to_owned(), ..self.security() };
        for _ in 0..2 {
            let changed = provider.ensure_security_group(&self.op("ex_suite/sg/2/put"), &described).await;
            assert_eq!(changed.expect("changed").spec, described);
        }
        let made = provider.ensure_load_balancer(&self.op("ex_suite/lb/1/put"), &self.balancer()).await.expect("made");
        assert_eq!(made.spec, self.balancer());
        let drained = LoadBalancerSpec { drain_seconds: self.balancer().drain_seconds + 1, ..self.balancer() };
        let changed = provider.ensure_load_balancer(&self.op("ex_suite/lb/2/put"), &drained).await.expect("changed");
        assert_eq!((changed.spec, changed.created_at), (drained, made.created_at));
        let used = self.found_security().await.expect("it is there");
        assert_eq!(used.load_balancers, [NETWORK]);
    }

    async fn a_group_is_made_once_by_its_operation(&self) {
        let provider = self.provider;
        let spec = self.group(GROUP);
        let unknown = ServerGroupSpec { load_balancers: vec!["nope".to_owned()], ..self.group(NEXT) };
        refused(
            "a group behind an unknown load balancer",
            ErrorKind::NotFound,
            provider.ensure_server_group(&self.op("ex_suite/make/1/nope"), &unknown).await,
        );
        assert!(self.find(NEXT).await.is_none(), "what was refused is not there");
        let mut changes = provider.changes();
        changes.mark_unchanged();
        let op = self.op("ex_suite/make/1/create");
        let made = provider.ensure_server_group(&op, &spec).await.expect("made");
        assert_eq!(made.spec, spec);
        self.told("a new server group", changes).await;
        // Found by the operation, with a higher fence too, and not made anew.
        for fence in [1, 2] {
            let again = provider.ensure_server_group(&Operation { fence, ..op.clone() }, &spec).await.expect("found");
            assert_eq!(again.created_at, made.created_at);
        }
        for other in ["ex_suite/make/2/create", "ex_other/make/1/create"] {
            let other = Operation { fence: 2, ..self.op(other) };
            refused("another's name", ErrorKind::Conflict, provider.ensure_server_group(&other, &spec).await);
        }
        let groups = provider.snapshot().await.expect("a snapshot").server_groups;
        assert_eq!(groups.iter().filter(|group| group.spec.name == GROUP).count(), 1);
        self.healthy(GROUP, 1).await;
        let balancer = self.found_balancer().await.expect("it is there");
        assert_eq!(balancer.server_groups, [GROUP]);
    }

    /// Of a worker that has lost its lease, and of one that woke after its deadline.
    async fn late_calls_change_nothing(&self) {
        let provider = self.provider;
        let newer = Operation { fence: 7, ..self.op("ex_late/a/1/enable") };
        provider.ensure_enabled(&newer, &self.server_group.place, GROUP, true).await.expect("done");
        let before =
            (self.find(GROUP).await.map(|group| group.spec), self.found_balancer().await.map(|found| found.spec));
        let fenced = |key: &str| Operation { fence: 6, ..self.op(&format!("ex_late/{key}/1/x")) };
        let overdue = |key: &str| Operation {
            deadline: self.clock.now() - Duration::from_secs(1),
            ..self.op(&format!("ex_overdue/{key}/1/x"))
        };
        self.all_refused(ErrorKind::Fenced, fenced).await;
        self.all_refused(ErrorKind::Unavailable, overdue).await;
        let after =
            (self.find(GROUP).await.map(|group| group.spec), self.found_balancer().await.map(|found| found.spec));
        assert_eq!(before, after);
        assert!(self.find(NEXT).await.is_none());
        // Fences compare within one execution only.
        let other = Operation { fence: 1, ..self.op("ex_fresh/a/1/enable") };
        provider.ensure_enabled(&other, &self.server_group.place, GROUP, true).await.expect("another execution");
    }

    async fn all_refused(&self, kind: ErrorKind, op: impl Fn(&str) -> Operation) {
        let (provider, place) = (self.provider, &self.server_group.place);
        let none = Capacity { min: 0, desired: 0, max: 0 };
        let (next, security) = (self.group(NEXT), SecurityGroupSpec { inbound: vec![], ..self.security() });
        let balancer = LoadBalancerSpec { drain_seconds: 9, ..self.balancer() };
        refused("create", kind, provider.ensure_server_group(&op("create"), &next).await);
        refused("resize", kind, provider.ensure_capacity(&op("resize"), place, GROUP, none).await);
        refused("disable", kind, provider.ensure_enabled(&op("disable"), place, GROUP, false).await);
        refused("destroy", kind, provider.ensure_server_group_destroyed(&op("destroy"), place, GROUP).await);
        refused("put lb", kind, provider.ensure_load_balancer(&op("lb"), &balancer).await);
        refused("delete lb", kind, provider.ensure_load_balancer_deleted(&op("lb-gone"), place, NETWORK).await);
        refused("shares", kind, provider.ensure_shares(&op("shares"), place, NETWORK, &[]).await);
        refused("put sg", kind, provider.ensure_security_group(&op("sg"), &security).await);
        refused("delete sg", kind, provider.ensure_security_group_deleted(&op("sg-gone"), place, NETWORK).await);
    }

    async fn a_group_gets_as_many_instances_as_asked_for(&self) {
        let (provider, place) = (self.provider, &self.server_group.place);
        for (number, desired) in [3, 1, 2].into_iter().enumerate() {
            let capacity = Capacity { min: 0, desired, max: 4 };
            for _ in 0..2 {
                let op = self.op(&format!("ex_size/r/{number}/resize"));
                let resized = provider.ensure_capacity(&op, place, GROUP, capacity).await.expect("resized");
                assert_eq!(resized.spec.capacity, capacity);
            }
            self.healthy(GROUP, desired as usize).await;
        }
    }

    async fn a_group_leaves_traffic_and_comes_back(&self) {
        let (provider, place) = (self.provider, &self.server_group.place);
        for _ in 0..2 {
            let out = provider.ensure_enabled(&self.op("ex_traffic/a/1/disable"), place, GROUP, false).await;
            let out = out.expect("disabled");
            assert!(!out.spec.enabled);
            assert_eq!(out.healthy(), 0, "out of traffic with the answer, not some time after it");
        }
        let drained = |group: Option<&ServerGroup>| {
            group.is_some_and(|group| {
                group.instances.len() == 2
                    && group.instances.iter().all(|instance| instance.state == HealthState::OutOfService)
            })
        };
        self.until("the end of traffic, with all instances running", GROUP, drained).await;
        let back = provider.ensure_enabled(&self.op("ex_traffic/b/1/enable"), place, GROUP, true).await;
        assert!(back.expect("enabled").spec.enabled);
        self.healthy(GROUP, 2).await;
    }

    async fn shares_are_set_all_at_once(&self) {
        let (provider, place) = (self.provider, &self.server_group.place);
        let shares = [Share { server_group: GROUP.to_owned(), basis_points: 2_500 }];
        for shares in [&shares[..], &[]] {
            let set = provider.ensure_shares(&self.op("ex_shares/a/1/set"), place, NETWORK, shares).await.expect("set");
            assert_eq!(set.shares, shares);
            assert_eq!(self.found_balancer().await.expect("it is there").shares, shares);
        }
        let strange = [Share { server_group: "suite-v099".to_owned(), basis_points: 1 }];
        let set = provider.ensure_shares(&self.op("ex_shares/b/1/set"), place, NETWORK, &strange).await;
        refused("a share of what is not registered", ErrorKind::Invalid, set);
    }

    async fn what_is_not_there_is_said(&self) {
        let (provider, place) = (self.provider, &self.server_group.place);
        let (kind, one) = (ErrorKind::NotFound, Capacity { min: 0, desired: 1, max: 4 });
        refused("resize", kind, provider.ensure_capacity(&self.op("ex_no/a/1/x"), place, NEXT, one).await);
        refused("enable", kind, provider.ensure_enabled(&self.op("ex_no/b/1/x"), place, NEXT, true).await);
        refused("shares", kind, provider.ensure_shares(&self.op("ex_no/c/1/x"), place, "suite-no", &[]).await);
        refused("a log", kind, provider.log_tail(place, "suite-v001-9999", 100).await);
    }

    async fn what_is_used_is_not_deleted_and_what_is_gone_is_fine(&self) {
        let (provider, place) = (self.provider, &self.server_group.place);
        let balancer = async |n: u8| {
            provider.ensure_load_balancer_deleted(&self.op(&format!("ex_gone/lb/{n}/x")), place, NETWORK).await
        };
        let security = async |n: u8| {
            provider.ensure_security_group_deleted(&self.op(&format!("ex_gone/sg/{n}/x")), place, NETWORK).await
        };
        refused("a load balancer in use", ErrorKind::Conflict, balancer(1).await);
        refused("a security group in use", ErrorKind::Conflict, security(1).await);
        for n in 0..2 {
            let op = self.op(&format!("ex_gone/group/{n}/x"));
            provider.ensure_server_group_destroyed(&op, place, GROUP).await.expect("on its way out");
            let left = self.find(GROUP).await;
            assert!(left.is_none_or(|group| group.healthy() == 0), "out of traffic at once");
        }
        self.until("the end of the group", GROUP, |group| group.is_none()).await;
        let op = self.op("ex_gone/group/9/x");
        provider.ensure_server_group_destroyed(&op, place, GROUP).await.expect("absent is fine");
        for n in 2..4 {
            balancer(n).await.expect("free now, and then absent");
        }
        assert!(self.found_balancer().await.is_none());
        for n in 2..4 {
            security(n).await.expect("free now, and then absent");
        }
        assert!(self.found_security().await.is_none());
    }
}
