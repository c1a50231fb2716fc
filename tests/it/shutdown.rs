//! The end of a server: steps under way are finished or left to the next start, whoever is connected
//! is told, and a second word ends it at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use gennaker::cli::client::{Client, Error, Subscription};
use gennaker::cli::demo::setup::{self, FOLLOW};
use gennaker::clock::Clock;
use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use sea_orm::ConnectionTrait as _;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::harness::documents::{SAVE, START};
use crate::harness::mail::{MailServer, PASSWORD, mail_server};
use crate::harness::{Options, Outcome, Server, follow, trial, trial_with, wait_for};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("shutdown", "steps_under_way_end_and_the_next_start_goes_on", finishes),
        trial("shutdown", "what_takes_longer_than_the_grace_is_left_to_the_next_start", too_long),
        trial("shutdown", "a_second_signal_ends_the_server_at_once", second_signal),
        trial("shutdown", "a_refused_websocket_says_why", refused),
        trial_with(
            "shutdown",
            "beside_a_silent_mail_server_the_end_comes_in_time_and_nothing_is_lost",
            mail_server(),
            beside_silence,
        ),
        trial_with("shutdown", "a_test_mail_under_way_is_answered_before_the_end", mail_server(), test_mail),
    ]
}

const MAX: Duration = Duration::from_secs(60);

/// Something that a pipeline calls, and that answers when it is let.
struct Target {
    address: String,
    calls: Arc<AtomicUsize>,
    answers: Arc<AtomicBool>,
}

impl Target {
    async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let (calls, answers) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let target = Self { address, calls: Arc::clone(&calls), answers: Arc::clone(&answers) };
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (calls, answers) = (Arc::clone(&calls), Arc::clone(&answers));
                tokio::spawn(async move {
                    let mut request = [0; 4096];
                    if !matches!(stream.read(&mut request).await, Ok(1..)) {
                        return;
                    }
                    calls.fetch_add(1, Ordering::SeqCst);
                    while !answers.load(Ordering::SeqCst) {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}";
                    let _ = stream.write_all(answer).await;
                });
            }
        });
        Ok(target)
    }

    fn let_go(&self) {
        self.answers.store(true, Ordering::SeqCst);
    }

    async fn called(&self, times: usize) -> anyhow::Result<()> {
        wait_for("the call", MAX, || async { (self.calls.load(Ordering::SeqCst) >= times).then_some(()) }).await
    }
}

async fn server(grace_seconds: u32) -> anyhow::Result<Server> {
    let grace = grace_seconds.to_string();
    let flags = ["--outbound-allow", "127.0.0.1", "--shutdown-grace-seconds", &grace].map(str::to_owned).to_vec();
    Server::start_with(Options { flags, ..Options::default() }).await
}

/// Starts a pipeline that calls the target and then waits a second; the execution's id.
async fn start(client: &Client, target: &Target, method: &str) -> anyhow::Result<String> {
    setup::create_application(client).await?;
    let url = format!("http://{}/", target.address);
    let definition = json!({ "stages": [
        { "key": "call", "kind": "webhook", "config": { "url": url, "method": method, "timeoutSeconds": 60 } },
        { "key": "after", "kind": "wait", "config": { "seconds": 1 }, "requires": ["call"] },
    ] });
    client.mutate(SAVE, setup::saving("calls", definition)).await?;
    let input = json!({ "pipeline": { "name": { "application": setup::APPLICATION, "name": "calls" } } });
    let payload = client.mutate(START, input).await?;
    Ok(payload["execution"]["id"].as_str().context("an id")?.to_owned())
}

/// The events until the connection ends, and how it ended.
async fn watch(mut subscription: Subscription) -> anyhow::Result<(Vec<Value>, Error)> {
    let mut events = Vec::new();
    loop {
        match tokio::time::timeout(MAX, subscription.next()).await? {
            Ok(Some(mut data)) => events.push(data["executionEvents"].take()),
            Ok(None) => anyhow::bail!("the subscription was completed: {events:?}"),
            Err(error) => return Ok((events, error)),
        }
    }
}

/// An event stream to its end.
async fn stream(server: &Server, execution: &str) -> anyhow::Result<reqwest::Response> {
    let query = "subscription($id: ID!) { executionEvents(scope: {execution: {id: $id}}) { cursor } }";
    let client = reqwest::Client::builder().no_proxy().build()?;
    let answer = client
        .post(format!("{}/graphql", server.url()))
        .bearer_auth(server.token())
        .header("accept", "text/event-stream")
        .json(&json!({ "query": query, "variables": { "id": execution } }))
        .send()
        .await?;
    anyhow::ensure!(answer.status() == 200, "{answer:?}");
    Ok(answer)
}

async fn finishes() -> Outcome {
    let target = Target::start().await?;
    let mut server = server(30).await?;
    let client = server.client();
    let execution = start(&client, &target, "POST").await?;
    let watching = tokio::spawn(watch(client.subscribe(FOLLOW, &json!({ "id": execution, "after": null })).await?));
    let streaming = stream(&server, &execution).await?;
    target.called(1).await?;

    server.signal(Signal::SIGTERM)?;
    // Nothing new is begun, and it is said so; that it lives is said too.
    let http = reqwest::Client::builder().no_proxy().build()?;
    let refusal = wait_for("a refusal", MAX, || async {
        let ask = http.post(format!("{}/graphql", server.url())).json(&json!({ "query": "{ __typename }" }));
        ask.send().await.ok().filter(|answer| answer.status() == 503)
    })
    .await?;
    anyhow::ensure!(refusal.headers().get("connection").is_some_and(|value| value == "close"), "{refusal:?}");
    anyhow::ensure!(refusal.headers().contains_key("retry-after"), "{refusal:?}");
    let text = refusal.text().await?;
    anyhow::ensure!(text.contains("stopping") && text.contains("UNAVAILABLE"), "{text}");
    let health = http.get(format!("{}/healthz", server.url())).send().await?;
    anyhow::ensure!(health.status() == 200, "{health:?}");

    target.let_go();
    let status = server.ended(Duration::from_secs(30)).await?;
    anyhow::ensure!(status.code() == Some(0), "{status}\n{}", server.log());
    let (events, end) = watching.await??;
    anyhow::ensure!(
        end.to_string().contains("closed with 1001: The server is stopping"),
        "the socket ended with {end}\n{}",
        server.log()
    );
    let seen: Vec<_> = events.iter().map(|event| event["stage"]["status"].clone()).collect();
    anyhow::ensure!(seen.contains(&json!("SUCCEEDED")), "who watches sees the last step end: {seen:?}");
    let text = tokio::time::timeout(MAX, streaming.text()).await??;
    anyhow::ensure!(text.contains("event: next") && text.ends_with(": the server is stopping\n\n"), "{text}");
    anyhow::ensure!(!text.contains("event: complete"), "there is more to come: {text}");

    server.restart().await?;
    follow(&client, &execution, MAX).await?.succeeded()?;
    anyhow::ensure!(target.calls.load(Ordering::SeqCst) == 1, "the finished call is not made again");
    Ok(())
}

async fn too_long() -> Outcome {
    let target = Target::start().await?;
    let mut server = server(1).await?;
    let client = server.client();
    let execution = start(&client, &target, "GET").await?;
    target.called(1).await?;
    let asked = Instant::now();
    server.signal(Signal::SIGTERM)?;
    let status = server.ended(Duration::from_secs(15)).await?;
    anyhow::ensure!(status.code() == Some(0), "{status}\n{}", server.log());
    anyhow::ensure!(asked.elapsed() >= Duration::from_millis(900), "the step had its grace: {:?}", asked.elapsed());
    anyhow::ensure!(server.log().contains("taken up again at the next start"), "{}", server.log());
    target.let_go();
    server.restart().await?;
    follow(&client, &execution, MAX).await?.succeeded()?;
    Ok(())
}

async fn second_signal() -> Outcome {
    let target = Target::start().await?;
    let mut server = server(300).await?;
    let client = server.client();
    let execution = start(&client, &target, "GET").await?;
    target.called(1).await?;
    server.signal(Signal::SIGTERM)?;
    wait_for("the end to begin", MAX, || async { server.log().contains("stopping:").then_some(()) }).await?;
    server.signal(Signal::SIGINT)?;
    let status = server.ended(Duration::from_secs(10)).await?;
    anyhow::ensure!(status.code() == Some(1), "{status}\n{}", server.log());
    target.let_go();
    server.restart().await?;
    follow(&client, &execution, MAX).await?.succeeded()?;
    Ok(())
}

async fn refused() -> Outcome {
    let server = Server::start().await?;
    let stranger = Client::new(&server.url(), Some("gnk_nonsense"))?;
    let Err(error) = stranger.subscribe(FOLLOW, &json!({ "id": "x", "after": null })).await else {
        anyhow::bail!("a stranger was let in");
    };
    anyhow::ensure!(error.to_string().contains("closed with 4403: Forbidden"), "{error}");
    Ok(())
}

/// A server that ends within two seconds and sends its mails there.
async fn server_with(mail: &MailServer) -> anyhow::Result<Server> {
    let mut flags = mail.flags();
    flags
        .extend(["--smtp-password=secret://env/GENNAKER_SECRET_MAIL", "--shutdown-grace-seconds=2"].map(str::to_owned));
    let environment = vec![("GENNAKER_SECRET_MAIL".to_owned(), PASSWORD.to_owned())];
    Server::start_with(Options { flags, environment, ..Options::default() }).await
}

async fn test_mail() -> Outcome {
    let mail = MailServer::prepared()?;
    let silent = TcpListener::bind(("127.0.0.1", mail.port())).await?;
    let mut server = server_with(&mail).await?;
    let client = server.client();
    let asking = tokio::spawn(async move {
        let send = "mutation($input: SendTestEmailInput!) {
            sendTestEmail(input: $input) { isSent userErrors { code message field } } }";
        client.mutate(send, json!({ "to": "ann@example.org" })).await
    });
    let (connection, _) = tokio::time::timeout(MAX, silent.accept()).await??;
    server.signal(Signal::SIGTERM)?;
    let answer = tokio::time::timeout(MAX, asking).await??;
    let error = answer.err().context("a silent server takes no mail")?;
    anyhow::ensure!(error.code() == Some("UNAVAILABLE"), "{error}");
    anyhow::ensure!(error.to_string().contains("whether the mail was sent is not known"), "{error}");
    drop(connection);
    let status = server.ended(Duration::from_secs(20)).await?;
    anyhow::ensure!(status.code() == Some(0), "{status}\n{}", server.log());
    Ok(())
}

async fn beside_silence() -> Outcome {
    let mut mail = MailServer::prepared()?;
    // Takes connections on its port and never says a word.
    let silent = std::net::TcpListener::bind(("127.0.0.1", mail.port()))?;
    let mut server = server_with(&mail).await?;
    let client = server.client();
    setup::create_application(&client).await?;
    let definition = |triggers: Value| json!({ "stages": [{ "key": "a", "kind": "wait", "config": { "seconds": 0 } }], "triggers": triggers });
    let cron = |expression: &str, missed: &str| json!([{ "key": "t", "kind": "cron", "config": { "expression": expression, "missed": missed } }]);
    // One that is due while the server ends, and two whose slots were five minutes ago when it comes back.
    let clock = Clock::system();
    let then = clock.now() - chrono::TimeDelta::minutes(5);
    let daily = then.format("0 %M %H * * *").to_string();
    for (name, expression, missed) in
        [("often", "* * * * * *", "SKIP"), ("skips", daily.as_str(), "SKIP"), ("runs", daily.as_str(), "RUN_ONCE")]
    {
        client.mutate(SAVE, setup::saving(name, definition(cron(expression, missed)))).await?;
    }
    let mut told = definition(json!([]));
    told["notifications"] = json!([{ "on": ["COMPLETED"], "email": { "to": ["ann@example.org"] } }]);
    client.mutate(SAVE, setup::saving("tells", told)).await?;
    let input = json!({ "pipeline": { "name": { "application": setup::APPLICATION, "name": "tells" } } });
    client.mutate(START, input).await?;
    let delivery = async || {
        let query = "{ deliveries { nodes { state attempts } } }";
        client.query(query, Value::Null).await.ok()?.pointer("/deliveries/nodes/0").cloned()
    };
    let tried = async || delivery().await.filter(|one| one["attempts"] == 1);
    wait_for("the mail to be on its way", MAX, tried).await?;

    let asked = Instant::now();
    server.signal(Signal::SIGTERM)?;
    let status = server.ended(Duration::from_secs(20)).await?;
    let took = asked.elapsed();
    anyhow::ensure!(status.code() == Some(0), "{status}\n{}", server.log());
    anyhow::ensure!(took < Duration::from_secs(7), "it took {took:?}, with a grace of 2 s\n{}", server.log());
    drop(silent);
    let database = format!("sqlite://{}", server.data_dir().join("gennaker.db").display());
    let database = sea_orm::Database::connect(database).await?;
    // As if the server had not been there in their time.
    let due = then.timestamp() / 60 * 60 * 1_000_000;
    let sql = format!(
        "UPDATE pipeline_trigger SET next_at = {due} WHERE pipeline_id IN (SELECT id FROM pipeline WHERE name <> 'often')"
    );
    anyhow::ensure!(database.execute_unprepared(&sql).await?.rows_affected() == 2);
    database.close().await?;

    mail.up(&[]).await?;
    server.restart().await?;
    mail.received(1).await?;
    wait_for("the record of the mail", MAX, async || delivery().await.filter(|one| one["state"] == "SENT")).await?;
    let runs = async |name: &str| {
        let query = "query($name: String!) { pipeline(application: \"hello\", name: $name) {
            triggers { lastMissedAt lastError }
            executions(first: 100) { nodes { trigger { reason scheduledAt } } } } }";
        Some(client.query(query, json!({ "name": name })).await.ok()?["pipeline"].take())
    };
    let once = wait_for("the late run", MAX, async || {
        runs("runs")
            .await
            .filter(|found| found["executions"]["nodes"].as_array().is_some_and(|nodes| !nodes.is_empty()))
    });
    let once = once.await?["executions"]["nodes"].take();
    anyhow::ensure!(once.as_array().is_some_and(|nodes| nodes.len() == 1), "{once}");
    anyhow::ensure!(once[0]["trigger"]["reason"].as_str().is_some_and(|reason| reason.contains("late")), "{once}");
    let skipped = wait_for("the word about the slot let go", MAX, async || {
        runs("skips").await.filter(|found| found["triggers"][0]["lastMissedAt"].is_string())
    });
    let skipped = skipped.await?;
    anyhow::ensure!(skipped["executions"]["nodes"] == json!([]), "{skipped}");
    let often = wait_for("the timetable to go on", MAX, async || {
        let found = runs("often").await?["executions"]["nodes"].take();
        let at = |node: &Value| node["trigger"]["scheduledAt"].as_str()?.parse::<chrono::DateTime<chrono::Utc>>().ok();
        let slots: Vec<_> = found.as_array()?.iter().filter_map(at).collect();
        (slots.first()? > &(clock.now() - chrono::TimeDelta::seconds(2))).then_some(slots)
    })
    .await?;
    let distinct: std::collections::BTreeSet<_> = often.iter().collect();
    anyhow::ensure!(distinct.len() == often.len(), "each slot once: {often:?}");
    Ok(())
}
