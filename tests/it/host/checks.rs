//! What is said of an instance's health: by the platform, by its own check of each sort, by the way
//! it ends; and how its limits are enforced.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use gennaker::model::{Capacity, HealthState, InstanceHealth, LoadBalancerSpec, ServerGroup, Share};
use gennaker::providers::Provider as _;
use gennaker::providers::host::daemon::identity::Stat;
use libtest_mimic::Trial;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use tokio::net::TcpListener;

use super::rig::{Host, get, kill_now, only};
use crate::harness::{Outcome, trial, trial_where, trial_with, wait_for};

pub fn trials() -> Vec<Trial> {
    let mut trials = vec![
        trial("host", "each_source_says_what_is_wrong", sources),
        trial_with("host", "a_descendant_that_listens_is_still_the_instances", super::setsid(), descendant),
        trial("host", "a_crashing_instance_is_started_again_and_its_exit_is_told", crashing),
        trial("host", "traffic_needs_the_load_balancers_own_check_beside_the_instances_own", both),
        trial("host", "a_port_that_another_process_answers_on_makes_no_instance_healthy", foreign),
        trial("host", "what_is_ending_takes_room_until_it_is_gone", no_room),
        trial("host", "a_tcp_check_passes_while_connections_are_accepted", tcp),
        trial("host", "a_command_checks_with_the_instances_environment_and_in_time", command),
        trial("host", "limits_hold_and_it_is_told_how", limits),
        trial("host", "a_starting_instance_is_probed_often_whatever_its_interval", starting),
        trial("host", "a_share_with_nothing_healthy_is_a_problem_until_it_is_back", shares),
    ];
    trials.extend(trial_where("host", "a_cgroup_of_its_own_limits_an_instance", cgroup(), in_a_cgroup));
    let name = "an_instance_runs_as_the_user_it_is_told_with_that_users_groups";
    trials.extend(trial_where("host", name, root(), run_as));
    let name = "root_that_may_not_become_another_user_says_so_at_once";
    trials.extend(trial_where("host", name, root().and_then(|()| setpriv()), bound));
    trials
}

async fn sources() -> Outcome {
    let host = Host::start().await?;
    let address = host.balancer().await;
    let mut spec = host.group("web-v000", 1);
    // Sick after its first request; when it is ended, a healthy one takes its place.
    spec.launch =
        host.script("\"$APP\" sample-app --version one --fail-health 1; exec \"$APP\" sample-app --version two");
    host.provider().ensure_server_group(&host.op("ex/1"), &spec).await.expect("made");
    let before = host.up("web-v000", 1).await;
    assert_eq!(get(&address, "/").await.expect("an answer"), (200, "hello from one".to_owned()));
    let group = host.until("web-v000", "sickness", |group| only(group).state == HealthState::Down).await;
    let messages: Vec<&str> = only(&group).health.iter().map(|health| health.message.as_str()).collect();
    assert!(messages[0].starts_with("listens on port"), "{messages:?}");
    assert_eq!(messages[1], "GET /health answered 503");
    let shell = i32::try_from(only(&group).pid.expect("runs")).expect("fits");
    let (sick, _) = Stat::all().into_iter().find(|(_, stat)| stat.parent == shell).expect("a child");
    kill(Pid::from_raw(sick), Signal::SIGTERM).expect("sent");
    let after = host.up("web-v000", 1).await;
    assert_eq!((only(&after).pid, only(&after).restarts), (only(&before).pid, 0));
    assert_eq!(get(&address, "/").await.expect("an answer"), (200, "hello from two".to_owned()));
    host.end().await;
    Ok(())
}

async fn starting() -> Outcome {
    let host = Host::start().await?;
    host.balancer().await;
    let mut spec = host.group("web-v000", 1);
    let check = json!({ "protocol": "http", "path": "/health", "intervalMs": 30_000, "healthyThreshold": 3 });
    spec.health_check = Some(serde_json::from_value(check)?);
    host.provider().ensure_server_group(&host.op("ex/1"), &spec).await.expect("made");
    let listens = |group: &ServerGroup| {
        let health = group.instances.first().and_then(|instance| instance.health.first());
        health.is_some_and(|platform| platform.state == HealthState::Up)
    };
    host.until("web-v000", "the port", listens).await;
    let since = Instant::now();
    host.up("web-v000", 1).await;
    assert!(since.elapsed() < Duration::from_secs(5), "three probes in a row took {:?}", since.elapsed());
    host.end().await;
    Ok(())
}

async fn shares() -> Outcome {
    let host = Host::start().await?;
    let address = host.balancer().await;
    let (provider, place) = (host.provider(), Host::place());
    for name in ["web-v000", "web-v001"] {
        provider.ensure_server_group(&host.op("ex/1"), &host.group(name, 1)).await.expect("made");
        host.up(name, 1).await;
    }
    let share = Share { server_group: "web-v001".to_owned(), basis_points: 10_000 };
    let set = provider.ensure_shares(&host.op("ex/2"), &place, "web", &[share]).await.expect("set");
    assert_eq!(set.problems, []);
    let until = async |what: &str, wanted: fn(&str) -> bool| {
        wait_for(what, Duration::from_secs(30), async || {
            let snapshot = host.provider().snapshot().await.expect("a snapshot");
            let web = snapshot.load_balancers.into_iter().find(|balancer| balancer.spec.name == "web").expect("there");
            wanted(&web.problem().unwrap_or_default()).then_some(())
        })
        .await
    };
    provider.ensure_enabled(&host.op("ex/3"), &place, "web-v001", false).await.expect("disabled");
    until("the problem", |problem| {
        problem.contains("the share of 100 % of server group `web-v001` goes to the others")
    })
    .await?;
    assert_eq!(get(&address, "/").await.expect("an answer").0, 200);
    // Who changes the load balancer meanwhile is told too.
    let spec = LoadBalancerSpec { drain_seconds: 4, ..host.balancer_spec() };
    let changed = provider.ensure_load_balancer(&host.op("ex/5"), &spec).await.expect("changed");
    let problem = changed.problem().unwrap_or_default();
    assert!(problem.contains("`web-v001` goes to the others") && changed.bound == [address.as_str()], "{changed:?}");
    // So is who comes after a restart of the host.
    let worker = host.status().await.pid;
    kill_now(worker);
    host.another_worker(worker).await;
    until("the problem after a restart", |problem| problem.contains("`web-v001` goes to the others")).await?;
    provider.ensure_enabled(&host.op("ex/4"), &place, "web-v001", true).await.expect("enabled");
    until("no problem", str::is_empty).await?;
    assert!(host.log().contains("server group `web-v001` takes its share of 100 % again"), "{}", host.log());
    host.end().await;
    Ok(())
}

async fn descendant() -> Outcome {
    let host = Host::start().await?;
    host.balancer().await;
    // In a session of its own.
    let mut spec = host.group("web-v001", 1);
    spec.launch = host.script("setsid \"$APP\" sample-app --version one & trap '' CHLD; sleep 600");
    host.provider().ensure_server_group(&host.op("ex/2"), &spec).await.expect("made");
    host.up("web-v001", 1).await;
    host.end().await;
    Ok(())
}

async fn crashing() -> Outcome {
    let host = Host::start().await?;
    host.balancer().await;
    let mut spec = host.group("web-v000", 1);
    spec.launch = host.script("exec \"$APP\" sample-app --version one --crash-after-ms 300");
    host.provider().ensure_server_group(&host.op("ex/1"), &spec).await.expect("made");
    let group = host.until("web-v000", "three starts", |group| {
        group.instances.first().is_some_and(|instance| instance.restarts >= 2)
    });
    let group = group.await;
    assert_eq!(only(&group).last_exit.as_deref(), Some("exit status 3"));
    let group = host.until("web-v000", "the problem", |group| group.problem.is_some()).await;
    assert!(group.problem.as_deref().expect("told").contains("keeps ending (exit status 3)"), "{:?}", group.problem);
    let mut missing = host.group("web-v001", 1);
    missing.launch = host.launch(&["./not-there"]);
    host.provider().ensure_server_group(&host.op("ex/2"), &missing).await.expect("made");
    let group = host
        .until("web-v001", "the failure", |group| group.instances.iter().any(|instance| instance.last_exit.is_some()));
    let exit = only(&group.await).last_exit.clone().expect("told");
    assert!(exit.contains("cannot run") && exit.contains("not-there"), "{exit}");
    // What comes before the program is told apart from it: no process of the system may have so many.
    let mut refused = host.group("web-v002", 1);
    refused.launch["limits"] = json!({ "openFiles": 20_000_000_000_u64 });
    host.provider().ensure_server_group(&host.op("ex/3"), &refused).await.expect("made");
    let group = host
        .until("web-v002", "the failure", |group| group.instances.iter().any(|instance| instance.last_exit.is_some()));
    let exit = only(&group.await).last_exit.clone().expect("told");
    let told = "cannot prepare the instance's process: its limits (RLIMIT_NOFILE 20000000000) cannot be set";
    assert!(exit.contains(told), "{exit}");
    host.end().await;
    Ok(())
}

async fn no_room() -> Outcome {
    let host = Host::with_room_for(2).await?;
    let group = |name: &str| {
        let mut spec = host.group(name, 2);
        (spec.health_check, spec.load_balancers) = (None, Vec::new());
        // It does not end when told, but when its grace is over.
        spec.launch = host.script("trap '' TERM; while :; do sleep 1; done");
        spec
    };
    host.provider().ensure_server_group(&host.op("ex/1"), &group("web-v000")).await.expect("made");
    host.up("web-v000", 2).await;
    let none = Capacity::pinned(0);
    host.provider().ensure_capacity(&host.op("ex/2"), &Host::place(), "web-v000", none).await.expect("done");
    host.provider().ensure_server_group(&host.op("ex/3"), &group("web-v001")).await.expect("made");
    let waits = host.until("web-v001", "the problem", |group| group.problem.is_some()).await;
    let problem = waits.problem.as_deref().expect("told");
    assert!(problem.contains("has 2 instances, its most") && problem.contains("--max-instances"), "{problem}");
    assert!(waits.instances.is_empty(), "{waits:?}");
    host.up("web-v001", 2).await;
    host.until("web-v001", "no problem any more", |group| group.problem.is_none()).await;
    host.end().await;
    Ok(())
}

/// What the instance's own check says.
fn own(group: &ServerGroup) -> &InstanceHealth {
    &only(group).health[1]
}

/// What its load balancer's check says.
fn balancers(group: &ServerGroup) -> &InstanceHealth {
    &only(group).health[2]
}

/// A server of the trial's own that says only this, until the trial ends.
fn answering(listener: TcpListener, status: StatusCode) {
    let app = axum::Router::new().fallback(move || async move { status });
    tokio::spawn(async move { axum::serve(listener, app).await });
}

async fn both() -> Outcome {
    use HealthState::{Down, Up};
    let host = Host::start().await?;
    let address = host.balancer().await;
    let check = json!({
        "protocol": "command", "command": ["/bin/sh", "-c", "test ! -e \"$SICK\""], "intervalMs": 200,
        "timeoutMs": 10_000, "unhealthyThreshold": 1,
    });
    let mut spec = host.group("web-v000", 1);
    spec.health_check = Some(serde_json::from_value(check)?);
    host.provider().ensure_server_group(&host.op("ex/1"), &spec).await.expect("made");
    host.up("web-v000", 1).await;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let elsewhere = listener.local_addr()?.port();
    answering(listener, StatusCode::NO_CONTENT);
    // What else the load balancer's check asks for, what it makes of it, and what it has seen.
    let without = "GET /health answered 200 without the expected text";
    let cases = [
        (json!({ "bodyContains": "no", "unhealthyThreshold": u32::MAX }), Up, without),
        (json!({ "bodyContains": "no" }), Down, without),
        (json!({ "bodyContains": "healthy", "healthyThreshold": u32::MAX }), Down, "GET /health answered 200"),
        (json!({ "bodyContains": "healthy" }), Up, "GET /health answered 200"),
        (json!({ "statuses": [204] }), Down, "GET /health answered 200"),
        (json!({ "statuses": [204], "port": elsewhere }), Up, "GET /health answered 204"),
    ];
    for (number, (asked, state, message)) in cases.into_iter().enumerate() {
        let mut check = json!({ "protocol": "http", "path": "/health", "intervalMs": 100, "timeoutMs": 10_000 });
        check.as_object_mut().expect("one").extend(asked.as_object().cloned().expect("one"));
        let mut spec = host.balancer_spec();
        spec.health_check = Some(serde_json::from_value(check)?);
        host.provider().ensure_load_balancer(&host.op(&format!("ex/lb/{number}")), &spec).await.expect("changed");
        let told = |group: &ServerGroup| balancers(group).state == state && balancers(group).message == message;
        let group = host.until("web-v000", &format!("{state:?} by {asked}"), told).await;
        assert_eq!((own(&group).state, only(&group).state), (Up, state), "{asked}");
        let expected = if state == Up { 200 } else { 503 };
        assert_eq!(get(&address, "/").await.expect("an answer").0, expected, "{asked}");
    }
    // Now its own check alone fails.
    let sick = host.path().join("sick");
    std::fs::write(&sick, "")?;
    let group = host.until("web-v000", "sickness", |group| own(group).state == Down).await;
    assert_eq!((balancers(&group).state, only(&group).state), (Up, Down));
    assert_eq!(get(&address, "/").await.expect("an answer").0, 503);
    std::fs::remove_file(&sick)?;
    host.up("web-v000", 1).await;
    assert_eq!(get(&address, "/").await.expect("an answer"), (200, "hello from one".to_owned()));
    host.end().await;
    Ok(())
}

async fn foreign() -> Outcome {
    let host = Host::start().await?;
    let address = host.balancer().await;
    let mut spec = host.group("web-v000", 1);
    spec.launch = host.script("exec sleep 600");
    host.provider().ensure_server_group(&host.op("ex/1"), &spec).await.expect("made");
    let runs = |group: &ServerGroup| group.instances.first().is_some_and(|instance| instance.pid.is_some());
    let port = only(&host.until("web-v000", "a process", runs).await).port.expect("has one");
    answering(TcpListener::bind(("127.0.0.1", port)).await?, StatusCode::OK);
    let answered = |group: &ServerGroup| {
        let platform = only(group).health[0].state;
        (platform, own(group).state, balancers(group).state) == (HealthState::Down, HealthState::Up, HealthState::Up)
    };
    let group = host.until("web-v000", "both checks answered by another", answered).await;
    assert_eq!(only(&group).health[0].message, format!("port {port} is held by a process that is not its own"));
    assert_eq!(only(&group).state, HealthState::Down);
    assert_eq!(get(&address, "/").await.expect("an answer").0, 503);
    host.end().await;
    Ok(())
}

async fn tcp() -> Outcome {
    let host = Host::start().await?;
    host.balancer().await;
    let check = json!({ "protocol": "tcp", "intervalMs": 200, "unhealthyThreshold": 2, "startGraceMs": 0 });
    let mut spec = host.group("web-v000", 1);
    spec.health_check = Some(serde_json::from_value(check)?);
    // Listens from the start until it is told to end, then only runs on.
    spec.launch = host.script("\"$APP\" sample-app --version one; sleep 600");
    host.provider().ensure_server_group(&host.op("ex/1"), &spec).await.expect("made");
    let group = host.up("web-v000", 1).await;
    let port = only(&group).port.expect("has one");
    assert_eq!(own(&group).message, format!("127.0.0.1:{port} accepts connections"));
    let shell = i32::try_from(only(&group).pid.expect("runs")).expect("fits");
    let (server, _) = Stat::all().into_iter().find(|(_, stat)| stat.parent == shell).expect("a child");
    kill(Pid::from_raw(server), Signal::SIGTERM).expect("sent");
    let group = host.until("web-v000", "sickness", |group| own(group).state == HealthState::Down).await;
    assert!(own(&group).message.starts_with(&format!("cannot connect to 127.0.0.1:{port}")), "{:?}", own(&group));
    assert_ne!(only(&group).state, HealthState::Up);
    host.end().await;
    Ok(())
}

const CHECK: &str = r#"#!/bin/sh
case "$(cat "$SICK" 2>/dev/null)" in
    hang) sleep 600 ;;
    fail) exit 4 ;;
    *) test "$VERSION" = one && test -n "$PORT" ;;
esac
"#;

async fn command() -> Outcome {
    let host = Host::start().await?;
    host.balancer().await;
    let program = host.path().join("app/check");
    std::fs::write(&program, CHECK)?;
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755))?;
    let check = json!({
        "protocol": "command", "command": ["./check"], "intervalMs": 200, "timeoutMs": 2000, "unhealthyThreshold": 1,
    });
    let mut spec = host.group("web-v000", 1);
    spec.health_check = Some(serde_json::from_value(check)?);
    host.provider().ensure_server_group(&host.op("ex/1"), &spec).await.expect("made");
    let group = host.up("web-v000", 1).await;
    assert_eq!(own(&group).message, "./check ended with 0");
    let cases = [("fail", "./check: exit status: 4"), ("hang", "the command gave no answer within 2000 ms")];
    for (sickness, message) in cases {
        std::fs::write(host.path().join("sick"), sickness)?;
        let sick = |group: &ServerGroup| own(group).state == HealthState::Down && own(group).message == message;
        let group = host.until("web-v000", message, sick).await;
        assert_eq!(only(&group).state, HealthState::Down);
        std::fs::remove_file(host.path().join("sick"))?;
        host.up("web-v000", 1).await;
    }
    host.end().await;
    Ok(())
}

async fn limits() -> Outcome {
    let host = Host::start().await?;
    host.balancer().await;
    let mut spec = host.group("web-v000", 1);
    let script = "echo files $(ulimit -n); echo memory $(ulimit -v); \
                  group=$(sed -n s/^0:://p /proc/self/cgroup); echo group $(cat /sys/fs/cgroup$group/memory.max); \
                  exec \"$APP\" sample-app --version one";
    spec.launch = host.script(script);
    spec.launch["limits"] = json!({ "openFiles": 300, "memoryBytes": 4_u64 << 30, "cpuMillis": 900 });
    host.provider().ensure_server_group(&host.op("ex/1"), &spec).await.expect("made");
    let group = host.up("web-v000", 1).await;
    let told = group.limits_enforced_by.as_deref().expect("told");
    let log = host.provider().log_tail(&Host::place(), &only(&group).id, 10_000).await.expect("a log");
    // The process that serves is the one that is limited.
    let of_process = std::fs::read_to_string(format!("/proc/{}/limits", only(&group).pid.expect("runs")));
    let of_process = of_process.expect("Linux has it");
    let limit = |name: &str| {
        let line = of_process.lines().find_map(|line| line.strip_prefix(name)).expect("a line for each limit");
        line.split_whitespace().take(2).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(limit("Max open files"), ["300", "300"]);
    assert!(told.starts_with("open files by rlimit") && log.contains("files 300\n"), "{told}\n{log}");
    if told.contains("by cgroup") {
        assert!(log.contains("group 4294967296\n"), "{told}\n{log}");
    } else {
        assert_eq!(limit("Max address space"), ["4294967296", "4294967296"]);
        assert!(told.contains("memory by rlimit") && log.contains("memory 4194304\n"), "{told}\n{log}");
        assert!(
            told.contains("CPU not enforced") && !Path::new("/sys/fs/cgroup/gennaker").join(&only(&group).id).exists()
        );
    }
    let mut free = host.group("web-v001", 1);
    free.launch["limits"] = json!({});
    host.provider().ensure_server_group(&host.op("ex/2"), &free).await.expect("made");
    assert_eq!(host.up("web-v001", 1).await.limits_enforced_by, None);
    host.end().await;
    Ok(())
}

/// Where instances can get a control group: version 2 with the controllers, writable.
fn cgroup() -> Result<(), String> {
    let root = Path::new("/sys/fs/cgroup");
    let controllers = std::fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
    let has = |name: &str| controllers.split_whitespace().any(|controller| controller == name);
    let delegated = std::fs::write(root.join("cgroup.subtree_control"), "+memory +cpu +pids").is_ok();
    if ["memory", "cpu", "pids"].into_iter().all(has) && delegated {
        return Ok(());
    }
    Err("a writable cgroup v2 hierarchy at /sys/fs/cgroup with memory, cpu and pids".to_owned())
}

async fn in_a_cgroup() -> Outcome {
    let host = Host::start().await?;
    host.balancer().await;
    let mut spec = host.group("web-v000", 1);
    spec.launch["limits"] = json!({ "memoryBytes": 512 << 20, "cpuMillis": 900, "processes": 50 });
    host.provider().ensure_server_group(&host.op("ex/1"), &spec).await.expect("made");
    let group = host.up("web-v000", 1).await;
    let told = group.limits_enforced_by.as_deref().expect("told");
    assert_eq!(told, "memory, CPU, processes by cgroup");
    let member = std::fs::read_to_string(format!("/proc/{}/cgroup", only(&group).pid.expect("runs"))).expect("Linux");
    let path = member.lines().find_map(|line| line.strip_prefix("0::/")).expect("a group").to_owned();
    let group = Path::new("/sys/fs/cgroup").join(path);
    let value = |file: &str| std::fs::read_to_string(group.join(file)).expect("readable").trim().to_owned();
    assert_eq!(value("memory.max"), (512_u64 << 20).to_string());
    assert_eq!(value("cpu.max"), "90000 100000");
    assert_eq!(value("pids.max"), "50");

    // They hold: each of these takes more than it may.
    let greedy = |name: &str, script: &str, limits: serde_json::Value| {
        let mut spec = host.group(name, 1);
        (spec.launch, spec.health_check) = (host.script(script), None);
        spec.launch["limits"] = limits;
        spec
    };
    let memory = greedy("hog-v000", "exec tail /dev/zero", json!({ "memoryBytes": 32 << 20 }));
    host.provider().ensure_server_group(&host.op("ex/2"), &memory).await.expect("made");
    let hog = host.until("hog-v000", "its end", |group| group.instances.iter().any(|it| it.last_exit.is_some())).await;
    assert_eq!(only(&hog).last_exit.as_deref(), Some("signal 9: it took more memory than its limit"));
    let processes = "for i in 1 2 3 4 5 6; do sleep 600 & done; echo all; wait";
    let processes = greedy("fork-v000", processes, json!({ "processes": 4 }));
    host.provider().ensure_server_group(&host.op("ex/3"), &processes).await.expect("made");
    let forking = host.until("fork-v000", "a start", |group| !group.instances.is_empty()).await;
    let name = only(&forking).id.clone();
    let log = wait_for("a refusal", Duration::from_secs(30), || async {
        let log = host.provider().log_tail(&Host::place(), &name, 10_000).await.ok()?;
        log.to_lowercase().contains("cannot fork").then_some(log)
    });
    assert!(!log.await?.contains("all"));
    let cpu = greedy("busy-v000", "while :; do :; done", json!({ "cpuMillis": 100 }));
    host.provider().ensure_server_group(&host.op("ex/4"), &cpu).await.expect("made");
    wait_for("a throttled instance", Duration::from_secs(180), || async {
        let pid = host.find("busy-v000").await?.instances.first()?.pid?;
        let member = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let group = Path::new("/sys/fs/cgroup").join(member.lines().find_map(|line| line.strip_prefix("0::/"))?);
        let stat = std::fs::read_to_string(group.join("cpu.stat")).ok()?;
        let throttled = stat.lines().find_map(|line| line.strip_prefix("nr_throttled "))?;
        (throttled.parse::<u64>().ok()? > 2).then_some(())
    })
    .await?;
    host.end().await;
    Ok(())
}

/// Who may start processes of others, and somebody else to be.
pub fn root() -> Result<(), String> {
    let other = nix::unistd::User::from_name("nobody").ok().flatten().is_some();
    if nix::unistd::geteuid().is_root() && other { Ok(()) } else { Err("root, and a user `nobody`".to_owned()) }
}

/// What takes capabilities away.
fn setpriv() -> Result<(), String> {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|directory| directory.join("setpriv").is_file()));
    if found { Ok(()) } else { Err("the command `setpriv` (util-linux)".to_owned()) }
}

async fn bound() -> Outcome {
    // What systemd does with `User=root` beside NoNewPrivileges.
    let host = Host::behind("setpriv --no-new-privs --bounding-set=-setuid").await?;
    host.balancer().await;
    let mut spec = host.group("web-v000", 1);
    spec.launch["runAs"] = json!("nobody");
    let refused = host.provider().ensure_server_group(&host.op("ex/1"), &spec).await.expect_err("not possible");
    assert!(refused.message.contains("runAs nobody") && refused.message.contains("CAP_SETUID"), "{refused}");
    spec.launch["runAs"] = json!("root");
    host.provider().ensure_server_group(&host.op("ex/2"), &spec).await.expect("itself is fine");
    host.up("web-v000", 1).await;
    host.end().await;
    Ok(())
}

async fn run_as() -> Outcome {
    let host = Host::start().await?;
    host.balancer().await;
    let mut spec = host.group("web-v000", 1);
    // Not the sample application: its binary may lie where only root gets to.
    spec.launch = host.script("exec sleep 600");
    spec.launch["runAs"] = json!("nobody");
    spec.launch["limits"] = json!({ "openFiles": 300, "processes": 4_000 });
    host.provider().ensure_server_group(&host.op("ex/1"), &spec).await.expect("made");
    let process = wait_for("the process", Duration::from_secs(30), || async {
        let pid = host.find("web-v000").await?.instances.first()?.pid?;
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        command.starts_with(b"sleep\0").then_some(pid)
    })
    .await?;
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{process}/{file}")).expect("it lives");
    let (status, limits) = (read("status"), read("limits"));
    let field = |name: &str| -> Vec<u32> {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a line for each field");
        line.split_whitespace().map(|number| number.parse().expect("a number")).collect()
    };
    let nobody = nix::unistd::User::from_name("nobody")?.expect("checked before");
    let (uid, gid) = (nobody.uid.as_raw(), nobody.gid.as_raw());
    // Real, effective, saved and of the file system.
    assert_eq!((field("Uid:"), field("Gid:")), (vec![uid; 4], vec![gid; 4]));
    let id = std::process::Command::new("id").args(["-G", "nobody"]).output()?;
    let mut own: Vec<u32> =
        String::from_utf8(id.stdout)?.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    own.sort_unstable();
    let mut groups = field("Groups:");
    groups.sort_unstable();
    assert_eq!(groups, own, "the user's groups, and none of the host's own");
    let line = limits.lines().find(|line| line.starts_with("Max processes")).expect("a line for each limit");
    let told = host.find("web-v000").await.and_then(|group| group.limits_enforced_by).expect("told");
    let by_rlimit = told.contains("processes by rlimit") && line.contains("4000");
    assert!(by_rlimit || told.contains("processes by cgroup"), "{told}\n{line}");
    host.end().await;
    Ok(())
}
