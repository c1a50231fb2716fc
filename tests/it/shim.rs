//! What a host and the parents of its instances do when one of them is killed, and what of an
//! instance's secrets gets out. Needs nothing but `/bin/sh`.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use gennaker::clock::Clock;
use gennaker::model::{Place, ServerGroup, ServerGroupSpec};
use gennaker::providers::host::client::{HostProvider, Options};
use gennaker::providers::host::daemon::identity::Stat;
use gennaker::providers::{Operation, Provider as _};
use libtest_mimic::Trial;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::harness::{Outcome, Ports, gennaker, processes_of, trial, trial_with, wait_for};
use crate::host::setsid;

pub fn trials() -> Vec<Trial> {
    vec![
        trial("shim", "what_a_killed_shim_left_is_ended_by_the_next", next_shim),
        trial("shim", "an_instance_whose_shim_was_killed_starts_again_and_nothing_is_left", killed_shim),
        trial_with("shim", "what_left_its_session_goes_too_when_its_shim_was_killed", setsid(), daemon),
        trial("shim", "secrets_that_an_instance_prints_are_masked", secrets),
        trial("shim", "destroying_comes_back_before_the_instances_are_stopped", destroying),
        trial("shim", "a_host_tells_every_version_what_it_is", versions),
    ]
}

const PATIENCE: Duration = Duration::from_secs(30);

/// A command that forks, so that its children are not the shim's own.
const FORKS: &str = "sleep 1000 & sleep 1000 & wait";

/// A directory, and the end of everything that runs in it.
struct Directory(PathBuf);

impl Directory {
    fn new() -> anyhow::Result<Self> {
        let name = format!("gennaker-it-{}", &uuid::Uuid::new_v4().simple().to_string()[..12]);
        let path = std::env::temp_dir().canonicalize()?.join(name);
        std::fs::create_dir_all(path.join("app"))?;
        std::fs::write(path.join("app/file"), "content")?;
        Ok(Self(path))
    }

    /// Process ids of what sleeps there.
    fn sleepers(&self) -> Vec<i32> {
        let all = processes_of(&self.0).into_iter();
        all.filter(|(_, command)| command.starts_with("sleep")).map(|(pid, _)| pid).collect()
    }

    async fn until_sleepers(&self, what: &str, wanted: impl Fn(&[i32]) -> bool) -> anyhow::Result<Vec<i32>> {
        wait_for(what, PATIENCE, || async { Some(self.sleepers()).filter(|pids| wanted(pids)) })
            .await
            .with_context(|| format!("{:?}", processes_of(&self.0)))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        for (pid, _) in processes_of(&self.0) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn read(path: &Path) -> Option<Value> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

/// Starts a shim as a host does.
fn shim(directory: &Directory, incarnation: u64, script: &str) -> anyhow::Result<tokio::process::Child> {
    let app = directory.0.join("app");
    let start = json!({
        "instance": "web-v000-aaaa",
        "incarnation": incarnation,
        "launch": { "artifact": { "path": app }, "command": ["/bin/sh", "-c", script] },
        "directory": app,
        "port": 1,
        "secretRoots": [],
    });
    std::fs::write(directory.0.join("start.json"), start.to_string())?;
    let mut command = tokio::process::Command::new(gennaker());
    command.arg("shim").arg("--dir").arg(&directory.0).stdin(Stdio::null()).kill_on_drop(true);
    Ok(command.spawn()?)
}

async fn next_shim() -> Outcome {
    let directory = Directory::new()?;
    let mut first = shim(&directory, 1, FORKS)?;
    directory.until_sleepers("both children", |pids| pids.len() == 2).await?;
    first.start_kill()?;
    first.wait().await?;
    let mut second = shim(&directory, 2, "exit 7")?;
    let status = tokio::time::timeout(PATIENCE, second.wait()).await??;
    anyhow::ensure!(status.success(), "{status}");
    anyhow::ensure!(directory.sleepers().is_empty(), "left: {:?}", processes_of(&directory.0));
    let exit = read(&directory.0.join("exit.json")).context("the second says how it ended")?;
    anyhow::ensure!(exit["how"] == json!({ "type": "status", "code": 7 }), "{exit}");
    Ok(())
}

async fn daemon() -> Outcome {
    let directory = Directory::new()?;
    // Its parent is gone at once, so that it is the shim's own child in a session of its own.
    let mut first = shim(&directory, 1, "(setsid sleep 1000 &); sleep 1000 & wait")?;
    directory.until_sleepers("the daemon and the other", |pids| pids.len() == 2).await?;
    let id = i32::try_from(first.id().context("it runs")?)?;
    let left = |pid: &i32| Stat::of(*pid).is_some_and(|stat| stat.parent == id && stat.session == Some(*pid));
    directory.until_sleepers("a daemon", |pids| pids.iter().any(left)).await?;
    first.start_kill()?;
    first.wait().await?;
    let mut second = shim(&directory, 2, "exit 7")?;
    let status = tokio::time::timeout(PATIENCE, second.wait()).await??;
    anyhow::ensure!(status.success(), "{status}");
    anyhow::ensure!(directory.sleepers().is_empty(), "left: {:?}", processes_of(&directory.0));
    Ok(())
}

/// A host in a directory, with the provider that drives it.
struct Host {
    provider: Option<HostProvider>,
    clock: Clock,
    _ports: Ports,
    directory: Directory,
}

impl Host {
    async fn start() -> anyhow::Result<Self> {
        let directory = Directory::new()?;
        let ports = Ports::take()?;
        let options = Options {
            binary: gennaker().to_owned(),
            artifact_roots: vec![directory.0.clone()],
            secret_roots: vec![directory.0.join("secrets")],
            ports: ports.instances().parse().map_err(anyhow::Error::msg)?,
            ..Options::new(&directory.0.join("host"))?
        };
        let provider = HostProvider::connect(options).await?;
        Ok(Self { provider: Some(provider), clock: Clock::system(), _ports: ports, directory })
    }

    fn provider(&self) -> anyhow::Result<&HostProvider> {
        self.provider.as_ref().context("until the end")
    }

    fn place() -> Place {
        Place { account: "local".to_owned(), location: "local".to_owned() }
    }

    fn op(&self, key: &str) -> Operation {
        Operation { key: format!("ex/{key}"), fence: 1, deadline: self.clock.now() + Duration::from_secs(60) }
    }

    /// A group with one instance of a script.
    async fn group(&self, name: &str, script: &str, environment: Value) -> anyhow::Result<ServerGroup> {
        let spec: ServerGroupSpec = serde_json::from_value(json!({
            "account": "local", "location": "local", "name": name,
            "capacity": { "min": 0, "desired": 1, "max": 1 },
            "enabled": true,
            "launch": {
                "artifact": { "path": self.directory.0.join("app") },
                "command": ["/bin/sh", "-c", script],
                "environment": environment,
                "stop": { "graceSeconds": 3 },
            },
        }))?;
        Ok(self.provider()?.ensure_server_group(&self.op(name), &spec).await?)
    }

    async fn destroy(&self, name: &str) -> Outcome {
        let op = self.op(&format!("destroy/{name}"));
        Ok(self.provider()?.ensure_server_group_destroyed(&op, &Self::place(), name).await?)
    }

    async fn until_gone(&self) -> Outcome {
        let provider = self.provider()?;
        wait_for("the end of the group", PATIENCE, || async {
            provider.snapshot().await.ok().filter(|snapshot| snapshot.server_groups.is_empty())
        })
        .await
        .map(drop)
    }

    /// Waits until the only group is as wanted.
    async fn until(&self, what: &str, wanted: impl Fn(&ServerGroup) -> bool) -> anyhow::Result<ServerGroup> {
        let provider = self.provider()?;
        wait_for(what, PATIENCE, || async {
            provider.snapshot().await.ok()?.server_groups.pop().filter(|group| wanted(group))
        })
        .await
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // A provider that is still there would start another host.
        self.provider = None;
        let dir = self.directory.0.join("host");
        let mut stop = std::process::Command::new(gennaker());
        let _ = stop.args(["host", "stop", "--instances", "--dir"]).arg(dir).stdin(Stdio::null()).output();
    }
}

async fn killed_shim() -> Outcome {
    let host = Host::start().await?;
    let made = host.group("web-v000", FORKS, json!({})).await?;
    let before = host.until("a process", |group| group.instances.iter().any(|it| it.pid.is_some())).await?;
    let instance = &before.instances[0];
    let sleepers = host.directory.until_sleepers("both children", |pids| pids.len() == 2).await?;
    let file = host.directory.0.join("host/groups").join(&made.spec.name).join("instances").join(&instance.id);
    let running = read(&file.join("pid.json")).context("the instance runs")?;
    let shim = running["shim"]["pid"].as_i64().context("its shim is named")?;
    kill(Pid::from_raw(i32::try_from(shim)?), Signal::SIGKILL)?;
    let after = host
        .until("another process", |group| {
            group.instances.iter().any(|it| it.pid.is_some() && it.pid != instance.pid && it.restarts == 1)
        })
        .await?;
    anyhow::ensure!(after.instances.len() == 1 && after.instances[0].id == instance.id, "{after:#?}");
    host.directory
        .until_sleepers("two other children", |pids| pids.len() == 2 && !pids.iter().any(|pid| sleepers.contains(pid)))
        .await?;
    host.destroy("web-v000").await?;
    host.until_gone().await?;
    anyhow::ensure!(host.directory.sleepers().is_empty(), "left: {:?}", processes_of(&host.directory.0));
    Ok(())
}

async fn destroying() -> Outcome {
    let host = Host::start().await?;
    // Takes all of its grace time.
    host.group("web-v000", "trap '' TERM; while :; do sleep 1000; done", json!({})).await?;
    host.directory.until_sleepers("its work", |pids| pids.len() == 1).await?;
    host.destroy("web-v000").await?;
    let going = host.until("the group on its way out", |_| true).await?;
    anyhow::ensure!(going.instances.len() == 1, "{going:#?}");
    host.destroy("web-v000").await.context("again is fine")?;
    let error = host.group("web-v000", "exit", json!({})).await.err().context("the name is taken until then")?;
    anyhow::ensure!(format!("{error:#}").contains("being destroyed"), "{error:#}");
    host.until_gone().await?;
    anyhow::ensure!(host.directory.sleepers().is_empty(), "left: {:?}", processes_of(&host.directory.0));
    Ok(())
}

async fn secrets() -> Outcome {
    let host = Host::start().await?;
    let file = host.directory.0.join("secrets/key");
    std::fs::create_dir_all(file.parent().context("a directory")?)?;
    std::fs::write(&file, "s3cr3t-value\n")?;
    let environment = json!({ "KEY": format!("secret://file{}", file.display()) });
    host.group("web-v000", "echo \"the key is $KEY\"; exit 1", environment).await?;
    let ended = host.until("an end", |group| group.instances.iter().any(|it| it.last_exit.is_some())).await?;
    let id = &ended.instances[0].id;
    let provider = host.provider()?;
    let tail = provider.log_tail(&Host::place(), id, 1_000).await?;
    anyhow::ensure!(tail.starts_with("the key is ***\n"), "{tail}");
    // Cut anywhere, also inside the value.
    for bytes in 1..40 {
        let tail = provider.log_tail(&Host::place(), id, bytes).await?;
        anyhow::ensure!(!["s3cr", "cr3t", "t-va", "alue"].iter().any(|part| tail.contains(part)), "{bytes}: {tail}");
    }
    // What cannot be told from a secret is not shown.
    std::fs::remove_file(&file)?;
    let tail = provider.log_tail(&Host::place(), id, 1_000).await?;
    anyhow::ensure!(tail.contains("KEY") && !tail.contains("s3cr3t"), "{tail}");
    Ok(())
}

/// One request as a client of any version makes it: status and body.
async fn ask(host: &Host, path: &str) -> anyhow::Result<(u16, Value)> {
    let mut stream = tokio::net::UnixStream::connect(host.directory.0.join("host/host.sock")).await?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes()).await?;
    let mut text = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut text)).await??;
    let status = text.split(' ').nth(1).context("a status")?.parse()?;
    let body = text.split_once("\r\n\r\n").context("a body")?.1;
    Ok((status, serde_json::from_str(body).with_context(|| text.clone())?))
}

async fn versions() -> Outcome {
    let host = Host::start().await?;
    let (status, body) = ask(&host, "/status").await?;
    anyhow::ensure!(status == 200 && body["protocol"].is_u64() && body["pid"].is_u64(), "{status} {body}");
    let (status, body) = ask(&host, "/v4711/snapshot").await?;
    let message = body["message"].as_str().unwrap_or_default();
    // Not that something is absent: that would read as a thing that is gone.
    anyhow::ensure!(status == 503 && body["kind"] == "unavailable", "{status} {body}");
    anyhow::ensure!(message.contains("4711") && message.contains("gennaker host upgrade"), "{message}");
    let output = std::process::Command::new(gennaker())
        .args(["host", "status", "--dir"])
        .arg(host.directory.0.join("host"))
        .output()?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
