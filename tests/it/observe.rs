//! What operators look at: health, metrics, the log, and traces at a collector.

mod collector;

use std::time::Duration;

use anyhow::Context as _;
use gennaker::cli::demo::setup::FOLLOW;
use gennaker::model::Cursor;
use libtest_mimic::Trial;
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::harness::{
    Calls, Exposition, Hello, Options, Outcome, Schema, Server, Two, follow, get, postgres, ready, scrape, trial,
    trial_with, wait_for,
};
use collector::Collector;
use opentelemetry_proto::tonic::trace::v1::Span;

pub fn trials() -> Vec<Trial> {
    vec![
        trial("observe", "readiness_names_what_is_wrong_and_comes_back", readiness),
        trial("observe", "readiness_says_that_the_schema_is_another", not_migrated),
        trial("observe", "metrics_need_a_token_unless_they_are_public", metrics_access),
        trial("observe", "metrics_are_well_formed_and_rise_with_a_deploy", metrics_rise),
        trial("observe", "no_invariant_is_violated_by_a_deploy_that_is_killed", invariants_hold),
        trial("observe", "each_invariant_that_is_violated_in_the_data_is_counted", violated),
        trial_with("observe", "a_part_that_ended_by_itself_is_counted_while_the_server_ends", postgres(), part_ended),
        trial("observe", "each_line_of_the_log_carries_its_ids_and_no_secret", log_lines),
        trial("observe", "an_execution_is_one_trace_although_the_server_was_killed", one_trace),
        trial_with("observe", "a_trace_begun_at_one_server_and_ended_at_another_is_one", postgres(), trace_of_two),
        trial("observe", "nothing_is_sent_unless_a_collector_is_set", no_collector),
    ]
}

const MAX: Duration = Duration::from_secs(180);

async fn readiness() -> Outcome {
    let server = Server::start().await?;
    anyhow::ensure!(get(&server, "/healthz", None).await? == (StatusCode::OK, "ok\n".to_owned()));
    let (status, all) = wait_for("the server to be ready", MAX, || async {
        ready(&server).await.ok().filter(|(status, _)| *status == StatusCode::OK)
    })
    .await?;
    anyhow::ensure!(status == StatusCode::OK && all["ready"] == true, "{all}");
    let names: Vec<_> = all["checks"].as_array().into_iter().flatten().map(|check| check["name"].clone()).collect();
    anyhow::ensure!(names == ["server", "database", "store", "host", "engine"], "{names:?}");

    let stopped = server.command().args(["host", "stop"]).output()?;
    anyhow::ensure!(stopped.status.success(), "{stopped:?}");
    let said = wait_for("the server to be not ready", MAX, || async {
        let (status, said) = ready(&server).await.ok()?;
        (status == StatusCode::SERVICE_UNAVAILABLE).then_some(said)
    })
    .await?;
    anyhow::ensure!(said["ready"] == false);
    let bad: Vec<_> = said["checks"].as_array().into_iter().flatten().filter(|check| check["ok"] == false).collect();
    anyhow::ensure!(bad.len() == 1 && bad[0]["name"] == "host", "{said}");
    anyhow::ensure!(bad[0]["why"].as_str().is_some_and(|why| why.contains("gennaker host stop")), "{said}");
    let directory = server.dir().to_string_lossy().into_owned();
    anyhow::ensure!(!said.to_string().contains(&directory), "no path is told to everybody: {said}");
    // It is alive all the same, and says so in what it counts.
    anyhow::ensure!(get(&server, "/healthz", None).await?.0 == StatusCode::OK);

    let mut host = tokio::process::Command::from(server.command())
        .arg("host")
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    wait_for("the server to be ready again", MAX, || async {
        (ready(&server).await.ok()?.0 == StatusCode::OK).then_some(())
    })
    .await
    .with_context(|| server.log())?;
    let _ = server.command().args(["host", "stop", "--instances"]).output()?;
    host.kill().await?;
    Ok(())
}

/// As when a newer server has migrated the database that this one uses.
async fn not_migrated() -> Outcome {
    use sea_orm::{ConnectionTrait as _, Database};

    let server = Server::start().await?;
    let status = async |wanted: StatusCode| {
        wait_for(&format!("readiness to be {wanted}"), MAX, || async {
            ready(&server).await.ok().filter(|(status, _)| *status == wanted)
        })
        .await
    };
    status(StatusCode::OK).await?;
    let database = Database::connect(format!("sqlite://{}", server.data_dir().join("gennaker.db").display())).await?;
    database.execute_unprepared("PRAGMA busy_timeout = 10000").await?;
    let insert = "INSERT INTO seaql_migrations (version, applied_at) VALUES ('m29991231_000001_future', 0)";
    database.execute_unprepared(insert).await?;
    let (_, said) = status(StatusCode::SERVICE_UNAVAILABLE).await?;
    let bad: Vec<_> = said["checks"].as_array().into_iter().flatten().filter(|check| check["ok"] == false).collect();
    anyhow::ensure!(bad.len() == 1 && bad[0]["name"] == "database", "{said}");
    anyhow::ensure!(
        bad[0]["why"].as_str().is_some_and(|why| why.contains("its schema is not this server's")),
        "{said}"
    );
    database.execute_unprepared("DELETE FROM seaql_migrations WHERE version LIKE 'm2999%'").await?;
    status(StatusCode::OK).await?;
    Ok(())
}

async fn metrics_access() -> Outcome {
    let server = Server::start().await?;
    let (status, text) = get(&server, "/metrics", None).await?;
    anyhow::ensure!(status == StatusCode::UNAUTHORIZED && !text.contains("gennaker_"), "{status}: {text}");
    anyhow::ensure!(get(&server, "/metrics", Some("gnk_none")).await?.0 == StatusCode::UNAUTHORIZED);
    scrape(&server).await?;
    drop(server);
    let options = Options { flags: vec!["--metrics-public".to_owned()], ..Options::default() };
    let server = Server::start_with(options).await?;
    let (status, text) = get(&server, "/metrics", None).await?;
    anyhow::ensure!(status == StatusCode::OK, "{status}: {text}");
    Exposition::read(&text)?;
    Ok(())
}

async fn metrics_rise() -> Outcome {
    let server = Server::start().await?;
    let before = scrape(&server).await?;
    for name in [
        "gennaker_build_info",
        "gennaker_store_queue_length",
        "gennaker_store_wal_bytes",
        "gennaker_store_event_position",
        "gennaker_executions_active",
        "process_resident_memory_bytes",
        "process_open_fds",
        "process_start_time_seconds",
        "gennaker_invariant_violations_total",
        "gennaker_api_rejected_total",
    ] {
        anyhow::ensure!(before.has(name), "{name} is there from the start");
    }
    anyhow::ensure!(before.sum("gennaker_executions_ended_total", &[]) == 0.0);
    anyhow::ensure!(before.sum("gennaker_stages_ended_total", &[("kind", "deploy")]) == 0.0, "0 before the first");

    let hello = Hello::create(&server).await?;
    hello.deploy("1.0.0").await?.succeeded()?;
    let load = hello.load(100, false);
    hello.deploy("2.0.0").await?.succeeded()?;
    let report = load.stop().await;
    anyhow::ensure!(report.failed == 0, "{:?}", report.failures);
    // A document that is too deep.
    let deep = format!("{{ a {} }}", "{ a ".repeat(30) + &"}".repeat(30));
    let _ = hello.client.post(&deep, &json!({})).await;

    let after = wait_for("the proxy's counters", MAX, || async {
        let after = scrape(&server).await.ok()?;
        (after.sum("gennaker_proxy_requests_total", &[("class", "2xx")]) >= 1.0).then_some(after)
    })
    .await?;
    for (name, labels) in [
        ("gennaker_executions_started_total", &[][..]),
        ("gennaker_executions_ended_total", &[("status", "SUCCEEDED")][..]),
        ("gennaker_stage_steps_total", &[("kind", "deploy"), ("outcome", "spawn")][..]),
        ("gennaker_stage_step_duration_seconds_count", &[("kind", "createServerGroup")][..]),
        ("gennaker_stages_ended_total", &[("kind", "deploy"), ("status", "SUCCEEDED")][..]),
        ("gennaker_effects_total", &[("outcome", "done")][..]),
        ("gennaker_effect_duration_seconds_count", &[][..]),
        ("gennaker_scan_duration_seconds_count", &[][..]),
        ("gennaker_step_lag_seconds_count", &[][..]),
        ("gennaker_store_commits_total", &[("outcome", "ok")][..]),
        ("gennaker_store_commit_duration_seconds_count", &[][..]),
        ("gennaker_store_batch_commits_count", &[][..]),
        ("gennaker_store_event_position", &[][..]),
        ("gennaker_api_requests_total", &[("transport", "http"), ("outcome", "ok")][..]),
        ("gennaker_api_requests_total", &[("transport", "probe"), ("outcome", "ok")][..]),
        ("gennaker_api_events_sent_total", &[][..]),
        ("gennaker_api_rejected_total", &[("limit", "depth")][..]),
        ("gennaker_proxy_request_duration_seconds_count", &[("load_balancer", "hello")][..]),
    ] {
        let (was, is) = (before.sum(name, labels), after.sum(name, labels));
        anyhow::ensure!(is > was, "{name}{labels:?} rises: {was} to {is}");
    }
    anyhow::ensure!(after.sum("gennaker_executions_ended_total", &[("status", "SUCCEEDED")]) >= 4.0);
    anyhow::ensure!(after.sum("gennaker_api_subscriptions", &[]) == 0.0, "nobody is subscribed any more");
    // No id is a label, and names only of what exists.
    for sample in &after.samples {
        for (label, value) in &sample.labels {
            let id =
                value.len() > 32 && value.contains('_') && value.bytes().rev().take(32).all(|b| b.is_ascii_hexdigit());
            anyhow::ensure!(!id, "{}: {label}={value}", sample.name);
        }
    }
    only_zero(&after)
}

fn only_zero(metrics: &Exposition) -> Outcome {
    let family: Vec<_> = metrics.of("gennaker_invariant_violations_total").collect();
    anyhow::ensure!(family.len() == 8, "each invariant is there: {family:?}");
    let violated: Vec<_> = family.into_iter().filter(|sample| sample.value != 0.0).collect();
    anyhow::ensure!(violated.is_empty(), "{violated:?}");
    Ok(())
}

async fn invariants_hold() -> Outcome {
    let mut server = Server::start().await?;
    let hello = Hello::create(&server).await?;
    hello.deploy("1.0.0").await?.succeeded()?;
    let execution = hello.start("deploy hello", json!({ "version": "2.0.0" })).await?;
    wait_for("the second group", MAX, || async { (hello.groups().await.ok()?.len() == 2).then_some(()) }).await?;
    only_zero(&scrape(&server).await?)?;
    server.kill().await?;
    server.restart().await?;
    follow(&hello.client, &execution, MAX).await?.succeeded()?;
    // The search for violations runs at the start and every 15 seconds: have it run once more.
    let seen = scrape(&server).await?.sum("gennaker_scan_duration_seconds_count", &[]);
    wait_for("a while of the engine's work", MAX, || async {
        let now = scrape(&server).await.ok()?.sum("gennaker_scan_duration_seconds_count", &[]);
        (now > seen + 16.0).then_some(())
    })
    .await?;
    only_zero(&scrape(&server).await?).with_context(|| server.log())
}

/// The detectors themselves: somebody spoils rows behind the server's back, each in an execution of
/// its own. A part that ends is the next trial's; rules that never come to an end are
/// a test's of the engine: each decision, whatever the rows say, brings its stage nearer to its own.
async fn violated() -> Outcome {
    use sea_orm::{ConnectionTrait as _, Database};

    let calls = Calls::start().await?;
    let server = Server::start_with(Options { flags: calls.flags(), ..Options::default() }).await?;
    let hello = Hello::create(&server).await?;
    let wait =
        |seconds: u32| json!({ "stages": [{ "key": "pause", "kind": "wait", "config": { "seconds": seconds } }] });
    for (name, definition) in [
        ("long", wait(3600)),
        ("panics", wait(3600)),
        ("overdue", wait(0)),
        ("gap", calls.pipeline(0)),
        ("left open", calls.pipeline(0)),
        ("unreadable", wait(0)),
    ] {
        hello.save(name, &definition).await?;
        let execution = hello.start(name, json!({})).await?;
        if definition["stages"][0]["config"]["seconds"] != 3600 {
            follow(&hello.client, &execution, MAX).await?.succeeded()?;
        }
    }
    let document = "query($name: String!) { pipeline(application: \"hello\", name: $name) {
        executions(first: 1) { nodes { id status stages { status } } } } }";
    let asked = async |name: &str| {
        let mut data = hello.client.query(document, json!({ "name": name })).await?;
        anyhow::Ok(data["pipeline"]["executions"]["nodes"][0].take())
    };
    for name in ["long", "panics"] {
        wait_for("the execution to wait", MAX, || async {
            (asked(name).await.ok()?["stages"][0]["status"] == "RUNNING").then_some(())
        })
        .await?;
    }
    only_zero(&scrape(&server).await?)?;
    let gap = asked("gap").await?["id"].as_str().context("an id")?.to_owned();
    let mut subscription = hello.client.subscribe(FOLLOW, &json!({ "id": gap })).await?;
    let newest = subscription.next().await?.context("a snapshot")?["executionEvents"]["cursor"].clone();
    let newest: Cursor = newest.as_str().context("a cursor")?.parse()?;
    drop(subscription);

    let file = server.data_dir().join("gennaker.db");
    let database = Database::connect(format!("sqlite://{}?mode=rw", file.display())).await?;
    database.execute_unprepared("PRAGMA busy_timeout = 10000").await?;
    let of = |name: &str| format!("(SELECT id FROM execution WHERE name = '{name}')");
    for sql in [
        format!("UPDATE execution SET wake_at = NULL WHERE id = {}", of("long")),
        // A version after which there is none; the deadline has the execution saved.
        format!("UPDATE execution SET version = {}, deadline = 1, wake_at = 1 WHERE id = {}", i64::MAX, of("panics")),
        format!("UPDATE execution SET wake_at = 1 WHERE id = {}", of("overdue")),
        format!("DELETE FROM event WHERE seq = 3 AND stream = {}", of("gap")),
        format!(
            "UPDATE intent SET closed_at = NULL, outcome = NULL, deadline = 1 \
             WHERE id = (SELECT MIN(id) FROM intent WHERE execution_id = {})",
            of("left open")
        ),
        format!("UPDATE execution SET status = 'PERHAPS' WHERE id = {}", of("unreadable")),
    ] {
        let spoiled = database.execute_unprepared(&sql).await?.rows_affected();
        anyhow::ensure!(spoiled == 1, "{spoiled} rows: {sql}");
    }
    database.close().await?;
    anyhow::ensure!(asked("unreadable").await.is_err(), "it cannot be read");
    let after = Cursor { seq: 1, ..newest }.to_string();
    let mut subscription = hello.client.subscribe(FOLLOW, &json!({ "id": gap, "after": after })).await?;
    while subscription.next().await?.is_some() {}

    let names =
        ["running_without_wake", "due_and_not_taken", "event_gap", "intent_left_open", "panic", "unreadable_row"];
    let found = |metrics: &Exposition| -> Vec<(&str, f64)> {
        let count = |name| metrics.sum("gennaker_invariant_violations_total", &[("invariant", name)]);
        names.map(|name| (name, count(name))).to_vec()
    };
    let all = wait_for("each to be found", MAX, || async {
        let found = found(&scrape(&server).await.ok()?);
        found.iter().all(|(_, count)| *count > 0.0).then_some(found)
    })
    .await;
    match all {
        // What is looked for again and again is counted once for what it is.
        Ok(all) => anyhow::ensure!(
            all.iter()
                .all(|(name, count)| ["due_and_not_taken", "panic", "unreadable_row"].contains(name) || *count == 1.0),
            "{all:?}"
        ),
        Err(error) => return Err(error.context(format!("{:?}\n{}", found(&scrape(&server).await?), server.log()))),
    }
    Ok(())
}

/// The engine cannot run without the table of owners; meanwhile the triggers' last pass waits for
/// a lock, and the API answers until that is over.
async fn part_ended() -> Outcome {
    use sea_orm::{ConnectionTrait as _, Database, TransactionTrait as _};

    let schema = Schema::create().await?;
    let flags = vec!["--metrics-public".to_owned()];
    let options = Options { database_url: Some(schema.url.clone()), flags, ..Options::default() };
    let mut server = Server::start_with(options).await?;
    anyhow::ensure!(server.stop().await?.success(), "{}", server.log());
    let database = Database::connect(&schema.url).await?;
    database.execute_unprepared("DROP TABLE owner").await?;
    let lock = database.begin().await?;
    lock.execute_unprepared("LOCK TABLE pipeline_trigger IN ACCESS EXCLUSIVE MODE").await?;
    let url = format!("{}/metrics", server.url());
    let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5)).build()?;
    let counted = wait_for("the part's end to be counted", MAX, || async {
        let text = client.get(&url).send().await.ok()?.text().await.ok()?;
        let metrics = Exposition::read(&text).ok()?;
        let labels = &[("invariant", "part_ended")];
        (metrics.sum("gennaker_invariant_violations_total", labels) == 1.0).then_some(())
    });
    let mut counted = std::pin::pin!(counted);
    tokio::select! {
        counted = &mut counted => counted?,
        // It may have answered before it ends.
        started = server.restart() => {
            started?;
            counted.await?;
        }
    }
    lock.rollback().await?;
    database.close().await?;
    let status = server.ended(MAX).await?;
    anyhow::ensure!(status.code() == Some(1), "{status}");
    anyhow::ensure!(server.log().contains("task `engine` ended by itself"), "{}", server.log());
    drop(server);
    schema.drop().await
}

async fn log_lines() -> Outcome {
    let secret = "a-very-secret-greeting";
    let options = Options {
        flags: vec!["--log".to_owned(), "json".to_owned()],
        environment: vec![
            ("GENNAKER_LOG_FILTER".to_owned(), "info,gennaker=debug,sqlx=warn".to_owned()),
            ("GENNAKER_SECRET_HELLO".to_owned(), secret.to_owned()),
        ],
        ..Options::default()
    };
    let server = Server::start_with(options).await?;
    let hello = Hello::create(&server).await?;
    let mut definition = hello.pipeline();
    let cluster = definition.pointer_mut("/stages/0/config/clusters/0").context("the pipeline has a cluster")?;
    cluster["launch"]["environment"] = json!({ "HELLO_KEY": "secret://env/GENNAKER_SECRET_HELLO" });
    hello.save("secret", &definition).await?;
    let execution = hello.start("secret", json!({ "version": "1.0.0" })).await?;
    let followed = follow(&hello.client, &execution, MAX).await?;
    followed.succeeded()?;
    others_lines(&server, &hello).await?;

    let client = reqwest::Client::builder().no_proxy().build()?;
    let request = |id: &'static str| {
        let request = client.post(format!("{}/graphql", server.url())).bearer_auth(server.token());
        request.header("x-request-id", id).json(&json!({ "query": "{ __typename }" })).send()
    };
    let header = |answer: &reqwest::Response| {
        answer.headers().get("x-request-id").and_then(|id| id.to_str().ok()).unwrap_or_default().to_owned()
    };
    anyhow::ensure!(header(&request("shop-42.a_b").await?) == "shop-42.a_b", "a sane id is taken over");
    let made = header(&request("not sane").await?);
    anyhow::ensure!(made.len() == 32, "another is replaced: {made}");

    let text = wait_for("the lines of both requests", MAX, || async {
        let text = std::fs::read_to_string(server.dir().join("server.log")).ok()?;
        (text.contains("shop-42.a_b") && text.contains(&made)).then_some(text)
    })
    .await?;
    let whole = text.as_str();
    let lines = lines_of(whole)?;
    let asked = lines.iter().find(|line| line["request.id"] == "shop-42.a_b").context("the request is in the log")?;
    anyhow::ensure!(asked["principal"] == "admin" && asked["path"] == "/graphql" && asked["status"] == 200, "{asked}");

    // Whatever names an execution can be found by its id, and whatever a request did by the request's.
    for line in &lines {
        let has = |name: &str, prefix: &str| line[name].as_str().is_some_and(|id| id.starts_with(prefix));
        let execution = has("execution.id", "ex_") || has("source.execution.id", "ex_");
        anyhow::ensure!(execution || !line["message"].to_string().contains("ex_"), "{line}");
        let of = |module: &str| is_of(line, module);
        if of("gennaker::api::http::observe") {
            anyhow::ensure!(line["request.id"].as_str().is_some_and(|id| !id.is_empty()), "{line}");
        }
        if of("gennaker::engine::context") {
            anyhow::ensure!(execution && has("stage.id", "st_"), "{line}");
        }
        if of("gennaker::notifiers::deliver") {
            anyhow::ensure!(execution && has("delivery.id", "dl_"), "{line}");
        }
        if of("gennaker::engine::commands::fire") {
            anyhow::ensure!(has("source.execution.id", "ex_") && has("trigger.id", "tg_"), "{line}");
        }
        if of("gennaker::engine::commands::start") || of("gennaker::engine::commands::steer") {
            anyhow::ensure!(has("execution.id", "ex_") && line["request.id"].is_string(), "{line}");
        }
    }
    for module in ["api::http::observe", "engine::context", "notifiers::deliver", "engine::commands::fire"] {
        anyhow::ensure!(lines.iter().any(|line| is_of(line, &format!("gennaker::{module}"))), "nothing of {module}");
    }
    for (what, count) in [
        ("`admin` started execution", 5),
        ("`admin` judged stage", 1),
        ("`admin` cancelled execution", 1),
        ("call outside: create server group", 1),
        ("email is given up", 1),
        ("trigger `after` started an execution", 1),
        ("trigger `after` could not start", 1),
    ] {
        let told = lines.iter().filter(|line| line["message"].as_str().is_some_and(|text| text.starts_with(what)));
        anyhow::ensure!(told.count() >= count, "{what}: {whole}");
    }
    let judged = lines.iter().find(|line| line["message"].as_str().is_some_and(|text| text.contains("judged stage")));
    anyhow::ensure!(judged.is_some_and(|line| line["stage.id"].is_string()), "{judged:?}");
    // The host that the server has started writes as the server does, its keeper too.
    let worker = server.host_worker().context("the host has a worker")?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(worker), nix::sys::signal::Signal::SIGKILL)?;
    let host = wait_for("the line of the host's keeper", MAX, || async {
        let host = std::fs::read_to_string(server.host_dir().join("host.log")).ok()?;
        host.contains("the worker has ended").then_some(host)
    })
    .await?;
    let host = lines_of(&host)?;
    let taken: Vec<_> =
        host.iter().filter(|line| line["message"].as_str().is_some_and(|text| text.contains(" is taken"))).collect();
    anyhow::ensure!(taken.len() > 2, "{host:?}");
    for line in taken {
        let has = |name: &str, prefix: &str| line[name].as_str().is_some_and(|id| id.starts_with(prefix));
        anyhow::ensure!(has("execution.id", "ex_") && has("stage.id", "st_"), "{line}");
    }

    let workers: Vec<_> = lines.iter().filter(|line| is_of(line, "gennaker::engine::worker")).collect();
    anyhow::ensure!(workers.len() > 10, "{workers:?}");
    for line in workers {
        let id = line["execution.id"].as_str().unwrap_or_default();
        anyhow::ensure!(id.starts_with("ex_") && line["execution.number"].is_i64(), "{line}");
        anyhow::ensure!(line["application"] == "hello", "{line}");
        if line["message"].as_str().is_some_and(|message| message.starts_with("stage ")) {
            anyhow::ensure!(line["stage.id"].as_str().is_some_and(|id| id.starts_with("st_")), "{line}");
            anyhow::ensure!(line["stage.kind"].is_string() && line["stage.key"].is_string(), "{line}");
        }
    }
    anyhow::ensure!(!text.contains(secret), "the secret is in the log");
    anyhow::ensure!(!text.contains(server.token()), "a token is in the log");
    let metrics = get(&server, "/metrics", Some(server.token())).await?.1;
    anyhow::ensure!(!metrics.contains(secret) && !metrics.contains(server.token()), "a secret is in the metrics");
    Ok(())
}

/// The lines of a log in JSON: flat objects with what every line has.
fn lines_of(text: &str) -> anyhow::Result<Vec<Value>> {
    // The last line may be being written.
    let whole = &text[..text.rfind('\n').context("a line")?];
    let lines: Vec<Value> =
        whole.lines().map(|line| serde_json::from_str(line).context(line.to_owned())).collect::<anyhow::Result<_>>()?;
    for line in &lines {
        anyhow::ensure!(line.as_object().is_some_and(|line| line.values().all(|value| !value.is_object())), "{line}");
        for key in ["timestamp", "level", "target", "message"] {
            anyhow::ensure!(line[key].is_string(), "{key} in {line}");
        }
    }
    Ok(lines)
}

/// Whether the line is the module's or of one below it.
fn is_of(line: &Value, module: &str) -> bool {
    let below = line["target"].as_str().and_then(|target| target.strip_prefix(module));
    below.is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// What says something besides a deploy: triggers, one of which cannot start, a mail that cannot be
/// sent, and a person's words.
async fn others_lines(server: &Server, hello: &Hello) -> Outcome {
    let quick = json!([{ "key": "a", "kind": "wait", "config": { "seconds": 0 } }]);
    let after = json!([{
        "key": "after", "kind": "pipeline", "config": { "application": "hello", "pipeline": "first" },
    }]);
    let mail = json!([{ "on": ["COMPLETED"], "email": { "to": ["ann@example.org"] } }]);
    hello.save("first", &json!({ "stages": quick, "notifications": mail })).await?;
    hello.save("second", &json!({ "stages": quick, "triggers": after })).await?;
    let mut never = after.clone();
    never[0]["parameters"] = json!({ "from": "${ trigger.stages.none.outputs.x }" });
    let parameters = json!([{ "name": "from", "default": "" }]);
    hello.save("never", &json!({ "stages": quick, "triggers": never, "parameters": parameters })).await?;
    let ask = json!([{ "key": "ask", "kind": "manualJudgment", "config": { "instructions": "Go on?" } }]);
    hello.save("asks", &json!({ "stages": ask })).await?;
    let execution = hello.start("asks", json!(null)).await?;
    hello.approve(&execution).await?;
    follow(&hello.client, &execution, MAX).await?.succeeded()?;
    let execution = hello.start("asks", json!(null)).await?;
    hello.asks(&execution).await?;
    let cancel = "mutation Cancel($input: CancelExecutionInput!) {
        cancelExecution(input: $input) { execution { id } userErrors { message field code } } }";
    hello.client.mutate(cancel, json!({ "execution": { "id": execution } })).await?;
    follow(&hello.client, &execution, MAX).await?;
    hello.start("first", json!(null)).await?;
    wait_for("all to have been said", MAX, || async {
        let text = std::fs::read_to_string(server.dir().join("server.log")).ok()?;
        let said = ["email is given up", "`after` started an execution", "`after` could not start"];
        said.iter().all(|what| text.contains(what)).then_some(())
    })
    .await
}

async fn one_trace() -> Outcome {
    let secret = "a-very-secret-greeting";
    let collector = Collector::start().await?;
    let options = Options {
        flags: vec!["--otlp-endpoint".to_owned(), collector.endpoint()],
        environment: vec![
            ("OTEL_EXPORTER_OTLP_HEADERS".to_owned(), "x-tenant=blue".to_owned()),
            ("GENNAKER_SECRET_HELLO".to_owned(), secret.to_owned()),
        ],
        ..Options::default()
    };
    let mut server = Server::start_with(options).await?;
    let hello = Hello::create(&server).await?;
    hello.deploy("1.0.0").await?.succeeded()?;
    let mut definition = hello.pipeline();
    let cluster = definition.pointer_mut("/stages/0/config/clusters/0").context("the pipeline has a cluster")?;
    cluster["launch"]["environment"] = json!({ "HELLO_KEY": "secret://env/GENNAKER_SECRET_HELLO" });
    hello.save("traced", &definition).await?;
    let execution = hello.start("traced", json!({ "version": "2.0.0" })).await?;
    wait_for("the second group", MAX, || async { (hello.groups().await.ok()?.len() == 2).then_some(()) }).await?;
    server.kill().await?;
    server.restart().await?;
    let followed = follow(&hello.client, &execution, MAX).await?;
    followed.succeeded()?;
    let begun: Vec<Value> = followed.stages().into_iter().filter(|stage| stage["startedAt"].is_string()).collect();

    let trace = wait_for("the whole trace", MAX, || async {
        let roots: Vec<_> = collector.named("execution traced");
        let trace = collector.trace(&roots.first()?.trace_id);
        let stages = trace.iter().filter(|span| span.name.starts_with("stage ")).count();
        (stages == begun.len()).then_some(trace)
    })
    .await
    .with_context(|| format!("{} stages began; {:#?}", begun.len(), collector.names()))?;
    anyhow::ensure!(collector.headers().iter().all(|tenant| tenant == "blue"), "the headers of the setting");

    let root = hangs_together(&trace, "execution traced")?;
    let named = |name: &str| trace.iter().find(|span| span.name == name).with_context(|| format!("{name}: {trace:#?}"));
    let create = named("stage createServerGroup")?;
    anyhow::ensure!(create.parent_span_id == named("stage deploy")?.span_id, "children hang below their stage");
    anyhow::ensure!(named("stage deploy")?.parent_span_id == root.span_id);
    anyhow::ensure!(trace.iter().any(|span| span.name.starts_with("effect ") && span.parent_span_id == create.span_id));
    anyhow::ensure!(!format!("{trace:?}").contains(secret), "the secret is in the trace");

    // What is spooled is sent at the end.
    let last = hello.start("deploy hello", json!({ "version": "3.0.0" })).await?;
    follow(&hello.client, &last, MAX).await?.succeeded()?;
    let status = server.stop().await?;
    anyhow::ensure!(status.success(), "{status}\n{}", server.log());
    anyhow::ensure!(collector.named("execution deploy hello").len() == 2, "{:#?}", collector.names());
    Ok(())
}

/// One root, and every other span begins within another of the trace.
fn hangs_together<'a>(trace: &'a [Span], name: &str) -> anyhow::Result<&'a Span> {
    let root: Vec<_> = trace.iter().filter(|span| span.parent_span_id.is_empty()).collect();
    anyhow::ensure!(root.len() == 1 && root[0].name == name, "{root:?}");
    for span in trace {
        let parent = trace.iter().find(|other| other.span_id == span.parent_span_id);
        let Some(parent) = parent else {
            anyhow::ensure!(span.parent_span_id.is_empty(), "the parent of {} is in the trace", span.name);
            continue;
        };
        anyhow::ensure!(parent.start_time_unix_nano <= span.start_time_unix_nano, "{} begins in its parent", span.name);
        if span.name.starts_with("effect ") {
            anyhow::ensure!(parent.name.starts_with("stage "), "{} is of a stage", span.name);
        }
    }
    Ok(root[0])
}

/// Whoever has the execution is killed between its two calls.
async fn trace_of_two() -> Outcome {
    let schema = Schema::create().await?;
    let outcome = trace_on(&schema.url).await;
    schema.drop().await?;
    outcome
}

async fn trace_on(url: &str) -> Outcome {
    let (collector, calls) = (Collector::start().await?, Calls::start().await?);
    let mut flags = calls.flags();
    flags.extend(["--otlp-endpoint".to_owned(), collector.endpoint()]);
    let mut two = Two::start(url, flags).await?;
    two.hello.save("traced", &calls.pipeline(5)).await?;
    let execution = two.hello.start("traced", json!({})).await?;
    wait_for("the first call's span", MAX, || async { (!collector.named("stage webhook").is_empty()).then_some(()) })
        .await?;
    let (one, other) = two.began("traced")?;
    anyhow::ensure!(one.len() + other.len() == 1, "{one:?} {other:?}");
    let (killed, left) = if one.is_empty() { (&mut two.other, &two.hello) } else { (&mut two.one, &two.there) };
    killed.kill().await?;
    anyhow::ensure!(collector.named("execution traced").is_empty(), "it was killed in the middle");
    follow(&left.client, &execution, MAX).await?.succeeded()?;
    let trace = wait_for("the whole trace", MAX, || async {
        let roots = collector.named("execution traced");
        let trace = collector.trace(&roots.first()?.trace_id);
        let of = |what: &str| trace.iter().filter(|span| span.name.starts_with(what)).count();
        (of("stage ") == 3 && of("effect ") == 2).then_some(trace)
    })
    .await
    .with_context(|| format!("{:#?}", collector.names()))?;
    hangs_together(&trace, "execution traced")?;
    anyhow::ensure!(trace.len() == 6, "nothing is told under another id: {trace:#?}");
    anyhow::ensure!(collector.named("stage webhook").len() == 2, "{:#?}", collector.names());
    Ok(())
}

async fn no_collector() -> Outcome {
    let collector = Collector::start().await?;
    let options = Options {
        // The variables of others turn nothing on.
        environment: vec![
            ("OTEL_EXPORTER_OTLP_ENDPOINT".to_owned(), collector.base()),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT".to_owned(), collector.endpoint()),
        ],
        ..Options::default()
    };
    let mut server = Server::start_with(options).await?;
    let hello = Hello::create(&server).await?;
    hello.deploy("1.0.0").await?.succeeded()?;
    let status = server.stop().await?;
    anyhow::ensure!(status.success(), "{status}");
    anyhow::ensure!(collector.requests() == 0, "nothing was asked for");
    Ok(())
}
