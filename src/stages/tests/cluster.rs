//! The line before a cluster: bounded, visible, and one can leave it.

use serde_json::json;

use super::{World, cluster, shape, stage};
use crate::model::{CancelMode, Execution, ExecutionId, StageSpec, Status};

/// A new server group that does not become healthy: it holds its cluster until it is cancelled.
fn holds() -> Vec<StageSpec> {
    let mut config = cluster(json!({"kind": "none"}), json!({"healthy": 0}));
    config["healthTimeoutSeconds"] = json!(600);
    vec![stage("createServerGroup", config)]
}

fn resizes() -> Vec<StageSpec> {
    let capacity = json!({"min": 2, "desired": 2, "max": 2});
    vec![stage("resizeServerGroup", json!({"serverGroup": "hello-prod-v008", "capacity": capacity}))]
}

fn message(execution: &Execution) -> &str {
    execution.stages[0].progress.as_ref().map_or("", |progress| progress.message.as_str())
}

async fn says(world: &World, id: ExecutionId, wanted: &str) {
    world.until(id, |execution| message(execution) == wanted).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_a_cluster_sees_for_whom_and_how_many_and_the_line_has_an_end() {
    let world = World::new().await;
    world.cloud.given("hello-prod-v008", true, 2);
    let server = world.serve_queue(2);
    let cancel = async |id| {
        let commands = server.engine.commands();
        commands.cancel(&world.actor, id, "", CancelMode::Leave).await.expect("cancelled");
        assert_eq!(world.finished(id).await.status, Status::Canceled);
    };
    let first = world.start(&server, holds()).await;
    world.until(first, |execution| message(execution) == "0 of 2 healthy").await;
    let second = world.start(&server, holds()).await;
    says(&world, second, "waits for hello / test #1: it changes cluster `hello-prod`").await;
    let third = world.start(&server, resizes()).await;
    says(&world, third, "waits for hello / test #1, then 1 more: it changes cluster `hello-prod`").await;

    // The holder and two in line: no more.
    let fourth = world.start(&server, resizes()).await;
    let refused = world.finished(fourth).await;
    assert_eq!(refused.status, Status::Failed);
    let failure = refused.failure.expect("a failure");
    assert_eq!(failure.code, "CLUSTER_QUEUE_FULL");
    assert!(failure.message.contains("2 operations already wait for cluster `hello-prod`"), "{failure:?}");
    assert!(failure.hint.expect("a hint").starts_with("cancel some of them"));

    // Who leaves the line makes room, and those behind see it.
    cancel(second).await;
    says(&world, third, "waits for hello / test #1: it changes cluster `hello-prod`").await;
    let fifth = world.start(&server, holds()).await;
    says(&world, fifth, "waits for hello / test #1, then 1 more: it changes cluster `hello-prod`").await;

    // The line moves on.
    cancel(first).await;
    let resized = world.finished(third).await;
    assert_eq!(resized.status, Status::Succeeded, "{:?}", shape(&resized));
    world.until(fifth, |execution| message(execution) == "0 of 2 healthy").await;
    cancel(fifth).await;
    server.stop().await;
    assert_eq!(world.cloud.outages(), 0);
}
