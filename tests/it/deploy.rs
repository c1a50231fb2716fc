//! Deploys: the first one, red/black under load, the checks around it, and those that do not work
//! out and leave everything as it was.

use std::time::Duration;

use gennaker::providers::Provider as _;
use gennaker::providers::host::client::HostProvider;
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::harness::documents::{CANCEL, JUDGE};
use crate::harness::{Hello, Outcome, Server, follow, trial, wait_for};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("deploy", "red_black_takes_version_1_to_version_2_and_no_request_fails", red_black_under_load),
        trial("deploy", "two_deploys_of_one_cluster_at_once_both_finish_under_distinct_names", two_at_once),
        trial("deploy", "a_deploy_that_never_gets_healthy_fails_and_leaves_the_old_group_in_traffic", never_healthy),
        trial("deploy", "a_deploy_of_what_crashes_says_all_about_it", crashes),
        trial("deploy", "cancelling_a_deploy_brings_back_what_was_there", cancel_unwinds),
        trial("deploy", "cancelling_a_deploy_after_its_switch_brings_the_old_group_back", cancel_after_the_switch),
        trial("deploy", "a_judgment_holds_the_pipeline_until_a_person_decides", judgment),
        trial("deploy", "a_webhook_that_is_refused_fails_the_pipeline_after_the_deploy", webhook_fails),
        trial("deploy", "operations_on_a_server_group_run_as_executions", operations),
        trial("deploy", "a_host_that_somebody_stopped_stays_stopped_until_the_server_starts_again", stop_the_host),
        trial("deploy", "a_server_that_ends_in_order_leaves_the_instances_in_traffic", stop_and_serve_again),
    ]
}

/// Long enough for any of these on a busy machine.
const MAX: Duration = Duration::from_secs(120);

async fn red_black_under_load() -> Outcome {
    let server = Server::start().await?;
    let hello = Hello::create(&server).await?;
    hello.deploy("1.0.0").await?.succeeded()?;
    let before = hello.groups().await?;
    anyhow::ensure!(before.len() == 1 && before[0].name == "hello-v000", "{before:?}");
    anyhow::ensure!(before[0].enabled && before[0].healthy == 3, "{before:?}");

    let load = hello.load(200, false);
    let followed = hello.deploy("2.0.0").await?;
    followed.succeeded()?;
    // What is in traffic now answers, and only that.
    wait_for("answers of the new version only", MAX, || async {
        let seconds = load.report().seconds;
        let (_, last) = seconds.range(..load.elapsed().as_secs()).next_back()?;
        (last.len() == 1 && last.contains_key("2.0.0")).then_some(())
    })
    .await?;
    let report = load.stop().await;
    anyhow::ensure!(report.failed == 0, "{:?}", report.failures);
    anyhow::ensure!(report.versions().contains_key("1.0.0") && report.sent > 200, "{:?}", report.versions());

    let after = hello.groups().await?;
    anyhow::ensure!(after.len() == 2, "{after:?}");
    anyhow::ensure!(after[0].name == "hello-v000" && !after[0].enabled, "{after:?}");
    anyhow::ensure!(after[1].name == "hello-v001" && after[1].enabled && after[1].healthy == 3, "{after:?}");
    // People saw how far it was.
    let said = followed.events.iter().filter_map(|event| event.pointer("/stage/progress/message")?.as_str());
    anyhow::ensure!(said.clone().any(|message| message.contains("of 3")), "{:?}", said.collect::<Vec<_>>());
    Ok(())
}

async fn two_at_once() -> Outcome {
    let server = Server::start().await?;
    let hello = Hello::create(&server).await?;
    hello.deploy("1.0.0").await?.succeeded()?;
    let load = hello.load(100, false);
    let watch = Watch::start(&server).await?;
    let (left, right) = tokio::join!(hello.deploy("2.0.0"), hello.deploy("3.0.0"));
    left?.succeeded()?;
    right?.succeeded()?;
    let seen = watch.end().await?;
    anyhow::ensure!(seen.zero.is_empty(), "the cluster was left with nothing: {:#?}", seen.zero);
    // Not a look before and one after: the changes themselves were looked at.
    anyhow::ensure!(seen.looks >= 20 && seen.states.len() >= 5, "{seen:?}");
    anyhow::ensure!(seen.states.iter().any(|state| state.contains("hello-v002")), "{seen:?}");
    let report = load.stop().await;
    anyhow::ensure!(report.failed == 0, "{:?}", report.failures);
    let names = hello.names().await?;
    let enabled: Vec<_> = names.iter().filter(|(_, enabled)| *enabled).collect();
    anyhow::ensure!(names.len() == 3 && enabled.len() == 1, "{names:?}");
    Ok(())
}

/// What the host itself had behind the load balancer, over a time.
#[derive(Debug, Default)]
struct Seen {
    looks: usize,
    /// Those that differ from the one before: the groups that are enabled and healthy.
    states: Vec<String>,
    /// Where there was none.
    zero: Vec<String>,
}

/// Looks at the host, past server and inventory, as fast as it answers.
struct Watch {
    stop: tokio::sync::oneshot::Sender<()>,
    task: tokio::task::JoinHandle<anyhow::Result<Seen>>,
}

impl Watch {
    async fn start(server: &Server) -> anyhow::Result<Self> {
        let provider = HostProvider::connect(server.host_provider()?).await?;
        let (stop, mut stopped) = tokio::sync::oneshot::channel();
        let task = tokio::spawn(async move {
            let mut seen = Seen::default();
            while stopped.try_recv() == Err(tokio::sync::oneshot::error::TryRecvError::Empty) {
                let snapshot = provider.snapshot().await?;
                let balancer = snapshot.load_balancers.iter().find(|found| found.spec.name == "hello");
                let registered = balancer.map(|found| found.server_groups.clone()).unwrap_or_default();
                let serving: Vec<_> = snapshot
                    .server_groups
                    .iter()
                    .filter(|group| registered.contains(&group.spec.name) && group.spec.enabled && group.healthy() > 0)
                    .map(|group| format!("{} {}", group.spec.name, group.healthy()))
                    .collect();
                let state = serving.join(", ");
                if serving.is_empty() {
                    seen.zero.push(format!("revision {}: {:?}", snapshot.revision, snapshot.server_groups));
                }
                if seen.states.last() != Some(&state) {
                    seen.states.push(state);
                }
                seen.looks += 1;
            }
            Ok(seen)
        });
        Ok(Self { stop, task })
    }

    async fn end(self) -> anyhow::Result<Seen> {
        let _ = self.stop.send(());
        self.task.await?
    }
}

async fn never_healthy() -> Outcome {
    let server = Server::start().await?;
    let hello = Hello::create(&server).await?;
    hello.deploy("1.0.0").await?.succeeded()?;
    let mut bad = hello.pipeline();
    let cluster = bad.pointer_mut("/stages/0/config/clusters/0").expect("the pipeline has a cluster");
    cluster["healthCheck"]["path"] = json!("/not-there");
    cluster["healthTimeoutSeconds"] = json!(6);
    hello.save("bad", &bad).await?;

    let load = hello.load(100, false);
    let execution = hello.start("bad", json!({ "version": "2.0.0" })).await?;
    let followed = follow(&hello.client, &execution, MAX).await?;
    anyhow::ensure!(followed.status() == "FAILED", "{}", followed.status());
    let failure = followed.failure();
    anyhow::ensure!(failure["message"].as_str().is_some_and(|message| message.contains("hello-v001")), "{failure}");
    anyhow::ensure!(failure["hint"].as_str().is_some_and(|hint| !hint.is_empty()), "{failure}");
    let whole = failures(&hello, &execution).await?;
    anyhow::ensure!(whole["message"] == failure["message"], "{whole}");
    anyhow::ensure!(whole["hint"].as_str().is_some_and(|hint| hint.contains("health check")), "{whole}");
    let report = load.stop().await;
    anyhow::ensure!(report.failed == 0, "{:?}", report.failures);
    anyhow::ensure!(report.versions().keys().eq(["1.0.0"]), "{:?}", report.versions());
    let groups = hello.groups().await?;
    anyhow::ensure!(groups[0].name == "hello-v000" && groups[0].enabled && groups[0].healthy == 3, "{groups:?}");
    anyhow::ensure!(groups[1..].iter().all(|group| !group.enabled), "{groups:?}");
    Ok(())
}

/// All that a failure says, of the execution and of the stage in which it was met.
async fn failures(hello: &Hello, execution: &str) -> anyhow::Result<Value> {
    let query = "
query Failures($id: ID!) {
  node(id: $id) { ... on Execution {
    failure { ...Whole }
    stages { id key kind failure { ...Whole } }
  } }
}
fragment Whole on Failure { code message hint stage { id kind } cause attempt retryable logTail }";
    let data = hello.client.query(query, json!({ "id": execution })).await?;
    let node = &data["node"];
    let met = node["stages"].as_array().into_iter().flatten().find(|stage| stage["kind"] == "createServerGroup");
    let met = met.ok_or_else(|| anyhow::anyhow!("no server group was to be created: {data}"))?;
    anyhow::ensure!(met["failure"] == node["failure"], "the stage that failed says the same: {data}");
    let failure = &node["failure"];
    anyhow::ensure!(failure["code"] == "INSTANCES_NOT_HEALTHY", "{failure}");
    anyhow::ensure!(failure["stage"] == json!({ "id": met["id"], "kind": "createServerGroup" }), "{failure}");
    anyhow::ensure!(failure["cause"].is_null() && failure["attempt"] == 1, "{failure}");
    anyhow::ensure!(failure["retryable"] == false, "{failure}");
    for field in ["message", "hint", "logTail"] {
        anyhow::ensure!(failure[field].as_str().is_some_and(|text| !text.is_empty()), "{field}: {failure}");
    }
    Ok(failure.clone())
}

async fn crashes() -> Outcome {
    let server = Server::start().await?;
    let hello = Hello::create(&server).await?;
    let mut bad = hello.pipeline();
    let launch = bad.pointer_mut("/stages/0/config/clusters/0/launch/command").expect("the cluster has a command");
    launch.as_array_mut().expect("a list").extend(["--crash-after-ms", "1"].map(Value::from));
    hello.save("crashes", &bad).await?;
    let execution = hello.start("crashes", json!({ "version": "1.0.0" })).await?;
    let followed = follow(&hello.client, &execution, MAX).await?;
    anyhow::ensure!(followed.status() == "FAILED", "{}", followed.status());
    let failure = failures(&hello, &execution).await?;
    // By whoever sees it first: the host, or the stage.
    let says = |text: &str| text.contains("keeps ending") || text.contains("has crashed");
    anyhow::ensure!(failure["message"].as_str().is_some_and(says), "{failure}");
    anyhow::ensure!(failure["hint"].as_str().is_some_and(|text| text.contains("ends by itself")), "{failure}");
    Ok(())
}

async fn cancel_unwinds() -> Outcome {
    let server = Server::start().await?;
    let hello = Hello::create(&server).await?;
    hello.deploy("1.0.0").await?.succeeded()?;
    // Held before the switch by a check that never comes to an end by itself.
    let mut slow = hello.pipeline();
    let cluster = slow.pointer_mut("/stages/0/config/clusters/0").expect("the pipeline has a cluster");
    cluster["healthCheck"]["path"] = json!("/not-there");
    hello.save("slow", &slow).await?;
    let load = hello.load(100, false);
    let execution = hello.start("slow", json!({ "version": "2.0.0" })).await?;
    wait_for("the new group", MAX, || async { (hello.names().await.ok()?.len() == 2).then_some(()) }).await?;
    let input = json!({ "execution": { "id": execution }, "reason": "not today" });
    hello.client.mutate(CANCEL, input).await?;
    let followed = follow(&hello.client, &execution, MAX).await?;
    anyhow::ensure!(followed.status() == "CANCELED", "{} {}", followed.status(), followed.failure());
    let report = load.stop().await;
    anyhow::ensure!(report.failed == 0, "{:?}", report.failures);
    let groups = hello.groups().await?;
    anyhow::ensure!(groups[0].name == "hello-v000" && groups[0].enabled && groups[0].healthy == 3, "{groups:?}");
    anyhow::ensure!(groups[1..].iter().all(|group| !group.enabled), "{groups:?}");
    // Over is over.
    let again = json!({ "execution": { "id": execution }, "reason": "again" });
    let error = hello.client.mutate(CANCEL, again).await.expect_err("it is over");
    anyhow::ensure!(error.code() == Some("WRONG_STATE"), "{error} {:?}", error.code());
    Ok(())
}

async fn cancel_after_the_switch() -> Outcome {
    let server = Server::start().await?;
    let hello = Hello::create(&server).await?;
    hello.deploy("1.0.0").await?.succeeded()?;
    let mut slow = hello.pipeline();
    let cluster = slow.pointer_mut("/stages/0/config/clusters/0").expect("the pipeline has a cluster");
    cluster["strategy"] = json!({ "kind": "redBlack", "scaleDown": true, "delayBeforeScaleDownSeconds": 600 });
    hello.save("slow", &slow).await?;
    let load = hello.load(100, false);
    let execution = hello.start("slow", json!({ "version": "2.0.0" })).await?;
    let only = async |version: &str| {
        wait_for(&format!("answers of {version} only"), MAX, || async {
            let seconds = load.report().seconds;
            let (_, last) = seconds.range(..load.elapsed().as_secs()).next_back()?;
            (last.len() == 1 && last.contains_key(version)).then_some(())
        })
        .await
    };
    let switched = [("hello-v000".to_owned(), false), ("hello-v001".to_owned(), true)];
    wait_for("the switch", MAX, || async { (hello.names().await.ok()? == switched).then_some(()) }).await?;
    only("2.0.0").await?;
    hello.client.mutate(CANCEL, json!({ "execution": { "id": execution }, "reason": "not today" })).await?;
    let followed = follow(&hello.client, &execution, MAX).await?;
    anyhow::ensure!(followed.status() == "CANCELED", "{} {}", followed.status(), followed.failure());
    only("1.0.0").await?;
    let report = load.stop().await;
    anyhow::ensure!(report.failed == 0, "{:?}", report.failures);
    let groups = hello.groups().await?;
    anyhow::ensure!(groups[0].name == "hello-v000" && groups[0].enabled && groups[0].healthy == 3, "{groups:?}");
    anyhow::ensure!(groups[1..].iter().all(|group| !group.enabled), "{groups:?}");
    Ok(())
}

async fn judgment() -> Outcome {
    let server = Server::start().await?;
    let hello = Hello::create(&server).await?;
    let definition = json!({
        "stages": [{
            "key": "ask",
            "kind": "manualJudgment",
            "config": { "instructions": "Look at the graphs", "inputs": ["blue", "green"] },
        }],
    });
    hello.save("ask", &definition).await?;
    for (proceed, ends) in [(true, "SUCCEEDED"), (false, "FAILED")] {
        let execution = hello.start("ask", Value::Null).await?;
        let stage = waiting_stage(&hello, &execution).await?;
        let wrong = json!({ "stage": { "id": stage }, "proceed": true, "input": "red" });
        let error = hello.client.mutate(JUDGE, wrong).await.expect_err("red is no choice");
        anyhow::ensure!(error.to_string().contains("red"), "{error}");
        let input = json!({ "stage": { "id": stage }, "proceed": proceed, "input": "green", "comment": "seen" });
        hello.client.mutate(JUDGE, input).await?;
        let followed = follow(&hello.client, &execution, MAX).await?;
        anyhow::ensure!(followed.status() == ends, "{} {}", followed.status(), followed.failure());
    }
    Ok(())
}

async fn waiting_stage(hello: &Hello, execution: &str) -> anyhow::Result<String> {
    wait_for("the judgment to be asked", MAX, || async {
        let data = hello.client.query(STAGES, json!({ "id": execution })).await.ok()?;
        let stage = data.pointer("/node/stages/0")?;
        (stage["status"] == "RUNNING").then(|| stage["id"].as_str().map(str::to_owned)).flatten()
    })
    .await
}

async fn webhook_fails() -> Outcome {
    let server = Server::start().await?;
    let hello = Hello::create(&server).await?;
    let mut definition = hello.pipeline();
    let check = definition.pointer_mut("/stages/1/config").expect("the pipeline has a check");
    check["url"] = json!(format!("http://{}/not-there", hello.load_balancer));
    check["retries"] = json!(0);
    hello.save("checked", &definition).await?;
    let execution = hello.start("checked", json!({ "version": "1.0.0" })).await?;
    let followed = follow(&hello.client, &execution, MAX).await?;
    anyhow::ensure!(followed.status() == "FAILED", "{}", followed.status());
    let failure = followed.failure();
    anyhow::ensure!(failure["message"].as_str().is_some_and(|message| message.contains("404")), "{failure}");

    // An address that nobody allowed is not called at all.
    check_private_address(&hello).await
}

async fn check_private_address(hello: &Hello) -> Outcome {
    let definition = json!({
        "stages": [{
            "key": "call",
            "kind": "webhook",
            "config": { "url": "http://127.0.0.1:1/", "method": "GET", "retries": 0 },
        }],
    });
    hello.save("private", &definition).await?;
    let execution = hello.start("private", Value::Null).await?;
    let followed = follow(&hello.client, &execution, MAX).await?;
    anyhow::ensure!(followed.status() == "FAILED", "{}", followed.status());
    let failure = followed.failure().to_string();
    anyhow::ensure!(failure.contains("127.0.0.1") && failure.contains("allow"), "{failure}");
    Ok(())
}

async fn operations() -> Outcome {
    let server = Server::start().await?;
    let hello = Hello::create(&server).await?;
    hello.deploy("1.0.0").await?.succeeded()?;
    let group = json!({ "account": "local", "location": "local", "name": "hello-v000" });
    let run = async |mutation: &str, mut input: Value| -> anyhow::Result<()> {
        input["serverGroup"] = json!({ "name": group });
        let kind = format!("{}{}Input", mutation[..1].to_uppercase(), &mutation[1..]);
        let document = format!(
            "mutation Operate($input: {kind}!) {{ {mutation}(input: $input) {{ execution {{ id }} userErrors {{ message field code }} }} }}"
        );
        let payload = hello.client.mutate(&document, input).await?;
        let execution = payload["execution"]["id"].as_str().unwrap_or_default();
        follow(&hello.client, execution, MAX).await?.succeeded()
    };
    run("resizeServerGroup", json!({ "capacity": { "min": 2, "desired": 2, "max": 2 } })).await?;
    wait_for("two instances", MAX, || async { (hello.groups().await.ok()?[0].instances == 2).then_some(()) }).await?;
    // The last one in traffic is not taken out by accident.
    let error = run("disableServerGroup", json!({})).await.err().map(|error| error.to_string()).unwrap_or_default();
    anyhow::ensure!(error.contains("hello-v000") && error.contains("enable another"), "{error}");
    hello.deploy("2.0.0").await?.succeeded()?;
    let now = async |old: bool| -> Outcome {
        let names = hello.names().await?;
        anyhow::ensure!(names == [("hello-v000".to_owned(), old), ("hello-v001".to_owned(), true)], "{names:?}");
        Ok(())
    };
    now(false).await?;
    run("enableServerGroup", json!({})).await?;
    now(true).await?;
    run("disableServerGroup", json!({})).await?;
    now(false).await?;
    run("destroyServerGroup", json!({})).await?;
    anyhow::ensure!(hello.names().await? == [("hello-v001".to_owned(), true)]);
    // Who means it can take down the last one.
    let last = json!({ "account": "local", "location": "local", "name": "hello-v001" });
    let document = "mutation Down($input: DestroyServerGroupInput!) {
        destroyServerGroup(input: $input) { execution { id } userErrors { message field code } } }";
    let input = json!({ "serverGroup": { "name": last }, "allowLast": true });
    let payload = hello.client.mutate(document, input).await?;
    follow(&hello.client, payload["execution"]["id"].as_str().unwrap_or_default(), MAX).await?.succeeded()?;
    anyhow::ensure!(hello.names().await?.is_empty());
    // A fault is told by its place in the mutation's own input.
    let document = "mutation Up($input: UpsertLoadBalancerInput!) {
        upsertLoadBalancer(input: $input) { userErrors { message field } } }";
    let input = json!({ "name": "hello-other", "listeners": [{ "port": 0 }] });
    let answer = hello.client.query(document, json!({ "input": input })).await?;
    let field = &answer["upsertLoadBalancer"]["userErrors"][0]["field"];
    anyhow::ensure!(*field == json!(["listeners", "0", "port"]), "{answer}");
    Ok(())
}

async fn stop_the_host() -> Outcome {
    let mut server = Server::start().await?;
    let hello = Hello::create(&server).await?;
    hello.deploy("1.0.0").await?.succeeded()?;
    // What is not this program does not take over, and that is said at once.
    let mut upgrade = tokio::process::Command::from(server.command());
    let refused =
        tokio::time::timeout(MAX, upgrade.args(["host", "upgrade", "--binary", "/bin/true"]).output()).await??;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    anyhow::ensure!(refused.status.code() == Some(2) && said.contains("not a gennaker"), "{}: {said}", refused.status);
    let mut stop = tokio::process::Command::from(server.command());
    let stopped = tokio::time::timeout(MAX, stop.args(["host", "stop", "--instances"]).output()).await??;
    anyhow::ensure!(stopped.status.success(), "{}", String::from_utf8_lossy(&stopped.stderr));
    let said = String::from_utf8_lossy(&stopped.stdout).into_owned();
    anyhow::ensure!(said.contains("the next start of the host brings them back"), "{said}");
    // What asks for the host is told so, and starts none.
    let input = json!({ "name": "hello-other", "inbound": [] });
    let document = "mutation Up($input: UpsertSecurityGroupInput!) {
        upsertSecurityGroup(input: $input) { execution { id } userErrors { message field } } }";
    let payload = hello.client.mutate(document, input).await?;
    let execution = payload["execution"]["id"].as_str().unwrap_or_default().to_owned();
    let cancel = "mutation Cancel($input: CancelExecutionInput!) {
        cancelExecution(input: $input) { userErrors { message } } }";
    let made = wait_for("an intent", MAX, || async {
        let document = "query Intents($id: ID!) { node(id: $id) { ... on Execution { intents { id } } } }";
        let answer = hello.client.query(document, json!({ "id": execution })).await.ok()?;
        answer["node"]["intents"].get(0).map(|_| ())
    });
    made.await?;
    hello.client.mutate(cancel, json!({ "execution": { "id": execution }, "mode": "LEAVE" })).await?;
    follow(&hello.client, &execution, MAX).await?;
    anyhow::ensure!(server.host_worker().is_none(), "the server started a host that somebody had stopped");
    server.stop().await?;
    server.restart().await?;
    // As the stop has said.
    wait_for("the instances to be back", MAX, || async {
        hello.groups().await.ok().filter(|groups| groups.first().is_some_and(|group| group.healthy == 3)).map(drop)
    })
    .await?;
    hello.deploy("2.0.0").await?.succeeded()?;
    let shown = server.gennaker(&["status", "hello"]).await?.with_status(0)?;
    let line = |name: &str| shown.out.lines().find(|line| line.contains(name)).unwrap_or_default();
    anyhow::ensure!(line("hello-v000").contains("disabled  3 instances, out of traffic"), "{}", shown.out);
    anyhow::ensure!(line("hello-v001").contains("enabled   3 of 3 healthy"), "{}", shown.out);
    Ok(())
}

async fn stop_and_serve_again() -> Outcome {
    let mut server = Server::start().await?;
    let hello = Hello::create(&server).await?;
    hello.deploy("1.0.0").await?.succeeded()?;
    let load = hello.load(100, false);
    let status = server.stop().await?;
    anyhow::ensure!(status.success(), "asked to end, it ended with {status}\n{}", server.log());
    wait_for("traffic without a server", MAX, || async { (load.report().sent > 100).then_some(()) }).await?;
    server.restart().await?;
    hello.deploy("2.0.0").await?.succeeded()?;
    let report = load.stop().await;
    anyhow::ensure!(report.failed == 0, "{:?}", report.failures);
    anyhow::ensure!(hello.names().await?.len() == 2);
    Ok(())
}

const STAGES: &str = "
query Stages($id: ID!) { node(id: $id) { ... on Execution { status stages { id key status } } } }";
