//! A disk that is full or read-only, on a small file system: what would be written is refused
//! clearly, what is read is answered, and work goes on by itself when it can.

use std::io::{BufRead as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use gennaker::cli::demo::setup::FOLLOW;
use gennaker::clock::Clock;
use gennaker::model::{Capacity, Place};
use gennaker::providers::host::client::HostProvider;
use gennaker::providers::{ErrorKind, Operation, Provider as _};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::harness::{Hello, Options, Outcome, Server, follow, get, ready, scrape, trial_where, trial_with, wait_for};

pub fn trials() -> Vec<Trial> {
    let mountable = Small::mount(1).map(drop).map_err(|error| format!("the right to mount a tmpfs ({error:#})"));
    let turnable = Turning::mount().map(drop).map_err(|error| format!("FUSE, and the right to mount it ({error:#})"));
    let read_only = trial_where(
        "disk",
        "a_disk_that_turns_read_only_refuses_writes_and_work_goes_on_when_it_can",
        turnable.clone(),
        server_read_only,
    );
    let host_read_only = trial_where(
        "disk",
        "a_hosts_disk_that_turns_read_only_changes_nothing_and_stops_no_instance",
        turnable,
        host_read_only,
    );
    let real = Ext4::mount().map(drop).map_err(|error| format!("the right to mount ext4 from a file ({error:#})"));
    let fault = trial_where(
        "disk",
        "a_fault_of_the_file_system_loses_nothing_and_the_next_start_goes_on",
        real,
        file_system_fault,
    );
    let full = vec![
        trial_with("disk", "a_full_disk_refuses_writes_and_work_goes_on_with_room", mountable.clone(), server_full),
        trial_with("disk", "a_hosts_full_disk_changes_nothing_and_stops_no_instance", mountable, host_full),
    ];
    full.into_iter().chain(read_only).chain(host_read_only).chain(fault).collect()
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

/// A real file system in a file, which the kernel turns read-only when it meets a fault, until it is
/// unmounted and repaired.
struct Ext4 {
    base: PathBuf,
}

impl Ext4 {
    fn mount() -> anyhow::Result<Self> {
        let name = format!("gennaker-ext4-{}", &uuid::Uuid::new_v4().simple().to_string()[..12]);
        let ext4 = Self { base: std::env::temp_dir().canonicalize()?.join(name) };
        std::fs::create_dir_all(ext4.at())?;
        std::fs::File::create(ext4.image())?.set_len(48 << 20)?;
        ran(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(ext4.image()), &[0])?;
        ext4.up()?;
        anyhow::ensure!(ext4.trigger()?.exists(), "the kernel gives no fault to order");
        Ok(ext4)
    }

    fn at(&self) -> PathBuf {
        self.base.join("at")
    }

    fn image(&self) -> PathBuf {
        self.base.join("image")
    }

    fn up(&self) -> Outcome {
        ran(Command::new("mount").args(["-o", "loop,errors=remount-ro"]).arg(self.image()).arg(self.at()), &[0])
    }

    fn trigger(&self) -> anyhow::Result<PathBuf> {
        let mounts = std::fs::read_to_string("/proc/mounts")?;
        let at = format!(" {} ext4 ", self.at().display());
        let line = mounts.lines().find(|line| line.contains(&at)).context("it is mounted")?;
        let device = line.split(' ').next().unwrap_or_default().trim_start_matches("/dev/");
        Ok(Path::new("/sys/fs/ext4").join(device).join("trigger_fs_error"))
    }

    /// The kernel meets a fault.
    fn fail(&self) -> anyhow::Result<()> {
        Ok(std::fs::write(self.trigger()?, "1")?)
    }

    fn repair(&self) -> Outcome {
        ran(Command::new("umount").arg(self.at()), &[0])?;
        // 1: what was found is mended.
        ran(Command::new("e2fsck").args(["-f", "-y"]).arg(self.image()), &[0, 1])?;
        self.up()
    }
}

impl Drop for Ext4 {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.at()).output();
        let _ = std::fs::remove_dir_all(&self.base);
    }
}

fn ran(command: &mut Command, fine: &[i32]) -> Outcome {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    anyhow::ensure!(output.status.code().is_some_and(|code| fine.contains(&code)), "{command:?}: {output:?}");
    Ok(())
}

/// A file system that turns read-only under open files and back, which a remount refuses to do.
/// Unmounted when dropped.
struct Turning {
    base: PathBuf,
    passes: std::process::Child,
}

impl Turning {
    fn mount() -> anyhow::Result<Self> {
        let name = format!("gennaker-turning-{}", &uuid::Uuid::new_v4().simple().to_string()[..12]);
        let base = std::env::temp_dir().canonicalize()?.join(name);
        for directory in ["kept", "at"] {
            std::fs::create_dir_all(base.join(directory))?;
        }
        let passes = Command::new("python3")
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/disk/passthrough.py"))
            .arg("--directory")
            .arg(base.join("kept"))
            .arg("--at")
            .arg(base.join("at"))
            .arg("--read-only-while")
            .arg(base.join("read-only"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut turning = Self { base, passes };
        let mut said = String::new();
        let stdout = turning.passes.stdout.take().context("a pipe")?;
        std::io::BufReader::new(stdout).read_line(&mut said)?;
        if said.trim() != "ready" {
            let mut stderr = turning.passes.stderr.take().context("a pipe")?;
            std::io::Read::read_to_string(&mut stderr, &mut said)?;
            anyhow::bail!("{}", said.trim());
        }
        Ok(turning)
    }

    fn at(&self) -> PathBuf {
        self.base.join("at")
    }

    fn read_only(&self) -> anyhow::Result<()> {
        Ok(std::fs::write(self.base.join("read-only"), "")?)
    }

    fn writable(&self) -> anyhow::Result<()> {
        Ok(std::fs::remove_file(self.base.join("read-only"))?)
    }
}

impl Drop for Turning {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.at()).output();
        let _ = self.passes.kill();
        let _ = self.passes.wait();
        let _ = std::fs::remove_dir_all(&self.base);
    }
}

/// The demo's pipeline, which begins with a pause; once it is saved, an execution of it.
async fn later(hello: &Hello) -> anyhow::Result<String> {
    let mut definition = hello.pipeline();
    let stages = definition["stages"].as_array_mut().context("it has stages")?;
    stages[0]["requires"] = json!(["pause"]);
    stages.insert(0, json!({ "key": "pause", "kind": "wait", "config": { "seconds": 2 } }));
    hello.save("later", &definition).await?;
    Ok(hello.start("later", json!({ "version": "1.0.0" })).await?)
}

/// How often a change of the database did not come about.
async fn failed_commits(server: &Server) -> anyhow::Result<f64> {
    let metrics = scrape(server).await?;
    let of = |outcome| metrics.sum("gennaker_store_commits_total", &[("outcome", outcome)]);
    Ok(of("unavailable") + of("unknown"))
}

/// Until the engine has tried in vain again and again: reading goes on, health is told, nothing is
/// made, and it waits instead of spinning.
async fn in_vain(server: &Server, hello: &Hello, execution: &str, why: &str) -> Outcome {
    let lines = || std::fs::read_to_string(server.dir().join("server.log")).map(|text| text.lines().count());
    let (before, failed) = (lines()?, failed_commits(server).await?);
    wait_for("tries in vain", MAX, || async {
        let asked = async {
            let query = "query($id: ID!) { node(id: $id) { ... on Execution { status } } }";
            let status = hello.client.query(query, json!({ "id": execution })).await?;
            let open = ["RUNNING", "NOT_STARTED"].iter().any(|open| status["node"]["status"] == *open);
            anyhow::ensure!(open, "{status}");
            anyhow::ensure!(hello.names().await?.is_empty(), "no intent, no effect");
            failed_commits(server).await
        };
        match asked.await {
            Ok(now) if now < failed + 10.0 => None,
            reached => Some(reached.map(|_| ())),
        }
    })
    .await??;
    let said = lines()? - before;
    anyhow::ensure!(said < 100, "{said} lines of log for 10 tries");
    // Who begins to watch now is shown what there is.
    let mut watching = hello.client.subscribe(FOLLOW, &json!({ "id": execution })).await?;
    let first = tokio::time::timeout(MAX, watching.next()).await??.context("a snapshot")?;
    anyhow::ensure!(first["executionEvents"]["__typename"] == "ExecutionSnapshot", "{first}");
    anyhow::ensure!(get(server, "/healthz", None).await?.0 == 200);
    let (status, all) = ready(server).await?;
    anyhow::ensure!(status == 503, "{status}");
    let store = all["checks"].as_array().into_iter().flatten().find(|check| check["name"] == "store");
    let store = store.with_context(|| all.to_string())?;
    anyhow::ensure!(store["ok"] == false && store.to_string().contains(why), "{all}");
    Ok(())
}

/// A change is refused at last, in such words.
async fn refusal(hello: &Hello, why: &[&str]) -> Outcome {
    let mut number = 0;
    let error = wait_for("a refusal", MAX, || {
        number += 1;
        let input = json!({ "name": format!("a{number}"), "description": "x".repeat(1000) });
        let client = hello.client.clone();
        async move { client.mutate(CREATE, input).await.err() }
    })
    .await?;
    anyhow::ensure!(error.code() == Some("UNAVAILABLE"), "{error}");
    anyhow::ensure!(why.iter().all(|why| error.to_string().contains(why)), "{error}");
    Ok(())
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
    let execution = later(&hello).await?;
    small.fill()?;
    // What is left of the log's last pages may take a few commits yet.
    refusal(&hello, &["the disk is full; make room"]).await?;
    in_vain(&server, &hello, &execution, "the disk is full; make room").await?;
    small.free()?;
    follow(&hello.client, &execution, MAX).await?.succeeded().with_context(|| server.log())?;
    anyhow::ensure!(hello.names().await? == [("hello-v000".to_owned(), true)], "made once");
    hello.client.mutate(CREATE, json!({ "name": "afterwards" })).await?;
    drop(server);
    drop(small);
    Ok(())
}

async fn server_read_only() -> Outcome {
    let disk = Turning::mount()?;
    let data_dir = disk.at().join("data");
    let mut server = Server::start_with(Options { data_dir: Some(data_dir.clone()), ..Options::default() }).await?;
    let hello = Hello::create(&server).await?;
    let execution = later(&hello).await?;
    let mut watching = hello.client.subscribe(FOLLOW, &json!({ "id": execution })).await?;
    disk.read_only()?;
    refusal(&hello, &["read-only", "make it writable"]).await?;
    in_vain(&server, &hello, &execution, "make it writable").await?;
    disk.writable()?;
    // Who watched all the time sees it go on.
    let to_the_end = async {
        while watching.next().await?.is_some() {}
        anyhow::Ok(())
    };
    tokio::time::timeout(MAX, to_the_end).await??;
    follow(&hello.client, &execution, MAX).await?.succeeded().with_context(|| server.log())?;
    anyhow::ensure!(hello.names().await? == [("hello-v000".to_owned(), true)], "made once");
    hello.client.mutate(CREATE, json!({ "name": "afterwards" })).await?;
    wait_for("readiness", MAX, || async { ready(&server).await.ok().filter(|(status, _)| *status == 200) }).await?;

    // A start says what is wrong and what to do, and changes nothing.
    server.stop().await?;
    disk.read_only()?;
    let mut start = tokio::process::Command::from(server.command());
    let start = start.args(["serve", "--listen", "127.0.0.1:0"]).kill_on_drop(true).output();
    let start = tokio::time::timeout(Duration::from_secs(60), start).await??;
    let said = String::from_utf8_lossy(&start.stderr).into_owned();
    anyhow::ensure!(start.status.code() == Some(1), "{}: {said}", start.status);
    let data_dir = data_dir.display().to_string();
    for word in [data_dir.as_str(), "Read-only file system", "make it writable for this user", "--data-dir"] {
        anyhow::ensure!(said.contains(word), "`{word}` is not in: {said}");
    }
    disk.writable()?;
    server.restart().await?;
    hello.client.mutate(CREATE, json!({ "name": "later_on" })).await?;
    drop(server);
    drop(disk);
    Ok(())
}

async fn file_system_fault() -> Outcome {
    let disk = Ext4::mount()?;
    let options = Options { data_dir: Some(disk.at().join("data")), ..Options::default() };
    let mut server = Server::start_with(options).await?;
    let hello = Hello::create(&server).await?;
    let execution = later(&hello).await?;
    disk.fail()?;
    refusal(&hello, &["read-only", "make it writable"]).await?;
    in_vain(&server, &hello, &execution, "make it writable").await?;
    let status = server.stop().await?;
    anyhow::ensure!(status.success(), "{status}\n{}", server.log());
    disk.repair()?;
    server.restart().await?;
    follow(&hello.client, &execution, MAX).await?.succeeded().with_context(|| server.log())?;
    anyhow::ensure!(hello.names().await? == [("hello-v000".to_owned(), true)], "made once");
    drop(server);
    drop(disk);
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
    steps_tried_again(&server, "createServerGroup").await?;
    anyhow::ensure!(hello.names().await?.is_empty(), "nothing half done");
    small.free()?;
    follow(&hello.client, &execution, MAX).await?.succeeded().with_context(|| server.log())?;

    let running = || instances_of(&host_dir);
    let before = running();
    anyhow::ensure!(before.len() == 1, "an instance runs: {before:?}");
    small.fill()?;
    // More than a pipe holds: what it writes is read, and dropped.
    let since = written(before[0])?;
    wait_for("the instance to write on", MAX, || async {
        (written(before[0]).ok()? > since + 128 * 1024).then_some(())
    })
    .await?;
    anyhow::ensure!(running() == before, "a full disk stops no instance");
    // A change of what is wanted is refused as a whole.
    let group = json!({ "account": "local", "location": "local", "name": "hello-v000" });
    let capacity = json!({ "min": 2, "desired": 2, "max": 2 });
    let resize = "mutation($input: ResizeServerGroupInput!) { resizeServerGroup(input: $input) { execution { id } userErrors { message code } } }";
    let payload =
        hello.client.mutate(resize, json!({ "serverGroup": { "name": group }, "capacity": capacity })).await?;
    let execution = payload["execution"]["id"].as_str().context("an execution")?.to_owned();
    steps_tried_again(&server, "resizeServerGroup").await?;
    anyhow::ensure!(running() == before, "nothing half done");
    small.free()?;
    follow(&hello.client, &execution, MAX).await?.succeeded().with_context(|| server.log())?;
    anyhow::ensure!(running().len() == 2, "{:?}", running());
    drop(server);
    drop(small);
    Ok(())
}

async fn host_read_only() -> Outcome {
    let disk = Turning::mount()?;
    let host_dir = disk.at().join("host");
    let server = Server::start_with(Options { host_dir: Some(host_dir.clone()), ..Options::default() }).await?;
    let hello = Hello::create(&server).await?;
    let artifact = server.dir().join("artifact.bin");
    std::fs::write(&artifact, "nothing")?;
    hello.save("writes", &definition(&artifact)).await?;
    let execution = hello.start("writes", Value::Null).await?;
    follow(&hello.client, &execution, MAX).await?.succeeded().with_context(|| server.log())?;
    let running = || instances_of(&host_dir);
    let before = running();
    anyhow::ensure!(before.len() == 1, "an instance runs: {before:?}");

    disk.read_only()?;
    let group = json!({ "account": "local", "location": "local", "name": "hello-v000" });
    let capacity = json!({ "min": 2, "desired": 2, "max": 2 });
    let resize = "mutation($input: ResizeServerGroupInput!) { resizeServerGroup(input: $input) { execution { id } userErrors { message code } } }";
    let payload =
        hello.client.mutate(resize, json!({ "serverGroup": { "name": group }, "capacity": capacity })).await?;
    let execution = payload["execution"]["id"].as_str().context("an execution")?.to_owned();
    steps_tried_again(&server, "resizeServerGroup").await?;
    // What the engine hears, each time.
    let provider = HostProvider::connect(server.host_provider()?).await.map_err(anyhow::Error::msg)?;
    let deadline = Clock::system().now() + MAX;
    let op = Operation { key: "ex_trial/1".to_owned(), fence: 1, deadline };
    let place = Place { account: "local".to_owned(), location: "local".to_owned() };
    let refused = provider.ensure_capacity(&op, &place, "hello-v000", Capacity::pinned(2)).await;
    let refused = refused.err().context("nothing can be written")?;
    anyhow::ensure!(refused.kind == ErrorKind::Unavailable, "{refused:?}");
    for word in [host_dir.display().to_string().as_str(), "Read-only file system"] {
        anyhow::ensure!(refused.message.contains(word), "`{word}` is not in {refused}");
    }
    let since = written(before[0])?;
    wait_for("the instance to write on", MAX, || async {
        (written(before[0]).ok()? > since + 128 * 1024).then_some(())
    })
    .await?;
    anyhow::ensure!(running() == before, "nothing half done, and the instance runs on");
    anyhow::ensure!(hello.names().await? == [("hello-v000".to_owned(), true)], "reading goes on");
    disk.writable()?;
    follow(&hello.client, &execution, MAX).await?.succeeded().with_context(|| server.log())?;
    anyhow::ensure!(running().len() == 2 && running().contains(&before[0]), "{:?}", running());
    drop(server);
    drop(disk);
    Ok(())
}

/// Waits until steps of such stages have failed and are tried again.
async fn steps_tried_again(server: &Server, kind: &str) -> Outcome {
    wait_for("steps that are tried again", MAX, || async {
        let metrics = scrape(server).await.ok()?;
        let tried = metrics.sum("gennaker_stage_steps_total", &[("kind", kind), ("outcome", "retry")]);
        (tried >= 2.0).then_some(())
    })
    .await
}

/// Bytes that a process has written so far.
fn written(pid: i32) -> anyhow::Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/io"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("wchar: ")).context("what it has written")?;
    Ok(line.trim().parse()?)
}

/// The shells that write, by process id; not what they have just forked.
fn instances_of(host_dir: &Path) -> Vec<i32> {
    let mut pids: Vec<i32> = crate::harness::processes_of(host_dir)
        .into_iter()
        .filter(|(_, command)| command.starts_with("/bin/sh") && command.contains("0123456789"))
        .map(|(pid, _)| pid)
        .filter(|pid| {
            let own = nix::unistd::Pid::from_raw(*pid);
            nix::unistd::getpgid(Some(own)) == Ok(own)
        })
        .collect();
    pids.sort_unstable();
    pids
}
