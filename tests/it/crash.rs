//! `kill -9`: of the server at random moments of deploys, and of the host. Afterwards everything
//! goes on as if nothing had been.

use std::time::Duration;

use anyhow::Context as _;
use gennaker::providers::host::daemon::identity::Stat;
use libtest_mimic::Trial;
use serde_json::json;

use crate::harness::{Hello, Options, Outcome, Random, Server, follow, times, trial, wait_for};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("crash", "a_server_killed_during_deploys_finishes_them_and_no_request_fails", kill_server),
        trial("crash", "a_host_killed_during_deploys_comes_back_with_its_instances", kill_host),
        trial("crash", "a_crashed_instance_is_started_again", crashed_instance),
        trial("crash", "ctrl_c_ends_the_server_and_neither_its_host_nor_its_instances", interrupted_group),
    ]
}

const MAX: Duration = Duration::from_secs(300);

/// How often, over as many deploys as it takes.
const SERVER_KILLS: &str = "GENNAKER_TEST_SERVER_KILLS";
const HOST_KILLS: &str = "GENNAKER_TEST_HOST_KILLS";
/// A deploy under kills takes about this long; kills fall into it, evenly.
const SPREAD_MS: u64 = 2_500;

async fn kill_server() -> Outcome {
    let mut random = Random::new();
    let mut server = Server::start().await?;
    let hello = Hello::create(&server).await?;
    hello.deploy("1.0.0").await?.succeeded()?;
    let load = hello.load(200, false);
    let mut kills = times(SERVER_KILLS, 30);
    let mut deploys = 1;
    while kills > 0 {
        deploys += 1;
        let version = format!("{deploys}.0.0");
        let execution = hello.start("deploy hello", json!({ "version": version })).await?;
        let following = tokio::spawn({
            let (client, execution) = (hello.client.clone(), execution.clone());
            async move { follow(&client, &execution, MAX).await }
        });
        // One to three kills a deploy, so that some starts are cut short too.
        for _ in 0..(1 + random.below(3)).min(kills as u64) {
            tokio::time::sleep(Duration::from_millis(random.below(SPREAD_MS))).await;
            server.kill().await?;
            server.restart().await?;
            kills -= 1;
        }
        let followed = following.await??;
        followed.succeeded().with_context(|| server.log())?;
        let names = hello.names().await?;
        anyhow::ensure!(names.len() == deploys, "exactly one new server group per deploy: {names:?}");
        let enabled: Vec<_> = names.iter().filter(|(_, enabled)| *enabled).map(|(name, _)| name.as_str()).collect();
        anyhow::ensure!(enabled == [format!("hello-v{:03}", deploys - 1)], "{names:?}");
        let report = load.report();
        anyhow::ensure!(report.failed == 0, "after {deploys} deploys: {:?}", report.failures);
    }
    let report = load.stop().await;
    anyhow::ensure!(report.failed == 0, "{:?}", report.failures);
    anyhow::ensure!(report.versions().len() == deploys, "every version answered: {:?}", report.versions());
    Ok(())
}

async fn kill_host() -> Outcome {
    let mut random = Random::new();
    let server = Server::start().await?;
    let hello = Hello::create(&server).await?;
    hello.deploy("1.0.0").await?.succeeded()?;
    let mut deploys = 1;
    for _ in 0..times(HOST_KILLS, 10) {
        deploys += 1;
        let instances = instance_processes(&server);
        // A killed proxy takes answers that are on their way with it; a client that sends such a
        // GET again, as browsers do, must never notice.
        let load = hello.load(200, true);
        let execution = hello.start("deploy hello", json!({ "version": format!("{deploys}.0.0") })).await?;
        tokio::time::sleep(Duration::from_millis(random.below(SPREAD_MS))).await;
        let worker = server.host_worker().context("the host says its worker's process id")?;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(worker), nix::sys::signal::Signal::SIGKILL)?;
        let followed = follow(&hello.client, &execution, MAX).await?;
        followed.succeeded().with_context(|| server.log())?;
        let report = load.stop().await;
        anyhow::ensure!(report.failed == 0, "{:?}", report.failures);
        let now = wait_for("another worker", MAX, || async { server.host_worker() }).await?;
        anyhow::ensure!(now != worker, "a killed host is replaced");
        let still = instance_processes(&server);
        anyhow::ensure!(
            instances.iter().all(|pid| still.contains(pid)),
            "instances go on without the host: {instances:?}, {still:?}"
        );
        let names = hello.names().await?;
        anyhow::ensure!(names.len() == deploys, "{names:?}");
        anyhow::ensure!(names.iter().filter(|(_, enabled)| *enabled).count() == 1, "{names:?}");
    }
    Ok(())
}

async fn crashed_instance() -> Outcome {
    let server = Server::start().await?;
    let hello = Hello::create(&server).await?;
    hello.deploy("1.0.0").await?.succeeded()?;
    let load = hello.load(100, true);
    let pids = instance_processes(&server);
    anyhow::ensure!(pids.len() == 3, "{pids:?}");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pids[0]), nix::sys::signal::Signal::SIGKILL)?;
    wait_for("three instances, one of them new", MAX, || async {
        let now = instance_processes(&server);
        let healthy = hello.groups().await.ok()?.first()?.healthy;
        (now.len() == 3 && !now.contains(&pids[0]) && healthy == 3).then_some(())
    })
    .await?;
    let report = load.stop().await;
    anyhow::ensure!(report.failed == 0, "{:?}", report.failures);
    Ok(())
}

async fn interrupted_group() -> Outcome {
    let mut server = Server::start_with(Options { own_group: true, ..Options::default() }).await?;
    let hello = Hello::create(&server).await?;
    hello.deploy("1.0.0").await?.succeeded()?;
    let session = |pid: i32| Stat::of(pid).and_then(|stat| stat.session).context("a session");
    let status = server.command().args(["host", "status"]).output()?;
    let status: serde_json::Value = serde_json::from_slice(&status.stdout)?;
    let process = |name: &str| anyhow::Ok(i32::try_from(status[name].as_i64().context("a process")?)?);
    let (keeper, worker) = (process("keeper")?, process("pid")?);
    let processes = server.processes().into_iter();
    let shims: Vec<i32> = processes
        .filter(|(_, command)| command.split_whitespace().nth(1) == Some("shim"))
        .map(|(pid, _)| pid)
        .collect();
    anyhow::ensure!(shims.len() == 3, "{shims:?}");
    let own = session(server.pid()?)?;
    anyhow::ensure!(session(keeper)? == keeper && session(worker)? == keeper && keeper != own, "the host's session");
    for shim in shims {
        anyhow::ensure!(session(shim)? == shim, "shim {shim} has the session {}", session(shim)?);
    }

    let instances = instance_processes(&server);
    let load = hello.load(200, false);
    nix::sys::signal::killpg(nix::unistd::Pid::from_raw(server.pid()?), nix::sys::signal::Signal::SIGINT)?;
    let ended = server.ended(MAX).await?;
    anyhow::ensure!(ended.success(), "{ended}\n{}", server.log());
    let sent = load.report().sent;
    wait_for("traffic without a server", MAX, || async { (load.report().sent > sent + 100).then_some(()) }).await?;
    anyhow::ensure!(instance_processes(&server) == instances, "the instances run on");
    server.restart().await?;
    anyhow::ensure!(server.host_worker() == Some(worker), "so does the host");
    let report = load.stop().await;
    anyhow::ensure!(report.failed == 0, "{:?}", report.failures);
    Ok(())
}

/// The sample applications that this server's host runs, without their shims.
fn instance_processes(server: &Server) -> Vec<i32> {
    let mut pids: Vec<_> = server
        .processes()
        .into_iter()
        .filter(|(_, command)| command.split_whitespace().nth(1) == Some("sample-app"))
        .map(|(pid, _)| pid)
        .collect();
    pids.sort_unstable();
    pids
}
