//! A kind of stage whose config is a list of what its steps do, and the world it does it to: who
//! called what, and gates at which calls wait.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;

use gennaker::engine::contract::{Effect, EffectError, Next, Registry, Repeat, Stage, StepContext, StepError, Ticket};
use gennaker::model::{ChildSpec, Execution, OnFailure, Stage as Row};

/// A call that arrived outside.
#[derive(Debug, Clone)]
pub struct Call {
    pub key: String,
    /// The replica that made it.
    pub by: &'static str,
    pub ticket: Ticket,
}

/// What all replicas touch.
#[derive(Clone, Default)]
pub struct World(Arc<Inner>);

#[derive(Default)]
struct Inner {
    calls: watch::Sender<Vec<Call>>,
    gates: Mutex<HashMap<String, watch::Sender<bool>>>,
}

impl World {
    pub fn calls(&self) -> Vec<Call> {
        self.0.calls.borrow().clone()
    }

    /// Each call's key and who made it.
    pub fn made(&self) -> Vec<(String, &'static str)> {
        self.calls().into_iter().map(|call| (call.key, call.by)).collect()
    }

    /// Waits until so many calls have been made.
    pub async fn calls_reach(&self, count: usize) -> anyhow::Result<()> {
        let mut calls = self.0.calls.subscribe();
        let wait = calls.wait_for(|calls| calls.len() >= count);
        let within = tokio::time::timeout(Duration::from_secs(30), wait).await;
        anyhow::ensure!(within.is_ok(), "{count} calls did not come: {:?}", self.made());
        Ok(())
    }

    fn gate(&self, name: &str) -> watch::Receiver<bool> {
        self.with_gate(name, watch::Sender::subscribe)
    }

    pub fn open(&self, name: &str) {
        self.with_gate(name, |gate| gate.send_replace(true));
    }

    fn with_gate<T>(&self, name: &str, with: impl FnOnce(&watch::Sender<bool>) -> T) -> T {
        let mut gates = self.0.gates.lock().unwrap_or_else(PoisonError::into_inner);
        with(gates.entry(name.to_owned()).or_insert_with(|| watch::channel(false).0))
    }

    /// The kinds of one replica.
    pub fn registry(&self, replica: &'static str) -> Registry {
        Registry::default().with(Script { world: self.clone(), replica })
    }
}

struct Script {
    world: World,
    replica: &'static str,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    steps: Vec<Act>,
    /// Calls that bring things back.
    unwind: Vec<String>,
    inputs: Vec<String>,
}

/// What one step does.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Act {
    Goto,
    /// Until somebody judges.
    Wait,
    /// Children that make a call each.
    Spawn(Vec<String>),
    /// A call outside; with a gate it is answered when the gate is open.
    Call {
        key: String,
        #[serde(default)]
        gate: Option<String>,
        #[serde(default)]
        blind: bool,
    },
}

fn calling(keys: &[String]) -> Vec<ChildSpec> {
    let spec = |key: &String| ChildSpec {
        key: format!("{key}-stage"),
        kind: Script::KIND.to_owned(),
        name: String::new(),
        requires: Vec::new(),
        config: json!({ "steps": [{ "call": { "key": key } }] }),
        timeout_seconds: None,
        on_failure: OnFailure::FailPipeline,
    };
    keys.iter().map(spec).collect()
}

impl Script {
    async fn call(&self, key: &str, gate: Option<&str>, ticket: Ticket) -> Result<(), String> {
        let call = Call { key: key.to_owned(), by: self.replica, ticket };
        self.world.0.calls.send_modify(|calls| calls.push(call));
        if let Some(gate) = gate {
            self.world.gate(gate).wait_for(|open| *open).await.map_err(|error| error.to_string())?;
        }
        Ok(())
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
        json!({ "type": "object" })
    }

    fn example(&self) -> Value {
        json!({})
    }

    fn tasks(&self, _: &Config) -> Vec<&'static str> {
        vec!["all"]
    }

    fn task(&self, _: &usize) -> usize {
        0
    }

    fn unwind(&self, _: &Execution, _: &Row, config: &Config, _: &usize) -> Vec<ChildSpec> {
        calling(&config.unwind)
    }

    async fn step(&self, cx: &StepContext, config: &Config, cursor: usize) -> Result<Next<usize>, StepError> {
        if let Some(judgment) = cx.signal() {
            cx.output("judgment", judgment.clone());
        }
        let next = cursor + 1;
        match config.steps.get(cursor) {
            None => Ok(Next::Done(json!({}))),
            Some(Act::Goto) => Ok(Next::Goto(next)),
            Some(Act::Wait) => Ok(Next::Wait { cursor: next, signal: "judge", timeout: Duration::from_secs(3_600) }),
            Some(Act::Spawn(keys)) => Ok(Next::Spawn { children: calling(keys), cursor: next }),
            Some(Act::Call { key, gate, blind }) => {
                let effect = Effect {
                    key,
                    what: format!("call {key}"),
                    repeat: if *blind { Repeat::Blind } else { Repeat::Keyed },
                    timeout: Duration::from_secs(60),
                };
                match cx.effect(effect, |ticket| self.call(key, gate.as_deref(), ticket)).await {
                    Ok(()) => {
                        cx.output(key, json!(self.replica));
                        Ok(Next::Goto(next))
                    }
                    Err(EffectError::Unknown { what, .. }) if *blind => Err(StepError::fail("OUTCOME_UNKNOWN", what)),
                    Err(other) => Err(other.into_step(|message| StepError::fail("CALL_FAILED", message))),
                }
            }
        }
    }
}
