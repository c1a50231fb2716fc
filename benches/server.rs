//! What the server and the host cost: start to first answer with an empty and a full database,
//! memory of both when idle, and what the load balancer adds to a direct call in the same run.
//! `cargo bench --bench server [-- --quick]`

#[path = "../tests/it/harness/mod.rs"]
#[expect(dead_code, reason = "the tests use the rest")]
mod harness;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use gennaker::cli::load::{Load, Options, Report};
use sea_orm::{ConnectionTrait, Database};
use serde_json::json;

use harness::{Hello, Server};

fn main() -> anyhow::Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let quick = std::env::args().any(|argument| argument == "--quick");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(measure(quick))
}

async fn measure(quick: bool) -> anyhow::Result<()> {
    let mut server = Server::start().await?;
    let hello = Hello::create(&server).await?;
    hello.deploy("1.0.0").await?.succeeded()?;

    memory(&server);
    println!("start to first answer");
    println!("  empty database         {:>10.0} ms", restart(&mut server).await?);
    let executions = if quick { 1_000 } else { 100_000 };
    fill(&server, executions).await?;
    println!("  {executions:>6} executions      {:>10.0} ms", restart(&mut server).await?);

    proxy(&hello, if quick { 2 } else { 10 }).await
}

fn memory(server: &Server) {
    let mut sum = 0;
    println!("resident memory, idle");
    let own = server.pid().into_iter().map(|pid| (pid, "server".to_owned()));
    let host = server.processes().into_iter().filter(|(_, command)| command.contains(" host ")).map(|(pid, _)| (pid, "host".to_owned()));
    for (pid, name) in own.chain(host) {
        let kib = resident_kib(pid);
        sum += kib;
        println!("  {name:<22} {:>10.1} MB", kib as f64 / 1024.0);
    }
    println!("  {:<22} {:>10.1} MB", "together", sum as f64 / 1024.0);
}

fn resident_kib(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or_default()
}

/// Milliseconds from the process's start to its first answer.
async fn restart(server: &mut Server) -> anyhow::Result<f64> {
    server.stop().await?;
    let start = Instant::now();
    server.restart().await?;
    Ok(start.elapsed().as_secs_f64() * 1e3)
}

/// Copies one finished execution with its stages and events many times.
async fn fill(server: &Server, executions: u32) -> anyhow::Result<()> {
    let path = server.data_dir().join("gennaker.db");
    let db = Database::connect(format!("sqlite://{}", path.display())).await?;
    for (table, id) in [("execution", "id"), ("stage", "execution_id")] {
        let columns = db
            .query_all_raw(sea_orm::Statement::from_string(
                sea_orm::DbBackend::Sqlite,
                format!("SELECT name FROM pragma_table_info('{table}')"),
            ))
            .await?;
        let names: Vec<String> = columns.iter().map(|row| row.try_get_by_index(0)).collect::<Result<_, _>>()?;
        // Ids count up from one that nobody else has; numbers go on.
        let copied = |name: &String| match (table, name.as_str()) {
            (_, column) if column == id => "unhex(printf('ee%030x', n))".to_owned(),
            ("stage", "id") => "unhex(printf('ef%030x', n * 100 + t.position))".to_owned(),
            ("stage", "parent_id") => "NULL".to_owned(),
            ("execution", "number") => "1000 + n".to_owned(),
            _ => format!("t.{name}"),
        };
        let select: Vec<_> = names.iter().map(copied).collect();
        let of = if table == "stage" {
            "t.execution_id = (SELECT id FROM execution WHERE kind = 'PIPELINE' AND number = 1)"
        } else {
            "t.kind = 'PIPELINE' AND t.number = 1"
        };
        db.execute_unprepared(&format!(
            "WITH RECURSIVE count(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM count WHERE n < {executions}) \
             INSERT INTO {table} ({}) SELECT {} FROM count, {table} t WHERE {of}",
            names.join(", "),
            select.join(", ")
        ))
        .await?;
    }
    Ok(())
}

/// The same requests through the load balancer and directly to an instance, in turns.
async fn proxy(hello: &Hello, seconds: u64) -> anyhow::Result<()> {
    let data = hello
        .client
        .query("{ serverGroup(name: \"hello-v000\") { instances { address port } } }", json!({}))
        .await?;
    let instance = &data["serverGroup"]["instances"][0];
    let text = format!("{}:{}", instance["address"].as_str().unwrap_or_default(), instance["port"]);
    let direct: SocketAddr = text.parse()?;
    println!("through the load balancer and directly, in turns");
    for (what, rate, connections) in [("at 500 requests/s", 500, 8), ("as fast as it goes", 1_000_000, 16)] {
        let mut through = Vec::new();
        let mut past = Vec::new();
        for _ in 0..3 {
            through.push(run(hello.load_balancer, rate, connections, seconds).await);
            past.push(run(direct, rate, connections, seconds).await);
        }
        for (name, reports) in [("load balancer", &through), ("direct", &past)] {
            let sent: u64 = reports.iter().map(|report| report.sent).sum();
            let failed: u64 = reports.iter().map(|report| report.failed).sum();
            println!(
                "  {what:<20} {name:<15} {:>8.0} /s   p50 {:>6.2} ms   p99 {:>6.2} ms   {failed} failed",
                sent as f64 / (seconds * reports.len() as u64) as f64,
                median(reports, 0.5),
                median(reports, 0.99),
            );
        }
    }
    Ok(())
}

async fn run(target: SocketAddr, requests_per_second: u32, connections: u32, seconds: u64) -> Report {
    let load = Load::start(Options {
        target,
        path: "/".to_owned(),
        requests_per_second,
        connections,
        retry_broken: false,
    });
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    load.stop().await
}

fn median(reports: &[Report], share: f64) -> f64 {
    let mut values: Vec<_> = reports.iter().filter_map(|report| report.latency(share)).collect();
    values.sort_unstable();
    values.get(values.len() / 2).map_or(f64::NAN, |value| value.as_secs_f64() * 1e3)
}
