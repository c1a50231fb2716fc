//! From the start of the process to its first answer over GraphQL, with an empty database and with
//! one that holds 100,000 executions, and what server and host hold in memory when idle.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use gennaker::store::{Commit, Durability, Options, Store, Write};

use crate::engine::{Dir, example_execution, tempdir};
use crate::figures::{head, line, ms};

const EXECUTIONS: usize = 100_000;
const BAR: Duration = Duration::from_millis(300);

pub async fn run() {
    head("start: process start to the first GraphQL answer; memory when idle");
    let empty = tempdir("empty");
    report("with an empty database, first start", &serve(&empty).await);
    let again = serve(&empty).await;
    report("with an empty database, again", &again);
    let full = tempdir("full");
    fill(&full.0).await;
    // The first start on it makes the host's directory; the second is what users see every day.
    serve(&full).await;
    let loaded = serve(&full).await;
    report(&format!("with {EXECUTIONS} executions"), &loaded);
    let (server, host) = (&loaded.server, &loaded.host);
    let sum = server.pss_kib + host.pss_kib;
    line(
        &format!("memory, server {} KiB + host {} KiB (Pss: each page once)", server.pss_kib, host.pss_kib),
        &format!("{:.1} MB", f64::from(sum) / 1024.0),
        "< 40 MB",
        sum < 40 * 1024,
    );
    println!(
        "    of it of its own (not pages of the binary): {:.1} MB; sum of resident sizes, the binary counted thrice: {:.1} MB",
        f64::from(server.anonymous_kib + host.anonymous_kib) / 1024.0,
        f64::from(server.rss_kib + host.rss_kib) / 1024.0,
    );
}

fn report(what: &str, seen: &Seen) {
    line(what, &ms(seen.first_answer), &format!("< {}", ms(BAR)), seen.first_answer < BAR);
}

struct Seen {
    first_answer: Duration,
    server: Memory,
    host: Memory,
}

/// What a process, or several, hold.
#[derive(Default)]
struct Memory {
    /// A page that several processes share is divided among them, so that sums are right.
    pss_kib: u32,
    rss_kib: u32,
    anonymous_kib: u32,
}

/// Starts the server on the directory, asks one question, waits until it is idle and stops it.
async fn serve(dir: &Dir) -> Seen {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let begun = Instant::now();
    let mut server = Command::new(env!("CARGO_BIN_EXE_gennaker"))
        .args(["serve", "--listen", "127.0.0.1:0", "--port-range", "29000-29099", "--data-dir"])
        .arg(&dir.0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary is built");
    let said = Said::read(&mut server);
    let listening = begun.elapsed();
    // The first start prints a token; later ones get another, beside the clock.
    let token = said.token.unwrap_or_else(|| new_token(dir));
    let begun = Instant::now();
    let url = said.url;
    let client = reqwest::Client::new();
    let answer = client
        .post(format!("{url}/graphql"))
        .bearer_auth(&token)
        .json(&serde_json::json!({ "query": "{ applications(first: 1) { totalCount } }" }))
        .send()
        .await
        .expect("the server answers");
    let answer: serde_json::Value = answer.json().await.expect("JSON");
    let first_answer = listening + begun.elapsed();
    assert!(answer["data"]["applications"]["totalCount"].is_number(), "{answer}");
    tokio::time::sleep(Duration::from_secs(3)).await;
    let memory = Memory::default().plus(server.id());
    let host = hosts(&dir.0).into_iter().fold(Memory::default(), Memory::plus);
    let _ = nix::sys::signal::kill(pid(server.id()), nix::sys::signal::Signal::SIGTERM);
    let _ = server.wait();
    let _ = Command::new(env!("CARGO_BIN_EXE_gennaker"))
        .args(["host", "stop", "--instances", "--dir"])
        .arg(dir.0.join("host"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    Seen { first_answer, server: memory, host }
}

fn pid(id: u32) -> nix::unistd::Pid {
    nix::unistd::Pid::from_raw(i32::try_from(id).expect("a process id"))
}

/// What the server says when it listens.
struct Said {
    url: String,
    /// Only at the first start.
    token: Option<String>,
}

impl Said {
    fn read(server: &mut Child) -> Self {
        let out = server.stdout.take().expect("piped");
        let mut lines = BufReader::new(out).lines().map_while(Result::ok);
        let url = lines
            .by_ref()
            .find_map(|line| line.split_whitespace().find(|word| word.starts_with("http://")).map(str::to_owned))
            .expect("the server says where it listens");
        let token = lines
            .by_ref()
            .find_map(|line| line.split_once("#token=").map(|(_, token)| token.trim().to_owned()))
            .filter(|token| token.starts_with("gnk_"));
        // What it says later must not block it.
        std::thread::spawn(move || lines.for_each(drop));
        Self { url, token }
    }
}

fn new_token(dir: &Dir) -> String {
    let made = Command::new(env!("CARGO_BIN_EXE_gennaker"))
        .args(["token", "create", "--principal", "bench", "--role", "viewer", "--data-dir"])
        .arg(&dir.0)
        .output()
        .expect("the binary is built");
    String::from_utf8_lossy(&made.stdout)
        .split_whitespace()
        .find(|word| word.starts_with("gnk_"))
        .expect("a token is printed")
        .to_owned()
}

/// Processes whose command line names the directory's host.
fn hosts(dir: &Path) -> Vec<u32> {
    let wanted = dir.join("host").display().to_string();
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid: &u32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            line.contains(" host ") && line.contains(&wanted)
        })
        .collect()
}

impl Memory {
    fn plus(self, pid: u32) -> Self {
        let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("a process of ours");
        let kib = |name: &str| -> u32 {
            let line = rollup.lines().find_map(|line| line.strip_prefix(name)).expect("the kernel says it");
            line.split_whitespace().next().and_then(|number| number.parse().ok()).expect("a number")
        };
        Self {
            pss_kib: self.pss_kib + kib("Pss:"),
            rss_kib: self.rss_kib + kib("Rss:"),
            anonymous_kib: self.anonymous_kib + kib("Anonymous:"),
        }
    }
}

/// Finished executions with three stages each, many to a commit.
async fn fill(dir: &Path) {
    let clock = gennaker::clock::Clock::system();
    let options =
        Options { database_url: None, data_dir: dir.to_owned(), durability: Durability::Normal, queue_max: 4096 };
    let store = Store::open(&options, clock.clone()).await.expect("a new database opens");
    let application = crate::engine::example_application(clock.now());
    let commit = Commit { writes: vec![Write::InsertApplication(application.clone())], ..Commit::default() };
    store.commit(commit).await.expect("the application is new");
    for _ in 0..EXECUTIONS / 500 {
        let writes = (0..500)
            .map(|_| {
                let mut execution = example_execution(&application, 3, clock.now());
                execution.status = gennaker::model::Status::Succeeded;
                execution.ended_at = Some(clock.now());
                for stage in &mut execution.stages {
                    stage.status = gennaker::model::Status::Succeeded;
                }
                Write::InsertExecution(Box::new(execution))
            })
            .collect();
        store.commit(Commit { writes, ..Commit::default() }).await.expect("the executions are new");
    }
    store.close().await;
}
