//! Creates the next server group of a cluster, waits until it is healthy, and lets the strategy
//! deal with those that were there. The child of `deploy`, one for each cluster.
//!
//! The name and what was enabled before are saved before anything is created, so that a repeated
//! step finds its own work and an unwind knows what to bring back.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{cloud, known, schema};
use crate::engine::contract::{self, Cause, INVENTORY_TOPIC, Next, Stage, StepContext, StepError};
use crate::expression;
use crate::inventory::Inventory;
use crate::model::{
    Capacity, ChildSpec, Execution, HealthCheck, NOT_STARTED, OnFailure, Phase, Place, ServerGroup, ServerGroupSpec,
    Stage as StageRow, names,
};
use crate::providers::Snapshot;
use crate::strategies::{self, Deployment, Strategy};

pub(super) struct CreateServerGroup {
    pub inventory: Inventory,
}

/// An instance that has crashed this often while it was to become healthy will not.
const CRASHES_MAX: u32 = 3;
/// What is shown of a failing instance's log, in bytes.
const LOG_TAIL_BYTES: usize = 4 * 1024;
const LOG_TAIL_TIMEOUT: Duration = Duration::from_secs(10);
/// The effect that makes the group.
const CREATE: &str = "create";
/// Names that turn out to be taken before this step gives up for now.
const NAME_TRIES_MAX: usize = 50;

/// One entry of `deploy`'s clusters, too.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Config {
    #[serde(default = "cloud::local")]
    pub account: String,
    #[serde(default = "cloud::local")]
    pub location: String,
    #[serde(default)]
    pub stack: Option<String>,
    #[serde(default)]
    pub detail: Option<String>,
    #[serde(default)]
    strategy: StrategyChoice,
    capacity: Capacity,
    #[serde(default)]
    load_balancers: Vec<String>,
    #[serde(default)]
    security_groups: Vec<String>,
    #[serde(default)]
    health_check: Option<HealthCheck>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    launch: Value,
    #[serde(default = "health_timeout_seconds")]
    health_timeout_seconds: u64,
    #[serde(default = "target_healthy_percent")]
    target_healthy_percent: u32,
    #[serde(default)]
    keep_failed: bool,
}

/// A strategy's kind with its options beside it.
#[derive(Debug, Clone, Deserialize)]
struct StrategyChoice {
    kind: String,
    #[serde(flatten)]
    options: Map<String, Value>,
}

impl Default for StrategyChoice {
    fn default() -> Self {
        Self { kind: "none".to_owned(), options: Map::new() }
    }
}

const fn health_timeout_seconds() -> u64 {
    300
}
const fn target_healthy_percent() -> u32 {
    100
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(tag = "at", rename_all = "camelCase")]
pub(super) enum Cursor {
    /// In line for the cluster, then choosing and reserving the name.
    #[default]
    Choose,
    /// The name is saved; the group may have been created.
    Create { chosen: Chosen },
    /// It exists; its instances are becoming healthy.
    Healthy { chosen: Chosen, since: DateTime<Utc> },
    /// It takes traffic; the strategy's batches run.
    Strategy { chosen: Chosen, batch: u32 },
}

/// What was decided before anything was touched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Chosen {
    name: String,
    cluster: String,
    /// Enabled groups of the cluster, newest first.
    previous: Vec<String>,
    /// Disabled ones, newest first.
    idle: Vec<String>,
}

impl Config {
    pub fn place(&self) -> Place {
        Place { account: self.account.clone(), location: self.location.clone() }
    }

    /// The cluster's name in an application.
    pub fn cluster(&self, application: &str) -> Result<String, names::Error> {
        let cluster = names::ClusterName::new(application, self.stack.as_deref(), self.detail.as_deref())?;
        Ok(cluster.as_str().to_owned())
    }

    /// What the schema cannot say. Error: (JSON pointer within this entry, message).
    pub fn check(&self, inventory: &Inventory) -> Result<(), (String, String)> {
        check_cluster(self.stack.as_deref(), self.detail.as_deref())?;
        self.capacity.checked().map_err(|error| ("/capacity".to_owned(), error.to_string()))?;
        cloud::check_place(inventory, &self.place()).map_err(|(field, message)| (format!("/{field}"), message))?;
        check_launch(inventory, &self.account, &self.launch, &[])
    }

    fn strategy(&self) -> Result<&'static dyn Strategy, StepError> {
        strategies::find(&self.strategy.kind).ok_or_else(|| {
            let kinds: Vec<_> = strategies::all().iter().map(|strategy| strategy.kind()).collect();
            StepError::Fail(
                Cause::new("INVALID", format!("there is no strategy `{}`", self.strategy.kind))
                    .hint(format!("use one of {}", kinds.join(", "))),
            )
        })
    }

    /// How many healthy instances are enough.
    fn target(&self) -> usize {
        let wanted = (u64::from(self.capacity.desired) * u64::from(self.target_healthy_percent)).div_ceil(100);
        usize::try_from(wanted).unwrap_or(usize::MAX)
    }

    fn spec(&self, chosen: &Chosen) -> ServerGroupSpec {
        ServerGroupSpec {
            place: self.place(),
            name: chosen.name.clone(),
            labels: self.labels.clone(),
            capacity: self.capacity,
            // It takes traffic as soon as it is healthy, beside those there are.
            enabled: true,
            load_balancers: self.load_balancers.clone(),
            security_groups: self.security_groups.clone(),
            health_check: self.health_check.clone(),
            launch: self.launch.clone(),
        }
    }
}

/// [`Config::check`] of an entry in which expressions stand: what holds whatever they come to.
pub(super) fn check_known(inventory: &Inventory, entry: &Value) -> Result<(), (String, String)> {
    // Stack and detail hang on each other only in how long they are together.
    let part = |name| known::optional::<String>(entry, name).flatten();
    check_cluster(part("stack").as_deref(), part("detail").as_deref())?;
    known::check_capacity(entry)?;
    known::check_place(inventory, entry)?;
    known::check_reads::<HealthCheck>(entry, "healthCheck")?;
    let Some(launch) = entry.get("launch") else { return Ok(()) };
    let (open, accounts) = (expression::places(launch), inventory.accounts());
    match (known::member(entry, "account", cloud::local), accounts.as_slice()) {
        (Some(account), _) => check_launch(inventory, &account, launch, &open),
        // Whichever it will be, there is only one.
        (None, [account]) => check_launch(inventory, &account.name, launch, &open),
        (None, _) => Ok(()),
    }
}

/// The cluster that an entry names, where all of it is known.
pub(super) fn known_cluster(entry: &Value) -> Option<(Place, String)> {
    let account = known::member(entry, "account", cloud::local)?;
    let location = known::member(entry, "location", cloud::local)?;
    let (stack, detail) = (known::optional::<String>(entry, "stack")?, known::optional::<String>(entry, "detail")?);
    let cluster = names::ClusterName::new("a", stack.as_deref(), detail.as_deref()).ok()?;
    Some((Place { account, location }, cluster.as_str().to_owned()))
}

fn check_cluster(stack: Option<&str>, detail: Option<&str>) -> Result<(), (String, String)> {
    names::ClusterName::new("a", stack, detail).map(|_| ()).map_err(|error| {
        let field = if matches!(error, names::Error::Detail(_)) { "/detail" } else { "/stack" };
        (field.to_owned(), error.to_string())
    })
}

/// `open`: where expressions stand in it.
fn check_launch(inventory: &Inventory, account: &str, launch: &Value, open: &[String]) -> Result<(), (String, String)> {
    let Ok(provider) = inventory.provider(account) else { return Ok(()) };
    let below = |(pointer, message): (String, String)| (format!("/launch{pointer}"), message);
    let first = |mut faults: Vec<(String, String)>| below(faults.swap_remove(0));
    let schema = provider.kind().schema;
    contract::unknown_fields(&schema, launch).map_err(first)?;
    // Then the provider, whose messages say more than a schema can.
    provider.validate_launch(launch, open).map_err(below)?;
    if !open.is_empty() {
        return contract::known_faults(&schema, launch).map_err(first);
    }
    if let Ok(schema) = jsonschema::draft202012::new(&schema)
        && let Err(error) = schema.validate(launch)
    {
        return Err(below((error.instance_path().to_string(), error.to_string())));
    }
    Ok(())
}

impl Stage for CreateServerGroup {
    const KIND: &'static str = "createServerGroup";
    const TITLE: &'static str = "Create server group";
    const DESCRIPTION: &'static str = "Creates the next server group of a cluster, waits until it is healthy, and runs \
                                       the strategy over the groups that were there. On failure or cancel the old \
                                       groups are brought back.";
    const TIMEOUT: Duration = Duration::from_secs(2 * 60 * 60);
    type Config = Config;
    type Cursor = Cursor;

    fn schema(&self) -> Value {
        schema::object(schema::cluster_properties(), &["capacity", "launch"])
    }
    fn example(&self) -> Value {
        example()
    }
    fn validate(&self, config: &Config) -> Result<(), (String, String)> {
        config.check(&self.inventory)
    }
    fn validate_known(&self, config: &Value) -> Result<(), (String, String)> {
        check_known(&self.inventory, config)
    }
    fn tasks(&self, _: &Config) -> Vec<&'static str> {
        vec!["Choose a name", "Create server group", "Wait until healthy", "Run strategy"]
    }
    fn task(&self, cursor: &Cursor) -> usize {
        match cursor {
            Cursor::Choose => 0,
            Cursor::Create { .. } => 1,
            Cursor::Healthy { .. } => 2,
            Cursor::Strategy { .. } => 3,
        }
    }

    fn unwind(&self, execution: &Execution, stage: &StageRow, config: &Config, cursor: &Cursor) -> Vec<ChildSpec> {
        match cursor {
            // Nothing was touched.
            Cursor::Choose => Vec::new(),
            // It never became healthy, so the strategy has not begun: the old ones are as they were.
            Cursor::Create { chosen } | Cursor::Healthy { chosen, .. } => vec![take_away(config, chosen)],
            Cursor::Strategy { chosen, .. } => strategy_unwind(config, chosen, execution, stage),
        }
    }

    async fn step(&self, cx: &StepContext, config: &Config, cursor: Cursor) -> Result<Next<Cursor>, StepError> {
        match cursor {
            Cursor::Choose => self.choose(cx, config).await,
            Cursor::Create { chosen } => self.create(cx, config, chosen).await,
            Cursor::Healthy { chosen, since } => self.healthy(cx, config, chosen, since).await,
            Cursor::Strategy { chosen, batch } => strategy(cx, config, chosen, batch),
        }
    }
}

impl CreateServerGroup {
    async fn choose(&self, cx: &StepContext, config: &Config) -> Result<Next<Cursor>, StepError> {
        let place = config.place();
        config.strategy()?;
        config.check(&self.inventory).map_err(|(pointer, message)| {
            StepError::Fail(Cause::new("INVALID", format!("config at `{pointer}`: {message}")))
        })?;
        let cluster = config
            .cluster(&cx.execution().application_name)
            .map_err(|error| StepError::fail("MALFORMED_NAME", error.to_string()))?;
        if let Some(next) = cloud::claim(cx, &place, &cluster, Cursor::Choose).await? {
            return Ok(next);
        }
        let snapshot = cloud::fresh(&self.inventory, &place.account).await?;
        check_references(cx, config, &place, &snapshot)?;
        let name = reserve(cx, &place, &cluster, &snapshot).await?;
        // A group of this name from before a crash is ours and not one of those that were there.
        let members = cloud::members(&snapshot, &place, &cluster);
        let of = |enabled: bool| {
            let group = members.iter().filter(|group| group.spec.enabled == enabled && group.spec.name != name);
            let mut group: Vec<_> = group.collect();
            // Newest first, but what is sick after what is healthy: an unwind brings back in this
            // order, and must not wait for a sick group while a healthy one could serve.
            group.sort_by_key(|group| enabled && cloud::up(group) == 0);
            group.into_iter().map(|group| group.spec.name.clone()).collect::<Vec<_>>()
        };
        let chosen = Chosen { previous: of(true), idle: of(false), name, cluster };
        cx.output("serverGroup", json!(chosen.name));
        let desired = i64::from(config.capacity.desired);
        cx.progress(0, desired, "instances", format!("creating `{}`", chosen.name));
        Ok(Next::Goto(Cursor::Create { chosen }))
    }

    async fn create(&self, cx: &StepContext, config: &Config, chosen: Chosen) -> Result<Next<Cursor>, StepError> {
        let provider = cloud::provider(&self.inventory, &config.account)?;
        let spec = config.spec(&chosen);
        let what = format!("create server group `{}`", chosen.name);
        let group = (&config.place(), chosen.name.as_str());
        cloud::change_group(cx, group, CREATE, what, |operation| async move {
            provider.ensure_server_group(&operation, &spec).await
        })
        .await?;
        cloud::progress(cx, 0, config.capacity.desired as usize);
        Ok(Next::Goto(Cursor::Healthy { chosen, since: cx.now() }))
    }

    async fn healthy(
        &self,
        cx: &StepContext,
        config: &Config,
        chosen: Chosen,
        since: DateTime<Utc>,
    ) -> Result<Next<Cursor>, StepError> {
        let place = config.place();
        let (target, desired) = (config.target(), config.capacity.desired as usize);
        let late = cx.now() - since
            >= TimeDelta::seconds(i64::try_from(config.health_timeout_seconds).unwrap_or(i64::MAX / 1_000));
        let again = |chosen| Next::Poll {
            cursor: Cursor::Healthy { chosen, since },
            after: cloud::LOOK_EVERY,
            topic: Some(INVENTORY_TOPIC.to_owned()),
        };
        let mut seen = cloud::watch(&self.inventory, &place, &chosen.name).await;
        // What follows takes the old groups away or gives up: not on the word of a cache.
        if late || matches!(&seen, Ok(Some(group)) if is_enough(group, target) || hopeless(group).is_some()) {
            seen = cloud::look(&self.inventory, &place, &chosen.name).await;
        }
        let group = match seen {
            Ok(Some(group)) => group,
            Ok(None) => return Err(cloud::gone(&chosen.name)),
            Err(error) if late => return Err(unreadable(&chosen.name, config, &error.message)),
            Err(error) => {
                cx.progress(
                    0,
                    i64::from(config.capacity.desired),
                    "instances",
                    format!("cannot look: {}", error.message),
                );
                return Ok(again(chosen));
            }
        };
        let healthy = cloud::up(&group);
        cloud::progress(cx, healthy, desired);
        if is_enough(&group, target) {
            return Ok(Next::Goto(Cursor::Strategy { chosen, batch: 0 }));
        }
        if let Some(why) = hopeless(&group) {
            return Err(self.unhealthy(&group, &why, config).await);
        }
        if late {
            let why = format!("{healthy} of {desired} instances are healthy after {} s", config.health_timeout_seconds);
            return Err(self.unhealthy(&group, &why, config).await);
        }
        Ok(again(chosen))
    }

    /// The failure of a group that does not become healthy, with the log of one that is to blame.
    async fn unhealthy(&self, group: &ServerGroup, why: &str, config: &Config) -> StepError {
        let name = &group.spec.name;
        let failing =
            group.instances.iter().filter(|instance| !cloud::is_up(instance)).max_by_key(|instance| instance.restarts);
        let mut cause = Cause::new("INSTANCES_NOT_HEALTHY", format!("server group `{name}`: {why}"));
        let Some(instance) = failing else {
            return StepError::Fail(cause.hint("look at the provider's message and its capacity"));
        };
        if let Some(reason) = instance.last_exit.as_deref().and_then(|exit| exit.strip_prefix(NOT_STARTED)) {
            // There is no log of what never ran.
            let message = format!("server group `{name}`: instance `{}` was not started: {reason}", instance.id);
            return StepError::Fail(
                Cause::new("INSTANCE_NOT_STARTED", message)
                    .hint("correct `launch`: its command, environment or runAs; the artifact is unpacked as it is"),
            );
        }
        cause.message = format!("{}; {}", cause.message, cloud::complaint(instance));
        if let Ok(provider) = self.inventory.provider(&config.account) {
            let tail = provider.log_tail(&group.spec.place, &instance.id, LOG_TAIL_BYTES);
            // Without it the failure still says what matters.
            let tail = tokio::time::timeout(LOG_TAIL_TIMEOUT, tail).await;
            cause.log_tail = tail.ok().and_then(Result::ok).filter(|tail| !tail.is_empty());
        }
        StepError::Fail(cause.hint(if instance.restarts > 0 && instance.last_exit.is_some() {
            "look at the log: the command ends by itself; correct it, its arguments or its environment"
        } else {
            "look at the log and the health check's path and port; raise healthTimeoutSeconds if it needs longer to start"
        }))
    }
}

/// Load balancers and security groups exist; the traffic of another application is not taken.
fn check_references(cx: &StepContext, config: &Config, place: &Place, snapshot: &Snapshot) -> Result<(), StepError> {
    let missing = |what: &str, code, name: &str, there: Vec<&String>| {
        let there = cloud::nearest(name, there.into_iter().map(String::as_str));
        let hint = if there.is_empty() {
            format!("create the {what} first")
        } else {
            format!("create it first, or use one that is there: {there}")
        };
        let message = format!("there is no {what} `{name}` at {}/{}", place.account, place.location);
        StepError::Fail(Cause::new(code, message).hint(hint))
    };
    let load_balancers: Vec<_> = snapshot
        .load_balancers
        .iter()
        .filter(|found| found.spec.place == *place)
        .map(|found| &found.spec.name)
        .collect();
    // What is not there belongs to nobody.
    if let Some(name) = config.load_balancers.iter().find(|name| !load_balancers.contains(name)) {
        return Err(missing("load balancer", "LOAD_BALANCER_NOT_FOUND", name, load_balancers));
    }
    for name in &config.load_balancers {
        cloud::own_unnumbered(cx, "load balancer", name)?;
    }
    let groups: Vec<_> = snapshot
        .security_groups
        .iter()
        .filter(|found| found.spec.place == *place)
        .map(|found| &found.spec.name)
        .collect();
    if let Some(name) = config.security_groups.iter().find(|name| !groups.contains(name)) {
        return Err(missing("security group", "SECURITY_GROUP_NOT_FOUND", name, groups));
    }
    Ok(())
}

/// The name this stage has reserved, or the next free one, reserved now.
async fn reserve(cx: &StepContext, place: &Place, cluster: &str, snapshot: &Snapshot) -> Result<String, StepError> {
    if let Some(name) = cx.reserved_name(place).await? {
        return Ok(name);
    }
    let members = cloud::members(snapshot, place, cluster);
    // Made by this very step although nothing here knows of it: the database is a backup from before.
    let operation = cx.operation(CREATE);
    if let Some(made) = members.iter().find(|group| group.operation.as_ref() == Some(&operation)) {
        if cx.reserve_name(place, &made.spec.name).await? {
            return Ok(made.spec.name.clone());
        }
        let cause = Cause::new(
            "CONFLICT",
            format!("server group `{}` was made by this stage, but its name is reserved by another", made.spec.name),
        );
        return Err(StepError::Fail(cause.hint("destroy that server group or wait for the other, then start again")));
    }
    let existing: Vec<_> = members.iter().map(|group| (group.spec.name.as_str(), group.created_at)).collect();
    let mut taken = BTreeSet::new();
    for _ in 0..NAME_TRIES_MAX {
        let name = names::next(cluster, &existing, |name| taken.contains(name))
            .map_err(|error| StepError::fail("NAMES_EXHAUSTED", error.to_string()))?;
        if cx.reserve_name(place, &name).await? {
            return Ok(name);
        }
        taken.insert(name);
    }
    Err(StepError::Retry(Cause::new("NAMES_TAKEN", format!("the next names of cluster `{cluster}` are all reserved"))))
}

fn is_enough(group: &ServerGroup, target: usize) -> bool {
    group.problem.is_none() && group.instances.len() >= target && cloud::up(group) >= target
}

/// Why waiting longer makes no sense.
fn hopeless(group: &ServerGroup) -> Option<String> {
    if let Some(problem) = &group.problem {
        return Some(problem.clone());
    }
    let crashed =
        group.instances.iter().find(|instance| instance.restarts >= CRASHES_MAX && !cloud::is_up(instance))?;
    Some(format!("instance `{}` has crashed {} times", crashed.id, crashed.restarts))
}

fn unreadable(name: &str, config: &Config, message: &str) -> StepError {
    StepError::Fail(
        Cause::new(
            "INSTANCES_NOT_HEALTHY",
            format!(
                "the health of server group `{name}` could not be read for the last of {} s",
                config.health_timeout_seconds
            ),
        )
        .because(message)
        .hint("look whether the provider runs and can be reached"),
    )
}

fn strategy(cx: &StepContext, config: &Config, chosen: Chosen, batch: u32) -> Result<Next<Cursor>, StepError> {
    let strategy = config.strategy()?;
    let place = config.place();
    let options = Value::Object(config.strategy.options.clone());
    let children = cx.children();
    let finished: Vec<_> =
        children.into_iter().filter(|child| child.phase == Phase::Body && child.status.is_complete()).collect();
    let children = strategy.next(&deployment(&place, &chosen, &options, &finished));
    if children.is_empty() {
        return Ok(Next::Done(json!({
            "account": config.account,
            "location": config.location,
            "cluster": chosen.cluster,
            "serverGroup": chosen.name,
            "previous": chosen.previous,
            "strategy": config.strategy.kind,
        })));
    }
    if batch >= strategy.batches_max() {
        return Err(StepError::fail(
            "STRATEGY_TOO_LONG",
            format!("strategy `{}` has not come to an end in {batch} batches", strategy.kind()),
        ));
    }
    Ok(Next::Spawn { children, cursor: Cursor::Strategy { chosen, batch: batch + 1 } })
}

fn deployment<'a>(
    place: &'a Place,
    chosen: &'a Chosen,
    options: &'a Value,
    finished: &'a [&'a StageRow],
) -> Deployment<'a> {
    Deployment {
        place,
        cluster: &chosen.cluster,
        created: &chosen.name,
        previous: &chosen.previous,
        idle: &chosen.idle,
        options,
        finished,
    }
}

/// What brings the old groups back once the strategy may have begun.
fn strategy_unwind(config: &Config, chosen: &Chosen, execution: &Execution, stage: &StageRow) -> Vec<ChildSpec> {
    let Ok(strategy) = config.strategy() else { return Vec::new() };
    let (place, options) = (config.place(), Value::Object(config.strategy.options.clone()));
    // One that was cancelled before it began has a status, but no start.
    let has_begun = |child: &&StageRow| child.phase == Phase::Body && child.started_at.is_some();
    let begun: Vec<_> = execution.children(stage.id).filter(has_begun).collect();
    strategy.unwind(&deployment(&place, chosen, &options, &begun), execution)
}

/// The same for a stage that has ended well: what `deploy` does with it when another cluster fails.
/// Its keys are unique among those of several clusters.
pub(super) fn unwind_succeeded(
    execution: &Execution,
    stage: &StageRow,
    config: &Value,
    cursor: &Value,
) -> Vec<ChildSpec> {
    let (Ok(config), Ok(Cursor::Strategy { chosen, .. })) = (Config::deserialize(config), Cursor::deserialize(cursor))
    else {
        return Vec::new();
    };
    let mut children = strategy_unwind(&config, &chosen, execution, stage);
    for child in &mut children {
        child.key = format!("{}-{}", stage.key, child.key);
        child.requires = child.requires.iter().map(|key| format!("{}-{key}", stage.key)).collect();
    }
    children
}

/// Destroys the group that never became healthy, or disables it where it is kept for a look.
fn take_away(config: &Config, chosen: &Chosen) -> ChildSpec {
    let (verb, kind, title) = if config.keep_failed {
        ("disable", "disableServerGroup", "Disable")
    } else {
        ("destroy", "destroyServerGroup", "Destroy")
    };
    ChildSpec {
        key: format!("{verb}-{}", chosen.name),
        kind: kind.to_owned(),
        name: format!("{title} {}", chosen.name),
        requires: Vec::new(),
        config: json!({
            "account": config.account,
            "location": config.location,
            "serverGroup": chosen.name,
            "mayBeAbsent": true,
            // Where nothing was before, nothing is what there was; else the guard keeps the last healthy one.
            "allowLast": chosen.previous.is_empty(),
        }),
        timeout_seconds: None,
        on_failure: OnFailure::FailPipeline,
    }
}

/// A cluster entry that passes.
pub(super) fn example() -> Value {
    json!({
        "account": "local",
        "location": "local",
        "stack": "prod",
        "strategy": {"kind": "redBlack", "maxRemaining": 3},
        "capacity": {"min": 3, "desired": 3, "max": 3},
        "loadBalancers": ["hello"],
        "securityGroups": ["hello"],
        "healthCheck": {"protocol": "HTTP", "path": "/health", "interval": "PT1S"},
        "launch": {"artifact": {"path": "/srv/artifacts/hello"}, "command": ["./hello"]},
        "healthTimeoutSeconds": 300
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(desired: u32, percent: u32) -> Config {
        let capacity = json!({"min": 0, "desired": desired, "max": desired});
        Config::deserialize(json!({"capacity": capacity, "launch": {}, "targetHealthyPercent": percent}))
            .expect("a config")
    }

    #[test]
    fn the_healthy_target_is_a_percentage_rounded_up() {
        for (desired, percent, target) in [(3, 100, 3), (3, 50, 2), (3, 1, 1), (3, 0, 0), (0, 100, 0), (10, 75, 8)] {
            assert_eq!(config(desired, percent).target(), target, "{percent} % of {desired}");
        }
    }

    #[test]
    fn the_example_reads_with_its_health_check_and_options() {
        let config = Config::deserialize(example()).expect("it reads");
        assert_eq!(config.cluster("hello").expect("a name"), "hello-prod");
        assert_eq!(config.strategy.options, *json!({"maxRemaining": 3}).as_object().expect("an object"));
        assert!(config.health_check.is_some());
    }

    #[test]
    fn cursors_of_the_first_version_stay_readable() {
        for text in [
            r#"{"at":"choose"}"#,
            r#"{"at":"create","chosen":{"name":"a-v001","cluster":"a","previous":["a-v000"],"idle":[]}}"#,
            r#"{"at":"healthy","chosen":{"name":"a-v001","cluster":"a","previous":[],"idle":[]},"since":"2026-01-01T00:00:00Z"}"#,
            r#"{"at":"strategy","chosen":{"name":"a-v001","cluster":"a","previous":[],"idle":["a-v000"]},"batch":1}"#,
        ] {
            let cursor: Cursor = serde_json::from_str(text).expect(text);
            assert_eq!(serde_json::to_string(&cursor).expect("written"), text);
        }
    }
}
