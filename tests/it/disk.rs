//! A full disk, on a file system of a few megabytes: what would be written is refused clearly,
//! what is read is answered, and work goes on by itself when there is room.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::harness::{Hello, Options, Outcome, Server, follow, trial_with, wait_for};

pub fn trials() -> Vec<Trial> {
    let mountable = Small::mount(1).map(drop).map_err(|error| format!("the right to mount a tmpfs ({error:#})"));
    vec![
        trial_with("disk", "a_full_disk_refuses_writes_and_work_goes_on_with_room", mountable.clone(), server_full),
        trial_with("disk", "a_hosts_full_disk_changes_nothing_and_stops_no_instance", mountable, host_full),
    ]
}

const MAX: Duration = Duration::from_secs(180);

/// A small file system, unmounted when dropped.
struct Small(PathBuf);

impl Small {
    fn mount(mebibytes: u32) -> anyhow::Result<Self> {
        let name = format!("gennaker-small-{}", &uuid::Uuid::new_v4().simple().to_string()[..12]);
        let path = std::env::temp_dir().canonicalize()?.join(name);
        std::fs::create_dir(&path)?;
        let size = format!("size={mebibytes}m,mode=0700");
        let output = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&path).output();
        match output {
            Ok(output) if output.status.success() => Ok(Self(path)),
            other => {
                std::fs::remove_dir(&path)?;
                anyhow::bail!("{other:?}")
            }
        }
    }

    fn filling(&self) -> PathBuf {
        self.0.join("filling")
    }

    /// To the last byte.
    fn fill(&self) -> anyhow::Result<()> {
        let mut file = std::fs::File::create(self.filling())?;
        for size in [64 * 1024, 4096, 1] {
            while file.write_all(&vec![0; size]).is_ok() {}
        }
        Ok(())
    }

    fn free(&self) -> anyhow::Result<()> {
        Ok(std::fs::remove_file(self.filling())?)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
        let _ = std::fs::remove_dir(&self.0);
    }
}

const CREATE: &str = "
mutation Create($input: CreateApplicationInput!) {
  createApplication(input: $input) { application { id } userErrors { message code } }
}";

async fn server_full() -> Outcome {
    let small = Small::mount(12)?;
    let options = Options { data_dir: Some(small.0.join("data")), ..Options::default() };
    let server = Server::start_with(options).await?;
    let hello = Hello::create(&server).await?;
    let mut definition = hello.pipeline();
    let stages = definition["stages"].as_array_mut().context("it has stages")?;
    stages[0]["requires"] = json!(["pause"]);
    stages.insert(0, json!({ "key": "pause", "kind": "wait", "config": { "seconds": 2 } }));
    hello.save("later", &definition).await?;
    let execution = hello.start("later", json!({ "version": "1.0.0" })).await?;
    small.fill()?;

    // What is left of the log's last pages may take a few commits yet.
    let mut number = 0;
    let error = wait_for("a refusal", MAX, || {
        number += 1;
        let input = json!({ "name": format!("a{number}"), "description": "x".repeat(1000) });
        let client = hello.client.clone();
        async move { client.mutate(CREATE, input).await.err() }
    })
    .await?;
    anyhow::ensure!(error.code() == Some("UNAVAILABLE"), "{error}");
    anyhow::ensure!(error.to_string().contains("disk is full"), "{error}");
    // Reading goes on; nothing is made; the engine waits instead of spinning.
    let lines = || std::fs::read_to_string(server.dir().join("server.log")).map(|text| text.lines().count());
    let before = lines()?;
    for _ in 0..8 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let status = hello
            .client
            .query("query($id: ID!) { node(id: $id) { ... on Execution { status } } }", json!({ "id": execution }))
            .await?;
        anyhow::ensure!(["RUNNING", "NOT_STARTED"].iter().any(|open| status["node"]["status"] == *open), "{status}");
        anyhow::ensure!(hello.names().await?.is_empty(), "no intent, no effect");
    }
    let http = reqwest::Client::builder().no_proxy().build()?;
    let health = http.get(format!("{}/healthz", server.url())).send().await?;
    anyhow::ensure!(health.status() == 200, "{health:?}");
    let ready = http.get(format!("{}/readyz", server.url())).send().await?;
    anyhow::ensure!(ready.status() == 503, "{ready:?}");
    let ready: Value = ready.json().await?;
    let store = ready["checks"].as_array().into_iter().flatten().find(|check| check["name"] == "store");
    anyhow::ensure!(store.is_some_and(|check| check["ok"] == false), "{ready}");
    let said = lines()? - before;
    anyhow::ensure!(said < 100, "{said} lines of log in 4 s");

    small.free()?;
    follow(&hello.client, &execution, MAX).await?.succeeded().with_context(|| server.log())?;
    anyhow::ensure!(hello.names().await? == [("hello-v000".to_owned(), true)], "made once");
    hello.client.mutate(CREATE, json!({ "name": "afterwards" })).await?;
    drop(server);
    drop(small);
    Ok(())
}

/// An instance that writes all the time.
fn definition(artifact: &Path) -> Value {
    json!({
        "stages": [{
            "key": "deploy", "kind": "deploy",
            "config": { "clusters": [{
                "account": "local", "location": "local", "strategy": { "kind": "none" },
                "capacity": { "min": 1, "desired": 1, "max": 1 },
                "launch": {
                    "artifact": { "path": artifact },
                    "command": ["/bin/sh", "-c", "while :; do echo 0123456789012345678901234567890123456789; sleep 0.001; done"],
                },
            }] },
        }],
    })
}

async fn host_full() -> Outcome {
    let small = Small::mount(6)?;
    let host_dir = small.0.join("host");
    let options = Options { host_dir: Some(host_dir.clone()), ..Options::default() };
    let server = Server::start_with(options).await?;
    let hello = Hello::create(&server).await?;
    let artifact = server.dir().join("artifact.bin");
    std::fs::write(&artifact, vec![7; 1 << 20])?;
    hello.save("writes", &definition(&artifact)).await?;
    small.fill()?;
    let execution = hello.start("writes", Value::Null).await?;
    let query = "query($id: ID!) { node(id: $id) { ... on Execution { stages { status failure { message } progress { message } } } } }";
    tokio::time::sleep(Duration::from_secs(2)).await;
    let seen = hello.client.query(query, json!({ "id": execution })).await?;
    anyhow::ensure!(hello.names().await?.is_empty(), "nothing half done: {seen}");
    small.free()?;
    follow(&hello.client, &execution, MAX).await?.succeeded().with_context(|| server.log())?;

    let running = || instances_of(&host_dir);
    let before = running();
    anyhow::ensure!(before.len() == 1, "an instance runs: {before:?}");
    small.fill()?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    anyhow::ensure!(running() == before, "a full disk stops no instance");
    // A change of what is wanted is refused as a whole.
    let group = json!({ "account": "local", "location": "local", "name": "hello-v000" });
    let capacity = json!({ "min": 2, "desired": 2, "max": 2 });
    let resize = "mutation($input: ResizeServerGroupInput!) { resizeServerGroup(input: $input) { execution { id } userErrors { message code } } }";
    let payload =
        hello.client.mutate(resize, json!({ "serverGroup": { "name": group }, "capacity": capacity })).await?;
    let execution = payload["execution"]["id"].as_str().context("an execution")?.to_owned();
    tokio::time::sleep(Duration::from_secs(2)).await;
    anyhow::ensure!(running() == before, "nothing half done");
    small.free()?;
    follow(&hello.client, &execution, MAX).await?.succeeded().with_context(|| server.log())?;
    anyhow::ensure!(running().len() == 2, "{:?}", running());
    drop(server);
    drop(small);
    Ok(())
}

/// The shells that write, by process id.
fn instances_of(host_dir: &Path) -> Vec<i32> {
    let mut pids: Vec<i32> = crate::harness::processes_of(host_dir)
        .into_iter()
        .filter(|(_, command)| command.starts_with("/bin/sh") && command.contains("0123456789"))
        .map(|(pid, _)| pid)
        .collect();
    pids.sort_unstable();
    pids
}
