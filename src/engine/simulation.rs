//! The semantics as tables, and random graphs with random outcomes by seed: everything here runs
//! on rows in memory, without a runner and without time passing by itself.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, TimeDelta, Utc};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::Options;
use super::apply::{self, Changes, Report, Seen, Setting, StepEnd, new_stage};
use super::contract::{Next, Registry};
use super::decide::{Decision, Facts, decide};
use super::script::{self, Config, World};
use crate::model::{
    ApplicationId, Cancel, CancelMode, ChildSpec, Execution, ExecutionId, ExecutionKind, OnFailure, Phase, PrincipalId,
    Stage, StageId, Status, Wake,
};

/// One execution and a driver that runs its steps in an order of its own.
struct Sim {
    execution: Execution,
    facts: Facts,
    registry: Registry,
    options: Options,
    now: DateTime<Utc>,
    /// Keys in the order in which the stages began.
    began: Vec<String>,
    seed: u64,
}

fn spec(key: &str, requires: &[&str], config: Value) -> ChildSpec {
    ChildSpec {
        key: key.to_owned(),
        kind: "script".to_owned(),
        name: String::new(),
        requires: requires.iter().map(|key| (*key).to_owned()).collect(),
        config,
        timeout_seconds: None,
        on_failure: OnFailure::FailPipeline,
    }
}

fn ok(key: &str, requires: &[&str]) -> ChildSpec {
    spec(key, requires, json!({}))
}

fn fails(key: &str, requires: &[&str], on_failure: OnFailure) -> ChildSpec {
    ChildSpec { on_failure, ..spec(key, requires, json!({"steps": ["fail"]})) }
}

/// Polls for ever.
fn waits(key: &str, requires: &[&str]) -> ChildSpec {
    spec(key, requires, json!({"steps": [{"poll": {"millis": 60_000}}]}))
}

impl Sim {
    fn new(specs: &[ChildSpec]) -> Self {
        let now = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        let registry = script::registry(&World::default());
        let mut execution = Execution {
            id: ExecutionId::new(),
            kind: ExecutionKind::Pipeline,
            application: ApplicationId::new(),
            application_name: "hello".to_owned(),
            pipeline: None,
            name: "test".to_owned(),
            revision: 1,
            number: 1,
            status: Status::NotStarted,
            version: 1,
            event_seq: 0,
            started_by: PrincipalId::new(),
            started_by_name: "ann".to_owned(),
            trigger: None,
            parameters: json!({}),
            notifications: Vec::new(),
            cancel: None,
            failure: None,
            created_at: now,
            started_at: None,
            ended_at: None,
            deadline: now + TimeDelta::days(3),
            stages: Vec::new(),
        };
        for spec in specs {
            let kind = registry.get("script").unwrap();
            let position = i64::try_from(execution.stages.len()).unwrap();
            let stage = new_stage(&execution, spec, kind.as_ref(), None, position, 1);
            execution.stages.push(stage);
        }
        let (facts, options) = (Facts::default(), Options::default());
        Self { execution, facts, registry, options, now, began: Vec::new(), seed: 1 }
    }

    fn random(&mut self, below: usize) -> usize {
        // xorshift64*
        self.seed ^= self.seed >> 12;
        self.seed ^= self.seed << 25;
        self.seed ^= self.seed >> 27;
        usize::try_from(self.seed.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33).unwrap() % below
    }

    fn stage(&self, key: &str) -> &Stage {
        self.execution.stages.iter().find(|stage| stage.key == key).unwrap_or_else(|| panic!("no stage {key}"))
    }

    fn status(&self, key: &str) -> Status {
        self.stage(key).status
    }

    fn cancel(&mut self, mode: CancelMode) {
        let by = self.execution.started_by;
        let (by_name, at, reason) = ("ann".to_owned(), self.now, String::new());
        self.execution.cancel = Some(Cancel { by, by_name, at, reason, mode });
    }

    /// Decides until only steps and waits are left, and begins the steps.
    fn settle(&mut self) -> Vec<Decision> {
        for _ in 0..1_000 {
            let before: HashMap<StageId, Status> = self.statuses();
            let decisions = decide(&self.execution, self.now, &self.facts);
            let mut acted = false;
            for decision in &decisions {
                let resolved = match decision {
                    Decision::StartStage(id) => {
                        let stage = self.execution.stage(*id).unwrap();
                        self.began.push(stage.key.clone());
                        self.requirements_hold(stage);
                        Some(Ok(stage.config.clone()))
                    }
                    _ => None,
                };
                let waits = matches!(decision, Decision::Step(_) | Decision::WaitUntil(_) | Decision::Interrupt(_));
                acted |= !waits;
                let setting = Setting { registry: &self.registry, options: &self.options, now: self.now };
                apply::decision(&mut self.execution, decision, resolved, &setting, &mut Changes::default());
            }
            self.terminal_is_terminal(&before);
            if !acted {
                for decision in &decisions {
                    match decision {
                        Decision::Step(id) => {
                            self.facts.busy.insert(*id);
                            self.facts.not_before.remove(id);
                        }
                        Decision::Interrupt(id) => self.end_step(*id, StepEnd::Interrupted),
                        _ => {}
                    }
                }
                if decisions.iter().any(|decision| matches!(decision, Decision::Interrupt(_))) {
                    continue;
                }
                return decisions;
            }
        }
        panic!("decisions do not come to an end");
    }

    fn statuses(&self) -> HashMap<StageId, Status> {
        self.execution.stages.iter().map(|stage| (stage.id, stage.status)).collect()
    }

    fn terminal_is_terminal(&self, before: &HashMap<StageId, Status>) {
        for stage in &self.execution.stages {
            if let Some(before) = before.get(&stage.id).filter(|before| before.is_complete()) {
                assert_eq!(stage.status, *before, "{} left a terminal state", stage.key);
            }
        }
    }

    fn requirements_hold(&self, stage: &Stage) {
        if stage.phase == Phase::Unwind {
            return;
        }
        for key in &stage.requires {
            let sibling = self
                .execution
                .stages
                .iter()
                .find(|other| other.parent == stage.parent && other.phase == stage.phase && other.key == *key)
                .unwrap();
            assert!(sibling.status.lets_downstream_start(), "{} began before {key} let it", stage.key);
        }
    }

    fn end_step(&mut self, id: StageId, end: StepEnd) {
        self.facts.busy.remove(&id);
        let before = Seen::of(self.execution.stage(id).unwrap());
        let report = Report { stage: id, before, end, progress: None, outputs: Map::new(), intents: Vec::new() };
        let setting = Setting { registry: &self.registry, options: &self.options, now: self.now };
        let later = apply::outcome(&mut self.execution, &report, &setting, &mut Changes::default());
        if let Some(at) = later.not_before {
            self.facts.not_before.insert(id, at);
        }
    }

    /// Ends the step as its script says.
    fn step(&mut self, id: StageId) {
        let stage = self.execution.stage(id).unwrap();
        let config = Config::deserialize(stage.resolved.as_ref().unwrap()).unwrap();
        let cursor = usize::try_from(stage.cursor.as_u64().unwrap_or(0)).unwrap();
        let returned = script::pure(&config, cursor).map(|next| match next {
            Next::Goto(cursor) => Next::Goto(json!(cursor)),
            Next::Poll { cursor, after, topic } => Next::Poll { cursor: json!(cursor), after, topic },
            Next::Wait { cursor, signal, timeout } => Next::Wait { cursor: json!(cursor), signal, timeout },
            Next::Spawn { children, cursor } => Next::Spawn { children, cursor: json!(cursor) },
            Next::Done(outputs) => Next::Done(outputs),
        });
        self.end_step(id, StepEnd::Returned(returned));
    }

    /// Runs until nothing happens without time passing.
    fn run(&mut self) -> &mut Self {
        for _ in 0..10_000 {
            self.settle();
            let mut busy: Vec<StageId> = self.facts.busy.iter().copied().collect();
            busy.sort_unstable();
            if busy.is_empty() {
                return self;
            }
            let chosen = busy[self.random(busy.len())];
            self.step(chosen);
        }
        panic!("the execution does not come to rest");
    }

    /// Lets time pass to the next instant waited for, again and again, until it is over.
    fn run_to_end(&mut self) -> &mut Self {
        for _ in 0..100_000 {
            self.run();
            if self.execution.status.is_complete() {
                return self;
            }
            let decisions = decide(&self.execution, self.now, &self.facts);
            let next = decisions.iter().filter_map(|decision| match decision {
                Decision::WaitUntil(at) => Some(*at),
                _ => None,
            });
            self.now = next.min().expect("what is not over waits for an instant");
        }
        panic!("the execution never ends");
    }

    fn over(&mut self, status: Status, stages: &[(&str, Status)]) {
        self.run();
        let found: BTreeMap<&str, Status> = stages.iter().map(|(key, _)| (*key, self.status(key))).collect();
        let expected: BTreeMap<&str, Status> = stages.iter().copied().collect();
        assert_eq!(found, expected);
        assert_eq!(self.execution.status, status);
        assert!(self.execution.ended_at.is_some());
    }
}

use Status::{Canceled, Failed, FailedContinue, NotStarted, Running, Stopped, Succeeded};

#[test]
fn a_simple_pipeline_runs() {
    Sim::new(&[ok("a", &[])]).over(Succeeded, &[("a", Succeeded)]);
}

#[test]
fn steps_run_to_completion() {
    let steps = json!({"steps": ["goto", {"poll": {"millis": 60_000}}]});
    let mut sim = Sim::new(&[spec("a", &[], steps)]);
    sim.run();
    assert_eq!(sim.status("a"), Running);
    // A poll that goes on for ever is ended by the stage's timeout.
    sim.run_to_end();
    assert_eq!(sim.stage("a").failure.as_ref().unwrap().code, "TIMEOUT");
    assert_eq!(sim.execution.failure.as_ref().unwrap().code, "TIMEOUT");
}

#[test]
fn a_fork_and_join_runs_in_order() {
    let mut sim = Sim::new(&[ok("1", &[]), ok("2a", &["1"]), ok("2b", &["1"]), ok("3", &["2a", "2b"])]);
    sim.over(Succeeded, &[("1", Succeeded), ("2a", Succeeded), ("2b", Succeeded), ("3", Succeeded)]);
    assert_eq!((sim.began[0].as_str(), sim.began[3].as_str()), ("1", "3"));
    assert_eq!(sim.began.len(), 4, "each begins once");
}

#[test]
fn a_pipeline_may_end_in_branches_of_different_length() {
    let mut sim = Sim::new(&[ok("1", &[]), ok("2a", &["1"]), ok("2b", &["1"]), ok("3b", &["2b"])]);
    sim.over(Succeeded, &[("2a", Succeeded), ("3b", Succeeded)]);
}

#[test]
fn a_pipeline_fails_if_a_stage_fails() {
    let mut sim = Sim::new(&[fails("a", &[], OnFailure::FailPipeline), ok("b", &["a"])]);
    sim.over(Failed, &[("a", Failed), ("b", NotStarted)]);
    let failure = sim.execution.failure.as_ref().unwrap();
    assert_eq!((failure.code.as_str(), failure.stage), ("SCRIPTED", Some(sim.stage("a").id)));
}

#[test]
fn a_failing_branch_cancels_the_others() {
    let mut sim = Sim::new(&[
        ok("1", &[]),
        fails("2a", &["1"], OnFailure::FailPipeline),
        ok("3a", &["2a"]),
        waits("2b", &["1"]),
        ok("3b", &["2b"]),
        ok("2c", &["1"]),
        ok("4", &["3a", "3b"]),
    ]);
    sim.seed = 7;
    sim.run();
    sim.over(
        Failed,
        &[
            ("1", Succeeded),
            ("2a", Failed),
            ("2b", Canceled),
            ("3a", NotStarted),
            ("3b", NotStarted),
            ("4", NotStarted),
        ],
    );
    let ended = sim.stage("2b");
    assert!(ended.started_at.is_some() && ended.ended_at == Some(sim.now), "a long poll is ended at once");
}

#[test]
fn a_failure_that_may_be_ignored_lets_downstream_go_on() {
    let mut sim = Sim::new(&[
        ok("1", &[]),
        fails("2a", &["1"], OnFailure::Continue),
        ok("3a", &["2a"]),
        ok("2b", &["1"]),
        ok("4", &["3a", "2b"]),
    ]);
    sim.over(Succeeded, &[("2a", FailedContinue), ("3a", Succeeded), ("2b", Succeeded), ("4", Succeeded)]);
}

#[test]
fn a_stopped_branch_leaves_its_joins_and_fails_the_pipeline_in_the_end_if_wanted() {
    for (option, end) in [(OnFailure::StopBranchThenFail, Failed), (OnFailure::StopBranch, Succeeded)] {
        let mut sim = Sim::new(&[
            ok("1", &[]),
            fails("2a", &["1"], option),
            ok("3a", &["2a"]),
            ok("2b", &["1"]),
            ok("3b", &["2b"]),
            ok("4", &["3a", "3b"]),
        ]);
        sim.over(end, &[("2a", Stopped), ("3a", NotStarted), ("2b", Succeeded), ("3b", Succeeded), ("4", NotStarted)]);
    }
}

#[test]
fn a_cancelled_execution_ends_what_runs_and_what_has_not_begun() {
    let mut sim = Sim::new(&[ok("1", &[]), waits("2", &["1"]), ok("3", &["2"])]);
    sim.run();
    sim.cancel(CancelMode::Unwind);
    sim.over(Canceled, &[("1", Succeeded), ("2", Canceled), ("3", Canceled)]);
}

#[test]
fn an_execution_cancelled_before_it_began_is_over_at_once() {
    let mut sim = Sim::new(&[ok("1", &[]), ok("2", &["1"])]);
    sim.cancel(CancelMode::Unwind);
    sim.over(Canceled, &[("1", Canceled), ("2", Canceled)]);
    assert!(sim.began.is_empty());
}

#[test]
fn a_cancel_of_what_just_ended_well_leaves_it_succeeded() {
    let mut sim = Sim::new(&[ok("1", &[])]);
    sim.settle();
    let id = sim.stage("1").id;
    sim.step(id);
    sim.cancel(CancelMode::Unwind);
    sim.over(Succeeded, &[("1", Succeeded)]);
}

#[test]
fn children_run_before_within_and_after() {
    let config = json!({
        "before": [{"key": "check"}],
        "steps": [{"spawn": {"children": [{"key": "x"}, {"key": "y"}, {"key": "z", "requires": ["x", "y"]}]}}],
        "after": [{"key": "tidy"}],
    });
    let mut sim = Sim::new(&[spec("parent", &[], config), ok("next", &["parent"])]);
    let all = ["parent", "check", "x", "y", "z", "tidy", "next"].map(|key| (key, Succeeded));
    sim.over(Succeeded, &all);
    let place = |key: &str| sim.began.iter().position(|began| began == key).unwrap();
    assert!(place("check") < place("x").min(place("y")) && place("z") > place("x").max(place("y")));
    assert!(place("tidy") > place("z") && place("next") > place("tidy"));
    assert_eq!(sim.stage("tidy").phase, Phase::After);
}

#[test]
fn a_failing_before_child_fails_its_parent_which_has_nothing_to_unwind() {
    let config = json!({
        "before": [{"key": "check", "config": {"steps": ["fail"]}}],
        "unwind": [{"key": "back"}],
    });
    let mut sim = Sim::new(&[spec("parent", &[], config)]);
    sim.over(Failed, &[("check", Failed), ("parent", Failed)]);
    assert!(sim.execution.stages.iter().all(|stage| stage.key != "back"));
    let failure = sim.stage("parent").failure.as_ref().unwrap();
    assert_eq!(failure.stage, Some(sim.stage("check").id), "the failure names where it was met");
}

#[test]
fn a_failing_child_cancels_its_siblings_then_the_parent_unwinds_and_fails() {
    let config = json!({
        "steps": [{"spawn": {"children": [
            {"key": "bad", "config": {"steps": ["goto", "fail"]}},
            {"key": "slow", "config": {"steps": [{"poll": {"millis": 60_000}}], "unwind": [{"key": "slow-back"}]}},
            {"key": "later", "requires": ["slow"]},
        ]}}],
        "unwind": [{"key": "back-1", "config": {"steps": ["fail"]}}, {"key": "back-2"}],
    });
    let mut sim = Sim::new(&[spec("parent", &[], config), ok("next", &["parent"])]);
    sim.over(
        Failed,
        &[
            ("bad", Failed),
            ("slow", Canceled),
            ("slow-back", Succeeded),
            ("later", NotStarted),
            ("back-1", Failed),
            ("back-2", Succeeded),
            ("parent", Failed),
            ("next", NotStarted),
        ],
    );
    let place = |key: &str| sim.began.iter().position(|began| began == key).unwrap();
    assert!(
        place("slow-back") < place("back-1") && place("back-1") < place("back-2"),
        "innermost first, then in order"
    );
    assert_eq!(sim.stage("parent").failure.as_ref().unwrap().code, "SCRIPTED");
}

#[test]
fn a_childs_own_choice_says_what_its_failure_does() {
    for (choice, parent, end) in [
        ("CONTINUE", Succeeded, Succeeded),
        ("STOP_BRANCH", Succeeded, Succeeded),
        ("STOP_BRANCH_THEN_FAIL", Failed, Failed),
        ("FAIL_PIPELINE", Failed, Failed),
    ] {
        let config = json!({"steps": [{"spawn": {"children": [
            {"key": "bad", "config": {"steps": ["fail"]}, "onFailure": choice}, {"key": "good"},
        ]}}]});
        let mut sim = Sim::new(&[spec("parent", &[], config)]);
        sim.run();
        assert_eq!((sim.status("parent"), sim.execution.status), (parent, end), "{choice}");
    }
}

#[test]
fn cancel_unwinds_unless_everything_is_to_stay() {
    let config = json!({"steps": [{"poll": {"millis": 60_000}}], "unwind": [{"key": "back"}]});
    let mut sim = Sim::new(&[spec("a", &[], config.clone())]);
    sim.run();
    sim.cancel(CancelMode::Unwind);
    sim.over(Canceled, &[("a", Canceled), ("back", Succeeded)]);

    let mut sim = Sim::new(&[spec("a", &[], config)]);
    sim.run();
    sim.cancel(CancelMode::Leave);
    sim.over(Canceled, &[("a", Canceled)]);
    assert_eq!(sim.execution.stages.len(), 1);
}

#[test]
fn an_unwind_is_not_ended_by_a_cancel_but_by_its_own_deadline() {
    let config = json!({
        "steps": ["fail"],
        "unwind": [{"key": "back", "config": {"steps": [{"poll": {"millis": 60_000}}]}}, {"key": "never"}],
    });
    let mut sim = Sim::new(&[spec("a", &[], config)]);
    sim.run();
    assert_eq!((sim.status("a"), sim.status("back")), (Running, Running));
    sim.cancel(CancelMode::Unwind);
    sim.run();
    assert_eq!((sim.status("a"), sim.status("back"), sim.status("never")), (Running, Running, NotStarted));
    sim.now += TimeDelta::seconds(599);
    sim.run();
    assert_eq!(sim.status("back"), Running);
    sim.now += TimeDelta::seconds(1);
    sim.over(Failed, &[("a", Failed), ("back", Canceled), ("never", Canceled)]);
}

#[test]
fn an_unwind_may_be_left_and_what_is_not_back_is_told() {
    let back = json!([{"key": "back", "config": {"steps": [{"poll": {"millis": 60_000}}]}}, {"key": "never"}]);
    let config = |steps: Value| json!({"steps": steps, "unwind": back});
    // After a failure: that stays, and its hint tells.
    let mut sim = Sim::new(&[spec("a", &[], config(json!(["fail"])))]);
    sim.run();
    assert_eq!((sim.status("a"), sim.status("back")), (Running, Running));
    sim.cancel(CancelMode::Leave);
    sim.over(Failed, &[("a", Failed), ("back", Canceled), ("never", Canceled)]);
    let failure = sim.execution.failure.clone().unwrap();
    assert_eq!(failure.code, "SCRIPTED");
    assert!(failure.hint.unwrap().contains("is not wholly back"));
    // After a cancel, by another.
    let mut sim = Sim::new(&[spec("a", &[], config(json!([{"poll": {"millis": 60_000}}])))]);
    sim.run();
    sim.cancel(CancelMode::Unwind);
    sim.run();
    assert_eq!((sim.status("a"), sim.status("back")), (Running, Running));
    sim.cancel(CancelMode::Leave);
    sim.over(Canceled, &[("a", Canceled), ("back", Canceled), ("never", Canceled)]);
    assert_eq!(sim.execution.failure.clone().unwrap().code, "UNWIND_INCOMPLETE");
}

#[test]
fn a_stage_past_its_deadline_unwinds_and_fails() {
    let config = json!({"steps": [{"poll": {"millis": 3_600_000}}], "unwind": [{"key": "back"}]});
    let mut sim = Sim::new(&[ChildSpec { timeout_seconds: Some(90), ..spec("a", &[], config) }]);
    sim.run();
    sim.now += TimeDelta::seconds(89);
    sim.run();
    assert_eq!(sim.status("a"), Running);
    sim.now += TimeDelta::seconds(1);
    sim.over(Failed, &[("a", Failed), ("back", Succeeded)]);
    assert_eq!(sim.stage("a").failure.as_ref().unwrap().code, "TIMEOUT");
}

#[test]
fn an_execution_past_its_deadline_fails() {
    // As if it had been waiting for a year: what is left of the most that any may take is 35 days.
    let mut sim = Sim::new(&[ChildSpec { timeout_seconds: Some(60 * 86_400), ..waits("a", &[]) }, ok("b", &["a"])]);
    sim.execution.created_at -= TimeDelta::days(365);
    sim.run();
    sim.now += TimeDelta::days(35) - TimeDelta::seconds(1);
    sim.run();
    assert_eq!(sim.status("a"), Running);
    sim.now += TimeDelta::seconds(1);
    sim.over(Failed, &[("a", Canceled), ("b", NotStarted)]);
    assert_eq!(sim.execution.failure.as_ref().unwrap().code, "TIMEOUT");
}

#[test]
fn an_execution_that_could_not_begin_in_time_fails() {
    let mut sim = Sim::new(&[ok("a", &[])]);
    sim.now = sim.execution.deadline;
    sim.over(Failed, &[("a", NotStarted)]);
    assert_eq!(sim.execution.failure.as_ref().unwrap().code, "TIMEOUT");
}

#[test]
fn a_running_stage_has_its_whole_timeout_however_late_it_began() {
    let long = ChildSpec { timeout_seconds: Some(7 * 86_400), ..waits("b", &["a"]) };
    let first = ChildSpec {
        timeout_seconds: Some(250_000),
        ..spec("a", &[], json!({"steps": [{"wait": {"seconds": 200_000}}]}))
    };
    let mut sim = Sim::new(&[first, long]);
    sim.run();
    sim.now += TimeDelta::seconds(200_000);
    sim.run();
    assert_eq!((sim.status("a"), sim.status("b")), (Succeeded, Running));
    assert_eq!(Some(sim.execution.deadline - TimeDelta::hours(1)), sim.stage("b").deadline);
    sim.now += TimeDelta::days(7);
    sim.over(Failed, &[("a", Succeeded), ("b", Failed)]);
}

#[test]
fn the_deadline_is_the_longest_chains_and_has_its_own_bounds() {
    let days = |days: u64, key: &str, requires: &[&str]| ChildSpec {
        timeout_seconds: Some(days * 86_400),
        ..ok(key, requires)
    };
    for (specs, wanted) in [
        (vec![days(1, "a", &[]), days(1, "b", &["a"])], TimeDelta::days(3)),
        (
            // Out of order, and beside a shorter branch.
            vec![days(4, "d", &["b", "c"]), days(2, "b", &["a"]), days(5, "c", &["a"]), days(1, "a", &[])],
            TimeDelta::days(10) + TimeDelta::hours(1),
        ),
        (vec![days(365, "a", &[]), days(365, "b", &["a"])], TimeDelta::days(400)),
    ] {
        let sim = Sim::new(&specs);
        let deadline = apply::deadline(sim.now, &sim.execution.stages, &sim.options);
        assert_eq!(deadline - sim.now, wanted);
    }
}

#[test]
fn a_step_is_tried_again_and_then_the_stage_fails() {
    let mut sim = Sim::new(&[spec("a", &[], json!({"steps": ["retry"]}))]);
    sim.run();
    let start = sim.now;
    assert_eq!((sim.status("a"), sim.stage("a").retries), (Running, 1));
    sim.run_to_end();
    assert_eq!((sim.status("a"), sim.stage("a").retries), (Failed, 11));
    let failure = sim.stage("a").failure.as_ref().unwrap();
    assert!(failure.retryable && failure.hint.as_ref().unwrap().contains("11 times"));
    assert_eq!(sim.now - start, TimeDelta::seconds(1 + 2 + 4 + 8 + 16 + 5 * 30));
}

#[test]
fn a_wait_ends_by_signal_or_by_time() {
    let config = json!({"steps": [{"wait": {"seconds": 60}}]});
    let mut sim = Sim::new(&[spec("a", &[], config)]);
    sim.run();
    assert!(matches!(sim.stage("a").wake, Wake::Signal { .. }));
    if let Wake::Signal { payload, .. } = &mut sim.execution.stages[0].wake {
        *payload = Some(json!({"proceed": true}));
    }
    sim.over(Succeeded, &[("a", Succeeded)]);

    let mut sim = Sim::new(&[spec("a", &[], json!({"steps": [{"wait": {"seconds": 60}}]}))]);
    sim.run();
    sim.now += TimeDelta::seconds(60);
    sim.over(Succeeded, &[("a", Succeeded)]);
}

#[test]
fn children_that_can_never_start_fail_their_parent() {
    let children = json!([{"key": "x", "requires": ["y"]}, {"key": "y", "requires": ["x"]}]);
    let mut sim = Sim::new(&[spec("a", &[], json!({"steps": [{"spawn": {"children": children}}]}))]);
    sim.over(Failed, &[("a", Failed)]);
    assert_eq!(sim.execution.failure.as_ref().unwrap().code, "UNREACHABLE");

    let children = json!([{"key": "x", "requires": ["nobody"]}]);
    let mut sim = Sim::new(&[spec("a", &[], json!({"steps": [{"spawn": {"children": children}}]}))]);
    sim.over(Failed, &[("a", Failed)]);
    assert_eq!(sim.execution.failure.as_ref().unwrap().code, "CHILDREN_INVALID");
}

#[test]
fn tasks_follow_the_cursor() {
    let mut sim = Sim::new(&[spec("a", &[], json!({"steps": ["goto", {"poll": {"millis": 60_000}}, "goto"]}))]);
    sim.run();
    let tasks = |sim: &Sim| sim.stage("a").tasks.iter().map(|task| task.status).collect::<Vec<_>>();
    assert_eq!(tasks(&sim), [Succeeded, Running, NotStarted]);
    sim.cancel(CancelMode::Unwind);
    sim.run();
    assert_eq!(tasks(&sim), [Succeeded, Canceled, NotStarted]);
}

#[test]
fn a_deep_layered_graph_is_decided_quickly() {
    // 20 layers of 5, each requiring all of the layer before: exponential for a naive walk.
    let mut specs = Vec::new();
    for layer in 0..20 {
        let above: Vec<String> =
            if layer == 0 { vec![] } else { (0..5).map(|n| format!("{}-{n}", layer - 1)).collect() };
        let above: Vec<&str> = above.iter().map(String::as_str).collect();
        specs.extend((0..5).map(|n| ok(&format!("{layer}-{n}"), &above)));
    }
    let mut sim = Sim::new(&specs);
    sim.over(Succeeded, &[("19-4", Succeeded)]);
    assert_eq!(sim.began.len(), 100);
}

/// A random script, children included.
fn random_config(sim: &mut Sim, depth: usize) -> Value {
    let mut steps = Vec::new();
    for _ in 0..sim.random(3) {
        steps.push(match sim.random(14) {
            0 => json!("fail"),
            1 => json!("retry"),
            2 => json!({"poll": {"millis": 60_000}}),
            3 => json!({"wait": {"seconds": 30}}),
            4 | 5 if depth < 3 => json!({"spawn": {"children": random_children(sim, depth)}}),
            _ => json!("goto"),
        });
        if steps.iter().any(|step| step.get("spawn").is_some()) {
            break; // keys of a second batch would have to be new
        }
    }
    let mut config = json!({"steps": steps});
    for phase in ["before", "after", "unwind"] {
        if depth < 2 && sim.random(4) == 0 {
            config[phase] = random_children(sim, depth);
        }
    }
    config
}

fn random_children(sim: &mut Sim, depth: usize) -> Value {
    let count = 1 + sim.random(3);
    let mut children = Vec::new();
    for index in 0..count {
        let requires: Vec<String> =
            (0..index).filter(|_| sim.random(3) == 0).map(|before| format!("c{before}")).collect();
        let choice = ["FAIL_PIPELINE", "STOP_BRANCH", "STOP_BRANCH_THEN_FAIL", "CONTINUE"][sim.random(4)];
        let config = random_config(sim, depth + 1);
        children.push(json!({"key": format!("c{index}"), "requires": requires, "config": config, "onFailure": choice}));
    }
    json!(children)
}

#[test]
fn random_graphs_with_random_outcomes_always_end() {
    let seeds = std::env::var("GENNAKER_TEST_SIMULATIONS").ok().and_then(|text| text.parse().ok()).unwrap_or(400);
    let mut ends: BTreeMap<&str, usize> = BTreeMap::new();
    for seed in 1..=seeds {
        let mut maker = Sim::new(&[]);
        maker.seed = seed;
        let count = 1 + maker.random(8);
        let mut specs = Vec::new();
        for index in 0..count {
            let requires: Vec<String> =
                (0..index).filter(|_| maker.random(3) == 0).map(|before| format!("s{before}")).collect();
            let requires: Vec<&str> = requires.iter().map(String::as_str).collect();
            let config = random_config(&mut maker, 0);
            let mut made = spec(&format!("s{index}"), &requires, config);
            made.on_failure =
                [OnFailure::FailPipeline, OnFailure::StopBranch, OnFailure::StopBranchThenFail, OnFailure::Continue]
                    [maker.random(4)];
            specs.push(made);
        }
        let mut sim = Sim::new(&specs);
        sim.seed = maker.seed;
        let cancels = sim.random(3) == 0;
        let interrupted = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            if cancels {
                for _ in 0..sim.random(20) {
                    sim.settle();
                    let mut busy: Vec<StageId> = sim.facts.busy.iter().copied().collect();
                    busy.sort_unstable();
                    if busy.is_empty() {
                        break;
                    }
                    let chosen = busy[sim.random(busy.len())];
                    sim.step(chosen);
                }
                if !sim.execution.status.is_complete() {
                    let mode = [CancelMode::Unwind, CancelMode::Leave][sim.random(2)];
                    sim.cancel(mode);
                }
            }
            sim.run_to_end();
        }));
        assert!(interrupted.is_ok(), "seed {seed} does not end well");
        for stage in &sim.execution.stages {
            assert_ne!(stage.status, Running, "seed {seed}: {} runs in an execution that is over", stage.key);
            assert_eq!(stage.started_at.is_some(), sim.began_once(stage), "seed {seed}: {}", stage.key);
        }
        *ends.entry(sim.execution.status.as_str()).or_default() += 1;
    }
    for status in ["SUCCEEDED", "FAILED", "CANCELED"] {
        assert!(ends.get(status).copied().unwrap_or(0) > 5, "the graphs reach every end: {ends:?}");
    }
}

impl Sim {
    fn began_once(&self, stage: &Stage) -> bool {
        stage.status != NotStarted && (stage.status != Canceled || stage.started_at.is_some())
    }
}
