//! `gennaker status`, `approve`, `reject`, `cancel` and `logs`, with the real binary.

use std::time::Duration;

use libtest_mimic::Trial;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::harness::{Hello, Outcome, Server, trial, wait_for};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("commands", "a_judgment_is_given_from_the_command_line", judged),
        trial("commands", "an_execution_is_cancelled_from_the_command_line", cancelled),
        trial("commands", "status_shows_what_runs_and_how_it_is", status),
        trial("commands", "control_characters_of_stored_texts_do_not_reach_the_terminal", controls),
        trial("commands", "logs_tell_why_an_execution_failed", failed),
        trial("commands", "logs_of_instances_are_followed_without_loss", followed),
        trial("commands", "logs_show_a_line_that_its_writer_never_ended", half_a_line),
    ]
}

fn judgment(keys: &[&str]) -> Value {
    let stage = |key: &&str| json!({ "key": key, "kind": "manualJudgment", "config": { "instructions": "Look.", "inputs": ["a", "b"] } });
    json!({ "stages": keys.iter().map(stage).collect::<Vec<_>>() })
}

async fn wait_for_stage(hello: &Hello, pipeline: &str, number: i64, count: usize) -> Outcome {
    let query = "query($p: String!, $n: Int!) {
        execution(application: \"hello\", pipeline: $p, number: $n) { stages { waitsFor } } }";
    wait_for("the question", Duration::from_secs(30), || async {
        let data = hello.client.query(query, json!({ "p": pipeline, "n": number })).await.ok()?;
        let stages = data["execution"]["stages"].as_array()?;
        (stages.iter().filter(|stage| stage["waitsFor"] == "judge").count() == count).then_some(())
    })
    .await
}

async fn judged() -> Outcome {
    let server = Server::start().await?;
    let hello = Hello::create(&server).await?;
    hello.save("ask", &judgment(&["go"])).await?;
    hello.save("ask twice", &judgment(&["one", "two"])).await?;
    let run = async |args: &[&str]| server.gennaker(args).await;

    run(&["run", "hello/ask"]).await?.with_status(0)?;
    wait_for_stage(&hello, "ask", 1, 1).await?;
    let shown = run(&["status", "hello/ask#1"]).await?.with_status(0)?;
    anyhow::ensure!(shown.out.contains("gennaker approve 'hello/ask#1'"), "{}", shown.out);
    let done = run(&["approve", "hello/ask#1", "--input", "a", "--comment", "fine", "--json"]).await?.with_status(0)?;
    anyhow::ensure!(done.json()?["stage"] == "go", "{}", done.out);
    let ended = run(&["logs", "hello/ask#1", "--follow", "--json"]).await?.with_status(0)?.json()?;
    anyhow::ensure!(ended["execution"]["status"] == "SUCCEEDED", "{ended}");
    let late = run(&["approve", "hello/ask#1"]).await?.with_status(2)?;
    anyhow::ensure!(late.err.contains("no stage of hello/ask#1 waits"), "{}", late.err);

    run(&["run", "hello/ask"]).await?.with_status(0)?;
    wait_for_stage(&hello, "ask", 2, 1).await?;
    let done = run(&["reject", "hello/ask#2", "--comment", "error rate", "--json"]).await?.with_status(0)?.json()?;
    anyhow::ensure!(done["stage"] == "go" && done["proceed"] == false, "{done}");
    let rejected = &done["execution"];
    anyhow::ensure!(rejected["id"].is_string() && rejected["status"].is_string(), "{done}");
    anyhow::ensure!(done.as_object().map(serde_json::Map::len) == Some(3), "{done}");
    let ended = run(&["logs", "hello/ask#2", "--follow"]).await?.with_status(0)?;
    anyhow::ensure!(ended.out.contains("admin decided to stop: error rate"), "{}", ended.out);

    run(&["run", "hello/ask twice"]).await?.with_status(0)?;
    wait_for_stage(&hello, "ask twice", 1, 2).await?;
    let several = run(&["approve", "hello/ask twice#1"]).await?.with_status(2)?;
    anyhow::ensure!(several.err.contains("`one`, `two`") && several.err.contains("--stage"), "{}", several.err);
    run(&["approve", "hello/ask twice#1", "--stage", "two", "--input", "b"]).await?.with_status(0)?;
    run(&["approve", "hello/ask twice#1", "--stage", "three"]).await?.with_status(2)?;
    run(&["approve", "hello/ask"]).await?.with_status(2)?;
    run(&["approve", "hello/ask#77"]).await?.with_status(2)?;
    Ok(())
}

async fn controls() -> Outcome {
    let server = Server::start().await?;
    let hello = Hello::create(&server).await?;
    let definition = json!({
        "description": "red: \x1b[31m",
        "stages": [{ "key": "go", "kind": "manualJudgment",
            "config": { "instructions": "\x1b]0;owned\x07 Look.\u{9b}2J" } }],
    });
    hello.save("evil", &definition).await?;
    let clean = |text: &str, words: &[&str]| {
        let raw = text.chars().any(|char| char.is_control() && char != '\n' && char != '\t');
        anyhow::ensure!(!raw && words.iter().all(|word| text.contains(word)), "{text:?}");
        Ok(())
    };
    let watch = async || server.gennaker(&["run", "hello/evil", "--wait", "--plain"]).await?.with_status(1);
    let look = async || {
        wait_for_stage(&hello, "evil", 1, 1).await?;
        let shown = server.gennaker(&["status", "hello/evil#1"]).await?.with_status(0)?;
        server.gennaker(&["reject", "hello/evil#1", "--comment", "\x1b[2Jno"]).await?.with_status(0)?;
        anyhow::Ok(shown)
    };
    let (watched, shown) = tokio::join!(watch(), look());
    let (watched, shown) = (watched?, shown?);
    clean(&watched.out, &["\\u{1b}]0;owned\\u{7} Look.\\u{9b}2J", "\\u{1b}[2Jno"])?;
    clean(&shown.out, &["\\u{1b}]0;owned\\u{7} Look."])?;
    for (args, words) in [
        (&["status", "hello/evil"][..], "red: \\u{1b}[31m"),
        (&["status"], "\\u{1b}[2Jno"),
        (&["logs", "hello/evil#1"], "\\u{1b}[2Jno"),
        (&["logs", "hello/evil#1", "--follow"], "\\u{1b}]0;owned"),
    ] {
        clean(&server.gennaker(args).await?.with_status(0)?.out, &[words])?;
    }
    // Programs get it as it is.
    let data = server.gennaker(&["status", "hello/evil", "--json"]).await?.with_status(0)?.json()?;
    anyhow::ensure!(data["pipeline"]["definition"]["description"] == "red: \x1b[31m", "{data}");
    // What `apply` shows: a diff, and an error with a part of the document.
    let file = "kind: Pipeline\napplication: hello\nname: evil\ndescription: \"\\e[1m\"\nstages: [{ key: a, kind: wait, config: { seconds: 0 } }]\n";
    let done = server.gennaker_with(&["apply", "-f", "-", "--dry-run"], file).await?.with_status(0)?;
    clean(&done.out, &["changed"])?;
    let file = "kind: Pipeline\napplication: hello\nname: \"a\\e[31m\"\nstages: []\n";
    let done = server.gennaker_with(&["apply", "-f", "-"], file).await?.with_status(2)?;
    clean(&done.err, &["a\\u{1b}[31m"])
}

async fn cancelled() -> Outcome {
    let server = Server::start().await?;
    let hello = Hello::create(&server).await?;
    let long = json!({ "stages": [{ "key": "w", "kind": "wait", "config": { "seconds": 600 } }] });
    hello.save("long", &long).await?;
    server.gennaker(&["run", "hello/long"]).await?.with_status(0)?;
    let args = ["cancel", "hello/long#1", "--reason", "wrong version", "--leave", "--json"];
    let done = server.gennaker(&args).await?.with_status(0)?.json()?;
    let wish = &done["execution"]["cancellation"];
    anyhow::ensure!(wish["reason"] == "wrong version" && wish["mode"] == "LEAVE", "{done}");
    let ended = server.gennaker(&["logs", "hello/long#1", "--follow", "--json"]).await?.with_status(0)?.json()?;
    anyhow::ensure!(ended["execution"]["status"] == "CANCELED", "{ended}");
    server.gennaker(&["cancel", "hello/long#9"]).await?.with_status(2)?;
    server.gennaker(&["cancel", "hello/long"]).await?.with_status(2)?;
    Ok(())
}

async fn status() -> Outcome {
    let server = Server::start().await?;
    let empty = server.gennaker(&["status"]).await?.with_status(0)?;
    anyhow::ensure!(empty.out.contains("gennaker apply -f FILE"), "{}", empty.out);
    let hello = Hello::create(&server).await?;
    hello.deploy("1.0.0").await?.succeeded()?;
    let all = server.gennaker(&["status"]).await?.with_status(0)?;
    anyhow::ensure!(all.out.contains("1 server groups, 3 of 3 instances in traffic healthy"), "{}", all.out);
    let one = server.gennaker(&["status", "hello"]).await?.with_status(0)?;
    let group = one.out.lines().find(|line| line.contains("hello-v000")).unwrap_or_default();
    for part in ["enabled", "3 of 3 healthy", "version=1.0.0"] {
        anyhow::ensure!(group.contains(part), "{part}: {}", one.out);
    }
    anyhow::ensure!(one.out.contains(&format!("http://{}", hello.load_balancer)), "{}", one.out);
    let pipeline = server.gennaker(&["status", "hello/deploy hello"]).await?.with_status(0)?;
    anyhow::ensure!(pipeline.out.contains("hello/deploy hello #1"), "{}", pipeline.out);
    anyhow::ensure!(pipeline.out.contains("SUCCEEDED"), "{}", pipeline.out);
    let execution = server.gennaker(&["status", "hello/deploy hello#1", "--json"]).await?.with_status(0)?.json()?;
    anyhow::ensure!(execution["execution"]["status"] == "SUCCEEDED", "{execution}");
    let unknown = server.gennaker(&["status", "helo"]).await?.with_status(2)?;
    anyhow::ensure!(unknown.err.contains("did you mean `hello`"), "{}", unknown.err);
    server.gennaker(&["status", "hello/nothing"]).await?.with_status(2)?;
    let none = server.gennaker(&["status", "hello/deploy hello#9"]).await?.with_status(2)?;
    anyhow::ensure!(none.err.contains("pipeline `hello/deploy hello` has no execution 9"), "{}", none.err);
    let none = server.gennaker(&["status", "hello#99"]).await?.with_status(2)?;
    anyhow::ensure!(none.err.contains("application `hello` has no operation 99"), "{}", none.err);
    Ok(())
}

async fn failed() -> Outcome {
    let server = Server::start().await?;
    let hello = Hello::create(&server).await?;
    let mut definition = hello.pipeline();
    let cluster = definition.pointer_mut("/stages/0/config/clusters/0").expect("the pipeline has a cluster");
    let binary = cluster["launch"]["artifact"]["path"].clone();
    cluster["launch"] = json!({ "artifact": { "path": binary },
        "command": ["/bin/sh", "-c", "echo the last words; exit 3"] });
    cluster["healthTimeoutSeconds"] = json!(5);
    hello.save("dies", &definition).await?;
    server.gennaker(&["run", "hello/dies", "-p", "version=1", "--wait", "--timeout", "120s"]).await?.with_status(1)?;
    let logs = server.gennaker(&["logs", "hello/dies#1"]).await?.with_status(0)?;
    anyhow::ensure!(logs.out.contains("dies #1 started") && logs.out.contains("dies #1 FAILED"), "{}", logs.out);
    anyhow::ensure!(logs.out.contains("effect: "), "what was done outside: {}", logs.out);
    anyhow::ensure!(logs.out.contains("  | the last words"), "what the instance wrote: {}", logs.out);
    server.gennaker(&["logs", "hello/dies#7"]).await?.with_status(2)?;
    Ok(())
}

/// A pipeline with one instance that runs a shell's script, on its own.
async fn save_script(hello: &Hello, name: &str, script: &str) -> Outcome {
    let mut definition = hello.pipeline();
    let cluster = definition.pointer_mut("/stages/0/config/clusters/0").expect("the pipeline has a cluster");
    let binary = cluster["launch"]["artifact"]["path"].clone();
    cluster["launch"] = json!({ "artifact": { "path": binary }, "command": ["/bin/sh", "-c", script] });
    cluster["capacity"] = json!({ "min": 1, "desired": 1, "max": 1 });
    for field in ["healthCheck", "loadBalancers", "strategy"] {
        cluster.as_object_mut().expect("an object").remove(field);
    }
    definition["stages"] = json!([definition["stages"][0]]);
    hello.save(name, &definition).await?;
    Ok(())
}

async fn half_a_line() -> Outcome {
    let server = Server::start().await?;
    let hello = Hello::create(&server).await?;
    let go = server.dir().join("go");
    // The second time it writes something else, so that both are told apart.
    let script = format!(
        "[ -e {go} ] && exec sleep 1000; printf 'before\nhalf a'; while [ ! -e {go} ]; do sleep 0.05; done; \
         printf ' line'; exit 3",
        go = go.display()
    );
    save_script(&hello, "crasher", &script).await?;
    let mut command = server.remote_command();
    command.args(["logs", "--server-group", "hello-v000", "--follow"]).stdout(std::process::Stdio::piped());
    hello.start("crasher", json!({ "version": "1" })).await?;
    let tail = ["logs", "--server-group", "hello-v000"];
    let now = async |wanted: &str| {
        wait_for(wanted, Duration::from_secs(60), || async {
            server.gennaker(&tail).await.ok().filter(|done| done.out == wanted).map(drop)
        })
        .await
    };
    // Of one that still writes, what is there is shown.
    now("before\nhalf a\n").await?;
    let mut child = tokio::process::Command::from(command).kill_on_drop(true).spawn()?;
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let first = tokio::time::timeout(Duration::from_secs(60), lines.next_line()).await??;
    anyhow::ensure!(first.as_deref() == Some("before"), "{first:?}");
    std::fs::write(&go, "")?;
    // Who follows is given it once no more can come.
    let second = tokio::time::timeout(Duration::from_secs(60), lines.next_line()).await??;
    anyhow::ensure!(second.as_deref() == Some("half a line"), "{second:?}");
    now("before\nhalf a line\n").await
}

/// Lines that an instance writes, each with its number.
const LINES: usize = 3_000;

async fn followed() -> Outcome {
    let server = Server::start().await?;
    let hello = Hello::create(&server).await?;
    let go = server.dir().join("go");
    let script = format!(
        "echo first; while [ ! -e {go} ]; do sleep 0.05; done; i=0; \
         while [ $i -lt {LINES} ]; do echo \"line $i\"; i=$((i+1)); done; while :; do sleep 1; done",
        go = go.display()
    );
    save_script(&hello, "writer", &script).await?;
    let mut command = server.remote_command();
    command.args(["logs", "--server-group", "hello-v000", "--follow"]).stdout(std::process::Stdio::piped());
    hello.start("writer", json!({ "version": "1" })).await?;
    let name = wait_for("the instance's first words", Duration::from_secs(60), || async {
        let tail = server.gennaker(&["logs", "--server-group", "hello-v000", "--json"]).await.ok()?;
        let tail = tail.json().ok()?;
        (tail["instances"][0]["text"] == "first\n").then(|| tail["instances"][0]["name"].clone())
    })
    .await?;
    let mut child = tokio::process::Command::from(command).kill_on_drop(true).spawn()?;
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let reading = async {
        let first = lines.next_line().await?.unwrap_or_default();
        anyhow::ensure!(first == "first", "{first}");
        std::fs::write(&go, "")?;
        for number in 0..LINES {
            let line = lines.next_line().await?.unwrap_or_default();
            anyhow::ensure!(line == format!("line {number}"), "line {number} is `{line}`");
        }
        Ok(())
    };
    tokio::time::timeout(Duration::from_secs(60), reading).await??;
    let pid = i32::try_from(child.id().unwrap_or_default())?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGINT)?;
    let ended = tokio::time::timeout(Duration::from_secs(10), child.wait()).await??;
    anyhow::ensure!(ended.success(), "{ended}");
    // For programs a document a line.
    let mut command = server.remote_command();
    command.args(["logs", "--server-group", "hello-v000", "--follow", "--json", "--tail", "15"]);
    let mut child =
        tokio::process::Command::from(command).stdout(std::process::Stdio::piped()).kill_on_drop(true).spawn()?;
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let line = tokio::time::timeout(Duration::from_secs(60), lines.next_line()).await??.unwrap_or_default();
    let wanted = json!({ "instance": name, "line": format!("line {}", LINES - 1) });
    anyhow::ensure!(serde_json::from_str::<Value>(&line)? == wanted, "{line}");
    child.kill().await?;
    let name = name.as_str().unwrap_or_default();
    let tail = server.gennaker(&["logs", "--instance", name, "--tail", "15"]).await?.with_status(0)?;
    anyhow::ensure!(tail.out == format!("line {}\n", LINES - 1), "whole lines only: {:?}", tail.out);
    server.gennaker(&["logs", "--instance", "nobody"]).await?.with_status(2)?;
    // A cursor that is none is refused with what to do.
    let query = "query($name: String!) { instance(name: $name) { log(after: \"x\") { text } } }";
    let error = hello.client.query(query, json!({ "name": name })).await.expect_err("no cursor");
    anyhow::ensure!(error.to_string().contains("no cursor of a log"), "{error}");
    Ok(())
}
