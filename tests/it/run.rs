//! `gennaker run`: what it shows and what it ends with.

use std::time::Duration;

use libtest_mimic::Trial;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::harness::{Hello, Options, Outcome, Server, as_principal, trial, wait_for};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("run", "the_exit_code_says_how_it_ended", ends),
        trial("run", "bad_input_is_told_apart", bad_input),
        trial("run", "a_server_that_cannot_be_reached_has_a_code_of_its_own_with_every_command", away),
        trial("run", "what_answers_and_is_no_gennaker_is_told_as_no_answer", others),
        trial("run", "with_json_every_error_is_one_document_also_of_the_command_line_itself", documents),
        trial("run", "a_timeout_leaves_it_running_or_cancels_it", timeout),
        trial("run", "a_restarted_server_does_not_end_the_watching", restart),
        trial("run", "ctrl_c_leaves_it_running_and_says_how_to_cancel", interrupted),
    ]
}

fn waiting(seconds: u64) -> Value {
    json!({ "stages": [{ "key": "w", "kind": "wait", "name": "A while", "config": { "seconds": seconds } }] })
}

async fn prepared() -> anyhow::Result<(Server, Hello)> {
    let flags = ["--outbound-allow", "127.0.0.1"].map(str::to_owned).to_vec();
    let server = Server::start_with(Options { flags, ..Options::default() }).await?;
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
    for command in COMMANDS {
        let done = server.gennaker(&[*command, &["--token", "gnk_wrong"]].concat()).await?.with_status(2)?;
        anyhow::ensure!(done.err.contains("GENNAKER_TOKEN"), "{}", done.err);
    }
    let done = server.gennaker(&["status", "--token", "gnk_a\ngnk_b"]).await?.with_status(2)?;
    anyhow::ensure!(done.err.contains("token") && done.err.contains("line end"), "{}", done.err);
    anyhow::ensure!(!done.err.contains("gnk_"), "{}", done.err);
    let viewer = as_principal(&server, "vera", "viewer")?;
    let done = server.gennaker(&["run", "hello/short", "--token", &viewer, "--json"]).await?.with_status(2)?.json()?;
    anyhow::ensure!(done["error"]["code"] == "FORBIDDEN", "{done}");
    let done = server.gennaker(&["status", "--server", "127.0.0.1:7777"]).await?.with_status(2)?;
    anyhow::ensure!(done.err.contains("http://HOST:PORT") && done.err.contains("GENNAKER_SERVER"), "{}", done.err);
    Ok(())
}

/// Every command that speaks to a server.
const COMMANDS: &[&[&str]] = &[
    &["run", "hello/short"],
    &["run", "hello/short", "--wait"],
    &["status"],
    &["approve", "hello/short#1"],
    &["reject", "hello/short#1"],
    &["cancel", "hello/short#1"],
    &["logs", "hello/short#1"],
    &["logs", "--instance", "x"],
    &["export"],
    &["apply", "-f", "-"],
];

/// A way to the server that breaks when a request with that word comes; its URL.
async fn breaks_at(server: &Server, word: &'static str) -> anyhow::Result<String> {
    let address = server.url().trim_start_matches("http://").to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let Ok(mut far) = TcpStream::connect(&address).await else { return };
            tokio::spawn(async move {
                let (mut asked, mut answered) = (vec![0; 65_536], vec![0; 65_536]);
                loop {
                    let passed = tokio::select! {
                        count = near.read(&mut asked) => match count {
                            Ok(count @ 1..) if !String::from_utf8_lossy(&asked[..count]).contains(word) => {
                                far.write_all(&asked[..count]).await
                            }
                            _ => return,
                        },
                        count = far.read(&mut answered) => match count {
                            Ok(count @ 1..) => near.write_all(&answered[..count]).await,
                            _ => return,
                        },
                    };
                    if passed.is_err() {
                        return;
                    }
                }
            });
        }
    });
    Ok(url)
}

async fn away() -> Outcome {
    let (mut server, hello) = prepared().await?;
    // One that takes connections and says nothing on them: it broke off.
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let silent = format!("http://{}", listener.local_addr()?);
    tokio::spawn(async move { while listener.accept().await.is_ok() {} });
    for command in COMMANDS {
        for (url, words) in
            [("http://127.0.0.1:1", "Connection refused"), (silent.as_str(), "if it speaks TLS, write https://")]
        {
            let args = [*command, &["--server", url]].concat();
            let done = server.gennaker(&args).await?.with_status(5)?;
            anyhow::ensure!(done.err.contains(&format!("{url} cannot be reached: ")), "{}", done.err);
            anyhow::ensure!(done.err.contains(words), "{}", done.err);
            let args = [*command, &["--json", "--server", url]].concat();
            let done = server.gennaker(&args).await?.with_status(5)?.json()?;
            anyhow::ensure!(done["error"]["code"] == "UNREACHABLE", "{done}");
        }
    }
    // Also in the middle of it.
    let url = breaks_at(&server, "createApplication(").await?;
    let documents = "kind: Application\nname: hello\n---\nkind: Application\nname: other\n";
    let args = ["apply", "-f", "-", "--json", "--server", &url];
    let done = server.gennaker_with(&args, documents).await?.with_status(5)?.json()?;
    anyhow::ensure!(done["error"]["code"] == "UNREACHABLE", "{done}");
    let message = done["error"]["message"].as_str().unwrap_or_default();
    anyhow::ensure!(message.starts_with("nothing was done: application other: "), "{done}");
    // It answers, and cannot work: it is about to stop, and a stage keeps it from its end.
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let call = json!({ "stages": [{ "key": "call", "kind": "webhook",
        "config": { "url": format!("http://{}/", listener.local_addr()?), "method": "POST" } }] });
    hello.save("slow", &call).await?;
    server.gennaker(&["run", "hello/slow"]).await?.with_status(0)?;
    let _held = tokio::time::timeout(Duration::from_secs(30), listener.accept()).await??;
    server.signal(nix::sys::signal::Signal::SIGTERM)?;
    let stopping = async || server.gennaker(&["run", "hello/short", "--json"]).await?.json();
    let refused = wait_for("the refusal", Duration::from_secs(20), || async {
        stopping().await.ok().filter(|answer| answer["error"].is_object())
    })
    .await?;
    anyhow::ensure!(refused["error"]["code"] == "UNAVAILABLE", "{refused}");
    server.gennaker(&["run", "hello/short"]).await?.with_status(5)?;
    // A second word, so that nobody waits for the end of the call.
    server.signal(nix::sys::signal::Signal::SIGTERM)?;
    server.ended(Duration::from_secs(30)).await?;
    Ok(())
}

/// What answers every request with that status and a long page; its URL.
async fn answers(status: &'static str) -> anyhow::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let mut asked = Vec::new();
            // Until the document's end, which is the end of its JSON.
            while !asked.ends_with(b"}}") && near.read_buf(&mut asked).await.is_ok_and(|count| count > 0) {}
            let page = format!("<html>\x1b[31mNot here{}</html>", "x".repeat(1_000));
            let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", page.len());
            let _ = near.write_all(format!("{head}{page}").as_bytes()).await;
        }
    });
    Ok(url)
}

async fn others() -> Outcome {
    let server = Server::start().await?;
    for status in ["200 OK", "404 Not Found", "429 Too Many Requests", "501 Not Implemented"] {
        let url = answers(status).await?;
        for command in [&["run", "hello/short", "--wait"][..], &["status"], &["export"]] {
            let done = server.gennaker(&[command, &["--server", &url]].concat()).await?.with_status(5)?;
            let words = format!("{url} does not answer as Gennaker does (status {}): <html>", &status[..3]);
            anyhow::ensure!(done.err.contains(&words) && done.err.contains("\\u{1b}[31mNot here"), "{}", done.err);
            anyhow::ensure!(!done.err.contains('\x1b') && done.err.len() < 400, "{}", done.err);
            let done = server.gennaker(&[command, &["--json", "--server", &url]].concat()).await?.with_status(5)?;
            anyhow::ensure!(done.json()?["error"]["code"] == "UNREACHABLE", "{}", done.out);
        }
    }
    Ok(())
}

async fn documents() -> Outcome {
    let server = Server::start().await?;
    for (args, code, words) in [
        (&["run", "hello/short", "--wiat", "--json"][..], "INVALID", "unexpected argument '--wiat' found"),
        (&["run", "--json"], "INVALID", "<APP/PIPELINE>"),
        (&["run", "hello/x", "-p", "novalue", "--json"], "INVALID", "write NAME=TEXT or NAME:=JSON"),
        (&["run", "hello/x", "--timeout", "9", "--wait", "--json"], "INVALID", "write 90s, 30m or 2h"),
        (&["run", "hello", "--json"], "INVALID", "names no pipeline"),
        (&["status", "--last", "0", "--json"], "INVALID", "--last"),
        (&["approve", "hello/x#y", "--json"], "INVALID", "from 1"),
        (&["apply", "--json"], "INVALID", "--file"),
        (&["apply", "-f", "/does/not/exist", "--json"], "INVALID", "/does/not/exist"),
        (&["export", "--kind", "Nothing", "--json"], "INVALID", "possible values"),
        (&["export", "--application", "nothing", "--json"], "INVALID", "there is no application"),
        (&["logs", "--json"], "INVALID", "APP/PIPELINE#N"),
        (&["cancel", "hello/x#7", "--json"], "NOT_FOUND", "hello"),
        (&["status", "--server", "ftp://x", "--json"], "INVALID", "http://HOST:PORT"),
        (
            &["status", "--ca-file", "/does/not/exist", "--server", "https://127.0.0.1:1", "--json"],
            "INVALID",
            "/does/not",
        ),
        (&["status", "--token-file", "/does/not/exist", "--json"], "INVALID", "/does/not/exist"),
    ] {
        let done = server.gennaker(args).await?.with_status(2)?;
        let error = &done.json()?["error"];
        let message = error["message"].as_str().unwrap_or_default();
        anyhow::ensure!(error["code"] == code && message.contains(words), "{args:?}: {error}");
        anyhow::ensure!(done.err.is_empty() && !message.contains("Usage"), "{args:?}: {} {error}", done.err);
    }
    // A variable too; and help stays help.
    let mut command = server.remote_command();
    let output = command.args(["config", "show", "--json"]).env("GENNAKER_MAX_PAGE", "many").output()?;
    let error = serde_json::from_slice::<Value>(&output.stdout)?["error"].clone();
    anyhow::ensure!(output.status.code() == Some(2), "{output:?}");
    anyhow::ensure!(error["message"].as_str().is_some_and(|text| text.starts_with("GENNAKER_MAX_PAGE: ")), "{error}");
    let help = server.gennaker(&["run", "--json", "--help"]).await?.with_status(0)?;
    anyhow::ensure!(help.out.contains("Usage:") && help.out.contains("4 timed out, 5 the server"), "{}", help.out);
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
