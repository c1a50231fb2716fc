//! `gennaker run`: what it shows and what it ends with.

use std::time::Duration;

use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::harness::{Hello, Outcome, Server, trial, wait_for};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("run", "the_exit_code_says_how_it_ended", ends),
        trial("run", "bad_input_is_told_apart", bad_input),
        trial("run", "a_timeout_leaves_it_running_or_cancels_it", timeout),
        trial("run", "a_restarted_server_does_not_end_the_watching", restart),
        trial("run", "ctrl_c_leaves_it_running_and_says_how_to_cancel", interrupted),
    ]
}

fn waiting(seconds: u64) -> Value {
    json!({ "stages": [{ "key": "w", "kind": "wait", "name": "A while", "config": { "seconds": seconds } }] })
}

async fn prepared() -> anyhow::Result<(Server, Hello)> {
    let server = Server::start().await?;
    let hello = Hello::create(&server).await?;
    hello.save("short", &waiting(0)).await?;
    hello.save("long", &waiting(600)).await?;
    let failing = json!({ "stages": [{ "key": "call", "kind": "webhook", "name": "Call",
        "config": { "url": "http://127.0.0.1:1/", "method": "GET" } }] });
    hello.save("failing", &failing).await?;
    let echo = json!({ "parameters": [{ "name": "seconds" }, { "name": "who", "default": "nobody" }],
        "stages": [{ "key": "w", "kind": "wait", "config": { "seconds": "${ parameters.seconds }" } }] });
    hello.save("echo", &echo).await?;
    Ok((server, hello))
}

async fn ends() -> Outcome {
    let (server, hello) = prepared().await?;
    let done = server.gennaker(&["run", "hello/short", "--wait"]).await?.with_status(0)?;
    anyhow::ensure!(done.out.contains("A while succeeded") && done.out.contains("short #1 succeeded"), "{}", done.out);
    let done = server.gennaker(&["run", "hello/failing", "--wait"]).await?.with_status(1)?;
    anyhow::ensure!(done.out.contains("failing #1 failed"), "{}", done.out);
    let done = server.gennaker(&["run", "hello/failing", "--wait", "--json"]).await?.with_status(1)?.json()?;
    anyhow::ensure!(done["execution"]["status"] == "FAILED" && done["execution"]["failure"].is_object(), "{done}");
    let args = ["run", "hello/echo", "-p", "seconds:=0", "-p", "who=vera", "--wait", "--json"];
    let done = server.gennaker(&args).await?.with_status(0)?.json()?;
    let id = &done["execution"]["id"];
    let query = "query($id: ID!) { node(id: $id) { ... on Execution { parameters } } }";
    let data = hello.client.query(query, json!({ "id": id })).await?;
    anyhow::ensure!(data["node"]["parameters"] == json!({ "seconds": 0, "who": "vera" }), "{data}");
    // Without --wait it is started; the same key finds it again.
    let once = ["run", "hello/long", "--idempotency-key", "k", "--json"];
    let first = server.gennaker(&once).await?.with_status(0)?.json()?;
    let second = server.gennaker(&once).await?.with_status(0)?.json()?;
    anyhow::ensure!(first["isReplay"] == false && second["isReplay"] == true, "{first} {second}");
    anyhow::ensure!(first["execution"]["id"] == second["execution"]["id"], "{first} {second}");
    // Somebody cancels what is waited for.
    let waits = ["run", "hello/long", "--idempotency-key", "k", "--wait"];
    let cancel = ["cancel", "hello/long#1", "--reason", "enough"];
    let (watched, cancelled) = tokio::join!(server.gennaker(&waits), server.gennaker(&cancel));
    cancelled?.with_status(0)?;
    let watched = watched?.with_status(3)?;
    anyhow::ensure!(watched.out.contains("long #1 was cancelled"), "{}", watched.out);
    Ok(())
}

async fn bad_input() -> Outcome {
    let (server, _hello) = prepared().await?;
    let done = server.gennaker(&["run", "hello/shrt"]).await?.with_status(2)?;
    anyhow::ensure!(done.err.contains("did you mean `short`"), "{}", done.err);
    let done = server.gennaker(&["run", "hello/shrt", "--json"]).await?.with_status(2)?.json()?;
    anyhow::ensure!(done["error"]["code"] == "NOT_FOUND", "{done}");
    server.gennaker(&["run", "hello/echo"]).await?.with_status(2)?;
    server.gennaker(&["run", "hello/echo", "-p", "seconds:=x"]).await?.with_status(2)?;
    server.gennaker(&["run", "hello"]).await?.with_status(2)?;
    let done = server.gennaker(&["run", "hello/short", "--token", "gnk_wrong"]).await?.with_status(1)?;
    anyhow::ensure!(done.err.contains("GENNAKER_TOKEN"), "{}", done.err);
    let done = server.gennaker(&["status", "--server", "http://127.0.0.1:1"]).await?.with_status(1)?;
    anyhow::ensure!(done.err.contains("http://127.0.0.1:1 cannot be reached"), "{}", done.err);
    let done =
        server.gennaker(&["status", "--json", "--server", "http://127.0.0.1:1"]).await?.with_status(1)?.json()?;
    anyhow::ensure!(done["error"]["code"] == "UNREACHABLE", "{done}");
    server.gennaker(&["status", "--server", "127.0.0.1:7777"]).await?.with_status(2)?;
    Ok(())
}

async fn status_of(hello: &Hello, number: i64) -> anyhow::Result<String> {
    let query = "query($n: Int!) { execution(application: \"hello\", pipeline: \"long\", number: $n) { status } }";
    let data = hello.client.query(query, json!({ "n": number })).await?;
    Ok(data["execution"]["status"].as_str().unwrap_or_default().to_owned())
}

async fn timeout() -> Outcome {
    let (server, hello) = prepared().await?;
    let done = server.gennaker(&["run", "hello/long", "--wait", "--timeout", "500ms"]).await?.with_status(4)?;
    anyhow::ensure!(done.err.contains("gennaker cancel 'hello/long#1'"), "{}", done.err);
    anyhow::ensure!(status_of(&hello, 1).await? == "RUNNING");
    let args = ["run", "hello/long", "--wait", "--timeout", "500ms", "--cancel-on-timeout", "--json"];
    let done = server.gennaker(&args).await?.with_status(4)?.json()?;
    anyhow::ensure!(done["timedOut"] == true, "{done}");
    wait_for("the cancel", Duration::from_secs(30), || async {
        (status_of(&hello, 2).await.ok()? == "CANCELED").then_some(())
    })
    .await
}

async fn restart() -> Outcome {
    let (mut server, hello) = prepared().await?;
    hello.save("some", &waiting(4)).await?;
    let mut command = server.remote_command();
    command.args(["run", "hello/some", "--wait"]).stdout(std::process::Stdio::piped());
    let child = tokio::process::Command::from(command).kill_on_drop(true).spawn()?;
    wait_for("the run", Duration::from_secs(30), || async {
        let data =
            hello.client.query("{ executions(filter: { statuses: [RUNNING] }) { totalCount } }", json!({})).await;
        (data.ok()?["executions"]["totalCount"] == 1).then_some(())
    })
    .await?;
    server.kill().await?;
    server.restart().await?;
    let output = tokio::time::timeout(Duration::from_secs(90), child.wait_with_output()).await??;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    anyhow::ensure!(output.status.code() == Some(0), "{} {text}", output.status);
    anyhow::ensure!(text.matches("A while succeeded").count() == 1, "{text}");
    anyhow::ensure!(text.matches("some #1 started").count() == 1, "{text}");
    Ok(())
}

async fn interrupted() -> Outcome {
    let (server, hello) = prepared().await?;
    let mut command = server.remote_command();
    command.args(["run", "hello/long", "--wait"]);
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let child = tokio::process::Command::from(command).kill_on_drop(true).spawn()?;
    wait_for("the run", Duration::from_secs(30), || async {
        (status_of(&hello, 1).await.ok()? == "RUNNING").then_some(())
    })
    .await?;
    let pid = i32::try_from(child.id().unwrap_or_default())?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGINT)?;
    let output = tokio::time::timeout(Duration::from_secs(30), child.wait_with_output()).await??;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    anyhow::ensure!(output.status.code() == Some(130), "{} {text}", output.status);
    anyhow::ensure!(text.contains("hello/long#1 goes on") && text.contains("gennaker cancel"), "{text}");
    anyhow::ensure!(status_of(&hello, 1).await? == "RUNNING");
    Ok(())
}
