//! What people got wrong, and what they were told: the right fault at the earliest moment, with its
//! place and what to do.

use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use libtest_mimic::Trial;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::harness::{Hello, Outcome, Server, follow, trial};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("faults", "what_can_never_be_resolved_is_refused_when_it_is_saved", dead_ends),
        trial("faults", "a_launch_that_is_none_is_told_in_words", artifact_forms),
        trial("faults", "a_program_that_is_not_there_is_named_as_the_cause", no_such_program),
        trial("faults", "an_unknown_load_balancer_is_not_found_and_the_nearest_are_named", unknown_load_balancer),
        trial("faults", "a_taken_port_and_an_address_of_another_machine_are_told_apart", listeners),
        trial("faults", "a_token_with_another_role_than_its_principal_has_is_refused", tokens),
        trial("faults", "settings_that_a_running_host_does_not_have_are_told_at_the_start", other_settings),
        trial("faults", "a_data_directory_in_use_says_by_which_process", in_use),
    ]
}

const MAX: Duration = Duration::from_secs(120);

/// The demo's pipeline without expressions, so that all of it is known when it is saved.
fn known(hello: &Hello) -> Value {
    let text = hello.pipeline().to_string().replace("${ parameters.version }", "1.0.0");
    let mut pipeline: Value = serde_json::from_str(&text).expect("it was JSON");
    pipeline["parameters"] = json!([]);
    pipeline
}

const LAUNCH: &str = "/stages/0/config/clusters/0/launch";

fn place(error: &gennaker::cli::client::Error) -> String {
    format!("{error} {error:?}")
}

async fn dead_ends() -> Outcome {
    let server = Server::start().await?;
    let hello = Hello::create(&server).await?;
    for (value, says) in [
        ("secret://env/HOME", "GENNAKER_SECRET_"),
        ("secret://file/etc/passwd", "secret"),
        ("secret://vault/x", "secret://env/"),
        ("***", "masked"),
    ] {
        for definition in [hello.pipeline(), known(&hello)] {
            // Whether a file's directory is one of ours is asked where the whole launch is known.
            if value.contains("/file/") && definition.to_string().contains("${") {
                continue;
            }
            let mut definition = definition;
            let launch = definition.pointer_mut(LAUNCH).context("the pipeline has a launch")?;
            launch["environment"] = json!({ "API_TOKEN": value });
            let error = hello.save("dead", &definition).await.expect_err(value);
            let said = place(&error);
            anyhow::ensure!(said.contains(says) && said.contains("API_TOKEN"), "{value}: {said}");
        }
    }
    let mut definition = known(&hello);
    let launch = definition.pointer_mut(LAUNCH).context("the pipeline has a launch")?;
    launch["environment"] = json!({ "MAX_TOKENS": "4096", "API_TOKEN": "secret://env/GENNAKER_SECRET_API" });
    hello.save("alive", &definition).await?;
    Ok(())
}

async fn artifact_forms() -> Outcome {
    let server = Server::start().await?;
    let hello = Hello::create(&server).await?;
    for artifact in [json!({}), json!("/srv/hello"), json!({ "image": "hello:1" })] {
        let mut definition = known(&hello);
        definition.pointer_mut(LAUNCH).context("the pipeline has a launch")?["artifact"] = artifact.clone();
        let error = hello.save("formless", &definition).await.expect_err("no artifact");
        let said = place(&error);
        anyhow::ensure!(said.contains("path") && said.contains("url") && said.contains("sha256"), "{artifact}: {said}");
        anyhow::ensure!(!said.contains("oneOf"), "{said}");
    }
    Ok(())
}

async fn failure(hello: &Hello, name: &str, definition: &Value) -> anyhow::Result<Value> {
    hello.save(name, definition).await?;
    let execution = hello.start(name, Value::Null).await?;
    let followed = follow(&hello.client, &execution, MAX).await?;
    anyhow::ensure!(followed.status() == "FAILED", "{}", followed.status());
    Ok(followed.failure())
}

async fn no_such_program() -> Outcome {
    let server = Server::start().await?;
    let hello = Hello::create(&server).await?;
    for (program, says) in [("./no-such-program", "not in the artifact"), ("no-such-program", "PATH")] {
        let mut definition = known(&hello);
        definition.pointer_mut(LAUNCH).context("the pipeline has a launch")?["command"] = json!([program]);
        definition.pointer_mut("/stages/0/config/clusters/0").context("a cluster")?["keepFailed"] = json!(true);
        let failure = failure(&hello, "absent", &definition).await?;
        let message = failure["message"].as_str().unwrap_or_default();
        anyhow::ensure!(failure["code"] == "INSTANCE_NOT_STARTED", "{failure}");
        anyhow::ensure!(message.contains(&format!("`{program}`")) && message.contains(says), "{failure}");
        anyhow::ensure!(failure["hint"].as_str().is_some_and(|hint| hint.contains("command")), "{failure}");
    }
    // It stands with the instances too.
    let document = "{ application(name: \"hello\") { serverGroups(first: 5) { nodes { instances { lastExit } } } } }";
    let data = hello.client.query(document, json!({})).await?;
    let exits = data["application"]["serverGroups"]["nodes"].to_string();
    anyhow::ensure!(exits.contains("not started: cannot run the program `./no-such-program`"), "{exits}");
    Ok(())
}

async fn unknown_load_balancer() -> Outcome {
    let server = Server::start().await?;
    let hello = Hello::create(&server).await?;
    for name in ["hallo", "hello-web"] {
        let mut definition = known(&hello);
        definition.pointer_mut("/stages/0/config/clusters/0").context("a cluster")?["loadBalancers"] = json!([name]);
        let failure = failure(&hello, "elsewhere", &definition).await?;
        anyhow::ensure!(failure["code"] == "LOAD_BALANCER_NOT_FOUND", "{failure}");
        anyhow::ensure!(failure["message"].as_str().is_some_and(|said| said.contains(name)), "{failure}");
        anyhow::ensure!(failure["hint"].as_str().is_some_and(|hint| hint.contains("`hello`")), "{failure}");
    }
    Ok(())
}

async fn listeners() -> Outcome {
    let server = Server::start().await?;
    let hello = Hello::create(&server).await?;
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let port = taken.local_addr()?.port();
    let document = "mutation Up($input: UpsertLoadBalancerInput!) {
        upsertLoadBalancer(input: $input) { execution { id } userErrors { message field } } }";
    hello.deploy("1.0.0").await?.succeeded()?;
    let own = hello.load_balancer.port();
    let data = hello.client.query("{ serverGroup(name: \"hello-v000\") { instances { port } } }", json!({})).await?;
    let instance = &data["serverGroup"]["instances"][0]["port"];
    let mine = "load balancer hello of this host has it";
    let _next = std::net::TcpListener::bind(("127.0.0.1", own + 1))?;
    let both = "they are taken by load balancer hello of this host and another process";
    // The last address is kept for documentation (RFC 5737): no machine has it.
    for (listener, code, says, advice) in [
        (json!({ "port": port }), "EXHAUSTED", "another process has it", "portTo"),
        (json!({ "port": own }), "EXHAUSTED", mine, "portTo"),
        (json!({ "address": "0.0.0.0", "port": own }), "EXHAUSTED", mine, "portTo"),
        (json!({ "port": own, "portTo": own + 1 }), "EXHAUSTED", both, "portTo"),
        (json!({ "port": instance }), "EXHAUSTED", "an instance of server group hello-v000 of this host", "portTo"),
        (json!({ "address": "203.0.113.7", "port": port }), "INVALID", "no such address", "0.0.0.0"),
    ] {
        let input = json!({ "name": "hello-other", "listeners": [listener] });
        let payload = hello.client.mutate(document, input).await?;
        let execution = payload["execution"]["id"].as_str().unwrap_or_default().to_owned();
        let followed = follow(&hello.client, &execution, MAX).await?;
        let failure = followed.failure();
        let message = failure["message"].as_str().unwrap_or_default();
        anyhow::ensure!(failure["code"] == code, "{failure}");
        anyhow::ensure!(message.contains(says) && message.contains(advice), "{failure}");
    }
    Ok(())
}

async fn tokens() -> Outcome {
    let server = Server::start().await?;
    let run = |arguments: &[&str]| server.command().arg("token").args(arguments).output();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let made = run(&["create", "--principal", "bob", "--role", "viewer"])?;
    anyhow::ensure!(made.status.success(), "{}", text(&made.stderr));
    let refused = run(&["create", "--principal", "bob", "--role", "admin"])?;
    anyhow::ensure!(refused.status.code() == Some(2) && refused.stdout.is_empty(), "{}", refused.status);
    let said = text(&refused.stderr);
    anyhow::ensure!(said.contains("`bob`") && said.contains("VIEWER") && said.contains("--role"), "{said}");
    // Who asks for no role gets what the principal has.
    let another = run(&["create", "--principal", "bob"])?;
    anyhow::ensure!(another.status.success() && text(&another.stderr).contains("VIEWER"), "{}", text(&another.stderr));
    let listed = text(&run(&["list"])?.stdout);
    let of_bob: Vec<_> = listed.lines().filter(|line| line.contains(" bob ")).collect();
    anyhow::ensure!(of_bob.len() == 2, "{listed}");
    let id = of_bob[0].split_whitespace().next().unwrap_or_default();
    for says in ["is revoked", "was revoked before, at 2"] {
        let revoked = run(&["revoke", id])?;
        anyhow::ensure!(revoked.status.success() && text(&revoked.stdout).contains(says), "{}", text(&revoked.stdout));
    }
    Ok(())
}

async fn other_settings() -> Outcome {
    let mut server = Server::start().await?;
    server.stop().await?;
    let mut again = tokio::process::Command::from(server.command());
    again.args(["serve", "--listen", "127.0.0.1:0", "--max-instances", "7", "--port-range", "28000-28010"]);
    let mut again = again.stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true).spawn()?;
    let mut lines = BufReader::new(again.stdout.take().context("a pipe")?).lines();
    let mut notes = Vec::new();
    // Two that were asked for, and the artifact roots that were not.
    let reading = async {
        while notes.len() < 3 {
            let line = lines.next_line().await?.context("the server ended")?;
            if line.starts_with("Note: ") {
                notes.push(line);
            }
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(Duration::from_secs(60), reading).await??;
    for says in ["--max-instances 7 does not hold", "--port-range 28000-28010 does not hold", "--artifact-root none"] {
        let note = notes.iter().find(|note| note.contains(says)).with_context(|| format!("{says}: {notes:?}"))?;
        anyhow::ensure!(note.contains("gennaker host stop --dir"), "{note}");
    }
    anyhow::ensure!(notes.iter().any(|note| note.contains("was started with 500")), "{notes:?}");
    again.kill().await?;
    Ok(())
}

async fn in_use() -> Outcome {
    let server = Server::start().await?;
    let mut second = tokio::process::Command::from(server.command());
    let second = second.args(["serve", "--listen", "127.0.0.1:0"]).kill_on_drop(true).output();
    let second = tokio::time::timeout(Duration::from_secs(60), second).await??;
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    anyhow::ensure!(!second.status.success(), "{said}");
    let (_, rest) = said.split_once("(process ").with_context(|| said.clone())?;
    let pid: String = rest.chars().take_while(char::is_ascii_digit).collect();
    let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline"))?;
    anyhow::ensure!(command.contains("serve"), "process {pid} is {command}");
    Ok(())
}
