//! `gennaker backup` while serving and `gennaker restore`: what was under way goes on elsewhere,
//! finds what it did after the backup, and old cursors are told of the gap.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use gennaker::cli::demo::setup::FOLLOW;
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::harness::{Calls, Hello, Options, Outcome, Schema, Server, follow, postgres, trial, trial_with, wait_for};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("backup", "one_taken_under_load_is_restored_elsewhere_and_the_run_finishes", under_load),
        trial("backup", "a_restored_run_finds_the_server_group_it_made_after_the_backup", made_after),
        trial("backup", "a_restored_run_does_not_repeat_a_call_it_may_have_made", called_after),
        trial("backup", "what_a_restore_would_do_again_is_listed_and_can_be_held_back", held_back),
        trial("backup", "restore_refuses_what_it_must_and_keeps_the_old_database", refusals),
        trial_with("backup", "postgresql_has_its_own_tools_and_is_adopted_after_them", postgres(), on_postgres),
    ]
}

const MAX: Duration = Duration::from_secs(180);

/// Runs a command of the server's binary to its end.
fn run(server: &Server, arguments: &[&str]) -> anyhow::Result<Output> {
    Ok(server.command().args(arguments).output()?)
}

fn done(output: &Output) -> anyhow::Result<String> {
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    anyhow::ensure!(output.status.success(), "{}: {text}", output.status);
    Ok(text)
}

fn refused(output: &Output, word: &str) -> Outcome {
    let text = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(!output.status.success() && text.contains(word), "{}: {text}", output.status);
    Ok(())
}

fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().context("a path of plain characters")
}

/// Another data directory, made from the backup; the server starts on it.
async fn restored(server: &mut Server, backup: &Path) -> Outcome {
    let data_dir = server.dir().join("data-restored");
    server.options().data_dir = Some(data_dir);
    done(&run(server, &["restore", text(backup)?])?)?;
    server.restart().await
}

async fn under_load() -> Outcome {
    let mut server = Server::start().await?;
    let hello = Hello::create(&server).await?;
    hello.deploy("1.0.0").await?.succeeded()?;
    hello.save_gated("gated").await?;
    let wait = json!({ "stages": [{ "key": "a", "kind": "wait", "config": { "seconds": 0 } }] });
    hello.save("waits", &wait).await?;
    let execution = hello.start("gated", json!({ "version": "2.0.0" })).await?;
    hello.asks(&execution).await?;
    let mut subscription = hello.client.subscribe(FOLLOW, &json!({ "id": execution })).await?;
    let seen = subscription.next().await?.context("a snapshot")?["executionEvents"]["cursor"].clone();

    // Others write all the time; none of them waits long because of the backup.
    let begun = Arc::new(AtomicUsize::new(0));
    let stop = tokio_util::sync::CancellationToken::new();
    let load: Vec<_> = (0..4)
        .map(|_| {
            let hello = hello.asked_by(hello.client.clone());
            let (stop, begun) = (stop.clone(), Arc::clone(&begun));
            tokio::spawn(async move {
                let (mut longest, mut started) = (Duration::ZERO, 0);
                while !stop.is_cancelled() {
                    let since = Instant::now();
                    hello.start("waits", Value::Null).await?;
                    longest = longest.max(since.elapsed());
                    started += 1;
                    begun.fetch_add(1, Ordering::Relaxed);
                }
                anyhow::Ok((longest, started))
            })
        })
        .collect();
    // Not a backup of nothing.
    wait_for("load", MAX, || async { (begun.load(Ordering::Relaxed) >= 200).then_some(()) }).await?;
    let backup = server.dir().join("backup.db");
    let output = tokio::task::block_in_place(|| run(&server, &["backup", text(&backup)?]))?;
    let said = done(&output)?;
    anyhow::ensure!(said.contains("bytes") && said.contains("unfinished"), "{said}");
    anyhow::ensure!(std::fs::metadata(&backup)?.permissions().mode() & 0o777 == 0o600, "only the owner reads it");
    let again = tokio::task::block_in_place(|| run(&server, &["backup", text(&backup)?]))?;
    refused(&again, "--force")?;
    done(&tokio::task::block_in_place(|| run(&server, &["backup", "--force", text(&backup)?]))?)?;
    stop.cancel();
    let (mut longest, mut started) = (Duration::ZERO, 0);
    for load in load {
        let (its, count) = load.await??;
        longest = longest.max(its);
        started += count;
    }
    eprintln!("{started} executions started during the backups; the slowest start took {longest:?}");
    anyhow::ensure!(started > 0 && longest < Duration::from_secs(3), "{started} started, the slowest in {longest:?}");
    let left: Vec<_> = std::fs::read_dir(server.dir())?.flatten().map(|entry| entry.file_name()).collect();
    anyhow::ensure!(left.iter().all(|name| !name.to_string_lossy().contains("partial")), "{left:?}");

    // What comes after the backup is lost.
    let lost = hello.start("waits", Value::Null).await?;
    server.kill().await?;
    restored(&mut server, &backup).await?;

    let mut subscription = hello.client.subscribe(FOLLOW, &json!({ "id": execution, "after": seen })).await?;
    let first = subscription.next().await?.context("an event")?;
    anyhow::ensure!(first["executionEvents"]["__typename"] == "EventsTruncated", "{first}");
    let second = subscription.next().await?.context("an event")?;
    anyhow::ensure!(second["executionEvents"]["__typename"] == "ExecutionSnapshot", "{second}");
    let gone = hello.client.query("query($id: ID!) { node(id: $id) { id } }", json!({ "id": lost })).await;
    anyhow::ensure!(gone.as_ref().map_or(true, |gone| gone["node"].is_null()), "{gone:?}");

    hello.approve(&execution).await?;
    follow(&hello.client, &execution, MAX).await?.succeeded().with_context(|| server.log())?;
    let names = hello.names().await?;
    anyhow::ensure!(names == [("hello-v000".to_owned(), false), ("hello-v001".to_owned(), true)], "{names:?}");
    Ok(())
}

async fn made_after() -> Outcome {
    let mut server = Server::start().await?;
    let hello = Hello::create(&server).await?;
    hello.deploy("1.0.0").await?.succeeded()?;
    hello.save_gated("gated").await?;
    let execution = hello.start("gated", json!({ "version": "2.0.0" })).await?;
    hello.asks(&execution).await?;
    let backup = server.dir().join("backup.db");
    done(&run(&server, &["backup", text(&backup)?])?)?;
    let load = hello.load(100, false);

    // The server goes on, under several leases, so that the host has seen more than the backup.
    let fences = server.host_dir().join("fences.json");
    let mut seen = std::fs::read_to_string(&fences)?;
    hello.approve(&execution).await?;
    for _ in 0..2 {
        seen = wait_for("a change under a lease that was not seen before", MAX, || async {
            std::fs::read_to_string(&fences).ok().filter(|now| *now != seen)
        })
        .await?;
        server.kill().await?;
        server.restart().await?;
    }
    follow(&hello.client, &execution, MAX).await?.succeeded()?;
    let before = hello.names().await?;
    server.kill().await?;
    restored(&mut server, &backup).await?;

    hello.approve(&execution).await?;
    follow(&hello.client, &execution, MAX).await?.succeeded().with_context(|| server.log())?;
    let after = hello.names().await?;
    anyhow::ensure!(before == after && after.len() == 2, "{before:?}, then {after:?}");
    // Names go on behind what the host has, and the same backup restored once more fares no worse.
    server.kill().await?;
    server.options().data_dir = Some(server.dir().join("data-again"));
    done(&run(&server, &["restore", text(&backup)?])?)?;
    server.restart().await?;
    hello.approve(&execution).await?;
    follow(&hello.client, &execution, MAX).await?.succeeded().with_context(|| server.log())?;
    hello.deploy("3.0.0").await?.succeeded()?;
    let names: Vec<_> = hello.names().await?;
    anyhow::ensure!(names.last() == Some(&("hello-v002".to_owned(), true)) && names.len() == 3, "{names:?}");
    let report = load.stop().await;
    anyhow::ensure!(report.failed == 0, "{:?}", report.failures);
    Ok(())
}

async fn called_after() -> Outcome {
    let calls = Calls::start().await?;
    let mut server = Server::start_with(Options { flags: calls.flags(), ..Options::default() }).await?;
    let hello = Hello::create(&server).await?;
    let definition = json!({
        "stages": [
            { "key": "ask", "kind": "manualJudgment", "config": { "instructions": "Go on?" } },
            {
                "key": "call", "kind": "webhook", "requires": ["ask"],
                "config": { "url": format!("http://{}/", calls.address), "method": "POST" },
            },
        ],
    });
    hello.save("calls", &definition).await?;
    let execution = hello.start("calls", Value::Null).await?;
    hello.asks(&execution).await?;
    let backup = server.dir().join("backup.db");
    done(&run(&server, &["backup", text(&backup)?])?)?;
    hello.approve(&execution).await?;
    follow(&hello.client, &execution, MAX).await?.succeeded()?;
    anyhow::ensure!(calls.total() == 1, "called once");
    server.kill().await?;
    restored(&mut server, &backup).await?;

    hello.approve(&execution).await?;
    let followed = follow(&hello.client, &execution, MAX).await?;
    anyhow::ensure!(followed.status() == "FAILED", "{}", followed.status());
    anyhow::ensure!(followed.failure()["code"] == "OUTCOME_UNKNOWN", "{}", followed.failure());
    anyhow::ensure!(calls.total() == 1, "it is not called again blind");
    // What begins after the restore is as ever.
    let execution = hello.start("calls", Value::Null).await?;
    hello.approve(&execution).await?;
    follow(&hello.client, &execution, MAX).await?.succeeded()?;
    anyhow::ensure!(calls.total() == 2, "called once more");
    Ok(())
}

/// A mail that waits for its mail server, an end that a trigger has still to act upon, and a
/// timetable whose slot has come: all as of the backup.
async fn held_back() -> Outcome {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let flags = [
        "--smtp-host=127.0.0.1".to_owned(),
        format!("--smtp-port={nobody}"),
        "--smtp-from=gennaker@cd.example.org".to_owned(),
        "--delivery-retry-seconds=1".to_owned(),
    ];
    let mut server = Server::start_with(Options { flags: flags.to_vec(), ..Options::default() }).await?;
    let hello = Hello::create(&server).await?;
    let quick = json!([{ "key": "a", "kind": "wait", "config": { "seconds": 0 } }]);
    let mail = json!([{ "on": ["COMPLETED"], "email": { "to": ["ann@example.org"] } }]);
    hello.save("first", &json!({ "stages": quick, "notifications": mail })).await?;
    let after = json!([{
        "key": "after", "kind": "pipeline", "config": { "application": "hello", "pipeline": "first" },
    }]);
    hello.save("second", &json!({ "stages": quick, "triggers": after })).await?;
    let timetable = json!([{
        "key": "yearly", "kind": "cron", "config": { "expression": "0 0 1 1 *", "missed": "RUN_ONCE" },
    }]);
    hello.save("third", &json!({ "stages": quick, "triggers": timetable })).await?;
    hello.start("first", Value::Null).await?;
    let document = "query { pipelines(first: 100) { nodes { name executions(first: 100) { totalCount } } }
        deliveries { nodes { state attempts lastError } } }";
    let state = async || {
        let data = hello.client.query(document, Value::Null).await?;
        let nodes = data["pipelines"]["nodes"].as_array().context("pipelines")?;
        let count = |name: &str| {
            let node = nodes.iter().find(|node| node["name"] == name);
            node.and_then(|node| node["executions"]["totalCount"].as_u64()).unwrap_or_default()
        };
        anyhow::Ok((count("second"), count("third"), data["deliveries"]["nodes"][0].clone()))
    };
    wait_for("the trigger and a try of the mail", MAX, || async {
        let (second, _, delivery) = state().await.ok()?;
        (second == 1 && delivery["attempts"].as_i64()? >= 1).then_some(())
    })
    .await?;
    let backup = server.dir().join("backup.db");
    done(&run(&server, &["backup", text(&backup)?])?)?;
    server.kill().await?;
    // It is of a moment in which the trigger had not acted yet, and of a year ago.
    let copy = sea_orm::Database::connect(format!("sqlite://{}?mode=rw", backup.display())).await?;
    for sql in [
        "UPDATE trigger_slot SET done_at = NULL, execution_id = NULL",
        "DELETE FROM execution WHERE name = 'second'",
        "UPDATE pipeline_trigger SET next_at = 1735689600000000 WHERE next_at IS NOT NULL",
    ] {
        let changed = sea_orm::ConnectionTrait::execute_unprepared(&copy, sql).await?.rows_affected();
        anyhow::ensure!(changed == 1, "{sql}: {changed}");
    }
    copy.close().await?;
    let lines =
        ["email: hello / first #1 succeeded", "hello/second `after`", "hello/third `yearly`: was due at 2025-01-01"];

    server.options().data_dir = Some(server.dir().join("data-held"));
    let said = done(&run(&server, &["restore", "--hold", text(&backup)?])?)?;
    anyhow::ensure!(said.contains("held back:") && lines.iter().all(|line| said.contains(line)), "{said}");
    server.restart().await?;
    // What comes after is as ever; by its end the held would have come too.
    hello.start("first", Value::Null).await?;
    let (second, third, _) = wait_for("the trigger to act upon the new end", MAX, || async {
        state().await.ok().filter(|(second, ..)| *second > 0)
    })
    .await?;
    anyhow::ensure!((second, third) == (1, 0), "{second} and {third} were started");
    let dead =
        hello.client.query("{ deliveries(filter: { state: DEAD }) { nodes { lastError } } }", Value::Null).await?;
    let dead = dead["deliveries"]["nodes"].as_array().context("deliveries")?;
    anyhow::ensure!(dead.len() == 1 && dead[0].to_string().contains("restore --hold"), "{dead:?}");

    server.kill().await?;
    server.options().data_dir = Some(server.dir().join("data-again"));
    let said = done(&run(&server, &["restore", text(&backup)?])?)?;
    anyhow::ensure!(said.contains("(see --hold)") && lines.iter().all(|line| said.contains(line)), "{said}");
    server.restart().await?;
    wait_for("all of it to be done again", MAX, || async {
        let (second, third, delivery) = state().await.ok()?;
        (second == 1 && third == 1 && delivery["state"] == "PENDING").then_some(())
    })
    .await
    .with_context(|| server.log())
}

async fn refusals() -> Outcome {
    let mut server = Server::start().await?;
    let backup = server.dir().join("backup.db");
    done(&run(&server, &["backup", text(&backup)?])?)?;
    refused(&run(&server, &["restore", "--force", text(&backup)?])?, "in use by another server")?;
    // An error is about the file that was asked for, not about what is written beside it first.
    let nowhere = server.dir().join("nowhere/backup.db");
    let failed = run(&server, &["backup", text(&nowhere)?])?;
    refused(&failed, &format!("{}: No such file or directory", nowhere.display()))?;
    anyhow::ensure!(!String::from_utf8_lossy(&failed.stderr).contains("partial"), "{failed:?}");
    server.stop().await?;
    refused(&run(&server, &["restore", text(&backup)?])?, "--force")?;
    refused(&run(&server, &["restore", "--force", "/does/not/exist"])?, "there is no file")?;

    let garbage = server.dir().join("garbage.db");
    std::fs::write(&garbage, b"this is no database at all, but it is long enough to be taken for one".repeat(100))?;
    refused(&run(&server, &["restore", "--force", text(&garbage)?])?, "not a usable backup")?;
    // Damaged in the middle.
    let mut bytes = std::fs::read(&backup)?;
    let middle = bytes.len() / 2;
    bytes[middle..middle + 8192].fill(0xa5);
    std::fs::write(&garbage, &bytes)?;
    refused(&run(&server, &["restore", "--force", text(&garbage)?])?, "not a usable backup")?;
    // After all these the database is what it was.
    server.restart().await?;
    server.stop().await?;

    let said = done(&run(&server, &["restore", "--force", text(&backup)?])?)?;
    anyhow::ensure!(said.contains("is kept as"), "{said}");
    let kept = std::fs::read_dir(server.data_dir())?
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("gennaker.db.replaced-"))
        .count();
    anyhow::ensure!(kept == 1, "{kept} databases are kept aside");
    server.restart().await?;
    refused(&run(&server, &["backup", text(&server.data_dir().join("gennaker.db"))?])?, "there already")?;

    // A log without its database must not be played into the one that is restored.
    Hello::create(&server).await?;
    server.kill().await?;
    std::fs::remove_file(server.data_dir().join("gennaker.db"))?;
    anyhow::ensure!(server.data_dir().join("gennaker.db-wal").exists(), "the killed server left its log");
    done(&run(&server, &["restore", text(&backup)?])?)?;
    server.restart().await?;
    let found = server.client().query("{ applications { totalCount } }", json!({})).await?;
    anyhow::ensure!(found["applications"]["totalCount"] == 0, "the backup knew of no application: {found}");
    Ok(())
}

async fn on_postgres() -> Outcome {
    let schema = Schema::create().await?;
    let options = Options { database_url: Some(schema.url.clone()), ..Options::default() };
    let mut server = Server::start_with(options).await?;
    refused(&run(&server, &["backup", "x.db"])?, "pg_dump")?;
    refused(&run(&server, &["restore", "x.db"])?, "pg_restore")?;
    let hello = Hello::create(&server).await?;
    hello.save_gated("gated").await?;
    let execution = hello.start("gated", json!({ "version": "1.0.0" })).await?;
    hello.asks(&execution).await?;
    let mut subscription = hello.client.subscribe(FOLLOW, &json!({ "id": execution })).await?;
    let seen = subscription.next().await?.context("a snapshot")?["executionEvents"]["cursor"].clone();
    drop(subscription);
    refused(&run(&server, &["restore", "--in-place"])?, "a server is at work")?;
    server.stop().await?;
    done(&run(&server, &["restore", "--in-place"])?)?;
    server.restart().await?;
    let mut subscription = hello.client.subscribe(FOLLOW, &json!({ "id": execution, "after": seen })).await?;
    let first = subscription.next().await?.context("an event")?;
    anyhow::ensure!(first["executionEvents"]["__typename"] == "EventsTruncated", "{first}");
    hello.approve(&execution).await?;
    follow(&hello.client, &execution, MAX).await?.succeeded()?;
    drop(server);
    schema.drop().await
}
