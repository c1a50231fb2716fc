//! What a host may take of its disk: artifacts, and what instances write.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::harness::{Followed, Hello, Options, Outcome, Server, follow, trial, wait_for};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("quota", "artifacts_beyond_the_quota_are_refused_until_what_is_unused_makes_room", artifacts),
        trial("quota", "more_instances_than_the_setting_are_refused_by_its_name", instances),
        trial("quota", "an_artifact_that_no_server_group_uses_is_gone_after_a_while", unused),
        trial("quota", "an_instances_log_is_kept_within_its_setting", logs),
    ]
}

const MAX: Duration = Duration::from_secs(180);

async fn server(flag: &str) -> anyhow::Result<(Server, Hello)> {
    let server = Server::start_with(Options { flags: vec![flag.to_owned()], ..Options::default() }).await?;
    let hello = Hello::create(&server).await?;
    Ok((server, hello))
}

/// Deploys one instance that does this, beside what is there.
async fn deploy(hello: &Hello, artifact: &Path, command: &[&str]) -> anyhow::Result<Followed> {
    let cluster = json!({
        "account": "local", "location": "local", "strategy": { "kind": "none" },
        "capacity": { "min": 1, "desired": 1, "max": 1 },
        "launch": { "artifact": { "path": artifact }, "command": command },
    });
    let definition = json!({ "stages": [{ "key": "deploy", "kind": "deploy", "config": { "clusters": [cluster] } }] });
    hello.save("single", &definition).await?;
    let execution = hello.start("single", Value::Null).await?;
    follow(&hello.client, &execution, MAX).await
}

fn unpacked(server: &Server) -> anyhow::Result<Vec<PathBuf>> {
    Ok(std::fs::read_dir(server.host_dir().join("artifacts"))?.flatten().map(|entry| entry.path()).collect())
}

async fn artifacts() -> Outcome {
    let (server, hello) = server("--max-artifact-bytes=3145728").await?;
    let artifact = |name: &str, byte: u8| {
        let path = server.dir().join(name);
        std::fs::write(&path, vec![byte; 2 << 20]).map(|()| path)
    };
    let (first, second) = (artifact("first.bin", 1)?, artifact("second.bin", 2)?);
    let sleeps = ["/bin/sleep", "1000"];
    deploy(&hello, &first, &sleeps).await?.succeeded()?;
    let kept = unpacked(&server)?;
    anyhow::ensure!(kept.len() == 1, "{kept:?}");

    let refused = async |unused: &str| {
        let over = deploy(&hello, &second, &sleeps).await?;
        let failure = over.failure();
        let message = over.stages().iter().map(|stage| stage["failure"].to_string()).collect::<String>();
        anyhow::ensure!(over.status() == "FAILED", "{} {failure}", over.status());
        let size = "needs 2097152 bytes or more";
        let said = ["second.bin", size, "have 2097152 of at most 3145728 bytes", unused, "--max-artifact-bytes"];
        for word in said {
            anyhow::ensure!(message.contains(word), "`{word}` is not in {message}");
        }
        anyhow::ensure!(message.contains("EXHAUSTED"), "{message}");
        anyhow::ensure!(unpacked(&server)? == kept, "nothing is left of what was refused");
        anyhow::Ok(())
    };
    refused("(0 of them are unused").await?;
    anyhow::ensure!(hello.names().await? == [("hello-v000".to_owned(), true)], "nothing half made");

    // Unused, but asked for a moment ago: its server group may be about to be made.
    let group = json!({ "account": "local", "location": "local", "name": "hello-v000" });
    let destroyed =
        hello.client.mutate(DESTROY, json!({ "serverGroup": { "name": group }, "allowLast": true })).await?;
    let destroyed = destroyed["execution"]["id"].as_str().context("an execution")?;
    follow(&hello.client, destroyed, MAX).await?.succeeded()?;
    refused("(1 of them are unused").await?;
    // Its own time says when it was asked for.
    std::fs::File::open(&kept[0])?.set_modified(SystemTime::now() - Duration::from_secs(6 * 60))?;
    deploy(&hello, &second, &sleeps).await?.succeeded()?;
    let now = unpacked(&server)?;
    anyhow::ensure!(now.len() == 1 && now != kept, "the unused one made room: {now:?}");
    let status = tokio::process::Command::from(server.command()).args(["host", "status"]).output().await?;
    let status: Value = serde_json::from_slice(&status.stdout)?;
    let artifacts = json!({ "count": 1, "bytes": 2 << 20, "unused": 0, "maxBytes": 3 << 20 });
    anyhow::ensure!(status["artifacts"] == artifacts, "{status}");
    Ok(())
}

async fn unused() -> Outcome {
    let server = Server::start().await?;
    let hello = Hello::create(&server).await?;
    // How long one is kept is the host's own flag.
    let host = server.host_provider()?;
    let stopped = tokio::process::Command::from(server.command()).args(["host", "stop"]).output().await?;
    anyhow::ensure!(stopped.status.success(), "{stopped:?}");
    let mut start = tokio::process::Command::from(server.command());
    start.args(["host", "--artifact-keep-seconds", "1", "--port-range", &host.ports.to_string(), "--artifact-root"]);
    start.arg(server.dir()).stdin(std::process::Stdio::null());
    let log = std::fs::OpenOptions::new().append(true).open(server.host_dir().join("host.log"))?;
    let _host = start.stderr(log).spawn()?;
    let (kept, dropped) = (server.dir().join("kept.bin"), server.dir().join("dropped.bin"));
    std::fs::write(&kept, "kept")?;
    std::fs::write(&dropped, "dropped")?;
    let sleeps = ["/bin/sleep", "1000"];
    deploy(&hello, &dropped, &sleeps).await?.succeeded()?;
    deploy(&hello, &kept, &sleeps).await?.succeeded()?;
    let has = |name: &str| Ok::<_, anyhow::Error>(unpacked(&server)?.iter().any(|path| path.join(name).exists()));
    anyhow::ensure!(has("kept.bin")? && has("dropped.bin")?, "both are in use, older than they may be unused");

    let group = json!({ "account": "local", "location": "local", "name": "hello-v000" });
    let destroyed =
        hello.client.mutate(DESTROY, json!({ "serverGroup": { "name": group }, "allowLast": true })).await?;
    let destroyed = destroyed["execution"]["id"].as_str().context("an execution")?;
    follow(&hello.client, destroyed, MAX).await?.succeeded()?;
    wait_for("the end of what nobody uses", MAX, || async { has("dropped.bin").ok().filter(|there| !there) }).await?;
    anyhow::ensure!(has("kept.bin")?, "what is used stays");
    Ok(())
}

async fn instances() -> Outcome {
    let (server, hello) = server("--max-instances=2").await?;
    let over = hello.deploy("1.0.0").await?;
    let message = over.stages().iter().map(|stage| stage["failure"].to_string()).collect::<String>();
    anyhow::ensure!(over.status() == "FAILED", "{} {message}", over.status());
    anyhow::ensure!(message.contains("at most 2") && message.contains("--max-instances"), "{message}");
    anyhow::ensure!(server.processes().iter().all(|(_, command)| !command.contains("sample-app")), "none was started");
    let mut fits = hello.pipeline();
    fits["stages"][0]["config"]["clusters"][0]["capacity"] = json!({ "min": 2, "desired": 2, "max": 2 });
    hello.save("fits", &fits).await?;
    let execution = hello.start("fits", json!({ "version": "1.0.0" })).await?;
    follow(&hello.client, &execution, MAX).await?.succeeded()
}

async fn logs() -> Outcome {
    let (server, hello) = server("--max-instance-log-bytes=196608").await?;
    let artifact = server.dir().join("artifact");
    std::fs::write(&artifact, "nothing")?;
    // 2 MB, and then the end of it.
    let says = "seq -f 'line %06.0f of all that it says' 60000; exec sleep 1000";
    deploy(&hello, &artifact, &["/bin/sh", "-c", says]).await?.succeeded()?;
    let instances = server.host_dir().join("groups/hello-v000/instances");
    let instance = std::fs::read_dir(instances)?.next().context("an instance")??.path();
    let files = || -> anyhow::Result<Vec<(PathBuf, u64)>> {
        let found = std::fs::read_dir(instance.join("log"))?.flatten();
        found.map(|entry| Ok((entry.path(), entry.metadata()?.len()))).collect()
    };
    let last = "line 060000 of all that it says";
    let kept = wait_for("the last line", MAX, || async {
        let files = files().ok()?;
        let ends = |path: &PathBuf| std::fs::read_to_string(path).is_ok_and(|text| text.trim_end().ends_with(last));
        files.iter().any(|(path, _)| ends(path)).then_some(files)
    })
    .await?;
    let bytes: u64 = kept.iter().map(|(_, bytes)| bytes).sum();
    anyhow::ensure!(kept.len() == 3 && (64 * 1024..=192 * 1024).contains(&bytes), "{bytes} bytes: {kept:?}");
    let shown = server.gennaker(&["logs", "--server-group", "hello-v000"]).await?.with_status(0)?;
    anyhow::ensure!(shown.out.contains(last), "{}", shown.out);
    Ok(())
}

const DESTROY: &str = "
mutation Destroy($input: DestroyServerGroupInput!) {
  destroyServerGroup(input: $input) { execution { id } userErrors { message code } }
}";
