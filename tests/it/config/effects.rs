//! What SIGHUP changes in a running server, seen from outside.

use nix::sys::signal::Signal;
use serde_json::json;

use super::{Dir, MAX, with_file};
use crate::harness::documents::{CREATE, SAVE, START};
use crate::harness::{Outcome, Server, follow, get, wait_for};

const CONSOLE: &str = "https://console.example";

/// A request, and its answer: a status, and the origin that may read it.
struct Request<'a> {
    token: &'a str,
    /// Bytes of its body, about.
    bytes: usize,
    headers: &'a [(&'a str, &'a str)],
}

async fn send(server: &Server, request: &Request<'_>) -> anyhow::Result<(u16, Option<String>)> {
    let client = reqwest::Client::builder().no_proxy().build()?;
    let body = json!({ "query": "{ __typename }", "variables": { "x": "x".repeat(request.bytes) } });
    let mut sent = client.post(format!("{}/graphql", server.url())).bearer_auth(request.token).json(&body);
    for (name, value) in request.headers {
        sent = sent.header(*name, *value);
    }
    let answer = sent.send().await?;
    let may_read = answer.headers().get("access-control-allow-origin").and_then(|value| value.to_str().ok());
    Ok((answer.status().as_u16(), may_read.map(str::to_owned)))
}

pub async fn take_effect() -> Outcome {
    let dir = Dir::new()?;
    let mut text = String::from("max-body-bytes = 1048576\n");
    let file = dir.write("g.toml", &text)?;
    let server = Server::start_with(with_file(&file)).await?;
    let token = server.token();
    let mut change = |line: &str| {
        text = text.replace("max-body-bytes = 1048576\n", "");
        text.push_str(line);
        dir.write("g.toml", &text)?;
        server.signal(Signal::SIGHUP)
    };
    let ask = async |request: Request<'_>| send(&server, &request).await.ok();

    let of_console = || Request { token, bytes: 1, headers: &[("origin", CONSOLE)] };
    anyhow::ensure!(ask(of_console()).await == Some((403, None)));
    change(&format!("cors-allowed-origins = [\"{CONSOLE}\"]\n"))?;
    wait_for("the origin to be let in", MAX, || async {
        ask(of_console()).await.filter(|answer| *answer == (200, Some(CONSOLE.to_owned())))
    })
    .await?;

    let large = || Request { token, bytes: 300_000, headers: &[] };
    anyhow::ensure!(ask(large()).await == Some((200, None)));
    change("max-body-bytes = 262144\n")?;
    wait_for("large bodies to be refused", MAX, || async { ask(large()).await.filter(|(status, _)| *status == 413) })
        .await?;

    // A word of the log that is for those who look closer.
    let strange = |from: &'static [(&'static str, &'static str)]| Request { token: "gnk_x", bytes: 1, headers: from };
    let refused = "a request without a valid token was refused";
    anyhow::ensure!(ask(strange(&[])).await == Some((401, None)) && !server.log().contains(refused));
    change("log-filter = \"info,gennaker=debug\"\n")?;
    wait_for("the log to say more", MAX, || async {
        ask(strange(&[])).await?;
        server.log().contains(refused).then_some(())
    })
    .await?;

    let create = server.client().mutate(CREATE, json!({ "name": "shop" })).await?;
    anyhow::ensure!(create["application"]["id"].is_string(), "{create}");
    let stages = json!([{ "key": "w", "kind": "wait", "config": { "seconds": 0 } }]);
    let pipeline = json!({ "application": { "name": "shop" }, "name": "short", "stages": stages });
    server.client().mutate(SAVE, pipeline).await?;
    let name = json!({ "application": "shop", "name": "short" });
    let started = server.client().mutate(START, json!({ "pipeline": { "name": name } })).await?;
    let execution = started["execution"]["id"].as_str().unwrap_or_default();
    follow(&server.client(), execution, MAX).await?.succeeded()?;
    as_if_three_days_ago(&server).await?;
    let executions = async || {
        let data = server.client().query("{ executions { totalCount } }", json!({})).await.ok()?;
        data["executions"]["totalCount"].as_i64()
    };
    anyhow::ensure!(executions().await == Some(1));
    change("retention-days = 2\n")?;
    wait_for("the old execution to go", MAX, || async { executions().await.filter(|count| *count == 0) }).await?;

    // Last, since nobody else is let in then.
    let behind: &[(&str, &str)] = &[("x-forwarded-for", "192.0.2.7")];
    anyhow::ensure!(ask(strange(behind)).await == Some((401, None)) && !server.log().contains("192.0.2.7"));
    change("trusted-proxies = [\"127.0.0.1\"]\n")?;
    wait_for("the proxy to be believed", MAX, || async {
        ask(strange(behind)).await?;
        server.log().contains("192.0.2.7").then_some(())
    })
    .await?;
    text = text.replace("\"127.0.0.1\"", "\"192.0.2.1\"");
    dir.write("g.toml", &text)?;
    server.signal(Signal::SIGHUP)?;
    let plain = || Request { token, bytes: 1, headers: &[] };
    wait_for("others to be refused", MAX, || async { ask(plain()).await.filter(|(status, _)| *status == 403) }).await?;
    let (status, _) = get(&server, "/healthz", None).await?;
    anyhow::ensure!(status == 200, "the machine itself may ask whether it is alive: {status}");
    Ok(())
}

async fn as_if_three_days_ago(server: &Server) -> Outcome {
    use sea_orm::{ConnectionTrait as _, Database};
    let database = server.data_dir().join("gennaker.db");
    let database = Database::connect(format!("sqlite://{}?mode=rw", database.display())).await?;
    database.execute_unprepared("PRAGMA busy_timeout = 10000").await?;
    database.execute_unprepared("UPDATE execution SET ended_at = ended_at - 259200000000").await?;
    database.close().await?;
    Ok(())
}
