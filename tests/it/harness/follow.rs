//! Following an execution over a real subscription, which is resumed from its last cursor when the
//! server goes away, as a client should.

use std::time::{Duration, Instant};

use gennaker::cli::client::Client;
use gennaker::cli::demo::setup::FOLLOW;
use serde_json::{Value, json};

/// All that was seen of an execution.
#[derive(Debug, Clone, Default)]
pub struct Followed {
    /// In order, over all connections.
    pub events: Vec<Value>,
    pub connections: usize,
}

impl Followed {
    /// The execution's status as the last event has it.
    pub fn status(&self) -> &str {
        let execution = |event: &Value| {
            ["changed", "snapshot"].iter().find_map(|key| event[key]["status"].as_str().map(str::len).map(|_| *key))
        };
        self.events
            .iter()
            .rev()
            .find_map(|event| execution(event).and_then(|key| event[key]["status"].as_str()))
            .unwrap_or("?")
    }

    /// The execution's failure as the last event has it.
    pub fn failure(&self) -> Value {
        self.events
            .iter()
            .rev()
            .find_map(|event| ["changed", "snapshot"].iter().map(|key| &event[key]["failure"]).find(|f| f.is_object()))
            .cloned()
            .unwrap_or_default()
    }

    /// Stages as the last event about each has them, by position.
    pub fn stages(&self) -> Vec<Value> {
        let mut stages = std::collections::BTreeMap::new();
        for event in &self.events {
            let snapshot = event.pointer("/snapshot/stages").and_then(Value::as_array).into_iter().flatten();
            for stage in snapshot.chain(event.get("stage")) {
                stages.insert(stage["position"].as_i64().unwrap_or_default(), stage.clone());
            }
        }
        stages.into_values().collect()
    }

    /// The last event's cursor.
    pub fn cursor(&self) -> Value {
        self.events.last().map(|event| event["cursor"].clone()).unwrap_or_default()
    }

    pub fn succeeded(&self) -> anyhow::Result<()> {
        anyhow::ensure!(
            self.status() == "SUCCEEDED",
            "the execution ended as {}: {}\n{:#?}",
            self.status(),
            self.failure(),
            self.stages().iter().map(|s| format!("{} {} {}", s["name"], s["status"], s["failure"])).collect::<Vec<_>>()
        );
        Ok(())
    }
}

/// Follows to the end. Broken connections are taken up again where they broke.
pub async fn follow(client: &Client, execution: &str, within: Duration) -> anyhow::Result<Followed> {
    follow_with(client, execution, within, |_| {}).await
}

/// The same; `see` is shown all events so far after each.
pub async fn follow_with(
    client: &Client,
    execution: &str,
    within: Duration,
    see: impl Fn(&[Value]),
) -> anyhow::Result<Followed> {
    let start = Instant::now();
    let mut followed = Followed::default();
    loop {
        anyhow::ensure!(
            start.elapsed() < within,
            "execution {execution} did not end within {} s; it is {} with {:#?}",
            within.as_secs(),
            followed.status(),
            followed
                .stages()
                .iter()
                .map(|s| format!("{} {} {}", s["name"], s["status"], s["progress"]))
                .collect::<Vec<_>>()
        );
        let left = within.saturating_sub(start.elapsed());
        match tokio::time::timeout(left, follow_once(client, execution, &mut followed, &see)).await {
            Ok(Ok(())) => return Ok(followed),
            Ok(Err(error)) if error.is_temporary() => tokio::time::sleep(Duration::from_millis(50)).await,
            Ok(Err(error)) => return Err(error.into()),
            Err(_) => {}
        }
    }
}

async fn follow_once(
    client: &Client,
    execution: &str,
    followed: &mut Followed,
    see: &impl Fn(&[Value]),
) -> Result<(), gennaker::cli::client::Error> {
    let variables = json!({ "id": execution, "after": followed.cursor() });
    let mut subscription = client.subscribe(FOLLOW, &variables).await?;
    followed.connections += 1;
    while let Some(mut data) = subscription.next().await? {
        followed.events.push(data["executionEvents"].take());
        see(&followed.events);
    }
    Ok(())
}
