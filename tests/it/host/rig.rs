//! A host of real processes in a directory of its own, driven through the provider as the server
//! drives it; the sample application is what it runs. All that was started is ended with it.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use gennaker::clock::Clock;
use gennaker::model::{Instance, LoadBalancerSpec, Place, SecurityGroupSpec, ServerGroup, ServerGroupSpec};
use gennaker::providers::host::client::{HostProvider, Options};
use gennaker::providers::host::daemon::PortRange;
use gennaker::providers::host::daemon::identity::Stat;
use gennaker::providers::host::protocol::{Status, StopHost};
use gennaker::providers::{Operation, Provider};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{Ports, gennaker, processes_of};

/// Gone when dropped.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A running host with ten ports for instances.
pub struct Host {
    connected: Option<HostProvider>,
    clock: Clock,
    ports: Ports,
    max_instances: usize,
    /// What starts the host.
    binary: PathBuf,
    scratch: Scratch,
}

impl Host {
    /// Starts one, with an empty directory `app` to run things in.
    pub async fn start() -> anyhow::Result<Self> {
        Self::with_room_for(500).await
    }

    pub async fn with_room_for(max_instances: usize) -> anyhow::Result<Self> {
        Self::start_by(None, max_instances).await
    }

    /// Starts one by a command line that ends with that of the binary.
    pub async fn behind(command: &str) -> anyhow::Result<Self> {
        Self::start_by(Some(command), 500).await
    }

    async fn start_by(command: Option<&str>, max_instances: usize) -> anyhow::Result<Self> {
        let name = format!("gennaker-it-{}", &uuid::Uuid::new_v4().simple().to_string()[..12]);
        let scratch = Scratch(std::env::temp_dir().canonicalize()?.join(name));
        std::fs::create_dir_all(scratch.0.join("app"))?;
        let binary = match command {
            None => gennaker().to_owned(),
            Some(command) => {
                use std::os::unix::fs::PermissionsExt as _;
                let script = scratch.0.join("start");
                std::fs::write(&script, format!("#!/bin/sh\nexec {command} {} \"$@\"\n", gennaker().display()))?;
                std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o700))?;
                script
            }
        };
        let (clock, ports) = (Clock::system(), Ports::take()?);
        let mut host = Self { connected: None, clock, ports, max_instances, binary, scratch };
        host.connected = Some(HostProvider::connect(host.options()).await?);
        Ok(host)
    }

    pub fn path(&self) -> &Path {
        &self.scratch.0
    }

    pub fn provider(&self) -> &HostProvider {
        self.connected.as_ref().expect("until the end")
    }

    pub fn options(&self) -> Options {
        let ports = PortRange::from_str(&self.ports.instances()).expect("a range");
        Options {
            binary: self.binary.clone(),
            artifact_roots: vec![self.path().to_path_buf()],
            ports: PortRange { last: ports.first + 9, ..ports },
            max_instances: self.max_instances,
            ..Options::new(&self.path().join("host")).expect("options")
        }
    }

    pub fn op(&self, key: &str) -> Operation {
        Operation { key: key.to_owned(), fence: 1, deadline: self.clock.now() + Duration::from_secs(60) }
    }

    pub fn place() -> Place {
        Place { account: "local".to_owned(), location: "local".to_owned() }
    }

    /// How to run a command below the directory `app`. `$APP` is the binary with the sample application.
    pub fn launch(&self, command: &[&str]) -> Value {
        json!({
            "artifact": { "path": self.path().join("app") },
            "command": command,
            "environment": { "APP": gennaker(), "VERSION": "one", "SICK": self.path().join("sick") },
            "stop": { "graceSeconds": 5 }
        })
    }

    /// The same for a script.
    pub fn script(&self, script: &str) -> Value {
        self.launch(&["/bin/sh", "-c", script])
    }

    pub fn group(&self, name: &str, count: u32) -> ServerGroupSpec {
        serde_json::from_value(json!({
            "account": "local", "location": "local", "name": name,
            "capacity": { "min": 0, "desired": count, "max": 10 },
            "enabled": true, "loadBalancers": ["web"],
            "healthCheck": { "protocol": "http", "path": "/health", "intervalMs": 200, "unhealthyThreshold": 2 },
            "launch": self.launch(&[&gennaker().to_string_lossy(), "sample-app", "--version", "one"]),
        }))
        .expect("a spec")
    }

    /// Who is on this machine may enter.
    pub fn open() -> SecurityGroupSpec {
        serde_json::from_value(json!({
            "account": "local", "location": "local", "name": "open",
            "inbound": [{ "cidr": "127.0.0.0/8", "portFrom": 1, "portTo": 65535 }],
        }))
        .expect("a spec")
    }

    pub fn balancer_spec(&self) -> LoadBalancerSpec {
        let (first, last) = self.ports.load_balancers();
        serde_json::from_value(json!({
            "account": "local", "location": "local", "name": "web",
            "listeners": [{ "port": first, "portTo": last }],
            "healthCheck": { "protocol": "http", "path": "/health", "intervalMs": 200 },
            "securityGroups": ["open"], "drainSeconds": 5,
        }))
        .expect("a spec")
    }

    /// A load balancer that anybody on this machine may enter; its address.
    pub async fn balancer(&self) -> String {
        self.provider().ensure_security_group(&self.op("ex/sg"), &Self::open()).await.expect("made");
        let spec = self.balancer_spec();
        let balancer = self.provider().ensure_load_balancer(&self.op("ex/lb"), &spec).await.expect("made");
        balancer.bound[0].clone()
    }

    pub async fn find(&self, name: &str) -> Option<ServerGroup> {
        let snapshot = self.provider().snapshot().await.expect("a snapshot");
        snapshot.server_groups.into_iter().find(|group| group.spec.name == name)
    }

    /// Waits until a group is as wanted.
    pub async fn until(&self, name: &str, what: &str, wanted: impl Fn(&ServerGroup) -> bool) -> ServerGroup {
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

    pub async fn up(&self, name: &str, count: usize) -> ServerGroup {
        self.until(name, "health", |group| group.healthy() == count && group.instances.len() == count).await
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path().join("host/host.log")).unwrap_or_default()
    }

    pub async fn status(&self) -> Status {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            match self.provider().control().status().await {
                Ok(status) => return status,
                Err(error) => assert!(Instant::now() < deadline, "no status: {error}\n{}", self.log()),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn another_worker(&self, than: u32) -> u32 {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let status = self.status().await;
            if status.pid != than {
                return status.pid;
            }
            assert!(Instant::now() < deadline, "no other worker came");
        }
    }

    pub async fn end(mut self) {
        let control = self.provider().control().clone();
        // A provider that is still there would start another host.
        self.connected = None;
        control.stop(StopHost { instances: true }, Duration::from_secs(30)).await.expect("stops");
    }
}

impl Drop for Host {
    /// Also when the trial failed: nothing is left running.
    fn drop(&mut self) {
        self.connected = None;
        let directory = self.path().join("host");
        let _ = std::process::Command::new(gennaker())
            .args(["host", "stop", "--instances", "--dir"])
            .arg(directory)
            .output();
        for (pid, _) in processes_of(self.path()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// Waits until so many connections to the group's instances are open, three looks in a row: requests
/// that are under way, where nothing else is sent.
pub async fn under_way(group: &ServerGroup, count: usize) {
    let ports: Vec<u16> = group.instances.iter().filter_map(|instance| instance.port).collect();
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut in_a_row = 0;
    while in_a_row < 3 {
        let open = sockets(ESTABLISHED).into_iter().filter(|socket| ports.contains(&socket.to)).count();
        in_a_row = if open >= count { in_a_row + 1 } else { 0 };
        assert!(Instant::now() < deadline, "{open} requests are under way, not {count}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until the process has the socket that listens there.
pub async fn holds_socket(pid: u32, address: &str) {
    let port: u16 = address.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let inodes: Vec<String> = sockets(LISTENING)
            .into_iter()
            .filter(|socket| socket.from == port)
            .map(|socket| format!("socket:[{}]", socket.inode))
            .collect();
        let files = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let targets = files.filter_map(|file| std::fs::read_link(file.path()).ok());
        if targets.into_iter().any(|target| inodes.iter().any(|inode| target.as_os_str() == inode.as_str())) {
            return;
        }
        assert!(Instant::now() < deadline, "process {pid} does not hold the socket of {address}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

struct Socket {
    from: u16,
    to: u16,
    inode: String,
}

const ESTABLISHED: &str = "01";
const LISTENING: &str = "0A";

/// The machine's TCP sockets over IPv4 in that state.
fn sockets(state: &str) -> Vec<Socket> {
    let text = std::fs::read_to_string("/proc/net/tcp").expect("Linux has it");
    let port = |address: &str| u16::from_str_radix(address.rsplit(':').next()?, 16).ok();
    let socket = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let inode = (*fields.get(9)?).to_owned();
        (fields[3] == state).then_some(Socket { from: port(fields[1])?, to: port(fields[2])?, inode })
    };
    text.lines().skip(1).filter_map(socket).collect()
}

pub fn kill_now(pid: u32) {
    kill(Pid::from_raw(i32::try_from(pid).expect("fits")), Signal::SIGKILL).expect("killed");
}

pub fn lives(pid: u32) -> bool {
    Stat::of(i32::try_from(pid).expect("fits")).is_some_and(|stat| !stat.ended)
}

pub async fn gone(pid: u32) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while lives(pid) {
        assert!(Instant::now() < deadline, "process {pid} lives on");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// GET over a new connection; status and body.
pub async fn get(address: &str, path: &str) -> std::io::Result<(u16, String)> {
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
pub struct Load {
    stop: Arc<AtomicBool>,
    good: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<Vec<String>>,
}

impl Load {
    pub fn start(address: &str) -> Self {
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
    pub async fn goes_on(&self) {
        let wanted = self.good.load(Ordering::SeqCst) + 10;
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.good.load(Ordering::SeqCst) < wanted {
            assert!(Instant::now() < deadline, "requests are answered no more");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub async fn end(self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::SeqCst);
        let bad = self.task.await.expect("the load runs to its end");
        (self.good.load(Ordering::SeqCst), bad)
    }
}

pub fn pids(group: &ServerGroup) -> Vec<u32> {
    group.instances.iter().filter_map(|instance| instance.pid).collect()
}

pub fn only(group: &ServerGroup) -> &Instance {
    assert_eq!(group.instances.len(), 1);
    &group.instances[0]
}
