//! What every kind says of itself holds, and what the kinds without server groups do.

use std::time::Duration;

use serde_json::json;

use super::{World, shape, stage, waiting};
use crate::clock::Clock;
use crate::model::{CancelMode, Execution, Judgment, Status, Wake};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_is_listed_and_its_example_passes() {
    let world = World::new().await;
    let kinds = World::kinds(&world.inventory);
    let names: Vec<_> = kinds.iter().map(|kind| kind.kind().kind).collect();
    assert_eq!(
        names,
        [
            "createServerGroup",
            "deleteLoadBalancer",
            "deleteSecurityGroup",
            "deploy",
            "destroyServerGroup",
            "disableServerGroup",
            "enableServerGroup",
            "manualJudgment",
            "resizeServerGroup",
            "upsertLoadBalancer",
            "upsertSecurityGroup",
            "wait",
            "webhook"
        ]
    );
    for kind in kinds.iter() {
        let about = kind.kind();
        assert_eq!(kind.validate(&about.example), Ok(()), "{}", about.kind);
        let schema = jsonschema::draft202012::new(&about.schema).expect("a schema");
        assert!(schema.is_valid(&about.example), "{}", about.kind);
        let mut stray = about.example.clone();
        stray["unheardOf"] = json!(1);
        let faults = kind.validate(&stray).expect_err(about.kind);
        assert_eq!(faults[0].0, "/unheardOf", "{}", about.kind);
        // Where a letter is missing, the name that is meant is pointed out.
        let (name, _) = about.schema["properties"].as_object().and_then(|known| known.iter().next()).expect("a field");
        let mut typo = about.example.clone();
        typo[&name[..name.len() - 1]] = json!(1);
        let faults = kind.validate(&typo).expect_err(about.kind);
        let wanted = format!("did you mean `{name}`?");
        assert!(faults.iter().any(|(_, message)| message.ends_with(&wanted)), "{}: {faults:?}", about.kind);
        assert!(!about.title.is_empty() && about.description.ends_with('.'), "{}", about.kind);
        let (tasks, at) = kind.tasks(&about.example, &serde_json::Value::Null);
        assert!(at < tasks.len(), "{}", about.kind);
        for (name, property) in about.schema["properties"].as_object().expect("an object") {
            assert!(property["description"].is_string(), "{} {name} has no description", about.kind);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_configs_are_refused_by_path() {
    let world = World::new().await;
    let kinds = World::kinds(&world.inventory);
    let cluster = |more: serde_json::Value| {
        let mut cluster = super::cluster(json!({"kind": "none"}), json!({}));
        cluster.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        json!({"clusters": [cluster]})
    };
    for (kind, config, pointer) in [
        ("wait", json!({"seconds": -1}), "/seconds"),
        ("wait", json!({}), ""),
        ("deploy", json!({"clusters": []}), "/clusters"),
        ("deploy", cluster(json!({"stack": "a-b"})), "/clusters/0/stack"),
        ("deploy", cluster(json!({"detail": "a b"})), "/clusters/0/detail"),
        ("deploy", cluster(json!({"account": "aws"})), "/clusters/0/account"),
        ("deploy", cluster(json!({"location": "mars"})), "/clusters/0/location"),
        ("deploy", cluster(json!({"capacity": {"min": 2, "desired": 1, "max": 2}})), "/clusters/0/capacity"),
        ("deploy", cluster(json!({"strategy": {"kind": "highlander"}})), "/clusters/0/strategy/kind"),
        ("deploy", cluster(json!({"strategy": {"kind": "none", "scaleDown": true}})), "/clusters/0/strategy/scaleDown"),
        (
            "deploy",
            cluster(json!({"strategy": {"kind": "redBlack", "maxRemaining": 0}})),
            "/clusters/0/strategy/maxRemaining",
        ),
        ("deploy", cluster(json!({"healthCheck": {"protocol": "http"}})), "/clusters/0/healthCheck"),
        (
            "deploy",
            cluster(json!({"healthCheck": {"protocol": "http", "path": "/", "x": 1}})),
            "/clusters/0/healthCheck/x",
        ),
        ("deploy", cluster(json!({"launch": {"invalid": 1}})), "/clusters/0/launch/invalid"),
        ("disableServerGroup", json!({}), ""),
        ("disableServerGroup", json!({"cluster": "hello"}), ""),
        ("disableServerGroup", json!({"serverGroup": "-x"}), "/serverGroup"),
        (
            "disableServerGroup",
            json!({"serverGroup": "hello-v000", "cluster": "hello", "target": "newest"}),
            "/serverGroup",
        ),
        (
            "resizeServerGroup",
            json!({"serverGroup": "hello-v000", "capacity": {"min": 2, "desired": 1, "max": 2}}),
            "/capacity",
        ),
        (
            "upsertLoadBalancer",
            json!({"name": "hello", "listeners": [{"port": 9, "portTo": 8}]}),
            "/listeners/0/portTo",
        ),
        ("upsertLoadBalancer", json!({"name": "hello", "listeners": [{"port": 9}, {"port": 9}]}), "/listeners/1/port"),
        ("upsertLoadBalancer", json!({"name": "hello-v001", "listeners": [{"port": 8080}]}), "/name"),
        ("upsertSecurityGroup", json!({"name": "hello-v001", "inbound": []}), "/name"),
        ("upsertSecurityGroup", json!({"name": "he llo", "inbound": []}), "/name"),
        (
            "upsertSecurityGroup",
            json!({"name": "hello", "inbound": [{"cidr": "10.0.0.0/99", "portFrom": 1, "portTo": 2}]}),
            "/inbound/0/cidr",
        ),
        ("webhook", json!({"url": "ftp://x"}), "/url"),
        ("webhook", json!({"url": "http://x", "headers": {"a": "Bearer secret://env/X"}}), "/headers/a"),
    ] {
        let faults = kinds.get(kind).expect(kind).validate(&config).expect_err(pointer);
        let (place, message) = &faults[0];
        assert_eq!(place, pointer, "{kind} {config}: {message}");
        assert!(!message.is_empty());
    }
    let twice = json!({"clusters": [cluster(json!({}))["clusters"][0], cluster(json!({}))["clusters"][0]]});
    let faults = kinds.get("deploy").expect("deploy").validate(&twice).expect_err("the same cluster twice");
    assert_eq!(faults[0].0, "/clusters/1");
}

/// One expression must not keep what stands beside it from being checked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_no_expression_is_checked_beside_what_has_one() {
    let world = World::new().await;
    let kinds = World::kinds(&world.inventory);
    let cluster = |more: serde_json::Value| {
        let mut cluster = super::cluster(json!({"kind": "none"}), json!({"note": "${ parameters.x }"}));
        cluster["labels"] = json!({"version": "${ parameters.x }"});
        cluster.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        json!({"clusters": [cluster]})
    };
    let here = json!({"serverGroup": "${ parameters.x }"});
    let with = |more: serde_json::Value| {
        let mut config = here.clone();
        config.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        config
    };
    let balancer = |listeners: serde_json::Value| json!({"name": "${ parameters.x }", "listeners": listeners});
    let rule = |more: serde_json::Value| json!({"name": "${ parameters.x }", "inbound": [more]});
    let hook = |more: serde_json::Value| {
        let mut config = json!({"url": "https://example.org/${ parameters.x }"});
        config.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        config
    };
    let mut wrong = Vec::new();
    for (kind, config, pointer) in [
        ("deploy", cluster(json!({"stack": "a-b"})), "/clusters/0/stack"),
        ("deploy", cluster(json!({"detail": "a b"})), "/clusters/0/detail"),
        ("deploy", cluster(json!({"stack": "a-b", "detail": "${ parameters.x }"})), "/clusters/0/stack"),
        ("deploy", cluster(json!({"account": "aws"})), "/clusters/0/account"),
        ("deploy", cluster(json!({"account": "aws", "location": "${ parameters.x }"})), "/clusters/0/account"),
        ("deploy", cluster(json!({"location": "mars"})), "/clusters/0/location"),
        ("deploy", cluster(json!({"account": "${ parameters.x }", "location": "mars"})), "/clusters/0/location"),
        ("deploy", cluster(json!({"capacity": {"min": 2, "desired": 1, "max": 2}})), "/clusters/0/capacity"),
        ("deploy", cluster(json!({"capacity": {"min": 3, "desired": "${ 1 }", "max": 2}})), "/clusters/0/capacity"),
        ("deploy", cluster(json!({"capacity": {"min": "${ 1 }", "desired": 3, "max": 2}})), "/clusters/0/capacity"),
        ("deploy", cluster(json!({"capacity": {"min": 2, "desired": 1, "max": "${ 1 }"}})), "/clusters/0/capacity"),
        (
            "deploy",
            cluster(json!({"capacity": {"min": 2, "desierd": 2, "max": "${ 1 }"}})),
            "/clusters/0/capacity/desierd",
        ),
        ("deploy", cluster(json!({"strategy": {"kind": "none", "scaleDown": true}})), "/clusters/0/strategy/scaleDown"),
        ("deploy", cluster(json!({"launch": {"invalid": 1, "a": "${ parameters.x }"}})), "/clusters/0/launch/invalid"),
        (
            "deploy",
            cluster(json!({"account": "${ parameters.x }", "launch": {"invalid": 1, "a": "${ parameters.x }"}})),
            "/clusters/0/launch/invalid",
        ),
        (
            "deploy",
            json!({"clusters": [
                cluster(json!({}))["clusters"][0], cluster(json!({"stack": "${ 1 }"}))["clusters"][0],
                cluster(json!({}))["clusters"][0],
            ]}),
            "/clusters/2",
        ),
        ("createServerGroup", cluster(json!({"stack": "a-b"}))["clusters"][0].clone(), "/stack"),
        ("disableServerGroup", with(json!({"account": "aws"})), "/account"),
        ("enableServerGroup", with(json!({"location": "mars"})), "/location"),
        ("destroyServerGroup", with(json!({"location": "mars"})), "/location"),
        ("destroyServerGroup", with(json!({"cluster": "hello", "target": "newest"})), "/serverGroup"),
        ("disableServerGroup", json!({"cluster": "-x", "target": "${ parameters.x }"}), "/cluster"),
        ("resizeServerGroup", with(json!({"capacity": {"min": 2, "desired": 1, "max": 2}})), "/capacity"),
        ("resizeServerGroup", with(json!({"capacity": {"min": "${ 1 }", "desired": 3, "max": 2}})), "/capacity"),
        (
            "resizeServerGroup",
            with(json!({"capacity": {"min": 1, "desired": 1, "max": 1}, "account": "aws"})),
            "/account",
        ),
        ("upsertLoadBalancer", balancer(json!([{"port": 9, "portTo": 8}])), "/listeners/0/portTo"),
        ("upsertLoadBalancer", balancer(json!([{"port": 9, "portTo": 8, "address": "${ 1 }"}])), "/listeners/0/portTo"),
        ("upsertLoadBalancer", balancer(json!([{"port": 9}, {"port": "${ 1 }"}, {"port": 9}])), "/listeners/2/port"),
        ("upsertLoadBalancer", json!({"name": "hello-v001", "listeners": [{"port": "${ parameters.x }"}]}), "/name"),
        (
            "upsertLoadBalancer",
            json!({"name": "hello", "location": "mars", "listeners": [{"port": "${ parameters.x }"}]}),
            "/location",
        ),
        (
            "upsertSecurityGroup",
            rule(json!({"cidr": "${ parameters.x }", "portFrom": 2, "portTo": 1})),
            "/inbound/0/portTo",
        ),
        (
            "upsertSecurityGroup",
            json!({"name": "hello-v001", "description": "${ parameters.x }", "inbound": []}),
            "/name",
        ),
        ("upsertSecurityGroup", json!({"name": "${ parameters.x }", "account": "aws", "inbound": []}), "/account"),
        ("deleteSecurityGroup", json!({"name": "${ parameters.x }", "account": "aws"}), "/account"),
        ("deleteLoadBalancer", json!({"name": "${ parameters.x }", "location": "mars"}), "/location"),
        ("webhook", hook(json!({"headers": {"a": "Bearer secret://env/X"}})), "/headers/a"),
        ("webhook", hook(json!({"headers": {"host": "x", "b": "${ parameters.x }"}})), "/headers/host"),
        ("webhook", hook(json!({"headers": {"a b": "${ parameters.x }"}})), "/headers/a b"),
        ("webhook", hook(json!({"headers": {"x-token": "secret://env/PATH"}})), "/headers/x-token"),
        ("webhook", hook(json!({"body": {"a": ["${ 1 }", "x secret://env/X"]}})), "/body/a/1"),
        ("webhook", json!({"url": "https://u:p@example.org/", "body": "${ parameters.x }"}), "/url"),
        ("webhook", json!({"url": "https://example.org/", "body": "${ parameters.x }", "methd": "PUT"}), "/methd"),
    ] {
        match kinds.get(kind).expect(kind).validate(&config) {
            Ok(()) => wrong.push(format!("{kind} {config} passes")),
            Err(faults) if faults[0].0 != pointer => wrong.push(format!("{kind} {config}: {faults:?}")),
            Err(_) => {}
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_expression_may_mend_is_not_refused() {
    let world = World::new().await;
    let kinds = World::kinds(&world.inventory);
    let x = "${ parameters.x }";
    let cluster = |more: serde_json::Value| {
        let mut cluster = super::cluster(json!({"kind": "none"}), json!({}));
        cluster.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        cluster
    };
    let deploy = |more: serde_json::Value| json!({"clusters": [cluster(more)]});
    for (kind, config) in [
        ("deploy", json!(x)),
        ("deploy", json!({"clusters": x})),
        ("deploy", json!({"clusters": [x, cluster(json!({})), cluster(json!({"stack": x}))]})),
        ("deploy", json!({"clusters": [cluster(json!({"detail": x})), cluster(json!({}))]})),
        ("deploy", json!({"clusters": [cluster(json!({"location": x})), cluster(json!({}))]})),
        ("deploy", deploy(json!({"account": x, "location": x}))),
        ("deploy", deploy(json!({"account": x, "location": "local"}))),
        ("deploy", deploy(json!({"account": "local", "location": x}))),
        ("deploy", deploy(json!({"stack": x, "detail": x}))),
        ("deploy", deploy(json!({"stack": x, "detail": "a-b"}))),
        ("deploy", deploy(json!({"capacity": x}))),
        ("deploy", deploy(json!({"capacity": {"min": x, "desired": 1, "max": 1}}))),
        ("deploy", deploy(json!({"capacity": {"min": 1, "desired": x, "max": 1}}))),
        ("deploy", deploy(json!({"strategy": x, "loadBalancers": x, "healthCheck": x, "labels": x}))),
        ("deploy", deploy(json!({"strategy": {"kind": x, "scaleDown": true}, "loadBalancers": [x, x]}))),
        ("deploy", deploy(json!({"healthCheck": {"protocol": x, "path": "/", "port": x}}))),
        ("deploy", deploy(json!({"healthCheck": {"protocol": "http", "path": x}}))),
        ("deploy", deploy(json!({"launch": x}))),
        ("deploy", deploy(json!({"launch": {"invalid": x}, "account": "local"}))),
        ("createServerGroup", cluster(json!({"launch": x}))),
        ("disableServerGroup", json!({"serverGroup": x, "account": x, "allowLast": x})),
        ("disableServerGroup", json!({"cluster": x, "target": x})),
        ("resizeServerGroup", json!({"serverGroup": x, "capacity": {"min": x, "desired": x, "max": x}})),
        ("upsertLoadBalancer", json!({"name": x, "listeners": x})),
        ("upsertLoadBalancer", json!({"name": "hello", "listeners": [x, {"port": 9}, {"port": x, "portTo": 3}]})),
        ("upsertLoadBalancer", json!({"name": x, "listeners": [{"port": 9, "address": x}, {"port": 9}]})),
        ("upsertLoadBalancer", json!({"name": x, "listeners": [{"port": 9, "portTo": x}, {"port": 9}]})),
        ("upsertSecurityGroup", json!({"name": x, "inbound": x})),
        ("upsertSecurityGroup", json!({"name": x, "inbound": [x, {"cidr": x, "portFrom": 2, "portTo": x}]})),
        ("deleteSecurityGroup", json!({"name": x, "account": x})),
        (
            "webhook",
            json!({"url": x, "method": x, "headers": x, "body": x, "expectedStatuses": [200, x], "retries": x}),
        ),
        ("webhook", json!({"url": "https://example.org", "headers": {"authorization": "Bearer ${ parameters.x }"}})),
        ("wait", json!({"seconds": x})),
        ("manualJudgment", json!({"instructions": x, "inputs": [x, x]})),
    ] {
        assert_eq!(kinds.get(kind).expect(kind).validate(&config), Ok(()), "{kind} {config}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_ends_when_its_time_has_come() {
    let world = World::new().await;
    let started = tokio::time::Instant::now();
    let execution = world.run(vec![stage("wait", json!({"seconds": 1}))]).await;
    assert_eq!(execution.stages[0].outputs, json!({"seconds": 1}));
    assert!(started.elapsed().as_millis() >= 1000);
    let progress = execution.stages[0].progress.as_ref().expect("it says how far it is");
    assert_eq!((progress.completed, progress.total, progress.unit.as_str()), (1, 1, "seconds"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_takes_longer_than_an_execution_does_by_default_is_not_cut() {
    const DAY: Duration = Duration::from_secs(24 * 3600);
    let world = World::at(Clock::manual("2026-11-22T10:00:00Z".parse().expect("an instant"))).await;
    let server = world.serve();
    let mut judgment = stage("manualJudgment", json!({}));
    judgment.timeout_seconds = Some(10 * DAY.as_secs());
    judgment.requires = vec!["wait".to_owned()];
    let id = world.start(&server, vec![stage("wait", json!({"seconds": 7 * DAY.as_secs()})), judgment]).await;
    world.until(id, |execution| matches!(execution.stages[0].wake, Wake::At { .. })).await;
    world.clock.advance(7 * DAY);
    let asked = world.until(id, |execution| waiting(execution).is_some() || execution.status.is_complete()).await;
    assert_eq!(shape(&asked), ["RUNNING", "wait SUCCEEDED", "manualJudgment RUNNING"]);
    // Nobody comes within three days, but the stage has another timeout.
    world.clock.advance(9 * DAY);
    world.judge(&server, &asked.stages[1], true, None).await;
    let ended = world.finished(id).await;
    server.stop().await;
    assert_eq!(shape(&ended), ["SUCCEEDED", "wait SUCCEEDED", "manualJudgment SUCCEEDED"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_judgment_is_a_persons_word() {
    let world = World::new().await;
    let server = world.serve();
    let config = json!({"instructions": "Look at it.", "inputs": ["all", "some"]});
    let mut ids = Vec::new();
    for _ in 0..2 {
        ids.push(world.start(&server, vec![stage("manualJudgment", config.clone())]).await);
    }
    let execution = world.until(ids[0], |execution| waiting(execution).is_some()).await;
    assert_eq!(execution.stages[0].progress.as_ref().map(|progress| progress.message.as_str()), Some("Look at it."));
    world.judge(&server, &execution.stages[0], true, Some("some")).await;
    let execution = world.finished(ids[0]).await;
    let said = |execution: &Execution, proceed, input: Option<&str>| {
        let judgment = Judgment::of(&execution.stages[0]).expect("it was judged");
        assert!(judgment.at.is_some_and(|at| Some(at) >= execution.stages[0].started_at), "{judgment:?}");
        let wanted = Judgment {
            proceed,
            input: input.map(str::to_owned),
            comment: Some("looks fine".to_owned()),
            by: "ada".to_owned(),
            principal: Some(world.actor.principal),
            at: judgment.at,
        };
        assert_eq!(judgment, wanted);
    };
    said(&execution, true, Some("some"));
    let outputs = &execution.stages[0].outputs;
    assert_eq!(
        (&outputs["judgment"], &outputs["input"], &outputs["by"]),
        (&json!("proceed"), &json!("some"), &json!("ada"))
    );

    let execution = world.until(ids[1], |execution| waiting(execution).is_some()).await;
    world.judge(&server, &execution.stages[0], false, None).await;
    let execution = world.finished(ids[1]).await;
    server.stop().await;
    said(&execution, false, None);
    let failure = execution.failure.expect("stopped");
    assert_eq!(
        (failure.code.as_str(), failure.message.as_str()),
        ("JUDGMENT_STOPPED", "ada decided to stop: looks fine")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_judgment_of_an_earlier_version_names_its_principal_by_the_name_alone() {
    let world = World::new().await;
    let mut execution = world.run(vec![stage("wait", json!({"seconds": 0}))]).await;
    let row = &mut execution.stages[0];
    assert_eq!(Judgment::of(row), None);
    let wanted = Judgment {
        proceed: true,
        input: None,
        comment: Some("fine".to_owned()),
        by: "ada".to_owned(),
        principal: None,
        at: None,
    };
    row.outputs = json!({"judgment": "proceed", "input": null, "comment": "fine", "by": "ada"});
    assert_eq!(Judgment::of(row), Some(wanted.clone()));
    // Not taken by its stage yet.
    row.outputs = json!({});
    let payload = Some(json!({"proceed": true, "input": null, "comment": "fine", "by": "ada"}));
    row.wake = Wake::Signal { name: "judge".to_owned(), until: world.clock.now(), payload };
    assert_eq!(Judgment::of(row), Some(wanted));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_judgment_that_nobody_makes_fails_in_time() {
    let world = World::new().await;
    let mut judgment = stage("manualJudgment", json!({}));
    judgment.timeout_seconds = Some(2);
    let execution = world.run(vec![judgment]).await;
    assert_eq!(execution.failure.expect("nobody came").code, "JUDGMENT_TIMED_OUT");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn load_balancers_and_security_groups_come_change_and_go() {
    let world = World::new().await;
    let rule = json!({"cidr": "127.0.0.0/8", "portFrom": 8080, "portTo": 8080});
    let security_group = json!({"name": "hello-web", "inbound": [rule]});
    let load_balancer =
        json!({"name": "hello-web", "listeners": [{"port": 8080}], "securityGroups": ["hello-web"], "drainSeconds": 3});
    let refused = world.run(vec![stage("upsertLoadBalancer", load_balancer.clone())]).await;
    assert_eq!(refused.failure.expect("no security group yet").code, "SECURITY_GROUP_NOT_FOUND");
    let made = world.run(vec![stage("upsertSecurityGroup", security_group)]).await;
    assert_eq!(made.status, Status::Succeeded, "{:?}", shape(&made));
    let made = world.run(vec![stage("upsertLoadBalancer", load_balancer.clone())]).await;
    assert_eq!(made.stages[0].outputs["urls"], json!(["http://127.0.0.1:8080/"]));
    let there = ["lb hello-web [\"127.0.0.1:8080\"] drain 3", "sg hello-web 1 rules"];
    assert_eq!(world.cloud.inventory()[1..], there);

    // A port that is taken: what was there comes back.
    let mut taken = load_balancer;
    taken["listeners"] = json!([{"port": 1}]);
    let failed = world.run(vec![stage("upsertLoadBalancer", taken.clone())]).await;
    let failure = failed.failure.expect("the port is taken");
    assert_eq!(failure.code, "LISTENER_NOT_OPEN");
    assert!(failure.message.contains("port 1 is in use"), "{}", failure.message);
    assert_eq!(world.cloud.inventory()[1..], there);
    taken["name"] = json!("hello-new");
    assert_eq!(world.run(vec![stage("upsertLoadBalancer", taken)]).await.status, Status::Failed);
    assert_eq!(world.cloud.inventory()[1..], there);

    let name = json!({"name": "hello-web"});
    let used = world.run(vec![stage("deleteSecurityGroup", name.clone())]).await;
    assert_eq!(used.failure.expect("it is used").code, "IN_USE");
    for kind in ["deleteLoadBalancer", "deleteSecurityGroup"] {
        let deleted = world.run(vec![stage(kind, name.clone())]).await;
        assert_eq!(deleted.status, Status::Succeeded, "{:?}", shape(&deleted));
    }
    assert_eq!(world.cloud.inventory().len(), 1);
    world.cloud.given("hello-v000", true, 1);
    let used = world.run(vec![stage("deleteLoadBalancer", json!({"name": "hello"}))]).await;
    assert_eq!(used.failure.expect("a server group uses it").code, "IN_USE");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_wait_is_over_at_once() {
    let world = World::new().await;
    let server = world.serve();
    let id = world.start(&server, vec![stage("wait", json!({"seconds": 3600}))]).await;
    world.until(id, |execution| execution.stages[0].status == Status::Running).await;
    server.engine.commands().cancel(&world.actor, id, "enough", CancelMode::Unwind).await.expect("it may be");
    assert_eq!(world.finished(id).await.status, Status::Canceled);
    server.stop().await;
}
