//! A whole host of real processes, driven through the provider as the server drives it. Needs the
//! `gennaker` binary beside the test's own and `python3`; says so and does nothing without them.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::PortRange;
use super::files::scratch::Scratch;
use super::identity::{Identity, Stat};
use crate::clock::Clock;
use crate::model::{
    Capacity, HealthState, Instance, LoadBalancerSpec, Place, SecurityGroupSpec, ServerGroup, ServerGroupSpec,
};
use crate::providers::host::client::{HostProvider, Options};
use crate::providers::host::protocol::{StopHost, Upgrade};
use crate::providers::{ErrorKind, Operation, Provider};

const SERVER: &str = r#"
import http.server, os, sys, time
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        sick = os.path.exists(os.environ.get("SICK", "/nowhere"))
        if self.path == "/slow":
            time.sleep(1)
        body = (os.environ.get("VERSION", "?") + "\n").encode()
        self.send_response(503 if sick and self.path == "/health" else 200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        pass
class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
print("started", os.getpid(), flush=True)
Server(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"#;

/// The binary that this test's library belongs to.
fn program() -> Option<PathBuf> {
    let here = std::env::current_exe().ok()?;
    let program = here.parent()?.parent()?.join("gennaker");
    let python = std::process::Command::new("python3").arg("--version").output();
    if !program.is_file() || !python.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: needs {} (cargo build) and python3", program.display());
        return None;
    }
    Some(program)
}

struct Host {
    scratch: Scratch,
    program: PathBuf,
    connected: Option<HostProvider>,
    clock: Clock,
}

impl Host {
    async fn start() -> Option<Self> {
        let program = program()?;
        let scratch = Scratch::new();
        std::fs::create_dir(scratch.path().join("app")).expect("made");
        std::fs::write(scratch.path().join("app/server.py"), SERVER).expect("written");
        let provider = HostProvider::connect(Self::options(&scratch, &program)).await.expect("a host starts");
        Some(Self { scratch, program, connected: Some(provider), clock: Clock::system() })
    }

    fn provider(&self) -> &HostProvider {
        self.connected.as_ref().expect("until the end")
    }

    fn options(scratch: &Scratch, program: &std::path::Path) -> Options {
        // Each test has ports of its own, so that they do not race for the same ones.
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let slice = u16::try_from(NEXT.fetch_add(1, Ordering::SeqCst) % 40).expect("small");
        let first = 20_000 + (std::process::id() % 20) as u16 * 400 + slice * 10;
        Options {
            directory: scratch.path().join("host"),
            binary: program.to_path_buf(),
            account: "local".to_owned(),
            location: "local".to_owned(),
            artifact_roots: vec![scratch.path().to_path_buf()],
            secret_roots: Vec::new(),
            ports: PortRange { first, last: first + 9 },
        }
    }

    fn op(&self, key: &str) -> Operation {
        Operation { key: key.to_owned(), fence: 1, deadline: self.clock.now() + Duration::from_secs(60) }
    }

    fn place() -> Place {
        Place { account: "local".to_owned(), location: "local".to_owned() }
    }

    fn launch(&self, command: &[&str]) -> Value {
        json!({
            "artifact": { "path": self.scratch.path().join("app") },
            "command": command,
            "environment": { "VERSION": "one", "SICK": self.scratch.path().join("sick") },
            "stop": { "graceSeconds": 5 }
        })
    }

    fn group(&self, name: &str, count: u32) -> ServerGroupSpec {
        serde_json::from_value(json!({
            "account": "local", "location": "local", "name": name,
            "capacity": { "min": 0, "desired": count, "max": 10 },
            "enabled": true, "loadBalancers": ["web"],
            "healthCheck": { "protocol": "http", "path": "/health", "intervalMs": 200, "unhealthyThreshold": 2 },
            "launch": self.launch(&["python3", "-u", "./server.py"]),
        }))
        .expect("a spec")
    }

    /// A load balancer that anybody on this machine may enter; its address.
    async fn balancer(&self) -> String {
        let open: SecurityGroupSpec = serde_json::from_value(json!({
            "account": "local", "location": "local", "name": "open",
            "inbound": [{ "cidr": "127.0.0.0/8", "portFrom": 1, "portTo": 65535 }],
        }))
        .expect("a spec");
        self.provider().ensure_security_group(&self.op("ex/sg"), &open).await.expect("made");
        let spec: LoadBalancerSpec = serde_json::from_value(json!({
            "account": "local", "location": "local", "name": "web",
            "listeners": [{ "port": 18_000, "portTo": 18_999 }],
            "healthCheck": { "protocol": "http", "path": "/health", "intervalMs": 200 },
            "securityGroups": ["open"], "drainSeconds": 5,
        }))
        .expect("a spec");
        let balancer = self.provider().ensure_load_balancer(&self.op("ex/lb"), &spec).await.expect("made");
        balancer.bound[0].clone()
    }

    async fn find(&self, name: &str) -> Option<ServerGroup> {
        let snapshot = self.provider().snapshot().await.expect("a snapshot");
        snapshot.server_groups.into_iter().find(|group| group.spec.name == name)
    }

    /// Waits until a group is as wanted.
    async fn until(&self, name: &str, what: &str, wanted: impl Fn(&ServerGroup) -> bool) -> ServerGroup {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let group = self.find(name).await;
            if let Some(group) = &group
                && wanted(group)
            {
                return group.clone();
            }
            assert!(Instant::now() < deadline, "{what} did not come about: {group:#?}\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn up(&self, name: &str, count: usize) -> ServerGroup {
        self.until(name, "health", |group| group.healthy() == count && group.instances.len() == count).await
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.scratch.path().join("host/host.log")).unwrap_or_default()
    }

    async fn status(&self) -> crate::providers::host::protocol::Status {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            match self.provider().control().status().await {
                Ok(status) => return status,
                Err(error) => assert!(Instant::now() < deadline, "no status: {error}\n{}", self.log()),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn another_worker(&self, than: u32) -> u32 {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let status = self.status().await;
            if status.pid != than {
                return status.pid;
            }
            assert!(Instant::now() < deadline, "no other worker came");
        }
    }

    async fn end(mut self) {
        let control = self.provider().control().clone();
        // A provider that is still there would start another host.
        self.connected = None;
        control.stop(StopHost { instances: true }, Duration::from_secs(30)).await.expect("stops");
    }
}

impl Drop for Host {
    /// Also when the test failed: nothing is left running.
    fn drop(&mut self) {
        self.connected = None;
        let directory = self.scratch.path().join("host");
        let _ = std::process::Command::new(&self.program)
            .args(["host", "stop", "--instances", "--dir"])
            .arg(directory)
            .output();
    }
}

fn kill_now(pid: u32) {
    kill(Pid::from_raw(i32::try_from(pid).expect("fits")), Signal::SIGKILL).expect("killed");
}

fn lives(pid: u32) -> bool {
    Stat::of(i32::try_from(pid).expect("fits")).is_some_and(|stat| !stat.ended)
}

async fn gone(pid: u32) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while lives(pid) {
        assert!(Instant::now() < deadline, "process {pid} lives on");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// GET over a new connection; status and body.
async fn get(address: &str, path: &str) -> std::io::Result<(u16, String)> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes()).await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.ok_or_else(|| std::io::Error::other("closed without an answer"))?;
        Ok((status, text.rsplit("\r\n").next().unwrap_or_default().trim().to_owned()))
    };
    tokio::time::timeout(Duration::from_secs(20), exchange).await.map_err(std::io::Error::other)?
}

/// A steady load over new connections until stopped.
struct Load {
    stop: Arc<AtomicBool>,
    good: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<Vec<String>>,
}

impl Load {
    fn start(address: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let good = Arc::new(AtomicUsize::new(0));
        let (stopped, counted, address) = (Arc::clone(&stop), Arc::clone(&good), address.to_owned());
        let task = tokio::spawn(async move {
            let mut bad = Vec::new();
            while !stopped.load(Ordering::SeqCst) {
                match get(&address, "/").await {
                    Ok((200, _)) => drop(counted.fetch_add(1, Ordering::SeqCst)),
                    other => bad.push(format!("{other:?}")),
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            bad
        });
        Self { stop, good, task }
    }

    /// Until ten more requests were answered.
    async fn goes_on(&self) {
        let wanted = self.good.load(Ordering::SeqCst) + 10;
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.good.load(Ordering::SeqCst) < wanted {
            assert!(Instant::now() < deadline, "requests are answered no more");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn end(self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::SeqCst);
        let bad = self.task.await.expect("the load runs to its end");
        (self.good.load(Ordering::SeqCst), bad)
    }
}

fn pids(group: &ServerGroup) -> Vec<u32> {
    group.instances.iter().filter_map(|instance| instance.pid).collect()
}

fn only(group: &ServerGroup) -> &Instance {
    assert_eq!(group.instances.len(), 1);
    &group.instances[0]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_comes_up_takes_traffic_leaves_it_and_goes() {
    let Some(host) = Host::start().await else { return };
    let address = host.balancer().await;
    assert_eq!(get(&address, "/").await.expect("an answer").0, 503, "nobody is there yet");
    let made = host.provider().ensure_server_group(&host.op("ex/1"), &host.group("web-v000", 2)).await.expect("made");
    assert!(made.spec.enabled);
    let group = host.up("web-v000", 2).await;
    assert_eq!(get(&address, "/").await.expect("an answer"), (200, "one".to_owned()));
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
    assert!(host.find("web-v000").await.is_none());
    for pid in pids(&group) {
        assert!(!lives(pid), "process {pid} was left");
    }
    let left = super::files::names(&host.scratch.path().join("host/groups")).expect("listed");
    assert!(left.is_empty(), "{left:?}");
    let artifacts = super::files::names(&host.scratch.path().join("host/artifacts")).expect("listed");
    assert!(artifacts.is_empty(), "{artifacts:?}");
    host.provider()
        .ensure_server_group_destroyed(&host.op("ex/6"), &Host::place(), "web-v000")
        .await
        .expect("absent is fine");
    host.provider().ensure_load_balancer_deleted(&host.op("ex/7"), &Host::place(), "web").await.expect("free now");
    assert!(get(&address, "/").await.is_err(), "nobody listens any more");
    host.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_refuses_no_connection_and_stops_no_instance() {
    let Some(host) = Host::start().await else { return };
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
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_drops_no_request() {
    let Some(host) = Host::start().await else { return };
    let address = host.balancer().await;
    host.provider().ensure_server_group(&host.op("ex/1"), &host.group("web-v000", 2)).await.expect("made");
    let before = pids(&host.up("web-v000", 2).await);
    let load = Load::start(&address);
    let slow = tokio::spawn({
        let address = address.clone();
        async move { get(&address, "/slow").await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    let old = host.status().await.pid;
    let binary = Some(host.program.clone());
    let status =
        host.provider().control().upgrade(Upgrade { binary }, Duration::from_secs(20)).await.expect("upgraded");
    assert_ne!(status.pid, old);
    assert_eq!(slow.await.expect("ran").expect("answered by the old worker").0, 200);
    assert_eq!(pids(&host.up("web-v000", 2).await), before);
    gone(old).await;
    let (good, bad) = load.end().await;
    assert!(good > 10 && bad.is_empty(), "{good} good, {bad:?}");
    host.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_keeper_is_replaced_and_sockets_are_still_held() {
    let Some(host) = Host::start().await else { return };
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
    let second = HostProvider::connect(Host::options(&host.scratch, &host.program)).await.expect("the same host");
    assert_eq!(second.control().status().await.expect("answers").pid, before.pid);
    // The new keeper may still be taking the sockets.
    tokio::time::sleep(Duration::from_millis(300)).await;
    kill_now(before.pid);
    host.another_worker(before.pid).await;
    load.goes_on().await;
    let (good, bad) = load.end().await;
    assert!(good > 10 && bad.len() <= 1 && !bad.iter().any(|error| error.contains("refused")), "{bad:?}");
    host.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ends_while_the_host_is_gone_is_seen_with_every_line() {
    let Some(host) = Host::start().await else { return };
    host.balancer().await;
    let mut spec = host.group("web-v000", 1);
    spec.launch = host.launch(&[
        "/bin/sh",
        "-c",
        "trap 'echo last words; exit 7' USR1; python3 -u ./server.py & while :; do wait; done",
    ]);
    host.provider().ensure_server_group(&host.op("ex/1"), &spec).await.expect("made");
    let group = host.up("web-v000", 1).await;
    let instance = only(&group).clone();
    let pid = instance.pid.expect("runs");
    let python = Stat::all().into_iter().find(|(_, stat)| i64::from(stat.parent) == i64::from(pid)).expect("a child").0;
    let child = Identity::of(python).expect("runs");
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
    assert_eq!(lines, ["started", "last", "started"], "{log}");
    host.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_an_instance_started_is_left_over() {
    let Some(host) = Host::start().await else { return };
    host.balancer().await;
    let mut spec = host.group("web-v000", 1);
    // A grandchild in a session of its own, deaf to the stop signal.
    let script = "setsid sh -c 'trap \"\" TERM; echo daemon $$; exec sleep 600' & exec python3 -u ./server.py";
    spec.launch = host.launch(&["/bin/sh", "-c", script]);
    host.provider().ensure_server_group(&host.op("ex/1"), &spec).await.expect("made");
    let group = host.up("web-v000", 1).await;
    let log = host.provider().log_tail(&Host::place(), &only(&group).id, 10_000).await.expect("a log");
    let daemon = log.lines().find_map(|line| line.strip_prefix("daemon ")).expect("it said its number");
    let daemon: u32 = daemon.trim().parse().expect("a number");
    assert!(lives(daemon));
    host.provider().ensure_server_group_destroyed(&host.op("ex/2"), &Host::place(), "web-v000").await.expect("gone");
    assert!(!lives(daemon), "the daemon was left");
    host.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crashing_instance_is_started_again_and_its_exit_is_told() {
    let Some(host) = Host::start().await else { return };
    host.balancer().await;
    let mut spec = host.group("web-v000", 1);
    spec.launch = host.launch(&["/bin/sh", "-c", "echo no; exit 3"]);
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
    host.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_source_says_what_is_wrong() {
    let Some(host) = Host::start().await else { return };
    host.balancer().await;
    host.provider().ensure_server_group(&host.op("ex/1"), &host.group("web-v000", 1)).await.expect("made");
    host.up("web-v000", 1).await;
    std::fs::write(host.scratch.path().join("sick"), "").expect("written");
    let group = host.until("web-v000", "sickness", |group| only(group).state == HealthState::Down).await;
    let messages: Vec<&str> = only(&group).health.iter().map(|health| health.message.as_str()).collect();
    assert!(messages[0].starts_with("listens on port"), "{messages:?}");
    assert_eq!(messages[1], "GET /health answered 503");
    std::fs::remove_file(host.scratch.path().join("sick")).expect("removed");
    host.up("web-v000", 1).await;
    // A descendant that listens in a session of its own is still the instance's.
    let mut spec = host.group("web-v001", 1);
    let script = "setsid python3 -u ./server.py & trap '' CHLD; sleep 600";
    spec.launch = host.launch(&["/bin/sh", "-c", script]);
    host.provider().ensure_server_group(&host.op("ex/2"), &spec).await.expect("made");
    host.up("web-v001", 1).await;
    host.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_smaller_group_drops_no_request() {
    let Some(host) = Host::start().await else { return };
    let address = host.balancer().await;
    host.provider().ensure_server_group(&host.op("ex/1"), &host.group("web-v000", 3)).await.expect("made");
    host.up("web-v000", 3).await;
    let load = Load::start(&address);
    let slow: Vec<_> = (0..6)
        .map(|_| {
            let address = address.clone();
            tokio::spawn(async move { get(&address, "/slow").await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let capacity = Capacity::pinned(1);
    host.provider().ensure_capacity(&host.op("ex/2"), &Host::place(), "web-v000", capacity).await.expect("done");
    host.up("web-v000", 1).await;
    for slow in slow {
        assert_eq!(slow.await.expect("ran").expect("answered").0, 200);
    }
    let (good, bad) = load.end().await;
    assert!(good > 10 && bad.is_empty(), "{good} good, {bad:?}");
    host.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_found_again_refused_or_fenced_as_they_should() {
    let Some(host) = Host::start().await else { return };
    host.balancer().await;
    let spec = host.group("web-v000", 1);
    let first = host.provider().ensure_server_group(&host.op("ex_a/s/1/create"), &spec).await.expect("made");
    let again = host.provider().ensure_server_group(&host.op("ex_a/s/1/create"), &spec).await.expect("found");
    assert_eq!(again.created_at, first.created_at);
    let other = host.provider().ensure_server_group(&host.op("ex_b/s/1/create"), &spec).await.expect_err("taken");
    assert_eq!(other.kind, ErrorKind::Conflict);
    let newer = Operation { fence: 5, ..host.op("ex_a/s/1/enable") };
    host.provider().ensure_enabled(&newer, &Host::place(), "web-v000", true).await.expect("done");
    let late = host.op("ex_a/s/1/disable");
    let refused = host.provider().ensure_enabled(&late, &Host::place(), "web-v000", false).await.expect_err("late");
    assert_eq!(refused.kind, ErrorKind::Fenced);
    assert!(host.find("web-v000").await.expect("there").spec.enabled);

    let mut missing = host.group("web-v001", 1);
    missing.launch["artifact"] = json!({ "path": host.scratch.path().join("none") });
    let error = host.provider().ensure_server_group(&host.op("ex/1"), &missing).await.expect_err("no artifact");
    assert_eq!(error.kind, ErrorKind::NotFound);
    assert!(host.find("web-v001").await.is_none());
    let mut unknown = host.group("web-v001", 1);
    unknown.load_balancers = vec!["nope".to_owned()];
    let error = host.provider().ensure_server_group(&host.op("ex/2"), &unknown).await.expect_err("no load balancer");
    assert!(error.message.contains("known: web"), "{error}");
    let many =
        host.provider().ensure_capacity(&host.op("ex/3"), &Host::place(), "web-v000", Capacity::pinned(11)).await;
    assert_eq!(many.expect_err("ten ports only").kind, ErrorKind::Exhausted);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    let port = taken.local_addr().expect("one").port();
    let spec: LoadBalancerSpec = serde_json::from_value(json!({
        "account": "local", "location": "local", "name": "other", "listeners": [{ "port": port }],
    }))
    .expect("a spec");
    let error = host.provider().ensure_load_balancer(&host.op("ex/4"), &spec).await.expect_err("taken");
    assert!(error.message.contains(&format!("127.0.0.1 port {port}")), "{error}");
    host.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_outlive_a_stopped_host_and_come_back_with_it() {
    let Some(host) = Host::start().await else { return };
    let address = host.balancer().await;
    host.provider().ensure_server_group(&host.op("ex/1"), &host.group("web-v000", 2)).await.expect("made");
    let before = pids(&host.up("web-v000", 2).await);
    let directory = host.scratch.path().join("host");
    let second =
        std::process::Command::new(&host.program).args(["host", "--dir"]).arg(&directory).output().expect("ran");
    assert!(!second.status.success() && String::from_utf8_lossy(&second.stderr).contains("a host runs on"));
    let stopped = std::process::Command::new(&host.program).args(["host", "stop", "--dir"]).arg(&directory).output();
    assert!(stopped.expect("ran").status.success());
    assert!(before.iter().all(|pid| lives(*pid)));
    let again = HostProvider::connect(Host::options(&host.scratch, &host.program)).await.expect("starts again");
    drop(again);
    assert_eq!(pids(&host.up("web-v000", 2).await), before);
    assert_eq!(get(&address, "/").await.expect("the same address").0, 200);
    host.end().await;
}
