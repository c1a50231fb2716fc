//! Deploys: what is there before and after, and that a cluster which was served stays so.

use serde_json::{Value, json};

use super::{World, cluster, deploy, shape, stage};
use crate::model::{CancelMode, ExecutionId, Status};

fn red_black() -> Value {
    json!({"kind": "redBlack"})
}

/// With `hello-prod-v000` enabled and healthy, and an older one disabled.
async fn world() -> World {
    let world = World::new().await;
    world.cloud.given("hello-prod-v007", false, 2);
    world.cloud.given("hello-prod-v008", true, 2);
    world
}

fn groups(world: &World) -> Vec<String> {
    world.cloud.inventory().into_iter().filter(|line| line.starts_with("hello-")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn red_black_replaces_what_took_the_traffic() {
    let world = world().await;
    let execution = world.run(vec![deploy(red_black(), json!({}))]).await;
    assert_eq!(
        shape(&execution),
        ["SUCCEEDED", "deploy SUCCEEDED", "  hello-prod SUCCEEDED", "    disable-hello-prod-v008 SUCCEEDED"]
    );
    assert_eq!(
        groups(&world),
        ["hello-prod-v007 disabled 2/2", "hello-prod-v008 disabled 2/2", "hello-prod-v009 enabled 2/2"]
    );
    assert_eq!(
        execution.stages[0].outputs["serverGroups"],
        json!([{
            "account": "local",
            "location": "local",
            "cluster": "hello-prod",
            "serverGroup": "hello-prod-v009",
            "previous": ["hello-prod-v008"],
        }])
    );
    let child = &execution.stages[1];
    assert_eq!(child.progress.as_ref().map(|progress| progress.message.as_str()), Some("2 of 2 healthy"));
    let tasks: Vec<_> = child.tasks.iter().map(|task| (task.name.as_str(), task.status)).collect();
    assert_eq!(
        tasks,
        [
            ("Choose a name", Status::Succeeded),
            ("Create server group", Status::Succeeded),
            ("Wait until healthy", Status::Succeeded),
            ("Run strategy", Status::Succeeded)
        ]
    );
    assert_eq!(world.cloud.outages(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn options_scale_the_old_down_and_destroy_the_oldest() {
    let world = world().await;
    let strategy = json!({"kind": "redBlack", "scaleDown": true, "maxRemaining": 2});
    let execution = world.run(vec![deploy(strategy, json!({}))]).await;
    assert_eq!(execution.status, Status::Succeeded, "{:?}", shape(&execution));
    assert_eq!(groups(&world), ["hello-prod-v008 disabled 0/0", "hello-prod-v009 enabled 2/2"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_deploy_and_strategy_none_take_nothing_away() {
    let world = World::new().await;
    for expected in
        [vec!["hello-prod-v000 enabled 2/2"], vec!["hello-prod-v000 enabled 2/2", "hello-prod-v001 enabled 2/2"]]
    {
        let execution = world.run(vec![deploy(json!({"kind": "none"}), json!({}))]).await;
        assert_eq!(execution.status, Status::Succeeded, "{:?}", shape(&execution));
        assert_eq!(groups(&world), expected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_that_never_gets_healthy_leaves_the_old_state() {
    let world = world().await;
    for (launch, message) in [
        (json!({"healthy": 1}), "1 of 2 instances are healthy after 1 s"),
        (json!({"crash": true}), "has crashed 3 times"),
    ] {
        let execution = world.run(vec![deploy(red_black(), launch)]).await;
        assert_eq!(execution.status, Status::Failed);
        let failure = execution.failure.expect("it says why");
        assert_eq!(failure.code, "INSTANCES_NOT_HEALTHY");
        assert!(failure.message.contains(message), "{}", failure.message);
        assert!(failure.log_tail.is_some_and(|tail| tail.starts_with("the last words of hello-prod-v009-")));
        assert!(failure.hint.is_some());
        assert_eq!(groups(&world), ["hello-prod-v007 disabled 2/2", "hello-prod-v008 enabled 2/2"]);
        assert_eq!(world.cloud.outages(), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_group_without_instances_does_not_replace_a_healthy_one() {
    let world = world().await;
    let mut cluster = cluster(red_black(), json!({}));
    cluster["capacity"] = json!({"min": 0, "desired": 0, "max": 2});
    let execution = world.run(vec![stage("deploy", json!({"clusters": [cluster]}))]).await;
    assert_eq!(execution.failure.expect("it says why").code, "WOULD_LEAVE_NOTHING");
    assert_eq!(groups(&world)[..2], ["hello-prod-v007 disabled 2/2", "hello-prod-v008 enabled 2/2"]);
    assert_eq!(world.cloud.outages(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_group_is_kept_for_a_look_where_wanted() {
    let world = world().await;
    let mut cluster = cluster(red_black(), json!({"crash": true}));
    cluster["keepFailed"] = json!(true);
    let execution = world.run(vec![stage("deploy", json!({"clusters": [cluster]}))]).await;
    assert_eq!(execution.status, Status::Failed);
    assert_eq!(
        groups(&world),
        ["hello-prod-v007 disabled 2/2", "hello-prod-v008 enabled 2/2", "hello-prod-v009 disabled 2/2"]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_provider_refuses_is_said_and_changes_nothing() {
    let world = world().await;
    let before = world.cloud.inventory();
    let execution = world.run(vec![deploy(red_black(), json!({"missing": 1}))]).await;
    let failure = execution.failure.expect("it says why");
    assert_eq!(failure.code, "INVALID");
    assert!(failure.message.contains("artifact /nowhere does not exist"), "{}", failure.message);
    assert_eq!(world.cloud.inventory(), before);

    let mut cluster = cluster(red_black(), json!({}));
    cluster["loadBalancers"] = json!(["hello-x"]);
    let execution = world.run(vec![stage("deploy", json!({"clusters": [cluster]}))]).await;
    let failure = execution.failure.expect("it says why");
    assert_eq!(failure.code, "LOAD_BALANCER_NOT_FOUND");
    assert!(failure.hint.as_deref().is_some_and(|hint| hint.ends_with("`hello`")), "{:?}", failure.hint);
    // What is not there belongs to nobody.
    cluster["loadBalancers"] = json!(["other"]);
    let execution = world.run(vec![stage("deploy", json!({"clusters": [cluster]}))]).await;
    assert_eq!(execution.failure.expect("it says why").code, "LOAD_BALANCER_NOT_FOUND");
    assert_eq!(world.cloud.inventory(), before);
    world.cloud.given_load_balancer("other");
    let before = world.cloud.inventory();
    let execution = world.run(vec![stage("deploy", json!({"clusters": [cluster]}))]).await;
    assert_eq!(execution.failure.expect("it says why").code, "OTHER_APPLICATION");
    assert_eq!(world.cloud.inventory(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_one_of_two_clusters_fails_the_other_is_brought_back_too() {
    let world = world().await;
    world.cloud.given("hello-test-v000", true, 2);
    let mut bad = cluster(red_black(), json!({"healthy": 0}));
    bad["stack"] = json!("test");
    let clusters = json!({"clusters": [cluster(red_black(), json!({})), bad]});
    let execution = world.run(vec![stage("deploy", clusters)]).await;
    assert_eq!(execution.status, Status::Failed, "{:?}", shape(&execution));
    assert_eq!(
        groups(&world),
        [
            "hello-prod-v007 disabled 2/2",
            "hello-prod-v008 enabled 2/2",
            "hello-prod-v009 disabled 2/2",
            "hello-test-v000 enabled 2/2"
        ],
        "{:?}",
        shape(&execution)
    );
    assert_eq!(world.cloud.outages(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_deploys_of_one_cluster_at_once_both_finish_one_after_the_other() {
    let world = world().await;
    let server = world.serve();
    let deploy = || vec![deploy(red_black(), json!({}))];
    let (first, second) = tokio::join!(world.start(&server, deploy()), world.start(&server, deploy()));
    for id in [first, second] {
        assert_eq!(world.finished(id).await.status, Status::Succeeded);
    }
    server.stop().await;
    let mut made = world.cloud.made();
    made.sort();
    assert_eq!(made, ["hello-prod-v009", "hello-prod-v010"]);
    assert_eq!(
        groups(&world)[1..],
        ["hello-prod-v008 disabled 2/2", "hello-prod-v009 disabled 2/2", "hello-prod-v010 enabled 2/2"]
    );
    assert_eq!(world.cloud.outages(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deploys_of_the_same_clusters_in_another_order_do_not_wait_for_each_other() {
    let world = world().await;
    let mut test = cluster(red_black(), json!({}));
    test["stack"] = json!("test");
    let prod = cluster(red_black(), json!({}));
    let server = world.serve();
    let mut ids: Vec<ExecutionId> = Vec::new();
    for clusters in [json!([prod, test]), json!([test, prod]), json!([prod, test]), json!([test, prod])] {
        ids.push(world.start(&server, vec![stage("deploy", json!({"clusters": clusters}))]).await);
    }
    for id in ids {
        assert_eq!(world.finished(id).await.status, Status::Succeeded);
    }
    server.stop().await;
    assert_eq!(world.cloud.outages(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_brings_the_old_group_back_before_the_new_one_goes() {
    let world = world().await;
    let strategy = json!({"kind": "redBlack", "scaleDown": true, "delayBeforeScaleDownSeconds": 600});
    let server = world.serve();
    let id = world.start(&server, vec![deploy(strategy, json!({}))]).await;
    world
        .until(id, |execution| {
            execution.stages.iter().any(|stage| stage.kind == "wait" && stage.status == Status::Running)
        })
        .await;
    assert!(groups(&world).contains(&"hello-prod-v008 disabled 2/2".to_owned()));
    server.engine.commands().cancel(&world.actor, id, "not today", CancelMode::Unwind).await.expect("it may be");
    let execution = world.finished(id).await;
    server.stop().await;
    assert_eq!(execution.status, Status::Canceled, "{:?}", shape(&execution));
    assert_eq!(
        groups(&world),
        ["hello-prod-v007 disabled 2/2", "hello-prod-v008 enabled 2/2", "hello-prod-v009 disabled 2/2"]
    );
    let calls = world.cloud.calls();
    let at = |call: &str| calls.iter().position(|made| made == call);
    assert!(at("enable hello-prod-v008") < at("disable hello-prod-v009"), "{calls:?}");
    assert_eq!(world.cloud.outages(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_healthy_group_is_not_taken_away() {
    let world = world().await;
    let at = json!({"serverGroup": "hello-prod-v008"});
    let mut empty = at.clone();
    empty["capacity"] = json!({"min": 0, "desired": 0, "max": 2});
    for (kind, config) in [("disableServerGroup", &at), ("destroyServerGroup", &at), ("resizeServerGroup", &empty)] {
        let execution = world.run(vec![stage(kind, config.clone())]).await;
        let failure = execution.failure.expect("refused");
        assert_eq!(failure.code, "WOULD_LEAVE_NOTHING", "{failure:?}");
    }
    assert_eq!(world.cloud.calls(), Vec::<String>::new());
    let allowed = json!({"serverGroup": "hello-prod-v008", "allowLast": true});
    assert_eq!(world.run(vec![stage("disableServerGroup", allowed)]).await.status, Status::Succeeded);
    assert_eq!(groups(&world), ["hello-prod-v007 disabled 2/2", "hello-prod-v008 disabled 2/2"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn targets_are_found_by_their_place_in_the_cluster() {
    let world = world().await;
    let of = |which: &str| json!({"cluster": "hello-prod", "target": which});
    let execution = world.run(vec![stage("destroyServerGroup", of("oldest"))]).await;
    assert_eq!(execution.status, Status::Succeeded, "{:?}", shape(&execution));
    assert_eq!(groups(&world), ["hello-prod-v008 enabled 2/2"]);
    for which in ["ancestor", "oldest"] {
        let execution = world.run(vec![stage("enableServerGroup", of(which))]).await;
        assert_eq!(execution.failure.expect("there is one only").code, "NOT_FOUND");
    }
    let mut config = of("newest");
    config["capacity"] = json!({"min": 1, "desired": 4, "max": 5});
    let execution = world.run(vec![stage("resizeServerGroup", config)]).await;
    assert_eq!(execution.stages[0].outputs["previousCapacity"], json!({"min": 2, "desired": 2, "max": 2}));
    assert_eq!(groups(&world), ["hello-prod-v008 enabled 4/4"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_of_other_applications_and_absent_groups_are_refused() {
    let world = world().await;
    world.cloud.given("other-v000", true, 1);
    for (kind, config, code) in [
        ("disableServerGroup", json!({"serverGroup": "other-v000", "allowLast": true}), "OTHER_APPLICATION"),
        ("destroyServerGroup", json!({"serverGroup": "other-v000", "allowLast": true}), "OTHER_APPLICATION"),
        ("enableServerGroup", json!({"serverGroup": "hello-prod-v999"}), "NOT_FOUND"),
        ("destroyServerGroup", json!({"serverGroup": "hello-prod-v999"}), "NOT_FOUND"),
        (
            "resizeServerGroup",
            json!({"serverGroup": "other-v000", "capacity": {"min": 1, "desired": 1, "max": 1}}),
            "OTHER_APPLICATION",
        ),
        ("upsertSecurityGroup", json!({"name": "other", "inbound": []}), "OTHER_APPLICATION"),
        ("upsertLoadBalancer", json!({"name": "other-x", "listeners": [{"port": 8080}]}), "OTHER_APPLICATION"),
        ("deleteLoadBalancer", json!({"name": "other"}), "OTHER_APPLICATION"),
        ("deleteSecurityGroup", json!({"name": "other"}), "OTHER_APPLICATION"),
    ] {
        let execution = world.run(vec![stage(kind, config)]).await;
        let failure = execution.failure.expect(kind);
        assert_eq!(failure.code, code, "{kind}: {failure:?}");
        assert!(failure.hint.is_some(), "{kind}");
    }
    assert_eq!(world.cloud.calls(), Vec::<String>::new());
}
