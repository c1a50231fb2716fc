//! What outlives what: workers, keepers and hosts end, are killed or replaced; instances run on and
//! requests are answered.

use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use gennaker::model::HealthState;
use gennaker::providers::Provider as _;
use gennaker::providers::host::client::{HostProvider, Options};
use gennaker::providers::host::daemon::identity::{Identity, Stat};
use gennaker::providers::host::protocol::Upgrade;
use libtest_mimic::Trial;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::rig::{Host, Load, get, gone, holds_socket, kill_now, lives, only, pids, under_way};
use crate::harness::{Outcome, gennaker, trial, wait_for};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("host", "a_killed_worker_refuses_no_connection_and_stops_no_instance", killed_worker),
        trial("host", "an_upgrade_drops_no_request", upgrade),
        trial("host", "the_command_says_who_has_taken_over_after_an_upgrade", upgrade_command),
        trial("host", "an_upgrade_takes_the_keeper_along_in_its_process", upgraded_keeper),
        trial("host", "a_killed_keeper_is_replaced_and_sockets_are_still_held", killed_keeper),
        trial("host", "what_ends_while_the_host_is_gone_is_seen_with_every_line", ends_unseen),
        trial("host", "instances_outlive_a_stopped_host_and_come_back_with_it", stopped_host),
        trial("host", "a_directory_too_long_for_a_socket_is_refused_before_anything_is_made", long_path),
        trial("host", "the_hosts_own_logs_stay_within_bounds_and_are_written_on", own_logs),
    ]
}

async fn killed_worker() -> Outcome {
    let host = Host::start().await?;
    let address = host.balancer().await;
    host.provider().ensure_server_group(&host.op("ex/1"), &host.group("web-v000", 2)).await.expect("made");
    let before = pids(&host.up("web-v000", 2).await);
    let load = Load::start(&address);
    for _ in 0..3 {
        let worker = host.status().await.pid;
        kill_now(worker);
        host.another_worker(worker).await;
        load.goes_on().await;
    }
    let after = host.up("web-v000", 2).await;
    assert_eq!(pids(&after), before);
    let (good, bad) = load.end().await;
    assert!(good > 10, "{good} requests only");
    // What was under way in the killed process cannot be saved; a new connection is never refused.
    assert!(bad.len() <= 3 && !bad.iter().any(|error| error.contains("refused")), "{bad:?}");
    host.end().await;
    Ok(())
}

async fn upgrade() -> Outcome {
    let host = Host::start().await?;
    let address = host.balancer().await;
    host.provider().ensure_server_group(&host.op("ex/1"), &host.group("web-v000", 2)).await.expect("made");
    let group = host.up("web-v000", 2).await;
    let before = pids(&group);
    let slow = tokio::spawn({
        let address = address.clone();
        async move { get(&address, "/slow?ms=3000").await }
    });
    under_way(&group, 1).await;
    let load = Load::start(&address);
    let old = host.status().await.pid;
    let binary = Some(gennaker().to_owned());
    let status =
        host.provider().control().upgrade(Upgrade { binary }, Duration::from_secs(20)).await.expect("upgraded");
    assert_ne!(status.pid, old);
    assert_eq!(slow.await.expect("ran").expect("answered by the old worker").0, 200);
    assert_eq!(pids(&host.up("web-v000", 2).await), before);
    gone(old).await;
    let (good, bad) = load.end().await;
    assert!(good > 10 && bad.is_empty(), "{good} good, {bad:?}");
    host.end().await;
    Ok(())
}

async fn upgrade_command() -> Outcome {
    let host = Host::start().await?;
    let address = host.balancer().await;
    host.provider().ensure_server_group(&host.op("ex/1"), &host.group("web-v000", 1)).await.expect("made");
    let before = pids(&host.up("web-v000", 1).await);
    let run = async |more: &[&str]| {
        let mut command = tokio::process::Command::new(gennaker());
        command.args(["host", "upgrade", "--dir"]).arg(host.path().join("host")).args(more);
        command.output().await.expect("ran")
    };
    let load = Load::start(&address);
    let binary = gennaker().to_string_lossy();
    for more in [&[][..], &["--binary", &binary]] {
        let old = host.status().await.pid;
        let done = run(more).await;
        let new = host.status().await.pid;
        assert_ne!(new, old);
        let said = format!("process {new} of version {} has taken over\n", env!("CARGO_PKG_VERSION"));
        assert_eq!((done.status.code(), String::from_utf8_lossy(&done.stdout).as_ref()), (Some(0), said.as_str()));
    }
    let serves = host.status().await.pid;
    let refused = run(&["--binary", "/bin/true"]).await;
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("/bin/true is not a gennaker"), "{refused:?}");
    assert_eq!(host.status().await.pid, serves);
    let (good, bad) = load.end().await;
    assert!(good > 0 && bad.is_empty(), "{good} good, {bad:?}");
    assert_eq!(pids(&host.up("web-v000", 1).await), before);
    host.end().await;
    Ok(())
}

async fn upgraded_keeper() -> Outcome {
    let host = Host::start().await?;
    let address = host.balancer().await;
    host.provider().ensure_server_group(&host.op("ex/1"), &host.group("web-v000", 2)).await.expect("made");
    let before = pids(&host.up("web-v000", 2).await);
    let keeper = host.status().await.keeper.expect("has one");
    let runs = |pid: u32| std::fs::read_link(format!("/proc/{pid}/exe")).ok();
    let load = Load::start(&address);
    // Each time to another file, as a new version would be.
    for version in ["2", "3"] {
        let binary = host.path().join(version).join("gennaker");
        std::fs::create_dir_all(binary.parent().expect("below the directory")).expect("made");
        std::fs::copy(gennaker(), &binary).expect("copied");
        let upgrade = Upgrade { binary: Some(binary.clone()) };
        host.provider().control().upgrade(upgrade, Duration::from_secs(20)).await.expect("upgraded");
        wait_for("the keeper of the new binary", Duration::from_secs(20), || async {
            (runs(keeper).as_ref() == Some(&binary)).then_some(())
        })
        .await?;
        assert_eq!(host.status().await.keeper, Some(keeper), "it is the same process");
        load.goes_on().await;
        // It holds the sockets, and starts workers from the new binary.
        let worker = host.status().await.pid;
        kill_now(worker);
        let next = host.another_worker(worker).await;
        assert_eq!(runs(next).as_ref(), Some(&binary));
        load.goes_on().await;
    }
    let (good, bad) = load.end().await;
    // Only what a killed worker had in its hands is lost; a new connection is never refused.
    assert!(good > 10 && bad.len() <= 2 && !bad.iter().any(|error| error.contains("refused")), "{good}: {bad:?}");
    assert_eq!(pids(&host.up("web-v000", 2).await), before);
    // The lock came along.
    let mut second = std::process::Command::new(gennaker());
    let second = second.args(["host", "--dir"]).arg(host.path().join("host")).output().expect("ran");
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success() && said.contains(&format!("(process {keeper})")), "{said}");
    // A program that cannot follow leaves the keeper as it is.
    let missing = Upgrade { binary: Some(host.path().join("nowhere")) };
    host.provider().control().upgrade(missing, Duration::from_secs(2)).await.expect_err("there is no such file");
    assert_eq!(host.status().await.keeper, Some(keeper));
    host.end().await;
    gone(keeper).await;
    Ok(())
}

async fn killed_keeper() -> Outcome {
    let host = Host::start().await?;
    let address = host.balancer().await;
    host.provider().ensure_server_group(&host.op("ex/1"), &host.group("web-v000", 1)).await.expect("made");
    host.up("web-v000", 1).await;
    let before = host.status().await;
    let load = Load::start(&address);
    load.goes_on().await;
    kill_now(before.keeper.expect("has one"));
    let deadline = Instant::now() + Duration::from_secs(10);
    while host.status().await.keeper == before.keeper {
        assert!(Instant::now() < deadline, "no other keeper came");
    }
    assert_eq!(host.status().await.pid, before.pid, "the worker goes on");
    let second = HostProvider::connect(host.options()).await.expect("the same host");
    assert_eq!(second.control().status().await.expect("answers").pid, before.pid);
    // Until the new keeper has taken the sockets the worker is the only one that holds them.
    holds_socket(host.status().await.keeper.expect("has one"), &address).await;
    kill_now(before.pid);
    host.another_worker(before.pid).await;
    load.goes_on().await;
    let (good, bad) = load.end().await;
    assert!(good > 10 && bad.len() <= 1 && !bad.iter().any(|error| error.contains("refused")), "{bad:?}");
    host.end().await;
    Ok(())
}

async fn ends_unseen() -> Outcome {
    let host = Host::start().await?;
    host.balancer().await;
    let mut spec = host.group("web-v000", 1);
    spec.launch = host.launch(&[
        "/bin/sh",
        "-c",
        "trap 'echo last words; exit 7' USR1; \"$APP\" sample-app --version one & while :; do wait; done",
    ]);
    host.provider().ensure_server_group(&host.op("ex/1"), &spec).await.expect("made");
    let group = host.up("web-v000", 1).await;
    let instance = only(&group).clone();
    let pid = instance.pid.expect("runs");
    let server = Stat::all().into_iter().find(|(_, stat)| i64::from(stat.parent) == i64::from(pid)).expect("a child").0;
    let child = Identity::of(server).expect("runs");
    let status = host.status().await;
    // The keeper first, or it would start another worker; the worker before it starts a keeper.
    kill(Pid::from_raw(i32::try_from(status.pid).expect("fits")), Signal::SIGSTOP).expect("stopped");
    kill_now(status.keeper.expect("has one"));
    kill_now(status.pid);
    gone(status.pid).await;
    kill(Pid::from_raw(i32::try_from(pid).expect("fits")), Signal::SIGUSR1).expect("sent");
    gone(pid).await;
    let deadline = Instant::now() + Duration::from_secs(5);
    while child.is_alive() {
        assert!(Instant::now() < deadline, "the shell's child was left");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // The provider starts a host again by itself.
    let after = host
        .until("web-v000", "the restart", |group| only(group).state == HealthState::Up && only(group).restarts == 1);
    let after = after.await;
    assert_eq!(only(&after).last_exit.as_deref(), Some("exit status 7"));
    assert_eq!(only(&after).incarnation, instance.incarnation + 1);
    assert_eq!(only(&after).id, instance.id);
    let log = host.provider().log_tail(&Host::place(), &instance.id, 10_000).await.expect("a log");
    let lines: Vec<&str> = log.lines().map(|line| line.split(' ').next().unwrap_or_default()).collect();
    assert_eq!(lines, ["sample-app", "last", "sample-app"], "{log}");
    host.end().await;
    Ok(())
}

async fn stopped_host() -> Outcome {
    let host = Host::start().await?;
    let address = host.balancer().await;
    host.provider().ensure_server_group(&host.op("ex/1"), &host.group("web-v000", 2)).await.expect("made");
    let before = pids(&host.up("web-v000", 2).await);
    let directory = host.path().join("host");
    let second = std::process::Command::new(gennaker()).args(["host", "--dir"]).arg(&directory).output().expect("ran");
    assert!(!second.status.success() && String::from_utf8_lossy(&second.stderr).contains("a host runs on"));
    let stopped = std::process::Command::new(gennaker()).args(["host", "stop", "--dir"]).arg(&directory).output();
    assert!(stopped.expect("ran").status.success());
    assert!(before.iter().all(|pid| lives(*pid)));
    let again = HostProvider::connect(host.options()).await.expect("starts again");
    drop(again);
    assert_eq!(pids(&host.up("web-v000", 2).await), before);
    assert_eq!(get(&address, "/").await.expect("the same address").0, 200);
    host.end().await;
    Ok(())
}

async fn long_path() -> Outcome {
    let name = format!("gennaker-it-{}", "a".repeat(110));
    let long = std::env::temp_dir().canonicalize()?.join(name);
    let ran = std::process::Command::new(gennaker()).args(["host", "--dir"]).arg(&long).output()?;
    let text = String::from_utf8_lossy(&ran.stderr);
    assert!(
        !ran.status.success() && text.contains("a host cannot listen at") && text.contains("shorter path"),
        "{text}"
    );
    let error = HostProvider::connect(Options::new(&long)?).await.err().expect("refused");
    assert!(error.message.contains("shorter path"), "{error}");
    assert!(!long.exists(), "nothing is left of it");
    Ok(())
}

async fn own_logs() -> Outcome {
    const MIB: usize = 1 << 20;
    let host = Host::start().await?;
    let (log, aside) = (host.path().join("host/host.log"), host.path().join("host/host.log.1"));
    let fill = |path: &Path, bytes: usize| {
        let mut file = std::fs::File::options().append(true).create(true).open(path).expect("opened");
        file.write_all("filled\n".repeat(bytes / 7 + 1).as_bytes()).expect("written");
    };
    let emptied = async |before: &str| {
        wait_for("an emptied log", Duration::from_secs(20), || async {
            (std::fs::metadata(&log).expect("it stays").len() < MIB as u64).then_some(())
        })
        .await?;
        let copy = std::fs::read_to_string(&aside)?;
        assert!(copy.len() < 23 * MIB && copy.contains(before), "{} bytes", copy.len());
        anyhow::Ok(())
    };
    // While it runs.
    fill(&log, 11 * MIB);
    emptied("host serves").await?;
    let worker = host.status().await.pid;
    kill_now(worker);
    host.another_worker(worker).await;
    // It answers a moment before it says so.
    wait_for("the lines of keeper and worker", Duration::from_secs(20), || async {
        let text = host.log();
        (text.contains("the worker has ended") && text.contains("host serves")).then_some(())
    })
    .await?;
    // What a host finds that starts.
    let directory = host.path().join("host");
    let stopped = std::process::Command::new(gennaker()).args(["host", "stop", "--dir"]).arg(&directory).output();
    assert!(stopped.expect("ran").status.success());
    fill(&log, 11 * MIB);
    drop(HostProvider::connect(host.options()).await.expect("starts again"));
    emptied("the worker has ended").await?;
    wait_for("a line of the host that started", Duration::from_secs(20), || async {
        host.log().contains("host serves").then_some(())
    })
    .await?;
    assert!(!host.log().contains("filled"));

    // The same for what the shims of an instance say.
    let mut spec = host.group("web-v000", 1);
    (spec.health_check, spec.load_balancers) = (None, Vec::new());
    host.provider().ensure_server_group(&host.op("ex/1"), &spec).await.expect("made");
    let group = host.up("web-v000", 1).await;
    let of_shim = directory.join("groups/web-v000/instances").join(&only(&group).id).join("shim.log");
    fill(&of_shim, 65 * 1024);
    kill_now(only(&group).pid.expect("runs"));
    host.until("web-v000", "the restart", |group| only(group).state == HealthState::Up && only(group).restarts == 1)
        .await;
    assert_eq!(std::fs::metadata(&of_shim)?.len(), 0);
    host.end().await;
    Ok(())
}
