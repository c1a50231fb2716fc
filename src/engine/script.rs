//! A kind of stage for tests: its config is a script of what its steps do.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::contract::{
    Cause, Effect, EffectError, Next, Registry, Repeat, Stage, StepContext, StepError, Ticket, cluster_topic,
};
use crate::model::{ChildSpec, Execution, OnFailure, Place, Stage as StageRow};
use crate::store::{ClusterClaim, ClusterKey};

/// What the world outside has seen.
#[derive(Clone, Default)]
pub(super) struct World(Arc<Inner>);

#[derive(Default)]
struct Inner {
    /// Each call as (what, ticket).
    calls: Mutex<Vec<(String, Ticket)>>,
    /// Gates at which calls wait.
    gates: Mutex<HashMap<String, watch::Sender<bool>>>,
    seen: watch::Sender<usize>,
    ticks: AtomicI64,
}

impl World {
    fn call(&self, what: &str, ticket: Ticket) {
        let mut calls = self.0.calls.lock().unwrap();
        calls.push((what.to_owned(), ticket));
        self.0.seen.send_replace(calls.len());
    }

    pub(super) fn calls(&self) -> Vec<(String, Ticket)> {
        self.0.calls.lock().unwrap().clone()
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.calls().into_iter().map(|(what, _)| what).collect()
    }

    /// Waits until so many calls have been made.
    pub(super) async fn calls_reach(&self, count: usize) {
        let mut seen = self.0.seen.subscribe();
        let wait = seen.wait_for(|seen| *seen >= count);
        tokio::time::timeout(Duration::from_secs(20), wait).await.expect("the calls come in time").unwrap();
    }

    fn gate(&self, name: &str) -> watch::Receiver<bool> {
        let mut gates = self.0.gates.lock().unwrap();
        gates.entry(name.to_owned()).or_insert_with(|| watch::channel(false).0).subscribe()
    }

    pub(super) fn ticks(&self) -> i64 {
        self.0.ticks.load(Ordering::SeqCst)
    }

    pub(super) fn open(&self, name: &str) {
        let mut gates = self.0.gates.lock().unwrap();
        gates.entry(name.to_owned()).or_insert_with(|| watch::channel(false).0).send_replace(true);
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Config {
    pub steps: Vec<Act>,
    pub before: Vec<Child>,
    pub after: Vec<Child>,
    pub unwind: Vec<Child>,
    pub inputs: Vec<String>,
    pub outputs: Value,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Child {
    key: String,
    #[serde(default)]
    requires: Vec<String>,
    #[serde(default)]
    config: Value,
    #[serde(default)]
    on_failure: OnFailure,
    #[serde(default)]
    timeout_seconds: Option<u64>,
}

/// What one step does.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub(super) enum Act {
    Goto,
    Fail,
    Retry,
    Panic,
    /// Polls for ever.
    Poll {
        millis: u64,
    },
    /// Polls on the topic until the gate is open.
    Topic {
        topic: String,
        gate: String,
    },
    Wait {
        seconds: u64,
    },
    Spawn {
        children: Vec<Child>,
    },
    /// A call outside; `gate`: it is answered when the gate is open; `fails`: with an error.
    Effect {
        key: String,
        #[serde(default)]
        gate: Option<String>,
        #[serde(default)]
        blind: bool,
        #[serde(default)]
        fails: bool,
        #[serde(default)]
        timeout_millis: Option<u64>,
        /// It changes this cluster.
        #[serde(default)]
        cluster: Option<String>,
    },
    Progress {
        completed: i64,
    },
    Claim {
        cluster: String,
    },
    /// Waits in the step itself for a gate, outside any effect.
    Hang {
        gate: String,
    },
    /// Polls every few milliseconds with ever higher progress until the gate is open.
    Ticks {
        gate: String,
    },
}

pub(super) struct Script(pub World);

impl From<&Child> for ChildSpec {
    fn from(child: &Child) -> Self {
        Self {
            key: child.key.clone(),
            kind: Script::KIND.to_owned(),
            name: String::new(),
            requires: child.requires.clone(),
            config: if child.config.is_null() { json!({}) } else { child.config.clone() },
            timeout_seconds: child.timeout_seconds,
            on_failure: child.on_failure,
        }
    }
}

fn specs(children: &[Child]) -> Vec<ChildSpec> {
    children.iter().map(ChildSpec::from).collect()
}

pub(super) fn registry(world: &World) -> Registry {
    Registry::default().with(Script(world.clone()))
}

fn local(cluster: &str) -> ClusterKey {
    let place = Place { account: "local".to_owned(), location: "local".to_owned() };
    ClusterKey { place, cluster: cluster.to_owned() }
}

/// What a step without effects returns.
pub(super) fn pure(config: &Config, cursor: usize) -> Result<Next<usize>, StepError> {
    let Some(act) = config.steps.get(cursor) else { return Ok(Next::Done(config.outputs.clone())) };
    let next = cursor + 1;
    match act {
        Act::Fail => Err(StepError::fail("SCRIPTED", "the script says so")),
        Act::Retry => Err(StepError::Retry(Cause::new("SCRIPTED", "the script says so"))),
        Act::Panic => panic!("the script says so"),
        Act::Poll { millis } => Ok(Next::Poll { cursor, after: Duration::from_millis(*millis), topic: None }),
        Act::Wait { seconds } => {
            Ok(Next::Wait { cursor: next, signal: "judge", timeout: Duration::from_secs(*seconds) })
        }
        Act::Spawn { children } => Ok(Next::Spawn { children: specs(children), cursor: next }),
        _ => Ok(Next::Goto(next)),
    }
}

impl Stage for Script {
    const KIND: &'static str = "script";
    const TITLE: &'static str = "Script";
    const DESCRIPTION: &'static str = "Does what its config says.";
    const SIGNALS: &'static [&'static str] = &["judge"];
    type Config = Config;
    type Cursor = usize;

    fn schema(&self) -> Value {
        json!({
            "type": "object",
            "properties": {
                "steps": {"type": "array"},
                "size": {"type": "integer"},
                "outputs": {},
            },
        })
    }
    fn example(&self) -> Value {
        json!({})
    }
    fn tasks(&self, config: &Config) -> Vec<&'static str> {
        ["one", "two", "three"].into_iter().take(config.steps.len().max(1)).collect()
    }
    fn task(&self, cursor: &usize) -> usize {
        (*cursor).min(2)
    }
    fn before(&self, config: &Config) -> Vec<ChildSpec> {
        specs(&config.before)
    }
    fn after(&self, config: &Config, _: &Value) -> Vec<ChildSpec> {
        specs(&config.after)
    }
    fn unwind(&self, _: &Execution, _: &StageRow, config: &Config, _: &usize) -> Vec<ChildSpec> {
        specs(&config.unwind)
    }
    async fn step(&self, cx: &StepContext, config: &Config, cursor: usize) -> Result<Next<usize>, StepError> {
        if let Some(Act::Wait { .. }) = cursor.checked_sub(1).and_then(|before| config.steps.get(before)) {
            cx.output("judgment", cx.signal().cloned().unwrap_or(Value::Null));
            cx.output("timedOut", json!(cx.timed_out()));
        }
        match config.steps.get(cursor) {
            Some(Act::Effect { key, gate, blind, fails, timeout_millis, cluster }) => {
                let effect = Effect {
                    key,
                    what: format!("call {key}"),
                    repeat: if *blind { Repeat::Blind } else { Repeat::Keyed },
                    timeout: Duration::from_millis(timeout_millis.unwrap_or(60_000)),
                };
                let call = |ticket: Ticket| async move {
                    self.0.call(key, ticket);
                    if let Some(gate) = gate {
                        self.0.gate(gate).wait_for(|open| *open).await.unwrap();
                    }
                    if *fails { Err("refused".to_owned()) } else { Ok(()) }
                };
                let made = match cluster {
                    Some(cluster) => cx.effect_on_cluster(&local(cluster), effect, call).await,
                    None => cx.effect(effect, call).await,
                };
                match made {
                    Ok(()) => {
                        cx.output(key, json!(true));
                        Ok(Next::Goto(cursor + 1))
                    }
                    Err(EffectError::Unknown { what, .. }) if *blind => Err(StepError::fail("OUTCOME_UNKNOWN", what)),
                    Err(other) => Err(other.into_step(|message| StepError::fail("CALL_FAILED", message))),
                }
            }
            Some(Act::Topic { topic, gate }) => {
                if *self.0.gate(gate).borrow() {
                    return Ok(Next::Goto(cursor + 1));
                }
                Ok(Next::Poll { cursor, after: Duration::from_secs(3_600), topic: Some(topic.clone()) })
            }
            Some(Act::Progress { completed }) => {
                cx.progress(*completed, 10, "steps", format!("{completed} of 10"));
                Ok(Next::Goto(cursor + 1))
            }
            Some(Act::Claim { cluster }) => {
                let key = local(cluster);
                match cx.claim_cluster(&key).await? {
                    ClusterClaim::Held => Ok(Next::Goto(cursor + 1)),
                    _ => Ok(Next::Poll { cursor, after: Duration::from_secs(3_600), topic: Some(cluster_topic(&key)) }),
                }
            }
            Some(Act::Ticks { gate }) => {
                let tick = self.0.0.ticks.fetch_add(1, Ordering::SeqCst) + 1;
                cx.progress(tick, 1_000, "ticks", "");
                if *self.0.gate(gate).borrow() {
                    return Ok(Next::Goto(cursor + 1));
                }
                Ok(Next::Poll { cursor, after: Duration::from_millis(5), topic: None })
            }
            Some(Act::Hang { gate }) => {
                self.0.gate(gate).wait_for(|open| *open).await.unwrap();
                Ok(Next::Goto(cursor + 1))
            }
            _ => pure(config, cursor),
        }
    }
}
