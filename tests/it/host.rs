//! The `host` provider on real processes: `gennaker host` and what it runs, driven as the server
//! drives it. `rig` is what the files share.

mod behaviour;
mod calls;
mod checks;
mod network;
mod rig;
mod survival;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::Duration;

use gennaker::model::{Capacity, HealthState, SecurityGroupSpec};
use gennaker::providers::host::control::Control;
use gennaker::providers::host::daemon::files;
use gennaker::providers::{ErrorKind, Provider as _};
use libtest_mimic::Trial;
use serde_json::json;

use crate::harness::{Outcome, trial, trial_with, wait_for};
use rig::{Host, Load, get, lives, only, pids, under_way};

pub fn trials() -> Vec<Trial> {
    let mut trials = vec![
        trial("host", "a_group_comes_up_takes_traffic_leaves_it_and_goes", whole_life),
        trial("host", "a_smaller_group_drops_no_request", smaller),
        trial("host", "who_no_rule_lets_in_gets_nothing", no_entry),
        trial("host", "an_instance_has_the_environment_that_it_is_told_and_no_more", environment),
        trial("host", "an_instance_and_its_children_are_asked_to_stop_by_the_signal_it_is_told", stop_signal),
        trial_with("host", "nothing_that_an_instance_started_is_left_over", setsid(), left_over),
    ];
    trials.extend(behaviour::trials());
    trials.extend(calls::trials());
    trials.extend(checks::trials());
    trials.extend(network::trials());
    trials.extend(survival::trials());
    trials
}

/// What leaves its session, as daemons do.
pub fn setsid() -> Result<(), String> {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|directory| directory.join("setsid").is_file()));
    if found { Ok(()) } else { Err("the command `setsid` (util-linux)".to_owned()) }
}

async fn whole_life() -> Outcome {
    let host = Host::start().await?;
    let address = host.balancer().await;
    assert_eq!(get(&address, "/").await.expect("an answer").0, 503, "nobody is there yet");
    let made = host.provider().ensure_server_group(&host.op("ex/1"), &host.group("web-v000", 2)).await.expect("made");
    assert!(made.spec.enabled);
    let group = host.up("web-v000", 2).await;
    assert_eq!(get(&address, "/").await.expect("an answer"), (200, "hello from one".to_owned()));
    assert_eq!(group.instances[0].health.len(), 3, "platform, its own and the load balancer's");

    let out = host.provider().ensure_enabled(&host.op("ex/2"), &Host::place(), "web-v000", false).await.expect("done");
    assert_eq!(out.healthy(), 0);
    assert_eq!(get(&address, "/").await.expect("an answer").0, 503);
    let out = host.until("web-v000", "the end of traffic", |group| {
        group.instances.iter().all(|instance| instance.state == HealthState::OutOfService)
    });
    assert_eq!(pids(&out.await), pids(&group), "disabled is not stopped");
    host.provider().ensure_enabled(&host.op("ex/3"), &Host::place(), "web-v000", true).await.expect("done");
    host.up("web-v000", 2).await;
    assert_eq!(get(&address, "/").await.expect("an answer").0, 200);

    let used = host.provider().ensure_load_balancer_deleted(&host.op("ex/4"), &Host::place(), "web").await;
    assert_eq!(used.expect_err("in use").kind, ErrorKind::Conflict);
    host.provider().ensure_server_group_destroyed(&host.op("ex/5"), &Host::place(), "web-v000").await.expect("gone");
    wait_for("the end of the group", Duration::from_secs(30), || async {
        host.find("web-v000").await.is_none().then_some(())
    })
    .await?;
    for pid in pids(&group) {
        assert!(!lives(pid), "process {pid} was left");
    }
    let left = files::names(&host.path().join("host/groups")).expect("listed");
    assert!(left.is_empty(), "{left:?}");
    // Its artifact stays for a while, for a way back, and is told as unused.
    let status = Control::new(&host.path().join("host")).status().await.expect("the host answers");
    assert_eq!((status.artifacts.count, status.artifacts.unused), (1, 1), "{status:?}");
    assert_eq!(status.artifacts.max_bytes, 10 << 30, "{status:?}");
    host.provider()
        .ensure_server_group_destroyed(&host.op("ex/6"), &Host::place(), "web-v000")
        .await
        .expect("absent is fine");
    host.provider().ensure_load_balancer_deleted(&host.op("ex/7"), &Host::place(), "web").await.expect("free now");
    assert!(get(&address, "/").await.is_err(), "nobody listens any more");
    host.end().await;
    Ok(())
}

async fn no_entry() -> Outcome {
    let host = Host::start().await?;
    let address = host.balancer().await;
    host.provider().ensure_server_group(&host.op("ex/1"), &host.group("web-v000", 1)).await.expect("made");
    host.up("web-v000", 1).await;
    assert_eq!(get(&address, "/").await.expect("an answer").0, 200);
    let closed = SecurityGroupSpec { inbound: Vec::new(), ..Host::open() };
    host.provider().ensure_security_group(&host.op("ex/2"), &closed).await.expect("changed");
    let refused = get(&address, "/").await.expect_err("no rule, no entry");
    let reset = matches!(refused.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe);
    assert!(reset || refused.to_string() == "closed without an answer", "{refused}");
    host.provider().ensure_security_group(&host.op("ex/3"), &Host::open()).await.expect("changed");
    assert_eq!(get(&address, "/").await.expect("an answer").0, 200);
    host.end().await;
    Ok(())
}

async fn environment() -> Outcome {
    let host = Host::start().await?;
    host.balancer().await;
    host.provider().ensure_server_group(&host.op("ex/1"), &host.group("web-v000", 1)).await.expect("made");
    let group = host.up("web-v000", 1).await;
    let instance = only(&group);
    let environment = std::fs::read(format!("/proc/{}/environ", instance.pid.expect("runs")))?;
    let environment = String::from_utf8(environment)?;
    let variables: BTreeMap<&str, &str> =
        environment.split_terminator('\0').filter_map(|variable| variable.split_once('=')).collect();
    let names: Vec<&str> = variables.keys().copied().collect();
    assert_eq!(names, ["APP", "HOME", "PATH", "PORT", "SICK", "VERSION"]);
    assert_eq!(variables["PORT"], instance.port.expect("has one").to_string());
    assert_eq!(variables["VERSION"], "one");
    assert!(Path::new(variables["HOME"]).starts_with(host.path().join("host")), "{environment}");
    host.end().await;
    Ok(())
}

async fn stop_signal() -> Outcome {
    let host = Host::start().await?;
    host.balancer().await;
    let mut spec = host.group("web-v000", 1);
    // The signal goes to the whole process group: a child that no one passes it on to hears it too.
    let script = "sh -c 'trap \"echo child USR1 >> $SICK; exit\" USR1; : > $SICK.ready; while :; do sleep 1; done' & \
                  child=$!; while [ ! -e \"$SICK.ready\" ]; do sleep 0.01; done; \
                  for signal in USR1 TERM; do trap \"wait $child; echo $signal >> '$SICK'; exit\" $signal; done; \
                  \"$APP\" sample-app --version one & while :; do wait; done";
    spec.launch = host.script(script);
    spec.launch["stop"] = json!({ "signal": "SIGUSR1", "graceSeconds": 30 });
    host.provider().ensure_server_group(&host.op("ex/1"), &spec).await.expect("made");
    host.up("web-v000", 1).await;
    host.provider().ensure_server_group_destroyed(&host.op("ex/2"), &Host::place(), "web-v000").await.expect("gone");
    wait_for("the end of the group", Duration::from_secs(30), || async {
        host.find("web-v000").await.is_none().then_some(())
    })
    .await?;
    assert_eq!(std::fs::read_to_string(host.path().join("sick"))?, "child USR1\nUSR1\n");
    host.end().await;
    Ok(())
}

async fn left_over() -> Outcome {
    let host = Host::start().await?;
    host.balancer().await;
    let mut spec = host.group("web-v000", 1);
    // A grandchild in a session of its own, deaf to the stop signal.
    let script =
        "setsid sh -c 'trap \"\" TERM; echo daemon $$; exec sleep 600' & exec \"$APP\" sample-app --version one";
    spec.launch = host.launch(&["/bin/sh", "-c", script]);
    host.provider().ensure_server_group(&host.op("ex/1"), &spec).await.expect("made");
    let group = host.up("web-v000", 1).await;
    let log = host.provider().log_tail(&Host::place(), &only(&group).id, 10_000).await.expect("a log");
    let daemon = log.lines().find_map(|line| line.strip_prefix("daemon ")).expect("it said its number");
    let daemon: u32 = daemon.trim().parse().expect("a number");
    assert!(lives(daemon));
    host.provider().ensure_server_group_destroyed(&host.op("ex/2"), &Host::place(), "web-v000").await.expect("gone");
    wait_for("the end of the group", Duration::from_secs(30), || async {
        host.find("web-v000").await.is_none().then_some(())
    })
    .await?;
    assert!(!lives(daemon), "the daemon was left");
    host.end().await;
    Ok(())
}

async fn smaller() -> Outcome {
    let host = Host::start().await?;
    let address = host.balancer().await;
    host.provider().ensure_server_group(&host.op("ex/1"), &host.group("web-v000", 3)).await.expect("made");
    let group = host.up("web-v000", 3).await;
    let slow: Vec<_> = (0..6)
        .map(|_| {
            let address = address.clone();
            tokio::spawn(async move { get(&address, "/slow?ms=3000").await })
        })
        .collect();
    under_way(&group, 6).await;
    let load = Load::start(&address);
    let capacity = Capacity::pinned(1);
    host.provider().ensure_capacity(&host.op("ex/2"), &Host::place(), "web-v000", capacity).await.expect("done");
    host.up("web-v000", 1).await;
    for slow in slow {
        assert_eq!(slow.await.expect("ran").expect("answered").0, 200);
    }
    let (good, bad) = load.end().await;
    assert!(good > 10 && bad.is_empty(), "{good} good, {bad:?}");
    host.end().await;
    Ok(())
}
