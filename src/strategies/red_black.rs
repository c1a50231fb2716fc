//! Red/black (blue/green): once the new group is healthy, the groups that took the traffic are
//! disabled; they stay for a rollback, smaller or gone as the options say. Never zero enabled: the
//! new one is healthy before the old are disabled, and the old are back before the new is.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Deployment, Strategy};
use crate::model::{ChildSpec, Execution, OnFailure, Status};

pub(super) struct RedBlack;

/// How long an old group may take to be back whole. One that had an unhealthy instance before never
/// is; then the unwind goes on, and the guard of the disable decides by what is healthy.
const BACK_SECONDS: u64 = 120;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Options {
    scale_down: bool,
    delay_before_disable_seconds: u64,
    delay_before_scale_down_seconds: u64,
    max_remaining: Option<usize>,
    allow_delete_active: bool,
}

impl Strategy for RedBlack {
    fn kind(&self) -> &'static str {
        "redBlack"
    }
    fn title(&self) -> &'static str {
        "Red/black"
    }
    fn description(&self) -> &'static str {
        "Creates the new server group beside the old ones and, once it is healthy, takes the old ones out of traffic. \
         They are kept for a rollback. On a failure or cancel they are brought back before the new one is disabled."
    }
    fn schema(&self) -> Value {
        json!({
            "type": "object",
            "additionalProperties": false,
            "properties": {
                "scaleDown": {
                    "type": "boolean",
                    "default": false,
                    "description": "Resize the old server groups to zero instances after they were disabled."
                },
                "delayBeforeDisableSeconds": {
                    "type": "integer", "minimum": 0, "maximum": 86_400, "default": 0,
                    "description": "How long old and new take traffic together once the new one is healthy."
                },
                "delayBeforeScaleDownSeconds": {
                    "type": "integer", "minimum": 0, "maximum": 86_400, "default": 0,
                    "description": "How long the old server groups keep their instances after they were disabled."
                },
                "maxRemaining": {
                    "type": ["integer", "null"], "minimum": 1, "maximum": 1000, "default": null,
                    "description": "How many server groups of the cluster remain at the most, the new one included; the \
                                    oldest are destroyed. Those that took traffic until this deployment stay for a \
                                    rollback unless allowDeleteActive is set."
                },
                "allowDeleteActive": {
                    "type": "boolean",
                    "default": false,
                    "description": "Let maxRemaining destroy server groups that took traffic until this deployment, too."
                }
            }
        })
    }
    fn example(&self) -> Value {
        json!({"scaleDown": true, "delayBeforeScaleDownSeconds": 300, "maxRemaining": 3})
    }

    fn next(&self, deployment: &Deployment<'_>) -> Vec<ChildSpec> {
        // All of it is known at the start: one batch, put in order by what requires what.
        if !deployment.finished.is_empty() {
            return Vec::new();
        }
        let options = options(deployment);
        let mut recipe = Recipe::default();
        if !deployment.previous.is_empty() {
            recipe.wait("wait-before-disable", "Wait before disabling", options.delay_before_disable_seconds);
            recipe.then(
                deployment.previous.iter().map(|old| deployment.child("disable", "disableServerGroup", "Disable", old)),
            );
            if options.scale_down {
                recipe.wait(
                    "wait-before-scale-down",
                    "Wait before scaling down",
                    options.delay_before_scale_down_seconds,
                );
                recipe.then(deployment.previous.iter().map(|old| {
                    let mut child = deployment.child("scale-down", "resizeServerGroup", "Scale down", old);
                    child.config["capacity"] = json!({"min": 0, "desired": 0, "max": 0});
                    child
                }));
            }
        }
        if let Some(max) = options.max_remaining {
            recipe.then(
                surplus(deployment, max, options.allow_delete_active)
                    .map(|old| deployment.child("destroy", "destroyServerGroup", "Destroy", old)),
            );
        }
        recipe.children
    }

    fn unwind(&self, deployment: &Deployment<'_>, _: &Execution) -> Vec<ChildSpec> {
        let mut children = Vec::new();
        let mut left = false;
        for old in deployment.previous {
            let destroyed = deployment.begun(&format!("destroy-{old}"));
            if destroyed.is_some_and(|stage| stage.status == Status::Succeeded) {
                // It cannot come back.
                continue;
            }
            left = true;
            if let Some(scaled) = deployment.begun(&format!("scale-down-{old}"))
                && let Some(before) = scaled.outputs.get("previousCapacity").filter(|before| before.is_object())
            {
                let mut child = deployment.child("restore-size", "resizeServerGroup", "Restore the size of", old);
                child.config["capacity"] = before.clone();
                child.timeout_seconds = Some(BACK_SECONDS);
                children.push(child);
            }
            if deployment.begun(&format!("disable-{old}")).is_some() {
                let mut child = deployment.child("enable", "enableServerGroup", "Enable", old);
                child.timeout_seconds = Some(BACK_SECONDS);
                children.push(child);
            }
        }
        // With every old group gone the new one is all there is: it stays.
        if left || deployment.previous.is_empty() {
            children.push(deployment.disable_created());
        }
        children
    }
}

fn options(deployment: &Deployment<'_>) -> Options {
    // The schema has checked them; what is not given takes its default.
    Options::deserialize(deployment.options).unwrap_or_default()
}

/// The groups beyond the wanted number, the newest spared.
fn surplus<'a>(deployment: &'a Deployment<'_>, max: usize, with_active: bool) -> impl Iterator<Item = &'a String> {
    // The new one counts.
    let keep = max.saturating_sub(1);
    let (previous, idle) = (deployment.previous, deployment.idle);
    let (active, active_kept) = if with_active { (previous, keep) } else { (&previous[..0], 0) };
    active.iter().skip(active_kept).chain(idle.iter().skip(keep.saturating_sub(previous.len())))
}

/// Steps one after the other; those of one step side by side.
#[derive(Default)]
struct Recipe {
    children: Vec<ChildSpec>,
    /// Keys of the step before.
    last: Vec<String>,
}

impl Recipe {
    fn then(&mut self, step: impl Iterator<Item = ChildSpec>) {
        let step: Vec<_> = step.map(|child| ChildSpec { requires: self.last.clone(), ..child }).collect();
        if !step.is_empty() {
            self.last = step.iter().map(|child| child.key.clone()).collect();
            self.children.extend(step);
        }
    }

    fn wait(&mut self, key: &str, name: &str, seconds: u64) {
        if seconds > 0 {
            self.then(std::iter::once(ChildSpec {
                key: key.to_owned(),
                kind: "wait".to_owned(),
                name: name.to_owned(),
                requires: Vec::new(),
                config: json!({"seconds": seconds}),
                timeout_seconds: None,
                on_failure: OnFailure::FailPipeline,
            }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ApplicationId, ExecutionId, ExecutionKind, Phase, Place, PrincipalId, Stage, StageId, Wake};

    /// What the recipe says, a child a line: `key <- requirements`.
    fn recipe(options: &Value, previous: &[&str], idle: &[&str]) -> Vec<String> {
        with(options, previous, idle, &[], |deployment| {
            RedBlack
                .next(deployment)
                .into_iter()
                .map(|child| format!("{} <- {}", child.key, child.requires.join(" ")).trim_end().to_owned())
                .collect()
        })
    }

    fn unwound(previous: &[&str], begun: &[Stage]) -> Vec<(String, Value)> {
        let execution = execution();
        with(&json!({}), previous, &[], begun, |deployment| {
            RedBlack.unwind(deployment, &execution).into_iter().map(|child| (child.key, child.config)).collect()
        })
    }

    fn with<T>(
        options: &Value,
        previous: &[&str],
        idle: &[&str],
        begun: &[Stage],
        f: impl Fn(&Deployment<'_>) -> T,
    ) -> T {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let place = Place { account: "local".into(), location: "local".into() };
        f(&Deployment {
            place: &place,
            cluster: "web",
            created: "web-v009",
            previous: &owned(previous),
            idle: &owned(idle),
            options,
            finished: &begun.iter().collect::<Vec<_>>(),
        })
    }

    fn stage(key: &str, outputs: Value) -> Stage {
        Stage {
            id: StageId::new(),
            execution: ExecutionId::new(),
            key: key.into(),
            parent: None,
            phase: Phase::Body,
            kind: String::new(),
            name: String::new(),
            requires: vec![],
            on_failure: OnFailure::FailPipeline,
            position: 0,
            attempt: 1,
            status: Status::Succeeded,
            config: Value::Null,
            resolved: None,
            cursor: Value::Null,
            wake: Wake::Now,
            retries: 0,
            outputs,
            progress: None,
            tasks: vec![],
            failure: None,
            unwinding: None,
            timeout_seconds: 60,
            deadline: None,
            started_at: None,
            ended_at: None,
        }
    }

    fn execution() -> Execution {
        let now = chrono::DateTime::UNIX_EPOCH;
        Execution {
            id: ExecutionId::new(),
            kind: ExecutionKind::Pipeline,
            application: ApplicationId::new(),
            application_name: "web".into(),
            pipeline: None,
            name: String::new(),
            revision: 1,
            number: 1,
            status: Status::Running,
            version: 1,
            event_seq: 1,
            started_by: PrincipalId::new(),
            started_by_name: String::new(),
            trigger: None,
            parameters: Value::Null,
            notifications: vec![],
            cancel: None,
            failure: None,
            created_at: now,
            started_at: None,
            ended_at: None,
            deadline: now,
            stages: vec![],
        }
    }

    #[test]
    fn the_recipe_by_options_and_what_there_was() {
        let none: [&str; 0] = [];
        /// Options, groups that were enabled, groups that were not, the recipe.
        type Row<'a> = (Value, &'a [&'a str], &'a [&'a str], &'a [&'a str]);
        let table: &[Row<'_>] = &[
            (json!({}), &[], &[], &none),
            (json!({"scaleDown": true, "delayBeforeDisableSeconds": 5}), &[], &["web-v001"], &none),
            (json!({}), &["web-v008"], &[], &["disable-web-v008 <-"]),
            (
                json!({"scaleDown": true, "delayBeforeDisableSeconds": 5, "delayBeforeScaleDownSeconds": 7}),
                &["web-v008", "web-v007"],
                &[],
                &[
                    "wait-before-disable <-",
                    "disable-web-v008 <- wait-before-disable",
                    "disable-web-v007 <- wait-before-disable",
                    "wait-before-scale-down <- disable-web-v008 disable-web-v007",
                    "scale-down-web-v008 <- wait-before-scale-down",
                    "scale-down-web-v007 <- wait-before-scale-down",
                ],
            ),
            // The new one, the old one for a rollback, and one more.
            (
                json!({"maxRemaining": 3}),
                &["web-v008"],
                &["web-v007", "web-v006", "web-v005"],
                &[
                    "disable-web-v008 <-",
                    "destroy-web-v006 <- disable-web-v008",
                    "destroy-web-v005 <- disable-web-v008",
                ],
            ),
            // What took the traffic stays, though one should remain.
            (
                json!({"maxRemaining": 1}),
                &["web-v008"],
                &["web-v007"],
                &["disable-web-v008 <-", "destroy-web-v007 <- disable-web-v008"],
            ),
            (
                json!({"maxRemaining": 2, "allowDeleteActive": true}),
                &["web-v008", "web-v007"],
                &["web-v006"],
                &[
                    "disable-web-v008 <-",
                    "disable-web-v007 <-",
                    "destroy-web-v007 <- disable-web-v008 disable-web-v007",
                    "destroy-web-v006 <- disable-web-v008 disable-web-v007",
                ],
            ),
            (json!({"maxRemaining": 1}), &[], &["web-v002"], &["destroy-web-v002 <-"]),
            (json!({"maxRemaining": null}), &[], &["web-v002"], &none),
            (json!({"maxRemaining": 9}), &["web-v008"], &["web-v007"], &["disable-web-v008 <-"]),
        ];
        for (options, previous, idle, expected) in table {
            assert_eq!(recipe(options, previous, idle), *expected, "{options} {previous:?} {idle:?}");
        }
        let again = with(&json!({}), &["web-v008"], &[], &[stage("disable-web-v008", json!({}))], |deployment| {
            RedBlack.next(deployment)
        });
        assert_eq!(again, vec![], "one batch is all");
    }

    #[test]
    fn the_old_come_back_before_the_new_goes() {
        let at = |group: &str| json!({"account": "local", "location": "local", "serverGroup": group});
        let with = |group: &str, more: Value| {
            let mut config = at(group);
            config.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
            config
        };
        let created = |last: bool| with("web-v009", json!({"mayBeAbsent": true, "allowLast": last}));
        let capacity = json!({"min": 1, "desired": 3, "max": 5});

        assert_eq!(
            unwound(&["web-v008"], &[stage("disable-web-v008", json!({}))]),
            [("enable-web-v008".into(), at("web-v008")), ("disable-web-v009".into(), created(false))]
        );
        assert_eq!(
            unwound(
                &["web-v008", "web-v007"],
                &[
                    stage("disable-web-v008", json!({})),
                    stage("scale-down-web-v008", json!({"previousCapacity": capacity}))
                ]
            ),
            [
                ("restore-size-web-v008".into(), with("web-v008", json!({"capacity": capacity}))),
                ("enable-web-v008".into(), at("web-v008")),
                ("disable-web-v009".into(), created(false)),
            ]
        );
        // Begun, but it never came to the change.
        assert_eq!(
            unwound(&["web-v008"], &[stage("disable-web-v008", json!({})), stage("scale-down-web-v008", json!({}))])
                .len(),
            2
        );
        assert_eq!(unwound(&["web-v008"], &[]), [("disable-web-v009".into(), created(false))]);
        assert_eq!(unwound(&[], &[]), [("disable-web-v009".into(), created(true))]);
        let destroyed = [stage("disable-web-v008", json!({})), stage("destroy-web-v008", json!({}))];
        assert_eq!(unwound(&["web-v008"], &destroyed), [], "the new one is all there is");
    }
}
